//! Keys that have had their time leave the ledger. Only those of events that came here: their ids say when, as ids that
//! another program made do not, so keys of events that were brought in stay. The ledger has no index by age; it is gone
//! through in the order in which it lies on the disk, a piece at a time.

use diesel::sql_types::{BigInt, Binary, Nullable};
use diesel::{OptionalExtension, PgConnection, QueryableByName, RunQueryDsl, SqliteConnection, sql_query};
use uuid::Uuid;

use crate::db::{Conn, DbError};
use crate::ingest::insert::LedgerKey;
use crate::metering::time::Timestamp;

/// Pages of PostgreSQL, and rows of SQLite, that are looked at in one transaction.
const PAGES_AT_ONCE: i64 = 256;
const ROWS_AT_ONCE: i64 = 10_000;

/// What came before an instant, by the id of its event: version 7, whose first six bytes are the time.
const EXPIRED: &str = "substr(event_id, 7, 1) >= $1 AND substr(event_id, 7, 1) < $2 AND event_id < $3";
const VERSION: [u8; 1] = [0x70];
const NEXT_VERSION: [u8; 1] = [0x80];

/// How far the ledger has been gone through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    page: i64,
    /// The last key that was looked at, on SQLite.
    key: Option<LedgerKey>,
}

/// What one step came to.
pub struct Step {
    pub deleted: usize,
    /// Where to go on; `None` at the end of the ledger.
    pub next: Option<Mark>,
}

/// The smallest id of an event that came at this instant.
fn first_id(at: Timestamp) -> Vec<u8> {
    let millis = at.0.max(0).div_euclid(1000) as u64;
    let mut id = uuid::Builder::from_unix_timestamp_millis(millis, &[0; 10]).into_uuid().into_bytes();
    // what is random may be less than the bits of a version
    id[6..].fill(0);
    Uuid::from_bytes(id).as_bytes().to_vec()
}

/// Deletes the keys of one piece of the ledger whose events came before an instant.
pub fn step(conn: &mut Conn, mark: &Mark, before: Timestamp) -> Result<Step, DbError> {
    let is_distributed = conn.is_distributed();
    match conn {
        Conn::Postgres(c) => step_of_pages(c, mark.page, before, is_distributed),
        Conn::Sqlite(c) => step_of_keys(c, mark.key.as_ref(), before),
    }
}

#[derive(QueryableByName)]
struct Pages {
    #[diesel(sql_type = BigInt)]
    pages: i64,
}

fn step_of_pages(
    conn: &mut PgConnection,
    page: i64,
    before: Timestamp,
    is_distributed: bool,
) -> Result<Step, DbError> {
    // of all nodes together, and so more than any of them has
    let size = if is_distributed { "citus_relation_size" } else { "pg_relation_size" };
    let text = format!("SELECT {size}('idempotency_keys') / current_setting('block_size')::bigint AS pages");
    let Pages { pages } = sql_query(text).get_result(conn)?;
    let to = page + PAGES_AT_ONCE;
    let deleted = sql_query(format!(
        "DELETE FROM idempotency_keys WHERE ctid >= '({page},0)'::tid AND ctid < '({to},0)'::tid AND {EXPIRED}"
    ))
    .bind::<Binary, _>(VERSION.as_slice())
    .bind::<Binary, _>(NEXT_VERSION.as_slice())
    .bind::<Binary, _>(first_id(before))
    .execute(conn)?;
    Ok(Step { deleted, next: (to < pages).then_some(Mark { page: to, key: None }) })
}

#[derive(QueryableByName)]
struct KeyRow {
    #[diesel(sql_type = BigInt)]
    workspace_id: i64,
    #[diesel(sql_type = Binary)]
    key: Vec<u8>,
}

/// Keys that are not settled yet are too young; and those that are, and still lie among the recent ones, go with them.
fn step_of_keys(
    conn: &mut SqliteConnection,
    after: Option<&LedgerKey>,
    before: Timestamp,
) -> Result<Step, DbError> {
    let (workspace_id, key) = after.cloned().unwrap_or((i64::MIN, Vec::new()));
    let last: Option<KeyRow> = sql_query(
        "SELECT workspace_id, key FROM settled_keys WHERE (workspace_id, key) > ($1, $2)
         ORDER BY workspace_id, key LIMIT 1 OFFSET $3",
    )
    .bind::<BigInt, _>(workspace_id)
    .bind::<Binary, _>(&key)
    .bind::<BigInt, _>(ROWS_AT_ONCE - 1)
    .get_result(conn)
    .optional()?;
    let last = last.map(|row| (row.workspace_id, row.key));
    let to = last.as_ref();
    let deleted = sql_query(format!(
        "DELETE FROM settled_keys WHERE {EXPIRED} AND (workspace_id, key) > ($4, $5)
             AND ($6 IS NULL OR (workspace_id, key) <= ($6, $7))"
    ))
    .bind::<Binary, _>(VERSION.as_slice())
    .bind::<Binary, _>(NEXT_VERSION.as_slice())
    .bind::<Binary, _>(first_id(before))
    .bind::<BigInt, _>(workspace_id)
    .bind::<Binary, _>(&key)
    .bind::<Nullable<BigInt>, _>(to.map(|(workspace_id, _)| *workspace_id))
    .bind::<Nullable<Binary>, _>(to.map(|(_, key)| key.as_slice()))
    .execute(conn)?;
    Ok(Step { deleted, next: last.map(|key| Mark { page: 0, key: Some(key) }) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_before_are_less_and_of_now_are_not() {
        let at = Timestamp::parse("2026-06-01T12:00:00.000Z").expect("a time");
        let id = |millis: i64, random: u8| {
            let millis = (at.0 / 1000 + millis) as u64;
            uuid::Builder::from_unix_timestamp_millis(millis, &[random; 10]).into_uuid().as_bytes().to_vec()
        };
        assert!(id(-1, 0xFF) < first_id(at) && id(0, 0) >= first_id(at) && id(1, 0) > first_id(at));
    }
}
