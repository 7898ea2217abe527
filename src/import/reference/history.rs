//! What was done with usage: calls, prune runs, exports.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::events::derived_id;
use super::who::{new_or_known, uuid_text};
use super::{Ids, Refusal};
use crate::db::Conn;
use crate::exports::job::ExportQuery;
use crate::import::sql::foreign::Kind::{Int, Text};
use crate::import::sql::foreign::{Odd, Row, Table};
use crate::import::sql::ours::{self, Columns, Put};
use crate::metering::event::{self, InputQuantity, ledger_key};
use crate::metering::stored::{self, StoredEvent, encode_replay};
use crate::metering::time::Timestamp;
use crate::retention::sql::PrunedMeter;

pub const PRUNE_RUNS: Table = Table {
    name: "usage_prune_runs",
    columns: &[
        ("id", Text),
        ("workspace_id", Text),
        ("dry_run", Int),
        ("deleted", Int),
        ("meters", Text),
        ("created_at", Text),
    ],
    order: "",
};

#[derive(Deserialize)]
struct TheirPruned {
    meter_name: String,
    before: String,
    deleted: i64,
}

/// What was pruned there is not complete here either.
pub fn prune_run(conn: &mut Conn, ids: &mut Ids, row: &Row) -> Result<Put, Refusal> {
    let (workspace_id, created_at) = (ids.workspace(row)?, row.time("created_at")?);
    let dry_run = row.flag("dry_run")?;
    let listed: Vec<TheirPruned> = serde_json::from_str(&row.text("meters")?)
        .map_err(|error| format!("meters cannot be read: {error}"))?;
    let mut meters = Vec::with_capacity(listed.len());
    for TheirPruned { meter_name, before, deleted } in listed {
        let before = Timestamp::parse(&before).ok_or("meters has a cut-off that is no time")?.0;
        let meter = ids.meters.get(&(workspace_id, meter_name.clone())).filter(|_| !dry_run && deleted > 0);
        if let Some(meter) = meter {
            crate::retention::sql::set_pruned_before(conn, &[meter.id], Timestamp(before))?;
        }
        meters.push(PrunedMeter { meter: meter_name, before, deleted });
    }
    let columns: Columns = vec![
        ("workspace_id", workspace_id.into()),
        ("id", derived_id(created_at, &[b"prune", row.text("id")?.as_bytes()]).as_bytes().to_vec().into()),
        ("deleted", row.int("deleted")?.into()),
        ("dry_run", dry_run.into()),
        ("meters", serde_json::to_string(&meters).map_err(|error| error.to_string())?.into()),
        ("created_at", created_at.0.into()),
    ];
    Ok(new_or_known(ours::add(conn, "prune_runs", &columns)?))
}

pub const INGESTIONS: Table = Table {
    name: "usage_ingestions",
    columns: &[
        ("id", Text),
        ("workspace_id", Text),
        ("kind", Text),
        ("accepted", Int),
        ("duplicates", Int),
        ("failed", Int),
        ("created_at", Text),
    ],
    order: "",
};

pub fn ingestion(conn: &mut Conn, ids: &mut Ids, row: &Row) -> Result<Put, Refusal> {
    let (kind, created_at) = (row.text("kind")?, row.time("created_at")?);
    if !["single", "bulk", "stream"].contains(&kind.as_str()) {
        return Err(format!("there is no such kind of call: {kind}").into());
    }
    let columns: Columns = vec![
        ("workspace_id", ids.workspace(row)?.into()),
        ("id", derived_id(created_at, &[b"run", row.text("id")?.as_bytes()]).as_bytes().to_vec().into()),
        ("kind", kind.into()),
        ("accepted", row.int("accepted")?.into()),
        ("duplicates", row.int("duplicates")?.into()),
        ("failed", row.int("failed")?.into()),
        ("created_at", created_at.0.into()),
    ];
    Ok(new_or_known(ours::add(conn, "ingestion_runs", &columns)?))
}

pub const BULK: Table = Table {
    name: "bulk_usage_ingestions",
    columns: &[("workspace_id", Text), ("idempotency_key", Text), ("response", Text), ("created_at", Text)],
    order: "",
};

/// An event as an answer has it.
#[derive(Deserialize)]
struct Answered {
    id: String,
    #[serde(default)]
    idempotency_key: String,
    subject: String,
    // written by one program and stored by another: both names were seen
    #[serde(alias = "meter")]
    meter_name: String,
    quantity: InputQuantity,
    #[serde(alias = "timestamp")]
    event_time: String,
    received_at: String,
    metadata: Option<Box<RawValue>>,
}

#[derive(Deserialize, Default)]
struct Answer {
    accepted: Option<Vec<Answered>>,
    duplicates: Option<Vec<Answered>>,
}

