//! What a commit adds to a meter, packed: its sums by dimensions, its sums of each subject, and how many events each
//! subject got. Folding turns the first into facets, settling the others into what is kept of subjects. Pure: which rows
//! hold them is known in `usage::{facets, runs, subjects}`.

use std::collections::BTreeMap;

use crate::metering::event::{DimensionSet, Event};
use crate::metering::facet::{self, Cells, Input, QUARTER, put_bytes, put_signed, put_unsigned};
use crate::metering::rollup::{Part, Series};
use crate::metering::time::Timestamp;

/// Of one meter.
pub struct Delta {
    /// By dimensions ([`facet::pack`]).
    pub cells: Vec<u8>,
    /// By subject and dimensions ([`SubjectCells`]).
    pub subjects: Vec<u8>,
    /// ([`Counts`])
    pub counts: Vec<u8>,
    /// About how many sums there are.
    pub size: usize,
}

/// What new events, each with the id of its subject, add, by meter.
pub fn of_events<'a>(events: impl Iterator<Item = (&'a Event, i64)>) -> BTreeMap<i64, Delta> {
    let mut meters: BTreeMap<i64, Vec<(&Event, i64)>> = BTreeMap::new();
    for (event, subject_id) in events {
        meters.entry(event.meter.id).or_default().push((event, subject_id));
    }
    meters.into_iter().map(|(meter_id, events)| (meter_id, of_meter(events))).collect()
}

fn of_meter(mut events: Vec<(&Event, i64)>) -> Delta {
    events.sort_unstable_by_key(|(event, _)| event.dimension_set.hash);
    let needs_edges = events.first().is_some_and(|(event, _)| facet::needs_edges(event.meter.aggregation));
    let sets = by_set(&events);
    let cells = pack(&sets, needs_edges);
    let mut size = sets.iter().map(|(_, sums)| sums.len()).sum();
    // keeps the order of sets within a subject
    events.sort_by_key(|(_, subject_id)| *subject_id);
    let (mut subjects, mut counts) = (SubjectCells::default(), Counts::new());
    for of_subject in events.chunk_by(|(_, one), (_, other)| one == other) {
        let Some((_, subject_id)) = of_subject.first() else { continue };
        let sets = by_set(of_subject);
        size += sets.iter().map(|(_, sums)| sums.len()).sum::<usize>();
        // always with first and last events: a meter may become one that answers with them
        subjects.push(*subject_id, &pack(&sets, true));
        let last_at = of_subject.iter().map(|(event, _)| event.time).max();
        counts.insert(*subject_id, Count { events: of_subject.len() as i64, last_at });
    }
    Delta { cells, subjects: subjects.into_bytes(), counts: pack_counts(&counts), size }
}

/// What events came to that are not stored: in a period of a quarter or more, by subject and set. They count for nobody.
pub fn of_sums<'a>(
    sums: impl Iterator<Item = (i64, &'a DimensionSet, Timestamp, &'a Part)>,
    needs_edges: bool,
) -> Delta {
    type Sets<'a> = BTreeMap<[u8; 16], (&'a DimensionSet, Series)>;
    let (mut all, mut each) = (Sets::new(), BTreeMap::<i64, Sets>::new());
    for (subject_id, set, start, part) in sums {
        for sets in [&mut all, each.entry(subject_id).or_default()] {
            let (_, sums) = sets.entry(set.hash).or_insert_with(|| (set, Series::default()));
            sums.add(start.floor(QUARTER), part);
        }
    }
    let listed = |sets: Sets<'a>| sets.into_values().collect::<Vec<_>>();
    let all = listed(all);
    let mut size = all.iter().map(|(_, sums)| sums.len()).sum();
    let mut subjects = SubjectCells::default();
    for (subject_id, sets) in each {
        let sets = listed(sets);
        size += sets.iter().map(|(_, sums)| sums.len()).sum::<usize>();
        subjects.push(subject_id, &pack(&sets, true));
    }
    Delta {
        cells: pack(&all, needs_edges),
        subjects: subjects.into_bytes(),
        counts: pack_counts(&Counts::new()),
        size,
    }
}

/// Events in the order of their sets.
fn by_set<'a>(events: &[(&'a Event, i64)]) -> Vec<(&'a DimensionSet, Series)> {
    let is_same = |(one, _): &(&Event, i64), (other, _): &(&Event, i64)| {
        one.dimension_set.hash == other.dimension_set.hash
    };
    let sets = events.chunk_by(is_same).filter_map(|of_set| {
        let mut sums = Series::default();
        for (event, _) in of_set {
            sums.add_event(event.time.floor(QUARTER), event.time, event.id, &event.quantity);
        }
        Some((&of_set.first()?.0.dimension_set, sums))
    });
    sets.collect()
}

fn pack(sets: &[(&DimensionSet, Series)], with_edges: bool) -> Vec<u8> {
    let groups = sets.iter().map(|(set, sums)| (set.version, set.json.as_str(), sums));
    facet::pack_groups(sets.len(), groups, with_edges)
}

