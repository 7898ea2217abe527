//! A key counts once: among concurrent writers, in overlapping batches, and for whole bulk calls.

use std::collections::BTreeMap;
use std::sync::Arc;

use diesel::connection::SimpleConnection;
use serde_json::{Value, json};
use tokio::sync::Barrier;

use crate::support::client::NOON;
use crate::support::{Answer, Client, Database, Server, on_both_databases, run, unique};

on_both_databases!(
    one_key_from_sixteen_writers,
    overlapping_batches_in_different_orders,
    bulk_header_replays,
    one_bulk_header_from_eight_writers,
    keys_belong_to_their_workspace,
    key_repeated_within_one_batch,
    a_key_used_for_something_else_says_so,
    a_workspace_may_refuse_such_keys,
    keys_of_other_meters_are_not_shown,
    headers_that_are_no_keys_are_refused,
    a_pruned_event_is_not_made_up
);

fn event(key: &str, quantity: u64) -> Value {
    json!({"meter": "calls", "subject": "s", "quantity": quantity, "timestamp": NOON, "idempotency_key": key})
}

/// Calls `work` from as many tasks at once and returns their answers.
async fn race<F>(count: usize, work: impl Fn(usize) -> F) -> Vec<F::Output>
where
    F: Future<Output: Send + 'static> + Send + 'static,
{
    let gate = Arc::new(Barrier::new(count));
    let mut tasks = Vec::new();
    for index in 0..count {
        let (gate, work) = (gate.clone(), work(index));
        tasks.push(tokio::spawn(async move {
            gate.wait().await;
            work.await
        }));
    }
    let mut results = Vec::new();
    for task in tasks {
        results.push(task.await.expect("the task does not panic"));
    }
    results
}

/// Without what is said about a key that came with another payload.
fn as_stored(mut event: Value) -> Value {
    if let Some(event) = event.as_object_mut() {
        event.retain(|name, _| !name.starts_with("conflict"));
    }
    event
}

async fn one_key_from_sixteen_writers(database: Database) {
    const ROUNDS: u64 = 10;
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("calls", "count").await;
    for round in 0..ROUNDS {
        let key = unique("key");
        let answers = race(16, |writer| {
            let (client, event) = (workspace.key.clone(), event(&key, 1 + writer as u64));
            async move { client.post("/v1/usages", &event).await }
        });
        let bodies: Vec<Value> =
            answers.await.into_iter().map(|answer| as_stored(answer.json(201))).collect();
        assert!(bodies.iter().all(|body| *body == bodies[0]), "all get the stored event: {bodies:#?}");
        assert_eq!(bodies[0]["idempotency_key"], key.as_str());
        assert_eq!(workspace.total("calls").await, (round + 1).to_string(), "one event per key");
    }
    assert_eq!(database.count("events"), ROUNDS);
}

async fn overlapping_batches_in_different_orders(database: Database) {
    const KEYS: usize = 300;
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("calls", "sum").await;
    let sends = race(12, |writer| {
        let client = workspace.key.clone();
        // 7 does not divide 300 evenly with any of these strides: each writer has an order of its own
        let stride = [1, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43][writer];
        let order: Vec<usize> = (0..KEYS).map(|index| (index * stride + writer) % KEYS).collect();
        let batch: Vec<Value> = order.iter().map(|key| event(&format!("k{key}"), *key as u64 + 1)).collect();
        async move {
            let first = client.post("/v1/usages/bulk", &json!(batch)).await.json(201);
            let again = client.post("/v1/usages/bulk", &json!(batch)).await.json(201);
            [first, again]
        }
    });
    let mut accepted = 0;
    let mut ids = BTreeMap::new();
    for [first, again] in sends.await {
        assert_eq!(again["duplicates"], KEYS, "a retry holds duplicates only");
        for body in [first, again] {
            assert_eq!(body["failed"], 0, "{body}");
            let items = |field: &str| body[field].as_array().expect("a list").clone();
            assert_eq!(body["accepted"], items("accepted_items").len());
            accepted += items("accepted_items").len();
            let all = [items("accepted_items"), items("duplicate_items")].concat();
            assert_eq!(all.len(), KEYS, "every item is answered");
            for item in all {
                let id = ids.entry(item["idempotency_key"].to_string()).or_insert_with(|| item["id"].clone());
                assert_eq!(*id, item["id"], "one id per key");
            }
        }
    }
    assert_eq!(accepted, KEYS, "each key is accepted by one call");
    assert_eq!(workspace.total("calls").await, (KEYS * (KEYS + 1) / 2).to_string());
    assert_eq!(database.count("events"), KEYS as u64);
}

fn bulk_with_header(client: &Client, key: &str) -> Client {
    client.with("idempotency-key", key)
}

