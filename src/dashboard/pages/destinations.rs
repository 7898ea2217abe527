//! `/destinations`: the receivers of alerts.

use actix_web::{HttpResponse, web};
use askama::Template;

use crate::alerts::rule::parse_label;
use crate::alerts::sql::deliveries::{self, Filter, Listed, Tried};
use crate::alerts::sql::destinations::{self, Destination, DestinationSpec};
use crate::alerts::sql::rules;
use crate::alerts::webhook::client::{WebhookRequest, WebhookResponse};
use crate::alerts::webhook::{self, SECRET_OVERLAP, SECRET_PREFIX};
use crate::app::App;
use crate::auth::Caller;
use crate::auth::token::Token;
use crate::chance;
use crate::dashboard::confirm::Confirm;
use crate::dashboard::form::{Complaint, Fields, Form};
use crate::dashboard::once;
use crate::dashboard::view;
use crate::dashboard::visit::{Shell, Visit, ok, rejected};
use crate::db::Conn;
use crate::db::limits::Kind;
use crate::error::Result;
use crate::http::extract::Id;
use crate::metering::time::{DAY, Timestamp};

#[derive(Template)]
#[template(path = "alerts/destinations.html")]
struct ListPage {
    shell: Shell,
    destinations: Vec<Destination>,
}

pub async fn list(app: web::Data<App>, caller: Caller, visit: Visit) -> Result<HttpResponse> {
    let workspace_id = caller.workspace_id;
    let most = Kind::AlertDestination.most();
    let list = move |conn: &mut Conn| destinations::list(conn, workspace_id, None, most);
    let destinations = app.store.read("destinations::list", list).await?;
    ok(&ListPage { shell: visit.shell("alerts", "Destinations"), destinations })
}

#[derive(Template)]
#[template(path = "alerts/destination_form.html")]
struct FormPage {
    shell: Shell,
    destination: Option<Destination>,
    fields: Fields,
    complaint: Complaint,
}

const FIELDS: [&str; 2] = ["name", "webhook_url"];

fn form_page(
    visit: &Visit,
    destination: Option<Destination>,
    fields: Fields,
    complaint: Complaint,
) -> FormPage {
    let title =
        destination.as_ref().map_or_else(|| "New destination".to_owned(), |one| format!("Edit {}", one.name));
    FormPage { shell: visit.shell("alerts", title), destination, fields, complaint }
}

pub async fn new(visit: Visit) -> Result<HttpResponse> {
    ok(&form_page(&visit, None, Fields::of([("enabled", "on")]), Complaint::none()))
}

fn terms(app: &App, fields: &Fields) -> Result<DestinationSpec> {
    let webhook_url = webhook::parse_url(fields.get("webhook_url"))?;
    app.webhooks.accept(&webhook_url)?;
    Ok(DestinationSpec {
        name: parse_label(fields.get("name"))?,
        enabled: !fields.get("enabled").is_empty(),
        webhook_url,
    })
}

#[derive(Template)]
#[template(path = "alerts/destination_secret.html")]
struct SecretPage {
    shell: Shell,
    heading: &'static str,
    destination: Destination,
    secret: String,
    standard_secret: String,
    is_rotated: bool,
}

fn secret_page(
    visit: &Visit,
    heading: &'static str,
    destination: Destination,
    is_rotated: bool,
) -> Result<SecretPage> {
    let secret = destination.secret()?;
    let standard_secret = webhook::standard_secret(&secret);
    let shell = visit.shell("alerts", heading);
    Ok(SecretPage { shell, heading, destination, secret, standard_secret, is_rotated })
}

pub async fn create(app: web::Data<App>, caller: Caller, visit: Visit, form: Form) -> Result<HttpResponse> {
    let Form(fields) = form;
    let (token, workspace_id) = (Token::new(SECRET_PREFIX)?, caller.workspace_id);
    let made = match terms(&app, &fields) {
        Ok(terms) => {
            let add = move |conn: &mut Conn| {
                destinations::add(conn, workspace_id, &terms, token.expose(), Timestamp::now())
            };
            app.store.write("destinations::add", add).await
        }
        Err(error) => Err(error),
    };
    match made {
        Ok(destination) => once::show_at(&visit, &caller, &secret_path(&destination), "", "created"),
        Err(error) => rejected(&form_page(&visit, None, fields, Complaint::of(error, &FIELDS)?)),
    }
}

async fn find(app: &App, caller: &Caller, id: &str) -> Result<Destination> {
    let (workspace_id, id) = (caller.workspace_id, id.to_owned());
    app.store
        .read("destinations::get", move |conn: &mut Conn| destinations::get(conn, workspace_id, &id))
        .await
}

