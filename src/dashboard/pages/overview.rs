//! `/overview`: is all well, what happens, what needs a person.

use actix_web::{HttpResponse, web};
use askama::Template;
use futures_util::future::{join_all, try_join};

use crate::alerts::sql::deliveries;
use crate::app::App;
use crate::auth::Caller;
use crate::auth::key::Status;
use crate::dashboard::ask;
use crate::dashboard::chart::{Chart, Kind, Series, Svg, sparkline};
use crate::dashboard::grammar::Range;
use crate::dashboard::pages::explore::ExportQuery;
use crate::dashboard::pages::saved::saved;
use crate::dashboard::view::{self, Link};
use crate::dashboard::visit::{Shell, Visit, ok};
use crate::db::{Conn, DbError};
use crate::entitlements::quota::State;
use crate::entitlements::sql::listing;
use crate::error::Result;
use crate::http::extract::Params;
use crate::jobs::dead_letters;
use crate::jobs::health::WorkerStatus;
use crate::metering::calendar::Zone;
use crate::metering::meter::{Aggregation, Meter};
use crate::metering::quantity::Quantity;
use crate::metering::time::{BucketSize, DAY, Timestamp};
use crate::operations::stats::worker_health;
use crate::usage::ingestion_runs::{self, IngestionRun};
use crate::usage::subjects::{self, SubjectStats, Totals};

const METERS_DRAWN: usize = 6;
const PINNED_MAX: usize = 6;
const LISTED: i64 = 8;
const STATES_COUNTED: i64 = 1_000;

