//! The drill: a backup of a server under load, verified, damaged, restored; totals are equal and a new epoch begins.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::client::NOON;
use crate::support::program::{self, Run};
use crate::support::{Database, Server, on_both_databases, run};

on_both_databases!(
    a_backup_of_a_busy_server_comes_back_whole,
    restore_overwrites_nothing,
    a_backup_goes_to_standard_output,
    webhooks_of_the_past_wait_for_a_word,
    a_restore_that_ends_early_sends_nothing,
    totals_that_are_not_those_of_their_events_are_found
);

fn on(database: &Database, arguments: &[&str]) -> Run {
    let own = database.settings();
    let settings: Vec<(&str, &str)> = own.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let directory = tempfile::tempdir().expect("a directory");
    program::run(arguments, &settings, directory.path())
}

#[track_caller]
fn ended(run: Run, code: i32, words: &str) {
    assert_eq!(run.code, Some(code), "{run:#?}");
    assert!(run.stderr.contains(words) || run.stdout.contains(words), "{words:?}: {run:#?}");
}

fn another(database: &Database) -> Database {
    match database {
        Database::Sqlite { .. } => Database::sqlite(),
        Database::Postgres { .. } => Database::postgres(),
    }
}

fn manifest(file: &Path) -> Value {
    let text = std::fs::read_to_string(format!("{}.manifest.json", file.display())).expect("a manifest");
    serde_json::from_str(&text).expect("JSON")
}

async fn a_backup_of_a_busy_server_comes_back_whole(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("calls", "sum").await;
    let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let writer = {
        let (client, stop, sent) = (workspace.key.clone(), stop.clone(), sent.clone());
        tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let number = sent.fetch_add(1, Ordering::Relaxed);
                let key = format!("k{number}");
                let event = json!({"meter": "calls", "subject": format!("s{}", number % 7), "quantity": 0.1,
                                   "timestamp": NOON, "idempotency_key": key});
                client.post("/v1/usages", &event).await.expect(201);
            }
        })
    };
    while sent.load(Ordering::Relaxed) < 50 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let folder = tempfile::tempdir().expect("a directory");
    let file = folder.path().join("backup");
    let name = file.display().to_string();
    let arguments = ["backup", &name, "--json"].map(str::to_owned);
    let saved = {
        let database = database.clone();
        let task =
            tokio::task::spawn_blocking(move || on(&database, &arguments.each_ref().map(String::as_str)));
        task.await.expect("no panic").succeeded()
    };
    stop.store(true, Ordering::Relaxed);
    writer.await.expect("the writer does not fail");
    let saved: Value = serde_json::from_str(&saved.stdout).expect("JSON");
    let events = saved["manifest"]["rows"]["events"].as_u64().expect("a number");
    assert!(events >= 49 && events <= sent.load(Ordering::Relaxed), "{saved}");

    ended(on(&database, &["backup", "verify", &name]), 0, "whole");
    ended(on(&database, &["backup", &name]), 1, "there already");
    // whoever counts wrong is told so
    let text = std::fs::read_to_string(format!("{name}.manifest.json")).expect("a manifest");
    let wrong = text.replace(&format!("\"events\": {events},"), "\"events\": 1,");
    assert_ne!(wrong, text);
    std::fs::write(format!("{name}.manifest.json"), wrong).expect("written");
    ended(on(&database, &["backup", "verify", &name]), 3, "saved");
    std::fs::write(format!("{name}.manifest.json"), text).expect("written");

    let restored = another(&database);
    ended(on(&restored, &["restore", &name]), 0, "RTO");
    let epochs = "SELECT CAST(epoch AS TEXT) AS line FROM installation";
    let (before, after): (i64, i64) = (
        manifest(&file)["epoch"].as_i64().expect("a number"),
        restored.lines(epochs)[0].parse().expect("a number"),
    );
    assert!(after > before, "{before} {after}");
    let second = Server::start(&restored);
    let said =
        |line: &String| line.contains("\"message\":\"installation\"") && line.contains("\"schema\":\"0001\"");
    let log = second.log();
    let line = log
        .iter()
        .find(|line| said(line))
        .unwrap_or_else(|| panic!("which installation:\n{}", log.join("\n")));
    assert!(line.contains(&format!("\"epoch\":{after}")), "{line}");
    let there = workspace.at(&second.url());
    assert_eq!(restored.count("events"), events);
    let expected = format!("{}.{}", events / 10, events % 10);
    assert_eq!(there.total("calls").await.trim_end_matches(".0"), expected.trim_end_matches(".0"));
    // what is there already counts once; what was lost comes again
    let all = sent.load(Ordering::Relaxed);
    for number in 0..all {
        let event = json!({"meter": "calls", "subject": format!("s{}", number % 7), "quantity": 0.1,
                           "timestamp": NOON, "idempotency_key": format!("k{number}")});
        there.post("/v1/usages", &event).await.expect(201);
    }
    assert_eq!(restored.count("events"), all);
}

