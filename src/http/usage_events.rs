//! `/v1/usageevents`: raw events as lists, searches and downloads, newest first (rest.md 12.6).

use actix_web::{HttpResponse, web};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use utoipa::openapi::Required;

use crate::app::App;
use crate::auth::Caller;
use crate::db::pool;
use crate::error::{Error, Result};
use crate::exports::csv::Table;
use crate::http::body::Json;
use crate::http::extract::{CursorTime, Params, decode_cursor, paginate, parse_time};
use crate::http::openapi::{Doc, FORMULA_GUARD};
use crate::http::respond::{self, Page};
use crate::http::usage::{body_limit, csv_head, csv_limit};
use crate::metering::filter::{self, Filter};
use crate::metering::stored::StoredEvent;
use crate::metering::time::Window;
use crate::usage::events::{self, Listed, Position};
use crate::usage::query::parse_subject_filter;

/// Body of a search and of its download.
#[derive(Default, Deserialize, ToSchema)]
#[schema(as = EventSearch)]
pub struct Search {
    subject: Option<String>,
    meter: Option<String>,
    from: Option<String>,
    to: Option<String>,
    limit: Option<i64>,
    cursor: Option<String>,
    filter: Option<filter::Node>,
    /// Downloads only: an apostrophe before cells that a spreadsheet would run as a formula; unless told not to.
    formula_guard: Option<bool>,
}

impl Search {
    fn of_params(params: &Params) -> Search {
        let text = |name| Some(params.get(name).to_owned());
        Search {
            subject: text("subject"),
            meter: text("meter"),
            from: text("from"),
            to: text("to"),
            cursor: text("cursor"),
            ..Search::default()
        }
    }

    fn check(&self, caller: &Caller) -> Result<events::Search> {
        let from = parse_time(self.from.as_deref().unwrap_or_default(), "from", "invalid_from")?;
        let to = parse_time(self.to.as_deref().unwrap_or_default(), "to", "invalid_to")?;
        if let (Some(from), Some(to)) = (from, to) {
            Window::new(from, to)?;
        }
        Ok(events::Search {
            workspace_id: caller.workspace_id,
            meter: self.meter.clone().filter(|name| !name.is_empty()),
            subject: parse_subject_filter(self.subject.as_deref().unwrap_or_default())?,
            from,
            to,
            filter: Filter::parse_optional(self.filter.as_ref())?,
        })
    }
}

#[derive(Serialize, Deserialize)]
struct Cursor {
    time: Option<CursorTime>,
    id: Option<String>,
}

impl Cursor {
    fn of(position: &Position) -> Self {
        Cursor { time: Some(CursorTime(position.time)), id: Some(position.id.to_string()) }
    }

    /// A cursor without a time is none, unless it has an id.
    fn position(self) -> Result<Option<Position>> {
        let wrong = || Error::invalid("cursor is not one of ours");
        match (self.time, self.id) {
            (None, None) | (Some(_), None) => Ok(None),
            (None, Some(_)) => Err(wrong()),
            (Some(CursorTime(time)), Some(id)) => {
                Ok(Some(Position { time, id: Uuid::parse_str(&id).map_err(|_| wrong())? }))
            }
        }
    }
}

fn event_query(summary: &'static str) -> Doc {
    Doc::new("usage events", summary)
        .text("meter", "Name of a meter.")
        .text("subject", "One subject only.")
        .time("from", "Start, inclusive.", Required::False)
        .time("to", "End, exclusive.", Required::False)
}

pub fn describe_list() -> Doc {
    event_query("List raw events").limit(100, 1000).cursor().page::<StoredEvent>("Newest first.")
}

pub async fn list(app: web::Data<App>, caller: Caller, params: Params) -> Result<HttpResponse> {
    caller.ensure_meter_allowed(params.get("meter"))?;
    let limit = params.limit(100, 1000)?;
    answer(&app, &caller, Search::of_params(&params), limit).await
}

pub fn describe_search() -> Doc {
    Doc::new("usage events", "List raw events, with a filter")
        .body::<Search>()
        .page::<StoredEvent>("Newest first.")
}

