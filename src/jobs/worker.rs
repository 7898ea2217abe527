//! The loop that all background work runs in: claim, work with a renewed lease, finish or try again later. What the
//! work is, the queue's own module says. Workers wake when something was enqueued, and look for themselves every
//! interval in case nobody could tell them.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::blocking;
use crate::chance;
use crate::clock;
use crate::config::Driver;
use crate::db::readiness::Check;
use crate::db::{Conn, DbError, Store};
use crate::error::{Error, Result};
use crate::jobs::heartbeat::Heartbeat;
use crate::jobs::queue::{self, Claim, Job, LeaseToken};
use crate::logging::Folded;
use crate::logging::spans::{self, Span};
use crate::metering::time::Timestamp;

/// When a job is done: for good, or to be looked at again at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    Finished,
    Reschedule(Timestamp),
}

pub type Work = Pin<Box<dyn Future<Output = Result<Done>> + Send>>;

/// Moves times ahead that a domain keeps back to what the clock says now; returns how many.
pub type Rebase = fn(&mut Conn, Timestamp) -> Result<usize, DbError>;

/// How workspaces take turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turns {
    /// One job of each after the other; one that is alone has every place.
    OneEach,
    /// The same, and at most this many jobs of each are worked at once, by all workers together. Looks at all that is due.
    AtMost(usize),
}

/// A queue and how it is worked.
#[derive(Clone)]
pub struct Queue {
    /// Name in the table of jobs.
    pub name: &'static str,
    /// The worker it belongs to, as operators see it: `alert`, `entitlement`, `export`, `webhook`.
    pub worker: &'static str,
    pub interval: Duration,
    pub lease: Duration,
    /// Longest time for one job.
    pub timeout: Duration,
    pub retry_after: Duration,
    pub max_attempts: u32,
    /// Jobs claimed at once.
    pub batch_size: usize,
    /// Jobs worked at once.
    pub concurrency: usize,
    pub turns: Turns,
    /// The clock was set back: the domain's own times ahead, as [`queue::rebase`] does with those of jobs.
    pub rebase: Option<Rebase>,
    /// Asked before jobs are claimed: what keeps this process from doing any. Others may be able to.
    pub check: Option<Check>,
    /// Does one job. Gets the lease so that it can check it with `jobs::holds` where a result is written.
    pub handler: Arc<dyn Fn(Job, LeaseToken) -> Work + Send + Sync>,
}

/// Longest pause before a failed job is tried again.
const BACKOFF_MAX: Duration = Duration::from_secs(3_600);
/// Shortest time between two looks while rings come in one after another.
const RING_PAUSE: Duration = Duration::from_millis(10);
/// Before looking again when there was less than could have been taken.
const CLAIM_PAUSE: Duration = Duration::from_millis(50);
/// Before looking again when what is due has to wait for others of its workspace.
const TURN_PAUSE: Duration = Duration::from_millis(500);

/// Tells workers that there may be work: those of this process at once, those of others through the database.
#[derive(Clone)]
pub struct JobNotifier {
    here: Arc<watch::Sender<u64>>,
    elsewhere: Arc<watch::Sender<u64>>,
}

impl Default for JobNotifier {
    fn default() -> Self {
        JobNotifier { here: Arc::new(watch::Sender::new(0)), elsewhere: Arc::new(watch::Sender::new(0)) }
    }
}

const CHANNEL: &str = "open_spanner_jobs";
/// NOTIFY takes a lock of the whole database at commit, so it is kept out of write transactions and sent seldom.
const NOTIFY_PAUSE: Duration = Duration::from_millis(50);
/// How often the listening connection is looked at; costs one system call.
const LISTEN_PAUSE: Duration = Duration::from_millis(50);

impl JobNotifier {
    /// Call after the commit that enqueued something.
    pub fn notify(&self) {
        self.here.send_modify(|count| *count += 1);
        self.elsewhere.send_modify(|count| *count += 1);
    }

    /// Passes rings on to other processes; only PostgreSQL can.
    pub fn relay(&self, store: Store, stop: CancellationToken) {
        if !store.is_postgres() {
            return;
        }
        let mut rings = self.elsewhere.subscribe();
        tokio::spawn(async move {
            while tokio::select! { changed = rings.changed() => changed.is_ok(), () = stop.cancelled() => false }
            {
                let notify = |conn: &mut Conn| {
                    use diesel::connection::SimpleConnection;
                    Ok(conn.batch_execute("NOTIFY open_spanner_jobs")?)
                };
                // a ring that is lost is made up for by the next look of the worker
                let _ = store.read("worker::notify", notify).await;
                tokio::time::sleep(NOTIFY_PAUSE).await;
            }
        });
    }

