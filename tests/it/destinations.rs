//! `/v1/alerts/destinations`: where alerts go. The secret that signs them is shown when it is made, and never again.

use serde_json::{Value, json};

use crate::support::{Client, Database, Server, on_both_databases};

on_both_databases!(
    a_destination_is_made_read_changed_and_deleted,
    a_secret_is_shown_when_it_is_made,
    bad_destinations_are_refused,
    a_destination_in_use_stays,
    destinations_are_the_workspaces_own,
    keys_need_the_scope_of_alerts,
    plain_http_is_refused_where_the_operator_says_so,
);

const PATH: &str = "/v1/alerts/destinations";

fn path(destination: &Value) -> String {
    format!("{PATH}/{}", destination["id"].as_str().expect("an id"))
}

async fn make(client: &Client, body: Value) -> Value {
    client.post(PATH, &body).await.json(201)
}

async fn items(client: &Client, query: &str) -> Vec<Value> {
    let page = client.get(&format!("{PATH}?{query}")).await.json(200);
    page["items"].as_array().expect("a list").clone()
}

/// As every answer but those to create and rotate shows it.
fn without_secret(destination: &Value) -> Value {
    let mut shown = destination.clone();
    let signing = shown["webhook_signing"].as_object_mut().expect("an object");
    signing.retain(|name, _| !name.contains("secret"));
    shown
}

async fn a_destination_is_made_read_changed_and_deleted(database: Database) {
    let server = Server::start(&database);
    let ws = server.workspace().await;
    let first = make(&ws, json!({"name": " ops ", "webhook_url": " https://hooks.example.com/x "})).await;
    assert_eq!((&first["name"], &first["type"]), (&json!("ops"), &json!("webhook")));
    assert_eq!(first["webhook_url"], json!("https://hooks.example.com/x"));
    assert_eq!((&first["enabled"], &first["webhook_signing"]["enabled"]), (&json!(true), &json!(true)));
    let off =
        json!({"name": "off", "type": "webhook", "enabled": false, "webhook_url": "http://example.com"});
    let second = make(&ws, off).await;
    assert_eq!(second["webhook_signing"]["enabled"], json!(false));

    let (first, second) = (without_secret(&first), without_secret(&second));
    assert_eq!(items(&ws, "").await, [second.clone(), first.clone()], "newest first");
    assert_eq!(items(&ws, "limit=1").await, std::slice::from_ref(&second));
    assert_eq!(items(&ws, "enabled=true").await, std::slice::from_ref(&first));
    assert_eq!(items(&ws, "enabled=false").await, std::slice::from_ref(&second));
    assert_eq!(items(&ws, "type=webhook").await.len(), 2);
    assert_eq!(items(&ws, "type=email").await, [Value::Null; 0]);
    ws.get(&format!("{PATH}?enabled=maybe")).await.error(400, "invalid_enabled");

    // what is absent, empty or null stays
    let kept = ws.put(&path(&first), &json!({"name": "", "type": "", "enabled": null})).await.json(200);
    for field in ["name", "enabled", "webhook_url"] {
        assert_eq!(kept[field], first[field], "{field}");
    }
    let change = json!({"name": "new", "enabled": false, "webhook_url": "https://example.com/y"});
    let changed = ws.put(&path(&first), &change).await.json(200);
    for field in ["name", "enabled", "webhook_url"] {
        assert_eq!(changed[field], change[field], "{field}");
    }
    ws.delete(&path(&first)).await.expect(204);
    ws.delete(&path(&first)).await.error(404, "not_found");
    ws.put(&path(&first), &change).await.error(404, "not_found");
    assert_eq!(items(&ws, "").await, [second]);
}

async fn a_secret_is_shown_when_it_is_made(database: Database) {
    let server = Server::start(&database);
    let ws = server.workspace().await;
    let made = make(&ws, json!({"name": "d", "webhook_url": "https://example.com/"})).await;
    let secret = |answer: &Value| answer["webhook_signing"]["secret"].as_str().map(str::to_owned);
    let old = secret(&made).expect("a secret");
    assert!(old.starts_with("osp_whsec_") && old.len() > 30, "{old}");
    assert_eq!(made["webhook_signing"]["algorithm"], json!("hmac-sha256"));
    let changed = ws.put(&path(&made), &json!({"name": "e"})).await.expect(200).text;
    let listed = ws.get(PATH).await.expect(200).text;
    assert!(!changed.contains("osp_whsec_") && !listed.contains("osp_whsec_"));
    let rotated = ws.post_text(&format!("{}/webhook-secret/rotate", path(&made)), "").await.json(200);
    let new = secret(&rotated).expect("a secret");
    assert_ne!(new, old);
    ws.post_text(&format!("{PATH}/nosuch/webhook-secret/rotate"), "").await.error(404, "not_found");
}

