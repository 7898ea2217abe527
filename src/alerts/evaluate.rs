//! Evaluation of rules: look at the numbers without any lock, then write what follows under the lock of each rule,
//! unless somebody evaluated or changed it meanwhile. A result is only ever written on top of the one that was
//! known when its numbers were read, so results never overtake each other and a crossing is found once, whoever
//! evaluates: workers, other workers, or a request.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Bool, Text};

use crate::alerts::sql::deliveries;
use crate::alerts::sql::rules::{self, Event, Filter, Rule, record, rules, states};
use crate::alerts::state::{self, Seen, State, Step};
use crate::db::prepared::prepared;
use crate::db::schema::{alert_rules, alert_states};
use crate::db::{Conn, Fault, Store};
use crate::error::{Error, Result};
use crate::jobs::queue;
use crate::metering::meter::Meter;
use crate::metering::time::{Micros, SECOND, Window};
use crate::meters;
use crate::usage::aggregate;
use crate::usage::query::{Cells, GROUPS_MAX, GroupField, Query};

/// Rules evaluated in one transaction; rules of one batch that watch the same numbers share one look at them.
const BATCH: i64 = 500;
/// A rule that is evaluated by others this often in a row is left to them for the moment.
const TRIES: usize = 5;

/// A rule, how it stood, and what the numbers say now.
#[derive(Clone, Debug)]
struct Look {
    rule: Rule,
    before: Vec<State>,
    seen: Seen,
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
        let now = Micros::now();
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
fn look(conn: &mut Conn, ids: &[i64], now: Micros) -> Result<Vec<Look>, Fault> {
    let rules = rules::rules_by_id(conn, ids)?;
    let mut before = states(conn, ids)?;
    let mut meters_met: HashMap<i64, Arc<Meter>> = HashMap::new();
    // rules that watch the same numbers look once
    let mut known: BTreeMap<(i64, String), Seen> = BTreeMap::new();
    let mut looks = Vec::with_capacity(rules.len());
    for rule in rules {
        let meter = match meters_met.get(&rule.meter_id) {
            Some(meter) => meter.clone(),
            None => {
                let Some(meter) = meters::sql::by_key(conn, rule.meter_id)? else { continue };
                meters_met.entry(rule.meter_id).or_insert(Arc::new(meter)).clone()
            }
        };
        let scope = (rule.meter_id, serde_json::to_string(&rule.terms.scope()).map_err(Error::internal)?);
        let seen = match known.get(&scope) {
            Some(seen) => seen.clone(),
            None => known.entry(scope).or_insert(see(conn, &rule, meter, now)?).clone(),
        };
        looks.push(Look { before: before.remove(&rule.id).unwrap_or_default(), rule, seen });
    }
    Ok(looks)
}

fn see(conn: &mut Conn, rule: &Rule, meter: Arc<Meter>, now: Micros) -> Result<Seen, Fault> {
    let terms = &rule.terms;
    let length = terms.window_seconds * SECOND;
    let filter = match terms.filter() {
        Ok(filter) => filter,
        Err(error) => return Ok(Seen::Failed(error.message)),
    };
    let query = Query {
        meter: meter.clone(),
        window: Window { from: now.plus(-length), to: now },
        subject: terms.subject.clone(),
        group_by: terms.group_by.iter().map(|field| group_field(field)).collect(),
        filter,
        bucket_size: None,
        only_valued: terms.group_by.is_some(),
    };
    let cells: Cells = match aggregate::cells(conn, &query, GROUPS_MAX + 1) {
        Ok(cells) => cells,
        Err(fault) if fault.will_pass() => return Err(fault),
        Err(fault) => return Ok(Seen::Failed(fault.into_error("alerts::see").message)),
    };
    if let Err(error) = cells.check_size() {
        return Ok(Seen::Failed(error.message));
    }
    let mut values = cells.into_groups().map(|(group, part)| {
        (group.into_iter().next().unwrap_or_default(), part.value(meter.aggregation, length))
    });
    Ok(match terms.group_by {
        Some(_) => Seen::Groups(values.collect()),
        None => Seen::Total(values.next().map(|(_, value)| value)),
    })
}

fn group_field(field: &str) -> GroupField {
    match field {
        "subject" => GroupField::Subject,
        path => GroupField::Dimension(path.to_owned()),
    }
}

/// Writes states, events and deliveries of the rules that are still as they were; returns the others.
fn settle(conn: &mut Conn, looks: &[Look], now: Micros) -> Result<(Vec<Evaluated>, Vec<i64>), Fault> {
    let ids: Vec<i64> = looks.iter().map(|look| look.rule.id).collect();
    let revisions = lock(conn, &ids)?;
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
        forget_gone(conn, rule.id, &look.before, &states)?;
        changed.extend(
            states.iter().filter(|state| !look.before.contains(state)).map(|state| (rule.id, state.clone())),
        );
        let mut events = Vec::with_capacity(crossings.len());
        for crossing in &crossings {
            events.push(record(conn, rule, crossing, now)?);
        }
        if crossings.iter().any(|crossing| crossing.kind.is_delivered()) {
            wanted.push(deliveries::job(rule.workspace_id, rule.id, now)?);
        }
        let next_evaluate_at = now.plus(rule.terms.evaluation_interval_seconds * SECOND);
        let rule = Rule { evaluated_at: Some(now), next_evaluate_at, ..rule.clone() };
        settled.push(Evaluated { rule, states, events });
    }
    put_states(conn, &changed)?;
    advance(conn, &settled, now)?;
    queue::enqueue(conn, wanted, now)?;
    Ok((settled, missed))
}

