//! `/v1/usages`: writing events and reading aggregates (rest.md 12.4 and 12.5).

use std::sync::Arc;

use actix_web::http::{StatusCode, header};
use actix_web::{HttpRequest, HttpResponse, web};
use serde::Deserialize;
use utoipa::ToSchema;

use utoipa::openapi::Required;

use crate::app::App;
use crate::auth::Caller;
use crate::error::{Error, Result};
use crate::exports::csv::Table;
use crate::http::body::{Body, Json};
use crate::http::dry_run::{self, DryRun};
use crate::http::extract::{Params, required_time};
use crate::http::ndjson;
use crate::http::openapi::{self, Doc, FORMULA_GUARD};
use crate::http::respond::{self, Page};
use crate::ingest::{About, Door, Ingest, Kind, Origin, Recorded};
use crate::metering::calendar::{Buckets, Wish};
use crate::metering::event::{Input, parse_key};
use crate::metering::filter::{self, Filter};
use crate::metering::meter::{Aggregation, Meter};
use crate::metering::stored::StoredEvent;
use crate::metering::time::{Timestamp, Window};
use crate::usage::aggregate::{cells, needs_snapshot};
use crate::usage::query::{self, GROUPS_MAX, GroupField, GroupedAggregates, Query};

pub fn describe_create() -> Doc {
    dry_run::described(Doc::new("usage", "Record an event"))
        .body::<Input>()
        .answer::<DryRun>(200, "Of a dry run.")
        .answer::<StoredEvent>(201, "The stored event, or the one that first had the idempotency key.")
        .errors(&[404, 429])
}

/// Stores one event; a known idempotency key answers with the event it was first used for.
pub async fn create(app: web::Data<App>, caller: Caller, params: Params, body: Body) -> Result<HttpResponse> {
    if dry_run::is_asked(&params)? {
        let input: Input = body.object().await?;
        caller.ensure_meter_allowed(input.meter())?;
        return dry_run::one(&app, &caller, input).await;
    }
    let origin = Origin::of(&caller, Door::Rest);
    let input: Input = body.object_sent().await.map_err(|unread| unread.told(&app.ingest, &origin))?;
    ensure_allowed(&app.ingest, &origin, &caller, &input)?;
    let recorded = app.ingest.record(origin, Kind::Single, vec![input], None).await?;
    let recorded = recorded.confined(|meter| caller.ensure_meter_allowed(meter))?;
    let has_conflict = recorded.has_conflict();
    if let Some(failure) = recorded.failed.into_iter().next() {
        return Err(failure.error);
    }
    if let Some(original) = recorded.duplicates.first() {
        let mut response = respond::created(original)?;
        respond::about_key(&mut response, true, has_conflict);
        return Ok(response);
    }
    match recorded.accepted.first() {
        Some(event) => respond::created(event),
        None => Err(Error::internal("a write without an outcome")),
    }
}

/// Whether the caller may use the meter of an event; what it may not is told in the list of refused events.
pub(super) fn ensure_allowed(ingest: &Ingest, origin: &Origin, caller: &Caller, input: &Input) -> Result<()> {
    let allowed = caller.ensure_meter_allowed(input.meter());
    allowed.map_err(|error| ingest.refuse(origin, About::of(input), error.at("meter")))
}

pub fn describe_create_bulk() -> Doc {
    let summary = "Record up to 1000 events; as `application/x-ndjson` up to 100,000, one a line, answered line by line";
    dry_run::described(Doc::new("usage", summary))
        .body_list::<Input>()
        .answer::<DryRun>(200, "Of a dry run.")
        .answer::<BulkResult>(201, "At least one item is stored.")
        .answer::<openapi::BulkOrError>(
            400,
            "Every item failed (a bulk result), or the call itself (an error).",
        )
        .errors(&[429])
}

/// Stores up to a thousand events in one transaction, each on its own merits.
pub async fn create_bulk(
    app: web::Data<App>,
    caller: Caller,
    request: HttpRequest,
    params: Params,
    body: Body,
) -> Result<HttpResponse> {
    if ndjson::is_asked(&request) {
        dry_run::refuse(&params)?;
        return ndjson::record(app, caller, body).await;
    }
    let (is_dry, origin) = (dry_run::is_asked(&params)?, Origin::of(&caller, Door::Bulk));
    let tell = |about: About, error: Error| match is_dry {
        true => error,
        false => app.ingest.refuse(&origin, about, error),
    };
    let inputs: Vec<Input> = body.array_sent().await.map_err(|unread| match is_dry {
        true => unread.error,
        false => unread.told(&app.ingest, &origin),
    })?;
    check_count(inputs.len(), app.config.ingest.max_bulk_events)
        .map_err(|error| tell(About::default(), error))?;
    for input in &inputs {
        let allowed = caller.ensure_meter_allowed(input.meter());
        allowed.map_err(|error| tell(About::of(input), error.at("meter")))?;
    }
    let key = key_header(&request).map_err(|error| tell(About::default(), error))?;
    if is_dry {
        return dry_run::many(&app, &caller, inputs, key).await;
    }
    let recorded = app.ingest.record(origin, Kind::Bulk, inputs, key).await?;
    bulk_answer(recorded.confined(|meter| caller.ensure_meter_allowed(meter))?)
}

