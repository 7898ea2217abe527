//! A database of a Go server that is newer than the last release: its invitations, decisions, sums of pruned events and
//! deliveries come over as well, and what is not known of it is named.

use open_spanner::metering::time::Timestamp;
use serde_json::{Value, json};

use super::{
    Imported, KEY, OTHER_KEY, PASSWORD, WORKSPACE, counts, import, months, ours_again, place, theirs,
};
use crate::support::{Client, Database, Server, on_both_databases};

on_both_databases!(what_newer_servers_have_comes_over, sums_of_pruned_events_are_counted_once);

const INVITED: &str = "osp_wsi_IIIIIIIIIIIIIIIIIIIIIIIIIIIIIIIIIIIIIIIIIII";
const ADA: &str = "22222222-0000-4000-8000-000000000001";
const RULE: &str = "66666666-0000-4000-8000-000000000011";

const TABLES: &str = "
    ALTER TABLE plan_limits ADD COLUMN enforcement TEXT NOT NULL DEFAULT 'hard';
    ALTER TABLE plan_limits ADD COLUMN failure_policy TEXT NOT NULL DEFAULT 'fail_closed';
    CREATE TABLE auth_workspace_invitations (id TEXT PRIMARY KEY, workspace_id TEXT NOT NULL, email TEXT NOT NULL, role TEXT NOT NULL,
        token_hash TEXT NOT NULL, invited_by_user_id TEXT NOT NULL, expires_at TEXT NOT NULL, accepted_at TEXT,
        accepted_by_user_id TEXT, revoked_at TEXT, created_at TEXT NOT NULL);
    CREATE TABLE consumption_decisions (workspace_id TEXT NOT NULL, idempotency_key TEXT NOT NULL, response TEXT NOT NULL,
        created_at TEXT NOT NULL, subject TEXT, meter_name TEXT, accepted BOOLEAN, evaluation_failed BOOLEAN, enforcement TEXT, state TEXT);
    CREATE TABLE consumption_decision_prune_runs (id TEXT PRIMARY KEY, workspace_id TEXT NOT NULL, before TEXT NOT NULL,
        dry_run BOOLEAN NOT NULL, deleted INTEGER NOT NULL, created_at TEXT NOT NULL);
    CREATE TABLE usage_hourly_rollups (workspace_id TEXT NOT NULL, meter_name TEXT NOT NULL, subject TEXT NOT NULL,
        bucket_start TEXT NOT NULL, metadata TEXT NOT NULL, event_count INTEGER NOT NULL, quantity_sum DOUBLE PRECISION NOT NULL,
        quantity_min DOUBLE PRECISION NOT NULL, quantity_max DOUBLE PRECISION NOT NULL, first_quantity DOUBLE PRECISION NOT NULL,
        first_event_time TEXT NOT NULL, first_event_id TEXT NOT NULL, last_quantity DOUBLE PRECISION NOT NULL,
        last_event_time TEXT NOT NULL, last_event_id TEXT NOT NULL, rolled_up_at TEXT NOT NULL);
    CREATE TABLE usage_rollup_runs (id TEXT PRIMARY KEY);
    INSERT INTO usage_rollup_runs VALUES ('a');
    CREATE TABLE colours_of_a_newer_version (id TEXT PRIMARY KEY, colour TEXT);
    INSERT INTO colours_of_a_newer_version VALUES ('a', 'red'), ('b', 'blue');
    CREATE TABLE alert_events (id TEXT PRIMARY KEY, rule_id TEXT NOT NULL, type TEXT NOT NULL, value DOUBLE PRECISION NOT NULL,
        message TEXT NOT NULL, group_key TEXT NOT NULL, group_value TEXT NOT NULL, created_at TEXT NOT NULL);
    CREATE TABLE alert_deliveries (id TEXT PRIMARY KEY, event_id TEXT NOT NULL, trigger_type TEXT NOT NULL, status TEXT NOT NULL,
        status_code INTEGER, error TEXT NOT NULL, duration_ms INTEGER NOT NULL, attempted_at TEXT NOT NULL, created_at TEXT NOT NULL);
    CREATE TABLE alert_delivery_jobs (id INTEGER PRIMARY KEY, public_id TEXT NOT NULL, event_id TEXT NOT NULL, destination_id TEXT,
        payload TEXT NOT NULL, status TEXT NOT NULL, attempts INTEGER NOT NULL, next_attempt_at TEXT, locked_until TEXT,
        last_error TEXT, created_at TEXT NOT NULL, updated_at TEXT NOT NULL);";

