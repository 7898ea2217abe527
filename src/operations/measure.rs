//! What the metrics of servers tell about all that is stored: how far back it goes, how it is laid out, under which keys
//! its secrets lie. Costs more than what `jobs::measure` looks up, and is looked up more rarely.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::alerts::sql::destinations;
use crate::app::App;
use crate::db::{Conn, Store};
use crate::error::Result;
use crate::metering::time::{SECOND, Timestamp};
use crate::retention::{partitions, sql};
use crate::vault;

const INTERVAL: Duration = Duration::from_secs(300);
/// Secrets that are read in one go.
const PAGE: i64 = 1_000;
/// What is not sealed; no key can be called that.
const CLEAR: &str = "(clear text)";

/// Measures until the server drains; does nothing where nobody can read metrics.
pub fn start(app: &App) {
    if app.config.metrics_addr.is_none() && !app.config.http.metrics {
        return;
    }
    let (store, stop) = (app.store.clone(), app.phase.draining());
    tokio::spawn(async move {
        // a key that seals nothing any more is told with 0
        let mut keys = BTreeSet::new();
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = stop.cancelled() => return,
            }
            if let Err(error) = look(&store, &mut keys).await {
                log::debug!(error:% = error; "what is stored was not measured");
            }
        }
    });
}

async fn look(store: &Store, keys: &mut BTreeSet<String>) -> Result<()> {
    let secrets = secrets_by_key(store).await?;
    keys.extend(secrets.keys().cloned());
    for key in keys.iter() {
        let count = secrets.get(key).copied().unwrap_or_default();
        metrics::gauge!("open_spanner_key_ring_rows", "key_id" => key.clone()).set(count as f64);
    }
    if store.is_postgres() {
        let (attached, outside) = store.read("partitions::spread", partitions::spread).await?;
        metrics::gauge!("open_spanner_partitions", "state" => "attached").set(attached as f64);
        metrics::gauge!("open_spanner_partitions", "state" => "default_rows").set(outside as f64);
    }
    // where events lie on nodes, each meter would be looked for on all of them
    if !store.is_distributed() {
        let oldest = store.read("retention::oldest_event", sql::oldest_event).await?;
        let age = oldest.map_or(0, |at| (Timestamp::now().0 - at.0).max(0));
        metrics::gauge!("open_spanner_retention_oldest_event_seconds").set(age as f64 / SECOND as f64);
    }
    Ok(())
}

async fn secrets_by_key(store: &Store) -> Result<BTreeMap<String, u64>> {
    let (mut after, mut counts) = (i64::MIN, BTreeMap::new());
    loop {
        let read = move |conn: &mut Conn| destinations::stored_secrets(conn, after, PAGE);
        let page = store.read("destinations::stored_secrets", read).await?;
        let Some(last) = page.last() else { return Ok(counts) };
        after = last.id;
        for (_, stored) in page.iter().flat_map(|row| row.each()) {
            let key = vault::key_id(stored).unwrap_or(CLEAR);
            *counts.entry(key.to_owned()).or_default() += 1;
        }
    }
}
