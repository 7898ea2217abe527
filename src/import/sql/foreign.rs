//! Reads tables that another program wrote, at one instant and without changing anything. Column types bind nobody in
//! SQLite, and texts there need not be UTF-8: each value is asked for in a way that cannot fail, and what is not what it
//! should be is an [`Odd`] of that value, not an error.

use std::collections::{BTreeMap, BTreeSet};

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
use crate::metering::time::{SECOND, Timestamp};

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
    /// So many bytes.
    NotUtf8(usize),
    TooLong,
    Text(String),
    Int(i64),
    Real(f64),
}

impl Cell {
    fn bytes(&self) -> usize {
        match self {
            Cell::Text(text) => text.len(),
            Cell::NotUtf8(bytes) => *bytes,
            _ => 0,
        }
    }
}

fn text_of(bytes: Vec<u8>) -> Cell {
    String::from_utf8(bytes).map_or_else(|error| Cell::NotUtf8(error.as_bytes().len()), Cell::Text)
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
            Cell::NotUtf8(_) => Err(format!("{name} is not UTF-8")),
            Cell::TooLong => Err(format!("{name} is too long")),
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
        time_of(&text)
            .map(Some)
            .ok_or_else(|| format!("{name} is no time of the years 1 to 9999: {text:.40}"))
    }
}

/// Whatever RFC 3339 allows, and what PostgreSQL writes for a time with a zone, in UTC: `2026-03-01 00:00:00.5+00`. A leap
/// second is the first of the next minute.
fn time_of(text: &str) -> Option<Timestamp> {
    if let Some(at) = Timestamp::parse(text) {
        return Some(at);
    }
    let mut text = text.replacen([' ', 't'], "T", 1).replace('z', "Z");
    if let Some(begin) = text.strip_suffix("+00") {
        text = format!("{begin}Z");
    }
    if text.get(16..19) == Some(":60") {
        text.replace_range(16..19, ":59");
        return Timestamp::parse(&text).map(|at| at.floor(SECOND).plus(SECOND));
    }
    Timestamp::parse(&text)
}

