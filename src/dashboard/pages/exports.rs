//! `/exports`: queueing, progress, download. The query comes from the address of the view it was made in.

use std::sync::Arc;

use actix_web::{HttpResponse, web};
use askama::Template;

use crate::app::App;
use crate::auth::Caller;
use crate::dashboard::ask;
use crate::dashboard::foot::{Foot, Portion};
use crate::dashboard::form::{Complaint, Fields, Form};
use crate::dashboard::grammar::{self, RANGES};
use crate::dashboard::pages::spans;
use crate::dashboard::pages::usage_view::{BUCKETS, UsageView, has_weeks};
use crate::dashboard::view::{self, Link};
use crate::dashboard::visit::{Shell, Visit, ok, rejected};
use crate::dashboard::zone::OFFERED;
use crate::db::Conn;
use crate::error::{Code, Error, Result};
use crate::exports::csv::Table;
use crate::exports::job::{Export, ExportQuery, Input, Kind, Status};
use crate::http::extract::{Id, Params, decode_cursor, encode_cursor};
use crate::metering::calendar::Zone;
use crate::metering::json::{Map, Value};
use crate::metering::meter::{Aggregation, Meter};
use crate::metering::quantity::Quantity;
use crate::metering::time::{Timestamp, Window};
use crate::usage::events::{self as event_list, Search};
use crate::usage::query::Query;

const LISTED: usize = 50;
/// Rows of a file that are shown before it is made, and how far its buckets are counted.
const PREVIEWED: usize = 10;
const COUNTED_MAX: usize = 10_000;

#[derive(Template)]
#[template(path = "exports/list.html")]
struct ListPage {
    shell: Shell,
    exports: Vec<Export>,
    status: Option<Status>,
    next: Option<String>,
    foot: Foot,
}

impl ListPage {
    fn statuses(&self) -> [Status; 5] {
        Status::ALL
    }

    fn is(&self, status: &Status) -> bool {
        self.status == Some(*status)
    }
}

/// The reference's word for a status.
fn word(status: Status) -> &'static str {
    status.as_str()
}

fn may_cancel(export: &Export) -> bool {
    export.status.check_cancel().is_ok()
}

fn may_retry(export: &Export) -> bool {
    export.status.check_retry().is_ok()
}

pub async fn list(app: web::Data<App>, caller: Caller, visit: Visit, params: Params) -> Result<HttpResponse> {
    let after = decode_cursor::<(i64, String)>(params.get("cursor"))?.map(|(at, id)| (Timestamp(at), id));
    let workspace_id = caller.workspace_id;
    let status = match params.get("status") {
        "" => None,
        word => Some(Status::parse(word).ok_or_else(|| Error::invalid("status is not one of an export"))?),
    };
    let portion = Portion::of_pages(&params, LISTED)?;
    let most = portion.rows() as i64;
    let read =
        move |conn: &mut _| crate::exports::sql::list(conn, workspace_id, status, after.as_ref(), most);
    let (exports, has_more): (Vec<Export>, bool) = app.store.read("exports::list", read).await?;
    let here = view::link("/exports", "status", status.map_or("", Status::as_str));
    let next = match exports.last().filter(|_| has_more) {
        Some(last) => {
            let cursor = encode_cursor(&(last.created_at.0, last.id.clone()))?;
            Some(portion.on(here.clone()).with("cursor", &cursor).to_string())
        }
        None => None,
    };
    let call = Link::to("/v1/exports").with("limit", &portion.rows().to_string());
    let foot = portion.foot(&here.with("cursor", params.get("cursor"))).without_files();
    let foot = foot.with_call_if(status.is_none(), &visit.origin, &call);
    ok(&ListPage { shell: visit.shell("exports", "Export jobs"), exports, status, next, foot })
}

#[derive(Template)]
#[template(path = "exports/new.html")]
struct NewPage {
    shell: Shell,
    meters: Vec<Meter>,
    fields: Fields,
    complaint: Complaint,
    /// Of the workspace.
    home: Zone,
    preview: Option<Preview>,
}

/// What the file would begin with.
struct Preview {
    text: String,
    /// How many rows it would have now.
    rows: String,
}

impl NewPage {
    fn ranges(&self) -> &'static [(&'static str, &'static str)] {
        &RANGES
    }

    fn buckets(&self) -> &'static [(&'static str, &'static str)] {
        &BUCKETS
    }

    fn lists_meter(&self) -> bool {
        self.meters.iter().any(|meter| meter.name == self.fields.get("meter"))
    }

    fn zones(&self) -> &'static [&'static str] {
        &OFFERED
    }
}

const CARRIED: [&str; 10] =
    ["kind", "meter", "subject", "range", "from", "to", "bucket", "time_zone", "week_start", "group"];

