//! The official Python client, unchanged, against the real server: the scripts are in `tests/python`. The one for REST
//! fails when the client has an operation that it does not call.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::support::client::PASSWORD;
use crate::support::{Database, Server, on_both_databases, program};

on_both_databases!(python_client_runs_every_operation, python_stream_client_runs_its_flows);

/// The interpreter of the environment that `scripts/test` makes beside the build.
#[track_caller]
pub fn python() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("tmp is inside the target directory");
    let python = target.join("python/bin/python");
    assert!(python.exists(), "{} is missing: run scripts/test --prepare", python.display());
    python
}

async fn python_client_runs_every_operation(database: Database) {
    let server = Server::start_with(&database, &[("OPEN_SPANNER_SERVE_WORKERS", "on")]);
    let mut command = Command::new(python());
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python/sdk_usage.py"));
    command.args([server.url().as_str(), PASSWORD]);
    let run = program::finish(command, Duration::from_secs(120)).succeeded();
    assert!(run.stdout.trim_end().ends_with("all as expected"), "{run:#?}");
}

async fn python_stream_client_runs_its_flows(database: Database) {
    // a second server over the same data would share no allowance, so one does both: 60 events in 3 seconds
    let settings = [
        ("OPEN_SPANNER_INGESTION_RATE_LIMIT_EVENTS", "60"),
        ("OPEN_SPANNER_INGESTION_RATE_LIMIT_WINDOW", "3s"),
    ];
    let server = Server::start_with(&database, &settings);
    let mut command = Command::new(python());
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python/sdk_stream.py"));
    command.args([server.url().as_str(), server.grpc().as_str(), PASSWORD]);
    let run = program::finish(command, Duration::from_secs(120)).succeeded();
    assert!(run.stdout.trim_end().ends_with("all as expected"), "{run:#?}");
}
