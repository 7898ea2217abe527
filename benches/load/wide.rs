//! What users have: hundreds of dimension sets. Writes of many shapes, then the questions that people ask of them.

use std::time::{Duration, Instant};

use open_spanner::metering::time::{DAY, HOUR, Timestamp};
use serde_json::json;

use crate::client::{self, Load, Request};
use crate::meter::{Gauge, Unit};
use crate::report::short;
use crate::server::{Account, Server};
use crate::suite::Suite;
use crate::workload::{Keys, Workload};
use crate::{Outcome, machine, queries, scans};

const DIMENSIONS: [&str; 3] = ["endpoint", "status", "region"];
const YEAR: i64 = 365 * DAY;
const METERS_OF_A_YEAR: u64 = 40;
const MANY_SUBJECTS: u64 = 100_000;
/// What a rate is read from. Only the shape that is asked afterwards is as large as was wished.
const SAMPLE: u64 = 200_000;
/// A write takes no longer, and sums are folded and settled in less.
const PATIENCE: Duration = Duration::from_secs(600);

struct Shape {
    label: &'static str,
    wide: bool,
    span: i64,
    subjects: u64,
    /// The meter counts the different values of an undeclared field.
    unique: bool,
}

/// One row over all of it has as many values as were sent.
async fn check_classes(account: &Account, workload: &Workload, total: u64) -> Outcome<()> {
    let sent = (0..total).map(|at| workload.class(at)).collect::<std::collections::BTreeSet<_>>().len();
    let (meter, from, to) = (&workload.meter, workload.from, workload.at(total).plus(DAY));
    let target = format!("/v1/usages?meter={meter}&from={from}&to={to}&bucket_size=1y&anchor={from}");
    let rows = account.call("GET", &target, "").await?.json()?;
    match rows[0]["quantity"].as_u64() == Some(sent as u64) {
        true => Ok(()),
        false => Err(format!("{meter}: {sent} different values were sent, and {rows} counted").into()),
    }
}

