//! Who has which plan when. Every change first grows `workspaces.assignment_version`: that row lock makes the changes
//! of a workspace one after the other, on any number of servers, and tells writers that what they remember of its
//! subjects is out of date. A write reads the version inside its own transaction, so it cannot miss an assignment
//! that was committed before the write began; one that commits meanwhile is concurrent, and either order is right.

use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Bool, Integer, Nullable, Text};

use crate::both;
use crate::chance;
use crate::db::identity::{Clock, new_id};
use crate::db::schema::{plan_assignments, subjects, workspaces};
use crate::db::{Conn, DbError, audit};
use crate::entitlements::assignment::{AssignmentPeriod, Status, anchor_of_new, effective, not_before};
use crate::entitlements::jobs::Evaluation;
use crate::entitlements::plan::Plan;
use crate::entitlements::sql::{plans, states};
use crate::error::Error;
use crate::jobs::queue::{self, NewJob};
use crate::metering::calendar::Zone;
use crate::metering::time::Timestamp;
use crate::usage::{home_zone, subject_ids};

/// An assignment as it is listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    pub public_id: String,
    pub subject_id: i64,
    pub subject: String,
    pub plan_id: i64,
    pub plan_public_id: String,
    pub plan_name: String,
    pub plan_version: i32,
    pub starts_at: Timestamp,
    pub ends_at: Option<Timestamp>,
    pub anchor: Timestamp,
    pub zone: Zone,
    pub updated_at: Timestamp,
}

impl Assignment {
    pub fn status(&self, now: Timestamp) -> Status {
        Status::of(self.starts_at, self.ends_at, now)
    }

    /// As a stretch of a history; none for one that was canceled before it began.
    pub fn period(&self) -> Option<AssignmentPeriod> {
        let period = AssignmentPeriod {
            plan_id: self.plan_id,
            starts_at: self.starts_at,
            ends_at: self.ends_at,
            anchor: self.anchor,
            zone: self.zone.clone(),
            is_scheduled: self.starts_at > self.updated_at,
        };
        (!is_void(&period)).then_some(period)
    }
}

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = Text)]
    public_id: String,
    #[diesel(sql_type = BigInt)]
    subject_id: i64,
    #[diesel(sql_type = Text)]
    subject: String,
    #[diesel(sql_type = BigInt)]
    plan_id: i64,
    #[diesel(sql_type = Text)]
    plan_public_id: String,
    #[diesel(sql_type = Text)]
    plan_name: String,
    #[diesel(sql_type = Integer)]
    plan_version: i32,
    #[diesel(sql_type = BigInt)]
    starts_at: i64,
    #[diesel(sql_type = Nullable<BigInt>)]
    ends_at: Option<i64>,
    #[diesel(sql_type = BigInt)]
    anchor: i64,
    #[diesel(sql_type = Text)]
    time_zone: String,
    #[diesel(sql_type = BigInt)]
    updated_at: i64,
}

impl From<Row> for Assignment {
    fn from(row: Row) -> Self {
        Assignment {
            public_id: row.public_id,
            subject_id: row.subject_id,
            subject: row.subject,
            plan_id: row.plan_id,
            plan_public_id: row.plan_public_id,
            plan_name: row.plan_name,
            plan_version: row.plan_version,
            starts_at: Timestamp(row.starts_at),
            ends_at: row.ends_at.map(Timestamp),
            anchor: Timestamp(row.anchor),
            zone: zone_of(&row.time_zone),
            updated_at: Timestamp(row.updated_at),
        }
    }
}

#[derive(Insertable)]
#[diesel(table_name = plan_assignments, treat_none_as_default_value = false)]
struct NewRow {
    id: i64,
    public_id: String,
    workspace_id: i64,
    subject_id: i64,
    plan_id: i64,
    starts_at: i64,
    ends_at: Option<i64>,
    anchor: i64,
    time_zone: String,
    updated_at: i64,
}

