//! What operators see of a process without asking anybody: its metrics, its lines about requests, its name in
//! PostgreSQL.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use serde_json::json;

use crate::support::{Client, Database, Server, Worker, on_both_databases, program, run, stable_port};

on_both_databases!(
    metrics_are_described_and_there_from_the_start,
    queues_and_pools_are_measured,
    traces_of_callers_are_taken_over,
    request_lines_say_who_and_how_much,
    made_up_methods_are_counted_as_one,
    slow_work_in_the_database_is_told,
);

/// The metrics that the page lists: name and type, and whether they are there from the start.
fn listed() -> Vec<(&'static str, &'static str, bool)> {
    let rows = include_str!("../../docs/metrics.md").lines().filter_map(|line| line.strip_prefix("| `"));
    rows.map(|row| {
        let cells: Vec<&str> = row.split(" | ").collect();
        (cells[0].trim_end_matches('`'), cells[1], cells[3].trim() == "yes")
    })
    .collect()
}

/// The value of a series, as its line begins.
fn value(text: &str, series: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok())
}

async fn metrics_are_described_and_there_from_the_start(database: Database) {
    let address = format!("127.0.0.1:{}", stable_port());
    let _server = Server::start_with(&database, &[("OPEN_SPANNER_METRICS_ADDR", &address)]);
    let metrics = Client::new(&format!("http://{address}"));
    metrics.get("/metrics").await.expect(200);
    let text = metrics.get("/metrics").await.expect(200).text;
    let all = listed();
    assert!(all.len() > 40, "{all:?}");
    for (name, kind, from_start) in &all {
        let is_there = text.contains(&format!("# TYPE {name} {kind}\n"));
        assert!(is_there || !from_start, "{name} is not there from the start:\n{text}");
        assert!(!is_there || text.contains(&format!("# HELP {name} ")), "{name} is not described");
    }
    let names: BTreeSet<&str> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    let unknown: Vec<_> =
        names.iter().filter(|name| !all.iter().any(|(listed, ..)| listed == *name)).collect();
    assert!(unknown.is_empty(), "docs/metrics.md does not list {unknown:?}");
    assert_eq!(value(&text, "open_spanner_ingest_queue_full_total"), Some(0.0));
    assert!(
        text.contains("open_spanner_build_info{version=\"") && text.contains("role=\"serve\"} 1"),
        "{text}"
    );
    assert!(value(&text, "process_resident_memory_bytes").is_some_and(|bytes| bytes > 1e6), "{text}");
    assert!(value(&text, "process_open_fds").is_some_and(|count| count > 5.0), "{text}");
}

