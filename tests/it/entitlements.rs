//! States, events and snapshots, as the worker brings them up to date.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Client, Database, Server, Worker, Workspace, on_both_databases, run};

on_both_databases!(
    plan_changes_move_states,
    another_aggregation_moves_states,
    states_are_right_soon_after_a_kill,
    every_limit_has_a_state,
    checks_look_at_every_limit,
    a_damaged_old_version_stops_no_state,
);

const WORKERS: &[(&str, &str)] =
    &[("OPEN_SPANNER_SERVE_WORKERS", "on"), ("OPEN_SPANNER_ENTITLEMENT_WORKER_INTERVAL", "200ms")];

/// Asks until the answer satisfies.
async fn eventually(client: &Client, path: &str, what: &str, good: impl Fn(&Value) -> bool) -> Value {
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        let found = client.get(path).await.json(200);
        if good(&found) {
            return found;
        }
        assert!(Instant::now() < end, "{what}: {found}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn words(list: &Value, field: &str) -> Vec<String> {
    let items = list["items"].as_array().expect("a list");
    items.iter().map(|item| item[field].as_str().unwrap_or_default().to_owned()).collect()
}

async fn plan_changes_move_states(database: Database) {
    let server = Server::start_with(&database, WORKERS);
    let workspace = server.workspace().await;
    workspace.meter("m", "sum").await;
    let body = |limit: i64| json!({"name": "p", "limits": [{"meter": "m", "limit": limit}]});
    let plan = workspace.post("/v1/plans", &body(10)).await.json(201);
    workspace.put("/v1/plans/subjects/org", &json!({"plan_id": plan["id"]})).await.expect(200);
    let states = "/v1/entitlements/states?subject=org";
    eventually(&workspace, states, "an assignment is evaluated", |found| words(found, "state") == ["ok"])
        .await;
    workspace.post("/v1/usages", &json!({"meter": "m", "subject": "org", "quantity": 12})).await.expect(201);
    eventually(&workspace, states, "usage is", |found| words(found, "state") == ["exceeded"]).await;

    // a new version that changes nothing repeats no event and leaves one row
    let path = format!("/v1/plans/{}", plan["id"].as_str().expect("an id"));
    let plan = workspace.put(&path, &body(11)).await.json(200);
    let id = plan["id"].as_str().expect("an id").to_owned();
    eventually(&workspace, states, "a new version is", |found| words(found, "plan_id") == [id.clone()]).await;
    let events = "/v1/entitlements/events?subject=org";
    assert_eq!(words(&workspace.get(events).await.json(200), "type"), ["exceeded"]);

    // without new usage, a larger plan recovers and no plan leaves no state
    let path = format!("/v1/plans/{id}");
    workspace.put(&path, &body(100)).await.expect(200);
    eventually(&workspace, states, "a larger plan is", |found| words(found, "state") == ["ok"]).await;
    assert_eq!(words(&workspace.get(events).await.json(200), "type"), ["recovered", "exceeded"]);
    workspace.delete("/v1/plans/subjects/org").await.expect(204);
    eventually(&workspace, states, "an end is", |found| words(found, "state").is_empty()).await;
    let periods = workspace.get("/v1/entitlements/periods?subject=org").await.json(200);
    assert_eq!(
        (words(&periods, "state"), &periods["items"][0]["event_count"]),
        (vec!["ok".into()], &json!(1))
    );
}

/// The same events come to another value when the meter is defined anew.
async fn another_aggregation_moves_states(database: Database) {
    let server = Server::start_with(&database, WORKERS);
    let workspace = server.workspace().await;
    let meter = workspace.post("/v1/meters", &json!({"name": "m", "unit": "u"})).await.json(201);
    let body = json!({"name": "p", "limits": [{"meter": "m", "limit": 10}]});
    let plan = workspace.post("/v1/plans", &body).await.json(201);
    for subject in ["a", "b"] {
        let path = format!("/v1/plans/subjects/{subject}");
        workspace.put(&path, &json!({"plan_id": plan["id"]})).await.expect(200);
        workspace
            .post("/v1/usages", &json!({"meter": "m", "subject": subject, "quantity": 50}))
            .await
            .expect(201);
    }
    let states = "/v1/entitlements/states";
    let found = eventually(&workspace, states, "usage is evaluated", |found| {
        words(found, "state") == ["exceeded", "exceeded"]
    })
    .await;
    assert_eq!(words(&found, "message"), ["quota exceeded", "quota exceeded"]);
    let path = format!("/v1/meters/{}", meter["id"].as_str().expect("an id"));
    workspace.put(&path, &json!({"aggregation": "count"})).await.expect(200);
    let found = eventually(&workspace, states, "so is a changed meter", |found| {
        words(found, "state") == ["ok", "ok"]
    })
    .await;
    assert_eq!((&found["items"][0]["current"], &found["items"][1]["current"]), (&json!(1), &json!(1)));
    assert_eq!(words(&found, "message"), ["quota is available", "quota is available"]);
}

/// Jobs that a killed process held are taken over at once by the next.
async fn states_are_right_soon_after_a_kill(database: Database) {
    // the default interval: nobody is told of what the dead process held
    let mut server = Server::start_with(&database, &[("OPEN_SPANNER_SERVE_WORKERS", "on")]);
    let workspace = server.workspace().await;
    workspace.meter("m", "sum").await;
    let body = json!({"name": "p", "limits": [{"meter": "m", "limit": 10}]});
    let plan = workspace.post("/v1/plans", &body).await.json(201);
    workspace.put("/v1/plans/subjects/org", &json!({"plan_id": plan["id"]})).await.expect(200);
    let states = "/v1/entitlements/states?subject=org";
    eventually(&workspace, states, "an assignment is evaluated", |found| words(found, "state") == ["ok"])
        .await;
    workspace.post("/v1/usages", &json!({"meter": "m", "subject": "org", "quantity": 12})).await.expect(201);
    server.kill();
    // whatever the process had come to, as if it had died in the middle of it
    database.execute(
        "DELETE FROM jobs WHERE queue = 'entitlements';
         UPDATE entitlement_states SET state = 'ok', current_value = '0'",
    );
    let held = database.lines("SELECT subject_id || '/' || meter_id AS line FROM entitlement_states");
    let (subject, meter) = held[0].split_once('/').expect("two ids");
    let now = open_spanner::metering::time::Timestamp::now();
    let lease = now.0 + 600_000;
    database.execute(&format!(
        r#"INSERT INTO jobs (queue, key, workspace_id, payload, generation, run_after, attempts, leased_until, created_at)
           SELECT 'entitlements', '{subject}/{meter}', workspace_id,
                  '{{"subject_id":{subject},"meter_id":{meter},"late_at":null}}', 0, 0, 1, {lease}, 0
           FROM entitlement_states"#
    ));
    server.restart();
    let again = workspace.at(&server.url());
    let began = Instant::now();
    eventually(&again, states, "the state is right again", |found| words(found, "state") == ["exceeded"])
        .await;
    assert!(began.elapsed() < Duration::from_secs(2), "it took {:?}", began.elapsed());
}

async fn every_limit_has_a_state(database: Database) {
    let server = Server::start_with(&database, WORKERS);
    let workspace = server.workspace().await;
    workspace.meter("m", "sum").await;
    let limits = json!([{"meter": "m", "limit": 1000, "period": "day"}, {"meter": "m", "limit": 1, "period": "month"}]);
    let plan = workspace.post("/v1/plans", &json!({"name": "p", "limits": limits})).await.json(201);
    workspace.put("/v1/plans/subjects/org", &json!({"plan_id": plan["id"]})).await.expect(200);
    workspace.post("/v1/usages", &json!({"meter": "m", "subject": "org", "quantity": 2})).await.expect(201);
    let states = "/v1/entitlements/states?subject=org&state=exceeded";
    let found =
        eventually(&workspace, states, "the month", |found| words(found, "period") == ["month"]).await;
    assert_eq!(found["items"][0]["current"], json!(2));
    eventually(&workspace, "/v1/entitlements/states?state=ok", "the day", |found| {
        words(found, "period") == ["day"]
    })
    .await;
}

async fn checks_look_at_every_limit(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("m", "sum").await;
    let limits = json!([{"meter": "m", "limit": 1000, "period": "day"}, {"meter": "m", "limit": 1, "period": "month"}]);
    let plan = workspace.post("/v1/plans", &json!({"name": "p", "limits": limits})).await.json(201);
    workspace.put("/v1/plans/subjects/org", &json!({"plan_id": plan["id"]})).await.expect(200);
    workspace.post("/v1/usages", &json!({"meter": "m", "subject": "org", "quantity": 1})).await.expect(201);
    let check =
        workspace.post("/v1/entitlements/check", &json!({"subject": "org", "meter": "m"})).await.json(200);
    assert_eq!(
        (&check["allowed"], &check["period"], &check["limit"]),
        (&json!(false), &json!("month"), &json!(1))
    );
}

const SUBJECTS: usize = 12;
const EVENTS: usize = 300;
const METERS: [&str; 2] = ["calls", "bytes"];

/// Usage, plan changes and assignments at random. Returns how many events each subject and meter got.
async fn stir(
    workspace: &Workspace,
    plans: &mut [Value],
    mut each: impl FnMut(),
) -> BTreeMap<(usize, usize), i64> {
    let mut sent = BTreeMap::new();
    for _ in 0..EVENTS {
        let (subject, meter) = (rand::random_range(0..SUBJECTS), rand::random_range(0..METERS.len()));
        let event = json!({"meter": METERS[meter], "subject": format!("s{subject}"), "quantity": 1});
        workspace.post("/v1/usages", &event).await.expect(201);
        *sent.entry((subject, meter)).or_default() += 1;
        match rand::random_range(0..12) {
            0 => {
                let plan = &mut plans[rand::random_range(0..2)];
                let path = format!("/v1/plans/{}", plan["id"].as_str().expect("an id"));
                let name = plan["name"].as_str().expect("a name").to_owned();
                *plan = workspace.put(&path, &limits(&name)).await.json(200);
            }
            1 | 2 => assign(workspace, subject, &plans[rand::random_range(0..2)]).await,
            _ => {}
        }
        each();
        tokio::time::sleep(Duration::from_millis(rand::random_range(0..80))).await;
    }
    sent
}

/// A plan whose limits are crossed now and then, upwards by usage and downwards by the next version.
fn limits(name: &str) -> Value {
    let some = |meter: &str, period: &str| json!({"meter": meter, "period": period, "limit": rand::random_range(1..60)});
    json!({"name": name, "limits": [some("calls", "day"), some("calls", "month"), some("bytes", "week")]})
}

async fn assign(workspace: &Workspace, subject: usize, plan: &Value) {
    let path = format!("/v1/plans/subjects/s{subject}");
    workspace.put(&path, &json!({"plan_id": plan["id"]})).await.expect(200);
}

/// Two workers on one PostgreSQL, killed again and again while usage comes and plans change: in the end every state is
/// what the numbers say, and every change of state is told once.
#[test]
fn workers_killed_under_load() {
    run(async {
        let database = Database::postgres();
        let server = Server::start_with(&database, &[("OPEN_SPANNER_SERVE_WORKERS", "off")]);
        let workspace = server.workspace().await;
        for meter in METERS {
            workspace.meter(meter, "sum").await;
        }
        let mut plans = Vec::new();
        for name in ["one", "two"] {
            plans.push(workspace.post("/v1/plans", &limits(name)).await.json(201));
        }
        for subject in 0..SUBJECTS {
            assign(&workspace, subject, &plans[subject % 2]).await;
        }
        let folder = tempfile::tempdir().expect("a directory");
        let short = [
            ("OPEN_SPANNER_ENTITLEMENT_WORKER_LOCK_TTL", "1s"),
            ("OPEN_SPANNER_ENTITLEMENT_WORKER_INTERVAL", "100ms"),
            // a job that is hit by every kill is not a bad job
            ("OPEN_SPANNER_ENTITLEMENT_WORKER_MAX_ATTEMPTS", "1000"),
        ];
        let start = || Worker::start("entitlement-worker", &database, folder.path(), &short);
        let (mut workers, mut kills) = ([start(), start()], 0);
        // counted in events, not in time: every machine sees as many
        let mut until_kill = 20;
        let sent = stir(&workspace, &mut plans, || {
            until_kill -= 1;
            if until_kill == 0 {
                // dropping is `kill -9`
                workers[kills % 2] = start();
                kills += 1;
                until_kill = rand::random_range(5..30);
            }
        })
        .await;
        eventually(&workspace, "/v1/system/stats", "everything is evaluated", |stats| {
            let all = stats["worker_health"].as_array().expect("a list");
            let it = all.iter().find(|worker| worker["name"] == "entitlement").expect("it is listed");
            it["pending_jobs"] == 0 && it["running_jobs"] == 0
        })
        .await;
        assert_eq!(database.count("dead_letters"), 0);

        let mut changes = 0;
        for subject in 0..SUBJECTS {
            changes += told_once(&workspace, &format!("s{subject}")).await;
            as_counted(&workspace, subject, &sent).await;
        }
        println!("{changes} changes of state, {} events, {kills} kills", sent.values().sum::<i64>());
        assert!(changes > 0 && kills > 8, "{changes} changes, {kills} kills");
    });
}

/// Each change begins where the one before ended, and the last leads to the state; returns how many there were.
async fn told_once(workspace: &Workspace, subject: &str) -> usize {
    let path = format!("/v1/entitlements/events?subject={subject}&limit=1000");
    let events = workspace.get(&path).await.json(200);
    let events = events["items"].as_array().expect("a list");
    let path = format!("/v1/entitlements/states?subject={subject}");
    let states = workspace.get(&path).await.json(200);
    for state in states["items"].as_array().expect("a list") {
        let of_it = |event: &&Value| event["meter"] == state["meter"] && event["period"] == state["period"];
        let mut at = json!("ok");
        for event in events.iter().rev().filter(of_it) {
            let before =
                if event["previous_state"].is_null() { &json!("ok") } else { &event["previous_state"] };
            assert_eq!(before, &at, "{subject}: {event} after {at} in {events:#?}");
            assert_ne!(&event["state"], before, "{event}");
            at = event["state"].clone();
        }
        assert_eq!(at, state["state"], "{subject}: {state}");
    }
    events.len()
}

/// States and snapshots are what the counters say, and the counters what was sent.
async fn as_counted(workspace: &Workspace, subject: usize, sent: &BTreeMap<(usize, usize), i64>) {
    let progress = workspace.get(&format!("/v1/plans/subjects/s{subject}/progress")).await.json(200);
    let list = async |what: &str| {
        let path = format!("/v1/entitlements/{what}?subject=s{subject}&limit=1000");
        workspace.get(&path).await.json(200)["items"].as_array().expect("a list").clone()
    };
    let (states, periods) = (list("states").await, list("periods").await);
    let items = progress["items"].as_array().expect("a list");
    assert_eq!((items.len(), states.len()), (3, 3), "s{subject}: {states:?}");
    for item in items {
        let same = |row: &&Value| row["meter"] == item["meter"] && row["period"] == item["period"];
        let state = states.iter().find(same).expect("a state for each limit");
        for field in ["state", "current", "limit"] {
            assert_eq!(state[field], item[field], "s{subject}: {field} of {state} and {item}");
        }
        let meter = METERS.iter().position(|meter| item["meter"] == json!(meter)).expect("one of ours");
        let count = sent.get(&(subject, meter)).copied().unwrap_or_default();
        assert_eq!(item["current"], json!(count), "s{subject}: {item}");
        let snapshots: Vec<&Value> = periods.iter().filter(same).collect();
        assert_eq!(snapshots.len(), usize::from(count > 0), "one window, one snapshot: {snapshots:?}");
        for snapshot in snapshots {
            assert_eq!((&snapshot["event_count"], &snapshot["current"]), (&json!(count), &json!(count)));
            assert_eq!(
                (&snapshot["state"], &snapshot["limit"]),
                (&item["state"], &item["limit"]),
                "{snapshot}"
            );
        }
    }
}

/// What a subject had once is not what it stands by.
async fn a_damaged_old_version_stops_no_state(database: Database) {
    let server = Server::start_with(&database, WORKERS);
    let workspace = server.workspace().await;
    workspace.meter("m", "sum").await;
    let body = |limit: i64| json!({"name": "p", "limits": [{"meter": "m", "limit": limit}]});
    let plan = workspace.post("/v1/plans", &body(10)).await.json(201);
    workspace.put("/v1/plans/subjects/org", &json!({"plan_id": plan["id"]})).await.expect(200);
    let path = format!("/v1/plans/{}", plan["id"].as_str().expect("an id"));
    workspace.put(&path, &body(11)).await.expect(200);
    database.execute("UPDATE plan_limits SET quantity = 'many' WHERE quantity = '10'");
    workspace.post("/v1/usages", &json!({"meter": "m", "subject": "org", "quantity": 12})).await.expect(201);
    let states = "/v1/entitlements/states?subject=org";
    eventually(&workspace, states, "usage is evaluated", |found| words(found, "state") == ["exceeded"]).await;
    // what is in force cannot be read: what is known of it stays
    database.execute("UPDATE plan_limits SET quantity = 'more' WHERE quantity = '11'");
    workspace.post("/v1/usages", &json!({"meter": "m", "subject": "org", "quantity": 1})).await.expect(201);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(words(&workspace.get(states).await.json(200), "state"), ["exceeded"]);
    assert_eq!(database.count("dead_letters"), 0);
}
