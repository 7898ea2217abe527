//! Rows of entitlement states, their events and the snapshots of past windows: written by evaluations under the lock of
//! subject and meter. Which states follow is decided in `evaluate`.

use std::collections::HashMap;

use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Integer, Text};

use crate::chance;
use crate::db::schema::{entitlement_events, entitlement_states, subjects};
use crate::db::{Conn, DbError};
use crate::entitlements::jobs::{Evaluation, QUEUE};
use crate::entitlements::period::Period;
use crate::entitlements::plan::Limit;
use crate::entitlements::quota::{QuotaUsage, State, Transition};
use crate::jobs::dead_letters::DeadLetter;
use crate::metering::meter::Meter;
use crate::metering::time::Timestamp;
use crate::{both, meters};

/// First half of the PostgreSQL advisory lock on a subject and meter under evaluation.
const EVALUATION_LOCK: i32 = 0x656E_7400;

/// How a subject stands to one limit at an instant.
pub struct Standing<'a> {
    pub workspace_id: i64,
    pub subject_id: i64,
    pub meter_id: i64,
    pub plan_id: i64,
    pub limit: &'a Limit,
    /// That of the limit, in the zone of the assignment.
    pub period: &'a Period,
    pub measure: &'a QuotaUsage,
    pub at: Timestamp,
}

/// Keeps others from evaluating the subject and meter until the transaction ends.
pub fn lock(conn: &mut Conn, subject_id: i64, meter_id: i64) -> Result<(), DbError> {
    if conn.is_postgres() {
        let hash = crate::metering::event::hash128(&[&subject_id.to_be_bytes(), &meter_id.to_be_bytes()]);
        sql_query("SELECT pg_advisory_xact_lock($1, $2)")
            .bind::<Integer, _>(EVALUATION_LOCK)
            .bind::<Integer, _>(i32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]]))
            .execute(conn)?;
    }
    Ok(())
}

/// Records what the window `[from, to)` came to.
pub fn put_snapshot(
    conn: &mut Conn,
    standing: &Standing,
    from: Timestamp,
    to: Timestamp,
    event_count: i64,
) -> Result<(), DbError> {
    let Standing { limit, measure, .. } = standing;
    sql_query(
        "INSERT INTO entitlement_periods (subject_id, meter_id, period, starts_at, ends_at, workspace_id,
             plan_id, state, current_value, limit_value, warning_percent, event_count, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
         ON CONFLICT (subject_id, meter_id, period, starts_at) DO UPDATE SET ends_at = excluded.ends_at,
             plan_id = excluded.plan_id, state = excluded.state, current_value = excluded.current_value,
             limit_value = excluded.limit_value, warning_percent = excluded.warning_percent,
             event_count = excluded.event_count, updated_at = excluded.updated_at",
    )
    .bind::<BigInt, _>(standing.subject_id)
    .bind::<BigInt, _>(standing.meter_id)
    .bind::<Text, _>(standing.period.as_str())
    .bind::<BigInt, _>(from.0)
    .bind::<BigInt, _>(to.0)
    .bind::<BigInt, _>(standing.workspace_id)
    .bind::<BigInt, _>(standing.plan_id)
    .bind::<Text, _>(measure.state.as_str())
    .bind::<Text, _>(measure.current.to_json())
    .bind::<Text, _>(limit.quantity.to_json())
    .bind::<Text, _>(limit.warning_percent.to_json())
    .bind::<BigInt, _>(event_count)
    .bind::<BigInt, _>(standing.at.0)
    .execute(conn)?;
    Ok(())
}

