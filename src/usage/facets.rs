//! Sums of all events of a meter by some of its dimensions, as they are stored: a row for each day and facet, and what
//! recent commits added and nobody has folded in yet (`usage::fold`). Both are read at one instant.

use std::collections::{BTreeMap, BTreeSet};

use diesel::sql_types::{BigInt, Binary, Nullable};

use crate::db::columns::readable;
use crate::db::statement::{Statement, integers};
use crate::db::{Conn, DbError};
use crate::error::Error;
use crate::metering::facet::{self, Facet};
use crate::metering::json;
use crate::metering::rollup::{Part, merge};
use crate::metering::time::{DAY, HOUR, Timestamp, Window};
use crate::usage::query::{AggregatedRow, GroupedAggregates, Query};

/// What is read, and where it is added up.
pub struct Facets<'a> {
    pub query: &'a Query,
    /// The meter version from which sums know the dimensions of the query.
    pub since: i32,
    /// Raw events before it may be gone: then old sums must do.
    pub pruned_before: Timestamp,
    /// Whole hours.
    pub hours: Window,
    /// Hours must be told apart, also of whole days.
    pub by_hour: bool,
    pub cells: &'a mut GroupedAggregates,
    /// Days that no facet answers for.
    pub lost: BTreeSet<i64>,
}

/// What could not be answered from facets.
#[derive(Default)]
pub struct Unanswered {
    /// Where sums are too old to know a dimension: its events must be read instead.
    pub left_out: Option<Window>,
    /// Days with so many sets that they are not kept: the rows of every subject must be read instead.
    pub too_large: Vec<Window>,
}

#[derive(diesel::QueryableByName)]
struct FacetRow {
    #[diesel(sql_type = BigInt)]
    day: i64,
    #[diesel(sql_type = Nullable<Binary>)]
    cells: Option<Vec<u8>>,
}

#[derive(diesel::QueryableByName)]
struct DeltaRow {
    #[diesel(sql_type = BigInt)]
    id: i64,
    #[diesel(sql_type = Binary)]
    cells: Vec<u8>,
}

