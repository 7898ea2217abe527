//! Another database behind the same address: a failover to a standby that lagged, a backup put back under running
//! servers, a file that was replaced. Such a day loses what the database lost, but nothing that is acknowledged after
//! it is booked to somebody else, or to nobody.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::client::NOON;
use crate::support::postgres::Cluster;
use crate::support::{Client, Database, Server, run};

/// What is stored under the names of subjects, by those that were acknowledged and not lost.
type Expected = BTreeMap<String, i64>;

fn event(subject: &str, key: &str, region: &str) -> Value {
    json!({"meter": "m", "subject": subject, "quantity": 1, "idempotency_key": key, "timestamp": NOON,
           "metadata": {"region": region}})
}

async fn meter(client: &Client, name: &str) {
    let dimensions = json!([{"name": "region", "type": "string"}]);
    let body = json!({"name": name, "unit": "u", "aggregation": "sum", "dimensions": dimensions});
    client.post("/v1/meters", &body).await.expect(201);
}

/// Writes one event and counts it.
async fn write(client: &Client, subject: &str, key: &str, expected: &mut Expected) {
    client.post("/v1/usages", &event(subject, key, "eu")).await.expect(201);
    *expected.entry(subject.to_owned()).or_default() += 1;
}

/// Writes until the server has noticed what happened; it may refuse, but it acknowledges nothing that it loses.
async fn write_when_it_can(client: &Client, subject: &str, key: &str, expected: &mut Expected) {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        match client.try_post("/v1/usages", &event(subject, key, "eu")).await {
            Ok(answer) if answer.status == 201 => break,
            other => assert!(Instant::now() < end, "no write succeeds: {other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    *expected.entry(subject.to_owned()).or_default() += 1;
}

/// Each subject has what was written for it, and nothing is left over.
async fn assert_booked(client: &Client, expected: &Expected, lines: impl Fn(&str) -> Vec<String>) {
    for (subject, quantity) in expected {
        let path = format!(
            "/v1/usages?meter=m&subject={subject}&bucket_size=month&from=2026-06-01T00:00:00Z&to=2026-07-01T00:00:00Z"
        );
        let found = client.get(&path).await.json(200);
        assert_eq!(found[0]["quantity"], json!(quantity), "{subject}: {found}");
        let page = client.get(&format!("/v1/usageevents?subject={subject}&limit=1000")).await.json(200);
        assert_eq!(page["items"].as_array().map(Vec::len), Some(*quantity as usize), "{subject}: {page}");
    }
    assert_eq!(client.total("m").await, expected.values().sum::<i64>().to_string());
    let listed = client.get("/v1/subjects?limit=1000").await.json(200);
    let mut listed: Vec<&str> = listed["items"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|row| row["subject"].as_str())
        .collect();
    listed.sort_unstable();
    assert_eq!(
        listed,
        expected.keys().map(String::as_str).collect::<Vec<_>>(),
        "the subjects that have events"
    );
    // a group needs its row to have a name
    let path = "/v1/usages?meter=m&group_by=region&bucket_size=month&from=2026-06-01T00:00:00Z&to=2026-07-01T00:00:00Z";
    let groups = client.get(path).await.json(200);
    assert_eq!(groups.as_array().map(Vec::len), Some(1), "{groups}");
    for table in ["events", "rollup_subjects", "quota_counters", "idempotency_keys"] {
        let orphans = lines(&format!(
            "SELECT CAST(count(*) AS TEXT) AS line FROM {table} t WHERE NOT EXISTS
                 (SELECT 1 FROM subjects s WHERE s.id = t.subject_id)"
        ));
        assert_eq!(orphans, ["0"], "rows of {table} that belong to nobody");
    }
}

async fn assign(client: &Client, name: &str, subject: &str, limit: i64) {
    let limits = json!([{"meter": "m", "limit": limit, "period": "year", "enforcement": "hard"}]);
    let plan = client.post("/v1/plans", &json!({"name": name, "limits": limits})).await.json(201);
    let path = format!("/v1/plans/subjects/{subject}");
    client.put(&path, &json!({"plan_id": plan["id"]})).await.expect(200);
}

async fn consume(client: &Client, subject: &str, key: &str) -> u16 {
    let body = json!({"meter": "m", "subject": subject, "quantity": 1, "idempotency_key": key,
                      "metadata": {"region": "eu"}});
    client.post("/v1/entitlements/consume", &body).await.status
}

#[test]
fn a_standby_that_lagged_takes_over() {
    run(async {
        let database = Database::durable_postgres();
        let primary = database.cluster();
        let standby = Cluster::standby_of(primary);
        let (one, two, name) = (primary.address(), standby.address(), database.name());
        let dsn = format!("postgres://postgres@{one},{two}/{name}?target_session_attrs=read-write");
        let server = Server::start_with(&database, &[("OPEN_SPANNER_POSTGRES_DSN", &dsn)]);
        let workspace = server.workspace().await;
        meter(&workspace, "m").await;
        let mut expected = Expected::new();
        for n in 0..5 {
            write(&workspace, &format!("s{n}"), &format!("k{n}"), &mut expected).await;
        }
        standby.catch_up_with(primary);
        standby.stop_following();
        // all of this is lost, and the server remembers it
        let mut lost = Expected::new();
        for n in 5..30 {
            write(&workspace, &format!("s{n}"), &format!("k{n}"), &mut lost).await;
        }
        workspace.post("/v1/usages", &event("s1", "west", "west")).await.expect(201);
        meter(&workspace, "lost").await;
        assign(&workspace, "lost", "s6", 1).await;
        assert_eq!(consume(&workspace, "s6", "c1").await, 201);
        primary.kill();
        standby.promote();

        write_when_it_can(&workspace, "s7", "again7", &mut expected).await;
        for subject in ["s20", "s29", "s1"] {
            write(&workspace, subject, &format!("again{subject}"), &mut expected).await;
        }
        for n in [5, 6, 8] {
            write(&workspace, &format!("s{n}"), &format!("k{n}"), &mut expected).await;
        }
        for n in 0..30 {
            write(&workspace, &format!("new{n}"), &format!("n{n}"), &mut expected).await;
        }
        let bulk: Vec<Value> = (0..20).map(|n| event(&format!("bulk{n}"), &format!("b{n}"), "eu")).collect();
        workspace.post("/v1/usages/bulk", &json!(bulk)).await.expect(201);
        expected.extend((0..20).map(|n| (format!("bulk{n}"), 1)));
        // a meter and a plan that are gone do not come back as others
        let gone = json!({"meter": "lost", "subject": "s1", "quantity": 1});
        workspace.post("/v1/usages", &gone).await.error(404, "not_found");
        meter(&workspace, "other").await;
        workspace.post("/v1/usages", &gone).await.error(404, "not_found");
        let progress = workspace.get("/v1/plans/subjects/s6/progress").await;
        assert_ne!(progress.status, 200, "{}", progress.text);
        assign(&workspace, "found", "s9", 2).await;
        write(&workspace, "s9", "again9", &mut expected).await;
        let lines = |sql: &str| standby.lines(name, sql);
        assert_booked(&workspace, &expected, lines).await;
        assert_eq!(lines("SELECT epoch::text AS line FROM installation"), ["2"]);
    });
}

#[test]
fn a_standby_that_kept_up_takes_over() {
    run(async {
        let database = Database::durable_postgres();
        let primary = database.cluster();
        let standby = Cluster::standby_of(primary);
        let (one, two, name) = (primary.address(), standby.address(), database.name());
        let dsn = format!("postgres://postgres@{one},{two}/{name}?target_session_attrs=read-write");
        let server = Server::start_with(&database, &[("OPEN_SPANNER_POSTGRES_DSN", &dsn)]);
        let workspace = server.workspace().await;
        meter(&workspace, "m").await;
        let mut expected = Expected::new();
        for n in 0..20 {
            write(&workspace, &format!("s{n}"), &format!("k{n}"), &mut expected).await;
        }
        standby.catch_up_with(primary);
        primary.kill();
        standby.promote();
        write_when_it_can(&workspace, "s3", "again", &mut expected).await;
        write(&workspace, "new", "new", &mut expected).await;
        // what was acknowledged before is a duplicate
        workspace.post("/v1/usages", &event("s5", "k5", "eu")).await.expect(201);
        assert_booked(&workspace, &expected, |sql| standby.lines(name, sql)).await;
    });
}

#[test]
fn a_dump_is_put_back_under_two_running_servers() {
    run(async {
        let database = Database::postgres();
        let first = Server::start(&database);
        let second = Server::start(&database);
        let workspace = first.workspace().await;
        let other = workspace.at(&second.url());
        meter(&workspace, "m").await;
        let mut expected = Expected::new();
        for n in 0..3 {
            write(&workspace, &format!("s{n}"), &format!("k{n}"), &mut expected).await;
        }
        let directory = tempfile::tempdir().expect("a directory");
        let dump = directory.path().join("dump");
        database.cluster().dump(database.name(), &dump);
        let mut lost = Expected::new();
        for n in 3..12 {
            let client = if n % 2 == 0 { &workspace.key } else { &other };
            write(client, &format!("s{n}"), &format!("k{n}"), &mut lost).await;
        }
        workspace.post("/v1/usages", &event("s1", "west", "west")).await.expect(201);
        assign(&workspace, "lost", "s4", 1).await;
        assert_eq!(consume(&workspace, "s4", "c1").await, 201);
        database.cluster().restore(database.name(), &dump);

        write_when_it_can(&workspace, "s7", "again7", &mut expected).await;
        write_when_it_can(&other, "n1", "n1", &mut expected).await;
        for n in 2..6 {
            write(&other, &format!("n{n}"), &format!("n{n}"), &mut expected).await;
            write(&workspace, &format!("m{n}"), &format!("m{n}"), &mut expected).await;
        }
        write(&other, "s3", "k3", &mut expected).await;
        write(&workspace, "s4", "k4", &mut expected).await;
        assert_booked(&workspace, &expected, |sql| database.lines(sql)).await;
        assert_booked(&other, &expected, |sql| database.lines(sql)).await;
    });
}

/// Puts the rows of a copy back into the file, as `.restore` of the sqlite3 shell does with its pages.
fn put_back(database: &Database, copy: &std::path::Path) {
    let tables = database.lines(
        "SELECT m.name || '|' || group_concat('\"' || c.name || '\"') AS line
         FROM sqlite_master m, pragma_table_info(m.name) c
         WHERE m.type = 'table' AND m.name NOT LIKE 'sqlite%' GROUP BY m.name",
    );
    // the audit trail lets nobody put it back row by row; whoever restores puts the whole file back
    let guards = database.lines("SELECT sql AS line FROM sqlite_master WHERE type = 'trigger'");
    let names = database.lines("SELECT name AS line FROM sqlite_master WHERE type = 'trigger'");
    let mut sql = format!("ATTACH '{}' AS copy; BEGIN IMMEDIATE;", copy.display());
    names.iter().for_each(|name| sql += &format!("DROP TRIGGER {name};"));
    for table in tables {
        let (table, columns) = table.split_once('|').expect("two parts");
        sql += &format!(
            "DELETE FROM main.{table}; INSERT INTO main.{table} ({columns}) SELECT {columns} FROM copy.{table};"
        );
    }
    let guards = guards.join(";");
    database.execute(&format!("{sql} {guards}; COMMIT; DETACH copy"));
}

#[test]
fn a_sqlite_file_goes_back_in_time() {
    run(async {
        let database = Database::sqlite();
        let server = Server::start_with(&database, &[("OPEN_SPANNER_SERVE_WORKERS", "off")]);
        let workspace = server.workspace().await;
        meter(&workspace, "m").await;
        let mut expected = Expected::new();
        for n in 0..3 {
            write(&workspace, &format!("s{n}"), &format!("k{n}"), &mut expected).await;
        }
        let directory = tempfile::tempdir().expect("a directory");
        let copy = directory.path().join("copy.db");
        database.execute(&format!("VACUUM INTO '{}'", copy.display()));
        let mut lost = Expected::new();
        for n in 3..12 {
            write(&workspace, &format!("s{n}"), &format!("k{n}"), &mut lost).await;
        }
        workspace.post("/v1/usages", &event("s1", "west", "west")).await.expect(201);
        put_back(&database, &copy);
        for (subject, key) in [("s7", "again7"), ("n1", "n1"), ("s3", "k3"), ("s1", "again1")] {
            write(&workspace, subject, key, &mut expected).await;
        }
        // what the copy holds is still known to be stored
        workspace.post("/v1/usages", &event("s2", "k2", "eu")).await.expect(201);
        assert_booked(&workspace, &expected, |sql| database.lines(sql)).await;
    });
}

#[test]
fn a_sqlite_file_that_is_replaced_takes_no_writes() {
    run(async {
        let database = Database::sqlite();
        let server = Server::start(&database);
        let workspace = server.workspace().await;
        meter(&workspace, "m").await;
        let mut expected = Expected::new();
        write(&workspace, "s0", "k0", &mut expected).await;
        let Database::Sqlite { path, .. } = &database else { unreachable!("a SQLite database") };
        let aside = path.with_extension("aside");
        std::fs::rename(path, &aside).expect("renamed");
        workspace.post("/v1/usages", &event("s0", "k1", "eu")).await.try_again();
        workspace.get("/ready").await.expect(503);
        assert!(!path.exists(), "no empty database takes its place");
        std::fs::copy(&aside, path).expect("copied");
        workspace.post("/v1/usages", &event("s0", "k2", "eu")).await.try_again();
        std::fs::rename(&aside, path).expect("renamed");
        write(&workspace, "s0", "k3", &mut expected).await;
        until_ready(&workspace).await;
        assert_booked(&workspace, &expected, |sql| database.lines(sql)).await;
    });
}

/// What was found a moment ago is answered for a moment more.
async fn until_ready(workspace: &crate::support::Workspace) {
    for _ in 0..20 {
        if workspace.get("/ready").await.status == 204 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    panic!("not ready two seconds after the file is back");
}
