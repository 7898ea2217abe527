//! Sums over windows: full hours and days from rollups, the rest from raw events. Any window, any grouping and any
//! filter gives what a recount of all events would give; rollups only make it fast. Rows are added up as they arrive.

mod events;
pub(super) mod pieces;
mod whole;

use std::collections::BTreeSet;
use std::sync::Arc;

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Binary, Nullable, Text};
use uuid::Uuid;

use crate::db::columns::{quantity_of, readable, uuid_of};
use crate::db::partial::PartRow;
use crate::db::schema::{dimension_sets, meters, subjects};
use crate::db::statement::{Statement, integers};
use crate::db::{Conn, DbError};
use crate::error::Error;
use crate::metering::filter::{Field, Held, Row};
use crate::metering::json::{self, Map};
use crate::metering::meter::{Aggregation, Meter, value_at};
use crate::metering::quantity::Quantity;
use crate::metering::rollup::Grain;
use crate::metering::time::{BucketSize, DAY, HOUR, Timestamp, Window};
use crate::usage::aggregate::pieces::{Cover, Piece};
use crate::usage::aggregate::whole::Whole;
use crate::usage::facets::Facets;
use crate::usage::filter_sql::{exact, prefilter};
use crate::usage::packed::Asked;
use crate::usage::query::{GroupField, GroupedAggregates, Query};
use crate::usage::runs::Runs;
use crate::usage::subject_days::{self, Events};

/// Whether the statements of this query must all see one state of the database
/// ([`crate::db::Store::read_snapshot`]): an event stored, or pruned, between two of them would be counted wrong
/// where a cut hour is weighed against its rollup, or rollups against the dimension sets that they name.
pub fn needs_snapshot(query: &Query) -> bool {
    let is_cut = |at: Timestamp| at != at.floor(HOUR);
    query.rollups_since().is_some()
        && (is_cut(query.window.from)
            || is_cut(query.window.to)
            || !query.paths().is_empty()
            || query.odd_buckets().is_some_and(|buckets| buckets.cuts().iter().any(|at| is_cut(*at))))
}

/// Whether retention may be at work where this query reads raw events beside rollups. No event younger than a day
/// is ever pruned.
fn may_meet_pruning(query: &Query) -> bool {
    let young = Timestamp::now().plus(HOUR - DAY);
    let Window { from, to } = query.window;
    let is_cut = |at: Timestamp| at != at.floor(HOUR) && at < young;
    query.rollups_since().is_some()
        && (is_cut(from)
            || is_cut(to)
            || (from < young && !query.paths().is_empty())
            || query.odd_buckets().is_some_and(|buckets| buckets.cuts().iter().any(|at| is_cut(*at))))
}

/// 400 where buckets of minutes were asked for of hours whose events are gone: only their sums are known.
fn refuse_pruned_minutes(query: &Query) -> Result<(), DbError> {
    let Some(buckets) = query.odd_buckets().filter(|buckets| buckets.calendar.size.is_below_hour()) else {
        return Ok(());
    };
    match query.meter.pruned_before.map(|at| at.ceil(HOUR)).filter(|at| query.window.from < *at) {
        Some(at) => Err(Error::invalid(format!(
            "from must not be before {at} for {} buckets: the events before are pruned, and sums are kept by the hour",
            buckets.name()
        ))
        .into()),
        None => Ok(()),
    }
}

/// The query with the watermark of its meter as it is now: the meter may have been remembered for a while.
fn with_watermark(conn: &mut Conn, query: &Query) -> Result<Query, DbError> {
    let pruned_before: Option<Option<i64>> =
        meters::table.find(query.meter.id).select(meters::pruned_before).first(conn).optional()?;
    Ok(pruned_to(query, pruned_before.flatten().map(Timestamp)))
}