/// Another program's database, as it is at one instant.
pub struct Foreign {
    conn: Conn,
    columns: BTreeSet<(String, String)>,
    /// Queries that stand in for tables that an older program did not have.
    table_stand_ins: BTreeMap<&'static str, String>,
    /// SQL literals that stand in for columns, in whichever table lacks them.
    column_stand_ins: BTreeMap<&'static str, String>,
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
    FROM sqlite_master t JOIN pragma_table_info(t.name) c WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite\\_%' ESCAPE '\\'";

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
        let (table_stand_ins, column_stand_ins) = (BTreeMap::new(), BTreeMap::new());
        Ok(Foreign { conn, columns, table_stand_ins, column_stand_ins })
    }

    /// From now on this query is read as if it were the table.
    pub fn stand_in_for_table(&mut self, table: &'static Table, query: String) {
        let columns = table.columns.iter().map(|(column, _)| (table.name.to_owned(), (*column).to_owned()));
        self.columns.extend(columns);
        self.table_stand_ins.insert(table.name, query);
    }

    /// From now on a table that lacks this column is read as if this literal stood in each of its rows.
    pub fn stand_in_for_column(&mut self, column: &'static str, literal: String) {
        self.column_stand_ins.insert(column, literal);
    }

    /// Where the rows of a table are.
    fn source(&self, table: &str) -> String {
        match self.table_stand_ins.get(table) {
            Some(query) => format!("({query}) AS stand_in"),
            None => format!("\"{}\"", table.replace('"', "\"\"")),
        }
    }

    /// A column or what stands in for it.
    fn value(&self, table: &str, column: &str) -> Option<String> {
        match self.has_column(table, column) {
            true => Some(format!("\"{column}\"")),
            false => self.column_stand_ins.get(column).cloned(),
        }
    }

    /// Columns that are read, are not there, and nothing stands in for.
    pub fn lacking(&self, table: &Table) -> Vec<&'static str> {
        let names = table.columns.iter().map(|(name, _)| *name);
        names.filter(|name| self.value(table.name, name).is_none()).collect()
    }

    pub fn has_table(&self, table: &str) -> bool {
        self.columns.iter().any(|(name, _)| name == table)
    }

    pub fn tables(&self) -> BTreeSet<String> {
        self.columns.iter().map(|(table, _)| table.clone()).collect()
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
        let text = format!("SELECT count(*) AS count FROM {}", self.source(table));
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
        let mut some = Gathered { table, at_once, rows: Vec::new(), bytes: 0 };
        match &mut self.conn {
            Conn::Postgres(c) => {
                let declare = format!("DECLARE foreign_rows NO SCROLL CURSOR FOR {text}");
                c.batch_execute(&declare).map_err(|error| cannot_read(&error))?;
                let mut count = 100;
                loop {
                    let fetch = format!("FETCH FORWARD {count} FROM foreign_rows");
                    let rows: Vec<Raw> = sql_query(fetch).load(c).map_err(|error| cannot_read(&error))?;
                    if rows.is_empty() {
                        break;
                    }
                    let bytes: usize = rows.iter().map(Raw::bytes).sum();
                    // as many as are held anyway, whatever their length
                    count = (count * ROWS_BYTES / 8 / bytes.max(1)).clamp(1, at_once.min(count * 2));
                    for row in rows {
                        if let Some(rows) = some.add(row) {
                            work(rows)?;
                        }
                    }
                }
                c.batch_execute("CLOSE foreign_rows").map_err(|error| cannot_read(&error))?;
            }
            Conn::Sqlite(c) => {
                let rows = sql_query(text)
                    .load_iter::<Raw, DefaultLoadingMode>(c)
                    .map_err(|error| cannot_read(&error))?;
                for row in rows {
                    if let Some(rows) = some.add(row.map_err(|error| cannot_read(&error))?) {
                        work(rows)?;
                    }
                }
            }
        }
        if some.rows.is_empty() { Ok(()) } else { work(some.rows) }
    }

    /// Columns that an older program did not have, and nothing stands in for, are NULL.
    fn select(&self, table: &Table) -> String {
        let shape: String = table.columns.iter().map(|(_, kind)| kind.letter()).collect();
        let mut text = format!("SELECT '{shape}' AS shape");
        for (at, (name, kind)) in table.columns.iter().enumerate() {
            let value = match (self.value(table.name, name), self.conn.is_postgres()) {
                (None, true) => format!("NULL::{}", kind.postgres_type()),
                (None, false) => "NULL".to_owned(),
                (Some(value), true) => kind.in_postgres(&value, table.longest()),
                (Some(value), false) => kind.in_sqlite(&value, table.longest()),
            };
            text.push_str(&format!(", {value} AS c{at}"));
        }
        text.push_str(&format!(" FROM {}", self.source(table.name)));
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

    fn in_postgres(self, column: &str, longest: usize) -> String {
        match self {
            Kind::Text => format!("convert_to(left({column}::text, {}), 'UTF8')", longest + 1),
            // through int, which flags become too
            Kind::Int => format!(
                "(CASE {column}::text WHEN 'true' THEN '1' WHEN 'false' THEN '0' ELSE {column}::text END)::bigint"
            ),
            Kind::Real => format!("{column}::double precision"),
        }
    }

    fn in_sqlite(self, column: &str, longest: usize) -> String {
        match self {
            // of an empty one a piece is NULL
            Kind::Text => format!(
                "CASE WHEN length(CAST({column} AS BLOB)) > {longest} THEN substr(CAST({column} AS BLOB), 1, {}) ELSE CAST({column} AS BLOB) END",
                longest + 1
            ),
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

/// Of rows that are held at once.
const ROWS_BYTES: usize = 32 << 20;

impl Table {
    /// Longer texts are cut off where they are read, and not taken: an event is as long as its metadata may be here, an
    /// answer to a call holds a thousand of them.
    fn longest(&self) -> usize {
        if self.name == "usage_events" { 1 << 20 } else { 16 << 20 }
    }
}

/// Rows that wait until there are enough of them.
struct Gathered<'a> {
    table: &'a Table,
    at_once: usize,
    rows: Vec<Row>,
    bytes: usize,
}

impl Gathered<'_> {
    fn add(&mut self, mut raw: Raw) -> Option<Vec<Row>> {
        self.bytes += raw.bytes();
        for cell in &mut raw.0 {
            if cell.bytes() > self.table.longest() {
                *cell = Cell::TooLong;
            }
        }
        self.rows.push(Row { columns: self.table.columns, cells: raw.0 });
        if self.rows.len() < self.at_once && self.bytes < ROWS_BYTES {
            return None;
        }
        self.bytes = 0;
        Some(std::mem::take(&mut self.rows))
    }
}

/// A row whose first column tells how the others are read.
struct Raw(Vec<Cell>);

impl Raw {
    fn bytes(&self) -> usize {
        self.0.iter().map(|cell| size_of::<Cell>() + cell.bytes()).sum()
    }
}

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
                        _ => NamedRow::get::<Nullable<Binary>, Option<Vec<u8>>>(row, &name)?.map(text_of),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_in_every_form_that_is_one() {
        let noon = Timestamp::parse("2026-03-01T12:00:00.5Z");
        for text in [
            "2026-03-01T12:00:00.5Z",
            "2026-03-01T12:00:00.500000000Z",
            "2026-03-01T12:00:00.500000999Z",
            "2026-03-01T14:00:00.5+02:00",
            "2026-03-01T04:00:00.50-08:00",
            "2026-03-01t12:00:00.5z",
            "2026-03-01 12:00:00.5Z",
            "2026-03-01 12:00:00.5+00",
            "2026-03-01 12:00:00.5+00:00",
        ] {
            assert_eq!(time_of(text), noon, "{text}");
        }
        assert_eq!(time_of("2026-06-30T23:59:60Z"), Timestamp::parse("2026-07-01T00:00:00Z"));
        assert_eq!(time_of("2026-06-30T23:59:60.75Z"), Timestamp::parse("2026-07-01T00:00:00Z"));
        for text in [
            "",
            "2026-03-01",
            "2026-03-01T12:00:00",
            "2026-03-01 12:00:00",
            "2026-03-01T12:00Z",
            "2026-02-30T12:00:00Z",
            "2026-03-01T24:00:00Z",
            "2026-03-01T12:00:61Z",
            "10000-01-01T00:00:00Z",
            "-0001-12-31T23:00:00Z",
            "0000-12-31T23:00:00Z",
            "2026-03-01 12:00:00+00 BC",
            "infinity",
            "1767225600",
        ] {
            assert_eq!(time_of(text), None, "{text}");
        }
    }
}
