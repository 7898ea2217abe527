//! Clocks that are wrong, differ or are set while work is under way: nothing acknowledged is left out of a file, nothing is
//! waited for that was never meant, and nothing is done twice.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::alerts::{LOOPBACK, destination, use_meter};
use crate::support::{Client, Database, Receiver, Server, Worker, Workspace, on_both_databases, run};

on_both_databases!(
    an_export_holds_what_was_acknowledged_whatever_the_clock,
    an_export_claimed_in_the_future_is_taken_over,
    what_was_put_off_in_the_future_is_not_waited_for,
    a_limit_holds_when_the_clock_is_set_back,
);

const INSIDE: (&str, &str) = ("OPEN_SPANNER_SERVE_WORKERS", "on");
const STORAGE: &str = "OPEN_SPANNER_EXPORT_STORAGE_PATH";

/// A clock of a process that a test can set.
struct Clock {
    file: PathBuf,
    library: String,
}

impl Clock {
    fn new(directory: &Path, offset: &str) -> Clock {
        let libraries = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten();
        let library = libraries
            .map(|entry| entry.path().join("faketime/libfaketime.so.1"))
            .find(|path| path.exists())
            .expect("libfaketime is installed: scripts/test --prepare");
        let clock = Clock { file: directory.join("clock"), library: library.display().to_string() };
        clock.set(offset);
        clock
    }

    fn set(&self, offset: &str) {
        let next = self.file.with_extension("next");
        std::fs::write(&next, format!("{offset}\n")).expect("written");
        std::fs::rename(&next, &self.file).expect("renamed");
    }