/// What is read in one go.
struct Facts {
    totals: Totals,
    refused: ingestion_runs::Refused,
    runs: Vec<IngestionRun>,
    subjects: Vec<SubjectStats>,
    meters: Vec<Meter>,
    sizes: Vec<subjects::MeterStats>,
    exceeded: usize,
    warned: usize,
    dead_letters: i64,
    stale: Vec<&'static str>,
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
    let read = move |conn: &mut Conn| read(conn, workspace_id, prunes, now);
    let facts = app.store.view("overview::read", true, read);
    let (facts, saved) = try_join(facts, saved(&app, &caller)).await?;
    let home = ask::home(&app, &caller).await?;
    let pinned = saved.into_iter().filter(|kept| kept.query.pinned).take(PINNED_MAX);
    let tiles = join_all(pinned.map(|kept| tile(&app, &caller, kept.query.name, kept.link)));
    let (chart, tiles) = futures_util::future::join(picture(&app, &facts, &home, now), tiles).await;
    let chart = chart?;
    let of_day = |back: usize| {
        let mut sum = Quantity::zero();
        for series in &chart.series {
            let at = series.values.len().checked_sub(back + 1);
            sum += at.and_then(|at| series.values[at].as_ref()).unwrap_or(&Quantity::zero());
        }
        sum
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

fn read(conn: &mut Conn, workspace_id: i64, prunes: bool, now: Timestamp) -> Result<Facts, DbError> {
    let count = |conn: &mut Conn, state: State| {
        let filter = listing::Filter { state: state.as_str().to_owned(), ..listing::Filter::default() };
        listing::states(conn, workspace_id, &filter, STATES_COUNTED).map(|rows| rows.len())
    };
    let (exceeded, warned) = (count(conn, State::Exceeded)?, count(conn, State::Warning)?);
    let owed = deliveries::owed(conn, Some(workspace_id))?;
    let health = worker_health(conn, workspace_id, prunes, (&owed, now))?;
    let is_stale = |status: &WorkerStatus| matches!(status, WorkerStatus::Stale | WorkerStatus::Degraded);
    Ok(Facts {
        totals: subjects::totals(conn, workspace_id)?,
        refused: ingestion_runs::refused(conn, workspace_id)?,
        runs: ingestion_runs::runs(conn, workspace_id, None, LISTED)?,
        subjects: subjects::list(conn, workspace_id, None, LISTED)?,
        meters: crate::meters::sql::list(conn, workspace_id, None, None, 500)?,
        sizes: subjects::meter_stats(conn, workspace_id, "", 500)?,
        exceeded,
        warned,
        dead_letters: dead_letters::count(conn, workspace_id)?.values().sum(),
        stale: health.iter().filter(|worker| is_stale(&worker.status)).map(|worker| worker.name).collect(),
    })
}

/// Events per day of the largest meters, over 28 days.
async fn picture(app: &App, facts: &Facts, home: &Zone, now: Timestamp) -> Result<Chart> {
    let (window, calendar) = (ask::last_days(28, now, home), ask::calendar(BucketSize::Day, home));
    let starts = ask::axis(window, &calendar);
    let mut sizes: Vec<_> = facts.sizes.iter().filter(|stats| stats.usage_events > 0).collect();
    sizes.sort_by_key(|stats| -stats.usage_events);
    let drawn = sizes.iter().take(METERS_DRAWN);
    let drawn: Vec<&Meter> =
        drawn.filter_map(|stats| facts.meters.iter().find(|meter| meter.name == stats.meter)).collect();
    let queries = drawn.iter().map(|meter| {
        // counted, whatever the meter makes of its quantities
        let counted = Meter { aggregation: Aggregation::Count, ..(*meter).clone() };
        let query = ask::whole(counted, window, &calendar);
        let most = starts.len();
        async move { ask::buckets(app, query?, most).await }
    });
    let mut series = Vec::new();
    for (meter, rows) in drawn.iter().zip(join_all(queries).await) {
        let (mut one, _) = ask::series(&rows?, &starts, Aggregation::Count, false, 1);
        let values =
            one.pop().map_or_else(|| vec![Some(Quantity::zero()); starts.len()], |series| series.values);
        series.push(Series { name: meter.name.clone(), values, is_other: false });
    }
    Ok(Chart {
        id: "events".into(),
        title: "Events per day of the largest meters, last 28 days".to_owned(),
        unit: "events".to_owned(),
        zone: home.clone(),
        kind: Kind::Stacked,
        buckets: ask::chart_buckets(window, &calendar, &Link::to("/events")),
        series,
        compare: None,
        limits: Vec::new(),
        is_running: true,
    })
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
    if facts.exceeded > 0 {
        let words = view::counted(facts.exceeded as i64, "limit is", "limits are");
        push("exceeded", format!("{words} exceeded"), "/quota?state=exceeded", "Who");
    }
    if facts.warned > 0 {
        let words = view::counted(facts.warned as i64, "limit is", "limits are");
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
async fn tile(app: &App, caller: &Caller, name: String, link: String) -> Tile {
    let mut tile = Tile {
        name,
        total: String::new(),
        unit: String::new(),
        spark: None,
        range: String::new(),
        problem: String::new(),
        link,
    };
    if let Err(error) = fill(app, caller, &mut tile).await {
        tile.problem = error.message;
    }
    tile
}

async fn fill(app: &App, caller: &Caller, tile: &mut Tile) -> Result<()> {
    let params = Params::parse(tile.link.split_once('?').map_or("", |(_, query)| query));
    let home = app.zones.get(caller.workspace_id).await?;
    let asked = ExportQuery::parse(ask::meter(app, caller, params.get("meter")).await?, &params, &home)?;
    let window = asked.range.window;
    let whole = ask::buckets(app, asked.query(window, false, false)?, 1).await?;
    let total = whole.into_iter().next().map_or_else(Quantity::zero, |row| row.quantity);
    let rows = ask::buckets(app, asked.query(window, true, false)?, 1_000).await?;
    let starts = ask::axis(window, &asked.calendar);
    let (series, _) = ask::series(&rows, &starts, asked.meter.aggregation, false, 1);
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

fn range_words(range: &Range) -> String {
    let known = crate::dashboard::grammar::RANGES.iter().find(|(word, _)| *word == range.word);
    known.map_or_else(|| range.words(), |(_, words)| (*words).to_owned())
}
