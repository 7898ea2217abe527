//! The hot insert on SQLite: cached single-row statements in a loop, inside one immediate transaction; measured
//! faster than multi-row VALUES and json_each.

mod key_ledger;

pub use key_ledger::{Progress, Recent};

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use diesel::sql_types::{BigInt, Binary, Integer, Nullable, SmallInt, Text};
use diesel::{OptionalExtension, RunQueryDsl, SqliteConnection, sql_query};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::db::columns::uuid_of;
use crate::ingest::insert::{
    DeltaRow, EventRow, ExistingKey, KeyRow, LedgerKey, MeterRow, MeterTypes, RunRow,
};
use crate::usage::event_row::{EventText, event_columns};
use key_ledger::{TakenRow, find_anywhere};

use crate::db::DbError;
use crate::db::identity::Link;
use crate::db::partial::{PartValues, part_columns, part_places, part_sums};
use crate::db::prepared::prepared;
use crate::metering::delta::Delta;
use crate::metering::event::DimensionSet;
use crate::metering::rollup::{Key, Part};
use crate::metering::time::{HOUR, Timestamp};

prepared!(
    /// With what SQLite calls the version of the file, in one statement because it is asked for with every commit.
    MeterVersion for SqliteConnection,
    (id: BigInt = i64) -> (BigInt, MeterTypes),
    "SELECT (SELECT data_version FROM pragma_data_version), m.id, m.public_id, m.version, m.has_alerts, w.id,
            w.assignment_version
     FROM meters m JOIN workspaces w ON w.id = m.workspace_id WHERE m.id = ?"
);
prepared!(
    FindReplay for SqliteConnection,
    (workspace_id: BigInt = i64, key: Binary = Vec<u8>) -> (Text, Text, BigInt),
    "SELECT accepted, duplicates, payload FROM bulk_replays WHERE workspace_id = ? AND key = ?"
);
prepared!(
    FindRun for SqliteConnection,
    (workspace_id: BigInt = i64, id: Binary = [u8]) -> BigInt,
    "SELECT workspace_id FROM ingestion_runs WHERE workspace_id = ? AND id = ?"
);
prepared!(
    FindName for SqliteConnection,
    (id: BigInt = i64) -> Text,
    "SELECT name FROM subjects WHERE id = ?"
);
prepared!(
    AddDimensionSet for SqliteConnection,
    (meter_id: BigInt = i64, hash: Binary = [u8], version: Integer = i32, dimensions: Text = String),
    "INSERT INTO dimension_sets (meter_id, hash, version, dimensions) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING"
);
prepared!(
    AddEvent for SqliteConnection,
    (id: Binary = [u8], workspace_id: BigInt = i64, meter_id: BigInt = i64, subject_id: BigInt = i64,
     event_time: BigInt = i64, received_at: BigInt = i64, version: Integer = i32, quantity: Binary = Vec<u8>,
     key: Nullable<Text> = Option<String>, metadata: Nullable<Text> = Option<&'a str>),
    "INSERT INTO events (id, workspace_id, meter_id, subject_id, event_time, received_at, meter_version, quantity,
                         idempotency_key, metadata) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
);
prepared!(
    AddRun for SqliteConnection,
    (workspace_id: BigInt = i64, id: Binary = [u8], kind: Text = str, accepted: BigInt = i64, duplicates: BigInt = i64,
     failed: BigInt = i64, created_at: BigInt = i64, request_id: Nullable<Text> = Option<String>,
     api_key_id: Nullable<Text> = Option<String>, duration: BigInt = i64),
    "INSERT INTO ingestion_runs AS r (workspace_id, id, kind, accepted, duplicates, failed, created_at, request_id,
                                      api_key_id, duration)
     VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
     ON CONFLICT (workspace_id, id) DO UPDATE SET
         accepted = r.accepted + excluded.accepted,
         duplicates = r.duplicates + excluded.duplicates,
         failed = r.failed + excluded.failed,
         duration = excluded.duration"
);
prepared!(
    AddRollup for SqliteConnection,
    (meter_id: BigInt = i64, grain: SmallInt = i16, start: BigInt = i64, lane: SmallInt = i16) + [part: PartValues],
    concat!(
        "INSERT INTO rollups AS r (meter_id, grain, start, lane, ", part_columns!(), ")
         VALUES (?, ?, ?, ?, ", part_places!(), ")
         ON CONFLICT (meter_id, grain, start, lane) DO UPDATE SET ", part_sums!(sqlite)
    )
);
prepared!(
    AddDelta for SqliteConnection,
    (meter_id: BigInt = i64, id: BigInt = i64, cells: Binary = Vec<u8>, subjects: Binary = Vec<u8>, counts: Binary = Vec<u8>),
    "INSERT INTO rollup_deltas (meter_id, id, cells, subjects, counts) VALUES (?, ?, ?, ?, ?)"
);

