//! Evaluation of rules: look at the numbers without any lock, then write what follows under the lock of each rule,
//! unless somebody evaluated or changed it meanwhile. A result is only ever written on top of the one that was
//! known when its numbers were read, so results never overtake each other and a crossing is found once, whoever
//! evaluates: workers, other workers, or a request.

use std::collections::HashMap;
use std::sync::Arc;

use crate::alerts::rule::RuleSpec;
use crate::alerts::sql::events::{self, Event};
use crate::alerts::sql::rules::{self, Filter, Rule, rules};
use crate::alerts::sql::{deliveries, states};
use crate::alerts::state::{self, Observation, State, Step};
use crate::db::{Conn, DbError, Store};
use crate::error::{Code, Error, Result};
use crate::jobs::queue;
use crate::metering::calendar::Zone;
use crate::metering::meter::Meter;
use crate::metering::time::{SECOND, Timestamp, Window};
use crate::meters;
use crate::usage::aggregate;
use crate::usage::home_zone;
use crate::usage::query::{GROUPS_MAX, GroupField, GroupedAggregates, Query};

/// Rules that are read at once.
const BATCH: i64 = 500;
/// States that the rules of one look had or may come to have: a rule with groups has up to a thousand.
const STATES_AT_ONCE: usize = 20_000;
/// Rows that one transaction writes, about; a rule is written as a whole.
const ROWS_AT_ONCE: usize = 2_000;
/// A rule that is evaluated by others this often in a row is left to them for the moment.
const TRIES: usize = 5;

/// What evaluating some rules came to.
#[derive(Debug, Default)]
pub struct Outcome {
    pub evaluated: usize,
    /// One of them: the one that was asked for, where it was one.
    pub last: Option<Evaluated>,
    /// Rules that others were busy with: evaluate again.
    pub conflicts: usize,
    /// Deliveries were enqueued: ring.
    pub enqueued: bool,
    /// Rules without a value.
    pub failed: usize,
    /// Rules of which not even that could be written down.
    pub unsettled: usize,
}

#[derive(Debug)]
pub struct Evaluated {
    pub rule: Rule,
    pub states: Vec<State>,
    pub events: Vec<Event>,
}

/// A rule, and what it watches: rules that watch the same numbers share one look at them.
#[derive(Debug)]
struct Watch {
    scope: Scope,
    rule: Rule,
}

/// A meter, and what is looked at there.
type Scope = (i64, String);

impl Watch {
    fn of(rule: Rule) -> Result<Watch> {
        let scope = serde_json::to_string(&rule.terms.scope()).map_err(Error::internal)?;
        Ok(Watch { scope: (rule.meter_id, scope), rule })
    }

    /// States that it may have.
    fn weight(&self) -> usize {
        if self.rule.terms.group_by.is_some() { state::GROUPS_MAX } else { 1 }
    }
}

/// What the numbers of a scope say, which may be those of very many groups.
#[derive(Debug)]
struct Seen {
    scope: Scope,
    observation: Observation,
}

/// What a rule comes to, on top of how it stood.
#[derive(Clone, Debug)]
struct Judged {
    rule: Rule,
    step: Step,
    differs: Difference,
}

/// What the states of a rule are and were not.
#[derive(Clone, Debug)]
struct Difference {
    /// Places of the states that are new or others.
    changed: Vec<usize>,
    /// Field and name of groups that are no longer there.
    gone: Vec<(String, String)>,
    /// The rule as a whole was firing.
    was_firing: bool,
}

impl Difference {
    fn between(before: &[State], after: &[State]) -> Difference {
        let mut known: HashMap<(&str, &str), &State> =
            before.iter().map(|state| (state.key(), state)).collect();
        let was_firing = known.get(&("", "")).is_some_and(|state| state.firing);
        let mut changed = Vec::new();
        for (at, state) in after.iter().enumerate() {
            if known.remove(&state.key()) != Some(state) {
                changed.push(at);
            }
        }
        let gone = known.into_keys().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        Difference { changed, gone, was_firing }
    }
}

impl Judged {
    fn of(rule: Rule, before: &[State], step: Step) -> Judged {
        let differs = Difference::between(before, &step.states);
        Judged { rule, step, differs }
    }

    fn changed(&self) -> impl Iterator<Item = &State> {
        self.differs.changed.iter().filter_map(|at| self.step.states.get(*at))
    }

