//! What time it is, asked for here and nowhere else. [`Timestamp::now`] is the wall clock: times that are written down and times
//! that others compare. [`moment`], [`since`] and [`elapsed`] are the monotonic clock: how long something takes.
//!
//! On PostgreSQL the wall clock is the database's: processes on several machines agree on leases, due times and limits,
//! however wrong their own clocks are and whenever those are set. It is not asked for each time: the monotonic clock carries
//! its answer on, and a later answer that contradicts it corrects it. On SQLite it is the machine's clock.
//!
//! A clock can be set back or forward under a running process. [`steps`] counts that: whoever keeps times that lie ahead looks
//! at them again when the count has grown.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::metering::time::{SECOND, Timestamp};

static START: LazyLock<Instant> = LazyLock::new(moment);
const UNKNOWN: i64 = i64::MIN;
/// What the database's clock is ahead of [`elapsed`].
static DATABASE: AtomicI64 = AtomicI64::new(UNKNOWN);
/// The same of the machine's clock, when it was last looked at.
static MACHINE: AtomicI64 = AtomicI64::new(UNKNOWN);
static STEPS: AtomicU64 = AtomicU64::new(0);
/// When the database was last asked.
static ASKED: AtomicI64 = AtomicI64::new(UNKNOWN);

/// The database is asked again after this.
const ASK_INTERVAL: i64 = 10 * SECOND;
/// A clock that jumps by more was set.
const STEP: i64 = SECOND;

/// A moment of the monotonic clock.
#[expect(clippy::disallowed_methods, reason = "the one place that asks it")]
pub fn moment() -> Instant {
    Instant::now()
}

/// How long ago that moment was.
pub fn since(moment: Instant) -> Duration {
    self::moment().saturating_duration_since(moment)
}

/// Microseconds since the process first asked.
pub fn elapsed() -> i64 {
    since(*START).as_micros() as i64
}

/// The machine's own, which other programs of the machine write into their logs.
#[expect(clippy::disallowed_methods, reason = "the one place that asks the machine's clock")]
pub fn machine() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(since.as_micros() as i64)
}

impl Timestamp {
    pub fn now() -> Self {
        match DATABASE.load(Ordering::Relaxed) {
            UNKNOWN => machine(),
            ahead => Timestamp(elapsed() + ahead),
        }
    }
}

/// How often the clock was set since the process started, as far as that was noticed.
pub fn steps() -> u64 {
    if DATABASE.load(Ordering::Relaxed) == UNKNOWN {
        let ahead = machine().0 - elapsed();
        let before = MACHINE.swap(ahead, Ordering::Relaxed);
        if before != UNKNOWN {
            note(ahead - before);
        }
    }
    STEPS.load(Ordering::Relaxed)
}

fn note(jump: i64) {
    if jump.abs() > STEP {
        log::warn!(seconds = jump / SECOND; "the clock was set");
        STEPS.fetch_add(1, Ordering::Relaxed);
    }
}

/// Whether it is time to ask the database; true for one caller only.
pub fn must_ask() -> bool {
    let (last, now) = (ASKED.load(Ordering::Relaxed), elapsed());
    last != UNKNOWN
        && now - last > ASK_INTERVAL
        && ASKED.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
}

/// The database said what time it is, at some moment between these two.
pub fn heed(asked: i64, database: Timestamp, answered: i64) {
    ASKED.store(answered, Ordering::Relaxed);
    let before = DATABASE.load(Ordering::Relaxed);
    let after = corrected(before, asked, database, answered);
    DATABASE.store(after, Ordering::Relaxed);
    if before != UNKNOWN {
        note(after - before);
    }
}

/// What was believed stays, as far as the answer allows: how long it took is no news about the time.
fn corrected(before: i64, asked: i64, database: Timestamp, answered: i64) -> i64 {
    let (least, most) = (database.0 - answered, database.0 - asked);
    match before {
        UNKNOWN => least + (most - least) / 2,
        before => before.clamp(least, most.max(least)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_corrects_what_it_contradicts_and_nothing_else() {
        let first = corrected(UNKNOWN, 1_000, Timestamp(50_001_500), 2_000);
        assert_eq!(first, 50_000_000);
        // a slow answer that agrees
        assert_eq!(corrected(first, 5_000, Timestamp(50_009_000), 905_000), first);
        // the database's clock runs a little faster, or was set
        assert_eq!(corrected(first, 5_000, Timestamp(50_006_100), 6_000), first + 100);
        assert_eq!(corrected(first, 5_000, Timestamp(40_005_500), 6_000), 40_000_500);
    }
}
