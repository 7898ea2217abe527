//! Entitlement states, events and period snapshots: written by evaluations, one transaction each, and listed.
//! An evaluation reads what is true now and writes what differs, so doing it twice, late or out of turn is harmless.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Integer, Nullable, Text};
use serde::{Deserialize, Serialize};

use crate::db::columns::quantity_of;
use crate::db::schema::{entitlement_events, entitlement_states, subjects};
use crate::db::{Conn, Fault};
use crate::entitlements::assignment::{Span, counting, effective, next_change};
use crate::entitlements::period::Period;
use crate::entitlements::plan::{Limit, Plan};
use crate::entitlements::quota::{Measure, State, transition, value};
use crate::entitlements::sql::assignments;
use crate::entitlements::sql::counters::{self, Range};
use crate::entitlements::sql::plans::{self, word};
use crate::error::Result;
use crate::jobs::queue::{DeadLetter, NewJob};
use crate::metering::meter::Meter;
use crate::metering::rollup::Part;
use crate::metering::time::{HOUR, Micros, Window};
use crate::{both, meters};

pub const QUEUE: &str = "entitlements";

/// A job: look at a subject and a meter now, or at the past windows that hold `late_at`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evaluation {
    pub subject_id: i64,
    pub meter_id: i64,
    pub late_at: Option<i64>,
}

impl Evaluation {
    pub fn now(subject_id: i64, meter_id: i64) -> Self {
        Evaluation { subject_id, meter_id, late_at: None }
    }

    pub fn job(&self, workspace_id: i64, now: Micros) -> Result<NewJob> {
        let Evaluation { subject_id, meter_id, late_at } = self;
        let key = match late_at {
            None => format!("{subject_id}/{meter_id}"),
            Some(at) => format!("{subject_id}/{meter_id}/{at}"),
        };
        NewJob::new(QUEUE, key, workspace_id, self, now)
    }
}

/// First half of the PostgreSQL advisory lock on a subject and meter under evaluation.
const EVALUATION_LOCK: i32 = 0x656E_7400;
/// An event may be stored this long after the server saw it.
const STRAGGLERS: i64 = HOUR;
/// Windows that one evaluation looks back on; only a worker that was away for long meets more.
const WINDOWS_MAX: usize = 400;

/// What an evaluation knows.
struct Subject<'a> {
    workspace_id: i64,
    subject_id: i64,
    meter: &'a Meter,
    history: Vec<Span>,
    plans: HashMap<i64, Arc<Plan>>,
    now: Micros,
}

/// One window of one period of the subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    anchor: Micros,
    period: Period,
    from: Micros,
    to: Micros,
}

/// Brings states and snapshots of a subject and meter up to date. Returns when they will change by themselves.
pub fn evaluate(
    conn: &mut Conn,
    workspace_id: i64,
    evaluation: &Evaluation,
    now: Micros,
) -> Result<Option<Micros>, Fault> {
    let Evaluation { subject_id, meter_id, late_at } = *evaluation;
    lock(conn, subject_id, meter_id)?;
    let Some(meter) = meters::sql::by_key(conn, meter_id)? else {
        remove_states(conn, subject_id, meter_id, &[])?;
        return Ok(None);
    };
    let history = assignments::history(conn, subject_id)?;
    let ids: BTreeSet<i64> = history.iter().map(|span| span.plan_id).collect();
    let plans = plans::by_ids(conn, &ids.into_iter().collect::<Vec<_>>())?;
    let subject = Subject { workspace_id, subject_id, meter: &meter, history, plans, now };
    if let Some(at) = late_at {
        let places = subject.places_of(Micros(at));
        subject.write_snapshots(conn, places)?;
        return Ok(None);
    }
    let states = states_of(conn, subject_id, meter_id)?;
    let evaluated_at = states.iter().map(|state| Micros(state.evaluated_at)).min();
    let since = evaluated_at.or_else(|| subject.history.last().map(|span| span.starts_at)).unwrap_or(now);
    subject.write_snapshots(conn, subject.places_since(since.plus(-STRAGGLERS)))?;
    let rollover = subject.write_states(conn, &states)?;
    let change = next_change(&subject.history, now);
    Ok([rollover, change].into_iter().flatten().min())
}

