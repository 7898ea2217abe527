//! Queued exports: jobs from creation to download, canceled, killed, expired; files that nobody else can reach.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::client::{JUNE, NOON};
use crate::support::{Answer, Client, Database, Server, Worker, Workspace, env, on_both_databases, run};

on_both_databases!(
    events_and_buckets_from_end_to_end,
    a_download_in_parts,
    a_canceled_job_stops,
    another_worker_finishes_what_a_killed_one_began,
    a_job_that_kills_its_workers_fails,
    large_exports_need_little_memory,
    files_expire,
    files_that_cannot_be_written,
    nobody_else_gets_a_file,
    every_job_is_on_some_page
);

/// A server without workers of its own, and what a worker of its database is started with.
struct House {
    server: Server,
    database: Database,
    settings: Vec<(&'static str, String)>,
    folder: TempDir,
}

const PATH: &str = "OPEN_SPANNER_EXPORT_STORAGE_PATH";

impl House {
    fn new(database: Database, more: &[(&'static str, &str)]) -> House {
        let folder = tempfile::Builder::new().prefix("open-spanner-").tempdir().expect("a directory");
        let mut settings = vec![
            (PATH, folder.path().join("new/exports").display().to_string()),
            ("OPEN_SPANNER_EXPORT_WORKER_HEALTH_ADDR", "127.0.0.1:0".to_owned()),
            ("OPEN_SPANNER_EXPORT_WORKER_INTERVAL", "200ms".to_owned()),
        ];
        settings.extend(more.iter().map(|(name, value)| (*name, value.to_string())));
        let mut own: Vec<(&str, &str)> = settings.iter().map(|(n, v)| (*n, v.as_str())).collect();
        own.push(("OPEN_SPANNER_SERVE_WORKERS", "off"));
        let server = Server::start_with(&database, &own);
        House { server, database, settings, folder }
    }

    fn worker(&self) -> Worker {
        let settings: Vec<(&str, &str)> = self.settings.iter().map(|(n, v)| (*n, v.as_str())).collect();
        Worker::start("export-worker", &self.database, self.folder.path(), &settings)
    }

    fn storage(&self) -> PathBuf {
        self.folder.path().join("new/exports")
    }

    fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.storage()).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().into_string().expect("a plain name")).collect()
    }