async fn bulk_header_replays(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("calls", "count").await;
    let unkeyed = json!({"meter": "calls", "subject": "s", "quantity": 1, "timestamp": NOON});
    let broken = json!({"meter": "calls", "subject": "s", "quantity": -1, "timestamp": NOON});
    let call = bulk_with_header(&workspace, "call-1");
    let first = call.post("/v1/usages/bulk", &json!([unkeyed, broken, unkeyed])).await.json(201);
    assert_eq!((&first["accepted"], &first["failed"]), (&json!(2), &json!(1)));

    let replay = call.post("/v1/usages/bulk", &json!([unkeyed, broken, unkeyed])).await.json(201);
    assert_eq!(replay, first, "a replay is the first answer");

    let other = call.post("/v1/usages/bulk", &json!([unkeyed])).await.json(201);
    assert_eq!(other["accepted_items"], first["accepted_items"], "whatever the new body holds");
    assert_eq!(other["failed"], 0, "failures are those of the new body: {other}");

    let wrong = call.post("/v1/usages/bulk", &json!([broken])).await.json(400);
    assert_eq!(
        (&wrong["accepted"], &wrong["failed"]),
        (&json!(0), &json!(1)),
        "nothing valid, nothing replayed"
    );

    bulk_with_header(&workspace, "call-2").post("/v1/usages/bulk", &json!([unkeyed])).await.expect(201);
    workspace.post("/v1/usages/bulk", &json!([unkeyed])).await.expect(201);
    assert_eq!(workspace.total("calls").await, "4", "two, one with another header, one without");
}

/// Whether an answer says that it was given before, and that it was given to something else.
fn said(answer: &Answer) -> (bool, bool) {
    let is_true = |name| answer.header(name) == "true";
    (is_true("idempotency-replayed"), is_true("idempotency-conflict"))
}

async fn a_key_used_for_something_else_says_so(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("calls", "sum").await;
    let write = async |body: &Value| workspace.post("/v1/usages", body).await.expect(201);
    assert_eq!(said(&write(&event("k", 1)).await), (false, false));
    assert_eq!(said(&write(&event("k", 1)).await), (true, false));
    let other = write(&event("k", 2)).await;
    assert_eq!(said(&other), (true, true));
    let body = other.json(201);
    assert_eq!((&body["quantity"], &body["conflict"]), (&json!(1), &json!(true)));
    assert_eq!(body["conflict_fields"], json!(["quantity"]));

    let call = bulk_with_header(&workspace, "b1");
    let bulk = async |body: Value| call.post("/v1/usages/bulk", &body).await.expect(201);
    let first = bulk(json!([event("q1", 1)])).await;
    assert_eq!(said(&first), (false, false));
    assert_eq!(said(&bulk(json!([event("q1", 1)])).await), (true, false));
    let other = bulk(json!([event("q2", 1), event("q3", 1)])).await;
    assert_eq!(said(&other), (true, true));
    assert_eq!(other.json(201), first.json(201));

    // items with used keys, one of them with another payload, and one key twice in a call
    let call = bulk_with_header(&workspace, "b2");
    let items = json!([event("k", 1), event("k", 3), event("n", 1), event("n", 2), event("n", 1)]);
    let answer = call.post("/v1/usages/bulk", &items).await;
    assert_eq!(said(&answer), (false, true));
    let answer = answer.json(201);
    let again = call.post("/v1/usages/bulk", &items).await;
    assert_eq!(said(&again), (true, true));
    assert_eq!(again.json(201), answer, "told again");
    assert_eq!((&answer["accepted"], &answer["duplicates"]), (&json!(1), &json!(4)), "{answer}");
    assert_eq!(answer["conflict_items"], json!([1, 3]));
    let told = |place: usize| answer["duplicate_items"][place]["conflict"].clone();
    assert_eq!([told(0), told(1), told(2), told(3)], [Value::Null, json!(true), json!(true), Value::Null]);
    assert_eq!(workspace.total("calls").await, "3");
}

