//! `/events/refused`: events that were not counted, and why; what `/explain` says of them.

use actix_web::{HttpResponse, web};
use askama::Template;
use uuid::Uuid;

use crate::app::App;
use crate::auth::Caller;
use crate::auth::sql::keys;
use crate::dashboard::advice;
use crate::dashboard::foot::{Cell, Foot, Portion};
use crate::dashboard::form::Complaint;
use crate::dashboard::pages::explain::Finding;
use crate::dashboard::view::{self, Link};
use crate::dashboard::visit::{Shell, Visit, ok, rejected};
use crate::db::Conn;
use crate::error::{Code, Error, Result};
use crate::http::extract::{Id, Params};
use crate::http::refused::{cursor_behind, filter_of};
use crate::metering::json::{Map, Value};
use crate::metering::time::Timestamp;
use crate::usage::refused::{self, Filter, RefusedEvent};

const LISTED: usize = 50;
const EXPLAINED: i64 = 5;
/// Names of the filters, in the order of their fields.
const FILTERS: [&str; 5] = ["outcome", "code", "meter", "subject", "idempotency_key"];

#[derive(Template)]
#[template(path = "events/refused.html")]
struct ListPage {
    shell: Shell,
    events: Vec<RefusedEvent>,
    params: Params,
    next: Option<String>,
    complaint: Complaint,
    foot: Foot,
}

pub const COLUMNS: [&str; 11] = [
    "id",
    "created_at",
    "outcome",
    "code",
    "message",
    "field",
    "subject",
    "meter",
    "idempotency_key",
    "door",
    "request_id",
];

pub fn cells(event: &RefusedEvent) -> Vec<Cell> {
    vec![
        event.public_id().into(),
        Timestamp(event.created_at).into(),
        (&event.outcome).into(),
        (&event.code).into(),
        (&event.message).into(),
        event.field.as_deref().into(),
        (&event.subject).into(),
        (&event.meter).into(),
        event.idempotency_key.as_deref().into(),
        (&event.door).into(),
        event.request_id.clone().unwrap_or_else(|| event.run()).into(),
    ]
}

impl ListPage {
    fn is(&self, name: &str, value: &str) -> bool {
        self.params.get(name) == value
    }

    fn is_narrowed(&self) -> bool {
        FILTERS.iter().any(|name| !self.params.get(name).trim().is_empty())
    }

    /// The codes that events are refused with.
    fn codes(&self) -> Vec<&'static str> {
        let mut codes: Vec<&str> =
            Code::ALL.iter().filter(|code| is_of_events(**code)).map(|code| code.as_str()).collect();
        codes.dedup();
        codes
    }
}

/// Whether an event can be refused with it.
fn is_of_events(code: Code) -> bool {
    !matches!(
        code,
        Code::UnsupportedContentType
            | Code::TooManyQueries
            | Code::RegistrationDisabled
            | Code::Unauthorized
            | Code::LimitReached
            | Code::QueryTimeout
            | Code::Internal
            | Code::Unusable
    )
}

pub async fn list(app: web::Data<App>, caller: Caller, visit: Visit, params: Params) -> Result<HttpResponse> {
    let mut page = ListPage {
        shell: visit.shell("events", "Refused events"),
        events: Vec::new(),
        params,
        next: None,
        complaint: Complaint::none(),
        foot: Foot::default(),
    };
    let asked =
        filter_of(&page.params).and_then(|filter| Ok((filter, Portion::parse(&page.params, LISTED)?)));
    let (filter, portion) = match asked {
        Ok(asked) => asked,
        Err(error) => {
            page.complaint = Complaint::of(error, &FILTERS)?;
            return rejected(&page);
        }
    };
    page.events = read(&app, &caller, filter, portion.rows()).await?;
    let has_more = page.events.len() > portion.rows();
    page.events.truncate(portion.rows());
    if let Some(file) = portion.file("refused-events", &COLUMNS, page.events.iter().map(cells))? {
        return Ok(file);
    }
    let with_filters =
        |path: &str| FILTERS.iter().fold(Link::to(path), |link, name| link.with(name, page.params.get(name)));
    let (here, call) = (with_filters("/events/refused"), with_filters("/v1/events/refused"));
    let call = call.with("limit", &portion.rows().to_string());
    if let Some(last) = page.events.last().filter(|_| has_more) {
        page.next = Some(portion.on(here.clone()).with("cursor", &cursor_behind(last)?).to_string());
    }
    let foot = portion.foot(&here.with("cursor", page.params.get("cursor")));
    page.foot = foot.with_call(&visit.origin, &call);
    ok(&page)
}

async fn read(app: &App, caller: &Caller, filter: Filter, rows: usize) -> Result<Vec<RefusedEvent>> {
    let workspace_id = caller.workspace_id;
    let read = move |conn: &mut Conn| refused::list(conn, workspace_id, &filter, rows as i64 + 1);
    app.store.read("refused::list", read).await
}

#[derive(Template)]
#[template(path = "events/refused_event.html")]
struct ShowPage {
    shell: Shell,
    event: RefusedEvent,
    /// Name of the key it was sent with; blank where it was none or is gone.
    key: String,
    advice: String,
    rows: Vec<Compared>,
    sent: Vec<SentField>,
}

/// A field of both events of a conflict.
struct Compared {
    field: &'static str,
    sent: String,
    stored: String,
    differs: bool,
}

/// A field of an event as it was sent; `None` where it was not.
#[derive(Debug, PartialEq)]
struct SentField {
    name: String,
    value: Option<String>,
    is_wrong: bool,
}

