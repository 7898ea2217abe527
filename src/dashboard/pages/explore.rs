//! `/usage`: who used how much, compared with what. The address is the query; the same rows come as CSV and JSON.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};

use actix_web::http::header;
use actix_web::{HttpResponse, web};
use askama::Template;
use futures_util::future::{join, try_join3};

use crate::app::App;
use crate::auth::Caller;
use crate::dashboard::ask;
use crate::dashboard::chart::{COMPARED, Chart, Kind, Series};
use crate::dashboard::form::Complaint;
use crate::dashboard::grammar::{self, Condition, OPERATORS, RANGES, Range, STORED_RANGES};
use crate::dashboard::pages::breakdowns::{self, Breakdown};
use crate::dashboard::pages::groups::{self, GroupRow};
use crate::dashboard::pages::saved::{Kept, saved};
use crate::dashboard::pages::{short, spans};
use crate::dashboard::sorting::{Heading, Sort};
use crate::dashboard::view::{self, Link};
use crate::dashboard::visit::{Shell, Visit, ok, rejected};
use crate::dashboard::zone::OFFERED;
use crate::error::{Error, Result};
use crate::exports::csv::Table;
use crate::http::extract::Params;
use crate::http::respond;
use crate::metering::calendar::{Buckets, Calendar, Wish, Zone};
use crate::metering::json::{Number, Value};
use crate::metering::meter::{Aggregation, Meter};
use crate::metering::quantity::Quantity;
use crate::metering::time::{DAY, Timestamp, Unit, Window};
use crate::usage::aggregate::Known;
use crate::usage::events::Search;
use crate::usage::query::{Bucket, Query, parse_group_by, parse_subject_filter};

/// Rows that one picture is made of at most.
const CELLS_MAX: usize = 10_000;
const SERIES_DRAWN: usize = 8;
/// The series of what has none of its own, in an address.
const OTHER: &str = "Other";
const DEFAULT_RANGE: &str = "28d+today";
const COMPARISONS: [(&str, &str); 4] = [
    ("", "nothing"),
    ("prev", "the time before"),
    ("weekday", "the same weekdays before"),
    ("year", "a year before"),
];
pub const BUCKETS: [(&str, &str); 10] = [
    ("auto", "automatic"),
    ("minute", "minute"),
    ("5m", "5 minutes"),
    ("15m", "15 minutes"),
    ("hour", "hour"),
    ("day", "day"),
    ("week", "week"),
    ("month", "month"),
    ("quarter", "quarter"),
    ("year", "year"),
];

/// What is drawn and counted, with its words.
const METRICS: [(&str, &str); 5] = [
    ("", "quantity"),
    ("events", "number of events"),
    ("subjects", "number of subjects"),
    ("average", "average quantity"),
    ("peak", "largest quantity"),
];
/// Counted one event after the other.
const OF_SUBJECTS: &str = "subjects";
/// Another word for the box that adds up over time.
const CUMULATIVE: &str = "cumulative";

/// What an address asks for.
pub struct ExportQuery {
    /// With the aggregation and unit of what is asked for.
    pub meter: Meter,
    pub subject: String,
    pub range: Range,
    /// Of the buckets; its zone is that of the dates in the address too.
    pub calendar: Calendar,
    /// As in the address: empty is that of the workspace.
    pub time_zone: String,
    /// As in the address: empty is Monday.
    pub week_start: String,
    /// As in the address: `auto` is not yet decided.
    pub bucket: String,
    pub group: Vec<String>,
    pub conditions: Vec<Condition>,
    compare: String,
    /// The time that is compared with, where the address names it.
    other: Option<Window>,
    kind: Kind,
    is_cumulative: bool,
    show: String,
    /// As in the address: empty is what the meter makes of its quantities.
    metric: String,
    /// Groups that have a series of their own at most.
    top: usize,
    /// Of the table of groups.
    pub sort: Sort,
    /// Names of series that the picture does not show.
    hidden: Vec<String>,
}

