//! Rows of any table as lists of texts, whatever columns it has: what a newer schema adds travels without a change here.

use std::collections::HashMap;

use diesel::connection::{DefaultLoadingMode, SimpleConnection};
use diesel::sql_types::{BigInt, Nullable, Text};
use diesel::{OptionalExtension, RunQueryDsl, sql_query};

use crate::both;
use crate::db::{Conn, DbError};
use crate::error::Error;
use crate::metering::quantity::Quantity;
use crate::tenant::archive::{Kind, Row, hex};
use crate::tenant::tables::{self, Table};

#[derive(diesel::QueryableByName)]
struct Column {
    #[diesel(sql_type = Text)]
    name: String,
    #[diesel(sql_type = Text)]
    kind: String,
}

#[derive(diesel::QueryableByName)]
struct Line {
    #[diesel(sql_type = Text)]
    line: String,
}

#[derive(diesel::QueryableByName)]
struct Number {
    #[diesel(sql_type = BigInt)]
    value: i64,
}

#[derive(diesel::QueryableByName)]
struct Named {
    #[diesel(sql_type = BigInt)]
    id: i64,
    #[diesel(sql_type = Text)]
    name: String,
}

/// The columns of a table, as this database has them.
pub fn columns(conn: &mut Conn, table: &Table) -> Result<Vec<(String, Kind)>, DbError> {
    let text = match conn {
        Conn::Postgres(_) => {
            "SELECT a.attname::text AS name, t.typname::text AS kind
             FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
             WHERE a.attrelid = $1::regclass AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum"
        }
        Conn::Sqlite(_) => "SELECT name, type AS kind FROM pragma_table_info($1) ORDER BY cid",
    };
    let found: Vec<Column> = both!(conn, c => sql_query(text).bind::<Text, _>(table.name).load(c)?);
    let kind = |column: &Column| match column.kind.to_lowercase().as_str() {
        "int2" | "int4" | "int8" | "integer" => Some(Kind::Int),
        "bool" => Some(Kind::Flag),
        "text" => Some(Kind::Text),
        "numeric" => Some(Kind::Decimal),
        // sortable bytes are quantities (`crate::metering::quantity`)
        "blob" if column.name.contains("quantity") => Some(Kind::Decimal),
        "bytea" | "blob" => Some(Kind::Bytes),
        _ => None,
    };
    let mut columns = Vec::with_capacity(found.len());
    for column in found.into_iter().filter(|column| !table.without.contains(&column.name.as_str())) {
        let known = kind(&column).ok_or_else(|| {
            Error::internal(format!("{}.{} is of an unknown kind: {}", table.name, column.name, column.kind))
        })?;
        columns.push((column.name, known));
    }
    Ok(columns)
}

fn condition(table: &Table, workspace_id: i64) -> String {
    table.of.replace("{w}", &workspace_id.to_string())
}

/// The value of a column as a text, in SQL.
fn shown(is_postgres: bool, value: &str, kind: Kind) -> String {
    match (is_postgres, kind) {
        (true, Kind::Bytes) => format!("encode({value}, 'hex')"),
        (true, _) => format!("({value})::text"),
        (false, Kind::Bytes) => format!("lower(hex({value}))"),
        (false, Kind::Decimal) => format!("quantity_text({value})"),
        (false, _) => format!("CAST({value} AS TEXT)"),
    }
}

/// A list of texts in JSON, in SQL.
pub fn list(is_postgres: bool, values: &[(String, Kind)]) -> String {
    let values: Vec<String> = values
        .iter()
        .map(|(value, kind)| match (is_postgres, kind) {
            // NULL stays NULL
            (false, Kind::Bytes) => {
                format!("CASE WHEN {value} IS NOT NULL THEN {} END", shown(false, value, *kind))
            }
            _ => shown(is_postgres, value, *kind),
        })
        .collect();
    match is_postgres {
        true => format!("json_build_array({})::text", values.join(", ")),
        false => format!("json_array({})", values.join(", ")),
    }
}

