//! `/usage`: who used how much, compared with what. The address is the query; the same rows come as CSV and JSON.

use actix_web::http::header;
use actix_web::{HttpResponse, web};
use askama::Template;
use futures_util::future::join;

use crate::app::App;
use crate::auth::Caller;
use crate::dashboard::ask;
use crate::dashboard::chart::Kind;
use crate::dashboard::form::Complaint;
use crate::dashboard::grammar::{self, OPERATORS, RANGES, STORED_RANGES};
use crate::dashboard::pages::saved::{Kept, saved};
use crate::dashboard::pages::usage_results::{self, CELLS_MAX, Found};
use crate::dashboard::pages::usage_view::{
    BUCKETS, COMPARISONS, METRICS, SERIES_DRAWN, UsageView, has_weeks,
};
use crate::dashboard::pages::{short, spans};
use crate::dashboard::sorting::Heading;
use crate::dashboard::view::{self, Link};
use crate::dashboard::visit::{Shell, Visit, ok, rejected};
use crate::dashboard::zone::OFFERED;
use crate::error::{Error, Result};
use crate::exports::csv::Table;
use crate::http::extract::Params;
use crate::http::respond;
use crate::metering::calendar::Zone;
use crate::metering::json::{Number, Value};
use crate::metering::meter::Meter;
use crate::metering::quantity::Quantity;
use crate::metering::time::Timestamp;
use crate::usage::events::Search;
use crate::usage::query::{Bucket, Query};

#[derive(Template)]
#[template(path = "usage/explore.html")]
struct ExplorePage {
    shell: Shell,
    meters: Vec<Meter>,
    asked: Option<UsageView>,
    found: Option<Found>,
    params: Params,
    complaint: Complaint,
    saved: Vec<Kept>,
    unsaved: Unsaved,
    now: Timestamp,
    origin: String,
}

/// What stands in the form that saves a view, and why it was not saved.
pub struct Unsaved {
    pub name: String,
    pub is_pinned: bool,
    pub is_shared: bool,
    pub complaint: Complaint,
}

impl Unsaved {
    /// Nobody has tried yet.
    fn fresh() -> Unsaved {
        Unsaved { name: String::new(), is_pinned: true, is_shared: false, complaint: Complaint::none() }
    }
}

