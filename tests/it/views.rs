//! What views of usage promise: charts say in words what they show and lead to its events, ranges hang on what is stored,
//! and a page says how old it is.

use std::time::{Duration, Instant};

use open_spanner::metering::time::{DAY, Timestamp};
use serde_json::json;

use crate::dashboard::{furnished, links_of};
use crate::pages::session_of;
use crate::support::{Database, Server, on_both_databases};

on_both_databases!(
    charts_say_what_they_show_and_lead_to_it,
    ranges_hang_on_what_is_stored,
    pages_say_how_old_they_are,
    meters_are_sorted_by_links,
    meters_say_what_uses_them,
    meters_are_found_by_id_before_name,
    groups_of_a_view_add_up_to_its_table,
    a_subject_is_shown_what_is_its_own,
    tables_are_sorted_by_links,
    limits_have_a_period_before_anything_is_used,
    quotas_say_what_happens_beyond_a_limit,
    lists_are_as_long_as_wanted_and_had_as_files,
    one_list_tells_what_became_of_events,
    where_nothing_is_the_nearest_is_told,
    forms_keep_what_no_choice_offers,
    a_view_of_another_zone_leads_to_events_of_its_time,
    a_saved_query_is_opened_by_its_id_alone,
    events_are_listed_between_two_times_that_are_typed,
    an_event_leads_to_what_it_moved,
    subjects_say_their_plan_and_their_worst_state,
    a_look_at_an_export_counts_what_is_still_there,
    series_are_hidden_by_links,
    a_view_is_drawn_and_counted_as_asked,
    a_view_is_compared_with_any_time,
    groups_are_compared_one_by_one,
    pages_load_themselves_for_those_without_a_script,
);

async fn charts_say_what_they_show_and_lead_to_it(database: Database) {
    let server = Server::start(&database);
    let mut browser = furnished(&server).await;
    let page = browser.get("/usage?meter=tokens&range=28d%2Btoday&group=model").await.expect(200).text;
    let caption = page.split_once("<figcaption>").expect("a caption").1.split('<').next().expect("text");
    assert!(caption.starts_with("Total 465 token in 29 buckets; highest 465 token at "), "{caption}");
    assert!(page.contains(&format!("-desc\">{caption}</desc>")), "the same for those who do not see it");
    // told apart without colours, and what is not over without words
    for mark in ["fill=\"url(#usage-p2)\"", "fill=\"url(#usage-run)\"", "Not over yet", "class=\"ends\""] {
        assert!(page.contains(mark), "{mark}");
    }
    let cells: Vec<String> = links_of(&page)
        .into_iter()
        .filter(|link| link.starts_with("/events?") && link.contains("f=metadata.model%3Aeq%3Asmall"))
        .collect();
    assert_eq!(cells.len(), 1, "one bucket holds something: {cells:?}");
    let events = browser.get(&cells[0]).await.expect(200).text;
    assert_eq!(events.matches(">Details</a>").count(), 15, "{events}");

    let overview = browser.get("/overview").await.expect(200).text;
    let narrowed = links_of(&overview)
        .into_iter()
        .any(|link| link.starts_with("/events?from=") && link.ends_with("&meter=tokens"));
    assert!(narrowed && overview.contains("<figcaption>Total 30 events in 28 buckets"), "{overview}");
    // what is added up over time has no events of one bucket
    let cumulative = browser.get("/usage?meter=tokens&cum=1&group=model").await.expect(200).text;
    assert!(
        !links_of(&cumulative).iter().any(|link| link.starts_with("/events?") && link.contains("f=metadata"))
    );
}

async fn ranges_hang_on_what_is_stored(database: Database) {
    let server = Server::start(&database);
    let mut browser = furnished(&server).await;
    let all = browser.get("/usage?meter=tokens&range=all").await.expect(200).text;
    assert!(all.contains("<option value=\"all\" selected>") && !all.contains("value=\"period\""), "{all}");
    assert!(all.contains("Total 465 token in "), "{all}");
    assert!(!all.contains("1970"), "it begins with the first event");
    assert!(all.contains("href=\"/events?meter=tokens&#38;from="), "other pages are told times: {all}");
    assert!(all.contains(">Zoom out</a>"));
    let csv = browser.get("/usage?meter=tokens&range=all&format=csv").await.expect(200);
    assert!(csv.header("content-type").starts_with("text/csv") && csv.text.contains("465"), "{}", csv.text);

    // the period began when the plan was assigned: what was used before is in none
    let key = session_of(&server, &browser)
        .post("/v1/auth/api-keys", &json!({"name": "late", "scopes": ["*"]}))
        .await
        .json(201);
    let api = server.client().with_key(key["key"].as_str().expect("a secret"));
    // an assignment counts from the second in which it was made: two hours before is before in any case
    let before = (jiff::Timestamp::now() - jiff::SignedDuration::from_hours(2)).to_string();
    let used = |quantity: u32, more: serde_json::Value| {
        let mut event = json!({"meter": "tokens", "subject": "late_1", "quantity": quantity, "metadata": {"model": "small"}});
        event.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        event
    };
    api.post("/v1/usages", &used(9, json!({"timestamp": before}))).await.expect(201);
    let plans = api.get("/v1/plans").await.json(200);
    let assigned = json!({"plan_id": plans["items"][0]["id"]});
    api.put("/v1/plans/subjects/late_1", &assigned).await.expect(200);
    api.post("/v1/usages", &used(7, json!({}))).await.expect(201);
    let period = browser.get("/usage?meter=tokens&subject=late_1&range=period").await.expect(200).text;
    assert!(period.contains("<option value=\"period\" selected>"), "{period}");
    assert!(period.contains("Total 7 token in "), "{period}");
    let nobody = browser.get("/usage?meter=tokens&range=period").await.expect(422).text;
    assert!(nobody.contains("name a subject"), "{nobody}");
    let unlimited = browser.get("/usage?meter=tokens&subject=no_body_2&range=period").await.expect(422).text;
    assert!(unlimited.contains("no plan limits tokens for no_body_2"), "{unlimited}");

    let kept =
        [("name", "This period"), ("query", "meter=tokens&subject=late_1&range=period"), ("pinned", "1")];
    browser.post("/usage/saved/new", &kept).await.expect(303);
    let overview = browser.get("/overview").await.expect(200).text;
    assert!(overview.contains("Period of the plan") && overview.contains("7 <small>token"), "{overview}");
}

