//! The raw ceiling: the same rows into the same tables by a bare loop, without a server in between. Rows are made
//! before the clock starts, by the server's own rules, so they are exactly those that it would write. What the
//! server does besides (meter locks, subjects, ingestion runs, answers) is left out on purpose.

mod postgres;
mod sqlite;

use std::sync::Arc;
use std::time::{Duration, Instant};

use diesel::RunQueryDsl;
use open_spanner::chance;
use open_spanner::db::Conn;
use open_spanner::db::identity::new_id;
use open_spanner::metering::delta::{self, Delta};
use open_spanner::metering::event::{self, Event, Input};
use open_spanner::metering::meter::{Aggregation, DimensionInput, Meter, parse_dimensions};
use open_spanner::metering::rollup::{self, Key, Part};
use open_spanner::metering::time::Timestamp;

use crate::Outcome;
use crate::database::Place;
use crate::workload::Workload;

pub const BATCH: u64 = 1_000;

/// The rows of one transaction, each table in the order of its key.
pub struct Rows {
    pub ledger: Vec<(Vec<u8>, usize)>,
    pub events: Vec<(Event, i64)>,
    pub rollups: Vec<(Key, Part)>,
    pub deltas: Vec<(i64, i64, Delta)>,
}

const WORKSPACE: i64 = 1;

fn meter(name: &str) -> Outcome<Meter> {
    let input = |name: &str| DimensionInput {
        name: Some(name.to_owned()),
        kind: Some("string".to_owned()),
        ..DimensionInput::default()
    };
    let dimensions = parse_dimensions(vec![input("region"), input("model")], 1);
    Ok(Meter {
        id: 1,
        public_id: String::new(),
        workspace_id: WORKSPACE,
        name: name.to_owned(),
        description: String::new(),
        unit: String::new(),
        aggregation: Aggregation::Sum,
        dimensions: dimensions.map_err(|error| error.message)?,
        version: 1,
        event_retention_days: 90,
        pruned_before: None,
        options: Default::default(),
        created_at: Timestamp(0),
    })
}

fn rows(workload: &Workload, meter: &Arc<Meter>, batch: u64) -> Outcome<Rows> {
    let (text, _) = workload.bulk(batch * BATCH..(batch + 1) * BATCH);
    let inputs: Vec<Input> = serde_json::from_str(&text)?;
    let mut events = Vec::with_capacity(inputs.len());
    for input in inputs {
        let event =
            event::validate(meter, input, Timestamp::now(), chance::id()).map_err(|error| error.message)?;
        let number = event.subject.rsplit('-').next().unwrap_or_default().parse::<i64>()?;
        events.push((event, number + 1));
    }
    let keys =
        events.iter().map(|(event, _)| event.key.as_deref().map(event::ledger_key).unwrap_or_default());
    let mut ledger: Vec<(Vec<u8>, usize)> = keys.enumerate().map(|(at, key)| (key, at)).collect();
    ledger.sort();
    let rollups = rollup::of_events(events.iter().map(|(event, _)| event)).into_iter().collect();
    let deltas = delta::of_events(events.iter().map(|(event, subject)| (event, *subject)));
    let deltas = deltas.into_iter().map(|(meter_id, delta)| (meter_id, new_id(), delta)).collect();
    Ok(Rows { ledger, events, rollups, deltas })
}

pub struct Ceiling {
    pub rate: f64,
    pub connections: usize,
    /// Processor time of the loop and of the database per event, microseconds.
    pub own: f64,
    pub db: f64,
}

/// The best rate over the given numbers of connections.
pub fn measure(place: &Place, workload: &Workload, batches: u64, connections: &[usize]) -> Outcome<Ceiling> {
    let meter = Arc::new(meter(&workload.meter)?);
    let mut best = Ceiling { rate: 0.0, connections: 0, own: 0.0, db: 0.0 };
    for (at, &connections) in connections.iter().enumerate() {
        let shifted = Workload { seed: workload.seed + at as u64, ..workload.clone() };
        let rows: Vec<Rows> =
            (0..batches).map(|batch| rows(&shifted, &meter, batch)).collect::<Outcome<_>>()?;
        let name = format!("ceiling_{at}");
        let (_, mut conn) = place.create_migrated(&name)?;
        place.settle()?;
        let cpu = (place.cpu(), crate::machine::cpu_of(std::process::id()));
        let elapsed = write(place, &name, rows, connections)?;
        let (db, own) = (place.cpu() - cpu.0, crate::machine::cpu_of(std::process::id()) - cpu.1);
        verify(&mut conn, batches * BATCH)?;
        drop(conn);
        place.remove(&name)?;
        let events = (batches * BATCH) as f64;
        let rate = events / elapsed.as_secs_f64();
        if rate > best.rate {
            best = Ceiling { rate, connections, own: own as f64 / events, db: db as f64 / events };
        }
    }
    Ok(best)
}

fn write(place: &Place, name: &str, rows: Vec<Rows>, connections: usize) -> Outcome<Duration> {
    let driver = place.driver(name);
    if let open_spanner::config::Driver::Sqlite { path, .. } = &driver {
        let mut writer = sqlite::Writer::open(path)?;
        let started = Instant::now();
        rows.iter().try_for_each(|rows| writer.write(rows))?;
        return Ok(started.elapsed());
    }
    let mut shares: Vec<Vec<Rows>> = (0..connections).map(|_| Vec::new()).collect();
    for (at, rows) in rows.into_iter().enumerate() {
        shares[at % connections].push(rows);
    }
    let mut writers = Vec::new();
    for _ in 0..connections {
        writers.push(postgres::Writer::open(&driver)?);
    }
    let started = Instant::now();
    std::thread::scope(|scope| {
        let work = |(lane, (mut writer, share)): (usize, (postgres::Writer, Vec<Rows>))| {
            scope.spawn(move || share.iter().try_for_each(|rows| writer.write(rows, lane as i16)))
        };
        let threads: Vec<_> = writers.into_iter().zip(shares).enumerate().map(work).collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| "a writer panicked")?)
    })?;
    Ok(started.elapsed())
}

#[derive(diesel::QueryableByName)]
struct Count {
    #[diesel(sql_type = diesel::sql_types::BigInt)]
    ledger: i64,
    #[diesel(sql_type = diesel::sql_types::BigInt)]
    events: i64,
    #[diesel(sql_type = diesel::sql_types::BigInt)]
    rollups: i64,
}

/// A ceiling that does not store everything is no ceiling.
fn verify(conn: &mut Conn, events: u64) -> Outcome<()> {
    let text =
        "SELECT (SELECT COUNT(*) FROM idempotency_keys) AS ledger, (SELECT COUNT(*) FROM events) AS events,
                (SELECT CAST(SUM(event_count) AS BIGINT) FROM rollups WHERE grain = 1) AS rollups";
    let count: Count = diesel::sql_query(text).get_result(conn)?;
    let stored = [count.ledger, count.events, count.rollups];
    if stored != [events as i64; 3] {
        return Err(format!("the bare loop stored {stored:?} of {events} events").into());
    }
    Ok(())
}
