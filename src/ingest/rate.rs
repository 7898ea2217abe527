//! How many new events a workspace may store: a token bucket that holds the allowance of one window and fills up within
//! one. On average no more than the allowance is stored per window; after a quiet time up to twice as much in one window.
//! In memory: each server counts for itself, and starts with full buckets. Off unless set.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use moka::sync::Cache;

use crate::clock;

pub struct RateLimit {
    capacity: f64,
    per_second: f64,
    buckets: Cache<i64, Arc<Mutex<Bucket>>>,
}

struct Bucket {
    tokens: f64,
    filled_at: Instant,
}

const WORKSPACES_MAX: u64 = 100_000;
/// A cache holds nothing longer than some centuries.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(10 * 365 * 86_400);
/// What one call may overdraw a bucket by.
const CALL_EVENTS_MAX: u64 = 100_000;

impl RateLimit {
    pub fn new(events: u64, window: Duration) -> Self {
        // a bucket that nobody used until its deepest debt is paid is full again and can be forgotten
        let windows = 2 + CALL_EVENTS_MAX.div_ceil(events.max(1));
        let full_again =
            window.saturating_mul(u32::try_from(windows).unwrap_or(u32::MAX)).min(FORGOTTEN_AFTER);
        let buckets = Cache::builder().max_capacity(WORKSPACES_MAX).time_to_idle(full_again).build();
        RateLimit { capacity: events as f64, per_second: events as f64 / window.as_secs_f64(), buckets }
    }

    /// Takes `count` at once or nothing; `Err` is the whole seconds until it could work. A call larger than the
    /// whole allowance waits for a full bucket and then overdraws it; a part of a stream waits for half of one, or a
    /// client that comes again when it is told to would find buckets that have been full for a while.
    pub fn take(&self, workspace_id: i64, count: u64, is_part: bool) -> Result<(), u64> {
        if count == 0 {
            return Ok(());
        }
        let bucket = self.bucket(workspace_id);
        let mut bucket = bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let now = clock::moment();
        let earned = now.duration_since(bucket.filled_at).as_secs_f64() * self.per_second;
        bucket.tokens = (bucket.tokens + earned).min(self.capacity);
        bucket.filled_at = now;
        let needed = (count as f64).min(if is_part { (self.capacity / 2.0).max(1.0) } else { self.capacity });
        if bucket.tokens < needed {
            return Err((((needed - bucket.tokens) / self.per_second).ceil() as u64).max(1));
        }
        bucket.tokens -= count as f64;
        Ok(())
    }

    pub fn give_back(&self, workspace_id: i64, count: u64) {
        let bucket = self.bucket(workspace_id);
        let mut bucket = bucket.lock().unwrap_or_else(PoisonError::into_inner);
        bucket.tokens = (bucket.tokens + count as f64).min(self.capacity);
    }

    fn bucket(&self, workspace_id: i64) -> Arc<Mutex<Bucket>> {
        let full = || Arc::new(Mutex::new(Bucket { tokens: self.capacity, filled_at: clock::moment() }));
        self.buckets.get_with(workspace_id, full)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_whole_calls_only() {
        let rate = RateLimit::new(10, Duration::from_secs(60));
        assert_eq!(rate.take(1, 8, false), Ok(()));
        let wait = rate.take(1, 5, false).expect_err("only two left");
        assert!((17..=19).contains(&wait), "{wait}");
        assert_eq!(rate.take(1, 2, false), Ok(()));
        assert_eq!(rate.take(2, 10, false), Ok(()), "another workspace has its own");
        rate.give_back(1, 5);
        assert_eq!(rate.take(1, 5, false), Ok(()));
    }

    #[test]
    fn a_call_over_the_allowance_is_granted_once_the_bucket_is_full() {
        let rate = RateLimit::new(10, Duration::from_secs(60));
        assert_eq!(rate.take(1, 50, false), Ok(()));
        let wait = rate.take(1, 1, false).expect_err("overdrawn");
        assert!((240..=246).contains(&wait), "{wait}");
    }

    #[test]
    fn a_debt_is_not_forgotten() {
        let rate = RateLimit::new(1_000, Duration::from_millis(50));
        assert_eq!(rate.take(1, 50_000, false), Ok(()), "two and a half seconds of debt");
        std::thread::sleep(Duration::from_millis(300));
        rate.buckets.run_pending_tasks();
        assert!(rate.take(1, 1, false).is_err());
    }

    #[test]
    fn nothing_new_is_never_refused_and_parts_do_not_wait_for_a_full_bucket() {
        let rate = RateLimit::new(100, Duration::from_secs(100));
        assert_eq!(rate.take(1, 300, false), Ok(()));
        assert_eq!(rate.take(1, 0, false), Ok(()), "overdrawn");
        assert_eq!(rate.take(2, 60, false), Ok(()));
        assert!((59..=61).contains(&rate.take(2, 100, false).expect_err("40 left")));
        assert!((9..=11).contains(&rate.take(2, 100, true).expect_err("40 left")));
        rate.give_back(2, 10);
        assert_eq!(rate.take(2, 100, true), Ok(()), "on credit");
    }
}
