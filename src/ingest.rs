//! The one way in for usage: admission, a bounded queue, group commit, answers. REST, gRPC and the dashboard call
//! [`Ingest::record`]. Writers take what waits while the last commit ran, so that load makes batches larger instead
//! of queues longer; nobody waits for a timer, but for a moment beside other servers (`pace`). Workspaces take turns. No SQL here.

mod folding;
pub mod insert;
mod nodes;
mod origin;
mod pace;
pub mod preview;
mod queue;
mod rate;
mod recorded;
pub mod refusal;
mod rehearsal;
mod room;
mod tally;
mod turns;
mod writer;

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, oneshot};

use self::insert::{Batch, DecidedAt, Outcome, WriteCache};
pub use self::refusal::About;
use crate::blocking;
use crate::chance;
use crate::clock;
use crate::config;
use crate::db::Store;
use crate::db::identity::PerEpoch;
use crate::entitlements::sql::decisions::Decided;
use crate::error::{Code, Error, Result};
use crate::jobs::worker::JobNotifier;
use crate::logging::spans::Span;
use crate::metering::event::{self, Event, Input};
use crate::metering::meter::Meter;
use crate::metering::stored::{Answered, Original};
use crate::metering::time::Timestamp;
use crate::meters::sql::MeterCache;
use crate::usage::ingestion_runs::{self, Refused};
use crate::usage::key_conflicts::{self, KeyConflicts};
use crate::usage::refused::{self, RefusedEvent};
use folding::Folding;
use nodes::Nodes;
use pace::Pace;
use queue::{Job, Queue, Waiting};
use rate::RateLimit;
use room::Room;
use tally::Tally;
use writer::{Writer, late};

pub use crate::ingest::insert::Kind;
pub use crate::ingest::origin::{Door, Origin};
pub use crate::ingest::recorded::{Failure, Recorded};
pub use crate::ingest::rehearsal::Rehearsed;

/// What belongs to a call as a whole.
struct Call {
    origin: Origin,
    kind: Kind,
    /// Items the door refused itself; only counted here.
    refused: usize,
    replay_key: Option<String>,
    /// A part of a stream: waits for room in the queue.
    is_part: bool,
    /// Stored only if the quota allows it.
    consumes: Option<DecidedAt>,
    /// Leaves no trace, not even of what is refused.
    is_rehearsal: bool,
}

