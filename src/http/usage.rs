//! `/v1/usages`: writing events and reading aggregates (rest.md 12.4 and 12.5).

use actix_web::http::{StatusCode, header};
use actix_web::{HttpRequest, HttpResponse, web};
use serde::Deserialize;
use utoipa::ToSchema;

use crate::app::App;
use crate::auth::Caller;
use crate::error::{Error, Result};
use crate::event::{Input, parse_key};
use crate::http::extract::{Json, JsonList, Params, required_time};
use crate::http::respond;
use crate::ingest::{Kind, Recorded};
use crate::store;
use crate::usage::{self, MetadataCondition, Query};
use crate::window::{BucketSize, Micros, Window};

/// Stores one event; a known idempotency key answers with the event it was first used for.
pub async fn create(app: web::Data<App>, caller: Caller, body: Json<Input>) -> Result<HttpResponse> {
    let Json(input) = body;
    caller.may_use_meter(input.meter())?;
    let recorded = app.ingest.record(caller.workspace_id, Kind::Single, vec![input], None).await?;
    if let Some(failure) = recorded.failed.into_iter().next() {
        return Err(failure.error);
    }
    if let Some(original) = recorded.duplicates.first() {
        let mut response = respond::created(original)?;
        let replayed = header::HeaderName::from_static("idempotency-replayed");
        response.headers_mut().insert(replayed, header::HeaderValue::from_static("true"));
        return Ok(response);
    }
    match recorded.accepted.first() {
        Some(event) => respond::created(event),
        None => Err(Error::internal("a write without an outcome")),
    }
}

/// Stores up to a thousand events in one transaction, each on its own merits.
pub async fn create_bulk(
    app: web::Data<App>,
    caller: Caller,
    request: HttpRequest,
    body: JsonList<Input>,
) -> Result<HttpResponse> {
    let JsonList(inputs) = body;
    let most = app.config.ingest.max_bulk_events;
    if inputs.is_empty() {
        return Err(Error::invalid("at least one event is required"));
    }
    if inputs.len() > most {
        return Err(Error::invalid(format!("at most {most} events may be sent in one call")));
    }
    inputs.iter().try_for_each(|input| caller.may_use_meter(input.meter()))?;
    let key = request.headers().get("idempotency-key").and_then(|value| value.to_str().ok());
    let key = parse_key(key)?;
    let recorded = app.ingest.record(caller.workspace_id, Kind::Bulk, inputs, key).await?;
    bulk_answer(recorded)
}

fn bulk_answer(recorded: Recorded) -> Result<HttpResponse> {
    let text = |items| serde_json::to_string(items).map_err(Error::internal);
    let (accepted, duplicates) = match recorded.replay {
        Some(replay) => (replay.accepted, replay.duplicates),
        None => (text(&recorded.accepted)?, text(&recorded.duplicates)?),
    };
    let (accepted, duplicates) = (raw(accepted)?, raw(duplicates)?);
    let status = match accepted.len() + duplicates.len() {
        0 => StatusCode::BAD_REQUEST,
        _ => StatusCode::CREATED,
    };
    let answer = BulkResult {
        accepted: accepted.len(),
        duplicates: duplicates.len(),
        failed: recorded.failed.len(),
        accepted_items: accepted,
        duplicate_items: duplicates,
        failed_items: recorded.failed,
    };
    respond::json(status, &answer)
}

fn raw(text: String) -> Result<Vec<Box<serde_json::value::RawValue>>> {
    serde_json::from_str(&text).map_err(Error::internal)
}

#[derive(serde::Serialize, ToSchema)]
#[schema(as = BulkResult)]
pub struct BulkResult {
    accepted: usize,
    duplicates: usize,
    failed: usize,
    #[schema(value_type = Vec<crate::event::StoredEvent>)]
    accepted_items: Vec<Box<serde_json::value::RawValue>>,
    #[schema(value_type = Vec<crate::event::StoredEvent>)]
    duplicate_items: Vec<Box<serde_json::value::RawValue>>,
    #[schema(value_type = Vec<BulkFailure>)]
    failed_items: Vec<crate::ingest::Failure>,
}

