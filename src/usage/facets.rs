//! Sums of all events of a meter by some of its dimensions, as they are stored: a row for each day and facet, and what
//! recent commits added and nobody has folded in yet (`usage::fold`). Both are read at one instant.

use std::collections::BTreeSet;

use diesel::sql_types::{BigInt, Binary, Nullable};

use crate::db::columns::readable;
use crate::db::statement::{Statement, integers};
use crate::db::{Conn, DbError};
use crate::metering::facet::{self, Facet};
use crate::metering::time::{DAY, Timestamp, Window};
use crate::usage::packed::{Asked, Sums};
use crate::usage::query::GroupedAggregates;

/// What is read, and where it is added up.
pub struct Facets<'a> {
    /// Its window are whole hours, or quarters of them.
    pub asked: Asked<'a>,
    /// Hours must be told apart, also of whole days.
    pub by_hour: bool,
    pub cells: &'a mut GroupedAggregates,
    /// Where sums are too old to know a dimension.
    pub left_out: &'a mut Option<Window>,
    /// Only what begins on these days; `None`: on every day of the window.
    pub only: Option<&'a BTreeSet<i64>>,
    /// Days that no facet answers for.
    pub lost: BTreeSet<i64>,
}

/// A row of a facet, or a delta.
#[derive(diesel::QueryableByName)]
struct FacetRow {
    #[diesel(sql_type = BigInt)]
    is_delta: i64,
    /// The day, or the id of the delta.
    #[diesel(sql_type = BigInt)]
    place: i64,
    #[diesel(sql_type = Nullable<Binary>)]
    cells: Option<Vec<u8>>,
}

/// Id and cells.
type Delta = (i64, Vec<u8>);

#[derive(diesel::QueryableByName)]
struct DeltaRow {
    #[diesel(sql_type = Binary)]
    cells: Vec<u8>,
}