/// How many events one call may have.
pub(super) fn check_count(count: usize, most: usize) -> Result<()> {
    match count {
        0 => Err(Error::invalid("at least one event is required")),
        count if count > most => {
            Err(Error::invalid(format!("at most {most} events may be sent in one call")))
        }
        _ => Ok(()),
    }
}

/// A key that cannot be read is refused: ignored, it would let a retry count twice.
fn key_header(request: &HttpRequest) -> Result<Option<String>> {
    let mut values = request.headers().get_all("idempotency-key");
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Error::invalid("the Idempotency-Key header is given more than once"));
    }
    let text = std::str::from_utf8(value.as_bytes());
    parse_key(Some(text.map_err(|_| Error::invalid("the Idempotency-Key header must be UTF-8"))?))
}

pub(super) fn bulk_answer(recorded: Recorded) -> Result<HttpResponse> {
    let status = match recorded.accepted.len() + recorded.duplicates.len() {
        0 => StatusCode::BAD_REQUEST,
        _ => StatusCode::CREATED,
    };
    let (is_replay, has_conflict) = (recorded.is_replay, recorded.has_conflict());
    let answer = BulkResult {
        conflict_items: recorded.conflict_places,
        accepted: recorded.accepted.len(),
        duplicates: recorded.duplicates.len(),
        failed: recorded.failed.len(),
        accepted_items: recorded.accepted,
        duplicate_items: recorded.duplicates,
        failed_items: recorded.failed,
    };
    let mut response = respond::json(status, &answer)?;
    respond::about_key(&mut response, is_replay, has_conflict);
    Ok(response)
}

#[derive(serde::Serialize, ToSchema)]
#[schema(as = BulkResult)]
pub struct BulkResult {
    accepted: usize,
    duplicates: usize,
    failed: usize,
    accepted_items: Vec<StoredEvent>,
    duplicate_items: Vec<StoredEvent>,
    #[schema(value_type = Vec<BulkFailure>)]
    failed_items: Vec<crate::ingest::Failure>,
    /// Positions in the request, from 0, of duplicates whose key was first used with another payload.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    conflict_items: Vec<usize>,
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

/// Body of a bucket search and of its download.
#[derive(Default, Deserialize, ToSchema)]
#[schema(as = UsageSearch)]
pub struct Search {
    subject: Option<String>,
    #[schema(value_type = String, min_length = 1)]
    meter: Option<String>,
    #[schema(value_type = Timestamp)]
    from: Option<String>,
    #[schema(value_type = Timestamp)]
    to: Option<String>,
    /// `minute`, `5m`, `15m`, `hour`, `day` (unless told), `week`, `month`, `quarter`, `year`, or so many of a unit: `30min`,
    /// `6h`, `10d`, `2w`, `3m`, `2q`, `2y`.
    #[schema(pattern = "^(minute|hour|day|week|month|quarter|year|[0-9]+(min|h|d|w|m|mo|q|y))?$")]
    bucket_size: Option<String>,
    /// Of the IANA database; that of the workspace unless told.
    time_zone: Option<String>,
    /// Buckets are counted from here.
    #[schema(value_type = Option<Timestamp>)]
    anchor: Option<String>,
    #[schema(pattern = "^(monday|sunday)?$")]
    week_start: Option<String>,
    group_by: Option<Vec<String>>,
    limit: Option<i64>,
    filter: Option<filter::Node>,
    /// Every different value is kept, however many there are; downloads are always exact.
    exact: Option<bool>,
    /// Downloads only: an apostrophe before cells that a spreadsheet would run as a formula; unless told not to.
    formula_guard: Option<bool>,
}

/// What the query form and the search form of a bucket query come to.
struct Request {
    meter: String,
    subject: String,
    from: Timestamp,
    to: Timestamp,
    bucket_size: String,
    time_zone: String,
    anchor: String,
    week_start: String,
    group_by: Vec<String>,
    filter: Option<Filter>,
    exact: bool,
    limit: i64,
}

impl Request {
    fn of_params(params: &Params, limit: i64) -> Result<Self> {
        Ok(Request {
            meter: params.get("meter").to_owned(),
            subject: params.get("subject").to_owned(),
            from: params.time("from", "invalid_from")?,
            to: params.time("to", "invalid_to")?,
            bucket_size: params.get("bucket_size").to_owned(),
            time_zone: params.get("time_zone").to_owned(),
            anchor: params.get("anchor").to_owned(),
            week_start: params.get("week_start").to_owned(),
            group_by: params.all("group_by").map(str::to_owned).collect(),
            filter: metadata_filter(params)?,
            exact: params.boolean("exact", "invalid_exact")?.unwrap_or(false),
            limit,
        })
    }

