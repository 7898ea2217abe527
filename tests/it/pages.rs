//! What single pages promise: a viewer is offered nothing that is refused, days are those of the workspace, long views
//! have short addresses, queries are shared, alerts are snoozed, and what happened has a page with its details.

use std::collections::BTreeSet;

use reqwest::Method;
use serde_json::json;

use crate::dashboard::{Browser, furnished, links_of, shape_of, token_of};
use crate::support::{Database, Server, on_both_databases};

on_both_databases!(
    a_viewer_is_offered_nothing_that_is_refused,
    days_of_pages_are_those_of_the_workspace,
    long_views_have_short_addresses,
    queries_are_shared_with_the_workspace,
    own_queries_stand_before_shared_ones,
    a_snoozed_alert_tells_nobody,
    a_plan_is_made_and_changed_with_windows,
    an_alert_watches_a_period_of_a_zone,
    the_workspace_chooses_what_becomes_of_conflicts,
    events_are_counted_above_their_list,
    a_write_call_shows_what_it_was_refused,
    a_request_is_found_by_its_id,
    each_kind_of_id_is_explained,
    the_trail_is_read_between_two_times,
    a_browser_is_shown_a_page_where_there_is_none,
    the_search_finds_alerts_and_destinations,
);

/// Somebody else with a role in the workspace of the owner.
pub async fn joined(server: &Server, owner: &mut Browser, role: &str) -> Browser {
    let email = format!("{}@example.com", crate::support::unique(role));
    let invited = owner.make("/members/invite", &[("email", &email), ("role", role)]).await.text;
    let link = invited.split_once("<code id=\"link\">").expect("a link").1;
    let path = link.split_once("/invitations/").expect("a path").1.split('<').next().expect("a token");
    let mut other = Browser::register(server, &email).await;
    other.post(&format!("/invitations/{path}"), &[]).await.expect(303);
    other
}

/// Where the forms of a page are sent to that change something.
fn forms_of(page: &str, here: &str) -> Vec<String> {
    let forms = page.split("<form").skip(1).filter_map(|rest| rest.split('>').next());
    let action = |form: &str| {
        let stated = form.split_once("action=\"").and_then(|(_, rest)| rest.split('"').next());
        stated.unwrap_or(here).to_owned()
    };
    forms.filter(|form| form.contains("method=\"post\"")).map(action).collect()
}

async fn a_viewer_is_offered_nothing_that_is_refused(database: Database) {
    let server = Server::start_with(&database, &[("OPEN_SPANNER_SERVE_WORKERS", "on")]);
    let mut owner = furnished(&server).await;
    let mut viewer = joined(&server, &mut owner, "viewer").await;
    let mut shapes: BTreeSet<String> = BTreeSet::new();
    let mut forms: BTreeSet<String> = BTreeSet::new();
    let mut waiting = vec!["/overview".to_string(), "/alerts/nosuch".into(), "/subjects/org_1/links".into()];
    while let Some(path) = waiting.pop() {
        if !shapes.insert(shape_of(&path)) {
            continue;
        }
        let answer = viewer.get(&path).await;
        assert_ne!(answer.status, 403, "{path} is offered to a viewer, who may not see it");
        if answer.header("content-type").starts_with("text/html") {
            assert!(!answer.text.contains("https://example.com/hook"), "{path} shows what is behind a host");
            waiting.extend(links_of(&answer.text).into_iter().filter(|link| !link.starts_with("/swagger")));
            let here = path.split('?').next().unwrap_or(&path);
            forms.extend(forms_of(&answer.text, here));
        }
    }
    assert!(shapes.len() > 30, "the pages were looked at: {shapes:?}");
    // these end what the next one needs
    for path in forms.iter().filter(|path| !matches!(path.as_str(), "/logout" | "/members/leave")) {
        let answer = viewer.post(path, &[]).await;
        assert_ne!(answer.status, 403, "the form of {path} is offered to a viewer, who may not send it");
    }
    // the table of routes decides, whatever pages show
    viewer.post("/plans/new", &[("name", "Mine")]).await.expect(403);
    viewer.post("/usage/saved/new", &[("name", "Mine"), ("query", "meter=tokens")]).await.expect(403);
    viewer.post("/settings/key-conflicts", &[("key_conflicts", "refuse")]).await.expect(403);
}

