//! What writers remember between two transactions, and what a transaction learned. No rule hangs on it: whatever is
//! not remembered is looked up.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use moka::sync::Cache;

use super::{activity, sqlite};
use crate::entitlements::assignment::AssignmentPeriod;
use crate::entitlements::plan::Plan;
use crate::metering::time::{SECOND, Timestamp};

/// Names that were looked up before, so that a write does not have to. Bounded; filled only after a commit, and of one
/// epoch of the database (`crate::db::identity`).
pub struct WriteCache {
    pub(super) subjects: Cache<(i64, String), i64>,
    pub(super) dimension_sets: Cache<(i64, [u8; 16]), ()>,
    pub(super) histories: Cache<i64, History>,
    pub(super) plans: Cache<i64, Arc<Plan>>,
    /// SQLite only.
    pub(super) activity: Cache<activity::SubjectDay, ()>,
    /// SQLite only.
    pub(super) recent_keys: sqlite::Recent,
    /// SQLite only.
    pub(super) watch: sqlite::Watch,
    /// Until then reads of quotas are expected to fail.
    pub(super) careful_until: AtomicI64,
}

/// What a subject was assigned to, under this version of its workspace's assignments.
type History = (i64, Arc<[AssignmentPeriod]>);

const KNOWN_SUBJECTS_MAX: u64 = 200_000;
const KNOWN_DIMENSION_SETS_MAX: u64 = 100_000;
const KNOWN_PLANS_MAX: u64 = 10_000;
const CAREFUL_FOR: i64 = 600 * SECOND;

impl Default for WriteCache {
    fn default() -> Self {
        WriteCache {
            subjects: Cache::new(KNOWN_SUBJECTS_MAX),
            dimension_sets: Cache::builder()
                .max_capacity(KNOWN_DIMENSION_SETS_MAX)
                .support_invalidation_closures()
                .build(),
            histories: Cache::new(KNOWN_SUBJECTS_MAX),
            plans: Cache::new(KNOWN_PLANS_MAX),
            activity: Cache::new(KNOWN_SUBJECTS_MAX),
            recent_keys: sqlite::Recent::default(),
            watch: sqlite::Watch::default(),
            careful_until: AtomicI64::new(0),
        }
    }
}

/// What a transaction learned; becomes known once it is committed.
#[derive(Default)]
pub struct CacheUpdates {
    pub(super) subjects: Vec<((i64, String), i64)>,
    pub(super) dimension_sets: Vec<(i64, [u8; 16])>,
    pub(super) histories: Vec<(i64, History)>,
    pub(super) plans: Vec<Arc<Plan>>,
    pub(super) activity: Vec<activity::SubjectDay>,
    pub(super) settled_keys: Option<sqlite::Progress>,
    /// SQLite only: as long as this is there, so is all of the above.
    pub(super) run: Option<sqlite::LastRun>,
    /// Background work was asked for: wake the workers.
    pub has_jobs: bool,
    /// Sums that wait to be folded: how many, by meter.
    pub unfolded: Vec<(i64, usize)>,
}

impl WriteCache {
    pub fn remember(&self, learned: CacheUpdates) {
        for (subject, id) in learned.subjects {
            self.subjects.insert(subject, id);
        }
        for set in learned.dimension_sets {
            self.dimension_sets.insert(set, ());
        }
        for (subject_id, history) in learned.histories {
            self.histories.insert(subject_id, history);
        }
        for plan in learned.plans {
            self.plans.insert(plan.id, plan);
        }
        for day in learned.activity {
            self.activity.insert(day, ());
        }
        if let Some(progress) = learned.settled_keys {
            self.recent_keys.remember(progress);
        }
        if let Some(run) = learned.run {
            self.watch.remember(run);
        }
    }

    /// A quota could not be read.
    pub(super) fn be_careful(&self) {
        self.careful_until.store(Timestamp::now().plus(CAREFUL_FOR).0, Ordering::Relaxed);
    }

    pub(super) fn is_careful(&self) -> bool {
        Timestamp::now().0 < self.careful_until.load(Ordering::Relaxed)
    }

    /// A meter was deleted: its dimension sets are gone and must be written again.
    pub fn forget_meter(&self, meter_id: i64) {
        self.dimension_sets
            .invalidate_entries_if(move |(meter, _), ()| *meter == meter_id)
            .map_or_else(|error| log::error!(error:% = error; "cannot forget a meter"), drop);
    }
}