fn pruned_to(query: &Query, pruned_before: Option<Timestamp>) -> Query {
    let mut query = query.clone();
    if pruned_before != query.meter.pruned_before {
        query.meter = Arc::new(Meter { pruned_before, ..(*query.meter).clone() });
    }
    query
}

/// Queries with the watermarks of their meters as they are now, for [`Known::meter_of_now`]: one statement for all of them,
/// and none where that makes no difference.
pub fn of_now(conn: &mut Conn, queries: &[Query]) -> Result<Vec<Query>, DbError> {
    if !queries.iter().any(may_meet_pruning) {
        return Ok(queries.to_vec());
    }
    let mut ids: Vec<i64> = queries.iter().map(|query| query.meter.id).collect();
    ids.sort_unstable();
    ids.dedup();
    let rows: Vec<(i64, Option<i64>)> = meters::table
        .filter(meters::id.eq_any(ids))
        .select((meters::id, meters::pruned_before))
        .load(conn)?;
    let watermark = |query: &Query| {
        let row = rows.iter().find(|(id, _)| *id == query.meter.id);
        row.and_then(|(_, pruned_before)| *pruned_before).map(Timestamp)
    };
    Ok(queries.iter().map(|query| pruned_to(query, watermark(query))).collect())
}

/// What whoever asks has read already, so that it need not be read again.
#[derive(Clone, Copy, Default)]
pub struct Known {
    /// The meter of the query was read at the instant at which its events are.
    pub meter_of_now: bool,
    /// Of the subject that the query names.
    pub subject_id: Option<i64>,
}

/// Adds up the events of a query, per bucket and group, and keeps the first `most` rows. Read at one instant when
/// [`needs_snapshot`].
pub fn cells(conn: &mut Conn, query: &Query, most: usize) -> Result<GroupedAggregates, DbError> {
    cells_knowing(conn, query, most, Known::default())
}

/// As [`cells`].
pub fn cells_knowing(
    conn: &mut Conn,
    query: &Query,
    most: usize,
    known: Known,
) -> Result<GroupedAggregates, DbError> {
    let must_ask = !known.meter_of_now && may_meet_pruning(query);
    let query = if must_ask { &with_watermark(conn, query)? } else { query };
    refuse_pruned_minutes(query)?;
    let subjects = match query.only_subjects() {
        Some(names) => {
            let names: Vec<&str> = names.into_iter().collect();
            // no more than one name can be the subject that the query names
            let ids = match known.subject_id.filter(|_| query.subject.is_some() && names.len() == 1) {
                Some(id) => vec![id],
                None => subject_ids(conn, query.meter.workspace_id, &names)?,
            };
            if ids.is_empty() {
                return Ok(GroupedAggregates::first(most));
            }
            Subjects::Only(ids)
        }
        None if query.names_subjects() => Subjects::Each,
        None => Subjects::All,
    };
    let mut sum = Sum {
        query,
        subjects,
        named: query.names_subjects(),
        hour_by_hour: false,
        left_out: None,
        cover: None,
        cells: GroupedAggregates::first(most),
    };
    match query.rollups_since() {
        None if query.meter.aggregation.needs_events() => sum.add_events(conn)?,
        None => sum.add_raw(conn, &[query.window], None)?,
        Some(since) => sum.add_all(conn, since)?,
    }
    Ok(sum.cells)
}

/// The ids of those subjects that are known.
pub fn subject_ids(conn: &mut Conn, workspace_id: i64, names: &[&str]) -> Result<Vec<i64>, DbError> {
    Ok(subjects::table
        .filter(subjects::workspace_id.eq(workspace_id).and(subjects::name.eq_any(names)))
        .select(subjects::id)
        .load(conn)?)
}

/// Whose rows are read.
enum Subjects {
    /// Rows of the meter that all subjects share.
    All,
    /// Rows of every single subject.
    Each,
    Only(Vec<i64>),
}

