//! What newer servers keep of events that they have pruned: sums by subject, hour and metadata. They are put where the
//! sums of our own pruned events are, in which nothing tells where they came from. So each hour is compared as a whole:
//! events that were brought over before they were pruned there, and sums that an earlier run brought, are not added again.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use uuid::Uuid;

use super::compare::Sum as Total;
use super::{Ids, Import, id_of};
use crate::db::{Conn, DbError};
use crate::error::Result;
use crate::import::progress::Progress;
use crate::import::sql::foreign::Kind::{Int, Real, Text};
use crate::import::sql::foreign::{Odd, Row, Table};
use crate::import::sql::ours::Put;
use crate::import::sql::totals;
use crate::ingest::insert::sums::{self, Sum};
use crate::metering::calendar::Buckets;
use crate::metering::event::{DimensionSet, Event, dimension_set, parse_subject};
use crate::metering::json::{self, Map};
use crate::metering::meter::{Aggregation, Meter};
use crate::metering::rollup::{Edge, Part};
use crate::metering::time::{BucketSize, HOUR, Timestamp, Window};
use crate::usage::aggregate;
use crate::usage::query::{AggregatedRow, GroupField, Query};

pub const ROLLUPS: Table = Table {
    name: "usage_hourly_rollups",
    columns: &[
        ("workspace_id", Text),
        ("meter_name", Text),
        ("subject", Text),
        ("bucket_start", Text),
        ("metadata", Text),
        ("event_count", Int),
        ("quantity_sum", Real),
        ("quantity_min", Real),
        ("quantity_max", Real),
        ("first_quantity", Real),
        ("first_event_time", Text),
        ("first_event_id", Text),
        ("last_quantity", Real),
        ("last_event_time", Text),
        ("last_event_id", Text),
        // when it was done
        ("rolled_up_at", Text),
    ],
    // rows of an hour beside each other
    order: "workspace_id, meter_name, CAST(bucket_start AS TEXT)",
};

const ROWS_AT_ONCE: usize = 2_000;

/// Subject and dimension values, as a query shows them.
type Group = Vec<String>;
type Hour = (i64, Timestamp);

/// Events that are still there in hours of which some are gone.
#[derive(Default)]
pub struct Rolled {
    hours: HashSet<Hour>,
    kept: BTreeMap<(Hour, Group), Total>,
}

impl Rolled {
    pub fn add(&mut self, event: &Event) {
        let hour = (event.meter.id, event.time.floor(HOUR));
        if self.hours.contains(&hour) {
            let values = json::parse_object(&event.dimension_set.json).unwrap_or_default();
            let group = group_of(&event.meter, &event.subject, &values);
            self.kept.entry((hour, group)).or_default().add(1, &event.quantity);
        }
    }
}

fn query(meter: &Meter, hour: Timestamp, group_by: Vec<GroupField>) -> Query {
    // a meter that answers with them is always asked for first and last events
    let meter = Arc::new(Meter { aggregation: Aggregation::Sum, ..meter.clone() });
    Query {
        meter,
        window: Window { from: hour, to: hour.plus(HOUR) },
        subject: None,
        group_by,
        filter: None,
        buckets: Some(Buckets::plain(BucketSize::Hour)),
        skip_missing: false,
        exact: true,
    }
}

fn grouped(meter: &Meter, hour: Timestamp) -> Query {
    let dimensions = meter.dimensions.iter().map(|of| GroupField::Dimension(of.name.clone()));
    query(meter, hour, [GroupField::Subject].into_iter().chain(dimensions).collect())
}

fn group_of(meter: &Meter, subject: &str, values: &Map) -> Group {
    let row = AggregatedRow { meter: &meter.name, subject, dimensions: values };
    grouped(meter, Timestamp(0)).group(&row).unwrap_or_default()
}

/// The sum of a row, by itself.
fn sum_of(ids: &Ids, row: &Row) -> Result<Sum, Odd> {
    let workspace_id = ids.workspace(row)?;
    let meter = ids.meter(workspace_id, row)?;
    let (subject, hour) = (row.text("subject")?, row.time("bucket_start")?);
    if parse_subject(&subject).map_err(|error| error.message)? != subject {
        return Err("subject has blanks around it".to_owned());
    }
    if hour != hour.floor(HOUR) {
        return Err("bucket_start is no whole hour".to_owned());
    }
    let metadata = row.filled("metadata")?.unwrap_or_else(|| "{}".to_owned());
    let metadata = json::parse_object(&metadata).ok_or("metadata is no JSON object that can be read")?;
    let (count, sum) = (row.int("event_count")?, row.quantity("quantity_sum")?);
    if count <= 0 || !sum.is_positive() {
        return Err("it is the sum of nothing".to_owned());
    }
    let edge = |[quantity, time, id]: [&str; 3]| -> Result<Edge, Odd> {
        let at = row.time(time)?;
        let id = Uuid::try_parse(&row.text(id)?).map_err(|_| format!("{id} is no UUID"))?;
        if at.floor(HOUR) != hour {
            return Err(format!("{time} is not in its hour"));
        }
        Ok(Edge { at, id, quantity: row.quantity(quantity)? })
    };
    let edges = (
        edge(["first_quantity", "first_event_time", "first_event_id"])?,
        edge(["last_quantity", "last_event_time", "last_event_id"])?,
    );
    Ok(Sum {
        set: dimension_set(&meter, &metadata),
        part: Part {
            count,
            sum,
            min: row.quantity("quantity_min")?,
            max: row.quantity("quantity_max")?,
            edges: Some(edges),
            state: None,
        },
        meter,
        subject,
        start: hour,
    })
}