    fn of_search(search: Search, limit: i64) -> Result<Self> {
        Ok(Request {
            meter: search.meter.unwrap_or_default(),
            subject: search.subject.unwrap_or_default(),
            from: required_time(search.from.as_deref(), "from", "invalid_from")?,
            to: required_time(search.to.as_deref(), "to", "invalid_to")?,
            bucket_size: search.bucket_size.unwrap_or_default(),
            time_zone: search.time_zone.unwrap_or_default(),
            anchor: search.anchor.unwrap_or_default(),
            week_start: search.week_start.unwrap_or_default(),
            group_by: search.group_by.unwrap_or_default(),
            filter: Filter::parse_optional(search.filter.as_ref())?,
            exact: search.exact.unwrap_or(false),
            limit,
        })
    }

    async fn check(self, app: &App, caller: &Caller) -> Result<(Query, usize)> {
        let wish = Wish {
            bucket_size: &self.bucket_size,
            time_zone: &self.time_zone,
            anchor: &self.anchor,
            week_start: &self.week_start,
        };
        let calendar = wish.calendar(&app.zones.get(caller.workspace_id).await?)?;
        let window = Window::new(self.from, self.to)?;
        let buckets = Some(Buckets::of(calendar, window)?);
        let subject = query::parse_subject_filter(&self.subject)?;
        let meter = known_meter(app, caller, &self.meter).await?;
        let group_by = query::parse_group_by(&meter, self.group_by.iter().map(String::as_str))?;
        let (filter, exact) = (self.filter, self.exact);
        let query = Query { meter, window, subject, group_by, filter, buckets, skip_missing: false, exact };
        Ok((query, self.limit as usize))
    }
}

/// The `limit` of a JSON body: lowered to the maximum, absent unless positive.
pub(super) fn body_limit(limit: Option<i64>) -> i64 {
    limit.filter(|limit| *limit > 0).unwrap_or(100).min(1000)
}

/// The `limit` of a download, which is refused instead of lowered.
pub(super) fn csv_limit(limit: Option<i64>) -> Result<i64> {
    match limit.unwrap_or_default() {
        0 => Ok(100),
        limit if limit < 0 => Err(Error::parameter("invalid_limit", "limit must be a positive integer")),
        limit if limit > 1000 => {
            Err(Error::parameter("invalid_limit", "limit must be less than or equal to 1000"))
        }
        limit => Ok(limit),
    }
}

/// `metadata.<path>=<value>` parameters; of a repeated one the first counts.
fn metadata_filter(params: &Params) -> Result<Option<Filter>> {
    let (mut paths, mut filters) = (Vec::new(), Vec::new());
    for (name, value) in params.pairs() {
        let Some(path) = name.strip_prefix("metadata.") else { continue };
        let filter = Filter::metadata_text(path, value)?;
        if !paths.contains(&path.trim()) {
            paths.push(path.trim());
            filters.push(filter);
        }
    }
    if filters.len() > filter::CONDITIONS_MAX {
        return Err(Error::invalid(format!("at most {} metadata parameters", filter::CONDITIONS_MAX)));
    }
    Ok((!filters.is_empty()).then_some(Filter::All(filters)))
}

async fn known_meter(app: &App, caller: &Caller, name: &str) -> Result<Arc<Meter>> {
    if name.is_empty() {
        return Err(Error::invalid("meter is required"));
    }
    let meter = app.meters.get(caller.workspace_id, name).await?;
    meter.ok_or_else(|| Error::not_found(format!("meter {name:?}")))
}

/// Adds up the events of a query and makes rows of the sums.
async fn run_query<T: Send + 'static>(
    app: &App,
    query: Query,
    most: usize,
    rows: impl Fn(&Query, GroupedAggregates) -> Result<T> + Send + Sync + 'static,
) -> Result<T> {
    let is_snapshot = needs_snapshot(&query);
    let read = move |conn: &mut _| Ok(rows(&query, cells(conn, &query, most)?)?);
    app.store.view("usage::cells", is_snapshot, read).await
}

