//! Evaluates a subject's limits on a meter: which windows are open, what they came to, which states follow. Reads what
//! is true now and writes what differs, so doing it twice, late or out of turn is harmless.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use crate::db::{Conn, DbError};
use crate::entitlements::assignment::{AssignmentPeriod, assignment_for_event, effective, next_change};
use crate::entitlements::jobs::Evaluation;
use crate::entitlements::period::Period;
use crate::entitlements::plan::{Limit, Plan};
use crate::entitlements::quota::{QuotaUsage, State, transition, value};
use crate::entitlements::sql::assignments;
use crate::entitlements::sql::counters::{self, Range};
use crate::entitlements::sql::plans::{self, word};
use crate::entitlements::sql::states::{self, Standing, StateRow};
use crate::jobs::queue::DeadLetter;
use crate::metering::meter::Meter;
use crate::metering::rollup::Part;
use crate::metering::time::{HOUR, Timestamp, Window};
use crate::meters;

/// An event may be stored this long after the server saw it.
const STRAGGLERS: i64 = HOUR;
/// Windows that one evaluation looks back on; only a worker that was away for long meets more.
const WINDOWS_MAX: usize = 400;

/// What an evaluation knows.
struct Subject<'a> {
    workspace_id: i64,
    subject_id: i64,
    meter: &'a Meter,
    history: Vec<AssignmentPeriod>,
    plans: HashMap<i64, Arc<Plan>>,
    now: Timestamp,
}

/// One window of one period of the subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    anchor: Timestamp,
    period: Period,
    from: Timestamp,
    to: Timestamp,
}

/// Brings states and snapshots of a subject and meter up to date. Returns when they will change by themselves.
pub fn evaluate(
    conn: &mut Conn,
    workspace_id: i64,
    evaluation: &Evaluation,
    now: Timestamp,
) -> Result<Option<Timestamp>, DbError> {
    let Evaluation { subject_id, meter_id, late_at } = *evaluation;
    states::lock(conn, subject_id, meter_id)?;
    let Some(meter) = meters::sql::find_by_id(conn, meter_id)? else {
        states::remove(conn, subject_id, meter_id, &[])?;
        return Ok(None);
    };
    let history = assignments::history(conn, subject_id)?;
    let ids: BTreeSet<i64> = history.iter().map(|span| span.plan_id).collect();
    let plans = plans::find_by_ids(conn, &ids.into_iter().collect::<Vec<_>>())?;
    let subject = Subject { workspace_id, subject_id, meter: &meter, history, plans, now };
    if let Some(at) = late_at {
        let places = subject.places_of(Timestamp(at));
        subject.write_snapshots(conn, places)?;
        return Ok(None);
    }
    let before = states::load(conn, subject_id, meter_id)?;
    let evaluated_at = before.iter().map(|state| Timestamp(state.evaluated_at)).min();
    let since = evaluated_at.or_else(|| subject.history.last().map(|span| span.starts_at)).unwrap_or(now);
    subject.write_snapshots(conn, subject.places_since(since.plus(-STRAGGLERS)))?;
    let rollover = subject.write_states(conn, &before)?;
    let change = next_change(&subject.history, now);
    Ok([rollover, change].into_iter().flatten().min())
}

/// What a dead job was about and no longer exists.
pub fn what_is_gone(conn: &mut Conn, letter: &DeadLetter) -> Result<Option<&'static str>, DbError> {
    let Evaluation { subject_id, meter_id, .. } = letter.payload()?;
    if meters::sql::find_by_id(conn, meter_id)?.is_none() {
        return Ok(Some("the meter is gone"));
    }
    let has_plan = !assignments::history(conn, subject_id)?.is_empty();
    // with states left over, there still is something to put right
    let is_idle = !has_plan && states::load(conn, subject_id, meter_id)?.is_empty();
    Ok(is_idle.then_some("the plan of the subject is gone"))
}

