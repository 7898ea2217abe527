//! `GET /v1/system/stats` (rest.md 12.14).

use actix_web::{HttpResponse, web};

use crate::app::App;
use crate::auth::Caller;
use crate::db::Conn;
use crate::error::Result;
use crate::http::openapi::Doc;
use crate::http::respond;
use crate::metering::time::Timestamp;
use crate::operations::stats::{self, SystemStats};

pub fn describe_system_stats() -> Doc {
    Doc::new("system", "Totals of the workspace and the health of the workers")
        .answer::<SystemStats>(200, "Totals of the workspace, workers of the installation.")
}

pub async fn system_stats(app: web::Data<App>, caller: Caller) -> Result<HttpResponse> {
    caller.ensure_meter_allowed("")?;
    let workspace_id = caller.workspace_id;
    let prunes = app.config.retention.prune_enabled;
    let load = move |conn: &mut Conn| stats::load(conn, workspace_id, prunes, Timestamp::now());
    respond::ok(&app.store.read("stats::load", load).await?)
}