impl Call {
    fn new(origin: Origin, kind: Kind) -> Self {
        Call {
            origin,
            kind,
            refused: 0,
            replay_key: None,
            is_part: false,
            consumes: None,
            is_rehearsal: false,
        }
    }
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Ingest {
    queue: Queue,
    /// Consumptions: each subject always goes to the same one, so that writers of one server do not wait for each
    /// other's lock on a hot subject, and its decisions are made in large groups.
    consumptions: Arc<[Queue]>,
    room: Room,
    /// Streams wait for room instead of being refused. Theirs is apart, or calls that cannot wait would find none.
    stream_room: Room,
    meters: MeterCache,
    store: Store,
    rate: Option<Arc<RateLimit>>,
    decided_at: DecidedAt,
    known: Arc<PerEpoch<WriteCache>>,
    tally: Arc<Tally>,
    /// What refused events said is written down with them.
    keeps_payloads: bool,
    folding: Arc<Folding>,
    /// Each workspace has one of them, and with it a part of the processors.
    long_validations: Arc<[Semaphore]>,
}

/// Bytes of metadata that are checked on the thread that answers: two milliseconds of it.
const VALIDATED_HERE: usize = 64 * 1024;
const LONG_VALIDATIONS: i64 = 64;

/// A meter that changes faster than its events can be checked is not worth more tries than this.
const STALE_TRIES: usize = 5;
const LANES: i16 = 64;
/// A call that waited this long in the queue is told to come again: its caller is about to give up, or has.
const CALL_AGE_MAX: Duration = Duration::from_secs(5);

impl Ingest {
    /// Starts the writers on the current runtime. They end when the last `Ingest` is dropped and the queue is empty;
    /// the handles tell when.
    pub fn start(
        store: Store,
        meters: MeterCache,
        settings: &config::Ingest,
        wake: &JobNotifier,
    ) -> (Ingest, Vec<tokio::task::JoinHandle<()>>) {
        let (queue, jobs) = Queue::new();
        let known: Arc<PerEpoch<WriteCache>> = Arc::default();
        let folding = Arc::new(Folding::new(settings.settle_after));
        let nodes: Arc<Nodes> = Arc::default();
        let writers = if store.is_postgres() { settings.writers } else { 1 };
        // replicas that share a lane only wait for each other; SQLite has one writer
        let first_lane = if store.is_postgres() { chance::within(0..LANES) } else { 0 };
        let start = |number: usize, jobs: Waiting, pace: Arc<Pace>| {
            let writer = Writer {
                store: store.clone(),
                jobs,
                known: known.clone(),
                lane: (first_lane + number as i16) % LANES,
                units_max: settings.batch_events,
                wake: wake.clone(),
                folding: folding.clone(),
                pace,
                nodes: nodes.clone(),
            };
            tokio::spawn(writer.run())
        };
        let pace: Arc<Pace> = Arc::default();
        let mut handles: Vec<_> =
            (0..writers).map(|number| start(number, jobs.clone(), pace.clone())).collect();
        let mut consumptions = Vec::with_capacity(writers);
        for number in writers..2 * writers {
            let (queue, jobs) = Queue::new();
            handles.push(start(number, jobs, Arc::default()));
            consumptions.push(queue);
        }
        let rate = (settings.rate_limit_events > 0)
            .then(|| Arc::new(RateLimit::new(settings.rate_limit_events, settings.rate_limit_window)));
        let room = Room::new(settings.queue_events);
        room.measure();
        let stream_room = Room::new(settings.queue_events);
        let consumptions = consumptions.into();
        (
            Ingest {
                queue,
                consumptions,
                room,
                stream_room,
                meters,
                store,
                rate,
                decided_at: match settings.consumption_by_timestamp {
                    true => DecidedAt::EventTime,
                    false => DecidedAt::Now,
                },
                known,
                folding,
                tally: Arc::default(),
                keeps_payloads: settings.keeps_refused_payloads,
                long_validations: {
                    let threads = std::thread::available_parallelism().map_or(1, |count| count.get() / 2);
                    (0..LONG_VALIDATIONS).map(|_| Semaphore::new(threads.max(1))).collect()
                },
            },
            handles,
        )
    }

    /// A meter was deleted, and with it what writers believe to be stored of it.
    pub fn forget_meter(&self, meter_id: i64) {
        self.known.of(self.store.epochs().current()).forget_meter(meter_id);
    }

    /// Folds the sums that commits leave, for ever.
    pub fn fold(&self) -> impl Future<Output = ()> + use<> {
        self.folding.clone().run(self.store.clone())
    }

    /// Forgets answers to bulk calls that are older than the lifetime, in small steps.
    pub async fn sweep_replays(&self, lifetime: std::time::Duration) -> Result<()> {
        let before = Timestamp::now().plus(-(lifetime.as_micros() as i64));
        loop {
            let sweep = move |conn: &mut _| insert::sweep_replays(conn, before);
            if self.store.write("events::sweep_replays", sweep).await? == 0 {
                return Ok(());
            }
        }
    }

    /// Writes down what was turned away since the last time.
    pub async fn flush_refusals(&self) -> Result<()> {
        let noted = self.tally.take_noted();
        if !noted.is_empty() {
            let noted = Arc::new(noted);
            let rows = noted.clone();
            if let Err(error) = self.store.write("refused::add", move |conn| refused::add(conn, &rows)).await
            {
                // what was refused because the database is away is told when it is back
                noted.iter().for_each(|event| self.tally.note(event.clone()));
                return Err(error);
            }
        }
        let mut gathered: Vec<(i64, Refused)> = self.tally.take().into_iter().collect();
        if gathered.is_empty() {
            return Ok(());
        }
        gathered.sort_unstable_by_key(|(workspace_id, _)| *workspace_id);
        let rows = gathered.clone();
        let add = move |conn: &mut _| ingestion_runs::add_refused(conn, &rows);
        let added = self.store.write("history::add_refused", add).await;
        if added.is_err() {
            gathered.into_iter().for_each(|(workspace_id, refused)| self.tally.add(workspace_id, refused));
        }
        added
    }

    /// Keeps what a door refused itself for those who ask about it; gives the error back, to be answered.
    pub fn refuse(&self, origin: &Origin, about: About, error: Error) -> Error {
        if error.code != Code::Internal {
            self.note(about.refused(origin, &error, Timestamp::now()));
        }
        error
    }