impl Subject<'_> {
    /// Limits of the plan on the meter.
    fn limits(&self, plan_id: i64) -> impl Iterator<Item = (&Plan, &Limit)> {
        let plan = self.plans.get(&plan_id).map(Arc::as_ref);
        plan.into_iter().flat_map(|plan| plan.limits_of(self.meter.id).map(move |limit| (plan, limit)))
    }

    /// The limit of the plan that was in force last in a window.
    fn limit_of(&self, place: &Place) -> Option<(&Plan, &Limit)> {
        let last = self.history.iter().rev().filter(|span| span.starts_at <= self.now).find(|span| {
            span.anchor == place.anchor
                && span.starts_at < place.to
                && span.ends_at.is_none_or(|end| end > place.from)
        })?;
        self.limits(last.plan_id).find(|(_, limit)| limit.period == place.period)
    }

    fn place(&self, span: &AssignmentPeriod, period: Period, at: Timestamp) -> Place {
        let Window { from, to } = period.window(span.anchor, at);
        Place { anchor: span.anchor, period, from, to }
    }

    /// Windows that a late event counts in.
    fn places_of(&self, at: Timestamp) -> BTreeSet<Place> {
        let Some(span) = assignment_for_event(&self.history, at) else { return BTreeSet::new() };
        [Period::Day, Period::Week, Period::Month, Period::Year]
            .into_iter()
            .map(|period| self.place(span, period, at))
            .filter(|place| place.from <= self.now)
            .collect()
    }

    /// Windows that were open at some time since.
    fn places_since(&self, since: Timestamp) -> BTreeSet<Place> {
        let mut places = BTreeSet::new();
        for span in self.history.iter().filter(|span| span.starts_at <= self.now) {
            let end = span.ends_at.map_or(self.now, |end| end.min(self.now));
            if end < since {
                continue;
            }
            for (_, limit) in self.limits(span.plan_id) {
                let mut place = self.place(span, limit.period, since.max(span.starts_at));
                while places.len() < WINDOWS_MAX {
                    places.insert(place);
                    if place.to > end {
                        break;
                    }
                    place = self.place(span, limit.period, place.to);
                }
            }
        }
        places
    }

    fn count(&self, conn: &mut Conn, places: &[Place]) -> Result<Vec<Option<Part>>, DbError> {
        let range = |place: &Place| Range {
            subject_id: self.subject_id,
            meter_id: self.meter.id,
            anchor: place.anchor,
            window: Window { from: place.from, to: place.to },
        };
        counters::load(conn, &places.iter().map(range).collect::<Vec<_>>())
    }

    /// Records what these windows came to. Windows without usage have no snapshot.
    fn write_snapshots(&self, conn: &mut Conn, places: BTreeSet<Place>) -> Result<(), DbError> {
        let places: Vec<Place> = places.into_iter().collect();
        let counted = self.count(conn, &places)?;
        for (place, part) in places.iter().zip(counted) {
            let (Some(part), Some((plan, limit))) = (part, self.limit_of(place)) else { continue };
            let current =
                value(Some(&part), self.meter.aggregation, Window { from: place.from, to: place.to });
            let measure = QuotaUsage::against(limit, current);
            states::put_snapshot(
                conn,
                &self.standing(plan, limit, &measure),
                place.from,
                place.to,
                part.count,
            )?;
        }
        Ok(())
    }

    /// States of the limits in force, and an event for each that crossed a line; others go. Returns when the first
    /// window with usage in it ends or begins.
    fn write_states(&self, conn: &mut Conn, before: &[StateRow]) -> Result<Option<Timestamp>, DbError> {
        let Some(span) = effective(&self.history, self.now) else {
            states::remove(conn, self.subject_id, self.meter.id, &[])?;
            return Ok(None);
        };
        let limits: Vec<(&Plan, &Limit)> = self.limits(span.plan_id).collect();
        let kept: Vec<&str> = limits.iter().map(|(_, limit)| limit.period.as_str()).collect();
        states::remove(conn, self.subject_id, self.meter.id, &kept)?;
        let places: Vec<Place> =
            limits.iter().map(|(_, limit)| self.place(span, limit.period, self.now)).collect();
        let counted = self.count(conn, &places)?;
        let mut moves: Vec<Timestamp> = Vec::new();
        for (((plan, limit), place), part) in limits.into_iter().zip(&places).zip(counted) {
            moves.extend(part.is_some().then_some(place.to));
            // events may be dated ahead: their window moves the state when it begins
            let ahead = counters::first_day(conn, self.subject_id, self.meter.id, place.anchor, place.to)?;
            moves.extend(ahead.map(|day| limit.period.window(place.anchor, day).from));
            let window = Window { from: place.from, to: place.to };
            let measure = QuotaUsage::against(limit, value(part.as_ref(), self.meter.aggregation, window));
            let previous = before.iter().find(|state| state.period == limit.period.as_str());
            let previous = previous.map(|row| word(State::parse(&row.state), &row.state)).transpose()?;
            let standing = self.standing(plan, limit, &measure);
            states::put_state(conn, &standing)?;
            if let Some(kind) = transition(previous, measure.state) {
                states::add_event(conn, &standing, previous, kind)?;
            }
        }
        Ok(moves.into_iter().min())
    }

    fn standing<'s>(&self, plan: &Plan, limit: &'s Limit, measure: &'s QuotaUsage) -> Standing<'s> {
        Standing {
            workspace_id: self.workspace_id,
            subject_id: self.subject_id,
            meter_id: self.meter.id,
            plan_id: plan.id,
            limit,
            measure,
            at: self.now,
        }
    }
}
