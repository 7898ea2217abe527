//! `/v1/events/refused`: events that were refused, and keys that were used again for something else (rest.md 12.7).

use actix_web::{HttpResponse, web};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::app::App;
use crate::auth::Caller;
use crate::db::Conn;
use crate::error::{Error, Result};
use crate::http::extract::{Id, Params, encode_cursor};
use crate::http::openapi::Doc;
use crate::http::respond::{self, Page};
use crate::metering::time::Timestamp;
use crate::usage::refused::{self, Filter, RefusedEvent};

/// What the texts of one page may take; the rest stands on the next one.
const PAGE_BYTES: usize = 512 * 1024;

/// A refused event on the wire.
#[derive(Serialize, ToSchema)]
#[schema(as = RefusedEvent)]
pub struct View<'a> {
    id: String,
    created_at: Timestamp,
    /// `rejected`, or `conflict` when its key stands for another event.
    outcome: &'a str,
    /// As it was answered.
    code: &'a str,
    message: &'a str,
    /// The field at fault, such as `metadata.model`.
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<&'a str>,
    /// `rest`, `bulk`, `ndjson`, `cloudevents`, `openmeter`, `consume`, `grpc`, `dashboard` or `import`.
    door: &'a str,
    subject: &'a str,
    meter: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    idempotency_key: Option<&'a str>,
    /// The key it was sent with.
    #[serde(skip_serializing_if = "Option::is_none")]
    api_key_id: Option<&'a str>,
    request_id: String,
    /// What was sent, up to 4 KB: JSON, unless it was cut or was none.
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<&'a str>,
    /// Of a conflict: the event that was sent.
    #[schema(value_type = Option<Object>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    sent: Option<&'a RawValue>,
    /// Of a conflict: the event that its key stands for.
    #[schema(value_type = Option<Object>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    stored: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct OfMeter {
    meter: String,
}

/// A used key leads to the event that used it, whatever its meter.
fn may_see(caller: &Caller, stored: &str) -> bool {
    let found: serde_json::Result<OfMeter> = serde_json::from_str(stored);
    found.is_ok_and(|event| caller.ensure_meter_allowed(&event.meter).is_ok())
}

impl<'a> View<'a> {
    fn of(event: &'a RefusedEvent, caller: &Caller) -> Self {
        let json = |text: Option<&'a str>| text.and_then(|text| serde_json::from_str(text).ok());
        View {
            id: event.public_id(),
            created_at: Timestamp(event.created_at),
            outcome: &event.outcome,
            code: &event.code,
            message: &event.message,
            field: event.field.as_deref(),
            door: &event.door,
            subject: &event.subject,
            meter: &event.meter,
            idempotency_key: event.idempotency_key.as_deref(),
            api_key_id: event.api_key_id.as_deref(),
            request_id: event.request_id.clone().unwrap_or_else(|| event.run()),
            payload: event.payload.as_deref(),
            sent: json(event.sent.as_deref()),
            stored: json(event.stored.as_deref().filter(|text| may_see(caller, text))),
        }
    }
}

/// Where a page ends.
#[derive(Serialize, Deserialize)]
struct Cursor {
    id: String,
}

/// What the parameters of a request narrow the list to.
pub(crate) fn filter_of(params: &Params) -> Result<Filter> {
    let text = |name: &str| params.get(name).trim().to_owned();
    let outcome = text("outcome");
    if !["", "rejected", "conflict"].contains(&outcome.as_str()) {
        return Err(Error::invalid("outcome must be rejected or conflict"));
    }
    Ok(Filter {
        outcome,
        code: text("code"),
        meter: text("meter"),
        subject: text("subject"),
        idempotency_key: text("idempotency_key"),
        api_key_id: text("api_key_id"),
        before: before(params)?,
        ..Filter::default()
    })
}

fn before(params: &Params) -> Result<Option<Uuid>> {
    let Some(Cursor { id }) = params.cursor()? else { return Ok(None) };
    Uuid::parse_str(&id).map(Some).map_err(|_| Error::invalid("cursor is not one of ours"))
}

/// The cursor behind an event.
pub(crate) fn cursor_behind(event: &RefusedEvent) -> Result<String> {
    encode_cursor(&Cursor { id: event.public_id() })
}

pub fn describe_list() -> Doc {
    Doc::new("usage", "Events that were refused, and why")
        .text("outcome", "`rejected` or `conflict`.")
        .text("code", "Such as `invalid_input`.")
        .text("meter", "As it was sent; it need not exist.")
        .text("subject", "As it was sent.")
        .text("idempotency_key", "As it was sent.")
        .text("api_key_id", "The key they were sent with.")
        .limit(50, 200)
        .cursor()
        .page::<View>("Newest first. A page may hold less than asked for when the events are long.")
}

pub async fn list(app: web::Data<App>, caller: Caller, params: Params) -> Result<HttpResponse> {
    caller.ensure_meter_allowed(params.get("meter").trim())?;
    let (limit, filter, workspace_id) = (params.limit(50, 200)?, filter_of(&params)?, caller.workspace_id);
    let read = move |conn: &mut Conn| refused::list(conn, workspace_id, &filter, limit + 1);
    let mut events = app.store.read("refused::list", read).await?;
    let count = fitting(&events).min(limit as usize);
    let has_more = events.len() > count;
    events.truncate(count);
    let next_cursor = events.last().filter(|_| has_more).map(cursor_behind).transpose()?;
    respond::ok(&Page { items: events.iter().map(|event| View::of(event, &caller)).collect(), next_cursor })
}

/// How many of them make a page: one at least.
fn fitting(events: &[RefusedEvent]) -> usize {
    let mut bytes = 0;
    let fits = |event: &&RefusedEvent| {
        bytes += event.bytes();
        bytes <= PAGE_BYTES
    };
    events.iter().take_while(fits).count().max(1)
}

pub fn describe_get() -> Doc {
    Doc::new("usage", "An event that was refused, and why").answer::<View>(200, "The event.").errors(&[404])
}

pub async fn get(app: web::Data<App>, caller: Caller, Id(id): Id) -> Result<HttpResponse> {
    let missing = || Error::not_found("refused event");
    let (workspace_id, wanted) = (caller.workspace_id, Uuid::parse_str(&id).map_err(|_| missing())?);
    let read = move |conn: &mut Conn| refused::find(conn, workspace_id, wanted);
    let event = app.store.read("refused::find", read).await?.ok_or_else(missing)?;
    caller.ensure_meter_allowed(&event.meter)?;
    respond::ok(&View::of(&event, &caller))
}
