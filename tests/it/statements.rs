//! What requests cost the database: how many statements each may take, and by which way the databases find the rows.
//! Both look at the SQL that the server really sends, not at a copy of it.

mod plan;

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use crate::support::{Answer, Client, Database, Server, Workspace, env, on_both_databases, stable_port};

on_both_databases!(requests_keep_their_budgets, pages_keep_their_budgets, plans_are_the_recorded_ones);

enum Call {
    Get(&'static str),
    /// Path, and a body made from a number that is new in every call.
    Post(&'static str, fn(u64) -> Value),
}
use Call::{Get, Post};

impl Call {
    fn writes(&self) -> bool {
        matches!(self, Post(path, _) if !path.ends_with("/search") && !path.ends_with("/check"))
    }
}

/// What is asked, and how many statements it may take on SQLite and on PostgreSQL once keys, meters and plans are in
/// memory; BEGIN and COMMIT count. SQLite stores each event with statements of its own.
#[rustfmt::skip]
fn calls() -> Vec<(&'static str, Call, [u64; 2])> {
    vec![
        ("health", Get("/health"), [0, 0]),
        ("readiness", Get("/ready"), [1, 1]),
        ("session", Get("/v1/auth/session"), [0, 0]),
        ("API keys", Get("/v1/auth/api-keys"), [1, 1]),
        ("single write", Post("/v1/usages", |n| event(1_000_000 + n)), [11, 9]),
        ("single write again", Post("/v1/usages", |_| event(0)), [7, 7]),
        ("bulk write of 1000", Post("/v1/usages/bulk", |n| events(6_000_000 + n * 1000)), [3310, 8]),
        ("bulk write of 1000 in no order", Post("/v1/usages/bulk", |n| shuffled(3_000_000 + n * 1000)), [4310, 8]),
        ("days by dimension", Get("/v1/usages?meter=m0&group_by=region&WINDOW"), [4, 4]),
        ("hours of a subject, cut at both ends", Get("/v1/usages?meter=m0&bucket_size=hour&subject=s7&from=2026-06-10T00:30:00Z&to=2026-06-11T00:30:00Z"), [8, 8]),
        ("month by subject", Post("/v1/usages/search", |_| in_june("group_by", json!(["subject"]))), [2, 2]),
        ("days with a declared filter", Post("/v1/usages/search", |_| in_june("filter", is("metadata.region", "eu"))), [4, 4]),
        ("days with an undeclared filter", Post("/v1/usages/search", |_| in_june("filter", is("metadata.trace", "t1"))), [1, 1]),
        ("breakdown by dimension", Post("/v1/usages/breakdowns/search", |_| in_june("field", json!("region"))), [4, 4]),
        ("breakdown by subject", Post("/v1/usages/breakdowns/search", |_| in_june("field", json!("subject"))), [2, 2]),
        ("dimension values", Get("/v1/usages/dimensions?meter=m0&field=region"), [4, 4]),
        ("days as CSV", Get("/v1/usages/export?meter=m0&WINDOW"), [1, 1]),
        ("events", Get("/v1/usageevents?limit=10&WINDOW"), [2, 2]),
        ("events of a meter", Get("/v1/usageevents?meter=m0&limit=10&WINDOW"), [2, 2]),
        ("events of a subject", Get("/v1/usageevents?subject=s7&limit=10&WINDOW"), [3, 3]),
        ("events of a subject and meter", Get("/v1/usageevents?meter=m0&subject=s7&limit=10&WINDOW"), [3, 3]),
        ("events as CSV", Get("/v1/usageevents/export?meter=m0&limit=10&WINDOW"), [2, 2]),
        ("newest events of a subject", Get("/v1/subjects/s7/usageevents?limit=10"), [2, 2]),
        ("subjects", Get("/v1/subjects?limit=10"), [4, 4]),
        ("subjects, deep page", Get("/v1/subjects?limit=10&cursor=DEEP"), [5, 5]),
        ("check", Post("/v1/entitlements/check", |_| json!({"meter": "m0", "subject": "s7"})), [1, 1]),
        ("consumption", Post("/v1/entitlements/consume", |n| event(50_000_000 + n)), [13, 11]),
        ("consumption again", Post("/v1/entitlements/consume", |_| event(4_000_000)), [7, 7]),
        ("decisions", Get("/v1/entitlements/decisions?limit=10"), [1, 1]),
        ("entitlement states", Get("/v1/entitlements/states?limit=10"), [1, 1]),
        ("entitlement events", Get("/v1/entitlements/events?limit=10"), [1, 1]),
        ("entitlement periods", Get("/v1/entitlements/periods?limit=10"), [1, 1]),
        ("progress", Get("/v1/plans/subjects/s7/progress"), [8, 6]),
        ("plans", Get("/v1/plans?limit=10"), [2, 2]),
        ("assignments", Get("/v1/plans/assignments?limit=10"), [1, 1]),
        ("meters", Get("/v1/meters?limit=10"), [1, 1]),
        ("meter", Get("/v1/meters/METER"), [1, 1]),
        ("meter stats", Get("/v1/meters/stats?limit=10"), [1, 1]),
        ("system stats", Get("/v1/system/stats"), [10, 10]),
        ("alert rules", Get("/v1/alerts?limit=10"), [2, 2]),
        ("alert events", Get("/v1/alerts/events?limit=10"), [2, 2]),
        ("destinations", Get("/v1/alerts/destinations?limit=10"), [1, 1]),
        ("queued exports", Get("/v1/exports?limit=10"), [1, 1]),
        ("ingestion runs", Get("/v1/usageingestions?limit=10"), [1, 1]),
        ("prune runs", Get("/v1/usageevents/prunes?limit=10"), [1, 1]),
        ("saved queries", Get("/v1/usage/saved-queries"), [1, 1]),
    ]
}

const WINDOW: &str = "from=2026-06-01T00:00:00Z&to=2026-07-01T00:00:00Z";

fn in_june(name: &str, value: Value) -> Value {
    let mut body = json!({"meter": "m0", "from": "2026-06-01T00:00:00Z", "to": "2026-07-01T00:00:00Z"});
    body[name] = value;
    body
}

fn is(field: &str, value: &str) -> Value {
    json!({"type": "condition", "field": field, "op": "eq", "value": value})
}

const SUBJECTS: u64 = 600;

/// An event of one of the subjects, each of whom has an hour of its own, so that lists have an order.
fn event(n: u64) -> Value {
    let number = n % SUBJECTS;
    let at = format!("2026-06-{:02}T{:02}:{:02}:00Z", 2 + number / 24, number % 24, n % 60);
    let (meter, region) =
        (if n % 5 == 4 { "m1" } else { "m0" }, if n.is_multiple_of(2) { "eu" } else { "us" });
    json!({"meter": meter, "subject": format!("s{number}"), "quantity": 1, "timestamp": at,
        "idempotency_key": format!("z{n:09}"), "metadata": {"region": region, "trace": format!("t{}", n % 100)}})
}

fn events(first: u64) -> Value {
    (first..first + 1000).map(event).collect()
}

/// Events whose keys come in no order.
fn shuffled(first: u64) -> Value {
    let one = |n: u64| {
        let mut event = event(n);
        event["idempotency_key"] = json!(format!("{:016x}", n.wrapping_mul(0x9E37_79B9_7F4A_7C15)));
        event
    };
    (first..first + 1000).map(one).collect()
}

/// A workspace in which a statement per row would show, and a scan would be slower than an index.
struct Lived {
    workspace: Workspace,
    meter_id: String,
    deep_cursor: String,
}

impl Lived {
    async fn of(server: &Server) -> Lived {
        let workspace = server.workspace().await;
        let mut meter_id = String::new();
        for n in 0..12 {
            let dimension = json!({"name": "region", "type": "string", "required": false});
            let meter = json!({"name": format!("m{n}"), "unit": "u", "dimensions": [dimension]});
            let made = workspace.post("/v1/meters", &meter).await.json(201);
            meter_id = made["id"].as_str().expect("an id").into();
        }
        // few enough that nothing is settled
        for n in 0..20 {
            workspace.post("/v1/usages/bulk", &events(n * 1000)).await.expect(201);
        }
        things_to_list(&workspace).await;
        let mut deep_cursor = String::new();
        // other pages than those that are measured: a statement that was prepared before is not seen again
        for _ in 0..5 {
            let page = workspace.get(&format!("/v1/subjects?limit=99&cursor={deep_cursor}")).await.json(200);
            deep_cursor = page["next_cursor"].as_str().expect("more subjects").to_string();
        }
        Lived { workspace, meter_id, deep_cursor }
    }

    async fn send(&self, call: &Call, number: u64) -> Answer {
        match call {
            Get(path) => {
                let is_page = !path.starts_with("/v1/");
                let needs_session = is_page || path.contains("/auth/") || path.contains("/saved-queries");
                let client: &Client = if needs_session { &self.workspace.session } else { &self.workspace };
                let path = path.replace("WINDOW", WINDOW).replace("METER", &self.meter_id);
                client.get(&path.replace("DEEP", &self.deep_cursor)).await
            }
            Post(path, body) => self.workspace.post(path, &body(number)).await,
        }
    }
}

/// Twelve of everything that is listed.
async fn things_to_list(ws: &Workspace) {
    let destination = json!({"name": "d", "webhook_url": "https://example.com/hook"});
    let destination = ws.post("/v1/alerts/destinations", &destination).await.json(201);
    for n in 0..12 {
        let limits: Vec<Value> =
            (0..3).map(|meter| json!({"meter": format!("m{meter}"), "limit": 1_000_000_000})).collect();
        let plan = ws.post("/v1/plans", &json!({"name": format!("p{n}"), "limits": limits})).await.json(201);
        let path = format!("/v1/plans/subjects/s{n}");
        ws.put(&path, &json!({"plan_id": plan["id"]})).await.expect(200);
        let rule = json!({"name": "r", "meter": "m9", "destination_id": destination["id"], "threshold": 1});
        ws.post("/v1/alerts", &rule).await.expect(201);
        ws.post("/v1/exports", &json!({"query": in_june("bucket_size", json!("day"))})).await.expect(202);
        let saved = json!({"name": format!("q{n}"), "query": {"meter": "m0"}});
        ws.session.post("/v1/usage/saved-queries", &saved).await.expect(201);
        ws.session.post("/v1/auth/api-keys", &json!({"name": "k"})).await.expect(201);
        ws.post("/v1/usageevents/prune?dry_run=true", &json!({})).await.expect(200);
        ws.post("/v1/entitlements/consume", &event(4_000_000 + n)).await.expect(201);
    }
}

/// How many statements each operation has run so far, as an operator sees it.
async fn statements(metrics: &Client) -> BTreeMap<String, u64> {
    let text = metrics.get("/metrics").await.expect(200).text;
    let lines =
        text.lines().filter_map(|line| line.strip_prefix("open_spanner_db_statements_total{operation=\""));
    lines
        .filter_map(|line| {
            let (operation, count) = line.split_once("\"} ")?;
            Some((operation.to_string(), count.parse().ok()?))
        })
        .collect()
}

/// What a request is measured with. Something else may use the database at the same time, or a cache may have run
/// out: that only adds, so the least of several measurements counts.
const TRIES: u64 = 20;

/// A server that shows what it asks its database for, with something in it.
struct Counted {
    lived: Lived,
    metrics: Client,
    server: Server,
}

impl Counted {
    async fn start(database: &Database) -> Counted {
        let address = format!("127.0.0.1:{}", stable_port());
        let settings = [
            ("OPEN_SPANNER_METRICS_ADDR", address.as_str()),
            ("OPEN_SPANNER_SERVE_WORKERS", "off"),
            ("OPEN_SPANNER_CACHE_TTL", "5s"),
            // what is read must not hang on how long this takes
            ("OPEN_SPANNER_INGEST_SETTLE_AFTER", "1h"),
        ];
        let server = Server::start_with(database, &settings);
        let lived = Lived::of(&server).await;
        Counted { lived, metrics: Client::new(&format!("http://{address}")), server }
    }

    /// Why a call is too dear, if it is.
    async fn complaint(&self, label: &str, call: &Call, budget: u64, number: &mut u64) -> Option<String> {
        let mut least: Option<(u64, BTreeMap<String, u64>)> = None;
        for _ in 0..TRIES {
            *number += 1;
            let before = statements(&self.metrics).await;
            let answer = self.lived.send(call, *number).await;
            assert!((200..300).contains(&answer.status), "{label}: {answer:?}");
            let mut spent = statements(&self.metrics).await;
            spent.iter_mut().for_each(|(operation, count)| *count -= before.get(operation).unwrap_or(&0));
            spent.retain(|_, count| *count > 0);
            let total = spent.values().sum();
            if least.as_ref().is_none_or(|(least, _)| total < *least) {
                least = Some((total, spent));
            }
            if least.as_ref().is_some_and(|(least, _)| *least <= budget) {
                return None;
            }
        }
        let (total, spent) = least?;
        Some(format!("{label}: {total} statements, {budget} allowed: {spent:?}"))
    }
}

async fn requests_keep_their_budgets(database: Database) {
    let counted = Counted::start(&database).await;
    let (mut number, mut dear) = (0, Vec::new());
    for (label, call, budgets) in calls() {
        let budget = budgets[usize::from(matches!(database, Database::Postgres { .. }))];
        dear.extend(counted.complaint(label, &call, budget, &mut number).await);
    }
    assert!(dear.is_empty(), "{}", dear.join("\n"));
    drop(counted.server);
}

/// Pages of the dashboard, and how many statements each may take on either database: six, the overview twelve. More take
/// the system, which also tells of backups, and those that show sums, each with a statement of its own, BEGIN and ROLLBACK where several must be of one instant, and on
/// SQLite one for each limit that a subject has.
#[rustfmt::skip]
const PAGES: [(&str, u64); 30] = [
    ("/overview", 12),
    ("/usage?meter=m0&from=2026-06-01T00:00:00Z&to=2026-07-01T00:00:00Z", 9),
    ("/usage/saved", 6),
    ("/events", 6),
    ("/events?meter=m0&subject=s7", 9),
    ("/events/refused", 6),
    ("/ingestion", 6),
    ("/explain?q=z000000001", 6),
    ("/search?q=s", 6),
    ("/meters", 6),
    ("/meters/m0", 9),
    ("/meters/m0/delete", 6),
    ("/subjects", 6),
    ("/subjects/s7", 11),
    ("/subjects/s7/links", 6),
    ("/quota", 6),
    ("/plans", 6),
    ("/decisions", 6),
    ("/alerts", 6),
    ("/destinations", 6),
    ("/deliveries", 6),
    ("/exports", 6),
    ("/jobs", 6),
    ("/jobs/workers/alert", 6),
    ("/system", 7),
    ("/api-keys", 6),
    ("/members", 6),
    ("/members/leave", 6),
    ("/audit", 6),
    ("/settings", 6),
];

async fn pages_keep_their_budgets(database: Database) {
    let counted = Counted::start(&database).await;
    let (mut number, mut dear) = (0, Vec::new());
    for (path, budget) in PAGES {
        dear.extend(counted.complaint(path, &Get(path), budget, &mut number).await);
    }
    assert!(dear.is_empty(), "{}", dear.join("\n"));
    drop(counted.server);
}

/// The ways to the rows, one file per database. `OPEN_SPANNER_REGENERATE=1` writes them anew.
async fn plans_are_the_recorded_ones(database: Database) {
    let settings = [
        // the sweepers of the server look for rows too, the workers and the caches would at any time
        ("OPEN_SPANNER_SERVE_WORKERS", "off"),
        ("OPEN_SPANNER_CACHE_TTL", "5s"),
        // what is read must not hang on how long this takes
        ("OPEN_SPANNER_INGEST_SETTLE_AFTER", "1h"),
        ("RUST_LOG", "info,open_spanner::sql=trace,open_spanner::http=debug"),
    ];
    let watch = plan::Watch::start(&database);
    let server = Server::start_with(&database, &settings);
    let lived = Lived::of(&server).await;
    watch.settle();
    server.logged(&lived.workspace.get("/health").await);
    let (mut number, mut text, mut scans) = (1000, String::new(), Vec::new());
    let name = if matches!(database, Database::Postgres { .. }) { "postgres.txt" } else { "sqlite.txt" };
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/statements").join(name);
    let known = std::fs::read_to_string(&path).unwrap_or_default();
    let mut calls = calls();
    // reads first: what many writes leave is settled, and then read in another way; how many there are hangs on their tries
    calls.sort_by_key(|(_, call, _)| call.writes());
    for (label, call, _) in calls {
        let mut first = None;
        for _ in 0..TRIES {
            number += 1;
            let from = watch.position(&server);
            let answer = lived.send(&call, number).await;
            assert!((200..300).contains(&answer.status), "{label}: {answer:?}");
            server.logged(&answer);
            let section = section(label, watch.sent_since(&server, from), &mut scans);
            // on a slow machine a cache may run out between two requests, and its statement comes with the next one
            let is_known = !section.is_empty() && known.contains(&section);
            let kept = first.get_or_insert_with(|| section.clone());
            if is_known {
                *kept = section;
                break;
            }
        }
        text.push_str(&first.unwrap_or_default());
    }
    assert!(scans.is_empty(), "whole tables are read:\n{}", scans.join("\n"));
    if env("OPEN_SPANNER_REGENERATE").as_deref() == Some("1") {
        std::fs::write(&path, text).expect("the snapshot is written");
        return;
    }
    let recorded = std::fs::read_to_string(&path).expect("the snapshot is checked in");
    let hint =
        "if the new ways are right: OPEN_SPANNER_REGENERATE=1 scripts/test --test it statements::plans";
    assert!(text == recorded, "{}\n{hint}", difference(&recorded, &text));
}

/// What one request comes to in the snapshot.
fn section(label: &str, statements: Vec<plan::Sent>, scans: &mut Vec<String>) -> String {
    let mut text = String::new();
    if !statements.is_empty() {
        text.push_str(&format!("{label}\n"));
    }
    for plan::Sent { name, ways, text: sql } in statements {
        text.push_str(&format!("    {name}\n"));
        for way in ways {
            if way.is_scan {
                scans.push(format!("{label}: {}\n{sql}", way.text));
            }
            text.push_str(&format!("        {}\n", way.text));
        }
    }
    text
}

/// The requests that come to something else, as they were and as they are.
fn difference(recorded: &str, found: &str) -> String {
    let sections = |text: &str| -> BTreeMap<String, String> {
        let (mut sections, mut label) = (BTreeMap::<String, String>::new(), String::new());
        for line in text.lines() {
            if !line.starts_with(' ') {
                label = line.to_owned();
            }
            sections.entry(label.clone()).or_default().push_str(&format!("{line}\n"));
        }
        sections
    };
    let (recorded, found) = (sections(recorded), sections(found));
    let labels: std::collections::BTreeSet<&String> = recorded.keys().chain(found.keys()).collect();
    let told = labels.into_iter().filter(|label| recorded.get(*label) != found.get(*label)).map(|label| {
        let shown = |sections: &BTreeMap<String, String>| sections.get(label).cloned().unwrap_or_default();
        format!("was: {}is:  {}", shown(&recorded), shown(&found))
    });
    told.collect()
}
