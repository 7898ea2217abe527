//! Saved queries: each user their own, out of reach of everybody else.

use serde_json::json;

use crate::support::{Database, Server, on_both_databases};

on_both_databases!(they_belong_to_their_user, numbers_keep_their_text, a_name_is_free_for_others);

const PATH: &str = "/v1/usage/saved-queries";

async fn they_belong_to_their_user(database: Database) {
    let server = Server::start(&database);
    let (ann, bob) = (server.workspace().await.session, server.workspace().await.session);
    let made = ann.post(PATH, &json!({"name": "q", "query": {"meter": "m"}})).await.json(201);
    let path = format!("{PATH}/{}", made["id"].as_str().expect("an id"));
    assert_eq!(bob.get(PATH).await.json(200)["items"], json!([]));
    bob.put(&path, &json!({"name": "x", "query": {"a": 1}})).await.error(404, "not_found");
    bob.delete(&path).await.error(404, "not_found");
    assert_eq!(ann.get(PATH).await.json(200)["items"], json!([made]));
    ann.get(&path).await.expect(405);
    server.client().get(PATH).await.error(401, "unauthorized");
}

async fn numbers_keep_their_text(database: Database) {
    let server = Server::start(&database);
    let session = server.workspace().await.session;
    let body = r#"{"name":"n","query":{"z":1.50,"a":[123456789012345678901234567890,1e3],"m":"<&>"}}"#;
    let text = session.post_text(PATH, body).await.expect(201).text;
    let kept = r#""query":{"a":[123456789012345678901234567890,1e3],"m":"\u003c\u0026\u003e","z":1.50}"#;
    // an exponent may be written with its sign
    assert!(text.replace("1e+3", "1e3").contains(kept), "{text}");
}

async fn a_name_is_free_for_others(database: Database) {
    let server = Server::start(&database);
    let sessions = [server.workspace().await.session, server.workspace().await.session];
    for session in &sessions {
        let body = json!({"name": "same", "query": {"meter": "m"}});
        session.post(PATH, &body).await.expect(201);
        let message = session.post(PATH, &body).await.error(409, "conflict");
        assert!(message.contains("same") && !message.contains("saved_queries_"), "{message}");
        let rows = session.get(PATH).await.json(200);
        assert_eq!(rows["items"].as_array().map(Vec::len), Some(1), "{rows}");
    }
}
