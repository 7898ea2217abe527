//! What is known of events that are gone: the sums that outlived them, by meter, subject, quarter of an hour and
//! dimensions. They are asked for as any query is, and put back by the insert, so that nothing here knows how a database
//! keeps them.

use std::collections::BTreeMap;
use std::sync::Arc;

use uuid::Uuid;

use super::archive::{Kind, Month, Row};
use super::sql::usage;
use super::unusable;
use crate::db::{Conn, DbError};
use crate::error::{Error, Result};
use crate::ingest::insert::sums::Sum;
use crate::metering::calendar::Buckets;
use crate::metering::event::set_of_values;
use crate::metering::facet::QUARTER;
use crate::metering::filter::{Field, Filter, Literal, Test, text_of};
use crate::metering::json::{Map, Number, Value, parse_object};
use crate::metering::meter::{Aggregation, DimensionType, Meter, value_at};
use crate::metering::quantity::Quantity;
use crate::metering::rollup::{Edge, Part};
use crate::metering::time::{BucketSize, DAY, HOUR, Timestamp, Window};
use crate::usage::aggregate;
use crate::usage::query::{GroupField, Query};

pub const COLUMNS: &[(&str, Kind)] = &[
    ("meter_id", Kind::Int),
    ("subject", Kind::Text),
    ("start", Kind::Int),
    ("dimensions", Kind::Text),
    ("events", Kind::Int),
    ("sum", Kind::Decimal),
    ("min", Kind::Decimal),
    ("max", Kind::Decimal),
    ("first_at", Kind::Int),
    ("first_id", Kind::Bytes),
    ("first", Kind::Decimal),
    ("last_at", Kind::Int),
    ("last_id", Kind::Bytes),
    ("last", Kind::Decimal),
];

/// What a group is called whose events lack the dimension.
const LACKING: &str = "<nil>";

/// An hour may know more groups than one query may hold.
const SUBJECTS_AT_ONCE: usize = 500;

type Groups = BTreeMap<(Timestamp, Vec<String>), Part>;
/// How many events, and their sum.
type Stored = BTreeMap<(Timestamp, Vec<String>), (i64, Quantity)>;

fn query(meter: &Arc<Meter>, window: Window, size: BucketSize) -> Query {
    // counts and sums are kept of every meter, whatever it answers with
    let meter = Arc::new(Meter { aggregation: Aggregation::Sum, ..(**meter).clone() });
    Query {
        meter,
        window,
        subject: None,
        group_by: Vec::new(),
        filter: None,
        buckets: Some(Buckets::plain(size)),
        skip_missing: false,
        exact: true,
    }
}

fn cells(conn: &mut Conn, query: &Query) -> Result<Groups, DbError> {
    Ok(aggregate::cells(conn, query, usize::MAX)?.into_cells().collect())
}

/// What queries answer of each month, and what of it is still there as events.
pub fn months(conn: &mut Conn, meter: &Arc<Meter>) -> Result<Vec<Month>, DbError> {
    let mut stored: BTreeMap<Timestamp, (u64, Quantity)> = BTreeMap::new();
    for (day, events, sum) in usage::stored_days(conn, meter.id)? {
        let month = stored.entry(day.month_start()).or_insert_with(|| (0, Quantity::zero()));
        month.0 += events;
        month.1 += &sum;
    }
    let all = cells(conn, &query(meter, Window::ALWAYS, BucketSize::Month))?;
    let month = |((start, _), part): ((Timestamp, Vec<String>), Part)| {
        let (events, sum) = stored.remove(&start).unwrap_or_else(|| (0, Quantity::zero()));
        Month {
            meter: meter.name.clone(),
            month: start.to_seconds_text()[..7].to_owned(),
            events: part.count,
            sum: part.sum.to_plain(),
            stored_events: events,
            stored_sum: sum.to_plain(),
        }
    };
    Ok(all.into_iter().map(month).collect())
}

/// Hands over the sums of events that are gone.
pub fn pruned(
    conn: &mut Conn,
    meter: &Arc<Meter>,
    mut work: impl FnMut(Row) -> Result<(), DbError>,
) -> Result<(), DbError> {
    let stored: BTreeMap<Timestamp, u64> =
        usage::stored_days(conn, meter.id)?.into_iter().map(|(day, events, _)| (day, events)).collect();
    for ((day, _), part) in cells(conn, &query(meter, Window::ALWAYS, BucketSize::Day))? {
        if stored.get(&day).copied().unwrap_or_default() == part.count.unsigned_abs() {
            continue;
        }
        for hour in hours(conn, meter, day)? {
            for some in subjects(conn, meter, hour)?.chunks(SUBJECTS_AT_ONCE) {
                gone(conn, meter, hour, some)?.into_iter().try_for_each(&mut work)?;
            }
        }
    }
    Ok(())
}

