//! The examples of the OpenAPI document: what a real server answered to a story of one company, kept in
//! `src/http/openapi/examples.json`. Every operation has one; a test says when answers have another shape by now.
//! `OPEN_SPANNER_REGENERATE=1` writes the file anew.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::client::PASSWORD;
use crate::support::{Answer, Client, Database, Server, env, on_both_databases};

on_both_databases!(every_operation_has_an_example_that_is_true);

const FILE: &str = "src/http/openapi/examples.json";
/// What is sent, beside the answers by their status.
const REQUEST: &str = "request";
/// Refusals look alike on every route: theirs stand under this name, by status.
const REFUSALS: &str = "refusals";

/// By operation, then by what it is an example of.
type Examples = BTreeMap<String, BTreeMap<String, Value>>;

fn repository(path: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &str) -> Option<Value> {
    serde_json::from_str(&std::fs::read_to_string(repository(path)).ok()?).ok()
}

/// What the document says that an operation takes and answers, if that is more than a status.
fn wanted() -> Vec<(String, String)> {
    let document = read("docs/openapi.json").expect("the document");
    let mut wanted = Vec::new();
    for (path, methods) in document["paths"].as_object().expect("paths") {
        for (method, operation) in methods.as_object().expect("methods") {
            let route = format!("{} {path}", method.to_uppercase());
            if operation.get("requestBody").is_some() {
                wanted.push((route.clone(), REQUEST.to_owned()));
            }
            for (status, answer) in operation["responses"].as_object().expect("responses") {
                if status.starts_with('2') && answer.get("content").is_some() {
                    wanted.push((route.clone(), status.clone()));
                }
            }
        }
    }
    // a text of its own for programs that read it
    wanted.retain(|(route, _)| route != "GET /metrics");
    wanted
}

/// What the story sends that the document does not know: an example must not teach what is not read.
fn unread_fields(kept: &Examples) -> Vec<String> {
    let document = read("docs/openapi.json").expect("the document");
    let mut unread = Vec::new();
    for (route, kept) in kept {
        let Some((method, path)) = route.split_once(' ') else { continue };
        let operation = &document["paths"][path][method.to_lowercase()];
        let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
        if let Some(sent) = kept.get(REQUEST) {
            look_for_unread(&document, schema, sent, route, &mut unread);
        }
    }
    unread
}

/// What a schema refers to: of one that may be null, the other; of one that has parts, all of them.
fn resolved(document: &Value, schema: &Value) -> Value {
    if let Some(reference) = schema["$ref"].as_str() {
        return resolved(document, document.pointer(reference.trim_start_matches('#')).expect("a schema"));
    }
    if let Some(one) = ["oneOf", "anyOf"].iter().find_map(|of| schema[*of].as_array()) {
        return one
            .iter()
            .find(|one| one["type"] != "null")
            .map_or(Value::Null, |one| resolved(document, one));
    }
    let Some(parts) = schema["allOf"].as_array() else { return schema.clone() };
    let (mut properties, mut required) = (serde_json::Map::new(), Vec::new());
    for part in parts.iter().map(|part| resolved(document, part)) {
        properties.extend(part["properties"].as_object().cloned().unwrap_or_default());
        required.extend(part["required"].as_array().cloned().unwrap_or_default());
    }
    json!({"properties": properties, "required": required})
}

fn look_for_unread(document: &Value, schema: &Value, sent: &Value, at: &str, unread: &mut Vec<String>) {
    let schema = resolved(document, schema);
    match (sent, schema.get("properties")) {
        (Value::Array(values), _) => {
            values.iter().for_each(|one| look_for_unread(document, &schema["items"], one, at, unread));
        }
        (Value::Object(fields), Some(known)) => {
            for (name, value) in fields {
                match known.get(name) {
                    Some(schema) => look_for_unread(document, schema, value, &format!("{at}/{name}"), unread),
                    None => unread.push(format!("{at}/{name}")),
                }
            }
        }
        _ => {}
    }
}

/// Calls routes and keeps what was said.
struct Story {
    kept: Examples,
}

