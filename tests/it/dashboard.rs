//! The pages as a browser without a script meets them: every page answers, forms work, strangers and foreign forms
//! are refused, nothing of another workspace is shown; and, where Node and Chromium are, the same in a real browser.

use std::collections::BTreeSet;

use diesel::connection::SimpleConnection;
use open_spanner::metering::time::{HOUR, Timestamp};
use reqwest::Method;
use serde_json::json;

use crate::support::client::{PASSWORD, sign_up};
use crate::support::{Answer, Client, Database, Server, env, on_both_databases, program, run, skip};

on_both_databases!(
    people_sign_up_and_in_and_out,
    every_page_answers_and_every_link_leads_somewhere,
    foreign_forms_are_refused,
    another_workspace_is_not_shown,
    forms_are_told_what_is_wrong,
    exports_are_those_of_the_page,
    a_view_keeps_what_it_asks_for_when_its_time_moves,
    a_decision_is_tried_without_being_taken,
    all_dead_letters_are_queued_again_however_many,
    a_rule_is_tested_on_the_past,
    times_are_shown_in_the_zone_of_the_viewer,
    open_pages_are_told_what_changed,
    a_stream_ends_with_its_session,
    a_page_that_is_refused_keeps_the_session,
    pages_work_in_a_browser,
);

/// A browser without a script: it keeps cookies and says where its requests come from.
pub struct Browser {
    pub client: Client,
    pub cookies: Vec<(String, String)>,
}

impl Browser {
    pub fn new(server: &Server) -> Browser {
        Browser { client: server.client().with("sec-fetch-site", "same-origin"), cookies: Vec::new() }
    }

    pub async fn send(&mut self, method: Method, path: &str, form: Option<String>) -> Answer {
        let jar: Vec<String> = self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let client = self.client.with("cookie", jar.join("; "));
        let answer = client.send_form(method, path, form).await;
        for line in answer.headers.get_all("set-cookie") {
            let line = line.to_str().expect("a cookie is ASCII");
            let (name, value) = line.split(';').next().and_then(|pair| pair.split_once('=')).expect("a pair");
            self.cookies.retain(|(known, _)| known != name);
            if !value.is_empty() {
                self.cookies.push((name.to_string(), value.to_string()));
            }
        }
        answer
    }

    pub async fn get(&mut self, path: &str) -> Answer {
        self.send(Method::GET, path, None).await
    }

    /// Sends a form with the token of the page it stands on.
    pub async fn post(&mut self, path: &str, fields: &[(&str, &str)]) -> Answer {
        let token = token_of(&self.get("/settings").await.text);
        let mut form = url::form_urlencoded::Serializer::new(String::new());
        form.append_pair("form_token", &token).extend_pairs(fields);
        self.send(Method::POST, path, Some(form.finish())).await
    }

    /// Sends a form and looks at the page that it leads to.
    pub async fn make(&mut self, path: &str, fields: &[(&str, &str)]) -> Answer {
        let made = self.post(path, fields).await.expect(303);
        self.get(&made.header("location")).await.expect(200)
    }

    pub async fn register(server: &Server, email: &str) -> Browser {
        let mut browser = Browser::new(server);
        let form = format!("email={}&password={}", email.replace('@', "%40"), PASSWORD.replace(' ', "+"));
        let answer = browser.send(Method::POST, "/register", Some(form)).await.expect(303);
        assert_eq!(answer.header("location"), "/welcome");
        browser
    }
}

pub fn token_of(page: &str) -> String {
    let (_, rest) = page.split_once("name=\"form_token\" value=\"").unwrap_or_default();
    rest.split('"').next().unwrap_or_default().to_string()
}

async fn people_sign_up_and_in_and_out(database: Database) {
    let server = Server::start(&database);
    let mut stranger = Browser::new(&server);
    assert_eq!(stranger.get("/").await.expect(302).header("location"), "/login");
    let sent_away = stranger.get("/usage?meter=a&range=7d").await.expect(303);
    assert_eq!(sent_away.header("location"), "/login?next=%2Fusage%3Fmeter%3Da%26range%3D7d");

    let email = format!("{}@example.com", crate::support::unique("person"));
    let mut browser = Browser::register(&server, &email).await;
    let page = browser.get("/welcome").await.expect(200);
    assert!(page.text.contains(&email) && page.text.contains("You are an owner here"));
    for (name, value) in [
        ("content-security-policy", "default-src 'none'; script-src 'self'"),
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "same-origin"),
        ("cache-control", "private, no-cache"),
    ] {
        assert!(page.header(name).starts_with(value), "{name}: {:?}", page.headers);
    }

    // a dead access token goes on with the refresh token, in the same answer
    browser.cookies.retain(|(name, _)| name != "open_spanner_access");
    let renewed = browser.get("/meters").await.expect(200);
    assert!(
        renewed.cookie("open_spanner_access").is_some() && renewed.cookie("open_spanner_refresh").is_some()
    );

    let out = browser.post("/logout", &[]).await.expect(303);
    assert_eq!(out.header("location"), "/login");
    browser.get("/meters").await.expect(303);

    let wrong =
        browser.send(Method::POST, "/login", Some("email=x%40example.com&password=wrong".into())).await;
    assert!(wrong.expect(422).text.contains("Email or password is incorrect"));
    let form =
        format!("email={}&password={}&next=%2Fplans", email.replace('@', "%40"), PASSWORD.replace(' ', "+"));
    let back = browser.send(Method::POST, "/login", Some(form)).await.expect(303);
    assert_eq!(back.header("location"), "/plans");
    browser.get("/plans").await.expect(200);
}

