//! `/v1/auth/api-keys` and their history (auth.md 5). A secret is shown by the answer that makes it, and
//! never again.

use actix_web::{HttpResponse, web};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::app::App;
use crate::auth::Caller;
use crate::auth::key::{NewKeyRequest, Status, idle_since};
use crate::auth::sql::keys::{ApiKey, KeyEvent};
use crate::error::{Error, Result};
use crate::http::body::Json;
use crate::http::extract::{Id, Params};
use crate::http::openapi::Doc;
use crate::http::respond::{self, Page};
use crate::metering::time::{DAY, Timestamp};

/// A key on the wire; fields in contract order.
#[derive(Serialize, ToSchema)]
#[schema(as = ApiKey)]
pub struct KeyView<'a> {
    id: &'a str,
    name: &'a str,
    prefix: &'a str,
    scopes: &'a [String],
    allowed_meters: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    revoked_at: Option<Timestamp>,
    created_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_used_at: Option<Timestamp>,
    status: Status,
    allowed_networks: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
}

impl<'a> KeyView<'a> {
    fn of(key: &'a ApiKey, secret: Option<&'a str>) -> Self {
        KeyView {
            id: &key.public_id,
            name: &key.name,
            prefix: &key.prefix,
            scopes: &key.scopes.0,
            allowed_meters: &key.allowed_meters.0,
            expires_at: key.expires_at.map(Timestamp),
            revoked_at: key.revoked_at.map(Timestamp),
            created_at: Timestamp(key.created_at),
            last_used_at: key.last_used_at.map(Timestamp),
            status: Status::of(key, Timestamp::now()),
            allowed_networks: &key.allowed_networks.0,
            key: secret,
        }
    }
}

#[derive(Serialize, ToSchema)]
#[schema(as = ApiKeyEvent)]
pub struct EventView<'a> {
    id: &'a str,
    api_key_id: &'a str,
    key_name: &'a str,
    key_prefix: &'a str,
    event_type: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    related_api_key_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    effective_at: Option<Timestamp>,
    created_at: Timestamp,
}

impl<'a> EventView<'a> {
    fn of(event: &'a KeyEvent) -> Self {
        EventView {
            id: &event.id,
            api_key_id: &event.api_key_id,
            key_name: &event.key_name,
            key_prefix: &event.key_prefix,
            event_type: &event.event_type,
            related_api_key_id: event.related_api_key_id.as_deref(),
            effective_at: event.effective_at.map(Timestamp),
            created_at: Timestamp(event.created_at),
        }
    }
}

#[derive(Default, Deserialize, ToSchema)]
#[schema(as = ApiKeyInput)]
pub struct KeyInput {
    name: Option<String>,
    scopes: Option<Vec<String>>,
    allowed_meters: Option<Vec<String>>,
    /// Networks or addresses that it may be used from; empty: from everywhere.
    allowed_networks: Option<Vec<String>>,
    expires_at: Option<String>,
}

pub fn describe_create() -> Doc {
    Doc::new("api keys", "Create an API key")
        .body::<KeyInput>()
        .answer::<KeyView>(201, "The key; its secret is shown only here. At most 1,000 that are not revoked.")
        .errors(&[409])
}

pub async fn create(app: web::Data<App>, caller: Caller, body: Json<KeyInput>) -> Result<HttpResponse> {
    let Json(input) = body;
    let wish = NewKeyRequest {
        name: input.name.unwrap_or_default(),
        scopes: input.scopes.unwrap_or_default(),
        allowed_meters: input.allowed_meters.unwrap_or_default(),
        allowed_networks: input.allowed_networks.unwrap_or_default(),
        expires_at: input.expires_at.unwrap_or_default(),
    };
    let (key, secret) = app.auth.create_key(&caller, &wish).await?;
    respond::created(&KeyView::of(&key, Some(secret.expose())))
}

pub fn describe_list() -> Doc {
    Doc::new("api keys", "Own API keys").page::<KeyView>("Newest first.")
}

