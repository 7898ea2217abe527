//! One workspace with everything, out of one installation and into another, between databases and back: what it answers
//! is the same, credentials work, keys are known, and whatever is not whole is refused.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use base64::Engine;
use open_spanner::metering::time::{DAY, HOUR, SECOND, Timestamp};
use serde_json::{Value, json};

use crate::support::client::{PASSWORD, sign_in, sign_up};
use crate::support::program::{self, Run};
use crate::support::{Client, Database, Server, Workspace, on_both_databases};

on_both_databases!(
    a_workspace_moves_with_everything,
    an_hour_cut_in_half_moves_with_a_later_dimension,
    a_retry_is_known_after_an_expression_was_taken_away,
    what_is_not_whole_changes_nothing,
    people_who_are_there_stay_as_they_are,
    secrets_are_sealed_on_their_way_or_made_anew,
    a_killed_import_leaves_nothing,
    a_file_touches_no_other_workspace,
);

/// An installation: its database, and commands on it.
struct Installation {
    database: Database,
    directory: PathBuf,
    sealing_key: Option<String>,
}

impl Installation {
    fn on(database: Database, directory: &Path) -> Installation {
        Installation { database, directory: directory.to_path_buf(), sealing_key: None }
    }

    fn command(&self, arguments: &[&str]) -> std::process::Command {
        let settings = self.database.settings();
        let mut settings: Vec<(&str, &str)> =
            settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
        settings.extend(self.sealing_key.as_deref().map(|key| ("OPEN_SPANNER_ENCRYPTION_KEYS", key)));
        program::command(arguments, &settings, &self.directory)
    }

    fn run(&self, arguments: &[&str]) -> Run {
        program::finish(self.command(arguments), Duration::from_secs(300))
    }

    fn serve(&self) -> Server {
        let settings: Vec<(&str, &str)> =
            self.sealing_key.iter().map(|key| ("OPEN_SPANNER_ENCRYPTION_KEYS", key.as_str())).collect();
        Server::start_with(&self.database, &settings)
    }
}

/// An empty database of each engine.
fn others() -> [Database; 2] {
    [Database::sqlite(), Database::postgres()]
}

fn now() -> Timestamp {
    Timestamp::now()
}

async fn id_of(workspace: &Workspace) -> String {
    let session = workspace.session.get("/v1/auth/session").await.json(200);
    session["user"]["workspace_id"].as_str().expect("an id").to_owned()
}

fn dimensions() -> Value {
    json!([{"name": "region", "type": "string", "required": false},
           {"name": "size.class", "type": "number", "required": false},
           {"name": "hot", "type": "boolean", "required": false}])
}

/// A workspace that has something of everything; its key, and its id.
async fn filled(server: &Server) -> (Workspace, String, String) {
    let email = sign_up(&server.client()).await;
    let session = sign_in(&server.client(), &email).await;
    let made =
        session.post("/v1/auth/api-keys", &json!({"name": "everything", "scopes": ["*"]})).await.json(201);
    let secret = made["key"].as_str().expect("a secret").to_owned();
    let workspace = Workspace { key: server.client().with_key(&secret), session };
    for (name, aggregation) in [("calls", "sum"), ("level", "last"), ("peak", "max")] {
        let body = json!({"name": name, "unit": "u", "aggregation": aggregation, "dimensions": dimensions(), "event_retention_days": 30});
        workspace.post("/v1/meters", &body).await.expect(201);
    }
    kinds(&workspace).await;
    events(&workspace).await;
    let plan = json!({"name": "Gold", "limits": [{"meter": "calls", "limit": 1000, "enforcement": "hard", "period": "month"}]});
    let plan = workspace.post("/v1/plans", &plan).await.json(201);
    workspace.put("/v1/plans/subjects/ann", &json!({"plan_id": plan["id"]})).await.expect(200);
    let consume = json!({"idempotency_key": "c-1", "meter": "calls", "subject": "ann", "quantity": 2.5});
    workspace.post("/v1/entitlements/consume", &consume).await.expect(201);
    let bulk = json!([{"meter": "calls", "subject": "dee", "quantity": 1}]);
    workspace.with("idempotency-key", "bulk-1").post("/v1/usages/bulk", &bulk).await.expect(201);
    let destination = json!({"name": "pager", "type": "webhook", "webhook_url": "https://example.com/hook"});
    let destination = workspace.post("/v1/alerts/destinations", &destination).await.json(201);
    let rule = json!({"name": "high", "meter": "calls", "window_seconds": 3600, "comparator": "gt", "threshold": 1e9,
                      "evaluation_interval_seconds": 3600, "destination_id": destination["id"], "enabled": false});
    workspace.post("/v1/alerts", &rule).await.expect(201);
    let query = json!({"name": "mine", "query": {"meter": "calls"}});
    workspace.session.post("/v1/usage/saved-queries", &query).await.expect(201);
    let chosen = json!({"time_zone": "Europe/Berlin", "theme": "dark"});
    workspace.session.put("/v1/auth/preferences", &chosen).await.expect(200);
    let invitation = json!({"email": "somebody@example.com", "role": "viewer"});
    workspace.session.post("/v1/auth/workspace/invitations", &invitation).await.expect(201);
    workspace.post_text("/v1/usageevents/prune", "").await.expect(200);
    // late ones, on days and in hours whose events are gone
    let late = now().plus(-60 * DAY).floor(DAY).plus(HOUR);
    let event = json!({"meter": "calls", "subject": "ann", "quantity": 0.5, "timestamp": late.to_exact_text(), "metadata": {"region": "eu"}});
    workspace.post("/v1/usages", &event).await.expect(201);
    let id = id_of(&workspace).await;
    (workspace, secret, id)
}