    /// The same of a call whose caller may not make it: one of them tells of all, for as long as it waits.
    pub fn refuse_call(&self, origin: &Origin, error: &Error) {
        self.tally.note_once(About::default().refused(origin, error, Timestamp::now()));
    }

    fn note(&self, event: RefusedEvent) {
        self.tally.note(self.without_payload(event));
    }

    fn without_payload(&self, event: RefusedEvent) -> RefusedEvent {
        match self.keeps_payloads {
            true => event,
            false => RefusedEvent { payload: None, sent: None, stored: None, ..event },
        }
    }

    /// Keeps why a call was not stored as a whole, with the first of its events.
    fn note_call(&self, batch: &Batch, error: &Error) {
        if error.code == Code::Internal {
            return;
        }
        let about = batch.events.first().map(|event| About::of(&event.clone().into_input()));
        let event = about.unwrap_or_default().refused(&batch.origin, error, Timestamp::now());
        self.tally.note_once(self.without_payload(event));
    }

    /// Forgets refused events that are older than this.
    pub async fn sweep_refused(&self, lifetime: Duration) -> Result<()> {
        let before = Timestamp::now().plus(-(lifetime.as_micros() as i64));
        self.store.write("refused::expire", move |conn| refused::expire(conn, before)).await.map(drop)
    }

    /// Stores what is valid of a call, all of it in one transaction, and says what became of each item. Returns
    /// after the commit. Fails as a whole only when nothing was stored.
    pub async fn record(
        &self,
        origin: Origin,
        kind: Kind,
        inputs: Vec<Input>,
        replay_key: Option<String>,
    ) -> Result<Recorded> {
        self.record_call(Call { replay_key, ..Call::new(origin, kind) }, inputs).await
    }

    /// Stores one part of a stream like a call of its own, except that it waits for room in the queue, and that all
    /// parts make up one ingestion run. `refused` items were turned away before and are only counted.
    pub async fn record_part(&self, origin: Origin, inputs: Vec<Input>, refused: usize) -> Result<Recorded> {
        let call = Call { refused, is_part: true, ..Call::new(origin, Kind::Stream) };
        self.record_call(call, inputs).await
    }

    async fn record_call(&self, call: Call, inputs: Vec<Input>) -> Result<Recorded> {
        let (workspace_id, is_part, refused) = (call.origin.workspace_id, call.is_part, call.refused);
        let mut admitted = self.admit(call, inputs).await?;
        for _ in 0..STALE_TRIES {
            match self.submit(&admitted.batch, is_part).await? {
                Outcome::Retry => {}
                Outcome::Stale => admitted = self.admit_again(admitted).await?,
                outcome => {
                    let (kind, valid) = (admitted.batch.kind, admitted.batch.events.len());
                    self.note_conflicts(&admitted.batch, &outcome);
                    let mut recorded = admitted.into_recorded(outcome);
                    recorded.refuses_conflicts =
                        recorded.has_conflict() && self.refuses_conflicts(workspace_id).await?;
                    count(kind, valid, refused, &recorded);
                    tell_conflicts(workspace_id, kind, &recorded);
                    let rejected = (recorded.failed.len() + refused) as i64;
                    self.tally.add(workspace_id, Refused { rejected, throttled: 0 });
                    return Ok(recorded);
                }
            }
        }
        Err(Error::unavailable("the meter is being changed"))
    }

    /// Decides whether an event with an idempotency key may be consumed, and stores it if so, in one transaction. A
    /// key that was decided before gets that decision again.
    pub async fn consume(&self, origin: Origin, input: Input) -> Result<Decided> {
        let workspace_id = origin.workspace_id;
        let call = Call { consumes: Some(self.decided_at), ..Call::new(origin, Kind::Single) };
        let mut admitted = self.admit(call, vec![input]).await?;
        for _ in 0..STALE_TRIES {
            if let Some(failure) = admitted.failed.pop() {
                return Err(failure.error);
            }
            match self.submit(&admitted.batch, false).await? {
                Outcome::Decided(mut decided) => {
                    if decided.conflict {
                        note_conflicts(workspace_id, "consume", 1);
                        let sent = admitted.batch.events.first();
                        decided.event =
                            decided.event.zip(sent).map(|(stored, sent)| stored.in_conflict_with(sent));
                    }
                    return Ok(*decided);
                }
                Outcome::Stale => admitted = self.admit_again(admitted).await?,
                _ => {}
            }
        }
        Err(Error::unavailable("the key or the meter is in use by others"))
    }

