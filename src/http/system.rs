//! Health and readiness (rest.md 12.1).

use std::time::Duration;

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