impl Story {
    /// Calls `METHOD pattern?query`, with `ids` in the place of the pattern's parameters.
    async fn call(&mut self, client: &Client, route: &str, ids: &[&str], body: Option<Value>) -> Answer {
        let (route, query) = route.split_once('?').unwrap_or((route, ""));
        let (method, pattern) = route.split_once(' ').expect("a method and a path");
        let mut ids = ids.iter();
        let segments = pattern.split('/').map(|segment| match segment.starts_with('{') {
            true => ids.next().expect("an id"),
            false => segment,
        });
        let path = segments.collect::<Vec<_>>().join("/");
        let path = if query.is_empty() { path } else { format!("{path}?{query}") };
        let verb = Method::from_bytes(method.as_bytes()).expect("a method");
        let answer = client.send(verb, &path, body.as_ref().map(Value::to_string)).await.expect("an answer");
        let value = match serde_json::from_str(&answer.text) {
            Ok(value) => value,
            Err(_) => Value::String(answer.text.clone()),
        };
        let status = answer.status.to_string();
        if answer.status >= 400 {
            self.kept.entry(REFUSALS.to_owned()).or_default().entry(status).or_insert(value);
            return answer;
        }
        let kept = self.kept.entry(route.to_owned()).or_default();
        if let Some(body) = body {
            kept.entry(REQUEST.to_owned()).or_insert(body);
        }
        if !answer.text.is_empty() {
            kept.entry(status).or_insert(value);
        }
        answer
    }

    /// A call that must go well; what it answered.
    async fn ask(&mut self, client: &Client, route: &str, ids: &[&str], body: Option<Value>) -> Value {
        let answer = self.call(client, route, ids, body).await;
        assert!((200..400).contains(&answer.status), "{route} answered {} {}", answer.status, answer.text);
        serde_json::from_str(&answer.text).unwrap_or_default()
    }

