//! The rows of the trail, as they are read, and as the oldest of them go. Nothing here changes one.

use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Binary, Bool};

use crate::audit::Note;
use crate::db::audit::{self, Entry};
use crate::db::schema::{audit_events, audit_heads};
use crate::db::{Conn, DbError};
use crate::error::Error;
use crate::metering::time::Timestamp;

#[derive(Clone, Debug, Queryable, Selectable)]
#[diesel(table_name = audit_events)]
pub struct AuditEvent {
    pub workspace_id: i64,
    pub sequence: i64,
    pub id: String,
    pub time: i64,
    pub actor_kind: String,
    pub actor_id: String,
    pub actor_name: String,
    pub action: String,
    pub target_kind: String,
    pub target_id: String,
    pub target_name: String,
    pub state_before: String,
    pub state_after: String,
    pub address: String,
    pub user_agent: String,
    pub request_id: String,
    pub hash: Vec<u8>,
}

impl AuditEvent {
    /// What its hash is made of.
    pub fn entry(&self) -> Entry {
        let text = String::clone;
        Entry {
            workspace_id: self.workspace_id,
            id: text(&self.id),
            time: self.time,
            actor: [&self.actor_kind, &self.actor_id, &self.actor_name].map(text),
            action: text(&self.action),
            target: [&self.target_kind, &self.target_id, &self.target_name].map(text),
            before: text(&self.state_before),
            after: text(&self.state_after),
            address: text(&self.address),
            user_agent: text(&self.user_agent),
            request_id: text(&self.request_id),
        }
    }
}

/// Where the chain of a workspace ends, and where it begins after pruning.
#[derive(Clone, Debug, Queryable, Selectable)]
#[diesel(table_name = audit_heads)]
pub struct Head {
    pub workspace_id: i64,
    pub sequence: i64,
    pub hash: Vec<u8>,
    pub pruned_sequence: i64,
    pub pruned_hash: Vec<u8>,
}

/// What is asked of a trail; empty texts ask for everything.
#[derive(Clone, Debug, Default)]
pub struct Query {
    pub workspace_id: i64,
    pub from: Option<Timestamp>,
    pub to: Option<Timestamp>,
    /// The whole name, or a family such as `api_key.`
    pub action: String,
    /// Id or name.
    pub actor: String,
    /// Id or name.
    pub target: String,
    /// Rows before this place in the chain.
    pub before: Option<i64>,
    pub limit: i64,
}

/// Newest first.
pub fn list(conn: &mut Conn, query: &Query) -> Result<Vec<AuditEvent>, DbError> {
    let mut rows = audit_events::table
        .filter(audit_events::workspace_id.eq(query.workspace_id))
        .order(audit_events::sequence.desc())
        .limit(query.limit)
        .select(AuditEvent::as_select())
        .into_boxed();
    if let Some(from) = query.from {
        rows = rows.filter(audit_events::time.ge(from.0));
    }
    if let Some(to) = query.to {
        rows = rows.filter(audit_events::time.lt(to.0));
    }
    if let Some(before) = query.before {
        rows = rows.filter(audit_events::sequence.lt(before));
    }
    if query.action.ends_with('.') {
        // an underscore stands for any character, and no two families differ by one
        rows = rows.filter(audit_events::action.like(format!("{}%", query.action.replace(['%', '\\'], ""))));
    } else if !query.action.is_empty() {
        rows = rows.filter(audit_events::action.eq(query.action.clone()));
    }
    if !query.actor.is_empty() {
        let is_it = audit_events::actor_id
            .eq(query.actor.clone())
            .or(audit_events::actor_name.eq(query.actor.clone()));
        rows = rows.filter(is_it);
    }
    if !query.target.is_empty() {
        let is_it = audit_events::target_id
            .eq(query.target.clone())
            .or(audit_events::target_name.eq(query.target.clone()));
        rows = rows.filter(is_it);
    }
    Ok(rows.load(conn)?)
}

/// The rows behind a place in the chain, in order.
pub fn chain(conn: &mut Conn, workspace_id: i64, after: i64, limit: i64) -> Result<Vec<AuditEvent>, DbError> {
    let rows = audit_events::table
        .filter(audit_events::workspace_id.eq(workspace_id))
        .filter(audit_events::sequence.gt(after))
        .order(audit_events::sequence)
        .limit(limit)
        .select(AuditEvent::as_select())
        .load(conn)?;
    Ok(rows)
}

pub fn heads(conn: &mut Conn) -> Result<Vec<Head>, DbError> {
    Ok(audit_heads::table.order(audit_heads::workspace_id).select(Head::as_select()).load(conn)?)
}

#[derive(QueryableByName)]
struct Stray {
    #[diesel(sql_type = BigInt)]
    workspace_id: i64,
    #[diesel(sql_type = BigInt)]
    sequence: i64,
}

