//! Sums of whole days beside the cells of a long run, by no dimension and by each one alone: a question about days of a
//! subject reads some hundred of them instead of thousands of cells. Pure: `usage::{runs, settle}` know where they are stored.

use std::collections::{BTreeMap, BTreeSet};

use crate::metering::facet::{self, Cells, Facet, Group, Input, PackedGroup, put_bytes, put_unsigned};
use crate::metering::json::{self, Map};
use crate::metering::meter::Meter;
use crate::metering::short::Sums;
use crate::metering::time::DAY;

/// First byte; packed cells begin with another.
const FORMAT: u8 = 3;
/// A choice of dimensions is kept where there are so many cells for each sum of a day, on average.
const CELLS_OF_A_SUM_MIN: usize = 4;
/// And all choices together where there are so many.
const CELLS_OF_ALL_SUMS_MIN: usize = 2;
/// Dimensions that are added up at a time. A meter may have a hundred: reading the values of cells again for each of them takes
/// longer than a transaction may, and the sums of all of them much room.
const DIMENSIONS_AT_ONCE: usize = 16;

/// What is stored beside the cells, all of it without first and last events.
#[derive(Debug, PartialEq, Eq)]
pub struct DaySums {
    /// By no dimension, packed as cells are. Alone, because they are few: most questions read nothing else.
    pub days: Vec<u8>,
    /// Which dimensions there are sums by, too; [`entry`] says how one is found in it.
    pub facets: String,
    /// By each of these.
    pub packed: Vec<u8>,
}

/// What [`DaySums::facets`] contains where a facet is kept: no name of a dimension has a semicolon in it.
pub fn entry(facet: &Facet) -> String {
    format!(";{};", facet.name())
}

/// Adds up the days of packed cells; `None` where they are hardly fewer than the cells, and for bytes that [`facet::pack`]
/// did not make. Dimensions that `meter` does not have are looked for in the cells.
pub fn of_cells(cells: &[u8], meter: &Meter) -> Option<DaySums> {
    let groups = facet::groups(cells)?;
    let count: usize = groups.iter().map(PackedGroup::count).sum();
    let most = count / CELLS_OF_A_SUM_MIN;
    let none = by_none(&groups)?;
    // whatever tells them apart, sums are not fewer
    let fewest = facet::count(&none);
    let mut left = (count / CELLS_OF_ALL_SUMS_MIN).checked_sub(fewest).filter(|_| fewest <= most)?;
    let mut kept = Vec::new();
    let names: Vec<&str> = meter.dimensions.iter().map(|dimension| dimension.name.as_str()).collect();
    for names in names.chunks(DIMENSIONS_AT_ONCE) {
        if left < fewest {
            break;
        }
        for (name, days) in by_each(names, &groups, most)? {
            let length = facet::count(&days);
            if length <= most && length <= left {
                left -= length;
                kept.push((Facet::Of(BTreeSet::from([name.to_owned()])), days));
            }
        }
    }
    Some(pack(&none, &kept))
}

/// Sums of days by what their cells have in common.
type Days = BTreeMap<Group, Sums>;

fn by_none(groups: &[PackedGroup]) -> Option<Cells> {
    let mut days = Days::new();
    for group in groups {
        add(&mut days, group, json::object_text(&Map::new()))?;
    }
    Some(cells_of_days(days))
}

/// By each of these dimensions alone, but those that have more than `most` values.
fn by_each<'n>(names: &[&'n str], groups: &[PackedGroup], most: usize) -> Option<Vec<(&'n str, Cells)>> {
    let mut each: Vec<(&str, Days)> = names.iter().map(|name| (*name, Days::new())).collect();
    for group in groups {
        let values = json::parse_object(group.values)?;
        for (name, days) in &mut each {
            let value = values.get_key_value(*name).map(|(name, value)| (name.clone(), value.clone()));
            let alone: Map = value.into_iter().collect();
            add(days, group, json::object_text(&alone))?;
        }
        each.retain(|(_, days)| days.len() <= most);
    }
    Some(each.into_iter().map(|(name, days)| (name, cells_of_days(days))).collect())
}

fn add(days: &mut Days, group: &PackedGroup, values: String) -> Option<()> {
    let sums = days.entry(Group { version: group.version, values }).or_default();
    group.add_to(sums, |start| Some(start.floor(DAY)))
}

fn cells_of_days(days: Days) -> Cells {
    days.into_iter().map(|(group, sums)| (group, sums.into_parts().collect())).collect()
}