const BUCKET_SIZES: &str = "`minute`, `5m`, `15m`, `hour`, `day` (unless told), `week`, `month`, `quarter`, `year`, or \
                            so many of a unit: `30min`, `6h`, `10d`, `2w`, `3m` (months), `2q`, `2y`.";

const EXACT: &str = "Every different value is kept, however many there are. Else a row with more than 8,192 of them is \
                     told from a sketch, and says so; downloads are always exact.";

fn bucket_query(summary: &'static str) -> Doc {
    Doc::new("usage", summary)
        .required_text("meter", "Name of the meter.")
        .time("from", "Start, inclusive.", Required::True)
        .time("to", "End, exclusive.", Required::True)
        .text("subject", "One subject only.")
        .text("bucket_size", BUCKET_SIZES)
        .text("time_zone", "Of the IANA database; that of the workspace unless told.")
        .text("anchor", "RFC 3339: buckets are counted from here.")
        .text("week_start", "`monday` or `sunday`; `monday` unless told.")
        .repeated("group_by", "`subject` or declared dimensions, up to five.")
        .flag("exact", EXACT)
}

pub fn describe_list() -> Doc {
    bucket_query("Aggregates over time")
        .limit(100, 1000)
        .list::<query::Bucket>("By bucket, then group. `metadata.<path>=<value>` parameters filter.")
        .errors(&[404])
}

pub async fn list(app: web::Data<App>, caller: Caller, params: Params) -> Result<HttpResponse> {
    caller.ensure_meter_allowed(params.get("meter"))?;
    let request = Request::of_params(&params, params.limit(100, 1000)?)?;
    let (query, limit) = request.check(&app, &caller).await?;
    respond::ok(&run_query(&app, query, limit, |query, cells| Ok(query::buckets(query, cells))).await?)
}

pub fn describe_search() -> Doc {
    Doc::new("usage", "Aggregates over time, with a filter")
        .body::<Search>()
        .list::<query::Bucket>("By bucket, then group.")
        .errors(&[404])
}

pub async fn search(app: web::Data<App>, caller: Caller, body: Json<Search>) -> Result<HttpResponse> {
    let Json(search) = body;
    caller.ensure_meter_allowed(search.meter.as_deref().unwrap_or_default())?;
    let limit = body_limit(search.limit);
    let (query, limit) = Request::of_search(search, limit)?.check(&app, &caller).await?;
    respond::ok(&run_query(&app, query, limit, |query, cells| Ok(query::buckets(query, cells))).await?)
}

pub fn describe_export() -> Doc {
    bucket_query("Download aggregates over time")
        .limit(100, 1000)
        .flag("formula_guard", FORMULA_GUARD)
        .csv("By bucket, then group.")
        .errors(&[404])
}

pub async fn export(app: web::Data<App>, caller: Caller, params: Params) -> Result<HttpResponse> {
    caller.ensure_meter_allowed(params.get("meter"))?;
    let limit = csv_limit(Some(params.limit(100, i64::MAX)?))?;
    let guard = params.boolean("formula_guard", "invalid_formula_guard")?.unwrap_or(true);
    bucket_csv(&app, &caller, Request::of_params(&params, limit)?, guard).await
}

pub fn describe_export_search() -> Doc {
    Doc::new("usage", "Download aggregates over time, with a filter")
        .body::<Search>()
        .csv("By bucket, then group.")
        .errors(&[404])
}

pub async fn export_search(app: web::Data<App>, caller: Caller, body: Json<Search>) -> Result<HttpResponse> {
    let Json(search) = body;
    caller.ensure_meter_allowed(search.meter.as_deref().unwrap_or_default())?;
    let (limit, guard) = (csv_limit(search.limit)?, search.formula_guard.unwrap_or(true));
    bucket_csv(&app, &caller, Request::of_search(search, limit)?, guard).await
}

async fn bucket_csv(
    app: &App,
    caller: &Caller,
    request: Request,
    formula_guard: bool,
) -> Result<HttpResponse> {
    let (query, limit) = Request { exact: true, ..request }.check(app, caller).await?;
    let write = move |query: &Query, cells| {
        let mut table = Table::of_buckets(query, formula_guard)?;
        query::buckets(query, cells).iter().try_for_each(|bucket| table.bucket(query, bucket))?;
        table.into_bytes()
    };
    let bytes = run_query(app, query, limit, write).await?;
    Ok(csv_head("usage-buckets.csv").body(bytes))
}

