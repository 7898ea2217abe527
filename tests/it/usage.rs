//! Answers equal a recount: random events, and random questions about them, each compared with a slow and obvious
//! model that looks at every event. `USAGE_SEED` repeats a run.

use std::collections::BTreeMap;

use bigdecimal::BigDecimal;
use jiff::Timestamp;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use serde_json::{Map, Value, json};

use crate::filter::{self, Event, at_path, matches, number, text_of};
use crate::support::{Database, Server, Workspace, env, on_both_databases};
use crate::time_zones::Calendar;

on_both_databases!(
    answers_equal_a_recount,
    hot_queries_use_indexes,
    changes_without_meaning_make_no_sets,
    values_of_a_dimension_are_counted_from_sums,
);

const AGGREGATIONS: [&str; 8] = ["sum", "count", "avg", "min", "max", "first", "last", "rate"];
const SECOND: i64 = 1_000_000;
const HOUR: i64 = 3_600 * SECOND;
const EVENTS: usize = 160;
const QUESTIONS: usize = 300;

struct World {
    rng: StdRng,
    workspace: Workspace,
    /// By meter, which is called like its aggregation.
    events: BTreeMap<&'static str, Vec<Event>>,
    keys: usize,
}

async fn answers_equal_a_recount(database: Database) {
    let seed = env("USAGE_SEED").map_or_else(rand::random, |text| text.parse().expect("a number"));
    println!("USAGE_SEED={seed}");
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    let mut world = World { rng: StdRng::seed_from_u64(seed), workspace, events: BTreeMap::new(), keys: 0 };
    let mut dimensions: Vec<Value> =
        filter::declared().iter().map(|(name, values)| dimension(name, &values[0])).collect();
    let mut ids = Vec::new();
    for meter in AGGREGATIONS {
        let body = json!({"name": meter, "unit": "u", "aggregation": meter, "dimensions": dimensions});
        let made = world.workspace.post("/v1/meters", &body).await.json(201);
        ids.push(made["id"].as_str().expect("an id").to_string());
    }
    world.record(EVENTS).await;
    // rollups of what is stored do not know this one
    dimensions.push(dimension("size", &json!(1)));
    for id in ids {
        world
            .workspace
            .put(&format!("/v1/meters/{id}"), &json!({"dimensions": dimensions}))
            .await
            .expect(200);
    }
    for _ in 0..QUESTIONS / 3 {
        world.ask().await;
    }
    world.record(EVENTS).await;
    for _ in 0..QUESTIONS * 2 / 3 {
        world.ask().await;
    }
}

fn dimension(name: &str, sample: &Value) -> Value {
    let kind = match sample {
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        _ => "string",
    };
    json!({"name": name, "type": kind, "required": false})
}

fn put(metadata: &mut Map<String, Value>, path: &str, value: Value) {
    match path.split_once('.') {
        None => drop(metadata.insert(path.to_string(), value)),
        Some((head, rest)) => {
            let inner = metadata.entry(head).or_insert_with(|| json!({}));
            put(inner.as_object_mut().expect("only objects on the way"), rest, value);
        }
    }
}

fn time_text(micros: i64) -> String {
    Timestamp::from_microsecond(micros).expect("in range").to_string()
}

impl World {
    /// An instant worth testing: on, just before or just after an edge, or anywhere near.
    fn instant(&mut self) -> i64 {
        let june = filter::micros("2026-06-01T00:00:00Z");
        let edges = [
            june,
            june + 30 * HOUR / 60,
            june + 24 * HOUR,
            june - HOUR,
            june + 5 * HOUR,
            june - 61 * 24 * HOUR,
            june + 30 * 24 * HOUR,
            // clocks are set in Berlin, and by half an hour on Lord Howe
            filter::micros("2026-03-29T01:00:00Z"),
            filter::micros("2026-04-04T15:00:00Z"),
        ];
        let edge = *edges.choose(&mut self.rng).expect("some");
        match self.rng.random_range(0..5) {
            0 => edge,
            1 => edge - 1,
            2 => edge + SECOND / 2,
            _ => edge + self.rng.random_range(-30 * HOUR..30 * HOUR) / 1_000 * 1_000,
        }
    }

