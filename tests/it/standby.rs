//! A standby that answers queries (`OPEN_SPANNER_POSTGRES_READ_DSN`): never less than what was written, whatever it lacks.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::postgres::Cluster;
use crate::support::{Client, Database, Server, run};

const DAY: &str = "/v1/usages?meter=m&bucket_size=day&from=2026-06-01T00:00:00Z&to=2026-06-02T00:00:00Z";
const POSITION: &str = "open-spanner-position";

async fn write(client: &Client) -> String {
    let event = json!({"meter": "m", "subject": "s", "quantity": 1, "timestamp": "2026-06-01T12:00:00Z"});
    client.post("/v1/usages", &event).await.expect(201).header(POSITION)
}

async fn total(client: &Client) -> (i64, String) {
    let answer = client.get(DAY).await;
    let position = answer.header(POSITION);
    (answer.json(200)[0]["quantity"].as_i64().unwrap_or_default(), position)
}

/// How many answers it gave.
async fn from_standby(server: &Server) -> u64 {
    let text = server.client().get("/metrics").await.expect(200).text;
    let counted =
        text.lines().find_map(|line| line.strip_prefix("open_spanner_db_views_total{from=\"replica\"} "));
    counted.and_then(|count| count.parse().ok()).unwrap_or_default()
}

/// How often this was done in a database.
async fn times(server: &Server, operation: &str) -> u64 {
    let text = server.client().get("/metrics").await.expect(200).text;
    let name = format!("open_spanner_db_query_duration_seconds_count{{operation=\"{operation}\"}} ");
    let counted = text.lines().find_map(|line| line.strip_prefix(&name));
    counted.and_then(|count| count.parse().ok()).unwrap_or_default()
}

#[test]
fn nobody_reads_less_than_was_written() {
    run(async {
        let database = Database::durable_postgres();
        let first = Server::start(&database);
        let ws = first.workspace().await;
        ws.meter("m", "sum").await;
        let standby = Cluster::standby_of(database.cluster());
        let dsn = standby.dsn(database.name());
        let settings =
            [("OPEN_SPANNER_POSTGRES_READ_DSN", dsn.as_str()), ("OPEN_SPANNER_HTTP_METRICS", "true")];
        let server = Server::start_with(&database, &settings);
        let ws = ws.at(&server.url());

        // what is written is read at once, from the standby
        let mut last = String::new();
        for n in 1..=50 {
            last = write(&ws).await;
            assert!(last.contains(':'), "{last}");
            assert_eq!(total(&ws).await.0, n);
        }
        assert!(from_standby(&server).await >= 40, "the standby is asked first");
        assert_eq!(ws.get("/v1/subjects").await.json(200)["items"][0]["usage_events"], 50);

        // one that stays behind is not shown to whoever asks for what is now, but to whoever asks for what was then
        standby.catch_up_with(database.cluster());
        standby.stop_following();
        for n in 51..=55 {
            let newest = write(&ws).await;
            assert_eq!(total(&ws).await, (n, String::new()), "the primary answers");
            assert_eq!(total(&ws.with(POSITION, newest)).await, (n, String::new()));
        }
        let (seen, position) = total(&ws.with(POSITION, last.as_str())).await;
        assert_eq!(seen, 50);
        assert!(!position.is_empty(), "the standby answers");

        // what nobody can have seen costs the standby nothing, and the primary one statement
        let before = times(&server, "replica::reach").await;
        let (epoch, _) = last.split_once(':').expect("an epoch");
        for made_up in [format!("{epoch}:FFFFFFFF/FFFFFFFF"), "77:0/1".to_owned()] {
            for _ in 0..10 {
                assert_eq!(total(&ws.with(POSITION, made_up.as_str())).await, (55, String::new()));
            }
        }
        assert_eq!(times(&server, "replica::reach").await, before);
        // and what it lags behind a few looks
        let newest = write(&ws).await;
        assert_eq!(total(&ws.with(POSITION, newest)).await, (56, String::new()));
        let looks = times(&server, "replica::reach").await - before;
        assert!((1..=8).contains(&looks), "{looks}");

        // nor one that is another database by now, or gone
        standby.promote();
        assert_eq!(total(&ws).await.0, 56);
        // also for whoever is content with what it had then
        assert_eq!(total(&ws.with(POSITION, last.as_str())).await, (56, String::new()));
        standby.kill();
        tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
        assert_eq!(total(&ws).await.0, 56);
        assert_eq!(total(&ws.with(POSITION, "nonsense")).await.0, 56);
    });
}