impl ExportQuery {
    /// `home` is the zone of the workspace.
    pub fn parse(meter: Meter, params: &Params, home: &Zone) -> Result<ExportQuery> {
        let week_start = params.get("week_start");
        let wish = Wish { time_zone: params.get("time_zone"), week_start, ..Wish::default() };
        let calendar = wish.calendar(home)?;
        let range = Range::parse_in(&calendar.zone, params, DEFAULT_RANGE, Timestamp::now())?;
        let size = grammar::bucket(params.get("bucket"), range.window)?;
        let calendar = Calendar { size, ..calendar };
        Buckets::of(calendar.clone(), range.window)?;
        let group: Vec<String> = params
            .all("group")
            .flat_map(|list| list.split(','))
            .filter(|name| !name.is_empty())
            .map(str::to_owned)
            .collect();
        let (compare, other) = compared(params, &calendar)?;
        let (meter, metric) = measured(meter, params.get("metric").trim())?;
        let show = params.get("show").trim();
        if !["", CUMULATIVE].contains(&show) && Kind::parse(show).is_none() {
            let known = Kind::ALL.map(|(word, _)| word).join(", ");
            return Err(Error::invalid(format!("show must be one of {known}, {CUMULATIVE}")));
        }
        let drawn = if ask::is_additive(meter.aggregation) { Kind::Stacked } else { Kind::Line };
        Ok(ExportQuery {
            subject: parse_subject_filter(params.get("subject"))?.unwrap_or_default(),
            conditions: grammar::conditions(params)?,
            // heights that stand on each other are a sum
            kind: Kind::parse(show).filter(|kind| drawn == Kind::Stacked || !kind.adds_up()).unwrap_or(drawn),
            is_cumulative: (!params.get("cum").is_empty() || show == CUMULATIVE)
                && ask::is_additive(meter.aggregation),
            bucket: params.get("bucket").to_owned(),
            meter,
            range,
            calendar,
            time_zone: params.get("time_zone").to_owned(),
            week_start: week_start.to_owned(),
            group,
            compare,
            other,
            show: if show == CUMULATIVE { String::new() } else { show.to_owned() },
            metric,
            top: top(params.get("top").trim())?,
            sort: Sort::parse(params.get("sort"), &groups::ORDERS)?,
            hidden: params.all("hide").take(SERIES_DRAWN + 1).map(str::to_owned).collect(),
        })
    }

    /// The address of this view.
    pub fn link(&self, path: &str) -> Link {
        self.unsorted(path).with("sort", &self.sort.word())
    }

    /// With the groups in the order that needs no word.
    fn unsorted(&self, path: &str) -> Link {
        let link = self.scope(path).with("cmp", &self.compare).with("show", &self.show);
        let link = link.with("cum", if self.is_cumulative { "1" } else { "" }).with("metric", &self.metric);
        let link = match self.top {
            SERIES_DRAWN => link,
            most => link.with("top", &most.to_string()),
        };
        self.hidden.iter().fold(link, |link, name| link.with("hide", name))
    }

    /// The address of the view with one series more hidden, or shown again.
    fn toggled(&self, name: &str) -> String {
        let mut next = copy(self);
        match next.hidden.iter().position(|hidden| hidden == name) {
            Some(at) => drop(next.hidden.remove(at)),
            None => next.hidden.push(name.to_owned()),
        }
        next.link("/usage").to_string()
    }

    /// Says which series of a picture are drawn; one alone always is.
    fn hide(&self, series: &mut [Series]) {
        if series.len() < 2 {
            return;
        }
        for one in series {
            // how many are together changes from day to day
            let name = if one.is_other { OTHER } else { one.name.as_str() };
            (one.is_hidden, one.toggle) =
                (self.hidden.iter().any(|hidden| hidden == name), self.toggled(name));
        }
    }

    /// Meter, subject, range, bucket, groups and filters.
    pub fn scope(&self, path: &str) -> Link {
        let link =
            self.range.on(Link::to(path).with("meter", &self.meter.name).with("subject", &self.subject));
        let link = link.with("bucket", &self.bucket).with("time_zone", &self.time_zone);
        let link = link.with("week_start", &self.week_start);
        let link = link.with("group", &self.group.join(","));
        self.conditions
            .iter()
            .fold(link, |link, condition| link.with(condition.parameter(), &condition.text()))
    }

    /// The events that the view is made of, without their time.
    fn events(&self) -> Link {
        let link = Link::to("/events").with("meter", &self.meter.name).with("subject", &self.subject);
        self.conditions
            .iter()
            .fold(link, |link, condition| link.with(condition.parameter(), &condition.text()))
    }

