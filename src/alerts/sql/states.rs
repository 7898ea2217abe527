//! The states of rules, one row a group, and when rules were and will be evaluated. Under the locks of the rules.

use std::collections::HashMap;

use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{Array, BigInt, Bool, Text};

use crate::alerts::state::{Group, State, Status};
use crate::db::columns::{quantity_of, readable};
use crate::db::prepared::prepared;
use crate::db::schema::{alert_rules, alert_states};
use crate::db::statement::integers;
use crate::db::{Conn, DbError};
use crate::error::Error;
use crate::metering::time::Timestamp;

#[derive(Queryable, QueryableByName, Selectable, Insertable)]
#[diesel(table_name = alert_states, treat_none_as_default_value = false)]
struct StateRow {
    rule_id: i64,
    group_key: String,
    group_value: String,
    status: String,
    firing: bool,
    value: String,
    message: String,
    updated_at: i64,
}

/// The states of these rules, by rule.
pub fn of_rules(conn: &mut Conn, rule_ids: &[i64]) -> Result<HashMap<i64, Vec<State>>, DbError> {
    let rows: Vec<StateRow> = alert_states::table
        .filter(alert_states::rule_id.eq_any(rule_ids))
        .order((alert_states::rule_id, alert_states::group_key, alert_states::group_value))
        .select(StateRow::as_select())
        .load(conn)?;
    Ok(by_rule(rows))
}

/// At most so many states of each of these rules, by rule: those that stand for it first, in the order of
/// [`crate::alerts::state::ranked`].
pub fn first_of_rules(
    conn: &mut Conn,
    rule_ids: &[i64],
    most: usize,
) -> Result<HashMap<i64, Vec<State>>, DbError> {
    if rule_ids.is_empty() {
        return Ok(HashMap::new());
    }
    let text = format!(
        "-- alerts::states::first_of_rules
         SELECT rule_id, group_key, group_value, status, firing, value, message, updated_at FROM
             (SELECT s.*, ROW_NUMBER() OVER (PARTITION BY rule_id ORDER BY
                  CASE status WHEN 'alerting' THEN 0 WHEN 'error' THEN 1 WHEN 'no_data' THEN 2 ELSE 3 END,
                  updated_at DESC, group_key, group_value) AS place
              FROM alert_states s WHERE rule_id IN ({})) ranked
         WHERE place <= {most} ORDER BY rule_id, place",
        integers(rule_ids)
    );
    let rows: Vec<StateRow> = sql_query(text).load(conn)?;
    Ok(by_rule(rows))
}

/// How many groups this rule has a state of, and how many of them are alerting.
pub fn counts(conn: &mut Conn, rule_id: i64) -> Result<(i64, i64), DbError> {
    let states = alert_states::table.filter(alert_states::rule_id.eq(rule_id));
    let alerting = states.filter(alert_states::status.eq(Status::Alerting.as_str()));
    Ok((states.count().get_result(conn)?, alerting.count().get_result(conn)?))
}

fn by_rule(rows: Vec<StateRow>) -> HashMap<i64, Vec<State>> {
    let mut states: HashMap<i64, Vec<State>> = HashMap::new();
    for row in rows {
        let rule_id = row.rule_id;
        if let Some(state) = readable("alert_states", rule_id, state_of(row)) {
            states.entry(rule_id).or_default().push(state);
        }
    }
    states
}

fn state_of(row: StateRow) -> Result<State, DbError> {
    let group = (!row.group_key.is_empty()).then_some(Group { key: row.group_key, value: row.group_value });
    Ok(State {
        group,
        status: Status::parse(&row.status).ok_or_else(|| Error::internal("a state of no known status"))?,
        firing: row.firing,
        value: quantity_of(&row.value)?,
        message: row.message,
        updated_at: Timestamp(row.updated_at),
    })
}

/// The revisions of the rules that exist and are enabled, locked in one order.
pub fn lock_revisions(conn: &mut Conn, ids: &[i64]) -> Result<HashMap<i64, i64>, DbError> {
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

/// Seconds after which a rule without a value is looked at again: its own interval within these bounds, because usage does
/// not bring it forward.
const FAILED_PAUSE: (i64, i64) = (60, 300);

pub fn failed_pause(interval_seconds: i64) -> i64 {
    let (least, most) = FAILED_PAUSE;
    interval_seconds.clamp(least, most)
}

/// Notes that these rules were evaluated, and which of them without a value: each comes again at its own time, and does not
/// keep the others of its meter from theirs.
pub fn mark_evaluated(conn: &mut Conn, ids: &[i64], failed: &[i64], now: Timestamp) -> Result<(), DbError> {
    let moved = alert_rules::table.filter(alert_rules::id.eq_any(ids));
    diesel::update(moved)
        .set((
            alert_rules::revision.eq(alert_rules::revision + 1),
            alert_rules::evaluated_at.eq(Some(now.0)),
            alert_rules::next_evaluate_at
                .eq(alert_rules::evaluation_interval_seconds * 1_000_000_i64 + now.0),
        ))
        .execute(conn)?;
    if !failed.is_empty() {
        let (least, most) = FAILED_PAUSE;
        let text = format!(
            "UPDATE alert_rules SET revision = revision + 1, evaluated_at = $1, next_evaluate_at = $1 + 1000000 *
                 CASE WHEN evaluation_interval_seconds < {least} THEN {least}
                      WHEN evaluation_interval_seconds > {most} THEN {most} ELSE evaluation_interval_seconds END
             WHERE id IN ({})",
            integers(failed)
        );
        sql_query(text).bind::<BigInt, _>(now.0).execute(conn)?;
    }
    Ok(())
}

/// Removes the states of groups that are no longer there, by field and name.
pub fn remove(conn: &mut Conn, rule_id: i64, gone: &[(String, String)]) -> Result<(), DbError> {
    for (key, value) in gone {
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

pub fn put(conn: &mut Conn, changed: &[(i64, &State)]) -> Result<(), DbError> {
    if changed.is_empty() {
        return Ok(());
    }
    let each = || changed.iter().map(|(_, state)| *state);
    match conn {
        Conn::Postgres(c) => {
            PutStates {
                rule_ids: &changed.iter().map(|(rule_id, _)| *rule_id).collect(),
                keys: &each().map(|state| state.key().0).collect(),
                values: &each().map(|state| state.key().1).collect(),
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
                let (key, value) = state.key();
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

/// When the earliest rule of a meter is due; `None` when no enabled rule is left.
pub fn next_time(conn: &mut Conn, meter_id: i64) -> Result<Option<Timestamp>, DbError> {
    let next: Option<i64> = alert_rules::table
        .filter(alert_rules::meter_id.eq(meter_id).and(alert_rules::enabled.eq(true)))
        .select(diesel::dsl::min(alert_rules::next_evaluate_at))
        .first(conn)?;
    Ok(next.map(Timestamp))
}