    /// Whether the workspace wants keys that are used for something else to be refused. Asked when one was, which is rare.
    pub async fn refuses_conflicts(&self, workspace_id: i64) -> Result<bool> {
        let find = move |conn: &mut _| key_conflicts::find(conn, workspace_id);
        let setting = self.store.ingestion().read("workspaces::key_conflicts", find).await?;
        Ok(setting == KeyConflicts::Refuse)
    }

    /// Checks every item against its meter.
    async fn admit(&self, call: Call, inputs: Vec<Input>) -> Result<Admitted> {
        let now = Timestamp::now();
        let batch = Batch {
            origin: call.origin,
            kind: call.kind,
            events: Vec::with_capacity(inputs.len()),
            failed: 0,
            replay_key: call.replay_key,
            received_at: now,
            consumes: call.consumes,
        };
        let items = inputs.into_iter().enumerate().collect();
        let (refused, is_rehearsal) = (call.refused, call.is_rehearsal);
        let admitted =
            Admitted { batch: Arc::new(batch), places: Vec::new(), failed: Vec::new(), is_rehearsal };
        self.admit_items(admitted, items, refused).await
    }

    /// The meters changed since: checks what was valid against what they are now.
    async fn admit_again(&self, admitted: Admitted) -> Result<Admitted> {
        let Admitted { batch, places, failed, is_rehearsal } = admitted;
        let refused = (batch.failed as usize).saturating_sub(failed.len());
        let mut batch = Arc::unwrap_or_clone(batch);
        let events = std::mem::take(&mut batch.events);
        for event in &events {
            self.meters.forget(batch.origin.workspace_id, &event.meter.name);
        }
        let inputs = events.into_iter().map(Event::into_input);
        let items = places.into_iter().zip(inputs).collect();
        let admitted = Admitted { batch: Arc::new(batch), places: Vec::new(), failed, is_rehearsal };
        self.admit_items(admitted, items, refused).await
    }

    /// Adds what is valid of the items to the batch.
    async fn admit_items(
        &self,
        admitted: Admitted,
        items: Vec<(usize, Input)>,
        refused: usize,
    ) -> Result<Admitted> {
        let Admitted { batch, mut places, mut failed, is_rehearsal } = admitted;
        let mut batch = Arc::unwrap_or_clone(batch);
        let now = batch.received_at;
        let mut meters: HashMap<String, Option<Arc<Meter>>> = HashMap::new();
        for (_, input) in &items {
            if !meters.contains_key(input.meter()) {
                let meter = self.find_meter(batch.origin.workspace_id, input.meter()).await?;
                meters.insert(input.meter().to_owned(), meter);
            }
        }
        for (place, result) in self.validate(batch.origin.workspace_id, items, meters, now).await? {
            match result.map_err(|refused| *refused) {
                Ok(event) => {
                    batch.events.push(event);
                    places.push(place);
                }
                Err((_, error)) if error.code == Code::Internal => return Err(error),
                Err((about, error)) => {
                    if !is_rehearsal {
                        self.note(about.refused(&batch.origin, &error, now));
                    }
                    failed.push(Failure { index: place, error });
                }
            }
        }
        failed.sort_by_key(|failure| failure.index);
        batch.failed = (failed.len() + refused) as i64;
        Ok(Admitted { batch: Arc::new(batch), places, failed, is_rehearsal })
    }

