//! Alert rules and destinations, the events they made, and the requests for evaluation. Whoever changes a rule holds
//! the lock of its meter: a write either sees that the meter is watched, or is over before the rule exists, and then
//! the evaluation that every change asks for sees the write. Locks are taken in the order meter, job of the meter,
//! destination, rule, job of a delivery.

use std::collections::HashMap;

use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Bool, Text};

use crate::alerts::jobs::MeterJob;
use crate::alerts::rule::{Comparator, RuleSpec};
use crate::alerts::sql::destinations::{self, Destination};
use crate::alerts::sql::{deliveries, events, states};
use crate::alerts::state;
use crate::alerts::webhook::RulePart;
use crate::chance;
use crate::db::columns::{quantity_of, readable};
use crate::db::schema::{alert_deliveries, alert_destinations, alert_rules, alert_states, meters};
use crate::db::{Conn, DbError, audit, limits};
use crate::entitlements::period::Period;
use crate::error::{Error, Result};
use crate::jobs::dead_letters::DeadLetter;
use crate::jobs::queue::{self, NewJob};
use crate::metering::meter::Meter;
use crate::metering::time::Timestamp;
use crate::meters::sql as meters_store;

/// A rule with what it names.
#[derive(Clone, Debug)]
pub struct Rule {
    pub id: i64,
    pub public_id: String,
    pub workspace_id: i64,
    pub meter_id: i64,
    pub meter: String,
    pub destination: Destination,
    pub terms: RuleSpec,
    pub next_evaluate_at: Timestamp,
    pub evaluated_at: Option<Timestamp>,
    /// Until then nobody is told what happens.
    pub snoozed_until: Option<Timestamp>,
    pub revision: i64,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl Rule {
    pub fn is_snoozed(&self, now: Timestamp) -> bool {
        self.snoozed_until.is_some_and(|until| now < until)
    }

    pub fn part(&self) -> RulePart<'_> {
        let destination = (self.destination.public_id.as_str(), self.destination.name.as_str());
        RulePart::new(&self.public_id, &self.meter, &self.terms, destination)
    }
}

#[derive(Clone, Queryable, Selectable, AsChangeset, Insertable)]
#[diesel(table_name = alert_rules, treat_none_as_null = true, treat_none_as_default_value = false)]
struct Row {
    public_id: String,
    workspace_id: i64,
    meter_id: i64,
    destination_id: i64,
    name: String,
    enabled: bool,
    subject: Option<String>,
    metadata: String,
    window_seconds: i64,
    period: Option<String>,
    comparator: String,
    threshold: String,
    evaluation_interval_seconds: i64,
    group_by: Option<String>,
    next_evaluate_at: i64,
    evaluated_at: Option<i64>,
    snoozed_until: Option<i64>,
    revision: i64,
    created_at: i64,
    updated_at: i64,
}

impl Row {
    fn into_rule(self, id: i64, meter: String, destination: Destination) -> Result<Rule, DbError> {
        Ok(Rule {
            id,
            public_id: self.public_id,
            workspace_id: self.workspace_id,
            meter_id: self.meter_id,
            meter,
            destination,
            terms: RuleSpec {
                name: self.name,
                enabled: self.enabled,
                subject: self.subject,
                metadata: serde_json::from_str(&self.metadata).map_err(Error::internal)?,
                window_seconds: self.window_seconds,
                period: self.period.as_deref().map(period_of).transpose()?,
                comparator: Comparator::parse(&self.comparator)?,
                threshold: quantity_of(&self.threshold)?,
                evaluation_interval_seconds: self.evaluation_interval_seconds,
                group_by: self.group_by,
            },
            next_evaluate_at: Timestamp(self.next_evaluate_at),
            evaluated_at: self.evaluated_at.map(Timestamp),
            snoozed_until: self.snoozed_until.map(Timestamp),
            revision: self.revision,
            created_at: Timestamp(self.created_at),
            updated_at: Timestamp(self.updated_at),
        })
    }