/// The caller's own keys, newest first, revoked and expired ones too; never a page.
pub async fn list(app: web::Data<App>, caller: Caller) -> Result<HttpResponse> {
    let keys = app.auth.list_keys(&caller).await?;
    respond::ok(&Page { items: keys.iter().map(|key| KeyView::of(key, None)).collect(), next_cursor: None })
}

/// A key of somebody in the workspace.
#[derive(Serialize, ToSchema)]
#[schema(as = WorkspaceApiKey)]
pub struct WorkspaceKeyView<'a> {
    #[serde(flatten)]
    key: KeyView<'a>,
    created_by: &'a str,
    /// Whole days since it was last used, or made.
    idle_days: i64,
}

pub fn describe_of_workspace() -> Doc {
    Doc::new("api keys", "API keys of everybody in the workspace")
        .text("unused_days", "Only those that were not used for so many days.")
        .page::<WorkspaceKeyView>("Those that can still be used; the one that was idle for longest first.")
        .errors(&[400])
}

/// What an auditor asks: which keys there are, who made them, which of them nobody uses.
pub async fn of_workspace(app: web::Data<App>, caller: Caller, params: Params) -> Result<HttpResponse> {
    let unused_days = match params.get("unused_days") {
        "" => None,
        text => Some(text.parse().map_err(|_| {
            Error::parameter("invalid_unused_days", "unused_days must be a whole number of days")
        })?),
    };
    let keys = app.auth.workspace_keys(&caller, unused_days).await?;
    let now = Timestamp::now();
    let items = keys.iter().map(|(key, created_by)| WorkspaceKeyView {
        key: KeyView::of(key, None),
        created_by,
        idle_days: (now.0 - idle_since(key)).max(0) / DAY,
    });
    respond::ok(&Page { items: items.collect(), next_cursor: None })
}

pub fn describe_revoke_any() -> Doc {
    Doc::new("api keys", "Revoke an API key of anybody in the workspace")
        .empty(204, "Revoked.")
        .errors(&[404])
}

pub async fn revoke_any(app: web::Data<App>, caller: Caller, Id(id): Id) -> Result<HttpResponse> {
    app.auth.revoke_any_key(&caller, &id).await?;
    Ok(respond::no_content())
}

pub fn describe_revoke() -> Doc {
    Doc::new("api keys", "Revoke an API key").empty(204, "Revoked.")
}

/// Ends a key at once. 204 again for one that was revoked before.
pub async fn revoke(app: web::Data<App>, caller: Caller, Id(id): Id) -> Result<HttpResponse> {
    app.auth.revoke_key(&caller, &id).await?;
    Ok(respond::no_content())
}

#[derive(Default, Deserialize, ToSchema)]
#[schema(as = ApiKeyRotation)]
pub struct RotateInput {
    grace_period_seconds: Option<i64>,
}

pub fn describe_rotate() -> Doc {
    Doc::new("api keys", "Replace an API key")
        .body::<RotateInput>()
        .answer::<KeyView>(201, "The new key; the old one ends after the grace period.")
        .errors(&[409])
}

/// Makes a key on the same terms; the old one ends after the grace period.
pub async fn rotate(
    app: web::Data<App>,
    caller: Caller,
    Id(id): Id,
    body: Json<RotateInput>,
) -> Result<HttpResponse> {
    let Json(input) = body;
    let grace_seconds = input.grace_period_seconds.unwrap_or_default();
    let (key, secret) = app.auth.rotate_key(&caller, &id, grace_seconds).await?;
    respond::created(&KeyView::of(&key, Some(secret.expose())))
}

pub fn describe_events() -> Doc {
    Doc::new("api keys", "History of own API keys").page::<EventView>("The newest 50.")
}

/// The newest events of the caller's keys.
pub async fn events(app: web::Data<App>, caller: Caller) -> Result<HttpResponse> {
    let events = app.auth.key_events(&caller).await?;
    respond::ok(&Page { items: events.iter().map(EventView::of).collect(), next_cursor: None })
}
