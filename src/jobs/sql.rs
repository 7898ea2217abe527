//! How background work stands over all workspaces: for metrics and for operators.

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Nullable, Text};

use crate::db::schema::{chores, dead_letters};
use crate::db::{Conn, DbError};
use crate::error::Error;
use crate::jobs::dead_letters::DeadLetter;
use crate::metering::time::Timestamp;

/// How one queue stands.
#[derive(Clone, Debug, Default, QueryableByName)]
pub struct Standing {
    #[diesel(sql_type = Text)]
    pub queue: String,
    /// Free to be taken now.
    #[diesel(sql_type = BigInt)]
    pub due: i64,
    #[diesel(sql_type = BigInt)]
    pub running: i64,
    /// Waiting with an error behind them, due or not.
    #[diesel(sql_type = BigInt)]
    pub failed: i64,
    /// Kept for a later time.
    #[diesel(sql_type = BigInt)]
    pub later: i64,
    #[diesel(sql_type = Nullable<BigInt>)]
    pub oldest_due_at: Option<i64>,
    /// Due for longest, whether somebody is at it or not; of what failed and is tried again later, since it failed.
    #[diesel(sql_type = Nullable<BigInt>)]
    pub undone_since: Option<i64>,
    /// Given up and not queued anew.
    #[diesel(sql_type = BigInt)]
    pub dead: i64,
}

/// Queues that hold a job or a dead letter, by name.
pub fn standings(conn: &mut Conn, now: Timestamp) -> Result<Vec<Standing>, DbError> {
    let text = "-- jobs::sql::standings
        SELECT queue, CAST(SUM(due) AS BIGINT) AS due, CAST(SUM(running) AS BIGINT) AS running,
               CAST(SUM(failed) AS BIGINT) AS failed, CAST(SUM(later) AS BIGINT) AS later,
               MIN(due_at) AS oldest_due_at, MIN(undone_at) AS undone_since, CAST(SUM(dead) AS BIGINT) AS dead
        FROM (
            SELECT queue,
                   CASE WHEN run_after <= $1 AND (leased_until IS NULL OR leased_until < $1) THEN 1 ELSE 0 END AS due,
                   CASE WHEN leased_until >= $1 THEN 1 ELSE 0 END AS running,
                   CASE WHEN last_error IS NOT NULL THEN 1 ELSE 0 END AS failed,
                   CASE WHEN run_after > $1 AND (leased_until IS NULL OR leased_until < $1) THEN 1 ELSE 0 END AS later,
                   CASE WHEN run_after <= $1 AND (leased_until IS NULL OR leased_until < $1) THEN run_after END AS due_at,
                   CASE WHEN run_after <= $1 THEN run_after WHEN last_error IS NOT NULL THEN scheduled_at END AS undone_at, 0 AS dead
            FROM jobs
            UNION ALL
            SELECT queue, 0, 0, 0, 0, NULL, NULL, 1 FROM dead_letters WHERE requeued_at IS NULL
        ) AS work
        GROUP BY queue ORDER BY queue";
    Ok(diesel::sql_query(text).bind::<BigInt, _>(now.0).load(conn)?)
}

/// The newest jobs that were given up and not queued anew.
pub fn dead_letters(conn: &mut Conn, limit: i64) -> Result<Vec<DeadLetter>, DbError> {
    let letters = dead_letters::table
        .filter(dead_letters::requeued_at.is_null())
        .order((dead_letters::created_at.desc(), dead_letters::id.desc()))
        .limit(limit)
        .select(DeadLetter::as_select())
        .load(conn)?;
    Ok(letters)
}

/// One of them, of whatever workspace; 404 when it is unknown.
pub fn dead_letter(conn: &mut Conn, id: &str) -> Result<DeadLetter, DbError> {
    let found = dead_letters::table.find(id).select(DeadLetter::as_select()).first(conn).optional()?;
    found.ok_or_else(|| Error::not_found("dead letter").into())
}

/// A backup that ended well.
pub const BACKUP: &str = "backup";
/// A comparison of totals with the events that they are made of.
pub const SELF_CHECK: &str = "self_check";

/// Something that an operator relies on, as it ended last.
#[derive(Clone, Debug, PartialEq, Eq, Queryable, Selectable)]
#[diesel(table_name = chores)]
pub struct Chore {
    pub name: String,
    pub done_at: i64,
    /// Differences of a check.
    pub findings: i64,
}

/// Puts down that it is done.
pub fn note_chore(conn: &mut Conn, name: &str, findings: i64, now: Timestamp) -> Result<(), DbError> {
    let text = "INSERT INTO chores (name, done_at, findings) VALUES ($1, $2, $3)
                ON CONFLICT (name) DO UPDATE SET done_at = excluded.done_at, findings = excluded.findings";
    diesel::sql_query(text)
        .bind::<Text, _>(name)
        .bind::<BigInt, _>(now.0)
        .bind::<BigInt, _>(findings)
        .execute(conn)?;
    Ok(())
}

/// What was done so far, by name.
pub fn chores(conn: &mut Conn) -> Result<Vec<Chore>, DbError> {
    Ok(chores::table.order(chores::name).select(Chore::as_select()).load(conn)?)
}

#[derive(QueryableByName)]
struct Bytes {
    #[diesel(sql_type = BigInt)]
    bytes: i64,
}

/// How large the database is; none when the role may not ask.
pub fn database_bytes(conn: &mut Conn) -> Result<Option<i64>, DbError> {
    let text = match conn {
        Conn::Postgres(_) => "SELECT pg_database_size(current_database()) AS bytes",
        Conn::Sqlite(_) => "SELECT page_count * page_size AS bytes FROM pragma_page_count, pragma_page_size",
    };
    let found: QueryResult<Bytes> = diesel::sql_query(text).get_result(conn);
    Ok(found.ok().map(|found| found.bytes))
}
