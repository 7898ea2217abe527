//! `/events`: what was stored, newest first; one event with everything that is known of it.

use actix_web::http::header;
use actix_web::{HttpResponse, web};
use askama::Template;
use uuid::Uuid;

use crate::alerts::sql::rules;
use crate::app::App;
use crate::auth::Caller;
use crate::dashboard::ask;
use crate::dashboard::foot::{Foot, Portion};
use crate::dashboard::form::Complaint;
use crate::dashboard::grammar::{self, Condition, OPERATORS, RANGES, Range};
use crate::dashboard::pages::event_counts::{self, Counts};
use crate::dashboard::pages::outcomes::{self, OUTCOMES, Row};
use crate::dashboard::view::{self, Link};
use crate::dashboard::visit::{Shell, Visit, ok, rejected};
use crate::db::Conn;
use crate::entitlements::sql::decisions;
use crate::error::{Error, Result};
use crate::exports::csv::Table;
use crate::http::extract::{Id, Params, decode_cursor, encode_cursor};
use crate::http::respond;
use crate::metering::calendar::Zone;
use crate::metering::json::Value;
use crate::metering::meter::Meter;
use crate::metering::stored::StoredEvent;
use crate::metering::time::{DAY, HOUR, SECOND, Timestamp, Window};
use crate::usage::aggregate::subject_ids;
use crate::usage::events::{self as event_list, Listed, Position};
use crate::usage::query::parse_subject_filter;
use crate::usage::refused;

const LISTED: usize = 50;
/// A file holds all that matches or is not made; an export has no limit.
const DOWNLOADED: usize = 10_000;

/// What an address asks for.
#[derive(Clone, Default)]
pub struct EventsView {
    pub meter: String,
    pub subject: String,
    pub range: Option<Range>,
    pub conditions: Vec<Condition>,
    /// What became of them: empty where they were stored.
    pub outcome: String,
}

impl EventsView {
    /// `home` is the zone of the workspace, in which days begin and dates are read.
    fn parse(params: &Params, home: &Zone) -> Result<EventsView> {
        let has_time = ["range", "from", "to"].iter().any(|name| !params.get(name).trim().is_empty());
        let (outcome, conditions) =
            (outcomes::parse(params.get("outcome").trim())?, grammar::conditions(params)?);
        if !outcome.is_empty() && !conditions.is_empty() {
            return Err(Error::invalid(
                "outcome of refused events goes with a meter, a subject and a time, not with other filters",
            ));
        }
        Ok(EventsView {
            meter: params.get("meter").to_owned(),
            subject: parse_subject_filter(params.get("subject"))?.unwrap_or_default(),
            range: if has_time { Some(Range::parse_in(home, params, "", Timestamp::now())?) } else { None },
            conditions,
            outcome,
        })
    }

    fn link(&self) -> Link {
        self.range.iter().fold(self.untimed_link(), |link, range| range.on(link))
    }

    /// The address without its time.
    pub fn untimed_link(&self) -> Link {
        let link = Link::to("/events").with("meter", &self.meter).with("subject", &self.subject);
        let link = link.with("outcome", &self.outcome);
        self.conditions
            .iter()
            .fold(link, |link, condition| link.with(condition.parameter(), &condition.text()))
    }

    /// The call that answers the same events; none where it would need a filter in its body.
    fn call(&self, portion: Portion) -> Option<Link> {
        let call = Link::to("/v1/usageevents").with("meter", &self.meter).with("subject", &self.subject);
        let call = self.range.iter().fold(call, |call, range| range.fixed().on(call));
        self.conditions.is_empty().then(|| call.with("limit", &portion.rows().to_string()))
    }

    fn search(&self, workspace_id: i64, meter: Option<&Meter>) -> Result<event_list::Search> {
        Ok(event_list::Search {
            workspace_id,
            meter: Some(self.meter.clone()).filter(|name| !name.is_empty()),
            subject: Some(self.subject.clone()).filter(|name| !name.is_empty()),
            from: self.range.as_ref().map(|range| range.window.from),
            to: self.range.as_ref().map(|range| range.window.to),
            filter: grammar::filter(&self.conditions, meter)?,
        })
    }

    fn has_filters(&self) -> bool {
        !self.meter.is_empty()
            || !self.subject.is_empty()
            || self.range.is_some()
            || !self.conditions.is_empty()
            || !self.outcome.is_empty()
    }

