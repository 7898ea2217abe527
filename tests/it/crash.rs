//! Killed in the middle of concurrent writes: what was acknowledged is there, and after every write is sent again
//! nothing is there twice.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::support::client::NOON;
use crate::support::database::Home;
use crate::support::{Client, Database, Server, Workspace, on_both_databases, run};

on_both_databases!(server_killed_during_writes);

const SINGLE_WRITERS: usize = 6;
const BULK_WRITERS: usize = 2;
const BATCH: u64 = 40;
/// How many writes must be acknowledged before something is killed.
const ENOUGH: usize = 400;

/// What the clients know.
#[derive(Default)]
struct Ledger {
    next: AtomicU64,
    /// Every number whose event was ever sent.
    sent: Mutex<Vec<u64>>,
    /// The id that the server answered for a key.
    acknowledged: Mutex<BTreeMap<String, String>>,
    stop: AtomicBool,
    /// Changes to the workspace that were acknowledged.
    changed: AtomicU64,
}

fn key(number: u64) -> String {
    format!("key-{number}")
}

/// Event `n` counts n + 0.1: every lost or doubled event shows in the sum.
fn event(number: u64) -> Value {
    let quantity: Value = serde_json::from_str(&format!("{number}.1")).expect("a number");
    json!({"meter": "load", "subject": format!("s{}", number % 7), "quantity": quantity, "timestamp": NOON,
        "idempotency_key": key(number)})
}

impl Ledger {
    /// Takes the next numbers and remembers them as sent.
    fn take(&self, count: u64) -> Vec<u64> {
        let first = self.next.fetch_add(count, Ordering::Relaxed);
        let numbers: Vec<u64> = (first..first + count).collect();
        self.sent.lock().expect("no holder panics").extend(&numbers);
        numbers
    }

    /// One key, one id, for ever.
    fn acknowledge(&self, item: &Value) {
        let text = |field: &str| item[field].as_str().expect("a text").to_string();
        let mut acknowledged = self.acknowledged.lock().expect("no holder panics");
        let known = acknowledged.entry(text("idempotency_key")).or_insert_with(|| text("id")).clone();
        assert_eq!(known, text("id"), "the id of {}", item["idempotency_key"]);
    }

    fn acknowledged_count(&self) -> usize {
        self.acknowledged.lock().expect("no holder panics").len()
    }

    fn sent(&self) -> Vec<u64> {
        self.sent.lock().expect("no holder panics").clone()
    }
}

/// What a writer does when its call is not accepted.
#[derive(Clone, Copy, PartialEq)]
enum Trouble {
    /// The server goes away: the writer ends with its connection.
    EndsTheWriter,
    /// The server stays: it says "try again", and the writer does.
    MustBeAnswered,
}

fn start_writers(client: &Client, ledger: &Arc<Ledger>, trouble: Trouble) -> Vec<JoinHandle<()>> {
    let writer = |batch: Option<u64>| {
        let (client, ledger) = (client.clone(), ledger.clone());
        tokio::spawn(async move { write_until_stopped(&client, &ledger, batch, trouble).await })
    };
    let singles = (0..SINGLE_WRITERS).map(|_| writer(None));
    singles.chain((0..BULK_WRITERS).map(|_| writer(Some(BATCH)))).collect()
}

