//! The one way in for usage: admission, a bounded queue, group commit, answers. REST, gRPC and the dashboard call
//! [`Ingest::record`]. Writers take what waits while the last commit ran, so that load makes batches larger instead
//! of queues longer; nobody waits for a timer. No SQL here.

mod rate;

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use serde::Serialize;
use serde::ser::SerializeStruct;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::config;
use crate::error::{Code, Error, Result};
use crate::event::{self, Event, Input, StoredEvent};
use crate::meter::Meter;
use crate::store::decisions::Decided;
use crate::store::events::{Batch, Known, Outcome};
use crate::store::meters::MeterCache;
use crate::store::{Store, events};
use crate::window::Micros;
use crate::worker::Wake;
use rate::RateLimit;

pub use crate::store::events::Kind;

/// An item that was not stored, by its position in the request.
#[derive(Clone, Debug)]
pub struct Failure {
    pub index: usize,
    pub error: Error,
}

impl Serialize for Failure {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut failure = serializer.serialize_struct("Failure", 3)?;
        failure.serialize_field("index", &self.index)?;
        failure.serialize_field("code", self.error.code.as_str())?;
        failure.serialize_field("message", &self.error.message)?;
        failure.end()
    }
}

/// What became of a call.
#[derive(Debug)]
pub struct Recorded {
    pub accepted: Vec<StoredEvent>,
    pub duplicates: Vec<StoredEvent>,
    pub failed: Vec<Failure>,
    /// Set when the call's own key was used before: the lists answered then, as JSON; the two above are empty.
    pub replay: Option<Replay>,
}

#[derive(Debug)]
pub struct Replay {
    pub accepted: String,
    pub duplicates: String,
}

struct Job {
    batch: Arc<Batch>,
    answer: oneshot::Sender<Result<Outcome>>,
    /// Held until the job is answered: what the queue may hold is counted in events.
    _room: OwnedSemaphorePermit,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Ingest {
    queue: flume::Sender<Job>,
    /// Consumptions: each subject always goes to the same one, so that writers of one server do not wait for each
    /// other's lock on a hot subject, and its decisions are made in large groups.
    consumptions: Arc<[flume::Sender<Job>]>,
    room: Arc<Semaphore>,
    meters: MeterCache,
    store: Store,
    rate: Option<Arc<RateLimit>>,
    known: Arc<Known>,
}

/// A meter that changes faster than its events can be checked is not worth more tries than this.
const STALE_TRIES: usize = 5;
const LANES: i16 = 64;

impl Ingest {
    /// Starts the writers on the current runtime. They end when the last `Ingest` is dropped and the queue is empty;
    /// the handles tell when.
    pub fn start(
        store: Store,
        meters: MeterCache,
        settings: &config::Ingest,
        wake: &Wake,
    ) -> (Ingest, Vec<tokio::task::JoinHandle<()>>) {
        // bounded by `room`; the channel itself never blocks
        let (queue, jobs) = flume::unbounded::<Job>();
        let known = Arc::new(Known::default());
        let writers = if store.is_postgres() { settings.writers } else { 1 };
        // replicas that share a lane only wait for each other
        let first_lane = rand::random_range(0..LANES);
        let start = |number: usize, jobs: flume::Receiver<Job>| {
            let writer = Writer {
                store: store.clone(),
                jobs,
                known: known.clone(),
                lane: (first_lane + number as i16) % LANES,
                events_max: settings.batch_events,
                wake: wake.clone(),
            };
            tokio::spawn(writer.run())
        };
        let mut handles: Vec<_> = (0..writers).map(|number| start(number, jobs.clone())).collect();
        let mut consumptions = Vec::with_capacity(writers);
        for number in writers..2 * writers {
            let (queue, jobs) = flume::unbounded::<Job>();
            handles.push(start(number, jobs));
            consumptions.push(queue);
        }
        let rate = (settings.rate_limit_events > 0)
            .then(|| Arc::new(RateLimit::new(settings.rate_limit_events, settings.rate_limit_window)));
        let room = Arc::new(Semaphore::new(settings.queue_events));
        let consumptions = consumptions.into();
        (Ingest { queue, consumptions, room, meters, store, rate, known }, handles)
    }

