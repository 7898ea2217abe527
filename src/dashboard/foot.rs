//! What belongs to the address of a list beside its filters: how many rows a page has, its rows as a file, and the call that
//! answers the same. What a file holds is what the page shows. Pure.

use actix_web::HttpResponse;
use actix_web::http::header;

use crate::dashboard::view::Link;
use crate::error::{Error, Result};
use crate::exports::csv::Table;
use crate::http::extract::Params;
use crate::metering::json::{Number, Value};
use crate::metering::quantity::Quantity;
use crate::metering::time::Timestamp;

/// Rows of a page that can be chosen.
const SIZES: [usize; 4] = [25, 50, 100, 500];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Page,
    Csv,
    Json,
}

impl Format {
    fn parse(params: &Params) -> Result<Format> {
        match params.get("format").trim() {
            "" | "html" => Ok(Format::Page),
            "csv" => Ok(Format::Csv),
            "json" => Ok(Format::Json),
            _ => Err(Error::invalid("format must be html, csv or json")),
        }
    }
}

/// How much of a list is asked for, and as what.
#[derive(Clone, Copy, Debug)]
pub struct Portion {
    rows: usize,
    usual: usize,
    format: Format,
}

impl Portion {
    /// `usual` is how many rows a page has that says nothing else.
    pub fn parse(params: &Params, usual: usize) -> Result<Portion> {
        let rows = match params.get("limit").trim() {
            "" => usual,
            text => text
                .parse()
                .ok()
                .filter(|rows| SIZES.contains(rows) || *rows == usual)
                .ok_or_else(|| Error::invalid("limit must be 25, 50, 100 or 500"))?,
        };
        Ok(Portion { rows, usual, format: Format::parse(params)? })
    }

    /// Of a list whose rows are not had as a file.
    pub fn of_pages(params: &Params, usual: usize) -> Result<Portion> {
        let portion = Portion::parse(params, usual)?;
        match portion.format {
            Format::Page => Ok(portion),
            Format::Csv | Format::Json => Err(Error::invalid("format must be html: this list is no file")),
        }
    }

    /// Of a list that has all its rows on one page.
    pub fn whole(params: &Params) -> Result<Portion> {
        Ok(Portion { rows: usize::MAX, usual: usize::MAX, format: Format::parse(params)? })
    }

    pub fn rows(self) -> usize {
        self.rows
    }

    /// A list with as many rows.
    pub fn on(self, link: Link) -> Link {
        if self.rows == self.usual { link } else { link.with("limit", &self.rows.to_string()) }
    }

    /// The rows as a file, if one is asked for.
    pub fn file(
        self,
        name: &str,
        columns: &[&str],
        rows: impl Iterator<Item = Vec<Cell>>,
    ) -> Result<Option<HttpResponse>> {
        let mut response = HttpResponse::Ok();
        let body = match self.format {
            Format::Page => return Ok(None),
            Format::Csv => {
                response.content_type("text/csv; charset=utf-8");
                let disposition = format!("attachment; filename=\"{name}.csv\"");
                response.insert_header((header::CONTENT_DISPOSITION, disposition));
                csv(columns, rows)?
            }
            Format::Json => {
                response.content_type("application/json");
                let object = |row: Vec<Cell>| {
                    Value::object(columns.iter().copied().zip(row.into_iter().map(Cell::into_json)))
                };
                Value::Array(rows.map(object).collect()).to_string().into_bytes()
            }
        };
        Ok(Some(response.body(body)))
    }

    /// What stands below the list at an address, which says neither how many rows it has nor as what.
    pub fn foot(self, here: &Link) -> Foot {
        let mut sizes = SIZES.to_vec();
        match self.usual {
            usize::MAX => sizes.clear(),
            usual if !sizes.contains(&usual) => {
                sizes.push(usual);
                sizes.sort_unstable();
            }
            _ => {}
        }
        let size = |rows: usize| Size {
            rows,
            link: Portion { rows, ..self }.on(here.clone()).to_string(),
            is_current: rows == self.rows,
        };
        let file = |format: &str| self.on(here.clone()).with("format", format).to_string();
        Foot {
            limit: if self.rows == self.usual { String::new() } else { self.rows.to_string() },
            sizes: sizes.into_iter().map(size).collect(),
            csv: file("csv"),
            json: file("json"),
            curl: String::new(),
        }
    }
}

fn csv(columns: &[&str], rows: impl Iterator<Item = Vec<Cell>>) -> Result<Vec<u8>> {
    let mut table = Table::of_page(columns)?;
    for row in rows {
        let cells: Vec<String> = row.into_iter().map(Cell::into_text).collect();
        table.row(&cells.iter().map(String::as_str).collect::<Vec<&str>>())?;
    }
    table.into_bytes()
}

/// A number of rows that a page may have.
pub struct Size {
    pub rows: usize,
    pub link: String,
    pub is_current: bool,
}

