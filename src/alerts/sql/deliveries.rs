//! The outbox of webhooks: what is to be sent, in the order of each group of a rule, and every attempt. Rows are written
//! with the event they carry; one job per rule sends them. The oldest pending delivery of a group is its head: only heads
//! are sent, so that a receiver sees the events of a group in order, and groups do not wait for each other.

use std::collections::{BTreeSet, HashMap};

use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Nullable, Text};
use ring::digest;

use crate::alerts::sql::destinations::{self, Destination};
use crate::alerts::sql::rules::Rule;
use crate::alerts::state::Group;
use crate::alerts::webhook::client::WebhookResponse;
use crate::alerts::webhook::{ATTEMPTS_MAX, pause_after};
use crate::chance;
use crate::db::schema::{alert_attempts, alert_deliveries};
use crate::db::statement::{Statement, integers};
use crate::db::{Conn, DbError};
use crate::error::{Error, Result};
use crate::jobs::dead_letters::DeadLetter;
use crate::jobs::queue::{self, Job, LeaseToken, NewJob};
use crate::metering::time::{SECOND, Timestamp};

pub const QUEUE: &str = "webhooks";

/// The job that sends what waits for a rule; its payload is the rule's id.
pub fn job(workspace_id: i64, rule_id: i64, now: Timestamp) -> Result<NewJob> {
    NewJob::new(QUEUE, rule_id.to_string(), workspace_id, &rule_id, now)
}

#[derive(Clone, Debug, Queryable, QueryableByName, Selectable)]
#[diesel(table_name = alert_deliveries)]
pub struct Delivery {
    pub id: i64,
    pub public_id: String,
    pub workspace_id: i64,
    pub rule_id: i64,
    pub event_id: String,
    pub destination_id: String,
    pub payload: String,
    pub status: String,
    pub attempts: i32,
    pub next_attempt_at: i64,
    pub last_error: Option<String>,
    pub created_at: i64,
    pub updated_at: i64,
    pub delivered_at: Option<i64>,
}

#[derive(Insertable)]
#[diesel(table_name = alert_deliveries, treat_none_as_default_value = false)]
struct NewRow<'a> {
    public_id: String,
    workspace_id: i64,
    rule_id: i64,
    event_id: &'a str,
    destination_id: &'a str,
    ordering_key: String,
    payload: String,
    status: &'static str,
    attempts: i32,
    next_attempt_at: i64,
    created_at: i64,
    updated_at: i64,
}

/// What deliveries that must keep their order have in common: the group, in few bytes however long its value is.
fn ordering_key(group: Option<&Group>) -> String {
    let Some(group) = group else { return String::new() };
    let hash = digest::digest(&digest::SHA256, format!("{}\0{}", group.key, group.value).as_bytes());
    hash.as_ref().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// An event on its way to the receiver.
pub struct Outgoing<'a> {
    pub event_id: &'a str,
    pub group: Option<&'a Group>,
    pub payload: String,
}

/// Puts an event on its way; the caller enqueues [`job`] in the same transaction.
pub fn add(conn: &mut Conn, rule: &Rule, outgoing: Outgoing<'_>, now: Timestamp) -> Result<(), DbError> {
    let Outgoing { event_id, group, payload } = outgoing;
    let row = NewRow {
        public_id: chance::id().to_string(),
        workspace_id: rule.workspace_id,
        rule_id: rule.id,
        event_id,
        destination_id: &rule.destination.public_id,
        ordering_key: ordering_key(group),
        payload,
        status: "pending",
        attempts: 0,
        next_attempt_at: now.0,
        created_at: now.0,
        updated_at: now.0,
    };
    diesel::insert_into(alert_deliveries::table).values(&row).execute(conn)?;
    Ok(())
}

/// What a rule may send now.
#[derive(Default)]
pub struct Due {
    /// Heads of their groups, with where they go: those that were tried least often first.
    pub heads: Vec<(Delivery, Option<Destination>)>,
    /// When the next head that is neither busy nor among these is due; `None` when there is none.
    pub next_at: Option<Timestamp>,
}

/// The ids of the heads of a rule's groups.
const HEADS: &str =
    "SELECT MIN(id) FROM alert_deliveries WHERE rule_id = $1 AND status = 'pending' GROUP BY ordering_key";