/// Asks for the evaluation of every subject with a state of this meter: the same events come to another value now. In
/// one statement, because there may be very many.
pub fn enqueue_meter(conn: &mut Conn, meter: &Meter, now: Micros) -> Result<(), Fault> {
    let earlier = if conn.is_postgres() { "least" } else { "min" };
    // the same key and payload as `Evaluation::job`
    let text = format!(
        r#"INSERT INTO jobs (queue, key, workspace_id, payload, run_after, created_at, generation, attempts)
           SELECT $1, subject_id || '/' || meter_id, workspace_id,
                  '{{"subject_id":' || subject_id || ',"meter_id":' || meter_id || ',"late_at":null}}', $2, $2, 0, 0
           FROM (SELECT DISTINCT subject_id, meter_id, workspace_id FROM entitlement_states WHERE meter_id = $3
                 ORDER BY subject_id) AS standing
           WHERE true
           ON CONFLICT (queue, key) DO UPDATE SET generation = jobs.generation + 1,
               run_after = {earlier}(jobs.run_after, excluded.run_after)"#
    );
    sql_query(text)
        .bind::<Text, _>(QUEUE)
        .bind::<BigInt, _>(now.0)
        .bind::<BigInt, _>(meter.id)
        .execute(conn)?;
    Ok(())
}

/// Subject and meter of each dead job, as far as they exist, by the letter's id.
pub fn names(conn: &mut Conn, letters: &[DeadLetter]) -> Result<HashMap<String, Names>, Fault> {
    let own = letters.iter().filter(|letter| letter.queue == QUEUE);
    let jobs: Vec<(&DeadLetter, Evaluation)> =
        own.filter_map(|letter| Some((letter, letter.payload().ok()?))).collect();
    let Some((first, _)) = jobs.first() else { return Ok(HashMap::new()) };
    let subject_ids: Vec<i64> = jobs.iter().map(|(_, job)| job.subject_id).collect();
    let meter_ids: Vec<i64> = jobs.iter().map(|(_, job)| job.meter_id).collect();
    let found =
        subjects::table.filter(subjects::id.eq_any(subject_ids)).select((subjects::id, subjects::name));
    let subjects: HashMap<i64, String> = found.load(conn)?.into_iter().collect();
    let meters = meters::sql::by_numbers(conn, first.workspace_id, &meter_ids)?;
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

/// What a dead job was about and no longer exists.
pub fn what_is_gone(conn: &mut Conn, letter: &DeadLetter) -> Result<Option<&'static str>, Fault> {
    let Evaluation { subject_id, meter_id, .. } = letter.payload()?;
    if meters::sql::by_key(conn, meter_id)?.is_none() {
        return Ok(Some("the meter is gone"));
    }
    let has_plan = !assignments::history(conn, subject_id)?.is_empty();
    // with states left over, there still is something to put right
    let is_idle = !has_plan && states_of(conn, subject_id, meter_id)?.is_empty();
    Ok(is_idle.then_some("the plan of the subject is gone"))
}

fn lock(conn: &mut Conn, subject_id: i64, meter_id: i64) -> Result<(), Fault> {
    if conn.is_postgres() {
        let hash = crate::metering::event::hash128(&[&subject_id.to_be_bytes(), &meter_id.to_be_bytes()]);
        sql_query("SELECT pg_advisory_xact_lock($1, $2)")
            .bind::<Integer, _>(EVALUATION_LOCK)
            .bind::<Integer, _>(i32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]]))
            .execute(conn)?;
    }
    Ok(())
}

