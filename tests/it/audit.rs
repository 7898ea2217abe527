//! The trail of changes: each changing route leaves exactly one row, in a chain that cannot be edited, shown to the
//! workspace's admins and to nobody else, without a secret.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::client::{PASSWORD, sign_in, sign_up};
use crate::support::{Answer, Client, Database, Server, on_both_databases};

on_both_databases!(
    every_changing_route_leaves_a_row,
    the_trail_is_listed_filtered_and_exported,
    rows_are_never_changed,
    a_broken_chain_is_found,
    rows_that_go_without_pruning_are_missed,
    failed_sign_ins_of_known_people_are_told,
    what_ends_or_changes_is_told_as_it_was,
);

const EVENTS: &str = "/v1/audit-events";

/// Routes that are not `GET` and change nothing that somebody decided.
const NO_CHANGES: &[(&str, &str)] = &[
    ("POST /v1/auth/session/refresh", "goes on with a session"),
    ("POST /v1/auth/password-resets", "answers before anything is changed: `mail::` looks for its row"),
    ("POST /v1/alerts/{id}/evaluate", "looks at numbers"),
    ("POST /v1/alerts/backtest", "a question"),
    ("POST /v1/alerts/destinations/{id}/test", "sends a message"),
    ("POST /v1/entitlements/check", "a question"),
    ("POST /v1/entitlements/consume", "usage is its own record"),
    ("POST /v1/plans/{id}/preview", "a question"),
    ("POST /v1/usage/short-links", "another name of a view, which anybody could write out"),
    ("POST /v1/usageevents/export", "a question"),
    ("POST /v1/usageevents/search", "a question"),
    ("POST /api/v1/events", "usage is its own record"),
    ("POST /v1/cloudevents", "usage is its own record"),
    ("POST /v1/usages", "usage is its own record"),
    ("POST /v1/usages/breakdowns/search", "a question"),
    ("POST /v1/usages/bulk", "usage is its own record"),
    ("POST /v1/usages/export", "a question"),
    ("POST /v1/usages/search", "a question"),
];

/// What the route table has, by the document that is made from it.
fn changing_routes() -> BTreeSet<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/openapi.json");
    let document: Value =
        serde_json::from_str(&std::fs::read_to_string(path).expect("it is there")).expect("JSON");
    let mut routes = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().expect("paths") {
        for method in methods.as_object().expect("methods").keys().filter(|method| *method != "get") {
            routes.insert(format!("{} {path}", method.to_uppercase()));
        }
    }
    routes.retain(|route| !NO_CHANGES.iter().any(|(known, _)| known == route));
    routes
}

/// Calls routes and looks for the rows they leave.
struct Trial<'a> {
    database: &'a Database,
    seen: BTreeSet<String>,
}

impl Trial<'_> {
    fn rows(&self) -> usize {
        self.database.count("audit_events") as usize
    }

    /// Calls `METHOD pattern`, with `ids` in the place of its parameters, and insists on one new row.
    async fn call(&mut self, client: &Client, route: &str, ids: &[&str], body: Value) -> Answer {
        let (method, pattern) = route.split_once(' ').expect("a method and a path");
        let mut path = String::new();
        let mut ids = ids.iter();
        for (at, segment) in pattern.split('/').enumerate() {
            let segment = if segment.starts_with('{') { ids.next().expect("an id") } else { segment };
            path.push_str(if at == 0 { "" } else { "/" });
            path.push_str(segment);
        }
        let before = self.rows();
        let method = Method::from_bytes(method.as_bytes()).expect("a method");
        let answer = client.send(method, &path, Some(body.to_string())).await.expect("an answer");
        assert!((200..300).contains(&answer.status), "{route} answered {} {}", answer.status, answer.text);
        assert_eq!(self.rows(), before + 1, "{route} leaves one row");
        self.seen.insert(route.to_owned());
        answer
    }
}

fn id(value: &Value) -> String {
    value["id"].as_str().expect("an id").to_owned()
}

fn session_of(server: &Server, answer: &Answer) -> Client {
    let access = answer.cookie("open_spanner_access").expect("a cookie");
    server.client().with("cookie", format!("open_spanner_access={access}"))
}