/// A CSV answer that is saved under this name.
pub(super) fn csv_head(file_name: &str) -> actix_web::HttpResponseBuilder {
    let mut response = HttpResponse::Ok();
    response.insert_header((header::CONTENT_TYPE, "text/csv; charset=utf-8"));
    response.insert_header((header::CONTENT_DISPOSITION, format!("attachment; filename=\"{file_name}\"")));
    response
}

/// Body of a breakdown.
#[derive(Default, Deserialize, ToSchema)]
pub struct BreakdownSearch {
    subject: Option<String>,
    #[schema(value_type = String, min_length = 1)]
    meter: Option<String>,
    #[schema(value_type = String, min_length = 1)]
    field: Option<String>,
    #[schema(value_type = Timestamp)]
    from: Option<String>,
    #[schema(value_type = Timestamp)]
    to: Option<String>,
    limit: Option<i64>,
    filter: Option<filter::Node>,
    /// Every different value is kept, however many there are.
    exact: Option<bool>,
}

pub fn describe_breakdown() -> Doc {
    Doc::new("usage", "Largest values of a field")
        .body::<BreakdownSearch>()
        .page::<query::BreakdownItem>("By quantity, then value.")
        .errors(&[404])
}

/// The largest values of one field.
pub async fn breakdown(
    app: web::Data<App>,
    caller: Caller,
    body: Json<BreakdownSearch>,
) -> Result<HttpResponse> {
    let Json(search) = body;
    let name = search.meter.unwrap_or_default();
    caller.ensure_meter_allowed(&name)?;
    let from = required_time(search.from.as_deref(), "from", "invalid_from")?;
    let to = required_time(search.to.as_deref(), "to", "invalid_to")?;
    let window = Window::new(from, to)?;
    let subject = query::parse_subject_filter(&search.subject.unwrap_or_default())?;
    let filter = Filter::parse_optional(search.filter.as_ref())?;
    let meter = known_meter(&app, &caller, &name).await?;
    let field = query::parse_breakdown_field(&meter, &search.field.unwrap_or_default())?;
    let exact = search.exact.unwrap_or(false);
    let query = Query { exact, ..one_field(meter, window, subject, field, filter) };
    let limit = body_limit(search.limit) as usize;
    let rows = move |query: &Query, cells: GroupedAggregates| {
        cells.check_size()?;
        Ok(query::breakdown(query, cells, limit))
    };
    let items = run_query(&app, query, GROUPS_MAX + 1, rows).await?;
    respond::ok(&Page { items, next_cursor: None })
}

pub fn describe_dimensions() -> Doc {
    Doc::new("usage", "Values that a dimension has taken")
        .required_text("meter", "Name of the meter.")
        .required_text("field", "A declared dimension.")
        .text("subject", "One subject only.")
        .time("from", "Start, inclusive.", Required::False)
        .time("to", "End, exclusive.", Required::False)
        .limit(100, 1000)
        .page::<query::DimensionValue>("By number of events, then value.")
        .errors(&[404])
}

/// The values a dimension has taken, the most frequent first.
pub async fn dimensions(app: web::Data<App>, caller: Caller, params: Params) -> Result<HttpResponse> {
    caller.ensure_meter_allowed(params.get("meter"))?;
    let limit = params.limit(100, 1000)? as usize;
    let from = params.optional_time("from", "invalid_from")?.unwrap_or(Window::ALWAYS.from);
    let to = params.optional_time("to", "invalid_to")?.unwrap_or(Window::ALWAYS.to);
    let window = Window::new(from, to)?;
    let subject = query::parse_subject_filter(params.get("subject"))?;
    let meter = known_meter(&app, &caller, params.get("meter")).await?;
    let field = query::parse_dimension_field(&meter, params.get("field"))?;
    // counting is what stored sums answer, whatever the meter aggregates
    let meter = Arc::new(Meter { aggregation: Aggregation::Count, ..(*meter).clone() });
    let query = one_field(meter, window, subject, field, None);
    let rows = move |query: &Query, cells: GroupedAggregates| {
        cells.check_size()?;
        Ok(query::values_taken(query, cells, limit))
    };
    let items = run_query(&app, query, GROUPS_MAX + 1, rows).await?;
    respond::ok(&Page { items, next_cursor: None })
}

/// A query over a whole window, grouped by one field.
fn one_field(
    meter: Arc<Meter>,
    window: Window,
    subject: Option<String>,
    field: GroupField,
    filter: Option<Filter>,
) -> Query {
    Query {
        meter,
        window,
        subject,
        group_by: vec![field],
        filter,
        buckets: None,
        skip_missing: true,
        exact: true,
    }
}
