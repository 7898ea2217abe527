//! Quota counters: sums of a subject's events per meter and day since the anchor of its assignment, or per cell of another
//! series, written in the transaction that stores the events. A window of a calendar is one stretch of them, at most 366
//! rows; one that slides has a few.

use std::collections::BTreeMap;

use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Text};
use diesel::{PgConnection, SqliteConnection};

use crate::db::partial::{
    PartArrays, PartRow, PartTypes, PartValues, part_columns, part_places, part_sums, part_texts,
};
use crate::db::prepared::prepared;
use crate::db::schema::quota_counters;
use crate::db::{Conn, DbError};
use crate::entitlements::period::{Period, SLIDE, Series, Stretch};
use crate::metering::calendar::Zone;
use crate::metering::rollup::Part;
use crate::metering::time::{Timestamp, Window};

/// Where a counter lives; ordered as the primary key, so that writers lock rows in one order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    pub subject_id: i64,
    pub meter_id: i64,
    pub anchor: Timestamp,
    pub series: Series,
    pub day_start: Timestamp,
}

/// The counters of one window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    pub subject_id: i64,
    pub meter_id: i64,
    pub anchor: Timestamp,
    pub window: Window,
    stretches: Vec<Stretch>,
}

impl Range {
    /// The window of a period that holds the instant.
    pub fn at(
        (subject_id, meter_id): (i64, i64),
        period: &Period,
        anchor: Timestamp,
        home: &Zone,
        at: Timestamp,
    ) -> Range {
        Range::of((subject_id, meter_id), period, anchor, home, period.window(anchor, home, at))
    }

    pub fn of(
        (subject_id, meter_id): (i64, i64),
        period: &Period,
        anchor: Timestamp,
        home: &Zone,
        window: Window,
    ) -> Range {
        Range { subject_id, meter_id, anchor, window, stretches: period.stretches(home, window) }
    }
}

prepared!(
    AddMany for PgConnection,
    (subject_ids: Array<BigInt> = Vec<i64>, meter_ids: Array<BigInt> = Vec<i64>, anchors: Array<BigInt> = Vec<i64>,
     series: Array<Text> = Vec<&'a str>, day_starts: Array<BigInt> = Vec<i64>) + [parts: PartArrays<'a>],
    concat!(
        "INSERT INTO quota_counters AS r (subject_id, meter_id, anchor, series, day_start, ", part_columns!(), ")
         SELECT * FROM unnest(?, ?, ?, ?, ?, ", part_places!(), ")
         ON CONFLICT (subject_id, meter_id, anchor, series, day_start) DO UPDATE SET ", part_sums!(postgres)
    )
);
prepared!(
    AddOne for SqliteConnection,
    (subject_id: BigInt = i64, meter_id: BigInt = i64, anchor: BigInt = i64, series: Text = &'a str,
     day_start: BigInt = i64) + [part: PartValues],
    concat!(
        "INSERT INTO quota_counters AS r (subject_id, meter_id, anchor, series, day_start, ", part_columns!(), ")
         VALUES (?, ?, ?, ?, ?, ", part_places!(), ")
         ON CONFLICT (subject_id, meter_id, anchor, series, day_start) DO UPDATE SET ", part_sums!(sqlite)
    )
);
prepared!(
    LoadMany for PgConnection,
    (subject_ids: Array<BigInt> = Vec<i64>, meter_ids: Array<BigInt> = Vec<i64>, anchors: Array<BigInt> = Vec<i64>,
     series: Array<Text> = Vec<&'a str>, froms: Array<BigInt> = Vec<i64>, tos: Array<BigInt> = Vec<i64>,
     places: Array<BigInt> = Vec<i64>) -> (BigInt, PartTypes),
    concat!(
        "SELECT w.place, ", part_texts!(postgres), "
         FROM unnest(?, ?, ?, ?, ?, ?, ?) AS w (subject_id, meter_id, anchor, series, from_at, to_at, place)
         JOIN quota_counters c ON c.subject_id = w.subject_id AND c.meter_id = w.meter_id AND c.anchor = w.anchor
              AND c.series = w.series AND c.day_start >= w.from_at AND c.day_start < w.to_at"
    )
);
prepared!(
    LoadOne for SqliteConnection,
    (place: BigInt = i64, subject_id: BigInt = i64, meter_id: BigInt = i64, anchor: BigInt = i64,
     series: Text = &'a str, from: BigInt = i64, to: BigInt = i64) -> (BigInt, PartTypes),
    concat!(
        "SELECT ?, ", part_texts!(sqlite), " FROM quota_counters
         WHERE subject_id = ? AND meter_id = ? AND anchor = ? AND series = ? AND day_start >= ? AND day_start < ?"
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
                series: &parts.keys().map(|key| key.series.as_ref()).collect(),
                day_starts: &parts.keys().map(|key| key.day_start.0).collect(),
                parts: &PartArrays::of(parts.values()),
            }
            .execute(c)?;
        }
        Conn::Sqlite(c) => {
            for (Key { subject_id, meter_id, anchor, series, day_start }, part) in parts {
                let Some(part) = &PartValues::of(part) else { continue };
                let (anchor, series, day_start) = (&anchor.0, &series.as_ref(), &day_start.0);
                AddOne { subject_id, meter_id, anchor, series, day_start, part }.execute(c)?;
            }
        }
    }
    Ok(())
}

