//! Whose turn it is among what waits to be written. Each workspace has a lane; a turn is worth so many units, whoever
//! used it up goes to the back, and a lane that was empty goes first: a gentle caller waits for the commit under way,
//! not for what somebody else has piled up. Within a lane calls go before the parts of streams. Pure.

use std::collections::{HashMap, VecDeque};

/// What a lane may take before the next one has its turn.
const TURN_UNITS: i64 = 1_000;
/// Turns of calls in a row while parts wait.
const CALL_TURNS: u32 = 4;

pub struct Turns<T> {
    lanes: HashMap<i64, Lane<T>>,
    /// Lanes that came anew, and those that had a turn; each lane is in one of them once.
    fresh: VecDeque<i64>,
    seasoned: VecDeque<i64>,
}

struct Lane<T> {
    calls: VecDeque<(i64, T)>,
    parts: VecDeque<(i64, T)>,
    /// Of the turn; below zero after one that was larger than a turn.
    left: i64,
    call_turns: u32,
}

impl<T> Lane<T> {
    fn new() -> Self {
        Lane { calls: VecDeque::new(), parts: VecDeque::new(), left: TURN_UNITS, call_turns: 0 }
    }

    fn take(&mut self) -> Option<T> {
        let parts_go_first = self.call_turns >= CALL_TURNS && !self.parts.is_empty();
        let (units, item) = match parts_go_first {
            true => self.parts.pop_front(),
            false => self.calls.pop_front().or_else(|| self.parts.pop_front()),
        }?;
        if parts_go_first {
            self.call_turns = 0;
        }
        self.left -= units;
        Some(item)
    }
}

impl<T> Default for Turns<T> {
    fn default() -> Self {
        Turns { lanes: HashMap::new(), fresh: VecDeque::new(), seasoned: VecDeque::new() }
    }
}

impl<T> Turns<T> {
    pub fn push(&mut self, workspace_id: i64, is_part: bool, units: usize, item: T) {
        let fresh = &mut self.fresh;
        let lane = self.lanes.entry(workspace_id).or_insert_with(|| {
            fresh.push_back(workspace_id);
            Lane::new()
        });
        let queue = if is_part { &mut lane.parts } else { &mut lane.calls };
        queue.push_back((units as i64, item));
    }

    pub fn pop(&mut self) -> Option<T> {
        loop {
            let is_fresh = !self.fresh.is_empty();
            let workspace_id = *self.fresh.front().or_else(|| self.seasoned.front())?;
            let lane = self.lanes.get_mut(&workspace_id)?;
            if lane.left > 0
                && let Some(item) = lane.take()
            {
                return Some(item);
            }
            let is_empty = lane.calls.is_empty() && lane.parts.is_empty();
            if lane.left <= 0 {
                lane.left += TURN_UNITS;
                lane.call_turns += 1;
            }
            if is_fresh {
                self.fresh.pop_front()
            } else {
                self.seasoned.pop_front()
            };
            // one that emptied while it was fresh waits behind the others once, or it would always come first
            if is_empty && !is_fresh {
                self.lanes.remove(&workspace_id);
            } else {
                self.seasoned.push_back(workspace_id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of each workspace, what was taken until this one's item came.
    fn taken_before(turns: &mut Turns<i64>, wanted: i64) -> usize {
        std::iter::from_fn(|| turns.pop()).take_while(|workspace_id| *workspace_id != wanted).count()
    }

    #[test]
    fn a_gentle_workspace_does_not_wait_for_a_flood() {
        let mut turns = Turns::default();
        (0..20_000).for_each(|_| turns.push(1, true, 1, 1));
        assert!((0..2_500).all(|_| turns.pop() == Some(1)), "alone, it has all turns");
        turns.push(2, false, 1, 2);
        assert_eq!(turns.pop(), Some(2), "what comes anew goes first");
        // once it had its turn it goes behind the others
        turns.push(2, false, 1, 2);
        assert!(taken_before(&mut turns, 2) <= 2 * TURN_UNITS as usize);
    }

    #[test]
    fn floods_share_by_units_not_by_calls() {
        let mut turns = Turns::default();
        (0..100).for_each(|_| turns.push(1, false, 3_000, 1));
        (0..50_000).for_each(|_| turns.push(2, false, 1, 2));
        let first: Vec<i64> = std::iter::from_fn(|| turns.pop()).take(20_000).collect();
        let large = first.iter().filter(|workspace_id| **workspace_id == 1).count() * 3_000;
        assert!((15_000..=30_000).contains(&large), "{large} units beside {}", first.len());
    }

    #[test]
    fn calls_go_before_parts_of_their_workspace_and_parts_go_on() {
        let mut turns = Turns::default();
        (0..10).for_each(|n| turns.push(1, true, 1, n));
        (0..20_000).for_each(|n| turns.push(1, false, 1, 100 + n));
        assert_eq!(turns.pop(), Some(100));
        let parts = (0..15_000).filter_map(|_| turns.pop()).filter(|item| *item < 100).count();
        assert!((1..10).contains(&parts), "{parts}");
        assert_eq!(std::iter::from_fn(|| turns.pop()).filter(|item| *item < 100).count(), 10 - parts);
        assert!(turns.pop().is_none() && turns.lanes.is_empty());
    }
}
