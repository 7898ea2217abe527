//! `/v1/meters`: what a meter may be, what of it may change once it has events, and who sees it.

use serde_json::{Value, json};

use crate::alerts::{destination, rule, use_meter};
use crate::support::client::NOON;
use crate::support::{Client, Database, Server, Workspace, on_both_databases};

on_both_databases!(
    a_meter_is_made_read_changed_and_deleted,
    bad_meters_are_refused_whole,
    a_name_is_taken_once,
    events_hold_the_dimensions_still,
    a_meter_in_use_stays,
    a_deleted_meter_leaves_no_total_behind,
    a_change_is_obeyed_by_the_next_event,
    keys_reach_their_meters_only,
    pages_go_by_name,
    an_expression_makes_the_quantity,
);

fn path(meter: &Value) -> String {
    format!("/v1/meters/{}", meter["id"].as_str().expect("an id"))
}

fn dimension(name: &str, kind: &str, required: bool) -> Value {
    json!({"name": name, "type": kind, "required": required})
}

async fn make(client: &Client, body: Value) -> Value {
    client.post("/v1/meters", &body).await.json(201)
}

async fn names(client: &Client, query: &str) -> Vec<String> {
    let page = client.get(&format!("/v1/meters?{query}")).await.json(200);
    let items = page["items"].as_array().expect("a list").iter();
    items.map(|meter| meter["name"].as_str().expect("a name").to_owned()).collect()
}

async fn a_meter_is_made_read_changed_and_deleted(database: Database) {
    let server = Server::start(&database);
    let ws = server.workspace().await;
    let made = make(&ws, json!({"name": " calls ", "unit": " call ", "dimensions": [{"name": "net.zone-id", "type": "string"}]})).await;
    assert_eq!((&made["name"], &made["unit"]), (&json!("calls"), &json!("call")), "texts are trimmed");
    assert_eq!((&made["aggregation"], &made["event_retention_days"]), (&json!("sum"), &json!(90)));
    assert_eq!(
        made["dimensions"],
        json!([{"name": "net.zone-id", "display_name": "Net Zone Id", "description": "", "type": "string",
                "required": true, "deprecated": false}])
    );
    assert_eq!(ws.get(&path(&made)).await.json(200), made);

    let change =
        json!({"unit": "request", "event_retention_days": 3650, "name": "renamed", "description": null});
    let changed = ws.put(&path(&made), &change).await.json(200);
    let mut wanted = made.clone();
    wanted["unit"] = json!("request");
    wanted["event_retention_days"] = json!(3650);
    assert_eq!(changed, wanted, "a name never changes, and null means unchanged");
    assert_eq!(ws.get(&path(&made)).await.json(200), wanted);

    ws.delete(&path(&made)).await.expect(204);
    ws.delete(&path(&made)).await.error(404, "not_found");
    ws.get(&path(&made)).await.error(404, "not_found");
    ws.put(&path(&made), &change).await.error(404, "not_found");
    assert_eq!(names(&ws, "").await, [""; 0]);
}

async fn bad_meters_are_refused_whole(database: Database) {
    let server = Server::start(&database);
    let ws = server.workspace().await;
    let twice = [dimension("a", "string", true), dimension(" a ", "number", false)];
    let many: Vec<Value> = (0..101).map(|at| dimension(&format!("d{at}"), "string", false)).collect();
    for (field, value) in [
        ("name", json!("  ")),
        ("name", json!("x".repeat(201))),
        ("unit", json!("")),
        ("unit", json!("x".repeat(201))),
        ("description", json!("x".repeat(4097))),
        ("aggregation", json!("SUM")),
        ("aggregation", json!("median")),
        ("event_retention_days", json!(-1)),
        ("event_retention_days", json!(3651)),
        ("dimensions", json!([dimension("", "string", true)])),
        ("dimensions", json!([dimension("a..b", "string", true)])),
        ("dimensions", json!([dimension("a b", "string", true)])),
        ("dimensions", json!([dimension("subject", "string", true)])),
        ("dimensions", json!([dimension("a", "text", true)])),
        ("dimensions", json!([{"name": "a"}])),
        ("dimensions", json!(twice)),
        ("dimensions", json!(many)),
    ] {
        let mut body = json!({"name": "m", "unit": "u"});
        body[field] = value;
        let message = ws.post("/v1/meters", &body).await.error(400, "invalid_input");
        assert!(!message.contains("panic"), "{message}");
    }
    for (field, value) in
        [("event_retention_days", json!(1.5)), ("dimensions", json!("a")), ("name", json!(7))]
    {
        let mut body = json!({"name": "m", "unit": "u"});
        body[field] = value;
        ws.post("/v1/meters", &body).await.error(400, "invalid_json");
    }
    assert_eq!(database.count("meters"), 0);
    // a refused change leaves the meter as it was
    let made = make(&ws, json!({"name": "m", "unit": "u"})).await;
    let change = json!({"unit": "other", "dimensions": [dimension("a", "text", true)]});
    ws.put(&path(&made), &change).await.error(400, "invalid_input");
    assert_eq!(ws.get(&path(&made)).await.json(200), made);
}

