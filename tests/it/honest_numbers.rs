//! Pages say what is so: a number counts everything that its words name, a picture covers all of its time, a file is whole
//! or is not made, and a form that was refused is shown as it was sent.

use serde_json::{Value, json};

use crate::dashboard::{Browser, furnished};
use crate::support::{Client, Database, Server, on_both_databases};

on_both_databases!(
    the_overview_counts_every_meter,
    a_picture_of_many_groups_covers_all_of_its_time,
    the_urgent_come_before_the_many,
    a_refused_view_keeps_what_was_sent,
    an_export_is_of_the_view_that_it_began_as,
    an_event_is_found_without_its_time,
);

/// A browser of somebody with a meter, and the interface for programs of the same workspace.
async fn both(server: &Server) -> (Browser, Client) {
    let browser = furnished(server).await;
    let access = browser.cookies.iter().find(|(name, _)| name == "open_spanner_access").expect("a session");
    let session = server.client().with("cookie", format!("open_spanner_access={}", access.1));
    let key = session.post("/v1/auth/api-keys", &json!({"name": "all", "scopes": ["*"]})).await.json(201);
    let api = server.client().with_key(key["key"].as_str().expect("a secret"));
    (browser, api)
}

async fn the_overview_counts_every_meter(database: Database) {
    let server = Server::start_with(&database, &[("OPEN_SPANNER_SERVE_WORKERS", "off")]);
    let (mut browser, api) = both(&server).await;
    for n in 0..8 {
        api.meter(&format!("m{n}"), "max").await;
        let event = |at: u32| json!({"meter": format!("m{n}"), "subject": "s", "quantity": 7, "idempotency_key": format!("{n}-{at}")});
        api.post("/v1/usages/bulk", &(0..10).map(event).collect::<Value>()).await.expect(201);
    }
    // thirty of the furniture
    for zone in ["", "Asia/Kolkata"] {
        if !zone.is_empty() {
            browser.post("/settings/workspace-zone", &[("workspace_zone", zone)]).await.expect(303);
        }
        let page = browser.get("/overview").await.expect(200).text;
        assert!(page.contains("/events?range=today\">110</a>"), "{zone}: {page}");
        assert!(page.contains("Other (3)"), "{zone}: {page}");
    }
}

async fn a_picture_of_many_groups_covers_all_of_its_time(database: Database) {
    let server = Server::start_with(&database, &[("OPEN_SPANNER_SERVE_WORKERS", "off")]);
    let (mut browser, api) = both(&server).await;
    let dimension = json!([{"name": "tenant", "type": "string"}]);
    api.post("/v1/meters", &json!({"name": "wide", "unit": "u", "dimensions": dimension})).await.expect(201);
    // 400 groups on each of thirty days: more than a picture may be made of
    for day in 1..=30 {
        let event = |n: u32| {
            json!({"meter": "wide", "subject": "s", "quantity": n, "timestamp": format!("2026-06-{day:02}T12:00:00Z"),
                "metadata": {"tenant": format!("t{n}")}})
        };
        api.post("/v1/usages/bulk", &(1..=400).map(event).collect::<Value>()).await.expect(201);
    }
    let view = "/usage?meter=wide&group=tenant&bucket=day&from=2026-06-01&to=2026-07-01";
    let page = browser.get(view).await.expect(200).text;
    assert!(page.contains("There are more than 10,000 groups and buckets together"), "{page}");
    let last =
        page.rsplit("<tr><th scope=\"row\"><a href=\"/events?").find(|row| row.contains(">2026-06-30</a>"));
    let last = last.expect("the last day").split("</tr>").next().unwrap_or_default();
    // the sum of 1 to 400, and what the eight largest of them leave
    let largest: u32 = (393..=400).sum();
    assert!(last.contains(">400<") && last.contains(">393<"), "{last}");
    assert!(
        last.contains(&format!(">{},{:03}<", (80_200 - largest) / 1000, (80_200 - largest) % 1000)),
        "{last}"
    );
    assert!(page.contains("The 100 largest are listed, 300 are not"), "{page}");
    for format in ["csv", "json"] {
        let refused = browser.get(&format!("{view}&format={format}")).await.expect(422).text;
        assert!(refused.contains("queue an export, which has no limit"), "{refused}");
    }
    // the events themselves: twelve thousand
    let refused = browser.get("/events?meter=wide&format=csv").await.expect(422).text;
    assert!(refused.contains("More than 10000 events match"), "{refused}");
    let whole =
        browser.get("/events?meter=wide&format=csv&from=2026-06-01&to=2026-06-21").await.expect(200).text;
    assert_eq!(whole.lines().count(), 1 + 20 * 400);
}

