//! Dry runs: what a call would do, told exactly, with not a row stored.

use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use serde_json::{Value, json};

use crate::support::client::NOON;
use crate::support::{Client, Database, Server, Workspace, on_both_databases, run, unique};

on_both_databases!(
    every_outcome_is_told_and_nothing_is_stored,
    a_bulk_call_sees_its_own_events,
    a_consumption_is_decided_and_not_taken,
    what_the_real_call_answers_is_what_was_told,
    a_refused_conflict_has_the_status_of_the_call,
    a_large_call_is_told_the_limits_of_its_first_events,
    doors_without_a_dry_run_refuse_it,
    what_a_key_may_not_read_is_not_shown
);

/// How many rows each table holds, but for those that workers keep for themselves.
fn rows(database: &Database) -> Vec<String> {
    let names = match database {
        Database::Sqlite { .. } => {
            "SELECT name AS line FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name"
        }
        Database::Postgres { .. } => {
            "SELECT tablename::text AS line FROM pg_tables WHERE schemaname = 'public' ORDER BY 1"
        }
    };
    let volatile = ["worker_instances", "leases", "jobs"];
    let tables = database.lines(names).into_iter().filter(|name| !volatile.contains(&name.as_str()));
    tables.map(|table| format!("{table} {}", database.count(&table))).collect()
}

/// Waits until what follows from earlier writes is done.
async fn settled(database: &Database, states: u64) -> Vec<String> {
    let end = Instant::now() + Duration::from_secs(60);
    while database.count("rollup_deltas WHERE cells IS NOT NULL") > 0
        || database.count("entitlement_states") < states
    {
        assert!(Instant::now() < end, "the deltas are not folded, or states not evaluated");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    rows(database)
}

fn event(meter: &str, key: &str, quantity: i64) -> Value {
    json!({"meter": meter, "subject": "org_1", "quantity": quantity, "timestamp": NOON, "idempotency_key": key,
           "metadata": {"model": "m1"}})
}

async fn dimensioned(workspace: &Workspace, meter: &str) {
    let body = json!({"name": meter, "unit": "u", "aggregation": "sum",
                      "dimensions": [{"name": "model", "type": "string"}]});
    workspace.post("/v1/meters", &body).await.expect(201);
}

fn window<'a>(item: &'a Value, size: &str) -> &'a Value {
    let windows = item["windows"].as_array().expect("windows");
    windows.iter().find(|window| window["bucket_size"] == size).expect(size)
}

async fn every_outcome_is_told_and_nothing_is_stored(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    dimensioned(&workspace, "tokens").await;
    let stored = workspace.post("/v1/usages", &event("tokens", "k1", 5)).await.json(201);
    let before = settled(&database, 0).await;

    let dry = |body: Value| {
        let client: Client = workspace.key.clone();
        async move { client.post("/v1/usages?dry_run=true", &body).await.json(200) }
    };
    let accepted = dry(event("tokens", "k2", 7)).await;
    assert_eq!((&accepted["dry_run"], &accepted["status"]), (&json!(true), &json!(201)));
    let item = &accepted["items"][0];
    assert_eq!((&item["outcome"], &item["dimension_set"]), (&json!("accepted"), &json!({"model": "m1"})));
    for size in ["hour", "day", "month"] {
        let window = window(item, size);
        assert_eq!((&window["before"], &window["after"]), (&json!(5), &json!(12)), "{size}");
    }
    assert_eq!(item["event"]["quantity"], 7);

    let duplicate = dry(event("tokens", "k1", 5)).await;
    let item = &duplicate["items"][0];
    assert_eq!((&item["outcome"], &item["event"]["id"]), (&json!("duplicate"), &stored["id"]));
    assert_eq!(item["windows"], json!([]));

    let conflict = dry(event("tokens", "k1", 6)).await;
    let item = &conflict["items"][0];
    assert_eq!((&item["outcome"], &item["conflict_fields"]), (&json!("conflict"), &json!(["quantity"])));

    let rejected = dry(event("tokens", "k3", -1)).await;
    assert_eq!((&rejected["status"], &rejected["rejected"]), (&json!(400), &json!(1)));
    let item = &rejected["items"][0];
    assert_eq!((&item["outcome"], &item["code"]), (&json!("rejected"), &json!("invalid_input")));
    assert_eq!(item["message"], "invalid input: quantity must be greater than 0");
    let unknown = dry(event("nothing", "k4", 1)).await;
    assert_eq!((&unknown["status"], &unknown["items"][0]["code"]), (&json!(404), &json!("not_found")));

    workspace.post("/v1/usages?dry_run=maybe", &event("tokens", "k5", 1)).await.error(400, "invalid_dry_run");
    assert_eq!(settled(&database, 0).await, before);
}

