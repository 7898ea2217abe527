//! Quota counters: sums of a subject's events per meter and day since the anchor of its assignment, written in the
//! transaction that stores the events. A window of any period is one range of them, at most 366 rows.

use std::collections::BTreeMap;

use bigdecimal::BigDecimal;
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Binary, Numeric, Text};
use diesel::{PgConnection, SqliteConnection};

use crate::db::columns::{quantity_of, uuid_of};
use crate::db::prepared::prepared;
use crate::db::schema::quota_counters;
use crate::db::{Conn, DbError};
use crate::metering::rollup::{Edge, Part};
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
     day_starts: Array<BigInt> = Vec<i64>, counts: Array<BigInt> = Vec<i64>, sums: Array<Numeric> = Vec<BigDecimal>,
     mins: Array<Numeric> = Vec<BigDecimal>, maxs: Array<Numeric> = Vec<BigDecimal>,
     first_ats: Array<BigInt> = Vec<i64>, first_ids: Array<Binary> = Vec<Vec<u8>>,
     firsts: Array<Numeric> = Vec<BigDecimal>, last_ats: Array<BigInt> = Vec<i64>,
     last_ids: Array<Binary> = Vec<Vec<u8>>, lasts: Array<Numeric> = Vec<BigDecimal>),
    "INSERT INTO quota_counters AS r (subject_id, meter_id, anchor, day_start, event_count, quantity_sum, quantity_min,
                                      quantity_max, first_at, first_id, first_quantity, last_at, last_id, last_quantity)
     SELECT * FROM unnest(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
     ON CONFLICT (subject_id, meter_id, anchor, day_start) DO UPDATE SET
         event_count = r.event_count + excluded.event_count,
         quantity_sum = r.quantity_sum + excluded.quantity_sum,
         quantity_min = least(r.quantity_min, excluded.quantity_min),
         quantity_max = greatest(r.quantity_max, excluded.quantity_max),
         first_at = least(r.first_at, excluded.first_at),
         first_id = CASE WHEN (excluded.first_at, excluded.first_id) < (r.first_at, r.first_id)
                         THEN excluded.first_id ELSE r.first_id END,
         first_quantity = CASE WHEN (excluded.first_at, excluded.first_id) < (r.first_at, r.first_id)
                               THEN excluded.first_quantity ELSE r.first_quantity END,
         last_at = greatest(r.last_at, excluded.last_at),
         last_id = CASE WHEN (excluded.last_at, excluded.last_id) > (r.last_at, r.last_id)
                        THEN excluded.last_id ELSE r.last_id END,
         last_quantity = CASE WHEN (excluded.last_at, excluded.last_id) > (r.last_at, r.last_id)
                              THEN excluded.last_quantity ELSE r.last_quantity END"
);
prepared!(
    AddOne for SqliteConnection,
    (subject_id: BigInt = i64, meter_id: BigInt = i64, anchor: BigInt = i64, day_start: BigInt = i64,
     count: BigInt = i64, sum: Binary = Vec<u8>, min: Binary = Vec<u8>, max: Binary = Vec<u8>,
     first_at: BigInt = i64, first_id: Binary = [u8], first: Binary = Vec<u8>, last_at: BigInt = i64,
     last_id: Binary = [u8], last: Binary = Vec<u8>),
    "INSERT INTO quota_counters AS r (subject_id, meter_id, anchor, day_start, event_count, quantity_sum, quantity_min,
                                      quantity_max, first_at, first_id, first_quantity, last_at, last_id, last_quantity)
     VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
     ON CONFLICT (subject_id, meter_id, anchor, day_start) DO UPDATE SET
         event_count = r.event_count + excluded.event_count,
         quantity_sum = quantity_add(r.quantity_sum, excluded.quantity_sum),
         quantity_min = min(r.quantity_min, excluded.quantity_min),
         quantity_max = max(r.quantity_max, excluded.quantity_max),
         first_at = min(r.first_at, excluded.first_at),
         first_id = CASE WHEN (excluded.first_at, excluded.first_id) < (r.first_at, r.first_id)
                         THEN excluded.first_id ELSE r.first_id END,
         first_quantity = CASE WHEN (excluded.first_at, excluded.first_id) < (r.first_at, r.first_id)
                               THEN excluded.first_quantity ELSE r.first_quantity END,
         last_at = max(r.last_at, excluded.last_at),
         last_id = CASE WHEN (excluded.last_at, excluded.last_id) > (r.last_at, r.last_id)
                        THEN excluded.last_id ELSE r.last_id END,
         last_quantity = CASE WHEN (excluded.last_at, excluded.last_id) > (r.last_at, r.last_id)
                              THEN excluded.last_quantity ELSE r.last_quantity END"
);
prepared!(
    LoadMany for PgConnection,
    (subject_ids: Array<BigInt> = Vec<i64>, meter_ids: Array<BigInt> = Vec<i64>, anchors: Array<BigInt> = Vec<i64>,
     froms: Array<BigInt> = Vec<i64>, tos: Array<BigInt> = Vec<i64>) -> (BigInt, BigInt, Text, Text, Text, BigInt, Binary, Text, BigInt, Binary, Text),
    "SELECT w.place, c.event_count, c.quantity_sum::text, c.quantity_min::text, c.quantity_max::text,
            c.first_at, c.first_id, c.first_quantity::text, c.last_at, c.last_id, c.last_quantity::text
     FROM unnest(?, ?, ?, ?, ?) WITH ORDINALITY AS w (subject_id, meter_id, anchor, from_at, to_at, place)
     JOIN quota_counters c ON c.subject_id = w.subject_id AND c.meter_id = w.meter_id AND c.anchor = w.anchor
          AND c.day_start >= w.from_at AND c.day_start < w.to_at"
);
prepared!(
    LoadOne for SqliteConnection,
    (place: BigInt = i64, subject_id: BigInt = i64, meter_id: BigInt = i64, anchor: BigInt = i64, from: BigInt = i64,
     to: BigInt = i64) -> (BigInt, BigInt, Text, Text, Text, BigInt, Binary, Text, BigInt, Binary, Text),
    "SELECT ?, event_count, quantity_text(quantity_sum), quantity_text(quantity_min), quantity_text(quantity_max),
            first_at, first_id, quantity_text(first_quantity), last_at, last_id, quantity_text(last_quantity)
     FROM quota_counters
     WHERE subject_id = ? AND meter_id = ? AND anchor = ? AND day_start >= ? AND day_start < ?"
);

