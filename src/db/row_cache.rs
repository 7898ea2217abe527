//! Memory of rows that are read often and change seldom: bounded, short-lived, and never older than the last change
//! that this process knows of, nor of another database than the one in use.

use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use moka::sync::Cache;

use crate::db::identity::Epochs;

pub struct RowCache<K, V> {
    /// Each with the epoch it was read in.
    rows: Cache<K, (u64, V)>,
    epochs: Arc<Epochs>,
    /// Counts what was forgotten.
    changes: Mutex<u64>,
}

/// When a row began to be read.
#[derive(Clone, Copy)]
pub struct Reading {
    epoch: u64,
    changes: u64,
}

impl<K, V> RowCache<K, V>
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// Without a lifetime nothing is remembered.
    pub fn new(epochs: &Arc<Epochs>, capacity: u64, lifetime: Duration) -> Self {
        let capacity = if lifetime.is_zero() { 0 } else { capacity };
        let rows = Cache::builder().max_capacity(capacity).time_to_live(lifetime).build();
        RowCache { rows, epochs: epochs.clone(), changes: Mutex::new(0) }
    }

    pub fn get(&self, key: &K) -> Option<V> {
        let (epoch, row) = self.rows.get(key)?;
        (epoch == self.epochs.current()).then_some(row)
    }

    /// Must come before the row is read from the database.
    pub fn begin(&self) -> Reading {
        Reading { epoch: self.epochs.current(), changes: *self.changes() }
    }

    /// Remembers a row, unless something was forgotten since it began to be read.
    pub fn insert(&self, reading: Reading, key: K, row: V) {
        let changes = self.changes();
        if *changes == reading.changes && self.epochs.current() == reading.epoch {
            self.rows.insert(key, (reading.epoch, row));
        }
    }

    pub fn forget<'a>(&self, keys: impl IntoIterator<Item = &'a K>) {
        let mut changes = self.changes();
        *changes = changes.wrapping_add(1);
        keys.into_iter().for_each(|key| self.rows.invalidate(key));
    }

    pub fn forget_all(&self) {
        let mut changes = self.changes();
        *changes = changes.wrapping_add(1);
        self.rows.invalidate_all();
    }

    /// Costs a look at every key.
    pub fn forget_those(&self, which: impl Fn(&K) -> bool) {
        let mut changes = self.changes();
        *changes = changes.wrapping_add(1);
        let keys: Vec<Arc<K>> = self.rows.iter().map(|(key, _)| key).filter(|key| which(key)).collect();
        keys.iter().for_each(|key| self.rows.invalidate(&**key));
    }

    fn changes(&self) -> MutexGuard<'_, u64> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(epochs: &Arc<Epochs>) -> RowCache<i32, i32> {
        RowCache::new(epochs, 10, Duration::from_secs(60))
    }

    #[test]
    fn what_was_read_before_a_change_is_not_remembered_after_it() {
        let cache = cache(&Arc::default());
        let reading = cache.begin();
        cache.forget([&1]);
        cache.insert(reading, 1, 10);
        assert_eq!(cache.get(&1), None);
        cache.insert(cache.begin(), 1, 11);
        cache.insert(cache.begin(), 2, 22);
        cache.forget_those(|key| *key == 1);
        assert_eq!((cache.get(&1), cache.get(&2)), (None, Some(22)));
        cache.forget_all();
        assert_eq!(cache.get(&2), None);
    }

    #[test]
    fn nothing_outlives_its_epoch() {
        let epochs: Arc<Epochs> = Arc::default();
        let cache = cache(&epochs);
        let link = epochs.connected(1);
        let late = cache.begin();
        cache.insert(late, 1, 10);
        assert_eq!(cache.get(&1), Some(10));
        epochs.end(link);
        assert_eq!(cache.get(&1), None);
        cache.insert(late, 2, 20);
        assert_eq!(cache.get(&2), None);
    }
}
