//! `/explain`: one field, one answer: what became of this key, event, request or subject. `/search`: where something is.

use actix_web::http::header;
use actix_web::{HttpResponse, web};
use askama::Template;
use uuid::Uuid;

use crate::alerts::sql::named::{self, Named};
use crate::app::App;
use crate::auth::Caller;
use crate::dashboard::ask;
use crate::dashboard::pages::events::{find, link};
use crate::dashboard::pages::quota::Told;
use crate::dashboard::view::{self, Link, segment};
use crate::dashboard::visit::{Shell, Visit, ok};
use crate::db::Conn;
use crate::entitlements::sql::decisions;
use crate::error::Result;
use crate::http::extract::Params;
use crate::ingest::insert::{KeyUse, find_key};
use crate::metering::event::{parse_key, parse_subject};
use crate::metering::stored::StoredEvent;
use crate::usage::{ingestion_runs, subjects};

/// One thing that is known about what was asked.
pub struct Finding {
    pub state: &'static str,
    pub sentence: String,
    pub link: String,
    pub action: &'static str,
}

#[derive(Template)]
#[template(path = "explain.html")]
struct ExplainPage {
    shell: Shell,
    wanted: String,
    findings: Vec<Finding>,
}

pub async fn show(app: web::Data<App>, caller: Caller, visit: Visit, params: Params) -> Result<HttpResponse> {
    let wanted = params.get("q").trim().to_owned();
    let findings = if wanted.is_empty() { Vec::new() } else { explain(&app, &caller, &wanted).await? };
    ok(&ExplainPage { shell: visit.shell("explain", "Explain"), wanted, findings })
}

async fn explain(app: &App, caller: &Caller, wanted: &str) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    if let Some(used) = key_use(app, caller, wanted).await? {
        findings.push(match &used.event {
            Some(event) => stored(event),
            None => pruned(&used),
        });
    }
    if let Some(told) = decided(app, caller, wanted).await? {
        findings.push(Finding {
            state: told.outcome(),
            sentence: format!("Decided {} UTC: {}", view::minute(told.decision.created_at), told.sentence()),
            link: format!("/decisions/{}", segment(&told.decision.idempotency_key)),
            action: "The decision",
        });
    }
    findings.extend(called(app, caller, wanted).await?);
    findings.extend(super::refused::explain(app, caller, wanted).await?);
    if parse_subject(wanted).is_ok() {
        let (workspace_id, name) = (caller.workspace_id, wanted.to_owned());
        let exact = move |conn: &mut Conn| subjects::with_prefix(conn, workspace_id, &name, 1);
        let found = app.store.read("subjects::with_prefix", exact).await?;
        if found.first().is_some_and(|name| name == wanted) {
            findings.push(Finding {
                state: "subject",
                sentence: "This is a subject that events name.".to_owned(),
                link: format!("/subjects/{}", segment(wanted)),
                action: "Its usage and limits",
            });
        }
    }
    Ok(findings)
}

fn stored(event: &StoredEvent) -> Finding {
    Finding {
        state: "accepted",
        sentence: format!(
            "Stored: {} of {} for {} at {} UTC, received {} UTC. Sending it again counts nothing.",
            view::number(&event.quantity),
            event.meter,
            event.subject,
            view::minute(event.timestamp),
            view::minute(event.received_at)
        ),
        link: link(event),
        action: "The event",
    }
}

fn pruned(used: &KeyUse) -> Finding {
    let at = view::minute(used.event_time);
    Finding {
        state: "accepted",
        sentence: format!(
            "Stored for {at} UTC, and since pruned: it is part of every total, its fields are gone."
        ),
        link: Link::to("/meters").to_string(),
        action: "Retention of each meter",
    }
}

/// What is stored under this id or this idempotency key.
async fn key_use(app: &App, caller: &Caller, wanted: &str) -> Result<Option<KeyUse>> {
    if let Ok(id) = Uuid::parse_str(wanted)
        && let Some(event) = find(app, caller, id, None).await?
    {
        return Ok(Some(KeyUse {
            event_id: event.id.clone(),
            event_time: event.timestamp,
            event: Some(event),
        }));
    }
    let Ok(Some(key)) = parse_key(Some(wanted)) else { return Ok(None) };
    let workspace_id = caller.workspace_id;
    let read = move |conn: &mut Conn| find_key(conn, workspace_id, &key);
    app.store.read("events::find_key", read).await
}

