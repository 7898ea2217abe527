//! Databases that a real server of Go made, one of each engine, into both of ours: every number and every credential of
//! the list that comes with them. OPEN_SPANNER_REFERENCE_DATA is their folder.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{Imported, command, counts, import, killed, ours_again, place};
use crate::support::program::Run;
use crate::support::{Client, Database, Server, env, on_both_databases, skip};

on_both_databases!(a_real_database_comes_over, a_real_database_comes_over_in_pieces);

struct Real {
    theirs: Database,
    kind: &'static str,
    expected: Value,
}

fn real(test: &str) -> Option<[Real; 2]> {
    let Some(folder) = env("OPEN_SPANNER_REFERENCE_DATA").map(PathBuf::from) else {
        skip(test, "OPEN_SPANNER_REFERENCE_DATA is not set");
        return None;
    };
    let expected = std::fs::read_to_string(folder.join("expected.json")).expect("expected.json");
    let expected: Value = serde_json::from_str(&expected).expect("JSON");
    Some([
        Real { theirs: real_sqlite(&folder), kind: "sqlite", expected: expected.clone() },
        Real { theirs: real_postgres(&folder), kind: "postgres", expected },
    ])
}

async fn a_real_database_comes_over(ours: Database) {
    let Some(real) = real("moving::real::a_real_database_comes_over") else { return };
    for Real { theirs, kind, expected } in real {
        let ours = ours_again(&ours);
        let Imported { run, left_out } = import(&ours, &place(&theirs), &[]);
        let run = run.succeeded();
        assert!(!run.stdout.contains("differs"), "{}", run.stdout);
        let known = &expected["databases"][kind];
        every_row_is_counted(&run, &left_out, known);
        nothing_is_new_the_second_time(&ours, &theirs, known);
        let server = Server::start(&ours);
        credentials_work(&server, known).await;
        the_rest_is_there(&ours, &server, known).await;
        drop(server);
        totals_are(&ours, &run, known, &expected["totals"]).await;
    }
}

/// Each meter as a whole, in words, and each subject and month of it as it is asked for.
async fn totals_are(ours: &Database, run: &Run, known: &Value, totals: &Value) {
    let server = Server::start(ours);
    for (owner, meters) in totals.as_object().expect("owners") {
        let key = server.client().with_key(key_of(known, owner));
        for (meter, totals) in meters.as_object().expect("meters") {
            let workspace = known["workspaces"][owner].as_str().expect("an id");
            let line = format!(
                "{workspace} {meter}: {} events, sum {}: equal on both sides in every month",
                totals["events"],
                totals["sum"].as_str().expect("a number")
            );
            assert!(run.stdout.contains(&line), "{line}\n{}", run.stdout);
            months_are(&key, meter, &totals["months"]).await;
        }
    }
    replay_is(&server, known).await;
}

/// Taken or named with a reason: as many as there are.
fn every_row_is_counted(run: &Run, left_out: &[Value], known: &Value) {
    let not_read =
        ["schema_migrations", "workspace_stats", "alert_evaluation_jobs", "entitlement_check_jobs"];
    for (table, rows) in known["rows"].as_object().expect("tables") {
        if !not_read.contains(&table.as_str()) {
            let all: u64 = counts(run, table).iter().sum();
            assert_eq!(Some(all), rows.as_u64(), "{table}\n{}", run.stdout);
        }
    }
    let listed: u64 = known["rows"]
        .as_object()
        .expect("tables")
        .keys()
        .filter(|table| !not_read.contains(&table.as_str()))
        .map(|table| counts(run, table)[2])
        .sum();
    assert_eq!(listed, left_out.len() as u64);
    // what the old server took and cannot be: each such event is named
    for hostile in known["hostile"].as_array().expect("rows") {
        let row = hostile["row"].as_str().expect("a row");
        if hostile["stored"] != true || !row.starts_with("usage_events ") {
            continue;
        }
        let id = &row["usage_events ".len()..];
        let is_listed = left_out.iter().any(|line| line["id"] == id);
        let what = hostile["what"].as_str().expect("a text");
        let is_one_of = |words: &[&str]| words.iter().any(|word| what.contains(word));
        assert!(is_listed || !is_one_of(IMPOSSIBLE), "{hostile}");
        assert!(!is_listed || !is_one_of(ODD), "{hostile}");
    }
}

