//! `/api-keys`: the caller's keys. A secret is shown once, by the page that the form which makes it leads to.

use actix_web::{HttpResponse, web};
use askama::Template;

use crate::app::App;
use crate::auth::Caller;
use crate::auth::key::{NewKeyRequest, SOON, Status, UNUSED, idle_since};
use crate::auth::permission::{DEFAULT_SCOPES, Role};
use crate::auth::sql::keys::{ApiKey, KeyEvent};
use crate::dashboard::confirm::Confirm;
use crate::dashboard::form::{Complaint, Fields, Form};
use crate::dashboard::once::{self, Once};
use crate::dashboard::sorting::{Heading, Orders, Sort};
use crate::dashboard::view::{self, Link};
use crate::dashboard::visit::{Shell, Visit, ok, rejected};
use crate::error::{Error, Result};
use crate::http::extract::{Id, Params};
use crate::metering::time::{DAY, Timestamp};

/// Scope, and what it opens.
const SCOPES: [(&str, &str); 14] = [
    ("usage:write", "Record usage, consume quota, prune"),
    ("usage:read", "Query usage, events, subjects and write calls"),
    ("meters:read", "List meters and their activity"),
    ("meters:write", "Create, change and delete meters"),
    ("plans:read", "Read plans, assignments, progress and quota states; check quota"),
    ("plans:write", "Create and change plans, assign subjects"),
    ("alerts:read", "Read rules, destinations, events and deliveries"),
    ("alerts:write", "Create and change rules and destinations, send again"),
    ("exports:read", "List and download exports"),
    ("exports:write", "Queue, cancel and retry exports"),
    ("system:read", "Read system health and dead letters"),
    ("system:write", "Requeue dead letters"),
    ("links:write", "Make and revoke links for customers, with usage:read"),
    ("audit:read", "Read and download the audit trail"),
];

/// Name, sentence, scopes.
const PRESETS: [(&str, &str, &str); 4] = [
    ("ingest", "Ingest only: your services send events", "usage:write"),
    (
        "read",
        "Read only: reports and dashboards",
        "usage:read meters:read plans:read alerts:read exports:read system:read",
    ),
    ("quota", "Check and consume quota", "usage:write plans:read"),
    ("everything", "Everything: scripts that set up a workspace", "*"),
];

struct Row {
    key: ApiKey,
    status: &'static str,
    is_live: bool,
    /// Days until it ends.
    days_left: Option<i64>,
    is_unused: bool,
    ends_soon: bool,
}

impl Row {
    fn of(key: ApiKey) -> Row {
        let now = Timestamp::now();
        let status = Status::of(&key, now);
        let is_live = matches!(status, Status::Active | Status::Revoking);
        Row {
            status: match status {
                Status::Active => "active",
                Status::Revoking => "revoking",
                Status::Revoked => "revoked",
                Status::Expired => "expired",
            },
            is_live,
            days_left: key.expires_at.filter(|at| *at > now.0).map(|at| (at - now.0) / DAY),
            is_unused: is_live && idle_since(&key) < now.0 - UNUSED,
            ends_soon: is_live && key.expires_at.is_some_and(|at| at < now.0 + SOON),
            key,
        }
    }
}

#[derive(Template)]
#[template(path = "keys/list.html")]
struct ListPage {
    shell: Shell,
    rows: Vec<Row>,
    sort: Sort,
}

/// What keys can be sorted by; the one that was made last comes first, and those that have ended last.
static ORDERS: Orders = Orders { columns: &["name", "-used", "ends", "-made"], default: "-made" };

impl ListPage {
    fn heading(&self, column: &'static str, words: &'static str) -> Heading {
        self.sort.heading(Link::to("/api-keys"), (column, words))
    }
}

fn arrange(rows: &mut [Row], sort: Sort) {
    match sort.column {
        "name" => sort.arrange(rows, |row| row.key.name.clone()),
        "used" => sort.arrange(rows, |row| row.key.last_used_at),
        // what never ends comes after what does
        "ends" => sort.arrange(rows, |row| row.key.expires_at.unwrap_or(i64::MAX)),
        _ => sort.arrange(rows, |row| (row.is_live, row.key.created_at)),
    }
}

