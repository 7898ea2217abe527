//! A stream on its way into the database, part by part: while one part is being stored the next one fills, and when
//! both are full nothing more is read, which HTTP/2 flow control hands on to the client. Order is kept; memory is
//! bounded however long the stream is, and all streams together share one budget: a stream without room in it goes on
//! event by event.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use prost::Message;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::auth::Caller;
use crate::clock;
use crate::error::{Error, Result};
use crate::grpc::ApiKeyAuth;
use crate::grpc::messages::Messages;
use crate::ingest::preview::PreviewItem;
use crate::ingest::{About, Door, Origin, Rehearsed};
use crate::metering::event::Input;
use crate::metering::stored::StoredEvent;
use crate::net::budget::{Room, Tenant};

const EVENTS_MAX: usize = 500;
const BYTES_MAX: usize = 512 * 1024;
/// What an event takes in memory while it waits and is stored, of its size on the wire and on top of it.
const MEMORY_FACTOR: usize = 3;
const EVENT_OVERHEAD: usize = 512;
/// A larger event is kept packed: it may wait for room, and for as long as others take.
const PACKED_FROM: usize = 1024;
/// What an open stream takes before anything is sent on it.
const STREAM_BYTES: usize = 16 * 1024;
/// How long a new stream, or one that keeps its events to the end, may wait for room.
const ROOM_TIMEOUT: Duration = Duration::from_secs(5);

/// One event of a stream.
pub struct Item {
    /// What the stream's answers call it.
    pub place: u64,
    /// `Err` when it is refused already.
    pub input: Result<Input>,
    /// Its size on the wire.
    pub bytes: usize,
    /// What it takes in memory while it waits and is stored.
    memory: usize,
}

impl Item {
    pub fn of(place: u64, mut input: Result<Input>, bytes: usize) -> Item {
        let mut held = 0;
        if let Ok(input) = &mut input {
            if bytes > PACKED_FROM {
                input.pack();
            }
            held = input.memory();
        }
        Item { place, input, bytes, memory: (bytes * MEMORY_FACTOR).max(held) + EVENT_OVERHEAD }
    }
}

/// What became of one item.
pub struct ItemResult {
    pub place: u64,
    pub fate: ItemOutcome,
}

pub enum ItemOutcome {
    Accepted(StoredEvent),
    /// The event that used the key first; with another payload?
    Duplicate(StoredEvent, bool),
    Failed(Error),
    /// Of a stream that stores nothing.
    Rehearsed(Box<PreviewItem>),
}

/// What happened next on a stream.
pub enum Step<M> {
    Message(M),
    Stored(Vec<ItemResult>),
    /// The client closed its side.
    Closed,
    /// The token asked for the end.
    Cut,
}

pub struct StreamBatcher {
    pass: ApiKeyAuth,
    origin: Origin,
    linger: Duration,
    waiting: Vec<Item>,
    waiting_bytes: usize,
    waiting_since: Instant,
    /// Room for what waits, and how much of what waits has none yet: nothing is read meanwhile.
    room: Room,
    unpaid_bytes: usize,
    /// Nothing is stored: only what would become of it is said.
    pub is_rehearsal: bool,
    tenant: Tenant,
    _overhead: Room,
    storing: Option<BoxFuture<'static, Result<Vec<ItemResult>>>>,
}

impl StreamBatcher {
    /// `linger`: how long an event may wait for others to be stored with. Fails when too many streams are open.
    pub async fn open(pass: ApiKeyAuth, caller: &Caller, linger: Duration) -> Result<StreamBatcher> {
        let tenant = Tenant::Workspace(caller.workspace_id);
        let mut overhead = pass.app.streams.room(tenant);
        overhead.grow_within(ROOM_TIMEOUT, STREAM_BYTES).await?;
        Ok(StreamBatcher {
            room: pass.app.streams.room(tenant),
            unpaid_bytes: 0,
            is_rehearsal: false,
            tenant,
            _overhead: overhead,
            pass,
            origin: Origin::of(caller, Door::Grpc),
            linger,
            waiting: Vec::new(),
            waiting_bytes: 0,
            waiting_since: clock::moment(),
            storing: None,
        })
    }

    /// Waits for room for an event that is kept to the end.
    pub async fn hold(&mut self, item: &Item) -> Result<()> {
        self.room.grow_within(ROOM_TIMEOUT, item.memory).await
    }

    /// Tells of an event that is refused before it is stored, unless nothing is to be.
    pub fn told(&self, (about, error): (About, Error)) -> Error {
        match self.is_rehearsal {
            true => error,
            false => self.pass.app.ingest.refuse(&self.origin, about, error),
        }
    }

    pub fn add(&mut self, item: Item) {
        if self.waiting.is_empty() {
            self.waiting_since = clock::moment();
        }
        self.waiting_bytes += item.bytes;
        self.unpaid_bytes += item.memory;
        self.waiting.push(item);
    }

    /// Waits for whatever comes first: a message, a stored part, the end.
    pub async fn step<M: Message + Default>(
        &mut self,
        messages: &mut Messages,
        cut: &CancellationToken,
    ) -> Result<Step<M>, Status> {
        loop {
            let due = self.waiting_since + self.linger;
            let is_idle = self.storing.is_none() && !self.waiting.is_empty();
            if is_idle && (self.is_full() || due <= clock::moment()) {
                self.store_next();
                continue;
            }
            let is_paid = self.unpaid_bytes == 0;
            let has_room = is_paid && !self.is_full();
            let unpaid_bytes = self.unpaid_bytes;
            tokio::select! {
                biased;
                done = finished(&mut self.storing) => return done.map(Step::Stored).map_err(super::status),
                () = cut.cancelled() => return Ok(Step::Cut),
                message = messages.next(), if has_room => return Ok(message?.map_or(Step::Closed, Step::Message)),
                paid = self.room.grow(unpaid_bytes), if !is_paid => {
                    paid.map_err(super::status)?;
                    self.unpaid_bytes = 0;
                }
                () = tokio::time::sleep_until(due.into()), if is_idle => {}
            }
        }
    }