/// Up to `limit` heads that are due, without those that are busy.
pub fn due_heads(
    conn: &mut Conn,
    rule_id: i64,
    busy: &BTreeSet<i64>,
    now: Timestamp,
    limit: usize,
) -> Result<Due, DbError> {
    // one more says whether something is left over
    let wanted = (limit + busy.len() + 1) as i64;
    let rows: Vec<Delivery> = sql_query(format!(
        "SELECT * FROM alert_deliveries WHERE id IN ({HEADS}) 
         ORDER BY CASE WHEN next_attempt_at > $2 THEN next_attempt_at ELSE 0 END, attempts, next_attempt_at, id LIMIT $3"
    ))
    .bind::<BigInt, _>(rule_id)
    .bind::<BigInt, _>(now.0)
    .bind::<BigInt, _>(wanted)
    .load(conn)?;
    let mut due = Due::default();
    let mut destinations: HashMap<String, Option<Destination>> = HashMap::new();
    for delivery in rows.into_iter().filter(|delivery| !busy.contains(&delivery.id)) {
        if delivery.next_attempt_at > now.0 || due.heads.len() == limit {
            let at = Timestamp(delivery.next_attempt_at);
            due.next_at = Some(due.next_at.map_or(at, |other| other.min(at)));
            continue;
        }
        let destination = match destinations.get(&delivery.destination_id) {
            Some(known) => known.clone(),
            None => {
                let found = destinations::find(conn, delivery.workspace_id, &delivery.destination_id)?;
                destinations.insert(delivery.destination_id.clone(), found.clone());
                found
            }
        };
        due.heads.push((delivery, destination));
    }
    Ok(due)
}

/// Whether a rule owes anything at all.
fn owes(conn: &mut Conn, rule_id: i64) -> Result<bool, DbError> {
    let any: Option<i64> = alert_deliveries::table
        .filter(alert_deliveries::rule_id.eq(rule_id).and(alert_deliveries::status.eq("pending")))
        .select(alert_deliveries::id)
        .first(conn)
        .optional()?;
    Ok(any.is_some())
}

#[derive(Insertable)]
#[diesel(table_name = alert_attempts, treat_none_as_default_value = false)]
struct AttemptRow<'a> {
    public_id: String,
    delivery_id: i64,
    event_id: &'a str,
    status: &'static str,
    status_code: Option<i32>,
    error: Option<&'a str>,
    response: Option<&'a str>,
    duration_ms: i64,
    attempted_at: i64,
}

/// Whether a failure is worth another try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    Retry,
    GiveUp,
    /// Nobody was called: it is no attempt, and the delivery waits for a process that can make one.
    Wait,
}

/// How soon a delivery that waits is looked at again.
const WAIT: i64 = 10 * SECOND;

/// Writes down an attempt and what follows from it. False, and nothing written, when somebody else has the job.
pub fn record(
    conn: &mut Conn,
    (job, token): (&Job, &LeaseToken),
    delivery: &Delivery,
    answer: &WebhookResponse,
    patience: Patience,
    at: Timestamp,
) -> Result<bool, DbError> {
    if !queue::holds(conn, job, token)? {
        return Ok(false);
    }
    if patience == Patience::Wait {
        put_off(conn, delivery, answer)?;
        return Ok(true);
    }
    let row = AttemptRow {
        public_id: chance::id().to_string(),
        delivery_id: delivery.id,
        event_id: &delivery.event_id,
        status: if answer.is_delivered() { "delivered" } else { "failed" },
        status_code: answer.status_code.map(i32::from),
        error: answer.error.as_deref(),
        response: answer.response.as_deref(),
        duration_ms: answer.duration_ms,
        attempted_at: at.0,
    };
    diesel::insert_into(alert_attempts::table).values(&row).execute(conn)?;
    let now = Timestamp::now();
    let attempts = delivery.attempts + 1;
    let pause = match patience {
        Patience::Retry => pause_after(attempts, answer.retry_after, chance::within(0.9..1.1)),
        Patience::GiveUp | Patience::Wait => None,
    };
    let (status, next) = match (answer.is_delivered(), pause) {
        (true, _) => ("delivered", now),
        (false, Some(pause)) => ("pending", now.plus(pause.as_micros() as i64)),
        (false, None) => ("dead_letter", now),
    };
    diesel::update(alert_deliveries::table.find(delivery.id))
        .set((
            alert_deliveries::status.eq(status),
            alert_deliveries::attempts.eq(attempts.min(ATTEMPTS_MAX)),
            alert_deliveries::next_attempt_at.eq(next.0),
            alert_deliveries::last_error.eq(answer.error.as_deref()),
            alert_deliveries::updated_at.eq(now.0),
            alert_deliveries::delivered_at.eq(answer.is_delivered().then_some(now.0)),
        ))
        .execute(conn)?;
    Ok(true)
}

