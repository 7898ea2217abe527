//! A database in which other hands and years have left what cannot be taken over: each such row is named with a reason, its
//! neighbours come over, nothing is taken in part, and a second run says the same.

use serde_json::Value;

use super::{Imported, KEY, WORKSPACE, counts, import, months, ours_again, place, run, theirs};
use crate::support::{Database, Server, on_both_databases};

on_both_databases!(
    hostile_events_are_named_one_by_one,
    hostile_rows_of_every_table_are_named,
    names_do_not_move_the_cursor,
    the_source_is_never_written_over,
);

const TAKEN: &str = "";

/// What a column holds, written for one engine.
struct Hostile {
    subject: String,
    meter: &'static str,
    workspace: &'static str,
    quantity: String,
    time: &'static str,
    key: String,
    metadata: String,
    /// In the reason; [`TAKEN`]: none.
    why: &'static str,
}

impl Default for Hostile {
    fn default() -> Self {
        Hostile {
            subject: "'acme'".into(),
            meter: "calls",
            workspace: WORKSPACE,
            quantity: "1".into(),
            time: "2026-02-03T00:00:00Z",
            key: "NULL".into(),
            metadata: "'{}'".into(),
            why: TAKEN,
        }
    }
}

fn hostile(is_postgres: bool) -> Vec<Hostile> {
    let quantity = |text: &str, why| Hostile { quantity: text.into(), why, ..Hostile::default() };
    let time = |time, why| Hostile { time, why, ..Hostile::default() };
    let metadata = |text: &str, why| Hostile { metadata: text.into(), why, ..Hostile::default() };
    let subject = |text: &str, why| Hostile { subject: text.into(), why, ..Hostile::default() };
    let mut all = vec![
        quantity("0", "greater than 0"),
        quantity("-1e300", "greater than 0"),
        quantity("1e21", TAKEN),
        quantity("1e-7", TAKEN),
        time("2026-02-03T00:00:00.123456789Z", TAKEN),
        time("2026-02-03T02:00:00+02:00", TAKEN),
        time("2026-02-03T00:00:00.50-00:00", TAKEN),
        time("2026-02-03t00:00:00z", TAKEN),
        time("2026-02-03 00:00:00Z", TAKEN),
        time("2026-02-02T23:59:60Z", TAKEN),
        time("2026-02-03T00:00:00", "no time"),
        time("2026-02-03", "no time"),
        time("2026-02-30T00:00:00Z", "no time"),
        time("2026-02-03T25:00:00Z", "no time"),
        time("-0001-12-31T23:00:00Z", "no time"),
        time("yesterday", "no time"),
        time("", "no time"),
        metadata("''", "no JSON object"),
        metadata("'[]'", "no JSON object"),
        metadata("'null'", "no JSON object"),
        metadata("'{\"a\":'", "no JSON object"),
        metadata("'{\"a\":1e400}'", "range"),
        metadata("'{\"region\":\"eu\",\"region\":\"us\"}'", TAKEN),
        metadata(&format!("'{{\"a\":\"{}\"}}'", "x".repeat(70_000)), "longer than"),
        metadata(&format!("'{{\"a\":\"{}\"}}'", "x".repeat(3 << 20)), "too long"),
        metadata(&format!("'{}1{}'", "{\"a\":".repeat(200), "}".repeat(200)), "no JSON object"),
        subject("''", "subject"),
        subject("' acme'", "subject"),
        subject("'böse'", "subject"),
        subject(&format!("'{}'", "s".repeat(129)), "subject"),
        Hostile { meter: "vanished", why: "its meter is not there", ..Hostile::default() },
        Hostile {
            workspace: "11111111-0000-4000-8000-00000000dead",
            why: "its workspace is not there",
            ..Hostile::default()
        },
        Hostile { key: format!("'{}'", "k".repeat(3_000)), ..Hostile::default() },
        Hostile { key: "'k-1'".into(), why: "key belongs to another event", ..Hostile::default() },
    ];
    if is_postgres {
        all.extend([
            quantity("'NaN'", "quantity is NaN"),
            quantity("'Infinity'", "quantity is inf"),
            quantity("'-Infinity'", "quantity is -inf"),
            quantity("1.7976931348623157e308", TAKEN),
        ]);
    } else {
        all.extend([
            quantity("9e999", "quantity is inf"),
            quantity("-9e999", "quantity is -inf"),
            quantity("'many'", "quantity is no number"),
            quantity("x'01'", "quantity is no number"),
            quantity("1.7976931348623157e308", TAKEN),
            metadata("CAST(x'7b2261223a22ff227d' AS TEXT)", "not UTF-8"),
            metadata("x'ff00ff'", "not UTF-8"),
            subject("CAST(x'61ff' AS TEXT)", "not UTF-8"),
            subject("'ac' || char(0) || 'me'", "NUL"),
            Hostile { key: "'k' || char(0)".into(), why: "NUL", ..Hostile::default() },
        ]);
    }
    all
}

