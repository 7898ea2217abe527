//! The same events through every door there is, each into a workspace of its own and then once more through the next door:
//! questions are answered alike everywhere, and what comes twice is stored once. `--only doors`, since it takes long.

use std::fmt::Write as _;
use std::io::{BufWriter, Write as _};
use std::ops::Range;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use open_spanner::config::Driver;
use open_spanner::metering::time::{DAY, Timestamp};

use crate::client::{self, Load, Request};
use crate::meter::{Gauge, Unit};
use crate::report::{Row, short};
use crate::server::{Account, Server};
use crate::suite::Suite;
use crate::workload::{Keys, Workload, mix};
use crate::{Outcome, stream};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Door {
    Single,
    Bulk,
    Lines,
    CloudEvents,
    OpenMeter,
    Stream,
    ImportCsv,
    ImportOpenMeter,
}

/// Those of a server, and then commands.
const SERVED: [Door; 6] =
    [Door::Single, Door::Bulk, Door::Lines, Door::CloudEvents, Door::OpenMeter, Door::Stream];
const COMMANDS: [Door; 2] = [Door::ImportCsv, Door::ImportOpenMeter];

const CONNECTIONS: usize = 4;
const CONNECTIONS_OF_SINGLES: usize = 64;
const LINES_AT_ONCE: u64 = 50_000;
/// Made at once, before they are sent.
const PIECE: u64 = 200_000;
const LONGEST: Duration = Duration::from_secs(3_600);
/// Of a CloudEvent it is the source, and a part of every key.
const SOURCE: &str = "bench";
const DATABASE: &str = "doors";

pub async fn run(suite: &mut Suite<'_>) -> Outcome<()> {
    if !suite.asks("doors") {
        return Ok(());
    }
    let driver = suite.place.create(DATABASE)?;
    let total = suite.size.doors;
    let workload = Workload {
        meter: "calls".to_owned(),
        keys: Keys::Random,
        subjects: suite.size.subjects,
        models: 4,
        wide: false,
        source: None,
        seed: mix(23),
        from: Timestamp::now().plus(-30 * DAY),
        step: 30 * DAY / total as i64,
    };
    let server = Server::start(suite.program, &driver, suite.place.dir())?;
    let mut accounts = Vec::new();
    for door in SERVED.iter().chain(&COMMANDS) {
        let email = format!("{door:?}@example.com").to_lowercase();
        let account = Account::of(&server, &email).await?;
        account.create_meter(&workload.meter).await?;
        accounts.push(account);
    }
    for (at, door) in SERVED.iter().enumerate() {
        let mut gauge = Gauge::start(suite.place, &server)?;
        let mut load = send(&server, &accounts[at], &workload, *door, total, Some(&mut gauge)).await?;
        let row = gauge.finish(&format!("door {door:?}"), Unit::Events, &mut load);
        suite.report.row(row);
        let next = SERVED[(at + 1) % SERVED.len()];
        send(&server, &accounts[at], &workload, next, total, None).await?;
    }
    let mut workspaces = Vec::new();
    for account in &accounts[SERVED.len()..] {
        workspaces.push(account.workspace().await?);
    }
    server.stop()?;
    import(suite, &driver, &workload, total, &workspaces)?;
    let server = Server::start(suite.program, &driver, suite.place.dir())?;
    compare(suite, &server, &accounts, &workload).await?;
    server.stop()?;
    suite.place.remove(DATABASE)
}

fn plain(workload: &Workload, at: u64) -> String {
    let workload = Workload { source: Some(SOURCE), ..workload.clone() };
    let mut text = String::with_capacity(256);
    workload.write(at, &mut text);
    text
}

/// The same event as a CloudEvent.
fn cloud(workload: &Workload, at: u64) -> Outcome<String> {
    let mut text = String::with_capacity(256);
    workload.write(at, &mut text);
    let event: serde_json::Value = serde_json::from_str(&text)?;
    let metadata = event["metadata"].to_string();
    Ok(format!(
        r#"{{"specversion":"1.0","id":{},"source":"{SOURCE}","type":{},"subject":{},"time":{},"data":{{"value":{},{}}}"#,
        event["idempotency_key"],
        event["meter"],
        event["subject"],
        event["timestamp"],
        event["quantity"],
        &metadata[1..],
    ))
}

