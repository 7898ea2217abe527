//! The filter language, seen from outside: a slow and obvious reading of it that other tests compare answers with,
//! and what must be refused on every endpoint that takes a filter.

use bigdecimal::BigDecimal;
use rand::Rng;
use rand::seq::IndexedRandom;
use serde_json::{Value, json};

use crate::support::client::{JUNE, NOON};
use crate::support::{Database, Server, on_both_databases};

on_both_databases!(
    wrong_filters_are_refused_everywhere,
    a_filter_has_limits,
    text_of_an_undeclared_field_means_the_same_in_sql,
);

/// A recorded event, as it was sent and answered.
pub struct Event {
    pub id: String,
    pub subject: String,
    pub meter: String,
    /// Microseconds since 1970.
    pub time: i64,
    pub quantity: BigDecimal,
    pub key: Option<String>,
    pub metadata: Value,
}

pub fn number(value: &Value) -> BigDecimal {
    value.to_string().parse().unwrap_or_else(|_| panic!("{value} is a number"))
}

pub fn micros(text: &str) -> i64 {
    text.parse::<jiff::Timestamp>().expect("a time").as_microsecond()
}

pub fn at_path<'a>(metadata: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(metadata, |value, part| value.as_object()?.get(part))
}

pub fn text_of(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_string)
}

/// Whether an event passes a filter.
pub fn matches(filter: &Value, event: &Event) -> bool {
    let rules = || filter["rules"].as_array().expect("rules").iter();
    match (filter["type"].as_str(), filter["op"].as_str()) {
        (Some("group"), Some("and")) => rules().all(|rule| matches(rule, event)),
        (Some("group"), Some("or")) => rules().any(|rule| matches(rule, event)),
        (Some("condition"), Some(op)) => condition(filter, op, event),
        _ => panic!("no filter: {filter}"),
    }
}

fn condition(filter: &Value, op: &str, event: &Event) -> bool {
    let (field, value) = (filter["field"].as_str().expect("a field"), &filter["value"]);
    let held = match field {
        "subject" => Some(json!(event.subject)),
        "meter" => Some(json!(event.meter)),
        "idempotency_key" => event.key.clone().map(Value::from),
        "quantity" => {
            return op == "exists" || compared(op, value, |one| Some(event.quantity.cmp(&as_number(one)?)));
        }
        "timestamp" => return compared(op, value, |one| Some(event.time.cmp(&micros(one.as_str()?)))),
        _ => at_path(&event.metadata, field.strip_prefix("metadata.").expect("a path")).cloned(),
    };
    let Some(held) = held else { return false };
    match op {
        "exists" => true,
        _ if held.is_null() => false,
        "contains" => text_of(&held).contains(&text_of(value)),
        _ => compared(op, value, |one| match (&held, one) {
            (Value::String(a), Value::String(b)) => Some(a.as_bytes().cmp(b.as_bytes())),
            (Value::Number(_), Value::Number(_)) => Some(number(&held).cmp(&number(one))),
            (Value::Bool(a), Value::Bool(b)) if a == b => Some(std::cmp::Ordering::Equal),
            _ => None,
        }),
    }
}

fn as_number(value: &Value) -> Option<BigDecimal> {
    text_of(value).parse().ok()
}

fn compared(op: &str, value: &Value, compare: impl Fn(&Value) -> Option<std::cmp::Ordering>) -> bool {
    let is = |holds: fn(std::cmp::Ordering) -> bool| compare(value).is_some_and(holds);
    match op {
        "eq" => is(|found| found.is_eq()),
        "neq" => !is(|found| found.is_eq()),
        "gt" => is(|found| found.is_gt()),
        "gte" => is(|found| found.is_ge()),
        "lt" => is(|found| found.is_lt()),
        "lte" => is(|found| found.is_le()),
        "in" => {
            let values = value.as_array().expect("a list");
            values.iter().any(|one| compare(one).is_some_and(std::cmp::Ordering::is_eq))
        }
        _ => panic!("op {op}"),
    }
}

/// Paths of declared dimensions, with values that events may have there.
pub fn declared() -> Vec<(&'static str, Vec<Value>)> {
    let texts = |texts: &[&str]| texts.iter().map(|text| json!(text)).collect();
    vec![
        ("region", texts(&["east", "west", "", "a,b", "ÄÖ_%", "<nil>", "5", "E"])),
        ("code", numbers()),
        ("ok", vec![json!(true), json!(false)]),
        ("svc.tier", texts(&["gold", "free", "=1+1"])),
        ("zone-name", texts(&["z1", "z2", "z3", "Z1"])),
    ]
}