async fn the_urgent_come_before_the_many(database: Database) {
    let server = Server::start_with(&database, &[("OPEN_SPANNER_SERVE_WORKERS", "on")]);
    let (mut browser, api) = both(&server).await;
    api.meter("calls", "sum").await;
    let plan = json!({"name": "Small", "limits": [{"meter": "calls", "period": "month", "limit": 10}]});
    let plan = api.post("/v1/plans", &plan).await.json(201)["id"].clone();
    let subjects: Vec<String> = (0..210).map(|n| format!("c{n:03}")).collect();
    for subject in &subjects {
        api.put(&format!("/v1/plans/subjects/{subject}"), &json!({"plan_id": plan})).await.expect(200);
    }
    let used =
        |subject: &String, quantity: u32| json!({"meter": "calls", "subject": subject, "quantity": quantity});
    api.post("/v1/usages", &used(&subjects[0], 11)).await.expect(201);
    let rest: Value = subjects[1..].iter().map(|subject| used(subject, 1)).collect();
    api.post("/v1/usages/bulk", &rest).await.expect(201);
    let mut page = String::new();
    for _ in 0..300 {
        page = browser.get("/quota?meter=calls").await.expect(200).text;
        if page.contains("after=200") && page.contains(">c000</a>") {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    let first = page.split("<tbody>").nth(1).and_then(|rows| rows.split("</tr>").next()).unwrap_or_default();
    assert!(first.contains(">c000</a>") && first.contains("exceeded"), "{first}");
    assert_eq!(page.matches("<th scope=\"row\">").count(), 200);
    let rest = browser.get("/quota?meter=calls&after=200").await.expect(200).text;
    assert_eq!(rest.matches("<th scope=\"row\">").count(), 10, "{rest}");
    assert!(rest.contains("From number 201 on"), "{rest}");
    // in another order all of them are, on every page
    let first_of = |page: &str| {
        let row =
            page.split("<tbody>").nth(1).and_then(|rows| rows.split("</tr>").next()).unwrap_or_default();
        row.split("</a>").next().and_then(|link| link.rsplit('>').next()).unwrap_or_default().to_owned()
    };
    let backwards = browser.get("/quota?meter=calls&sort=-subject").await.expect(200).text;
    assert_eq!(first_of(&backwards), "c209");
    let next = crate::dashboard::links_of(&backwards).into_iter().find(|link| link.contains("after=200"));
    let next = next.expect("a second page");
    assert!(next.contains("meter=calls") && next.contains("sort=-subject"), "{next}");
    assert_eq!(first_of(&browser.get(&next).await.expect(200).text), "c009");
    let mut csv = browser.get("/quota?meter=calls&sort=-subject&format=csv").await.expect(200);
    for _ in 0..300 {
        if csv.text.contains("c209,calls,month,Small,ok,1,10,") {
            break;
        }
        // the last of them are evaluated in their time
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        csv = browser.get("/quota?meter=calls&sort=-subject&format=csv").await.expect(200);
    }
    assert!(csv.header("content-type").starts_with("text/csv"), "{:?}", csv.headers);
    let lines: Vec<&str> = csv.text.lines().collect();
    assert_eq!((lines.len(), lines[0].split(',').next()), (211, Some("subject")));
    assert!(
        lines[1].starts_with("c209,calls,month,Small,ok,1,10,") && lines[210].contains("exceeded,11,10"),
        "{csv:?}"
    );
    let fullest = browser.get("/quota?meter=calls&sort=-percent").await.expect(200).text;
    assert_eq!((first_of(&fullest).as_str(), fullest.matches("aria-sort=").count()), ("c000", 1));
    let plans = browser.get("/plans").await.expect(200).text;
    let small = plans.split("<tr>").find(|row| row.contains(">Small</a>")).expect("the plan");
    assert!(small.contains("<td class=\"num\">210</td>") && small.contains("1 exceeded"), "{small}");
}

async fn a_refused_view_keeps_what_was_sent(database: Database) {
    let server = Server::start_with(&database, &[("OPEN_SPANNER_SERVE_WORKERS", "off")]);
    let (mut browser, _) = both(&server).await;
    let wrong = "/usage?meter=tokens&group=model&cmp=prev&subject=org_1&f=metadata.model%3Aeq%3Asmall&from=nonsense&to=now";
    let page = browser.get(wrong).await.expect(422).text;
    assert!(page.contains("value=\"nonsense\"") && page.contains("aria-invalid=\"true\""), "{page}");
    assert!(page.contains("id=\"subject\" name=\"subject\" value=\"org_1\""), "{page}");
    assert!(page.contains("name=\"group\" value=\"model\" checked"), "{page}");
    assert!(page.contains("model is small") && page.contains("value=\"prev\" selected"), "{page}");
    let page = browser.get("/events?meter=tokens&from=nonsense&f=quantity%3Agt%3A5").await.expect(422).text;
    assert!(
        page.contains("value=\"nonsense\"")
            && page.contains("quantity &gt; 5") | page.contains("quantity &#62; 5"),
        "{page}"
    );
    assert!(page.contains("Nothing was looked for") && !page.contains("No events yet"), "{page}");
    // one of several values stays one of several
    let added = browser.get("/events?meter=tokens&ff=metadata.model&fo=in&fv=small,other").await.expect(303);
    let page = browser.get(&added.header("location")).await.expect(200).text;
    assert!(page.contains("model is one of small, other") && page.contains(">org_0</a>"), "{page}");
    // no heights on each other of what is no sum
    browser.get("/usage?meter=tokens&show=stacked").await.expect(200);
}

async fn an_export_is_of_the_view_that_it_began_as(database: Database) {
    let server = Server::start_with(&database, &[("OPEN_SPANNER_SERVE_WORKERS", "off")]);
    let (mut browser, api) = both(&server).await;
    let view = "meter=tokens&bucket=week&time_zone=Asia%2FKolkata&range=28d%2Btoday&group=model";
    let form = browser.get(&format!("/exports/new?kind=usage_buckets&{view}")).await.expect(200).text;
    assert!(form.contains("value=\"week\" selected") && form.contains("value=\"Asia/Kolkata\""), "{form}");
    let fields = [
        ("kind", "usage_buckets"),
        ("meter", "tokens"),
        ("range", "28d+today"),
        ("bucket", "week"),
        ("time_zone", "Asia/Kolkata"),
        ("group", "model"),
    ];
    let made = browser.post("/exports/new", &fields).await.expect(303).header("location");
    let id = made.trim_start_matches("/exports/").split('?').next().unwrap_or_default().to_owned();
    let export = api.get(&format!("/v1/exports/{id}")).await.json(200);
    assert_eq!(export["query"]["bucket_size"], "week", "{export}");
    assert_eq!(export["query"]["time_zone"], "Asia/Kolkata", "{export}");
}

async fn an_event_is_found_without_its_time(database: Database) {
    let server = Server::start_with(&database, &[("OPEN_SPANNER_SERVE_WORKERS", "off")]);
    let (mut browser, api) = both(&server).await;
    for days in [0_i64, 3, 60] {
        let at = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(24 * days);
        let event = json!({"meter": "tokens", "subject": "late", "quantity": 1, "timestamp": at.to_string()});
        let id = api.post("/v1/usages", &event).await.json(201)["id"].as_str().expect("an id").to_owned();
        let page = browser.get(&format!("/events/{id}")).await.expect(200).text;
        assert!(page.contains("late"), "{days}: {page}");
        assert!(
            browser.get(&format!("/explain?q={id}")).await.expect(200).text.contains("Stored:"),
            "{days}"
        );
    }
    browser.get("/events/01890000-0000-7000-8000-000000000000").await.expect(404);
}
