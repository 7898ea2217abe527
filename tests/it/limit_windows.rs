//! Limits whose windows follow a calendar, begin at an instant of the plan, or slide: what is asked, answered and refused.
//! That their numbers are right, `quota_model` shows.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::support::{Database, Server, Workspace, on_both_databases, unique};

on_both_databases!(
    every_door_tells_the_same_window,
    a_window_that_slides_grants_exactly_its_quantity,
    what_slid_out_is_free_again,
    a_subject_has_days_of_its_own,
    plain_limits_are_told_as_ever,
    what_windows_may_not_say,
    a_meter_has_few_counters_whatever_plans_say
);

/// A plan with these limits on a meter `m`, and who has it.
async fn plan(workspace: &Workspace, limits: Value) -> (Value, String) {
    let mut limits = limits;
    for limit in limits.as_array_mut().expect("a list") {
        limit["meter"] = json!("m");
    }
    let plan =
        workspace.post("/v1/plans", &json!({"name": unique("plan"), "limits": limits})).await.json(201);
    let subject = unique("org");
    let path = format!("/v1/plans/subjects/{subject}");
    workspace.put(&path, &json!({"plan_id": plan["id"]})).await.expect(200);
    (plan, subject)
}

async fn consume(workspace: &Workspace, subject: &str, quantity: i64) -> (u16, Value) {
    consume_as(workspace, &unique("key"), subject, quantity).await
}

async fn consume_as(workspace: &Workspace, key: &str, subject: &str, quantity: i64) -> (u16, Value) {
    let body = json!({"idempotency_key": key, "meter": "m", "subject": subject, "quantity": quantity});
    let answer = workspace.post("/v1/entitlements/consume", &body).await;
    (answer.status, serde_json::from_str(&answer.text).expect("JSON"))
}

