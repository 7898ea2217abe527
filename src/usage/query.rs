//! Usage queries: what a caller may ask, and how parts of rollups and raw events become the rows of an answer
//! (rest.md 9 and 12.5). Pure: no SQL.

use std::borrow::Cow;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Serialize, Serializer};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::error::{Error, Result};
use crate::metering::calendar::{Buckets, Calendar};
use crate::metering::event::parse_subject;
use crate::metering::filter::{Field, Filter, Held, Row, text_of};
use crate::metering::json::Map;
use crate::metering::meter::{Aggregation, Meter};
use crate::metering::quantity::Quantity;
use crate::metering::rollup::{Part, add_event, merge};
use crate::metering::sketch::EXACT_MAX;
use crate::metering::state::{Histogram, State};
use crate::metering::time::{BucketSize, Timestamp, Window};

pub const GROUP_FIELDS_MAX: usize = 5;
/// Groups that are sorted in memory for one answer.
pub const GROUPS_MAX: usize = 100_000;
/// What a group is called whose events lack the dimension; clients have stored it.
const LACKING: &str = "<nil>";

/// A field rows are grouped by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupField {
    Subject,
    Dimension(String),
}

impl GroupField {
    pub fn name(&self) -> &str {
        match self {
            GroupField::Subject => "subject",
            GroupField::Dimension(name) => name,
        }
    }
}

/// A checked query over the events of one meter.
#[derive(Clone, Debug)]
pub struct Query {
    pub meter: Arc<Meter>,
    pub window: Window,
    pub subject: Option<String>,
    pub group_by: Vec<GroupField>,
    pub filter: Option<Filter>,
    /// How instants are put together: into buckets, or all into one.
    pub buckets: Option<Buckets>,
    /// Events that lack a value to group by, or have an empty one, are left out instead of grouped under a name.
    pub skip_missing: bool,
    /// Different values and percentiles are never told from a sketch: for what money or a decision follows from.
    pub exact: bool,
}

impl Query {
    /// Values of one row that are kept before they become a sketch.
    pub fn values_kept(&self) -> usize {
        if self.exact { usize::MAX } else { EXACT_MAX }
    }

    /// The start of the row an instant belongs to.
    pub fn bucket(&self, at: Timestamp) -> Timestamp {
        self.buckets.as_ref().map_or(self.window.from, |buckets| buckets.start(at))
    }

    /// Buckets that begin elsewhere than stored sums do.
    pub fn odd_buckets(&self) -> Option<&Buckets> {
        self.buckets.as_ref().filter(|buckets| !buckets.is_plain())
    }

    /// Whether rows must know the subject of their events.
    pub fn names_subjects(&self) -> bool {
        let by_subject = match self.meter.aggregation {
            Aggregation::LatestSum | Aggregation::WeightedSum => true,
            Aggregation::UniqueCount => self.meter.options.aggregation_field.as_deref() == Some("subject"),
            _ => false,
        };
        by_subject
            || self.group_by.contains(&GroupField::Subject)
            || self.filter_fields().contains(&&Field::Subject)
    }

    fn filter_fields(&self) -> Vec<&Field> {
        self.filter.as_ref().map(Filter::fields).unwrap_or_default()
    }

    /// The only subjects whose events can count; `None` when any can.
    pub fn only_subjects(&self) -> Option<BTreeSet<&str>> {
        let filtered = self.filter.as_ref().and_then(|filter| filter.only(&Field::Subject));
        match (&self.subject, filtered) {
            (Some(subject), Some(set)) => Some(set.into_iter().filter(|name| name == subject).collect()),
            (Some(subject), None) => Some(BTreeSet::from([subject.as_str()])),
            (None, filtered) => filtered,
        }
    }

    /// Metadata paths that decide about groups or conditions.
    pub fn paths(&self) -> BTreeSet<&str> {
        let grouped = self.group_by.iter().filter_map(|field| match field {
            GroupField::Subject => None,
            GroupField::Dimension(name) => Some(name.as_str()),
        });
        let filtered = self.filter_fields().into_iter().filter_map(|field| match field {
            Field::Metadata(path) => Some(path.as_str()),
            _ => None,
        });
        grouped.chain(filtered).chain(self.aggregated_paths()).collect()
    }

