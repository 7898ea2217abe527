//! `/ready` tells the truth about working: a server that cannot write is not ready, says why where only operators look,
//! and is ready again as soon as it can.

use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use serde_json::{Value, json};

use crate::support::client::{JUNE, NOON};
use crate::support::{Client, Database, Server, Worker, Workspace, on_both_databases, run, stable_port};

on_both_databases!(schema_that_is_gone_is_told, many_probes_cost_one_look, export_worker_that_cannot_write);

fn event(key: &str) -> Value {
    json!({"meter": "calls", "subject": "s", "quantity": 1, "timestamp": NOON, "idempotency_key": key})
}

/// A server with a meter, and the listener on which it tells its reasons.
async fn start(database: &Database) -> (Server, Workspace, Client) {
    let private = format!("127.0.0.1:{}", stable_port());
    let server = Server::start_with(database, &[("OPEN_SPANNER_METRICS_ADDR", &private)]);
    let workspace = server.workspace().await;
    workspace.meter("calls", "count").await;
    server.client().get("/ready").await.expect(204);
    let private = Client::new(&format!("http://{private}"));
    private.get("/ready").await.expect(204);
    (server, workspace, private)
}

/// Both listeners agree; the public one gives no reason.
async fn not_ready(server: &Server, private: &Client, kind: &str) {
    let end = Instant::now() + Duration::from_secs(3);
    loop {
        let answer = server.client().get("/ready").await;
        if answer.status == 503 {
            assert_eq!(answer.text, "", "strangers learn nothing");
            break;
        }
        assert!(Instant::now() < end, "still ready");
    }
    let reasons = private.get("/ready").await.json(503);
    assert_eq!(reasons["reasons"][0]["kind"], kind, "{reasons}");
    assert!(reasons["reasons"][0]["message"].as_str().is_some_and(|message| !message.is_empty()));
    server.client().get("/health").await.expect(204);
}

