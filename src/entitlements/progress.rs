//! How far subjects are with their limits, and what a changed plan would mean for them (jobs.md 4.5 and 4.7).

use std::collections::HashMap;

use crate::db::{Conn, DbError};
use crate::entitlements::assignment::effective;
use crate::entitlements::plan::{Limit, Plan};
use crate::entitlements::quota::{QuotaUsage, State, value};
use crate::entitlements::sql::assignments::{self, Assignment, Filter};
use crate::entitlements::sql::counters::{self, Range};
use crate::entitlements::sql::plans;
use crate::error::Error;
use crate::metering::calendar::Zone;
use crate::metering::meter::Meter;
use crate::metering::rollup::Part;
use crate::metering::time::{Timestamp, Window};
use crate::meters;

/// One limit, measured in the window that holds an instant.
#[derive(Clone, Debug)]
pub struct Item {
    /// Its period names its zone, where it has one.
    pub limit: Limit,
    pub window: Window,
    /// When more becomes free.
    pub reset_at: Timestamp,
    pub measure: QuotaUsage,
    pub meter: std::sync::Arc<Meter>,
    pub event_count: i64,
}

type Meters = HashMap<i64, std::sync::Arc<Meter>>;

fn meters_of(conn: &mut Conn, plans: &[&Plan]) -> Result<Meters, DbError> {
    let Some(plan) = plans.first() else { return Ok(Meters::new()) };
    let ids: Vec<i64> =
        plans.iter().flat_map(|plan| plan.limits.iter().map(|limit| limit.meter_id)).collect();
    let found = meters::sql::find_by_ids(conn, plan.workspace_id, &ids)?;
    Ok(found.into_iter().map(|meter| (meter.id, meter.into())).collect())
}

/// Measures limits for a subject whose periods are counted from `anchor`, or as days are in `home`.
fn ranges(subject_id: i64, anchor: Timestamp, home: &Zone, limits: &[Limit], at: Timestamp) -> Vec<Range> {
    let range = |limit: &Limit| Range::at((subject_id, limit.meter_id), &limit.period, anchor, home, at);
    limits.iter().map(range).collect()
}

fn item(
    limit: &Limit,
    home: &Zone,
    range: &Range,
    part: Option<&Part>,
    meters: &Meters,
) -> Result<Item, DbError> {
    let gone = || Error::internal("a plan limits a meter that is gone");
    let meter = meters.get(&limit.meter_id).ok_or_else(gone)?.clone();
    let current = value(part, meter.aggregation, range.window);
    Ok(Item {
        limit: Limit { period: limit.period.in_zone(home), ..limit.clone() },
        window: range.window,
        reset_at: limit.period.reset_at(range.window, part),
        measure: QuotaUsage::against(limit, current),
        meter,
        event_count: part.map_or(0, |part| part.count),
    })
}

/// The plan in force for a subject and where it stands with each limit; `None` without a plan.
pub fn of_subject(
    conn: &mut Conn,
    workspace_id: i64,
    subject: &str,
    now: Timestamp,
) -> Result<Option<(Plan, Vec<Item>)>, DbError> {
    let Some(subject_id) = assignments::find_subject(conn, workspace_id, subject)? else { return Ok(None) };
    let history = assignments::history(conn, subject_id)?;
    let Some(span) = effective(&history, now) else { return Ok(None) };
    let Some(plan) = plans::find_by_ids(conn, &[span.plan_id])?.remove(&span.plan_id) else {
        return Ok(None);
    };
    let plan = Plan::clone(&plan);
    let meters = meters_of(conn, &[&plan])?;
    let ranges = ranges(subject_id, span.anchor, &span.zone, &plan.limits, now);
    let counted = counters::load(conn, &ranges)?;
    let items = plan.limits.iter().zip(&ranges).zip(&counted);
    let items: Result<Vec<Item>, DbError> =
        items.map(|((limit, range), part)| item(limit, &span.zone, range, part.as_ref(), &meters)).collect();
    Ok(Some((plan, items?)))
}

