//! Evaluates a subject's limits on a meter: which windows are open, what they came to, which states follow. Reads what
//! is true now and writes what differs, so doing it twice, late or out of turn is harmless.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use crate::db::{Conn, DbError};
use crate::entitlements::assignment::{AssignmentPeriod, assignment_for_event, effective, next_change};
use crate::entitlements::counting;
use crate::entitlements::jobs::Evaluation;
use crate::entitlements::period::Period;
use crate::entitlements::plan::{Limit, Plan};
use crate::entitlements::quota::{QuotaUsage, State, transition, value};
use crate::entitlements::sql::assignments;
use crate::entitlements::sql::counters::{self, Range};
use crate::entitlements::sql::plans::{self, word};
use crate::entitlements::sql::states::{self, Standing, StateRow};
use crate::jobs::dead_letters::DeadLetter;
use crate::metering::calendar::Zone;
use crate::metering::meter::Meter;
use crate::metering::rollup::Part;
use crate::metering::time::{DAY, HOUR, Timestamp, Window};
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
    /// Plans of which a limit on the meter cannot be read.
    unread: HashSet<i64>,
    now: Timestamp,
}

/// One window of one period of the subject.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    anchor: Timestamp,
    /// Names its zone, where it has one.
    period: Period,
    from: Timestamp,
    to: Timestamp,
}