/// Of methods that callers make up there is no end, and each would be a series for ever.
async fn made_up_methods_are_counted_as_one(database: Database) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let address = format!("127.0.0.1:{}", stable_port());
    let server = Server::start_with(&database, &[("OPEN_SPANNER_METRICS_ADDR", &address)]);
    let http = server.http().to_owned();
    for at in 0..20 {
        let mut caller = tokio::net::TcpStream::connect(&http).await.expect("a connection");
        let request = format!("FROB{at} /v1/meters HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        caller.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        caller.read_to_string(&mut answer).await.expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    let text = Client::new(&format!("http://{address}")).get("/metrics").await.expect(200).text;
    assert!(!text.contains("FROB"), "{text}");
    let counted: f64 = text
        .lines()
        .filter(|line| {
            line.starts_with("open_spanner_http_server_request_duration_seconds_count")
                && line.contains("method=\"other\"")
        })
        .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
        .sum();
    assert_eq!(counted, 20.0, "{text}");
}

async fn queues_and_pools_are_measured(database: Database) {
    let directory = tempfile::tempdir().expect("a directory");
    let own = database.settings();
    let settings: Vec<(&str, &str)> = own.iter().map(|(name, value)| (*name, value.as_str())).collect();
    program::run(&["migrate"], &settings, directory.path()).succeeded();
    database.execute(
        "INSERT INTO dead_letters (id, workspace_id, queue, key, payload, attempts, last_error, created_at)
         VALUES ('1', 1, 'export', 'k', '{}', 3, 'broken', 1)",
    );
    database.execute("INSERT INTO chores (name, done_at, findings) VALUES ('backup', 5000000, 0)");
    database.execute("INSERT INTO chores (name, done_at, findings) VALUES ('self_check', 7000000, 2)");
    // a worker that was killed has it, and nobody else yet
    database.execute(
        "INSERT INTO jobs (queue, key, workspace_id, payload, generation, run_after, attempts, leased_until, created_at)
         VALUES ('alerts', 'k', 1, '{}', 0, 1, 1, 9000000000000000, 1)",
    );
    let months = if matches!(database, Database::Postgres { .. }) { 4.0 } else { 0.0 };
    let health = format!("127.0.0.1:{}", stable_port());
    let variable = [("OPEN_SPANNER_ENTITLEMENT_WORKER_HEALTH_ADDR", health.as_str())];
    let _worker = Worker::start("entitlement-worker", &database, directory.path(), &variable);
    let server = Server::start_with(&database, &[("OPEN_SPANNER_HTTP_METRICS", "true")]);
    server.workspace().await;
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let text = server.client().get("/metrics").await.expect(200).text;
        let worker = Client::new(&format!("http://{health}"));
        let of_worker = worker.send(reqwest::Method::GET, "/metrics", None).await;
        let of_worker = of_worker.map(|answer| answer.text).unwrap_or_default();
        let dead = "open_spanner_jobs{queue=\"export\",state=\"dead\"}";
        let is_measured = value(&text, dead) == Some(1.0)
            && value(&of_worker, dead) == Some(1.0)
            && value(&text, "open_spanner_database_bytes").is_some_and(|bytes| bytes > 10_000.0)
            && value(&text, "open_spanner_ingest_queue_limit") == Some(30_000.0)
            && [&text, &of_worker].into_iter().all(|text| {
                value(text, "open_spanner_backup_last_success_timestamp_seconds") == Some(5.0)
                    && value(text, "open_spanner_self_check_timestamp_seconds") == Some(7.0)
                    && value(text, "open_spanner_self_check_differences") == Some(2.0)
            })
            && value(&text, "open_spanner_evaluation_lag_seconds").is_some_and(|lag| lag > 1e9)
            && value(&text, "open_spanner_leases_expired_total{queue=\"alerts\"}") == Some(0.0)
            && value(&text, "open_spanner_partitions{state=\"attached\"}")
                .is_some_and(|count| count >= months)
            && value(&text, "open_spanner_retention_oldest_event_seconds") == Some(0.0)
            && text.contains("state=\"max\"}")
            && of_worker.contains("role=\"entitlement-worker\"");
        if is_measured {
            return;
        }
        assert!(Instant::now() < end, "not measured:\n{text}\n{of_worker}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

async fn traces_of_callers_are_taken_over(database: Database) {
    let server = Server::start_with(&database, &[("OPEN_SPANNER_LOG_REQUESTS", "all")]);
    let workspace = server.workspace().await;
    let traced = workspace
        .with("traceparent", format!("00-{TRACE}-00f067aa0ba902b7-01"))
        .with("x-request-id", "order-4711.retry-2");
    let answer = traced.get("/v1/meters").await.expect(200);
    assert_eq!(answer.header("x-request-id"), "order-4711.retry-2");
    let own = answer.header("traceparent");
    assert!(own.starts_with(&format!("00-{TRACE}-")) && !own.contains("00f067aa0ba902b7"), "{own}");
    let line = server.logged(&answer);
    assert_eq!((&line["trace_id"], &line["status"]), (&json!(TRACE), &json!(200)), "{line}");
    // what is no trace and no id of ours to repeat is as good as nothing
    let odd = workspace.with("traceparent", "00-nonsense").with("x-request-id", "a b\"c");
    let answer = odd.get("/v1/meters").await.expect(200);
    assert_eq!(answer.header("traceparent"), "");
    assert!(answer.header("x-request-id").len() == 36, "{answer:?}");
    assert!(server.logged(&answer).get("trace_id").is_none());
}

async fn request_lines_say_who_and_how_much(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    let body = json!({"name": "calls", "unit": "call"});
    let answer = workspace.post("/v1/meters", &body).await.expect(201);
    let line = server.logged(&answer);
    let sent = body.to_string().len();
    assert_eq!((&line["bytes_in"], &line["bytes_out"]), (&json!(sent), &json!(answer.text.len())), "{line}");
    assert!(line["principal"].as_str().is_some_and(|text| text.starts_with("key:")), "{line}");
    let answer = workspace.session.post("/v1/meters", &json!({"name": "n", "unit": "u"})).await.expect(201);
    let line = server.logged(&answer);
    assert!(line["principal"].as_str().is_some_and(|text| text.starts_with("user:")), "{line}");
}

/// By its name, with how long it took and how many statements it was, and nothing of what they held.
async fn slow_work_in_the_database_is_told(database: Database) {
    let server = Server::start_with(&database, &[("OPEN_SPANNER_LOG_SLOW_DATABASE", "1us")]);
    let workspace = server.workspace().await;
    workspace.post("/v1/meters", &json!({"name": "nobodys_business", "unit": "call"})).await.expect(201);
    let end = Instant::now() + Duration::from_secs(30);
    let line = loop {
        let lines = server.log();
        let parsed = lines.iter().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let mut slow = parsed.filter(|line| line["message"] == "slow work in the database");
        if let Some(line) = slow.find(|line| line["operation"] == "meters::add") {
            break line;
        }
        assert!(Instant::now() < end, "nothing was slow:\n{}", lines.join("\n"));
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert!(
        line["duration_ms"].is_u64() && line["statements"].as_u64().is_some_and(|count| count > 0),
        "{line}"
    );
    assert_eq!((&line["is_done"], &line["level"]), (&json!(true), &json!("INFO")), "{line}");
    assert!(!line.to_string().contains("nobodys_business"), "{line}");
}

#[test]
fn connections_say_what_they_are_for() {
    let database = Database::postgres();
    let _server = Server::start(&database);
    let names = database.lines(
        "SELECT DISTINCT application_name AS line FROM pg_stat_activity
         WHERE datname = current_database() AND application_name LIKE 'open-spanner%'",
    );
    assert_eq!(names, [concat!("open-spanner/serve/", env!("CARGO_PKG_VERSION"))]);
}

/// A migration that meets the locks of others gives way, says so, and is done when they are gone.
#[test]
fn migration_gives_way_to_those_who_hold_a_table() {
    run(async {
        let database = Database::postgres();
        let own = database.settings();
        let settings: Vec<(&str, &str)> = own.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let directory = tempfile::tempdir().expect("a directory");
        let here = |arguments: &[&str]| program::run(arguments, &settings, directory.path()).succeeded();
        here(&["migrate"]);
        here(&["migrate", "--revert", "1", "--yes-delete-data", &database.called()]);
        let mut holder = database.postgres_connection();
        holder
            .batch_execute("BEGIN; LOCK TABLE __diesel_schema_migrations IN EXCLUSIVE MODE")
            .expect("locked");
        let release = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_secs(4));
            holder.batch_execute("COMMIT").expect("released");
        });
        let migrated = here(&["migrate"]);
        release.join().expect("it does not panic");
        assert!(migrated.stderr.contains("gives way"), "{migrated:#?}");
        assert!(here(&["migrate", "--status"]).stdout.contains("applied 0001"));
    });
}