/// Paths that no meter declares.
pub fn undeclared() -> Vec<(&'static str, Vec<Value>)> {
    let list = vec![json!(["x", 1]), json!({"deep": 1}), json!(null), json!("plain"), json!(7), json!(true)];
    vec![("any", list), ("size", numbers())]
}

fn numbers() -> Vec<Value> {
    let texts = ["5", "5.0", "50", "100", "-3", "0.10", "1e3", "100000000000000000000000", "0.0000001"];
    texts.iter().map(|text| serde_json::from_str(text).expect("a number")).collect()
}

/// A filter over declared dimensions, the subject and the meter only.
pub fn random_declared(rng: &mut impl Rng, depth: usize) -> Value {
    random_of(rng, depth, false)
}

/// A filter over anything.
pub fn random(rng: &mut impl Rng, depth: usize) -> Value {
    random_of(rng, depth, true)
}

fn random_of(rng: &mut impl Rng, depth: usize, anything: bool) -> Value {
    if depth > 0 && rng.random_bool(0.4) {
        let rules: Vec<Value> =
            (0..rng.random_range(1..4)).map(|_| random_of(rng, depth - 1, anything)).collect();
        let op = if rng.random_bool(0.5) { "and" } else { "or" };
        return json!({"type": "group", "op": op, "rules": rules});
    }
    let kind = rng.random_range(0..if anything { 10 } else { 6 });
    let (field, values): (String, Vec<Value>) = match kind {
        0 => ("subject".into(), ["s0", "s1", "s2", "S1", "s"].iter().map(|s| json!(s)).collect()),
        1..=5 => {
            let (path, values) = declared().choose(rng).expect("some").clone();
            (format!("metadata.{path}"), values)
        }
        6 => {
            let (path, values) = undeclared().choose(rng).expect("some").clone();
            let values = values.into_iter().filter(|v| !v.is_object() && !v.is_array() && !v.is_null());
            (format!("metadata.{path}"), values.collect())
        }
        7 => ("quantity".into(), [json!(1), json!("2.5"), json!(0.1), json!("1e3")].to_vec()),
        8 => {
            let times =
                ["2026-05-31T23:59:59.999999Z", "2026-06-01T00:00:00Z", "2026-06-01T12:30:00.5+02:00"];
            ("timestamp".into(), times.iter().map(|t| json!(t)).collect())
        }
        _ => ("idempotency_key".into(), ["k1", "k17", "none"].iter().map(|k| json!(k)).collect()),
    };
    let value = || values.clone();
    let op = *["eq", "neq", "gt", "gte", "lt", "lte", "in", "contains", "exists"].choose(rng).expect("some");
    let one = value().choose(rng).expect("some").clone();
    let is_text = one.is_string() && !matches!(field.as_str(), "quantity" | "timestamp");
    let condition =
        |op: &str, value: Value| json!({"type": "condition", "field": field, "op": op, "value": value});
    match op {
        "contains" if !is_text => condition("eq", one),
        "gt" | "gte" | "lt" | "lte" if one.is_boolean() => condition("neq", one),
        "in" => condition("in", json!([one, values.choose(rng)])),
        "exists" if field == "timestamp" => condition("eq", one),
        "contains" => {
            let text = one.as_str().expect("a text");
            let cut = text.chars().take(rng.random_range(1..3)).collect::<String>();
            condition("contains", json!(cut))
        }
        op => condition(op, one),
    }
}

const ENDPOINTS: [&str; 5] = [
    "/v1/usages/search",
    "/v1/usages/export",
    "/v1/usages/breakdowns/search",
    "/v1/usageevents/search",
    "/v1/usageevents/export",
];

async fn wrong_filters_are_refused_everywhere(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("m", "sum").await;
    let condition = |field: &str, op: &str, value: Value| json!({"type": "condition", "field": field, "op": op, "value": value});
    let refused = [
        json!({}),
        json!({"type": "group", "op": "and", "rules": []}),
        condition("timestamp", "gt", json!("yesterday")),
        condition("received_at", "eq", json!(5)),
        condition("quantity", "eq", json!("lots")),
        condition("quantity", "in", json!([1, true])),
        condition("metadata.a", "eq", json!({"b": 1})),
        condition("metadata.a b", "eq", json!(1)),
        condition("subject", "in", json!([])),
    ];
    let malformed = [json!("x"), json!([]), json!({"rules": "x"}), json!({"rules": [1]}), json!({"op": 5})];
    for endpoint in ENDPOINTS {
        let body = |filter: &Value| json!({"meter": "m", "field": "subject", "from": JUNE.0, "to": JUNE.1, "filter": filter});
        for filter in &refused {
            workspace.post(endpoint, &body(filter)).await.error(400, "invalid_input");
        }
        for filter in &malformed {
            workspace.post(endpoint, &body(filter)).await.error(400, "invalid_json");
        }
        workspace.post(endpoint, &body(&Value::Null)).await.expect(200);
    }
}

