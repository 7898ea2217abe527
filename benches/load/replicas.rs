//! What a second server on the same PostgreSQL brings and costs: the same load on one server and on two, in turns, so that
//! both see the same machine. Ratios only: two servers, the database and the client share its processors.

use std::net::SocketAddr;

use crate::client::{self, Load};
use crate::database::Place;
use crate::report::{Row, percentile};
use crate::server::{Account, Server};
use crate::suite::Suite;
use crate::workload::{Keys, Workload};
use crate::{Outcome, machine};

struct Shape {
    label: &'static str,
    subjects: u64,
    connections: u64,
    /// Events of a call.
    size: u64,
    /// Events of a turn: more than are written in its time.
    total: u64,
}

const SHAPES: [Shape; 5] = [
    Shape { label: "one subject, single c48", subjects: 1, connections: 48, size: 1, total: 60_000 },
    Shape { label: "one subject, bulk 10 c24", subjects: 1, connections: 24, size: 10, total: 200_000 },
    Shape { label: "5000 subjects, single c48", subjects: 5_000, connections: 48, size: 1, total: 60_000 },
    Shape { label: "5000 subjects, bulk 10 c24", subjects: 5_000, connections: 24, size: 10, total: 200_000 },
    Shape {
        label: "5000 subjects, bulk 100 c12",
        subjects: 5_000,
        connections: 12,
        size: 100,
        total: 400_000,
    },
];
const TURNS: usize = 4;

/// What one turn, or all turns of a kind, came to.
#[derive(Default)]
struct Turn {
    load: Load,
    server: u64,
    database: u64,
}

impl Turn {
    fn add(&mut self, other: Turn) {
        self.load.add(other.load);
        self.server += other.server;
        self.database += other.database;
    }

    fn per_event(&self, spent: u64) -> f64 {
        spent as f64 / self.load.events.max(1) as f64
    }
}

pub async fn run(suite: &mut Suite<'_>) -> Outcome<()> {
    if !suite.asks("replicas") || matches!(suite.place, Place::Sqlite(_)) {
        return Ok(());
    }
    let driver = suite.place.create("replicas")?;
    let start = || Server::start(suite.program(), &driver, suite.place.dir());
    let servers = [start()?, start()?];
    let account = Account::create(&servers[0]).await?;
    for shape in &SHAPES {
        compare(suite, &servers, &account, shape).await?;
    }
    for server in servers {
        server.stop()?;
    }
    suite.place.remove("replicas")
}

async fn compare(
    suite: &mut Suite<'_>,
    servers: &[Server; 2],
    account: &Account,
    shape: &Shape,
) -> Outcome<()> {
    let (mut one, mut two) = (Turn::default(), Turn::default());
    for at in 0..TURNS * 2 {
        // one, two, two, one: what grows with time meets both alike
        let with_two = matches!(at % 4, 1 | 2);
        let mut workload = suite.workload(Keys::Ordered);
        workload.subjects = shape.subjects;
        account.create_meter(&workload.meter).await?;
        let turn = write(suite, &servers[..if with_two { 2 } else { 1 }], account, &workload, shape).await?;
        suite.verify(account, &workload, &turn.load).await?;
        if with_two { two.add(turn) } else { one.add(turn) }
    }
    let (cpu, of_two) = (one.per_event(one.server + one.database), two.per_event(two.server + two.database));
    let rate_of_one = one.load.events_per_second();
    for (turn, servers) in [(&mut one, 1), (&mut two, 2)] {
        let mut row = Row {
            database: suite.place.name(),
            path: format!("{servers} server(s): {}", shape.label),
            rate: turn.load.events_per_second(),
            unit: "events",
            p50: percentile(&mut turn.load.micros, 50.0) / 1e3,
            p99: percentile(&mut turn.load.micros, 99.0) / 1e3,
            server: turn.per_event(turn.server),
            db: turn.per_event(turn.database),
            ..Row::default()
        };
        if servers == 2 {
            // here the ceiling is one server
            row.ceiling = Some((rate_of_one, cpu));
            row.note = format!("{:.2} of the processor time", of_two / cpu);
        }
        suite.report.row(row);
    }
    Ok(())
}

async fn write(
    suite: &Suite<'_>,
    servers: &[Server],
    account: &Account,
    workload: &Workload,
    shape: &Shape,
) -> Outcome<Turn> {
    let total = if suite.size.is_short { 500 } else { shape.total };
    let lists = match shape.size {
        1 => workload.singles(&account.key, total, shape.connections),
        size => suite.bulk_lists(account, workload, 0..total, size, shape.connections as usize),
    };
    let addresses: Vec<SocketAddr> = servers.iter().map(|server| server.http).collect();
    suite.place.settle()?;
    let spent = || servers.iter().map(|server| machine::cpu_of(server.pid())).sum::<u64>();
    let (server, database) = (spent(), suite.place.cpu());
    let load = client::run_at(&addresses, lists, suite.size.time).await?;
    Ok(Turn { load, server: spent() - server, database: suite.place.cpu() - database })
}
