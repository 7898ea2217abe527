//! `/v1/entitlements` (rest.md 12.11, jobs.md 4.10): may a subject use more, what was decided, where it stands.

use actix_web::http::{StatusCode, header};
use actix_web::{HttpResponse, web};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::app::App;
use crate::app::check::Asked;
use crate::auth::Caller;
use crate::db::columns::{quantity_of, readable, uuid_of};
use crate::db::{Conn, DbError};
use crate::entitlements::consume::Quota;
use crate::entitlements::period::WindowInput;
use crate::entitlements::quota::{Check, State, state_message};
use crate::entitlements::sql::decisions::{self, Decided, Decision};
use crate::entitlements::sql::listing::{self, Entry, Filter};
use crate::error::{Error, Result};
use crate::http::body::{Body, Json};
use crate::http::dry_run::{self, DryRun};
use crate::http::extract::{CursorTime, Id, Params, paginate};
use crate::http::openapi::Doc;
use crate::http::respond::{self, Page};
use crate::http::usage::ensure_allowed;
use crate::ingest::preview::key_conflict;
use crate::ingest::{About, Door, Origin, Rehearsed, insert};
use crate::metering::event::{Input, InputQuantity, parse_key};
use crate::metering::quantity::Quantity;
use crate::metering::stored::StoredEvent;
use crate::metering::time::Timestamp;

#[derive(Default, Deserialize, ToSchema)]
pub struct CheckInput {
    #[schema(value_type = String, max_length = 128, pattern = "^[A-Za-z0-9][A-Za-z0-9_.:-]*$")]
    subject: Option<String>,
    #[schema(value_type = String, min_length = 1)]
    meter: Option<String>,
    #[schema(value_type = Option<Quantity>)]
    quantity: Option<InputQuantity>,
}

pub fn describe_check() -> Doc {
    Doc::new("entitlements", "May a subject use more?")
        .body::<CheckInput>()
        .answer::<Check>(200, "Also for no; nothing is reserved.")
}

/// Says whether a quantity would fit; stores and reserves nothing.
pub async fn check(app: web::Data<App>, caller: Caller, body: Json<CheckInput>) -> Result<HttpResponse> {
    let Json(input) = body;
    let meter = input.meter.as_deref().unwrap_or_default();
    caller.ensure_meter_allowed(meter)?;
    let subject = input.subject.as_deref().unwrap_or_default();
    let asked = Asked::new(caller.workspace_id, subject, meter, input.quantity)?;
    respond::ok(&app.check(&asked).await?)
}

/// The answer to a consumption, with 201 and with 429.
#[derive(Serialize, ToSchema)]
#[schema(as = Consumption)]
pub struct ConsumptionView {
    accepted: bool,
    /// An earlier decision is answered again, or an event that is stored under the key already.
    replayed: bool,
    /// The quota could not be evaluated, and the failure policy of the limit decided.
    evaluation_failed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<StoredEvent>,
    #[schema(value_type = Quota)]
    quota: Box<RawValue>,
    /// The key was used before, with another payload.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schema(required = false)]
    conflict: bool,
}

fn quota_json(decision: &Decision) -> Result<Box<RawValue>> {
    RawValue::from_string(decision.quota.clone()).map_err(Error::internal)
}

pub fn describe_consume() -> Doc {
    dry_run::described(Doc::new("entitlements", "Decide and record in one step"))
        .body::<Input>()
        .needs(&["idempotency_key"])
        .answer::<ConsumptionDryRun>(200, "Of a dry run.")
        .answer::<ConsumptionView>(201, "Recorded.")
        .answer::<ConsumptionView>(429, "Refused by a hard limit; nothing is recorded.")
        .errors(&[404])
}

