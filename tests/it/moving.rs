//! Moving in from the Go server: its database, of either engine, comes into ours, of either engine, whole, again and
//! again. `moving/reference.sql` is a small one; with OPEN_SPANNER_REFERENCE_DATA a folder with real ones is used, too.

mod again;
mod counters;
mod hostile;
mod mapped;
mod newer;
mod older;
mod page;
mod real;

use std::ops::Range;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use serde_json::{Value, json};

use crate::support::client::NOON;
use crate::support::program::{self, Run};
use crate::support::{Client, Database, Server, Workspace, on_both_databases};

on_both_databases!(
    everything_comes_over,
    the_second_run_brings_what_is_new,
    an_aggregation_that_changed_there_changes_here,
    a_killed_import_is_run_again,
    a_dry_run_stores_nothing,
    files_of_other_meters_come_in_once,
    what_is_no_database_of_the_reference_is_refused,
    rows_added_meanwhile_come_with_the_next_run,
    what_ended_there_ends_here,
    who_was_signed_in_there_goes_on_here,
);

const WORKSPACE: &str = "11111111-0000-4000-8000-000000000001";
const KEY: &str = "osp_sk_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
const OTHER_KEY: &str = "osp_sk_BBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBB";
const PASSWORD: &str = "correct horse battery 1";

/// A database of the Go server, on each engine.
fn theirs() -> [Database; 2] {
    [Database::sqlite(), Database::postgres()].map(|database| {
        database.make(include_str!("moving/reference.sql"));
        let hash = bcrypt::hash(PASSWORD, 4).expect("a hash");
        database.make(&format!(
            "INSERT INTO auth_users VALUES ('22222222-0000-4000-8000-000000000001', 'ada@example.com', '{hash}', '2026-01-01T00:00:00Z'),
                 ('22222222-0000-4000-8000-000000000002', 'Ada@example.com', '', '2026-01-01T00:00:00Z')"
        ));
        for (id, key) in [("aaaaaaaa-0000-4000-8000-000000000001", KEY), ("aaaaaaaa-0000-4000-8000-000000000002", OTHER_KEY)] {
            database.make(&format!(
                "INSERT INTO auth_api_keys VALUES ('{id}', '22222222-0000-4000-8000-000000000001', '{WORKSPACE}', 'all', '{}', '{}',
                     '[\"usage:read\",\"usage:write\",\"meters:read\",\"plans:read\",\"alerts:read\",\"system:read\"]', '[]', NULL, NULL,
                     '2026-01-01T00:00:00Z', NULL)",
                hash_of(key),
                &key[..18]
            ));
        }
        database
    })
}

fn hash_of(token: &str) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, token.as_bytes());
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(digest)
}

/// What `--from` says.
fn place(theirs: &Database) -> String {
    match theirs {
        Database::Sqlite { path, .. } => path.display().to_string(),
        Database::Postgres { dsn, .. } => dsn.clone(),
    }
}

struct Imported {
    run: Run,
    left_out: Vec<Value>,
}

fn import(ours: &Database, from: &str, more: &[&str]) -> Imported {
    let directory = tempfile::tempdir().expect("a directory");
    let run = program::finish(command(ours, from, more, directory.path()), Duration::from_secs(300));
    let listed = std::fs::read_to_string(directory.path().join("left-out.jsonl")).unwrap_or_default();
    let left_out = listed.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect();
    Imported { run, left_out }
}

fn command(ours: &Database, from: &str, more: &[&str], directory: &Path) -> Command {
    let arguments = [&["reference", "--from", from, "--rejected", "left-out.jsonl"], more].concat();
    importing(ours, &arguments, directory)
}

/// `open-spanner import` into this database.
fn importing(ours: &Database, arguments: &[&str], directory: &Path) -> Command {
    let settings = ours.settings();
    let settings: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    program::command(&[&["import"], arguments].concat(), &settings, directory)
}

fn run(ours: &Database, arguments: &[&str], directory: &Path) -> Run {
    program::finish(importing(ours, arguments, directory), Duration::from_secs(60))
}