/// What a proposed version would mean.
#[derive(Debug)]
pub struct Preview {
    pub current: Plan,
    pub proposed: Plan,
    /// All subjects, also those that are not listed.
    pub subjects: usize,
    /// Subjects whose worst proposed state is ok, warning, exceeded.
    pub states: [usize; 3],
    pub removed_limits: usize,
    pub impacts: Vec<Impact>,
}

/// One subject under both versions.
#[derive(Debug)]
pub struct Impact {
    pub assignment: Assignment,
    pub changes: Vec<Change>,
}

#[derive(Debug)]
pub struct Change {
    /// Measured by the proposed limit, or by the existing one where it is removed.
    pub item: Item,
    pub existing: Option<(Limit, State)>,
    pub removed: bool,
}

/// Subjects named in one preview; the summary counts all of them.
const SUBJECTS_LISTED: usize = 1_000;
const ASSIGNMENTS_MAX: i64 = i64::MAX;
/// Windows read with one statement: a year of one is up to 366 rows.
const RANGES_AT_ONCE: usize = 1_000;

pub fn preview(conn: &mut Conn, current: Plan, proposed: Plan, now: Timestamp) -> Result<Preview, DbError> {
    let filter = Filter { plan_id: current.public_id.clone(), ..Filter::default() };
    let assignments = assignments::list(conn, current.workspace_id, &filter, now, ASSIGNMENTS_MAX)?;
    let meters = meters_of(conn, &[&current, &proposed])?;
    let removed: Vec<Limit> = current
        .limits
        .iter()
        .filter(|limit| proposed.limit(limit.meter_id, &limit.period).is_none())
        .cloned()
        .collect();
    let limits: Vec<Limit> = proposed.limits.iter().chain(&removed).cloned().collect();
    let mut preview = Preview {
        subjects: assignments.len(),
        states: [0; 3],
        removed_limits: removed.len() * assignments.len(),
        impacts: Vec::new(),
        current,
        proposed,
    };
    let per_subject = limits.len().max(1);
    let at_once = (RANGES_AT_ONCE / per_subject).max(1);
    for some in assignments.chunks(at_once) {
        let of_one = |one: &Assignment| ranges(one.subject_id, one.anchor, &one.zone, &limits, now);
        let ranges: Vec<Range> = some.iter().flat_map(of_one).collect();
        let counted = counters::load(conn, &ranges)?;
        let measured = ranges.chunks(per_subject).zip(counted.chunks(per_subject));
        for (assignment, (ranges, counted)) in some.iter().zip(measured) {
            let mut changes = Vec::with_capacity(limits.len());
            for ((limit, range), part) in limits.iter().zip(ranges).zip(counted) {
                let item = item(limit, &assignment.zone, range, part.as_ref(), &meters)?;
                changes.push(change(&preview, limit, item));
            }
            preview.add(assignment, changes);
        }
    }
    Ok(preview)
}

impl Preview {
    fn add(&mut self, assignment: &Assignment, changes: Vec<Change>) {
        let worst =
            changes.iter().filter(|change| !change.removed).map(|change| change.item.measure.state).max();
        match worst {
            Some(State::Exceeded) => self.states[2] += 1,
            Some(State::Warning) => self.states[1] += 1,
            _ => self.states[0] += 1,
        }
        if self.impacts.len() < SUBJECTS_LISTED {
            self.impacts.push(Impact { assignment: assignment.clone(), changes });
        }
    }
}

fn change(preview: &Preview, limit: &Limit, item: Item) -> Change {
    let (meter_id, period) = (limit.meter_id, &limit.period);
    let existing = preview
        .current
        .limit(meter_id, period)
        .map(|limit| (limit.clone(), QuotaUsage::against(limit, item.measure.current.clone()).state));
    Change { removed: preview.proposed.limit(meter_id, period).is_none(), existing, item }
}