async fn a_bulk_call_sees_its_own_events(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    dimensioned(&workspace, "tokens").await;
    let before = settled(&database, 0).await;
    let call = json!([
        event("tokens", "a", 1),
        event("tokens", "a", 1),
        event("tokens", "a", 2),
        event("tokens", "b", 10),
        {"meter": "tokens", "subject": "org_1", "quantity": 1},
    ]);
    let told = workspace.post("/v1/usages/bulk?dry_run=true", &call).await.json(200);
    let outcomes: Vec<&str> = told["items"]
        .as_array()
        .expect("items")
        .iter()
        .map(|i| i["outcome"].as_str().expect("a word"))
        .collect();
    assert_eq!(outcomes, ["accepted", "duplicate", "conflict", "accepted", "rejected"]);
    let month = |item: usize| window(&told["items"][item], "month").clone();
    assert_eq!((&month(0)["before"], &month(0)["after"]), (&json!(null), &json!(1)));
    assert_eq!((&month(3)["before"], &month(3)["after"]), (&json!(1), &json!(11)));
    assert_eq!(settled(&database, 0).await, before);

    // the call's own key
    let keyed = workspace.key.with("idempotency-key", "call-1");
    let real = json!([event("tokens", "a", 1)]);
    keyed.post("/v1/usages/bulk", &real).await.expect(201);
    let again = keyed.post("/v1/usages/bulk?dry_run=true", &real).await.json(200);
    assert_eq!((&again["replayed"], &again["duplicates"]), (&json!(true), &json!(1)));
    let other = json!([event("tokens", "c", 1)]);
    let conflict = keyed.post("/v1/usages/bulk?dry_run=true", &other).await.json(200);
    assert_eq!((&conflict["replayed"], &conflict["conflicts"]), (&json!(true), &json!(1)));
}

/// A plan with a hard limit of 10 a month on a new meter, and a subject who has it.
async fn quota(workspace: &Workspace) -> (String, String) {
    let (meter, subject) = (unique("units"), unique("org"));
    workspace.meter(&meter, "sum").await;
    let limits = json!([{"meter": meter, "limit": 10, "enforcement": "hard"}]);
    let plan = json!({"name": unique("plan"), "limits": limits});
    let plan = workspace.post("/v1/plans", &plan).await.json(201);
    let path = format!("/v1/plans/subjects/{subject}");
    workspace.put(&path, &json!({"plan_id": plan["id"]})).await.expect(200);
    (meter, subject)
}

async fn a_consumption_is_decided_and_not_taken(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    let (meter, subject) = quota(&workspace).await;
    // on PostgreSQL workers are processes of their own
    let states = u64::from(matches!(database, Database::Sqlite { .. }));
    let ask = |key: &str, quantity: i64| json!({"idempotency_key": key, "meter": meter, "subject": subject, "quantity": quantity});
    workspace.post("/v1/entitlements/consume", &ask("k1", 6)).await.expect(201);
    let before = settled(&database, states).await;
    let dry = "/v1/entitlements/consume?dry_run=true";
    let fits = workspace.post(dry, &ask("k2", 4)).await.json(200);
    assert_eq!((&fits["status"], &fits["decision"]["accepted"]), (&json!(201), &json!(true)));
    let quota = &fits["items"][0]["quotas"][0];
    assert_eq!((&quota["before"], &quota["after"], &quota["limit"]), (&json!(6), &json!(10), &json!(10)));
    assert_eq!((&quota["state_after"], &quota["period"]), (&json!("exceeded"), &json!("month")));
    // nothing was taken: it fits again
    let fits = workspace.post(dry, &ask("k3", 4)).await.json(200);
    assert_eq!(fits["decision"]["accepted"], true);
    let refused = workspace.post(dry, &ask("k4", 5)).await.json(200);
    assert_eq!((&refused["status"], &refused["decision"]["accepted"]), (&json!(429), &json!(false)));
    let item = &refused["items"][0];
    assert_eq!((&item["outcome"], &item["code"]), (&json!("rejected"), &json!("quota_exceeded")));
    assert_eq!(item["quotas"][0]["after"], 6);
    let replayed = workspace.post(dry, &ask("k1", 6)).await.json(200);
    assert_eq!((&replayed["decision"]["replayed"], &replayed["duplicates"]), (&json!(true), &json!(1)));
    let other = workspace.post(dry, &ask("k1", 5)).await.json(200);
    assert_eq!((&other["decision"]["conflict"], &other["conflicts"]), (&json!(true), &json!(1)));
    let invalid = workspace.post(dry, &ask("k5", 0)).await.json(200);
    assert_eq!((&invalid["status"], &invalid["decision"]), (&json!(400), &Value::Null));
    // a plain write moves the same limit
    let plain = workspace.post("/v1/usages?dry_run=true", &ask("k6", 3)).await.json(200);
    let quota = &plain["items"][0]["quotas"][0];
    assert_eq!((&quota["before"], &quota["after"]), (&json!(6), &json!(9)));
    assert_eq!(settled(&database, states).await, before);
}