    /// Metadata paths that the aggregation itself looks at.
    fn aggregated_paths(&self) -> Vec<&str> {
        let meter = &self.meter;
        match meter.aggregation {
            Aggregation::LatestSum | Aggregation::WeightedSum => {
                meter.dimensions.iter().map(|dimension| dimension.name.as_str()).collect()
            }
            Aggregation::UniqueCount => meter
                .options
                .aggregation_field
                .as_deref()
                .into_iter()
                .filter(|path| *path != "subject")
                .collect(),
            _ => Vec::new(),
        }
    }

    /// The meter version from which rollups can answer this query; `None` when only raw events can: a path is no
    /// declared dimension, or the filter looks at something that rollups have added up.
    pub fn rollups_since(&self) -> Option<i32> {
        let added_up = |field: &&Field| {
            matches!(field, Field::Quantity | Field::EventTime | Field::ReceivedAt | Field::IdempotencyKey)
        };
        if self.meter.aggregation.needs_events() || self.filter_fields().iter().any(added_up) {
            return None;
        }
        let since = |path| self.meter.dimension(path).map(|dimension| dimension.since);
        self.paths().into_iter().map(since).try_fold(0, |newest, since| Some(newest.max(since?)))
    }

    /// The group of a rollup or a raw event, or `None` when it does not count.
    pub fn group(&self, row: &impl Row) -> Option<Vec<String>> {
        if self.filter.as_ref().is_some_and(|filter| !filter.matches(row)) {
            return None;
        }
        self.group_by.iter().map(|field| self.group_value(field, row)).collect()
    }

    fn group_value(&self, field: &GroupField, row: &impl Row) -> Option<String> {
        let held = match field {
            GroupField::Subject => row.held(&Field::Subject),
            GroupField::Dimension(name) => row.held(&Field::Metadata(name.clone())),
        };
        let text = match held {
            Some(Held::Text(text)) => Some(text.to_owned()),
            Some(Held::Json(value)) if !value.is_null() => Some(text_of(value).into_owned()),
            _ => None,
        };
        match self.skip_missing {
            true => text.filter(|text| !text.is_empty()),
            false => Some(text.unwrap_or_else(|| LACKING.to_owned())),
        }
    }
}

/// What rollups keep of the events they add up.
pub struct AggregatedRow<'a> {
    pub meter: &'a str,
    pub subject: &'a str,
    /// Dimension values by their full name.
    pub dimensions: &'a Map,
}

impl Row for AggregatedRow<'_> {
    fn held(&self, field: &Field) -> Option<Held<'_>> {
        match field {
            Field::Subject => Some(Held::Text(self.subject)),
            Field::Meter => Some(Held::Text(self.meter)),
            Field::Metadata(path) => self.dimensions.get(path).map(Held::Json),
            Field::Quantity | Field::EventTime | Field::ReceivedAt | Field::IdempotencyKey => None,
        }
    }
}

/// Trims, splits at commas and de-duplicates `group_by`; each must be `subject` or a declared dimension.
pub fn parse_group_by<'a>(meter: &Meter, fields: impl Iterator<Item = &'a str>) -> Result<Vec<GroupField>> {
    let mut parsed: Vec<GroupField> = Vec::new();
    for name in fields.flat_map(|text| text.split(',')).map(str::trim).filter(|name| !name.is_empty()) {
        let field = match name {
            "subject" => GroupField::Subject,
            name if meter.dimension(name).is_some() => GroupField::Dimension(name.to_owned()),
            name => {
                return Err(Error::invalid(format!(
                    "group_by {name:?} is not subject or a declared dimension"
                )));
            }
        };
        if !parsed.contains(&field) {
            parsed.push(field);
        }
    }
    if parsed.len() > GROUP_FIELDS_MAX {
        return Err(Error::invalid(format!("group_by must not have more than {GROUP_FIELDS_MAX} fields")));
    }
    Ok(parsed)
}

/// The field of a breakdown: `subject` or a declared dimension, with or without `metadata.` before it.
pub fn parse_breakdown_field(meter: &Meter, text: &str) -> Result<GroupField> {
    match text.trim() {
        "subject" => Ok(GroupField::Subject),
        _ => parse_dimension_field(meter, text),
    }
}

/// A declared dimension, with or without `metadata.` before it.
pub fn parse_dimension_field(meter: &Meter, text: &str) -> Result<GroupField> {
    let name = text.trim();
    let name = name.strip_prefix("metadata.").unwrap_or(name);
    match meter.dimension(name) {
        Some(dimension) => Ok(GroupField::Dimension(dimension.name.clone())),
        None => Err(Error::invalid(format!("field {text:?} is not a declared dimension"))),
    }
}