/// The revisions of the rules that exist and are enabled, locked in one order.
fn lock(conn: &mut Conn, ids: &[i64]) -> Result<HashMap<i64, i64>, Fault> {
    let query = alert_rules::table
        .filter(alert_rules::id.eq_any(ids).and(alert_rules::enabled.eq(true)))
        .order(alert_rules::id)
        .select((alert_rules::id, alert_rules::revision));
    let rows: Vec<(i64, i64)> = match conn {
        Conn::Postgres(c) => query.for_update().load(c)?,
        Conn::Sqlite(c) => query.load(c)?,
    };
    Ok(rows.into_iter().collect())
}

/// A failed rule keeps its time, so that the next try of the job evaluates it again.
fn advance(conn: &mut Conn, settled: &[Evaluated], now: Micros) -> Result<(), Fault> {
    let has_failed = |done: &&Evaluated| done.events.iter().any(|event| event.kind == "evaluation_failed");
    let ids: Vec<i64> = settled.iter().filter(|d| !has_failed(d)).map(|done| done.rule.id).collect();
    let failed: Vec<i64> = settled.iter().filter(has_failed).map(|done| done.rule.id).collect();
    let moved = alert_rules::table.filter(alert_rules::id.eq_any(&ids));
    diesel::update(moved)
        .set((
            alert_rules::revision.eq(alert_rules::revision + 1),
            alert_rules::evaluated_at.eq(Some(now.0)),
            alert_rules::next_evaluate_at
                .eq(alert_rules::evaluation_interval_seconds * 1_000_000_i64 + now.0),
        ))
        .execute(conn)?;
    if !failed.is_empty() {
        diesel::update(alert_rules::table.filter(alert_rules::id.eq_any(&failed)))
            .set((
                alert_rules::revision.eq(alert_rules::revision + 1),
                alert_rules::evaluated_at.eq(Some(now.0)),
            ))
            .execute(conn)?;
    }
    Ok(())
}

fn key_of(state: &State) -> (&str, &str) {
    state.group.as_ref().map_or(("", ""), |group| (&group.key, &group.value))
}

fn forget_gone(conn: &mut Conn, rule_id: i64, before: &[State], after: &[State]) -> Result<(), Fault> {
    let kept: std::collections::HashSet<(&str, &str)> = after.iter().map(key_of).collect();
    for (key, value) in before.iter().map(key_of).filter(|key| !kept.contains(key)) {
        diesel::delete(alert_states::table.find((rule_id, key, value))).execute(conn)?;
    }
    Ok(())
}

