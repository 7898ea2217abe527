//! When a group of few calls is worth waiting for. Callers that send one call after the other split into two halves: while
//! one half is committed the other waits, and the commits are half as large as they could be. Where nobody else uses the
//! database that keeps it busy while answers are sent. Beside other servers it is busy anyway, and a commit costs as much
//! as twenty events: so there the half that was just answered is waited for.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;

/// What the writers of one queue share.
pub struct Pace {
    /// Held during a small commit, by one of them.
    pub turn: Semaphore,
    /// Held by the one that gathers a group, where groups are waited for: else another would take what it waits for.
    pub gathering: Semaphore,
    /// Calls of the group that waits for its turn.
    held: AtomicUsize,
    guess: Mutex<Guess>,
}

/// Longer than this nobody is waited for: whoever sends again does so at once.
const WAIT_MAX: Duration = Duration::from_millis(2);
/// Groups in a row that are not waited for, after nobody came in vain so often.
const RESTS_MAX: u32 = 64;

impl Default for Pace {
    fn default() -> Self {
        Pace {
            turn: Semaphore::new(1),
            gathering: Semaphore::new(1),
            held: AtomicUsize::new(0),
            guess: Mutex::default(),
        }
    }
}

impl Pace {
    /// So many calls are gathered and wait for their turn.
    pub fn hold(&self, calls: usize) {
        self.held.store(calls, Ordering::Relaxed);
    }

    /// A commit is done: so many calls are answered now, and so many came meanwhile and wait in the queue.
    pub fn committed(&self, answered: usize, waiting: usize, took: Duration) {
        let calls = answered + waiting + self.held.load(Ordering::Relaxed);
        self.guess(|guess| (guess.calls, guess.took) = (calls, took));
    }

    /// How many calls the next group may come to, and how long it may wait for them. None if that is not worth it.
    pub fn expected(&self) -> Option<(usize, Duration)> {
        self.guess(Guess::expected)
    }

    /// Whether those who were waited for came, or most of them.
    pub fn came(&self, they_did: bool) {
        self.guess(|guess| guess.came(they_did));
    }

    fn guess<T>(&self, with: impl FnOnce(&mut Guess) -> T) -> T {
        with(&mut self.guess.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[derive(Default)]
struct Guess {
    calls: usize,
    took: Duration,
    /// Groups that will not be waited for.
    rests: u32,
    /// How many that were the last time.
    last_rests: u32,
}

impl Guess {
    fn expected(&mut self) -> Option<(usize, Duration)> {
        if self.rests > 0 {
            self.rests -= 1;
            return None;
        }
        Some((self.calls, self.took.min(WAIT_MAX)))
    }

    /// Callers that do not send one call after the other are not waited for again and again.
    fn came(&mut self, they_did: bool) {
        self.last_rests = if they_did { 0 } else { (self.last_rests * 2).clamp(1, RESTS_MAX) };
        self.rests = self.last_rests;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOOK: Duration = Duration::from_millis(1);

    #[test]
    fn two_halves_become_one_and_stay_one() {
        let pace = Pace::default();
        pace.hold(10);
        pace.committed(12, 2, TOOK);
        pace.hold(0);
        assert_eq!(pace.expected(), Some((24, TOOK)));
        pace.came(true);
        pace.committed(24, 0, TOOK);
        assert_eq!(pace.expected(), Some((24, TOOK)));
    }

    #[test]
    fn one_caller_waits_for_nobody() {
        let pace = Pace::default();
        assert_eq!(pace.expected(), Some((0, Duration::ZERO)), "before the first commit");
        pace.committed(1, 0, Duration::from_secs(1));
        // the one that is there is all that is expected
        assert_eq!(pace.expected(), Some((1, WAIT_MAX)));
    }

    #[test]
    fn who_does_not_come_is_waited_for_ever_less() {
        let pace = Pace::default();
        pace.committed(3, 3, TOOK);
        let mut waits = 0;
        for _ in 0..1_000 {
            if pace.expected().is_some() {
                waits += 1;
                pace.came(false);
            }
        }
        assert!((7..=25).contains(&waits), "{waits}");
        // and as soon as they come, always
        while pace.expected().is_none() {}
        pace.came(true);
        assert!(pace.expected().is_some());
        pace.came(true);
        assert!(pace.expected().is_some());
    }
}
