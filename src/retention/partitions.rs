//! The months of `events` on PostgreSQL: attached ahead of time, dropped whole once every meter in them is past its
//! retention. Whatever lies outside the attached months is in `events_default` and works the same, only slower to
//! prune. All of it runs under one lock, so that several servers may start at once.

use std::collections::BTreeMap;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Bool, Text};

use crate::db::statement::integers;
use crate::db::{Conn, DbError};
use crate::metering::delta::{Count, Counts};
use crate::metering::time::{DAY, Timestamp};
use crate::retention::sql::KEPT;
use crate::retention::sql::set_pruned_before;
use crate::usage::fold;

/// Advisory lock of everything that changes partitions: "ospnmnth" in ASCII.
const LOCK: i64 = 0x6F73_706E_6D6E_7468;
/// Changing partitions keeps everybody out of `events` for a moment. Rather than let them wait longer than this, it
/// is given up and tried again later.
const PATIENCE: &str = "SET LOCAL lock_timeout = '2s'; SET LOCAL statement_timeout = '10s'";
/// More rows than this are not moved out of the default partition: their month stays where it is.
const MOVED_ROWS_MAX: i64 = 10_000;

/// A calendar month in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Month(Timestamp);

impl Month {
    pub fn of(at: Timestamp) -> Month {
        Month(at.month_start())
    }

    pub fn plus(self, months: i32) -> Month {
        Month(self.0.plus_months(months))
    }

    pub fn start(self) -> Timestamp {
        self.0
    }

    pub fn end(self) -> Timestamp {
        self.plus(1).0
    }

    /// The name of its partition.
    pub fn table(self) -> String {
        let text = self.0.to_seconds_text();
        format!("events_{}{}", &text[..4], &text[5..7])
    }

    fn parse(table: &str) -> Option<Month> {
        let digits = table.strip_prefix("events_").filter(|digits| digits.len() == 6 && digits.is_ascii())?;
        let start = Timestamp::parse(&format!("{}-{}-01T00:00:00Z", &digits[..4], &digits[4..]))?;
        Some(Month(start))
    }
}

#[derive(QueryableByName)]
struct TableRow {
    #[diesel(sql_type = Text)]
    name: String,
    #[diesel(sql_type = Bool)]
    is_attached: bool,
}

/// Month tables there are: attached ones, and ones that were detached but not dropped yet.
fn months(conn: &mut Conn, attached: bool) -> Result<Vec<Month>, DbError> {
    let text = "SELECT c.relname::text AS name, i.inhrelid IS NOT NULL AS is_attached
                FROM pg_class parent JOIN pg_class c ON c.relnamespace = parent.relnamespace
                LEFT JOIN pg_inherits i ON i.inhrelid = c.oid AND i.inhparent = parent.oid
                WHERE parent.oid = 'events'::regclass AND c.relkind = 'r' AND c.relname ~ '^events_[0-9]{6}$'
                ORDER BY c.relname";
    let rows: Vec<TableRow> = sql_query(text).load(conn)?;
    Ok(rows
        .iter()
        .filter(|row| row.is_attached == attached)
        .filter_map(|row| Month::parse(&row.name))
        .collect())
}

/// The months that should be attached: last month to two months from now.
pub fn wanted(now: Timestamp) -> [Month; 4] {
    [-1, 0, 1, 2].map(|months| Month::of(now).plus(months))
}

/// Last month to a year from now.
pub fn year(now: Timestamp) -> impl Iterator<Item = Month> {
    (-1..=12).map(move |months| Month::of(now).plus(months))
}

/// Whether this role may attach and drop months; one that may not leaves it to the owner, and prunes row by row.
pub fn is_owner(conn: &mut Conn) -> Result<bool, DbError> {
    let text = "SELECT 'events' AS name, pg_has_role(relowner, 'USAGE') AS is_attached
                FROM pg_class WHERE oid = 'events'::regclass";
    let owned: TableRow = sql_query(text).get_result(conn)?;
    Ok(owned.is_attached)
}

/// Those of the wanted months that have no partition.
pub fn missing(conn: &mut Conn, now: Timestamp) -> Result<Vec<Month>, DbError> {
    let attached = months(conn, true)?;
    Ok(wanted(now).into_iter().filter(|month| !attached.contains(month)).collect())
}

/// Keeps everybody else out of `events` until the transaction ends.
fn lock(conn: &mut Conn) -> Result<(), DbError> {
    conn.batch_execute(PATIENCE)?;
    // whoever waits here for a slow neighbour gives up as well, and finds its work done the next time
    sql_query("SELECT pg_advisory_xact_lock($1)").bind::<BigInt, _>(LOCK).execute(conn)?;
    // ONLY: every reader and writer locks the parent before its partitions
    conn.batch_execute("LOCK TABLE ONLY events IN ACCESS EXCLUSIVE MODE")?;
    Ok(())
}

