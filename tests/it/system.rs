//! Health, readiness, the description of the interface, the answers to paths and methods that do not exist, and who may
//! read the statistics.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Database, Server, on_both_databases};

on_both_databases!(
    health_asks_nobody_and_nothing,
    unknown_paths_and_methods,
    slashes_at_the_end,
    the_description_is_open_to_all,
    every_answer_is_told_apart,
    stats_need_their_scope,
    the_installation_says_what_it_is,
);

async fn health_asks_nobody_and_nothing(database: Database) {
    let server = Server::start(&database);
    let client =
        server.client().with("authorization", "Bearer nonsense").with("cookie", "open_spanner_access=x");
    for path in ["/health", "/ready"] {
        let answer = client.get(path).await.expect(204);
        assert_eq!((answer.text.as_str(), answer.header("content-type").as_str()), ("", ""), "{path}");
        client.post_text(path, "{}").await.expect(405);
    }
}

async fn unknown_paths_and_methods(database: Database) {
    let server = Server::start(&database);
    let client = server.client();
    for path in ["/v1/nosuch", "/v1", "/v1//meters", "/v1/meters/a/b", "/v2/meters", "/health/x"] {
        let answer = client.get(path).await.expect(404);
        assert_eq!(answer.text, "404 page not found\n", "{path}");
        assert_eq!(answer.header("content-type"), "text/plain; charset=utf-8");
    }
    let answer = client.send(Method::PATCH, "/v1/meters", None).await.expect("an answer").expect(405);
    assert_eq!(answer.text, "");
    let mut allowed: Vec<&str> =
        answer.headers.get_all("allow").iter().map(|value| value.to_str().expect("a text")).collect();
    allowed.sort_unstable();
    assert_eq!(allowed, ["GET", "POST"]);
    client.send(Method::OPTIONS, "/v1/meters", None).await.expect("an answer").expect(405);
    // a known path asks who calls, whatever the body
    client.post_text("/v1/meters", "{").await.error(401, "unauthorized");
}

async fn slashes_at_the_end(database: Database) {
    let server = Server::start(&database);
    let ws = server.workspace().await;
    for path in ["usageevents", "exports", "alerts", "alerts/destinations", "plans"] {
        ws.get(&format!("/v1/{path}/")).await.expect(200);
    }
    for path in ["meters", "subjects", "system/stats", "auth/session"] {
        ws.get(&format!("/v1/{path}/")).await.expect(404);
    }
}

async fn the_description_is_open_to_all(database: Database) {
    let server = Server::start(&database);
    let answer = server.client().get("/openapi.json").await.expect(200);
    let document: Value = serde_json::from_str(&answer.text).expect("JSON");
    assert!(document["openapi"].as_str().is_some_and(|version| version.starts_with("3.")));
    for path in ["/openapi.json", "/swagger/"] {
        let answer = server.client().get(path).await.expect(200);
        assert_eq!(answer.header("x-content-type-options"), "nosniff", "{path}");
    }
}

async fn every_answer_is_told_apart(database: Database) {
    let server = Server::start(&database);
    let client = server.client();
    let mut ids = std::collections::BTreeSet::new();
    for path in ["/health", "/v1/nosuch", "/v1/meters", "/openapi.json"] {
        let id = client.get(path).await.header("x-request-id");
        assert!(!id.is_empty() && ids.insert(id), "{path}");
    }
}

async fn stats_need_their_scope(database: Database) {
    let server = Server::start(&database);
    let ws = server.workspace().await;
    let key = async |body: Value| {
        let made = ws.session.post("/v1/auth/api-keys", &body).await.json(201);
        server.client().with_key(made["key"].as_str().expect("the secret"))
    };
    key(json!({"name": "d"})).await.get("/v1/system/stats").await.error(403, "forbidden");
    key(json!({"name": "w", "scopes": ["system:write"]}))
        .await
        .get("/v1/system/stats")
        .await
        .error(403, "forbidden");
    key(json!({"name": "s", "scopes": ["system:read"]})).await.get("/v1/system/stats").await.expect(200);
    server.client().get("/v1/system/stats").await.error(401, "unauthorized");
    ws.session.get("/v1/system/stats").await.expect(200);
    // somebody else's work is not counted
    ws.meter("m", "sum").await;
    let stranger = server.workspace().await;
    let end = Instant::now() + Duration::from_secs(10);
    while ws.get("/v1/system/stats").await.json(200)["meters"] != json!(1) {
        assert!(Instant::now() < end, "the meter is counted");
    }
    assert_eq!(stranger.get("/v1/system/stats").await.json(200)["meters"], json!(0));
}

async fn the_installation_says_what_it_is(database: Database) {
    let server = Server::start(&database);
    let ws = server.workspace().await;
    let key = async |body: Value| {
        let made = ws.session.post("/v1/auth/api-keys", &body).await.json(201);
        server.client().with_key(made["key"].as_str().expect("the secret"))
    };
    server.client().get("/v1/system").await.error(401, "unauthorized");
    key(json!({"name": "d"})).await.get("/v1/system").await.error(403, "forbidden");
    let reader = key(json!({"name": "s", "scopes": ["system:read"]})).await;
    let told = reader.get("/v1/system").await.json(200);
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!((&told["version"], &told["role"]), (&json!(version), &json!("serve")), "{told}");
    assert_eq!((&told["schema"], &told["epoch"]), (&json!("0001"), &json!(1)), "{told}");
    assert!(told["uptime_seconds"].is_u64() && told.get("backup_at").is_none(), "{told}");
    let id = database.lines("SELECT id AS line FROM installation");
    assert_eq!(told["installation_id"], json!(id[0]), "{told}");
    // the server beats for its history
    let end = Instant::now() + Duration::from_secs(30);
    while reader.get("/v1/system").await.json(200)["processes"] == json!([]) {
        assert!(Instant::now() < end, "nobody is alive");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let told = reader.get("/v1/system").await.json(200);
    assert_eq!(
        (told["processes"].as_array().map(Vec::len), &told["mixed_versions"]),
        (Some(1), &json!(false)),
        "{told}"
    );
    database.execute(
        "INSERT INTO worker_instances (instance_id, worker, started_at, last_heartbeat_at)
         VALUES ('elsewhere/0.0.9/7-x', 'alert', 1, 4000000000000000)",
    );
    database.execute("INSERT INTO chores (name, done_at, findings) VALUES ('backup', 5000000, 0)");
    let told = reader.get("/v1/system").await.json(200);
    assert_eq!(
        (&told["mixed_versions"], &told["backup_at"]),
        (&json!(true), &json!("1970-01-01T00:00:05Z")),
        "{told}"
    );
}