    /// Asks until the answer is the one that is worth keeping.
    async fn until(
        &mut self,
        client: &Client,
        route: &str,
        ids: &[&str],
        good: impl Fn(&Value) -> bool,
    ) -> Value {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            self.kept.remove(route.split('?').next().expect("a route"));
            let found = self.ask(client, route, ids, None).await;
            if good(&found) {
                return found;
            }
            assert!(Instant::now() < end, "{route}: {found}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// What was sent and answered in another way.
    fn keep(&mut self, route: &str, body: Option<Value>, answer: &Answer) {
        assert!((200..300).contains(&answer.status), "{route} answered {} {}", answer.status, answer.text);
        let kept = self.kept.entry(route.to_owned()).or_default();
        body.map(|body| kept.insert(REQUEST.to_owned(), body));
        if let Ok(value) = serde_json::from_str(&answer.text) {
            kept.insert(answer.status.to_string(), value);
        }
    }

    fn keep_refusal(&mut self, answer: &Answer) {
        assert!(answer.status >= 400, "{answer:?}");
        let value = serde_json::from_str(&answer.text).expect("an error");
        self.kept.entry(REFUSALS.to_owned()).or_default().entry(answer.status.to_string()).or_insert(value);
    }
}

fn id(value: &Value) -> String {
    value["id"].as_str().unwrap_or_else(|| panic!("no id: {value}")).to_owned()
}

fn items(value: &Value) -> &Vec<Value> {
    value["items"].as_array().expect("a list")
}

async fn every_operation_has_an_example_that_is_true(database: Database) {
    let settings = [
        ("OPEN_SPANNER_SERVE_WORKERS", "on"),
        ("OPEN_SPANNER_WEBHOOK_ALLOWED_NETWORKS", "127.0.0.0/8"),
        // nobody answers there: that a mail is asked for is all that the story tells
        ("OPEN_SPANNER_SMTP_URL", "smtp://127.0.0.1:9"),
        ("OPEN_SPANNER_PUBLIC_URL", "http://localhost:18081"),
        ("OPEN_SPANNER_MAIL_FROM", "usage@example.com"),
        ("OPEN_SPANNER_GITHUB_OAUTH_CLIENT_ID", "client"),
        ("OPEN_SPANNER_GITHUB_OAUTH_CLIENT_SECRET", "secret"),
    ];
    let server = Server::start_with(&database, &settings);
    let mut story = Story { kept: Examples::new() };
    let (owner, key) = sign_up(&mut story, &server).await;
    people(&mut story, &server, &owner).await;
    usage(&mut story, &key).await;
    quotas(&mut story, &key).await;
    let (rule, destination) = alerts(&mut story, &database, &key).await;
    files_and_views(&mut story, &owner, &key).await;
    operations(&mut story, &database, &owner, &key).await;
    story.ask(&key, "DELETE /v1/alerts/{id}", &[&rule], None).await;
    story.ask(&key, "DELETE /v1/alerts/destinations/{id}", &[&destination], None).await;
    refusals(&mut story, &server, &owner, &key).await;
    leaving(&mut story, &database, &server, &owner).await;

    let missing: Vec<_> = wanted()
        .into_iter()
        .filter(|(route, what)| !story.kept.get(route).is_some_and(|kept| kept.contains_key(what)))
        .collect();
    assert!(missing.is_empty(), "operations that the story does not tell: {missing:#?}");
    let unread = unread_fields(&story.kept);
    assert!(unread.is_empty(), "fields that are sent and that nobody reads: {unread:#?}");
    compare(&database, story.kept);
}

/// The first account, a look around, the first key.
async fn sign_up(story: &mut Story, server: &Server) -> (Client, Client) {
    let client = server.client();
    let account = json!({"email": "ada@example.com", "password": PASSWORD});
    story.ask(&client, "GET /v1/auth/providers", &[], None).await;
    story.ask(&client, "POST /v1/auth/users", &[], Some(account.clone())).await;
    let answer = story.call(&client, "POST /v1/auth/sessions", &[], Some(account)).await;
    let cookie = |name: &str| format!("{name}={}", answer.cookie(name).expect("a cookie"));
    let refreshed = client.with("cookie", cookie("open_spanner_refresh"));
    let answer = story.call(&refreshed, "POST /v1/auth/session/refresh", &[], None).await;
    let owner = session_of(&client, &answer);
    for route in ["GET /v1/auth/session", "GET /v1/auth/sessions", "GET /v1/auth/workspaces"] {
        story.ask(&owner, route, &[], None).await;
    }
    let chosen = json!({"time_zone": "Europe/Berlin", "week_start": "monday", "theme": "dark", "density": "compact", "default_range": "7d+today",
                        "shortcuts": true});
    story.ask(&owner, "PUT /v1/auth/preferences", &[], Some(chosen)).await;
    story.ask(&owner, "GET /v1/auth/preferences", &[], None).await;
    let key = json!({"name": "gateway", "scopes": ["*"], "expires_at": "2099-01-01T00:00:00Z"});
    let made = story.ask(&owner, "POST /v1/auth/api-keys", &[], Some(key)).await;
    let overlap = Some(json!({"grace_period_seconds": 3600}));
    let made = story.ask(&owner, "POST /v1/auth/api-keys/{id}/rotate", &[&id(&made)], overlap).await;
    for route in ["GET /v1/auth/api-keys", "GET /v1/auth/api-key-events", "GET /v1/auth/workspace/api-keys"] {
        story.ask(&owner, route, &[], None).await;
    }
    (owner, client.with_key(made["key"].as_str().expect("a secret")))
}

fn session_of(client: &Client, answer: &Answer) -> Client {
    let access = answer.cookie("open_spanner_access").unwrap_or_else(|| panic!("no cookie: {}", answer.text));
    client.with("cookie", format!("open_spanner_access={access}"))
}

/// Somebody joins, gets another role, looks into another workspace and leaves again.
async fn people(story: &mut Story, server: &Server, owner: &Client) {
    let client = server.client();
    story.ask(owner, "PATCH /v1/auth/workspace", &[], Some(json!({"name": "Acme"}))).await;
    let invitation = json!({"email": "grace@example.com", "role": "admin"});
    let made = story.ask(owner, "POST /v1/auth/workspace/invitations", &[], Some(invitation)).await;
    let token = made["token"].as_str().expect("a token").to_owned();
    story.ask(owner, "GET /v1/auth/workspace/invitations", &[], None).await;
    story.ask(&client, "GET /v1/auth/workspace-invitations/{token}", &[&token], None).await;
    let account = json!({"email": "grace@example.com", "password": PASSWORD});
    client.post("/v1/auth/users", &account).await.expect(201);
    let guest = session_of(&client, &client.post("/v1/auth/sessions", &account).await.expect(201));
    let accept = "POST /v1/auth/workspace-invitations/{token}/accept";
    let answer = story.call(&guest, accept, &[&token], None).await.expect(200);
    let guest = session_of(&client, &answer);
    let members = story.ask(owner, "GET /v1/auth/workspace/members", &[], None).await;
    let grace =
        items(&members).iter().find(|member| member["email"] == "grace@example.com").expect("a member");
    let grace = grace["user_id"].as_str().or(grace["id"].as_str()).expect("an id").to_owned();
    let role = Some(json!({"role": "viewer"}));
    story.ask(owner, "PATCH /v1/auth/workspace/members/{user_id}", &[&grace], role).await;
    story.ask(owner, "POST /v1/auth/workspace/owner", &[], Some(json!({"user_id": grace}))).await;
    let ada = owner.get("/v1/auth/session").await.json(200)["user"]["id"].clone();
    guest.post("/v1/auth/workspace/owner", &json!({"user_id": ada})).await.expect(204);
    let places = guest.get("/v1/auth/workspaces").await.json(200);
    let own = items(&places).iter().find(|place| place["name"] != "Acme").expect("an own workspace");
    let body = Some(json!({"workspace_id": own["id"]}));
    story.ask(&guest, "POST /v1/auth/session/workspace", &[], body).await;
}

fn tokens(key: &str, quantity: i64, at: &str) -> Value {
    json!({"idempotency_key": key, "meter": "tokens", "subject": "acme", "quantity": quantity,
        "timestamp": at, "metadata": {"model": "large", "region": "eu"}})
}

const JUNE: &str = "meter=tokens&from=2026-06-01T00:00:00Z&to=2026-07-01T00:00:00Z";

fn in_june(more: Value) -> Value {
    let mut body = json!({"meter": "tokens", "from": "2026-06-01T00:00:00Z", "to": "2026-07-01T00:00:00Z"});
    more.as_object().expect("fields").iter().for_each(|(name, value)| body[name] = value.clone());
    body
}

/// A meter, events by every door, and every question about them.
async fn usage(story: &mut Story, key: &Client) {
    let meter = json!({"name": "tokens", "unit": "token", "aggregation": "sum", "description": "Tokens of the language models",
        "event_retention_days": 400, "dimensions": [
            {"name": "model", "display_name": "Model", "type": "string", "required": true},
            {"name": "region", "display_name": "Region", "type": "string", "required": false}]});
    let made = story.ask(key, "POST /v1/meters", &[], Some(meter.clone())).await;
    story.ask(key, "PUT /v1/meters/{id}", &[&id(&made)], Some(meter)).await;
    story.ask(key, "GET /v1/meters/{id}", &[&id(&made)], None).await;
    let event = tokens("req-7f3a", 1200, "2026-06-10T08:15:00Z");
    story.ask(key, "POST /v1/usages", &[], Some(event.clone())).await;
    story.ask(key, "POST /v1/usages?dry_run=true", &[], Some(event)).await;
    let more = json!([
        tokens("req-7f3b", 300, "2026-06-10T09:00:00Z"),
        tokens("req-7f3c", 450, "2026-06-11T17:30:00Z")
    ]);
    story.ask(key, "POST /v1/usages/bulk", &[], Some(more.clone())).await;
    story.ask(key, "POST /v1/usages/bulk?dry_run=true", &[], Some(more)).await;
    let cloud = json!({"specversion": "1.0", "id": "7f3d", "source": "gateway/eu", "type": "tokens", "subject": "acme",
        "time": "2026-06-12T10:00:00Z", "data": {"quantity": 90, "model": "small", "region": "eu"}});
    let client = key.with("content-type", "application/cloudevents+json");
    let answer = client.post_bytes("/v1/cloudevents", cloud.to_string().into_bytes()).await;
    story.keep("POST /v1/cloudevents", Some(cloud), &answer);
    let openmeter = json!({"specversion": "1.0", "id": "7f3e", "source": "gateway/us", "type": "tokens", "subject": "acme",
        "time": "2026-06-12T11:00:00Z", "data": {"value": 30, "model": "small"}});
    let answer = client.post_bytes("/api/v1/events", openmeter.to_string().into_bytes()).await;
    story.keep("POST /api/v1/events", Some(openmeter), &answer);

    story.ask(key, "GET /v1/meters", &[], None).await;
    story.ask(key, "GET /v1/meters/stats", &[], None).await;
    story.ask(key, &format!("GET /v1/usages?{JUNE}&bucket_size=day&group_by=model"), &[], None).await;
    let search = in_june(json!({"bucket_size": "day", "group_by": ["model"],
        "filter": {"type": "condition", "field": "metadata.region", "op": "eq", "value": "eu"}}));
    story.ask(key, "POST /v1/usages/search", &[], Some(search.clone())).await;
    story.ask(key, "POST /v1/usages/breakdowns/search", &[], Some(in_june(json!({"field": "model"})))).await;
    story.ask(key, &format!("GET /v1/usages/dimensions?{JUNE}&field=model"), &[], None).await;
    story.ask(key, &format!("GET /v1/usages/export?{JUNE}&bucket_size=day"), &[], None).await;
    story.ask(key, "POST /v1/usages/export", &[], Some(search)).await;
    story.ask(key, &format!("GET /v1/usageevents?{JUNE}&limit=2"), &[], None).await;
    let events = in_june(
        json!({"limit": 2, "filter": {"type": "condition", "field": "quantity", "op": "gt", "value": 400}}),
    );
    story.ask(key, "POST /v1/usageevents/search", &[], Some(events.clone())).await;
    story.ask(key, &format!("GET /v1/usageevents/export?{JUNE}"), &[], None).await;
    story.ask(key, "POST /v1/usageevents/export", &[], Some(events)).await;
    story.ask(key, "GET /v1/usageingestions", &[], None).await;
    story
        .call(key, "POST /v1/usages", &[], Some(tokens("req-7f40", 0, "2026-06-12T12:00:00Z")))
        .await
        .expect(400);
    let list = "GET /v1/events/refused?limit=1";
    let told = story.until(key, list, &[], |answer| !items(answer).is_empty()).await;
    story.ask(key, "GET /v1/events/refused/{id}", &[&id(&items(&told)[0])], None).await;
    story.ask(key, "GET /v1/subjects", &[], None).await;
    story.ask(key, "GET /v1/subjects/{subject}/usageevents?limit=2", &["acme"], None).await;
    story.ask(key, "POST /v1/usageevents/prune?dry_run=true", &[], None).await;
    story.ask(key, "POST /v1/usageevents/prune", &[], None).await;
    story.ask(key, "GET /v1/usageevents/prunes", &[], None).await;
    let link = json!({"expires_in_seconds": 86400, "origins": ["https://app.example.com"]});
    let made = story.ask(key, "POST /v1/subjects/{subject}/links", &["acme"], Some(link)).await;
    story.ask(key, "GET /v1/subjects/{subject}/links", &["acme"], None).await;
    story.ask(key, "DELETE /v1/subjects/{subject}/links/{id}", &["acme", &id(&made)], None).await;
}

/// A plan, who has it, decisions by it, and what became of them.
async fn quotas(story: &mut Story, key: &Client) {
    let plan = |limit: i64| {
        json!({"name": "Pro", "limits": [
            {"meter": "tokens", "limit": limit, "period": "month", "enforcement": "hard", "warning_percent": 80}]})
    };
    let made = story.ask(key, "POST /v1/plans", &[], Some(plan(1000))).await;
    let plan_id = id(&made);
    story.ask(key, "GET /v1/plans", &[], None).await;
    story.ask(key, "GET /v1/plans/{id}", &[&plan_id], None).await;
    let assignment = json!({"plan_id": plan_id, "time_zone": "Europe/Berlin"});
    story.ask(key, "PUT /v1/plans/subjects/{subject}", &["acme"], Some(assignment)).await;
    story.ask(key, "GET /v1/plans/assignments", &[], None).await;
    // so that what is told later has something before it
    let is_well = |found: &Value| items(found).iter().any(|item| item["state"] == "ok");
    story.until(key, "GET /v1/entitlements/states", &[], is_well).await;
    let question = json!({"meter": "tokens", "subject": "acme", "quantity": 900});
    story.ask(key, "POST /v1/entitlements/check", &[], Some(question)).await;
    let mut event = tokens("req-9c01", 900, "");
    event.as_object_mut().expect("fields").remove("timestamp");
    story.ask(key, "POST /v1/entitlements/consume", &[], Some(event.clone())).await;
    story.ask(key, "POST /v1/entitlements/consume?dry_run=true", &[], Some(event)).await;
    story.ask(key, "GET /v1/entitlements/decisions", &[], None).await;
    story.ask(key, "GET /v1/entitlements/decisions/{idempotency_key}", &["req-9c01"], None).await;
    story.ask(key, "GET /v1/plans/subjects/{subject}/progress", &["acme"], None).await;
    story.ask(key, "POST /v1/plans/{id}/preview", &[&plan_id], Some(plan(500))).await;
    let is_warned = |found: &Value| items(found).iter().any(|item| item["state"] == "warning");
    story.until(key, "GET /v1/entitlements/states", &[], is_warned).await;
    let is_there = |found: &Value| !items(found).is_empty();
    story.until(key, "GET /v1/entitlements/events", &[], is_there).await;
    story.until(key, "GET /v1/entitlements/periods", &[], is_there).await;
    let made = story.ask(key, "PUT /v1/plans/{id}", &[&plan_id], Some(plan(500_000))).await;
    story.ask(key, "DELETE /v1/plans/subjects/{subject}", &["acme"], None).await;
    story.ask(key, "DELETE /v1/plans/{id}", &[&id(&made)], None).await;
}

/// A rule, where it is told, what it noticed, and what became of the message; answers the ids of the rule and of the place.
async fn alerts(story: &mut Story, database: &Database, key: &Client) -> (String, String) {
    let destination = json!({"name": "On call", "webhook_url": "http://127.0.0.1:9/hooks/usage"});
    let made = story.ask(key, "POST /v1/alerts/destinations", &[], Some(destination.clone())).await;
    let destination_id = id(&made);
    story.ask(key, "PUT /v1/alerts/destinations/{id}", &[&destination_id], Some(destination)).await;
    story.ask(key, "GET /v1/alerts/destinations", &[], None).await;
    let rotate = "POST /v1/alerts/destinations/{id}/webhook-secret/rotate";
    story.ask(key, rotate, &[&destination_id], None).await;
    story.ask(key, "POST /v1/alerts/destinations/{id}/test", &[&destination_id], None).await;
    let rule = json!({"name": "Many tokens", "meter": "tokens", "destination_id": destination_id, "threshold": 500,
        "comparator": "gte", "window_seconds": 3600, "evaluation_interval_seconds": 60});
    let backtest = "POST /v1/alerts/backtest";
    story.ask(key, backtest, &[], Some(rule.clone())).await;
    let made = story.ask(key, "POST /v1/alerts", &[], Some(rule.clone())).await;
    let rule_id = id(&made);
    // a worker may have looked already: from here on everybody has
    story.ask(key, "POST /v1/alerts/{id}/evaluate", &[&rule_id], None).await;
    story.ask(key, "PUT /v1/alerts/{id}", &[&rule_id], Some(rule)).await;
    story.ask(key, "GET /v1/alerts/{id}", &[&rule_id], None).await;
    story.ask(key, "GET /v1/alerts", &[], None).await;
    let is_tried = |found: &Value| {
        items(found).iter().all(|event| event["delivery"].is_object()) && !items(found).is_empty()
    };
    story.until(key, "GET /v1/alerts/events", &[], is_tried).await;
    let tried = |found: &Value| {
        items(found).iter().any(|job| job["attempts"] != json!(0) && job["status"] != json!("running"))
    };
    let jobs = story.until(key, "GET /v1/alerts/delivery-jobs", &[], tried).await;
    let job = items(&jobs)[0].clone();
    database.execute("UPDATE alert_deliveries SET status = 'dead_letter'");
    story.ask(key, "POST /v1/alerts/delivery-jobs/{id}/retry", &[&id(&job)], None).await;
    let event = job["event_id"].as_str().expect("an event").to_owned();
    story.ask(key, "POST /v1/alerts/events/{id}/redeliver", &[&event], None).await;
    let hour = Some(json!({"seconds": 3600}));
    story.ask(key, "POST /v1/alerts/{id}/snooze", &[&rule_id], hour).await;
    (rule_id, destination_id)
}

/// An export to its file, and a question that is kept.
async fn files_and_views(story: &mut Story, owner: &Client, key: &Client) {
    let query = json!({"query": in_june(json!({"bucket_size": "day"}))});
    let made = story.ask(key, "POST /v1/exports", &[], Some(query.clone())).await;
    story.until(key, "GET /v1/exports/{id}", &[&id(&made)], |found| found["status"] == "completed").await;
    story.ask(key, "GET /v1/exports/{id}/download", &[&id(&made)], None).await;
    story.ask(key, "GET /v1/exports", &[], None).await;
    let view = Some(json!({"query": "meter=tokens&range=this-month&group=model"}));
    let made = story.ask(key, "POST /v1/usage/short-links", &[], view).await;
    let hash = made["hash"].as_str().expect("a hash");
    story.ask(key, "GET /v1/usage/short-links/{hash}", &[hash], None).await;
    let saved = json!({"name": "Tokens by model", "query": in_june(json!({"group_by": ["model"]}))});
    let made = story.ask(owner, "POST /v1/usage/saved-queries", &[], Some(saved.clone())).await;
    story.ask(owner, "PUT /v1/usage/saved-queries/{id}", &[&id(&made)], Some(saved)).await;
    story.ask(owner, "GET /v1/usage/saved-queries", &[], None).await;
    story.ask(owner, "DELETE /v1/usage/saved-queries/{id}", &[&id(&made)], None).await;
}

/// What operators and auditors look at.
async fn operations(story: &mut Story, database: &Database, owner: &Client, key: &Client) {
    // canceled before a worker comes to it
    database.execute(
        "INSERT INTO export_jobs (id, workspace_id, kind, status, query, row_count, created_at, updated_at)
         SELECT 'waits', workspace_id, kind, 'queued', query, 0, created_at, updated_at FROM export_jobs LIMIT 1",
    );
    story.ask(key, "POST /v1/exports/{id}/cancel", &["waits"], None).await;
    story.ask(key, "POST /v1/exports/{id}/retry", &["waits"], None).await;
    let letter = uuid::Uuid::now_v7();
    database.execute(&format!(
        "INSERT INTO dead_letters (id, workspace_id, queue, key, payload, attempts, last_error, created_at)
         SELECT '{letter}', workspace_id, 'alerts', '{letter}', '{{\"meter_id\":' || id || ',\"meter\":\"tokens\",\"due_only\":false}}',
                3, 'the database does not answer', 1781078400000000 FROM meters",
    ));
    story.ask(key, "GET /v1/system/workers/dead-letters", &[], None).await;
    let retry = "POST /v1/system/workers/dead-letters/{id}/retry";
    story.ask(key, retry, &[&letter.to_string()], None).await;
    database.execute("UPDATE dead_letters SET requeued_at = NULL");
    let all = Some(json!({"worker_name": "alert"}));
    story.ask(key, "POST /v1/system/workers/dead-letters/retry", &[], all).await;
    story.ask(key, "GET /v1/system/stats", &[], None).await;
    story.ask(key, "GET /v1/system", &[], None).await;
    story.ask(owner, "GET /v1/audit-events?action=plan.&limit=2", &[], None).await;
    story.ask(owner, "GET /v1/audit-events/export?action=plan.deleted", &[], None).await;
}

/// What is refused, and how that is said.
async fn refusals(story: &mut Story, server: &Server, owner: &Client, key: &Client) {
    let event = json!({"idempotency_key": "x", "meter": "tokens", "subject": "acme", "quantity": -5});
    story.call(key, "POST /v1/usages", &[], Some(event.clone())).await.expect(400);
    story.call(&server.client(), "GET /v1/meters", &[], None).await.expect(401);
    let reads = json!({"name": "reads", "scopes": ["usage:read"]});
    let made = owner.post("/v1/auth/api-keys", &reads).await.json(201);
    let reader = server.client().with_key(made["key"].as_str().expect("a secret"));
    story.call(&reader, "POST /v1/usages", &[], Some(event)).await.expect(403);
    story.call(key, "GET /v1/meters/{id}", &["nosuch"], None).await.expect(404);
    let meter = json!({"name": "tokens", "unit": "token"});
    story.call(key, "POST /v1/meters", &[], Some(meter)).await.expect(409);
    let long = "x".repeat(3 * 1024 * 1024);
    story.call(key, "POST /v1/plans", &[], Some(json!({"name": long}))).await.expect(413);
    let packed = key.with("content-encoding", "br").post("/v1/plans", &json!({"name": "p"})).await;
    story.keep_refusal(&packed.expect(415));
}

/// What ends things.
async fn leaving(story: &mut Story, database: &Database, server: &Server, owner: &Client) {
    let connect = "INSERT INTO identities (id, public_id, user_id, provider, issuer, subject, email, created_at)
                   SELECT 1, 'connected', id, 'github', 'i', 's', email, 1 FROM users WHERE email = 'ada@example.com'";
    database.execute(connect);
    story.ask(owner, "GET /v1/auth/identities", &[], None).await;
    story.ask(owner, "DELETE /v1/auth/identities/{id}", &["connected"], None).await;
    let client = server.client();
    let address = Some(json!({"email": "ada@example.com"}));
    story.ask(&client, "POST /v1/auth/password-resets", &[], address).await;
    let token = crate::account::token_for(database, "ada@example.com");
    let reset = "POST /v1/auth/password-resets/{token}";
    story.ask(&client, reset, &[&token], Some(json!({"password": PASSWORD}))).await;
    let account = json!({"email": "ada@example.com", "password": PASSWORD});
    let owner = session_of(&client, &client.post("/v1/auth/sessions", &account).await.expect(201));
    let change = json!({"current_password": PASSWORD, "password": "a longer sentence of mine"});
    story.ask(&owner, "PUT /v1/auth/password", &[], Some(change)).await;
}

/// Holds what was said against what is written down, or writes it down.
fn compare(database: &Database, kept: Examples) {
    let mut names = Names::default();
    let wrapped = |value: Value| json!({"value": value});
    let of_route = |kept: BTreeMap<String, Value>| -> Value {
        kept.into_iter().map(|(what, value)| (what, wrapped(value))).collect()
    };
    let mut fresh: Value = kept.into_iter().map(|(route, kept)| (route, of_route(kept))).collect();
    tidy(&mut fresh, "", &mut names);
    if env("OPEN_SPANNER_REGENERATE").as_deref() == Some("1") && matches!(database, Database::Sqlite { .. }) {
        let text = serde_json::to_string_pretty(&fresh).expect("JSON") + "\n";
        std::fs::write(repository(FILE), text).expect("written");
        return;
    }
    let recorded = read(FILE).expect("the examples are checked in");
    let document = read("docs/openapi.json").expect("the document");
    let mut differences = Vec::new();
    for (route, kept) in fresh.as_object().expect("operations") {
        for (what, fresh) in kept.as_object().expect("examples") {
            let (at, recorded) = (format!("{route} {what}"), &recorded[route][what]["value"]);
            let schema = answered(&document, route, what);
            differ(&document, schema, (recorded, &fresh["value"]), &at, &mut differences);
        }
    }
    let hint = "if the answers are right: OPEN_SPANNER_REGENERATE=1 scripts/test --test it examples::, \
                then OPEN_SPANNER_REGENERATE=1 cargo test --lib openapi";
    assert!(
        differences.is_empty(),
        "answers have another shape than their examples:\n{}\n{hint}",
        differences.join("\n")
    );
}

/// Ids that were seen, by what they are called in the examples.
#[derive(Default)]
struct Names(BTreeMap<String, String>);

impl Names {
    fn of(&mut self, id: &str) -> String {
        let number = self.0.len() + 1;
        self.0.entry(id.to_owned()).or_insert_with(|| format!("01989c40-0000-7000-8000-{number:012}")).clone()
    }
}

/// Ids, times, secrets and measurements that every run has others of.
fn tidy(value: &mut Value, name: &str, names: &mut Names) {
    match value {
        Value::Object(fields) => fields.iter_mut().for_each(|(name, value)| tidy(value, name, names)),
        Value::Array(values) => {
            // a list is told by its first
            values.truncate(2);
            values.iter_mut().for_each(|value| tidy(value, name, names));
        }
        Value::Number(_) if name.ends_with("_ms") || name.ends_with("_bytes") || name == "uptime_seconds" => {
            *value = json!(12)
        }
        Value::String(text) => *text = tidied(text, name, names),
        _ => {}
    }
}

fn tidied(text: &str, name: &str, names: &mut Names) -> String {
    const UUID: usize = 36;
    match name {
        "next_cursor" => return "eyJ0IjoxfQ".to_owned(),
        "host" => return "usage-1".to_owned(),
        "commit" => return "0f3a9c2e51d7 2026-06-01".to_owned(),
        "instance_id" => return "usage-1/0.2.0/4711-0f3a9c2e51d7".to_owned(),
        "standard_webhooks_secret" => return "whsec_EXAMPLE".to_owned(),
        _ => {}
    }
    if name.ends_with("hash") && text.len() == 64 {
        return "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08".to_owned();
    }
    let is_told = ["2026-06-", "2026-07-01", "2099-"].iter().any(|start| text.starts_with(start));
    if text.parse::<jiff::Timestamp>().is_ok() && !is_told {
        return "2026-06-30T12:00:00Z".to_owned();
    }
    let mut tidy = String::new();
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        let is_id = |id: &&str| uuid::Uuid::try_parse(id).is_ok() && id.contains('-');
        if let Some(id) = rest.get(..UUID).filter(is_id) {
            tidy.push_str(&names.of(id));
            rest = &rest[UUID..];
        } else if let Some(secret) = rest.strip_prefix("osp_") {
            let end = secret
                .find(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '-')
                .unwrap_or(secret.len());
            let kind = secret[..end].split('_').next().unwrap_or_default();
            tidy.push_str(&format!("osp_{kind}_EXAMPLE"));
            rest = &secret[end..];
        } else {
            tidy.push(next);
            rest = &rest[next.len_utf8()..];
        }
    }
    // where this server says that people find it
    let tidy = tidy.replace("http://localhost:18081", "https://usage.example.com");
    match tidy.split_once("http://127.0.0.1:") {
        Some((before, after)) if !after.starts_with("9/") => {
            let after = after.trim_start_matches(|c: char| c.is_ascii_digit());
            format!("{before}https://usage.example.com{after}")
        }
        _ => tidy,
    }
}

/// The schema of an answer; of what else is kept there is none to ask.
fn answered<'d>(document: &'d Value, route: &str, status: &str) -> &'d Value {
    let (method, path) = route.split_once(' ').unwrap_or((route, ""));
    let answer = &document["paths"][path][method.to_lowercase()]["responses"][status]["content"];
    &answer["application/json"]["schema"]
}

