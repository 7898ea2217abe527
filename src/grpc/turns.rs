//! Whose turn it is on the threads that unpack and decode. Callers take turns there, so that one who sends many large
//! messages is waited for by no more than one of them; alone, each has all turns.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::net::budget::Tenant;

/// Cheap to clone.
#[derive(Clone)]
pub struct Turns(Arc<Mutex<Waiting>>);

struct Waiting {
    free: usize,
    /// Of each caller that waits, in the order of their turns.
    lanes: VecDeque<(Tenant, VecDeque<oneshot::Sender<Turn>>)>,
}

/// A thread's worth of work, until this is dropped.
pub struct Turn(Option<Turns>);

impl Turns {
    /// So many at once.
    pub fn new(count: usize) -> Turns {
        Turns(Arc::new(Mutex::new(Waiting { free: count, lanes: VecDeque::new() })))
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub async fn take(&self, tenant: Tenant) -> Turn {
        match self.queue(tenant) {
            None => Turn(Some(self.clone())),
            // nobody lets go of it unasked
            Some(turn) => turn.await.unwrap_or(Turn(None)),
        }
    }

    /// A place in the lane of a caller; `None` where a turn is free.
    fn queue(&self, tenant: Tenant) -> Option<oneshot::Receiver<Turn>> {
        let mut waiting = self.lock();
        if waiting.free > 0 {
            waiting.free -= 1;
            return None;
        }
        let (sender, turn) = oneshot::channel();
        match waiting.lanes.iter_mut().find(|(of, _)| *of == tenant) {
            Some((_, lane)) => lane.push_back(sender),
            None => waiting.lanes.push_back((tenant, VecDeque::from([sender]))),
        }
        Some(turn)
    }

    /// The next one whose turn it is; nobody waits: the turn is free.
    fn next(&self) -> Option<oneshot::Sender<Turn>> {
        let mut waiting = self.lock();
        while let Some((tenant, mut lane)) = waiting.lanes.pop_front() {
            let next = lane.pop_front();
            if !lane.is_empty() {
                waiting.lanes.push_back((tenant, lane));
            }
            if next.is_some() {
                return next;
            }
        }
        waiting.free += 1;
        None
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Some(turns) = self.0.take() else { return };
        while let Some(next) = turns.next() {
            match next.send(Turn(Some(turns.clone()))) {
                Ok(()) => return,
                // whoever waited has gone; this drop goes on
                Err(mut turn) => turn.0 = None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLOOD: Tenant = Tenant::Workspace(1);
    const GENTLE: Tenant = Tenant::Workspace(2);

    #[tokio::test]
    async fn a_flood_is_waited_for_once() {
        let turns = Turns::new(1);
        let busy = turns.take(FLOOD).await;
        let done = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        for tenant in std::iter::repeat_n(FLOOD, 20).chain([GENTLE]) {
            let (turns, done) = (turns.clone(), done.clone());
            tasks.push(tokio::spawn(async move {
                let _turn = turns.take(tenant).await;
                done.lock().expect("no holder panics").push(tenant);
            }));
            tokio::task::yield_now().await;
        }
        drop(busy);
        for task in tasks {
            task.await.expect("no panic");
        }
        let done = done.lock().expect("no holder panics");
        assert_eq!(done.len(), 21);
        assert!(done[..2].contains(&GENTLE), "{done:?}");
        assert_eq!(turns.lock().free, 1);
    }

    #[tokio::test]
    async fn who_does_not_wait_any_more_is_passed_over() {
        let turns = Turns::new(2);
        let (first, second) = (turns.take(FLOOD).await, turns.take(FLOOD).await);
        let gone: Vec<_> = (0..5).filter_map(|_| turns.queue(FLOOD)).collect();
        let waits = turns.queue(GENTLE).expect("no turn is free");
        drop(gone);
        drop(first);
        let third = waits.await.expect("its turn");
        assert_eq!(turns.lock().free, 0);
        // one that was given and is not taken up any more comes back, too
        let late = turns.queue(FLOOD).expect("no turn is free");
        drop(second);
        drop(late);
        drop(third);
        assert_eq!(turns.lock().free, 2);
    }
}
