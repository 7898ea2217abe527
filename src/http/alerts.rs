//! `/v1/alerts`: rules, evaluation on request, events and their delivery (rest.md 12.12, jobs.md 3.4).

use std::collections::HashMap;
use std::sync::Arc;

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, web};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::alerts::backtest::{Backtest, Firing};
use crate::alerts::evaluate::{self, Evaluated, evaluate};
use crate::alerts::rule::{RuleInput, RuleSpec};
use crate::alerts::sql::deliveries::{self, Delivery};
use crate::alerts::sql::events::{self, Attempt, Event};
use crate::alerts::sql::rules::{self, Change, Filter, NewRule, Rule};
use crate::alerts::sql::states;
use crate::alerts::state::{State, primary, ranked};
use crate::alerts::webhook::RulePart;
use crate::app::App;
use crate::auth::Caller;
use crate::db::Conn;
use crate::db::columns::quantity_of;
use crate::error::{Error, Result};
use crate::http::body::Json;
use crate::http::destinations::{DestinationView, sees_addresses};
use crate::http::extract::{Id, Params, paginate};
use crate::http::openapi::Doc;
use crate::http::respond::{self, Page};
use crate::metering::quantity::Quantity;
use crate::metering::time::Timestamp;

#[derive(Serialize, ToSchema)]
#[schema(as = AlertState)]
pub struct StateView<'a> {
    status: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    group_key: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    group_value: &'a str,
    value: &'a Quantity,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    evaluated_at: Option<Timestamp>,
    updated_at: Timestamp,
}

impl<'a> StateView<'a> {
    fn of(state: &'a State, evaluated_at: Option<Timestamp>) -> Self {
        let group = state.group.as_ref();
        StateView {
            status: state.status.as_str(),
            group_key: group.map_or("", |group| &group.key),
            group_value: group.map_or("", |group| &group.value),
            value: &state.value,
            message: &state.message,
            evaluated_at,
            updated_at: state.updated_at,
        }
    }
}

#[derive(Serialize, ToSchema)]
#[schema(as = AlertRule)]
pub struct RuleView<'a> {
    #[serde(flatten)]
    part: RulePart<'a>,
    destination_id: &'a str,
    destination: DestinationView<'a>,
    next_evaluate_at: Timestamp,
    /// Until then nobody is told what happens.
    #[serde(skip_serializing_if = "Option::is_none")]
    snoozed_until: Option<Timestamp>,
    created_at: Timestamp,
    updated_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<StateView<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    states: Vec<StateView<'a>>,
}

impl<'a> RuleView<'a> {
    fn of(rule: &'a Rule, states: &'a [State], sees_addresses: bool) -> Self {
        RuleView {
            // id and name of the destination stand outside of this part
            part: RulePart::new(&rule.public_id, &rule.meter, &rule.terms, ("", "")),
            destination_id: &rule.destination.public_id,
            destination: DestinationView::of(&rule.destination, sees_addresses),
            next_evaluate_at: rule.next_evaluate_at,
            snoozed_until: rule.snoozed_until.filter(|until| Timestamp::now() < *until),
            created_at: rule.created_at,
            updated_at: rule.updated_at,
            state: primary(states).map(|state| StateView::of(state, rule.evaluated_at)),
            states: ranked(states).into_iter().map(|state| StateView::of(state, rule.evaluated_at)).collect(),
        }
    }
}

#[derive(Serialize, ToSchema)]
#[schema(as = AlertDelivery)]
pub struct AttemptView<'a> {
    id: &'a str,
    event_id: &'a str,
    trigger_type: &'static str,
    status: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    status_code: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response: Option<&'a str>,
    duration_ms: i64,
    attempted_at: Timestamp,
    created_at: Timestamp,
}

#[derive(Serialize, ToSchema)]
#[schema(as = AlertEvent)]
pub struct EventView<'a> {
    id: &'a str,
    rule_id: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    group_key: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    group_value: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
    value: Quantity,
    message: &'a str,
    created_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    delivery: Option<AttemptView<'a>>,
}