    async fn until_left(&self, what: &str, wanted: &[&str]) {
        let end = Instant::now() + Duration::from_secs(60);
        while self.files() != wanted {
            assert!(Instant::now() < end, "{what}: {:?}", self.files());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Stores events 1 to `count`; event n has quantity n + 0.1.
async fn record(client: &Client, meter: &str, count: u64) {
    let numbers: Vec<u64> = (1..=count).collect();
    for batch in numbers.chunks(1_000) {
        let event = |n: &u64| {
            let quantity: Value = serde_json::from_str(&format!("{n}.1")).expect("a number");
            json!({"meter": meter, "subject": format!("s{}", n % 7), "quantity": quantity, "timestamp": NOON,
                   "metadata": {"note": "a, \"b\"", "n": n}})
        };
        let body: Vec<Value> = batch.iter().map(event).collect();
        client.post("/v1/usages/bulk", &json!(body)).await.expect(201);
    }
}

async fn queue(client: &Client, kind: &str, query: Value) -> Value {
    client.post("/v1/exports", &json!({"kind": kind, "query": query})).await.json(202)
}

fn path(job: &Value, rest: &str) -> String {
    format!("/v1/exports/{}{rest}", job["id"].as_str().expect("an id"))
}

/// Waits until the job satisfies a condition.
async fn until(client: &Client, job: &Value, what: &str, is_it: impl Fn(&Value) -> bool) -> Value {
    let end = Instant::now() + Duration::from_secs(600);
    loop {
        let now = client.get(&path(job, "")).await.json(200);
        if is_it(&now) {
            return now;
        }
        assert!(Instant::now() < end, "never {what}: {now}");
        assert!(what == "failed" || now["status"] != "failed", "not {what}: {now}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn ended(client: &Client, job: &Value, status: &str) -> Value {
    until(client, job, status, |job| job["status"] == status).await
}

async fn download(client: &Client, job: &Value) -> String {
    client.get(job["download_url"].as_str().expect("a link")).await.expect(200).text
}

/// Rows without the header, each as its first fields up to the first quote, which no number follows.
fn rows(csv: &str) -> Vec<Vec<&str>> {
    csv.lines().skip(1).map(|line| line.split(',').collect()).collect()
}

async fn events_and_buckets_from_end_to_end(database: Database) {
    // the defaults: inside the server on SQLite, a process of its own on PostgreSQL
    let folder = tempfile::tempdir().expect("a directory");
    let storage = folder.path().join("exports").display().to_string();
    let settings = [(PATH, storage.as_str()), ("OPEN_SPANNER_EXPORT_WORKER_HEALTH_ADDR", "127.0.0.1:0")];
    let server = Server::start_with(&database, &settings);
    let _worker = matches!(database, Database::Postgres { .. })
        .then(|| Worker::start("export-worker", &database, folder.path(), &settings));
    let workspace = server.workspace().await;
    workspace.meter("calls", "sum").await;
    record(&workspace, "calls", 2_500).await;

    let events = queue(&workspace, "usage_events", json!({"meter": "calls"})).await;
    let day = json!({"meter": "calls", "from": JUNE.0, "to": JUNE.1, "group_by": ["subject"], "bucket_size": "day"});
    let buckets = queue(&workspace, "usage_buckets", day.clone()).await;
    let some = json!({"meter": "calls", "limit": 5, "subject": "s1", "filter":
        {"type": "condition", "field": "metadata.n", "op": "lte", "value": 100}});
    let some = queue(&workspace, "usage_events", some).await;

    let events = ended(&workspace, &events, "completed").await;
    assert_eq!((events["row_count"].as_u64(), events["error"].is_null()), (Some(2_500), true), "{events}");
    let csv = download(&workspace, &events).await;
    assert_eq!(events["artifact_size"].as_u64(), Some(csv.len() as u64));
    let direct = workspace.get("/v1/usageevents/export?meter=calls&limit=1000").await.expect(200).text;
    assert!(csv.starts_with(&direct), "newest first, as the direct download");
    assert_eq!(csv.lines().count(), 2_501);

    let buckets = ended(&workspace, &buckets, "completed").await;
    let direct = workspace.post("/v1/usages/export", &day).await.expect(200).text;
    assert_eq!(download(&workspace, &buckets).await, direct);

    let some = ended(&workspace, &some, "completed").await;
    assert_eq!(some["row_count"].as_u64(), Some(5), "limited: {some}");
    let csv = download(&workspace, &some).await;
    assert!(rows(&csv).iter().all(|row| row[2] == "s1"), "{csv}");

    let unknown =
        queue(&workspace, "usage_buckets", json!({"meter": "x", "from": JUNE.0, "to": JUNE.1})).await;
    let failed = ended(&workspace, &unknown, "failed").await;
    assert!(failed["error"].as_str().is_some_and(|error| error.contains("meter \"x\"")), "{failed}");
}

async fn a_download_in_parts(database: Database) {
    let house = House::new(database, &[]);
    let _worker = house.worker();
    let workspace = house.server.workspace().await;
    workspace.meter("calls", "sum").await;
    record(&workspace, "calls", 10).await;
    let job = queue(&workspace, "usage_events", json!({"meter": "calls"})).await;
    let job = ended(&workspace, &job, "completed").await;
    let whole = download(&workspace, &job).await;
    let link = path(&job, "/download");
    let ask = async |method: Method, name: &'static str, value: String| -> Answer {
        workspace.with(name, value).send(method, &link, None).await.expect("an answer")
    };
    let size = whole.len();

    let head = ask(Method::HEAD, "accept-encoding", "gzip".into()).await.expect(200);
    assert_eq!((head.header("content-length"), head.text.as_str()), (size.to_string(), ""));
    assert_eq!((head.header("accept-ranges").as_str(), head.header("last-modified").len()), ("bytes", 29));
    assert_eq!(head.header("etag"), format!("\"{}\"", job["artifact_sha256"].as_str().expect("a hash")));
    let name =
        format!("attachment; filename=\"open-spanner-export-{}.csv\"", job["id"].as_str().expect("an id"));
    assert_eq!(head.header("content-disposition"), name);

    let part = ask(Method::GET, "range", "bytes=10-19".into()).await.expect(206);
    assert_eq!(
        (part.header("content-range"), part.text.as_str()),
        (format!("bytes 10-19/{size}"), &whole[10..20])
    );
    let part = ask(Method::GET, "range", "bytes=-7".into()).await.expect(206);
    assert_eq!((part.header("content-length").as_str(), part.text.as_str()), ("7", &whole[size - 7..]));
    let part = ask(Method::HEAD, "range", "bytes=0-0".into()).await.expect(206);
    assert_eq!(part.header("content-length"), "1");
    let refused = ask(Method::GET, "range", format!("bytes={size}-")).await.expect(416);
    assert_eq!(refused.header("content-range"), format!("bytes */{size}"));
    let several = ask(Method::GET, "range", "bytes=0-1,3-4".into()).await.expect(200);
    assert_eq!(several.text, whole);
    ask(Method::GET, "if-none-match", head.header("etag")).await.expect(304);
    ask(Method::HEAD, "range", "bytes=999999-".into()).await.expect(416);
}

/// How many events keep a worker busy for a while.
const MANY: u64 = 40_000;

async fn a_canceled_job_stops(database: Database) {
    let house = House::new(database, &[]);
    let mut worker = house.worker();
    let workspace = house.server.workspace().await;
    workspace.meter("calls", "sum").await;
    record(&workspace, "calls", MANY).await;
    let job = queue(&workspace, "usage_events", json!({"meter": "calls"})).await;
    workspace.get(&path(&job, "/download")).await.error(409, "conflict");
    until(&workspace, &job, "running", |job| job["row_count"].as_u64() > Some(0)).await;
    assert_eq!(house.files().len(), 1, "a draft");
    let canceled = workspace.post(&path(&job, "/cancel"), &json!({})).await.json(200);
    assert_eq!((&canceled["status"], &canceled["error"]), (&json!("canceled"), &json!("canceled by user")));
    house.until_left("the work stopped and left nothing", &[]).await;
    assert_eq!(house.database.count("jobs"), 0);
    workspace.post(&path(&job, "/cancel"), &json!({})).await.error(409, "conflict");

    let queued = workspace.post(&path(&job, "/retry"), &json!({})).await.json(200);
    assert_eq!((&queued["status"], &queued["row_count"]), (&json!("queued"), &json!(0)), "{queued}");
    assert!(queued["error"].is_null() && queued["completed_at"].is_null(), "{queued}");
    let done = ended(&workspace, &job, "completed").await;
    assert_eq!(done["row_count"].as_u64(), Some(MANY));
    workspace.post(&path(&job, "/retry"), &json!({})).await.error(409, "conflict");

    // a worker that is asked to stop gives its job back
    let job = queue(&workspace, "usage_events", json!({"meter": "calls"})).await;
    until(&workspace, &job, "running", |job| job["row_count"].as_u64() > Some(0)).await;
    assert_eq!(worker.terminate().code(), Some(0));
    let mut second = house.worker();
    ended(&workspace, &job, "completed").await;
    assert_eq!(house.files().len(), 2);
    second.terminate();
}

async fn another_worker_finishes_what_a_killed_one_began(database: Database) {
    // the clean-up comes hourly: what the dead one left goes with the second try
    let house = House::new(database, &[("OPEN_SPANNER_EXPORT_WORKER_LOCK_TTL", "2s")]);
    let mut first = house.worker();
    let workspace = house.server.workspace().await;
    workspace.meter("calls", "sum").await;
    record(&workspace, "calls", MANY).await;
    let job = queue(&workspace, "usage_events", json!({"meter": "calls"})).await;
    until(&workspace, &job, "running", |job| job["row_count"].as_u64() > Some(0)).await;
    first.kill();
    let left = house.files();
    assert!(left.len() == 1 && left[0].ends_with(".tmp"), "{left:?}");
    let _others = [house.worker(), house.worker()];
    let done = ended(&workspace, &job, "completed").await;
    assert_eq!(done["row_count"].as_u64(), Some(MANY));
    assert_eq!(rows(&download(&workspace, &done).await).len() as u64, MANY);
    let file = format!("{}.csv", done["id"].as_str().expect("an id"));
    house.until_left("one file, no drafts", &[&file]).await;
}

/// Two workers on one PostgreSQL, killed at random while they export: each job is done, once, by whoever is alive.
#[test]
fn workers_killed_at_random() {
    run(async {
        let settings = [
            ("OPEN_SPANNER_EXPORT_WORKER_LOCK_TTL", "1s"),
            ("OPEN_SPANNER_EXPORT_CLEANUP_INTERVAL", "500ms"),
            // a job that is hit by every kill is not a bad job
            ("OPEN_SPANNER_EXPORT_WORKER_MAX_ATTEMPTS", "1000"),
        ];
        let house = House::new(Database::postgres(), &settings);
        let workspace = house.server.workspace().await;
        workspace.meter("calls", "sum").await;
        record(&workspace, "calls", 10_000).await;
        let mut jobs = Vec::new();
        let mut workers = [house.worker(), house.worker()];
        let mut met = 0;
        for _ in 0..14 {
            jobs.push(queue(&workspace, "usage_events", json!({"meter": "calls"})).await);
            tokio::time::sleep(Duration::from_millis(rand::random_range(0..900))).await;
            met += usize::from(house.files().iter().any(|file| file.ends_with(".tmp")));
            // dropping is `kill -9`
            workers[rand::random_range(0..2)] = house.worker();
        }
        let direct = {
            let done = ended(&workspace, &jobs[0], "completed").await;
            download(&workspace, &done).await
        };
        assert_eq!(rows(&direct).len(), 10_000);
        let mut wanted = Vec::new();
        for job in &jobs {
            let done = ended(&workspace, job, "completed").await;
            assert_eq!(done["row_count"].as_u64(), Some(10_000), "{done}");
            assert!(download(&workspace, &done).await == direct, "{done}");
            wanted.push(format!("{}.csv", done["id"].as_str().expect("an id")));
        }
        wanted.sort();
        // what killed workers left is swept, and nothing else is
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let mut files = house.files();
            files.sort();
            if files == wanted && house.database.count("jobs") == 0 {
                break;
            }
            assert!(Instant::now() < end, "{files:?} and {} jobs", house.database.count("jobs"));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        println!("{} exports, 14 kills, {met} of them in the middle of one", jobs.len());
    });
}

async fn a_job_that_kills_its_workers_fails(database: Database) {
    let house = House::new(
        database,
        &[("OPEN_SPANNER_EXPORT_WORKER_LOCK_TTL", "3s"), ("OPEN_SPANNER_EXPORT_WORKER_MAX_ATTEMPTS", "1")],
    );
    let mut first = house.worker();
    let workspace = house.server.workspace().await;
    workspace.meter("calls", "sum").await;
    record(&workspace, "calls", MANY).await;
    let job = queue(&workspace, "usage_events", json!({"meter": "calls"})).await;
    until(&workspace, &job, "running", |job| job["row_count"].as_u64() > Some(0)).await;
    first.kill();
    let _second = house.worker();
    let failed = ended(&workspace, &job, "failed").await;
    assert!(failed["error"].as_str().is_some_and(|error| error.contains("died")), "{failed}");
    // the job is failed first, then its work is taken off the queue
    let end = Instant::now() + Duration::from_secs(60);
    while house.database.count("jobs") > 0 {
        assert!(Instant::now() < end, "nothing is tried any more");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    workspace.post(&path(&job, "/retry"), &json!({})).await.json(200);
    ended(&workspace, &job, "completed").await;
}

/// `OPEN_SPANNER_TEST_EXPORT_ROWS=1000000` tries it at full size.
async fn large_exports_need_little_memory(database: Database) {
    let count: u64 = env("OPEN_SPANNER_TEST_EXPORT_ROWS").map_or(30_000, |n| n.parse().expect("a number"));
    let house = House::new(database, &[("OPEN_SPANNER_EXPORT_WORKER_TIMEOUT", "1h")]);
    let worker = house.worker();
    let workspace = house.server.workspace().await;
    workspace.meter("calls", "sum").await;
    record(&workspace, "calls", count).await;
    let warm = queue(&workspace, "usage_events", json!({"meter": "calls", "limit": 10_000})).await;
    ended(&workspace, &warm, "completed").await;
    let before = worker.memory_kib("VmHWM");

    let started = Instant::now();
    let job = queue(&workspace, "usage_events", json!({"meter": "calls"})).await;
    let done = ended(&workspace, &job, "completed").await;
    let grown = worker.memory_kib("VmHWM").saturating_sub(before);
    let size = done["artifact_size"].as_u64().expect("a size") / 1024;
    println!(
        "{count} rows, {size} KiB in {:?}: peak memory grew by {grown} KiB from {before}",
        started.elapsed()
    );
    assert!(grown < 48 * 1024, "peak memory grew by {grown} KiB for a file of {size} KiB");

    let csv =
        std::fs::read_to_string(house.storage().join(format!("{}.csv", done["id"].as_str().expect("an id"))));
    let csv = csv.expect("the file");
    let mut tenths: u64 = 0;
    for row in rows(&csv) {
        tenths += row[4].replace('.', "").parse::<u64>().expect("one digit after the point");
    }
    assert_eq!(done["row_count"].as_u64(), Some(count));
    assert_eq!((csv.lines().count() as u64, tenths), (count + 1, count * (count + 1) * 5 + count));
}

async fn files_expire(database: Database) {
    let house = House::new(
        database,
        &[("OPEN_SPANNER_EXPORT_RETENTION", "2s"), ("OPEN_SPANNER_EXPORT_CLEANUP_INTERVAL", "500ms")],
    );
    let _worker = house.worker();
    let workspace = house.server.workspace().await;
    workspace.meter("calls", "sum").await;
    let job = queue(&workspace, "usage_events", json!({"meter": "calls"})).await;
    let done = ended(&workspace, &job, "completed").await;
    download(&workspace, &done).await;
    std::fs::write(house.storage().join("notes.csv"), "mine").expect("written");
    let expired = until(&workspace, &job, "expired", |job| !job["expired_at"].is_null()).await;
    assert_eq!((&expired["status"], &expired["download_url"]), (&json!("completed"), &Value::Null));
    let message = workspace.get(&path(&job, "/download")).await.error(404, "not_found");
    assert!(message.contains("artifact"), "{message}");
    assert_eq!(house.files(), ["notes.csv"], "what is not ours stays");
    assert_eq!(house.database.count("export_cleanup_runs"), 1);
}

async fn files_that_cannot_be_written(database: Database) {
    let blocked = tempfile::tempdir().expect("a directory");
    std::fs::write(blocked.path().join("file"), "in the way").expect("written");
    let storage = blocked.path().join("file/exports").display().to_string();
    let house = House::new(database, &[(PATH, &storage)]);
    let _worker = house.worker();
    let workspace = house.server.workspace().await;
    workspace.meter("calls", "sum").await;
    let job = queue(&workspace, "usage_events", json!({"meter": "calls"})).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let waiting = workspace.get(&path(&job, "")).await.json(200);
    assert_eq!(waiting["status"], "queued", "it waits for a worker that can write: {waiting}");
    workspace.get(&path(&job, "/download")).await.error(409, "conflict");
    std::fs::remove_file(blocked.path().join("file")).expect("ours");
    ended(&workspace, &job, "completed").await;
}

async fn nobody_else_gets_a_file(database: Database) {
    let house = House::new(database, &[]);
    let _worker = house.worker();
    let workspace = house.server.workspace().await;
    workspace.meter("calls", "sum").await;
    let job = queue(&workspace, "usage_events", json!({"meter": "calls"})).await;
    let done = ended(&workspace, &job, "completed").await;
    std::fs::write(house.storage().join("secret.csv"), "secret").expect("written");
    for id in ["secret", "..%2Fsecret", "%2e%2e%2f%2e%2e%2fsecret", "..", "%2Fetc%2Fpasswd"] {
        let answer = workspace.get(&format!("/v1/exports/{id}/download")).await;
        assert_eq!(answer.status, 404, "{id}: {}", answer.text);
    }
    house.server.client().get(&path(&job, "/download")).await.error(401, "unauthorized");
    let stranger = house.server.workspace().await;
    for (method, rest) in [("GET", ""), ("GET", "/download"), ("POST", "/cancel"), ("POST", "/retry")] {
        let method = method.parse().expect("a method");
        let answer = stranger.send(method, &path(&job, rest), None).await.expect("an answer");
        answer.error(404, "not_found");
    }
    let limited = key_for(&workspace, "other").await;
    limited.get(&path(&job, "/download")).await.error(403, "forbidden");
    limited.get("/v1/exports").await.error(403, "forbidden");
    let body = json!({"kind": "usage_events", "query": {}});
    limited.post("/v1/exports", &body).await.error(403, "forbidden");
    key_for(&workspace, "calls").await.get(&path(&job, "/download")).await.expect(200);
    std::fs::remove_file(house.storage().join(format!("{}.csv", done["id"].as_str().expect("an id"))))
        .expect("removed");
    let message = workspace.get(&path(&job, "/download")).await.error(404, "not_found");
    assert!(message.contains("artifact"), "{message}");
}

/// An API key for everything, with one meter.
async fn key_for(workspace: &Workspace, meter: &str) -> Client {
    let body = json!({"name": meter, "scopes": ["*"], "allowed_meters": [meter]});
    let made = workspace.session.post("/v1/auth/api-keys", &body).await.json(201);
    // the last header of a name counts
    workspace.session.with_key(made["key"].as_str().expect("the secret")).without("cookie")
}

async fn every_job_is_on_some_page(database: Database) {
    let house = House::new(database, &[]);
    let workspace = house.server.workspace().await;
    let mut made = Vec::new();
    for _ in 0..7 {
        made.insert(0, queue(&workspace, "usage_events", json!({})).await["id"].clone());
    }
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = workspace.get(&format!("/v1/exports?limit=3{cursor}")).await.json(200);
        seen.extend(page["items"].as_array().expect("a list").iter().map(|job| job["id"].clone()));
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(seen, made);
}
