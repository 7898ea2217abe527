//! What the use that a subject makes of a meter is counted in: the periods by which its plans limit the meter, and the series
//! that their windows are added up from. Made once for a subject, meter and anchor, because the name of a series is put
//! together. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use crate::entitlements::assignment::AssignmentPeriod;
use crate::entitlements::period::{ASSIGNED_DAYS, Cut, Period, Series, day_start};
use crate::entitlements::plan::Plan;
use crate::metering::calendar::Zone;
use crate::metering::time::Timestamp;

/// Every change of a plan leaves a version behind that a subject had: older ones are looked at until so many periods of the
/// meter are known. The version in force and one that is scheduled are within, whatever they say.
const PERIODS_MAX: usize = 64;

/// Periods by which plans on this anchor limit the meter, each in its zone: an event may be dated under one version and
/// count in a window that another one limits.
pub fn periods(
    history: &[AssignmentPeriod],
    plans: &HashMap<i64, Arc<Plan>>,
    meter_id: i64,
    anchor: Timestamp,
) -> BTreeSet<Period> {
    let mut found = BTreeSet::new();
    let mut seen = HashSet::new();
    for span in history.iter().rev().filter(|span| span.anchor == anchor) {
        if found.len() >= PERIODS_MAX {
            break;
        }
        if let Some(plan) = plans.get(&span.plan_id).filter(|_| seen.insert((span.plan_id, span.zone.name())))
        {
            found.extend(plan.limits_of(meter_id).map(|limit| limit.period.in_zone(&span.zone)));
        }
    }
    found
}

/// The series of a subject, meter and anchor.
pub struct Counting {
    anchor: Timestamp,
    /// Each once, however many periods are added up from it.
    cuts: BTreeMap<Series, Cut>,
    /// Periods by the series that holds, counter by counter, all that is in their windows.
    periods: HashMap<Series, Vec<Period>>,
}

impl Counting {
    /// The periods name their zones.
    pub fn of(periods: BTreeSet<Period>, anchor: Timestamp) -> Counting {
        let mut counting = Counting { anchor, cuts: BTreeMap::new(), periods: HashMap::new() };
        for period in periods {
            let cuts = period.cuts(&Zone::UTC);
            let finest = cuts.first().map_or(ASSIGNED_DAYS, |(series, _)| series.clone());
            counting.cuts.extend(cuts);
            counting.periods.entry(finest).or_default().push(period);
        }
        counting
    }

    /// Everything that something of this time is counted in: a series, and where its counter begins.
    pub fn cells(&self, time: Timestamp) -> impl Iterator<Item = (Series, Timestamp)> {
        let more = self.cuts.iter().map(move |(series, cut)| (series.clone(), cut.start(time)));
        std::iter::once((ASSIGNED_DAYS, day_start(self.anchor, time))).chain(more)
    }

    /// Periods to whose windows the counters of this series lead.
    pub fn counted_in(&self, series: &str) -> &[Period] {
        self.periods.get(series).map_or(&[], Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entitlements::period::WindowInput;
    use crate::entitlements::plan::{Draft, Limit};
    use crate::metering::time::{DAY, HOUR};

    const METER: i64 = 7;

    fn period(word: &str, kind: &str, zone: &str, anchor: &str) -> Period {
        let window = WindowInput {
            kind: kind.to_owned(),
            time_zone: zone.to_owned(),
            anchor: anchor.to_owned(),
            ..WindowInput::default()
        };
        Period::read(word, Some(&window)).expect("a period")
    }

    fn plan(id: i64, periods: impl IntoIterator<Item = Period>) -> (i64, Arc<Plan>) {
        let input = r#"{"name":"p","limits":[{"meter":"m","limit":1}]}"#;
        let draft =
            Draft::parse(serde_json::from_str(input).expect("json")).expect("a draft").limits.remove(0);
        let limit = |period| Limit {
            public_id: String::new(),
            meter_id: METER,
            meter: draft.meter.clone(),
            period,
            quantity: draft.quantity.clone(),
            warning_percent: draft.warning_percent.clone(),
            enforcement: draft.enforcement,
            failure_policy: draft.failure_policy,
            created_at: Timestamp(0),
        };
        let plan = Plan {
            id,
            public_id: String::new(),
            workspace_id: 1,
            name: String::new(),
            description: String::new(),
            version: 1,
            parent_id: None,
            is_current: true,
            limits: periods.into_iter().map(limit).collect(),
            created_at: Timestamp(0),
            updated_at: Timestamp(0),
        };
        (id, Arc::new(plan))
    }

    fn span(plan_id: i64, starts_at: i64) -> AssignmentPeriod {
        let (starts_at, ends_at) = (Timestamp(starts_at), Some(Timestamp(starts_at + 1)));
        let (anchor, zone) = (Timestamp(0), Zone::UTC);
        AssignmentPeriod { plan_id, starts_at, ends_at, anchor, zone, is_scheduled: false }
    }

    /// Thirty-two limits of a version, each with a series of its own.
    fn anchored(version: i64) -> impl Iterator<Item = Period> {
        (0..32).map(move |n| period("day", "anchored", "UTC", &format!("2026-01-01T{version:02}:00:{n:02}Z")))
    }

    #[test]
    fn each_series_is_counted_in_once() {
        let calendars = ["day", "week", "month", "quarter"].map(|word| period(word, "calendar", "UTC", ""));
        let slides = ["minute", "30min", "1h"].map(|word| period(word, "sliding", "", ""));
        let plain = [Period::DAY, Period::MONTH];
        let periods = calendars.iter().chain(&slides).chain(&plain).cloned().collect();
        let counting = Counting::of(periods, Timestamp(5));
        let at = Timestamp(3 * DAY + HOUR);
        let cells: Vec<(Series, Timestamp)> = counting.cells(at).collect();
        assert_eq!(
            cells,
            [
                (ASSIGNED_DAYS, Timestamp(3 * DAY + 5)),
                ("day UTC".into(), Timestamp(3 * DAY)),
                ("slide 1min".into(), at),
                ("slide 1s".into(), at)
            ]
        );
        let sizes =
            ["", "day UTC", "slide 1s", "slide 1min", "day Mars"].map(|s| counting.counted_in(s).len());
        assert_eq!(sizes, [2, 4, 3, 0, 0], "the periods that each series leads to");
    }

    #[test]
    fn many_versions_of_a_plan_do_not_add_up() {
        let plans: HashMap<i64, Arc<Plan>> =
            (0..20).map(|version| plan(version, anchored(version))).collect();
        let history: Vec<AssignmentPeriod> = (0..20).map(|version| span(version, version * DAY)).collect();
        let found = periods(&history, &plans, METER, Timestamp(0));
        assert_eq!(found.len(), PERIODS_MAX);
        assert!(anchored(19).chain(anchored(18)).all(|period| found.contains(&period)), "the newest two");
        assert_eq!(Counting::of(found, Timestamp(0)).cells(Timestamp(DAY)).count(), PERIODS_MAX + 1);
        assert!(periods(&history, &plans, METER + 1, Timestamp(0)).is_empty());
        assert!(periods(&history, &plans, METER, Timestamp(1)).is_empty());
        // a version is never cut, however much it says
        let large = HashMap::from([plan(1, (0..5).flat_map(anchored))]);
        assert_eq!(periods(&[span(1, 0)], &large, METER, Timestamp(0)).len(), 160);
    }
}
