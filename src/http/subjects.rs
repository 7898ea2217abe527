//! `/v1/subjects` (rest.md 12.9).

use actix_web::{HttpResponse, web};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::app::App;
use crate::auth::Caller;
use crate::error::Result;
use crate::http::extract::{CursorTime, Id, Params, paginate};
use crate::http::openapi::Doc;
use crate::http::respond::{self, Page};
use crate::metering::event::parse_subject;
use crate::metering::stored::StoredEvent;
use crate::metering::time::Timestamp;
use crate::usage::subjects::{self, SubjectPosition};

/// A subject on the wire; fields in contract order.
#[derive(Serialize, ToSchema)]
#[schema(as = Subject)]
pub struct SubjectView {
    subject: String,
    usage_events: i64,
    meters: i64,
    last_event_at: Timestamp,
}

#[derive(Serialize, Deserialize)]
struct ByActivity {
    time: Option<CursorTime>,
    id: Option<String>,
}

impl ByActivity {
    /// A cursor without both parts is none.
    fn position(self) -> Option<SubjectPosition> {
        let (CursorTime(last_event_at), subject) = self.time.zip(self.id)?;
        Some(SubjectPosition { last_event_at, subject })
    }
}

pub fn describe_list() -> Doc {
    Doc::new("subjects", "Subjects with stored events")
        .limit(100, 1000)
        .cursor()
        .page::<SubjectView>("By their last event, newest first.")
}

pub async fn list(app: web::Data<App>, caller: Caller, params: Params) -> Result<HttpResponse> {
    caller.ensure_meter_allowed("")?;
    let limit = params.limit(100, 1000)?;
    let cursor = params.cursor::<ByActivity>()?;
    let (workspace_id, after) = (caller.workspace_id, cursor.and_then(ByActivity::position));
    let list = move |conn: &mut _| subjects::list(conn, workspace_id, after.as_ref(), limit + 1);
    let rows = app.store.view("subjects::list", true, list).await?;
    let (rows, next_cursor) = paginate(rows, limit, |row| ByActivity {
        time: Some(CursorTime(Timestamp(row.last_event_at))),
        id: Some(row.subject.clone()),
    })?;
    let items = rows.into_iter().map(|row| SubjectView {
        subject: row.subject,
        usage_events: row.usage_events,
        meters: row.meters,
        last_event_at: Timestamp(row.last_event_at),
    });
    respond::ok(&Page { items: items.collect(), next_cursor })
}

pub fn describe_events() -> Doc {
    Doc::new("subjects", "Newest events of a subject")
        .limit(100, 1000)
        .list::<StoredEvent>("Newest first; empty for an unknown subject.")
}

/// The newest events of one subject, as a plain array.
pub async fn events(
    app: web::Data<App>,
    caller: Caller,
    Id(subject): Id,
    params: Params,
) -> Result<HttpResponse> {
    caller.ensure_meter_allowed("")?;
    let subject = parse_subject(&subject)?.to_owned();
    let limit = params.limit(100, 1000)?;
    let workspace_id = caller.workspace_id;
    let list = move |conn: &mut _| subjects::newest_events(conn, workspace_id, &subject, limit);
    respond::ok(&app.store.read("subjects::newest_events", list).await?)
}
