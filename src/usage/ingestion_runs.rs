//! The history of write calls: one row per call, written by `events`, read here; and the clean-up of this and all
//! other history.

use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Binary, Text};
use uuid::Uuid;

use crate::db::columns::uuid_of;
use crate::db::schema::ingestion_runs;
use crate::db::{Conn, DbError, leases};
use crate::error::Error;
use crate::metering::time::Timestamp;

/// One write call.
#[derive(Clone, Debug)]
pub struct IngestionRun {
    pub id: Uuid,
    pub kind: String,
    pub accepted: i64,
    pub duplicates: i64,
    pub failed: i64,
    pub created_at: Timestamp,
    /// What its sender called the request; `None` where that has the id of the run, or is not known.
    pub request_id: Option<String>,
    /// `None` for a person, a command, and calls of another server that were moved in.
    pub api_key_id: Option<String>,
    /// Microseconds from reading the events to writing them.
    pub duration: Option<i64>,
}

#[derive(Queryable, QueryableByName, Selectable)]
#[diesel(table_name = ingestion_runs)]
struct RunRow {
    id: Vec<u8>,
    kind: String,
    accepted: i64,
    duplicates: i64,
    failed: i64,
    created_at: i64,
    request_id: Option<String>,
    api_key_id: Option<String>,
    duration: Option<i64>,
}

impl RunRow {
    fn into_run(self) -> Result<IngestionRun, DbError> {
        Ok(IngestionRun {
            id: uuid_of(&self.id)?,
            kind: self.kind,
            accepted: self.accepted,
            duplicates: self.duplicates,
            failed: self.failed,
            created_at: Timestamp(self.created_at),
            request_id: self.request_id,
            api_key_id: self.api_key_id,
            duration: self.duration,
        })
    }
}

/// Write calls of a workspace, newest first, older than `before`. The ids grow with time.
pub fn runs(
    conn: &mut Conn,
    workspace_id: i64,
    before: Option<Uuid>,
    limit: i64,
) -> Result<Vec<IngestionRun>, DbError> {
    let before = before.unwrap_or(Uuid::max()).as_bytes().to_vec();
    let rows: Vec<RunRow> = ingestion_runs::table
        .filter(ingestion_runs::workspace_id.eq(workspace_id).and(ingestion_runs::id.lt(before)))
        .order(ingestion_runs::id.desc())
        .limit(limit)
        .select(RunRow::as_select())
        .load(conn)?;
    rows.into_iter().map(RunRow::into_run).collect()
}

/// One write call; a single event that was refused leaves none.
pub fn run(conn: &mut Conn, workspace_id: i64, id: Uuid) -> Result<Option<IngestionRun>, DbError> {
    let row: Option<RunRow> = ingestion_runs::table
        .find((workspace_id, id.as_bytes().to_vec()))
        .select(RunRow::as_select())
        .first(conn)
        .optional()?;
    row.map(RunRow::into_run).transpose()
}

/// The newest calls of a workspace that are searched for an id that their sender made up: there is no index for it.
pub const SEARCHED: i64 = 10_000;

/// The newest write call of a request: by the id that the server gave it, or by that of its sender.
pub fn of_request(
    conn: &mut Conn,
    workspace_id: i64,
    request_id: &str,
) -> Result<Option<IngestionRun>, DbError> {
    if let Ok(id) = Uuid::parse_str(request_id)
        && let Some(found) = run(conn, workspace_id, id)?
    {
        return Ok(Some(found));
    }
    let text = format!(
        "-- ingestion_runs::of_request
         SELECT id, kind, accepted, duplicates, failed, created_at, request_id, api_key_id, duration
         FROM ingestion_runs WHERE workspace_id = $1 AND request_id = $2 AND id >= COALESCE(
             (SELECT id FROM ingestion_runs WHERE workspace_id = $3 ORDER BY id DESC LIMIT 1 OFFSET {SEARCHED}), $4)
         ORDER BY id DESC LIMIT 1"
    );
    let query = sql_query(text).bind::<BigInt, _>(workspace_id).bind::<Text, _>(request_id);
    let mut rows: Vec<RunRow> =
        query.bind::<BigInt, _>(workspace_id).bind::<Binary, _>(Vec::new()).load(conn)?;
    rows.pop().map(RunRow::into_run).transpose()
}

/// Rows that are only history. What failed and may still be asked about (dead letters) is not.
#[derive(Clone, Copy, Debug)]
pub enum HistoryTable {
    IngestionRuns,
    /// With their attempts.
    DeliveredAlerts,
    /// Completed exports whose file is gone, and those that failed or were canceled.
    ExpiredExports,
    /// Links of subjects that were revoked, or whose time is over.
    EndedLinks,
    /// Whatever became of them: none can be accepted for longer than a week.
    PastInvitations,
}

