//! Destinations, rules and what came of them.

use super::events::derived_id;
use super::who::{new_or_known, uuid_text};
use super::{Ids, Import, Refusal};
use crate::alerts::state::group_name;
use crate::alerts::webhook::SECRET_PREFIX;
use crate::auth::token::Token;
use crate::db::Conn;
use crate::error::Result;
use crate::import::sql::foreign::Kind::{Int, Real, Text};
use crate::import::sql::foreign::{Odd, Row, Table};
use crate::import::sql::ours::{self, Columns, Put, Value};
use crate::metering::event::parse_subject;
use crate::metering::json;
use crate::vault::{self, Place};

pub const DESTINATIONS: Table = Table {
    name: "alert_destinations",
    columns: &[
        ("id", Text),
        ("workspace_id", Text),
        ("name", Text),
        ("type", Text),
        ("enabled", Int),
        ("webhook_url", Text),
        ("webhook_secret", Text),
        ("created_at", Text),
        ("updated_at", Text),
    ],
    order: "created_at",
};

pub fn destination(conn: &mut Conn, ids: &mut Ids, row: &Row) -> Result<Put, Refusal> {
    let (public_id, kind) = (uuid_text(row, "id")?, row.text("type")?);
    if kind != "webhook" {
        return Err(format!("there is no such destination: {kind}").into());
    }
    let workspace_id = ids.workspace(row)?;
    let place = Place { table: "alert_destinations", column: "secret", row: &public_id, workspace_id };
    let theirs = row.filled("webhook_secret")?;
    let is_made = theirs.is_none();
    // the Go server makes one at the next change; with an empty one anybody could sign
    let secret = theirs.map_or_else(|| Token::new(SECRET_PREFIX).map(|made| made.expose().to_owned()), Ok)?;
    let sealed = vault::sealing()?.seal(place, &secret)?;
    let columns: Columns = vec![
        ("workspace_id", workspace_id.into()),
        ("name", row.text("name")?.into()),
        ("enabled", row.flag("enabled")?.into()),
        ("webhook_url", row.text("webhook_url")?.into()),
        ("secret", sealed.into()),
        ("created_at", row.time("created_at")?.0.into()),
        ("updated_at", row.time("updated_at")?.0.into()),
    ];
    let changing = ["name", "enabled", "webhook_url", "updated_at", "secret"];
    // one that was made by an earlier run stays
    let changing = if is_made { &changing[..4] } else { &changing[..] };
    let (put, id) = ours::put(conn, "alert_destinations", &public_id, &columns, changing, false)?;
    ids.destinations.insert(public_id, id);
    Ok(put)
}

pub const RULES: Table = Table {
    name: "alert_rules",
    columns: &[
        ("id", Text),
        ("workspace_id", Text),
        ("name", Text),
        ("meter_name", Text),
        ("enabled", Int),
        ("subject", Text),
        ("metadata", Text),
        ("window_seconds", Int),
        ("comparator", Text),
        ("threshold", Real),
        ("evaluation_interval_seconds", Int),
        ("group_by", Text),
        ("destination_id", Text),
        ("next_evaluate_at", Text),
        ("created_at", Text),
        ("updated_at", Text),
    ],
    order: "created_at",
};

pub fn rule(conn: &mut Conn, ids: &mut Ids, row: &Row) -> Result<Put, Refusal> {
    let (public_id, workspace_id) = (uuid_text(row, "id")?, ids.workspace(row)?);
    let destination = row.filled("destination_id")?.ok_or("it has no destination")?;
    let destination_id = ids.destinations.get(&destination).ok_or("its destination is not there")?;
    let fields: std::collections::BTreeMap<String, String> = serde_json::from_str(&row.text("metadata")?)
        .map_err(|_| "metadata is no object of texts".to_owned())?;
    let subject = row.filled("subject")?;
    if let Some(subject) = &subject {
        parse_subject(subject)?;
    }
    let columns: Columns = vec![
        ("workspace_id", workspace_id.into()),
        ("meter_id", ids.meter(workspace_id, row)?.id.into()),
        ("destination_id", (*destination_id).into()),
        ("name", row.text("name")?.into()),
        ("enabled", row.flag("enabled")?.into()),
        ("subject", subject.into()),
        ("metadata", serde_json::to_string(&fields).map_err(|error| error.to_string())?.into()),
        ("window_seconds", within(row, "window_seconds", 60, 31_622_400)?.into()),
        ("comparator", comparator(row)?.into()),
        ("threshold", row.quantity("threshold")?.to_json().into()),
        ("evaluation_interval_seconds", within(row, "evaluation_interval_seconds", 1, 86_400)?.into()),
        ("group_by", row.filled("group_by")?.into()),
        ("next_evaluate_at", row.time("next_evaluate_at")?.0.into()),
        ("revision", 1.into()),
        ("created_at", row.time("created_at")?.0.into()),
        ("updated_at", row.time("updated_at")?.0.into()),
    ];
    let changing: Vec<&str> = columns
        .iter()
        .map(|(name, _)| *name)
        .filter(|name| !["workspace_id", "revision"].contains(name))
        .collect();
    let (put, _) = ours::put(conn, "alert_rules", &public_id, &columns, &changing, false)?;
    ids.rules.insert(public_id);
    Ok(put)
}