/// A workspace with one of everything.
pub async fn furnished(server: &Server) -> Browser {
    let email = sign_up(&server.client()).await;
    let mut browser = Browser::new(server);
    let form = format!("email={}&password={}", email.replace('@', "%40"), PASSWORD.replace(' ', "+"));
    browser.send(Method::POST, "/login", Some(form)).await.expect(303);
    let made = browser
        .post(
            "/meters/new",
            &[
                ("name", "tokens"),
                ("unit", "token"),
                ("aggregation", "sum"),
                ("event_retention_days", "90"),
                ("dim.0.name", "model"),
                ("dim.0.type", "string"),
            ],
        )
        .await
        .expect(303);
    assert!(made.header("location").starts_with("/meters/"));
    let access = browser.cookies.iter().find(|(name, _)| name == "open_spanner_access").expect("a session");
    let session = server.client().with("cookie", format!("open_spanner_access={}", access.1));
    let key =
        session.post("/v1/auth/api-keys", &json!({"name": "everything", "scopes": ["*"]})).await.json(201);
    let api = server.client().with_key(key["key"].as_str().expect("a secret"));
    for n in 0..30 {
        let event = json!({"idempotency_key": format!("k{n}"), "meter": "tokens", "subject": format!("org_{}", n % 3),
            "quantity": n + 1, "metadata": {"model": if n % 2 == 0 { "small" } else { "<b>large</b>" }}});
        api.post("/v1/usages", &event).await.expect(201);
    }
    let plan = json!({"name": "Pro", "limits": [{"meter": "tokens", "period": "month", "limit": 100, "enforcement": "hard"}]});
    let plan = api.post("/v1/plans", &plan).await.json(201);
    api.put("/v1/plans/subjects/org_1", &json!({"plan_id": plan["id"]})).await.expect(200);
    let consumed = json!({"idempotency_key": "c1", "meter": "tokens", "subject": "org_1", "quantity": 500});
    api.post("/v1/entitlements/consume", &consumed).await.expect(429);
    let destination = json!({"name": "ops", "webhook_url": "https://example.com/hook"});
    let destination = api.post("/v1/alerts/destinations", &destination).await.json(201);
    let rule =
        json!({"name": "Much", "meter": "tokens", "threshold": 1000000, "destination_id": destination["id"]});
    api.post("/v1/alerts", &rule).await.expect(201);
    browser
        .post(
            "/usage/saved/new",
            &[("name", "By model"), ("query", "meter=tokens&range=28d%2Btoday&group=model"), ("pinned", "1")],
        )
        .await
        .expect(303);
    let export = browser
        .post("/exports/new", &[("kind", "usage_buckets"), ("meter", "tokens"), ("range", "7d+today")])
        .await;
    assert!(export.expect(303).header("location").starts_with("/exports/"));
    browser
}

/// The addresses that a page links to, without what leaves the pages.
pub fn links_of(page: &str) -> Vec<String> {
    let links = page.split(" href=\"").skip(1).filter_map(|rest| rest.split('"').next());
    let plain = links.map(|link| link.replace("&amp;", "&").replace("&#38;", "&"));
    plain.filter(|link| link.starts_with('/')).collect()
}

