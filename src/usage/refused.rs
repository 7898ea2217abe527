//! Events that were refused, and idempotency keys that were used again for something else: kept for a few days, the
//! newest of each workspace, for whoever asks why an event did not count. Never part of a total.

use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::BigInt;
use uuid::Uuid;

use crate::db::schema::refused_events;
use crate::db::{Conn, DbError};
use crate::metering::time::{Timestamp, Window};

/// Rows that a workspace keeps.
pub const KEPT: i64 = 10_000;

/// An event that was not counted, and why.
#[derive(Clone, Debug, Queryable, Insertable, Selectable)]
#[diesel(table_name = refused_events, treat_none_as_default_value = false)]
pub struct RefusedEvent {
    pub workspace_id: i64,
    pub id: Vec<u8>,
    /// `rejected`, or `conflict` when its key stands for another event.
    pub outcome: String,
    pub code: String,
    pub message: String,
    pub subject: String,
    pub meter: String,
    pub idempotency_key: Option<String>,
    /// The write call that it came with.
    pub run_id: Vec<u8>,
    /// Of a conflict: what was sent and what was stored, JSON.
    pub sent: Option<String>,
    pub stored: Option<String>,
    pub created_at: i64,
    /// What its sender called the request; `None` where it has the id of the run.
    pub request_id: Option<String>,
    pub api_key_id: Option<String>,
    /// The field at fault, such as `metadata.model`, where one is.
    pub field: Option<String>,
    /// Where it came in.
    pub door: String,
    /// What was sent, cut at 4 KB: JSON, unless it was cut or was none.
    pub payload: Option<String>,
}

impl RefusedEvent {
    pub fn run(&self) -> String {
        Uuid::from_slice(&self.run_id).map(|id| id.to_string()).unwrap_or_default()
    }

    /// What its texts take.
    pub fn bytes(&self) -> usize {
        let given =
            [&self.idempotency_key, &self.request_id, &self.field, &self.payload, &self.sent, &self.stored];
        let given: usize = given.into_iter().flatten().map(String::len).sum();
        self.message.len() + self.subject.len() + self.meter.len() + given
    }

    pub fn public_id(&self) -> String {
        Uuid::from_slice(&self.id).map(|id| id.to_string()).unwrap_or_default()
    }
}

/// Writes them down, and forgets the oldest of workspaces that have too many.
pub fn add(conn: &mut Conn, events: &[RefusedEvent]) -> Result<(), DbError> {
    for event in events {
        diesel::insert_into(refused_events::table).values(event.clone()).execute(conn)?;
    }
    let mut workspaces: Vec<i64> = events.iter().map(|event| event.workspace_id).collect();
    workspaces.sort_unstable();
    workspaces.dedup();
    for workspace_id in workspaces {
        let text = "-- usage::refused::add
            DELETE FROM refused_events WHERE workspace_id = $1 AND id <=
                (SELECT id FROM refused_events WHERE workspace_id = $1 ORDER BY id DESC LIMIT 1 OFFSET $2)";
        sql_query(text).bind::<BigInt, _>(workspace_id).bind::<BigInt, _>(KEPT).execute(conn)?;
    }
    Ok(())
}

/// Deletes those from before an instant.
pub fn expire(conn: &mut Conn, before: Timestamp) -> Result<usize, DbError> {
    Ok(diesel::delete(refused_events::table.filter(refused_events::created_at.lt(before.0))).execute(conn)?)
}

/// What a list is narrowed to; blank means all.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub outcome: String,
    pub code: String,
    pub meter: String,
    pub subject: String,
    pub idempotency_key: String,
    pub api_key_id: String,
    pub run: Option<Uuid>,
    /// When they came.
    pub window: Option<Window>,
    /// The id of the last one seen.
    pub before: Option<Uuid>,
}

/// Newest first.
pub fn list(
    conn: &mut Conn,
    workspace_id: i64,
    filter: &Filter,
    limit: i64,
) -> Result<Vec<RefusedEvent>, DbError> {
    let mut query = refused_events::table
        .filter(refused_events::workspace_id.eq(workspace_id))
        .order(refused_events::id.desc())
        .limit(limit)
        .select(RefusedEvent::as_select())
        .into_boxed();
    if let Some(before) = filter.before {
        query = query.filter(refused_events::id.lt(before.into_bytes().to_vec()));
    }
    if !filter.outcome.is_empty() {
        query = query.filter(refused_events::outcome.eq(filter.outcome.clone()));
    }
    if !filter.meter.is_empty() {
        query = query.filter(refused_events::meter.eq(filter.meter.clone()));
    }
    if !filter.subject.is_empty() {
        query = query.filter(refused_events::subject.eq(filter.subject.clone()));
    }
    if !filter.code.is_empty() {
        query = query.filter(refused_events::code.eq(filter.code.clone()));
    }
    if !filter.idempotency_key.is_empty() {
        query = query.filter(refused_events::idempotency_key.eq(filter.idempotency_key.clone()));
    }
    if !filter.api_key_id.is_empty() {
        query = query.filter(refused_events::api_key_id.eq(filter.api_key_id.clone()));
    }
    if let Some(window) = filter.window {
        query = query.filter(refused_events::created_at.ge(window.from.0));
        query = query.filter(refused_events::created_at.lt(window.to.0));
    }
    if let Some(run) = filter.run {
        query = query.filter(refused_events::run_id.eq(run.into_bytes().to_vec()));
    }
    Ok(query.load(conn)?)
}

/// The newest of an idempotency key, or of a request: by what its sender called it, or by the id that the server gave it.
pub fn about(
    conn: &mut Conn,
    workspace_id: i64,
    wanted: &str,
    limit: i64,
) -> Result<Vec<RefusedEvent>, DbError> {
    let given = Uuid::parse_str(wanted).unwrap_or_default().into_bytes().to_vec();
    let is_wanted = refused_events::idempotency_key
        .eq(wanted)
        .or(refused_events::request_id.eq(wanted))
        .or(refused_events::run_id.nullable().eq(given));
    Ok(refused_events::table
        .filter(refused_events::workspace_id.eq(workspace_id))
        .filter(is_wanted)
        .order(refused_events::id.desc())
        .limit(limit)
        .select(RefusedEvent::as_select())
        .load(conn)?)
}

/// Outcome and instant of those of a window: as many as a workspace keeps, at most.
pub fn outcomes(
    conn: &mut Conn,
    workspace_id: i64,
    filter: &Filter,
    window: Window,
) -> Result<Vec<(String, i64)>, DbError> {
    let mut query = refused_events::table
        .filter(refused_events::workspace_id.eq(workspace_id))
        .filter(refused_events::created_at.ge(window.from.0).and(refused_events::created_at.lt(window.to.0)))
        .limit(KEPT)
        .select((refused_events::outcome, refused_events::created_at))
        .into_boxed();
    if !filter.meter.is_empty() {
        query = query.filter(refused_events::meter.eq(filter.meter.clone()));
    }
    if !filter.subject.is_empty() {
        query = query.filter(refused_events::subject.eq(filter.subject.clone()));
    }
    Ok(query.load(conn)?)
}

pub fn find(conn: &mut Conn, workspace_id: i64, id: Uuid) -> Result<Option<RefusedEvent>, DbError> {
    let found = refused_events::table
        .find((workspace_id, id.into_bytes().to_vec()))
        .select(RefusedEvent::as_select())
        .first(conn);
    Ok(found.optional()?)
}
