//! Moving in: a database of the Go server, with as many events as are asked for, comes into an empty one of ours on the
//! same engine. Its rate stands beside that of a bare loop which writes the same rows in the same run.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use open_spanner::config::Driver;
use open_spanner::db::{Conn, open};
use open_spanner::metering::time::{DAY, Timestamp};
use serde_json::Value;

use crate::database::Place;
use crate::report::Row;
use crate::suite::Suite;
use crate::workload::{Keys, Workload, mix};
use crate::{Outcome, ceiling, machine};

/// The tables of the Go server, with a workspace and its meter `calls`.
const TABLES: &str = include_str!("../../tests/it/moving/reference.sql");
const WORKSPACE: &str = "11111111-0000-4000-8000-000000000001";
const AT_ONCE: u64 = 1_000;

pub fn import(suite: &mut Suite<'_>) -> Outcome<()> {
    if !suite.wants("import") {
        return Ok(());
    }
    let (place, total) = (suite.place, suite.size.import);
    let workload = Workload {
        meter: "calls".to_owned(),
        keys: Keys::Random,
        subjects: suite.size.subjects,
        models: 1,
        wide: false,
        source: None,
        seed: mix(17),
        from: Timestamp::now().plus(-30 * DAY),
        step: 30 * DAY / total as i64,
    };
    let batches = suite.size.ceiling_batches;
    let spread = Workload { step: 30 * DAY / (batches * ceiling::BATCH) as i64, ..workload.clone() };
    let connections: &[usize] = match place {
        Place::Sqlite(_) => &[1],
        Place::Postgres(_) => &suite.size.ceiling_connections,
    };
    let ceiling = ceiling::measure(place, &spread, batches, connections)?;
    let (theirs, ours) = (place.create("theirs")?, place.create("ours")?);
    if let Driver::Sqlite { path, .. } = &theirs {
        // ours opens what is there and makes nothing
        std::fs::File::create(path)?;
    }
    fill(&mut open(&theirs)?, &workload, total)?;
    place.settle()?;
    let mut row = run(suite, &theirs, &ours, total)?;
    row.ceiling = Some((ceiling.rate, ceiling.own + ceiling.db));
    suite.report.row(row);
    place.remove("theirs")?;
    place.remove("ours")
}

/// Every event in the order in which it came, which is not that of its id.
fn fill(conn: &mut Conn, workload: &Workload, total: u64) -> Outcome<()> {
    conn.batch_execute(TABLES)?;
    for first in (0..total).step_by(AT_ONCE as usize) {
        let (text, _) = workload.bulk(first..(first + AT_ONCE).min(total));
        let events: Vec<Value> = serde_json::from_str(&text)?;
        let rows: Vec<String> = events.iter().zip(first..).map(|(event, at)| values(event, at)).collect();
        conn.batch_execute(&format!("BEGIN; INSERT INTO usage_events VALUES {}; COMMIT", rows.join(",")))?;
    }
    Ok(())
}

fn values(event: &Value, at: u64) -> String {
    let text = |name: &str| event[name].as_str().unwrap_or_default();
    let (high, low) = (mix(at), mix(at ^ 0x5EED));
    format!(
        "('{:08x}-{:04x}-4{:03x}-8{:03x}-{:012x}', '{WORKSPACE}', '{}', '{}', 'calls', {}, '{time}', '{time}', '{}')",
        high >> 32,
        (high >> 16) & 0xFFFF,
        high & 0xFFF,
        low >> 52,
        low & 0xFFFF_FFFF_FFFF,
        text("idempotency_key"),
        text("subject"),
        event["quantity"],
        event["metadata"],
        time = text("timestamp"),
    )
}

fn run(suite: &Suite<'_>, theirs: &Driver, ours: &Driver, total: u64) -> Outcome<Row> {
    let from = match theirs {
        Driver::Sqlite { path, .. } => path.clone(),
        Driver::Postgres { dsn } => dsn.expose().to_owned(),
    };
    let out = tempfile::NamedTempFile::new()?;
    let mut command = Command::new(suite.program());
    command.args(["import", "reference", "--from", &from, "--rejected", "left-out.jsonl"]);
    command.current_dir(suite.place.dir()).stdin(Stdio::null());
    command.stdout(out.reopen()?).stderr(Stdio::null()).env_clear();
    match ours {
        Driver::Sqlite { path, .. } => command.env("OPEN_SPANNER_SQLITE_PATH", path),
        Driver::Postgres { dsn } => {
            command.env("OPEN_SPANNER_DB_DRIVER", "postgres").env("OPEN_SPANNER_POSTGRES_DSN", dsn.expose())
        }
    };
    let (cpu_before, started) = (suite.place.cpu(), Instant::now());
    let mut child = command.spawn()?;
    let (mut peak, mut own) = (0, 0);
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        (peak, own) = (machine::memory_of(child.id()).1.max(peak), machine::cpu_of(child.id()).max(own));
        std::thread::sleep(Duration::from_millis(20));
    };
    let elapsed = started.elapsed();
    let text = std::fs::read_to_string(out.path())?;
    let verdict = format!("calls: {} events", total + 3);
    if !status.success() || !text.contains(&verdict) || !text.contains("equal on both sides") {
        return Err(format!("the import went wrong ({status}):\n{text}").into());
    }
    let db = suite.place.cpu() - cpu_before;
    Ok(Row {
        database: suite.place.name(),
        path: format!("import reference, {total} events of 30 days"),
        rate: total as f64 / elapsed.as_secs_f64(),
        unit: "events",
        server: own as f64 / total as f64,
        db: db as f64 / total as f64,
        peak,
        note: "compared with the source at its end".to_owned(),
        ..Row::default()
    })
}
