//! Pruning: what goes, what stays, and that no total and no count is ever wrong, before, during and after.

use std::collections::{BTreeMap, BTreeSet};

use open_spanner::config;
use open_spanner::db::Store;
use open_spanner::metering::time::{DAY, HOUR, SECOND, Timestamp};
use open_spanner::retention::check_totals;
use open_spanner::retention::self_check::{self, Difference};
use open_spanner::retention::sql::oldest_event;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::support::{Client, Database, Server, Workspace, on_both_databases, run};

on_both_databases!(
    totals_outlive_pruning,
    statistics_follow_the_stored_events,
    a_late_retry_of_a_pruned_event_is_a_duplicate,
    a_dry_run_counts_what_a_prune_deletes,
    nothing_is_wrong_while_a_prune_runs,
    one_prune_of_a_workspace_at_a_time,
    the_timer_prunes_every_workspace,
    a_stop_comes_between_two_steps,
    a_key_for_some_meters_may_not_prune,
    totals_are_compared_with_their_events,
    totals_are_compared_once_an_hour,
);

const AGGREGATIONS: [&str; 8] = ["sum", "count", "avg", "min", "max", "first", "last", "rate"];
const SUBJECTS: [&str; 4] = ["ann", "bob", "cid", "dee"];
const REGIONS: [&str; 3] = ["eu", "us", "ap"];

/// What the tests know of an event.
#[derive(Clone, Debug)]
struct Stored {
    meter: usize,
    subject: &'static str,
    at: Timestamp,
}

/// Days of retention of the meter with this number.
fn retention_days(meter: usize) -> i64 {
    [10, 40, 90][meter % 3]
}

fn meter_name(meter: usize) -> String {
    format!("m{meter}_{}", AGGREGATIONS[meter])
}

async fn make_meters(client: &Client) {
    for (number, aggregation) in AGGREGATIONS.iter().enumerate() {
        let dimension = json!({"name": "region", "type": "string"});
        let body = json!({"name": meter_name(number), "unit": "u", "aggregation": aggregation, "dimensions": [dimension],
                          "event_retention_days": retention_days(number)});
        client.post("/v1/meters", &body).await.expect(201);
    }
}

fn event(rng: &mut StdRng, known: &Stored) -> Value {
    let quantity = f64::from(rng.random_range(1..100_000)) / 1000.0;
    json!({"meter": meter_name(known.meter), "subject": known.subject, "quantity": quantity,
           "timestamp": known.at.to_exact_text(), "metadata": {"region": REGIONS[rng.random_range(0..3)]}})
}

/// Stores random events from the last 200 days, some of them within the same hour, none near a cut-off.
async fn record_random(client: &Client, rng: &mut StdRng, now: Timestamp, count: usize) -> Vec<Stored> {
    let mut known = Vec::with_capacity(count);
    while known.len() < count {
        let meter = rng.random_range(0..AGGREGATIONS.len());
        let days = rng.random_range(1..200);
        let at = now.plus(-days * DAY + rng.random_range(0..3) * HOUR + rng.random_range(0..HOUR));
        let cutoff = now.plus(-retention_days(meter) * DAY);
        if (at.0 - cutoff.0).abs() > 60 * SECOND && at < now {
            known.push(Stored { meter, subject: SUBJECTS[rng.random_range(0..4)], at });
        }
    }
    let events: Vec<Value> = known.iter().map(|one| event(rng, one)).collect();
    for chunk in events.chunks(500) {
        let answer = client.post("/v1/usages/bulk", &json!(chunk)).await.json(201);
        assert_eq!(answer["accepted"], chunk.len(), "{answer}");
    }
    known
}

/// Queries over windows of whole hours, in every form that rollups or raw events may answer.
fn whole_hour_queries(rng: &mut StdRng, now: Timestamp) -> Vec<String> {
    let mut queries = Vec::new();
    let end = now.ceil(HOUR);
    for number in 0..AGGREGATIONS.len() {
        let meter = meter_name(number);
        let mut add = |from: Timestamp, to: Timestamp, more: &str| {
            queries.push(format!("/v1/usages?meter={meter}&from={from}&to={to}&limit=1000&{more}"));
        };
        add(end.plus(-210 * DAY), end, "bucket_size=day");
        add(end.plus(-210 * DAY), end, "bucket_size=month&group_by=region,subject");
        for _ in 0..6 {
            let from = end.plus(-rng.random_range(24..4800) * HOUR);
            let to = from.plus(rng.random_range(1..700) * HOUR);
            let more = [
                "bucket_size=hour",
                "bucket_size=day&group_by=region",
                "bucket_size=day&subject=bob",
                "bucket_size=month&metadata.region=eu",
                "bucket_size=hour&group_by=subject",
            ];
            add(from, to, more[rng.random_range(0..more.len())]);
        }
    }
    queries
}

