//! What the stored events of a workspace come to, per meter and per subject. Per meter they are added up from totals on
//! reading. Because those outlive pruning, they count only from the first whole hour after what was pruned of a meter; the
//! few raw events before that are counted one by one. The watermark of a meter moves in the transactions that delete, and
//! an answer is read at one instant, so it is always exact. Subjects have counts (`usage::subject_counts`).

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Integer, Nullable, Text};

use crate::db::columns::{readable, uuid_of};
use crate::db::schema::{prune_runs, subjects};
use crate::db::statement::Statement;
use crate::db::{Conn, DbError};
use crate::metering::delta::{self, Count, Counts};
use crate::metering::rollup::Grain;
use crate::metering::stored::StoredEvent;
use crate::metering::time::{DAY, HOUR, Timestamp, Window};
use crate::usage::event_row::{EventText, event_columns};
pub use crate::usage::subject_counts::SubjectPosition;
use crate::usage::subject_counts::{self, Activity, Settled};
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
    /// Turned away because they were invalid.
    #[diesel(sql_type = BigInt)]
    pub rejected_events: i64,
    /// Turned away because they were over the rate limit.
    #[diesel(sql_type = BigInt)]
    pub throttled_events: i64,
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
fn of_each_meter(conn: &Conn, columns: &str, table: &str, condition: &str) -> String {
    if conn.is_postgres() {
        let rows = format!("SELECT {columns} FROM {table} WHERE {condition} {}", conn.fence());
        return format!("SELECT x.* FROM page p CROSS JOIN LATERAL ({rows}) AS x");
    }
    format!("SELECT {columns} FROM page p CROSS JOIN {table} WHERE {condition}")
}