async fn every_changing_route_leaves_a_row(database: Database) {
    let off = [("OPEN_SPANNER_SERVE_WORKERS", "off")];
    let on = [("OPEN_SPANNER_SERVE_WORKERS", "on"), ("OPEN_SPANNER_WEBHOOK_ALLOWED_NETWORKS", "127.0.0.0/8")];
    let mut server = Server::start_with(&database, &off);
    let mut trial = Trial { database: &database, seen: BTreeSet::new() };
    let client = server.client();
    let sign_up = async |trial: &mut Trial, email: &str| {
        let body = json!({"email": email, "password": PASSWORD});
        let user = trial.call(&client, "POST /v1/auth/users", &[], body.clone()).await.json(201);
        (id(&user), trial.call(&client, "POST /v1/auth/sessions", &[], body).await.expect(201))
    };
    let (_, owner) = sign_up(&mut trial, "owner@example.com").await;
    let owner = session_of(&server, &owner);
    people(&server, &mut trial, &owner, &sign_up).await;
    let key = json!({"name": "k", "scopes": ["*"]});
    let made = trial.call(&owner, "POST /v1/auth/api-keys", &[], key).await.json(201);
    let body = json!({"grace_period_seconds": 60});
    let made = trial.call(&owner, "POST /v1/auth/api-keys/{id}/rotate", &[&id(&made)], body).await.json(201);
    let key = client.with_key(made["key"].as_str().expect("a secret"));
    let rule = things(&database, &mut trial, &owner, &key).await;
    server.terminate();
    let server = Server::start_with(&database, &on);
    let (owner, key) = (owner.at(&server.url()), key.at(&server.url()));
    deliveries(&mut trial, &key, &rule).await;
    trial.call(&owner, "DELETE /v1/auth/api-keys/{id}", &[&id(&made)], json!({})).await;
    let made = owner.post("/v1/auth/api-keys", &json!({"name": "k"})).await.json(201);
    trial.call(&owner, "DELETE /v1/auth/workspace/api-keys/{id}", &[&id(&made)], json!({})).await;
    let me = owner.get("/v1/auth/session").await.json(200)["user"]["email"].clone();
    let body = json!({"email": me, "password": PASSWORD});
    owner.post("/v1/auth/sessions", &body).await.expect(201);
    let others = owner.get("/v1/auth/sessions").await.json(200);
    let other =
        others["items"].as_array().expect("a list").iter().find(|item| item["current"] == json!(false));
    let other = other.expect("another sign-in").clone();
    trial.call(&owner, "DELETE /v1/auth/sessions/{id}", &[&id(&other)], json!({})).await;
    let connect = "INSERT INTO identities (id, public_id, user_id, provider, issuer, subject, email, created_at)
                   SELECT 1, 'connected', id, 'oidc', 'i', 's', email, 1 FROM users WHERE email = 'owner@example.com'";
    database.execute(connect);
    trial.call(&owner, "DELETE /v1/auth/identities/{id}", &["connected"], json!({})).await;
    trial.call(&owner, "PUT /v1/auth/preferences", &[], json!({"theme": "dark"})).await;
    let change = json!({"current_password": PASSWORD, "password": "another password"});
    trial.call(&owner, "PUT /v1/auth/password", &[], change).await;
    trial.call(&owner, "DELETE /v1/auth/session", &[], json!({})).await;
    let again = json!({"email": me, "password": "another password"});
    let again = trial.call(&client.at(&server.url()), "POST /v1/auth/sessions", &[], again).await;
    trial.call(&session_of(&server, &again), "DELETE /v1/auth/sessions", &[], json!({})).await;
    let token = crate::account::token_for(&database, me.as_str().expect("a text"));
    let reset = "POST /v1/auth/password-resets/{token}";
    trial.call(&client.at(&server.url()), reset, &[&token], json!({"password": PASSWORD})).await;

    let missing: Vec<String> = changing_routes().difference(&trial.seen).cloned().collect();
    assert!(
        missing.is_empty(),
        "changes that are not tried, so nobody knows whether they leave a row: {missing:#?}"
    );
    let secrets = database
        .lines("SELECT state_before || state_after || target_id || target_name AS line FROM audit_events");
    let secrets = secrets.join("\n");
    for secret in ["osp_sk_", "osp_at_", "osp_rt_", "osp_wsi_", "osp_share_", "osp_whsec_", PASSWORD] {
        let shown = secrets
            .match_indices(secret)
            .any(|(at, _)| secrets[at..].chars().take_while(|c| *c != '"').count() > 18);
        assert!(!shown, "{secret} is in the trail");
    }
    let unknown = database.lines("SELECT action AS line FROM audit_events WHERE workspace_id = 0");
    assert!(unknown.is_empty(), "changes of a workspace that are in nobody's trail: {unknown:?}");
}