pub async fn search(app: web::Data<App>, caller: Caller, body: Json<Search>) -> Result<HttpResponse> {
    let Json(search) = body;
    caller.ensure_meter_allowed(search.meter.as_deref().unwrap_or_default())?;
    let limit = body_limit(search.limit);
    answer(&app, &caller, search, limit).await
}

async fn answer(app: &App, caller: &Caller, search: Search, limit: i64) -> Result<HttpResponse> {
    let wanted = search.check(caller)?;
    let cursor: Option<Cursor> = decode_cursor(search.cursor.as_deref().unwrap_or_default())?;
    let after = cursor.map(Cursor::position).transpose()?.flatten();
    let rows = page(app, wanted, after, limit as usize + 1).await?;
    let (rows, next_cursor) = paginate(rows, limit, |listed| Cursor::of(&listed.position))?;
    respond::ok(&Page { items: rows.into_iter().map(|listed| listed.event).collect::<Vec<_>>(), next_cursor })
}

async fn page(
    app: &App,
    search: events::Search,
    after: Option<Position>,
    limit: usize,
) -> Result<Vec<Listed>> {
    app.store.view("event_list::page", false, move |conn| events::page(conn, &search, after, limit)).await
}

pub fn describe_export() -> Doc {
    event_query("Download raw events")
        .limit(100, 1000)
        .flag("formula_guard", FORMULA_GUARD)
        .csv("Newest first.")
}

pub async fn export(app: web::Data<App>, caller: Caller, params: Params) -> Result<HttpResponse> {
    caller.ensure_meter_allowed(params.get("meter"))?;
    let limit = csv_limit(Some(params.limit(100, i64::MAX)?))?;
    let guard = params.boolean("formula_guard", "invalid_formula_guard")?.unwrap_or(true);
    csv(app, &caller, Search::of_params(&params), limit, guard).await
}

pub fn describe_export_search() -> Doc {
    Doc::new("usage events", "Download raw events, with a filter").body::<Search>().csv("Newest first.")
}

pub async fn export_search(app: web::Data<App>, caller: Caller, body: Json<Search>) -> Result<HttpResponse> {
    let Json(search) = body;
    caller.ensure_meter_allowed(search.meter.as_deref().unwrap_or_default())?;
    let (limit, guard) = (csv_limit(search.limit)?, search.formula_guard.unwrap_or(true));
    csv(app, &caller, search, limit, guard).await
}

/// Events that a download reads at a time: metadata may be 64 KiB each.
const CHUNK: i64 = 200;

/// What of a download is still to come.
struct Rest {
    app: web::Data<App>,
    search: events::Search,
    after: Option<Position>,
    left: i64,
    formula_guard: bool,
}

async fn csv(
    app: web::Data<App>,
    caller: &Caller,
    search: Search,
    limit: i64,
    formula_guard: bool,
) -> Result<HttpResponse> {
    let search = search.check(caller)?;
    let rest = Rest { app, search, after: None, left: limit, formula_guard };
    // the first chunk comes before the status, so that a refusal can still be said in JSON
    let (first, rest) = rest.chunk(Table::of_events(formula_guard)?).await?;
    // what is sent while it is read comes out of the caller's share, too
    let reader = caller.reader();
    let later = stream::try_unfold(rest, move |rest| async move {
        match rest {
            Some(rest) => {
                let table = Table::continued(rest.formula_guard);
                pool::read_by(Some(reader), rest.chunk(table)).await.map(Some)
            }
            None => Ok(None),
        }
    });
    let chunks = stream::once(std::future::ready(Ok::<_, Error>(first))).chain(later);
    Ok(csv_head("usage-events.csv").streaming(chunks))
}

impl Rest {
    /// The next lines, and what is left after them.
    async fn chunk(self, mut table: Table) -> Result<(Bytes, Option<Rest>)> {
        let wanted = self.left.min(CHUNK);
        let rows = page(&self.app, self.search.clone(), self.after, wanted as usize).await?;
        rows.iter().try_for_each(|listed| table.event(&listed.event))?;
        let left = self.left - rows.len() as i64;
        let after = rows.last().map(|listed| listed.position);
        let has_more = rows.len() as i64 == wanted && left > 0;
        let rest = has_more.then_some(Rest { after, left, ..self });
        Ok((Bytes::from(table.into_bytes()?), rest))
    }
}