/// Packed cells of many subjects: for each its id and the length of its cells, so that others are stepped over. A subject
/// may come several times; putting two behind each other gives both.
#[derive(Default)]
pub struct SubjectCells(Vec<u8>);

impl SubjectCells {
    pub fn push(&mut self, subject_id: i64, cells: &[u8]) {
        self.0.extend_from_slice(&subject_id.to_be_bytes());
        put_bytes(&mut self.0, cells);
    }

    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// Subject and packed cells of it, in the order of pushing; ends with `None` for bytes that are no such thing.
    pub fn each(bytes: &[u8]) -> impl Iterator<Item = Option<(i64, &[u8])>> {
        let mut input = Input(bytes);
        std::iter::from_fn(move || {
            if input.0.is_empty() {
                return None;
            }
            let next = input.fixed().and_then(|subject_id| Some((subject_id, input.bytes()?)));
            if next.is_none() {
                input = Input(&[]);
            }
            Some(next)
        })
    }
}

/// Events of a subject with a meter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Negative for events that were pruned.
    pub events: i64,
    pub last_at: Option<Timestamp>,
}

impl Count {
    pub fn add(&mut self, more: Count) {
        self.events += more.events;
        self.last_at = self.last_at.max(more.last_at);
    }
}

/// By subject, or by meter.
pub type Counts = BTreeMap<i64, Count>;

pub fn add_counts(counts: &mut Counts, more: &Counts) {
    for (id, count) in more {
        counts.entry(*id).or_default().add(*count);
    }
}

pub fn pack_counts(counts: &Counts) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(counts.len() * 18);
    for (id, count) in counts {
        bytes.extend_from_slice(&id.to_be_bytes());
        put_signed(&mut bytes, count.events);
        put_unsigned(&mut bytes, u64::from(count.last_at.is_some()));
        if let Some(at) = count.last_at {
            put_signed(&mut bytes, at.0);
        }
    }
    bytes
}

/// `None` for bytes that [`pack_counts`] did not make.
pub fn unpack_counts(bytes: &[u8]) -> Option<Counts> {
    let mut counts = Counts::new();
    for entry in each_count(bytes) {
        let (id, count) = entry?;
        counts.entry(id).or_default().add(count);
    }
    Some(counts)
}

/// Packed counts one by one; ends with `None` for bytes that [`pack_counts`] did not make.
pub fn each_count(bytes: &[u8]) -> impl Iterator<Item = Option<(i64, Count)>> {
    let mut input = Input(bytes);
    std::iter::from_fn(move || {
        if input.0.is_empty() {
            return None;
        }
        let next = input.count();
        if next.is_none() {
            input = Input(&[]);
        }
        Some(next)
    })
}

impl Input<'_> {
    fn count(&mut self) -> Option<(i64, Count)> {
        let (id, events) = (self.fixed()?, self.signed()?);
        let last_at = match self.unsigned()? {
            0 => None,
            _ => Some(Timestamp(self.signed()?)),
        };
        Some((id, Count { events, last_at }))
    }

    fn fixed(&mut self) -> Option<i64> {
        Some(i64::from_be_bytes(self.take(8)?.try_into().ok()?))
    }
}

/// All of it, by subject; `None` for bytes that are no such thing.
pub fn unpack_subjects(bytes: &[u8]) -> Option<BTreeMap<i64, Cells>> {
    let mut subjects: BTreeMap<i64, Cells> = BTreeMap::new();
    for entry in SubjectCells::each(bytes) {
        let (subject_id, cells) = entry?;
        facet::add_all(subjects.entry(subject_id).or_default(), &facet::unpack(cells)?, QUARTER);
    }
    Some(subjects)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn counts_come_back(counts in proptest::collection::btree_map(any::<i64>(), (any::<i64>(), any::<Option<i64>>()), 0..20)) {
            let counts: Counts = counts
                .into_iter()
                .map(|(id, (events, at))| (id, Count { events, last_at: at.map(Timestamp) }))
                .collect();
            prop_assert_eq!(unpack_counts(&pack_counts(&counts)), Some(counts));
        }

        /// No bytes make them panic.
        #[test]
        fn other_bytes_are_refused_or_read(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = (unpack_counts(&bytes), unpack_subjects(&bytes));
        }

        #[test]
        fn subjects_come_back_in_any_pieces(entries in proptest::collection::vec((0i64..5, 0usize..4), 0..20), cut in 0usize..20) {
            let cells = |n: &usize| facet::pack_groups(0, std::iter::empty(), n.is_multiple_of(2));
            let (mut one, mut two) = (SubjectCells::default(), SubjectCells::default());
            for (at, (id, n)) in entries.iter().enumerate() {
                if at < cut { one.push(*id, &cells(n)) } else { two.push(*id, &cells(n)) }
            }
            let bytes = [one.into_bytes(), two.into_bytes()].concat();
            let found: Vec<i64> = SubjectCells::each(&bytes).map(|entry| entry.expect("packed").0).collect();
            prop_assert_eq!(found, entries.iter().map(|(id, _)| *id).collect::<Vec<_>>());
        }
    }
}
