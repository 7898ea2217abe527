//! The database is locked or frozen, or its disk is full: callers are told to try again, nothing is half-written, and
//! the server goes on by itself afterwards. (The database gone altogether: `crash.rs`.)

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use serde_json::{Value, json};

use crate::support::client::{JUNE, NOON};
use crate::support::{Client, Database, Server, Workspace, guard, is_root, run, skip};

fn event(key: &str) -> Value {
    json!({"meter": "calls", "subject": "s", "quantity": 1, "timestamp": NOON, "idempotency_key": key})
}

#[test]
fn write_waits_for_a_short_lock() {
    run(async {
        let database = Database::sqlite();
        let server = Server::start(&database);
        let workspace = server.workspace().await;
        workspace.meter("calls", "count").await;
        let mut holder = database.sqlite_connection();
        holder.batch_execute("BEGIN IMMEDIATE").expect("the lock is free");
        let client = workspace.key.clone();
        let write = tokio::spawn(async move { client.post("/v1/usages", &event("k")).await });
        tokio::time::sleep(Duration::from_millis(1500)).await;
        assert!(!write.is_finished(), "the write waits for the lock");
        holder.batch_execute("COMMIT").expect("the lock is ours");
        write.await.expect("the call does not panic").expect(201);
        assert_eq!(workspace.total("calls").await, "1");
    });
}

#[test]
fn long_lock_is_an_answer_and_no_partial_write() {
    run(async {
        let database = Database::sqlite();
        let server = Server::start(&database);
        let workspace = server.workspace().await;
        workspace.meter("calls", "count").await;
        let mut holder = database.sqlite_connection();
        holder.batch_execute("BEGIN IMMEDIATE").expect("the lock is free");
        let batch = json!([event("a"), event("b"), event("c")]);
        let bulk = tokio::spawn({
            let (client, batch) = (workspace.key.clone(), batch.clone());
            async move { client.post("/v1/usages/bulk", &batch).await }
        });
        workspace.post("/v1/usages", &event("single")).await.try_again();
        bulk.await.expect("the call does not panic").try_again();
        assert_eq!(database.count("events"), 0);
        server.client().get("/health").await.expect(204);
        assert_eq!(workspace.total("calls").await, "0", "reading goes on");

        holder.batch_execute("COMMIT").expect("the lock is ours");
        let stored = workspace.post("/v1/usages/bulk", &batch).await.json(201);
        assert_eq!(stored["accepted"], 3, "the refused call left nothing: {stored}");
        workspace.post("/v1/usages", &event("single")).await.expect(201);
        assert_eq!(workspace.total("calls").await, "4");
    });
}

/// A small file system in memory, unmounted when dropped.
struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    fn mount(megabytes: u32) -> Option<SmallDisk> {
        let path = tempfile::Builder::new().prefix("open-spanner-disk-").tempdir().ok()?.keep();
        let size = format!("size={megabytes}m,mode=0755");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&path).output();
        if mounted.is_ok_and(|output| output.status.success()) {
            guard::will_remove(&path);
            return Some(SmallDisk { path });
        }
        let _ = std::fs::remove_dir(&path);
        None
    }

    /// Takes all space that is left; removing the file gives it back.
    fn fill(&self) -> PathBuf {
        use std::io::Write;
        let filler = self.path.join("filler");
        let mut file = std::fs::File::create(&filler).expect("a file");
        for chunk in [1 << 16, 1 << 12] {
            while file.write_all(&vec![b'x'; chunk]).is_ok() {}
        }
        filler
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
        let _ = std::fs::remove_dir(&self.path);
    }
}

#[test]
fn full_disk_of_sqlite_is_an_answer_and_no_partial_write() {
    full_disk("full_disk_of_sqlite_is_an_answer_and_no_partial_write", 24, Database::sqlite_in);
}

#[test]
fn full_disk_of_postgres_is_an_answer_and_no_partial_write() {
    full_disk("full_disk_of_postgres_is_an_answer_and_no_partial_write", 64, Database::postgres_in);
}

fn full_disk(test: &str, megabytes: u32, database_in: impl FnOnce(&Path) -> Database) {
    let disk = if is_root() { SmallDisk::mount(megabytes) } else { None };
    let Some(disk) = disk else {
        return skip(test, "needs root and a mountable tmpfs");
    };
    run(async {
        let database = database_in(&disk.path);
        let server = Server::start(&database);
        let workspace = server.workspace().await;
        workspace.meter("calls", "count").await;
        let filler = disk.fill();
        let (stored, refused) = write_until_refused(&workspace.key).await;
        server.client().get("/health").await.expect(204);
        server.client().get("/ready").await.expect(503);
        assert_eq!(database.count("events"), stored as u64, "whole batches only");
        assert_eq!(database.count("idempotency_keys"), stored as u64, "no key without its event");
        assert_eq!(workspace.total("calls").await, stored.to_string());

        std::fs::remove_file(&filler).expect("the filler is ours");
        until_ready(&server).await;
        let after = until_accepted(&workspace, "/v1/usages/bulk", &refused).await;
        assert_eq!(after["accepted"], refused.as_array().map(Vec::len).expect("a batch"), "{after}");
        assert_eq!(workspace.total("calls").await, (stored + 100).to_string());
    });
    assert!(!Path::new(&disk.path).join("filler").exists());
}

