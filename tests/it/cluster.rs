//! `open-spanner migrate --distribute`, and what servers are on a Citus cluster. Other suites run on one too, where one is
//! installed (`scripts/test`).

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::database::Home;
use crate::support::program::{self, Run};
use crate::support::{Client, Database, Server, on_both_databases, run};

on_both_databases!(what_has_no_nodes_is_not_laid_out);

async fn what_has_no_nodes_is_not_laid_out(database: Database) {
    if let Database::Postgres { cluster, .. } = &database
        && matches!(**cluster, Home::Coordinator(_))
    {
        return;
    }
    let run = database.distribute();
    assert_eq!(run.code, Some(2), "{run:#?}");
    let words = match database {
        Database::Sqlite { .. } => "SQLite is one file",
        Database::Postgres { .. } => "no extension citus",
    };
    assert!(run.stderr.contains(words), "{run:#?}");
    // the schema is there all the same
    assert_eq!(database.count("workspaces"), 0);
}

fn event(key: &str, subject: &str) -> serde_json::Value {
    json!({"meter": "m", "subject": subject, "quantity": 1, "timestamp": "2026-06-01T12:00:00Z",
           "idempotency_key": key})
}

const DAY: &str = "/v1/usages?meter=m&bucket_size=day&from=2026-06-01T00:00:00Z&to=2026-06-02T00:00:00Z";

#[test]
fn tables_are_laid_out_once_and_while_nobody_works() {
    run(async {
        let test = "cluster::tables_are_laid_out_once_and_while_nobody_works";
        let Some(database) = Database::over_nodes(test) else { return };
        let mut server = Server::start_to_be_restarted(&database);
        assert!(server.log().join("\n").contains("nothing lies on its nodes"), "{:?}", server.log());
        let ws = server.workspace().await;
        ws.meter("m", "sum").await;
        for n in 0..20 {
            ws.post("/v1/usages", &event(&format!("k{n}"), &format!("s{n}"))).await.expect(201);
        }
        let refused = database.distribute();
        assert!(refused.code == Some(1) && refused.stderr.contains("the database is in use"), "{refused:#?}");
        server.terminate();

        let done = database.distribute().succeeded().stdout;
        assert!(done.contains("events lies on the nodes by subject_id"), "{done}");
        assert!(done.contains("citus.max_cached_conns_per_worker is 16 in this database now"), "{done}");
        let again = database.distribute().succeeded().stdout;
        assert!(again.contains("events lies on the nodes already"), "{again}");
        assert!(again.contains("citus.max_adaptive_executor_pool_size is 1 already"), "{again}");

        server.restart();
        let log = server.log().join("\n");
        assert!(log.contains("events lie on the nodes of a Citus cluster"), "{log}");
        // `version` is that of the process
        assert!(log.contains("\"citus\":"), "{log}");
        assert!(!log.contains("makes commits slow"), "{log}");
        // what was there before is there still, and is added to
        assert_eq!(ws.get(DAY).await.json(200)[0]["quantity"], 20);
        assert_eq!(ws.post("/v1/usages", &event("k7", "s7")).await.json(201)["subject"], "s7");
        ws.post("/v1/usages", &event("new", "s7")).await.expect(201);
        assert_eq!(ws.get(DAY).await.json(200)[0]["quantity"], 21);
        assert_eq!(ws.get(&format!("{DAY}&subject=s7")).await.json(200)[0]["quantity"], 2);
    });
}

/// One that ended before it was done is done by the next, down to the rows that nobody reads any more.
#[test]
fn a_layout_that_was_cut_off_is_finished() {
    run(async {
        let test = "cluster::a_layout_that_was_cut_off_is_finished";
        let Some(database) = Database::over_nodes(test) else { return };
        let mut server = Server::start_to_be_restarted(&database);
        let ws = server.workspace().await;
        ws.meter("m", "sum").await;
        for n in 0..20 {
            ws.post("/v1/usages", &event(&format!("k{n}"), &format!("s{n}"))).await.expect(201);
        }
        server.terminate();
        database.make("SELECT create_distributed_table('events', 'subject_id', colocate_with => 'none')");
        let of_coordinator = "SELECT sum(pg_relation_size(inhrelid))::text AS line FROM pg_inherits
                              WHERE inhparent = 'events'::regclass";
        assert_ne!(database.lines(of_coordinator), ["0"], "a copy is left behind");

        let done = database.distribute().succeeded().stdout;
        assert!(done.contains("events lies on the nodes already"), "{done}");
        assert!(done.contains("idempotency_keys lies on the nodes by key"), "{done}");
        assert_eq!(database.lines(of_coordinator), ["0"]);
        server.restart();
        assert_eq!(ws.get(DAY).await.json(200)[0]["quantity"], 20);
        assert_eq!(ws.post("/v1/usages", &event("k7", "s7")).await.json(201)["subject"], "s7");
        assert_eq!((database.count("events"), database.count("idempotency_keys")), (20, 20));
    });
}