/// A delivery that could not be tried comes again soon, with as many attempts as before and the reason beside it.
fn put_off(conn: &mut Conn, delivery: &Delivery, answer: &WebhookResponse) -> Result<(), DbError> {
    let now = Timestamp::now();
    diesel::update(alert_deliveries::table.find(delivery.id))
        .set((
            alert_deliveries::next_attempt_at.eq(now.plus(WAIT).0),
            alert_deliveries::last_error.eq(answer.error.as_deref()),
            alert_deliveries::updated_at.eq(now.0),
        ))
        .execute(conn)?;
    Ok(())
}

/// What a dead job was about and no longer exists: deliveries outlive their rule, so only having been sent counts.
pub fn what_is_gone(conn: &mut Conn, letter: &DeadLetter) -> Result<Option<&'static str>, DbError> {
    Ok((!owes(conn, letter.payload()?)?).then_some("the deliveries of the rule are done"))
}

/// A delivery as clients see it.
pub struct Listed {
    pub delivery: Delivery,
    /// The older delivery of its group that it waits for.
    pub blocked_by: Option<String>,
}

/// What a list is narrowed to.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// As stored: `pending`, `delivered` or `dead_letter`.
    pub status: Option<String>,
    pub rule_id: Option<i64>,
    pub destination_id: Option<String>,
    pub from: Option<Timestamp>,
    pub to: Option<Timestamp>,
    /// Older than this one.
    pub before: Option<i64>,
}

type Narrowed = alert_deliveries::BoxedQuery<'static, <Conn as Connection>::Backend>;

fn narrowed(workspace_id: i64, filter: &Filter, is_settled: bool) -> Narrowed {
    let mut query =
        alert_deliveries::table.filter(alert_deliveries::workspace_id.eq(workspace_id)).into_boxed();
    if is_settled {
        query = query.filter(alert_deliveries::status.ne("pending"));
    }
    if let Some(status) = &filter.status {
        query = query.filter(alert_deliveries::status.eq(status.clone()));
    }
    if let Some(rule_id) = filter.rule_id {
        query = query.filter(alert_deliveries::rule_id.eq(rule_id));
    }
    if let Some(destination_id) = &filter.destination_id {
        query = query.filter(alert_deliveries::destination_id.eq(destination_id.clone()));
    }
    if let Some(from) = filter.from {
        query = query.filter(alert_deliveries::created_at.ge(from.0));
    }
    if let Some(to) = filter.to {
        query = query.filter(alert_deliveries::created_at.lt(to.0));
    }
    if let Some(before) = filter.before {
        query = query.filter(alert_deliveries::id.lt(before));
    }
    query
}

fn matching(
    conn: &mut Conn,
    workspace_id: i64,
    filter: &Filter,
    is_settled: bool,
    limit: i64,
) -> Result<Vec<Delivery>, DbError> {
    let query = narrowed(workspace_id, filter, is_settled).order(alert_deliveries::id.desc());
    Ok(query.limit(limit).select(Delivery::as_select()).load(conn)?)
}

/// How many of those that match were delivered, and how many given up: both can be sent again. Up to `most`.
pub fn settled(
    conn: &mut Conn,
    workspace_id: i64,
    filter: &Filter,
    most: i64,
) -> Result<(usize, usize), DbError> {
    let query = narrowed(workspace_id, filter, true);
    let found: Vec<String> = query.limit(most).select(alert_deliveries::status).load(conn)?;
    let delivered = found.iter().filter(|status| *status == "delivered").count();
    Ok((delivered, found.len() - delivered))
}