impl Place {
    fn window(&self) -> Window {
        Window { from: self.from, to: self.to }
    }
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
    let (plans, unread) = plans::find_readable(conn, &ids.into_iter().collect::<Vec<_>>())?;
    let damaged = unread.into_iter().filter(|(_, limits)| limits.iter().any(|(id, _)| *id == meter_id));
    let unread: HashSet<i64> = damaged.map(|(plan_id, _)| plan_id).collect();
    let subject = Subject { workspace_id, subject_id, meter: &meter, history, plans, unread, now };
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
        self.limits(last.plan_id).find(|(_, limit)| limit.period.in_zone(&last.zone) == place.period)
    }

    fn place(&self, span: &AssignmentPeriod, period: &Period, at: Timestamp) -> Place {
        let Window { from, to } = period.window(span.anchor, &span.zone, at);
        Place { anchor: span.anchor, period: period.in_zone(&span.zone), from, to }
    }

    /// Windows that a late event counts in.
    fn places_of(&self, at: Timestamp) -> BTreeSet<Place> {
        let Some(span) = assignment_for_event(&self.history, at) else { return BTreeSet::new() };
        let periods = counting::periods(&self.history, &self.plans, self.meter.id, span.anchor);
        let places = periods.into_iter().filter(Period::has_snapshots);
        places.map(|period| self.place(span, &period, at)).filter(|place| place.from <= self.now).collect()
    }

    /// Windows that were open at some time since.
    fn places_since(&self, since: Timestamp) -> BTreeSet<Place> {
        let mut places = BTreeSet::new();
        for span in self.history.iter().filter(|span| span.starts_at <= self.now) {
            let end = span.ends_at.map_or(self.now, |end| end.min(self.now));
            if end < since {
                continue;
            }
            for (_, limit) in self.limits(span.plan_id).filter(|(_, limit)| limit.period.has_snapshots()) {
                let mut place = self.place(span, &limit.period, since.max(span.starts_at));
                while places.len() < WINDOWS_MAX {
                    let to = place.to;
                    places.insert(place);
                    if to > end {
                        break;
                    }
                    place = self.place(span, &limit.period, to);
                }
            }
        }
        places
    }

    fn count(&self, conn: &mut Conn, places: &[Place]) -> Result<Vec<Option<Part>>, DbError> {
        let range = |place: &Place| {
            // each period names its zone
            Range::of(self.who(), &place.period, place.anchor, &Zone::UTC, place.window())
        };
        counters::load(conn, &places.iter().map(range).collect::<Vec<_>>())
    }

    fn who(&self) -> (i64, i64) {
        (self.subject_id, self.meter.id)
    }

    /// Records what these windows came to. Windows without usage have no snapshot.
    fn write_snapshots(&self, conn: &mut Conn, places: BTreeSet<Place>) -> Result<(), DbError> {
        let places: Vec<Place> = places.into_iter().collect();
        let counted = self.count(conn, &places)?;
        for (place, part) in places.iter().zip(counted) {
            let (Some(part), Some((plan, limit))) = (part, self.limit_of(place)) else { continue };
            let current = value(Some(&part), self.meter.aggregation, place.window());
            let measure = QuotaUsage::against(limit, current);
            states::put_snapshot(
                conn,
                &self.standing(plan, limit, &place.period, &measure),
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
        let mut seen = BTreeSet::new();
        // two limits may come to the same windows, once the zone of the subject is known: the first one is evaluated
        let limits: Vec<(&Plan, &Limit)> = self
            .limits(span.plan_id)
            .filter(|(_, limit)| seen.insert(limit.period.in_zone(&span.zone)))
            .collect();
        let places: Vec<Place> =
            limits.iter().map(|(_, limit)| self.place(span, &limit.period, self.now)).collect();
        let kept: Vec<&str> = places.iter().map(|place| place.period.as_str()).collect();
        // what cannot be read may be the limit of a state, and need counters
        if !self.unread.contains(&span.plan_id) {
            states::remove(conn, self.subject_id, self.meter.id, &kept)?;
            self.forget(conn)?;
        }
        let counted = self.count(conn, &places)?;
        let mut moves: Vec<Timestamp> = Vec::new();
        for (((plan, limit), place), part) in limits.into_iter().zip(&places).zip(counted) {
            moves.extend(self.next_move(conn, place, part.as_ref())?);
            let measure =
                QuotaUsage::against(limit, value(part.as_ref(), self.meter.aggregation, place.window()));
            let previous = before.iter().find(|state| state.period == place.period.as_str());
            let previous = previous.map(|row| word(State::parse(&row.state), &row.state)).transpose()?;
            let standing = self.standing(plan, limit, &place.period, &measure);
            states::put_state(conn, &standing)?;
            if let Some(kind) = transition(previous, measure.state) {
                states::add_event(conn, &standing, previous, kind)?;
            }
        }
        Ok(moves.into_iter().min())
    }

    /// When a window changes by itself: it ends, or one with events in it begins that are dated ahead.
    fn next_move(
        &self,
        conn: &mut Conn,
        place: &Place,
        part: Option<&Part>,
    ) -> Result<Option<Timestamp>, DbError> {
        let Place { period, anchor, to, .. } = place;
        let over = part.map(|_| period.reset_at(place.window(), part));
        // one that slides may change all the time: it is looked at sixty times while it moves by its length
        let soonest = self.now.plus(period.horizon().map_or(0, |width| width / 60));
        let series = period.finest(&Zone::UTC);
        let ahead = counters::first_day(conn, self.who(), *anchor, &series, *to)?;
        let begins = ahead.map(|at| match period.horizon() {
            Some(_) => at,
            None => period.window(*anchor, &Zone::UTC, at).from,
        });
        Ok([over, begins].into_iter().flatten().min().map(|at| at.max(soonest)))
    }

    /// Removes counters that no sliding window needs any more.
    fn forget(&self, conn: &mut Conn) -> Result<(), DbError> {
        let limits = self.history.iter().flat_map(|span| self.limits(span.plan_id));
        match limits.filter_map(|(_, limit)| limit.period.horizon()).max() {
            Some(width) => {
                // a coarse counter begins up to a day before the window
                let before = self.now.plus(-width - DAY - STRAGGLERS);
                counters::forget_slides(conn, self.who(), before)
            }
            None => Ok(()),
        }
    }

    fn standing<'s>(
        &self,
        plan: &Plan,
        limit: &'s Limit,
        period: &'s Period,
        measure: &'s QuotaUsage,
    ) -> Standing<'s> {
        Standing {
            workspace_id: self.workspace_id,
            subject_id: self.subject_id,
            meter_id: self.meter.id,
            plan_id: plan.id,
            limit,
            period,
            measure,
            at: self.now,
        }
    }
}
