//! What happened so far: activity per meter, write calls, prunes (rest.md 12.3, 12.7).

use actix_web::{HttpResponse, web};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use utoipa::openapi::Required;

use crate::app::App;
use crate::auth::Caller;
use crate::error::{Error, Result};
use crate::http::extract::{CursorTime, Params, paginate};
use crate::http::openapi::{self, Doc};
use crate::http::respond::{self, Page};
use crate::metering::time::Timestamp;
use crate::retention::sql::PruneRun;
use crate::retention::{self, sql as prunes};
use crate::usage::{ingestion_runs, subjects};

/// The activity of a meter on the wire; fields in contract order.
#[derive(Serialize, ToSchema)]
#[schema(as = MeterStats)]
pub struct MeterStatsView {
    meter: String,
    usage_events: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_event_at: Option<Timestamp>,
    retention_days: i32,
}

#[derive(Serialize, Deserialize)]
struct ByName {
    name: Option<String>,
}

pub fn describe_meter_stats() -> Doc {
    Doc::new("meters", "Stored events per meter").limit(50, 500).cursor().page::<MeterStatsView>("By name.")
}

pub async fn meter_stats(app: web::Data<App>, caller: Caller, params: Params) -> Result<HttpResponse> {
    caller.ensure_meter_allowed("")?;
    let limit = params.limit(50, 500)?;
    let after = params.cursor::<ByName>()?.and_then(|cursor| cursor.name).unwrap_or_default();
    let workspace_id = caller.workspace_id;
    let list = move |conn: &mut _| subjects::meter_stats(conn, workspace_id, &after, limit + 1);
    let rows = app.store.read("subjects::meter_stats", list).await?;
    let (rows, next_cursor) = paginate(rows, limit, |row| ByName { name: Some(row.meter.clone()) })?;
    let items = rows.into_iter().map(|row| MeterStatsView {
        meter: row.meter,
        usage_events: row.usage_events,
        last_event_at: row.last_event_at.map(Timestamp),
        retention_days: row.retention_days,
    });
    respond::ok(&Page { items: items.collect(), next_cursor })
}

/// Position in a list of runs. The time is in the id as well, which alone decides.
#[derive(Serialize, Deserialize)]
struct ByTime {
    time: Option<CursorTime>,
    id: Option<String>,
}

impl ByTime {
    fn of(id: Uuid, created_at: Timestamp) -> Self {
        ByTime { time: Some(CursorTime(created_at)), id: Some(id.to_string()) }
    }

    fn read(params: &Params) -> Result<Option<Uuid>> {
        let Some(id) = params.cursor::<ByTime>()?.and_then(|cursor| cursor.id) else { return Ok(None) };
        id.parse().map(Some).map_err(|_| Error::invalid("cursor is not one of ours"))
    }
}

/// A write call on the wire; fields in contract order.
#[derive(Serialize, ToSchema)]
#[schema(as = IngestionRun)]
pub struct IngestionRunView {
    id: String,
    kind: String,
    accepted: i64,
    duplicates: i64,
    failed: i64,
    created_at: Timestamp,
}

pub fn describe_ingestions() -> Doc {
    Doc::new("usage", "Write calls so far")
        .limit(100, 1000)
        .cursor()
        .page::<IngestionRunView>("Newest first.")
}

pub async fn ingestions(app: web::Data<App>, caller: Caller, params: Params) -> Result<HttpResponse> {
    caller.ensure_meter_allowed("")?;
    let (limit, before) = (params.limit(100, 1000)?, ByTime::read(&params)?);
    let workspace_id = caller.workspace_id;
    let list = move |conn: &mut _| ingestion_runs::runs(conn, workspace_id, before, limit + 1);
    let rows = app.store.read("history::runs", list).await?;
    let (rows, next_cursor) = paginate(rows, limit, |run| ByTime::of(run.id, run.created_at))?;
    let items = rows.into_iter().map(|run| IngestionRunView {
        id: run.id.to_string(),
        kind: run.kind,
        accepted: run.accepted,
        duplicates: run.duplicates,
        failed: run.failed,
        created_at: run.created_at,
    });
    respond::ok(&Page { items: items.collect(), next_cursor })
}

/// A prune on the wire; fields in contract order.
#[derive(Serialize, ToSchema)]
#[schema(as = PruneRun)]
pub struct PruneRunView {
    id: String,
    deleted: i64,
    dry_run: bool,
    meters: Vec<PrunedMeterView>,
    created_at: Timestamp,
}

#[derive(Serialize, ToSchema)]
#[schema(as = PrunedMeter)]
pub struct PrunedMeterView {
    meter: String,
    before: Timestamp,
    deleted: i64,
}

impl From<PruneRun> for PruneRunView {
    fn from(run: PruneRun) -> Self {
        let meters = run.meters.into_iter().map(|pruned| PrunedMeterView {
            meter: pruned.meter,
            before: Timestamp(pruned.before),
            deleted: pruned.deleted,
        });
        PruneRunView {
            id: run.id.to_string(),
            deleted: run.deleted,
            dry_run: run.dry_run,
            meters: meters.collect(),
            created_at: run.created_at,
        }
    }
}

pub fn describe_prunes() -> Doc {
    Doc::new("retention", "Prunes so far")
        .limit(100, 1000)
        .cursor()
        .page::<PruneRunView>("Newest first, dry runs included.")
}

pub async fn prunes(app: web::Data<App>, caller: Caller, params: Params) -> Result<HttpResponse> {
    caller.ensure_meter_allowed("")?;
    let (limit, before) = (params.limit(100, 1000)?, ByTime::read(&params)?);
    let workspace_id = caller.workspace_id;
    let list = move |conn: &mut _| prunes::runs(conn, workspace_id, before, limit + 1);
    let rows = app.store.read("retention::runs", list).await?;
    let (rows, next_cursor) = paginate(rows, limit, |run| ByTime::of(run.id, run.created_at))?;
    respond::ok(&Page { items: rows.into_iter().map(PruneRunView::from).collect(), next_cursor })
}

pub fn describe_prune() -> Doc {
    Doc::new("retention", "Delete events past their retention")
        .parameter(openapi::query(
            "dry_run",
            "Only count.",
            utoipa::openapi::ObjectBuilder::new().schema_type(utoipa::openapi::schema::Type::Boolean).into(),
            Required::False,
        ))
        .answer::<PruneRunView>(200, "What was deleted, or would be.")
        .errors(&[409])
}

/// Prunes the caller's workspace, or only counts.
pub async fn prune(app: web::Data<App>, caller: Caller, params: Params) -> Result<HttpResponse> {
    caller.ensure_meter_allowed("")?;
    let run = match params.boolean("dry_run", "invalid_dry_run")?.unwrap_or_default() {
        true => retention::dry_run(&app.store, caller.workspace_id).await?,
        false => retention::prune(&app, caller.workspace_id).await?,
    };
    respond::ok(&PruneRunView::from(run))
}
