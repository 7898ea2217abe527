//! The hot insert on PostgreSQL: one UNNEST statement per table, all of them prepared.

use std::collections::BTreeMap;

use bigdecimal::BigDecimal;
use diesel::sql_types::{Array, BigInt, Binary, Integer, Nullable, Numeric, SmallInt, Text};
use diesel::{PgConnection, Queryable, RunQueryDsl};
use serde_json::value::RawValue;

use crate::db::DbError;
use crate::db::cluster;
use crate::db::columns::uuid_of;
use crate::db::identity::Link;
use crate::db::partial::{PartArrays, part_columns, part_places, part_sums};
use crate::db::prepared::prepared;
use crate::ingest::insert::{
    DeltaRow, EventRow, ExistingKey, KeyRow, LedgerKey, MeterRow, MeterTypes, RunRow,
};
use crate::metering::event::DimensionSet;
use crate::metering::rollup::{Key, Part};
use crate::metering::time::Timestamp;
use crate::meters::sql::METER_LOCK;
use crate::usage::event_row::EventText;

/// First half of the advisory lock on a replay key; the second half is a hash of it.
const REPLAY_LOCK: i32 = 0x7270_6C00;

prepared!(
    /// Held shared by writers until they commit, exclusively by whoever changes or deletes a meter.
    HoldMeters for PgConnection,
    (class: Integer = i32, ids: Array<BigInt> = Vec<i64>) -> (BigInt, BigInt, MeterTypes),
    "SELECT * FROM hold_meters(?, ?)"
);
prepared!(
    LockReplay for PgConnection,
    (class: Integer = i32, hash: Integer = i32),
    "SELECT pg_advisory_xact_lock(?, ?)"
);
prepared!(
    FindReplay for PgConnection,
    (workspace_id: BigInt = i64, key: Binary = Vec<u8>) -> (Text, Text, BigInt),
    "SELECT accepted, duplicates, payload FROM bulk_replays WHERE workspace_id = ? AND key = ?"
);
prepared!(
    TakeKeys for PgConnection,
    (workspace_ids: Array<BigInt> = Vec<i64>, keys: Array<Binary> = Vec<Vec<u8>>, event_ids: Array<Binary> = Vec<Vec<u8>>,
     subject_ids: Array<BigInt> = Vec<i64>, event_times: Array<BigInt> = Vec<i64>,
     fingerprints: Array<BigInt> = Vec<i64>) -> (BigInt, Binary),
    "INSERT INTO idempotency_keys (workspace_id, key, event_id, subject_id, event_time, fingerprint)
     SELECT * FROM unnest(?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING RETURNING workspace_id, key"
);
prepared!(
    FindTaken for PgConnection,
    (workspace_ids: Array<BigInt> = Vec<i64>, keys: Array<Binary> = Vec<Vec<u8>>)
        -> (BigInt, Binary, Binary, BigInt, BigInt, Text, Nullable<Text>, Nullable<BigInt>, Nullable<Text>, Nullable<Text>, Nullable<Text>),
    "SELECT k.workspace_id, k.key, k.event_id, k.event_time, k.fingerprint,
            s.name, m.name, e.received_at, e.quantity::text, e.idempotency_key, e.metadata::text
     FROM unnest(?, ?) AS wanted (workspace_id, key)
     JOIN idempotency_keys k ON k.workspace_id = wanted.workspace_id AND k.key = wanted.key
     JOIN subjects s ON s.id = k.subject_id
     LEFT JOIN events e ON e.subject_id = k.subject_id AND e.event_time = k.event_time AND e.id = k.event_id
     LEFT JOIN meters m ON m.id = e.meter_id"
);
prepared!(
    /// The same in parts, for keys, events and names that lie on different nodes (`db::cluster`). On one database it is six
    /// times as slow for a thousand keys.
    FindTakenOnNodes for PgConnection,
    (workspace_ids: Array<BigInt> = Vec<i64>, keys: Array<Binary> = Vec<Vec<u8>>)
        -> (BigInt, Binary, Binary, BigInt, BigInt, Text, Nullable<Text>, Nullable<BigInt>, Nullable<Text>, Nullable<Text>, Nullable<Text>),
    "WITH taken AS MATERIALIZED (
         SELECT k.* FROM unnest(?, ?) AS wanted (workspace_id, key)
         JOIN idempotency_keys k ON k.workspace_id = wanted.workspace_id AND k.key = wanted.key
     ), found AS MATERIALIZED (
         SELECT e.id, e.meter_id, e.received_at, e.quantity::text, e.idempotency_key, e.metadata::text
         FROM taken k JOIN events e ON e.subject_id = k.subject_id AND e.event_time = k.event_time AND e.id = k.event_id
     )
     SELECT k.workspace_id, k.key, k.event_id, k.event_time, k.fingerprint,
            s.name, m.name, e.received_at, e.quantity, e.idempotency_key, e.metadata
     FROM taken k JOIN subjects s ON s.id = k.subject_id
     LEFT JOIN found e ON e.id = k.event_id LEFT JOIN meters m ON m.id = e.meter_id"
);
prepared!(
    AddDimensionSets for PgConnection,
    (meter_ids: Array<BigInt> = Vec<i64>, hashes: Array<Binary> = Vec<Vec<u8>>, versions: Array<Integer> = Vec<i32>,
     dimensions: Array<Text> = Vec<String>),
    "INSERT INTO dimension_sets (meter_id, hash, version, dimensions)
     SELECT * FROM unnest(?, ?, ?, ?) ON CONFLICT DO NOTHING"
);
prepared!(
    /// One statement, because each costs a round trip: with few events a commit those are most of the time.
    AddRows for PgConnection,
    (run_workspace_ids: Array<BigInt> = Vec<i64>, run_ids: Array<Binary> = Vec<Vec<u8>>,
     kinds: Array<Text> = Vec<&'static str>, accepted: Array<BigInt> = Vec<i64>, duplicates: Array<BigInt> = Vec<i64>,
     failed: Array<BigInt> = Vec<i64>, created_ats: Array<BigInt> = Vec<i64>,
     request_ids: Array<Nullable<Text>> = Vec<Option<&'a str>>, api_key_ids: Array<Nullable<Text>> = Vec<Option<&'a str>>,
     durations: Array<BigInt> = Vec<i64>,
     delta_meter_ids: Array<BigInt> = Vec<i64>, delta_ids: Array<BigInt> = Vec<i64>, deltas: Array<Binary> = Vec<&'a [u8]>,
     delta_subjects: Array<Binary> = Vec<&'a [u8]>, delta_counts: Array<Binary> = Vec<&'a [u8]>,
     ids: Array<Binary> = Vec<Vec<u8>>, workspace_ids: Array<BigInt> = Vec<i64>, meter_ids: Array<BigInt> = Vec<i64>,
     subject_ids: Array<BigInt> = Vec<i64>, event_times: Array<BigInt> = Vec<i64>, received_ats: Array<BigInt> = Vec<i64>,
     versions: Array<Integer> = Vec<i32>, quantities: Array<Numeric> = Vec<&'a BigDecimal>,
     keys: Array<Nullable<Text>> = Vec<Option<&'a str>>, metadatas: Array<Nullable<Text>> = Vec<Option<&'a str>>,
     rollup_meter_ids: Array<BigInt> = Vec<i64>, grains: Array<SmallInt> = Vec<i16>, starts: Array<BigInt> = Vec<i64>,
     lanes: Array<SmallInt> = Vec<i16>) + [parts: PartArrays<'a>],
    concat!("WITH runs AS (
         INSERT INTO ingestion_runs AS r (workspace_id, id, kind, accepted, duplicates, failed, created_at, request_id,
                                         api_key_id, duration)
         SELECT * FROM unnest(?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
         ON CONFLICT (workspace_id, id) DO UPDATE SET
             accepted = r.accepted + excluded.accepted,
             duplicates = r.duplicates + excluded.duplicates,
             failed = r.failed + excluded.failed,
             duration = excluded.duration
     ), deltas AS (
         INSERT INTO rollup_deltas (meter_id, id, cells, subjects, counts) SELECT * FROM unnest(?, ?, ?, ?, ?)
     ), stored AS (
         INSERT INTO events (id, workspace_id, meter_id, subject_id, event_time, received_at, meter_version, quantity,
                             idempotency_key, metadata)
         SELECT id, workspace_id, meter_id, subject_id, event_time, received_at, version, quantity, key, metadata::jsonb
         FROM unnest(?, ?, ?, ?, ?, ?, ?, ?, ?, ?) AS new (id, workspace_id, meter_id, subject_id, event_time,
                                                           received_at, version, quantity, key, metadata)
     )
     INSERT INTO rollups AS r (meter_id, grain, start, lane, ", part_columns!(), ")
     SELECT * FROM unnest(?, ?, ?, ?, ", part_places!(), ")
     ON CONFLICT (meter_id, grain, start, lane) DO UPDATE SET ", part_sums!(postgres))
);

#[derive(Queryable)]
struct HeldRow {
    stamp: i64,
    now: i64,
    meter: MeterRow,
}

/// The meters, and what time it is for the database. Fails when another database answers than the one that the
/// connection was made to.
pub fn hold_meters(
    conn: &mut PgConnection,
    link: Link,
    ids: &Vec<i64>,
) -> Result<(Vec<MeterRow>, Option<Timestamp>), DbError> {
    let rows: Vec<HeldRow> = HoldMeters { class: &METER_LOCK, ids }.load(conn)?;
    if rows.iter().any(|row| row.stamp != link.stamp) {
        return Err(DbError::AnotherDatabase);
    }
    let now = rows.last().map(|row| Timestamp(row.now));
    Ok((rows.into_iter().map(|row| row.meter).collect(), now))
}

pub fn find_replay(
    conn: &mut PgConnection,
    (workspace_id, key): &LedgerKey,
) -> Result<Option<(String, String, i64)>, DbError> {
    let hash = crate::metering::event::hash128(&[&workspace_id.to_be_bytes(), key]);
    let hash = i32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]]);
    LockReplay { class: &REPLAY_LOCK, hash: &hash }.execute(conn)?;
    let rows: Vec<(String, String, i64)> = FindReplay { workspace_id, key }.load(conn)?;
    Ok(rows.into_iter().next())
}

