//! Evaluation of rules: look at the numbers without any lock, then write what follows under the lock of each rule,
//! unless somebody evaluated or changed it meanwhile. A result is only ever written on top of the one that was
//! known when its numbers were read, so results never overtake each other and a crossing is found once, whoever
//! evaluates: workers, other workers, or a request.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::alerts::rule::RuleSpec;
use crate::alerts::sql::events::{self, Event};
use crate::alerts::sql::rules::{self, Filter, Rule, rules};
use crate::alerts::sql::{deliveries, states};
use crate::alerts::state::{self, Observation, State, Step};
use crate::db::{Conn, DbError, Store};
use crate::error::{Error, Result};
use crate::jobs::queue;
use crate::metering::calendar::Zone;
use crate::metering::meter::Meter;
use crate::metering::time::{SECOND, Timestamp, Window};
use crate::meters;
use crate::usage::aggregate;
use crate::usage::home_zone;
use crate::usage::query::{GROUPS_MAX, GroupField, GroupedAggregates, Query};

/// Rules evaluated in one transaction; rules of one batch that watch the same numbers share one look at them.
const BATCH: i64 = 500;
/// A rule that is evaluated by others this often in a row is left to them for the moment.
const TRIES: usize = 5;

/// A rule, how it stood, and what the numbers say now.
#[derive(Clone, Debug)]
struct RuleSnapshot {
    rule: Rule,
    before: Vec<State>,
    seen: Observation,
}

/// What evaluating some rules came to.
#[derive(Debug, Default)]
pub struct Outcome {
    pub evaluated: Vec<Evaluated>,
    /// Rules that others were busy with: evaluate again.
    pub conflicts: usize,
    /// Deliveries were enqueued: ring.
    pub enqueued: bool,
    /// Rules without a value.
    pub failed: usize,
}

#[derive(Debug)]
pub struct Evaluated {
    pub rule: Rule,
    pub states: Vec<State>,
    pub events: Vec<Event>,
}

/// Evaluates the enabled rules that the filter names, batch by batch, each batch committed on its own.
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
        evaluate_batch(store, found.iter().map(|rule| rule.id).collect(), &mut total).await?;
        if is_last {
            return Ok(total);
        }
    }
}

async fn evaluate_batch(store: &Store, mut ids: Vec<i64>, total: &mut Outcome) -> Result<()> {
    for _ in 0..TRIES {
        let wanted = ids.clone();
        let now = Timestamp::now();
        let looks = store.read("alerts::look", move |conn| look(conn, &wanted, now)).await?;
        let looks = Arc::new(looks);
        let (settled, missed) = store.write("alerts::settle", move |conn| settle(conn, &looks, now)).await?;
        total.enqueued |=
            settled.iter().any(|done| done.events.iter().any(|e| e.kind != "evaluation_failed"));
        total.failed +=
            settled.iter().flat_map(|d| &d.events).filter(|e| e.kind == "evaluation_failed").count();
        total.evaluated.extend(settled);
        if missed.is_empty() {
            return Ok(());
        }
        ids = missed;
    }
    total.conflicts += ids.len();
    Ok(())
}

/// Reads rules, then their states, then the numbers: what changes in between is noticed by the rule's revision.
fn look(conn: &mut Conn, ids: &[i64], now: Timestamp) -> Result<Vec<RuleSnapshot>, DbError> {
    let rules = rules::rules_by_id(conn, ids)?;
    let mut before = states::of_rules(conn, ids)?;
    let mut meters_met: HashMap<i64, Arc<Meter>> = HashMap::new();
    // rules that watch the same numbers look once
    let mut known: BTreeMap<(i64, String), Observation> = BTreeMap::new();
    let mut looks = Vec::with_capacity(rules.len());
    for rule in rules {
        let meter = match meters_met.get(&rule.meter_id) {
            Some(meter) => meter.clone(),
            None => {
                let Some(meter) = meters::sql::find_by_id(conn, rule.meter_id)? else { continue };
                meters_met.entry(rule.meter_id).or_insert(Arc::new(meter)).clone()
            }
        };
        let scope = (rule.meter_id, serde_json::to_string(&rule.terms.scope()).map_err(Error::internal)?);
        let seen = match known.get(&scope) {
            Some(seen) => seen.clone(),
            None => known.entry(scope).or_insert(see(conn, &rule, meter, now)?).clone(),
        };
        looks.push(RuleSnapshot { before: before.remove(&rule.id).unwrap_or_default(), rule, seen });
    }
    Ok(looks)
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
        (group.into_iter().next().unwrap_or_default(), part.value(meter.aggregation, window.length()))
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

/// Writes states, events and deliveries of the rules that are still as they were; returns the others.
fn settle(
    conn: &mut Conn,
    looks: &[RuleSnapshot],
    now: Timestamp,
) -> Result<(Vec<Evaluated>, Vec<i64>), DbError> {
    let ids: Vec<i64> = looks.iter().map(|look| look.rule.id).collect();
    let revisions = states::lock_revisions(conn, &ids)?;
    let (mut settled, mut missed) = (Vec::new(), Vec::new());
    let (mut changed, mut wanted) = (Vec::new(), Vec::new());
    for look in looks {
        let rule = &look.rule;
        match revisions.get(&rule.id) {
            // deleted meanwhile
            None => continue,
            Some(revision) if *revision != rule.revision => {
                missed.push(rule.id);
                continue;
            }
            Some(_) => {}
        }
        let Step { states, crossings } = state::step(&rule.terms, &look.before, look.seen.clone(), now);
        states::remove_gone(conn, rule.id, &look.before, &states)?;
        changed.extend(
            states.iter().filter(|state| !look.before.contains(state)).map(|state| (rule.id, state.clone())),
        );
        let mut recorded = Vec::with_capacity(crossings.len());
        for crossing in &crossings {
            recorded.push(events::record(conn, rule, crossing, now)?);
        }
        if !rule.is_snoozed(now) && crossings.iter().any(|crossing| crossing.kind.is_delivered()) {
            wanted.push(deliveries::job(rule.workspace_id, rule.id, now)?);
        }
        let next_evaluate_at = now.plus(rule.terms.evaluation_interval_seconds * SECOND);
        let rule = Rule { evaluated_at: Some(now), next_evaluate_at, ..rule.clone() };
        settled.push(Evaluated { rule, states, events: recorded });
    }
    let has_failed = |done: &&Evaluated| done.events.iter().any(|event| event.kind == "evaluation_failed");
    let ids_of = |done: Vec<&Evaluated>| done.into_iter().map(|done| done.rule.id).collect::<Vec<_>>();
    let (failed, evaluated) = settled.iter().partition(has_failed);
    states::put(conn, &changed)?;
    states::mark_evaluated(conn, &ids_of(evaluated), &ids_of(failed), now)?;
    queue::enqueue(conn, wanted, now)?;
    Ok((settled, missed))
}

/// What evaluating a disabled rule by hand answers, and leaves behind when nothing else is known of it.
pub fn evaluate_disabled(conn: &mut Conn, rule: &Rule, now: Timestamp) -> Result<Vec<State>, DbError> {
    rules::lock_row(conn, "alert_rules", rule.id)?;
    let before = states::of_rules(conn, &[rule.id])?.remove(&rule.id).unwrap_or_default();
    if !before.is_empty() {
        return Ok(before);
    }
    let state = state::disabled_state(now);
    states::put(conn, &[(rule.id, state.clone())])?;
    Ok(vec![state])
}
