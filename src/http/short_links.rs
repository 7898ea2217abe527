//! `/v1/usage/short-links` (rest.md 12.13): views of the dashboard under a short address. The page that such an address opens
//! is the dashboard's.

use actix_web::{HttpRequest, HttpResponse, web};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::app::App;
use crate::auth::Caller;
use crate::db::Conn;
use crate::error::{Error, Result};
use crate::http::body::Json;
use crate::http::extract::{Id, Params};
use crate::http::openapi::Doc;
use crate::http::origin::own_origin;
use crate::http::respond;
use crate::usage::stored_queries;

#[derive(Serialize, ToSchema)]
#[schema(as = ShortLink)]
pub struct View<'a> {
    hash: &'a str,
    /// The parameters of the view, as in the address of `/usage`.
    query: &'a str,
    url: String,
}

impl<'a> View<'a> {
    fn of(app: &App, request: &HttpRequest, hash: &'a str, query: &'a str) -> Self {
        View { hash, query, url: format!("{}/usage/q/{hash}", own_origin(app, request)) }
    }
}

/// 403 when the key is confined to other meters than that of the view.
fn ensure_allowed(caller: &Caller, query: &str) -> Result<()> {
    caller.ensure_meter_allowed(Params::parse(query).get("meter"))
}

#[derive(Default, Deserialize, ToSchema)]
#[schema(as = ShortLinkInput)]
pub struct Input {
    /// Such as `meter=tokens&range=7d%2Btoday`.
    query: Option<String>,
}

pub fn describe_create() -> Doc {
    Doc::new("short-links", "Give a view of usage a short address")
        .body::<Input>()
        .answer::<View>(201, "The same parameters have the same address.")
        .errors(&[409])
}

pub async fn create(
    app: web::Data<App>,
    request: HttpRequest,
    caller: Caller,
    body: Json<Input>,
) -> Result<HttpResponse> {
    let query = body.0.query.unwrap_or_default();
    let query = query.trim().trim_start_matches('?');
    ensure_allowed(&caller, query)?;
    let hash = stored_queries::keep(&app.store, caller.workspace_id, query).await?;
    respond::created(&View::of(&app, &request, &hash, query))
}

pub fn describe_get() -> Doc {
    Doc::new("short-links", "A view behind a short address")
        .answer::<View>(200, "Its parameters. Reading them keeps it no longer: opening its address does.")
        .errors(&[404])
}

pub async fn get(
    app: web::Data<App>,
    request: HttpRequest,
    caller: Caller,
    Id(hash): Id,
) -> Result<HttpResponse> {
    let (workspace_id, wanted) = (caller.workspace_id, hash.clone());
    let read = move |conn: &mut Conn| stored_queries::find(conn, workspace_id, &wanted);
    let found = app.store.read("stored_queries::find", read).await?;
    let (query, _) = found.ok_or_else(|| Error::not_found("short link"))?;
    ensure_allowed(&caller, &query)?;
    respond::ok(&View::of(&app, &request, &hash, &query))
}