/// Meters whose quantities are levels, or are made of what is sent.
async fn kinds(workspace: &Workspace) {
    let seats =
        json!({"name": "seats", "unit": "u", "aggregation": "weighted_sum", "dimensions": dimensions()});
    workspace.post("/v1/meters", &seats).await.expect(201);
    let priced = json!({"name": "priced", "unit": "u", "aggregation": "sum", "dimensions": dimensions(),
                        "value_expression": "quantity * 2"});
    workspace.post("/v1/meters", &priced).await.expect(201);
    for (at, level) in [5, 0, 7].into_iter().enumerate() {
        let time = now().plus(-((at as i64 + 1) * 9) * DAY).floor(DAY);
        let event = json!({"meter": "seats", "subject": "ann", "timestamp": time.to_exact_text(),
                           "quantity": level, "metadata": {"region": "eu"}});
        workspace.post("/v1/usages", &event).await.expect(201);
    }
    workspace.post("/v1/usages", &priced_event()).await.expect(201);
}

fn priced_event() -> Value {
    json!({"meter": "priced", "subject": "ann", "quantity": 4, "idempotency_key": "priced-1",
           "metadata": {"region": "eu", "hot": true}})
}

/// Events of the last 70 days, many of them older than retention, some with keys and some without.
async fn events(workspace: &Workspace) {
    let mut events = Vec::new();
    for at in 0..420 {
        let meter = ["calls", "level", "peak"][at % 3];
        // the last behind the half hour at which a day begins in Kolkata
        let minutes = [0, 60, 120, 180, 18 * 60 + 40][at % 5];
        let day = now().plus(-((at % 70) as i64 + 1) * DAY).floor(DAY);
        let time = day.plus(minutes * 60 * SECOND + at as i64);
        let (subject, region) = (["ann", "bob", "cid"][at % 4 % 3], ["eu", "us"][at % 2]);
        let mut event = json!({"meter": meter, "subject": subject, "timestamp": time.to_exact_text(),
                               "quantity": format!("{}.{:03}", 1 + at % 9, at).parse::<f64>().expect("a number"),
                               "metadata": {"region": region, "size": {"class": at % 3}, "hot": at % 7 == 0, "more": [at]}});
        match at % 5 {
            0 => event["metadata"] = json!({}),
            1 => event["idempotency_key"] = json!(format!("key-{at}")),
            2 => event["idempotency_key"] = json!(format!("{:0>60}", at)),
            _ => {}
        }
        events.push(event);
    }
    for chunk in events.chunks(140) {
        let answer = workspace.post("/v1/usages/bulk", &json!(chunk)).await.json(201);
        assert_eq!(answer["accepted"], chunk.len(), "{answer}");
    }
}

