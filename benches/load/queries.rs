//! Questions: over a history, beside the same SQL without a server where there is such SQL; and two doors that do
//! little, the quota check and the request that only finds out who calls.

use std::time::{Duration, Instant};

use diesel::sql_types::{BigInt, Text};
use diesel::{QueryableByName, RunQueryDsl};
use open_spanner::db::{Conn, open};
use open_spanner::metering::time::DAY;
use serde_json::json;

use crate::Outcome;
use crate::client::{self, Connection, Load, Request};
use crate::meter::{Gauge, Unit};
use crate::report::short;
use crate::server::{Account, Server};
use crate::suite::Suite;
use crate::workload::{Keys, Workload};

/// A slow question is not asked again after this long.
const LONGEST: Duration = Duration::from_secs(10);

const NAMES: [&str; 11] = [
    "days",
    "hours",
    "days by one dimension",
    "days by two dimensions",
    "hours by one dimension",
    "days of one subject",
    "days by subject",
    "days where a declared field",
    "days where an undeclared field",
    "breakdown",
    "first page of events",
];

fn path_of(name: &str, stored: u64) -> String {
    format!("query at {}: {name}", short(stored as f64))
}

/// Whether any question is to be asked at any size.
pub fn wanted(suite: &Suite<'_>) -> bool {
    let sizes = suite.size.history.iter().filter(|stored| **stored > 0);
    sizes.into_iter().any(|stored| NAMES.iter().any(|name| suite.wants(&path_of(name, *stored))))
}

pub async fn ask(
    suite: &mut Suite<'_>,
    server: &Server,
    account: &Account,
    workload: &Workload,
    stored: u64,
) -> Outcome<()> {
    let (meter, from) = (&workload.meter, workload.from);
    let to = from.plus(30 * DAY);
    let buckets = |rest: &str| {
        let target = format!("/v1/usages?meter={meter}&from={from}&to={to}&limit=1000{rest}");
        Request::new("GET", &target, &account.key, "")
    };
    let breakdown = json!({"meter": meter, "field": "model", "from": from, "to": to}).to_string();
    let page = format!("/v1/usageevents?meter={meter}&limit=100");
    let requests = [
        buckets("&bucket_size=day"),
        buckets("&bucket_size=hour"),
        buckets("&bucket_size=day&group_by=region"),
        buckets("&bucket_size=day&group_by=region,model"),
        buckets("&bucket_size=hour&group_by=region"),
        buckets("&bucket_size=day&subject=customer-000007"),
        buckets("&bucket_size=day&group_by=subject"),
        buckets("&bucket_size=day&metadata.region=eu"),
        buckets("&bucket_size=day&metadata.class=c7"),
        Request::new("POST", "/v1/usages/breakdowns/search", &account.key, &breakdown),
        Request::new("GET", &page, &account.key, ""),
    ];
    let questions = NAMES.into_iter().zip(requests);
    let questions: Vec<(String, Request)> =
        questions.map(|(name, request)| (path_of(name, stored), request)).collect();
    ask_each(suite, server, workload, questions).await
}

pub async fn ask_each(
    suite: &mut Suite<'_>,
    server: &Server,
    workload: &Workload,
    questions: Vec<(String, Request)>,
) -> Outcome<()> {
    for (path, request) in questions {
        if !suite.wants(&path) {
            continue;
        }
        let mut gauge = Gauge::start(suite.place, server)?;
        gauge.resume();
        let Some(mut load) = repeat(server, &request, suite.size.questions).await? else {
            suite.report.fact(format!("{}: {path}", suite.place.name()), "not measured, no such route");
            continue;
        };
        gauge.pause();
        let mut row = gauge.finish(&path, Unit::Requests, &mut load);
        if path.contains("undeclared") {
            let millis = same_sql(suite, workload)?;
            row.note = format!("the same SQL without a server: {millis:.1} ms");
        }
        suite.report.row(row);
    }
    Ok(())
}