/// Decides and records in one transaction.
pub async fn consume(
    app: web::Data<App>,
    caller: Caller,
    params: Params,
    body: Body,
) -> Result<HttpResponse> {
    if dry_run::is_asked(&params)? {
        let input: Input = body.object().await?;
        caller.ensure_meter_allowed(input.meter())?;
        let key = needed_key(&input)?;
        return rehearse(&app, &caller, input, key).await;
    }
    let origin = Origin::of(&caller, Door::Consume);
    let input: Input = body.object_sent().await.map_err(|unread| unread.told(&app.ingest, &origin))?;
    ensure_allowed(&app.ingest, &origin, &caller, &input)?;
    let key = needed_key(&input)
        .map_err(|error| app.ingest.refuse(&origin, About::of(&input), error.at("idempotency_key")))?;
    let decided = match app.ingest.consume(origin, input).await {
        // a key that was decided before is answered whatever else the body says
        Err(error) if matches!(error.code.http_status(), 400 | 404) => {
            replay(&app, caller.workspace_id, key).await?.ok_or(error)?
        }
        decided => decided?,
    };
    ensure_may_see(&caller, &decided)?;
    if decided.conflict && app.ingest.refuses_conflicts(caller.workspace_id).await? {
        let differing = decided.event.map(|event| event.conflict_fields).unwrap_or_default();
        return Err(key_conflict(&differing));
    }
    let (accepted, outcome) = match decided.decision.accepted {
        true => (StatusCode::CREATED, "accepted"),
        false => (StatusCode::TOO_MANY_REQUESTS, "rejected"),
    };
    metrics::counter!("open_spanner_consumption_decisions_total", "outcome" => outcome).increment(1);
    let answer = ConsumptionView::of(decided)?;
    let mut response = respond::json(accepted, &answer)?;
    if let Some(seconds) = retry_after(&answer.quota).filter(|_| !answer.accepted) {
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    respond::about_key(&mut response, answer.replayed, answer.conflict);
    Ok(response)
}

/// Without a key a consumption could not be repeated.
fn needed_key(input: &Input) -> Result<String> {
    let key = parse_key(input.idempotency_key.as_deref())?;
    key.ok_or_else(|| Error::invalid("idempotency_key is required"))
}

impl ConsumptionView {
    fn of(decided: Decided) -> Result<Self> {
        Ok(ConsumptionView {
            accepted: decided.decision.accepted,
            replayed: decided.replayed,
            evaluation_failed: decided.decision.evaluation_failed,
            quota: quota_json(&decided.decision)?,
            event: decided.event,
            conflict: decided.conflict,
        })
    }
}

/// The key of a decision may lead to a meter that the caller did not name.
fn ensure_may_see(caller: &Caller, decided: &Decided) -> Result<()> {
    caller.ensure_meter_allowed(&decided.decision.meter)?;
    decided.event.as_ref().map_or(Ok(()), |event| caller.ensure_meter_allowed(&event.meter))
}

/// A dry run of a consumption: what every dry run answers, and the decision.
#[derive(Serialize, ToSchema)]
pub struct ConsumptionDryRun {
    #[serde(flatten)]
    run: DryRun,
    /// Absent when the event is invalid and nothing is decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    decision: Option<ConsumptionView>,
}

async fn rehearse(app: &App, caller: &Caller, input: Input, key: String) -> Result<HttpResponse> {
    let workspace_id = caller.workspace_id;
    let (preview, decided) = app
        .ingest
        .rehearse(Origin::of(caller, Door::Consume), Rehearsed::Consumption, vec![input], None)
        .await?;
    let decided = match decided {
        Some(decided) => Some(*decided),
        // as the call itself: a key that was decided before is answered whatever else the body says
        None => replay(app, workspace_id, key).await?,
    };
    let mut status = preview.items.first().map_or(201, |item| item.status);
    if let Some(decided) = &decided {
        ensure_may_see(caller, decided)?;
        status = match decided.decision.accepted {
            _ if status == 409 => 409,
            true => 201,
            false => 429,
        };
    }
    let run = DryRun::of(preview.confined(|meter| caller.ensure_meter_allowed(meter)), status);
    respond::ok(&ConsumptionDryRun { run, decision: decided.map(ConsumptionView::of).transpose()? })
}

/// The seconds that a refusal names in its body, for clients that read headers only.
fn retry_after(quota: &RawValue) -> Option<u64> {
    #[derive(Deserialize)]
    struct Refused {
        retry_after_seconds: Option<u64>,
    }
    serde_json::from_str::<Refused>(quota.get()).ok()?.retry_after_seconds
}

async fn replay(app: &App, workspace_id: i64, key: String) -> Result<Option<Decided>> {
    app.store
        .ingestion()
        .read("events::replay", move |conn: &mut Conn| insert::replay(conn, workspace_id, &key))
        .await
}

/// A decision as it is kept.
#[derive(Serialize, ToSchema)]
#[schema(as = ConsumptionDecision)]
pub struct DecisionView {
    idempotency_key: String,
    accepted: bool,
    evaluation_failed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    event_id: Option<String>,
    created_at: Timestamp,
    #[schema(value_type = Quota)]
    quota: Box<RawValue>,
}

impl DecisionView {
    fn of(decision: Decision) -> Result<Self> {
        let event_id = decision.event_id.as_deref().map(uuid_of).transpose();
        let event_id = event_id.map_err(|fault: DbError| fault.into_error("decisions::view"))?;
        Ok(DecisionView {
            quota: quota_json(&decision)?,
            idempotency_key: decision.idempotency_key,
            accepted: decision.accepted,
            evaluation_failed: decision.evaluation_failed,
            event_id: event_id.map(|id| id.to_string()),
            created_at: Timestamp(decision.created_at),
        })
    }
}

/// Position in a list of decisions.
#[derive(Serialize, Deserialize)]
struct ByTimeAndKey {
    time: i64,
    key: String,
}

/// The parameters that narrow a list.
fn narrowed(doc: Doc) -> Doc {
    doc.text("subject", "One subject only.").text("meter", "One meter only.").text("state", "One state only.")
}

pub fn describe_decisions() -> Doc {
    narrowed(Doc::new("entitlements", "List decisions"))
        .text("enforcement", "`advisory` or `hard`.")
        .text("outcome", "`accepted`, `rejected` or `all`.")
        .text("evaluation_failed", "Only those whose quota could (not) be computed.")
        .limit(50, 200)
        .cursor()
        .page::<DecisionView>("Newest first.")
}

pub async fn decisions(app: web::Data<App>, caller: Caller, params: Params) -> Result<HttpResponse> {
    let (workspace_id, limit) = (caller.workspace_id, params.limit(50, 200)?);
    caller.ensure_meter_allowed(params.get("meter"))?;
    let word = |name| params.get(name).trim().to_owned();
    let accepted = match word("outcome").to_lowercase().as_str() {
        "" | "all" => None,
        "accepted" => Some(true),
        "rejected" => Some(false),
        _ => return Err(Error::invalid("outcome must be accepted, rejected or all")),
    };
    let after = params.cursor::<ByTimeAndKey>()?;
    let filter = decisions::Filter {
        subject: word("subject"),
        meter: word("meter"),
        enforcement: word("enforcement"),
        state: word("state"),
        accepted,
        evaluation_failed: params.boolean("evaluation_failed", "invalid_evaluation_failed")?,
        after: after.map(|cursor| (Timestamp(cursor.time), cursor.key)),
    };
    let list = move |conn: &mut Conn| decisions::list(conn, workspace_id, &filter, limit + 1);
    let rows = app.store.read("decisions::list", list).await?;
    let (rows, next_cursor) =
        paginate(rows, limit, |row| ByTimeAndKey { time: row.created_at, key: row.idempotency_key.clone() })?;
    let view = |row: Decision| readable("decisions", row.idempotency_key.clone(), DecisionView::of(row));
    let items: Vec<DecisionView> = rows.into_iter().filter_map(view).collect();
    respond::ok(&Page { items, next_cursor })
}

pub fn describe_decision() -> Doc {
    Doc::new("entitlements", "Read a decision").answer::<DecisionView>(200, "The decision.")
}

pub async fn decision(app: web::Data<App>, caller: Caller, Id(key): Id) -> Result<HttpResponse> {
    let key = parse_key(Some(&key))?.ok_or_else(|| Error::invalid("idempotency_key is required"))?;
    let workspace_id = caller.workspace_id;
    let find = move |conn: &mut Conn| decisions::find(conn, workspace_id, &key);
    let found = app.store.read("decisions::find", find).await?;
    let decision = found.ok_or_else(|| Error::not_found("decision"))?;
    caller.ensure_meter_allowed(&decision.meter)?;
    respond::ok(&DecisionView::of(decision)?)
}

/// Where a subject stands with a limit, as last evaluated.
#[derive(Serialize, ToSchema)]
#[schema(as = EntitlementState)]
pub struct StateView {
    subject: String,
    meter: String,
    plan_id: String,
    plan_name: String,
    period: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    window: Option<WindowInput>,
    state: String,
    current: Quantity,
    limit: Quantity,
    remaining: Quantity,
    warning_percent: Quantity,
    message: &'static str,
    evaluated_at: Timestamp,
    updated_at: Timestamp,
}

/// A line that a subject crossed.
#[derive(Serialize, ToSchema)]
#[schema(as = EntitlementEvent)]
pub struct EventView {
    id: String,
    subject: String,
    meter: String,
    plan_id: String,
    plan_name: String,
    period: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    window: Option<WindowInput>,
    #[serde(skip_serializing_if = "Option::is_none")]
    previous_state: Option<String>,
    state: String,
    #[serde(rename = "type")]
    kind: String,
    current: Quantity,
    limit: Quantity,
    remaining: Quantity,
    warning_percent: Quantity,
    message: &'static str,
    created_at: Timestamp,
}

/// What a period came to.
#[derive(Serialize, ToSchema)]
#[schema(as = EntitlementPeriod)]
pub struct PeriodView {
    subject: String,
    meter: String,
    plan_id: String,
    plan_name: String,
    plan_version: i32,
    period: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    window: Option<WindowInput>,
    from: Timestamp,
    to: Timestamp,
    state: String,
    current: Quantity,
    limit: Quantity,
    included: Quantity,
    overage: Quantity,
    remaining: Quantity,
    warning_percent: Quantity,
    event_count: i64,
    updated_at: Timestamp,
}

/// The numbers that all three show.
struct Numbers {
    current: Quantity,
    limit: Quantity,
    remaining: Quantity,
    overage: Quantity,
    warning_percent: Quantity,
    message: &'static str,
}

fn numbers(entry: &Entry) -> Result<Numbers> {
    let read = |text: &str| quantity_of(text).map_err(|fault| fault.into_error("entitlements::view"));
    let measure = entry.measure().map_err(|fault| fault.into_error("entitlements::view"))?;
    Ok(Numbers {
        current: measure.current,
        limit: read(&entry.limit_value)?,
        remaining: measure.remaining,
        overage: measure.overage,
        warning_percent: read(&entry.warning_percent)?,
        message: state_message(State::parse(&entry.state).unwrap_or(State::Ok)),
    })
}

fn state_view(entry: Entry) -> Result<StateView> {
    let (period, window) = entry.period_and_window();
    let Numbers { current, limit, remaining, warning_percent, message, .. } = numbers(&entry)?;
    Ok(StateView {
        subject: entry.subject,
        meter: entry.meter,
        plan_id: entry.plan_id,
        plan_name: entry.plan_name,
        period,
        window,
        state: entry.state,
        current,
        limit,
        remaining,
        warning_percent,
        message,
        evaluated_at: Timestamp(entry.at),
        updated_at: Timestamp(entry.at),
    })
}

fn event_view(entry: Entry) -> Result<EventView> {
    let (period, window) = entry.period_and_window();
    let Numbers { current, limit, remaining, warning_percent, message, .. } = numbers(&entry)?;
    Ok(EventView {
        id: entry.id,
        subject: entry.subject,
        meter: entry.meter,
        plan_id: entry.plan_id,
        plan_name: entry.plan_name,
        period,
        window,
        previous_state: entry.previous_state,
        state: entry.state,
        kind: entry.kind,
        current,
        limit,
        remaining,
        warning_percent,
        message,
        created_at: Timestamp(entry.at),
    })
}

fn period_view(entry: Entry) -> Result<PeriodView> {
    let (period, window) = entry.period_and_window();
    let Numbers { current, limit, remaining, overage, warning_percent, .. } = numbers(&entry)?;
    Ok(PeriodView {
        subject: entry.subject,
        meter: entry.meter,
        plan_id: entry.plan_id,
        plan_name: entry.plan_name,
        plan_version: entry.plan_version,
        period,
        window,
        from: Timestamp(entry.starts_at),
        to: Timestamp(entry.ends_at),
        state: entry.state,
        included: current.clone().min(limit.clone()),
        current,
        limit,
        overage,
        remaining,
        warning_percent,
        event_count: entry.event_count,
        updated_at: Timestamp(entry.at),
    })
}

fn filter(caller: &Caller, params: &Params) -> Result<Filter> {
    caller.ensure_meter_allowed(params.get("meter"))?;
    Ok(Filter {
        subject: crate::usage::query::parse_subject_filter(params.get("subject"))?.unwrap_or_default(),
        meter: params.get("meter").trim().to_owned(),
        plan_id: params.get("plan_id").trim().to_owned(),
        state: params.get("state").trim().to_owned(),
        ..Filter::default()
    })
}

pub fn describe_states() -> Doc {
    narrowed(Doc::new("entitlements", "Where subjects stand"))
        .limit(100, 1000)
        .page::<StateView>("The latest evaluated first.")
}

pub async fn states(app: web::Data<App>, caller: Caller, params: Params) -> Result<HttpResponse> {
    let (workspace_id, filter) = (caller.workspace_id, filter(&caller, &params)?);
    let limit = params.limit(100, 1000)?;
    let list = move |conn: &mut Conn| {
        // rest.md 12.11 does not narrow states by plan
        let filter = Filter { plan_id: String::new(), ..filter.clone() };
        listing::states(conn, workspace_id, &filter, limit)
    };
    let rows = app.store.read("entitlements::states", list).await?;
    let items: Vec<StateView> = rows
        .into_iter()
        .filter_map(|row| readable("entitlement_states", row.subject.clone(), state_view(row)))
        .collect();
    respond::ok(&Page { items, next_cursor: None })
}

/// Position in the list of events; both parts must be there.
#[derive(Serialize, Deserialize)]
struct ByTimeAndId {
    time: CursorTime,
    id: String,
}

pub fn describe_events() -> Doc {
    narrowed(Doc::new("entitlements", "Lines that were crossed"))
        .text("plan_id", "One plan version only.")
        .text("type", "`warning`, `exceeded` or `recovered`.")
        .limit(100, 1000)
        .cursor()
        .page::<EventView>("Newest first.")
}

pub async fn events(app: web::Data<App>, caller: Caller, params: Params) -> Result<HttpResponse> {
    let (workspace_id, mut filter) = (caller.workspace_id, filter(&caller, &params)?);
    let limit = params.limit(100, 1000)?;
    filter.kind = params.get("type").trim().to_owned();
    if let Some(cursor) = params.cursor::<ByTimeAndId>()? {
        filter.after = Some((cursor.time.0, cursor.id));
    }
    let list = move |conn: &mut Conn| listing::events(conn, workspace_id, &filter, limit + 1);
    let rows = app.store.read("entitlements::events", list).await?;
    let (rows, next_cursor) =
        paginate(rows, limit, |row| ByTimeAndId { time: CursorTime(Timestamp(row.at)), id: row.id.clone() })?;
    let items: Vec<EventView> = rows
        .into_iter()
        .filter_map(|row| readable("entitlement_events", row.id.clone(), event_view(row)))
        .collect();
    respond::ok(&Page { items, next_cursor })
}

pub fn describe_periods() -> Doc {
    narrowed(Doc::new("entitlements", "What periods came to"))
        .text("plan_id", "One plan version only.")
        .limit(100, 1000)
        .page::<PeriodView>("The latest period first.")
}

pub async fn periods(app: web::Data<App>, caller: Caller, params: Params) -> Result<HttpResponse> {
    let (workspace_id, filter) = (caller.workspace_id, filter(&caller, &params)?);
    let limit = params.limit(100, 1000)?;
    let list = move |conn: &mut Conn| listing::periods(conn, workspace_id, &filter, limit);
    let rows = app.store.read("entitlements::periods", list).await?;
    let items: Vec<PeriodView> = rows
        .into_iter()
        .filter_map(|row| readable("entitlement_periods", row.subject.clone(), period_view(row)))
        .collect();
    respond::ok(&Page { items, next_cursor: None })
}
