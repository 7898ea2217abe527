//! Atomic consumption: whether one more event fits, judged on the value with the event in it (jobs.md 4.10), and what
//! happens when that cannot be known. The store calls [`judge`] under the subject's lock; nothing here knows of other
//! callers.

use serde::Serialize;
use utoipa::ToSchema;

use crate::entitlements::period::{Period, WindowInput};
use crate::entitlements::plan::{Enforcement, FailurePolicy, Limit, Plan};
use crate::entitlements::quota::{QuotaUsage, State, message, seconds_until, tightness, value};
use crate::metering::event::Event;
use crate::metering::quantity::Quantity;
use crate::metering::rollup::Part;
use crate::metering::time::{Timestamp, Window};

/// What is known of the quota when a decision is made; fields in wire order.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Quota {
    /// Whether the projected value fits, whatever the enforcement; what the failure policy says where that is unknown.
    pub allowed: bool,
    /// `ok`, `warning`, `exceeded`, `no_plan` or `not_in_plan`; empty when the quota could not be evaluated.
    pub state: &'static str,
    pub subject: String,
    pub meter: String,
    pub quantity: Quantity,
    pub current: Quantity,
    pub projected: Quantity,
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
    pub enforcement: Enforcement,
    pub failure_policy: FailurePolicy,
    pub message: &'static str,
}

impl Quota {
    /// Advisory limits report and never refuse.
    pub fn refuses(&self) -> bool {
        !self.allowed && self.enforcement == Enforcement::Hard
    }
}

/// What is known of a limit that, or whose counter, cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnreadableLimit {
    pub enforcement: Enforcement,
    pub failure_policy: FailurePolicy,
}

impl UnreadableLimit {
    /// Nothing but that there may be a limit.
    pub const UNKNOWN: UnreadableLimit =
        UnreadableLimit { enforcement: Enforcement::Advisory, failure_policy: FailurePolicy::FailOpen };
}

/// The outcome for one event.
pub struct Verdict {
    pub quota: Quota,
    /// A limit could not be read, and the failure policy decided.
    pub evaluation_failed: bool,
}

impl Verdict {
    pub fn refuses(&self) -> bool {
        match self.evaluation_failed {
            true => !self.quota.allowed,
            false => self.quota.refuses(),
        }
    }
}

/// One limit on the meter, with what its window holds before the event.
pub struct Counted<'a> {
    pub limit: &'a Limit,
    /// That of the limit, in the zone of the assignment.
    pub period: Period,
    pub window: Window,
    pub part: Option<&'a Part>,
}

impl Counted<'_> {
    fn reset_at(&self) -> Timestamp {
        self.period.reset_at(self.window, self.part)
    }
}

/// Judges an event against the limits of its meter. A limit that refuses does so whatever the unread ones would say;
/// short of that the strictest failure policy among those decides.
pub fn judge(
    event: &Event,
    plan: Option<&Plan>,
    limits: &[Counted],
    unread: &[UnreadableLimit],
    now: Timestamp,
) -> Verdict {
    let quota = assess(event, plan, limits, now);
    if unread.is_empty() || quota.refuses() {
        return Verdict { quota, evaluation_failed: false };
    }
    let (enforcement, failure_policy) = unread
        .iter()
        .fold((Enforcement::Advisory, FailurePolicy::FailOpen), |(enforcement, policy), limit| {
            (enforcement.max(limit.enforcement), policy.max(limit.failure_policy))
        });
    let (allowed, message) = match failure_policy {
        FailurePolicy::FailOpen => (true, "the quota could not be evaluated, and the plan allows usage then"),
        FailurePolicy::FailClosed => {
            (false, "the quota could not be evaluated, and the plan refuses usage then")
        }
    };
    let quota = Quota { allowed, state: "", enforcement, failure_policy, message, ..unlimited(event, plan) };
    Verdict { quota, evaluation_failed: true }
}

/// Judges an event against all limits of its meter and reports the tightest: a hard one that refuses, then an
/// advisory one that would, then the one that is used up most. Without limits everything is allowed.
fn assess(event: &Event, plan: Option<&Plan>, limits: &[Counted], now: Timestamp) -> Quota {
    let aggregation = event.meter.aggregation;
    let judged = limits.iter().map(|counted| {
        let mut with_event = Part::of(event.time, event.id, &event.quantity);
        if let Some(part) = counted.part {
            with_event.add(part);
        }
        let projected = value(Some(&with_event), aggregation, counted.window);
        (counted, QuotaUsage::against(counted.limit, projected))
    });
    let rank = |(counted, measure): &(&Counted, QuotaUsage)| {
        let refuses = measure.overage.is_positive();
        let is_hard = counted.limit.enforcement == Enforcement::Hard;
        (refuses && is_hard, tightness(refuses, counted.reset_at(), &measure.percent))
    };
    let tightest = judged.max_by(|a, b| rank(a).cmp(&rank(b)));
    let Some((counted, measure)) = tightest else { return unlimited(event, plan) };
    let (limit, window, reset_at) = (counted.limit, counted.window, counted.reset_at());
    let allowed = !measure.overage.is_positive();
    Quota {
        allowed,
        state: measure.state.as_str(),
        current: value(counted.part, aggregation, window),
        projected: measure.current,
        limit: limit.quantity.clone(),
        remaining: measure.remaining,
        overage: measure.overage,
        window: counted.period.described(),
        period: Some(counted.period.clone()),
        from: Some(window.from),
        to: Some(window.to),
        period_reset_at: Some(reset_at),
        retry_after_seconds: (!allowed).then(|| seconds_until(reset_at, now)).flatten(),
        enforcement: limit.enforcement,
        failure_policy: limit.failure_policy,
        message: message(allowed, measure.state),
        ..unlimited(event, plan)
    }
}

fn unlimited(event: &Event, plan: Option<&Plan>) -> Quota {
    let (state, message) = match plan {
        None => (State::NoPlan, "the subject has no plan"),
        Some(_) => (State::NotInPlan, "the plan does not limit the meter"),
    };
    let zero = Quantity::zero;
    Quota {
        allowed: true,
        state: state.as_str(),
        subject: event.subject.clone(),
        meter: event.meter.name.clone(),
        quantity: event.quantity.clone(),
        current: zero(),
        projected: zero(),
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
        enforcement: Enforcement::Advisory,
        failure_policy: FailurePolicy::FailOpen,
        message,
    }
}
