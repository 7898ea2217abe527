//! Reads tables that another program wrote, at one instant and without changing anything. Column types bind nobody in
//! SQLite, and texts there need not be UTF-8: each value is asked for in a way that cannot fail, and what is not what it
//! should be is an [`Odd`] of that value, not an error.

use std::collections::BTreeSet;

use diesel::connection::{DefaultLoadingMode, SimpleConnection};
use diesel::deserialize::{self, QueryableByName};
use diesel::pg::Pg;
use diesel::row::NamedRow;
use diesel::sql_types::{BigInt, Binary, Double, Nullable, Text};
use diesel::sqlite::Sqlite;
use diesel::{RunQueryDsl, sql_query};

use crate::config::Driver;
use crate::db::{self, Conn};
use crate::error::{Error, Result};
use crate::metering::quantity::Quantity;
use crate::metering::time::Timestamp;

/// What a column is read as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Text,
    /// Also flags.
    Int,
    Real,
}

/// A table and the columns of it that are read.
pub struct Table {
    pub name: &'static str,
    pub columns: &'static [(&'static str, Kind)],
    /// An SQL expression; none: as they lie.
    pub order: &'static str,
}

/// Why a value is not taken.
pub type Odd = String;

#[derive(Clone, Debug)]
enum Cell {
    Null,
    NotUtf8,
    Text(String),
    Int(i64),
    Real(f64),
}

/// One row of a [`Table`].
#[derive(Debug)]
pub struct Row {
    columns: &'static [(&'static str, Kind)],
    cells: Vec<Cell>,
}

impl Row {
    fn cell(&self, name: &str) -> &Cell {
        let at = self.columns.iter().position(|(column, _)| *column == name);
        at.and_then(|at| self.cells.get(at)).unwrap_or(&Cell::Null)
    }

    /// A text that has to be there.
    pub fn text(&self, name: &str) -> Result<String, Odd> {
        self.optional(name)?.ok_or_else(|| format!("{name} is missing"))
    }

    pub fn optional(&self, name: &str) -> Result<Option<String>, Odd> {
        match self.cell(name) {
            Cell::Text(text) if text.contains('\0') => Err(format!("{name} has a NUL character")),
            Cell::Text(text) => Ok(Some(text.clone())),
            Cell::NotUtf8 => Err(format!("{name} is not UTF-8")),
            _ => Ok(None),
        }
    }

    /// A text where the empty one means that there is none.
    pub fn filled(&self, name: &str) -> Result<Option<String>, Odd> {
        Ok(self.optional(name)?.filter(|text| !text.is_empty()))
    }

    /// For lists of what was left out: as much of the text as can be shown.
    pub fn shown(&self, name: &str) -> String {
        match self.cell(name) {
            Cell::Text(text) => text.chars().take(200).collect(),
            _ => String::new(),
        }
    }

    pub fn int(&self, name: &str) -> Result<i64, Odd> {
        self.optional_int(name).ok_or_else(|| format!("{name} is no whole number"))
    }

    pub fn optional_int(&self, name: &str) -> Option<i64> {
        if let Cell::Int(value) = self.cell(name) { Some(*value) } else { None }
    }

    pub fn flag(&self, name: &str) -> Result<bool, Odd> {
        Ok(self.int(name)? != 0)
    }

    /// The shortest decimal that reads back as the same float.
    pub fn quantity(&self, name: &str) -> Result<Quantity, Odd> {
        let Cell::Real(value) = self.cell(name) else { return Err(format!("{name} is no number")) };
        Quantity::from_f64(*value).map_err(|_| format!("{name} is {value}"))
    }

    pub fn time(&self, name: &str) -> Result<Timestamp, Odd> {
        self.optional_time(name)?.ok_or_else(|| format!("{name} is missing"))
    }

    pub fn optional_time(&self, name: &str) -> Result<Option<Timestamp>, Odd> {
        let Some(text) = self.optional(name)? else { return Ok(None) };
        let read = Timestamp::parse(&text).or_else(|| Timestamp::parse(&rfc3339(&text)));
        read.map(Some).ok_or_else(|| format!("{name} is no time of the years 1 to 9999: {text:.40}"))
    }
}

/// What PostgreSQL writes for a time with a zone, in UTC: `2026-03-01 00:00:00.5+00`.
fn rfc3339(text: &str) -> String {
    match text.strip_suffix("+00") {
        Some(text) => format!("{}Z", text.replacen(' ', "T", 1)),
        None => String::new(),
    }
}