    /// With buckets, or all of the window in one.
    pub fn query(&self, window: Window, in_buckets: bool, grouped: bool) -> Result<Query> {
        let buckets = match in_buckets {
            true => Some(Buckets::of(self.calendar.clone(), window)?),
            false => None,
        };
        let is_lost = self.meter.pruned_before.filter(|before| *before > window.from);
        if let (OF_SUBJECTS, Some(before)) = (self.metric.as_str(), is_lost) {
            return Err(Error::invalid(format!(
                "metric subjects looks at single events, and those before {} are pruned: choose a later time",
                before.to_seconds_text()
            )));
        }
        let group = if grouped { self.group.as_slice() } else { &[] };
        Ok(Query {
            group_by: parse_group_by(&self.meter, group.iter().map(String::as_str))?,
            meter: std::sync::Arc::new(self.meter.clone()),
            window,
            subject: Some(self.subject.clone()).filter(|subject| !subject.is_empty()),
            filter: grammar::filter(&self.conditions, Some(&self.meter))?,
            buckets,
            skip_missing: false,
            exact: true,
        })
    }

    /// With these values as conditions too, and these groups.
    pub fn with_values(&self, values: &[(String, &str)], op: &str, group: Vec<String>) -> ExportQuery {
        let mut next = copy(self);
        next.conditions.extend(values.iter().map(|(field, value)| Condition {
            field: field.clone(),
            op: op.to_owned(),
            value: grammar::escape(value),
        }));
        next.group = group;
        next
    }

    pub fn by_subject(&self) -> bool {
        self.group.iter().any(|name| name == "subject")
    }

    /// The window that this one is compared with.
    fn earlier(&self) -> Option<Window> {
        let window = self.range.window;
        let shift = |by: i64| Window { from: window.from.plus(-by), to: window.to.plus(-by) };
        match self.compare.as_str() {
            "prev" => Some(shift(window.length())),
            "weekday" => Some(shift(Timestamp(window.length()).ceil(7 * DAY).0)),
            "year" => Some(Window { from: window.from.plus_months(-12), to: window.to.plus_months(-12) }),
            _ => self.other,
        }
    }
}

/// A meter that comes to what is asked for, and the word for that in an address.
fn measured(meter: Meter, metric: &str) -> Result<(Meter, String)> {
    let with = |meter: Meter, aggregation: Aggregation| Meter { aggregation, ..meter };
    let measured = match metric {
        "" | "quantity" => return Ok((meter, String::new())),
        "events" => Meter { unit: "events".to_owned(), ..with(meter, Aggregation::Count) },
        "average" => with(meter, Aggregation::Avg),
        "peak" => with(meter, Aggregation::Max),
        OF_SUBJECTS => {
            let mut counted = with(meter, Aggregation::UniqueCount);
            counted.options.aggregation_field = Some("subject".to_owned());
            Meter { unit: "subjects".to_owned(), ..counted }
        }
        _ => return Err(Error::invalid("metric must be quantity, events, subjects, average or peak")),
    };
    Ok((measured, metric.to_owned()))
}

/// How many groups have a series of their own.
fn top(text: &str) -> Result<usize> {
    match text {
        "" => Ok(SERIES_DRAWN),
        text => text
            .parse()
            .ok()
            .filter(|most| (1..=SERIES_DRAWN).contains(most))
            .ok_or_else(|| Error::invalid(format!("top must be a whole number, {SERIES_DRAWN} at most"))),
    }
}

/// What a view is compared with: a word, or `from..to`, which the form sends as two fields.
fn compared(params: &Params, calendar: &Calendar) -> Result<(String, Option<Window>)> {
    let word = match (params.get("cmp_from").trim(), params.get("cmp_to").trim()) {
        ("", "") => params.get("cmp").trim().to_owned(),
        (from, to) => format!("{from}..{to}"),
    };
    if COMPARISONS.iter().any(|(known, _)| *known == word) {
        return Ok((word, None));
    }
    let Some((from, to)) = word.split_once("..") else {
        return Err(Error::invalid("cmp must be prev, weekday, year or from..to"));
    };
    let at = |text: &str| grammar::instant(text, "cmp", Timestamp::now(), &calendar.zone);
    let window = Window { from: at(from)?, to: at(to)? };
    if window.from >= window.to {
        return Err(Error::invalid("cmp must begin before it ends"));
    }
    Buckets::of(calendar.clone(), window)?;
    Ok((word, Some(window)))
}

