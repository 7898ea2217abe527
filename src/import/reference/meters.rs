//! Meters, and the queries that people saved about them.

use std::sync::Arc;

use serde::Deserialize;

use super::who::uuid_text;
use super::{Ids, Refusal};
use crate::db::Conn;
use crate::import::sql::foreign::Kind::{Int, Text};
use crate::import::sql::foreign::{Odd, Row, Table};
use crate::import::sql::ours::{self, Columns, Put};
use crate::metering::json;
use crate::metering::meter::{Aggregation, Dimension, DimensionType, RETENTION_DAYS_MAX};
use crate::meters::sql as meters;

pub const METERS: Table = Table {
    name: "meters",
    columns: &[
        ("id", Text),
        ("workspace_id", Text),
        ("name", Text),
        ("description", Text),
        ("unit", Text),
        ("aggregation", Text),
        ("dimensions", Text),
        ("event_retention_days", Int),
        ("created_at", Text),
    ],
    order: "created_at",
};

/// A dimension as the reference writes it down.
#[derive(Deserialize)]
struct TheirDimension {
    name: String,
    #[serde(default)]
    display_name: String,
    #[serde(default)]
    description: String,
    #[serde(rename = "type")]
    kind: DimensionType,
    #[serde(default)]
    required: bool,
    #[serde(default)]
    deprecated: bool,
}

impl TheirDimension {
    fn since(self, since: i32) -> Dimension {
        let TheirDimension { name, display_name, description, kind, required, deprecated } = self;
        Dimension { name, display_name, description, kind, required, deprecated, since }
    }
}

fn dimensions(row: &Row) -> Result<Vec<Dimension>, Odd> {
    let text = row.filled("dimensions")?.unwrap_or_else(|| "[]".to_owned());
    let list: Vec<TheirDimension> =
        serde_json::from_str(&text).map_err(|error| format!("dimensions cannot be read: {error}"))?;
    Ok(list.into_iter().map(|dimension| dimension.since(1)).collect())
}

pub fn meter(conn: &mut Conn, ids: &mut Ids, row: &Row) -> Result<Put, Refusal> {
    let (public_id, workspace_id, name) = (uuid_text(row, "id")?, ids.workspace(row)?, row.text("name")?);
    let days = row.int("event_retention_days")?;
    let kept = if (1..=RETENTION_DAYS_MAX).contains(&days) { days } else { RETENTION_DAYS_MAX };
    if kept != days {
        ids.note(format!("meter {name:?} kept events for {days} days, which cannot be: now for {kept}"));
    }
    let (aggregation, dimensions) = (Aggregation::parse(&row.text("aggregation")?)?, dimensions(row)?);
    let columns: Columns = vec![
        ("workspace_id", workspace_id.into()),
        ("name", name.clone().into()),
        ("description", row.text("description")?.into()),
        ("unit", row.text("unit")?.into()),
        ("aggregation", aggregation.as_str().into()),
        ("dimensions", json_of(&dimensions)?.into()),
        ("version", 1.into()),
        ("event_retention_days", kept.into()),
        ("created_at", row.time("created_at")?.0.into()),
    ];
    adopt(conn, ids, workspace_id, &name, &public_id)?;
    let changing = ["description", "unit", "event_retention_days"];
    let (put, id) = ours::put(conn, "meters", &public_id, &columns, &changing, true)?;
    let Some(meter) = meters::find_by_id(conn, id)? else { return Ok(put) };
    let was = meter.aggregation;
    // one that is made of the events themselves is not known there: it was chosen here
    let aggregation = if was.needs_events() { was } else { aggregation };
    let is_other = aggregation != was;
    if is_other {
        let (now, was) = (aggregation.as_str(), was.as_str());
        ids.note(format!("meter {name:?} is of another aggregation there by now: {now} instead of {was}"));
    }
    let meter = redeclare(conn, meter, aggregation, dimensions)?;
    ids.meters.insert((workspace_id, name), Arc::new(meter));
    // all its answers are other ones: nobody may hear that nothing is missing
    Ok(if is_other { Put::New } else { put })
}

