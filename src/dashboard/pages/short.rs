//! `/usage/q/{hash}`: a view of Explore under a short address, for those whose own is too long to be handed on.

use actix_web::http::header;
use actix_web::{HttpResponse, web};

use crate::app::App;
use crate::auth::Caller;
use crate::dashboard::form::Form;
use crate::dashboard::pages::explore;
use crate::dashboard::visit::Visit;
use crate::db::Conn;
use crate::error::{Error, Result};
use crate::http::extract::{Id, Params};
use crate::metering::time::{DAY, Timestamp};
use crate::usage::stored_queries;

/// An address that is longer than this is kept and shortened.
const ADDRESS_BYTES_MAX: usize = 4_096;

/// The parameters of an address that is too long for a link.
pub fn too_long<'a>(visit: &'a Visit, params: &Params) -> Option<&'a str> {
    let is_page = matches!(params.get("format"), "" | "html") && params.get("ff").is_empty();
    let query = visit.here.split_once('?').map(|(_, query)| query)?;
    Some(query).filter(|_| is_page && visit.here.len() > ADDRESS_BYTES_MAX)
}

/// Keeps a view and leads to it.
pub async fn keep(app: &App, caller: &Caller, query: &str) -> Result<HttpResponse> {
    let address = kept(app, caller, query).await?;
    Ok(HttpResponse::SeeOther().insert_header((header::LOCATION, address)).finish())
}

async fn kept(app: &App, caller: &Caller, query: &str) -> Result<String> {
    let hash = stored_queries::keep(&app.store, caller.workspace_id, query).await?;
    Ok(format!("/usage/q/{hash}"))
}

/// The view; parameters of the address itself win over those that are kept.
pub async fn show(app: web::Data<App>, caller: Caller, visit: Visit, Id(hash): Id) -> Result<HttpResponse> {
    let (workspace_id, wanted, now) = (caller.workspace_id, hash.clone(), Timestamp::now());
    let read = move |conn: &mut Conn| stored_queries::find(conn, workspace_id, &wanted);
    let found = app.store.read("stored_queries::find", read).await?;
    let (query, used_at) = found.ok_or_else(|| Error::not_found(format!("view {hash:?}")))?;
    if now.0 - used_at.0 > DAY {
        let touch = move |conn: &mut Conn| stored_queries::touch(conn, workspace_id, &hash, now);
        if let Err(error) = app.store.write("stored_queries::touch", touch).await {
            // the page needs no write; whoever looks tomorrow tries again
            log::debug!(error:%; "the use of a kept view was not noted");
        }
    }
    let more = visit.here.split_once('?').map_or("", |(_, query)| query);
    explore::page(&app, &caller, &visit, Params::parse(&format!("{more}&{query}"))).await
}

/// Makes the short address that a person asks for.
pub async fn create(app: web::Data<App>, caller: Caller, visit: Visit, form: Form) -> Result<HttpResponse> {
    let Form(fields) = form;
    let address = kept(&app, &caller, fields.get("query")).await?;
    Ok(visit.go(
        &address,
        "The address of this page is short now. It stays as long as somebody opens it every half year.",
    ))
}