fn within(row: &Row, name: &str, least: i64, most: i64) -> Result<i64, Odd> {
    let value = row.int(name)?;
    if (least..=most).contains(&value) {
        Ok(value)
    } else {
        Err(format!("{name} is not from {least} to {most}"))
    }
}

fn comparator(row: &Row) -> Result<String, Odd> {
    let word = row.text("comparator")?;
    match ["gt", "gte", "lt", "lte", "eq", "neq"].contains(&word.as_str()) {
        true => Ok(word),
        false => Err(format!("there is no such comparator: {word}")),
    }
}

pub const EVENTS: Table = Table {
    name: "alert_events",
    columns: &[
        ("id", Text),
        ("rule_id", Text),
        ("type", Text),
        ("value", Real),
        ("message", Text),
        ("group_key", Text),
        ("group_value", Text),
        ("created_at", Text),
    ],
    // ours are numbered in the order in which they were made
    order: "replace(created_at, 'Z', '')",
};

pub fn event(conn: &mut Conn, ids: &mut Ids, row: &Row) -> Result<Put, Refusal> {
    let (public_id, rule, kind) = (uuid_text(row, "id")?, rule_of(ids, row)?, row.text("type")?);
    if !["triggered", "resolved", "evaluation_failed"].contains(&kind.as_str()) {
        return Err(format!("there is no such event: {kind}").into());
    }
    let text = "INSERT INTO alert_events (public_id, group_key, group_value, kind, value, message, created_at, workspace_id,
                    rule_id, rule_public_id)
                SELECT $1, $2, $3, $4, $5, $6, $7, r.workspace_id, r.id, r.public_id FROM alert_rules r
                WHERE r.public_id = $8 ON CONFLICT DO NOTHING";
    let values: Vec<Value> = vec![
        public_id.into(),
        row.text("group_key")?.into(),
        group_name(row.text("group_value")?).into(),
        kind.into(),
        row.quantity("value")?.to_json().into(),
        row.text("message")?.into(),
        row.time("created_at")?.0.into(),
        rule.into(),
    ];
    Ok(new_or_known(ours::execute(conn, text.to_owned(), &values)? > 0))
}

fn rule_of(ids: &Ids, row: &Row) -> Result<String, Odd> {
    let rule = row.text("rule_id")?;
    if ids.rules.contains(&rule) { Ok(rule) } else { Err("its rule is not there".to_owned()) }
}

pub const STATES: Table = Table {
    name: "alert_states",
    columns: &[
        ("rule_id", Text),
        ("group_key", Text),
        ("group_value", Text),
        ("status", Text),
        ("value", Real),
        ("message", Text),
        ("evaluated_at", Text),
        ("updated_at", Text),
    ],
    order: "",
};

/// While evaluation fails, the latest event tells whether an alert is still on.
pub fn state(conn: &mut Conn, ids: &mut Ids, row: &Row) -> Result<Put, Refusal> {
    let (rule, status) = (rule_of(ids, row)?, row.text("status")?);
    let is_firing = match status.as_str() {
        "alerting" => "true",
        "ok" | "no_data" => "false",
        "error" => {
            "COALESCE((SELECT e.kind = 'triggered' FROM alert_events e
                        WHERE e.rule_id = r.id AND e.group_key = $1 AND e.group_value = $2
                          AND e.kind IN ('triggered', 'resolved') ORDER BY e.id DESC LIMIT 1), false)"
        }
        other => return Err(format!("there is no such status: {other}").into()),
    };
    let text = format!(
        "INSERT INTO alert_states (group_key, group_value, status, value, message, updated_at, rule_id, firing)
         SELECT $1, $2, $3, $4, $5, $6, r.id, {is_firing} FROM alert_rules r WHERE r.public_id = $7
         ON CONFLICT (rule_id, group_key, group_value) DO UPDATE SET status = excluded.status, value = excluded.value,
             message = excluded.message, updated_at = excluded.updated_at, firing = excluded.firing
         WHERE alert_states.updated_at < excluded.updated_at"
    );
    let values: Vec<Value> = vec![
        row.text("group_key")?.into(),
        group_name(row.text("group_value")?).into(),
        status.into(),
        row.quantity("value")?.to_json().into(),
        row.text("message")?.into(),
        row.time("updated_at")?.0.into(),
        rule.into(),
    ];
    Ok(new_or_known(ours::execute(conn, text, &values)? > 0))
}