/// Trims a subject filter; empty means none.
pub fn parse_subject_filter(text: &str) -> Result<Option<String>> {
    match text.trim() {
        "" => Ok(None),
        subject => parse_subject(subject).map(|subject| Some(subject.to_owned())),
    }
}

/// Where parts are added up: bucket start, then group values in `group_by` order. Holds the first `most` rows only:
/// a row once pushed out can never come back, because what pushed it out stays.
#[derive(Debug)]
pub struct GroupedAggregates {
    parts: BTreeMap<(Timestamp, Vec<String>), Part>,
    most: usize,
    /// What the rows take in memory, about.
    bytes: usize,
}

/// Of rows that one query may hold at a time: some 150,000 groups with names of usual length.
const CELL_BYTES_MAX: usize = 64 << 20;
/// Of a row, without the text of its group.
const CELL_BYTES: usize = 400;

fn bytes_of(group: &[String]) -> usize {
    CELL_BYTES + group.iter().map(String::len).sum::<usize>()
}

impl GroupedAggregates {
    pub fn first(most: usize) -> Self {
        GroupedAggregates { parts: BTreeMap::new(), most, bytes: 0 }
    }

    pub fn add(&mut self, start: Timestamp, group: Vec<String>, part: &Part) -> Result<()> {
        let (rows, bytes) = (self.parts.len(), bytes_of(&group));
        merge(&mut self.parts, (start, group), part);
        self.keep_first(rows, bytes)
    }

    pub fn add_event(
        &mut self,
        start: Timestamp,
        group: Vec<String>,
        at: Timestamp,
        id: Uuid,
        quantity: &Quantity,
    ) -> Result<()> {
        let (rows, bytes) = (self.parts.len(), bytes_of(&group));
        add_event(&mut self.parts, (start, group), at, id, quantity);
        self.keep_first(rows, bytes)
    }

    /// Adds what the aggregation must know besides to a row, which may hold no event of its own.
    pub fn add_state(&mut self, start: Timestamp, group: Vec<String>, state: &State) -> Result<()> {
        let (rows, bytes) = (self.parts.len(), bytes_of(&group));
        let grown = match self.parts.entry((start, group)) {
            Entry::Vacant(free) => {
                free.insert(Part::carried(state.clone()));
                state.bytes() as isize
            }
            Entry::Occupied(mut taken) => taken.get_mut().add_state(state),
        };
        self.bytes = self.bytes.saturating_add_signed(grown);
        self.keep_first(rows, bytes)
    }

    /// Whether rows of this bucket or later ones could still be among the first.
    pub fn wants(&self, start: Timestamp) -> bool {
        let last = self.parts.last_key_value().filter(|_| self.parts.len() >= self.most);
        last.is_none_or(|((last, _), _)| start <= *last)
    }

    /// 400 when there are more groups than one answer may be made of.
    pub fn check_size(&self) -> Result<()> {
        if self.parts.len() <= GROUPS_MAX {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "the answer would be made of more than {GROUPS_MAX} groups: choose a shorter window, a subject or a filter"
        )))
    }

    /// After a row was added to what were `rows` before, or was not.
    fn keep_first(&mut self, rows: usize, bytes: usize) -> Result<()> {
        if self.parts.len() > rows {
            self.bytes += bytes;
        }
        if self.parts.len() > self.most
            && let Some(((_, group), part)) = self.parts.pop_last()
        {
            let state = part.state.as_ref().map_or(0, |state| state.bytes());
            self.bytes = self.bytes.saturating_sub(bytes_of(&group) + state);
        }
        match self.bytes > CELL_BYTES_MAX {
            true => self.relieve(),
            false => Ok(()),
        }
    }

    /// Makes room by counting roughly what was counted exactly; 400 where that brings too little to be worth the way
    /// through all rows.
    fn relieve(&mut self) -> Result<()> {
        let before = self.bytes;
        for state in self.parts.values_mut().filter_map(|part| part.state.as_mut()) {
            self.bytes = self.bytes.saturating_add_signed(state.shrink());
        }
        match before.saturating_sub(self.bytes) >= CELL_BYTES_MAX / 8 {
            true => Ok(()),
            false => Err(Error::query_too_large()),
        }
    }

    /// The rows in order: bucket start and group values, and what was added up.
    pub fn into_cells(self) -> impl Iterator<Item = ((Timestamp, Vec<String>), Part)> {
        self.parts.into_iter()
    }

    /// The rows in order: group values, and what was added up.
    pub fn into_groups(self) -> impl Iterator<Item = (Vec<String>, Part)> {
        self.parts.into_iter().map(|((_, group), part)| (group, part))
    }
}

