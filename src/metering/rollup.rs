//! Sums of events that can be added up: what a batch adds to the stored totals of meters, and what a row of an answer is
//! computed from. Pure.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use uuid::Uuid;

use crate::metering::event::Event;
use crate::metering::meter::Aggregation;
use crate::metering::quantity::Quantity;
use crate::metering::state::State;
use crate::metering::time::{DAY, HOUR, SECOND, Timestamp};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Grain {
    MeterHour = 1,
    MeterDay = 2,
}

impl Grain {
    pub fn width(self) -> i64 {
        match self {
            Grain::MeterHour => HOUR,
            Grain::MeterDay => DAY,
        }
    }
}

/// The earliest or latest event: ties in time are settled by the event id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edge {
    pub at: Timestamp,
    pub id: Uuid,
    pub quantity: Quantity,
}

impl Edge {
    pub fn place(&self) -> (Timestamp, Uuid) {
        (self.at, self.id)
    }
}

/// What is known of a set of events without the events. Adding two parts in any order gives the same whole.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    pub count: i64,
    pub sum: Quantity,
    pub min: Quantity,
    pub max: Quantity,
    /// First and last event; unknown where a query did not need them.
    pub edges: Option<(Edge, Edge)>,
    /// Only for aggregations that need the events themselves.
    pub state: Option<Box<State>>,
}

impl Part {
    /// Of no event: what is carried over from before.
    pub fn carried(state: State) -> Self {
        let zero = Quantity::zero;
        Part { count: 0, sum: zero(), min: zero(), max: zero(), edges: None, state: Some(Box::new(state)) }
    }

    pub fn of(at: Timestamp, id: Uuid, quantity: &Quantity) -> Self {
        let edge = Edge { at, id, quantity: quantity.clone() };
        Part {
            count: 1,
            sum: quantity.clone(),
            min: quantity.clone(),
            max: quantity.clone(),
            edges: Some((edge.clone(), edge)),
            state: None,
        }
    }

    /// Adds what only some aggregations know; returns the bytes that it grew by, or shrank.
    pub fn add_state(&mut self, state: &State) -> isize {
        match &mut self.state {
            Some(own) => own.merge(state),
            None => {
                self.state = Some(Box::new(state.clone()));
                state.bytes() as isize
            }
        }
    }

    pub fn add(&mut self, other: &Part) {
        self.count += other.count;
        self.sum += &other.sum;
        if other.min < self.min {
            self.min = other.min.clone();
        }
        if other.max > self.max {
            self.max = other.max.clone();
        }
        match (&mut self.edges, &other.edges) {
            (Some((first, last)), Some((other_first, other_last))) => {
                if other_first.place() < first.place() {
                    *first = other_first.clone();
                }
                if other_last.place() > last.place() {
                    *last = other_last.clone();
                }
            }
            _ => self.edges = None,
        }
        if let Some(state) = &other.state {
            self.add_state(state);
        }
    }

    /// The same as adding a part of this one event, with nothing copied that is not kept.
    pub fn add_event(&mut self, at: Timestamp, id: Uuid, quantity: &Quantity) {
        self.count += 1;
        self.sum += quantity;
        if *quantity < self.min {
            self.min = quantity.clone();
        }
        if *quantity > self.max {
            self.max = quantity.clone();
        }
        if let Some((first, last)) = &mut self.edges {
            if (at, id) < first.place() {
                *first = Edge { at, id, quantity: quantity.clone() };
            }
            if (at, id) > last.place() {
                *last = Edge { at, id, quantity: quantity.clone() };
            }
        }
    }

    /// How far the value may be off, as a share of it; `None` when it is exact.
    pub fn error(&self) -> Option<Quantity> {
        self.state.as_ref().and_then(|state| state.error())
    }

    /// The value of an answer row; `length` is the divisor of a rate, in microseconds (rest.md 9.2).
    pub fn value(&self, aggregation: Aggregation, length: i64) -> Quantity {
        let count = Quantity::from(self.count);
        match aggregation {
            Aggregation::Sum => self.sum.clone(),
            Aggregation::Count => count,
            Aggregation::Avg => self.sum.divide(&count),
            Aggregation::Min => self.min.clone(),
            Aggregation::Max => self.max.clone(),
            Aggregation::First => {
                self.edges.as_ref().map_or_else(Quantity::zero, |(first, _)| first.quantity.clone())
            }
            Aggregation::Last => {
                self.edges.as_ref().map_or_else(Quantity::zero, |(_, last)| last.quantity.clone())
            }
            Aggregation::Rate => (&count * &Quantity::from(SECOND)).divide(&Quantity::from(length)),
            Aggregation::UniqueCount
            | Aggregation::Percentile
            | Aggregation::WeightedSum
            | Aggregation::LatestSum
            | Aggregation::Stddev => {
                let state = self.state.as_ref();
                state.map_or_else(Quantity::zero, |state| state.value(self.count, &self.sum, length))
            }
        }
    }
}

/// Adds an event to the part under its key.
pub fn add_event<K: Ord>(
    parts: &mut BTreeMap<K, Part>,
    key: K,
    at: Timestamp,
    id: Uuid,
    quantity: &Quantity,
) {
    match parts.entry(key) {
        Entry::Vacant(free) => drop(free.insert(Part::of(at, id, quantity))),
        Entry::Occupied(mut taken) => taken.get_mut().add_event(at, id, quantity),
    }
}

