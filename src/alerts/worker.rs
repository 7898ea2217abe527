//! The alert worker: evaluates rules and delivers webhooks, as a process of its own or inside `serve`. Evaluation is
//! asked for per meter; requests of several writers for one meter that come together are answered by one look.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use moka::sync::Cache;
use tokio::sync::Mutex;

use crate::alerts::deliver::Sender;
use crate::alerts::evaluate::{Outcome, Rest, evaluate_until};
use crate::alerts::jobs::{self, MeterJob};
use crate::alerts::sealed::Sealed;
use crate::alerts::sql::rules::{self, Filter};
use crate::alerts::sql::{deliveries, destinations, states};
use crate::alerts::webhook::client::Client;
use crate::clock;
use crate::config::Config;
use crate::db::{Conn, Store};
use crate::entitlements;
use crate::error::{Code, Error, Result};
use crate::jobs::process::{self, WorkerTasks};
use crate::jobs::queue::Job;
use crate::jobs::worker::{Done, JobNotifier, Queue, Turns};
use crate::metering::time::{SECOND, Timestamp};
use crate::vault;

/// A dead worker's jobs are free after this, however long the configured lease: it is renewed while work lasts.
const LEASE_MAX: Duration = Duration::from_secs(30);
const EVALUATIONS: usize = 4;
/// Rules whose webhooks are sent at once, in one process; those of one workspace in all processes.
const DELIVERIES: usize = 64;
const DELIVERIES_PER_WORKSPACE: usize = 16;
/// The table of deliveries has its own end of patience; the job that walks it never dies.
const NO_END: u32 = 1_000_000;
/// A timed evaluation is late by up to this when rules come due one after another.
const TIMED_PAUSE: i64 = SECOND / 2;
/// Rules that others keep busy are looked at again after this.
const CONFLICT_PAUSE: i64 = SECOND / 10;

/// Longest wait for another evaluation of the same meter.
const TURN: Duration = Duration::from_millis(50);

const REVIVE_INTERVAL: Duration = Duration::from_secs(60);
const MEASURE_INTERVAL: Duration = Duration::from_secs(10);
const OVERDUE: i64 = 900 * SECOND;

/// What both queues work with. Cheap to clone.
#[derive(Clone)]
struct Context {
    store: Store,
    wake: JobNotifier,
    /// Per meter.
    evaluated: Cache<i64, Arc<Mutex<Evaluations>>>,
    /// An evaluation looks at nothing more after this: what is left is another turn's.
    patience: Duration,
}

/// How far rules of a meter were evaluated because of usage.
#[derive(Default)]
struct Evaluations {
    /// When the last complete one began.
    whole: Option<Instant>,
    /// Those that are not complete, by the key of their job.
    begun: HashMap<String, Begun>,
}

struct Begun {
    at: Instant,
    /// Tells whether the job was asked for again since.
    request: (i64, i64),
    rest: Rest,
}

impl Begun {
    fn of(job: &Job) -> Begun {
        Begun { at: clock::moment(), request: (job.created_at, job.generation), rest: Rest::all() }
    }
}

/// The queues of this worker.
pub fn queues(store: &Store, config: &Config, client: &Client, wake: &JobNotifier) -> Vec<Queue> {
    let settings = &config.workers.alert;
    let patience = settings.timeout / 2;
    let context =
        Context { store: store.clone(), wake: wake.clone(), evaluated: Cache::new(100_000), patience };
    let queue = Queue {
        name: jobs::QUEUE,
        worker: "alert",
        interval: settings.interval,
        lease: settings.lock_ttl.min(LEASE_MAX),
        // what was begun when the patience ended is a look and what is written of it
        timeout: settings.timeout.max(patience + 3 * store.answer_timeout()),
        retry_after: settings.retry_after,
        max_attempts: settings.max_attempts,
        batch_size: settings.batch_size,
        concurrency: EVALUATIONS,
        turns: Turns::OneEach,
        rebase: Some(rules::rebase),
        check: None,
        handler: Arc::new(move |job, _| Box::pin(answer(context.clone(), job))),
    };
    let sender = Sender::new(store, client, settings.timeout / 2);
    let webhooks = Queue {
        name: deliveries::QUEUE,
        worker: "webhook",
        timeout: settings.timeout.max(Duration::from_secs(30)),
        retry_after: Duration::from_secs(1),
        max_attempts: NO_END,
        concurrency: DELIVERIES,
        turns: Turns::AtMost(DELIVERIES_PER_WORKSPACE),
        rebase: Some(deliveries::rebase),
        check: None,
        handler: Arc::new(move |job, token| Box::pin(sender.clone().deliver(job, token))),
        ..queue.clone()
    };
    vec![queue, webhooks]
}

