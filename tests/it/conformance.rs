//! The conformance suite of the wire contract (`tests/conformance`): black-box cases in Python that know nothing of how
//! this server is built. It always runs, and whole. `OPEN_SPANNER_CONFORMANCE` names a second suite of the same shape.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::support::{Database, Server, Worker, env, on_both_databases, program};

on_both_databases!(contract_holds, another_suite_holds);

async fn contract_holds(database: Database) {
    holds(&database, Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/conformance")));
}

async fn another_suite_holds(database: Database) {
    if let Some(suite) = env("OPEN_SPANNER_CONFORMANCE") {
        holds(&database, &PathBuf::from(suite));
    }
}

fn holds(database: &Database, suite: &Path) {
    // workers as the product has them: inside the server on SQLite, processes of their own on PostgreSQL
    let folder = tempfile::tempdir().expect("a directory");
    let storage = folder.path().join("exports").display().to_string();
    let settings = [
        ("OPEN_SPANNER_EXPORT_STORAGE_PATH", storage.as_str()),
        ("OPEN_SPANNER_EXPORT_WORKER_HEALTH_ADDR", "127.0.0.1:0"),
        ("OPEN_SPANNER_ALERT_WORKER_HEALTH_ADDR", "127.0.0.1:0"),
        ("OPEN_SPANNER_ALERT_WORKER_INTERVAL", "500ms"),
        ("OPEN_SPANNER_WEBHOOK_ALLOWED_NETWORKS", "127.0.0.0/8"),
    ];
    let server = Server::start_with(database, &settings);
    let roles: &[&str] = match database {
        Database::Postgres { .. } => &["export-worker", "alert-worker"],
        _ => &[],
    };
    let _workers: Vec<Worker> =
        roles.iter().map(|role| Worker::start(role, database, folder.path(), &settings)).collect();
    let mut command = Command::new(crate::sdk::python());
    command.arg(suite.join("run.py")).args(["--http", &server.url(), "--grpc", &server.grpc()]);
    command.args(["--wait-scale", "3", "--jobs", "3"]);
    // the suite may be in a directory that is not ours
    command.env("PYTHONDONTWRITEBYTECODE", "1");
    let run = program::finish(command, Duration::from_secs(600));

    let of = |outcome: &str| -> Vec<&str> {
        run.stdout.lines().filter(|line| line.starts_with(outcome)).collect()
    };
    assert!(of("FAIL").is_empty(), "{} cases fail:\n{}", of("FAIL").len(), of("FAIL").join("\n"));
    assert!(of("SKIP").is_empty(), "{} cases were skipped:\n{}", of("SKIP").len(), of("SKIP").join("\n"));
    assert!(of("PASS").len() > 300 && run.code == Some(0), "the suite ran to its end: {run:#?}");
}