    /// Refused events that the view is about.
    fn refused(&self) -> refused::Filter {
        let is_all = self.outcome == outcomes::ALL;
        refused::Filter {
            outcome: if is_all { String::new() } else { self.outcome.clone() },
            meter: self.meter.clone(),
            subject: self.subject.clone(),
            window: self.range.as_ref().map(|range| range.window),
            ..refused::Filter::default()
        }
    }
}

#[derive(Template)]
#[template(path = "events/list.html")]
struct ListPage {
    shell: Shell,
    meters: Vec<Meter>,
    asked: EventsView,
    events: Vec<StoredEvent>,
    /// Instead of events, where others than stored ones are asked for.
    rows: Vec<Row>,
    next: Option<String>,
    is_first: bool,
    counts: Option<Counts>,
    complaint: Complaint,
    params: Params,
    foot: Foot,
    origin: String,
    /// Of the workspace: in it days begin, and dates are read.
    home: Zone,
    /// Of a time that holds nothing: the newest event beside it, and the day that it is of.
    nearest: Option<(Timestamp, String)>,
}

impl ListPage {
    /// A field as it was sent, right or wrong.
    fn sent(&self, name: &str) -> &str {
        self.params.get(name)
    }

    /// The time of the list, where it has a beginning.
    fn timed(&self) -> Option<&Range> {
        let is_shown = !self.complaint.is_some();
        self.asked.range.as_ref().filter(|range| is_shown && range.window.from.0 > 0)
    }

    /// The list some lengths of its time later, with times instead of words that move on.
    fn shifted(&self, range: &Range, lengths: i64) -> String {
        let range = Some(range.shifted(lengths));
        EventsView { range, ..self.asked.clone() }.link().with("limit", &self.foot.limit).to_string()
    }

    fn ranges(&self) -> &'static [(&'static str, &'static str)] {
        &RANGES
    }

    /// A range that can be asked for, and that no choice offers.
    fn odd_range(&self) -> Option<&str> {
        self.asked.range.as_ref().and_then(|range| view::odd(&range.word, &RANGES))
    }

    fn lists_meter(&self) -> bool {
        self.meters.iter().any(|meter| meter.name == self.asked.meter)
    }

    fn outcomes(&self) -> &'static [(&'static str, &'static str)] {
        &OUTCOMES
    }

    fn is_outcome(&self, word: &str) -> bool {
        self.asked.outcome == word
    }

    fn operators(&self) -> &'static [(&'static str, &'static str)] {
        &OPERATORS
    }

    fn is_range(&self, word: &str) -> bool {
        self.asked.range.as_ref().is_some_and(|range| range.word == word)
    }

    fn fields(&self) -> Vec<(String, String)> {
        let meter = self.meters.iter().find(|meter| meter.name == self.asked.meter);
        let dimensions = meter.map(|meter| meter.dimensions.as_slice()).unwrap_or_default();
        let mut fields: Vec<(String, String)> =
            dimensions.iter().map(|d| (format!("metadata.{}", d.name), d.display_name.clone())).collect();
        let fixed =
            [("idempotency_key", "Idempotency key"), ("quantity", "Quantity"), ("subject", "Subject")];
        fields.extend(fixed.map(|(a, b)| (a.to_owned(), b.to_owned())));
        fields
    }

    fn without(&self, at: &usize) -> String {
        let mut conditions = self.asked.conditions.clone();
        conditions.remove(*at);
        let narrower = EventsView { conditions, ..self.asked.clone() };
        narrower.link().with("limit", &self.foot.limit).to_string()
    }
}

pub async fn list(app: web::Data<App>, caller: Caller, visit: Visit, params: Params) -> Result<HttpResponse> {
    let (meters, home) = (ask::meters(&app, &caller).await?, ask::home(&app, &caller).await?);
    let mut page = ListPage {
        shell: visit.shell("events", "Events"),
        meters,
        home,
        asked: EventsView::default(),
        events: Vec::new(),
        rows: Vec::new(),
        next: None,
        is_first: params.get("cursor").is_empty(),
        counts: None,
        complaint: Complaint::none(),
        params,
        foot: Foot::default(),
        origin: visit.origin.clone(),
        nearest: None,
    };
    match answer(&app, &caller, &mut page).await {
        Ok(Some(response)) => Ok(response),
        Ok(None) => ok(&page),
        Err(error) => {
            page.complaint = Complaint::of(error, &["range", "from", "to", "outcome", "subject", "f"])?;
            let asked = grammar::nearest(&page.params, |params| EventsView::parse(params, &page.home));
            page.asked = asked.unwrap_or_default();
            rejected(&page)
        }
    }
}

