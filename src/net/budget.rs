//! Room for what callers send: bytes that are held in memory, over all connections and ports. Each caller gets a
//! part of it, so that one cannot take the room of all.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::{Error, Result};

/// What is counted with one permit.
const UNIT_BYTES: usize = 1024;
/// So many of a tenant may wait for room: whoever waits is held in memory, too.
const WAITING_MAX: usize = 4_096;

/// Who takes room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tenant {
    Workspace(i64),
    /// Everybody who is not known: all together they get what one workspace gets.
    Nobody,
}

/// A bounded number of bytes. Cheap to clone.
#[derive(Clone)]
pub struct Budget(Arc<Inner>);

struct Inner {
    total: Arc<Semaphore>,
    share_units: usize,
    shares: Mutex<HashMap<Tenant, Arc<Share>>>,
}

/// What one tenant may have.
struct Share {
    free: Arc<Semaphore>,
    waiting: AtomicUsize,
}

impl Share {
    fn new(units: usize) -> Self {
        Share { free: Arc::new(Semaphore::new(units)), waiting: AtomicUsize::new(0) }
    }

    async fn take(&self, units: u32) -> Result<OwnedSemaphorePermit> {
        if let Ok(free) = self.free.clone().try_acquire_many_owned(units) {
            return Ok(free);
        }
        let _waits = Waits::begin(&self.waiting)?;
        self.free.clone().acquire_many_owned(units).await.map_err(|_| stopping())
    }
}

/// One that waits, until this is dropped.
struct Waits<'a>(&'a AtomicUsize);

impl<'a> Waits<'a> {
    fn begin(waiting: &'a AtomicUsize) -> Result<Self> {
        let waits = Waits(waiting);
        if waiting.fetch_add(1, Ordering::AcqRel) < WAITING_MAX { Ok(waits) } else { Err(full()) }
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

fn stopping() -> Error {
    Error::unavailable("the server is stopping")
}

fn full() -> Error {
    metrics::counter!("open_spanner_bodies_refused_total").increment(1);
    Error::unavailable("too much is being sent at once")
}

/// Bytes taken out of a budget until this is dropped.
pub struct Room {
    budget: Budget,
    tenant: Tenant,
    share: Arc<Share>,
    taken: Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)>,
    /// Paid for and not used yet.
    spare_bytes: usize,
}

impl Budget {
    /// Each tenant may have half of it.
    pub fn new(bytes: usize) -> Self {
        let units = (bytes / UNIT_BYTES).max(2);
        Budget(Arc::new(Inner {
            total: Arc::new(Semaphore::new(units)),
            share_units: units / 2,
            shares: Mutex::default(),
        }))
    }

    /// No room yet, for this tenant.
    pub fn room(&self, tenant: Tenant) -> Room {
        let mut shares = self.0.shares.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || Arc::new(Share::new(self.0.share_units));
        let share = shares.entry(tenant).or_insert_with(new).clone();
        Room { budget: self.clone(), tenant, share, taken: None, spare_bytes: 0 }
    }
}

impl Room {
    /// Makes room for so many more bytes; waits for others to give it back. More than the share of one is cut to it.
    pub async fn grow(&mut self, bytes: usize) -> Result<()> {
        if bytes <= self.spare_bytes {
            self.spare_bytes -= bytes;
            return Ok(());
        }
        let missing = (bytes - self.spare_bytes).div_ceil(UNIT_BYTES);
        let most = self.budget.0.share_units - self.units().min(self.budget.0.share_units);
        let units = missing.min(most) as u32;
        // one's own share first: whoever waits for that holds nothing of what others need
        let own = self.share.take(units).await?;
        let common = self.budget.0.total.clone().acquire_many_owned(units).await.map_err(|_| stopping())?;
        match &mut self.taken {
            Some((own_taken, common_taken)) => {
                own_taken.merge(own);
                common_taken.merge(common);
            }
            None => self.taken = Some((own, common)),
        }
        self.spare_bytes = (self.spare_bytes + missing * UNIT_BYTES).saturating_sub(bytes);
        Ok(())
    }

    /// The same, with 503 when there is none for this long.
    pub async fn grow_within(&mut self, time: Duration, bytes: usize) -> Result<()> {
        if bytes <= self.spare_bytes {
            self.spare_bytes -= bytes;
            return Ok(());
        }
        tokio::time::timeout(time, self.grow(bytes)).await.map_err(|_| full())?
    }

