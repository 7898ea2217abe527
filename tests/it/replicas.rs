//! Two servers on one database: what one changes, the other does not go on remembering.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Answer, Client, Database, Server, run};

/// As long as it may be, so that only being told makes a server forget.
const REMEMBER: &[(&str, &str)] = &[("OPEN_SPANNER_CACHE_TTL", "5s")];
const SOON: Duration = Duration::from_secs(2);

/// Asks until the answer satisfies, for less long than things are remembered.
async fn soon(what: &str, ask: impl AsyncFn() -> Answer, good: impl Fn(&Answer) -> bool) {
    let end = Instant::now() + SOON;
    loop {
        let answer = ask().await;
        if good(&answer) {
            return;
        }
        assert!(Instant::now() < end, "{what}: {} {}", answer.status, answer.text);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn plan(client: &Client, limit: i64) -> Value {
    let limits = json!([{"meter": "m", "limit": limit, "period": "day"}]);
    client.post("/v1/plans", &json!({"name": "p", "limits": limits})).await.json(201)
}

#[test]
fn what_one_server_changes_the_other_forgets() {
    run(async {
        let database = Database::postgres();
        let (first, second) =
            (Server::start_with(&database, REMEMBER), Server::start_with(&database, REMEMBER));
        let ws = first.workspace().await;
        let other = ws.at(&second.url());
        let meter = ws.meter("m", "sum").await;
        let event = json!({"meter": "m", "subject": "s", "quantity": 7, "timestamp": "2026-06-01T12:00:00Z",
                           "metadata": {"region": "eu"}});
        other.post("/v1/usages", &event).await.expect(201);
        let buckets = "/v1/usages?meter=m&bucket_size=day&from=2026-06-01T00:00:00Z&to=2026-06-02T00:00:00Z";
        assert_eq!(other.get(buckets).await.json(200)[0]["quantity"], 7);
        let ask = json!({"meter": "m", "subject": "s"});
        let check = async || other.post("/v1/entitlements/check", &ask).await.json(200);
        assert_eq!(check().await["state"], "no_plan");

        // a plan assigned elsewhere counts with the very next question, a changed limit as soon as it is told
        let made = plan(&ws, 1).await;
        ws.put("/v1/plans/subjects/s", &json!({"plan_id": made["id"]})).await.expect(200);
        assert_eq!(check().await["allowed"], true, "a customer who has a plan is not refused");
        let path = format!("/v1/plans/{}", made["id"].as_str().expect("an id"));
        let limits = json!([{"meter": "m", "limit": 0.5, "period": "day"}]);
        ws.put(&path, &json!({"name": "p", "limits": limits})).await.expect(200);
        let checked = async || other.post("/v1/entitlements/check", &ask).await;
        soon("a lower limit", checked, |answer| answer.text.contains(r#""allowed":false"#)).await;

        // a meter
        let changed = json!({"aggregation": "count", "dimensions": [{"name": "region", "type": "string", "required": false}]});
        ws.put(&format!("/v1/meters/{meter}"), &changed).await.expect(200);
        let count = async || other.get(buckets).await;
        soon("another aggregation", count, |answer| answer.text.contains(r#""quantity":1"#)).await;
        let grouped = async || other.get(&format!("{buckets}&group_by=region")).await;
        soon("a new dimension", grouped, |answer| answer.status == 200).await;

        // a key
        let key =
            ws.session.post("/v1/auth/api-keys", &json!({"name": "k", "scopes": ["*"]})).await.json(201);
        let client = second.client().with_key(key["key"].as_str().expect("the secret"));
        client.get("/v1/meters").await.expect(200);
        let id = key["id"].as_str().expect("an id");
        ws.session.delete(&format!("/v1/auth/api-keys/{id}")).await.expect(204);
        soon("a revoked key", async || client.get("/v1/meters").await, |answer| answer.status == 401).await;
    });
}

/// What is told while a server does not listen is lost: it forgets everything when it listens again.
#[test]
fn what_was_not_heard_is_forgotten_too() {
    run(async {
        let database = Database::postgres();
        let (first, second) =
            (Server::start_with(&database, REMEMBER), Server::start_with(&database, REMEMBER));
        let ws = first.workspace().await;
        let other = ws.at(&second.url());
        let meter = ws.meter("m", "sum").await;
        let event = json!({"meter": "m", "subject": "s", "quantity": 7, "timestamp": "2026-06-01T12:00:00Z"});
        ws.post("/v1/usages", &event).await.expect(201);
        let buckets = "/v1/usages?meter=m&bucket_size=day&from=2026-06-01T00:00:00Z&to=2026-06-02T00:00:00Z";
        assert_eq!(other.get(buckets).await.json(200)[0]["quantity"], 7);
        // less than it is remembered for
        let end = Instant::now() + Duration::from_secs(4);
        database.make(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE datname = current_database() AND query = 'LISTEN open_spanner_changes'",
        );
        ws.put(&format!("/v1/meters/{meter}"), &json!({"aggregation": "count"})).await.expect(200);
        loop {
            let answer = other.get(buckets).await.expect(200);
            if answer.text.contains(r#""quantity":1"#) {
                break;
            }
            assert!(Instant::now() < end, "{}", answer.text);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
}

/// Who is demoted, removed or signed out at one server is so at the other.
#[test]
fn what_somebody_may_not_any_more_they_may_nowhere() {
    run(async {
        let database = Database::postgres();
        let (first, second) =
            (Server::start_with(&database, REMEMBER), Server::start_with(&database, REMEMBER));
        let host = first.workspace().await;
        let guest = crate::permissions::member(&first, &host.session, "admin").await;
        let user = guest.get("/v1/auth/session").await.json(200)["user"]["id"].clone();
        let path = format!("/v1/auth/workspace/members/{}", user.as_str().expect("an id"));
        let made = guest.post("/v1/auth/api-keys", &json!({"name": "k", "scopes": ["*"]})).await.json(201);
        let key = second.client().with_key(made["key"].as_str().expect("the secret"));
        let session = guest.at(&second.url());
        // no meter at all: whoever may make one is told so
        let nothing = json!({});
        for client in [&session, &key] {
            client.post("/v1/meters", &nothing).await.expect(400);
        }
        host.session.patch(&path, &json!({"role": "viewer"})).await.expect(204);
        for client in [&session, &key] {
            let ask = async || client.post("/v1/meters", &nothing).await;
            soon("another role", ask, |answer| answer.status == 403).await;
        }
        host.session.delete(&path).await.expect(204);
        for client in [&session, &key] {
            let ask = async || client.get("/v1/meters").await;
            soon("a removed member", ask, |answer| answer.status == 401).await;
        }
        let away = host.session.at(&second.url());
        away.get("/v1/auth/session").await.expect(200);
        host.session.delete("/v1/auth/session").await.expect(204);
        let ask = async || away.get("/v1/auth/session").await;
        soon("a sign-out", ask, |answer| answer.status == 401).await;
    });
}

#[test]
fn servers_notice_each_other() {
    run(async {
        let database = Database::postgres();
        let first = Server::start(&database);
        let mut second = Server::start_to_be_restarted(&database);
        let noticed = async |words: &str| {
            let end = Instant::now() + Duration::from_secs(90);
            while !first.log().iter().any(|line| line.contains(words)) {
                assert!(Instant::now() < end, "{words}: {:?}", first.log());
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        noticed("other servers use this database too").await;
        // callers who come at once and again, beside another server: groups are waited for
        let ws = first.workspace().await;
        ws.meter("m", "sum").await;
        let writers = (0..16).map(|writer| {
            let client = ws.key.clone();
            tokio::spawn(async move {
                for n in 0..20 {
                    let event = json!({"meter": "m", "subject": "s", "quantity": 1, "timestamp": "2026-06-01T12:00:00Z",
                                       "idempotency_key": format!("{writer}-{n}")});
                    client.post("/v1/usages", &event).await.expect(201);
                }
            })
        });
        for writer in writers.collect::<Vec<_>>() {
            writer.await.expect("all are answered");
        }
        assert_eq!(ws.total("m").await, "320");
        second.terminate();
        noticed("no other server uses it now").await;
    });
}