    /// What is written of it: a crossing is an event and a delivery.
    fn rows(&self) -> usize {
        1 + self.differs.changed.len() + self.differs.gone.len() + 2 * self.step.crossings.len()
    }

    /// What is written instead of what cannot be; `None` where that is the same.
    fn failed(&self, now: Timestamp) -> Option<Judged> {
        if self.step.is_failure() {
            return None;
        }
        let was_firing = self.differs.was_firing;
        let step = state::failure(was_firing, "the states of the rule cannot be stored", now);
        let differs = Difference { changed: vec![0], gone: Vec::new(), was_firing };
        Some(Judged { rule: self.rule.clone(), step, differs })
    }
}

/// Cuts a list where the weights of a piece come to more than this; a piece has one at least.
fn pieces<T>(all: Vec<T>, most: usize, weight: impl Fn(&T) -> usize) -> Vec<Vec<T>> {
    let mut pieces: Vec<Vec<T>> = Vec::new();
    let mut room = 0;
    for one in all {
        let wanted = weight(&one);
        match pieces.last_mut().filter(|_| wanted <= room) {
            Some(piece) => {
                piece.push(one);
                room -= wanted;
            }
            None => {
                pieces.push(vec![one]);
                room = most.saturating_sub(wanted);
            }
        }
    }
    pieces
}

/// Evaluates the enabled rules that the filter names, a few in each transaction.
pub async fn evaluate(store: &Store, workspace_id: Option<i64>, filter: Filter) -> Result<Outcome> {
    let mut total = Outcome::default();
    let mut after = 0;
    loop {
        let page = Filter { after: Some(after), enabled: Some(true), ..filter.clone() };
        let load = move |conn: &mut Conn| rules(conn, workspace_id, &page, BATCH);
        let found = store.read("alerts::rules", load).await?;
        let Some(last) = found.last() else { return Ok(total) };
        after = last.id;
        let is_last = (found.len() as i64) < BATCH;
        evaluate_batch(store, found, &mut total).await?;
        if is_last {
            return Ok(total);
        }
    }
}

async fn evaluate_batch(store: &Store, mut rules: Vec<Rule>, total: &mut Outcome) -> Result<()> {
    let mut missed = Vec::new();
    for _ in 0..TRIES {
        missed = evaluate_once(store, rules, total).await?;
        if missed.is_empty() {
            return Ok(());
        }
        let wanted = missed.clone();
        rules = store.read("alerts::rules_by_id", move |conn| rules::rules_by_id(conn, &wanted)).await?;
    }
    total.conflicts += missed.len();
    Ok(())
}

/// Looks at the numbers, which are newer than the rules, and writes what follows; returns the rules that others evaluated or
/// changed meanwhile.
async fn evaluate_once(store: &Store, rules: Vec<Rule>, total: &mut Outcome) -> Result<Vec<i64>> {
    let now = Timestamp::now();
    let mut watches = rules.into_iter().map(Watch::of).collect::<Result<Vec<_>>>()?;
    watches.sort_by(|a, b| (&a.scope, a.rule.id).cmp(&(&b.scope, b.rule.id)));
    let mut missed = Vec::new();
    let mut seen: Option<Arc<Seen>> = None;
    for some in pieces(watches, STATES_AT_ONCE, Watch::weight) {
        let known = seen.take();
        let judge = move |conn: &mut Conn| look(conn, &some, known.clone(), now);
        let (judged, last) = store.read("alerts::look", judge).await?;
        seen = last;
        for some in pieces(judged, ROWS_AT_ONCE, Judged::rows) {
            missed.extend(settle_some(store, some, now, total).await?);
        }
    }
    Ok(missed)
}

/// Reads the states of rules, then the numbers, and judges them: what changes in between is noticed by the revision of the
/// rule. Of the numbers only those of one scope are kept at a time.
fn look(
    conn: &mut Conn,
    watches: &[Watch],
    known: Option<Arc<Seen>>,
    now: Timestamp,
) -> Result<(Vec<Judged>, Option<Arc<Seen>>), DbError> {
    let ids: Vec<i64> = watches.iter().map(|watch| watch.rule.id).collect();
    let mut before = states::of_rules(conn, &ids)?;
    let mut meters_met: HashMap<i64, Arc<Meter>> = HashMap::new();
    let mut known = known;
    let mut judged = Vec::with_capacity(watches.len());
    for Watch { scope, rule } in watches {
        let seen = match known.take().filter(|seen| seen.scope == *scope) {
            Some(seen) => seen,
            None => {
                let meter = match meters_met.get(&rule.meter_id) {
                    Some(meter) => meter.clone(),
                    None => {
                        let Some(meter) = meters::sql::find_by_id(conn, rule.meter_id)? else { continue };
                        meters_met.entry(rule.meter_id).or_insert(Arc::new(meter)).clone()
                    }
                };
                Arc::new(Seen { scope: scope.clone(), observation: see(conn, rule, meter, now)? })
            }
        };
        let states = before.remove(&rule.id).unwrap_or_default();
        let step = state::step(&rule.terms, &states, &seen.observation, now);
        judged.push(Judged::of(rule.clone(), &states, step));
        known = Some(seen);
    }
    Ok((judged, known))
}