async fn pages_say_how_old_they_are(database: Database) {
    let server = Server::start(&database);
    let mut browser = furnished(&server).await;
    for path in
        ["/usage?meter=tokens", "/meters/tokens", "/meters", "/subjects", "/decisions", "/audit", "/plans"]
    {
        let page = browser.get(path).await.expect(200).text;
        assert!(page.contains("id=\"as-of\"") && page.contains(">Refresh</a>"), "{path}: {page}");
        let again = links_of(&page).into_iter().any(|link| link == path);
        assert!(again, "{path} leads to itself");
    }
    let alerts = browser.get("/alerts").await.expect(200).text;
    let alert =
        links_of(&alerts).into_iter().find(|link| link.starts_with("/alerts/") && link != "/alerts/new");
    let alert = alert.expect("an alert");
    for path in [
        "/overview",
        "/quota",
        "/subjects/org_1",
        "/exports",
        "/jobs",
        "/jobs/workers/alert",
        "/system",
        "/events",
        "/events?meter=tokens",
        "/events/refused",
        "/ingestion",
        "/alerts",
        alert.as_str(),
        "/deliveries",
        "/deliveries?status=dead_letter",
    ] {
        let page = browser.get(path).await.expect(200).text;
        for part in ["id=\"as-of\"", "id=\"live-pause\"", "id=\"live-status\""] {
            assert_eq!(page.matches(part).count(), 1, "{part} of {path}");
        }
    }
}

async fn meters_are_sorted_by_links(database: Database) {
    let server = Server::start(&database);
    let mut browser = furnished(&server).await;
    for name in ["aa_unused", "zz_unused"] {
        let fields =
            [("name", name), ("unit", "call"), ("aggregation", "count"), ("event_retention_days", "90")];
        browser.post("/meters/new", &fields).await.expect(303);
    }
    for (sort, first, order) in [
        ("", "aa_unused", "ascending"),
        ("?sort=-name", "zz_unused", "descending"),
        ("?sort=-events", "tokens", "descending"),
        ("?sort=events", "aa_unused", "ascending"),
        ("?sort=-last", "tokens", "descending"),
    ] {
        let page = browser.get(&format!("/meters{sort}")).await.expect(200).text;
        let body = page.split_once("<tbody>").expect("rows").1;
        let link = body.split("href=\"/meters/").nth(1).expect("a meter");
        let shown = link.split('>').nth(1).and_then(|rest| rest.split('<').next());
        assert_eq!(shown, Some(first), "{sort}");
        assert_eq!(page.matches(&format!("aria-sort=\"{order}\"")).count(), 1, "{sort}");
    }
    browser.get("/meters?sort=size").await.expect(422);
}

/// The list of meters draws the last four weeks of each, and counts the plans and rules that it is in.
async fn meters_say_what_uses_them(database: Database) {
    let server = Server::start(&database);
    let mut browser = furnished(&server).await;
    let fields =
        [("name", "idle"), ("unit", "call"), ("aggregation", "count"), ("event_retention_days", "90")];
    browser.post("/meters/new", &fields).await.expect(303);
    // a second version of the plan is the same plan
    let api = session_of(&server, &browser);
    let plans = api.get("/v1/plans").await.json(200);
    let path = format!("/v1/plans/{}", plans["items"][0]["id"].as_str().expect("an id"));
    let limits = json!([{"meter": "tokens", "period": "month", "limit": 101},
        {"meter": "tokens", "period": "day", "limit": 50}]);
    api.put(&path, &json!({"name": "Pro", "limits": limits})).await.expect(200);
    let page = browser.get("/meters").await.expect(200).text;
    let row =
        |name: &str| page.split("<tr>").find(|row| row.contains(&format!(">{name}</a>"))).expect("a row");
    assert!(row("tokens").contains("1 plan, 1 alert rule"), "{page}");
    assert!(
        row("tokens").contains("Events of tokens per day of UTC") && row("tokens").contains(" 24V"),
        "{page}"
    );
    assert!(row("idle").contains(">nothing<") && !row("idle").contains(" 24V"), "{page}");
    let json = browser.get("/meters?format=json&sort=-events").await.json(200);
    assert_eq!(
        (&json[0]["plans"], &json[0]["alert_rules"], &json[1]["plans"]),
        (&json!(1), &json!(1), &json!(0))
    );
}

/// Wherever a page is told a meter, also where another one is called like the id of it.
async fn meters_are_found_by_id_before_name(database: Database) {
    let server = Server::start(&database);
    let mut browser = furnished(&server).await;
    let listed = session_of(&server, &browser).get("/v1/meters").await.json(200);
    let id = listed["items"][0]["id"].as_str().expect("an id").to_owned();
    browser.get(&format!("/meters/{id}x")).await.expect(404);
    let fields =
        [("name", id.as_str()), ("unit", "x"), ("aggregation", "count"), ("event_retention_days", "90")];
    for is_ambiguous in [false, true] {
        for path in [format!("/meters/{id}"), format!("/usage?meter={id}"), "/meters/tokens".to_owned()] {
            let page = browser.get(&path).await.expect(200).text;
            assert!(page.contains("sum of tokens, "), "{path} {is_ambiguous}: {page}");
        }
        if !is_ambiguous {
            browser.post("/meters/new", &fields).await.expect(303);
        }
    }
}

/// The table has one row for each group of the picture, over all of its time.
async fn groups_of_a_view_add_up_to_its_table(database: Database) {
    let server = Server::start(&database);
    let mut browser = furnished(&server).await;
    let api = session_of(&server, &browser);
    let at = (jiff::Timestamp::now() - jiff::SignedDuration::from_hours(30)).to_string();
    for (n, model) in ["small", "<b>large</b>", "tiny"].iter().enumerate() {
        let event = json!({"idempotency_key": format!("old-{n}"), "meter": "tokens", "subject": "org_1",
            "quantity": 0.5, "timestamp": at, "metadata": {"model": model}});
        api.post("/v1/usages", &event).await.expect(201);
    }
    let page = browser.get("/usage?meter=tokens&group=model&bucket=day").await.expect(200).text;
    let table = page.split_once("<caption class=\"hidden\">Usage by group</caption>").expect("a table").1;
    let rows = table.split("</table>").next().unwrap_or_default().split("<tr><th scope=\"row\">").skip(1);
    let text = |cell: &str| cell.split('<').next().unwrap_or_default().to_owned();
    let rows = rows.map(|row| {
        let quantity = row.split_once("<td class=\"num\">").expect("a quantity").1;
        (text(row), text(quantity))
    });
    let wanted =
        [("&#60;b&#62;large&#60;/b&#62;", "240.5 token"), ("small", "225.5 token"), ("tiny", "0.5 token")];
    let wanted = wanted.map(|(name, quantity)| (name.to_owned(), quantity.to_owned()));
    assert_eq!(rows.collect::<Vec<_>>(), wanted, "{page}");
    assert!(page.contains("Total 466.5 token in "), "{page}");
}

/// Rows of the table with this caption.
fn rows_under(page: &str, caption: &str) -> usize {
    let table = page.split_once(&format!("<caption class=\"hidden\">{caption}</caption>"));
    let rows = table.map_or("", |(_, rest)| rest.split("</table>").next().unwrap_or_default());
    rows.matches("<tr>").count().saturating_sub(1)
}