async fn answers(client: &Client, queries: &[String]) -> Vec<String> {
    let mut texts = Vec::with_capacity(queries.len());
    for query in queries {
        texts.push(client.get(query).await.expect(200).text);
    }
    texts
}

async fn prune(client: &Client) -> Value {
    client.post_text("/v1/usageevents/prune", "").await.json(200)
}

async fn totals_outlive_pruning(database: Database) {
    let server = Server::start(&database);
    for seed in 1..=3 {
        let workspace = server.workspace().await;
        let (mut rng, now) = (StdRng::seed_from_u64(seed), Timestamp::now());
        make_meters(&workspace).await;
        record_random(&workspace, &mut rng, now, 400).await;
        let queries = whole_hour_queries(&mut rng, now);
        let before = answers(&workspace, &queries).await;
        assert!(before.iter().filter(|text| text.trim() != "[]").count() > queries.len() / 2);

        let deleted = prune(&workspace).await["deleted"].as_i64().unwrap_or_default();
        assert!(deleted > 50, "{deleted}");
        let after = answers(&workspace, &queries).await;
        for ((query, before), after) in queries.iter().zip(&before).zip(&after) {
            assert_eq!(before, after, "seed {seed}: {query}");
        }

        // late arrivals on pruned days count as well, and pruning them again changes nothing
        record_random(&workspace, &mut rng, now, 200).await;
        let late = answers(&workspace, &queries).await;
        assert_ne!(late, after);
        assert!(prune(&workspace).await["deleted"].as_i64() > Some(20));
        assert_eq!(answers(&workspace, &queries).await, late, "seed {seed}: late arrivals");
    }
}

/// What the statistics must say of these events.
async fn assert_statistics(workspace: &Workspace, stored: &[Stored], context: &str) {
    let mut meters: BTreeMap<String, (i64, Option<Timestamp>)> =
        (0..AGGREGATIONS.len()).map(|meter| (meter_name(meter), (0, None))).collect();
    let mut subjects: BTreeMap<&str, (i64, BTreeSet<usize>, Timestamp)> = BTreeMap::new();
    for one in stored {
        let entry = meters.get_mut(&meter_name(one.meter)).expect("all meters are there");
        *entry = (entry.0 + 1, entry.1.max(Some(one.at)));
        let entry = subjects.entry(one.subject).or_insert((0, BTreeSet::new(), one.at));
        entry.0 += 1;
        entry.1.insert(one.meter);
        entry.2 = entry.2.max(one.at);
    }
    let rows = workspace.get("/v1/meters/stats?limit=500").await.json(200);
    let rows = rows["items"].as_array().expect("a list").clone();
    assert_eq!(rows.len(), AGGREGATIONS.len());
    for row in rows {
        let name = row["meter"].as_str().expect("a name");
        let (count, last) = meters[name];
        assert_eq!(row["usage_events"], count, "{context}: {name}");
        assert_eq!(
            row["last_event_at"].as_str(),
            last.map(|at| at.to_string()).as_deref(),
            "{context}: {name}"
        );
    }
    let stats = workspace.get("/v1/system/stats").await.json(200);
    assert_eq!(stats["usage_events"], stored.len(), "{context}");
    assert_eq!(stats["meters"], AGGREGATIONS.len(), "{context}");

    let mut wanted: Vec<_> = subjects.into_iter().collect();
    wanted.sort_by_key(|(name, (.., last))| (std::cmp::Reverse(*last), *name));
    let (mut got, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = workspace.get(&format!("/v1/subjects?limit=1&cursor={cursor}")).await.json(200);
        got.extend(page["items"].as_array().expect("a list").clone());
        match page["next_cursor"].as_str() {
            Some(next) => cursor = next.to_string(),
            None => break,
        }
    }
    let wanted: Vec<Value> = wanted
        .into_iter()
        .map(|(subject, (count, meters, last))| {
            json!({"subject": subject, "usage_events": count, "meters": meters.len(), "last_event_at": last.to_string()})
        })
        .collect();
    assert_eq!(got, wanted, "{context}");
}