fn pack(none: &Cells, kept: &[(Facet, Cells)]) -> DaySums {
    let mut packed = vec![FORMAT];
    put_unsigned(&mut packed, kept.len() as u64);
    let mut facets = ";".to_owned();
    for (facet, days) in kept {
        facets += &facet.name();
        facets.push(';');
        put_bytes(&mut packed, facet.name().as_bytes());
        put_bytes(&mut packed, &facet::pack(days));
    }
    DaySums { days: facet::pack(none), facets, packed }
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
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::clock;
    use crate::metering::meter;
    use crate::metering::quantity::Quantity;
    use crate::metering::rollup::Part;
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
            cells.entry(group).or_default().add(start, &part);
        }
        cells
    }

    proptest! {
        /// Whatever is kept is what the events of the days add up to, and it is found by its name alone.
        #[test]
        fn days_are_sums_of_their_events(events in events()) {
            let cells = cells_by(&events, &["a", "b"], HOUR / 4);
            let kept = of_cells(&facet::pack(&cells), &meter_of(&["a", "b"]));
            let count = facet::count(&cells);
            let none = cells_by(&events, &[], DAY);
            prop_assert_eq!(kept.is_some(), facet::count(&none) * CELLS_OF_A_SUM_MIN <= count);
            let Some(kept) = kept else { return Ok(()) };
            let mut sums = 0;
            prop_assert_eq!(cells_of(&kept.days, &facet_of(&[])), Some(kept.days.as_slice()));
            for names in [vec![], vec!["a"], vec!["b"], vec!["c"], vec!["a", "b"]] {
                let facet = facet_of(&names);
                let stored = if names.is_empty() { Some(kept.days.as_slice()) } else { cells_of(&kept.packed, &facet) };
                let days = stored.map(|cells| facet::unpack(cells).expect("just packed"));
                prop_assert_eq!(days.is_some(), names.is_empty() || kept.facets.contains(&entry(&facet)));
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
            let Some(mut kept) = of_cells(&cells, &meter_of(&["a"])) else { return Ok(()) };
            let at = cut % kept.packed.len();
            let _ = cells_of(&kept.packed[..at], &facet_of(&["a"]));
            kept.packed[at] ^= flip;
            let _ = cells_of(&kept.packed, &facet_of(&["a"]));
        }
    }

    /// A meter may have a hundred of them, and each event other values.
    #[test]
    fn values_of_many_dimensions_are_not_read_for_each_of_them() {
        let names: Vec<String> = (0..100).map(|n| format!("dimension{n:02}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let (mut cells, at) = (Cells::new(), Timestamp(0));
        for n in 0..500 {
            // each tenth has as many values as there are cells
            let value = |name: &str| if name.ends_with('7') { n } else { n % 2 };
            let values: Vec<String> =
                names.iter().map(|name| format!(r#""{name}":"{}""#, value(name))).collect();
            let group = Group { version: 1, values: format!("{{{}}}", values.join(",")) };
            let part = Part { edges: None, ..Part::of(at, uuid::Uuid::nil(), &Quantity::from(1)) };
            cells.entry(group).or_default().add(at, &part);
        }
        let packed = facet::pack(&cells);
        let began = clock::moment();
        let kept = of_cells(&packed, &meter_of(&names)).expect("sums of a day");
        // once for each dimension takes this build most of a minute
        assert!(clock::since(began) < Duration::from_secs(15));
        let is_kept = |name: &&&str| kept.facets.contains(&entry(&facet_of(&[**name])));
        let found: Vec<&str> = names.iter().filter(is_kept).copied().collect();
        let few: Vec<&str> = names.iter().filter(|name| !name.ends_with('7')).copied().collect();
        assert_eq!(found, few);
    }

    /// A name is no part of another one, and packed cells are no sums of days.
    #[test]
    fn facets_are_found_by_their_whole_names() {
        let kept = pack(&Cells::new(), &[(facet_of(&["region"]), Cells::new())]);
        assert_eq!(kept.facets, ";region;");
        let is_kept = |name: &str| kept.facets.contains(&entry(&facet_of(&[name])));
        assert_eq!([is_kept("region"), is_kept("gio"), is_kept("egion")], [true, false, false]);
        let cells = facet::pack(&Cells::new());
        assert_eq!(cells_of(&cells, &facet_of(&["region"])), Some(cells.as_slice()));
        assert_eq!(cells_of(&kept.packed, &facet_of(&["gio"])), None);
    }
}