/// The run of a committed transaction, by workspace.
pub type LastRun = (i64, Uuid);

/// What the writer last saw of the file. Nobody else writes events, so as long as the last run is there, so is
/// everything before it; after a restore in place it is not.
#[derive(Default)]
pub struct Watch(Mutex<Seen>);

#[derive(Default)]
struct Seen {
    /// Connection and what SQLite called the file's version there: it stays while no other connection writes.
    at: Option<(u64, i64)>,
    last_run: Option<LastRun>,
}

impl Watch {
    /// Fails when the file went back in time. To be called in a transaction of the writer.
    fn check(&self, conn: &mut SqliteConnection, link: Link, version: i64) -> Result<(), DbError> {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.at == Some((link.connection, version)) {
            return Ok(());
        }
        let is_continued = match (&seen.last_run, seen.at) {
            (Some((workspace_id, id)), _) => {
                let found: Option<i64> =
                    FindRun { workspace_id, id: id.as_bytes() }.get_result(conn).optional()?;
                found.is_some()
            }
            // nothing is remembered of the file yet
            (None, None) => true,
            (None, Some(_)) => false,
        };
        if !is_continued {
            return Err(DbError::AnotherDatabase);
        }
        seen.at = Some((link.connection, version));
        Ok(())
    }

    /// To be called once the transaction is committed.
    pub fn remember(&self, run: LastRun) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).last_run = Some(run);
    }
}

/// The meters as they are, and proof that the file is the one that was written before.
pub fn meter_versions(
    conn: &mut SqliteConnection,
    link: Link,
    watch: &Watch,
    ids: &[i64],
) -> Result<Vec<MeterRow>, DbError> {
    let mut versions = Vec::with_capacity(ids.len());
    for id in ids {
        let row: Option<(i64, MeterRow)> = MeterVersion { id }.get_result(conn).optional()?;
        let Some((file, meter)) = row else { continue };
        if versions.is_empty() {
            watch.check(conn, link, file)?;
        }
        versions.push(meter);
    }
    Ok(versions)
}

pub fn find_replay(
    conn: &mut SqliteConnection,
    (workspace_id, key): &LedgerKey,
) -> Result<Option<(String, String, i64)>, DbError> {
    Ok(FindReplay { workspace_id, key }.get_result(conn).optional()?)
}

/// Adds the keys that are new to the ledger; returns the others.
pub fn claim_keys(
    conn: &mut SqliteConnection,
    recent: &Recent,
    rows: &[KeyRow],
) -> Result<(Vec<ExistingKey>, Progress), DbError> {
    let (found, progress) = recent.take(conn, rows)?;
    let taken = found.into_iter().map(|(key, row)| taken_of(conn, key, row)).collect::<Result<_, _>>()?;
    Ok((taken, progress))
}

