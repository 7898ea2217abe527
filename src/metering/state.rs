//! What some aggregations must know of events beyond count, sum and edges: the different values, how often each
//! quantity came, squares, the latest of each key, an area. States of disjoint sets of events merge into the state of all of
//! them, in any order; what they take in memory is told to whoever bounds it. Pure. What may become a sketch: `sketch`.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use serde::Serialize;
use utoipa::ToSchema;

use crate::metering::meter::Meter;
use crate::metering::quantity::Quantity;
use crate::metering::rollup::Edge;
use crate::metering::sketch::{Distinct, ENTRY_BYTES, Spread};

#[derive(Clone, Debug, PartialEq)]
pub enum State {
    /// Different values of a field.
    Values(Distinct),
    /// How often each quantity came, and the meter, which says what is asked of them.
    Quantities(Spread, Arc<Meter>),
    /// The sum of the squares.
    Squares(Quantity),
    /// The latest event of each key.
    Latest(BTreeMap<String, Edge>),
    /// Level times microseconds.
    Area(Quantity),
}

impl State {
    /// Adds what another state knows; returns the bytes that it grew by, about, or shrank.
    pub fn merge(&mut self, other: &State) -> isize {
        match (self, other) {
            (State::Values(all), State::Values(more)) => all.merge(more),
            (State::Quantities(all, meter), State::Quantities(more, _)) => {
                all.merge(more, &meter.options.histogram_bounds)
            }
            (State::Squares(all), State::Squares(more)) | (State::Area(all), State::Area(more)) => {
                *all += more;
                0
            }
            (State::Latest(all), State::Latest(more)) => {
                more.iter().map(|(key, edge)| later(all, key, edge)).sum::<usize>() as isize
            }
            // of another aggregation: the meter changed while the query ran
            _ => 0,
        }
    }

    /// Counts roughly what it counted exactly, where the question allows it; returns the bytes that it grew by.
    pub fn shrink(&mut self) -> isize {
        match self {
            State::Values(all) => all.shrink(),
            State::Quantities(all, meter) => all.shrink(&meter.options.histogram_bounds),
            State::Latest(_) | State::Squares(_) | State::Area(_) => 0,
        }
    }

    /// What it takes in memory, about.
    pub fn bytes(&self) -> usize {
        match self {
            State::Values(all) => all.bytes(),
            State::Quantities(all, _) => all.bytes(),
            State::Latest(all) => all.keys().map(|key| ENTRY_BYTES + key.len()).sum(),
            State::Squares(_) | State::Area(_) => ENTRY_BYTES,
        }
    }

    /// The value of an answer. `count` and `sum` are those of the events; `length` is in microseconds.
    pub fn value(&self, count: i64, sum: &Quantity, length: i64) -> Quantity {
        match self {
            State::Values(all) => all.count(),
            State::Quantities(all, meter) => {
                let first = meter.options.percentiles.first();
                first.map_or_else(Quantity::zero, |percent| all.percentile(percent))
            }
            State::Squares(squares) => deviation(count, sum, squares),
            State::Latest(all) => all.values().fold(Quantity::zero(), |sum, edge| &sum + &edge.quantity),
            State::Area(area) => area.divide(&Quantity::from(length.max(1))),
        }
    }

    /// How far the value may be off, as a share of it; `None` when it is exact.
    pub fn error(&self) -> Option<Quantity> {
        match self {
            State::Values(all) => all.error(),
            State::Quantities(all, _) => all.error(),
            _ => None,
        }
    }

    /// All percentiles that are asked for.
    pub fn percentiles(&self) -> BTreeMap<String, Quantity> {
        let State::Quantities(all, meter) = self else { return BTreeMap::new() };
        let asked = meter.options.percentiles.iter();
        asked.map(|percent| (percent.to_plain(), all.percentile(percent))).collect()
    }

    /// How many events lie between the bounds of the meter, if it has any.
    pub fn histogram(&self) -> Option<Histogram> {
        let State::Quantities(all, meter) = self else { return None };
        let bounds = &meter.options.histogram_bounds;
        (!bounds.is_empty()).then(|| Histogram { bounds: bounds.clone(), counts: all.between(bounds) })
    }
}

/// How many events lie between bounds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Histogram {
    /// Those of the meter, ascending.
    pub bounds: Vec<Quantity>,
    /// Of each bound: events up to it and above the one before; at last events above all. One more than bounds.
    pub counts: Vec<u64>,
}

