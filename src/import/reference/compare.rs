//! At the end both sides are added up, per meter and month, and every difference is told.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Import;
use crate::db::{Conn, DbError};
use crate::error::Result;
use crate::import::sql::totals;
use crate::metering::calendar::Buckets;
use crate::metering::event::Event;
use crate::metering::meter::{Aggregation, Meter};
use crate::metering::quantity::Quantity;
use crate::metering::rollup::Part;
use crate::metering::time::{BucketSize, Timestamp, Window};
use crate::usage::aggregate;
use crate::usage::query::Query;

type Month = Timestamp;

/// Events and their exact sum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sum {
    pub events: u64,
    pub total: Quantity,
}

impl Default for Sum {
    fn default() -> Sum {
        Sum { events: 0, total: Quantity::zero() }
    }
}

impl Sum {
    pub fn add(&mut self, events: u64, total: &Quantity) {
        self.events += events;
        self.total += total;
    }

    pub fn subtract(&mut self, events: u64, total: &Quantity) {
        self.events = self.events.saturating_sub(events);
        self.total = &self.total - total;
    }
}

type Months = BTreeMap<Month, Sum>;

/// What was read of theirs and is stored here, by meter and month: events, and sums of events that are gone there.
#[derive(Default)]
pub struct Tally {
    events: BTreeMap<(i64, Month), Sum>,
    gone: BTreeMap<(i64, Month), Sum>,
}

impl Tally {
    pub fn add(&mut self, event: &Event) {
        let key = (event.meter.id, event.time.month_start());
        self.events.entry(key).or_default().add(1, &event.quantity);
    }

    pub fn add_sum(&mut self, meter_id: i64, at: Timestamp, part: &Part) {
        let key = (meter_id, at.month_start());
        self.gone.entry(key).or_default().add(part.count.unsigned_abs(), &part.sum);
    }
}

fn of_meter(all: &BTreeMap<(i64, Month), Sum>, meter_id: i64) -> Months {
    let of_meter = all.range((meter_id, Timestamp(i64::MIN))..=(meter_id, Timestamp(i64::MAX)));
    of_meter.map(|((_, month), sum)| (*month, sum.clone())).collect()
}

impl Import {
    pub(super) fn compare(&mut self) -> Result<()> {
        let mut meters: Vec<(String, Arc<Meter>)> = Vec::new();
        for ((workspace_id, name), meter) in &self.ids.meters {
            let workspace = self.ids.workspaces.iter().find(|(_, id)| *id == workspace_id);
            let workspace = workspace.map(|(public_id, _)| public_id.as_str()).unwrap_or_default();
            meters.push((format!("{workspace} {name}"), meter.clone()));
        }
        meters.sort_by(|(a, _), (b, _)| a.cmp(b));
        for (name, meter) in meters {
            let (ours, theirs) = (self.months(meter.id)?, of_meter(&self.tally.events, meter.id));
            self.tell(&name, &theirs, &ours);
            let gone = of_meter(&self.tally.gone, meter.id);
            if !gone.is_empty() {
                self.tell_gone(&name, &meter, &theirs, &gone)?;
            }
        }
        Ok(())
    }

    fn months(&mut self, meter_id: i64) -> Result<Months> {
        let mut months = Months::new();
        for (day, events, total) in self.ours.read(|conn| totals::days(conn, meter_id))? {
            months.entry(day.month_start()).or_default().add(events, &total);
        }
        Ok(months)
    }

    fn tell(&mut self, name: &str, theirs: &Months, ours: &Months) {
        let mut all = Sum::default();
        theirs.values().for_each(|sum| all.add(sum.events, &sum.total));
        let mut is_equal = true;
        let months: BTreeSet<&Month> = theirs.keys().chain(ours.keys()).collect();
        for month in months {
            let (their, our) = (month_of(theirs, month), month_of(ours, month));
            if their == our {
                continue;
            }
            is_equal = false;
            let why = match our.events.cmp(&their.events) {
                Ordering::Greater => "the rest was sent here, or was pruned there since it was brought over",
                Ordering::Equal => "they are not the same events",
                Ordering::Less => "the rest was pruned here since it was brought over; its totals are kept",
            };
            self.report.note(format!(
                "{name} {:.7}: read {} events, sum {}; here {} events, sum {}: {why}",
                month.to_seconds_text(),
                their.events,
                their.total.to_plain(),
                our.events,
                our.total.to_plain()
            ));
        }
        let verdict = if is_equal { "equal on both sides in every month" } else { "differs, see above" };
        self.report.note(format!("{name}: {} events, sum {}: {verdict}", all.events, all.total.to_plain()));
    }

    /// With events that are gone there, of which only sums are left: whether all of them are counted here.
    fn tell_gone(&mut self, name: &str, meter: &Meter, theirs: &Months, gone: &Months) -> Result<()> {
        let counted: Vec<(Month, Sum)> = self.ours.read(|conn| counted(conn, meter))?;
        let counted: Months = counted.into_iter().collect();
        let mut all = Sum::default();
        gone.values().for_each(|sum| all.add(sum.events, &sum.total));
        let is_counted = |month: &Month| {
            let wanted = month_of(theirs, month).events + month_of(gone, month).events;
            month_of(&counted, month).events >= wanted
        };
        let missing: Vec<String> =
            gone.keys().filter(|month| !is_counted(month)).map(|month| month.to_seconds_text()).collect();
        let verdict = match missing.is_empty() {
            true => "all of them are counted here".to_owned(),
            false => format!("some are not counted here in months from {}", missing.join(", ")),
        };
        self.report.note(format!(
            "{name}: {} events more are gone there, sum {} (added as floats): {verdict}",
            all.events,
            all.total.to_plain()
        ));
        Ok(())
    }
}

fn month_of(months: &Months, month: &Month) -> Sum {
    months.get(month).cloned().unwrap_or_default()
}

/// Events that queries count, by month, whether they are still there or not.
fn counted(conn: &mut Conn, meter: &Meter) -> Result<Vec<(Month, Sum)>, DbError> {
    let query = Query {
        meter: Arc::new(Meter { aggregation: Aggregation::Sum, ..meter.clone() }),
        window: Window::ALWAYS,
        subject: None,
        group_by: Vec::new(),
        filter: None,
        buckets: Some(Buckets::plain(BucketSize::Month)),
        skip_missing: false,
        exact: true,
    };
    let cells = aggregate::cells(conn, &query, usize::MAX)?.into_cells();
    let sum = |part: Part| Sum { events: part.count.unsigned_abs(), total: part.sum };
    Ok(cells.map(|((month, _), part)| (month, sum(part))).collect())
}
