//! Sums of events of a meter by some of its dimensions, packed. A facet is a choice of dimensions; its cells are
//! the sums per values of those dimensions and hour or day. What a commit adds (`metering::delta`) and what each subject
//! used travel in the same form, by all dimensions. Pure: which rows hold them is known in `usage::{facets, runs}`.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use num_traits::ToPrimitive;
use uuid::Uuid;

use crate::metering::json::{self, Map};
use crate::metering::meter::{Aggregation, Meter};
use crate::metering::quantity::Quantity;
use crate::metering::rollup::{Edge, Part, Series};
use crate::metering::short::{Short, ShortPart, Sum, Sums};
use crate::metering::time::{DAY, HOUR, Timestamp};

/// The finest sums that are kept begin on quarters of an hour: no time zone of today is off by less.
pub const QUARTER: i64 = HOUR / 4;

/// Pairs are kept of meters with at most so many dimensions: of six there are 15.
const PAIRED_DIMENSIONS_MAX: usize = 6;
/// Cells of a facet and day. With more it no longer pays, and the rows of every subject answer instead.
pub const CELLS_MAX: usize = 16_384;
/// And by quarters of an hour, for buckets that begin off the hour: with more, reading the events of such an hour costs no
/// more than reading its sums.
pub const QUARTER_CELLS_MAX: usize = 4_096;

/// Which dimensions cells are told apart by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Facet {
    /// Every dimension that was declared when the event came.
    All,
    Of(BTreeSet<String>),
}

impl Facet {
    /// As it is stored. No name of a dimension has a comma or a star in it.
    pub fn name(&self) -> String {
        match self {
            Facet::All => "*".to_owned(),
            // empty for none at all
            Facet::Of(names) => names.iter().map(String::as_str).collect::<Vec<_>>().join(","),
        }
    }

    /// Reverses [`Facet::name`].
    pub fn named(name: &str) -> Facet {
        match name {
            "*" => Facet::All,
            "" => Facet::Of(BTreeSet::new()),
            names => Facet::Of(names.split(',').map(str::to_owned).collect()),
        }
    }

    /// What is kept of a meter, `All` first.
    pub fn kept(meter: &Meter) -> Vec<Facet> {
        let names: BTreeSet<&String> = meter.dimensions.iter().map(|dimension| &dimension.name).collect();
        let names: Vec<&String> = names.into_iter().collect();
        let mut facets = vec![Facet::All];
        if !names.is_empty() {
            // totals by hour and day are rows of their own; these have the quarters
            facets.push(Facet::Of(BTreeSet::new()));
        }
        if names.len() > 1 {
            facets.extend(names.iter().map(|name| Facet::Of(BTreeSet::from([(*name).clone()]))));
        }
        if (3..=PAIRED_DIMENSIONS_MAX).contains(&names.len()) {
            for (at, one) in names.iter().enumerate() {
                let pair = |other: &&String| Facet::Of(BTreeSet::from([(*one).clone(), (*other).clone()]));
                facets.extend(names[at + 1..].iter().map(pair));
            }
        }
        facets
    }

    /// The smallest that is kept and knows these dimensions.
    pub fn for_paths(meter: &Meter, paths: &BTreeSet<&str>) -> Facet {
        let wanted = Facet::Of(paths.iter().map(|path| (*path).to_owned()).collect());
        if Facet::kept(meter).contains(&wanted) { wanted } else { Facet::All }
    }

    fn project(&self, values: &Map) -> String {
        match self {
            Facet::All => json::object_text(values),
            Facet::Of(names) => {
                let chosen = names.iter().filter_map(|name| Some((name.clone(), values.get(name)?.clone())));
                json::object_text(&chosen.collect())
            }
        }
    }
}

/// Values by some facets, as they were projected before: a fold meets the same ones on every day, and reading them again for
/// each of a hundred facets takes longer than a transaction may.
#[derive(Default)]
pub struct Projected {
    facets: Vec<Facet>,
    /// In the order of the facets.
    known: HashMap<String, Vec<Box<str>>>,
    bytes: usize,
}

/// What they take at most, about; others are read each time.
const PROJECTED_BYTES_MAX: usize = 64 << 20;
/// Of a text, beside its letters.
const PROJECTED_BYTES: usize = 32;

