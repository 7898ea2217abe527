//! `/events/refused`: events that were not counted, and why; what `/explain` says of them.

use actix_web::{HttpResponse, web};
use askama::Template;
use uuid::Uuid;

use crate::app::App;
use crate::auth::Caller;
use crate::dashboard::pages::explain::Finding;
use crate::dashboard::view::{self, Link};
use crate::dashboard::visit::{Shell, Visit, ok};
use crate::db::Conn;
use crate::error::{Error, Result};
use crate::http::extract::{Id, Params};
use crate::metering::json::Value;
use crate::usage::refused::{self, Filter, RefusedEvent};

const LISTED: usize = 50;
const EXPLAINED: i64 = 5;

#[derive(Template)]
#[template(path = "events/refused.html")]
struct ListPage {
    shell: Shell,
    events: Vec<RefusedEvent>,
    params: Params,
    next: Option<String>,
}

impl ListPage {
    fn is(&self, name: &str, value: &str) -> bool {
        self.params.get(name) == value
    }
}

pub async fn list(app: web::Data<App>, caller: Caller, visit: Visit, params: Params) -> Result<HttpResponse> {
    let before = match params.get("before") {
        "" => None,
        text => Some(Uuid::parse_str(text).map_err(|_| Error::invalid("before is not one of ours"))?),
    };
    let filter = Filter {
        outcome: params.get("outcome").to_owned(),
        meter: params.get("meter").trim().to_owned(),
        subject: params.get("subject").trim().to_owned(),
        before,
        ..Filter::default()
    };
    let workspace_id = caller.workspace_id;
    let read = move |conn: &mut Conn| refused::list(conn, workspace_id, &filter, LISTED as i64 + 1);
    let mut events = app.store.read("refused::list", read).await?;
    let has_more = events.len() > LISTED;
    events.truncate(LISTED);
    let next = events.last().filter(|_| has_more).map(|last| {
        let names = ["outcome", "meter", "subject"];
        let link =
            names.iter().fold(Link::to("/events/refused"), |link, name| link.with(name, params.get(name)));
        link.with("before", &last.public_id()).to_string()
    });
    ok(&ListPage { shell: visit.shell("events", "Refused events"), events, params, next })
}

#[derive(Template)]
#[template(path = "events/refused_event.html")]
struct ShowPage {
    shell: Shell,
    event: RefusedEvent,
    advice: &'static str,
    rows: Vec<Compared>,
}

/// A field of both events of a conflict.
struct Compared {
    field: &'static str,
    sent: String,
    stored: String,
    differs: bool,
}

pub async fn show(app: web::Data<App>, caller: Caller, visit: Visit, Id(id): Id) -> Result<HttpResponse> {
    let missing = || Error::not_found(format!("refused event {id:?}"));
    let (workspace_id, wanted) = (caller.workspace_id, Uuid::parse_str(&id).map_err(|_| missing())?);
    let read = move |conn: &mut Conn| refused::find(conn, workspace_id, wanted);
    let event = app.store.read("refused::find", read).await?.ok_or_else(missing)?;
    let rows = compared(&event);
    ok(&ShowPage { shell: visit.shell("events", "Refused event"), advice: advice(&event), rows, event })
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
    let text = |value: &Value| if let Value::String(text) = value { text.clone() } else { value.to_string() };
    let names = ["subject", "meter", "quantity", "timestamp", "metadata"];
    names
        .into_iter()
        .map(|field| {
            let (sent, stored) = (text(&sent[field]), text(&stored[field]));
            // a retry may stamp its event anew
            let differs = sent != stored && field != "timestamp";
            Compared { field, sent, stored, differs }
        })
        .collect()
}

/// What to do about it.
fn advice(event: &RefusedEvent) -> &'static str {
    match (event.outcome.as_str(), event.code.as_str()) {
        ("conflict", _) => {
            "The first event stands, and the sender was answered with it. If both are real, send the second under a key of its own."
        }
        (_, "not_found") => {
            "Make a meter of that name, or correct the name that the service sends. Then send the event again."
        }
        (_, "invalid_input") if event.message.contains("metadata") => {
            "Send the dimension, or make it optional at the meter. Then send the event again with the same key."
        }
        _ => "Correct the event and send it again; the same idempotency key is still free.",
    }
}

/// What is known of a key among refused events, or of a request.
pub async fn explain(app: &App, caller: &Caller, wanted: &str) -> Result<Vec<Finding>> {
    let (workspace_id, wanted) = (caller.workspace_id, wanted.to_owned());
    let read = move |conn: &mut Conn| refused::about(conn, workspace_id, &wanted, EXPLAINED);
    let events = app.store.read("refused::explain", read).await?;
    let finding = |event: RefusedEvent| Finding {
        state: if event.outcome == "conflict" { "conflict" } else { "rejected" },
        sentence: format!(
            "Refused {} UTC: {}. {}",
            view::minute(event.created_at),
            event.message,
            advice(&event)
        ),
        link: format!("/events/refused/{}", event.public_id()),
        action: "The refusal",
    };
    Ok(events.into_iter().map(finding).collect())
}