/// One row of a bucket answer; fields in wire order.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = UsageBucket)]
pub struct Bucket {
    pub subject: String,
    pub meter: String,
    #[schema(value_type = String)]
    pub bucket_size: Cow<'static, str>,
    #[schema(value_type = Timestamp)]
    pub bucket_start: BucketStart,
    /// Where a zone was asked for, or is that of the workspace.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub time_zone: Option<Arc<str>>,
    pub aggregation: &'static str,
    pub unit: String,
    pub quantity: Quantity,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub group: BTreeMap<String, String>,
    /// Of aggregation `percentile`: all that the meter has, by their number; `quantity` is the first of them.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(required = false)]
    pub percentiles: BTreeMap<String, Quantity>,
    /// Of aggregation `percentile`, where the meter has `histogram_bounds`. Always exact.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub histogram: Option<Histogram>,
    /// Only ever `true`: a sketch told the quantity, because there were too many different values to keep them all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approximate: Option<bool>,
    /// Of an approximate quantity, how far it may be off, as a share of it: 0.005 for percentiles, always; 0.025 for
    /// different values, in 997 of 1,000 answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Quantity>,
}

/// When a bucket begins: in UTC, or as the clocks of the zone that was asked for show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BucketStart {
    pub at: Timestamp,
    text: Arc<str>,
}

