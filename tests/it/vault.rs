//! Secrets at rest: sealed with a key of the settings or one of the installation's own, sealed anew by a command that can be
//! killed, and never missing silently.

use serde_json::{Value, json};

use crate::support::program::{Run, command, run};
use crate::support::{Database, Receiver, Server, Workspace, on_both_databases};

on_both_databases!(
    secrets_are_sealed_and_still_sign,
    rotation_can_be_killed_and_run_twice,
    rotation_killed_in_the_middle_goes_on,
    a_missing_key_ends_the_server,
    a_key_with_other_bytes_ends_the_server,
    a_server_with_the_old_ring_says_so_and_loses_nothing,
    without_a_key_nothing_readable_is_stored_unless_that_is_allowed,
    a_rotation_that_stops_is_written_down,
    a_key_that_is_lost_is_named_and_got_over,
    two_processes_share_one_key,
);

const ONE: &str = "k1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
const TWO: &str = "k2:AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
/// The name of the first, and other bytes.
const WRONG: &str = "k1:AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";
const KEYS: &str = "OPEN_SPANNER_ENCRYPTION_KEYS";

fn keys(database: &Database, arguments: &[&str], ring: &str) -> Run {
    let owned = database.settings();
    let mut settings: Vec<(&str, &str)> = owned.iter().map(|(name, value)| (*name, value.as_str())).collect();
    settings.push((KEYS, ring));
    let folder = tempfile::tempdir().expect("a directory");
    run(&[&["keys"], arguments].concat(), &settings, folder.path())
}

fn stored(database: &Database) -> Vec<String> {
    database.lines("SELECT secret || ' ' || COALESCE(previous_secret, '') AS line FROM alert_destinations")
}

async fn destinations(ws: &Workspace, count: usize) -> Vec<Value> {
    let mut made = Vec::new();
    for n in 0..count {
        let body = json!({"name": format!("d{n}"), "webhook_url": "https://example.com/hook"});
        made.push(ws.post("/v1/alerts/destinations", &body).await.json(201));
    }
    made
}

async fn secrets_are_sealed_and_still_sign(database: Database) {
    let settings = [(KEYS, ONE), ("OPEN_SPANNER_WEBHOOK_ALLOWED_NETWORKS", "127.0.0.0/8")];
    let server = Server::start_with(&database, &settings);
    let (ws, receiver) = (server.workspace().await, Receiver::start().await);
    let body = json!({"name": "d", "webhook_url": receiver.url("ok/x")});
    let made = ws.post("/v1/alerts/destinations", &body).await.json(201);
    let secret = made["webhook_signing"]["secret"].as_str().expect("shown once");
    assert!(secret.starts_with("osp_whsec_"), "{secret}");
    let path = format!("/v1/alerts/destinations/{}", made["id"].as_str().expect("an id"));
    let rotated = ws.post(&format!("{path}/webhook-secret/rotate"), &json!({})).await.json(200);
    let rows = stored(&database);
    assert!(
        rows.iter().all(|row| !row.contains("whsec") && row.matches("sealed:1:k1:").count() == 2),
        "{rows:?}"
    );
    let answer = ws.post_text(&format!("{path}/test"), "").await.json(200);
    assert_eq!(answer["status"], json!("delivered"));
    let call = receiver.wait("ok/x", 1).await.remove(0);
    let secret = rotated["webhook_signing"]["secret"].as_str().expect("shown once");
    assert_eq!(call.header("x-open-spanner-signature"), crate::webhooks::contract_signature(secret, &call));
    let list = ws.get("/v1/alerts/destinations").await.expect(200).text;
    assert!(!list.contains("sealed") && !list.contains("whsec"), "{list}");
}