/// What stands below a list; texts are blank where it has none.
#[derive(Default)]
pub struct Foot {
    /// How many rows a page has, where the address says it: forms that narrow the list keep it.
    pub limit: String,
    pub sizes: Vec<Size>,
    pub csv: String,
    pub json: String,
    pub curl: String,
}

impl Foot {
    /// With the call that answers the same rows, for programs.
    pub fn with_call(self, origin: &str, call: &Link) -> Foot {
        Foot { curl: curl(origin, call), ..self }
    }

    /// As [`Foot::with_call`], where a call answers the same: not all that narrows a page narrows one.
    pub fn with_call_if(self, is_same: bool, origin: &str, call: &Link) -> Foot {
        if is_same { self.with_call(origin, call) } else { self }
    }

    /// Where the rows are not had as a file.
    pub fn without_files(self) -> Foot {
        Foot { csv: String::new(), json: String::new(), ..self }
    }
}

/// A call of the interface for programs. Links are encoded: there is no quote in them.
pub fn curl(origin: &str, call: &Link) -> String {
    format!("curl '{origin}{call}' -H 'Authorization: Bearer YOUR_KEY'")
}

/// A cell of a file.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    Nothing,
    Text(String),
    Number(Quantity),
}

impl Cell {
    fn into_text(self) -> String {
        match self {
            Cell::Nothing => String::new(),
            Cell::Text(text) => text,
            Cell::Number(number) => number.to_plain(),
        }
    }

    fn into_json(self) -> Value {
        match self {
            Cell::Nothing => Value::Null,
            Cell::Text(text) => Value::String(text),
            Cell::Number(number) => Value::Number(Number::from(&number)),
        }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Cell {
        Cell::Text(text.to_owned())
    }
}

impl From<&String> for Cell {
    fn from(text: &String) -> Cell {
        Cell::Text(text.clone())
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Cell {
        Cell::Text(text)
    }
}

impl From<i64> for Cell {
    fn from(number: i64) -> Cell {
        Cell::Number(Quantity::from(number))
    }
}

impl From<&Quantity> for Cell {
    fn from(number: &Quantity) -> Cell {
        Cell::Number(number.clone())
    }
}

impl From<Timestamp> for Cell {
    fn from(at: Timestamp) -> Cell {
        Cell::Text(at.to_exact_text())
    }
}

impl<T: Into<Cell>> From<Option<T>> for Cell {
    fn from(some: Option<T>) -> Cell {
        some.map_or(Cell::Nothing, Into::into)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_have_one_of_a_few_sizes() {
        let rows = |query: &str| Portion::parse(&Params::parse(query), 50).map(Portion::rows);
        assert_eq!(
            [rows("").ok(), rows("limit=25").ok(), rows("limit=500").ok()],
            [Some(50), Some(25), Some(500)]
        );
        for wrong in ["limit=0", "limit=51", "limit=-25", "limit=x", "format=xml"] {
            assert!(rows(wrong).is_err(), "{wrong}");
        }
        assert_eq!(Portion::parse(&Params::parse("limit=200"), 200).map(Portion::rows).ok(), Some(200));
        let of_pages = |query: &str| Portion::of_pages(&Params::parse(query), 50).map(Portion::rows).ok();
        assert_eq!([of_pages("limit=25"), of_pages("format=html")], [Some(25), Some(50)]);
        assert_eq!([of_pages("format=csv"), of_pages("format=json")], [None, None]);
    }

    #[test]
    fn the_foot_of_a_list_keeps_its_filters() {
        let portion = Portion::parse(&Params::parse("limit=25"), 50).expect("known");
        let foot = portion.foot(&Link::to("/x").with("q", "a b"));
        let links: Vec<&str> = foot.sizes.iter().map(|size| size.link.as_str()).collect();
        assert_eq!(links, ["/x?q=a+b&limit=25", "/x?q=a+b", "/x?q=a+b&limit=100", "/x?q=a+b&limit=500"]);
        assert_eq!(foot.csv, "/x?q=a+b&limit=25&format=csv");
        assert_eq!(foot.sizes.iter().filter(|size| size.is_current).count(), 1);
        assert_eq!(foot.limit, "25");
        let whole = Portion::whole(&Params::parse("")).expect("known").foot(&Link::to("/x"));
        assert!(whole.sizes.is_empty() && whole.json == "/x?format=json");
        let call = foot.with_call("https://h", &Link::to("/v1/x").with("q", "it's")).curl;
        assert_eq!(call, "curl 'https://h/v1/x?q=it%27s' -H 'Authorization: Bearer YOUR_KEY'");
    }

    #[test]
    fn cells_keep_their_kind() {
        let row: Vec<Cell> = vec!["=a".into(), 5_i64.into(), None::<i64>.into()];
        let text = csv(&["a", "b", "c"], [row.clone()].into_iter()).expect("a table");
        assert_eq!(String::from_utf8(text).expect("text").lines().last(), Some("'=a,5,"));
        let json: Vec<String> = row.into_iter().map(|cell| cell.into_json().to_string()).collect();
        assert_eq!(json, ["\"=a\"", "5", "null"]);
    }
}
