//! What cannot be undone asks first: a page says what hangs on it, in numbers, changes nothing itself, and its form does
//! what it says. What cannot be done has no form.

use open_spanner::metering::time::{DAY, Timestamp};
use serde_json::{Value, json};

use crate::dashboard::{Browser, furnished, links_of};
use crate::pages::{joined, session_of};
use crate::support::{Answer, Client, Database, Server, on_both_databases};

on_both_databases!(
    pruning_says_how_much_goes,
    requeueing_says_what_is_gone,
    a_key_of_somebody_says_whose_it_was,
    members_go_with_what_they_made,
    small_things_ask_too,
    a_meter_says_what_names_it,
    a_plan_and_a_destination_say_who_uses_them,
);

/// What a page that asks holds, without the frame around it.
async fn asked(browser: &mut Browser, path: &str, says: &[&str]) -> String {
    let page = browser.get(path).await.expect(200).text;
    let impact = page.split_once("id=\"impact\">").unwrap_or_else(|| panic!("{path} asks nothing: {page}")).1;
    let impact = impact.split("</section>").next().unwrap_or_default().to_owned();
    for words in says {
        assert!(impact.contains(words), "{path} does not say {words:?}: {impact}");
    }
    impact
}

/// Opens a page that asks, reads it, and presses its button, with a choice if there is one.
async fn confirmed(browser: &mut Browser, path: &str, says: &[&str], choice: Option<(&str, &str)>) -> Answer {
    let impact = asked(browser, path, says).await;
    let part = |text: &str, from: &str| text.split_once(from)?.1.split('"').next().map(str::to_owned);
    let action = part(&impact, "action=\"").unwrap_or_else(|| panic!("{path} has no form: {impact}"));
    let hidden = impact.split("<input type=\"hidden\" name=\"").skip(1);
    let mut fields: Vec<(String, String)> = hidden
        .filter_map(|input| Some((input.split('"').next()?.to_owned(), part(input, "value=\"")?)))
        .filter(|(name, _)| name != "form_token")
        .collect();
    if let Some((name, value)) = choice {
        assert!(impact.contains(&format!("<select id=\"{name}\" name=\"{name}\">")), "{impact}");
        assert!(impact.contains(&format!("<option value=\"{value}\">")), "{impact}");
        fields.push((name.to_owned(), value.to_owned()));
    }
    let back = links_of(&impact).pop().expect("a way back");
    assert!(impact.contains(">Cancel</a>"), "{impact}");
    browser.get(&back).await.expect(200);
    let fields: Vec<(&str, &str)> = fields.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
    browser.post(&action, &fields).await.expect(303)
}

/// Opens a page that says why something cannot be done: there is no form, only the way back.
async fn refused(browser: &mut Browser, path: &str, says: &[&str]) {
    let impact = asked(browser, path, says).await;
    assert!(!impact.contains("<form") && impact.contains(">Back</a>"), "{path}: {impact}");
}

/// The address of a page that another page links to.
async fn linked(browser: &mut Browser, page: &str, end: &str) -> String {
    let text = browser.get(page).await.expect(200).text;
    let found = links_of(&text).into_iter().find(|link| link.ends_with(end));
    found.unwrap_or_else(|| panic!("{page} links to no …{end}: {text}"))
}

/// The first thing that a list leads to.
async fn first_of(browser: &mut Browser, list: &str) -> String {
    let text = browser.get(list).await.expect(200).text;
    let is_thing = |link: &String| link.strip_prefix(list).is_some_and(|rest| rest.len() == 37);
    links_of(&text).into_iter().find(is_thing).unwrap_or_else(|| panic!("{list} leads to nothing: {text}"))
}

async fn a_key(session: &Client, server: &Server) -> (String, Client) {
    let made =
        session.post("/v1/auth/api-keys", &json!({"name": "of them", "scopes": ["*"]})).await.json(201);
    let id = made["id"].as_str().expect("an id").to_owned();
    (id, server.client().with_key(made["key"].as_str().expect("a secret")))
}