/// Starts an import and kills it as soon as more events than this are stored.
async fn killed(mut importing: Command, ours: &Database, more_than: u64) {
    let mut child = importing.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
    let end = Instant::now() + Duration::from_secs(120);
    while ours.count("events") <= more_than && child.try_wait().expect("our child").is_none() {
        assert!(Instant::now() < end, "it does not get on");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let _ = child.kill();
    let _ = child.wait();
}

/// Adds these events to a database of theirs.
fn add_events(theirs: &Database, numbers: Range<i32>) {
    let all: Vec<String> = numbers.map(event).collect();
    for some in all.chunks(1_000) {
        theirs.make(&format!("INSERT INTO usage_events VALUES {}", some.join(",")));
    }
}

/// The new, known and left out rows of a table, as they are told.
fn counts(run: &Run, table: &str) -> [u64; 3] {
    let line = run.stdout.lines().find(|line| line.split(' ').next() == Some(table));
    let line = line.unwrap_or_else(|| panic!("no line of {table}: {run:#?}"));
    let numbers: Vec<u64> =
        line.split_whitespace().skip(1).map(|word| word.parse().expect("a number")).collect();
    numbers.try_into().expect("three numbers")
}

async fn months(client: &Client) -> Vec<(String, String)> {
    let path = "/v1/usages?meter=calls&bucket_size=month&from=2026-01-01T00:00:00Z&to=2026-04-01T00:00:00Z";
    let rows = client.get(path).await.json(200);
    let of = |row: &Value| {
        (row["bucket_start"].as_str().unwrap_or_default()[..7].to_owned(), row["quantity"].to_string())
    };
    rows.as_array().expect("a list").iter().map(of).collect()
}

async fn everything_comes_over(ours: Database) {
    for theirs in theirs() {
        let ours = ours_again(&ours);
        let Imported { run, left_out } = import(&ours, &place(&theirs), &[]);
        let run = run.succeeded();
        assert_eq!(counts(&run, "usage_events"), [3, 0, 6], "{}", run.stdout);
        assert!(
            run.stdout.contains("calls: 3 events, sum 1000000000000000000000.3: equal on both sides"),
            "{}",
            run.stdout
        );
        assert!(run.stdout.contains("not read: colour_of_a_newer_version"), "{}", run.stdout);
        for (table, id, why) in [
            ("auth_users", "22222222-0000-4000-8000-000000000002", "lower case"),
            (
                "auth_workspace_memberships",
                "11111111-0000-4000-8000-000000000001/22222222-0000-4000-8000-000000000001/superuser",
                "role",
            ),
            ("auth_identities", "22222222-0000-4000-8000-000000000010", "gitlab"),
            ("meters", "33333333-0000-4000-8000-000000000002", "aggregation"),
            ("plan_limits", "44444444-0000-4000-8000-000000000012", "decade"),
            ("alert_rules", "66666666-0000-4000-8000-000000000012", "no destination"),
            ("usage_events", "99999999-0000-4000-8000-000000000001", "gone"),
            ("usage_events", "99999999-0000-4000-8000-000000000002", "10000"),
            ("usage_events", "99999999-0000-4000-8000-000000000003", "subject"),
            ("usage_events", "99999999-0000-4000-8000-000000000004", "greater than 0"),
            ("usage_events", "99999999-0000-4000-8000-000000000005", "NUL"),
            ("usage_events", "99999999-0000-4000-8000-000000000006", "median"),
        ] {
            let is_it = |line: &&Value| line["table"] == table && line["id"] == id;
            let line = left_out.iter().find(is_it).unwrap_or_else(|| panic!("{table} {id}: {left_out:#?}"));
            assert!(line["reason"].as_str().is_some_and(|reason| reason.contains(why)), "{line}");
        }
        assert_eq!(counts(&run, "auth_identities"), [1, 0, 1], "{}", run.stdout);
        let identity = "SELECT provider || ' ' || issuer || ' ' || subject AS line FROM identities";
        assert_eq!(ours.lines(identity), ["github https://github.com 583231"]);
        let server = Server::start(&ours);
        let key = server.client().with_key(KEY);
        assert_eq!(
            months(&key).await,
            [("2026-01".into(), "0.3".into()), ("2026-02".into(), "1e+21".into())]
        );
        passwords_work(&server).await;
        the_past_is_there(&key).await;
        assert_eq!(ours.count("plan_assignments"), 3);
    }
}

/// Another empty database of the same engine.
fn ours_again(ours: &Database) -> Database {
    match ours {
        Database::Sqlite { .. } => Database::sqlite(),
        Database::Postgres { .. } => Database::postgres(),
    }
}

async fn passwords_work(server: &Server) {
    let sign_in = async |password: &str| {
        let body = json!({"email": "ada@example.com", "password": password});
        server.client().post("/v1/auth/sessions", &body).await.status
    };
    // the second time with the hash that took the place of the first
    assert_eq!(
        [sign_in(PASSWORD).await, sign_in(PASSWORD).await, sign_in("wrong horse").await],
        [201, 201, 401]
    );
}

async fn the_past_is_there(key: &Client) {
    let retry = json!({"meter": "calls", "subject": "acme", "quantity": 0.1, "idempotency_key": "k-1", "metadata": {"region": "eu"}});
    let again = key.post("/v1/usages", &retry).await;
    assert!(again.text.contains("88888888-0000-4000-8000-000000000001"), "{}", again.text);
    let call = key.with("idempotency-key", "call-1").post("/v1/usages/bulk", &json!([retry])).await;
    assert!(
        call.text.contains(r#""accepted":1"#) && call.text.contains("88888888-0000-4000-8000-000000000001"),
        "{}",
        call.text
    );
    let runs = key.get("/v1/usages/ingestions").await;
    if runs.status == 200 {
        assert!(!runs.text.contains(r#""accepted":9"#), "{}", runs.text);
    }
    let rules = key.get("/v1/alerts").await.expect(200).text;
    assert!(rules.contains("66666666-0000-4000-8000-000000000011") && rules.contains("1e+21"), "{rules}");
    let plans = key.get("/v1/plans").await.expect(200).text;
    assert!(plans.contains("44444444-0000-4000-8000-000000000001") && plans.contains("1000.5"), "{plans}");
}

async fn the_second_run_brings_what_is_new(ours: Database) {
    let [theirs, _] = theirs();
    import(&ours, &place(&theirs), &[]).run.succeeded();
    theirs.execute(&format!(
        "INSERT INTO usage_events VALUES ('88888888-0000-4000-8000-000000000004', '{WORKSPACE}', NULL, 'acme', 'calls', 0.7,
             '2026-01-05T00:00:00Z', '2026-03-01T00:00:00Z', '{{}}');
         DELETE FROM auth_api_keys WHERE id = 'aaaaaaaa-0000-4000-8000-000000000002'"
    ));
    let run = import(&ours, &place(&theirs), &[]).run.succeeded();
    assert_eq!(counts(&run, "usage_events"), [1, 3, 6], "{}", run.stdout);
    for table in [
        "meters",
        "plans",
        "plan_subject_assignments",
        "auth_api_keys",
        "usage_ingestions",
        "bulk_usage_ingestions",
    ] {
        assert_eq!(counts(&run, table)[0], 0, "{table}: {}", run.stdout);
    }
    let server = Server::start(&ours);
    let key = server.client().with_key(KEY);
    assert_eq!(months(&key).await[0], ("2026-01".into(), "1".into()));
    // withdrawn there
    server.client().with_key(OTHER_KEY).get("/v1/meters").await.expect(401);
    assert_eq!((ours.count("events"), ours.count("ingestion_runs")), (4, 1));
}

/// What a meter answers with may change at any time.
async fn an_aggregation_that_changed_there_changes_here(ours: Database) {
    let [theirs, _] = theirs();
    import(&ours, &place(&theirs), &[]).run.succeeded();
    let meter = "SELECT aggregation || ' ' || CAST(version AS TEXT) AS line FROM meters WHERE name = 'calls'";
    assert_eq!(ours.lines(meter), ["sum 1"]);
    theirs.execute("UPDATE meters SET aggregation = 'max' WHERE name = 'calls'");
    let compared = import(&ours, &place(&theirs), &["--compare"]).run;
    assert!(compared.code == Some(1) && compared.stdout.contains("max instead of sum"), "{compared:#?}");
    assert_eq!(ours.lines(meter), ["sum 1"]);
    let run = import(&ours, &place(&theirs), &[]).run.succeeded();
    assert!(run.stdout.contains("max instead of sum"), "{}", run.stdout);
    assert_eq!(ours.lines(meter), ["max 2"]);
    let compared = import(&ours, &place(&theirs), &["--compare"]).run.succeeded();
    assert!(compared.stdout.contains("nothing is missing here"), "{}", compared.stdout);
    assert_eq!(ours.lines(meter), ["max 2"]);
}

async fn a_killed_import_is_run_again(ours: Database) {
    let [theirs, _] = theirs();
    add_events(&theirs, 0..24_000);
    // the first run makes the schema, so that the tables can be looked at
    import(&ours, &place(&theirs), &["--dry-run"]).run.succeeded();
    let directory = tempfile::tempdir().expect("a directory");
    for more_than in [0, 4_000, 12_000] {
        killed(command(&ours, &place(&theirs), &[], directory.path()), &ours, more_than).await;
    }
    let run = import(&ours, &place(&theirs), &[]).run.succeeded();
    let [new, known, _] = counts(&run, "usage_events");
    assert_eq!(new + known, 24_003, "{}", run.stdout);
    assert!(known > 12_000, "{}", run.stdout);
    let last = run.stderr.lines().rfind(|line| line.starts_with("events: ")).expect("how far it is");
    assert!(last.contains("(100 %)") && last.contains(" a second, 0 s left"), "{last}");
    let server = Server::start(&ours);
    // 24,000 times 0.1, and 1e21
    assert_eq!(months(&server.client().with_key(KEY)).await[1].1, "1.0000000000000000024e+21");
    assert_eq!((ours.count("events"), ours.count("ingestion_runs")), (24_003, 1));
}

/// Half of them have a key.
fn event(at: i32) -> String {
    let key = if at % 2 == 0 { format!("'key-{at}'") } else { "NULL".to_owned() };
    format!(
        "('bbbbbbbb-0000-4000-8000-{at:012}', '{WORKSPACE}', {key}, 's-{}', 'calls', 0.1, '2026-02-{:02}T10:00:00Z',
          '2026-03-01T00:00:00Z', '{{\"region\":\"eu\"}}')",
        at % 50,
        1 + at % 28
    )
}

/// The old server goes on while its database is read.
async fn rows_added_meanwhile_come_with_the_next_run(ours: Database) {
    for theirs in theirs() {
        let ours = ours_again(&ours);
        if let Database::Sqlite { .. } = theirs {
            theirs.make("PRAGMA journal_mode = WAL");
        }
        add_events(&theirs, 0..12_000);
        import(&ours, &place(&theirs), &["--dry-run"]).run.succeeded();
        let directory = tempfile::tempdir().expect("a directory");
        let run = {
            let (ours, from, directory) = (ours.clone(), place(&theirs), directory.path().to_path_buf());
            tokio::task::spawn_blocking(move || {
                program::finish(command(&ours, &from, &[], &directory), Duration::from_secs(300))
            })
        };
        let mut added = 0;
        while !run.is_finished() {
            add_events(&theirs, 20_000 + added..20_000 + added + 10);
            added += 10;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let first = run.await.expect("it ends").succeeded();
        let [new, _, _] = counts(&first, "usage_events");
        assert!(first.stdout.contains("equal on both sides in every month"), "{}", first.stdout);
        let total = 12_003 + added as u64;
        assert!(new >= 12_003 && new < total, "one instant is read: {new} of {total}");
        let compared = import(&ours, &place(&theirs), &["--compare"]).run;
        assert!(compared.code == Some(1) && compared.stderr.contains("not here yet"), "{compared:#?}");
        let second = import(&ours, &place(&theirs), &[]).run.succeeded();
        assert_eq!(counts(&second, "usage_events"), [total - new, new, 6], "{}", second.stdout);
        let compared = import(&ours, &place(&theirs), &["--compare"]).run.succeeded();
        assert!(compared.stdout.contains("nothing is missing here"), "{}", compared.stdout);
        assert_eq!(ours.count("events"), total);
    }
}

/// Until the switch the old server says who may do what.
async fn what_ended_there_ends_here(ours: Database) {
    let [theirs, _] = theirs();
    let (eve, token) =
        ("22222222-0000-4000-8000-000000000003", "osp_at_EEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEE");
    theirs.execute(&format!(
        "INSERT INTO auth_users VALUES ('{eve}', 'eve@example.com', '{}', '2026-01-01T00:00:00Z');
         INSERT INTO auth_workspace_memberships VALUES ('{WORKSPACE}', '{eve}', 'viewer', '2026-01-01T00:00:00Z');
         INSERT INTO auth_sessions VALUES ('22222222-0000-4000-8000-0000000000aa', '{eve}', '{WORKSPACE}', '{}', 'access',
             '2099-01-01T00:00:00Z', '2026-01-01T00:00:00Z')",
        bcrypt::hash(PASSWORD, 4).expect("a hash"),
        hash_of(token)
    ));
    import(&ours, &place(&theirs), &[]).run.succeeded();
    let role = "SELECT role AS line FROM memberships m JOIN users u ON u.id = m.user_id WHERE u.email = 'eve@example.com'";
    assert_eq!(ours.lines(role), ["viewer"]);
    let mut server = Server::start(&ours);
    let cookie = format!("open_spanner_access={token}");
    server.client().with("cookie", &cookie).get("/v1/auth/session").await.expect(200);
    server.terminate();
    let new_password = "another battery staple 3";
    theirs.execute(&format!(
        "UPDATE auth_workspace_memberships SET role = 'admin' WHERE user_id = '{eve}';
         UPDATE auth_users SET password_hash = '{}' WHERE id = '{eve}';
         DELETE FROM auth_sessions",
        bcrypt::hash(new_password, 4).expect("a hash")
    ));
    let run = import(&ours, &place(&theirs), &[]).run.succeeded();
    assert!(run.stdout.contains("1 sessions ended there"), "{}", run.stdout);
    assert_eq!(ours.lines(role), ["admin"]);
    let mut server = Server::start(&ours);
    server.client().with("cookie", &cookie).get("/v1/auth/session").await.expect(401);
    let sign_in = async |server: &Server, password: &str| {
        let body = json!({"email": "eve@example.com", "password": password});
        server.client().post("/v1/auth/sessions", &body).await.status
    };
    assert_eq!([sign_in(&server, PASSWORD).await, sign_in(&server, new_password).await], [401, 201]);
    server.terminate();
    // the sign-in here is none of there
    theirs.execute(&format!("DELETE FROM auth_workspace_memberships WHERE user_id = '{eve}'"));
    let run = import(&ours, &place(&theirs), &[]).run.succeeded();
    assert!(
        run.stdout.contains("1 memberships ended there") && !run.stdout.contains("sessions ended"),
        "{}",
        run.stdout
    );
    assert!(ours.lines(role).is_empty());
    assert_eq!(
        ours.lines("SELECT action AS line FROM audit_events WHERE action = 'workspace.imported'").len(),
        1
    );
}

async fn a_dry_run_stores_nothing(ours: Database) {
    let [theirs, _] = theirs();
    let Imported { run, left_out } = import(&ours, &place(&theirs), &["--dry-run"]);
    let run = run.succeeded();
    assert_eq!(counts(&run, "usage_events"), [3, 0, 6], "{}", run.stdout);
    assert!(run.stdout.contains("equal on both sides") && !left_out.is_empty(), "{}", run.stdout);
    for table in ["events", "users", "workspaces", "meters", "subjects", "rollups", "idempotency_keys"] {
        assert_eq!(ours.count(table), 0, "{table}");
    }
}

async fn what_is_no_database_of_the_reference_is_refused(ours: Database) {
    let empty = Database::sqlite();
    empty.make("CREATE TABLE something (a INTEGER)");
    let run = import(&ours, &place(&empty), &[]).run;
    assert_eq!(run.code, Some(2), "{run:#?}");
    assert!(run.stderr.contains("no database of the Go server"), "{run:#?}");
    let [theirs, _] = theirs();
    theirs.execute("UPDATE schema_migrations SET dirty = true");
    let run = import(&ours, &place(&theirs), &[]).run;
    assert!(run.code == Some(2) && run.stderr.contains("broke off"), "{run:#?}");
    assert_eq!(ours.count("workspaces"), 0);
}

async fn files_of_other_meters_come_in_once(ours: Database) {
    let mut server = Server::start(&ours);
    let workspace = Workspace::create(&server.client()).await;
    workspace.meter("calls", "sum").await;
    server.terminate();
    let directory = tempfile::tempdir().expect("a directory");
    let write = |name: &str, text: String| std::fs::write(directory.path().join(name), text).expect("a file");
    let event = |id: &str| {
        format!(
            r#"{{"specversion":"1.0","id":"{id}","source":"s","type":"calls","subject":"acme","time":"{NOON}","data":{{"value":"0.1"}}}}"#
        )
    };
    write(
        "openmeter.jsonl",
        [event("1"), event("1"), "no JSON".into(), event("2").replace("calls", "unknown")].join("\n"),
    );
    write(
        "openmeter.csv",
        format!("id,source,type,subject,time,data\n3,s,calls,acme,{NOON},\"{{\"\"value\"\":0.2}}\"\n"),
    );
    write(
        "lago.csv",
        format!(
            "transaction_id,external_subscription_id,code,timestamp,properties\n4,acme,calls,{NOON},\"{{\"\"value\"\":0.3}}\"\n\
             6,acme,calls,{NOON},\"{{\"\"value\"\":1}}\",more\n"
        ),
    );
    write("stripe.jsonl", r#"{"event_name":"calls","identifier":"5","payload":{"stripe_customer_id":"acme","value":"0.4"},"timestamp":1781524800}"#.into());
    for (round, arguments) in [
        (0, vec!["openmeter", "openmeter.jsonl", "openmeter.csv"]),
        (0, vec!["lago", "lago.csv"]),
        (0, vec!["stripe", "stripe.jsonl"]),
        (1, vec!["openmeter", "openmeter.jsonl", "openmeter.csv"]),
        (1, vec!["lago", "lago.csv"]),
        (1, vec!["stripe", "stripe.jsonl"]),
    ] {
        let run = run(&ours, &arguments, directory.path()).succeeded();
        let expected = match (arguments[0], round) {
            ("openmeter", 0) => [2, 1, 2],
            ("openmeter", _) => [0, 3, 2],
            ("lago", 0) => [1, 0, 1],
            ("lago", _) => [0, 1, 1],
            (_, 0) => [1, 0, 0],
            _ => [0, 1, 0],
        };
        assert_eq!(counts(&run, "events"), expected, "{arguments:?} {}", run.stdout);
    }
    let server = Server::start(&ours);
    assert_eq!(workspace.at(&server.url()).total("calls").await, "1");
}

/// Both tokens of a sign-in of the old server, made at the same moment.
fn sign_in_there(theirs: &Database, user: &str, workspace: &str, name: char, at: &str) -> [String; 2] {
    [("access", "osp_at_", 'a'), ("refresh", "osp_rt_", 'b')].map(|(kind, prefix, digit)| {
        let token = format!("{prefix}{}", String::from(name).repeat(43));
        theirs.execute(&format!(
            "INSERT INTO auth_sessions VALUES ('22222222-0000-4000-8000-0000000{digit}{:04x}', '{user}', '{workspace}', '{}',
                 '{kind}', '2099-01-01T00:00:00Z', '{at}')",
            name as u32,
            hash_of(&token)
        ));
        token
    })
}

async fn who_was_signed_in_there_goes_on_here(ours: Database) {
    let [theirs, _] = theirs();
    let (ada, second) = ("22222222-0000-4000-8000-000000000001", "11111111-0000-4000-8000-0000000000b2");
    let now = jiff::Timestamp::now();
    let at = |seconds: i64| (now - jiff::SignedDuration::from_secs(seconds)).to_string();
    theirs.execute(&format!(
        "INSERT INTO auth_workspaces VALUES ('{second}', 'second', '2026-01-01T00:00:00Z');
         INSERT INTO auth_workspace_memberships VALUES ('{second}', '{ada}', 'admin', '2026-01-02T00:00:00Z')"
    ));
    let laptop = sign_in_there(&theirs, ada, WORKSPACE, 'L', &at(60));
    let phone = sign_in_there(&theirs, ada, WORKSPACE, 'P', &at(50));
    let gone = sign_in_there(&theirs, ada, WORKSPACE, 'G', &at(40));
    import(&ours, &place(&theirs), &[]).run.succeeded();
    import(&ours, &place(&theirs), &[]).run.succeeded();
    assert_eq!((ours.count("sign_ins"), ours.count("sessions")), (3, 6));
    let mut server = Server::start(&ours);
    let in_browser = |server: &Server, access: &str, refresh: &str| {
        let cookies = format!("open_spanner_access={access}; open_spanner_refresh={refresh}");
        server.client().with("cookie", cookies)
    };
    let tokens = |answer: &crate::support::Answer| {
        ["access", "refresh"].map(|kind| answer.cookie(&format!("open_spanner_{kind}")).expect("a cookie"))
    };
    let browsers = [&laptop, &phone, &gone].map(|[access, refresh]| in_browser(&server, access, refresh));
    // they are listed, as three
    let list = browsers[0].get("/v1/auth/sessions").await.json(200)["items"].clone();
    let list = list.as_array().expect("a list");
    assert_eq!(list.len(), 3, "{list:?}");
    assert_eq!(list.iter().filter(|one| one["current"] == json!(true)).count(), 1);
    // one is refreshed, which uses the old token up
    let answer = browsers[0].post_text("/v1/auth/session/refresh", "").await.expect(200);
    let [access, refresh] = tokens(&answer);
    let laptop_now = in_browser(&server, &access, &refresh);
    laptop_now.get("/v1/auth/session").await.expect(200);
    // one is moved to another workspace, and is refreshed there
    let moved =
        browsers[1].post("/v1/auth/session/workspace", &json!({"workspace_id": second})).await.expect(200);
    let [access, refresh] = tokens(&moved);
    let phone_now = in_browser(&server, &access, &refresh);
    let user = phone_now.get("/v1/auth/session").await.json(200)["user"].clone();
    assert_eq!(user["workspace_id"], json!(second));
    phone_now.post_text("/v1/auth/session/refresh", "").await.expect(200);
    browsers[1].get("/v1/auth/session").await.expect(401);
    browsers[1].post_text("/v1/auth/session/refresh", "").await.expect(401);
    // and one is ended from elsewhere
    let list = laptop_now.get("/v1/auth/sessions").await.json(200)["items"].clone();
    let last = list
        .as_array()
        .expect("a list")
        .iter()
        .find(|one| one["current"] == json!(false) && one["workspace_name"] != json!("second"));
    let path = format!("/v1/auth/sessions/{}", last.expect("the third")["id"].as_str().expect("an id"));
    laptop_now.delete(&path).await.expect(204);
    browsers[2].get("/v1/auth/session").await.expect(401);
    browsers[2].post_text("/v1/auth/session/refresh", "").await.expect(401);
    server.terminate();
    // what was made here of a sign-in goes on when it is still there, and ends when it ended there
    import(&ours, &place(&theirs), &[]).run.succeeded();
    let server = Server::start(&ours);
    laptop_now.at(&server.url()).get("/v1/auth/session").await.expect(200);
    drop(server);
    theirs.execute("DELETE FROM auth_sessions");
    import(&ours, &place(&theirs), &[]).run.succeeded();
    let server = Server::start(&ours);
    laptop_now.at(&server.url()).get("/v1/auth/session").await.expect(401);
    laptop_now.at(&server.url()).post_text("/v1/auth/session/refresh", "").await.expect(401);
}
