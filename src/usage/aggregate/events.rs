//! Aggregations that are made of the events themselves: different values, percentiles, deviations, the latest of each
//! key, levels over time. Events are streamed into states whose memory is bounded; levels need them in order, and from
//! the beginning, because what was held before a window is held in it.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::{RawEvent, RawRow, Source, Sum};
use crate::db::columns::readable;
use crate::db::statement::Statement;
use crate::db::{Conn, DbError, interrupt};
use crate::error::Error;
use crate::metering::filter::text_of;
use crate::metering::meter::{Aggregation, QuantityIs, value_at};
use crate::metering::rollup::Edge;
use crate::metering::sketch::{Distinct, Spread};
use crate::metering::state::{Held, LEVELS_BYTES_MAX, LEVELS_MAX, Levels, State};
use crate::metering::time::{Timestamp, Window};
use crate::usage::query::{GroupedAggregates, Query};

/// Steps between two looks at the clock.
const CHECKED_EVERY: usize = 256;

impl Sum<'_> {
    pub(super) fn add_events(&mut self, conn: &mut Conn) -> Result<(), DbError> {
        match self.query.meter.aggregation {
            Aggregation::WeightedSum => self.add_levels(conn),
            _ => self.add_states(conn),
        }
    }

    fn add_states(&mut self, conn: &mut Conn) -> Result<(), DbError> {
        let mut statement = Statement::new(conn);
        let sql = self.raw_sql(&mut statement, &Source::Whole(self.query.window), None);
        let (query, cells) = (self.query, &mut self.cells);
        statement.each(conn, &sql, |row: RawRow| {
            let Some(event) = read(query, row) else { return Ok(()) };
            let start = query.bucket(event.time);
            if !cells.wants(start) {
                return Ok(());
            }
            if let Some(group) = query.group(&event) {
                cells.add_event(start, group.clone(), event.time, event.id, &event.quantity)?;
                if let Some(state) = state_of(query, &event) {
                    cells.add_state(start, group, &state)?;
                }
            }
            Ok(())
        })
    }

    fn add_levels(&mut self, conn: &mut Conn) -> Result<(), DbError> {
        let mut statement = Statement::new(conn);
        let Window { from, to } = self.query.window;
        let all = Window { from: Window::ALWAYS.from.min(from), to };
        let mut sql = self.raw_sql(&mut statement, &Source::Whole(all), None);
        sql.push_str(" ORDER BY e.event_time, e.id");
        let (query, cells) = (self.query, &mut self.cells);
        let is_change = query.meter.options.quantity_is == Some(QuantityIs::Change);
        let mut levels = Levels::default();
        statement.each(conn, &sql, |row: RawRow| {
            let Some(event) = read(query, row) else { return Ok(()) };
            let Some(group) = query.group(&event) else { return Ok(()) };
            if event.time >= from {
                let start = query.bucket(event.time);
                cells.add_event(start, group.clone(), event.time, event.id, &event.quantity)?;
            }
            let key = key_of(query, &event);
            if let Some(held) = levels.set(&group, key, event.time.0, &event.quantity, is_change) {
                add_held(query, cells, held)?;
            }
            match levels.count() > LEVELS_MAX || levels.bytes() > LEVELS_BYTES_MAX {
                true => Err(Error::query_too_large().into()),
                false => Ok(()),
            }
        })?;
        for held in levels.finish(to.0) {
            add_held(query, cells, held)?;
        }
        Ok(())
    }
}

fn read<'q>(query: &'q Query, row: RawRow) -> Option<RawEvent<'q>> {
    let id = Uuid::from_slice(&row.id).unwrap_or_default();
    readable("events", id, RawEvent::of(&query.meter.name, row))
}

/// Whose level, or latest quantity, an event says: its subject's under its dimension values.
fn key_of(query: &Query, event: &RawEvent) -> String {
    let mut key = event.subject.clone();
    for dimension in &query.meter.dimensions {
        key.push('\0');
        if let Some(value) = value_at(&event.metadata, &dimension.name) {
            key.push_str(&value.to_string());
        }
    }
    key
}

fn state_of(query: &Query, event: &RawEvent) -> Option<State> {
    let options = &query.meter.options;
    let quantity = &event.quantity;
    Some(match query.meter.aggregation {
        Aggregation::UniqueCount => {
            let field = options.aggregation_field.as_deref()?;
            let value = match field {
                "subject" => event.subject.clone(),
                path => {
                    text_of(value_at(&event.metadata, path).filter(|value| !value.is_null())?).into_owned()
                }
            };
            State::Values(Distinct::of(value, query.values_kept()))
        }
        Aggregation::Percentile => {
            State::Quantities(Spread::of(quantity.clone(), query.values_kept()), query.meter.clone())
        }
        Aggregation::LatestSum => {
            let edge = Edge { at: event.time, id: event.id, quantity: quantity.clone() };
            State::Latest(BTreeMap::from([(key_of(query, event), edge)]))
        }
        Aggregation::Stddev => State::Squares(quantity * quantity),
        _ => return None,
    })
}

/// Where the row that holds an instant ends.
fn end_of_bucket(query: &Query, start: Timestamp) -> Timestamp {
    let buckets = query.buckets.as_ref();
    buckets.map_or(query.window.to, |buckets| buckets.calendar.around(start).to.min(query.window.to))
}

/// Adds a stretch to the rows that it crosses.
fn add_held(query: &Query, cells: &mut GroupedAggregates, held: Held) -> Result<(), DbError> {
    let mut at = Timestamp(held.from).max(query.window.from);
    let to = Timestamp(held.to).min(query.window.to);
    // one level can cross as many rows as there are, and there may be as many levels as keys
    for step in 0.. {
        if at >= to || held.level.is_zero() {
            break;
        }
        if step % CHECKED_EVERY == 0 {
            interrupt::check()?;
        }
        let start = query.bucket(at);
        let end = end_of_bucket(query, start).min(to);
        if end <= at || !cells.wants(start) {
            break;
        }
        let area = &held.level * &crate::metering::quantity::Quantity::from(end.0 - at.0);
        cells.add_state(start, held.group.clone(), &State::Area(area))?;
        at = end;
    }
    Ok(())
}
