//! A standby of PostgreSQL that answers what callers read of usage. It is shown what the primary had when the question came,
//! or what the caller has seen before and says so ([`Position`]); when the standby does not have that within a moment, the
//! primary answers. So nobody reads less than they wrote, and nothing that a standby lacks is wrong, only slower.

use std::fmt;
use std::future::Future;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use diesel::sql_types::{BigInt, Nullable, Text};
use diesel::{QueryableByName, RunQueryDsl, sql_query};

use super::pool::{Class, Pool};
use super::transaction::Limits;
use super::{Conn, DbError, Store};
use crate::clock;
use crate::error::{Error, Result};
use crate::metering::event::hash128;

/// How far the log of a database has come: its history, and the place in the log. Places of different histories have nothing
/// to do with each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// A number for the installation and its epoch, which grows with each failover.
    history: u64,
    place: u64,
}

impl Position {
    /// As [`Position`] is written; none for anything else.
    pub fn parse(text: &str) -> Option<Position> {
        let (history, place) = text.split_once(':')?;
        let (high, low) = place.split_once('/')?;
        let (high, low) = (u32::from_str_radix(high, 16).ok()?, u32::from_str_radix(low, 16).ok()?);
        Some(Position { history: history.parse().ok()?, place: u64::from(high) << 32 | u64::from(low) })
    }

    fn has(self, other: Position) -> bool {
        self.history == other.history && self.place >= other.place
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{:X}/{:X}", self.history, self.place >> 32, self.place & 0xFFFF_FFFF)
    }
}

/// How long the standby may be behind before the primary is asked instead. It is looked at after pauses that double: a
/// question costs it seven looks at most.
const PATIENCE: Duration = Duration::from_millis(300);
const FIRST_PAUSE: Duration = Duration::from_millis(5);
/// A standby that has not answered a look by then does not answer.
const LOOK_MAX: Duration = Duration::from_secs(2);
/// One that does not answer is left alone for so long.
const REST: Duration = Duration::from_secs(1);

pub(super) struct Replica {
    pub(super) pool: Pool,
    /// The farthest that it was seen at.
    seen: Mutex<Option<Position>>,
    /// It is not asked before, and by one caller then.
    rests_until: Mutex<Option<Instant>>,
    /// What the primary last answered, and when that was asked for.
    primary: tokio::sync::Mutex<Option<(Instant, Result<Position>)>>,
    /// The farthest that the primary was known to be at.
    written: Mutex<Option<Position>>,
    /// How often it was too far behind, since the log said so.
    refused: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Flushed: nobody is told of a commit before that.
const WRITTEN: &str = "pg_current_wal_flush_lsn()";
/// None on a primary. One that was promoted goes on saying where it was then.
const REPLAYED: &str = "CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() END";

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = Text)]
    id: String,
    #[diesel(sql_type = BigInt)]
    epoch: i64,
    #[diesel(sql_type = Nullable<BigInt>)]
    place: Option<i64>,
}

/// `place`: [`WRITTEN`] or [`REPLAYED`].
fn position(conn: &mut Conn, place: &str) -> std::result::Result<Option<Position>, DbError> {
    let text = format!("SELECT id, epoch, ({place} - '0/0')::bigint AS place FROM installation");
    let Row { id, epoch, place } = sql_query(text).get_result(conn)?;
    let history = history_of(&id, epoch);
    Ok(place.map(|place| Position { history, place: place.unsigned_abs() }))
}

/// A standby of another installation may be far ahead in an epoch of the same number.
fn history_of(id: &str, epoch: i64) -> u64 {
    u128::from_be_bytes(hash128(&[id.as_bytes(), &epoch.to_be_bytes()])) as u64
}

/// Refuses to read where a standby is not as far as it was: it was started again before that, or the connection leads to
/// another one. What is replayed before a statement begins is seen by it.
pub(super) fn ensure_at(conn: &mut Conn, wanted: Position) -> std::result::Result<(), DbError> {
    match position(conn, REPLAYED)? {
        Some(found) if found.has(wanted) => Ok(()),
        _ => Err(Error::unavailable("it has gone back").into()),
    }
}

impl Replica {
    pub(super) fn new(pool: Pool) -> Replica {
        let (seen, rests_until, written) = (Mutex::default(), Mutex::default(), Mutex::default());
        let primary = tokio::sync::Mutex::default();
        Replica { pool, seen, rests_until, primary, written, refused: AtomicU64::new(0) }
    }

    /// Where the primary is now, or a moment later: what was committed before this call is before it. Who asks at the same
    /// time is answered together, also that the primary is away: else each would wait for those before.
    pub(super) async fn of_primary(&self, store: &Store) -> Result<Position> {
        let called = clock::moment();
        let mut last = self.primary.lock().await;
        if let Some((asked, answer)) = &*last
            && *asked >= called
        {
            return answer.clone();
        }
        let asked = clock::moment();
        let ask = |conn: &mut Conn| match position(conn, WRITTEN)? {
            Some(position) => Ok(position),
            None => Err(DbError::Retry),
        };
        let answer = store.vital().read("replica::of_primary", ask).await;
        if let Ok(position) = &answer {
            *lock(&self.written) = Some(*position);
        }
        *last = Some((asked, answer.clone()));
        answer
    }

