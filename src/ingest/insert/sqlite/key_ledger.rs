//! The ledger of idempotency keys on SQLite. `settled_keys` is in the order of the keys: a random key changes a page of
//! its own there, and with ten million keys that is most of what storing an event costs. So keys that do not come in
//! order go to the end of `recent_keys` first and are settled later, many neighbours at a time; the view
//! `idempotency_keys` is both. Where recent keys are is known in memory, for the one process that writes.
//!
//! What is in memory may be wrong in one direction only: it may name rows that a rolled-back transaction never stored.
//! It is added to before the commit and taken from after it, and each find is compared with the stored row.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};

use diesel::connection::DefaultLoadingMode;
use diesel::sql_types::{BigInt, Binary};
use diesel::{OptionalExtension, RunQueryDsl, SqliteConnection};

use crate::db::DbError;
use crate::db::prepared::prepared;
use crate::ingest::insert::{KeyRow, LedgerKey};
use crate::metering::event::hash128;

prepared!(
    AddSettled for SqliteConnection,
    (workspace_id: BigInt = i64, key: Binary = Vec<u8>, event_id: Binary = [u8], subject_id: BigInt = i64,
     event_time: BigInt = i64, fingerprint: BigInt = i64),
    "INSERT INTO settled_keys (workspace_id, key, event_id, subject_id, event_time, fingerprint)
     VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
);
prepared!(
    AddRecent for SqliteConnection,
    (number: BigInt = i64, workspace_id: BigInt = i64, key: Binary = Vec<u8>, event_id: Binary = [u8],
     subject_id: BigInt = i64, event_time: BigInt = i64, fingerprint: BigInt = i64),
    "INSERT INTO recent_keys (number, workspace_id, key, event_id, subject_id, event_time, fingerprint)
     VALUES (?, ?, ?, ?, ?, ?, ?)"
);
prepared!(
    FindSettled for SqliteConnection,
    (workspace_id: BigInt = i64, key: Binary = Vec<u8>) -> (Binary, BigInt, BigInt, BigInt),
    "SELECT event_id, subject_id, event_time, fingerprint FROM settled_keys WHERE workspace_id = ? AND key = ?"
);
prepared!(
    FindRecent for SqliteConnection,
    (number: BigInt = i64, workspace_id: BigInt = i64, key: Binary = Vec<u8>) -> (Binary, BigInt, BigInt, BigInt),
    "SELECT event_id, subject_id, event_time, fingerprint FROM recent_keys
     WHERE number = ? AND workspace_id = ? AND key = ?"
);
prepared!(
    /// Reads all recent keys.
    FindAnywhere for SqliteConnection,
    (workspace_id: BigInt = i64, key: Binary = Vec<u8>) -> (Binary, BigInt, BigInt, BigInt),
    "SELECT event_id, subject_id, event_time, fingerprint FROM idempotency_keys WHERE workspace_id = ? AND key = ?"
);
prepared!(
    Settle for SqliteConnection,
    (number: BigInt = i64),
    "INSERT INTO settled_keys (workspace_id, key, event_id, subject_id, event_time, fingerprint)
     SELECT workspace_id, key, event_id, subject_id, event_time, fingerprint FROM recent_keys WHERE number = ?
     ON CONFLICT DO NOTHING"
);
prepared!(
    Clear for SqliteConnection,
    (from: BigInt = i64, to: BigInt = i64),
    "DELETE FROM recent_keys WHERE number >= ? AND number < ?"
);
prepared!(
    Load for SqliteConnection,
    (from: BigInt = i64) -> (BigInt, BigInt, Binary),
    "SELECT number, workspace_id, key FROM recent_keys WHERE number >= ? ORDER BY number"
);
prepared!(
    Exists for SqliteConnection,
    (number: BigInt = i64) -> BigInt,
    "SELECT number FROM recent_keys WHERE number = ?"
);
prepared!(
    Highest for SqliteConnection,
    (workspace_id: BigInt = i64, from: Binary = [u8], to: Binary = [u8]) -> Binary,
    "SELECT key FROM settled_keys WHERE workspace_id = ? AND key >= ? AND key < ? ORDER BY key DESC LIMIT 1"
);
prepared!(
    CountEvents for SqliteConnection,
    (least: BigInt = i64) -> BigInt,
    "SELECT MAX(COALESCE((SELECT MAX(rowid) FROM events), 0), ?)"
);