/// What was found.
struct Found {
    chart: Chart,
    total: Quantity,
    earlier: Option<(Quantity, String, String)>,
    groups: Vec<GroupRow>,
    breakdowns: Vec<Breakdown>,
    is_empty: bool,
    /// Groups that the chart does not show by themselves.
    left_out: usize,
    /// Groups that the table does not show.
    unlisted: usize,
    is_cut: bool,
    /// Of a time that holds nothing: the newest event beside it, and the view of its day.
    nearest: Option<(Timestamp, String)>,
}

impl Found {
    /// Whether groups are drawn together.
    fn has_other(&self) -> bool {
        self.chart.series.iter().any(|series| series.is_other)
    }
}

#[derive(Template)]
#[template(path = "usage/explore.html")]
struct ExplorePage {
    shell: Shell,
    meters: Vec<Meter>,
    asked: Option<ExportQuery>,
    found: Option<Found>,
    params: Params,
    complaint: Complaint,
    saved: Vec<Kept>,
    now: Timestamp,
    origin: String,
}

impl ExplorePage {
    fn ranges(&self) -> &'static [(&'static str, &'static str)] {
        &RANGES
    }

    /// A plan has a period for one subject.
    fn stored_ranges(&self, asked: &ExportQuery) -> &'static [(&'static str, &'static str)] {
        if asked.subject.is_empty() { &STORED_RANGES[..1] } else { &STORED_RANGES }
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

    fn kinds(&self) -> &'static [(&'static str, &'static str)] {
        &Kind::ALL
    }

    fn metrics(&self) -> &'static [(&'static str, &'static str)] {
        &METRICS
    }

    fn tops(&self) -> Vec<usize> {
        (1..=SERIES_DRAWN).collect()
    }

    fn is_top(&self, asked: &ExportQuery, most: &usize) -> bool {
        asked.top == *most
    }

    fn is(&self, name: &str, value: &str) -> bool {
        match (name, &self.asked) {
            ("range", Some(asked)) => asked.range.word == value,
            ("meter", Some(asked)) => asked.meter.name == value,
            ("show", Some(asked)) => asked.kind.word() == value,
            ("metric", Some(asked)) => asked.metric == value,
            _ => self.params.get(name) == value,
        }
    }

    /// The ends of another time that the view is compared with.
    fn other_ends(&self, asked: &ExportQuery) -> (String, String) {
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

    fn heading(&self, asked: &ExportQuery, column: &'static str, words: &'static str) -> Heading {
        asked.sort.heading(asked.unsorted("/usage"), (column, words))
    }

    /// Weeks can be seen in it.
    fn has_weeks(&self, asked: &ExportQuery) -> bool {
        has_weeks(asked) || asked.range.word == "this-week"
    }

    /// The view with every series drawn.
    fn all_drawn(&self, asked: &ExportQuery) -> String {
        ExportQuery { hidden: Vec::new(), ..copy(asked) }.link("/usage").to_string()
    }

    /// The address without one of its conditions.
    fn without(&self, asked: &ExportQuery, at: &usize) -> String {
        let mut rest = asked.conditions.clone();
        rest.remove(*at);
        let bare = ExportQuery { conditions: rest, ..copy(asked) };
        bare.link("/usage").to_string()
    }

    fn fields(&self, asked: &ExportQuery) -> Vec<(String, String)> {
        let mut fields = vec![("subject".to_owned(), "Subject".to_owned())];
        let active = asked.meter.dimensions.iter().filter(|dimension| !dimension.deprecated);
        fields.extend(active.map(|d| (format!("metadata.{}", d.name), d.display_name.clone())));
        fields.extend(
            [("quantity", "Quantity"), ("idempotency_key", "Idempotency key")]
                .map(|(a, b)| (a.to_owned(), b.to_owned())),
        );
        fields
    }

    fn is_pruned(&self, asked: &ExportQuery) -> bool {
        asked.meter.pruned_before.is_some_and(|before| before > asked.range.window.from)
    }

    fn events_link(&self, asked: &ExportQuery) -> String {
        elsewhere(asked).range.on(asked.events()).to_string()
    }

    fn export_link(&self, asked: &ExportQuery, kind: &str) -> Link {
        elsewhere(asked).scope("/exports/new").with("kind", kind)
    }

    /// The view of twice the time.
    fn wider(&self, asked: &ExportQuery) -> String {
        let range = asked.range.wider(self.now);
        ExportQuery { range, bucket: String::new(), ..copy(asked) }.link("/usage").to_string()
    }

    /// The view some of its lengths later, with times instead of words that move on.
    fn shifted(&self, asked: &ExportQuery, lengths: i64) -> String {
        let range = asked.range.shifted(lengths);
        ExportQuery { range, ..copy(asked) }.link("/usage").to_string()
    }

    /// What is kept of the address.
    fn saved_text(&self, asked: &ExportQuery) -> String {
        let link = asked.link("").to_string();
        link.trim_start_matches('?').to_owned()
    }

    /// The saved query that the view began as, if it is the caller's, and whether something is different now.
    fn begun_as(&self, asked: &ExportQuery) -> Option<(&Kept, bool)> {
        let wanted = self.params.get("saved");
        let kept = self.saved.iter().find(|kept| kept.query.id == wanted)?;
        Some((kept, kept.parameters() != self.saved_text(asked)))
    }

    /// The query as the interface for programs takes it.
    fn curl(&self, asked: &ExportQuery) -> String {
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

/// Buckets are weeks, which begin on a day that has to be told.
pub fn has_weeks(asked: &ExportQuery) -> bool {
    asked.calendar.size.parts().0 == Unit::Week
}

/// As other pages can say it: they know no range that hangs on what is stored.
fn elsewhere(asked: &ExportQuery) -> ExportQuery {
    let range = if spans::is_stored(&asked.range.word) { asked.range.fixed() } else { asked.range.clone() };
    ExportQuery { range, ..copy(asked) }
}

fn copy(asked: &ExportQuery) -> ExportQuery {
    ExportQuery {
        meter: asked.meter.clone(),
        subject: asked.subject.clone(),
        range: asked.range.clone(),
        calendar: asked.calendar.clone(),
        time_zone: asked.time_zone.clone(),
        week_start: asked.week_start.clone(),
        bucket: asked.bucket.clone(),
        group: asked.group.clone(),
        conditions: asked.conditions.clone(),
        compare: asked.compare.clone(),
        other: asked.other,
        kind: asked.kind,
        is_cumulative: asked.is_cumulative,
        show: asked.show.clone(),
        metric: asked.metric.clone(),
        top: asked.top,
        sort: asked.sort,
        hidden: asked.hidden.clone(),
    }
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
    let params = timed(visit, params);
    let (meters, saved) = join(ask::meters(app, caller), saved(app, caller)).await;
    let (meters, saved) = (meters?, saved?);
    let home = app.zones.get(caller.workspace_id).await?;
    let mut page = ExplorePage {
        shell: visit.shell("usage", "Usage buckets"),
        meters,
        asked: None,
        found: None,
        params,
        complaint: Complaint::none(),
        saved,
        now: Timestamp::now(),
        origin: visit.origin.clone(),
    };
    match answer(app, caller, &page, &home).await {
        Ok(Answer::Page(asked, found)) => {
            page.asked = Some(*asked);
            page.found = Some(*found);
            ok(&page)
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
                grammar::nearest(&page.params, |params| ExportQuery::parse(meter.clone(), params, &home))
            });
            rejected(&page)
        }
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

enum Answer {
    Page(Box<ExportQuery>, Box<Found>),
    Nothing,
    Other(HttpResponse),
}

async fn answer(app: &App, caller: &Caller, page: &ExplorePage, home: &Zone) -> Result<Answer> {
    let params = &page.params;
    let meter = match params.get("meter") {
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
            let mut found = find(app, &asked).await?;
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
fn with_new_condition(asked: &ExportQuery, params: &Params) -> Result<Option<String>> {
    let Some(condition) = grammar::added(params)? else { return Ok(None) };
    let mut wider = copy(asked);
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

async fn csv(app: &App, asked: &ExportQuery) -> Result<HttpResponse> {
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

async fn find(app: &App, asked: &ExportQuery) -> Result<Found> {
    let window = asked.range.window;
    let query = asked.query(window, true, true)?;
    let fields: Vec<String> = query.group_by.iter().map(|field| field.name().to_owned()).collect();
    // what adds up need not be asked for
    let apart = async {
        match ask::is_additive(asked.meter.aggregation) {
            true => Ok(None),
            false => groups_of(app, asked).await.map(Some),
        }
    };
    let rows = ask::buckets(app, query, CELLS_MAX + 1);
    let (rows, apart, breakdowns) = try_join3(rows, apart, breakdowns::find(app, asked)).await?;
    let groups = ranked(match apart {
        Some(groups) => groups,
        None if rows.len() > CELLS_MAX => groups_of(app, asked).await?,
        None => added_up(&rows, &fields),
    });
    let total = match asked.group.is_empty() || ask::is_additive(asked.meter.aggregation) {
        true => sum(&groups),
        false => total(app, asked, window).await?,
    };
    let earlier = match asked.earlier() {
        Some(window) => Some((window, earlier(app, asked, window).await?)),
        None => None,
    };
    let starts = ask::axis(window, &asked.calendar);
    let Drawn { mut series, left_out, courses, is_cut } = drawn(app, asked, &rows, &groups, &starts).await?;
    let mut compare =
        earlier.as_ref().map(|(window, (_, rows))| comparison(asked, *window, rows, starts.len()));
    if asked.is_cumulative {
        series.iter_mut().chain(compare.as_mut()).for_each(accumulate);
    }
    asked.hide(&mut series);
    let chart = Chart {
        id: "usage".into(),
        title: format!(
            "{} of {}, {}",
            asked.meter.aggregation.as_str(),
            asked.meter.name,
            asked.range.words()
        ),
        unit: asked.meter.unit.clone(),
        zone: asked.calendar.zone.clone(),
        kind: if asked.is_cumulative && asked.kind != Kind::Table { Kind::Line } else { asked.kind },
        buckets: ask::chart_buckets(window, &asked.calendar, &asked.events()),
        series,
        compare,
        limits: Vec::new(),
        is_running: asked.range.is_running,
        adds_up: ask::is_additive(asked.meter.aggregation) && !asked.is_cumulative,
        pruned: ask::pruned(&asked.meter, &starts),
    };
    let earlier = earlier.map(|(window, (sum, _))| {
        let words = Range { window, ..asked.range.clone() }.words();
        (sum.clone(), words, view::change(&total, &sum))
    });
    let unlisted = if asked.group.is_empty() { 0 } else { groups.len().saturating_sub(groups::LISTED) };
    Ok(Found {
        is_empty: groups.is_empty(),
        groups: groups::rows(asked, &groups, &total, &courses),
        chart,
        total,
        earlier,
        breakdowns,
        left_out,
        unlisted,
        is_cut,
        nearest: None,
    })
}

/// The newest event of the view, whatever its time, and the view of its day.
async fn nearest(app: &App, caller: &Caller, asked: &ExportQuery) -> Result<Option<(Timestamp, String)>> {
    let search = Search {
        workspace_id: caller.workspace_id,
        meter: Some(asked.meter.name.clone()),
        subject: Some(asked.subject.clone()).filter(|subject| !subject.is_empty()),
        filter: grammar::filter(&asked.conditions, Some(&asked.meter))?,
        ..Search::default()
    };
    let view = |at: Timestamp| {
        let day = ExportQuery { range: asked.range.around(at), bucket: String::new(), ..copy(asked) };
        (at, day.link("/usage").to_string())
    };
    Ok(ask::newest(app, search).await.map(view))
}

/// All of the window in one row per group, of all groups, or the largest could be missing.
async fn groups_of(app: &App, asked: &ExportQuery) -> Result<Vec<Bucket>> {
    ask::buckets(app, asked.query(asked.range.window, false, true)?, usize::MAX).await
}

/// The same from rows over time: right where values of different times may be added.
fn added_up(rows: &[Bucket], fields: &[String]) -> Vec<Bucket> {
    let mut groups: BTreeMap<Vec<&str>, Bucket> = BTreeMap::new();
    for row in rows {
        let values = fields.iter().map(|field| row.group.get(field).map_or("", String::as_str)).collect();
        match groups.entry(values) {
            Entry::Occupied(mut group) => {
                let sum = &group.get().quantity + &row.quantity;
                group.get_mut().quantity = sum;
            }
            Entry::Vacant(free) => drop(free.insert(row.clone())),
        }
    }
    groups.into_values().collect()
}

/// The largest first.
fn ranked(mut groups: Vec<Bucket>) -> Vec<Bucket> {
    groups.sort_by(|a, b| b.quantity.cmp(&a.quantity));
    groups
}

/// The series of a chart.
struct Drawn {
    series: Vec<Series>,
    /// Groups that are added up in one series, or not drawn.
    left_out: usize,
    /// What groups did over time, by their names.
    courses: HashMap<String, Vec<f64>>,
    /// There are more cells than one picture may be made of.
    is_cut: bool,
}

/// The largest groups over time, and the rest in one series where adding is right. Where there are too many cells, the
/// largest groups are asked for one by one, and all events at once.
async fn drawn(
    app: &App,
    asked: &ExportQuery,
    rows: &[Bucket],
    groups: &[Bucket],
    starts: &[Timestamp],
) -> Result<Drawn> {
    let (window, aggregation) = (asked.range.window, asked.meter.aggregation);
    let by_subject = asked.by_subject();
    if rows.len() <= CELLS_MAX {
        let (series, left_out) = ask::series(rows, starts, aggregation, by_subject, asked.top);
        let courses = groups::courses(rows, starts, by_subject);
        return Ok(Drawn { series, left_out, courses, is_cut: false });
    }
    let (mut names, mut queries) = (Vec::new(), vec![asked.query(window, true, false)?]);
    for group in groups.iter().take(asked.top) {
        let Some(values) = groups::values_of(asked, group) else { continue };
        queries.push(asked.with_values(&values, "eq", Vec::new()).query(window, true, false)?);
        names.push((ask::group_name(group, by_subject), ask::narrowing(group, by_subject)));
    }
    let (each, ()) = ask::buckets_of_each(app, queries, CELLS_MAX, Known::default(), |_| Ok(())).await?;
    let mut each = each.iter().map(|rows| ask::series(rows, starts, aggregation, false, 1).0.pop());
    let nothing = || vec![ask::is_additive(aggregation).then(Quantity::zero); starts.len()];
    let mut rest = each.next().flatten().map_or_else(nothing, |all| all.values);
    let mut series: Vec<Series> = Vec::with_capacity(names.len() + 1);
    for ((name, narrow), one) in names.into_iter().zip(each) {
        let values = one.map_or_else(nothing, |one| one.values);
        for (rest, value) in rest.iter_mut().zip(&values) {
            if let (Some(rest), Some(value)) = (rest.as_mut(), value) {
                *rest = &*rest - value;
            }
        }
        series.push(Series::new(name, values).narrowed(narrow));
    }
    let plain = |values: &[Option<Quantity>]| {
        values.iter().map(|value| value.as_ref().map_or(0.0, Quantity::to_f64)).collect()
    };
    let courses = series.iter().map(|series| (series.name.clone(), plain(&series.values))).collect();
    let left_out = groups.len() - series.len();
    if ask::is_additive(aggregation) {
        series.push(Series::other(format!("Other ({left_out})"), rest));
    }
    Ok(Drawn { series, left_out, courses, is_cut: true })
}

fn sum(rows: &[Bucket]) -> Quantity {
    rows.iter().fold(Quantity::zero(), |sum, row| &sum + &row.quantity)
}

async fn total(app: &App, asked: &ExportQuery, window: Window) -> Result<Quantity> {
    let rows = ask::buckets(app, asked.query(window, false, false)?, 1).await?;
    Ok(rows.into_iter().next().map_or_else(Quantity::zero, |row| row.quantity))
}

async fn earlier(app: &App, asked: &ExportQuery, window: Window) -> Result<(Quantity, Vec<Bucket>)> {
    let rows = ask::buckets(app, asked.query(window, true, false)?, CELLS_MAX).await?;
    let total = match ask::is_additive(asked.meter.aggregation) && rows.len() < CELLS_MAX {
        true => sum(&rows),
        false => total(app, asked, window).await?,
    };
    Ok((total, rows))
}

/// The earlier values, bucket by bucket beside the later ones.
fn comparison(asked: &ExportQuery, window: Window, rows: &[Bucket], count: usize) -> Series {
    let starts = ask::axis(window, &asked.calendar);
    let (mut series, _) = ask::series(rows, &starts, asked.meter.aggregation, false, 1);
    let mut values = series.pop().map(|series| series.values).unwrap_or_default();
    values.resize(count, None);
    let words = Range { window, ..asked.range.clone() }.words();
    let word = if asked.other.is_some() { COMPARED } else { "Before" };
    Series::other(format!("{word}: {words}"), values)
}

fn accumulate(series: &mut Series) {
    // what adds up to a value is not the events of its bucket alone
    series.narrow = None;
    let mut sum = Quantity::zero();
    for value in series.values.iter_mut().flatten() {
        sum += &*value;
        *value = sum.clone();
    }
}
