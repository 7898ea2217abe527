//! Sums over windows: full hours and days from rollups, the rest from raw events. Any window, any grouping and any
//! condition gives what a recount of all events would give; rollups only make it fast.

use std::collections::HashMap;
use std::sync::Arc;

use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Binary, Nullable, SmallInt, Text};
use serde_json::{Map, Value};

use crate::meter::{Aggregation, Meter};
use crate::rollup::{Edge, Grain, Part, merge};
use crate::store::events::{quantity_of, uuid_of};
use crate::store::schema::{dimension_sets, meters, subjects};
use crate::store::{Conn, Fault};
use crate::usage::{Cells, Query};
use crate::window::{BucketSize, DAY, HOUR, Micros, Window};

/// Whether retention may be at work where this query reads raw events beside rollups. Then all of it must be read
/// at one instant ([`crate::store::Store::read_snapshot`]). No event younger than a day is ever pruned.
pub fn may_meet_pruning(query: &Query) -> bool {
    let young = Micros::now().plus(HOUR - DAY);
    let Window { from, to } = query.window;
    let is_cut = |at: Micros| at != at.floor(HOUR) && at < young;
    query.rollups_since().is_some()
        && (is_cut(from) || is_cut(to) || (from < young && !query.paths().is_empty()))
}

/// The query with the watermark of its meter as it is now: the meter may have been remembered for a while.
fn with_watermark(conn: &mut Conn, query: &Query) -> Result<Query, Fault> {
    let pruned_before: Option<Option<i64>> =
        meters::table.find(query.meter.id).select(meters::pruned_before).first(conn).optional()?;
    let mut query = query.clone();
    let pruned_before = pruned_before.flatten().map(Micros);
    if pruned_before != query.meter.pruned_before {
        query.meter = Arc::new(Meter { pruned_before, ..(*query.meter).clone() });
    }
    Ok(query)
}

/// Adds up the events of a query, per bucket and group. Read at one instant when [`may_meet_pruning`].
pub fn cells(conn: &mut Conn, query: &Query) -> Result<Cells, Fault> {
    let query = if may_meet_pruning(query) { &with_watermark(conn, query)? } else { query };
    let subject_id = match &query.subject {
        None => None,
        Some(name) => match subject_id(conn, query.meter.workspace_id, name)? {
            Some(id) => Some(id),
            None => return Ok(Cells::new()),
        },
    };
    let mut sum = Sum { query, subject_id, hour_by_hour: false, names: HashMap::new(), cells: Cells::new() };
    match query.rollups_since() {
        None => sum.add_raw(conn, query.window, None)?,
        Some(since) => sum.add_all(conn, since)?,
    }
    Ok(sum.cells)
}

fn subject_id(conn: &mut Conn, workspace_id: i64, name: &str) -> Result<Option<i64>, Fault> {
    Ok(subjects::table
        .filter(subjects::workspace_id.eq(workspace_id).and(subjects::name.eq(name)))
        .select(subjects::id)
        .first(conn)
        .optional()?)
}

/// Dimension values by the hash that rollups carry.
type Sets = HashMap<Vec<u8>, Set>;

struct Set {
    version: i32,
    values: Map<String, Value>,
}

struct Sum<'q> {
    query: &'q Query,
    subject_id: Option<i64>,
    /// Some rollups are too old to know a dimension and their events are partly pruned: which of the two answers
    /// for an hour can then only be told hour by hour.
    hour_by_hour: bool,
    /// Names of subjects met so far, when rows are grouped by them.
    names: HashMap<i64, String>,
    cells: Cells,
}