/// What a used key stands for.
#[derive(diesel::Queryable)]
pub struct TakenRow {
    pub event_id: Vec<u8>,
    pub subject_id: i64,
    pub event_time: i64,
    pub fingerprint: i64,
}

/// Where a key belongs among all keys: workspace, the beginning of the key, and a hash of all of it. Sorted nearly like
/// the keys themselves, in a fraction of their memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    order: [u8; 16],
    hash: u64,
}

impl Place {
    fn of(workspace_id: i64, key: &[u8]) -> Place {
        let mut order = [0; 16];
        order[..4].copy_from_slice(&(workspace_id as u32).to_be_bytes());
        let start = key.len().min(12);
        order[4..4 + start].copy_from_slice(&key[..start]);
        let hash = hash128(&[&workspace_id.to_be_bytes(), key]);
        Place { order, hash: u64::from_be_bytes([0, 1, 2, 3, 4, 5, 6, 7].map(|at| hash[at])) }
    }
}

/// What is settled together should find some neighbours on each page, however many keys there are; a recent key takes
/// some 45 bytes of memory, and that is bounded.
const EVENTS_PER_RECENT: i64 = 10;
const SIZES: Sizes = Sizes { least: 4_096, most: 1_048_576, step: 1_024 };
const SERIES_MAX: usize = 10_000;

/// Keys of a workspace that begin with the same byte: UUIDs are one series, and do not keep texts from being in order.
type Series = (i64, u8);

fn series(row: &KeyRow) -> Series {
    (row.workspace_id, row.key.first().copied().unwrap_or_default())
}

/// The recent keys, as one process knows them.
pub struct Recent {
    index: Mutex<Index>,
    /// Committed, and not in the index yet: a transaction may be holding that.
    committed: Mutex<Vec<Progress>>,
}

impl Default for Recent {
    fn default() -> Self {
        Recent::new(SIZES)
    }
}

struct Index {
    is_loaded: bool,
    /// Number of the row of each key that is not settled.
    numbers: BTreeMap<Place, i64>,
    /// Never used twice by one process, so that a number that was rolled back names no row.
    next: i64,
    /// Keys are settled in the order of their places, round and round; up to here this time.
    settled_to: Option<Place>,
    /// Rows before this were there when this round began.
    round_from: i64,
    /// Rows before this are settled, because a round has passed since; and these of them are deleted.
    past: i64,
    cleared_to: i64,
    events: i64,
    /// The highest settled key, now and one batch earlier: beyond that a key is in order.
    highest: HashMap<Series, [Vec<u8>; 2]>,
    sizes: Sizes,
}

/// How many keys stay unsettled: one for so many events, within bounds; and how many are settled at once at least.
#[derive(Clone, Copy)]
struct Sizes {
    least: usize,
    most: usize,
    step: usize,
}

/// What a transaction did that memory learns after its commit.
#[derive(Default)]
pub struct Progress {
    settled: Vec<(Place, i64)>,
    settled_to: Option<Place>,
    /// A round ended, with this as the number of the next row.
    round_from: Option<i64>,
    cleared_to: Option<i64>,
}

impl Recent {
    fn new(sizes: Sizes) -> Self {
        Recent { index: Mutex::new(Index::new(sizes)), committed: Mutex::default() }
    }

    /// To be called once the transaction is committed. Waits for no other.
    pub fn remember(&self, progress: Progress) {
        lock(&self.committed).push(progress);
    }