impl Subject<'_> {
    /// Limits of the plan on the meter.
    fn limits(&self, plan_id: i64) -> impl Iterator<Item = (&Plan, &Limit)> {
        let plan = self.plans.get(&plan_id).map(Arc::as_ref);
        plan.into_iter().flat_map(|plan| plan.limits_of(self.meter.id).map(move |limit| (plan, limit)))
    }

    /// The limit of the plan that was in force last in a window.
    fn limit_of(&self, place: &Place) -> Option<(&Plan, &Limit)> {
        let last = self.history.iter().rev().filter(|span| span.starts_at <= self.now).find(|span| {
            span.anchor == place.anchor
                && span.starts_at < place.to
                && span.ends_at.is_none_or(|end| end > place.from)
        })?;
        self.limits(last.plan_id).find(|(_, limit)| limit.period == place.period)
    }

    fn place(&self, span: &Span, period: Period, at: Micros) -> Place {
        let Window { from, to } = period.window(span.anchor, at);
        Place { anchor: span.anchor, period, from, to }
    }

    /// Windows that a late event counts in.
    fn places_of(&self, at: Micros) -> BTreeSet<Place> {
        let Some(span) = counting(&self.history, at) else { return BTreeSet::new() };
        [Period::Day, Period::Week, Period::Month, Period::Year]
            .into_iter()
            .map(|period| self.place(span, period, at))
            .filter(|place| place.from <= self.now)
            .collect()
    }

    /// Windows that were open at some time since.
    fn places_since(&self, since: Micros) -> BTreeSet<Place> {
        let mut places = BTreeSet::new();
        for span in self.history.iter().filter(|span| span.starts_at <= self.now) {
            let end = span.ends_at.map_or(self.now, |end| end.min(self.now));
            if end < since {
                continue;
            }
            for (_, limit) in self.limits(span.plan_id) {
                let mut place = self.place(span, limit.period, since.max(span.starts_at));
                while places.len() < WINDOWS_MAX {
                    places.insert(place);
                    if place.to > end {
                        break;
                    }
                    place = self.place(span, limit.period, place.to);
                }
            }
        }
        places
    }

    fn count(&self, conn: &mut Conn, places: &[Place]) -> Result<Vec<Option<Part>>, Fault> {
        let range = |place: &Place| Range {
            subject_id: self.subject_id,
            meter_id: self.meter.id,
            anchor: place.anchor,
            window: Window { from: place.from, to: place.to },
        };
        counters::load(conn, &places.iter().map(range).collect::<Vec<_>>())
    }

    /// Records what these windows came to. Windows without usage have no snapshot.
    fn write_snapshots(&self, conn: &mut Conn, places: BTreeSet<Place>) -> Result<(), Fault> {
        let places: Vec<Place> = places.into_iter().collect();
        let counted = self.count(conn, &places)?;
        for (place, part) in places.iter().zip(counted) {
            let (Some(part), Some((plan, limit))) = (part, self.limit_of(place)) else { continue };
            let current =
                value(Some(&part), self.meter.aggregation, Window { from: place.from, to: place.to });
            let measure = Measure::against(limit, current);
            sql_query(
                "INSERT INTO entitlement_periods (subject_id, meter_id, period, starts_at, ends_at, workspace_id,
                     plan_id, state, current_value, limit_value, warning_percent, event_count, updated_at)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
                 ON CONFLICT (subject_id, meter_id, period, starts_at) DO UPDATE SET ends_at = excluded.ends_at,
                     plan_id = excluded.plan_id, state = excluded.state, current_value = excluded.current_value,
                     limit_value = excluded.limit_value, warning_percent = excluded.warning_percent,
                     event_count = excluded.event_count, updated_at = excluded.updated_at",
            )
            .bind::<BigInt, _>(self.subject_id)
            .bind::<BigInt, _>(self.meter.id)
            .bind::<Text, _>(place.period.as_str())
            .bind::<BigInt, _>(place.from.0)
            .bind::<BigInt, _>(place.to.0)
            .bind::<BigInt, _>(self.workspace_id)
            .bind::<BigInt, _>(plan.id)
            .bind::<Text, _>(measure.state.as_str())
            .bind::<Text, _>(measure.current.to_json())
            .bind::<Text, _>(limit.quantity.to_json())
            .bind::<Text, _>(limit.warning_percent.to_json())
            .bind::<BigInt, _>(part.count)
            .bind::<BigInt, _>(self.now.0)
            .execute(conn)?;
        }
        Ok(())
    }

    /// States of the limits in force, and an event for each that crossed a line; others go. Returns when the first
    /// window with usage in it ends or begins.
    fn write_states(&self, conn: &mut Conn, before: &[StateRow]) -> Result<Option<Micros>, Fault> {
        let Some(span) = effective(&self.history, self.now) else {
            remove_states(conn, self.subject_id, self.meter.id, &[])?;
            return Ok(None);
        };
        let limits: Vec<(&Plan, &Limit)> = self.limits(span.plan_id).collect();
        let kept: Vec<&str> = limits.iter().map(|(_, limit)| limit.period.as_str()).collect();
        remove_states(conn, self.subject_id, self.meter.id, &kept)?;
        let places: Vec<Place> =
            limits.iter().map(|(_, limit)| self.place(span, limit.period, self.now)).collect();
        let counted = self.count(conn, &places)?;
        let mut moves: Vec<Micros> = Vec::new();
        for (((plan, limit), place), part) in limits.into_iter().zip(&places).zip(counted) {
            moves.extend(part.is_some().then_some(place.to));
            // events may be dated ahead: their window moves the state when it begins
            let ahead = counters::first_day(conn, self.subject_id, self.meter.id, place.anchor, place.to)?;
            moves.extend(ahead.map(|day| limit.period.window(place.anchor, day).from));
            let window = Window { from: place.from, to: place.to };
            let measure = Measure::against(limit, value(part.as_ref(), self.meter.aggregation, window));
            let previous = before.iter().find(|state| state.period == limit.period.as_str());
            let previous = previous.map(|row| word(State::parse(&row.state), &row.state)).transpose()?;
            self.write_state(conn, plan, limit, &measure)?;
            self.write_event(conn, plan, limit, &measure, previous)?;
        }
        Ok(moves.into_iter().min())
    }

    fn write_state(
        &self,
        conn: &mut Conn,
        plan: &Plan,
        limit: &Limit,
        measure: &Measure,
    ) -> Result<(), Fault> {
        sql_query(
            "INSERT INTO entitlement_states (subject_id, meter_id, period, workspace_id, plan_id, state,
                 current_value, limit_value, warning_percent, evaluated_at, updated_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $10)
             ON CONFLICT (subject_id, meter_id, period) DO UPDATE SET plan_id = excluded.plan_id,
                 state = excluded.state, current_value = excluded.current_value, limit_value = excluded.limit_value,
                 warning_percent = excluded.warning_percent, evaluated_at = excluded.evaluated_at,
                 updated_at = excluded.updated_at",
        )
        .bind::<BigInt, _>(self.subject_id)
        .bind::<BigInt, _>(self.meter.id)
        .bind::<Text, _>(limit.period.as_str())
        .bind::<BigInt, _>(self.workspace_id)
        .bind::<BigInt, _>(plan.id)
        .bind::<Text, _>(measure.state.as_str())
        .bind::<Text, _>(measure.current.to_json())
        .bind::<Text, _>(limit.quantity.to_json())
        .bind::<Text, _>(limit.warning_percent.to_json())
        .bind::<BigInt, _>(self.now.0)
        .execute(conn)?;
        Ok(())
    }

    fn write_event(
        &self,
        conn: &mut Conn,
        plan: &Plan,
        limit: &Limit,
        measure: &Measure,
        previous: Option<State>,
    ) -> Result<(), Fault> {
        let Some(kind) = transition(previous, measure.state) else { return Ok(()) };
        let row = NewEvent {
            id: uuid::Uuid::now_v7().to_string(),
            workspace_id: self.workspace_id,
            subject_id: self.subject_id,
            meter_id: self.meter.id,
            plan_id: plan.id,
            period: limit.period.as_str(),
            previous_state: previous.map(State::as_str),
            state: measure.state.as_str(),
            kind: kind.as_str(),
            current_value: measure.current.to_json(),
            limit_value: limit.quantity.to_json(),
            warning_percent: limit.warning_percent.to_json(),
            created_at: self.now.0,
        };
        both!(conn, c => diesel::insert_into(entitlement_events::table).values(&row).execute(c)?);
        Ok(())
    }
}

