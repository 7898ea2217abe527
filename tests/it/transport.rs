//! What is true of every answer, whatever was asked (rest.md 1): HEAD, request ids, compression, and path
//! parameters in any spelling.

use std::collections::BTreeSet;
use std::time::Duration;

use diesel::connection::SimpleConnection;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::client::JUNE;
use crate::support::{Answer, Client, Database, Server, on_both_databases};

on_both_databases!(
    head_is_get_without_a_body,
    every_answer_has_a_request_id,
    lines_about_a_failure_name_the_request,
    large_answers_are_compressed,
    answers_are_kept_by_nobody,
    a_proxy_that_is_not_named_is_told_of_once,
    changes_have_a_line_in_the_log,
    path_parameters_are_decoded
);

const LOGGED: (&str, &str) = ("RUST_LOG", "info,open_spanner::http=debug");

async fn ask(client: &Client, method: Method, path: &str) -> Answer {
    client.send(method, path, None).await.expect("an answer")
}

async fn head_is_get_without_a_body(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    let id = workspace.meter("m", "sum").await;
    let (from, to) = JUNE;
    let paths = [
        "/health".to_string(),
        "/ready".to_string(),
        "/nothing/here".to_string(),
        "/openapi.json".to_string(),
        "/swagger/".to_string(),
        "/v1/meters".to_string(),
        format!("/v1/meters/{id}"),
        "/v1/meters/none".to_string(),
        format!("/v1/usages?meter=m&from={from}&to={to}"),
        "/v1/usages".to_string(),
        format!("/v1/usages/export?meter=m&from={from}&to={to}"),
    ];
    for path in &paths {
        let get = ask(&workspace, Method::GET, path).await;
        let head = ask(&workspace, Method::HEAD, path).await.expect(get.status);
        assert_eq!(head.text, "", "{path}");
        for name in ["content-type", "content-length"] {
            assert_eq!(head.header(name), get.header(name), "{name} of {path}");
        }
    }
    let refused = ask(&workspace, Method::HEAD, "/v1/usages/search").await.expect(405);
    assert_eq!(refused.header("allow"), "POST");
    ask(&server.client(), Method::HEAD, "/v1/meters").await.expect(401);
}

async fn every_answer_has_a_request_id(database: Database) {
    let server = Server::start_with(&database, &[LOGGED, ("OPEN_SPANNER_INGESTION_MAX_BODY_BYTES", "1024")]);
    let workspace = server.workspace().await;
    let mut ids = BTreeSet::new();
    let answers = [
        (ask(&workspace, Method::GET, "/health").await, 204, "/health"),
        (ask(&workspace, Method::GET, "/v1/meters").await, 200, "/v1/meters"),
        (ask(&workspace, Method::GET, "/v1/meters/none").await, 404, "/v1/meters/{id}"),
        (ask(&workspace, Method::GET, "/v1/meters?limit=x").await, 400, "/v1/meters"),
        (ask(&server.client(), Method::GET, "/v1/meters").await, 401, "/v1/meters"),
        (ask(&workspace, Method::PATCH, "/v1/meters").await, 405, "none"),
        (ask(&workspace, Method::GET, "/nothing/here").await, 404, "none"),
        (workspace.post_text("/v1/usages", "{").await, 400, "/v1/usages"),
        (workspace.post_text("/v1/usages", " ".repeat(2000)).await, 413, "/v1/usages"),
    ];
    for (answer, status, route) in answers {
        let answer = answer.expect(status);
        assert!(ids.insert(answer.header("x-request-id")), "an id of its own: {answer:?}");
        let line = server.logged(&answer);
        assert_eq!((&line["status"], &line["route"]), (&json!(status), &json!(route)), "{line}");
        assert!(
            !answer.text.contains(&answer.header("x-request-id")),
            "the envelope has two fields: {answer:?}"
        );
    }
}

/// The line of the store that says why, not only the one of the door that says that.
async fn lines_about_a_failure_name_the_request(database: Database) {
    let server = Server::start_with(&database, &[LOGGED]);
    let workspace = server.workspace().await;
    let break_it = "ALTER TABLE saved_queries RENAME TO lost_queries";
    match &database {
        Database::Sqlite { .. } => database.sqlite_connection().batch_execute(break_it),
        Database::Postgres { .. } => database.postgres_connection().batch_execute(break_it),
    }
    .expect("the table is there");
    let answer = workspace.session.get("/v1/usage/saved-queries").await;
    server.logged(&answer);
    let id = answer.header("x-request-id");
    answer.error(503, "unavailable");
    let lines = server.log().into_iter().filter_map(|line| serde_json::from_str::<Value>(&line).ok());
    let cause: Vec<Value> = lines.filter(|line| line["message"] == "database unavailable").collect();
    assert_eq!(cause.len(), 1, "{cause:?}");
    assert_eq!(cause[0]["request_id"], json!(id), "{cause:?}");
    assert!(cause[0]["error"].as_str().is_some_and(|text| text.contains("saved_queries")), "{cause:?}");
}

async fn answers_are_kept_by_nobody(database: Database) {
    let server = Server::start_with(&database, &[("OPEN_SPANNER_HSTS_MAX_AGE", "24h")]);
    let workspace = server.workspace().await;
    let answers = [
        ask(&workspace, Method::GET, "/v1/meters").await.expect(200),
        ask(&workspace, Method::GET, "/v1/meters/none").await.expect(404),
        ask(&server.client(), Method::GET, "/v1/meters").await.expect(401),
        workspace.session.get("/v1/auth/session").await.expect(200),
        workspace.post_text("/v1/usages", "{").await.expect(400),
        workspace.post_text("/api/v1/events", "{").await.expect(400),
    ];
    for answer in answers {
        assert_eq!(answer.header("cache-control"), "no-store", "{answer:?}");
        assert_eq!(answer.header("referrer-policy"), "same-origin", "{answer:?}");
        assert_eq!(answer.header("strict-transport-security"), "max-age=86400", "{answer:?}");
    }
}

