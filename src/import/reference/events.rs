//! Events: read as they lie, checked, and handed to the insert that all events go through, so that roll-ups, subjects,
//! counters and the key ledger come out as if they had been sent here. An event that is stored already is found by its
//! key, or by its id when it has none, so that any run may break off and begin anew.

use std::collections::BTreeMap;
use std::sync::Arc;

use uuid::Uuid;

use super::{Ids, Import, id_of};
use crate::blocking;
use crate::error::{Code, Error, Result};
use crate::import::progress::Progress;
use crate::import::sql::foreign::Kind::{Real, Text};
use crate::import::sql::foreign::{Odd, Row, Table};
use crate::import::sql::ours::{self, Put};
use crate::ingest::Origin;
use crate::ingest::insert::{self, Batch, Kind, Outcome, WriteCache};
use crate::metering::event::{self, Event, Foreign as ForeignEvent, hash128};
use crate::metering::json;
use crate::metering::time::Timestamp;
use crate::usage::{fold, settle};

pub const EVENTS: Table = Table {
    name: "usage_events",
    columns: &[
        ("id", Text),
        ("workspace_id", Text),
        ("idempotency_key", Text),
        ("subject", Text),
        ("meter_name", Text),
        ("quantity", Real),
        ("event_time", Text),
        ("received_at", Text),
        ("metadata", Text),
    ],
    order: "",
};

/// Events in one transaction: enough that a commit costs little of it, and few enough to be held several times.
const EVENTS_AT_ONCE: usize = 4_000;

fn event_of(ids: &Ids, row: &Row) -> Result<(i64, Event), Odd> {
    let workspace_id = ids.workspace(row)?;
    let meter = ids.meter(workspace_id, row)?;
    let id = row.text("id")?;
    let id = Uuid::try_parse(&id).ok().filter(|uuid| uuid.hyphenated().to_string() == id);
    let metadata = row.text("metadata")?;
    let quantity = row.quantity("quantity")?;
    if !quantity.is_positive() {
        return Err("quantity is not greater than 0".into());
    }
    let foreign = ForeignEvent {
        id: id.ok_or("id is no UUID in lower case")?,
        subject: row.text("subject")?,
        time: row.time("event_time")?,
        received_at: row.time("received_at")?,
        quantity,
        key: row.optional("idempotency_key")?,
        metadata: json::parse_object(&metadata).ok_or("metadata is no JSON object that can be read")?,
    };
    let taken = event::take_over(&meter, foreign).map_err(|error| match error.code {
        // as a door says it
        Code::InvalidJson => "metadata has a number that is out of range".to_owned(),
        _ => error.message.strip_prefix("invalid input: ").unwrap_or(&error.message).to_owned(),
    })?;
    Ok((workspace_id, taken))
}

/// The run that the events of a workspace are written down as while they come in. Always the same, so that what a
/// killed run left behind is found.
fn run_id(workspace_id: i64) -> Uuid {
    derived_id(Timestamp(0), &[b"import", &workspace_id.to_be_bytes()])
}

/// A UUIDv7 of this time that is the same for the same parts.
pub fn derived_id(at: Timestamp, parts: &[&[u8]]) -> Uuid {
    let hash = hash128(parts);
    let mut random = [0; 10];
    random.copy_from_slice(&hash[..10]);
    uuid::Builder::from_unix_timestamp_millis((at.0 / 1_000).max(0).unsigned_abs(), &random).into_uuid()
}

impl Import {
    pub(super) fn events(&mut self) -> Result<()> {
        let total = self.theirs.count(EVENTS.name)?;
        let mut progress = Progress::new("events", total);
        self.note_columns(&EVENTS);
        let known = WriteCache::default();
        let Import { theirs, ours, report, ids, tally, rolled } = self;
        let read = |hand: &mut dyn FnMut(Vec<Row>) -> Result<()>| theirs.each(&EVENTS, EVENTS_AT_ONCE, hand);
        blocking::ahead(read, |rows| {
            let mut batches: BTreeMap<i64, Batch> = BTreeMap::new();
            for row in &rows {
                match event_of(ids, row) {
                    Ok((workspace_id, event)) => {
                        let batch =
                            batches.entry(workspace_id).or_insert_with(|| batch(workspace_id, ids.now));
                        batch.events.push(event);
                    }
                    Err(odd) => report.left_out(EVENTS.name, &id_of(&EVENTS, row), &odd)?,
                }
            }
            let batches: Vec<Arc<Batch>> = batches.into_values().map(Arc::new).collect();
            let link = ours.link();
            let (outcomes, learned) = ours.write(|conn| insert::insert(conn, link, &batches, 0, &known))?;
            known.remember(learned);
            for (batch, outcome) in batches.iter().zip(outcomes) {
                let Outcome::Stored(originals) = outcome else {
                    return Err(Error::conflict("a meter was changed meanwhile: run the import again"));
                };
                for (event, original) in batch.events.iter().zip(originals) {
                    match original {
                        Some(other) if other.event.id != event.id.to_string() => {
                            let reason =
                                format!("its idempotency key belongs to another event: {}", other.event.id);
                            report.left_out(EVENTS.name, &event.id.to_string(), &reason)?;
                        }
                        Some(other) if other.conflict => {
                            let reason = "its id or key belongs to an event with other values";
                            report.left_out(EVENTS.name, &event.id.to_string(), reason)?;
                        }
                        original => {
                            report.taken(
                                EVENTS.name,
                                if original.is_some() { Put::Known } else { Put::New },
                                1,
                            );
                            tally.add(event);
                            rolled.add(event);
                        }
                    }
                }
            }
            progress.add(rows.len());
            Ok(())
        })?;
        self.fold()?;
        self.forget_runs()
    }

    /// What the commits left is folded here and not by the server's first minutes.
    pub(super) fn fold(&mut self) -> Result<()> {
        for meter in self.ids.meters.values() {
            while self.ours.write(|conn| fold::fold(conn, meter.id))? {}
            while self.ours.write(|conn| settle::settle(conn, meter.id))? {}
        }
        Ok(())
    }

    /// The runs of the old server are what is listed.
    fn forget_runs(&mut self) -> Result<()> {
        let workspaces: Vec<i64> = self.ids.workspaces.values().copied().collect();
        self.ours.write(|conn| {
            for id in &workspaces {
                let text = "DELETE FROM ingestion_runs WHERE workspace_id = $1 AND id = $2".to_owned();
                ours::execute(conn, text, &[(*id).into(), run_id(*id).as_bytes().to_vec().into()])?;
            }
            Ok(())
        })
    }
}

fn batch(workspace_id: i64, now: Timestamp) -> Batch {
    Batch {
        origin: Origin::without_call(workspace_id, run_id(workspace_id)),
        kind: Kind::Bulk,
        events: Vec::new(),
        failed: 0,
        replay_key: None,
        received_at: now,
        consumes: None,
    }
}
