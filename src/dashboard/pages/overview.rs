//! `/overview`: is all well, what happens, what needs a person.

use std::collections::BTreeMap;

use actix_web::{HttpResponse, web};
use askama::Template;
use futures_util::future::{join_all, try_join};

use crate::alerts::sql::deliveries;
use crate::app::App;
use crate::auth::Caller;
use crate::auth::key::Status;
use crate::clock;
use crate::dashboard::ask;
use crate::dashboard::chart::{Chart, Kind, Svg, sparkline};
use crate::dashboard::grammar::{RANGES, Range, STORED_RANGES};
use crate::dashboard::pages::saved::{Kept, saved};
use crate::dashboard::pages::spans;
use crate::dashboard::pages::usage_view::UsageView;
use crate::dashboard::view::{self, Link};
use crate::dashboard::visit::{Shell, Visit, ok};
use crate::db::{Conn, DbError};
use crate::entitlements::quota::State;
use crate::entitlements::sql::listing;
use crate::error::Result;
use crate::http::extract::Params;
use crate::jobs::health::WorkerStatus;
use crate::metering::calendar::Zone;
use crate::metering::meter::{Aggregation, Meter};
use crate::metering::quantity::Quantity;
use crate::metering::rollup::Grain;
use crate::metering::time::{BucketSize, DAY, HOUR, SECOND, Timestamp, Window};
use crate::operations::stats;
use crate::usage::aggregate::Known;
use crate::usage::ingestion_runs::{self, IngestionRun};
use crate::usage::subjects::{self, SubjectStats, Totals};

const DAYS_DRAWN: i64 = 28;
const METERS_DRAWN: usize = 6;
/// As many as a workspace may have.
const METERS_MAX: i64 = 10_000;
const PINNED_MAX: usize = 6;
/// Of the line of a pinned query.
const POINTS_MAX: usize = 1_000;
const LISTED: i64 = 8;
/// Workers report as they start, and whatever they reported before is old when a server comes back: one that has just started
/// cannot say yet who does not.
const SILENT_AT_FIRST: i64 = 30 * SECOND;

/// What is read in one go.
struct Facts {
    totals: Totals,
    runs: Vec<IngestionRun>,
    subjects: Vec<SubjectStats>,
    /// Events of the last four weeks, by meter and day of the workspace.
    counts: BTreeMap<String, Vec<i64>>,
    exceeded: i64,
    warned: i64,
    dead_letters: i64,
    /// Workers that do not live, and those that do and have work which failed or waits too long.
    stale: Vec<&'static str>,
    behind: Vec<&'static str>,
}

/// Something that a person should look at.
struct Attention {
    state: &'static str,
    words: String,
    link: String,
    action: &'static str,
}

/// A saved query that is pinned.
struct Tile {
    name: String,
    link: String,
    total: String,
    unit: String,
    /// Against the time that the query is compared with; blank where it is with none.
    change: String,
    spark: Option<Svg>,
    range: String,
    problem: String,
}

#[derive(Template)]
#[template(path = "overview/overview.html")]
struct OverviewPage {
    shell: Shell,
    facts: Facts,
    today: Quantity,
    week_ago: Quantity,
    chart: Chart,
    attention: Vec<Attention>,
    tiles: Vec<Tile>,
    now: Timestamp,
}

pub async fn show(app: web::Data<App>, caller: Caller, visit: Visit) -> Result<HttpResponse> {
    let (workspace_id, prunes, now) =
        (caller.workspace_id, app.config.retention.prune_enabled, Timestamp::now());
    let home = ask::home(&app, &caller).await?;
    let days = home.clone();
    let read = move |conn: &mut Conn| read(conn, workspace_id, prunes, (&days, now));
    let facts = app.store.view("overview::read", true, read);
    let (facts, saved) = try_join(facts, saved(&app, &caller)).await?;
    let pinned: Vec<Kept> = saved.into_iter().filter(|kept| kept.query.pinned).take(PINNED_MAX).collect();
    let meters = if pinned.is_empty() { Vec::new() } else { ask::meters(&app, &caller).await? };
    let tiles = join_all(pinned.into_iter().map(|kept| tile(&app, &caller, &meters, kept))).await;
    let chart = picture(&facts.counts, &home, now);
    let of_day = |back: usize| {
        let of_meter = |days: &Vec<i64>| days.len().checked_sub(back + 1).map_or(0, |at| days[at]);
        Quantity::from(facts.counts.values().map(of_meter).sum::<i64>())
    };
    let attention = attention(&app, &caller, &facts, now).await?;
    ok(&OverviewPage {
        shell: visit.shell("overview", "Metering operations"),
        today: of_day(0),
        week_ago: of_day(7),
        facts,
        chart,
        attention,
        tiles,
        now,
    })
}