async fn every_page_answers_and_every_link_leads_somewhere(database: Database) {
    let server = Server::start_with(&database, &[("OPEN_SPANNER_SERVE_WORKERS", "on")]);
    let mut browser = furnished(&server).await;
    let mut seen: BTreeSet<String> = BTreeSet::new();
    let mut shapes: BTreeSet<String> = BTreeSet::new();
    let mut waiting = vec!["/overview".to_string(), "/explain?q=k3".into(), "/search?q=o".into()];
    while let Some(path) = waiting.pop() {
        // many addresses of the same shape say nothing new
        let shape = shape_of(&path);
        if !seen.insert(path.clone()) || !shapes.insert(shape) {
            continue;
        }
        let answer = browser.get(&path).await;
        let is_fine =
            matches!(answer.status, 200 | 302 | 303) || (answer.status == 404 && path.contains("/download"));
        assert!(is_fine, "{path} answers {}: {}", answer.status, answer.text);
        if !answer.header("content-type").starts_with("text/html") {
            continue;
        }
        for bad in [" style=", "<style", " onclick=", " onload=", "javascript:", "<b>large</b>"] {
            assert!(!answer.text.contains(bad), "{path} holds {bad:?}");
        }
        assert_eq!(answer.text.matches("<h1").count(), 1, "{path} has one heading");
        waiting.extend(links_of(&answer.text).into_iter().filter(|link| !link.starts_with("/swagger")));
    }
    for wanted in [
        "/overview",
        "/usage",
        "/events",
        "/meters",
        "/meters/new",
        "/subjects",
        "/quota",
        "/plans",
        "/plans/new",
        "/decisions",
        "/alerts",
        "/alerts/new",
        "/destinations",
        "/destinations/new",
        "/settings/sessions/end",
        "/members/leave",
        "/system/prune",
        "/deliveries",
        "/exports",
        "/exports/new",
        "/jobs",
        "/system",
        "/api-keys",
        "/api-keys/new",
        "/settings",
        "/ingestion",
        "/welcome",
        "/explain",
        "/usage/saved",
        "/jobs/workers/webhook",
    ] {
        assert!(
            seen.iter().any(|path| path.split('?').next() == Some(wanted)),
            "nothing leads to {wanted}: {seen:?}"
        );
    }
}

/// The address with its ids and values left out.
pub fn shape_of(path: &str) -> String {
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let segments: Vec<&str> = path
        .split('/')
        .map(|segment| if segment.len() > 20 || segment.starts_with("org_") { "*" } else { segment })
        .collect();
    let mut names: Vec<&str> = query.split('&').filter_map(|pair| pair.split('=').next()).collect();
    names.sort_unstable();
    names.dedup();
    // how a view looks is looked at once, not with everything else that it may be
    if let Some(look) = ["auto", "hide", "limit", "sort"].into_iter().find(|look| names.contains(look)) {
        return format!("{}?{look}", segments.join("/"));
    }
    format!("{}?{}", segments.join("/"), names.join("&"))
}

async fn foreign_forms_are_refused(database: Database) {
    let server = Server::start(&database);
    let mut browser = furnished(&server).await;
    let token = token_of(&browser.get("/settings").await.text);
    let form = |token: &str| {
        Some(format!("form_token={token}&name=stolen&unit=u&aggregation=sum&event_retention_days=90"))
    };
    let own = browser.client.clone();

    let told = browser.send(Method::POST, "/meters/new", form("")).await.expect(403).text;
    assert!(told.contains("<h1>Not sent</h1>") && !told.contains("Ask an owner"), "{told}");
    browser.send(Method::POST, "/meters/new", form("AAAA")).await.expect(403);
    let mut other = Browser::register(&server, "other-forms@example.com").await;
    let foreign = token_of(&other.get("/settings").await.text);
    assert_ne!(foreign, token);
    browser.send(Method::POST, "/meters/new", form(&foreign)).await.expect(403);

    browser.client = own.without("sec-fetch-site");
    browser.send(Method::POST, "/meters/new", form(&token)).await.expect(403);
    browser.client = own.without("sec-fetch-site").with("origin", "https://evil.example");
    browser.send(Method::POST, "/meters/new", form(&token)).await.expect(403);
    browser.client = own.without("sec-fetch-site").with("sec-fetch-site", "cross-site");
    let told = browser.send(Method::POST, "/meters/new", form(&token)).await.expect(403).text;
    assert!(told.contains("<h1>Not sent</h1>") && told.contains("another site"), "{told}");
    browser.send(Method::POST, "/login", Some("email=a%40b&password=x".into())).await.expect(403);

    browser.client = own;
    assert!(
        !browser.get("/meters").await.expect(200).text.contains("stolen"),
        "a refused form changed something"
    );
    browser.send(Method::POST, "/meters/new", form(&token)).await.expect(303);
    // an API key opens no page
    server.client().with_key("osp_sk_nothing").get("/meters").await.expect(303);
}