/// Everything that can be read and does not change by itself.
async fn answers(key: &Client, end: Timestamp) -> Vec<(String, String)> {
    let (from, to) = (end.plus(-80 * DAY), end);
    let mut paths: Vec<String> = [
        "/v1/meters?limit=500",
        "/v1/meters/stats?limit=500",
        "/v1/usageevents?limit=1000",
        "/v1/subjects?limit=100",
        "/v1/subjects/ann/usageevents?limit=1000",
        "/v1/usageingestions?limit=100",
        "/v1/usageevents/prunes",
        "/v1/plans",
        "/v1/plans/assignments",
        "/v1/plans/subjects/ann/progress",
        "/v1/entitlements/decisions",
        "/v1/alerts",
        "/v1/alerts/destinations",
        "/v1/audit-events?limit=100",
    ]
    .map(str::to_owned)
    .to_vec();
    for meter in ["calls", "level", "peak", "seats", "priced"] {
        for more in [
            "bucket_size=month",
            "bucket_size=day",
            "bucket_size=day&group_by=subject,region",
            "bucket_size=day&group_by=hot,size.class",
            "bucket_size=day&subject=ann",
            "bucket_size=day&metadata.region=eu",
            "bucket_size=month&group_by=region",
            // days that begin off the hour
            "bucket_size=day&time_zone=Asia/Kolkata",
            "bucket_size=day&time_zone=Asia/Kolkata&group_by=subject,region",
        ] {
            paths.push(format!("/v1/usages?meter={meter}&from={from}&to={to}&limit=1000&{more}"));
        }
        let (from, to) = (end.plus(-75 * DAY), end.plus(-50 * DAY));
        paths.push(format!(
            "/v1/usages?meter={meter}&from={from}&to={to}&limit=1000&bucket_size=hour&group_by=subject"
        ));
    }
    let mut answers = Vec::with_capacity(paths.len());
    for path in paths {
        let text = key.get(&path).await.expect(200).text;
        answers.push((path, text));
    }
    answers
}

fn assert_same(before: &[(String, String)], after: &[(String, String)]) {
    for ((path, before), (_, after)) in before.iter().zip(after) {
        if path.starts_with("/v1/audit-events") {
            moved_and_nothing_else(before, after);
        } else {
            assert_eq!(before, after, "{path}");
        }
    }
    assert!(before.iter().filter(|(_, text)| text.len() > 10).count() > before.len() * 3 / 4);
}

/// The trail goes on with the two rows that say so.
fn moved_and_nothing_else(before: &str, after: &str) {
    let rows = |text: &str| -> Vec<Value> {
        let list: Value = serde_json::from_str(text).expect("JSON");
        list["items"].as_array().expect("a list").clone()
    };
    let (before, after) = (rows(before), rows(after));
    let actions: Vec<&Value> = after.iter().take(2).map(|row| &row["action"]).collect();
    assert_eq!(actions, ["workspace.imported", "workspace.exported"]);
    assert_eq!(before, after[2..]);
}

async fn a_workspace_moves_with_everything(database: Database) {
    let directory = tempfile::tempdir().expect("a directory");
    let first = Installation::on(database, directory.path());
    let mut server = first.serve();
    // somebody else, of whom nothing must come along
    let other = server.workspace().await;
    other.meter("calls", "count").await;
    other.post("/v1/usages", &json!({"meter": "calls", "subject": "ann", "quantity": 1})).await.expect(201);
    let (workspace, key, id) = filled(&server).await;
    let end = now().ceil(DAY);
    // the servers note when a key was used last once a minute, and nobody may see that
    let before = answers(&workspace, end).await;
    server.terminate();
    share_queries(&first.database, &id);
    first.run(&["tenant", "export", &id, "a.tenant"]).succeeded();
    for (at, database) in others().into_iter().enumerate() {
        let second = Installation::on(database, directory.path());
        let dry = second.run(&["tenant", "import", "a.tenant", "--dry-run"]).succeeded();
        assert!(dry.stdout.contains("dry run"), "{}", dry.stdout);
        assert_eq!(second.database.count("workspaces"), 0);
        let run = second.run(&["tenant", "import", "a.tenant"]).succeeded();
        assert!(run.stdout.contains("all rows and totals are those of the file"), "{}", run.stdout);
        let again = second.run(&["tenant", "import", "a.tenant"]);
        assert!(again.code != Some(0) && again.stderr.contains("here already"), "{again:#?}");
        assert_eq!(second.database.count("workspaces"), 1);
        let queries = "SELECT name AS line FROM saved_queries ORDER BY name";
        assert_eq!(second.database.lines(queries), ["mine", "personal"]);
        let chosen = "SELECT time_zone || ' ' || theme AS line FROM user_preferences";
        assert_eq!(second.database.lines(chosen), ["Europe/Berlin dark"]);
        let mut server = second.serve();
        let client = server.client().with_key(&key);
        assert_same(&before, &answers(&client, end).await);
        keys_are_known(&client).await;
        server.terminate();
        let verdict = second.run(&["audit", "verify"]).succeeded();
        assert!(!verdict.stdout.contains(" 0 rows"), "{}", verdict.stdout);
        // and on, into a third one of the first one's kind
        let file = format!("b{at}.tenant");
        second.run(&["tenant", "export", &id, &file]).succeeded();
        let third = Installation::on(first_kind(&first.database), directory.path());
        third.run(&["tenant", "import", &file]).succeeded();
        let server = third.serve();
        let client = server.client().with_key(&key);
        keys_are_known(&client).await;
        let path = format!(
            "/v1/usages?meter=calls&from={}&to={}&bucket_size=month&group_by=region",
            end.plus(-80 * DAY),
            end
        );
        let text = client.get(&path).await.expect(200).text;
        assert!(before.iter().any(|(other, before)| other.contains("meter=calls")
            && other.ends_with("month&group_by=region")
            && *before == text));
    }
}

