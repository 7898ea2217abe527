//! How many events of a subject are stored, per meter. Writing counts nothing: a count is added up from rollups when
//! somebody asks, and kept with what it is based on. Whether it still holds can be told without a look at the history of
//! the subject: rollups only ever grow, so as long as the meter as a whole has as many events before an instant as it had
//! then, no subject of it has any more. What came after that instant is added to it.
//!
//! Rollups outlive pruning: they count from the first whole hour after the watermark of a meter, and the raw events
//! before that one by one. To be read at one instant.

use std::collections::{BTreeMap, BTreeSet};

use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{Array, BigInt, Integer};

use crate::db::prepared::prepared;
use crate::db::statement::integers;
use crate::db::{Conn, DbError};
use crate::metering::time::{DAY, HOUR, Timestamp};
use crate::usage::subject_days;
use crate::usage::subjects::{of_each_meter, whole_from};

/// Counts are kept for what lies this long back: later hours still change with every event.
const SETTLED_AFTER: i64 = 2 * DAY;
/// A kept count is brought forward when more than this came after it.
const RENEWED_AFTER: i64 = 7 * DAY;

/// Of one subject.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub events: i64,
    pub meters: i64,
}

/// A count to be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kept {
    subject_id: i64,
    meter_id: i64,
    /// Events in whole hours from `counted_from` to `counted_before`, both in microseconds.
    counted: i64,
    counted_from: i64,
    counted_before: i64,
    /// All events of the meter before `counted_before`, in rollups.
    counted_of: i64,
}

const HOLDS: i32 = 0;
const AGES: i32 = 1;
const IS_STALE: i32 = 2;

#[derive(QueryableByName)]
struct PairRow {
    #[diesel(sql_type = BigInt)]
    subject_id: i64,
    #[diesel(sql_type = BigInt)]
    meter_id: i64,
    #[diesel(sql_type = BigInt)]
    hours_from: i64,
    #[diesel(sql_type = Integer)]
    state: i32,
    #[diesel(sql_type = BigInt)]
    events: i64,
    /// Of these, in whole hours before [`settled`].
    #[diesel(sql_type = BigInt)]
    settled: i64,
}

fn settled(now: Timestamp) -> i64 {
    now.floor(DAY).0 - SETTLED_AFTER
}

/// The counts of these subjects of a workspace, and what is worth keeping of the work.
pub fn of(
    conn: &mut Conn,
    workspace_id: i64,
    subject_ids: &[i64],
    now: Timestamp,
) -> Result<(BTreeMap<i64, Count>, Vec<Kept>), DbError> {
    let mut pairs = pairs(conn, workspace_id, subject_ids, now)?;
    recount_stale(conn, &mut pairs, now)?;
    let mut counts: BTreeMap<i64, Count> = BTreeMap::new();
    for pair in pairs.iter().filter(|pair| pair.events > 0) {
        let count = counts.entry(pair.subject_id).or_default();
        count.events += pair.events;
        count.meters += 1;
    }
    let renewed: Vec<&PairRow> = pairs.iter().filter(|pair| pair.state != HOLDS).collect();
    let meter_ids: BTreeSet<i64> = renewed.iter().map(|pair| pair.meter_id).collect();
    let counted_before = settled(now);
    let totals = totals(conn, &meter_ids, counted_before)?;
    let kept = renewed.into_iter().map(|pair| Kept {
        subject_id: pair.subject_id,
        meter_id: pair.meter_id,
        counted: pair.settled,
        counted_from: pair.hours_from,
        counted_before,
        counted_of: totals.get(&pair.meter_id).map_or(0, |total| total.settled),
    });
    Ok((counts, kept.collect()))
}