async fn statistics_follow_the_stored_events(database: Database) {
    let server = Server::start(&database);
    for seed in 11..=13 {
        let workspace = server.workspace().await;
        let (mut rng, now) = (StdRng::seed_from_u64(seed), Timestamp::now());
        make_meters(&workspace).await;
        assert_statistics(&workspace, &[], "nothing stored").await;
        let is_kept = |one: &Stored| one.at >= now.plus(-retention_days(one.meter) * DAY);
        let mut stored = record_random(&workspace, &mut rng, now, 300).await;
        assert_statistics(&workspace, &stored, "before pruning").await;
        prune(&workspace).await;
        stored.retain(is_kept);
        assert_statistics(&workspace, &stored, "after pruning").await;
        stored.extend(record_random(&workspace, &mut rng, now, 100).await);
        assert_statistics(&workspace, &stored, "with late arrivals").await;
        prune(&workspace).await;
        stored.retain(is_kept);
        assert_statistics(&workspace, &stored, "after pruning again").await;
    }
}

fn days_ago(days: i64) -> Timestamp {
    Timestamp::now().plus(-days * DAY)
}

async fn a_late_retry_of_a_pruned_event_is_a_duplicate(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    let body = json!({"name": "calls", "unit": "u", "event_retention_days": 10});
    workspace.post("/v1/meters", &body).await.expect(201);
    let event = json!({"meter": "calls", "subject": "s", "quantity": 7, "idempotency_key": "once",
                       "timestamp": days_ago(30).to_exact_text()});
    let first = workspace.post("/v1/usages", &event).await.json(201);
    let query = format!(
        "/v1/usages?meter=calls&bucket_size=day&from={}&to={}",
        days_ago(31).floor(DAY),
        days_ago(29).floor(DAY)
    );
    let total = workspace.get(&query).await.expect(200).text;
    assert_eq!(prune(&workspace).await["deleted"], 1);
    assert_eq!(workspace.get("/v1/subjects/s/usageevents").await.json(200), json!([]));

    let retry = workspace.post("/v1/usages", &event).await;
    assert_eq!(retry.header("idempotency-replayed"), "true");
    let retry = retry.json(201);
    for field in ["id", "subject", "meter", "quantity", "timestamp", "idempotency_key"] {
        assert_eq!(retry[field], first[field], "{field}");
    }
    let bulk = workspace.post("/v1/usages/bulk", &json!([event])).await.json(201);
    assert_eq!((&bulk["accepted"], &bulk["duplicates"]), (&json!(0), &json!(1)), "{bulk}");
    assert_eq!(workspace.get(&query).await.expect(200).text, total);
    assert_eq!(workspace.get("/v1/system/stats").await.json(200)["usage_events"], 0);
}

async fn a_dry_run_counts_what_a_prune_deletes(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    let mut rng = StdRng::seed_from_u64(21);
    make_meters(&workspace).await;
    for _ in 0..3 {
        record_random(&workspace, &mut rng, Timestamp::now(), 150).await;
        let dry = workspace.post_text("/v1/usageevents/prune?dry_run=true", "").await.json(200);
        let real = prune(&workspace).await;
        assert!(real["deleted"].as_i64() > Some(0));
        assert_eq!(dry["deleted"], real["deleted"]);
        let deleted = |run: &Value| -> Vec<(Value, Value)> {
            let meters = run["meters"].as_array().expect("a list");
            meters.iter().map(|one| (one["meter"].clone(), one["deleted"].clone())).collect()
        };
        assert_eq!(deleted(&dry), deleted(&real));
        assert_eq!(deleted(&real).len(), AGGREGATIONS.len());
    }
}

/// Many events of one meter, most of them past retention; returns how many are not.
async fn fill(workspace: &Workspace, old: usize) -> usize {
    let body = json!({"name": "much", "unit": "u", "event_retention_days": 10});
    workspace.post("/v1/meters", &body).await.expect(201);
    let (now, young) = (Timestamp::now(), 500);
    let at = |number: usize| match number < old {
        true => now.plus(-60 * DAY + number as i64 * 40 * DAY / old as i64),
        false => now.plus(-5 * DAY + number as i64 * SECOND),
    };
    let events: Vec<Value> = (0..old + young)
        .map(|number| {
            json!({"meter": "much", "subject": format!("s{}", number % 7), "quantity": 1,
                   "timestamp": at(number).to_exact_text()})
        })
        .collect();
    for chunk in events.chunks(1000) {
        workspace.post("/v1/usages/bulk", &json!(chunk)).await.expect(201);
    }
    young
}