fn command(database: &Database, arguments: &[&str]) -> Run {
    let own = database.settings();
    let settings: Vec<(&str, &str)> = own.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let directory = tempfile::tempdir().expect("a directory");
    program::run(arguments, &settings, directory.path())
}

/// Each node is seen at another instant: what a backup of a busy cluster held would be of none.
#[test]
fn a_backup_is_made_while_nobody_works() {
    run(async {
        let test = "cluster::a_backup_is_made_while_nobody_works";
        let Some(database) = Database::over_nodes(test) else { return };
        database.distribute().succeeded();
        let mut server = Server::start(&database);
        let ws = server.workspace().await;
        ws.meter("m", "sum").await;
        for n in 0..20 {
            ws.post("/v1/usages", &event(&format!("k{n}"), &format!("s{n}"))).await.expect(201);
        }
        let folder = tempfile::tempdir().expect("a directory");
        let file = folder.path().join("backup").display().to_string();
        let refused = command(&database, &["backup", &file]);
        assert!(refused.code == Some(1) && refused.stderr.contains("at one instant"), "{refused:#?}");
        server.terminate();
        command(&database, &["backup", &file]).succeeded();
        command(&database, &["backup", "verify", &file]).succeeded();

        let Some(restored) = Database::over_nodes(test) else { return };
        command(&restored, &["restore", &file]).succeeded();
        restored.distribute().succeeded();
        let server = Server::start(&restored);
        let there = ws.at(&server.url());
        assert_eq!(there.get(DAY).await.json(200)[0]["quantity"], 20);
        assert_eq!(there.post("/v1/usages", &event("k7", "s7")).await.json(201)["subject"], "s7");
        assert_eq!((restored.count("events"), restored.count("idempotency_keys")), (20, 20));
    });
}