/// Hours of a day of which something is gone.
fn hours(conn: &mut Conn, meter: &Arc<Meter>, day: Timestamp) -> Result<Vec<Window>, DbError> {
    let all = query(meter, Window { from: day, to: day.plus(DAY) }, BucketSize::Hour);
    // no sum knows single quantities
    let there = Query { filter: Some(Filter::Condition(Field::Quantity, Test::Exists)), ..all.clone() };
    let (all, there) = (cells(conn, &all)?, cells(conn, &there)?);
    let is_gone = |(key, part): &(&(Timestamp, Vec<String>), &Part)| {
        there.get(*key).is_none_or(|stored| stored.count < part.count)
    };
    let hour = |start: Timestamp| Window { from: start, to: start.plus(HOUR) };
    Ok(all.iter().filter(is_gone).map(|((start, _), _)| hour(*start)).collect())
}

/// Subjects of an hour, each with how many events it had.
fn subjects(conn: &mut Conn, meter: &Arc<Meter>, hour: Window) -> Result<Vec<(String, i64)>, DbError> {
    let all = Query { group_by: vec![GroupField::Subject], ..query(meter, hour, BucketSize::Hour) };
    let subject = |((_, group), part): ((Timestamp, Vec<String>), Part)| (group.concat(), part.count);
    Ok(cells(conn, &all)?.into_iter().map(subject).collect())
}

/// Of some subjects in one hour, by quarters: what all events came to, less what those that are there come to. Smallest,
/// largest, first and last are those of all, which stay what they are when the others are added again.
fn gone(
    conn: &mut Conn,
    meter: &Arc<Meter>,
    hour: Window,
    subjects: &[(String, i64)],
) -> Result<Vec<Row>, DbError> {
    let quarter =
        |at: i64| Window { from: hour.from.plus(at * QUARTER), to: hour.from.plus((at + 1) * QUARTER) };
    let mut windows: Vec<Window> = (0..HOUR / QUARTER).map(quarter).collect();
    let mut all = grouped(conn, meter, &windows, subjects)?;
    // sums that came in by the hour lie in its first quarter, whichever their first and last events say
    let events: i64 = subjects.iter().map(|(_, events)| events).sum();
    if all.values().map(|part| part.count).sum::<i64>() != events {
        windows = vec![hour];
        all = grouped(conn, meter, &windows, subjects)?;
    }
    let mut there = Stored::new();
    for window in windows {
        add_stored(conn, meter, window, &mut there)?;
    }
    let rest = all.into_iter().filter_map(|(key, part)| {
        let (stored, sum) = there.remove(&key).unwrap_or_else(|| (0, Quantity::zero()));
        let (events, sum) = (part.count - stored, &part.sum - &sum);
        let (start, group) = key;
        (events > 0).then(|| row(meter, start, &group, &Part { count: events, sum, ..part }))
    });
    Ok(rest.collect())
}

/// What all events of these subjects came to in some windows, by subject and dimensions.
fn grouped(
    conn: &mut Conn,
    meter: &Arc<Meter>,
    windows: &[Window],
    subjects: &[(String, i64)],
) -> Result<Groups, DbError> {
    // a meter that answers with them is always asked for first and last events
    let asked = Arc::new(Meter { aggregation: Aggregation::Last, ..(**meter).clone() });
    let mut group_by = vec![GroupField::Subject];
    group_by.extend(meter.dimensions.iter().map(|of| GroupField::Dimension(of.name.clone())));
    let names = subjects.iter().map(|(name, _)| Literal::Text(name.clone())).collect();
    let filter = Some(Filter::Condition(Field::Subject, Test::In(names)));
    let mut groups = Groups::new();
    for window in windows {
        let (meter, group_by, filter) = (asked.clone(), group_by.clone(), filter.clone());
        let all =
            Query { meter, group_by, filter, buckets: None, ..query(&asked, *window, BucketSize::Hour) };
        groups.extend(cells(conn, &all)?);
    }
    Ok(groups)
}