impl<'a> EventView<'a> {
    fn of(event: &'a Event, attempt: Option<&'a Attempt>) -> Result<Self> {
        let value = quantity_of(&event.value).map_err(|fault| fault.into_error("alerts::events"))?;
        Ok(EventView {
            id: &event.public_id,
            rule_id: &event.rule_public_id,
            group_key: &event.group_key,
            group_value: &event.group_value,
            kind: &event.kind,
            value,
            message: &event.message,
            created_at: Timestamp(event.created_at),
            delivery: attempt.map(|attempt| AttemptView {
                id: &attempt.public_id,
                event_id: &attempt.event_id,
                trigger_type: "webhook",
                status: &attempt.status,
                status_code: attempt.status_code,
                error: attempt.error.as_deref(),
                response: attempt.response.as_deref(),
                duration_ms: attempt.duration_ms,
                attempted_at: Timestamp(attempt.attempted_at),
                created_at: Timestamp(attempt.attempted_at),
            }),
        })
    }
}

/// The names that a rule cannot do without.
fn required<'a>(text: &'a Option<String>, name: &str) -> Result<&'a str> {
    match text.as_deref().map(str::trim) {
        None | Some("") => Err(Error::invalid(format!("{name} is required"))),
        Some(text) => Ok(text),
    }
}

/// A name that a change may leave out, or leave blank.
fn named(text: Option<&str>) -> Option<String> {
    text.map(str::trim).filter(|text| !text.is_empty()).map(str::to_owned)
}

pub fn describe_create() -> Doc {
    Doc::new("alerts", "Create an alert rule")
        .body::<RuleInput>()
        .needs(&["name", "meter", "destination_id"])
        .answer::<RuleView>(201, "The rule; it is evaluated at once. At most 1,000 in a workspace.")
        .errors(&[404, 409])
}

pub async fn create(app: web::Data<App>, caller: Caller, body: Json<RuleInput>) -> Result<HttpResponse> {
    let Json(input) = body;
    caller.ensure_meter_allowed(input.meter.as_deref().unwrap_or_default())?;
    let new = NewRule {
        workspace_id: caller.workspace_id,
        terms: RuleSpec::new(&input)?,
        meter: required(&input.meter, "meter")?.to_owned(),
        destination_id: required(&input.destination_id, "destination_id")?.to_owned(),
    };
    let rule = app.store.write("alerts::add", move |conn| rules::add(conn, &new, Timestamp::now())).await?;
    app.wake.notify();
    respond::created(&RuleView::of(&rule, &[], sees_addresses(&caller)))
}

/// From when until when a rule would have fired.
#[derive(Serialize, ToSchema)]
#[schema(as = BacktestFiring)]
pub struct FiringView {
    #[serde(skip_serializing_if = "Option::is_none")]
    group_key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    group_value: Option<String>,
    value: Quantity,
    triggered_at: Timestamp,
    /// Absent while it would be firing now.
    #[serde(skip_serializing_if = "Option::is_none")]
    resolved_at: Option<Timestamp>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Backtest)]
pub struct BacktestView {
    from: Timestamp,
    to: Timestamp,
    /// From look to look; the rule itself looks at its own interval.
    step_seconds: i64,
    /// The oldest first, at most 1,000.
    firings: Vec<FiringView>,
    has_more: bool,
}

impl From<Backtest> for BacktestView {
    fn from(done: Backtest) -> Self {
        let firing = |firing: Firing| {
            let (group_key, group_value) = firing.group.map(|group| (group.key, group.value)).unzip();
            let (value, triggered_at, resolved_at) = (firing.value, firing.from, firing.until);
            FiringView { group_key, group_value, value, triggered_at, resolved_at }
        };
        BacktestView {
            from: done.from,
            to: done.to,
            step_seconds: done.step_seconds,
            firings: done.firings.into_iter().map(firing).collect(),
            has_more: done.has_more,
        }
    }
}

pub fn describe_backtest() -> Doc {
    Doc::new("alerts", "What a rule would have done in the last 28 days")
        .body::<RuleInput>()
        .needs(&["name", "meter"])
        .answer::<BacktestView>(
            200,
            "Nothing is stored. For windows of whole hours, above two days of whole days.",
        )
        .errors(&[404])
}

pub async fn backtest(app: web::Data<App>, caller: Caller, body: Json<RuleInput>) -> Result<HttpResponse> {
    let Json(input) = body;
    let meter = required(&input.meter, "meter")?.to_owned();
    caller.ensure_meter_allowed(&meter)?;
    let done = app.backtest(caller.workspace_id, &meter, RuleSpec::new(&input)?).await?;
    respond::ok(&BacktestView::from(done))
}

type Rules = (Vec<Rule>, HashMap<i64, Vec<State>>);

fn with_states(conn: &mut Conn, rules: Vec<Rule>) -> Result<Rules, crate::db::DbError> {
    let ids: Vec<i64> = rules.iter().map(|rule| rule.id).collect();
    let states = states::first_of_rules(conn, &ids, STATES_OF_ONE)?;
    Ok((rules, states))
}