/// Must come first in every transaction that changes assignments of the workspace: one waits for the other. The time
/// of the change is read after the wait, so that changes follow each other in time as they do in the database.
pub fn begin_change(conn: &mut Conn, workspace_id: i64, clock: Clock) -> Result<Timestamp, DbError> {
    let change = diesel::update(workspaces::table.find(workspace_id))
        .set(workspaces::assignment_version.eq(workspaces::assignment_version + 1));
    match (conn, clock) {
        // the database's clock, because what is returned is computed once the row is ours: after the wait
        (Conn::Postgres(c), Clock::Database) => {
            let now = sql::<BigInt>("(extract(epoch FROM clock_timestamp()) * 1000000)::bigint");
            let now: Option<i64> = change.returning(now).get_result(c).optional()?;
            Ok(now.map_or_else(Timestamp::now, Timestamp))
        }
        (conn, clock) => {
            change.execute(conn)?;
            Ok(clock.here())
        }
    }
}

pub fn find_subject(conn: &mut Conn, workspace_id: i64, name: &str) -> Result<Option<i64>, DbError> {
    Ok(subjects::table
        .filter(subjects::workspace_id.eq(workspace_id).and(subjects::name.eq(name)))
        .select(subjects::id)
        .first(conn)
        .optional()?)
}

fn find_or_add_subject(conn: &mut Conn, workspace_id: i64, name: &str) -> Result<i64, DbError> {
    let found = subject_ids::find_or_add(conn, &[(workspace_id, name.to_owned())])?;
    let id = found.into_iter().next().map(|(_, id)| id);
    id.ok_or_else(|| Error::internal("a subject that was just added is gone").into())
}

#[derive(Queryable)]
struct SpanRow {
    plan_id: i64,
    starts_at: i64,
    ends_at: Option<i64>,
    anchor: i64,
    time_zone: String,
    updated_at: i64,
}

fn span(row: SpanRow) -> AssignmentPeriod {
    AssignmentPeriod {
        plan_id: row.plan_id,
        starts_at: Timestamp(row.starts_at),
        ends_at: row.ends_at.map(Timestamp),
        anchor: Timestamp(row.anchor),
        zone: zone_of(&row.time_zone),
        is_scheduled: row.starts_at > row.updated_at,
    }
}

/// A zone as it is stored; UTC where the database of this program does not know it any more.
pub fn zone_of(name: &str) -> Zone {
    Zone::parse(name).unwrap_or_else(|| {
        log::error!(zone = name; "the zone of an assignment is not known: UTC is used");
        Zone::UTC
    })
}

/// The history of a subject, in order, without what was canceled before it began.
pub fn history(conn: &mut Conn, subject_id: i64) -> Result<Vec<AssignmentPeriod>, DbError> {
    Ok(whole_history(conn, subject_id)?.into_iter().filter(|span| !is_void(span)).collect())
}

fn is_void(span: &AssignmentPeriod) -> bool {
    span.ends_at.is_some_and(|end| end <= span.starts_at)
}

fn whole_history(conn: &mut Conn, subject_id: i64) -> Result<Vec<AssignmentPeriod>, DbError> {
    let rows: Vec<SpanRow> = plan_assignments::table
        .filter(plan_assignments::subject_id.eq(subject_id))
        .order((plan_assignments::starts_at, plan_assignments::id))
        .select((
            plan_assignments::plan_id,
            plan_assignments::starts_at,
            plan_assignments::ends_at,
            plan_assignments::anchor,
            plan_assignments::time_zone,
            plan_assignments::updated_at,
        ))
        .load(conn)?;
    Ok(rows.into_iter().map(span).collect())
}

/// What is assigned.
#[derive(Clone, Debug, Default)]
pub struct Wish {
    pub plan_id: String,
    /// From when on; from now when that is past or absent.
    pub effective_at: Option<Timestamp>,
    /// Where the subject's days begin; where nobody says, as so far, or as in the workspace.
    pub zone: Option<Zone>,
}

/// Writes of a subject load its history, so nobody may make one that others wait for.
const HISTORY_MAX: usize = 5_000;