#[derive(QueryableByName)]
struct RowCount {
    #[diesel(sql_type = BigInt)]
    row_count: i64,
}

/// So many rows outside of the months are counted.
const OUTSIDE_MAX: i64 = 100_000;

/// How many months are attached, and how many rows lie outside of them.
pub fn spread(conn: &mut Conn) -> Result<(usize, i64), DbError> {
    let attached = months(conn, true)?.len();
    let text = "SELECT COUNT(*) AS row_count FROM (SELECT 1 FROM events_default LIMIT $1) AS rows";
    let outside: RowCount = sql_query(text).bind::<BigInt, _>(OUTSIDE_MAX).get_result(conn)?;
    Ok((attached, outside.row_count))
}

/// What became of a month that was to be attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attached {
    Now {
        moved: i64,
    },
    Already,
    /// Too many of its rows are in the default partition.
    Skipped,
}

/// Attaches a month. Rows of it that the default partition holds already are moved when they are few.
pub fn attach(conn: &mut Conn, month: Month) -> Result<Attached, DbError> {
    lock(conn)?;
    if months(conn, true)?.contains(&month) {
        return Ok(Attached::Already);
    }
    let (table, from, to) = (month.table(), month.start().0, month.end().0);
    let count = "SELECT COUNT(*) AS row_count FROM (
                     SELECT 1 FROM events_default WHERE event_time >= $1 AND event_time < $2 LIMIT $3) AS rows";
    let misplaced: RowCount = sql_query(count)
        .bind::<BigInt, _>(from)
        .bind::<BigInt, _>(to)
        .bind::<BigInt, _>(MOVED_ROWS_MAX + 1)
        .get_result(conn)?;
    let moved = misplaced.row_count;
    if moved > MOVED_ROWS_MAX {
        return Ok(Attached::Skipped);
    }
    if moved == 0 {
        conn.batch_execute(&format!(
            "CREATE TABLE {table} PARTITION OF events FOR VALUES FROM ({from}) TO ({to})"
        ))?;
        return Ok(Attached::Now { moved });
    }
    conn.batch_execute(&format!(
        "CREATE TABLE {table} (LIKE events INCLUDING ALL);
         WITH moved AS (
             DELETE FROM events_default WHERE event_time >= {from} AND event_time < {to} RETURNING *
         ) INSERT INTO {table} SELECT * FROM moved;
         ALTER TABLE events ATTACH PARTITION {table} FOR VALUES FROM ({from}) TO ({to})"
    ))?;
    Ok(Attached::Now { moved })
}

/// Attached months that may be old enough to go: all that ended before last month began, and more than a day ago,
/// which is the shortest retention.
pub fn droppable(conn: &mut Conn, now: Timestamp) -> Result<Vec<Month>, DbError> {
    let kept = wanted(now)[0];
    let is_old = |month: &Month| *month < kept && month.end() <= now.plus(-DAY);
    Ok(months(conn, true)?.into_iter().filter(is_old).collect())
}

/// Months that were taken out but not dropped, because a server stopped in between.
pub fn detached(conn: &mut Conn) -> Result<Vec<Month>, DbError> {
    months(conn, false)
}

#[derive(QueryableByName)]
struct Present {
    #[diesel(sql_type = BigInt)]
    meter_id: i64,
    #[diesel(sql_type = Bool)]
    is_past: bool,
}

/// The meters of events in a month, one index probe for each.
const STORED: &str = "WITH RECURSIVE present AS (
         (SELECT meter_id FROM MONTH ORDER BY meter_id LIMIT 1)
         UNION ALL
         SELECT (SELECT e.meter_id FROM MONTH e WHERE e.meter_id > p.meter_id ORDER BY e.meter_id LIMIT 1)
         FROM present p WHERE p.meter_id IS NOT NULL
     )
     SELECT meter_id FROM present WHERE meter_id IS NOT NULL";

/// The same where the month lies on the nodes of a cluster, which know no recursion.
fn stored_on_nodes(conn: &mut Conn, month: Month) -> Result<Vec<i64>, DbError> {
    let table = month.table();
    let (mut ids, mut last) = (Vec::new(), i64::MIN);
    loop {
        let next = format!("SELECT meter_id FROM {table} WHERE meter_id > $1 ORDER BY meter_id LIMIT 1");
        let found: Option<Stored> = sql_query(next).bind::<BigInt, _>(last).get_result(conn).optional()?;
        let Some(Stored { meter_id }) = found else { return Ok(ids) };
        ids.push(meter_id);
        last = meter_id;
    }
}

#[derive(QueryableByName)]
struct Stored {
    #[diesel(sql_type = BigInt)]
    meter_id: i64,
}

