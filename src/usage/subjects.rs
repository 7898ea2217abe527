//! What the stored events of a workspace come to, per meter and per subject. Nothing is counted while writing:
//! rollups are added up on reading. Because they outlive pruning, they count only from the first whole hour after
//! what was pruned of a meter; the few raw events before that are counted one by one. The watermark of a meter moves
//! in the transactions that delete, and an answer is read at one instant, so it is always exact.

use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Integer, Nullable, Text};

use crate::db::columns::{readable, uuid_of};
use crate::db::schema::{prune_runs, subjects};
use crate::db::statement::Statement;
use crate::db::{Conn, DbError};
use crate::metering::event::StoredEvent;
use crate::metering::time::{DAY, HOUR, Timestamp, Window};
use crate::usage::event_row::{EventText, event_columns};
use crate::usage::subject_counts::{self, Count, Kept};
use crate::usage::subject_days::{self, Events};

/// The activity of one meter.
#[derive(QueryableByName)]
pub struct MeterStats {
    #[diesel(sql_type = Text)]
    pub meter: String,
    #[diesel(sql_type = BigInt)]
    pub usage_events: i64,
    #[diesel(sql_type = Nullable<BigInt>)]
    pub last_event_at: Option<i64>,
    #[diesel(sql_type = Integer)]
    pub retention_days: i32,
}

/// The activity of one subject.
pub struct SubjectStats {
    pub subject: String,
    pub usage_events: i64,
    pub meters: i64,
    pub last_event_at: i64,
}

/// The activity of a workspace.
#[derive(QueryableByName)]
pub struct Totals {
    #[diesel(sql_type = BigInt)]
    pub meters: i64,
    #[diesel(sql_type = BigInt)]
    pub usage_events: i64,
    /// Pruned ones included.
    #[diesel(sql_type = BigInt)]
    pub accepted_events: i64,
}

/// SQL for the first whole hour or day at or after the watermark of `meters`, in the far past when there is none.
/// `%` of both databases takes the sign of the dividend.
pub fn whole_from(width: i64) -> String {
    let late = format!("(pruned_before + {})", width - 1);
    format!("COALESCE({late} - (({late} % {width}) + {width}) % {width}, -9000000000000000000)")
}

/// The rows of `table` that belong to each meter of `page`, named `p` in `condition`. On PostgreSQL each meter gets
/// an index scan of its own: joined freely, the planner reads the whole table instead, for it cannot know how few
/// rows lie before a watermark.
pub(super) fn of_each_meter(is_postgres: bool, columns: &str, table: &str, condition: &str) -> String {
    if is_postgres {
        let rows = format!("SELECT {columns} FROM {table} WHERE {condition} OFFSET 0");
        return format!("SELECT x.* FROM page p CROSS JOIN LATERAL ({rows}) AS x");
    }
    format!("SELECT {columns} FROM page p CROSS JOIN {table} WHERE {condition}")
}

/// Rows `(meter_id, event_count, last_at)` that add up to the stored events of the meters in `page`.
fn counted_by_meter(is_postgres: bool) -> String {
    let rollup = "r.meter_id, r.event_count, r.last_at";
    let level = "r.meter_id = p.id";
    let parts = [
        of_each_meter(
            is_postgres,
            rollup,
            "rollups r",
            &format!("{level} AND r.grain = 2 AND r.start >= p.days_from"),
        ),
        of_each_meter(
            is_postgres,
            rollup,
            "rollups r",
            &format!("{level} AND r.grain = 1 AND r.start >= p.hours_from AND r.start < p.days_from"),
        ),
        of_each_meter(
            is_postgres,
            "e.meter_id, 1 AS event_count, e.event_time AS last_at",
            "events e",
            "e.meter_id = p.id AND e.event_time < p.hours_from",
        ),
    ];
    parts.join(" UNION ALL ")
}

/// Meters by name, bytewise ascending, after `after`, with what is stored of them.
pub fn meter_stats(
    conn: &mut Conn,
    workspace_id: i64,
    after: &str,
    limit: i64,
) -> Result<Vec<MeterStats>, DbError> {
    stats_where(conn, "name > $2", workspace_id, after, limit)
}

/// The activity of one meter.
pub fn stats_of_meter(conn: &mut Conn, workspace_id: i64, name: &str) -> Result<Option<MeterStats>, DbError> {
    Ok(stats_where(conn, "name = $2", workspace_id, name, 1)?.pop())
}

fn stats_where(
    conn: &mut Conn,
    condition: &'static str,
    workspace_id: i64,
    name: &str,
    limit: i64,
) -> Result<Vec<MeterStats>, DbError> {
    let text = format!(
        "-- usage::subjects::meter_stats
         WITH page AS (
             SELECT id, name, event_retention_days, {} AS hours_from, {} AS days_from
             FROM meters WHERE workspace_id = $1 AND {condition} ORDER BY name LIMIT $3
         ), counted AS ({})
         SELECT p.name AS meter, CAST(COALESCE(SUM(c.event_count), 0) AS BIGINT) AS usage_events,
                MAX(c.last_at) AS last_event_at, p.event_retention_days AS retention_days
         FROM page p LEFT JOIN counted c ON c.meter_id = p.id
         GROUP BY p.id, p.name, p.event_retention_days ORDER BY p.name",
        whole_from(HOUR),
        whole_from(DAY),
        counted_by_meter(conn.is_postgres()),
    );
    let query = sql_query(text).bind::<BigInt, _>(workspace_id).bind::<Text, _>(name);
    Ok(query.bind::<BigInt, _>(limit).load(conn)?)
}

