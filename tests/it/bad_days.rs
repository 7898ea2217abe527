//! The database is locked or its disk is full: callers are told to try again, nothing is half-written, and the
//! server goes on by itself afterwards. (The database gone altogether: `crash.rs`.)

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use serde_json::{Value, json};

use crate::support::client::NOON;
use crate::support::{Client, Database, Server, guard, is_root, run, skip};

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
fn full_disk_is_an_answer_and_no_partial_write() {
    let disk = if is_root() { SmallDisk::mount(24) } else { None };
    let Some(disk) = disk else {
        return skip("full_disk_is_an_answer_and_no_partial_write", "needs root and a mountable tmpfs");
    };
    run(async {
        let database = Database::sqlite_in(&disk.path);
        let server = Server::start(&database);
        let workspace = server.workspace().await;
        workspace.meter("calls", "count").await;
        let filler = disk.fill();
        let (stored, refused) = write_until_refused(&workspace.key).await;
        server.client().get("/health").await.expect(204);
        assert_eq!(database.count("events"), stored as u64, "whole batches only");
        assert_eq!(workspace.total("calls").await, stored.to_string());

        std::fs::remove_file(&filler).expect("the filler is ours");
        let end = Instant::now() + Duration::from_secs(15);
        let after = loop {
            let answer = workspace.post("/v1/usages/bulk", &refused).await;
            if answer.status == 201 {
                break answer.json(201);
            }
            assert!(Instant::now() < end, "no recovery: {} {}", answer.status, answer.text);
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        assert_eq!(after["accepted"], refused.as_array().map(Vec::len).expect("a batch"), "{after}");
        assert_eq!(workspace.total("calls").await, (stored + 100).to_string());
    });
    assert!(!Path::new(&disk.path).join("filler").exists());
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
