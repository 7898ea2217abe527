//! User data has no meaning beyond its own: keys that a library reserves, texts that look like numbers, instants that
//! cannot be printed, bytes that are no text. What is admitted can be read by every reader.

use serde_json::{Value, json};

use crate::support::client::{JUNE, NOON};
use crate::support::{Client, Database, Server, on_both_databases};

on_both_databases!(
    reserved_keys_are_kept_as_they_are,
    reserved_keys_are_no_numbers,
    nested_texts_are_only_texts,
);

/// What the JSON library calls a number and a raw value, in two spellings.
const RESERVED: [&str; 4] = [
    "$serde_json::private::Number",
    "$serde_json::private::RawValue",
    "\\u0024serde_json::private::Number",
    "\\u0024serde_json::private::RawValue",
];

fn event(rest: &str) -> String {
    format!(r#"{{"meter":"m","subject":"s","quantity":1,"timestamp":"{NOON}",{rest}}}"#)
}

fn plain(key: &str) -> String {
    key.replace("\\u0024", "$")
}

async fn reserved_keys_are_kept_as_they_are(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("m", "count").await;
    for (number, key) in RESERVED.iter().enumerate() {
        for inner in [r#""7e2""#, r#""abc""#, r#""[[1]]""#, "[1,{}]", "{}"] {
            let kept = format!(r#"{{"deep":[{{"{key}":{inner}}}],"x":{{"{key}":{inner}}}}}"#);
            let kept_plain = plain(&kept);
            let single = workspace.post_text("/v1/usages", event(&format!(r#""metadata":{kept}"#))).await;
            assert!(single.text.contains(&kept_plain), "{kept}: {}", single.text);
            let bulk = format!("[{}]", event(&format!(r#""metadata":{kept}"#)));
            let bulk = workspace.post_text("/v1/usages/bulk", bulk).await.expect(201);
            assert!(bulk.text.contains(&kept_plain), "{kept}: {}", bulk.text);
            let consumed = inner.replace('"', "'");
            let consumed = event(&format!(r#""idempotency_key":"{number}{consumed}","metadata":{kept}"#));
            let consumed = workspace.post_text("/v1/entitlements/consume", consumed).await.expect(201);
            assert!(consumed.text.contains(&kept_plain), "{kept}: {}", consumed.text);
        }
    }
    all_readers_answer(&workspace).await;
    for (number, key) in RESERVED.iter().enumerate() {
        let query = format!(r#"{{"a":{{"{key}":"7e2"}}}}"#);
        let body = format!(r#"{{"name":"q{number}","query":{query}}}"#);
        let saved = workspace.session.post_text("/v1/usage/saved-queries", body).await.expect(201);
        assert!(saved.text.contains(&plain(&query)), "{}", saved.text);
    }
    let listed = workspace.session.get("/v1/usage/saved-queries").await.expect(200);
    assert_eq!(listed.text.matches(r#":"7e2""#).count(), RESERVED.len(), "{}", listed.text);
}

/// Every way to the events of the meter `m`.
async fn all_readers_answer(workspace: &Client) {
    let (from, to) = JUNE;
    workspace.get("/v1/usageevents").await.expect(200);
    workspace.get("/v1/usageevents/export").await.expect(200);
    workspace.get("/v1/subjects/s/usageevents").await.expect(200);
    for (op, value) in
        [("exists", json!(null)), ("neq", json!("zz")), ("eq", json!(700)), ("contains", json!("7"))]
    {
        for field in ["metadata.x", "metadata.deep", "metadata.a"] {
            let filter = json!({"type": "condition", "field": field, "op": op, "value": value});
            let search = json!({"meter": "m", "from": from, "to": to, "filter": filter});
            workspace.post("/v1/usageevents/search", &search).await.expect(200);
            workspace.post("/v1/usages/search", &search).await.expect(200);
            workspace.post("/v1/usageevents/export", &search).await.expect(200);
        }
    }
}

async fn reserved_keys_are_no_numbers(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("m", "count").await;
    let (from, to) = JUNE;
    for key in RESERVED {
        for inner in [r#""7""#, "7", r#""\u0022x\u0022""#] {
            let odd = format!(r#"{{"{key}":{inner}}}"#);
            let condition = |field: &str, op: &str| {
                format!(r#"{{"type":"condition","field":"{field}","op":"{op}","value":{odd}}}"#)
            };
            let search = |filter: String| {
                format!(r#"{{"meter":"m","from":"{from}","to":"{to}","field":"subject","filter":{filter}}}"#)
            };
            let limit = format!(r#"{{"name":"p","limits":[{{"meter":"m","limit":{odd}}}]}}"#);
            let percent =
                format!(r#"{{"name":"p","limits":[{{"meter":"m","limit":5,"warning_percent":{odd}}}]}}"#);
            let refused = [
                ("/v1/usages", format!(r#"{{"meter":"m","subject":"s","quantity":{odd}}}"#)),
                ("/v1/usages", format!(r#"{{"meter":"m","subject":{odd},"quantity":1}}"#)),
                ("/v1/usages", event(&format!(r#""metadata":["{key}"]"#))),
                ("/v1/usages", event(&format!(r#""idempotency_key":{odd}"#))),
                ("/v1/usages/bulk", format!(r#"[{{"meter":"m","subject":"s","quantity":{odd}}}]"#)),
                (
                    "/v1/entitlements/consume",
                    format!(r#"{{"meter":"m","subject":"s","idempotency_key":"k","quantity":{odd}}}"#),
                ),
                ("/v1/entitlements/check", format!(r#"{{"meter":"m","subject":"s","quantity":{odd}}}"#)),
                ("/v1/plans", limit),
                ("/v1/plans", percent),
                ("/v1/alerts", format!(r#"{{"name":"r","meter":"m","threshold":{odd}}}"#)),
                ("/v1/alerts", format!(r#"{{"name":"r","meter":"m","metadata":{{"a":{odd}}}}}"#)),
                ("/v1/meters", format!(r#"{{"name":"n","unit":"u","event_retention_days":{odd}}}"#)),
                ("/v1/meters", format!(r#"{{"name":"n","unit":"u","dimensions":[{odd}]}}"#)),
                ("/v1/usages/search", search(odd.clone())),
                ("/v1/usages/search", search(condition("quantity", "gt"))),
                ("/v1/usages/breakdowns/search", search(condition("metadata.a", "eq"))),
                ("/v1/usageevents/search", search(condition("timestamp", "lt"))),
                (
                    "/v1/exports",
                    format!(r#"{{"kind":"usage_events","query":{}}}"#, search(condition("metadata.a", "in"))),
                ),
                ("/v1/exports", format!(r#"{{"kind":"usage_events","query":[{odd}]}}"#)),
            ];
            for (path, body) in refused {
                let answer = workspace.post_text(path, body.as_str()).await;
                assert_eq!(answer.status, 400, "{path} {body}: {}", answer.text);
            }
        }
    }
    assert_eq!(database.count("events"), 0);
    // nobody reads it
    workspace
        .post_text("/v1/usages", event(r#""other":{"$serde_json::private::RawValue":1}"#))
        .await
        .expect(201);
}

/// JSON inside a text inside JSON: never looked into, however deep.
async fn nested_texts_are_only_texts(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("m", "count").await;
    let mut inner = "1".to_owned();
    for _ in 0..6 {
        let text = format!("{}{inner}{}", "[".repeat(110), "]".repeat(110));
        inner = json!({"$serde_json::private::RawValue": text}).to_string();
    }
    assert!(inner.len() < 60_000);
    let stored = workspace.post_text("/v1/usages", event(&format!(r#""metadata":{{"x":{inner}}}"#))).await;
    assert!(stored.text.contains(&inner), "{}", stored.text);
    let deep = Value::from("[".repeat(100) + "1" + &"]".repeat(100));
    let odd = json!({"$serde_json::private::RawValue": deep}).to_string();
    for depth in [1, 40, 58, 59, 60, 100, 130] {
        let metadata = format!("{}{odd}{}", r#"{"a":"#.repeat(depth), "}".repeat(depth));
        let answer = workspace.post_text("/v1/usages", event(&format!(r#""metadata":{metadata}"#))).await;
        assert_eq!(answer.status, if depth < 60 { 201 } else { 400 }, "{depth}: {}", answer.text);
    }
    all_readers_answer(&workspace).await;
    assert_eq!(database.count("events"), 5);
}