/// Hostile rows that cannot be taken.
const IMPOSSIBLE: &[&str] = &[
    "not ASCII",
    "blanks around",
    "empty subject",
    "300 characters",
    "quantity 0",
    "negative quantity",
    "without a zone",
    "no time",
    "empty received_at",
    "metadata null",
    "a list",
    "beyond a double",
    "escaped NUL",
    "no UUID",
    "upper-case id",
    "blob in quantity",
    "infinity",
    "NaN",
    "NUL in subject",
    "not UTF-8",
    "empty metadata",
    "no JSON",
    "meter that is gone",
];
/// And those that only look so.
const ODD: &[&str] = &[
    "offset",
    "database's style",
    "lower-case time",
    "leap second",
    "name twice",
    "numeric text",
    "escaped surrogates",
    "largest double",
    "smallest double",
    "beyond 2^53",
    "empty idempotency key",
];

fn nothing_is_new_the_second_time(ours: &Database, theirs: &Database, known: &Value) {
    let run = import(ours, &place(theirs), &["--compare"]).run.succeeded();
    assert!(run.stdout.contains("nothing is missing here"), "{}", run.stdout);
    for table in ["usage_events", "plan_subject_assignments", "entitlement_states", "alert_events"] {
        let [new, known_rows, left_out] = counts(&run, table);
        assert_eq!((new, Some(known_rows + left_out)), (0, known["rows"][table].as_u64()), "{table}");
    }
}

/// Secrets, keys of events, ids of plans and rules, the meter that was made again, what was pruned.
async fn the_rest_is_there(ours: &Database, server: &Server, known: &Value) {
    let ada = server.client().with_key(key_of(known, "ada"));
    for session in known["sessions"].as_array().expect("sessions") {
        let cookies = session["cookies"].as_object().expect("cookies");
        let access = cookies["open_spanner_access"].as_str().expect("a token");
        let client = server.client().with("cookie", format!("open_spanner_access={access}"));
        let wanted = if session["extended_to"].is_null() { 401 } else { 200 };
        client.get("/v1/auth/session").await.expect(wanted);
    }
    let secrets = known["webhook_secrets"].as_array().expect("secrets");
    for (at, secret) in secrets.iter().enumerate() {
        let id = &secret["destination_id"];
        if secrets[at + 1..].iter().any(|later| later["destination_id"] == *id) {
            continue;
        }
        let id = id.as_str().expect("an id");
        let stored =
            ours.lines(&format!("SELECT secret AS line FROM alert_destinations WHERE public_id = '{id}'"));
        match ours {
            // with a key of its own
            Database::Sqlite { .. } => assert!(stored[0].starts_with("sealed:1:own-"), "{stored:?}"),
            Database::Postgres { .. } => assert_eq!(stored, [secret["secret"].as_str().expect("a text")]),
        }
    }
    for stored in known["stored_keys"].as_array().expect("keys") {
        let event = json!({"idempotency_key": stored["key"], "meter": "api_calls", "subject": "x", "quantity": 1, "metadata": {"region": "eu"}});
        let answer = ada.post("/v1/usages", &event).await;
        assert!(
            answer.text.contains(stored["event_id"].as_str().expect("an id")) || answer.status == 409,
            "{}",
            answer.text
        );
    }
    let plans = ours.lines("SELECT public_id AS line FROM plans");
    for (name, id) in known["plans"].as_object().expect("plans") {
        assert!(plans.iter().any(|plan| id == plan), "{name}");
    }
    let rules = ours.lines("SELECT public_id AS line FROM alert_rules");
    for (name, id) in known["rules"].as_object().expect("rules") {
        assert!(rules.iter().any(|rule| id == rule), "{name}");
    }
    let again = &known["recreated_meter"];
    let meter =
        format!("SELECT public_id AS line FROM meters WHERE name = {}", again["name"]).replace('"', "'");
    assert_eq!(ours.lines(&meter), [again["second_id"].as_str().expect("an id")]);
}