/// Beside the query that is there: one that nobody else sees, and one that is seen in another workspace.
fn share_queries(database: &Database, id: &str) {
    let columns =
        "user_id, query, group_by, bucket_size, row_limit, pinned, position, created_at, updated_at";
    for (at, name, shared_in) in [(1, "personal", "NULL"), (2, "elsewhere", "7")] {
        database.execute(&format!(
            "INSERT INTO saved_queries (id, name, shared_in, {columns})
             SELECT '01980000-0000-7000-8000-00000000000{at}', '{name}', {shared_in}, {columns}
             FROM saved_queries WHERE name = 'mine'"
        ));
    }
    database.execute(&format!(
        "UPDATE saved_queries SET shared_in = (SELECT id FROM workspaces WHERE public_id = '{id}') WHERE name = 'mine'"
    ));
}

/// Sums of an hour do not know a dimension that was declared after their events, and a prune may leave some of those.
async fn an_hour_cut_in_half_moves_with_a_later_dimension(database: Database) {
    let directory = tempfile::tempdir().expect("a directory");
    let first = Installation::on(database, directory.path());
    let mut server = first.serve();
    let workspace = server.workspace().await;
    let id = id_of(&workspace).await;
    // the hour in which retention ends must last until all is stored and pruned
    let at = now();
    let left = at.ceil(HOUR).0 - at.0;
    if left < 60 * SECOND {
        tokio::time::sleep(Duration::from_micros(left.unsigned_abs())).await;
    }
    let hour = now().plus(-30 * DAY).floor(HOUR);
    let (early, late) = (hour, hour.plus(HOUR - 1));
    let dimension = |name: &str| json!({"name": name, "type": "string", "required": false});
    let meter = json!({"name": "calls", "unit": "u", "dimensions": [dimension("region")], "event_retention_days": 30});
    let meter = workspace.post("/v1/meters", &meter).await.json(201);
    let event = |at: Timestamp, quantity: i32| {
        json!({"meter": "calls", "subject": "ann", "quantity": quantity, "timestamp": at.to_exact_text(),
               "metadata": {"region": "eu", "zone": "a"}})
    };
    workspace.post("/v1/usages", &event(early, 1)).await.expect(201);
    workspace.post("/v1/usages", &event(late, 2)).await.expect(201);
    // more subjects than are asked for at once
    let of_subject = |at: i32| {
        let mut event = event(early, 1);
        event["subject"] = json!(format!("s-{at}"));
        event
    };
    let many: Vec<Value> = (0..600).map(of_subject).collect();
    workspace.post("/v1/usages/bulk", &json!(many)).await.expect(201);
    let change = json!({"dimensions": [dimension("region"), dimension("zone")]});
    let path = format!("/v1/meters/{}", meter["id"].as_str().expect("an id"));
    workspace.put(&path, &change).await.expect(200);
    workspace.post("/v1/usages", &event(late, 4)).await.expect(201);
    workspace.post_text("/v1/usageevents/prune", "").await.expect(200);
    let (from, to) = (hour.floor(DAY), hour.floor(DAY).plus(2 * DAY));
    let path = format!("/v1/usages?meter=calls&from={from}&to={to}&bucket_size=day&limit=1000");
    let answer = async |client: &Client| {
        let mut answers = Vec::new();
        for group in ["region", "subject"] {
            answers.push(client.get(&format!("{path}&group_by={group}")).await.expect(200).text);
        }
        answers
    };
    let before = answer(&workspace.key).await;
    assert!(before[0].contains("\"quantity\":607") && before[1].contains("\"s-599\""), "{before:?}");
    server.terminate();
    assert_eq!(first.database.count("events"), 2);
    first.run(&["tenant", "export", &id, "a.tenant"]).succeeded();
    for database in others() {
        let second = Installation::on(database, directory.path());
        second.run(&["tenant", "import", "a.tenant"]).succeeded();
        let server = second.serve();
        assert_eq!(answer(&workspace.at(&server.url())).await, before);
    }
}

