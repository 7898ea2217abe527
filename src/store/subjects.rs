//! What the stored events of a workspace come to, per meter and per subject. Nothing is counted while writing:
//! rollups are added up on reading. Because they outlive pruning, they count only from the first whole hour after
//! what was pruned of a meter; the few raw events before that are counted one by one. The watermark of a meter moves
//! in the transactions that delete, and each answer comes from one statement, so it is exact at every instant.

use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Integer, Nullable, Text};

use crate::event::StoredEvent;
use crate::store::events::{EventText, event_columns};
use crate::store::schema::{prune_runs, subjects};
use crate::store::{Conn, Fault};
use crate::window::{DAY, HOUR, Micros};

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
#[derive(QueryableByName)]
pub struct SubjectStats {
    #[diesel(sql_type = Text)]
    pub subject: String,
    #[diesel(sql_type = BigInt)]
    pub usage_events: i64,
    #[diesel(sql_type = BigInt)]
    pub meters: i64,
    #[diesel(sql_type = BigInt)]
    pub last_event_at: i64,
}

/// The activity of a workspace.
#[derive(QueryableByName)]
pub struct Totals {
    #[diesel(sql_type = BigInt)]
    pub meters: i64,
    #[diesel(sql_type = BigInt)]
    pub usage_events: i64,
}

/// SQL for the first whole hour or day at or after the watermark of `meters`, in the far past when there is none.
/// `%` of both databases takes the sign of the dividend.
pub(super) fn whole_from(width: i64) -> String {
    let late = format!("(pruned_before + {})", width - 1);
    format!("COALESCE({late} - (({late} % {width}) + {width}) % {width}, -9000000000000000000)")
}

/// Rows `(meter_id, event_count, last_at)` that add up to the stored events of the meters in `page`.
fn counted_by_meter() -> &'static str {
    "SELECT r.meter_id, r.event_count, r.last_at
     FROM page p JOIN rollups r ON r.meter_id = p.id AND r.subject_id = 0 AND r.grain = 1 AND r.start >= p.days_from
     UNION ALL
     SELECT r.meter_id, r.event_count, r.last_at
     FROM page p JOIN rollups r ON r.meter_id = p.id AND r.subject_id = 0 AND r.grain = 0
                                AND r.start >= p.hours_from AND r.start < p.days_from
     UNION ALL
     SELECT e.meter_id, 1, e.event_time
     FROM page p JOIN events e ON e.meter_id = p.id AND e.event_time < p.hours_from"
}

/// Meters by name, bytewise ascending, after `after`, with what is stored of them.
pub fn meter_stats(
    conn: &mut Conn,
    workspace_id: i64,
    after: &str,
    limit: i64,
) -> Result<Vec<MeterStats>, Fault> {
    let text = format!(
        "-- store::subjects::meter_stats
         WITH page AS (
             SELECT id, name, event_retention_days, {} AS hours_from, {} AS days_from
             FROM meters WHERE workspace_id = $1 AND name > $2 ORDER BY name LIMIT $3
         ), counted AS ({})
         SELECT p.name AS meter, CAST(COALESCE(SUM(c.event_count), 0) AS BIGINT) AS usage_events,
                MAX(c.last_at) AS last_event_at, p.event_retention_days AS retention_days
         FROM page p LEFT JOIN counted c ON c.meter_id = p.id
         GROUP BY p.id, p.name, p.event_retention_days ORDER BY p.name",
        whole_from(HOUR),
        whole_from(DAY),
        counted_by_meter(),
    );
    let query = sql_query(text).bind::<BigInt, _>(workspace_id).bind::<Text, _>(after);
    Ok(query.bind::<BigInt, _>(limit).load(conn)?)
}

/// How many meters and stored events a workspace has.
pub fn totals(conn: &mut Conn, workspace_id: i64) -> Result<Totals, Fault> {
    let text = format!(
        "-- store::subjects::totals
         WITH page AS (
             SELECT id, {} AS hours_from, {} AS days_from FROM meters WHERE workspace_id = $1
         ), counted AS ({})
         SELECT (SELECT COUNT(*) FROM page) AS meters,
                (SELECT CAST(COALESCE(SUM(event_count), 0) AS BIGINT) FROM counted) AS usage_events",
        whole_from(HOUR),
        whole_from(DAY),
        counted_by_meter(),
    );
    Ok(sql_query(text).bind::<BigInt, _>(workspace_id).get_result(conn)?)
}