async fn restore_overwrites_nothing(database: Database) {
    on(&database, &["migrate"]).succeeded();
    let folder = tempfile::tempdir().expect("a directory");
    let name = folder.path().join("backup").display().to_string();
    on(&database, &["backup", &name]).succeeded();
    assert_eq!(database.lines("SELECT name AS line FROM chores WHERE done_at > 1000000"), ["backup"]);
    let found = on(&database, &["doctor", "--json"]);
    assert!(found.stdout.contains("the last one was made at"), "{found:#?}");
    let refusal = match &database {
        Database::Sqlite { .. } => "there already",
        Database::Postgres { .. } => "not empty",
    };
    ended(on(&database, &["restore", &name]), 1, refusal);
    // a file for no eyes but the owner's, and none that is damaged
    use std::os::unix::fs::PermissionsExt;
    for file in [name.clone(), format!("{name}.manifest.json")] {
        assert_eq!(std::fs::metadata(&file).expect("there").permissions().mode() & 0o077, 0, "{file}");
    }
    let mut bytes = std::fs::read(&name).expect("there");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&name, bytes).expect("written");
    let empty = another(&database);
    ended(on(&empty, &["restore", &name]), 2, "damaged");
    ended(on(&database, &["backup", "verify", &name]), 2, "damaged");
    ended(on(&empty, &["restore", "/nowhere/at/all"]), 1, "No such file");
    let other = folder.path().join("second").display().to_string();
    ended(on(&another(&database), &["backup", &other]), 2, "no schema");
    assert!(!Path::new(&other).exists());
    ended(on(&database, &["backup", "/nowhere/at/all"]), 1, "cannot write /nowhere/at/all");
}

async fn a_backup_goes_to_standard_output(database: Database) {
    on(&database, &["migrate"]).succeeded();
    let folder = tempfile::tempdir().expect("a directory");
    let name = folder.path().join("carried away").display().to_string();
    let manifest = format!("{name}.manifest.json");
    ended(on(&database, &["backup", "-"]), 2, "--manifest");
    ended(on(&database, &["backup", &name, "--manifest", &manifest]), 2, "beside the file");
    let own = database.settings();
    let settings: Vec<(&str, &str)> = own.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let to = |path: &str| {
        let mut command =
            program::command(&["backup", "-", "--manifest", &manifest], &settings, folder.path());
        command.stdout(std::fs::File::create(path).expect("a file"));
        command.status().expect("it runs").code()
    };
    // a manifest without its backup would be taken for one
    assert_eq!(to("/dev/full"), Some(1));
    assert!(!std::path::Path::new(&manifest).exists());
    assert_eq!(to(&name), Some(0));
    ended(on(&database, &["backup", "verify", &name]), 0, "whole");
    ended(on(&database, &["backup", "-", "--manifest", &manifest]), 1, "there already");
    on(&another(&database), &["restore", &name]).succeeded();
}

/// A backup that holds what the database held is no good when that was damaged already.
async fn totals_that_are_not_those_of_their_events_are_found(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("calls", "sum").await;
    let event = json!({"meter": "calls", "subject": "s", "quantity": 1, "idempotency_key": "now"});
    workspace.key.post("/v1/usages", &event).await.expect(201);
    let folder = tempfile::tempdir().expect("a directory");
    let verified = |file: &str, code: i32, words: &str| {
        let name = folder.path().join(file).display().to_string();
        on(&database, &["backup", &name]).succeeded();
        ended(on(&database, &["backup", "verify", &name]), code, words);
    };
    verified("whole", 0, "whole");
    let words = "the totals of 1 hours tell of another number of events";
    for (file, change) in [
        ("more", "UPDATE rollups SET event_count = event_count + 1 WHERE grain = 1"),
        ("fewer", "UPDATE rollups SET event_count = 0 WHERE grain = 1"),
        ("none", "DELETE FROM rollups WHERE grain = 1"),
    ] {
        database.execute(change);
        verified(file, 3, words);
    }
}

fn backup_that_owes_a_webhook(database: &Database, folder: &Path) -> String {
    on(database, &["migrate"]).succeeded();
    database.execute(
        "INSERT INTO alert_deliveries (id, public_id, workspace_id, rule_id, event_id, destination_id, payload, status,
                                       attempts, next_attempt_at, created_at, updated_at)
         VALUES (1, 'a', 1, 1, 'e1', 'd', '{}', 'pending', 2, 1, 1, 1),
                (2, 'b', 1, 1, 'e2', 'd', '{}', 'delivered', 1, 1, 1, 1);
         INSERT INTO jobs (queue, key, workspace_id, payload, generation, run_after, attempts, created_at)
         VALUES ('webhooks', '1', 1, '1', 0, 1, 0, 1)",
    );
    let name = folder.join("backup").display().to_string();
    on(database, &["backup", &name]).succeeded();
    name
}

