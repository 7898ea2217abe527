//! The bounded queue between callers and writers. Workspaces take turns in it; nobody waits for a timer.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tokio::sync::oneshot;

use crate::error::{Error, Result};
use crate::ingest::insert::{Batch, Outcome};
use crate::ingest::room::Place;
use crate::ingest::turns::Turns;
use crate::logging::spans::Span;

pub struct Job {
    pub batch: Arc<Batch>,
    pub answer: oneshot::Sender<Result<Outcome>>,
    /// What was not begun by then is not begun at all, so that what is begun has time to end well.
    pub begin_by: Instant,
    /// Later than this it is not stored any more: the caller is told that it failed.
    pub deadline: Instant,
    /// See [`room::units`].
    pub units: usize,
    /// Held until the job is answered.
    pub room: Place,
    /// What it waits for: its turn, then the commit.
    pub span: Span,
}

impl Job {
    /// Lets go of the batch first: the caller makes its answer of the events themselves.
    pub fn answer(self, outcome: Result<Outcome>) {
        let Job { batch, answer, room, mut span, .. } = self;
        if let Err(error) = &outcome {
            span.note(|notes| notes.failed(error.code.as_str()));
        }
        drop((batch, room, span));
        // the caller may have gone; what it sent is stored all the same
        let _ = answer.send(outcome);
    }
}

/// Where jobs wait. The channel tells writers that there is one, and when no more will come; it holds a token for
/// each job.
#[derive(Clone)]
pub struct Queue {
    turns: Arc<Mutex<Turns<Job>>>,
    tokens: flume::Sender<()>,
}

/// The writers' end.
#[derive(Clone)]
pub struct Waiting {
    turns: Arc<Mutex<Turns<Job>>>,
    tokens: flume::Receiver<()>,
}

impl Queue {
    pub fn new() -> (Queue, Waiting) {
        // bounded by the room; the channel itself never blocks
        let (sender, receiver) = flume::unbounded();
        let turns = Arc::new(Mutex::new(Turns::default()));
        (Queue { turns: turns.clone(), tokens: sender }, Waiting { turns, tokens: receiver })
    }

    pub fn send(&self, job: Job, is_part: bool) -> Result<()> {
        let (workspace_id, units) = (job.batch.origin.workspace_id, job.units);
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.push(workspace_id, is_part, units, job);
        drop(turns);
        self.tokens.send(()).map_err(|_| Error::unavailable("the server is stopping"))
    }
}

impl Waiting {
    /// `None` when no more will come.
    pub async fn next(&self) -> Option<Job> {
        self.tokens.recv_async().await.ok()?;
        self.pop()
    }

    /// How many wait now.
    pub fn count(&self) -> usize {
        self.tokens.len()
    }

    /// `None` when none waits now.
    pub fn try_next(&self) -> Option<Job> {
        self.tokens.try_recv().ok()?;
        self.pop()
    }

    fn pop(&self) -> Option<Job> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }
}
