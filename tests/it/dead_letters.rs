//! `/v1/system/workers/dead-letters`: jobs that were given up are seen by their workspace, and queued anew by its wish.

use serde_json::{Value, json};

use crate::support::{Database, Server, on_both_databases};

on_both_databases!(
    dead_letters_of_what_is_gone_stay_dead,
    the_newest_are_listed_first,
    dead_letters_are_the_workspaces_own
);

const OFF: (&str, &str) = ("OPEN_SPANNER_SERVE_WORKERS", "off");
const PATH: &str = "/v1/system/workers/dead-letters";

/// A dead letter of the workspace as a worker would have left it; returns the path that retries it.
fn bury(database: &Database, queue: &str, payload: &str) -> String {
    let id = uuid::Uuid::now_v7();
    database.execute(&format!(
        "INSERT INTO dead_letters (id, workspace_id, queue, key, payload, attempts, last_error, created_at)
         SELECT '{id}', id, '{queue}', '{id}', {payload}, 3, 'no', 1 FROM workspaces",
    ));
    format!("/v1/system/workers/dead-letters/{id}/retry")
}

async fn dead_letters_of_what_is_gone_stay_dead(database: Database) {
    let server = Server::start_with(&database, &[OFF]);
    let workspace = server.workspace().await;
    workspace.meter("m", "sum").await;
    let to = crate::alerts::destination(&workspace, "http://127.0.0.1:9/x").await;
    let rule = crate::alerts::rule(&workspace, "m", &to, json!({})).await;
    let plan = json!({"name": "p", "limits": [{"meter": "m", "limit": 10}]});
    let plan = workspace.post("/v1/plans", &plan).await.json(201);
    workspace.put("/v1/plans/subjects/s", &json!({"plan_id": plan["id"]})).await.expect(200);
    let meter_job = "(SELECT '{\"meter_id\":' || id || ',\"meter\":\"m\",\"due_only\":false}' FROM meters)";
    let evaluation = "(SELECT '{\"subject_id\":' || s.id || ',\"meter_id\":' || m.id || ',\"late_at\":null}'
                       FROM subjects s, meters m WHERE s.name = 's')";
    let retry = async |path: String| workspace.post_text(&path, "").await;

    // while everything is there
    retry(bury(&database, "alerts", meter_job)).await.expect(204);
    let path = bury(&database, "entitlements", evaluation);
    let letters = workspace.get("/v1/system/workers/dead-letters").await.json(200);
    let letter = &letters["items"][0];
    assert_eq!((&letter["worker_name"], &letter["status"]), (&json!("entitlement"), &json!("dead_letter")));
    assert_eq!((&letter["subject"], &letter["meter"]), (&json!("s"), &json!("m")), "{letter}");
    retry(path.clone()).await.expect(204);
    let message = retry(path).await.error(409, "conflict");
    assert!(message.contains("already"), "{message}");
    retry(bury(&database, "webhooks", "'1'")).await.error(409, "conflict");
    retry(bury(&database, "export", "'{}'")).await.error(409, "conflict");

    // the rule goes, then the plan, then the meter
    let (alert, entitlement) =
        (bury(&database, "alerts", meter_job), bury(&database, "entitlements", evaluation));
    let (alert_2, entitlement_2) =
        (bury(&database, "alerts", meter_job), bury(&database, "entitlements", evaluation));
    workspace.delete(&crate::alerts::path(&rule)).await.expect(204);
    let message = retry(alert.clone()).await.error(409, "conflict");
    assert!(message.contains("rule"), "{message}");
    workspace.delete("/v1/plans/subjects/s").await.expect(204);
    let path = format!("/v1/plans/{}", plan["id"].as_str().expect("an id"));
    workspace.delete(&path).await.expect(204);
    let message = retry(entitlement.clone()).await.error(409, "conflict");
    assert!(message.contains("plan"), "{message}");
    let meters = workspace.get("/v1/meters").await.json(200);
    let path = format!("/v1/meters/{}", meters["items"][0]["id"].as_str().expect("an id"));
    workspace.delete(&path).await.expect(204);
    for path in [alert_2, entitlement_2] {
        let message = retry(path).await.error(409, "conflict");
        assert!(message.contains("meter"), "{message}");
    }
    // a refusal leaves them as they were
    let letters = workspace.get("/v1/system/workers/dead-letters").await.json(200);
    let of = |path: &str| {
        let id = path.split('/').nth(5).expect("an id").to_owned();
        letters["items"].as_array().expect("a list").iter().find(|item| item["id"] == json!(id)).cloned()
    };
    for path in [alert, entitlement] {
        assert_eq!(of(&path).expect("it is listed")["status"], json!("dead_letter"));
    }
}

