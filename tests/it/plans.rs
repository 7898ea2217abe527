//! Plans and assignments beyond the conformance suite: names, references, workspaces, allow-lists, concurrency.

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::support::{Database, Server, Workspace, on_both_databases, unique};

on_both_databases!(
    a_name_is_free_again_after_a_rename,
    a_limited_meter_cannot_be_deleted,
    plans_of_others_do_not_exist,
    keys_see_the_meters_they_may,
    a_preview_measures_every_subject_by_its_own_usage,
    simultaneous_assignments_leave_one,
    limits_are_exact_and_keep_their_words,
    used_plans_can_be_deleted_once_nobody_has_them,
    what_plans_hold_is_bounded,
    a_history_of_plans_is_bounded,
    percent_encoded_subjects_are_decoded,
    writes_after_an_assignment_count,
    all_subjects_of_a_plan_go_on_under_its_next_version,
    what_changes_for_very_many_is_asked_for_in_the_database
);

async fn plan(workspace: &Workspace, meter: &str, limit: &str) -> Value {
    let body = format!(r#"{{"name":"{}","limits":[{{"meter":"{meter}","limit":{limit}}}]}}"#, unique("plan"));
    workspace.post_text("/v1/plans", body).await.json(201)
}

async fn assign(workspace: &Workspace, subject: &str, plan: &Value) -> Value {
    let path = format!("/v1/plans/subjects/{subject}");
    workspace.put(&path, &json!({"plan_id": plan["id"]})).await.json(200)
}

fn path_of(plan: &Value) -> String {
    format!("/v1/plans/{}", plan["id"].as_str().expect("an id"))
}

async fn a_name_is_free_again_after_a_rename(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("m", "sum").await;
    let body = |name: &str| json!({"name": name, "limits": [{"meter": "m", "limit": 1}]});
    let first = workspace.post("/v1/plans", &body("a")).await.json(201);
    workspace.put(&path_of(&first), &body("b")).await.expect(200);
    let anew = workspace.post("/v1/plans", &body("a")).await.json(201);
    assert_eq!(anew["version"], json!(1));
    let message = workspace.put(&path_of(&anew), &body("b")).await.error(409, "conflict");
    assert!(message.contains("\"b\""), "{message}");
}

async fn a_limited_meter_cannot_be_deleted(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    let meter = workspace.meter("m", "sum").await;
    let made = plan(&workspace, "m", "5").await;
    let meters = workspace.get("/v1/meters").await.json(200);
    let id = meters["items"][0]["id"].as_str().expect("an id").to_owned();
    let message = workspace.delete(&format!("/v1/meters/{id}")).await.error(409, "conflict");
    assert!(message.contains(made["name"].as_str().expect("a name")), "{message} ({meter})");
    workspace.delete(&path_of(&made)).await.expect(204);
    workspace.delete(&format!("/v1/meters/{id}")).await.expect(204);
}

async fn plans_of_others_do_not_exist(database: Database) {
    let server = Server::start(&database);
    let (workspace, stranger) = (server.workspace().await, server.workspace().await);
    workspace.meter("m", "sum").await;
    stranger.meter("m", "sum").await;
    let made = plan(&workspace, "m", "5").await;
    assign(&workspace, "org", &made).await;
    let body = json!({"name": "x", "limits": [{"meter": "m", "limit": 1}]});
    stranger.get(&path_of(&made)).await.error(404, "not_found");
    stranger.put(&path_of(&made), &body).await.error(404, "not_found");
    stranger.post(&format!("{}/preview", path_of(&made)), &body).await.error(404, "not_found");
    stranger.delete(&path_of(&made)).await.error(404, "not_found");
    stranger.put("/v1/plans/subjects/org", &json!({"plan_id": made["id"]})).await.error(404, "not_found");
    stranger.get("/v1/plans/subjects/org/progress").await.error(404, "not_found");
    stranger.delete("/v1/plans/subjects/org").await.error(404, "not_found");
    let check =
        stranger.post("/v1/entitlements/check", &json!({"subject": "org", "meter": "m"})).await.json(200);
    assert_eq!(check["state"], json!("no_plan"));
    for list in ["/v1/plans", "/v1/plans/assignments", "/v1/entitlements/states", "/v1/entitlements/periods"]
    {
        assert_eq!(stranger.get(list).await.json(200)["items"], json!([]), "{list}");
    }
}

/// More subjects than are read at once.
async fn a_preview_measures_every_subject_by_its_own_usage(database: Database) {
    const SUBJECTS: i64 = 300;
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("m", "sum").await;
    let limit = |period: &str, most: i64| json!({"meter": "m", "period": period, "limit": most});
    let body = json!({"name": "p", "limits": [limit("day", 1_000), limit("year", 150)]});
    let plan = workspace.post("/v1/plans", &body).await.json(201);
    let assign = |n: i64| {
        let (path, body) = (format!("/v1/plans/subjects/s{n}"), json!({"plan_id": plan["id"]}));
        let workspace = &workspace;
        async move { workspace.put(&path, &body).await.expect(200) }
    };
    for some in (1..=SUBJECTS).collect::<Vec<_>>().chunks(10) {
        join_all(some.iter().map(|n| assign(*n))).await;
    }
    let used: Vec<Value> =
        (1..=SUBJECTS).map(|n| json!({"meter": "m", "subject": format!("s{n}"), "quantity": n})).collect();
    workspace.post("/v1/usages/bulk", &json!(used)).await.expect(201);

    let limits = [limit("day", 100), limit("week", 200), limit("month", 250)];
    let body = json!({"name": "p", "limits": limits});
    let preview = workspace.post(&format!("{}/preview", path_of(&plan)), &body).await.json(200);
    let summary = json!({"subjects": 300, "ok": 79, "warning": 20, "exceeded": 201, "removed_limits": 300});
    assert_eq!(preview["summary"], summary);
    let subjects = preview["subjects"].as_array().expect("a list");
    assert_eq!(subjects.len(), 300);
    for impact in subjects {
        let n: i64 = impact["subject"].as_str().expect("a name")[1..].parse().expect("a number");
        let items = impact["items"].as_array().expect("a list");
        let shown: Vec<(&str, i64, i64, bool)> = items
            .iter()
            .map(|item| {
                let number = |field: &str| item[field].as_i64().expect("a whole number");
                let period = item["period"].as_str().expect("a period");
                (period, number("current"), number("proposed_limit"), item["removed"] == json!(true))
            })
            .collect();
        assert_eq!(
            shown,
            [("day", n, 100, false), ("week", n, 200, false), ("month", n, 250, false), ("year", n, 0, true)]
        );
    }
}

async fn keys_see_the_meters_they_may(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("mine", "sum").await;
    workspace.meter("theirs", "sum").await;
    let body = json!({"name": "narrow", "scopes": ["*"], "allowed_meters": ["mine"]});
    let made = workspace.session.post("/v1/auth/api-keys", &body).await.json(201);
    let narrow = server.client().with_key(made["key"].as_str().expect("the secret"));
    let (mine, theirs) = (plan(&workspace, "mine", "5").await, plan(&workspace, "theirs", "5").await);
    narrow.get(&path_of(&mine)).await.expect(200);
    narrow.get(&path_of(&theirs)).await.error(403, "forbidden");
    narrow.get("/v1/plans").await.error(403, "forbidden");
    let limits = json!([{"meter": "mine", "limit": 1}, {"meter": "theirs", "limit": 1}]);
    narrow.put(&path_of(&mine), &json!({"name": "x", "limits": limits})).await.error(403, "forbidden");
    narrow.post("/v1/plans", &json!({"name": "x"})).await.error(403, "forbidden");
    let consume =
        |meter: &str| json!({"idempotency_key": "k", "meter": meter, "subject": "s", "quantity": 1});
    workspace.post("/v1/entitlements/consume", &consume("theirs")).await.expect(201);
    // the key of a decision does not open a meter
    narrow.post("/v1/entitlements/consume", &consume("mine")).await.error(403, "forbidden");
    narrow.get("/v1/entitlements/decisions/k").await.error(403, "forbidden");
}

async fn simultaneous_assignments_leave_one(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("m", "sum").await;
    let (one, two) = (plan(&workspace, "m", "5").await, plan(&workspace, "m", "6").await);
    let all = (0..20).map(|at| assign(&workspace, "org", if at % 2 == 0 { &one } else { &two }));
    let made = join_all(all).await;
    let anchors: std::collections::BTreeSet<&str> =
        made.iter().map(|one| one["period_anchor_at"].as_str().expect("a time")).collect();
    assert_eq!(anchors.len(), 1, "the first anchor is kept: {anchors:?}");
    let listed = workspace.get("/v1/plans/assignments?subject=org").await.json(200);
    assert_eq!(listed["items"].as_array().expect("a list").len(), 1, "{listed}");
    let history = workspace.get("/v1/plans/assignments?subject=org&include_history=1").await.json(200);
    assert_eq!(history["items"].as_array().expect("a list").len(), 20);
}

async fn limits_are_exact_and_keep_their_words(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("m", "sum").await;
    let made = plan(&workspace, "m", "12345678901234567890.123456789").await;
    assert_eq!(made["limits"][0]["limit"].to_string(), "12345678901234567890.123456789");
    let read = workspace.get(&path_of(&made)).await;
    assert!(read.text.contains("\"limit\":12345678901234567890.123456789,"), "{}", read.text);
    assert!(read.text.contains(r#""enforcement":"advisory","failure_policy":"fail_open""#), "{}", read.text);
    assign(&workspace, "org", &made).await;
    for _ in 0..3 {
        let event = r#"{"meter":"m","subject":"org","quantity":0.1}"#;
        workspace.post_text("/v1/usages", event).await.expect(201);
    }
    let progress = workspace.get("/v1/plans/subjects/org/progress").await.json(200);
    assert_eq!(progress["items"][0]["current"].to_string(), "0.3");
    assert_eq!(progress["items"][0]["remaining"].to_string(), "12345678901234567889.823456789");
}

async fn used_plans_can_be_deleted_once_nobody_has_them(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("m", "sum").await;
    let made = plan(&workspace, "m", "5").await;
    assign(&workspace, "org", &made).await;
    workspace.delete(&path_of(&made)).await.error(409, "conflict");
    workspace.delete("/v1/plans/subjects/org").await.expect(204);
    workspace.delete(&path_of(&made)).await.expect(204);
    let event = json!({"meter": "m", "subject": "org", "quantity": 1});
    workspace.post("/v1/usages", &event).await.expect(201);
}

async fn percent_encoded_subjects_are_decoded(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("m", "sum").await;
    let made = plan(&workspace, "m", "5").await;
    assert_eq!(assign(&workspace, "ten%3Awest", &made).await["subject"], json!("ten:west"));
    workspace.get("/v1/plans/subjects/ten:west/progress").await.expect(200);
}

/// A write that starts after an assignment was answered is counted, whatever other writers remember.
async fn writes_after_an_assignment_count(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("m", "sum").await;
    let made = plan(&workspace, "m", "1000").await;
    let tasks = (0..12).map(|at| {
        let (workspace, made) = (&workspace, &made);
        async move {
            let subject = format!("org-{at}");
            let event = json!({"meter": "m", "subject": subject, "quantity": 1});
            // remembered as a subject without a plan
            workspace.post("/v1/usages", &event).await.expect(201);
            assign(workspace, &subject, made).await;
            for _ in 0..3 {
                workspace.post("/v1/usages", &event).await.expect(201);
            }
            workspace.delete(&format!("/v1/plans/subjects/{subject}")).await.expect(204);
            workspace.post("/v1/usages", &event).await.expect(201);
            assign(workspace, &subject, made).await;
            let progress = |what: &'static str, want: &'static str| {
                let path = format!("/v1/plans/subjects/{subject}/progress");
                async move {
                    let progress = workspace.get(&path).await.json(200);
                    assert_eq!(progress["items"][0]["current"].to_string(), want, "{what}");
                }
            };
            progress("a new assignment starts from zero", "0").await;
            workspace.post("/v1/usages", &event).await.expect(201);
            progress("and counts", "1").await;
        }
    });
    join_all(tasks).await;
}

/// A thousand limits, which begin at an hour of their own.
fn large_plan(name: &str, hour: usize) -> Value {
    let limit = |n: usize| {
        let anchor = format!("2026-01-01T{hour:02}:00:{:02}Z", n % 25);
        json!({"meter": format!("m{}", n / 25), "period": "day", "limit": 1, "window": {"kind": "anchored", "anchor": anchor}})
    };
    json!({"name": name, "limits": (0..1_000).map(limit).collect::<Vec<_>>()})
}

async fn what_plans_hold_is_bounded(database: Database) {
    const SUBJECTS: usize = 12;
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    for n in 0..40 {
        workspace.meter(&format!("m{n}"), "sum").await;
    }
    let mut plans = Vec::new();
    for n in 0..2 {
        plans.push(workspace.post("/v1/plans", &large_plan(&format!("p{n:02}"), 0)).await.json(201));
    }
    // eighteen more of the first
    for n in 2..20 {
        database.execute(&format!(
            "INSERT INTO plan_limits (public_id, plan_id, meter_id, period, quantity, warning_percent, enforcement,
                 failure_policy, created_at)
             SELECT l.public_id || '-{n}', p.id + {n}, meter_id, period, quantity, warning_percent, enforcement,
                 failure_policy, l.created_at FROM plan_limits l JOIN plans p ON p.id = l.plan_id WHERE p.name = 'p00';
             INSERT INTO plans (id, public_id, workspace_id, name, description, version, is_current, created_at, updated_at)
             SELECT id + {n}, public_id || '-{n}', workspace_id, 'p{n:02}', '', 1, is_current, created_at, updated_at
             FROM plans WHERE name = 'p00'"
        ));
    }
    // what a list of all plans shows
    let small = json!({"name": "small", "limits": [{"meter": "m0", "limit": 1}]});
    let message = workspace.post("/v1/plans", &small).await.error(409, "limit_reached");
    assert_eq!(message, "limit reached: there may be at most 20000 limits of plans");
    let shown = workspace.get("/v1/plans?limit=1000").await.json(200);
    assert_eq!(shown["items"].as_array().expect("a list").len(), 20);
    // as many as before, then fewer
    plans[1] = workspace.put(&path_of(&plans[1]), &large_plan("p01", 1)).await.json(200);
    let mut fewer = large_plan("p01", 2);
    fewer["limits"].as_array_mut().expect("a list").pop();
    plans[1] = workspace.put(&path_of(&plans[1]), &fewer).await.json(200);
    workspace.post("/v1/plans", &small).await.expect(201);
    workspace.put(&path_of(&plans[1]), &large_plan("p01", 3)).await.error(409, "limit_reached");

    // a thousand limits go and a thousand come: two thousand items of each subject
    for n in 0..SUBJECTS {
        assign(&workspace, &format!("s{n}"), &plans[0]).await;
    }
    let path = format!("{}/preview", path_of(&plans[0]));
    let preview = workspace.post(&path, &large_plan("p00", 5)).await.json(200);
    let summary = json!({"subjects": SUBJECTS, "ok": SUBJECTS, "warning": 0, "exceeded": 0, "removed_limits": SUBJECTS * 1_000});
    assert_eq!(preview["summary"], summary);
    let items: Vec<usize> = preview["subjects"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|subject| subject["items"].as_array().expect("a list").len())
        .collect();
    assert_eq!(items, [2_000; 10], "20,000 in all");
}

/// Whoever writes usage of a subject loads its history.
async fn a_history_of_plans_is_bounded(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("m", "sum").await;
    let plan = |limit: u32| json!({"name": "p", "limits": [{"meter": "m", "limit": limit}]});
    let first = workspace.post("/v1/plans", &plan(1)).await.json(201);
    assign(&workspace, "s", &first).await;
    database.execute(
        "INSERT INTO plan_assignments (id, public_id, workspace_id, subject_id, plan_id, starts_at, ends_at, anchor, updated_at)
         WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 4998)
         SELECT id + n, public_id || '-' || n, workspace_id, subject_id, plan_id, n, n + 1, n, n FROM plan_assignments, n",
    );
    assign(&workspace, "s", &first).await;
    let body = json!({"plan_id": first["id"]});
    let message = workspace.put("/v1/plans/subjects/s", &body).await.error(409, "limit_reached");
    assert_eq!(message, "limit reached: there may be at most 5000 assignments of subject \"s\"");
    assign(&workspace, "another", &first).await;

    database.execute("UPDATE plans SET version = 4999");
    let last = workspace.put(&path_of(&first), &plan(2)).await.json(200);
    assert_eq!(last["version"], 5_000);
    let message = workspace.put(&path_of(&last), &plan(3)).await.error(409, "limit_reached");
    assert_eq!(message, "limit reached: plan \"p\" may have at most 5000 versions");
    let progress = workspace.get("/v1/plans/subjects/another/progress").await.json(200);
    assert_eq!(progress["items"][0]["limit"].to_string(), "2", "{progress}");
}

/// More subjects than are moved at once: each once, with its own anchor and end.
async fn all_subjects_of_a_plan_go_on_under_its_next_version(database: Database) {
    const FAR: i64 = 9_000_000_000_000_000;
    let server = Server::start_with(&database, &[("OPEN_SPANNER_SERVE_WORKERS", "off")]);
    let workspace = server.workspace().await;
    workspace.meter("a", "sum").await;
    let made = plan(&workspace, "a", "5").await;
    assign(&workspace, "s", &made).await;
    database.execute(&format!(
        "INSERT INTO plan_assignments (id, public_id, workspace_id, subject_id, plan_id, starts_at, ends_at, anchor, updated_at)
         WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 2300)
         SELECT id + n, public_id || '-' || n, workspace_id, -n, plan_id, 1,
                CASE WHEN n % 3 = 0 THEN {FAR} + n END, n, 1 FROM plan_assignments, n"
    ));
    let body = json!({"name": made["name"], "limits": [{"meter": "a", "limit": 6}]});
    workspace.put(&path_of(&made), &body).await.expect(200);
    let lines = database.lines(
        "SELECT a.subject_id || ' ' || a.anchor || ' ' || COALESCE(a.ends_at, 0) AS line
         FROM plan_assignments a JOIN plans p ON p.id = a.plan_id
         WHERE p.version = 2 AND a.subject_id < 0 ORDER BY a.anchor",
    );
    let wanted = (1..=2_300).map(|n: i64| format!("{} {n} {}", -n, if n % 3 == 0 { FAR + n } else { 0 }));
    assert_eq!(lines, wanted.collect::<Vec<_>>());
    let open = format!(
        "plan_assignments a JOIN plans p ON p.id = a.plan_id
         WHERE p.version = 1 AND (a.ends_at IS NULL OR a.ends_at >= {FAR})"
    );
    assert_eq!(database.count(&open), 0);
}

