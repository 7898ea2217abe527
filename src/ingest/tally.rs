//! Events that were turned away, per workspace: gathered in memory and written down every few seconds, because no
//! refusal is worth a transaction. What a killed server had gathered is lost.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::usage::ingestion_runs::Refused;
use crate::usage::refused::RefusedEvent;

/// Refused events that wait to be written down; what is more is only counted.
const WAITING_MAX: usize = 1_000;

#[derive(Default)]
pub struct Tally(Mutex<HashMap<i64, Refused>>, Mutex<Vec<RefusedEvent>>);

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

    /// Keeps an event for those who ask about it, unless too many wait.
    pub fn note(&self, event: RefusedEvent) {
        let mut waiting = self.1.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() < WAITING_MAX {
            waiting.push(event);
        }
    }

    pub fn take_noted(&self) -> Vec<RefusedEvent> {
        std::mem::take(&mut *self.1.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn take(&self) -> HashMap<i64, Refused> {
        std::mem::take(&mut *self.gathered())
    }
}