impl HistoryTable {
    pub const ALL: [HistoryTable; 5] = [
        HistoryTable::IngestionRuns,
        HistoryTable::DeliveredAlerts,
        HistoryTable::ExpiredExports,
        HistoryTable::EndedLinks,
        HistoryTable::PastInvitations,
    ];

    pub fn name(self) -> &'static str {
        match self {
            HistoryTable::IngestionRuns => "ingestion_runs",
            HistoryTable::DeliveredAlerts => "alert_deliveries",
            HistoryTable::ExpiredExports => "export_jobs",
            HistoryTable::EndedLinks => "subject_links",
            HistoryTable::PastInvitations => "invitations",
        }
    }
}

/// Deletes up to `limit` rows from before an instant; returns how many. 409 when the lease was lost.
pub fn delete_past(
    conn: &mut Conn,
    (lease, holder): (&str, &str),
    past: HistoryTable,
    before: Timestamp,
    limit: i64,
) -> Result<usize, DbError> {
    if !leases::renew(conn, lease, holder)? {
        return Err(Error::conflict("another clean-up took over").into());
    }
    let text = match past {
        HistoryTable::IngestionRuns => return delete_runs(conn, before, limit),
        HistoryTable::DeliveredAlerts => {
            "DELETE FROM alert_deliveries WHERE id IN (
                 SELECT id FROM alert_deliveries WHERE status = 'delivered' AND delivered_at < $1 LIMIT $2)"
        }
        HistoryTable::ExpiredExports => {
            "DELETE FROM export_jobs WHERE id IN (
                 SELECT id FROM export_jobs WHERE (status = 'completed' AND expired_at < $1)
                     OR (status IN ('failed', 'canceled') AND COALESCE(completed_at, updated_at) < $1) LIMIT $2)"
        }
        HistoryTable::EndedLinks => {
            "DELETE FROM subject_links WHERE id IN (
                 SELECT id FROM subject_links WHERE revoked_at < $1 OR expires_at < $1 LIMIT $2)"
        }
        HistoryTable::PastInvitations => {
            "DELETE FROM invitations WHERE id IN (SELECT id FROM invitations WHERE expires_at < $1 LIMIT $2)"
        }
    };
    Ok(sql_query(text).bind::<BigInt, _>(before.0).bind::<BigInt, _>(limit).execute(conn)?)
}

/// Goes through the workspaces, so that the primary key serves and the hot table needs no index for this.
fn delete_runs(conn: &mut Conn, before: Timestamp, limit: i64) -> Result<usize, DbError> {
    let text = "DELETE FROM ingestion_runs WHERE (workspace_id, id) IN (
                    SELECT r.workspace_id, r.id FROM workspaces w
                    JOIN ingestion_runs r ON r.workspace_id = w.id AND r.id < $1 LIMIT $2)";
    let before = first_id(before).as_bytes().to_vec();
    Ok(sql_query(text).bind::<Binary, _>(before).bind::<BigInt, _>(limit).execute(conn)?)
}

/// The smallest UUIDv7 of an instant.
fn first_id(at: Timestamp) -> Uuid {
    let millis = at.0.max(0).div_euclid(1000) as u64;
    uuid::Builder::from_unix_timestamp_millis(millis, &[0; 10]).into_uuid()
}

/// Events of a workspace that were turned away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Refused {
    /// Invalid.
    pub rejected: i64,
    /// Over the rate limit.
    pub throttled: i64,
}

/// Adds to the totals of each workspace, which come sorted.
pub fn add_refused(conn: &mut Conn, more: &[(i64, Refused)]) -> Result<(), DbError> {
    for (workspace_id, refused) in more {
        // a workspace may have been deleted meanwhile
        sql_query(
            "INSERT INTO ingestion_refusals AS r (workspace_id, rejected_events, throttled_events)
             SELECT id, CAST($1 AS BIGINT), CAST($2 AS BIGINT) FROM workspaces WHERE id = $3
             ON CONFLICT (workspace_id) DO UPDATE SET
                 rejected_events = r.rejected_events + excluded.rejected_events,
                 throttled_events = r.throttled_events + excluded.throttled_events",
        )
        .bind::<BigInt, _>(refused.rejected)
        .bind::<BigInt, _>(refused.throttled)
        .bind::<BigInt, _>(*workspace_id)
        .execute(conn)?;
    }
    Ok(())
}
