//! Group commit: a writer takes what waits, stores it in one transaction and answers each caller.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::clock;
use crate::db::identity::{Link, PerEpoch};
use crate::db::placement::Node;
use crate::db::{Store, is_away};
use crate::error::{Code, Error, Result};
use crate::ingest::folding::Folding;
use crate::ingest::insert::{self, Batch, Outcome, WriteCache};
use crate::ingest::nodes::{self, Nodes, Way};
use crate::ingest::pace::Pace;
use crate::ingest::queue::{Job, Waiting};
use crate::jobs::worker::JobNotifier;

pub fn late() -> Error {
    Error::unavailable("the database does not answer in time")
}

fn away() -> Error {
    Error::unavailable("a node of the database does not answer")
}

/// Without keys it is not known of a call that failed whether it was stored after all.
fn has_keys(batch: &Batch) -> bool {
    batch.events.iter().all(|event| event.key.is_some())
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
    /// Of a cluster.
    pub nodes: Arc<Nodes>,
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
        let writer = Arc::new(self);
        loop {
            let has_others = writer.store.has_others();
            let gathering = if has_others { writer.pace.gathering.acquire().await.ok() } else { None };
            let Some(first) = writer.jobs.next().await else { return };
            let small = if has_others { SMALL_BESIDE_OTHERS } else { SMALL_EVENTS };
            let mut group = vec![first];
            let _turn = if writer.gather(&mut group) < small {
                writer.pace.hold(group.len());
                let turn = tokio::time::timeout(TURN_WAIT, writer.pace.turn.acquire()).await;
                writer.pace.hold(0);
                writer.gather(&mut group);
                if has_others {
                    writer.linger(&mut group, small).await;
                }
                Some(turn)
            } else {
                None
            };
            drop(gathering);
            writer.commit(group).await;
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
        // a few who are late are no reason to wait for nobody
        self.pace.came(group.len() * 4 >= calls * 3 || events(group) >= small);
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

    async fn commit(self: &Arc<Self>, group: Vec<Job>) {
        let mut group = self.without_refused(in_time(group)).await;
        let stored = events(&group);
        for job in &mut group {
            job.span.next_part("ingest commit");
            // those of all calls that are stored together
            job.span.note(|notes| notes.number("open_spanner.commit.events", stored as i64));
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
            // one that needs a node that is away must not fail its neighbours, nor hold up those who come after
            Err(error) if error.code == Code::Unavailable && self.store.is_distributed() => {
                let (again, lost): (Vec<Job>, Vec<Job>) =
                    group.into_iter().partition(|job| has_keys(&job.batch));
                lost.into_iter().for_each(|job| job.answer(Err(error.clone())));
                tokio::spawn(self.clone().store_each(again, true));
            }
            // on one database all of them share the fate of the commit
            Err(error) if error.code == Code::Unavailable => {
                group.into_iter().for_each(|job| job.answer(Err(error.clone())));
            }
            // one poisoned call must not fail its neighbours
            Err(_) => self.clone().store_each(group, false).await,
        }
    }

    /// Stores calls by themselves; `after_failure`: of a group, which may have lacked a node. What needs one that is known to
    /// be away by then is refused.
    async fn store_each(self: Arc<Self>, jobs: Vec<Job>, after_failure: bool) {
        for job in jobs {
            let Some(job) = in_time(vec![job]).pop() else { continue };
            if after_failure && self.way(&job).await == Way::Refused {
                job.answer(Err(away()));
                continue;
            }
            let result = self.store_batches(vec![job.batch.clone()], job.deadline).await;
            let outcome = result.and_then(|outcomes| {
                outcomes.into_iter().next().ok_or_else(|| Error::internal("a batch without an outcome"))
            });
            job.answer(outcome);
        }
    }

    /// The calls of a group that need no node which is away. Of the others one finds out now and then whether it is back.
    async fn without_refused(self: &Arc<Self>, group: Vec<Job>) -> Vec<Job> {
        if !self.store.is_distributed() {
            return group;
        }
        let (mut together, mut alone) = (Vec::with_capacity(group.len()), Vec::new());
        for job in group {
            match self.way(&job).await {
                Way::Together => together.push(job),
                Way::Alone => alone.push(job),
                Way::Refused => job.answer(Err(away())),
            }
        }
        if !alone.is_empty() {
            tokio::spawn(self.clone().store_each(alone, false));
        }
        together
    }

    async fn way(&self, job: &Job) -> Way {
        let placement = self.nodes.placement(&self.store).await;
        self.nodes.way(&nodes::needs(&placement, &job.batch), clock::moment())
    }

    async fn store_batches(&self, batches: Vec<Arc<Batch>>, deadline: Instant) -> Result<Vec<Outcome>> {
        let events: usize = batches.iter().map(|batch| batch.events.len()).sum();
        metrics::histogram!("open_spanner_ingest_batch_events").record(events as f64);
        let (known, lane) = (self.known.clone(), self.lane);
        let began = clock::moment();
        let noted = self.store.is_distributed().then(|| batches.clone());
        let insert = move |conn: &mut _, link: Link| {
            let known = known.of(link.epoch);
            let (outcomes, learned) = insert::insert(conn, link, &batches, lane, &known)?;
            Ok((outcomes, learned, known))
        };
        let result = self.store.write_before(deadline, "events::insert", insert).await;
        // let go of before anybody is answered: callers make their answers of the events themselves
        if let Some(batches) = noted {
            self.note(&batches, began, result.as_ref().err()).await;
        }
        let (outcomes, mut learned, known) = result?;
        if learned.has_jobs {
            self.wake.notify();
        }
        self.folding.note(std::mem::take(&mut learned.unfolded));
        known.remember(learned);
        Ok(outcomes)
    }

    /// What the fate of calls tells about nodes.
    async fn note(&self, batches: &[Arc<Batch>], began: Instant, error: Option<&Error>) {
        let placement = self.nodes.placement(&self.store).await;
        let needs: BTreeSet<Node> =
            batches.iter().flat_map(|batch| nodes::needs(&placement, batch)).collect();
        match error {
            None => self.nodes.stored(&needs, clock::moment()),
            Some(error) if batches.len() == 1 && is_away(error) => {
                self.nodes.failed(&needs, began, clock::moment());
            }
            Some(_) => {}
        }
    }
}
