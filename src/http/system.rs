//! Health and readiness (rest.md 12.1), and what answers (rest.md 12.14).

use actix_web::{HttpResponse, web};

use crate::app::App;
use crate::auth::Caller;
use crate::db::Conn;
use crate::error::Result;
use crate::http::openapi::Doc;
use crate::http::respond;
use crate::metering::time::Timestamp;
use crate::metrics;
use crate::operations::installation::{self, Own, SystemInfo};

pub fn describe_health() -> Doc {
    Doc::new("health", "The process lives").empty(204, "Always.")
}

/// The process serves HTTP. Touches nothing else.
pub async fn health() -> HttpResponse {
    HttpResponse::NoContent().finish()
}

pub fn describe_ready() -> Doc {
    Doc::new("health", "The server can do its work")
        .empty(204, "Ready.")
        .empty(503, "Not now; the log says why.")
}

/// The database is there with its schema and takes writes, and the server is not going away. Why not is told on the
/// private listener only.
pub async fn ready(app: web::Data<App>) -> HttpResponse {
    match app.readiness.obstacle().await {
        None if app.phase.is_serving() => HttpResponse::NoContent().finish(),
        _ => HttpResponse::ServiceUnavailable().finish(),
    }
}

pub fn describe_metrics() -> Doc {
    Doc::new("health", "Prometheus metrics, when `OPEN_SPANNER_HTTP_METRICS` is on")
        .empty(200, "Prometheus text.")
        .empty(404, "Not here.")
}

/// What the private listener for metrics answers, where the operator wants it here as well.
pub async fn metrics(app: web::Data<App>) -> HttpResponse {
    match metrics::text().filter(|_| app.config.http.metrics) {
        Some(text) => HttpResponse::Ok().content_type(metrics::CONTENT_TYPE).body(text),
        None => super::routes::not_found().await,
    }
}

pub fn describe_info() -> Doc {
    Doc::new("system", "Which program answers, on which database, and which processes work beside it")
        .answer::<SystemInfo>(200, "Of the installation.")
}

pub async fn info(app: web::Data<App>, caller: Caller) -> Result<HttpResponse> {
    caller.ensure_meter_allowed("")?;
    let (role, database) = (app.config.role.name(), app.config.db.driver.name());
    let own = Own { role, database, started_at: app.phase.started_at() };
    let load = move |conn: &mut Conn| installation::load(conn, own, Timestamp::now());
    respond::ok(&app.store.read("installation::load", load).await?)
}