pub async fn show(app: web::Data<App>, caller: Caller, visit: Visit, Id(id): Id) -> Result<HttpResponse> {
    let missing = || Error::not_found(format!("refused event {id:?}"));
    let (workspace_id, wanted) = (caller.workspace_id, Uuid::parse_str(&id).map_err(|_| missing())?);
    let read = move |conn: &mut Conn| {
        let Some(event) = refused::find(conn, workspace_id, wanted)? else { return Ok(None) };
        let key_id = event.api_key_id.as_deref();
        let key = key_id.map(|key_id| keys::name_of(conn, workspace_id, key_id)).transpose()?;
        Ok(Some((event, key.flatten().unwrap_or_default())))
    };
    let (event, key) = app.store.read("refused::find", read).await?.ok_or_else(missing)?;
    ok(&ShowPage {
        shell: visit.shell("events", "Refused event"),
        advice: advice::of_refused(&event),
        rows: compared(&event),
        sent: sent_fields(event.payload.as_deref(), event.field.as_deref()),
        event,
        key,
    })
}

fn text_of(value: &Value) -> String {
    if let Value::String(text) = value { text.clone() } else { value.to_string() }
}

/// The fields of both events of a conflict, side by side.
fn compared(event: &RefusedEvent) -> Vec<Compared> {
    let read = |text: &Option<String>| -> Value {
        Value::parse(text.as_deref().unwrap_or("{}")).unwrap_or_default()
    };
    let (sent, stored) = (read(&event.sent), read(&event.stored));
    if event.sent.is_none() || event.stored.is_none() {
        return Vec::new();
    }
    let names = ["subject", "meter", "quantity", "timestamp", "metadata"];
    names
        .into_iter()
        .map(|field| {
            let (sent, stored) = (text_of(&sent[field]), text_of(&stored[field]));
            // a retry may stamp its event anew
            let differs = sent != stored && field != "timestamp";
            Compared { field, sent, stored, differs }
        })
        .collect()
}

/// Every field that was sent, and the one at fault also where it was not; none of what is no object, or was cut.
fn sent_fields(payload: Option<&str>, wrong: Option<&str>) -> Vec<SentField> {
    let Some(Value::Object(fields)) = payload.and_then(Value::parse) else { return Vec::new() };
    let mut sent = Vec::new();
    flatten(&fields, "", &mut sent);
    let Some(wrong) = wrong else { return sent };
    let below = format!("{wrong}.");
    sent.iter_mut().for_each(|field| field.is_wrong = field.name == wrong || field.name.starts_with(&below));
    if !sent.iter().any(|field| field.is_wrong) {
        sent.push(SentField { name: wrong.to_owned(), value: None, is_wrong: true });
    }
    sent
}

/// Dimensions stand beside the other fields, under their path.
fn flatten(fields: &Map, prefix: &str, to: &mut Vec<SentField>) {
    for (name, value) in fields {
        let path = format!("{prefix}{name}");
        match value {
            Value::Object(inner) if !inner.is_empty() => flatten(inner, &format!("{path}."), to),
            value => to.push(SentField { name: path, value: Some(text_of(value)), is_wrong: false }),
        }
    }
}

/// What is known of a key among refused events, or of a request.
pub async fn explain(app: &App, caller: &Caller, wanted: &str) -> Result<Vec<Finding>> {
    let (workspace_id, searched) = (caller.workspace_id, wanted.to_owned());
    let read = move |conn: &mut Conn| refused::about(conn, workspace_id, &searched, EXPLAINED);
    let events = app.store.read("refused::explain", read).await?;
    let found = events.into_iter().map(finding);
    Ok(found.chain(explain_code(wanted)).collect())
}

fn finding(event: RefusedEvent) -> Finding {
    let at_field = match &event.field {
        Some(field) if !event.message.contains(field.as_str()) => format!(" (field {field})"),
        _ => String::new(),
    };
    Finding {
        state: if event.outcome == "conflict" { "conflict" } else { "rejected" },
        sentence: format!(
            "Refused {} UTC by {}, {}: {}{at_field}. {}",
            view::minute(event.created_at),
            event.door,
            event.code,
            event.message,
            advice::of_refused(&event)
        ),
        link: format!("/events/refused/{}", event.public_id()),
        action: "The refusal",
    }
}

/// What a code means that an answer had.
fn explain_code(word: &str) -> Option<Finding> {
    let code = advice::code_of(word)?;
    let advice = advice::of(code);
    let (link, action) = match is_of_events(code) {
        true => (view::link("/events/refused", "code", word).to_string(), "Events that were refused with it"),
        false => ("/swagger/".to_owned(), "Every call, described"),
    };
    Some(Finding {
        state: "code",
        sentence: format!("{word}, status {}: {}. {}", code.http_status(), advice.meaning, advice.remedy),
        link,
        action,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_field_at_fault_is_marked_also_where_it_is_missing() {
        let payload = r#"{"meter":"m","metadata":{"region":"eu","net":{"ok":true}}}"#;
        let marked = |wrong: &str| -> Vec<(String, bool)> {
            let fields = sent_fields(Some(payload), Some(wrong)).into_iter().filter(|field| field.is_wrong);
            fields.map(|field| (field.name, field.value.is_some())).collect()
        };
        assert_eq!(marked("metadata.region"), [("metadata.region".to_owned(), true)]);
        assert_eq!(marked("metadata.model"), [("metadata.model".to_owned(), false)]);
        assert_eq!(marked("metadata").len(), 2);
        assert_eq!(sent_fields(Some(payload), None).len(), 3);
        assert_eq!(sent_fields(Some("{\"cut"), Some("meter")), []);
        assert_eq!(sent_fields(None, None), []);
    }
}
