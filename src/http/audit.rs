//! `/v1/audit-events`: who changed what in the workspace, newest first, and all of it as lines of JSON.

use actix_web::{HttpResponse, web};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::app::App;
use crate::audit;
use crate::audit::sql::{AuditEvent, Query};
use crate::auth::Caller;
use crate::db::pool;
use crate::error::{Error, Result};
use crate::http::extract::{Params, paginate};
use crate::http::openapi::Doc;
use crate::http::respond::{self, Page};
use crate::metering::json::escape_html;
use crate::metering::time::Timestamp;

#[derive(Serialize, ToSchema)]
#[schema(as = AuditActor)]
pub struct ActorView<'a> {
    /// `user`, `api_key`, `operator`, `system` or `anonymous`.
    kind: &'a str,
    id: &'a str,
    name: &'a str,
}

#[derive(Serialize, ToSchema)]
#[schema(as = AuditTarget)]
pub struct TargetView<'a> {
    kind: &'a str,
    id: &'a str,
    name: &'a str,
}

#[derive(Serialize, ToSchema)]
#[schema(as = AuditEvent)]
pub struct View<'a> {
    id: &'a str,
    sequence: i64,
    created_at: Timestamp,
    actor: ActorView<'a>,
    action: &'a str,
    target: TargetView<'a>,
    #[schema(value_type = Option<Object>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    before: Option<&'a RawValue>,
    #[schema(value_type = Option<Object>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Option<&'a RawValue>,
    address: &'a str,
    user_agent: &'a str,
    request_id: &'a str,
    hash: String,
}

impl<'a> View<'a> {
    fn of(event: &'a AuditEvent) -> Self {
        View {
            id: &event.id,
            sequence: event.sequence,
            created_at: Timestamp(event.time),
            actor: ActorView { kind: &event.actor_kind, id: &event.actor_id, name: &event.actor_name },
            action: &event.action,
            target: TargetView { kind: &event.target_kind, id: &event.target_id, name: &event.target_name },
            before: serde_json::from_str(&event.state_before).ok(),
            after: serde_json::from_str(&event.state_after).ok(),
            address: &event.address,
            user_agent: &event.user_agent,
            request_id: &event.request_id,
            hash: event.hash.iter().map(|byte| format!("{byte:02x}")).collect(),
        }
    }
}

/// Where a page of the trail ends.
#[derive(Serialize, Deserialize)]
struct Cursor {
    sequence: i64,
}

/// What the parameters of a request ask for.
fn query_of(caller: &Caller, params: &Params, limit: i64) -> Result<Query> {
    let from = params.optional_time("from", "invalid_from")?;
    let to = params.optional_time("to", "invalid_to")?;
    query_between(caller, params, (from, to), limit)
}

/// The same for a time that was understood already.
pub(crate) fn query_between(
    caller: &Caller,
    params: &Params,
    (from, to): (Option<Timestamp>, Option<Timestamp>),
    limit: i64,
) -> Result<Query> {
    // the trail tells of every meter
    caller.ensure_meter_allowed("")?;
    let cursor: Option<Cursor> = params.cursor()?;
    Ok(Query {
        workspace_id: caller.workspace_id,
        from,
        to,
        action: params.get("action").trim().to_owned(),
        actor: params.get("actor").trim().to_owned(),
        target: params.get("target").trim().to_owned(),
        before: cursor.map(|cursor| cursor.sequence),
        limit,
    })
}

/// A page of the trail and the cursor behind it.
pub(crate) async fn page(app: &App, query: Query) -> Result<(Vec<AuditEvent>, Option<String>)> {
    let limit = query.limit;
    let rows = audit::list(&app.store, Query { limit: limit + 1, ..query }).await?;
    paginate(rows, limit, |row| Cursor { sequence: row.sequence })
}

fn filters(doc: Doc) -> Doc {
    doc.text("from", "RFC 3339; changes from then on.")
        .text("to", "RFC 3339; changes before then.")
        .text("action", "Such as `meter.deleted`, or a family with its dot: `api_key.`")
        .text("actor", "Id or name of who changed something.")
        .text("target", "Id or name of what was changed.")
}

pub fn describe_list() -> Doc {
    filters(Doc::new("audit", "Who changed what")).limit(50, 200).cursor().page::<View>("Newest first.")
}

pub async fn list(app: web::Data<App>, caller: Caller, params: Params) -> Result<HttpResponse> {
    let query = query_of(&caller, &params, params.limit(50, 200)?)?;
    let (rows, next_cursor) = page(&app, query).await?;
    respond::ok(&Page { items: rows.iter().map(View::of).collect(), next_cursor })
}

pub fn describe_export() -> Doc {
    filters(Doc::new("audit", "Who changed what, as lines of JSON"))
        .answer::<View>(200, "`application/x-ndjson`: one object per line, newest first.")
}

const EXPORT_PAGE: i64 = 1_000;

/// Streams the trail in pages, so that it never is in memory as a whole.
pub async fn export(app: web::Data<App>, caller: Caller, params: Params) -> Result<HttpResponse> {
    let query = query_of(&caller, &params, EXPORT_PAGE)?;
    let (app, reader) = (app.into_inner(), caller.reader());
    // the first page comes before the status, so that a refusal can still be said in JSON
    let (first, rest) = lines(&app, query).await?;
    let later = stream::try_unfold(rest, move |rest| {
        let app = app.clone();
        async move {
            match rest {
                Some(query) => pool::read_by(Some(reader), lines(&app, query)).await.map(Some),
                None => Ok(None),
            }
        }
    });
    let pages = stream::once(std::future::ready(Ok::<_, Error>(first))).chain(later);
    let name = "attachment; filename=\"audit-events.ndjson\"";
    Ok(HttpResponse::Ok()
        .content_type("application/x-ndjson")
        .insert_header(("content-disposition", name))
        .streaming(pages))
}

/// The lines of a page, and what asks for the next one.
async fn lines(app: &App, query: Query) -> Result<(Bytes, Option<Query>)> {
    let rows = audit::list(&app.store, query.clone()).await?;
    let mut text = String::new();
    for row in &rows {
        text.push_str(&escape_html(&serde_json::to_string(&View::of(row)).map_err(Error::internal)?));
        text.push('\n');
    }
    let last = rows.last().filter(|_| rows.len() as i64 == query.limit);
    let next = last.map(|row| Query { before: Some(row.sequence), ..query });
    Ok((text.into(), next))
}