/// Adds a part to the one under its key.
pub fn merge<K: Ord>(parts: &mut BTreeMap<K, Part>, key: K, part: &Part) {
    match parts.entry(key) {
        Entry::Vacant(free) => drop(free.insert(part.clone())),
        Entry::Occupied(mut taken) => taken.get_mut().add(part),
    }
}

/// Sums by start, in order of time. A vector: a map has room for eleven sums in its smallest node, a quarter of a
/// kilobyte each, and most series of a subject have one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Series(Vec<(Timestamp, Part)>);

impl Series {
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = (Timestamp, &Part)> {
        self.0.iter().map(|(start, part)| (*start, part))
    }

    pub fn starts(&self) -> impl Iterator<Item = Timestamp> {
        self.0.iter().map(|(start, _)| *start)
    }

    /// Where a start is, or belongs. Most come in order.
    fn place(&self, start: Timestamp) -> Result<usize, usize> {
        match self.0.last() {
            Some((last, _)) if *last < start => Err(self.0.len()),
            _ => self.0.binary_search_by_key(&start, |(start, _)| *start),
        }
    }

    pub fn add(&mut self, start: Timestamp, part: &Part) {
        match self.place(start) {
            Ok(at) => self.0[at].1.add(part),
            Err(at) => self.0.insert(at, (start, part.clone())),
        }
    }

    pub fn add_event(&mut self, start: Timestamp, at: Timestamp, id: Uuid, quantity: &Quantity) {
        match self.place(start) {
            Ok(place) => self.0[place].1.add_event(at, id, quantity),
            Err(place) => self.0.insert(place, (start, Part::of(at, id, quantity))),
        }
    }

    /// Adds all of `more`, with starts rounded down to `width`: each series is gone through once.
    pub fn add_all(&mut self, more: &Series, width: i64) {
        let mut own = std::mem::take(&mut self.0).into_iter().peekable();
        let mut sums: Vec<(Timestamp, Part)> = Vec::with_capacity(own.len().max(more.len()));
        for (start, part) in more.iter() {
            let start = start.floor(width);
            while let Some(before) = own.next_if(|(at, _)| *at <= start) {
                sums.push(before);
            }
            match sums.last_mut() {
                Some((last, sum)) if *last == start => sum.add(part),
                _ => sums.push((start, part.clone())),
            }
        }
        sums.extend(own);
        self.0 = sums;
    }
}

impl FromIterator<(Timestamp, Part)> for Series {
    fn from_iter<I: IntoIterator<Item = (Timestamp, Part)>>(parts: I) -> Self {
        let mut series = Series::default();
        for (start, part) in parts {
            match series.place(start) {
                Ok(at) => series.0[at].1.add(&part),
                Err(at) => series.0.insert(at, (start, part)),
            }
        }
        series
    }
}

impl IntoIterator for Series {
    type Item = (Timestamp, Part);
    type IntoIter = std::vec::IntoIter<(Timestamp, Part)>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

/// Where a stored rollup lives; ordered as the primary key, so that writers lock rows in one order. Each writer has its
/// own row, its lane: two commits that share one run one after the other, through the sync of the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    pub meter_id: i64,
    pub grain: Grain,
    pub start: Timestamp,
}

/// What new events add per meter and hour and day.
pub fn of_events<'a>(events: impl Iterator<Item = &'a Event>) -> BTreeMap<Key, Part> {
    let mut parts = BTreeMap::new();
    for event in events {
        let key = Key { meter_id: event.meter.id, grain: Grain::MeterHour, start: event.time.floor(HOUR) };
        add_event(&mut parts, key, event.time, event.id, &event.quantity);
    }
    let mut days = BTreeMap::new();
    for (key, part) in &parts {
        merge(&mut days, Key { grain: Grain::MeterDay, start: key.start.floor(DAY), ..*key }, part);
    }
    parts.extend(days);
    parts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Start, id and quantity of events.
    type Sample = Vec<(i64, u128, i64)>;

    fn quantity(number: i64) -> Quantity {
        Quantity::from(number)
    }

    fn series(sample: &Sample) -> Series {
        let mut series = Series::default();
        for (start, id, number) in sample {
            let at = Timestamp(*start);
            series.add_event(at, at, Uuid::from_u128(*id), &quantity(*number));
        }
        series
    }

    fn model(sample: &Sample, width: i64, into: &mut BTreeMap<Timestamp, Part>) {
        for (start, id, number) in sample {
            let at = Timestamp(*start);
            add_event(into, at.floor(width), at, Uuid::from_u128(*id), &quantity(*number));
        }
    }

    proptest! {
        #[test]
        fn a_series_is_a_map_in_order(
            one in proptest::collection::vec((-20i64..20, any::<u128>(), 1i64..9), 0..30),
            other in proptest::collection::vec((-20i64..20, any::<u128>(), 1i64..9), 0..30),
            width in 1i64..6,
        ) {
            let mut sums = BTreeMap::new();
            model(&one, width, &mut sums);
            model(&other, width, &mut sums);
            let mut added = Series::default();
            added.add_all(&series(&one), width);
            added.add_all(&series(&other), width);
            let as_parts: BTreeMap<Timestamp, Part> = added.clone().into_iter().collect();
            prop_assert_eq!(added.len(), sums.len());
            prop_assert!(added.starts().is_sorted());
            prop_assert_eq!(&as_parts, &sums);
            // one by one, in any order
            let mut single = Series::default();
            series(&other).iter().for_each(|(start, part)| single.add(start.floor(width), part));
            series(&one).iter().for_each(|(start, part)| single.add(start.floor(width), part));
            prop_assert_eq!(single, added);
        }
    }
}