#[derive(Template)]
#[template(path = "keys/new.html")]
struct NewPage {
    shell: Shell,
    fields: Fields,
    complaint: Complaint,
    scopes: [(&'static str, &'static str); 14],
    presets: [(&'static str, &'static str, &'static str); 4],
}

#[derive(Template)]
#[template(path = "keys/secret.html")]
struct SecretPage {
    shell: Shell,
    heading: &'static str,
    key: ApiKey,
    secret: String,
    origin: String,
    /// Until when the key that was replaced still works.
    grace: String,
}

impl SecretPage {
    fn may(&self, scope: &str) -> bool {
        self.key.scopes.0.iter().any(|own| own == "*" || own == scope)
    }

    fn lists_meters(&self) -> bool {
        self.may("meters:read")
    }

    fn writes_usage(&self) -> bool {
        self.may("usage:write")
    }
}

#[derive(Template)]
#[template(path = "keys/show.html")]
struct ShowPage {
    shell: Shell,
    row: Row,
    events: Vec<KeyEvent>,
}

#[derive(Template)]
#[template(path = "keys/confirm.html")]
struct ConfirmPage {
    shell: Shell,
    row: Row,
    rotates: bool,
    complaint: Complaint,
}

pub async fn list(app: web::Data<App>, caller: Caller, visit: Visit, params: Params) -> Result<HttpResponse> {
    let sort = Sort::parse(params.get("sort"), &ORDERS)?;
    let mut rows: Vec<Row> = app.auth.list_keys(&caller).await?.into_iter().map(Row::of).collect();
    arrange(&mut rows, sort);
    ok(&ListPage { shell: visit.shell("api-keys", "API keys"), rows, sort })
}

/// A key of somebody in the workspace.
struct WorkspaceRow {
    row: Row,
    made_by: String,
    idle_days: i64,
}

#[derive(Template)]
#[template(path = "keys/workspace.html")]
struct WorkspacePage {
    shell: Shell,
    rows: Vec<WorkspaceRow>,
    unused_days: String,
    is_owner: bool,
}

impl WorkspacePage {
    fn is_chosen(&self, days: &str) -> bool {
        self.unused_days == days
    }
}

/// Keys of everybody, for whoever answers for them: the one that was idle for longest first.
pub async fn of_workspace(
    app: web::Data<App>,
    caller: Caller,
    visit: Visit,
    params: Params,
) -> Result<HttpResponse> {
    let unused_days = params.get("unused_days");
    let found = app.auth.workspace_keys(&caller, unused_days.parse().ok()).await?;
    let now = Timestamp::now();
    let row = |(key, made_by): (ApiKey, String)| WorkspaceRow {
        idle_days: (now.0 - idle_since(&key)).max(0) / DAY,
        row: Row::of(key),
        made_by,
    };
    ok(&WorkspacePage {
        shell: visit.shell("api-keys", "Keys of the workspace"),
        rows: found.into_iter().map(row).collect(),
        unused_days: unused_days.to_owned(),
        is_owner: caller.role == Role::Owner,
    })
}

/// What ends with a key that anybody made.
pub async fn confirm_revoke_any(
    app: web::Data<App>,
    caller: Caller,
    visit: Visit,
    Id(id): Id,
) -> Result<HttpResponse> {
    let (key, made_by) = app.auth.workspace_key(&caller, &id).await?;
    let row = Row::of(key);
    let shell = visit.shell("api-keys", format!("Revoke {}", row.key.name));
    let used = match row.key.last_used_at {
        Some(at) => format!("It was last used {}.", shell.when(at).words()),
        None => "It has never been used.".to_owned(),
    };
    let (prefix, scopes) = (&row.key.prefix, row.key.scopes.0.join(", "));
    let (end, button) = match row.is_live {
        true => {
            ("Every call that uses it is refused at once, with 401. This cannot be taken back.", "Revoke key")
        }
        false => ("It cannot be used any more: there is nothing to revoke.", ""),
    };
    ok(&Confirm {
        sentences: vec![format!("{made_by} made this key, {prefix}…, for {scopes}."), used, end.to_owned()],
        action: "/api-keys/workspace".to_owned(),
        fields: vec![("key", id)],
        button: button.to_owned(),
        ..Confirm::below(shell, [("API keys", "/api-keys"), ("Of the workspace", "/api-keys/workspace")])
    })
}

/// Ends a key that anybody made.
pub async fn revoke_any(
    app: web::Data<App>,
    caller: Caller,
    visit: Visit,
    form: Form,
) -> Result<HttpResponse> {
    let Form(fields) = form;
    app.auth.revoke_any_key(&caller, fields.get("key")).await?;
    Ok(visit.go("/api-keys/workspace", "The key is revoked. Calls that use it are refused from now on."))
}

async fn find(app: &App, caller: &Caller, id: &str) -> Result<Row> {
    let keys = app.auth.list_keys(caller).await?;
    let key = keys.into_iter().find(|key| key.public_id == id);
    key.map(Row::of).ok_or_else(|| Error::not_found(format!("API key {id:?}")))
}

fn new_page(visit: &Visit, fields: Fields, complaint: Complaint) -> NewPage {
    NewPage { shell: visit.shell("api-keys", "New key"), fields, complaint, scopes: SCOPES, presets: PRESETS }
}

pub async fn new(visit: Visit) -> Result<HttpResponse> {
    let mut pairs = vec![("preset", "ingest"), ("days", "90")];
    pairs.extend(DEFAULT_SCOPES.map(|scope| ("scope", scope)));
    ok(&new_page(&visit, Fields::of(pairs), Complaint::none()))
}

/// What the form asks for.
fn wish(fields: &Fields, now: Timestamp) -> Result<NewKeyRequest> {
    let preset = PRESETS.iter().find(|(name, ..)| *name == fields.get("preset"));
    let scopes: Vec<String> = match preset {
        Some((.., scopes)) => scopes.split(' ').map(String::from).collect(),
        None => fields.all("scope").map(String::from).collect(),
    };
    if scopes.is_empty() {
        return Err(Error::invalid("choose at least one scope"));
    }
    let expires_at = match fields.get("days") {
        "never" | "" => String::new(),
        days => {
            let days: i64 = days.parse().map_err(|_| Error::invalid("days must be a number of days"))?;
            now.plus(days.saturating_mul(DAY)).to_exact_text()
        }
    };
    let split = |text: &str| text.split([',', '\n', '\r']).map(str::to_owned).collect();
    Ok(NewKeyRequest {
        name: fields.get("name").to_owned(),
        scopes,
        allowed_meters: split(fields.raw("allowed_meters")),
        allowed_networks: split(fields.raw("allowed_networks")),
        expires_at,
    })
}

pub async fn create(app: web::Data<App>, caller: Caller, visit: Visit, form: Form) -> Result<HttpResponse> {
    let Form(fields) = form;
    let made = match wish(&fields, Timestamp::now()) {
        Ok(wish) => app.auth.create_key(&caller, &wish).await,
        Err(error) => Err(error),
    };
    match made {
        Ok((key, token)) => once::show_at(&visit, &caller, &secret_path(&key), token.expose(), ""),
        Err(error) => {
            let complaint =
                Complaint::of(error, &["name", "scope", "allowed_meters", "allowed_networks", "days"])?;
            rejected(&new_page(&visit, fields, complaint))
        }
    }
}

fn secret_path(key: &ApiKey) -> String {
    format!("/api-keys/{}/secret", key.public_id)
}

/// The secret of a key that was just made, once.
pub async fn shown(app: web::Data<App>, caller: Caller, visit: Visit, Id(id): Id) -> Result<HttpResponse> {
    let Some(Once { secret, words: grace, .. }) = once::take(&visit, &caller) else {
        let words =
            "The secret of a key is shown once. If it was not stored, make another key and revoke this one.";
        return Ok(visit.go("/api-keys", words));
    };
    let Row { key, .. } = find(&app, &caller, &id).await?;
    let heading = if grace.is_empty() { "Key created" } else { "Key rotated" };
    let (shell, origin) = (visit.shell("api-keys", heading), visit.origin.clone());
    once::page(&visit, &SecretPage { shell, heading, key, secret, origin, grace })
}

pub async fn show(app: web::Data<App>, caller: Caller, visit: Visit, Id(id): Id) -> Result<HttpResponse> {
    let row = find(&app, &caller, &id).await?;
    let events = app.auth.key_events(&caller).await?;
    let events = events.into_iter().filter(|event| event.api_key_id == id).collect();
    ok(&ShowPage { shell: visit.shell("api-keys", row.key.name.clone()), row, events })
}

pub async fn confirm_rotate(
    app: web::Data<App>,
    caller: Caller,
    visit: Visit,
    Id(id): Id,
) -> Result<HttpResponse> {
    let row = find(&app, &caller, &id).await?;
    let shell = visit.shell("api-keys", format!("Rotate {}", row.key.name));
    ok(&ConfirmPage { shell, row, rotates: true, complaint: Complaint::none() })
}

pub async fn rotate(
    app: web::Data<App>,
    caller: Caller,
    visit: Visit,
    Id(id): Id,
    form: Form,
) -> Result<HttpResponse> {
    let Form(fields) = form;
    let seconds = fields.integer("grace")?.unwrap_or_default();
    match app.auth.rotate_key(&caller, &id, seconds).await {
        Ok((key, token)) => {
            once::show_at(&visit, &caller, &secret_path(&key), token.expose(), &view::seconds(seconds))
        }
        Err(error) => {
            let complaint = Complaint::of(error, &["grace"])?;
            let row = find(&app, &caller, &id).await?;
            let shell = visit.shell("api-keys", format!("Rotate {}", row.key.name));
            rejected(&ConfirmPage { shell, row, rotates: true, complaint })
        }
    }
}

pub async fn confirm_revoke(
    app: web::Data<App>,
    caller: Caller,
    visit: Visit,
    Id(id): Id,
) -> Result<HttpResponse> {
    let row = find(&app, &caller, &id).await?;
    let shell = visit.shell("api-keys", format!("Revoke {}", row.key.name));
    ok(&ConfirmPage { shell, row, rotates: false, complaint: Complaint::none() })
}

pub async fn revoke(
    app: web::Data<App>,
    caller: Caller,
    visit: Visit,
    Id(id): Id,
    _form: Form,
) -> Result<HttpResponse> {
    app.auth.revoke_key(&caller, &id).await?;
    Ok(visit.go("/api-keys", "The key is revoked. Calls that use it are refused from now on."))
}
