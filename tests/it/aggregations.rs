//! Aggregations that are made of the events themselves, against models that keep every event and count slowly.

use std::collections::{BTreeMap, BTreeSet};

use bigdecimal::BigDecimal;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use crate::support::{Database, Server, Workspace, on_both_databases};
use crate::time_zones::Calendar;

on_both_databases!(
    each_kind_is_what_a_slow_model_says,
    levels_and_deviations_are_what_a_slow_model_says,
    a_level_lasts_over_the_edges_of_windows,
    what_has_no_meaning_is_refused,
    events_of_these_meters_stay,
    a_row_of_many_values_says_how_far_it_may_be_off
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

const BOUNDS: [i64; 3] = [4, 5, 19];

fn histogram(events: &[&Event]) -> String {
    let between =
        |low: i64, high: i64| events.iter().filter(|e| low < e.quantity && e.quantity <= high).count();
    let counts = [between(0, 4), between(4, 5), between(5, 19), between(19, i64::MAX)];
    json!({"bounds": BOUNDS, "counts": counts}).to_string()
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
    let bounded = json!({"percentiles": [50, 90, 100], "histogram_bounds": BOUNDS});
    let bounded = meter(&ws, "percentile", bounded).await;
    assert_eq!(bounded["histogram_bounds"], json!(BOUNDS), "{bounded}");
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
    for more in ["", "&group_by=region"] {
        let rows = ws.get(&format!("/v1/usages?limit=1000&meter=percentile&{window}{more}")).await.json(200);
        let key = |row: &Value| {
            let region = row["group"]["region"].as_str().unwrap_or_default().to_owned();
            (row["bucket_start"].as_str().expect("a time").to_owned(), region)
        };
        let found: BTreeMap<(String, String), String> = rows
            .as_array()
            .expect("a list")
            .iter()
            .map(|row| (key(row), row["histogram"].to_string()))
            .collect();
        let region = |e: &Event| Some(if more.is_empty() { String::new() } else { e.region.clone() });
        assert_eq!(found, modelled(&all, histogram, region), "histograms{more}");
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

/// An event as the model keeps it: ties in time are settled by the id that the server gave.
#[derive(Clone, Debug)]
struct Stored {
    at: i64,
    id: String,
    key: (String, String),
    quantity: i64,
}

/// Events of four days in an order of their own, many at one instant.
async fn stored(ws: &Workspace, meter: &str, rng: &mut StdRng) -> Vec<Stored> {
    let mut all = Vec::new();
    for _ in 0..4 {
        let event = |rng: &mut StdRng| Event {
            at: JUNE
                + rng.random_range(-1..3) * DAY
                + rng.random_range(0..48) * 1800
                + rng.random_range(0..2) * 7,
            subject: format!("s{}", rng.random_range(0..3)),
            region: format!("r{}", rng.random_range(0..2)),
            user: None,
            quantity: if meter == "moves" { rng.random_range(-9..10) } else { rng.random_range(1..20) },
        };
        let events: Vec<Event> = (0..40).map(|_| event(rng)).collect();
        let bodies: Vec<Value> = events
            .iter()
            .map(|e| {
                json!({"meter": meter, "subject": e.subject, "quantity": e.quantity, "timestamp": time(e.at),
                       "metadata": {"region": e.region}})
            })
            .collect();
        let answer = ws.post("/v1/usages/bulk", &json!(bodies)).await.json(201);
        let items = answer["accepted_items"].as_array().expect("a list");
        all.extend(events.into_iter().zip(items).map(|(event, item)| Stored {
            at: event.at * 1_000_000,
            id: item["id"].as_str().expect("an id").to_owned(),
            key: (event.subject, event.region),
            quantity: event.quantity,
        }));
    }
    all.sort_by(|a, b| (a.at, &a.id).cmp(&(b.at, &b.id)));
    all
}

type Group = fn(&(String, String)) -> String;

/// The events of the window by bucket start and group.
fn of_buckets(
    events: &[Stored],
    calendar: &Calendar,
    window: (i64, i64),
    group: Group,
) -> BTreeMap<(i64, String), Vec<Stored>> {
    let mut rows: BTreeMap<(i64, String), Vec<Stored>> = BTreeMap::new();
    for event in events.iter().filter(|event| window.0 <= event.at && event.at < window.1) {
        rows.entry((calendar.bucket(event.at).0, group(&event.key))).or_default().push(event.clone());
    }
    rows
}

/// Level times microseconds of each row: of every key every stretch between two events, cut at every bucket.
fn areas(
    events: &[Stored],
    calendar: &Calendar,
    window: (i64, i64),
    group: Group,
    is_change: bool,
) -> BTreeMap<(i64, String), i128> {
    let mut keys: BTreeMap<&(String, String), Vec<&Stored>> = BTreeMap::new();
    let until = events.iter().filter(|event| event.at < window.1);
    until.for_each(|event| keys.entry(&event.key).or_default().push(event));
    let mut rows: BTreeMap<(i64, String), i128> = BTreeMap::new();
    for event in events.iter().filter(|event| window.0 <= event.at && event.at < window.1) {
        rows.insert((calendar.bucket(event.at).0, group(&event.key)), 0);
    }
    for (key, events) in keys {
        let mut level = 0;
        for (place, event) in events.iter().enumerate() {
            level = if is_change { level + event.quantity } else { event.quantity };
            let end = events.get(place + 1).map_or(window.1, |next| next.at);
            let mut at = event.at.max(window.0);
            while at < end && level != 0 {
                let (start, next) = calendar.bucket(at);
                let to = next.min(end);
                *rows.entry((start, group(key))).or_default() += i128::from(level) * i128::from(to - at);
                at = to;
            }
        }
    }
    rows
}

fn near(found: &BigDecimal, wanted: &BigDecimal, words: &str) {
    let allowed = (wanted.abs() + BigDecimal::from(1)) * "1e-30".parse::<BigDecimal>().expect("a number");
    assert!((found - wanted).abs() <= allowed, "{found} instead of {wanted}: {words}");
}

/// The latest of each key by time and id, added up.
fn latest_of(events: &[Stored]) -> BigDecimal {
    let keys: BTreeMap<&(String, String), i64> =
        events.iter().map(|event| (&event.key, event.quantity)).collect();
    BigDecimal::from(keys.values().sum::<i64>())
}

/// The squared deviation times the square of the count.
fn spread_of(events: &[Stored]) -> BigDecimal {
    let count = events.len() as i64;
    let (sum, squares) =
        events.iter().fold((0, 0), |(sum, squares), e| (sum + e.quantity, squares + e.quantity.pow(2)));
    BigDecimal::from(count * squares - sum * sum)
}

/// Ties, late events, edges of windows and of buckets of any size in any zone.
async fn levels_and_deviations_are_what_a_slow_model_says(database: Database) {
    let server = Server::start(&database);
    let ws = server.workspace().await;
    let mut rng = StdRng::seed_from_u64(41);
    let mut kept = BTreeMap::new();
    for (name, aggregation, more) in [
        ("level", "weighted_sum", json!({})),
        ("moves", "weighted_sum", json!({"quantity_is": "change"})),
        ("latest", "latest_sum", json!({})),
        ("stddev", "stddev", json!({})),
    ] {
        let mut body = more;
        body["name"] = json!(name);
        meter(&ws, aggregation, body).await;
        kept.insert(name, stored(&ws, name, &mut rng).await);
    }
    for _ in 0..60 {
        let name = *["level", "moves", "latest", "stddev"].choose(&mut rng).expect("some");
        let mut instant =
            || (JUNE + rng.random_range(-2 * 48..4 * 48) * 1800 + rng.random_range(0..2) * 7) * 1_000_000;
        let (one, two) = (instant(), instant());
        let window = (one.min(two), one.max(two) + 1_000_000);
        let calendar = Calendar::random(&mut rng, window.1 - window.0, JUNE * 1_000_000);
        let (field, group): (&str, Group) = *[
            ("subject", (|key| key.0.clone()) as Group),
            ("region", |key| key.1.clone()),
            ("", |_| String::new()),
        ]
        .choose(&mut rng)
        .expect("some");
        let mut body = json!({"meter": name, "from": time(window.0 / 1_000_000), "to": time(window.1 / 1_000_000), "limit": 1000});
        calendar.ask(&mut body);
        if !field.is_empty() {
            body["group_by"] = json!([field]);
        }
        let rows = ws.post("/v1/usages/search", &body).await.json(200);
        let found: Vec<(String, String, BigDecimal)> = rows
            .as_array()
            .expect("a list")
            .iter()
            .map(|row| {
                let group = row["group"][field].as_str().unwrap_or_default().to_owned();
                let quantity = row["quantity"].to_string().parse().expect("a number");
                (row["bucket_start"].as_str().expect("a time").to_owned(), group, quantity)
            })
            .collect();
        let events = &kept[name];
        let is_level = matches!(name, "level" | "moves");
        let (rows, levels) = match is_level {
            true => (BTreeMap::new(), areas(events, &calendar, window, group, name == "moves")),
            false => (of_buckets(events, &calendar, window, group), BTreeMap::new()),
        };
        let keys: Vec<(i64, String)> = rows.keys().chain(levels.keys()).cloned().collect();
        let wanted: Vec<(String, String)> =
            keys.iter().take(1000).map(|(start, group)| (calendar.text(*start), group.clone())).collect();
        let got: Vec<(String, String)> =
            found.iter().map(|(start, group, _)| (start.clone(), group.clone())).collect();
        assert_eq!(got, wanted, "{body}");
        for (key, (.., quantity)) in keys.iter().zip(&found) {
            let words = format!("{key:?} of {body}");
            if let Some(area) = levels.get(key) {
                let (from, to) = calendar.bucket(key.0);
                near(quantity, &(BigDecimal::from(*area) / BigDecimal::from(to - from)), &words);
                continue;
            }
            let events = &rows[key];
            let count = BigDecimal::from(events.len() as u64);
            match name {
                "latest" => near(quantity, &latest_of(events), &words),
                _ => near(&(quantity * &count * quantity * &count), &spread_of(events), &words),
            }
        }
    }
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
        json!({"aggregation": "max", "histogram_bounds": [5]}),
        json!({"aggregation": "percentile", "histogram_bounds": [5, 5]}),
        json!({"aggregation": "percentile", "histogram_bounds": [5, 4]}),
        json!({"aggregation": "percentile", "histogram_bounds": (0..101).collect::<Vec<i64>>()}),
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

/// Each value twice, in no order: 9,000 on one day of one region, 3,000 on the next.
async fn a_row_of_many_values_says_how_far_it_may_be_off(database: Database) {
    let server = Server::start(&database);
    let ws = server.workspace().await;
    meter(&ws, "unique_count", json!({"aggregation_field": "user.id"})).await;
    meter(&ws, "percentile", json!({"percentiles": [50, 99.9, 100], "histogram_bounds": [7000]})).await;
    let event = |meter: &str, n: i64, day: i64, region: &str| {
        json!({"meter": meter, "subject": "s", "quantity": n, "timestamp": time(JUNE + day * DAY + n),
               "metadata": {"region": region, "user": {"id": format!("user-{n}")}}})
    };
    for name in ["unique_count", "percentile"] {
        let first = (0..18_000).map(|n| event(name, 1 + n * 7 % 9_000, 0, "many"));
        let second = (0..3_000).map(|n| event(name, 1 + n, 1, "few"));
        let bodies: Vec<Value> = first.chain(second).collect();
        for some in bodies.chunks(1_000) {
            ws.post("/v1/usages/bulk", &json!(some)).await.expect(201);
        }
    }
    let range = format!("from={}&to={}", time(JUNE), time(JUNE + 2 * DAY));
    let number = |value: &Value| value.to_string().parse::<f64>().expect("a number");
    for (name, whole, part, most) in
        [("unique_count", 9_000.0, 3_000, 0.025), ("percentile", 4_500.0, 1_500, 0.005)]
    {
        let query = format!("/v1/usages?meter={name}&{range}");
        let rows = ws.get(&query).await.json(200);
        let (many, few) = (&rows[0], &rows[1]);
        assert_eq!((&many["approximate"], number(&many["error"])), (&json!(true), most), "{many}");
        let off = (number(&many["quantity"]) - whole).abs() / whole;
        assert!(off <= most, "{off} of {many}");
        assert_eq!((&few["quantity"], few.get("approximate"), few.get("error")), (&json!(part), None, None));

        let exact = ws.get(&format!("{query}&exact=true")).await.json(200);
        assert_eq!((number(&exact[0]["quantity"]), exact[0].get("approximate")), (whole, None), "{exact}");
        assert_eq!(exact[1], rows[1]);
        let csv = ws.get(&query.replace("/v1/usages?", "/v1/usages/export?")).await.expect(200).text;
        assert!(csv.lines().any(|line| line.split(',').any(|cell| cell == whole.to_string())), "{csv}");
        assert!(!csv.contains("approximate"), "{csv}");

        let asked = json!({"meter": name, "from": time(JUNE), "to": time(JUNE + 2 * DAY), "field": "region"});
        let items = ws.post("/v1/usages/breakdowns/search", &asked).await.json(200);
        let said: Vec<Option<&Value>> = ["many", "few"]
            .map(|value| {
                let items = items["items"].as_array().expect("a list");
                items.iter().find(|item| item["value"] == value).and_then(|item| item.get("approximate"))
            })
            .into();
        assert_eq!(said, [Some(&json!(true)), None], "{items}");
        let mut whole_search = asked.clone();
        whole_search["exact"] = json!(true);
        let items = ws.post("/v1/usages/breakdowns/search", &whole_search).await.json(200);
        assert_eq!(number(&items["items"][0]["quantity"]), whole, "{items}");
    }
    let rows = ws.get(&format!("/v1/usages?meter=percentile&{range}")).await.json(200);
    assert_eq!(rows[0]["histogram"], json!({"bounds": [7000], "counts": [14_000, 4_000]}));
    assert_eq!(number(&rows[0]["percentiles"]["100"]), 9_000.0, "the largest is kept as it is");
    ws.get(&format!("/v1/usages?meter=percentile&{range}&exact=perhaps")).await.error(400, "invalid_exact");
}