async fn another_workspace_is_not_shown(database: Database) {
    let server = Server::start_with(&database, &[("OPEN_SPANNER_SERVE_WORKERS", "on")]);
    let mut owner = furnished(&server).await;
    let mut other = Browser::register(&server, "neighbour@example.com").await;
    let mut ids: BTreeSet<String> = BTreeSet::new();
    for list in
        ["/meters", "/plans", "/alerts", "/exports", "/api-keys", "/events", "/decisions", "/usage/saved"]
    {
        let page = owner.get(list).await.expect(200);
        ids.extend(
            links_of(&page.text)
                .into_iter()
                .filter(|link| link.split(['/', '?']).any(|part| part.len() == 36)),
        );
        let theirs = other.get(list).await.expect(200);
        for word in ["tokens", "org_1", ">Pro<", ">Much<", "By model", "everything"] {
            assert!(!theirs.text.contains(word), "{list} shows {word} to a neighbour");
        }
    }
    assert!(ids.len() > 5, "there is something to look for: {ids:?}");
    for link in ids.iter().filter(|link| link.starts_with('/') && !link.starts_with("/usage")) {
        let status = other.get(link).await.status;
        assert_eq!(status, 404, "{link} of another workspace");
    }
    other.get("/subjects/org_1").await.expect(404);
    other.get("/meters/tokens").await.expect(404);
    assert!(other.get("/explain?q=k3").await.expect(200).text.contains("never seen"));
    assert!(owner.get("/explain?q=k3").await.expect(200).text.contains("Stored:"));
}

async fn forms_are_told_what_is_wrong(database: Database) {
    let server = Server::start(&database);
    let mut browser = furnished(&server).await;
    let wrong =
        browser.post("/meters/new", &[("name", ""), ("unit", "typed unit"), ("aggregation", "sum")]).await;
    let wrong = wrong.expect(422);
    assert!(wrong.text.contains("role=\"alert\"") && wrong.text.contains("typed unit"), "{}", wrong.text);
    let again = browser
        .post(
            "/meters/new",
            &[("name", "tokens"), ("unit", "u"), ("aggregation", "sum"), ("event_retention_days", "90")],
        )
        .await;
    assert!(again.expect(422).text.contains("role=\"alert\""));
    for (path, fields) in [
        ("/plans/new", vec![("name", "Bad"), ("limit.0.meter", "tokens"), ("limit.0.limit", "much")]),
        ("/alerts/new", vec![("name", "Bad"), ("meter", "tokens"), ("threshold", "1")]),
        ("/destinations/new", vec![("name", "Bad"), ("webhook_url", "ftp://x")]),
        ("/api-keys/new", vec![("name", ""), ("preset", "ingest"), ("days", "90")]),
        ("/exports/new", vec![("kind", "usage_buckets"), ("meter", "tokens"), ("range", "nonsense")]),
        ("/subjects/org_1/plan", vec![("plan_id", "")]),
    ] {
        let answer = browser.post(path, &fields).await.expect(422);
        assert!(answer.text.contains("role=\"alert\""), "{path} does not tell");
    }
    // rows are added by a button that sends the form
    let row = browser.post("/meters/new", &[("name", "kept"), ("do", "add dim")]).await.expect(200);
    assert!(row.text.contains("Dimension name") && row.text.contains("value=\"kept\""));
    // a refused query is told on its page
    assert!(
        browser.get("/usage?meter=tokens&range=nonsense").await.expect(422).text.contains("role=\"alert\"")
    );
    assert!(browser.get("/events?f=nonsense").await.expect(422).text.contains("role=\"alert\""));
    browser.get("/usage?meter=nosuch").await.expect(422);
    // a secret is shown by one answer, which nobody may keep
    let made = browser.make("/api-keys/new", &[("name", "shown"), ("preset", "ingest"), ("days", "7")]).await;
    assert!(made.text.contains("osp_sk_") && made.header("cache-control") == "no-store");
    // a flash is shown once
    browser.post("/usage/saved/new", &[("name", "Flash"), ("query", "meter=tokens")]).await.expect(303);
    assert!(browser.get("/usage?meter=tokens").await.text.contains("Saved as Flash."));
    assert!(!browser.get("/usage?meter=tokens").await.text.contains("Saved as Flash."));
}

