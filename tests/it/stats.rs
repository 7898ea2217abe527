//! `GET /v1/system/stats`: totals, what was cleaned up, and how workers and their queues are.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::client::NOON;
use crate::support::{Database, Server, Worker, Workspace, on_both_databases};

on_both_databases!(
    totals_are_kept_of_what_came_and_went,
    workers_and_their_queues_are_seen,
    metrics_are_on_the_port_of_the_api_when_asked_for,
);

const OFF: (&str, &str) = ("OPEN_SPANNER_SERVE_WORKERS", "off");

async fn stats(workspace: &Workspace) -> Value {
    workspace.get("/v1/system/stats").await.json(200)
}

fn worker<'a>(stats: &'a Value, name: &str) -> &'a Value {
    let all = stats["worker_health"].as_array().expect("a list");
    all.iter().find(|worker| worker["name"] == name).expect("it is listed")
}

async fn eventually(workspace: &Workspace, what: &str, good: impl Fn(&Value) -> bool) -> Value {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let found = stats(workspace).await;
        if good(&found) {
            return found;
        }
        assert!(Instant::now() < end, "{what}: {found:#}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn totals_are_kept_of_what_came_and_went(database: Database) {
    let settings = [
        OFF,
        ("OPEN_SPANNER_CONSUMPTION_DECISION_RETENTION", "2s"),
        ("OPEN_SPANNER_OPERATIONAL_HISTORY_INTERVAL", "300ms"),
        ("OPEN_SPANNER_OPERATIONAL_HISTORY_BATCH_SIZE", "2"),
        ("OPEN_SPANNER_INGESTION_RATE_LIMIT_EVENTS", "20"),
        ("OPEN_SPANNER_INGESTION_RATE_LIMIT_WINDOW", "240h"),
    ];
    let mut server = Server::start_with(&database, &settings);
    let workspace = server.workspace().await;
    let empty = stats(&workspace).await;
    for counter in ["meters", "consumption_decisions", "decision_prune_runs", "export_cleanup_runs"] {
        assert_eq!(empty[counter], json!(0), "{counter}");
    }
    for last in
        ["last_prune_run", "last_decision_prune_run", "last_export_cleanup_run", "last_reconciliation_run"]
    {
        assert_eq!(empty.get(last), Some(&Value::Null), "{last}");
    }
    assert_eq!(
        empty["ingestion_safety"],
        json!({"accepted_events": 0, "rejected_events": 0, "throttled_events": 0})
    );

    workspace.meter("m", "sum").await;
    let event = |meter: &str| json!({"meter": meter, "subject": "s", "quantity": 1, "timestamp": NOON});
    workspace.post("/v1/usages/bulk", &json!([event("m"), event("m"), event("x")])).await.expect(201);
    workspace.post("/v1/usages", &event("x")).await.expect(404);
    for key in ["a", "b", "c"] {
        let body = json!({"idempotency_key": key, "meter": "m", "subject": "s", "quantity": 1});
        workspace.post("/v1/entitlements/consume", &body).await.expect(201);
    }
    assert_eq!(stats(&workspace).await["ingestion_safety"]["accepted_events"], json!(5));
    let many: Vec<Value> = (0..16).map(|_| event("m")).collect();
    workspace.post("/v1/usages/bulk", &json!(many)).await.expect(429);
    // what pruning takes from usage_events was accepted all the same
    workspace.post_text("/v1/usageevents/prune", "").await.expect(200);
    let after = stats(&workspace).await;
    assert_eq!((&after["usage_events"], &after["prune_runs"]), (&json!(3), &json!(1)));

    let pruned =
        eventually(&workspace, "decisions are pruned", |now| now["consumption_decisions"] == 0).await;
    let run =
        eventually(&workspace, "and it is recorded", |now| !now["last_decision_prune_run"].is_null()).await;
    assert!(run["decision_prune_runs"].as_i64() >= Some(1) && pruned["consumption_decisions"] == 0);
    let run = &run["last_decision_prune_run"];
    assert!(run["id"].is_string() && run["before"].is_string() && run["created_at"].is_string(), "{run}");
    assert!(run["deleted"].as_i64() >= Some(1) && run["dry_run"] == json!(false), "{run}");
    let sum = "SELECT CAST(SUM(deleted) AS TEXT) AS line FROM decision_prune_runs";
    eventually(&workspace, "nothing is pruned unseen", |_| database.lines(sum) == ["3"]).await;

    let safety = json!({"accepted_events": 5, "rejected_events": 2, "throttled_events": 16});
    eventually(&workspace, "refusals are written down", |now| now["ingestion_safety"] == safety).await;
    // what is kept of an export clean-up is told
    database.execute(
        "INSERT INTO export_cleanup_runs SELECT 'e1', id, 1000000, 2, 300, 1, 2000000 FROM workspaces;
         INSERT INTO export_cleanup_runs SELECT 'e2', id, 3000000, 4, 500, 0, 4000000 FROM workspaces",
    );
    let found = stats(&workspace).await;
    assert_eq!(found["export_cleanup_runs"], json!(2));
    assert_eq!(
        found["last_export_cleanup_run"],
        json!({"id": "e2", "expired_before": "1970-01-01T00:00:03Z", "files_deleted": 4, "bytes_reclaimed": 500,
               "failures": 0, "created_at": "1970-01-01T00:00:04Z"})
    );

    // and on the way out
    workspace.post("/v1/usages", &event("x")).await.expect(404);
    server.terminate();
    let total = database.lines("SELECT CAST(SUM(rejected_events) AS TEXT) AS line FROM ingestion_refusals");
    assert_eq!(total, ["3"]);
}

async fn metrics_are_on_the_port_of_the_api_when_asked_for(database: Database) {
    let server = Server::start_with(&database, &[OFF]);
    server.client().get("/metrics").await.expect(404);
    drop(server);
    let server = Server::start_with(&database, &[OFF, ("OPEN_SPANNER_HTTP_METRICS", "true")]);
    // rollups are whole as soon as there is a meter
    let workspace = server.workspace().await;
    workspace.meter("calls", "sum").await;
    let health = stats(&workspace).await["rollup_health"].clone();
    assert_eq!((&health["status"], &health["meters"]), (&json!("healthy"), &json!(1)), "{health}");
    let item = &health["items"][0];
    assert_eq!((&item["meter"], &item["status"]), (&json!("calls"), &json!("healthy")), "{item}");
    let text = server.client().get("/metrics").await.expect(200).text;
    assert!(text.contains("open_spanner_db_statements_total"), "{text}");
}

async fn workers_and_their_queues_are_seen(database: Database) {
    let server = Server::start_with(&database, &[OFF]);
    let workspace = server.workspace().await;
    let found = stats(&workspace).await;
    let names: Vec<&str> = found["worker_health"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|w| w["name"].as_str())
        .collect();
    assert_eq!(
        names,
        ["export", "alert", "entitlement", "retention", "reconciliation", "webhook", "history"]
    );
    for (name, status) in
        [("export", "not_started"), ("retention", "disabled"), ("reconciliation", "disabled")]
    {
        assert_eq!(worker(&found, name)["status"], json!(status), "{name}");
    }
    let history = |now: &Value| worker(now, "history")["status"] == "healthy";
    eventually(&workspace, "the server's own timer beats", history).await;

    // work without workers waits
    workspace.meter("m", "sum").await;
    let plan = json!({"name": "p", "limits": [{"meter": "m", "limit": 10}]});
    let plan = workspace.post("/v1/plans", &plan).await.json(201);
    workspace.put("/v1/plans/subjects/s", &json!({"plan_id": plan["id"]})).await.expect(200);
    let found = stats(&workspace).await;
    let waiting = worker(&found, "entitlement");
    assert_eq!((&waiting["pending_jobs"], &waiting["status"]), (&json!(1), &json!("not_started")));
    assert!(waiting["oldest_pending_at"].is_string(), "{waiting}");
    let stranger = server.workspace().await;
    let others = stats(&stranger).await;
    assert_eq!(worker(&others, "entitlement")["pending_jobs"], json!(0), "jobs of others are not told");

    // one that runs
    let folder = tempfile::tempdir().expect("a directory");
    let mut first = Worker::start("entitlement-worker", &database, folder.path(), &[]);
    let found = eventually(&workspace, "the worker did it", |now| {
        let it = worker(now, "entitlement");
        it["status"] == "healthy" && it["pending_jobs"] == 0
    })
    .await;
    let alive = worker(&found, "entitlement");
    assert_eq!((&alive["replica_count"], &alive["healthy_replicas"]), (&json!(1), &json!(1)), "{alive}");
    assert_eq!(alive["instances"][0]["status"], json!("healthy"), "{alive}");
    // killed, it stays as a replica that is silent; one that stops goes
    first.kill();
    database.execute("UPDATE worker_instances SET last_heartbeat_at = last_heartbeat_at - 31000000 WHERE worker = 'entitlement'");
    let found = stats(&workspace).await;
    assert_eq!(worker(&found, "entitlement")["status"], json!("stale"));
    let mut second = Worker::start("entitlement-worker", &database, folder.path(), &[]);
    let found =
        eventually(&workspace, "another came", |now| worker(now, "entitlement")["status"] == "healthy").await;
    let both = worker(&found, "entitlement");
    assert_eq!((&both["replica_count"], &both["stale_replicas"]), (&json!(2), &json!(1)), "{both}");
    assert_eq!(second.terminate().code(), Some(0));
    assert_eq!(worker(&stats(&workspace).await, "entitlement")["replica_count"], json!(1), "it said goodbye");

    // failures are seen
    database.execute(
        "INSERT INTO dead_letters (id, workspace_id, queue, key, payload, attempts, last_error, created_at)
         SELECT 'd', workspace_id, 'entitlements', '1/1', '{}', 3, 'no', 1 FROM meters",
    );
    let found = stats(&workspace).await;
    assert_eq!(worker(&found, "entitlement")["failed_jobs"], json!(1));
    assert_eq!(worker(&stats(&stranger).await, "entitlement")["failed_jobs"], json!(0));
}
