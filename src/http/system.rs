//! Health and readiness (rest.md 12.1).

use std::time::Duration;

use actix_web::http::header;
use actix_web::{HttpResponse, web};
use diesel::RunQueryDsl;

use crate::app::App;
use crate::http::openapi::Doc;

pub fn describe_health() -> Doc {
    Doc::new("health", "The process lives").empty(204, "Always.")
}

/// The process serves HTTP. Touches nothing else.
pub async fn health() -> HttpResponse {
    HttpResponse::NoContent().finish()
}

const PING_TIMEOUT: Duration = Duration::from_secs(2);

pub fn describe_ready() -> Doc {
    Doc::new("health", "The server can do its work")
        .empty(204, "Ready.")
        .empty(503, "Not now; the log says why.")
}

/// The schema is current, the database answers, and the server is not going away.
pub async fn ready(app: web::Data<App>) -> HttpResponse {
    if !app.phase.is_serving() {
        return HttpResponse::ServiceUnavailable().finish();
    }
    let ping = app.store.read("system::ping", |conn| Ok(diesel::sql_query("SELECT 1").execute(conn)?));
    match tokio::time::timeout(PING_TIMEOUT, ping).await {
        Ok(Ok(_)) => HttpResponse::NoContent().finish(),
        Ok(Err(error)) => {
            log::warn!(error:% = error; "not ready");
            HttpResponse::ServiceUnavailable().finish()
        }
        Err(_) => {
            log::warn!("not ready: no answer from the database within 2 s");
            HttpResponse::ServiceUnavailable().finish()
        }
    }
}

pub fn describe_home() -> Doc {
    Doc::new("health", "Front page").html("A page with links.")
}

/// The front page; the dashboard will take its place.
pub async fn home() -> HttpResponse {
    const PAGE: &str = concat!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Open Spanner</title>",
        "<h1>Open Spanner ",
        env!("CARGO_PKG_VERSION"),
        "</h1><p>Usage metering. <a href=\"/swagger/\">API documentation</a>, <a href=\"/openapi.json\">OpenAPI document</a>.</p></html>\n"
    );
    HttpResponse::Ok()
        .content_type("text/html; charset=utf-8")
        .insert_header((header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"))
        .body(PAGE)
}