async fn a_name_is_taken_once(database: Database) {
    let server = Server::start(&database);
    let (ws, other) = (server.workspace().await, server.workspace().await);
    let body = json!({"name": "calls", "unit": "call"});
    let calls = (0..8).map(|_| {
        let (client, body) = (ws.key.clone(), body.clone());
        tokio::spawn(async move { client.post("/v1/meters", &body).await.status })
    });
    let mut statuses = Vec::new();
    for call in calls.collect::<Vec<_>>() {
        statuses.push(call.await.expect("no panic"));
    }
    statuses.sort_unstable();
    assert_eq!(statuses, [201, 409, 409, 409, 409, 409, 409, 409]);
    let message = ws.post("/v1/meters", &body).await.error(409, "conflict");
    assert!(message.contains("calls") && !message.to_lowercase().contains("unique"), "{message}");
    make(&other, body).await;
    // names are told apart byte by byte
    make(&ws, json!({"name": "Calls", "unit": "call"})).await;
    assert_eq!(names(&ws, "").await, ["Calls", "calls"]);
}

async fn events_hold_the_dimensions_still(database: Database) {
    let server = Server::start(&database);
    let ws = server.workspace().await;
    let old = [dimension("a", "string", true), dimension("b", "number", false)];
    let made = make(&ws, json!({"name": "m", "unit": "u", "dimensions": old})).await;
    let change = async |dimensions: Value| ws.put(&path(&made), &json!({"dimensions": dimensions})).await;
    // nothing is stored yet: everything goes, and back
    change(json!([dimension("c", "boolean", true)])).await.expect(200);
    change(json!(old)).await.expect(200);
    let event =
        json!({"meter": "m", "subject": "s", "quantity": 1, "timestamp": NOON, "metadata": {"a": "x"}});
    ws.post("/v1/usages", &event).await.expect(201);
    for (refused, word) in [
        (json!([]), "removed"),
        (json!([old[0]]), "removed"),
        (json!([dimension("a", "number", true), old[1]]), "type"),
        (json!([old[0], dimension("b", "number", true)]), "required"),
        (json!([old[0], old[1], dimension("c", "string", true)]), "required"),
    ] {
        let message = change(refused).await.error(409, "conflict");
        assert!(message.contains(word), "{message}");
    }
    // what strands no event is allowed
    let optional = dimension("c", "string", false);
    let mut deprecated = old[0].clone();
    deprecated["deprecated"] = json!(true);
    let changed = change(json!([deprecated, old[1], optional])).await.json(200);
    assert_eq!(changed["dimensions"][0]["deprecated"], json!(true));
    ws.put(&path(&made), &json!({"unit": "other", "aggregation": "max"})).await.expect(200);
    assert_eq!(ws.total("m").await, "1", "events written before are read by the new aggregation");
}

async fn a_meter_in_use_stays(database: Database) {
    let server = Server::start(&database);
    let ws = server.workspace().await;
    let watched = make(&ws, json!({"name": "watched", "unit": "u"})).await;
    let used = make(&ws, json!({"name": "used", "unit": "u"})).await;
    let to = destination(&ws, "http://127.0.0.1:9/x").await;
    let rule = rule(&ws, "watched", &to, json!({})).await;
    use_meter(&ws, "used", 1).await;
    ws.delete(&path(&watched)).await.error(409, "conflict");
    ws.delete(&path(&used)).await.error(409, "conflict");
    ws.delete(&crate::alerts::path(&rule)).await.expect(204);
    ws.delete(&path(&watched)).await.expect(204);
    assert_eq!(names(&ws, "").await, ["used"]);
}

