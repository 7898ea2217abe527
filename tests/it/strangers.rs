//! What a stranger tries besides the tables of `permissions`: ids of others in bodies, queries and cursors; every change sent
//! by another site; a session that was put into somebody's browser beforehand.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::client::{PASSWORD, sign_up};
use crate::support::{Client, Database, Server, Workspace, on_both_databases, tell};

on_both_databases!(
    what_is_named_in_a_body_or_a_query_is_ones_own,
    no_other_site_changes_anything_with_a_cookie,
    a_session_that_was_there_before_is_not_the_one_that_begins,
);

const NOWHERE: &str = "01900000-0000-7000-8000-000000000000";

/// Things of a workspace, and their ids by what they are.
async fn furnished(ws: &Workspace, whose: &str) -> Value {
    ws.meter("m", "sum").await;
    let plan = json!({"name": "p", "limits": [{"meter": "m", "limit": 10}]});
    let plan = ws.post("/v1/plans", &plan).await.json(201);
    ws.put(&format!("/v1/plans/subjects/subject-of-{whose}"), &json!({"plan_id": plan["id"]}))
        .await
        .expect(200);
    let to = json!({"name": "d", "webhook_url": "https://example.com/hook"});
    let to = ws.post("/v1/alerts/destinations", &to).await.json(201);
    let rule = json!({"name": "r", "meter": "m", "destination_id": to["id"], "threshold": 1});
    let rule = ws.post("/v1/alerts", &rule).await.json(201);
    for n in 0..5 {
        let event = json!({"meter": "m", "subject": format!("subject-of-{whose}"), "quantity": 1,
                           "idempotency_key": format!("key-of-{whose}-{n}")});
        ws.post("/v1/usages", &event).await.expect(201);
    }
    let me = ws.session.get("/v1/auth/session").await.json(200)["user"].clone();
    json!({"plan_id": plan["id"], "destination_id": to["id"], "rule_id": rule["id"], "user_id": me["id"],
           "workspace_id": me["workspace_id"]})
}

/// The parameters of the query of each route that is read, from the document.
fn queries() -> Vec<(String, Vec<String>)> {
    let document = include_str!("../../docs/openapi.json");
    let document: Value = serde_json::from_str(document).expect("JSON");
    let paths = document["paths"].as_object().expect("paths").iter();
    let of = |path: &str, get: &Value| {
        let all = get["parameters"].as_array().cloned().unwrap_or_default();
        let named = all.iter().filter(|one| one["in"] == "query").filter_map(|one| one["name"].as_str());
        (path.to_owned(), named.map(str::to_owned).collect::<Vec<_>>())
    };
    paths
        .filter(|(path, _)| path.starts_with("/v1/") && !path.contains('{'))
        .filter_map(|(path, operations)| operations.get("get").map(|get| of(path, get)))
        .filter(|(_, names)| !names.is_empty())
        .collect()
}