/// Sends again up to `limit` of those that match and do not wait already, the newest first. Answers how many, and the
/// last of them unless there are no more.
pub fn replay(
    conn: &mut Conn,
    workspace_id: i64,
    filter: &Filter,
    limit: i64,
    now: Timestamp,
) -> Result<(usize, Option<i64>), DbError> {
    let deliveries = matching(conn, workspace_id, filter, true, limit)?;
    for delivery in &deliveries {
        send_again(conn, delivery, now)?;
    }
    let is_full = deliveries.len() as i64 == limit;
    Ok((deliveries.len(), deliveries.last().filter(|_| is_full).map(|last| last.id)))
}

/// Sends these again, whatever became of them before; those that wait already, and those that are gone, are left alone.
pub fn replay_picked(
    conn: &mut Conn,
    workspace_id: i64,
    public_ids: &[String],
    now: Timestamp,
) -> Result<usize, DbError> {
    let picked: Vec<Delivery> = alert_deliveries::table
        .filter(alert_deliveries::workspace_id.eq(workspace_id))
        .filter(alert_deliveries::public_id.eq_any(public_ids))
        .filter(alert_deliveries::status.ne("pending"))
        .order(alert_deliveries::id)
        .select(Delivery::as_select())
        .load(conn)?;
    for delivery in &picked {
        send_again(conn, delivery, now)?;
    }
    Ok(picked.len())
}

/// Newest first; with a status, only those.
pub fn list(
    conn: &mut Conn,
    workspace_id: i64,
    status: Option<&str>,
    limit: i64,
) -> Result<Vec<Listed>, DbError> {
    let filter = Filter { status: status.map(str::to_owned), ..Filter::default() };
    page(conn, workspace_id, &filter, limit)
}

/// Newest first, of those that match.
pub fn page(conn: &mut Conn, workspace_id: i64, filter: &Filter, limit: i64) -> Result<Vec<Listed>, DbError> {
    let rows = matching(conn, workspace_id, filter, false, limit)?;
    let pending: Vec<i64> = rows.iter().filter(|row| row.status == "pending").map(|row| row.id).collect();
    if pending.is_empty() {
        return Ok(rows.into_iter().map(|delivery| Listed { delivery, blocked_by: None }).collect());
    }
    let running = running(conn, workspace_id, Timestamp::now())?;
    let mut blocked_by = blocked_by(conn, &pending)?;
    let listed = rows.into_iter().map(|mut delivery| {
        if running.contains(&delivery.id) {
            RUNNING.clone_into(&mut delivery.status);
        }
        Listed { blocked_by: blocked_by.remove(&delivery.id), delivery }
    });
    Ok(listed.collect())
}

/// What became of one attempt, and how long it took.
#[derive(QueryableByName)]
pub struct Tried {
    #[diesel(sql_type = Text)]
    pub status: String,
    #[diesel(sql_type = BigInt)]
    pub duration_ms: i64,
}

/// Attempts at a destination since a time, of the newest 1,000 deliveries of its workspace.
pub fn tried(
    conn: &mut Conn,
    workspace_id: i64,
    destination_id: &str,
    since: Timestamp,
) -> Result<Vec<Tried>, DbError> {
    let text = "-- alerts::deliveries::tried
        SELECT a.status, a.duration_ms FROM
            (SELECT id, destination_id FROM alert_deliveries WHERE workspace_id = $1 ORDER BY id DESC LIMIT 1000) AS d
        JOIN alert_attempts a ON a.delivery_id = d.id
        WHERE d.destination_id = $2 AND a.attempted_at >= $3";
    Ok(sql_query(text)
        .bind::<BigInt, _>(workspace_id)
        .bind::<Text, _>(destination_id)
        .bind::<BigInt, _>(since.0)
        .load(conn)?)
}

#[derive(QueryableByName)]
struct Blocked {
    #[diesel(sql_type = BigInt)]
    id: i64,
    #[diesel(sql_type = Text)]
    blocked_by: String,
}

/// The heads that these pending deliveries wait for; those that are heads themselves are left out.
fn blocked_by(conn: &mut Conn, pending: &[i64]) -> Result<HashMap<i64, String>, DbError> {
    let rows: Vec<Blocked> = sql_query(format!(
        "SELECT d.id, e.public_id AS blocked_by FROM alert_deliveries d JOIN alert_deliveries e ON e.id =
             (SELECT MIN(h.id) FROM alert_deliveries h
              WHERE h.rule_id = d.rule_id AND h.ordering_key = d.ordering_key AND h.status = 'pending')
         WHERE d.id IN ({}) AND e.id < d.id",
        integers(pending)
    ))
    .load(conn)?;
    Ok(rows.into_iter().map(|row| (row.id, row.blocked_by)).collect())
}