#[derive(Queryable)]
struct TakenRow {
    workspace_id: i64,
    key: Vec<u8>,
    event_id: Vec<u8>,
    event_time: i64,
    fingerprint: i64,
    subject: String,
    meter: Option<String>,
    received_at: Option<i64>,
    quantity: Option<String>,
    idempotency_key: Option<String>,
    metadata: Option<String>,
}

pub fn claim_keys(conn: &mut PgConnection, rows: &[KeyRow]) -> Result<Vec<ExistingKey>, DbError> {
    let workspace_ids: Vec<i64> = rows.iter().map(|row| row.workspace_id).collect();
    let keys: Vec<Vec<u8>> = rows.iter().map(|row| row.key.clone()).collect();
    let new: Vec<(i64, Vec<u8>)> = TakeKeys {
        workspace_ids: &workspace_ids,
        keys: &keys,
        event_ids: &rows.iter().map(|row| row.event_id.as_bytes().to_vec()).collect(),
        subject_ids: &rows.iter().map(|row| row.subject_id).collect(),
        event_times: &rows.iter().map(|row| row.event_time).collect(),
        fingerprints: &rows.iter().map(|row| row.fingerprint).collect(),
    }
    .load(conn)?;
    if new.len() == rows.len() {
        return Ok(Vec::new());
    }
    let new: std::collections::HashSet<(i64, Vec<u8>)> = new.into_iter().collect();
    let taken: Vec<LedgerKey> =
        rows.iter().map(|row| (row.workspace_id, row.key.clone())).filter(|key| !new.contains(key)).collect();
    find_taken(conn, &taken)
}