/// Gives a subject a plan (jobs.md 4.2).
pub fn assign(
    conn: &mut Conn,
    workspace_id: i64,
    subject: &str,
    wish: &Wish,
    clock: Clock,
) -> Result<Assignment, DbError> {
    let now = begin_change(conn, workspace_id, clock)?;
    let plan = plans::get_current(conn, workspace_id, &wish.plan_id)?;
    let subject_id = find_or_add_subject(conn, workspace_id, subject)?;
    let whole = whole_history(conn, subject_id)?;
    if whole.len() >= HISTORY_MAX {
        let detail = format!("there may be at most {HISTORY_MAX} assignments of subject {subject:?}");
        return Err(Error::limit_reached(detail).into());
    }
    let (used, old): (Vec<Timestamp>, Vec<AssignmentPeriod>) =
        (whole.iter().map(|span| span.anchor).collect(), whole.into_iter().filter(|s| !is_void(s)).collect());
    let now = not_before(&old, now);
    let starts_at = wish.effective_at.filter(|at| *at > now).unwrap_or(now);
    let anchor = anchor_of_new(&old, &used, now, starts_at);
    let zone = match (&wish.zone, effective(&old, now)) {
        (Some(zone), _) => zone.clone(),
        (None, Some(running)) => running.zone.clone(),
        (None, None) => home_zone::find(conn, workspace_id)?,
    };
    end_all(conn, subject_id, starts_at, now)?;
    let row = NewRow {
        id: new_id(),
        public_id: chance::id().to_string(),
        workspace_id,
        subject_id,
        plan_id: plan.id,
        starts_at: starts_at.0,
        ends_at: None,
        anchor: anchor.0,
        time_zone: zone.name().to_owned(),
        updated_at: now.0,
    };
    both!(conn, c => diesel::insert_into(plan_assignments::table).values(&row).execute(c)?);
    let before = plan_ids(old.iter().filter(|span| span.ends_at.is_none_or(|end| end > now)));
    let touched: Vec<i64> = before.into_iter().chain([plan.id]).collect();
    evaluate_plans(conn, workspace_id, subject_id, &touched, now)?;
    audit::about("", subject);
    audit::states(
        None,
        Some(serde_json::json!({"plan_id": plan.public_id, "plan": plan.name, "starts_at": starts_at})),
    );
    Ok(Assignment {
        public_id: row.public_id,
        subject_id,
        subject: subject.to_owned(),
        plan_id: plan.id,
        plan_public_id: plan.public_id,
        plan_name: plan.name,
        plan_version: plan.version,
        starts_at,
        ends_at: None,
        anchor,
        zone,
        updated_at: now,
    })
}

/// Cancels what is scheduled, as of now, and ends what is in force at `ends_at`.
fn end_all(conn: &mut Conn, subject_id: i64, ends_at: Timestamp, now: Timestamp) -> Result<usize, DbError> {
    let canceled = sql_query(
        "UPDATE plan_assignments SET ends_at = $1, updated_at = $1
         WHERE subject_id = $2 AND starts_at > $1 AND (ends_at IS NULL OR ends_at > $1)",
    )
    .bind::<BigInt, _>(now.0)
    .bind::<BigInt, _>(subject_id)
    .execute(conn)?;
    let ended = sql_query(
        "UPDATE plan_assignments SET ends_at = $1, updated_at = $2
         WHERE subject_id = $3 AND starts_at <= $2 AND (ends_at IS NULL OR ends_at > $2)",
    )
    .bind::<BigInt, _>(ends_at.0)
    .bind::<BigInt, _>(now.0)
    .bind::<BigInt, _>(subject_id)
    .execute(conn)?;
    Ok(canceled + ended)
}

/// Ends everything that has not ended; 404 when there is nothing.
pub fn unassign(conn: &mut Conn, workspace_id: i64, subject: &str, clock: Clock) -> Result<(), DbError> {
    let nothing = || DbError::from(Error::not_found(format!("assignment of subject {subject:?}")));
    let now = begin_change(conn, workspace_id, clock)?;
    let subject_id = find_subject(conn, workspace_id, subject)?.ok_or_else(nothing)?;
    let old = history(conn, subject_id)?;
    let now = not_before(&old, now);
    if end_all(conn, subject_id, now, now)? == 0 {
        return Err(nothing());
    }
    audit::about("", subject);
    let before = plan_ids(old.iter().filter(|span| span.ends_at.is_none_or(|end| end > now)));
    evaluate_plans(conn, workspace_id, subject_id, &before, now)
}