fn read(
    conn: &mut Conn,
    workspace_id: i64,
    prunes: bool,
    (home, now): (&Zone, Timestamp),
) -> Result<Facts, DbError> {
    let states = listing::count_states(conn, workspace_id)?;
    let count = |state: State| {
        states.iter().filter(|count| count.state == state.as_str()).map(|count| count.limits).sum()
    };
    let (exceeded, warned) = (count(State::Exceeded), count(State::Warning));
    let owed = deliveries::owed(conn, Some(workspace_id))?;
    let work = stats::work(conn, workspace_id, prunes, (&owed, now))?;
    let workers = |status: WorkerStatus| {
        work.workers.iter().filter(|worker| worker.status == status).map(|worker| worker.name).collect()
    };
    Ok(Facts {
        totals: subjects::totals(conn, workspace_id)?,
        runs: ingestion_runs::runs(conn, workspace_id, None, LISTED)?,
        subjects: subjects::list(conn, workspace_id, None, LISTED)?,
        counts: counts(conn, workspace_id, home, now)?,
        exceeded,
        warned,
        dead_letters: work.dead_letters.values().sum(),
        stale: match clock::elapsed() < SILENT_AT_FIRST {
            true => Vec::new(),
            false => workers(WorkerStatus::Stale),
        },
        behind: workers(WorkerStatus::Degraded),
    })
}

/// Events of every meter per day: all of one statement, where days begin on the hour.
fn counts(
    conn: &mut Conn,
    workspace_id: i64,
    home: &Zone,
    now: Timestamp,
) -> Result<BTreeMap<String, Vec<i64>>, DbError> {
    let (window, calendar) = (ask::last_days(DAYS_DRAWN, now, home), ask::calendar(BucketSize::Day, home));
    let starts = ask::axis(window, &calendar);
    let begin_with = |length: i64| starts.iter().all(|start| start.floor(length) == *start);
    let grain = if begin_with(DAY) { Grain::MeterDay } else { Grain::MeterHour };
    let mut counts: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    let mut add = |meter: &str, at: Timestamp, events: i64| {
        if let Some(day) = starts.partition_point(|start| *start <= at).checked_sub(1) {
            counts.entry(meter.to_owned()).or_insert_with(|| vec![0; starts.len()])[day] += events;
        }
    };
    if begin_with(HOUR) {
        for count in subjects::events_of_meters(conn, workspace_id, grain, window)? {
            add(&count.meter, count.start(), count.events);
        }
        return Ok(counts);
    }
    for meter in crate::meters::sql::list(conn, workspace_id, None, None, METERS_MAX)? {
        // counted, whatever the meter makes of its quantities
        let counted = Meter { aggregation: Aggregation::Count, ..meter };
        let query = ask::whole(counted, window, &calendar)?;
        let known = Known { meter_of_now: true, ..Known::default() };
        for row in ask::rows(conn, &query, starts.len(), known)? {
            add(&query.meter.name, row.bucket_start.at, row.quantity.to_plain().parse().unwrap_or(0));
        }
    }
    Ok(counts)
}

/// Events per day of the largest meters, and of all others together.
fn picture(counts: &BTreeMap<String, Vec<i64>>, home: &Zone, now: Timestamp) -> Chart {
    let (window, calendar) = (ask::last_days(DAYS_DRAWN, now, home), ask::calendar(BucketSize::Day, home));
    Chart {
        id: "events".into(),
        title: "Events per day, last 28 days".to_owned(),
        unit: "events".to_owned(),
        zone: home.clone(),
        kind: Kind::Stacked,
        buckets: ask::chart_buckets(window, &calendar, &Link::to("/events")),
        series: ask::largest(counts, METERS_DRAWN),
        compare: None,
        limits: Vec::new(),
        is_running: true,
        adds_up: true,
        pruned: 0,
    }
}