pub async fn new(app: web::Data<App>, caller: Caller, visit: Visit, params: Params) -> Result<HttpResponse> {
    let meters = ask::meters(&app, &caller).await?;
    let mut pairs: Vec<(String, String)> =
        CARRIED.iter().map(|name| ((*name).to_owned(), params.get(name).to_owned())).collect();
    pairs.extend(params.all("f").chain(params.all("q")).map(|text| ("f".to_owned(), text.to_owned())));
    let mut fields = Fields::of(pairs);
    if fields.get("kind").is_empty() {
        fields.set("kind", "usage_buckets");
    }
    let (shell, home) = (visit.shell("exports", "New export"), ask::home(&app, &caller).await?);
    ok(&NewPage { shell, meters, fields, complaint: Complaint::none(), home, preview: None })
}

pub async fn create(app: web::Data<App>, caller: Caller, visit: Visit, form: Form) -> Result<HttpResponse> {
    let Form(fields) = form;
    let done = match fields.get("do") {
        "preview" => preview(&app, &caller, &fields).await.map(Done::Previewed).map_err(at_the_form),
        _ => queue(&app, &caller, &fields).await.map(|export| Done::Queued(export.id)),
    };
    match done {
        Ok(Done::Queued(id)) => Ok(visit.go(&format!("/exports/{id}"), "Queued. This page follows it.")),
        Ok(Done::Previewed(preview)) => {
            let meters = ask::meters(&app, &caller).await?;
            let (shell, home) = (visit.shell("exports", "New export"), ask::home(&app, &caller).await?);
            let (complaint, preview) = (Complaint::none(), Some(preview));
            ok(&NewPage { shell, meters, fields, complaint, home, preview })
        }
        Err(error) => {
            let complaint = Complaint::of(
                error,
                &["meter", "from", "to", "subject", "bucket", "time_zone", "week_start"],
            )?;
            let meters = ask::meters(&app, &caller).await?;
            let (shell, home) = (visit.shell("exports", "New export"), ask::home(&app, &caller).await?);
            rejected(&NewPage { shell, meters, fields, complaint, home, preview: None })
        }
    }
}

/// What a form was for.
enum Done {
    Queued(String),
    Previewed(Preview),
}

/// What the fields of the form ask for, and as what.
async fn asked_for(app: &App, caller: &Caller, fields: &Fields) -> Result<(Kind, UsageView, Zone)> {
    let kind = Kind::parse(fields.get("kind"))?;
    // the same words as in the address of a view
    let link = CARRIED[1..].iter().fold(Link::to(""), |link, name| link.with(name, fields.get(name)));
    let link = fields.all("f").fold(link, |link, text| link.with("f", text)).to_string();
    let params = Params::parse(link.trim_start_matches('?'));
    let home = app.zones.get(caller.workspace_id).await?;
    let meter = ask::meter(app, caller, fields.get("meter")).await?;
    let asked = spans::read(app, caller, meter, &params, &home).await?;
    Ok((kind, asked, home))
}

/// What a page has no time for is no fault of the export: told at the form, which keeps what was typed.
fn at_the_form(error: Error) -> Error {
    match error.code {
        Code::QueryTimeout => Error::invalid(
            "looking at so much takes longer than a page may: choose a shorter time, or queue the export unseen",
        ),
        _ => error,
    }
}

/// The first rows of the file, as they would stand in it, and how many there would be.
async fn preview(app: &App, caller: &Caller, fields: &Fields) -> Result<Preview> {
    let (kind, asked, _) = asked_for(app, caller, fields).await?;
    let window = asked.range.window;
    let (table, rows) = match kind {
        Kind::UsageBuckets => {
            let query = asked.query(window, true, true)?;
            let rows = ask::buckets(app, query.clone(), COUNTED_MAX + 1).await?;
            let mut table = Table::of_buckets(&query, true)?;
            rows.iter().take(PREVIEWED).try_for_each(|row| table.bucket(&query, row))?;
            (table, view::counted_to(COUNTED_MAX as i64, rows.len() as i64, "row", "rows"))
        }
        Kind::UsageEvents => {
            let search = Search {
                workspace_id: caller.workspace_id,
                meter: Some(asked.meter.name.clone()),
                subject: Some(asked.subject.clone()).filter(|subject| !subject.is_empty()),
                from: Some(window.from),
                to: Some(window.to),
                filter: grammar::filter(&asked.conditions, Some(&asked.meter))?,
            };
            let read = move |conn: &mut Conn| event_list::page(conn, &search, None, PREVIEWED);
            let listed = app.store.view("event_list::page", false, read).await?;
            let mut table = Table::of_events(true)?;
            listed.iter().try_for_each(|one| table.event(&one.event))?;
            (table, counted(app, &asked).await?)
        }
    };
    let text = String::from_utf8_lossy(&table.into_bytes()?).into_owned();
    Ok(Preview { text, rows })
}