impl Sum<'_> {
    /// Rollups for what lies wholly inside the window, raw events for the rest. `since` is the meter version from
    /// which rollups know the dimensions of the query; events stored before it are read one by one.
    fn add_all(&mut self, conn: &mut Conn, since: i32) -> Result<(), Fault> {
        let sets = self.sets(conn, since)?;
        let has_old_sets = sets.values().any(|set| set.version < since);
        self.hour_by_hour = has_old_sets && self.query.meter.pruned_before.is_some();
        let whole = self.whole_hours(conn)?;
        if let Some(whole) = whole.hours {
            for (grain, part) in self.split_days(whole) {
                self.add_rollups(conn, grain, part, &sets, since)?;
            }
        }
        for edge in whole.edges {
            self.add_raw(conn, edge, None)?;
        }
        // events from before a dimension was declared, as far as they are still stored
        if let (Some(hours), true) = (whole.hours, has_old_sets) {
            let from = hours.from.max(self.pruned_before());
            if from < hours.to {
                self.add_raw(conn, Window { from, to: hours.to }, Some(since))?;
            }
        }
        Ok(())
    }

    fn pruned_before(&self) -> Micros {
        self.query.meter.pruned_before.map_or(Micros(i64::MIN), |at| at.ceil(HOUR))
    }

    /// The dimension sets of the meter, when the query looks at dimensions at all.
    fn sets(&self, conn: &mut Conn, since: i32) -> Result<Sets, Fault> {
        if since == 0 && self.query.paths().is_empty() {
            return Ok(Sets::new());
        }
        let rows: Vec<(Vec<u8>, i32, String)> = dimension_sets::table
            .filter(dimension_sets::meter_id.eq(self.query.meter.id))
            .select((dimension_sets::hash, dimension_sets::version, dimension_sets::dimensions))
            .load(conn)?;
        rows.into_iter()
            .map(|(hash, version, json)| {
                let values = serde_json::from_str(&json).map_err(crate::error::Error::internal)?;
                Ok((hash, Set { version, values }))
            })
            .collect()
    }

    /// Cuts the window into whole hours and up to two edges of less than an hour. An edge whose hour holds no event
    /// on the far side of the cut counts as a whole hour: the usual "until now" needs no raw events.
    fn whole_hours(&self, conn: &mut Conn) -> Result<Whole, Fault> {
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
    fn is_gone(&self, end: Micros) -> bool {
        self.query.meter.pruned_before.is_some_and(|pruned_before| end <= pruned_before)
    }

    /// Whether all events of this hour, as far as the query sees them, are inside the window. The raw events of a
    /// pruned hour are gone: such an hour belongs to the window that it starts in.
    fn hour_lies_inside(&self, conn: &mut Conn, hour: Micros) -> Result<bool, Fault> {
        let Window { from, to } = self.query.window;
        let text = "SELECT MIN(first_at) AS first_at, MAX(last_at) AS last_at FROM rollups
                    WHERE meter_id = $1 AND subject_id = $2 AND grain = 0 AND start = $3";
        let span: Span = sql_query(text)
            .bind::<BigInt, _>(self.query.meter.id)
            .bind::<BigInt, _>(self.subject_id.unwrap_or(crate::rollup::ALL_SUBJECTS))
            .bind::<BigInt, _>(hour.0)
            .get_result(conn)?;
        let inside = match (span.first_at, span.last_at) {
            (Some(first), Some(last)) => first >= from.0 && last < to.0,
            _ => true,
        };
        Ok(inside || (hour < self.pruned_before() && from <= hour && hour < to))
    }

    /// Whole days come from day rows where those exist: they are kept per meter, not per subject.
    fn split_days(&self, hours: Window) -> Vec<(Grain, Window)> {
        let by_subject = self.subject_id.is_some() || self.query.groups_by_subject();
        let days = Window { from: hours.from.ceil(DAY), to: hours.to.floor(DAY) };
        let by_hour = self.hour_by_hour || self.query.bucket_size == Some(BucketSize::Hour);
        if by_subject || by_hour || days.from >= days.to {
            return vec![(Grain::Hour, hours)];
        }
        let parts = [
            (Grain::Hour, Window { from: hours.from, to: days.from }),
            (Grain::Day, days),
            (Grain::Hour, Window { from: days.to, to: hours.to }),
        ];
        parts.into_iter().filter(|(_, window)| window.from < window.to).collect()
    }

    fn add_rollups(
        &mut self,
        conn: &mut Conn,
        grain: Grain,
        window: Window,
        sets: &Sets,
        since: i32,
    ) -> Result<(), Fault> {
        let rows = self.load_rollups(conn, grain, window, !sets.is_empty())?;
        if self.query.groups_by_subject() {
            self.learn_names(conn, rows.iter().map(|row| row.subject_id))?;
        }
        let pruned_before = self.pruned_before();
        let nothing = Map::new();
        for row in rows {
            let start = Micros(row.start);
            let values = match sets.get(&row.dimension_set) {
                // read from raw events instead, unless those are gone
                Some(set) if set.version < since && start >= pruned_before => continue,
                Some(set) => &set.values,
                None => &nothing,
            };
            let subject = self.names.get(&row.subject_id).map(String::as_str);
            if let Some(group) = self.query.group_of_set(subject, values) {
                merge(&mut self.cells, (self.query.bucket(start), group), row.into_part()?);
            }
        }
        Ok(())
    }

    /// Rollup rows, added up by the database as far as the query allows: per bucket, and per subject and dimension
    /// set when it looks at them. First and last events cannot be added up in SQL and come row by row.
    fn load_rollups(
        &self,
        conn: &mut Conn,
        grain: Grain,
        window: Window,
        with_sets: bool,
    ) -> Result<Vec<RollupRow>, Fault> {
        let by_subject = self.query.groups_by_subject();
        let needs_edges = matches!(self.query.meter.aggregation, Aggregation::First | Aggregation::Last);
        let text = rollup_sql(conn.is_postgres(), self.bucket_sql(), by_subject, with_sets, needs_edges);
        let text = text.replace(
            "{subject}",
            if by_subject && self.subject_id.is_none() { "subject_id > $2" } else { "subject_id = $2" },
        );
        Ok(sql_query(text)
            .bind::<BigInt, _>(self.query.meter.id)
            .bind::<BigInt, _>(self.subject_id.unwrap_or(crate::rollup::ALL_SUBJECTS))
            .bind::<SmallInt, _>(grain as i16)
            .bind::<BigInt, _>(window.from.0)
            .bind::<BigInt, _>(window.to.0)
            .load(conn)?)
    }

    /// The start that rows are added up under: months are put together from days, because they differ in length.
    fn bucket_sql(&self) -> String {
        match self.query.bucket_size {
            _ if self.hour_by_hour => "start".to_owned(),
            Some(BucketSize::Hour) => "start".to_owned(),
            Some(_) => format!("start - ((start % {DAY}) + {DAY}) % {DAY}"),
            None => format!("CAST({} AS BIGINT)", self.query.window.from.0),
        }
    }

    fn learn_names(&mut self, conn: &mut Conn, ids: impl Iterator<Item = i64>) -> Result<(), Fault> {
        let mut missing: Vec<i64> = ids.filter(|id| !self.names.contains_key(id)).collect();
        missing.sort_unstable();
        missing.dedup();
        for ids in missing.chunks(5_000) {
            let names: Vec<(i64, String)> = subjects::table
                .filter(subjects::id.eq_any(ids))
                .select((subjects::id, subjects::name))
                .load(conn)?;
            self.names.extend(names);
        }
        Ok(())
    }

    /// Raw events one by one; `before` limits them to those checked under an older version of the meter.
    fn add_raw(&mut self, conn: &mut Conn, window: Window, before: Option<i32>) -> Result<(), Fault> {
        let quantity = if conn.is_postgres() { "quantity::text" } else { "quantity_text(quantity)" };
        let metadata = match (self.query.paths().is_empty(), conn.is_postgres()) {
            (true, _) => "NULL",
            (false, true) => "metadata::text",
            (false, false) => "metadata",
        };
        let subject = if self.subject_id.is_some() { "subject_id = $4" } else { "subject_id > $4" };
        let text = format!(
            "SELECT id, subject_id, event_time, {quantity} AS quantity, {metadata} AS metadata FROM events
             WHERE meter_id = $1 AND event_time >= $2 AND event_time < $3 AND {subject} AND meter_version < $5"
        );
        let rows: Vec<RawRow> = sql_query(text)
            .bind::<BigInt, _>(self.query.meter.id)
            .bind::<BigInt, _>(window.from.0)
            .bind::<BigInt, _>(window.to.0)
            .bind::<BigInt, _>(self.subject_id.unwrap_or(0))
            .bind::<diesel::sql_types::Integer, _>(before.unwrap_or(i32::MAX))
            .load(conn)?;
        if self.query.groups_by_subject() {
            self.learn_names(conn, rows.iter().map(|row| row.subject_id))?;
        }
        let nothing = Map::new();
        for row in rows {
            let metadata = row.metadata()?;
            let subject = self.names.get(&row.subject_id).map(String::as_str);
            let group = self.query.group_of_event(subject, metadata.as_ref().unwrap_or(&nothing));
            if let Some(group) = group {
                let at = Micros(row.event_time);
                let part = Part::of(at, uuid_of(&row.id)?, &quantity_of(&row.quantity)?);
                merge(&mut self.cells, (self.query.bucket(at), group), part);
            }
        }
        Ok(())
    }
}

