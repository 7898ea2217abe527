//! The load benchmark: `cargo bench --bench load` starts the server on SQLite and on a throw-away PostgreSQL, drives
//! it, checks that every acknowledged event was counted, and prints what it took beside what a bare loop of the same
//! writes reaches in the same run. `docs/performance.md` explains the columns.
//!
//! `cargo test --bench load` runs everything once, tiny, in less than two minutes: it checks the totals and the kit
//! itself, and no times.

#![expect(clippy::disallowed_methods, reason = "a benchmark measures real time with threads of its own")]

mod ceiling;
mod client;
mod database;
mod doors;
mod machine;
mod meter;
mod moving;
mod queries;
mod replicas;
mod report;
mod scans;
mod server;
mod stream;
mod suite;
mod wide;
mod workload;

use std::path::{Path, PathBuf};

use clap::Parser;

pub type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

#[derive(Parser)]
#[command(name = "load")]
struct Options {
    /// Run everything tiny: checks that it works, measures nothing worth keeping
    #[arg(long)]
    short: bool,
    /// Only paths whose name contains this; may be given more than once
    #[arg(long)]
    only: Vec<String>,
    /// Only this database: sqlite or postgres
    #[arg(long)]
    database: Option<String>,
    /// The server to measure, instead of the one built with the benchmark
    #[arg(long, default_value = env!("CARGO_BIN_EXE_open-spanner"))]
    server: PathBuf,
    /// Where databases are made; a disk, not memory
    #[arg(long, default_value = "/var/tmp")]
    dir: PathBuf,
    /// Events of the largest history
    #[arg(long, default_value_t = 10_000_000)]
    history: u64,
    /// Events with hundreds of dimension sets, over 30 days
    #[arg(long, default_value_t = 100_000)]
    wide: u64,
    /// Events that are moved in from a database of the Go server
    #[arg(long, default_value_t = 1_000_000)]
    import: u64,
    /// Events that come through each door; only with --only doors
    #[arg(long, default_value_t = 1_000_000)]
    doors: u64,
    /// Given by cargo bench, and not by cargo test
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> std::process::ExitCode {
    match run() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("load: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn run() -> Outcome<()> {
    let options = Options::parse();
    let size = if options.short || !options.bench {
        suite::Size::short()
    } else {
        suite::Size::full(options.history, options.wide, options.import, options.doors)
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let mut report = report::Report::default();
    report.fact("machine", format!("{} processors", machine::processors()));
    report.fact("server", options.server.display().to_string());
    let wanted = |name: &str| options.database.as_deref().is_none_or(|only| only == name);
    let mut places = Vec::new();
    if wanted("sqlite") {
        places.push(database::Place::sqlite(&options.dir)?);
    }
    if wanted("postgres") {
        places.push(database::Place::postgres(&options.dir)?);
    }
    for place in &places {
        report.fact(place.name(), place.describe());
        let mut suite = suite::Suite::new(place, &options.server, &size, &options.only, &mut report);
        // whoever interrupts does not want to find databases and processes left over
        runtime.block_on(async {
            tokio::select! {
                done = suite.run() => done,
                _ = tokio::signal::ctrl_c() => Err("interrupted".into()),
            }
        })?;
    }
    println!("{}", report.table());
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("load.json");
    report.save(&path)?;
    println!("- as JSON: {}", path.display());
    Ok(())
}
