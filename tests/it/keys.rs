//! `/v1/auth/api-keys`: a secret is shown once, a revoked key ends at once, and a rotated one after its grace period.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Client, Database, Server, on_both_databases};

on_both_databases!(
    a_secret_is_shown_once,
    a_revoked_key_ends_at_once,
    a_rotated_key_lives_out_its_grace,
    a_key_is_rotated_once_by_whoever_comes_first,
    rotations_that_cannot_be,
    bad_keys_are_not_made,
    an_expired_key_opens_nothing,
    keys_are_their_makers_own,
    keys_do_not_manage_keys,
    a_key_is_good_in_its_networks_only,
    keys_of_everybody_are_seen_and_ended,
    revoked_keys_are_bounded,
);

const KEYS: &str = "/v1/auth/api-keys";

async fn make(session: &Client, body: Value) -> Value {
    session.post(KEYS, &body).await.json(201)
}

fn path(key: &Value) -> String {
    format!("{KEYS}/{}", key["id"].as_str().expect("an id"))
}

fn secret(key: &Value) -> &str {
    key["key"].as_str().expect("the secret")
}

/// The key as the list shows it.
async fn listed(session: &Client, key: &Value) -> Value {
    let keys = session.get(KEYS).await.json(200);
    let mut keys = keys["items"].as_array().expect("a list").iter();
    keys.find(|listed| listed["id"] == key["id"]).expect("it is listed").clone()
}

/// What happened to keys, newest first, as (kind, key, related key).
async fn history(session: &Client) -> Vec<(String, Value, Value)> {
    let events = session.get("/v1/auth/api-key-events").await.json(200);
    let events = events["items"].as_array().expect("a list").iter();
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    events
        .map(|event| {
            let related = event.get("related_api_key_id").cloned().unwrap_or_default();
            (text(&event["event_type"]), event["api_key_id"].clone(), related)
        })
        .collect()
}

async fn a_secret_is_shown_once(database: Database) {
    let server = Server::start(&database);
    let session = server.workspace().await.session;
    let made = make(&session, json!({"name": " backend "})).await;
    let text = secret(&made).to_owned();
    assert!(text.starts_with("osp_sk_") && text.len() > 40, "{text}");
    assert_eq!(made["prefix"], json!(text[..18]), "lists show enough to tell keys apart");
    assert_eq!(made["name"], json!("backend"));
    assert_eq!(made["status"], json!("active"));
    let scopes = json!(["usage:write", "usage:read", "meters:read", "meters:write", "plans:read"]);
    assert_eq!((&made["scopes"], &made["allowed_meters"]), (&scopes, &json!([])));
    let list = session.get(KEYS).await.expect(200).text;
    let events = session.get("/v1/auth/api-key-events").await.expect(200).text;
    assert!(!list.contains(&text) && !events.contains(&text));
    assert!(listed(&session, &made).await.get("key").is_none());
    // nor is it in the database
    let stored =
        database.lines("SELECT CAST(count(*) AS TEXT) AS line FROM api_keys WHERE prefix LIKE 'osp_sk_%'");
    assert_eq!(stored, ["2"]);
    let client = server.client().with_key(&text);
    client.get("/v1/meters").await.expect(200);
    client.get("/v1/alerts").await.error(403, "forbidden");
}

async fn a_revoked_key_ends_at_once(database: Database) {
    let server = Server::start(&database);
    let session = server.workspace().await.session;
    let made = make(&session, json!({"name": "k"})).await;
    let client = server.client().with_key(secret(&made));
    client.get("/v1/meters").await.expect(200);
    session.delete(&path(&made)).await.expect(204);
    client.get("/v1/meters").await.error(401, "unauthorized");
    session.delete(&path(&made)).await.expect(204);
    let shown = listed(&session, &made).await;
    assert_eq!(shown["status"], json!("revoked"));
    assert!(shown["revoked_at"].is_string(), "{shown}");
    let about = history(&session).await.into_iter().filter(|(_, key, _)| *key == made["id"]);
    let kinds: Vec<String> = about.map(|(kind, _, _)| kind).collect();
    assert_eq!(kinds, ["revoked", "created"], "the second call changed nothing");
}

