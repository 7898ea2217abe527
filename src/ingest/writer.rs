//! Group commit: a writer takes what waits, stores it in one transaction and answers each caller.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::clock;
use crate::db::Store;
use crate::db::identity::{Link, PerEpoch};
use crate::error::{Code, Error, Result};
use crate::ingest::folding::Folding;
use crate::ingest::insert::{self, Batch, Outcome, WriteCache};
use crate::ingest::pace::Pace;
use crate::ingest::queue::{Job, Waiting};
use crate::jobs::worker::JobNotifier;

pub fn late() -> Error {
    Error::unavailable("the database does not answer in time")
}

/// One writer: takes what waits, commits it, answers.
pub struct Writer {
    pub store: Store,
    pub jobs: Waiting,
    pub known: Arc<PerEpoch<WriteCache>>,
    pub wake: JobNotifier,
    pub folding: Arc<Folding>,
    /// Of its own rollup rows.
    pub lane: i16,
    pub units_max: usize,
    /// Shared by the writers of a queue.
    pub pace: Arc<Pace>,
}

/// A commit has costs of its own: while another writer is at a small one, a group smaller than this waits and grows.
const SMALL_EVENTS: usize = 24;
/// The same where other servers keep the database busy meanwhile.
const SMALL_BESIDE_OTHERS: usize = 96;
/// But it does not wait for a writer that is kept up by somebody's lock.
const TURN_WAIT: Duration = Duration::from_millis(20);

/// Those that can still be stored in time; the others are refused.
fn in_time(group: Vec<Job>) -> Vec<Job> {
    let now = clock::moment();
    let (given_up, group): (Vec<Job>, Vec<Job>) = group.into_iter().partition(|job| job.begin_by <= now);
    for job in given_up {
        job.answer(Err(late()));
    }
    group
}

fn events(group: &[Job]) -> usize {
    group.iter().map(|job| job.batch.events.len()).sum()
}

impl Writer {
    pub async fn run(self) {
        loop {
            let has_others = self.store.has_others();
            let gathering = if has_others { self.pace.gathering.acquire().await.ok() } else { None };
            let Some(first) = self.jobs.next().await else { return };
            let small = if has_others { SMALL_BESIDE_OTHERS } else { SMALL_EVENTS };
            let mut group = vec![first];
            let _turn = if self.gather(&mut group) < small {
                self.pace.hold(group.len());
                let turn = tokio::time::timeout(TURN_WAIT, self.pace.turn.acquire()).await;
                self.pace.hold(0);
                self.gather(&mut group);
                if has_others {
                    self.linger(&mut group, small).await;
                }
                Some(turn)
            } else {
                None
            };
            drop(gathering);
            self.commit(group).await;
        }
    }

    /// Waits a moment for those who were just answered.
    async fn linger(&self, group: &mut Vec<Job>, small: usize) {
        let Some((calls, time)) = self.pace.expected() else { return };
        if group.len() >= calls || events(group) >= small {
            return;
        }
        let end = clock::moment() + time;
        while group.len() < calls && events(group) < small {
            match tokio::time::timeout_at(end.into(), self.jobs.next()).await {
                Ok(Some(job)) => group.push(job),
                _ => break,
            }
            self.gather(group);
        }
        self.pace.came(group.len() >= calls || events(group) >= small);
    }

    /// Adds what waits, as far as one commit may hold it. Returns how many events the group has.
    fn gather(&self, group: &mut Vec<Job>) -> usize {
        let mut units: usize = group.iter().map(|job| job.units).sum();
        while units < self.units_max {
            let Some(job) = self.jobs.try_next() else { break };
            units += job.units;
            group.push(job);
        }
        events(group)
    }

    async fn commit(&self, group: Vec<Job>) {
        let mut group = in_time(group);
        let events: usize = group.iter().map(|job| job.batch.events.len()).sum();
        for job in &mut group {
            job.span.next_part("ingest commit");
            // those of all calls that are stored together
            job.span.note(|notes| notes.number("open_spanner.commit.events", events as i64));
        }
        let batches: Vec<Arc<Batch>> = group.iter().map(|job| job.batch.clone()).collect();
        let Some(deadline) = group.iter().map(|job| job.deadline).min() else { return };
        let (began, calls) = (clock::moment(), group.len());
        match self.store_batches(batches, deadline).await {
            Ok(outcomes) => {
                self.pace.committed(calls, self.jobs.count(), clock::since(began));
                for (job, outcome) in group.into_iter().zip(outcomes) {
                    job.answer(Ok(outcome));
                }
            }
            Err(error) if group.len() == 1 => {
                group.into_iter().for_each(|job| job.answer(Err(error.clone())));
            }
            // one poisoned call must not fail its neighbours, nor one that needs a node that is away
            Err(error) => {
                for job in group {
                    if error.code == Code::Unavailable && !self.may_do_alone(&job.batch) {
                        job.answer(Err(error.clone()));
                        continue;
                    }
                    let Some(job) = in_time(vec![job]).pop() else { continue };
                    let result = self.store_batches(vec![job.batch.clone()], job.deadline).await;
                    let outcome = result.and_then(|outcomes| {
                        outcomes
                            .into_iter()
                            .next()
                            .ok_or_else(|| Error::internal("a batch without an outcome"))
                    });
                    job.answer(outcome);
                }
            }
        }
    }

    /// Whether a call of a group that could not be stored may be stored by itself: on one database all of them share its
    /// fate. Without keys it is not known whether it was stored after all.
    fn may_do_alone(&self, batch: &Batch) -> bool {
        self.store.is_distributed() && batch.events.iter().all(|event| event.key.is_some())
    }

    async fn store_batches(&self, batches: Vec<Arc<Batch>>, deadline: Instant) -> Result<Vec<Outcome>> {
        let events: usize = batches.iter().map(|batch| batch.events.len()).sum();
        metrics::histogram!("open_spanner_ingest_batch_events").record(events as f64);
        let (known, lane) = (self.known.clone(), self.lane);
        let insert = move |conn: &mut _, link: Link| {
            let known = known.of(link.epoch);
            let (outcomes, learned) = insert::insert(conn, link, &batches, lane, &known)?;
            Ok((outcomes, learned, known))
        };
        let (outcomes, mut learned, known) =
            self.store.write_before(deadline, "events::insert", insert).await?;
        if learned.has_jobs {
            self.wake.notify();
        }
        self.folding.note(std::mem::take(&mut learned.unfolded));
        known.remember(learned);
        Ok(outcomes)
    }
}
