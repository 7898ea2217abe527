//! A stream on its way into the database, part by part: while one part is being stored the next one fills, and when
//! both are full nothing more is read, which HTTP/2 flow control hands on to the client. Order is kept; memory is
//! bounded however long the stream is.

use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use prost::Message;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};
use uuid::Uuid;

use crate::error::{Error, Result};
use crate::grpc::{Pass, observe};
use crate::metering::event::{Input, StoredEvent};

const EVENTS_MAX: usize = 500;
const BYTES_MAX: usize = 1024 * 1024;

/// One event of a stream.
pub struct Item {
    /// What the stream's answers call it.
    pub place: u64,
    /// `Err` when it is refused already.
    pub input: Result<Input>,
    /// Its size on the wire.
    pub bytes: usize,
}

/// What became of one item.
pub struct Done {
    pub place: u64,
    pub fate: Fate,
}

pub enum Fate {
    Accepted(StoredEvent),
    Duplicate(StoredEvent),
    Failed(Error),
}

/// What happened next on a stream.
pub enum Step<M> {
    Message(M),
    Stored(Vec<Done>),
    /// The client closed its side.
    Closed,
    /// The token asked for the end.
    Cut,
}

pub struct Parts {
    pass: Pass,
    run_id: Uuid,
    linger: Duration,
    waiting: Vec<Item>,
    waiting_bytes: usize,
    waiting_since: Instant,
    storing: Option<BoxFuture<'static, Result<Vec<Done>>>>,
}

impl Parts {
    /// `linger`: how long an event may wait for others to be stored with.
    pub fn new(pass: Pass, linger: Duration) -> Parts {
        Parts {
            pass,
            run_id: Uuid::now_v7(),
            linger,
            waiting: Vec::new(),
            waiting_bytes: 0,
            waiting_since: Instant::now(),
            storing: None,
        }
    }

    pub fn add(&mut self, item: Item) {
        if self.waiting.is_empty() {
            self.waiting_since = Instant::now();
        }
        self.waiting_bytes += item.bytes;
        self.waiting.push(item);
    }

    /// Waits for whatever comes first: a message, a stored part, the end.
    pub async fn step<M: Message + Default>(
        &mut self,
        messages: &mut Streaming<M>,
        cut: &CancellationToken,
    ) -> Result<Step<M>, Status> {
        loop {
            let due = self.waiting_since + self.linger;
            let is_idle = self.storing.is_none() && !self.waiting.is_empty();
            if is_idle && (self.is_full() || due <= Instant::now()) {
                self.store_next();
                continue;
            }
            let has_room = !self.is_full();
            tokio::select! {
                biased;
                done = finished(&mut self.storing) => return done.map(Step::Stored).map_err(super::status),
                () = cut.cancelled() => return Ok(Step::Cut),
                message = messages.message(), if has_room => {
                    let message = message.map_err(observe::of_message)?;
                    return Ok(message.map_or(Step::Closed, Step::Message));
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
        self.storing = Some(Box::pin(store(self.pass.clone(), self.run_id, items)));
    }

    /// Waits for the part that is being stored; what only waits is left alone.
    pub async fn settle(&mut self) -> Result<Vec<Done>> {
        if self.storing.is_none() { Ok(Vec::new()) } else { finished(&mut self.storing).await }
    }

    /// Stores the next part of what is left; `None` when nothing is.
    pub async fn finish_next(&mut self) -> Option<Result<Vec<Done>>> {
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
async fn finished(storing: &mut Option<BoxFuture<'static, Result<Vec<Done>>>>) -> Result<Vec<Done>> {
    let Some(store) = storing else { return std::future::pending().await };
    let done = store.await;
    *storing = None;
    done
}

async fn store(pass: Pass, run_id: Uuid, items: Vec<Item>) -> Result<Vec<Done>> {
    let caller = pass.caller().await?;
    let (mut inputs, mut places) = (Vec::with_capacity(items.len()), Vec::with_capacity(items.len()));
    let mut fates: Vec<(u64, Option<Fate>)> = Vec::with_capacity(items.len());
    for item in items {
        match item.input {
            Ok(input) => {
                places.push(fates.len());
                inputs.push(input);
                fates.push((item.place, None));
            }
            Err(error) => fates.push((item.place, Some(Fate::Failed(error)))),
        }
    }
    let refused = fates.len() - inputs.len();
    let recorded = pass.app.ingest.record_part(caller.workspace_id, run_id, inputs, refused).await?;
    for failure in recorded.failed {
        fates[places[failure.index]].1 = Some(Fate::Failed(failure.error));
    }
    for (place, original) in recorded.duplicate_places.into_iter().zip(recorded.duplicates) {
        fates[places[place]].1 = Some(Fate::Duplicate(original));
    }
    // what neither failed nor was a duplicate was accepted, in order
    let mut accepted = recorded.accepted.into_iter();
    let decide = |(place, fate): (u64, Option<Fate>)| {
        let fate = fate.or_else(|| accepted.next().map(Fate::Accepted));
        fate.map(|fate| Done { place, fate }).ok_or_else(|| Error::internal("a write without an outcome"))
    };
    fates.into_iter().map(decide).collect()
}