/// Writes until one is stored.
async fn stored_at_last(client: &Client, key: &str, subject: &str) {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let answer = client.post("/v1/usages", &event(key, subject)).await;
        if answer.status == 201 {
            return;
        }
        assert!(answer.status == 503 && Instant::now() < end, "{} {}", answer.status, answer.text);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[test]
fn nothing_is_lost_or_doubled_when_a_node_is_killed() {
    run(async {
        let test = "cluster::nothing_is_lost_or_doubled_when_a_node_is_killed";
        let Some(database) = Database::over_own_nodes(test) else { return };
        database.distribute().succeeded();
        let Database::Postgres { cluster, .. } = &database else { return };
        let Home::Nodes(nodes) = &**cluster else { return };
        let server = Server::start(&database);
        let ws = server.workspace().await;
        ws.meter("m", "sum").await;
        for n in 0..10 {
            stored_at_last(&ws, &format!("before{n}"), &format!("s{n}")).await;
        }
        nodes.nodes[0].kill();
        // what needs the node is refused, to be tried again
        let mut refused = 0;
        for n in 0..20 {
            let answer = ws.post("/v1/usages", &event(&format!("while{n}"), &format!("s{n}"))).await;
            assert!([201, 503].contains(&answer.status), "{} {}", answer.status, answer.text);
            refused += usize::from(answer.status == 503);
        }
        assert!(refused > 0, "no event needed the node");
        nodes.nodes[0].start();
        for n in 0..20 {
            stored_at_last(&ws, &format!("while{n}"), &format!("s{n}")).await;
        }
        assert_eq!(ws.get(DAY).await.json(200)[0]["quantity"], 30);
        assert_eq!((database.count("events"), database.count("idempotency_keys")), (30, 30));
    });
}

/// The ports of the nodes that an event lies on: that of its subject and that of its key.
fn nodes_of(database: &Database, key: &str) -> Vec<String> {
    let found = database.lines(&format!(
        "SELECT subject_id::text || ' ' || encode(id, 'hex') AS line FROM events WHERE idempotency_key = '{key}'"
    ));
    let (subject, id) = found[0].split_once(' ').expect("both");
    let ledger_key = database
        .lines(&format!(
            "SELECT encode(key, 'hex') AS line FROM idempotency_keys WHERE event_id = decode('{id}', 'hex')"
        ))
        .remove(0);
    let place = |table: &str, value: &str| {
        database
            .lines(&format!(
                "SELECT n.nodeport::text AS line FROM pg_dist_placement p JOIN pg_dist_node n ON n.groupid = p.groupid
                 WHERE p.shardid = get_shard_id_for_distribution_column('{table}', {value})"
            ))
            .remove(0)
    };
    vec![
        place("events", &format!("{subject}::bigint")),
        place("idempotency_keys", &format!("decode('{ledger_key}', 'hex')")),
    ]
}

#[test]
fn a_node_that_is_away_stops_its_share_and_no_more() {
    run(async {
        let test = "cluster::a_node_that_is_away_stops_its_share_and_no_more";
        let Some(database) = Database::over_own_nodes(test) else { return };
        database.distribute().succeeded();
        let Database::Postgres { cluster, .. } = &database else { return };
        let Home::Nodes(nodes) = &**cluster else { return };
        let server = Server::start(&database);
        let ws = server.workspace().await;
        ws.meter("m", "sum").await;
        for n in 0..10 {
            stored_at_last(&ws, &format!("before{n}"), &format!("s{n}")).await;
        }
        nodes.nodes[0].kill();
        let mut stored = Vec::new();
        for n in 0..30 {
            let answer = ws.post("/v1/usages", &event(&format!("while{n}"), &format!("s{}", n % 10))).await;
            assert!([201, 503].contains(&answer.status), "{} {}", answer.status, answer.text);
            stored.push(answer.status == 201);
        }
        // what is counted does not need the node
        let accepted = stored.iter().filter(|stored| **stored).count();
        assert_eq!(ws.get(DAY).await.json(200)[0]["quantity"], 10 + accepted);
        ws.get("/v1/usageingestions").await.expect(200);
        nodes.nodes[0].start();
        for n in 0..30 {
            stored_at_last(&ws, &format!("while{n}"), &format!("s{}", n % 10)).await;
        }
        assert_eq!(ws.get(DAY).await.json(200)[0]["quantity"], 40);
        let (_, port) = nodes.nodes[0]
            .address()
            .split_once(':')
            .map(|(h, p)| (h.to_owned(), p.to_owned()))
            .expect("both");
        for (n, was_stored) in stored.into_iter().enumerate() {
            let needed = nodes_of(&database, &format!("while{n}"));
            assert_eq!(was_stored, !needed.contains(&port), "while{n} needed {needed:?}, {port} was away");
        }
    });
}

#[test]
fn others_go_on_while_a_node_is_away() {
    run(async {
        let test = "cluster::others_go_on_while_a_node_is_away";
        let Some(database) = Database::over_own_nodes(test) else { return };
        database.distribute().succeeded();
        let Database::Postgres { cluster, .. } = &database else { return };
        let Home::Nodes(nodes) = &**cluster else { return };
        let server = Server::start(&database);
        let ws = server.workspace().await;
        ws.meter("m", "sum").await;
        for n in 0..12 {
            stored_at_last(&ws, &format!("before{n}"), &format!("s{n}")).await;
        }
        nodes.nodes[0].kill();
        let began = Instant::now();
        let callers = (0..12).map(|caller| {
            let client = ws.key.clone();
            tokio::spawn(async move {
                let (mut stored, mut refused, mut slowest) = (0, Vec::new(), Duration::ZERO);
                for n in 0.. {
                    let (sent, key) = (Instant::now(), format!("{caller}-{n}"));
                    if sent > began + Duration::from_secs(8) {
                        break;
                    }
                    let answer = client.post("/v1/usages", &event(&key, &format!("s{caller}"))).await;
                    match answer.status {
                        201 => stored += 1,
                        503 => refused.push(key),
                        _ => panic!("{} {}", answer.status, answer.text),
                    }
                    // by then the node is known to be away
                    if sent > began + Duration::from_secs(5) {
                        slowest = slowest.max(sent.elapsed());
                    }
                }
                (caller, stored, refused, slowest)
            })
        });
        let (mut total, mut refused) = (12, Vec::new());
        for caller in callers.collect::<Vec<_>>() {
            let (caller, stored, again, slowest) = caller.await.expect("all are answered");
            assert!(slowest < Duration::from_secs(3), "{caller} waited {slowest:?}");
            total += stored;
            refused.extend(again.into_iter().map(|key| (key, format!("s{caller}"))));
        }
        assert!(total > 30 && !refused.is_empty(), "{total} stored, {} refused", refused.len());
        assert_eq!(ws.get(DAY).await.json(200)[0]["quantity"], total);
        nodes.nodes[0].start();
        // not all: they are many
        for (key, subject) in refused.iter().take(40) {
            stored_at_last(&ws, key, subject).await;
            total += 1;
        }
        assert_eq!(ws.get(DAY).await.json(200)[0]["quantity"], total);
        assert_eq!(database.count("idempotency_keys"), total);
    });
}

#[test]
fn rows_lie_where_the_server_believes() {
    use open_spanner::db::placement::{hash_of_bytes, hash_of_number};
    let Some(database) = Database::over_nodes("cluster::rows_lie_where_the_server_believes") else { return };
    for number in [0, 1, 42, 1 << 32, i64::MAX, 1_234_567_890_123_456_789] {
        let told = database.lines(&format!("SELECT worker_hash({number}::bigint)::text AS line"));
        assert_eq!(told, [hash_of_number(number).to_string()], "{number}");
    }
    for length in 0..40 {
        let bytes: Vec<u8> = (0..length).map(|n| (n * 37 + 11) as u8).collect();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let told = database.lines(&format!("SELECT worker_hash(decode('{hex}', 'hex'))::text AS line"));
        assert_eq!(told, [hash_of_bytes(&bytes).to_string()], "{hex}");
    }
}
