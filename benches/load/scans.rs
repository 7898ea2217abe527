//! What a question that no sum answers costs, beside two others over the same events: reading the rows without a look at
//! their metadata, which no filter can be faster than, and DuckDB with as many threads, the ceiling for reading JSON row by
//! row. DuckDB comes from its registry into a directory of its own; where it cannot be had the report says so.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use diesel::sql_types::{BigInt, Text};
use diesel::{QueryableByName, RunQueryDsl};
use open_spanner::db::{Conn, open};
use open_spanner::metering::time::DAY;

use crate::Outcome;
use crate::suite::Suite;
use crate::workload::Workload;

/// Loads lines of (time, hundredths, metadata), asks five times, prints the median in milliseconds.
const SCRIPT: &str = r#"
import sys, time, duckdb
path, threads, day = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
db = duckdb.connect()
db.execute("SET enable_progress_bar = false")
db.execute(f"SET threads TO {threads}")
db.execute(f"CREATE TABLE events AS SELECT * FROM read_csv('{path}', delim='\t', header=false, quote='', "
           "columns={'occurred': 'BIGINT', 'cents': 'BIGINT', 'metadata': 'VARCHAR'})")
spent = []
for _ in range(5):
    began = time.perf_counter()
    rows = db.execute(f"SELECT occurred // {day} AS day, sum(cents) FROM events "
                      "WHERE json_extract_string(metadata, '$.class') = 'c7' GROUP BY 1").fetchall()
    spent.append((time.perf_counter() - began) * 1000)
assert rows
print(sorted(spent)[2])
"#;

/// The same question as `wide query …: days where an undeclared field`, asked of DuckDB.
pub fn compare(suite: &mut Suite<'_>, workload: &Workload, stored: u64) -> Outcome<()> {
    let (millis, database) = (floor(suite, workload)?, suite.place.name());
    suite.report.fact(
        format!("{database}: wide scan of {stored} events, the rows alone, {FLOOR_THREADS} thread(s)"),
        format!("{millis:.1} ms"),
    );
    let Some(python) = python() else {
        suite.report.fact("wide scan: DuckDB", "not measured: it cannot be installed here");
        return Ok(());
    };
    let file = tempfile::NamedTempFile::new_in(suite.place.dir())?;
    let mut out = BufWriter::new(File::create(file.path())?);
    for i in 0..stored {
        let mut metadata = String::new();
        workload.write_metadata(i, &mut metadata);
        writeln!(out, "{}\t{}\t{{{metadata}}}", workload.at(i).0, workload.cents(i))?;
    }
    out.flush()?;
    for threads in [1, 2] {
        let millis = ask_duckdb(&python, file.path(), threads)?;
        let database = suite.place.name();
        suite.report.fact(
            format!("{database}: wide scan of {stored} events, DuckDB, {threads} thread(s)"),
            format!("{millis:.1} ms"),
        );
    }
    Ok(())
}

/// PostgreSQL is kept from using workers, so that both databases are measured alike.
const FLOOR_THREADS: u32 = 1;

#[derive(QueryableByName)]
struct Latest {
    #[diesel(sql_type = BigInt)]
    latest: i64,
}

/// Milliseconds that the database takes for the rows of the question: a column is read that no index has. Median of five.
fn floor(suite: &Suite<'_>, workload: &Workload) -> Outcome<f64> {
    let mut conn = open(&suite.place.driver("history"))?;
    if let Conn::Postgres(c) = &mut conn {
        diesel::sql_query("SET max_parallel_workers_per_gather = 0").execute(c)?;
    }
    let text = "SELECT MAX(received_at) AS latest FROM events
                WHERE meter_id = (SELECT id FROM meters WHERE name = $1) AND event_time >= $2 AND event_time < $3";
    let mut micros = Vec::new();
    for _ in 0..5 {
        let started = Instant::now();
        let latest: Latest = diesel::sql_query(text)
            .bind::<Text, _>(&workload.meter)
            .bind::<BigInt, _>(workload.from.0)
            .bind::<BigInt, _>(workload.from.plus(30 * DAY).0)
            .get_result(&mut conn)?;
        if latest.latest == 0 {
            return Err("there are no rows to read".into());
        }
        micros.push(started.elapsed().as_micros() as u32);
    }
    Ok(crate::report::percentile(&mut micros, 50.0) / 1e3)
}

fn ask_duckdb(python: &Path, events: &Path, threads: u32) -> Outcome<f64> {
    let out = Command::new(python)
        .args(["-c", SCRIPT])
        .arg(events)
        .args([threads.to_string(), DAY.to_string()])
        .output()?;
    if !out.status.success() {
        return Err(String::from_utf8_lossy(&out.stderr).into_owned().into());
    }
    Ok(String::from_utf8_lossy(&out.stdout).trim().parse()?)
}

/// A Python that has DuckDB.
fn python() -> Option<PathBuf> {
    let environment = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("duckdb");
    let python = environment.join("bin/python");
    let runs = |command: &mut Command| command.output().is_ok_and(|out| out.status.success());
    if runs(Command::new(&python).args(["-c", "import duckdb"])) {
        return Some(python);
    }
    eprintln!("  installing DuckDB into {}", environment.display());
    let made = runs(Command::new("python3").args(["-m", "venv"]).arg(&environment));
    let installed = made
        && runs(Command::new(&python).args([
            "-m",
            "pip",
            "install",
            "-q",
            "--disable-pip-version-check",
            "duckdb",
        ]));
    installed.then_some(python)
}