async fn answer(app: &App, caller: &Caller, page: &mut ListPage) -> Result<Option<HttpResponse>> {
    let params = &page.params;
    let home = page.home.clone();
    let asked = EventsView::parse(params, &home)?;
    let meter = page.meters.iter().find(|meter| meter.name == asked.meter);
    if let Some(condition) = grammar::added(params)? {
        let mut wider = asked;
        wider.conditions.push(condition);
        wider.search(0, meter)?;
        let link = wider.link().with("limit", params.get("limit")).to_string();
        return Ok(Some(HttpResponse::SeeOther().insert_header((header::LOCATION, link)).finish()));
    }
    let search = asked.search(caller.workspace_id, meter)?;
    let (format, portion) = (params.get("format"), Portion::parse(params, LISTED)?);
    if !asked.outcome.is_empty() {
        return other_outcomes(app, caller, page, (asked, portion), &home).await;
    }
    let limit = if matches!(format, "csv" | "json") { DOWNLOADED } else { portion.rows() };
    let (after, meter, searched) = (position(params.get("cursor"))?, meter.cloned(), search.clone());
    let read = move |conn: &mut Conn| {
        let subject_id = match &search.subject {
            Some(subject) => subject_ids(conn, search.workspace_id, &[subject.as_str()])?.pop(),
            None => None,
        };
        let known = event_list::Known { meter: meter.as_ref(), subject_id };
        Ok((event_list::page_knowing(conn, &search, known, after, limit + 1)?, subject_id))
    };
    let (mut listed, subject_id) = app.store.view("event_list::page", false, read).await?;
    let has_more = listed.len() > limit;
    if has_more && limit == DOWNLOADED {
        return Err(Error::invalid(format_args!(
            "more than {DOWNLOADED} events match: choose a shorter time, or queue an export, which has no limit"
        )));
    }
    listed.truncate(limit);
    match format {
        "csv" => return csv(&listed).map(Some),
        "json" => return respond::ok(&listed.iter().map(|one| &one.event).collect::<Vec<_>>()).map(Some),
        _ => {}
    }
    if let Some(last) = listed.last().filter(|_| has_more) {
        let cursor = encode_cursor(&(last.position.time.0, last.position.id.to_string()))?;
        page.next = Some(portion.on(asked.link()).with("cursor", &cursor).to_string());
    }
    // files hold all that matches, and have buttons of their own
    let foot = portion.foot(&asked.link().with("cursor", params.get("cursor"))).without_files();
    page.foot = match asked.call(portion) {
        Some(call) => foot.with_call(&page.origin, &call),
        None => foot,
    };
    if page.is_first {
        page.counts = event_counts::find(app, caller, (&asked, subject_id), &page.meters, &home).await?;
    }
    page.events = listed.into_iter().map(|one| one.event).collect();
    if let (true, true, Some(range)) = (page.events.is_empty(), page.is_first, &asked.range) {
        let nearest = ask::newest(app, searched).await;
        page.nearest = nearest.map(|at| {
            let asked = EventsView { range: Some(range.around(at)), ..asked.clone() };
            (at, asked.link().to_string())
        });
    }
    page.asked = asked;
    Ok(None)
}

/// The list of events that were refused, or of all.
async fn other_outcomes(
    app: &App,
    caller: &Caller,
    page: &mut ListPage,
    (asked, portion): (EventsView, Portion),
    home: &Zone,
) -> Result<Option<HttpResponse>> {
    let search = match asked.outcome.as_str() {
        outcomes::ALL => Some(asked.search(caller.workspace_id, None)?),
        _ => None,
    };
    let cursor = page.params.get("cursor");
    let wanted = (search, asked.refused());
    let (rows, next) = outcomes::find(app, caller.workspace_id, wanted, cursor, portion.rows()).await?;
    if let Some(file) = portion.file("events", &outcomes::COLUMNS, rows.iter().map(Row::cells))? {
        return Ok(Some(file));
    }
    page.foot = portion.foot(&asked.link().with("cursor", cursor));
    page.next = next.map(|next| portion.on(asked.link()).with("cursor", &next).to_string());
    if page.is_first {
        page.counts = event_counts::find(app, caller, (&asked, None), &page.meters, home).await?;
    }
    page.rows = rows;
    page.asked = asked;
    Ok(None)
}

fn position(cursor: &str) -> Result<Option<Position>> {
    let Some((time, id)) = decode_cursor::<(i64, String)>(cursor)? else { return Ok(None) };
    let id = Uuid::parse_str(&id).map_err(|_| Error::invalid("cursor is not one of ours"))?;
    Ok(Some(Position { time: Timestamp(time), id }))
}

