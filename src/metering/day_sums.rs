//! Sums of whole days beside the cells of a long run, by no dimension and by each one alone: a question about days of a
//! subject reads some hundred of them instead of thousands of cells. Pure: `usage::{runs, settle}` know where they are stored.

use std::collections::{BTreeMap, BTreeSet};

use crate::metering::facet::{
    self, Cells, Facet, Group, Input, PackedGroup, Projected, put_bytes, put_unsigned,
};
use crate::metering::meter::Meter;
use crate::metering::short::Sums;
use crate::metering::time::DAY;

/// First byte; packed cells begin with another.
const FORMAT: u8 = 3;
/// A choice of dimensions is kept where there are so many cells for each sum of a day, on average.
const CELLS_OF_A_SUM_MIN: usize = 4;
/// And all choices together where there are so many.
const CELLS_OF_ALL_SUMS_MIN: usize = 2;

/// What is stored beside the cells.
#[derive(Debug, PartialEq, Eq)]
pub struct DaySums {
    /// Which choices of dimensions there are; [`entry`] says how one is found in it.
    pub facets: String,
    /// Without first and last events.
    pub packed: Vec<u8>,
}

/// What [`DaySums::facets`] contains where a facet is kept: no name of a dimension has a semicolon in it.
pub fn entry(facet: &Facet) -> String {
    format!(";{};", facet.name())
}

/// Adds up the days of packed cells; `None` where they are hardly fewer than the cells, and for bytes that [`facet::pack`]
/// did not make. Dimensions that `meter` does not have are looked for in the cells.
pub fn of_cells(cells: &[u8], meter: &Meter, known: &mut Projected) -> Option<DaySums> {
    let groups = facet::groups(cells)?;
    let count: usize = groups.iter().map(PackedGroup::len).sum();
    let pays = |days: &Cells| facet::count(days) * CELLS_OF_A_SUM_MIN <= count;
    let none = Facet::Of(BTreeSet::new());
    let days = by(&none, &groups, known).filter(pays)?;
    let mut left = (count / CELLS_OF_ALL_SUMS_MIN).checked_sub(facet::count(&days))?;
    let mut kept = vec![(none, days)];
    for dimension in &meter.dimensions {
        let facet = Facet::Of(BTreeSet::from([dimension.name.clone()]));
        let days = by(&facet, &groups, known)?;
        if pays(&days) && facet::count(&days) <= left {
            left -= facet::count(&days);
            kept.push((facet, days));
        }
    }
    Some(pack(&kept))
}

fn by(facet: &Facet, groups: &[PackedGroup], known: &mut Projected) -> Option<Cells> {
    let mut sums: BTreeMap<Group, Sums> = BTreeMap::new();
    for group in groups {
        let values = facet.project_text(group.values, known)?;
        let days = sums.entry(Group { version: group.version, values }).or_default();
        group.add_to(days, |start| Some(start.floor(DAY)))?;
    }
    Some(sums.into_iter().map(|(group, days)| (group, days.into_parts().collect())).collect())
}

fn pack(kept: &[(Facet, Cells)]) -> DaySums {
    let mut packed = vec![FORMAT];
    put_unsigned(&mut packed, kept.len() as u64);
    let mut facets = ";".to_owned();
    for (facet, days) in kept {
        facets += &facet.name();
        facets.push(';');
        put_bytes(&mut packed, facet.name().as_bytes());
        put_bytes(&mut packed, &facet::pack(days));
    }
    DaySums { facets, packed }
}

