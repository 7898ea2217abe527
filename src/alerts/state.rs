//! Alert rules: what a rule may say, when a value crosses its threshold, and how its states move (rest.md 12.12,
//! jobs.md 3). Pure: no SQL, no clock, no network. The state machine is [`step`], a function from what was known and
//! what is seen now to what is known then and what happened.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use crate::alerts::rule::RuleSpec;
use crate::metering::event::hash128;
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
    /// As [`group_name`] makes it of what events have there.
    pub value: String,
}

/// A value is what a group is called up to here.
const GROUP_BYTES_MAX: usize = 256;

/// What the group of a value is called: the value, or of a long one its beginning, an ellipsis and a hash of all of it, because
/// names are keys of rows. What is cut is longer than what is not, so no two values have one name.
pub fn group_name(value: String) -> String {
    if value.len() <= GROUP_BYTES_MAX {
        return value;
    }
    let hash: String = hash128(&[value.as_bytes()]).iter().map(|byte| format!("{byte:02x}")).collect();
    let beginning = value.get(..value.floor_char_boundary(GROUP_BYTES_MAX)).unwrap_or_default();
    format!("{beginning}…{hash}")
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
    /// What tells it from the other states of its rule.
    pub fn key(&self) -> (&str, &str) {
        self.group.as_ref().map_or(("", ""), |group| (&group.key, &group.value))
    }

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
    /// The rule has no value.
    failed: bool,
}

impl Step {
    /// Whether the rule has no value.
    pub fn is_failure(&self) -> bool {
        self.failed
    }

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
pub fn step(terms: &RuleSpec, before: &[State], seen: &Observation, now: Timestamp) -> Step {
    match (&terms.group_by, seen) {
        (_, Observation::Failed(reason)) => fail(before, reason, now),
        (Some(key), Observation::Groups(groups)) => step_groups(terms, key, before, groups, now),
        (_, Observation::Groups(groups)) => {
            step_total(terms, before, groups.first().map(|(_, value)| value), now)
        }
        (_, Observation::Total(total)) => step_total(terms, before, total.as_ref(), now),
    }
}

fn ungrouped(before: &[State]) -> Option<&State> {
    before.iter().find(|state| state.group.is_none())
}

/// Remembers what was firing, so that the next success neither triggers again nor forgets to resolve.
fn fail(before: &[State], reason: &str, now: Timestamp) -> Step {
    let mut step = failure(ungrouped(before), reason, now);
    step.states.extend(before.iter().filter(|state| state.group.is_some()).cloned());
    step
}

/// The state of a rule without a value, told once for each reason; those of its groups stay as they are. `before`: that
/// of the rule as a whole.
pub fn failure(before: Option<&State>, reason: &str, now: Timestamp) -> Step {
    let mut state = State {
        group: None,
        status: Status::Error,
        firing: before.is_some_and(|before| before.firing),
        value: Quantity::zero(),
        message: format!("evaluation failed: {reason}"),
        updated_at: now,
    };
    let mut step = Step { failed: true, ..Step::default() };
    match before.filter(|before| before.says_the_same(&state)) {
        Some(before) => state.updated_at = before.updated_at,
        None => step.cross(Kind::EvaluationFailed, &state),
    }
    step.states.push(state);
    step
}

fn step_total(terms: &RuleSpec, before: &[State], total: Option<&Quantity>, now: Timestamp) -> Step {
    let mut step = Step::default();
    step.enter(ungrouped(before), judge(terms, None, total, now));
    // groups of an earlier shape of the rule: normally closed by the change itself
    for left in before.iter().filter(|state| state.group.is_some() && state.firing) {
        step.cross(Kind::Resolved, &judge(terms, left.group.clone(), None, now));
    }
    step
}

/// A group that the rule knew or that has a value now.
struct Candidate<'a> {
    value: &'a str,
    before: Option<&'a State>,
    total: Option<&'a Quantity>,
    fires: bool,
}

impl Candidate<'_> {
    fn was_firing(&self) -> bool {
        self.before.is_some_and(|before| before.firing)
    }
}

/// Those that are kept, in order: what was firing comes first, then what fires now, then the largest. Of very many groups
/// only these are put in order and have a state made of them.
fn first_groups(mut groups: Vec<Candidate>) -> Vec<Candidate> {
    let zero = Quantity::zero();
    let in_order = |a: &Candidate, b: &Candidate| {
        let by_firing = (b.was_firing(), b.fires).cmp(&(a.was_firing(), a.fires));
        by_firing
            .then_with(|| b.total.unwrap_or(&zero).cmp(a.total.unwrap_or(&zero)))
            .then_with(|| a.value.cmp(b.value))
    };
    // none is cut off while it fires
    let kept = GROUPS_MAX.max(groups.iter().filter(|group| group.was_firing()).count());
    if groups.len() > kept {
        groups.select_nth_unstable_by(kept, in_order);
        groups.truncate(kept);
    }
    groups.sort_unstable_by(in_order);
    groups
}

fn step_groups(
    terms: &RuleSpec,
    key: &str,
    before: &[State],
    groups: &[(String, Quantity)],
    now: Timestamp,
) -> Step {
    let of_key = before.iter().filter_map(|state| Some((state.group.as_ref()?, state)));
    let mut known: BTreeMap<&str, &State> = of_key
        .filter(|(group, _)| group.key == key)
        .map(|(group, state)| (group.value.as_str(), state))
        .collect();
    let present = groups.iter().map(|(value, total)| Candidate {
        value,
        before: known.remove(value.as_str()),
        total: Some(total),
        fires: terms.comparator.holds(total, &terms.threshold),
    });
    let mut candidates: Vec<Candidate> = present.collect();
    let gone = known.into_iter();
    candidates.extend(gone.map(|(value, state)| Candidate {
        value,
        before: Some(state),
        total: None,
        fires: false,
    }));
    let mut step = Step::default();
    for Candidate { value, before, total, .. } in first_groups(candidates) {
        let group = Group { key: key.to_owned(), value: value.to_owned() };
        step.enter(before, judge(terms, Some(group), total, now));
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
fn judge(terms: &RuleSpec, group: Option<Group>, value: Option<&Quantity>, now: Timestamp) -> State {
    let (status, value, message) = match value {
        None => (Status::NoData, Quantity::zero(), "no usage in the window".to_owned()),
        Some(value) => {
            let (shown, threshold) = (value.to_plain(), terms.threshold.to_plain());
            if terms.comparator.holds(value, &terms.threshold) {
                let message = format!("value {shown} is {} threshold {threshold}", terms.comparator.phrase());
                (Status::Alerting, value.clone(), message)
            } else {
                (Status::Ok, value.clone(), format!("value {shown} against threshold {threshold}"))
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