/// Rows `(meter_id, event_count, last_at)` that add up to the stored events of the meters in `page`.
fn counted_by_meter(conn: &Conn) -> String {
    let rollup = "r.meter_id, r.event_count, r.last_at";
    let level = "r.meter_id = p.id";
    let parts = [
        of_each_meter(
            conn,
            rollup,
            "rollups r",
            &format!("{level} AND r.grain = 2 AND r.start >= p.days_from"),
        ),
        of_each_meter(
            conn,
            rollup,
            "rollups r",
            &format!("{level} AND r.grain = 1 AND r.start >= p.hours_from AND r.start < p.days_from"),
        ),
        of_each_meter(
            conn,
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
        counted_by_meter(conn),
    );
    let query = sql_query(text).bind::<BigInt, _>(workspace_id).bind::<Text, _>(name);
    Ok(query.bind::<BigInt, _>(limit).load(conn)?)
}

/// How many events a meter got within an hour or day.
#[derive(QueryableByName)]
pub struct MeterCount {
    #[diesel(sql_type = Text)]
    pub meter: String,
    #[diesel(sql_type = BigInt)]
    start: i64,
    #[diesel(sql_type = BigInt)]
    pub events: i64,
}

impl MeterCount {
    pub fn start(&self) -> Timestamp {
        Timestamp(self.start)
    }
}

/// What all meters of a workspace got, in a window of whole days (`MeterDay`) or hours.
pub fn events_of_meters(
    conn: &mut Conn,
    workspace_id: i64,
    grain: Grain,
    window: Window,
) -> Result<Vec<MeterCount>, DbError> {
    let text = format!(
        "-- usage::subjects::events_of_meters
         SELECT m.name AS meter, r.start, CAST(SUM(r.event_count) AS BIGINT) AS events
         FROM (SELECT id, name FROM meters WHERE workspace_id = $1) m
         JOIN rollups r ON r.meter_id = m.id AND r.grain = {} AND r.start >= $2 AND r.start < $3
         GROUP BY m.name, r.start",
        grain as i16
    );
    let query = sql_query(text).bind::<BigInt, _>(workspace_id).bind::<BigInt, _>(window.from.0);
    Ok(query.bind::<BigInt, _>(window.to.0).load(conn)?)
}

/// How many events a meter got on a day of UTC.
#[derive(QueryableByName)]
pub struct DayCount {
    #[diesel(sql_type = BigInt)]
    pub meter_id: i64,
    #[diesel(sql_type = BigInt)]
    pub start: i64,
    #[diesel(sql_type = BigInt)]
    pub events: i64,
}

/// What these meters got per day, in a window of whole days.
pub fn days_of_meters(conn: &mut Conn, meter_ids: &[i64], window: Window) -> Result<Vec<DayCount>, DbError> {
    if meter_ids.is_empty() {
        return Ok(Vec::new());
    }
    let mut statement = Statement::new(conn);
    let ids: Vec<String> = meter_ids.iter().map(|id| statement.int(*id)).collect();
    let text = format!(
        "-- usage::subjects::days_of_meters
         SELECT meter_id, start, CAST(SUM(event_count) AS BIGINT) AS events
         FROM rollups WHERE meter_id IN ({}) AND grain = {} AND start >= {} AND start < {}
         GROUP BY meter_id, start",
        ids.join(", "),
        Grain::MeterDay as i16,
        statement.int(window.from.0),
        statement.int(window.to.0)
    );
    statement.load(conn, &text)
}

/// What all meters of a workspace got by the hour, in any window: the whole hours from sums, the ends from the events
/// themselves. One statement, so all of one instant.
pub fn events_by_hour(
    conn: &mut Conn,
    workspace_id: i64,
    window: Window,
) -> Result<Vec<MeterCount>, DbError> {
    let whole = Window { from: window.from.ceil(HOUR), to: window.to.floor(HOUR) };
    let (sums, ends) = match whole.from < whole.to {
        true => (whole, vec![Window { to: whole.from, ..window }, Window { from: whole.to, ..window }]),
        false => (Window { from: window.to, to: window.to }, vec![window]),
    };
    let mut statement = Statement::new(conn);
    let meters =
        format!("(SELECT id, name FROM meters WHERE workspace_id = {}) m", statement.int(workspace_id));
    let mut parts = vec![format!(
        "SELECT m.name AS meter, r.start, CAST(SUM(r.event_count) AS BIGINT) AS events
         FROM {meters} JOIN rollups r ON r.meter_id = m.id AND r.grain = {} AND r.start >= {} AND r.start < {}
         GROUP BY m.name, r.start",
        Grain::MeterHour as i16,
        statement.int(sums.from.0),
        statement.int(sums.to.0)
    )];
    // each end is a range of the index; both in one condition would be all of it
    for end in ends.iter().filter(|end| end.from < end.to) {
        let (from, to) = (statement.int(end.from.0), statement.int(end.to.0));
        parts.push(format!(
            "SELECT m.name AS meter, e.event_time - ((e.event_time % {HOUR}) + {HOUR}) % {HOUR} AS start,
                    CAST(COUNT(*) AS BIGINT) AS events
             FROM {meters} JOIN events e ON e.meter_id = m.id AND e.event_time >= {from} AND e.event_time < {to}
             GROUP BY 1, 2"
        ));
    }
    statement.load(conn, &format!("-- usage::subjects::events_by_hour\n{}", parts.join(" UNION ALL ")))
}

/// How many meters and events a workspace has, and how many events were turned away.
pub fn totals(conn: &mut Conn, workspace_id: i64) -> Result<Totals, DbError> {
    let ever = "r.meter_id = p.id AND r.grain = 2";
    let text = format!(
        "-- usage::subjects::totals
         WITH page AS (
             SELECT id, {} AS hours_from, {} AS days_from FROM meters WHERE workspace_id = $1
         ), counted AS ({})
         SELECT (SELECT COUNT(*) FROM page) AS meters,
                (SELECT CAST(COALESCE(SUM(event_count), 0) AS BIGINT) FROM counted) AS usage_events,
                (SELECT CAST(COALESCE(SUM(event_count), 0) AS BIGINT) FROM ({}) AS ever) AS accepted_events,
                COALESCE((SELECT rejected_events FROM ingestion_refusals WHERE workspace_id = $1), 0) AS rejected_events,
                COALESCE((SELECT throttled_events FROM ingestion_refusals WHERE workspace_id = $1), 0) AS throttled_events",
        whole_from(HOUR),
        whole_from(DAY),
        counted_by_meter(conn),
        of_each_meter(conn, "r.event_count", "rollups r", ever),
    );
    Ok(sql_query(text).bind::<BigInt, _>(workspace_id).get_result(conn)?)
}

/// Subjects with stored events, by their last event, newest first, then by name. A page reads the rows of its subjects and
/// what waits to be settled, whatever history they have. To be read at one instant.
pub fn list(
    conn: &mut Conn,
    workspace_id: i64,
    after: Option<&SubjectPosition>,
    limit: i64,
) -> Result<Vec<SubjectStats>, DbError> {
    let mut page = Page {
        activity: subject_counts::activity(conn, workspace_id)?,
        after: after.cloned(),
        found: BTreeMap::new(),
        settled_to: after.cloned(),
        is_all_settled: false,
    };
    let Candidates { unsure: mut looked_at, newest, all } = page.waiting();
    let mut waiting = newest.as_slice();
    for share in shares(limit, all) {
        let (now, later) = waiting.split_at(first_of(waiting, share as usize));
        waiting = later;
        looked_at.extend(now.iter().map(|(_, subject_id)| *subject_id));
        page.add_next(conn, workspace_id, &looked_at, share)?;
        looked_at.clear();
        let next = waiting.first().map(|(Reverse(at), _)| *at);
        if page.is_whole(limit as usize, next) || (next.is_none() && page.is_all_settled) {
            break;
        }
    }
    Ok(page.found.into_values().take(limit as usize).collect())
}

/// How many are looked at in each round, so that a page takes few rounds however much waits. By what is settled, the first
/// of a page are mostly the next; in their way are only subjects that something waits for (and, for a moment, those of a
/// month that is about to be dropped).
fn shares(limit: i64, waiting: usize) -> impl Iterator<Item = i64> {
    let further = std::iter::successors(Some(limit + waiting as i64), |share| Some(share.saturating_mul(4)));
    [limit, limit.saturating_mul(4)].into_iter().chain(further)
}

/// Where a subject stands in the list.
type Place = (Reverse<i64>, String);

/// A subject with its newest event that waits.
type Waits = (Reverse<Timestamp>, i64);

/// How many of them are so many, with all that are as new as the last of those.
fn first_of(waiting: &[Waits], share: usize) -> usize {
    match waiting.get(share.saturating_sub(1)) {
        Some((last, _)) => waiting.partition_point(|(at, _)| at <= last),
        None => waiting.len(),
    }
}

/// Subjects that something waits for.
struct Candidates {
    /// Only their counts tell where they belong.
    unsure: Vec<i64>,
    /// Those that may be on the page, with their newest event that waits, newest first.
    newest: Vec<Waits>,
    /// How many there are, those of other pages too.
    all: usize,
}

/// A page of subjects while it is put together.
struct Page {
    activity: Activity,
    after: Option<SubjectPosition>,
    found: BTreeMap<Place, SubjectStats>,
    /// How far the subjects are read, by what is settled of them.
    settled_to: Option<SubjectPosition>,
    is_all_settled: bool,
}

impl Page {
    fn waiting(&self) -> Candidates {
        let upper = self.after.as_ref().map_or(Timestamp(i64::MAX), |after| after.last_event_at);
        let mut found = Candidates { unsure: Vec::new(), newest: Vec::new(), all: 0 };
        for (subject_id, at) in self.activity.newest() {
            found.all += 1;
            match at {
                None => found.unsure.push(subject_id),
                Some(at) if at <= upper => found.newest.push((Reverse(at), subject_id)),
                // before the page
                Some(_) => {}
            }
        }
        found.newest.sort_unstable();
        found
    }

    /// These, and the next ones by what is settled of them.
    fn add_next(
        &mut self,
        conn: &mut Conn,
        workspace_id: i64,
        waiting: &[i64],
        share: i64,
    ) -> Result<(), DbError> {
        if self.is_all_settled && waiting.is_empty() {
            return Ok(());
        }
        let after = self.settled_to.as_ref();
        let (mut subjects, settled) =
            subject_counts::of_and_recent(conn, waiting, workspace_id, after, share)?;
        self.is_all_settled = (settled.len() as i64) < share;
        let place = settled.last().and_then(|row| {
            Some(SubjectPosition { last_event_at: Timestamp(row.last_event_at?), subject: row.name.clone() })
        });
        self.settled_to = place.or(self.settled_to.take());
        let waiting: BTreeSet<i64> = waiting.iter().copied().collect();
        subjects.extend(settled.into_iter().filter(|row| !waiting.contains(&row.subject_id)));
        self.add(conn, subjects)
    }

    /// Whether nobody who was not looked at can belong before the last of so many, where the newest event that waits for
    /// one of them is this one. Nobody's last event is later than what is settled and what waits say.
    fn is_whole(&self, limit: usize, next_waiting: Option<Timestamp>) -> bool {
        let Some((Reverse(at), name)) = self.found.keys().nth(limit.saturating_sub(1)) else { return false };
        let is_read = self
            .settled_to
            .as_ref()
            .is_some_and(|read| (Reverse(*at), name) <= (Reverse(read.last_event_at.0), &read.subject));
        next_waiting.is_none_or(|next| *at > next.0) && (self.is_all_settled || is_read)
    }

    /// Adds those that belong on the page or a later one.
    fn add(&mut self, conn: &mut Conn, subjects: Vec<Settled>) -> Result<(), DbError> {
        let mut counts: BTreeMap<i64, Counts> = BTreeMap::new();
        for subject in &subjects {
            let of_subject = counts.entry(subject.subject_id).or_default();
            delta::add_counts(of_subject, &subject.counts);
            self.activity.waiting.add_to(subject.subject_id, of_subject);
        }
        subject_counts::take_off_detached(conn, &self.activity, &mut counts)?;
        subject_counts::correct_last(conn, &self.activity.watermarks, &mut counts)?;
        for Settled { subject_id, name, .. } in subjects {
            let stored = counts.get(&subject_id).into_iter().flatten();
            let stored: Vec<&Count> = stored
                .filter(|(meter_id, count)| {
                    count.events > 0 && self.activity.watermarks.contains_key(meter_id)
                })
                .map(|(_, count)| count)
                .collect();
            let Some(last_event_at) = stored.iter().filter_map(|count| count.last_at).max() else { continue };
            let place = (Reverse(last_event_at.0), name.clone());
            if self
                .after
                .as_ref()
                .is_some_and(|after| place <= (Reverse(after.last_event_at.0), after.subject.clone()))
            {
                continue;
            }
            let stats = SubjectStats {
                subject: name,
                usage_events: stored.iter().map(|count| count.events).sum(),
                meters: stored.len() as i64,
                last_event_at: last_event_at.0,
            };
            self.found.insert(place, stats);
        }
        Ok(())
    }
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
    match subject_id {
        Some(subject_id) => newest_events_of(conn, subject_id, limit),
        None => Ok(Vec::new()),
    }
}

/// The same for a subject with this id.
pub fn newest_events_of(conn: &mut Conn, subject_id: i64, limit: i64) -> Result<Vec<StoredEvent>, DbError> {
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
