//! Evaluation of rules: look at the numbers without any lock, then write what follows under the lock of each rule,
//! unless somebody evaluated or changed it meanwhile. A result is only ever written on top of the one that was
//! known when its numbers were read, so results never overtake each other and a crossing is found once, whoever
//! evaluates: workers, other workers, or a request.

use std::collections::HashMap;
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::alerts::rule::RuleSpec;
use crate::alerts::sql::events::{self, Event};
use crate::alerts::sql::rules::{self, Filter, Rule, rules};
use crate::alerts::sql::{deliveries, states};
use crate::alerts::state::{self, Observation, State, Step};
use crate::clock;
use crate::db::{Conn, DbError, Store, is_slow};
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
/// What was judged is written after this, however few it is: the next look may take long.
const GATHER: Duration = Duration::from_secs(1);
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
    /// Where the time was up before all of them were looked at.
    pub rest: Option<Rest>,
}

/// What is left of an evaluation.
#[derive(Debug)]
pub struct Rest {
    /// Rules that were read, and not looked at.
    rules: Vec<i64>,
    /// Then those behind this one.
    after: Option<i64>,
}

impl Rest {
    /// All that a filter names.
    pub fn all() -> Rest {
        Rest { rules: Vec::new(), after: Some(0) }
    }
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
    /// How the rule as a whole stood.
    ungrouped: Option<State>,
}