impl Projected {
    /// Of the values by other facets nothing is kept.
    pub fn by(facets: &[Facet]) -> Projected {
        let facets = facets.iter().filter(|facet| **facet != Facet::All).cloned().collect();
        Projected { facets, ..Projected::default() }
    }

    fn place(&self, facet: &Facet) -> Option<usize> {
        self.facets.iter().position(|other| other == facet)
    }

    /// Values by a facet, which is at this place; `None` where they cannot be read.
    fn text(&mut self, values: &str, facet: &Facet, place: Option<usize>) -> Option<String> {
        let texts = place.and_then(|place| self.known.get(values)?.get(place));
        if let Some(text) = texts {
            return Some((**text).to_owned());
        }
        let read = json::parse_object(values)?;
        if place.is_some() && self.bytes < PROJECTED_BYTES_MAX {
            let texts: Vec<Box<str>> = self.facets.iter().map(|facet| facet.project(&read).into()).collect();
            let letters: usize = texts.iter().map(|text| text.len()).sum();
            self.bytes += values.len() + letters + texts.len() * PROJECTED_BYTES;
            self.known.insert(values.to_owned(), texts);
        }
        Some(facet.project(&read))
    }
}

/// What the events of a cell have in common beside their time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Group {
    /// Of the dimension set: dimensions declared later are not in it.
    pub version: i32,
    /// Canonical JSON object.
    pub values: String,
}

/// Sums by group and start.
pub type Cells = BTreeMap<Group, Series>;

pub fn count(cells: &Cells) -> usize {
    cells.values().map(Series::len).sum()
}

/// Adds all of `more`, with starts rounded down to `width`.
pub fn add_all(cells: &mut Cells, more: &Cells, width: i64) {
    for (group, parts) in more {
        if let Some(sums) = cells.get_mut(group) {
            sums.add_all(parts, width);
            continue;
        }
        let mut sums = Series::default();
        sums.add_all(parts, width);
        cells.insert(group.clone(), sums);
    }
}

/// The same sums by fewer dimensions; `None` when values cannot be read.
pub fn project(cells: &Cells, facet: &Facet, known: &mut Projected) -> Option<Cells> {
    if *facet == Facet::All {
        return Some(cells.clone());
    }
    let (mut projected, place) = (Cells::new(), known.place(facet));
    for (group, parts) in cells {
        let values = known.text(&group.values, facet, place)?;
        projected.entry(Group { version: group.version, values }).or_default().add_all(parts, 1);
    }
    Some(projected)
}

/// By the day that they lie in.
pub fn by_day(cells: Cells) -> BTreeMap<Timestamp, Cells> {
    let mut days: BTreeMap<Timestamp, Cells> = BTreeMap::new();
    for (group, parts) in cells {
        let mut parts = parts.into_iter().peekable();
        while let Some(day) = parts.peek().map(|(start, _)| start.floor(DAY)) {
            let of_day = std::iter::from_fn(|| parts.next_if(|(start, _)| start.floor(DAY) == day)).collect();
            days.entry(day).or_default().insert(group.clone(), of_day);
        }
    }
    days
}

/// First and last events take most of the room: they are packed for meters that answer with them.
pub fn needs_edges(aggregation: Aggregation) -> bool {
    matches!(aggregation, Aggregation::First | Aggregation::Last)
}

/// First byte of packed cells.
const FORMAT: u8 = 2;
const HAS_EDGES: u8 = 1;
/// All quantities are the same one.
const IS_EVEN: u8 = 2;
/// First and last event are the same one.
const IS_SINGLE: u8 = 4;
/// Instead of a scale: the number follows as text.
const LONG: u8 = 0xFF;
/// Scales are negative where numbers end in zeros.
const SCALE_SHIFT: i64 = 64;

/// Packs cells; starts in order.
pub fn pack(cells: &Cells) -> Vec<u8> {
    let groups = cells.iter().map(|(group, parts)| (group.version, group.values.as_str(), parts));
    pack_groups(cells.len(), groups, true)
}

