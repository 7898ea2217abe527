//! `/alerts/events/{id}`: one thing that a rule noticed, and every attempt to tell of it.

use actix_web::{HttpResponse, web};
use askama::Template;

use crate::alerts::sql::deliveries::{self, Delivery};
use crate::alerts::sql::events::{self, Attempt, Event};
use crate::app::App;
use crate::auth::Caller;
use crate::dashboard::view;
use crate::dashboard::visit::{Shell, Visit, ok};
use crate::db::Conn;
use crate::error::{Error, Result};
use crate::http::extract::Id;
use crate::metering::json::Value;

const ATTEMPTS_LISTED: i64 = 100;

#[derive(Template)]
#[template(path = "alerts/event.html")]
struct EventPage {
    shell: Shell,
    event: Event,
    delivery: Option<Delivery>,
    attempts: Vec<Attempt>,
    /// What is sent.
    payload: String,
}

pub async fn show(app: web::Data<App>, caller: Caller, visit: Visit, Id(id): Id) -> Result<HttpResponse> {
    let (workspace_id, wanted) = (caller.workspace_id, id.clone());
    let read = move |conn: &mut Conn| {
        let Some(event) = events::find(conn, workspace_id, &wanted)? else { return Ok(None) };
        let delivery = deliveries::of_event(conn, workspace_id, &wanted)?;
        Ok(Some((event, delivery, events::attempts(conn, &wanted, ATTEMPTS_LISTED)?)))
    };
    let found = app.store.read("alerts::event", read).await?;
    let (event, delivery, attempts) = found.ok_or_else(|| Error::not_found(format!("alert event {id:?}")))?;
    let payload = delivery.as_ref().map_or("{}", |delivery| &delivery.payload);
    let payload = Value::parse(payload).unwrap_or_default();
    let payload = serde_json::to_string_pretty(&payload).map_err(Error::internal)?;
    ok(&EventPage { shell: visit.shell("alerts", "Alert event"), event, delivery, attempts, payload })
}