/// Killed three times on the way, and run to its end then: the same as at once.
async fn a_real_database_comes_over_in_pieces(ours: Database) {
    let Some(real) = real("moving::real::a_real_database_comes_over_in_pieces") else { return };
    for Real { theirs, kind, expected } in real {
        let ours = ours_again(&ours);
        import(&ours, &place(&theirs), &["--dry-run"]).run.succeeded();
        let directory = tempfile::tempdir().expect("a directory");
        for more_than in [0, 8_000, 16_000] {
            killed(command(&ours, &place(&theirs), &[], directory.path()), &ours, more_than).await;
        }
        let Imported { run, left_out } = import(&ours, &place(&theirs), &[]);
        let run = run.succeeded();
        assert!(
            !run.stdout.contains("differs") && counts(&run, "usage_events")[1] > 16_000,
            "{}",
            run.stdout
        );
        let known = &expected["databases"][kind];
        every_row_is_counted(&run, &left_out, known);
        nothing_is_new_the_second_time(&ours, &theirs, known);
        totals_are(&ours, &run, known, &expected["totals"]).await;
    }
}

fn key_of<'a>(known: &'a Value, owner: &str) -> &'a str {
    let keys = known["api_keys"].as_array().expect("keys");
    let full = keys.iter().find(|key| key["user"] == owner && key["label"] == "full");
    full.and_then(|key| key["key"].as_str()).expect("a key that may do everything")
}

async fn credentials_work(server: &Server, known: &Value) {
    for key in known["api_keys"].as_array().expect("keys") {
        let status =
            server.client().with_key(key["key"].as_str().expect("a key")).get("/v1/meters").await.status;
        assert_eq!(status != 401, key["works"] == true, "{key}");
    }
    for user in known["users"].as_array().expect("users") {
        for _ in 0..2 {
            let body = json!({"email": user["email"], "password": user["password"]});
            server.client().post("/v1/auth/sessions", &body).await.expect(201);
        }
    }
}

/// Events and, for sums and counts, the value of each month.
async fn months_are(key: &Client, meter: &str, months: &Value) {
    for (month, expected) in months.as_object().expect("months") {
        let subjects = expected["subjects"].as_object().expect("subjects");
        let body = json!({"meter": meter, "from": format!("{month}-01T00:00:00Z"), "to": next(month), "bucket_size": "month",
                          "group_by": ["subject"], "limit": 1000});
        let rows = key.post("/v1/usages/search", &body).await.json(200);
        let rows = rows.as_array().expect("a list");
        assert_eq!(rows.len(), subjects.len(), "{meter} {month}");
        for row in rows {
            let expected = &subjects[row["subject"].as_str().expect("a subject")];
            let wanted = match row["aggregation"].as_str() {
                Some("sum") => expected.as_array().and_then(|of| of.last()).and_then(Value::as_str),
                _ => None,
            };
            if let Some(wanted) = wanted {
                assert_eq!(number(&row["quantity"].to_string()), number(wanted), "{meter} {month} {row}");
            }
        }
    }
}

fn number(text: &str) -> bigdecimal::BigDecimal {
    text.parse().expect("a number")
}

fn next(month: &str) -> String {
    let (year, month): (i32, i32) =
        (month[..4].parse().expect("a year"), month[5..].parse().expect("a month"));
    format!("{:04}-{:02}-01T00:00:00Z", year + month / 12, month % 12 + 1)
}

async fn replay_is(server: &Server, known: &Value) {
    let replay = &known["bulk_replay"];
    let header = replay["header"].as_str().expect("a key");
    let client = server.client().with_key(key_of(known, "ada")).with("idempotency-key", header);
    let answer = client.post("/v1/usages/bulk", &replay["body"]).await.json(201);
    for field in ["accepted", "duplicates", "accepted_items", "duplicate_items"] {
        assert_eq!(answer[field], replay["answer"][field], "{field}");
    }
}

fn real_sqlite(folder: &Path) -> Database {
    let database = Database::sqlite();
    let Database::Sqlite { path, .. } = &database else { return database };
    let file = std::fs::File::create(path).expect("a file");
    let mut unpack = std::process::Command::new("xz");
    unpack.arg("-dc").arg(folder.join("reference.db.xz")).stdout(file);
    assert!(unpack.status().expect("xz runs").success());
    database
}

fn real_postgres(folder: &Path) -> Database {
    let database = Database::postgres();
    let Database::Postgres { dsn, .. } = &database else { return database };
    let script = r#"gzip -dc "$0" | psql -q -v ON_ERROR_STOP=1 "$1" > /dev/null"#;
    let mut fill = std::process::Command::new("sh");
    fill.args(["-c", script]).arg(folder.join("reference.pg.sql.gz")).arg(dsn);
    assert!(fill.status().expect("psql runs").success());
    database
}
