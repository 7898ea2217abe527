//! Events and keys in neutral form: subjects by their names.

use diesel::sql_types::{BigInt, Binary, Text};
use diesel::{RunQueryDsl, sql_query};
use uuid::Uuid;

use crate::both;
use crate::db::statement::integers;
use crate::db::{Conn, DbError};
use crate::error::Error;
use crate::import::sql::totals;
use crate::metering::meter::SENT_QUANTITY;
use crate::metering::quantity::Quantity;
use crate::metering::time::{Timestamp, Window};
use crate::tenant::archive::{Kind, Row};
use crate::tenant::sql::rows::{list, stream};

/// Their columns in the file.
pub const EVENT_COLUMNS: &[(&str, Kind)] = &[
    ("id", Kind::Bytes),
    ("meter_id", Kind::Int),
    ("subject", Kind::Text),
    ("event_time", Kind::Int),
    ("received_at", Kind::Int),
    ("quantity", Kind::Decimal),
    ("idempotency_key", Kind::Text),
    ("metadata", Kind::Text),
];

pub const KEY_COLUMNS: &[(&str, Kind)] = &[
    ("key", Kind::Bytes),
    ("event_id", Kind::Bytes),
    ("subject", Kind::Text),
    ("event_time", Kind::Int),
    ("fingerprint", Kind::Int),
];

pub const FINGERPRINT_COLUMNS: &[(&str, Kind)] = &[("event_id", Kind::Bytes), ("fingerprint", Kind::Int)];

pub fn owned(columns: &[(&str, Kind)]) -> Vec<(String, Kind)> {
    columns.iter().map(|(name, kind)| ((*name).to_owned(), *kind)).collect()
}

fn values(columns: &[(&str, Kind)], of: &str) -> Vec<(String, Kind)> {
    let value = |(name, kind): &(&str, Kind)| {
        let value = if *name == "subject" { "s.name".to_owned() } else { format!("{of}.{name}") };
        (value, *kind)
    };
    columns.iter().map(value).collect()
}

/// Events of a meter by time, so that what is written of them lies together.
pub fn events(
    conn: &mut Conn,
    meter_id: i64,
    work: impl FnMut(String) -> Result<(), DbError>,
) -> Result<(), DbError> {
    let line = list(conn.is_postgres(), &values(EVENT_COLUMNS, "e"));
    let text = format!(
        "SELECT {line} AS line FROM events e JOIN subjects s ON s.id = e.subject_id
         WHERE e.meter_id = {meter_id} ORDER BY e.event_time, e.id"
    );
    stream(conn, &text, work)
}

/// What the ledger knows of events that these meters may have made of something else: they do not tell what was sent.
pub fn fingerprints(
    conn: &mut Conn,
    workspace_id: i64,
    meter_ids: &[i64],
    work: impl FnMut(String) -> Result<(), DbError>,
) -> Result<(), DbError> {
    if meter_ids.is_empty() {
        return Ok(());
    }
    let line = list(conn.is_postgres(), &values(FINGERPRINT_COLUMNS, "k"));
    let metadata = if conn.is_postgres() { "metadata::text" } else { "metadata" };
    // one too many does no harm
    let text = format!(
        "WITH made AS MATERIALIZED (
             SELECT id FROM events WHERE meter_id IN ({}) AND idempotency_key IS NOT NULL
                 AND {metadata} LIKE '%\"{SENT_QUANTITY}\"%')
         SELECT {line} AS line FROM idempotency_keys k
         WHERE k.workspace_id = {workspace_id} AND k.event_id IN (SELECT id FROM made)",
        integers(meter_ids)
    );
    stream(conn, &text, work)
}

const STORED_COLUMNS: &[(&str, Kind)] = &[
    ("subject", Kind::Text),
    ("meter_version", Kind::Int),
    ("quantity", Kind::Decimal),
    ("metadata", Kind::Text),
];