/// A row of the sums; acme's in eu.
fn sum(hour: &str, count: u32, sum: &str) -> String {
    format!(
        "('{WORKSPACE}', 'calls', 'acme', '{hour}:00:00Z', '{{\"region\":\"eu\"}}', {count}, {sum}, 0.1, 0.3, 0.1, '{hour}:00:00Z',
          '88888888-0000-4000-8000-0000000000f1', 0.3, '{hour}:30:00.5Z', '88888888-0000-4000-8000-0000000000f2', '2026-03-01T00:00:00Z')"
    )
}

fn answer(accepted: bool, event: &str) -> String {
    json!({"Accepted": accepted, "Replayed": false, "EvaluationFailed": false,
           "Event": {"ID": event, "IdempotencyKey": "", "Subject": "", "MeterName": "", "Quantity": 0.0, "EventTime": "0001-01-01T00:00:00Z",
                     "ReceivedAt": "0001-01-01T00:00:00Z", "Metadata": {"region": "eu"}},
           "Quota": {"Allowed": accepted, "State": if accepted { "ok" } else { "exceeded" }, "Subject": "acme", "MeterName": "calls",
                     "Quantity": 0.1, "Current": 1, "Projected": 1.1, "Limit": 1000.5, "Remaining": 999.4, "Overage": 0, "PlanID": "p",
                     "PlanName": "Starter", "Period": "month", "From": "2026-01-01T00:00:00Z", "To": "2026-02-01T00:00:00Z",
                     "PeriodResetAt": "2026-02-01T00:00:00Z", "RetryAfterSeconds": 0, "Enforcement": "hard",
                     "FailurePolicy": "fail_closed", "Message": "quota is available"}})
    .to_string()
}

fn newer() -> [Database; 2] {
    let hash = super::hash_of(INVITED);
    // older ones are pruned by a server
    let now = Timestamp::now().to_exact_text();
    theirs().map(|theirs| {
        let job = |at: u32, status: &str| {
            format!("({at}, '77777777-0000-4000-8000-0000000000c{at}', '77777777-0000-4000-8000-0000000000e{at}', NULL, \
                     '{{\"type\":\"triggered\",\"n\":{at}}}', '{status}', {at}, NULL, NULL, 'no answer', '2026-01-05T00:00:00Z', '2026-01-05T00:00:0{at}Z')")
        };
        let attempt = |id: &str, status: &str, second: u32| {
            format!("('77777777-0000-4000-8000-0000000000a{id}', '77777777-0000-4000-8000-0000000000e2', 'webhook', '{status}', 500, 'no', 5,
                     '2026-01-05T00:00:0{second}.5Z', '2026-01-05T00:00:00Z')")
        };
        let event = |at: u32| {
            format!("('77777777-0000-4000-8000-0000000000e{at}', '{RULE}', 'triggered', 2.5, 'high', '', '', '2026-01-05T00:00:00Z')")
        };
        theirs.make(&[
            TABLES.to_owned(),
            format!(
                "INSERT INTO auth_workspace_invitations VALUES
                     ('22222222-0000-4000-8000-0000000000b1', '{WORKSPACE}', 'new@example.com', 'viewer', '{hash}', '{ADA}',
                      '2099-01-01T00:00:00Z', NULL, NULL, NULL, '2026-01-01T00:00:00Z'),
                     ('22222222-0000-4000-8000-0000000000b2', '{WORKSPACE}', 'boss@example.com', 'owner', '{}', '{ADA}',
                      '2099-01-01T00:00:00Z', NULL, NULL, NULL, '2026-01-01T00:00:00Z');",
                super::hash_of("other")
            ),
            format!(
                "INSERT INTO consumption_decisions (workspace_id, idempotency_key, response, created_at) VALUES
                     ('{WORKSPACE}', 'k-1', '{}', '{now}'), ('{WORKSPACE}', 'd-2', '{}', '{now}'),
                     ('{WORKSPACE}', 'd-3', '{{}}', '{now}');",
                answer(true, "88888888-0000-4000-8000-000000000001"),
                answer(false, "")
            ),
            format!(
                "INSERT INTO consumption_decision_prune_runs VALUES
                     ('33333333-0000-4000-8000-0000000000a1', '{WORKSPACE}', '2025-12-01T00:00:00Z', false, 7, '2026-01-01T00:00:00Z'),
                     ('33333333-0000-4000-8000-0000000000a2', '{WORKSPACE}', '2025-12-01T00:00:00Z', true, 7, '2026-01-01T00:00:00Z');"
            ),
            format!(
                "INSERT INTO usage_hourly_rollups VALUES {}, {};",
                sum("2025-12-05T10", 3, "0.6"),
                sum("2026-01-05T00", 2, "0.4")
            ),
            format!("INSERT INTO alert_events VALUES {}, {};", event(1), event(2)),
            format!("INSERT INTO alert_deliveries VALUES {}, {};", attempt("1", "failed", 1), attempt("2", "delivered", 2)),
            format!("INSERT INTO alert_delivery_jobs VALUES {}, {}", job(1, "pending"), job(2, "delivered")),
        ]
        .join("\n"));
        theirs
    })
}