/// All that has to be done about alerts, in a process of its own or inside the server.
pub fn duties(store: &Store, config: &Config, client: &Client, wake: &JobNotifier) -> WorkerTasks {
    let alive = keep_alive(store.clone(), config.history.retention, wake.clone());
    let owed = measure_owed(store.clone());
    WorkerTasks {
        queues: queues(store, config, client, wake),
        chores: vec![Box::pin(alive), Box::pin(owed)],
        inspection: None,
    }
}

/// Asks again for work whose jobs died or were lost, and forgets deliveries that are long done.
async fn keep_alive(store: Store, retention: Duration, wake: JobNotifier) {
    loop {
        tokio::time::sleep(REVIVE_INTERVAL).await;
        let revive = |conn: &mut Conn| {
            let now = Timestamp::now();
            let overdue = now.plus(-OVERDUE);
            Ok(rules::revive(conn, overdue, now)? + deliveries::revive(conn, overdue, now)?)
        };
        match store.write("alerts::revive", revive).await {
            Ok(0) => {}
            Ok(count) => {
                log::warn!(count; "overdue work was asked for again");
                wake.notify();
            }
            Err(error) => log::warn!(error:% = error; "cannot look for overdue work"),
        }
        let before = Timestamp::now().plus(-(retention.as_micros() as i64));
        if let Err(error) =
            store.write("deliveries::sweep", move |conn| deliveries::sweep(conn, before)).await
        {
            log::warn!(error:% = error; "cannot forget old deliveries");
        }
    }
}

/// Shows what is owed to receivers of the whole installation; every process that sends shows the same.
async fn measure_owed(store: Store) {
    loop {
        match store.read("deliveries::owed", |conn| deliveries::owed(conn, None)).await {
            Ok(owed) => {
                let since = owed.oldest_at.map_or(0, |at| (Timestamp::now().0 - at).max(0));
                let counts = [
                    ("pending", owed.pending),
                    ("failing", owed.failing),
                    ("dead_letter", owed.dead_letters),
                ];
                for (state, count) in counts {
                    metrics::gauge!("open_spanner_webhooks_owed", "state" => state).set(count as f64);
                }
                metrics::gauge!("open_spanner_webhooks_oldest_owed_seconds")
                    .set(since as f64 / SECOND as f64);
            }
            Err(error) => log::warn!(error:% = error; "cannot count what is owed to receivers"),
        }
        tokio::time::sleep(MEASURE_INTERVAL).await;
    }
}

async fn answer(context: Context, job: Job) -> Result<Done> {
    let wanted: MeterJob = job.payload()?;
    if wanted.due_only {
        follow_clock(&context, &wanted).await
    } else {
        follow_usage(&context, &wanted, &job).await
    }
}

/// Evaluates the rules whose time has come, and comes back for the next. One without a value comes again at its time as well:
/// the others need not wait until the job is tried again.
async fn follow_clock(context: &Context, wanted: &MeterJob) -> Result<Done> {
    let filter =
        Filter { meter_id: Some(wanted.meter_id), due_at: Some(Timestamp::now()), ..Filter::default() };
    let outcome = evaluate_rules(context, wanted, filter, Rest::all()).await?;
    let meter_id = wanted.meter_id;
    let next = context.store.read("alerts::next_time", move |conn| states::next_time(conn, meter_id)).await?;
    let now = Timestamp::now();
    Ok(match next {
        None => Done::Finished,
        Some(_) if outcome.conflicts > 0 => Done::Reschedule(now.plus(CONFLICT_PAUSE)),
        Some(next) if outcome.evaluated == 0 => Done::Reschedule(next),
        Some(next) => Done::Reschedule(next.max(now.plus(TIMED_PAUSE))),
    })
}