/// Events of a meter in a window: subject, version of the meter that they were checked under, quantity, metadata.
pub fn stored(
    conn: &mut Conn,
    meter_id: i64,
    window: Window,
    mut work: impl FnMut(Row) -> Result<(), DbError>,
) -> Result<(), DbError> {
    let line = list(conn.is_postgres(), &values(STORED_COLUMNS, "e"));
    let (from, to) = (window.from.0, window.to.0);
    let text = format!(
        "SELECT {line} AS line FROM events e JOIN subjects s ON s.id = e.subject_id
         WHERE e.meter_id = {meter_id} AND e.event_time >= {from} AND e.event_time < {to}"
    );
    stream(conn, &text, |line| work(serde_json::from_str(&line).map_err(Error::internal)?))
}

/// Keys that no event tells: those of events that were pruned, and ids of events that were brought in without a key.
pub fn keys(
    conn: &mut Conn,
    workspace_id: i64,
    work: impl FnMut(String) -> Result<(), DbError>,
) -> Result<(), DbError> {
    let line = list(conn.is_postgres(), &values(KEY_COLUMNS, "k"));
    let hour = match conn {
        Conn::Postgres(_) => "",
        Conn::Sqlite(_) => {
            "AND e.hour = k.event_time - ((k.event_time % 3600000000) + 3600000000) % 3600000000"
        }
    };
    let keys = "FROM idempotency_keys k JOIN subjects s ON s.id = k.subject_id";
    let text = match conn.is_distributed() {
        false => format!(
            "SELECT {line} AS line {keys} WHERE k.workspace_id = {workspace_id} AND NOT EXISTS (
                 SELECT 1 FROM events e WHERE e.subject_id = k.subject_id AND e.event_time = k.event_time
                     AND e.id = k.event_id {hour} AND e.idempotency_key IS NOT NULL)"
        ),
        // a key and its event lie on different nodes: the ids of events travel
        true => format!(
            "WITH told AS MATERIALIZED (
                 SELECT id FROM events WHERE workspace_id = {workspace_id} AND idempotency_key IS NOT NULL)
             SELECT {line} AS line {keys} WHERE k.workspace_id = {workspace_id}
                 AND NOT EXISTS (SELECT 1 FROM told WHERE told.id = k.event_id)"
        ),
    };
    stream(conn, &text, work)
}

#[derive(diesel::QueryableByName)]
struct Id {
    #[diesel(sql_type = BigInt)]
    id: i64,
}

pub fn meters(conn: &mut Conn, workspace_id: i64) -> Result<Vec<i64>, DbError> {
    let text = format!("SELECT id FROM meters WHERE workspace_id = {workspace_id} ORDER BY id");
    let rows: Vec<Id> = both!(conn, c => sql_query(text).load(c)?);
    Ok(rows.into_iter().map(|row| row.id).collect())
}

/// Days with stored events of a meter: how many, and their sum.
pub fn stored_days(conn: &mut Conn, meter_id: i64) -> Result<Vec<(Timestamp, u64, Quantity)>, DbError> {
    totals::days(conn, meter_id)
}

/// The run that events came in by is none of the workspace.
pub fn forget_run(conn: &mut Conn, workspace_id: i64, id: Uuid) -> Result<(), DbError> {
    let text = "DELETE FROM ingestion_runs WHERE workspace_id = $1 AND id = $2";
    both!(conn, c => {
        sql_query(text).bind::<BigInt, _>(workspace_id).bind::<Binary, _>(id.as_bytes().as_slice()).execute(c)?
    });
    Ok(())
}

#[derive(diesel::QueryableByName)]
struct Name {
    #[diesel(sql_type = Text)]
    name: String,
}

/// Destinations whose secret is another one than before.
pub fn destinations(conn: &mut Conn, workspace_id: i64) -> Result<Vec<String>, DbError> {
    let text = format!("SELECT name FROM alert_destinations WHERE workspace_id = {workspace_id} ORDER BY id");
    let rows: Vec<Name> = both!(conn, c => sql_query(text).load(c)?);
    Ok(rows.into_iter().map(|row| row.name).collect())
}