/// How many events a view is made of that are still there: of those that were pruned sums are left, and no rows.
async fn counted(app: &App, asked: &UsageView) -> Result<String> {
    let Window { from, to } = asked.range.window;
    let from = asked.meter.pruned_before.map_or(from, |before| before.max(from));
    if from >= to {
        return Ok("0 rows".to_owned());
    }
    let whole = asked.query(Window { from, to }, false, false)?;
    let meter = Meter { aggregation: Aggregation::Count, ..asked.meter.clone() };
    let rows = ask::buckets(app, Query { meter: Arc::new(meter), ..whole }, 1).await?;
    let count = rows.first().map_or_else(Quantity::zero, |row| row.quantity.clone());
    Ok(match count.to_plain().as_str() {
        "1" => "1 row".to_owned(),
        _ => format!("{} rows", view::number(&count)),
    })
}

async fn queue(app: &App, caller: &Caller, fields: &Fields) -> Result<Export> {
    let (kind, asked, home) = asked_for(app, caller, fields).await?;
    let mut query = Map::new();
    query.insert("meter".to_owned(), asked.meter.name.as_str().into());
    query.insert("from".to_owned(), asked.range.window.from.to_exact_text().as_str().into());
    query.insert("to".to_owned(), asked.range.window.to.to_exact_text().as_str().into());
    query.insert("formula_guard".to_owned(), Value::Bool(true));
    if !asked.subject.is_empty() {
        query.insert("subject".to_owned(), asked.subject.as_str().into());
    }
    if let Some(node) = grammar::node(&asked.conditions, Some(&asked.meter))? {
        query.insert("filter".to_owned(), node);
    }
    if kind == Kind::UsageBuckets {
        query.insert("bucket_size".to_owned(), asked.calendar.size.name().as_ref().into());
        if let Some(zone) = asked.calendar.zone_name() {
            query.insert("time_zone".to_owned(), zone.as_ref().into());
        }
        if has_weeks(&asked) {
            query.insert("week_start".to_owned(), asked.calendar.week_start.as_str().into());
        }
        query.insert(
            "group_by".to_owned(),
            Value::Array(asked.group.iter().map(|field| field.as_str().into()).collect()),
        );
    }
    let query = serde_json::value::to_raw_value(&query).map_err(Error::internal)?;
    let asked = ExportQuery::parse(kind, Input::read(&query)?, &home)?;
    let export = Export::queued(caller.workspace_id, kind, asked, Timestamp::now());
    let add = move |conn: &mut _| crate::exports::sql::add(conn, &export).map(|()| export.clone());
    let export = app.store.write("exports::add", add).await?;
    app.wake.notify();
    Ok(export)
}

#[derive(Template)]
#[template(path = "exports/show.html")]
struct ShowPage {
    shell: Shell,
    export: Export,
    query: String,
    is_active: bool,
}

async fn find(app: &App, caller: &Caller, id: &str) -> Result<Export> {
    let (workspace_id, wanted) = (caller.workspace_id, id.to_owned());
    let read = move |conn: &mut _| crate::exports::sql::find_by_public_id(conn, workspace_id, &wanted);
    let found = app.store.read("exports::by_id", read).await?;
    found.ok_or_else(|| Error::not_found(format!("export {id:?}")))
}

pub async fn show(app: web::Data<App>, caller: Caller, visit: Visit, Id(id): Id) -> Result<HttpResponse> {
    let export = find(&app, &caller, &id).await?;
    let query = serde_json::to_value(&export.asked).and_then(|value| serde_json::to_string_pretty(&value));
    ok(&ShowPage {
        shell: visit.shell("exports", format!("Export of {}", export.asked.meter)),
        query: query.map_err(Error::internal)?,
        is_active: matches!(export.status, Status::Queued | Status::Running),
        export,
    })
}

/// Cancels or retries.
pub async fn change(
    app: web::Data<App>,
    caller: Caller,
    visit: Visit,
    Id(id): Id,
    form: Form,
) -> Result<HttpResponse> {
    let Form(fields) = form;
    let export = find(&app, &caller, &id).await?;
    let (workspace_id, wanted) = (caller.workspace_id, export.id);
    let here = format!("/exports/{id}");
    match fields.get("do") {
        "cancel" => {
            let cancel = move |conn: &mut _| {
                crate::exports::sql::cancel(conn, workspace_id, &wanted, Timestamp::now())
            };
            app.store.write("exports::cancel", cancel).await?;
            Ok(visit.go(&here, "Canceled."))
        }
        "retry" => {
            let retry =
                move |conn: &mut _| crate::exports::sql::retry(conn, workspace_id, &wanted, Timestamp::now());
            app.store.write("exports::retry", retry).await?;
            app.wake.notify();
            Ok(visit.go(&here, "Queued again."))
        }
        _ => Err(Error::invalid("do must be cancel or retry")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_that_takes_too_long_keeps_the_form() {
        let complaint =
            Complaint::of(at_the_form(Error::query_timeout()), &["from"]).expect("told at the form");
        assert!(complaint.message.contains("queue the export"), "{}", complaint.message);
        assert!(Complaint::of(at_the_form(Error::unavailable("away")), &["from"]).is_err());
    }
}
