//! From the first start to the last signal: what an operator sees before any event is written.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::client::NOON;
use crate::support::{Client, Database, Server, Worker, guard, on_both_databases, program, run, stable_port};

on_both_databases!(
    health_and_readiness,
    stopping_finishes_what_was_begun,
    settings_are_shown_without_secrets,
    the_first_line_says_what_runs
);

#[test]
fn serve_needs_no_setting() {
    run(async {
        let directory = tempfile::tempdir().expect("a directory");
        // the default ports may be taken on this machine: nothing but the addresses is set
        let address = format!("127.0.0.1:{}", stable_port());
        let settings =
            [("OPEN_SPANNER_HTTP_ADDR", address.as_str()), ("OPEN_SPANNER_GRPC_ADDR", "127.0.0.1:0")];
        let mut child = program::command(&["serve"], &settings, directory.path()).spawn().expect("it starts");
        let started = Instant::now();
        let client = Client::new(&format!("http://{address}"));
        let ready = loop {
            match client.send(reqwest::Method::GET, "/ready", None).await {
                Ok(answer) if answer.status == 204 => break Some(started.elapsed()),
                _ if started.elapsed() > Duration::from_secs(60) => break None,
                _ => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        };
        let made = directory.path().join("open-spanner.db").exists();
        child.kill().expect("our own child can be killed");
        child.wait().expect("our own child can be waited for");
        // within a second on an idle machine, which is not what tests run on
        assert!(ready.is_some(), "/ready answers 204");
        assert!(made, "open-spanner.db is made in the working directory");
    });
}

async fn health_and_readiness(database: Database) {
    let server = Server::start(&database);
    for path in ["/health", "/ready"] {
        let answer = server.client().get(path).await.expect(204);
        assert_eq!(answer.text, "", "{path} has no body");
    }
    server.client().get("/nosuch/page.txt").await.expect(404);
    server.client().get("/v1/nosuch").await.expect(404);
}

async fn stopping_finishes_what_was_begun(database: Database) {
    let mut server = Server::start_to_be_restarted(&database);
    let workspace = server.workspace().await;
    workspace.meter("calls", "count").await;
    let mut writers = Vec::new();
    let total = Arc::new(AtomicU64::new(0));
    for writer in 0..8 {
        let (client, total) = (workspace.key.clone(), total.clone());
        writers.push(tokio::spawn(async move {
            let mut acknowledged = 0_u64;
            loop {
                let key = format!("{writer}-{acknowledged}");
                let event = json!({"meter": "calls", "subject": "s", "quantity": 1, "timestamp": NOON,
                    "idempotency_key": key});
                match client.try_post("/v1/usages", &event).await {
                    Ok(answer) if answer.status == 201 => {
                        acknowledged += 1;
                        total.fetch_add(1, Ordering::Relaxed);
                    }
                    // the last call of each writer is either whole or not begun
                    Ok(answer) if answer.status == 503 => return acknowledged,
                    Ok(answer) => panic!("{} {}", answer.status, answer.text),
                    Err(error) if error.is_connect() || error.is_request() => return acknowledged,
                    Err(error) => panic!("an answer was cut: {error:?}"),
                }
            }
        }));
    }
    let end = Instant::now() + Duration::from_secs(60);
    while total.load(Ordering::Relaxed) < 100 {
        assert!(Instant::now() < end, "the writers are not at work");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let asked = Instant::now();
    let status = server.terminate();
    assert_eq!(status.code(), Some(0), "{:#?}", server.log());
    // connections that are kept alive are not waited for until the shutdown timeout
    assert!(asked.elapsed() < Duration::from_secs(25), "stopping took {:?}", asked.elapsed());
    let mut acknowledged = 0;
    for writer in writers {
        acknowledged += writer.await.expect("the writer does not panic");
    }
    let stored = database.count("events");
    assert!(
        (acknowledged..=acknowledged + 8).contains(&stored),
        "{acknowledged} acknowledged, {stored} stored"
    );
    server.restart();
    assert_eq!(workspace.total("calls").await, stored.to_string());
}

#[test]
fn server_waits_for_its_database() {
    run(async {
        let database = Database::durable_postgres();
        database.cluster().kill();
        let mut server = Server::start_unready(&database, &[]);
        let client = server.client();
        client.get("/health").await.expect(204);
        client.get("/ready").await.expect(503);
        client.get("/v1/meters").await.try_again();
        database.cluster().start();
        let end = Instant::now() + Duration::from_secs(30);
        while client.get("/ready").await.status != 204 {
            assert!(Instant::now() < end, "not ready: {:#?}", server.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        server.workspace().await;
        // and a signal while it waits is not waited out
        database.cluster().kill();
        server.kill();
        let mut waiting = Server::start_unready(&database, &[]);
        assert_eq!(waiting.terminate().code(), Some(0));
    });
}

#[test]
fn second_server_on_one_sqlite_file_is_refused() {
    run(async {
        let database = Database::sqlite();
        let server = Server::start(&database);
        let directory = tempfile::tempdir().expect("a directory");
        let Database::Sqlite { path, .. } = &database else { unreachable!("made above") };
        let path = path.display().to_string();
        let settings = [
            ("OPEN_SPANNER_SQLITE_PATH", path.as_str()),
            ("OPEN_SPANNER_HTTP_ADDR", "127.0.0.1:0"),
            ("OPEN_SPANNER_GRPC_ADDR", "127.0.0.1:0"),
        ];
        let second = program::run(&["serve"], &settings, directory.path());
        assert!(second.code.is_some_and(|code| code != 0), "{second:#?}");
        let said = second.stderr.lines().filter(|line| line.starts_with("open-spanner: "));
        let complaints: Vec<_> = said.filter(|line| line.contains(&path)).collect();
        assert_eq!(complaints.len(), 1, "one line names the file: {second:#?}");
        assert!(!second.stderr.contains("panicked"), "{second:#?}");
        server.client().get("/ready").await.expect(204);
    });
}

#[test]
fn bad_setting_is_exit_code_2_and_one_line() {
    let bad = [
        ("OPEN_SPANNER_DB_DRIVER", "oracle"),
        ("OPEN_SPANNER_DB_MAX_OPEN_CONNS", "many"),
        ("OPEN_SPANNER_DB_MAX_OPEN_CONNS", "-1"),
        ("OPEN_SPANNER_DB_CONN_MAX_LIFETIME", "5"),
        ("OPEN_SPANNER_HTTP_ADDR", " "),
        ("OPEN_SPANNER_HTTP_ADDR", "nonsense"),
        ("OPEN_SPANNER_GRPC_ADDR", "127.0.0.1:99999"),
        ("OPEN_SPANNER_REGISTRATION_ENABLED", "maybe"),
        ("OPEN_SPANNER_INGESTION_MAX_BODY_BYTES", "0"),
        ("OPEN_SPANNER_INGESTION_MAX_BULK_EVENTS", "1001"),
    ];
    let directory = tempfile::tempdir().expect("a directory");
    for (name, value) in bad {
        refused(name, &program::run(&["serve"], &[(name, value)], directory.path()));
    }
    let postgres = [("OPEN_SPANNER_DB_DRIVER", "postgres")];
    refused("OPEN_SPANNER_POSTGRES_DSN", &program::run(&["serve"], &postgres, directory.path()));
    let unreadable = [postgres[0], ("OPEN_SPANNER_POSTGRES_DSN_FILE", "/nonexistent/dsn")];
    refused("OPEN_SPANNER_POSTGRES_DSN_FILE", &program::run(&["serve"], &unreadable, directory.path()));
    assert_eq!(std::fs::read_dir(directory.path()).expect("it is there").count(), 0, "nothing was created");
}

#[track_caller]
fn refused(name: &str, run: &program::Run) {
    assert_eq!(run.code, Some(2), "{name}: {run:#?}");
    let lines: Vec<_> = run.stderr.lines().filter(|line| !line.trim().is_empty()).collect();
    assert_eq!(lines.len(), 1, "{name}: one line: {run:#?}");
    assert!(lines[0].contains(name), "{name} is named: {run:#?}");
}

async fn settings_are_shown_without_secrets(database: Database) {
    let mut settings = database.settings();
    if let Some((_, dsn)) = settings.iter_mut().find(|(name, _)| *name == "OPEN_SPANNER_POSTGRES_DSN") {
        *dsn = dsn.replace("postgres@", "postgres:hush-hush@");
    }
    let settings: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let directory = tempfile::tempdir().expect("a directory");
    let shown = program::run(&["serve", "--print-config"], &settings, directory.path()).succeeded();
    let text = format!("{}{}", shown.stdout, shown.stderr);
    assert!(text.contains("OPEN_SPANNER_HTTP_ADDR"), "{shown:#?}");
    assert!(text.contains("18081"), "the default is shown: {shown:#?}");
    assert!(!text.contains("hush-hush"), "the password is hidden: {shown:#?}");
    // the same password in the log of a server that runs, and of one that cannot connect
    let wrong =
        settings.iter().map(|(name, value)| (*name, value.replace("/test_", "/absent_"))).collect::<Vec<_>>();
    let wrong: Vec<(&str, &str)> = wrong.iter().map(|(name, value)| (*name, value.as_str())).collect();
    if matches!(database, Database::Postgres { .. }) {
        let failed = program::run(&["migrate"], &wrong, directory.path());
        assert_ne!(failed.code, Some(0), "{failed:#?}");
        assert!(!format!("{failed:?}").contains("hush-hush"), "the password is hidden: {failed:#?}");
    }
}

async fn the_first_line_says_what_runs(database: Database) {
    let server = Server::start_with(&database, &[("OPEN_SPANNER_CACHE_TTL", "1s")]);
    let log = server.log();
    let first = log.iter().find(|line| line.contains(r#""message":"starting""#));
    let first = first.unwrap_or_else(|| panic!("no first line: {log:#?}"));
    let version = concat!(env!("CARGO_PKG_VERSION"), " (");
    for part in [r#""role":"serve""#, version, "OPEN_SPANNER_CACHE_TTL=1s"] {
        assert!(first.contains(part), "{part}: {log:#?}");
    }
    // what is as by default is not worth a word
    assert!(!first.contains("OPEN_SPANNER_INGESTION_"), "{first}");
    let database_is_named = match &database {
        Database::Sqlite { path, .. } => first.contains(&path.display().to_string()),
        Database::Postgres { name, .. } => first.contains("=set (") && first.contains(name.as_str()),
    };
    assert!(database_is_named, "{first}");
    // later ones tell one process from another
    for line in log.iter().skip_while(|line| *line != first) {
        let said: serde_json::Value = serde_json::from_str(line).expect("JSON");
        assert_eq!(said["role"], "serve", "{line}");
        assert!(said["instance"].as_str().is_some_and(|name| name.contains('/')), "{line}");
        assert!(said["version"].is_string(), "{line}");
    }
}

#[test]
fn secret_may_come_from_a_file() {
    run(async {
        let database = Database::postgres();
        let Database::Postgres { dsn, .. } = &database else { unreachable!("made above") };
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("dsn");
        std::fs::write(&file, format!("{dsn}\n")).expect("a file");
        let file = file.display().to_string();
        let settings =
            [("OPEN_SPANNER_DB_DRIVER", "postgres"), ("OPEN_SPANNER_POSTGRES_DSN_FILE", file.as_str())];
        program::run(&["migrate"], &settings, directory.path()).succeeded();
        assert_eq!(database.count("events"), 0);
    });
}

#[test]
fn help_and_version_are_answered() {
    let directory = tempfile::tempdir().expect("a directory");
    let help = program::run(&["--help"], &[], directory.path()).succeeded();
    for word in ["serve", "migrate"] {
        assert!(help.stdout.contains(word), "{word}: {help:#?}");
    }
    let version = program::run(&["--version"], &[], directory.path()).succeeded();
    assert!(version.stdout.contains(env!("CARGO_PKG_VERSION")), "{version:#?}");
    assert_eq!(program::run(&["nonsense"], &[], directory.path()).code, Some(2));
}

/// What systemd hears from `Type=notify` with a watchdog, from a server and from a worker.
#[test]
fn service_manager_is_told() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("notify");
    let socket = std::os::unix::net::UnixDatagram::bind(&path).expect("a socket");
    socket.set_read_timeout(Some(Duration::from_secs(60))).expect("a time limit");
    let heard_until = |wanted: &str| {
        let mut bytes = [0; 4096];
        loop {
            let size = socket.recv(&mut bytes).unwrap_or_else(|error| panic!("{wanted} never came: {error}"));
            let heard = String::from_utf8_lossy(&bytes[..size]);
            if heard.lines().any(|line| line == wanted) {
                return;
            }
        }
    };
    let address = path.display().to_string();
    let settings = [
        ("NOTIFY_SOCKET", address.as_str()),
        ("WATCHDOG_USEC", "100000"),
        ("OPEN_SPANNER_ALERT_WORKER_HEALTH_ADDR", "127.0.0.1:0"),
    ];
    let database = Database::sqlite();
    let mut server = Server::start_with(&database, &settings);
    heard_until("READY=1");
    heard_until("WATCHDOG=1");
    heard_until("WATCHDOG=1");
    server.terminate();
    heard_until("STOPPING=1");
    let mut worker = Worker::start("alert-worker", &database, directory.path(), &settings);
    heard_until("READY=1");
    heard_until("WATCHDOG=1");
    worker.terminate();
    heard_until("STOPPING=1");
}

/// A filter in the file `.env` of the working directory, where the environment has none, is taken over by a reload.
#[test]
fn a_log_filter_changes_without_a_restart() {
    run(async {
        let directory = tempfile::tempdir().expect("a directory");
        let filter = |text: &str| {
            let file = directory.path().join(".env");
            std::fs::write(file, format!("RUST_LOG={text}\n")).expect("written");
        };
        filter("error");
        let file = directory.path().join("log");
        let address = format!("127.0.0.1:{}", stable_port());
        let settings = [("OPEN_SPANNER_HTTP_ADDR", address.as_str()), ("OPEN_SPANNER_GRPC_ADDR", "")];
        let mut command = program::command(&["serve"], &settings, directory.path());
        command.stderr(std::fs::File::create(&file).expect("a file"));
        let mut child = command.spawn().expect("it starts");
        guard::will_end(child.id(), "KILL");
        let log = || std::fs::read_to_string(&file).expect("it is there");
        let client = Client::new(&format!("http://{address}"));
        let end = Instant::now() + Duration::from_secs(60);
        while !client
            .send(reqwest::Method::GET, "/ready", None)
            .await
            .is_ok_and(|answer| answer.status == 204)
        {
            assert!(Instant::now() < end, "it is not ready: {}", log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(!log().contains("INFO"), "{}", log());
        filter("info");
        assert!(guard::signal("HUP", child.id()), "it is there");
        while !log().contains("SIGHUP: the settings and the files of secrets were read again") {
            assert!(Instant::now() < end, "no line about it: {}", log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(guard::signal("TERM", child.id()), "it is there");
        let status = program::wait(&mut child, Duration::from_secs(60));
        guard::has_ended(child.id(), "KILL");
        assert!(status.is_some_and(|status| status.success()), "{}", log());
    });
}

/// One environment file serves a server and a worker of a host: who comes second has its metrics on its health port.
#[test]
fn metrics_of_a_worker_are_on_its_health_port_too() {
    run(async {
        let directory = tempfile::tempdir().expect("a directory");
        let (metrics, health) = (stable_port(), stable_port());
        let (metrics, health) = (format!("127.0.0.1:{metrics}"), format!("127.0.0.1:{health}"));
        let settings = [
            ("OPEN_SPANNER_METRICS_ADDR", metrics.as_str()),
            ("OPEN_SPANNER_ALERT_WORKER_HEALTH_ADDR", health.as_str()),
        ];
        let database = Database::sqlite();
        let _server = Server::start_with(&database, &settings);
        let mut worker = Worker::start("alert-worker", &database, directory.path(), &settings);
        for address in [metrics, health] {
            let client = Client::new(&format!("http://{address}"));
            let end = Instant::now() + Duration::from_secs(30);
            loop {
                match client.send(reqwest::Method::GET, "/metrics", None).await {
                    Ok(answer) if answer.status == 200 && answer.text.contains("open_spanner_db_") => break,
                    _ => assert!(Instant::now() < end, "no metrics at {address}"),
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        worker.terminate();
    });
}