async fn days_of_pages_are_those_of_the_workspace(database: Database) {
    let server = Server::start(&database);
    let mut browser = furnished(&server).await;
    browser.post("/settings/workspace-zone", &[("workspace_zone", "Asia/Kolkata")]).await.expect(303);
    for path in ["/overview", "/meters/tokens", "/subjects/org_1", "/usage?meter=tokens", "/events"] {
        let page = browser.get(path).await.expect(200).text;
        assert!(page.contains("From (Asia/Kolkata)"), "{path} has a chart in another zone: {page}");
    }
    let alerts = browser.get("/alerts").await.text;
    let alert = links_of(&alerts).into_iter().find(|link| link.starts_with("/alerts/") && link.len() > 30);
    let page = browser.get(&alert.expect("a rule")).await.expect(200).text;
    assert!(page.contains("From (Asia/Kolkata)"), "{page}");
    // half past six in the evening there is midnight here: no day of UTC begins a bucket
    let rows = browser.get("/meters/tokens").await.text;
    assert!(rows.contains("T18%3A30%3A00"), "buckets begin at midnight of Kolkata");

    let made = browser.make("/subjects/org_1/links", &[("seconds", "86400")]).await.text;
    let link = made.split_once("<code id=\"secret\">").expect("a link").1.split('<').next().expect("a link");
    let link = link.split_once("/share/").map(|(_, token)| format!("/share/{token}")).expect("a path");
    let mut guest = Browser::new(&server);
    assert!(guest.get(&link).await.expect(200).text.contains("From (Asia/Kolkata)"));
    let asked = guest.get(&format!("{link}?zone=Europe/Berlin&days=90")).await.expect(200).text;
    assert!(asked.contains("From (Europe/Berlin)"), "{asked}");
    // the other length keeps the zone that was asked for
    assert!(asked.contains("days=30&#38;zone=Europe%2FBerlin"), "{asked}");
}

async fn long_views_have_short_addresses(database: Database) {
    let server = Server::start(&database);
    let mut browser = furnished(&server).await;
    let values: Vec<String> = (0..900).map(|n| format!("org_{n}")).collect();
    let long = format!("/usage?meter=tokens&range=7d%2Btoday&f=subject:in:{}", values.join(","));
    let short = browser.get(&long).await.expect(303).header("location");
    assert!(short.starts_with("/usage/q/") && short.len() < 60, "{short}");
    let page = browser.get(&short).await.expect(200).text;
    assert!(page.contains("org_899") && page.contains("465"), "{page}");
    assert_eq!(browser.get(&long).await.expect(303).header("location"), short, "the same view is kept once");
    // the address itself wins over what is kept
    let csv = browser.get(&format!("{short}?format=csv&range=24h")).await.expect(200);
    assert!(csv.header("content-type").starts_with("text/csv"), "{:?}", csv.headers);

    let made = browser.post("/usage/q", &[("query", "meter=tokens&range=28d%2Btoday")]).await.expect(303);
    let page = browser.get(&made.header("location")).await.expect(200).text;
    assert!(page.contains("The address of this page is short now"), "{page}");
    browser.post("/usage/q", &[("query", &"x".repeat(70_000))]).await.expect(400);
    browser.get("/usage/q/0000").await.expect(404);
    let mut neighbour = Browser::register(&server, "short-neighbour@example.com").await;
    neighbour.get(&short).await.expect(404);

    // programs make the same addresses, and read them
    let api = session_of(&server, &browser);
    let wanted = json!({"query": "?meter=tokens&range=28d%2Btoday"});
    let link = api.post("/v1/usage/short-links", &wanted).await.json(201);
    let path = format!("/usage/q/{}", link["hash"].as_str().expect("a hash"));
    assert_eq!(path, made.header("location"));
    assert!(
        link["url"].as_str().is_some_and(|url| url.ends_with(&path) && url.starts_with("http")),
        "{link}"
    );
    let read = format!("/v1/usage/short-links/{}", link["hash"].as_str().expect("a hash"));
    assert_eq!(api.get(&read).await.json(200)["query"], json!("meter=tokens&range=28d%2Btoday"));
    session_of(&server, &neighbour).get(&read).await.error(404, "not_found");
    api.get("/v1/usage/short-links/0000").await.error(404, "not_found");
    for query in [json!(" "), json!(null), json!("x".repeat(70_000))] {
        let refused = api.post("/v1/usage/short-links", &json!({"query": query})).await;
        assert!(refused.error(400, "invalid_input").contains("query "));
    }
    // a key that is confined to other meters neither makes nor reads them
    let key = json!({"name": "k", "scopes": ["usage:read"], "allowed_meters": ["others"]});
    let key = api.post("/v1/auth/api-keys", &key).await.json(201);
    let confined = server.client().with_key(key["key"].as_str().expect("a secret"));
    confined.get(&read).await.error(403, "forbidden");
    confined.post("/v1/usage/short-links", &wanted).await.error(403, "forbidden");
    confined.post("/v1/usage/short-links", &json!({"query": "meter=others"})).await.expect(201);

    // without room for another one the view is shown all the same, and asking for a short address says why there is none
    let other = long.replace("range=7d", "range=28d");
    database.execute(
        "INSERT INTO stored_queries (workspace_id, hash, query, created_at, used_at)
         WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 10000)
         SELECT kept.workspace_id, 'filler' || n, 'x', 0, 0 FROM numbers, (SELECT workspace_id FROM stored_queries LIMIT 1) AS kept",
    );
    assert!(browser.get(&other).await.expect(200).text.contains("org_899"));
    let refused = browser.post("/usage/q", &[("query", "meter=tokens&range=90d")]).await.expect(409);
    assert!(refused.text.contains("short addresses"), "{}", refused.text);

    // what nobody looked at for half a year goes, what somebody did stays
    drop(server);
    let _server = Server::start_with(&database, &[("OPEN_SPANNER_OPERATIONAL_HISTORY_INTERVAL", "200ms")]);
    let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while database.count("stored_queries") != 3 {
        assert!(std::time::Instant::now() < end, "old views are kept");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
}