fn in_list(events: impl Iterator<Item = Outcome<String>>) -> Outcome<String> {
    let mut text = String::from("[");
    for event in events {
        let _ = write!(text, "{}{}", if text.len() == 1 { "" } else { "," }, event?);
    }
    text.push(']');
    Ok(text)
}

/// What one call with these events is.
fn request(door: Door, account: &Account, workload: &Workload, numbers: Range<u64>) -> Outcome<Request> {
    let plain = |at| Ok(plain(workload, at));
    let post = |kind: &str, target: &str, body: &str| Request::of(kind, "POST", target, &account.key, body);
    let batch = "application/cloudevents-batch+json";
    Ok(match door {
        Door::Single => post("application/json", "/v1/usages", &plain(numbers.start)?),
        Door::Bulk => post("application/json", "/v1/usages/bulk", &in_list(numbers.map(plain))?),
        Door::Lines => {
            let lines: Outcome<Vec<String>> = numbers.map(plain).collect();
            post("application/x-ndjson", "/v1/usages/bulk", &lines?.join("\n"))
        }
        Door::CloudEvents => post(batch, "/v1/cloudevents", &in_list(numbers.map(|at| cloud(workload, at)))?),
        _ => post(batch, "/api/v1/events", &in_list(numbers.map(|at| cloud(workload, at)))?),
    })
}

/// Sends all of it; with a gauge it is the first time, and every event has to be accepted.
async fn send(
    server: &Server,
    account: &Account,
    workload: &Workload,
    door: Door,
    total: u64,
    mut gauge: Option<&mut Gauge<'_>>,
) -> Outcome<Load> {
    let (events, connections) = match door {
        Door::Single => (1, CONNECTIONS_OF_SINGLES),
        Door::Lines => (LINES_AT_ONCE, CONNECTIONS),
        _ => (1_000, CONNECTIONS),
    };
    let mut sum = Load::default();
    for from in (0..total).step_by(PIECE as usize) {
        let piece = from..(from + PIECE).min(total);
        if door == Door::Stream {
            let address = server.grpc.ok_or("no gRPC listener")?;
            let keyed = Workload { source: Some(SOURCE), ..workload.clone() };
            gauge.as_deref_mut().map(Gauge::resume);
            sum.add(stream::run(address, &account.token, &keyed, CONNECTIONS as u64, piece).await?);
            gauge.as_deref_mut().map(Gauge::pause);
            continue;
        }
        let mut lists: Vec<Vec<Request>> = (0..connections).map(|_| Vec::new()).collect();
        for (at, from) in piece.clone().step_by(events as usize).enumerate() {
            let numbers = from..(from + events).min(piece.end);
            let stored = if gauge.is_some() { numbers.end - numbers.start } else { 0 };
            let request = request(door, account, workload, numbers)?;
            lists[at % connections].push(request.storing(stored, 0));
        }
        gauge.as_deref_mut().map(Gauge::resume);
        sum.add(client::run(server.http, lists, LONGEST).await?);
        gauge.as_deref_mut().map(Gauge::pause);
    }
    if sum.refused > 0 {
        return Err(format!("{door:?}: {} calls were refused", sum.refused).into());
    }
    Ok(sum)
}