async fn what_newer_servers_have_comes_over(ours: Database) {
    for theirs in newer() {
        let ours = ours_again(&ours);
        let Imported { run, left_out } = import(&ours, &place(&theirs), &[]);
        let run = run.succeeded();
        for (table, expected) in [
            ("auth_workspace_invitations", [1, 0, 1]),
            ("consumption_decisions", [2, 0, 1]),
            ("consumption_decision_prune_runs", [1, 0, 1]),
            ("usage_hourly_rollups", [2, 0, 0]),
            ("alert_deliveries", [2, 0, 0]),
            ("alert_delivery_jobs", [2, 0, 0]),
        ] {
            assert_eq!(counts(&run, table), expected, "{table}: {}", run.stdout);
        }
        for note in [
            "2 rows of colours_of_a_newer_version are not read: the table is not known",
            "1 rows of usage_rollup_runs are not read: the sums themselves are taken",
            "calls: 5 events more are gone there, sum 1 (added as floats): all of them are counted here",
        ] {
            assert!(run.stdout.contains(note), "{note}\n{}", run.stdout);
        }
        let reason = |id: &str| {
            let line =
                left_out.iter().find(|line| line["id"].as_str().is_some_and(|found| found.contains(id)));
            line.unwrap_or_else(|| panic!("{id}: {left_out:#?}"))["reason"].to_string()
        };
        assert!(reason("0000000000b2").contains("role") && reason("d-3").contains("response"));
        let limit = "SELECT enforcement || ' ' || failure_policy AS line FROM plan_limits";
        assert_eq!(ours.lines(limit), ["hard fail_closed"]);
        let sent = "SELECT e.public_id || ' ' || d.status || ' ' || CAST(d.attempts AS TEXT) || ' ' || CAST(d.payload AS TEXT) AS line
                    FROM alert_deliveries d JOIN alert_events e ON e.public_id = d.event_id ORDER BY 1";
        let sent = ours.lines(sent);
        assert!(sent[0].contains("e1 dead_letter 1") && sent[0].contains("triggered"), "{sent:?}");
        assert!(sent[1].contains("e2 delivered 2") && sent[1].contains("triggered"), "{sent:?}");
        let again = import(&ours, &place(&theirs), &["--compare"]).run.succeeded();
        assert!(again.stdout.contains("nothing is missing here"), "{}", again.stdout);
        let server = Server::start(&ours);
        invitations_and_decisions_work(&server).await;
    }
}

async fn invitations_and_decisions_work(server: &Server) {
    let shown = server.client().get(&format!("/v1/auth/workspace-invitations/{INVITED}")).await.json(200);
    assert_eq!((&shown["role"], &shown["status"]), (&json!("viewer"), &json!("pending")));
    let person = json!({"email": "new@example.com", "password": PASSWORD});
    server.client().post("/v1/auth/users", &person).await.expect(201);
    let signed_in = server.client().post("/v1/auth/sessions", &person).await.expect(201);
    let access = signed_in.cookie("open_spanner_access").expect("a cookie");
    let session = server.client().with("cookie", format!("open_spanner_access={access}"));
    let path = format!("/v1/auth/workspace-invitations/{INVITED}/accept");
    let joined = session.post_text(&path, "").await.json(200);
    assert_eq!(joined["user"]["workspace_id"], WORKSPACE, "{joined}");
    let key = server.client().with_key(KEY);
    let consume = async |key_text: &str, status: u16| {
        let body = json!({"idempotency_key": key_text, "meter": "calls", "subject": "acme", "quantity": 0.1, "metadata": {"region": "eu"}});
        key.post("/v1/entitlements/consume", &body).await.json(status)
    };
    let accepted = consume("k-1", 201).await;
    assert_eq!((&accepted["replayed"], &accepted["accepted"]), (&json!(true), &json!(true)), "{accepted}");
    assert_eq!(accepted["event"]["id"], "88888888-0000-4000-8000-000000000001");
    let refused = consume("d-2", 429).await;
    assert_eq!((&refused["replayed"], &refused["accepted"]), (&json!(true), &json!(false)), "{refused}");
    assert_eq!(refused["quota"]["remaining"].to_string(), "999.4");
    let listed = key.get("/v1/entitlements/decisions").await.json(200);
    assert_eq!(listed["items"].as_array().map(Vec::len), Some(2), "{listed}");
}

