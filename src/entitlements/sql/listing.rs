//! Entitlement states, events and snapshots as they are listed: three lists of one shape.

use std::collections::HashMap;

use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Integer, Nullable, Text};

use crate::db::columns::quantity_of;
use crate::db::statement::{Statement, integers};
use crate::db::{Conn, DbError};
use crate::entitlements::period::{Period, WindowInput};
use crate::entitlements::plan::Enforcement;
use crate::entitlements::quota::{QuotaUsage, State};
use crate::entitlements::sql::assignments::zone_of;
use crate::metering::calendar::Zone;
use crate::metering::time::{Timestamp, Window};

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
    /// The word of the period, and what there is to say beside it.
    pub fn period_and_window(&self) -> (String, Option<WindowInput>) {
        match Period::parse(&self.period) {
            Some(period) => (period.word().into_owned(), period.described()),
            None => (self.period.clone(), None),
        }
    }

    pub fn measure(&self) -> Result<QuotaUsage, DbError> {
        let (limit, warning_percent) = (quantity_of(&self.limit_value)?, quantity_of(&self.warning_percent)?);
        Ok(QuotaUsage::of(quantity_of(&self.current_value)?, &limit, &warning_percent))
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
    pub after: Option<(Timestamp, String)>,
}

/// One of the three lists: its table, its columns beyond the common ones, its order.
struct Listing {
    table: &'static str,
    columns: &'static str,
    order: &'static str,
}

const EVENTS: Listing = Listing {
    table: "entitlement_events",
    columns: "e.id, e.created_at AS starts_at, e.created_at AS ends_at, e.previous_state, e.kind,
              CAST(0 AS BIGINT) AS event_count, e.created_at AS at",
    order: "e.created_at DESC, e.id DESC",
};
const PERIODS: Listing = Listing {
    table: "entitlement_periods",
    columns:
        "'' AS id, e.starts_at, e.ends_at, CAST(NULL AS TEXT) AS previous_state, '' AS kind, e.event_count,
              e.updated_at AS at",
    order: "e.starts_at DESC, e.updated_at DESC, s.name, m.name, p.public_id",
};