/// Hands over the rows of the workspace, each a list of texts in JSON.
pub fn each(
    conn: &mut Conn,
    table: &Table,
    columns: &[(String, Kind)],
    workspace_id: i64,
    work: impl FnMut(String) -> Result<(), DbError>,
) -> Result<(), DbError> {
    let value = |(name, kind): &(String, Kind)| {
        let instead = table.instead.iter().find(|(column, _)| column == name);
        (instead.map_or_else(|| format!("t.\"{name}\""), |(_, sql)| (*sql).to_owned()), *kind)
    };
    let values: Vec<(String, Kind)> = columns.iter().map(value).collect();
    let line = list(conn.is_postgres(), &values);
    let mut text =
        format!("SELECT {line} AS line FROM {} t WHERE {}", table.name, condition(table, workspace_id));
    if !table.order.is_empty() {
        text.push_str(&format!(" ORDER BY {}", table.order));
    }
    stream(conn, &text, work)
}

const ROWS_AT_ONCE: usize = 2_000;

/// Hands over the lines of a query without holding them all.
pub fn stream(
    conn: &mut Conn,
    text: &str,
    mut work: impl FnMut(String) -> Result<(), DbError>,
) -> Result<(), DbError> {
    match conn {
        Conn::Postgres(c) => {
            c.batch_execute(&format!("DECLARE tenant_rows NO SCROLL CURSOR FOR {text}"))?;
            loop {
                let fetch = format!("FETCH FORWARD {ROWS_AT_ONCE} FROM tenant_rows");
                let rows: Vec<Line> = sql_query(fetch).load(c)?;
                if rows.is_empty() {
                    break;
                }
                rows.into_iter().try_for_each(|row| work(row.line))?;
            }
            Ok(c.batch_execute("CLOSE tenant_rows")?)
        }
        Conn::Sqlite(c) => {
            let rows = sql_query(text).load_iter::<Line, DefaultLoadingMode>(c)?;
            for row in rows {
                work(row?.line)?;
            }
            Ok(())
        }
    }
}

pub fn count(conn: &mut Conn, table: &Table, workspace_id: i64) -> Result<u64, DbError> {
    let text =
        format!("SELECT count(*) AS value FROM {} t WHERE {}", table.name, condition(table, workspace_id));
    let found: Number = both!(conn, c => sql_query(text).get_result(c)?);
    Ok(found.value.unsigned_abs())
}

/// Columns that name a row of another table, and what identifies it there.
const REFERENCES: &[(&str, &str, &str)] = &[
    ("destination_id", "alert_destinations", "id"),
    ("destination_id", "alert_destinations", "public_id"),
    ("event_id", "alert_events", "public_id"),
    ("meter_id", "meters", "id"),
    ("plan_id", "plans", "id"),
    ("rule_id", "alert_rules", "id"),
    ("subject_id", "subjects", "id"),
];

/// Columns in which rows of the workspace name something of another one.
pub fn strays(conn: &mut Conn, workspace_id: i64) -> Result<Vec<String>, DbError> {
    let mut found = Vec::new();
    for table in tables::all() {
        for (column, kind) in columns(conn, table)? {
            for (name, other, key) in REFERENCES {
                let is_of_kind = (kind == Kind::Text) == (*key == "public_id");
                if column != *name || !is_of_kind || !matches!(kind, Kind::Text | Kind::Int) {
                    continue;
                }
                let text = format!(
                    "SELECT count(*) AS value FROM {} t JOIN {other} o ON o.{key} = t.\"{column}\"
                     WHERE o.workspace_id <> {workspace_id} AND {}",
                    table.name,
                    condition(table, workspace_id)
                );
                let count: Number = both!(conn, c => sql_query(text).get_result(c)?);
                if count.value > 0 {
                    found.push(format!("{}.{column}", table.name));
                }
            }
        }
    }
    Ok(found)
}

/// Work that was given up elsewhere is told about here and not done: what it was about has other numbers.
pub fn bury_work(conn: &mut Conn, workspace_id: i64) -> Result<(), DbError> {
    let text = format!(
        "UPDATE dead_letters SET requeued_at = created_at WHERE workspace_id = {workspace_id} AND requeued_at IS NULL"
    );
    both!(conn, c => sql_query(text).execute(c)?);
    Ok(())
}

/// Number and name of a workspace.
pub fn workspace(conn: &mut Conn, public_id: &str) -> Result<Option<(i64, String)>, DbError> {
    let text = "SELECT id, name FROM workspaces WHERE public_id = $1";
    let found: Option<Named> =
        both!(conn, c => sql_query(text).bind::<Text, _>(public_id).get_result(c).optional()?);
    Ok(found.map(|named| (named.id, named.name)))
}

