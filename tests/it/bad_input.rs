//! Input that must be refused: with the status and code of the contract, and with nothing stored. And input that
//! looks strange but is fine.

use std::io::Write;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use flate2::write::GzEncoder;
use serde_json::{Value, json};

use crate::support::client::{JUNE, NOON};
use crate::support::{Answer, Client, Database, Server, on_both_databases};

on_both_databases!(
    bad_events_are_refused,
    bad_batches_are_refused,
    metadata_must_fit_the_dimensions,
    oversized_bodies_are_413,
    deep_nesting_is_refused,
    nul_characters_never_break_anything,
    what_costs_too_much_is_refused_before_it_is_done,
    other_workspaces_do_not_exist,
    bad_queries_are_refused,
    rate_limit_charges_new_events_only,
    rate_limit_never_refuses_what_is_stored,
);

/// A valid event with one field replaced; `null` stands for itself.
fn with(field: &str, value: Value) -> String {
    let mut event = json!({"meter": "calls", "subject": "s", "quantity": 1, "timestamp": NOON});
    event[field] = value;
    event.to_string()
}

fn nothing_stored(database: &Database) {
    for table in ["events", "idempotency_keys", "rollups", "bulk_replays"] {
        assert_eq!(database.count(table), 0, "rows in {table}");
    }
}

async fn bad_events_are_refused(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("calls", "count").await;
    let good = with("subject", json!("s"));
    let not_json =
        ["", " ", "{", "[]", "5", "\"x\"", "{\"meter\":}", "{'meter':'calls'}", "NaN"].map(String::from);
    for body in
        not_json.into_iter().chain([format!("{good} x"), format!("{good}{good}"), format!("\u{feff}{good}")])
    {
        let message = workspace.post_text("/v1/usages", body).await.error(400, "invalid_json");
        assert_eq!(message, "invalid JSON body");
    }
    let mistyped = [
        ("meter", json!(5)),
        ("meter", json!(["calls"])),
        ("subject", json!({"id": 1})),
        ("quantity", json!("1")),
        ("quantity", json!([1])),
        ("quantity", json!(true)),
        ("timestamp", json!(1_780_000_000)),
        ("metadata", json!([])),
        ("metadata", json!("region=eu")),
        ("idempotency_key", json!(1)),
    ];
    for (field, value) in mistyped {
        workspace.post_text("/v1/usages", with(field, value)).await.error(400, "invalid_json");
    }
    let bad_values = [
        ("quantity", json!(0)),
        ("quantity", json!(-1)),
        ("quantity", json!(-0.000001)),
        ("quantity", json!(null)),
        ("subject", json!("")),
        ("subject", json!("a b")),
        ("subject", json!("-a")),
        ("subject", json!("ü")),
        ("subject", json!("s".repeat(129))),
        ("meter", json!("")),
        ("idempotency_key", json!("k".repeat(10_000))),
    ];
    for (field, value) in bad_values {
        workspace.post_text("/v1/usages", with(field, value)).await.error(400, "invalid_input");
    }
    for time in
        ["yesterday", "2026-06-01", "2026-06-01t00:00:00z", "2026-06-01T00:00:60Z", "2026-02-30T00:00:00Z"]
    {
        workspace
            .post_text("/v1/usages", with("timestamp", json!(time)))
            .await
            .error(400, "invalid_timestamp");
    }
    workspace.post_text("/v1/usages", with("meter", json!("nosuch"))).await.error(404, "not_found");
    workspace.post_text("/v1/usages", with("meter", json!("Calls"))).await.error(404, "not_found");
    // what cannot be read comes before what is not there
    for meter in ["nosuch", ""] {
        let event = json!({"meter": meter, "subject": "s", "quantity": 1, "timestamp": "yesterday"});
        workspace.post("/v1/usages", &event).await.error(400, "invalid_timestamp");
        let bulk = workspace.post("/v1/usages/bulk", &json!([event])).await.json(400);
        assert_eq!(bulk["failed_items"][0]["code"], "invalid_timestamp", "{bulk}");
    }
    for huge in ["1e400", "-1e400", "1e999999999", "1e99999999999999999999", "1e-999999999"] {
        let body = good.replace("\"quantity\":1", &format!("\"quantity\":{huge}"));
        assert_ne!(body, good);
        assert_eq!(workspace.post_text("/v1/usages", body).await.status, 400, "{huge}");
    }
    server.client().post_text("/v1/usages", good.as_str()).await.error(401, "unauthorized");
    nothing_stored(&database);
    workspace.post_text("/v1/usages", good).await.expect(201);
}