prepared!(
    PutStates for PgConnection,
    (rule_ids: Array<BigInt> = Vec<i64>, keys: Array<Text> = Vec<&'a str>, values: Array<Text> = Vec<&'a str>,
     statuses: Array<Text> = Vec<&'a str>, firings: Array<Bool> = Vec<bool>, quantities: Array<Text> = Vec<String>,
     messages: Array<Text> = Vec<&'a str>, updated_ats: Array<BigInt> = Vec<i64>),
    "INSERT INTO alert_states (rule_id, group_key, group_value, status, firing, value, message, updated_at)
     SELECT * FROM unnest(?, ?, ?, ?, ?, ?, ?, ?)
     ON CONFLICT (rule_id, group_key, group_value) DO UPDATE SET status = excluded.status, firing = excluded.firing,
         value = excluded.value, message = excluded.message, updated_at = excluded.updated_at"
);
prepared!(
    PutState for SqliteConnection,
    (rule_id: BigInt = i64, key: Text = str, value: Text = str, status: Text = str, firing: Bool = bool,
     quantity: Text = String, message: Text = str, updated_at: BigInt = i64),
    "INSERT INTO alert_states (rule_id, group_key, group_value, status, firing, value, message, updated_at)
     VALUES (?, ?, ?, ?, ?, ?, ?, ?)
     ON CONFLICT (rule_id, group_key, group_value) DO UPDATE SET status = excluded.status, firing = excluded.firing,
         value = excluded.value, message = excluded.message, updated_at = excluded.updated_at"
);

pub(super) fn put_states(conn: &mut Conn, changed: &[(i64, State)]) -> Result<(), Fault> {
    if changed.is_empty() {
        return Ok(());
    }
    let each = || changed.iter().map(|(_, state)| state);
    match conn {
        Conn::Postgres(c) => {
            PutStates {
                rule_ids: &changed.iter().map(|(rule_id, _)| *rule_id).collect(),
                keys: &each().map(|state| key_of(state).0).collect(),
                values: &each().map(|state| key_of(state).1).collect(),
                statuses: &each().map(|state| state.status.as_str()).collect(),
                firings: &each().map(|state| state.firing).collect(),
                quantities: &each().map(|state| state.value.to_plain()).collect(),
                messages: &each().map(|state| state.message.as_str()).collect(),
                updated_ats: &each().map(|state| state.updated_at.0).collect(),
            }
            .execute(c)?;
        }
        Conn::Sqlite(c) => {
            for (rule_id, state) in changed {
                let (key, value) = key_of(state);
                PutState {
                    rule_id,
                    key,
                    value,
                    status: state.status.as_str(),
                    firing: &state.firing,
                    quantity: &state.value.to_plain(),
                    message: &state.message,
                    updated_at: &state.updated_at.0,
                }
                .execute(c)?;
            }
        }
    }
    Ok(())
}

/// What evaluating a disabled rule by hand answers, and leaves behind when nothing else is known of it.
pub fn evaluate_disabled(conn: &mut Conn, rule: &Rule, now: Micros) -> Result<Vec<State>, Fault> {
    rules::lock_row(conn, "alert_rules", rule.id)?;
    let before = states(conn, &[rule.id])?.remove(&rule.id).unwrap_or_default();
    if !before.is_empty() {
        return Ok(before);
    }
    let state = state::disabled_state(now);
    put_states(conn, &[(rule.id, state.clone())])?;
    Ok(vec![state])
}

/// When the earliest rule of a meter is due; `None` when no enabled rule is left.
pub fn next_time(conn: &mut Conn, meter_id: i64) -> Result<Option<Micros>, Fault> {
    let next: Option<i64> = alert_rules::table
        .filter(alert_rules::meter_id.eq(meter_id).and(alert_rules::enabled.eq(true)))
        .select(diesel::dsl::min(alert_rules::next_evaluate_at))
        .first(conn)?;
    Ok(next.map(Micros))
}