    fn is_full(&self) -> bool {
        self.waiting.len() >= EVENTS_MAX || self.waiting_bytes >= BYTES_MAX
    }

    fn store_next(&mut self) {
        let count = self.waiting.len().min(EVENTS_MAX);
        let items: Vec<Item> = self.waiting.drain(..count).collect();
        self.waiting_bytes -= items.iter().map(|item| item.bytes).sum::<usize>();
        // what is left behind, which is rare, waits for room of its own
        let room = std::mem::replace(&mut self.room, self.pass.app.streams.room(self.tenant));
        self.unpaid_bytes = self.waiting.iter().map(|item| item.memory).sum();
        let (pass, origin, is_rehearsal) = (self.pass.clone(), self.origin.clone(), self.is_rehearsal);
        self.storing = Some(Box::pin(async move {
            let done = match is_rehearsal {
                true => rehearse(pass, origin, items).await,
                false => store(pass, origin, items).await,
            };
            drop(room);
            done
        }));
    }

    /// Waits for the part that is being stored; what only waits is left alone.
    pub async fn settle(&mut self) -> Result<Vec<ItemResult>> {
        if self.storing.is_none() { Ok(Vec::new()) } else { finished(&mut self.storing).await }
    }

    /// Stores the next part of what is left; `None` when nothing is.
    pub async fn finish_next(&mut self) -> Option<Result<Vec<ItemResult>>> {
        if self.storing.is_none() {
            if self.waiting.is_empty() {
                return None;
            }
            self.store_next();
        }
        Some(finished(&mut self.storing).await)
    }
}

/// Never ready while nothing is being stored. Can be dropped and called again.
async fn finished(
    storing: &mut Option<BoxFuture<'static, Result<Vec<ItemResult>>>>,
) -> Result<Vec<ItemResult>> {
    let Some(store) = storing else { return std::future::pending().await };
    let done = store.await;
    *storing = None;
    done
}

/// Items that may be stored, and where each of them is among all.
struct Sorted {
    inputs: Vec<Input>,
    places: Vec<usize>,
    fates: Vec<(u64, Option<ItemOutcome>)>,
}

impl Sorted {
    fn of(items: Vec<Item>) -> Sorted {
        let (inputs, places) = (Vec::with_capacity(items.len()), Vec::with_capacity(items.len()));
        let mut sorted = Sorted { inputs, places, fates: Vec::with_capacity(items.len()) };
        for item in items {
            match item.input {
                Ok(input) => {
                    sorted.places.push(sorted.fates.len());
                    sorted.inputs.push(input);
                    sorted.fates.push((item.place, None));
                }
                Err(error) => sorted.fates.push((item.place, Some(ItemOutcome::Failed(error)))),
            }
        }
        sorted
    }
}

/// What [`store`] would do.
async fn rehearse(pass: ApiKeyAuth, origin: Origin, items: Vec<Item>) -> Result<Vec<ItemResult>> {
    let caller = pass.caller().await?;
    let Sorted { inputs, places, mut fates } = Sorted::of(items);
    let (preview, _) = pass.app.ingest.rehearse(origin, Rehearsed::Write, inputs, None).await?;
    for item in preview.confined(|meter| caller.ensure_meter_allowed(meter)).items {
        let place = places[item.index];
        fates[place].1 = Some(ItemOutcome::Rehearsed(Box::new(item)));
    }
    let done = |(place, fate): (u64, Option<ItemOutcome>)| {
        let fate = fate.ok_or_else(|| Error::internal("a dry run without an outcome"))?;
        Ok(ItemResult { place, fate })
    };
    fates.into_iter().map(done).collect()
}

async fn store(pass: ApiKeyAuth, origin: Origin, items: Vec<Item>) -> Result<Vec<ItemResult>> {
    let caller = pass.caller().await?;
    let Sorted { inputs, places, mut fates } = Sorted::of(items);
    let refused = fates.len() - inputs.len();
    let recorded = pass.app.ingest.record_part(origin, inputs, refused).await?;
    let recorded = recorded.confined(|meter| caller.ensure_meter_allowed(meter))?;
    let conflicts: HashSet<usize> = recorded.conflict_places.into_iter().collect();
    for failure in recorded.failed {
        fates[places[failure.index]].1 = Some(ItemOutcome::Failed(failure.error));
    }
    for (place, original) in recorded.duplicate_places.into_iter().zip(recorded.duplicates) {
        fates[places[place]].1 = Some(ItemOutcome::Duplicate(original, conflicts.contains(&place)));
    }
    // what neither failed nor was a duplicate was accepted, in order
    let mut accepted = recorded.accepted.into_iter();
    let decide = |(place, fate): (u64, Option<ItemOutcome>)| {
        let fate = fate.or_else(|| accepted.next().map(ItemOutcome::Accepted));
        fate.map(|fate| ItemResult { place, fate })
            .ok_or_else(|| Error::internal("a write without an outcome"))
    };
    fates.into_iter().map(decide).collect()
}
