//! How far subjects are with their limits, and what a changed plan would mean for them (jobs.md 4.5 and 4.7).

use std::collections::{BTreeMap, HashMap};

use crate::db::{Conn, DbError};
use crate::entitlements::assignment::{AssignmentPeriod, effective, not_before};
use crate::entitlements::period::Period;
use crate::entitlements::plan::{Limit, Plan};
use crate::entitlements::quota::{QuotaUsage, State, value};
use crate::entitlements::sql::assignments::{self, Assignment, Filter, Holder};
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

fn measure(
    limit: &Limit,
    range: &Range,
    part: Option<&Part>,
    meters: &Meters,
) -> Result<(QuotaUsage, std::sync::Arc<Meter>), DbError> {
    let gone = || Error::internal("a plan limits a meter that is gone");
    let meter = meters.get(&limit.meter_id).ok_or_else(gone)?.clone();
    let current = value(part, meter.aggregation, range.window);
    Ok((QuotaUsage::against(limit, current), meter))
}

fn item(
    limit: &Limit,
    home: &Zone,
    range: &Range,
    part: Option<&Part>,
    meters: &Meters,
) -> Result<Item, DbError> {
    let (measure, meter) = measure(limit, range, part, meters)?;
    Ok(Item {
        limit: Limit { period: limit.period.in_zone(home), ..limit.clone() },
        window: range.window,
        reset_at: limit.period.reset_at(range.window, part),
        measure,
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
    let now = not_before(&history, now);
    let Some(span) = effective(&history, now) else { return Ok(None) };
    let Some(plan) = plans::find_by_ids(conn, &[span.plan_id])?.remove(&span.plan_id) else {
        return Ok(None);
    };
    let items = of_plan(conn, subject_id, span, &plan, now)?;
    Ok(Some((Plan::clone(&plan), items)))
}

/// Where a subject stands with each limit of the plan that it has in this stretch of its history.
pub fn of_plan(
    conn: &mut Conn,
    subject_id: i64,
    span: &AssignmentPeriod,
    plan: &Plan,
    now: Timestamp,
) -> Result<Vec<Item>, DbError> {
    let meters = meters_of(conn, &[plan])?;
    let ranges = ranges(subject_id, span.anchor, &span.zone, &plan.limits, now);
    let counted = counters::load(conn, &ranges)?;
    let items = plan.limits.iter().zip(&ranges).zip(&counted);
    items.map(|((limit, range), part)| item(limit, &span.zone, range, part.as_ref(), &meters)).collect()
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

/// Subjects named in one preview, and limits told of them all together; the summary counts everybody.
const SUBJECTS_LISTED: usize = 1_000;
const ITEMS_LISTED: usize = 20_000;
/// Subjects of a plan that are in memory at once.
const HOLDERS_AT_ONCE: i64 = 250;
/// Windows read with one statement: a year of one is up to 366 rows.
const RANGES_AT_ONCE: usize = 1_000;

/// How many subjects are listed with so many limits each.
fn listed(limits: usize) -> usize {
    (ITEMS_LISTED / limits.max(1)).clamp(1, SUBJECTS_LISTED)
}

/// A limit under both versions: that of the proposed one, or of the current one where it is removed.
struct Compared {
    limit: Limit,
    existing: Option<Limit>,
    removed: bool,
}

fn compare(current: &Plan, proposed: &Plan) -> Vec<Compared> {
    let mut existing: BTreeMap<(i64, &Period), &Limit> =
        current.limits.iter().map(|limit| ((limit.meter_id, &limit.period), limit)).collect();
    let mut compared = Vec::with_capacity(proposed.limits.len());
    for limit in &proposed.limits {
        let existing = existing.remove(&(limit.meter_id, &limit.period)).cloned();
        compared.push(Compared { limit: limit.clone(), existing, removed: false });
    }
    // in the order of the current version
    let removed = current.limits.iter().filter(|l| existing.contains_key(&(l.meter_id, &l.period)));
    compared.extend(removed.map(|limit| Compared {
        limit: limit.clone(),
        existing: Some(limit.clone()),
        removed: true,
    }));
    compared
}

/// Measures these subjects under all limits, a few with each statement; `take` is told the place of each.
fn measure_each(
    conn: &mut Conn,
    holders: &[Holder],
    compared: &[Compared],
    now: Timestamp,
    mut take: impl FnMut(usize, &[Range], &[Option<Part>]) -> Result<(), DbError>,
) -> Result<(), DbError> {
    let limits: Vec<Limit> = compared.iter().map(|compared| compared.limit.clone()).collect();
    let per_subject = limits.len().max(1);
    let at_once = (RANGES_AT_ONCE / per_subject).max(1);
    let mut at = 0;
    for some in holders.chunks(at_once) {
        let of_one = |one: &Holder| ranges(one.subject_id, one.anchor, &one.zone, &limits, now);
        let ranges: Vec<Range> = some.iter().flat_map(of_one).collect();
        let counted = counters::load(conn, &ranges)?;
        for (ranges, counted) in ranges.chunks(per_subject).zip(counted.chunks(per_subject)) {
            take(at, ranges, counted)?;
            at += 1;
        }
    }
    Ok(())
}

/// What a proposed version would mean. Read at one instant.
pub fn preview(conn: &mut Conn, current: Plan, proposed: Plan, now: Timestamp) -> Result<Preview, DbError> {
    let meters = meters_of(conn, &[&current, &proposed])?;
    let compared = compare(&current, &proposed);
    let mut preview =
        Preview { subjects: 0, states: [0; 3], removed_limits: 0, impacts: Vec::new(), current, proposed };
    let mut after = i64::MIN;
    loop {
        let holders = assignments::holders(conn, preview.current.id, now, after, HOLDERS_AT_ONCE)?;
        let Some(last) = holders.last() else { break };
        after = last.id;
        preview.subjects += holders.len();
        measure_each(conn, &holders, &compared, now, |_, ranges, counted| {
            preview.count(&compared, ranges, counted, &meters)
        })?;
    }
    preview.removed_limits = compared.iter().filter(|row| row.removed).count() * preview.subjects;
    preview.list(conn, &compared, &meters, now)?;
    Ok(preview)
}

impl Preview {
    /// Counts a subject.
    fn count(
        &mut self,
        compared: &[Compared],
        ranges: &[Range],
        counted: &[Option<Part>],
        meters: &Meters,
    ) -> Result<(), DbError> {
        let mut worst = None;
        for ((row, range), part) in
            compared.iter().zip(ranges).zip(counted).filter(|((row, _), _)| !row.removed)
        {
            worst = worst.max(Some(measure(&row.limit, range, part.as_ref(), meters)?.0.state));
        }
        match worst {
            Some(State::Exceeded) => self.states[2] += 1,
            Some(State::Warning) => self.states[1] += 1,
            _ => self.states[0] += 1,
        }
        Ok(())
    }

    /// Names the first subjects, as many as there is room for.
    fn list(
        &mut self,
        conn: &mut Conn,
        compared: &[Compared],
        meters: &Meters,
        now: Timestamp,
    ) -> Result<(), DbError> {
        let filter = Filter { plan_id: self.current.public_id.clone(), ..Filter::default() };
        let most = listed(compared.len()) as i64;
        let first = assignments::list(conn, self.current.workspace_id, &filter, now, most)?;
        let holders: Vec<Holder> = first.iter().map(holder).collect();
        let impacts = &mut self.impacts;
        measure_each(conn, &holders, compared, now, |at, ranges, counted| {
            let Some(assignment) = first.get(at) else { return Ok(()) };
            let rows = compared.iter().zip(ranges).zip(counted);
            let changes = rows.map(|((compared, range), part)| {
                let item = item(&compared.limit, &assignment.zone, range, part.as_ref(), meters)?;
                Ok(compared.change(item))
            });
            let changes = changes.collect::<Result<_, DbError>>()?;
            impacts.push(Impact { assignment: assignment.clone(), changes });
            Ok(())
        })
    }
}

/// Whoever has an assignment, which is told from others by its place here.
fn holder(assignment: &Assignment) -> Holder {
    let Assignment { subject_id, anchor, zone, .. } = assignment;
    Holder { id: 0, subject_id: *subject_id, anchor: *anchor, zone: zone.clone() }
}

impl Compared {
    fn change(&self, item: Item) -> Change {
        let state = |limit: &Limit| QuotaUsage::against(limit, item.measure.current.clone()).state;
        let existing = self.existing.as_ref().map(|limit| (limit.clone(), state(limit)));
        Change { removed: self.removed, existing, item }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_plans_are_shown_with_fewer_subjects() {
        let shown = [0, 1, 20, 21, 1_000, 2_000, 30_000].map(listed);
        assert_eq!(shown, [1_000, 1_000, 1_000, 952, 20, 10, 1]);
    }
}