async fn write_until_stopped(client: &Client, ledger: &Ledger, batch: Option<u64>, trouble: Trouble) {
    while !ledger.stop.load(Ordering::Relaxed) {
        let numbers = ledger.take(batch.unwrap_or(1));
        while !write(client, ledger, &numbers, batch.is_some(), trouble).await {
            if trouble == Trouble::EndsTheWriter {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// One call; true when it was acknowledged.
async fn write(client: &Client, ledger: &Ledger, numbers: &[u64], is_bulk: bool, trouble: Trouble) -> bool {
    let events: Vec<Value> = numbers.iter().map(|number| event(*number)).collect();
    let answer = match is_bulk {
        true => client.try_post("/v1/usages/bulk", &json!(events)).await,
        false => client.try_post("/v1/usages", &events[0]).await,
    };
    let answer = match answer {
        Ok(answer) => answer,
        Err(_) if trouble == Trouble::EndsTheWriter => return false,
        Err(error) => panic!("the server must answer: {error:?}"),
    };
    if answer.status == 503 && trouble == Trouble::MustBeAnswered {
        answer.try_again();
        return false;
    }
    let body = answer.json(201);
    if is_bulk {
        acknowledge_bulk(ledger, &body, numbers.len())
    } else {
        ledger.acknowledge(&body)
    }
    true
}

fn acknowledge_bulk(ledger: &Ledger, body: &Value, count: usize) {
    let lists = ["accepted_items", "duplicate_items"].map(|field| body[field].as_array().expect("a list"));
    assert_eq!(lists[0].len() + lists[1].len(), count, "every item is answered: {body}");
    lists.into_iter().flatten().for_each(|item| ledger.acknowledge(item));
}

async fn until_acknowledged(ledger: &Ledger, count: usize) {
    let end = Instant::now() + Duration::from_secs(60);
    while ledger.acknowledged_count() < count {
        assert!(Instant::now() < end, "only {} of {count} writes came back", ledger.acknowledged_count());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Sends every event again, twice, and holds the answers and the totals against what the clients know.
async fn send_all_again_and_compare(workspace: &Workspace, ledger: &Ledger, database: &Database) {
    let sent = ledger.sent();
    let mut acknowledged_before = ledger.acknowledged_count();
    for number in sent.iter().rev().take(200) {
        assert!(
            write(&workspace.key, ledger, &[*number], false, Trouble::EndsTheWriter).await,
            "a single retry"
        );
    }
    for _ in 0..2 {
        for numbers in sent.chunks(500) {
            assert!(
                write(&workspace.key, ledger, numbers, true, Trouble::EndsTheWriter).await,
                "a bulk retry"
            );
        }
        assert!(ledger.acknowledged_count() >= acknowledged_before);
        acknowledged_before = sent.len();
    }
    assert_eq!(ledger.acknowledged_count(), sent.len());
    assert_eq!(database.count("events"), sent.len() as u64, "stored events");
    assert_eq!(database.count("idempotency_keys"), sent.len() as u64, "stored keys");
    let tenths: u64 = sent.iter().map(|number| number * 10 + 1).sum();
    let wanted = match tenths % 10 {
        0 => format!("{}", tenths / 10),
        tenth => format!("{}.{tenth}", tenths / 10),
    };
    assert_eq!(workspace.total("load").await, wanted, "the sum from rollups");
    let path = format!("/v1/usages?meter=load&bucket_size=day&from={NOON}&to=2026-06-15T12:00:01Z");
    let raw = workspace.get(&path).await.json(200);
    assert_eq!(raw[0]["quantity"].to_string(), wanted, "the sum from raw events");
}

async fn server_killed_during_writes(database: Database) {
    let mut server = Server::start_to_be_restarted(&database);
    let workspace = server.workspace().await;
    workspace.meter("load", "sum").await;
    let ledger = Arc::new(Ledger::default());
    for round in 1..=2 {
        let mut writers = start_writers(&workspace.key, &ledger, Trouble::EndsTheWriter);
        writers.push(start_changes(&workspace.session, &ledger));
        until_acknowledged(&ledger, round * ENOUGH).await;
        server.kill();
        for writer in writers {
            writer.await.expect("the writer saw no contradiction");
        }
        server.restart();
    }
    let acknowledged = ledger.acknowledged_count() as u64;
    let stored = database.count("events");
    assert!(stored >= acknowledged, "{acknowledged} acknowledged, only {stored} stored");
    the_trail_is_whole(&database, &ledger);
    send_all_again_and_compare(&workspace, &ledger, &database).await;
}

/// Makes changes that the trail tells of, until it is told to stop or nobody answers.
fn start_changes(session: &Client, ledger: &Arc<Ledger>) -> JoinHandle<()> {
    let (session, ledger) = (session.clone(), ledger.clone());
    tokio::spawn(async move {
        while !ledger.stop.load(Ordering::Relaxed) {
            let name = json!({"name": crate::support::unique("workspace")}).to_string();
            match session.send(reqwest::Method::PATCH, "/v1/auth/workspace", Some(name)).await {
                Ok(answer) if answer.status == 204 => {
                    ledger.changed.fetch_add(1, Ordering::Relaxed);
                }
                Ok(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(_) => return,
            }
        }
    })
}

/// Every change that was made left its row, in a chain without a gap; and there is no row without its change.
fn the_trail_is_whole(database: &Database, ledger: &Ledger) {
    let owned = database.settings();
    let settings: Vec<(&str, &str)> = owned.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let folder = tempfile::tempdir().expect("a directory");
    let verdict = crate::support::program::run(&["audit", "verify"], &settings, folder.path());
    assert_eq!(verdict.code, Some(0), "{verdict:#?}");
    let rows = database.lines(
        "SELECT state_after AS line FROM audit_events WHERE action = 'workspace.renamed' ORDER BY sequence",
    );
    let changed = ledger.changed.load(Ordering::Relaxed) as usize;
    assert!(changed > 4, "too few changes to tell of");
    assert!(rows.len() >= changed, "{changed} changes acknowledged, only {} rows", rows.len());
    let last: Value = serde_json::from_str(rows.last().expect("a row")).expect("JSON");
    let name = database.lines("SELECT name AS line FROM workspaces").remove(0);
    assert_eq!(last["name"], json!(name), "the newest row is about what is there");
}

#[test]
fn postgres_killed_during_writes() {
    run(async {
        let database = Database::durable_postgres();
        let server = Server::start(&database);
        let workspace = server.workspace().await;
        workspace.meter("load", "sum").await;
        let ledger = Arc::new(Ledger::default());
        let mut writers = start_writers(&workspace.key, &ledger, Trouble::MustBeAnswered);
        writers.push(start_changes(&workspace.session, &ledger));
        until_acknowledged(&ledger, ENOUGH).await;

        database.cluster().kill();
        let lonely = json!({"meter": "load", "subject": "s", "quantity": 1, "timestamp": NOON});
        for _ in 0..3 {
            server.client().get("/ready").await.expect(503);
            server.client().get("/health").await.expect(204);
            workspace.post("/v1/usages", &lonely).await.try_again();
            workspace.get("/v1/meters").await.try_again();
            workspace.session.get("/v1/auth/session").await.try_again();
            tokio::time::sleep(Duration::from_millis(300)).await;
        }

        database.cluster().start();
        until_ready(&server).await;
        until_acknowledged(&ledger, ledger.acknowledged_count() + ENOUGH).await;
        ledger.stop.store(true, Ordering::Relaxed);
        for writer in writers {
            writer.await.expect("the writer saw no contradiction");
        }
        the_trail_is_whole(&database, &ledger);
        send_all_again_and_compare(&workspace, &ledger, &database).await;
    });
}

/// Neither gone nor there: a write whose COMMIT is on its way may or may not be stored.
#[test]
fn postgres_frozen_during_writes() {
    run(async {
        let database = Database::durable_postgres();
        let server = Server::start_with(&database, &[("OPEN_SPANNER_DB_STATEMENT_TIMEOUT", "8s")]);
        let workspace = server.workspace().await;
        workspace.meter("load", "sum").await;
        let ledger = Arc::new(Ledger::default());
        let mut writers = start_writers(&workspace.key, &ledger, Trouble::MustBeAnswered);
        writers.push(start_changes(&workspace.session, &ledger));
        let lonely = json!({"meter": "load", "subject": "s", "quantity": 1, "timestamp": NOON});
        for round in 1..=2 {
            until_acknowledged(&ledger, round * ENOUGH).await;
            database.cluster().signal_all("STOP");
            workspace.post("/v1/usages", &lonely).await.try_again();
            database.cluster().signal_all("CONT");
            until_ready(&server).await;
        }
        until_acknowledged(&ledger, ledger.acknowledged_count() + ENOUGH).await;
        ledger.stop.store(true, Ordering::Relaxed);
        for writer in writers {
            writer.await.expect("the writer saw no contradiction");
        }
        the_trail_is_whole(&database, &ledger);
        send_all_again_and_compare(&workspace, &ledger, &database).await;
    });
}

/// Ends a connection that is at work, if there is one: whatever it was doing is left there.
fn cut_off(cluster: &crate::support::postgres::Cluster, database: &str, whose: &str) {
    cluster.lines(
        database,
        &format!(
            "SELECT pg_terminate_backend(pid)::text AS line FROM (
                 SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
                     AND application_name LIKE '{whose}%' ORDER BY state = 'idle', random() LIMIT 1) one"
        ),
    );
}

/// A commit over several nodes is left at any of its points: by a node, by the coordinator, within a statement, between two
/// of them, prepared here and not there, committed here and not there. In the end each event is there once.
#[test]
fn nodes_cut_off_during_writes() {
    run(async {
        let Some(database) = Database::over_own_nodes("crash::nodes_cut_off_during_writes") else { return };
        database.distribute().succeeded();
        let Database::Postgres { cluster, name, .. } = &database else { return };
        let Home::Nodes(nodes) = &**cluster else { return };
        let server = Server::start(&database);
        let workspace = server.workspace().await;
        workspace.meter("load", "sum").await;
        let ledger = Arc::new(Ledger::default());
        let writers = start_writers(&workspace.key, &ledger, Trouble::MustBeAnswered);
        for round in 0..48_u64 {
            until_acknowledged(&ledger, ledger.acknowledged_count() + 5).await;
            tokio::time::sleep(Duration::from_millis(round * 7 % 31)).await;
            match round % 12 {
                3 => {
                    nodes.nodes[0].kill();
                    tokio::time::sleep(Duration::from_millis(300)).await;
                    nodes.nodes[0].start();
                }
                9 => {
                    nodes.coordinator.kill();
                    nodes.coordinator.start();
                }
                one if one % 3 == 0 => cut_off(&nodes.coordinator, name, "open-spanner"),
                one => cut_off(&nodes.nodes[one as usize % 2], name, "citus_internal"),
            }
        }
        until_ready(&server).await;
        ledger.stop.store(true, Ordering::Relaxed);
        for writer in writers {
            writer.await.expect("the writer saw no contradiction");
        }
        // what a node missed is finished, in whatever way the coordinator decided
        let end = Instant::now() + Duration::from_secs(60);
        let prepared = "SELECT gid AS line FROM pg_prepared_xacts";
        while nodes.nodes.iter().any(|node| !node.lines(name, prepared).is_empty()) {
            assert!(Instant::now() < end, "what was prepared is not finished");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        send_all_again_and_compare(&workspace, &ledger, &database).await;
    });
}

async fn until_ready(server: &Server) {
    let end = Instant::now() + Duration::from_secs(30);
    while server.client().get("/ready").await.status != 204 {
        assert!(Instant::now() < end, "not ready 30 s after the database came back: {:#?}", server.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
