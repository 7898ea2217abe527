//! Lists of what happened: whole at every page size, and cleaned up in time.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Client, Database, Server, on_both_databases};

on_both_databases!(
    no_list_loses_rows_at_its_largest_page,
    pages_of_subjects_hold_still_under_writes,
    old_write_calls_are_deleted_in_batches,
    what_failed_outlives_the_clean_up,
    keys_are_forgotten_after_their_time,
    events_of_a_subject_come_newest_first,
    cursors_of_others_are_refused,
);

async fn pages(client: &Client, path: &str) -> Vec<Value> {
    let (mut rows, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = client.get(&format!("{path}&cursor={cursor}")).await.json(200);
        rows.extend(page["items"].as_array().expect("a list").clone());
        match page["next_cursor"].as_str() {
            Some(next) => cursor = next.to_string(),
            None => return rows,
        }
    }
}

async fn no_list_loses_rows_at_its_largest_page(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("calls", "sum").await;
    let event = |number: usize| json!({"meter": "calls", "subject": format!("s{number}"), "quantity": 1, "timestamp": "2026-06-01T00:00:00Z"});
    let events: Vec<Value> = (0..1001).map(event).collect();
    for chunk in events.chunks(1000) {
        workspace.post("/v1/usages/bulk", &json!(chunk)).await.expect(201);
    }
    // all have the same time, so only the name tells them apart
    let subjects = pages(&workspace, "/v1/subjects?limit=5000").await;
    let mut names: Vec<&str> = subjects.iter().filter_map(|row| row["subject"].as_str()).collect();
    assert_eq!(names.len(), 1001);
    assert!(names.is_sorted());
    names.dedup();
    assert_eq!(names.len(), 1001);

    let workspace_id = database.lines("SELECT CAST(id AS TEXT) AS line FROM workspaces").remove(0);
    let (run, is_dry) = match &database {
        Database::Sqlite { .. } => ("randomblob(16)", "1"),
        Database::Postgres { .. } => ("decode(md5(number::text), 'hex')", "true"),
    };
    database.lines(&format!(
        "INSERT INTO prune_runs (workspace_id, id, deleted, dry_run, meters, created_at)
         WITH RECURSIVE numbers (number) AS (SELECT 1 UNION ALL SELECT number + 1 FROM numbers WHERE number < 1001)
         SELECT {workspace_id}, {run}, number, {is_dry}, '[]', number FROM numbers"
    ));
    database.lines(&format!(
        "INSERT INTO ingestion_runs (workspace_id, id, kind, accepted, duplicates, failed, created_at)
         WITH RECURSIVE numbers (number) AS (SELECT 1 UNION ALL SELECT number + 1 FROM numbers WHERE number < 1001)
         SELECT {workspace_id}, {run}, 'single', number, 0, 0, number FROM numbers"
    ));
    assert_eq!(pages(&workspace, "/v1/usageevents/prunes?limit=1000").await.len(), 1001);
    assert_eq!(pages(&workspace, "/v1/usageingestions?limit=1000").await.len(), 1003);
    assert_eq!(workspace.get("/v1/system/stats").await.json(200)["prune_runs"], 1001);
}

/// Whoever is active moves to the front; everybody else is on exactly one page, in order.
async fn pages_of_subjects_hold_still_under_writes(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    for meter in ["a", "b"] {
        workspace.meter(meter, "sum").await;
    }
    let event = |meter: &str, subject: String, at: String| json!({"meter": meter, "subject": subject, "quantity": 1, "timestamp": at});
    // in each of 20 hours 15 subjects, some with one meter, some with the other, some with both; and their past
    let mut events = Vec::new();
    for n in 0..300 {
        let (day, hour, minute) = (10 + n / 24 % 20, n % 20, n % 7);
        let last = if n % 3 == 0 { "a" } else { "b" };
        events.push(event(last, format!("s{n:03}"), format!("2026-06-{day:02}T{hour:02}:{minute:02}:00Z")));
        events.push(event("a", format!("s{n:03}"), format!("2026-06-0{}T{hour:02}:00:00Z", 1 + n % 9)));
    }
    workspace.post("/v1/usages/bulk", &json!(events)).await.expect(201);
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    for round in 0.. {
        let page = workspace.get(&format!("/v1/subjects?limit=20&cursor={cursor}")).await.json(200);
        seen.extend(page["items"].as_array().expect("a list").iter().cloned());
        // somebody new, somebody who was on a page already, and a late event of somebody who was not
        let newer = format!("2026-07-01T{:02}:30:00Z", round % 24);
        workspace.post("/v1/usages", &event("b", format!("new{round}"), newer.clone())).await.expect(201);
        let known = seen[0]["subject"].as_str().expect("a name").to_string();
        workspace.post("/v1/usages", &event("a", known, newer)).await.expect(201);
        workspace
            .post("/v1/usages", &event("a", "s000".into(), "2026-05-01T00:00:00Z".into()))
            .await
            .expect(201);
        match page["next_cursor"].as_str() {
            Some(next) => cursor = next.to_string(),
            None => break,
        }
    }
    let names: BTreeSet<&str> = seen.iter().filter_map(|row| row["subject"].as_str()).collect();
    assert_eq!((seen.len(), names.len()), (300, 300), "each once");
    let place = |row: &Value| {
        (
            std::cmp::Reverse(row["last_event_at"].as_str().expect("a time").to_string()),
            row["subject"].to_string(),
        )
    };
    assert!(seen.is_sorted_by_key(place), "newest first, then by name");
}