async fn what_the_real_call_answers_is_what_was_told(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    dimensioned(&workspace, "tokens").await;
    let quantities = [3i64, 0, 8, 5, -2, 5];
    let items =
        quantities.iter().enumerate().map(|(n, quantity)| event("tokens", &format!("k{}", n % 4), *quantity));
    let call = Value::Array(items.collect());
    let told = workspace.post("/v1/usages/bulk?dry_run=true", &call).await.json(200);
    let real = workspace
        .post("/v1/usages/bulk", &call)
        .await
        .json(told["status"].as_u64().expect("a status") as u16);
    let conflicts = real["conflict_items"].as_array().map_or(0, Vec::len);
    assert_eq!(told["accepted"], real["accepted"]);
    assert_eq!(told["rejected"], real["failed"]);
    assert_eq!(told["conflicts"], conflicts);
    let duplicates = real["duplicates"].as_u64().expect("a count") - conflicts as u64;
    assert_eq!(told["duplicates"], duplicates);
    let last =
        told["items"].as_array().expect("items").iter().rfind(|i| i["outcome"] == "accepted").expect("one");
    assert_eq!(window(last, "month")["after"].to_string(), workspace.total("tokens").await);
    let again = workspace.post("/v1/usages/bulk?dry_run=true", &call).await.json(200);
    assert_eq!(again["accepted"], 0);
}

/// Where the workspace wants keys that were used for something else to be refused.
async fn a_refused_conflict_has_the_status_of_the_call(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    dimensioned(&workspace, "tokens").await;
    let (meter, subject) = quota(&workspace).await;
    let ask = |key: &str, quantity: i64| json!({"idempotency_key": key, "meter": meter, "subject": subject, "quantity": quantity});
    let keyed = workspace.key.with("idempotency-key", "call-1");
    let (usages, bulk, consume) = ("/v1/usages", "/v1/usages/bulk", "/v1/entitlements/consume");
    workspace.post(usages, &event("tokens", "k", 1)).await.expect(201);
    keyed.post(bulk, &json!([event("tokens", "b", 1)])).await.expect(201);
    workspace.post(consume, &ask("yes", 2)).await.expect(201);
    workspace.post(consume, &ask("no", 20)).await.expect(429);
    let refuse = json!({"key_conflicts": "refuse"});
    workspace.session.patch("/v1/auth/workspace", &refuse).await.expect(204);

    for (client, path, body, status) in [
        (&workspace.key, usages, event("tokens", "k", 1), 201),
        (&workspace.key, usages, event("tokens", "k", 2), 409),
        (&workspace.key, bulk, json!([event("tokens", "k", 2)]), 400),
        (&workspace.key, bulk, json!([event("tokens", "k", 1), event("tokens", "k", 2)]), 201),
        (&workspace.key, bulk, json!([event("tokens", "k", 2), event("tokens", "new", 2)]), 201),
        (&keyed, bulk, json!([event("tokens", "b", 1)]), 201),
        (&keyed, bulk, json!([event("tokens", "z", 1)]), 409),
        (&workspace.key, consume, ask("yes", 2), 201),
        (&workspace.key, consume, ask("yes", 1), 409),
        (&workspace.key, consume, ask("no", 20), 429),
        (&workspace.key, consume, ask("no", 1), 409),
    ] {
        let told = client.post(&format!("{path}?dry_run=true"), &body).await.json(200);
        assert_eq!(told["status"], json!(status), "{path} {body}: {told}");
        client.post(path, &body).await.expect(status);
    }
}

/// How many statements the windows of dry runs have taken so far.
async fn statements_of_windows(server: &Server) -> u64 {
    let text = server.client().get("/metrics").await.expect(200).text;
    let count = text.lines().find_map(|line| {
        line.strip_prefix("open_spanner_db_statements_total{operation=\"events::windows\"} ")
    });
    count.map_or(0, |count| count.parse().expect("a number"))
}

