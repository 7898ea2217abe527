//! The entitlement queue: brings states, events and snapshots of a subject and meter up to date after usage, plan
//! changes and assignments, and when a window with usage in it ends.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::{self, Config};
use crate::error::Result;
use crate::store::entitlements::{self, Evaluation, QUEUE};
use crate::store::jobs::{Job, LeaseToken};
use crate::store::{Conn, Store};
use crate::window::Micros;
use crate::worker::{Done, Queue};
use crate::worker_role::{self, Duties};

/// Evaluations are short transactions; more at once would only wait for connections.
const CONCURRENCY: usize = 4;

/// Runs until told to stop, as a process of its own; the alert worker does this work too.
pub async fn run(config: Config) -> Result<()> {
    let health_addr = config.workers.entitlement.health_addr.clone();
    worker_role::run(config, health_addr, |store, config, _| Ok(duties(store, config))).await
}

/// What this worker works on.
pub fn duties(store: &Store, config: &Config) -> Duties {
    Duties { queues: vec![queue(store, &config.workers.entitlement)], chores: Vec::new() }
}

fn queue(store: &Store, settings: &config::Worker) -> Queue {
    let (store, concurrency) = (store.clone(), if store.is_postgres() { CONCURRENCY } else { 1 });
    Queue {
        name: QUEUE,
        worker: "entitlement",
        interval: settings.interval,
        lease: settings.lock_ttl,
        timeout: settings.timeout,
        retry_after: settings.retry_after,
        max_attempts: settings.max_attempts,
        batch_size: settings.batch_size,
        concurrency,
        // a second run writes the same again, so the lease is not asked for
        handler: Arc::new(move |job: Job, _: LeaseToken| Box::pin(evaluate(store.clone(), job))),
    }
}

/// SQLite has one writer, and events come first: an evaluation rests this many times as long as it took, waiting for the
/// writer included. Without it, evaluations took a third of the rate of events with a quota each.
const REST: u32 = 3;
const REST_MAX: Duration = Duration::from_millis(100);

async fn evaluate(store: Store, job: Job) -> Result<Done> {
    let evaluation: Evaluation = job.payload()?;
    let began = Instant::now();
    let workspace_id = job.workspace_id;
    let work = move |conn: &mut Conn| entitlements::evaluate(conn, workspace_id, &evaluation, Micros::now());
    let next = store.write("entitlements::evaluate", work).await?;
    if !store.is_postgres() {
        tokio::time::sleep((began.elapsed() * REST).min(REST_MAX)).await;
    }
    Ok(next.map_or(Done::Finished, Done::AgainAt))
}