    fn input(&mut self) -> Value {
        let mut metadata = Map::new();
        let mut paths = filter::declared();
        paths.extend(filter::undeclared());
        for (path, values) in paths {
            if self.rng.random_bool(0.7) {
                put(&mut metadata, path, values.choose(&mut self.rng).expect("some").clone());
            }
        }
        let quantities =
            ["1", "2.5", "0.1", "1234567890123456789.123456789", "0.000000000000000001", "1e3", "7"];
        let quantity: Value =
            serde_json::from_str(quantities.choose(&mut self.rng).expect("some")).expect("a number");
        self.keys += 1;
        let key = if self.rng.random_bool(0.5) { format!("k{}", self.keys) } else { String::new() };
        json!({
            "subject": format!("s{}", self.rng.random_range(0..5)), "quantity": quantity,
            "timestamp": time_text(self.instant()), "idempotency_key": key, "metadata": metadata,
        })
    }

    /// Records new events with every meter.
    async fn record(&mut self, count: usize) {
        let inputs: Vec<Value> = (0..count).map(|_| self.input()).collect();
        for meter in AGGREGATIONS {
            let mut sent = inputs.clone();
            sent.shuffle(&mut self.rng);
            for input in &mut sent {
                input["meter"] = json!(meter);
                if input["idempotency_key"] != "" {
                    // a key counts for the whole workspace
                    input["idempotency_key"] = match meter {
                        "sum" => input["idempotency_key"].clone(),
                        _ => json!(format!("{meter}-{}", text_of(&input["idempotency_key"]))),
                    };
                }
            }
            let answer = self.workspace.post("/v1/usages/bulk", &json!(sent)).await.json(201);
            let stored = answer["accepted_items"].as_array().expect("a list");
            assert_eq!(stored.len(), count, "{answer}");
            let events = sent.iter().zip(stored).map(|(sent, stored)| Event {
                id: text_of(&stored["id"]),
                subject: text_of(&stored["subject"]),
                meter: meter.to_string(),
                time: filter::micros(sent["timestamp"].as_str().expect("a time")),
                quantity: number(&stored["quantity"]),
                key: stored["idempotency_key"].as_str().map(str::to_string),
                metadata: stored["metadata"].clone(),
            });
            self.events.entry(meter).or_default().extend(events);
        }
    }

    /// One random question, and the same answer from the model.
    async fn ask(&mut self) {
        let meter = *AGGREGATIONS.choose(&mut self.rng).expect("some");
        let (a, b) = (self.instant(), self.instant());
        let (from, to) = (a.min(b), a.max(b) + 1);
        let mut body = json!({"meter": meter, "from": time_text(from), "to": time_text(to)});
        if self.rng.random_bool(0.2) {
            body["subject"] = json!(format!("s{}", self.rng.random_range(0..6)));
        }
        match self.rng.random_range(0..4) {
            0 => {}
            1 => body["filter"] = filter::random(&mut self.rng, 3),
            _ => body["filter"] = filter::random_declared(&mut self.rng, 3),
        }
        if self.rng.random_bool(0.2) {
            body["limit"] = json!(self.rng.random_range(1..6));
        }
        match self.rng.random_range(0..6) {
            0 => self.ask_breakdown(meter, body, (to - from).into()).await,
            1 => self.ask_events(body).await,
            2 => self.ask_dimension(meter, body).await,
            _ => self.ask_buckets(meter, body, to - from).await,
        }
    }

    fn chosen(&self, meter: &str, body: &Value) -> Vec<&Event> {
        let (from, to) = (filter::micros(&text_of(&body["from"])), filter::micros(&text_of(&body["to"])));
        let events = self.events[meter].iter();
        events
            .filter(|event| from <= event.time && event.time < to)
            .filter(|event| body["subject"].as_str().is_none_or(|subject| subject == event.subject))
            .filter(|event| body["filter"].is_null() || matches(&body["filter"], event))
            .collect()
    }