/// How many meters and events a workspace has.
pub fn totals(conn: &mut Conn, workspace_id: i64) -> Result<Totals, DbError> {
    let is_postgres = conn.is_postgres();
    let ever = "r.meter_id = p.id AND r.grain = 2";
    let text = format!(
        "-- usage::subjects::totals
         WITH page AS (
             SELECT id, {} AS hours_from, {} AS days_from FROM meters WHERE workspace_id = $1
         ), counted AS ({})
         SELECT (SELECT COUNT(*) FROM page) AS meters,
                (SELECT CAST(COALESCE(SUM(event_count), 0) AS BIGINT) FROM counted) AS usage_events,
                (SELECT CAST(COALESCE(SUM(event_count), 0) AS BIGINT) FROM ({}) AS ever) AS accepted_events",
        whole_from(HOUR),
        whole_from(DAY),
        counted_by_meter(is_postgres),
        of_each_meter(is_postgres, "r.event_count", "rollups r", ever),
    );
    Ok(sql_query(text).bind::<BigInt, _>(workspace_id).get_result(conn)?)
}

/// Where a page of subjects starts.
#[derive(Clone)]
pub struct SubjectPosition {
    pub last_event_at: Timestamp,
    pub subject: String,
}

/// Subjects with stored events, by their last event, newest first, then by name. A page reads the subjects last seen
/// in the hours that it covers, however many come before and after. With the counts that are worth keeping. To be read
/// at one instant.
pub fn list(
    conn: &mut Conn,
    workspace_id: i64,
    after: Option<&SubjectPosition>,
    limit: i64,
) -> Result<(Vec<SubjectStats>, Vec<Kept>), DbError> {
    let until = after.map_or(Timestamp(i64::MAX), |after| after.last_event_at.floor(HOUR));
    let since = hours_of_page(conn, workspace_id, until, limit)?;
    let subjects = last_seen(conn, workspace_id, since, until, after, limit)?;
    if subjects.is_empty() {
        return Ok((Vec::new(), Vec::new()));
    }
    let ids: Vec<i64> = subjects.iter().map(|one| one.subject_id).collect();
    let (counts, kept) = subject_counts::of(conn, workspace_id, &ids, Timestamp::now())?;
    let with_counts = subjects.into_iter().map(|one| {
        let Count { events, meters } = counts.get(&one.subject_id).copied().unwrap_or_default();
        SubjectStats { subject: one.subject, usage_events: events, meters, last_event_at: one.last_event_at }
    });
    Ok((with_counts.collect(), kept))
}

/// SQL for the last hour in which a subject used any meter, of what is still stored in whole hours. In words of its
/// own rather than a join, so that it is looked up for each subject that is met and never for all of them.
fn last_hour_of(subject_id: &str) -> String {
    format!(
        "(SELECT MAX(b.last_hour) FROM subject_activity b JOIN meters m ON m.id = b.meter_id
          WHERE b.subject_id = {subject_id} AND b.last_hour >= {})",
        whole_from(HOUR)
    )
}

#[derive(QueryableByName)]
struct FirstHour {
    #[diesel(sql_type = Nullable<BigInt>)]
    hour: Option<i64>,
}

/// The hour from which up to `until` at least `limit` subjects were last seen; the far past when there are fewer.
fn hours_of_page(
    conn: &mut Conn,
    workspace_id: i64,
    until: Timestamp,
    limit: i64,
) -> Result<Timestamp, DbError> {
    // the latest of the hours in which each meter alone would fill the page
    let text = format!(
        "-- usage::subjects::hours_of_page
         WITH page AS (SELECT id, {} AS hours_from FROM meters WHERE workspace_id = $1)
         SELECT MAX(hour) AS hour FROM (
             SELECT (SELECT a.last_hour FROM subject_activity a
                     WHERE a.meter_id = p.id AND a.last_hour >= p.hours_from AND a.last_hour < $2
                       AND a.last_hour = {}
                     ORDER BY a.last_hour DESC LIMIT 1 OFFSET $3) AS hour
             FROM page p) AS filled",
        whole_from(HOUR),
        last_hour_of("a.subject_id"),
    );
    let query = sql_query(text).bind::<BigInt, _>(workspace_id).bind::<BigInt, _>(until.0);
    let first: FirstHour = query.bind::<BigInt, _>(limit - 1).get_result(conn)?;
    Ok(first.hour.map_or(Timestamp(i64::MIN), Timestamp))
}

#[derive(QueryableByName)]
struct Seen {
    #[diesel(sql_type = BigInt)]
    subject_id: i64,
    #[diesel(sql_type = Text)]
    subject: String,
    #[diesel(sql_type = BigInt)]
    last_event_at: i64,
}