/// Packs so many groups: version and values of a dimension set, and its sums.
pub fn pack_groups<'a>(
    count: usize,
    groups: impl Iterator<Item = (i32, &'a str, &'a Series)>,
    with_edges: bool,
) -> Vec<u8> {
    let mut bytes = vec![FORMAT];
    put_unsigned(&mut bytes, count as u64);
    let mut body = Vec::new();
    for (version, values, parts) in groups {
        put_signed(&mut bytes, i64::from(version));
        put_bytes(&mut bytes, values.as_bytes());
        body.clear();
        let mut before = 0;
        for (start, part) in parts.iter() {
            put_signed(&mut body, start.0.div_euclid(QUARTER) - before);
            before = start.0.div_euclid(QUARTER);
            put_part(&mut body, start, part, with_edges);
        }
        put_unsigned(&mut bytes, parts.len() as u64);
        put_bytes(&mut bytes, &body);
    }
    bytes
}

pub(super) fn put_unsigned(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

/// Small numbers of either sign are short.
pub(super) fn put_signed(bytes: &mut Vec<u8>, number: i64) {
    put_unsigned(bytes, ((number << 1) ^ (number >> 63)) as u64);
}

pub(super) fn put_bytes(bytes: &mut Vec<u8>, more: &[u8]) {
    put_unsigned(bytes, more.len() as u64);
    bytes.extend_from_slice(more);
}

fn put_quantity(bytes: &mut Vec<u8>, quantity: &Quantity) {
    let (digits, scale) = quantity.decimal().as_bigint_and_scale();
    match (u8::try_from(scale + SCALE_SHIFT), digits.to_i64()) {
        (Ok(scale), Some(digits)) if scale < LONG => {
            bytes.push(scale);
            put_signed(bytes, digits);
        }
        _ => {
            bytes.push(LONG);
            put_bytes(bytes, quantity.to_plain().as_bytes());
        }
    }
}

fn put_part(bytes: &mut Vec<u8>, start: Timestamp, part: &Part, with_edges: bool) {
    let is_even = part.min == part.max;
    let edges = part.edges.as_ref().filter(|_| with_edges);
    let is_single = edges.is_some_and(|(first, last)| first.id == last.id);
    let flag = |is_set: bool, flag: u8| if is_set { flag } else { 0 };
    bytes.push(flag(edges.is_some(), HAS_EDGES) | flag(is_even, IS_EVEN) | flag(is_single, IS_SINGLE));
    put_unsigned(bytes, part.count.unsigned_abs());
    put_quantity(bytes, &part.min);
    if !is_even {
        put_quantity(bytes, &part.max);
        put_quantity(bytes, &part.sum);
    }
    let Some((first, last)) = edges else { return };
    put_edge(bytes, start, first, is_even);
    if !is_single {
        put_edge(bytes, start, last, is_even);
    }
}

fn put_edge(bytes: &mut Vec<u8>, start: Timestamp, edge: &Edge, is_even: bool) {
    put_signed(bytes, edge.at.0 - start.0);
    bytes.extend_from_slice(edge.id.as_bytes());
    if !is_even {
        put_quantity(bytes, &edge.quantity);
    }
}

/// The groups of packed cells, each with its sums still packed; `None` for bytes that [`pack`] did not make.
pub fn groups(bytes: &[u8]) -> Option<Vec<PackedGroup<'_>>> {
    let mut input = Input(bytes);
    if input.byte()? != FORMAT {
        return None;
    }
    let mut groups = Vec::new();
    for _ in 0..input.unsigned()? {
        let version = i32::try_from(input.signed()?).ok()?;
        let values = std::str::from_utf8(input.bytes()?).ok()?;
        let count = input.unsigned()?;
        groups.push(PackedGroup { version, values, count, parts: input.bytes()? });
    }
    Some(groups)
}

/// All of it at once.
pub fn unpack(bytes: &[u8]) -> Option<Cells> {
    let mut cells = Cells::new();
    for packed in groups(bytes)? {
        let group = Group { version: packed.version, values: packed.values.to_owned() };
        cells.insert(group, packed.parts(true).collect::<Option<_>>()?);
    }
    Some(cells)
}

pub struct PackedGroup<'a> {
    pub version: i32,
    pub values: &'a str,
    count: u64,
    parts: &'a [u8],
}

impl<'a> PackedGroup<'a> {
    /// How many sums it has, by its own account.
    pub fn count(&self) -> usize {
        self.count as usize
    }

    /// Start and sum in order; ends with `None` where the bytes are not what they should be.
    pub fn parts(&self, with_edges: bool) -> impl Iterator<Item = Option<(Timestamp, Part)>> + use<'a> {
        let (mut input, mut quarter, mut left) = (Input(self.parts), 0i64, self.count);
        std::iter::from_fn(move || {
            left = left.checked_sub(1)?;
            let next = input.part(&mut quarter, with_edges);
            if next.is_none() {
                left = 0;
            }
            Some(next)
        })
    }
}