/// Another program's database, as it is at one instant.
pub struct Foreign {
    conn: Conn,
    columns: BTreeSet<(String, String)>,
}

#[derive(QueryableByName)]
struct Named {
    #[diesel(sql_type = Text)]
    table_name: String,
    #[diesel(sql_type = Text)]
    column_name: String,
}

#[derive(QueryableByName)]
struct Count {
    #[diesel(sql_type = BigInt)]
    count: i64,
}

const COLUMNS_OF_POSTGRES: &str = "
    SELECT c.relname::text AS table_name, a.attname::text AS column_name
    FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = current_schema() AND c.relkind IN ('r', 'p') AND a.attnum > 0 AND NOT a.attisdropped";
const COLUMNS_OF_SQLITE: &str = "
    SELECT t.name AS table_name, c.name AS column_name
    FROM sqlite_master t JOIN pragma_table_info(t.name) c WHERE t.type = 'table'";

impl Foreign {
    pub fn open(driver: &Driver) -> Result<Foreign> {
        let mut conn = db::open_foreign(driver)?;
        let begin = match conn {
            Conn::Postgres(_) => {
                "SET default_transaction_read_only = on; SET extra_float_digits = 3; SET TIME ZONE 'UTC';
                 BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
            }
            Conn::Sqlite(_) => "BEGIN",
        };
        conn.batch_execute(begin).map_err(|error| cannot_read(&error))?;
        let text = if conn.is_postgres() { COLUMNS_OF_POSTGRES } else { COLUMNS_OF_SQLITE };
        let named: Vec<Named> = sql_query(text).load(&mut conn).map_err(|error| cannot_read(&error))?;
        let columns = named.into_iter().map(|named| (named.table_name, named.column_name)).collect();
        Ok(Foreign { conn, columns })
    }

    pub fn has_table(&self, table: &str) -> bool {
        self.columns.iter().any(|(name, _)| name == table)
    }

    pub fn has_column(&self, table: &str, column: &str) -> bool {
        self.columns.contains(&(table.to_owned(), column.to_owned()))
    }

    /// Columns that are there and not read.
    pub fn unread<'a>(&'a self, table: &'a Table) -> impl Iterator<Item = &'a str> {
        let is_read = |column: &str| table.columns.iter().any(|(name, _)| *name == column);
        let of_table = self.columns.iter().filter(|(name, _)| name == table.name);
        of_table.map(|(_, column)| column.as_str()).filter(move |column| !is_read(column))
    }

    pub fn count(&mut self, table: &str) -> Result<u64> {
        let text = format!("SELECT count(*) AS count FROM {table}");
        let count: Count = sql_query(text).get_result(&mut self.conn).map_err(|error| cannot_read(&error))?;
        Ok(count.count.unsigned_abs())
    }

    /// One text, such as a version; none when there is no row.
    pub fn version(&mut self) -> Result<Option<(i64, bool)>> {
        const VERSION: Table = Table {
            name: "schema_migrations",
            columns: &[("version", Kind::Int), ("dirty", Kind::Int)],
            order: "",
        };
        let mut found = None;
        self.each(&VERSION, 10, |rows| {
            found = rows.first().and_then(|row| Some((row.int("version").ok()?, row.flag("dirty").ok()?)));
            Ok(())
        })?;
        Ok(found)
    }

    /// Hands over the rows of a table, so many at once. A table that is not there has none.
    pub fn each(
        &mut self,
        table: &Table,
        at_once: usize,
        mut work: impl FnMut(Vec<Row>) -> Result<()>,
    ) -> Result<()> {
        if !self.has_table(table.name) {
            return Ok(());
        }
        let text = self.select(table);
        let of = |cells: Raw| Row { columns: table.columns, cells: cells.0 };
        match &mut self.conn {
            Conn::Postgres(c) => {
                let declare = format!("DECLARE foreign_rows NO SCROLL CURSOR FOR {text}");
                c.batch_execute(&declare).map_err(|error| cannot_read(&error))?;
                loop {
                    let fetch = format!("FETCH FORWARD {at_once} FROM foreign_rows");
                    let rows: Vec<Raw> = sql_query(fetch).load(c).map_err(|error| cannot_read(&error))?;
                    if rows.is_empty() {
                        break;
                    }
                    work(rows.into_iter().map(of).collect())?;
                }
                c.batch_execute("CLOSE foreign_rows").map_err(|error| cannot_read(&error))
            }
            Conn::Sqlite(c) => {
                let rows = sql_query(text)
                    .load_iter::<Raw, DefaultLoadingMode>(c)
                    .map_err(|error| cannot_read(&error))?;
                let mut some = Vec::with_capacity(at_once);
                for row in rows {
                    some.push(of(row.map_err(|error| cannot_read(&error))?));
                    if some.len() == at_once {
                        work(std::mem::take(&mut some))?;
                    }
                }
                if some.is_empty() { Ok(()) } else { work(some) }
            }
        }
    }