/// States of a rule that is read by itself (contract, rest.md 12): it may have 100,000 groups.
const STATES_OF_ONE: usize = 1_000;

/// States in a list of rules: of each at most so many, and of all together.
const STATES_LISTED: usize = 100;
const ALL_STATES_LISTED: usize = 20_000;

/// As [`with_states`], for a list.
fn with_first_states(conn: &mut Conn, rules: Vec<Rule>) -> Result<Rules, crate::db::DbError> {
    let ids: Vec<i64> = rules.iter().map(|rule| rule.id).collect();
    let most = (ALL_STATES_LISTED / ids.len().max(1)).min(STATES_LISTED);
    let states = states::first_of_rules(conn, &ids, most)?;
    Ok((rules, states))
}

pub fn describe_list() -> Doc {
    Doc::new("alerts", "List alert rules")
        .text("meter", "Rules of one meter.")
        .text("enabled", "`true` or `false`.")
        .limit(100, 1000)
        .page::<RuleView>(
            "Newest first, with their states: at most 100 of each rule and 20,000 of all, those that stand for it first.",
        )
}

pub async fn list(app: web::Data<App>, caller: Caller, params: Params) -> Result<HttpResponse> {
    let meter = params.get("meter").to_owned();
    caller.ensure_meter_allowed(&meter)?;
    let filter = Filter {
        enabled: params.boolean("enabled", "invalid_enabled")?,
        meter: Some(meter).filter(|meter| !meter.is_empty()),
        ..Filter::default()
    };
    let limit = params.limit(100, 1000)?;
    let workspace_id = caller.workspace_id;
    let (rules, states) = app
        .store
        .read("alerts::list", move |conn| {
            let rules = rules::rules(conn, Some(workspace_id), &filter, limit)?;
            with_first_states(conn, rules)
        })
        .await?;
    let sees = sees_addresses(&caller);
    let items =
        rules.iter().map(|rule| RuleView::of(rule, states.get(&rule.id).map_or(&[], Vec::as_slice), sees));
    respond::ok(&Page { items: items.collect(), next_cursor: None })
}

async fn find(app: &App, caller: &Caller, id: &str) -> Result<(Rule, Vec<State>)> {
    let (workspace_id, id) = (caller.workspace_id, id.to_owned());
    let load = move |conn: &mut Conn| {
        let rules = rules::rule(conn, workspace_id, &id)?.into_iter().collect();
        with_states(conn, rules)
    };
    let (mut rules, mut states) = app.store.read("alerts::get", load).await?;
    let rule = rules.pop().ok_or_else(|| Error::not_found("alert rule"))?;
    caller.ensure_meter_allowed(&rule.meter)?;
    let states = states.remove(&rule.id).unwrap_or_default();
    Ok((rule, states))
}

pub fn describe_get() -> Doc {
    Doc::new("alerts", "Read an alert rule").answer::<RuleView>(200, "The rule and its states.")
}

pub async fn get(app: web::Data<App>, caller: Caller, Id(id): Id) -> Result<HttpResponse> {
    let (rule, states) = find(&app, &caller, &id).await?;
    respond::ok(&RuleView::of(&rule, &states, sees_addresses(&caller)))
}

pub fn describe_update() -> Doc {
    Doc::new("alerts", "Change an alert rule")
        .body::<RuleInput>()
        .answer::<RuleView>(200, "The rule as it is now.")
}

pub async fn update(
    app: web::Data<App>,
    caller: Caller,
    Id(id): Id,
    body: Json<RuleInput>,
) -> Result<HttpResponse> {
    find(&app, &caller, &id).await?;
    let (Json(input), workspace_id) = (body, caller.workspace_id);
    if let Some(meter) = input.meter.as_deref().filter(|meter| !meter.trim().is_empty()) {
        caller.ensure_meter_allowed(meter)?;
    }
    if input.destination_id.as_deref().is_some_and(|id| id.trim().is_empty()) {
        return Err(Error::invalid("destination_id must not be empty"));
    }
    let public_id = id.clone();
    let update = move |conn: &mut Conn| {
        let change = |rule: &Rule| {
            Ok(Change {
                terms: rule.terms.changed(&input)?,
                meter: named(input.meter.as_deref()),
                destination_id: named(input.destination_id.as_deref()),
            })
        };
        rules::update(conn, workspace_id, &public_id, change, Timestamp::now())
    };
    app.store.write("alerts::update", update).await?;
    app.wake.notify();
    let (rule, states) = find(&app, &caller, &id).await?;
    respond::ok(&RuleView::of(&rule, &states, sees_addresses(&caller)))
}

