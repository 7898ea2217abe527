//! The entitlement queue: brings states, events and snapshots of a subject and meter up to date after usage, plan
//! changes and assignments, and when a window with usage in it ends.

use std::sync::Arc;
use std::time::Duration;

use crate::clock;
use crate::config::{self, Config};
use crate::db::{Conn, Store};
use crate::entitlements::evaluate;
use crate::entitlements::jobs::{Evaluation, QUEUE};
use crate::error::Result;
use crate::jobs::process::{self, WorkerTasks};
use crate::jobs::queue::{Job, LeaseToken};
use crate::jobs::worker::{Done, Queue, Turns};
use crate::metering::time::Timestamp;

/// What a killed worker held is taken over after this: an evaluation takes milliseconds and may be done twice, so the
/// lease need not outlive a slow one (the alert worker's does).
const LEASE_MAX: Duration = Duration::from_millis(600);
/// Jobs of a dead worker are noticed by looking, since nobody is left to tell.
const INTERVAL_MAX: Duration = Duration::from_millis(300);
/// Evaluations are short transactions; more at once would only wait for connections.
const CONCURRENCY: usize = 4;

/// Runs until told to stop, as a process of its own; the alert worker does this work too.
pub async fn run(config: Config) -> Result<()> {
    let health_addr = config.workers.entitlement.health_addr.clone();
    process::run(config, health_addr, None, |store, config, _| Ok(duties(store, config))).await
}

/// What this worker works on.
pub fn duties(store: &Store, config: &Config) -> WorkerTasks {
    WorkerTasks {
        queues: vec![queue(store, &config.workers.entitlement)],
        chores: Vec::new(),
        inspection: None,
    }
}

fn queue(store: &Store, settings: &config::Worker) -> Queue {
    let (store, concurrency) = (store.clone(), if store.is_postgres() { CONCURRENCY } else { 1 });
    Queue {
        name: QUEUE,
        worker: "entitlement",
        interval: settings.interval.min(INTERVAL_MAX),
        lease: settings.lock_ttl.min(LEASE_MAX),
        timeout: settings.timeout,
        retry_after: settings.retry_after,
        max_attempts: settings.max_attempts,
        batch_size: settings.batch_size,
        concurrency,
        turns: Turns::OneEach,
        rebase: None,
        check: None,
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
    let began = clock::moment();
    let workspace_id = job.workspace_id;
    let work = move |conn: &mut Conn| evaluate::evaluate(conn, workspace_id, &evaluation, Timestamp::now());
    let next = store.write("entitlements::evaluate", work).await?;
    if !store.is_postgres() {
        tokio::time::sleep((clock::since(began) * REST).min(REST_MAX)).await;
    }
    Ok(next.map_or(Done::Finished, Done::Reschedule))
}