fn csv(listed: &[Listed]) -> Result<HttpResponse> {
    let mut table = Table::of_events(true)?;
    listed.iter().try_for_each(|one| table.event(&one.event))?;
    let mut response = HttpResponse::Ok();
    response.content_type("text/csv; charset=utf-8");
    response.insert_header((header::CONTENT_DISPOSITION, "attachment; filename=\"usage-events.csv\""));
    Ok(response.body(table.into_bytes()?))
}

/// Where one event is shown. Its time tells where to look for it.
pub fn link(event: &StoredEvent) -> String {
    Link::to(format!("/events/{}", event.id)).with("at", &event.timestamp.to_exact_text()).to_string()
}

#[derive(Template)]
#[template(path = "events/show.html")]
struct ShowPage {
    shell: Shell,
    event: StoredEvent,
    meter_id: Option<String>,
    json: String,
    has_decision: bool,
    totals: String,
    /// Alert rules on its meter, the newest: id and name; and how many there are besides.
    rules: Vec<(String, String)>,
    more_rules: usize,
}

const RULES_LISTED: usize = 10;

/// How far before and after it was received an event is looked for when its time is not told, one after the other: nearly
/// all come at once, and some are filled in later.
const LOOKED_AT: [(i64, i64); 3] = [(60 * SECOND, 60 * SECOND), (DAY, HOUR), (92 * DAY, DAY)];

/// One event by its id.
pub async fn find(
    app: &App,
    caller: &Caller,
    id: Uuid,
    at: Option<Timestamp>,
) -> Result<Option<StoredEvent>> {
    let windows: Vec<Window> = match at {
        Some(at) => vec![Window { from: at, to: at.plus(1) }],
        None => {
            // the id of an event begins with the time it was received
            let received = id.get_timestamp().map_or(Timestamp(0), |time| {
                let (seconds, nanos) = time.to_unix();
                Timestamp((seconds as i64).saturating_mul(SECOND) + i64::from(nanos) / 1_000)
            });
            let window = |(before, after): (i64, i64)| Window {
                from: received.plus(-before),
                to: received.plus(after),
            };
            LOOKED_AT.map(window).to_vec()
        }
    };
    let workspace_id = caller.workspace_id;
    let read = move |conn: &mut Conn| {
        for window in &windows {
            if let Some(event) = event_list::find(conn, workspace_id, id, *window)? {
                return Ok(Some(event));
            }
        }
        Ok(None)
    };
    app.store.read("event_list::find", read).await
}

pub async fn show(
    app: web::Data<App>,
    caller: Caller,
    visit: Visit,
    Id(id): Id,
    params: Params,
) -> Result<HttpResponse> {
    let missing = || Error::not_found(format!("event {id:?}"));
    let uuid = Uuid::parse_str(&id).map_err(|_| missing())?;
    let at = Timestamp::parse(params.get("at"));
    let event = find(&app, &caller, uuid, at).await?.ok_or_else(missing)?;
    let (workspace_id, key) = (caller.workspace_id, event.idempotency_key.clone());
    let decided = match key {
        Some(key) => {
            let find = move |conn: &mut Conn| decisions::find(conn, workspace_id, &key);
            app.store.read("decisions::find", find).await?.is_some()
        }
        None => false,
    };
    let meter = app.meters.get(caller.workspace_id, &event.meter).await?;
    let mut rules = match meter.as_ref().map(|meter| meter.id) {
        Some(id) => {
            app.store.read("rules::on_meter", move |conn: &mut Conn| rules::on_meter(conn, id)).await?
        }
        None => Vec::new(),
    };
    let more_rules = rules.len().saturating_sub(RULES_LISTED);
    rules.truncate(RULES_LISTED);
    let hour = event.timestamp.floor(crate::metering::time::HOUR);
    let totals = Link::to("/usage")
        .with("meter", &event.meter)
        .with("subject", &event.subject)
        .with("from", &hour.to_exact_text())
        .with("to", &hour.plus(crate::metering::time::HOUR).to_exact_text())
        .with("bucket", "hour");
    let json = Value::parse(&serde_json::to_string(&event).map_err(Error::internal)?).unwrap_or_default();
    ok(&ShowPage {
        shell: visit.shell("events", format!("Event {}", event.id)),
        json: serde_json::to_string_pretty(&json).map_err(Error::internal)?,
        meter_id: meter.map(|meter| meter.public_id.clone()),
        has_decision: decided,
        totals: totals.to_string(),
        rules,
        more_rules,
        event,
    })
}