/// The meters with events in a month, and whether their retention is over for all of it.
fn present(conn: &mut Conn, month: Month, now: Timestamp) -> Result<Vec<Present>, DbError> {
    let ids = match conn.is_distributed() {
        true => format!("ARRAY[{}]::bigint[]", integers(&stored_on_nodes(conn, month)?)),
        false => format!("ARRAY({})", STORED.replace("MONTH", &month.table())),
    };
    let text = format!(
        "SELECT p.meter_id, COALESCE(m.event_retention_days * {DAY} + $1 <= $2 AND m.aggregation NOT IN ({KEPT}), true) AS is_past
         FROM unnest({ids}) AS p (meter_id) LEFT JOIN meters m ON m.id = p.meter_id"
    );
    Ok(sql_query(text).bind::<BigInt, _>(month.end().0).bind::<BigInt, _>(now.0).load(conn)?)
}

/// Whether every event of a month is past its meter's retention.
pub fn is_past(conn: &mut Conn, month: Month, now: Timestamp) -> Result<bool, DbError> {
    Ok(present(conn, month, now)?.iter().all(|meter| meter.is_past))
}

/// Takes a month out of `events` and moves the watermarks of its meters behind it, in one transaction; false when
/// some event of it has to stay after all.
pub fn detach(conn: &mut Conn, month: Month, now: Timestamp) -> Result<bool, DbError> {
    lock(conn)?;
    if !months(conn, true)?.contains(&month) {
        return Ok(false);
    }
    // nobody can add to it any more
    let present = present(conn, month, now)?;
    if !present.iter().all(|meter| meter.is_past) {
        return Ok(false);
    }
    let meter_ids: Vec<i64> = present.iter().map(|meter| meter.meter_id).collect();
    set_pruned_before(conn, &meter_ids, month.end())?;
    conn.batch_execute(&format!("ALTER TABLE events DETACH PARTITION {}", month.table()))?;
    Ok(true)
}

/// How many events of one meter went with a month.
#[derive(QueryableByName)]
pub struct Dropped {
    #[diesel(sql_type = BigInt)]
    pub workspace_id: i64,
    #[diesel(sql_type = BigInt)]
    pub meter_id: i64,
    #[diesel(sql_type = BigInt)]
    pub event_count: i64,
}

#[derive(QueryableByName)]
struct OfSubject {
    #[diesel(sql_type = BigInt)]
    meter_id: i64,
    #[diesel(sql_type = BigInt)]
    subject_id: i64,
    #[diesel(sql_type = BigInt)]
    event_count: i64,
}

/// Subjects that are in memory, and in one row of changed counts, at once.
const SUBJECTS_AT_ONCE: usize = 2_000;

/// Takes the events of a month off the counts of their subjects, which may be very many: the month is grouped once, and
/// read piece by piece.
fn uncount(conn: &mut Conn, table: &str) -> Result<(), DbError> {
    conn.batch_execute(&format!(
        "DECLARE pruned NO SCROLL CURSOR FOR
         SELECT meter_id, subject_id, COUNT(*) AS event_count FROM {table} GROUP BY 1, 2 ORDER BY 1, 2"
    ))?;
    loop {
        let rows: Vec<OfSubject> = sql_query(format!("FETCH {SUBJECTS_AT_ONCE} FROM pruned")).load(conn)?;
        let mut pruned: BTreeMap<i64, Counts> = BTreeMap::new();
        for row in &rows {
            let counts = pruned.entry(row.meter_id).or_default();
            counts.insert(row.subject_id, Count { events: -row.event_count, last_at: None });
        }
        pruned.iter().try_for_each(|(meter_id, counts)| fold::uncount(conn, *meter_id, counts))?;
        if rows.len() < SUBJECTS_AT_ONCE {
            // an open cursor keeps the table from being dropped
            return Ok(conn.batch_execute("CLOSE pruned")?);
        }
    }
}

/// Drops a month that was taken out; tells what was in it.
pub fn drop_detached(conn: &mut Conn, month: Month) -> Result<Vec<Dropped>, DbError> {
    sql_query("SELECT pg_advisory_xact_lock($1)").bind::<BigInt, _>(LOCK).execute(conn)?;
    if !months(conn, false)?.contains(&month) {
        return Ok(Vec::new());
    }
    let table = month.table();
    let text = format!("SELECT workspace_id, meter_id, COUNT(*) AS event_count FROM {table} GROUP BY 1, 2");
    let dropped = sql_query(text).load(conn)?;
    uncount(conn, &table)?;
    conn.batch_execute(&format!("DROP TABLE {table}"))?;
    Ok(dropped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn months_have_names_and_bounds() {
        let month = Month::of(Timestamp::parse("2026-12-31T23:59:59.999999Z").expect("a time"));
        assert_eq!(month.table(), "events_202612");
        assert_eq!(month.end().to_seconds_text(), "2027-01-01T00:00:00Z");
        assert_eq!(Month::parse("events_202612"), Some(month));
        assert_eq!(Month::parse("events_202613"), None);
        assert_eq!(Month::parse("events_default"), None);
        let names = wanted(month.start()).map(Month::table);
        assert_eq!(names, ["events_202611", "events_202612", "events_202701", "events_202702"]);
    }
}