async fn what_is_named_in_a_body_or_a_query_is_ones_own(database: Database) {
    let server = Server::start(&database);
    let (ours, theirs) = (server.workspace().await, server.workspace().await);
    let (ids, own) = (furnished(&ours, "ours").await, furnished(&theirs, "theirs").await);
    let of = |name: &str| ids[name].as_str().expect("an id").to_owned();
    let own = |name: &str| own[name].as_str().expect("an id").to_owned();
    let rule = |id: &str| json!({"name": "mine", "meter": "m", "destination_id": id, "threshold": 1});
    let (mut tried, mut wrong) = (0, Vec::new());
    // bodies that name something: method, path, and the body with an id in it
    type Body<'a> = (&'a str, Method, String, Box<dyn Fn(&str) -> Value>);
    let bodies: Vec<Body> = vec![
        ("destination_id", Method::POST, "/v1/alerts".into(), Box::new(rule)),
        ("destination_id", Method::PUT, format!("/v1/alerts/{}", own("rule_id")), Box::new(rule)),
        ("destination_id", Method::POST, "/v1/alerts/backtest".into(), Box::new(rule)),
        ("plan_id", Method::PUT, "/v1/plans/subjects/x".into(), Box::new(|id| json!({"plan_id": id}))),
        ("user_id", Method::POST, "/v1/auth/workspace/owner".into(), Box::new(|id| json!({"user_id": id}))),
        (
            "workspace_id",
            Method::POST,
            "/v1/auth/session/workspace".into(),
            Box::new(|id| json!({"workspace_id": id})),
        ),
    ];
    for (name, method, path, body) in &bodies {
        let client = if path.starts_with("/v1/auth/") { &theirs.session } else { &theirs.key };
        let mut answers = Vec::new();
        for id in [of(name).as_str(), NOWHERE] {
            let answer = client.send(method.clone(), path, Some(body(id).to_string())).await;
            let answer = answer.expect("an answer");
            answers.push((answer.status, answer.text.replace(id, "ID")));
        }
        tried += 1;
        // a backtest sends nothing, so it needs no destination
        let is_refused = (400..500).contains(&answers[0].0) || path.ends_with("/backtest");
        if answers[0] != answers[1] || !is_refused {
            wrong.push(format!("{method} {path} {name}: {answers:?}"));
        }
    }
    // every parameter of every list, with every kind of thing of ours, and the places where our lists go on
    let mut words: Vec<String> = ids.as_object().expect("ids").keys().map(|name| of(name)).collect();
    words.push("subject-of-ours".to_owned());
    words.push("key-of-ours-0".to_owned());
    let cursors = cursors(&ours).await;
    assert!(!cursors.is_empty());
    for (path, names) in queries() {
        let client = if path.starts_with("/v1/auth/") { &theirs.session } else { &theirs.key };
        for name in &names {
            for word in &words {
                let ask = async |word: &str| {
                    let answer = client.get(&format!("{path}?{name}={word}")).await;
                    (answer.status, answer.text.replace(word, "ID"))
                };
                let nowhere = if uuid::Uuid::parse_str(word).is_ok() { NOWHERE } else { "nosuch" };
                let (real, made_up) = (ask(word).await, ask(nowhere).await);
                tried += 1;
                // what is counted of the server itself goes on counting
                if real.0 != made_up.0 || (real.1 != made_up.1 && !path.starts_with("/v1/system/")) {
                    wrong.push(format!("{path}?{name}={word}: {real:?} {made_up:?}"));
                }
            }
        }
        for cursor in &cursors {
            let answer = client.get(&format!("{path}?limit=2&cursor={cursor}")).await;
            tried += 1;
            let tells = words.iter().filter(|word| answer.text.contains(word.as_str())).count();
            if answer.status >= 500 || tells > 0 {
                wrong.push(format!("{path} with a cursor of ours: {} {}", answer.status, answer.text));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {tried}:\n{}", wrong.len(), wrong.join("\n"));
    tell(&format!(
        "strangers: {tried} ids and cursors of another workspace in bodies and queries, 0 told from nothing"
    ));
}

/// Where the lists of a workspace go on.
async fn cursors(ws: &Workspace) -> Vec<String> {
    let mut found = Vec::new();
    for (path, names) in queries() {
        if names.iter().any(|name| name == "cursor") && names.iter().any(|name| name == "limit") {
            let client = if path.starts_with("/v1/auth/") { &ws.session } else { &ws.key };
            let answer = client.get(&format!("{path}?limit=1")).await;
            let page: Value = serde_json::from_str(&answer.text).unwrap_or_default();
            found.extend(page["next_cursor"].as_str().map(str::to_owned));
        }
    }
    found
}

async fn no_other_site_changes_anything_with_a_cookie(database: Database) {
    use open_spanner::auth::permission::Access;
    let server = Server::start(&database);
    let ws = server.workspace().await;
    let before = database.count("audit_events");
    let (mut tried, mut wrong) = (0, Vec::new());
    let pages = open_spanner::dashboard::endpoints();
    let pages = pages.iter().map(|page| (&page.method, page.path, &page.access, true));
    let routes = open_spanner::http::endpoints();
    let routes = routes.iter().map(|route| (&route.method, route.path, &route.access, false));
    for (method, path, access, is_page) in pages.chain(routes) {
        let changes = !matches!(method.as_str(), "GET" | "HEAD");
        if !changes || (matches!(access, Access::Public) && !is_page && !path.starts_with("/v1/auth/")) {
            continue;
        }
        let path: Vec<&str> =
            path.split('/').map(|part| if part.starts_with('{') { NOWHERE } else { part }).collect();
        let path = path.join("/");
        let method = Method::from_bytes(method.as_str().as_bytes()).expect("a method");
        // what browsers say of a form, an image or a script of another site, and an old one that names the origin only
        for (name, value) in [
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-site", "same-site"),
            ("origin", "https://evil.example"),
            ("origin", "null"),
        ] {
            let client = ws.session.with(name, value);
            let answer = client.send_form(method.clone(), &path, Some("a=b".to_owned())).await;
            tried += 1;
            if answer.status != 403 && answer.status != 415 {
                wrong.push(format!("{name}: {value}: {method} {path} answers {}", answer.status));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {tried}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(tried > 300, "{tried}");
    assert_eq!(database.count("audit_events"), before, "something was changed");
    ws.session.get("/v1/auth/session").await.expect(200);
    tell(&format!("strangers: {tried} changes sent by other sites with a cookie, all refused"));
}

/// Somebody puts a session of their own, or tokens that they made up, into the browser of another person, who signs in.
async fn a_session_that_was_there_before_is_not_the_one_that_begins(database: Database) {
    let server = Server::start(&database);
    let (mallory, ann) = (sign_up(&server.client()).await, sign_up(&server.client()).await);
    let tokens = async |client: &Client, email: &str| {
        let body = json!({"email": email, "password": PASSWORD});
        let answer = client.post("/v1/auth/sessions", &body).await.expect(201);
        ["open_spanner_access", "open_spanner_refresh"].map(|name| answer.cookie(name).expect("a cookie"))
    };
    let jar = |[access, refresh]: &[String; 2]| {
        let cookies = format!("open_spanner_access={access}; open_spanner_refresh={refresh}");
        server.client().with("cookie", cookies)
    };
    let theirs = tokens(&server.client(), &mallory).await;
    let made_up = ["osp_at_", "osp_rt_"].map(|prefix| format!("{prefix}{}", "A".repeat(43)));
    for planted in [&theirs, &made_up] {
        let own = tokens(&jar(planted), &ann).await;
        assert!(own.iter().all(|token| !planted.contains(token)), "new tokens");
        let user = jar(&own).get("/v1/auth/session").await.json(200)["user"]["email"].clone();
        assert_eq!(user, json!(ann));
        // what was planted is nobody, or whom it was before
        let answer = jar(planted).get("/v1/auth/session").await;
        assert!(answer.status == 401 || answer.json(200)["user"]["email"] == json!(mallory));
        // and its forms are not those of the new one
        let page = jar(&own).get("/settings/sessions").await.expect(200).text;
        let form = format!("form_token={}&end=others", crate::dashboard::token_of(&page));
        let sent = jar(&theirs).with("sec-fetch-site", "same-origin");
        let sent = sent.send_form(Method::POST, "/settings/sessions", Some(form)).await;
        assert!(sent.status == 403 || sent.header("location").starts_with("/login"), "{}", sent.status);
    }
    // a pair of two people is neither: the access token decides, and its sign-in cannot be prolonged with the other's
    let own = tokens(&server.client(), &ann).await;
    let theirs = tokens(&server.client(), &mallory).await;
    let mixed = jar(&[own[0].clone(), theirs[1].clone()]);
    let place = mixed.get("/v1/auth/session").await.json(200)["user"]["workspace_id"].clone();
    let moved = mixed.post("/v1/auth/session/workspace", &json!({"workspace_id": place})).await.expect(200);
    assert_eq!(moved.cookie("open_spanner_refresh").unwrap_or_default(), "", "nothing to renew it with");
}