async fn rotation_can_be_killed_and_run_twice(database: Database) {
    let mut server = Server::start(&database);
    let ws = server.workspace().await;
    destinations(&ws, 30).await;
    server.terminate();
    // as old servers left them, in clear text
    database.execute("UPDATE alert_destinations SET secret = 'osp_whsec_' || name");
    // two at once, and one that is killed
    let both = std::thread::scope(|threads| {
        let runs: Vec<_> = (0..2).map(|_| threads.spawn(|| keys(&database, &["rotate"], ONE))).collect();
        runs.into_iter().map(|run| run.join().expect("it ran")).collect::<Vec<_>>()
    });
    assert!(both.iter().all(|run| run.code == Some(0)), "{both:#?}");
    assert_eq!(sealed_by(&both), 30, "each row by one of them: {both:#?}");
    assert!(stored(&database).iter().all(|row| row.starts_with("sealed:1:k1:")));
    let ring = format!("{TWO},{ONE}");
    // as a rotation that was killed half-way leaves it
    assert_eq!(keys(&database, &["rotate"], &ring).code, Some(0));
    let again = keys(&database, &["rotate"], &ring);
    assert!(again.stdout.starts_with("0 sealed"), "{again:#?}");
    let status = keys(&database, &["status", "--json"], &ring);
    let status: Value = serde_json::from_str(&status.stdout).expect("JSON");
    assert_eq!((&status["seals"], &status["secrets"]), (&json!("k2"), &json!({"k2": 30})));
}

/// A row that cannot be opened stops a rotation: it is named, on the terminal and in the trail, with what is left.
async fn a_rotation_that_stops_is_written_down(database: Database) {
    let mut server = Server::start_with(&database, &[(KEYS, TWO)]);
    destinations(&server.workspace().await, 10).await;
    server.terminate();
    database.execute("UPDATE alert_destinations SET secret = 'sealed:1:k2:AAAA' WHERE name = 'd7'");
    let ring = format!("{ONE},{TWO}");
    let stopped = keys(&database, &["rotate"], &ring);
    let id = database.lines("SELECT public_id AS line FROM alert_destinations WHERE name = 'd7'").remove(0);
    assert!(stopped.code == Some(2) && stopped.stderr.contains(&id), "{stopped:#?}");
    assert!(stopped.stderr.contains("7 sealed before it, 3 left"), "{stopped:#?}");
    let rows = || {
        database.lines("SELECT state_after AS line FROM audit_events WHERE action = 'key_ring.rotated' ORDER BY sequence")
    };
    let told: Value = serde_json::from_str(rows().last().expect("a row")).expect("JSON");
    assert_eq!((&told["rows"], &told["left"]), (&json!(7), &json!(3)), "{told}");
    assert_eq!(told["stopped_at"]["alert_destination"], json!(id), "{told}");
    assert!(!told.to_string().contains("AAAA"), "{told}");
    // again: nothing more is sealed, and that it stopped is told again
    let again = keys(&database, &["rotate"], &ring);
    assert!(again.code == Some(2) && again.stderr.contains("0 sealed before it, 3 left"), "{again:#?}");
    assert_eq!(rows().len(), 2);
    // when the row is gone the rest follows
    database.execute("DELETE FROM alert_destinations WHERE name = 'd7'");
    assert!(keys(&database, &["rotate"], &ring).succeeded().stdout.starts_with("2 sealed with k1, 0 left"));
    assert_eq!(rows().len(), 3);
}

/// The file that an installation on SQLite keeps its own key in.
fn own_keys(database: &Database) -> Option<std::path::PathBuf> {
    let Database::Sqlite { path, .. } = database else { return None };
    Some(format!("{}-keys", path.display()).into())
}

/// Every byte that a dump of the database would hold.
fn dump(database: &Database) -> Vec<u8> {
    match database {
        Database::Sqlite { path, .. } => ["", "-wal"]
            .into_iter()
            .flat_map(|end| std::fs::read(format!("{}{end}", path.display())).unwrap_or_default())
            .collect(),
        Database::Postgres { .. } => database
            .lines("SELECT alert_destinations::text AS line FROM alert_destinations")
            .join("\n")
            .into_bytes(),
    }
}

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