/// What a rule asks of a window.
pub(super) fn query(terms: &RuleSpec, meter: Arc<Meter>, window: Window) -> Result<Query> {
    Ok(Query {
        meter,
        window,
        subject: terms.subject.clone(),
        group_by: terms.group_by.iter().map(|field| group_field(field)).collect(),
        filter: terms.filter()?,
        buckets: None,
        skip_missing: terms.group_by.is_some(),
        exact: true,
    })
}

fn see(conn: &mut Conn, rule: &Rule, meter: Arc<Meter>, now: Timestamp) -> Result<Observation, DbError> {
    let terms = &rule.terms;
    let home = match &terms.period {
        Some(_) => home_zone::find(conn, rule.workspace_id)?,
        None => Zone::UTC,
    };
    let window = terms.window(&home, now);
    let query = match query(terms, meter.clone(), window) {
        Ok(query) => query,
        Err(error) => return Ok(Observation::Failed(error.message)),
    };
    let cells: GroupedAggregates = match aggregate::cells(conn, &query, GROUPS_MAX + 1) {
        Ok(cells) => cells,
        Err(fault) if fault.will_pass() => return Err(fault),
        Err(fault) => return Ok(Observation::Failed(fault.into_error("alerts::see").message)),
    };
    if let Err(error) = cells.check_size() {
        return Ok(Observation::Failed(error.message));
    }
    let mut values = cells.into_groups().map(|(group, part)| {
        let name = state::group_name(group.into_iter().next().unwrap_or_default());
        (name, part.value(meter.aggregation, window.length()))
    });
    Ok(match terms.group_by {
        Some(_) => Observation::Groups(values.collect()),
        None => Observation::Total(values.next().map(|(_, value)| value)),
    })
}

fn group_field(field: &str) -> GroupField {
    match field {
        "subject" => GroupField::Subject,
        path => GroupField::Dimension(path.to_owned()),
    }
}

/// Writes these together, or one by one where that fails: a rule whose states cannot be stored has failed, and holds up no
/// other. Returns those that others evaluated or changed meanwhile.
async fn settle_some(
    store: &Store,
    some: Vec<Judged>,
    now: Timestamp,
    total: &mut Outcome,
) -> Result<Vec<i64>> {
    let mut missed = Vec::new();
    let mut waiting = vec![Arc::new(some)];
    while let Some(some) = waiting.pop() {
        let judged = some.clone();
        match store.write("alerts::settle", move |conn| settle(conn, &judged, now)).await {
            Ok(settled) => missed.extend(total.take(&some, settled, now)),
            Err(error) if error.code == Code::Unavailable => return Err(error),
            Err(_) if some.len() > 1 => waiting.extend(some.iter().map(|one| Arc::new(vec![one.clone()]))),
            Err(error) => {
                let failed: Vec<Judged> = some.iter().filter_map(|one| one.failed(now)).collect();
                for Judged { rule, .. } in some.iter() {
                    let rule = rule.public_id.as_str();
                    log::error!(rule, error:% = error; "what an alert rule came to cannot be stored");
                }
                match failed.is_empty() {
                    true => total.unsettled += some.len(),
                    false => waiting.push(Arc::new(failed)),
                }
            }
        }
    }
    Ok(missed)
}

/// What was written of some rules.
#[derive(Debug, Default)]
struct Settled {
    /// Places of those that were still as they were, with the events of each.
    done: Vec<(usize, Vec<Event>)>,
    missed: Vec<i64>,
}

