//! `/v1/alerts/destinations` (rest.md 12.12). The secret is part of the answers to create and rotate only.

use actix_web::{HttpResponse, web};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::alerts::rule::parse_label;
use crate::alerts::sql::destinations::{self, Destination, DestinationSpec};
use crate::alerts::webhook::client::WebhookRequest;
use crate::alerts::webhook::{self, SECRET_OVERLAP, SECRET_PREFIX, SIGNATURE_HEADER, TIMESTAMP_HEADER};
use crate::app::App;
use crate::auth::Caller;
use crate::auth::permission::{self, Access, Role, Scope};
use crate::auth::token::Token;
use crate::chance;
use crate::db::Conn;
use crate::error::{Error, Result};
use crate::http::body::Json;
use crate::http::extract::{Id, Params};
use crate::http::openapi::Doc;
use crate::http::respond::{self, Page};
use crate::metering::time::Timestamp;

/// A destination on the wire; fields in contract order.
#[derive(Serialize, ToSchema)]
#[schema(as = AlertDestination)]
pub struct DestinationView<'a> {
    id: &'a str,
    name: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    enabled: bool,
    /// Whole for callers who may change destinations, without path and query for all others: those may hold a token.
    webhook_url: &'a str,
    webhook_signing: Signing,
    created_at: Timestamp,
    updated_at: Timestamp,
}

#[derive(Serialize, ToSchema)]
#[schema(as = WebhookSigning)]
pub struct Signing {
    enabled: bool,
    algorithm: &'static str,
    signature_header: &'static str,
    timestamp_header: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<String>,
    /// The same key as the libraries of Standard Webhooks take it.
    #[serde(skip_serializing_if = "Option::is_none")]
    standard_webhooks_secret: Option<String>,
}

impl<'a> DestinationView<'a> {
    /// `sees_all`: the caller may change destinations.
    pub fn of(destination: &'a Destination, sees_all: bool) -> Self {
        let can_sign = !destination.webhook_url.is_empty() && destination.has_secret();
        DestinationView {
            id: &destination.public_id,
            name: &destination.name,
            kind: "webhook",
            enabled: destination.enabled,
            webhook_url: if sees_all {
                &destination.webhook_url
            } else {
                webhook::origin(&destination.webhook_url)
            },
            webhook_signing: Signing {
                enabled: destination.enabled && can_sign,
                algorithm: "hmac-sha256",
                signature_header: SIGNATURE_HEADER,
                timestamp_header: TIMESTAMP_HEADER,
                secret: None,
                standard_webhooks_secret: None,
            },
            created_at: Timestamp(destination.created_at),
            updated_at: Timestamp(destination.updated_at),
        }
    }

    fn with_secret(destination: &'a Destination) -> Result<Self> {
        let (mut view, secret) = (DestinationView::of(destination, true), destination.secret()?);
        view.webhook_signing.standard_webhooks_secret = Some(webhook::standard_secret(&secret));
        view.webhook_signing.secret = Some(secret);
        Ok(view)
    }
}

/// Whether the caller may see what stands behind the host of an address: whoever may change destinations may.
pub fn sees_addresses(caller: &Caller) -> bool {
    permission::allow(caller, &Access::Key(&[Scope::AlertsWrite], Role::Admin)).is_ok()
}

#[derive(Default, Deserialize, ToSchema)]
#[schema(as = AlertDestinationInput)]
pub struct DestinationInput {
    name: Option<String>,
    #[serde(rename = "type")]
    #[schema(pattern = "^(webhook)?$")]
    kind: Option<String>,
    enabled: Option<bool>,
    #[schema(pattern = "^https?://[a-z0-9]")]
    webhook_url: Option<String>,
}

fn check_kind(kind: &Option<String>) -> Result<()> {
    match kind.as_deref() {
        None | Some("" | "webhook") => Ok(()),
        Some(_) => Err(Error::invalid("type must be webhook")),
    }
}

pub fn describe_create() -> Doc {
    Doc::new("alerts", "Create a destination")
        .body::<DestinationInput>()
        .needs(&["name", "webhook_url"])
        .answer::<DestinationView>(
            201,
            "The destination; its secret is shown only here. At most 500 in a workspace.",
        )
        .errors(&[409])
}

pub async fn create(
    app: web::Data<App>,
    caller: Caller,
    body: Json<DestinationInput>,
) -> Result<HttpResponse> {
    caller.ensure_meter_allowed("")?;
    let Json(input) = body;
    let terms = DestinationSpec {
        name: parse_label(input.name.as_deref().unwrap_or_default())?,
        enabled: input.enabled.unwrap_or(true),
        webhook_url: webhook::parse_url(input.webhook_url.as_deref().unwrap_or_default())?,
    };
    app.webhooks.accept(&terms.webhook_url)?;
    check_kind(&input.kind)?;
    let secret = Token::new(SECRET_PREFIX)?;
    let workspace_id = caller.workspace_id;
    let add = move |conn: &mut Conn| {
        destinations::add(conn, workspace_id, &terms, secret.expose(), Timestamp::now())
    };
    let destination = app.store.write("destinations::add", add).await?;
    respond::created(&DestinationView::with_secret(&destination)?)
}

