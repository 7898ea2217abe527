//! Consumption decisions: what was answered to a call, by its idempotency key, until the retention takes it.

use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Binary, Bool, Nullable, Text};

use crate::both;
use crate::db::schema::{consumption_decisions as decisions, decision_prune_runs};
use crate::db::{Conn, DbError, leases};
use crate::error::Error;
use crate::metering::event::ledger_key;
use crate::metering::stored::StoredEvent;
use crate::metering::time::Timestamp;

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
    /// Of the event, canonical JSON. Absent when the call stored none: it was refused, or its key already stood for
    /// another event.
    #[diesel(sql_type = Nullable<Text>)]
    pub metadata: Option<String>,
}

/// The answer to a consumption.
#[derive(Clone, Debug)]
pub struct Decided {
    pub decision: Decision,
    /// Present when accepted.
    pub event: Option<StoredEvent>,
    /// Decided by an earlier call, or its event was stored by one.
    pub replayed: bool,
    /// The key was used before, with another payload.
    pub conflict: bool,
}

/// Decisions already made for these ledger keys of a workspace.
pub fn find_many(conn: &mut Conn, workspace_id: i64, keys: &[Vec<u8>]) -> Result<Vec<Decision>, DbError> {
    Ok(decisions::table
        .filter(decisions::workspace_id.eq(workspace_id).and(decisions::key.eq_any(keys)))
        .select(Decision::as_select())
        .load(conn)?)
}

pub fn find(conn: &mut Conn, workspace_id: i64, key: &str) -> Result<Option<Decision>, DbError> {
    Ok(decisions::table
        .find((workspace_id, ledger_key(key)))
        .select(Decision::as_select())
        .first(conn)
        .optional()?)
}

/// Records decisions, which come sorted by key; false when another server decided one of the keys meanwhile.
pub fn add(conn: &mut Conn, new: &[&Decision]) -> Result<bool, DbError> {
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
    pub after: Option<(Timestamp, String)>,
}

/// The newest first.
pub fn list(
    conn: &mut Conn,
    workspace_id: i64,
    filter: &Filter,
    limit: i64,
) -> Result<Vec<Decision>, DbError> {
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

/// Decisions that are kept, and how often others were pruned.
#[derive(QueryableByName)]
pub struct Kept {
    #[diesel(sql_type = BigInt)]
    pub decisions: i64,
    #[diesel(sql_type = BigInt)]
    pub prune_runs: i64,
}

pub fn kept(conn: &mut Conn, workspace_id: i64) -> Result<Kept, DbError> {
    let text = "-- entitlements::decisions::kept
        SELECT (SELECT COUNT(*) FROM consumption_decisions WHERE workspace_id = $1) AS decisions,
               (SELECT COUNT(*) FROM decision_prune_runs WHERE workspace_id = $1) AS prune_runs";
    Ok(sql_query(text).bind::<BigInt, _>(workspace_id).get_result(conn)?)
}

#[derive(QueryableByName)]
struct Workspace {
    #[diesel(sql_type = BigInt)]
    id: i64,
}

/// Workspaces with decisions from before `before`.
pub fn outdated(conn: &mut Conn, before: Timestamp) -> Result<Vec<i64>, DbError> {
    let text = match conn.is_distributed() {
        false => {
            "SELECT w.id FROM workspaces w WHERE EXISTS (
                 SELECT 1 FROM consumption_decisions d WHERE d.workspace_id = w.id AND d.created_at < $1) ORDER BY w.id"
        }
        // rows of a node and those of the coordinator are not looked at together
        true => "SELECT DISTINCT workspace_id AS id FROM consumption_decisions WHERE created_at < $1 ORDER BY 1",
    };
    let rows: Vec<Workspace> = sql_query(text).bind::<BigInt, _>(before.0).load(conn)?;
    Ok(rows.into_iter().map(|row| row.id).collect())
}

/// Deletes up to `limit` decisions of a workspace from before `before`; returns how many. 409 when the lease was lost.
pub fn prune(
    conn: &mut Conn,
    (lease, holder): (&str, &str),
    workspace_id: i64,
    before: Timestamp,
    limit: i64,
) -> Result<i64, DbError> {
    if !leases::renew(conn, lease, holder)? {
        return Err(Error::conflict("another clean-up took over").into());
    }
    let deleted = sql_query(
        "DELETE FROM consumption_decisions WHERE (workspace_id, key) IN (
             SELECT workspace_id, key FROM consumption_decisions
             WHERE workspace_id = $1 AND created_at < $2 ORDER BY created_at LIMIT $3)",
    )
    .bind::<BigInt, _>(workspace_id)
    .bind::<BigInt, _>(before.0)
    .bind::<BigInt, _>(limit)
    .execute(conn)?;
    Ok(deleted as i64)
}

/// What one prune deleted of a workspace; there is no record of one that found nothing.
#[derive(Clone, Debug, Queryable, Selectable, Insertable)]
#[diesel(table_name = decision_prune_runs)]
pub struct PruneRun {
    pub id: String,
    pub workspace_id: i64,
    pub decided_before: i64,
    pub deleted: i64,
    pub created_at: i64,
}

pub fn add_prune_run(conn: &mut Conn, run: &PruneRun) -> Result<(), DbError> {
    diesel::insert_into(decision_prune_runs::table).values(run).execute(conn)?;
    Ok(())
}

/// When decisions of a workspace were pruned last.
pub fn last_prune_run(conn: &mut Conn, workspace_id: i64) -> Result<Option<PruneRun>, DbError> {
    Ok(decision_prune_runs::table
        .filter(decision_prune_runs::workspace_id.eq(workspace_id))
        .order((decision_prune_runs::created_at.desc(), decision_prune_runs::id.desc()))
        .select(PruneRun::as_select())
        .first(conn)
        .optional()?)
}
