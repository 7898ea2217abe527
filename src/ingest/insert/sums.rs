//! Sums and keys of events that are gone, put where the insert would have left them. For whoever brings in what outlived
//! its events elsewhere; nobody else writes there meanwhile.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use uuid::Uuid;

use super::{CacheUpdates, DeltaRow, KeyRow, WriteCache, postgres, sqlite};
use crate::db::identity::new_id;
use crate::db::{Conn, DbError};
use crate::error::Error;
use crate::metering::event::DimensionSet;
use crate::metering::meter::Meter;
use crate::metering::rollup::{self, Grain, Key, Part};
use crate::metering::time::Timestamp;
use crate::metering::{delta, facet};
use crate::usage::subject_ids;

/// Of a writer that is alone.
const LANE: i16 = 0;

/// What some events of a subject came to in an hour, or in a quarter of one.
#[derive(Clone, Debug)]
pub struct Sum {
    pub meter: Arc<Meter>,
    pub subject: String,
    pub start: Timestamp,
    pub set: DimensionSet,
    /// With first and last event.
    pub part: Part,
}

/// Adds sums of events that are not, and will not be, here.
pub fn add(conn: &mut Conn, workspace_id: i64, sums: &[Sum]) -> Result<(), DbError> {
    let subjects = subjects(conn, workspace_id, sums.iter().map(|sum| sum.subject.as_str()))?;
    let (mut parts, mut sets) = (BTreeMap::new(), BTreeMap::new());
    let mut meters: BTreeMap<i64, (&Meter, Vec<&Sum>)> = BTreeMap::new();
    for sum in sums {
        let meter_id = sum.meter.id;
        for grain in [Grain::MeterHour, Grain::MeterDay] {
            let start = sum.start.floor(grain.width());
            rollup::merge(&mut parts, Key { meter_id, grain, start }, &sum.part);
        }
        sets.insert((meter_id, sum.set.hash), &sum.set);
        meters.entry(meter_id).or_insert_with(|| (&sum.meter, Vec::new())).1.push(sum);
    }
    let delta = |(meter_id, (meter, sums)): (i64, (&Meter, Vec<&Sum>))| {
        let subject_id = |sum: &Sum| subjects.get(sum.subject.as_str()).copied().unwrap_or_default();
        let sums = sums.into_iter().map(|sum| (subject_id(sum), &sum.set, sum.start, &sum.part));
        let delta = delta::of_sums(sums, facet::needs_edges(meter.aggregation));
        DeltaRow { meter_id, id: new_id(), delta }
    };
    let deltas: Vec<DeltaRow> = meters.into_iter().map(delta).collect();
    match conn {
        Conn::Postgres(c) => {
            postgres::add_dimension_sets(c, &sets)?;
            postgres::add_rows(c, &[], &[], &parts, &deltas, LANE)
        }
        Conn::Sqlite(c) => {
            sqlite::add_dimension_sets(c, &sets)?;
            sqlite::add_rollups(c, &parts, LANE)?;
            sqlite::add_deltas(c, &deltas)
        }
    }
}

/// A key that was used, and what for.
#[derive(Clone, Debug)]
pub struct Used {
    pub key: Vec<u8>,
    pub event_id: Uuid,
    pub subject: String,
    pub event_time: Timestamp,
    pub fingerprint: i64,
}

/// Adds keys to the ledger; one that is there stays what it is. Answers how many are new.
pub fn add_keys(
    conn: &mut Conn,
    known: &WriteCache,
    workspace_id: i64,
    keys: &[Used],
) -> Result<(usize, CacheUpdates), DbError> {
    let subjects = subjects(conn, workspace_id, keys.iter().map(|key| key.subject.as_str()))?;
    // in the order of the ledger
    let rows: BTreeMap<&[u8], KeyRow> = keys
        .iter()
        .map(|key| {
            let row = KeyRow {
                workspace_id,
                key: key.key.clone(),
                event_id: key.event_id,
                subject_id: subjects.get(key.subject.as_str()).copied().unwrap_or_default(),
                event_time: key.event_time.0,
                fingerprint: key.fingerprint,
            };
            (key.key.as_slice(), row)
        })
        .collect();
    let rows: Vec<KeyRow> = rows.into_values().collect();
    let mut learned = CacheUpdates::default();
    let taken = match conn {
        Conn::Postgres(c) => postgres::claim_keys(c, &rows)?,
        Conn::Sqlite(c) => {
            let (taken, progress) = sqlite::claim_keys(c, &known.recent_keys, &rows)?;
            learned.settled_keys = Some(progress);
            taken
        }
    };
    Ok((rows.len() - taken.len(), learned))
}

fn subjects<'a>(
    conn: &mut Conn,
    workspace_id: i64,
    names: impl Iterator<Item = &'a str>,
) -> Result<HashMap<&'a str, i64>, DbError> {
    let names: BTreeSet<&str> = names.collect();
    let wanted: Vec<(i64, String)> = names.iter().map(|name| (workspace_id, (*name).to_owned())).collect();
    let found: HashMap<String, i64> =
        subject_ids::find_or_add(conn, &wanted)?.into_iter().map(|((_, name), id)| (name, id)).collect();
    let ids: HashMap<&str, i64> = names.iter().filter_map(|name| Some((*name, *found.get(*name)?))).collect();
    match ids.len() == names.len() {
        true => Ok(ids),
        false => Err(Error::internal("a subject finds no number").into()),
    }
}