impl Outcome {
    fn take(&mut self, judged: &[Judged], settled: Settled, now: Timestamp) -> Vec<i64> {
        let Settled { mut done, missed } = settled;
        self.evaluated += done.len();
        for step in done.iter().filter_map(|(at, _)| Some(&judged.get(*at)?.step)) {
            self.failed += usize::from(step.is_failure());
            self.enqueued |= step.crossings.iter().any(|crossing| crossing.kind.is_delivered());
        }
        if let Some((Judged { rule, step, .. }, events)) =
            done.pop().and_then(|(at, events)| Some((judged.get(at)?, events)))
        {
            let next_evaluate_at = now.plus(rule.terms.evaluation_interval_seconds * SECOND);
            let rule = Rule { evaluated_at: Some(now), next_evaluate_at, ..rule.clone() };
            self.last = Some(Evaluated { rule, states: step.states.clone(), events });
        }
        missed
    }
}

/// Writes states, events and deliveries of the rules that are still as they were.
fn settle(conn: &mut Conn, judged: &[Judged], now: Timestamp) -> Result<Settled, DbError> {
    let ids: Vec<i64> = judged.iter().map(|judged| judged.rule.id).collect();
    let revisions = states::lock_revisions(conn, &ids)?;
    let mut settled = Settled::default();
    let (mut evaluated, mut failed) = (Vec::new(), Vec::new());
    let (mut changed, mut wanted) = (Vec::new(), Vec::new());
    for (at, one) in judged.iter().enumerate() {
        let Judged { rule, step, .. } = one;
        match revisions.get(&rule.id) {
            // deleted meanwhile
            None => continue,
            Some(revision) if *revision != rule.revision => {
                settled.missed.push(rule.id);
                continue;
            }
            Some(_) => {}
        }
        states::remove(conn, rule.id, &one.differs.gone)?;
        changed.extend(one.changed().map(|state| (rule.id, state)));
        let mut recorded = Vec::with_capacity(step.crossings.len());
        for crossing in &step.crossings {
            recorded.push(events::record(conn, rule, crossing, now)?);
        }
        if !rule.is_snoozed(now) && step.crossings.iter().any(|crossing| crossing.kind.is_delivered()) {
            wanted.push(deliveries::job(rule.workspace_id, rule.id, now)?);
        }
        if step.is_failure() {
            failed.push(rule.id)
        } else {
            evaluated.push(rule.id)
        }
        settled.done.push((at, recorded));
    }
    states::put(conn, &changed)?;
    states::mark_evaluated(conn, &evaluated, &failed, now)?;
    queue::enqueue(conn, wanted, now)?;
    Ok(settled)
}

/// What evaluating a disabled rule by hand answers, and leaves behind when nothing else is known of it.
pub fn evaluate_disabled(conn: &mut Conn, rule: &Rule, now: Timestamp) -> Result<Vec<State>, DbError> {
    rules::lock_row(conn, "alert_rules", rule.id)?;
    let before = states::of_rules(conn, &[rule.id])?.remove(&rule.id).unwrap_or_default();
    if !before.is_empty() {
        return Ok(before);
    }
    let state = state::disabled_state(now);
    states::put(conn, &[(rule.id, &state)])?;
    Ok(vec![state])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alerts::state::Group;
    use crate::metering::quantity::Quantity;

    #[test]
    fn pieces_are_cut_where_they_grow_too_heavy() {
        let sizes = |weights: Vec<usize>, most: usize| -> Vec<usize> {
            pieces(weights, most, |weight| *weight).iter().map(Vec::len).collect()
        };
        // rules without groups are read and written together, as many as there are
        assert_eq!(sizes(vec![1; 500], STATES_AT_ONCE), [500]);
        assert_eq!(sizes(vec![state::GROUPS_MAX; 500], STATES_AT_ONCE), [20; 25]);
        assert_eq!(sizes(vec![1, 1_999, 1, 5_000, 5_000, 1], ROWS_AT_ONCE), [2, 1, 1, 1, 1]);
        assert_eq!(sizes(Vec::new(), 1), [0; 0]);
    }

    fn state(name: &str, value: i64) -> State {
        let group = Group { key: "subject".to_owned(), value: name.to_owned() };
        State { group: Some(group), value: Quantity::from(value), ..state::disabled_state(Timestamp(1)) }
    }

    #[test]
    fn what_is_written_is_what_differs() {
        let before = [state("a", 1), state("b", 1), state("c", 1)];
        let after = vec![state("d", 4), state("c", 1), state("b", 2)];
        let differs = Difference::between(&before, &after);
        assert_eq!(differs.changed, [0, 2]);
        assert_eq!(differs.gone, [("subject".to_owned(), "a".to_owned())]);
        assert!(!differs.was_firing);
    }
}