pub fn describe_list() -> Doc {
    Doc::new("alerts", "List destinations")
        .text("type", "`webhook`.")
        .text("enabled", "`true` or `false`.")
        .limit(100, 1000)
        .page::<DestinationView>("Newest first.")
}

pub async fn list(app: web::Data<App>, caller: Caller, params: Params) -> Result<HttpResponse> {
    caller.ensure_meter_allowed("")?;
    let enabled = params.boolean("enabled", "invalid_enabled")?;
    let limit = params.limit(100, 1000)?;
    let nothing = !matches!(params.get("type"), "" | "webhook");
    let workspace_id = caller.workspace_id;
    let list = move |conn: &mut Conn| destinations::list(conn, workspace_id, enabled, limit);
    let rows = if nothing { Vec::new() } else { app.store.read("destinations::list", list).await? };
    let sees_all = sees_addresses(&caller);
    let items = rows.iter().map(|row| DestinationView::of(row, sees_all));
    respond::ok(&Page { items: items.collect(), next_cursor: None })
}

pub fn describe_update() -> Doc {
    Doc::new("alerts", "Change a destination")
        .body::<DestinationInput>()
        .answer::<DestinationView>(200, "The destination as it is now.")
}

pub async fn update(
    app: web::Data<App>,
    caller: Caller,
    Id(id): Id,
    body: Json<DestinationInput>,
) -> Result<HttpResponse> {
    caller.ensure_meter_allowed("")?;
    let (Json(input), workspace_id) = (body, caller.workspace_id);
    if let Some(url) = &input.webhook_url {
        app.webhooks.accept(url)?;
    }
    let update = move |conn: &mut Conn| {
        destinations::update(conn, workspace_id, &id, |found| apply(found, &input), Timestamp::now())
    };
    let destination = app.store.write("destinations::update", update).await?;
    // what waited for a disabled destination may be due
    app.wake.notify();
    respond::ok(&DestinationView::of(&destination, true))
}

fn apply(found: &Destination, input: &DestinationInput) -> Result<DestinationSpec> {
    check_kind(&input.kind)?;
    Ok(DestinationSpec {
        name: match input.name.as_deref() {
            None | Some("") => found.name.clone(),
            Some(name) => parse_label(name)?,
        },
        enabled: input.enabled.unwrap_or(found.enabled),
        webhook_url: match &input.webhook_url {
            None => found.webhook_url.clone(),
            Some(url) => webhook::parse_url(url)?,
        },
    })
}

pub fn describe_delete() -> Doc {
    Doc::new("alerts", "Delete a destination").empty(204, "Deleted.").errors(&[409])
}

pub async fn delete(app: web::Data<App>, caller: Caller, Id(id): Id) -> Result<HttpResponse> {
    caller.ensure_meter_allowed("")?;
    let workspace_id = caller.workspace_id;
    let delete = move |conn: &mut Conn| destinations::delete(conn, workspace_id, &id);
    app.store.write("destinations::delete", delete).await?;
    Ok(respond::no_content())
}

pub fn describe_rotate() -> Doc {
    Doc::new("alerts", "Replace the signing secret")
        .answer::<DestinationView>(200, "The new secret, shown only here.")
}

/// The old secret leaves our own header at once and the standard's after the overlap (jobs.md 3.3).
pub async fn rotate(app: web::Data<App>, caller: Caller, Id(id): Id) -> Result<HttpResponse> {
    caller.ensure_meter_allowed("")?;
    let secret = Token::new(SECRET_PREFIX)?;
    let workspace_id = caller.workspace_id;
    let rotate = move |conn: &mut Conn| {
        let now = Timestamp::now();
        let until = now.plus(SECRET_OVERLAP.as_micros() as i64);
        destinations::rotate(conn, workspace_id, &id, secret.expose(), until, now)
    };
    let destination = app.store.write("destinations::rotate", rotate).await?;
    respond::ok(&DestinationView::with_secret(&destination)?)
}

#[derive(Serialize, ToSchema)]
#[schema(as = TestDelivery)]
pub struct TestView {
    event_id: String,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    status_code: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response: Option<String>,
    duration_ms: i64,
    attempted_at: Timestamp,
}

pub fn describe_test() -> Doc {
    Doc::new("alerts", "Send a test event").answer::<TestView>(200, "What the receiver answered.")
}

/// Sends a test event, signed as any other, and answers what the receiver said.
pub async fn test(app: web::Data<App>, caller: Caller, Id(id): Id) -> Result<HttpResponse> {
    caller.ensure_meter_allowed("")?;
    let workspace_id = caller.workspace_id;
    let get = move |conn: &mut Conn| destinations::get(conn, workspace_id, &id);
    let destination = app.store.read("destinations::get", get).await?;
    let (now, event_id) = (Timestamp::now(), chance::id().to_string());
    let letter = WebhookRequest {
        url: destination.webhook_url.clone(),
        body: webhook::test_payload(&event_id, (&destination.public_id, &destination.name), now)?,
        secret: destination.secret()?,
        previous_secret: destination.overlapping_secret(now)?,
        id: event_id.clone(),
    };
    let answer = app.webhooks.send(&letter).await;
    respond::ok(&TestView {
        event_id,
        status: if answer.is_delivered() { "delivered" } else { "failed" },
        status_code: answer.status_code,
        error: answer.error,
        response: answer.response,
        duration_ms: answer.duration_ms,
        attempted_at: now,
    })
}