pub fn describe_delete() -> Doc {
    Doc::new("alerts", "Delete an alert rule").empty(204, "Deleted; what fired is resolved.")
}

pub async fn delete(app: web::Data<App>, caller: Caller, Id(id): Id) -> Result<HttpResponse> {
    find(&app, &caller, &id).await?;
    let workspace_id = caller.workspace_id;
    let delete = move |conn: &mut Conn| rules::delete(conn, workspace_id, &id, Timestamp::now());
    app.store.write("alerts::delete", delete).await?;
    app.wake.notify();
    Ok(respond::no_content())
}

#[derive(Serialize, ToSchema)]
#[schema(as = AlertEvaluation)]
pub struct EvaluationView<'a> {
    rule: RuleView<'a>,
    state: Option<StateView<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<EventView<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    events: Vec<EventView<'a>>,
}

pub fn describe_evaluate_now() -> Doc {
    Doc::new("alerts", "Evaluate an alert rule now")
        .answer::<EvaluationView>(200, "The states, and what happened.")
}

/// Does what the worker does, now; deliveries are left to it.
pub async fn evaluate_now(app: web::Data<App>, caller: Caller, Id(id): Id) -> Result<HttpResponse> {
    let (rule, _) = find(&app, &caller, &id).await?;
    let done = if rule.terms.enabled {
        let filter = Filter { public_id: Some(id), ..Filter::default() };
        let outcome = evaluate(&app.store, Some(caller.workspace_id), filter).await?;
        if outcome.enqueued {
            app.wake.notify();
        }
        let busy = || Error::unavailable("the rule is being evaluated by others");
        outcome.last.ok_or_else(busy)?
    } else {
        let disabled = Arc::new(rule.clone());
        let write = move |conn: &mut Conn| evaluate::evaluate_disabled(conn, &disabled, Timestamp::now());
        let states = app.store.write("alerts::evaluate_disabled", write).await?;
        Evaluated { rule, states, events: Vec::new() }
    };
    let views = || done.events.iter().map(|event| EventView::of(event, None)).collect::<Result<Vec<_>>>();
    respond::ok(&EvaluationView {
        rule: RuleView::of(&done.rule, &done.states, sees_addresses(&caller)),
        state: primary(&done.states).map(|state| StateView::of(state, done.rule.evaluated_at)),
        event: views()?.into_iter().next(),
        events: views()?,
    })
}

#[derive(Default, Deserialize, ToSchema)]
#[schema(as = AlertSnooze)]
pub struct SnoozeInput {
    /// For so long; 0 ends it. At most 30 days.
    #[schema(value_type = i64, minimum = 0, maximum = 2_592_000)]
    seconds: Option<i64>,
}

pub fn describe_snooze() -> Doc {
    Doc::new("alerts", "Keep an alert rule quiet for a while")
        .body::<SnoozeInput>()
        .answer::<RuleView>(200, "The rule. It is evaluated as ever; nothing that happens meanwhile is sent.")
        .errors(&[404])
}

pub async fn snooze(
    app: web::Data<App>,
    caller: Caller,
    Id(id): Id,
    body: Json<SnoozeInput>,
) -> Result<HttpResponse> {
    let (_, states) = find(&app, &caller, &id).await?;
    let seconds = body.0.seconds.ok_or_else(|| Error::invalid("seconds is required"))?;
    let rule = app.snooze_rule(caller.workspace_id, id, seconds).await?;
    respond::ok(&RuleView::of(&rule, &states, sees_addresses(&caller)))
}

#[derive(Serialize, Deserialize)]
struct Before {
    before: i64,
}

pub fn describe_events() -> Doc {
    Doc::new("alerts", "What happened to rules")
        .text("rule_id", "Events of one rule.")
        .limit(100, 1000)
        .cursor()
        .page::<EventView>("Newest first, each with its latest delivery.")
        .errors(&[404])
}