    /// Finds keys from any connection. One that is being settled is found in one place or the other.
    pub fn find(&self, conn: &mut SqliteConnection, key: &LedgerKey) -> Result<Option<TakenRow>, DbError> {
        let (is_loaded, number) = {
            let index = lock(&self.index);
            (index.is_loaded, index.numbers.get(&Place::of(key.0, &key.1)).copied())
        };
        if !is_loaded {
            return find_anywhere(conn, key);
        }
        find(conn, key, number)
    }

    /// Adds the keys that are new, in a transaction of the writer; returns the others.
    pub fn take(
        &self,
        conn: &mut SqliteConnection,
        rows: &[KeyRow],
    ) -> Result<(Vec<(LedgerKey, TakenRow)>, Progress), DbError> {
        let mut index = lock(&self.index);
        index.load(conn)?;
        std::mem::take(&mut *lock(&self.committed)).into_iter().for_each(|progress| index.remember(progress));
        let (mut taken, mut added) = (Vec::new(), 0);
        for row in rows {
            let place = Place::of(row.workspace_id, &row.key);
            let number = index.numbers.get(&place).copied();
            if number.is_none() && index.is_in_order(conn, row)? && add_settled(conn, row)? {
                continue;
            }
            let key = (row.workspace_id, row.key.clone());
            if let Some(found) = find(conn, &key, number)? {
                taken.push((key, found));
            } else if is_row(conn, number)? {
                // another key has this place
                add_settled(conn, row)?;
            } else {
                index.add(conn, place, row)?;
                added += 1;
            }
        }
        index.end_batch(rows);
        let progress = index.settle(conn, added)?;
        Ok((taken, progress))
    }
}

impl Index {
    fn new(sizes: Sizes) -> Self {
        Index {
            is_loaded: false,
            numbers: BTreeMap::new(),
            next: 1,
            settled_to: None,
            round_from: 1,
            past: 1,
            cleared_to: 1,
            events: 0,
            highest: HashMap::new(),
            sizes,
        }
    }

    /// What an earlier process left. Keys that it settled without deleting them here are settled again, which changes
    /// nothing.
    fn load(&mut self, conn: &mut SqliteConnection) -> Result<(), DbError> {
        if self.is_loaded {
            return Ok(());
        }
        let mut first = None;
        for row in (Load { from: &i64::MIN }).load_iter::<(i64, i64, Vec<u8>), DefaultLoadingMode>(conn)? {
            let (number, workspace_id, key) = row?;
            self.numbers.insert(Place::of(workspace_id, &key), number);
            first = first.or(Some(number));
            self.next = number + 1;
        }
        self.round_from = self.next;
        self.past = first.unwrap_or(self.next);
        self.cleared_to = self.past;
        self.events = CountEvents { least: &0 }.get_result(conn)?;
        self.is_loaded = true;
        Ok(())
    }

    /// Whether a key lies beyond what was settled of its series one batch ago, as keys do that begin with the time:
    /// those land beside each other without help.
    fn is_in_order(&mut self, conn: &mut SqliteConnection, row: &KeyRow) -> Result<bool, DbError> {
        let series = series(row);
        if !self.highest.contains_key(&series) {
            let (from, to) = ([series.1], [&[series.1], [0xFF; 40].as_slice()].concat());
            let highest = Highest { workspace_id: &series.0, from: &from, to: &to };
            let highest: Vec<u8> = highest.get_result(conn).optional()?.unwrap_or_default();
            if self.highest.len() >= SERIES_MAX {
                self.highest.clear();
            }
            self.highest.insert(series, [highest.clone(), highest]);
        }
        let Some([now, before]) = self.highest.get_mut(&series) else { return Ok(false) };
        if row.key > *now {
            now.clone_from(&row.key);
            return Ok(true);
        }
        Ok(row.key > *before)
    }