/// Nothing of such an event tells what was sent, but the ledger.
async fn a_retry_is_known_after_an_expression_was_taken_away(database: Database) {
    let directory = tempfile::tempdir().expect("a directory");
    let first = Installation::on(database, directory.path());
    let mut server = first.serve();
    let workspace = server.workspace().await;
    let id = id_of(&workspace).await;
    let meter = json!({"name": "priced", "unit": "u", "aggregation": "sum", "dimensions": dimensions(),
                       "value_expression": "quantity * 2"});
    let meter = workspace.post("/v1/meters", &meter).await.json(201);
    workspace.post("/v1/usages", &priced_event()).await.expect(201);
    let path = format!("/v1/meters/{}", meter["id"].as_str().expect("an id"));
    workspace.put(&path, &json!({"value_expression": ""})).await.expect(200);
    server.terminate();
    first.run(&["tenant", "export", &id, "a.tenant"]).succeeded();
    for database in others() {
        let second = Installation::on(database, directory.path());
        second.run(&["tenant", "import", "a.tenant"]).succeeded();
        let server = second.serve();
        let answer = workspace.at(&server.url()).post("/v1/usages", &priced_event()).await.expect(201);
        assert_eq!(answer.header("idempotency-replayed"), "true", "{}", answer.text);
        assert!(!answer.text.contains("conflict"), "{}", answer.text);
    }
}

fn first_kind(database: &Database) -> Database {
    match database {
        Database::Sqlite { .. } => Database::sqlite(),
        Database::Postgres { .. } => Database::postgres(),
    }
}

/// Of events that are stored and of events that are gone, of consumptions and of calls.
async fn keys_are_known(client: &Client) {
    for at in [1, 2, 66, 67] {
        let key = if at % 5 == 1 { format!("key-{at}") } else { format!("{at:0>60}") };
        let meter = ["calls", "level", "peak"][at % 3];
        let event = json!({"meter": meter, "subject": "ann", "quantity": 99, "idempotency_key": key});
        let answer = client.post("/v1/usages", &event).await;
        assert!(
            answer.status == 409 || answer.header("idempotency-replayed") == "true",
            "{key}: {} {}",
            answer.status,
            answer.text
        );
    }
    let consume = json!({"idempotency_key": "c-1", "meter": "calls", "subject": "ann", "quantity": 2.5});
    let answer = client.post("/v1/entitlements/consume", &consume).await.json(201);
    assert_eq!(answer["replayed"], true, "{answer}");
    let answer = client.post("/v1/usages", &priced_event()).await.expect(201);
    assert_eq!(answer.header("idempotency-replayed"), "true", "{}", answer.text);
    assert!(!answer.text.contains("conflict"), "{}", answer.text);
    let bulk = json!([{"meter": "calls", "subject": "dee", "quantity": 1}]);
    let answer = client.with("idempotency-key", "bulk-1").post("/v1/usages/bulk", &bulk).await;
    assert_eq!(answer.header("idempotency-replayed"), "true", "{}", answer.text);
}

