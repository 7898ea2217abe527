//! The official Python client, unchanged, against the real server: the script is `tests/python/sdk_usage.py`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::support::client::PASSWORD;
use crate::support::{Database, Server, env, on_both_databases, program, skip};

on_both_databases!(python_client_meters_writes_and_reads);

/// The interpreter of the environment that `scripts/test` makes beside the build.
fn python() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("tmp is inside the target directory");
    target.join("python/bin/python")
}

async fn python_client_meters_writes_and_reads(database: Database) {
    if env("OPEN_SPANNER_TEST_SKIP_PYTHON").as_deref() == Some("1") {
        return skip("python_client_meters_writes_and_reads", "OPEN_SPANNER_TEST_SKIP_PYTHON=1");
    }
    let python = python();
    assert!(
        python.exists(),
        "{} is missing: run scripts/test once, it installs the client",
        python.display()
    );
    let server = Server::start(&database);
    let mut command = Command::new(python);
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python/sdk_usage.py"));
    command.args([server.url().as_str(), PASSWORD]);
    let run = program::finish(command, Duration::from_secs(120)).succeeded();
    assert!(run.stdout.trim_end().ends_with("all as expected"), "{run:#?}");
}
