//! Doors for other formats lead to the same events: NDJSON, CloudEvents, OpenMeter; packed or not.

mod one_file;

use std::io::Write;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::sdk::python;
use crate::support::client::{NOON, sign_in, sign_up};
use crate::support::{Client, Database, Server, Workspace, on_both_databases, program};

on_both_databases!(
    lines_are_answered_line_by_line,
    lines_are_answered_while_they_are_sent,
    a_client_that_reads_no_answer_is_not_in_its_own_way,
    large_bodies_side_by_side_wait_for_each_other,
    packed_lines_of_a_workspace_wait_for_each_other,
    cloudevents_come_in_three_ways,
    openmeters_events_are_taken,
    another_payload_under_a_cloudevents_key_is_told,
    every_door_leads_to_the_same_event,
    packed_bodies_are_unpacked,
    cloudevents_of_the_http_binding_are_read,
    the_library_of_cloudevents_is_understood,
);

fn line(key: &str, quantity: &str) -> String {
    format!(
        r#"{{"idempotency_key":"{key}","meter":"calls","subject":"acme","quantity":{quantity},"timestamp":"{NOON}"}}"#
    )
}

async fn post_as(client: &Client, content_type: &str, path: &str, body: &str) -> crate::support::Answer {
    client.with("content-type", content_type).post_bytes(path, body.as_bytes().to_vec()).await
}