/// Every meter that each subject ever used. Where a kept count holds, with what came after it; else with the raw events
/// only.
fn pairs(
    conn: &mut Conn,
    workspace_id: i64,
    subject_ids: &[i64],
    now: Timestamp,
) -> Result<Vec<PairRow>, DbError> {
    let is_postgres = conn.is_postgres();
    let (ids, settled) = (integers(subject_ids), settled(now));
    let greatest = if is_postgres { "greatest" } else { "max" };
    // later hours of a subject one by one, by the days it was seen; the planners must not read the whole meter instead
    let later = if is_postgres {
        format!(
            "SELECT k.subject_id, k.meter_id, r.event_count AS events,
                    CASE WHEN r.start < {settled} THEN r.event_count ELSE 0 END AS settled
             FROM kept k
             CROSS JOIN LATERAL (SELECT day FROM subject_days
                                 WHERE subject_id = k.subject_id AND day > k.since - {DAY} OFFSET 0) d
             CROSS JOIN generate_series(0, 82800000000, 3600000000) h (since_midnight)
             CROSS JOIN LATERAL (SELECT start, event_count FROM rollups
                                 WHERE meter_id = k.meter_id AND grain = 0 AND start = d.day + h.since_midnight
                                   AND subject_id = k.subject_id OFFSET 0) r
             WHERE k.state < {IS_STALE} AND d.day + h.since_midnight >= k.since"
        )
    } else {
        format!(
            "SELECT k.subject_id, k.meter_id, r.event_count, CASE WHEN r.start < {settled} THEN r.event_count ELSE 0 END
             FROM kept k CROSS JOIN subject_days d CROSS JOIN day_hours h CROSS JOIN rollups r
             WHERE k.state < {IS_STALE} AND d.subject_id = k.subject_id AND d.day > k.since - {DAY}
               AND d.day + h.since_midnight >= k.since AND r.meter_id = k.meter_id AND r.grain = 0
               AND r.start = d.day + h.since_midnight AND r.subject_id = +d.subject_id"
        )
    };
    let raw = of_each_meter(
        is_postgres,
        "e.subject_id, e.meter_id, 1 AS events, 0 AS settled",
        "events e",
        &format!("e.meter_id = p.id AND e.event_time < p.hours_from AND e.subject_id IN ({ids})"),
    );
    let text = format!(
        "-- usage::subject_counts::pairs
         WITH page AS (
             SELECT id, {} AS hours_from FROM meters WHERE workspace_id = $1
         ), used AS (
             SELECT a.subject_id, a.meter_id, a.counted, a.counted_from, a.counted_before, a.counted_of, p.hours_from
             FROM subject_activity a JOIN page p ON p.id = a.meter_id WHERE a.subject_id IN ({ids})
         ), bases AS (
             SELECT meter_id, counted_before, CAST(COALESCE((
                        SELECT SUM(r.event_count) FROM rollups r
                        WHERE r.meter_id = b.meter_id AND r.grain = 2 AND r.start < b.counted_before), 0) AS BIGINT) AS events
             FROM (SELECT DISTINCT meter_id, counted_before FROM used WHERE counted_of >= 0) b
         ), kept AS (
             SELECT u.subject_id, u.meter_id, u.counted, u.hours_from,
                    {greatest}(u.counted_before, u.hours_from) AS since,
                    CASE WHEN b.events IS NULL OR u.counted_of <> b.events OR u.counted_from <> u.hours_from THEN {IS_STALE}
                         WHEN u.counted_before < {} THEN {AGES} ELSE {HOLDS} END AS state
             FROM used u LEFT JOIN bases b ON b.meter_id = u.meter_id AND b.counted_before = u.counted_before
         ), found AS (
             SELECT subject_id, meter_id, counted AS events, counted AS settled FROM kept WHERE state < {IS_STALE}
             UNION ALL {later}
             UNION ALL {raw}
         ), sums AS (
             SELECT subject_id, meter_id, SUM(events) AS events, SUM(settled) AS settled
             FROM found GROUP BY subject_id, meter_id
         )
         SELECT k.subject_id, k.meter_id, k.hours_from, k.state, CAST(COALESCE(s.events, 0) AS BIGINT) AS events,
                CAST(COALESCE(s.settled, 0) AS BIGINT) AS settled
         FROM kept k LEFT JOIN sums s ON s.subject_id = k.subject_id AND s.meter_id = k.meter_id",
        whole_from(HOUR),
        settled - RENEWED_AFTER,
    );
    Ok(sql_query(text).bind::<BigInt, _>(workspace_id).load(conn)?)
}