async fn a_workspace_may_refuse_such_keys(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("calls", "sum").await;
    workspace.post("/v1/usages", &event("k", 1)).await.expect(201);
    let consume = json!({"meter": "calls", "subject": "s", "quantity": 1, "idempotency_key": "c"});
    workspace.post("/v1/entitlements/consume", &consume).await.expect(201);
    bulk_with_header(&workspace, "call").post("/v1/usages/bulk", &json!([event("b", 1)])).await.expect(201);

    let route = "/v1/auth/workspace";
    workspace.session.patch(route, &json!({"key_conflicts": "maybe"})).await.error(400, "invalid_input");
    workspace.session.patch(route, &json!({"key_conflicts": "refuse"})).await.expect(204);
    let own = workspace.session.get("/v1/auth/workspaces").await.json(200);
    assert_eq!(own["items"][0]["key_conflicts"], "refuse");
    let trail = workspace.session.get("/v1/audit-events?limit=1").await.json(200);
    assert_eq!(trail["items"][0]["action"], "workspace.key_conflicts_changed");

    let message = workspace.post("/v1/usages", &event("k", 2)).await.error(409, "conflict");
    assert!(message.contains("quantity"), "{message}");
    workspace.post("/v1/usages", &event("k", 1)).await.expect(201);
    let other = json!({"meter": "calls", "subject": "s", "quantity": 2, "idempotency_key": "c"});
    workspace.post("/v1/entitlements/consume", &other).await.error(409, "conflict");
    workspace.post("/v1/entitlements/consume", &consume).await.expect(201);
    let bulk = json!([event("k", 1), event("k", 3), event("n", 1)]);
    let answer = workspace.post("/v1/usages/bulk", &bulk).await.json(201);
    assert_eq!(
        (&answer["accepted"], &answer["duplicates"], &answer["failed"]),
        (&json!(1), &json!(1), &json!(1))
    );
    let failed = &answer["failed_items"][0];
    assert_eq!((&failed["index"], &failed["code"]), (&json!(1), &json!("conflict")));
    let call = bulk_with_header(&workspace, "call");
    call.post("/v1/usages/bulk", &json!([event("z", 1)])).await.error(409, "conflict");
    // sent again, a call is answered as it was
    let again = bulk_with_header(&workspace, "again");
    for is_replay in [false, true] {
        let answer = again.post("/v1/usages/bulk", &json!([event("k", 3)])).await;
        assert_eq!(answer.status, 400, "replay {is_replay}: {}", answer.text);
        assert_eq!(!answer.header("idempotency-replayed").is_empty(), is_replay);
        let answer = answer.json(400);
        let failed = &answer["failed_items"][0];
        assert_eq!((&failed["index"], &failed["code"]), (&json!(0), &json!("conflict")), "{answer}");
        assert!(failed["message"].as_str().expect("words").contains("quantity"), "{answer}");
    }
    call.post("/v1/usages/bulk", &json!([event("b", 1)])).await.expect(201);
    let told = workspace.post("/v1/usages?dry_run=true", &event("k", 2)).await.json(200);
    assert_eq!((&told["status"], &told["items"][0]["code"]), (&json!(409), &json!("conflict")));

    workspace.session.patch(route, &json!({"key_conflicts": "answer"})).await.expect(204);
    workspace.post("/v1/usages", &event("k", 2)).await.expect(201);
}

async fn keys_of_other_meters_are_not_shown(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("calls", "sum").await;
    workspace.meter("mine", "sum").await;
    workspace.post("/v1/usages", &event("ik", 42)).await.expect(201);
    bulk_with_header(&workspace, "call").post("/v1/usages/bulk", &json!([event("b", 42)])).await.expect(201);
    let body = json!({"name": "narrow", "scopes": ["*"], "allowed_meters": ["mine"]});
    let made = workspace.session.post("/v1/auth/api-keys", &body).await.json(201);
    let narrow = server.client().with_key(made["key"].as_str().expect("the secret"));
    let mine = |key: &str| json!({"meter": "mine", "subject": "s", "quantity": 1, "timestamp": NOON, "idempotency_key": key});
    narrow.post("/v1/usages", &mine("ik")).await.error(403, "forbidden");
    bulk_with_header(&narrow, "call")
        .post("/v1/usages/bulk", &json!([mine("x")]))
        .await
        .error(403, "forbidden");
    let answer = narrow.post("/v1/usages/bulk", &json!([mine("ik"), mine("y")])).await.expect(201);
    assert!(!answer.text.contains("\"quantity\":42"), "{}", answer.text);
    let answer = answer.json(201);
    assert_eq!((&answer["accepted"], &answer["duplicates"]), (&json!(1), &json!(0)), "{answer}");
    assert_eq!(
        (&answer["failed_items"][0]["index"], &answer["failed_items"][0]["code"]),
        (&json!(0), &json!("forbidden"))
    );
}

async fn headers_that_are_no_keys_are_refused(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("calls", "sum").await;
    let unkeyed = json!([{"meter": "calls", "subject": "s", "quantity": 1, "timestamp": NOON}]);
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let send = async |key: &[u8]| {
        let key = reqwest::header::HeaderValue::from_bytes(key).expect("no control characters");
        let request = client.post(format!("{}/v1/usages/bulk", server.url())).header("idempotency-key", key);
        let request = request.header("authorization", workspace.header("authorization"));
        let request = request.header("content-type", "application/json").body(unkeyed.to_string());
        let answer = request.send().await.expect("an answer");
        (answer.status().as_u16(), answer.text().await.expect("a text"))
    };
    let first = send("café-1".as_bytes()).await;
    assert_eq!(first.0, 201);
    assert_eq!(send("café-1".as_bytes()).await, first, "bytes are bytes");
    for bad in [b"k\xff".as_slice(), b"k\xfe"] {
        assert_eq!(send(bad).await.0, 400, "never taken for no key, nor for another");
    }
    assert_eq!(workspace.total("calls").await, "1");
}