pub const DELIVERIES: Table = Table {
    name: "alert_deliveries",
    columns: &[
        ("id", Text),
        ("event_id", Text),
        ("trigger_type", Text),
        ("status", Text),
        ("status_code", Int),
        ("error", Text),
        ("duration_ms", Int),
        ("attempted_at", Text),
        ("created_at", Text),
    ],
    order: "replace(attempted_at, 'Z', '')",
};

/// One row there is one try. What failed stays failed: nobody expects a webhook of months ago.
pub fn delivery(conn: &mut Conn, _: &mut Ids, row: &Row) -> Result<Put, Refusal> {
    let (public_id, event_id) = (uuid_text(row, "id")?, row.text("event_id")?);
    let (status, attempted_at) = (row.text("status")?, row.time("attempted_at")?.0);
    let (ours_status, delivered_at) = match status.as_str() {
        "delivered" => ("delivered", Some(attempted_at)),
        "failed" => ("dead_letter", None),
        other => return Err(format!("there is no such status: {other}").into()),
    };
    let error = row.filled("error")?;
    let text = "INSERT INTO alert_deliveries (public_id, status, next_attempt_at, last_error, created_at, updated_at, delivered_at,
                    attempts, payload, workspace_id, rule_id, event_id, destination_id)
                SELECT $1, $2, $3, $4, $5, $6, $7, 1, '{}', e.workspace_id, r.id, e.public_id, d.public_id
                FROM alert_events e JOIN alert_rules r ON r.id = e.rule_id
                     JOIN alert_destinations d ON d.id = r.destination_id
                WHERE e.public_id = $8 ON CONFLICT (event_id) DO NOTHING";
    let created_at = row.time("created_at")?;
    let values: Vec<Value> = vec![
        derived_id(created_at, &[b"delivery", event_id.as_bytes()]).to_string().into(),
        ours_status.into(),
        attempted_at.into(),
        error.clone().into(),
        created_at.0.into(),
        attempted_at.into(),
        delivered_at.into(),
        event_id.clone().into(),
    ];
    ours::execute(conn, text.to_owned(), &values)?;
    let text = "INSERT INTO alert_attempts (public_id, status, status_code, error, duration_ms, attempted_at, delivery_id, event_id)
                SELECT $1, $2, $3, $4, $5, $6, d.id, d.event_id FROM alert_deliveries d
                WHERE d.event_id = $7 AND NOT EXISTS (SELECT 1 FROM alert_attempts a WHERE a.event_id = $7 AND a.public_id = $1)";
    let values: Vec<Value> = vec![
        public_id.into(),
        status.into(),
        row.optional_int("status_code").into(),
        error.into(),
        row.int("duration_ms")?.into(),
        attempted_at.into(),
        event_id.clone().into(),
    ];
    let is_new = ours::execute(conn, text.to_owned(), &values)? > 0;
    if !is_new && ours::find(conn, "alert_events", &event_id)?.is_none() {
        return Err("its event is not there".into());
    }
    if is_new {
        // newer servers try again: the last one counts
        let text = "UPDATE alert_deliveries SET status = $1, delivered_at = $2, last_error = $3, updated_at = $4,
                        attempts = (SELECT count(*) FROM alert_attempts a WHERE a.delivery_id = alert_deliveries.id)
                    WHERE event_id = $5 AND updated_at <= $4";
        let values: Vec<Value> = vec![
            ours_status.into(),
            delivered_at.into(),
            row.filled("error")?.into(),
            attempted_at.into(),
            event_id.into(),
        ];
        ours::execute(conn, text.to_owned(), &values)?;
    }
    Ok(new_or_known(is_new))
}

pub const DELIVERY_JOBS: Table = Table {
    name: "alert_delivery_jobs",
    columns: &[
        // a number of theirs
        ("id", Text),
        ("public_id", Text),
        ("event_id", Text),
        ("destination_id", Text),
        ("payload", Text),
        ("status", Text),
        ("attempts", Int),
        ("next_attempt_at", Text),
        ("locked_until", Text),
        ("last_error", Text),
        ("created_at", Text),
        ("updated_at", Text),
    ],
    order: "",
};