#[derive(Template)]
#[template(path = "alerts/destination.html")]
struct ShowPage {
    shell: Shell,
    destination: Destination,
    deliveries: Vec<Listed>,
    health: Option<Health>,
    answer: Option<WebhookResponse>,
}

/// How a receiver answered lately.
struct Health {
    attempts: usize,
    delivered: usize,
    share: String,
    /// So long took all but the slowest twentieth of the attempts.
    usual_ms: i64,
}

impl Health {
    /// None where nothing was sent.
    fn of(tried: &[Tried]) -> Option<Health> {
        let mut lengths: Vec<i64> = tried.iter().map(|one| one.duration_ms).collect();
        lengths.sort_unstable();
        let usual_ms = *lengths.get((tried.len() * 95).div_ceil(100).checked_sub(1)?)?;
        let delivered = tried.iter().filter(|one| one.status == "delivered").count();
        let share = format!("{:.1} %", delivered as f64 / tried.len() as f64 * 100.0);
        Some(Health { attempts: tried.len(), delivered, share, usual_ms })
    }
}

async fn show_page(
    app: &App,
    caller: &Caller,
    visit: &Visit,
    id: &str,
    answer: Option<WebhookResponse>,
) -> Result<ShowPage> {
    let destination = find(app, caller, id).await?;
    let (workspace_id, wanted) = (caller.workspace_id, id.to_owned());
    let (since, filter) =
        (Timestamp::now().plus(-DAY), Filter { destination_id: Some(id.to_owned()), ..Filter::default() });
    let read = move |conn: &mut Conn| {
        let tried = deliveries::tried(conn, workspace_id, &wanted, since)?;
        Ok((deliveries::page(conn, workspace_id, &filter, 50)?, tried))
    };
    let (deliveries, tried) = app.store.read("deliveries::page", read).await?;
    let (shell, health) = (visit.shell("alerts", destination.name.clone()), Health::of(&tried));
    Ok(ShowPage { shell, destination, deliveries, health, answer })
}

pub async fn show(app: web::Data<App>, caller: Caller, visit: Visit, Id(id): Id) -> Result<HttpResponse> {
    ok(&show_page(&app, &caller, &visit, &id, None).await?)
}

/// Sends a test and shows what the receiver said.
pub async fn test(
    app: web::Data<App>,
    caller: Caller,
    visit: Visit,
    Id(id): Id,
    _form: Form,
) -> Result<HttpResponse> {
    let destination = find(&app, &caller, &id).await?;
    let (now, event_id) = (Timestamp::now(), chance::id().to_string());
    let letter = WebhookRequest {
        url: destination.webhook_url.clone(),
        body: webhook::test_payload(&event_id, (&destination.public_id, &destination.name), now)?,
        secret: destination.secret()?,
        previous_secret: destination.overlapping_secret(now)?,
        id: event_id,
    };
    let answer = app.webhooks.send(&letter).await;
    ok(&show_page(&app, &caller, &visit, &id, Some(answer)).await?)
}

pub async fn edit(app: web::Data<App>, caller: Caller, visit: Visit, Id(id): Id) -> Result<HttpResponse> {
    let destination = find(&app, &caller, &id).await?;
    let fields = Fields::of([
        ("name", destination.name.clone()),
        ("webhook_url", destination.webhook_url.clone()),
        ("enabled", if destination.enabled { "on" } else { "" }.to_owned()),
    ]);
    ok(&form_page(&visit, Some(destination), fields, Complaint::none()))
}

pub async fn update(
    app: web::Data<App>,
    caller: Caller,
    visit: Visit,
    Id(id): Id,
    form: Form,
) -> Result<HttpResponse> {
    let Form(fields) = form;
    let (workspace_id, wanted) = (caller.workspace_id, id.clone());
    let changed = match terms(&app, &fields) {
        Ok(terms) => {
            let change = move |_: &Destination| {
                Ok(DestinationSpec {
                    name: terms.name.clone(),
                    enabled: terms.enabled,
                    webhook_url: terms.webhook_url.clone(),
                })
            };
            let update = move |conn: &mut Conn| {
                destinations::update(conn, workspace_id, &wanted, &change, Timestamp::now())
            };
            app.store.write("destinations::update", update).await
        }
        Err(error) => Err(error),
    };
    match changed {
        Ok(_) => {
            // what waited for a disabled destination may be due
            app.wake.notify();
            Ok(visit.go(&format!("/destinations/{id}"), "Saved."))
        }
        Err(error) => {
            let destination = find(&app, &caller, &id).await?;
            rejected(&form_page(&visit, Some(destination), fields, Complaint::of(error, &FIELDS)?))
        }
    }
}