pub async fn events(app: web::Data<App>, caller: Caller, params: Params) -> Result<HttpResponse> {
    let rule_id = match params.get("rule_id") {
        "" => {
            caller.ensure_meter_allowed("")?;
            None
        }
        id => Some(find(&app, &caller, id).await?.0.id),
    };
    let limit = params.limit(100, 1000)?;
    let before = params.cursor::<Before>()?.map(|cursor| cursor.before);
    let workspace_id = caller.workspace_id;
    let load = move |conn: &mut Conn| {
        let rows = events::events(conn, workspace_id, rule_id, before, limit + 1)?;
        let ids: Vec<String> = rows.iter().map(|(_, event)| event.public_id.clone()).collect();
        let attempts = events::latest_attempts(conn, &ids)?;
        Ok((rows, attempts))
    };
    let (rows, attempts) = app.store.read("alerts::events", load).await?;
    let (rows, next_cursor) = paginate(rows, limit, |(position, _)| Before { before: *position })?;
    let items: Result<Vec<_>> =
        rows.iter().map(|(_, event)| EventView::of(event, attempts.get(&event.public_id))).collect();
    respond::ok(&Page { items: items?, next_cursor })
}

#[derive(Serialize, ToSchema)]
#[schema(as = DeliveryJob)]
pub struct DeliveryView<'a> {
    id: &'a str,
    event_id: &'a str,
    destination_id: &'a str,
    status: &'a str,
    attempts: i32,
    next_attempt_at: Timestamp,
    last_error: Option<&'a str>,
    created_at: Timestamp,
    updated_at: Timestamp,
    delivered_at: Option<Timestamp>,
    /// The older delivery of the same group that this one waits for.
    #[serde(skip_serializing_if = "Option::is_none")]
    blocked_by: Option<&'a str>,
}

impl<'a> DeliveryView<'a> {
    fn of(delivery: &'a Delivery, blocked_by: Option<&'a str>) -> Self {
        DeliveryView {
            id: &delivery.public_id,
            event_id: &delivery.event_id,
            destination_id: &delivery.destination_id,
            status: &delivery.status,
            attempts: delivery.attempts,
            next_attempt_at: Timestamp(delivery.next_attempt_at),
            last_error: delivery.last_error.as_deref(),
            created_at: Timestamp(delivery.created_at),
            updated_at: Timestamp(delivery.updated_at),
            delivered_at: delivery.delivered_at.map(Timestamp),
            blocked_by,
        }
    }
}

pub fn describe_redeliver() -> Doc {
    Doc::new("alerts", "Send an event again").answer::<DeliveryView>(202, "Queued, under the same id.")
}

/// Sends an event again under its own id.
pub async fn redeliver(app: web::Data<App>, caller: Caller, Id(id): Id) -> Result<HttpResponse> {
    caller.ensure_meter_allowed("")?;
    let workspace_id = caller.workspace_id;
    let again = move |conn: &mut Conn| deliveries::redeliver(conn, workspace_id, &id, Timestamp::now());
    let delivery = app.store.write("deliveries::redeliver", again).await?;
    app.wake.notify();
    respond::json(StatusCode::ACCEPTED, &DeliveryView::of(&delivery, None))
}

pub fn describe_delivery_jobs() -> Doc {
    Doc::new("alerts", "What is or was to be delivered")
        .text("status", "`pending`, `delivered` or `dead_letter`.")
        .limit(50, 200)
        .page::<DeliveryView>("Newest first.")
}

pub async fn delivery_jobs(app: web::Data<App>, caller: Caller, params: Params) -> Result<HttpResponse> {
    caller.ensure_meter_allowed("")?;
    let limit = params.limit(50, 200)?;
    let status = match params.get("status") {
        "" => None,
        known @ ("pending" | "delivered" | "dead_letter") => Some(known.to_owned()),
        _ => {
            let message = "status must be pending, delivered or dead_letter";
            return Err(Error::parameter("invalid_status", message));
        }
    };
    let workspace_id = caller.workspace_id;
    let list = move |conn: &mut Conn| deliveries::list(conn, workspace_id, status.as_deref(), limit);
    let rows = app.store.read("deliveries::list", list).await?;
    let items = rows.iter().map(|row| DeliveryView::of(&row.delivery, row.blocked_by.as_deref()));
    respond::ok(&Page { items: items.collect(), next_cursor: None })
}

pub fn describe_retry_delivery() -> Doc {
    Doc::new("alerts", "Try a dead delivery again").empty(204, "Queued.").errors(&[409])
}

pub async fn retry_delivery(app: web::Data<App>, caller: Caller, Id(id): Id) -> Result<HttpResponse> {
    caller.ensure_meter_allowed("")?;
    let workspace_id = caller.workspace_id;
    let retry = move |conn: &mut Conn| deliveries::retry(conn, workspace_id, &id, Timestamp::now());
    app.store.write("deliveries::retry", retry).await?;
    app.wake.notify();
    Ok(respond::no_content())
}