async fn bad_batches_are_refused(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("calls", "count").await;
    let event: Value = serde_json::from_str(&with("subject", json!("s"))).expect("JSON");
    let bulk = |body: String| workspace.post_text("/v1/usages/bulk", body);
    for body in ["", "[", "{}", "5", "[5]", "[null, \"x\"]", "[[]]"] {
        bulk(body.into()).await.error(400, "invalid_json");
    }
    // one item of a wrong type refuses the whole call; one item of a bad value does not
    bulk(format!("[{event},{}]", with("quantity", json!("1")))).await.error(400, "invalid_json");
    for body in ["[]", "null"] {
        bulk(body.into()).await.error(400, "invalid_input");
    }
    bulk(json!(vec![event.clone(); 1001]).to_string()).await.error(400, "invalid_input");
    let body =
        bulk(format!("[{},{}]", with("quantity", json!(-1)), with("meter", json!("nosuch")))).await.json(400);
    assert_eq!(body["failed"], 2, "a bulk result, not an envelope: {body}");
    let codes: Vec<&Value> =
        body["failed_items"].as_array().expect("a list").iter().map(|item| &item["code"]).collect();
    assert_eq!(codes, ["invalid_input", "not_found"]);
    nothing_stored(&database);
    let body = bulk(json!(vec![event; 1000]).to_string()).await.json(201);
    assert_eq!(body["accepted"], 1000);
    assert_eq!(workspace.total("calls").await, "1000");
}

async fn metadata_must_fit_the_dimensions(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    let dimensions = json!([
        {"name": "region", "type": "string"},
        {"name": "size", "type": "number", "required": false},
        {"name": "net.ok", "type": "boolean", "required": false},
    ]);
    let meter = json!({"name": "calls", "unit": "call", "aggregation": "count", "dimensions": dimensions});
    workspace.post("/v1/meters", &meter).await.expect(201);
    let bad = [
        json!({}),
        json!({"region": 1}),
        json!({"region": null}),
        json!({"region": "eu", "size": "10"}),
        json!({"region": "eu", "net.ok": "true"}),
        json!({"region": "eu", "net": {"ok": 1}}),
        json!({"region": "eu", "net": 5, "net.ok": true}),
    ];
    for metadata in bad {
        workspace.post_text("/v1/usages", with("metadata", metadata)).await.error(400, "invalid_input");
    }
    nothing_stored(&database);
    let long = "x".repeat(60_000);
    let metadata = json!({"region": "eu", "net.ok": true, "note": long, "list": [1, {"a": null}]});
    let stored = workspace.post_text("/v1/usages", with("metadata", metadata)).await.json(201);
    assert_eq!(stored["metadata"]["net"]["ok"], true, "a dotted name is stored nested");
    assert_eq!(stored["metadata"]["note"], long.as_str(), "60 kB of metadata are kept");
}