fn later(all: &mut BTreeMap<String, Edge>, key: &str, edge: &Edge) -> usize {
    match all.entry(key.to_owned()) {
        Entry::Vacant(free) => {
            free.insert(edge.clone());
            ENTRY_BYTES + key.len()
        }
        Entry::Occupied(mut taken) => {
            if edge.place() > taken.get().place() {
                taken.insert(edge.clone());
            }
            0
        }
    }
}

/// Of the whole population: the root of the mean squared distance from the mean, to 34 digits.
fn deviation(count: i64, sum: &Quantity, squares: &Quantity) -> Quantity {
    let count = Quantity::from(count);
    let spread = &(&count * squares) - &(sum * sum);
    if !spread.is_positive() {
        return Quantity::zero();
    }
    // a hundred digits, so that the quotient's last one is right
    spread.decimal().sqrt().map_or_else(Quantity::zero, |root| Quantity::from(root).divide(&count))
}

/// The levels of keys over time, in the order of the events: what each held until the next one came.
#[derive(Debug, Default)]
pub struct Levels {
    held: BTreeMap<(Vec<String>, String), (Quantity, i64)>,
    /// Of the keys.
    bytes: usize,
}

/// Keys of one query.
pub const LEVELS_MAX: usize = 200_000;
/// And of their texts.
pub const LEVELS_BYTES_MAX: usize = 64 << 20;

/// A stretch in which a level was held, by a group.
pub struct Held {
    pub group: Vec<String>,
    pub level: Quantity,
    pub from: i64,
    pub to: i64,
}

impl Levels {
    /// A level that begins, or with `is_change` moves, at an instant; returns the stretch that ends there.
    pub fn set(
        &mut self,
        group: &[String],
        key: String,
        at: i64,
        quantity: &Quantity,
        is_change: bool,
    ) -> Option<Held> {
        match self.held.entry((group.to_vec(), key)) {
            Entry::Vacant(free) => {
                let (group, key) = free.key();
                self.bytes += key.len() + group.iter().map(String::len).sum::<usize>();
                free.insert((quantity.clone(), at));
                None
            }
            Entry::Occupied(mut taken) => {
                let (level, from) = taken.get_mut();
                let ended = Held { group: group.to_vec(), level: level.clone(), from: *from, to: at };
                *level = if is_change { &*level + quantity } else { quantity.clone() };
                *from = at;
                Some(ended)
            }
        }
    }

    /// Of how many subjects and dimension sets.
    /// What the texts of the keys take.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn count(&self) -> usize {
        self.held.len()
    }

    /// What is held at the end.
    pub fn finish(self, to: i64) -> impl Iterator<Item = Held> {
        self.held.into_iter().map(move |((group, _), (level, from))| Held { group, level, from, to })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;
    use crate::metering::time::Timestamp;

    fn q(n: i64) -> Quantity {
        Quantity::from(n)
    }

    #[test]
    fn deviations_have_their_digits() {
        // 2, 4, 4, 4, 5, 5, 7, 9
        assert_eq!(deviation(8, &q(40), &q(232)), q(2));
        assert_eq!(deviation(1, &q(7), &q(49)), q(0));
        let two = deviation(2, &q(3), &q(5)).to_json();
        assert_eq!(two, "0.5");
        assert_eq!(deviation(3, &q(6), &q(14)).to_json(), "0.8164965809277260327324280249019638");
    }

    proptest! {
        /// Cut anywhere and merged in any order, a state is that of all events.
        #[test]
        fn states_merge(events in proptest::collection::vec((0i64..5, 0i64..4, 0i64..10), 0..40), cut in 0usize..40) {
            let latest = |part: &[(i64, i64, i64)]| {
                let mut all = BTreeMap::new();
                for (key, at, quantity) in part {
                    let edge = Edge { at: Timestamp(*at), id: Uuid::from_u128(*quantity as u128), quantity: q(*quantity) };
                    later(&mut all, &key.to_string(), &edge);
                }
                State::Latest(all)
            };
            let cut = cut.min(events.len());
            let (mut left, right) = (latest(&events[..cut]), latest(&events[cut..]));
            let mut other = right.clone();
            other.merge(&left);
            left.merge(&right);
            prop_assert_eq!(&left, &latest(&events));
            prop_assert_eq!(&other, &left);
        }
    }
}