/// Those of the keys that are taken.
pub fn find_taken(
    conn: &mut SqliteConnection,
    recent: Option<&Recent>,
    keys: &[LedgerKey],
) -> Result<Vec<ExistingKey>, DbError> {
    let mut taken = Vec::new();
    for key in keys {
        let found = match recent {
            Some(recent) => recent.find(conn, key)?,
            None => find_anywhere(conn, key)?,
        };
        if let Some(row) = found {
            taken.push(taken_of(conn, key.clone(), row)?);
        }
    }
    Ok(taken)
}

fn taken_of(conn: &mut SqliteConnection, key: LedgerKey, row: TakenRow) -> Result<ExistingKey, DbError> {
    let TakenRow { event_id, subject_id, event_time, fingerprint } = row;
    let text = format!(
        "SELECT {} FROM events e JOIN meters m ON m.id = e.meter_id JOIN subjects s ON s.id = e.subject_id
         WHERE e.hour = $1 AND e.subject_id = $2 AND e.event_time = $3 AND e.id = $4",
        event_columns(false)
    );
    let event: Option<EventText> = sql_query(text)
        .bind::<BigInt, _>(Timestamp(event_time).floor(HOUR).0)
        .bind::<BigInt, _>(subject_id)
        .bind::<BigInt, _>(event_time)
        .bind::<Binary, _>(&event_id)
        .get_result(conn)
        .optional()?;
    let subject = match event {
        Some(_) => None,
        None => FindName { id: &subject_id }.get_result(conn).optional()?,
    };
    Ok(ExistingKey {
        key,
        event_id: uuid_of(&event_id)?,
        event_time,
        fingerprint,
        subject,
        event: event.map(|event| event.into_event(true)).transpose()?,
    })
}

pub fn add_dimension_sets(
    conn: &mut SqliteConnection,
    new: &BTreeMap<(i64, [u8; 16]), &DimensionSet>,
) -> Result<(), DbError> {
    for ((meter_id, hash), set) in new {
        let (version, dimensions) = (&set.version, &set.json);
        AddDimensionSet { meter_id, hash, version, dimensions }.execute(conn)?;
    }
    Ok(())
}

pub fn add_events(conn: &mut SqliteConnection, rows: &[EventRow]) -> Result<(), DbError> {
    for EventRow { event, workspace_id, subject_id } in rows {
        AddEvent {
            id: event.id.as_bytes(),
            workspace_id,
            meter_id: &event.meter.id,
            subject_id,
            event_time: &event.time.0,
            received_at: &event.received_at.0,
            version: &event.meter.version,
            quantity: &event.quantity.to_sortable(),
            key: &event.key,
            metadata: &event.metadata.as_deref().map(RawValue::get),
        }
        .execute(conn)?;
    }
    Ok(())
}

pub fn add_runs(conn: &mut SqliteConnection, runs: &[RunRow]) -> Result<(), DbError> {
    for run in runs {
        AddRun {
            workspace_id: &run.workspace_id,
            id: run.id.as_bytes(),
            kind: run.kind.as_str(),
            accepted: &run.accepted,
            duplicates: &run.duplicates,
            failed: &run.failed,
            created_at: &run.created_at,
            request_id: &run.request_id,
            api_key_id: &run.api_key_id,
            duration: &run.duration,
        }
        .execute(conn)?;
    }
    Ok(())
}

pub fn add_rollups(
    conn: &mut SqliteConnection,
    parts: &BTreeMap<Key, Part>,
    lane: i16,
) -> Result<(), DbError> {
    for (key, part) in parts {
        let Some(part) = &PartValues::of(part) else { continue };
        let (meter_id, grain, start) = (&key.meter_id, &(key.grain as i16), &key.start.0);
        AddRollup { meter_id, grain, start, lane: &lane, part }.execute(conn)?;
    }
    Ok(())
}

pub fn add_deltas(conn: &mut SqliteConnection, deltas: &[DeltaRow]) -> Result<(), DbError> {
    for DeltaRow { meter_id, id, delta } in deltas {
        let Delta { cells, subjects, counts, .. } = delta;
        AddDelta { meter_id, id, cells, subjects, counts }.execute(conn)?;
    }
    Ok(())
}