async fn exports_are_those_of_the_page(database: Database) {
    let server = Server::start(&database);
    let mut browser = furnished(&server).await;
    let view = "/usage?meter=tokens&range=24h&bucket=day&group=model";
    let page = browser.get(view).await.expect(200).text;
    // 1 + … + 30, in two groups
    for number in ["465", "225", "240"] {
        assert!(page.contains(number), "{number} is not on the page");
    }
    let csv = browser.get(&format!("{view}&format=csv")).await.expect(200);
    assert!(csv.header("content-disposition").contains("usage-buckets-tokens.csv"));
    assert!(csv.text.starts_with("bucket_start,") || csv.text.contains("quantity"), "{}", csv.text);
    let rows = browser.get(&format!("{view}&format=json")).await.json(200);
    let total: f64 =
        rows.as_array().expect("rows").iter().map(|row| row["quantity"].as_f64().expect("a number")).sum();
    assert!((total - 465.0).abs() < f64::EPSILON);
    let events = browser.get("/events?meter=tokens&subject=org_1&format=json").await.json(200);
    assert_eq!(events.as_array().map(Vec::len), Some(10));
    let narrowed = browser.get("/events?meter=tokens&f=metadata.model:eq:small&format=json").await.json(200);
    assert_eq!(narrowed.as_array().map(Vec::len), Some(15));

    // an export is looked at before it is queued: its first lines, and how many there would be
    let form = [("meter", "tokens"), ("range", "7d+today"), ("group", "model"), ("do", "preview")];
    let buckets = [&form[..], &[("kind", "usage_buckets")]].concat();
    let page = browser.post("/exports/new", &buckets).await.expect(200).text;
    assert!(page.contains("2 rows as of now") && page.contains("<pre>bucket_start,subject,meter,"), "{page}");
    assert!(
        page.contains("<option value=\"7d+today\" selected>") && page.contains("value=\"model\""),
        "{page}"
    );
    let events = [&form[..], &[("kind", "usage_events")]].concat();
    let page = browser.post("/exports/new", &events).await.expect(200).text;
    let file = page.split_once("<pre>timestamp,").expect("a file").1.split("</pre>").next().expect("its end");
    assert!(page.contains("30 rows as of now") && file.trim().lines().count() == 11, "{page}");
    assert_eq!(database.count("export_jobs"), 1, "nothing was queued");
    let wrong = [("kind", "usage_events"), ("meter", "tokens"), ("from", "yesterweek"), ("do", "preview")];
    let page = browser.post("/exports/new", &wrong).await.expect(422).text;
    assert!(page.contains("value=\"yesterweek\"") && !page.contains("id=\"preview\""), "{page}");
}

/// Opens every page in Chromium, with axe. Needs Node, and what `scripts/test` installs.
async fn a_view_keeps_what_it_asks_for_when_its_time_moves(database: Database) {
    let server = Server::start(&database);
    let mut browser = furnished(&server).await;
    let view = "/usage?meter=tokens&subject=org_1&range=7d%2Btoday&group=model&cmp=prev&f=quantity%3Agt%3A1&show=line";
    let page = browser.get(view).await.expect(200).text;
    let moved: Vec<&str> =
        page.split("rel=\"").skip(1).filter_map(|part| part.split("href=\"").nth(1)).collect();
    let moved: Vec<&str> = moved.into_iter().filter_map(|part| part.split('"').next()).collect();
    let times: Vec<&&str> = moved.iter().filter(|link| link.starts_with("/usage")).collect();
    assert_eq!(times.len(), 2, "{moved:?}");
    for link in times {
        for part in ["subject=org_1", "group=model", "cmp=prev", "f=quantity", "show=line", "from=", "to="] {
            assert!(link.contains(part), "{link} lost {part}");
        }
        browser.get(&link.replace("&#38;", "&").replace("&amp;", "&")).await.expect(200);
    }
}

async fn a_decision_is_tried_without_being_taken(database: Database) {
    let server = Server::start(&database);
    let mut browser = furnished(&server).await;
    let tried = async |browser: &mut Browser, quantity: &str| {
        let path = format!("/decisions?try_subject=org_1&try_meter=tokens&try_quantity={quantity}");
        browser.get(&path).await
    };
    // the period of a plan begins when it is given, so nothing is used yet
    let allowed = tried(&mut browser, "100").await.expect(200).text;
    assert!(allowed.contains("would be let in") && allowed.contains("limit 100 per month"), "{allowed}");
    let refused = tried(&mut browser, "100.5").await.expect(200).text;
    assert!(refused.contains("would not be let in") && refused.contains("requested 100.5"), "{refused}");
    let wrong = tried(&mut browser, "-1").await;
    assert!(wrong.expect(422).text.contains("quantity"));
    let none = browser.get("/decisions?try_subject=org_2&try_meter=tokens").await.expect(200).text;
    assert!(none.contains("has no plan"), "{none}");
    let kept = browser.get("/decisions?format=html").await.expect(200).text;
    assert_eq!(kept.matches("<tr><th scope=\"row\">").count(), 1, "trying is not deciding");
}

