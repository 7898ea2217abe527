//! Sums over windows: full hours and days from rollups, the rest from raw events. Any window, any grouping and any
//! filter gives what a recount of all events would give; rollups only make it fast. Rows are added up as they arrive.

mod slices;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Binary, Integer, Nullable, Text};
use uuid::Uuid;

use crate::db::columns::{quantity_of, readable, uuid_of};
use crate::db::schema::{dimension_sets, meters, subjects};
use crate::db::statement::{Statement, integers};
use crate::db::{Conn, DbError};
use crate::error::Error;
use crate::metering::filter::{Field, Held, Row};
use crate::metering::json::{self, Map, Value};
use crate::metering::meter::{Aggregation, Meter, value_at};
use crate::metering::quantity::Quantity;
use crate::metering::rollup::{Edge, Grain, Part};
use crate::metering::time::{BucketSize, DAY, HOUR, Timestamp, Window};
use crate::usage::facets::Facets;
use crate::usage::filter_sql::{exact, prefilter};
use crate::usage::query::{AggregatedRow, GroupField, GroupedAggregates, Query};
use crate::usage::subject_days::{self, Events};

/// Whether the statements of this query must all see one state of the database
/// ([`crate::db::Store::read_snapshot`]): an event stored, or pruned, between two of them would be counted wrong
/// where a cut hour is weighed against its rollup, or rollups against the dimension sets that they name.
pub fn needs_snapshot(query: &Query) -> bool {
    let is_cut = |at: Timestamp| at != at.floor(HOUR);
    query.rollups_since().is_some()
        && (is_cut(query.window.from) || is_cut(query.window.to) || !query.paths().is_empty())
}

/// Whether retention may be at work where this query reads raw events beside rollups. No event younger than a day
/// is ever pruned.
fn may_meet_pruning(query: &Query) -> bool {
    let young = Timestamp::now().plus(HOUR - DAY);
    let Window { from, to } = query.window;
    let is_cut = |at: Timestamp| at != at.floor(HOUR) && at < young;
    query.rollups_since().is_some()
        && (is_cut(from) || is_cut(to) || (from < young && !query.paths().is_empty()))
}

/// The query with the watermark of its meter as it is now: the meter may have been remembered for a while.
fn with_watermark(conn: &mut Conn, query: &Query) -> Result<Query, DbError> {
    let pruned_before: Option<Option<i64>> =
        meters::table.find(query.meter.id).select(meters::pruned_before).first(conn).optional()?;
    let mut query = query.clone();
    let pruned_before = pruned_before.flatten().map(Timestamp);
    if pruned_before != query.meter.pruned_before {
        query.meter = Arc::new(Meter { pruned_before, ..(*query.meter).clone() });
    }
    Ok(query)
}