    fn end_batch(&mut self, rows: &[KeyRow]) {
        self.events += rows.len() as i64;
        let mut last = None;
        for series in rows.iter().map(series) {
            if last.replace(series) != Some(series)
                && let Some([now, before]) = self.highest.get_mut(&series)
            {
                before.clone_from(now);
            }
        }
    }

    fn add(&mut self, conn: &mut SqliteConnection, place: Place, row: &KeyRow) -> Result<(), DbError> {
        let number = self.next;
        self.next += 1;
        AddRecent {
            number: &number,
            workspace_id: &row.workspace_id,
            key: &row.key,
            event_id: row.event_id.as_bytes(),
            subject_id: &row.subject_id,
            event_time: &row.event_time,
            fingerprint: &row.fingerprint,
        }
        .execute(conn)?;
        self.numbers.insert(place, number);
        Ok(())
    }

    /// Settles the next keys when too many are not, and deletes rows that are of no use any more: each time some more
    /// than were added, so that neither ever has to catch up.
    fn settle(&self, conn: &mut SqliteConnection, added: usize) -> Result<Progress, DbError> {
        let mut progress = Progress::default();
        let Sizes { least, most, step } = self.sizes;
        let kept = ((self.events / EVENTS_PER_RECENT) as usize).clamp(least, most);
        let count = step.max(2 * added);
        if self.numbers.len() > kept + step {
            progress.settled = self.following(count);
            for (_, number) in &progress.settled {
                Settle { number }.execute(conn)?;
            }
            progress.settled_to = progress.settled.last().map(|(place, _)| *place);
            if progress.settled_to <= self.settled_to {
                progress.round_from = Some(self.next);
            }
        }
        if self.cleared_to < self.past {
            let to = self.past.min(self.cleared_to + count as i64);
            Clear { from: &self.cleared_to, to: &to }.execute(conn)?;
            progress.cleared_to = Some(to);
        }
        Ok(progress)
    }

    /// The next keys of this round; at its end those that begin the next one, but none twice.
    fn following(&self, count: usize) -> Vec<(Place, i64)> {
        let rest = (self.settled_to.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
        let mut next: Vec<(Place, i64)> =
            self.numbers.range(rest).take(count).map(|(place, number)| (*place, *number)).collect();
        if let Some(end) = self.settled_to.filter(|_| next.len() < count) {
            let first = self.numbers.range(..=end).take(count - next.len());
            next.extend(first.map(|(place, number)| (*place, *number)));
        }
        next
    }

    fn remember(&mut self, progress: Progress) {
        for (place, number) in &progress.settled {
            if self.numbers.get(place) == Some(number) {
                self.numbers.remove(place);
            }
        }
        self.settled_to = progress.settled_to.or(self.settled_to);
        if let Some(next) = progress.round_from {
            self.past = self.past.max(self.round_from);
            self.round_from = next;
        }
        self.cleared_to = self.cleared_to.max(progress.cleared_to.unwrap_or_default());
    }
}

/// Nothing is ever half done: a wrong entry is noticed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn add_settled(conn: &mut SqliteConnection, row: &KeyRow) -> Result<bool, DbError> {
    let added = AddSettled {
        workspace_id: &row.workspace_id,
        key: &row.key,
        event_id: row.event_id.as_bytes(),
        subject_id: &row.subject_id,
        event_time: &row.event_time,
        fingerprint: &row.fingerprint,
    }
    .execute(conn)?;
    Ok(added == 1)
}

/// A key that is settled, or recent under this number.
fn find(
    conn: &mut SqliteConnection,
    key: &LedgerKey,
    number: Option<i64>,
) -> Result<Option<TakenRow>, DbError> {
    let (workspace_id, key) = (&key.0, &key.1);
    if let Some(number) = &number {
        let recent = FindRecent { number, workspace_id, key }.get_result(conn).optional()?;
        if recent.is_some() {
            return Ok(recent);
        }
    }
    Ok(FindSettled { workspace_id, key }.get_result(conn).optional()?)
}