struct Sum<'q> {
    query: &'q Query,
    subjects: Subjects,
    /// Rows must say the name of their subject.
    named: bool,
    /// Some rollups are too old to know a dimension and their events are partly pruned: which of the two answers
    /// for an hour can then only be told hour by hour.
    hour_by_hour: bool,
    /// Where rollups were too old and their events must be read instead.
    left_out: Option<Window>,
    /// Of what sums answer, where buckets begin elsewhere than stored sums do.
    cover: Option<Cover>,
    cells: GroupedAggregates,
}

impl Sum<'_> {
    /// Sums for what lies wholly inside the window, raw events for the rest. `since` is the meter version from
    /// which sums know the dimensions of the query; events stored before it are read one by one.
    fn add_all(&mut self, conn: &mut Conn, since: i32) -> Result<(), DbError> {
        self.hour_by_hour = self.query.meter.pruned_before.is_some() && self.has_old_sets(conn, since)?;
        let whole = self.whole(conn)?;
        let mut read = Vec::new();
        if let Some(sums) = whole.sums {
            // buckets that begin in the middle of a stored sum: what lies in between comes from sums, the cut ones from events
            let (pruned_before, finest) = (self.pruned_before(), self.finest(sums));
            let buckets = self.query.odd_buckets();
            self.cover = buckets.map(|buckets| pieces::cover(sums, buckets, pruned_before, finest));
            read.extend(self.cover.iter().flat_map(Cover::cut_windows));
            read.extend(self.add_sums(conn, sums, since)?);
        }
        read.extend(whole.edges);
        self.add_raw(conn, &read, None)?;
        // events from before a dimension was declared, as far as they are still stored
        if let (Some(sums), Some(old)) = (whole.sums, self.left_out) {
            let from = sums.from.max(old.from).max(self.pruned_before());
            let to = sums.to.min(old.to);
            if from < to {
                self.add_raw(conn, &pieces::without(Window { from, to }, &read), Some(since))?;
            }
        }
        Ok(())
    }

    /// Whether the rows are shared by all subjects.
    fn is_of_all(&self) -> bool {
        matches!(self.subjects, Subjects::All)
    }

    /// Adds what is kept; returns the windows of which it is not kept finely enough, whose events must be read.
    fn add_sums(&mut self, conn: &mut Conn, sums: Window, since: i32) -> Result<Vec<Window>, DbError> {
        let cover = self.cover.clone();
        let (query, pruned_before) = (self.query, self.pruned_before());
        let asked = Asked { query, since, pruned_before, window: sums, cover: cover.as_ref() };
        if !self.is_of_all() {
            return self.add_runs(conn, asked, None).map(|()| Vec::new());
        }
        // cheapest first: totals know no dimension, facets know some, runs of subjects know all and are many
        let is_by_quarter = !asked.quarter_days().is_empty();
        if query.paths().is_empty() && !is_by_quarter {
            match &cover {
                Some(cover) => self.add_totals_of_pieces(conn, &cover.stored)?,
                None => self.add_totals(conn, &self.split_days(sums))?,
            }
            return Ok(Vec::new());
        }
        match self.add_facets(conn, asked, None)? {
            lost if lost.is_empty() => Ok(Vec::new()),
            lost if is_by_quarter => self.add_by_hour(conn, asked, &lost),
            // days whose facets were given up or cannot be read
            lost => self.add_runs(conn, asked, Some(&lost)).map(|()| Vec::new()),
        }
    }

    /// Days with too many sums to keep them by quarters of an hour: by the hour, and those that are cut are left to their
    /// events.
    fn add_by_hour(
        &mut self,
        conn: &mut Conn,
        asked: Asked,
        days: &BTreeSet<i64>,
    ) -> Result<Vec<Window>, DbError> {
        let Whole { sums, edges } = self.to_the_hour(asked.window);
        let Some(hours) = sums else { return Ok(edges) };
        let buckets = self.query.odd_buckets();
        let cover = buckets.map(|buckets| pieces::cover(hours, buckets, asked.pruned_before, HOUR));
        let by_hour = Asked { window: hours, cover: cover.as_ref(), ..asked };
        let lost = self.add_facets(conn, by_hour, Some(days))?;
        if !lost.is_empty() {
            self.add_runs(conn, asked, Some(&lost))?;
        }
        let is_read = |window: &Window| {
            let day = window.from.floor(DAY).0;
            days.contains(&day) && !lost.contains(&day)
        };
        let cut = cover.iter().flat_map(Cover::cut_windows);
        Ok(cut.chain(edges).filter(is_read).collect())
    }

    /// Returns the days that no facet answers for.
    fn add_facets(
        &mut self,
        conn: &mut Conn,
        asked: Asked,
        only: Option<&BTreeSet<i64>>,
    ) -> Result<BTreeSet<i64>, DbError> {
        let by_hour = self.hour_by_hour || self.is_hourly();
        let (cells, left_out) = (&mut self.cells, &mut self.left_out);
        Facets { asked, by_hour, only, cells, left_out, lost: BTreeSet::new() }.add_up(conn)
    }

    /// From what is kept of each subject.
    fn add_runs(
        &mut self,
        conn: &mut Conn,
        asked: Asked,
        days: Option<&BTreeSet<i64>>,
    ) -> Result<(), DbError> {
        let subject_ids = match &self.subjects {
            Subjects::Only(ids) => Some(ids.as_slice()),
            Subjects::All | Subjects::Each => None,
        };
        let (cells, left_out) = (&mut self.cells, &mut self.left_out);
        let by_day = asked.facet_of_days();
        Runs { asked, subject_ids, days, by_day, with_names: self.named, cells, left_out }.add_up(conn)
    }

    /// Whether anything is stored from before a dimension of the query was declared.
    fn has_old_sets(&self, conn: &mut Conn, since: i32) -> Result<bool, DbError> {
        let oldest: Option<i32> = dimension_sets::table
            .filter(dimension_sets::meter_id.eq(self.query.meter.id))
            .select(diesel::dsl::min(dimension_sets::version))
            .first(conn)?;
        Ok(!self.query.paths().is_empty() && oldest.is_some_and(|oldest| oldest < since))
    }

    fn plain_size(&self) -> Option<BucketSize> {
        self.query.buckets.as_ref().map(|buckets| buckets.calendar.size)
    }

    fn is_hourly(&self) -> bool {
        self.query.odd_buckets().is_none() && self.plain_size() == Some(BucketSize::Hour)
    }

    /// Whole days come from day rows, which are kept per meter.
    fn split_days(&self, hours: Window) -> Vec<(Grain, Window)> {
        let days = Window { from: hours.from.ceil(DAY), to: hours.to.floor(DAY) };
        let by_hour = self.hour_by_hour || self.is_hourly();
        if by_hour || days.from >= days.to {
            return vec![(Grain::MeterHour, hours)];
        }
        let parts = [
            (Grain::MeterHour, Window { from: hours.from, to: days.from }),
            (Grain::MeterDay, days),
            (Grain::MeterHour, Window { from: days.to, to: hours.to }),
        ];
        parts.into_iter().filter(|(_, window)| window.from < window.to).collect()
    }

    /// In one statement: on PostgreSQL a way there and back costs as much as thirty rows.
    fn add_totals(&mut self, conn: &mut Conn, parts: &[(Grain, Window)]) -> Result<(), DbError> {
        if parts.is_empty() {
            return Ok(());
        }
        let mut statement = Statement::new(conn);
        let part = |(grain, window): &(Grain, Window)| self.totals_sql(&mut statement, *grain, *window);
        let sql = parts.iter().map(part).collect::<Vec<_>>().join(" UNION ALL ");
        self.add_total_rows(conn, statement, &sql)
    }

    fn add_totals_of_pieces(&mut self, conn: &mut Conn, pieces: &[Piece]) -> Result<(), DbError> {
        if pieces.is_empty() {
            return Ok(());
        }
        let mut statement = Statement::new(conn);
        let sql = self.pieces_sql(&mut statement, pieces);
        self.add_total_rows(conn, statement, &sql)
    }

    fn add_total_rows(&mut self, conn: &mut Conn, statement: Statement, sql: &str) -> Result<(), DbError> {
        let (query, cells) = (self.query, &mut self.cells);
        statement.each(conn, sql, |row: RollupRow| {
            let start = Timestamp(row.start);
            match readable("rollups", row.start, row.part.into_part()) {
                Some(part) => Ok(cells.add(query.bucket(start), Vec::new(), &part)?),
                None => Ok(()),
            }
        })
    }

    /// The start that rows are added up under: months are put together from days, because they differ in length.
    fn bucket_sql(&self) -> String {
        match self.plain_size() {
            _ if self.hour_by_hour => "r.start".to_owned(),
            Some(BucketSize::Hour) => "r.start".to_owned(),
            Some(_) => format!("r.start - ((r.start % {DAY}) + {DAY}) % {DAY}"),
            None => format!("CAST({} AS BIGINT)", self.query.window.from.0),
        }
    }

    /// Totals of the meter, added up by the database per bucket. First and last events cannot be added up in SQL and
    /// come row by row.
    fn totals_sql(&self, statement: &mut Statement, grain: Grain, window: Window) -> String {
        let (meter_id, from, to) =
            (statement.int(self.query.meter.id), statement.int(window.from.0), statement.int(window.to.0));
        let source = format!(
            "FROM rollups r WHERE r.meter_id = {meter_id} AND r.grain = {} AND r.start >= {from} AND r.start < {to}",
            grain as i16
        );
        self.total_rows_sql(statement.is_postgres, &self.bucket_sql(), &source)
    }

    fn total_rows_sql(&self, postgres: bool, bucket: &str, source: &str) -> String {
        match matches!(self.query.meter.aggregation, Aggregation::First | Aggregation::Last) {
            true => single_rows(postgres, bucket, source),
            false => grouped_rows(postgres, bucket, source),
        }
    }

    /// Totals of many pieces of the window at once, each piece in its bucket.
    fn pieces_sql(&self, statement: &mut Statement, pieces: &[Piece]) -> String {
        let postgres = statement.is_postgres;
        let meter_id = statement.int(self.query.meter.id);
        let (listed, fence) = (pieces::listed(pieces), statement.fence);
        let source = match postgres {
            // the planner must look into the key piece by piece
            true => format!(
                "FROM {listed} CROSS JOIN LATERAL (SELECT * FROM rollups WHERE meter_id = {meter_id} AND grain = w.grain
                     AND start >= w.low AND start < w.high {fence}) r"
            ),
            false => format!(
                "FROM {listed} CROSS JOIN rollups r
                 WHERE r.meter_id = {meter_id} AND r.grain = w.grain AND r.start >= w.low AND r.start < w.high"
            ),
        };
        self.total_rows_sql(postgres, "w.bucket", &source)
    }

    /// Raw events, added up by the database where it can and one by one where not; `before` limits them to those checked under an older version of the meter.
    fn add_raw(&mut self, conn: &mut Conn, windows: &[Window], before: Option<i32>) -> Result<(), DbError> {
        let sources = match self.query.odd_buckets() {
            Some(buckets) => match pieces::split(windows.iter().copied(), buckets) {
                pieces if pieces.is_empty() => Vec::new(),
                pieces => vec![Source::Pieces(pieces)],
            },
            None => windows.iter().copied().map(Source::Whole).collect(),
        };
        if sources.is_empty() {
            return Ok(());
        }
        let mut statement = Statement::new(conn);
        let sums = |source: &Source| self.raw_sums_sql(&mut statement, source, before);
        if let Some(parts) = sources.iter().map(sums).collect::<Option<Vec<String>>>() {
            let (query, cells) = (self.query, &mut self.cells);
            return statement.each(conn, &parts.join(" UNION ALL "), |row: RollupRow| {
                let group = row.subject.iter().cloned().collect();
                Ok(cells.add(query.bucket(Timestamp(row.start)), group, &row.part.into_part()?)?)
            });
        }
        let mut statement = Statement::new(conn);
        let rows = |source: &Source| self.raw_sql(&mut statement, source, before);
        let sql = sources.iter().map(rows).collect::<Vec<_>>().join(" UNION ALL ");
        let (query, cells) = (self.query, &mut self.cells);
        statement.each(conn, &sql, |row: RawRow| {
            let id = Uuid::from_slice(&row.id).unwrap_or_default();
            let event = RawEvent::of(&query.meter.name, row);
            let Some(event) = readable("events", id, event) else { return Ok(()) };
            if let Some(group) = query.group(&event) {
                cells.add_event(query.bucket(event.time), group, event.time, event.id, &event.quantity)?;
            }
            Ok(())
        })
    }

    fn raw_sql(&self, statement: &mut Statement, source: &Source, before: Option<i32>) -> String {
        let quantity = if statement.is_postgres { "e.quantity::text" } else { "quantity_text(e.quantity)" };
        let metadata = match (self.query.paths().is_empty(), statement.is_postgres) {
            (true, _) => "NULL",
            (false, true) => "e.metadata::text",
            (false, false) => "e.metadata",
        };
        let (name, join) = match self.named {
            true => ("s.name", "JOIN subjects s ON s.id = e.subject_id"),
            false => ("NULL", ""),
        };
        let (tables, condition) = self.raw_events(statement, source, before);
        let mut sql = format!(
            "SELECT e.id, e.event_time, e.received_at, {quantity} AS quantity, e.idempotency_key,
                    {metadata} AS metadata, {name} AS subject
             FROM {tables} {join} WHERE {condition}"
        );
        let filter = self.query.filter.as_ref();
        let filter = filter.and_then(|filter| prefilter(filter, self.query.meter.workspace_id, statement));
        if let Some(condition) = filter {
            sql.push_str(&format!(" AND {condition}"));
        }
        sql
    }

    /// FROM and WHERE for the raw events `e`.
    fn raw_events(
        &self,
        statement: &mut Statement,
        source: &Source,
        before: Option<i32>,
    ) -> (String, String) {
        let (tables, mut condition) = match source {
            Source::Whole(window) => self.events_of_window(statement, *window),
            Source::Pieces(pieces) => self.events_of_pieces(statement, pieces),
        };
        if let Some(version) = before {
            condition.push_str(&format!(" AND e.meter_version < {version}"));
        }
        (tables, condition)
    }

    fn events_of_window(&self, statement: &mut Statement, window: Window) -> (String, String) {
        let Window { from, to } = window;
        let (meter_id, low, high) =
            (statement.int(self.query.meter.id), statement.int(from.0), statement.int(to.0));
        let time = format!("e.event_time >= {low} AND e.event_time < {high}");
        match &self.subjects {
            Subjects::Only(ids) => {
                let subjects = format!("IN ({})", integers(ids));
                let Events { tables, condition, sign, .. } =
                    subject_days::events(statement, &subjects, window);
                (tables, format!("{condition} AND {sign}e.meter_id = {meter_id} AND {time}"))
            }
            Subjects::All | Subjects::Each => {
                ("events e".to_owned(), format!("e.meter_id = {meter_id} AND {time}"))
            }
        }
    }

    fn events_of_pieces(&self, statement: &mut Statement, pieces: &[Piece]) -> (String, String) {
        let meter_id = statement.int(self.query.meter.id);
        let (listed, fence) = (pieces::listed(pieces), statement.fence);
        let time = "e.event_time >= w.low AND e.event_time < w.high";
        match &self.subjects {
            Subjects::Only(ids) => {
                let (tables, condition) =
                    subject_days::events_between(statement, ids, "w.low", "w.high", &meter_id);
                (format!("{listed} CROSS JOIN {tables}"), format!("{condition} AND {time}"))
            }
            Subjects::All | Subjects::Each if statement.is_postgres => {
                let rows = format!(
                    "{listed} CROSS JOIN LATERAL (SELECT * FROM events WHERE meter_id = {meter_id}
                         AND event_time >= w.low AND event_time < w.high {fence}) e"
                );
                (rows, "true".to_owned())
            }
            Subjects::All | Subjects::Each => {
                (format!("{listed} CROSS JOIN events e"), format!("e.meter_id = {meter_id} AND {time}"))
            }
        }
    }

    /// Raw events added up in SQL, a row per bucket and subject; `None` where that takes a look at each event.
    fn raw_sums_sql(
        &self,
        statement: &mut Statement,
        source: &Source,
        before: Option<i32>,
    ) -> Option<String> {
        let by_subject = match self.query.group_by.as_slice() {
            [] => false,
            [GroupField::Subject] => true,
            _ => return None,
        };
        if matches!(self.query.meter.aggregation, Aggregation::First | Aggregation::Last) {
            return None;
        }
        let (tables, mut condition) = self.raw_events(statement, source, before);
        if let Some(filter) = &self.query.filter {
            let filter = exact(filter, self.query.meter.workspace_id, statement)?;
            condition.push_str(&format!(" AND {filter}"));
        }
        let width = if self.is_hourly() { HOUR } else { DAY };
        let bucket = match self.plain_size() {
            _ if matches!(source, Source::Pieces(_)) => "w.bucket".to_owned(),
            Some(_) => format!("e.event_time - ((e.event_time % {width}) + {width}) % {width}"),
            None => format!("CAST({} AS BIGINT)", self.query.window.from.0),
        };
        let source = format!("FROM {tables} WHERE {condition}");
        let rows = summed_events(statement.is_postgres, &bucket, &source, by_subject);
        Some(match by_subject {
            true => {
                format!(
                    "SELECT sums.*, s.name AS subject FROM ({rows}) sums JOIN subjects s ON s.id = sums.subject_id"
                )
            }
            false => rows,
        })
    }
}

