//! `/welcome`: from nothing to the first counted event. Three steps that turn green by themselves.

use actix_web::{HttpResponse, web};
use askama::Template;

use crate::app::App;
use crate::auth::Caller;
use crate::auth::key::{NewKeyRequest, Status};
use crate::chance;
use crate::dashboard::ask;
use crate::dashboard::form::{Complaint, Fields, Form};
use crate::dashboard::once::{self, Once};
use crate::dashboard::snippets::{self, Snippet};
use crate::dashboard::view;
use crate::dashboard::visit::{Shell, Visit, ok, rejected};
use crate::db::Conn;
use crate::error::Result;
use crate::ingest::{Door, Kind, Origin};
use crate::metering::event::{Input, InputQuantity};
use crate::metering::meter::{Meter, MeterInput};
use crate::metering::quantity::Quantity;
use crate::metering::stored::StoredEvent;
use crate::metering::time::Timestamp;
use crate::usage::events as event_list;
use crate::usage::refused::{self, RefusedEvent};

#[derive(Template)]
#[template(path = "welcome.html")]
struct WelcomePage {
    shell: Shell,
    meter: Option<Meter>,
    has_key: bool,
    /// Shown once, by the answer that made it.
    secret: String,
    call: String,
    snippets: Vec<Snippet>,
    event: Option<StoredEvent>,
    refused: Option<RefusedEvent>,
    /// Of the meter that is to be made.
    fields: Fields,
    complaint: Complaint,
}

async fn page(app: &App, caller: &Caller, visit: &Visit, secret: String) -> Result<WelcomePage> {
    let workspace_id = caller.workspace_id;
    let read = move |conn: &mut Conn| {
        let meters = crate::meters::sql::list(conn, workspace_id, None, None, 1)?;
        let search = event_list::Search { workspace_id, ..event_list::Search::default() };
        let refused = refused::list(conn, workspace_id, &refused::Filter::default(), 1)?;
        Ok((meters, event_list::page(conn, &search, None, 1)?, refused))
    };
    let (mut meters, mut events, mut refused) = app.store.read("welcome::state", read).await?;
    let meter = meters.pop();
    let now = Timestamp::now();
    let keys = app.auth.list_keys(caller).await?;
    let key = if secret.is_empty() { "YOUR_KEY" } else { &secret };
    let sample = meter.as_ref().map(snippets::event);
    let origin = &visit.origin;
    Ok(WelcomePage {
        shell: visit.shell("welcome", "First event"),
        has_key: keys.iter().any(|key| matches!(Status::of(key, now), Status::Active)),
        call: sample.as_ref().map(|event| snippets::curl(origin, key, event)).unwrap_or_default(),
        snippets: sample.map(|event| snippets::others(origin, key, &event)).unwrap_or_default(),
        refused: refused.pop(),
        event: events.pop().map(|listed| listed.event),
        meter,
        secret,
        fields: Fields::of([("name", "api_calls"), ("unit", "call")]),
        complaint: Complaint::none(),
    })
}

pub async fn show(app: web::Data<App>, caller: Caller, visit: Visit) -> Result<HttpResponse> {
    match once::take(&visit, &caller) {
        Some(Once { secret, .. }) => once::page(&visit, &page(&app, &caller, &visit, secret).await?),
        None => ok(&page(&app, &caller, &visit, String::new()).await?),
    }
}

/// Makes what is missing of a meter and a key, and shows the call with both filled in.
pub async fn prepare(app: web::Data<App>, caller: Caller, visit: Visit, form: Form) -> Result<HttpResponse> {
    let Form(fields) = form;
    if ask::meters(&app, &caller).await?.is_empty()
        && let Err(error) = add_meter(&app, &caller, &fields).await
    {
        let complaint = Complaint::of(error, &["name", "unit"])?;
        let page = page(&app, &caller, &visit, String::new()).await?;
        return rejected(&WelcomePage { fields, complaint, ..page });
    }
    let wish = NewKeyRequest { name: "First key".to_owned(), ..NewKeyRequest::default() };
    let (_, token) = app.auth.create_key(&caller, &wish).await?;
    once::show_at(&visit, &caller, "/welcome", token.expose(), "")
}

async fn add_meter(app: &App, caller: &Caller, fields: &Fields) -> Result<()> {
    let name = fields.some("name").unwrap_or_else(|| "api_calls".to_owned());
    let input = MeterInput {
        name: Some(name),
        unit: Some(fields.some("unit").unwrap_or_else(|| "call".to_owned())),
        aggregation: Some("sum".to_owned()),
        ..MeterInput::default()
    };
    let meter = input.into_meter(chance::id().to_string(), caller.workspace_id, Timestamp::now())?;
    let meter = app.store.write("meters::add", move |conn| crate::meters::sql::add(conn, &meter)).await?;
    app.meters.changed(meter.workspace_id, &meter.name);
    Ok(())
}

/// Sends one event the way a service would, but for the wire.
pub async fn send_event(
    app: web::Data<App>,
    caller: Caller,
    visit: Visit,
    _form: Form,
) -> Result<HttpResponse> {
    let Some(meter) = ask::meters(&app, &caller).await?.into_iter().next() else {
        return Ok(visit.go("/welcome", "Make a meter first."));
    };
    let input = Input {
        idempotency_key: Some(format!("test-{}", chance::name().simple())),
        subject: Some("test-subject".to_owned()),
        meter: Some(meter.name.clone()),
        quantity: Some(InputQuantity(Ok(Quantity::from(1)))),
        ..Input::default()
    };
    let recorded =
        app.ingest.record(Origin::of(&caller, Door::Page), Kind::Single, vec![input], None).await?;
    match recorded.failed.into_iter().next() {
        Some(failure) => Err(failure.error),
        None => Ok(visit.go("/welcome", "A test event is counted.")),
    }
}
