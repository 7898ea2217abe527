//! `/share/{token}`: what a customer sees of their own usage, without signing in. Nothing else of the workspace,
//! no other subject, no ids, no cookies. All its words are here and in its template.

use actix_web::http::header::{self, HeaderName, HeaderValue};
use actix_web::{HttpResponse, web};
use askama::Template;

use crate::app::App;
use crate::auth::link_token;
use crate::auth::sql::links::SubjectLink;
use crate::dashboard::chart::{self, Chart, Kind, Svg};
use crate::dashboard::pace::Pace;
use crate::dashboard::view::{self, Link, When};
use crate::dashboard::visit::show;
use crate::dashboard::{ask, assets, guard};
use crate::db::Conn;
use crate::db::pool::read_by;
use crate::entitlements::progress::{self, Item};
use crate::entitlements::sql::listing::{self, Entry};
use crate::error::{Error, Result};
use crate::exports::csv::Table;
use crate::http::extract::{Id, Params};
use crate::metering::calendar::Zone;
use crate::metering::meter::Meter;
use crate::metering::time::{BucketSize, Timestamp};
use crate::usage::query::Query;
use crate::usage::subjects;

/// Meters that are drawn at most.
const METERS_DRAWN: usize = 8;
const PERIODS_LISTED: i64 = 12;
/// Of the newest events it is learnt which meters the subject uses.
const EVENTS_LOOKED_AT: i64 = 200;

struct LimitRow {
    item: Item,
    bar: Svg,
}

#[derive(Template)]
#[template(path = "share.html")]
struct SharePage {
    subject: String,
    limits: Vec<LimitRow>,
    charts: Vec<Chart>,
    periods: Vec<Entry>,
    days: i64,
    is_embedded: bool,
    /// Sites that are told how high the page is.
    origins: String,
    theme: &'static str,
    zone: Zone,
    /// As in the address.
    asked_zone: String,
    here: String,
    now: Timestamp,
    css: &'static str,
    js: &'static str,
}

impl SharePage {
    fn when(&self, at: &Timestamp) -> When {
        When { at: *at, zone: self.zone.clone() }
    }

    /// The address with the other number of days, and everything else that was asked for.
    fn other_length(&self) -> Link {
        let link = Link::to(self.here.clone()).with("days", if self.days == 30 { "90" } else { "30" });
        let theme = if self.theme == "system" { "" } else { self.theme };
        let embed = if self.is_embedded { "1" } else { "" };
        link.with("zone", &self.asked_zone).with("theme", theme).with("embed", embed)
    }

    fn csv(&self) -> Link {
        let link = Link::to(format!("{}/usage.csv", self.here)).with("days", &self.days.to_string());
        link.with("zone", &self.asked_zone)
    }
}

/// What one look finds.
struct Facts {
    items: Vec<Item>,
    periods: Vec<Entry>,
    meters: Vec<Meter>,
}

fn facts(conn: &mut Conn, link: &SubjectLink, now: Timestamp) -> Result<Facts, crate::db::DbError> {
    let (workspace_id, subject) = (link.workspace_id, link.subject.as_str());
    let is_open = |meter: &str| link.meters.0.is_empty() || link.meters.0.iter().any(|name| name == meter);
    let (_, mut items) = progress::of_subject(conn, workspace_id, subject, now)?.unzip();
    items.get_or_insert_default().retain(|item: &Item| is_open(&item.limit.meter));
    let items = items.unwrap_or_default();
    let filter = listing::Filter { subject: subject.to_owned(), ..listing::Filter::default() };
    let mut periods = listing::periods(conn, workspace_id, &filter, PERIODS_LISTED * 4)?;
    periods.retain(|entry| is_open(&entry.meter));
    periods.truncate(PERIODS_LISTED as usize);
    let mut names = link.meters.0.clone();
    if names.is_empty() {
        names.extend(items.iter().map(|item| item.limit.meter.clone()));
        let events = subjects::newest_events(conn, workspace_id, subject, EVENTS_LOOKED_AT)?;
        names.extend(events.into_iter().map(|event| event.meter));
    }
    let mut meters: Vec<Meter> = Vec::new();
    for name in names {
        if meters.len() < METERS_DRAWN
            && !meters.iter().any(|meter| meter.name == name)
            && let Some(meter) = crate::meters::sql::find_by_name(conn, workspace_id, &name)?
        {
            meters.push(meter);
        }
    }
    Ok(Facts { items, periods, meters })
}

async fn look(app: &App, link: &SubjectLink, now: Timestamp) -> Result<Facts> {
    let link = link.clone();
    app.store.read("links::facts", move |conn: &mut Conn| facts(conn, &link, now)).await
}

fn days_of(params: &Params) -> i64 {
    if params.get("days") == "90" { 90 } else { 30 }
}

/// The zone that was asked for, else that of the workspace.
async fn zone_of(app: &App, link: &SubjectLink, params: &Params) -> Result<Zone> {
    match Zone::parse(params.get("zone")) {
        Some(zone) => Ok(zone),
        None => app.zones.get(link.workspace_id).await,
    }
}

/// What one picture is made of.
struct Days {
    count: i64,
    zone: Zone,
    now: Timestamp,
}