/// Where raw events are read.
enum Source {
    Whole(Window),
    /// Each in one bucket.
    Pieces(Vec<Piece>),
}

fn quantity_text(postgres: bool, column: &str) -> String {
    if postgres { format!("({column})::text") } else { format!("quantity_text({column})") }
}

/// Rollups with their first and last events, one by one.
fn single_rows(postgres: bool, bucket: &str, source: &str) -> String {
    let text = |column: &str| quantity_text(postgres, column);
    format!(
        "SELECT {bucket} AS start, NULL AS subject, r.event_count, {} AS quantity_sum, {} AS quantity_min,
                {} AS quantity_max, r.first_at, r.first_id, {} AS first_quantity, r.last_at, r.last_id,
                {} AS last_quantity
         {source}",
        text("r.quantity_sum"),
        text("r.quantity_min"),
        text("r.quantity_max"),
        text("r.first_quantity"),
        text("r.last_quantity"),
    )
}

/// Stands for the first and last event where they are not asked for.
const NO_EDGES: &str = "CAST(NULL AS BIGINT) AS first_at, NULL AS first_id, NULL AS first_quantity,
                        CAST(NULL AS BIGINT) AS last_at, NULL AS last_id, NULL AS last_quantity";

fn grouped_rows(postgres: bool, bucket: &str, source: &str) -> String {
    let total = if postgres { "SUM" } else { "quantity_total" };
    let count = if postgres { "SUM(r.event_count)::bigint" } else { "SUM(r.event_count)" };
    format!(
        "SELECT {bucket} AS start, NULL AS subject, {count} AS event_count, {} AS quantity_sum, {} AS quantity_min,
                {} AS quantity_max, {NO_EDGES}
         {source} GROUP BY 1",
        quantity_text(postgres, &format!("{total}(r.quantity_sum)")),
        quantity_text(postgres, "MIN(r.quantity_min)"),
        quantity_text(postgres, "MAX(r.quantity_max)"),
    )
}

