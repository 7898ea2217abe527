//! What was read about a credential a moment ago: bounded, short-lived, and never older than the last revocation
//! ordered on this server. Keeps hashes, not credentials, and nothing about credentials that do not exist.

use std::sync::Arc;
use std::time::Duration;

use crate::auth::token::TokenHash;
use crate::db::identity::Epochs;
use crate::db::row_cache::RowCache;
use crate::error::Result;

/// How many look-ups wait for each other only if they are for the same credential, nearly always.
const STRIPES: usize = 64;
/// A look-up that takes this long is not waited for: its waiters ask for themselves, rather than queue up behind a
/// database that does not answer.
const PATIENCE: Duration = Duration::from_millis(100);

pub(super) struct CredentialCache<V> {
    known: RowCache<TokenHash, Arc<V>>,
    /// Lets one of many simultaneous requests with the same credential ask the database.
    lanes: [tokio::sync::Mutex<()>; STRIPES],
}

impl<V: Send + Sync + 'static> CredentialCache<V> {
    pub(super) fn new(epochs: &Arc<Epochs>, lifetime: Duration, capacity: u64) -> Self {
        CredentialCache {
            known: RowCache::new(epochs, capacity, lifetime),
            lanes: std::array::from_fn(|_| tokio::sync::Mutex::new(())),
        }
    }

    pub(super) async fn get_or_load(
        &self,
        hash: TokenHash,
        load: impl AsyncFnOnce() -> Result<Option<V>>,
    ) -> Result<Option<Arc<V>>> {
        if let Some(known) = self.known.get(&hash) {
            return Ok(Some(known));
        }
        let lane = &self.lanes[usize::from(hash[0]) % STRIPES];
        let _turn = tokio::time::timeout(PATIENCE, lane.lock()).await;
        if let Some(known) = self.known.get(&hash) {
            return Ok(Some(known));
        }
        let reading = self.known.begin();
        let Some(loaded) = load().await? else { return Ok(None) };
        let loaded = Arc::new(loaded);
        self.known.insert(reading, hash, loaded.clone());
        Ok(Some(loaded))
    }

    pub(super) fn forget_all(&self) {
        self.known.forget_all();
    }

    /// Forgets credentials whose end, or change, was just committed.
    pub(super) fn forget<'a>(&self, hashes: impl IntoIterator<Item = &'a [u8]>) {
        let hashes: Vec<TokenHash> =
            hashes.into_iter().filter_map(|hash| TokenHash::try_from(hash).ok()).collect();
        self.known.forget(&hashes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: TokenHash = [7; 32];
    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn answers_are_remembered_until_forgotten() {
        let memory = CredentialCache::new(&Arc::default(), LONG, 10);
        let read = async |value: i32| {
            memory.get_or_load(HASH, async || Ok(Some(value))).await.expect("ok").map(|v| *v)
        };
        assert_eq!(read(1).await, Some(1));
        assert_eq!(read(2).await, Some(1));
        memory.forget([HASH.as_slice()]);
        assert_eq!(read(3).await, Some(3));
    }

    #[tokio::test]
    async fn unknown_credentials_are_not_remembered() {
        let memory = CredentialCache::new(&Arc::default(), LONG, 10);
        assert!(memory.get_or_load(HASH, async || Ok(None::<i32>)).await.expect("ok").is_none());
        assert!(memory.get_or_load(HASH, async || Ok(Some(1))).await.expect("ok").is_some());
    }

    #[tokio::test]
    async fn what_was_read_before_a_revocation_is_not_remembered_after_it() {
        let memory = CredentialCache::new(&Arc::default(), LONG, 10);
        let load = async || {
            memory.forget([HASH.as_slice()]);
            Ok(Some(1))
        };
        assert!(memory.get_or_load(HASH, load).await.expect("ok").is_some());
        assert!(memory.get_or_load(HASH, async || Ok(None)).await.expect("ok").is_none());
    }

    #[tokio::test]
    async fn without_a_lifetime_nothing_is_remembered() {
        let memory = CredentialCache::new(&Arc::default(), Duration::ZERO, 10);
        for value in [1, 2] {
            let read = memory.get_or_load(HASH, async || Ok(Some(value))).await.expect("ok");
            assert_eq!(read.as_deref(), Some(&value));
        }
    }

    #[tokio::test]
    async fn one_of_many_asks() {
        let memory = Arc::new(CredentialCache::new(&Arc::default(), LONG, 10));
        let asked = Arc::new(std::sync::atomic::AtomicU32::new(0));
        let tasks = (0..20).map(|_| {
            let (memory, asked) = (memory.clone(), asked.clone());
            tokio::spawn(async move {
                let load = async || {
                    asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    Ok(Some(1))
                };
                memory.get_or_load(HASH, load).await.expect("ok").map(|v| *v)
            })
        });
        for task in tasks.collect::<Vec<_>>() {
            assert_eq!(task.await.expect("task"), Some(1));
        }
        assert_eq!(asked.load(std::sync::atomic::Ordering::SeqCst), 1);
    }
}