impl Days {
    fn query(&self, link: &SubjectLink, meter: &Meter) -> Result<Query> {
        let window = ask::last_days(self.count, self.now, &self.zone);
        let calendar = ask::calendar(BucketSize::Day, &self.zone);
        Ok(Query { subject: Some(link.subject.clone()), ..ask::whole(meter.clone(), window, &calendar)? })
    }
}

pub async fn page(app: web::Data<App>, Id(token): Id, params: Params) -> Result<HttpResponse> {
    let link = link_token::check(&app.auth, &token).await?;
    read_by(Some(link_token::reader(&link)), drawn(&app, &link, &token, &params)).await
}

async fn drawn(app: &App, link: &SubjectLink, token: &str, params: &Params) -> Result<HttpResponse> {
    let now = Timestamp::now();
    let facts = look(app, link, now).await?;
    let days = Days { count: days_of(params), zone: zone_of(app, link, params).await?, now };
    let mut charts = Vec::with_capacity(facts.meters.len());
    for (at, meter) in facts.meters.iter().enumerate() {
        charts.push(picture(app, link, (at, meter), &days).await?);
    }
    let limits = facts.items.into_iter().map(|item| {
        let (limit, measure) = (&item.limit.quantity, &item.measure);
        let pace = Pace::of(&measure.current, limit, item.meter.aggregation, item.window, now);
        let (percent, warning) = (measure.percent.to_f64(), item.limit.warning_percent.to_f64());
        let bar = chart::quota(percent, warning, Some(pace.elapsed_percent), measure.state.as_str());
        LimitRow { bar, item }
    });
    let page = SharePage {
        limits: limits.collect(),
        subject: link.subject.clone(),
        charts,
        periods: facts.periods,
        days: days.count,
        asked_zone: Zone::parse(params.get("zone")).map(|zone| zone.to_string()).unwrap_or_default(),
        is_embedded: !params.get("embed").is_empty(),
        origins: link.origins.0.join(" "),
        theme: match params.get("theme") {
            "light" => "light",
            "dark" => "dark",
            _ => "system",
        },
        zone: days.zone,
        here: format!("/share/{token}"),
        now,
        css: assets::url("app.css"),
        js: assets::url("app.js"),
    };
    sealed(show(actix_web::http::StatusCode::OK, &page)?, link)
}

async fn picture(app: &App, link: &SubjectLink, (at, meter): (usize, &Meter), days: &Days) -> Result<Chart> {
    let (query, calendar) = (days.query(link, meter)?, ask::calendar(BucketSize::Day, &days.zone));
    let starts = ask::axis(query.window, &calendar);
    let rows = ask::buckets(app, query, starts.len()).await?;
    let (series, _) = ask::series(&rows, &starts, meter.aggregation, false, 1);
    let bucket = |at: &Timestamp| chart::Bucket {
        label: ask::bucket_label(*at, &calendar),
        name: ask::bucket_name(*at, &calendar),
        link: String::new(),
    };
    Ok(Chart {
        id: format!("daily-{at}").into(),
        title: format!("{} per day", meter.name),
        unit: meter.unit.clone(),
        zone: days.zone.clone(),
        kind: if ask::is_additive(meter.aggregation) { Kind::Bar } else { Kind::Line },
        buckets: starts.iter().map(bucket).collect(),
        series,
        compare: None,
        limits: Vec::new(),
        is_running: true,
        adds_up: ask::is_additive(meter.aggregation),
        pruned: 0,
    })
}

/// The days of the page as a file.
pub async fn csv(app: web::Data<App>, Id(token): Id, params: Params) -> Result<HttpResponse> {
    let link = link_token::check(&app.auth, &token).await?;
    read_by(Some(link_token::reader(&link)), table_of(&app, &link, &params)).await
}

async fn table_of(app: &App, link: &SubjectLink, params: &Params) -> Result<HttpResponse> {
    let now = Timestamp::now();
    let days = Days { count: days_of(params), zone: zone_of(app, link, params).await?, now };
    let meters = look(app, link, now).await?.meters;
    let first = meters.first().ok_or_else(|| Error::not_found("usage"))?;
    let mut table = Table::of_buckets(&days.query(link, first)?, true)?;
    for meter in &meters {
        let query = days.query(link, meter)?;
        let rows = ask::buckets(app, query.clone(), days.count as usize + 1).await?;
        rows.iter().try_for_each(|bucket| table.bucket(&query, bucket))?;
    }
    let mut response = HttpResponse::Ok();
    response
        .content_type("text/csv; charset=utf-8")
        .insert_header((header::CONTENT_DISPOSITION, "attachment; filename=\"usage.csv\""));
    sealed(response.body(table.into_bytes()?), link)
}

/// The headers of what a link opens: shown in a frame by its own sites alone, kept and indexed by nobody.
fn sealed(mut response: HttpResponse, link: &SubjectLink) -> Result<HttpResponse> {
    let sites = if link.origins.0.is_empty() { "'none'".to_owned() } else { link.origins.0.join(" ") };
    let policy = guard::POLICY.replace("frame-ancestors 'none'", &format!("frame-ancestors {sites}"));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_str(&policy).map_err(Error::internal)?);
    let fixed = [
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
        (HeaderName::from_static("cross-origin-resource-policy"), "cross-origin"),
        (HeaderName::from_static("x-robots-tag"), "noindex, nofollow"),
    ];
    for (name, value) in fixed {
        headers.insert(name, HeaderValue::from_static(value));
    }
    Ok(response)
}