async fn a_proxy_that_is_not_named_is_told_of_once(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    let told = |server: &Server| server.log().iter().filter(|line| line.contains("X-Forwarded-For")).count();
    workspace.get("/v1/meters").await.expect(200);
    assert_eq!(told(&server), 0);
    for _ in 0..3 {
        workspace.with("x-forwarded-for", "203.0.113.9").get("/v1/meters").await.expect(200);
    }
    for _ in 0..100 {
        if told(&server) > 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(told(&server), 1);
    drop(server);
    let named = Server::start_with(&database, &[("OPEN_SPANNER_TRUSTED_PROXIES", "127.0.0.0/8")]);
    let workspace = named.workspace().await;
    workspace.with("x-forwarded-for", "203.0.113.9").get("/v1/meters").await.expect(200);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(told(&named), 0);
}

async fn changes_have_a_line_in_the_log(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.post("/v1/usages", &json!({"meter": "m", "subject": "s", "quantity": 1})).await.expect(404);
    let meter = json!({"name": "m", "unit": "unit"});
    let made = workspace.post("/v1/meters", &meter).await.expect(201);
    let line = server.logged(&made);
    assert_eq!((&line["method"], &line["status"]), (&json!("POST"), &json!(201)), "{line}");
    assert!(line["workspace"].as_str().is_some_and(|id| !id.is_empty()), "{line}");
    let stored = workspace
        .post("/v1/usages", &json!({"meter": "m", "subject": "s", "quantity": 1}))
        .await
        .expect(201)
        .header("x-request-id");
    server.logged(&workspace.post("/v1/meters", &json!({"name": "n", "unit": "unit"})).await.expect(201));
    let lines = server.log();
    // a slow machine may make it worth a line
    let told = |line: &&String| line.contains(&stored) && !line.contains("duration_ms\":1");
    assert_eq!(lines.iter().find(told), None, "writes of usage have none");
}

async fn large_answers_are_compressed(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("m", "sum").await;
    let event =
        |n: u64| json!({"meter": "m", "subject": format!("s{n}"), "quantity": n + 1, "timestamp": JUNE.0});
    let events: Vec<Value> = (0..500).map(event).collect();
    workspace.post("/v1/usages/bulk", &json!(events)).await.expect(201);
    let (from, to) = JUNE;
    let csv = format!("/v1/usages/export?meter=m&group_by=subject&limit=1000&from={from}&to={to}");
    let gzip = workspace.with("accept-encoding", "gzip");
    for path in ["/v1/usageevents?limit=500", &csv] {
        let plain = workspace.get(path).await.expect(200);
        let small = gzip.get(path).await.expect(200);
        assert_eq!(
            (plain.header("content-encoding"), small.header("content-encoding")),
            (String::new(), "gzip".into())
        );
        assert!(small.header("vary").eq_ignore_ascii_case("accept-encoding"), "{:?}", small.headers);
        assert!(
            small.text.len() * 3 < plain.text.len(),
            "{path}: {} of {}",
            small.text.len(),
            plain.text.len()
        );
    }
    for path in ["/v1/meters", "/v1/meters/none", "/nothing/here", "/health"] {
        let small = gzip.get(path).await;
        assert_eq!(small.header("content-encoding"), "", "{small:?}");
    }
}

async fn path_parameters_are_decoded(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("m", "sum").await;
    let event = json!({"meter": "m", "subject": "ten:west", "quantity": 1});
    workspace.post("/v1/usages", &event).await.expect(201);
    for path in [
        "/v1/subjects/ten:west/usageevents",
        "/v1/subjects/ten%3Awest/usageevents",
        "/v1/subjects/t%65n%3awest/usageevents",
    ] {
        assert_eq!(workspace.get(path).await.json(200).as_array().map(Vec::len), Some(1), "{path}");
    }
    // a key may hold anything, also what means something in a path
    for (key, spelt) in [("a/b", "a%2Fb"), ("50% + é", "50%25%20+%20%C3%A9"), ("?#", "%3F%23")] {
        let body = json!({"meter": "m", "subject": "s", "quantity": 1, "idempotency_key": key});
        workspace.post("/v1/entitlements/consume", &body).await.expect(201);
        let found = workspace.get(&format!("/v1/entitlements/decisions/{spelt}")).await.json(200);
        assert_eq!(found["idempotency_key"], json!(key), "{spelt}");
    }
    workspace.get("/v1/entitlements/decisions/%FF").await.error(400, "invalid_input");
    workspace.get("/v1/entitlements/decisions/a%00b").await.error(400, "invalid_input");
    for path in ["/v1//meters", "/v1/meters/", "/v1/meters%2F", "/V1/meters", "/v1/usageevents/export/"] {
        let answer = workspace.get(path).await.expect(404);
        assert_eq!(answer.text, "404 page not found\n", "{path}");
    }
    for path in ["/v1/exports/", "/v1/alerts/", "/v1/alerts/destinations/", "/v1/plans/", "/v1/usageevents/"]
    {
        workspace.get(path).await.expect(200);
    }
}
