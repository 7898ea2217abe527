//! A value against a limit: state, remaining, overage, percent (jobs.md 4.5), the answer to "may I use more?" (4.6)
//! and the transitions that are worth an event (4.8).

use serde::Serialize;
use utoipa::ToSchema;

use crate::entitlements::period::{Period, WindowInput};
use crate::entitlements::plan::{Limit, Plan};
use crate::metering::meter::Aggregation;
use crate::metering::quantity::Quantity;
use crate::metering::rollup::Part;
use crate::metering::time::{SECOND, Timestamp, Window};
use crate::string_enum::string_enum;

string_enum!(
    /// Where a subject stands with a limit; the last two where there is none.
    State { Ok = "ok", Warning = "warning", Exceeded = "exceeded", NoPlan = "no_plan", NotInPlan = "not_in_plan" }
);
string_enum!(Transition { Warning = "warning", Exceeded = "exceeded", Recovered = "recovered" });

/// A value measured against a limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuotaUsage {
    pub state: State,
    pub current: Quantity,
    pub remaining: Quantity,
    pub overage: Quantity,
    pub percent: Quantity,
}

impl QuotaUsage {
    pub fn of(current: Quantity, limit: &Quantity, warning_percent: &Quantity) -> Self {
        let rest = limit - &current;
        let (remaining, overage) =
            if rest.is_positive() { (rest, Quantity::zero()) } else { (Quantity::zero(), &current - limit) };
        let hundred = Quantity::from(100);
        // compared as products: a rounded quotient must not decide
        let state = if current >= *limit {
            State::Exceeded
        } else if &current * &hundred >= warning_percent * limit {
            State::Warning
        } else {
            State::Ok
        };
        let percent = (&current * &hundred).divide(limit);
        QuotaUsage { state, current, remaining, overage, percent }
    }

    pub fn against(limit: &Limit, current: Quantity) -> Self {
        QuotaUsage::of(current, &limit.quantity, &limit.warning_percent)
    }
}

/// The value of a counter in a window; nothing counted is 0.
pub fn value(part: Option<&Part>, aggregation: Aggregation, window: Window) -> Quantity {
    part.map_or_else(Quantity::zero, |part| part.value(aggregation, window.length()))
}

/// What kind of event a change of state is, if any; `before` is `None` for the first evaluation.
pub fn transition(before: Option<State>, after: State) -> Option<Transition> {
    match (before, after) {
        (before, after) if before == Some(after) => None,
        (_, State::Warning) => Some(Transition::Warning),
        (_, State::Exceeded) => Some(Transition::Exceeded),
        (Some(State::Warning | State::Exceeded), State::Ok) => Some(Transition::Recovered),
        _ => None,
    }
}

/// Beside a stored state and its events. Clients show and compare these texts (jobs.md 4.6).
pub fn state_message(state: State) -> &'static str {
    match state {
        State::Exceeded => "quota exceeded",
        State::Warning => "quota warning threshold reached",
        _ => "quota is available",
    }
}

/// One limit that a check has to look at, with what is counted in its window now.
pub struct Candidate<'a> {
    pub limit: &'a Limit,
    /// That of the limit, in the zone of the assignment.
    pub period: Period,
    pub window: Window,
    pub counted: Option<Part>,
}

impl Candidate<'_> {
    fn reset_at(&self) -> Timestamp {
        self.period.reset_at(self.window, self.counted.as_ref())
    }
}

/// The answer to a check (rest.md 12.11); fields in wire order.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Check {
    pub allowed: bool,
    pub state: State,
    pub subject: String,
    pub meter: String,
    pub quantity: Quantity,
    pub current: Quantity,
    pub limit: Quantity,
    pub remaining: Quantity,
    pub overage: Quantity,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plan_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plan_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub period: Option<Period>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<WindowInput>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub period_reset_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after_seconds: Option<i64>,
    pub message: &'static str,
}

impl Check {
    /// Without a plan, or with one (`plan`) that does not limit the meter: no, and no numbers.
    pub fn without_limit(subject: String, meter: String, quantity: Quantity, plan: Option<&Plan>) -> Self {
        let (state, message) = match plan {
            None => (State::NoPlan, "the subject has no plan"),
            Some(_) => (State::NotInPlan, "the plan does not include the meter"),
        };
        let zero = Quantity::zero;
        Check {
            allowed: false,
            state,
            subject,
            meter,
            quantity,
            current: zero(),
            limit: zero(),
            remaining: zero(),
            overage: zero(),
            plan_id: plan.map(|plan| plan.public_id.clone()),
            plan_name: plan.map(|plan| plan.name.clone()),
            period: None,
            window: None,
            from: None,
            to: None,
            period_reset_at: None,
            retry_after_seconds: None,
            message,
        }
    }