/// SQLite has one writer: hundreds of windows are not read while it waits.
#[test]
fn windows_are_read_before_the_writer_is_taken() {
    run(async {
        let database = Database::sqlite();
        let server = Server::start_with(&database, &[("OPEN_SPANNER_HTTP_METRICS", "true")]);
        let workspace = server.workspace().await;
        dimensioned(&workspace, "tokens").await;
        workspace.post("/v1/usages", &event("tokens", "k1", 5)).await.expect(201);
        let mut holder = database.sqlite_connection();
        holder.batch_execute("BEGIN IMMEDIATE").expect("the lock is free");
        let client = workspace.key.clone();
        let dry =
            tokio::spawn(
                async move { client.post("/v1/usages?dry_run=true", &event("tokens", "k2", 7)).await },
            );
        let end = Instant::now() + Duration::from_secs(3);
        while statements_of_windows(&server).await == 0 {
            assert!(Instant::now() < end, "nothing is read while another writes");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(!dry.is_finished(), "what follows needs the writer");
        holder.batch_execute("COMMIT").expect("the lock is ours");
        let told = dry.await.expect("the call does not panic").json(200);
        assert_eq!(window(&told["items"][0], "day")["after"], 12);
    });
}

/// Events times limits would be an answer of any size.
async fn a_large_call_is_told_the_limits_of_its_first_events(database: Database) {
    const LIMITS: usize = 16;
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("m", "sum").await;
    let limit = |size: usize| json!({"meter": "m", "period": format!("{}min", size + 2), "limit": 500, "window": {"kind": "sliding"}});
    let limits: Vec<Value> = (0..LIMITS).map(limit).collect();
    let plan = workspace.post("/v1/plans", &json!({"name": "p", "limits": limits})).await.json(201);
    workspace.put("/v1/plans/subjects/s", &json!({"plan_id": plan["id"]})).await.expect(200);
    let event = json!({"idempotency_key": "k", "meter": "m", "subject": "s", "quantity": 1});
    let call: Vec<Value> = (0..1_000)
        .map(|n| {
            let mut event = event.clone();
            event["idempotency_key"] = json!(format!("k{n}"));
            event
        })
        .collect();
    let told = workspace.post("/v1/usages/bulk?dry_run=true", &json!(call)).await.json(200);
    assert_eq!(told["accepted"], json!(1_000));
    let items = told["items"].as_array().expect("items");
    let counts: Vec<usize> = items.iter().map(|i| i["quotas"].as_array().expect("a list").len()).collect();
    // the first 4,000 entries
    let first = 4_000 / LIMITS;
    assert!(counts[..first].iter().all(|count| *count == LIMITS), "{counts:?}");
    assert!(counts[first..].iter().all(|count| *count == 0), "{counts:?}");
    let last = &items[first - 1]["quotas"][0];
    assert_eq!((&last["before"], &last["after"]), (&json!(first - 1), &json!(first)));
}

async fn doors_without_a_dry_run_refuse_it(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("calls", "sum").await;
    let lines = workspace.key.with("content-type", "application/x-ndjson");
    let line = event("calls", "a", 1).to_string();
    lines.post_bytes("/v1/usages/bulk?dry_run=true", line.into_bytes()).await.error(400, "invalid_input");
    let cloud = json!({"specversion": "1.0", "type": "calls", "source": "s", "id": "1", "subject": "org"});
    workspace.post("/api/v1/events?dry_run=true", &cloud).await.error(400, "invalid_input");
    assert_eq!(database.count("events"), 0);
}

async fn what_a_key_may_not_read_is_not_shown(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("secret", "sum").await;
    workspace.meter("open", "sum").await;
    workspace.post("/v1/usages", &event("secret", "k", 1)).await.expect(201);
    let body = json!({"name": "narrow", "scopes": ["usage:write"], "allowed_meters": ["open"]});
    let made = workspace.session.post("/v1/auth/api-keys", &body).await.json(201);
    let narrow = workspace.key.without("authorization").with_key(made["key"].as_str().expect("the secret"));
    narrow.post("/v1/usages?dry_run=true", &event("secret", "x", 1)).await.error(403, "forbidden");
    let told = narrow.post("/v1/usages?dry_run=true", &event("open", "k", 1)).await.json(200);
    let item = &told["items"][0];
    assert_eq!(
        (&item["outcome"], &item["code"], &told["status"]),
        (&json!("rejected"), &json!("forbidden"), &json!(403))
    );
    assert_eq!(item["event"], Value::Null);
}