    /// Whether a caller can have seen this: nobody has seen more than the primary has written. A position that was made up
    /// is told here, before the standby is looked at for what it never will have.
    pub(super) async fn can_have_been_seen(&self, store: &Store, position: Position) -> bool {
        let is_known = |known: &Mutex<Option<Position>>| lock(known).is_some_and(|known| known.has(position));
        if is_known(&self.seen) || is_known(&self.written) {
            return true;
        }
        match self.of_primary(store).await {
            Ok(written) => written.has(position),
            // a primary that is away says nothing against it
            Err(_) => lock(&self.written).is_none_or(|written| written.history == position.history),
        }
    }

    /// Waits for a moment until the standby has what the caller wants to see; where it is then.
    pub(super) async fn reach(&self, store: &Store, wanted: Position) -> Option<Position> {
        if self.rests() {
            return None;
        }
        let (end, mut pause) = (clock::moment() + PATIENCE, FIRST_PAUSE);
        loop {
            if let Some(seen) = lock(&self.seen).filter(|seen| seen.has(wanted)) {
                return Some(seen);
            }
            let look = |conn: &mut Conn, _, _| position(conn, REPLAYED);
            let found = store.run(&self.pool, Class::Vital, "replica::reach", true, Limits::default(), look);
            match tokio::time::timeout(LOOK_MAX, found).await {
                // no waiting helps
                Ok(Ok(Some(found))) if found.history != wanted.history => {
                    return self.rest("it has another history than the primary");
                }
                Ok(Ok(Some(found))) => self.is_at(found),
                Ok(Ok(None)) => return self.rest("it is no standby"),
                Ok(Err(error)) => return self.rest(&error.message),
                Err(_) => return self.rest("it does not answer"),
            }
            if lock(&self.seen).is_some_and(|seen| seen.has(wanted)) {
                continue;
            }
            if clock::moment() >= end {
                self.behind();
                return None;
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
    }

    /// Whether it is left alone. When that is over, one caller finds out for all whether it answers again.
    fn rests(&self) -> bool {
        let (mut rests_until, now) = (lock(&self.rests_until), clock::moment());
        match *rests_until {
            Some(until) if now < until => true,
            Some(_) => {
                *rests_until = Some(now + REST);
                false
            }
            None => false,
        }
    }

    fn is_at(&self, found: Position) {
        *lock(&self.seen) = Some(found);
        *lock(&self.rests_until) = None;
    }

    /// It took too long over a question, and may have stopped: it is looked at before the next one.
    pub(super) fn doubt(&self) {
        *lock(&self.seen) = None;
    }

    /// Leaves the standby alone for a while.
    pub(super) fn rest(&self, why: &str) -> Option<Position> {
        log::warn!(why; "the standby is not read from: the primary answers");
        *lock(&self.seen) = None;
        *lock(&self.rests_until) = Some(clock::moment() + REST);
        None
    }

    fn behind(&self) {
        // 1, 2, 4, 8, …
        let count = self.refused.fetch_add(1, Ordering::Relaxed) + 1;
        if count.is_power_of_two() {
            log::warn!(count; "the standby is behind: the primary answers");
        }
    }
}

/// What the request that is being answered has seen and is shown.
#[derive(Clone, Copy, Default)]
struct View {
    wanted: Option<Position>,
    shown: Option<Position>,
}

tokio::task_local! {
    static VIEW: std::cell::Cell<View>;
}

/// Runs `answer` for a caller who has seen this; says where the standby was that it was answered from.
pub async fn for_caller<F: Future>(wanted: Option<Position>, answer: F) -> (F::Output, Option<Position>) {
    let view = std::cell::Cell::new(View { wanted, shown: None });
    VIEW.scope(view, async { (answer.await, VIEW.with(|view| view.get().shown)) }).await
}

pub(super) fn wanted() -> Option<Position> {
    VIEW.try_with(|view| view.get().wanted).ok().flatten()
}

/// Of several reads for one answer the first counts: the others have seen as much.
pub(super) fn shown(position: Position) {
    let _ = VIEW.try_with(|view| {
        let before = view.get();
        view.set(View { shown: before.shown.or(Some(position)), ..before });
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_read_as_they_are_written() {
        for position in [Position { history: 1, place: 0 }, Position { history: 7, place: 0x16_B374_D848 }] {
            assert_eq!(Position::parse(&position.to_string()), Some(position));
        }
        assert_eq!(Position { history: 3, place: 0x16_B374_D848 }.to_string(), "3:16/B374D848");
        for odd in ["", "1", "1:", "1:2", "x:1/2", "1:1/2/3", "1:g/1", "1:100000000/0", "-1:1/1"] {
            assert_eq!(Position::parse(odd), None, "{odd}");
        }
    }

    #[test]
    fn places_of_another_history_say_nothing() {
        let at = |history, place| Position { history, place };
        assert!(at(1, 5).has(at(1, 5)) && at(1, 6).has(at(1, 5)) && !at(1, 4).has(at(1, 5)));
        assert!(!at(1, 9).has(at(2, 5)) && !at(3, 9).has(at(2, 5)));
        let all = [history_of("a", 1), history_of("a", 2), history_of("b", 1)];
        assert!(all[0] != all[1] && all[0] != all[2] && all[0] == history_of("a", 1));
    }
}
