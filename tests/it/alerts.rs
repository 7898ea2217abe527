//! Alert rules from the outside: how soon they tell, and that each crossing is told once, whoever evaluates.

use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use open_spanner::alerts::evaluate::{Outcome, Rest, evaluate, evaluate_until};
use open_spanner::alerts::sql::rules::Filter;
use open_spanner::config;
use open_spanner::db::Store;
use serde_json::{Value, json};

use crate::support::{Database, Receiver, Server, Worker, Workspace, on_both_databases, unique};

on_both_databases!(
    usage_is_told_within_two_seconds,
    a_crossing_is_found_once,
    a_rule_made_beside_a_write_sees_it,
    what_is_not_watched_any_more_is_resolved,
    a_change_reads_names_as_a_new_rule_does,
    groups_and_numbers,
    a_rule_watches_the_day_that_runs,
    a_list_of_rules_holds_the_first_of_their_states,
    a_rule_of_very_many_groups_shows_the_first,
    values_of_any_length_are_groups,
    a_rule_that_cannot_be_stored_holds_up_no_other,
    rules_of_many_groups_share_a_look,
    a_rule_without_a_value_is_told_once,
    numbers_that_take_too_long_hold_up_no_other_rule,
    sums_that_are_being_folded_are_never_missed,
);

pub const LOOPBACK: (&str, &str) = ("OPEN_SPANNER_WEBHOOK_ALLOWED_NETWORKS", "127.0.0.0/8");
pub const ANY_PORT: (&str, &str) = ("OPEN_SPANNER_ALERT_WORKER_HEALTH_ADDR", "127.0.0.1:0");
const INSIDE: (&str, &str) = ("OPEN_SPANNER_SERVE_WORKERS", "on");

pub async fn destination(ws: &Workspace, url: &str) -> Value {
    ws.post("/v1/alerts/destinations", &json!({"name": "d", "webhook_url": url})).await.json(201)
}

/// A rule that is never due by itself during a test.
pub async fn rule(ws: &Workspace, meter: &str, destination: &Value, more: Value) -> Value {
    let mut body = json!({"name": "r", "meter": meter, "destination_id": destination["id"], "threshold": 10,
        "evaluation_interval_seconds": 86_400});
    let more = more.as_object().expect("an object").clone();
    body.as_object_mut().expect("an object").extend(more);
    ws.post("/v1/alerts", &body).await.json(201)
}

pub async fn use_meter(ws: &Workspace, meter: &str, quantity: u64) {
    let event = json!({"meter": meter, "subject": "ann", "quantity": quantity});
    ws.post("/v1/usages", &event).await.expect(201);
}

pub async fn events(ws: &Workspace, rule: &Value) -> Vec<Value> {
    let path = format!("/v1/alerts/events?limit=1000&rule_id={}", rule["id"].as_str().expect("an id"));
    ws.get(&path).await.json(200)["items"].as_array().expect("a list").clone()
}

pub fn path(rule: &Value) -> String {
    format!("/v1/alerts/{}", rule["id"].as_str().expect("an id"))
}