impl ExplorePage {
    fn ranges(&self) -> &'static [(&'static str, &'static str)] {
        &RANGES
    }

    /// A plan has a period for one subject.
    fn stored_ranges(&self, asked: &UsageView) -> &'static [(&'static str, &'static str)] {
        if asked.subject.is_empty() { &STORED_RANGES[..1] } else { &STORED_RANGES }
    }

    /// A range that can be asked for, and that no choice offers.
    fn odd_range<'a>(&self, asked: &'a UsageView) -> Option<&'a str> {
        view::odd(&asked.range.word, &RANGES).filter(|word| !spans::is_stored(word))
    }

    fn lists(&self, asked: &UsageView) -> bool {
        self.meters.iter().any(|meter| meter.name == asked.meter.name)
    }

    fn buckets(&self) -> &'static [(&'static str, &'static str)] {
        &BUCKETS
    }

    fn zones(&self) -> &'static [&'static str] {
        &OFFERED
    }

    fn comparisons(&self) -> &'static [(&'static str, &'static str)] {
        &COMPARISONS
    }

    fn operators(&self) -> &'static [(&'static str, &'static str)] {
        &OPERATORS
    }

    /// Stacked bars are bars, with a box of their own.
    fn kinds(&self) -> Vec<(&'static str, &'static str)> {
        Kind::ALL.into_iter().filter(|(word, _)| *word != Kind::Stacked.word()).collect()
    }

    fn is_stacked(&self, asked: &UsageView) -> bool {
        asked.kind == Kind::Stacked
    }

    fn metrics(&self) -> &'static [(&'static str, &'static str)] {
        &METRICS
    }

    fn tops(&self) -> Vec<usize> {
        (1..=SERIES_DRAWN).collect()
    }

    fn is_top(&self, asked: &UsageView, most: &usize) -> bool {
        asked.top == *most
    }

    fn is(&self, name: &str, value: &str) -> bool {
        match (name, &self.asked) {
            ("range", Some(asked)) => asked.range.word == value,
            ("meter", Some(asked)) => asked.meter.name == value,
            ("show", Some(UsageView { kind: Kind::Stacked, .. })) => value == Kind::Bar.word(),
            ("show", Some(asked)) => asked.kind.word() == value,
            ("metric", Some(asked)) => asked.metric == value,
            _ => self.params.get(name) == value,
        }
    }

    /// The ends of another time that the view is compared with.
    fn other_ends(&self, asked: &UsageView) -> (String, String) {
        let ends = asked.other.and_then(|_| asked.compare.split_once(".."));
        let own = |name: &str| self.params.get(name).to_owned();
        match ends {
            Some((from, to)) => (from.to_owned(), to.to_owned()),
            None => (own("cmp_from"), own("cmp_to")),
        }
    }

    /// A field as it was sent where that was wrong, else as it was read.
    fn text<'a>(&'a self, name: &str, read: &'a str) -> &'a str {
        if self.complaint.at(name) { self.params.get(name) } else { read }
    }

    fn groups_by(&self, name: &str) -> bool {
        self.asked.as_ref().is_some_and(|asked| asked.group.iter().any(|field| field == name))
    }

    fn heading(&self, asked: &UsageView, column: &'static str, words: &'static str) -> Heading {
        asked.sort.heading(asked.unsorted("/usage"), (column, words))
    }

    /// Weeks can be seen in it.
    fn has_weeks(&self, asked: &UsageView) -> bool {
        has_weeks(asked) || asked.range.word == "this-week"
    }

    /// The view with every series drawn.
    fn all_drawn(&self, asked: &UsageView) -> String {
        UsageView { hidden: Vec::new(), ..asked.clone() }.link("/usage").to_string()
    }

    /// The address without one of its conditions.
    fn without(&self, asked: &UsageView, at: &usize) -> String {
        let mut rest = asked.conditions.clone();
        rest.remove(*at);
        let bare = UsageView { conditions: rest, ..asked.clone() };
        bare.link("/usage").to_string()
    }

    fn fields(&self, asked: &UsageView) -> Vec<(String, String)> {
        let mut fields = vec![("subject".to_owned(), "Subject".to_owned())];
        let active = asked.meter.dimensions.iter().filter(|dimension| !dimension.deprecated);
        fields.extend(active.map(|d| (format!("metadata.{}", d.name), d.display_name.clone())));
        fields.extend(
            [("quantity", "Quantity"), ("idempotency_key", "Idempotency key")]
                .map(|(a, b)| (a.to_owned(), b.to_owned())),
        );
        fields
    }

    fn is_pruned(&self, asked: &UsageView) -> bool {
        asked.meter.pruned_before.is_some_and(|before| before > asked.range.window.from)
    }

    /// The events of the same time, also where words would mean another one there: days begin in the zone of the workspace.
    fn events_link(&self, asked: &UsageView) -> String {
        let has_own_weeks = asked.range.word == "this-week" && !asked.week_start.is_empty();
        let has_own_days = !asked.time_zone.is_empty() || has_own_weeks;
        let range = if has_own_days { asked.range.fixed() } else { elsewhere(asked).range };
        range.on(asked.events()).to_string()
    }

    fn export_link(&self, asked: &UsageView, kind: &str) -> Link {
        elsewhere(asked).scope("/exports/new").with("kind", kind)
    }

    /// The view of twice the time.
    fn wider(&self, asked: &UsageView) -> String {
        let range = asked.range.wider(self.now);
        UsageView { range, bucket: String::new(), ..asked.clone() }.link("/usage").to_string()
    }

    /// The view some of its lengths later, with times instead of words that move on.
    fn shifted(&self, asked: &UsageView, lengths: i64) -> String {
        let range = asked.range.shifted(lengths);
        UsageView { range, ..asked.clone() }.link("/usage").to_string()
    }

    /// What is kept of the address.
    fn saved_text(&self, asked: &UsageView) -> String {
        let link = asked.link("").to_string();
        link.trim_start_matches('?').to_owned()
    }

    /// The saved query that the view began as, if it is the caller's, and whether something is different now.
    fn begun_as(&self, asked: &UsageView) -> Option<(&Kept, bool)> {
        let wanted = self.params.get("saved");
        let kept = self.saved.iter().find(|kept| kept.query.id == wanted)?;
        Some((kept, kept.parameters() != self.saved_text(asked)))
    }

    /// The query as the interface for programs takes it.
    fn curl(&self, asked: &UsageView) -> String {
        let window = asked.range.window;
        let group = asked.group.iter().map(|field| field.as_str().into()).collect();
        let mut body = vec![
            ("meter", asked.meter.name.as_str().into()),
            ("from", window.from.to_exact_text().as_str().into()),
            ("to", window.to.to_exact_text().as_str().into()),
            ("bucket_size", asked.calendar.size.name().as_ref().into()),
            ("group_by", Value::Array(group)),
            ("limit", Value::Number(Number::from(&Quantity::from(1000)))),
        ];
        if let Some(zone) = asked.calendar.zone_name() {
            body.push(("time_zone", zone.as_ref().into()));
        }
        if has_weeks(asked) {
            body.push(("week_start", asked.calendar.week_start.as_str().into()));
        }
        if !asked.subject.is_empty() {
            body.push(("subject", asked.subject.as_str().into()));
        }
        if let Ok(Some(node)) = grammar::node(&asked.conditions, Some(&asked.meter)) {
            body.push(("filter", node));
        }
        let body = Value::object(body);
        format!(
            "curl {}/v1/usages/search -H 'Authorization: Bearer YOUR_KEY' -d '{}'",
            self.origin,
            body.to_string().replace('\'', "'\\''")
        )
    }
}