/// Events in the shape of [`grouped_rows`]; with the id of their subject where they are added up by it.
fn summed_events(postgres: bool, bucket: &str, source: &str, by_subject: bool) -> String {
    let total = if postgres { "SUM" } else { "quantity_total" };
    let (subject, subject_key) = if by_subject { ("e.subject_id,", ", 2") } else { ("NULL AS subject,", "") };
    format!(
        "SELECT {bucket} AS start, {subject} COUNT(*) AS event_count, {} AS quantity_sum, {} AS quantity_min,
                {} AS quantity_max, {NO_EDGES}
         {source} GROUP BY 1{subject_key}",
        quantity_text(postgres, &format!("{total}(e.quantity)")),
        quantity_text(postgres, "MIN(e.quantity)"),
        quantity_text(postgres, "MAX(e.quantity)"),
    )
}

#[derive(QueryableByName)]
struct RollupRow {
    #[diesel(sql_type = BigInt)]
    start: i64,
    #[diesel(sql_type = Nullable<Text>)]
    subject: Option<String>,
    #[diesel(embed)]
    part: PartRow,
}

#[derive(QueryableByName)]
struct RawRow {
    #[diesel(sql_type = Binary)]
    id: Vec<u8>,
    #[diesel(sql_type = BigInt)]
    event_time: i64,
    #[diesel(sql_type = BigInt)]
    received_at: i64,
    #[diesel(sql_type = Text)]
    quantity: String,
    #[diesel(sql_type = Nullable<Text>)]
    idempotency_key: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    metadata: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    subject: Option<String>,
}