fn id(at: usize) -> String {
    format!("99999999-0000-4000-8000-1000{at:08}")
}

fn reason_of<'a>(left_out: &'a [Value], table: &str, id: &str) -> Option<&'a str> {
    let line = left_out.iter().find(|line| line["table"] == table && line["id"] == id);
    line.and_then(|line| line["reason"].as_str())
}

async fn hostile_events_are_named_one_by_one(ours: Database) {
    for (theirs, is_postgres) in theirs().into_iter().zip([false, true]) {
        let ours = ours_again(&ours);
        let all = hostile(is_postgres);
        for (at, one) in all.iter().enumerate() {
            let Hostile { subject, meter, workspace, quantity, time, key, metadata, .. } = one;
            theirs.execute(&format!(
                "INSERT INTO usage_events VALUES ('{}', '{workspace}', {key}, {subject}, '{meter}', {quantity}, '{time}',
                     '2026-03-01T00:00:00Z', {metadata})",
                id(at)
            ));
        }
        for bad in ["no-uuid", "99999999-0000-4000-8000-ABCDEF000000", ""] {
            theirs.execute(&format!(
                "INSERT INTO usage_events VALUES ('{bad}', '{WORKSPACE}', NULL, 'acme', 'calls', 1, '2026-02-03T00:00:00Z',
                     '2026-03-01T00:00:00Z', '{{}}')"
            ));
        }
        let Imported { run, left_out } = import(&ours, &place(&theirs), &[]);
        let run = run.succeeded();
        for (at, one) in all.iter().enumerate() {
            let reason = reason_of(&left_out, "usage_events", &id(at));
            match one.why {
                TAKEN => assert_eq!(reason, None, "{at}"),
                why => assert!(reason.is_some_and(|reason| reason.contains(why)), "{at} {why}: {reason:?}"),
            }
        }
        for bad in ["no-uuid", "99999999-0000-4000-8000-ABCDEF000000", ""] {
            assert!(reason_of(&left_out, "usage_events", bad).is_some_and(|reason| reason.contains("UUID")));
        }
        let taken = 3 + all.iter().filter(|one| one.why == TAKEN).count() as u64;
        let refused = 6 + 3 + all.iter().filter(|one| one.why != TAKEN).count() as u64;
        assert_eq!(counts(&run, "usage_events"), [taken, 0, refused], "{}", run.stdout);
        assert!(run.stdout.contains("equal on both sides in every month"), "{}", run.stdout);
        assert_eq!(ours.count("events"), taken);
        let again = import(&ours, &place(&theirs), &[]);
        assert_eq!(counts(&again.run.succeeded(), "usage_events"), [0, taken, refused]);
        assert_eq!(again.left_out, left_out);
        // whatever a database cannot say exactly elsewhere, it says here
        let server = Server::start(&ours);
        let february = &months(&server.client().with_key(KEY)).await[1].1;
        assert!(february.starts_with("1.797693134862315700000000000000000000000"), "{february}");
    }
}

