//! Commands that end by themselves: what they print, what they do to a database with and without a server on it, and
//! how they end.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::client::NOON;
use crate::support::program::{self, Run};
use crate::support::{Database, Server, Worker, env, on_both_databases, run, stable_port};

on_both_databases!(
    probe_tells_how_a_process_is,
    people_are_let_in_again,
    the_trail_is_checked,
    first_key_needs_no_server_and_no_user,
    keys_are_listed_and_ended,
    workspaces_are_listed_and_renamed,
    workspaces_are_made_and_get_members,
    jobs_that_were_given_up_are_queued_anew,
    doctor_finds_what_is_wrong,
);

/// A command on a database, run to its end.
fn on(database: &Database, arguments: &[&str]) -> Run {
    with(database, arguments, &[])
}

fn with(database: &Database, arguments: &[&str], more: &[(&str, &str)]) -> Run {
    let own = database.settings();
    let mut settings: Vec<(&str, &str)> = own.iter().map(|(name, value)| (*name, value.as_str())).collect();
    settings.extend_from_slice(more);
    let directory = tempfile::tempdir().expect("a directory");
    program::run(arguments, &settings, directory.path())
}

#[track_caller]
fn json(run: Run) -> Value {
    let run = run.succeeded();
    serde_json::from_str(&run.stdout).unwrap_or_else(|error| panic!("{error}: {run:#?}"))
}

#[track_caller]
fn ended(run: Run, code: i32, words: &str) {
    assert_eq!(run.code, Some(code), "{run:#?}");
    assert!(run.stderr.contains(words) || run.stdout.contains(words), "{words:?}: {run:#?}");
}

/// Every command and subcommand, as it is typed.
fn commands() -> Vec<Vec<String>> {
    let (mut found, mut ahead) = (Vec::new(), vec![Vec::new()]);
    while let Some(path) = ahead.pop() {
        let help = help(&path, "-h");
        let list = help.split("Commands:\n").nth(1).unwrap_or_default();
        let names = list.lines().take_while(|line| line.starts_with("  "));
        let names = names.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help");
        ahead.extend(names.map(|name| [path.clone(), vec![name.to_owned()]].concat()));
        found.push(path);
    }
    found.sort();
    found
}

fn help(path: &[String], flag: &str) -> String {
    let directory = tempfile::tempdir().expect("a directory");
    let arguments: Vec<&str> = path.iter().map(String::as_str).chain([flag]).collect();
    program::run(&arguments, &[], directory.path()).succeeded().stdout
}

#[test]
fn help_is_as_recorded() {
    let mut text = String::new();
    for path in commands() {
        text += &format!(
            "$ open-spanner {}\n{}\n",
            [path.clone(), vec!["-h".to_owned()]].concat().join(" "),
            help(&path, "-h")
        );
    }
    let text: String = text.lines().map(|line| format!("{}\n", line.trim_end())).collect();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/commands/help.txt");
    if env("OPEN_SPANNER_REGENERATE").as_deref() == Some("1") {
        fs::write(&path, &text).expect("it can be written");
    }
    let recorded = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        text == recorded,
        "the help changed: OPEN_SPANNER_REGENERATE=1 cargo test --test it commands::help\n{text}"
    );
    let longest = text.split("\n$ ").map(|help| help.lines().count()).max();
    assert!(longest.is_some_and(|lines| lines < 70), "-h is short: {longest:?}");
}

#[test]
fn program_says_what_it_is() {
    let directory = tempfile::tempdir().expect("a directory");
    let here = |arguments: &[&str]| {
        program::run(arguments, &[("OPEN_SPANNER_HTTP_ADDR", "wrong")], directory.path())
    };
    let version = here(&["--version"]).succeeded().stdout;
    assert_eq!(version, concat!("open-spanner ", env!("CARGO_PKG_VERSION"), " (development)\n"));
    for shell in ["bash", "zsh", "fish"] {
        let script = here(&["completions", shell]).succeeded().stdout;
        assert!(script.contains("alert-worker") && script.contains("doctor"), "{shell}");
    }
    let page = here(&["man"]).succeeded().stdout;
    assert!(page.starts_with(".ie") && page.contains(".TH"), "{page}");
    let page = here(&["man", "migrate"]).succeeded().stdout;
    assert!(page.contains("yes\\-delete\\-data"), "{page}");
    ended(here(&["man", "nosuch"]), 2, "nosuch");
    ended(here(&["nosuch"]), 2, "unrecognized subcommand");

    // old entry points name a worker; any other name is a mistake
    let other = directory.path().join("open-spanner-migrate");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_open-spanner"), &other).expect("a link");
    let mut command = Command::new(&other);
    command.env_clear().current_dir(directory.path());
    ended(program::finish(command, Duration::from_secs(60)), 2, "no program open-spanner-migrate");
}