fn sum_of(rows: &Value) -> f64 {
    let rows = rows.as_array().expect("a list");
    rows.iter().map(|row| row["quantity"].as_f64().expect("a number")).sum()
}

async fn nothing_is_wrong_while_a_prune_runs(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    let old = 20_000;
    let young = fill(&workspace, old).await;
    database.slow_deletes();
    let end = Timestamp::now().ceil(HOUR).plus(HOUR);
    let everything = format!(
        "/v1/usages?meter=much&bucket_size=day&limit=1000&group_by=subject&from={}&to={end}",
        end.plus(-70 * DAY)
    );
    // cut in the middle of hours that are being pruned: adjacent windows add up all the same
    let cut = Timestamp::now().plus(-40 * DAY).floor(HOUR).plus(HOUR / 2);
    let window = |from, to| format!("/v1/usages?meter=much&bucket_size=month&from={from}&to={to}");
    let halves = [window(end.plus(-70 * DAY), cut), window(cut, end)];

    let pruner = workspace.key.clone();
    let pruning = tokio::spawn(async move { prune(&pruner).await });
    let (mut least, mut rounds) = (old + young, 0);
    loop {
        let is_done = pruning.is_finished();
        let total = sum_of(&workspace.get(&everything).await.json(200));
        assert_eq!(total, (old + young) as f64, "the total in round {rounds}");
        let stats = workspace.get("/v1/system/stats").await.json(200);
        let stored = stats["usage_events"].as_u64().expect("a number") as usize;
        assert!(stored <= least && stored >= young, "{stored} after {least} in round {rounds}");
        least = stored;
        let first = sum_of(&workspace.get(&halves[0]).await.json(200));
        let second = sum_of(&workspace.get(&halves[1]).await.json(200));
        let hour_of_the_cut = 15.0;
        let difference = first + second - (old + young) as f64;
        assert!(difference.abs() <= hour_of_the_cut, "{difference} in round {rounds}");
        rounds += 1;
        if is_done {
            break;
        }
    }
    assert_eq!(pruning.await.expect("no panic")["deleted"], old);
    assert_eq!(least, young);
    assert!(rounds >= 2, "the prune took {rounds} rounds");
    let [first, second] = [&halves[0], &halves[1]];
    let both = sum_of(&workspace.get(first).await.json(200)) + sum_of(&workspace.get(second).await.json(200));
    assert_eq!(both, (old + young) as f64, "adjacent windows add up after the prune");
}

async fn one_prune_of_a_workspace_at_a_time(database: Database) {
    let server = Server::start(&database);
    let (one, other) = (server.workspace().await, server.workspace().await);
    fill(&one, 10).await;
    fill(&other, 10).await;
    // both workspaces have been the first and the second to get an id
    let lease = |expires_at: i64| {
        format!(
            "INSERT INTO leases (name, holder, expires_at)
             SELECT 'prune:' || workspace_id, 'somebody', {expires_at} FROM meters ORDER BY id LIMIT 1"
        )
    };
    database.lines(&lease(Timestamp::now().plus(30 * SECOND).0));
    one.post_text("/v1/usageevents/prune", "").await.error(409, "conflict");
    assert_eq!(prune(&other).await["deleted"], 10);
    assert_eq!(one.post_text("/v1/usageevents/prune?dry_run=1", "").await.json(200)["deleted"], 10);
    database.lines("UPDATE leases SET expires_at = 1");
    assert_eq!(prune(&one).await["deleted"], 10, "whoever held it is gone");
    assert_eq!(database.count("leases"), 0);
}