    fn of(rule: &Rule) -> Result<Row, DbError> {
        let terms = &rule.terms;
        Ok(Row {
            public_id: rule.public_id.clone(),
            workspace_id: rule.workspace_id,
            meter_id: rule.meter_id,
            destination_id: rule.destination.id,
            name: terms.name.clone(),
            enabled: terms.enabled,
            subject: terms.subject.clone(),
            metadata: serde_json::to_string(&terms.metadata).map_err(Error::internal)?,
            window_seconds: terms.window_seconds,
            period: terms.period.as_ref().map(Period::to_string),
            comparator: terms.comparator.as_str().to_owned(),
            threshold: terms.threshold.to_plain(),
            evaluation_interval_seconds: terms.evaluation_interval_seconds,
            group_by: terms.group_by.clone(),
            next_evaluate_at: rule.next_evaluate_at.0,
            evaluated_at: rule.evaluated_at.map(|at| at.0),
            snoozed_until: rule.snoozed_until.map(|at| at.0),
            revision: rule.revision,
            created_at: rule.created_at.0,
            updated_at: rule.updated_at.0,
        })
    }
}

fn period_of(key: &str) -> Result<Period, DbError> {
    Period::parse(key)
        .ok_or_else(|| Error::internal(format!("unknown period {key:?} in the database")).into())
}

/// Which rules are asked for.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub public_id: Option<String>,
    pub meter: Option<String>,
    pub enabled: Option<bool>,
    pub meter_id: Option<i64>,
    pub due_at: Option<Timestamp>,
    /// Without those that have no value, and are not due by then.
    pub failed_due_at: Option<Timestamp>,
    /// Rules after this one, oldest first; newest first without.
    pub after: Option<i64>,
}

/// Rules of a workspace, or of a meter. Those that cannot be read are left out; a page is filled up with others.
pub fn rules(
    conn: &mut Conn,
    workspace_id: Option<i64>,
    filter: &Filter,
    limit: i64,
) -> Result<Vec<Rule>, DbError> {
    let (mut found, mut filter) = (Vec::new(), filter.clone());
    loop {
        let wanted = limit - found.len() as i64;
        let rows = page(conn, workspace_id, &filter, wanted)?;
        let is_last = (rows.len() as i64) < wanted || filter.after.is_none();
        filter.after = rows.last().map(|(id, _)| *id);
        found.extend(rows.into_iter().filter_map(|(id, rule)| readable("alert_rules", id, rule)));
        if is_last || found.len() as i64 >= limit {
            return Ok(found);
        }
    }
}

#[derive(Queryable)]
struct Found {
    id: i64,
    row: Row,
    meter: String,
    destination: Destination,
}

impl Found {
    fn into_rule(self) -> Result<Rule, DbError> {
        self.row.into_rule(self.id, self.meter, self.destination)
    }
}

/// A rule by its id, or why its row cannot be read.
type MaybeRead = (i64, Result<Rule, DbError>);

const HAS_NOT_FAILED: &str =
    "NOT EXISTS (SELECT 1 FROM alert_states failed WHERE failed.rule_id = alert_rules.id
    AND failed.group_key = '' AND failed.group_value = '' AND failed.status = 'error')";

fn page(
    conn: &mut Conn,
    workspace_id: Option<i64>,
    filter: &Filter,
    limit: i64,
) -> Result<Vec<MaybeRead>, DbError> {
    let mut query = alert_rules::table
        .inner_join(meters::table.on(meters::id.eq(alert_rules::meter_id)))
        .inner_join(alert_destinations::table.on(alert_destinations::id.eq(alert_rules::destination_id)))
        .select((alert_rules::id, Row::as_select(), meters::name, Destination::as_select()))
        .limit(limit)
        .into_boxed();
    if let Some(workspace_id) = workspace_id {
        query = query.filter(alert_rules::workspace_id.eq(workspace_id));
    }
    if let Some(public_id) = &filter.public_id {
        query = query.filter(alert_rules::public_id.eq(public_id));
    }
    if let Some(meter) = &filter.meter {
        query = query.filter(meters::name.eq(meter));
    }
    if let Some(meter_id) = filter.meter_id {
        query = query.filter(alert_rules::meter_id.eq(meter_id));
    }
    if let Some(enabled) = filter.enabled {
        query = query.filter(alert_rules::enabled.eq(enabled));
    }
    if let Some(at) = filter.due_at {
        query = query.filter(alert_rules::next_evaluate_at.le(at.0));
    }
    if let Some(at) = filter.failed_due_at {
        query = query.filter(alert_rules::next_evaluate_at.le(at.0).or(sql::<Bool>(HAS_NOT_FAILED)));
    }
    query = match filter.after {
        Some(after) => query.filter(alert_rules::id.gt(after)).order(alert_rules::id),
        None => query.order(alert_rules::id.desc()),
    };
    let rows: Vec<Found> = query.load(conn)?;
    Ok(rows.into_iter().map(|found| (found.id, found.into_rule())).collect())
}