    /// Judges all limits of the meter and answers with the tightest: one that refuses before one that does not, of
    /// several the one that refuses longest, else the one that is used up most.
    pub fn of(
        subject: String,
        meter: String,
        quantity: Quantity,
        plan: &Plan,
        aggregation: Aggregation,
        candidates: &[Candidate],
        now: Timestamp,
    ) -> Self {
        let judged = candidates.iter().map(|candidate| {
            let current = value(candidate.counted.as_ref(), aggregation, candidate.window);
            let projected = asked_for(aggregation, candidate, &current, &quantity);
            (candidate, current, QuotaUsage::against(candidate.limit, projected))
        });
        let tightest = judged.max_by(|(a, _, x), (b, _, y)| {
            tightness(x.overage.is_positive(), a.reset_at(), &x.percent).cmp(&tightness(
                y.overage.is_positive(),
                b.reset_at(),
                &y.percent,
            ))
        });
        let Some((candidate, current, measure)) = tightest else {
            return Check::without_limit(subject, meter, quantity, Some(plan));
        };
        let allowed = !measure.overage.is_positive();
        let (window, reset_at) = (candidate.window, candidate.reset_at());
        Check {
            allowed,
            state: measure.state,
            current,
            limit: candidate.limit.quantity.clone(),
            remaining: measure.remaining,
            overage: measure.overage,
            window: candidate.period.described(),
            period: Some(candidate.period.clone()),
            from: Some(window.from),
            to: Some(window.to),
            period_reset_at: Some(reset_at),
            retry_after_seconds: (!allowed).then(|| seconds_until(reset_at, now)).flatten(),
            message: message(allowed, measure.state),
            ..Check::without_limit(subject, meter, quantity, Some(plan))
        }
    }
}

/// Orders limits, the one to report last. Among refusing ones only the reset of the last tells when to try again.
pub fn tightness(
    refuses: bool,
    reset_at: Timestamp,
    percent: &Quantity,
) -> (bool, Option<Timestamp>, Quantity) {
    (refuses, refuses.then_some(reset_at), percent.clone())
}

/// Whole seconds until then, rounded up; `None` for the past.
pub fn seconds_until(at: Timestamp, now: Timestamp) -> Option<i64> {
    let left = at.0 - now.0;
    (left > 0).then(|| (left + SECOND - 1) / SECOND)
}

/// Clients show and compare these texts (jobs.md 4.6).
pub fn message(allowed: bool, state: State) -> &'static str {
    match (allowed, state) {
        (false, _) => "quota would be exceeded",
        (true, State::Exceeded) => "quota is available; quota limit reached",
        (true, State::Warning) => "quota is available; warning threshold reached",
        (true, _) => "quota is available",
    }
}

/// The value after the quantity asked for: more of it where values add up, one event of that quantity elsewhere.
fn asked_for(
    aggregation: Aggregation,
    candidate: &Candidate,
    current: &Quantity,
    quantity: &Quantity,
) -> Quantity {
    let Some(part) = &candidate.counted else {
        return match aggregation {
            Aggregation::Rate => per_window(quantity, candidate.window),
            _ => quantity.clone(),
        };
    };
    match aggregation {
        Aggregation::Sum | Aggregation::Count => current + quantity,
        Aggregation::Avg => (&part.sum + quantity).divide(&Quantity::from(part.count + 1)),
        Aggregation::Min => quantity.min(current).clone(),
        Aggregation::Max => quantity.max(current).clone(),
        Aggregation::First => current.clone(),
        Aggregation::Last => quantity.clone(),
        Aggregation::Rate => {
            let events = &Quantity::from(part.count) + quantity;
            per_window(&events, candidate.window)
        }
        // no plan limits these
        Aggregation::UniqueCount
        | Aggregation::Percentile
        | Aggregation::WeightedSum
        | Aggregation::LatestSum
        | Aggregation::Stddev => current.clone(),
    }
}