/// What became of its deliveries, and how many jobs there are.
fn states(database: &Database) -> (String, u64) {
    let lines = database.lines("SELECT status AS line FROM alert_deliveries ORDER BY id");
    (lines.join(" "), database.count("jobs"))
}

/// What was owed at the time of a backup has mostly been sent since: nobody gets it a second time by accident.
async fn webhooks_of_the_past_wait_for_a_word(database: Database) {
    let folder = tempfile::tempdir().expect("a directory");
    let name = backup_that_owes_a_webhook(&database, folder.path());
    let restored = another(&database);
    ended(on(&restored, &["restore", &name]), 0, "1 webhooks that were owed then are held back");
    assert_eq!(states(&restored), ("dead_letter delivered".to_owned(), 0));
    let restored = another(&database);
    ended(on(&restored, &["restore", &name, "--send-webhooks"]), 0, "are sent when an alert worker starts");
    assert_eq!(states(&restored), ("pending delivered".to_owned(), 1));
}

/// Counting comes last: who ends it, or finds a difference, has no database that would send webhooks.
async fn a_restore_that_ends_early_sends_nothing(database: Database) {
    let folder = tempfile::tempdir().expect("a directory");
    let name = backup_that_owes_a_webhook(&database, folder.path());
    let manifest = format!("{name}.manifest.json");
    let text = std::fs::read_to_string(&manifest).expect("a manifest");
    let wrong = text.replace("\"alert_deliveries\": 2", "\"alert_deliveries\": 3");
    assert_ne!(wrong, text);
    std::fs::write(&manifest, wrong).expect("written");
    let restored = another(&database);
    ended(on(&restored, &["restore", &name]), 2, "alert_deliveries: 3 rows saved, 2 rows found");
    let Database::Sqlite { path, .. } = &restored else {
        assert_eq!(states(&restored), ("dead_letter delivered".to_owned(), 0));
        return;
    };
    assert!(!path.exists(), "nothing was restored");
    // what a restore leaves that was killed is no log of the next one
    std::fs::write(&manifest, text).expect("written");
    let left = ["", "-wal", "-shm"].map(|end| format!("{}.part{end}", path.display()));
    left.iter().for_each(|file| std::fs::write(file, "of another try").expect("written"));
    on(&restored, &["restore", &name]).succeeded();
    assert_eq!(states(&restored), ("dead_letter delivered".to_owned(), 0));
    assert!(left.iter().all(|file| !Path::new(file).exists()), "{left:?}");
}

/// A role that serves, and backs up, need not be one that makes databases.
#[test]
fn verifying_says_that_the_role_may_make_no_database() {
    let database = Database::postgres();
    let app = crate::support::unique("app_role");
    database.make(&format!("CREATE ROLE {app} LOGIN"));
    on(&database, &["migrate", "--grant", &app]).succeeded();
    let Database::Postgres { dsn, cluster, name } = database.clone() else { unreachable!("made above") };
    let as_app = Database::Postgres { dsn: dsn.replace("postgres@", &format!("{app}@")), cluster, name };
    let folder = tempfile::tempdir().expect("a directory");
    let file = folder.path().join("backup").display().to_string();
    on(&as_app, &["backup", &file]).succeeded();
    ended(on(&as_app, &["backup", "verify", &file]), 2, "CREATEDB");
    ended(on(&database, &["backup", "verify", &file]), 0, "whole");
}

/// SQLite plays a log that it finds beside a file into it, whatever file it belonged to.
#[test]
fn a_log_that_was_left_behind_is_not_played_into_what_is_restored() {
    let (database, empty) = (Database::sqlite(), Database::sqlite());
    on(&database, &["migrate"]).succeeded();
    let folder = tempfile::tempdir().expect("a directory");
    let name = folder.path().join("backup").display().to_string();
    on(&database, &["backup", &name]).succeeded();
    let Database::Sqlite { path, .. } = &empty else { unreachable!("made above") };
    for end in ["-wal", "-journal"] {
        let left = format!("{}{end}", path.display());
        std::fs::write(&left, "of another file").expect("written");
        ended(on(&empty, &["restore", &name]), 1, &format!("{left} is there already"));
        assert!(!path.exists(), "nothing was restored");
        std::fs::remove_file(&left).expect("it is there");
    }
    on(&empty, &["restore", &name]).succeeded();
}

#[test]
fn backup_of_one_kind_is_not_restored_into_the_other() {
    run(async {
        let sqlite = Database::sqlite();
        on(&sqlite, &["migrate"]).succeeded();
        let folder = tempfile::tempdir().expect("a directory");
        let name = folder.path().join("backup").display().to_string();
        on(&sqlite, &["backup", &name]).succeeded();
        ended(on(&Database::postgres(), &["restore", &name]), 2, "sqlite");
    });
}