async fn all_dead_letters_are_queued_again_however_many(database: Database) {
    let server = Server::start_with(&database, &[("OPEN_SPANNER_SERVE_WORKERS", "off")]);
    let mut browser = furnished(&server).await;
    let payload =
        "(SELECT '{\"meter_id\":' || id || ',\"meter\":\"tokens\",\"due_only\":false}' FROM meters)";
    let bury = |n: usize, queue: &str, payload: &str| {
        let id = uuid::Uuid::now_v7();
        database.execute(&format!(
            "INSERT INTO dead_letters (id, workspace_id, queue, key, payload, attempts, last_error, created_at)
             SELECT '{id}', id, '{queue}', 'k{n}', {payload}, 3, 'no', {} FROM workspaces",
            n / 3
        ));
    };
    (0..230).for_each(|n| bury(n, "alerts", payload));
    (0..3).for_each(|n| bury(n, "export", "'{}'"));
    let page = browser.get("/jobs").await.expect(200).text;
    assert!(page.contains("Requeue 233 jobs"), "{page}");
    assert_eq!(page.matches("/jobs/dead/").count(), 50, "a page of them");
    let page = browser.get("/jobs?queue=alerts").await.text;
    assert!(page.contains("Requeue 230 jobs of alerts"), "{page}");
    // those that are picked, as far as there are such
    let boxes: Vec<&str> = page.split("name=\"pick\" value=\"").skip(1).collect();
    let ids: Vec<&str> = boxes.iter().filter_map(|rest| rest.split('"').next()).collect();
    let picked =
        [("do", "picked"), ("queue", "alerts"), ("pick", ids[0]), ("pick", ids[49]), ("pick", "nosuch")];
    for words in ["2 jobs are queued again.", "0 jobs are queued again."] {
        let done = browser.post("/jobs", &picked).await.expect(303);
        assert_eq!(done.header("location"), "/jobs?queue=alerts");
        let told = browser.get(&done.header("location")).await.text;
        assert!(told.contains(words) && told.contains("Requeue 228 jobs of alerts"), "{words}: {told}");
    }
    let none = browser.post("/jobs", &[("do", "picked"), ("queue", "alerts")]).await.expect(303);
    assert!(browser.get(&none.header("location")).await.text.contains("Nothing was picked."));

    browser.post("/jobs", &[("queue", "alerts")]).await.expect(303);
    let told = browser.get("/jobs").await.text;
    assert!(told.contains("228 jobs are queued again.") && told.contains("Requeue 3 jobs"), "{told}");
    browser.post("/jobs", &[]).await.expect(303);
    let told = browser.get("/jobs").await.text;
    assert!(told.contains("0 jobs are queued again. 3 others are about something that no longer exists."));
}

async fn a_rule_is_tested_on_the_past(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("m", "sum").await;
    let hour = HOUR;
    let now = Timestamp::now().floor(hour);
    let at = |hours_ago: i64| now.plus(hour / 2 - hours_ago * hour).to_exact_text();
    for (n, (ago, subject, quantity)) in
        [(100, "a", 6), (100, "b", 6), (99, "a", 1), (50, "a", 30)].into_iter().enumerate()
    {
        let event = json!({"idempotency_key": format!("e{n}"), "meter": "m", "subject": subject,
            "quantity": quantity, "timestamp": at(ago)});
        workspace.post("/v1/usages", &event).await.expect(201);
    }
    let test = async |rule: serde_json::Value| workspace.post("/v1/alerts/backtest", &rule).await;
    let rule = json!({"name": "r", "meter": "m", "threshold": 10});
    let done = test(rule.clone()).await.json(200);
    let values: Vec<&serde_json::Value> =
        done["firings"].as_array().expect("a list").iter().map(|firing| &firing["value"]).collect();
    assert_eq!(values, [&json!(12), &json!(30)], "{done}");
    assert_eq!((&done["step_seconds"], &done["has_more"]), (&json!(3600), &json!(false)));
    assert!(done["firings"][0]["resolved_at"].is_string(), "{done}");
    let mut grouped = rule.clone();
    grouped["group_by"] = json!("subject");
    let done = test(grouped).await.json(200);
    assert_eq!(done["firings"].as_array().expect("a list").len(), 1, "{done}");
    assert_eq!(done["firings"][0]["group_value"], "a");
    let mut short = rule.clone();
    short["window_seconds"] = json!(300);
    assert!(test(short).await.error(400, "invalid_input").contains("whole hours"));
    test(json!({"name": "r", "meter": "nosuch", "threshold": 1})).await.error(404, "not_found");
    let stranger = server.workspace().await;
    stranger.post("/v1/alerts/backtest", &rule).await.error(404, "not_found");

    let mut browser = furnished(&server).await;
    let page = browser
        .post(
            "/alerts/new",
            &[
                ("do", "test"),
                ("meter", "tokens"),
                ("threshold", "1,000,000"),
                ("comparator", "gte"),
                ("window_seconds", "86400"),
                ("evaluation_interval_seconds", "60"),
            ],
        )
        .await
        .expect(200)
        .text;
    assert!(page.contains("It would not have fired in 28 days"), "{page}");
    assert!(page.contains("1,000,000"), "what was typed is kept");
    let wrong = browser.post("/alerts/new", &[("do", "test"), ("meter", "tokens"), ("threshold", "x")]).await;
    assert!(wrong.expect(422).text.contains("threshold"));
}

