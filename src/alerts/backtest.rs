//! What a rule would have done: its own state machine, run over the sums of the past. It looks on the hour or at
//! midnight, because sums of the past are kept that way; the rule itself looks more often.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::alerts::evaluate;
use crate::alerts::rule::RuleSpec;
use crate::alerts::state::{self, Group, Kind, Observation, State};
use crate::db::{Conn, DbError};
use crate::entitlements::period::Period;
use crate::error::{Error, Result};
use crate::metering::calendar::{Buckets, Calendar, Zone};
use crate::metering::meter::Meter;
use crate::metering::quantity::Quantity;
use crate::metering::rollup::Part;
use crate::metering::time::{BucketSize, DAY, HOUR, SECOND, Timestamp, Window};
use crate::usage::query::Query;
use crate::usage::{aggregate, home_zone};

/// How far back a test goes.
pub const DAYS: i64 = 28;
/// A longer window is looked at by the day.
const HOURLY_MAX: i64 = 2 * DAY;
/// The longest window of a calendar.
const CALENDAR_MAX: i64 = 93 * DAY;
/// Sums per bucket and group that one test is made of at most.
const CELLS_MAX: usize = 20_000;
const FIRINGS_MAX: usize = 1_000;

/// From when until when a rule would have fired.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Firing {
    pub group: Option<Group>,
    pub from: Timestamp,
    /// None: it would be firing now.
    pub until: Option<Timestamp>,
    /// The value that it would have fired with.
    pub value: Quantity,
}

/// What came of a test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backtest {
    pub from: Timestamp,
    pub to: Timestamp,
    /// Seconds from look to look.
    pub step_seconds: i64,
    /// The value at each look; empty for a rule with groups.
    pub values: Vec<(Timestamp, Option<Quantity>)>,
    pub firings: Vec<Firing>,
    /// There are more firings than are listed.
    pub has_more: bool,
}

/// Looks back from now; 400 for a rule that the sums of the past cannot answer for.
pub fn run(
    conn: &mut Conn,
    meter: Arc<Meter>,
    terms: &RuleSpec,
    now: Timestamp,
) -> Result<Backtest, DbError> {
    let home = home_zone::find(conn, meter.workspace_id)?;
    let frame = Frame::of(terms, &home, now)?;
    let buckets = Some(frame.buckets(terms)?);
    let query = Query { buckets, ..evaluate::query(terms, meter.clone(), frame.whole(terms))? };
    let cells = aggregate::cells(conn, &query, CELLS_MAX + 1)?;
    let mut groups: BTreeMap<String, BTreeMap<Timestamp, Part>> = BTreeMap::new();
    let mut count = 0;
    for ((start, group), part) in cells.into_cells() {
        count += 1;
        let name = state::group_name(group.into_iter().next().unwrap_or_default());
        groups.entry(name).or_default().insert(start, part);
    }
    if count > CELLS_MAX {
        return Err(Error::invalid("the rule has too many groups to be tested: choose a subject").into());
    }
    Ok(frame.play(terms, &groups, |part, length| part.value(meter.aggregation, length)))
}

/// When a test looks, and at how much.
#[derive(Clone)]
struct Frame {
    from: Timestamp,
    to: Timestamp,
    /// What it looks at is put together from these.
    calendar: Calendar,
    step: i64,
    /// Of the windows of a calendar none.
    length: i64,
    home: Zone,
}

impl Frame {
    fn of(terms: &RuleSpec, home: &Zone, now: Timestamp) -> Result<Frame> {
        if let Some(period) = &terms.period {
            return Frame::of_calendar(period, home, now);
        }
        let length = terms.window_seconds * SECOND;
        let (size, step) =
            if length <= HOURLY_MAX { (BucketSize::Hour, HOUR) } else { (BucketSize::Day, DAY) };
        if length % step != 0 {
            let words = if step == HOUR { "hours" } else { "days" };
            return Err(Error::invalid(format!(
                "window_seconds must be whole {words} to be tested: sums of the past are kept by the hour and the day"
            )));
        }
        let to = now.floor(step);
        let (calendar, home) = (Calendar::utc(size), home.clone());
        Ok(Frame { from: to.plus(-DAYS * DAY), to, calendar, step, length, home })
    }