/// Members and invitations; leaves the owner with a session that still works.
async fn people(
    server: &Server,
    trial: &mut Trial<'_>,
    owner: &Client,
    sign_up: &impl AsyncFn(&mut Trial, &str) -> (String, Answer),
) {
    trial.call(owner, "PATCH /v1/auth/workspace", &[], json!({"name": "Acme"})).await;
    trial.call(owner, "PATCH /v1/auth/workspace", &[], json!({"time_zone": "Europe/Berlin"})).await;
    trial.call(owner, "PATCH /v1/auth/workspace", &[], json!({"time_zone": "UTC"})).await;
    let mut joined = Vec::new();
    for email in ["a@example.com", "b@example.com"] {
        let (user, answer) = sign_up(trial, email).await;
        let body = json!({"email": email, "role": "admin"});
        let made = trial.call(owner, "POST /v1/auth/workspace/invitations", &[], body).await.json(201);
        let (accept, token) = ("POST /v1/auth/workspace-invitations/{token}/accept", made["token"].as_str());
        let guest = session_of(server, &answer);
        let answer = trial.call(&guest, accept, &[token.expect("a token")], json!({})).await;
        joined.push((user, session_of(server, &answer)));
    }
    let body = json!({"email": "c@example.com", "role": "viewer"});
    let made = trial.call(owner, "POST /v1/auth/workspace/invitations", &[], body).await.json(201);
    trial.call(owner, "DELETE /v1/auth/workspace/invitations/{id}", &[&id(&made)], json!({})).await;
    let (first, second) = (&joined[0], &joined[1]);
    let path = "PATCH /v1/auth/workspace/members/{user_id}";
    trial.call(owner, path, &[&first.0], json!({"role": "viewer"})).await;
    trial.call(owner, "POST /v1/auth/workspace/owner", &[], json!({"user_id": second.0})).await;
    let me = owner.get("/v1/auth/session").await.json(200);
    trial.call(&second.1, "POST /v1/auth/workspace/owner", &[], json!({"user_id": id(&me["user"])})).await;
    trial.call(&second.1, "POST /v1/auth/workspace/leave", &[], json!({})).await;
    let places = first.1.get("/v1/auth/workspaces").await.json(200);
    let own = places["items"].as_array().expect("a list").iter().find(|place| place["role"] == "owner");
    let body = json!({"workspace_id": own.expect("an own one")["id"]});
    trial.call(&first.1, "POST /v1/auth/session/workspace", &[], body).await;
    trial.call(owner, "DELETE /v1/auth/workspace/members/{user_id}", &[&first.0], json!({})).await;
}