/// As much of it as programs are told, and nothing of others.
async fn a_subject_is_shown_what_is_its_own(database: Database) {
    let settings =
        [("OPEN_SPANNER_SERVE_WORKERS", "on"), ("OPEN_SPANNER_ENTITLEMENT_WORKER_INTERVAL", "200ms")];
    let server = Server::start_with(&database, &settings);
    let mut browser = furnished(&server).await;
    let api = session_of(&server, &browser);
    browser.get("/subjects/unheard_of").await.expect(404);
    for (name, limit) in [("Tiny", 1), ("Small", 2)] {
        let limits = [("day", limit), ("month", 3)]
            .map(|(period, limit)| json!({"meter": "tokens", "period": period, "limit": limit}));
        let plan = api.post("/v1/plans", &json!({"name": name, "limits": limits})).await.json(201);
        for subject in ["one", "two"] {
            let assigned = json!({"plan_id": plan["id"]});
            api.put(&format!("/v1/plans/subjects/{subject}"), &assigned).await.expect(200);
        }
    }
    let used = json!({"meter": "tokens", "subject": "one", "quantity": 5, "metadata": {"model": "small"}});
    api.post("/v1/usages", &used).await.expect(201);

    let lists = ["entitlements/events?", "entitlements/periods?", "plans/assignments?include_history=true&"];
    let end = Instant::now() + Duration::from_secs(60);
    let page = loop {
        let mut told = Vec::new();
        for list in lists {
            let listed = api.get(&format!("/v1/{list}subject=one")).await.json(200);
            told.push(listed["items"].as_array().expect("a list").len());
        }
        let page = browser.get("/subjects/one").await.expect(200).text;
        let shown = ["Entitlement changes", "Periods", "Plans of this subject"];
        let shown = shown.map(|caption| rows_under(&page, caption));
        // evaluation may come between two looks
        if told[0] >= 2 && told == shown {
            break page;
        }
        assert!(Instant::now() < end, "{told:?} {shown:?}: {page}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let plans = page.split_once("Plans of this subject").expect("its plans").1;
    let place = |name: &str| plans.find(name).expect("a plan that it had");
    assert!(place(">Small v1<") < place(">Tiny v1<"), "{plans}");
    assert!(page.contains(">Small v1</a></p>") && page.contains(", against the limit"), "{page}");
    let other = browser.get("/subjects/two").await.expect(200).text;
    assert_eq!(rows_under(&other, "Plans of this subject"), 2);
    assert_eq!(rows_under(&other, "Entitlement changes") + rows_under(&other, "Recent events"), 0);
}

/// The first cell of each row of a table.
fn first_cells(page: &str) -> Vec<String> {
    let body = page.split_once("<tbody>").expect("rows").1.split("</tbody>").next().expect("an end");
    let cells = body.split("<th scope=\"row\">").skip(1);
    let text = |cell: &str| {
        let cell = cell.split("</th>").next().unwrap_or_default();
        let plain = cell.split('<').map(|part| part.split_once('>').map_or(part, |(_, text)| text));
        plain.collect::<String>().trim().to_owned()
    };
    cells.map(text).collect()
}

async fn tables_are_sorted_by_links(database: Database) {
    let server = Server::start(&database);
    let mut browser = furnished(&server).await;
    for name in ["aa key", "zz key"] {
        browser
            .post("/api-keys/new", &[("name", name), ("preset", "ingest"), ("days", "7")])
            .await
            .expect(303);
    }
    let key = session_of(&server, &browser)
        .post("/v1/auth/api-keys", &json!({"name": "mm key", "scopes": ["*"]}))
        .await
        .json(201);
    let api = server.client().with_key(key["key"].as_str().expect("a secret"));
    for (subject, events) in [("aa", 1), ("zz", 40)] {
        for _ in 0..events {
            let event =
                json!({"meter": "tokens", "subject": subject, "quantity": 1, "metadata": {"model": "small"}});
            api.post("/v1/usages", &event).await.expect(201);
        }
    }
    for (path, first) in [
        ("/api-keys?sort=name", "aa key"),
        ("/api-keys?sort=-name", "zz key"),
        ("/subjects?sort=subject", "aa"),
        ("/subjects?sort=-subject", "zz"),
        ("/subjects?sort=-events", "zz"),
        ("/subjects?sort=events", "aa"),
        ("/usage?meter=tokens&group=subject&sort=name", "aa"),
        ("/usage?meter=tokens&group=subject&sort=-name", "zz"),
    ] {
        let page = browser.get(path).await.expect(200).text;
        let table = match path.starts_with("/usage") {
            true => page.split_once("aria-label=\"Groups\"").expect("a table").1,
            false => page.as_str(),
        };
        assert_eq!(first_cells(table).first().map(String::as_str), Some(first), "{path}");
        assert_eq!(table.matches("aria-sort=").count(), 1, "{path}");
    }
    // the largest first, without a word in the address
    let page = browser.get("/usage?meter=tokens&group=subject").await.expect(200).text;
    assert!(page.contains("sort=quantity\""), "{page}");
    let table = page.split_once("aria-label=\"Groups\"").expect("a table").1;
    let by_size = first_cells(table);
    let smallest = browser.get("/usage?meter=tokens&group=subject&sort=quantity").await.expect(200).text;
    let smallest = first_cells(smallest.split_once("aria-label=\"Groups\"").expect("a table").1);
    assert_eq!(by_size.first(), smallest.last(), "{by_size:?} {smallest:?}");
    for path in ["/alerts?sort=state", "/plans?sort=-near", "/plans?sort=-subjects"] {
        let page = browser.get(path).await.expect(200).text;
        assert_eq!(page.matches("aria-sort=").count(), 1, "{path}: {page}");
    }
    for path in ["/quota?sort=x", "/subjects?sort=x", "/plans?sort=x", "/alerts?sort=x", "/api-keys?sort=x"] {
        let page = browser.get(path).await.expect(422).text;
        assert!(page.contains("name=\"sort\" value=\"x\" aria-invalid=\"true\""), "{path}: {page}");
    }
    // everything else that was sent is kept, but for a place in a list that is another one now
    let wrong = "/quota?meter=%3Cb%3E&state=ok&sort=x&after=200";
    let page = browser.get(wrong).await.expect(422).text;
    assert!(page.contains("name=\"meter\" value=\"&#60;b&#62;\""), "{page}");
    assert!(page.contains("name=\"state\" value=\"ok\"") && !page.contains("name=\"after\""), "{page}");
    assert!(page.contains("Nothing was looked for") && page.contains("action=\"/quota\""), "{page}");
    let page = browser.get("/subjects?cursor=%21").await.expect(422).text;
    assert!(page.contains("role=\"alert\"") && page.contains("href=\"/subjects\""), "{page}");
    assert!(browser.get("/usage?meter=tokens&sort=x").await.expect(422).text.contains("Sort must be one of"));
}

/// When a limit resets follows from the plan, whether anything was used or not.
async fn limits_have_a_period_before_anything_is_used(database: Database) {
    let settings =
        [("OPEN_SPANNER_SERVE_WORKERS", "on"), ("OPEN_SPANNER_ENTITLEMENT_WORKER_INTERVAL", "200ms")];
    let server = Server::start_with(&database, &settings);
    let mut browser = furnished(&server).await;
    let api = session_of(&server, &browser);
    let window = json!({"kind": "calendar", "time_zone": "Europe/Berlin"});
    let limits = json!([{"meter": "tokens", "period": "month", "limit": 5},
        {"meter": "tokens", "period": "month", "limit": 5, "window": window},
        {"meter": "tokens", "period": "1h", "limit": 5, "window": {"kind": "sliding"}}]);
    let plan = api.post("/v1/plans", &json!({"name": "Calm", "limits": limits})).await.json(201);
    api.put("/v1/plans/subjects/calm_1", &json!({"plan_id": plan["id"]})).await.expect(200);
    let end = Instant::now() + Duration::from_secs(60);
    let csv = loop {
        let csv = browser.get("/quota?subject=calm_1&format=csv").await.expect(200).text;
        if csv.trim().lines().count() == 4 {
            break csv;
        }
        assert!(Instant::now() < end, "{csv}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    // one that slides has no end
    let endless = csv.trim().lines().skip(1).filter(|line| line.ends_with(','));
    let endless: Vec<&str> = endless.collect();
    assert!(endless.len() == 1 && endless[0].contains("sliding"), "{csv}");
    // where nothing is used, nobody evaluates again when the next period begins
    database.execute("UPDATE entitlement_states SET updated_at = 1000000");
    let later = browser.get("/quota?subject=calm_1&format=csv").await.expect(200).text;
    assert_eq!(later.trim().lines().skip(1).filter(|line| line.ends_with(',')).count(), 1, "{later}");
    browser.get("/quota?state=unwell").await.expect(422);
    let of_plan = browser.get("/quota?plan=Calm&format=csv").await.expect(200).text;
    assert_eq!(of_plan.matches("calm_1").count(), 3, "{of_plan}");
    assert!(!browser.get("/quota?plan=nosuch&format=csv").await.expect(200).text.contains("calm_1"));
    // decisions are narrowed by fields of their form
    let hard = browser.get("/decisions?enforcement=hard").await.expect(200).text;
    assert!(
        hard.contains("<option value=\"hard\" selected>") && hard.contains("href=\"/decisions/c1\""),
        "{hard}"
    );
    for wrong in ["outcome=allowed", "state=fine", "enforcement=soft"] {
        let page = browser.get(&format!("/decisions?subject=org_1&{wrong}")).await.expect(422).text;
        let (name, value) = wrong.split_once('=').expect("a pair");
        let field = format!("name=\"{name}\" value=\"{value}\" aria-invalid=\"true\"");
        assert!(page.contains(&field) && page.contains("value=\"org_1\""), "{wrong}: {page}");
    }
    let none = browser.get("/decisions?enforcement=advisory").await.expect(200).text;
    assert!(none.contains("No decisions match"), "{none}");
}

/// Hard and advisory limits are told apart, of one meter too, and in the zone that a limit leaves to the subject.
async fn quotas_say_what_happens_beyond_a_limit(database: Database) {
    let settings =
        [("OPEN_SPANNER_SERVE_WORKERS", "on"), ("OPEN_SPANNER_ENTITLEMENT_WORKER_INTERVAL", "200ms")];
    let server = Server::start_with(&database, &settings);
    let mut browser = furnished(&server).await;
    let api = session_of(&server, &browser);
    let limits = json!([{"meter": "tokens", "period": "month", "limit": 5, "enforcement": "hard"},
        {"meter": "tokens", "period": "day", "limit": 5, "window": {"kind": "calendar"}},
        {"meter": "tokens", "period": "1h", "limit": 5, "enforcement": "hard", "window": {"kind": "sliding"}}]);
    let plan = api.post("/v1/plans", &json!({"name": "Mixed", "limits": limits})).await.json(201);
    let assigned = json!({"plan_id": plan["id"], "time_zone": "Asia/Kolkata"});
    api.put("/v1/plans/subjects/mixed_1", &assigned).await.expect(200);
    let rows = |csv: &str| csv.trim().lines().skip(1).map(str::to_owned).collect::<Vec<String>>();
    let end = Instant::now() + Duration::from_secs(60);
    let all = loop {
        let all = rows(&browser.get("/quota?subject=mixed_1&format=csv").await.expect(200).text);
        if all.len() == 3 {
            break all;
        }
        assert!(Instant::now() < end, "{all:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let of = |word: &str| all.iter().filter(|row| row.contains(&format!(",{word},"))).count();
    assert_eq!((of("hard"), of("advisory")), (2, 1), "{all:?}");
    for (word, count) in [("hard", 2), ("advisory", 1)] {
        let view = format!("/quota?subject=mixed_1&enforcement={word}");
        let page = browser.get(&view).await.expect(200).text;
        assert!(page.contains(&format!("<option value=\"{word}\" selected>")), "{page}");
        assert_eq!(page.matches(&format!(" · {word}</small>")).count(), count, "{page}");
        assert_eq!(rows(&browser.get(&format!("{view}&format=csv")).await.expect(200).text).len(), count);
        assert!(!page.contains("id=\"list-curl\""), "programs do not narrow states by it: {page}");
    }
    browser.get("/quota?enforcement=soft").await.expect(422);
}

/// How many rows a page has is in its address, and what it shows is had as a file and by a call.
async fn lists_are_as_long_as_wanted_and_had_as_files(database: Database) {
    let server = Server::start(&database);
    let mut browser = furnished(&server).await;
    let lists = [
        "/subjects",
        "/meters",
        "/events",
        "/events/refused",
        "/ingestion",
        "/decisions",
        "/exports",
        "/audit",
        "/deliveries",
        "/quota",
    ];
    for path in lists {
        let page = browser.get(path).await.expect(200).text;
        let sizes = links_of(&page).into_iter().filter(|link| link.contains("limit=")).count();
        assert!(sizes >= 3, "{path}: {page}");
        assert!(page.contains("<pre id=\"list-curl\">curl "), "{path}: {page}");
        let page = browser.get(&format!("{path}?limit=500")).await.expect(200).text;
        let has_form = page.contains("<button class=\"primary\">Show</button>");
        let keeps = page.contains("<input type=\"hidden\" name=\"limit\" value=\"500\">");
        assert_eq!(
            has_form, keeps,
            "{path}: a form that narrows the list keeps how long its pages are: {page}"
        );
        let refused = browser.get(&format!("{path}?limit=7")).await.expect(422).text;
        assert!(refused.contains("25, 50, 100 or 500"), "{path}: {refused}");
    }
    // the call is narrowed by what the page is narrowed by, or there is none
    for (path, call) in [
        ("/quota?state=ok", "/v1/entitlements/states?state=ok&#38;limit=200"),
        ("/deliveries?status=pending", "/v1/alerts/delivery-jobs?status=pending&#38;limit=50"),
        ("/events/refused?outcome=conflict&limit=25", "/v1/events/refused?outcome=conflict&#38;limit=25"),
    ] {
        let page = browser.get(path).await.expect(200).text;
        assert!(page.contains(call), "{path}: {page}");
    }
    for path in ["/quota?plan=Pro", "/deliveries?from=2026-01-01", "/exports?status=queued"] {
        let page = browser.get(path).await.expect(200).text;
        assert!(!page.contains("id=\"list-curl\""), "{path}: {page}");
    }
    let added = browser.get("/events?limit=25&ff=quantity&fo=gt&fv=0").await.expect(303);
    assert!(added.header("location").ends_with("&limit=25"), "{:?}", added.headers);
    let page = browser.get("/events?limit=25").await.expect(200).text;
    assert_eq!(page.matches(">Details</a>").count(), 25);
    let next = links_of(&page).into_iter().find(|link| link.contains("cursor=") && link.contains("limit=25"));
    let page = browser.get(&next.expect("another page")).await.expect(200).text;
    assert_eq!(page.matches(">Details</a>").count(), 5, "{page}");

    for (path, columns) in [
        ("/subjects", "subject,events,meters,last_event_at"),
        ("/meters", "meter,aggregation,unit,events,"),
        ("/events/refused", "id,created_at,outcome,code,"),
        ("/ingestion", "id,created_at,kind,accepted,"),
        ("/decisions", "idempotency_key,created_at,outcome,"),
        ("/deliveries", "id,created_at,status,rule,"),
        ("/quota", "subject,meter,period,plan,state,"),
        ("/plans", "id,plan,version,limits,subjects,"),
        ("/alerts", "id,rule,state,meter,condition,"),
    ] {
        let csv = browser.get(&format!("{path}?format=csv")).await.expect(200);
        assert!(csv.header("content-disposition").starts_with("attachment"), "{path}: {:?}", csv.headers);
        assert!(csv.text.starts_with(columns), "{path}: {}", csv.text);
        let json = browser.get(&format!("{path}?format=json")).await.json(200);
        let rows = json.as_array().map(Vec::len).expect("a list");
        // quotas may be evaluated meanwhile
        assert!(
            path == "/quota" || csv.text.trim().lines().count() == rows + 1,
            "{path}: {json} {}",
            csv.text
        );
    }
    // how long a write call took is told of each
    let calls = browser.get("/ingestion").await.expect(200).text;
    assert!(calls.contains(">Took</th>") && calls.contains(" ms</td>"), "{calls}");
    let meter = browser.get("/meters/tokens").await.expect(200).text;
    let refused = "/events?meter=tokens&outcome=rejected".to_owned();
    assert!(links_of(&meter).contains(&refused), "{meter}");
    let subjects = browser.get("/subjects?format=json&sort=subject").await.json(200);
    assert_eq!(
        (&subjects[0]["subject"], &subjects[0]["events"]),
        (&json!("org_0"), &json!(10)),
        "{subjects}"
    );
    for path in ["/subjects?format=xml", "/exports?format=csv", "/audit?format=json"] {
        browser.get(path).await.expect(422);
    }
}

/// Those that were stored and those that were refused, by one word of the address.
async fn one_list_tells_what_became_of_events(database: Database) {
    let server = Server::start(&database);
    let mut browser = furnished(&server).await;
    let api = session_of(&server, &browser);
    let refused = json!({"idempotency_key": "bad-1", "meter": "nosuch", "subject": "org_1", "quantity": 1});
    api.post("/v1/usages", &refused).await.expect(404);
    let end = Instant::now() + Duration::from_secs(60);
    let rejected = loop {
        // refused events are written a moment later
        let page = browser.get("/events?outcome=rejected").await.expect(200).text;
        if page.contains("bad-1") {
            break page;
        }
        assert!(Instant::now() < end, "{page}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let caption = "Events and what became of them, newest first";
    assert_eq!(rows_under(&rejected, caption), 1, "{rejected}");
    assert!(rejected.contains("<code>not_found</code>") && rejected.contains("href=\"/events/refused/"));
    let all = browser.get("/events?outcome=all").await.expect(200).text;
    assert_eq!(rows_under(&all, caption), 31, "{all}");
    // a page goes on where the last one ended, with either kind
    let first = browser.get("/events?outcome=all&limit=25").await.expect(200).text;
    let next =
        links_of(&first).into_iter().find(|link| link.contains("cursor=") && link.contains("limit=25"));
    let second = browser.get(&next.expect("another page")).await.expect(200).text;
    assert_eq!((rows_under(&first, caption), rows_under(&second, caption)), (25, 6), "{second}");
    assert_eq!(first.matches("bad-1").count() + second.matches("bad-1").count(), 1);
    let csv = browser.get("/events?outcome=all&format=csv").await.expect(200).text;
    assert_eq!((csv.matches(",accepted,").count(), csv.matches(",rejected,").count()), (30, 1), "{csv}");
    let none = browser.get("/events?outcome=conflict&subject=org_1").await.expect(200).text;
    assert!(none.contains("Nothing matches"), "{none}");
    for wrong in ["outcome=lost", "outcome=duplicate", "outcome=all&f=quantity%3Agt%3A5"] {
        let page = browser.get(&format!("/events?{wrong}")).await.expect(422).text;
        assert!(page.contains("name=\"outcome\" aria-invalid=\"true\""), "{wrong}: {page}");
    }
    // the picture above leads to what it counts
    let stored = browser.get("/events").await.expect(200).text;
    assert!(links_of(&stored).iter().any(|link| link.contains("outcome=rejected")), "{stored}");
}

/// A time that holds nothing leads to the day of the newest event that matches otherwise.
async fn where_nothing_is_the_nearest_is_told(database: Database) {
    let server = Server::start(&database);
    let mut browser = furnished(&server).await;
    let empty = "from=2020-01-01&to=2020-01-08";
    for view in [
        format!("/usage?meter=tokens&subject=org_1&{empty}"),
        format!("/events?meter=tokens&subject=org_1&{empty}"),
        format!("/events?{empty}"),
    ] {
        let page = browser.get(&view).await.expect(200).text;
        let told = page.split_once("but for its time is of <a href=\"").expect(&page).1;
        let link = told.split('"').next().expect("a link").replace("&#38;", "&").replace("&amp;", "&");
        let page = browser.get(&link).await.expect(200).text;
        assert!(!page.contains("Nothing matches"), "{link}: {page}");
    }
    // where a filter decides, the newest events are looked at, however many there are: a hint is not worth more
    let rare = format!("/usage?meter=tokens&f=metadata.model%3Aeq%3Arare&{empty}");
    let api = session_of(&server, &browser);
    let event = |model: &str, days: i64| {
        let at = Timestamp::now().plus(-days * DAY).to_exact_text();
        json!({"meter": "tokens", "subject": "org_1", "quantity": 1, "metadata": {"model": model}, "timestamp": at})
    };
    api.post("/v1/usages", &event("rare", 2)).await.expect(201);
    assert!(browser.get(&rare).await.expect(200).text.contains("but for its time"));
    for _ in 0..3 {
        let common: Vec<serde_json::Value> = (0..500).map(|_| event("common", 1)).collect();
        api.post("/v1/usages/bulk", &json!(common)).await.expect(201);
    }
    assert!(!browser.get(&rare).await.expect(200).text.contains("but for its time"));
    // nothing at all has no nearest
    for view in
        [format!("/usage?meter=tokens&subject=nobody_9&{empty}"), format!("/events?subject=nobody_9&{empty}")]
    {
        let page = browser.get(&view).await.expect(200).text;
        assert!(page.contains("Nothing matches") && !page.contains("but for its time"), "{view}: {page}");
    }
}

/// A word of the address that is no choice of the form is one more, or sending the form would ask for something else.
async fn forms_keep_what_no_choice_offers(database: Database) {
    let server = Server::start(&database);
    let mut browser = furnished(&server).await;
    for (path, chosen) in [
        ("/usage?meter=tokens&range=30d", "30d"),
        ("/usage?meter=tokens&range=this-week&bucket=6h", "this-week"),
        ("/usage?meter=tokens&range=this-week&bucket=6h", "6h"),
        ("/events?range=6h", "6h"),
        ("/events?meter=nosuch", "nosuch"),
        ("/exports/new?meter=tokens&range=30d", "30d"),
        ("/exports/new?meter=tokens&bucket=6h", "6h"),
        // what is a choice already is there once
        ("/usage?meter=tokens&range=7d&bucket=day", "7d"),
        ("/usage?meter=tokens&range=7d&bucket=day", "tokens"),
        ("/usage?meter=tokens&range=all", "all"),
    ] {
        let page = browser.get(path).await.expect(200).text;
        let choices: Vec<&str> = page.split(&format!("<option value=\"{chosen}\"")).skip(1).collect();
        assert!(choices.len() == 1 && choices[0].starts_with(" selected>"), "{path} {chosen}: {page}");
    }
}

/// Words such as the last seven days mean another time where days begin elsewhere.
async fn a_view_of_another_zone_leads_to_events_of_its_time(database: Database) {
    let server = Server::start(&database);
    let mut browser = furnished(&server).await;
    let events = |page: &str| {
        let before = page.split_once(">View Events</a>").expect("a button").0;
        let link = before.rsplit_once("href=\"").expect("a link").1.trim_end_matches('"');
        link.replace("&#38;", "&").replace("&amp;", "&")
    };
    let view = "/usage?meter=tokens&range=7d%2Btoday";
    let page = browser.get(view).await.expect(200).text;
    assert!(events(&page).ends_with("range=7d%2Btoday"), "{}", events(&page));
    for name in ["time_zone", "zone"] {
        let page = browser.get(&format!("{view}&{name}=asia/kolkata")).await.expect(200).text;
        assert!(page.contains("From (Asia/Kolkata)"), "{name}: {page}");
        let link = events(&page);
        assert!(link.contains("T18%3A30%3A00Z&to=") && !link.contains("range="), "{name}: {link}");
        browser.get(&link).await.expect(200);
        let page = browser.get(&format!("{view}&{name}=Mars/Base")).await.expect(422).text;
        assert!(page.contains("name=\"time_zone\" list=\"zones\" value=\"Mars/Base\""), "{name}: {page}");
    }
    // a week that begins on another day is another time, too
    let week = "/usage?meter=tokens&range=this-week";
    let page = browser.get(&format!("{week}&week_start=sunday")).await.expect(200).text;
    assert!(events(&page).contains("from=") && !events(&page).contains("range="), "{}", events(&page));
    assert!(events(&browser.get(week).await.expect(200).text).ends_with("range=this-week"));
}

/// What the address says besides wins over what is kept.
async fn a_saved_query_is_opened_by_its_id_alone(database: Database) {
    let server = Server::start(&database);
    let mut browser = furnished(&server).await;
    // one that comes before the meter of the query
    let fields = [("name", "aa"), ("unit", "x"), ("aggregation", "count"), ("event_retention_days", "90")];
    browser.post("/meters/new", &fields).await.expect(303);
    let listed = session_of(&server, &browser).get("/v1/usage/saved-queries").await.json(200);
    let view = format!("/usage?saved={}", listed["items"][0]["id"].as_str().expect("an id"));
    let has = |page: &str, parts: &[&str]| parts.iter().all(|part| page.contains(part));
    let kept = [
        "<strong>By model</strong>",
        "<option value=\"tokens\" selected>",
        "name=\"group\" value=\"model\" checked",
    ];
    let page = browser.get(&view).await.expect(200).text;
    assert!(has(&page, &kept) && page.contains("<option value=\"28d+today\" selected>"), "{page}");
    assert!(!page.contains(">modified<"), "{page}");
    let page = browser.get(&format!("{view}&range=7d%2Btoday")).await.expect(200).text;
    assert!(has(&page, &kept) && page.contains("<option value=\"7d+today\" selected>"), "{page}");
    assert!(page.contains(">modified<"), "{page}");
    let csv = browser.get(&format!("{view}&format=csv")).await.expect(200);
    assert!(csv.header("content-disposition").contains("usage-buckets-tokens.csv"), "{:?}", csv.headers);
    let told = browser.get("/usage?saved=nosuch").await.expect(422).text;
    assert!(told.contains("role=\"alert\"") && told.contains("no query of yours"), "{told}");
    browser.get("/usage?saved=nosuch&meter=tokens").await.expect(200);
}

/// The form has fields for both times, and two links move them by their length.
async fn events_are_listed_between_two_times_that_are_typed(database: Database) {
    let server = Server::start(&database);
    let mut browser = furnished(&server).await;
    let field = |page: &str, name: &str| {
        let rest =
            page.split_once(&format!("<input id=\"{name}\" name=\"{name}\" value=\"")).expect("a field").1;
        rest.split('"').next().unwrap_or_default().to_owned()
    };
    let page = browser.get("/events").await.expect(200).text;
    assert_eq!((field(&page, "from"), field(&page, "to")), (String::new(), String::new()));
    assert!(!page.contains("One length earlier"), "{page}");
    let page = browser.get("/events?meter=tokens&from=-2d&to=now").await.expect(200).text;
    assert_eq!((field(&page, "from"), field(&page, "to")), ("-2d".to_owned(), "now".to_owned()));
    assert_eq!(page.matches(">Details</a>").count(), 30, "{page}");
    // blanks are no times
    browser.get("/events?meter=tokens&range=&from=%20&to=").await.expect(200);

    let page = browser.get("/events?meter=tokens&range=24h&limit=25").await.expect(200).text;
    let is_moved =
        |link: &String| link.starts_with("/events?meter=tokens&from=") && link.ends_with("&limit=25");
    let moved: Vec<String> = links_of(&page).into_iter().filter(is_moved).collect();
    assert_eq!(moved.len(), 2, "{moved:?}");
    let (earlier, later) = (browser.get(&moved[0]).await, browser.get(&moved[1]).await);
    let (earlier, later) = (earlier.expect(200).text, later.expect(200).text);
    assert!(earlier.contains("Nothing matches") && later.contains("Nothing matches"), "{earlier}");
    // the end of the one is where the other began
    assert!(field(&earlier, "to") < field(&later, "from") && !field(&earlier, "from").is_empty());
}

/// The total of its hour, the limits of its subject, and the alerts that watch its meter.
async fn an_event_leads_to_what_it_moved(database: Database) {
    let server = Server::start(&database);
    let mut browser = furnished(&server).await;
    let list = browser.get("/events?subject=org_1").await.expect(200).text;
    let event = links_of(&list).into_iter().find(|link| link.contains("&at=") || link.contains("?at="));
    let page = browser.get(&event.expect("an event")).await.expect(200).text;
    let links = links_of(&page);
    let watched =
        page.split_once("Watched by ").expect("an alert").1.split("</p>").next().unwrap_or_default();
    assert!(watched.contains(">Much</a>"), "{watched}");
    assert!(links.contains(&"/quota?subject=org_1&meter=tokens".to_owned()), "{links:?}");
    let is_way = |link: &&String| {
        ["/quota?", "/usage?meter=tokens&subject=org_1", "/alerts/"].iter().any(|way| link.starts_with(way))
    };
    let ways: Vec<&String> = links.iter().filter(is_way).collect();
    assert_eq!(ways.len(), 3, "{links:?}");
    for way in ways {
        browser.get(way).await.expect(200);
    }
    assert!(page.contains(">Close event details</a>"), "{page}");
}

/// The list of subjects has the plan of each, and how it stands to the worst of its limits.
async fn subjects_say_their_plan_and_their_worst_state(database: Database) {
    let settings =
        [("OPEN_SPANNER_SERVE_WORKERS", "on"), ("OPEN_SPANNER_ENTITLEMENT_WORKER_INTERVAL", "200ms")];
    let server = Server::start_with(&database, &settings);
    let mut browser = furnished(&server).await;
    let used =
        json!({"meter": "tokens", "subject": "org_1", "quantity": 200, "metadata": {"model": "small"}});
    session_of(&server, &browser).post("/v1/usages", &used).await.expect(201);
    let row = |page: &str, name: &str| {
        let row = page.split("<tr>").find(|row| row.contains(&format!(">{name}</a>"))).expect("a row");
        row.to_owned()
    };
    let end = Instant::now() + Duration::from_secs(60);
    let page = loop {
        let page = browser.get("/subjects").await.expect(200).text;
        if row(&page, "org_1").contains("exceeded") {
            break page;
        }
        assert!(Instant::now() < end, "{page}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert!(row(&page, "org_1").contains(">Pro v1</a>"), "{page}");
    assert_eq!(row(&page, "org_0").matches("<td>–</td>").count(), 2, "{page}");
    let json = browser.get("/subjects?format=json&sort=subject").await.json(200);
    assert_eq!((&json[1]["plan"], &json[1]["state"]), (&json!("Pro"), &json!("exceeded")), "{json}");
    assert_eq!((&json[0]["plan"], &json[0]["state"]), (&json!(null), &json!(null)), "{json}");
}

/// Of events that were pruned an export has no rows.
async fn a_look_at_an_export_counts_what_is_still_there(database: Database) {
    let server = Server::start(&database);
    let mut browser = furnished(&server).await;
    let api = session_of(&server, &browser);
    let meter = json!({"name": "calls", "unit": "call", "aggregation": "count", "event_retention_days": 10});
    api.post("/v1/meters", &meter).await.expect(201);
    for days in [30, 20, 1] {
        let at = Timestamp::now().plus(-days * DAY).to_exact_text();
        let event = json!({"meter": "calls", "subject": "org_1", "quantity": 1, "timestamp": at});
        api.post("/v1/usages", &event).await.expect(201);
    }
    let form = [("kind", "usage_events"), ("meter", "calls"), ("range", "90d+today"), ("do", "preview")];
    let page = browser.post("/exports/new", &form).await.expect(200).text;
    assert!(page.contains("<p>3 rows as of now"), "{page}");
    assert_eq!(api.post_text("/v1/usageevents/prune", "").await.json(200)["deleted"], 2);
    let page = browser.post("/exports/new", &form).await.expect(200).text;
    assert!(page.contains("<p>1 row as of now"), "{page}");
    let gone = [&form[..2], &[("from", "-40d"), ("to", "-25d"), ("do", "preview")]].concat();
    let page = browser.post("/exports/new", &gone).await.expect(200).text;
    assert!(page.contains("<p>0 rows as of now"), "{page}");
}

/// The picture, how many groups it has, and what is counted are words of the address.
async fn a_view_is_drawn_and_counted_as_asked(database: Database) {
    let server = Server::start(&database);
    let mut browser = furnished(&server).await;
    let view = "/usage?meter=tokens&group=model";
    let shares = browser.get(&format!("{view}&show=share")).await.expect(200).text;
    assert!(shares.contains("<option value=\"share\" selected>") && shares.contains(">100 %<"), "{shares}");
    assert!(shares.contains("Total 465 token in "), "numbers are those of the usage: {shares}");
    let table = browser.get(&format!("{view}&show=table")).await.expect(200).text;
    assert!(table.contains("<details open><summary>The numbers"), "{table}");
    assert!(!table.contains("class=\"plot\""), "{table}");
    let summed = browser.get(&format!("{view}&show=cumulative")).await.expect(200).text;
    assert!(summed.contains("id=\"cum\" name=\"cum\" value=\"1\" checked"), "{summed}");
    // two boxes of the form: one stacks bars, the other marks the values of lines
    for (more, is_stacked) in
        [("", true), ("&show=bar", false), ("&show=bar&stack=1", true), ("&show=line&stack=1", false)]
    {
        let page = browser.get(&format!("{view}{more}")).await.expect(200).text;
        let mark = if is_stacked { " checked" } else { "" };
        assert!(page.contains(&format!("id=\"stack\" name=\"stack\" value=\"1\"{mark}>")), "{more}: {page}");
        let bars = page.contains("<option value=\"bar\" selected>");
        assert_eq!(bars, !more.contains("line"), "{more}: {page}");
        assert!(!page.contains("class=\"points"), "{more}: {page}");
    }
    let pointed = browser.get(&format!("{view}&show=line&points=1")).await.expect(200).text;
    assert!(pointed.contains("class=\"points l1\" d=\"M"), "{pointed}");
    assert!(links_of(&pointed).iter().any(|link| link.contains("points=1") && link.contains("format=csv")));
    let average = browser.get(&format!("{view}&metric=average&show=bar&stack=1")).await.expect(200).text;
    assert!(average.contains("id=\"stack\" name=\"stack\" value=\"1\">"), "{average}");
    let one = browser.get(&format!("{view}&top=1")).await.expect(200).text;
    assert!(one.contains("Other (1)") && one.contains("1 more groups are drawn together"), "{one}");
    assert!(links_of(&one).iter().any(|link| link.contains("top=1") && link.contains("format=csv")));

    for (metric, total, of) in [
        ("quantity", "465 <small>token", "sum of tokens"),
        ("events", "30 <small>events", "count of tokens"),
        ("subjects", "3 <small>subjects", "unique_count of tokens"),
        ("average", "15.5 <small>token", "avg of tokens"),
        ("peak", "30 <small>token", "max of tokens"),
    ] {
        let page = browser.get(&format!("{view}&metric={metric}")).await.expect(200).text;
        assert!(page.contains(total) && page.contains(of), "{metric}: {page}");
        // programs are not answered with another metric than the meter's own
        assert_eq!(page.contains("id=\"curl\""), metric == "quantity", "{metric}");
    }
    let csv = browser.get("/usage?meter=tokens&range=today&bucket=day&metric=peak&format=csv").await;
    let csv = csv.expect(200).text;
    assert!(csv.trim().ends_with(",max,token,30"), "{csv}");
    for (name, value) in [("show", "pie"), ("metric", "cost"), ("top", "9"), ("top", "x")] {
        let page = browser.get(&format!("{view}&{name}={value}")).await.expect(422).text;
        assert!(page.contains(&format!("name=\"{name}\" aria-invalid=\"true\"")), "{name}: {page}");
        assert!(page.contains("name=\"group\" value=\"model\" checked"), "{name}: {page}");
    }
}

async fn series_are_hidden_by_links(database: Database) {
    let server = Server::start(&database);
    let mut browser = furnished(&server).await;
    let view = "/usage?meter=tokens&range=28d%2Btoday&group=model";
    let page = browser.get(view).await.expect(200).text;
    assert!(page.contains("aria-label=\"Hide small\"") && !page.contains("Show small"), "{page}");
    let hiding = |link: &String| link.contains("&hide=small");
    let link = links_of(&page).into_iter().find(hiding).expect("a link that hides");
    let hidden = browser.get(&link).await.expect(200).text;
    for part in [
        "<li class=\"off\">",
        "aria-label=\"Show small\"",
        "Total 465 token in 29 buckets",
        "The picture shows 1 of 2 series.",
        "<input type=\"hidden\" name=\"hide\" value=\"small\">",
    ] {
        assert!(hidden.contains(part), "{part}: {hidden}");
    }
    // back again, by the same place; files and events know nothing of pictures
    let all = links_of(&hidden).into_iter().find(|link| link.starts_with("/usage?") && !hiding(link));
    let all = browser.get(&all.expect("a link that shows")).await.expect(200).text;
    assert!(!all.contains("class=\"off\""), "{all}");
    assert!(!links_of(&hidden).iter().any(|link| link.starts_with("/events") && hiding(link)));
    // one series alone cannot be hidden
    let alone = browser.get("/usage?meter=tokens&hide=Total").await.expect(200).text;
    assert!(!alone.contains("class=\"off\"") && !alone.contains("Hide Total"), "{alone}");
}

async fn a_view_is_compared_with_any_time(database: Database) {
    let server = Server::start(&database);
    let mut browser = furnished(&server).await;
    let view = "/usage?meter=tokens&range=7d%2Btoday";
    let words = "against 0 in 2020-01-01 00:00 – 2020-01-03 00:00 UTC";
    for asked in ["&cmp=2020-01-01..2020-01-03", "&cmp=prev&cmp_from=2020-01-01&cmp_to=2020-01-03"] {
        let page = browser.get(&format!("{view}{asked}")).await.expect(200).text;
        assert!(page.contains(words), "{asked}: {page}");
        // told once in the address, and twice in the form
        assert!(
            links_of(&page).iter().any(|link| link.contains("&cmp=2020-01-01..2020-01-03")),
            "{asked}: {page}"
        );
        assert!(page.contains("name=\"cmp_from\" value=\"2020-01-01\""), "{asked}: {page}");
    }
    for wrong in ["2020", "2020-01-03..2020-01-01", "x..y", "..", "2020-01-01.."] {
        let page = browser.get(&format!("{view}&cmp={wrong}")).await.expect(422).text;
        assert!(page.contains("role=\"alert\"") && page.contains("Cmp must"), "{wrong}: {page}");
    }
}

/// Each row of the table, with what came up and what stayed.
async fn groups_are_compared_one_by_one(database: Database) {
    let server = Server::start(&database);
    let mut browser = furnished(&server).await;
    let api = session_of(&server, &browser);
    let at = (jiff::Timestamp::now() - jiff::SignedDuration::from_hours(24 * 8)).to_string();
    let before = json!({"idempotency_key": "before", "meter": "tokens", "subject": "org_1", "quantity": 90,
        "timestamp": at, "metadata": {"model": "small"}});
    api.post("/v1/usages", &before).await.expect(201);
    let view = "/usage?meter=tokens&range=7d%2Btoday&group=model";
    let page = browser.get(&format!("{view}&cmp=prev")).await.expect(200).text;
    let table = page.split_once("aria-label=\"Groups\"").expect("a table").1;
    let row = |name: &str| table.split("<tr>").find(|row| row.contains(name)).expect("a row");
    // 225 after 90, and 240 after nothing
    assert!(row(">small<").contains("<td class=\"num\">+150.0 %</td>"), "{page}");
    assert!(row("large").contains("<td class=\"num\">nothing before</td>"), "{page}");
    let alone = browser.get(view).await.expect(200).text;
    assert!(!alone.contains(">Change</th>") && page.contains(">Change</th>"), "{alone}");
    // a tile tells the change of all
    let kept = [("name", "Compared"), ("query", "meter=tokens&range=7d%2Btoday&cmp=prev"), ("pinned", "1")];
    browser.post("/usage/saved/new", &kept).await.expect(303);
    let kept = [("name", "Of old"), ("query", "meter=tokens&range=7d%2Btoday&cmp=year"), ("pinned", "1")];
    browser.post("/usage/saved/new", &kept).await.expect(303);
    let overview = browser.get("/overview").await.expect(200).text;
    assert!(overview.contains("Last 7 days and today: +416.7 % against 90 before</p>"), "{overview}");
    assert!(overview.contains("Last 7 days and today: nothing before</p>"), "{overview}");
    // without a model, and with one that is called as if there were none
    let now = jiff::Timestamp::now().to_string();
    let (none, named) = (json!({}), json!({"model": "(none)"}));
    for (time, quantity, metadata) in
        [(&at, 50, &none), (&at, 20, &named), (&now, 100, &none), (&now, 100, &named)]
    {
        let event = json!({"meter": "tokens", "subject": "org_1", "quantity": quantity, "timestamp": time,
            "metadata": metadata});
        api.post("/v1/usages", &event).await.expect(201);
    }
    let page = browser.get(&format!("{view}&cmp=prev")).await.expect(200).text;
    for change in ["+100.0 %", "+400.0 %"] {
        assert!(page.contains(&format!("<td class=\"num\">{change}</td>")), "{change}: {page}");
    }
}

async fn pages_load_themselves_for_those_without_a_script(database: Database) {
    let server = Server::start(&database);
    let mut browser = furnished(&server).await;
    let page = browser.get("/events?meter=tokens").await.expect(200);
    assert!(
        page.headers.get("refresh").is_none() && page.text.contains("Load it every 10 s"),
        "{}",
        page.text
    );
    let again = links_of(&page.text).into_iter().find(|link| link.contains("auto=10")).expect("a link");
    assert_eq!(again, "/events?meter=tokens&auto=10");
    let page = browser.get(&again).await.expect(200);
    assert_eq!(page.header("refresh"), "10");
    assert!(page.text.contains("<a href=\"/events?meter=tokens\">Stop</a>"), "{}", page.text);
    // not so often that it is in the way, and nothing that is no number
    for auto in ["1", "0", "99999", "x", "-5"] {
        let page = browser.get(&format!("/events?auto={auto}")).await.expect(200);
        assert!(page.headers.get("refresh").is_none(), "{auto}");
    }
}