async fn times_are_shown_in_the_zone_of_the_viewer(database: Database) {
    let server = Server::start(&database);
    let mut browser = furnished(&server).await;
    assert!(browser.get("/events").await.expect(200).text.contains("Time (UTC)"));
    let wrong = browser.post("/settings/zone", &[("zone", "Mars/Base")]).await.expect(422);
    assert!(wrong.text.contains("is not known") && wrong.text.contains("Mars/Base"));
    browser.post("/settings/zone", &[("zone", "asia/kolkata")]).await.expect(303);
    let page = browser.get("/events").await.expect(200).text;
    assert!(page.contains("Time (Asia/Kolkata)"), "{page}");
    // half an hour off, so no hour of UTC is mistaken for one of there
    let (utc, rest) =
        page.split_once("<time datetime=\"").and_then(|(_, rest)| rest.split_once('"')).expect("a time");
    let clock = rest.split_once("\"clock\">").expect("a clock").1;
    let minute = |text: &str| text[3..5].parse::<u32>().expect("minutes");
    assert_eq!((minute(&utc[11..]) + 30) % 60, minute(clock), "{utc} {clock}");
}

async fn open_pages_are_told_what_changed(database: Database) {
    let server = Server::start(&database);
    let mut browser = furnished(&server).await;
    browser.client.get("/live").await.expect(303);
    let jar: Vec<String> = browser.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let open = async || {
        let request = reqwest::Client::new().get(format!("http://{}/live", server.http()));
        request.header("cookie", jar.join("; ")).send().await.expect("an answer")
    };
    let mut stream = open().await;
    assert_eq!(stream.headers()["content-type"], "text/event-stream");
    assert_eq!(stream.headers()["cache-control"], "no-cache");
    let mut text = String::new();
    while !text.contains("event: beat") {
        text.push_str(&String::from_utf8_lossy(&stream.chunk().await.expect("words").expect("more")));
    }
    browser.post("/welcome/event", &[]).await.expect(303);
    while !text.contains("ingest quota") {
        text.push_str(&String::from_utf8_lossy(&stream.chunk().await.expect("words").expect("more")));
    }
    // one browser needs one; a fifth of one user is told not to come back
    let others = [open().await, open().await, open().await];
    assert!(others.iter().all(|answer| answer.status() == 200));
    assert_eq!(open().await.status(), 204);
}

async fn a_stream_ends_with_its_session(database: Database) {
    let server = Server::start(&database);
    let email = sign_up(&server.client()).await;
    let thief = crate::support::client::sign_in(&server.client(), &email).await;
    let owner = crate::support::client::sign_in(&server.client(), &email).await;
    let open = async |who: &Client| {
        let request = reqwest::Client::new().get(format!("http://{}/live", server.http()));
        request.header("cookie", who.header("cookie")).send().await.expect("an answer")
    };
    let (mut theirs, mut own) = (open(&thief).await, open(&owner).await);
    let form = format!("form_token={}&end=others", token_of(&owner.get("/settings/sessions").await.text));
    let page = owner.with("sec-fetch-site", "same-origin");
    page.send_form(Method::POST, "/settings/sessions", Some(form)).await.expect(303);
    // at the next sign of life, which is due every fifteen seconds
    let end = tokio::time::Instant::now() + std::time::Duration::from_secs(30);
    let ended =
        tokio::time::timeout_at(end, async { while theirs.chunk().await.expect("words").is_some() {} });
    ended.await.expect("the stream of a session that ended goes on");
    // that of the other goes on
    let goes_on = async { while own.chunk().await.expect("words").is_some() {} };
    let more = tokio::time::timeout(std::time::Duration::from_secs(1), goes_on).await;
    assert!(more.is_err(), "the stream of a session that is there has ended");
}