#[derive(Queryable, Selectable)]
#[diesel(table_name = entitlement_states)]
struct StateRow {
    period: String,
    state: String,
    evaluated_at: i64,
}

fn states_of(conn: &mut Conn, subject_id: i64, meter_id: i64) -> Result<Vec<StateRow>, Fault> {
    Ok(entitlement_states::table
        .filter(entitlement_states::subject_id.eq(subject_id).and(entitlement_states::meter_id.eq(meter_id)))
        .select(StateRow::as_select())
        .load(conn)?)
}

/// Removes the states of limits that are no longer in force.
fn remove_states(conn: &mut Conn, subject_id: i64, meter_id: i64, kept: &[&str]) -> Result<(), Fault> {
    let stale = entitlement_states::table
        .filter(entitlement_states::subject_id.eq(subject_id).and(entitlement_states::meter_id.eq(meter_id)))
        .filter(entitlement_states::period.ne_all(kept));
    diesel::delete(stale).execute(conn)?;
    Ok(())
}

#[derive(Insertable)]
#[diesel(table_name = entitlement_events, treat_none_as_default_value = false)]
struct NewEvent {
    id: String,
    workspace_id: i64,
    subject_id: i64,
    meter_id: i64,
    plan_id: i64,
    period: &'static str,
    previous_state: Option<&'static str>,
    state: &'static str,
    kind: &'static str,
    current_value: String,
    limit_value: String,
    warning_percent: String,
    created_at: i64,
}