/// Those of the keys that are taken.
pub fn find_taken(conn: &mut PgConnection, keys: &[LedgerKey]) -> Result<Vec<ExistingKey>, DbError> {
    let (workspace_ids, keys): (Vec<i64>, Vec<Vec<u8>>) = keys.iter().cloned().unzip();
    let (workspace_ids, keys) = (&workspace_ids, &keys);
    let taken: Vec<TakenRow> = match cluster::is_distributed() {
        false => FindTaken { workspace_ids, keys }.load(conn)?,
        true => FindTakenOnNodes { workspace_ids, keys }.load(conn)?,
    };
    taken.into_iter().map(taken_of).collect()
}

fn taken_of(row: TakenRow) -> Result<ExistingKey, DbError> {
    let TakenRow { event_id, event_time, subject, .. } = row;
    let event = match (row.meter, row.received_at, row.quantity) {
        (Some(meter), Some(received_at), Some(quantity)) => Some(
            EventText {
                id: event_id.clone(),
                subject: subject.clone(),
                meter,
                event_time,
                received_at,
                quantity,
                idempotency_key: row.idempotency_key,
                metadata: row.metadata,
            }
            .into_event(false)?,
        ),
        _ => None,
    };
    let (key, event_id, subject) = ((row.workspace_id, row.key), uuid_of(&event_id)?, Some(subject));
    Ok(ExistingKey { key, event_id, event_time, fingerprint: row.fingerprint, subject, event })
}