async fn a_rotated_key_lives_out_its_grace(database: Database) {
    let server = Server::start(&database);
    let session = server.workspace().await.session;
    let terms = json!({"name": "k", "scopes": ["meters:read"], "allowed_meters": ["m"],
                       "expires_at": "2099-01-01T00:00:00Z"});
    let old = make(&session, terms).await;
    let new = session.post(&format!("{}/rotate", path(&old)), &json!({"grace_period_seconds": 3})).await;
    let rotated = Instant::now();
    let new = new.json(201);
    for term in ["name", "scopes", "allowed_meters", "expires_at"] {
        assert_eq!(new[term], old[term], "{term}");
    }
    assert!(new["id"] != old["id"] && secret(&new) != secret(&old));
    let (before, after) = (server.client().with_key(secret(&old)), server.client().with_key(secret(&new)));
    let used = async |client: &Client| client.get("/v1/meters?name=m").await.status;
    assert_eq!(used(&after).await, 200);
    if used(&before).await == 200 {
        assert!(
            ["revoking", "revoked"]
                .contains(&listed(&session, &old).await["status"].as_str().expect("a text"))
        );
    } else {
        assert!(rotated.elapsed() >= Duration::from_secs(2), "the old key works during its grace");
    }
    while used(&before).await == 200 {
        assert!(rotated.elapsed() < Duration::from_secs(30), "the old key ends after its grace");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(rotated.elapsed() >= Duration::from_secs(2), "{:?}", rotated.elapsed());
    assert_eq!(used(&after).await, 200);
    assert_eq!(listed(&session, &old).await["status"], json!("revoked"));
    assert_eq!(listed(&session, &new).await["status"], json!("active"));
    let told = history(&session).await;
    assert!(told.contains(&("rotated".into(), old["id"].clone(), new["id"].clone())), "{told:?}");
    assert!(told.contains(&("created".into(), new["id"].clone(), old["id"].clone())), "{told:?}");

    // without a grace period the old one ends with the answer
    let newest = session.post(&format!("{}/rotate", path(&new)), &json!({})).await.json(201);
    assert_eq!(used(&after).await, 401);
    assert_eq!(used(&server.client().with_key(secret(&newest))).await, 200);
}

async fn a_key_is_rotated_once_by_whoever_comes_first(database: Database) {
    let server = Server::start(&database);
    let session = server.workspace().await.session;
    let old = make(&session, json!({"name": "k"})).await;
    let calls = (0..8).map(|_| {
        let (session, path) = (session.clone(), format!("{}/rotate", path(&old)));
        tokio::spawn(async move { session.post(&path, &json!({"grace_period_seconds": 60})).await.status })
    });
    let mut statuses = Vec::new();
    for call in calls.collect::<Vec<_>>() {
        statuses.push(call.await.expect("no panic"));
    }
    statuses.sort_unstable();
    assert_eq!(statuses, [201, 409, 409, 409, 409, 409, 409, 409]);
    // the key of the workspace, the old one and one new one
    assert_eq!(database.count("api_keys"), 3);
}

async fn rotations_that_cannot_be(database: Database) {
    let server = Server::start(&database);
    let session = server.workspace().await.session;
    let key = make(&session, json!({"name": "k"})).await;
    let rotate = async |key: &Value, body: Value| session.post(&format!("{}/rotate", path(key)), &body).await;
    for seconds in [-1, 86_401] {
        rotate(&key, json!({"grace_period_seconds": seconds})).await.error(400, "invalid_input");
    }
    rotate(&key, json!({"grace_period_seconds": "1"})).await.error(400, "invalid_json");
    rotate(&json!({"id": "nosuch"}), json!({})).await.error(404, "not_found");
    rotate(&json!({"id": "00000000-0000-4000-8000-000000000000"}), json!({})).await.error(404, "not_found");
    session.delete(&path(&key)).await.expect(204);
    rotate(&key, json!({})).await.error(409, "conflict");
    let expired = make(&session, json!({"name": "e", "expires_at": "2099-01-01T00:00:00Z"})).await;
    database.execute("UPDATE api_keys SET expires_at = 1 WHERE name = 'e'");
    rotate(&expired, json!({})).await.error(409, "conflict");
    assert_eq!(database.count("api_keys"), 3, "a refusal makes no key");
}

async fn bad_keys_are_not_made(database: Database) {
    let server = Server::start(&database);
    let session = server.workspace().await.session;
    let many: Vec<String> = (0..1_001).map(|at| format!("m{at}")).collect();
    for (body, code) in [
        (json!({}), "invalid_input"),
        (json!({"name": " "}), "invalid_input"),
        (json!({"name": "x".repeat(256)}), "invalid_input"),
        (json!({"name": "k", "scopes": ["nosuch:read"]}), "invalid_input"),
        (json!({"name": "k", "scopes": "usage:read"}), "invalid_json"),
        (json!({"name": "k", "allowed_meters": many}), "invalid_input"),
        (json!({"name": "k", "expires_at": "tomorrow"}), "invalid_expires_at"),
        (json!({"name": "k", "expires_at": "2020-01-01T00:00:00Z"}), "invalid_input"),
    ] {
        session.post(KEYS, &body).await.error(400, code);
    }
    assert_eq!(database.count("api_keys"), 1, "the workspace's own");
    assert_eq!(database.count("api_key_events"), 1);
}

async fn an_expired_key_opens_nothing(database: Database) {
    let server = Server::start(&database);
    let session = server.workspace().await.session;
    let key = make(&session, json!({"name": "k", "expires_at": "2099-01-01T00:00:00Z"})).await;
    // before anybody has seen it, so that no memory of it is in the way
    database.execute("UPDATE api_keys SET expires_at = 1 WHERE name = 'k'");
    server.client().with_key(secret(&key)).get("/v1/meters").await.error(401, "unauthorized");
    assert_eq!(listed(&session, &key).await["status"], json!("expired"));
}

async fn keys_are_their_makers_own(database: Database) {
    let server = Server::start(&database);
    let (ann, bob) = (server.workspace().await.session, server.workspace().await.session);
    let key = make(&ann, json!({"name": "k"})).await;
    bob.delete(&path(&key)).await.error(404, "not_found");
    bob.post(&format!("{}/rotate", path(&key)), &json!({})).await.error(404, "not_found");
    let keys = bob.get(KEYS).await.json(200);
    assert_eq!(keys["items"].as_array().map(Vec::len), Some(1), "{keys}");
    assert!(history(&bob).await.iter().all(|(_, id, _)| *id != key["id"]));
    server.client().with_key(secret(&key)).get("/v1/meters").await.expect(200);
}

async fn keys_do_not_manage_keys(database: Database) {
    let server = Server::start(&database);
    let ws = server.workspace().await;
    let key = make(&ws.session, json!({"name": "k"})).await;
    ws.key.get(KEYS).await.error(401, "unauthorized");
    ws.key.post(KEYS, &json!({"name": "x", "scopes": ["*"]})).await.error(401, "unauthorized");
    ws.key.post(&format!("{}/rotate", path(&key)), &json!({})).await.error(401, "unauthorized");
    ws.key.delete(&path(&key)).await.error(401, "unauthorized");
    ws.key.get("/v1/auth/api-key-events").await.error(401, "unauthorized");
    assert_eq!(database.count("api_keys"), 2);
}

async fn a_key_is_good_in_its_networks_only(database: Database) {
    let server = Server::start_with(&database, &[("OPEN_SPANNER_TRUSTED_PROXIES", "127.0.0.0/8")]);
    let session = server.workspace().await.session;
    let networks = json!(["192.0.2.77/24", "2001:db8::/32", " 198.51.100.7 ", "192.0.2.0/24"]);
    let body = json!({"name": "k", "scopes": ["*"], "allowed_networks": networks});
    let made = make(&session, body).await;
    let normal = json!(["192.0.2.0/24", "2001:db8::/32", "198.51.100.7/32"]);
    assert_eq!(made["allowed_networks"], normal);
    assert_eq!(listed(&session, &made).await["allowed_networks"], normal);
    let client = server.client().with_key(secret(&made));
    for (from, is_good) in [
        ("192.0.2.1", true),
        ("::ffff:192.0.2.1", true),
        ("2001:db8::1", true),
        ("198.51.100.7", true),
        ("198.51.100.8", false),
        ("2001:db9::1", false),
        // the last one that no proxy of ours wrote is who it is
        ("192.0.2.1, 203.0.113.9", false),
        ("203.0.113.9, 192.0.2.1", true),
        ("nonsense", false),
    ] {
        let answer = client.with("x-forwarded-for", from).get("/v1/meters").await;
        assert_eq!(answer.status, if is_good { 200 } else { 403 }, "{from}: {}", answer.text);
        let status = grpc_status(&server, secret(&made), Some(from)).await;
        let is_refused = status == tonic::Code::PermissionDenied;
        assert_eq!(is_refused, !is_good, "gRPC from {from}: {status:?}");
    }
    let message = client.get("/v1/meters").await.error(403, "forbidden");
    assert!(message.contains("127.0.0.1"), "{message}");
    assert_eq!(grpc_status(&server, secret(&made), None).await, tonic::Code::PermissionDenied);
    // its successor is confined as well
    let path = format!("{}/rotate", path(&made));
    let next = session.post(&path, &json!({"grace_period_seconds": 0})).await.json(201);
    assert_eq!(next["allowed_networks"], normal);
    server.client().with_key(secret(&next)).get("/v1/meters").await.error(403, "forbidden");
    for bad in [json!(["192.0.2.0/33"]), json!(["example.com"]), json!(["192.0.2.0/24", "*"])] {
        let body = json!({"name": "k", "allowed_networks": bad});
        let message = session.post(KEYS, &body).await.error(400, "invalid_input");
        assert!(message.contains("allowed_networks"), "{message}");
    }
    // without a trusted proxy nobody says where they come from but the connection
    let another = Database::sqlite();
    let direct = Server::start(&another);
    let session = direct.workspace().await.session;
    let made =
        make(&session, json!({"name": "k", "scopes": ["*"], "allowed_networks": ["127.0.0.0/8"]})).await;
    let client = direct.client().with_key(secret(&made));
    client.get("/v1/meters").await.expect(200);
    client.with("x-forwarded-for", "203.0.113.9").get("/v1/meters").await.expect(200);
}

/// What a gRPC write with this key comes to; the meter is not there, so that nothing is stored.
async fn grpc_status(server: &Server, key: &str, forwarded_for: Option<&str>) -> tonic::Code {
    use open_spanner::grpc::pb::v1;
    let channel = tonic::transport::Channel::from_shared(format!("http://{}", server.grpc()));
    let channel = channel.expect("an address").connect().await.expect("it listens");
    let mut client = v1::usage_service_client::UsageServiceClient::new(channel);
    let mut request = tonic::Request::new(v1::CreateUsageRequest::default());
    let metadata = request.metadata_mut();
    metadata.insert("authorization", format!("Bearer {key}").parse().expect("a value"));
    if let Some(from) = forwarded_for {
        metadata.insert("x-forwarded-for", from.parse().expect("a value"));
    }
    client.create_usage(request).await.map_or_else(|status| status.code(), |_| tonic::Code::Ok)
}

async fn keys_of_everybody_are_seen_and_ended(database: Database) {
    let server = Server::start(&database);
    let host = server.workspace().await;
    let stranger = server.workspace().await;
    let admin = crate::permissions::member(&server, &host.session, "admin").await;
    let viewer = crate::permissions::member(&server, &host.session, "viewer").await;
    let old = make(&admin, json!({"name": "old"})).await;
    let young = make(&admin, json!({"name": "young"})).await;
    database.execute("UPDATE api_keys SET created_at = 1700000000000000 WHERE name = 'old'");
    const ALL: &str = "/v1/auth/workspace/api-keys";
    viewer.get(ALL).await.error(403, "forbidden");
    host.key.get(ALL).await.error(401, "unauthorized");
    let names = async |client: &Client, path: &str| {
        let found = client.get(path).await.json(200)["items"].as_array().expect("a list").clone();
        found.iter().map(|key| key["name"].as_str().expect("a name").to_owned()).collect::<Vec<_>>()
    };
    let all = names(&admin, ALL).await;
    assert_eq!((all.len(), all[0].as_str()), (3, "old"), "the one that was idle for longest first");
    assert_eq!(names(&admin, &format!("{ALL}?unused_days=90")).await, ["old"]);
    let listed = admin.get(ALL).await.json(200)["items"][0].clone();
    assert!(listed["created_by"].as_str().is_some_and(|email| email.contains('@')), "{listed}");
    assert!(listed["idle_days"].as_i64().is_some_and(|days| days > 300), "{listed}");
    assert!(!listed.as_object().expect("a key").contains_key("key"), "{listed}");
    admin.get(&format!("{ALL}?unused_days=x")).await.error(400, "invalid_unused_days");
    admin.get(&format!("{ALL}?unused_days=0")).await.error(400, "invalid_unused_days");
    assert_eq!(names(&stranger.session, ALL).await.len(), 1);
    // an owner ends anybody's, an admin their own
    let one = |key: &Value| format!("{ALL}/{}", key["id"].as_str().expect("an id"));
    admin.delete(&one(&young)).await.error(403, "forbidden");
    stranger.session.delete(&one(&young)).await.error(404, "not_found");
    let client = server.client().with_key(secret(&young));
    client.get("/v1/meters").await.expect(200);
    host.session.delete(&one(&young)).await.expect(204);
    client.get("/v1/meters").await.error(401, "unauthorized");
    assert_eq!(names(&admin, ALL).await.len(), 2);
    let page = host.session.get("/api-keys/workspace?unused_days=90").await.expect(200).text;
    assert!(page.contains("old") && !page.contains("everything"), "{page}");
    let _ = old;
}

async fn revoked_keys_are_bounded(database: Database) {
    let server = Server::start(&database);
    let session = server.workspace().await.session;
    let hash = match database {
        Database::Sqlite { .. } => "CAST('gone' || n AS BLOB)",
        Database::Postgres { .. } => "convert_to('gone' || n, 'UTF8')",
    };
    let had = database.count("api_keys");
    database.execute(&format!(
        "INSERT INTO api_keys (id, public_id, workspace_id, user_id, name, token_hash, prefix, scopes, allowed_meters,
                               revoked_at, created_at)
         WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {})
         SELECT -n, 'gone-' || n, workspace_id, user_id, name, {hash}, prefix, scopes, allowed_meters, 1, 1
         FROM numbers, (SELECT * FROM api_keys LIMIT 1) AS one",
        99_999 - had
    ));
    let last = make(&session, json!({"name": "last"})).await;
    let message = session.post(KEYS, &json!({"name": "more"})).await.error(409, "limit_reached");
    assert_eq!(message, "limit reached: there may be at most 100000 API keys, revoked ones included");
    let rotate = format!("{}/rotate", path(&last));
    session.post(&rotate, &json!({"grace_period_seconds": 3})).await.error(409, "limit_reached");
    session.delete(&path(&last)).await.expect(204);
}