    /// Of windows up to a day by the hour, of longer ones by the day, both counted from where the windows begin.
    fn of_calendar(period: &Period, home: &Zone, now: Timestamp) -> Result<Frame> {
        let Window { from: begin, to: end } = period.window(Timestamp(0), home, now);
        let calendar = match end.0 - begin.0 <= HOURLY_MAX {
            true => Calendar { anchor: Some(begin), ..Calendar::utc(BucketSize::Hour) },
            false => Calendar {
                zone: period.zone(home).clone(),
                anchor: Some(begin),
                ..Calendar::utc(BucketSize::Day)
            },
        };
        if calendar.around(begin).length() > end.0 - begin.0 {
            return Err(Error::invalid("period must be an hour or longer to be tested"));
        }
        if end.0 - begin.0 > CALENDAR_MAX {
            return Err(Error::invalid("period must not be longer than a quarter to be tested"));
        }
        let to = calendar.start(now);
        let from = calendar.start(to.plus(-DAYS * DAY));
        let step = if calendar.size == BucketSize::Hour { HOUR } else { DAY };
        Ok(Frame { from, to, calendar, step, length: 0, home: home.clone() })
    }

    /// What all looks together see.
    fn whole(&self, terms: &RuleSpec) -> Window {
        Window { from: self.seen_at(terms, self.from).from, to: self.to }
    }

    fn buckets(&self, terms: &RuleSpec) -> Result<Buckets> {
        match self.calendar.is_plain() {
            true => Ok(Buckets::plain(self.calendar.size)),
            false => Buckets::of(self.calendar.clone(), self.whole(terms)),
        }
    }

    /// What a look at this instant sees: a window that has just ended as a whole.
    fn seen_at(&self, terms: &RuleSpec, at: Timestamp) -> Window {
        let from = match &terms.period {
            Some(period) => period.window(Timestamp(0), &self.home, at.plus(-1)).from,
            None => at.plus(-self.length),
        };
        Window { from, to: at }
    }

    fn next(&self, at: Timestamp) -> Timestamp {
        match self.calendar.is_plain() {
            true => at.plus(self.step),
            false => self.calendar.around(at).to,
        }
    }

    /// Lets the rule look, step by step.
    fn play(
        self,
        terms: &RuleSpec,
        groups: &BTreeMap<String, BTreeMap<Timestamp, Part>>,
        value: impl Fn(&Part, i64) -> Quantity,
    ) -> Backtest {
        let mut done = Backtest {
            from: self.from,
            to: self.to,
            step_seconds: self.step / SECOND,
            values: Vec::new(),
            firings: Vec::new(),
            has_more: false,
        };
        let mut states: Vec<State> = Vec::new();
        let mut at = self.from;
        while at <= self.to {
            let seen = self.seen_at(terms, at);
            let within = seen.from..seen.to;
            let mut seen = groups.iter().filter_map(|(name, parts)| {
                let mut parts = parts.range(within.clone()).map(|(_, part)| part);
                let mut sum = parts.next()?.clone();
                parts.for_each(|part| sum.add(part));
                Some((name.clone(), value(&sum, within.end.0 - within.start.0)))
            });
            let seen = match terms.group_by {
                Some(_) => Observation::Groups(seen.collect()),
                None => {
                    let total = seen.next().map(|(_, value)| value);
                    done.values.push((at, total.clone()));
                    Observation::Total(total)
                }
            };
            let step = state::step(terms, &states, &seen, at);
            step.crossings.into_iter().for_each(|crossing| done.take(crossing.kind, crossing.state, at));
            states = step.states;
            at = self.next(at);
        }
        done
    }
}