/// Place of the range, and a counter.
type Row = (i64, PartRow);

/// What is counted in each range; `None` where nothing is.
pub fn load(conn: &mut Conn, ranges: &[Range]) -> Result<Vec<Option<Part>>, DbError> {
    let mut counted: Vec<Option<Part>> = vec![None; ranges.len()];
    if ranges.is_empty() {
        return Ok(counted);
    }
    for (place, row) in rows(conn, ranges)? {
        let part = row.into_part()?;
        match &mut counted[place as usize] {
            Some(whole) => whole.add(&part),
            empty => *empty = Some(part),
        }
    }
    Ok(counted)
}

fn rows(conn: &mut Conn, ranges: &[Range]) -> Result<Vec<Row>, DbError> {
    let every = || {
        let ranges = (0i64..).zip(ranges);
        ranges.flat_map(|(place, range)| range.stretches.iter().map(move |stretch| (place, range, stretch)))
    };
    match conn {
        Conn::Postgres(c) => Ok(LoadMany {
            subject_ids: &every().map(|(_, range, _)| range.subject_id).collect(),
            meter_ids: &every().map(|(_, range, _)| range.meter_id).collect(),
            anchors: &every().map(|(_, range, _)| range.anchor.0).collect(),
            series: &every().map(|(.., stretch)| stretch.series.as_ref()).collect(),
            froms: &every().map(|(.., stretch)| stretch.window.from.0).collect(),
            tos: &every().map(|(.., stretch)| stretch.window.to.0).collect(),
            places: &every().map(|(place, ..)| place).collect(),
        }
        .load(c)?),
        Conn::Sqlite(c) => {
            let mut rows = Vec::new();
            for (ref place, Range { subject_id, meter_id, anchor, .. }, Stretch { series, window }) in every()
            {
                let (anchor, series) = (&anchor.0, &series.as_ref());
                let (from, to) = (&window.from.0, &window.to.0);
                let some: Vec<Row> =
                    LoadOne { place, subject_id, meter_id, anchor, series, from, to }.load(c)?;
                rows.extend(some);
            }
            Ok(rows)
        }
    }
}

/// Where the first counter of a series begins, from `from` on.
pub fn first_day(
    conn: &mut Conn,
    (subject_id, meter_id): (i64, i64),
    anchor: Timestamp,
    series: &str,
    from: Timestamp,
) -> Result<Option<Timestamp>, DbError> {
    let day: Option<i64> = quota_counters::table
        .filter(quota_counters::subject_id.eq(subject_id).and(quota_counters::meter_id.eq(meter_id)))
        .filter(quota_counters::anchor.eq(anchor.0).and(quota_counters::series.eq(series)))
        .filter(quota_counters::day_start.ge(from.0))
        .order(quota_counters::day_start)
        .select(quota_counters::day_start)
        .first(conn)
        .optional()?;
    Ok(day.map(Timestamp))
}

/// Removes the counters of sliding windows from before `before`: no window will hold them again.
pub fn forget_slides(
    conn: &mut Conn,
    (subject_id, meter_id): (i64, i64),
    before: Timestamp,
) -> Result<(), DbError> {
    let old = quota_counters::table
        .filter(quota_counters::subject_id.eq(subject_id).and(quota_counters::meter_id.eq(meter_id)))
        .filter(quota_counters::day_start.lt(before.0))
        .filter(quota_counters::series.like(format!("{SLIDE}%")));
    diesel::delete(old).execute(conn)?;
    Ok(())
}