#[derive(QueryableByName)]
struct Total {
    #[diesel(sql_type = BigInt)]
    id: i64,
    #[diesel(sql_type = BigInt)]
    events: i64,
    #[diesel(sql_type = BigInt)]
    settled: i64,
}

/// Events of meters in rollups: all, and those before an instant, which begins a day.
fn totals(conn: &mut Conn, meter_ids: &BTreeSet<i64>, before: i64) -> Result<BTreeMap<i64, Total>, DbError> {
    if meter_ids.is_empty() {
        return Ok(BTreeMap::new());
    }
    let ids: Vec<i64> = meter_ids.iter().copied().collect();
    let text = format!(
        "-- usage::subject_counts::totals
         SELECT r.meter_id AS id, CAST(SUM(r.event_count) AS BIGINT) AS events,
                CAST(SUM(CASE WHEN r.start < {before} THEN r.event_count ELSE 0 END) AS BIGINT) AS settled
         FROM rollups r WHERE r.meter_id IN ({}) AND r.grain = 2 GROUP BY r.meter_id",
        integers(&ids)
    );
    let rows: Vec<Total> = sql_query(text).load(conn)?;
    Ok(rows.into_iter().map(|total| (total.id, total)).collect())
}

#[derive(QueryableByName)]
struct Days {
    #[diesel(sql_type = BigInt)]
    days: i64,
}

#[derive(QueryableByName)]
struct Recounted {
    #[diesel(sql_type = BigInt)]
    subject_id: i64,
    #[diesel(sql_type = BigInt)]
    events: i64,
    #[diesel(sql_type = BigInt)]
    settled: i64,
}

/// Adds up what no kept count stands for, meter by meter.
fn recount_stale(conn: &mut Conn, pairs: &mut [PairRow], now: Timestamp) -> Result<(), DbError> {
    let mut stale: BTreeMap<i64, Vec<usize>> = BTreeMap::new();
    for (at, pair) in pairs.iter().enumerate().filter(|(_, pair)| pair.state == IS_STALE) {
        stale.entry(pair.meter_id).or_default().push(at);
    }
    if stale.is_empty() {
        return Ok(());
    }
    let meter_ids: BTreeSet<i64> = stale.keys().copied().collect();
    let totals = totals(conn, &meter_ids, settled(now))?;
    let subject_ids: BTreeSet<i64> = stale.values().flatten().map(|at| pairs[*at].subject_id).collect();
    let subject_ids: Vec<i64> = subject_ids.into_iter().collect();
    let days: Days = sql_query(format!(
        "SELECT COUNT(*) AS days FROM subject_days WHERE subject_id IN ({})",
        integers(&subject_ids)
    ))
    .get_result(conn)?;
    for (meter_id, places) in stale {
        let of_meter = totals.get(&meter_id).map_or(0, |total| total.events);
        // the meter's rollups are at most as many as its events, the hours of the subjects 24 times their days
        let reads_meter = of_meter <= days.days * (DAY / HOUR);
        let Some(hours_from) = places.first().map(|at| pairs[*at].hours_from) else { continue };
        let ids: Vec<i64> = places.iter().map(|at| pairs[*at].subject_id).collect();
        let found = recount(conn, meter_id, hours_from, &ids, settled(now), reads_meter)?;
        for at in places {
            if let Some(found) = found.get(&pairs[at].subject_id) {
                pairs[at].events += found.events;
                pairs[at].settled += found.settled;
            }
        }
    }
    Ok(())
}