/// Epochs of two installations have the same numbers, and the log of one may be far ahead of the other's.
#[test]
fn a_standby_of_another_installation_is_not_read_from() {
    run(async {
        let (database, other) = (Database::durable_postgres(), Database::durable_postgres());
        let elsewhere = Server::start(&other);
        let far = elsewhere.workspace().await;
        far.meter("m", "sum").await;
        for _ in 0..3 {
            write(&far).await;
            other.cluster().execute_in(other.name(), "SELECT pg_switch_wal()");
        }
        let standby = Cluster::standby_of(other.cluster());
        standby.catch_up_with(other.cluster());
        let dsn = standby.dsn(other.name());
        let settings =
            [("OPEN_SPANNER_POSTGRES_READ_DSN", dsn.as_str()), ("OPEN_SPANNER_HTTP_METRICS", "true")];
        let server = Server::start_with(&database, &settings);
        let ws = server.workspace().await;
        ws.meter("m", "sum").await;
        for n in 1..=3 {
            write(&ws).await;
            assert_eq!(total(&ws).await, (n, String::new()), "the primary answers");
        }
        assert_eq!(from_standby(&server).await, 0);
        assert!(server.log().join("\n").contains("another history"), "{:?}", server.log());
    });
}

/// A role that may not read there what it may on the primary, a page that is damaged, a pooler that mixes sessions.
#[test]
fn what_a_standby_cannot_read_the_primary_does() {
    run(async {
        let database = Database::durable_postgres();
        let first = Server::start(&database);
        let ws = first.workspace().await;
        ws.meter("m", "sum").await;
        let role = "CREATE ROLE reader LOGIN; GRANT SELECT ON installation TO reader";
        database.cluster().execute_in(database.name(), role);
        let standby = Cluster::standby_of(database.cluster());
        let dsn = standby.dsn(database.name()).replace("postgres@", "reader@");
        let server = Server::start_with(&database, &[("OPEN_SPANNER_POSTGRES_READ_DSN", &dsn)]);
        let ws = ws.at(&server.url());
        for n in 1..=3 {
            write(&ws).await;
            assert_eq!(total(&ws).await, (n, String::new()), "the primary answers");
        }
        assert!(server.log().join("\n").contains("permission denied"), "{:?}", server.log());
    });
}