/// What a workspace has; answers the rule that stays.
async fn things(database: &Database, trial: &mut Trial<'_>, owner: &Client, key: &Client) -> Value {
    let meter = |name: &str| json!({"name": name, "unit": "u"});
    let made = trial.call(key, "POST /v1/meters", &[], meter("m")).await.json(201);
    let other = trial.call(key, "POST /v1/meters", &[], meter("gone")).await.json(201);
    trial.call(key, "PUT /v1/meters/{id}", &[&id(&made)], json!({"name": "m", "unit": "v"})).await;
    trial.call(key, "DELETE /v1/meters/{id}", &[&id(&other)], json!({})).await;
    let plan = json!({"name": "p", "limits": [{"meter": "m", "limit": 10}]});
    let made = trial.call(key, "POST /v1/plans", &[], plan.clone()).await.json(201);
    let made = trial.call(key, "PUT /v1/plans/{id}", &[&id(&made)], plan).await.json(200);
    trial.call(key, "PUT /v1/plans/subjects/{subject}", &["s"], json!({"plan_id": made["id"]})).await;
    trial.call(key, "DELETE /v1/plans/subjects/{subject}", &["s"], json!({})).await;
    trial.call(key, "DELETE /v1/plans/{id}", &[&id(&made)], json!({})).await;
    let https = json!({"name": "d", "webhook_url": "https://example.com/hook"});
    let gone = trial.call(key, "POST /v1/alerts/destinations", &[], https.clone()).await.json(201);
    let kept = trial.call(key, "POST /v1/alerts/destinations", &[], https.clone()).await.json(201);
    trial.call(key, "PUT /v1/alerts/destinations/{id}", &[&id(&gone)], https).await;
    let rotate = "POST /v1/alerts/destinations/{id}/webhook-secret/rotate";
    trial.call(key, rotate, &[&id(&gone)], json!({})).await;
    trial.call(key, "DELETE /v1/alerts/destinations/{id}", &[&id(&gone)], json!({})).await;
    let rule = json!({"name": "r", "meter": "m", "destination_id": kept["id"], "threshold": 1});
    let gone = trial.call(key, "POST /v1/alerts", &[], rule.clone()).await.json(201);
    let kept = trial.call(key, "POST /v1/alerts", &[], rule.clone()).await.json(201);
    trial.call(key, "PUT /v1/alerts/{id}", &[&id(&gone)], rule).await;
    trial.call(key, "POST /v1/alerts/{id}/snooze", &[&id(&gone)], json!({"seconds": 60})).await;
    let letter = uuid::Uuid::now_v7();
    database.execute(&format!(
        "INSERT INTO dead_letters (id, workspace_id, queue, key, payload, attempts, last_error, created_at)
         SELECT '{letter}', workspace_id, 'alerts', '{letter}', '{{\"meter_id\":' || id || ',\"meter\":\"m\",\"due_only\":false}}', 3, 'no', 1 FROM meters",
    ));
    let retry = "POST /v1/system/workers/dead-letters/{id}/retry";
    trial.call(key, retry, &[&letter.to_string()], json!({})).await;
    trial.database.execute("UPDATE dead_letters SET requeued_at = NULL");
    trial.call(key, "POST /v1/system/workers/dead-letters/retry", &[], json!({})).await;
    trial.call(key, "DELETE /v1/alerts/{id}", &[&id(&gone)], json!({})).await;
    let query = json!({"query": {"meter": "m", "from": "2026-06-01T00:00:00Z", "to": "2026-07-01T00:00:00Z", "bucket_size": "day"}});
    let export = trial.call(key, "POST /v1/exports", &[], query).await.json(202);
    trial.call(key, "POST /v1/exports/{id}/cancel", &[&id(&export)], json!({})).await;
    trial.call(key, "POST /v1/exports/{id}/retry", &[&id(&export)], json!({})).await;
    let saved = json!({"name": "q", "query": {"meter": "m"}});
    let made = trial.call(owner, "POST /v1/usage/saved-queries", &[], saved.clone()).await.json(201);
    trial.call(owner, "PUT /v1/usage/saved-queries/{id}", &[&id(&made)], saved).await;
    trial.call(owner, "DELETE /v1/usage/saved-queries/{id}", &[&id(&made)], json!({})).await;
    let made = trial.call(key, "POST /v1/subjects/{subject}/links", &["s"], json!({})).await.json(201);
    let revoke = "DELETE /v1/subjects/{subject}/links/{id}";
    trial.call(key, revoke, &["s", &id(&made)], json!({})).await;
    trial.call(key, "POST /v1/usageevents/prune", &[], json!({})).await;
    kept
}