pub fn put_state(conn: &mut Conn, standing: &Standing) -> Result<(), DbError> {
    let Standing { limit, measure, .. } = standing;
    sql_query(
        "INSERT INTO entitlement_states (subject_id, meter_id, period, workspace_id, plan_id, state,
             current_value, limit_value, warning_percent, evaluated_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $10)
         ON CONFLICT (subject_id, meter_id, period) DO UPDATE SET plan_id = excluded.plan_id,
             state = excluded.state, current_value = excluded.current_value, limit_value = excluded.limit_value,
             warning_percent = excluded.warning_percent, evaluated_at = excluded.evaluated_at,
             updated_at = excluded.updated_at",
    )
    .bind::<BigInt, _>(standing.subject_id)
    .bind::<BigInt, _>(standing.meter_id)
    .bind::<Text, _>(standing.period.as_str())
    .bind::<BigInt, _>(standing.workspace_id)
    .bind::<BigInt, _>(standing.plan_id)
    .bind::<Text, _>(measure.state.as_str())
    .bind::<Text, _>(measure.current.to_json())
    .bind::<Text, _>(limit.quantity.to_json())
    .bind::<Text, _>(limit.warning_percent.to_json())
    .bind::<BigInt, _>(standing.at.0)
    .execute(conn)?;
    Ok(())
}

/// Records that a state changed, and how.
pub fn add_event(
    conn: &mut Conn,
    standing: &Standing,
    previous: Option<State>,
    kind: Transition,
) -> Result<(), DbError> {
    let Standing { limit, measure, .. } = standing;
    let row = NewEvent {
        id: chance::id().to_string(),
        workspace_id: standing.workspace_id,
        subject_id: standing.subject_id,
        meter_id: standing.meter_id,
        plan_id: standing.plan_id,
        period: standing.period.as_str(),
        previous_state: previous.map(State::as_str),
        state: measure.state.as_str(),
        kind: kind.as_str(),
        current_value: measure.current.to_json(),
        limit_value: limit.quantity.to_json(),
        warning_percent: limit.warning_percent.to_json(),
        created_at: standing.at.0,
    };
    both!(conn, c => diesel::insert_into(entitlement_events::table).values(&row).execute(c)?);
    Ok(())
}

#[derive(Queryable, Selectable)]
#[diesel(table_name = entitlement_states)]
pub struct StateRow {
    pub period: String,
    pub state: String,
    pub evaluated_at: i64,
}

pub fn load(conn: &mut Conn, subject_id: i64, meter_id: i64) -> Result<Vec<StateRow>, DbError> {
    Ok(entitlement_states::table
        .filter(entitlement_states::subject_id.eq(subject_id).and(entitlement_states::meter_id.eq(meter_id)))
        .select(StateRow::as_select())
        .load(conn)?)
}

/// Removes the states of limits that are no longer in force.
pub fn remove(conn: &mut Conn, subject_id: i64, meter_id: i64, kept: &[&str]) -> Result<(), DbError> {
    let stale = entitlement_states::table
        .filter(entitlement_states::subject_id.eq(subject_id).and(entitlement_states::meter_id.eq(meter_id)))
        .filter(entitlement_states::period.ne_all(kept));
    diesel::delete(stale).execute(conn)?;
    Ok(())
}

#[derive(Insertable)]
#[diesel(table_name = entitlement_events, treat_none_as_default_value = false)]
struct NewEvent<'a> {
    id: String,
    workspace_id: i64,
    subject_id: i64,
    meter_id: i64,
    plan_id: i64,
    period: &'a str,
    previous_state: Option<&'static str>,
    state: &'static str,
    kind: &'static str,
    current_value: String,
    limit_value: String,
    warning_percent: String,
    created_at: i64,
}

/// Asks for the evaluation of every subject with a state of this meter: the same events come to another value now.
pub fn enqueue_meter(conn: &mut Conn, meter: &Meter, now: Timestamp) -> Result<(), DbError> {
    let pairs =
        "SELECT DISTINCT subject_id, meter_id, workspace_id FROM entitlement_states WHERE meter_id = $3";
    let text = enqueue_sql(conn, pairs);
    sql_query(text)
        .bind::<Text, _>(QUEUE)
        .bind::<BigInt, _>(now.0)
        .bind::<BigInt, _>(meter.id)
        .execute(conn)?;
    Ok(())
}

