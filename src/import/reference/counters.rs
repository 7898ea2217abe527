//! Counters of quotas, as far as they know of more than the events that are left: pruning takes events and leaves counters
//! as they are. Only current periods matter; everything else is counted anew from the events.

use super::plans::{period, subject_id};
use super::{Ids, Refusal};
use crate::db::Conn;
use crate::entitlements::period::{ASSIGNED_DAYS, Period, day_start};
use crate::entitlements::sql::counters::{self, Key, Range};
use crate::import::sql::foreign::Kind::{Int, Real, Text};
use crate::import::sql::foreign::{Odd, Row, Table};
use crate::import::sql::ours::{self, Put};
use crate::metering::calendar::Zone;
use crate::metering::quantity::Quantity;
use crate::metering::rollup::{Edge, Part};

use super::events::derived_id;

pub const COUNTERS: Table = Table {
    name: "entitlement_usage_counters",
    columns: &[
        ("workspace_id", Text),
        ("subject", Text),
        ("meter_name", Text),
        ("period", Text),
        ("period_start", Text),
        ("period_end", Text),
        ("event_count", Int),
        ("quantity_sum", Real),
        ("quantity_min", Real),
        ("quantity_max", Real),
        ("first_quantity", Real),
        ("first_event_time", Text),
        ("last_quantity", Real),
        ("last_event_time", Text),
        ("updated_at", Text),
    ],
    // what is missing of a day is no longer missing of its month
    order: "CASE period WHEN 'day' THEN '1' WHEN 'week' THEN '2' WHEN 'month' THEN '3' ELSE '4' END",
};

pub fn counter(conn: &mut Conn, ids: &mut Ids, row: &Row) -> Result<Put, Refusal> {
    let workspace_id = ids.workspace(row)?;
    let (meter, period) = (ids.meter(workspace_id, row)?, period(row)?);
    let (from, to, count) = (row.time("period_start")?, row.time("period_end")?, row.int("event_count")?);
    if to <= ids.now || from > ids.now {
        return Ok(Put::Known);
    }
    let subject_id = subject_id(conn, workspace_id, row)?;
    let Some(anchor) = ours::anchor(conn, subject_id, ids.now)? else { return Ok(Put::Known) };
    let period = Period::parse(period.as_str()).ok_or("there is no such period")?;
    let range = Range::at((subject_id, meter.id), &period, anchor, &Zone::UTC, ids.now);
    let window = range.window;
    let here = counters::load(conn, &[range])?.pop().flatten();
    let missing = count - here.as_ref().map_or(0, |part| part.count);
    if missing <= 0 {
        return Ok(Put::Known);
    }
    if window.from != from {
        return Err(
            format!("{missing} pruned events are counted in a period that begins otherwise here").into()
        );
    }
    let sum = row.quantity("quantity_sum")?;
    let rest = here.map_or(sum.clone(), |part| &sum - &part.sum);
    let part = Part {
        count: missing,
        sum: if rest.is_positive() { rest } else { Quantity::zero() },
        min: row.quantity("quantity_min")?,
        max: row.quantity("quantity_max")?,
        edges: Some((edge(row, "first")?, edge(row, "last")?)),
        state: None,
    };
    // what was pruned is what came first
    let first = row.time("first_event_time")?.clamp(window.from, ids.now);
    let day_start = day_start(anchor, first);
    let key = Key { subject_id, meter_id: meter.id, anchor, series: ASSIGNED_DAYS, day_start };
    counters::add(conn, &[(key, part)].into())?;
    Ok(Put::New)
}

fn edge(row: &Row, which: &str) -> Result<Edge, Odd> {
    let at = row.time(&format!("{which}_event_time"))?;
    let id = derived_id(at, &[which.as_bytes(), row.text("subject")?.as_bytes()]);
    Ok(Edge { at, id, quantity: row.quantity(&format!("{which}_quantity"))? })
}