    /// What each item is, or why it is refused; away from the other requests of this thread when that may take long.
    async fn validate(
        &self,
        workspace_id: i64,
        items: Vec<(usize, Input)>,
        meters: HashMap<String, Option<Arc<Meter>>>,
        now: Timestamp,
    ) -> Result<Vec<(usize, Validated)>> {
        let bytes: usize = items.iter().map(|(_, input)| input.metadata_bytes()).sum();
        let work = move || {
            let validate = |(place, mut input): (usize, Input)| {
                let result = match meters.get(input.meter()).and_then(Option::as_ref) {
                    Some(meter) => event::validate_kept(meter, &mut input, now, chance::id()),
                    None => {
                        let unreadable = event::check_time(&input).err();
                        Err(unreadable.unwrap_or_else(|| unknown_meter(input.meter()).at("meter")))
                    }
                };
                (place, result.map_err(|error| Box::new((About::of(&input), error))))
            };
            items.into_iter().map(validate).collect()
        };
        if bytes <= VALIDATED_HERE {
            return Ok(work());
        }
        let place = workspace_id.rem_euclid(LONG_VALIDATIONS) as usize;
        let _turn = self.long_validations[place].acquire().await.map_err(Error::internal)?;
        blocking::begin(work).await.map_err(Error::internal)
    }

    /// Keys that stand for an event with another payload: the sender is told of the first event, and people of both.
    fn note_conflicts(&self, batch: &Batch, outcome: &Outcome) {
        let Outcome::Stored(items) = outcome else { return };
        for (event, original) in batch.events.iter().zip(items) {
            if let Some(conflict) = original
                .as_ref()
                .and_then(|original| refusal::conflict(&batch.origin, event, &original.event))
            {
                self.note(conflict);
            }
        }
    }

    async fn find_meter(&self, workspace_id: i64, name: &str) -> Result<Option<Arc<Meter>>> {
        // PostgreSQL cannot even be asked for a name with a NUL
        let is_possible = !name.is_empty() && !name.contains('\0');
        if is_possible { self.meters.get(workspace_id, name).await } else { Ok(None) }
    }

    /// Queues the valid events and waits for their commit.
    async fn submit(&self, batch: &Arc<Batch>, waits: bool) -> Result<Outcome> {
        // a refused single write leaves no trace; a bulk call that came this far does
        if batch.events.is_empty() && batch.kind == Kind::Single {
            return Ok(Outcome::Stored(Vec::new()));
        }
        let charged = self.charge(batch, waits).await.inspect_err(|error| self.note_call(batch, error))?;
        let outcome = self.enqueue(batch.clone(), waits).await;
        self.refund(batch.origin.workspace_id, charged, &outcome);
        outcome.inspect_err(|error| self.note_call(batch, error))
    }

    /// Answers in bounded time, whatever the database does.
    async fn enqueue(&self, batch: Arc<Batch>, waits: bool) -> Result<Outcome> {
        let answered = tokio::time::timeout(self.store.answer_timeout(), self.wait_for(batch, waits));
        answered.await.unwrap_or_else(|_| Err(late()))
    }

    async fn wait_for(&self, batch: Arc<Batch>, waits: bool) -> Result<Outcome> {
        let (now, time) = (clock::moment(), self.store.answer_timeout());
        let age_max = if waits { time.mul_f64(0.7) } else { CALL_AGE_MAX.min(time.mul_f64(0.7)) };
        let (begin_by, deadline) = (now + age_max, now + time.mul_f64(0.95));
        let (workspace_id, units) = (batch.origin.workspace_id, room::units(&batch.events));
        let place = match waits {
            true => self.stream_room.place(workspace_id, units).await,
            false => self.room.try_place(workspace_id, units),
        };
        let Some(room) = place else {
            metrics::counter!("open_spanner_ingest_queue_full_total").increment(1);
            return Err(Error::queue_full());
        };
        let (answer, answered) = oneshot::channel();
        let queue = self.queue_of(&batch);
        let mut span = Span::part("ingest wait");
        span.note(|notes| notes.number("open_spanner.events", batch.events.len() as i64));
        queue.send(Job { batch, answer, begin_by, deadline, units, room, span }, waits)?;
        answered.await.map_err(|_| Error::unavailable("the server is stopping"))?
    }

    fn queue_of(&self, batch: &Batch) -> &Queue {
        let Some(event) = batch.events.first().filter(|_| batch.consumes.is_some()) else {
            return &self.queue;
        };
        let mut hasher = std::hash::DefaultHasher::new();
        (batch.origin.workspace_id, &event.subject).hash(&mut hasher);
        let place = hasher.finish() % self.consumptions.len().max(1) as u64;
        self.consumptions.get(place as usize).unwrap_or(&self.queue)
    }

