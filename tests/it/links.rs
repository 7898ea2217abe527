//! `/v1/subjects/{subject}/links`: made for one subject, shown once, ended by time and by a call.

use serde_json::{Value, json};

use crate::support::{Database, Server, on_both_databases};

on_both_databases!(
    a_link_is_shown_once_and_can_be_revoked,
    bad_links_are_not_made,
    links_stay_in_their_workspace
);

fn path(subject: &str) -> String {
    format!("/v1/subjects/{subject}/links")
}

async fn a_link_is_shown_once_and_can_be_revoked(database: Database) {
    let server = Server::start(&database);
    let ws = server.workspace().await;
    let body = json!({"meters": ["tokens", "tokens", " "], "origins": ["https://App.example.com"], "expires_in_seconds": 3600});
    let made = ws.post(&path("org:7"), &body).await.json(201);
    let token = made["token"].as_str().expect("a token");
    assert!(token.starts_with("osp_share_") && token.len() == 53, "{token}");
    assert!(made["url"].as_str().is_some_and(|url| url.ends_with(&format!("/share/{token}"))), "{made}");
    assert_eq!((&made["subject"], &made["status"]), (&json!("org:7"), &json!("active")));
    assert_eq!(
        (&made["meters"], &made["origins"]),
        (&json!(["tokens"]), &json!(["https://app.example.com"]))
    );
    let listed = ws.get(&path("org:7")).await.expect(200).text;
    assert!(!listed.contains(token) && listed.contains(made["id"].as_str().expect("an id")));
    assert_eq!(ws.get(&path("other")).await.json(200)["items"], json!([]));
    let hash = match database {
        Database::Sqlite { .. } => "SELECT CAST(length(token_hash) AS TEXT) AS line FROM subject_links",
        Database::Postgres { .. } => "SELECT CAST(length(token_hash) AS TEXT) AS line FROM subject_links",
    };
    assert_eq!(database.lines(hash), ["32"]);
    let one = format!("{}/{}", path("org:7"), made["id"].as_str().expect("an id"));
    let elsewhere = format!("{}/{}", path("other"), made["id"].as_str().expect("an id"));
    ws.delete(&elsewhere).await.error(404, "not_found");
    ws.delete(&one).await.expect(204);
    ws.delete(&one).await.expect(204);
    assert_eq!(ws.get(&path("org:7")).await.json(200)["items"][0]["status"], json!("revoked"));
    let rows = database.lines(
        "SELECT action AS line FROM audit_events WHERE target_kind = 'subject_link' ORDER BY sequence",
    );
    assert_eq!(rows, ["subject_link.created", "subject_link.revoked"]);
}

async fn bad_links_are_not_made(database: Database) {
    let server = Server::start(&database);
    let ws = server.workspace().await;
    for bad in [
        json!({"expires_in_seconds": 59}),
        json!({"expires_in_seconds": 366 * 86_400 + 1}),
        json!({"origins": ["*"]}),
        json!({"origins": ["https://a/b"]}),
        json!({"meters": vec!["m"; 1].into_iter().chain((0..101).map(|_| "x")).enumerate().map(|(n, m)| format!("{m}{n}")).collect::<Vec<_>>()}),
    ] {
        ws.post(&path("s"), &bad).await.error(400, "invalid_input");
    }
    assert_eq!(database.count("subject_links"), 0);
    // a key that is confined to meters gives no more than those
    let body = json!({"name": "n", "scopes": ["usage:read", "links:write"], "allowed_meters": ["a"]});
    let made = ws.session.post("/v1/auth/api-keys", &body).await.json(201);
    let narrow = server.client().with_key(made["key"].as_str().expect("a secret"));
    for meters in [json!([]), json!(["b"]), json!(["a", "b"])] {
        narrow.post(&path("s"), &json!({"meters": meters})).await.error(403, "forbidden");
    }
    narrow.post(&path("s"), &json!({"meters": ["a"]})).await.expect(201);
    // a link lets others read for up to a year, also when the key that made it is gone: whoever only reads makes none
    let body = json!({"name": "n", "scopes": ["usage:read", "usage:write", "meters:*"]});
    let made = ws.session.post("/v1/auth/api-keys", &body).await.json(201);
    let reader = server.client().with_key(made["key"].as_str().expect("a secret"));
    let message = reader.post(&path("s"), &json!({"meters": ["a"]})).await.error(403, "forbidden");
    assert!(message.contains("links:write"), "{message}");
    reader.get(&path("s")).await.expect(200);
    narrow.get(&path("s")).await.error(403, "forbidden");
}

async fn links_stay_in_their_workspace(database: Database) {
    let server = Server::start(&database);
    let (ws, other) = (server.workspace().await, server.workspace().await);
    let made: Value = ws.post(&path("s"), &json!({})).await.json(201);
    let one = format!("{}/{}", path("s"), made["id"].as_str().expect("an id"));
    assert_eq!(other.get(&path("s")).await.json(200)["items"], json!([]));
    other.delete(&one).await.error(404, "not_found");
    assert_eq!(ws.get(&path("s")).await.json(200)["items"][0]["status"], json!("active"));
}