async fn without_a_key_nothing_readable_is_stored_unless_that_is_allowed(database: Database) {
    let body = json!({"name": "d", "webhook_url": "https://example.com/hook"});
    let secret = |made: &Value| made["webhook_signing"]["secret"].as_str().expect("shown once").to_owned();
    let mut server = Server::start(&database);
    let ws = server.workspace().await;
    let made = ws.post("/v1/alerts/destinations", &body).await.json(201);
    let log = server.log();
    let Some(file) = own_keys(&database) else {
        // on PostgreSQL a drop-in goes on as the first server did, and is told
        assert!(holds(&dump(&database), &secret(&made)));
        server.terminate();
        let told = Server::start(&database).log();
        assert!(told.iter().any(|line| line.contains("clear text")), "{told:#?}");
        // until the operator refuses that
        let server = Server::start_with(&database, &[("OPEN_SPANNER_CLEAR_SECRETS", "false")]);
        let ws = server.workspace().await;
        let refused = ws.post("/v1/alerts/destinations", &body).await;
        assert!(refused.text.contains(KEYS), "{}", refused.text);
        refused.error(409, "conflict");
        assert_eq!(database.count("alert_destinations"), 1);
        // an old one is not given another secret either, and still signs with its own
        drop(server);
        let strict = [("OPEN_SPANNER_CLEAR_SECRETS", "false"), (KEYS, ONE)];
        let server = Server::start_with(&database, &strict);
        let made = server.workspace().await.post("/v1/alerts/destinations", &body).await.json(201);
        assert!(!holds(&dump(&database), &secret(&made)));
        keys(&database, &["rotate"], ONE).succeeded();
        assert!(!holds(&dump(&database), "osp_whsec_"));
        return;
    };
    assert!(!holds(&dump(&database), "osp_whsec_"), "nothing of it can be read");
    let id = std::fs::read_to_string(&file).expect("a key").split(':').next().expect("an id").to_owned();
    assert!(stored(&database)[0].starts_with(&format!("sealed:1:{id}:")));
    assert!(
        log.iter().any(|line| line.contains(&file.display().to_string()) && line.contains(&id)),
        "{log:#?}"
    );
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(file.metadata().expect("there").permissions().mode() & 0o777, 0o600);
    let rotated =
        format!("/v1/alerts/destinations/{}/webhook-secret/rotate", made["id"].as_str().expect("an id"));
    ws.post(&rotated, &json!({})).await.json(200);
    assert!(!holds(&dump(&database), "osp_whsec_"));
    // the same key after a restart, and one of the settings goes in front of it
    server.terminate();
    let settings = [(KEYS, ONE), crate::alerts::LOOPBACK];
    let server = Server::start_with(&database, &settings);
    keys(&database, &["rotate"], ONE).succeeded();
    assert_eq!(stored(&database)[0].matches("sealed:1:k1:").count(), 2);
    let receiver = Receiver::start().await;
    let to = json!({"name": "to", "webhook_url": receiver.url("ok/x")});
    let to = server.workspace().await.post("/v1/alerts/destinations", &to).await.json(201);
    assert!(to["id"].is_string());
}

/// A database that comes back without its key says which one is missing, everywhere where somebody looks.
async fn a_key_that_is_lost_is_named_and_got_over(database: Database) {
    let settings = match own_keys(&database) {
        Some(_) => vec![],
        None => vec![(KEYS, ONE)],
    };
    let mut server = Server::start_with(&database, &settings);
    destinations(&server.workspace().await, 2).await;
    let folder = tempfile::tempdir().expect("a directory");
    let file = folder.path().join("backup").display().to_string();
    let on = |database: &Database, arguments: &[&str]| {
        let owned = database.settings();
        let own: Vec<(&str, &str)> = owned.iter().map(|(name, value)| (*name, value.as_str())).collect();
        run(arguments, &own, folder.path())
    };
    let saved = on(&database, &["backup", &file]).succeeded();
    server.terminate();
    let id = match own_keys(&database) {
        Some(file) => {
            let text = std::fs::read_to_string(&file).expect("a key");
            assert!(saved.stdout.contains(&file.display().to_string()), "{saved:#?}");
            text.split(':').next().expect("an id").to_owned()
        }
        None => "k1".to_owned(),
    };
    assert!(saved.stdout.contains(&id), "{saved:#?}");
    let bytes = std::fs::read(&file).expect("a backup");
    assert!(!holds(&bytes, "osp_whsec_"), "a backup holds no secret");
    let another = match database {
        Database::Sqlite { .. } => Database::sqlite(),
        Database::Postgres { .. } => Database::postgres(),
    };
    let restored = on(&another, &["restore", &file]).succeeded();
    assert!(restored.stdout.contains(&id), "{restored:#?}");
    let doctor = on(&another, &["doctor"]);
    assert!(doctor.code == Some(3) && doctor.stdout.contains(&id), "{doctor:#?}");
    let mut without = Server::start_unready(&another, &[]);
    assert_eq!(without.stopped().code(), Some(2));
    assert!(without.log().iter().any(|line| line.contains(&id)), "{:#?}", without.log());
    if let (Some(from), Some(to)) = (own_keys(&database), own_keys(&another)) {
        assert!(without.log().iter().any(|line| line.contains(&to.display().to_string())));
        assert!(!to.exists(), "a new key would hide that the old one is missing");
        // with its file it is whole
        std::fs::copy(&from, &to).expect("copied");
        drop(Server::start(&another));
        std::fs::remove_file(&to).expect("removed");
    }
    // gone for good: new secrets take the place of those that nobody can read, and only if that is asked for
    let ring = match own_keys(&another) {
        Some(_) => "",
        None => TWO,
    };
    assert_eq!(keys(&another, &["rotate"], ring).code, Some(2));
    let replaced = keys(&another, &["rotate", "--replace-lost"], ring).succeeded();
    assert!(replaced.stdout.matches("has a new secret").count() == 2, "{replaced:#?}");
    let rows =
        another.lines("SELECT state_after AS line FROM audit_events WHERE action = 'key_ring.rotated'");
    assert!(rows.last().is_some_and(|row| row.contains("replaced")), "{rows:?}");
    drop(Server::start_with(&another, &[(KEYS, ring)]));
}

