//! The measurements, in order, on one database. Every path writes to a meter of its own, and ends with the question
//! whether the server counts what it acknowledged.

use std::path::Path;
use std::time::Duration;

use open_spanner::metering::time::{DAY, SECOND, Timestamp};
use serde_json::json;

use crate::client::{self, Load, Request};
use crate::database::Place;
use crate::meter::{Gauge, Unit};
use crate::report::{Report, Row, short};
use crate::server::{Account, Server};
use crate::workload::{Keys, Workload};
use crate::{Outcome, ceiling, doors, machine, moving, queries, replicas, stream};

/// How much of everything.
pub struct Size {
    /// Checks the kit, and measures nothing.
    pub is_short: bool,
    /// Longest time of one path, and the most events it writes as single calls and in bulk.
    pub time: Duration,
    /// Customers that take turns; with quotas each needs a plan.
    pub subjects: u64,
    pub singles: u64,
    pub bulk: u64,
    pub stream: u64,
    pub ceiling_batches: u64,
    pub ceiling_connections: Vec<usize>,
    /// Sizes of the history at which rates and queries are measured, and how many events such a measurement takes.
    pub history: Vec<u64>,
    pub history_sample: u64,
    /// Events with hundreds of dimension sets.
    pub wide: u64,
    /// Events that are moved in.
    pub import: u64,
    /// Events that come through each door.
    pub doors: u64,
    /// How often each query is asked.
    pub questions: usize,
    pub idle: Duration,
}

impl Size {
    pub fn short() -> Size {
        Size {
            is_short: true,
            time: Duration::from_millis(500),
            subjects: 20,
            singles: 500,
            bulk: 3_000,
            stream: 500,
            ceiling_batches: 2,
            ceiling_connections: vec![2],
            history: vec![0, 4_000],
            history_sample: 2_000,
            wide: 4_000,
            import: 4_000,
            doors: 2_500,
            questions: 2,
            idle: Duration::ZERO,
        }
    }

    pub fn full(history: u64, wide: u64, import: u64, doors: u64) -> Size {
        let points = [0, 1_000_000, 3_000_000, 10_000_000];
        Size {
            is_short: false,
            time: Duration::from_secs(5),
            subjects: 1_000,
            singles: 60_000,
            bulk: 200_000,
            stream: 50_000,
            ceiling_batches: 100,
            ceiling_connections: vec![1, 2, 4],
            history: points.into_iter().filter(|point| *point <= history).collect(),
            history_sample: 300_000,
            wide,
            import,
            doors,
            questions: 100,
            idle: Duration::from_secs(2),
        }
    }
}

pub struct Suite<'a> {
    pub place: &'a Place,
    pub program: &'a Path,
    pub size: &'a Size,
    only: &'a [String],
    pub report: &'a mut Report,
    /// Names meters and keys apart.
    meters: u64,
    /// Of each kind of workload: rate, processor time per event.
    ceilings: Vec<(Kind, (f64, f64))>,
}

/// What the cost of a row depends on: kind of keys, subjects, models.
type Kind = (Keys, u64, u64);

fn kind(workload: &Workload) -> Kind {
    (workload.keys, workload.subjects, workload.models)
}

const MODELS: u64 = 4;
const CONNECTIONS_OF_SINGLES: [u64; 4] = [1, 8, 64, 256];
const STREAMS: u64 = 4;