/// A page that asks before something is done to a destination.
fn confirm(visit: &Visit, title: String, destination: &Destination) -> Confirm {
    let page = format!("/destinations/{}", destination.public_id);
    let crumbs = [("Destinations", "/destinations"), (destination.name.as_str(), page.as_str())];
    Confirm::below(visit.shell("alerts", title), crumbs)
}

pub async fn confirm_rotate(
    app: web::Data<App>,
    caller: Caller,
    visit: Visit,
    Id(id): Id,
) -> Result<HttpResponse> {
    let destination = find(&app, &caller, &id).await?;
    let words = "Deliveries are signed with a new secret from now on. Receivers that follow the Standard Webhooks accept \
                 the old one for 24 hours.";
    ok(&Confirm {
        sentences: vec![words.to_owned()],
        action: format!("/destinations/{id}/rotate"),
        button: "Rotate secret".to_owned(),
        is_harmless: true,
        ..confirm(&visit, format!("Rotate the secret of {}", destination.name), &destination)
    })
}

pub async fn rotate(
    app: web::Data<App>,
    caller: Caller,
    visit: Visit,
    Id(id): Id,
    _form: Form,
) -> Result<HttpResponse> {
    let (token, workspace_id) = (Token::new(SECRET_PREFIX)?, caller.workspace_id);
    let rotate = move |conn: &mut Conn| {
        let now = Timestamp::now();
        let until = now.plus(SECRET_OVERLAP.as_micros() as i64);
        destinations::rotate(conn, workspace_id, &id, token.expose(), until, now)
    };
    let destination = app.store.write("destinations::rotate", rotate).await?;
    once::show_at(&visit, &caller, &secret_path(&destination), "", "rotated")
}

fn secret_path(destination: &Destination) -> String {
    format!("/destinations/{}/secret", destination.public_id)
}

/// The secret that was just made, once: the page is sent to it, and holds none in its address.
pub async fn shown(app: web::Data<App>, caller: Caller, visit: Visit, Id(id): Id) -> Result<HttpResponse> {
    let Some(made) = once::take(&visit, &caller) else {
        let words = "The secret of a destination is shown once. If it was not stored, rotate it.";
        return Ok(visit.go("/destinations", words));
    };
    let destination = find(&app, &caller, &id).await?;
    let is_rotated = made.words == "rotated";
    let heading = if is_rotated { "Secret rotated" } else { "Destination created" };
    once::page(&visit, &secret_page(&visit, heading, destination, is_rotated)?)
}

/// Which rules are sent to a destination: they refuse its deletion.
async fn delete_page(
    app: &App,
    visit: &Visit,
    destination: &Destination,
    complaint: Complaint,
) -> Result<Confirm> {
    let id = destination.id;
    let rules = app.store.read("rules::sent_to", move |conn: &mut Conn| rules::sent_to(conn, id)).await?;
    let (sentence, button) = match rules.len() {
        0 => ("No rule is sent here. Deliveries that wait are dropped.".to_owned(), "Delete destination"),
        held => (
            format!(
                "{} sent here. It cannot be deleted while one is: send them elsewhere or delete them first.",
                view::counted(held, "alert rule is", "alert rules are")
            ),
            "",
        ),
    };
    Ok(Confirm {
        sentences: vec![sentence],
        uses: rules.into_iter().map(|(id, name)| (name, format!("/alerts/{id}"))).collect(),
        action: format!("/destinations/{}/delete", destination.public_id),
        button: button.to_owned(),
        complaint,
        ..confirm(visit, format!("Delete {}", destination.name), destination)
    })
}

pub async fn confirm_delete(
    app: web::Data<App>,
    caller: Caller,
    visit: Visit,
    Id(id): Id,
) -> Result<HttpResponse> {
    let destination = find(&app, &caller, &id).await?;
    ok(&delete_page(&app, &visit, &destination, Complaint::none()).await?)
}

pub async fn delete(
    app: web::Data<App>,
    caller: Caller,
    visit: Visit,
    Id(id): Id,
    _form: Form,
) -> Result<HttpResponse> {
    let destination = find(&app, &caller, &id).await?;
    let workspace_id = caller.workspace_id;
    let delete = move |conn: &mut Conn| destinations::delete(conn, workspace_id, &id);
    match app.store.write("destinations::delete", delete).await {
        Ok(()) => Ok(visit.go("/destinations", &format!("{} is deleted.", destination.name))),
        Err(error) => rejected(&delete_page(&app, &visit, &destination, Complaint::of(error, &[])?).await?),
    }
}