    /// The same, at once or not at all.
    pub fn try_grow(&mut self, bytes: usize) -> Result<()> {
        let most = self.budget.0.share_units.saturating_sub(self.units());
        let units = bytes.div_ceil(UNIT_BYTES).min(most) as u32;
        let take = |from: &Arc<Semaphore>| from.clone().try_acquire_many_owned(units);
        let taken = take(&self.share.free).and_then(|own| Ok((own, take(&self.budget.0.total)?)));
        let (own, common) = taken.map_err(|_| Error::unavailable("too many answers wait to be read"))?;
        match &mut self.taken {
            Some((own_taken, common_taken)) => {
                own_taken.merge(own);
                common_taken.merge(common);
            }
            None => self.taken = Some((own, common)),
        }
        Ok(())
    }

    /// Gives back what is more than so many bytes take.
    pub fn shrink_to(&mut self, bytes: usize) {
        let Some((own, common)) = &mut self.taken else { return };
        let surplus = own.num_permits().saturating_sub(bytes.div_ceil(UNIT_BYTES));
        drop((own.split(surplus), common.split(surplus)));
        self.spare_bytes = (own.num_permits() * UNIT_BYTES).saturating_sub(bytes);
    }

    fn units(&self) -> usize {
        self.taken.as_ref().map_or(0, |(own, _)| own.num_permits())
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.taken = None;
        let mut shares = self.budget.0.shares.lock().unwrap_or_else(PoisonError::into_inner);
        // this one and the map's: nobody else of the tenant is here
        if Arc::strong_count(&self.share) == 2 {
            shares.remove(&self.tenant);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(20);
    const KIB: usize = 1024;

    #[tokio::test]
    async fn one_tenant_gets_half_and_others_the_rest() {
        let budget = Budget::new(8 * KIB);
        let mut first = budget.room(Tenant::Workspace(1));
        first.grow_within(SHORT, 4 * KIB).await.expect("its share");
        let mut more = budget.room(Tenant::Workspace(1));
        assert!(more.grow_within(SHORT, 1).await.is_err());
        let mut other = budget.room(Tenant::Workspace(2));
        other.grow_within(SHORT, 4 * KIB).await.expect("the other half");
        let mut nobody = budget.room(Tenant::Nobody);
        assert!(nobody.grow_within(SHORT, 1).await.is_err(), "all is taken");
        drop(first);
        more.grow_within(SHORT, 1).await.expect("given back");
        nobody.grow_within(SHORT, 1).await.expect("given back");
        drop((more, other, nobody));
        assert!(budget.0.shares.lock().expect("no holder panics").is_empty());
        assert_eq!(budget.0.total.available_permits(), 8);
    }

    #[tokio::test]
    async fn small_steps_are_counted_together() {
        let budget = Budget::new(8 * KIB);
        let mut room = budget.room(Tenant::Nobody);
        for _ in 0..KIB {
            room.grow(1).await.expect("room");
        }
        assert_eq!(room.units(), 1);
        room.grow(100 * KIB).await.expect("cut to the share of one");
        assert_eq!(room.units(), 4);
    }

    #[tokio::test]
    async fn no_more_wait_than_there_is_memory_for() {
        let budget = Budget::new(8 * KIB);
        let mut first = budget.room(Tenant::Workspace(1));
        first.grow(4 * KIB).await.expect("its share");
        let waiting: Vec<_> = (0..WAITING_MAX)
            .map(|_| {
                let mut room = budget.room(Tenant::Workspace(1));
                tokio::spawn(async move { room.grow(1).await })
            })
            .collect();
        let mut more = budget.room(Tenant::Workspace(1));
        while more.share.waiting.load(Ordering::Acquire) < WAITING_MAX {
            tokio::task::yield_now().await;
        }
        assert!(more.grow(1).await.is_err(), "at once");
        budget.room(Tenant::Workspace(2)).grow(1).await.expect("room of others");
        drop(first);
        for one in waiting {
            one.await.expect("no panic").expect("room");
        }
        more.grow(1).await.expect("nobody waits any more");
    }

    #[tokio::test]
    async fn what_became_smaller_gives_room_back() {
        let budget = Budget::new(8 * KIB);
        let mut room = budget.room(Tenant::Workspace(1));
        room.shrink_to(0);
        room.grow(4 * KIB).await.expect("room");
        room.shrink_to(KIB + 1);
        assert_eq!((room.units(), budget.0.total.available_permits()), (2, 6));
        room.grow(KIB - 1).await.expect("paid for already");
        assert_eq!(room.units(), 2);
        room.shrink_to(100 * KIB);
        assert_eq!(room.units(), 2, "nothing more is taken");
        let mut other = budget.room(Tenant::Workspace(1));
        other.grow_within(SHORT, 2 * KIB).await.expect("it was given back");
    }
}
