//! Doors for other formats lead to the same events: NDJSON, CloudEvents, OpenMeter; packed or not.

use std::io::Write;

use serde_json::{Value, json};

use crate::support::client::NOON;
use crate::support::{Client, Database, Server, Workspace, on_both_databases};

on_both_databases!(
    lines_are_answered_line_by_line,
    cloudevents_come_in_three_ways,
    openmeters_events_are_taken,
    every_door_leads_to_the_same_event,
    packed_bodies_are_unpacked,
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
    post_as(&workspace, "application/x-ndjson", "/v1/usages/bulk", &too_many)
        .await
        .error(400, "invalid_input");
    post_as(&workspace, "application/x-ndjson", "/v1/usages/bulk", "\n\n").await.error(400, "invalid_input");
    server
        .client()
        .with("content-type", "application/x-ndjson")
        .post_bytes("/v1/usages/bulk", b"{}".to_vec())
        .await
        .expect(401);
}

fn cloudevent(id: &str) -> Value {
    json!({"specversion": "1.0", "id": id, "source": "/app", "type": "calls", "subject": "acme", "time": NOON,
           "datacontenttype": "application/json", "data": {"quantity": 0.1, "region": "eu"}})
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