/// The first rows of chains that have no head.
pub fn without_head(conn: &mut Conn) -> Result<Vec<(i64, i64)>, DbError> {
    let text = "SELECT workspace_id, MIN(sequence) AS sequence FROM audit_events
                WHERE workspace_id NOT IN (SELECT workspace_id FROM audit_heads) GROUP BY workspace_id";
    let strays: Vec<Stray> = sql_query(text).load(conn)?;
    Ok(strays.into_iter().map(|stray| (stray.workspace_id, stray.sequence)).collect())
}

/// Workspaces that have no chain at all: each writes its first row when it is made.
pub fn without_chain(conn: &mut Conn) -> Result<Vec<i64>, DbError> {
    let text = "SELECT id AS workspace_id, CAST(1 AS BIGINT) AS sequence FROM workspaces
                WHERE id NOT IN (SELECT workspace_id FROM audit_heads) ORDER BY id";
    let strays: Vec<Stray> = sql_query(text).load(conn)?;
    Ok(strays.into_iter().map(|stray| stray.workspace_id).collect())
}

pub fn head(conn: &mut Conn, workspace_id: i64) -> Result<Option<Head>, DbError> {
    Ok(audit_heads::table.find(workspace_id).select(Head::as_select()).first(conn).optional()?)
}

#[derive(QueryableByName)]
struct Last {
    #[diesel(sql_type = BigInt)]
    sequence: i64,
    #[diesel(sql_type = Binary)]
    hash: Vec<u8>,
    /// Rows up to this one.
    #[diesel(sql_type = BigInt)]
    rows: i64,
}

#[derive(QueryableByName)]
struct May {
    #[diesel(sql_type = Bool)]
    may: bool,
}

/// Whether this role may delete rows of the trail; SQLite has no roles.
pub fn may_prune(conn: &mut Conn) -> Result<bool, DbError> {
    if !conn.is_postgres() {
        return Ok(true);
    }
    let text = "-- audit::may_prune\nSELECT has_table_privilege('audit_events', 'DELETE') AS may";
    Ok(sql_query(text).get_result::<May>(conn)?.may)
}

/// What became of a chain that was to be pruned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pruned {
    /// So many rows are gone; a row of the chain says so.
    Rows(usize),
    /// Rows that were never pruned are missing: nothing is deleted, so that it can be seen.
    Gap,
}

/// Deletes the oldest rows of a chain that are older than `before`, about so many at most; the chain begins behind them from
/// now on. To be run as a change, whose row says which are gone: `crate::audit::Note` is what the check compares with the head.
pub fn prune(conn: &mut Conn, workspace_id: i64, before: Timestamp, limit: i64) -> Result<Pruned, DbError> {
    audit::in_workspace(workspace_id);
    audit::about("", "");
    audit::nothing_changed();
    let Some(head) = head(conn, workspace_id)? else { return Ok(Pruned::Rows(0)) };
    let Some(last) = prunable(conn, workspace_id, before, limit)? else { return Ok(Pruned::Rows(0)) };
    if last.rows != last.sequence - head.pruned_sequence {
        return Ok(Pruned::Gap);
    }
    let moved = diesel::update(audit_heads::table.find(workspace_id))
        .filter(audit_heads::pruned_sequence.eq(head.pruned_sequence))
        .set((audit_heads::pruned_sequence.eq(last.sequence), audit_heads::pruned_hash.eq(&last.hash)))
        .execute(conn)?;
    if moved == 0 {
        // another process is at it
        return Ok(Pruned::Rows(0));
    }
    let rows = diesel::delete(audit_events::table)
        .filter(audit_events::workspace_id.eq(workspace_id))
        .filter(audit_events::sequence.le(last.sequence))
        .execute(conn)?;
    let note = Note::of(&head, last.sequence, &last.hash);
    audit::something_changed();
    audit::states(None, Some(serde_json::to_value(note).map_err(Error::internal)?));
    Ok(Pruned::Rows(rows))
}

/// The newest row that may go. Rows that tell of pruning go with what comes after them, and not by themselves: each
/// would leave another one.
fn prunable(
    conn: &mut Conn,
    workspace_id: i64,
    before: Timestamp,
    limit: i64,
) -> Result<Option<Last>, DbError> {
    let text = "-- audit::prunable
        SELECT sequence, hash,
               (SELECT count(*) FROM audit_events e WHERE e.workspace_id = $1 AND e.sequence <= oldest.sequence) AS rows
        FROM (SELECT sequence, hash, time FROM audit_events
              WHERE workspace_id = $1 AND action <> 'audit.pruned' ORDER BY sequence LIMIT $2) AS oldest
        WHERE time < $3 ORDER BY sequence DESC LIMIT 1";
    let last = sql_query(text)
        .bind::<BigInt, _>(workspace_id)
        .bind::<BigInt, _>(limit)
        .bind::<BigInt, _>(before.0)
        .get_result(conn)
        .optional()?;
    Ok(last)
}