impl Facets<'_> {
    /// Adds everything of the meter in these hours; returns the days that have too many sums for facets, or ones that
    /// cannot be read. Must run in a snapshot.
    pub fn add_up(mut self, conn: &mut Conn) -> Result<BTreeSet<i64>, DbError> {
        let facet = Facet::for_paths(&self.asked.query.meter, &self.asked.query.paths());
        self.lost = self.days_without_edges(conn)?;
        // deltas come with the rows, because it is the rows that say of which days they count
        let mut deltas = Vec::new();
        let mut missing = self.add_rows(conn, &facet, self.only, Some(&mut deltas))?;
        if facet != Facet::All && !missing.is_empty() {
            missing = self.add_rows(conn, &Facet::All, Some(&missing), None)?;
        }
        let mut lost = missing;
        lost.append(&mut self.lost);
        self.add_deltas(&deltas, &lost)?;
        Ok(lost)
    }

    /// Days to which a commit added sums without first and last events, before the meter was one that answers with
    /// them.
    fn days_without_edges(&self, conn: &mut Conn) -> Result<BTreeSet<i64>, DbError> {
        let mut days = BTreeSet::new();
        if !self.asked.needs_edges() {
            return Ok(days);
        }
        self.each_delta(conn, |row| {
            for packed in facet::groups(&row.cells).unwrap_or_default() {
                let without = packed.parts(true).flatten().filter(|(_, part)| part.edges.is_none());
                days.extend(
                    without
                        .filter(|(at, _)| self.asked.is_inside(*at) && self.is_wanted(at.floor(DAY)))
                        .map(|(at, _)| at.floor(DAY).0),
                );
            }
            Ok(())
        })?;
        Ok(days)
    }

    fn is_wanted(&self, day: Timestamp) -> bool {
        self.only.is_none_or(|only| only.contains(&day.0))
    }

    /// Adds the rows of a facet, and those of days that have no other; returns the days without a row of use. `days`
    /// limits it. In the same statement the deltas are read, where they are wanted.
    fn add_rows(
        &mut self,
        conn: &mut Conn,
        facet: &Facet,
        days: Option<&BTreeSet<i64>>,
        mut deltas: Option<&mut Vec<Delta>>,
    ) -> Result<BTreeSet<i64>, DbError> {
        let mut statement = Statement::new(conn);
        let mut sql = self.rows_sql(&mut statement, facet, days);
        if deltas.is_some() {
            sql = format!("{sql} UNION ALL {}", self.deltas_sql(&mut statement));
        }
        let (mut seen, mut answered) = (BTreeSet::new(), BTreeSet::new());
        statement.each(conn, &sql, |row: FacetRow| {
            if row.is_delta > 0 {
                let delta = row.cells.map(|cells| (row.place, cells));
                if let Some(deltas) = &mut deltas {
                    deltas.extend(delta);
                }
                return Ok(());
            }
            let day = row.place;
            if self.lost.contains(&day) {
                return Ok(());
            }
            seen.insert(day);
            let unpacked = row.cells.as_deref().map(|cells| self.asked.read(cells, "", |_| true));
            let sums = unpacked.and_then(|sums| readable("rollup_facets", day, sums));
            let Some(sums) = sums.filter(|sums| self.is_enough(sums)) else { return Ok(()) };
            answered.insert(day);
            sums.add_to(self.cells, self.left_out)
        })?;
        Ok(&seen - &answered)
    }

    /// A row for each day and facet, so that days are seen whose facet was not kept yet; cells only of those that count.
    fn rows_sql(&self, statement: &mut Statement, facet: &Facet, days: Option<&BTreeSet<i64>>) -> String {
        let whole = self.whole_days();
        let (first, last) = (statement.int(whole.from.0), statement.int(whole.to.0));
        let (counting, meter_id) = (statement.text(facet.name()), statement.int(self.asked.query.meter.id));
        let wanted = statement.text(facet.name());
        let (from, to) =
            (statement.int(self.asked.window.from.floor(DAY).0), statement.int(self.asked.window.to.0));
        let only = days.map_or(String::new(), |days| {
            let days: Vec<i64> = days.iter().copied().collect();
            format!("AND day IN ({})", integers(&days))
        });
        let cut: Vec<i64> = self.asked.cover.iter().flat_map(|cover| cover.cut_days()).collect();
        let whole = match cut.as_slice() {
            [] => format!("day >= {first} AND day < {last}"),
            cut => format!("day >= {first} AND day < {last} AND day NOT IN ({})", integers(cut)),
        };
        // days of which quarters of an hour are told apart; no day is named by none
        let quarters: Vec<i64> = self.asked.quarter_days().into_iter().collect();
        let by_quarter = match quarters.as_slice() {
            [] => String::new(),
            days => format!("WHEN day IN ({}) THEN quarter_cells", integers(days)),
        };
        format!(
            "SELECT CAST(0 AS BIGINT) AS is_delta, day AS place,
                    CASE WHEN {whole} THEN day_cells {by_quarter} ELSE hour_cells END AS cells
             FROM (SELECT day, CASE WHEN is_alone OR facet = {counting} THEN day_cells END AS day_cells,
                          CASE WHEN is_alone OR facet = {counting} THEN hour_cells END AS hour_cells,
                          CASE WHEN is_alone OR facet = {counting} THEN quarter_cells END AS quarter_cells
                   FROM rollup_facets
                   WHERE meter_id = {meter_id} AND facet IN ({wanted}, '*') AND day >= {from} AND day < {to} {only}) AS kept"
        )
    }

    /// First and last events are packed for meters that answer with them, and a meter can become one of those.
    fn is_enough(&self, sums: &Sums) -> bool {
        !self.asked.needs_edges() || sums.parts.iter().all(|(.., part)| part.edges.is_some())
    }

    /// Days whose sums are read by the day.
    fn whole_days(&self) -> Window {
        let days = Window { from: self.asked.window.from.ceil(DAY), to: self.asked.window.to.floor(DAY) };
        if self.by_hour { Window { to: days.from, ..days } } else { days }
    }

    fn each_delta(
        &self,
        conn: &mut Conn,
        row: impl FnMut(DeltaRow) -> Result<(), DbError>,
    ) -> Result<(), DbError> {
        let mut statement = Statement::new(conn);
        let sql = self.deltas_sql(&mut statement);
        statement.each(conn, &sql, row)
    }

    fn deltas_sql(&self, statement: &mut Statement) -> String {
        let meter_id = statement.int(self.asked.query.meter.id);
        format!(
            "SELECT CAST(1 AS BIGINT) AS is_delta, id AS place, cells FROM rollup_deltas
             WHERE meter_id = {meter_id} AND cells IS NOT NULL"
        )
    }

    fn add_deltas(&mut self, deltas: &[Delta], without: &BTreeSet<i64>) -> Result<(), DbError> {
        for (id, cells) in deltas {
            let sums = self.asked.read(cells, "", |day| !without.contains(&day.0) && self.is_wanted(day));
            if let Some(sums) = readable("rollup_deltas", *id, sums) {
                sums.add_to(self.cells, self.left_out)?;
            }
        }
        Ok(())
    }
}
