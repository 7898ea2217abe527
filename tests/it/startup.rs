//! How a process begins: it waits for what mends itself, and ends with one line for everything else. A database that
//! belongs to somebody else is left as it is.

use std::path::Path;
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use serde_json::json;

use crate::support::client::NOON;
use crate::support::program::{self, Run};
use crate::support::{Database, Server, Worker, on_both_databases, run, skip};

on_both_databases!(
    database_of_the_reference_is_left_alone,
    tables_of_others_are_left_alone,
    newer_schema_is_refused,
    missing_schema_is_not_made_by_those_who_may_not,
    looking_changes_nothing,
    reverting_needs_a_word_and_an_unused_database
);

/// A role on free ports, run to its end.
fn start(arguments: &[&str], database: &Database) -> Run {
    let own = database.settings();
    let settings: Vec<(&str, &str)> = own.iter().map(|(name, value)| (*name, value.as_str())).collect();
    start_with(arguments, &settings)
}

fn start_with(arguments: &[&str], more: &[(&str, &str)]) -> Run {
    let directory = tempfile::tempdir().expect("a directory");
    let mut settings = vec![
        ("OPEN_SPANNER_HTTP_ADDR", "127.0.0.1:0"),
        ("OPEN_SPANNER_GRPC_ADDR", "127.0.0.1:0"),
        ("OPEN_SPANNER_ALERT_WORKER_HEALTH_ADDR", "127.0.0.1:0"),
        ("OPEN_SPANNER_EXPORT_WORKER_HEALTH_ADDR", "127.0.0.1:0"),
    ];
    settings.extend_from_slice(more);
    program::run(arguments, &settings, directory.path())
}

/// The one line that says why.
#[track_caller]
fn refused(run: Run, code: i32, words: &str) {
    assert_eq!(run.code, Some(code), "{run:#?}");
    let lines: Vec<&str> = run.stderr.lines().filter(|line| line.starts_with("open-spanner: ")).collect();
    assert_eq!(lines.len(), 1, "{run:#?}");
    assert!(lines[0].contains(words), "{words:?}: {run:#?}");
    assert!(!run.stderr.contains("waiting for the database"), "{run:#?}");
}

const ROLES: [&str; 4] = ["serve", "alert-worker", "export-worker", "migrate"];