    /// Hears rings of other processes, on a connection of its own.
    pub fn listen(&self, driver: Driver, stop: CancellationToken) -> Result<()> {
        if !matches!(driver, Driver::Postgres { .. }) {
            return Ok(());
        }
        let here = self.here.clone();
        blocking::thread("job-rings", move || {
            while !stop.is_cancelled() {
                if let Err(error) = hear(&driver, &here, &stop) {
                    log::warn!(error:% = error; "cannot listen for jobs, polling only");
                }
                blocking::pause(Duration::from_secs(1));
            }
        })
    }
}

fn hear(driver: &Driver, here: &watch::Sender<u64>, stop: &CancellationToken) -> Result<(), String> {
    use diesel::connection::SimpleConnection;
    let mut conn = crate::db::open(driver).map_err(|error| error.to_string())?;
    conn.batch_execute(&format!("LISTEN {CHANNEL}")).map_err(|error| error.to_string())?;
    let Conn::Postgres(conn) = &mut conn else { return Ok(()) };
    while !stop.is_cancelled() {
        let mut heard = false;
        for notification in conn.notifications_iter() {
            notification.map_err(|error| error.to_string())?;
            heard = true;
        }
        if heard {
            here.send_modify(|count| *count += 1);
        }
        blocking::pause(LISTEN_PAUSE);
    }
    Ok(())
}

/// Works one queue until told to stop; then gives back what it holds. Returns when nothing is running any more.
pub async fn run(store: Store, queue: Queue, wake: JobNotifier, stop: CancellationToken) {
    let worker = Arc::new(Worker::new(store, queue, stop));
    log::info!(queue = worker.queue.name, interval:? = worker.queue.interval, lock_ttl:? = worker.queue.lease,
               max_attempts = worker.queue.max_attempts; "{} worker started:", worker.queue.worker);
    let beats = worker.heart.start();
    worker.clone().work_all(wake).await;
    worker.heart.stop(beats).await;
    log::info!(queue = worker.queue.name; "{} worker stopped", worker.queue.worker);
}

/// Works everything that is due now, once, and returns how many jobs that were (tests, and hand-started runs).
pub async fn run_once(store: &Store, queue: &Queue) -> usize {
    let worker = Worker::new(store.clone(), queue.clone(), CancellationToken::new());
    let mut count = 0;
    loop {
        let claimed = worker.claim(queue.batch_size).await;
        if claimed.jobs.is_empty() {
            return count;
        }
        count += claimed.jobs.len();
        futures_util::stream::iter(claimed.jobs)
            .for_each_concurrent(queue.concurrency, |job| worker.work(job, claimed.token))
            .await;
    }
}

struct Worker {
    store: Store,
    queue: Queue,
    heart: Arc<Heartbeat>,
    refusals: Folded,
    stop: CancellationToken,
    /// Steps of the clock that were heeded.
    steps: AtomicU64,
    /// By [`clock::elapsed`].
    patient_until: AtomicI64,
    /// The workspace whose turn it was last.
    turn: AtomicI64,
}

/// Of steps: none was heeded, so what lies ahead is looked at once in any case.
const NEVER: u64 = u64::MAX;

/// What one look at the queue gave.
struct Claimed {
    token: LeaseToken,
    jobs: Vec<Job>,
    /// Until the next job is due, as far as known.
    wait: Duration,
}

impl Worker {
    fn new(store: Store, queue: Queue, stop: CancellationToken) -> Self {
        let heart = Heartbeat::new(store.clone(), queue.worker);
        let (steps, patient_until) = (AtomicU64::new(NEVER), AtomicI64::new(i64::MIN));
        let turn = AtomicI64::new(i64::MIN);
        Worker { store, queue, heart, refusals: Folded::default(), stop, steps, patient_until, turn }
    }

    /// Keeps every free place busy: a job that hangs holds up its own place and nobody else's.
    async fn work_all(self: Arc<Self>, wake: JobNotifier) {
        let mut rings = wake.here.subscribe();
        let mut running = tokio::task::JoinSet::new();
        while !self.stop.is_cancelled() {
            while running.try_join_next().is_some() {}
            rings.mark_unchanged();
            let room = self.queue.concurrency.saturating_sub(running.len()).min(self.queue.batch_size);
            let claimed =
                if room > 0 { self.claim(room).await } else { Claimed::nothing(self.queue.interval) };
            let is_full = claimed.jobs.len() == room;
            for job in claimed.jobs {
                let worker = self.clone();
                running.spawn(async move { worker.work(job, claimed.token).await });
            }
            tokio::select! {
                () = self.stop.cancelled() => break,
                _ = running.join_next(), if !running.is_empty() => {}
                _ = rings.changed(), if !is_full => tokio::time::sleep(RING_PAUSE).await,
                () = tokio::time::sleep(claimed.wait), if !is_full => {}
            }
        }
        // each of them sees the stop and gives its job back
        while running.join_next().await.is_some() {}
    }