/// Rules by their internal ids, in that order.
pub fn rules_by_id(conn: &mut Conn, ids: &[i64]) -> Result<Vec<Rule>, DbError> {
    let rows: Vec<Found> = alert_rules::table
        .inner_join(meters::table.on(meters::id.eq(alert_rules::meter_id)))
        .inner_join(alert_destinations::table.on(alert_destinations::id.eq(alert_rules::destination_id)))
        .select((alert_rules::id, Row::as_select(), meters::name, Destination::as_select()))
        .filter(alert_rules::id.eq_any(ids).and(alert_rules::enabled.eq(true)))
        .order(alert_rules::id)
        .load(conn)?;
    Ok(rows.into_iter().filter_map(|found| readable("alert_rules", found.id, found.into_rule())).collect())
}

pub fn rule(conn: &mut Conn, workspace_id: i64, public_id: &str) -> Result<Option<Rule>, DbError> {
    let filter = Filter { public_id: Some(public_id.to_owned()), ..Filter::default() };
    page(conn, Some(workspace_id), &filter, 1)?.pop().map(|(_, rule)| rule).transpose()
}

/// The internal id of a rule.
pub fn id_of(conn: &mut Conn, workspace_id: i64, public_id: &str) -> Result<Option<i64>, DbError> {
    let rule = alert_rules::table
        .filter(alert_rules::workspace_id.eq(workspace_id).and(alert_rules::public_id.eq(public_id)));
    Ok(rule.select(alert_rules::id).first(conn).optional()?)
}

fn no_such_rule() -> DbError {
    Error::not_found("alert rule").into()
}

/// Keeps others from changing a row until the transaction ends; SQLite has one writer anyway.
pub fn lock_row(conn: &mut Conn, table: &str, id: i64) -> Result<(), DbError> {
    if conn.is_postgres() {
        sql_query(format!("SELECT id FROM {table} WHERE id = $1 FOR UPDATE"))
            .bind::<BigInt, _>(id)
            .execute(conn)?;
    }
    Ok(())
}

/// Locks a meter against writers and says what it is called.
fn lock_meter(conn: &mut Conn, workspace_id: i64, name: &str) -> Result<i64, DbError> {
    let gone = || DbError::from(Error::not_found(format!("meter {name:?}")));
    let found = crate::meters::sql::find_by_name(conn, workspace_id, name)?.ok_or_else(gone)?;
    crate::meters::sql::lock(conn, found.id)?;
    let exists: Option<i64> = meters::table.find(found.id).select(meters::id).first(conn).optional()?;
    exists.ok_or_else(gone)
}

/// Tells writers whether the meter is watched. Under the meter's lock.
fn mark_meter(conn: &mut Conn, meter_id: i64) -> Result<(), DbError> {
    sql_query(
        "UPDATE meters SET has_alerts = EXISTS
             (SELECT 1 FROM alert_rules WHERE alert_rules.meter_id = meters.id AND alert_rules.enabled = $1)
         WHERE id = $2",
    )
    .bind::<Bool, _>(true)
    .bind::<BigInt, _>(meter_id)
    .execute(conn)?;
    Ok(())
}

/// What to add: names are looked up here.
#[derive(Clone, Debug)]
pub struct NewRule {
    pub workspace_id: i64,
    pub meter: String,
    pub destination_id: String,
    pub terms: RuleSpec,
}

