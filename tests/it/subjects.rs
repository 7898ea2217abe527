//! `/v1/subjects`: who used something, how much of it is stored, and their newest events.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use crate::support::{Client, Database, Server, on_both_databases, run, stable_port};

on_both_databases!(
    subjects_come_with_their_counts,
    a_subject_goes_with_its_last_event,
    events_of_a_subject_are_its_own,
    names_of_subjects_are_checked,
    a_name_whose_number_is_taken_has_the_next,
    subjects_are_the_workspaces_own,
    keys_for_some_meters_see_no_subjects,
    counts_stay_exact,
    pages_are_whole_while_late_events_wait,
    a_page_takes_few_statements_whatever_waits,
);

const SUBJECTS: &str = "/v1/subjects";

async fn record(client: &Client, meter: &str, subject: &str, day: u32) {
    let event = json!({"meter": meter, "subject": subject, "quantity": day, "timestamp": format!("2026-06-{day:02}T12:00:00Z")});
    client.post("/v1/usages", &event).await.expect(201);
}

async fn items(client: &Client, query: &str) -> Vec<Value> {
    let page = client.get(&format!("{SUBJECTS}?{query}")).await.json(200);
    page["items"].as_array().expect("a list").clone()
}

/// Ids are computed from names: here another name has come to the same one before.
async fn a_name_whose_number_is_taken_has_the_next(database: Database) {
    let server = Server::start(&database);
    let ws = server.workspace().await;
    ws.meter("m", "sum").await;
    let workspace = database.lines("SELECT CAST(id AS TEXT) AS line FROM workspaces").remove(0);
    let usual = open_spanner::usage::subject_ids::usual(workspace.parse().expect("a number"), "ann");
    database.execute(&format!(
        "INSERT INTO subjects (id, workspace_id, name) VALUES ({usual}, {workspace}, 'other')"
    ));
    for (subject, day) in [("ann", 3), ("bob", 4), ("ann", 5)] {
        record(&ws, "m", subject, day).await;
    }
    let next = usual.checked_add(1).unwrap_or(1).to_string();
    assert_eq!(database.lines("SELECT CAST(id AS TEXT) AS line FROM subjects WHERE name = 'ann'"), [next]);
    let month = "/v1/usages?meter=m&bucket_size=month&from=2026-06-01T00:00:00Z&to=2026-07-01T00:00:00Z";
    for (subject, total) in [("ann", 8), ("bob", 4)] {
        assert_eq!(ws.get(&format!("{month}&subject={subject}")).await.json(200)[0]["quantity"], total);
    }
    assert_eq!(items(&ws, "").await.len(), 2, "the other has no events");
}

async fn subjects_come_with_their_counts(database: Database) {
    let server = Server::start(&database);
    let ws = server.workspace().await;
    assert_eq!(items(&ws, "").await, [Value::Null; 0]);
    ws.meter("a", "sum").await;
    ws.meter("b", "count").await;
    for (meter, subject, day) in
        [("a", "ann", 1), ("b", "ann", 9), ("a", "bob", 9), ("a", "ann", 3), ("a", "cid", 2)]
    {
        record(&ws, meter, subject, day).await;
    }
    let subject = |name: &str, events: u32, meters: u32, day: u32| {
        json!({"subject": name, "usage_events": events, "meters": meters,
               "last_event_at": format!("2026-06-{day:02}T12:00:00Z")})
    };
    let wanted = [subject("ann", 3, 2, 9), subject("bob", 1, 1, 9), subject("cid", 1, 1, 2)];
    assert_eq!(items(&ws, "").await, wanted, "the latest event first, then by name");
    // the same on pages of one, with cursors
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = ws.get(&format!("{SUBJECTS}?limit=1&cursor={cursor}")).await.json(200);
        seen.extend(page["items"].as_array().expect("a list").clone());
        let Some(next) = page.get("next_cursor") else { break };
        cursor = next.as_str().expect("a text").to_owned();
    }
    assert_eq!(seen, wanted);
    ws.get(&format!("{SUBJECTS}?limit=0")).await.error(400, "invalid_limit");
    ws.get(&format!("{SUBJECTS}?cursor=%21")).await.error(400, "invalid_input");
}

async fn a_subject_goes_with_its_last_event(database: Database) {
    let server = Server::start(&database);
    let ws = server.workspace().await;
    let meter = json!({"name": "short", "unit": "u", "event_retention_days": 1});
    ws.post("/v1/meters", &meter).await.expect(201);
    let meter = json!({"name": "long", "unit": "u", "event_retention_days": 3650});
    ws.post("/v1/meters", &meter).await.expect(201);
    for (meter, subject) in [("short", "ann"), ("short", "bob"), ("long", "bob")] {
        record(&ws, meter, subject, 1).await;
    }
    ws.post_text("/v1/usageevents/prune", "").await.expect(200);
    let left = items(&ws, "").await;
    assert_eq!(left.len(), 1, "{left:?}");
    assert_eq!(
        (&left[0]["subject"], &left[0]["usage_events"], &left[0]["meters"]),
        (&json!("bob"), &json!(1), &json!(1))
    );
}