impl Backtest {
    fn take(&mut self, kind: Kind, state: State, at: Timestamp) {
        match kind {
            Kind::Triggered if self.firings.len() == FIRINGS_MAX => self.has_more = true,
            Kind::Triggered => {
                self.firings.push(Firing { group: state.group, from: at, until: None, value: state.value });
            }
            Kind::Resolved => {
                let open = self.firings.iter_mut().rev();
                if let Some(firing) =
                    open.filter(|firing| firing.until.is_none()).find(|firing| firing.group == state.group)
                {
                    firing.until = Some(at);
                }
            }
            Kind::EvaluationFailed => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alerts::rule::RuleInput;
    use crate::metering::event::InputQuantity;
    use crate::metering::meter::Aggregation;

    fn terms(window_seconds: i64, group_by: Option<&str>) -> RuleSpec {
        RuleSpec::new(&RuleInput {
            name: Some("r".to_owned()),
            window_seconds: Some(window_seconds),
            threshold: Some(InputQuantity(Ok(Quantity::from(10)))),
            group_by: group_by.map(str::to_owned),
            ..RuleInput::default()
        })
        .expect("terms")
    }

    fn part(hour: i64, quantity: i64) -> (Timestamp, Part) {
        let at = Timestamp(hour * HOUR);
        (at, Part::of(at, uuid::Uuid::nil(), &Quantity::from(quantity)))
    }

    fn play(terms: &RuleSpec, groups: &[(&str, &[(i64, i64)])]) -> Backtest {
        let frame = Frame::of(terms, &Zone::UTC, Timestamp(1_000 * HOUR)).expect("a frame");
        let cells = |cells: &[(i64, i64)]| cells.iter().map(|(hour, n)| part(*hour, *n)).collect();
        let groups = groups.iter().map(|(name, parts)| ((*name).to_owned(), cells(parts))).collect();
        frame.play(terms, &groups, |part, length| part.value(Aggregation::Sum, length))
    }

    #[test]
    fn a_rule_fires_while_its_window_holds_enough() {
        let done = play(&terms(2 * 3600, None), &[("", &[(900, 6), (901, 6), (950, 10), (999, 12)])]);
        let times: Vec<_> =
            done.firings.iter().map(|f| (f.from.0 / HOUR, f.until.map(|until| until.0 / HOUR))).collect();
        assert_eq!(times, [(902, Some(903)), (951, Some(953)), (1_000, None)]);
        assert_eq!(done.firings[0].value, Quantity::from(12));
        assert_eq!(done.values.len() as i64, DAYS * 24 + 1);
    }

    #[test]
    fn groups_fire_for_themselves() {
        let done = play(
            &terms(3600, Some("subject")),
            &[("a", &[(900, 12)]), ("b", &[(900, 3), (960, 50)]), ("c", &[(960, 1)])],
        );
        let of = |f: &Firing| (f.group.as_ref().expect("a group").value.clone(), f.from.0 / HOUR);
        let fired: Vec<_> = done.firings.iter().map(of).collect();
        assert_eq!(fired, [("a".to_owned(), 901), ("b".to_owned(), 961)]);
        assert!(done.values.is_empty());
    }

    #[test]
    fn windows_of_a_calendar_begin_with_nothing() {
        let kolkata = Zone::parse("Asia/Kolkata").expect("a zone");
        let period = Period::read_calendar("day", None).expect("a period");
        let terms = RuleSpec { period: Some(period), ..terms(3600, None) };
        // 18:30 UTC is midnight in Kolkata
        let now = Timestamp(30 * DAY + 20 * HOUR);
        let frame = Frame::of(&terms, &kolkata, now).expect("a frame");
        let (midnight, half) = (Timestamp(20 * DAY + 18 * HOUR + HOUR / 2), HOUR / 2);
        assert_eq!((frame.to.0 % HOUR, frame.to.0 % DAY), (half, 19 * HOUR + half));
        let part = |at: Timestamp, n: i64| (at, Part::of(at, uuid::Uuid::nil(), &Quantity::from(n)));
        let cells = [part(midnight.plus(-HOUR), 12), part(midnight, 9), part(midnight.plus(HOUR), 9)];
        let groups = BTreeMap::from([(String::new(), BTreeMap::from(cells))]);
        let done = frame.play(&terms, &groups, |part, length| part.value(Aggregation::Sum, length));
        let times: Vec<_> = done.firings.iter().map(|f| (f.from, f.until)).collect();
        let fired = [
            (midnight, Some(midnight.plus(HOUR))),
            (midnight.plus(2 * HOUR), Some(midnight.plus(DAY + HOUR))),
        ];
        assert_eq!(times, fired);
    }

    #[test]
    fn what_the_sums_cannot_answer_is_told() {
        let now = Timestamp(1_000 * HOUR);
        assert!(
            Frame::of(&terms(300, None), &Zone::UTC, now)
                .is_err_and(|error| error.message.contains("whole hours"))
        );
        assert!(Frame::of(&terms(3 * 86_400 + 60, None), &Zone::UTC, now).is_err());
        let daily = Frame::of(&terms(7 * 86_400, None), &Zone::UTC, now).expect("days");
        assert_eq!((daily.step, daily.to.0 % DAY), (DAY, 0));
    }
}