async fn queries_are_shared_with_the_workspace(database: Database) {
    let server = Server::start(&database);
    let mut owner = furnished(&server).await;
    let (mut viewer, mut admin) =
        (joined(&server, &mut owner, "viewer").await, joined(&server, &mut owner, "admin").await);
    let id_of = |page: &str| {
        let rest = page.split_once("name=\"id\" value=\"").expect("a query").1;
        rest.split('"').next().expect("an id").to_owned()
    };
    assert!(!viewer.get("/usage/saved").await.expect(200).text.contains("By model"));
    let id = id_of(&owner.get("/usage/saved").await.text);
    owner.post("/usage/saved", &[("id", &id), ("do", "share")]).await.expect(303);
    for who in [&mut viewer, &mut admin] {
        assert!(who.get("/usage/saved").await.expect(200).text.contains("By model"));
        assert!(who.get("/overview").await.expect(200).text.contains("By model"), "a shared pin is a tile");
    }
    let stranger = Browser::register(&server, "shared-stranger@example.com").await.get("/usage/saved").await;
    assert!(!stranger.expect(200).text.contains("By model"));

    // a modified view is told, and can be made the saved one
    let page = owner.get(&format!("/usage?saved={id}&meter=tokens&range=7d%2Btoday")).await.expect(200).text;
    assert!(page.contains(">modified<") && page.contains("Update By model"), "{page}");
    let form = [
        ("id", id.as_str()),
        ("do", "update"),
        ("name", "By model"),
        ("query", "meter=tokens&range=7d%2Btoday"),
    ];
    owner.post("/usage/saved", &form).await.expect(303);
    let page = owner.get(&format!("/usage?saved={id}&meter=tokens&range=7d%2Btoday")).await.expect(200).text;
    assert!(!page.contains(">modified<"), "{page}");

    // it is the owner's: an admin takes it out of the workspace, and cannot change it
    for what in ["pin", "delete", "unshare", "update"] {
        let fields = [("id", id.as_str()), ("do", what), ("name", "x"), ("query", "meter=tokens")];
        admin.post("/usage/saved", &fields).await.expect(404);
    }
    viewer.post("/usage/saved", &[("id", &id), ("do", "take-out")]).await.expect(403);
    admin.post("/usage/saved", &[("id", &id), ("do", "take-out")]).await.expect(303);
    assert!(!viewer.get("/usage/saved").await.text.contains("By model"));
    assert!(owner.get("/usage/saved").await.text.contains("By model"));

    let (cookie, other) = (session_of(&server, &owner), session_of(&server, &viewer));
    let path = format!("/v1/usage/saved-queries/{id}");
    let body = json!({"name": "By model", "query": {"meter": "tokens"}, "shared": true});
    assert_eq!(cookie.put(&path, &body).await.json(200)["shared"], json!(true));
    let shared = other.get("/v1/usage/saved-queries?shared=true").await.json(200);
    assert_eq!(shared["items"].as_array().map(Vec::len), Some(1), "{shared}");
    assert_eq!(other.get("/v1/usage/saved-queries").await.json(200)["items"], json!([]));
    // who leaves shares nothing any more
    let body = json!({"name": "By model", "query": {"meter": "tokens"}, "shared": false});
    assert!(cookie.put(&path, &body).await.json(200).get("shared").is_none());
}

/// As the interface for programs lists both.
async fn own_queries_stand_before_shared_ones(database: Database) {
    let server = Server::start(&database);
    let mut owner = furnished(&server).await;
    let mut admin = joined(&server, &mut owner, "admin").await;
    let (own, other) = (session_of(&server, &owner), session_of(&server, &admin));
    for (name, pinned, position) in [("m2", true, 2), ("m1", true, 1), ("m3", false, 0), ("m4", false, 0)] {
        let query =
            json!({"name": name, "query": {"meter": "tokens"}, "pinned": pinned, "position": position});
        own.post("/v1/usage/saved-queries", &query).await.expect(201);
    }
    for (name, shared) in [("z9", true), ("a1", true), ("a2", false)] {
        let query = json!({"name": name, "query": {"meter": "tokens"}, "pinned": true, "shared": shared});
        other.post("/v1/usage/saved-queries", &query).await.expect(201);
    }
    let mut names = Vec::new();
    for path in ["/v1/usage/saved-queries", "/v1/usage/saved-queries?shared=true"] {
        let listed = own.get(path).await.json(200);
        let items = listed["items"].as_array().expect("a list").iter();
        names.extend(items.map(|item| item["name"].as_str().expect("a name").to_owned()));
    }
    let page = owner.get("/usage/saved").await.expect(200).text;
    let shown = page.split("<th scope=\"row\"><a href=").skip(1);
    let shown = shown.filter_map(|rest| rest.split_once('>')?.1.split('<').next());
    assert_eq!(shown.collect::<Vec<_>>(), names, "{page}");
    assert_eq!((names.len(), &names[5..]), (7, &["a1".to_owned(), "z9".to_owned()][..]), "{names:?}");
    assert!(!admin.get("/usage/saved").await.expect(200).text.contains(">m1<"), "what nobody shares");
}