/// Whether the user with this number has shown that the address is theirs.
pub fn is_verified(conn: &mut Conn, number: &str) -> Result<bool, DbError> {
    let text =
        "SELECT count(*) AS value FROM users WHERE CAST(id AS TEXT) = $1 AND email_verified_at IS NOT NULL";
    let found: Number = both!(conn, c => sql_query(text).bind::<Text, _>(number).get_result(c)?);
    Ok(found.value > 0)
}

/// The number of the row of this table whose column has this text.
pub fn find(conn: &mut Conn, table: &str, column: &str, text: &str) -> Result<Option<i64>, DbError> {
    let query = format!("SELECT id AS value FROM {table} WHERE {column} = $1");
    let found: Option<Number> =
        both!(conn, c => sql_query(query).bind::<Text, _>(text).get_result(c).optional()?);
    Ok(found.map(|number| number.value))
}

/// Puts rows of one table into the database, as its columns are there.
pub struct Insert {
    text: String,
    /// Of the columns of the file; none: the database gives the value.
    kinds: Vec<Option<Kind>>,
    is_postgres: bool,
}

impl Insert {
    /// `of_file` are the columns of the rows; those of `left_out` are numbered by the database.
    pub fn new(
        conn: &mut Conn,
        table: &Table,
        of_file: &[(String, Kind)],
        left_out: Option<&str>,
        on_conflict: &str,
    ) -> Result<Insert, DbError> {
        let here: HashMap<String, Kind> = columns(conn, table)?.into_iter().collect();
        let is_postgres = conn.is_postgres();
        let (mut names, mut places, mut kinds) = (Vec::new(), Vec::new(), Vec::new());
        for (name, _) in of_file {
            let Some(kind) = here.get(name) else {
                return Err(newer(table.name, name).into());
            };
            if left_out == Some(name.as_str()) {
                kinds.push(None);
                continue;
            }
            kinds.push(Some(*kind));
            names.push(format!("\"{name}\""));
            places.push(place(is_postgres, names.len(), *kind));
        }
        let text = format!(
            "INSERT INTO {} ({}) VALUES ({}) {on_conflict}",
            table.name,
            names.join(", "),
            places.join(", ")
        );
        Ok(Insert { text, kinds, is_postgres })
    }

    /// How many rows there are more.
    pub fn put(&self, conn: &mut Conn, row: Row) -> Result<usize, DbError> {
        let unreadable = || Error::new(crate::error::Code::Unusable, "a row of the file cannot be read");
        if row.len() != self.kinds.len() {
            return Err(unreadable().into());
        }
        let mut values = Vec::with_capacity(row.len());
        for (value, kind) in row.into_iter().zip(&self.kinds) {
            let Some(kind) = kind else { continue };
            let value = match (value, kind) {
                (Some(text), Kind::Decimal) if !self.is_postgres => {
                    Some(hex(&Quantity::from_plain(&text).ok_or_else(unreadable)?.to_sortable()))
                }
                (Some(text), Kind::Int) if !self.is_postgres => Some(match text.as_str() {
                    "true" => "1".to_owned(),
                    "false" => "0".to_owned(),
                    _ => text,
                }),
                (value, _) => value,
            };
            values.push(value);
        }
        let text = self.text.as_str();
        Ok(both!(conn, c => {
            let mut query = sql_query(text).into_boxed();
            for value in values {
                query = query.bind::<Nullable<Text>, _>(value);
            }
            query.execute(c)?
        }))
    }
}

fn newer(table: &str, column: &str) -> Error {
    Error::new(
        crate::error::Code::Unusable,
        format!("the file has a column that is not known here: {table}.{column}; a newer version wrote it"),
    )
}

/// A text as the value of a column, in SQL.
fn place(is_postgres: bool, at: usize, kind: Kind) -> String {
    match (is_postgres, kind) {
        (true, Kind::Int) => format!("${at}::bigint"),
        (true, Kind::Flag) => format!("${at}::boolean"),
        (true, Kind::Decimal) => format!("${at}::numeric"),
        (true, Kind::Bytes) => format!("decode(${at}, 'hex')"),
        (false, Kind::Int | Kind::Flag) => format!("CAST(${at} AS INTEGER)"),
        (false, Kind::Decimal | Kind::Bytes) => format!("unhex(${at})"),
        (_, Kind::Text) => format!("${at}"),
    }
}