/// Asks for the evaluation of every subject that was taken from a version of a plan to the next one, under every meter that
/// one of the two limits.
pub fn enqueue_version(conn: &mut Conn, old: i64, new: i64, now: Timestamp) -> Result<(), DbError> {
    let pairs = "SELECT DISTINCT a.subject_id, l.meter_id, a.workspace_id FROM plan_assignments a
                 CROSS JOIN (SELECT DISTINCT meter_id FROM plan_limits WHERE plan_id = $3 OR plan_id = $4) AS l
                 WHERE a.plan_id = $4";
    let text = enqueue_sql(conn, pairs);
    sql_query(text)
        .bind::<Text, _>(QUEUE)
        .bind::<BigInt, _>(now.0)
        .bind::<BigInt, _>(old)
        .bind::<BigInt, _>(new)
        .execute(conn)?;
    Ok(())
}

/// Enqueues an evaluation of each pair that a query names, `$1` being the queue and `$2` the time: in one statement, because
/// there may be very many. In the order of their keys, as `jobs::queue::enqueue` does, with the key and payload of
/// `Evaluation::job`.
fn enqueue_sql(conn: &Conn, pairs: &str) -> String {
    let (earlier, in_bytes) = if conn.is_postgres() { ("least", r#"COLLATE "C""#) } else { ("min", "") };
    format!(
        r#"INSERT INTO jobs (queue, key, workspace_id, payload, run_after, created_at, scheduled_at, generation, attempts)
           SELECT $1, standing.name, workspace_id,
                  '{{"subject_id":' || subject_id || ',"meter_id":' || meter_id || ',"late_at":null}}', $2, $2, $2, 0, 0
           FROM (SELECT subject_id || '/' || meter_id AS name, subject_id, meter_id, workspace_id
                 FROM ({pairs}) AS pairs) AS standing
           WHERE true ORDER BY standing.name {in_bytes}
           ON CONFLICT (queue, key) DO UPDATE SET generation = jobs.generation + 1,
               run_after = {earlier}(jobs.run_after, excluded.run_after), scheduled_at = excluded.scheduled_at"#
    )
}

/// Subject and meter of each dead job, as far as they exist, by the letter's id.
pub fn names(conn: &mut Conn, letters: &[DeadLetter]) -> Result<HashMap<String, Names>, DbError> {
    let own = letters.iter().filter(|letter| letter.queue == QUEUE);
    let jobs: Vec<(&DeadLetter, Evaluation)> =
        own.filter_map(|letter| Some((letter, letter.payload().ok()?))).collect();
    let Some((first, _)) = jobs.first() else { return Ok(HashMap::new()) };
    let subject_ids: Vec<i64> = jobs.iter().map(|(_, job)| job.subject_id).collect();
    let meter_ids: Vec<i64> = jobs.iter().map(|(_, job)| job.meter_id).collect();
    let found =
        subjects::table.filter(subjects::id.eq_any(subject_ids)).select((subjects::id, subjects::name));
    let subjects: HashMap<i64, String> = found.load(conn)?.into_iter().collect();
    let meters = meters::sql::find_by_ids(conn, first.workspace_id, &meter_ids)?;
    let meters: HashMap<i64, String> = meters.into_iter().map(|meter| (meter.id, meter.name)).collect();
    let names = |job: &Evaluation| Names {
        subject: subjects.get(&job.subject_id).cloned(),
        meter: meters.get(&job.meter_id).cloned(),
    };
    Ok(jobs.iter().map(|(letter, job)| (letter.id.clone(), names(job))).collect())
}

/// What a job is about, in the words of clients.
#[derive(Debug, Default)]
pub struct Names {
    pub subject: Option<String>,
    pub meter: Option<String>,
}
