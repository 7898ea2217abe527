//! Health and readiness (rest.md 12.1).

use std::time::Duration;

use actix_web::{HttpResponse, web};
use diesel::RunQueryDsl;
use serde::{Deserialize, Serialize};

use crate::app::{App, Phase};
use crate::auth::Caller;
use crate::error::{Error, Result};
use crate::http::extract::{Id, Params};
use crate::http::respond::{self, Page};
use crate::store::jobs::{self, DeadLetter};
use crate::store::{Conn, Store};
use crate::window::Micros;

/// The process serves HTTP. Touches nothing else.
pub async fn health() -> HttpResponse {
    HttpResponse::NoContent().finish()
}

const PING_TIMEOUT: Duration = Duration::from_secs(2);

/// The schema is current, the database answers, and the server is not going away.
pub async fn ready(app: web::Data<App>) -> HttpResponse {
    answer_ready(&app.store, app.phase.is_serving()).await
}

/// As [`ready`], on the health port of a worker.
pub async fn worker_ready(store: web::Data<Store>, phase: web::Data<Phase>) -> HttpResponse {
    answer_ready(&store, phase.is_serving()).await
}

async fn answer_ready(store: &Store, is_serving: bool) -> HttpResponse {
    if !is_serving {
        return HttpResponse::ServiceUnavailable().finish();
    }
    let ping = store.read("system::ping", |conn| Ok(diesel::sql_query("SELECT 1").execute(conn)?));
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

/// A job that used up its attempts (next.md section 10).
#[derive(Serialize)]
struct DeadLetterView {
    id: String,
    worker_name: String,
    job_key: String,
    #[serde(flatten)]
    about: About,
    attempts: i32,
    last_error: String,
    status: &'static str,
    created_at: Micros,
    #[serde(skip_serializing_if = "Option::is_none")]
    requeued_at: Option<Micros>,
}

/// What the payload of a job tells about it.
#[derive(Default, Deserialize, Serialize)]
#[serde(default)]
struct About {
    #[serde(skip_serializing_if = "Option::is_none")]
    rule_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    meter: Option<String>,
}

impl DeadLetterView {
    fn of(letter: DeadLetter) -> Self {
        DeadLetterView {
            id: letter.id,
            // queues are named in the plural, workers are not
            worker_name: letter.queue.strip_suffix('s').unwrap_or(&letter.queue).to_owned(),
            job_key: letter.key,
            about: serde_json::from_str(&letter.payload).unwrap_or_default(),
            attempts: letter.attempts,
            last_error: letter.last_error,
            status: if letter.requeued_at.is_some() { "requeued" } else { "dead_letter" },
            created_at: Micros(letter.created_at),
            requeued_at: letter.requeued_at.map(Micros),
        }
    }
}

const DEAD_LETTERS_MAX: i64 = 200;

pub async fn dead_letters(app: web::Data<App>, caller: Caller, params: Params) -> Result<HttpResponse> {
    caller.may_use_meter("")?;
    let limit = params.limit(50, i64::MAX)?;
    if limit > DEAD_LETTERS_MAX {
        return Err(Error::parameter("invalid_limit", "limit must be between 1 and 200"));
    }
    let workspace_id = caller.workspace_id;
    let list = move |conn: &mut Conn| jobs::dead_letters(conn, workspace_id, limit);
    let letters = app.store.read("jobs::dead_letters", list).await?;
    let items: Vec<DeadLetterView> = letters.into_iter().map(DeadLetterView::of).collect();
    respond::ok(&Page { items, next_cursor: None })
}

pub async fn requeue(app: web::Data<App>, caller: Caller, Id(id): Id) -> Result<HttpResponse> {
    caller.may_use_meter("")?;
    if uuid::Uuid::try_parse(&id).is_err() {
        return Err(Error::invalid("the id is not a UUID"));
    }
    let workspace_id = caller.workspace_id;
    let requeue = move |conn: &mut Conn| jobs::requeue(conn, workspace_id, &id, Micros::now());
    app.store.write("jobs::requeue", requeue).await?;
    app.wake.ring();
    Ok(respond::no_content())
}
