//! The conformance suite of the wire contract, when it is beside this repository (or where
//! `OPEN_SPANNER_CONFORMANCE` says): black-box cases in Python that know nothing of this server.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use crate::support::{Database, Server, env, on_both_databases, program, skip};

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
    "system_health",
];

/// Cases that may fail, each with the reason: they need a part that is not built yet. A case that passes must go.
const NOT_YET: &[(&str, &str)] = &[];

fn suite() -> PathBuf {
    let beside = || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/conformance"));
    env("OPEN_SPANNER_CONFORMANCE").map_or_else(beside, PathBuf::from)
}

async fn contract_holds(database: Database) {
    let suite = suite();
    if !suite.join("run.py").exists() {
        return skip("contract_holds", &format!("no conformance suite in {}", suite.display()));
    }
    let server = Server::start(&database);
    let mut command = Command::new("python3");
    command.arg(suite.join("run.py")).args(["--http", &server.url(), "--wait-scale", "3", "--jobs", "3"]);
    command.args(AREAS.iter().flat_map(|area| ["--only", area]));
    // the suite may be in a directory that is not ours
    command.env("PYTHONDONTWRITEBYTECODE", "1");
    let run = program::finish(command, Duration::from_secs(600));

    let failed: BTreeSet<&str> = run.stdout.lines().filter_map(|line| case_of(line, "FAIL")).collect();
    let passed: BTreeSet<&str> = run.stdout.lines().filter_map(|line| case_of(line, "PASS")).collect();
    let excused: BTreeSet<&str> = NOT_YET.iter().map(|(case, _)| *case).collect();
    let wrong: Vec<&str> = failed.difference(&excused).copied().collect();
    let lines: Vec<&str> =
        run.stdout.lines().filter(|line| wrong.iter().any(|case| line.contains(case))).collect();
    assert!(wrong.is_empty(), "{} cases fail:\n{}", wrong.len(), lines.join("\n"));
    let stale: Vec<_> = passed.intersection(&excused).collect();
    assert!(stale.is_empty(), "these cases pass: take them off the list: {stale:?}");
    assert!(passed.len() > 100, "the suite ran: {run:#?}");
}

/// `PASS  area.case (12 ms)` → `area.case`
fn case_of<'a>(line: &'a str, outcome: &str) -> Option<&'a str> {
    let rest = line.strip_prefix(outcome)?.trim_start();
    Some(rest.split_once(" (").map_or(rest, |(case, _)| case))
}