async fn events_of_a_subject_are_its_own(database: Database) {
    let server = Server::start(&database);
    let ws = server.workspace().await;
    ws.meter("a", "sum").await;
    ws.meter("b", "sum").await;
    for (meter, subject, day) in [("a", "org:7", 1), ("b", "org:7", 3), ("a", "org:7", 2), ("a", "org:70", 4)]
    {
        record(&ws, meter, subject, day).await;
    }
    let days = |events: &Value| -> Vec<Value> {
        events.as_array().expect("a plain array").iter().map(|event| event["quantity"].clone()).collect()
    };
    for spelling in ["org:7", "org%3A7"] {
        let events = ws.get(&format!("{SUBJECTS}/{spelling}/usageevents")).await.json(200);
        assert_eq!(days(&events), [json!(3), json!(2), json!(1)], "{spelling}: newest first, of all meters");
    }
    let events = ws.get(&format!("{SUBJECTS}/org:7/usageevents?limit=1")).await.json(200);
    assert_eq!(days(&events), [json!(3)]);
    let nobody = ws.get(&format!("{SUBJECTS}/nobody/usageevents")).await.json(200);
    assert_eq!(nobody, json!([]));
}

async fn names_of_subjects_are_checked(database: Database) {
    let server = Server::start(&database);
    let ws = server.workspace().await;
    for bad in ["a%20b", "-a", "%C3%A4", "a%2Fb", &"x".repeat(129)] {
        ws.get(&format!("{SUBJECTS}/{bad}/usageevents")).await.error(400, "invalid_input");
    }
    ws.get(&format!("{SUBJECTS}/{}/usageevents", "x".repeat(128))).await.expect(200);
    ws.get(&format!("{SUBJECTS}/s/usageevents?limit=x")).await.error(400, "invalid_limit");
    ws.get(&format!("{SUBJECTS}/s")).await.expect(404);
}

async fn subjects_are_the_workspaces_own(database: Database) {
    let server = Server::start(&database);
    let (mine, theirs) = (server.workspace().await, server.workspace().await);
    for ws in [&mine, &theirs] {
        ws.meter("m", "sum").await;
    }
    record(&mine, "m", "ann", 1).await;
    record(&theirs, "m", "ann", 2).await;
    record(&theirs, "m", "bob", 3).await;
    let seen = items(&mine, "").await;
    assert_eq!((seen.len(), &seen[0]["usage_events"]), (1, &json!(1)), "{seen:?}");
    let events = mine.get(&format!("{SUBJECTS}/bob/usageevents")).await.json(200);
    assert_eq!(events, json!([]));
    server.client().get(SUBJECTS).await.error(401, "unauthorized");
}

async fn keys_for_some_meters_see_no_subjects(database: Database) {
    let server = Server::start(&database);
    let ws = server.workspace().await;
    let key = async |body: Value| {
        let made = ws.session.post("/v1/auth/api-keys", &body).await.json(201);
        server.client().with_key(made["key"].as_str().expect("the secret"))
    };
    let some = key(json!({"name": "k", "allowed_meters": ["m"]})).await;
    some.get(SUBJECTS).await.error(403, "forbidden");
    some.get(&format!("{SUBJECTS}/ann/usageevents")).await.error(403, "forbidden");
    let writer = key(json!({"name": "w", "scopes": ["usage:write"]})).await;
    writer.get(SUBJECTS).await.error(403, "forbidden");
    let reader = key(json!({"name": "r", "scopes": ["usage:read"]})).await;
    reader.get(SUBJECTS).await.expect(200);
}