    /// Takes the events out of the workspace's allowance. When that does not suffice, what is stored already is looked
    /// up first: a retry costs nothing, and is never refused.
    async fn charge(&self, batch: &Arc<Batch>, is_part: bool) -> Result<u64> {
        let Some(rate) = &self.rate else { return Ok(0) };
        let (workspace_id, wanted) = (batch.origin.workspace_id, batch.events.len() as u64);
        if rate.take(workspace_id, wanted, is_part).is_ok() {
            return Ok(wanted);
        }
        let (known, asked) = (self.known.of(self.store.epochs().current()), batch.clone());
        let count = move |conn: &mut _| insert::count_new(conn, &known, &asked);
        let wanted = self.store.ingestion().read("events::count_new", count).await?;
        match rate.take(workspace_id, wanted, is_part) {
            Ok(()) => Ok(wanted),
            Err(retry_after_seconds) => {
                metrics::counter!("open_spanner_ingestion_events_total", "outcome" => "throttled")
                    .increment(wanted);
                self.tally.add(workspace_id, Refused { rejected: 0, throttled: wanted as i64 });
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

/// An event, or what was refused and why.
type Validated = std::result::Result<Event, Box<(About, Error)>>;

fn unknown_meter(name: &str) -> Error {
    match event::reject_nul(name) {
        Err(error) => error,
        Ok(()) if name.is_empty() => Error::invalid("meter is required"),
        Ok(()) => Error::not_found(format!("meter {name:?}")),
    }
}

struct Admitted {
    /// The valid events.
    batch: Arc<Batch>,
    /// Position in the request, of each event.
    places: Vec<usize>,
    failed: Vec<Failure>,
    is_rehearsal: bool,
}

impl Admitted {
    fn into_recorded(self, outcome: Outcome) -> Recorded {
        let mut recorded = Recorded { failed: self.failed, ..Recorded::nothing() };
        match outcome {
            Outcome::Replayed { accepted, duplicates, conflict: is_conflict } => {
                recorded = Recorded { accepted, is_replay: true, is_conflict, ..recorded };
                for Answered { place, event } in duplicates {
                    // known of all of them, or of none
                    if let Some(place) = place {
                        let place = self.places.get(place).copied().unwrap_or(place);
                        recorded.duplicate_places.push(place);
                        recorded.conflict_places.extend(event.conflict.then_some(place));
                    }
                    recorded.duplicates.push(event);
                }
            }
            Outcome::Stored(items) => {
                // the writer lets go of a batch before it answers, so this copies nothing
                let events = Arc::unwrap_or_clone(self.batch).events;
                recorded.accepted.reserve(events.len());
                for ((event, place), duplicate) in events.into_iter().zip(self.places).zip(items) {
                    match duplicate {
                        Some(Original { event: stored, conflict }) => {
                            let stored = if conflict { stored.in_conflict_with(&event) } else { stored };
                            recorded.duplicates.push(stored);
                            recorded.conflict_places.extend(conflict.then_some(place));
                            recorded.duplicate_places.push(place);
                        }
                        None => {
                            recorded.accepted.push(event.into());
                            recorded.accepted_places.push(place);
                        }
                    }
                }
            }
            Outcome::Stale | Outcome::Retry | Outcome::Decided(_) => {}
        }
        recorded
    }
}

/// A client that uses a key twice loses events: somebody should know.
fn tell_conflicts(workspace_id: i64, kind: Kind, recorded: &Recorded) {
    let count = recorded.conflict_places.len() + usize::from(recorded.is_conflict);
    if count > 0 {
        note_conflicts(workspace_id, kind.as_str(), count);
    }
}

fn note_conflicts(workspace_id: i64, kind: &'static str, count: usize) {
    metrics::counter!("open_spanner_idempotency_conflicts_total", "kind" => kind).increment(count as u64);
    log::warn!(workspace_id, kind, count; "idempotency keys were used again with another payload");
}

fn count(kind: Kind, valid: usize, refused: usize, recorded: &Recorded) {
    let (accepted, duplicates) = match recorded.is_replay {
        true => (0, valid),
        false => (recorded.accepted.len(), recorded.duplicates.len()),
    };
    let rejected = recorded.failed.len() + refused;
    let outcomes = [("accepted", accepted), ("duplicate", duplicates), ("rejected", rejected)];
    for (outcome, count) in outcomes {
        metrics::counter!("open_spanner_ingestion_events_total", "kind" => kind.as_str(), "outcome" => outcome)
            .increment(count as u64);
    }
}