async fn listed(workspace: &Workspace, list: &str, subject: &str) -> Value {
    let path = format!("/v1/entitlements/{list}?subject={subject}");
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        let found = workspace.get(&path).await.json(200);
        if found["items"].as_array().is_some_and(|items| !items.is_empty()) {
            return found["items"][0].clone();
        }
        assert!(Instant::now() < end, "nothing in {path}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn every_door_tells_the_same_window(database: Database) {
    let server = Server::start_with(&database, &[("OPEN_SPANNER_SERVE_WORKERS", "on")]);
    let workspace = server.workspace().await;
    workspace.meter("m", "sum").await;
    let window = json!({"kind": "calendar", "time_zone": "Asia/Kolkata", "week_start": "sunday"});
    let limits = json!([{"limit": 10, "period": "week", "enforcement": "hard", "window": window}]);
    let (plan, subject) = plan(&workspace, limits).await;
    assert_eq!((&plan["limits"][0]["period"], &plan["limits"][0]["window"]), (&json!("week"), &window));
    let (status, granted) = consume(&workspace, &subject, 4).await;
    assert_eq!((status, &granted["quota"]["projected"]), (201, &json!(4)), "{granted}");
    let (from, to) = (granted["quota"]["from"].clone(), granted["quota"]["to"].clone());
    assert!(from.as_str().is_some_and(|from| from.ends_with("T18:30:00Z")), "midnight in Kolkata: {from}");
    let key = unique("refused");
    let (status, refused) = consume_as(&workspace, &key, &subject, 7).await;
    assert_eq!((status, &refused["quota"]["current"]), (429, &json!(4)), "{refused}");

    let check = json!({"subject": subject, "meter": "m", "quantity": 6});
    let check = workspace.post("/v1/entitlements/check", &check).await.json(200);
    let progress = workspace.get(&format!("/v1/plans/subjects/{subject}/progress")).await.json(200);
    let decision = workspace.get(&format!("/v1/entitlements/decisions/{key}")).await.json(200);
    let state = listed(&workspace, "states", &subject).await;
    let snapshot = listed(&workspace, "periods", &subject).await;
    let event = json!({"meter": "m", "subject": subject, "quantity": 1});
    let dry = workspace.post("/v1/usages?dry_run=true", &event).await.json(200);
    let moved = &dry["items"][0]["quotas"][0];
    let told = [&granted["quota"], &check, &progress["items"][0], &decision["quota"], &snapshot, moved];
    for told in told {
        assert_eq!((&told["period"], &told["window"]), (&json!("week"), &window), "{told}");
        assert_eq!((&told["from"], &told["to"]), (&from, &to), "{told}");
    }
    assert_eq!((&state["period"], &state["window"]), (&json!("week"), &window));
    for current in
        [&check["current"], &progress["items"][0]["current"], &moved["before"], &snapshot["current"]]
    {
        assert_eq!(current, &json!(4));
    }
    assert_eq!(moved["after"], json!(5));
    assert_eq!(check["allowed"], json!(true));
}

async fn a_window_that_slides_grants_exactly_its_quantity(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("m", "sum").await;
    let sliding = json!({"kind": "sliding"});
    let limits = json!([{"limit": 23, "period": "1h", "enforcement": "hard", "window": sliding},
                        {"limit": 1000, "period": "2d", "enforcement": "hard", "window": sliding},
                        {"limit": 1000, "period": "month", "window": {"kind": "calendar"}}]);
    let (_, subject) = plan(&workspace, limits).await;
    let answers = join_all((0..60).map(|_| consume(&workspace, &subject, 1))).await;
    let granted = answers.iter().filter(|(status, _)| *status == 201).count();
    assert_eq!(granted, 23);
    for (status, answer) in &answers {
        let quota = &answer["quota"];
        match status {
            201 => assert!(quota["projected"].as_i64().expect("a number") <= 23, "{quota}"),
            429 => {
                assert_eq!((&quota["current"], &quota["period"]), (&json!(23), &json!("1h")), "{quota}");
                let wait = quota["retry_after_seconds"].as_i64().expect("a number");
                assert!((1..=3_600).contains(&wait), "{quota}");
            }
            _ => panic!("{answer}"),
        }
    }
    let progress = workspace.get(&format!("/v1/plans/subjects/{subject}/progress")).await.json(200);
    for item in progress["items"].as_array().expect("a list") {
        assert_eq!(item["current"], json!(23), "{item}");
    }
    assert_eq!(database.count("events"), 23);
}

async fn what_slid_out_is_free_again(database: Database) {
    let server = Server::start_with(&database, &[("OPEN_SPANNER_CONSUMPTION_TIME", "event")]);
    let workspace = server.workspace().await;
    workspace.meter("m", "sum").await;
    let limits =
        json!([{"limit": 2, "period": "minute", "enforcement": "hard", "window": {"kind": "sliding"}}]);
    let (_, subject) = plan(&workspace, limits).await;
    let start = jiff::Timestamp::now();
    // seconds after the first, whether it is let in, and what was counted before it
    let steps =
        [(0, 201, 0), (20, 201, 1), (59, 429, 2), (60, 201, 1), (79, 429, 2), (80, 201, 1), (500, 201, 0)];
    for (n, (seconds, status, before)) in steps.into_iter().enumerate() {
        let at = start + jiff::SignedDuration::from_secs(seconds);
        let body = json!({"idempotency_key": format!("{subject}-{n}"), "meter": "m", "subject": subject,
                          "quantity": 1, "timestamp": at.to_string()});
        let answer = workspace.post("/v1/entitlements/consume", &body).await.json(status);
        assert_eq!(answer["quota"]["current"], json!(before), "after {seconds} s: {answer}");
    }
}

async fn a_subject_has_days_of_its_own(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("m", "sum").await;
    let limits = json!([{"limit": 5, "period": "day", "window": {"kind": "calendar"}}]);
    let (plan, first) = plan(&workspace, limits).await;
    let assign = |subject: &str, zone: Value| {
        let path = format!("/v1/plans/subjects/{subject}");
        let body = json!({"plan_id": plan["id"], "time_zone": zone});
        let workspace = &workspace;
        async move { workspace.put(&path, &body).await }
    };
    let progress = |subject: String| {
        let workspace = &workspace;
        async move {
            let progress = workspace.get(&format!("/v1/plans/subjects/{subject}/progress")).await.json(200);
            progress["items"][0].clone()
        }
    };
    let plain = progress(first.clone()).await;
    assert_eq!(plain["window"], json!({"kind": "calendar", "time_zone": "UTC"}));
    assert!(plain["from"].as_str().is_some_and(|from| from.ends_with("T00:00:00Z")), "{plain}");
    assign("kathmandu", json!("Asia/Kathmandu")).await.expect(200);
    let own = progress("kathmandu".to_owned()).await;
    assert!(own["from"].as_str().is_some_and(|from| from.ends_with("T18:15:00Z")), "{own}");
    // the zone stays when another plan follows, and what was counted in it
    consume(&workspace, "kathmandu", 3).await;
    let again = assign("kathmandu", json!("")).await.json(200);
    assert_eq!(again["time_zone"], json!("Asia/Kathmandu"));
    assert_eq!(progress("kathmandu".to_owned()).await["current"], json!(3));
    // days of another zone are other days: nothing of them is counted yet
    assign("kathmandu", json!("Europe/Berlin")).await.expect(200);
    assert_eq!(progress("kathmandu".to_owned()).await["current"], json!(0));
    consume(&workspace, "kathmandu", 1).await;
    assert_eq!(progress("kathmandu".to_owned()).await["current"], json!(1));
    assign("kathmandu", json!("Mars/Base")).await.error(400, "invalid_input");
    // a workspace in a zone gives it to subjects from then on
    workspace.session.patch("/v1/auth/workspace", &json!({"time_zone": "Asia/Kolkata"})).await.expect(204);
    assign("new", json!("")).await.expect(200);
    let of_workspace = progress("new".to_owned()).await;
    assert_eq!(of_workspace["window"]["time_zone"], json!("Asia/Kolkata"));
    assert_eq!(progress(first).await["window"]["time_zone"], json!("UTC"), "what runs goes on");
}

async fn plain_limits_are_told_as_ever(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("m", "sum").await;
    let limits = json!([{"limit": 5, "period": " Day "}, {"limit": 50, "window": {"kind": ""}}]);
    let (plan, subject) = plan(&workspace, limits).await;
    assert_eq!(plan["limits"][1]["period"], json!("month"));
    let (_, consumed) = consume(&workspace, &subject, 1).await;
    let progress = workspace.get(&format!("/v1/plans/subjects/{subject}/progress")).await;
    let assignments = workspace.get("/v1/plans/assignments").await;
    for text in [plan.to_string(), consumed.to_string(), progress.text, assignments.text] {
        assert!(!text.contains("window") && !text.contains("time_zone"), "{text}");
    }
}

async fn what_windows_may_not_say(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("m", "sum").await;
    let wrong = [
        json!({"period": "hour"}),
        json!({"period": "month", "window": {"kind": "fixed"}}),
        json!({"period": "month", "window": {"kind": "calendar", "time_zone": "Mars/Base"}}),
        json!({"period": "month", "window": {"kind": "sliding"}}),
        json!({"period": "32d", "window": {"kind": "sliding"}}),
        json!({"period": "2y", "window": {"kind": "calendar"}}),
        json!({"period": "week", "window": {"kind": "calendar", "week_start": "friday"}}),
        json!({"period": "hour", "window": {"kind": "sliding", "time_zone": "UTC"}}),
        json!({"period": "month", "window": {"time_zone": "UTC"}}),
    ];
    for mut limit in wrong {
        limit["meter"] = json!("m");
        limit["limit"] = json!(1);
        let body = json!({"name": unique("plan"), "limits": [limit]});
        workspace.post("/v1/plans", &body).await.error(400, "invalid_input");
    }
    let anchored = json!({"meter": "m", "limit": 1, "window": {"kind": "anchored", "anchor": "today"}});
    let body = json!({"name": unique("plan"), "limits": [anchored]});
    workspace.post("/v1/plans", &body).await.error(400, "invalid_anchor");
}

/// Limits whose windows begin at another time of day each, so that each is a counter of its own.
fn anchored(version: usize, count: usize) -> Value {
    let limit = |n: usize| {
        let window = json!({"kind": "anchored", "anchor": format!("2026-01-01T{version:02}:00:{n:02}Z")});
        json!({"meter": "m", "period": "day", "limit": 1_000, "window": window})
    };
    json!({"name": "p", "limits": (0..count).map(limit).collect::<Vec<_>>()})
}

async fn a_meter_has_few_counters_whatever_plans_say(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("m", "sum").await;
    let message = workspace.post("/v1/plans", &anchored(0, 33)).await.error(400, "invalid_input");
    assert_eq!(message, r#"invalid input: meter "m" must not have more than 32 limits"#);
    let mut plan = workspace.post("/v1/plans", &anchored(0, 32)).await.json(201);
    workspace.put("/v1/plans/subjects/s", &json!({"plan_id": plan["id"]})).await.expect(200);
    // every version that the subject had may limit windows that are open now
    for version in 1..5 {
        let path = format!("/v1/plans/{}", plan["id"].as_str().expect("an id"));
        workspace.put(&path, &anchored(version, 33)).await.error(400, "invalid_input");
        workspace.post(&format!("{path}/preview"), &anchored(version, 33)).await.error(400, "invalid_input");
        plan = workspace.put(&path, &anchored(version, 32)).await.json(200);
    }
    let event = json!({"idempotency_key": "k", "meter": "m", "subject": "s", "quantity": 7});
    workspace.post("/v1/usages", &event).await.expect(201);
    assert_eq!(database.count("quota_counters"), 1 + 2 * 32, "of the newest two versions");
    let progress = workspace.get("/v1/plans/subjects/s/progress").await.json(200);
    let items = progress["items"].as_array().expect("a list");
    assert_eq!((items.len(), items.iter().all(|item| item["current"] == json!(7))), (32, true), "{items:?}");
}