async fn pruning_says_how_much_goes(database: Database) {
    let server = Server::start(&database);
    let mut browser = furnished(&server).await;
    refused(&mut browser, "/system/prune", &["nothing to prune"]).await;
    let api = a_key(&session_of(&server, &browser), &server).await.1;
    let old = Timestamp::now().plus(-100 * DAY).to_exact_text();
    for n in 0..3 {
        let event = json!({"idempotency_key": format!("old{n}"), "meter": "tokens", "subject": "org_1",
            "quantity": 1, "timestamp": old, "metadata": {"model": "small"}});
        api.post("/v1/usages", &event).await.expect(201);
    }
    let says = ["3 events of 1 meter are past retention", ">tokens</a>", "Totals stay"];
    let before = database.count("events");
    asked(&mut browser, "/system/prune", &says).await;
    assert_eq!(database.count("events"), before, "the page deletes nothing");
    assert_eq!(database.count("prune_runs"), 0, "and is no run");
    confirmed(&mut browser, "/system/prune", &says, None).await;
    assert_eq!(database.count("events"), before - 3);
    assert!(browser.get("/system").await.text.contains("3 events pruned."));
    refused(&mut browser, "/system/prune", &["nothing to prune"]).await;
}

async fn requeueing_says_what_is_gone(database: Database) {
    let server = Server::start_with(&database, &[("OPEN_SPANNER_SERVE_WORKERS", "off")]);
    let mut browser = furnished(&server).await;
    refused(&mut browser, "/jobs/requeue", &["nothing to queue again"]).await;
    let watched =
        "(SELECT '{\"meter_id\":' || id || ',\"meter\":\"tokens\",\"due_only\":false}' FROM meters)";
    let bury = |n: usize, queue: &str, payload: &str| {
        let id = uuid::Uuid::now_v7();
        database.execute(&format!(
            "INSERT INTO dead_letters (id, workspace_id, queue, key, payload, attempts, last_error, created_at)
             SELECT '{id}', id, '{queue}', 'k{n}', {payload}, 3, 'no', {n} FROM workspaces"
        ));
    };
    (0..4).for_each(|n| bury(n, "alerts", watched));
    (0..2).for_each(|n| bury(n, "export", "'{}'"));
    assert!(
        browser.get("/jobs").await.expect(200).text.contains("href=\"/jobs/requeue\">Requeue 6 jobs</a>")
    );
    let all = ["4 in alerts, 2 in export", "2 of these cannot be done any more", "the export is over: 2"];
    asked(&mut browser, "/jobs/requeue", &all).await;
    let says = ["4 in alerts", "What these are about still exists", ">Requeue 4 jobs of alerts</button>"];
    confirmed(&mut browser, "/jobs/requeue?queue=alerts", &says, None).await;
    assert!(browser.get("/jobs").await.text.contains("4 jobs are queued again."));

    // of many, the newest are looked at
    (1000..1120).for_each(|n| bury(n, "alerts", watched));
    asked(&mut browser, "/jobs/requeue", &["120 in alerts", "What the newest 100 are about"]).await;
}

async fn a_key_of_somebody_says_whose_it_was(database: Database) {
    let server = Server::start(&database);
    let mut owner = furnished(&server).await;
    let mut admin = joined(&server, &mut owner, "admin").await;
    let (id, key) = a_key(&session_of(&server, &admin), &server).await;
    key.get("/v1/meters").await.expect(200);
    let path = format!("/api-keys/workspace/{id}/revoke");
    assert!(links_of(&owner.get("/api-keys/workspace").await.expect(200).text).contains(&path));
    assert!(!admin.get("/api-keys/workspace").await.expect(200).text.contains("/revoke"));
    admin.get(&path).await.expect(403);
    let says = ["admin_", "made this key, osp_sk_", "for *", "refused at once", ">Revoke key</button>"];
    confirmed(&mut owner, &path, &says, None).await;
    key.get("/v1/meters").await.expect(401);
    refused(&mut owner, &path, &["nothing to revoke"]).await;
    owner.get("/api-keys/workspace/nosuch/revoke").await.expect(404);
    let mut neighbour = Browser::register(&server, "key-neighbour@example.com").await;
    neighbour.get(&path).await.expect(404);
}

/// The id of the person behind a browser.
async fn user_id(server: &Server, browser: &Browser) -> String {
    let me: Value = session_of(server, browser).get("/v1/auth/session").await.json(200);
    me["user"]["id"].as_str().expect("an id").to_owned()
}