/// As other pages can say it: they know no range that hangs on what is stored.
fn elsewhere(asked: &UsageView) -> UsageView {
    let range = if spans::is_stored(&asked.range.word) { asked.range.fixed() } else { asked.range.clone() };
    UsageView { range, ..asked.clone() }
}

pub async fn show(app: web::Data<App>, caller: Caller, visit: Visit, params: Params) -> Result<HttpResponse> {
    if let Some(query) = short::too_long(&visit, &params)
        && let Ok(shorter) = short::keep(&app, &caller, query).await
    {
        return Ok(shorter);
    }
    // also where a long one cannot be kept: when there is no room for more, or nothing can be written
    page(&app, &caller, &visit, params).await
}

/// The view that parameters describe, wherever they come from.
pub async fn page(app: &App, caller: &Caller, visit: &Visit, params: Params) -> Result<HttpResponse> {
    page_with(app, caller, visit, params, Unsaved::fresh()).await
}

/// As [`page`], with what was typed into the form that saves it.
pub async fn page_with(
    app: &App,
    caller: &Caller,
    visit: &Visit,
    params: Params,
    unsaved: Unsaved,
) -> Result<HttpResponse> {
    let params = timed(visit, zoned(params));
    let (meters, saved) = join(ask::meters(app, caller), saved(app, caller)).await;
    let (meters, saved) = (meters?, saved?);
    let params = of_saved(params, &saved);
    let home = app.zones.get(caller.workspace_id).await?;
    let mut page = ExplorePage {
        shell: visit.shell("usage", "Usage buckets"),
        meters,
        asked: None,
        found: None,
        params,
        complaint: Complaint::none(),
        saved,
        unsaved,
        now: Timestamp::now(),
        origin: visit.origin.clone(),
    };
    match answer(app, caller, &page, &home).await {
        Ok(Answer::Page(asked, found)) => {
            page.asked = Some(*asked);
            page.found = Some(*found);
            if page.unsaved.complaint.is_some() { rejected(&page) } else { ok(&page) }
        }
        Ok(Answer::Nothing) => ok(&page),
        Ok(Answer::Other(response)) => Ok(response),
        Err(error) => {
            page.complaint = Complaint::of(
                error,
                &[
                    "range",
                    "from",
                    "to",
                    "bucket",
                    "time_zone",
                    "group",
                    "subject",
                    "f",
                    "meter",
                    "sort",
                    "cmp",
                    "week_start",
                    "show",
                    "metric",
                    "top",
                ],
            )?;
            let meter = page.meters.iter().find(|meter| meter.name == page.params.get("meter"));
            let fallback = meter.or(page.meters.first()).cloned();
            page.asked = fallback.and_then(|meter| {
                grammar::nearest(&page.params, |params| UsageView::parse(meter.clone(), params, &home))
            });
            rejected(&page)
        }
    }
}

/// `zone`, as the page for customers has it, is another word for `time_zone`.
fn zoned(params: Params) -> Params {
    match (params.get("time_zone").trim(), params.get("zone").trim()) {
        (_, "") => params,
        ("", zone) => params.without(&["zone"]).with("time_zone", zone),
        _ => params.without(&["zone"]),
    }
}

/// An address that names no time has the one that its viewer chose to see first, and so has one that names no first day of
/// weeks; what somebody saved is the same for all.
fn timed(visit: &Visit, params: Params) -> Params {
    let names = |names: &[&str]| names.iter().any(|name| !params.get(name).trim().is_empty());
    if names(&["saved"]) {
        return params;
    }
    let range = visit.default_range().filter(|_| !names(&["range", "from", "to"]));
    let week_start = visit.week_start().filter(|_| !names(&["week_start"]));
    let params = match range {
        Some(range) => params.with("range", range),
        None => params,
    };
    match week_start {
        Some(day) => params.with("week_start", day.as_str()),
        None => params,
    }
}

