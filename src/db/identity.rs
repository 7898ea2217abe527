//! Which database a connection leads to. A failover to a standby that lagged, or a backup restored under running
//! servers, puts another history behind the same address: whatever is remembered of the old one may not exist there.
//! Everything in memory therefore belongs to an epoch, and a new epoch begins when the database turns out to be
//! another. Ids that are remembered are never given twice, so that even a stale one cannot mean another row.

use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Text};

use super::{Conn, DbError};
use crate::chance;
use crate::metering::time::Timestamp;

/// Which installation a database holds, and in which state.
#[derive(Clone, Debug, QueryableByName)]
pub struct Installation {
    #[diesel(sql_type = Text)]
    pub id: String,
    /// Grows with each failover that was noticed, and with each restore.
    #[diesel(sql_type = BigInt)]
    pub epoch: i64,
    /// The newest migration that was applied.
    #[diesel(sql_type = Text)]
    pub schema: String,
}

pub fn installation(conn: &mut Conn) -> Result<Installation, DbError> {
    let text = "-- db::identity::installation
        SELECT id, epoch, (SELECT MAX(version) FROM __diesel_schema_migrations) AS schema FROM installation";
    Ok(diesel::sql_query(text).get_result(conn)?)
}

/// Where a unit of work runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// What may be used in it: only what was learned in the same epoch.
    pub epoch: u64,
    /// PostgreSQL: what `database_stamp()` said when the connection was made. A transaction that reads another one
    /// is at another database, whatever lies between.
    pub stamp: i64,
    /// Tells connections of this process apart.
    pub connection: u64,
}

/// Counts the databases that this process met, one after the other.
#[derive(Default)]
pub struct Epochs {
    current: AtomicU64,
    stamp: Mutex<Option<i64>>,
    connections: AtomicU64,
    /// SQLite: the file that was opened first.
    file: OnceLock<FileId>,
}

impl Epochs {
    pub fn current(&self) -> u64 {
        self.current.load(Ordering::Acquire)
    }

    /// A connection was made to the database with this stamp.
    pub(super) fn connected(&self, stamp: i64) -> Link {
        let mut last = self.stamp.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_some_and(|last| last != stamp) {
            self.current.fetch_add(1, Ordering::AcqRel);
            log::warn!(epoch = self.current(); "the database was replaced, restarted or failed over: nothing remembered of it is used any more");
        }
        *last = Some(stamp);
        let connection = self.connections.fetch_add(1, Ordering::Relaxed);
        Link { epoch: self.current(), stamp, connection }
    }

    /// Whoever worked on this link found another database behind it.
    pub(super) fn end(&self, link: Link) {
        let next = link.epoch + 1;
        if self.current.compare_exchange(link.epoch, next, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            log::warn!(epoch = next; "the database was restored or failed over: nothing remembered of it is used any more");
        }
    }

    /// False when another file, or none, is where the first connection found one. To write to the old one would lose
    /// what is written; to open the new one beside the log of the old one could destroy it.
    pub(super) fn is_same_file(&self, file: &PathBuf) -> bool {
        match (FileId::of(file), self.file.get()) {
            (Some(found), Some(first)) => found == *first,
            (found, None) => {
                if let Some(found) = found {
                    let _ = self.file.set(found);
                }
                true
            }
            (None, Some(_)) => false,
        }
    }
}

/// A file, however it is called.
#[derive(Clone, Copy, PartialEq, Eq)]
struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    fn of(path: &PathBuf) -> Option<FileId> {
        use std::os::unix::fs::MetadataExt;
        let found = std::fs::metadata(path).ok()?;
        Some(FileId { device: found.dev(), inode: found.ino() })
    }
}

/// Where the time of a change comes from. Clocks of servers differ: what binds all of them goes by the database's.
#[derive(Clone, Copy, Debug)]
pub enum Clock {
    Database,
    At(Timestamp),
}

impl Clock {
    /// On this machine, which is the database's with SQLite.
    pub fn here(self) -> Timestamp {
        match self {
            Clock::Database => Timestamp::now(),
            Clock::At(time) => time,
        }
    }
}

/// What is remembered of the database of one epoch, empty at the beginning of each.
#[derive(Default)]
pub struct PerEpoch<T>(Mutex<(u64, Arc<T>)>);

impl<T: Default> PerEpoch<T> {
    /// Work that is late, from an epoch that has ended, gets one of its own that nobody else sees.
    pub fn of(&self, epoch: u64) -> Arc<T> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if held.0 < epoch {
            *held = (epoch, Arc::default());
        }
        if held.0 == epoch { held.1.clone() } else { Arc::default() }
    }
}

/// Time in milliseconds and this many random bits make an id.
const RANDOM_BITS: u32 = 21;

/// A new id for a row that is remembered by it: later ones are greater, and no other server, and no database that
/// went back in time, gives the same one again, as a sequence would.
pub fn new_id() -> i64 {
    static LAST: AtomicI64 = AtomicI64::new(0);
    let random = chance::within(0..1i64 << RANDOM_BITS);
    let id = (Timestamp::now().0 / 1_000) << RANDOM_BITS | random;
    let next = |last: i64| Some(id.max(last + 1));
    let last = LAST.fetch_update(Ordering::AcqRel, Ordering::Acquire, next).unwrap_or_else(|last| last);
    id.max(last + 1)
}

/// When an id was made, to the millisecond.
pub fn made_at(id: i64) -> Timestamp {
    Timestamp((id >> RANDOM_BITS) * 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_stamp_begins_another_epoch() {
        let epochs = Epochs::default();
        let first = epochs.connected(7);
        assert_eq!(epochs.connected(7).epoch, first.epoch);
        assert_ne!(epochs.connected(7).connection, first.connection);
        let other = epochs.connected(8);
        assert_eq!((other.epoch, epochs.current()), (first.epoch + 1, first.epoch + 1));
        assert_eq!(
            epochs.connected(7).epoch,
            first.epoch + 2,
            "back again: what was learned there may be gone"
        );
    }

    #[test]
    fn an_epoch_ends_once() {
        let epochs = Epochs::default();
        let link = epochs.connected(7);
        epochs.end(link);
        epochs.end(link);
        assert_eq!(epochs.current(), link.epoch + 1);
        assert_eq!(epochs.connected(7).epoch, link.epoch + 1);
    }

    #[test]
    fn nothing_passes_from_one_epoch_to_another() {
        let kept: PerEpoch<Mutex<u8>> = PerEpoch::default();
        *kept.of(0).lock().expect("free") = 1;
        assert_eq!(*kept.of(0).lock().expect("free"), 1);
        assert_eq!(*kept.of(2).lock().expect("free"), 0);
        *kept.of(0).lock().expect("free") = 3;
        assert_eq!(*kept.of(2).lock().expect("free"), 0, "late work does not reach those that came after");
        assert_eq!(*kept.of(0).lock().expect("free"), 0);
    }

    #[test]
    fn ids_grow_and_never_come_twice() {
        let ids: Vec<i64> = (0..10_000).map(|_| new_id()).collect();
        assert!(ids.is_sorted_by(|a, b| a < b), "each is greater than the one before");
        assert!(ids[0] > 1 << 60);
    }
}