    /// Columns that an older program did not have are NULL.
    fn select(&self, table: &Table) -> String {
        let shape: String = table.columns.iter().map(|(_, kind)| kind.letter()).collect();
        let mut text = format!("SELECT '{shape}' AS shape");
        for (at, (name, kind)) in table.columns.iter().enumerate() {
            let column = format!("\"{name}\"");
            let value = match (self.has_column(table.name, name), self.conn.is_postgres()) {
                (false, true) => format!("NULL::{}", kind.postgres_type()),
                (false, false) => "NULL".to_owned(),
                (true, true) => kind.in_postgres(&column),
                (true, false) => kind.in_sqlite(&column),
            };
            text.push_str(&format!(", {value} AS c{at}"));
        }
        text.push_str(&format!(" FROM {}", table.name));
        if !table.order.is_empty() {
            let collation = if self.conn.is_postgres() { " COLLATE \"C\"" } else { "" };
            text.push_str(&format!(" ORDER BY {}{collation}", table.order));
        }
        text
    }
}

impl Kind {
    fn letter(self) -> char {
        match self {
            Kind::Text => 't',
            Kind::Int => 'i',
            Kind::Real => 'r',
        }
    }

    fn postgres_type(self) -> &'static str {
        match self {
            Kind::Text => "bytea",
            Kind::Int => "bigint",
            Kind::Real => "double precision",
        }
    }

    fn in_postgres(self, column: &str) -> String {
        match self {
            Kind::Text => format!("convert_to({column}::text, 'UTF8')"),
            // through int, which flags become too
            Kind::Int => format!(
                "(CASE {column}::text WHEN 'true' THEN '1' WHEN 'false' THEN '0' ELSE {column}::text END)::bigint"
            ),
            Kind::Real => format!("{column}::double precision"),
        }
    }

    fn in_sqlite(self, column: &str) -> String {
        match self {
            Kind::Text => format!("CAST({column} AS BLOB)"),
            Kind::Int => format!("CASE typeof({column}) WHEN 'integer' THEN {column} END"),
            Kind::Real => {
                format!("CASE WHEN typeof({column}) IN ('real', 'integer') THEN CAST({column} AS REAL) END")
            }
        }
    }
}

fn cannot_read(error: &diesel::result::Error) -> Error {
    Error::new(crate::error::Code::Internal, format!("cannot read the database to import from: {error}"))
}

/// A row whose first column tells how the others are read.
struct Raw(Vec<Cell>);

macro_rules! read_by_shape {
    ($backend:ty) => {
        impl QueryableByName<$backend> for Raw {
            fn build<'a>(row: &impl NamedRow<'a, $backend>) -> deserialize::Result<Self> {
                let shape = NamedRow::get::<Text, String>(row, "shape")?;
                let cell = |(at, letter): (usize, char)| -> deserialize::Result<Cell> {
                    let name = format!("c{at}");
                    Ok(match letter {
                        'i' => NamedRow::get::<Nullable<BigInt>, Option<i64>>(row, &name)?.map(Cell::Int),
                        'r' => NamedRow::get::<Nullable<Double>, Option<f64>>(row, &name)?.map(Cell::Real),
                        _ => NamedRow::get::<Nullable<Binary>, Option<Vec<u8>>>(row, &name)?
                            .map(|bytes| String::from_utf8(bytes).map_or(Cell::NotUtf8, Cell::Text)),
                    }
                    .unwrap_or(Cell::Null))
                };
                shape.chars().enumerate().map(cell).collect::<deserialize::Result<_>>().map(Raw)
            }
        }
    };
}

read_by_shape!(Pg);
read_by_shape!(Sqlite);