pub fn add_dimension_sets(
    conn: &mut PgConnection,
    new: &BTreeMap<(i64, [u8; 16]), &DimensionSet>,
) -> Result<(), DbError> {
    AddDimensionSets {
        meter_ids: &new.keys().map(|(meter_id, _)| *meter_id).collect(),
        hashes: &new.keys().map(|(_, hash)| hash.to_vec()).collect(),
        versions: &new.values().map(|set| set.version).collect(),
        dimensions: &new.values().map(|set| set.json.clone()).collect(),
    }
    .execute(conn)?;
    Ok(())
}

pub fn add_rows(
    conn: &mut PgConnection,
    rows: &[EventRow],
    runs: &[RunRow],
    totals: &BTreeMap<Key, Part>,
    deltas: &[DeltaRow],
    lane: i16,
) -> Result<(), DbError> {
    AddRows {
        run_workspace_ids: &runs.iter().map(|run| run.workspace_id).collect(),
        run_ids: &runs.iter().map(|run| run.id.as_bytes().to_vec()).collect(),
        kinds: &runs.iter().map(|run| run.kind.as_str()).collect(),
        accepted: &runs.iter().map(|run| run.accepted).collect(),
        duplicates: &runs.iter().map(|run| run.duplicates).collect(),
        failed: &runs.iter().map(|run| run.failed).collect(),
        created_ats: &runs.iter().map(|run| run.created_at).collect(),
        request_ids: &runs.iter().map(|run| run.request_id.as_deref()).collect(),
        api_key_ids: &runs.iter().map(|run| run.api_key_id.as_deref()).collect(),
        durations: &runs.iter().map(|run| run.duration).collect(),

        delta_meter_ids: &deltas.iter().map(|row| row.meter_id).collect(),
        delta_ids: &deltas.iter().map(|row| row.id).collect(),
        deltas: &deltas.iter().map(|row| row.delta.cells.as_slice()).collect(),
        delta_subjects: &deltas.iter().map(|row| row.delta.subjects.as_slice()).collect(),
        delta_counts: &deltas.iter().map(|row| row.delta.counts.as_slice()).collect(),

        ids: &rows.iter().map(|row| row.event.id.as_bytes().to_vec()).collect(),
        workspace_ids: &rows.iter().map(|row| row.workspace_id).collect(),
        meter_ids: &rows.iter().map(|row| row.event.meter.id).collect(),
        subject_ids: &rows.iter().map(|row| row.subject_id).collect(),
        event_times: &rows.iter().map(|row| row.event.time.0).collect(),
        received_ats: &rows.iter().map(|row| row.event.received_at.0).collect(),
        versions: &rows.iter().map(|row| row.event.meter.version).collect(),
        quantities: &rows.iter().map(|row| row.event.quantity.decimal()).collect(),
        keys: &rows.iter().map(|row| row.event.key.as_deref()).collect(),
        metadatas: &rows.iter().map(|row| row.event.metadata.as_deref().map(RawValue::get)).collect(),

        rollup_meter_ids: &totals.keys().map(|key| key.meter_id).collect(),
        grains: &totals.keys().map(|key| key.grain as i16).collect(),
        starts: &totals.keys().map(|key| key.start.0).collect(),
        lanes: &vec![lane; totals.len()],
        parts: &PartArrays::of(totals.values()),
    }
    .execute(conn)?;
    Ok(())
}