/// The interface for programs, as the person at a browser.
pub fn session_of(server: &Server, browser: &Browser) -> crate::support::Client {
    let found = browser.cookies.iter().find(|(name, _)| name == "open_spanner_access").expect("a session");
    server.client().with("cookie", format!("open_spanner_access={}", found.1))
}

async fn a_snoozed_alert_tells_nobody(database: Database) {
    let server = Server::start_with(&database, &[("OPEN_SPANNER_SERVE_WORKERS", "off")]);
    let mut browser = furnished(&server).await;
    let session = session_of(&server, &browser);
    let rules = session.get("/v1/alerts").await.json(200);
    let id = rules["items"][0]["id"].as_str().expect("an id").to_owned();
    let page = format!("/alerts/{id}");
    let change = json!({"name": "Much", "meter": "tokens", "threshold": 1,
        "destination_id": rules["items"][0]["destination_id"]});

    browser.post(&format!("{page}/snooze"), &[("seconds", "3600")]).await.expect(303);
    assert!(browser.get(&page).await.expect(200).text.contains("Snoozed until"));
    assert!(session.get(&format!("/v1/alerts/{id}")).await.json(200)["snoozed_until"].is_string());
    // its line is crossed: that is seen, and not sent
    session.put(&format!("/v1/alerts/{id}"), &change).await.expect(200);
    let done = session.post_text(&format!("/v1/alerts/{id}/evaluate"), "").await.json(200);
    assert_eq!(done["event"]["type"], "triggered", "{done}");
    assert_eq!(database.count("alert_deliveries"), 0);
    let event = format!("/alerts/events/{}", done["event"]["id"].as_str().expect("an id"));
    assert!(browser.get(&event).await.expect(200).text.contains("Nobody was told"));

    // awake again, what follows is sent
    browser.post(&format!("{page}/snooze"), &[("seconds", "0")]).await.expect(303);
    assert!(!browser.get(&page).await.text.contains("Snoozed until"));
    let quiet = json!({"name": "Much", "meter": "tokens", "threshold": 1_000_000,
        "destination_id": rules["items"][0]["destination_id"]});
    session.put(&format!("/v1/alerts/{id}"), &quiet).await.expect(200);
    let done = session.post_text(&format!("/v1/alerts/{id}/evaluate"), "").await.json(200);
    assert_eq!(done["event"]["type"], "resolved", "{done}");
    assert_eq!(database.count("alert_deliveries"), 1);
    let event = format!("/alerts/events/{}", done["event"]["id"].as_str().expect("an id"));
    let shown = browser.get(&event).await.expect(200).text;
    assert!(shown.contains("No attempt yet") && shown.contains("What is sent"), "{shown}");

    for seconds in [json!(-1), json!(2_592_001), json!(null)] {
        let path = format!("/v1/alerts/{id}/snooze");
        session.post(&path, &json!({"seconds": seconds})).await.error(400, "invalid_input");
    }
    session.post("/v1/alerts/nosuch/snooze", &json!({"seconds": 60})).await.error(404, "not_found");
    let mut neighbour = Browser::register(&server, "snooze-neighbour@example.com").await;
    neighbour.post(&format!("{page}/snooze"), &[("seconds", "60")]).await.expect(404);
    neighbour.get(&event).await.expect(404);
}

async fn the_workspace_chooses_what_becomes_of_conflicts(database: Database) {
    let server = Server::start(&database);
    let mut browser = furnished(&server).await;
    let session = session_of(&server, &browser);
    let key = session.post("/v1/auth/api-keys", &json!({"name": "k", "scopes": ["*"]})).await.json(201);
    let api = server.client().with_key(key["key"].as_str().expect("a secret"));
    let other = json!({"idempotency_key": "k1", "meter": "tokens", "subject": "org_1", "quantity": 999});
    api.post("/v1/usages", &other).await.expect(201);
    assert!(browser.get("/settings").await.text.contains("answers with the first event"));
    browser.post("/settings/key-conflicts", &[("key_conflicts", "refuse")]).await.expect(303);
    assert!(browser.get("/settings").await.text.contains("refuses the second one"));
    api.post("/v1/usages", &other).await.error(409, "conflict");
    browser.post("/settings/key-conflicts", &[("key_conflicts", "forget")]).await.expect(400);
    let mut admin = joined(&server, &mut browser, "admin").await;
    assert!(admin.get("/settings").await.expect(200).text.contains("An owner can change this"));
    admin.post("/settings/key-conflicts", &[("key_conflicts", "answer")]).await.expect(403);
}