fn plan_ids<'a>(spans: impl Iterator<Item = &'a AssignmentPeriod>) -> Vec<i64> {
    spans.map(|span| span.plan_id).collect()
}

/// Rows that are held in memory, and inserted by one statement; SQLite takes 32,766 parameters.
const MOVED_AT_ONCE: i64 = 1_000;

/// What is in force, as far as it goes on under the next version.
#[derive(Queryable)]
struct Moving {
    /// Of the assignment.
    id: i64,
    subject_id: i64,
    ends_at: Option<i64>,
    anchor: i64,
    time_zone: String,
}

/// The next ones of a version, by the ids of their assignments, behind this one.
fn moving(conn: &mut Conn, plan_id: i64, now: Timestamp, after: i64) -> Result<Vec<Moving>, DbError> {
    Ok(plan_assignments::table
        .filter(plan_assignments::plan_id.eq(plan_id).and(plan_assignments::id.gt(after)))
        .filter(plan_assignments::starts_at.le(now.0))
        .filter(plan_assignments::ends_at.is_null().or(plan_assignments::ends_at.gt(now.0)))
        .order(plan_assignments::id)
        .limit(MOVED_AT_ONCE)
        .select((
            plan_assignments::id,
            plan_assignments::subject_id,
            plan_assignments::ends_at,
            plan_assignments::anchor,
            plan_assignments::time_zone,
        ))
        .load(conn)?)
}

/// Takes all subjects of a plan version to the next one: what is in force ends now and goes on under the new version
/// with the same anchor, what is scheduled keeps its start. However many there are, a page of them is in memory.
pub fn move_to_version(conn: &mut Conn, old: &Plan, new: &Plan, now: Timestamp) -> Result<(), DbError> {
    sql_query(
        "UPDATE plan_assignments SET plan_id = $1, updated_at = $2
         WHERE plan_id = $3 AND starts_at > $2 AND (ends_at IS NULL OR ends_at > $2)",
    )
    .bind::<BigInt, _>(new.id)
    .bind::<BigInt, _>(now.0)
    .bind::<BigInt, _>(old.id)
    .execute(conn)?;
    let mut page = moving(conn, old.id, now, i64::MIN)?;
    while let Some(last) = page.last().map(|moving| moving.id) {
        let is_last = (page.len() as i64) < MOVED_AT_ONCE;
        let row = |moving: Moving| NewRow {
            id: new_id(),
            public_id: chance::id().to_string(),
            workspace_id: new.workspace_id,
            subject_id: moving.subject_id,
            plan_id: new.id,
            starts_at: now.0,
            ends_at: moving.ends_at,
            anchor: moving.anchor,
            time_zone: moving.time_zone,
            updated_at: now.0,
        };
        let rows: Vec<NewRow> = page.into_iter().map(row).collect();
        both!(conn, c => diesel::insert_into(plan_assignments::table).values(&rows).execute(c)?);
        page = if is_last { Vec::new() } else { moving(conn, old.id, now, last)? };
    }
    // last: until then it is told by their ends what goes on
    sql_query(
        "UPDATE plan_assignments SET ends_at = $1, updated_at = $1
         WHERE plan_id = $2 AND starts_at <= $1 AND (ends_at IS NULL OR ends_at > $1)",
    )
    .bind::<BigInt, _>(now.0)
    .bind::<BigInt, _>(old.id)
    .execute(conn)?;
    states::enqueue_version(conn, old.id, new.id, now)
}

/// Asks for the evaluation of a subject under every meter that these plans limit.
fn evaluate_plans(
    conn: &mut Conn,
    workspace_id: i64,
    subject_id: i64,
    plan_ids: &[i64],
    now: Timestamp,
) -> Result<(), DbError> {
    let meter_ids = plans::limited_meters(conn, plan_ids)?.into_iter();
    let new: Result<Vec<NewJob>, Error> =
        meter_ids.map(|meter_id| Evaluation::now(subject_id, meter_id).job(workspace_id, now)).collect();
    queue::enqueue(conn, new?, now)
}

