//! How much may wait to be written, in units of an event with up to a KiB of metadata; a larger event counts once per
//! KiB. No workspace may hold all of it, so that another one always finds room.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::metering::event::Event;

/// Bytes of metadata that a unit holds.
const UNIT_BYTES: usize = 1024;

/// What these events take; a call without events takes one.
pub fn units(events: &[Event]) -> usize {
    let of_event =
        |event: &Event| 1 + event.metadata.as_deref().map_or(0, |text| text.get().len()) / UNIT_BYTES;
    events.iter().map(of_event).sum::<usize>().max(1)
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Room {
    whole: Arc<Semaphore>,
    share_units: usize,
    shares: Shares,
}

type Shares = Arc<Mutex<HashMap<i64, Share>>>;

struct Share {
    free: Arc<Semaphore>,
    /// Who holds some of it or waits for it.
    users: usize,
}

/// Held until what waits is answered.
pub struct Place {
    _whole: OwnedSemaphorePermit,
    _share: OwnedSemaphorePermit,
    _user: User,
}

struct User {
    workspace_id: i64,
    shares: Shares,
}

fn locked(shares: &Shares) -> MutexGuard<'_, HashMap<i64, Share>> {
    shares.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for User {
    fn drop(&mut self) {
        let mut shares = locked(&self.shares);
        if let Some(share) = shares.get_mut(&self.workspace_id) {
            share.users -= 1;
            if share.users == 0 {
                shares.remove(&self.workspace_id);
            }
        }
    }
}

impl Room {
    /// A workspace may hold two thirds.
    pub fn new(units: usize) -> Self {
        let share_units = (units * 2 / 3).max(1);
        Room { whole: Arc::new(Semaphore::new(units)), share_units, shares: Arc::default() }
    }

    /// Shows how much waits whenever somebody asks.
    pub fn measure(&self) {
        let (whole, limit) = (self.whole.clone(), self.whole.available_permits());
        crate::metrics::at_every_look(move || {
            let waits = limit.saturating_sub(whole.available_permits());
            metrics::gauge!("open_spanner_ingest_queue_events").set(waits as f64);
            metrics::gauge!("open_spanner_ingest_queue_limit").set(limit as f64);
        });
    }

    /// A place for so many units, or `None` when there is none now. What is larger than a share takes the whole share.
    pub fn try_place(&self, workspace_id: i64, units: usize) -> Option<Place> {
        let (free, user) = self.share(workspace_id);
        let units = units.min(self.share_units) as u32;
        let share = free.try_acquire_many_owned(units).ok()?;
        let whole = self.whole.clone().try_acquire_many_owned(units).ok()?;
        Some(Place { _whole: whole, _share: share, _user: user })
    }

    /// Waits for a place.
    pub async fn place(&self, workspace_id: i64, units: usize) -> Option<Place> {
        let (free, user) = self.share(workspace_id);
        let units = units.min(self.share_units) as u32;
        let share = free.acquire_many_owned(units).await.ok()?;
        let whole = self.whole.clone().acquire_many_owned(units).await.ok()?;
        Some(Place { _whole: whole, _share: share, _user: user })
    }

    fn share(&self, workspace_id: i64) -> (Arc<Semaphore>, User) {
        let mut shares = locked(&self.shares);
        let share = shares
            .entry(workspace_id)
            .or_insert_with(|| Share { free: Arc::new(Semaphore::new(self.share_units)), users: 0 });
        share.users += 1;
        (share.free.clone(), User { workspace_id, shares: self.shares.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_workspace_leaves_room_to_the_others() {
        let room = Room::new(30);
        let first = room.try_place(1, 15).expect("room");
        assert!(room.try_place(1, 6).is_none(), "over its share of 20");
        let second = room.try_place(2, 15).expect("the rest");
        assert!(room.try_place(2, 5).is_none() && room.try_place(3, 1).is_none(), "full");
        drop((first, second));
        let all = room.try_place(1, 1_000).expect("larger than its share, alone");
        assert!(room.try_place(1, 1).is_none());
        room.try_place(2, 10).expect("room of others");
        drop(all);
        assert!(locked(&room.shares).is_empty(), "nobody is remembered");
    }
}
