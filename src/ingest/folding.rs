//! When the sums that commits leave are folded (`usage::fold`) and settled (`usage::settle`): soon, so that queries find
//! few of them, but many commits at once, so that each row is written seldom. Nothing depends on it but the time that queries take: what a
//! killed server left is folded by the next one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::clock;
use crate::db::Store;
use crate::error::Result;
use crate::metering::time::SECOND;
use crate::usage::{fold, settle};

/// A meter with so many unfolded sums or commits is folded at once: a query reads them in some milliseconds. Fewer would
/// make folds too frequent for events of many days, each of which has rows of its own.
const CELLS_DUE: usize = 65_536;
const COMMITS_DUE: usize = 512;
/// Others wait this long for more.
const DUE_AFTER: i64 = 2 * SECOND;
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// Other servers' sums are looked for as often.
const SEARCH_INTERVAL: i64 = 60 * SECOND;
/// Between two folds, times what the last one took: writers need the database too.
const REST: u32 = 3;

#[derive(Default)]
struct Unfolded {
    cells: usize,
    commits: usize,
    since: i64,
}

impl Unfolded {
    fn is_much(&self) -> bool {
        self.cells >= CELLS_DUE || self.commits >= COMMITS_DUE
    }
}

pub struct Folding {
    meters: Mutex<HashMap<i64, Unfolded>>,
    much: Notify,
    /// In microseconds.
    settle_after: i64,
}

impl Folding {
    pub fn new(settle_after: Duration) -> Folding {
        let settle_after = i64::try_from(settle_after.as_micros()).unwrap_or(i64::MAX);
        Folding { meters: Mutex::default(), much: Notify::new(), settle_after }
    }

    /// A commit left sums of these meters.
    pub fn note(&self, unfolded: Vec<(i64, usize)>) {
        let mut meters = self.meters.lock().unwrap_or_else(PoisonError::into_inner);
        for (meter_id, cells) in unfolded {
            let waiting = meters
                .entry(meter_id)
                .or_insert_with(|| Unfolded { since: clock::elapsed(), ..Unfolded::default() });
            waiting.cells += cells;
            waiting.commits += 1;
            if waiting.is_much() {
                self.much.notify_one();
            }
        }
    }

    /// Meters whose time has come, those with the most first.
    fn take_due(&self) -> Vec<i64> {
        let mut meters = self.meters.lock().unwrap_or_else(PoisonError::into_inner);
        let before = clock::elapsed() - DUE_AFTER;
        let mut due: Vec<(usize, i64)> = meters
            .iter()
            .filter(|(_, waiting)| waiting.is_much() || waiting.since <= before)
            .map(|(meter_id, waiting)| (waiting.cells, *meter_id))
            .collect();
        due.sort_unstable_by_key(|(cells, _)| std::cmp::Reverse(*cells));
        let due: Vec<i64> = due.into_iter().map(|(_, meter_id)| meter_id).collect();
        for meter_id in &due {
            meters.remove(meter_id);
        }
        due
    }

    /// Folds for ever.
    pub async fn run(self: Arc<Self>, store: Store) {
        let mut searched = None;
        loop {
            let now = clock::elapsed();
            if searched.is_none_or(|at: i64| at + SEARCH_INTERVAL.min(self.settle_after) <= now) {
                searched = Some(now);
                self.search(&store).await;
            }
            for meter_id in self.take_due() {
                self.fold(&store, meter_id).await;
            }
            tokio::select! {
                () = self.much.notified() => {}
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
            }
        }
    }

    /// Sums that nobody here knows of, of a server that was killed.
    async fn search(&self, store: &Store) {
        match store.read("fold::waiting", fold::waiting).await {
            Ok(meters) => self.note(meters.into_iter().map(|meter_id| (meter_id, 0)).collect()),
            Err(error) => log::debug!(error:% = error; "cannot look for sums to fold"),
        }
    }

    async fn fold(&self, store: &Store, meter_id: i64) {
        let began = clock::elapsed();
        let folded = match store.is_postgres() {
            true => store.write("fold::fold", move |conn| fold::fold(conn, meter_id)).await,
            false => fold_in_two(store, meter_id).await,
        };
        let folded = match folded {
            Ok(false) => settle_when_due(store, meter_id, self.settle_after).await,
            other => other,
        };
        match folded {
            Ok(false) => {}
            Ok(true) => self.note(vec![(meter_id, CELLS_DUE)]),
            Err(error) => {
                log::warn!(meter_id, error:% = error; "sums are folded later");
                self.note(vec![(meter_id, 0)]);
            }
        }
        let took = Duration::from_micros((clock::elapsed() - began).unsigned_abs());
        tokio::time::sleep((took * REST).min(LOOK_INTERVAL)).await;
    }
}

/// Whether there is more to settle at once.
async fn settle_when_due(store: &Store, meter_id: i64, settle_after: i64) -> Result<bool> {
    let is_due = move |conn: &mut _| settle::is_due(conn, meter_id, settle_after);
    if !store.read("settle::is_due", is_due).await? {
        return Ok(false);
    }
    if store.is_postgres() {
        return store.write("settle::settle", move |conn| settle::settle(conn, meter_id)).await;
    }
    let prepare = move |conn: &mut _| settle::prepare(conn, meter_id);
    let Some(settled) = store.read_snapshot("settle::prepare", prepare).await? else { return Ok(false) };
    let is_part = settled.is_part;
    store.write("settle::apply", move |conn| settle::apply(conn, &settled)).await?;
    Ok(is_part)
}

/// On SQLite nobody may write while sums are added up, so that is done before. It has one server, which folds one meter
/// at a time.
async fn fold_in_two(store: &Store, meter_id: i64) -> Result<bool> {
    let prepare = move |conn: &mut _| fold::prepare(conn, meter_id);
    let Some(folded) = store.read_snapshot("fold::prepare", prepare).await? else { return Ok(false) };
    let is_part = folded.is_part;
    store.write("fold::apply", move |conn| fold::apply(conn, &folded)).await?;
    Ok(is_part)
}