    fn settings(&self) -> [(&'static str, String); 4] {
        [
            ("LD_PRELOAD", self.library.clone()),
            ("FAKETIME_TIMESTAMP_FILE", self.file.display().to_string()),
            ("FAKETIME_NO_CACHE", "1".into()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
        ]
    }
}

fn borrowed<'s>(settings: &'s [(&'static str, String)]) -> Vec<(&'static str, &'s str)> {
    settings.iter().map(|(name, value)| (*name, value.as_str())).collect()
}

async fn until<F: Future<Output = Option<Value>>>(what: &str, look: impl Fn() -> F) -> Value {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < end, "{what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn store(client: &Client, count: usize) {
    let events: Vec<Value> =
        (0..count).map(|n| json!({"meter": "calls", "subject": format!("s{n}"), "quantity": 1})).collect();
    client.post("/v1/usages/bulk", &json!(events)).await.expect(201);
}

async fn export(client: &Client) -> Value {
    let body = json!({"kind": "usage_events", "query": {"meter": "calls"}});
    client.post("/v1/exports", &body).await.json(202)
}

async fn job(client: &Client, job: &Value) -> Value {
    client.get(&format!("/v1/exports/{}", job["id"].as_str().expect("an id"))).await.json(200)
}

async fn completed(client: &Client, asked: &Value) -> Value {
    let look = || async { Some(job(client, asked).await).filter(|job| job["status"] == "completed") };
    until("the export is completed", look).await
}

async fn an_export_holds_what_was_acknowledged_whatever_the_clock(database: Database) {
    let folder = tempfile::tempdir().expect("a directory");
    let clock = Clock::new(folder.path(), "+0");
    let mut settings = clock.settings().to_vec();
    settings.push((STORAGE, folder.path().join("exports").display().to_string()));
    let mut all = borrowed(&settings);
    all.push(INSIDE);
    let server = Server::start_with(&database, &all);
    let ws = server.workspace().await;
    ws.meter("calls", "sum").await;
    let mut stored = 0;
    for (round, offset) in ["+0", "+7200", "+0", "-7200", "+5"].into_iter().enumerate() {
        clock.set(offset);
        // the session of the workspace may be over at that time, its key is not
        store(&ws.key, 10 + round).await;
        stored += 10 + round;
        let asked = export(&ws.key).await;
        let done = completed(&ws.key, &asked).await;
        assert_eq!(done["row_count"].as_u64(), Some(stored as u64), "at {offset}: {done}");
    }
}

/// Claimed by a worker whose clock is two hours ahead, which is killed; the next one has a right clock.
async fn an_export_claimed_in_the_future_is_taken_over(database: Database) {
    let folder = tempfile::tempdir().expect("a directory");
    let clock = Clock::new(folder.path(), "+7200");
    let ttl = ("OPEN_SPANNER_EXPORT_WORKER_LOCK_TTL", "3s".to_owned());
    let right = vec![(STORAGE, folder.path().join("exports").display().to_string()), ttl];
    let mut ahead = right.clone();
    ahead.extend(clock.settings());
    let off = ("OPEN_SPANNER_SERVE_WORKERS", "off");
    let server = Server::start_with(&database, &[borrowed(&right), vec![off]].concat());
    let ws = server.workspace().await;
    ws.meter("calls", "sum").await;
    for _ in 0..40 {
        store(&ws.key, 1_000).await;
    }
    let mut first = Worker::start("export-worker", &database, folder.path(), &borrowed(&ahead));
    let asked = export(&ws.key).await;
    let look = || async { Some(job(&ws.key, &asked).await).filter(|job| job["row_count"] != 0) };
    until("it is running", look).await;
    first.kill();
    let _second = Worker::start("export-worker", &database, folder.path(), &borrowed(&right));
    let done = completed(&ws.key, &asked).await;
    assert_eq!(done["row_count"], 40_000);
}

async fn evaluated_at(ws: &Workspace, rule: &Value) -> Option<jiff::Timestamp> {
    let rule = ws.get(&crate::alerts::path(rule)).await.json(200);
    rule["state"]["evaluated_at"].as_str().and_then(|text| text.parse().ok())
}

/// A webhook that failed and a rule that waits for its next turn, while the clock was two hours ahead.
async fn what_was_put_off_in_the_future_is_not_waited_for(database: Database) {
    let folder = tempfile::tempdir().expect("a directory");
    let clock = Clock::new(folder.path(), "+7200");
    let settings = clock.settings();
    let server = Server::start_with(&database, &[borrowed(&settings), vec![INSIDE, LOOPBACK]].concat());
    let (ws, receiver) = (server.workspace().await, Receiver::start().await);
    ws.meter("load", "last").await;
    let to = destination(&ws, &receiver.url("fail/x")).await;
    let every_second = json!({"evaluation_interval_seconds": 1});
    let rule = crate::alerts::rule(&ws, "load", &to, every_second).await;
    use_meter(&ws, "load", 12).await;
    receiver.wait("fail/x", 1).await;
    let tried = || async {
        let jobs = ws.get("/v1/alerts/delivery-jobs").await.json(200)["items"].clone();
        (jobs[0]["attempts"] == 1).then_some(jobs)
    };
    until("the first attempt is written down", tried).await;
    clock.set("+0");
    // the second attempt comes five seconds after the first
    let set = Instant::now();
    receiver.wait("fail/x", 2).await;
    assert!(set.elapsed() < Duration::from_secs(20), "{:?}", set.elapsed());
    let now = || jiff::Timestamp::now().as_second();
    let (key, began) = (Workspace { key: ws.key.clone(), session: ws.session.clone() }, now());
    let look = || async {
        let at = evaluated_at(&key, &rule).await?.as_second();
        (began <= at && at <= now() + 1).then_some(Value::Null)
    };
    until("the rule is evaluated by the new time", look).await;
}

/// A plan that was given at 17:44 is there at 15:44, with what was used of it.
async fn a_limit_holds_when_the_clock_is_set_back(database: Database) {
    let folder = tempfile::tempdir().expect("a directory");
    let clock = Clock::new(folder.path(), "+7200");
    let server = Server::start_with(&database, &borrowed(&clock.settings()));
    let ws = server.workspace().await;
    ws.meter("calls", "sum").await;
    let limits = json!([{"meter": "calls", "limit": 3, "period": "day", "enforcement": "hard"}]);
    let plan = ws.post("/v1/plans", &json!({"name": "p", "limits": limits})).await.json(201);
    let assign = async || {
        ws.put("/v1/plans/subjects/org", &json!({"plan_id": plan["id"]})).await.json(200);
    };
    assign().await;
    let consume = async |n: u64| {
        let key = format!("c{n}");
        let body = json!({"meter": "calls", "subject": "org", "quantity": 1, "idempotency_key": key});
        ws.post("/v1/entitlements/consume", &body).await.status
    };
    for n in 0..3 {
        assert_eq!(consume(n).await, 201);
    }
    assert_eq!(consume(3).await, 429);
    clock.set("+0");
    assert_eq!(consume(4).await, 429);
    let check = json!({"meter": "calls", "subject": "org", "quantity": 1});
    let check = ws.post("/v1/entitlements/check", &check).await.json(200);
    assert_eq!(check["allowed"], false, "{check}");
    assign().await;
    assert_eq!(consume(5).await, 429);
}

/// Two alert workers on PostgreSQL, one ten minutes ahead: a call that is under way is nobody else's.
#[test]
fn a_worker_that_is_ahead_sends_nothing_twice() {
    run(async {
        let database = Database::postgres();
        let folder = tempfile::tempdir().expect("a directory");
        let clock = Clock::new(folder.path(), "+600");
        let server = Server::start_with(&database, &[("OPEN_SPANNER_SERVE_WORKERS", "off")]);
        let (ws, receiver) = (server.workspace().await, Receiver::start().await);
        ws.meter("load", "last").await;
        let to = destination(&ws, &receiver.url("hang/x")).await;
        crate::alerts::rule(&ws, "load", &to, json!({})).await;
        let settings = vec![LOOPBACK, ("OPEN_SPANNER_ALERT_WORKER_INTERVAL", "100ms")];
        let _right = Worker::start("alert-worker", &database, folder.path(), &settings);
        use_meter(&ws, "load", 12).await;
        receiver.wait("hang/x", 1).await;
        let ahead = clock.settings();
        let ahead = [settings.clone(), borrowed(&ahead)].concat();
        let _ahead = Worker::start("alert-worker", &database, folder.path(), &ahead);
        let look = || async {
            let stats = ws.get("/v1/system/stats").await.json(200);
            let all = stats["worker_health"].as_array().expect("a list").clone();
            all.into_iter().find(|worker| worker["name"] == "webhook" && worker["healthy_replicas"] == 2)
        };
        until("both workers live, as the server sees it", look).await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(receiver.calls("hang/x").len(), 1, "the first call is under way");
    });
}

/// What a server writes down on PostgreSQL is the database's time.
#[test]
fn servers_with_wrong_clocks_agree() {
    run(async {
        let database = Database::postgres();
        let folder = tempfile::tempdir().expect("a directory");
        let clock = Clock::new(folder.path(), "-7200");
        let settings = clock.settings();
        let server = Server::start_with(&database, &borrowed(&settings));
        let ws = server.workspace().await;
        ws.meter("calls", "sum").await;
        for offset in ["-7200", "+7200"] {
            clock.set(offset);
            store(&ws, 1).await;
            let event = ws.get("/v1/usageevents?limit=1").await.json(200)["items"][0].clone();
            let at: jiff::Timestamp =
                event["timestamp"].as_str().and_then(|text| text.parse().ok()).expect("a time");
            let off = at.as_second() - jiff::Timestamp::now().as_second();
            assert!(off.abs() <= 2, "{off} seconds off at {offset}");
        }
    });
}
