//! Alert rules: what a rule may say, when a value crosses its threshold, and how its states move (rest.md 12.12,
//! jobs.md 3). Pure: no SQL, no clock, no network. The state machine is [`step`], a function from what was known and
//! what is seen now to what is known then and what happened.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use crate::alerts::rule::RuleSpec;
use crate::metering::quantity::Quantity;
use crate::metering::time::Timestamp;

/// States kept per rule. Groups that fire are kept before all others, so that none is cut off while it does.
pub const GROUPS_MAX: usize = 1_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    // in the order in which they stand for the whole rule
    Alerting,
    Error,
    NoData,
    Ok,
}

impl Status {
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Alerting => "alerting",
            Status::Error => "error",
            Status::NoData => "no_data",
            Status::Ok => "ok",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        [Status::Alerting, Status::Error, Status::NoData, Status::Ok].into_iter().find(|s| s.as_str() == text)
    }
}

/// The value of the field that a rule is grouped by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Group {
    pub key: String,
    pub value: String,
}

/// How a rule, or one of its groups, stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    pub group: Option<Group>,
    pub status: Status,
    /// Triggered and not yet resolved, also while evaluation fails.
    pub firing: bool,
    pub value: Quantity,
    pub message: String,
    /// When any of the above changed last.
    pub updated_at: Timestamp,
}

impl State {
    fn says_the_same(&self, other: &State) -> bool {
        (self.status, self.firing) == (other.status, other.firing)
            && self.value == other.value
            && self.message == other.message
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Triggered,
    Resolved,
    EvaluationFailed,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Triggered => "triggered",
            Kind::Resolved => "resolved",
            Kind::EvaluationFailed => "evaluation_failed",
        }
    }

    /// Whether receivers are told.
    pub fn is_delivered(self) -> bool {
        self != Kind::EvaluationFailed
    }
}

/// Something that happened, with the state it led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transition {
    pub kind: Kind,
    pub state: State,
}

/// What an evaluation found in the window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observation {
    /// The value over all events; `None` without events.
    Total(Option<Quantity>),
    /// The value of each group that has events.
    Groups(Vec<(String, Quantity)>),
    /// Why there is no value.
    Failed(String),
}

/// All states of a rule after an evaluation, and what happened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    pub states: Vec<State>,
    pub crossings: Vec<Transition>,
}

impl Step {
    fn cross(&mut self, kind: Kind, state: &State) {
        self.crossings.push(Transition { kind, state: state.clone() });
    }

    /// Adds a state and what it means against the one before.
    fn enter(&mut self, before: Option<&State>, mut state: State) {
        let was_firing = before.is_some_and(|before| before.firing);
        match (was_firing, state.firing) {
            (false, true) => self.cross(Kind::Triggered, &state),
            (true, false) => self.cross(Kind::Resolved, &state),
            _ => {}
        }
        if let Some(before) = before.filter(|before| before.says_the_same(&state)) {
            state.updated_at = before.updated_at;
        }
        self.states.push(state);
    }
}

/// Moves the states of an enabled rule on.
pub fn step(terms: &RuleSpec, before: &[State], seen: Observation, now: Timestamp) -> Step {
    match (&terms.group_by, seen) {
        (_, Observation::Failed(reason)) => fail(before, &reason, now),
        (Some(key), Observation::Groups(groups)) => step_groups(terms, key, before, groups, now),
        (_, Observation::Groups(groups)) => {
            let total = groups.into_iter().next().map(|(_, value)| value);
            step_total(terms, before, total, now)
        }
        (_, Observation::Total(total)) => step_total(terms, before, total, now),
    }
}

fn ungrouped(before: &[State]) -> Option<&State> {
    before.iter().find(|state| state.group.is_none())
}

/// Remembers what was firing, so that the next success neither triggers again nor forgets to resolve.
fn fail(before: &[State], reason: &str, now: Timestamp) -> Step {
    let mut step = Step::default();
    step.states.extend(before.iter().filter(|state| state.group.is_some()).cloned());
    let state = State {
        group: None,
        status: Status::Error,
        firing: ungrouped(before).is_some_and(|state| state.firing),
        value: Quantity::zero(),
        message: format!("evaluation failed: {reason}"),
        updated_at: now,
    };
    step.cross(Kind::EvaluationFailed, &state);
    step.states.push(state);
    step
}