impl PackedGroup<'_> {
    /// Adds the sums, without first and last events, under the starts that `bucket` gives them. Those that it gives none
    /// are left out. `None` where the bytes are not what they should be.
    pub fn add_to(
        &self,
        sums: &mut Sums,
        mut bucket: impl FnMut(Timestamp) -> Option<Timestamp>,
    ) -> Option<()> {
        let (mut input, mut quarter) = (Input(self.parts), 0i64);
        // neighbours mostly share a bucket: they look it up once
        let mut open: Option<(Timestamp, ShortPart)> = None;
        for _ in 0..self.count {
            let (before, last) = (Input(input.0), quarter);
            let Some((start, part)) = input.short_part(&mut quarter) else {
                // longer numbers, or broken bytes
                (input, quarter) = (before, last);
                let (start, part) = input.part(&mut quarter, false)?;
                if let Some(bucket) = bucket(start) {
                    sums.add(bucket, Sum::Long(Box::new(part)));
                }
                continue;
            };
            let Some(bucket) = bucket(start) else { continue };
            let together = open.filter(|(of, _)| *of == bucket).and_then(|(_, sum)| sum.plus(&part));
            if let Some((of, sum)) = open.filter(|_| together.is_none()) {
                sums.add(of, Sum::Short(sum));
            }
            open = Some((bucket, together.unwrap_or(part)));
        }
        if let Some((of, sum)) = open {
            sums.add(of, Sum::Short(sum));
        }
        Some(())
    }
}

/// What is left of packed bytes.
pub(super) struct Input<'a>(pub(super) &'a [u8]);