    /// A meter was deleted, and with it what writers believe to be stored of it.
    pub fn forget_meter(&self, meter_id: i64) {
        self.known.forget_meter(meter_id);
    }

    /// Forgets answers to bulk calls that are older than the lifetime, in small steps.
    pub async fn sweep_replays(&self, lifetime: std::time::Duration) -> Result<()> {
        let before = Micros::now().plus(-(lifetime.as_micros() as i64));
        loop {
            let sweep = move |conn: &mut _| events::sweep_replays(conn, before);
            if self.store.write("events::sweep_replays", sweep).await? == 0 {
                return Ok(());
            }
        }
    }

    /// Stores what is valid of a call, all of it in one transaction, and says what became of each item. Returns
    /// after the commit. Fails as a whole only when nothing was stored.
    pub async fn record(
        &self,
        workspace_id: i64,
        kind: Kind,
        inputs: Vec<Input>,
        replay_key: Option<String>,
    ) -> Result<Recorded> {
        let total = inputs.len();
        let mut inputs = inputs;
        for tries in 0.. {
            // a stale meter asks for the inputs once more; nearly always the first try is the last
            let again = tries + 1 < STALE_TRIES;
            let kept = if again { inputs.clone() } else { Vec::new() };
            let admitted = self.admit(workspace_id, std::mem::replace(&mut inputs, kept)).await?;
            let outcome = self.submit(workspace_id, kind, &admitted, replay_key.clone(), false).await?;
            match outcome {
                Outcome::Again => {}
                Outcome::Stale => self.forget_meters(workspace_id, &admitted),
                outcome => {
                    let recorded = admitted.into_recorded(outcome);
                    count(kind, total, &recorded);
                    return Ok(recorded);
                }
            }
            if !again {
                break;
            }
        }
        Err(Error::unavailable("the meter is being changed"))
    }

    /// Decides whether an event with an idempotency key may be consumed, and stores it if so, in one transaction. A
    /// key that was decided before gets that decision again.
    pub async fn consume(&self, workspace_id: i64, input: Input) -> Result<Decided> {
        for _ in 0..STALE_TRIES {
            let mut admitted = self.admit(workspace_id, vec![input.clone()]).await?;
            if let Some(failure) = admitted.failed.pop() {
                return Err(failure.error);
            }
            match self.submit(workspace_id, Kind::Single, &admitted, None, true).await? {
                Outcome::Decided(decided) => return Ok(*decided),
                Outcome::Stale => self.forget_meters(workspace_id, &admitted),
                _ => {}
            }
        }
        Err(Error::unavailable("the key or the meter is in use by others"))
    }

    fn forget_meters(&self, workspace_id: i64, admitted: &Admitted) {
        for event in &admitted.events {
            self.meters.forget(workspace_id, &event.meter.name);
        }
    }

    /// Checks every item against its meter.
    async fn admit(&self, workspace_id: i64, inputs: Vec<Input>) -> Result<Admitted> {
        let now = Micros::now();
        let mut meters: HashMap<String, Option<Arc<Meter>>> = HashMap::new();
        let mut admitted = Admitted {
            events: Vec::with_capacity(inputs.len()),
            places: Vec::new(),
            failed: Vec::new(),
            now,
        };
        for (index, input) in inputs.into_iter().enumerate() {
            let meter = match meters.get(input.meter()) {
                Some(meter) => meter.clone(),
                None => {
                    let meter = self.find_meter(workspace_id, input.meter()).await?;
                    meters.insert(input.meter().to_owned(), meter.clone());
                    meter
                }
            };
            let result = match meter {
                Some(meter) => event::admit(&meter, input, now),
                None if input.meter().is_empty() => Err(Error::invalid("meter is required")),
                None => Err(Error::not_found(format!("meter {:?}", input.meter()))),
            };
            match result {
                Ok(event) => {
                    admitted.events.push(event);
                    admitted.places.push(index);
                }
                Err(error) if error.code == Code::Internal => return Err(error),
                Err(error) => admitted.failed.push(Failure { index, error }),
            }
        }
        Ok(admitted)
    }