/// Adds what new events count.
pub fn add(conn: &mut Conn, parts: &BTreeMap<Key, Part>) -> Result<(), DbError> {
    let with_edges = || parts.iter().filter_map(|(key, part)| Some((key, part, part.edges.as_ref()?)));
    match conn {
        Conn::Postgres(c) => {
            AddMany {
                subject_ids: &with_edges().map(|(key, ..)| key.subject_id).collect(),
                meter_ids: &with_edges().map(|(key, ..)| key.meter_id).collect(),
                anchors: &with_edges().map(|(key, ..)| key.anchor.0).collect(),
                day_starts: &with_edges().map(|(key, ..)| key.day_start.0).collect(),
                counts: &with_edges().map(|(_, part, _)| part.count).collect(),
                sums: &with_edges().map(|(_, part, _)| part.sum.decimal().clone()).collect(),
                mins: &with_edges().map(|(_, part, _)| part.min.decimal().clone()).collect(),
                maxs: &with_edges().map(|(_, part, _)| part.max.decimal().clone()).collect(),
                first_ats: &with_edges().map(|(.., (first, _))| first.at.0).collect(),
                first_ids: &with_edges().map(|(.., (first, _))| first.id.as_bytes().to_vec()).collect(),
                firsts: &with_edges().map(|(.., (first, _))| first.quantity.decimal().clone()).collect(),
                last_ats: &with_edges().map(|(.., (_, last))| last.at.0).collect(),
                last_ids: &with_edges().map(|(.., (_, last))| last.id.as_bytes().to_vec()).collect(),
                lasts: &with_edges().map(|(.., (_, last))| last.quantity.decimal().clone()).collect(),
            }
            .execute(c)?;
        }
        Conn::Sqlite(c) => {
            for (key, part, (first, last)) in with_edges() {
                AddOne {
                    subject_id: &key.subject_id,
                    meter_id: &key.meter_id,
                    anchor: &key.anchor.0,
                    day_start: &key.day_start.0,
                    count: &part.count,
                    sum: &part.sum.to_sortable(),
                    min: &part.min.to_sortable(),
                    max: &part.max.to_sortable(),
                    first_at: &first.at.0,
                    first_id: first.id.as_bytes(),
                    first: &first.quantity.to_sortable(),
                    last_at: &last.at.0,
                    last_id: last.id.as_bytes(),
                    last: &last.quantity.to_sortable(),
                }
                .execute(c)?;
            }
        }
    }
    Ok(())
}

/// Place of the range, from 1, then the columns of a counter.
type Row = (i64, i64, String, String, String, i64, Vec<u8>, String, i64, Vec<u8>, String);

/// What is counted in each range; `None` where nothing is.
pub fn load(conn: &mut Conn, ranges: &[Range]) -> Result<Vec<Option<Part>>, DbError> {
    let mut counted: Vec<Option<Part>> = vec![None; ranges.len()];
    if ranges.is_empty() {
        return Ok(counted);
    }
    for (place, part) in rows(conn, ranges)?.into_iter().map(part_of).collect::<Result<Vec<_>, DbError>>()? {
        match &mut counted[place] {
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

fn part_of(row: Row) -> Result<(usize, Part), DbError> {
    let (place, count, sum, min, max, first_at, first_id, first, last_at, last_id, last) = row;
    let edge = |at: i64, id: &[u8], quantity: &str| -> Result<Edge, DbError> {
        Ok(Edge { at: Timestamp(at), id: uuid_of(id)?, quantity: quantity_of(quantity)? })
    };
    let edges = Some((edge(first_at, &first_id, &first)?, edge(last_at, &last_id, &last)?));
    let part =
        Part { count, sum: quantity_of(&sum)?, min: quantity_of(&min)?, max: quantity_of(&max)?, edges };
    Ok((place as usize - 1, part))
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
