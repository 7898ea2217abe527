//! Events that were turned away, per workspace: gathered in memory and written down every few seconds, because no
//! refusal is worth a transaction. What a killed server had gathered is lost.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::usage::ingestion_runs::Refused;
use crate::usage::refused::RefusedEvent;

/// Refused events that wait to be written down; what is more is only counted.
const WAITING_MAX: usize = 1_000;

#[derive(Default)]
pub struct Tally(Mutex<HashMap<i64, Refused>>, Mutex<Waiting>);

impl Tally {
    fn gathered(&self) -> MutexGuard<'_, HashMap<i64, Refused>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.1.lock().unwrap_or_else(PoisonError::into_inner)
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
        self.waiting().note(event);
    }

    /// The same for what concerns a whole call and comes in numbers, such as a limit that is reached: one tells of all,
    /// until it is written down.
    pub fn note_once(&self, event: RefusedEvent) {
        let mut waiting = self.waiting();
        let own = waiting.by_workspace.get(&event.workspace_id);
        if !own.is_some_and(|own| own.iter().any(|other| other.code == event.code)) {
            waiting.note(event);
        }
    }

    pub fn take_noted(&self) -> Vec<RefusedEvent> {
        std::mem::take(&mut *self.waiting()).by_workspace.into_values().flatten().collect()
    }

    pub fn take(&self) -> HashMap<i64, Refused> {
        std::mem::take(&mut *self.gathered())
    }
}

/// Events that wait, of which a workspace has its share: when there is no more room, one of whoever has the most makes way
/// for one of whoever has fewer.
#[derive(Default)]
struct Waiting {
    by_workspace: BTreeMap<i64, Vec<RefusedEvent>>,
    count: usize,
}

impl Waiting {
    fn note(&mut self, event: RefusedEvent) {
        let workspace_id = event.workspace_id;
        if self.count >= WAITING_MAX && !self.make_way(workspace_id) {
            return;
        }
        self.by_workspace.entry(workspace_id).or_default().push(event);
        self.count += 1;
    }

    /// False when nobody has more than this one would have.
    fn make_way(&mut self, workspace_id: i64) -> bool {
        let own = self.by_workspace.get(&workspace_id).map_or(0, Vec::len);
        // whoever has that much has no less than others on average, so that most refusals look at nobody else
        if own * self.by_workspace.len() >= WAITING_MAX {
            return false;
        }
        let most = self.by_workspace.values_mut().max_by_key(|events| events.len());
        match most.filter(|events| events.len() > own + 1) {
            Some(events) => {
                events.pop();
                self.count -= 1;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(workspace_id: i64) -> RefusedEvent {
        RefusedEvent {
            workspace_id,
            id: Vec::new(),
            outcome: "rejected".to_owned(),
            code: "invalid_input".to_owned(),
            message: String::new(),
            subject: String::new(),
            meter: String::new(),
            idempotency_key: None,
            run_id: Vec::new(),
            sent: None,
            stored: None,
            created_at: 0,
            request_id: None,
            api_key_id: None,
            field: None,
            door: "rest".to_owned(),
            payload: None,
        }
    }

    fn counts(tally: &Tally) -> Vec<(i64, usize)> {
        let mut counts: BTreeMap<i64, usize> = BTreeMap::new();
        tally.take_noted().iter().for_each(|event| *counts.entry(event.workspace_id).or_default() += 1);
        counts.into_iter().collect()
    }

    #[test]
    fn what_comes_in_numbers_is_noted_once() {
        let tally = Tally::default();
        (0..10).for_each(|_| tally.note_once(event(1)));
        tally.note_once(event(2));
        tally.note_once(RefusedEvent { code: "rate_limited".to_owned(), ..event(1) });
        assert_eq!(counts(&tally), [(1, 2), (2, 1)]);
    }

    #[test]
    fn whoever_has_the_most_makes_way() {
        let tally = Tally::default();
        (0..5_000).for_each(|_| tally.note(event(1)));
        tally.note(event(2));
        (0..5_000).for_each(|_| tally.note(event(1)));
        (0..3).for_each(|_| tally.note(event(3)));
        assert_eq!(counts(&tally), [(1, WAITING_MAX - 4), (2, 1), (3, 3)]);
        assert_eq!(counts(&tally), [], "taken");

        for id in [1, 2, 3, 4] {
            (0..5_000).for_each(|_| tally.note(event(id)));
        }
        assert_eq!(counts(&tally), [(1, 250), (2, 250), (3, 250), (4, 250)]);
        (0..2 * WAITING_MAX as i64).for_each(|id| tally.note(event(id)));
        assert_eq!(counts(&tally).len(), WAITING_MAX, "as many workspaces as there is room for");
    }
}