async fn what_is_not_whole_changes_nothing(database: Database) {
    let directory = tempfile::tempdir().expect("a directory");
    let first = Installation::on(database, directory.path());
    let mut server = first.serve();
    let (_, _, id) = filled(&server).await;
    server.terminate();
    first.run(&["tenant", "export", &id, "a.tenant"]).succeeded();
    let again = first.run(&["tenant", "export", &id, "a.tenant"]);
    assert!(again.code == Some(2) && again.stderr.contains("there already"), "{again:#?}");
    let nobody = first.run(&["tenant", "export", "0198", "b.tenant"]);
    assert!(nobody.code == Some(2) && nobody.stderr.contains("no workspace"), "{nobody:#?}");
    let whole = std::fs::read(directory.path().join("a.tenant")).expect("the file");
    for database in others() {
        let second = Installation::on(database, directory.path());
        for length in [0, 10, whole.len() / 2, whole.len() - 1] {
            std::fs::write(directory.path().join("half"), &whole[..length]).expect("a file");
            let run = second.run(&["tenant", "import", "half"]);
            assert!(run.code == Some(2), "{length}: {run:#?}");
        }
        // what another version may have added
        for (from, to) in [("\"unit\"", "\"units\""), ("\"plans\"", "\"contracts\"")] {
            std::fs::write(directory.path().join("newer"), changed(&whole, from, to)).expect("a file");
            let run = second.run(&["tenant", "import", "newer"]);
            assert!(run.code == Some(2) && run.stderr.contains("newer version"), "{to}: {run:#?}");
        }
        // a sum that is not what the rows come to
        let other = changed(&whole, "\"meters\":5", "\"meters\":6");
        std::fs::write(directory.path().join("other"), other).expect("a file");
        let run = second.run(&["tenant", "import", "other"]);
        assert!(run.code == Some(2) && run.stderr.contains("was changed"), "{run:#?}");
        for table in ["workspaces", "users", "events", "meters", "subjects", "audit_events"] {
            assert_eq!(second.database.count(table), 0, "{table}");
        }
    }
}

/// The file with one text replaced and a checksum that fits.
fn changed(whole: &[u8], from: &str, to: &str) -> Vec<u8> {
    use std::io::{Read, Write};
    let mut text = String::new();
    flate2::read::MultiGzDecoder::new(whole).read_to_string(&mut text).expect("gzip");
    assert!(text.contains(from), "{from}");
    let text = text.replace(from, to);
    let (lines, last) = text.trim_end().rsplit_once('\n').expect("lines");
    let lines = format!("{lines}\n");
    let digest = ring::digest::digest(&ring::digest::SHA256, lines.as_bytes());
    let sha256: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let mut last: Value = serde_json::from_str(last).expect("JSON");
    last["end"]["sha256"] = json!(sha256);
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(format!("{lines}{last}\n").as_bytes()).expect("packed");
    out.finish().expect("packed")
}