/// A subject that has a version of a plan, or will.
#[derive(Clone, Debug)]
pub struct Holder {
    /// Of the assignment.
    pub id: i64,
    pub subject_id: i64,
    pub anchor: Timestamp,
    pub zone: Zone,
}

#[derive(QueryableByName)]
struct HolderRow {
    #[diesel(sql_type = BigInt)]
    id: i64,
    #[diesel(sql_type = BigInt)]
    subject_id: i64,
    #[diesel(sql_type = BigInt)]
    anchor: i64,
    #[diesel(sql_type = Text)]
    time_zone: String,
}

impl From<HolderRow> for Holder {
    fn from(row: HolderRow) -> Self {
        let HolderRow { id, subject_id, anchor, time_zone } = row;
        Holder { id, subject_id, anchor: Timestamp(anchor), zone: zone_of(&time_zone) }
    }
}

/// Those of a version, by the ids of their assignments, behind this one.
pub fn holders(
    conn: &mut Conn,
    plan_id: i64,
    now: Timestamp,
    after: i64,
    limit: i64,
) -> Result<Vec<Holder>, DbError> {
    let rows: Vec<HolderRow> = sql_query(
        "SELECT a.id, a.subject_id, a.anchor, a.time_zone FROM plan_assignments a
         JOIN subjects s ON s.id = a.subject_id
         WHERE a.plan_id = $1 AND (a.ends_at IS NULL OR a.ends_at > $2) AND a.id > $3 ORDER BY a.id LIMIT $4",
    )
    .bind::<BigInt, _>(plan_id)
    .bind::<BigInt, _>(now.0)
    .bind::<BigInt, _>(after)
    .bind::<BigInt, _>(limit)
    .load(conn)?;
    Ok(rows.into_iter().map(Holder::from).collect())
}

#[derive(QueryableByName)]
struct Held {
    #[diesel(sql_type = BigInt)]
    count: i64,
}

/// How many subjects have a version of a plan, or will, counted no further than to `most`.
pub fn count_subjects(conn: &mut Conn, plan_id: i64, now: Timestamp, most: i64) -> Result<i64, DbError> {
    let text = "-- entitlements::assignments::count_subjects
        SELECT COUNT(DISTINCT subject_id) AS count
          FROM (SELECT subject_id FROM plan_assignments
                 WHERE plan_id = $1 AND (ends_at IS NULL OR ends_at > $2) LIMIT $3) AS held";
    let query = sql_query(text).bind::<BigInt, _>(plan_id).bind::<BigInt, _>(now.0);
    let held: Held = query.bind::<BigInt, _>(most).get_result(conn)?;
    Ok(held.count)
}

/// What narrows a list of assignments; empty texts do not.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub subject: String,
    pub plan_id: String,
    pub include_history: bool,
}

/// How many subjects have a version of a plan, or will have it.
#[derive(QueryableByName)]
pub struct PlanCount {
    #[diesel(sql_type = BigInt)]
    pub plan_id: i64,
    #[diesel(sql_type = BigInt)]
    pub subjects: i64,
}

/// Of all plans of a workspace.
pub fn subjects_of_plans(
    conn: &mut Conn,
    workspace_id: i64,
    now: Timestamp,
) -> Result<Vec<PlanCount>, DbError> {
    let text = "-- entitlements::subjects_of_plans
        SELECT plan_id, CAST(COUNT(DISTINCT subject_id) AS BIGINT) AS subjects
        FROM plan_assignments WHERE workspace_id = $1 AND (ends_at IS NULL OR ends_at > $2) GROUP BY plan_id";
    Ok(sql_query(text).bind::<BigInt, _>(workspace_id).bind::<BigInt, _>(now.0).load(conn)?)
}

#[derive(QueryableByName)]
struct SubjectRow {
    #[diesel(sql_type = BigInt)]
    known_id: i64,
    #[diesel(embed)]
    assignment: Option<Row>,
}