async fn a_page_that_is_refused_keeps_the_session(database: Database) {
    let server = Server::start(&database);
    let ws = server.workspace().await;
    let viewer = crate::permissions::member(&server, &ws.session, "viewer").await;
    let me = viewer.get("/v1/auth/session").await.json(200)["user"]["email"].clone();
    let workspace = ws.session.get("/v1/auth/session").await.json(200)["user"]["workspace_id"].clone();
    let body = json!({"email": me, "password": PASSWORD});
    let session = server.client().post("/v1/auth/sessions", &body).await.expect(201);
    let mut browser = Browser::new(&server);
    let keep = |browser: &mut Browser, answer: &Answer| {
        browser.cookies = ["open_spanner_access", "open_spanner_refresh"]
            .map(|name| (name.to_owned(), answer.cookie(name).expect("a cookie")))
            .to_vec();
    };
    keep(&mut browser, &session);
    let workspace = workspace.as_str().expect("an id");
    let moved = browser.post("/workspaces", &[("workspace", workspace)]).await.expect(303);
    keep(&mut browser, &moved);
    let old = browser.cookies.clone();
    browser.cookies.retain(|(name, _)| name == "open_spanner_refresh");
    let refused = browser.get("/plans/new").await.expect(403);
    assert!(refused.cookie("open_spanner_refresh").is_some(), "the refresh token is used up: {refused:?}");
    browser.get("/plans").await.expect(200);

    // the old one comes again: it was stolen, and the trail tells from where it came
    database.execute("UPDATE sessions SET used_at = 1 WHERE used_at IS NOT NULL");
    let mut thief = Browser::new(&server);
    thief.client = thief.client.with("user-agent", "Burglar/1.0");
    thief.cookies = old.into_iter().filter(|(name, _)| name == "open_spanner_refresh").collect();
    let answer = thief.get("/plans").await.expect(303);
    let told = database.lines(
        "SELECT address || ' ' || user_agent || ' ' || request_id AS line FROM audit_events
         WHERE action = 'session.reused'",
    );
    assert_eq!(told, [format!("127.0.0.1 Burglar/1.0 {}", answer.header("x-request-id"))]);
}

/// The values of the hidden fields of a page.
pub fn hidden_fields(page: &str) -> Vec<(String, String)> {
    let part = |text: &str, from: &str| text.split_once(from)?.1.split('"').next().map(str::to_string);
    page.split("<input type=\"hidden\"")
        .skip(1)
        .filter_map(|input| Some((part(input, "name=\"")?, part(input, "value=\"")?)))
        .collect()
}

#[test]
fn a_form_outlives_a_database_that_is_away() {
    run(async {
        let database = Database::sqlite();
        let server = Server::start(&database);
        let mut browser = furnished(&server).await;
        let mut holder = database.sqlite_connection();
        holder.batch_execute("BEGIN IMMEDIATE").expect("the lock is free");
        let typed = [
            ("name", "slow_meter"),
            ("unit", "call"),
            ("aggregation", "sum"),
            ("event_retention_days", "90"),
            ("description", "typed \"with\" care"),
        ];
        let away = browser.post("/meters/new", &typed).await.expect(503);
        assert!(
            away.text.contains("What you typed is kept") && !away.text.contains("http-equiv=\"refresh\"")
        );
        holder.batch_execute("COMMIT").expect("the lock is ours");
        let kept = hidden_fields(away.text.split_once("Send again").expect("an offer").0);
        let kept: Vec<(String, String)> =
            kept.into_iter().map(|(name, value)| (name, value.replace("&#34;", "\""))).collect();
        let mut form = url::form_urlencoded::Serializer::new(String::new());
        kept.iter().filter(|(name, _)| name != "next" && name != "theme").for_each(|(name, value)| {
            form.append_pair(name, value);
        });
        let sent = browser.send(Method::POST, "/meters/new", Some(form.finish())).await.expect(303);
        let page = browser.get(&sent.header("location")).await.expect(200).text;
        assert!(page.contains("slow_meter") && page.contains("with"), "{page}");
    });
}

async fn pages_work_in_a_browser(database: Database) {
    let Some(modules) = env("OPEN_SPANNER_TEST_BROWSER").filter(|modules| modules != "0") else {
        return skip("dashboard::pages_work_in_a_browser", "scripts/test installs what it needs and runs it");
    };
    let server = Server::start_with(&database, &[("OPEN_SPANNER_SERVE_WORKERS", "on")]);
    // what a page looks like does not depend on the database, what it says does
    let looks = matches!(database, Database::Sqlite { .. });
    let pictures = if looks { format!("{modules}/pictures") } else { "none".to_owned() };
    let address = format!("http://{}", server.http());
    let script = |name: &str, arguments: &[&str]| {
        let mut command = std::process::Command::new("node");
        command.arg(format!("{}/tests/browser/{name}", env!("CARGO_MANIFEST_DIR"))).args(arguments);
        program::finish(command, std::time::Duration::from_secs(1200)).succeeded();
    };
    script("newcomer.mjs", &[&address, &modules]);
    script("pages.mjs", &[&address, &pictures, &modules]);
}
