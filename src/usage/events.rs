//! Raw events, newest first, page by page. Events have no index of their own per workspace: a list is merged from
//! streams that have one, those of its meters or of its subjects, so that a page costs about its own length.

use std::collections::HashMap;

use diesel::prelude::*;
use diesel::sql_types::BigInt;
use uuid::Uuid;

use crate::db::columns::{readable, uuid_of};
use crate::db::schema::meters;
use crate::db::statement::{Statement, integers};
use crate::db::{Conn, DbError};
use crate::metering::filter::{Field, Filter, Held, Row};
use crate::metering::json::Map;
use crate::metering::meter::{Meter, value_at};
use crate::metering::stored::StoredEvent;
use crate::metering::time::{Timestamp, Window};
use crate::usage::aggregate::{metadata_of, subject_ids};
use crate::usage::event_row::{EventText, event_columns};
use crate::usage::filter_sql::prefilter;
use crate::usage::subject_days::{self, Events};

/// Which events are wanted. Names that are not known match nothing.
#[derive(Clone, Debug, Default)]
pub struct Search {
    pub workspace_id: i64,
    pub meter: Option<String>,
    pub subject: Option<String>,
    pub from: Option<Timestamp>,
    pub to: Option<Timestamp>,
    pub filter: Option<Filter>,
}

/// What whoever searches has read already, so that it need not be read again.
#[derive(Clone, Copy, Default)]
pub struct Known<'a> {
    /// That is searched.
    pub meter: Option<&'a Meter>,
    /// Of the subject that is searched.
    pub subject_id: Option<i64>,
}

/// Where a page ended. Ties in time are settled by the id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    pub time: Timestamp,
    pub id: Uuid,
}

/// One event of a page.
pub struct Listed {
    pub position: Position,
    pub event: StoredEvent,
}

/// Rows that one look into each stream returns at least and at most.
const LOOK_MIN: usize = 16;
const LOOK_MAX: usize = 4_000;
/// Of all streams together, and what makes the next look a smaller one: what no filter of the database knows is looked at
/// here, and held until then.
const LOOK_ALL: usize = 8_000;
const LOOK_BYTES: usize = 8 << 20;
/// Streams in one statement; SQLite takes 500 parts at most.
const STREAMS_MAX: usize = 250;

/// The next `limit` events after a position.
pub fn page(
    conn: &mut Conn,
    search: &Search,
    after: Option<Position>,
    limit: usize,
) -> Result<Vec<Listed>, DbError> {
    page_knowing(conn, search, Known::default(), after, limit)
}

/// As [`page`].
pub fn page_knowing(
    conn: &mut Conn,
    search: &Search,
    known: Known,
    after: Option<Position>,
    limit: usize,
) -> Result<Vec<Listed>, DbError> {
    let mut listed = Vec::new();
    let Some(streams) = Streams::find(conn, search, known)? else { return Ok(listed) };
    let mut after = after;
    let mut depth = streams.depth(limit.saturating_mul(2)).min(limit.max(1));
    loop {
        let (rows, is_end) = streams.look(conn, search, after, depth)?;
        let last = rows.last().map(|row| row.0);
        let bytes: usize = rows.iter().map(|(_, row)| row.metadata.as_deref().map_or(0, str::len)).sum();
        for row in rows {
            let id = row.0.id;
            listed.extend(readable("events", id, search.matching(row, !conn.is_postgres())).flatten());
            if listed.len() == limit {
                return Ok(listed);
            }
        }
        if is_end || last.is_none() {
            return Ok(listed);
        }
        after = last;
        depth = streams.next_depth(depth, bytes);
    }
}

/// The matching ones among about `count` events after a position, and where to look next; nowhere when these were
/// the last. However few events match, this takes no longer: nothing is filtered on the way.
pub fn step(
    conn: &mut Conn,
    search: &Search,
    after: Option<Position>,
    count: usize,
) -> Result<(Vec<Listed>, Option<Position>), DbError> {
    let Some(mut streams) = Streams::find(conn, search, Known::default())? else {
        return Ok((Vec::new(), None));
    };
    streams.prefiltered = false;
    let (rows, is_end) = streams.look(conn, search, after, streams.depth(count))?;
    let last = rows.last().map(|row| row.0).filter(|_| !is_end);
    let mut listed = Vec::with_capacity(rows.len());
    for row in rows {
        let id = row.0.id;
        listed.extend(readable("events", id, search.matching(row, !conn.is_postgres())).flatten());
    }
    Ok((listed, last))
}

/// One event by its id, if its time lies in a window: there is an index of times and ids for each meter, so that a window
/// costs what its length is.
pub fn find(
    conn: &mut Conn,
    workspace_id: i64,
    id: Uuid,
    window: Window,
) -> Result<Option<StoredEvent>, DbError> {
    let mut statement = Statement::new(conn);
    let (workspace_id, from, to) =
        (statement.int(workspace_id), statement.int(window.from.0), statement.int(window.to.0));
    let wanted = statement.bytes(id.as_bytes().to_vec());
    let sql = format!(
        "-- usage::events::find
         SELECT {} FROM meters m
         JOIN events e ON e.meter_id = m.id AND e.event_time >= {from} AND e.event_time < {to} AND e.id = {wanted}
         JOIN subjects s ON s.id = e.subject_id
         WHERE m.workspace_id = {workspace_id}",
        event_columns(statement.is_postgres)
    );
    let found = statement.load::<EventText>(conn, &sql)?.pop();
    found.map(|text| text.into_event(!conn.is_postgres())).transpose()
}

