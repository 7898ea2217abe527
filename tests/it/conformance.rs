//! The conformance suite of the wire contract, when it is beside this repository (or where
//! `OPEN_SPANNER_CONFORMANCE` says): black-box cases in Python that know nothing of this server.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use crate::support::{Database, Server, Worker, env, on_both_databases, program, skip};

on_both_databases!(contract_holds);

/// The parts of the contract that are built.
const AREAS: &[&str] = &[
    "auth",
    "api_keys_scopes",
    "workspaces_isolation",
    "meters",
    "usage_write",
    "usage_bulk_idempotency",
    "usage_buckets",
    "export_jobs",
    "usage_events",
    "breakdowns_dimensions",
    "csv_exports",
    "subjects_stats_ingestions_prune",
    "saved_queries",
    "system_health",
    "errors",
    "plans_entitlements",
    "alerts_webhooks",
    "grpc",
];

/// Routes that are not there yet: a case may fail on "404 page not found" from a path that begins like this. When
/// no case does any more, the line must go.
const MISSING_ROUTES: &[&str] = &[];

/// Cases (by the beginning of their names) that may fail for another missing part. When none does, the line must go.
const MISSING_PARTS: &[(&str, &str)] = &[];

fn suite() -> PathBuf {
    let beside = || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/conformance"));
    env("OPEN_SPANNER_CONFORMANCE").map_or_else(beside, PathBuf::from)
}

async fn contract_holds(database: Database) {
    let suite = suite();
    if !suite.join("run.py").exists() {
        return skip("contract_holds", &format!("no conformance suite in {}", suite.display()));
    }
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
    let server = Server::start_with(&database, &settings);
    let roles: &[&str] = match database {
        Database::Postgres { .. } => &["export-worker", "alert-worker"],
        _ => &[],
    };
    let _workers: Vec<Worker> =
        roles.iter().map(|role| Worker::start(role, &database, folder.path(), &settings)).collect();
    // the area grpc needs packages that the environment of the client has
    let client_python = crate::sdk::python();
    let python = if client_python.exists() { client_python } else { PathBuf::from("python3") };
    let mut command = Command::new(python);
    command.arg(suite.join("run.py")).args(["--http", &server.url(), "--wait-scale", "3", "--jobs", "3"]);
    command.args(["--grpc", &server.grpc()]);
    command.args(AREAS.iter().flat_map(|area| ["--only", area]));
    // the suite may be in a directory that is not ours
    command.env("PYTHONDONTWRITEBYTECODE", "1");
    let run = program::finish(command, Duration::from_secs(600));

    let failed = run.stdout.lines().filter(|line| line.starts_with("FAIL"));
    let (excused, wrong): (Vec<&str>, Vec<&str>) = failed.partition(|line| excuse(line).is_some());
    let used: BTreeSet<&str> = excused.into_iter().filter_map(excuse).collect();
    assert!(wrong.is_empty(), "{} cases fail:\n{}", wrong.len(), wrong.join("\n"));
    let passed = run.stdout.lines().filter(|line| line.starts_with("PASS")).count();
    assert!(passed > 300, "the suite ran: {run:#?}");
    let rules = MISSING_ROUTES.iter().chain(MISSING_PARTS.iter().map(|(case, _)| case));
    let stale: Vec<_> = rules.filter(|rule| !used.contains(*rule)).collect();
    assert!(stale.is_empty(), "nothing fails for these any more, take them off the list: {stale:?}");
}

/// Why this case may fail, if it may.
fn excuse(line: &str) -> Option<&'static str> {
    let case = line.strip_prefix("FAIL")?.trim_start();
    let part =
        MISSING_PARTS.iter().map(|(beginning, _)| *beginning).find(|beginning| case.starts_with(beginning));
    let route = MISSING_ROUTES.iter().copied().find(|path| {
        let beginnings =
            [format!("GET {path}"), format!("POST {path}"), format!("PUT {path}"), format!("DELETE {path}")];
        line.contains(" -> 404 404 page not found") && beginnings.iter().any(|call| line.contains(call))
    });
    part.or(route)
}
