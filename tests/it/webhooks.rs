//! Webhooks from the receiver's side: signed, tried again, in order, never to where they must not go, and none lost
//! or invented when workers are killed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use ring::hmac;
use serde_json::{Value, json};

use crate::alerts::{ANY_PORT, LOOPBACK, destination, events, path, rule, use_meter};
use crate::support::receiver::Call;
use crate::support::{Database, Receiver, Server, Worker, Workspace, on_both_databases, run};

on_both_databases!(
    receivers_of_all_kinds,
    an_attempt_under_way_is_seen,
    a_failing_group_holds_up_nobody_else,
    a_workspace_of_silent_receivers_holds_up_nobody_else,
    signatures_and_rotation,
    private_addresses_are_not_called
);

const INSIDE: (&str, &str) = ("OPEN_SPANNER_SERVE_WORKERS", "on");

async fn until<F: Future<Output = Option<Value>>>(what: &str, look: impl Fn() -> F) -> Value {
    let end = Instant::now() + Duration::from_secs(120);
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < end, "{what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The delivery job of a destination, once it was tried.
async fn tried(ws: &Workspace, destination: &Value) -> Value {
    let look = || async {
        let jobs = ws.get("/v1/alerts/delivery-jobs").await.json(200);
        let mut jobs = jobs["items"].as_array().expect("a list").clone();
        jobs.retain(|job| job["destination_id"] == destination["id"] && job["attempts"] != 0);
        jobs.pop()
    };
    until("the delivery is tried", look).await
}

async fn receivers_of_all_kinds(database: Database) {
    let server = Server::start_with(&database, &[LOOPBACK, INSIDE]);
    let (ws, receiver) = (server.workspace().await, Receiver::start().await);
    ws.meter("load", "sum").await;
    use_meter(&ws, "load", 12).await;
    let mut made = BTreeMap::new();
    // one that hangs comes first and must not hold up the others
    for kind in ["hang", "fail", "gone", "busy", "redirect", "ok"] {
        let to = destination(&ws, &receiver.url(&format!("{kind}/x"))).await;
        let rule = rule(&ws, "load", &to, json!({})).await;
        made.insert(kind, (to, rule));
    }
    let started = Instant::now();
    receiver.wait("ok/x", 1).await;
    // it is given up after ten
    assert!(started.elapsed() < Duration::from_secs(10), "a hanging receiver holds up others");
    for (kind, status, code) in [
        ("ok", "delivered", json!(200)),
        ("fail", "pending", json!(500)),
        ("busy", "pending", json!(429)),
        ("redirect", "pending", json!(302)),
        ("gone", "dead_letter", json!(410)),
        ("hang", "pending", json!(null)),
    ] {
        let (to, rule) = &made[kind];
        let job = tried(&ws, to).await;
        assert_eq!(job["status"], status, "{kind}: {job}");
        let event = events(&ws, rule).await.remove(0);
        assert_eq!(event["delivery"]["status_code"], code, "{kind}: {event}");
        assert_eq!(event["delivery"]["status"] == "delivered", kind == "ok");
        let excerpt = event["delivery"]["response"].as_str().unwrap_or_default();
        assert_eq!(excerpt.len(), if kind == "hang" { 0 } else { 1_024 }, "a bounded excerpt");
    }
    assert!(receiver.calls("ok/redirected").is_empty(), "redirects are not followed");
    // 429 asked for two hours
    let busy = tried(&ws, &made["busy"].0).await;
    let wait = |text: &Value| text.as_str().and_then(|t| t.parse::<jiff::Timestamp>().ok()).expect("a time");
    let pause = wait(&busy["next_attempt_at"]).as_second() - wait(&busy["updated_at"]).as_second();
    assert!((7_199..=7_201).contains(&pause), "Retry-After is honoured: {pause}");
    // gone: the destination is disabled, its delivery waits for somebody to retry it
    let look = || async {
        let list = ws.get("/v1/alerts/destinations?enabled=false").await.json(200);
        list["items"].as_array().expect("a list").first().cloned()
    };
    let gone = until("410 disables the destination", look).await;
    assert_eq!(gone["id"], made["gone"].0["id"]);
    let job = tried(&ws, &gone).await;
    let retry =
        |job: &Value| format!("/v1/alerts/delivery-jobs/{}/retry", job["id"].as_str().expect("an id"));
    ws.post_text(&retry(&busy), "").await.error(409, "conflict");
    let back = json!({"enabled": true, "webhook_url": receiver.url("ok/back")});
    ws.put(&format!("/v1/alerts/destinations/{}", gone["id"].as_str().expect("an id")), &back)
        .await
        .expect(200);
    ws.post_text(&retry(&job), "").await.expect(204);
    assert_eq!(receiver.wait("ok/back", 1).await[0].event_id(), job["event_id"].as_str().expect("an id"));
    // again, under the same id
    let event = receiver.calls("ok/x")[0].event_id();
    ws.post_text(&format!("/v1/alerts/events/{event}/redeliver"), "").await.expect(202);
    let calls = receiver.wait("ok/x", 2).await;
    assert_eq!((calls[1].event_id(), &calls[1].body), (event, &calls[0].body));
}

async fn an_attempt_under_way_is_seen(database: Database) {
    let server = Server::start_with(&database, &[LOOPBACK, INSIDE]);
    let (ws, receiver) = (server.workspace().await, Receiver::start().await);
    ws.meter("load", "last").await;
    let to = destination(&ws, &receiver.url("hang/x")).await;
    rule(&ws, "load", &to, json!({})).await;
    // the second event of the rule waits behind the first
    use_meter(&ws, "load", 12).await;
    receiver.wait("hang/x", 1).await;
    use_meter(&ws, "load", 1).await;
    let list = || async { ws.get("/v1/alerts/delivery-jobs").await.json(200)["items"].clone() };
    let both = || async {
        let jobs = list().await;
        (jobs[1]["status"] == "running").then_some(jobs)
    };
    let jobs = until("the oldest is running", both).await;
    assert_eq!((&jobs[0]["status"], &jobs[0]["attempts"]), (&json!("pending"), &json!(0)), "{jobs}");
    let retry = format!("/v1/alerts/delivery-jobs/{}/retry", jobs[1]["id"].as_str().expect("an id"));
    ws.post_text(&retry, "").await.error(409, "conflict");
    // the receiver never answers: the attempt ends, and with it what is said of it
    let over = || async {
        let jobs = list().await;
        (jobs[1]["status"] == "pending" && jobs[1]["attempts"] != 0).then_some(jobs)
    };
    until("the attempt is over", over).await;
}

/// One receiver that refuses some groups, says nothing to others and takes the rest.
async fn a_failing_group_holds_up_nobody_else(database: Database) {
    let server = Server::start_with(&database, &[LOOPBACK, INSIDE]);
    let (ws, receiver) = (server.workspace().await, Receiver::start().await);
    ws.meter("load", "last").await;
    let to = destination(&ws, &receiver.url("group/x")).await;
    rule(&ws, "load", &to, json!({"group_by": "subject"})).await;
    let value = async |subject: &str, quantity: u64| {
        let event = json!({"meter": "load", "subject": subject, "quantity": quantity});
        ws.post("/v1/usages", &event).await.expect(201);
    };
    let told = |group: &str| -> Vec<String> {
        let calls = receiver.calls("group/x").into_iter().map(|call| call.json()["event"].clone());
        let own = calls.filter(|event| event["group_value"] == group);
        own.map(|event| event["type"].as_str().unwrap_or_default().to_owned()).collect()
    };
    let until_told = async |group: &str, want: &[&str]| {
        let look = || async { (told(group) == want).then_some(Value::Null) };
        until(&format!("{group} is told {want:?}"), look).await;
    };
    value("fail", 12).await;
    value("hang", 12).await;
    until_told("fail", &["triggered"]).await;
    until_told("hang", &["triggered"]).await;
    let started = Instant::now();
    let others = ["ann", "ben", "cleo", "dora", "emil", "finn", "gus", "hal", "ida", "jo"];
    for group in others {
        value(group, 12).await;
    }
    for group in others {
        until_told(group, &["triggered"]).await;
    }
    // a call that is not answered is given up after ten seconds
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
    // in a group order is kept: that it is over is not told before that it began
    value("fail", 1).await;
    value("ann", 1).await;
    until_told("ann", &["triggered", "resolved"]).await;
    assert!(!told("fail").contains(&"resolved".to_owned()));

    let jobs = ws.get("/v1/alerts/delivery-jobs?status=pending&limit=200").await.json(200);
    let jobs = jobs["items"].as_array().expect("a list").clone();
    let behind: Vec<&Value> = jobs.iter().filter(|job| !job["blocked_by"].is_null()).collect();
    assert_eq!(behind.len(), 1, "{jobs:#?}");
    let first = jobs.iter().find(|job| job["id"] == behind[0]["blocked_by"]).expect("it is owed, too");
    assert!(first["last_error"].as_str().is_some_and(|error| error.contains("500")), "{first}");
    assert_eq!((&behind[0]["attempts"], &behind[0]["last_error"]), (&json!(0), &Value::Null));
    ws.get("/v1/alerts/delivery-jobs?status=lost").await.error(400, "invalid_status");

    // what is owed is seen, and why
    let look = || async {
        let stats = ws.get("/v1/system/stats").await.json(200);
        (stats["webhooks"]["failing"] == 2).then_some(stats)
    };
    let stats = until("both groups have failed", look).await;
    let owed = &stats["webhooks"];
    assert_eq!((&owed["pending"], &owed["dead_letters"]), (&json!(3), &json!(0)), "{owed}");
    assert!(owed["oldest_pending_at"].is_string() && owed["next_attempt_at"].is_string(), "{owed}");
    assert!(owed["last_error"].as_str().is_some_and(|error| error.contains("500")), "{owed}");
    let health = stats["worker_health"].as_array().expect("a list");
    let health = health.iter().find(|worker| worker["name"] == "webhook").expect("it is listed");
    assert_eq!((&health["status"], &health["failed_jobs"]), (&json!("degraded"), &json!(2)), "{health}");
    assert_eq!(health["oldest_pending_at"], owed["oldest_pending_at"]);
    let stranger = server.workspace().await.get("/v1/system/stats").await.json(200);
    assert_eq!(stranger["webhooks"], json!({"pending": 0, "failing": 0, "dead_letters": 0}));
}

/// More rules than one process works on at once, and not one of their receivers answers.
async fn a_workspace_of_silent_receivers_holds_up_nobody_else(database: Database) {
    let server = Server::start_with(&database, &[LOOPBACK, INSIDE]);
    let (silent, ws, receiver) =
        (server.workspace().await, server.workspace().await, Receiver::start().await);
    for workspace in [&silent, &ws] {
        workspace.meter("load", "last").await;
    }
    let to = destination(&silent, &receiver.url("hang/x")).await;
    for _ in 0..70 {
        rule(&silent, "load", &to, json!({})).await;
    }
    let to = destination(&ws, &receiver.url("ok/x")).await;
    rule(&ws, "load", &to, json!({})).await;
    use_meter(&silent, "load", 12).await;
    receiver.wait("hang/x", 16).await;
    let started = Instant::now();
    use_meter(&ws, "load", 12).await;
    receiver.wait("ok/x", 1).await;
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

pub fn contract_signature(secret: &str, call: &Call) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let message = format!("{}.{}", call.header("x-open-spanner-timestamp"), call.body);
    let tag = hmac::sign(&key, message.as_bytes());
    format!("v1={}", tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

/// As a receiver with the public library would check it.
fn standard_verifies(secret: &str, call: &Call) -> bool {
    let webhook = standardwebhooks::Webhook::new(secret).expect("a secret");
    let mut headers = reqwest::header::HeaderMap::new();
    for name in ["webhook-id", "webhook-timestamp", "webhook-signature"] {
        headers.insert(name, call.header(name).parse().expect("a header"));
    }
    webhook.verify(call.body.as_bytes(), &headers).is_ok()
}

async fn signatures_and_rotation(database: Database) {
    let server = Server::start_with(&database, &[LOOPBACK, INSIDE]);
    let (ws, receiver) = (server.workspace().await, Receiver::start().await);
    let made = destination(&ws, &receiver.url("ok/signed")).await;
    let path = format!("/v1/alerts/destinations/{}", made["id"].as_str().expect("an id"));
    let test = || async {
        let answer = ws.post_text(&format!("{path}/test"), "").await.json(200);
        assert_eq!((&answer["status"], &answer["status_code"]), (&json!("delivered"), &json!(200)));
        let call = receiver.calls("ok/signed").pop().expect("a call");
        assert_eq!(answer["event_id"], call.event_id());
        assert_eq!(call.header("webhook-id"), call.event_id());
        assert_eq!(call.header("user-agent"), "open-spanner-alert-worker");
        call
    };
    let secrets = |body: &Value| {
        let signing = &body["webhook_signing"];
        let text = |name: &str| signing[name].as_str().expect("a secret").to_string();
        (text("secret"), text("standard_webhooks_secret"))
    };
    let (old, old_standard) = secrets(&made);
    let call = test().await;
    assert_eq!(call.header("x-open-spanner-signature"), contract_signature(&old, &call));
    assert!(standard_verifies(&old_standard, &call));
    let rotated = ws.post_text(&format!("{path}/webhook-secret/rotate"), "").await.json(200);
    let (new, new_standard) = secrets(&rotated);
    let call = test().await;
    assert_eq!(call.header("x-open-spanner-signature"), contract_signature(&new, &call));
    assert!(standard_verifies(&new_standard, &call), "the new secret");
    assert!(standard_verifies(&old_standard, &call), "the old one, during the overlap");
    let rotated = ws.post_text(&format!("{path}/webhook-secret/rotate"), "").await.json(200);
    let call = test().await;
    assert!(standard_verifies(&secrets(&rotated).1, &call));
    assert!(!standard_verifies(&old_standard, &call), "two secrets at most");
    assert!(!call.body.contains("whsec_"));
}

async fn private_addresses_are_not_called(database: Database) {
    let server = Server::start_with(&database, &[INSIDE]);
    let (ws, receiver) = (server.workspace().await, Receiver::start().await);
    let port = receiver.port;
    for host in [
        "127.0.0.1",
        "localhost",
        "2130706433",
        "0x7f.1",
        "0177.0.0.1",
        "127.1",
        "0.0.0.0",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "10.0.0.1",
        "169.254.169.254",
        "[fe80::1]",
        "[64:ff9b::7f00:1]",
    ] {
        let to = destination(&ws, &format!("http://{host}:{port}/ok/private")).await;
        let path = format!("/v1/alerts/destinations/{}/test", to["id"].as_str().expect("an id"));
        let answer = ws.post_text(&path, "").await.json(200);
        assert_eq!(answer["status"], "failed", "{host}: {answer}");
        let error = answer["error"].as_str().unwrap_or_default();
        assert!(error.contains("is not public"), "{host}: {answer}");
        assert!(answer["duration_ms"].as_i64().is_some_and(|ms| ms < 3_000), "{host}: {answer}");
    }
    assert!(receiver.calls("ok/private").is_empty());
}

const RULES: usize = 12;
const METERS: usize = 4;

/// Two workers on one PostgreSQL, killed again and again while values go up and down: what happened is told, in
/// order, and nothing else is.
#[test]
fn workers_killed_under_load() {
    run(async {
        let database = Database::postgres();
        let server = Server::start_with(&database, &[]);
        let (ws, receiver) = (server.workspace().await, Receiver::start().await);
        let mut rules = Vec::new();
        for number in 0..RULES {
            let meter = format!("load{}", number % METERS);
            if number < METERS {
                ws.meter(&meter, "last").await;
            }
            let to = destination(&ws, &receiver.url(&format!("slow/{number}"))).await;
            rules.push(rule(&ws, &meter, &to, json!({})).await);
        }
        let folder = tempfile::tempdir().expect("a directory");
        let short = [
            LOOPBACK,
            ANY_PORT,
            ("OPEN_SPANNER_ALERT_WORKER_LOCK_TTL", "1s"),
            ("OPEN_SPANNER_ALERT_WORKER_INTERVAL", "200ms"),
        ];
        let start = || Worker::start("alert-worker", &database, folder.path(), &short);
        let mut workers = [start(), start()];
        let end = Instant::now() + Duration::from_secs(20);
        let mut next_kill = Instant::now() + Duration::from_millis(1_500);
        let (mut round, mut kills) = (0u64, 0);
        while Instant::now() < end || kills <= 5 {
            for meter in 0..METERS {
                use_meter(
                    &ws,
                    &format!("load{meter}"),
                    if (round + meter as u64).is_multiple_of(2) { 1 } else { 12 },
                )
                .await;
            }
            round += 1;
            tokio::time::sleep(Duration::from_millis(rand::random_range(20..500))).await;
            if Instant::now() > next_kill {
                workers[kills % 2] = start();
                kills += 1;
                next_kill = Instant::now() + Duration::from_millis(rand::random_range(500..2_000));
            }
        }
        // the last word: everything is quiet
        for meter in 0..METERS {
            use_meter(&ws, &format!("load{meter}"), 1).await;
        }
        let look = || async {
            let open = ws.get("/v1/alerts/delivery-jobs?limit=200").await.json(200);
            let idle =
                open["items"].as_array().expect("a list").iter().all(|job| job["status"] == "delivered");
            let list = ws.get("/v1/alerts?limit=1000").await.json(200);
            let ok =
                list["items"].as_array().expect("a list").iter().all(|rule| rule["state"]["status"] == "ok");
            (idle && ok).then_some(Value::Null)
        };
        until("everything is told", look).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let (mut crossings, mut repeats) = (0, 0);
        for (number, rule) in rules.iter().enumerate() {
            let mut happened = events(&ws, rule).await;
            happened.reverse();
            let kinds: Vec<&str> = happened.iter().filter_map(|event| event["type"].as_str()).collect();
            for (at, kind) in kinds.iter().enumerate() {
                let want = if at % 2 == 0 { "triggered" } else { "resolved" };
                assert_eq!(*kind, want, "{} at {at}: {kinds:?}", path(rule));
            }
            let mut told: Vec<String> = Vec::new();
            let mut seen = BTreeSet::new();
            for call in receiver.calls(&format!("slow/{number}")) {
                if seen.insert(call.event_id()) {
                    told.push(call.event_id());
                } else {
                    repeats += 1;
                }
            }
            let ids: Vec<String> =
                happened.iter().filter_map(|event| event["id"].as_str().map(str::to_string)).collect();
            assert_eq!(told, ids, "every id once and in order, none invented: {}", path(rule));
            crossings += ids.len();
        }
        eprintln!("{crossings} crossings, {kills} kills, {repeats} webhooks more than once");
        assert!(crossings > RULES && kills > 5);
    });
}