fn per_window(events: &Quantity, window: Window) -> Quantity {
    (events * &Quantity::from(SECOND)).divide(&Quantity::from(window.length()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entitlements::plan::{Enforcement, FailurePolicy};
    use crate::metering::calendar::Zone;
    use crate::metering::time::DAY;
    use uuid::Uuid;

    fn q(text: &str) -> Quantity {
        Quantity::parse(text).expect(text)
    }

    #[test]
    fn states_and_numbers() {
        let cases = [
            ("0", State::Ok, "10", "0", "0"),
            ("7.5", State::Ok, "2.5", "0", "75"),
            ("8", State::Warning, "2", "0", "80"),
            ("9.75", State::Warning, "0.25", "0", "97.5"),
            ("10", State::Exceeded, "0", "0", "100"),
            ("12.5", State::Exceeded, "0", "2.5", "125"),
        ];
        for (current, state, remaining, overage, percent) in cases {
            let measure = QuotaUsage::of(q(current), &q("10"), &q("80"));
            let want = QuotaUsage {
                state,
                current: q(current),
                remaining: q(remaining),
                overage: q(overage),
                percent: q(percent),
            };
            assert_eq!(measure, want, "{current}");
        }
        // a third of the limit rounds down, but is no less than a third
        assert_eq!(
            QuotaUsage::of(q("1"), &q("3"), &q("33.333333333333333333333333333333333333")).state,
            State::Warning
        );
    }

    #[test]
    fn transitions() {
        use State::*;
        let cases = [
            (None, Ok, None),
            (None, Warning, Some(Transition::Warning)),
            (None, Exceeded, Some(Transition::Exceeded)),
            (Some(Ok), Ok, None),
            (Some(Ok), Warning, Some(Transition::Warning)),
            (Some(Ok), Exceeded, Some(Transition::Exceeded)),
            (Some(Warning), Warning, None),
            (Some(Warning), Exceeded, Some(Transition::Exceeded)),
            (Some(Warning), Ok, Some(Transition::Recovered)),
            (Some(Exceeded), Warning, Some(Transition::Warning)),
            (Some(Exceeded), Ok, Some(Transition::Recovered)),
            (Some(Exceeded), Exceeded, None),
        ];
        for (before, after, want) in cases {
            assert_eq!(transition(before, after), want, "{before:?} to {after:?}");
        }
    }

    fn limit(period: Period, quantity: &str) -> Limit {
        Limit {
            public_id: String::new(),
            meter_id: 1,
            meter: "m".into(),
            period,
            quantity: q(quantity),
            warning_percent: q("80"),
            enforcement: Enforcement::Advisory,
            failure_policy: FailurePolicy::FailOpen,
            created_at: Timestamp(0),
        }
    }

    fn plan() -> Plan {
        Plan {
            id: 1,
            public_id: "p".into(),
            workspace_id: 1,
            name: "plan".into(),
            description: String::new(),
            version: 1,
            parent_id: None,
            is_current: true,
            limits: Vec::new(),
            created_at: Timestamp(0),
            updated_at: Timestamp(0),
        }
    }

    fn ask(aggregation: Aggregation, quantity: &str, limits: &[(Period, &str, &[&str])]) -> Check {
        let limits: Vec<(Limit, &[&str])> =
            limits.iter().map(|(period, most, used)| (limit(period.clone(), most), *used)).collect();
        let candidates: Vec<Candidate> = limits
            .iter()
            .map(|(limit, used)| {
                let mut counted: Option<Part> = None;
                for (at, used) in used.iter().enumerate() {
                    let part = Part::of(Timestamp(at as i64), Uuid::from_u128(at as u128), &q(used));
                    match &mut counted {
                        Some(whole) => whole.add(&part),
                        None => counted = Some(part),
                    }
                }
                let window = limit.period.window(Timestamp(0), &Zone::UTC, Timestamp(10));
                Candidate { limit, period: limit.period.clone(), window, counted }
            })
            .collect();
        Check::of("s".into(), "m".into(), q(quantity), &plan(), aggregation, &candidates, Timestamp(10))
    }

    #[test]
    fn the_limit_itself_may_be_reached() {
        let check = |quantity| ask(Aggregation::Sum, quantity, &[(Period::DAY, "10", &["3"])]);
        let shown =
            |check: &Check| (check.allowed, check.state, check.remaining.to_json(), check.overage.to_json());
        assert_eq!(shown(&check("4")), (true, State::Ok, "3".into(), "0".into()));
        assert_eq!(shown(&check("5")), (true, State::Warning, "2".into(), "0".into()));
        assert_eq!(shown(&check("7")), (true, State::Exceeded, "0".into(), "0".into()));
        assert_eq!(shown(&check("7.5")), (false, State::Exceeded, "0".into(), "0.5".into()));
        assert_eq!(check("7").retry_after_seconds, None);
        assert_eq!(check("8").retry_after_seconds, Some(DAY / SECOND));
    }

    #[test]
    fn the_tightest_limit_answers() {
        let behind =
            ask(Aggregation::Sum, "1", &[(Period::DAY, "1000", &["1"]), (Period::MONTH, "1", &["1"])]);
        assert_eq!((behind.allowed, behind.period), (false, Some(Period::MONTH)));
        let both = ask(Aggregation::Sum, "5", &[(Period::YEAR, "1", &[]), (Period::DAY, "1", &[])]);
        assert_eq!(both.period, Some(Period::YEAR), "trying again before the year ends would be refused");
        let room = ask(Aggregation::Sum, "1", &[(Period::DAY, "10", &[]), (Period::MONTH, "100", &["90"])]);
        assert_eq!((room.allowed, room.period), (true, Some(Period::MONTH)));
    }

    #[test]
    fn not_everything_adds_up() {
        let allowed =
            |aggregation, quantity| ask(aggregation, quantity, &[(Period::DAY, "10", &["4", "8"])]).allowed;
        assert!(!allowed(Aggregation::Sum, "1"));
        assert!(allowed(Aggregation::Count, "8") && !allowed(Aggregation::Count, "9"));
        assert!(allowed(Aggregation::Max, "10") && !allowed(Aggregation::Max, "11"));
        assert!(allowed(Aggregation::Min, "100"));
        assert!(allowed(Aggregation::Last, "10") && !allowed(Aggregation::Last, "11"));
        assert!(allowed(Aggregation::First, "100"));
        assert!(allowed(Aggregation::Avg, "18") && !allowed(Aggregation::Avg, "18.1"));
        assert!(allowed(Aggregation::Rate, "800000") && !allowed(Aggregation::Rate, "900000"));
    }
}