async fn members_go_with_what_they_made(database: Database) {
    let server = Server::start(&database);
    let mut owner = furnished(&server).await;
    refused(&mut owner, "/members/leave", &["A workspace needs an owner"]).await;
    let (mut first, second) =
        (joined(&server, &mut owner, "admin").await, joined(&server, &mut owner, "admin").await);
    let (first_id, second_id) = (user_id(&server, &first).await, user_id(&server, &second).await);
    let (_, kept) = a_key(&session_of(&server, &first), &server).await;
    let (_, lost) = a_key(&session_of(&server, &second), &server).await;
    let made = kept.post("/v1/subjects/org_1/links", &json!({})).await.json(201);
    let link = format!("/share/{}", made["token"].as_str().expect("a token"));
    first.post("/members/invite", &[("email", "asked@example.com"), ("role", "viewer")]).await.expect(303);

    // the list leads there, and does nothing by itself
    let list = owner.get("/members").await.expect(200).text;
    for path in [format!("/members/{first_id}/remove"), format!("/members/{first_id}/hand-over")] {
        assert!(links_of(&list).contains(&path), "{list}");
        first.get(&path).await.expect(403);
    }
    let path = format!("/members/{first_id}/remove");
    let says = ["1 API key in use, 1 open customer link and 1 open invitation", "the role admin"];
    confirmed(&mut owner, &path, &says, Some(("keys", "transfer"))).await;
    kept.get("/v1/meters").await.expect(200);
    server.client().get(&link).await.expect(200);
    first.get("/meters").await.expect(303);
    owner.get(&path).await.expect(404);

    let says = ["1 API key in use, 0 open customer links and 0 open invitations"];
    let path = format!("/members/{second_id}/remove");
    confirmed(&mut owner, &path, &says, Some(("keys", "revoke"))).await;
    lost.get("/v1/meters").await.expect(401);

    let mut heir = joined(&server, &mut owner, "viewer").await;
    let path = format!("/members/{}/hand-over", user_id(&server, &heir).await);
    let says = ["with the role viewer now", "You become an admin", "cannot take it back"];
    confirmed(&mut owner, &path, &says, None).await;
    owner.get(&path).await.expect(403);
    refused(&mut heir, "/members/leave", &["A workspace needs an owner"]).await;
    // the caller is not removed by this door
    let own = format!("/members/{}/remove", user_id(&server, &heir).await);
    assert_eq!(heir.get(&own).await.expect(303).header("location"), "/members/leave");
    let says = ["2 API keys in use, 1 open customer link", "calls with your keys are refused"];
    let left = confirmed(&mut owner, "/members/leave", &says, None).await;
    assert_eq!(left.header("location"), "/login");
    kept.get("/v1/meters").await.expect(401);
    server.client().get(&link).await.expect(404);
}

async fn small_things_ask_too(database: Database) {
    let server = Server::start(&database);
    let mut browser = furnished(&server).await;
    // a saved query
    let path = linked(&mut browser, "/usage/saved", "/delete").await;
    let says = ["Only you see it", "a tile on your overview"];
    let mut neighbour = Browser::register(&server, "small-neighbour@example.com").await;
    neighbour.get(&path).await.expect(404);
    confirmed(&mut browser, &path, &says, None).await;
    assert_eq!(database.count("saved_queries"), 0);

    // a link for a customer
    let made = browser.make("/subjects/org_1/links", &[("seconds", "86400")]).await.text;
    let link = made.split_once("/share/").expect("a link").1.split(['<', '"']).next().expect("a token");
    let link = format!("/share/{link}");
    let path = linked(&mut browser, "/subjects/org_1/links", "/revoke").await;
    neighbour.get(&path).await.expect(404);
    let says = ["It shows every meter of org_1", "was never used", ">Take back the link</button>"];
    confirmed(&mut browser, &path, &says, None).await;
    server.client().get(&link).await.expect(404);
    refused(&mut browser, &path, &["opens nothing any more"]).await;

    // the plan of a subject
    let path = linked(&mut browser, "/subjects/org_1/plan", "/plan/remove").await;
    let says = ["org_1 has Pro v1 since", "with 1 limit, 1 of them hard", "checks answer no"];
    confirmed(&mut browser, &path, &says, None).await;
    browser.get(&path).await.expect(404);
    browser.get("/subjects/nobody/plan/remove").await.expect(404);

    // sign-ins
    browser.post("/settings/sessions", &[("end", "others")]).await.expect(303);
    refused(&mut browser, "/settings/sessions/end?which=others", &["signed in here only"]).await;
    let email = browser.get("/settings").await.text;
    let email = email.split_once("<dt>Email</dt><dd>").expect("an address").1;
    let email = email.split('<').next().expect("an address").to_owned();
    let session = crate::support::client::sign_in(&server.client(), &email).await;
    session.get("/v1/auth/session").await.expect(200);
    let says = ["This ends 1 other sign-in at once", "API keys and customer links go on working"];
    confirmed(&mut browser, "/settings/sessions/end?which=others", &says, None).await;
    session.get("/v1/auth/session").await.expect(401);
    let says = ["there is no other", ">Sign out everywhere</button>"];
    let out = confirmed(&mut browser, "/settings/sessions/end", &says, None).await;
    assert_eq!(out.header("location"), "/login");
    browser.get("/meters").await.expect(303);
}