/// Counts wait, are settled, and are taken off by pruning in the background; at every instant they are those of a recount.
async fn counts_stay_exact(database: Database) {
    for (seed, settle_after) in [(1, "300ms"), (2, "1h")] {
        let server = Server::start_with(&database, &[("OPEN_SPANNER_INGEST_SETTLE_AFTER", settle_after)]);
        let ws = server.workspace().await;
        let mut rng = StdRng::seed_from_u64(seed);
        for (meter, days) in [("a", 20), ("b", 40), ("c", 90)] {
            let body = json!({"name": meter, "unit": "u", "event_retention_days": days});
            ws.post("/v1/meters", &body).await.expect(201);
        }
        // answers have whole seconds
        let now = jiff::Timestamp::from_second(jiff::Timestamp::now().as_second()).expect("in range");
        for round in 0..8 {
            // early and late ones in no order, over a hundred days up to this hour; some at the same instant
            let events: Vec<Value> = (0..40)
                .map(|_| {
                    let at = now - jiff::SignedDuration::from_hours(rng.random_range(0..2_400));
                    let (meter, subject) = (["a", "b", "c"][rng.random_range(0..3)], rng.random_range(0..9));
                    json!({"meter": meter, "subject": format!("w{seed}s{subject}"), "quantity": 1, "timestamp": at.to_string()})
                })
                .collect();
            ws.post("/v1/usages/bulk", &json!(events)).await.expect(201);
            assert_counted(&database, &ws, seed).await;
            if round % 3 == 2 {
                ws.post("/v1/usageevents/prune", &json!({})).await.expect(200);
                assert_counted(&database, &ws, seed).await;
                tokio::time::sleep(Duration::from_millis(rng.random_range(0..1_500))).await;
                assert_counted(&database, &ws, seed).await;
            }
        }
    }
}

/// All of the list, in its order, by pages of three.
async fn assert_counted(database: &Database, client: &Client, seed: u64) {
    let recount = format!(
        "SELECT s.name || ' ' || COUNT(*) || ' ' || COUNT(DISTINCT e.meter_id) || ' ' || MAX(e.event_time) AS line
         FROM events e JOIN subjects s ON s.id = e.subject_id
         WHERE s.name LIKE 'w{seed}s%'
         GROUP BY s.name ORDER BY MAX(e.event_time) DESC, s.name"
    );
    let (mut listed, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = client.get(&format!("{SUBJECTS}?limit=3&cursor={cursor}")).await.json(200);
        for row in page["items"].as_array().expect("a list") {
            let at: jiff::Timestamp = row["last_event_at"].as_str().expect("a time").parse().expect("a time");
            let name = row["subject"].as_str().expect("a name");
            listed.push(format!("{name} {} {} {}", row["usage_events"], row["meters"], at.as_microsecond()));
        }
        let Some(next) = page.get("next_cursor") else { break };
        cursor = next.as_str().expect("a text").to_owned();
    }
    assert_eq!(listed, database.lines(&recount));
}

/// Writes events of subjects at seconds of June 2026.
async fn record_at(client: &Client, events: impl Iterator<Item = (String, i64)>) {
    let june: jiff::Timestamp = "2026-06-01T00:00:00Z".parse().expect("a time");
    let event = |(subject, second): (String, i64)| {
        let at = june + jiff::SignedDuration::from_secs(second);
        json!({"meter": "m", "subject": subject, "quantity": 1, "timestamp": at.to_string()})
    };
    let events: Vec<Value> = events.map(event).collect();
    for some in events.chunks(1_000) {
        client.post("/v1/usages/bulk", &json!(some)).await.expect(201);
    }
}

