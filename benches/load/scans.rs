//! What a question that no sum answers costs, beside DuckDB over the same events with as many threads: the ceiling for
//! reading JSON row by row. DuckDB comes from its registry into a directory of its own; where it cannot be had the report
//! says so.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

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