fn read(
    conn: &mut Conn,
    workspace_id: i64,
    listing: &Listing,
    filter: &Filter,
    limit: i64,
) -> Result<Vec<Entry>, DbError> {
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

/// How many limits of subjects with a version of a plan stand in a state.
#[derive(QueryableByName)]
pub struct StateCount {
    #[diesel(sql_type = BigInt)]
    pub plan_id: i64,
    #[diesel(sql_type = Text)]
    pub state: String,
    #[diesel(sql_type = BigInt)]
    pub limits: i64,
}

pub fn count_states(conn: &mut Conn, workspace_id: i64) -> Result<Vec<StateCount>, DbError> {
    let text = "-- entitlements::count_states
        SELECT plan_id, state, CAST(COUNT(*) AS BIGINT) AS limits
        FROM entitlement_states WHERE workspace_id = $1 GROUP BY plan_id, state";
    Ok(sql_query(text).bind::<BigInt, _>(workspace_id).load(conn)?)
}

/// The latest evaluated first.
pub fn states(
    conn: &mut Conn,
    workspace_id: i64,
    filter: &Filter,
    limit: i64,
) -> Result<Vec<Entry>, DbError> {
    let listing = Listing {
        table: "entitlement_states",
        columns: "'' AS id, CAST(0 AS BIGINT) AS starts_at, CAST(0 AS BIGINT) AS ends_at, CAST(NULL AS TEXT) AS previous_state, '' AS kind,
                  CAST(0 AS BIGINT) AS event_count, e.updated_at AS at",
        order: "e.updated_at DESC, s.name, m.name, p.public_id, e.period",
    };
    read(conn, workspace_id, &listing, filter, limit)
}

#[derive(QueryableByName)]
struct StandingRow {
    #[diesel(embed)]
    entry: Entry,
    #[diesel(sql_type = BigInt)]
    plan_number: i64,
    #[diesel(sql_type = Nullable<BigInt>)]
    anchor: Option<i64>,
    #[diesel(sql_type = Nullable<Text>)]
    time_zone: Option<String>,
}

impl StandingRow {
    /// The window that its value is of, if that is the one of now. One that slides has no beginning. Where nothing was used
    /// nobody looks again when a window begins: that holds nothing either.
    fn window(&self, now: Timestamp) -> Option<Window> {
        let period = Period::parse(&self.entry.period).filter(|period| period.horizon().is_none())?;
        let zone = zone_of(self.time_zone.as_deref()?);
        let window = period.window(Timestamp(self.anchor?), &zone, now);
        let is_unused = || quantity_of(&self.entry.current_value).is_ok_and(|value| value.is_zero());
        (window.contains(now) && (self.entry.at >= window.from.0 || is_unused())).then_some(window)
    }
}

/// A limit as it stands.
pub struct Standing {
    pub entry: Entry,
    /// That its value is of; none where that is over, or the plan is not in force any more.
    pub window: Option<Window>,
    /// What happens beyond it, once [`tell_enforcement`] has said so; none where the plan is not in force any more.
    pub enforcement: Option<Enforcement>,
    plan_number: i64,
    /// In which the plan counts for its subject.
    zone: Option<Zone>,
}

/// As [`states`], and with a plan by its id or its name.
pub fn standing(
    conn: &mut Conn,
    workspace_id: i64,
    filter: &Filter,
    now: Timestamp,
    limit: i64,
) -> Result<Vec<Standing>, DbError> {
    let text = "-- entitlements::listing::standing
        SELECT '' AS id, CAST(0 AS BIGINT) AS starts_at, CAST(0 AS BIGINT) AS ends_at, CAST(NULL AS TEXT) AS previous_state,
               '' AS kind, CAST(0 AS BIGINT) AS event_count, e.updated_at AS at, s.name AS subject, m.name AS meter,
               p.public_id AS plan_id, p.name AS plan_name, p.version AS plan_version, e.period, e.state,
               e.current_value, e.limit_value, e.warning_percent, e.plan_id AS plan_number, a.anchor, a.time_zone
        FROM entitlement_states e
        JOIN subjects s ON s.id = e.subject_id
        JOIN meters m ON m.id = e.meter_id
        JOIN plans p ON p.id = e.plan_id
        LEFT JOIN plan_assignments a ON a.subject_id = e.subject_id AND a.plan_id = e.plan_id
              AND a.starts_at <= $1 AND (a.ends_at IS NULL OR a.ends_at > $1)
        WHERE e.workspace_id = $2 AND ($3 = '' OR s.name = $3) AND ($4 = '' OR m.name = $4)
          AND ($5 = '' OR e.state = $5) AND ($6 = '' OR p.public_id = $6 OR p.name = $6)
        ORDER BY e.updated_at DESC, s.name, m.name, p.public_id, e.period LIMIT $7";
    let rows: Vec<StandingRow> = sql_query(text)
        .bind::<BigInt, _>(now.0)
        .bind::<BigInt, _>(workspace_id)
        .bind::<Text, _>(&filter.subject)
        .bind::<Text, _>(&filter.meter)
        .bind::<Text, _>(&filter.state)
        .bind::<Text, _>(&filter.plan_id)
        .bind::<BigInt, _>(limit)
        .load(conn)?;
    let placed = |row: StandingRow| Standing {
        window: row.window(now),
        enforcement: None,
        plan_number: row.plan_number,
        zone: row.time_zone.as_deref().map(zone_of),
        entry: row.entry,
    };
    Ok(rows.into_iter().map(placed).collect())
}

#[derive(QueryableByName)]
struct Enforced {
    #[diesel(sql_type = BigInt)]
    plan_number: i64,
    #[diesel(sql_type = Text)]
    meter: String,
    #[diesel(sql_type = Text)]
    period: String,
    #[diesel(sql_type = Text)]
    enforcement: String,
}

/// Says of each what happens beyond it. In one statement.
pub fn tell_enforcement(conn: &mut Conn, limits: &mut [Standing]) -> Result<(), DbError> {
    let mut plans: Vec<i64> = limits.iter().map(|one| one.plan_number).collect();
    plans.sort_unstable();
    plans.dedup();
    if plans.is_empty() {
        return Ok(());
    }
    let text = format!(
        "-- entitlements::listing::enforcement
         SELECT l.plan_id AS plan_number, m.name AS meter, l.period, l.enforcement
         FROM plan_limits l JOIN meters m ON m.id = l.meter_id WHERE l.plan_id IN ({})",
        integers(&plans)
    );
    let rows: Vec<Enforced> = sql_query(text).load(conn)?;
    let mut by_meter: HashMap<(i64, &str), Vec<(Period, Enforcement)>> = HashMap::new();
    for row in &rows {
        let read = Period::parse(&row.period).zip(Enforcement::parse(&row.enforcement));
        by_meter.entry((row.plan_number, row.meter.as_str())).or_default().extend(read);
    }
    for one in limits {
        let Some(zone) = &one.zone else { continue };
        let of_meter = by_meter.get(&(one.plan_number, one.entry.meter.as_str()));
        // a state names the zone that its limit leaves to the subject
        let is_own = |(period, _): &&(Period, Enforcement)| period.in_zone(zone).as_str() == one.entry.period;
        let enforcement = of_meter.into_iter().flatten().find(is_own).map(|(_, enforcement)| *enforcement);
        one.enforcement = enforcement;
    }
    Ok(())
}

/// The newest first.
pub fn events(
    conn: &mut Conn,
    workspace_id: i64,
    filter: &Filter,
    limit: i64,
) -> Result<Vec<Entry>, DbError> {
    read(conn, workspace_id, &EVENTS, filter, limit)
}

/// The latest window first.
pub fn periods(
    conn: &mut Conn,
    workspace_id: i64,
    filter: &Filter,
    limit: i64,
) -> Result<Vec<Entry>, DbError> {
    read(conn, workspace_id, &PERIODS, filter, limit)
}

/// The plan that a subject has now, and how it stands to the worst of its limits.
#[derive(QueryableByName)]
pub struct SubjectPlan {
    #[diesel(sql_type = Text)]
    subject: String,
    #[diesel(sql_type = Nullable<Text>)]
    pub plan_id: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    pub plan_name: Option<String>,
    #[diesel(sql_type = Nullable<Integer>)]
    pub plan_version: Option<i32>,
    #[diesel(sql_type = BigInt)]
    worst: i64,
}

impl SubjectPlan {
    /// None where no limit of it was evaluated yet.
    pub fn state(&self) -> Option<State> {
        match self.worst {
            3 => Some(State::Exceeded),
            2 => Some(State::Warning),
            1 => Some(State::Ok),
            _ => None,
        }
    }
}

/// Plans and states of these subjects, by their names. In one statement.
pub fn of_subjects(
    conn: &mut Conn,
    workspace_id: i64,
    names: &[String],
    now: Timestamp,
) -> Result<HashMap<String, SubjectPlan>, DbError> {
    if names.is_empty() {
        return Ok(HashMap::new());
    }
    let mut statement = Statement::new(conn);
    let (starts, ends) = (statement.int(now.0), statement.int(now.0));
    let workspace_id = statement.int(workspace_id);
    let names: Vec<String> = names.iter().map(|name| statement.text(name.as_str())).collect();
    let text = format!(
        "-- entitlements::listing::of_subjects
         SELECT s.name AS subject, p.public_id AS plan_id, p.name AS plan_name, p.version AS plan_version,
                CAST(COALESCE(MAX(CASE e.state WHEN 'exceeded' THEN 3 WHEN 'warning' THEN 2 WHEN 'ok' THEN 1 ELSE 0 END), 0)
                     AS BIGINT) AS worst
         FROM subjects s
         LEFT JOIN plan_assignments a ON a.subject_id = s.id AND a.starts_at <= {starts}
               AND (a.ends_at IS NULL OR a.ends_at > {ends})
         LEFT JOIN plans p ON p.id = a.plan_id
         LEFT JOIN entitlement_states e ON e.subject_id = s.id AND e.plan_id = a.plan_id
         WHERE s.workspace_id = {workspace_id} AND s.name IN ({})
         GROUP BY s.name, p.public_id, p.name, p.version",
        names.join(", ")
    );
    let rows: Vec<SubjectPlan> = statement.load(conn, &text)?;
    Ok(rows.into_iter().map(|row| (row.subject.clone(), row)).collect())
}

#[derive(QueryableByName)]
struct PlacedEntry {
    #[diesel(embed)]
    entry: Entry,
    #[diesel(sql_type = BigInt)]
    is_period: i64,
    #[diesel(sql_type = BigInt)]
    place: i64,
}

/// The newest events of a subject, and its latest windows. In one statement.
pub fn of_subject(
    conn: &mut Conn,
    subject_id: i64,
    events: i64,
    periods: i64,
) -> Result<(Vec<Entry>, Vec<Entry>), DbError> {
    let text = format!(
        "-- entitlements::listing::of_subject
         SELECT * FROM ({}) AS events UNION ALL SELECT * FROM ({}) AS periods",
        first_of_subject(&EVENTS, "0", events),
        first_of_subject(&PERIODS, "1", periods)
    );
    let mut rows: Vec<PlacedEntry> = sql_query(text).bind::<BigInt, _>(subject_id).load(conn)?;
    // a union has no order
    rows.sort_by_key(|row| row.place);
    let (periods, events): (Vec<PlacedEntry>, _) = rows.into_iter().partition(|row| row.is_period > 0);
    let entries = |rows: Vec<PlacedEntry>| -> Vec<Entry> { rows.into_iter().map(|row| row.entry).collect() };
    Ok((entries(events), entries(periods)))
}

/// The first of a list that are of the subject `$1`, with their places.
fn first_of_subject(listing: &Listing, is_period: &str, limit: i64) -> String {
    let Listing { table, columns, order } = listing;
    format!(
        "SELECT {columns}, s.name AS subject, m.name AS meter, p.public_id AS plan_id, p.name AS plan_name,
                p.version AS plan_version, e.period, e.state, e.current_value, e.limit_value, e.warning_percent,
                CAST({is_period} AS BIGINT) AS is_period, ROW_NUMBER() OVER (ORDER BY {order}) AS place
         FROM {table} e
         JOIN subjects s ON s.id = e.subject_id
         JOIN meters m ON m.id = e.meter_id
         JOIN plans p ON p.id = e.plan_id
         WHERE e.subject_id = $1 ORDER BY {order} LIMIT {limit}"
    )
}