    async fn find_meter(&self, workspace_id: i64, name: &str) -> Result<Option<Arc<Meter>>> {
        if name.is_empty() { Ok(None) } else { self.meters.get(workspace_id, name).await }
    }

    /// Queues the valid events and waits for their commit.
    async fn submit(
        &self,
        workspace_id: i64,
        kind: Kind,
        admitted: &Admitted,
        replay_key: Option<String>,
        consumes: bool,
    ) -> Result<Outcome> {
        // a refused single write leaves no trace; a bulk call that came this far does
        if admitted.events.is_empty() && kind == Kind::Single {
            return Ok(Outcome::Stored(Vec::new()));
        }
        let charged = self.charge(workspace_id, &admitted.events).await?;
        let batch = Batch {
            workspace_id,
            kind,
            events: admitted.events.clone(),
            failed: admitted.failed.len() as i64,
            replay_key,
            received_at: admitted.now,
            consumes,
        };
        let outcome = self.enqueue(batch).await;
        self.refund(workspace_id, charged, &outcome);
        outcome
    }

    async fn enqueue(&self, batch: Batch) -> Result<Outcome> {
        let weight = batch.events.len().max(1) as u32;
        let Ok(room) = self.room.clone().try_acquire_many_owned(weight) else {
            metrics::counter!("open_spanner_ingest_queue_full_total").increment(1);
            return Err(Error::unavailable("the write queue is full"));
        };
        let (answer, answered) = oneshot::channel();
        let job = Job { batch: Arc::new(batch), answer, _room: room };
        let stopped = |_| Error::unavailable("the server is stopping");
        self.queue_of(&job.batch).send(job).map_err(|_| Error::unavailable("the server is stopping"))?;
        answered.await.map_err(stopped)?
    }

    fn queue_of(&self, batch: &Batch) -> &flume::Sender<Job> {
        let Some(event) = batch.events.first().filter(|_| batch.consumes) else { return &self.queue };
        let mut hasher = std::hash::DefaultHasher::new();
        (batch.workspace_id, &event.subject).hash(&mut hasher);
        let place = hasher.finish() % self.consumptions.len().max(1) as u64;
        self.consumptions.get(place as usize).unwrap_or(&self.queue)
    }

    /// Takes the events out of the workspace's allowance. When that does not suffice, keys that are stored already
    /// are looked up first: a retry costs nothing.
    async fn charge(&self, workspace_id: i64, events: &[Event]) -> Result<u64> {
        let Some(rate) = &self.rate else { return Ok(0) };
        let wanted = events.len() as u64;
        if rate.take(workspace_id, wanted).is_ok() {
            return Ok(wanted);
        }
        let keys: Vec<Vec<u8>> =
            events.iter().filter_map(|e| e.key.as_deref()).map(event::ledger_key).collect();
        let stored = if keys.is_empty() {
            0
        } else {
            let count = move |conn: &mut _| events::count_taken(conn, workspace_id, &keys);
            self.store.read("events::count_taken", count).await?
        };
        let wanted = wanted.saturating_sub(stored);
        match rate.take(workspace_id, wanted) {
            Ok(()) => Ok(wanted),
            Err(retry_after_seconds) => {
                metrics::counter!("open_spanner_ingestion_events_total", "outcome" => "throttled")
                    .increment(wanted);
                Err(Error::rate_limited(retry_after_seconds))
            }
        }
    }