/// As files, by commands; each twice.
fn import(
    suite: &mut Suite<'_>,
    driver: &Driver,
    workload: &Workload,
    total: u64,
    workspaces: &[String],
) -> Outcome<()> {
    let dir = tempfile::tempdir_in(suite.place.dir())?;
    let mut table = BufWriter::new(std::fs::File::create(dir.path().join("file.csv"))?);
    let mut lines = BufWriter::new(std::fs::File::create(dir.path().join("file.jsonl"))?);
    writeln!(table, "key,who,amount,at,class,model,region")?;
    for at in 0..total {
        let event: serde_json::Value = serde_json::from_str(&plain(workload, at))?;
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        let more = ["class", "model", "region"].map(|name| text(&event["metadata"][name])).join(",");
        let (key, subject, time) =
            (text(&event["idempotency_key"]), text(&event["subject"]), text(&event["timestamp"]));
        writeln!(table, "{key},{subject},{},{time},{more}", event["quantity"])?;
        writeln!(lines, "{}", cloud(workload, at)?)?;
    }
    table.flush()?;
    lines.flush()?;
    let mapping = "key = \"{key}\"\n[columns]\nsubject = \"who\"\nquantity = \"amount\"\ntimestamp = \"at\"\n\
        metadata = { class = \"class\", model = \"model\", region = \"region\" }\n[constants]\nmeter = \"calls\"\n";
    std::fs::write(dir.path().join("mapping.toml"), mapping)?;
    for (door, workspace) in COMMANDS.iter().zip(workspaces) {
        let arguments: &[&str] = match door {
            Door::ImportCsv => &["csv", "file.csv", "--map", "mapping.toml"],
            _ => &["openmeter", "file.jsonl"],
        };
        for time in [1, 2] {
            let mut command = Command::new(suite.program);
            command.arg("import").args(arguments).args(["--workspace", workspace]);
            command.current_dir(dir.path()).stdin(Stdio::null()).stderr(Stdio::null()).env_clear();
            match driver {
                Driver::Sqlite { path, .. } => command.env("OPEN_SPANNER_SQLITE_PATH", path),
                Driver::Postgres { dsn } => command
                    .env("OPEN_SPANNER_DB_DRIVER", "postgres")
                    .env("OPEN_SPANNER_POSTGRES_DSN", dsn.expose()),
            };
            let started = Instant::now();
            let output = command.output()?;
            let text = String::from_utf8_lossy(&output.stdout);
            let counts = if time == 1 { [total, 0, 0] } else { [0, total, 0] };
            let line = text.lines().find_map(|line| line.strip_prefix("events "));
            let found: Vec<u64> =
                line.unwrap_or_default().split_whitespace().filter_map(|word| word.parse().ok()).collect();
            if !output.status.success() || found != counts {
                return Err(format!("{door:?} went wrong ({}):\n{text}", output.status).into());
            }
            if time == 1 {
                suite.report.row(Row {
                    database: suite.place.name(),
                    path: format!("door {door:?}"),
                    rate: total as f64 / started.elapsed().as_secs_f64(),
                    unit: "events",
                    ..Row::default()
                });
            }
        }
    }
    Ok(())
}

/// Asks every workspace the same.
async fn compare(
    suite: &mut Suite<'_>,
    server: &Server,
    accounts: &[Account],
    workload: &Workload,
) -> Outcome<()> {
    let total = suite.size.doors;
    let (from, to) = (workload.from.floor(DAY), workload.at(total).floor(DAY).plus(DAY));
    let expected: u64 = (0..total).map(|at| workload.cents(at)).sum();
    let mut answers: Vec<Vec<String>> = Vec::new();
    for (account, door) in accounts.iter().zip(SERVED.iter().chain(&COMMANDS)) {
        let account = account.at(server);
        let mut texts = Vec::new();
        for more in [
            "bucket_size=month",
            "bucket_size=day",
            "bucket_size=hour&group_by=region",
            "bucket_size=day&group_by=model",
            "bucket_size=month&group_by=subject",
            "bucket_size=day&subject=customer-000003",
            "bucket_size=day&metadata.class=c3",
        ] {
            let target = format!("/v1/usages?meter=calls&from={from}&to={to}&limit=1000&{more}");
            let answer = account.call("GET", &target, "").await?;
            if answer.status != 200 {
                return Err(answer.text().into());
            }
            texts.push(answer.text());
        }
        let counted = account.total("calls", workload.from).await?;
        if counted != expected {
            return Err(format!("{door:?}: {counted} hundredths instead of {expected}").into());
        }
        if answers.first().is_some_and(|first| *first != texts) {
            return Err(format!("{door:?} answers other than {:?}", SERVED[0]).into());
        }
        answers.push(texts);
    }
    suite.report.fact(
        format!("{}: doors", suite.place.name()),
        format!(
            "{} events through each of {}, twice: all answers are the same",
            short(total as f64),
            accounts.len()
        ),
    );
    Ok(())
}