/// Table, id as it is listed, statement, and what the reason says.
const ROWS: &[(&str, &str, &str, &str)] = &[
    ("auth_users", "u", "INSERT INTO auth_users VALUES ('u', 'a@example.com', '', '2026-01-01T00:00:00Z')", "UUID"),
    (
        "auth_users",
        "22222222-0000-4000-8000-0000000000d1",
        "INSERT INTO auth_users VALUES ('22222222-0000-4000-8000-0000000000d1', 'b@example.com', '', 'once')",
        "created_at",
    ),
    (
        "auth_identities",
        "22222222-0000-4000-8000-0000000000d2",
        "INSERT INTO auth_identities VALUES ('22222222-0000-4000-8000-0000000000d2', 'nobody', 'github', '1', '', true,
             '2026-01-01T00:00:00Z', '2026-01-01T00:00:00Z')",
        "user is not there",
    ),
    (
        "auth_sessions",
        "22222222-0000-4000-8000-0000000000d3",
        "INSERT INTO auth_sessions VALUES ('22222222-0000-4000-8000-0000000000d3', '22222222-0000-4000-8000-000000000001',
             '11111111-0000-4000-8000-000000000001', 'short', 'access', '2099-01-01T00:00:00Z', '2026-01-01T00:00:00Z')",
        "SHA-256",
    ),
    (
        "auth_sessions",
        "22222222-0000-4000-8000-0000000000d4",
        "INSERT INTO auth_sessions VALUES ('22222222-0000-4000-8000-0000000000d4', '22222222-0000-4000-8000-000000000001',
             '11111111-0000-4000-8000-000000000001', 'short', 'access', '2020-01-01T00:00:00Z', '2026-01-01T00:00:00Z')",
        "expired",
    ),
    (
        "auth_api_keys",
        "aaaaaaaa-0000-4000-8000-0000000000d5",
        "INSERT INTO auth_api_keys VALUES ('aaaaaaaa-0000-4000-8000-0000000000d5', '22222222-0000-4000-8000-000000000001',
             '11111111-0000-4000-8000-000000000001', 'k', 'AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA', 'osp', '[\"all:of:it\"]',
             '[]', NULL, NULL, '2026-01-01T00:00:00Z', NULL)",
        "scope",
    ),
    (
        "auth_api_keys",
        "aaaaaaaa-0000-4000-8000-0000000000d6",
        "INSERT INTO auth_api_keys VALUES ('aaaaaaaa-0000-4000-8000-0000000000d6', '22222222-0000-4000-8000-000000000001',
             '11111111-0000-4000-8000-000000000001', 'k', 'BAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA', 'osp', '[\"usage:read\"]',
             '{\"a\":1}', NULL, NULL, '2026-01-01T00:00:00Z', NULL)",
        "allowed_meters",
    ),
    (
        "meters",
        "33333333-0000-4000-8000-0000000000d7",
        "INSERT INTO meters VALUES ('33333333-0000-4000-8000-0000000000d7', '11111111-0000-4000-8000-000000000001', 'broken', '', '',
             'sum', '[{', 90, '2026-01-01T00:00:00Z', NULL)",
        "dimensions",
    ),
    (
        "plans",
        "44444444-0000-4000-8000-0000000000d8",
        "INSERT INTO plans VALUES ('44444444-0000-4000-8000-0000000000d8', 'gone', 'P', '', 1, NULL, true, '2026-01-01T00:00:00Z',
             '2026-01-01T00:00:00Z')",
        "workspace",
    ),
    (
        "plan_limits",
        "44444444-0000-4000-8000-0000000000d9",
        "INSERT INTO plan_limits VALUES ('44444444-0000-4000-8000-0000000000d9', '11111111-0000-4000-8000-000000000001',
             '44444444-0000-4000-8000-000000000001', 'calls', 'day', -1, 80, '2026-01-01T00:00:00Z', '2026-01-01T00:00:00Z')",
        "greater than 0",
    ),
    (
        "plan_subject_assignments",
        "55555555-0000-4000-8000-0000000000da",
        "INSERT INTO plan_subject_assignments VALUES ('55555555-0000-4000-8000-0000000000da',
             '11111111-0000-4000-8000-000000000001', 'a b', '44444444-0000-4000-8000-000000000001', '2026-01-01T00:00:00Z',
             '2026-01-01T00:00:00Z', NULL, '2026-01-01T00:00:00Z')",
        "subject",
    ),
    (
        "plan_subject_assignments",
        "55555555-0000-4000-8000-0000000000db",
        "INSERT INTO plan_subject_assignments VALUES ('55555555-0000-4000-8000-0000000000db',
             '11111111-0000-4000-8000-000000000001', 'acme', 'gone', '2026-01-01T00:00:00Z', '2026-01-01T00:00:00Z', NULL,
             '2026-01-01T00:00:00Z')",
        "plan is not there",
    ),
    (
        "plan_subject_assignments",
        "55555555-0000-4000-8000-0000000000dc",
        "INSERT INTO plan_subject_assignments VALUES ('55555555-0000-4000-8000-0000000000dc',
             '11111111-0000-4000-8000-000000000001', 'acme', '44444444-0000-4000-8000-000000000001', '2026-01-01T00:00:00Z',
             'last week', NULL, '2026-01-01T00:00:00Z')",
        "period_anchor_at",
    ),
    (
        "alert_destinations",
        "66666666-0000-4000-8000-0000000000dd",
        "INSERT INTO alert_destinations VALUES ('66666666-0000-4000-8000-0000000000dd', '11111111-0000-4000-8000-000000000001', 'p',
             'pigeon', true, '', '', '2026-01-01T00:00:00Z', '2026-01-01T00:00:00Z')",
        "destination",
    ),
    (
        "alert_rules",
        "66666666-0000-4000-8000-0000000000de",
        "INSERT INTO alert_rules VALUES ('66666666-0000-4000-8000-0000000000de', '11111111-0000-4000-8000-000000000001', 'r', 'calls',
             true, '', '{}', 1, 'gt', 1, 60, '', '66666666-0000-4000-8000-000000000001', '2026-01-01T00:00:00Z',
             '2026-01-01T00:00:00Z', '2026-01-01T00:00:00Z')",
        "window_seconds",
    ),
    (
        "usage_ingestions",
        "77777777-0000-4000-8000-0000000000df",
        "INSERT INTO usage_ingestions VALUES ('77777777-0000-4000-8000-0000000000df', '11111111-0000-4000-8000-000000000001',
             'carrier', 1, 0, 0, '2026-01-01T00:00:00Z')",
        "kind",
    ),
    (
        "usage_prune_runs",
        "77777777-0000-4000-8000-0000000000e0",
        "INSERT INTO usage_prune_runs VALUES ('77777777-0000-4000-8000-0000000000e0', '11111111-0000-4000-8000-000000000001', 0, 1,
             'none', '2026-01-01T00:00:00Z')",
        "meters cannot be read",
    ),
    (
        "bulk_usage_ingestions",
        "11111111-0000-4000-8000-000000000001/half",
        "INSERT INTO bulk_usage_ingestions VALUES ('11111111-0000-4000-8000-000000000001', 'half',
             '{\"accepted\":[{\"id\":\"a\",\"subject\":\"s\",\"meter_name\":\"calls\",\"quantity\":1,\"event_time\":\"never\",\"received_at\":\"never\"}]}',
             '2026-01-01T00:00:00Z')",
        "response",
    ),
];