impl BucketStart {
    fn of(calendar: &Calendar, at: Timestamp) -> BucketStart {
        BucketStart { at, text: calendar.text(at).into() }
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl Serialize for BucketStart {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

/// The rows by bucket start, then group values bytewise.
pub fn buckets(query: &Query, cells: GroupedAggregates) -> Vec<Bucket> {
    // a query without buckets has one, which nobody asks to see
    let plain = Buckets::plain(BucketSize::Day);
    let buckets = query.buckets.as_ref().unwrap_or(&plain);
    let (size, time_zone) = (buckets.name(), buckets.calendar.zone_name());
    // many groups share a bucket
    let mut last: Option<(BucketStart, i64)> = None;
    let mut rows = Vec::with_capacity(cells.parts.len());
    for ((start, values), part) in cells.parts {
        let (bucket_start, length) = match last.take().filter(|(known, _)| known.at == start) {
            Some(known) => known,
            None => (BucketStart::of(&buckets.calendar, start), buckets.calendar.length(start)),
        };
        last = Some((bucket_start.clone(), length));
        let names = query.group_by.iter().map(|field| field.name().to_owned());
        let group: BTreeMap<String, String> = names.zip(values).collect();
        let grouped_subject = group.get("subject").filter(|_| query.group_by.contains(&GroupField::Subject));
        rows.push(Bucket {
            subject: query.subject.clone().or_else(|| grouped_subject.cloned()).unwrap_or_default(),
            meter: query.meter.name.clone(),
            bucket_size: size.clone(),
            bucket_start,
            time_zone: time_zone.clone(),
            aggregation: query.meter.aggregation.as_str(),
            unit: query.meter.unit.clone(),
            quantity: part.value(query.meter.aggregation, length),
            group,
            percentiles: part.state.as_ref().map(|state| state.percentiles()).unwrap_or_default(),
            histogram: part.state.as_ref().and_then(|state| state.histogram()),
            approximate: part.error().map(|_| true),
            error: part.error(),
        });
    }
    rows
}

/// One row of a breakdown; fields in wire order.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = BreakdownItem)]
pub struct BreakdownItem {
    pub field: String,
    pub value: String,
    pub quantity: Quantity,
    pub events: i64,
    pub aggregation: &'static str,
    pub unit: String,
    /// As in a bucket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approximate: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Quantity>,
}

/// The largest rows of a query that is grouped by one field, then by value.
pub fn breakdown(query: &Query, cells: GroupedAggregates, limit: usize) -> Vec<BreakdownItem> {
    let field = query.group_by.first().map_or("", GroupField::name);
    let share = |((_, values), part): ((Timestamp, Vec<String>), Part)| BreakdownItem {
        field: field.to_owned(),
        value: values.into_iter().next().unwrap_or_default(),
        quantity: part.value(query.meter.aggregation, query.window.length()),
        events: part.count,
        aggregation: query.meter.aggregation.as_str(),
        unit: query.meter.unit.clone(),
        approximate: part.error().map(|_| true),
        error: part.error(),
    };
    // values come in order, and sorting is stable
    let mut shares: Vec<BreakdownItem> = cells.parts.into_iter().map(share).collect();
    shares.sort_by(|a, b| b.quantity.cmp(&a.quantity));
    shares.truncate(limit);
    shares
}

/// A value that a dimension has taken; fields in wire order.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = DimensionValue)]
pub struct DimensionValue {
    pub field: String,
    pub value: String,
    pub events: i64,
}

/// The most frequent values of a query that is grouped by one dimension, then by value.
pub fn values_taken(query: &Query, cells: GroupedAggregates, limit: usize) -> Vec<DimensionValue> {
    let field = query.group_by.first().map_or("", GroupField::name);
    let taken = |((_, values), part): ((Timestamp, Vec<String>), Part)| DimensionValue {
        field: field.to_owned(),
        value: values.into_iter().next().unwrap_or_default(),
        events: part.count,
    };
    let mut all: Vec<DimensionValue> = cells.parts.into_iter().map(taken).collect();
    all.sort_by_key(|taken| std::cmp::Reverse(taken.events));
    all.truncate(limit);
    all
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::metering::sketch::Distinct;

    #[test]
    fn groups_are_bounded_in_bytes_and_those_pushed_out_do_not_count() {
        let part = Part::of(Timestamp(0), Uuid::nil(), &Quantity::from(1));
        let name = |n: usize| vec![format!("{n:08}{}", "x".repeat(1 << 20))];
        let mut first = GroupedAggregates::first(10);
        (0..200).for_each(|n| first.add(Timestamp(0), name(n), &part).expect("ten at a time"));
        let mut all = GroupedAggregates::first(usize::MAX);
        let refused = (0..200).find_map(|n| all.add(Timestamp(0), name(n), &part).err()).expect("200 MB");
        assert_eq!((refused.code.as_str(), refused.code.http_status()), ("query_too_large", 400));
    }

    fn values(text: String, most: usize) -> State {
        State::Values(Distinct::of(text, most))
    }

    #[test]
    fn what_rows_that_are_pushed_out_know_does_not_count() {
        let mut first = GroupedAggregates::first(1);
        for n in 0..40_000 {
            let row = Timestamp(i64::from(n > 0));
            first.add_state(row, Vec::new(), &values(format!("{n:04000}"), usize::MAX)).expect("one row");
        }
    }

    #[test]
    fn what_takes_too_much_room_is_told_roughly_unless_all_is_asked_for() {
        for (most, is_answered) in [(EXACT_MAX, true), (usize::MAX, false)] {
            let mut all = GroupedAggregates::first(usize::MAX);
            let mut add = |row| {
                (0..800).try_for_each(|n| {
                    all.add_state(Timestamp(row), Vec::new(), &values(format!("{n:0200}"), most))
                })
            };
            let done: Result<()> = (0..300).try_for_each(&mut add);
            assert_eq!(done.is_ok(), is_answered, "77 MB");
            let told = all.into_groups().filter_map(|(_, part)| part.state?.error()).count();
            assert_eq!(told > 0, is_answered);
        }
    }

    proptest! {
        /// Parts come bucket by bucket; whoever stops when no more are wanted has the same first rows.
        #[test]
        fn what_is_not_wanted_would_not_be_among_the_first(
            mut parts in proptest::collection::vec((0i64..20, 0u8..6), 0..80),
            most in 1usize..30,
        ) {
            parts.sort_unstable();
            let (mut all, mut some) = (GroupedAggregates::first(most), GroupedAggregates::first(most));
            let mut is_wanted = true;
            for (bucket, group) in parts {
                let start = Timestamp(bucket);
                let part = Part::of(start, Uuid::nil(), &Quantity::from(1));
                all.add(start, vec![group.to_string()], &part).expect("few");
                is_wanted = is_wanted && some.wants(start);
                if is_wanted {
                    some.add(start, vec![group.to_string()], &part).expect("few");
                }
            }
            let rows = |cells: GroupedAggregates| cells.parts.into_iter().map(|(key, part)| (key, part.count)).collect::<Vec<_>>();
            prop_assert_eq!(rows(all), rows(some));
        }
    }
}