async fn a_filter_has_limits(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("m", "sum").await;
    let leaf = json!({"type": "condition", "field": "metadata.a", "op": "eq", "value": 1});
    let wide = |count: usize| json!({"type": "group", "op": "or", "rules": vec![leaf.clone(); count]});
    let deep = |levels: usize| {
        let group = |inner, _| json!({"type": "group", "op": "and", "rules": [inner]});
        (1..levels).fold(leaf.clone(), group)
    };
    let long = |count: usize| {
        let subjects = vec!["s"; count];
        json!({"type": "condition", "field": "subject", "op": "in", "value": subjects})
    };
    for endpoint in ENDPOINTS {
        let body = |filter: Value| json!({"meter": "m", "field": "subject", "from": JUNE.0, "to": JUNE.1, "filter": filter});
        for fits in [wide(500), deep(32), long(5_000)] {
            workspace.post(endpoint, &body(fits)).await.expect(200);
        }
        for too_much in [wide(501), deep(33), long(5_001)] {
            workspace.post(endpoint, &body(too_much)).await.error(400, "invalid_input");
        }
        // beyond what the JSON parser follows
        workspace.post(endpoint, &body(deep(200))).await.expect(400);
    }
}

/// What the database adds up by itself is what a look at each event would give, whatever the values look like.
async fn text_of_an_undeclared_field_means_the_same_in_sql(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("calls", "count").await;
    let values = [
        json!("c7"),
        json!("C7"),
        json!("c77"),
        json!(["c7"]),
        json!({"c7": "c7"}),
        json!(null),
        json!("5"),
        json!(5),
        json!(5.0),
        json!("5.0"),
        json!("x\"y\\z"),
        json!("true"),
        json!(true),
        json!("é"),
    ];
    let mut events: Vec<Value> = values
        .iter()
        .map(|value| json!({"meter": "calls", "subject": "s", "quantity": 1, "timestamp": NOON, "metadata": {"class": value}}))
        .collect();
    let others = [
        json!({"other": {"class": "c7"}}),
        json!({"note": "\"class\":\"c7\""}),
        json!({"subclass": "c7"}),
        json!({}),
    ];
    for metadata in others {
        events.push(
            json!({"meter": "calls", "subject": "s", "quantity": 1, "timestamp": NOON, "metadata": metadata}),
        );
    }
    workspace.post("/v1/usages/bulk", &json!(events)).await.expect(201);
    for (text, want) in
        [("c7", 1), ("5", 3), ("5.0", 1), ("x%22y%5Cz", 1), ("true", 2), ("%C3%A9", 1), ("c", 0)]
    {
        let (from, to) = JUNE;
        let path =
            format!("/v1/usages?meter=calls&bucket_size=day&from={from}&to={to}&metadata.class={text}");
        let rows = workspace.get(&path).await.json(200);
        let found = rows.as_array().expect("a list of buckets").first().map(|row| row["quantity"].clone());
        assert_eq!(found, (want > 0).then(|| json!(want)), "{text}: {rows}");
    }
    // a condition asks for a string, whatever else is written like it
    for (texts, want) in [
        (json!(["c7"]), 1),
        (json!(["5"]), 1),
        (json!(["c7", "é", "true"]), 3),
        (json!(["x\"y\\z"]), 1),
        (json!(["c"]), 0),
    ] {
        let (from, to) = JUNE;
        let filter = json!({"type": "condition", "field": "metadata.class", "op": "in", "value": texts});
        let body = json!({"meter": "calls", "bucket_size": "day", "from": from, "to": to, "filter": filter});
        let rows = workspace.post("/v1/usages/search", &body).await.json(200);
        let found = rows.as_array().expect("a list of buckets").first().map(|row| row["quantity"].clone());
        assert_eq!(found, (want > 0).then(|| json!(want)), "{texts}: {rows}");
    }
}