pub fn add(conn: &mut Conn, new: &NewRule, now: Timestamp) -> Result<Rule, DbError> {
    limits::check(conn, limits::Kind::AlertRule, new.workspace_id)?;
    let meter_id = lock_meter(conn, new.workspace_id, &new.meter)?;
    queue::enqueue(conn, vec![MeterJob::timed(new.workspace_id, meter_id, &new.meter, now)?], now)?;
    let destination = destinations::lock(conn, new.workspace_id, &new.destination_id)?;
    let mut rule = Rule {
        id: 0,
        public_id: chance::id().to_string(),
        workspace_id: new.workspace_id,
        meter_id,
        meter: new.meter.clone(),
        destination,
        terms: new.terms.clone(),
        next_evaluate_at: now,
        evaluated_at: None,
        snoozed_until: None,
        revision: 1,
        created_at: now,
        updated_at: now,
    };
    rule.id = diesel::insert_into(alert_rules::table)
        .values(&Row::of(&rule)?)
        .returning(alert_rules::id)
        .get_result(conn)?;
    mark_meter(conn, meter_id)?;
    audit::about(&rule.public_id, &rule.terms.name);
    audit::states(None, Some(shown(&rule.meter, &rule.terms)));
    Ok(rule)
}

/// What the audit trail keeps of a rule.
fn shown(meter: &str, terms: &RuleSpec) -> audit::Shown {
    serde_json::json!({"name": terms.name, "meter": meter, "enabled": terms.enabled, "subject": terms.subject,
        "metadata": terms.metadata, "window_seconds": terms.window_seconds, "period": terms.period.as_ref().map(Period::as_str), "comparator": terms.comparator.as_str(),
        "threshold": terms.threshold, "group_by": terms.group_by,
        "evaluation_interval_seconds": terms.evaluation_interval_seconds})
}

/// A change as the handler makes it from the rule: new terms, and other names where those change.
#[derive(Clone, Debug)]
pub struct Change {
    pub terms: RuleSpec,
    pub meter: Option<String>,
    pub destination_id: Option<String>,
}

/// Changes a rule. What fired under the old terms and is not looked at any more is resolved; everything else the
/// next evaluation finds out.
pub fn update(
    conn: &mut Conn,
    workspace_id: i64,
    public_id: &str,
    change: impl Fn(&Rule) -> Result<Change>,
    now: Timestamp,
) -> Result<Rule, DbError> {
    let found = rule(conn, workspace_id, public_id)?.ok_or_else(no_such_rule)?;
    let asked = change(&found)?;
    let meter = asked.meter.clone().unwrap_or_else(|| found.meter.clone());
    // two meters are locked in the order of their names, which do not change
    let mut names = vec![found.meter.clone(), meter.clone()];
    names.sort();
    names.dedup();
    let mut ids = HashMap::new();
    for name in names {
        ids.insert(name.clone(), lock_meter(conn, workspace_id, &name)?);
    }
    let meter_id = ids.get(&meter).copied().ok_or_else(no_such_rule)?;
    queue::enqueue(conn, vec![MeterJob::timed(workspace_id, meter_id, &meter, now)?], now)?;
    let destination = match &asked.destination_id {
        Some(id) => Some(destinations::lock(conn, workspace_id, id)?),
        None => None,
    };
    lock_row(conn, "alert_rules", found.id)?;
    // again, now that nobody else can change it
    let old = rule(conn, workspace_id, public_id)?.ok_or_else(no_such_rule)?;
    let terms = change(&old)?.terms;
    audit::about(public_id, &terms.name);
    audit::states(Some(shown(&old.meter, &old.terms)), Some(shown(&meter, &terms)));
    let keeps_states = terms.enabled && terms.group_by == old.terms.group_by;
    if !keeps_states {
        let reason = if terms.enabled { "the grouping was changed" } else { "the rule was disabled" };
        close(conn, &old, reason, now)?;
    }
    let new = Rule {
        meter_id,
        meter,
        destination: destination.unwrap_or_else(|| old.destination.clone()),
        next_evaluate_at: now,
        evaluated_at: old.evaluated_at.filter(|_| keeps_states),
        revision: old.revision + 1,
        updated_at: now,
        terms,
        ..old
    };
    diesel::update(alert_rules::table.find(new.id)).set(&Row::of(&new)?).execute(conn)?;
    for meter_id in ids.into_values() {
        mark_meter(conn, meter_id)?;
    }
    Ok(new)
}