/// Adds up the events of a query, per bucket and group, and keeps the first `most` rows. Read at one instant when
/// [`needs_snapshot`].
pub fn cells(conn: &mut Conn, query: &Query, most: usize) -> Result<GroupedAggregates, DbError> {
    let query = if may_meet_pruning(query) { &with_watermark(conn, query)? } else { query };
    let subjects = match query.only_subjects() {
        Some(names) => {
            let names: Vec<&str> = names.into_iter().collect();
            let ids = subject_ids(conn, query.meter.workspace_id, &names)?;
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
        cells: GroupedAggregates::first(most),
    };
    match query.rollups_since() {
        None => sum.add_raw(conn, query.window, None)?,
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

/// Dimension values by the hash that rollups carry.
type Sets = HashMap<Vec<u8>, Set>;

/// What the dimension sets of a query may take in memory, about.
const SETS_BYTES_MAX: usize = 128 << 20;
/// Of a set, without the texts in it.
const SET_BYTES: usize = 250;

fn text_bytes(value: &Value) -> usize {
    value.as_str().map_or(0, str::len)
}

struct Set {
    version: i32,
    values: Map,
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
    cells: GroupedAggregates,
}

impl Sum<'_> {
    /// Sums for what lies wholly inside the window, raw events for the rest. `since` is the meter version from
    /// which sums know the dimensions of the query; events stored before it are read one by one.
    fn add_all(&mut self, conn: &mut Conn, since: i32) -> Result<(), DbError> {
        self.hour_by_hour = self.query.meter.pruned_before.is_some() && self.has_old_sets(conn, since)?;
        let whole = self.whole_hours(conn)?;
        if let Some(hours) = whole.hours {
            self.add_hours(conn, hours, since)?;
        }
        for edge in whole.edges {
            self.add_raw(conn, edge, None)?;
        }
        // events from before a dimension was declared, as far as they are still stored
        if let (Some(hours), Some(old)) = (whole.hours, self.left_out) {
            let from = hours.from.max(old.from).max(self.pruned_before());
            let to = hours.to.min(old.to);
            if from < to {
                self.add_raw(conn, Window { from, to }, Some(since))?;
            }
        }
        Ok(())
    }

    fn add_hours(&mut self, conn: &mut Conn, hours: Window, since: i32) -> Result<(), DbError> {
        let asks_dimensions = !self.query.paths().is_empty();
        match self.subjects {
            Subjects::All if asks_dimensions => self.add_facets(conn, hours, since),
            Subjects::All => {
                for (grain, part) in self.split_days(hours) {
                    self.add_rollups(conn, grain, part, &Sets::new(), since)?;
                }
                Ok(())
            }
            Subjects::Each => {
                let sets = self.sets(conn)?;
                self.add_each(conn, hours, &sets, since)
            }
            Subjects::Only(_) => {
                let sets = self.sets(conn)?;
                self.add_rollups(conn, Grain::SubjectHour, hours, &sets, since)
            }
        }
    }

    /// By dimensions of all subjects. Days with too many sets for facets are read from the rows of every subject.
    fn add_facets(&mut self, conn: &mut Conn, hours: Window, since: i32) -> Result<(), DbError> {
        let facets = Facets {
            query: self.query,
            since,
            pruned_before: self.pruned_before(),
            hours,
            by_hour: self.hour_by_hour || self.query.bucket_size == Some(BucketSize::Hour),
            cells: &mut self.cells,
            lost: BTreeSet::new(),
        };
        let rest = facets.add_up(conn)?;
        self.left_out = rest.left_out;
        if rest.too_large.is_empty() {
            return Ok(());
        }
        let sets = self.sets(conn)?;
        for day in rest.too_large {
            self.add_rollups(conn, Grain::SubjectHour, day, &sets, since)?;
        }
        Ok(())
    }

    /// Whether anything is stored from before a dimension of the query was declared.
    fn has_old_sets(&self, conn: &mut Conn, since: i32) -> Result<bool, DbError> {
        let oldest: Option<i32> = dimension_sets::table
            .filter(dimension_sets::meter_id.eq(self.query.meter.id))
            .select(diesel::dsl::min(dimension_sets::version))
            .first(conn)?;
        Ok(!self.query.paths().is_empty() && oldest.is_some_and(|oldest| oldest < since))
    }

    fn pruned_before(&self) -> Timestamp {
        self.query.meter.pruned_before.map_or(Timestamp(i64::MIN), |at| at.ceil(HOUR))
    }

    /// The dimension sets of the meter, when the query looks at dimensions at all, with the values it looks at.
    fn sets(&self, conn: &mut Conn) -> Result<Sets, DbError> {
        let (mut sets, paths) = (Sets::new(), self.query.paths());
        if paths.is_empty() {
            return Ok(sets);
        }
        let mut statement = Statement::new(conn);
        let meter_id = statement.int(self.query.meter.id);
        let sql = format!("SELECT hash, version, dimensions FROM dimension_sets WHERE meter_id = {meter_id}");
        let mut bytes = 0;
        statement.each(conn, &sql, |row: SetRow| {
            // without values the set's events still count
            let mut values = readable("dimension_sets", self.query.meter.id, object_of(&row.dimensions))
                .unwrap_or_default();
            values.retain(|name, _| paths.contains(name.as_str()));
            bytes += SET_BYTES + values.values().map(text_bytes).sum::<usize>();
            if bytes > SETS_BYTES_MAX {
                return Err(Error::query_too_large().into());
            }
            sets.insert(row.hash, Set { version: row.version, values });
            Ok(())
        })?;
        Ok(sets)
    }

    /// Cuts the window into whole hours and up to two edges of less than an hour. An edge whose hour holds no event
    /// on the far side of the cut counts as a whole hour: the usual "until now" needs no raw events.
    fn whole_hours(&self, conn: &mut Conn) -> Result<Whole, DbError> {
        let Window { from, to } = self.query.window;
        let (mut first, mut last) = (from.ceil(HOUR), to.floor(HOUR));
        let mut edges = Vec::new();
        if first > last {
            // the window lies inside one hour
            if self.hour_lies_inside(conn, last)? {
                return Ok(Whole { hours: Some(Window { from: last, to: first }), edges });
            }
            let edges = if self.is_gone(first) { Vec::new() } else { vec![self.query.window] };
            return Ok(Whole { hours: None, edges });
        }
        if from < first {
            if self.hour_lies_inside(conn, first.plus(-HOUR))? {
                first = first.plus(-HOUR);
            } else if !self.is_gone(first) {
                edges.push(Window { from, to: first });
            }
        }
        if last < to {
            if self.hour_lies_inside(conn, last)? {
                last = last.plus(HOUR);
            } else {
                edges.push(Window { from: last, to });
            }
        }
        let hours = (first < last).then_some(Window { from: first, to: last });
        Ok(Whole { hours, edges })
    }

    /// Whether the hour that ends here was pruned. It then belongs to the window that it starts in, late events that
    /// are still stored included.
    fn is_gone(&self, end: Timestamp) -> bool {
        self.query.meter.pruned_before.is_some_and(|pruned_before| end <= pruned_before)
    }

    /// Whether all events of this hour, as far as the query sees them, are inside the window. The raw events of a
    /// pruned hour are gone: such an hour belongs to the window that it starts in.
    fn hour_lies_inside(&self, conn: &mut Conn, hour: Timestamp) -> Result<bool, DbError> {
        let Window { from, to } = self.query.window;
        let rows = match &self.subjects {
            Subjects::Only(ids) => format!("grain = 0 AND subject_id IN ({})", integers(ids)),
            Subjects::All | Subjects::Each => "grain = 1".to_owned(),
        };
        let text = format!(
            "SELECT MIN(first_at) AS first_at, MAX(last_at) AS last_at FROM rollups
             WHERE meter_id = $1 AND start = $2 AND {rows}"
        );
        let span: AssignmentPeriod = sql_query(text)
            .bind::<BigInt, _>(self.query.meter.id)
            .bind::<BigInt, _>(hour.0)
            .get_result(conn)?;
        let inside = match (span.first_at, span.last_at) {
            (Some(first), Some(last)) => first >= from.0 && last < to.0,
            _ => true,
        };
        Ok(inside || (hour < self.pruned_before() && from <= hour && hour < to))
    }

    /// Whole days come from day rows, which are kept per meter.
    fn split_days(&self, hours: Window) -> Vec<(Grain, Window)> {
        let days = Window { from: hours.from.ceil(DAY), to: hours.to.floor(DAY) };
        let by_hour = self.hour_by_hour || self.query.bucket_size == Some(BucketSize::Hour);
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

    /// Every subject of a meter may be millions of rows: reads them piece by piece, so that the database sorts little
    /// at once, and no more than the first rows of the answer need.
    fn add_each(&mut self, conn: &mut Conn, hours: Window, sets: &Sets, since: i32) -> Result<(), DbError> {
        let days: Vec<DayRow> = sql_query(
            "SELECT start, CAST(SUM(event_count) AS BIGINT) AS event_count FROM rollups
             WHERE meter_id = $1 AND grain = 2 AND start >= $2 AND start < $3 GROUP BY start ORDER BY start",
        )
        .bind::<BigInt, _>(self.query.meter.id)
        .bind::<BigInt, _>(hours.from.floor(DAY).0)
        .bind::<BigInt, _>(hours.to.0)
        .load(conn)?;
        let days: Vec<(Timestamp, i64)> =
            days.iter().map(|day| (Timestamp(day.start), day.event_count)).collect();
        for piece in slices::of(hours, &days) {
            if self.cells.wants(self.query.bucket(piece.from)) {
                self.add_rollups(conn, Grain::SubjectHour, piece, sets, since)?;
            }
        }
        Ok(())
    }

    fn add_rollups(
        &mut self,
        conn: &mut Conn,
        grain: Grain,
        window: Window,
        sets: &Sets,
        since: i32,
    ) -> Result<(), DbError> {
        let hours = match &self.subjects {
            Subjects::Only(ids) if let [id] = ids.as_slice() => {
                match subject_days::hours(conn, *id, window)? {
                    hours if hours.is_empty() => return Ok(()),
                    hours => hours,
                }
            }
            _ => Vec::new(),
        };
        let mut statement = Statement::new(conn);
        let sql = self.rollup_sql(&mut statement, grain, window, &hours, !sets.is_empty());
        let pruned_before = self.pruned_before();
        let nothing = Map::new();
        let (query, cells, left_out) = (self.query, &mut self.cells, &mut self.left_out);
        statement.each(conn, &sql, |row: RollupRow| {
            let start = Timestamp(row.start);
            let values = match sets.get(&row.dimension_set) {
                // read from raw events instead, unless those are gone
                Some(set) if set.version < since && start >= pruned_before => {
                    let span =
                        Window { from: Timestamp(row.low), to: Timestamp(row.high).plus(grain.width()) };
                    *left_out = Some(left_out.map_or(span, |other| other.hull(span)));
                    return Ok(());
                }
                Some(set) => &set.values,
                None => &nothing,
            };
            let subject = row.subject.as_deref().unwrap_or_default();
            let summed = AggregatedRow { meter: &query.meter.name, subject, dimensions: values };
            if let Some(group) = query.group(&summed)
                && let Some(part) = readable("rollups", row.start, row.into_part())
            {
                cells.add(query.bucket(start), group, &part)?;
            }
            Ok(())
        })
    }

    /// The start that rows are added up under: months are put together from days, because they differ in length.
    fn bucket_sql(&self) -> String {
        match self.query.bucket_size {
            _ if self.hour_by_hour => "r.start".to_owned(),
            Some(BucketSize::Hour) => "r.start".to_owned(),
            Some(_) => format!("r.start - ((r.start % {DAY}) + {DAY}) % {DAY}"),
            None => format!("CAST({} AS BIGINT)", self.query.window.from.0),
        }
    }

    /// Rollup rows, added up by the database as far as the query allows: per bucket, and per subject and dimension
    /// set when it looks at them. First and last events cannot be added up in SQL and come row by row.
    fn rollup_sql(
        &self,
        statement: &mut Statement,
        grain: Grain,
        window: Window,
        hours: &[i64],
        with_sets: bool,
    ) -> String {
        let postgres = statement.is_postgres;
        let meter_id = statement.int(self.query.meter.id);
        let mut bounds = || (statement.int(window.from.0), statement.int(window.to.0));
        let (tables, condition) = match &self.subjects {
            Subjects::All | Subjects::Each => {
                let (from, to) = bounds();
                let grain = grain as i16;
                let condition = format!(
                    "r.meter_id = {meter_id} AND r.grain = {grain} AND r.start >= {from} AND r.start < {to}"
                );
                ("rollups r".to_owned(), condition)
            }
            Subjects::Only(ids) => match ids.as_slice() {
                [id] => subject_days::rollups_at(postgres, &meter_id, *id, hours),
                ids => {
                    let (from, to) = bounds();
                    subject_days::rollups(postgres, &meter_id, ids, &from, Some(&to))
                }
            },
        };
        let condition = format!("FROM {tables} WHERE {condition}");
        let needs_edges = matches!(self.query.meter.aggregation, Aggregation::First | Aggregation::Last);
        let bucket = self.bucket_sql();
        let rows = match needs_edges {
            true => single_rows(postgres, &bucket, &condition),
            false => grouped_rows(postgres, &bucket, &condition, self.named, with_sets),
        };
        match self.named {
            true => format!(
                "SELECT sums.*, s.name AS subject FROM ({rows}) sums JOIN subjects s ON s.id = sums.subject_id"
            ),
            false => format!("SELECT sums.*, NULL AS subject FROM ({rows}) sums"),
        }
    }

    /// Raw events, added up by the database where it can and one by one where not; `before` limits them to those checked under an older version of the meter.
    fn add_raw(&mut self, conn: &mut Conn, window: Window, before: Option<i32>) -> Result<(), DbError> {
        let mut statement = Statement::new(conn);
        if let Some(sql) = self.raw_sums_sql(&mut statement, window, before) {
            let (query, cells) = (self.query, &mut self.cells);
            return statement.each(conn, &sql, |row: RollupRow| {
                let group = row.subject.iter().cloned().collect();
                Ok(cells.add(query.bucket(Timestamp(row.start)), group, &row.into_part()?)?)
            });
        }
        let mut statement = Statement::new(conn);
        let sql = self.raw_sql(&mut statement, window, before);
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

    fn raw_sql(&self, statement: &mut Statement, window: Window, before: Option<i32>) -> String {
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
        let (tables, condition) = self.raw_events(statement, window, before);
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

    /// FROM and WHERE for the raw events `e` in a window.
    fn raw_events(&self, statement: &mut Statement, window: Window, before: Option<i32>) -> (String, String) {
        let Window { from, to } = window;
        let (meter_id, low, high) =
            (statement.int(self.query.meter.id), statement.int(from.0), statement.int(to.0));
        let time = format!("e.event_time >= {low} AND e.event_time < {high}");
        let (tables, mut condition) = match &self.subjects {
            Subjects::Only(ids) => {
                let subjects = format!("IN ({})", integers(ids));
                let Events { tables, condition, sign, .. } =
                    subject_days::events(statement, &subjects, window);
                (tables, format!("{condition} AND {sign}e.meter_id = {meter_id} AND {time}"))
            }
            Subjects::All | Subjects::Each => {
                ("events e".to_owned(), format!("e.meter_id = {meter_id} AND {time}"))
            }
        };
        if let Some(version) = before {
            condition.push_str(&format!(" AND e.meter_version < {version}"));
        }
        (tables, condition)
    }

    /// Raw events added up in SQL, a row per bucket and subject; `None` where that takes a look at each event.
    fn raw_sums_sql(&self, statement: &mut Statement, window: Window, before: Option<i32>) -> Option<String> {
        let by_subject = match self.query.group_by.as_slice() {
            [] => false,
            [GroupField::Subject] => true,
            _ => return None,
        };
        if matches!(self.query.meter.aggregation, Aggregation::First | Aggregation::Last) {
            return None;
        }
        let (tables, mut condition) = self.raw_events(statement, window, before);
        if let Some(filter) = &self.query.filter {
            let filter = exact(filter, self.query.meter.workspace_id, statement)?;
            condition.push_str(&format!(" AND {filter}"));
        }
        let width = if self.query.bucket_size == Some(BucketSize::Hour) { HOUR } else { DAY };
        let bucket = match self.query.bucket_size {
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
            false => format!("SELECT sums.*, NULL AS subject FROM ({rows}) sums"),
        })
    }
}

struct Whole {
    hours: Option<Window>,
    edges: Vec<Window>,
}

fn quantity_text(postgres: bool, column: &str) -> String {
    if postgres { format!("({column})::text") } else { format!("quantity_text({column})") }
}

/// Rollups with their first and last events, one by one.
fn single_rows(postgres: bool, bucket: &str, condition: &str) -> String {
    let text = |column: &str| quantity_text(postgres, column);
    format!(
        "SELECT {bucket} AS start, r.subject_id, r.dimension_set, r.event_count, {} AS quantity_sum,
                {} AS quantity_min, {} AS quantity_max, r.first_at, r.first_id, {} AS first_quantity,
                r.last_at, r.last_id, {} AS last_quantity, r.start AS low, r.start AS high
         {condition}",
        text("r.quantity_sum"),
        text("r.quantity_min"),
        text("r.quantity_max"),
        text("r.first_quantity"),
        text("r.last_quantity"),
    )
}

fn grouped_rows(postgres: bool, bucket: &str, condition: &str, by_subject: bool, by_set: bool) -> String {
    let total = if postgres { "SUM" } else { "quantity_total" };
    let count = if postgres { "SUM(r.event_count)::bigint" } else { "SUM(r.event_count)" };
    let empty_set = if postgres { "''::bytea" } else { "x''" };
    let (subject, subject_key) =
        if by_subject { ("r.subject_id", ", 2") } else { ("CAST(0 AS BIGINT) AS subject_id", "") };
    let (set, set_key) = if by_set { ("r.dimension_set", ", 3") } else { (empty_set, "") };
    format!(
        "SELECT {bucket} AS start, {subject}, {set} AS dimension_set, {count} AS event_count,
                {} AS quantity_sum, {} AS quantity_min, {} AS quantity_max,
                CAST(NULL AS BIGINT) AS first_at, NULL AS first_id, NULL AS first_quantity,
                CAST(NULL AS BIGINT) AS last_at, NULL AS last_id, NULL AS last_quantity,
                MIN(r.start) AS low, MAX(r.start) AS high
         {condition} GROUP BY 1{subject_key}{set_key}",
        quantity_text(postgres, &format!("{total}(r.quantity_sum)")),
        quantity_text(postgres, "MIN(r.quantity_min)"),
        quantity_text(postgres, "MAX(r.quantity_max)"),
    )
}

/// Events in the shape of [`grouped_rows`].
fn summed_events(postgres: bool, bucket: &str, source: &str, by_subject: bool) -> String {
    let total = if postgres { "SUM" } else { "quantity_total" };
    let empty_set = if postgres { "''::bytea" } else { "x''" };
    let (subject, subject_key) =
        if by_subject { ("e.subject_id", ", 2") } else { ("CAST(0 AS BIGINT) AS subject_id", "") };
    format!(
        "SELECT {bucket} AS start, {subject}, {empty_set} AS dimension_set, COUNT(*) AS event_count,
                {} AS quantity_sum, {} AS quantity_min, {} AS quantity_max,
                CAST(NULL AS BIGINT) AS first_at, NULL AS first_id, NULL AS first_quantity,
                CAST(NULL AS BIGINT) AS last_at, NULL AS last_id, NULL AS last_quantity,
                CAST(0 AS BIGINT) AS low, CAST(0 AS BIGINT) AS high
         {source} GROUP BY 1{subject_key}",
        quantity_text(postgres, &format!("{total}(e.quantity)")),
        quantity_text(postgres, "MIN(e.quantity)"),
        quantity_text(postgres, "MAX(e.quantity)"),
    )
}

#[derive(QueryableByName)]
struct AssignmentPeriod {
    #[diesel(sql_type = Nullable<BigInt>)]
    first_at: Option<i64>,
    #[diesel(sql_type = Nullable<BigInt>)]
    last_at: Option<i64>,
}

#[derive(QueryableByName)]
struct DayRow {
    #[diesel(sql_type = BigInt)]
    start: i64,
    #[diesel(sql_type = BigInt)]
    event_count: i64,
}

#[derive(QueryableByName)]
struct SetRow {
    #[diesel(sql_type = Binary)]
    hash: Vec<u8>,
    #[diesel(sql_type = Integer)]
    version: i32,
    #[diesel(sql_type = Text)]
    dimensions: String,
}

#[derive(QueryableByName)]
struct RollupRow {
    #[diesel(sql_type = BigInt)]
    start: i64,
    #[diesel(sql_type = Nullable<Text>)]
    subject: Option<String>,
    #[diesel(sql_type = Binary)]
    dimension_set: Vec<u8>,
    #[diesel(sql_type = BigInt)]
    event_count: i64,
    #[diesel(sql_type = Text)]
    quantity_sum: String,
    #[diesel(sql_type = Text)]
    quantity_min: String,
    #[diesel(sql_type = Text)]
    quantity_max: String,
    #[diesel(sql_type = Nullable<BigInt>)]
    first_at: Option<i64>,
    #[diesel(sql_type = Nullable<Binary>)]
    first_id: Option<Vec<u8>>,
    #[diesel(sql_type = Nullable<Text>)]
    first_quantity: Option<String>,
    #[diesel(sql_type = Nullable<BigInt>)]
    last_at: Option<i64>,
    #[diesel(sql_type = Nullable<Binary>)]
    last_id: Option<Vec<u8>>,
    #[diesel(sql_type = Nullable<Text>)]
    last_quantity: Option<String>,
    /// Starts of the first and the last rollup in this row.
    #[diesel(sql_type = BigInt)]
    low: i64,
    #[diesel(sql_type = BigInt)]
    high: i64,
}

impl RollupRow {
    fn into_part(self) -> Result<Part, DbError> {
        let edge = |at: Option<i64>, id: Option<Vec<u8>>, quantity: Option<String>| match (at, id, quantity) {
            (Some(at), Some(id), Some(quantity)) => Ok::<_, DbError>(Some(Edge {
                at: Timestamp(at),
                id: uuid_of(&id)?,
                quantity: quantity_of(&quantity)?,
            })),
            _ => Ok(None),
        };
        let first = edge(self.first_at, self.first_id, self.first_quantity)?;
        let last = edge(self.last_at, self.last_id, self.last_quantity)?;
        Ok(Part {
            count: self.event_count,
            sum: quantity_of(&self.quantity_sum)?,
            min: quantity_of(&self.quantity_min)?,
            max: quantity_of(&self.quantity_max)?,
            edges: first.zip(last),
        })
    }
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