impl Search {
    fn matching(
        &self,
        (position, text): (Position, EventText),
        is_canonical: bool,
    ) -> Result<Option<Listed>, DbError> {
        let Some(filter) = &self.filter else {
            return Ok(Some(Listed { position, event: text.into_event(is_canonical)? }));
        };
        // reading JSON costs more than all the rest
        let metadata = match filter.fields().iter().any(|field| matches!(field, Field::Metadata(_))) {
            true => metadata_of(text.metadata.as_deref())?,
            false => Map::new(),
        };
        let event = text.into_event(is_canonical)?;
        let matches = filter.matches(&Candidate { event: &event, metadata });
        Ok(matches.then_some(Listed { position, event }))
    }
}

/// Whose events one stream holds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    Meter,
    Subject,
}

impl Of {
    fn column(self) -> &'static str {
        match self {
            Of::Meter => "meter_id",
            Of::Subject => "subject_id",
        }
    }
}

/// Of all meters of a workspace, or of those with these names.
fn meter_ids(conn: &mut Conn, workspace_id: i64, names: Option<&[String]>) -> Result<Vec<i64>, DbError> {
    let mut known = meters::table
        .filter(meters::workspace_id.eq(workspace_id))
        .select(meters::id)
        .order(meters::id)
        .into_boxed();
    if let Some(names) = names {
        known = known.filter(meters::name.eq_any(names));
    }
    Ok(known.load(conn)?)
}

/// Index ranges that together hold every event of a search, each sorted by time and id.
struct Streams {
    of: Of,
    ids: Vec<i64>,
    /// Meters to look at, where the streams are not those of meters.
    meters: Option<Vec<i64>>,
    /// The database leaves out what it knows not to match.
    prefiltered: bool,
}

impl Streams {
    /// `None` when nothing can match.
    fn find(conn: &mut Conn, search: &Search, known: Known) -> Result<Option<Self>, DbError> {
        let filter = search.filter.as_ref();
        let given = |name: &Option<String>, field: Field| -> Option<Vec<String>> {
            let filtered = filter.and_then(|filter| filter.only(&field));
            let filtered = filtered.map(|names| names.into_iter().map(str::to_owned).collect::<Vec<_>>());
            match (name, filtered) {
                (Some(name), Some(mut names)) => {
                    names.retain(|other| other == name);
                    Some(names)
                }
                (Some(name), None) => Some(vec![name.clone()]),
                (None, filtered) => filtered,
            }
        };
        let meter_names = given(&search.meter, Field::Meter);
        let meter_ids = match (known.meter, meter_names.as_deref()) {
            (Some(meter), Some([name])) if *name == meter.name => vec![meter.id],
            (_, names) => meter_ids(conn, search.workspace_id, names)?,
        };
        let streams = match given(&search.subject, Field::Subject) {
            None => Streams { of: Of::Meter, ids: meter_ids, meters: None, prefiltered: true },
            Some(names) => {
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                let ids = match (known.subject_id, names.as_slice()) {
                    (Some(id), [name]) if search.subject.as_deref() == Some(*name) => vec![id],
                    (_, names) => subject_ids(conn, search.workspace_id, names)?,
                };
                let meters = meter_names.is_some().then_some(meter_ids);
                Streams { of: Of::Subject, ids, meters, prefiltered: true }
            }
        };
        let is_empty = streams.ids.is_empty() || streams.meters.as_ref().is_some_and(Vec::is_empty);
        Ok((!is_empty).then_some(streams))
    }

    /// Rows to read of each stream for so many in all.
    fn depth(&self, count: usize) -> usize {
        count.div_ceil(self.ids.len()).clamp(LOOK_MIN, LOOK_MAX)
    }

    /// After a look at so many rows of each stream, which took so many bytes: twice as many, as far as that fits.
    fn next_depth(&self, depth: usize, bytes: usize) -> usize {
        let wanted = if bytes > LOOK_BYTES { depth / 2 } else { depth * 2 };
        let most = (LOOK_ALL / self.ids.len()).min(LOOK_MAX);
        wanted.clamp(LOOK_MIN, most.max(LOOK_MIN))
    }