/// Adds the events of a window that are there, in the groups in which sums have them.
fn add_stored(conn: &mut Conn, meter: &Meter, window: Window, groups: &mut Stored) -> Result<(), DbError> {
    // of an hour that was pruned sums alone answer, and those do not know what was declared after the event came
    let is_pruned = meter.pruned_before.is_some_and(|at| window.from < at.ceil(HOUR));
    usage::stored(conn, meter.id, window, |row| {
        let unreadable = || Error::internal("a stored event cannot be read");
        let (group, quantity) = group_of(meter, &row, is_pruned).ok_or_else(unreadable)?;
        let (events, sum) = groups.entry((window.from, group)).or_insert_with(|| (0, Quantity::zero()));
        *events += 1;
        *sum += &quantity;
        Ok(())
    })
}

/// The group of a stored event, and its quantity.
fn group_of(meter: &Meter, row: &Row, is_pruned: bool) -> Option<(Vec<String>, Quantity)> {
    let [subject, version, quantity, metadata] = row.as_slice() else { return None };
    let version: i32 = version.as_deref()?.parse().ok()?;
    let quantity = Quantity::from_plain(quantity.as_deref()?)?;
    let metadata = metadata.as_deref().map_or_else(|| Some(Map::new()), parse_object)?;
    let mut group = vec![subject.clone()?];
    for dimension in &meter.dimensions {
        let is_known = !is_pruned || dimension.since <= version;
        let value = value_at(&metadata, &dimension.name).filter(|value| is_known && !value.is_null());
        group.push(value.map_or_else(|| LACKING.to_owned(), |value| text_of(value).into_owned()));
    }
    Some((group, quantity))
}

fn row(meter: &Meter, start: Timestamp, group: &[String], part: &Part) -> Row {
    let values: Map = meter
        .dimensions
        .iter()
        .zip(group.iter().skip(1))
        .filter(|(_, text)| *text != LACKING)
        .map(|(dimension, text)| (dimension.name.clone(), value(dimension.kind, text)))
        .collect();
    let edge = |edge: Option<&Edge>| {
        [
            edge.map(|edge| edge.at.0.to_string()),
            edge.map(|edge| super::archive::hex(edge.id.as_bytes())),
            edge.map(|edge| edge.quantity.to_plain()),
        ]
    };
    let mut row: Row = vec![
        Some(meter.id.to_string()),
        group.first().cloned(),
        Some(start.0.to_string()),
        Some(Value::Object(values).to_string()),
        Some(part.count.to_string()),
        Some(part.sum.to_plain()),
        Some(part.min.to_plain()),
        Some(part.max.to_plain()),
    ];
    row.extend(edge(part.edges.as_ref().map(|(first, _)| first)));
    row.extend(edge(part.edges.as_ref().map(|(_, last)| last)));
    row
}

fn value(kind: DimensionType, text: &str) -> Value {
    match kind {
        DimensionType::Number => Number::parse(text).map(Value::Number),
        DimensionType::Boolean => text.parse().ok().map(Value::Bool),
        DimensionType::String => None,
    }
    .unwrap_or_else(|| Value::from(text))
}

/// The meter of a sum, and the sum.
pub fn read(row: &Row, meter: impl Fn(i64) -> Option<Arc<Meter>>) -> Result<Sum> {
    let broken = || unusable("a sum of the file cannot be read");
    let text = |at: usize| row.get(at).and_then(Option::as_deref).ok_or_else(broken);
    let int = |at: usize| text(at)?.parse::<i64>().map_err(|_| broken());
    let time = |at: usize| Timestamp::of_micros(int(at)?).ok_or_else(broken);
    let quantity = |at: usize| Quantity::from_plain(text(at)?).ok_or_else(broken);
    let edge = |at: usize| -> Result<Edge> {
        let id = Uuid::try_parse(text(at + 1)?).map_err(|_| broken())?;
        Ok(Edge { at: time(at)?, id, quantity: quantity(at + 2)? })
    };
    let meter = meter(int(0)?).ok_or_else(broken)?;
    let values = parse_object(text(3)?).ok_or_else(broken)?;
    Ok(Sum {
        subject: text(1)?.to_owned(),
        start: time(2)?,
        set: set_of_values(&meter, &values),
        meter,
        part: Part {
            count: int(4)?,
            sum: quantity(5)?,
            min: quantity(6)?,
            max: quantity(7)?,
            edges: Some((edge(8)?, edge(11)?)),
            state: None,
        },
    })
}
