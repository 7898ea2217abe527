//! Aggregations that are made of the events themselves, against models that keep every event and count slowly.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::support::{Database, Server, Workspace, on_both_databases};

on_both_databases!(
    each_kind_is_what_a_slow_model_says,
    a_level_lasts_over_the_edges_of_windows,
    what_has_no_meaning_is_refused,
    events_of_these_meters_stay
);

/// 2026-06-01T00:00:00Z
const JUNE: i64 = 1_780_272_000;
const DAY: i64 = 86_400;

fn time(second: i64) -> String {
    let (day, rest) = (second.div_euclid(DAY), second.rem_euclid(DAY));
    // all instants lie in June and July 2026
    let day = day - JUNE / DAY;
    let (month, day) = if day < 0 {
        (5, day + 32)
    } else if day < 30 {
        (6, day + 1)
    } else {
        (7, day - 29)
    };
    format!("2026-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

#[derive(Clone, Debug)]
struct Event {
    at: i64,
    subject: String,
    region: String,
    user: Option<String>,
    quantity: i64,
}

/// The same events in every run, with ties in time and values that repeat, in no order of time.
fn events() -> Vec<Event> {
    let mut seed = 7u64;
    let mut next = |below: i64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((seed >> 33) as i64).rem_euclid(below)
    };
    let event = |next: &mut dyn FnMut(i64) -> i64| Event {
        at: JUNE + next(5) * DAY + next(6) * 3 * 3600 + next(2) * 1800,
        subject: format!("s{}", next(3)),
        region: format!("r{}", next(2)),
        user: Some(next(9)).filter(|user| *user > 0).map(|user| format!("u{user}")),
        quantity: 1 + next(20),
    };
    (0..240).map(|_| event(&mut next)).collect()
}

async fn meter(ws: &Workspace, name: &str, more: Value) -> Value {
    let mut body = json!({"name": name, "unit": "u", "aggregation": name,
                          "dimensions": [{"name": "region", "type": "string"}]});
    body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    ws.post("/v1/meters", &body).await.json(201)
}

async fn store(ws: &Workspace, meter: &str, events: &[Event]) {
    for some in events.chunks(100) {
        let bodies: Vec<Value> = some
            .iter()
            .map(|e| {
                json!({"meter": meter, "subject": e.subject, "quantity": e.quantity, "timestamp": time(e.at),
                       "metadata": {"region": e.region, "user": {"id": e.user}}})
            })
            .collect();
        ws.post("/v1/usages/bulk", &json!(bodies)).await.expect(201);
    }
}

/// By bucket start and group: the digits of each quantity.
async fn answers(ws: &Workspace, query: &str) -> BTreeMap<(String, String), String> {
    let rows = ws.get(&format!("/v1/usages?limit=1000&{query}")).await.json(200);
    let row = |row: &Value| {
        let group =
            row["group"].as_object().map(|g| g.values().map(|v| v.as_str().expect("a text")).collect());
        let group: Vec<&str> = group.unwrap_or_default();
        let start = row["bucket_start"].as_str().expect("a time").to_owned();
        ((start, group.join(",")), row["quantity"].to_string())
    };
    rows.as_array().expect("a list").iter().map(row).collect()
}

/// The same of the model.
fn modelled(
    events: &[Event],
    of: impl Fn(&[&Event]) -> String,
    group: impl Fn(&Event) -> Option<String>,
) -> BTreeMap<(String, String), String> {
    let mut rows: BTreeMap<(String, String), Vec<&Event>> = BTreeMap::new();
    for event in events {
        if let Some(group) = group(event) {
            rows.entry((time(event.at.div_euclid(DAY) * DAY), group)).or_default().push(event);
        }
    }
    rows.into_iter().map(|(key, events)| (key, of(&events))).collect()
}

fn users(events: &[&Event]) -> String {
    events.iter().filter_map(|event| event.user.as_ref()).collect::<BTreeSet<_>>().len().to_string()
}

fn median(events: &[&Event]) -> String {
    let mut all: Vec<i64> = events.iter().map(|event| event.quantity).collect();
    all.sort_unstable();
    all[all.len().div_ceil(2) - 1].to_string()
}

/// Of several events of one instant any may be the latest: their ids decide. So the model is asked about those that
/// have no tie.
fn latest(events: &[&Event]) -> String {
    let mut all: BTreeMap<(&str, &str), (i64, i64)> = BTreeMap::new();
    for event in events {
        let held = all.entry((&event.subject, &event.region)).or_insert((event.at, event.quantity));
        if event.at >= held.0 {
            *held = (event.at, event.quantity);
        }
    }
    all.values().map(|(_, quantity)| quantity).sum::<i64>().to_string()
}

/// Meter, its events, and the answer that a slow model gives.
type Kind<'a> = (&'a str, &'a [Event], fn(&[&Event]) -> String);

async fn each_kind_is_what_a_slow_model_says(database: Database) {
    let server = Server::start(&database);
    let ws = server.workspace().await;
    let all = events();
    let mut unique: BTreeMap<(i64, String, String), Event> = BTreeMap::new();
    for event in &all {
        unique.insert((event.at, event.subject.clone(), event.region.clone()), event.clone());
    }
    let untied: Vec<Event> = unique.into_values().collect();
    meter(&ws, "unique_count", json!({"aggregation_field": "user.id"})).await;
    meter(&ws, "percentile", json!({"percentiles": [50, 90, 100]})).await;
    meter(&ws, "latest_sum", json!({})).await;
    store(&ws, "unique_count", &all).await;
    store(&ws, "percentile", &all).await;
    store(&ws, "latest_sum", &untied).await;
    let window = format!("from={}&to={}", time(JUNE), time(JUNE + 6 * DAY));
    let kinds: [Kind; 3] =
        [("unique_count", &all, users), ("percentile", &all, median), ("latest_sum", &untied, latest)];
    for (name, events, of) in kinds {
        let query = format!("meter={name}&{window}");
        assert_eq!(answers(&ws, &query).await, modelled(events, of, |_| Some(String::new())), "{name}");
        let by_region = answers(&ws, &format!("{query}&group_by=region")).await;
        assert_eq!(by_region, modelled(events, of, |e| Some(e.region.clone())), "{name} by region");
        let by_subject = answers(&ws, &format!("{query}&group_by=subject")).await;
        assert_eq!(by_subject, modelled(events, of, |e| Some(e.subject.clone())), "{name} by subject");
        let filtered = answers(&ws, &format!("{query}&subject=s1&metadata.region=r0")).await;
        let only = |e: &Event| (e.subject == "s1" && e.region == "r0").then(String::new);
        assert_eq!(filtered, modelled(events, of, only), "{name} of one");
    }
    let rows = ws.get(&format!("/v1/usages?meter=percentile&{window}&bucket_size=month")).await.json(200);
    assert_eq!(rows[0]["percentiles"]["100"], 20);
    assert_eq!(rows[0]["percentiles"]["50"], rows[0]["quantity"]);

    meter(&ws, "stddev", json!({})).await;
    for quantity in [2, 4, 4, 4, 5, 5, 7, 9] {
        let body = json!({"meter": "stddev", "subject": "s", "quantity": quantity, "timestamp": time(JUNE), "metadata": {"region": "r"}});
        ws.post("/v1/usages", &body).await.expect(201);
    }
    assert_eq!(ws.total("stddev").await, "2");
    let body =
        json!({"meter": "unique_count", "field": "region", "from": time(JUNE), "to": time(JUNE + 6 * DAY)});
    let page = ws.post("/v1/usages/breakdowns/search", &body).await.json(200);
    assert_eq!(page["items"][0]["quantity"], 8);
}

async fn a_level_lasts_over_the_edges_of_windows(database: Database) {
    let server = Server::start(&database);
    let ws = server.workspace().await;
    meter(&ws, "weighted_sum", json!({"name": "level"})).await;
    meter(&ws, "weighted_sum", json!({"name": "moves", "quantity_is": "change"})).await;
    let put = async |meter: &str, at: i64, quantity: i64, region: &str| {
        let body = json!({"meter": meter, "subject": "s", "quantity": quantity, "timestamp": time(at), "metadata": {"region": region}});
        ws.post("/v1/usages", &body).await.expect(201);
    };
    // 10 from the day before, 4 from noon of the 1st, 0 from noon of the 3rd; late events come last
    put("level", JUNE + 2 * DAY + DAY / 2, 0, "r0").await;
    put("level", JUNE + DAY / 2, 4, "r0").await;
    put("level", JUNE - DAY, 10, "r0").await;
    put("level", JUNE + DAY, 2, "r1").await;
    let days =
        |first: i64, last: i64| format!("from={}&to={}", time(JUNE + first * DAY), time(JUNE + last * DAY));
    let found = answers(&ws, &format!("meter=level&{}", days(0, 4))).await;
    let values: Vec<&str> = found.values().map(String::as_str).collect();
    assert_eq!(values, ["7", "6", "4", "2"]);
    let found = answers(&ws, &format!("meter=level&{}&metadata.region=r0", days(0, 4))).await;
    let values: Vec<&str> = found.values().map(String::as_str).collect();
    assert_eq!(values, ["7", "4", "2"]);
    // a window without an event of its own
    let found = answers(&ws, &format!("meter=level&{}&bucket_size=hour", days(1, 2))).await;
    assert_eq!(found.len(), 24);
    assert!(found.values().all(|value| value == "6"), "{found:?}");
    // the same level, told by how it moves
    put("moves", JUNE - DAY, 10, "r0").await;
    put("moves", JUNE + DAY / 2, -6, "r0").await;
    put("moves", JUNE + 2 * DAY + DAY / 2, -4, "r0").await;
    put("moves", JUNE + DAY, 2, "r1").await;
    let moved = answers(&ws, &format!("meter=moves&{}", days(0, 4))).await;
    assert_eq!(moved.values().map(String::as_str).collect::<Vec<_>>(), ["7", "6", "4", "2"]);
}

async fn what_has_no_meaning_is_refused(database: Database) {
    let server = Server::start(&database);
    let ws = server.workspace().await;
    for body in [
        json!({"aggregation": "unique_count"}),
        json!({"aggregation": "unique_count", "aggregation_field": "a b"}),
        json!({"aggregation": "sum", "aggregation_field": "a"}),
        json!({"aggregation": "percentile", "percentiles": [0]}),
        json!({"aggregation": "percentile", "percentiles": [101]}),
        json!({"aggregation": "percentile", "percentiles": [5, 5]}),
        json!({"aggregation": "max", "percentiles": [5]}),
        json!({"aggregation": "weighted_sum", "quantity_is": "both"}),
        json!({"aggregation": "sum", "quantity_is": "level"}),
        json!({"aggregation": "median"}),
    ] {
        let mut body = body;
        body["name"] = json!("m");
        body["unit"] = json!("u");
        ws.post("/v1/meters", &body).await.error(400, "invalid_input");
    }
    meter(&ws, "stddev", json!({})).await;
    let plan = json!({"name": "p", "limits": [{"meter": "stddev", "limit": 5}]});
    let message = ws.post("/v1/plans", &plan).await.error(400, "invalid_input");
    assert!(message.contains("stddev"), "{message}");
    ws.meter("calls", "sum").await;
    let plan = json!({"name": "p", "limits": [{"meter": "calls", "limit": 5}]});
    ws.post("/v1/plans", &plan).await.expect(201);
    let calls = ws.get("/v1/meters?name=calls").await.json(200);
    let path = format!("/v1/meters/{}", calls["items"][0]["id"].as_str().expect("an id"));
    ws.put(&path, &json!({"aggregation": "stddev"})).await.error(409, "conflict");
    let negative = json!({"meter": "stddev", "subject": "s", "quantity": -1, "metadata": {"region": "r"}});
    ws.post("/v1/usages", &negative).await.error(400, "invalid_input");
}

async fn events_of_these_meters_stay(database: Database) {
    let server = Server::start(&database);
    let ws = server.workspace().await;
    let made =
        meter(&ws, "unique_count", json!({"aggregation_field": "subject", "event_retention_days": 1})).await;
    let body = json!({"name": "calls", "unit": "u", "event_retention_days": 1});
    let calls = ws.post("/v1/meters", &body).await.json(201);
    for (meter, subject) in
        [("unique_count", "a"), ("unique_count", "b"), ("unique_count", "a"), ("calls", "a")]
    {
        let body = json!({"meter": meter, "subject": subject, "quantity": 1, "timestamp": time(JUNE), "metadata": {"region": "r"}});
        ws.post("/v1/usages", &body).await.expect(201);
    }
    ws.post_text("/v1/usageevents/prune", "").await.expect(200);
    assert_eq!(database.count("events"), 3, "the event of the other meter is pruned");
    assert_eq!(ws.total("unique_count").await, "2");
    assert_eq!((&made["aggregation_field"], &calls["aggregation_field"]), (&json!("subject"), &Value::Null));
}