/// Whoever wrote the file may have written anything: what it says of others is refused, and nothing of it stays.
async fn a_file_touches_no_other_workspace(database: Database) {
    let directory = tempfile::tempdir().expect("a directory");
    let first = Installation::on(Database::sqlite(), directory.path());
    let mut server = first.serve();
    let (_, _, id) = filled(&server).await;
    server.terminate();
    first.run(&["tenant", "export", &id, "a.tenant"]).succeeded();
    let whole = std::fs::read(directory.path().join("a.tenant")).expect("the file");
    let second = Installation::on(database, directory.path());
    let mut server = second.serve();
    let victim = server.workspace().await;
    victim.meter("calls", "sum").await;
    let use_of = json!({"meter": "calls", "subject": "ann", "quantity": 1});
    victim.post("/v1/usages", &use_of).await.expect(201);
    server.terminate();
    let number = |database: &Database, text: &str| database.lines(text).remove(0);
    let own = |table: &str| {
        number(
            &first.database,
            &format!(
                "SELECT CAST(id AS TEXT) AS line FROM {table} WHERE name IN ('calls', 'ann') ORDER BY id LIMIT 1"
            ),
        )
    };
    let theirs = |table: &str| {
        number(
            &second.database,
            &format!("SELECT CAST(id AS TEXT) AS line FROM {table} WHERE name IN ('calls', 'ann') LIMIT 1"),
        )
    };
    let workspace = |database: &Database, condition: &str| {
        number(database, &format!("SELECT CAST(id AS TEXT) AS line FROM workspaces {condition}"))
    };
    let (home, away) =
        (workspace(&first.database, &format!("WHERE public_id = '{id}'")), workspace(&second.database, ""));
    for (table, from, to, word) in [
        ("memberships", &home, &away, "another workspace"),
        ("alert_rules", &own("meters"), &theirs("meters"), "alert_rules.meter_id"),
        ("plan_limits", &own("meters"), &theirs("meters"), "plan_limits.meter_id"),
        ("plan_assignments", &own("subjects"), &theirs("subjects"), "plan_assignments.subject_id"),
    ] {
        let file = in_table(&whole, table, &format!("\"{from}\""), &format!("\"{to}\""));
        std::fs::write(directory.path().join("crafted"), file).expect("a file");
        let run = second.run(&["tenant", "import", "crafted"]);
        assert!(run.code == Some(2) && run.stderr.contains(word), "{table}: {run:#?}");
    }
    // what is seen by another workspace's members
    let shared = in_table(&whole, "saved_queries", "null]", &format!("\"{away}\"]"));
    std::fs::write(directory.path().join("crafted"), shared).expect("a file");
    let run = second.run(&["tenant", "import", "crafted"]);
    assert!(run.code == Some(2) && run.stderr.contains("another workspace"), "{run:#?}");
    let query = number(&first.database, "SELECT id AS line FROM saved_queries");
    for (from, to, word) in [
        (format!("[\"{query}\""), "[\"../../etc/passwd\"".to_owned(), "no UUID"),
        (format!("[\"{home}\",\"{id}\""), format!("[\"0\",\"{id}\""), "no number"),
        (
            format!("[\"{home}\",\"{id}\""),
            format!("[\"{home}\",\"{}\"", id.replace('0', "1")),
            "another workspace",
        ),
    ] {
        std::fs::write(directory.path().join("crafted"), changed(&whole, &from, &to)).expect("a file");
        let run = second.run(&["tenant", "import", "crafted"]);
        assert!(run.code == Some(2) && run.stderr.contains(word), "{word}: {run:#?}");
    }
    // instants that no server would have stored, and that no calendar has
    let time = number(&first.database, "SELECT CAST(event_time AS TEXT) AS line FROM events LIMIT 1");
    for odd in ["-9223372036854775808", "253402300800000000"] {
        let file = in_table(&whole, "events", &format!("\"{time}\""), &format!("\"{odd}\""));
        std::fs::write(directory.path().join("crafted"), file).expect("a file");
        let run = second.run(&["tenant", "import", "crafted"]);
        assert!(run.code == Some(2) && run.stderr.contains("event of the file cannot be read"), "{run:#?}");
    }
    assert_eq!((second.database.count("workspaces"), second.database.count("memberships")), (1, 1));
    second.run(&["tenant", "import", "a.tenant"]).succeeded();
}

/// The file with a text replaced in the rows of one table.
fn in_table(whole: &[u8], table: &str, from: &str, to: &str) -> Vec<u8> {
    use std::io::Read;
    let mut text = String::new();
    flate2::read::MultiGzDecoder::new(whole).read_to_string(&mut text).expect("gzip");
    let begin = text.find(&format!("{{\"table\":\"{table}\"")).expect("the table");
    let rows = text[begin..].find("\n[").expect("rows") + begin;
    let end = text[rows..].find("\n{").expect("another table") + rows;
    changed(whole, &text[rows..end], &text[rows..end].replace(from, to))
}

async fn people_who_are_there_stay_as_they_are(database: Database) {
    let directory = tempfile::tempdir().expect("a directory");
    let first = Installation::on(Database::sqlite(), directory.path());
    let mut server = first.serve();
    let (workspace, _, id) = filled(&server).await;
    let session = workspace.session.get("/v1/auth/session").await.json(200);
    let email = session["user"]["email"].as_str().expect("an address").to_owned();
    server.terminate();
    first.run(&["tenant", "export", &id, "a.tenant"]).succeeded();
    let second = Installation::on(database, directory.path());
    let mut server = second.serve();
    let other = "another battery staple 2";
    server.client().post("/v1/auth/users", &json!({"email": email, "password": other})).await.expect(201);
    server.terminate();
    let run = second.run(&["tenant", "import", "a.tenant"]).succeeded();
    assert!(run.stdout.contains("1 people had an account here"), "{}", run.stdout);
    assert!(run.stdout.contains(&format!("\"{email}\" (address not verified)")), "{}", run.stdout);
    let server = second.serve();
    let status = async |password: &str| {
        let body = json!({"email": email, "password": password});
        server.client().post("/v1/auth/sessions", &body).await.status
    };
    assert_eq!([status(other).await, status(PASSWORD).await], [201, 401]);
    let body = json!({"email": email, "password": other});
    let signed_in = server.client().post("/v1/auth/sessions", &body).await.expect(201);
    let access = signed_in.cookie("open_spanner_access").expect("a cookie");
    let session = server.client().with("cookie", format!("open_spanner_access={access}"));
    let listed = session.get("/v1/auth/workspaces").await.expect(200).text;
    assert!(listed.contains(&id), "{listed}");
    let queries = session.get("/v1/usage/saved-queries").await.expect(200).text;
    assert!(queries.contains("mine"), "{queries}");
}