fn step_total(terms: &RuleSpec, before: &[State], total: Option<Quantity>, now: Timestamp) -> Step {
    let mut step = Step::default();
    step.enter(ungrouped(before), judge(terms, None, total, now));
    // groups of an earlier shape of the rule: normally closed by the change itself
    for left in before.iter().filter(|state| state.group.is_some() && state.firing) {
        step.cross(Kind::Resolved, &judge(terms, left.group.clone(), None, now));
    }
    step
}

fn step_groups(
    terms: &RuleSpec,
    key: &str,
    before: &[State],
    groups: Vec<(String, Quantity)>,
    now: Timestamp,
) -> Step {
    let group_of = |value: &str| Some(Group { key: key.to_owned(), value: value.to_owned() });
    let known: BTreeMap<&str, &State> = before
        .iter()
        .filter_map(|state| state.group.as_ref().filter(|g| g.key == key).map(|g| (g.value.as_str(), state)))
        .collect();
    let present: BTreeSet<&str> = groups.iter().map(|(value, _)| value.as_str()).collect();
    let mut now_states: Vec<State> = known
        .iter()
        .filter(|(value, _)| !present.contains(*value))
        .map(|(value, _)| judge(terms, group_of(value), None, now))
        .collect();
    now_states
        .extend(groups.iter().map(|(value, total)| judge(terms, group_of(value), Some(total.clone()), now)));
    let before_of = |state: &State| {
        state.group.as_ref().and_then(|group| known.get(group.value.as_str())).copied().cloned()
    };
    let mut step = Step::default();
    let mut firing_room = GROUPS_MAX;
    // what was firing comes first, then what fires now, then the largest
    now_states.sort_by_cached_key(|state| {
        let was_firing = before_of(state).is_some_and(|before| before.firing);
        (!was_firing, !state.firing, std::cmp::Reverse(state.value.clone()), state.group.clone())
    });
    for state in now_states {
        let before = before_of(&state);
        let was_firing = before.as_ref().is_some_and(|before| before.firing);
        if firing_room == 0 && !was_firing {
            break;
        }
        firing_room = firing_room.saturating_sub(1);
        step.enter(before.as_ref(), state);
    }
    for left in before.iter().filter(|s| s.firing && s.group.as_ref().is_none_or(|g| g.key != key)) {
        step.cross(Kind::Resolved, &judge(terms, left.group.clone(), None, now));
    }
    if step.states.is_empty() {
        step.enter(ungrouped(before), judge(terms, None, None, now));
    }
    step
}

/// The state that a value means.
fn judge(terms: &RuleSpec, group: Option<Group>, value: Option<Quantity>, now: Timestamp) -> State {
    let (status, value, message) = match value {
        None => (Status::NoData, Quantity::zero(), "no usage in the window".to_owned()),
        Some(value) => {
            let (shown, threshold) = (value.to_plain(), terms.threshold.to_plain());
            if terms.comparator.holds(&value, &terms.threshold) {
                let message = format!("value {shown} is {} threshold {threshold}", terms.comparator.phrase());
                (Status::Alerting, value, message)
            } else {
                (Status::Ok, value, format!("value {shown} against threshold {threshold}"))
            }
        }
    };
    State { group, status, firing: status == Status::Alerting, value, message, updated_at: now }
}

/// What receivers are told when a rule stops looking at what it looked at: it was disabled, deleted or grouped anew.
pub fn close(before: &[State], reason: &str, now: Timestamp) -> Vec<Transition> {
    let resolved = |state: &State| Transition {
        kind: Kind::Resolved,
        state: State {
            status: Status::Ok,
            firing: false,
            message: reason.to_owned(),
            updated_at: now,
            ..state.clone()
        },
    };
    before.iter().filter(|state| state.firing).map(resolved).collect()
}

/// The state of a rule that nobody evaluates.
pub fn disabled_state(now: Timestamp) -> State {
    State {
        group: None,
        status: Status::Ok,
        firing: false,
        value: Quantity::zero(),
        message: "the rule is disabled".to_owned(),
        updated_at: now,
    }
}

/// The most severe first, of several the latest.
fn rank(state: &State) -> (Status, std::cmp::Reverse<Timestamp>) {
    (state.status, std::cmp::Reverse(state.updated_at))
}

/// The state that stands for the whole rule.
pub fn primary(states: &[State]) -> Option<&State> {
    states.iter().min_by_key(|state| rank(state))
}

/// All of them, the one that stands for the rule first.
pub fn ranked(states: &[State]) -> Vec<&State> {
    let mut ranked: Vec<&State> = states.iter().collect();
    ranked.sort_by_key(|state| rank(state));
    ranked
}