/// A delivery that cannot arrive is asked for again, in both ways.
async fn deliveries(trial: &mut Trial<'_>, key: &Client, rule: &Value) {
    // the address that the rule has is not reached from here; this one refuses at once
    let to = json!({"name": "d", "webhook_url": "http://127.0.0.1:9/x"});
    let path = format!(
        "/v1/alerts/destinations/{}",
        rule["destination"]["id"].as_str().or(rule["destination_id"].as_str()).expect("an id")
    );
    key.put(&path, &to).await.expect(200);
    let event =
        json!({"meter": "m", "subject": "s", "quantity": 5, "idempotency_key": "e", "timestamp": now()});
    key.post("/v1/usages", &event).await.expect(201);
    let end = Instant::now() + Duration::from_secs(30);
    let job = loop {
        let jobs = key.get("/v1/alerts/delivery-jobs").await.json(200);
        let tried = jobs["items"].as_array().expect("a list").iter().find(|job| job["attempts"] != 0);
        if let Some(job) = tried.filter(|job| job["status"] != "running") {
            break job.clone();
        }
        assert!(Instant::now() < end, "no delivery is tried: {jobs}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    trial.database.execute("UPDATE alert_deliveries SET status = 'dead_letter'");
    trial.call(key, "POST /v1/alerts/delivery-jobs/{id}/retry", &[&id(&job)], json!({})).await;
    let event = job["event_id"].as_str().expect("an event");
    trial.call(key, "POST /v1/alerts/events/{id}/redeliver", &[event], json!({})).await;
}

fn now() -> String {
    jiff::Timestamp::now().to_string()
}

async fn the_trail_is_listed_filtered_and_exported(database: Database) {
    let server = Server::start(&database);
    let (ws, other) = (server.workspace().await, server.workspace().await);
    let meter = ws.meter("m", "sum").await;
    ws.put(&format!("/v1/meters/{meter}"), &json!({"name": "m", "unit": "other"})).await.expect(200);
    let page = ws.session.get(EVENTS).await.json(200);
    let items = page["items"].as_array().expect("a list").clone();
    let actions: Vec<&str> = items.iter().map(|item| item["action"].as_str().expect("a text")).collect();
    assert_eq!(
        actions,
        ["meter.updated", "meter.created", "api_key.created", "session.created", "user.registered"]
    );
    let update = &items[0];
    assert_eq!(
        (&update["actor"]["kind"], &update["actor"]["name"]),
        (&json!("api_key"), &json!("everything"))
    );
    assert_eq!((&update["target"]["id"], &update["target"]["name"]), (&json!(meter), &json!("m")));
    assert_eq!((&update["before"]["unit"], &update["after"]["unit"]), (&json!("unit"), &json!("other")));
    assert_eq!(update["address"], json!("127.0.0.1"));
    assert!(update["request_id"].as_str().is_some_and(|id| id.len() == 36), "{update}");
    assert_eq!(items[2]["actor"]["kind"], json!("user"));
    assert_eq!(items[4]["sequence"], json!(1));

    let count = async |query: &str| {
        let page = ws.get(&format!("{EVENTS}?{query}")).await.json(200);
        page["items"].as_array().expect("a list").len()
    };
    assert_eq!(count("action=meter.").await, 2);
    assert_eq!(count("action=meter.created").await, 1);
    assert_eq!(count("action=%25").await, 0);
    assert_eq!(count("actor=everything").await, 2);
    assert_eq!(count("target=m").await, 2);
    assert_eq!(count("from=2099-01-01T00:00:00Z").await, 0);
    assert_eq!(count("to=2099-01-01T00:00:00Z").await, 5);
    ws.get(&format!("{EVENTS}?from=x")).await.error(400, "invalid_from");
    let first = ws.get(&format!("{EVENTS}?limit=3")).await.json(200);
    let cursor = first["next_cursor"].as_str().expect("more");
    let second = ws.get(&format!("{EVENTS}?limit=3&cursor={cursor}")).await.json(200);
    assert_eq!(second["items"].as_array().expect("a list"), &items[3..]);
    assert!(second.get("next_cursor").is_none());

    let export = ws.get(&format!("{EVENTS}/export?action=meter.")).await.expect(200);
    assert_eq!(export.header("content-type"), "application/x-ndjson");
    let lines: Vec<Value> =
        export.text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect();
    assert_eq!(lines, items[..2]);

    // nobody else's
    let text = other.get(EVENTS).await.expect(200).text;
    assert!(!text.contains(&meter) && text.contains("user.registered"));
    let narrow = ws.session.post("/v1/auth/api-keys", &json!({"name": "n", "scopes": ["system:*"]})).await;
    let narrow = server.client().with_key(narrow.json(201)["key"].as_str().expect("a secret"));
    narrow.get(EVENTS).await.error(403, "forbidden");
    server.client().get(EVENTS).await.error(401, "unauthorized");
    let guest = sign_up(&server.client()).await;
    let session = sign_in(&server.client(), &guest).await;
    let invitation = json!({"email": guest, "role": "viewer"});
    let made = ws.session.post("/v1/auth/workspace/invitations", &invitation).await.json(201);
    let token = made["token"].as_str().expect("a token");
    let joined = session.post_text(&format!("/v1/auth/workspace-invitations/{token}/accept"), "").await;
    session_of(&server, &joined.expect(200)).get(EVENTS).await.error(403, "forbidden");
}

async fn rows_are_never_changed(database: Database) {
    let server = Server::start(&database);
    server.workspace().await;
    let refused = |sql: &str| {
        // the tests' own way in goes round triggers elsewhere
        let sql = match &database {
            Database::Sqlite { .. } => sql.to_owned(),
            Database::Postgres { .. } => format!("SET session_replication_role = origin; {sql}"),
        };
        let sql = sql.as_str();
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| database.execute(sql)));
        assert!(caught.is_err(), "{sql} is refused");
    };
    refused("UPDATE audit_events SET actor_name = 'somebody else'");
    refused("DELETE FROM audit_events");
    assert_eq!(database.count("audit_events"), 3);
    // whoever sets the head first gets them away, and is found out: no row says that they were pruned
    database.execute(FORGED_PRUNE);
    database.execute("DELETE FROM audit_events WHERE sequence = 1");
    assert_eq!(verify(&database), [(1, UNTOLD)]);
}

