//! Databases of older servers: 0.1.10 and 0.1.11 had no plans, and before 0.1.10 there were no workspaces. What is not
//! there is said.

use serde_json::{Value, json};

use super::{Imported, KEY, counts, import, months, ours_again, passwords_work, place, theirs};
use crate::support::{Database, Server, on_both_databases, program};

on_both_databases!(
    a_database_without_plans_comes_over,
    a_database_without_workspaces_comes_into_one,
    what_lies_between_two_layouts_is_refused,
);

const WITHOUT_PLANS: &str = "DROP TABLE plan_subject_assignments; DROP TABLE plan_limits; DROP TABLE plans; DROP TABLE auth_identities;";

/// Tables that knew no workspace before 0.1.10, and then columns that came with it.
const OF_WORKSPACES: [&str; 8] = [
    "auth_sessions",
    "meters",
    "bulk_usage_ingestions",
    "usage_ingestions",
    "usage_prune_runs",
    "alert_destinations",
    "alert_rules",
    "auth_api_keys",
];
const OF_KEYS: [&str; 4] = ["scopes", "allowed_meters", "expires_at", "revoked_at"];
const OF_METERS: [&str; 2] = ["dimensions", "event_retention_days"];

fn without_workspaces() -> String {
    let of_workspaces = OF_WORKSPACES.map(|table| (table, "workspace_id"));
    let of_keys = OF_KEYS.map(|column| ("auth_api_keys", column));
    let of_meters = OF_METERS.map(|column| ("meters", column));
    let columns = of_workspaces.iter().chain(&of_keys).chain(&of_meters);
    let drops = columns.map(|(table, column)| format!("ALTER TABLE {table} DROP COLUMN {column};"));
    format!(
        "{WITHOUT_PLANS} DROP TABLE auth_workspaces; DROP TABLE auth_workspace_memberships;
         ALTER TABLE usage_events DROP COLUMN workspace_id; {}
         INSERT INTO auth_users VALUES ('22222222-0000-4000-8000-000000000003', 'eve@example.com', '', '2026-01-02T00:00:00Z')",
        drops.collect::<String>()
    )
}

async fn a_database_without_plans_comes_over(ours: Database) {
    for theirs in theirs() {
        let ours = ours_again(&ours);
        theirs.make(WITHOUT_PLANS);
        let run = import(&ours, &place(&theirs), &[]).run.succeeded();
        assert_eq!(counts(&run, "usage_events"), [3, 0, 6], "{}", run.stdout);
        let note = run.stdout.lines().find(|line| line.contains("that are not there"));
        let note = note.unwrap_or_else(|| panic!("{}", run.stdout));
        for table in ["plans", "plan_limits", "plan_subject_assignments", "consumption_decisions"] {
            assert!(note.contains(table), "{table}: {note}");
        }
        assert!(!note.contains("usage_events"), "{note}");
        let server = Server::start(&ours);
        let key = server.client().with_key(KEY);
        assert_eq!(months(&key).await[0], ("2026-01".into(), "0.3".into()));
        assert_eq!(key.get("/v1/plans").await.json(200)["items"], json!([]));
    }
}

async fn a_database_without_workspaces_comes_into_one(ours: Database) {
    for theirs in theirs() {
        let ours = ours_again(&ours);
        theirs.make(&without_workspaces());
        let settings = theirs.settings();
        let mut settings: Vec<(&str, &str)> =
            settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
        // somebody else may be at the usual ports
        settings
            .extend([("OPEN_SPANNER_HTTP_ADDR", "127.0.0.1:0"), ("OPEN_SPANNER_GRPC_ADDR", "127.0.0.1:0")]);
        let serve = program::run(&["serve"], &settings, &std::env::temp_dir());
        let lines = serve.stderr.lines().filter(|line| line.contains("import reference")).count();
        assert!(serve.code == Some(2) && lines == 1, "{serve:#?}");
        let Imported { run, left_out } = import(&ours, &place(&theirs), &[]);
        let run = run.succeeded();
        for (table, expected) in [
            ("usage_events", [3, 0, 6]),
            ("auth_workspaces", [1, 0, 0]),
            ("auth_workspace_memberships", [2, 0, 1]),
            ("auth_api_keys", [2, 0, 0]),
        ] {
            assert_eq!(counts(&run, table), expected, "{table}: {}\n{left_out:#?}", run.stdout);
        }
        for note in [
            "before 0.1.10 and has no workspaces",
            "meters lacks columns of newer versions: dimensions",
            "auth_api_keys lacks columns of newer versions: allowed_meters, expires_at, revoked_at",
            "equal on both sides in every month",
        ] {
            assert!(run.stdout.contains(note), "{note}: {}", run.stdout);
        }
        let server = Server::start(&ours);
        passwords_work(&server).await;
        let key = server.client().with_key(KEY);
        assert_eq!(
            months(&key).await,
            [("2026-01".into(), "0.3".into()), ("2026-02".into(), "1e+21".into())]
        );
        // a key could do everything
        key.meter("another", "sum").await;
        let event = json!({"meter": "calls", "subject": "acme", "quantity": 0.1, "idempotency_key": "k-1"});
        let call = key.with("idempotency-key", "call-1").post("/v1/usages/bulk", &json!([event])).await;
        assert!(call.text.contains("88888888-0000-4000-8000-000000000001"), "{}", call.text);
        let meters = key.get("/v1/meters").await.json(200);
        let calls = |meter: &&Value| meter["name"] == "calls";
        let calls = meters["items"].as_array().expect("a list").iter().find(calls).expect("the meter");
        assert_eq!(calls["event_retention_days"], 3650);
        drop(server);
        // whoever came there meanwhile owns it, too
        let event = ", NULL, 'acme', 'calls', 0.7, '2026-01-05T00:00:00Z', '2026-03-01T00:00:00Z', '{}'";
        theirs.execute(&format!(
            "INSERT INTO auth_users VALUES ('00000000-0000-4000-8000-000000000004', 'dan@example.com', '', '2026-02-02T00:00:00Z');
             INSERT INTO usage_events VALUES ('88888888-0000-4000-8000-000000000004'{event})"
        ));
        let run = import(&ours, &place(&theirs), &[]).run.succeeded();
        assert_eq!(counts(&run, "usage_events"), [1, 3, 6], "{}", run.stdout);
        let owners = "SELECT u.email AS line FROM memberships m JOIN users u ON u.id = m.user_id WHERE m.role = 'owner' ORDER BY 1";
        assert_eq!(ours.lines(owners), ["ada@example.com", "dan@example.com", "eve@example.com"]);
        assert_eq!(ours.count("workspaces"), 1);
    }
}

async fn what_lies_between_two_layouts_is_refused(ours: Database) {
    for (statement, word) in [
        ("ALTER TABLE usage_events DROP COLUMN workspace_id", "broke off"),
        ("DROP TABLE auth_workspaces", "broke off"),
        ("DROP TABLE plan_limits", "not whole"),
    ] {
        let [theirs, _] = theirs();
        theirs.make(statement);
        let run = import(&ours, &place(&theirs), &[]).run;
        assert!(run.code == Some(2) && run.stderr.contains(word), "{statement}: {run:#?}");
    }
    let [theirs, _] = theirs();
    theirs.make(&format!("{} ; DELETE FROM auth_users", without_workspaces()));
    let run = import(&ours, &place(&theirs), &[]).run;
    assert!(run.code == Some(2) && run.stderr.contains("nor users"), "{run:#?}");
    assert_eq!(ours.count("workspaces"), 0);
}