struct Whole {
    hours: Option<Window>,
    edges: Vec<Window>,
}

fn rollup_sql(
    postgres: bool,
    bucket: String,
    by_subject: bool,
    with_sets: bool,
    needs_edges: bool,
) -> String {
    let text = |column: &str| {
        if postgres { format!("({column})::text") } else { format!("quantity_text({column})") }
    };
    let sum =
        |column: &str| if postgres { format!("SUM({column})") } else { format!("quantity_total({column})") };
    let count = if postgres { "SUM(event_count)::bigint" } else { "SUM(event_count)" };
    let condition = "WHERE meter_id = $1 AND {subject} AND grain = $3 AND start >= $4 AND start < $5";
    if needs_edges {
        return format!(
            "SELECT {bucket} AS start, subject_id, dimension_set, event_count, {} AS quantity_sum,
                    {} AS quantity_min, {} AS quantity_max, first_at, first_id, {} AS first_quantity,
                    last_at, last_id, {} AS last_quantity
             FROM rollups {condition}",
            text("quantity_sum"),
            text("quantity_min"),
            text("quantity_max"),
            text("first_quantity"),
            text("last_quantity"),
        );
    }
    let empty_set = if postgres { "''::bytea" } else { "x''" };
    let (subject, set) = (
        if by_subject { "subject_id" } else { "CAST(0 AS BIGINT)" },
        if with_sets { "dimension_set" } else { empty_set },
    );
    let mut keys = vec!["1"];
    if by_subject {
        keys.push("2");
    }
    if with_sets {
        keys.push("3");
    }
    format!(
        "SELECT {bucket} AS start, {subject} AS subject_id, {set} AS dimension_set, {count} AS event_count,
                {} AS quantity_sum, {} AS quantity_min, {} AS quantity_max,
                CAST(NULL AS BIGINT) AS first_at, NULL AS first_id, NULL AS first_quantity,
                CAST(NULL AS BIGINT) AS last_at, NULL AS last_id, NULL AS last_quantity
         FROM rollups {condition} GROUP BY {}",
        text(&sum("quantity_sum")),
        text("MIN(quantity_min)"),
        text("MAX(quantity_max)"),
        keys.join(", "),
    )
}