const FORGED_PRUNE: &str = "UPDATE audit_heads SET pruned_sequence = 1,
    pruned_hash = (SELECT hash FROM audit_events e WHERE e.workspace_id = audit_heads.workspace_id AND e.sequence = 1)";
const UNTOLD: &str = "rows are gone, and no row says that they were pruned";

async fn rows_that_go_without_pruning_are_missed(database: Database) {
    let mut server = Server::start(&database);
    let ws = server.workspace().await;
    for n in 0..5 {
        ws.meter(&format!("m{n}"), "sum").await;
    }
    server.terminate();
    let owned = database.settings();
    let mut settings: Vec<(&str, &str)> = owned.iter().map(|(name, value)| (*name, value.as_str())).collect();
    settings.push(("OPEN_SPANNER_AUDIT_RETENTION", "1ns"));
    let folder = tempfile::tempdir().expect("a directory");
    let prune = || crate::support::program::run(&["audit", "prune"], &settings, folder.path()).succeeded();
    assert_eq!(prune().stdout, "8 rows pruned\n");
    assert_eq!(verify(&database), Vec::<(i64, &str)>::new());
    // nothing is left but the row about it, and that one does not go by itself
    assert_eq!(prune().stdout, "0 rows pruned\n");
    let server = Server::start(&database);
    let ws = ws.session.at(&server.url());
    ws.post("/v1/meters", &json!({"name": "more", "unit": "u"})).await.expect(201);
    assert_eq!(prune().stdout, "2 rows pruned\n", "the row about pruning goes with a later one");
    let row = database.lines("SELECT state_after AS line FROM audit_events").remove(0);
    let told: Value = serde_json::from_str(&row).expect("JSON");
    assert_eq!((&told["from"], &told["through"], &told["rows"]), (&json!(8), &json!(10), &json!(2)));
    assert_eq!(verify(&database), Vec::<(i64, &str)>::new());
    let trail = ws.get(&format!("{EVENTS}?action=audit.")).await.json(200);
    assert_eq!(trail["items"][0]["actor"]["kind"], json!("operator"), "its admins see it: {trail}");
    // a head that says that more went
    database.execute("UPDATE audit_heads SET pruned_sequence = 9");
    assert!(!verify(&database).is_empty());
    database.execute("UPDATE audit_heads SET pruned_sequence = 10");
    assert_eq!(verify(&database), Vec::<(i64, &str)>::new());
    // a chain that goes with its head is missed while its workspace is there, and so is an empty one in its place
    database.execute("UPDATE audit_heads SET pruned_sequence = 1000");
    database.execute("DELETE FROM audit_events");
    database.execute("DELETE FROM audit_heads");
    assert_eq!(verify(&database), [(1, "the workspace has no chain")]);
    let empty = match database {
        Database::Sqlite { .. } => "x''",
        Database::Postgres { .. } => "''",
    };
    database.execute(&format!(
        "INSERT INTO audit_heads (workspace_id, sequence, hash, pruned_sequence, pruned_hash)
         SELECT id, 0, {empty}, 0, {empty} FROM workspaces"
    ));
    assert_eq!(verify(&database), [(1, "the chain is empty")]);
}