/// Where a recorded value and a fresh one differ in more than what they hold: kinds of values, and names of fields beyond
/// those that may be absent.
fn differ(document: &Value, schema: &Value, both: (&Value, &Value), at: &str, found: &mut Vec<String>) {
    let schema = resolved(document, schema);
    match both {
        // what is absent now may be there at another moment
        (Value::Null, _) | (_, Value::Null) => {}
        (Value::Object(a), Value::Object(b)) => {
            let is_required = |name: &String| match schema["required"].as_array() {
                Some(required) => required.iter().any(|one| one == name),
                // free objects, such as metadata, are the story's own
                None => schema.get("properties").is_none(),
            };
            for (name, value) in a {
                match b.get(name) {
                    Some(other) => {
                        let schema = &schema["properties"][name];
                        differ(document, schema, (value, other), &format!("{at}/{name}"), found);
                    }
                    None if is_required(name) => found.push(format!("{at}/{name} is gone")),
                    None => {}
                }
            }
            let is_unknown =
                |name: &&String| schema.get("properties").is_some_and(|known| known.get(*name).is_none());
            found.extend(
                b.keys().filter(is_unknown).map(|name| format!("{at}/{name} is not in the document")),
            );
        }
        (Value::Array(a), Value::Array(b)) => a.iter().zip(b).for_each(|both| {
            differ(document, &schema["items"], both, &format!("{at}[]"), found);
        }),
        (a, b) if std::mem::discriminant(a) == std::mem::discriminant(b) => {}
        (a, b) => found.push(format!("{at}: {a} is now {b}")),
    }
}