async fn a_meter_says_what_names_it(database: Database) {
    let server = Server::start(&database);
    let mut browser = furnished(&server).await;
    let says = [
        "1 alert rule, 1 plan limit and 30 stored events use this meter",
        "It holds events",
        ">Alert rule Much</a>",
    ];
    refused(&mut browser, "/meters/tokens/delete", &says).await;
    // pressed all the same, the answer says why, with the same numbers
    let told = browser.post("/meters/tokens/delete", &[]).await.expect(422).text;
    assert!(told.contains("has stored events") && told.contains("30 stored events"), "{told}");

    let session = session_of(&server, &browser);
    let api = a_key(&session, &server).await.1;
    api.post("/v1/meters", &json!({"name": "spare", "unit": "u"})).await.expect(201);
    let limits = json!([{"meter": "spare", "period": "month", "limit": 1}, {"meter": "spare", "period": "day", "limit": 1}]);
    let plan = api.post("/v1/plans", &json!({"name": "Spare", "limits": limits})).await.json(201);
    let path = format!("/v1/plans/{}", plan["id"].as_str().expect("an id"));
    let limits = json!([{"meter": "tokens", "limit": 1}]);
    let next = api.put(&path, &json!({"name": "Spare", "limits": limits})).await.json(200);
    let says =
        ["0 alert rules, 2 plan limits and 0 stored events", "any version of a plan", ">Plan Spare v1</a>"];
    refused(&mut browser, "/meters/spare/delete", &says).await;
    for plan in [next["id"].as_str().expect("an id"), plan["id"].as_str().expect("an id")] {
        api.delete(&format!("/v1/plans/{plan}")).await.expect(204);
    }
    confirmed(&mut browser, "/meters/spare/delete", &["0 plan limits", "It can be deleted"], None).await;
    browser.get("/meters/spare").await.expect(404);
}

async fn a_plan_and_a_destination_say_who_uses_them(database: Database) {
    let server = Server::start(&database);
    let mut browser = furnished(&server).await;
    let plan = first_of(&mut browser, "/plans").await;
    let path = format!("{plan}/delete");
    refused(&mut browser, &path, &["1 subject has Pro v1, or will have it"]).await;
    let told = browser.post(&path, &[]).await.expect(422).text;
    assert!(told.contains("is assigned to subjects") && told.contains("1 subject has"), "{told}");
    browser.post("/subjects/org_1/plan", &[("do", "unassign")]).await.expect(303);
    confirmed(&mut browser, &path, &["No subject has Pro v1", "Its 1 limit"], None).await;
    browser.get(&plan).await.expect(404);

    // the list of receivers has an address of its own, which viewers may read
    let list = browser.get("/destinations").await.expect(200).text;
    assert!(list.contains("https://example.com/hook") && list.contains(">New destination</a>"), "{list}");
    let mut viewer = joined(&server, &mut browser, "viewer").await;
    let seen = viewer.get("/destinations").await.expect(200).text;
    assert!(
        seen.contains(">ops</a>") && !seen.contains("/hook") && !seen.contains("/destinations/new"),
        "{seen}"
    );
    let path = format!("{}/delete", first_of(&mut browser, "/destinations").await);
    refused(&mut browser, &path, &["1 alert rule is sent here", ">Much</a>"]).await;
    let told = browser.post(&path, &[]).await.expect(422).text;
    assert!(told.contains("Alert rules use this destination"), "{told}");
    let rule = format!("{}/delete", first_of(&mut browser, "/alerts").await);
    confirmed(&mut browser, &rule, &["No alert of it is open", "is not watched by this rule"], None).await;
    let gone = confirmed(&mut browser, &path, &["No rule is sent here"], None).await;
    assert_eq!(gone.header("location"), "/destinations");
}