impl Difference {
    fn between(before: &[State], after: &[State]) -> Difference {
        let mut known: HashMap<(&str, &str), &State> =
            before.iter().map(|state| (state.key(), state)).collect();
        let ungrouped = known.get(&("", "")).map(|state| (*state).clone());
        let mut changed = Vec::new();
        for (at, state) in after.iter().enumerate() {
            if known.remove(&state.key()) != Some(state) {
                changed.push(at);
            }
        }
        let gone = known.into_keys().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        Difference { changed, gone, ungrouped }
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
        let ungrouped = self.differs.ungrouped.clone();
        let step = state::failure(ungrouped.as_ref(), "the states of the rule cannot be stored", now);
        let changed = if step.states.first() == ungrouped.as_ref() { Vec::new() } else { vec![0] };
        let differs = Difference { changed, gone: Vec::new(), ungrouped };
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

/// Rules in the order of what they watch, as many of one scope together as one look takes.
fn looks(rules: Vec<Rule>) -> Result<Vec<Vec<Watch>>> {
    let mut watches = rules.into_iter().map(Watch::of).collect::<Result<Vec<_>>>()?;
    watches.sort_by(|a, b| (&a.scope, a.rule.id).cmp(&(&b.scope, b.rule.id)));
    let mut scopes: Vec<Vec<Watch>> = Vec::new();
    for watch in watches {
        let same = |scope: &&mut Vec<Watch>| scope.last().is_some_and(|last| last.scope == watch.scope);
        match scopes.last_mut().filter(same) {
            Some(scope) => scope.push(watch),
            None => scopes.push(vec![watch]),
        }
    }
    Ok(scopes.into_iter().flat_map(|scope| pieces(scope, STATES_AT_ONCE, Watch::weight)).collect())
}

/// Evaluates the enabled rules that the filter names, a few in each transaction.
pub async fn evaluate(store: &Store, workspace_id: Option<i64>, filter: Filter) -> Result<Outcome> {
    evaluate_until(store, workspace_id, filter, Rest::all(), None).await
}

fn is_over(until: Option<Instant>) -> bool {
    until.is_some_and(|until| clock::moment() >= until)
}

/// As [`evaluate`], what is left of it; nothing more is looked at when the time is up.
pub async fn evaluate_until(
    store: &Store,
    workspace_id: Option<i64>,
    filter: Filter,
    from: Rest,
    until: Option<Instant>,
) -> Result<Outcome> {
    let mut total = Outcome::default();
    let Rest { rules: wanted, mut after } = from;
    let mut found = rules_of(store, wanted).await?;
    loop {
        let left = evaluate_batch(store, found, &mut total, until).await?;
        let Some(behind) = after.filter(|_| left.is_empty() && !is_over(until)) else {
            let is_done = left.is_empty() && after.is_none();
            total.rest = (!is_done).then_some(Rest { rules: left, after });
            return Ok(total);
        };
        let page = Filter { after: Some(behind), enabled: Some(true), ..filter.clone() };
        let load = move |conn: &mut Conn| rules(conn, workspace_id, &page, BATCH);
        found = store.read("alerts::rules", load).await?;
        after = found.last().map(|last| last.id).filter(|_| found.len() as i64 >= BATCH);
    }
}

async fn rules_of(store: &Store, ids: Vec<i64>) -> Result<Vec<Rule>> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    store.read("alerts::rules_by_id", move |conn| rules::rules_by_id(conn, &ids)).await
}

/// Returns the rules that were left when the time was up.
async fn evaluate_batch(
    store: &Store,
    mut rules: Vec<Rule>,
    total: &mut Outcome,
    until: Option<Instant>,
) -> Result<Vec<i64>> {
    let mut missed = Vec::new();
    for _ in 0..TRIES {
        let (busy, mut left) = evaluate_once(store, rules, total, until).await?;
        if !left.is_empty() {
            left.extend(busy);
            return Ok(left);
        }
        if busy.is_empty() {
            return Ok(Vec::new());
        }
        missed = busy;
        rules = rules_of(store, missed.clone()).await?;
    }
    total.conflicts += missed.len();
    Ok(Vec::new())
}

/// Looks at the numbers, which are newer than the rules, and writes what follows, scope by scope: one that takes long, or
/// fails, keeps nothing of what was judged before it. Returns the rules that others evaluated or changed meanwhile, and those
/// that were left when the time was up.
async fn evaluate_once(
    store: &Store,
    rules: Vec<Rule>,
    total: &mut Outcome,
    until: Option<Instant>,
) -> Result<(Vec<i64>, Vec<i64>)> {
    let (mut missed, mut left) = (Vec::new(), Vec::new());
    let mut seen: Option<Arc<Seen>> = None;
    let (mut now, mut began) = (Timestamp::now(), clock::moment());
    let (mut judged, mut rows) = (Vec::new(), 0);
    for some in looks(rules)? {
        if is_over(until) {
            left.extend(some.iter().map(|watch| watch.rule.id));
            continue;
        }
        let (more, last) = match look(store, some, seen.take(), now).await {
            Ok(looked) => looked,
            Err(error) => {
                settle_all(store, judged, now, total).await?;
                return Err(error);
            }
        };
        seen = last;
        rows += more.iter().map(Judged::rows).sum::<usize>();
        judged.extend(more);
        if rows >= ROWS_AT_ONCE || clock::since(began) >= GATHER {
            missed.extend(settle_all(store, mem::take(&mut judged), now, total).await?);
            (now, began, rows) = (Timestamp::now(), clock::moment(), 0);
        }
    }
    missed.extend(settle_all(store, judged, now, total).await?);
    Ok((missed, left))
}

async fn settle_all(
    store: &Store,
    judged: Vec<Judged>,
    now: Timestamp,
    total: &mut Outcome,
) -> Result<Vec<i64>> {
    let mut missed = Vec::new();
    for some in pieces(judged, ROWS_AT_ONCE, Judged::rows) {
        missed.extend(settle_some(store, some, now, total).await?);
    }
    Ok(missed)
}

/// What rules of one scope come to, and what was seen there: their numbers are read at one instant. Where that takes too
/// long, these rules have no value, and no others.
async fn look(
    store: &Store,
    watches: Vec<Watch>,
    known: Option<Arc<Seen>>,
    now: Timestamp,
) -> Result<(Vec<Judged>, Option<Arc<Seen>>)> {
    let watches = Arc::new(watches);
    let some = watches.clone();
    let at_once = move |conn: &mut Conn| judge(conn, &some, known.clone(), now);
    let slow = match store.read_snapshot("alerts::look", at_once).await {
        Err(error) if is_slow(&error) => error,
        looked => return looked,
    };
    let Some(Watch { scope, rule }) = watches.first() else { return Ok((Vec::new(), None)) };
    log::warn!(rule = rule.public_id.as_str(), error:% = slow; "the numbers of an alert rule take too long to read");
    let observation = Observation::Failed("its numbers took too long to read".to_owned());
    let seen = Arc::new(Seen { scope: scope.clone(), observation });
    let some = watches.clone();
    let without = move |conn: &mut Conn| judge(conn, &some, Some(seen.clone()), now);
    store.read("alerts::judge", without).await
}

/// Reads the states of rules, then the numbers that all of them watch unless they are known, and judges them: what changes
/// in between is noticed by the revision of the rule.
fn judge(
    conn: &mut Conn,
    watches: &[Watch],
    known: Option<Arc<Seen>>,
    now: Timestamp,
) -> Result<(Vec<Judged>, Option<Arc<Seen>>), DbError> {
    let Some(Watch { scope, rule }) = watches.first() else { return Ok((Vec::new(), None)) };
    let ids: Vec<i64> = watches.iter().map(|watch| watch.rule.id).collect();
    let mut before = states::of_rules(conn, &ids)?;
    let seen = match known.filter(|seen| seen.scope == *scope) {
        Some(seen) => seen,
        None => {
            let Some(meter) = meters::sql::find_by_id(conn, rule.meter_id)? else {
                return Ok((Vec::new(), None));
            };
            Arc::new(Seen { scope: scope.clone(), observation: see(conn, rule, Arc::new(meter), now)? })
        }
    };
    let each = watches.iter().map(|Watch { rule, .. }| {
        let states = before.remove(&rule.id).unwrap_or_default();
        Judged::of(rule.clone(), &states, state::step(&rule.terms, &states, &seen.observation, now))
    });
    Ok((each.collect(), Some(seen)))
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
            let interval = rule.terms.evaluation_interval_seconds;
            let pause = if step.is_failure() { states::failed_pause(interval) } else { interval };
            let next_evaluate_at = now.plus(pause * SECOND);
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
        assert_eq!(differs.ungrouped, None);
    }
}
