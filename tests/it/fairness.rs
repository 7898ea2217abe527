//! One workspace may ask what it likes, as often as it likes: the others go on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use open_spanner::config;
use open_spanner::db::{migrations, open};
use open_spanner::jobs::queue::{self, Claim, NewJob};
use open_spanner::metering::time::Timestamp;
use serde_json::{Value, json};

use crate::support::client::{JUNE, NOON};
use crate::support::{Answer, Client, Database, Server, on_both_databases, run, stable_port};

on_both_databases!(
    costly_queries_leave_the_others_alone,
    pages_have_no_more_than_their_share,
    a_query_ends_at_its_limit_of_time,
    a_single_write_does_not_wait_for_the_queue_of_another_workspace,
    jobs_of_workspaces_take_turns,
);

/// Events enough that a costly question takes seconds.
async fn many_events(client: &Client) {
    client.meter("calls", "sum").await;
    for batch in 0..20 {
        let events: Vec<Value> = (0..1000)
            .map(|n| {
                json!({"meter": "calls", "subject": format!("s{n}"), "quantity": 1, "timestamp": NOON,
                    "metadata": {"note": format!("{batch} {n} of the notes that are searched for what they never hold")}})
            })
            .collect();
        client.post("/v1/usages/bulk", &json!(events)).await.expect(201);
    }
}

/// Looks at every event a hundred times and finds nothing.
fn costly() -> Value {
    let condition = |n: usize| json!({"type": "condition", "field": "metadata.note", "op": "contains", "value": format!("no{n}")});
    let conditions: Vec<Value> = (0..100).map(condition).collect();
    let (from, to) = JUNE;
    json!({"meter": "calls", "from": from, "to": to, "group_by": ["subject"],
        "filter": {"type": "group", "op": "or", "rules": conditions}})
}

async fn costly_queries_leave_the_others_alone(database: Database) {
    let server = Server::start(&database);
    let (noisy, quiet) = (server.workspace().await, server.workspace().await);
    many_events(&noisy).await;
    quiet.meter("calls", "sum").await;
    let is_over = Arc::new(AtomicBool::new(false));
    let attackers: Vec<_> = (0..14)
        .map(|_| {
            let (client, is_over) = (noisy.key.clone(), is_over.clone());
            tokio::spawn(async move {
                let mut answers = Vec::new();
                while !is_over.load(Ordering::Relaxed) {
                    answers.push(client.post("/v1/usages/search", &costly()).await);
                }
                answers
            })
        })
        .collect();
    for n in 0..10 {
        server.client().get("/ready").await.expect(204);
        let event = json!({"meter": "calls", "subject": format!("s{n}"), "quantity": 1, "timestamp": NOON});
        quiet.post("/v1/usages", &event).await.expect(201);
        assert_eq!(quiet.total("calls").await, (n + 1).to_string());
        // a key that nobody has seen yet is looked up
        let fresh = server.workspace().await;
        fresh.get("/v1/meters").await.expect(200);
    }
    noisy.session.get("/v1/meters").await.expect(200);
    is_over.store(true, Ordering::Relaxed);
    let mut seen = Vec::new();
    for attacker in attackers {
        seen.extend(attacker.await.expect("it does not panic"));
    }
    assert!(seen.len() >= 14);
    for answer in seen {
        let (status, request) = (answer.status, answer.request.clone());
        let code = serde_json::from_str::<Value>(&answer.text).map(|body| body["error"]["code"].clone());
        match status {
            200 => {}
            429 => {
                assert_eq!(code.expect("JSON"), "too_many_queries", "{request}");
                assert!(answer.headers.contains_key("retry-after"));
            }
            503 => assert_eq!(code.expect("JSON"), "query_timeout", "{request}"),
            other => panic!("{other} from {request}: {}", answer.text),
        }
    }
}