/// Waits until the answer is as wanted.
async fn until(what: &str, mut probe: impl AsyncFnMut() -> bool) {
    for _ in 0..1200 {
        if probe().await {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("not within a minute: {what}");
}

const TIMER: [(&str, &str); 2] =
    [("OPEN_SPANNER_RETENTION_PRUNE_ENABLED", "true"), ("OPEN_SPANNER_RETENTION_PRUNE_INTERVAL", "300ms")];

async fn the_timer_prunes_every_workspace(database: Database) {
    let server = Server::start_with(&database, &TIMER);
    let workspaces = [server.workspace().await, server.workspace().await, server.workspace().await];
    let old = [1500, 10, 0];
    for (workspace, old) in workspaces.iter().zip(old) {
        fill(workspace, old).await;
    }
    for (workspace, old) in workspaces.iter().zip(old) {
        until("only young events are stored", async || {
            workspace.get("/v1/system/stats").await.json(200)["usage_events"] == 500
        })
        .await;
        until("everything deleted is recorded", async || {
            let runs = workspace.get("/v1/usageevents/prunes").await.json(200);
            let runs = runs["items"].as_array().expect("a list").clone();
            runs.iter().filter_map(|run| run["deleted"].as_u64()).sum::<u64>() == old as u64
        })
        .await;
        let stats = workspace.get("/v1/system/stats").await.json(200);
        assert_eq!(stats["last_prune_run"].is_null(), old == 0, "a run that finds nothing is not recorded");
    }
}

async fn a_stop_comes_between_two_steps(database: Database) {
    let mut server = Server::start(&database);
    let workspace = server.workspace().await;
    let old = 20_000;
    let young = fill(&workspace, old).await;
    database.slow_deletes();
    let filled = (old + young) as u64;
    let pruner = workspace.key.clone();
    let pruning = tokio::spawn(async move { pruner.try_post("/v1/usageevents/prune", &json!(null)).await });
    until("the prune has begun", async || database.count("events") < filled).await;
    assert!(server.terminate().success());
    drop(pruning.await);
    let left = database.count("events");
    let recorded = database.lines("SELECT CAST(deleted AS TEXT) AS line FROM prune_runs");
    assert_eq!(recorded, [(filled - left).to_string()], "what was deleted is recorded");
    assert_eq!(database.count("leases"), 0);
    assert!(left > young as u64, "the prune was cut short");
}

async fn a_key_for_some_meters_may_not_prune(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    let body = json!({"name": "some", "scopes": ["*"], "allowed_meters": ["*"]});
    let made = workspace.session.post("/v1/auth/api-keys", &body).await.json(201);
    let confined = server.client().with_key(made["key"].as_str().expect("the secret"));
    confined.post_text("/v1/usageevents/prune", "").await.error(403, "forbidden");
    for path in [
        "/v1/usageevents/prunes",
        "/v1/usageingestions",
        "/v1/subjects",
        "/v1/subjects/s/usageevents",
        "/v1/meters/stats",
        "/v1/system/stats",
    ] {
        confined.get(path).await.error(403, "forbidden");
    }
}

/// The months of `events`, by name.
fn months(database: &Database) -> Vec<String> {
    database.lines(
        "SELECT c.relname::text AS line FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
         WHERE i.inhparent = 'events'::regclass AND c.relname <> 'events_default' ORDER BY 1",
    )
}

fn month_of(at: Timestamp) -> String {
    let text = at.to_string();
    format!("events_{}{}", &text[..4], &text[5..7])
}

#[test]
fn months_are_attached_once_by_many_servers() {
    run(async {
        let database = Database::postgres();
        let servers: Vec<Server> = (0..3).map(|_| Server::start_unready(&database, &[])).collect();
        let workspace = loop {
            match servers[2].client().get("/ready").await.status {
                204 => break servers[2].workspace().await,
                _ => tokio::time::sleep(std::time::Duration::from_millis(50)).await,
            }
        };
        until("four months are attached", async || months(&database).len() == 4).await;
        let attached = months(&database);
        assert!(attached.contains(&month_of(Timestamp::now())), "{attached:?}");
        workspace.meter("calls", "sum").await;
        workspace
            .post("/v1/usages", &json!({"meter": "calls", "subject": "s", "quantity": 1}))
            .await
            .expect(201);
        assert_eq!(database.count(&month_of(Timestamp::now())), 1);
        assert_eq!(database.count("events_default"), 0);
    });
}

#[test]
fn events_outside_of_months_are_moved_into_them() {
    run(async {
        let database = Database::postgres();
        let mut server = Server::start(&database);
        let workspace = server.workspace().await;
        workspace.meter("calls", "sum").await;
        let month = month_of(Timestamp::now());
        server.terminate();
        database.lines(&format!("DROP TABLE {month}"));
        // a server that finds the month missing, and gets events for it before it attaches it the next time
        server.restart();
        assert!(months(&database).contains(&month));
        database.lines(&format!("DROP TABLE {month}"));
        let cookie = workspace.session.header("cookie");
        let client = server.client().with("cookie", cookie.as_str());
        for number in 0..3 {
            let event = json!({"meter": "calls", "subject": "s", "quantity": number + 1});
            client.post("/v1/usages", &event).await.expect(201);
        }
        assert_eq!(database.count("events_default"), 3);
        server.restart();
        assert_eq!((database.count("events_default"), database.count(&month)), (0, 3));
        let client = server.client().with("cookie", cookie);
        let events = client.get("/v1/subjects/s/usageevents").await.json(200);
        assert_eq!(events.as_array().map(Vec::len), Some(3));
    });
}

/// As it would be had a server run then.
fn attach_month(database: &Database, at: Timestamp) {
    let text = at.to_string();
    let from = Timestamp::parse(&format!("{}-01T00:00:00Z", &text[..7])).expect("a time");
    database.lines(&format!(
        "CREATE TABLE {} PARTITION OF events FOR VALUES FROM ({}) TO ({})",
        month_of(at),
        from.0,
        from.plus_months(1).0
    ));
}

/// More than are read at once, of two meters.
#[test]
fn a_month_of_many_subjects_is_dropped() {
    run(async {
        const SUBJECTS: usize = 2_500;
        let database = Database::postgres();
        let mut server = Server::start(&database);
        let workspace = server.workspace().await;
        let old = Timestamp::now().plus(-200 * DAY);
        attach_month(&database, old);
        for meter in ["a", "b"] {
            let body = json!({"name": meter, "unit": "u", "event_retention_days": 10});
            workspace.post("/v1/meters", &body).await.expect(201);
            let event = |subject: usize, at: Timestamp| json!({"meter": meter, "subject": format!("s{subject}"), "quantity": 1, "timestamp": at.to_exact_text()});
            let mut events: Vec<Value> = (0..SUBJECTS).map(|subject| event(subject, old)).collect();
            events.push(event(0, Timestamp::now()));
            for some in events.chunks(1_000) {
                workspace.post("/v1/usages/bulk", &json!(some)).await.expect(201);
            }
        }
        assert_eq!(database.count(&month_of(old)), 2 * SUBJECTS as u64);
        server.terminate();

        let server = Server::start_with(&database, &TIMER);
        let client = server.client().with("cookie", workspace.session.header("cookie"));
        until("the month is dropped", async || !months(&database).contains(&month_of(old))).await;
        until("its events are not counted any more", async || {
            let rows = client.get("/v1/meters/stats").await.json(200);
            [&rows["items"][0], &rows["items"][1]].iter().all(|row| row["usage_events"] == 1)
        })
        .await;
        let subjects = client.get("/v1/subjects?limit=1").await.json(200);
        assert_eq!(subjects["items"][0]["subject"], "s0", "the newest: {subjects}");
    });
}

#[test]
fn months_past_every_retention_are_dropped() {
    run(async {
        let database = Database::postgres();
        let mut server = Server::start(&database);
        let (one, other) = (server.workspace().await, server.workspace().await);
        // two old months, attached as they would be had the server run then
        let (empty_soon, kept) = (Timestamp::now().plus(-200 * DAY), Timestamp::now().plus(-330 * DAY));
        for at in [empty_soon, kept] {
            attach_month(&database, at);
        }
        for workspace in [&one, &other] {
            for (name, days) in [("short", 10), ("long", 3650)] {
                let body = json!({"name": name, "unit": "u", "event_retention_days": days});
                workspace.post("/v1/meters", &body).await.expect(201);
            }
            let event = |meter: &str, at: Timestamp| json!({"meter": meter, "subject": "s", "quantity": 2, "timestamp": at.to_exact_text()});
            let events = json!([
                event("short", empty_soon),
                event("short", empty_soon),
                event("short", kept),
                event("long", kept),
                event("short", Timestamp::now())
            ]);
            workspace.post("/v1/usages/bulk", &events).await.expect(201);
        }
        assert_eq!(database.count(&month_of(empty_soon)), 4);
        let total = |workspace: &Workspace| {
            let client = workspace.session.clone();
            async move {
                let (from, to) = (Timestamp::now().plus(-350 * DAY).floor(DAY), Timestamp::now().ceil(DAY));
                let path = format!("/v1/usages?meter=short&bucket_size=month&from={from}&to={to}");
                sum_of(&client.get(&path).await.json(200))
            }
        };
        assert_eq!(total(&one).await, 8.0);
        server.terminate();

        let server = Server::start_with(&database, &TIMER);
        let sessions = [&one, &other].map(|workspace| workspace.session.header("cookie"));
        let clients = sessions.map(|cookie| server.client().with("cookie", cookie));
        until("the month is dropped", async || !months(&database).contains(&month_of(empty_soon))).await;
        for client in &clients {
            until("the rest is deleted and all is recorded", async || {
                let runs = client.get("/v1/usageevents/prunes").await.json(200);
                let runs = runs["items"].as_array().expect("a list").clone();
                runs.iter().filter_map(|run| run["deleted"].as_u64()).sum::<u64>() == 3
            })
            .await;
            let rows = client.get("/v1/meters/stats").await.json(200);
            assert_eq!(rows["items"][0]["usage_events"], 1, "{rows}");
            assert_eq!(rows["items"][1]["usage_events"], 1, "{rows}");
            let (from, to) = (Timestamp::now().plus(-350 * DAY).floor(DAY), Timestamp::now().ceil(DAY));
            let path = format!("/v1/usages?meter=short&bucket_size=month&from={from}&to={to}");
            assert_eq!(sum_of(&client.get(&path).await.json(200)), 8.0);
        }
        assert!(months(&database).contains(&month_of(kept)), "an event in it may not go");
        let tables = database.lines(&format!(
            "SELECT coalesce(to_regclass('{}')::text, 'gone') AS line",
            month_of(empty_soon)
        ));
        assert_eq!(tables, ["gone"]);
    });
}

fn store_of(database: &Database) -> Store {
    let settings = database.settings();
    let settings: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let config = config::load_from(&["open-spanner", "serve"], &settings).expect("settings").config;
    Store::new(&config.db)
}

/// An hour whose totals were lost is noticed, another one is not blamed for it.
async fn totals_are_compared_with_their_events(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("calls", "sum").await;
    workspace.meter("unused", "sum").await;
    let hour = Timestamp::now().floor(HOUR).plus(-3 * HOUR);
    for minute in 0..3 {
        let at = hour.plus(minute * 60 * SECOND).to_exact_text();
        let event = json!({"meter": "calls", "subject": "ann", "quantity": 1, "timestamp": at});
        workspace.key.post("/v1/usages", &event).await.expect(201);
    }
    let store = store_of(&database);
    let oldest = store.read("retention::oldest_event", oldest_event).await;
    assert_eq!(oldest.expect("read"), Some(hour));
    let found = self_check::differences(&store, hour).await.expect("compared");
    assert!(found.is_empty(), "{found:?}");
    database.execute("DELETE FROM rollups WHERE grain = 1");
    let found = self_check::differences(&store, hour).await.expect("compared");
    assert!(matches!(found[..], [Difference { in_totals: 0, stored: 1, .. }]), "{found:?}");
    let found = self_check::differences(&store, hour.plus(HOUR)).await.expect("compared");
    assert!(found.is_empty(), "{found:?}");
}

/// However many servers there are, one of them looks in an hour; one that is told to stop does not, and keeps no lease.
async fn totals_are_compared_once_an_hour(database: Database) {
    let _server = Server::start(&database);
    let store = store_of(&database);
    let (going_on, stopped) = (CancellationToken::new(), CancellationToken::new());
    stopped.cancel();
    assert!(!check_totals(&store, &stopped).await.expect("no fault"), "told to stop");
    assert_eq!(database.count("chores"), 0);
    let compares = async || check_totals(&store, &going_on).await.expect("no fault");
    assert!(compares().await);
    assert!(!compares().await, "another server has done so in this hour");
    database.execute("UPDATE chores SET done_at = done_at - 3600000000");
    assert!(compares().await);
    database.execute("UPDATE chores SET done_at = done_at + 7200000000");
    assert!(compares().await, "put down before the clock was set back");
    assert_eq!(database.count("leases WHERE name = 'self-check'"), 0);
}