/// Packed cells as they are, and of packed sums of days the cells of this facet; `None` where there are none.
pub fn cells_of<'a>(bytes: &'a [u8], facet: &Facet) -> Option<&'a [u8]> {
    if bytes.first() != Some(&FORMAT) {
        return Some(bytes);
    }
    let (mut input, name) = (Input(&bytes[1..]), facet.name());
    for _ in 0..input.unsigned()? {
        let (facet, cells) = (input.bytes()?, input.bytes()?);
        if facet == name.as_bytes() {
            return Some(cells);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::metering::meter;
    use crate::metering::quantity::Quantity;
    use crate::metering::rollup::{Part, Series};
    use crate::metering::time::{HOUR, Timestamp};

    fn meter_of(names: &[&str]) -> Meter {
        let input = |name: &&str| {
            serde_json::from_value(serde_json::json!({"name": name, "type": "string"})).expect("a dimension")
        };
        let dimensions = meter::parse_dimensions(names.iter().map(input).collect(), 1).expect("dimensions");
        Meter { dimensions, ..Meter::with(Vec::new()) }
    }

    fn facet_of(names: &[&str]) -> Facet {
        Facet::Of(names.iter().map(|name| (*name).to_owned()).collect())
    }

    /// Version, `a`, `b`, quarter of an hour, quantity.
    type Event = (i32, u8, u8, i64, String);

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let quantity =
            prop_oneof!["[1-9][0-9]{0,3}(\\.[0-9]{1,3})?", "[1-9][0-9]{30,58}", Just("1".to_owned())];
        proptest::collection::vec((1i32..3, 0u8..3, 0u8..9, -300i64..300, quantity), 0..400)
    }

    fn values_of(event: &Event, names: &[&str]) -> String {
        let (_, a, b, ..) = event;
        // `a` is not in all of them: an event need not have every dimension
        let all = [("a", *a), ("b", *b)].into_iter().filter(|(name, value)| *name != "a" || *value > 0);
        let chosen: Vec<String> = all
            .filter(|(name, _)| names.contains(name))
            .map(|(name, value)| format!(r#""{name}":"{value}""#))
            .collect();
        format!("{{{}}}", chosen.join(","))
    }

    fn cells_by(events: &[Event], names: &[&str], width: i64) -> Cells {
        let mut cells = Cells::new();
        for event in events {
            let (version, .., quarter, quantity) = event;
            let group = Group { version: *version, values: values_of(event, names) };
            let start = Timestamp(quarter * HOUR / 4).floor(width);
            let quantity = Quantity::parse(quantity).expect("a quantity");
            let part = Part { edges: None, ..Part::of(start, uuid::Uuid::nil(), &quantity) };
            cells.entry(group).or_insert_with(Series::default).add(start, &part);
        }
        cells
    }

    proptest! {
        /// Whatever is kept is what the events of the days add up to, and it is found by its name alone.
        #[test]
        fn days_are_sums_of_their_events(events in events()) {
            let cells = cells_by(&events, &["a", "b"], HOUR / 4);
            let kept = of_cells(&facet::pack(&cells), &meter_of(&["a", "b"]), &mut Projected::default());
            let count = facet::count(&cells);
            let none = cells_by(&events, &[], DAY);
            prop_assert_eq!(kept.is_some(), facet::count(&none) * CELLS_OF_A_SUM_MIN <= count);
            let Some(kept) = kept else { return Ok(()) };
            let mut sums = 0;
            for names in [vec![], vec!["a"], vec!["b"], vec!["c"], vec!["a", "b"]] {
                let facet = facet_of(&names);
                let days = cells_of(&kept.packed, &facet).map(|cells| facet::unpack(cells).expect("just packed"));
                prop_assert_eq!(days.is_some(), kept.facets.contains(&entry(&facet)));
                if let Some(days) = days {
                    sums += facet::count(&days);
                    prop_assert_eq!(days, cells_by(&events, &names, DAY));
                }
            }
            prop_assert!(sums * CELLS_OF_ALL_SUMS_MIN <= count);
        }

        #[test]
        fn other_bytes_are_refused_or_read(events in events(), cut in 0usize..4_000, flip: u8) {
            let cells = facet::pack(&cells_by(&events, &["a", "b"], HOUR / 4));
            let Some(mut kept) = of_cells(&cells, &meter_of(&["a"]), &mut Projected::default()) else { return Ok(()) };
            let at = cut % kept.packed.len();
            let _ = cells_of(&kept.packed[..at], &facet_of(&["a"]));
            kept.packed[at] ^= flip;
            let _ = cells_of(&kept.packed, &facet_of(&["a"]));
        }
    }

    /// A name is no part of another one, and packed cells are no sums of days.
    #[test]
    fn facets_are_found_by_their_whole_names() {
        let kept = pack(&[(facet_of(&[]), Cells::new()), (facet_of(&["region"]), Cells::new())]);
        assert_eq!(kept.facets, ";;region;");
        let is_kept = |names: &[&str]| kept.facets.contains(&entry(&facet_of(names)));
        assert_eq!(
            [is_kept(&[]), is_kept(&["region"]), is_kept(&["gio"]), is_kept(&["egion"])],
            [true, true, false, false]
        );
        let cells = facet::pack(&Cells::new());
        assert_eq!(cells_of(&cells, &facet_of(&["region"])), Some(cells.as_slice()));
        assert_eq!(cells_of(&kept.packed, &facet_of(&["gio"])), None);
    }
}