impl Import {
    /// Looks which hours have sums, before events are read.
    pub(super) fn note_sums(&mut self) -> Result<()> {
        const HOURS: Table = Table {
            name: ROLLUPS.name,
            columns: &[("workspace_id", Text), ("meter_name", Text), ("bucket_start", Text)],
            order: "",
        };
        let Import { theirs, ids, rolled, .. } = self;
        theirs.each(&HOURS, ROWS_AT_ONCE, |rows| {
            for row in rows {
                let meter = ids.workspace(&row).and_then(|workspace_id| ids.meter(workspace_id, &row));
                if let (Ok(meter), Ok(hour)) = (meter, row.time("bucket_start")) {
                    rolled.hours.insert((meter.id, hour));
                }
            }
            Ok(())
        })
    }

    /// Brings over the sums, hour by hour.
    pub(super) fn sums(&mut self) -> Result<()> {
        if !self.theirs.has_table(ROLLUPS.name) {
            return Ok(());
        }
        let mut progress = Progress::new("sums", self.theirs.count(ROLLUPS.name)?);
        let Import { theirs, ours, report, ids, tally, rolled, .. } = self;
        let mut waiting: Vec<Sum> = Vec::new();
        let mut store = |sums: Vec<Sum>, report: &mut crate::import::report::Report| -> Result<()> {
            let Some(hour) = sums.first().map(hour_of) else { return Ok(()) };
            let new = ours.write(|conn| add_missing(conn, hour, &sums, &rolled.kept))?;
            report.taken(ROLLUPS.name, Put::New, new as u64);
            report.taken(ROLLUPS.name, Put::Known, (sums.len() - new) as u64);
            Ok(())
        };
        theirs.each(&ROLLUPS, ROWS_AT_ONCE, |rows| {
            for row in &rows {
                match sum_of(ids, row) {
                    Ok(sum) => {
                        if waiting.first().is_some_and(|first| hour_of(first) != hour_of(&sum)) {
                            store(std::mem::take(&mut waiting), report)?;
                        }
                        tally.add_sum(sum.meter.id, sum.start, &sum.part);
                        waiting.push(sum);
                    }
                    Err(odd) => report.left_out(ROLLUPS.name, &id_of(&ROLLUPS, row), &odd)?,
                }
            }
            progress.add(rows.len());
            Ok(())
        })?;
        store(waiting, report)?;
        drop(progress);
        self.fold()
    }
}

fn hour_of(sum: &Sum) -> Hour {
    (sum.meter.id, sum.start)
}

/// Adds what is not here of the sums of an hour; answers how many rows had something of it.
fn add_missing(
    conn: &mut Conn,
    hour: Hour,
    sums: &[Sum],
    kept: &BTreeMap<(Hour, Group), Total>,
) -> Result<usize, DbError> {
    let Some(first) = sums.first() else { return Ok(0) };
    let (meter, workspace_id) = (first.meter.clone(), first.meter.workspace_id);
    let mut wanted: BTreeMap<Group, (Sum, usize)> = BTreeMap::new();
    for sum in sums {
        let group = group_of(&meter, &sum.subject, &values(&sum.set));
        match wanted.get_mut(&group) {
            Some((whole, rows)) => {
                whole.part.add(&sum.part);
                *rows += 1;
            }
            None => drop(wanted.insert(group, (sum.clone(), 1))),
        }
    }
    let here = here(conn, &meter, hour.1)?;
    let (mut missing, mut new) = (Vec::new(), 0);
    for (group, (sum, rows)) in wanted {
        let place = (hour, group);
        let mut whole = kept.get(&place).cloned().unwrap_or_default();
        whole.add(sum.part.count.unsigned_abs(), &sum.part.sum);
        let have = here.get(&place.1).cloned().unwrap_or_default();
        if have.events >= whole.events {
            continue;
        }
        new += rows;
        let rest = &whole.total - &have.total;
        let part = Part {
            count: (whole.events - have.events) as i64,
            // floats were added in another order
            sum: if rest.is_positive() { rest } else { sum.part.min.clone() },
            ..sum.part.clone()
        };
        missing.push(Sum { part, ..sum });
    }
    if !missing.is_empty() {
        sums::add(conn, workspace_id, &missing)?;
    }
    Ok(new)
}

fn values(set: &DimensionSet) -> Map {
    json::parse_object(&set.json).unwrap_or_default()
}

/// What is counted here in an hour, less events that were sent here.
fn here(conn: &mut Conn, meter: &Arc<Meter>, hour: Timestamp) -> Result<BTreeMap<Group, Total>, DbError> {
    let all = aggregate::cells(conn, &query(meter, hour, Vec::new()), usize::MAX)?.into_cells();
    let mut here: BTreeMap<Group, Total> = BTreeMap::new();
    if all.map(|(_, part)| part.count).sum::<i64>() == 0 {
        return Ok(here);
    }
    for ((_, group), part) in aggregate::cells(conn, &grouped(meter, hour), usize::MAX)?.into_cells() {
        here.entry(group).or_default().add(part.count.unsigned_abs(), &part.sum);
    }
    for event in totals::sent_here(conn, meter.id, hour, hour.plus(HOUR))? {
        let metadata = event.metadata.as_deref().and_then(json::parse_object).unwrap_or_default();
        let group = group_of(meter, &event.subject, &values(&dimension_set(meter, &metadata)));
        if let Some(total) = here.get_mut(&group) {
            total.subtract(1, &event.quantity);
        }
    }
    Ok(here)
}