/// Where a page of subjects starts.
pub struct SubjectPosition {
    pub last_event_at: Micros,
    pub subject: String,
}

/// Subjects with stored events, by their last event, newest first, then by name. One pass over the hours of all
/// subjects: the order cannot be known without it.
pub fn list(
    conn: &mut Conn,
    workspace_id: i64,
    after: Option<&SubjectPosition>,
    limit: i64,
) -> Result<Vec<SubjectStats>, Fault> {
    let text = format!(
        "-- store::subjects::list
         WITH page AS (
             SELECT id, {} AS hours_from FROM meters WHERE workspace_id = $1
         ), counted AS (
             SELECT r.subject_id, r.meter_id, SUM(r.event_count) AS event_count, MAX(r.last_at) AS last_at
             FROM page p JOIN rollups r ON r.meter_id = p.id AND r.subject_id > 0 AND r.start >= p.hours_from
             GROUP BY r.subject_id, r.meter_id
             UNION ALL
             SELECT e.subject_id, e.meter_id, COUNT(*), MAX(e.event_time)
             FROM page p JOIN events e ON e.meter_id = p.id AND e.event_time < p.hours_from
             GROUP BY e.subject_id, e.meter_id
         ), active AS (
             SELECT subject_id, CAST(SUM(event_count) AS BIGINT) AS usage_events,
                    COUNT(DISTINCT meter_id) AS meters, MAX(last_at) AS last_event_at
             FROM counted GROUP BY subject_id
         )
         SELECT s.name AS subject, a.usage_events, a.meters, a.last_event_at
         FROM active a JOIN subjects s ON s.id = a.subject_id
         WHERE a.last_event_at < $2 OR (a.last_event_at = $2 AND s.name > $3)
         ORDER BY a.last_event_at DESC, s.name LIMIT $4",
        whole_from(HOUR),
    );
    let (last_event_at, subject) =
        after.map_or((i64::MAX, ""), |after| (after.last_event_at.0, after.subject.as_str()));
    let query = sql_query(text).bind::<BigInt, _>(workspace_id);
    let query = query.bind::<BigInt, _>(last_event_at).bind::<Text, _>(subject);
    Ok(query.bind::<BigInt, _>(limit).load(conn)?)
}

/// The newest events of a subject; none for an unknown one.
pub fn newest_events(
    conn: &mut Conn,
    workspace_id: i64,
    subject: &str,
    limit: i64,
) -> Result<Vec<StoredEvent>, Fault> {
    let subject_id: Option<i64> = subjects::table
        .filter(subjects::workspace_id.eq(workspace_id).and(subjects::name.eq(subject)))
        .select(subjects::id)
        .first(conn)
        .optional()?;
    let Some(subject_id) = subject_id else { return Ok(Vec::new()) };
    let text = format!(
        "-- store::subjects::newest_events
         SELECT {}
         FROM (SELECT * FROM events WHERE subject_id = $1 ORDER BY event_time DESC, id DESC LIMIT $2) e
         JOIN meters m ON m.id = e.meter_id JOIN subjects s ON s.id = e.subject_id
         ORDER BY e.event_time DESC, e.id DESC",
        event_columns(conn.is_postgres())
    );
    let rows: Vec<EventText> =
        sql_query(text).bind::<BigInt, _>(subject_id).bind::<BigInt, _>(limit).load(conn)?;
    let is_canonical = !conn.is_postgres();
    rows.into_iter().map(|row| row.into_event(is_canonical)).collect()
}

/// How often a workspace was pruned, dry runs included.
pub fn count_prune_runs(conn: &mut Conn, workspace_id: i64) -> Result<i64, Fault> {
    Ok(prune_runs::table.filter(prune_runs::workspace_id.eq(workspace_id)).count().get_result(conn)?)
}
