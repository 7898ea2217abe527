//! Decisions about consumptions of newer servers: what was answered to a key is answered again.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use super::who::{new_or_known, uuid_text};
use super::{Ids, Refusal};
use crate::db::Conn;
use crate::entitlements::sql::decisions::{self as ours_decisions, Decision};
use crate::import::sql::foreign::Kind::{Int, Text};
use crate::import::sql::foreign::{Odd, Row, Table};
use crate::import::sql::ours::{self, Columns, Put};
use crate::metering::event::{self, ledger_key};
use crate::metering::quantity::Quantity;
use crate::metering::time::Timestamp;

pub const DECISIONS: Table = Table {
    name: "consumption_decisions",
    columns: &[
        ("workspace_id", Text),
        ("idempotency_key", Text),
        ("response", Text),
        // copies of what the response says
        ("subject", Text),
        ("meter_name", Text),
        ("accepted", Int),
        ("evaluation_failed", Int),
        ("enforcement", Text),
        ("state", Text),
        ("created_at", Text),
    ],
    order: "",
};

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct TheirDecision {
    accepted: bool,
    #[serde(default)]
    evaluation_failed: bool,
    event: TheirEvent,
    quota: TheirQuota,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct TheirEvent {
    #[serde(rename = "ID", default)]
    id: String,
    metadata: Option<Box<RawValue>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct TheirQuota {
    allowed: bool,
    #[serde(default)]
    state: String,
    subject: String,
    meter_name: String,
    quantity: Box<RawValue>,
    current: Box<RawValue>,
    projected: Box<RawValue>,
    limit: Box<RawValue>,
    remaining: Box<RawValue>,
    overage: Box<RawValue>,
    #[serde(rename = "PlanID")]
    plan_id: Option<String>,
    plan_name: Option<String>,
    period: Option<String>,
    from: Option<String>,
    to: Option<String>,
    period_reset_at: Option<String>,
    retry_after_seconds: Option<i64>,
    #[serde(default)]
    enforcement: String,
    #[serde(default)]
    failure_policy: String,
    #[serde(default)]
    message: String,
}

/// As it is answered here (`crate::entitlements::consume::Quota`).
#[derive(Serialize)]
struct Quota<'a> {
    allowed: bool,
    state: &'a str,
    subject: &'a str,
    meter: &'a str,
    quantity: Quantity,
    current: Quantity,
    projected: Quantity,
    limit: Quantity,
    remaining: Quantity,
    overage: Quantity,
    #[serde(skip_serializing_if = "Option::is_none")]
    plan_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    plan_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    period: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    period_reset_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_seconds: Option<i64>,
    enforcement: &'a str,
    failure_policy: &'a str,
    message: &'a str,
}

fn number(text: &RawValue) -> Result<Quantity, Odd> {
    Quantity::parse(text.get()).map_err(|reject| format!("response has a number that {reject}"))
}

/// Where there was no plan there are empty texts and the year 1.
fn filled(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty())
}

fn time(text: Option<String>) -> Result<Option<Timestamp>, Odd> {
    let Some(text) = filled(text) else { return Ok(None) };
    let at = Timestamp::parse(&text).ok_or("response has a time that cannot be read")?;
    Ok(Some(at).filter(|at| *at != Timestamp::ABSENT))
}