async fn old_write_calls_are_deleted_in_batches(database: Database) {
    let settings = [
        ("OPEN_SPANNER_OPERATIONAL_HISTORY_RETENTION", "2s"),
        ("OPEN_SPANNER_OPERATIONAL_HISTORY_INTERVAL", "200ms"),
        ("OPEN_SPANNER_OPERATIONAL_HISTORY_BATCH_SIZE", "2"),
    ];
    let server = Server::start_with(&database, &settings);
    let workspaces = [server.workspace().await, server.workspace().await];
    for workspace in &workspaces {
        workspace.meter("calls", "sum").await;
        for _ in 0..5 {
            let event = json!({"meter": "calls", "subject": "s", "quantity": 1});
            workspace.post("/v1/usages", &event).await.expect(201);
        }
        workspace.post_text("/v1/usageevents/prune", "").await.expect(200);
    }
    let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while database.count("ingestion_runs") > 0 {
        assert!(std::time::Instant::now() < end, "{} left", database.count("ingestion_runs"));
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    for workspace in &workspaces {
        assert_eq!(workspace.get("/v1/usageingestions").await.json(200)["items"], json!([]));
        assert_eq!(workspace.get("/v1/system/stats").await.json(200)["usage_events"], 5, "events stay");
        assert_eq!(workspace.get("/v1/system/stats").await.json(200)["prune_runs"], 1, "prunes stay");
    }
}

/// Delivered alerts with their attempts and exports that are over go; dead letters and the young stay.
async fn what_failed_outlives_the_clean_up(database: Database) {
    let settings = [
        ("OPEN_SPANNER_OPERATIONAL_HISTORY_RETENTION", "1h"),
        ("OPEN_SPANNER_OPERATIONAL_HISTORY_INTERVAL", "200ms"),
        ("OPEN_SPANNER_OPERATIONAL_HISTORY_BATCH_SIZE", "2"),
    ];
    let server = Server::start(&database);
    server.workspace().await;
    drop(server);
    let workspace_id = database.lines("SELECT CAST(id AS TEXT) AS line FROM workspaces").remove(0);
    let young = open_spanner::metering::time::Timestamp::now().0;
    let deliveries = [
        ("old", "delivered", "1000"),
        ("older", "delivered", "1"),
        ("oldest", "delivered", "0"),
        ("dead", "dead_letter", "NULL"),
    ];
    let young_one = ("young", "delivered", young.to_string());
    let all = deliveries.map(|(id, status, at)| (id, status, at.to_string())).into_iter().chain([young_one]);
    for (id, status, at) in all {
        database.lines(&format!(
            "INSERT INTO alert_deliveries (public_id, workspace_id, rule_id, event_id, destination_id, payload, status,
                                           attempts, next_attempt_at, created_at, updated_at, delivered_at)
             VALUES ('{id}', {workspace_id}, 1, '{id}', 'd', '{{}}', '{status}', 1, 0, 0, 0, {at})"
        ));
        database.lines(&format!(
            "INSERT INTO alert_attempts (public_id, delivery_id, event_id, status, duration_ms, attempted_at)
             SELECT public_id, id, event_id, 'delivered', 1, 0 FROM alert_deliveries WHERE public_id = '{id}'"
        ));
    }
    for (id, status, completed_at, expired_at) in [
        ("gone", "completed", 1, "5"),
        ("there", "completed", 1, "NULL"),
        ("failed", "failed", 1, "NULL"),
        ("canceled", "canceled", 1, "NULL"),
        ("young", "failed", young, "NULL"),
    ] {
        database.lines(&format!(
            "INSERT INTO export_jobs (id, workspace_id, kind, status, query, row_count, created_at, updated_at,
                                      completed_at, expired_at)
             VALUES ('{id}', {workspace_id}, 'usage_events', '{status}', '{{}}', 0, 0, 0, {completed_at}, {expired_at})"
        ));
    }
    let _server = Server::start_with(&database, &settings);
    let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while database.count("alert_deliveries") > 2 || database.count("export_jobs") > 2 {
        assert!(std::time::Instant::now() < end, "nothing is deleted");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    let left = database.lines("SELECT public_id AS line FROM alert_deliveries ORDER BY public_id");
    assert_eq!(left, ["dead", "young"]);
    assert_eq!(database.count("alert_attempts"), 2);
    assert_eq!(database.lines("SELECT id AS line FROM export_jobs ORDER BY id"), ["there", "young"]);
}