/// A worker of its own on the same database signs what the server sealed.
async fn two_processes_share_one_key(database: Database) {
    let mut settings = vec![crate::alerts::LOOPBACK, ("OPEN_SPANNER_SERVE_WORKERS", "off")];
    if own_keys(&database).is_none() {
        settings.push((KEYS, ONE));
    }
    let server = Server::start_with(&database, &settings);
    let (ws, receiver) = (server.workspace().await, Receiver::start().await);
    ws.meter("load", "sum").await;
    let to = crate::alerts::destination(&ws, &receiver.url("ok/x")).await;
    crate::alerts::rule(&ws, "load", &to, json!({})).await;
    let owned = database.settings();
    let mut own: Vec<(&str, &str)> = owned.iter().map(|(name, value)| (*name, value.as_str())).collect();
    own.extend(settings.iter().copied());
    own.push(("OPEN_SPANNER_ALERT_WORKER_HEALTH_ADDR", "127.0.0.1:0"));
    let folder = tempfile::tempdir().expect("a directory");
    let mut worker = command(&["alert-worker"], &own, folder.path());
    let worker = worker.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    let mut worker = worker.spawn().expect("it starts");
    crate::alerts::use_meter(&ws, "load", 12).await;
    let call = receiver.wait("ok/x", 1).await.remove(0);
    let secret = to["webhook_signing"]["secret"].as_str().expect("shown once");
    assert_eq!(call.header("x-open-spanner-signature"), crate::webhooks::contract_signature(secret, &call));
    assert!(!holds(&dump(&database), secret));
    worker.kill().expect("SIGKILL");
    worker.wait().expect("it is gone");
}

/// How many were sealed by both of two rotations.
fn sealed_by(runs: &[Run]) -> usize {
    let count = |run: &Run| run.stdout.split(' ').next().and_then(|count| count.parse::<usize>().ok());
    runs.iter().map(|run| count(run).expect("a number")).sum()
}

/// So many that a rotation takes long enough to be killed in it.
const MANY: usize = 400;

async fn rotation_killed_in_the_middle_goes_on(database: Database) {
    let mut server = Server::start_with(&database, &[(KEYS, ONE)]);
    destinations(&server.workspace().await, 1).await;
    server.terminate();
    // as old servers left them, in clear text
    more_destinations(&database);
    let ring = format!("{TWO},{ONE}");
    let sealed = || {
        let count =
            "SELECT CAST(count(*) AS TEXT) AS line FROM alert_destinations WHERE secret LIKE 'sealed:1:k2:%'";
        database.lines(count)[0].parse::<usize>().expect("a number")
    };
    let owned = database.settings();
    let mut settings: Vec<(&str, &str)> = owned.iter().map(|(name, value)| (*name, value.as_str())).collect();
    settings.push((KEYS, &ring));
    let folder = tempfile::tempdir().expect("a directory");
    let mut halves = 0;
    for _ in 0..2 {
        let before = sealed();
        let mut rotation = command(&["keys", "rotate"], &settings, folder.path());
        let mut rotation = rotation.stdout(std::process::Stdio::null()).spawn().expect("it starts");
        let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while sealed() == before {
            assert!(std::time::Instant::now() < end, "nothing is sealed");
        }
        rotation.kill().expect("SIGKILL");
        rotation.wait().expect("it is gone");
        let now = sealed();
        assert!(now > before);
        halves += usize::from(now <= MANY);
    }
    assert!(halves > 0, "every rotation was done before it could be killed");
    // two at once finish what is left
    let both = std::thread::scope(|threads| {
        let runs: Vec<_> = (0..2).map(|_| threads.spawn(|| keys(&database, &["rotate"], &ring))).collect();
        runs.into_iter().map(|run| run.join().expect("it ran")).collect::<Vec<_>>()
    });
    assert!(both.iter().all(|run| run.code == Some(0)), "{both:#?}");
    assert_eq!(keys(&database, &["rotate"], &ring).code, Some(0));
    assert_eq!(sealed(), MANY + 1);
    // every one of them opens with the new key alone
    let status = keys(&database, &["status", "--json"], TWO);
    assert_eq!(status.code, Some(0), "{status:#?}");
    let back = keys(&database, &["rotate"], &format!("{ONE},{TWO}"));
    assert_eq!(back.code, Some(0), "{back:#?}");
    assert!(stored(&database).iter().all(|row| row.starts_with("sealed:1:k1:")));
}