/// A subject with every assignment that it ever had, in the order in which they begin; none for one that nobody has
/// heard of. In one statement.
pub fn of_subject(
    conn: &mut Conn,
    workspace_id: i64,
    name: &str,
) -> Result<Option<(i64, Vec<Assignment>)>, DbError> {
    let rows: Vec<SubjectRow> = sql_query(
        "-- entitlements::assignments::of_subject
         SELECT s.id AS known_id, a.public_id, a.subject_id, s.name AS subject, a.plan_id, p.public_id AS plan_public_id,
                p.name AS plan_name, p.version AS plan_version, a.starts_at, a.ends_at, a.anchor, a.time_zone, a.updated_at
         FROM subjects s
         LEFT JOIN plan_assignments a ON a.subject_id = s.id
         LEFT JOIN plans p ON p.id = a.plan_id
         WHERE s.workspace_id = $1 AND s.name = $2 ORDER BY a.starts_at, a.id",
    )
    .bind::<BigInt, _>(workspace_id)
    .bind::<Text, _>(name)
    .load(conn)?;
    let Some(subject_id) = rows.first().map(|row| row.known_id) else { return Ok(None) };
    let held = rows.into_iter().filter_map(|row| row.assignment).map(Assignment::from);
    Ok(Some((subject_id, held.collect())))
}

/// The latest changed first.
pub fn list(
    conn: &mut Conn,
    workspace_id: i64,
    filter: &Filter,
    now: Timestamp,
    limit: i64,
) -> Result<Vec<Assignment>, DbError> {
    let rows: Vec<Row> = sql_query(
        "SELECT a.public_id, a.subject_id, s.name AS subject, a.plan_id, p.public_id AS plan_public_id,
                p.name AS plan_name, p.version AS plan_version, a.starts_at, a.ends_at, a.anchor, a.time_zone, a.updated_at
         FROM plan_assignments a
         JOIN subjects s ON s.id = a.subject_id
         JOIN plans p ON p.id = a.plan_id
         WHERE a.workspace_id = $1 AND ($2 = '' OR s.name = $2) AND ($3 = '' OR p.public_id = $3)
           AND ($4 OR a.ends_at IS NULL OR a.ends_at > $5)
         ORDER BY a.updated_at DESC, a.starts_at DESC, s.name LIMIT $6",
    )
    .bind::<BigInt, _>(workspace_id)
    .bind::<Text, _>(&filter.subject)
    .bind::<Text, _>(&filter.plan_id)
    .bind::<Bool, _>(filter.include_history)
    .bind::<BigInt, _>(now.0)
    .bind::<BigInt, _>(limit)
    .load(conn)?;
    Ok(rows.into_iter().map(Assignment::from).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::statement::plan::empty_database;

    /// Whatever a version has, a page of it is read at a time; pages that follow each other give each once.
    #[test]
    fn a_version_is_moved_by_pages() {
        let (_directory, mut conn) = empty_database();
        sql_query("PRAGMA foreign_keys = OFF").execute(&mut conn).expect("no workspaces needed");
        sql_query(
            "INSERT INTO plan_assignments (id, public_id, workspace_id, subject_id, plan_id, starts_at, ends_at, anchor, updated_at)
             WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 2500)
             SELECT n, 'a-' || n, 1, n, 7, 10, CASE WHEN n % 5 = 0 THEN 20 END, n, 0 FROM n",
        )
        .execute(&mut conn)
        .expect("inserted");
        // every fifth has ended by then
        let (mut seen, mut sizes, mut after) = (Vec::new(), Vec::new(), i64::MIN);
        loop {
            let page = moving(&mut conn, 7, Timestamp(20), after).expect("a page");
            let Some(last) = page.last() else { break };
            after = last.id;
            sizes.push(page.len());
            seen.extend(page.into_iter().map(|moving| moving.subject_id));
        }
        assert_eq!(sizes, [1_000, 1_000]);
        assert_eq!(seen, (1..=2_500).filter(|n| n % 5 != 0).collect::<Vec<i64>>());
    }
}