    /// When the clock was set: times that lie in the future now are mended, and leases are left alone for as long as
    /// one lasts, because their holders may live and renew them. True during that time.
    async fn heed_clock(&self) -> bool {
        let (steps, known) = (clock::steps(), self.steps.load(Ordering::Relaxed));
        if steps != known {
            let (name, domain) = (self.queue.name, self.queue.rebase);
            let rebase = move |conn: &mut Conn| {
                let now = Timestamp::now();
                let own = domain.map_or(Ok(0), |rebase| rebase(conn, now))?;
                Ok(queue::rebase(conn, name, now)? + own)
            };
            match self.store.write("jobs::rebase", rebase).await {
                Ok(count) => {
                    if count > 0 {
                        log::warn!(queue = name, count; "the clock was set back: times ahead count from now on");
                    }
                    self.steps.store(steps, Ordering::Relaxed);
                }
                Err(error) => log::warn!(queue = name, error:% = error; "times ahead are not mended yet"),
            }
            // what others held when this process began was taken by the same clock
            if known != NEVER {
                let until = clock::elapsed() + self.queue.lease.as_micros() as i64;
                self.patient_until.store(until, Ordering::Relaxed);
            }
        }
        clock::elapsed() < self.patient_until.load(Ordering::Relaxed)
    }

    /// Looks before it claims: on SQLite an idle worker must not take the write lock.
    async fn claim(&self, limit: usize) -> Claimed {
        let (name, interval) = (self.queue.name, self.queue.interval);
        let only_unleased = self.heed_clock().await;
        let next = move |conn: &mut Conn| queue::next_due(conn, name, Timestamp::now(), only_unleased);
        let due = match self.store.read("jobs::next_due", next).await {
            Ok(due) => due,
            Err(error) => {
                log::warn!(queue = name, error:% = error; "cannot look for jobs");
                return Claimed::nothing(interval);
            }
        };
        let pause = due.map_or(i64::MAX, |due| due.0.saturating_sub(Timestamp::now().0));
        if pause > 0 {
            return Claimed::nothing(interval.min(Duration::from_micros(pause as u64)));
        }
        if let Some(check) = self.queue.check.clone() {
            let found = blocking::begin(move || check()).await;
            if let Ok(Some(obstacle)) = found {
                self.refusals.say(|repeats| {
                    log::error!(queue = name, reason = obstacle.message.as_str(), repeats; "jobs are left to others");
                });
                return Claimed::nothing(interval);
            }
        }
        let token = *chance::name().as_bytes();
        match self.take(limit, token, only_unleased).await {
            // a workspace has as many as it may
            Ok(jobs) if jobs.is_empty() && self.queue.turns != Turns::OneEach => {
                Claimed::nothing(interval.min(TURN_PAUSE))
            }
            // somebody else was faster; there may be more behind
            Ok(jobs) if jobs.is_empty() => Claimed::nothing(interval.min(CLAIM_PAUSE)),
            Ok(jobs) if jobs.len() < limit => Claimed { token, jobs, wait: CLAIM_PAUSE.min(interval) },
            Ok(jobs) => Claimed { token, jobs, wait: interval },
            Err(error) => {
                log::warn!(queue = name, error:% = error; "cannot claim jobs");
                Claimed::nothing(interval)
            }
        }
    }

    /// Takes jobs that are due, of the workspaces whose turn it is.
    async fn take(&self, limit: usize, token: LeaseToken, only_unleased: bool) -> Result<Vec<Job>> {
        let (queue, turns, behind) = (self.queue.name, self.queue.turns, self.turn.load(Ordering::Relaxed));
        let lease = self.queue.lease.as_micros() as i64;
        let claim = move |conn: &mut Conn| {
            let now = Timestamp::now();
            let (until, limit) = (now.plus(lease), limit as i64);
            let claim = Claim { queue, token: &token, now, until, limit, per_workspace: None, only_unleased };
            match turns {
                Turns::OneEach => queue::claim_in_turn(conn, &claim, behind),
                Turns::AtMost(most) => {
                    let claim = Claim { per_workspace: Some(most as i64), ..claim };
                    Ok((queue::claim(conn, &claim)?, behind))
                }
            }
        };
        let (jobs, last) = self.store.write("jobs::claim", claim).await?;
        self.turn.store(last, Ordering::Relaxed);
        let ended = jobs.iter().filter(|job| job.taken_over).count();
        metrics::counter!("open_spanner_leases_expired_total", "queue" => self.queue.name)
            .increment(ended as u64);
        Ok(jobs)
    }