/// A new version of a plan, and another meaning of a meter: each subject and meter once, at a time that a clock which is set
/// back does not lose.
async fn what_changes_for_very_many_is_asked_for_in_the_database(database: Database) {
    let server = Server::start_with(&database, &[("OPEN_SPANNER_SERVE_WORKERS", "off")]);
    let workspace = server.workspace().await;
    let meter = workspace.meter("a", "sum").await;
    workspace.meter("b", "sum").await;
    let made = plan(&workspace, "a", "5").await;
    for subject in ["s1", "s2", "s3"] {
        assign(&workspace, subject, &made).await;
    }
    let asked = || database.count("jobs WHERE queue = 'entitlements' AND scheduled_at > 0");
    database.execute("DELETE FROM jobs");
    let body = json!({"name": made["name"], "limits": [{"meter": "b", "limit": 5}]});
    let next = workspace.put(&path_of(&made), &body).await.json(200);
    assert_eq!(asked(), 6, "under the meter of the old version too");
    workspace.put(&path_of(&next), &body).await.expect(200);
    assert_eq!(asked(), 6);
    let payloads =
        "jobs WHERE key = (SELECT a.subject_id || '/' || m.id FROM plan_assignments a, subjects s, meters m
                    WHERE s.id = a.subject_id AND s.name = 's2' AND m.name = 'a' LIMIT 1)
                    AND payload LIKE '{\"subject_id\":%,\"meter_id\":%,\"late_at\":null}'";
    assert_eq!(database.count(payloads), 1);

    database.execute("DELETE FROM jobs");
    database.execute(
        "INSERT INTO entitlement_states (subject_id, meter_id, period, workspace_id, plan_id, state, current_value,
             limit_value, warning_percent, evaluated_at, updated_at)
         SELECT a.subject_id, m.id, 'month', a.workspace_id, a.plan_id, 'ok', '0', '5', '80', 1, 1
         FROM plan_assignments a, meters m WHERE a.ends_at IS NULL AND m.name = 'a'",
    );
    workspace.put(&format!("/v1/meters/{meter}"), &json!({"aggregation": "count"})).await.expect(200);
    assert_eq!(asked(), 3);
}