/// Where chains are broken, as (place, reason).
fn verify(database: &Database) -> Vec<(i64, &'static str)> {
    let settings: Vec<(String, String)> =
        database.settings().into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let settings: Vec<(&str, &str)> = settings.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    let config = open_spanner::config::load_from(&["open-spanner"], &settings).expect("settings").config;
    let verdict = open_spanner::audit::verify(&config.db.driver).expect("it can be read");
    verdict.broken.into_iter().map(|broken| (broken.sequence, broken.why)).collect()
}

async fn a_broken_chain_is_found(database: Database) {
    let mut server = Server::start(&database);
    let ws = server.workspace().await;
    for n in 0..5 {
        ws.meter(&format!("m{n}"), "sum").await;
    }
    assert_eq!(verify(&database), Vec::<(i64, &str)>::new());
    // also after a crash
    server.kill();
    assert_eq!(verify(&database), Vec::<(i64, &str)>::new());
    match database {
        Database::Sqlite { .. } => {
            database.execute("DROP TRIGGER audit_events_change");
            database.execute("DROP TRIGGER audit_events_delete");
        }
        Database::Postgres { .. } => database.execute("DROP TRIGGER audit_events_keep ON audit_events"),
    }
    database.execute("UPDATE audit_events SET actor_name = 'somebody else' WHERE sequence = 4");
    assert_eq!(verify(&database), [(4, "the row is not the one that was written")]);
    database.execute("DELETE FROM audit_events WHERE sequence = 4");
    assert_eq!(verify(&database), [(4, "the row is missing")]);
    database.execute("DELETE FROM audit_events WHERE sequence >= 4");
    assert_eq!(verify(&database), [(4, "the newest rows are missing")]);
    database.execute("DELETE FROM audit_heads");
    assert_eq!(verify(&database), [(1, "the chain has no head")]);
}