async fn all(client: &Client, more: &str) -> String {
    let path = format!(
        "/v1/usages?meter=calls&bucket_size=month&from=2025-12-01T00:00:00Z&to=2026-04-01T00:00:00Z{more}"
    );
    let rows = client.get(&path).await.json(200);
    let of =
        |row: &Value| format!("{:.7} {}", row["bucket_start"].as_str().unwrap_or_default(), row["quantity"]);
    rows.as_array().expect("a list").iter().map(of).collect::<Vec<_>>().join(", ")
}

/// Events that were brought over and pruned there afterwards are in both, and count once.
async fn sums_of_pruned_events_are_counted_once(ours: Database) {
    let [theirs, _] = newer();
    let run_and_see = async |new: [u64; 3], expected: &str, in_eu: &str| {
        let run = import(&ours, &place(&theirs), &[]).run.succeeded();
        assert_eq!(counts(&run, "usage_hourly_rollups"), new, "{}", run.stdout);
        assert!(run.stdout.contains("all of them are counted here"), "{}", run.stdout);
        let mut server = Server::start(&ours);
        let key = server.client().with_key(KEY);
        assert_eq!(all(&key, "&subject=acme").await, expected);
        assert_eq!(all(&key, "&metadata.region=eu").await, in_eu);
        server.terminate();
    };
    // 0.1 and 0.2 are events
    run_and_see([2, 0, 0], "2025-12 0.6, 2026-01 0.7", "2025-12 0.6, 2026-01 0.5").await;
    run_and_see([0, 2, 0], "2025-12 0.6, 2026-01 0.7", "2025-12 0.6, 2026-01 0.5").await;
    // the event of 0.1 is pruned there
    theirs.execute(
        "DELETE FROM usage_events WHERE id = '88888888-0000-4000-8000-000000000001';
         UPDATE usage_hourly_rollups SET event_count = 3, quantity_sum = 0.5 WHERE bucket_start LIKE '2026-01%'",
    );
    run_and_see([0, 2, 0], "2025-12 0.6, 2026-01 0.7", "2025-12 0.6, 2026-01 0.5").await;
    // and one that was never seen here
    theirs.execute(
        "UPDATE usage_hourly_rollups SET event_count = 4, quantity_sum = 0.75, quantity_max = 0.25 WHERE bucket_start LIKE '2026-01%'",
    );
    run_and_see([1, 1, 0], "2025-12 0.6, 2026-01 0.95", "2025-12 0.6, 2026-01 0.75").await;
    // what is sent here meanwhile is none of theirs
    let mut server = Server::start(&ours);
    let key = server.client().with_key(KEY);
    let event = json!({"meter": "calls", "subject": "acme", "quantity": 0.05, "timestamp": "2026-01-05T00:10:00Z", "metadata": {"region": "eu"}});
    key.post("/v1/usages", &event).await.expect(201);
    server.terminate();
    theirs.execute("UPDATE usage_hourly_rollups SET event_count = 5, quantity_sum = 1.25 WHERE bucket_start LIKE '2026-01%'");
    let run = import(&ours, &place(&theirs), &[]).run.succeeded();
    assert_eq!(counts(&run, "usage_hourly_rollups"), [1, 1, 0], "{}", run.stdout);
    let server = Server::start(&ours);
    let key = server.client().with_key(KEY);
    assert_eq!(all(&key, "&subject=acme").await, "2025-12 0.6, 2026-01 1.5");
    assert_eq!(months(&key).await[0].0, "2026-01");
    server.client().with_key(OTHER_KEY).get("/v1/meters").await.expect(200);
}