/// One after the other on one connection. `None` when the server does not know the question.
async fn repeat(server: &Server, request: &Request, times: usize) -> Outcome<Option<Load>> {
    let mut connection = Connection::open(server.http).await?;
    let mut load = Load::default();
    let started = Instant::now();
    while (load.requests as usize) < times && started.elapsed() < LONGEST {
        let sent = Instant::now();
        let answer = connection.call(request).await?;
        load.micros.push(sent.elapsed().as_micros() as u32);
        load.requests += 1;
        match answer.status {
            200 => {}
            404 => return Ok(None),
            status => return Err(format!("status {status}: {}", answer.text()).into()),
        }
    }
    load.elapsed = started.elapsed();
    Ok(Some(load))
}

#[derive(QueryableByName)]
struct Day {
    #[diesel(sql_type = BigInt)]
    #[allow(dead_code)]
    day: i64,
    #[diesel(sql_type = Text)]
    #[allow(dead_code)]
    sum: String,
}

/// Milliseconds, the median of three.
fn same_sql(suite: &Suite<'_>, workload: &Workload) -> Outcome<f64> {
    let mut conn = open(&suite.place.driver("history"))?;
    let (sum, class) = match &conn {
        Conn::Postgres(_) => ("SUM(quantity)::text", "metadata->>'class'"),
        Conn::Sqlite(_) => ("quantity_text(quantity_total(quantity))", "json_extract(metadata, '$.class')"),
    };
    let text = format!(
        "SELECT event_time / {DAY} AS day, {sum} AS sum FROM events
         WHERE meter_id = (SELECT id FROM meters WHERE name = $1) AND event_time >= $2 AND event_time < $3
           AND {class} = 'c7' GROUP BY 1"
    );
    let mut micros = Vec::new();
    for _ in 0..3 {
        let started = Instant::now();
        let days: Vec<Day> = diesel::sql_query(&text)
            .bind::<Text, _>(&workload.meter)
            .bind::<BigInt, _>(workload.from.0)
            .bind::<BigInt, _>(workload.from.plus(30 * DAY).0)
            .load(&mut conn)?;
        if days.is_empty() {
            return Err("the same SQL finds nothing".into());
        }
        micros.push(started.elapsed().as_micros() as u32);
    }
    Ok(crate::report::percentile(&mut micros, 50.0) / 1e3)
}

/// The quota check beside an authenticated request that does nothing.
pub async fn doors(suite: &mut Suite<'_>, server: &Server, account: &Account) -> Outcome<()> {
    if !["who calls", "quota check"].into_iter().any(|path| suite.wants(path)) {
        return Ok(());
    }
    let who = Request::new("GET", "/v1/auth/session", &account.cookie, "");
    let mut requests = vec![("who calls", who)];
    let path = "quota check";
    if suite.wants(path) {
        let workload = Workload {
            meter: "meter-of-quota-checks".to_owned(),
            keys: Keys::Ordered,
            subjects: 1,
            models: 1,
            wide: false,
            source: None,
            seed: 0,
            from: open_spanner::metering::time::Timestamp::now(),
            step: 1,
        };
        account.create_meter(&workload.meter).await?;
        if suite.limit(account, &workload).await? {
            let body = json!({"subject": Workload::subject(0), "meter": workload.meter}).to_string();
            requests.push((path, Request::new("POST", "/v1/entitlements/check", &account.key, &body)));
        }
    }
    for connections in CONNECTIONS_OF_DOORS {
        knock(suite, server, connections, &requests).await?;
    }
    Ok(())
}

const CONNECTIONS_OF_DOORS: [usize; 2] = [8, 64];

async fn knock(
    suite: &mut Suite<'_>,
    server: &Server,
    connections: usize,
    requests: &[(&str, Request)],
) -> Outcome<()> {
    let mut rate_of_nothing = None;
    for (path, request) in requests {
        let path = format!("{path} c{connections}");
        let each = (suite.size.singles as usize).div_ceil(connections);
        let lists = vec![vec![request.clone(); each]; connections];
        let mut gauge = Gauge::start(suite.place, server)?;
        gauge.resume();
        let mut load = client::run(server.http, lists, suite.size.time).await?;
        gauge.pause();
        let mut row = gauge.finish(&path, Unit::Requests, &mut load);
        // here the ceiling is the request that does nothing
        row.ceiling = rate_of_nothing;
        rate_of_nothing = rate_of_nothing.or(Some((row.rate, row.server + row.db)));
        suite.report.row(row);
    }
    Ok(())
}
