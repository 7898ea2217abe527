//! Doors for events of other formats: CloudEvents 1.0 over HTTP, and OpenMeter's. What an event comes to stands in
//! `metering::cloudevent`; from there on it is an event like any other.

use actix_web::http::{StatusCode, header};
use actix_web::{HttpRequest, HttpResponse, web};

use crate::app::App;
use crate::auth::Caller;
use crate::blocking;
use crate::error::{Error, Result};
use crate::http::body::Body;
use crate::http::dry_run;
use crate::http::extract::Params;
use crate::http::openapi::Doc;
use crate::http::respond;
use crate::http::usage::{BulkResult, bulk_answer, check_count, ensure_allowed};
use crate::ingest::{About, Door, Failure, Kind, Origin, Recorded};
use crate::metering::cloudevent::CloudEvent;
use crate::metering::event::Input;
use crate::metering::stored::StoredEvent;

pub fn describe_create() -> Doc {
    Doc::new("usage", "Record CloudEvents: one (structured or binary) or a batch, by content type")
        .body::<CloudEvent>()
        .answer::<StoredEvent>(
            201,
            "The stored event, or the one that first had this source and id; of a batch, a bulk result.",
        )
        .errors(&[404, 429])
}

/// `application/cloudevents+json`, `application/cloudevents-batch+json`, or attributes in headers.
pub async fn create(
    app: web::Data<App>,
    caller: Caller,
    request: HttpRequest,
    params: Params,
    body: Body,
) -> Result<HttpResponse> {
    dry_run::refuse(&params)?;
    let (content_type, origin) = (content_type(&request), Origin::of(&caller, Door::CloudEvents));
    if content_type.starts_with("application/cloudevents-batch+json") {
        let events = body.events().await.map_err(|unread| unread.told(&app.ingest, &origin))?.events;
        return bulk_answer(record(&app, &caller, origin, Kind::Bulk, events).await?);
    }
    let event = match content_type.starts_with("application/cloudevents+json") {
        true => body.object_sent().await.map_err(|unread| unread.told(&app.ingest, &origin))?,
        false => {
            let text =
                body.text().await.map_err(|error| app.ingest.refuse(&origin, About::default(), error))?;
            binary(&request, &text)
                .map_err(|error| app.ingest.refuse(&origin, About::of_text(&text), error))?
        }
    };
    one_answer(record(&app, &caller, origin, Kind::Single, vec![event]).await?)
}

pub fn describe_openmeter() -> Doc {
    Doc::new("usage", "Record events as OpenMeter takes them: one or a list")
        .body::<CloudEvent>()
        .empty(204, "Everything is stored.")
        .answer::<BulkResult>(400, "What is valid is stored; the rest is named.")
        .errors(&[429])
}

pub async fn openmeter(
    app: web::Data<App>,
    caller: Caller,
    params: Params,
    body: Body,
) -> Result<HttpResponse> {
    dry_run::refuse(&params)?;
    let origin = Origin::of(&caller, Door::OpenMeter);
    let events = body.events().await.map_err(|unread| unread.told(&app.ingest, &origin))?.events;
    let recorded = record(&app, &caller, origin, Kind::Bulk, events).await?;
    if recorded.failed.is_empty() {
        let mut response = respond::no_content();
        respond::about_key(&mut response, false, recorded.has_conflict());
        return Ok(response);
    }
    let mut answer = bulk_answer(recorded)?;
    *answer.status_mut() = StatusCode::BAD_REQUEST;
    Ok(answer)
}

fn content_type(request: &HttpRequest) -> String {
    let value = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    value.unwrap_or_default().trim().to_ascii_lowercase()
}