fn files_beside(database: &Database) -> Vec<String> {
    let Database::Sqlite { path, .. } = database else { return Vec::new() };
    let entries = std::fs::read_dir(path.parent().expect("a directory")).expect("it is there").flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

async fn database_of_the_reference_is_left_alone(database: Database) {
    database.make(
        "CREATE TABLE schema_migrations (version TEXT); CREATE TABLE auth_workspaces (id TEXT);
         CREATE TABLE usage_events (id TEXT); CREATE TABLE meters (id TEXT)",
    );
    let (schema, files) = (database.schema(), files_beside(&database));
    for role in ROLES {
        refused(start(&[role], &database), 2, "open-spanner import reference");
    }
    assert_eq!((database.schema(), files_beside(&database)), (schema, files));
}

async fn tables_of_others_are_left_alone(database: Database) {
    database.make("CREATE TABLE users (name TEXT)");
    let (schema, files) = (database.schema(), files_beside(&database));
    for role in ROLES {
        refused(start(&[role], &database), 2, "\"users\"");
    }
    assert_eq!((database.schema(), files_beside(&database)), (schema, files));
}

async fn newer_schema_is_refused(database: Database) {
    start(&["migrate"], &database).succeeded();
    database.execute("INSERT INTO __diesel_schema_migrations (version) VALUES ('9999')");
    for role in ROLES {
        refused(start(&[role], &database), 2, "newer");
    }
    let status = start(&["migrate", "--status", "--json"], &database).succeeded();
    let status: serde_json::Value = serde_json::from_str(&status.stdout).expect("JSON");
    assert_eq!((&status["unknown"], &status["pending"]), (&json!(["9999"]), &json!([])));
    // who goes back a version says so once, for everything that is started there
    let own = database.settings();
    let mut settings: Vec<(&str, &str)> = own.iter().map(|(name, value)| (*name, value.as_str())).collect();
    settings.push(("OPEN_SPANNER_NEWER_SCHEMA", "accept"));
    let migrated = start_with(&["migrate"], &settings).succeeded();
    assert!(migrated.stdout.contains("0 applied, schema is that of a newer version"), "{migrated:#?}");
    start_with(&["admin", "key", "create", "--email", "me@example.com"], &settings).succeeded();
    let server = Server::start_with(&database, &[("OPEN_SPANNER_NEWER_SCHEMA", "accept")]);
    server.workspace().await.meter("calls", "count").await;
}

async fn missing_schema_is_not_made_by_those_who_may_not(database: Database) {
    let before = files_beside(&database);
    for role in ["serve", "alert-worker", "export-worker"] {
        refused(start(&[role, "--no-migrate"], &database), 2, "run `open-spanner migrate` first");
    }
    let made: Vec<String> =
        files_beside(&database).into_iter().filter(|name| !name.ends_with(".lock")).collect();
    assert_eq!(made, before);
    start(&["migrate"], &database).succeeded();
    database.execute("DELETE FROM __diesel_schema_migrations");
    refused(start(&["serve", "--no-migrate"], &database), 2, "another program");
}

async fn looking_changes_nothing(database: Database) {
    let schema = |database: &Database| match database {
        Database::Sqlite { .. } => String::new(),
        Database::Postgres { .. } => database.schema(),
    };
    let before = (schema(&database), files_beside(&database));
    let status = start(&["migrate", "--status"], &database).succeeded();
    assert!(status.stdout.contains("pending 0001"), "{status:#?}");
    assert_eq!((schema(&database), files_beside(&database)), before);
    start(&["migrate"], &database).succeeded();
    let before = (schema(&database), files_beside(&database));
    assert!(start(&["migrate", "--status"], &database).succeeded().stdout.contains("applied 0001"));
    assert_eq!((schema(&database), files_beside(&database)), before);
}

async fn reverting_needs_a_word_and_an_unused_database(database: Database) {
    let mut server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("calls", "count").await;
    let name = database.called();
    let revert = ["migrate", "--revert", "1", "--yes-delete-data", name.as_str()];
    assert_eq!(start(&revert[..3], &database).code, Some(2), "not without the word");
    refused(start(&["migrate", "--revert", "1", "--yes-delete-data", "another"], &database), 2, &name);
    refused(start(&revert, &database), 1, "in use");
    assert_eq!(server.terminate().code(), Some(0));

    let directory = tempfile::tempdir().expect("a directory");
    let health = format!("127.0.0.1:{}", crate::support::stable_port());
    let address = [("OPEN_SPANNER_ALERT_WORKER_HEALTH_ADDR", health.as_str())];
    let mut worker = Worker::start("alert-worker", &database, directory.path(), &address);
    until_ready(&format!("http://{health}")).await;
    refused(start(&revert, &database), 1, "in use");
    assert_eq!(database.count("meters"), 1);
    worker.terminate();
    start(&revert, &database).succeeded();
    assert!(start(&["migrate", "--status"], &database).succeeded().stdout.contains("pending 0001"));
}

async fn until_ready(url: &str) {
    let client = crate::support::Client::new(url);
    let end = Instant::now() + Duration::from_secs(30);
    while !client.send(reqwest::Method::GET, "/ready", None).await.is_ok_and(|answer| answer.status == 204) {
        assert!(Instant::now() < end, "{url} is not ready");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[test]
fn file_that_cannot_be_used_ends_the_process() {
    let directory = tempfile::tempdir().expect("a directory");
    let at = |name: &str| directory.path().join(name).display().to_string();
    std::fs::write(at("letter"), "Dear database,\n".repeat(100)).expect("a file");
    let settings = |path: &str| start_with(&["migrate"], &[("OPEN_SPANNER_SQLITE_PATH", path)]);
    settings(&at("good")).succeeded();
    for (path, code, words) in [
        (directory.path().display().to_string(), 2, "is a directory"),
        (at("letter"), 2, "not a database"),
        (format!("file:{}?mode=ro", at("good")), 2, "readonly"),
        (at("nowhere/x.db"), 1, "No such file"),
    ] {
        for role in ROLES {
            refused(start_with(&[role], &[("OPEN_SPANNER_SQLITE_PATH", &path)]), code, words);
        }
    }
    assert_eq!(
        std::fs::read_to_string(at("letter")).expect("it is there").len(),
        1_500,
        "nothing was written"
    );
}

/// Whoever asks for what this version does not have hears of it at the start, not at the first download.
#[test]
fn exports_on_s3_are_refused() {
    let settings = [("OPEN_SPANNER_EXPORT_STORAGE_DRIVER", "s3"), ("OPEN_SPANNER_EXPORT_S3_BUCKET", "files")];
    for role in ["serve", "export-worker"] {
        refused(start_with(&[role], &settings), 2, "OPEN_SPANNER_EXPORT_STORAGE_DRIVER: s3");
    }
}

/// As the Go server had it: gone when its process is.
#[test]
fn a_database_in_memory_works_and_leaves_nothing() {
    run(async {
        let (database, folder) = (Database::sqlite(), tempfile::tempdir().expect("a directory"));
        let temporary = folder.path().display().to_string();
        let settings = [("OPEN_SPANNER_SQLITE_PATH", ":memory:"), ("TMPDIR", temporary.as_str())];
        let mut server = Server::start_with(&database, &settings);
        let workspace = server.workspace().await;
        workspace.meter("calls", "count").await;
        let event = json!({"meter": "calls", "subject": "s", "quantity": 1, "timestamp": NOON});
        workspace.post("/v1/usages", &event).await.expect(201);
        assert_eq!(workspace.total("calls").await, "1");
        server.client().get("/ready").await.expect(204);
        assert_eq!(server.terminate().code(), Some(0));
        let left = std::fs::read_dir(folder.path()).expect("it is there").count();
        assert_eq!((left, files_beside(&database)), (0, Vec::<String>::new()));
    });
}

#[test]
fn files_are_for_their_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    run(async {
        let database = Database::sqlite();
        let server = Server::start(&database);
        server.workspace().await.meter("calls", "count").await;
        let Database::Sqlite { path, .. } = &database else { unreachable!("made above") };
        let names = files_beside(&database);
        for end in ["test.db", "-wal", "-shm", ".lock"] {
            assert!(names.iter().any(|name| name.ends_with(end)), "{end}: {names:?}");
        }
        for name in names {
            let file = path.with_file_name(&name);
            let mode = file.metadata().expect("it is there").permissions().mode();
            assert_eq!(mode & 0o077, 0, "{name}: {mode:o}");
        }
    });
}

/// The database of a DSN, in another encoding.
fn encoded(database: &Database, encoding: &str) -> Vec<(&'static str, String)> {
    let Database::Postgres { name, .. } = database else { unreachable!("PostgreSQL only") };
    let other = format!("{name}_{}", encoding.to_lowercase());
    let create = format!("CREATE DATABASE {other} TEMPLATE template0 ENCODING '{encoding}' LOCALE 'C'");
    database.postgres_connection().batch_execute(&create).expect("a superuser may");
    database.settings().into_iter().map(|(key, value)| (key, value.replace(name, &other))).collect()
}

#[test]
fn database_must_hold_every_text() {
    let database = Database::postgres();
    for encoding in ["LATIN1", "SQL_ASCII"] {
        let own = encoded(&database, encoding);
        let settings: Vec<(&str, &str)> = own.iter().map(|(name, value)| (*name, value.as_str())).collect();
        for role in ROLES {
            refused(start_with(&[role], &settings), 2, "must be UTF8");
        }
    }
}

/// The settings of another role, database or option of the same cluster.
fn with_dsn(database: &Database, from: &str, to: &str) -> Vec<(&'static str, String)> {
    database.settings().into_iter().map(|(name, value)| (name, value.replace(from, to))).collect()
}

/// Roles belong to the cluster, which tests share.
fn role(database: &Database) -> String {
    let role = crate::support::unique("app_role");
    database
        .postgres_connection()
        .batch_execute(&format!("CREATE ROLE {role} LOGIN"))
        .expect("a superuser may");
    role
}

#[test]
fn what_postgres_will_never_allow_ends_the_process() {
    let database = Database::postgres_speaking("de_DE");
    let Database::Postgres { name, .. } = &database else { unreachable!("made above") };
    let app = role(&database);
    for (from, to, code, words) in [
        (name.as_str(), "absent", 2, "absent"),
        ("postgres@", "nobody@", 2, "nobody"),
        ("postgres@", &format!("{app}@"), 1, "--grant"),
        ("postgres://", "postgres:/", 2, "no connection string"),
    ] {
        let own = with_dsn(&database, from, to);
        let settings: Vec<(&str, &str)> = own.iter().map(|(name, value)| (*name, value.as_str())).collect();
        for role in ROLES {
            refused(start_with(&[role], &settings), code, words);
        }
    }
    assert_eq!(
        database.lines("SELECT relname::text AS line FROM pg_class WHERE relname ~ 'diesel'").len(),
        0
    );
}

/// With `verify-full` the server's certificate is checked, against a file or against those that the system trusts.
#[test]
fn certificate_of_postgres_is_checked() {
    const OPENSSL: &str = "/usr/bin/openssl";
    if !Path::new(OPENSSL).exists() {
        return skip("certificate_of_postgres_is_checked", "there is no openssl on this machine");
    }
    let database = Database::durable_postgres();
    // by the server's own user, in its own folder
    database.make(&format!(
        "COPY (SELECT 1) TO PROGRAM '{OPENSSL} req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 \
         -subj /CN=database -addext subjectAltName=IP:127.0.0.1 -keyout server.key -out server.crt 2>/dev/null'"
    ));
    database.make("ALTER SYSTEM SET ssl = on");
    database.make("SELECT pg_reload_conf()");
    let end = Instant::now() + Duration::from_secs(30);
    while database.lines("SELECT current_setting('ssl') AS line") != ["on"] {
        assert!(Instant::now() < end, "PostgreSQL speaks no TLS");
        std::thread::sleep(Duration::from_millis(20));
    }
    let folder = tempfile::tempdir().expect("a directory");
    let file = folder.path().join("ca.crt").display().to_string();
    let certificate = database.lines("SELECT pg_read_file('server.crt') AS line").remove(0);
    std::fs::write(&file, certificate).expect("written");
    let look = |parameters: &str, trusted: &str| {
        let mut settings = database.settings();
        for (name, value) in &mut settings {
            if *name == "OPEN_SPANNER_POSTGRES_DSN" {
                let mark = if value.contains('?') { '&' } else { '?' };
                *value = format!("{value}{mark}{parameters}");
            }
        }
        settings.push(("SSL_CERT_FILE", trusted.to_owned()));
        let settings: Vec<(&str, &str)> =
            settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
        start_with(&["migrate", "--status"], &settings)
    };
    look(&format!("sslmode=verify-full&sslrootcert={file}"), "").succeeded();
    look("sslrootcert=system", &file).succeeded();
    let strange = look("sslrootcert=system", "/dev/null");
    assert_ne!(strange.code, Some(0), "{strange:#?}");
    assert!(strange.stderr.contains("certificate"), "{strange:#?}");
}

#[test]
fn role_without_rights_to_the_schema_serves() {
    run(async {
        let database = Database::postgres();
        let app = role(&database);
        start(&["migrate", "--grant", &app], &database).succeeded();
        let months = "SELECT relname::text AS line FROM pg_class WHERE relname ~ '^events_[0-9]{6}$'";
        assert!(database.lines(months).len() >= 12, "months are attached ahead by their owner");
        let Database::Postgres { dsn, cluster, name } = database.clone() else { unreachable!("made above") };
        let dsn = dsn.replace("postgres@", &format!("{app}@"));
        let as_app = Database::Postgres { dsn, cluster, name };
        let server = Server::start_with(
            &as_app,
            &[("OPEN_SPANNER_SERVE_WORKERS", "on"), ("OPEN_SPANNER_RETENTION_PRUNE_ENABLED", "true")],
        );
        let workspace = server.workspace().await;
        workspace.meter("calls", "count").await;
        let event = json!({"meter": "calls", "subject": "s", "quantity": 1, "timestamp": NOON});
        workspace.post("/v1/usages", &event).await.expect(201);
        server.client().get("/ready").await.expect(204);
        assert_eq!(workspace.total("calls").await, "1");
        let complaints: Vec<String> = server
            .log()
            .into_iter()
            .filter(|line| line.contains("permission") || line.contains("owner"))
            .collect();
        assert_eq!(complaints, Vec::<String>::new());
        refused(
            start(&["migrate", "--revert", "1", "--yes-delete-data", &database.called()], &as_app),
            1,
            "in use",
        );
    });
}

/// A migration that somebody else runs is waited for: said, not ready, and not for longer than a signal.
#[test]
fn migration_of_another_process_is_waited_for() {
    run(async {
        let database = Database::postgres();
        let mut holder = database.postgres_connection();
        let lock = 0x6F73_7061_6E6E_6572_i64;
        holder.batch_execute(&format!("SELECT pg_advisory_lock({lock})")).expect("it is free");
        let directory = tempfile::tempdir().expect("a directory");
        let health = format!("127.0.0.1:{}", crate::support::stable_port());
        let address = [("OPEN_SPANNER_ALERT_WORKER_HEALTH_ADDR", health.as_str())];
        let _worker = Worker::start("alert-worker", &database, directory.path(), &address);
        let mut server = Server::start_unready(&database, &[]);
        said(directory.path(), "waiting for the migration lock");
        let worker_url = format!("http://{health}");
        let probe = crate::support::Client::new(&worker_url);
        let reasons = probe.get("/ready").await.json(503);
        assert_eq!(reasons["reasons"][0]["kind"], "starting", "{reasons}");
        server.client().get("/ready").await.expect(503);
        assert_eq!(server.terminate().code(), Some(0), "a signal is not waited out");
        holder.batch_execute(&format!("SELECT pg_advisory_unlock({lock})")).expect("it is ours");
        until_ready(&worker_url).await;
        assert_eq!(database.count("events"), 0);
    });
}

/// As whoever takes a migration back has it, or lays tables out over nodes.
#[test]
fn whoever_has_the_database_alone_is_waited_for() {
    run(async {
        let database = Database::postgres();
        start(&["migrate"], &database).succeeded();
        let mut holder = database.postgres_connection();
        let lock = 0x6F73_706E_7573_6573_i64;
        holder.batch_execute(&format!("SELECT pg_advisory_lock({lock})")).expect("it is free");
        let server = Server::start_unready(&database, &[]);
        let end = Instant::now() + Duration::from_secs(30);
        while !server.log().iter().any(|line| line.contains("not to be used until")) {
            assert!(Instant::now() < end, "{:?}", server.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        server.client().get("/ready").await.expect(503);
        holder.batch_execute(&format!("SELECT pg_advisory_unlock({lock})")).expect("it is ours");
        until_ready(&server.url()).await;
    });
}

fn said(directory: &Path, words: &str) {
    let end = Instant::now() + Duration::from_secs(30);
    let log = || std::fs::read_to_string(directory.join("worker.log")).unwrap_or_default();
    while !log().contains(words) {
        assert!(Instant::now() < end, "no {words:?} in {}", log());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn plain_http_that_others_reach_is_told() {
    run(async {
        let everywhere = ("OPEN_SPANNER_HTTP_ADDR", "0.0.0.0:0");
        let told = |more: &[(&str, &str)]| {
            let database = Database::sqlite();
            let server = Server::start_with(&database, more);
            server.log().iter().any(|line| line.contains("plain http on an address that others reach"))
        };
        assert!(told(&[everywhere]));
        assert!(!told(&[]), "nobody else reaches it");
        assert!(!told(&[everywhere, ("OPEN_SPANNER_TRUSTED_PROXIES", "10.0.0.0/8")]));
        assert!(!told(&[everywhere, ("OPEN_SPANNER_PUBLIC_URL", "https://usage.example.com")]));
    });
}

/// A folder of an image is writable without a volume: it must not look as if something were kept there.
#[test]
fn a_folder_that_is_no_volume_is_refused_where_one_is_wanted() {
    let folder = tempfile::tempdir().expect("a directory");
    let (volume, file) = (folder.path().display().to_string(), folder.path().join("open-spanner.db"));
    let path = file.display().to_string();
    let settings =
        [("OPEN_SPANNER_SQLITE_PATH", path.as_str()), ("OPEN_SPANNER_DATA_VOLUME", volume.as_str())];
    for role in ["serve", "migrate", "alert-worker"] {
        refused(program::run(&[role], &settings, folder.path()), 2, "is no volume");
    }
    // from within, too
    let within = [("OPEN_SPANNER_SQLITE_PATH", "open-spanner.db"), settings[1]];
    refused(program::run(&["migrate"], &within, folder.path()), 2, "is no volume");
    assert!(!file.exists(), "nothing is made there");
    // a look changes nothing
    program::run(&["migrate", "--status"], &settings, folder.path()).succeeded();
    program::run(&["migrate"], &settings[..1], folder.path()).succeeded();
    // a database elsewhere is not meant
    let elsewhere = [settings[0], ("OPEN_SPANNER_DATA_VOLUME", "/data")];
    program::run(&["migrate"], &elsewhere, folder.path()).succeeded();
}