    async fn ask_buckets(&mut self, meter: &str, mut body: Value, length: i64) {
        let mut sizes = vec!["month", "day"];
        if length <= 31 * 24 * HOUR {
            sizes.push("hour");
        }
        let calendar = match self.rng.random_bool(0.4) {
            true => Calendar::plain(sizes.choose(&mut self.rng).expect("some")),
            false => Calendar::random(&mut self.rng, length, filter::micros("2026-06-01T00:00:00Z")),
        };
        let mut fields = vec!["subject", "region", "code", "ok", "svc.tier", "zone-name", "size"];
        fields.shuffle(&mut self.rng);
        fields.truncate(*[0, 0, 1, 1, 2, 5].choose(&mut self.rng).expect("some"));
        calendar.ask(&mut body);
        body["group_by"] = json!(fields);
        body["limit"] = body["limit"].as_i64().map_or(json!(1000), |limit| json!(limit));

        let mut rows: BTreeMap<(i64, Vec<String>), Vec<&Event>> = BTreeMap::new();
        for event in self.chosen(meter, &body) {
            let group = fields.iter().map(|field| field_of(event, field).unwrap_or("<nil>".to_string()));
            rows.entry((calendar.bucket(event.time).0, group.collect())).or_default().push(event);
        }
        let limit = body["limit"].as_u64().expect("a number") as usize;
        let wanted: Vec<(String, Value, BigDecimal)> = rows
            .iter()
            .take(limit)
            .map(|((start, group), events)| {
                let names = fields.iter().map(|field| field.to_string());
                let group: Map<String, Value> = names.zip(group.iter().map(|text| json!(text))).collect();
                {
                    let (from, to) = calendar.bucket(*start);
                    (calendar.text(from), json!(group), value(meter, events, (to - from).into()))
                }
            })
            .collect();
        let answer = self.workspace.post("/v1/usages/search", &body).await.expect(200);
        let got: Vec<Value> = serde_json::from_str(&answer.text).expect("a list");
        assert_eq!(got.len(), wanted.len(), "{body}\n{got:?}\n{wanted:?}");
        for (got, (start, group, quantity)) in got.iter().zip(&wanted) {
            assert_eq!(got["bucket_start"], *start, "{body}");
            assert_eq!(got["bucket_size"], calendar.size, "{body}");
            assert_eq!(got["time_zone"].as_str(), calendar.zone(), "{body}");
            assert_eq!(got.get("group").unwrap_or(&json!({})), group, "{body}");
            same(&got["quantity"], quantity, &body);
        }
        // the same from raw events: no rollup knows a quantity
        let all = json!({"type": "condition", "field": "quantity", "op": "exists"});
        let rules: Vec<Value> =
            [all, body["filter"].clone()].into_iter().filter(|rule| !rule.is_null()).collect();
        let mut raw = body.clone();
        raw["filter"] = json!({"type": "group", "op": "and", "rules": rules});
        let again = self.workspace.post("/v1/usages/search", &raw).await.expect(200);
        assert_eq!(answer.text, again.text, "rollups and raw events differ: {body}");
        if body["filter"].is_null() {
            self.ask_by_parameters(&body, &fields).await;
        }
    }

    /// The query form with `metadata.*` parameters against the search form.
    async fn ask_by_parameters(&mut self, body: &Value, fields: &[&str]) {
        let (path, values) = filter::declared().choose(&mut self.rng).expect("some").clone();
        let value = values.choose(&mut self.rng).expect("some").clone();
        let text = |name: &str| text_of(&body[name]).replace('+', "%2B");
        let mut query = format!(
            "/v1/usages?meter={}&from={}&to={}&bucket_size={}&group_by={}&limit={}",
            text("meter"),
            text("from"),
            text("to"),
            text("bucket_size"),
            fields.join(","),
            text("limit"),
        );
        for name in ["time_zone", "anchor", "week_start"] {
            if !body[name].is_null() {
                query.push_str(&format!("&{name}={}", text(name)));
            }
        }
        if !body["subject"].is_null() {
            query.push_str(&format!("&subject={}", text("subject")));
        }
        if value != "" && !value.is_number() {
            let encoded: String = text_of(&value).bytes().map(|byte| format!("%{byte:02x}")).collect();
            query.push_str(&format!("&metadata.{path}={encoded}"));
        }
        let mut body = body.clone();
        if value != "" && !value.is_number() {
            body["filter"] =
                json!({"type": "condition", "field": format!("metadata.{path}"), "op": "eq", "value": value});
        }
        let by_search = self.workspace.post("/v1/usages/search", &body).await.expect(200).text;
        assert_eq!(self.workspace.get(&query).await.expect(200).text, by_search, "{query}");
    }