fn recount(
    conn: &mut Conn,
    meter_id: i64,
    hours_from: i64,
    subject_ids: &[i64],
    before: i64,
    reads_meter: bool,
) -> Result<BTreeMap<i64, Recounted>, DbError> {
    let is_postgres = conn.is_postgres();
    let (meter, from) = (format!("CAST({meter_id} AS BIGINT)"), format!("CAST({hours_from} AS BIGINT)"));
    let (tables, condition) = match reads_meter {
        true => {
            let ids = integers(subject_ids);
            let sign = if is_postgres { "" } else { "+" };
            let condition = format!(
                "r.meter_id = {meter} AND r.grain = 0 AND r.start >= {from} AND {sign}r.subject_id IN ({ids})"
            );
            ("rollups r".to_owned(), condition)
        }
        false => subject_days::rollups(is_postgres, &meter, subject_ids, &from, None),
    };
    let text = format!(
        "-- usage::subject_counts::recount
         SELECT r.subject_id, CAST(SUM(r.event_count) AS BIGINT) AS events,
                CAST(SUM(CASE WHEN r.start < {before} THEN r.event_count ELSE 0 END) AS BIGINT) AS settled
         FROM {tables} WHERE {condition} GROUP BY r.subject_id"
    );
    let rows: Vec<Recounted> = sql_query(text).load(conn)?;
    Ok(rows.into_iter().map(|found| (found.subject_id, found)).collect())
}

prepared!(
    KeepAll for diesel::PgConnection,
    (subject_ids: Array<BigInt> = Vec<i64>, meter_ids: Array<BigInt> = Vec<i64>, counted: Array<BigInt> = Vec<i64>,
     counted_from: Array<BigInt> = Vec<i64>, counted_before: Array<BigInt> = Vec<i64>,
     counted_of: Array<BigInt> = Vec<i64>),
    "WITH new AS (
         SELECT * FROM unnest(?, ?, ?, ?, ?, ?)
             AS n (subject_id, meter_id, counted, counted_from, counted_before, counted_of)
     ), free AS (
         SELECT a.subject_id, a.meter_id FROM subject_activity a JOIN new n USING (subject_id, meter_id)
         FOR UPDATE OF a SKIP LOCKED
     )
     UPDATE subject_activity a SET counted = n.counted, counted_from = n.counted_from,
                                   counted_before = n.counted_before, counted_of = n.counted_of
     FROM new n JOIN free f USING (subject_id, meter_id)
     WHERE a.subject_id = n.subject_id AND a.meter_id = n.meter_id"
);
prepared!(
    KeepOne for diesel::SqliteConnection,
    (counted: BigInt = i64, counted_from: BigInt = i64, counted_before: BigInt = i64, counted_of: BigInt = i64,
     subject_id: BigInt = i64, meter_id: BigInt = i64),
    "UPDATE subject_activity SET counted = ?, counted_from = ?, counted_before = ?, counted_of = ?
     WHERE subject_id = ? AND meter_id = ?"
);

/// Keeps counts; rows that a writer is at are left for the next time.
pub fn keep(conn: &mut Conn, counts: &[Kept]) -> Result<(), DbError> {
    match conn {
        Conn::Postgres(c) => {
            KeepAll {
                subject_ids: &counts.iter().map(|kept| kept.subject_id).collect(),
                meter_ids: &counts.iter().map(|kept| kept.meter_id).collect(),
                counted: &counts.iter().map(|kept| kept.counted).collect(),
                counted_from: &counts.iter().map(|kept| kept.counted_from).collect(),
                counted_before: &counts.iter().map(|kept| kept.counted_before).collect(),
                counted_of: &counts.iter().map(|kept| kept.counted_of).collect(),
            }
            .execute(c)?;
        }
        Conn::Sqlite(c) => {
            for kept in counts {
                let Kept { subject_id, meter_id, counted, counted_from, counted_before, counted_of } = kept;
                KeepOne { counted, counted_from, counted_before, counted_of, subject_id, meter_id }
                    .execute(c)?;
            }
        }
    }
    Ok(())
}
