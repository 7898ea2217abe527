//! User data has no meaning beyond its own: keys that a library reserves, texts that look like numbers, instants that
//! cannot be printed, bytes that are no text. What is admitted can be read by every reader.

use std::io::Write;
use std::time::{Duration, Instant};

use open_spanner::config;
use open_spanner::db::Store;
use open_spanner::exports::job::file_name;
use open_spanner::exports::worker::clean_up;
use serde_json::{Value, json};

use crate::support::client::{JUNE, NOON};
use crate::support::{Client, Database, Server, on_both_databases};

on_both_databases!(
    reserved_keys_are_kept_as_they_are,
    reserved_keys_are_no_numbers,
    nested_texts_are_only_texts,
    instants_lie_within_the_years_1_to_9999,
    cursors_find_every_stored_instant,
    one_unreadable_row_is_left_out,
    keys_are_their_bytes,
    bodies_have_limits_by_route,
    bodies_may_be_compressed,
    the_largest_rule_is_evaluated,
    many_values_of_an_undeclared_field,
    nested_filters_are_planned_at_once,
    rows_have_limits,
    refusals_say_when_to_come_again,
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

async fn instants_lie_within_the_years_1_to_9999(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("m", "count").await;
    let plan = json!({"name": "p", "limits": [{"meter": "m", "limit": 5}]});
    let plan = workspace.post("/v1/plans", &plan).await.json(201)["id"].clone();
    let (from, to) = JUNE;
    for time in [
        "9999-12-31T23:59:59-00:01",
        "9999-12-31T23:59:59-23:59",
        "0000-01-01T00:00:00Z",
        "0000-12-31T23:59:59Z",
        "0000-01-01T00:00:00+23:59",
        "0001-01-01T00:00:00+00:01",
    ] {
        let plus = time.replace('+', "%2B");
        for query in [
            "/v1/usages?meter=m&",
            "/v1/usages/export?meter=m&",
            "/v1/usageevents?",
            "/v1/usageevents/export?",
        ] {
            workspace.get(&format!("{query}from={plus}&to={to}")).await.error(400, "invalid_from");
            workspace.get(&format!("{query}from={from}&to={plus}")).await.error(400, "invalid_to");
        }
        workspace
            .get(&format!("/v1/usages/dimensions?meter=m&field=d&from={plus}"))
            .await
            .error(400, "invalid_from");
        let event =
            json!({"meter": "m", "subject": "s", "quantity": 1, "timestamp": time, "idempotency_key": "k"});
        for path in ["/v1/usages", "/v1/entitlements/consume"] {
            workspace.post(path, &event).await.error(400, "invalid_timestamp");
        }
        let bulk = workspace.post("/v1/usages/bulk", &json!([event])).await.json(400);
        assert_eq!(bulk["failed_items"][0]["code"], "invalid_timestamp");
        let filter = json!({"type": "condition", "field": "timestamp", "op": "gt", "value": time});
        for path in [
            "/v1/usages/search",
            "/v1/usages/export",
            "/v1/usages/breakdowns/search",
            "/v1/usageevents/search",
        ] {
            let body =
                |from: &str, to: &str| json!({"meter": "m", "field": "subject", "from": from, "to": to});
            workspace.post(path, &body(time, to)).await.error(400, "invalid_from");
            workspace.post(path, &body(from, time)).await.error(400, "invalid_to");
            let mut filtered = body(from, to);
            filtered["filter"] = filter.clone();
            workspace.post(path, &filtered).await.error(400, "invalid_input");
        }
        for kind in ["usage_events", "usage_buckets"] {
            let export = |query: Value| json!({"kind": kind, "query": query});
            let early = export(json!({"meter": "m", "from": time, "to": to}));
            workspace.post("/v1/exports", &early).await.error(400, "invalid_from");
            let late = export(json!({"meter": "m", "from": from, "to": time}));
            workspace.post("/v1/exports", &late).await.error(400, "invalid_to");
        }
        let key = json!({"name": "k", "expires_at": time});
        workspace.session.post("/v1/auth/api-keys", &key).await.error(400, "invalid_expires_at");
        let assignment = json!({"plan_id": plan, "effective_at": time});
        workspace.put("/v1/plans/subjects/s", &assignment).await.error(400, "invalid_effective_at");
    }
    assert_eq!(database.count("events"), 0);
    workspace.get("/v1/exports").await.expect(200);
}

/// The first and the last instant that can be written, and pages of one row.
async fn cursors_find_every_stored_instant(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("m", "sum").await;
    let times = [
        "0001-01-01T00:00:00.000001Z",
        "0001-01-02T00:00:00Z",
        "1969-12-31T23:59:59.9Z",
        "2026-06-15T12:00:00.000001Z",
        "9999-12-30T00:00:00Z",
        "9999-12-31T23:59:59.999999Z",
    ];
    for (number, time) in times.iter().enumerate() {
        let event = json!({"meter": "m", "subject": format!("s{number}"), "quantity": 1, "timestamp": time});
        let stored = workspace.post("/v1/usages", &event).await.json(201);
        assert_eq!(stored["timestamp"].as_str().expect("a time")[..19], time[..19]);
    }
    for path in ["/v1/usageevents", "/v1/subjects"] {
        let (mut seen, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = workspace.get(&format!("{path}?limit=1&cursor={cursor}")).await.json(200);
            seen.push(page["items"][0]["subject"].as_str().expect("a row").to_owned());
            match page["next_cursor"].as_str() {
                Some(next) => cursor = next.to_owned(),
                None => break,
            }
        }
        seen.sort();
        assert_eq!(seen, ["s0", "s1", "s2", "s3", "s4", "s5"], "{path}");
    }
    let december = "/v1/usages?meter=m&bucket_size=month&from=9999-12-01T00:00:00Z&to=9999-12-31T23:59:59Z";
    let rows = workspace.get(december).await.json(200);
    assert_eq!((&rows[0]["bucket_start"], &rows[0]["quantity"]), (&json!("9999-12-01T00:00:00Z"), &json!(1)));
    let odd = [
        "eyJ0aW1lIjotOTIyMzM3MjAzNjg1NDc3NTgwOCwiaWQiOiIwIn0",
        "eyJ0aW1lIjoieCIsImlkIjoiMCJ9",
        "e30x",
        "bnVsbA",
    ];
    for cursor in odd {
        for path in
            ["/v1/usageevents", "/v1/subjects", "/v1/exports", "/v1/entitlements/events", "/v1/meters"]
        {
            let answer = workspace.get(&format!("{path}?cursor={cursor}")).await;
            assert!([200, 400].contains(&answer.status), "{path} {cursor}: {}", answer.text);
        }
    }
}

/// What an older version, or a hand, wrote into the database.
async fn one_unreadable_row_is_left_out(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("m", "count").await;
    workspace.meter("other", "count").await;
    for name in ["a", "b", "c"] {
        let query = json!({"name": name, "query": {"a": 1}});
        workspace.session.post("/v1/usage/saved-queries", &query).await.expect(201);
        let export = json!({"kind": "usage_events", "query": {"meter": "m"}});
        workspace.post("/v1/exports", &export).await.expect(202);
        let destination = json!({"name": name, "webhook_url": "https://example.com/x"});
        let made = workspace.post("/v1/alerts/destinations", &destination).await.json(201);
        let rule = json!({"name": name, "meter": "m", "threshold": 1, "destination_id": made["id"]});
        workspace.post("/v1/alerts", &rule).await.expect(201);
    }
    let one_of = |table: &str, id: &str| format!("(SELECT {id} FROM {table} ORDER BY {id} LIMIT 1)");
    for (table, id, column, text) in [
        ("saved_queries", "id", "query", "{"),
        ("export_jobs", "id", "query", r#"{"meter":"m","bucket_size":"","from":"-001-12-31T00:01:00Z"}"#),
        ("alert_rules", "id", "metadata", "[1"),
        ("meters", "id", "dimensions", "no"),
    ] {
        let one = one_of(table, id);
        database.execute(&format!("UPDATE {table} SET {column} = '{text}' WHERE {id} = {one}"));
    }
    let count = |answer: Value| answer["items"].as_array().expect("a list").len();
    assert_eq!(count(workspace.session.get("/v1/usage/saved-queries").await.json(200)), 2);
    assert_eq!(count(workspace.get("/v1/exports").await.json(200)), 2);
    let mut seen = 0;
    let mut cursor = String::new();
    loop {
        let page = workspace.get(&format!("/v1/exports?limit=1&cursor={cursor}")).await.json(200);
        seen += count(page.clone());
        let Some(next) = page["next_cursor"].as_str() else { break };
        cursor = next.to_owned();
    }
    assert_eq!(seen, 2, "a page is filled up with others");
    let rules = workspace.get("/v1/alerts").await.json(200);
    assert_eq!(count(rules.clone()), 2);
    assert_eq!(count(workspace.get("/v1/meters").await.json(200)), 1);
    assert!(server.log().iter().any(|line| line.contains("left out")), "it is named in the log");
    drop(server);
    files_of_exports_go_all_the_same(&database).await;
}

/// One of them cannot be read.
async fn files_of_exports_go_all_the_same(database: &Database) {
    let folder = tempfile::tempdir().expect("a directory");
    database.execute(
        "UPDATE export_jobs SET status = 'completed', completed_at = 1, expired_at = NULL, artifact_size = 8,
             artifact_hash = 'x'",
    );
    let mut settings = database.settings();
    settings.push(("OPEN_SPANNER_EXPORT_STORAGE_PATH", folder.path().display().to_string()));
    let settings: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let config = config::load_from(&["open-spanner", "serve"], &settings).expect("settings").config;
    let store = Store::new(&config.db);
    let ids = database.lines("SELECT id AS line FROM export_jobs");
    // past their time, then left over
    for round in ["expired", "left over"] {
        for id in &ids {
            std::fs::write(folder.path().join(file_name(id)), "a,b\n1,2\n").expect("written");
        }
        clean_up(&store, &config).await.expect("cleaned up");
        assert_eq!(std::fs::read_dir(folder.path()).expect("a directory").count(), 0, "{round}");
        assert_eq!(database.count("export_jobs WHERE expired_at IS NOT NULL"), 3);
    }
}

async fn keys_are_their_bytes(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("m", "count").await;
    let event = json!([{"meter": "m", "subject": "s", "quantity": 1, "timestamp": NOON}]);
    let keyed = |key: &'static str| workspace.with("idempotency-key", key);
    let first = keyed("café-1").post("/v1/usages/bulk", &event).await.json(201);
    let again = keyed("café-1").post("/v1/usages/bulk", &event).await.json(201);
    assert_eq!(first["accepted_items"], again["accepted_items"], "bytes are bytes");
    keyed("café-2").post("/v1/usages/bulk", &event).await.expect(201);
    keyed("a\u{fffd}").post("/v1/usages/bulk", &event).await.error(400, "invalid_input");
    keyed("one")
        .with("idempotency-key", "two")
        .post("/v1/usages/bulk", &event)
        .await
        .error(400, "invalid_input");
    assert_eq!(workspace.total("m").await, "2");
    // bytes that are no text
    for (before, after) in
        [(&b"{\"meter\":\"m\",\"subject\":\"s\",\"quantity\":1,\"idempotency_key\":\"k"[..], &b"\"}"[..])]
    {
        for byte in [0xff, 0xfe, 0xc3] {
            let body = [before, &[byte], after].concat();
            workspace.post_bytes("/v1/usages", body.clone()).await.error(400, "invalid_json");
            workspace
                .post_bytes("/v1/usages/bulk", [b"[", &*body, b"]"].concat())
                .await
                .error(400, "invalid_json");
        }
    }
    for lone in ["\\ud800", "\\udfff"] {
        let body = event_with_key(lone);
        workspace.post_text("/v1/usages", body).await.error(400, "invalid_input");
    }
    for query in ["/v1/usageevents?subject=s%ff", "/v1/meters?name=%ff", "/v1/usages?meter=m%c3&from=x"] {
        workspace.get(query).await.error(400, "invalid_input");
    }
    workspace.get("/v1/entitlements/decisions/k%ff").await.error(400, "invalid_input");
    assert_eq!(workspace.total("m").await, "2");
}

fn event_with_key(key: &str) -> String {
    format!(r#"{{"meter":"m","subject":"s","quantity":1,"timestamp":"{NOON}","idempotency_key":"k{key}"}}"#)
}

async fn bodies_have_limits_by_route(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("m", "count").await;
    let padded = |bytes: usize| format!("{{\"x\":\"{}\"}}", "x".repeat(bytes - 8));
    for (path, most) in [
        ("/v1/auth/sessions", 16 << 10),
        ("/v1/auth/users", 16 << 10),
        ("/v1/alerts", 128 << 10),
        ("/v1/usage/saved-queries", 128 << 10),
        ("/v1/entitlements/check", 128 << 10),
        ("/v1/usages", 1 << 20),
        ("/v1/usages/search", 2 << 20),
    ] {
        let client = if path.starts_with("/v1/usage/") { &workspace.session } else { &workspace.key };
        let fits = client.post_text(path, padded(most)).await;
        assert!([400, 401].contains(&fits.status), "{path}: {}", fits.text);
        client.post_text(path, padded(most + 1)).await.error(413, "request_too_large");
        client.post_text(path, padded(8 << 20)).await.error(413, "request_too_large");
    }
    // metadata is measured before it is read
    let list = format!(r#""metadata":{{"a":[{}0]}}"#, "0,".repeat(140_000));
    workspace.post_text("/v1/usages", event(&list)).await.error(400, "invalid_input");
    let bulk = format!("[{}]", vec![event(&list); 20].join(","));
    assert_eq!(workspace.post_text("/v1/usages/bulk", bulk).await.json(400)["failed"], 20);
    // escapes and blanks do not count
    let spread = format!(r#""metadata":{{"a":"{}"   }}"#, "\\u00e9".repeat(30_000));
    workspace.post_text("/v1/usages", event(&spread)).await.expect(201);
    // the most values there may be still fit
    let keys: Vec<String> = (0..5_000).map(|number| format!("{number:0>200}")).collect();
    let filter = json!({"type": "condition", "field": "idempotency_key", "op": "in", "value": keys});
    let search = json!({"meter": "m", "from": JUNE.0, "to": JUNE.1, "filter": filter});
    workspace.post("/v1/usages/search", &search).await.expect(200);
    workspace.post("/v1/usageevents/search", &search).await.expect(200);
}

async fn bodies_may_be_compressed(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("m", "count").await;
    let gzip = |text: &str| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(text.as_bytes()).expect("memory");
        encoder.finish().expect("memory")
    };
    let single = event(r#""idempotency_key":"z""#);
    let packed = workspace.with("content-encoding", "gzip");
    packed.post_bytes("/v1/usages", gzip(&single)).await.expect(201);
    packed.post_bytes("/v1/usages/bulk", gzip(&format!("[{single}]"))).await.expect(201);
    let mut deflate = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
    deflate.write_all(single.as_bytes()).expect("memory");
    let deflated = workspace.with("content-encoding", "deflate");
    deflated.post_bytes("/v1/usages", deflate.finish().expect("memory")).await.expect(201);
    workspace.with("content-encoding", "identity").post_text("/v1/usages", single.as_str()).await.expect(201);
    assert_eq!(workspace.total("m").await, "1");
    // the limit is that of the decoded bytes
    let bomb = gzip(&" ".repeat(100 << 20));
    assert!(bomb.len() < 200_000);
    packed.post_bytes("/v1/usages", bomb.clone()).await.error(413, "request_too_large");
    packed.post_bytes("/v1/usages/bulk", bomb).await.error(413, "request_too_large");
    packed.post_text("/v1/usages", single.as_str()).await.error(400, "invalid_json");
    let mut cut = gzip(&single);
    cut.truncate(cut.len() / 2);
    packed.post_bytes("/v1/usages", cut).await.error(400, "invalid_json");
    for encoding in ["br", "gzip, gzip", "x"] {
        let other = workspace.with("content-encoding", encoding);
        other.post_text("/v1/usages", single.as_str()).await.error(415, "unsupported_content_encoding");
    }
}

async fn the_largest_rule_is_evaluated(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("m", "count").await;
    let destination = json!({"name": "d", "webhook_url": "https://example.com/x"});
    let destination = workspace.post("/v1/alerts/destinations", &destination).await.json(201)["id"].clone();
    let rule = |entries: usize, text: &str| {
        let metadata: serde_json::Map<String, Value> =
            (0..entries).map(|number| (format!("k{number}"), json!(text))).collect();
        json!({"name": "r", "meter": "m", "threshold": 1, "metadata": metadata, "destination_id": destination})
    };
    for (entries, text) in [(51, "v"), (5_000, "v"), (1, "")] {
        workspace.post("/v1/alerts", &rule(entries, text)).await.error(400, "invalid_input");
    }
    workspace.post("/v1/alerts", &rule(1, &"x".repeat(513))).await.error(400, "invalid_input");
    let made = workspace.post("/v1/alerts", &rule(50, &"x".repeat(512))).await.json(201);
    let path = format!("/v1/alerts/{}", made["id"].as_str().expect("an id"));
    workspace.put(&path, &json!({"metadata": rule(51, "v")["metadata"]})).await.error(400, "invalid_input");
    workspace.post(&format!("{path}/evaluate"), &json!({})).await.expect(200);
    // a rule that was stored when there was no limit
    let stored = rule(20_000, "v")["metadata"].to_string();
    database.execute(&format!("UPDATE alert_rules SET metadata = '{stored}'"));
    let evaluated = workspace.post(&format!("{path}/evaluate"), &json!({})).await.json(200);
    assert_eq!(evaluated["state"]["status"], "error", "{evaluated}");
    server.client().get("/ready").await.expect(204);
}

async fn many_values_of_an_undeclared_field(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("m", "count").await;
    for metadata in [
        r#"{"a":"v1"}"#,
        r#"{"a":4}"#,
        r#"{"a":"v4999"}"#,
        r#"{"a":"w"}"#,
        r#"{"b":"v1"}"#,
        r#"{"null":"x"}"#,
    ] {
        workspace.post_text("/v1/usages", event(&format!(r#""metadata":{metadata}"#))).await.expect(201);
    }
    let (from, to) = JUNE;
    let value =
        |number: usize| if number.is_multiple_of(2) { json!(number) } else { json!(format!("v{number}")) };
    let texts = |number: usize| json!(format!("v{number}"));
    for (count, wanted) in [(10, 2), (17, 2), (999, 2), (1_001, 2), (5_000, 3)] {
        let values: Vec<Value> = (0..count).map(value).collect();
        let filter = json!({"type": "condition", "field": "metadata.a", "op": "in", "value": values});
        let search = json!({"meter": "m", "from": from, "to": to, "filter": filter});
        let rows = workspace.post("/v1/usages/search", &search).await.json(200);
        assert_eq!(rows[0]["quantity"], wanted, "{count}");
        let listed = workspace.post("/v1/usageevents/search", &search).await.json(200);
        assert_eq!(listed["items"].as_array().expect("a list").len(), wanted, "{count}");
    }
    let values: Vec<Value> = (0..5_000).map(texts).collect();
    let filter = json!({"type": "condition", "field": "metadata.a", "op": "in", "value": values});
    let search = json!({"meter": "m", "from": from, "to": to, "filter": filter});
    assert_eq!(workspace.post("/v1/usages/search", &search).await.json(200)[0]["quantity"], 2);
    // a word that PostgreSQL reads otherwise
    let null =
        workspace.get(&format!("/v1/usages?meter=m&from={from}&to={to}&metadata.null=x")).await.json(200);
    assert_eq!(null[0]["quantity"], 1);
}

async fn nested_filters_are_planned_at_once(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("m", "count").await;
    workspace.post_text("/v1/usages", event(r#""metadata":{"a":"x"}"#)).await.expect(201);
    let leaf = |number: usize| json!({"type": "condition", "field": format!("metadata.f{number}"), "op": "eq", "value": "x"});
    let nested = |levels: usize, width: usize| {
        (0..levels).fold(leaf(0), |inner, level| {
            let rules: Vec<Value> = std::iter::once(inner).chain((0..width).map(leaf)).collect();
            json!({"type": "group", "op": if level % 2 == 0 { "and" } else { "or" }, "rules": rules})
        })
    };
    let (from, to) = JUNE;
    let search = |filter: Value| json!({"meter": "m", "from": from, "to": to, "filter": filter});
    for (levels, width) in [(31, 1), (31, 14), (9, 1), (8, 33)] {
        let answer = workspace.post("/v1/usages/search", &search(nested(levels, width))).await;
        let message = answer.error(400, "invalid_input");
        assert!(message.contains("filter"), "{message}");
    }
    for (levels, width) in [(8, 1), (8, 30), (2, 200)] {
        let started = Instant::now();
        workspace.post("/v1/usages/search", &search(nested(levels, width))).await.expect(200);
        workspace.post("/v1/usageevents/search", &search(nested(levels, width))).await.expect(200);
        assert!(started.elapsed() < Duration::from_secs(5), "{levels} levels, {width} wide");
    }
}

async fn rows_have_limits(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    let dimension = json!({"name": "d", "type": "string", "required": false});
    workspace
        .post("/v1/meters", &json!({"name": "m", "unit": "u", "dimensions": [dimension]}))
        .await
        .expect(201);
    let valued = |length: usize| event(&format!(r#""metadata":{{"d":"{}"}}"#, "x".repeat(length)));
    workspace.post_text("/v1/usages", valued(256)).await.expect(201);
    workspace.post_text("/v1/usages", valued(257)).await.error(400, "invalid_input");
    let query =
        |name: usize, bytes: usize| json!({"name": format!("q{name}"), "query": {"a": "x".repeat(bytes)}});
    workspace.session.post("/v1/usage/saved-queries", &query(0, 33_000)).await.error(400, "invalid_input");
    for name in 0..500 {
        workspace.session.post("/v1/usage/saved-queries", &query(name, 1)).await.expect(201);
    }
    workspace.session.post("/v1/usage/saved-queries", &query(500, 1)).await.error(409, "limit_reached");
    let key = json!({"name": "k", "allowed_meters": ["x".repeat(201)]});
    workspace.session.post("/v1/auth/api-keys", &key).await.error(400, "invalid_input");
    // what is quoted of a request is cut
    let missing =
        workspace.get(&format!("/v1/usages?meter={}&from={}&to={}", "x".repeat(5_000), JUNE.0, JUNE.1)).await;
    assert!(missing.status == 404 && missing.text.len() < 1_200, "{}", missing.text);
}

async fn refusals_say_when_to_come_again(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("m", "sum").await;
    let plan =
        json!({"name": "p", "limits": [{"meter": "m", "limit": 1, "period": "day", "enforcement": "hard"}]});
    let plan = workspace.post("/v1/plans", &plan).await.json(201)["id"].clone();
    workspace.put("/v1/plans/subjects/s", &json!({"plan_id": plan})).await.expect(200);
    let consume = |key: &str| json!({"meter": "m", "subject": "s", "quantity": 1, "idempotency_key": key});
    workspace.post("/v1/entitlements/consume", &consume("a")).await.expect(201);
    for _ in 0..2 {
        let refused = workspace.post("/v1/entitlements/consume", &consume("b")).await.expect(429);
        let body: Value = serde_json::from_str(&refused.text).expect("JSON");
        assert_eq!(refused.header("retry-after"), body["quota"]["retry_after_seconds"].to_string());
    }
}
