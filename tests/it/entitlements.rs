//! States, events and snapshots, as the worker brings them up to date.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Client, Database, Server, on_both_databases};

on_both_databases!(plan_changes_move_states, every_limit_has_a_state, checks_look_at_every_limit);

const WORKERS: &[(&str, &str)] =
    &[("OPEN_SPANNER_SERVE_WORKERS", "on"), ("OPEN_SPANNER_ENTITLEMENT_WORKER_INTERVAL", "200ms")];

/// Asks until the answer satisfies.
async fn eventually(client: &Client, path: &str, what: &str, good: impl Fn(&Value) -> bool) -> Value {
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        let found = client.get(path).await.json(200);
        if good(&found) {
            return found;
        }
        assert!(Instant::now() < end, "{what}: {found}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn words(list: &Value, field: &str) -> Vec<String> {
    let items = list["items"].as_array().expect("a list");
    items.iter().map(|item| item[field].as_str().unwrap_or_default().to_owned()).collect()
}

async fn plan_changes_move_states(database: Database) {
    let server = Server::start_with(&database, WORKERS);
    let workspace = server.workspace().await;
    workspace.meter("m", "sum").await;
    let body = |limit: i64| json!({"name": "p", "limits": [{"meter": "m", "limit": limit}]});
    let plan = workspace.post("/v1/plans", &body(10)).await.json(201);
    workspace.put("/v1/plans/subjects/org", &json!({"plan_id": plan["id"]})).await.expect(200);
    let states = "/v1/entitlements/states?subject=org";
    eventually(&workspace, states, "an assignment is evaluated", |found| words(found, "state") == ["ok"])
        .await;
    workspace.post("/v1/usages", &json!({"meter": "m", "subject": "org", "quantity": 12})).await.expect(201);
    eventually(&workspace, states, "usage is", |found| words(found, "state") == ["exceeded"]).await;

    // a new version that changes nothing repeats no event and leaves one row
    let path = format!("/v1/plans/{}", plan["id"].as_str().expect("an id"));
    let plan = workspace.put(&path, &body(11)).await.json(200);
    let id = plan["id"].as_str().expect("an id").to_owned();
    eventually(&workspace, states, "a new version is", |found| words(found, "plan_id") == [id.clone()]).await;
    let events = "/v1/entitlements/events?subject=org";
    assert_eq!(words(&workspace.get(events).await.json(200), "type"), ["exceeded"]);

    // without new usage, a larger plan recovers and no plan leaves no state
    let path = format!("/v1/plans/{id}");
    workspace.put(&path, &body(100)).await.expect(200);
    eventually(&workspace, states, "a larger plan is", |found| words(found, "state") == ["ok"]).await;
    assert_eq!(words(&workspace.get(events).await.json(200), "type"), ["recovered", "exceeded"]);
    workspace.delete("/v1/plans/subjects/org").await.expect(204);
    eventually(&workspace, states, "an end is", |found| words(found, "state").is_empty()).await;
    let periods = workspace.get("/v1/entitlements/periods?subject=org").await.json(200);
    assert_eq!(
        (words(&periods, "state"), &periods["items"][0]["event_count"]),
        (vec!["ok".into()], &json!(1))
    );
}

async fn every_limit_has_a_state(database: Database) {
    let server = Server::start_with(&database, WORKERS);
    let workspace = server.workspace().await;
    workspace.meter("m", "sum").await;
    let limits = json!([{"meter": "m", "limit": 1000, "period": "day"}, {"meter": "m", "limit": 1, "period": "month"}]);
    let plan = workspace.post("/v1/plans", &json!({"name": "p", "limits": limits})).await.json(201);
    workspace.put("/v1/plans/subjects/org", &json!({"plan_id": plan["id"]})).await.expect(200);
    workspace.post("/v1/usages", &json!({"meter": "m", "subject": "org", "quantity": 2})).await.expect(201);
    let states = "/v1/entitlements/states?subject=org&state=exceeded";
    let found =
        eventually(&workspace, states, "the month", |found| words(found, "period") == ["month"]).await;
    assert_eq!(found["items"][0]["current"], json!(2));
    eventually(&workspace, "/v1/entitlements/states?state=ok", "the day", |found| {
        words(found, "period") == ["day"]
    })
    .await;
}

async fn checks_look_at_every_limit(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("m", "sum").await;
    let limits = json!([{"meter": "m", "limit": 1000, "period": "day"}, {"meter": "m", "limit": 1, "period": "month"}]);
    let plan = workspace.post("/v1/plans", &json!({"name": "p", "limits": limits})).await.json(201);
    workspace.put("/v1/plans/subjects/org", &json!({"plan_id": plan["id"]})).await.expect(200);
    workspace.post("/v1/usages", &json!({"meter": "m", "subject": "org", "quantity": 1})).await.expect(201);
    let check =
        workspace.post("/v1/entitlements/check", &json!({"subject": "org", "meter": "m"})).await.json(200);
    assert_eq!(
        (&check["allowed"], &check["period"], &check["limit"]),
        (&json!(false), &json!("month"), &json!(1))
    );
}