/// Finds a key without knowing where it may be.
pub fn find_anywhere(
    conn: &mut SqliteConnection,
    (workspace_id, key): &LedgerKey,
) -> Result<Option<TakenRow>, DbError> {
    Ok(FindAnywhere { workspace_id, key }.get_result(conn).optional()?)
}

fn is_row(conn: &mut SqliteConnection, number: Option<i64>) -> Result<bool, DbError> {
    let Some(number) = &number else { return Ok(false) };
    let found: Option<i64> = Exists { number }.get_result(conn).optional()?;
    Ok(found.is_some())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use diesel::connection::SimpleConnection;
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;
    use crate::db::Conn;
    use crate::db::statement::plan;
    use crate::metering::event::ledger_key;

    const SMALL: Sizes = Sizes { least: 8, most: 64, step: 4 };

    fn recent() -> Recent {
        Recent::new(SMALL)
    }

    fn row(workspace_id: i64, key: &str) -> KeyRow {
        let (event_id, key) = (Uuid::now_v7(), ledger_key(key));
        KeyRow { workspace_id, key, event_id, subject_id: 1, event_time: 2, fingerprint: 3 }
    }

    /// Keys in no order, in order, and long ones that begin alike.
    fn key(number: u16) -> String {
        match number % 4 {
            0 => format!("{:04x}-{number}", number.wrapping_mul(40_503)),
            1 => format!("in-order-{number:06}"),
            2 => Uuid::from_u64_pair(u64::from(number).wrapping_mul(0x9E37_79B9_7F4A_7C15), 7).to_string(),
            _ => format!("{}{:x}", "alike".repeat(12), number.wrapping_mul(31_337)),
        }
    }

    #[derive(Clone, Debug)]
    struct Step {
        keys: BTreeSet<(i64, u16)>,
        fate: Fate,
    }

    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Fate {
        Committed,
        RolledBack,
        /// Committed, but its writer was cut off before it could say so.
        Unsaid,
        /// Committed, and the server was restarted.
        Restarted,
    }

    fn step() -> impl Strategy<Value = Step> {
        let fate = prop_oneof![
            6 => Just(Fate::Committed), 2 => Just(Fate::RolledBack), 1 => Just(Fate::Unsaid), 1 => Just(Fate::Restarted)
        ];
        let keys = proptest::collection::btree_set((1i64..3, 0u16..600), 1..40);
        (keys, fate).prop_map(|(keys, fate)| Step { keys, fate })
    }

    fn run(steps: Vec<Step>) {
        let (_directory, mut conn) = plan::empty_database();
        let Conn::Sqlite(conn) = &mut conn else { unreachable!("it is SQLite") };
        let mut memory = recent();
        let mut model: HashMap<LedgerKey, Uuid> = HashMap::new();
        for Step { keys, fate } in steps {
            let mut rows: Vec<KeyRow> =
                keys.iter().map(|(workspace_id, number)| row(*workspace_id, &key(*number))).collect();
            rows.sort_by(|a, b| (a.workspace_id, &a.key).cmp(&(b.workspace_id, &b.key)));
            conn.batch_execute("BEGIN IMMEDIATE").expect("begun");
            let (taken, progress) = memory.take(conn, &rows).expect("taken");
            let taken: HashMap<LedgerKey, Vec<u8>> =
                taken.into_iter().map(|(key, row)| (key, row.event_id)).collect();
            for row in &rows {
                let key = (row.workspace_id, row.key.clone());
                let first = model.get(&key).map(|id| id.as_bytes().to_vec());
                assert_eq!(taken.get(&key), first.as_ref(), "{key:?}");
                if first.is_none() && fate != Fate::RolledBack {
                    model.insert(key, row.event_id);
                }
            }
            conn.batch_execute(if fate == Fate::RolledBack { "ROLLBACK" } else { "COMMIT" }).expect("ended");
            match fate {
                Fate::Committed => memory.remember(progress),
                Fate::Restarted => memory = recent(),
                Fate::RolledBack | Fate::Unsaid => {}
            }
            for (key, id) in &model {
                let wanted = Some(id.as_bytes().to_vec());
                assert_eq!(memory.find(conn, key).expect("read").map(|row| row.event_id), wanted);
            }
        }
        for (key, id) in &model {
            let found = find_anywhere(conn, key).expect("read").map(|row| row.event_id);
            assert_eq!(found, Some(id.as_bytes().to_vec()));
        }
        assert_eq!(count(conn, "idempotency_keys"), model.len() as i64);
    }

    fn count(conn: &mut SqliteConnection, table: &str) -> i64 {
        use diesel::sql_query;
        #[derive(diesel::QueryableByName)]
        struct Count {
            #[diesel(sql_type = BigInt)]
            rows: i64,
        }
        let count: Count =
            sql_query(format!("SELECT COUNT(*) AS rows FROM {table}")).get_result(conn).expect("counted");
        count.rows
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
        #[test]
        fn every_key_is_taken_once(steps in proptest::collection::vec(step(), 1..60)) {
            run(steps);
        }
    }

    #[test]
    fn keys_that_come_in_order_are_settled_at_once_and_others_in_the_end() {
        let (_directory, mut conn) = plan::empty_database();
        let Conn::Sqlite(conn) = &mut conn else { unreachable!("it is SQLite") };
        let memory = recent();
        let store = |conn: &mut SqliteConnection, keys: Vec<String>| {
            let mut rows: Vec<KeyRow> = keys.iter().map(|key| row(1, key)).collect();
            rows.sort_by(|a, b| a.key.cmp(&b.key));
            let (taken, progress) = memory.take(conn, &rows).expect("taken");
            assert!(taken.is_empty());
            memory.remember(progress);
        };
        for batch in 0..50 {
            store(conn, (0..10).map(|n| format!("{:06}", batch * 10 + n)).collect());
        }
        assert_eq!((count(conn, "settled_keys"), count(conn, "recent_keys")), (500, 0));
        for batch in 0..500u64 {
            let random = |n: u64| (batch * 10 + n).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            store(conn, (0..10).map(|n| format!("0-{:016x}", random(n))).collect());
        }
        let (settled, kept) = (count(conn, "settled_keys"), count(conn, "recent_keys"));
        let unsettled = 5_500 - settled;
        assert!((8..=64 + 4 + 20).contains(&unsettled), "{unsettled} are not settled");
        assert!(kept <= 5 * 64, "{kept} rows are kept");
    }

    #[test]
    fn another_key_at_the_same_place_is_settled() {
        let (_directory, mut conn) = plan::empty_database();
        let Conn::Sqlite(conn) = &mut conn else { unreachable!("it is SQLite") };
        let memory = recent();
        let (first, second) = (row(1, "kb"), row(1, "ka"));
        memory.take(conn, &[row(1, "kz"), row(2, "kz")]).expect("taken");
        memory.take(conn, std::slice::from_ref(&first)).expect("taken");
        let number = lock(&memory.index).numbers.values().copied().next().expect("a recent key");
        lock(&memory.index).numbers.insert(Place::of(1, &second.key), number);
        let (taken, _) = memory.take(conn, std::slice::from_ref(&second)).expect("taken");
        assert!(taken.is_empty());
        let (taken, _) = memory.take(conn, &[row(1, "ka"), row(1, "kb")]).expect("taken");
        let ids: Vec<Vec<u8>> = taken.into_iter().map(|(_, found)| found.event_id).collect();
        assert_eq!(ids, [second.event_id.as_bytes(), first.event_id.as_bytes()]);
    }
}