/// What people look at in a browser is read like what programs ask for: one at a time here, and nobody waits for ever.
async fn pages_have_no_more_than_their_share(database: Database) {
    let address = format!("127.0.0.1:{}", stable_port());
    let mut server = Server::start_with(&database, &[("OPEN_SPANNER_HTTP_ADDR", &address)]);
    let (noisy, quiet) = (server.workspace().await, server.workspace().await);
    many_events(&noisy).await;
    quiet.meter("calls", "sum").await;
    server.terminate();
    let settings = [
        ("OPEN_SPANNER_HTTP_ADDR", address.as_str()),
        ("OPEN_SPANNER_DB_QUERIES_PER_WORKSPACE", "1"),
        ("OPEN_SPANNER_DB_ACQUIRE_TIMEOUT", "2s"),
    ];
    let _server = Server::start_with(&database, &settings);
    let view = |conditions: usize| {
        let conditions: Vec<String> =
            (0..conditions).map(|n| format!("metadata.note:contains:no{n}")).collect();
        format!("/usage?meter=calls&from=2026-06-01&to=2026-07-01&q=or({})", conditions.join(","))
    };
    noisy.session.get(&view(1)).await.expect(200);
    let costly = view(60);
    let pages = futures_util::future::join_all((0..30).map(|_| noisy.session.get(&costly)));
    let quietly = async {
        for _ in 0..5 {
            quiet.session.get("/usage?meter=calls&from=2026-06-01&to=2026-07-01").await.expect(200);
        }
    };
    let (answers, ()) = tokio::join!(pages, quietly);
    for answer in &answers {
        assert!([200, 429, 503].contains(&answer.status), "{}: {}", answer.status, answer.text);
    }
    let refused: Vec<&Answer> = answers.iter().filter(|answer| answer.status == 429).collect();
    assert!(!refused.is_empty(), "{:?}", answers.iter().map(|answer| answer.status).collect::<Vec<_>>());
    for answer in refused {
        assert!(answer.text.contains("too_many_queries") && !answer.header("retry-after").is_empty());
    }
    // what a page that was refused had begun to look up takes its time
    let end = Instant::now() + Duration::from_secs(60);
    while noisy.session.get(&view(1)).await.status != 200 {
        assert!(Instant::now() < end, "its share is free again");
    }
}

/// Whoever holds a link for a customer reads from the share of the workspace that made it.
#[test]
fn links_for_customers_have_the_share_of_their_workspace() {
    run(async {
        let database = Database::postgres();
        let settings = [
            ("OPEN_SPANNER_DB_QUERIES_PER_WORKSPACE", "1"),
            ("OPEN_SPANNER_DB_ACQUIRE_TIMEOUT", "1s"),
            ("OPEN_SPANNER_DB_STATEMENT_TIMEOUT", "10s"),
        ];
        let server = Server::start_with(&database, &settings);
        let workspace = server.workspace().await;
        workspace.meter("calls", "sum").await;
        let event = json!({"meter": "calls", "subject": "acme", "quantity": 1, "timestamp": NOON});
        workspace.post("/v1/usages", &event).await.expect(201);
        let link = workspace.post("/v1/subjects/acme/links", &json!({})).await.json(201);
        let page = format!("/share/{}", link["token"].as_str().expect("a token"));
        server.client().get(&page).await.expect(200);
        let mut holder = database.postgres_connection();
        // whoever waits for a lock gives up after five seconds: so the seat is taken anew for each that is refused
        for path in [page.as_str(), &format!("{page}/usage.csv"), "/events", "/v1/audit-events/export"] {
            holder
                .batch_execute("BEGIN; LOCK TABLE events IN ACCESS EXCLUSIVE MODE")
                .expect("the lock is free");
            let client = workspace.key.clone();
            let first = tokio::spawn(async move { client.get("/v1/usageevents").await });
            tokio::time::sleep(Duration::from_secs(1)).await;
            let caller = if path.starts_with("/share") { &server.client() } else { &workspace.session };
            // also a download says so before it begins
            let refused = caller.get(path).await.expect(429);
            assert!(refused.text.contains("too_many_queries"), "{path}: {}", refused.text);
            holder.batch_execute("COMMIT").expect("the lock is ours");
            first.await.expect("no panic").expect(200);
        }
        server.client().get(&page).await.expect(200);
    });
}