/// An address with a saved query and no meter is that query, but for what it says besides.
fn of_saved(params: Params, saved: &[Kept]) -> Params {
    const TIMES: [&str; 3] = ["range", "from", "to"];
    let is_whole = !params.get("meter").is_empty();
    let kept = saved.iter().find(|kept| !is_whole && kept.query.id == params.get("saved"));
    let Some((_, query)) = kept.and_then(|kept| kept.link.split_once('?')) else { return params };
    let mut names: Vec<&str> = params.pairs().map(|(name, _)| name).collect();
    if TIMES.iter().any(|name| names.contains(name)) {
        names.extend(TIMES);
    }
    let kept = Params::parse(query).without(&names);
    let link = Link::to("");
    let link = kept.pairs().chain(params.pairs()).fold(link, |link, (name, value)| link.with(name, value));
    Params::parse(link.to_string().trim_start_matches('?'))
}

enum Answer {
    Page(Box<UsageView>, Box<Found>),
    Nothing,
    Other(HttpResponse),
}

async fn answer(app: &App, caller: &Caller, page: &ExplorePage, home: &Zone) -> Result<Answer> {
    let params = &page.params;
    let wanted = params.get("saved");
    let is_known = wanted.is_empty() || page.saved.iter().any(|kept| kept.query.id == wanted);
    let meter = match params.get("meter") {
        "" if !is_known => {
            return Err(Error::invalid("saved is no query of yours, and none that is shared here"));
        }
        "" => match page.meters.first() {
            Some(meter) => meter.clone(),
            None => return Ok(Answer::Nothing),
        },
        name => ask::meter_among(app, caller, &page.meters, name).await?,
    };
    let asked = spans::read(app, caller, meter, params, home).await?;
    if let Some(link) = with_new_condition(&asked, params)? {
        let response = HttpResponse::SeeOther().insert_header((header::LOCATION, link)).finish();
        return Ok(Answer::Other(response));
    }
    match params.get("format") {
        "" | "html" => {
            let mut found = usage_results::find(app, &asked).await?;
            if found.is_empty {
                found.nearest = nearest(app, caller, &asked).await?;
            }
            Ok(Answer::Page(Box::new(asked), Box::new(found)))
        }
        "csv" => csv(app, &asked).await.map(Answer::Other),
        "json" => {
            let query = asked.query(asked.range.window, true, true)?;
            let rows = downloaded(app, query).await?;
            respond::ok(&rows).map(Answer::Other)
        }
        _ => Err(Error::invalid("format must be html, csv or json")),
    }
}

/// The three fields of a new filter become one condition of the address.
fn with_new_condition(asked: &UsageView, params: &Params) -> Result<Option<String>> {
    let Some(condition) = grammar::added(params)? else { return Ok(None) };
    let mut wider = asked.clone();
    wider.conditions.push(condition);
    grammar::filter(&wider.conditions, Some(&wider.meter))?;
    Ok(Some(wider.link("/usage").to_string()))
}

/// The rows of a file: all of them, or none and why.
async fn downloaded(app: &App, query: Query) -> Result<Vec<Bucket>> {
    let rows = ask::buckets(app, query, CELLS_MAX + 1).await?;
    match rows.len() > CELLS_MAX {
        false => Ok(rows),
        true => Err(Error::invalid(format_args!(
            "more than {CELLS_MAX} rows: choose a longer bucket or fewer groups, or queue an export, which has no limit"
        ))),
    }
}

async fn csv(app: &App, asked: &UsageView) -> Result<HttpResponse> {
    let query = asked.query(asked.range.window, true, true)?;
    let mut table = Table::of_buckets(&query, true)?;
    let rows = downloaded(app, query.clone()).await?;
    rows.iter().try_for_each(|bucket| table.bucket(&query, bucket))?;
    let name: String =
        asked.meter.name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let disposition = format!("attachment; filename=\"usage-buckets-{name}.csv\"");
    let mut response = HttpResponse::Ok();
    response
        .content_type("text/csv; charset=utf-8")
        .insert_header((header::CONTENT_DISPOSITION, disposition));
    Ok(response.body(table.into_bytes()?))
}

/// The newest event of the view, whatever its time, and the view of its day.
async fn nearest(app: &App, caller: &Caller, asked: &UsageView) -> Result<Option<(Timestamp, String)>> {
    let search = Search {
        workspace_id: caller.workspace_id,
        meter: Some(asked.meter.name.clone()),
        subject: Some(asked.subject.clone()).filter(|subject| !subject.is_empty()),
        filter: grammar::filter(&asked.conditions, Some(&asked.meter))?,
        ..Search::default()
    };
    let view = |at: Timestamp| {
        let day = UsageView { range: asked.range.around(at), bucket: String::new(), ..asked.clone() };
        (at, day.link("/usage").to_string())
    };
    Ok(ask::newest(app, search).await.map(view))
}
