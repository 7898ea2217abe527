//! What changed in a workspace, for those who have its pages open: one small look a second at the newest rows, however
//! many watch, and none while nobody does. It sees what any server of the installation wrote.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::alerts::sql::{deliveries, events};
use crate::db::{Conn, DbError, Store};
use crate::entitlements::sql::listing;
use crate::exports;
use crate::usage::{ingestion_runs, refused};

/// What changes are told about, in the order of [`Marks`].
pub const TOPICS: [&str; 4] = ["ingest", "quota", "alerts", "exports"];
const TICK: Duration = Duration::from_secs(1);
/// Of the newest exports the progress is watched.
const EXPORTS_WATCHED: i64 = 20;

/// What the newest rows of each topic look like; another mark is a change.
pub type Marks = [u64; TOPICS.len()];

type Watched = Arc<Mutex<HashMap<i64, watch::Sender<Marks>>>>;

/// Cheap to clone.
#[derive(Clone)]
pub struct Changes {
    store: Store,
    watched: Watched,
}

impl Changes {
    pub fn new(store: Store) -> Changes {
        Changes { store, watched: Watched::default() }
    }

    /// The marks of a workspace, now and whenever they change.
    pub fn watch(&self, workspace_id: i64) -> watch::Receiver<Marks> {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = watched.get(&workspace_id) {
            return sender.subscribe();
        }
        let (sender, receiver) = watch::channel(Marks::default());
        watched.insert(workspace_id, sender);
        tokio::spawn(self.clone().look(workspace_id));
        receiver
    }

    /// Looks until nobody watches any more.
    async fn look(self, workspace_id: i64) {
        loop {
            // a failed look is tried again; the pages tell of a database that is away
            let found = self.store.read("changes::marks", move |conn| marks(conn, workspace_id)).await;
            if !self.tell(workspace_id, found.ok()) {
                return;
            }
            tokio::time::sleep(TICK).await;
        }
    }

    /// False when nobody watches: the entry is gone then, under the same lock that new watchers take.
    fn tell(&self, workspace_id: i64, found: Option<Marks>) -> bool {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(sender) = watched.get(&workspace_id) else { return false };
        if sender.receiver_count() == 0 {
            watched.remove(&workspace_id);
            return false;
        }
        if let Some(found) = found {
            sender.send_if_modified(|marks| std::mem::replace(marks, found) != found);
        }
        true
    }
}

fn marks(conn: &mut Conn, workspace_id: i64) -> Result<Marks, DbError> {
    let runs = ingestion_runs::runs(conn, workspace_id, None, 1)?.pop().map(|run| run.id);
    let refused = refused::list(conn, workspace_id, &refused::Filter::default(), 1)?.pop();
    let changes = listing::events(conn, workspace_id, &listing::Filter::default(), 1)?.pop();
    let alerts = events::events(conn, workspace_id, None, None, 1)?.pop().map(|(id, _)| id);
    let owed = deliveries::owed(conn, Some(workspace_id))?;
    let (jobs, _) = exports::sql::list(conn, workspace_id, None, None, EXPORTS_WATCHED)?;
    Ok([
        mark(&(runs, refused.map(|event| event.public_id()))),
        // counters move with every event
        mark(&(runs, changes.map(|entry| entry.id))),
        mark(&(alerts, owed.pending, owed.failing, owed.dead_letters)),
        mark(&jobs.iter().map(|job| format!("{job:?}")).collect::<Vec<_>>()),
    ])
}

/// Never 0, which stands for not looked yet.
fn mark(seen: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    seen.hash(&mut hasher);
    hasher.finish().max(1)
}

/// The topics whose marks differ.
pub fn changed(before: &Marks, now: &Marks) -> Vec<&'static str> {
    let pairs = TOPICS.iter().zip(before.iter().zip(now));
    pairs.filter(|(_, (before, now))| before != now).map(|(topic, _)| *topic).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_told() {
        assert_eq!(changed(&[1, 2, 3, 4], &[1, 5, 3, 6]), ["quota", "exports"]);
        assert_ne!(mark(&Some(1)), mark(&None::<i32>));
    }
}
