//! What happened to rules, and the attempts to tell receivers of it.

use std::collections::HashMap;

use diesel::prelude::*;

use crate::alerts::sql::deliveries;
use crate::alerts::sql::rules::Rule;
use crate::alerts::state::Transition;
use crate::alerts::webhook;
use crate::chance;
use crate::db::schema::{alert_attempts, alert_events};
use crate::db::{Conn, DbError};
use crate::metering::time::Timestamp;

/// Something that happened to a rule.
#[derive(Clone, Debug, Queryable, Selectable, Insertable)]
#[diesel(table_name = alert_events, treat_none_as_default_value = false)]
pub struct Event {
    pub public_id: String,
    pub workspace_id: i64,
    pub rule_id: i64,
    pub rule_public_id: String,
    pub group_key: String,
    pub group_value: String,
    pub kind: String,
    pub value: String,
    pub message: String,
    pub created_at: i64,
}

/// Writes down a crossing and, when receivers are told, its delivery; one id for all of it.
pub fn record(conn: &mut Conn, rule: &Rule, crossing: &Transition, now: Timestamp) -> Result<Event, DbError> {
    let group = crossing.state.group.clone();
    let (group_key, group_value) = group.map(|group| (group.key, group.value)).unwrap_or_default();
    let event = Event {
        public_id: chance::id().to_string(),
        workspace_id: rule.workspace_id,
        rule_id: rule.id,
        rule_public_id: rule.public_id.clone(),
        group_key,
        group_value,
        kind: crossing.kind.as_str().to_owned(),
        value: crossing.state.value.to_plain(),
        message: crossing.state.message.clone(),
        created_at: now.0,
    };
    diesel::insert_into(alert_events::table).values(&event).execute(conn)?;
    if crossing.kind.is_delivered() && !rule.is_snoozed(now) {
        let payload = webhook::payload(&event.public_id, &rule.part(), crossing, now)?;
        let group = crossing.state.group.as_ref();
        let outgoing = deliveries::Outgoing { event_id: &event.public_id, group, payload };
        deliveries::add(conn, rule, outgoing, now)?;
    }
    Ok(event)
}

/// Events of a workspace, newest first, from before the event with this position.
pub fn events(
    conn: &mut Conn,
    workspace_id: i64,
    rule_id: Option<i64>,
    before: Option<i64>,
    limit: i64,
) -> Result<Vec<(i64, Event)>, DbError> {
    let mut query = alert_events::table
        .filter(alert_events::workspace_id.eq(workspace_id))
        .order(alert_events::id.desc())
        .limit(limit)
        .select((alert_events::id, Event::as_select()))
        .into_boxed();
    if let Some(rule_id) = rule_id {
        query = query.filter(alert_events::rule_id.eq(rule_id));
    }
    if let Some(before) = before {
        query = query.filter(alert_events::id.lt(before));
    }
    Ok(query.load(conn)?)
}

/// An attempt to deliver an event.
#[derive(Clone, Debug, Queryable, Selectable)]
#[diesel(table_name = alert_attempts)]
pub struct Attempt {
    pub public_id: String,
    pub event_id: String,
    pub status: String,
    pub status_code: Option<i32>,
    pub error: Option<String>,
    pub response: Option<String>,
    pub duration_ms: i64,
    pub attempted_at: i64,
}

/// One event of a workspace.
pub fn find(conn: &mut Conn, workspace_id: i64, public_id: &str) -> Result<Option<Event>, DbError> {
    let own = alert_events::table
        .filter(alert_events::public_id.eq(public_id))
        .filter(alert_events::workspace_id.eq(workspace_id));
    Ok(own.select(Event::as_select()).first(conn).optional()?)
}

/// Every attempt to deliver an event, the first one first, at most this many.
pub fn attempts(conn: &mut Conn, event_id: &str, limit: i64) -> Result<Vec<Attempt>, DbError> {
    Ok(alert_attempts::table
        .filter(alert_attempts::event_id.eq(event_id))
        .order(alert_attempts::id)
        .limit(limit)
        .select(Attempt::as_select())
        .load(conn)?)
}

/// The latest attempt of each of these events.
pub fn latest_attempts(conn: &mut Conn, event_ids: &[String]) -> Result<HashMap<String, Attempt>, DbError> {
    let rows: Vec<Attempt> = alert_attempts::table
        .filter(alert_attempts::event_id.eq_any(event_ids))
        .order(alert_attempts::id)
        .select(Attempt::as_select())
        .load(conn)?;
    Ok(rows.into_iter().map(|attempt| (attempt.event_id.clone(), attempt)).collect())
}