impl Facets<'_> {
    /// Adds everything of the meter in these hours. Must run in a snapshot.
    pub fn add_up(mut self, conn: &mut Conn) -> Result<Unanswered, DbError> {
        let mut rest = Unanswered::default();
        let facet = Facet::for_paths(&self.query.meter, &self.query.paths());
        self.lost = self.days_without_edges(conn)?;
        let mut missing = self.add_rows(conn, &facet, None, &mut rest)?;
        if facet != Facet::All && !missing.is_empty() {
            missing = self.add_rows(conn, &Facet::All, Some(&missing), &mut rest)?;
        }
        let mut lost = missing;
        lost.append(&mut self.lost);
        self.add_deltas(conn, &lost, &mut rest)?;
        let within = |day: &i64| {
            let day = Timestamp(*day);
            Window { from: self.hours.from.max(day), to: self.hours.to.min(day.plus(DAY)) }
        };
        rest.too_large = lost.iter().map(within).collect();
        Ok(rest)
    }

    /// Days to which a commit added sums without first and last events, before the meter was one that answers with
    /// them.
    fn days_without_edges(&self, conn: &mut Conn) -> Result<BTreeSet<i64>, DbError> {
        let mut days = BTreeSet::new();
        if !facet::needs_edges(self.query.meter.aggregation) {
            return Ok(days);
        }
        self.each_delta(conn, |row| {
            for packed in facet::groups(&row.cells).unwrap_or_default() {
                let without = packed.parts().flatten().filter(|(_, part)| part.edges.is_none());
                days.extend(without.filter(|(at, _)| self.is_inside(*at)).map(|(at, _)| at.floor(DAY).0));
            }
            Ok(())
        })?;
        Ok(days)
    }

    fn is_inside(&self, at: Timestamp) -> bool {
        self.hours.from <= at && at < self.hours.to
    }

    /// Adds the rows of a facet, and those of days that have no other; returns the days without a row of use. `days`
    /// limits it.
    fn add_rows(
        &mut self,
        conn: &mut Conn,
        facet: &Facet,
        days: Option<&BTreeSet<i64>>,
        rest: &mut Unanswered,
    ) -> Result<BTreeSet<i64>, DbError> {
        let mut statement = Statement::new(conn);
        let sql = self.rows_sql(&mut statement, facet, days);
        let (mut seen, mut answered) = (BTreeSet::new(), BTreeSet::new());
        statement.each(conn, &sql, |row: FacetRow| {
            if self.lost.contains(&row.day) {
                return Ok(());
            }
            seen.insert(row.day);
            let unpacked = row.cells.as_deref().map(|cells| self.unpacked(cells, |_| true));
            let sums = unpacked.and_then(|sums| readable("rollup_facets", row.day, sums));
            let Some(sums) = sums.filter(|sums| self.is_enough(sums)) else { return Ok(()) };
            answered.insert(row.day);
            self.add_sums(sums, rest)
        })?;
        Ok(&seen - &answered)
    }

    /// A row for each day and facet, so that days are seen whose facet was not kept yet; cells only of those that count.
    fn rows_sql(&self, statement: &mut Statement, facet: &Facet, days: Option<&BTreeSet<i64>>) -> String {
        let whole = self.whole_days();
        let (first, last) = (statement.int(whole.from.0), statement.int(whole.to.0));
        let (counting, meter_id) = (statement.text(facet.name()), statement.int(self.query.meter.id));
        let wanted = statement.text(facet.name());
        let (from, to) = (statement.int(self.hours.from.floor(DAY).0), statement.int(self.hours.to.0));
        let only = days.map_or(String::new(), |days| {
            let days: Vec<i64> = days.iter().copied().collect();
            format!("AND day IN ({})", integers(&days))
        });
        format!(
            "SELECT day, CASE WHEN day >= {first} AND day < {last} THEN day_cells ELSE hour_cells END AS cells
             FROM (SELECT day, CASE WHEN is_alone OR facet = {counting} THEN day_cells END AS day_cells,
                          CASE WHEN is_alone OR facet = {counting} THEN hour_cells END AS hour_cells
                   FROM rollup_facets
                   WHERE meter_id = {meter_id} AND facet IN ({wanted}, '*') AND day >= {from} AND day < {to} {only}) AS kept"
        )
    }

    /// First and last events are packed for meters that answer with them, and a meter can become one of those.
    fn is_enough(&self, sums: &Sums) -> bool {
        !facet::needs_edges(self.query.meter.aggregation)
            || sums.parts.iter().all(|(.., part)| part.edges.is_some())
    }

    /// Days whose sums are read by the day.
    fn whole_days(&self) -> Window {
        let days = Window { from: self.hours.from.ceil(DAY), to: self.hours.to.floor(DAY) };
        if self.by_hour { Window { to: days.from, ..days } } else { days }
    }

    fn each_delta(
        &self,
        conn: &mut Conn,
        row: impl FnMut(DeltaRow) -> Result<(), DbError>,
    ) -> Result<(), DbError> {
        let mut statement = Statement::new(conn);
        let meter_id = statement.int(self.query.meter.id);
        statement.each(conn, &format!("SELECT id, cells FROM rollup_deltas WHERE meter_id = {meter_id}"), row)
    }

    fn add_deltas(
        &mut self,
        conn: &mut Conn,
        without: &BTreeSet<i64>,
        rest: &mut Unanswered,
    ) -> Result<(), DbError> {
        let mut all = Vec::new();
        self.each_delta(conn, |row| {
            let sums = self.unpacked(&row.cells, |day| !without.contains(&day.0));
            all.extend(readable("rollup_deltas", row.id, sums));
            Ok(())
        })?;
        all.into_iter().try_for_each(|sums| self.add_sums(sums, rest))
    }

    /// What packed cells say of the query: wanted days, as far as they lie in the window.
    fn unpacked(&self, bytes: &[u8], wants: impl Fn(Timestamp) -> bool) -> Result<Sums, DbError> {
        let unreadable = || DbError::from(Error::internal("packed sums cannot be read"));
        let mut found = Sums::default();
        for packed in facet::groups(bytes).ok_or_else(unreadable)? {
            let dimensions = json::parse_object(packed.values).ok_or_else(unreadable)?;
            let row = AggregatedRow { meter: &self.query.meter.name, subject: "", dimensions: &dimensions };
            let group = self.query.group(&row);
            let mut buckets: BTreeMap<Timestamp, Part> = BTreeMap::new();
            for part in packed.parts() {
                let (start, part) = part.ok_or_else(unreadable)?;
                if !self.is_inside(start) || !wants(start.floor(DAY)) {
                    continue;
                }
                if packed.version < self.since && start >= self.pruned_before {
                    found.too_old.push(start);
                } else if group.is_some() {
                    merge(&mut buckets, self.query.bucket(start), &part);
                }
            }
            if let Some(group) = group {
                found.parts.extend(buckets.into_iter().map(|(bucket, part)| (bucket, group.clone(), part)));
            }
        }
        Ok(found)
    }

    fn add_sums(&mut self, sums: Sums, rest: &mut Unanswered) -> Result<(), DbError> {
        sums.too_old.into_iter().for_each(|start| rest.leave_out(start));
        for (bucket, group, part) in sums.parts {
            self.cells.add(bucket, group, &part)?;
        }
        Ok(())
    }
}

/// What packed cells say of a query.
#[derive(Default)]
struct Sums {
    parts: Vec<(Timestamp, Vec<String>, Part)>,
    /// Starts of sums that do not know a dimension of the query.
    too_old: Vec<Timestamp>,
}

impl Unanswered {
    /// A day at a time: what was added up by the day begins anywhere in it.
    fn leave_out(&mut self, start: Timestamp) {
        let span = Window { from: start, to: start.floor(DAY).plus(DAY).max(start.plus(HOUR)) };
        self.left_out = Some(self.left_out.map_or(span, |other| other.hull(span)));
    }
}