/// At the default settings: inside the server on SQLite, in a process of its own on PostgreSQL.
async fn usage_is_told_within_two_seconds(database: Database) {
    let server = Server::start_with(&database, &[LOOPBACK]);
    let folder = tempfile::tempdir().expect("a directory");
    let _worker = matches!(database, Database::Postgres { .. })
        .then(|| Worker::start("alert-worker", &database, folder.path(), &[LOOPBACK, ANY_PORT]));
    let (ws, receiver) = (server.workspace().await, Receiver::start().await);
    ws.meter("load", "last").await;
    let destination = destination(&ws, &receiver.url("ok/told")).await;
    let rule = rule(&ws, "load", &destination, json!({})).await;
    // the rule is looked at once when it is made
    let end = Instant::now() + Duration::from_secs(20);
    while ws.get(&path(&rule)).await.json(200)["state"].is_null() {
        assert!(Instant::now() < end, "the new rule is evaluated");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut slowest = Duration::ZERO;
    for round in 0..6 {
        use_meter(&ws, "load", if round % 2 == 0 { 12 } else { 1 }).await;
        let acknowledged = Instant::now();
        let call = receiver.wait("ok/told", round + 1).await.pop().expect("a call");
        let kind = if round % 2 == 0 { "triggered" } else { "resolved" };
        assert_eq!(call.json()["event"]["type"], kind);
        slowest = slowest.max(call.at.saturating_duration_since(acknowledged));
    }
    eprintln!("from acknowledged event to received webhook: at most {slowest:?}");
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
}

/// Requests and the worker evaluate the same rule at the same time.
async fn a_crossing_is_found_once(database: Database) {
    let server = Server::start_with(&database, &[LOOPBACK, INSIDE]);
    let (ws, receiver) = (server.workspace().await, Receiver::start().await);
    ws.meter("load", "sum").await;
    let destination = destination(&ws, &receiver.url("ok/once")).await;
    let rule = rule(&ws, "load", &destination, json!({})).await;
    use_meter(&ws, "load", 12).await;
    let evaluate = format!("{}/evaluate", path(&rule));
    let calls = (0..20).map(|_| {
        let (client, evaluate) = (ws.key.clone(), evaluate.clone());
        tokio::spawn(async move { client.post_text(&evaluate, "").await.status })
    });
    for call in calls.collect::<Vec<_>>() {
        assert!(matches!(call.await.expect("no panic"), 200 | 503));
    }
    receiver.wait("ok/once", 1).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let events = events(&ws, &rule).await;
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!(receiver.calls("ok/once").len(), 1);
    assert_eq!(events[0]["id"], receiver.calls("ok/once")[0].event_id());
}

/// Either the write sees the rule and asks for its evaluation, or the rule's own first evaluation sees the write.
async fn a_rule_made_beside_a_write_sees_it(database: Database) {
    let server = Server::start_with(&database, &[LOOPBACK, INSIDE]);
    let (ws, receiver) = (server.workspace().await, Receiver::start().await);
    let destination = destination(&ws, &receiver.url("ok/beside")).await;
    const ROUNDS: usize = 25;
    for _ in 0..ROUNDS {
        let meter = unique("beside");
        ws.meter(&meter, "sum").await;
        tokio::join!(use_meter(&ws, &meter, 12), rule(&ws, &meter, &destination, json!({})));
    }
    receiver.wait("ok/beside", ROUNDS).await;
}

async fn what_is_not_watched_any_more_is_resolved(database: Database) {
    let server = Server::start_with(&database, &[LOOPBACK, INSIDE]);
    let (ws, receiver) = (server.workspace().await, Receiver::start().await);
    ws.meter("load", "sum").await;
    use_meter(&ws, "load", 12).await;
    for (name, change) in [
        ("ok/disabled", json!({"enabled": false})),
        ("ok/regrouped", json!({"group_by": "subject"})),
        ("ok/deleted", json!(null)),
    ] {
        let destination = destination(&ws, &receiver.url(name)).await;
        let rule = rule(&ws, "load", &destination, json!({})).await;
        receiver.wait(name, 1).await;
        if change.is_null() {
            ws.delete(&path(&rule)).await.expect(204);
        } else {
            ws.put(&path(&rule), &change).await.expect(200);
        }
        let told = async |count: usize| -> Vec<Value> {
            let calls = receiver.wait(name, count).await;
            calls.iter().map(|call| call.json()["event"]["type"].clone()).collect()
        };
        let mut told_first = told(2).await;
        if !told_first.contains(&json!("resolved")) {
            // groups are told of side by side: a new one may come first
            told_first = told(3).await;
        }
        let is_resolved = told_first.contains(&json!("resolved"));
        assert_eq!((&told_first[0], is_resolved), (&json!("triggered"), true), "{name}: {told_first:?}");
    }
}

/// Blanks around a name are no part of it, and a meter that is blank stays what it is.
async fn a_change_reads_names_as_a_new_rule_does(database: Database) {
    let server = Server::start(&database);
    let ws = server.workspace().await;
    ws.meter("load", "sum").await;
    ws.meter("calls", "sum").await;
    let first = destination(&ws, "https://first.example.com/").await;
    let second = destination(&ws, "https://second.example.com/").await;
    let padded = |one: &Value| format!(" {} ", one["id"].as_str().expect("an id"));
    let rule = rule(&ws, " load ", &first, json!({"destination_id": padded(&first)})).await;
    assert_eq!((&rule["meter"], &rule["destination_id"]), (&json!("load"), &first["id"]));
    let change = json!({"meter": " calls ", "destination_id": padded(&second)});
    for change in [change, json!({"meter": " "})] {
        let changed = ws.put(&path(&rule), &change).await.json(200);
        assert_eq!((&changed["meter"], &changed["destination_id"]), (&json!("calls"), &second["id"]));
    }
    ws.put(&path(&rule), &json!({"destination_id": " "})).await.error(400, "invalid_input");
}

async fn groups_and_numbers(database: Database) {
    let server = Server::start_with(&database, &[LOOPBACK, INSIDE]);
    let (ws, receiver) = (server.workspace().await, Receiver::start().await);
    ws.meter("load", "sum").await;
    let bulk: Vec<Value> = [("a", 1_234_567, 12), ("b", 1_234_567, 3), ("c", 1, 99)]
        .into_iter()
        .map(|(subject, size, quantity)| {
            json!({"meter": "load", "subject": subject, "quantity": quantity, "metadata": {"size": size, "on": true}})
        })
        .collect();
    ws.post("/v1/usages/bulk", &json!(bulk)).await.expect(201);
    let destination = destination(&ws, &receiver.url("ok/groups")).await;
    let more = json!({"group_by": "subject", "metadata": {"size": "1234567", "on": "true"}});
    let rule = rule(&ws, "load", &destination, more).await;
    let call = receiver.wait("ok/groups", 1).await.remove(0).json();
    assert_eq!(
        (&call["event"]["group_key"], &call["event"]["group_value"]),
        (&json!("subject"), &json!("a"))
    );
    let states = ws.get(&path(&rule)).await.json(200)["states"].clone();
    let shown: Vec<(&Value, &Value)> = states
        .as_array()
        .expect("a list")
        .iter()
        .map(|state| (&state["group_value"], &state["status"]))
        .collect();
    assert_eq!(shown, [(&json!("a"), &json!("alerting")), (&json!("b"), &json!("ok"))]);
    ws.post_text(&format!("{}/evaluate", path(&rule)), "").await.json(200);
    assert_eq!(events(&ws, &rule).await.len(), 1);
}

async fn a_rule_watches_the_day_that_runs(database: Database) {
    let server = Server::start(&database);
    let ws = server.workspace().await;
    ws.meter("m", "sum").await;
    let destination = destination(&ws, "https://hooks.example.com/usage").await;
    let window = json!({"kind": "calendar", "time_zone": "Asia/Kolkata"});
    let made =
        rule(&ws, "m", &destination, json!({"period": "day", "window": {"time_zone": "asia/kolkata"}})).await;
    assert_eq!((&made["period"], &made["window"]), (&json!("day"), &window));
    let now = jiff::Timestamp::now();
    for (hours, quantity) in [(0, 12), (25, 100)] {
        let at = (now - jiff::SignedDuration::from_hours(hours)).to_string();
        let event = json!({"meter": "m", "subject": "s", "quantity": quantity, "timestamp": at});
        ws.post("/v1/usages", &event).await.expect(201);
    }
    let path = format!("/v1/alerts/{}", made["id"].as_str().expect("an id"));
    let seen = ws.post(&format!("{path}/evaluate"), &json!({})).await.json(200);
    assert_eq!(
        (&seen["state"]["value"], &seen["state"]["status"]),
        (&json!(12), &json!("alerting")),
        "{seen}"
    );
    let plain = ws.put(&path, &json!({"period": ""})).await.json(200);
    assert!(plain.get("period").is_none() && plain.get("window").is_none(), "{plain}");
    let seen = ws.post(&format!("{path}/evaluate"), &json!({})).await.json(200);
    assert_eq!(seen["state"]["value"], json!(12), "the last hour, as ever: {seen}");
    for wrong in [
        json!({"window": {"time_zone": "UTC"}}),
        json!({"period": "hour", "window": {"kind": "sliding"}}),
        json!({"period": "2y"}),
        json!({"period": "day", "window": {"time_zone": "Mars/Base"}}),
    ] {
        ws.put(&path, &wrong).await.error(400, "invalid_input");
    }
}

/// A use of the meter by each of so many subjects, the last ones the most.
async fn use_by_many(ws: &Workspace, meter: &str, subjects: usize) {
    let event = |n: usize| json!({"meter": meter, "subject": format!("s{n:03}"), "quantity": n + 1});
    let events: Vec<Value> = (0..subjects).map(event).collect();
    ws.post("/v1/usages/bulk", &json!(events)).await.expect(201);
}

async fn a_list_of_rules_holds_the_first_of_their_states(database: Database) {
    let server = Server::start_with(&database, &[("OPEN_SPANNER_SERVE_WORKERS", "off")]);
    let ws = server.workspace().await;
    ws.meter("m", "sum").await;
    use_by_many(&ws, "m", 150).await;
    let destination = destination(&ws, "https://hooks.example.com/usage").await;
    let made = rule(&ws, "m", &destination, json!({"group_by": "subject", "threshold": 131})).await;
    let quiet = rule(&ws, "m", &destination, json!({})).await;
    for rule in [&made, &quiet] {
        ws.post(&format!("{}/evaluate", path(rule)), &json!({})).await.expect(200);
    }
    let names = |rule: &Value| -> Vec<String> {
        let states = rule["states"].as_array().expect("a list").iter();
        states.map(|state| state["group_value"].as_str().unwrap_or_default().to_owned()).collect()
    };
    let whole = ws.get(&path(&made)).await.json(200);
    let listed = ws.get("/v1/alerts").await.json(200);
    let items = listed["items"].as_array().expect("a list");
    assert_eq!((&items[0]["id"], &items[1]["id"]), (&quiet["id"], &made["id"]), "newest first");
    assert_eq!((names(&whole).len(), names(&items[1]).len(), names(&items[0]).len()), (150, 100, 1));
    assert_eq!(names(&items[1]), names(&whole)[..100], "those that stand for the rule first");
    assert_eq!(items[1]["state"], whole["state"]);
    let firing: Vec<String> = (130..150).map(|n| format!("s{n:03}")).collect();
    assert_eq!(names(&items[1])[..20], firing);
}

/// A rule may have 100,000 groups; whoever reads it is shown those that stand for it.
async fn a_rule_of_very_many_groups_shows_the_first(database: Database) {
    let server = Server::start_with(&database, &[("OPEN_SPANNER_SERVE_WORKERS", "off")]);
    let ws = server.workspace().await;
    ws.meter("m", "sum").await;
    let destination = destination(&ws, "https://hooks.example.com/usage").await;
    let made = rule(&ws, "m", &destination, json!({"group_by": "subject"})).await;
    database.execute(
        "INSERT INTO alert_states (rule_id, group_key, group_value, status, firing, value, message, updated_at)
         WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 1500)
         SELECT r.id, 'subject', 'g' || n, CASE WHEN n % 10 = 0 THEN 'alerting' ELSE 'ok' END, n % 10 = 0, '1', 'm', n
         FROM alert_rules r, n",
    );
    let states = |rule: &Value| rule["states"].as_array().expect("a list").clone();
    let words = |states: &[Value], word: &str| states.iter().filter(|state| state["status"] == word).count();
    let whole = states(&ws.get(&path(&made)).await.json(200));
    assert_eq!((whole.len(), words(&whole[..150], "alerting"), words(&whole, "ok")), (1_000, 150, 850));
    let listed = states(&ws.get("/v1/alerts").await.json(200)["items"][0]);
    assert_eq!((listed.len(), words(&listed, "alerting")), (100, 100));
    assert_eq!(listed[..], whole[..100]);
    let page = format!("/alerts/{}", made["id"].as_str().expect("an id"));
    let page = ws.session.get(&page).await.expect(200).text;
    assert_eq!(page.matches("<th scope=\"row\">subject: g").count(), 200);
    assert!(page.contains("The 200 that matter most, of "), "{page}");
}

