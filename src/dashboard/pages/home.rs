//! `/`: where a visit begins.

use actix_web::http::header;
use actix_web::{HttpResponse, web};

use crate::app::App;
use crate::dashboard::visit::Visit;
use crate::error::Result;
use crate::usage::subjects;

/// Strangers sign in; a workspace without events is shown how to send one.
pub async fn home(app: web::Data<App>, visit: Visit) -> Result<HttpResponse> {
    let target = match visit.caller() {
        None => "/login",
        Some(caller) => {
            let workspace_id = caller.workspace_id;
            let totals = move |conn: &mut _| subjects::totals(conn, workspace_id);
            match app.store.read("subjects::totals", totals).await?.accepted_events {
                0 => "/welcome",
                _ => "/overview",
            }
        }
    };
    Ok(HttpResponse::Found().insert_header((header::LOCATION, target)).finish())
}