/// What clients are told while a worker has a delivery in hand. Never stored, so that a killed worker leaves nothing
/// behind: it is a head that is due, while a worker holds the rule's job.
const RUNNING: &str = "running";

#[derive(QueryableByName)]
struct Running {
    #[diesel(sql_type = BigInt)]
    id: i64,
}

fn running(conn: &mut Conn, workspace_id: i64, now: Timestamp) -> Result<Vec<i64>, DbError> {
    let rows: Vec<Running> = sql_query(
        "SELECT d.id FROM jobs j JOIN alert_deliveries d ON CAST(d.rule_id AS TEXT) = j.key
         WHERE j.queue = $1 AND j.workspace_id = $2 AND j.leased_until >= $3
           AND d.workspace_id = $2 AND d.status = 'pending' AND d.next_attempt_at <= $3
           AND NOT EXISTS (SELECT 1 FROM alert_deliveries e WHERE e.rule_id = d.rule_id
                           AND e.ordering_key = d.ordering_key AND e.status = 'pending' AND e.id < d.id)",
    )
    .bind::<Text, _>(QUEUE)
    .bind::<BigInt, _>(workspace_id)
    .bind::<BigInt, _>(now.0)
    .load(conn)?;
    Ok(rows.into_iter().map(|row| row.id).collect())
}

/// What is owed to receivers, since when, and why.
#[derive(Clone, Debug, Default, QueryableByName)]
pub struct Owed {
    /// Neither delivered nor given up.
    #[diesel(sql_type = BigInt)]
    pub pending: i64,
    /// Pending with an error behind them.
    #[diesel(sql_type = BigInt)]
    pub failing: i64,
    /// Given up: only a call to retry them sends them.
    #[diesel(sql_type = BigInt)]
    pub dead_letters: i64,
    /// When the oldest pending one happened.
    #[diesel(sql_type = Nullable<BigInt>)]
    pub oldest_at: Option<i64>,
    #[diesel(sql_type = Nullable<BigInt>)]
    pub next_attempt_at: Option<i64>,
    /// Of the oldest that has one.
    #[diesel(sql_type = Nullable<Text>)]
    pub last_error: Option<String>,
}

/// Of a workspace, or of all.
pub fn owed(conn: &mut Conn, workspace_id: Option<i64>) -> Result<Owed, DbError> {
    let mut statement = Statement::new(conn);
    let own = workspace_id.map_or(String::new(), |id| format!("AND workspace_id = {}", statement.int(id)));
    let count = |what: &str| format!("CAST(COALESCE(SUM(CASE WHEN {what} THEN 1 ELSE 0 END), 0) AS BIGINT)");
    let least = |column: &str| format!("MIN(CASE WHEN status = 'pending' THEN {column} END)");
    let text = format!(
        "-- alerts::sql::deliveries::owed
         SELECT {} AS pending, {} AS failing, {} AS dead_letters, {} AS oldest_at, {} AS next_attempt_at,
                (SELECT last_error FROM alert_deliveries WHERE status <> 'delivered' AND last_error IS NOT NULL {own}
                 ORDER BY id LIMIT 1) AS last_error
         FROM alert_deliveries WHERE status <> 'delivered' {own}",
        count("status = 'pending'"),
        count("status = 'pending' AND last_error IS NOT NULL"),
        count("status = 'dead_letter'"),
        least("created_at"),
        least("next_attempt_at"),
    );
    Ok(statement.load(conn, &text)?.pop().unwrap_or_default())
}

fn send_again(conn: &mut Conn, delivery: &Delivery, now: Timestamp) -> Result<(), DbError> {
    // first the job, as the worker takes them
    queue::enqueue(conn, vec![job(delivery.workspace_id, delivery.rule_id, now)?], now)?;
    diesel::update(alert_deliveries::table.find(delivery.id))
        .set((
            alert_deliveries::status.eq("pending"),
            alert_deliveries::attempts.eq(0),
            alert_deliveries::next_attempt_at.eq(now.0),
            alert_deliveries::delivered_at.eq(None::<i64>),
            alert_deliveries::updated_at.eq(now.0),
        ))
        .execute(conn)?;
    Ok(())
}