async fn events_are_counted_above_their_list(database: Database) {
    let server = Server::start_with(&database, &[("OPEN_SPANNER_SERVE_WORKERS", "on")]);
    let mut browser = furnished(&server).await;
    let session = session_of(&server, &browser);
    let key = session.post("/v1/auth/api-keys", &json!({"name": "k", "scopes": ["*"]})).await.json(201);
    let api = server.client().with_key(key["key"].as_str().expect("a secret"));
    let bad = json!({"idempotency_key": "bad", "meter": "tokens", "subject": "", "quantity": 1});
    api.post("/v1/usages", &bad).await.expect(400);
    for _ in 0..100 {
        if database.count("refused_events") >= 1 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    let page = browser.get("/events?meter=tokens&range=24h").await.expect(200).text;
    assert!(page.contains("id=\"counts-title\"") && page.contains("Accepted"), "{page}");
    assert!(page.contains("Rejected") && page.contains("refused: why"), "{page}");
    // of all meters there is one series each
    assert!(browser.get("/events").await.expect(200).text.contains("id=\"counts-title\""));
    // a filter that refused events have no field for leaves them out
    let narrowed =
        browser.get("/events?meter=tokens&range=24h&f=metadata.model:eq:small").await.expect(200).text;
    assert!(narrowed.contains("Accepted") && !narrowed.contains("Rejected"), "{narrowed}");
    // no picture of all time since 1970
    browser.get("/events?to=now").await.expect(200);
}

async fn a_write_call_shows_what_it_was_refused(database: Database) {
    let server = Server::start_with(&database, &[("OPEN_SPANNER_SERVE_WORKERS", "on")]);
    let mut browser = furnished(&server).await;
    let session = session_of(&server, &browser);
    let key = session.post("/v1/auth/api-keys", &json!({"name": "k", "scopes": ["*"]})).await.json(201);
    let api = server.client().with_key(key["key"].as_str().expect("a secret"));
    let events = json!([
        {"idempotency_key": "w1", "meter": "tokens", "subject": "org_1", "quantity": 1},
        {"idempotency_key": "w2", "meter": "nosuch", "subject": "org_1", "quantity": 1},
        {"idempotency_key": "k1", "meter": "tokens", "subject": "org_1", "quantity": 777},
    ]);
    api.post("/v1/usages/bulk", &events).await;
    let mut shown = String::new();
    for _ in 0..100 {
        let calls = links_of(&browser.get("/ingestion").await.expect(200).text);
        let call = calls.into_iter().find(|link| link.starts_with("/ingestion/")).expect("a call");
        shown = browser.get(&call).await.expect(200).text;
        if shown.contains("stands for another event") {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert!(shown.contains("nosuch") && shown.contains("stands for another event"), "{shown}");
    let refusal = links_of(&shown).into_iter().find(|link| link.starts_with("/events/refused/"));
    let refusal = browser.get(&refusal.expect("a refusal")).await.expect(200).text;
    assert!(refusal.contains(">the call</a>"), "{refusal}");
    let mut neighbour = Browser::register(&server, "call-neighbour@example.com").await;
    let call = links_of(&refusal).into_iter().find(|link| link.starts_with("/ingestion/")).expect("a call");
    neighbour.get(&call).await.expect(404);
    browser.get("/ingestion/nosuch").await.expect(404);
    browser.get("/jobs/workers/nosuch").await.expect(404);
    assert!(token_of(&browser.get("/jobs/workers/alert").await.expect(200).text).len() > 10);
    browser.send(Method::GET, "/jobs/workers/history", None).await.expect(200);
}

/// Whoever has the id of a request, their own or the one that an answer had, finds the call and its refusals.
async fn a_request_is_found_by_its_id(database: Database) {
    let server = Server::start_with(&database, &[("OPEN_SPANNER_SERVE_WORKERS", "on")]);
    let mut browser = furnished(&server).await;
    let session = session_of(&server, &browser);
    let key =
        session.post("/v1/auth/api-keys", &json!({"name": "importer", "scopes": ["*"]})).await.json(201);
    let api = server.client().with_key(key["key"].as_str().expect("a secret"));
    let (good, bad) = (
        json!({"idempotency_key": "r1", "meter": "tokens", "subject": "org_1", "quantity": 1}),
        json!({"idempotency_key": "r2", "meter": "nosuch", "subject": "org_1", "quantity": 1}),
    );
    let given = api.post("/v1/usages", &good).await.expect(201).header("x-request-id");
    let refused = api.post("/v1/usages", &bad).await.expect(404).header("x-request-id");
    let named = api.with("x-request-id", "batch-2026-06".to_owned());
    named.post("/v1/usages/bulk", &json!([good, bad])).await;
    api.with("x-request-id", "retry:0007".to_owned()).post("/v1/usages", &bad).await.expect(404);
    let call = browser.get(&format!("/ingestion/{given}")).await.expect(200).text;
    assert!(call.contains("importer") && call.contains(&given) && call.contains("Took"), "{call}");
    for (wanted, words) in [
        (given.as_str(), "1 accepted, 0 known already, 0 refused"),
        (&refused, "Refused"),
        ("batch-2026-06", "0 accepted, 1 known already, 1 refused"),
        ("retry:0007", "Refused"),
    ] {
        let mut told = String::new();
        // refusals are written down every second
        for _ in 0..100 {
            told = browser.get(&format!("/explain?q={wanted}")).await.expect(200).text;
            if told.contains(words) {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        assert!(told.contains(words), "{wanted}: {told}");
    }
    let call = browser.get("/explain?q=batch-2026-06").await.expect(200).text;
    let call = links_of(&call).into_iter().find(|link| link.starts_with("/ingestion/")).expect("the call");
    assert!(browser.get(&call).await.expect(200).text.contains("batch-2026-06"));
    let mut neighbour = Browser::register(&server, "request-neighbour@example.com").await;
    for wanted in [given.as_str(), &refused, "batch-2026-06", "retry:0007"] {
        let told = neighbour.get(&format!("/explain?q={wanted}")).await.expect(200).text;
        assert!(told.contains("never seen"), "{told}");
    }
}

/// One field for a key, an event, a decision and a subject; what another workspace has is never seen.
async fn each_kind_of_id_is_explained(database: Database) {
    let server = Server::start(&database);
    let mut browser = furnished(&server).await;
    let list = browser.get("/events?subject=org_1").await.expect(200).text;
    let event = links_of(&list).into_iter().find(|link| link.contains("?at=")).expect("an event");
    let event = event.split(['/', '?']).nth(2).expect("an id");
    let mut neighbour = Browser::register(&server, "explained-neighbour@example.com").await;
    for (wanted, words, way) in [
        ("k4", "Stored: 5 of tokens for org_1", "/events/"),
        (event, "of tokens for org_1", "/events/"),
        ("c1", "requested 500 = ", "/decisions/c1"),
        ("org_1", "This is a subject that events name", "/subjects/org_1"),
    ] {
        let path = format!("/explain?q={wanted}");
        let told = browser.get(&path).await.expect(200).text;
        assert!(told.contains(words) && !told.contains("never seen"), "{wanted}: {told}");
        let answer = told.split_once("aria-label=\"Answer\"").expect("an answer").1;
        let link = links_of(answer).into_iter().find(|link| link.starts_with(way)).expect("a way on");
        browser.get(&link).await.expect(200);
        let told = neighbour.get(&path).await.expect(200).text;
        assert!(told.contains("never seen") && !told.contains(words), "{wanted}: {told}");
    }
}

/// What the form of a page would send if nobody typed anything: fields, selects and boxes of the form that changes something.
fn typed(page: &str) -> Vec<(String, String)> {
    let form = page.split("<form method=\"post\" class=\"card\">").nth(1).expect("a form");
    let form = form.split("</form>").next().unwrap_or_default();
    let attribute = |tag: &str, name: &str| {
        let (_, rest) = tag.split_once(&format!(" {name}=\""))?;
        Some(rest.split('"').next().unwrap_or_default().replace("&#43;", "+"))
    };
    let mut fields = Vec::new();
    for tag in form.split('<').map(|rest| format!(" {rest}")) {
        let (head, text) = tag.split_once('>').unwrap_or((&tag, ""));
        let name = attribute(head, "name");
        match (head.split_whitespace().next(), name) {
            (Some("input"), Some(name)) if head.contains("checkbox") => {
                fields.extend(head.ends_with(" checked").then(|| (name, "on".to_owned())));
            }
            (Some("input"), Some(name)) if name != "form_token" => {
                fields.push((name, attribute(head, "value").unwrap_or_default()));
            }
            (Some("textarea"), Some(name)) => fields.push((name, text.to_owned())),
            (Some("select"), Some(name)) => fields.push((name, "\u{0}".to_owned())),
            (Some("option"), _) => {
                // the first, or the one that is selected
                let value = attribute(head, "value").unwrap_or_else(|| text.to_owned());
                let chosen = &mut fields.last_mut().expect("a select").1;
                if chosen == "\u{0}" || head.ends_with(" selected") {
                    *chosen = value;
                }
            }
            _ => {}
        }
    }
    fields
}

async fn send_again(browser: &mut Browser, path: &str) -> String {
    let page = browser.get(path).await.expect(200).text;
    let fields = typed(&page);
    let mut fields: Vec<(&str, &str)> = fields.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
    fields.push(("do", "save"));
    browser.post(path, &fields).await.expect(303);
    page
}

async fn a_plan_is_made_and_changed_with_windows(database: Database) {
    let server = Server::start(&database);
    let mut browser = furnished(&server).await;
    let session = session_of(&server, &browser);
    let rows = [
        ("week", "calendar", "Europe/Berlin", "sunday", ""),
        ("month", "anchored", "Asia/Kolkata", "", "2026-01-31T00:00:00Z"),
        // the form shows every field: what does not go with the kind is left out
        ("1h", "sliding", "Asia/Tokyo", "sunday", "2026-01-31T00:00:00Z"),
        ("day", "calendar", "", "", ""),
        ("month", "", "", "", ""),
    ];
    let mut fields = vec![("name".to_owned(), "Windows".to_owned())];
    for (row, (period, kind, zone, week, anchor)) in rows.iter().enumerate() {
        let named = [
            ("meter", "tokens"),
            ("limit", "10"),
            ("period", period),
            ("kind", kind),
            ("time_zone", zone),
            ("week_start", week),
            ("anchor", anchor),
            ("warning_percent", "80"),
            ("enforcement", "hard"),
        ];
        fields.extend(named.map(|(name, value)| (format!("limit.{row}.{name}"), value.to_owned())));
    }
    let fields: Vec<(&str, &str)> = fields.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
    let made = browser.post("/plans/new", &fields).await.expect(303).header("location").to_owned();
    let path = format!("/v1{made}");
    let windows = async || {
        let plan = session.get(&path).await.json(200);
        let limits = plan["limits"].as_array().expect("a list").iter();
        let mut limits: Vec<String> =
            limits.map(|limit| format!("{} {}", limit["period"], limit["window"])).collect();
        limits.sort();
        (plan["version"].clone(), limits)
    };
    let (version, before) = windows().await;
    let wanted = [
        r#""1h" {"kind":"sliding"}"#,
        r#""day" {"kind":"calendar"}"#,
        r#""month" null"#,
        r#""month" {"anchor":"2026-01-31T00:00:00Z","kind":"anchored","time_zone":"Asia/Kolkata"}"#,
        r#""week" {"kind":"calendar","time_zone":"Europe/Berlin","week_start":"sunday"}"#,
    ];
    assert_eq!((version, before.clone()), (json!(1), wanted.map(str::to_owned).to_vec()));
    // what the form shows is what there is: sent again, nothing changes
    let page = send_again(&mut browser, &format!("{made}/edit")).await;
    assert!(
        page.contains("value=\"Europe/Berlin\"") && page.contains("value=\"2026-01-31T00:00:00Z\""),
        "{page}"
    );
    assert_eq!(windows().await.1, before);
    for (name, wrong) in [("time_zone", "Mars/Base"), ("anchor", "yesterday"), ("period", "fortnight")] {
        let row = if name == "anchor" { 1 } else { 0 };
        let name = format!("limit.{row}.{name}");
        let bad: Vec<(&str, &str)> = fields
            .iter()
            .map(|(field, value)| (*field, if *field == name { wrong } else { value }))
            .collect();
        let told = browser.post("/plans/new", &bad).await.expect(422).text;
        assert!(
            told.contains("role=\"alert\"") && told.contains(&format!("value=\"{wrong}\"")),
            "{name}: {told}"
        );
    }
}

async fn an_alert_watches_a_period_of_a_zone(database: Database) {
    let server = Server::start(&database);
    let mut browser = furnished(&server).await;
    let session = session_of(&server, &browser);
    let rules = session.get("/v1/alerts").await.json(200);
    let destination = rules["items"][0]["destination_id"].as_str().expect("an id").to_owned();
    let fields = [
        ("name", "Daily"),
        ("meter", "tokens"),
        ("threshold", "5"),
        ("comparator", "gte"),
        ("enabled", "on"),
        ("window_seconds", "3600"),
        ("evaluation_interval_seconds", "60"),
        ("destination_id", &destination),
    ];
    let with = |more: &[(&'static str, &'static str)]| [&fields[..], more].concat();
    let made = browser.post("/alerts/new", &with(&[("period", "day"), ("time_zone", "asia/kolkata")])).await;
    let made = made.expect(303).header("location").to_owned();
    let path = format!("/v1{made}");
    let rule = session.get(&path).await.json(200);
    let window = json!({"kind": "calendar", "time_zone": "Asia/Kolkata"});
    assert_eq!((&rule["period"], &rule["window"]), (&json!("day"), &window), "{rule}");
    let page = send_again(&mut browser, &format!("{made}/edit")).await;
    assert!(
        page.contains("value=\"Asia/Kolkata\"") && page.contains("<option selected>day</option>"),
        "{page}"
    );
    let again = session.get(&path).await.json(200);
    assert_eq!((&again["period"], &again["window"]), (&json!("day"), &window), "{again}");
    // one that the form has no words for stays what it is
    let change = json!({"period": "week", "window": {"kind": "calendar", "week_start": "sunday"}});
    session.put(&path, &change).await.expect(200);
    let page = send_again(&mut browser, &format!("{made}/edit")).await;
    assert!(page.contains("<option selected>as it is</option>"), "{page}");
    let again = session.get(&path).await.json(200);
    assert_eq!(
        (&again["period"], &again["window"]["week_start"]),
        (&json!("week"), &json!("sunday")),
        "{again}"
    );
    // and without a period it looks back again
    browser.post(&format!("{made}/edit"), &with(&[("period", "")])).await.expect(303);
    let plain = session.get(&path).await.json(200);
    assert!(plain.get("period").is_none() && plain.get("window").is_none(), "{plain}");
    for (period, zone) in [("day", "Mars/Base"), ("fortnight", "")] {
        let wrong = [&fields[..], &[("period", period), ("time_zone", zone)]].concat();
        let told = browser.post("/alerts/new", &wrong).await.expect(422).text;
        assert!(told.contains("role=\"alert\""), "{period} {zone}: {told}");
    }
}

async fn the_trail_is_read_between_two_times(database: Database) {
    let server = Server::start(&database);
    let mut browser = furnished(&server).await;
    let session = session_of(&server, &browser);
    for n in 0..60 {
        let key = json!({"name": format!("k{n}"), "scopes": ["usage:read"]});
        session.post("/v1/auth/api-keys", &key).await.expect(201);
    }
    // as they are typed: the date is one of the viewer's calendar
    browser.post("/settings/zone", &[("zone", "Asia/Kolkata")]).await.expect(303);
    let page = browser.get("/audit?action=api_key.created&from=-1d&to=2099-01-02").await.expect(200).text;
    assert!(page.contains("<label for=\"from\">From (Asia/Kolkata)</label>"), "{page}");
    assert!(page.contains("name=\"from\" value=\"-1d\"") && page.contains("value=\"2099-01-02\""), "{page}");
    assert_eq!(page.matches("<th scope=\"row\">").count(), 50, "a page of them");
    let links = links_of(&page);
    let older =
        links.iter().find(|link| link.starts_with("/audit?") && link.contains("cursor=")).expect("more");
    assert!(older.contains("&from=2") && older.contains("to=2099-01-01T18%3A30%3A00Z"), "{older}");
    let export = links.iter().find(|link| link.starts_with("/v1/audit-events/export?")).expect("an export");
    assert!(export.contains("action=api_key.created&from=2") && !export.contains("cursor"), "{export}");
    let rest = browser.get(older).await.expect(200).text;
    assert_eq!(rest.matches("<th scope=\"row\">").count(), 11, "the rest: {rest}");
    let nothing = browser.get("/audit?to=2001-01-01").await.expect(200).text;
    assert!(nothing.contains("No change matches"), "{nothing}");
    for (wrong, field) in [("from=yesterday", "from"), ("to=2026-13-01", "to"), ("from=now&to=-1d", "from")] {
        let told = browser.get(&format!("/audit?{wrong}")).await.expect(422).text;
        assert!(told.contains("role=\"alert\"") && !told.contains("No change matches"), "{told}");
        let invalid = told.split_once(&format!("id=\"{field}\"")).expect("a field").1.split('>').next();
        assert!(invalid.is_some_and(|input| input.contains("aria-invalid")), "{wrong}: {told}");
    }
}

async fn a_browser_is_shown_a_page_where_there_is_none(database: Database) {
    const NAVIGATION: &str = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
    let server = Server::start(&database);
    let mut browser = furnished(&server).await;
    browser.client = browser.client.with("accept", NAVIGATION);
    for path in ["/nosuch", "/meters/a/b/c", "/meters/", "/members/nosuch/nothing", "/health/x"] {
        let page = browser.get(path).await.expect(404);
        assert_eq!(page.header("content-type"), "text/html; charset=utf-8", "{path}");
        assert!(page.text.contains("<h1>Not found</h1>") && page.text.contains("Sign out"), "{}", page.text);
        assert!(page.header("content-security-policy").starts_with("default-src 'none'"), "{path}");
        assert_eq!(page.header("cache-control"), "private, no-cache");
    }
    // a stranger is told the same, and learns nothing else
    let stranger = server.client().with("accept", NAVIGATION);
    let page = stranger.get("/nosuch").await.expect(404);
    assert!(page.text.contains("<h1>Not found</h1>") && !page.text.contains("Sign out"), "{}", page.text);
    assert!(page.headers.get("set-cookie").is_none(), "{:?}", page.headers);
    let head = stranger.send(Method::HEAD, "/nosuch", None).await.expect("an answer").expect(404);
    assert_eq!((head.header("content-type").as_str(), head.text.as_str()), ("text/html; charset=utf-8", ""));
    // a session that is over goes on with its refresh token, here too
    browser.cookies.retain(|(name, _)| name != "open_spanner_access");
    let renewed = browser.get("/nosuch").await.expect(404);
    assert!(renewed.cookie("open_spanner_access").is_some() && renewed.text.contains("Sign out"));

    // programs are answered as ever, and everything below the interface for them is
    let plain = |answer: crate::support::Answer| {
        let answer = answer.expect(404);
        assert_eq!(answer.text, "404 page not found\n");
        assert_eq!(answer.header("content-type"), "text/plain; charset=utf-8");
    };
    for accept in ["*/*", "application/json", "text/plain, */*;q=0.1", ""] {
        plain(server.client().with("accept", accept).get("/nosuch").await);
    }
    for path in ["/v1", "/v1/nosuch", "/v1//meters", "/api/v1/nosuch"] {
        plain(stranger.get(path).await);
    }
    plain(stranger.post_text("/nosuch", "{}").await);
}

async fn the_search_finds_alerts_and_destinations(database: Database) {
    let server = Server::start(&database);
    let mut browser = furnished(&server).await;
    let mut viewer = joined(&server, &mut browser, "viewer").await;
    let mut stranger = Browser::register(&server, "stranger-who-searches@example.com").await;
    let api = session_of(&server, &browser);
    let id = |list: serde_json::Value| list["items"][0]["id"].as_str().expect("an id").to_owned();
    let rule = format!("/alerts/{}", id(api.get("/v1/alerts").await.json(200)));
    let destination = format!("/destinations/{}", id(api.get("/v1/alerts/destinations").await.json(200)));
    for (wanted, found) in [("MUC", &rule), ("op", &destination)] {
        for member in [&mut browser, &mut viewer] {
            assert_eq!(
                member.get(&format!("/search?q={wanted}")).await.expect(303).header("location"),
                *found
            );
            let by_id = found.rsplit('/').next().expect("an id");
            assert_eq!(
                member.get(&format!("/search?q={by_id}")).await.expect(303).header("location"),
                *found
            );
        }
        let nothing = stranger.get(&format!("/search?q={wanted}")).await.expect(200).text;
        assert!(nothing.contains("Nothing is called"), "{nothing}");
    }
    // several are listed, each with what it is
    let several = browser.get("/search?q=o").await.expect(200).text;
    for part in ["<td>Meter</td>", "<td>Plan</td>", "<td>Destination</td>", "<td>Subject</td>"] {
        assert!(several.contains(part), "{part}: {several}");
    }
}