async fn events_of_a_subject_come_newest_first(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("calls", "sum").await;
    for (subject, day) in [("ten:west", 3), ("ten:west", 9), ("other", 5), ("ten:west", 6)] {
        let at = format!("2026-06-0{day}T00:00:00Z");
        let event = json!({"meter": "calls", "subject": subject, "quantity": day, "timestamp": at});
        workspace.post("/v1/usages", &event).await.expect(201);
    }
    for path in ["/v1/subjects/ten:west/usageevents", "/v1/subjects/ten%3Awest/usageevents"] {
        let events = workspace.get(path).await.json(200);
        let events = events.as_array().expect("a plain array");
        let days: Vec<&Value> = events.iter().map(|event| &event["quantity"]).collect();
        assert_eq!(days, [9, 6, 3], "{path}");
    }
    let one = workspace.get("/v1/subjects/ten:west/usageevents?limit=1").await.json(200);
    assert_eq!(one.as_array().map(Vec::len), Some(1));
    assert_eq!(workspace.get("/v1/subjects/nobody/usageevents").await.json(200), json!([]));
    let stranger = server.workspace().await;
    assert_eq!(stranger.get("/v1/subjects/ten:west/usageevents").await.json(200), json!([]));
    workspace.get("/v1/subjects/-x/usageevents").await.error(400, "invalid_input");
}

async fn cursors_of_others_are_refused(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    for path in ["/v1/subjects", "/v1/usageingestions", "/v1/usageevents/prunes", "/v1/meters/stats"] {
        workspace.get(&format!("{path}?cursor=%21")).await.error(400, "invalid_input");
        workspace.get(&format!("{path}?cursor=e30")).await.json(200);
        workspace.get(&format!("{path}?limit=0")).await.error(400, "invalid_limit");
    }
    // {"id":"x","time":"x"}
    for path in ["/v1/subjects", "/v1/usageingestions", "/v1/usageevents/prunes"] {
        let path = format!("{path}?cursor=eyJpZCI6IngiLCJ0aW1lIjoieCJ9");
        workspace.get(&path).await.error(400, "invalid_input");
    }
}

/// Of events that came here; and never by default.
async fn keys_are_forgotten_after_their_time(database: Database) {
    const OFTEN: (&str, &str) = ("OPEN_SPANNER_OPERATIONAL_HISTORY_INTERVAL", "50ms");
    let mut server = Server::start_with(&database, &[OFTEN]);
    let ws = server.workspace().await;
    ws.meter("m", "sum").await;
    let event = |key: &str| json!({"meter": "m", "subject": "s", "quantity": 1, "timestamp": "2020-01-01T00:00:00Z", "idempotency_key": key});
    for key in ["a-old", "b-foreign", "c-new"] {
        ws.post("/v1/usages", &event(key)).await.expect(201);
    }
    // as if it had come long ago, and as if another program had made the id
    age(&database, "a-old", "018000000000700080000000000000aa");
    age(&database, "b-foreign", "018000000000400080000000000000bb");
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(database.count("idempotency_keys"), 3, "keys are known for ever");
    server.terminate();

    let server = Server::start_with(&database, &[OFTEN, ("OPEN_SPANNER_IDEMPOTENCY_KEY_RETENTION", "24h")]);
    let end = Instant::now() + Duration::from_secs(20);
    while database.count("idempotency_keys") > 2 {
        assert!(Instant::now() < end, "no key is forgotten");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let ws = ws.at(&server.url());
    for key in ["a-old", "b-foreign", "c-new"] {
        ws.post("/v1/usages", &event(key)).await.expect(201);
    }
    assert_eq!(database.count("events"), 4, "only what was forgotten counts again");
}

/// Gives an event another id, in the ledger only.
fn age(database: &Database, key: &str, id: &str) {
    let (tables, quoted): (&[&str], fn(&str) -> String) = match database {
        Database::Sqlite { .. } => (&["settled_keys", "recent_keys"], |hex| format!("x'{hex}'")),
        Database::Postgres { .. } => (&["idempotency_keys"], |hex| format!("'\\x{hex}'::bytea")),
    };
    let hex = if matches!(database, Database::Sqlite { .. }) { "hex(id)" } else { "encode(id, 'hex')" };
    let old = database.lines(&format!("SELECT {hex} AS line FROM events WHERE idempotency_key = '{key}'"));
    for table in tables {
        let (new, old) = (quoted(id), quoted(&old[0]));
        database.execute(&format!("UPDATE {table} SET event_id = {new} WHERE event_id = {old}"));
    }
}