async fn bad_destinations_are_refused(database: Database) {
    let server = Server::start(&database);
    let ws = server.workspace().await;
    let good = "https://example.com/x";
    for body in [
        json!({"name": "d"}),
        json!({"webhook_url": good}),
        json!({"name": "x".repeat(121), "webhook_url": good}),
        json!({"name": "d", "webhook_url": good, "type": "email"}),
        json!({"name": "d", "webhook_url": "example.com/x"}),
        json!({"name": "d", "webhook_url": "ftp://example.com/x"}),
        json!({"name": "d", "webhook_url": "http:///x"}),
        json!({"name": "d", "webhook_url": "http://a b/x"}),
        json!({"name": "d", "webhook_url": format!("{good}{}", "x".repeat(2_048))}),
    ] {
        ws.post(PATH, &body).await.error(400, "invalid_input");
    }
    ws.post(PATH, &json!({"name": "d", "webhook_url": 7})).await.error(400, "invalid_json");
    assert_eq!(database.count("alert_destinations"), 0);
    let made = make(&ws, json!({"name": "d", "webhook_url": good})).await;
    for change in [json!({"webhook_url": ""}), json!({"type": "email"}), json!({"name": "x".repeat(121)})] {
        ws.put(&path(&made), &change).await.error(400, "invalid_input");
    }
    assert_eq!(items(&ws, "").await, [without_secret(&made)], "a refused change leaves it as it was");
}

async fn a_destination_in_use_stays(database: Database) {
    let server = Server::start(&database);
    let ws = server.workspace().await;
    ws.meter("m", "sum").await;
    let made = make(&ws, json!({"name": "d", "webhook_url": "https://example.com/"})).await;
    let rule = crate::alerts::rule(&ws, "m", &made, json!({})).await;
    ws.delete(&path(&made)).await.error(409, "conflict");
    ws.delete(&crate::alerts::path(&rule)).await.expect(204);
    ws.delete(&path(&made)).await.expect(204);
}

async fn destinations_are_the_workspaces_own(database: Database) {
    let server = Server::start(&database);
    let (mine, theirs) = (server.workspace().await, server.workspace().await);
    mine.meter("m", "sum").await;
    let made = make(&theirs, json!({"name": "d", "webhook_url": "https://example.com/"})).await;
    mine.put(&path(&made), &json!({"name": "stolen"})).await.error(404, "not_found");
    mine.delete(&path(&made)).await.error(404, "not_found");
    for action in ["webhook-secret/rotate", "test"] {
        mine.post_text(&format!("{}/{action}", path(&made)), "").await.error(404, "not_found");
    }
    let rule = json!({"name": "r", "meter": "m", "destination_id": made["id"]});
    mine.post("/v1/alerts", &rule).await.error(404, "not_found");
    assert_eq!(items(&mine, "").await, [Value::Null; 0]);
    assert_eq!(items(&theirs, "").await, [without_secret(&made)]);
}

async fn keys_need_the_scope_of_alerts(database: Database) {
    let server = Server::start(&database);
    let ws = server.workspace().await;
    let made = make(&ws, json!({"name": "d", "webhook_url": "https://example.com/"})).await;
    let key = async |body: Value| {
        let made = ws.session.post("/v1/auth/api-keys", &body).await.json(201);
        server.client().with_key(made["key"].as_str().expect("the secret"))
    };
    let reader = key(json!({"name": "r", "scopes": ["alerts:read"]})).await;
    // a path may hold a token
    let shown = reader.get(PATH).await.json(200)["items"][0]["webhook_url"].clone();
    let whole = made["webhook_url"].as_str().expect("an address");
    let shown = shown.as_str().expect("an address");
    assert!(
        whole.starts_with(shown) && whole.len() > shown.len() && shown.len() > "https://".len(),
        "{shown}"
    );
    reader.delete(&path(&made)).await.error(403, "forbidden");
    reader.post_text(&format!("{}/test", path(&made)), "").await.error(403, "forbidden");
    // a destination serves every meter, so a key for some of them has no business here
    let some = key(json!({"name": "s", "scopes": ["alerts:*"], "allowed_meters": ["m"]})).await;
    some.get(PATH).await.error(403, "forbidden");
    some.post(PATH, &json!({"name": "x", "webhook_url": "https://example.com/"}))
        .await
        .error(403, "forbidden");
    server.client().get(PATH).await.error(401, "unauthorized");
}

async fn plain_http_is_refused_where_the_operator_says_so(database: Database) {
    let server = Server::start_with(&database, &[("OPEN_SPANNER_WEBHOOK_HTTPS_ONLY", "true")]);
    let workspace = server.workspace().await;
    let body = |url: &str| json!({"name": "d", "webhook_url": url});
    let message = workspace.post(PATH, &body("http://example.com/x")).await.error(400, "invalid_input");
    assert!(message.contains("https only"), "{message}");
    let made = make(&workspace, body("HTTPS://example.com/x")).await;
    workspace.put(&path(&made), &body("http://example.com/y")).await.error(400, "invalid_input");
    // one from before
    database.execute("UPDATE alert_destinations SET webhook_url = 'http://example.com/old'");
    let test = workspace.post(&format!("{}/test", path(&made)), &json!({})).await.json(200);
    assert_eq!(test["status"], json!("failed"), "{test}");
    assert!(test["error"].as_str().is_some_and(|error| error.contains("https only")), "{test}");
}