impl<'a> Suite<'a> {
    pub fn new(
        place: &'a Place,
        program: &'a Path,
        size: &'a Size,
        only: &'a [String],
        report: &'a mut Report,
    ) -> Suite<'a> {
        Suite { place, program, size, only, report, meters: 0, ceilings: Vec::new() }
    }

    pub fn program(&self) -> &'a Path {
        self.program
    }

    /// Whether this is to be done although it takes long: everything is done tiny, else what is asked for by name.
    pub fn asks(&self, path: &str) -> bool {
        if self.size.is_short { self.wants(path) } else { self.only.iter().any(|part| path == part) }
    }

    pub fn wants(&self, path: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|part| path.contains(part.as_str()))
    }

    pub async fn run(&mut self) -> Outcome<()> {
        eprintln!("{}", self.place.name());
        let driver = self.place.create("main")?;
        let server = Server::start(self.program, &driver, self.place.dir())?;
        let server = self.start_again(server).await?;
        let account = Account::create(&server).await?;
        for keys in Keys::BOTH {
            let workload = self.workload(keys);
            self.measure_ceiling(&workload, keys.name())?;
            self.bulks(&server, &account, keys).await?;
        }
        self.singles(&server, &account, "single", false).await?;
        self.cardinality(&server, &account).await?;
        self.streams(&server, &account, "stream", false).await?;
        self.quotas(&server, &account).await?;
        queries::doors(self, &server, &account).await?;
        server.stop()?;
        self.place.remove("main")?;
        self.wide().await?;
        moving::import(self)?;
        doors::run(self).await?;
        replicas::run(self).await?;
        for keys in Keys::BOTH {
            self.grow(keys).await?;
        }
        Ok(())
    }

    /// Start to ready on an empty and on a migrated database, and the memory of a server that does nothing.
    async fn start_again(&mut self, server: Server) -> Outcome<Server> {
        let driver = self.place.driver("main");
        let first = server.start_to_ready;
        server.stop()?;
        let server = Server::start(self.program, &driver, self.place.dir())?;
        tokio::time::sleep(self.size.idle).await;
        let name = self.place.name();
        self.report.fact(
            format!("{name}: start to ready"),
            format!(
                "{} ms, {} ms with an empty database to migrate",
                server.start_to_ready.as_millis(),
                first.as_millis()
            ),
        );
        let idle = machine::memory_of(server.pid()).0 as f64 / 1e6;
        self.report.fact(format!("{name}: idle memory"), format!("{idle:.0} MB"));
        Ok(server)
    }

    /// A workload on a meter that does not exist yet, with event times just before now.
    pub fn workload(&mut self, keys: Keys) -> Workload {
        self.meters += 1;
        Workload {
            meter: format!("meter-{}", self.meters),
            keys,
            subjects: self.size.subjects,
            models: MODELS,
            wide: false,
            source: None,
            seed: crate::workload::mix(self.meters),
            from: Timestamp::now().plus(-60 * SECOND),
            step: 100,
        }
    }

    fn measure_ceiling(&mut self, workload: &Workload, label: &str) -> Outcome<()> {
        let connections: &[usize] = match self.place {
            Place::Sqlite(_) => &[1],
            Place::Postgres(_) => &self.size.ceiling_connections,
        };
        let ceiling = ceiling::measure(self.place, workload, self.size.ceiling_batches, connections)?;
        self.ceilings.push((kind(workload), (ceiling.rate, ceiling.own + ceiling.db)));
        self.report.row(Row {
            database: self.place.name(),
            path: format!("raw ceiling, {label}"),
            rate: ceiling.rate,
            unit: "events",
            client: ceiling.own,
            db: ceiling.db,
            note: format!("bare loop, {} connection(s)", ceiling.connections),
            ..Row::default()
        });
        Ok(())
    }

    fn ceiling(&self, workload: &Workload) -> Option<(f64, f64)> {
        self.ceilings.iter().find(|(of, _)| *of == kind(workload)).map(|(_, ceiling)| *ceiling)
    }

    /// Asks the server for the total of a meter and compares it with what it acknowledged.
    pub async fn verify(&self, account: &Account, workload: &Workload, load: &Load) -> Outcome<()> {
        let counted = account.total(&workload.meter, workload.from).await?;
        if counted == load.cents {
            return Ok(());
        }
        let (meter, cents) = (&workload.meter, load.cents);
        Err(format!("{meter}: acknowledged {cents} hundredths, counted {counted}").into())
    }

    async fn singles(&mut self, server: &Server, account: &Account, label: &str, quota: bool) -> Outcome<()> {
        for connections in CONNECTIONS_OF_SINGLES {
            let path = format!("{label} c{connections}");
            if !self.wants(&path) || (quota && connections != 64) {
                continue;
            }
            let workload = self.workload(Keys::Ordered);
            account.create_meter(&workload.meter).await?;
            if quota && !self.limit(account, &workload).await? {
                return Ok(());
            }
            let total = self.size.singles.min(connections * 10_000);
            let lists = workload.singles(&account.key, total, connections);
            self.measure_write(server, account, &path, &workload, lists).await?;
        }
        Ok(())
    }

    async fn bulks(&mut self, server: &Server, account: &Account, keys: Keys) -> Outcome<()> {
        for (size, connections) in [(1_000, 4), (1_000, 1), (100, 4), (100, 1)] {
            let path = format!("bulk {size} c{connections}, {}", keys.name());
            if !self.wants(&path) || (keys == Keys::Random && size != 1_000) {
                continue;
            }
            let workload = self.workload(keys);
            account.create_meter(&workload.meter).await?;
            let lists = self.bulk_lists(account, &workload, 0..self.size.bulk, size, connections);
            self.measure_write(server, account, &path, &workload, lists).await?;
        }
        Ok(())
    }

    /// The numbered events as bulk calls of `size`, dealt out to connections.
    pub fn bulk_lists(
        &self,
        account: &Account,
        workload: &Workload,
        numbers: std::ops::Range<u64>,
        size: u64,
        connections: usize,
    ) -> Vec<Vec<Request>> {
        let mut lists: Vec<Vec<Request>> = (0..connections).map(|_| Vec::new()).collect();
        for (at, from) in numbers.clone().step_by(size as usize).enumerate() {
            let to = (from + size).min(numbers.end);
            let (body, cents) = workload.bulk(from..to);
            let request = Request::new("POST", "/v1/usages/bulk", &account.key, &body);
            lists[at % connections].push(request.storing(to - from, cents));
        }
        lists
    }

    async fn measure_write(
        &mut self,
        server: &Server,
        account: &Account,
        path: &str,
        workload: &Workload,
        lists: Vec<Vec<Request>>,
    ) -> Outcome<()> {
        self.place.settle()?;
        let mut gauge = Gauge::start(self.place, server)?;
        gauge.resume();
        let mut load = client::run(server.http, lists, self.size.time).await?;
        gauge.pause();
        let mut row = gauge.finish(path, Unit::Events, &mut load);
        row.ceiling = self.ceiling(workload);
        self.report.row(row);
        self.verify(account, workload, &load).await
    }

    /// How many different rollup rows a batch touches decides what it costs.
    async fn cardinality(&mut self, server: &Server, account: &Account) -> Outcome<()> {
        for (subjects, models) in [(1, 1), (100, 4), (100_000, 40)] {
            let label = format!("{subjects} subjects, {} sets", models * 3);
            let path = format!("bulk 1000 c4, {label}");
            if !self.wants(&path) {
                continue;
            }
            let workload = Workload { subjects, models, ..self.workload(Keys::Ordered) };
            self.measure_ceiling(&workload, &label)?;
            account.create_meter(&workload.meter).await?;
            let lists = self.bulk_lists(account, &workload, 0..self.size.bulk, 1_000, 4);
            self.measure_write(server, account, &path, &workload, lists).await?;
        }
        Ok(())
    }

    async fn streams(&mut self, server: &Server, account: &Account, path: &str, quota: bool) -> Outcome<()> {
        let path = format!("{path} c{STREAMS}");
        if !self.wants(&path) {
            return Ok(());
        }
        let Some(address) = server.grpc else {
            self.report.fact(format!("{}: {path}", self.place.name()), "not measured, no gRPC listener");
            return Ok(());
        };
        let workload = self.workload(Keys::Ordered);
        account.create_meter(&workload.meter).await?;
        if quota && !self.limit(account, &workload).await? {
            return Ok(());
        }
        self.place.settle()?;
        let mut gauge = Gauge::start(self.place, server)?;
        // making the messages costs more than sending them: it must not count
        gauge.resume();
        let mut load =
            stream::run(address, &account.token, &workload, STREAMS, 0..STREAMS * self.size.stream).await?;
        gauge.pause();
        let mut row = gauge.finish(&path, Unit::Events, &mut load);
        row.ceiling = self.ceiling(&workload);
        row.note = "client µs includes making the messages".to_owned();
        self.report.row(row);
        self.verify(account, &workload, &load).await
    }

    /// The write paths again with a limit on every subject.
    async fn quotas(&mut self, server: &Server, account: &Account) -> Outcome<()> {
        self.singles(server, account, "single with quotas", true).await?;
        let path = "bulk 1000 c4 with quotas";
        if self.wants(path) {
            let workload = self.workload(Keys::Ordered);
            account.create_meter(&workload.meter).await?;
            if !self.limit(account, &workload).await? {
                return Ok(());
            }
            let lists = self.bulk_lists(account, &workload, 0..self.size.bulk, 1_000, 4);
            self.measure_write(server, account, path, &workload, lists).await?;
        }
        self.streams(server, account, "stream with quotas", true).await
    }

    /// A plan with a monthly limit nobody reaches, for every subject of the workload. False while the server has no
    /// plans.
    pub async fn limit(&mut self, account: &Account, workload: &Workload) -> Outcome<bool> {
        let limit = json!({"meter": workload.meter, "period": "month", "limit": 1_000_000_000});
        let plan = json!({"name": format!("plan of {}", workload.meter), "limits": [limit]});
        let answer = account.call_with_session("POST", "/v1/plans", &plan).await?;
        if answer.status == 404 {
            self.report
                .fact(format!("{}: quotas", self.place.name()), "not measured, the server has no plans");
            return Ok(false);
        }
        let id = answer.json()?["id"].as_str().ok_or_else(|| answer.text())?.to_owned();
        for number in 0..workload.subjects {
            let target = format!("/v1/plans/subjects/{}", Workload::subject(number));
            let answer = account.call_with_session("PUT", &target, &json!({"plan_id": id})).await?;
            if answer.status != 200 {
                return Err(answer.text().into());
            }
        }
        Ok(true)
    }

    /// A history of 30 days that grows under bulk calls: rates and queries at each size.
    async fn grow(&mut self, keys: Keys) -> Outcome<()> {
        let path = format!("history, {}", keys.name());
        let asks = keys == Keys::Ordered && queries::wanted(self);
        if !self.wants(&path) && !asks {
            return Ok(());
        }
        let driver = self.place.create("history")?;
        let server = Server::start(self.program, &driver, self.place.dir())?;
        let account = Account::create(&server).await?;
        let last = self.size.history.last().copied().unwrap_or(0) + self.size.history_sample;
        let mut workload = self.workload(keys);
        workload.from = Timestamp::now().plus(-30 * DAY);
        workload.step = 30 * DAY / last as i64;
        account.create_meter(&workload.meter).await?;

        let (mut stored, mut sum) = (0, Load::default());
        let mut at_first = None;
        for &point in &self.size.history {
            self.fill(&server, &account, &workload, stored..point.max(stored), &mut sum).await?;
            stored = point.max(stored);
            if asks && point > 0 {
                self.verify(&account, &workload, &sum).await?;
                queries::ask(self, &server, &account, &workload, stored).await?;
            }
            self.place.settle()?;
            let numbers = stored..stored + self.size.history_sample;
            stored = numbers.end;
            let mut gauge = Gauge::start(self.place, &server)?;
            let lists = self.bulk_lists(&account, &workload, numbers, 1_000, 4);
            gauge.resume();
            let mut load = client::run(server.http, lists, Duration::from_secs(600)).await?;
            gauge.pause();
            let name = format!("{path}: bulk 1000 c4 at {} events", short(point as f64));
            let mut row = gauge.finish(&name, Unit::Events, &mut load);
            // here the ceiling is the rate on the empty database
            row.ceiling = at_first;
            at_first = at_first.or(Some((row.rate, row.server + row.db)));
            self.report.row(row);
            sum.add(load);
        }
        self.verify(&account, &workload, &sum).await?;
        server.stop()?;
        self.place.remove("history")
    }

    /// Stores events without measuring, as fast as it goes.
    async fn fill(
        &mut self,
        server: &Server,
        account: &Account,
        workload: &Workload,
        numbers: std::ops::Range<u64>,
        sum: &mut Load,
    ) -> Outcome<()> {
        const PIECE: u64 = 100_000;
        for from in numbers.clone().step_by(PIECE as usize) {
            let piece = from..(from + PIECE).min(numbers.end);
            let lists = self.bulk_lists(account, workload, piece, 1_000, 4);
            let load = client::run(server.http, lists, Duration::from_secs(600)).await?;
            if load.refused > 0 {
                return Err("the server refused part of the history".into());
            }
            if from % 1_000_000 == 0 {
                eprintln!("  filling: {} events, {}/s", short(from as f64), short(load.events_per_second()));
            }
            sum.add(load);
        }
        Ok(())
    }
}