/// A state, an event or a snapshot as it is listed; what a kind does not have is empty.
#[derive(Clone, Debug, QueryableByName)]
pub struct Entry {
    #[diesel(sql_type = Text)]
    pub id: String,
    #[diesel(sql_type = Text)]
    pub subject: String,
    #[diesel(sql_type = Text)]
    pub meter: String,
    #[diesel(sql_type = Text)]
    pub plan_id: String,
    #[diesel(sql_type = Text)]
    pub plan_name: String,
    #[diesel(sql_type = Integer)]
    pub plan_version: i32,
    #[diesel(sql_type = Text)]
    pub period: String,
    #[diesel(sql_type = BigInt)]
    pub starts_at: i64,
    #[diesel(sql_type = BigInt)]
    pub ends_at: i64,
    #[diesel(sql_type = Nullable<Text>)]
    pub previous_state: Option<String>,
    #[diesel(sql_type = Text)]
    pub state: String,
    #[diesel(sql_type = Text)]
    pub kind: String,
    #[diesel(sql_type = Text)]
    pub current_value: String,
    #[diesel(sql_type = Text)]
    pub limit_value: String,
    #[diesel(sql_type = Text)]
    pub warning_percent: String,
    #[diesel(sql_type = BigInt)]
    pub event_count: i64,
    /// Evaluated, created or updated.
    #[diesel(sql_type = BigInt)]
    pub at: i64,
}

impl Entry {
    pub fn measure(&self) -> Result<Measure, Fault> {
        let (limit, warning_percent) = (quantity_of(&self.limit_value)?, quantity_of(&self.warning_percent)?);
        Ok(Measure::of(quantity_of(&self.current_value)?, &limit, &warning_percent))
    }
}

/// What narrows a list; empty texts do not.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub subject: String,
    pub meter: String,
    pub plan_id: String,
    pub state: String,
    /// Events only.
    pub kind: String,
    /// Events only: time and id of the last one seen.
    pub after: Option<(Micros, String)>,
}