async fn oversized_bodies_are_413(database: Database) {
    let server = Server::start_with(&database, &[("OPEN_SPANNER_INGESTION_MAX_BODY_BYTES", "2000")]);
    let workspace = server.workspace().await;
    workspace.meter("calls", "count").await;
    let long = with("metadata", json!({"note": "x".repeat(2000)}));
    for (path, body) in [("/v1/usages", long.clone()), ("/v1/usages/bulk", format!("[{long}]"))] {
        let message = workspace.post_text(path, body).await.error(413, "request_too_large");
        assert_eq!(message, "request body exceeds 2000 bytes");
    }
    // no Content-Length: the body is counted as it comes
    let text = chunked(&server, &workspace, &long);
    assert!(text.starts_with("HTTP/1.1 413 ") && text.contains("request_too_large"), "{text}");
    // other endpoints have a limit of their own
    let endless = json!({"name": "x".repeat(30 << 20), "unit": "u"});
    workspace.post("/v1/meters", &endless).await.error(413, "request_too_large");
    nothing_stored(&database);
    workspace.post_text("/v1/usages", with("metadata", json!({"note": "x".repeat(1500)}))).await.expect(201);
}

/// Sends a body in chunks over a plain socket; returns the head and what came of the answer's body.
fn chunked(server: &Server, workspace: &Client, body: &str) -> String {
    use std::io::{Read, Write};
    let mut socket = std::net::TcpStream::connect(server.http()).expect("the server listens");
    socket.set_read_timeout(Some(std::time::Duration::from_secs(20))).expect("a valid timeout");
    let authorization = workspace.header("authorization");
    let mut request = format!(
        "POST /v1/usages HTTP/1.1\r\nHost: x\r\nAuthorization: {authorization}\r\nConnection: close\r\n\
         Transfer-Encoding: chunked\r\n\r\n"
    );
    for chunk in body.as_bytes().chunks(500) {
        request += &format!("{:x}\r\n{}\r\n", chunk.len(), String::from_utf8_lossy(chunk));
    }
    request += "0\r\n\r\n";
    socket.write_all(request.as_bytes()).expect("it fits the socket's buffer");
    let mut answer = Vec::new();
    // the connection may be reset after the answer, because the body was not read
    let _ = socket.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

async fn deep_nesting_is_refused(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("calls", "count").await;
    let nested = |depth: usize| format!("{}1{}", "{\"a\":".repeat(depth), "}".repeat(depth));
    let with_metadata = |metadata: String| with("metadata", json!("@")).replace("\"@\"", &metadata);
    for depth in [20_000, 100_000] {
        workspace.post_text("/v1/usages", with_metadata(nested(depth))).await.error(400, "invalid_json");
        // inside a field that nobody reads
        let unread = with("nobody", json!("@")).replace("\"@\"", &nested(depth));
        for body in [nested(depth), unread.clone(), format!("{{\"a\":{}", "[".repeat(depth))] {
            workspace.post_text("/v1/usages", body.as_str()).await.error(400, "invalid_json");
            workspace.post_text("/v1/meters", body).await.error(400, "invalid_json");
        }
        for body in [format!("[{unread}]"), "[".repeat(depth)] {
            workspace.post_text("/v1/usages/bulk", body).await.error(400, "invalid_json");
        }
    }
    let rules = "{\"type\":\"group\",\"op\":\"and\",\"rules\":[".repeat(15_000);
    let (from, to) = JUNE;
    let search = format!("{{\"meter\":\"calls\",\"from\":\"{from}\",\"to\":\"{to}\",\"filter\":{rules}");
    workspace.post_text("/v1/usages/search", search.as_str()).await.error(400, "invalid_json");
    let query = json!({"kind": "usage_events", "query": "@"}).to_string().replace("\"@\"", &search);
    workspace.post_text("/v1/exports", query).await.error(400, "invalid_json");
    nothing_stored(&database);
    workspace.post_text("/v1/usages", with_metadata(nested(50))).await.expect(201);
    server.client().get("/ready").await.expect(204);
}

/// Stored or refused as bad input, never a failure of the server.
#[track_caller]
fn handled(answer: &Answer) {
    assert!(
        (200..500).contains(&answer.status),
        "{} answered {} {}",
        answer.request,
        answer.status,
        answer.text
    );
}

async fn nul_characters_never_break_anything(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("calls", "count").await;
    workspace.post_text("/v1/usages", with("subject", json!("a\0b"))).await.error(400, "invalid_input");
    let answer = workspace.post_text("/v1/usages", with("meter", json!("calls\0"))).await;
    assert!([400, 404].contains(&answer.status), "{} {}", answer.status, answer.text);
    nothing_stored(&database);

    for (field, value) in [
        ("idempotency_key", json!("k\0")),
        ("metadata", json!({"note": "a\0b"})),
        ("metadata", json!({"a\0b": 1})),
        ("metadata", json!({"list": ["\0", {"\0": "\0"}]})),
    ] {
        let body = with(field, value);
        assert!(body.contains("\\u0000"), "{body}");
        workspace.post_text("/v1/usages", body.as_str()).await.error(400, "invalid_input");
    }
    nothing_stored(&database);
    one_nul_fails_its_item_alone(&workspace).await;
    // a backslash before it makes it a text of six characters
    let metadata = json!({"note": "\\u0000"});
    let stored = workspace.post_text("/v1/usages", with("metadata", metadata.clone())).await.json(201);
    assert_eq!(stored["metadata"], metadata);

    handled(&workspace.post("/v1/meters", &json!({"name": "a\0b", "unit": "u"})).await);
    handled(&workspace.post("/v1/meters", &json!({"name": "c", "unit": "u", "description": "\0"})).await);
    handled(&workspace.session.post("/v1/auth/api-keys", &json!({"name": "a\0b"})).await);
    let user = json!({"email": "a\0b@example.com", "password": "correct horse battery"});
    handled(&server.client().post("/v1/auth/users", &user).await);
    handled(&server.client().post("/v1/auth/sessions", &user).await);
    let (from, to) = JUNE;
    for path in [
        format!("/v1/usages?meter=%00&from={from}&to={to}"),
        format!("/v1/usages?meter=calls&from={from}&to={to}&subject=a%00b"),
        format!("/v1/usages?meter=calls&from={from}&to={to}&metadata.note=%00"),
        format!("/v1/usages?meter=calls&from={from}&to={to}&metadata.%00=x"),
        format!("/v1/usages?meter=calls&from={from}&to={to}&group_by=%00"),
        "/v1/meters?name=%00".to_string(),
        "/v1/meters?cursor=%00".to_string(),
        "/v1/meters/%00".to_string(),
    ] {
        handled(&workspace.get(&path).await);
    }
    for query in ["meter=%00", "meter=calls&f=metadata.note:eq:%00", "meter=calls&group=%00"] {
        let link = json!({"query": query});
        workspace.post("/v1/usage/short-links", &link).await.error(400, "invalid_input");
    }
    handled(
        &workspace.with("idempotency-key", "plain").post("/v1/usages/bulk", &json!([{"meter": "\0"}])).await,
    );
    server.client().get("/ready").await.expect(204);
}

/// Each of these would take minutes or gigabytes if it were done first and measured then: the test would not end.
async fn what_costs_too_much_is_refused_before_it_is_done(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("calls", "count").await;
    let digits = "1".repeat(7_000_000);
    let long = |digits: &str| format!("{{\"meter\":\"calls\",\"subject\":\"s\",\"quantity\":{digits}}}");
    workspace.post_text("/v1/usages", long(&digits[..900_000])).await.error(400, "invalid_input");
    let bulk = workspace.post_text("/v1/usages/bulk", format!("[{}]", long(&digits))).await.json(400);
    assert_eq!(bulk["failed"], 1);
    let lines = workspace.with("content-type", "application/x-ndjson").with("content-encoding", "gzip");
    for (text, failed) in [
        (long(&"1".repeat(1_000_000)), "invalid_input"),
        (format!("{{\"meter\":\"{}\"}}", "a".repeat(20_000_000)), "a line must not be longer than"),
    ] {
        let answer = lines.post_bytes("/v1/usages/bulk", gzip(text.as_bytes())).await;
        assert!(answer.text.contains(failed), "{failed}: {answer:?}");
    }
    let event =
        json!({"specversion": "1.0", "id": "1", "source": "s", "type": "calls", "subject": "s"}).to_string();
    let event = event.replacen('{', &format!("{{\"data\":{{\"value\":{}}},", &digits[..1_000_000]), 1);
    let events = workspace.with("content-type", "application/cloudevents+json");
    events.post_bytes("/v1/cloudevents", event.into_bytes()).await.error(400, "invalid_input");
    let (from, to) = JUNE;
    let filter = format!(
        "{{\"meter\":\"calls\",\"from\":\"{from}\",\"to\":\"{to}\",\"filter\":{{\"type\":\"condition\",\"field\":\"quantity\",\"op\":\"gt\",\"value\":{}}}}}",
        &digits[..1_900_000]
    );
    workspace.post_text("/v1/usages/search", filter).await.error(400, "invalid_input");
    for (metadata, words) in [
        // PostgreSQL writes the zeros out
        (format!("{{\"a\":[{}]}}", vec!["1e308"; 9_300].join(",")), "must not be longer"),
        (format!("{{\"a\":[{}]}}", vec!["0"; 60_000].join(",")), "must not be longer"),
        (format!("{{\"a\":[{}]}}", vec!["1e308"; 100].join(",")), ""),
    ] {
        let event = with("subject", json!("s")).replacen('{', &format!("{{\"metadata\":{metadata},"), 1);
        let answer = workspace.post_text("/v1/usages", event).await;
        match words {
            "" => drop(answer.expect(201)),
            words => assert!(answer.error(400, "invalid_input").contains(words)),
        }
    }
    // a name with dots becomes levels
    let name = ["a"; 90].join(".");
    let meter = json!({"name": "deep", "unit": "u", "dimensions": [{"name": name, "type": "string"}]});
    if workspace.post("/v1/meters", &meter).await.status == 201 {
        let event = json!({"meter": "deep", "subject": "s", "quantity": 1, "metadata": {name: "x"}});
        workspace.post("/v1/usages", &event).await.error(400, "invalid_input");
    }
    let query = json!({"kind": "usage_events", "query": {"anchor": "x".repeat(1_000_000)}});
    workspace.post("/v1/exports", &query).await.error(400, "invalid_input");
    long_data_of_cloudevents_is_not_read(&workspace).await;
    cursors_with_a_nul_are_none_of_ours(&workspace).await;
    server.client().get("/ready").await.expect(204);
}

/// What becomes metadata is measured like metadata, before it is values.
async fn long_data_of_cloudevents_is_not_read(workspace: &Client) {
    let event = |id: &str, data: String| {
        format!(r#"{{"specversion":"1.0","id":"{id}","source":"long","type":"calls","subject":"s",{data}}}"#)
    };
    let zeros = |count: usize| format!(r#"{{"a":[{}0]}}"#, "0,".repeat(count - 1));
    let packed = base64::engine::general_purpose::STANDARD.encode(zeros(1_000_000));
    let long = [
        format!(r#""data":{}"#, zeros(3_000_000)),
        format!(r#""data_base64":"{packed}""#),
        // not so long, but more values than fit
        format!(r#""data":{}"#, zeros(40_000)),
    ];
    let one = workspace.with("content-type", "application/cloudevents+json");
    for data in long {
        let body = event("1", data);
        let refused = one.post_bytes("/v1/cloudevents", body.clone().into_bytes()).await;
        let message = refused.error(400, "invalid_input");
        assert!(message.contains("data must not be longer"), "{message}");
        let refused = one.post_bytes("/api/v1/events", body.into_bytes()).await.json(400);
        let message = refused["failed_items"][0]["message"].as_str().expect("a message");
        assert!(message.contains("data must not be longer"), "{message}");
    }
    // many at once are read beside the other requests; blanks count as little as in metadata
    let blanks = " ".repeat(100_000);
    let data = format!(r#""data":{{"quantity":1,{blanks}"region":"eu"}}"#);
    let batch: Vec<String> = (0..20).map(|id| event(&id.to_string(), data.clone())).collect();
    let many = workspace.with("content-type", "application/cloudevents-batch+json");
    let stored = many.post_bytes("/v1/cloudevents", format!("[{}]", batch.join(",")).into_bytes()).await;
    assert_eq!(stored.json(201)["accepted"], 20);
}

async fn cursors_with_a_nul_are_none_of_ours(workspace: &Client) {
    for position in [
        json!({"name": "\0"}),
        json!({"meter": "\0"}),
        json!({"subject": "\0", "time": "1", "id": "\0"}),
        json!({"time": "2026-06-01T00:00:00Z", "id": "\0"}),
        json!([1, "\0"]),
    ] {
        let cursor = URL_SAFE_NO_PAD.encode(position.to_string());
        for list in [
            "meters",
            "meters/stats",
            "subjects",
            "exports",
            "entitlements/decisions",
            "entitlements/events",
            "usageevents",
            "alerts",
            "plans",
        ] {
            let answer = workspace.get(&format!("/v1/{list}?cursor={cursor}")).await;
            assert!([200, 400].contains(&answer.status), "{list} {position}: {answer:?}");
        }
    }
}

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut packer = GzEncoder::new(Vec::new(), flate2::Compression::default());
    packer.write_all(text).expect("memory");
    packer.finish().expect("memory")
}

async fn one_nul_fails_its_item_alone(workspace: &Client) {
    let items = [
        ("idempotency_key", json!("k\0"), "invalid_input"),
        ("subject", json!("\0"), "invalid_input"),
        ("meter", json!("calls\0"), "invalid_input"),
        ("timestamp", json!("\0"), "invalid_timestamp"),
        ("metadata", json!({"note": "a\0b"}), "invalid_input"),
        ("metadata", json!({"a\0b": 1}), "invalid_input"),
        ("metadata", json!({"list": ["\0", {"\0": "\0"}]}), "invalid_input"),
        // nobody reads it
        ("unknown", json!("\0"), ""),
    ];
    let bodies: Vec<String> = items.iter().map(|(field, value, _)| with(field, value.clone())).collect();
    assert!(bodies.iter().all(|body| body.contains("\\u0000")), "{bodies:?}");
    let good = with("subject", json!("s"));
    let result =
        workspace.post_text("/v1/usages/bulk", format!("[{},{good}]", bodies.join(","))).await.json(201);
    assert_eq!((&result["accepted"], &result["failed"]), (&json!(2), &json!(7)), "{result}");
    let codes: Vec<&str> = result["failed_items"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|item| item["code"].as_str().expect("a code"))
        .collect();
    let wanted: Vec<&str> = items.iter().map(|(_, _, code)| *code).filter(|code| !code.is_empty()).collect();
    assert_eq!(codes, wanted, "{result}");
    let all_bad = workspace.post_text("/v1/usages/bulk", format!("[{}]", bodies[0])).await.json(400);
    assert_eq!(all_bad["failed"], 1, "a bulk result, not an envelope: {all_bad}");
}

async fn other_workspaces_do_not_exist(database: Database) {
    let server = Server::start(&database);
    let (mine, theirs) = (server.workspace().await, server.workspace().await);
    let foreign = theirs.meter("calls", "count").await;
    let path = format!("/v1/meters/{foreign}");
    mine.get(&path).await.error(404, "not_found");
    mine.put(&path, &json!({"unit": "stolen"})).await.error(404, "not_found");
    mine.delete(&path).await.error(404, "not_found");
    mine.post_text("/v1/usages", with("subject", json!("s"))).await.error(404, "not_found");
    let (from, to) = JUNE;
    mine.get(&format!("/v1/usages?meter=calls&from={from}&to={to}")).await.error(404, "not_found");
    let keys = theirs.session.get("/v1/auth/api-keys").await.json(200);
    let key = keys["items"][0]["id"].as_str().expect("an id");
    mine.session.delete(&format!("/v1/auth/api-keys/{key}")).await.error(404, "not_found");
    nothing_stored(&database);
    assert_eq!(theirs.get(&path).await.json(200)["unit"], "unit");
    theirs.post_text("/v1/usages", with("subject", json!("s"))).await.expect(201);
    mine.meter("calls", "count").await;
    assert_eq!(mine.total("calls").await, "0");
    assert_eq!(theirs.total("calls").await, "1");
}

async fn bad_queries_are_refused(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("calls", "count").await;
    let (from, to) = JUNE;
    let window = format!("from={from}&to={to}");
    for (query, code) in [
        (format!("meter=calls&to={to}"), "invalid_from"),
        (format!("meter=calls&from={from}"), "invalid_to"),
        (format!("meter=calls&from=june&to={to}"), "invalid_from"),
        (format!("meter=calls&from={to}&to={from}"), "invalid_input"),
        (format!("meter=calls&{window}&bucket_size=fortnight"), "invalid_input"),
        (format!("meter=calls&{window}&time_zone=Mars/Base"), "invalid_input"),
        (format!("meter=calls&{window}&anchor=noon"), "invalid_anchor"),
        (format!("meter=calls&{window}&week_start=friday"), "invalid_input"),
        (format!("meter=calls&{window}&limit=0"), "invalid_limit"),
        (format!("meter=calls&{window}&limit=ten"), "invalid_limit"),
        (format!("meter=calls&{window}&group_by=nosuch"), "invalid_input"),
        (format!("meter=calls&{window}&subject=a%20b"), "invalid_input"),
        (format!("meter=calls&{window}&metadata.a%22b=1"), "invalid_input"),
        (format!("meter=calls&bucket_size=hour&from={from}&to=2026-08-01T00:00:00Z"), "invalid_input"),
        (window.clone(), "invalid_input"),
    ] {
        workspace.get(&format!("/v1/usages?{query}")).await.error(400, code);
    }
    workspace.get(&format!("/v1/usages?meter=nosuch&{window}")).await.error(404, "not_found");
    workspace.get("/v1/meters/nosuch").await.error(404, "not_found");
    workspace.get("/v1/meters?limit=-1").await.error(400, "invalid_limit");
    workspace.get("/v1/meters?cursor=%21%21").await.error(400, "invalid_input");
}

async fn rate_limit_never_refuses_what_is_stored(database: Database) {
    let settings = [
        ("OPEN_SPANNER_INGESTION_RATE_LIMIT_EVENTS", "10"),
        ("OPEN_SPANNER_INGESTION_RATE_LIMIT_WINDOW", "1h"),
    ];
    let server = Server::start_with(&database, &settings);
    let workspace = server.workspace().await;
    workspace.meter("calls", "sum").await;
    let limits = json!([{"meter": "calls", "limit": 3, "enforcement": "hard"}]);
    let plan = workspace.post("/v1/plans", &json!({"name": "p", "limits": limits})).await.json(201);
    workspace.put("/v1/plans/subjects/c", &json!({"plan_id": plan["id"]})).await.expect(200);
    let consume = |key: &str, quantity: u32| json!({"meter": "calls", "subject": "c", "quantity": quantity, "idempotency_key": key});
    let granted = workspace.post("/v1/entitlements/consume", &consume("granted", 2)).await.json(201);
    let refused = workspace.post("/v1/entitlements/consume", &consume("refused", 5)).await.json(429);

    let other = server.workspace().await;
    other.meter("calls", "sum").await;
    let item = |key: Option<String>| json!({"meter": "calls", "subject": "s", "quantity": 1, "timestamp": NOON, "idempotency_key": key});
    let keyless: Vec<Value> = (0..10).map(|_| item(None)).collect();
    let named = other.with("idempotency-key", "whole call");
    let first = named.post("/v1/usages/bulk", &json!(keyless)).await.json(201);
    other.post("/v1/usages", &item(None)).await.error(429, "rate_limited");
    assert_eq!(named.post("/v1/usages/bulk", &json!(keyless)).await.json(201), first, "an empty bucket");

    let keyed: Vec<Value> = (0..30).map(|n| item(Some(format!("k{n}")))).collect();
    // nine are left of the allowance: not a full bucket yet
    workspace.post("/v1/usages/bulk", &json!(keyed)).await.error(429, "rate_limited");
    workspace.post("/v1/usages/bulk", &json!(keyed[..9])).await.expect(201);
    workspace.post("/v1/usages", &item(None)).await.error(429, "rate_limited");
    for _ in 0..3 {
        let again = workspace.post("/v1/usages/bulk", &json!(keyed[..9])).await.json(201);
        assert_eq!(again["duplicates"], 9, "{again}");
        workspace.post("/v1/usages", &keyed[0]).await.expect(201);
        let twice = json!([keyed[1], keyed[1], keyed[2]]);
        assert_eq!(workspace.post("/v1/usages/bulk", &twice).await.json(201)["duplicates"], 3);
        let replay = workspace.post("/v1/entitlements/consume", &consume("granted", 2)).await;
        assert_eq!(replay.json(201)["event"], granted["event"]);
        let replay = workspace.post("/v1/entitlements/consume", &consume("refused", 5)).await.json(429);
        assert_eq!(replay["quota"], refused["quota"], "the decision, not the limit of the rate");
    }
}

async fn rate_limit_charges_new_events_only(database: Database) {
    let settings = [
        ("OPEN_SPANNER_INGESTION_RATE_LIMIT_EVENTS", "10"),
        ("OPEN_SPANNER_INGESTION_RATE_LIMIT_WINDOW", "1h"),
    ];
    let server = Server::start_with(&database, &settings);
    let workspace = server.workspace().await;
    workspace.meter("calls", "count").await;
    let keyed = |key: String| json!({"meter": "calls", "subject": "s", "quantity": 1, "timestamp": NOON, "idempotency_key": key});
    for number in 0..8 {
        workspace.post("/v1/usages", &keyed(format!("k{number}"))).await.expect(201);
        // neither a repetition nor a refusal is charged
        workspace.post("/v1/usages", &keyed(format!("k{number}"))).await.expect(201);
        workspace.post_text("/v1/usages", with("quantity", json!(-1))).await.error(400, "invalid_input");
    }
    let three: Vec<Value> = (0..3).map(|number| keyed(format!("bulk{number}"))).collect();
    let refused = workspace.post("/v1/usages/bulk", &json!(three)).await;
    let retry_after: u32 = refused.header("retry-after").parse().expect("whole seconds");
    assert!((1..=3600).contains(&retry_after), "{retry_after}");
    refused.error(429, "rate_limited");
    assert_eq!(database.count("events"), 8, "a call is granted whole or not at all");
    workspace.post("/v1/usages/bulk", &json!(three[..2])).await.expect(201);
    workspace.post("/v1/usages", &keyed("late".into())).await.error(429, "rate_limited");
    workspace.post("/v1/usages", &keyed("k0".into())).await.expect(201);
    assert_eq!(workspace.total("calls").await, "10");
    // the limit is one workspace's own
    let other = server.workspace().await;
    other.meter("calls", "count").await;
    other.post("/v1/usages", &keyed("k0".into())).await.expect(201);
}