/// Text that no database can pack.
fn noise(bytes: usize, seed: u64) -> String {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(b'a' + (state >> 33) as u8 % 26)
    };
    (0..bytes).map(|_| next()).collect()
}

/// A rule may be grouped by what no meter declares, and what a caller sends there may be long.
async fn values_of_any_length_are_groups(database: Database) {
    let server = Server::start_with(&database, &[("OPEN_SPANNER_SERVE_WORKERS", "off")]);
    let ws = server.workspace().await;
    ws.meter("m", "sum").await;
    let destination = destination(&ws, "https://hooks.example.com/usage").await;
    let grouped = rule(&ws, "m", &destination, json!({"group_by": "trace", "threshold": 5})).await;
    let start = noise(8_000, 1);
    for (trace, quantity) in [(format!("{start}a"), 7), (format!("{start}b"), 3), ("short".to_owned(), 9)] {
        let event = json!({"meter": "m", "subject": "s", "quantity": quantity, "metadata": {"trace": trace}});
        ws.post("/v1/usages", &event).await.expect(201);
    }
    let seen = ws.post(&format!("{}/evaluate", path(&grouped)), &json!({})).await.json(200);
    assert_eq!(seen["events"].as_array().map(Vec::len), Some(2), "{seen}");
    // again: nothing is told twice of a group that is known by its name
    let again = ws.post(&format!("{}/evaluate", path(&grouped)), &json!({})).await.json(200);
    assert_eq!(again.get("events"), None, "{again}");
    let states = ws.get(&path(&grouped)).await.json(200)["states"].clone();
    let mut shown: Vec<(i64, String)> = states
        .as_array()
        .expect("a list")
        .iter()
        .map(|state| {
            (
                state["value"].as_i64().expect("a number"),
                state["group_value"].as_str().expect("a name").to_owned(),
            )
        })
        .collect();
    shown.sort();
    let [(3, other), (7, long), (9, short)] = &shown[..] else { panic!("three groups: {shown:?}") };
    assert_eq!((short.as_str(), long == other), ("short", false));
    for name in [long, other] {
        let (beginning, hash) = name.split_once('…').expect("an ellipsis");
        assert_eq!((beginning, hash.len()), (&start[..256], 32));
    }
    let told: Vec<Value> =
        events(&ws, &grouped).await.iter().map(|event| event["group_value"].clone()).collect();
    assert!(told.contains(&json!(long)) && told.contains(&json!("short")), "{told:?}");
}

