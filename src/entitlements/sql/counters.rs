//! Quota counters: sums of a subject's events per meter and day since the anchor of its assignment, written in the
//! transaction that stores the events. A window of any period is one range of them, at most 366 rows.

use std::collections::BTreeMap;

use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt};
use diesel::{PgConnection, SqliteConnection};

use crate::db::partial::{
    PartArrays, PartRow, PartTypes, PartValues, part_columns, part_places, part_sums, part_texts,
};
use crate::db::prepared::prepared;
use crate::db::schema::quota_counters;
use crate::db::{Conn, DbError};
use crate::metering::rollup::Part;
use crate::metering::time::{Timestamp, Window};

/// Where a counter lives; ordered as the primary key, so that writers lock rows in one order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    pub subject_id: i64,
    pub meter_id: i64,
    pub anchor: Timestamp,
    pub day_start: Timestamp,
}

/// The counters of one window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    pub subject_id: i64,
    pub meter_id: i64,
    pub anchor: Timestamp,
    pub window: Window,
}

prepared!(
    AddMany for PgConnection,
    (subject_ids: Array<BigInt> = Vec<i64>, meter_ids: Array<BigInt> = Vec<i64>, anchors: Array<BigInt> = Vec<i64>,
     day_starts: Array<BigInt> = Vec<i64>) + [parts: PartArrays<'a>],
    concat!(
        "INSERT INTO quota_counters AS r (subject_id, meter_id, anchor, day_start, ", part_columns!(), ")
         SELECT * FROM unnest(?, ?, ?, ?, ", part_places!(), ")
         ON CONFLICT (subject_id, meter_id, anchor, day_start) DO UPDATE SET ", part_sums!(postgres)
    )
);
prepared!(
    AddOne for SqliteConnection,
    (subject_id: BigInt = i64, meter_id: BigInt = i64, anchor: BigInt = i64, day_start: BigInt = i64) + [part: PartValues],
    concat!(
        "INSERT INTO quota_counters AS r (subject_id, meter_id, anchor, day_start, ", part_columns!(), ")
         VALUES (?, ?, ?, ?, ", part_places!(), ")
         ON CONFLICT (subject_id, meter_id, anchor, day_start) DO UPDATE SET ", part_sums!(sqlite)
    )
);
prepared!(
    LoadMany for PgConnection,
    (subject_ids: Array<BigInt> = Vec<i64>, meter_ids: Array<BigInt> = Vec<i64>, anchors: Array<BigInt> = Vec<i64>,
     froms: Array<BigInt> = Vec<i64>, tos: Array<BigInt> = Vec<i64>) -> (BigInt, PartTypes),
    concat!(
        "SELECT w.place, ", part_texts!(postgres), "
         FROM unnest(?, ?, ?, ?, ?) WITH ORDINALITY AS w (subject_id, meter_id, anchor, from_at, to_at, place)
         JOIN quota_counters c ON c.subject_id = w.subject_id AND c.meter_id = w.meter_id AND c.anchor = w.anchor
              AND c.day_start >= w.from_at AND c.day_start < w.to_at"
    )
);
prepared!(
    LoadOne for SqliteConnection,
    (place: BigInt = i64, subject_id: BigInt = i64, meter_id: BigInt = i64, anchor: BigInt = i64, from: BigInt = i64,
     to: BigInt = i64) -> (BigInt, PartTypes),
    concat!(
        "SELECT ?, ", part_texts!(sqlite), " FROM quota_counters
         WHERE subject_id = ? AND meter_id = ? AND anchor = ? AND day_start >= ? AND day_start < ?"
    )
);

/// Adds what new events count.
pub fn add(conn: &mut Conn, parts: &BTreeMap<Key, Part>) -> Result<(), DbError> {
    match conn {
        Conn::Postgres(c) => {
            AddMany {
                subject_ids: &parts.keys().map(|key| key.subject_id).collect(),
                meter_ids: &parts.keys().map(|key| key.meter_id).collect(),
                anchors: &parts.keys().map(|key| key.anchor.0).collect(),
                day_starts: &parts.keys().map(|key| key.day_start.0).collect(),
                parts: &PartArrays::of(parts.values()),
            }
            .execute(c)?;
        }
        Conn::Sqlite(c) => {
            for (Key { subject_id, meter_id, anchor, day_start }, part) in parts {
                let Some(part) = &PartValues::of(part) else { continue };
                AddOne { subject_id, meter_id, anchor: &anchor.0, day_start: &day_start.0, part }
                    .execute(c)?;
            }
        }
    }
    Ok(())
}

/// Place of the range, from 1, and a counter.
type Row = (i64, PartRow);

/// What is counted in each range; `None` where nothing is.
pub fn load(conn: &mut Conn, ranges: &[Range]) -> Result<Vec<Option<Part>>, DbError> {
    let mut counted: Vec<Option<Part>> = vec![None; ranges.len()];
    if ranges.is_empty() {
        return Ok(counted);
    }
    for (place, row) in rows(conn, ranges)? {
        let part = row.into_part()?;
        match &mut counted[place as usize - 1] {
            Some(whole) => whole.add(&part),
            empty => *empty = Some(part),
        }
    }
    Ok(counted)
}

fn rows(conn: &mut Conn, ranges: &[Range]) -> Result<Vec<Row>, DbError> {
    match conn {
        Conn::Postgres(c) => Ok(LoadMany {
            subject_ids: &ranges.iter().map(|range| range.subject_id).collect(),
            meter_ids: &ranges.iter().map(|range| range.meter_id).collect(),
            anchors: &ranges.iter().map(|range| range.anchor.0).collect(),
            froms: &ranges.iter().map(|range| range.window.from.0).collect(),
            tos: &ranges.iter().map(|range| range.window.to.0).collect(),
        }
        .load(c)?),
        Conn::Sqlite(c) => {
            let mut rows = Vec::new();
            for (place, Range { subject_id, meter_id, anchor, window }) in (1i64..).zip(ranges) {
                let (from, to) = (&window.from.0, &window.to.0);
                let some: Vec<Row> =
                    LoadOne { place: &place, subject_id, meter_id, anchor: &anchor.0, from, to }.load(c)?;
                rows.extend(some);
            }
            Ok(rows)
        }
    }
}

/// The first day with usage, from `from` on.
pub fn first_day(
    conn: &mut Conn,
    subject_id: i64,
    meter_id: i64,
    anchor: Timestamp,
    from: Timestamp,
) -> Result<Option<Timestamp>, DbError> {
    let day: Option<i64> = quota_counters::table
        .filter(quota_counters::subject_id.eq(subject_id).and(quota_counters::meter_id.eq(meter_id)))
        .filter(quota_counters::anchor.eq(anchor.0).and(quota_counters::day_start.ge(from.0)))
        .order(quota_counters::day_start)
        .select(quota_counters::day_start)
        .first(conn)
        .optional()?;
    Ok(day.map(Timestamp))
}