async fn the_newest_are_listed_first(database: Database) {
    let server = Server::start_with(&database, &[OFF]);
    let workspace = server.workspace().await;
    let page = workspace.get(PATH).await.json(200);
    assert_eq!(page, json!({"items": []}));
    for at in 0..60 {
        let retry = bury(&database, "alerts", "'{}'");
        let id = retry.split('/').nth(5).expect("an id");
        database.execute(&format!("UPDATE dead_letters SET created_at = {at} * 1000000 WHERE id = '{id}'"));
    }
    let times = |page: &Value| -> Vec<Value> {
        page["items"].as_array().expect("a list").iter().map(|item| item["created_at"].clone()).collect()
    };
    let page = workspace.get(PATH).await.json(200);
    assert_eq!(times(&page).len(), 50);
    assert_eq!(times(&page)[0], json!("1970-01-01T00:00:59Z"));
    let page = workspace.get(&format!("{PATH}?limit=200")).await.json(200);
    assert_eq!(times(&page).len(), 60);
    assert_eq!(times(&page)[59], json!("1970-01-01T00:00:00Z"));
    let item = &page["items"][0];
    assert_eq!((&item["attempts"], &item["last_error"]), (&json!(3), &json!("no")), "{item}");
    for limit in ["0", "201", "x"] {
        workspace.get(&format!("{PATH}?limit={limit}")).await.error(400, "invalid_limit");
    }
}

async fn dead_letters_are_the_workspaces_own(database: Database) {
    let server = Server::start_with(&database, &[OFF]);
    let workspace = server.workspace().await;
    workspace.meter("m", "sum").await;
    let to = crate::alerts::destination(&workspace, "http://127.0.0.1:9/x").await;
    crate::alerts::rule(&workspace, "m", &to, json!({})).await;
    let job = "(SELECT '{\"meter_id\":' || id || ',\"meter\":\"m\",\"due_only\":false}' FROM meters)";
    let retry = bury(&database, "alerts", job);
    let stranger = server.workspace().await;
    assert_eq!(stranger.get(PATH).await.json(200)["items"], json!([]));
    stranger.post_text(&retry, "").await.error(404, "not_found");
    stranger.post_text(&format!("{PATH}/nosuch/retry"), "").await.error(400, "invalid_input");
    let key = async |body: Value| {
        let made = workspace.session.post("/v1/auth/api-keys", &body).await.json(201);
        server.client().with_key(made["key"].as_str().expect("the secret"))
    };
    let reader = key(json!({"name": "r", "scopes": ["system:read"]})).await;
    reader.get(PATH).await.expect(200);
    let all = format!("{PATH}/retry");
    reader.post(&all, &json!({})).await.error(403, "forbidden");
    workspace.post(&all, &json!({"worker_name": "nosuch"})).await.error(400, "invalid_input");
    let none = json!({"requeued": 0, "gone": 0, "has_more": false});
    assert_eq!(stranger.post(&all, &json!({})).await.json(200), none);
    assert_eq!(workspace.post(&all, &json!({"worker_name": "export"})).await.json(200), none);
    reader.post_text(&retry, "").await.error(403, "forbidden");
    let some = key(json!({"name": "s", "scopes": ["system:*"], "allowed_meters": ["m"]})).await;
    some.get(PATH).await.error(403, "forbidden");
    some.post_text(&retry, "").await.error(403, "forbidden");
    server.client().get(PATH).await.error(401, "unauthorized");
    let item = workspace.get(PATH).await.json(200)["items"][0].clone();
    assert_eq!(item["status"], json!("dead_letter"), "nobody else touched it");
    workspace.post_text(&retry, "").await.expect(204);
}