    async fn ask_breakdown(&mut self, meter: &str, mut body: Value, length: BigDecimal) {
        let fields = ["subject", "region", "code", "ok", "svc.tier", "size"];
        let field = *fields.choose(&mut self.rng).expect("some");
        body["field"] = json!(field);
        let mut rows: BTreeMap<String, Vec<&Event>> = BTreeMap::new();
        for event in self.chosen(meter, &body) {
            if let Some(text) = field_of(event, field).filter(|text| !text.is_empty()) {
                rows.entry(text).or_default().push(event);
            }
        }
        let mut wanted: Vec<(String, BigDecimal, usize)> = rows
            .iter()
            .map(|(text, events)| (text.clone(), value(meter, events, length.clone()), events.len()))
            .collect();
        wanted.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
        wanted.truncate(body["limit"].as_u64().unwrap_or(100) as usize);
        let answer = self.workspace.post("/v1/usages/breakdowns/search", &body).await.json(200);
        let got = answer["items"].as_array().expect("items");
        assert_eq!(got.len(), wanted.len(), "{body}\n{answer}\n{wanted:?}");
        for (got, (text, quantity, events)) in got.iter().zip(&wanted) {
            assert_eq!(
                (text_of(&got["value"]), got["events"].as_u64()),
                (text.clone(), Some(*events as u64)),
                "{body}"
            );
            same(&got["quantity"], quantity, &body);
        }
    }

    async fn ask_dimension(&mut self, meter: &str, mut body: Value) {
        body["filter"] = Value::Null;
        let field = *["region", "code", "ok", "svc.tier", "size"].choose(&mut self.rng).expect("some");
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for event in self.chosen(meter, &body) {
            if let Some(text) = field_of(event, field).filter(|text| !text.is_empty()) {
                *counts.entry(text).or_default() += 1;
            }
        }
        let mut wanted: Vec<Value> = counts
            .into_iter()
            .map(|(value, events)| json!({"field": field, "value": value, "events": events}))
            .collect();
        wanted.sort_by_key(|row| std::cmp::Reverse(row["events"].as_u64()));
        let subject = body["subject"].as_str().unwrap_or_default();
        let (from, to) = (text_of(&body["from"]), text_of(&body["to"]));
        let path = format!(
            "/v1/usages/dimensions?meter={meter}&field={field}&from={from}&to={to}&subject={subject}"
        );
        let answer = self.workspace.get(&path).await.json(200);
        assert_eq!(answer["items"], json!(wanted), "{path}");
    }

    /// Raw events over some or all meters, in pages.
    async fn ask_events(&mut self, mut body: Value) {
        if self.rng.random_bool(0.4) {
            drop(body.as_object_mut().expect("an object").remove("meter"));
        }
        body["limit"] = json!(self.rng.random_range(1..400));
        let meters = AGGREGATIONS.iter().filter(|meter| body["meter"].is_null() || body["meter"] == **meter);
        let mut wanted: Vec<&Event> = meters.flat_map(|meter| self.chosen(meter, &body)).collect();
        wanted.sort_by(|a, b| (b.time, &b.id).cmp(&(a.time, &a.id)));
        let wanted: Vec<&str> = wanted.iter().map(|event| event.id.as_str()).collect();
        let (mut got, mut sizes) = (Vec::new(), Vec::new());
        loop {
            let answer = self.workspace.post("/v1/usageevents/search", &body).await.json(200);
            let items = answer["items"].as_array().expect("items");
            sizes.push(items.len());
            got.extend(items.iter().map(|item| text_of(&item["id"])));
            match answer.get("next_cursor") {
                Some(cursor) => body["cursor"] = cursor.clone(),
                None => break,
            }
        }
        assert_eq!(got, wanted, "{body}");
        let full = sizes.split_last().expect("a page").1;
        assert!(
            full.iter().all(|size| *size as u64 == body["limit"].as_u64().expect("a number")),
            "{sizes:?}"
        );
    }
}

fn field_of(event: &Event, field: &str) -> Option<String> {
    match field {
        "subject" => Some(event.subject.clone()),
        path => at_path(&event.metadata, path).filter(|value| !value.is_null()).map(text_of),
    }
}