fn key_text() -> String {
    let bytes: [u8; 32] = rand::random();
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

async fn secrets_are_sealed_on_their_way_or_made_anew(database: Database) {
    let directory = tempfile::tempdir().expect("a directory");
    let mut first = Installation::on(database, directory.path());
    first.sealing_key = Some(format!("k1:{}", key_text()));
    let mut server = first.serve();
    let (workspace, _, id) = filled(&server).await;
    let made = json!({"name": "second", "type": "webhook", "webhook_url": "https://example.com/hook"});
    let made = workspace.post("/v1/alerts/destinations", &made).await.json(201);
    let secret = made["webhook_signing"]["secret"].as_str().expect("shown once").to_owned();
    server.terminate();
    std::fs::write(directory.path().join("key"), key_text()).expect("a file");
    first.run(&["tenant", "export", &id, "with", "--secrets-key", "key"]).succeeded();
    first.run(&["tenant", "export", &id, "without"]).succeeded();
    for database in others() {
        let plain = Installation::on(database, directory.path());
        let refused = plain.run(&["tenant", "import", "with"]);
        assert!(refused.code == Some(2) && refused.stderr.contains("--secrets-key"), "{refused:#?}");
        plain.run(&["tenant", "import", "with", "--secrets-key", "key"]).succeeded();
        let stored = "SELECT secret AS line FROM alert_destinations WHERE name = 'second'";
        let found = plain.database.lines(stored).remove(0);
        match plain.database {
            // with a key of its own
            Database::Sqlite { .. } => assert!(found.starts_with("sealed:1:own-"), "{found}"),
            Database::Postgres { .. } => assert_eq!(found, secret),
        }
        plain.run(&["keys", "status"]).succeeded();

        let mut sealing = Installation::on(first_kind(&plain.database), directory.path());
        sealing.sealing_key = Some(format!("other:{}", key_text()));
        let run = sealing.run(&["tenant", "import", "without"]).succeeded();
        assert!(run.stdout.contains("new secret") && run.stdout.contains("pager, second"), "{}", run.stdout);
        let stored = sealing.database.lines(stored);
        assert!(stored[0].starts_with("sealed:1:other:"), "{stored:?}");
        sealing.run(&["keys", "status"]).succeeded();
    }
}

async fn a_killed_import_leaves_nothing(database: Database) {
    let directory = tempfile::tempdir().expect("a directory");
    let first = Installation::on(Database::sqlite(), directory.path());
    let mut server = first.serve();
    let (workspace, key, id) = filled(&server).await;
    for block in 0..12 {
        let event = |at: i32| json!({"meter": "calls", "subject": format!("s-{}", at % 40), "quantity": 0.1});
        let events: Vec<Value> = (block * 1000..block * 1000 + 1000).map(event).collect();
        workspace.post("/v1/usages/bulk", &json!(events)).await.expect(201);
    }
    server.terminate();
    first.run(&["tenant", "export", &id, "a.tenant"]).succeeded();
    let second = Installation::on(database, directory.path());
    // makes the schema
    second.run(&["tenant", "import", "a.tenant", "--dry-run"]).succeeded();
    for pause in [150, 700] {
        let mut command = second.command(&["tenant", "import", "a.tenant"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
        let end = Instant::now() + Duration::from_millis(pause);
        while Instant::now() < end && child.try_wait().expect("our child").is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let _ = child.kill();
        let _ = child.wait();
        // all of it or nothing
        if second.database.count("workspaces") == 0 {
            assert_eq!((second.database.count("events"), second.database.count("users")), (0, 0), "{pause}");
        }
    }
    if second.database.count("workspaces") == 0 {
        second.run(&["tenant", "import", "a.tenant"]).succeeded();
    }
    let server = second.serve();
    let stats = server.client().with_key(&key).get("/v1/system/stats").await.json(200);
    assert!(stats["usage_events"].as_i64() > Some(12_000), "{stats}");
}
