//! Sums by dimensions and subjects, folded and settled or not: always what a recount of the raw events gives, at once, through changes of the
//! meter, late events, days with too many values, and servers that are killed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use crate::support::{Client, Database, Server, on_both_databases};

on_both_databases!(
    sums_are_those_of_a_recount_folded_or_not,
    what_is_acknowledged_counts_at_once_while_folding,
    a_day_with_too_many_values_is_still_right,
    a_day_with_long_values_is_still_right,
    a_day_with_many_values_has_hours_and_events_off_the_hour,
    zones_off_the_hour_need_no_events,
    days_of_subjects_are_read_without_their_cells,
    a_day_that_is_pruned_in_part_is_told_apart_by_the_hour,
    what_is_pruned_counts_by_the_dimensions_that_it_had,
    sums_that_a_killed_server_left_are_folded_by_the_next,
    sums_that_cannot_be_read_are_given_up_and_the_rest_goes_on,
);

const DIMENSIONS: [&str; 4] = ["endpoint", "status", "region", "tier"];
const ROUNDS: usize = 8;

fn dimension(name: &str) -> Value {
    let kind = if name == "status" { "number" } else { "string" };
    json!({"name": name, "type": kind, "required": false})
}

fn value(rng: &mut StdRng, name: &str) -> Value {
    match name {
        "status" => json!([200, 404, 500][rng.random_range(0..3)]),
        name => json!(format!("{name}{}", rng.random_range(0..4))),
    }
}

fn event(rng: &mut StdRng, meter: &str) -> Value {
    let mut metadata = serde_json::Map::new();
    for name in DIMENSIONS {
        if rng.random_bool(0.8) {
            metadata.insert(name.to_owned(), value(rng, name));
        }
    }
    let time = format!(
        "2026-06-{:02}T{:02}:{:02}:{:02}.{:06}Z",
        rng.random_range(1..5),
        rng.random_range(0..24),
        rng.random_range(0..60),
        rng.random_range(0..60),
        rng.random_range(0..1_000_000)
    );
    json!({"meter": meter, "subject": format!("s{}", rng.random_range(0..5)), "timestamp": time,
           "quantity": f64::from(rng.random_range(1..10_000)) / 100.0, "metadata": metadata})
}

async fn record(client: &Client, rng: &mut StdRng, meters: &[&str], count: usize) {
    for meter in meters {
        let events: Vec<Value> = (0..count).map(|_| event(rng, meter)).collect();
        let answer = client.post("/v1/usages/bulk", &json!(events)).await.json(201);
        assert_eq!(answer["accepted"], count, "{answer}");
    }
}

