//! Atomic consumption: exactly what a hard limit allows, however many ask at once, on however many servers.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::client::JUNE;
use crate::support::{Answer, Client, Database, Server, Workspace, env, on_both_databases, run, unique};

on_both_databases!(
    a_hard_limit_grants_exactly_its_quantity,
    decisions_are_replayed,
    an_advisory_limit_reports_and_never_refuses,
    without_a_limit_everything_is_granted,
    every_limit_of_a_meter_counts,
    what_is_wrong_is_not_decided,
    decisions_are_listed_and_kept_apart,
    keys_are_shared_with_plain_writes,
    a_damaged_counter_is_left_to_the_failure_policy,
    a_damaged_limit_is_left_to_the_failure_policy,
    a_missing_plan_is_left_to_the_failure_policy,
    what_can_be_read_still_refuses,
    a_decision_outlives_its_event,
    no_timestamp_leads_around_a_limit,
    timestamps_decide_where_a_setting_says_so,
    another_body_under_a_decided_key_is_told,
    a_key_outlives_its_decision
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

fn consumption(meter: &str, subject: &str, key: &str, quantity: &str) -> String {
    format!(r#"{{"idempotency_key":"{key}","meter":"{meter}","subject":"{subject}","quantity":{quantity}}}"#)
}

async fn consume(client: &Client, meter: &str, subject: &str, key: &str, quantity: &str) -> Answer {
    client.post_text("/v1/entitlements/consume", consumption(meter, subject, key, quantity)).await
}

/// As a client with thousands of connections: on a slow machine the server may be tired of waiting for the first byte
/// of some, and the call is made again under its key.
async fn consume_one(client: &Client, meter: &str, subject: &str, key: &str) -> Answer {
    let end = Instant::now() + Duration::from_secs(300);
    loop {
        let body = consumption(meter, subject, key, "1");
        match client.send(Method::POST, "/v1/entitlements/consume", Some(body)).await {
            Ok(answer) if answer.status != 408 => return answer,
            other => assert!(Instant::now() < end, "{other:?}"),
        }
    }
}

async fn current(client: &Client, subject: &str) -> String {
    let progress = client.get(&format!("/v1/plans/subjects/{subject}/progress")).await.json(200);
    progress["items"][0]["current"].to_string()
}

/// `OPEN_SPANNER_TEST_CONSUMERS=10000` tries it at full size.
fn callers() -> usize {
    env("OPEN_SPANNER_TEST_CONSUMERS").map_or(500, |count| count.parse().expect("a number"))
}

/// How many of the callers were granted one unit each; everybody must get an answer.
async fn rush(clients: &[&Client], meter: &str, subject: &str) -> usize {
    let (callers, started) = (callers(), Instant::now());
    let calls = (0..callers).map(|caller| async move {
        let client = clients[caller % clients.len()];
        let answer = consume_one(client, meter, subject, &format!("{subject}-{caller}")).await;
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
    let granted = join_all(calls).await.into_iter().sum();
    println!("{granted} of {callers} callers granted, in {:?}", started.elapsed());
    granted
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

fn failing(limit: i64, enforcement: &str, policy: &str) -> Value {
    json!([{"limit": limit, "enforcement": enforcement, "failure_policy": policy}])
}

/// Numbers that no quantity has, as each database would keep them.
fn damage(database: &Database, subject: &str) {
    let broken = if matches!(database, Database::Sqlite { .. }) { "x'00'" } else { "'NaN'" };
    database.execute(&format!("UPDATE quota_counters SET quantity_sum = {broken} WHERE {}", of(subject)));
}

fn of(subject: &str) -> String {
    format!("subject_id = (SELECT id FROM subjects WHERE name = '{subject}')")
}

/// Whether it was accepted; checks that the failure policy decided, and that it says so.
fn left_to_policy(answer: Answer, policy: &str) -> bool {
    let accepted = answer.status == 201;
    let body = answer.json(if accepted { 201 } else { 429 });
    assert_eq!((&body["evaluation_failed"], &body["replayed"]), (&json!(true), &json!(false)), "{body}");
    let quota = &body["quota"];
    assert_eq!((&quota["failure_policy"], &quota["state"]), (&json!(policy), &json!("")), "{body}");
    assert_eq!((&body["accepted"], &quota["allowed"]), (&json!(accepted), &json!(accepted)), "{body}");
    assert_eq!(body["event"].is_object(), accepted, "{body}");
    accepted
}

async fn keys_of(client: &Client, query: &str) -> Vec<String> {
    let found = client.get(&format!("/v1/entitlements/decisions?{query}")).await.json(200);
    let items = found["items"].as_array().expect("a list").iter();
    let mut keys: Vec<String> =
        items.map(|item| item["idempotency_key"].as_str().expect("a key").to_owned()).collect();
    keys.sort();
    keys
}

async fn a_damaged_counter_is_left_to_the_failure_policy(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    let (open_meter, open) = quota(&workspace, failing(10, "hard", "fail_open")).await;
    let (closed_meter, closed) = quota(&workspace, failing(10, "hard", "fail_closed")).await;
    let (advised_meter, advised) = quota(&workspace, failing(10, "advisory", "fail_closed")).await;
    let (well_meter, well) = quota(&workspace, hard(2)).await;
    let all =
        [(&open_meter, &open), (&closed_meter, &closed), (&advised_meter, &advised), (&well_meter, &well)];
    for (meter, subject) in all {
        consume(&workspace, meter, subject, &format!("{subject}-1"), "1").await.expect(201);
    }
    [&open, &closed, &advised].into_iter().for_each(|subject| damage(&database, subject));

    // all at once, so that they are decided together: the damage concerns nobody else
    let [open_key, closed_key, advised_key, well_key] =
        [&open, &closed, &advised, &well].map(|subject| format!("{subject}-2"));
    let (of_open, of_closed, of_advised, of_well) = tokio::join!(
        consume(&workspace, &open_meter, &open, &open_key, "1"),
        consume(&workspace, &closed_meter, &closed, &closed_key, "1"),
        consume(&workspace, &advised_meter, &advised, &advised_key, "1"),
        consume(&workspace, &well_meter, &well, &well_key, "1"),
    );
    assert!(left_to_policy(of_open, "fail_open"));
    assert!(!left_to_policy(of_closed, "fail_closed"));
    assert!(!left_to_policy(of_advised, "fail_closed"));
    assert_eq!(of_well.json(201)["evaluation_failed"], json!(false));
    let over = consume(&workspace, &well_meter, &well, "well-3", "1").await.json(429);
    assert_eq!((&over["evaluation_failed"], &over["quota"]["state"]), (&json!(false), &json!("exceeded")));

    // the decisions are kept like all others
    let mut failed = vec![open_key.clone(), closed_key.clone(), advised_key];
    failed.sort();
    assert_eq!(keys_of(&workspace, "evaluation_failed=true").await, failed);
    assert_eq!(keys_of(&workspace, "evaluation_failed=true&outcome=accepted").await, [open_key.as_str()]);
    assert_eq!(keys_of(&workspace, "evaluation_failed=false").await.len(), 6);
    let one = workspace.get(&format!("/v1/entitlements/decisions/{closed_key}")).await.json(200);
    assert_eq!(one["evaluation_failed"], json!(true));
    let again = consume(&workspace, &closed_meter, &closed, &closed_key, "1").await.json(429);
    assert_eq!((&again["replayed"], &again["evaluation_failed"]), (&json!(true), &json!(true)));

    // what was accepted is stored, once; a plain write is never refused
    let event = json!({"meter": open_meter, "subject": open, "quantity": 1});
    workspace.post("/v1/usages", &event).await.expect(201);
    let events = workspace.get(&format!("/v1/usageevents?meter={open_meter}")).await.json(200);
    assert_eq!(events["items"].as_array().expect("a list").len(), 3);
    // nobody mistakes the damage for a number
    workspace.get(&format!("/v1/plans/subjects/{open}/progress")).await.error(500, "internal_error");

    // mended, it decides again, with all that was counted meanwhile
    let three = if matches!(database, Database::Sqlite { .. }) { "x'C00104'" } else { "3" };
    database.execute(&format!("UPDATE quota_counters SET quantity_sum = {three} WHERE {}", of(&open)));
    let mended = consume(&workspace, &open_meter, &open, "mended", "7").await.json(201);
    assert_eq!(
        (&mended["evaluation_failed"], mended["quota"]["current"].to_string()),
        (&json!(false), "3".into())
    );
    consume(&workspace, &open_meter, &open, "over", "1").await.expect(429);
}

async fn a_damaged_limit_is_left_to_the_failure_policy(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    let (open_meter, open) = quota(&workspace, failing(10, "hard", "fail_open")).await;
    let (closed_meter, closed) = quota(&workspace, failing(10, "hard", "fail_closed")).await;
    // the same plan limits another meter, which nothing is wrong with
    workspace.meter("other", "sum").await;
    let limits = json!([{"meter": "other", "limit": 1, "enforcement": "hard"},
                        {"meter": open_meter, "limit": 10, "failure_policy": "fail_closed"}]);
    let plan = workspace.post("/v1/plans", &json!({"name": "both", "limits": limits})).await.json(201);
    workspace.put("/v1/plans/subjects/both", &json!({"plan_id": plan["id"]})).await.expect(200);
    database.execute("UPDATE plan_limits SET quantity = 'many' WHERE quantity = '10'");

    assert!(left_to_policy(consume(&workspace, &open_meter, &open, "open", "4").await, "fail_open"));
    assert!(!left_to_policy(consume(&workspace, &closed_meter, &closed, "closed", "4").await, "fail_closed"));
    assert!(!left_to_policy(consume(&workspace, &open_meter, "both", "both", "4").await, "fail_closed"));
    let other = consume(&workspace, "other", "both", "other-1", "1").await.json(201);
    assert_eq!((&other["evaluation_failed"], &other["quota"]["state"]), (&json!(false), &json!("exceeded")));
    let other = consume(&workspace, "other", "both", "other-2", "1").await.json(429);
    assert_eq!(other["evaluation_failed"], json!(false));
    let event = json!({"meter": closed_meter, "subject": closed, "quantity": 1});
    workspace.post("/v1/usages", &event).await.expect(201);

    // mended, it is read again at once and knows what was counted meanwhile
    database.execute("UPDATE plan_limits SET quantity = '10' WHERE quantity = 'many'");
    let mended = consume(&workspace, &open_meter, &open, "mended", "1").await.json(201);
    assert_eq!(
        (&mended["evaluation_failed"], mended["quota"]["projected"].to_string()),
        (&json!(false), "5".into())
    );
    let mended = consume(&workspace, &closed_meter, &closed, "closed-2", "1").await.json(201);
    assert_eq!(mended["quota"]["projected"].to_string(), "2");
}

async fn a_missing_plan_is_left_to_the_failure_policy(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    let (open_meter, open) = quota(&workspace, failing(1, "hard", "fail_open")).await;
    let (closed_meter, closed) = quota(&workspace, failing(1, "hard", "fail_closed")).await;
    let (bare_meter, bare) = quota(&workspace, failing(1, "hard", "fail_closed")).await;
    let plans_of = |subject: &str| format!("(SELECT plan_id FROM plan_assignments WHERE {})", of(subject));
    for subject in [&open, &closed, &bare] {
        database.execute(&format!("DELETE FROM plans WHERE id IN {}", plans_of(subject)));
    }
    database.execute(&format!("DELETE FROM plan_limits WHERE plan_id IN {}", plans_of(&bare)));
    assert!(left_to_policy(consume(&workspace, &open_meter, &open, "open", "2").await, "fail_open"));
    assert!(!left_to_policy(consume(&workspace, &closed_meter, &closed, "closed", "2").await, "fail_closed"));
    // with no limit known the policy is the default, and the subject is not taken for one without a plan
    assert!(left_to_policy(consume(&workspace, &bare_meter, &bare, "bare", "2").await, "fail_open"));
    assert_eq!(
        database.count(&format!("quota_counters WHERE {}", of(&bare))),
        1,
        "it is counted all the same"
    );
}

async fn what_can_be_read_still_refuses(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    let limits = json!([{"limit": 2, "period": "day", "enforcement": "hard"},
                        {"limit": 500, "period": "month", "enforcement": "hard"}]);
    let (meter, subject) = quota(&workspace, limits).await;
    database.execute("UPDATE plan_limits SET quantity = 'many' WHERE quantity = '500'");
    // the damaged plan does not take the others' list with it
    let healthy = json!({"name": "healthy", "limits": [{"meter": meter, "period": "day", "limit": 1}]});
    workspace.post("/v1/plans", &healthy).await.json(201);
    let listed = workspace.get("/v1/plans").await.json(200);
    let names: Vec<&str> =
        listed["items"].as_array().into_iter().flatten().filter_map(|plan| plan["name"].as_str()).collect();
    assert_eq!(names, ["healthy"]);
    assert!(left_to_policy(consume(&workspace, &meter, &subject, "k-1", "2").await, "fail_open"));
    let refused = consume(&workspace, &meter, &subject, "k-2", "1").await.json(429);
    assert_eq!((&refused["evaluation_failed"], &refused["quota"]["period"]), (&json!(false), &json!("day")));
}

/// Not a number out of place but a page of the table that PostgreSQL itself cannot read.
mod an_unreadable_page_is_left_to_the_failure_policy {
    use diesel::connection::SimpleConnection;

    use super::*;

    #[test]
    fn postgres() {
        run(async {
            let database = Database::durable_postgres();
            let mut server = Server::start_to_be_restarted(&database);
            let workspace = server.workspace().await;
            let (open_meter, open) = quota(&workspace, failing(10, "hard", "fail_open")).await;
            let (closed_meter, closed) = quota(&workspace, failing(10, "hard", "fail_closed")).await;
            let all = [(&open_meter, &open), (&closed_meter, &closed)];
            // a later day of the same window on the first page, today on another
            let later = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24 * 20);
            for (meter, subject) in all {
                let event = json!({"meter": meter, "subject": subject, "quantity": 1, "timestamp": later.to_string()});
                workspace.post("/v1/usages", &event).await.expect(201);
            }
            database.execute(
                "INSERT INTO quota_counters SELECT -n, 1, 0, '', 0, 1, 1, 1, 1, 0, '', 1, 0, '', 1 FROM generate_series(1, 500) n",
            );
            for (meter, subject) in all {
                consume(&workspace, meter, subject, &format!("{subject}-1"), "1").await.expect(201);
            }
            let file = database.lines("SELECT pg_relation_filepath('quota_counters') AS line").remove(0);
            // hot rows are found by the index, whatever the planner thinks of so small a table
            for wish in [
                "ALTER SYSTEM SET enable_seqscan = off",
                "ALTER SYSTEM SET enable_bitmapscan = off",
                "CHECKPOINT",
            ] {
                database.postgres_connection().batch_execute(wish).expect("executed");
            }
            server.terminate();
            database.cluster().kill();
            let file = std::fs::File::options().write(true).open(database.cluster().data_file(&file));
            std::os::unix::fs::FileExt::write_all_at(&file.expect("the table"), &[0xFF; 8192], 0)
                .expect("written");
            database.cluster().start();

            server.restart();
            assert!(left_to_policy(consume(&workspace, &open_meter, &open, "open", "1").await, "fail_open"));
            assert!(!left_to_policy(
                consume(&workspace, &closed_meter, &closed, "closed", "1").await,
                "fail_closed"
            ));
            let again = consume(&workspace, &open_meter, &open, "open", "1").await.json(201);
            assert_eq!((&again["replayed"], &again["evaluation_failed"]), (&json!(true), &json!(true)));
        });
    }
}

async fn a_decision_outlives_its_event(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    let (meter, subject) = quota(&workspace, hard(10)).await;
    let body = json!({"idempotency_key": "old", "meter": meter, "subject": subject, "quantity": 7,
                      "timestamp": JUNE.0, "metadata": {"region": "eu"}});
    let path = "/v1/entitlements/consume";
    let first = workspace.post(path, &body).await.json(201);
    assert_eq!(first["event"]["metadata"], json!({"region": "eu"}));
    database.execute("DELETE FROM events");

    let again = workspace.post(path, &body).await.json(201);
    assert_eq!(again["replayed"], json!(true));
    for part in ["accepted", "evaluation_failed", "event", "quota"] {
        assert_eq!(again[part], first[part], "{part}");
    }
    assert_eq!(again["conflict"], Value::Null);
    // another body under the same key: the decision's own event
    for other in [
        json!({"idempotency_key": "old", "meter": meter, "subject": "somebody", "quantity": 1}),
        json!({"idempotency_key": "old", "meter": meter, "subject": "a b", "quantity": -1}),
        json!({"idempotency_key": "old", "meter": "unheard", "subject": "s", "quantity": 1}),
    ] {
        let again = workspace.post(path, &other).await.json(201);
        for (name, value) in first["event"].as_object().expect("an event") {
            assert_eq!(again["event"][name], *value, "{name}: {other}");
        }
        assert_eq!(again["quota"], first["quota"], "{other}");
        assert_eq!(again["conflict"], true, "{other}");
    }
}

/// RFC 3339, some hours from now.
fn hours_ahead(hours: i64) -> String {
    (jiff::Timestamp::now() + jiff::SignedDuration::from_hours(hours)).to_string()
}

async fn no_timestamp_leads_around_a_limit(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    let limits = json!([{"limit": 3, "period": "day", "enforcement": "hard"}]);
    let (meter, subject) = quota(&workspace, limits).await;
    let mut granted = 0;
    for (n, hours) in [-1, -30, 24 * 400, -24 * 400, 30, 48, 72, 96, -1, 0].into_iter().enumerate() {
        let body = json!({"idempotency_key": format!("k{n}"), "meter": meter, "subject": subject, "quantity": 1,
                          "timestamp": hours_ahead(hours)});
        let answer = workspace.post("/v1/entitlements/consume", &body).await;
        granted += usize::from(answer.status == 201);
        let answer = answer.expect(if n < 3 { 201 } else { 429 });
        assert!(answer.text.contains(r#""plan_id""#), "an assigned subject has a plan: {}", answer.text);
    }
    assert_eq!(granted, 3);
    assert_eq!(current(&workspace, &subject).await, "3", "all of it counts in the period of the decision");
}

/// As the first server did.
async fn timestamps_decide_where_a_setting_says_so(database: Database) {
    let server = Server::start_with(&database, &[("OPEN_SPANNER_CONSUMPTION_TIME", "event")]);
    let workspace = server.workspace().await;
    let (meter, subject) = quota(&workspace, hard(1)).await;
    let at = |key: &str, hours| {
        json!({"idempotency_key": key, "meter": meter, "subject": subject, "quantity": 1,
               "timestamp": hours_ahead(hours)})
    };
    let before = workspace.post("/v1/entitlements/consume", &at("before", -30)).await.json(201);
    assert_eq!(before["quota"]["state"], "no_plan");
    workspace.post("/v1/entitlements/consume", &at("now", 0)).await.expect(201);
    workspace.post("/v1/entitlements/consume", &at("more", 0)).await.expect(429);
    workspace.post("/v1/entitlements/consume", &at("later", 24 * 40)).await.expect(201);
}

async fn another_body_under_a_decided_key_is_told(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    let (meter, subject) = quota(&workspace, hard(5)).await;
    for (key, quantity, status) in [("yes", "2", 201), ("no", "9", 429)] {
        consume(&workspace, &meter, &subject, key, quantity).await.expect(status);
        let same = consume(&workspace, &meter, &subject, key, quantity).await;
        assert_eq!(
            (same.header("idempotency-replayed"), same.header("idempotency-conflict")),
            ("true".into(), String::new())
        );
        let other = consume(&workspace, &meter, &subject, key, "1").await;
        assert_eq!(other.header("idempotency-conflict"), "true", "{}", other.text);
        assert_eq!(other.json(status)["conflict"], true);
    }
    // an event of another meter had the key: a key for this meter does not get to see it
    workspace.meter("secret", "sum").await;
    let event = json!({"meter": "secret", "subject": "x", "quantity": 42, "idempotency_key": "taken"});
    workspace.post("/v1/usages", &event).await.expect(201);
    let body = json!({"name": "narrow", "scopes": ["*"], "allowed_meters": [meter]});
    let made = workspace.session.post("/v1/auth/api-keys", &body).await.json(201);
    let narrow = server.client().with_key(made["key"].as_str().expect("the secret"));
    consume(&narrow, &meter, &subject, "taken", "1").await.error(403, "forbidden");
}

/// Retention took the decisions: what was stored under a key still says that this call did not do it.
async fn a_key_outlives_its_decision(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    let (meter, subject) = quota(&workspace, hard(3)).await;
    let first = consume(&workspace, &meter, &subject, "yes", "2").await.json(201);
    consume(&workspace, &meter, &subject, "no", "2").await.expect(429);
    database.execute("DELETE FROM consumption_decisions");
    let again = consume(&workspace, &meter, &subject, "yes", "2").await;
    assert_eq!(again.header("idempotency-replayed"), "true", "{}", again.text);
    assert_eq!(again.header("idempotency-conflict"), "", "{}", again.text);
    let again = again.json(201);
    assert_eq!((&again["replayed"], &again["event"]), (&json!(true), &first["event"]));
    database.execute("DELETE FROM consumption_decisions");
    let other = consume(&workspace, &meter, &subject, "yes", "1").await.json(201);
    assert_eq!((&other["replayed"], &other["conflict"]), (&json!(true), &json!(true)), "{other}");
    // what was refused left nothing: it is decided anew
    let refused = consume(&workspace, &meter, &subject, "no", "2").await.json(429);
    assert_eq!(refused["replayed"], json!(false));
    let new = consume(&workspace, &meter, &subject, "no-more", "1").await.json(201);
    assert_eq!(new["replayed"], json!(false));
    assert_eq!(current(&workspace, &subject).await, "3");
}
