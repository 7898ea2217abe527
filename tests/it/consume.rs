//! Atomic consumption: exactly what a hard limit allows, however many ask at once, on however many servers.

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::support::{Answer, Client, Database, Server, Workspace, on_both_databases, run, unique};

on_both_databases!(
    a_hard_limit_grants_exactly_its_quantity,
    decisions_are_replayed,
    an_advisory_limit_reports_and_never_refuses,
    without_a_limit_everything_is_granted,
    every_limit_of_a_meter_counts,
    what_is_wrong_is_not_decided,
    decisions_are_listed_and_kept_apart,
    keys_are_shared_with_plain_writes
);

/// A meter `units`, a plan with these limits on it, and a subject who has the plan.
async fn quota(workspace: &Workspace, limits: Value) -> (String, String) {
    let (meter, subject) = (unique("units"), unique("org"));
    workspace.meter(&meter, "sum").await;
    let mut limits = limits;
    for limit in limits.as_array_mut().expect("a list") {
        limit["meter"] = json!(meter);
    }
    let plan = json!({"name": unique("plan"), "limits": limits});
    let plan = workspace.post("/v1/plans", &plan).await.json(201);
    let path = format!("/v1/plans/subjects/{subject}");
    workspace.put(&path, &json!({"plan_id": plan["id"]})).await.expect(200);
    (meter, subject)
}

fn hard(limit: i64) -> Value {
    json!([{"limit": limit, "enforcement": "hard"}])
}

async fn consume(client: &Client, meter: &str, subject: &str, key: &str, quantity: &str) -> Answer {
    let body = format!(
        r#"{{"idempotency_key":"{key}","meter":"{meter}","subject":"{subject}","quantity":{quantity}}}"#
    );
    client.post_text("/v1/entitlements/consume", body).await
}

async fn current(client: &Client, subject: &str) -> String {
    let progress = client.get(&format!("/v1/plans/subjects/{subject}/progress")).await.json(200);
    progress["items"][0]["current"].to_string()
}

const CALLERS: usize = 500;

/// How many of the callers were granted one unit each; everybody must get an answer.
async fn rush(clients: &[&Client], meter: &str, subject: &str) -> usize {
    let calls = (0..CALLERS).map(|caller| async move {
        let client = clients[caller % clients.len()];
        let answer = consume(client, meter, subject, &format!("{subject}-{caller}"), "1").await;
        match answer.status {
            201 => 1,
            429 => {
                let body = answer.json(429);
                assert_eq!((&body["accepted"], &body["quota"]["allowed"]), (&json!(false), &json!(false)));
                assert!(body["quota"]["retry_after_seconds"].as_i64().expect("a whole number") > 0);
                0
            }
            _ => panic!("{answer:?}"),
        }
    });
    join_all(calls).await.into_iter().sum()
}

async fn a_hard_limit_grants_exactly_its_quantity(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    let (meter, subject) = quota(&workspace, hard(137)).await;
    assert_eq!(rush(&[&workspace.key], &meter, &subject).await, 137);
    assert_eq!(current(&workspace, &subject).await, "137");
    let events = workspace.get(&format!("/v1/usageevents?meter={meter}&limit=1000")).await.json(200);
    assert_eq!(events["items"].as_array().expect("a list").len(), 137);
}

mod two_servers_share_one_quota {
    use super::*;

    #[test]
    fn postgres() {
        run(async {
            let database = Database::postgres();
            let (one, two) = (Server::start(&database), Server::start(&database));
            let workspace = one.workspace().await;
            let body = json!({"name": "elsewhere", "scopes": ["*"]});
            let made = workspace.session.post("/v1/auth/api-keys", &body).await.json(201);
            let elsewhere = two.client().with_key(made["key"].as_str().expect("the secret"));
            let (meter, subject) = quota(&workspace, hard(211)).await;
            assert_eq!(rush(&[&workspace.key, &elsewhere], &meter, &subject).await, 211);
            assert_eq!(current(&workspace, &subject).await, "211");
        });
    }
}

async fn decisions_are_replayed(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    let (meter, subject) = quota(&workspace, hard(10)).await;
    let first = consume(&workspace, &meter, &subject, "k-1", "7").await.json(201);
    assert_eq!((&first["accepted"], &first["replayed"]), (&json!(true), &json!(false)));
    assert_eq!(first["quota"]["projected"].to_string(), "7");
    let again = consume(&workspace, &meter, &subject, "k-1", "7").await.json(201);
    assert_eq!(again["replayed"], json!(true));
    assert_eq!((&again["event"], &again["quota"]), (&first["event"], &first["quota"]));
    // nothing of the new body counts, not even its mistakes
    let other = consume(&workspace, &meter, "a b", "k-1", "-3").await.json(201);
    assert_eq!(other["event"]["id"], first["event"]["id"]);

    let refused = consume(&workspace, &meter, &subject, "k-2", "3.5").await.json(429);
    assert!(refused.get("event").is_none(), "{refused}");
    assert_eq!(refused["quota"]["overage"].to_string(), "0.5");
    let again = consume(&workspace, &meter, &subject, "k-2", "0.1").await.json(429);
    assert_eq!((&again["replayed"], &again["quota"]), (&json!(true), &refused["quota"]));
    consume(&workspace, &meter, &subject, "k-3", "3").await.expect(201);
    assert_eq!(current(&workspace, &subject).await, "10");
}