async fn until_ready(server: &Server) {
    let end = Instant::now() + Duration::from_secs(2);
    while server.client().get("/ready").await.status != 204 {
        assert!(Instant::now() < end, "not ready again");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Sends a call again until it is accepted.
async fn until_accepted(client: &Client, path: &str, body: &Value) -> Value {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let answer = client.post(path, body).await;
        if answer.status == 201 {
            return answer.json(201);
        }
        assert!(Instant::now() < end, "no recovery: {} {}", answer.status, answer.text);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Writes batches until one is refused; returns how many events were accepted, and the refused batch.
async fn write_until_refused(client: &Client) -> (usize, Value) {
    let mut stored = 0;
    for batch in 0..5_000 {
        let events: Vec<Value> = (0..100).map(|item| event(&format!("{batch}-{item}"))).collect();
        let answer = client.post("/v1/usages/bulk", &json!(events)).await;
        match answer.status {
            201 => stored += 100,
            503 => {
                answer.try_again();
                return (stored, json!(events));
            }
            _ => {
                answer.error(500, "internal_error");
                return (stored, json!(events));
            }
        }
    }
    panic!("the disk never filled");
}

/// How long a caller may be left without an answer when the database neither works nor fails.
const PATIENCE: Duration = Duration::from_secs(30);

async fn refused_in_time(client: &Client, path: &str, body: &Value) {
    let answer = tokio::time::timeout(PATIENCE, client.post(path, body)).await;
    answer.unwrap_or_else(|_| panic!("no answer from {path} within {PATIENCE:?}")).try_again();
}

#[test]
fn locked_postgres_table_is_an_answer() {
    run(async {
        let database = Database::postgres();
        let server = Server::start(&database);
        let workspace = server.workspace().await;
        workspace.meter("calls", "count").await;
        let mut holder = database.postgres_connection();
        holder.batch_execute("BEGIN; LOCK TABLE events IN ACCESS EXCLUSIVE MODE").expect("the lock is free");
        let (single, batch) = (event("single"), json!([event("a"), event("b")]));
        let consumed = event("consumed");
        tokio::join!(
            refused_in_time(&workspace, "/v1/usages", &single),
            refused_in_time(&workspace, "/v1/usages/bulk", &batch),
            refused_in_time(&workspace, "/v1/entitlements/consume", &consumed),
        );
        workspace.get("/v1/meters").await.expect(200);
        for table in ["idempotency_keys", "rollups", "consumption_decisions", "bulk_replays"] {
            assert_eq!(database.count(table), 0, "{table}");
        }
        holder.batch_execute("COMMIT").expect("the lock is ours");
        workspace.post("/v1/usages", &single).await.expect(201);
        assert_eq!(workspace.post("/v1/usages/bulk", &batch).await.json(201)["accepted"], 2);
        assert_eq!(workspace.total("calls").await, "3");
    });
}

#[test]
fn slow_postgres_is_an_answer() {
    run(async {
        let database = Database::postgres();
        let server = Server::start_with(&database, &[("OPEN_SPANNER_DB_STATEMENT_TIMEOUT", "5s")]);
        let workspace = server.workspace().await;
        workspace.meter("calls", "count").await;
        let mut owner = database.postgres_connection();
        owner
            .batch_execute(
                "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
                     'BEGIN PERFORM pg_sleep(600); RETURN NEW; END';
                 CREATE TRIGGER slow BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION slow()",
            )
            .expect("a trigger is made");
        let calls = ["a", "b", "c"].map(event);
        let calls = calls.iter().map(|event| refused_in_time(&workspace, "/v1/usages", event));
        futures_util::future::join_all(calls).await;
        // waits until the server has canceled the last of them
        owner.batch_execute("DROP FUNCTION slow CASCADE").expect("the trigger is ours");
        until_accepted(&workspace, "/v1/usages", &event("a")).await;
        assert_eq!(workspace.total("calls").await, "1");
    });
}

/// One connection for all, and it waits for a lock.
#[test]
fn busy_connections_are_an_answer() {
    run(async {
        let database = Database::postgres();
        let one =
            [("OPEN_SPANNER_DB_MAX_OPEN_CONNS", "1"), ("OPEN_SPANNER_DB_ACQUIRE_TIMEOUT", "1s"), REMEMBER];
        let server = Server::start_with(&database, &one);
        let workspace = server.workspace().await;
        workspace.meter("calls", "count").await;
        let mut holder = database.postgres_connection();
        holder.batch_execute("BEGIN; LOCK TABLE meters IN ACCESS EXCLUSIVE MODE").expect("the lock is free");
        let calls = (0..10).map(|_| workspace.get("/v1/meters"));
        for answer in futures_util::future::join_all(calls).await {
            // over the share of one caller, or no connection at all
            if answer.status == 429 {
                answer.error(429, "too_many_queries");
            } else {
                answer.try_again();
            }
        }
        holder.batch_execute("COMMIT").expect("the lock is ours");
        until_accepted(&workspace, "/v1/usages", &event("k")).await;
        workspace.get("/v1/meters").await.expect(200);
    });
}

/// Whoever does not fit into the queue is not kept waiting, and whoever does is not kept waiting for ever.
#[test]
fn full_queue_is_an_answer() {
    run(async {
        let database = Database::sqlite();
        let small = [("OPEN_SPANNER_INGEST_QUEUE_EVENTS", "1000"), REMEMBER];
        let server = Server::start_with(&database, &small);
        let workspace = server.workspace().await;
        workspace.meter("calls", "count").await;
        let mut holder = database.sqlite_connection();
        holder.batch_execute("BEGIN IMMEDIATE").expect("the lock is free");
        let batch = |name: &str| json!((0..600).map(|n| event(&format!("{name}-{n}"))).collect::<Vec<_>>());
        let batches = ["a", "b", "c", "d"].map(batch);
        let calls = batches.iter().map(|batch| refused_in_time(&workspace, "/v1/usages/bulk", batch));
        futures_util::future::join_all(calls).await;
        holder.batch_execute("COMMIT").expect("the lock is ours");
        for batch in &batches {
            let stored = until_accepted(&workspace, "/v1/usages/bulk", batch).await;
            assert_eq!(stored["accepted"], 600, "the refusals left nothing");
        }
        assert_eq!(workspace.total("calls").await, "2400");
    });
}

/// Keys and meters are known, so that writes themselves meet the database.
const REMEMBER: (&str, &str) = ("OPEN_SPANNER_CACHE_TTL", "5s");

#[test]
fn frozen_postgres_is_an_answer() {
    run(async {
        let database = Database::durable_postgres();
        let server = Server::start_with(&database, &[REMEMBER, ("OPEN_SPANNER_SERVE_WORKERS", "on")]);
        let workspace = server.workspace().await;
        workspace.meter("calls", "count").await;
        workspace.post("/v1/usages", &event("before")).await.expect(201);
        database.cluster().signal_all("STOP");
        // more than there are connections; none of these can be told from another one by a key
        let keyless = json!({"meter": "calls", "subject": "s", "quantity": 1, "timestamp": NOON});
        let (single, batch) = (event("single"), json!([event("a"), event("b")]));
        let many = (0..40).map(|_| refused_in_time(&workspace, "/v1/usages", &keyless));
        tokio::join!(
            futures_util::future::join_all(many),
            refused_in_time(&workspace, "/v1/usages", &single),
            refused_in_time(&workspace, "/v1/usages/bulk", &batch),
        );
        server.client().get("/ready").await.expect(503);
        server.client().get("/health").await.expect(204);
        let threads = server.process_status("Threads:");
        assert!(threads < 100, "{threads} threads");

        database.cluster().signal_all("CONT");
        until_accepted(&workspace, "/v1/usages", &single).await;
        assert_eq!(until_accepted(&workspace, "/v1/usages/bulk", &batch).await["accepted"], 2);
        until_exported(&workspace).await;
        server.client().get("/ready").await.expect(204);
        assert_eq!(workspace.total("calls").await, "4", "what was refused was not stored later");
        assert_eq!(database.count("events"), 4);
    });
}

/// The workers of the server are at work.
async fn until_exported(workspace: &Workspace) {
    let query = json!({"meter": "calls", "from": JUNE.0, "to": JUNE.1});
    let made =
        workspace.post("/v1/exports", &json!({"kind": "usage_events", "query": query})).await.json(202);
    let path = format!("/v1/exports/{}", made["id"].as_str().expect("an id"));
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let export = workspace.get(&path).await.json(200);
        if export["status"] == "completed" {
            return;
        }
        assert!(Instant::now() < end, "not exported: {export}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[test]
fn frozen_postgres_does_not_keep_servers_from_stopping_and_starting() {
    run(async {
        let database = Database::durable_postgres();
        let mut server = Server::start_with(&database, &[("OPEN_SPANNER_SHUTDOWN_TIMEOUT", "1s")]);
        database.cluster().signal_all("STOP");
        // from now on a thread waits for PostgreSQL
        server.client().get("/ready").await.expect(503);
        assert!(server.terminate().success());

        // nor from starting, as soon as there is a database
        let mut server = Server::start_unready(&database, &[]);
        server.client().get("/ready").await.expect(503);
        server.client().get("/v1/meters").await.try_again();
        assert!(server.terminate().success());
        let server = Server::start_unready(&database, &[]);
        database.cluster().signal_all("CONT");
        let end = Instant::now() + Duration::from_secs(60);
        while server.client().get("/ready").await.status != 204 {
            assert!(Instant::now() < end, "not ready: {:#?}", server.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
}