async fn a_pruned_event_is_not_made_up(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("calls", "sum").await;
    workspace.meter("nope", "sum").await;
    let first = workspace.post("/v1/usages", &event("dead", 1)).await.json(201);
    database.execute("DELETE FROM events");
    let same = workspace.post("/v1/usages", &event("dead", 1)).await;
    assert_eq!(said(&same), (true, false));
    let same = same.json(201);
    for field in ["id", "subject", "meter", "quantity", "timestamp", "idempotency_key"] {
        assert_eq!(same[field], first[field], "{field}");
    }
    let other = json!({"meter": "nope", "subject": "s2", "quantity": 999, "idempotency_key": "dead",
                       "metadata": {"a": 1}});
    let answer = workspace.post("/v1/usages", &other).await;
    assert_eq!(said(&answer), (true, true));
    let answer = answer.json(201);
    for field in ["id", "subject", "timestamp", "idempotency_key"] {
        assert_eq!(answer[field], first[field], "{field}");
    }
    assert_eq!(
        (&answer["meter"], &answer["quantity"], &answer["metadata"]),
        (&json!(""), &json!(0), &json!({}))
    );
    assert_eq!(answer["pruned"], true);
}

async fn one_bulk_header_from_eight_writers(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("calls", "count").await;
    let unkeyed = json!({"meter": "calls", "subject": "s", "quantity": 1, "timestamp": NOON});
    let answers = race(8, |_| {
        let (client, body) = (bulk_with_header(&workspace, "one call"), json!([unkeyed, unkeyed, unkeyed]));
        async move { client.post("/v1/usages/bulk", &body).await }
    });
    let bodies: Vec<Value> = answers.await.into_iter().map(|answer| answer.json(201)).collect();
    assert!(bodies.iter().all(|body| *body == bodies[0]), "all get the stored answer: {bodies:#?}");
    assert_eq!(bodies[0]["accepted"], 3);
    assert_eq!(workspace.total("calls").await, "3");
}

async fn keys_belong_to_their_workspace(database: Database) {
    let server = Server::start(&database);
    let mut ids = Vec::new();
    for _ in 0..2 {
        let workspace = server.workspace().await;
        workspace.meter("calls", "count").await;
        let stored = workspace.post("/v1/usages", &event("shared", 1)).await.json(201);
        let again = workspace.post("/v1/usages", &event("shared", 2)).await.json(201);
        assert_eq!((&again["conflict"], &again["conflict_fields"]), (&json!(true), &json!(["quantity"])));
        assert_eq!(stored, as_stored(again), "the stored event, whatever the new payload says");
        assert_eq!(workspace.total("calls").await, "1");
        ids.push(stored["id"].clone());
    }
    assert_ne!(ids[0], ids[1]);
}

async fn key_repeated_within_one_batch(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("calls", "sum").await;
    let batch = json!([event("twice", 1), event("once", 10), event("twice", 100)]);
    let body = workspace.post("/v1/usages/bulk", &batch).await.json(201);
    assert_eq!((&body["accepted"], &body["duplicates"]), (&json!(2), &json!(1)), "{body}");
    assert_eq!(as_stored(body["duplicate_items"][0].clone()), body["accepted_items"][0]);
    assert_eq!(workspace.total("calls").await, "11");
}

/// A writer that waited for a change of a meter must see what the change made of it.
#[test]
fn a_meter_is_read_after_it_was_waited_for() {
    run(async {
        let database = Database::postgres();
        let server = Server::start(&database);
        server.workspace().await.meter("calls", "count").await;
        let mut changer = database.postgres_connection();
        changer
            .batch_execute(
                "BEGIN; SELECT pg_advisory_xact_lock(1, (id % 2147483647)::int) FROM meters;
                 UPDATE meters SET version = 7, has_alerts = true",
            )
            .expect("the lock is free");
        let writer = std::thread::spawn({
            let database = database.clone();
            move || {
                database.lines(
                    "SELECT version::text || ' ' || has_alerts::text AS line
                     FROM hold_meters(1, ARRAY(SELECT id FROM meters))",
                )
            }
        });
        let waiting = "SELECT 'waiting' AS line FROM pg_locks l JOIN pg_database d ON d.oid = l.database
                       WHERE d.datname = current_database() AND l.locktype = 'advisory' AND NOT l.granted";
        while database.lines(waiting).is_empty() {
            assert!(!writer.is_finished(), "the writer waits");
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        changer.batch_execute("COMMIT").expect("the change is committed");
        assert_eq!(writer.join().expect("the writer is answered"), ["7 true"]);
    });
}