/// Keeps a rule from telling anybody what happens until then, or lets it tell again. It is evaluated as ever.
pub fn snooze(
    conn: &mut Conn,
    workspace_id: i64,
    public_id: &str,
    until: Option<Timestamp>,
    now: Timestamp,
) -> Result<Rule, DbError> {
    let found = rule(conn, workspace_id, public_id)?.ok_or_else(no_such_rule)?;
    lock_row(conn, "alert_rules", found.id)?;
    let old = rule(conn, workspace_id, public_id)?.ok_or_else(no_such_rule)?;
    let state = |until: Option<Timestamp>| serde_json::json!({"snoozed_until": until});
    audit::about(public_id, &old.terms.name);
    audit::states(Some(state(old.snoozed_until)), Some(state(until)));
    // what is being evaluated now was read before, and is looked at again
    let new = Rule { snoozed_until: until, revision: old.revision + 1, updated_at: now, ..old };
    diesel::update(alert_rules::table.find(new.id)).set(&Row::of(&new)?).execute(conn)?;
    Ok(new)
}

/// Resolves what fires and forgets all states. Under the rule's lock.
fn close(conn: &mut Conn, rule: &Rule, reason: &str, now: Timestamp) -> Result<(), DbError> {
    let before = states::of_rules(conn, &[rule.id])?.remove(&rule.id).unwrap_or_default();
    let crossings = state::close(&before, reason, now);
    let mut wanted = Vec::new();
    for crossing in &crossings {
        events::record(conn, rule, crossing, now)?;
        if !rule.is_snoozed(now) {
            wanted.push(deliveries::job(rule.workspace_id, rule.id, now)?);
        }
    }
    diesel::delete(alert_states::table.filter(alert_states::rule_id.eq(rule.id))).execute(conn)?;
    queue::enqueue(conn, wanted, now)
}

/// Deletes a rule with its events. What is on its way to the receiver is still delivered, and what fires is resolved.
pub fn delete(conn: &mut Conn, workspace_id: i64, public_id: &str, now: Timestamp) -> Result<(), DbError> {
    let found = rule(conn, workspace_id, public_id)?.ok_or_else(no_such_rule)?;
    lock_meter(conn, workspace_id, &found.meter)?;
    lock_row(conn, "alert_rules", found.id)?;
    let rule = rule(conn, workspace_id, public_id)?.ok_or_else(no_such_rule)?;
    close(conn, &rule, "the rule was deleted", now)?;
    audit::about(&rule.public_id, &rule.terms.name);
    audit::states(Some(shown(&rule.meter, &rule.terms)), None);
    let settled = alert_deliveries::rule_id.eq(rule.id).and(alert_deliveries::status.ne("pending"));
    diesel::delete(alert_deliveries::table.filter(settled)).execute(conn)?;
    diesel::delete(alert_rules::table.find(rule.id)).execute(conn)?;
    mark_meter(conn, rule.meter_id)
}

fn is_watched(conn: &mut Conn, meter_id: i64) -> Result<bool, DbError> {
    let any: Option<i64> = alert_rules::table
        .filter(alert_rules::meter_id.eq(meter_id))
        .select(alert_rules::id)
        .first(conn)
        .optional()?;
    Ok(any.is_some())
}

/// Rules that use something, as far as whoever must not lose them is told: id and name, the newest first, disabled ones
/// too.
pub fn on_meter(conn: &mut Conn, meter_id: i64) -> Result<Vec<(String, String)>, DbError> {
    let rules = alert_rules::table.filter(alert_rules::meter_id.eq(meter_id)).order(alert_rules::id.desc());
    Ok(rules.select((alert_rules::public_id, alert_rules::name)).load(conn)?)
}

#[derive(QueryableByName)]
struct Uses {
    #[diesel(sql_type = BigInt)]
    meter_id: i64,
    #[diesel(sql_type = BigInt)]
    rules: i64,
}

/// How many rules of a workspace are on each meter; those that have none are not told.
pub fn count_on_meters(conn: &mut Conn, workspace_id: i64) -> Result<HashMap<i64, i64>, DbError> {
    let text = "-- alerts::rules::count_on_meters
        SELECT meter_id, CAST(COUNT(*) AS BIGINT) AS rules FROM alert_rules WHERE workspace_id = $1 GROUP BY meter_id";
    let rows: Vec<Uses> = sql_query(text).bind::<BigInt, _>(workspace_id).load(conn)?;
    Ok(rows.into_iter().map(|row| (row.meter_id, row.rules)).collect())
}