/// One of two words, or the first where there is none.
fn word<'a>(text: &'a str, words: [&'static str; 2]) -> Result<&'a str, Odd> {
    match text {
        "" => Ok(words[0]),
        text if words.contains(&text) => Ok(text),
        other => Err(format!("response has a word that is not known: {other}")),
    }
}

impl TheirQuota {
    fn shown(self) -> Result<(String, String), Odd> {
        let enforcement = word(&self.enforcement, ["advisory", "hard"])?;
        let quota = Quota {
            allowed: self.allowed,
            state: &self.state,
            subject: &self.subject,
            meter: &self.meter_name,
            quantity: number(&self.quantity)?,
            current: number(&self.current)?,
            projected: number(&self.projected)?,
            limit: number(&self.limit)?,
            remaining: number(&self.remaining)?,
            overage: number(&self.overage)?,
            plan_id: filled(self.plan_id),
            plan_name: filled(self.plan_name),
            period: filled(self.period),
            from: time(self.from)?,
            to: time(self.to)?,
            period_reset_at: time(self.period_reset_at)?,
            retry_after_seconds: self.retry_after_seconds.filter(|seconds| *seconds > 0),
            enforcement,
            failure_policy: word(&self.failure_policy, ["fail_open", "fail_closed"])?,
            message: &self.message,
        };
        let text = serde_json::to_string(&quota).map_err(|error| error.to_string())?;
        Ok((text, enforcement.to_owned()))
    }
}

pub fn decision(conn: &mut Conn, ids: &mut Ids, row: &Row) -> Result<Put, Refusal> {
    let (workspace_id, key) = (ids.workspace(row)?, row.text("idempotency_key")?);
    let TheirDecision { accepted, evaluation_failed, event, quota } =
        serde_json::from_str(&row.text("response")?)
            .map_err(|error| format!("response cannot be read: {error}"))?;
    let (subject, meter, state) = (quota.subject.clone(), quota.meter_name.clone(), quota.state.clone());
    for text in [&subject, &meter, &state] {
        event::reject_nul(text)?;
    }
    let (quota, enforcement) = quota.shown()?;
    if quota.contains("\\u0000") {
        return Err("response has a NUL character".into());
    }
    let event_id = match accepted {
        true => Some(Uuid::try_parse(&event.id).map_err(|_| "response has an event without an id")?),
        false => None,
    };
    let metadata = match (event_id, event.metadata) {
        (None, _) => None,
        (Some(_), Some(text)) if text.get() != "null" => {
            Some(event::canonical_metadata(text.get()).ok_or("response has metadata that cannot be read")?)
        }
        (Some(_), _) => Some("{}".to_owned()),
    };
    let decision = Decision {
        workspace_id,
        key: ledger_key(&key),
        idempotency_key: key,
        subject,
        meter,
        accepted,
        evaluation_failed,
        enforcement,
        state,
        event_id: event_id.map(|id| id.as_bytes().to_vec()),
        quota,
        created_at: row.time("created_at")?.0,
        metadata,
    };
    Ok(new_or_known(ours_decisions::add(conn, &[&decision])?))
}

pub const PRUNE_RUNS: Table = Table {
    name: "consumption_decision_prune_runs",
    columns: &[
        ("id", Text),
        ("workspace_id", Text),
        ("before", Text),
        ("dry_run", Int),
        ("deleted", Int),
        ("created_at", Text),
    ],
    order: "",
};

pub fn prune_run(conn: &mut Conn, ids: &mut Ids, row: &Row) -> Result<Put, Refusal> {
    if row.flag("dry_run")? {
        return Err("it was a dry run, of which nothing is kept here".into());
    }
    let columns: Columns = vec![
        ("id", uuid_text(row, "id")?.into()),
        ("workspace_id", ids.workspace(row)?.into()),
        ("decided_before", row.time("before")?.0.into()),
        ("deleted", row.int("deleted")?.into()),
        ("created_at", row.time("created_at")?.0.into()),
    ];
    Ok(new_or_known(ours::add(conn, "decision_prune_runs", &columns)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const REFUSED: &str = r#"{"Accepted":false,"Replayed":false,"EvaluationFailed":false,
        "Event":{"ID":"","IdempotencyKey":"","Subject":"","MeterName":"","Quantity":0,"EventTime":"0001-01-01T00:00:00Z",
                 "ReceivedAt":"0001-01-01T00:00:00Z","Metadata":null},
        "Quota":{"Allowed":false,"State":"exceeded","Subject":"acme","MeterName":"calls","Quantity":0.1,"Current":10,
                 "Projected":10.1,"Limit":10,"Remaining":0,"Overage":0.09999999999999964,"PlanID":"p","PlanName":"Gold",
                 "Period":"month","From":"2026-01-01T00:00:00Z","To":"2026-02-01T00:00:00Z",
                 "PeriodResetAt":"2026-02-01T00:00:00Z","RetryAfterSeconds":60,"Enforcement":"hard",
                 "FailurePolicy":"fail_open","Message":"quota exceeded"}}"#;

    fn quota(text: &str) -> Result<(String, String), Odd> {
        let decision: TheirDecision = serde_json::from_str(text).expect("readable");
        decision.quota.shown()
    }

    #[test]
    fn a_quota_is_written_as_it_is_answered_here() {
        let (text, enforcement) = quota(REFUSED).expect("usable");
        assert_eq!(enforcement, "hard");
        assert!(text.starts_with(
            r#"{"allowed":false,"state":"exceeded","subject":"acme","meter":"calls","quantity":0.1,"#
        ));
        assert!(
            text.contains(
                r#""overage":0.09999999999999964,"plan_id":"p","plan_name":"Gold","period":"month""#
            ),
            "{text}"
        );
        let none = REFUSED
            .replace("\"p\"", "\"\"")
            .replace("\"month\"", "\"\"")
            .replace("2026-01-01", "0001-01-01")
            .replace("\"RetryAfterSeconds\":60", "\"RetryAfterSeconds\":null");
        let (text, _) = quota(&none).expect("usable");
        for absent in ["plan_id", "\"period\"", "\"from\"", "retry_after"] {
            assert!(!text.contains(absent), "{absent}: {text}");
        }
        assert!(quota(&REFUSED.replace("\"hard\"", "\"soft\"")).is_err());
        assert!(quota(&REFUSED.replace("10.1", "1e400")).is_err());
    }
}