async fn a_deleted_meter_leaves_no_total_behind(database: Database) {
    let server = Server::start(&database);
    let ws = server.workspace().await;
    let made = make(&ws, json!({"name": "m", "unit": "u", "event_retention_days": 1})).await;
    // older than the retention: pruning keeps the total and takes the event
    let event = json!({"meter": "m", "subject": "s", "quantity": 7, "timestamp": NOON});
    ws.post("/v1/usages", &event).await.expect(201);
    ws.post_text("/v1/usageevents/prune", "").await.expect(200);
    assert_eq!((ws.total("m").await.as_str(), database.count("events")), ("7", 0));
    ws.delete(&path(&made)).await.expect(204);
    make(&ws, json!({"name": "m", "unit": "u"})).await;
    assert_eq!(ws.total("m").await, "0");
    for table in ["rollups", "rollup_deltas", "rollup_facets", "rollup_subjects"] {
        assert_eq!(database.count(table), 0, "{table}");
    }
}

/// Meters are cached where events are written; the server that changed one must not go by the old one.
async fn a_change_is_obeyed_by_the_next_event(database: Database) {
    let server = Server::start(&database);
    let ws = server.workspace().await;
    let made = make(&ws, json!({"name": "m", "unit": "u"})).await;
    for required in [true, false, true, false] {
        let dimensions = json!({"dimensions": [dimension("a", "string", required)]});
        ws.put(&path(&made), &dimensions).await.expect(200);
        let event = json!({"meter": "m", "subject": "s", "quantity": 1, "timestamp": NOON});
        // a refused event is none, so the dimension may still change
        if required {
            ws.post("/v1/usages", &event).await.error(400, "invalid_input");
        }
    }
    let event = json!({"meter": "m", "subject": "s", "quantity": 1, "timestamp": NOON});
    ws.post("/v1/usages", &event).await.expect(201);
}

async fn keys_reach_their_meters_only(database: Database) {
    let server = Server::start(&database);
    let ws = server.workspace().await;
    let (mine, other) = (
        make(&ws, json!({"name": "mine", "unit": "u"})).await,
        make(&ws, json!({"name": "other", "unit": "u"})).await,
    );
    let key = async |body: Value| {
        let made = ws.session.post("/v1/auth/api-keys", &body).await.json(201);
        server.client().with_key(made["key"].as_str().expect("the secret"))
    };
    let some = key(json!({"name": "k", "scopes": ["meters:*"], "allowed_meters": ["mine", "new"]})).await;
    some.get(&path(&mine)).await.expect(200);
    some.get("/v1/meters?name=mine").await.expect(200);
    some.put(&path(&mine), &json!({"unit": "v"})).await.expect(200);
    some.get(&path(&other)).await.error(403, "forbidden");
    some.put(&path(&other), &json!({"unit": "v"})).await.error(403, "forbidden");
    some.delete(&path(&other)).await.error(403, "forbidden");
    some.get("/v1/meters").await.error(403, "forbidden");
    some.post("/v1/meters", &json!({"name": "foreign", "unit": "u"})).await.error(403, "forbidden");
    some.post("/v1/meters", &json!({"name": "new", "unit": "u"})).await.expect(201);
    // reading does not include writing, nor the other way round
    let reader = key(json!({"name": "r", "scopes": ["meters:read"]})).await;
    reader.get("/v1/meters").await.expect(200);
    reader.delete(&path(&mine)).await.error(403, "forbidden");
    let writer = key(json!({"name": "w", "scopes": ["meters:write"]})).await;
    writer.get(&path(&mine)).await.error(403, "forbidden");
    writer.delete(&path(&mine)).await.expect(204);
    server.client().get("/v1/meters").await.error(401, "unauthorized");
}