/// What newer servers still had to send: nothing is sent by itself after a move, an operator can have it sent. The body
/// of what was sent comes along.
pub fn delivery_job(conn: &mut Conn, _: &mut Ids, row: &Row) -> Result<Put, Refusal> {
    let (event_id, status) = (row.text("event_id")?, row.text("status")?);
    let (created_at, updated_at) = (row.time("created_at")?, row.time("updated_at")?);
    let (ours_status, delivered_at) = match status.as_str() {
        "delivered" => ("delivered", Some(updated_at.0)),
        "pending" | "running" | "dead_letter" => ("dead_letter", None),
        other => return Err(format!("there is no such status: {other}").into()),
    };
    let payload = row.text("payload")?;
    json::parse_object(&payload).ok_or("payload is no JSON object that can be read")?;
    let error = match status.as_str() {
        "pending" | "running" => Some("the server was moved before it was sent".to_owned()),
        _ => row.filled("last_error")?,
    };
    let text = "INSERT INTO alert_deliveries (public_id, status, next_attempt_at, last_error, created_at, updated_at, delivered_at,
                    attempts, payload, workspace_id, rule_id, event_id, destination_id)
                SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, e.workspace_id, r.id, e.public_id, d.public_id
                FROM alert_events e JOIN alert_rules r ON r.id = e.rule_id
                     JOIN alert_destinations d ON d.id = r.destination_id
                WHERE e.public_id = $10
                ON CONFLICT (event_id) DO UPDATE SET payload = excluded.payload, status = excluded.status,
                    last_error = excluded.last_error, delivered_at = excluded.delivered_at, updated_at = excluded.updated_at
                WHERE alert_deliveries.payload = '{}' OR alert_deliveries.updated_at < excluded.updated_at";
    let values: Vec<Value> = vec![
        derived_id(created_at, &[b"delivery", event_id.as_bytes()]).to_string().into(),
        ours_status.into(),
        updated_at.0.into(),
        error.into(),
        created_at.0.into(),
        updated_at.0.into(),
        delivered_at.into(),
        row.int("attempts")?.into(),
        payload.into(),
        event_id.clone().into(),
    ];
    let is_new = ours::execute(conn, text.to_owned(), &values)? > 0;
    if !is_new && ours::find(conn, "alert_events", &event_id)?.is_none() {
        return Err("its event is not there".into());
    }
    Ok(new_or_known(is_new))
}

/// What ended there since the last run.
#[derive(Default)]
struct Gone {
    keys: usize,
    rules: usize,
    memberships: usize,
    sessions: usize,
}

impl Import {
    /// What follows from the rows: meters that rules watch, and what is gone since the last run.
    pub(super) fn settle(&mut self) -> Result<()> {
        let workspaces: Vec<i64> = self.ids.workspaces.values().copied().collect();
        let (keys, rules) = (&self.ids.keys, &self.ids.rules);
        let (members, sign_ins, tokens) = (&self.ids.members, &self.ids.sign_ins, &self.ids.tokens);
        let now = self.ids.now;
        let gone = self.ours.write(|conn| {
            let mut gone = Gone::default();
            for id in &workspaces {
                gone.memberships += ours::end_memberships(conn, *id, members)?;
                gone.sessions += ours::end_sessions(conn, *id, sign_ins, tokens)?;
                gone.keys += ours::end_missing(conn, "api_keys", "revoked_at = $1", now.0.into(), *id, keys)?;
                gone.rules +=
                    ours::end_missing(conn, "alert_rules", "enabled = $1", false.into(), *id, rules)?;
                let text = "UPDATE meters SET has_alerts = EXISTS (
                                SELECT 1 FROM alert_rules r WHERE r.meter_id = meters.id AND r.enabled)
                            WHERE workspace_id = $1";
                ours::execute(conn, text.to_owned(), &[(*id).into()])?;
            }
            Ok(gone)
        })?;
        if gone.keys > 0 {
            self.report.note(format!("{} API keys were withdrawn there since and are revoked", gone.keys));
        }
        if gone.memberships > 0 {
            self.report
                .note(format!("{} memberships ended there since and are taken away", gone.memberships));
        }
        if gone.sessions > 0 {
            self.report.note(format!("{} sessions ended there since and are ended", gone.sessions));
        }
        if gone.rules > 0 {
            self.report.note(format!("{} alert rules were deleted there since and are disabled", gone.rules));
        }
        Ok(())
    }
}