impl Suite<'_> {
    pub async fn wide(&mut self) -> Outcome<()> {
        if !self.wants("wide") {
            return Ok(());
        }
        let driver = self.place.create("history")?;
        let server = Server::start(self.program, &driver, self.place.dir())?;
        let account = Account::create(&server).await?;
        let subjects = self.size.subjects;
        let shapes = [
            Shape { label: "12 sets", wide: false, span: 30 * DAY, subjects, unique: false },
            Shape { label: "12 sets, unique_count", wide: false, span: 30 * DAY, subjects, unique: true },
            Shape { label: "480 sets, an hour", wide: true, span: HOUR, subjects, unique: false },
            Shape { label: "480 sets, one hot", wide: true, span: HOUR, subjects: 1, unique: false },
            Shape { label: "480 sets", wide: true, span: 30 * DAY, subjects: MANY_SUBJECTS, unique: false },
            Shape { label: "480 sets", wide: true, span: 30 * DAY, subjects, unique: false },
        ];
        let (mut rate_of_few, mut last) = (None, None);
        for (at, shape) in shapes.iter().enumerate() {
            let total = if at + 1 < shapes.len() { self.sample() } else { self.size.wide };
            let (workload, load) =
                self.write_shape(&server, &account, shape, total, &mut rate_of_few).await?;
            last = Some((workload, load.events));
        }
        if let Some((workload, stored)) = last {
            self.rest(&server).await;
            ask(self, &server, &account, &workload, stored).await?;
            scans::compare(self, &workload, stored)?;
            self.ask_beside_writes(&server, &account, &workload, stored).await?;
        }
        self.year(&server, &account).await?;
        server.stop()?;
        self.place.remove("history")
    }

    fn sample(&self) -> u64 {
        self.size.wide.min(SAMPLE)
    }

    async fn write_shape(
        &mut self,
        server: &Server,
        account: &Account,
        shape: &Shape,
        total: u64,
        rate_of_few: &mut Option<(f64, f64)>,
    ) -> Outcome<(Workload, Load)> {
        let mut workload = self.workload(Keys::Random);
        workload.wide = shape.wide;
        workload.subjects = shape.subjects;
        // days and hours as pages and invoices ask for them
        let width = if shape.span > DAY { DAY } else { HOUR };
        workload.from = Timestamp::now().plus(-shape.span).floor(width);
        workload.step = shape.span / total as i64;
        let dimensions: &[&str] = if shape.wide { &DIMENSIONS } else { &["region", "model"] };
        let kind = match shape.unique {
            true => json!({"aggregation": "unique_count", "aggregation_field": "class"}),
            false => json!({"aggregation": "sum"}),
        };
        account.create_meter_with(&workload.meter, dimensions, kind).await?;
        let before = self.place.rollup_rows("history")?;
        self.rest(server).await;
        self.place.settle()?;
        let mut gauge = Gauge::start(self.place, server)?;
        let lists = self.bulk_lists(account, &workload, 0..total, 1_000, 4);
        gauge.resume();
        let mut load = client::run(server.http, lists, PATIENCE).await?;
        gauge.pause();
        let name = format!("wide: bulk 1000 c4, {}, {} subjects", shape.label, shape.subjects);
        let mut row = gauge.finish(&name, Unit::Events, &mut load);
        // here the ceiling is the rate with few sets
        row.ceiling = *rate_of_few;
        *rate_of_few = rate_of_few.or(Some((row.rate, row.server + row.db)));
        self.rest(server).await;
        let rows = (self.place.rollup_rows("history")? - before) as f64 / load.events.max(1) as f64;
        row.note = format!("{rows:.3} rollup rows an event");
        self.report.row(row);
        match shape.unique {
            true => check_classes(account, &workload, total).await?,
            false => self.verify(account, &workload, &load).await?,
        }
        Ok((workload, load))
    }

    /// Waits until nothing is folded or settled any more: what a question costs is not to contain it.
    async fn rest(&self, server: &Server) {
        if self.size.idle.is_zero() {
            return;
        }
        let began = Instant::now();
        let spent = || machine::cpu_of(server.pid()) + self.place.cpu();
        let mut quiet = 0;
        // folding waits two seconds for more
        while quiet < 6 && began.elapsed() < PATIENCE {
            let before = spent();
            tokio::time::sleep(Duration::from_millis(500)).await;
            quiet = if spent() - before < 30_000 { quiet + 1 } else { 0 };
        }
    }

    /// What readers and writers take from each other: the same question, asked while two connections write.
    async fn ask_beside_writes(
        &mut self,
        server: &Server,
        account: &Account,
        workload: &Workload,
        stored: u64,
    ) -> Outcome<()> {
        let (meter, from) = (&workload.meter, workload.from);
        let to = from.plus(30 * DAY);
        let target = format!(
            "/v1/usages?meter={meter}&from={from}&to={to}&limit=1000&bucket_size=day&group_by=endpoint"
        );
        let question = Request::new("GET", &target, &account.key, "");
        let more = stored..stored + self.sample();
        let lists = self.bulk_lists(account, workload, more, 1_000, 2);
        let mut gauge = Gauge::start(self.place, server)?;
        gauge.resume();
        let writes = client::run(server.http, lists, PATIENCE);
        let (written, asked) = ask_until(server, &question, writes).await?;
        gauge.pause();
        let (mut written, mut asked) = (written, asked);
        let name = "wide beside questions: bulk 1000 c2, 480 sets";
        let row = gauge.finish(name, Unit::Events, &mut written);
        self.report.row(row);
        // processor time is that of both and stands in the row above
        let mut gauge = Gauge::start(self.place, server)?;
        gauge.pause();
        let row = gauge.finish("wide beside writes: days by endpoint", Unit::Requests, &mut asked);
        self.report.row(row);
        Ok(())
    }

    /// The page of subjects where each has used forty meters for a year.
    async fn year(&mut self, server: &Server, account: &Account) -> Outcome<()> {
        let each = (self.sample() / METERS_OF_A_YEAR).max(1);
        for _ in 0..METERS_OF_A_YEAR {
            let mut workload = self.workload(Keys::Random);
            workload.wide = true;
            workload.from = Timestamp::now().plus(-YEAR);
            workload.step = YEAR / each as i64;
            account.create_meter_with(&workload.meter, &DIMENSIONS, json!({"aggregation": "sum"})).await?;
            let lists = self.bulk_lists(account, &workload, 0..each, 1_000, 1);
            client::run(server.http, lists, PATIENCE).await?;
        }
        self.rest(server).await;
        let workload = self.workload(Keys::Random);
        let page = Request::new("GET", "/v1/subjects?limit=100", &account.key, "");
        let name = "wide query at 40 meters, a year: subjects".to_owned();
        queries::ask_each(self, server, &workload, vec![(name, page)]).await
    }
}