/// Tries a dead delivery again from the start; 409 in any other state.
pub fn retry(conn: &mut Conn, workspace_id: i64, public_id: &str, now: Timestamp) -> Result<(), DbError> {
    let delivery: Delivery = alert_deliveries::table
        .filter(alert_deliveries::workspace_id.eq(workspace_id))
        .filter(alert_deliveries::public_id.eq(public_id))
        .select(Delivery::as_select())
        .first(conn)
        .optional()?
        .ok_or_else(|| Error::not_found("delivery job"))?;
    if delivery.status != "dead_letter" {
        let is_running = running(conn, workspace_id, now)?.contains(&delivery.id);
        let status = if is_running { RUNNING } else { &delivery.status };
        return Err(Error::conflict(format!("the delivery job is {status}")).into());
    }
    send_again(conn, &delivery, now)
}

/// The delivery of an event; none when nobody was to be told.
pub fn of_event(conn: &mut Conn, workspace_id: i64, event_id: &str) -> Result<Option<Delivery>, DbError> {
    let own = alert_deliveries::table
        .filter(alert_deliveries::workspace_id.eq(workspace_id))
        .filter(alert_deliveries::event_id.eq(event_id));
    Ok(own.select(Delivery::as_select()).first(conn).optional()?)
}

/// Sends an event again, whatever became of it before, under the same id.
pub fn redeliver(
    conn: &mut Conn,
    workspace_id: i64,
    event_id: &str,
    now: Timestamp,
) -> Result<Delivery, DbError> {
    let found = of_event(conn, workspace_id, event_id)?;
    let delivery = found.ok_or_else(|| Error::not_found("delivery of this event"))?;
    send_again(conn, &delivery, now)?;
    Ok(of_event(conn, workspace_id, event_id)?.unwrap_or(delivery))
}

#[derive(QueryableByName)]
struct Stuck {
    #[diesel(sql_type = BigInt)]
    workspace_id: i64,
    #[diesel(sql_type = BigInt)]
    rule_id: i64,
}

/// Asks again for deliveries that are overdue and that nobody is asked for.
pub fn revive(conn: &mut Conn, overdue_since: Timestamp, now: Timestamp) -> Result<usize, DbError> {
    let rows: Vec<Stuck> = sql_query(
        "SELECT DISTINCT d.workspace_id, d.rule_id FROM alert_deliveries d
         WHERE d.status = 'pending' AND d.next_attempt_at < $1
           AND NOT EXISTS (SELECT 1 FROM jobs WHERE queue = $2 AND key = CAST(d.rule_id AS TEXT))
         LIMIT 1000",
    )
    .bind::<BigInt, _>(overdue_since.0)
    .bind::<Text, _>(QUEUE)
    .load(conn)?;
    let wanted: Result<Vec<NewJob>> =
        rows.iter().map(|row| job(row.workspace_id, row.rule_id, now)).collect();
    queue::enqueue(conn, wanted?, now)?;
    Ok(rows.len())
}

/// Times ahead of the clock by more than this were chosen before it was set back.
const SKEW: i64 = SECOND;

/// The clock was set back: attempts that were put off in what is the future now wait as long as was meant, from now on.
pub fn rebase(conn: &mut Conn, now: Timestamp) -> Result<usize, DbError> {
    let text =
        "UPDATE alert_deliveries SET next_attempt_at = $1 + next_attempt_at - updated_at, updated_at = $1
                WHERE status = 'pending' AND updated_at > $2";
    let ahead = now.plus(SKEW).0;
    Ok(sql_query(text).bind::<BigInt, _>(now.0).bind::<BigInt, _>(ahead).execute(conn)?)
}

/// Deletes up to a thousand delivered rows, with their attempts, from before `before`; returns how many.
pub fn sweep(conn: &mut Conn, before: Timestamp) -> Result<usize, DbError> {
    let text = "DELETE FROM alert_deliveries WHERE id IN (
                    SELECT id FROM alert_deliveries WHERE status = 'delivered' AND created_at < $1 LIMIT 1000)";
    Ok(sql_query(text).bind::<BigInt, _>(before.0).execute(conn)?)
}