/// Copies the one destination there is, with secrets of their own in clear text.
fn more_destinations(database: &Database) {
    let columns = columns_of(database);
    let values: Vec<String> = columns
        .iter()
        .map(|column| match column.as_str() {
            "id" => "id + n".to_owned(),
            "public_id" | "name" => format!("{column} || '-' || n"),
            "secret" => "'osp_whsec_' || n".to_owned(),
            "previous_secret" => "NULL".to_owned(),
            other => other.to_owned(),
        })
        .collect();
    let copy = format!(
        "WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {MANY})
         INSERT INTO alert_destinations ({}) SELECT {} FROM alert_destinations, numbers",
        columns.join(", "),
        values.join(", ")
    );
    // PostgreSQL wants WITH in front of INSERT, SQLite takes it there as well
    database.execute(&copy);
}

fn columns_of(database: &Database) -> Vec<String> {
    match database {
        Database::Sqlite { .. } => {
            database.lines("SELECT name AS line FROM pragma_table_info('alert_destinations')")
        }
        Database::Postgres { .. } => database.lines(
            "SELECT column_name::text AS line FROM information_schema.columns
             WHERE table_name = 'alert_destinations' AND table_schema = current_schema() ORDER BY ordinal_position",
        ),
    }
}

async fn a_missing_key_ends_the_server(database: Database) {
    let mut server = Server::start_with(&database, &[(KEYS, ONE)]);
    destinations(&server.workspace().await, 1).await;
    server.terminate();
    assert_eq!(keys(&database, &["status"], TWO).code, Some(3));
    assert_eq!(keys(&database, &["rotate"], "").code, Some(2), "no key, or one that did not seal it");
    assert_eq!(keys(&database, &["status"], "k1:short").code, Some(2));
    let mut without = Server::start_unready(&database, &[(KEYS, TWO)]);
    let ended = without.stopped();
    assert_eq!(ended.code(), Some(2));
    assert!(without.log().iter().any(|line| line.contains("k1")), "{:#?}", without.log());
    // a worker that sends webhooks looks as well
    let folder = tempfile::tempdir().expect("a directory");
    let owned = database.settings();
    let mut settings: Vec<(&str, &str)> = owned.iter().map(|(name, value)| (*name, value.as_str())).collect();
    settings.extend([(KEYS, TWO), ("OPEN_SPANNER_ALERT_WORKER_HEALTH_ADDR", "127.0.0.1:0")]);
    let worker = run(&["alert-worker"], &settings, folder.path());
    assert_eq!(worker.code, Some(2), "{worker:#?}");
    // and one that came to its key later, where something is not sealed, is told
    let another = Database::sqlite();
    let mut clear = Server::start(&another);
    destinations(&clear.workspace().await, 1).await;
    clear.terminate();
    another.execute("UPDATE alert_destinations SET secret = 'osp_whsec_x'");
    let again = Server::start(&another);
    assert!(again.log().iter().any(|line| line.contains("clear text")), "{:#?}", again.log());
}

