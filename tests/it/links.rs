//! `/v1/subjects/{subject}/links`: made for one subject, shown once, ended by time and by a call.

use serde_json::{Value, json};

use crate::support::{Database, Server, on_both_databases};

on_both_databases!(
    a_link_is_shown_once_and_can_be_revoked,
    bad_links_are_not_made,
    links_stay_in_their_workspace,
    ended_links_are_forgotten_after_a_while,
    links_are_counted_with_those_that_ended
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

/// By time or by a call; those that ended a moment ago are listed, and count.
async fn ended_links_are_forgotten_after_a_while(database: Database) {
    let settings = [
        ("OPEN_SPANNER_OPERATIONAL_HISTORY_RETENTION", "1h"),
        ("OPEN_SPANNER_OPERATIONAL_HISTORY_INTERVAL", "100ms"),
        ("OPEN_SPANNER_OPERATIONAL_HISTORY_BATCH_SIZE", "2"),
    ];
    let server = Server::start_with(&database, &settings);
    let ws = server.workspace().await;
    for subject in ["open", "over", "over", "over", "lately-over", "revoked", "lately-revoked"] {
        ws.post(&path(subject), &json!({})).await.expect(201);
    }
    let lately = open_spanner::metering::time::Timestamp::now().0 - 60_000_000;
    for (subject, change) in [
        ("over", "expires_at = 1".to_owned()),
        ("lately-over", format!("expires_at = {lately}")),
        ("revoked", "revoked_at = 1".to_owned()),
        ("lately-revoked", format!("revoked_at = {lately}")),
    ] {
        database.execute(&format!("UPDATE subject_links SET {change} WHERE subject = '{subject}'"));
    }
    let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while database.count("subject_links") > 3 {
        assert!(std::time::Instant::now() < end, "{} left", database.count("subject_links"));
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    let left = database.lines("SELECT subject AS line FROM subject_links ORDER BY subject");
    assert_eq!(left, ["lately-over", "lately-revoked", "open"]);
}

async fn links_are_counted_with_those_that_ended(database: Database) {
    let server = Server::start(&database);
    let (ws, other) = (server.workspace().await, server.workspace().await);
    ws.post(&path("s"), &json!({})).await.expect(201);
    let hash = match database {
        Database::Sqlite { .. } => "CAST('gone' || n AS BLOB)",
        Database::Postgres { .. } => "convert_to('gone' || n, 'UTF8')",
    };
    // as if they had been revoked a moment ago
    database.execute(&format!(
        "INSERT INTO subject_links (id, public_id, workspace_id, subject, meters, origins, token_hash, created_by,
                                    expires_at, revoked_at, created_at)
         WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 99998)
         SELECT -n, 'gone-' || n, workspace_id, subject, meters, origins, {hash}, created_by,
                expires_at, created_at, created_at
         FROM numbers, (SELECT * FROM subject_links LIMIT 1) AS one"
    ));
    ws.post(&path("s"), &json!({})).await.expect(201);
    let message = ws.post(&path("s"), &json!({})).await.error(409, "limit_reached");
    assert!(message.contains("at most 100000 links of subjects"), "{message}");
    other.post(&path("s"), &json!({})).await.expect(201);
}