async fn probe_tells_how_a_process_is(database: Database) {
    let metrics = format!("127.0.0.1:{}", stable_port());
    let mut server = Server::start_with(&database, &[("OPEN_SPANNER_METRICS_ADDR", &metrics)]);
    let address = server.http().to_owned();
    let settings = [("OPEN_SPANNER_HTTP_ADDR", address.as_str()), ("OPEN_SPANNER_METRICS_ADDR", &metrics)];
    ended(with(&database, &["probe"], &settings), 0, "alive");
    ended(with(&database, &["probe", "--ready"], &settings), 0, "ready");
    ended(with(&database, &["probe", "--ready", "--http-addr", &address], &[]), 0, "ready");

    let directory = tempfile::tempdir().expect("a directory");
    let health = format!("127.0.0.1:{}", stable_port());
    let worker = ["probe", "--role", "alert-worker", "--ready"];
    let own = [("OPEN_SPANNER_ALERT_WORKER_HEALTH_ADDR", health.as_str())];
    ended(with(&database, &worker, &own), 1, "refused");
    let _worker = Worker::start("alert-worker", &database, directory.path(), &own);
    let end = Instant::now() + Duration::from_secs(30);
    while with(&database, &worker, &own).code != Some(0) {
        assert!(Instant::now() < end, "the worker is not ready");
    }

    database.execute("DROP TABLE dead_letters");
    database.execute("ALTER TABLE events RENAME TO gone");
    let end = Instant::now() + Duration::from_secs(30);
    while with(&database, &["probe", "--ready"], &settings).code == Some(0) {
        assert!(Instant::now() < end, "the server is still ready");
    }
    ended(with(&database, &["probe", "--ready"], &settings), 1, "schema");
    ended(with(&database, &["probe"], &settings), 0, "alive");
    server.kill();
    ended(with(&database, &["probe"], &settings), 1, "refused");
}

async fn first_key_needs_no_server_and_no_user(database: Database) {
    ended(on(&database, &["admin", "key", "create"]), 2, "--email");
    ended(on(&database, &["admin", "key", "create", "--email", "nobody"]), 2, "email");
    let made = on(&database, &["admin", "key", "create", "--email", "Me@Example.com"]).succeeded();
    let key = made.stdout.trim_end();
    assert!(key.starts_with("osp_sk_") && !made.stderr.contains(key), "{made:#?}");

    let server = Server::start(&database);
    let client = server.client().with_key(key);
    client.meter("calls", "count").await;
    let event = serde_json::json!({"meter": "calls", "subject": "s", "quantity": 1, "timestamp": NOON});
    client.post("/v1/usages", &event).await.expect(201);

    // another one while the server runs, with less rights; and nobody comes into being by a slip of the finger
    let create = ["admin", "key", "create", "--scope", "meters:read", "--json"];
    let second = json(on(&database, &create));
    assert_eq!(second["scopes"], serde_json::json!(["meters:read"]));
    let reader = server.client().with_key(second["key"].as_str().expect("the secret"));
    reader.get("/v1/meters").await.expect(200);
    reader.post("/v1/usages", &event).await.expect(403);
    ended(on(&database, &["admin", "key", "create", "--email", "you@example.com"]), 1, "not found");
    ended(on(&database, &["admin", "key", "create", "--scope", "everything"]), 2, "everything");
    assert_eq!((database.count("users"), database.count("api_keys")), (1, 2));
}