/// One of the three lists: its table, its columns beyond the common ones, its order.
struct Listing {
    table: &'static str,
    columns: &'static str,
    order: &'static str,
}

fn read(
    conn: &mut Conn,
    workspace_id: i64,
    listing: &Listing,
    filter: &Filter,
    limit: i64,
) -> Result<Vec<Entry>, Fault> {
    let Listing { table, columns, order } = listing;
    let events_only = match *table {
        "entitlement_events" => "($6 = '' OR e.kind = $6) AND ($7 < 0 OR (e.created_at, e.id) < ($7, $8))",
        _ => "$6 = '' AND $7 < 0 AND $8 = ''",
    };
    let text = format!(
        "SELECT {columns}, s.name AS subject, m.name AS meter, p.public_id AS plan_id, p.name AS plan_name,
                p.version AS plan_version, e.period, e.state, e.current_value, e.limit_value, e.warning_percent
         FROM {table} e
         JOIN subjects s ON s.id = e.subject_id
         JOIN meters m ON m.id = e.meter_id
         JOIN plans p ON p.id = e.plan_id
         WHERE e.workspace_id = $1 AND ($2 = '' OR s.name = $2) AND ($3 = '' OR m.name = $3)
           AND ($4 = '' OR p.public_id = $4) AND ($5 = '' OR e.state = $5) AND {events_only}
         ORDER BY {order} LIMIT $9"
    );
    let (after, id) = filter.after.as_ref().map_or((-1, ""), |(at, id)| (at.0, id.as_str()));
    Ok(sql_query(text)
        .bind::<BigInt, _>(workspace_id)
        .bind::<Text, _>(&filter.subject)
        .bind::<Text, _>(&filter.meter)
        .bind::<Text, _>(&filter.plan_id)
        .bind::<Text, _>(&filter.state)
        .bind::<Text, _>(&filter.kind)
        .bind::<BigInt, _>(after)
        .bind::<Text, _>(id)
        .bind::<BigInt, _>(limit)
        .load(conn)?)
}

/// The latest evaluated first.
pub fn states(conn: &mut Conn, workspace_id: i64, filter: &Filter, limit: i64) -> Result<Vec<Entry>, Fault> {
    let listing = Listing {
        table: "entitlement_states",
        columns: "'' AS id, CAST(0 AS BIGINT) AS starts_at, CAST(0 AS BIGINT) AS ends_at, CAST(NULL AS TEXT) AS previous_state, '' AS kind,
                  CAST(0 AS BIGINT) AS event_count, e.updated_at AS at",
        order: "e.updated_at DESC, s.name, m.name, p.public_id, e.period",
    };
    read(conn, workspace_id, &listing, filter, limit)
}

/// The newest first.
pub fn events(conn: &mut Conn, workspace_id: i64, filter: &Filter, limit: i64) -> Result<Vec<Entry>, Fault> {
    let listing = Listing {
        table: "entitlement_events",
        columns: "e.id, e.created_at AS starts_at, e.created_at AS ends_at, e.previous_state, e.kind,
                  CAST(0 AS BIGINT) AS event_count, e.created_at AS at",
        order: "e.created_at DESC, e.id DESC",
    };
    read(conn, workspace_id, &listing, filter, limit)
}

/// The latest window first.
pub fn periods(conn: &mut Conn, workspace_id: i64, filter: &Filter, limit: i64) -> Result<Vec<Entry>, Fault> {
    let listing = Listing {
        table: "entitlement_periods",
        columns: "'' AS id, e.starts_at, e.ends_at, CAST(NULL AS TEXT) AS previous_state, '' AS kind, e.event_count,
                  e.updated_at AS at",
        order: "e.starts_at DESC, e.updated_at DESC, s.name, m.name, p.public_id",
    };
    read(conn, workspace_id, &listing, filter, limit)
}