async fn a_key_with_other_bytes_ends_the_server(database: Database) {
    let mut server = Server::start_with(&database, &[(KEYS, ONE)]);
    destinations(&server.workspace().await, 2).await;
    server.terminate();
    let status = keys(&database, &["status", "--json"], WRONG);
    assert_eq!(status.code, Some(3), "{status:#?}");
    let status: Value = serde_json::from_str(&status.stdout).expect("JSON");
    assert_eq!((&status["missing"], &status["wrong"]), (&json!([]), &json!(["k1"])));
    let told = keys(&database, &["status"], WRONG);
    assert!(told.stdout.contains("does not open"), "{told:#?}");
    let owned = database.settings();
    let mut settings: Vec<(&str, &str)> = owned.iter().map(|(name, value)| (*name, value.as_str())).collect();
    settings.push((KEYS, WRONG));
    let folder = tempfile::tempdir().expect("a directory");
    let doctor = run(&["doctor"], &settings, folder.path());
    assert!(doctor.code == Some(3) && doctor.stdout.contains("its bytes are others"), "{doctor:#?}");
    let mut without = Server::start_unready(&database, &[(KEYS, WRONG)]);
    assert_eq!(without.stopped().code(), Some(2));
    assert!(without.log().iter().any(|line| line.contains("its bytes are others")), "{:#?}", without.log());
    settings.push(("OPEN_SPANNER_ALERT_WORKER_HEALTH_ADDR", "127.0.0.1:0"));
    let worker = run(&["alert-worker"], &settings, folder.path());
    assert!(worker.code == Some(2) && worker.stderr.contains("its bytes are others"), "{worker:#?}");
    // with its own bytes all is well, and a row that is damaged stops nobody
    database.execute("UPDATE alert_destinations SET secret = 'sealed:1:k1:AAAA' WHERE name = 'd0'");
    assert_eq!(keys(&database, &["status"], ONE).code, Some(0));
    drop(Server::start_with(&database, &[(KEYS, ONE)]));
}

/// Somebody rotated before every process had both keys.
async fn a_server_with_the_old_ring_says_so_and_loses_nothing(database: Database) {
    let inside = [crate::alerts::LOOPBACK, ("OPEN_SPANNER_SERVE_WORKERS", "on")];
    let with_ring = |ring: &'static str| [inside[0], inside[1], (KEYS, ring)];
    let mut server = Server::start_with(&database, &with_ring(ONE));
    let (ws, receiver) = (server.workspace().await, Receiver::start().await);
    ws.meter("load", "sum").await;
    let to = crate::alerts::destination(&ws, &receiver.url("ok/x")).await;
    crate::alerts::rule(&ws, "load", &to, json!({})).await;
    let both =
        "k2:AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=,k1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    keys(&database, &["rotate"], both).succeeded();
    crate::alerts::use_meter(&ws, "load", 12).await;
    let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
    let job = loop {
        let jobs = ws.get("/v1/alerts/delivery-jobs").await.json(200);
        if let Some(job) =
            jobs["items"].as_array().expect("a list").iter().find(|job| !job["last_error"].is_null())
        {
            break job.clone();
        }
        assert!(std::time::Instant::now() < end, "nothing is said of it: {jobs}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    };
    assert_eq!(job["attempts"], json!(0), "{job}");
    assert!(job["last_error"].as_str().is_some_and(|why| why.contains("k2")), "{job}");
    let test = format!("/v1/alerts/destinations/{}/test", to["id"].as_str().expect("an id"));
    let told = ws.post_text(&test, "").await;
    assert!(told.text.contains("k2"), "{}", told.text);
    told.error(503, "unavailable");
    let log = server.log();
    assert!(log.iter().any(|line| line.contains("webhooks wait") && line.contains("k2")), "{log:#?}");
    assert!(receiver.calls("ok/x").is_empty());
    server.client().get("/ready").await.expect(204);
    server.terminate();
    // with both keys what waited arrives, once
    let server = Server::start_with(&database, &with_ring(both));
    let call = receiver.wait("ok/x", 1).await.remove(0);
    let secret = to["webhook_signing"]["secret"].as_str().expect("shown once");
    assert_eq!(call.header("x-open-spanner-signature"), crate::webhooks::contract_signature(secret, &call));
    let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while database.count("alert_attempts") == 0 {
        assert!(std::time::Instant::now() < end, "the attempt is not written down");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!((database.count("alert_attempts"), receiver.calls("ok/x").len()), (1, 1));
    drop(server);
}