/// A stored event, as far as a query looks at it.
struct RawEvent<'q> {
    id: Uuid,
    meter: &'q str,
    subject: String,
    time: Timestamp,
    received_at: Timestamp,
    quantity: Quantity,
    key: Option<String>,
    metadata: Map,
}

impl<'q> RawEvent<'q> {
    fn of(meter: &'q str, row: RawRow) -> Result<Self, DbError> {
        Ok(RawEvent {
            id: uuid_of(&row.id)?,
            meter,
            subject: row.subject.unwrap_or_default(),
            time: Timestamp(row.event_time),
            received_at: Timestamp(row.received_at),
            quantity: quantity_of(&row.quantity)?,
            key: row.idempotency_key,
            metadata: metadata_of(row.metadata.as_deref())?,
        })
    }
}

/// Stored metadata; absent is the empty object.
pub fn metadata_of(text: Option<&str>) -> Result<Map, DbError> {
    match text {
        None => Ok(Map::new()),
        Some(text) => object_of(text),
    }
}

fn object_of(text: &str) -> Result<Map, DbError> {
    json::parse_object(text).ok_or_else(|| crate::error::Error::internal("stored JSON cannot be read").into())
}

impl Row for RawEvent<'_> {
    fn held(&self, field: &Field) -> Option<Held<'_>> {
        match field {
            Field::Subject => Some(Held::Text(&self.subject)),
            Field::Meter => Some(Held::Text(self.meter)),
            Field::Quantity => Some(Held::Number(&self.quantity)),
            Field::EventTime => Some(Held::Time(self.time)),
            Field::ReceivedAt => Some(Held::Time(self.received_at)),
            Field::IdempotencyKey => self.key.as_deref().map(Held::Text),
            Field::Metadata(path) => value_at(&self.metadata, path).map(Held::Json),
        }
    }
}

#[cfg(test)]
mod plans;