/// No state of a group of this name can be stored.
fn poison(database: &Database) {
    database.execute(match database {
        Database::Sqlite { .. } => {
            "CREATE TRIGGER poison BEFORE INSERT ON alert_states WHEN NEW.group_value = 'poison'
             BEGIN SELECT RAISE(ABORT, 'poisoned'); END"
        }
        Database::Postgres { .. } => {
            "ALTER TABLE alert_states ADD CONSTRAINT poison CHECK (group_value <> 'poison')"
        }
    });
}

/// Whatever keeps the states of one rule from being stored: it has failed, and the rules beside it go on.
async fn a_rule_that_cannot_be_stored_holds_up_no_other(database: Database) {
    let server = Server::start_with(&database, &[INSIDE]);
    let ws = server.workspace().await;
    ws.meter("m", "sum").await;
    poison(&database);
    let destination = destination(&ws, "https://hooks.example.com/usage").await;
    let broken = rule(&ws, "m", &destination, json!({"group_by": "subject"})).await;
    let sound = rule(&ws, "m", &destination, json!({})).await;
    let event = json!({"meter": "m", "subject": "poison", "quantity": 12});
    ws.post("/v1/usages", &event).await.expect(201);
    for (rule, status) in [(&sound, "alerting"), (&broken, "error")] {
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            let state = ws.get(&path(rule)).await.json(200)["state"].clone();
            if state["status"] == json!(status) {
                break;
            }
            assert!(Instant::now() < end, "{status} is never met: {state}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    let state = ws.get(&path(&broken)).await.json(200)["state"].clone();
    assert_eq!(state["message"], json!("evaluation failed: the states of the rule cannot be stored"));
    let kinds: Vec<Value> = events(&ws, &sound).await.iter().map(|event| event["type"].clone()).collect();
    assert_eq!(kinds, [json!("triggered")]);
}

/// Evaluates every rule in this process, with more settings.
async fn evaluate_all(database: &Database, more: &[(&str, &str)]) -> Outcome {
    evaluate(&store_of(database, more), None, Filter::default()).await.expect("evaluated")
}

fn store_of(database: &Database, more: &[(&str, &str)]) -> Store {
    let settings = database.settings();
    let mut settings: Vec<(&str, &str)> =
        settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    settings.extend(more.iter().copied());
    let config = config::load_from(&["open-spanner", "serve"], &settings).expect("settings").config;
    Store::new(&config.db)
}

/// More than is read and written in one go, of which all watch the same numbers.
async fn rules_of_many_groups_share_a_look(database: Database) {
    const RULES: usize = 45;
    let server = Server::start_with(&database, &[("OPEN_SPANNER_SERVE_WORKERS", "off")]);
    let ws = server.workspace().await;
    ws.meter("m", "sum").await;
    let destination = destination(&ws, "https://hooks.example.com/usage").await;
    let mut rules = Vec::new();
    for n in 0..RULES {
        // half of them fire for the largest ten
        let threshold = if n % 2 == 0 { 91 } else { 1_000 };
        rules
            .push(rule(&ws, "m", &destination, json!({"group_by": "subject", "threshold": threshold})).await);
    }
    use_by_many(&ws, "m", 100).await;
    let outcome = evaluate_all(&database, &[]).await;
    assert_eq!((outcome.evaluated, outcome.failed, outcome.conflicts, outcome.enqueued), (RULES, 0, 0, true));
    assert_eq!(database.count("alert_states"), 100 * RULES as u64);
    assert_eq!(database.count("alert_events"), 10 * RULES.div_ceil(2) as u64);
    for rule in &rules {
        let states = ws.get(&path(rule)).await.json(200)["states"].clone();
        assert_eq!(states.as_array().map(Vec::len), Some(100));
    }
    let outcome = evaluate_all(&database, &[]).await;
    assert_eq!((outcome.evaluated, outcome.enqueued), (RULES, false), "nothing is told twice");
    assert_eq!(database.count("alert_events"), 10 * RULES.div_ceil(2) as u64);

    // what the time does not allow is left to another turn
    let (store, over) = (store_of(&database, &[]), Some(Instant::now()));
    let late = evaluate_until(&store, None, Filter::default(), Rest::all(), over).await.expect("begun");
    assert_eq!(late.evaluated, 0);
    let rest = late.rest.expect("all of them are left");
    let outcome = evaluate_until(&store, None, Filter::default(), rest, None).await.expect("evaluated");
    assert_eq!((outcome.evaluated, outcome.rest.is_none()), (RULES, true));
}

/// However much usage there is: no row for each look, no job that dies, and the rules beside it go on.
async fn a_rule_without_a_value_is_told_once(database: Database) {
    let server = Server::start_with(&database, &[INSIDE]);
    let ws = server.workspace().await;
    ws.meter("m", "sum").await;
    poison(&database);
    let destination = destination(&ws, "https://hooks.example.com/usage").await;
    let broken = rule(&ws, "m", &destination, json!({"group_by": "subject"})).await;
    let sound = rule(&ws, "m", &destination, json!({"threshold": 60})).await;
    for _ in 0..6 {
        let event = json!({"meter": "m", "subject": "poison", "quantity": 10});
        ws.post("/v1/usages", &event).await.expect(201);
        tokio::time::sleep(Duration::from_millis(700)).await;
    }
    let end = Instant::now() + Duration::from_secs(30);
    while events(&ws, &sound).await.is_empty() {
        assert!(Instant::now() < end, "the sound rule is not evaluated");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // by hand it is looked at all the same
    ws.post_text(&format!("{}/evaluate", path(&broken)), "").await.json(200);
    let kinds: Vec<Value> = events(&ws, &broken).await.iter().map(|event| event["type"].clone()).collect();
    assert_eq!(kinds, [json!("evaluation_failed")]);
    assert_eq!(database.count("dead_letters"), 0);
    assert_eq!(database.count("jobs WHERE queue = 'alerts' AND last_error IS NOT NULL"), 0);
}

/// A meter whose sums are kept by region.
async fn meter_by_region(ws: &Workspace) {
    let region = json!({"name": "region", "type": "string", "required": false});
    let meter = json!({"name": "m", "unit": "unit", "aggregation": "sum", "dimensions": [region]});
    ws.post("/v1/meters", &meter).await.expect(201);
}

async fn use_in_the_east(ws: &Workspace, quantity: u64) {
    let event = json!({"meter": "m", "subject": "ann", "quantity": quantity, "metadata": {"region": "east"}});
    ws.post("/v1/usages", &event).await.expect(201);
}

const WEEK: i64 = 7 * 86_400;

/// What is slow is one scope's failure, and the others are settled.
async fn numbers_that_take_too_long_hold_up_no_other_rule(database: Database) {
    // nobody makes readers of SQLite wait
    let Database::Postgres { .. } = database else { return };
    let server = Server::start_with(&database, &[("OPEN_SPANNER_SERVE_WORKERS", "off")]);
    let ws = server.workspace().await;
    meter_by_region(&ws).await;
    let destination = destination(&ws, "https://hooks.example.com/usage").await;
    let slow = json!({"metadata": {"region": "east"}, "window_seconds": WEEK});
    let slow = rule(&ws, "m", &destination, slow).await;
    let sound = rule(&ws, "m", &destination, json!({"subject": "ann", "window_seconds": WEEK})).await;
    use_in_the_east(&ws, 12).await;
    let mut holder = database.postgres_connection();
    holder
        .batch_execute("BEGIN; LOCK TABLE rollup_facets IN ACCESS EXCLUSIVE MODE")
        .expect("the lock is free");
    let outcome = evaluate_all(&database, &[("OPEN_SPANNER_DB_STATEMENT_TIMEOUT", "1s")]).await;
    assert_eq!((outcome.evaluated, outcome.failed), (2, 1));
    let state = ws.get(&path(&slow)).await.json(200)["state"].clone();
    let message = "evaluation failed: its numbers took too long to read";
    assert_eq!((&state["status"], &state["message"]), (&json!("error"), &json!(message)));
    assert_eq!(ws.get(&path(&sound)).await.json(200)["state"]["status"], json!("alerting"));
    holder.batch_execute("ROLLBACK").expect("released");
    evaluate_all(&database, &[]).await;
    assert_eq!(ws.get(&path(&slow)).await.json(200)["state"]["status"], json!("alerting"));
}

/// What moves from recent sums to those of its day while a rule reads both.
async fn sums_that_are_being_folded_are_never_missed(database: Database) {
    let server = Server::start_with(&database, &[("OPEN_SPANNER_SERVE_WORKERS", "off")]);
    let ws = server.workspace().await;
    meter_by_region(&ws).await;
    let destination = destination(&ws, "https://hooks.example.com/usage").await;
    let mut rules = Vec::new();
    for mut more in [json!({"metadata": {"region": "east"}}), json!({"group_by": "region"})] {
        more["window_seconds"] = json!(WEEK);
        rules.push(rule(&ws, "m", &destination, more).await);
    }
    let (mut sent, end) = (0, Instant::now() + Duration::from_secs(8));
    while Instant::now() < end {
        use_in_the_east(&ws, 1).await;
        sent += 1;
        let outcome = evaluate_all(&database, &[]).await;
        assert_eq!((outcome.evaluated, outcome.failed), (2, 0));
        for rule in &rules {
            let state = ws.get(&path(rule)).await.json(200)["state"].clone();
            assert_eq!(state["value"].to_string(), sent.to_string(), "{state}");
        }
    }
}