/// Attributes stand in headers, percent-encoded; the body is the data.
fn binary(request: &HttpRequest, data: &str) -> Result<CloudEvent> {
    let attribute = |name: &str| -> Result<Option<String>> {
        let Some(value) = request.headers().get(name) else { return Ok(None) };
        let decoded = percent_encoding::percent_decode(value.as_bytes()).decode_utf8();
        let text = decoded.map_err(|_| Error::invalid(format!("the header {name} must be UTF-8")))?;
        Ok(Some(text.into_owned()))
    };
    let specversion = attribute("ce-specversion")?;
    if specversion.is_none() {
        return Err(Error::invalid(
            "a CloudEvent has the header ce-specversion, or content type application/cloudevents+json",
        ));
    }
    let data = match data.trim() {
        "" => None,
        text => Some(serde_json::from_str(text).map_err(|_| Error::invalid_json().at("data"))?),
    };
    Ok(CloudEvent {
        specversion,
        id: attribute("ce-id")?,
        source: attribute("ce-source")?,
        kind: attribute("ce-type")?,
        subject: attribute("ce-subject")?,
        time: attribute("ce-time")?,
        data,
        ..CloudEvent::default()
    })
}

/// Each on its own merits, in one transaction.
async fn record(
    app: &App,
    caller: &Caller,
    origin: Origin,
    kind: Kind,
    events: Vec<CloudEvent>,
) -> Result<Recorded> {
    check_count(events.len(), app.config.ingest.max_bulk_events)
        .map_err(|error| app.ingest.refuse(&origin, About::default(), error))?;
    let (mut inputs, mut places, mut failed) = (Vec::<Input>::new(), Vec::new(), Vec::new());
    for (index, taken) in take_inputs(events).await?.into_iter().enumerate() {
        match taken.map_err(|refused| *refused) {
            Ok(input) => {
                ensure_allowed(&app.ingest, &origin, caller, &input)?;
                inputs.push(input);
                places.push(index);
            }
            Err((event, error)) => {
                let error = app.ingest.refuse(&origin, about(&event), error);
                failed.push(Failure { index, error });
            }
        }
    }
    let recorded = if inputs.is_empty() {
        Recorded::nothing()
    } else {
        app.ingest.record(origin, kind, inputs, None).await?
    };
    let recorded = recorded.moved(&places, failed);
    recorded.confined(|meter| caller.ensure_meter_allowed(meter))
}

/// More data than this is read by a thread that may be kept busy.
const READ_HERE: usize = 64 * 1024;

type Taken = Result<Input, Box<(CloudEvent, Error)>>;

/// What each event comes to, or the event and why it is none.
async fn take_inputs(events: Vec<CloudEvent>) -> Result<Vec<Taken>> {
    let bytes: usize = events.iter().map(CloudEvent::data_bytes).sum();
    let take =
        |mut event: CloudEvent| -> Taken { event.take_input().map_err(|error| Box::new((event, error))) };
    if bytes <= READ_HERE {
        return Ok(events.into_iter().map(take).collect());
    }
    let work = move || events.into_iter().map(take).collect::<Vec<Taken>>();
    blocking::begin(work).await.map_err(Error::internal)
}

/// What an event that is no usage says of itself.
fn about(event: &CloudEvent) -> About {
    let text = |text: &Option<String>| Some(text.clone().unwrap_or_default());
    About::of(&Input {
        idempotency_key: event.id.clone(),
        subject: text(&event.subject),
        meter: text(&event.kind),
        timestamp: event.time.clone(),
        ..Input::default()
    })
    .with_payload(&event.as_sent())
}

fn one_answer(recorded: Recorded) -> Result<HttpResponse> {
    let has_conflict = recorded.has_conflict();
    if let Some(failure) = recorded.failed.into_iter().next() {
        return Err(failure.error);
    }
    if let Some(original) = recorded.duplicates.first() {
        let mut response = respond::created(original)?;
        respond::about_key(&mut response, true, has_conflict);
        return Ok(response);
    }
    let stored = recorded.accepted.first().ok_or_else(|| Error::internal("a write without an outcome"))?;
    respond::created(stored)
}