/// How a failed item is written.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes what ingest::Failure serialises to")]
pub struct BulkFailure {
    /// Position in the request, from 0.
    index: usize,
    code: String,
    message: String,
}

/// Body of a bucket search.
#[derive(Default, Deserialize, ToSchema)]
#[schema(as = UsageSearch)]
pub struct Search {
    subject: Option<String>,
    meter: Option<String>,
    from: Option<String>,
    to: Option<String>,
    bucket_size: Option<String>,
    group_by: Option<Vec<String>>,
    limit: Option<i64>,
}

/// What both forms of the query come to.
struct Request {
    meter: String,
    subject: String,
    from: Micros,
    to: Micros,
    bucket_size: String,
    group_by: Vec<String>,
    conditions: Vec<MetadataCondition>,
    limit: i64,
}

pub async fn list(app: web::Data<App>, caller: Caller, params: Params) -> Result<HttpResponse> {
    caller.may_use_meter(params.get("meter"))?;
    let request = Request {
        meter: params.get("meter").to_owned(),
        subject: params.get("subject").to_owned(),
        from: params.time("from", "invalid_from")?,
        to: params.time("to", "invalid_to")?,
        bucket_size: params.get("bucket_size").to_owned(),
        group_by: params.all("group_by").map(str::to_owned).collect(),
        conditions: metadata_conditions(&params)?,
        limit: params.limit(100, 1000)?,
    };
    answer(&app, &caller, request).await
}

/// `metadata.<path>=<value>` parameters; of a repeated one the first counts.
fn metadata_conditions(params: &Params) -> Result<Vec<MetadataCondition>> {
    let mut conditions: Vec<MetadataCondition> = Vec::new();
    for (name, value) in params.pairs() {
        let Some(path) = name.strip_prefix("metadata.") else { continue };
        let condition = MetadataCondition::new(path, value)?;
        if conditions.iter().all(|other| other.path != condition.path) {
            conditions.push(condition);
        }
    }
    Ok(conditions)
}

pub async fn search(app: web::Data<App>, caller: Caller, body: Json<Search>) -> Result<HttpResponse> {
    let Json(search) = body;
    let meter = search.meter.unwrap_or_default();
    caller.may_use_meter(&meter)?;
    let request = Request {
        meter,
        subject: search.subject.unwrap_or_default(),
        from: required_time(search.from.as_deref(), "from", "invalid_from")?,
        to: required_time(search.to.as_deref(), "to", "invalid_to")?,
        bucket_size: search.bucket_size.unwrap_or_default(),
        group_by: search.group_by.unwrap_or_default(),
        conditions: Vec::new(),
        limit: search.limit.filter(|limit| *limit > 0).unwrap_or(100).min(1000),
    };
    answer(&app, &caller, request).await
}

async fn answer(app: &App, caller: &Caller, request: Request) -> Result<HttpResponse> {
    let query = checked(app, caller, &request).await?;
    let rows = app
        .store
        .read("usage::cells", move |conn| {
            let cells = store::usage::cells(conn, &query)?;
            Ok(usage::buckets(&query, cells, request.limit as usize))
        })
        .await?;
    respond::ok(&rows)
}

async fn checked(app: &App, caller: &Caller, request: &Request) -> Result<Query> {
    if request.meter.is_empty() {
        return Err(Error::invalid("meter is required"));
    }
    let size = BucketSize::parse(&request.bucket_size)?;
    let window = Window::new(request.from, request.to)?;
    window.check_length(size)?;
    let subject = usage::parse_subject_filter(&request.subject)?;
    let meter = app.meters.get(caller.workspace_id, &request.meter).await?;
    let meter = meter.ok_or_else(|| Error::not_found(format!("meter {:?}", request.meter)))?;
    let group_by = usage::parse_group_by(&meter, request.group_by.iter().map(String::as_str))?;
    Ok(Query {
        meter,
        window,
        subject,
        group_by,
        conditions: request.conditions.clone(),
        bucket_size: Some(size),
    })
}
