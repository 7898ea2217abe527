//! CSV (rest.md 10): columns and bytes of downloads. Pure.

use std::borrow::Cow;

use crate::error::{Error, Result};
use crate::metering::json::escape_html;
use crate::metering::stored::StoredEvent;
use crate::usage::query::{Bucket, GroupField, Query};

const BUCKET_COLUMNS: [&str; 7] =
    ["bucket_start", "subject", "meter", "bucket_size", "aggregation", "unit", "quantity"];
const EVENT_COLUMNS: [&str; 8] =
    ["timestamp", "received_at", "subject", "meter", "quantity", "metadata", "id", "idempotency_key"];

/// Lines of CSV, as they are written.
pub struct Table {
    writer: csv::Writer<Vec<u8>>,
    /// Cells that a spreadsheet would run as a formula get an apostrophe in front.
    formula_guard: bool,
}

impl Table {
    fn new(formula_guard: bool) -> Self {
        // rest.md 10 quotes some fields that the crate would not, so quoting is done here
        let writer = csv::WriterBuilder::new().quote_style(csv::QuoteStyle::Never).from_writer(Vec::new());
        Table { writer, formula_guard }
    }

    /// A table of buckets with its header: one more column for each field of `group_by` but the subject,
    /// and one for the zone where one was asked for.
    pub fn of_buckets(query: &Query, formula_guard: bool) -> Result<Self> {
        let groups = query.group_by.iter().filter(|field| **field != GroupField::Subject);
        let zone = query.buckets.as_ref().filter(|buckets| buckets.calendar.is_zoned).map(|_| "time_zone");
        let header: Vec<&str> =
            BUCKET_COLUMNS.into_iter().chain(groups.map(GroupField::name)).chain(zone).collect();
        let mut table = Table::new(formula_guard);
        table.line(&header)?;
        Ok(table)
    }

    pub fn of_events(formula_guard: bool) -> Result<Self> {
        let mut table = Table::new(formula_guard);
        table.line(&EVENT_COLUMNS)?;
        Ok(table)
    }

    /// A table of what a page shows, with these columns.
    pub fn of_page(columns: &[&str]) -> Result<Self> {
        let mut table = Table::new(true);
        table.line(columns)?;
        Ok(table)
    }

    /// A row with a cell for each column.
    pub fn row(&mut self, cells: &[&str]) -> Result<()> {
        self.line(cells)
    }

    /// A table whose header was written before.
    pub fn continued(formula_guard: bool) -> Self {
        Table::new(formula_guard)
    }

    pub fn bucket(&mut self, query: &Query, bucket: &Bucket) -> Result<()> {
        let quantity = bucket.quantity.to_plain();
        let groups = query.group_by.iter().filter(|field| **field != GroupField::Subject);
        let values = groups.map(|field| bucket.group.get(field.name()).map_or("", String::as_str));
        let own = [
            bucket.bucket_start.as_str(),
            &bucket.subject,
            &bucket.meter,
            &bucket.bucket_size,
            bucket.aggregation,
            &bucket.unit,
            &quantity,
        ];
        self.line(&own.into_iter().chain(values).chain(bucket.time_zone.as_deref()).collect::<Vec<_>>())
    }

    pub fn event(&mut self, event: &StoredEvent) -> Result<()> {
        self.line(&[
            &event.timestamp.to_seconds_text(),
            &event.received_at.to_seconds_text(),
            &event.subject,
            &event.meter,
            &event.quantity.to_plain(),
            &escape_html(event.metadata.get()),
            &event.id,
            event.idempotency_key.as_deref().unwrap_or_default(),
        ])
    }

    /// The lines so far.
    pub fn into_bytes(self) -> Result<Vec<u8>> {
        self.writer.into_inner().map_err(Error::internal)
    }

    fn line(&mut self, fields: &[&str]) -> Result<()> {
        let cells = fields.iter().map(|field| {
            let guarded = if self.formula_guard { guard(field) } else { Cow::Borrowed(*field) };
            quote(guarded).into_owned()
        });
        let cells: Vec<String> = cells.collect();
        self.writer.write_record(cells).map_err(Error::internal)
    }
}

/// What a cell begins with that a spreadsheet runs; some take the wide signs for the others, and cut white space off.
const FORMULA_STARTS: [char; 11] =
    ['=', '+', '-', '@', '\t', '\r', '\n', '\u{ff1d}', '\u{ff0b}', '\u{ff0d}', '\u{ff20}'];

fn guard(field: &str) -> Cow<'_, str> {
    match field.starts_with(FORMULA_STARTS) {
        true => Cow::Owned(format!("'{field}")),
        false => Cow::Borrowed(field),
    }
}

/// Quotes a field that holds a comma, a quote or a line break, starts with white space, or is the end-of-data mark
/// of PostgreSQL's COPY.
fn quote(field: Cow<'_, str>) -> Cow<'_, str> {
    let needs_quotes =
        field.contains([',', '"', '\r', '\n']) || field.starts_with(char::is_whitespace) || field == "\\.";
    match needs_quotes {
        true => Cow::Owned(format!("\"{}\"", field.replace('"', "\"\""))),
        false => field,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(fields: &[&str], formula_guard: bool) -> String {
        let mut table = Table::new(formula_guard);
        table.line(fields).expect("written");
        String::from_utf8(table.into_bytes().expect("bytes")).expect("text")
    }

    #[test]
    fn quotes_only_where_the_contract_does() {
        let cases = [
            ("plain text", "plain text"),
            ("", ""),
            ("a,b", "\"a,b\""),
            ("say \"hi\"", "\"say \"\"hi\"\"\""),
            ("a\nb", "\"a\nb\""),
            ("a\rb", "\"a\rb\""),
            (" lead", "\" lead\""),
            ("trail ", "trail "),
            ("\\.", "\"\\.\""),
            ("\\.x", "\\.x"),
            ("'x'", "'x'"),
            ("=1+1", "=1+1"),
            ("a;b", "a;b"),
        ];
        for (field, cell) in cases {
            assert_eq!(line(&["x", field], false), format!("x,{cell}\n"), "{field:?}");
        }
        assert_eq!(line(&["", ""], false), ",\n");
    }

    #[test]
    fn guards_formulas_when_asked() {
        for field in ["=1", "+1", "-1", "@a", "\ta", "\u{ff1d}1", "\u{ff0b}1", "\u{ff0d}1", "\u{ff20}a"] {
            assert_eq!(line(&["x", field], true), format!("x,'{field}\n"));
        }
        assert_eq!(line(&["\ra", "=a,b"], true), "\"'\ra\",\"'=a,b\"\n");
        assert_eq!(line(&["x", "\n=a"], true), "x,\"'\n=a\"\n");
        assert_eq!(line(&["a=b", ""], true), "a=b,\n");
    }
}