    /// Up to `depth` rows of each stream, merged as far as they are certain to be complete, and whether that was all.
    fn look(
        &self,
        conn: &mut Conn,
        search: &Search,
        after: Option<Position>,
        depth: usize,
    ) -> Result<(Vec<(Position, EventText)>, bool), DbError> {
        let mut rows = Vec::new();
        for ids in self.ids.chunks(STREAMS_MAX) {
            let mut statement = Statement::new(conn);
            let sql = self.sql(&mut statement, search, after, depth, ids);
            rows.extend(statement.load::<StreamRow>(conn, &sql)?);
        }
        let mut merged = Vec::with_capacity(rows.len());
        let mut counts: HashMap<i64, (usize, Position)> = HashMap::new();
        for row in rows {
            let position = Position { time: Timestamp(row.event.event_time), id: uuid_of(&row.event.id)? };
            let (count, oldest) = counts.entry(row.stream).or_insert((0, position));
            *count += 1;
            *oldest = position.min(*oldest);
            merged.push((position, row.event));
        }
        merged.sort_unstable_by_key(|(position, _)| std::cmp::Reverse(*position));
        // a stream that was cut may have more rows right after its last one
        let cut = counts.values().filter(|(count, _)| *count == depth).map(|(_, oldest)| *oldest).max();
        if let Some(cut) = cut {
            merged.retain(|(position, _)| *position >= cut);
        }
        Ok((merged, cut.is_none()))
    }

    /// Up to `depth` rows of each of these streams.
    fn sql(
        &self,
        statement: &mut Statement,
        search: &Search,
        after: Option<Position>,
        depth: usize,
        ids: &[i64],
    ) -> String {
        let mut conditions = Vec::new();
        if let Some(from) = search.from {
            conditions.push(format!("e.event_time >= {}", statement.int(from.0)));
        }
        if let Some(to) = search.to {
            conditions.push(format!("e.event_time < {}", statement.int(to.0)));
        }
        if let Some(after) = after {
            // the first condition leaves out whole partitions, the second is exact
            let (bound, time) = (statement.int(after.time.0), statement.int(after.time.0));
            let id = statement.bytes(after.id.as_bytes().to_vec());
            conditions.push(format!("e.event_time <= {bound} AND (e.event_time, e.id) < ({time}, {id})"));
        }
        let filter = search.filter.as_ref().filter(|_| self.prefiltered);
        conditions.extend(filter.and_then(|filter| prefilter(filter, search.workspace_id, statement)));
        let to = [search.to, after.map(|after| after.time)].into_iter().flatten().min();
        let Window { from, to: end } = Window::ALWAYS;
        let window = Window { from: search.from.unwrap_or(from), to: to.unwrap_or(end) };
        // ONE stands for the id of the stream
        let Events { tables, condition, order, sign } = match self.of {
            Of::Subject => subject_days::events(statement, "= ONE", window),
            Of::Meter => Events {
                tables: "events e".to_owned(),
                condition: "e.meter_id = ONE".to_owned(),
                order: "e.event_time DESC, e.id DESC",
                sign: "",
            },
        };
        if let Some(meters) = &self.meters {
            conditions.push(format!("{sign}e.meter_id IN ({})", integers(meters)));
        }
        let conditions: String = conditions.iter().map(|condition| format!(" AND {condition}")).collect();
        let stream = |id: &str| {
            let condition = condition.replace("ONE", id);
            format!("SELECT e.* FROM {tables} WHERE {condition}{conditions} ORDER BY {order} LIMIT {depth}")
        };
        let source = match ids {
            [id] => stream(&id.to_string()),
            _ if statement.is_postgres && !statement.is_distributed => format!(
                "SELECT e.* FROM unnest(ARRAY[{}]::bigint[]) k (id) CROSS JOIN LATERAL ({}) e",
                integers(ids),
                stream("k.id")
            ),
            // SQLite has no LATERAL, and a cluster none with a LIMIT, but numbered parameters may stand in every part
            _ => {
                let parts = ids.iter().map(|id| format!("SELECT * FROM ({}) part", stream(&id.to_string())));
                parts.collect::<Vec<_>>().join(" UNION ALL ")
            }
        };
        format!(
            "-- usage::events::look
             SELECT {}, e.{} AS stream FROM ({source}) e
             JOIN meters m ON m.id = e.meter_id JOIN subjects s ON s.id = e.subject_id",
            event_columns(statement.is_postgres),
            self.of.column()
        )
    }
}

#[derive(QueryableByName)]
struct StreamRow {
    #[diesel(embed)]
    event: EventText,
    #[diesel(sql_type = BigInt)]
    stream: i64,
}

/// An event that a filter looks at.
struct Candidate<'e> {
    event: &'e StoredEvent,
    metadata: Map,
}

impl Row for Candidate<'_> {
    fn held(&self, field: &Field) -> Option<Held<'_>> {
        match field {
            Field::Subject => Some(Held::Text(&self.event.subject)),
            Field::Meter => Some(Held::Text(&self.event.meter)),
            Field::Quantity => Some(Held::Number(&self.event.quantity)),
            Field::EventTime => Some(Held::Time(self.event.timestamp)),
            Field::ReceivedAt => Some(Held::Time(self.event.received_at)),
            Field::IdempotencyKey => self.event.idempotency_key.as_deref().map(Held::Text),
            Field::Metadata(path) => value_at(&self.metadata, path).map(Held::Json),
        }
    }
}

#[cfg(test)]
mod plans;