    /// Gives back what was not newly stored.
    fn refund(&self, workspace_id: i64, charged: u64, outcome: &Result<Outcome>) {
        let Some(rate) = self.rate.as_ref().filter(|_| charged > 0) else { return };
        let stored = match outcome {
            Ok(Outcome::Stored(items)) => items.iter().filter(|duplicate| duplicate.is_none()).count() as u64,
            Ok(Outcome::Decided(decided)) if decided.decision.accepted && !decided.replayed => 1,
            _ => 0,
        };
        rate.give_back(workspace_id, charged.saturating_sub(stored));
    }
}

struct Admitted {
    events: Vec<Event>,
    /// Position in the request, of each event.
    places: Vec<usize>,
    failed: Vec<Failure>,
    now: Micros,
}

impl Admitted {
    fn into_recorded(self, outcome: Outcome) -> Recorded {
        let mut recorded =
            Recorded { accepted: Vec::new(), duplicates: Vec::new(), failed: self.failed, replay: None };
        match outcome {
            Outcome::Replayed { accepted, duplicates } => {
                recorded.replay = Some(Replay { accepted, duplicates })
            }
            Outcome::Stored(items) => {
                for (event, duplicate) in self.events.iter().zip(items) {
                    match duplicate {
                        Some(original) => recorded.duplicates.push(original),
                        None => recorded.accepted.push(StoredEvent::of(event)),
                    }
                }
            }
            Outcome::Stale | Outcome::Again | Outcome::Decided(_) => {}
        }
        recorded
    }
}

fn count(kind: Kind, total: usize, recorded: &Recorded) {
    let failed = recorded.failed.len() as u64;
    let duplicates = match recorded.replay {
        Some(_) => total as u64 - failed,
        None => recorded.duplicates.len() as u64,
    };
    let outcomes =
        [("accepted", recorded.accepted.len() as u64), ("duplicate", duplicates), ("rejected", failed)];
    for (outcome, count) in outcomes {
        metrics::counter!("open_spanner_ingestion_events_total", "kind" => kind.as_str(), "outcome" => outcome)
            .increment(count);
    }
}

/// One writer: takes what waits, commits it, answers.
struct Writer {
    store: Store,
    jobs: flume::Receiver<Job>,
    known: Arc<Known>,
    wake: Wake,
    lane: i16,
    events_max: usize,
}

impl Writer {
    async fn run(self) {
        while let Ok(first) = self.jobs.recv_async().await {
            let mut size = first.batch.events.len();
            let mut group = vec![first];
            while size < self.events_max {
                let Ok(job) = self.jobs.try_recv() else { break };
                size += job.batch.events.len();
                group.push(job);
            }
            self.commit(group).await;
        }
    }

    async fn commit(&self, group: Vec<Job>) {
        let batches: Vec<Arc<Batch>> = group.iter().map(|job| job.batch.clone()).collect();
        match self.store_batches(batches).await {
            Ok(outcomes) => {
                for (job, outcome) in group.into_iter().zip(outcomes) {
                    // the caller may have gone; what it sent is stored all the same
                    let _ = job.answer.send(Ok(outcome));
                }
            }
            Err(error) if group.len() == 1 || error.code == Code::Unavailable => {
                for job in group {
                    let _ = job.answer.send(Err(error.clone()));
                }
            }
            // one poisoned call must not fail its neighbours
            Err(_) => {
                for job in group {
                    let result = self.store_batches(vec![job.batch.clone()]).await;
                    let outcome = result.and_then(|outcomes| {
                        outcomes
                            .into_iter()
                            .next()
                            .ok_or_else(|| Error::internal("a batch without an outcome"))
                    });
                    let _ = job.answer.send(outcome);
                }
            }
        }
    }

    async fn store_batches(&self, batches: Vec<Arc<Batch>>) -> Result<Vec<Outcome>> {
        let events: usize = batches.iter().map(|batch| batch.events.len()).sum();
        metrics::histogram!("open_spanner_ingest_batch_events").record(events as f64);
        let (known, lane) = (self.known.clone(), self.lane);
        let insert = move |conn: &mut _| events::insert(conn, &batches, lane, &known);
        let (outcomes, learned) = self.store.write("events::insert", insert).await?;
        if learned.has_jobs {
            self.wake.ring();
        }
        self.known.remember(learned);
        Ok(outcomes)
    }
}