/// The first subjects after a position, of those last seen in these hours (both included). What lies before the
/// watermark of a meter is looked for among its raw events, and counts only for subjects not seen later.
fn last_seen(
    conn: &mut Conn,
    workspace_id: i64,
    since: Timestamp,
    until: Timestamp,
    after: Option<&SubjectPosition>,
    limit: i64,
) -> Result<Vec<Seen>, DbError> {
    let is_postgres = conn.is_postgres();
    let text = format!(
        "-- usage::subjects::last_seen
         WITH page AS (
             SELECT id, {} AS hours_from, $1 AS since, $2 AS until FROM meters WHERE workspace_id = $3
         ), seen AS ({} UNION ALL {}), latest AS (
             SELECT subject_id, MAX(last_at) AS last_event_at FROM seen GROUP BY subject_id
         )
         SELECT l.subject_id, s.name AS subject, l.last_event_at
         FROM latest l JOIN subjects s ON s.id = l.subject_id
         WHERE l.last_event_at < $4 OR (l.last_event_at = $4 AND s.name > $5)
         ORDER BY l.last_event_at DESC, s.name LIMIT $6",
        whole_from(HOUR),
        of_each_meter(
            is_postgres,
            "a.subject_id, (SELECT MAX(r.last_at) FROM rollups r
                            WHERE r.meter_id = a.meter_id AND r.subject_id = a.subject_id AND r.grain = 0
                              AND r.start = a.last_hour) AS last_at",
            "subject_activity a",
            &format!(
                "a.meter_id = p.id AND a.last_hour >= p.hours_from AND a.last_hour >= p.since
                 AND a.last_hour <= p.until AND a.last_hour = {}",
                last_hour_of("a.subject_id")
            ),
        ),
        of_each_meter(
            is_postgres,
            "e.subject_id, e.event_time AS last_at",
            "events e",
            &format!(
                "e.meter_id = p.id AND e.event_time < p.hours_from AND e.event_time >= p.since
                 AND COALESCE({}, p.until) <= p.until",
                last_hour_of("e.subject_id")
            ),
        ),
    );
    let (last_event_at, subject) =
        after.map_or((i64::MAX, ""), |after| (after.last_event_at.0, after.subject.as_str()));
    let query = sql_query(text).bind::<BigInt, _>(since.0).bind::<BigInt, _>(until.0);
    let query = query.bind::<BigInt, _>(workspace_id).bind::<BigInt, _>(last_event_at);
    Ok(query.bind::<Text, _>(subject).bind::<BigInt, _>(limit).load(conn)?)
}

/// Names that begin with a text, in their order.
pub fn with_prefix(
    conn: &mut Conn,
    workspace_id: i64,
    prefix: &str,
    limit: i64,
) -> Result<Vec<String>, DbError> {
    // subjects are ASCII, so a name that begins with the text lies between it and it with the last ASCII sign behind
    let past = format!("{prefix}\u{7f}");
    Ok(subjects::table
        .filter(subjects::workspace_id.eq(workspace_id))
        .filter(subjects::name.ge(prefix).and(subjects::name.lt(past)))
        .order(subjects::name)
        .limit(limit)
        .select(subjects::name)
        .load(conn)?)
}

/// The newest events of a subject; none for an unknown one.
pub fn newest_events(
    conn: &mut Conn,
    workspace_id: i64,
    subject: &str,
    limit: i64,
) -> Result<Vec<StoredEvent>, DbError> {
    let subject_id: Option<i64> = subjects::table
        .filter(subjects::workspace_id.eq(workspace_id).and(subjects::name.eq(subject)))
        .select(subjects::id)
        .first(conn)
        .optional()?;
    let Some(subject_id) = subject_id else { return Ok(Vec::new()) };
    let is_postgres = conn.is_postgres();
    let mut statement = Statement::new(conn);
    let subject = format!("= {}", statement.int(subject_id));
    let Events { tables, condition, order, .. } =
        subject_days::events(&mut statement, &subject, Window::ALWAYS);
    let text = format!(
        "-- usage::subjects::newest_events
         SELECT {}
         FROM (SELECT e.* FROM {tables} WHERE {condition} ORDER BY {order} LIMIT {}) e
         JOIN meters m ON m.id = e.meter_id JOIN subjects s ON s.id = e.subject_id
         ORDER BY e.event_time DESC, e.id DESC",
        event_columns(is_postgres),
        statement.int(limit),
    );
    let rows: Vec<EventText> = statement.load(conn, &text)?;
    let is_canonical = !is_postgres;
    let event = |row: EventText| {
        let id = uuid_of(&row.id).unwrap_or_default();
        readable("events", id, row.into_event(is_canonical))
    };
    Ok(rows.into_iter().filter_map(event).collect())
}

/// How often a workspace was pruned, dry runs included.
pub fn count_prune_runs(conn: &mut Conn, workspace_id: i64) -> Result<i64, DbError> {
    Ok(prune_runs::table.filter(prune_runs::workspace_id.eq(workspace_id)).count().get_result(conn)?)
}