/// Waits until so many subjects are settled.
async fn settled(database: &Database, count: u64) {
    let end = std::time::Instant::now() + Duration::from_secs(60);
    while database.count("subjects WHERE last_event_at IS NOT NULL") < count {
        assert!(std::time::Instant::now() < end, "nothing is settled");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

const SETTLED_SOON: (&str, &str) = ("OPEN_SPANNER_INGEST_SETTLE_AFTER", "100ms");
const SETTLED_LATER: (&str, &str) = ("OPEN_SPANNER_INGEST_SETTLE_AFTER", "1h");

/// Late events wait for subjects of earlier pages, and are newer than what waits for one of this page.
async fn pages_are_whole_while_late_events_wait(database: Database) {
    let mut server = Server::start_with(&database, &[SETTLED_SOON]);
    let ws = server.workspace().await;
    ws.meter("m", "sum").await;
    let early = (0..20).map(|n| (format!("a{n:02}"), 9_000 + n));
    let rest = ["c", "d", "e", "f", "g", "b"].into_iter().zip((1..7).rev());
    record_at(&ws, early.clone().chain(rest.map(|(name, at)| (name.to_owned(), at * 100)))).await;
    settled(&database, 26).await;
    server.terminate();
    let server = Server::start_with(&database, &[SETTLED_LATER]);
    let ws = ws.at(&server.url());
    record_at(&ws, early.map(|(name, at)| (name, at - 8_000)).chain([("b".to_owned(), 590)])).await;

    let (mut listed, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = ws.get(&format!("{SUBJECTS}?limit=2&cursor={cursor}")).await.json(200);
        let rows = page["items"].as_array().expect("a list");
        listed.extend(rows.iter().map(|row| row["subject"].as_str().expect("a name").to_owned()));
        let Some(next) = page.get("next_cursor") else { break };
        cursor = next.as_str().expect("a text").to_owned();
    }
    let wanted = (0..20).rev().map(|n| format!("a{n:02}"));
    let wanted: Vec<String> = wanted.chain(["c", "b", "d", "e", "f", "g"].map(str::to_owned)).collect();
    assert_eq!(listed, wanted);
}

async fn a_page_takes_few_statements_whatever_waits(database: Database) {
    let mut server = Server::start_with(&database, &[SETTLED_SOON]);
    let ws = server.workspace().await;
    ws.meter("m", "sum").await;
    record_at(&ws, (0..1_500).map(|n| (format!("s{n:04}"), n))).await;
    settled(&database, 1_500).await;
    server.terminate();
    let address = format!("127.0.0.1:{}", stable_port());
    let server =
        Server::start_with(&database, &[SETTLED_LATER, ("OPEN_SPANNER_METRICS_ADDR", address.as_str())]);
    let (ws, metrics) = (ws.at(&server.url()), Client::new(&format!("http://{address}")));
    record_at(&ws, (100..1_500).map(|n| (format!("s{n:04}"), n + 9_000))).await;
    // behind all that waits: in the way of its subjects are those of all pages before
    let page = ws.get(&format!("{SUBJECTS}?limit=1000")).await.json(200);
    let cursor = page["next_cursor"].as_str().expect("more").to_owned();
    let page = ws.get(&format!("{SUBJECTS}?limit=400&cursor={cursor}")).await.json(200);
    assert_eq!(page["items"][399]["subject"], "s0100");
    let cursor = page["next_cursor"].as_str().expect("more").to_owned();
    let mut least = u64::MAX;
    for _ in 0..5 {
        let before = page_statements(&metrics).await;
        let page = items(&ws, &format!("limit=10&cursor={cursor}")).await;
        least = least.min(page_statements(&metrics).await - before);
        let names: Vec<&str> = page.iter().filter_map(|row| row["subject"].as_str()).collect();
        assert_eq!((names.len(), names[0], names[9]), (10, "s0099", "s0090"));
    }
    assert!(least <= 8, "{least} statements");
}

/// How many statements lists of subjects have taken so far.
async fn page_statements(metrics: &Client) -> u64 {
    let text = metrics.get("/metrics").await.expect(200).text;
    let count = text.lines().find_map(|line| {
        line.strip_prefix("open_spanner_db_statements_total{operation=\"subjects::list\"} ")
    });
    count.map_or(0, |count| count.parse().expect("a number"))
}

/// Servers keep sums of a subject apart from each other's, so that neither waits for the other's commit.
#[test]
fn a_subject_of_two_servers_adds_up() {
    run(async {
        let database = Database::postgres();
        let (first, second) = (Server::start(&database), Server::start(&database));
        let ws = first.workspace().await;
        let other = ws.at(&second.url());
        let wanted = [
            ("sum", json!(18)),
            ("count", json!(4)),
            ("avg", json!(4.5)),
            ("min", json!(1)),
            ("max", json!(9)),
            ("first", json!(5)),
            ("last", json!(3)),
        ];
        for (aggregation, _) in &wanted {
            ws.meter(aggregation, aggregation).await;
            for (n, quantity) in [5, 1, 9, 3].into_iter().enumerate() {
                let client = if n % 2 == 0 { &ws.key } else { &other };
                let event = json!({"meter": aggregation, "subject": "s", "quantity": quantity,
                                   "timestamp": format!("2026-06-01T12:00:0{n}Z")});
                client.post("/v1/usages", &event).await.expect(201);
            }
            for narrowed in ["subject=s", "group_by=subject", "bucket_size=hour&subject=s"] {
                let path = format!(
                    "/v1/usages?meter={aggregation}&from=2026-06-01T00:00:00Z&to=2026-06-02T00:00:00Z&{narrowed}"
                );
                let path = if narrowed.contains("bucket_size") { path } else { path + "&bucket_size=day" };
                for client in [&ws.key, &other] {
                    let found = client.get(&path).await.json(200);
                    let value = wanted.iter().find(|(name, _)| name == aggregation).map(|(_, value)| value);
                    assert_eq!(found.as_array().map(Vec::len), Some(1), "{path}: {found}");
                    assert_eq!(Some(&found[0]["quantity"]), value, "{path}: {found}");
                }
            }
        }
        let rows = items(&other, "").await;
        assert_eq!(rows.len(), 1, "{rows:?}");
        assert_eq!((&rows[0]["usage_events"], &rows[0]["meters"]), (&json!(28), &json!(7)));
    });
}