/// Waits until nothing is left to fold.
async fn folded(database: &Database) {
    let began = Instant::now();
    while database.count("rollup_deltas WHERE cells IS NOT NULL") > 0 {
        assert!(began.elapsed() < Duration::from_secs(30), "sums stay unfolded");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until nothing is left to settle either.
async fn settled(database: &Database) {
    let began = Instant::now();
    while database.count("rollup_deltas") > 0 {
        assert!(began.elapsed() < Duration::from_secs(30), "sums stay unsettled");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn instant(rng: &mut StdRng) -> String {
    let (day, hour) = (rng.random_range(1..6), rng.random_range(0..24));
    match rng.random_range(0..4) {
        3 => format!("2026-06-{day:02}T{hour:02}:{:02}:00Z", [15, 30, 45].choose(rng).expect("some")),
        0 => format!("2026-06-{day:02}T00:00:00Z"),
        1 => format!("2026-06-{day:02}T{hour:02}:00:00Z"),
        _ => format!("2026-06-{day:02}T{hour:02}:{:02}:00Z", rng.random_range(0..60)),
    }
}

/// A question about the declared dimensions, and the same in a form that only raw events can answer.
fn question(rng: &mut StdRng, meter: &str, declared: &[&str]) -> (Value, Value) {
    let mut fields = declared.to_vec();
    fields.push("subject");
    fields.shuffle(rng);
    fields.truncate(rng.random_range(0..=fields.len()));
    let mut rules = Vec::new();
    for _ in 0..rng.random_range(0..3) {
        let Some(name) = declared.choose(rng) else { break };
        rules.push(json!({"type": "condition", "field": format!("metadata.{name}"), "op": "eq", "value": value(rng, name)}));
    }
    let (one, two) = (instant(rng), instant(rng));
    let (from, to) = if one < two { (one, two) } else { (two, one) };
    let to = if from == to { "2026-06-07T00:00:00Z".to_owned() } else { to };
    let size = ["hour", "day", "month"].choose(rng).expect("some");
    let zone = ["UTC", "Europe/Berlin", "Asia/Kolkata", "Asia/Kathmandu", "Australia/Lord_Howe"].choose(rng);
    let filter = |rules: &[Value]| json!({"type": "group", "op": "and", "rules": rules});
    let mut folded = json!({"meter": meter, "from": from, "to": to, "bucket_size": size, "group_by": fields, "limit": 1000});
    if rng.random_bool(0.5) {
        folded["time_zone"] = json!(zone);
    }
    match rng.random_range(0..4) {
        0 => folded["subject"] = json!(format!("s{}", rng.random_range(0..6))),
        1 => rules.push(
            json!({"type": "condition", "field": "subject", "op": "in", "value": ["s1", "s4", "none"]}),
        ),
        _ => {}
    }
    let mut raw = folded.clone();
    if !rules.is_empty() {
        folded["filter"] = filter(&rules);
    }
    rules.push(json!({"type": "condition", "field": "quantity", "op": "exists"}));
    raw["filter"] = filter(&rules);
    (folded, raw)
}

async fn ask(client: &Client, rng: &mut StdRng, meters: &[&str], declared: &[&str], count: usize) {
    for _ in 0..count {
        let meter = meters.choose(rng).expect("some");
        let (folded, raw) = question(rng, meter, declared);
        let by_sums = client.post("/v1/usages/search", &folded).await.expect(200).text;
        let by_events = client.post("/v1/usages/search", &raw).await.expect(200).text;
        assert_eq!(by_sums, by_events, "{folded}");
    }
}

async fn sums_are_those_of_a_recount_folded_or_not(database: Database) {
    // what subjects used is settled all the time
    let server = Server::start_with(&database, &[("OPEN_SPANNER_INGEST_SETTLE_AFTER", "500ms")]);
    for seed in 1..=2 {
        let workspace = server.workspace().await;
        let mut rng = StdRng::seed_from_u64(seed);
        let meters = ["sum", "last", "max"];
        let mut paths = Vec::new();
        for meter in meters {
            let dimensions = json!([dimension("endpoint")]);
            let body = json!({"name": meter, "unit": "u", "aggregation": meter, "dimensions": dimensions});
            let made = workspace.post("/v1/meters", &body).await.json(201);
            paths.push(format!("/v1/meters/{}", made["id"].as_str().expect("an id")));
        }
        let mut declared = vec!["endpoint"];
        for round in 0..ROUNDS {
            record(&workspace, &mut rng, &meters, 60).await;
            ask(&workspace, &mut rng, &meters, &declared, 15).await;
            if round % 2 == 0 {
                folded(&database).await;
                ask(&workspace, &mut rng, &meters, &declared, 15).await;
                record(&workspace, &mut rng, &meters, 20).await;
                ask(&workspace, &mut rng, &meters, &declared, 15).await;
            }
            // dimensions come late, and the wish for the last event comes and goes
            if round % 3 == 1 {
                declared = DIMENSIONS[..(declared.len() + 1).min(DIMENSIONS.len())].to_vec();
            }
            let dimensions: Vec<Value> = declared.iter().map(|name| dimension(name)).collect();
            let aggregation = ["sum", "last", "first", "avg"].choose(&mut rng).expect("some");
            let change = json!({"dimensions": dimensions, "aggregation": aggregation});
            for path in &paths {
                workspace.put(path, &change).await.expect(200);
            }
            ask(&workspace, &mut rng, &meters, &declared, 15).await;
        }
    }
}

async fn meter_with(client: &Client, names: &[&str]) {
    let dimensions: Vec<Value> = names.iter().map(|name| dimension(name)).collect();
    let body = json!({"name": "m", "unit": "u", "dimensions": dimensions});
    client.post("/v1/meters", &body).await.expect(201);
}

async fn what_is_acknowledged_counts_at_once_while_folding(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    meter_with(&workspace, &["endpoint", "region"]).await;
    let began = Instant::now();
    let mut sent = 0;
    // folded every two seconds: some questions fall into a fold
    while began.elapsed() < Duration::from_secs(5) {
        sent += 1;
        let event = json!({"meter": "m", "subject": "s", "quantity": 1, "timestamp": "2026-06-02T12:00:00Z",
                           "metadata": {"endpoint": format!("e{}", sent % 3), "region": "eu"}});
        workspace.post("/v1/usages", &event).await.expect(201);
        let body = json!({"meter": "m", "from": "2026-06-02T00:00:00Z", "to": "2026-06-03T00:00:00Z", "field": "endpoint"});
        let answer = workspace.post("/v1/usages/breakdowns/search", &body).await.json(200);
        let items = answer["items"].as_array().expect("items");
        let counted: i64 = items.iter().map(|item| item["events"].as_i64().expect("a number")).sum();
        assert_eq!(counted, sent, "{answer}");
    }
    assert!(database.count("rollup_facets") > 0, "nothing was folded meanwhile");
}

async fn a_day_with_too_many_values_is_still_right(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    meter_with(&workspace, &["endpoint", "region"]).await;
    let (mut number, mut rng) = (0, StdRng::seed_from_u64(5));
    for _ in 0..20 {
        let events: Vec<Value> = (0..1_000)
            .map(|_| {
                number += 1;
                json!({"meter": "m", "subject": "s", "quantity": 1, "timestamp": format!("2026-06-02T{:02}:00:00Z", number % 24),
                       "metadata": {"endpoint": format!("e{number}"), "region": format!("r{}", number % 3)}})
            })
            .collect();
        workspace.post("/v1/usages/bulk", &json!(events)).await.expect(201);
    }
    let other = json!({"meter": "m", "subject": "s", "quantity": 5, "timestamp": "2026-06-03T01:00:00Z",
                       "metadata": {"endpoint": "e7", "region": "r1"}});
    workspace.post("/v1/usages", &other).await.expect(201);
    folded(&database).await;
    let given_up = "SELECT facet AS line FROM rollup_facets WHERE hour_cells IS NULL ORDER BY facet";
    assert_eq!(database.lines(given_up), ["*", "endpoint"]);
    let by_quarter = "SELECT facet AS line FROM rollup_facets WHERE quarter_cells IS NOT NULL AND day < 1780444800000000 ORDER BY facet";
    assert_eq!(database.lines(by_quarter), ["", "region"]);
    // the counted events, by few values and by one of many
    for (filter, wanted) in [("r1", 6_667), ("r2", 6_667)] {
        let body = json!({"meter": "m", "from": "2026-06-02T00:00:00Z", "to": "2026-06-03T00:00:00Z", "field": "region"});
        let answer = workspace.post("/v1/usages/breakdowns/search", &body).await.json(200);
        let items = answer["items"].as_array().expect("items");
        assert!(items.iter().any(|item| item["value"] == filter && item["events"] == wanted), "{answer}");
    }
    for field in ["endpoint", "region"] {
        let condition = json!({"type": "condition", "field": "metadata.endpoint", "op": "eq", "value": "e7"});
        let body = json!({"meter": "m", "from": "2026-06-01T00:00:00Z", "to": "2026-06-05T00:00:00Z", "bucket_size": "hour",
                          "group_by": [field], "filter": condition});
        let rows = workspace.post("/v1/usages/search", &body).await.json(200);
        let sums: Vec<(&str, i64)> = rows
            .as_array()
            .expect("rows")
            .iter()
            .map(|row| {
                (row["bucket_start"].as_str().expect("a time"), row["quantity"].as_i64().expect("a number"))
            })
            .collect();
        assert_eq!(sums, [("2026-06-02T07:00:00Z", 1), ("2026-06-03T01:00:00Z", 5)]);
    }
    ask(&workspace, &mut rng, &["m"], &["region"], 10).await;
}

/// Fewer values than are kept, but a row of them would have more than a mebibyte.
async fn a_day_with_long_values_is_still_right(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    meter_with(&workspace, &["endpoint", "region"]).await;
    let mut number = 0;
    for _ in 0..6 {
        let events: Vec<Value> = (0..1_000)
            .map(|_| {
                number += 1;
                json!({"meter": "m", "subject": "s", "quantity": 1, "timestamp": "2026-06-02T08:00:00Z",
                       "metadata": {"endpoint": format!("{number:0>250}"), "region": format!("r{}", number % 2)}})
            })
            .collect();
        workspace.post("/v1/usages/bulk", &json!(events)).await.expect(201);
    }
    folded(&database).await;
    let given_up = "SELECT facet AS line FROM rollup_facets WHERE hour_cells IS NULL ORDER BY facet";
    assert_eq!(database.lines(given_up), ["*", "endpoint"]);
    let mut rng = StdRng::seed_from_u64(3);
    ask(&workspace, &mut rng, &["m"], &["region"], 5).await;
    let body = json!({"meter": "m", "from": "2026-06-02T00:00:00Z", "to": "2026-06-03T00:00:00Z", "field": "endpoint"});
    let answer = workspace.post("/v1/usages/breakdowns/search", &body).await.json(200);
    assert_eq!(answer["items"][0]["events"], 1, "{answer}");
}

/// Too many to be kept by quarters of an hour, few enough by hours.
async fn a_day_with_many_values_has_hours_and_events_off_the_hour(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    meter_with(&workspace, &["endpoint", "region"]).await;
    let mut rng = StdRng::seed_from_u64(17);
    for _ in 0..6 {
        let events: Vec<Value> = (0..1_000)
            .map(|_| {
                let mut event = event(&mut rng, "m");
                let minute = rng.random_range(0..60);
                event["timestamp"] = json!(format!("2026-06-02T{:02}:{minute:02}:00Z", rng.random_range(16..20)));
                event["metadata"] = json!({"endpoint": format!("endpoint{}", rng.random_range(0..1_000)), "region": format!("region{}", rng.random_range(0..4))});
                event
            })
            .collect();
        workspace.post("/v1/usages/bulk", &json!(events)).await.expect(201);
    }
    record(&workspace, &mut rng, &["m"], 200).await;
    folded(&database).await;
    let given_up = "SELECT facet AS line FROM rollup_facets WHERE quarter_cells IS NULL AND hour_cells IS NOT NULL ORDER BY facet";
    assert_eq!(database.lines(given_up), ["*", "endpoint"]);
    ask(&workspace, &mut rng, &["m"], &["endpoint", "region"], 40).await;
    record(&workspace, &mut rng, &["m"], 200).await;
    ask(&workspace, &mut rng, &["m"], &["endpoint", "region"], 40).await;
}

/// Days, weeks and hours of them are what they were when the events are gone.
async fn zones_off_the_hour_need_no_events(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    for aggregation in ["sum", "last"] {
        let dimensions = json!([dimension("endpoint"), dimension("region"), dimension("tier")]);
        let body =
            json!({"name": aggregation, "unit": "u", "aggregation": aggregation, "dimensions": dimensions});
        workspace.post("/v1/meters", &body).await.expect(201);
    }
    let mut rng = StdRng::seed_from_u64(13);
    record(&workspace, &mut rng, &["sum", "last"], 600).await;
    folded(&database).await;
    record(&workspace, &mut rng, &["sum", "last"], 50).await;
    let mut asked = Vec::new();
    for zone in
        ["Asia/Kolkata", "Asia/Kathmandu", "Australia/Lord_Howe", "Pacific/Chatham", "America/St_Johns"]
    {
        for (meter, size) in
            [("sum", "day"), ("sum", "hour"), ("sum", "15m"), ("last", "day"), ("last", "6h")]
        {
            for more in [
                json!({}),
                json!({"group_by": ["region"]}),
                json!({"group_by": ["region", "tier"]}),
                json!({"group_by": ["subject"]}),
            ] {
                // local midnights, and not
                for (from, to) in [
                    ("2026-06-01T18:30:00Z", "2026-06-04T18:15:00Z"),
                    ("2026-06-01T00:00:00Z", "2026-06-05T00:00:00Z"),
                ] {
                    let mut body = json!({"meter": meter, "from": from, "to": to, "bucket_size": size, "time_zone": zone, "limit": 1000});
                    body.as_object_mut()
                        .expect("an object")
                        .extend(more.as_object().expect("an object").clone());
                    let before = workspace.post("/v1/usages/search", &body).await.expect(200).text;
                    let mut raw = body.clone();
                    raw["filter"] = json!({"type": "condition", "field": "quantity", "op": "exists"});
                    assert_eq!(
                        before,
                        workspace.post("/v1/usages/search", &raw).await.expect(200).text,
                        "{body}"
                    );
                    asked.push((body, before));
                }
            }
        }
    }
    database.execute("DELETE FROM events");
    for (body, before) in asked {
        assert_eq!(before, workspace.post("/v1/usages/search", &body).await.expect(200).text, "{body}");
    }
}

async fn sums_that_a_killed_server_left_are_folded_by_the_next(database: Database) {
    let mut server = Server::start_to_be_restarted(&database);
    let workspace = server.workspace().await;
    meter_with(&workspace, &["endpoint", "region", "status"]).await;
    let mut rng = StdRng::seed_from_u64(9);
    for _ in 0..3 {
        record(&workspace, &mut rng, &["m"], 50).await;
        server.kill();
        assert!(database.count("rollup_deltas") > 0, "folded before it was killed");
        server.restart();
        ask(&workspace, &mut rng, &["m"], &["endpoint", "region", "status"], 10).await;
        folded(&database).await;
        ask(&workspace, &mut rng, &["m"], &["endpoint", "region", "status"], 10).await;
    }
}

/// What no sums are packed as.
fn garbage(database: &Database) -> &'static str {
    if matches!(database, Database::Postgres { .. }) { "'\\xffff'::bytea" } else { "x'ffff'" }
}

async fn days_of_subjects_are_read_without_their_cells(database: Database) {
    let server = Server::start_with(&database, &[("OPEN_SPANNER_INGEST_SETTLE_AFTER", "100ms")]);
    let workspace = server.workspace().await;
    meter_with(&workspace, &["endpoint", "region"]).await;
    record(&workspace, &mut StdRng::seed_from_u64(13), &["m"], 1000).await;
    settled(&database).await;
    assert_eq!(database.count("rollup_subjects WHERE day_facets <> ';endpoint;region;' OR days IS NULL"), 0);
    database.execute(&format!("UPDATE rollup_subjects SET cells = {}", garbage(&database)));
    let of_one_region =
        json!({"type": "condition", "field": "metadata.region", "op": "eq", "value": "region1"});
    // by no dimension or by one, of one subject or of all
    for (asked, is_kept) in [
        (json!({"group_by": ["subject"]}), true),
        (json!({"subject": "s1"}), true),
        (json!({"subject": "s1", "group_by": ["endpoint"]}), true),
        (json!({"group_by": ["region", "subject"], "filter": of_one_region}), true),
        (json!({"subject": "s1", "group_by": ["endpoint", "region"]}), false),
        (json!({"subject": "s1", "group_by": ["endpoint"], "filter": of_one_region}), false),
    ] {
        days_are_read(&workspace, &asked, is_kept).await;
    }
    // those by dimensions are many, and only read where a dimension is asked for
    database.execute(&format!("UPDATE rollup_subjects SET facet_days = {}", garbage(&database)));
    days_are_read(&workspace, &json!({"group_by": ["subject"]}), true).await;
    days_are_read(&workspace, &json!({"subject": "s1", "group_by": ["endpoint"]}), false).await;
}

/// On days, and cut where nothing lies behind the cut; what is not answered by days is answered wrongly, for there are no
/// cells.
async fn days_are_read(workspace: &Client, asked: &Value, is_kept: bool) {
    let windows = [
        ("2026-06-02T00:00:00Z", "2026-06-04T00:00:00Z", true),
        ("2026-06-01T00:00:00Z", "2026-06-05T07:00:00Z", true),
        ("2026-05-31T07:30:00Z", "2026-06-05T07:00:00Z", true),
        ("2026-06-02T07:00:00Z", "2026-06-04T00:00:00Z", false),
        ("2026-06-02T00:00:00Z", "2026-06-03T07:00:00Z", false),
    ];
    for (from, to, is_by_day) in windows {
        for (size, is_coarse) in [("day", true), ("week", true), ("month", true), ("hour", false)] {
            let mut by_days =
                json!({"meter": "m", "from": from, "to": to, "bucket_size": size, "limit": 1000});
            by_days.as_object_mut().expect("an object").extend(asked.as_object().expect("an object").clone());
            if size == "week" {
                by_days["week_start"] = json!("monday");
            }
            let mut by_events = by_days.clone();
            let stored = json!({"type": "condition", "field": "quantity", "op": "exists"});
            let rules: Vec<&Value> = asked.get("filter").into_iter().chain([&stored]).collect();
            by_events["filter"] = json!({"type": "group", "op": "and", "rules": rules});
            let answered = workspace.post("/v1/usages/search", &by_days).await.expect(200).text;
            let counted = workspace.post("/v1/usages/search", &by_events).await.expect(200).text;
            assert_eq!(answered == counted, is_by_day && is_coarse && is_kept, "{by_days}: {answered}");
        }
    }
}

fn hundredths(quantity: &Value) -> i64 {
    (quantity.as_f64().expect("a number") * 100.0).round() as i64
}

/// What rows come to by region, in hundredths.
fn by_region(rows: &Value) -> BTreeMap<String, i64> {
    let mut sums = BTreeMap::new();
    for row in rows.as_array().expect("rows") {
        let region = row["group"]["region"].as_str().expect("a text").to_owned();
        *sums.entry(region).or_default() += hundredths(&row["quantity"]);
    }
    sums
}

/// Before a dimension was declared sums do not know it: they answer for what is pruned, events for the rest, also where both
/// are of one day.
async fn a_day_that_is_pruned_in_part_is_told_apart_by_the_hour(database: Database) {
    let server = Server::start_with(&database, &[("OPEN_SPANNER_INGEST_SETTLE_AFTER", "100ms")]);
    let workspace = server.workspace().await;
    let body = json!({"name": "m", "unit": "u", "dimensions": [dimension("endpoint")]});
    let made = workspace.post("/v1/meters", &body).await.json(201);
    let mut rng = StdRng::seed_from_u64(19);
    record(&workspace, &mut rng, &["m"], 1000).await;
    settled(&database).await;
    let path = format!("/v1/meters/{}", made["id"].as_str().expect("an id"));
    let dimensions = json!([dimension("endpoint"), dimension("region")]);
    workspace.put(&path, &json!({"dimensions": dimensions})).await.expect(200);
    record(&workspace, &mut rng, &["m"], 1000).await;
    settled(&database).await;
    assert_eq!(database.count("rollup_subjects WHERE day_facets <> ';endpoint;region;' OR days IS NULL"), 0);
    ask(&workspace, &mut rng, &["m"], &["endpoint", "region"], 40).await;
    // the second of June, ten o'clock
    database.execute(
        "DELETE FROM events WHERE event_time < 1780394400000000; UPDATE meters SET pruned_before = 1780394400000000",
    );
    for asked in
        [json!({"subject": "s1", "group_by": ["region"]}), json!({"group_by": ["subject", "region"]})]
    {
        let mut question = json!({"meter": "m", "from": "2026-06-02T00:00:00Z", "to": "2026-06-03T00:00:00Z", "limit": 1000});
        question.as_object_mut().expect("an object").extend(asked.as_object().expect("an object").clone());
        question["bucket_size"] = json!("day");
        let days = workspace.post("/v1/usages/search", &question).await.json(200);
        question["bucket_size"] = json!("hour");
        let hours = workspace.post("/v1/usages/search", &question).await.json(200);
        let (days, hours) = (by_region(&days), by_region(&hours));
        assert_eq!(days, hours, "{asked}");
        assert!(hours.contains_key("<nil>") && hours.contains_key("region1"), "{hours:?}");
    }
}

/// An event, and how many dimensions were declared when it was sent.
struct Sent {
    event: Value,
    declared: usize,
}

/// Bucket, group and hundredths.
type Row = (String, Vec<String>, i64);

fn fields_of(question: &Value) -> Vec<&str> {
    let fields = question["group_by"].as_array().expect("fields");
    fields.iter().map(|name| name.as_str().expect("a name")).collect()
}

fn hour_of(time: &Value) -> &str {
    &time.as_str().expect("a time")[.."2026-06-02T10".len()]
}

/// What a question about whole hours of UTC is answered with. Of an event whose hour is gone those dimensions are known that
/// were declared when it came.
fn recounted(sent: &[Sent], question: &Value, gone_before: &str) -> Vec<Row> {
    let (from, to) = (hour_of(&question["from"]), hour_of(&question["to"]));
    let mut rows: BTreeMap<(String, Vec<String>), i64> = BTreeMap::new();
    for Sent { event, declared } in sent {
        let hour = hour_of(&event["timestamp"]);
        let known = if hour < gone_before { *declared } else { DIMENSIONS.len() };
        let value = |name: &str| match DIMENSIONS.iter().position(|dimension| *dimension == name) {
            None => &event[name],
            Some(place) if place < known => &event["metadata"][name],
            Some(_) => &event["metadata"]["of no dimension"],
        };
        let filter = &question["filter"];
        let is_asked = filter.is_null()
            || *value(&filter["field"].as_str().expect("a field")["metadata.".len()..]) == filter["value"];
        let is_subject = question["subject"].is_null() || question["subject"] == event["subject"];
        if hour < from || hour >= to || !is_asked || !is_subject {
            continue;
        }
        let bucket = match question["bucket_size"].as_str() {
            Some("day") => format!("{}T00:00:00Z", &hour[.."2026-06-02".len()]),
            _ => format!("{hour}:00:00Z"),
        };
        let group = fields_of(question).into_iter().map(|name| match value(name) {
            Value::Null => "<nil>".to_owned(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        });
        *rows.entry((bucket, group.collect())).or_default() += hundredths(&event["quantity"]);
    }
    rows.into_iter().map(|((bucket, group), sum)| (bucket, group, sum)).take(1000).collect()
}

fn answered(rows: &Value, question: &Value) -> Vec<Row> {
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let row = |row: &Value| {
        let group: Vec<String> =
            fields_of(question).into_iter().map(|name| text(&row["group"][name])).collect();
        (text(&row["bucket_start"]), group, hundredths(&row["quantity"]))
    };
    rows.as_array().expect("rows").iter().map(row).collect()
}

/// Counted from the first of June.
fn hour_text(hour: usize) -> String {
    format!("2026-06-{:02}T{:02}:00:00Z", hour / 24 + 1, hour % 24)
}

fn question_of_hours(rng: &mut StdRng, declared: &[&str]) -> Value {
    let (mut from, mut to) = (rng.random_range(0..100), rng.random_range(100..120));
    if rng.random_bool(0.6) {
        (from, to) = (from / 24 * 24, 120);
    }
    let mut fields = declared.to_vec();
    fields.push("subject");
    fields.shuffle(rng);
    fields.truncate(rng.random_range(0..3));
    let size = ["hour", "day", "day"].choose(rng).expect("some");
    let mut question = json!({"meter": "m", "from": hour_text(from), "to": hour_text(to), "bucket_size": size,
                              "group_by": fields, "limit": 1000});
    if rng.random_bool(0.5) {
        question["subject"] = json!(format!("s{}", rng.random_range(0..5)));
    }
    if rng.random_bool(0.3) {
        let name = declared.choose(rng).expect("some");
        question["filter"] = json!({"type": "condition", "field": format!("metadata.{name}"), "op": "eq", "value": value(rng, name)});
    }
    question
}

/// Events are pruned, come late and wait to be settled while dimensions are declared.
async fn what_is_pruned_counts_by_the_dimensions_that_it_had(database: Database) {
    let server = Server::start_with(&database, &[("OPEN_SPANNER_INGEST_SETTLE_AFTER", "100ms")]);
    let workspace = server.workspace().await;
    let body = json!({"name": "m", "unit": "u", "dimensions": [dimension("endpoint")]});
    let made = workspace.post("/v1/meters", &body).await.json(201);
    let path = format!("/v1/meters/{}", made["id"].as_str().expect("an id"));
    let (mut rng, mut sent, mut gone) = (StdRng::seed_from_u64(23), Vec::new(), 0_usize);
    for round in 0..8 {
        let declared = &DIMENSIONS[..(1 + round / 2).min(DIMENSIONS.len())];
        let dimensions: Vec<Value> = declared.iter().map(|name| dimension(name)).collect();
        workspace.put(&path, &json!({"dimensions": dimensions})).await.expect(200);
        let events: Vec<Value> = (0..300).map(|_| event(&mut rng, "m")).collect();
        workspace.post("/v1/usages/bulk", &json!(events)).await.expect(201);
        sent.extend(events.into_iter().map(|event| Sent { event, declared: declared.len() }));
        if round % 2 == 1 {
            settled(&database).await;
            // on the hour, or within the one before
            gone += rng.random_range(10..24);
            let at = 1_780_272_000_000_000_i64 + gone as i64 * 3_600_000_000
                - rng.random_range(0..2) * 1_800_000_000_i64;
            database.execute(&format!(
                "DELETE FROM events WHERE event_time < {at}; UPDATE meters SET pruned_before = {at}"
            ));
        }
        for _ in 0..30 {
            let question = question_of_hours(&mut rng, declared);
            let rows = workspace.post("/v1/usages/search", &question).await.json(200);
            let wanted = recounted(&sent, &question, &hour_text(gone)[.."2026-06-02T10".len()]);
            assert_eq!(answered(&rows, &question), wanted, "{gone} hours are gone: {question}");
        }
    }
}

async fn sums_that_cannot_be_read_are_given_up_and_the_rest_goes_on(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    meter_with(&workspace, &["endpoint", "region"]).await;
    let mut rng = StdRng::seed_from_u64(11);
    record(&workspace, &mut rng, &["m"], 50).await;
    folded(&database).await;
    let garbage = garbage(&database);
    database.execute(&format!(
        "UPDATE rollup_facets SET day_cells = {garbage}, hour_cells = {garbage}, quarter_cells = {garbage}"
    ));
    // the rows of every subject answer instead
    ask(&workspace, &mut rng, &["m"], &["endpoint", "region"], 20).await;
    record(&workspace, &mut rng, &["m"], 200).await;
    folded(&database).await;
    ask(&workspace, &mut rng, &["m"], &["endpoint", "region"], 20).await;
}