/// Asks until the other is done.
async fn ask_until(
    server: &Server,
    question: &Request,
    other: impl Future<Output = Outcome<Load>>,
) -> Outcome<(Load, Load)> {
    let mut connection = client::Connection::open(server.http).await?;
    let (mut asked, began) = (Load::default(), Instant::now());
    tokio::pin!(other);
    loop {
        let sent = Instant::now();
        tokio::select! {
            written = &mut other => {
                asked.elapsed = began.elapsed();
                return Ok((written?, asked));
            }
            answer = connection.call(question) => {
                let answer = answer?;
                if answer.status != 200 {
                    return Err(format!("status {}: {}", answer.status, answer.text()).into());
                }
                asked.micros.push(sent.elapsed().as_micros() as u32);
                asked.requests += 1;
            }
        }
    }
}

/// The questions that people ask a meter with hundreds of dimension sets.
async fn ask(
    suite: &mut Suite<'_>,
    server: &Server,
    account: &Account,
    workload: &Workload,
    stored: u64,
) -> Outcome<()> {
    let (meter, from) = (&workload.meter, workload.from);
    let to = from.plus(30 * DAY);
    let buckets_of = |from: Timestamp, rest: &str| {
        let target = format!("/v1/usages?meter={meter}&from={from}&to={to}&limit=1000{rest}");
        Request::new("GET", &target, &account.key, "")
    };
    let buckets = |rest: &str| buckets_of(from, rest);
    let breakdown = json!({"meter": meter, "field": "endpoint", "from": from, "to": to}).to_string();
    let cut = {
        let (from, to) = (from.plus(HOUR / 3), to.plus(-HOUR / 3));
        let target = format!("/v1/usages?meter={meter}&from={from}&to={to}&limit=1000&bucket_size=day");
        Request::new("GET", &target, &account.key, "")
    };
    let questions = [
        ("days", buckets("&bucket_size=day")),
        ("days, cut at both ends", cut),
        ("days in India", buckets("&bucket_size=day&time_zone=Asia/Kolkata")),
        ("days in India by endpoint", buckets("&bucket_size=day&time_zone=Asia/Kolkata&group_by=endpoint")),
        ("weeks in Berlin", buckets("&bucket_size=week&time_zone=Europe/Berlin")),
        ("quarters of hours, 10 days", buckets_of(from.plus(20 * DAY), "&bucket_size=15m")),
        ("hours", buckets("&bucket_size=hour")),
        ("days by endpoint", buckets("&bucket_size=day&group_by=endpoint")),
        ("days by endpoint and status", buckets("&bucket_size=day&group_by=endpoint,status")),
        ("days by three dimensions", buckets("&bucket_size=day&group_by=endpoint,status,region")),
        ("hours by endpoint", buckets("&bucket_size=hour&group_by=endpoint")),
        ("days of one endpoint", buckets("&bucket_size=day&metadata.endpoint=/v1/things/7")),
        ("breakdown", Request::new("POST", "/v1/usages/breakdowns/search", &account.key, &breakdown)),
        ("days of one subject", buckets("&bucket_size=day&subject=customer-000007")),
        (
            "days of one subject by endpoint",
            buckets("&bucket_size=day&subject=customer-000007&group_by=endpoint"),
        ),
        ("days by subject", buckets("&bucket_size=day&group_by=subject")),
        ("days where an undeclared field", buckets("&bucket_size=day&metadata.class=c7")),
        ("subjects", Request::new("GET", "/v1/subjects?limit=100", &account.key, "")),
    ];
    let path = |name: &str| format!("wide query at {}: {name}", short(stored as f64));
    let questions = questions.into_iter().map(|(name, request)| (path(name), request)).collect();
    queries::ask_each(suite, server, workload, questions).await
}