/// So are the later parts of a download, which are read while it is sent.
#[test]
fn downloads_have_the_share_of_their_caller_to_the_end() {
    run(async {
        let database = Database::postgres();
        let settings = [
            ("OPEN_SPANNER_DB_QUERIES_PER_WORKSPACE", "1"),
            ("OPEN_SPANNER_DB_ACQUIRE_TIMEOUT", "1s"),
            ("OPEN_SPANNER_DB_STATEMENT_TIMEOUT", "15s"),
        ];
        let server = Server::start_with(&database, &settings);
        let workspace = server.workspace().await;
        workspace.meter("calls", "sum").await;
        // the first part is more than fits on its way
        let event = json!({"meter": "calls", "subject": "s", "quantity": 1, "timestamp": NOON,
            "metadata": {"note": "x".repeat(60_000)}});
        for _ in 0..4 {
            workspace.post("/v1/usages/bulk", &json!(vec![event.clone(); 100])).await.expect(201);
        }
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        let path = format!("{}/v1/usageevents/export?meter=calls&limit=400", server.url());
        let begun = client.get(path).header("authorization", workspace.header("authorization"));
        let begun = begun.header("accept-encoding", "identity").send().await.expect("an answer begins");
        assert_eq!(begun.status(), 200);
        let mut holder = database.postgres_connection();
        holder.batch_execute("BEGIN; LOCK TABLE events IN ACCESS EXCLUSIVE MODE").expect("the lock is free");
        let other = workspace.key.clone();
        let first = tokio::spawn(async move { other.get("/v1/usageevents?limit=1").await });
        tokio::time::sleep(Duration::from_secs(1)).await;
        let started = Instant::now();
        begun.bytes().await.expect_err("the rest is not read beside the other query");
        assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
        holder.batch_execute("COMMIT").expect("the lock is ours");
        first.await.expect("no panic").expect(200);
    });
}

async fn a_query_ends_at_its_limit_of_time(database: Database) {
    let address = format!("127.0.0.1:{}", stable_port());
    let mut server = Server::start_with(&database, &[("OPEN_SPANNER_HTTP_ADDR", &address)]);
    let workspace = server.workspace().await;
    many_events(&workspace).await;
    server.terminate();
    let settings =
        [("OPEN_SPANNER_HTTP_ADDR", address.as_str()), ("OPEN_SPANNER_DB_STATEMENT_TIMEOUT", "500ms")];
    let _server = Server::start_with(&database, &settings);
    for _ in 0..3 {
        let answer = workspace.post("/v1/usages/search", &costly()).await.expect(503);
        assert!(answer.text.contains("query_timeout"), "{}", answer.text);
        assert!(answer.text.contains("DB_STATEMENT_TIMEOUT"), "{}", answer.text);
    }
    assert_eq!(workspace.total("calls").await, "20000", "the connections go on");
}