fn value(aggregation: &str, events: &[&Event], length: BigDecimal) -> BigDecimal {
    let quantities = || events.iter().map(|event| &event.quantity);
    let sum = || quantities().fold(BigDecimal::from(0), |sum, quantity| sum + quantity);
    let count = BigDecimal::from(events.len() as u64);
    let by_time = |event: &&&Event| (event.time, event.id.clone());
    match aggregation {
        "sum" => sum(),
        "count" => count,
        "avg" => sum() / count,
        "min" => quantities().min().expect("an event").clone(),
        "max" => quantities().max().expect("an event").clone(),
        "first" => events.iter().min_by_key(by_time).expect("an event").quantity.clone(),
        "last" => events.iter().max_by_key(by_time).expect("an event").quantity.clone(),
        _ => count * BigDecimal::from(SECOND) / length,
    }
}

/// Equal, or as equal as 34 digits are after a division.
#[track_caller]
fn same(got: &Value, wanted: &BigDecimal, question: &Value) {
    let got = number(got);
    let difference = (&got - wanted).abs();
    let allowed = wanted.abs() * "1e-33".parse::<BigDecimal>().expect("a number");
    assert!(difference <= allowed, "{got} instead of {wanted}: {question}");
}

/// PostgreSQL counts the sequential scans of each table: with enough rows, none may hit events or rollups. How
/// SQLite plans the same statements is tested beside them.
async fn hot_queries_use_indexes(database: Database) {
    if matches!(database, Database::Sqlite { .. }) {
        return;
    }
    let mut server = Server::start_to_be_restarted(&database);
    let workspace = server.workspace().await;
    for meter in ["a", "b", "c"] {
        let dimensions = json!([dimension("region", &json!("x"))]);
        let body = json!({"name": meter, "unit": "u", "dimensions": dimensions});
        workspace.post("/v1/meters", &body).await.expect(201);
    }
    let start = filter::micros("2026-06-01T00:00:00Z");
    for batch in 0..12 {
        let events: Vec<Value> = (0..1000)
            .map(|n| {
                let at = batch * 1000 + n;
                let meter = ["a", "b", "c"][(at % 3) as usize];
                json!({"meter": meter, "subject": format!("s{}", at % 97), "quantity": 1,
                    "timestamp": time_text(start + at * 200 * SECOND), "metadata": {"region": format!("r{}", at % 5)}})
            })
            .collect();
        workspace.post("/v1/usages/bulk", &json!(events)).await.expect(201);
    }
    database.lines("ANALYZE");
    // the planner is right to scan an empty partition
    let scans = "SELECT s.relname || ' ' || s.seq_scan AS line FROM pg_stat_user_tables s
                 JOIN pg_class c ON c.oid = s.relid
                 WHERE (s.relname LIKE 'events%' OR s.relname = 'rollups') AND c.reltuples > 0 ORDER BY 1";
    // writers may look into empty tables; what they did is counted when their connections have ended
    server.terminate();
    until_alone(&database).await;
    let before = database.lines(scans);
    server.restart();
    let window = "from=2026-06-03T00:10:00Z&to=2026-06-09T12:34:56Z";
    for path in [
        format!("/v1/usages?meter=a&{window}"),
        format!("/v1/usages?meter=a&{window}&bucket_size=hour&group_by=region"),
        format!("/v1/usages?meter=a&{window}&subject=s5"),
        "/v1/usages?meter=a&from=2026-06-03T00:00:00Z&to=2026-06-04T00:00:00Z&group_by=subject".to_string(),
        format!("/v1/usages/dimensions?meter=a&field=region&subject=s7&{window}"),
        "/v1/usageevents?limit=20".to_string(),
        "/v1/usageevents?limit=20&meter=b".to_string(),
        "/v1/usageevents?limit=20&meter=b&subject=s5".to_string(),
        "/v1/usageevents?limit=20&subject=s5".to_string(),
    ] {
        workspace.get(&path).await.expect(200);
    }
    let narrow = json!({"meter": "a", "from": "2026-06-05T00:00:00Z", "to": "2026-06-05T06:00:00Z", "field": "region",
        "filter": {"type": "condition", "field": "quantity", "op": "gt", "value": 0}});
    workspace.post("/v1/usages/breakdowns/search", &narrow).await.expect(200);
    let by_key =
        json!({"filter": {"type": "condition", "field": "idempotency_key", "op": "eq", "value": "none"}});
    workspace.post("/v1/usageevents/search", &by_key).await.expect(200);
    server.terminate();
    until_alone(&database).await;
    assert_eq!(database.lines(scans), before, "a hot query scanned a whole table");
}