async fn decided(app: &App, caller: &Caller, wanted: &str) -> Result<Option<Told>> {
    let Ok(Some(key)) = parse_key(Some(wanted)) else { return Ok(None) };
    let workspace_id = caller.workspace_id;
    let find = move |conn: &mut Conn| decisions::find(conn, workspace_id, &key);
    app.store.read("decisions::find", find).await?.map(Told::of).transpose()
}

/// The write call of a request.
async fn called(app: &App, caller: &Caller, wanted: &str) -> Result<Option<Finding>> {
    let (workspace_id, request_id) = (caller.workspace_id, wanted.to_owned());
    let find = move |conn: &mut Conn| ingestion_runs::of_request(conn, workspace_id, &request_id);
    let run = app.store.read("ingestion_runs::of_request", find).await?;
    Ok(run.map(|run| Finding {
        state: "accepted",
        sentence: format!(
            "A write call of {} UTC: {} accepted, {} known already, {} refused.",
            view::minute(run.created_at),
            view::count(run.accepted),
            view::count(run.duplicates),
            view::count(run.failed)
        ),
        link: format!("/ingestion/{}", run.id),
        action: "The call",
    }))
}

#[derive(Template)]
#[template(path = "search.html")]
struct SearchPage {
    shell: Shell,
    wanted: String,
    /// Kind, name, address.
    found: Vec<(&'static str, String, String)>,
}

/// What something with a name is called on the page, and where it is.
fn shown(one: Named) -> (&'static str, String, String) {
    let (kind, place) = match one.kind.as_str() {
        named::PLAN => ("Plan", "/plans"),
        named::RULE => ("Alert", "/alerts"),
        _ => ("Destination", "/destinations"),
    };
    let name = if one.kind == named::PLAN { format!("{} v{}", one.name, one.version) } else { one.name };
    (kind, name, format!("{place}/{}", one.public_id))
}

/// Meters, plans, alerts, destinations and own keys whose name holds a text, subjects whose name begins with it; ids and
/// idempotency keys exactly. All of it may be seen by every member of the workspace.
pub async fn search(
    app: web::Data<App>,
    caller: Caller,
    visit: Visit,
    params: Params,
) -> Result<HttpResponse> {
    let wanted = params.get("q").trim().to_owned();
    let (mut found, lower) = (Vec::new(), wanted.to_lowercase());
    let fits = |name: &str| name.to_lowercase().contains(&lower);
    if !wanted.is_empty() {
        for meter in ask::meters(&app, &caller).await? {
            if meter.public_id == wanted || fits(&meter.name) {
                found.push(("Meter", meter.name, format!("/meters/{}", meter.public_id)));
            }
        }
        let (workspace_id, prefix) = (caller.workspace_id, wanted.clone());
        let read = move |conn: &mut Conn| {
            Ok((subjects::with_prefix(conn, workspace_id, &prefix, 20)?, named::all(conn, workspace_id)?))
        };
        let (names, named) = app.store.read("search", read).await?;
        found.extend(names.into_iter().map(|name| {
            let address = format!("/subjects/{}", segment(&name));
            ("Subject", name, address)
        }));
        found.extend(named.into_iter().filter(|one| one.public_id == wanted || fits(&one.name)).map(shown));
        for key in app.auth.list_keys(&caller).await? {
            if wanted.starts_with(&key.prefix) || fits(&key.name) {
                found.push(("API key", key.name, format!("/api-keys/{}", key.public_id)));
            }
        }
        if let Some(event) = key_use(&app, &caller, &wanted).await?.and_then(|used| used.event) {
            found.push(("Event", event.id.clone(), link(&event)));
        }
    }
    if let [(_, _, address)] = found.as_slice() {
        return Ok(HttpResponse::SeeOther().insert_header((header::LOCATION, address.as_str())).finish());
    }
    ok(&SearchPage { shell: visit.shell("", "Search"), wanted, found })
}