/// As [`on_meter`], of a destination.
pub fn sent_to(conn: &mut Conn, destination_id: i64) -> Result<Vec<(String, String)>, DbError> {
    let rules = alert_rules::table.filter(alert_rules::destination_id.eq(destination_id));
    let rules = rules.order(alert_rules::id.desc());
    Ok(rules.select((alert_rules::public_id, alert_rules::name)).load(conn)?)
}

/// Asks for an evaluation of the rules on a meter whose definition gives the same events another value.
pub fn enqueue_meter(conn: &mut Conn, meter: &Meter, now: Timestamp) -> Result<(), DbError> {
    if !is_watched(conn, meter.id)? {
        return Ok(());
    }
    let job = MeterJob::usage(meter.workspace_id, meter.id, &meter.name, 0, now)?;
    queue::enqueue(conn, vec![job], now)
}

/// Brings the evaluation of a meter by the clock forward to when the first of its rules is due: one without a value is
/// due sooner than it was.
pub fn come_again(conn: &mut Conn, workspace_id: i64, meter: &MeterJob) -> Result<(), DbError> {
    let Some(next) = states::next_time(conn, meter.meter_id)? else { return Ok(()) };
    let job = MeterJob::timed(workspace_id, meter.meter_id, &meter.meter, next)?;
    queue::enqueue(conn, vec![job], Timestamp::now())
}

/// 409 while a rule watches the meter.
pub fn refuse_while_watched(conn: &mut Conn, meter: &Meter) -> Result<(), DbError> {
    if is_watched(conn, meter.id)? {
        return Err(Error::conflict(format!("alert rules watch the meter {:?}", meter.name)).into());
    }
    Ok(())
}

/// What a dead job was about and no longer exists.
pub fn what_is_gone(conn: &mut Conn, letter: &DeadLetter) -> Result<Option<&'static str>, DbError> {
    let job: MeterJob = letter.payload()?;
    if meters_store::find_by_id(conn, job.meter_id)?.is_none() {
        return Ok(Some("the meter is gone"));
    }
    Ok((!is_watched(conn, job.meter_id)?).then_some("the rules on the meter are gone"))
}

#[derive(QueryableByName)]
struct Overdue {
    #[diesel(sql_type = BigInt)]
    meter_id: i64,
    #[diesel(sql_type = BigInt)]
    workspace_id: i64,
    #[diesel(sql_type = Text)]
    name: String,
}

/// The clock was set back: rules whose next evaluation is further away than their interval are due now.
pub fn rebase(conn: &mut Conn, now: Timestamp) -> Result<usize, DbError> {
    let text = "UPDATE alert_rules SET next_evaluate_at = $1
                WHERE next_evaluate_at > $1 + evaluation_interval_seconds * 1000000";
    Ok(sql_query(text).bind::<BigInt, _>(now.0).execute(conn)?)
}

/// Asks again for evaluations that are long overdue and that nobody is asked for: their jobs died.
pub fn revive(conn: &mut Conn, overdue_since: Timestamp, now: Timestamp) -> Result<usize, DbError> {
    let rows: Vec<Overdue> = sql_query(
        "SELECT DISTINCT r.meter_id, m.workspace_id, m.name FROM alert_rules r JOIN meters m ON m.id = r.meter_id
         WHERE r.enabled = $1 AND r.next_evaluate_at < $2
           AND NOT EXISTS (SELECT 1 FROM jobs WHERE queue = 'alerts' AND key = CAST(r.meter_id AS TEXT))
         LIMIT 1000",
    )
    .bind::<Bool, _>(true)
    .bind::<BigInt, _>(overdue_since.0)
    .load(conn)?;
    let wanted: Result<Vec<NewJob>> =
        rows.iter().map(|row| MeterJob::timed(row.workspace_id, row.meter_id, &row.name, now)).collect();
    queue::enqueue(conn, wanted?, now)?;
    Ok(rows.len())
}