/// Asks until the standby answers; where it was then.
async fn position_of_standby(client: &Client) -> String {
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        let (_, position) = total(client).await;
        if !position.is_empty() {
            return position;
        }
        assert!(Instant::now() < end, "the standby answers");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Nothing says that it is gone: its machine takes what is sent, and nothing comes back.
#[test]
fn a_standby_that_has_stopped_is_left_alone() {
    run(async {
        let database = Database::durable_postgres();
        let first = Server::start(&database);
        let ws = first.workspace().await;
        ws.meter("m", "sum").await;
        write(&ws).await;
        let standby = Cluster::standby_of(database.cluster());
        let dsn = standby.dsn(database.name());
        let settings =
            [("OPEN_SPANNER_POSTGRES_READ_DSN", dsn.as_str()), ("OPEN_SPANNER_DB_STATEMENT_TIMEOUT", "3s")];
        let server = Server::start_with(&database, &settings);
        let ws = ws.at(&server.url());
        // content with what it is known to have, so that nobody need look at it
        let ws = ws.with(POSITION, position_of_standby(&ws).await);
        standby.signal_all("STOP");
        let lost = ws.get(DAY).await;
        assert!([200, 503].contains(&lost.status), "{} {}", lost.status, lost.text);
        let began = Instant::now();
        for _ in 0..5 {
            assert_eq!(total(&ws).await, (1, String::new()), "the primary answers");
        }
        assert!(began.elapsed() < Duration::from_secs(12), "{:?}", began.elapsed());
        standby.signal_all("CONT");
        position_of_standby(&ws).await;
    });
}

/// Where it is is asked once for all who want to know: that there is no answer is, too.
#[test]
fn a_primary_that_has_stopped_does_not_make_callers_wait_for_each_other() {
    run(async {
        let database = Database::durable_postgres();
        let first = Server::start(&database);
        let ws = first.workspace().await;
        ws.meter("m", "sum").await;
        write(&ws).await;
        let standby = Cluster::standby_of(database.cluster());
        let dsn = standby.dsn(database.name());
        let settings = [
            ("OPEN_SPANNER_POSTGRES_READ_DSN", dsn.as_str()),
            ("OPEN_SPANNER_DB_STATEMENT_TIMEOUT", "2s"),
            ("OPEN_SPANNER_DB_ACQUIRE_TIMEOUT", "2s"),
            ("OPEN_SPANNER_CACHE_TTL", "5s"),
        ];
        let server = Server::start_with(&database, &settings);
        let ws = ws.at(&server.url());
        total(&ws).await;
        database.cluster().signal_all("STOP");
        let began = Instant::now();
        let mut calls = Vec::new();
        for _ in 0..20 {
            let ws = ws.clone();
            calls.push(tokio::spawn(async move { ws.get(DAY).await.status }));
        }
        for call in calls {
            call.await.expect("it is answered");
        }
        let took = began.elapsed();
        database.cluster().signal_all("CONT");
        assert!(took < Duration::from_secs(25), "{took:?}");
    });
}

/// Leads what connects to it to one server or another, and can hold back what leads to one.
#[derive(Clone)]
struct Relay {
    port: u16,
    lead: Arc<(Mutex<Lead>, Condvar)>,
}

struct Lead {
    target: String,
    held: Option<String>,
    /// What it was connected to.
    reached: Vec<String>,
}

impl Relay {
    fn to(target: String) -> Relay {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let lead = Lead { target, held: None, reached: Vec::new() };
        let relay = Relay { port, lead: Arc::new((Mutex::new(lead), Condvar::new())) };
        let accepting = relay.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let target = accepting.reach();
                let Ok(server) = TcpStream::connect(&target) else { continue };
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let (from, to) = (from.try_clone().expect("a socket"), to.try_clone().expect("a socket"));
                    let (relay, target) = (accepting.clone(), target.clone());
                    std::thread::spawn(move || relay.pump(from, to, &target));
                }
            }
        });
        relay
    }

    fn reach(&self) -> String {
        let mut lead = self.lead.0.lock().expect("no holder panics");
        let target = lead.target.clone();
        lead.reached.push(target.clone());
        target
    }

    fn pump(&self, mut from: TcpStream, mut to: TcpStream, target: &str) {
        let mut bytes = [0; 16 * 1024];
        while let Ok(count) = from.read(&mut bytes)
            && count > 0
        {
            let (lead, changed) = &*self.lead;
            let lead = lead.lock().expect("no holder panics");
            drop(
                changed.wait_while(lead, |lead| lead.held.as_deref() == Some(target)).expect("nor this one"),
            );
            if to.write_all(&bytes[..count]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    }

    fn lead_to(&self, target: String, held: Option<String>) {
        let mut lead = self.lead.0.lock().expect("no holder panics");
        (lead.target, lead.held) = (target, held);
        self.lead.1.notify_all();
    }
}

/// Where a standby is was asked on another connection: each says it of itself before it is read from.
#[test]
fn a_connection_that_leads_to_an_older_standby_is_not_read_from() {
    run(async {
        let database = Database::durable_postgres();
        let first = Server::start(&database);
        let ws = first.workspace().await;
        ws.meter("m", "sum").await;
        write(&ws).await;
        let old = Cluster::standby_of(database.cluster());
        old.stop_following();
        write(&ws).await;
        let standby = Cluster::standby_of(database.cluster());
        let relay = Relay::to(standby.address());
        let dsn = standby.dsn(database.name());
        let dsn = dsn.replace(&standby.address(), &format!("127.0.0.1:{}", relay.port));
        let server = Server::start_with(&database, &[("OPEN_SPANNER_POSTGRES_READ_DSN", &dsn)]);
        let ws = ws.at(&server.url());
        let ws = ws.with(POSITION, write(&ws).await);
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            let (seen, position) = total(&ws).await;
            assert_eq!(seen, 3);
            if !position.is_empty() {
                break;
            }
            assert!(Instant::now() < end, "the standby answers");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }

        // the one that was asked is busy, and another connection leads elsewhere
        relay.lead_to(old.address(), Some(standby.address()));
        let mut calls = Vec::new();
        for _ in 0..3 {
            let ws = ws.clone();
            calls.push(tokio::spawn(async move { total(&ws).await }));
            tokio::time::sleep(Duration::from_millis(400)).await;
        }
        let answered = calls.iter().filter(|call| call.is_finished()).count();
        relay.lead_to(standby.address(), None);
        for call in calls {
            assert_eq!(call.await.expect("the call does not panic").0, 3);
        }
        assert!(answered > 0, "not all wait for the one that is busy");
        let reached = relay.lead.0.lock().expect("no holder panics").reached.clone();
        assert!(reached.contains(&old.address()), "{reached:?}");
    });
}