async fn pages_go_by_name(database: Database) {
    let server = Server::start(&database);
    let ws: Workspace = server.workspace().await;
    for name in ["b", "ä", "a", "Z", "a.b", "c"] {
        make(&ws, json!({"name": name, "unit": "u"})).await;
    }
    let mut seen = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = ws.get(&format!("/v1/meters?limit=2&cursor={cursor}")).await.json(200);
        let items = page["items"].as_array().expect("a list");
        assert!(items.len() <= 2);
        seen.extend(items.iter().map(|meter| meter["name"].as_str().expect("a name").to_owned()));
        let Some(next) = page.get("next_cursor") else { break };
        cursor = next.as_str().expect("a text").to_owned();
    }
    assert_eq!(seen, ["Z", "a", "a.b", "b", "c", "ä"]);
    assert_eq!(names(&ws, "name=a").await, ["a"]);
    assert_eq!(names(&ws, "name=nosuch").await, [""; 0]);
}

async fn an_expression_makes_the_quantity(database: Database) {
    let server = Server::start(&database);
    let ws = server.workspace().await;
    let bad = json!({"name": "m", "unit": "u", "value_expression": "quantity +* 2"});
    let message = ws.post("/v1/meters", &bad).await.error(400, "invalid_input");
    assert!(message.contains("value_expression, position 11"), "{message}");
    let terms = "if(metadata.cached, 0.1, 1) * (metadata.tokens.in + 4 * coalesce(metadata.tokens.out, 0))";
    let meter =
        make(&ws, json!({"name": "cost", "unit": "u", "value_expression": format!(" {terms} ")})).await;
    assert_eq!(meter["value_expression"], terms);
    assert_eq!(ws.get(&path(&meter)).await.json(200)["value_expression"], terms);
    let event = |key: &str, quantity: Value, metadata: Value| {
        json!({"meter": "cost", "subject": "s", "quantity": quantity, "timestamp": NOON,
               "idempotency_key": key, "metadata": metadata})
    };
    let sent = event("a", json!(7), json!({"tokens": {"in": 10, "out": 3}, "cached": true}));
    let stored = ws.post("/v1/usages", &sent).await.json(201);
    assert_eq!(stored["quantity"].to_string(), "2.2");
    assert_eq!(stored["metadata"]["quantity_sent"], 7);
    // nothing needs to be sent that the expression does not look at
    let stored =
        ws.post("/v1/usages", &event("b", Value::Null, json!({"tokens": {"in": 5}}))).await.json(201);
    assert_eq!((&stored["quantity"], &stored["metadata"]["quantity_sent"]), (&json!(5), &json!(0)));
    assert_eq!(ws.total("cost").await, "7.2");
    for (key, metadata, said) in [
        ("c", json!({}), "gives no value"),
        ("d", json!({"tokens": {"in": "x"}}), "position"),
        ("e", json!({"tokens": {"in": -5}}), "must be greater than 0"),
        ("f", json!({"tokens": {"in": 1}, "quantity_sent": 3}), "quantity_sent"),
    ] {
        let message =
            ws.post("/v1/usages", &event(key, json!(1), metadata)).await.error(400, "invalid_input");
        assert!(message.contains(said), "{message}");
    }
    // a retry is the same event, whatever the expression is by then
    ws.put(&path(&meter), &json!({"value_expression": "quantity * 2"})).await.expect(200);
    let again = ws.post("/v1/usages", &sent).await.expect(201);
    assert_eq!(
        (again.header("idempotency-replayed"), again.header("idempotency-conflict")),
        ("true".into(), String::new())
    );
    let dry = ws.post("/v1/usages?dry_run=true", &event("g", json!(4), json!({}))).await.json(200);
    assert_eq!(dry["items"][0]["event"]["quantity"], 8);
    let bulk = json!([event("g", json!(4), json!({})), event("h", json!(0), json!({}))]);
    let bulk = ws.post("/v1/usages/bulk", &bulk).await.json(201);
    assert_eq!((&bulk["accepted"], &bulk["failed"]), (&json!(1), &json!(1)));
    assert_eq!(ws.total("cost").await, "15.2");
    ws.put(&path(&meter), &json!({"value_expression": ""})).await.expect(200);
    let stored = ws.post("/v1/usages", &event("i", json!(1), json!({}))).await.json(201);
    assert_eq!((&stored["quantity"], &stored["metadata"]), (&json!(1), &json!({})));
    assert_eq!(ws.get(&path(&meter)).await.json(200)["value_expression"], Value::Null);
}