fn told_of(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

async fn lines_are_answered_line_by_line(database: Database) {
    let server = Server::start(&database);
    let workspace = Workspace::create(&server.client()).await;
    workspace.meter("calls", "sum").await;
    let body = [
        line("a", "0.1"),
        String::new(),
        "{broken".into(),
        line("b", "0"),
        line("a", "0.1"),
        line("c", "0.2"),
    ];
    let answer =
        post_as(&workspace, "application/x-ndjson", "/v1/usages/bulk", &body.join("\n")).await.expect(200);
    let told = told_of(&answer.text);
    let status: Vec<(u64, &str)> = told[..told.len() - 1]
        .iter()
        .map(|line| (line["line"].as_u64().expect("a number"), line["status"].as_str().expect("a word")))
        .collect();
    let expected = [(1, "accepted"), (3, "failed"), (4, "failed"), (5, "duplicate"), (6, "accepted")];
    assert_eq!(status, expected, "{}", answer.text);
    assert_eq!(told[told.len() - 1], json!({"accepted": 2, "duplicates": 1, "failed": 2}));
    assert_eq!(workspace.total("calls").await, "0.3");
    // many parts
    let many: Vec<String> = (0..2_500).map(|at| line(&format!("k-{at}"), "0.1")).collect();
    for expected in [
        json!({"accepted": 2_500, "duplicates": 0, "failed": 0}),
        json!({"accepted": 0, "duplicates": 2_500, "failed": 0}),
    ] {
        let answer =
            post_as(&workspace, "application/x-ndjson; charset=utf-8", "/v1/usages/bulk", &many.join("\n"))
                .await;
        let told = told_of(&answer.expect(200).text);
        assert_eq!((told.len(), &told[2_500]), (2_501, &expected));
    }
    assert_eq!(workspace.total("calls").await, "250.3");
    let too_many = "{}\n".repeat(100_001);
    let answer = post_as(&workspace, "application/x-ndjson", "/v1/usages/bulk", &too_many).await.expect(200);
    let told = told_of(&answer.text);
    assert_eq!(told.len(), 100_001);
    assert_eq!((&told[100_000]["line"], &told[100_000]["status"]), (&json!(100_001), &json!("error")));
    let too_long = format!("{}\n{}", line("d", "0.1"), " ".repeat(32 << 20));
    post_as(&workspace, "application/x-ndjson", "/v1/usages/bulk", &too_long)
        .await
        .error(413, "request_too_large");
    let no_text =
        [line("e", "0.5").into_bytes(), b"\xff\xfe".to_vec(), line("f", "0.5").into_bytes()].join(&b'\n');
    let answer = workspace
        .with("content-type", "application/x-ndjson")
        .post_bytes("/v1/usages/bulk", no_text)
        .await
        .expect(200);
    let status: Vec<Value> = told_of(&answer.text).iter().map(|line| line["status"].clone()).collect();
    assert_eq!(status, [json!("accepted"), json!("failed"), json!("accepted"), Value::Null]);
    assert_eq!(workspace.total("calls").await, "251.3");
    post_as(&workspace, "application/x-ndjson", "/v1/usages/bulk", "\n\n").await.error(400, "invalid_input");
    server
        .client()
        .with("content-type", "application/x-ndjson")
        .post_bytes("/v1/usages/bulk", b"{}".to_vec())
        .await
        .expect(401);
}

/// A connection on which a body of lines is sent by and by.
async fn open_lines(server: &Server, workspace: &Workspace) -> tokio::net::TcpStream {
    open_lines_with(server, workspace, "").await
}

/// The same with more headers.
async fn open_lines_with(server: &Server, workspace: &Workspace, more: &str) -> tokio::net::TcpStream {
    let address = server.url().trim_start_matches("http://").to_owned();
    let mut connection = tokio::net::TcpStream::connect(&address).await.expect("the server listens");
    let head = format!(
        "POST /v1/usages/bulk HTTP/1.1\r\nhost: {address}\r\nauthorization: {}\r\ncontent-type: application/x-ndjson\r\n\
         transfer-encoding: chunked\r\n{more}\r\n",
        workspace.header("authorization")
    );
    connection.write_all(head.as_bytes()).await.expect("sent");
    connection
}

async fn send_chunk(connection: &mut tokio::net::TcpStream, text: &str) {
    let chunk = format!("{:x}\r\n{text}\r\n", text.len());
    connection.write_all(chunk.as_bytes()).await.expect("sent");
}

/// Reads until this text was seen; answers everything up to then.
async fn read_until(connection: &mut tokio::net::TcpStream, text: &str) -> String {
    let (mut seen, mut buffer) = (String::new(), vec![0; 1 << 16]);
    while !seen.contains(text) {
        let read = connection.read(&mut buffer);
        let read = tokio::time::timeout(std::time::Duration::from_secs(20), read).await;
        let read = read.unwrap_or_else(|_| panic!("no {text:?} in {seen}")).expect("readable");
        assert!(read > 0, "no {text:?} in {seen}");
        seen.push_str(&String::from_utf8_lossy(&buffer[..read]));
    }
    seen
}

/// The answer to a line is there before the next line is sent.
async fn lines_are_answered_while_they_are_sent(database: Database) {
    let server = Server::start(&database);
    let workspace = Workspace::create(&server.client()).await;
    workspace.meter("calls", "sum").await;
    let mut connection = open_lines(&server, &workspace).await;
    for at in 1..=3 {
        // a line in two pieces
        let text = line(&format!("k-{at}"), "0.1");
        send_chunk(&mut connection, &text[..20]).await;
        send_chunk(&mut connection, &format!("{}\n", &text[20..])).await;
        read_until(&mut connection, &format!(r#"{{"line":{at},"status":"accepted""#)).await;
        assert_eq!(database.count("events"), at);
    }
    connection.write_all(b"0\r\n\r\n").await.expect("sent");
    read_until(&mut connection, r#"{"accepted":3,"duplicates":0,"failed":0}"#).await;
    // cut off: what came is stored, and whoever asks again is told so
    let mut connection = open_lines(&server, &workspace).await;
    send_chunk(&mut connection, &format!("{}\n", line("k-4", "0.1"))).await;
    read_until(&mut connection, r#""line":1,"status":"accepted""#).await;
    drop(connection);
    assert_eq!(workspace.total("calls").await, "0.4");
}

/// Most clients send everything before they read: the answers to many lines wait for them.
async fn a_client_that_reads_no_answer_is_not_in_its_own_way(database: Database) {
    let server = Server::start(&database);
    let workspace = Workspace::create(&server.client()).await;
    workspace.meter("calls", "sum").await;
    let mut connection = open_lines(&server, &workspace).await;
    // the answers are far more than the buffers of a connection hold
    let some = "{}\n".repeat(1_000);
    let send = async {
        for _ in 0..100 {
            send_chunk(&mut connection, &some).await;
        }
        connection.write_all(b"0\r\n\r\n").await.expect("sent");
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), send).await.expect("the body is taken");
    read_until(&mut connection, r#"{"accepted":0,"duplicates":0,"failed":100000}"#).await;
}

fn cloudevent(id: &str) -> Value {
    json!({"specversion": "1.0", "id": id, "source": "/app", "type": "calls", "subject": "acme", "time": NOON,
           "datacontenttype": "application/json", "data": {"quantity": 0.1, "region": "eu"}})
}

/// Each is as large as the room of the workspace: what is stored makes room for the rest.
async fn large_bodies_side_by_side_wait_for_each_other(database: Database) {
    let server = Server::start_with(&database, &[("OPEN_SPANNER_BODIES_MAX_BYTES", "1048576")]);
    let workspace = Workspace::create(&server.client()).await;
    workspace.meter("calls", "sum").await;
    let uploads = (0..4).map(|body| {
        let text: Vec<String> = (0..5_000).map(|at| line(&format!("{body}-{at}"), "1")).collect();
        let (text, client) = (text.join("\n"), &workspace);
        assert!(text.len() > 512 * 1024, "{}", text.len());
        async move { post_as(client, "application/x-ndjson", "/v1/usages/bulk", &text).await.expect(200) }
    });
    for answer in futures_util::future::join_all(uploads).await {
        let told = told_of(&answer.text);
        assert_eq!(told.last(), Some(&json!({"accepted": 5_000, "duplicates": 0, "failed": 0})));
    }
    assert_eq!(workspace.total("calls").await, "20000");
}

/// A kilobyte can be a megabyte of lines: so many bodies are unpacked side by side as there is room for in the workspace.
async fn packed_lines_of_a_workspace_wait_for_each_other(database: Database) {
    let server = Server::start_with(&database, &[("OPEN_SPANNER_STREAMS_MAX_BYTES", "4194304")]);
    let workspace = Workspace::create(&server.client()).await;
    let other = Workspace::create(&server.client()).await;
    let packed = |key: &str| {
        let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        packer.write_all(line(key, "0.1").as_bytes()).expect("memory");
        packer.finish().expect("memory")
    };
    let send = |workspace: &Workspace, key: &str| {
        let client = workspace.with("content-encoding", "gzip").with("content-type", "application/x-ndjson");
        let body = packed(key);
        async move { client.post_bytes("/v1/usages/bulk", body).await }
    };
    for workspace in [&workspace, &other] {
        workspace.meter("calls", "sum").await;
    }
    let mut first = open_lines_with(&server, &workspace, "content-encoding: gzip\r\n").await;
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    let second = tokio::spawn(send(&workspace, "b"));
    send(&other, "o").await.expect(200);
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    assert!(!second.is_finished(), "it waits for the first");
    let body = packed("a");
    let head = format!("{:x}\r\n", body.len());
    first.write_all(&[head.as_bytes(), &body, b"\r\n0\r\n\r\n"].concat()).await.expect("sent");
    read_until(&mut first, r#"{"accepted":1,"duplicates":0,"failed":0}"#).await;
    second.await.expect("the call does not panic").expect(200);
    assert_eq!(workspace.total("calls").await, "0.2");
}

async fn cloudevents_come_in_three_ways(database: Database) {
    let server = Server::start(&database);
    let workspace = Workspace::create(&server.client()).await;
    workspace.meter("calls", "sum").await;
    let path = "/v1/cloudevents";
    let one = post_as(&workspace, "application/cloudevents+json", path, &cloudevent("1").to_string())
        .await
        .json(201);
    assert_eq!((&one["idempotency_key"], &one["metadata"]), (&json!("/app 1"), &json!({"region": "eu"})));
    let binary = workspace
        .with("ce-specversion", "1.0")
        .with("ce-id", "1")
        .with("ce-source", "/app")
        .with("ce-type", "calls")
        .with("ce-subject", "ac%6De")
        .with("ce-time", NOON);
    let again =
        post_as(&binary, "application/json", path, r#"{"quantity":0.1,"region":"eu"}"#).await.json(201);
    assert_eq!(again["id"], one["id"], "source and id are the key");
    let batch = json!([cloudevent("1"), cloudevent("2"), {"specversion": "1.0", "id": "3", "source": "/app", "type": "unknown", "subject": "acme"}, {"specversion": "1.0"}]);
    let batch =
        post_as(&workspace, "application/cloudevents-batch+json", path, &batch.to_string()).await.json(201);
    assert_eq!(
        [&batch["accepted"], &batch["duplicates"], &batch["failed"]],
        [&json!(1), &json!(1), &json!(2)],
        "{batch}"
    );
    assert_eq!(
        [&batch["failed_items"][0]["index"], &batch["failed_items"][1]["index"]],
        [&json!(2), &json!(3)]
    );
    assert_eq!(workspace.total("calls").await, "0.2");
    for (content_type, body) in [
        ("application/json", "{}"),
        ("application/cloudevents+json", "{}"),
        ("application/cloudevents+json", "[]"),
        ("application/cloudevents-batch+json", "[]"),
        ("application/cloudevents+json", r#"{"specversion":"2.0","id":"1","source":"s","type":"calls"}"#),
    ] {
        assert_eq!(post_as(&workspace, content_type, path, body).await.status, 400, "{content_type} {body}");
    }
}

async fn openmeters_events_are_taken(database: Database) {
    let server = Server::start(&database);
    let workspace = Workspace::create(&server.client()).await;
    workspace.meter("calls", "sum").await;
    let path = "/api/v1/events";
    post_as(&workspace, "application/cloudevents+json", path, &cloudevent("1").to_string()).await.expect(204);
    let batch = json!([cloudevent("1"), cloudevent("2")]).to_string();
    post_as(&workspace, "application/cloudevents-batch+json", path, &batch).await.expect(204);
    post_as(&workspace, "application/json", path, &batch).await.expect(204);
    // OpenMeter's clients send values as texts, too
    let value = json!({"specversion": "1.0", "id": "3", "source": "/app", "type": "calls", "subject": "acme", "time": NOON,
                       "data": {"value": "0.30"}});
    post_as(&workspace, "application/cloudevents+json", path, &value.to_string()).await.expect(204);
    assert_eq!(workspace.total("calls").await, "0.5");
    let unknown =
        json!({"specversion": "1.0", "id": "4", "source": "/app", "type": "unknown", "subject": "acme"});
    let answer =
        post_as(&workspace, "application/cloudevents+json", path, &unknown.to_string()).await.json(400);
    assert_eq!(answer["failed_items"][0]["code"], "not_found", "{answer}");
}

/// In the headers where the answer has no body for it, and where the workspace wants it, as a refusal.
async fn another_payload_under_a_cloudevents_key_is_told(database: Database) {
    const ONE: &str = "application/cloudevents+json";
    const MANY: &str = "application/cloudevents-batch+json";
    let server = Server::start(&database);
    let workspace = Workspace::create(&server.client()).await;
    workspace.meter("calls", "sum").await;
    let mut other = cloudevent("1");
    other["data"]["quantity"] = json!(7);
    let (same, other) = (cloudevent("1").to_string(), other.to_string());
    let list = |event: &str| format!("[{event}]");
    post_as(&workspace, ONE, "/v1/cloudevents", &same).await.expect(201);
    let told = |answer: &crate::support::Answer| {
        let said = |name| !answer.header(name).is_empty();
        (answer.status, said("idempotency-replayed"), said("idempotency-conflict"))
    };
    for (content_type, path, status, is_single) in [
        (ONE, "/v1/cloudevents", 201, true),
        (MANY, "/v1/cloudevents", 201, false),
        (ONE, "/api/v1/events", 204, false),
        (MANY, "/api/v1/events", 204, false),
    ] {
        let body = |event: &str| if content_type == MANY { list(event) } else { event.to_owned() };
        let again = post_as(&workspace, content_type, path, &body(&same)).await;
        assert_eq!(told(&again), (status, is_single, false), "{content_type} {path}: {}", again.text);
        let conflict = post_as(&workspace, content_type, path, &body(&other)).await;
        assert_eq!(told(&conflict), (status, is_single, true), "{content_type} {path}: {}", conflict.text);
    }
    let refuse = json!({"key_conflicts": "refuse"});
    workspace.session.patch("/v1/auth/workspace", &refuse).await.expect(204);
    post_as(&workspace, ONE, "/v1/cloudevents", &other).await.error(409, "conflict");
    post_as(&workspace, ONE, "/v1/cloudevents", &same).await.expect(201);
    for (content_type, body) in [(ONE, other.clone()), (MANY, list(&other))] {
        let answer = post_as(&workspace, content_type, "/api/v1/events", &body).await.json(400);
        assert_eq!(answer["failed_items"][0]["code"], "conflict", "{answer}");
    }
    assert_eq!(workspace.total("calls").await, "0.1");
}

async fn every_door_leads_to_the_same_event(database: Database) {
    let server = Server::start(&database);
    let workspace = Workspace::create(&server.client()).await;
    workspace.meter("calls", "sum").await;
    let plain = json!({"idempotency_key": "/app 1", "meter": "calls", "subject": "acme", "quantity": 0.1, "timestamp": NOON, "metadata": {"region": "eu"}});
    let first = workspace.post("/v1/usages", &plain).await.json(201);
    let by_cloud =
        post_as(&workspace, "application/cloudevents+json", "/v1/cloudevents", &cloudevent("1").to_string())
            .await;
    assert!(by_cloud.header("idempotency-conflict").is_empty(), "the payload is the same");
    assert_eq!(by_cloud.json(201)["id"], first["id"]);
    let by_line =
        post_as(&workspace, "application/x-ndjson", "/v1/usages/bulk", &plain.to_string()).await.expect(200);
    let by_line = told_of(&by_line.text);
    assert_eq!((&by_line[0]["status"], &by_line[0]["id"]), (&json!("duplicate"), &first["id"]));
    assert_eq!(workspace.total("calls").await, "0.1");
}

async fn packed_bodies_are_unpacked(database: Database) {
    let server = Server::start(&database);
    let workspace = Workspace::create(&server.client()).await;
    workspace.meter("calls", "sum").await;
    let gzip = |text: &str| {
        let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        packer.write_all(text.as_bytes()).expect("memory");
        packer.finish().expect("memory")
    };
    let zstd = |text: &str| {
        ruzstd::encoding::compress_to_vec(text.as_bytes(), ruzstd::encoding::CompressionLevel::Fastest)
    };
    for (encoding, pack) in [("gzip", &gzip as &dyn Fn(&str) -> Vec<u8>), ("zstd", &zstd)] {
        let client = workspace.with("content-encoding", encoding);
        let single = line(&format!("{encoding}-1"), "0.1");
        client
            .with("content-type", "application/json")
            .post_bytes("/v1/usages", pack(&single))
            .await
            .expect(201);
        let bulk = format!("[{}]", line(&format!("{encoding}-2"), "0.1"));
        client
            .with("content-type", "application/json")
            .post_bytes("/v1/usages/bulk", pack(&bulk))
            .await
            .expect(201);
        let lines = [line(&format!("{encoding}-3"), "0.1"), line(&format!("{encoding}-4"), "0.1")].join("\n");
        client
            .with("content-type", "application/x-ndjson")
            .post_bytes("/v1/usages/bulk", pack(&lines))
            .await
            .expect(200);
        let event = cloudevent(encoding).to_string();
        client
            .with("content-type", "application/cloudevents+json")
            .post_bytes("/v1/cloudevents", pack(&event))
            .await
            .expect(201);
        // unpacked it would be far beyond the limit
        let bomb = pack(&" ".repeat(64 << 20));
        client
            .with("content-type", "application/json")
            .post_bytes("/v1/usages/bulk", bomb)
            .await
            .error(413, "request_too_large");
        client
            .with("content-type", "application/json")
            .post_bytes("/v1/usages", b"no such thing".to_vec())
            .await
            .error(400, "invalid_json");
    }
    assert_eq!(workspace.total("calls").await, "1");
}

/// The cases of the HTTP binding of CloudEvents 1.0: how an event is written, and what it comes to.
async fn cloudevents_of_the_http_binding_are_read(database: Database) {
    const ONE: &str = "application/cloudevents+json";
    let server = Server::start(&database);
    let workspace = Workspace::create(&server.client()).await;
    workspace.meter("calls", "sum").await;
    let base = json!({"specversion": "1.0", "id": "1", "source": "/a b", "type": "calls", "subject": "acme", "time": NOON});
    let with = |more: Value| {
        let mut event = base.clone();
        more.as_object().expect("an object").iter().for_each(|(name, value)| event[name] = value.clone());
        event
    };
    // 3.2 structured: by the media type alone, whatever its case and parameters; extensions of every type
    for (content_type, event, status) in [
        (ONE, with(json!({"data": {"quantity": 2}})), 201),
        ("application/cloudevents+json; charset=utf-8", with(json!({"data": {"quantity": 2}})), 201),
        ("Application/CloudEvents+JSON", with(json!({"data": {"quantity": 2}})), 201),
        (
            ONE,
            with(
                json!({"id": "2", "text": "x", "number": 1, "flag": true, "datacontenttype": "application/json"}),
            ),
            201,
        ),
        (ONE, with(json!({"id": "3", "data": null})), 201),
        (ONE, with(json!({"id": "4", "time": "2026-06-15T14:00:00.123456789+02:00"})), 201),
        (ONE, with(json!({"id": ""})), 400),
        (ONE, with(json!({"source": ""})), 400),
        (ONE, with(json!({"type": ""})), 400),
        (ONE, with(json!({"id": null})), 400),
        (ONE, with(json!({"specversion": "0.3"})), 400),
        (ONE, with(json!({"time": "yesterday"})), 400),
        (ONE, with(json!({"data": "text"})), 400),
        (ONE, with(json!({"data_base64": "AAE="})), 400),
        (ONE, with(json!({"type": "unknown"})), 404),
        ("application/cloudevents+xml", with(json!({})), 400),
    ] {
        let answer = post_as(&workspace, content_type, "/v1/cloudevents", &event.to_string()).await;
        assert_eq!(answer.status, status, "{content_type} {event}: {}", answer.text);
    }
    // 3.1 binary: attributes in headers, percent-encoded; the body is the data as it is
    type Headers = &'static [(&'static str, &'static str)];
    let cases: [(Headers, &str, u16); 7] = [
        (
            &[
                ("ce-specversion", "1.0"),
                ("ce-id", "1"),
                ("ce-source", "/a%20b"),
                ("ce-type", "calls"),
                ("ce-subject", "acme"),
            ],
            r#"{"quantity":2}"#,
            201,
        ),
        (
            &[
                ("ce-specversion", "1.0"),
                ("ce-id", "5"),
                ("ce-source", "/a"),
                ("ce-type", "c%61lls"),
                ("ce-subject", "%61cme"),
                ("ce-other", "%E2%82%AC"),
            ],
            "",
            201,
        ),
        (
            &[("ce-specversion", "1.0"), ("ce-source", "/a"), ("ce-type", "calls"), ("ce-subject", "acme")],
            "{}",
            400,
        ),
        (
            &[("ce-specversion", "1.0"), ("ce-id", "6"), ("ce-type", "calls"), ("ce-subject", "acme")],
            "{}",
            400,
        ),
        (
            &[("ce-specversion", "1.0"), ("ce-id", "6"), ("ce-source", "/a"), ("ce-subject", "acme")],
            "{}",
            400,
        ),
        (&[("ce-id", "6"), ("ce-source", "/a"), ("ce-type", "calls"), ("ce-subject", "acme")], "{}", 400),
        (
            &[
                ("ce-specversion", "1.0"),
                ("ce-id", "6"),
                ("ce-source", "/a"),
                ("ce-type", "calls"),
                ("ce-subject", "acme"),
            ],
            "no JSON",
            400,
        ),
    ];
    for (headers, body, status) in cases {
        let client = headers
            .iter()
            .fold(workspace.with("ce-time", NOON), |client, (name, value)| client.with(name, *value));
        let answer = post_as(&client, "application/json; charset=utf-8", "/v1/cloudevents", body).await;
        assert_eq!(answer.status, status, "{headers:?} {body}: {}", answer.text);
    }
    // 3.3 batched: each on its own merits
    let batch = json!([with(json!({"id": "7"})), with(json!({"data": {"quantity": 2}}))]).to_string();
    let answer =
        post_as(&workspace, "application/cloudevents-batch+json; charset=utf-8", "/v1/cloudevents", &batch)
            .await
            .json(201);
    assert_eq!([&answer["accepted"], &answer["duplicates"]], [&json!(1), &json!(1)], "{answer}");
    // 1 of each of 2, 3, 4, 5 and 7, and 2 of the first
    assert_eq!(workspace.total("calls").await, "7");
}

async fn the_library_of_cloudevents_is_understood(database: Database) {
    let server = Server::start(&database);
    let email = sign_up(&server.client()).await;
    let session = sign_in(&server.client(), &email).await;
    let made = session.post("/v1/auth/api-keys", &json!({"name": "all", "scopes": ["*"]})).await.json(201);
    let secret = made["key"].as_str().expect("a secret");
    server.client().with_key(secret).meter("calls", "sum").await;
    let mut command = std::process::Command::new(python());
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python/cloudevents_client.py"));
    command.args([server.url().as_str(), secret]);
    let run = program::finish(command, std::time::Duration::from_secs(120)).succeeded();
    assert!(run.stdout.trim_end().ends_with("all as expected"), "{run:#?}");
    assert_eq!(server.client().with_key(secret).total("calls").await, "0.3");
}