/// Evaluates all rules of a meter, unless that was begun after this job was claimed: then the usage that it stands
/// for has been seen. Those without a value wait for their time, which the clock watches: usage does not mend them.
async fn follow_usage(context: &Context, wanted: &MeterJob, job: &Job) -> Result<Done> {
    let evaluations = context.evaluated.get_with(wanted.meter_id, Arc::default);
    let again = || Ok(Done::Reschedule(Timestamp::now().plus(CONFLICT_PAUSE)));
    // a long evaluation of one meter must not take the places of all others
    let Ok(mut evaluations) = tokio::time::timeout(TURN, evaluations.lock()).await else {
        return again();
    };
    if evaluations.whole.is_some_and(|began| began >= job.claimed) {
        evaluations.begun.remove(&job.key);
        return Ok(Done::Finished);
    }
    let Begun { at, request, rest } = evaluations.begun.remove(&job.key).unwrap_or_else(|| Begun::of(job));
    let filter = Filter {
        meter_id: Some(wanted.meter_id),
        failed_due_at: Some(Timestamp::now()),
        ..Filter::default()
    };
    let outcome = evaluate_rules(context, wanted, filter, rest).await?;
    if outcome.failed > 0 {
        let wanted = wanted.clone();
        let workspace_id = job.workspace_id;
        let come_again = move |conn: &mut Conn| rules::come_again(conn, workspace_id, &wanted);
        context.store.write("alerts::come_again", come_again).await?;
    }
    // a rule that others are busy with is looked at from the start on
    if let Some(rest) = outcome.rest.filter(|_| outcome.conflicts == 0) {
        evaluations.begun.insert(job.key.clone(), Begun { at, request, rest });
        return again();
    }
    if outcome.conflicts > 0 {
        return again();
    }
    evaluations.whole = evaluations.whole.max(Some(at));
    match at >= job.claimed || request == (job.created_at, job.generation) {
        true => Ok(Done::Finished),
        false => again(),
    }
}

/// Evaluates what is left of these rules, as far as the time allows.
async fn evaluate_rules(context: &Context, wanted: &MeterJob, filter: Filter, rest: Rest) -> Result<Outcome> {
    let until = clock::moment() + context.patience;
    let outcome = evaluate_until(&context.store, None, filter, rest, Some(until)).await?;
    if outcome.enqueued {
        context.wake.notify();
    }
    if outcome.failed > 0 {
        log::warn!(meter = wanted.meter.as_str(), count = outcome.failed; "alert rules have no value");
    }
    if outcome.unsettled > 0 {
        return Err(Error::unavailable(format!("{} rules cannot be stored", outcome.unsettled)));
    }
    Ok(outcome)
}

/// The role `alert-worker`: drains every queue that follows from a write, until SIGTERM or SIGINT.
pub async fn run(config: Config) -> Result<()> {
    let health_addr = config.workers.alert.health_addr.clone();
    process::run(config, health_addr, None, |store, config, wake| {
        let client = Client::new(&config.webhook_allowed_networks, config.webhook_https_only)?;
        let mut all = duties(store, config, &client, wake);
        // everything that follows from a write
        all.queues.extend(entitlements::worker::duties(store, config).queues);
        let store = store.clone();
        all.inspection = Some(Box::pin(async move { check_keys(&store).await }));
        Ok(all)
    })
    .await
}

/// Refuses to go on when stored secrets are sealed with a key that this process does not have, or has with other bytes.
pub async fn check_keys(store: &Store) -> Result<()> {
    let (mut after, mut sealed) = (i64::MIN, Sealed::default());
    loop {
        let read = move |conn: &mut Conn| destinations::stored_secrets(conn, after, 1_000);
        let page = store.read("destinations::stored_secrets", read).await?;
        let Some(last) = page.last() else { break };
        after = last.id;
        page.iter().for_each(|row| sealed.add(vault::ring(), row));
    }
    if let Some(problem) = sealed.problem() {
        return Err(Error::new(Code::Unusable, problem));
    }
    if let Some(file) = vault::own_file() {
        // made now, so that whoever backs this up finds it from the first day
        let seals = vault::sealing()?.current().unwrap_or_default();
        if file.exists() {
            log::info!(file:% = file.display(), seals; "secrets are sealed; no backup holds the keys in this file");
        }
    }
    match (sealed.clear, vault::ring().is_empty()) {
        (0, _) => {}
        (_, true) => log::warn!(
            "secrets of webhooks lie in clear text: set OPEN_SPANNER_ENCRYPTION_KEYS, then `open-spanner keys rotate`"
        ),
        (_, false) => {
            log::warn!("secrets of webhooks lie in clear text: run `open-spanner keys rotate`");
        }
    }
    Ok(())
}

/// The role `usage-worker`, for installations that start it: writes ask for what follows from them in their own
/// transaction, so there is nothing to hand over.
pub async fn run_idle(config: Config) -> Result<()> {
    let health_addr = config.workers.usage.health_addr.clone();
    log::info!("usage worker started: writes need none, this process only reports its health");
    process::run(config, health_addr, None, |_, _, _| {
        Ok(WorkerTasks { queues: Vec::new(), chores: Vec::new(), inspection: None })
    })
    .await
}
