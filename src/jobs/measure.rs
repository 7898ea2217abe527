//! What the metrics tell about the whole installation: queues, heartbeats, the size of the database, room on disks.
//! Looked up now and then, so that nobody's scrape waits for the database.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::config::{Config, Driver, ExportStorage, Role};
use crate::db::readiness::free_bytes;
use crate::db::{Conn, Store, wal};
use crate::error::Result;
use crate::jobs::instances::{self, Instance};
use crate::jobs::sql::{self, Chore, Standing};
use crate::metering::time::{SECOND, Timestamp};
use crate::metrics::table::QUEUES;

const INTERVAL: Duration = Duration::from_secs(15);
/// Queues of what is computed after the fact of usage.
const EVALUATED: [&str; 2] = ["alerts", "entitlements"];

/// Measures until told to stop; does nothing where nobody can read metrics.
pub fn start(store: &Store, config: &Config, stop: &CancellationToken) {
    // workers have them on their health port
    if config.role == Role::Serve && config.metrics_addr.is_none() && !config.http.metrics {
        return;
    }
    let (store, stop, places) = (store.clone(), stop.clone(), Places::of(config));
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = stop.cancelled() => return,
            }
            if let Err(error) = look(&store).await {
                log::debug!(error:% = error; "the installation was not measured");
            }
            places.measure();
        }
    });
}

async fn look(store: &Store) -> Result<()> {
    let now = Timestamp::now();
    let ask = move |conn: &mut Conn| {
        let chores = sql::chores(conn)?;
        Ok((sql::standings(conn, now)?, instances::list(conn)?, chores, sql::database_bytes(conn)?))
    };
    let (standings, instances, chores, bytes) = store.read("jobs::measure", ask).await?;
    let mut found: HashMap<&str, &Standing> =
        standings.iter().map(|standing| (standing.queue.as_str(), standing)).collect();
    metrics::gauge!("open_spanner_evaluation_lag_seconds").set(lag(&standings, now));
    for queue in QUEUES {
        // an empty queue is no row
        show(queue, &found.remove(queue).cloned().unwrap_or_default(), now);
    }
    beats(&instances);
    done(&chores);
    if let Some(bytes) = bytes {
        metrics::gauge!("open_spanner_database_bytes").set(bytes as f64);
    }
    Ok(())
}

/// For how long usage has been stored that rules or limits have not looked at to the end.
fn lag(standings: &[Standing], now: Timestamp) -> f64 {
    let evaluated = standings.iter().filter(|standing| EVALUATED.contains(&standing.queue.as_str()));
    let since = evaluated.filter_map(|standing| standing.undone_since).min();
    since.map_or(0, |since| (now.0 - since).max(0)) as f64 / SECOND as f64
}

fn show(queue: &'static str, standing: &Standing, now: Timestamp) {
    let counts = [
        ("due", standing.due),
        ("running", standing.running),
        ("failed", standing.failed),
        ("later", standing.later),
        ("dead", standing.dead),
    ];
    for (state, count) in counts {
        metrics::gauge!("open_spanner_jobs", "queue" => queue, "state" => state).set(count as f64);
    }
    let waits = standing.oldest_due_at.map_or(0, |at| (now.0 - at).max(0));
    metrics::gauge!("open_spanner_jobs_oldest_due_seconds", "queue" => queue)
        .set(waits as f64 / SECOND as f64);
}

fn beats(instances: &[Instance]) {
    let mut newest: HashMap<&str, i64> = HashMap::new();
    for instance in instances {
        let at = newest.entry(&instance.worker).or_default();
        *at = (*at).max(instance.last_heartbeat_at);
    }
    for (worker, at) in newest {
        metrics::gauge!("open_spanner_worker_heartbeat_timestamp_seconds", "worker" => worker.to_owned())
            .set(at as f64 / SECOND as f64);
    }
}

fn done(chores: &[Chore]) {
    for chore in chores {
        let at = chore.done_at as f64 / SECOND as f64;
        match chore.name.as_str() {
            sql::BACKUP => metrics::gauge!("open_spanner_backup_last_success_timestamp_seconds").set(at),
            sql::SELF_CHECK => {
                metrics::gauge!("open_spanner_self_check_timestamp_seconds").set(at);
                metrics::gauge!("open_spanner_self_check_differences").set(chore.findings as f64);
            }
            // of a newer version
            _ => {}
        }
    }
}

/// Where files grow.
struct Places {
    database: Option<PathBuf>,
    exports: Option<PathBuf>,
}

impl Places {
    fn of(config: &Config) -> Places {
        let is_here = matches!(config.db.driver, Driver::Sqlite { .. });
        let log = wal::path(&config.db.driver).filter(|_| is_here);
        let exports = match &config.exports.storage {
            ExportStorage::Filesystem { path } => Some(path.clone()),
            ExportStorage::S3(_) => None,
        };
        let folder =
            |path: &Path| path.parent().filter(|path| !path.as_os_str().is_empty()).map(Path::to_owned);
        Places { database: log.map(|log| folder(&log).unwrap_or_else(|| ".".into())), exports }
    }

    fn measure(&self) {
        for (path, place) in [("database", &self.database), ("exports", &self.exports)] {
            if let Some(free) = place.as_deref().and_then(free_bytes) {
                metrics::gauge!("open_spanner_storage_free_bytes", "path" => path).set(free as f64);
            }
        }
    }
}
