//! Consumption decisions: what was answered to a call, by its idempotency key, until the retention takes it.

use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Binary, Bool, Nullable, Text};

use crate::both;
use crate::event::{StoredEvent, ledger_key};
use crate::store::schema::consumption_decisions as decisions;
use crate::store::schema::workspaces;
use crate::store::{Conn, Fault};
use crate::window::Micros;

#[derive(Clone, Debug, Queryable, Selectable, Insertable, QueryableByName)]
#[diesel(table_name = decisions, treat_none_as_default_value = false)]
pub struct Decision {
    #[diesel(sql_type = BigInt)]
    pub workspace_id: i64,
    /// As in the key ledger.
    #[diesel(sql_type = Binary)]
    pub key: Vec<u8>,
    #[diesel(sql_type = Text)]
    pub idempotency_key: String,
    #[diesel(sql_type = Text)]
    pub subject: String,
    #[diesel(sql_type = Text)]
    pub meter: String,
    #[diesel(sql_type = Bool)]
    pub accepted: bool,
    #[diesel(sql_type = Bool)]
    pub evaluation_failed: bool,
    #[diesel(sql_type = Text)]
    pub enforcement: String,
    #[diesel(sql_type = Text)]
    pub state: String,
    #[diesel(sql_type = Nullable<Binary>)]
    pub event_id: Option<Vec<u8>>,
    /// The quota as it was answered, JSON.
    #[diesel(sql_type = Text)]
    pub quota: String,
    #[diesel(sql_type = BigInt)]
    pub created_at: i64,
}

/// The answer to a consumption.
#[derive(Clone, Debug)]
pub struct Decided {
    pub decision: Decision,
    /// Present when accepted.
    pub event: Option<StoredEvent>,
    /// Decided by an earlier call.
    pub replayed: bool,
}

/// Decisions already made for these ledger keys of a workspace.
pub fn find_many(conn: &mut Conn, workspace_id: i64, keys: &[Vec<u8>]) -> Result<Vec<Decision>, Fault> {
    Ok(decisions::table
        .filter(decisions::workspace_id.eq(workspace_id).and(decisions::key.eq_any(keys)))
        .select(Decision::as_select())
        .load(conn)?)
}

pub fn find(conn: &mut Conn, workspace_id: i64, key: &str) -> Result<Option<Decision>, Fault> {
    Ok(decisions::table
        .find((workspace_id, ledger_key(key)))
        .select(Decision::as_select())
        .first(conn)
        .optional()?)
}

/// Records decisions, which come sorted by key; false when another server decided one of the keys meanwhile.
pub fn add(conn: &mut Conn, new: &[&Decision]) -> Result<bool, Fault> {
    if new.is_empty() {
        return Ok(true);
    }
    let mut added = 0;
    // SQLite takes 32,766 parameters, PostgreSQL 65,535
    for some in new.chunks(1_000) {
        added += both!(conn, c => diesel::insert_into(decisions::table)
            .values(some.to_vec())
            .on_conflict_do_nothing()
            .execute(c)?);
    }
    Ok(added == new.len())
}

/// What narrows a list of decisions; empty texts do not.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub subject: String,
    pub meter: String,
    pub enforcement: String,
    pub state: String,
    pub accepted: Option<bool>,
    pub evaluation_failed: Option<bool>,
    /// Time and idempotency key of the last one seen.
    pub after: Option<(Micros, String)>,
}

/// The newest first.
pub fn list(conn: &mut Conn, workspace_id: i64, filter: &Filter, limit: i64) -> Result<Vec<Decision>, Fault> {
    let mut query = decisions::table
        .filter(decisions::workspace_id.eq(workspace_id))
        .order((decisions::created_at.desc(), decisions::idempotency_key.desc()))
        .limit(limit)
        .select(Decision::as_select())
        .into_boxed();
    if !filter.subject.is_empty() {
        query = query.filter(decisions::subject.eq(&filter.subject));
    }
    if !filter.meter.is_empty() {
        query = query.filter(decisions::meter.eq(&filter.meter));
    }
    if !filter.enforcement.is_empty() {
        query = query.filter(decisions::enforcement.eq(&filter.enforcement));
    }
    if !filter.state.is_empty() {
        query = query.filter(decisions::state.eq(&filter.state));
    }
    if let Some(accepted) = filter.accepted {
        query = query.filter(decisions::accepted.eq(accepted));
    }
    if let Some(failed) = filter.evaluation_failed {
        query = query.filter(decisions::evaluation_failed.eq(failed));
    }
    if let Some((at, key)) = &filter.after {
        let earlier = decisions::created_at.lt(at.0);
        let same_time = decisions::created_at.eq(at.0).and(decisions::idempotency_key.lt(key));
        query = query.filter(earlier.or(same_time));
    }
    Ok(query.load(conn)?)
}

/// Deletes up to a thousand decisions per workspace that were made before `before`; returns how many.
pub fn sweep(conn: &mut Conn, before: Micros) -> Result<usize, Fault> {
    // per workspace, because the index that serves the lists then serves here too
    let ids: Vec<i64> = workspaces::table.select(workspaces::id).load(conn)?;
    let mut deleted = 0;
    for id in ids {
        deleted += sql_query(
            "DELETE FROM consumption_decisions WHERE (workspace_id, key) IN (
                 SELECT workspace_id, key FROM consumption_decisions
                 WHERE workspace_id = $1 AND created_at < $2 ORDER BY created_at LIMIT 1000)",
        )
        .bind::<BigInt, _>(id)
        .bind::<BigInt, _>(before.0)
        .execute(conn)?;
    }
    Ok(deleted)
}
