//! Events that were turned away, per workspace: gathered in memory and written down every few seconds, because no
//! refusal is worth a transaction. What a killed server had gathered is lost.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::usage::ingestion_runs::Refused;

#[derive(Default)]
pub struct Tally(Mutex<HashMap<i64, Refused>>);

impl Tally {
    fn gathered(&self) -> MutexGuard<'_, HashMap<i64, Refused>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn add(&self, workspace_id: i64, more: Refused) {
        if more != Refused::default() {
            let mut gathered = self.gathered();
            let refused = gathered.entry(workspace_id).or_default();
            refused.rejected += more.rejected;
            refused.throttled += more.throttled;
        }
    }

    pub fn take(&self) -> HashMap<i64, Refused> {
        std::mem::take(&mut *self.gathered())
    }
}