async fn attention(app: &App, caller: &Caller, facts: &Facts, now: Timestamp) -> Result<Vec<Attention>> {
    let mut all = Vec::new();
    let mut push = |state, words: String, link: &str, action| {
        all.push(Attention { state, words, link: link.to_owned(), action });
    };
    if facts.dead_letters > 0 {
        let words = view::counted(facts.dead_letters, "job has", "jobs have");
        push("failed", format!("{words} used up every attempt"), "/jobs", "Look and requeue");
    }
    for worker in &facts.stale {
        push("stale", format!("The {worker} worker does not report"), "/system", "See health");
    }
    for worker in &facts.behind {
        let words = format!("Work of the {worker} worker failed or waits too long");
        push("degraded", words, "/system", "See health");
    }
    if facts.exceeded > 0 {
        let words = view::counted(facts.exceeded, "limit is", "limits are");
        push("exceeded", format!("{words} exceeded"), "/quota?state=exceeded", "Who");
    }
    if facts.warned > 0 {
        let words = view::counted(facts.warned, "limit is", "limits are");
        push("warning", format!("{words} nearly used up"), "/quota?state=warning", "Who");
    }
    for key in app.auth.list_keys(caller).await? {
        let ends_soon = key.expires_at.is_some_and(|at| at - now.0 < 7 * DAY);
        if matches!(Status::of(&key, now), Status::Active) && ends_soon {
            let at = key.expires_at.map_or(now, Timestamp);
            push(
                "warning",
                format!("The key {} ends {}", key.name, view::relative(at, now)),
                "/api-keys",
                "Rotate it",
            );
        }
    }
    Ok(all)
}

/// One pinned query. Its failure is told on its own tile.
async fn tile(app: &App, caller: &Caller, meters: &[Meter], kept: Kept) -> Tile {
    let mut tile = Tile {
        name: kept.query.name,
        total: String::new(),
        unit: String::new(),
        change: String::new(),
        spark: None,
        range: String::new(),
        problem: String::new(),
        link: kept.link,
    };
    // a number under its name must be what it asks for
    if !kept.is_whole {
        tile.problem = "It was saved by another program with a filter that cannot be read here.".to_owned();
    } else if let Err(error) = fill(app, caller, meters, &mut tile).await {
        tile.problem = error.message;
    }
    tile
}

async fn fill(app: &App, caller: &Caller, meters: &[Meter], tile: &mut Tile) -> Result<()> {
    let params = Params::parse(tile.link.split_once('?').map_or("", |(_, query)| query));
    let home = app.zones.get(caller.workspace_id).await?;
    let meter = ask::meter_among(app, caller, meters, params.get("meter")).await?;
    let asked = spans::read(app, caller, meter, &params, &home).await?;
    let (window, aggregation) = (asked.range.window, asked.meter.aggregation);
    let rows = ask::buckets(app, asked.query(window, true, false)?, POINTS_MAX).await?;
    // what adds up need not be asked for, if all of it is there
    let total = match ask::is_additive(aggregation) && rows.len() < POINTS_MAX {
        true => rows.iter().fold(Quantity::zero(), |sum, row| &sum + &row.quantity),
        false => all_of(app, &asked, window).await?,
    };
    if let Some(window) = asked.earlier() {
        let before = all_of(app, &asked, window).await?;
        tile.change = view::change(&total, &before);
        if !before.is_zero() {
            tile.change.push_str(&format!(" against {} before", view::number(&before)));
        }
    }
    let starts = ask::axis(window, &asked.calendar);
    let (series, _) = ask::series(&rows, &starts, aggregation, false, 1);
    let values = series
        .first()
        .map(|series| series.values.iter().map(|v| v.as_ref().map_or(0.0, Quantity::to_f64)).collect());
    let values: Vec<f64> = values.unwrap_or_default();
    tile.total = view::number(&total);
    tile.unit = asked.meter.unit.clone();
    tile.spark = Some(sparkline(&values, &format!("{} over {}", tile.name, asked.range.words())));
    tile.range = range_words(&asked.range);
    Ok(())
}

/// All of a window in one number.
async fn all_of(app: &App, asked: &UsageView, window: Window) -> Result<Quantity> {
    let whole = ask::buckets(app, asked.query(window, false, false)?, 1).await?;
    Ok(whole.into_iter().next().map_or_else(Quantity::zero, |row| row.quantity))
}

fn range_words(range: &Range) -> String {
    let known = RANGES.iter().chain(&STORED_RANGES).find(|(word, _)| *word == range.word);
    known.map_or_else(|| range.words(), |(_, words)| (*words).to_owned())
}