impl<'a> Input<'a> {
    pub(super) fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    pub(super) fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    pub(super) fn unsigned(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7F) << shift;
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    }

    pub(super) fn signed(&mut self) -> Option<i64> {
        let number = self.unsigned()?;
        Some((number >> 1) as i64 ^ -((number & 1) as i64))
    }

    pub(super) fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.unsigned()?).ok()?;
        self.take(length)
    }

    fn quantity(&mut self) -> Option<Quantity> {
        match self.byte()? {
            LONG => Quantity::from_plain(std::str::from_utf8(self.bytes()?).ok()?),
            scale => Some(Quantity::of_digits(self.signed()?, i64::from(scale) - SCALE_SHIFT)),
        }
    }

    fn edge(&mut self, start: Timestamp, even: Option<&Quantity>) -> Option<Edge> {
        let at = Timestamp(start.0.checked_add(self.signed()?)?);
        let id = Uuid::from_slice(self.take(16)?).ok()?;
        let quantity = match even {
            Some(quantity) => quantity.clone(),
            None => self.quantity()?,
        };
        Some(Edge { at, id, quantity })
    }

    /// Most readers want no edges: those are stepped over.
    fn step_over_edge(&mut self, is_even: bool) -> Option<()> {
        self.signed()?;
        self.take(16)?;
        if !is_even {
            match self.byte()? {
                LONG => drop(self.bytes()?),
                _ => drop(self.signed()?),
            }
        }
        Some(())
    }

    fn edges(&mut self, start: Timestamp, is_single: bool, even: Option<&Quantity>) -> Option<(Edge, Edge)> {
        let first = self.edge(start, even)?;
        let last = if is_single { first.clone() } else { self.edge(start, even)? };
        Some((first, last))
    }

    fn short(&mut self) -> Option<Short> {
        match self.byte()? {
            LONG => None,
            scale => Some(Short { digits: self.signed()?.into(), scale: i64::from(scale) - SCALE_SHIFT }),
        }
    }

    /// As [`Input::part`] reads it; also `None` where a number is packed as text or its sum is too long.
    fn short_part(&mut self, quarter: &mut i64) -> Option<(Timestamp, ShortPart)> {
        *quarter = quarter.checked_add(self.signed()?)?;
        let start = Timestamp(quarter.checked_mul(QUARTER)?);
        let flags = self.byte()?;
        let (is_even, is_single) = (flags & IS_EVEN != 0, flags & IS_SINGLE != 0);
        let count = i64::try_from(self.unsigned()?).ok()?;
        let min = self.short()?;
        let (max, sum) = if is_even { (min, min.times(count)?) } else { (self.short()?, self.short()?) };
        if flags & HAS_EDGES != 0 {
            self.step_over_edge(is_even)?;
            if !is_single {
                self.step_over_edge(is_even)?;
            }
        }
        Some((start, ShortPart { count, min, max, sum }))
    }

    fn part(&mut self, quarter: &mut i64, with_edges: bool) -> Option<(Timestamp, Part)> {
        *quarter = quarter.checked_add(self.signed()?)?;
        let start = Timestamp(quarter.checked_mul(QUARTER)?);
        let flags = self.byte()?;
        let (is_even, is_single) = (flags & IS_EVEN != 0, flags & IS_SINGLE != 0);
        let count = i64::try_from(self.unsigned()?).ok()?;
        let min = self.quantity()?;
        let (max, sum) = match is_even {
            false => (self.quantity()?, self.quantity()?),
            true if count == 1 => (min.clone(), min.clone()),
            true => (min.clone(), &min * &Quantity::from(count)),
        };
        let edges = match flags & HAS_EDGES != 0 {
            false => None,
            true if with_edges => Some(self.edges(start, is_single, is_even.then_some(&min))?),
            true => {
                self.step_over_edge(is_even)?;
                if !is_single {
                    self.step_over_edge(is_even)?;
                }
                None
            }
        };
        Some((start, Part { count, sum, min, max, edges, state: None }))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::clock;
    use crate::metering::rollup::merge;

    fn events() -> impl Strategy<Value = Vec<(i64, i64, String, u8, u8, u128)>> {
        let quantity = prop_oneof![
            "[1-9][0-9]{0,3}(\\.[0-9]{1,3})?",
            "[1-9][0-9]{30,58}",
            "0\\.0{0,300}[1-9]",
            Just("1".to_owned()),
        ];
        let event = (-60i64..60, 0..HOUR, quantity, 0u8..4, 1u8..3, any::<u128>());
        proptest::collection::vec(event, 0..60)
    }

    fn cells_of(events: &[(i64, i64, String, u8, u8, u128)], with_edges: bool) -> Cells {
        let mut cells = Cells::new();
        for (hour, offset, quantity, value, version, id) in events {
            let values = format!(r#"{{"a":"{value}","b":{version}}}"#);
            let group = Group { version: i32::from(*version), values };
            let at = Timestamp(hour * HOUR + offset);
            let quantity = Quantity::parse(quantity).expect("a quantity");
            cells.entry(group).or_default().add_event(at.floor(HOUR), at, Uuid::from_u128(*id), &quantity);
        }
        if !with_edges {
            for series in cells.values_mut() {
                *series = series
                    .iter()
                    .map(|(start, part)| (start, Part { edges: None, ..part.clone() }))
                    .collect();
            }
        }
        cells
    }

    proptest! {
        #[test]
        fn what_is_packed_comes_back(events in events(), with_edges: bool) {
            let cells = cells_of(&events, with_edges);
            prop_assert_eq!(unpack(&pack(&cells)), Some(cells));
        }

        /// No bytes make it panic, or answer with what was not packed.
        #[test]
        fn other_bytes_are_refused_or_read(events in events(), cut in 0usize..4_000, flip: u8) {
            let mut bytes = pack(&cells_of(&events, true));
            let at = cut % bytes.len();
            let _ = unpack(&bytes[..at]);
            bytes[at] ^= flip;
            let _ = unpack(&bytes);
        }

        /// Added up as integers on the way, or one by one as decimals.
        #[test]
        fn neighbours_add_up_to_what_their_sums_add_up_to(events in events(), with_edges: bool, width in 1i64..40) {
            let bucket = |start: Timestamp| {
                (start.0.div_euclid(HOUR) % 5 != 0).then(|| start.floor(width * HOUR))
            };
            let bytes = pack(&cells_of(&events, with_edges));
            let (mut all_one_by_one, mut all_together) = (BTreeMap::new(), Sums::default());
            for packed in groups(&bytes).expect("just packed") {
                let mut one_by_one = BTreeMap::new();
                for part in packed.parts(false) {
                    let (start, part) = part.expect("just packed");
                    if let Some(bucket) = bucket(start) {
                        merge(&mut one_by_one, bucket, &part);
                    }
                }
                for (bucket, part) in one_by_one.clone() {
                    merge(&mut all_one_by_one, bucket, &part);
                }
                let mut together = Sums::default();
                packed.add_to(&mut together, bucket).expect("just packed");
                prop_assert_eq!(together.into_parts().collect::<BTreeMap<_, _>>(), one_by_one);
                packed.add_to(&mut all_together, bucket).expect("just packed");
            }
            prop_assert_eq!(all_together.into_parts().collect::<BTreeMap<_, _>>(), all_one_by_one);
        }

        /// In any order and through any number of packings, sums are those of all events at once.
        #[test]
        fn packing_on_the_way_changes_no_sum(events in events(), cut in 0usize..60, with_edges: bool) {
            let whole = cells_of(&events, with_edges);
            let (one, two) = events.split_at(cut.min(events.len()));
            let mut sums = unpack(&pack(&cells_of(two, with_edges))).expect("just packed");
            add_all(&mut sums, &cells_of(one, with_edges), HOUR);
            prop_assert_eq!(&sums, &whole);
            let facets = [Facet::All, Facet::Of(BTreeSet::from(["a".to_owned()])), Facet::Of(BTreeSet::new())];
            let mut known = Projected::by(&facets[..2]);
            for facet in facets {
                let projected = project(&sums, &facet, &mut known).expect("JSON");
                let (mut days, mut days_of_whole) = (Cells::new(), Cells::new());
                add_all(&mut days, &projected, DAY);
                add_all(&mut days_of_whole, &whole, DAY);
                prop_assert_eq!(days, project(&days_of_whole, &facet, &mut known).expect("JSON"));
                let alone = project(&sums, &facet, &mut Projected::default()).expect("JSON");
                prop_assert_eq!(projected, alone);
            }
            let again = by_day(whole.clone()).into_values().fold(Cells::new(), |mut all, day| {
                add_all(&mut all, &day, HOUR);
                all
            });
            prop_assert_eq!(again, whole);
        }
    }

    /// A meter may have a hundred dimensions, and each event other values.
    #[test]
    fn values_are_not_read_again_for_each_facet() {
        let names: Vec<String> = (0..100).map(|n| format!("dimension{n:02}")).collect();
        let facets: Vec<Facet> = names.iter().map(|name| Facet::Of(BTreeSet::from([name.clone()]))).collect();
        let mut cells = Cells::new();
        for n in 0..1_000 {
            let values: Vec<String> = names.iter().map(|name| format!(r#""{name}":{n}"#)).collect();
            let group = Group { version: 1, values: format!("{{{}}}", values.join(",")) };
            let one = Quantity::from(1);
            cells.entry(group).or_default().add_event(Timestamp(0), Timestamp(0), Uuid::nil(), &one);
        }
        let (began, mut known) = (clock::moment(), Projected::by(&facets));
        for facet in &facets {
            assert_eq!(project(&cells, facet, &mut known).expect("JSON").len(), 1_000);
        }
        // read for each of them, values take this build minutes
        assert!(clock::since(began) < Duration::from_secs(30));
    }

    #[test]
    fn facets_are_none_singles_pairs_and_all() {
        let meter = |names: &[&str]| {
            let inputs = names.iter().map(|name| {
                serde_json::from_value(serde_json::json!({"name": name, "type": "string"}))
                    .expect("a dimension")
            });
            let dimensions =
                crate::metering::meter::parse_dimensions(inputs.collect(), 1).expect("dimensions");
            Meter { dimensions, ..Meter::with(Vec::new()) }
        };
        let names = |meter: &Meter| Facet::kept(meter).iter().map(Facet::name).collect::<Vec<_>>();
        assert_eq!(names(&meter(&[])), ["*"]);
        assert_eq!(names(&meter(&["b"])), ["*", ""]);
        assert_eq!(names(&meter(&["b", "a"])), ["*", "", "a", "b"]);
        assert_eq!(names(&meter(&["b", "a", "c"])), ["*", "", "a", "b", "c", "a,b", "a,c", "b,c"]);
        let three = meter(&["b", "a", "c"]);
        let chosen = |paths: &[&str]| Facet::for_paths(&three, &paths.iter().copied().collect()).name();
        assert_eq!((chosen(&[]), Facet::named("")), (String::new(), Facet::Of(BTreeSet::new())));
        assert_eq!([chosen(&["a"]), chosen(&["c", "a"]), chosen(&["a", "b", "c"])], ["a", "a,c", "*"]);
    }
}