async fn ready_again(server: &Server) {
    let end = Instant::now() + Duration::from_secs(2);
    while server.client().get("/ready").await.status != 204 {
        assert!(Instant::now() < end, "not ready again");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[test]
fn read_only_postgres_is_told() {
    run(async {
        let database = Database::postgres();
        let (server, workspace, private) = start(&database).await;
        let Database::Postgres { name, .. } = &database else { unreachable!("made above") };
        let set = |value: &str| {
            let mut owner = database.postgres_connection();
            owner.batch_execute("SET default_transaction_read_only = off").expect("valid");
            owner
                .batch_execute(&format!(
                    "ALTER DATABASE {name} SET default_transaction_read_only = {value};
                     SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                     WHERE datname = '{name}' AND pid <> pg_backend_pid() AND '{value}' = 'on'"
                ))
                .expect("a superuser may");
        };
        set("on");
        not_ready(&server, &private, "read-only").await;
        let message = workspace.post("/v1/usages", &event("a")).await.error(503, "unavailable");
        assert!(message.contains("read-only"), "{message}");
        // connections that were told so when they began are not kept
        set("off");
        ready_again(&server).await;
        workspace.post("/v1/usages", &event("a")).await.expect(201);
        assert_eq!(workspace.total("calls").await, "1");
    });
}

async fn schema_that_is_gone_is_told(database: Database) {
    let (server, workspace, private) = start(&database).await;
    database.make("ALTER TABLE __diesel_schema_migrations RENAME TO away");
    not_ready(&server, &private, "schema").await;
    database.make("ALTER TABLE away RENAME TO __diesel_schema_migrations; ALTER TABLE meters RENAME TO away");
    ready_again(&server).await;
    workspace.post("/v1/meters", &json!({"name": "m", "unit": "u"})).await.try_again();
    database.make("ALTER TABLE away RENAME TO meters");
    workspace.post("/v1/meters", &json!({"name": "m", "unit": "u"})).await.expect(201);
}

async fn many_probes_cost_one_look(database: Database) {
    let server = Server::start(&database);
    let client = server.client();
    let began = Instant::now();
    let probes = (0..500).map(|_| client.get("/ready"));
    for answer in futures_util::future::join_all(probes).await {
        answer.expect(204);
    }
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}

#[test]
fn sqlite_file_that_moves_is_told() {
    run(async {
        let database = Database::sqlite();
        let (server, workspace, private) = start(&database).await;
        let Database::Sqlite { path, .. } = &database else { unreachable!("made above") };
        let aside = path.with_extension("aside");
        std::fs::rename(path, &aside).expect("the file is ours");
        not_ready(&server, &private, "replaced").await;
        workspace.post("/v1/usages", &event("a")).await.try_again();
        assert!(!path.exists(), "no empty database takes its place");
        std::fs::rename(&aside, path).expect("the file is ours");
        ready_again(&server).await;
        workspace.post("/v1/usages", &event("b")).await.expect(201);

        // another file under the same name is another database
        std::fs::copy(path, &aside).expect("a copy");
        std::fs::rename(&aside, path).expect("the file is ours");
        not_ready(&server, &private, "replaced").await;
        workspace.post("/v1/usages", &event("c")).await.try_again();
    });
}

#[test]
fn sqlite_that_somebody_locks_is_told() {
    run(async {
        let database = Database::sqlite();
        let (server, workspace, private) = start(&database).await;
        let mut holder = database.sqlite_connection();
        holder.batch_execute("BEGIN IMMEDIATE").expect("the lock is free");
        server.client().get("/ready").await.expect(204);
        let message =
            workspace.post("/v1/meters", &json!({"name": "m", "unit": "u"})).await.error(503, "unavailable");
        assert!(message.contains("locked"), "{message}");
        not_ready(&server, &private, "locked").await;
        holder.batch_execute("COMMIT").expect("the lock is ours");
        ready_again(&server).await;
    });
}

/// It takes no job that a healthy one could do, and is not ready.
async fn export_worker_that_cannot_write(database: Database) {
    let server = Server::start_with(&database, &[("OPEN_SPANNER_SERVE_WORKERS", "off")]);
    let workspace = server.workspace().await;
    workspace.meter("calls", "count").await;
    workspace.post("/v1/usages", &event("a")).await.expect(201);
    let directory = tempfile::tempdir().expect("a directory");
    let health = format!("127.0.0.1:{}", stable_port());
    let broken = [
        ("OPEN_SPANNER_EXPORT_STORAGE_PATH", "/proc/nope"),
        ("OPEN_SPANNER_EXPORT_WORKER_INTERVAL", "100ms"),
        ("OPEN_SPANNER_EXPORT_WORKER_HEALTH_ADDR", health.as_str()),
    ];
    let _broken = Worker::start("export-worker", &database, directory.path(), &broken);
    let probe = Client::new(&format!("http://{health}"));
    let end = Instant::now() + Duration::from_secs(30);
    let reasons = loop {
        match probe.send(reqwest::Method::GET, "/ready", None).await {
            Ok(answer) if answer.text.contains("storage") => break answer.json(503),
            _ => assert!(Instant::now() < end, "it does not say that its storage is broken"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(reasons.to_string().contains("/proc/nope"), "{reasons}");
    let query = json!({"meter": "calls", "from": JUNE.0, "to": JUNE.1});
    let made =
        workspace.post("/v1/exports", &json!({"kind": "usage_events", "query": query})).await.json(202);
    let path = format!("/v1/exports/{}", made["id"].as_str().expect("an id"));
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(workspace.get(&path).await.json(200)["status"], made["status"], "nobody took it");

    let storage = directory.path().join("exports").display().to_string();
    let healthy = [
        ("OPEN_SPANNER_EXPORT_STORAGE_PATH", storage.as_str()),
        ("OPEN_SPANNER_EXPORT_WORKER_INTERVAL", "100ms"),
    ];
    let _healthy = Worker::start("export-worker", &database, directory.path(), &healthy);
    loop {
        let export = workspace.get(&path).await.json(200);
        if export["status"] == "completed" {
            break;
        }
        assert_ne!(export["status"], "failed", "{export}");
        assert!(Instant::now() < end, "not exported: {export}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
