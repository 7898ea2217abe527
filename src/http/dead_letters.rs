//! Jobs of the workers that used up their attempts: seen here, and queued anew (rest.md 12.14).

use actix_web::{HttpResponse, web};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::app::App;
use crate::auth::Caller;
use crate::db::Conn;
use crate::entitlements::sql::states::{self, Names};
use crate::error::{Error, Result};
use crate::http::body::Json;
use crate::http::extract::{Id, Params};
use crate::http::openapi::Doc;
use crate::http::respond::{self, Page};
use crate::jobs::dead_letters::{self as letters, DeadLetter};
use crate::metering::time::Timestamp;
use crate::operations::dead_letters::{self, Requeued};

#[derive(Serialize, ToSchema)]
#[schema(as = DeadLetter)]
pub struct DeadLetterView {
    id: String,
    worker_name: String,
    job_key: String,
    #[serde(flatten)]
    about: About,
    attempts: i32,
    last_error: String,
    status: &'static str,
    created_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    requeued_at: Option<Timestamp>,
}

/// What the payload of a job tells about it.
#[derive(Default, Deserialize, Serialize, ToSchema)]
#[serde(default)]
#[schema(as = DeadLetterSubject)]
pub struct About {
    #[serde(skip_serializing_if = "Option::is_none")]
    rule_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    meter: Option<String>,
}

impl DeadLetterView {
    fn of(letter: DeadLetter, names: Option<Names>) -> Self {
        let about: About = serde_json::from_str(&letter.payload).unwrap_or_default();
        let Names { subject, meter } = names.unwrap_or_default();
        DeadLetterView {
            id: letter.id,
            // queues are named in the plural, workers are not
            worker_name: letter.queue.strip_suffix('s').unwrap_or(&letter.queue).to_owned(),
            job_key: letter.key,
            about: About { subject: about.subject.or(subject), meter: about.meter.or(meter), ..about },
            attempts: letter.attempts,
            last_error: letter.last_error,
            status: if letter.requeued_at.is_some() { "requeued" } else { "dead_letter" },
            created_at: Timestamp(letter.created_at),
            requeued_at: letter.requeued_at.map(Timestamp),
        }
    }
}

const DEAD_LETTERS_MAX: i64 = 200;

pub fn describe_list() -> Doc {
    Doc::new("system", "Jobs that used up their attempts")
        .limit(50, 200)
        .page::<DeadLetterView>("Newest first.")
}

pub async fn list(app: web::Data<App>, caller: Caller, params: Params) -> Result<HttpResponse> {
    caller.ensure_meter_allowed("")?;
    let limit = params.limit(50, i64::MAX)?;
    if limit > DEAD_LETTERS_MAX {
        return Err(Error::parameter("invalid_limit", "limit must be between 1 and 200"));
    }
    let workspace_id = caller.workspace_id;
    let list = move |conn: &mut Conn| {
        let letters = letters::list(conn, workspace_id, letters::Filter::default(), limit)?;
        let names = states::names(conn, &letters)?;
        Ok((letters, names))
    };
    let (letters, mut names) = app.store.read("jobs::dead_letters", list).await?;
    let view = |letter: DeadLetter| {
        let names = names.remove(&letter.id);
        DeadLetterView::of(letter, names)
    };
    let items: Vec<DeadLetterView> = letters.into_iter().map(view).collect();
    respond::ok(&Page { items, next_cursor: None })
}

pub fn describe_requeue() -> Doc {
    Doc::new("system", "Queue a dead job anew").empty(204, "Queued.").errors(&[409])
}

pub async fn requeue(app: web::Data<App>, caller: Caller, Id(id): Id) -> Result<HttpResponse> {
    caller.ensure_meter_allowed("")?;
    if uuid::Uuid::try_parse(&id).is_err() {
        return Err(Error::invalid("the id is not a UUID"));
    }
    dead_letters::requeue(&app, caller.workspace_id, id).await?;
    Ok(respond::no_content())
}

/// Which jobs are queued anew.
#[derive(Default, Deserialize, ToSchema)]
pub struct RequeueInput {
    /// As the list names it; absent: all workers.
    worker_name: Option<String>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Requeued)]
pub struct RequeuedView {
    requeued: usize,
    /// About something that no longer exists: they stay as they are.
    gone: usize,
    /// There are more than one call looks at: call again.
    has_more: bool,
}

pub fn describe_requeue_all() -> Doc {
    Doc::new("system", "Queue all dead jobs anew, of one worker or of all")
        .body::<RequeueInput>()
        .answer::<RequeuedView>(200, "Newest first, at most 10000 a call.")
}

pub async fn requeue_all(
    app: web::Data<App>,
    caller: Caller,
    body: Json<RequeueInput>,
) -> Result<HttpResponse> {
    caller.ensure_meter_allowed("")?;
    let Json(input) = body;
    let queue = match input.worker_name.as_deref() {
        None | Some("") => None,
        Some(name) => Some(queue_of(name)?),
    };
    let Requeued { queued, gone, has_more } =
        dead_letters::requeue_all(&app, caller.workspace_id, queue).await?;
    respond::ok(&RequeuedView { requeued: queued, gone, has_more })
}

/// The queue of a worker: some queues are named in the plural, workers are not.
fn queue_of(worker: &str) -> Result<String> {
    let known = crate::operations::stats::WORKERS.iter().find(|(name, _)| *name == worker);
    let queue = known.and_then(|(_, queue)| *queue);
    queue.map(str::to_owned).ok_or_else(|| Error::invalid("worker_name must name a worker that has jobs"))
}