impl Answered {
    fn stored(self) -> Result<StoredEvent, Odd> {
        let time = |text: &str| Timestamp::parse(text).ok_or("response has a time that cannot be read");
        let InputQuantity(quantity) = self.quantity;
        let metadata = match self.metadata {
            Some(text) if text.get() != "null" => event::canonical_metadata(text.get()),
            _ => Some("{}".to_owned()),
        };
        let metadata = metadata.and_then(|text| RawValue::from_string(text).ok());
        Ok(StoredEvent {
            timestamp: time(&self.event_time)?,
            received_at: time(&self.received_at)?,
            quantity: quantity.map_err(|reject| format!("response has a quantity that {reject}"))?,
            metadata: metadata.ok_or("response has metadata that cannot be read")?,
            id: self.id,
            idempotency_key: Some(self.idempotency_key).filter(|key| !key.is_empty()),
            subject: self.subject,
            meter: self.meter_name,
            pruned: false,
            conflict: false,
            conflict_fields: Vec::new(),
        })
    }
}

/// What a call was answered, to be answered again. Its items that were refused are not known; which items it had in
/// which order neither, so that a repetition is not compared.
pub fn bulk(conn: &mut Conn, ids: &mut Ids, row: &Row) -> Result<Put, Refusal> {
    let text = row.text("response")?;
    let unreadable = |error: serde_json::Error| format!("response cannot be read: {error}");
    let answer: Answer = match text.trim_start().starts_with('[') {
        true => Answer { accepted: Some(serde_json::from_str(&text).map_err(unreadable)?), duplicates: None },
        false => serde_json::from_str(&text).map_err(unreadable)?,
    };
    let kept = |list: Option<Vec<Answered>>| -> Result<String, Refusal> {
        let list: Result<Vec<StoredEvent>, Odd> =
            list.unwrap_or_default().into_iter().map(Answered::stored).collect();
        let answered = list?.into_iter().map(|event| stored::Answered { place: None, event });
        Ok(encode_replay(answered)?)
    };
    let columns: Columns = vec![
        ("workspace_id", ids.workspace(row)?.into()),
        ("key", ledger_key(&row.text("idempotency_key")?).into()),
        ("accepted", kept(answer.accepted)?.into()),
        ("duplicates", kept(answer.duplicates)?.into()),
        ("payload", crate::ingest::insert::PAYLOAD_UNKNOWN.into()),
        ("created_at", row.time("created_at")?.0.into()),
    ];
    Ok(new_or_known(ours::add(conn, "bulk_replays", &columns)?))
}

pub const EXPORTS: Table = Table {
    name: "usage_export_jobs",
    columns: &[
        ("id", Text),
        ("workspace_id", Text),
        ("kind", Text),
        ("status", Text),
        ("query_json", Text),
        ("error", Text),
        ("artifact_size", Int),
        ("created_at", Text),
        ("updated_at", Text),
        ("completed_at", Text),
    ],
    order: "",
};

/// Files stay where they are: a completed export is an expired one here, and one that waited or ran is canceled.
pub fn export(conn: &mut Conn, ids: &mut Ids, row: &Row) -> Result<Put, Refusal> {
    let query: ExportQuery = serde_json::from_str(&row.text("query_json")?)
        .map_err(|error| format!("query_json cannot be read: {error}"))?;
    let (kind, status, updated_at) = (row.text("kind")?, row.text("status")?, row.time("updated_at")?);
    if !["usage_buckets", "usage_events"].contains(&kind.as_str()) {
        return Err(format!("there is no such kind of export: {kind}").into());
    }
    let completed_at = row.optional_time("completed_at")?;
    let (status, expired_at) = match status.as_str() {
        "completed" => ("completed", Some(ids.now.0)),
        "failed" => ("failed", None),
        "queued" | "running" | "canceled" => ("canceled", None),
        other => return Err(format!("there is no such status: {other}").into()),
    };
    let size = row.optional_int("artifact_size").filter(|_| status == "completed");
    let columns: Columns = vec![
        ("id", uuid_text(row, "id")?.into()),
        ("workspace_id", ids.workspace(row)?.into()),
        ("kind", kind.into()),
        ("status", status.into()),
        ("query", serde_json::to_string(&query).map_err(|error| error.to_string())?.into()),
        ("error", row.filled("error")?.into()),
        ("row_count", 0.into()),
        ("artifact_size", size.into()),
        ("artifact_hash", None::<String>.into()),
        ("created_at", row.time("created_at")?.0.into()),
        ("updated_at", updated_at.0.into()),
        ("completed_at", completed_at.or(Some(updated_at)).map(|at| at.0).into()),
        ("expired_at", expired_at.into()),
    ];
    Ok(new_or_known(ours::add(conn, "export_jobs", &columns)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metering::quantity::Quantity;

    #[test]
    fn answers_are_read_under_both_names() {
        for names in [("meter_name", "event_time"), ("meter", "timestamp")] {
            let text = format!(
                r#"{{"id":"a","idempotency_key":"","subject":"s","{}":"m","quantity":1e21,"{}":"2026-01-01T00:00:00.5Z","received_at":"2026-01-01T00:00:00Z","metadata":{{"a":1.0}}}}"#,
                names.0, names.1
            );
            let answered: Answered = serde_json::from_str(&text).expect("readable");
            let stored = answered.stored().expect("usable");
            assert_eq!(stored.quantity, Quantity::parse("1000000000000000000000").expect("a number"));
            assert_eq!((stored.idempotency_key, stored.metadata.get()), (None, r#"{"a":1}"#));
        }
    }
}