/// PostgreSQL ends a connection some time after its client has gone.
async fn until_alone(database: &Database) {
    let others = "SELECT CAST(count(*) AS text) AS line FROM pg_stat_activity
                  WHERE datname = current_database() AND pid <> pg_backend_pid()";
    for _ in 0..600 {
        if database.lines(others) == ["0"] {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("connections of a server that has gone stay open");
}

/// A service that writes its meters anew at each start must not make its rollups grow.
async fn changes_without_meaning_make_no_sets(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    let mut dimensions = vec![dimension("region", &json!("x"))];
    let body = json!({"name": "a", "unit": "u", "dimensions": dimensions});
    let made = workspace.post("/v1/meters", &body).await.json(201);
    let path = format!("/v1/meters/{}", made["id"].as_str().expect("an id"));
    let changes = [
        json!({"description": "d"}),
        json!({"unit": "v"}),
        json!({"aggregation": "max"}),
        json!({"event_retention_days": 9}),
        json!({"dimensions": dimensions}),
        json!({"aggregation": "sum"}),
    ];
    for change in &changes {
        let events: Vec<Value> = (0..3).map(|n| sized_event(n, 1)).collect();
        workspace.post("/v1/usages/bulk", &json!(events)).await.expect(201);
        workspace.put(&path, change).await.expect(200);
    }
    assert_eq!(database.count("dimension_sets"), 3);

    dimensions.push(dimension("size", &json!(1)));
    workspace.put(&path, &json!({"dimensions": dimensions})).await.expect(200);
    workspace.post("/v1/usages/bulk", &json!([sized_event(0, 1), sized_event(0, 2)])).await.expect(201);
    assert_eq!(database.count("dimension_sets"), 5, "a new dimension is a new meaning");
    for (field, wanted) in
        [("region", json!({"r0": 8, "r1": 6, "r2": 6})), ("size", json!({"1": 19, "2": 1}))]
    {
        let june = json!({"meter": "a", "from": "2026-06-01T00:00:00Z", "to": "2026-07-01T00:00:00Z", "field": field});
        let answer = workspace.post("/v1/usages/breakdowns/search", &june).await.json(200);
        let items = answer["items"].as_array().expect("items");
        let got: Map<String, Value> = items
            .iter()
            .map(|item| (item["value"].as_str().expect("text").to_string(), item["events"].clone()))
            .collect();
        assert_eq!(Value::Object(got), wanted, "{field}");
    }
}

fn sized_event(region: usize, size: usize) -> Value {
    json!({"meter": "a", "subject": "s", "quantity": 1, "timestamp": "2026-06-05T10:00:00Z",
        "metadata": {"region": format!("r{region}"), "size": size}})
}

/// Whatever the meter aggregates: the events that its own values are made of are not read.
async fn values_of_a_dimension_are_counted_from_sums(database: Database) {
    let server = Server::start(&database);
    let ws = server.workspace().await;
    let body = json!({"name": "people", "unit": "u", "aggregation": "unique_count", "aggregation_field": "user",
                      "dimensions": [{"name": "region", "type": "string"}]});
    ws.post("/v1/meters", &body).await.expect(201);
    for (region, user) in [("eu", "ann"), ("us", "ann"), ("eu", "bob")] {
        let event = json!({"meter": "people", "subject": "s", "quantity": 1, "timestamp": "2026-06-01T12:00:00Z",
                           "metadata": {"region": region, "user": user}});
        ws.post("/v1/usages", &event).await.expect(201);
    }
    let values = async || {
        let found = ws.get("/v1/usages/dimensions?meter=people&field=region").await.json(200);
        let items = found["items"].as_array().expect("a list").iter();
        items.map(|item| (item["value"].clone(), item["events"].clone())).collect::<Vec<_>>()
    };
    let wanted = [(json!("eu"), json!(2)), (json!("us"), json!(1))];
    assert_eq!(values().await, wanted);
    database.execute("DELETE FROM events");
    assert_eq!(values().await, wanted);
}