    async fn work(&self, job: Job, token: LeaseToken) {
        let started = clock::moment();
        let result = tokio::select! {
            result = self.traced_attempt(&job, token) => result,
            () = self.stop.cancelled() => {
                let release = move |conn: &mut Conn| queue::release(conn, &job, &token);
                if let Err(error) = self.store.write("jobs::release", release).await {
                    log::warn!(queue = self.queue.name, error:% = error; "a job could not be given back; its lease will end");
                }
                return;
            }
        };
        let outcome = if result.is_ok() { "done" } else { "failed" };
        let labels = [("queue", self.queue.name), ("outcome", outcome)];
        metrics::histogram!("open_spanner_worker_job_duration_seconds", &labels)
            .record(clock::since(started).as_secs_f64());
        if let Err(error) = self.settle(job, token, result).await {
            // the lease runs out and the job is done again: handlers must bear that
            log::warn!(queue = self.queue.name, error:% = error; "the end of a job could not be recorded");
        }
    }

    async fn traced_attempt(&self, job: &Job, token: LeaseToken) -> Result<Done> {
        let mut span = Span::of_job(self.queue.name);
        let result = spans::within(&span, self.attempt(job, token)).await;
        if let Err(error) = &result {
            span.note(|notes| notes.failed(error.code.as_str()));
        }
        result
    }

    /// One try, with the lease renewed while it lasts.
    async fn attempt(&self, job: &Job, token: LeaseToken) -> Result<Done> {
        if job.attempts > self.queue.max_attempts as i32 {
            return Err(Error::unavailable("the worker died on every attempt"));
        }
        // it may have waited long for its turn
        if clock::since(job.claimed) > self.queue.lease / 3 && !self.renew(job, token).await {
            return Err(Error::unavailable("another worker has the job"));
        }
        let work = tokio::time::timeout(self.queue.timeout, (self.queue.handler)(job.clone(), token));
        tokio::select! {
            result = work => result.map_err(|_| Error::unavailable(format!("took longer than {:?}", self.queue.timeout)))?,
            () = self.keep(job, token) => Err(Error::unavailable("another worker has the job")),
        }
    }

    /// Renews the lease until it is lost.
    async fn keep(&self, job: &Job, token: LeaseToken) {
        loop {
            tokio::time::sleep(self.queue.lease / 3).await;
            if !self.renew(job, token).await {
                return;
            }
        }
    }

    /// False when the lease is lost. When the database is away for a moment it may still hold: only a clear "no"
    /// ends the work.
    async fn renew(&self, job: &Job, token: LeaseToken) -> bool {
        let (job, lease) = (job.clone(), self.queue.lease);
        let renew = move |conn: &mut Conn| {
            let now = Timestamp::now();
            queue::renew(conn, &job, &token, now, now.plus(lease.as_micros() as i64))
        };
        self.store.write("jobs::renew", renew).await.unwrap_or(true)
    }

    async fn settle(&self, job: Job, token: LeaseToken, result: Result<Done>) -> Result<()> {
        let now = Timestamp::now();
        let name = self.queue.name;
        match result {
            Ok(done) => {
                self.heart.note(true);
                let again_at = match done {
                    Done::Finished => None,
                    Done::Reschedule(at) => Some(at),
                };
                let finish = move |conn: &mut Conn| queue::finish(conn, &job, &token, again_at);
                self.store.write("jobs::finish", finish).await
            }
            Err(error) => {
                self.heart.note(false);
                log::warn!(queue = name, key = job.key.as_str(), attempts = job.attempts, error:% = error; "job failed");
                if job.attempts >= self.queue.max_attempts as i32 {
                    let bury = move |conn: &mut Conn| queue::bury(conn, &job, &token, &error.message, now);
                    return self.store.write("jobs::bury", bury).await;
                }
                let at = now.plus(self.pause(job.attempts).as_micros() as i64);
                let retry = move |conn: &mut Conn| queue::retry(conn, &job, &token, at, &error.message);
                self.store.write("jobs::retry", retry).await
            }
        }
    }

    /// `retry_after` doubled per attempt, at most an hour, up to a fifth more or less.
    fn pause(&self, attempts: i32) -> Duration {
        let doubled = self.queue.retry_after.saturating_mul(1 << (attempts - 1).clamp(0, 16));
        doubled.min(BACKOFF_MAX).mul_f64(chance::within(0.8..1.2))
    }
}

impl Claimed {
    fn nothing(wait: Duration) -> Self {
        Claimed { token: [0; 16], jobs: Vec::new(), wait }
    }
}