async fn failed_sign_ins_of_known_people_are_told(database: Database) {
    let server = Server::start(&database);
    let ws = server.workspace().await;
    let email = ws.session.get("/v1/auth/session").await.json(200)["user"]["email"].clone();
    for email in [email.as_str().expect("a text"), "stranger@example.com"] {
        let body = json!({"email": email, "password": "a wrong password"});
        server.client().post("/v1/auth/sessions", &body).await.error(401, "unauthorized");
    }
    // written down when the answer is out already
    let end = Instant::now() + Duration::from_secs(20);
    while database.count("audit_events") < 4 {
        assert!(Instant::now() < end, "the failure is not in the trail");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let failed = ws.get(&format!("{EVENTS}?action=session.failed")).await.json(200);
    let failed = failed["items"].as_array().expect("a list");
    assert_eq!(failed.len(), 1, "{failed:?}");
    assert_eq!(failed[0]["address"], json!("127.0.0.1"));
    assert!(failed[0]["request_id"].as_str().is_some_and(|id| id.len() == 36), "{failed:?}");
    assert_eq!((&failed[0]["actor"]["kind"], &failed[0]["target"]["name"]), (&json!("anonymous"), &email));
    assert_eq!(database.count("audit_events"), 4);
}

async fn what_ends_or_changes_is_told_as_it_was(database: Database) {
    let server = Server::start(&database);
    let ws = server.workspace().await;
    let told = async |action: &str| {
        let page = ws.session.get(&format!("{EVENTS}?action={action}")).await.json(200);
        page["items"][0].clone()
    };
    let made = ws.session.post("/v1/auth/api-keys", &json!({"name": "k", "scopes": ["usage:read"]})).await;
    let made = made.json(201);
    ws.session.delete(&format!("/v1/auth/api-keys/{}", id(&made))).await.expect(204);
    assert_eq!(told("api_key.revoked").await["before"]["scopes"], json!(["usage:read"]));
    let made = ws.post("/v1/subjects/s/links", &json!({"meters": ["m"]})).await.json(201);
    ws.delete(&format!("/v1/subjects/s/links/{}", id(&made))).await.expect(204);
    assert_eq!(told("subject_link.revoked").await["before"]["meters"], json!(["m"]));
    let user = ws.session.get("/v1/auth/session").await.json(200)["user"].clone();
    ws.session.patch("/v1/auth/workspace", &json!({"name": "Acme"})).await.expect(204);
    let renamed = told("workspace.renamed").await;
    assert_eq!(
        (&renamed["before"]["name"], &renamed["after"]["name"]),
        (&user["workspace_name"], &json!("Acme"))
    );
    assert_eq!(renamed["target"]["id"], user["workspace_id"]);
    let path = "/v1/alerts/destinations";
    let destination = |name: &str| json!({"name": name, "webhook_url": "https://example.com/a-secret"});
    let made = ws.post(path, &destination("one")).await.json(201);
    let path = format!("{path}/{}", id(&made));
    ws.put(&path, &destination("two")).await.expect(200);
    let updated = told("destination.updated").await;
    assert_eq!((&updated["before"]["name"], &updated["after"]["name"]), (&json!("one"), &json!("two")));
    ws.delete(&path).await.expect(204);
    let deleted = told("destination.deleted").await;
    assert_eq!(
        (&deleted["before"]["name"], &deleted["before"]["host"]),
        (&json!("two"), &json!("example.com"))
    );
    assert!(!deleted.to_string().contains("a-secret"));
    // who hands over is an admin then, and goes
    let guest = crate::permissions::member(&server, &ws.session, "viewer").await;
    let heir = guest.get("/v1/auth/session").await.json(200)["user"].clone();
    let body = json!({"user_id": heir["id"]});
    ws.session.post("/v1/auth/workspace/owner", &body).await.expect(204);
    let handed = told("workspace.handed_over").await;
    assert_eq!(
        (&handed["before"]["role"], &handed["after"]["role"], &handed["target"]["name"]),
        (&json!("viewer"), &json!("owner"), &heir["email"])
    );
    ws.session.post_text("/v1/auth/workspace/leave", "").await.expect(204);
    let left = guest.get(&format!("{EVENTS}?action=member.left")).await.json(200)["items"][0].clone();
    assert_eq!((&left["before"]["role"], &left["target"]["name"]), (&json!("admin"), &user["email"]));
}

#[test]
fn the_owner_prunes_what_the_server_may_not() {
    crate::support::run(async {
        let database = Database::postgres();
        let owner = Server::start(&database);
        let ws = owner.workspace().await;
        ws.meter("m", "sum").await;
        drop(owner);
        database.make("CREATE ROLE app_role LOGIN");
        let owned = database.settings();
        let settings: Vec<(&str, &str)> = owned.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let folder = tempfile::tempdir().expect("a directory");
        let command = |arguments: &[&str]| crate::support::program::run(arguments, &settings, folder.path());
        command(&["migrate", "--grant", "app_role"]).succeeded();
        let dsn = owned.iter().find(|(name, _)| name.ends_with("DSN")).expect("a dsn").1.clone();
        let as_app = dsn.replace("postgres@", "app_role@").replace("user=postgres", "user=app_role");
        assert_ne!(as_app, dsn);
        let more = [
            ("OPEN_SPANNER_DB_DRIVER", "postgres"),
            ("OPEN_SPANNER_POSTGRES_DSN", as_app.as_str()),
            ("OPEN_SPANNER_AUDIT_RETENTION", "1ns"),
        ];
        let server = Server::start_with(&database, &more);
        let rows = database.count("audit_events");
        assert!(rows > 2);
        server.client().get("/ready").await.expect(204);
        let refused = crate::support::program::run(&["audit", "prune"], &more, folder.path());
        assert_ne!(refused.code, Some(0), "the server's role deletes nothing: {refused:#?}");
        assert_eq!(database.count("audit_events"), rows);
        command(&["audit", "prune", "--older-than-days", "1"]).succeeded();
        assert_eq!(database.count("audit_events"), rows, "nothing is so old");
        let mut old = settings.clone();
        old.push(("OPEN_SPANNER_AUDIT_RETENTION", "1ns"));
        let pruned =
            crate::support::program::run(&["audit", "prune", "--json"], &old, folder.path()).succeeded();
        let told: Value = serde_json::from_str(&pruned.stdout).expect("JSON");
        assert_eq!(told["pruned"], json!(rows));
        let left = database.lines("SELECT action AS line FROM audit_events");
        assert_eq!(left, ["audit.pruned"]);
        let verdict = command(&["audit", "verify"]);
        assert_eq!(verdict.code, Some(0), "{verdict:#?}");
    });
}