async fn keys_are_listed_and_ended(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.get("/v1/meters").await.expect(200);
    let keys = json(on(&database, &["admin", "key", "list", "--json"]));
    assert_eq!((keys[0]["name"].as_str(), keys[0]["status"].as_str()), (Some("everything"), Some("active")));
    let id = keys[0]["id"].as_str().expect("an id");
    on(&database, &["admin", "key", "revoke", id]).succeeded();
    let end = Instant::now() + Duration::from_secs(30);
    while workspace.get("/v1/meters").await.status != 401 {
        assert!(Instant::now() < end, "the key still works");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let list = on(&database, &["admin", "key", "list"]).succeeded().stdout;
    assert!(list.contains(id) && list.contains("revoked"), "{list}");
    ended(on(&database, &["admin", "key", "revoke", "nosuch"]), 1, "not found");
}

/// The path of a link that a command prints, as a route of the interface.
fn reset_route(printed: &str) -> String {
    let token = printed.trim_end().strip_prefix("/reset/").expect("a path");
    format!("/v1/auth/password-resets/{token}")
}

async fn people_are_let_in_again(database: Database) {
    let create = ["admin", "user", "create", "--email", "First@example.com"];
    let made = on(&database, &create).succeeded();
    assert!(!made.stderr.contains("osp_rst_"), "{made:#?}");
    ended(on(&database, &create), 1, "registered already");
    let server = Server::start_with(&database, &[("OPEN_SPANNER_REGISTRATION_ENABLED", "false")]);
    let client = server.client();
    let password = |text: &str| serde_json::json!({"password": text});
    client.post(&reset_route(&made.stdout), &password("a first password")).await.expect(204);
    client.get(made.stdout.trim_end()).await.expect(404);
    let sign_in = async |text: &str| {
        let body = serde_json::json!({"email": "first@example.com", "password": text});
        client.post("/v1/auth/sessions", &body).await
    };
    let access =
        sign_in("a first password").await.expect(201).cookie("open_spanner_access").expect("a cookie");
    let session = client.with("cookie", format!("open_spanner_access={access}"));
    // the whole link, where it is known how people find the server
    let public = [("OPEN_SPANNER_PUBLIC_URL", "https://usage.example.com/")];
    let reset = ["admin", "user", "reset-password", "--email", "first@example.com"];
    let again = with(&database, &reset, &public).succeeded();
    let path = again.stdout.strip_prefix("https://usage.example.com").expect("the whole link").to_owned();
    assert!(client.get(path.trim_end()).await.expect(200).text.contains("New password"));
    session.get("/v1/auth/session").await.expect(200);
    client.post(&reset_route(&path), &password("a second password")).await.expect(204);
    session.get("/v1/auth/session").await.error(401, "unauthorized");
    sign_in("a first password").await.error(401, "unauthorized");
    sign_in("a second password").await.expect(201);
    let ended_now = ["admin", "user", "end-sessions", "--email", "first@example.com"];
    assert_eq!(on(&database, &ended_now).succeeded().stdout, "ended 1\n");
    let users = json(on(&database, &["admin", "user", "list", "--json"]));
    assert_eq!(
        (&users[0]["has_password"], &users[0]["workspaces"]),
        (&serde_json::json!(true), &serde_json::json!(1))
    );
    for command in ["reset-password", "end-sessions"] {
        ended(on(&database, &["admin", "user", command, "--email", "no@example.com"]), 1, "not found");
    }
    let rows =
        "SELECT action AS line FROM audit_events WHERE actor_kind = 'operator' ORDER BY time, sequence";
    assert_eq!(database.lines(rows), ["user.created", "operator.password_reset", "session.ended"]);
}

async fn the_trail_is_checked(database: Database) {
    on(&database, &["admin", "key", "create", "--email", "me@example.com"]).succeeded();
    let verdict = json(on(&database, &["audit", "verify", "--json"]));
    assert_eq!((&verdict["rows"], &verdict["broken"]), (&serde_json::json!(1), &serde_json::json!([])));
    database.execute("UPDATE audit_heads SET sequence = 2");
    ended(on(&database, &["audit", "verify"]), 3, "");
}

async fn workspaces_are_listed_and_renamed(database: Database) {
    let server = Server::start(&database);
    server.workspace().await;
    let all = json(on(&database, &["admin", "workspace", "list", "--json"]));
    let id = all[0]["id"].as_str().expect("an id");
    on(&database, &["admin", "workspace", "rename", id, "Acme"]).succeeded();
    assert!(on(&database, &["admin", "workspace", "list"]).succeeded().stdout.contains("Acme"));
    ended(on(&database, &["admin", "workspace", "rename", id, " "]), 2, "characters");
    ended(on(&database, &["admin", "workspace", "rename", "nosuch", "x"]), 1, "not found");
    server.workspace().await;
    ended(on(&database, &["admin", "key", "create"]), 1, "--workspace");
    on(&database, &["admin", "key", "create", "--workspace", id]).succeeded();
}

async fn workspaces_are_made_and_get_members(database: Database) {
    on(&database, &["admin", "user", "create", "--email", "a@example.com"]).succeeded();
    on(&database, &["admin", "user", "create", "--email", "b@example.com"]).succeeded();
    let create = ["admin", "workspace", "create", "--name", "Acme", "--owner", "A@example.com"];
    let made = on(&database, &create).succeeded();
    let id = made.stdout.trim();
    let again = json(on(&database, &[&create[..], &["--json"]].concat()));
    assert_eq!(
        (&again["name"], &again["owner"]),
        (&serde_json::json!("Acme"), &serde_json::json!("a@example.com"))
    );
    assert_ne!(again["id"], id, "names need not differ");
    ended(
        on(&database, &["admin", "workspace", "create", "--name", " ", "--owner", "a@example.com"]),
        2,
        "name",
    );
    ended(
        on(&database, &["admin", "workspace", "create", "--name", "x", "--owner", "c@example.com"]),
        1,
        "not found",
    );

    let set = |email: &'static str, role: &'static str| {
        on(&database, &["admin", "member", "set-role", "--workspace", id, "--email", email, "--role", role])
    };
    ended(set("a@example.com", "viewer"), 1, "owner");
    ended(set("b@example.com", "king"), 2, "role");
    ended(set("c@example.com", "viewer"), 1, "not found");
    set("b@example.com", "viewer").succeeded();
    set("b@example.com", "owner").succeeded();
    set("a@example.com", "viewer").succeeded();
    let members = json(on(&database, &["admin", "member", "list", "--workspace", id, "--json"]));
    let roles: Vec<_> =
        members.as_array().expect("a list").iter().map(|m| (m["email"].clone(), m["role"].clone())).collect();
    let expected =
        [("a@example.com", "viewer"), ("b@example.com", "owner")].map(|(a, b)| (a.into(), b.into()));
    assert_eq!(roles, expected);
    assert!(
        on(&database, &["admin", "member", "list", "--workspace", id])
            .succeeded()
            .stdout
            .contains("b@example.com")
    );
    ended(on(&database, &["admin", "member", "list", "--workspace", "nosuch"]), 1, "not found");
    let rows = "SELECT action || ' ' || actor_kind AS line FROM audit_events WHERE action LIKE 'workspace%' OR action LIKE 'member%'
                ORDER BY time, sequence";
    let expected = [&["workspace.created operator"; 2][..], &["member.role_changed operator"; 3]].concat();
    assert_eq!(database.lines(rows), expected);
    ended(on(&database, &["audit", "verify"]), 0, "");
}

async fn jobs_that_were_given_up_are_queued_anew(database: Database) {
    on(&database, &["migrate"]).succeeded();
    database.execute(
        "INSERT INTO dead_letters (id, workspace_id, queue, key, payload, attempts, last_error, created_at)
         VALUES ('0198c000-0000-7000-8000-000000000001', 1, 'others', 'k', '{}', 3, 'broken', 1)",
    );
    let found = json(on(&database, &["admin", "queue", "list", "--json"]));
    assert_eq!(found["queues"][0]["dead"], 1);
    let id = found["dead_letters"][0]["id"].as_str().expect("an id");
    assert!(on(&database, &["admin", "queue", "list"]).succeeded().stdout.contains("broken"));
    on(&database, &["admin", "queue", "retry", id]).succeeded();
    ended(on(&database, &["admin", "queue", "retry", id]), 1, "already");
    let found = json(on(&database, &["admin", "queue", "list", "--json"]));
    assert_eq!((&found["queues"][0]["due"], &found["queues"][0]["dead"]), (&1.into(), &0.into()));
}

async fn doctor_finds_what_is_wrong(database: Database) {
    let closed = [("OPEN_SPANNER_REGISTRATION_ENABLED", "false"), ("OPEN_SPANNER_SERVE_WORKERS", "on")];
    let look = || with(&database, &["doctor", "--json"], &closed);
    ended(look(), 3, "pending");
    on(&database, &["migrate"]).succeeded();
    let found = json(look());
    assert!(found.as_array().is_some_and(|found| found.len() >= 4), "{found}");
    // whoever may register, and whoever was given up
    ended(on(&database, &["doctor"]), 3, "OPEN_SPANNER_REGISTRATION=invite");
    database.execute(
        "INSERT INTO dead_letters (id, workspace_id, queue, key, payload, attempts, last_error, created_at)
         VALUES ('1', 1, 'others', 'k', '{}', 3, 'broken', 1)",
    );
    ended(look(), 3, "1 given up");
    database.execute("DELETE FROM dead_letters");
    database.execute(
        "INSERT INTO worker_instances (instance_id, worker, started_at, last_heartbeat_at)
         VALUES ('host/0.1.0/7-x', 'alert', 1, 1)",
    );
    ended(look(), 3, "no alert worker lives");
}

#[test]
fn doctor_tells_of_a_database_that_is_not_there() {
    run(async {
        let settings = [
            ("OPEN_SPANNER_DB_DRIVER", "postgres"),
            ("OPEN_SPANNER_POSTGRES_DSN", "postgres://nobody@127.0.0.1:1/nothing"),
        ];
        let directory = tempfile::tempdir().expect("a directory");
        ended(program::run(&["doctor"], &settings, directory.path()), 3, "refused");
    });
}

/// Plans count all of the history, and that is evaluated before anybody is told how to sign in: there is something of
/// everything.
async fn demo_shows_quotas(client: &crate::support::Client) {
    let found = client.get("/v1/entitlements/states?limit=100").await.json(200);
    let items = found["items"].as_array().expect("items");
    let unused = items.iter().filter(|state| state["current"].as_f64() == Some(0.0)).count();
    let is = |word: &str| items.iter().any(|state| state["state"] == word);
    // at night a small customer may not have called for half a day
    let is_used = unused * 4 < items.len();
    assert!(is_used && is("ok") && is("warning") && is("exceeded"), "{unused} are not used: {found}");
}

/// The overview says of no worker that it does not live: all of them run in the server.
async fn demo_has_workers(client: &crate::support::Client, said: &str) {
    let password = said.split("password ").nth(1).and_then(|rest| rest.split_whitespace().next());
    let answer = client
        .post("/v1/auth/sessions", &serde_json::json!({"email": "demo@example.com", "password": password}))
        .await
        .expect(201);
    let access = answer.cookie("open_spanner_access").expect("an access cookie");
    let person = client.with("cookie", format!("open_spanner_access={access}"));
    let page = person.get("/overview").await.expect(200);
    assert!(page.text.contains("Events per day"), "{}", page.text);
    assert!(!page.text.contains("does not report"), "{}", page.text);
    // of every limit it is known where it goes or when it ends
    let page = person.get("/quota").await.expect(200).text;
    assert!(page.contains("at the end</td>") && page.matches("<td>–</td>").count() == 0, "{page}");
}

/// A workspace that shows something, once; with its key it is read like any other.
#[test]
fn demo_fills_a_workspace_once() {
    let directory = tempfile::tempdir().expect("a directory");
    let settings = [
        ("OPEN_SPANNER_HTTP_ADDR", "127.0.0.1:0"),
        ("OPEN_SPANNER_GRPC_ADDR", ""),
        ("OPEN_SPANNER_LOG_FORMAT", "json"),
    ];
    for words in ["the demo is filled", "the demo is there already"] {
        let mut command = program::command(&["serve", "--demo"], &settings, directory.path());
        let said = directory.path().join("said");
        let log = directory.path().join("log");
        command
            .stdout(fs::File::create(&said).expect("a file"))
            .stderr(fs::File::create(&log).expect("a file"));
        let mut child = command.spawn().expect("it starts");
        crate::support::guard::will_end(child.id(), "KILL");
        let end = Instant::now() + Duration::from_secs(90);
        let text = || fs::read_to_string(&log).unwrap_or_default();
        while !text().contains(words) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(50));
        }
        let (log, said) = (text(), fs::read_to_string(&said).unwrap_or_default());
        if said.contains("osp_sk_") {
            let base =
                said.split("http://").nth(1).and_then(|rest| rest.split('/').next()).expect("an address");
            let key =
                said.split_whitespace().find(|word| word.starts_with("osp_sk_")).expect("a key").to_owned();
            let client = crate::support::Client::new(&format!("http://{base}")).with_key(&key);
            run(async {
                let meters = client.get("/v1/meters").await.json(200);
                assert_eq!(meters["items"].as_array().map(Vec::len), Some(3), "{meters}");
                let events = client.get("/v1/usageevents?limit=5").await.json(200);
                assert_eq!(events["items"].as_array().map(Vec::len), Some(5), "{events}");
                let rules = client.get("/v1/alerts").await.json(200);
                assert_eq!(rules["items"].as_array().map(Vec::len), Some(2), "{rules}");
                demo_shows_quotas(&client).await;
                demo_has_workers(&client.without("authorization"), &said).await;
            });
        }
        assert!(crate::support::guard::signal("TERM", child.id()));
        program::wait(&mut child, Duration::from_secs(30)).expect("it ends");
        crate::support::guard::has_ended(child.id(), "KILL");
        assert!(log.contains(words), "{words}: {log}\n{said}");
    }
}