async fn an_advisory_limit_reports_and_never_refuses(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    let (meter, subject) = quota(&workspace, json!([{"limit": 10}])).await;
    let answer = consume(&workspace, &meter, &subject, "k", "12.5").await.json(201);
    let quota = &answer["quota"];
    assert_eq!((&quota["allowed"], &quota["state"]), (&json!(false), &json!("exceeded")));
    assert_eq!((&quota["enforcement"], &quota["failure_policy"]), (&json!("advisory"), &json!("fail_open")));
    assert_eq!(current(&workspace, &subject).await, "12.5");
}

async fn without_a_limit_everything_is_granted(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("free", "sum").await;
    let answer = consume(&workspace, "free", "nobody", "k-1", "5").await.json(201);
    assert_eq!((&answer["quota"]["state"], &answer["quota"]["allowed"]), (&json!("no_plan"), &json!(true)));
    assert!(answer["quota"].get("plan_id").is_none());
    let (_, subject) = quota(&workspace, hard(1)).await;
    let answer = consume(&workspace, "free", &subject, "k-2", "5").await.json(201);
    assert_eq!(answer["quota"]["state"], json!("not_in_plan"));
    assert!(answer["quota"]["plan_id"].is_string());
}

async fn every_limit_of_a_meter_counts(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    let limits =
        json!([{"limit": 1000, "period": "day"}, {"limit": 2, "period": "month", "enforcement": "hard"}]);
    let (meter, subject) = quota(&workspace, limits).await;
    consume(&workspace, &meter, &subject, "k-1", "2").await.expect(201);
    let refused = consume(&workspace, &meter, &subject, "k-2", "1").await.json(429);
    assert_eq!(refused["quota"]["period"], json!("month"));
    let limits =
        json!([{"limit": 1, "period": "day"}, {"limit": 5, "period": "year", "enforcement": "hard"}]);
    let (meter, subject) = quota(&workspace, limits).await;
    let over = consume(&workspace, &meter, &subject, "k-3", "2").await.json(201);
    assert_eq!((&over["quota"]["allowed"], &over["quota"]["period"]), (&json!(false), &json!("day")));
    consume(&workspace, &meter, &subject, "k-4", "4").await.expect(429);
}

async fn what_is_wrong_is_not_decided(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    let (meter, subject) = quota(&workspace, hard(10)).await;
    consume(&workspace, &meter, &subject, " ", "1").await.error(400, "invalid_input");
    consume(&workspace, &meter, &subject, "k", "0").await.error(400, "invalid_input");
    consume(&workspace, &meter, "a b", "k", "1").await.error(400, "invalid_input");
    consume(&workspace, "", &subject, "k", "1").await.error(400, "invalid_input");
    consume(&workspace, "unheard", &subject, "k", "1").await.error(404, "not_found");
    workspace.get("/v1/entitlements/decisions/k").await.error(404, "not_found");
    consume(&workspace, &meter, &subject, "k", "1").await.expect(201);
}

async fn decisions_are_listed_and_kept_apart(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    let (meter, subject) = quota(&workspace, hard(2)).await;
    for key in ["a/1", "a/2", "a/3"] {
        consume(&workspace, &meter, &subject, key, "1").await;
    }
    let one = workspace.get("/v1/entitlements/decisions/a%2F3").await.json(200);
    assert_eq!((&one["accepted"], &one["quota"]["meter"]), (&json!(false), &json!(meter)));
    let list = async |query: &str| {
        let found = workspace.get(&format!("/v1/entitlements/decisions?{query}")).await.json(200);
        let keys =
            found["items"].as_array().expect("a list").iter().map(|item| item["idempotency_key"].clone());
        (keys.collect::<Vec<_>>(), found["next_cursor"].as_str().map(str::to_owned))
    };
    assert_eq!(list("outcome=Accepted").await.0, [json!("a/2"), json!("a/1")]);
    assert_eq!(list("outcome=rejected&enforcement=hard&state=exceeded").await.0, [json!("a/3")]);
    assert!(list("evaluation_failed=true").await.0.is_empty());
    let (page, cursor) = list("limit=2").await;
    assert_eq!(page, [json!("a/3"), json!("a/2")]);
    let cursor = cursor.expect("there is more");
    assert_eq!(list(&format!("limit=2&cursor={cursor}")).await, (vec![json!("a/1")], None));
    workspace.get("/v1/entitlements/decisions?outcome=maybe").await.error(400, "invalid_input");
    let wrong = "/v1/entitlements/decisions?evaluation_failed=maybe";
    workspace.get(wrong).await.error(400, "invalid_evaluation_failed");

    let stranger = server.workspace().await;
    stranger.get("/v1/entitlements/decisions/a%2F3").await.error(404, "not_found");
    let listed = stranger.get("/v1/entitlements/decisions").await.json(200);
    assert_eq!(listed["items"], json!([]));
}

async fn keys_are_shared_with_plain_writes(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    let (meter, subject) = quota(&workspace, hard(10)).await;
    let event = json!({"idempotency_key": "k", "meter": meter, "subject": subject, "quantity": 9});
    let event = workspace.post("/v1/usages", &event).await.json(201);
    // 9 + 5 would not fit, but the event with this key exists
    let answer = consume(&workspace, &meter, &subject, "k", "5").await.json(201);
    assert_eq!(answer["event"]["id"], event["id"]);
    assert_eq!(current(&workspace, &subject).await, "9");
}