/// Fourteen thousand events of one workspace wait when another one sends a single event: it is in the next commit.
async fn a_single_write_does_not_wait_for_the_queue_of_another_workspace(database: Database) {
    let server = Server::start_with(&database, &[("OPEN_SPANNER_CACHE_TTL", "5s")]);
    let (noisy, quiet) = (server.workspace().await, server.workspace().await);
    for workspace in [&noisy, &quiet] {
        workspace.meter("calls", "sum").await;
        workspace
            .post("/v1/usages", &json!({"meter": "calls", "subject": "s", "quantity": 1, "timestamp": NOON}))
            .await
            .expect(201);
    }
    let events: Vec<Value> = (0..1000)
        .map(|n| json!({"meter": "calls", "subject": format!("noisy{n}"), "quantity": 1, "timestamp": NOON}))
        .collect();
    let events = Arc::new(json!(events));
    let mut holder = Holder::of(&database);
    let flood: Vec<_> = (0..14)
        .map(|_| {
            let (client, events) = (noisy.key.clone(), events.clone());
            tokio::spawn(async move { client.post("/v1/usages/bulk", &events).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let single = json!({"meter": "calls", "subject": "gentle", "quantity": 1, "timestamp": NOON});
    let client = quiet.key.clone();
    let gentle = tokio::spawn(async move { client.post("/v1/usages", &single).await });
    tokio::time::sleep(Duration::from_millis(500)).await;
    holder.release();
    gentle.await.expect("no panic").expect(201);
    for call in flood {
        call.await.expect("no panic").expect(201);
    }
    // rows in the order of commits on SQLite, of transactions on PostgreSQL
    let place = if matches!(database, Database::Sqlite { .. }) {
        "e.rowid"
    } else {
        "CAST(CAST(e.xmin AS text) AS bigint)"
    };
    let later = format!(
        "SELECT CAST(COUNT(*) AS text) AS line FROM events e WHERE {place} > (
             SELECT {place} FROM events e JOIN subjects s ON s.id = e.subject_id WHERE s.name = 'gentle')"
    );
    let later: u64 = database.lines(&later)[0].parse().expect("a number");
    assert!(later >= 4000, "only {later} of 14000 were stored after it");
}

/// Keeps writers from committing until it lets go.
enum Holder {
    Sqlite(diesel::SqliteConnection),
    Postgres(diesel::PgConnection),
}

impl Holder {
    fn of(database: &Database) -> Holder {
        match database {
            Database::Sqlite { .. } => {
                let mut holder = database.sqlite_connection();
                holder.batch_execute("BEGIN IMMEDIATE").expect("the lock is free");
                Holder::Sqlite(holder)
            }
            Database::Postgres { .. } => {
                let mut holder = database.postgres_connection();
                holder
                    .batch_execute("BEGIN; LOCK TABLE rollups IN ACCESS EXCLUSIVE MODE")
                    .expect("the lock is free");
                Holder::Postgres(holder)
            }
        }
    }

    fn release(&mut self) {
        match self {
            Holder::Sqlite(holder) => holder.batch_execute("COMMIT"),
            Holder::Postgres(holder) => holder.batch_execute("COMMIT"),
        }
        .expect("the lock is ours");
    }
}

/// However much one workspace asks for, the others' jobs come in their turn, whichever lie between them.
async fn jobs_of_workspaces_take_turns(database: Database) {
    let settings = database.settings();
    let settings: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let driver = config::load_from(&["open-spanner", "serve"], &settings).expect("settings").config.db.driver;
    let work = move || {
        migrations::run(&driver).expect("migrated");
        let mut conn = open(&driver).expect("connected");
        let job = |workspace_id: i64, number: i64, run_after: i64| {
            let key = format!("{workspace_id}/{number}");
            NewJob::new("entitlements", key, workspace_id, &number, Timestamp(run_after)).expect("a job")
        };
        let (busy, quiet, waiting) = (1, 2..200, [200, 201]);
        let mut new: Vec<NewJob> = (0..2_000).map(|number| job(busy, number, number)).collect();
        new.extend(quiet.map(|id| job(id, 0, 1_000_000)));
        new.extend(waiting.map(|id| job(id, 0, 9_000)));
        queue::enqueue(&mut conn, new, Timestamp(0)).expect("enqueued");
        let (token, mut behind, mut whose) = ([7; 16], i64::MIN, Vec::new());
        for round in 0..20 {
            let (now, until) = (Timestamp(10_000 + round), Timestamp(20_000));
            let (limit, per_workspace, only_unleased) = (2, None, false);
            let claim = Claim {
                queue: "entitlements",
                token: &token,
                now,
                until,
                limit,
                per_workspace,
                only_unleased,
            };
            let (jobs, last) = queue::claim_in_turn(&mut conn, &claim, behind).expect("claimed");
            assert_eq!(jobs.len(), 2, "every place is taken");
            behind = last;
            whose.extend(jobs.into_iter().map(|job| job.workspace_id));
        }
        let served = |id: i64| whose.iter().position(|other| *other == id).expect("it has a turn");
        assert!(served(200) < 18 && served(201) < 18, "{whose:?}");
        assert_eq!(whose.iter().filter(|id| **id == busy).count(), 38, "and the busy one has all others");
    };
    tokio::task::spawn_blocking(work).await.expect("no panic");
}