/// A meter that was deleted there and made again has a new id under its name: ours goes on under that.
fn adopt(
    conn: &mut Conn,
    ids: &mut Ids,
    workspace_id: i64,
    name: &str,
    public_id: &str,
) -> Result<(), Refusal> {
    let Some(old) = meters::find_by_name(conn, workspace_id, name)? else { return Ok(()) };
    if old.public_id == public_id || ours::find(conn, "meters", public_id)?.is_some() {
        return Ok(());
    }
    ids.note(format!("meter {name:?} was made again: it goes on under the new id {public_id}"));
    let text = "UPDATE meters SET public_id = $1, version = version + 1 WHERE id = $2".to_owned();
    ours::execute(conn, text, &[public_id.into(), old.id.into()])?;
    Ok(())
}

/// Aggregation and dimensions, if they changed since the last run.
fn redeclare(
    conn: &mut Conn,
    mut meter: crate::metering::meter::Meter,
    aggregation: Aggregation,
    wanted: Vec<Dimension>,
) -> Result<crate::metering::meter::Meter, Refusal> {
    let since = |new: Dimension| {
        let old = meter.dimensions.iter().find(|old| old.name == new.name && old.kind == new.kind);
        Dimension { since: old.map_or(meter.version + 1, |old| old.since), ..new }
    };
    let wanted: Vec<Dimension> = wanted.into_iter().map(since).collect();
    if wanted == meter.dimensions && aggregation == meter.aggregation {
        return Ok(meter);
    }
    (meter.aggregation, meter.dimensions, meter.version) = (aggregation, wanted, meter.version + 1);
    let text =
        "UPDATE meters SET aggregation = $1, dimensions = $2, version = version + 1 WHERE id = $3".to_owned();
    let dimensions = json_of(&meter.dimensions)?;
    ours::execute(conn, text, &[aggregation.as_str().into(), dimensions.into(), meter.id.into()])?;
    Ok(meter)
}

fn json_of(dimensions: &[Dimension]) -> Result<String, Odd> {
    serde_json::to_string(dimensions).map_err(|error| error.to_string())
}

pub const SAVED_QUERIES: Table = Table {
    name: "usage_saved_queries",
    columns: &[
        ("id", Text),
        ("user_id", Text),
        ("name", Text),
        ("query_json", Text),
        ("group_by", Text),
        ("bucket_size", Text),
        ("result_limit", Int),
        ("pinned", Int),
        ("position", Int),
        ("created_at", Text),
        ("updated_at", Text),
    ],
    order: "",
};

pub fn saved_query(conn: &mut Conn, ids: &mut Ids, row: &Row) -> Result<Put, Refusal> {
    let query = json::parse_object(&row.text("query_json")?).ok_or("query_json is no JSON object")?;
    let group_by: Vec<String> = serde_json::from_str(&row.text("group_by")?)
        .map_err(|_| "group_by is no list of texts".to_owned())?;
    let columns: Columns = vec![
        ("id", uuid_text(row, "id")?.into()),
        ("user_id", ids.user(row)?.into()),
        ("name", row.text("name")?.into()),
        ("query", json::object_text(&query).into()),
        ("group_by", serde_json::to_string(&group_by).map_err(|error| error.to_string())?.into()),
        ("bucket_size", row.text("bucket_size")?.into()),
        ("row_limit", row.int("result_limit")?.into()),
        ("pinned", row.flag("pinned")?.into()),
        ("position", row.int("position")?.into()),
        ("created_at", row.time("created_at")?.0.into()),
        ("updated_at", row.time("updated_at")?.0.into()),
    ];
    Ok(super::who::new_or_known(ours::add(conn, "saved_queries", &columns)?))
}

impl From<&str> for Refusal {
    fn from(odd: &str) -> Refusal {
        Refusal::Odd(odd.to_owned())
    }
}