#[derive(QueryableByName)]
struct Span {
    #[diesel(sql_type = Nullable<BigInt>)]
    first_at: Option<i64>,
    #[diesel(sql_type = Nullable<BigInt>)]
    last_at: Option<i64>,
}

#[derive(QueryableByName)]
struct RollupRow {
    #[diesel(sql_type = BigInt)]
    start: i64,
    #[diesel(sql_type = BigInt)]
    subject_id: i64,
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
}

impl RollupRow {
    fn into_part(self) -> Result<Part, Fault> {
        let edge = |at: Option<i64>, id: Option<Vec<u8>>, quantity: Option<String>| match (at, id, quantity) {
            (Some(at), Some(id), Some(quantity)) => Ok::<_, Fault>(Some(Edge {
                at: Micros(at),
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
    subject_id: i64,
    #[diesel(sql_type = BigInt)]
    event_time: i64,
    #[diesel(sql_type = Text)]
    quantity: String,
    #[diesel(sql_type = Nullable<Text>)]
    metadata: Option<String>,
}

impl RawRow {
    fn metadata(&self) -> Result<Option<Map<String, Value>>, Fault> {
        let Some(text) = &self.metadata else { return Ok(None) };
        // PostgreSQL spells numbers its own way
        let text = crate::event::canonical_metadata(text).unwrap_or_default();
        Ok(serde_json::from_str(&text).ok())
    }
}