async fn hostile_rows_of_every_table_are_named(ours: Database) {
    for theirs in theirs() {
        let ours = ours_again(&ours);
        for (_, _, statement, _) in ROWS {
            theirs.execute(statement);
        }
        let Imported { run, left_out } = import(&ours, &place(&theirs), &[]);
        let run = run.succeeded();
        for (table, id, statement, why) in ROWS {
            let line = left_out.iter().find(|line| {
                line["table"] == *table && line["id"].as_str().is_some_and(|found| found.starts_with(id))
            });
            let reason = line.and_then(|line| line["reason"].as_str());
            assert!(
                reason.is_some_and(|reason| reason.contains(why)),
                "{table} {id} {why}: {reason:?}\n{statement}"
            );
            let all: u64 = counts(&run, table).iter().sum();
            assert_eq!(all, theirs.count(table), "{table}\n{}", run.stdout);
        }
        assert_eq!(counts(&run, "usage_events"), [3, 0, 6], "{}", run.stdout);
        let again = import(&ours, &place(&theirs), &[]);
        assert_eq!(again.left_out, left_out);
        for line in
            again.run.succeeded().stdout.lines().skip(1).take_while(|line| !line.starts_with("left out"))
        {
            assert_eq!(line.split_whitespace().nth(1), Some("0"), "{line}");
        }
    }
}

/// What is printed comes from whoever named a meter.
async fn names_do_not_move_the_cursor(ours: Database) {
    let [theirs, _] = theirs();
    theirs.execute(&format!(
        "INSERT INTO meters VALUES ('33333333-0000-4000-8000-0000000000f1', '{WORKSPACE}', 'red' || char(27) || '[2J', '', '', 'sum', '[]',
             90, '2026-01-01T00:00:00Z', NULL);
         INSERT INTO usage_events VALUES ('99999999-0000-4000-8000-0000000000f1', '{WORKSPACE}', NULL, 'acme', 'no' || char(27) || '[2J', 1,
             '2026-02-03T00:00:00Z', '2026-03-01T00:00:00Z', '{{}}')"
    ));
    let Imported { run, left_out } = import(&ours, &place(&theirs), &[]);
    let run = run.succeeded();
    assert!(!run.stdout.contains('\u{1b}') && !run.stderr.contains('\u{1b}'), "{run:#?}");
    assert!(reason_of(&left_out, "usage_events", "99999999-0000-4000-8000-0000000000f1").is_some());
}

async fn the_source_is_never_written_over(ours: Database) {
    let [theirs, _] = theirs();
    let from = place(&theirs);
    let before = std::fs::read(&from).expect("the file");
    let arguments = ["reference", "--from", &from, "--rejected", &from];
    let run = run(&ours, &arguments, &std::env::temp_dir());
    assert!(run.code == Some(2) && run.stderr.contains("--rejected"), "{run:#?}");
    assert!(std::fs::read(&from).expect("the file") == before, "it is as it was");
}
