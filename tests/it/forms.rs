//! What a person typed, or a form made, is neither lost nor made twice: a database that goes away, a sign-in that ends
//! while a form is under way, and a page with a secret that is loaded again.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::json;

use crate::dashboard::{Browser, furnished, hidden_fields, token_of};
use crate::pages::session_of;
use crate::support::client::{PASSWORD, sign_up};
use crate::support::{Answer, Database, Server, on_both_databases, run};

on_both_databases!(
    a_secret_is_shown_once_and_made_once,
    a_form_of_an_ended_sign_in_is_offered_again,
    what_is_wrong_is_told_at_the_form,
    a_kept_form_stays_in_its_workspace,
);

const TYPED: [(&str, &str); 5] = [
    ("name", "slow_meter"),
    ("unit", "call"),
    ("aggregation", "sum"),
    ("event_retention_days", "90"),
    ("description", "typed \"with\" care"),
];

fn form_of(pairs: &[(&str, &str)], token: &str) -> String {
    let mut form = url::form_urlencoded::Serializer::new(String::new());
    form.append_pair("form_token", token).extend_pairs(pairs);
    form.finish()
}

/// Presses the button of the form that a page offers once more.
async fn send_kept(browser: &mut Browser, page: &str, button: &str, path: &str) -> Answer {
    let offered = page.split_once(button).expect("an offer").0;
    let offered = offered.rsplit_once("<form").expect("a form").1;
    let mut form = url::form_urlencoded::Serializer::new(String::new());
    for (name, value) in hidden_fields(offered) {
        form.append_pair(&name, &value.replace("&#34;", "\"").replace("&quot;", "\""));
    }
    browser.send(Method::POST, path, Some(form.finish())).await
}

/// The page of a form, what is filled in, what its secret begins with, the table that grows.
type SecretForm<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a str, &'a str);

async fn a_secret_is_shown_once_and_made_once(database: Database) {
    let server = Server::start(&database);
    let mut browser = furnished(&server).await;
    let mut thief = Browser::register(&server, "thief-of-secrets@example.com").await;
    let forms: [SecretForm; 5] = [
        ("/api-keys/new", &[("name", "once"), ("preset", "ingest"), ("days", "7")], "osp_sk_", "api_keys"),
        (
            "/destinations/new",
            &[("name", "once"), ("webhook_url", "https://example.com/x"), ("enabled", "on")],
            "whsec_",
            "alert_destinations",
        ),
        (
            "/members/invite",
            &[("email", "once@example.com"), ("role", "viewer")],
            "/invitations/osp_wsi_",
            "invitations",
        ),
        ("/subjects/org_1/links", &[("seconds", "86400")], "/share/osp_share_", "subject_links"),
        ("/welcome", &[], "osp_sk_", "api_keys"),
    ];
    for (path, fields, secret, table) in forms {
        let before = database.count(table);
        let made = browser.post(path, fields).await.expect(303);
        let shown = made.header("location");
        assert!(!shown.contains("osp_") && !made.text.contains("osp_"), "{path} leads to {shown}");
        let cookie = made.cookie("open_spanner_shown").expect("what is to be shown");
        assert!(!cookie.contains("osp_"));
        // it is worth nothing to another sign-in, nor at another page
        thief.cookies.push(("open_spanner_shown".to_owned(), cookie));
        assert!(!thief.get(&shown).await.text.contains(secret), "{path}");
        let page = browser.get(&shown).await.expect(200);
        assert!(page.text.contains(secret), "{path}: {}", page.text);
        assert_eq!(page.header("cache-control"), "no-store", "{path}");
        for _ in 0..2 {
            assert!(!browser.get(&shown).await.text.contains(secret), "{path} is shown again");
        }
        assert_eq!(database.count(table), before + 1, "{path}");
    }
    let id = database.lines("SELECT public_id AS line FROM api_keys WHERE name = 'once'").remove(0);
    let rotated = browser.post(&format!("/api-keys/{id}/rotate"), &[("grace", "60")]).await.expect(303);
    let page = browser.get(&rotated.header("location")).await.expect(200).text;
    assert!(page.contains("Key rotated") && page.contains("osp_sk_"), "{page}");
    let id = database.lines("SELECT public_id AS line FROM alert_destinations WHERE name = 'once'").remove(0);
    let rotated = browser.post(&format!("/destinations/{id}/rotate"), &[]).await.expect(303);
    assert!(browser.get(&rotated.header("location")).await.expect(200).text.contains("Secret rotated"));
}

/// Signs in, and answers where that leads.
async fn sign_in(browser: &mut Browser, email: &str, next: &str) -> String {
    let form = form_of(&[("email", email), ("password", PASSWORD), ("next", next)], "");
    browser.send(Method::POST, "/login", Some(form)).await.expect(303).header("location")
}

async fn a_form_of_an_ended_sign_in_is_offered_again(database: Database) {
    let server = Server::start(&database);
    let email = sign_up(&server.client()).await;
    let (mut browser, mut other) = (Browser::new(&server), Browser::new(&server));
    sign_in(&mut browser, &email, "/").await;
    sign_in(&mut other, &email, "/").await;
    let token = token_of(&browser.get("/meters/new").await.expect(200).text);
    session_of(&server, &other).delete("/v1/auth/sessions").await;

    // one whose token is not that of the sign-in, and one with a password, are not kept
    let forged = browser.send(Method::POST, "/meters/new", Some(form_of(&TYPED, "AAAA"))).await.expect(303);
    assert_eq!(forged.header("location"), "/login");
    let with_password = form_of(&[("password", "a new password")], &token);
    let secret = browser.send(Method::POST, "/settings/password", Some(with_password)).await.expect(303);
    assert_eq!(secret.header("location"), "/login");
    let long = form_of(&[("description", "x".repeat(70_000).as_str())], &token);
    let long = browser.send(Method::POST, "/meters/new", Some(long)).await.expect(303);
    assert_eq!(long.header("location"), "/login");

    let ended = browser.send(Method::POST, "/meters/new", Some(form_of(&TYPED, &token))).await.expect(303);
    assert_eq!(ended.header("location"), "/login?next=%2Fkept%2Dform");
    assert!(browser.get(&ended.header("location")).await.expect(200).text.contains("kept for ten minutes"));
    assert_eq!(database.count("meters"), 0);
    // somebody else at the same browser sees nothing of it
    let mut stranger = Browser::register(&server, "kept-stranger@example.com").await;
    assert!(stranger.get("/kept-form").await.expect(200).text.contains("Nothing is kept"));
    assert_eq!(sign_in(&mut browser, &email, "/kept-form").await, "/kept-form");
    let page = browser.get("/kept-form").await.expect(200);
    assert_eq!(page.header("cache-control"), "no-store");
    assert!(page.text.contains("slow_meter") && !page.text.contains(&token), "{}", page.text);
    let sent = send_kept(&mut browser, &page.text, "Send it now", "/meters/new").await.expect(303);
    let made = browser.get(&sent.header("location")).await.expect(200).text;
    assert!(made.contains("slow_meter") && made.contains("with"), "{made}");
    assert!(browser.get("/kept-form").await.expect(200).text.contains("Nothing is kept"));
}

/// The first form of a newcomer, and the one that saves a view, stand on pages that show more than the form.
async fn what_is_wrong_is_told_at_the_form(database: Database) {
    let server = Server::start(&database);
    let mut newcomer = Browser::register(&server, "newcomer-forms@example.com").await;
    let long = "x".repeat(300);
    let fields = [("name", long.as_str()), ("unit", "call")];
    let told = newcomer.post("/welcome", &fields).await.expect(422).text;
    assert!(told.contains("role=\"alert\"") && told.contains(&format!("value=\"{long}\"")), "{told}");
    assert_eq!((database.count("meters"), database.count("api_keys")), (0, 0));

    let mut browser = furnished(&server).await;
    // a name that is taken, and none
    for name in ["By model", " "] {
        let view = "meter=tokens&range=7d%2Btoday&group=model";
        let fields = [("name", name), ("query", view), ("shared", "1")];
        let told = browser.post("/usage/saved/new", &fields).await.expect(422).text;
        let typed = format!("required value=\"{}\" aria-invalid=\"true\"", name.trim());
        for part in [
            "role=\"alert\"",
            "Total 465 token in ",
            "name=\"group\" value=\"model\" checked",
            "name=\"pinned\" value=\"1\">",
            "name=\"shared\" value=\"1\" checked",
            typed.as_str(),
        ] {
            assert!(told.contains(part), "{part}: {told}");
        }
    }
    assert_eq!(database.count("saved_queries"), 1);
}

/// Somebody belongs to two workspaces: what they were sending in one is not sent to the other, where the next sign-in leads.
async fn a_kept_form_stays_in_its_workspace(database: Database) {
    let server = Server::start(&database);
    let (host, email) = (server.workspace().await, sign_up(&server.client()).await);
    let body = json!({"email": email, "role": "admin"});
    let made = host.session.post("/v1/auth/workspace/invitations", &body).await.json(201);
    let mut browser = Browser::new(&server);
    sign_in(&mut browser, &email, "/").await;
    let path = format!("/invitations/{}", made["token"].as_str().expect("a token"));
    browser.post(&path, &[]).await.expect(303);
    let token = token_of(&browser.get("/meters/new").await.expect(200).text);
    let mut other = Browser::new(&server);
    sign_in(&mut other, &email, "/").await;
    session_of(&server, &other).delete("/v1/auth/sessions").await.expect(204);
    let ended = browser.send(Method::POST, "/meters/new", Some(form_of(&TYPED, &token))).await.expect(303);
    assert_eq!(ended.header("location"), "/login?next=%2Fkept%2Dform");

    sign_in(&mut browser, &email, "/kept-form").await;
    let place = host.session.get("/v1/auth/session").await.json(200)["user"].clone();
    let name = place["workspace_name"].as_str().expect("a name");
    let page = browser.get("/kept-form").await.expect(200).text;
    assert!(!page.contains("Send it now") && !page.contains("slow_meter"), "{page}");
    let told = format!("sending it in the workspace {}", name.split('\'').next().unwrap_or_default());
    assert!(page.contains(&told), "{told}: {page}");
    let id = place["workspace_id"].as_str().expect("an id");
    browser.post("/workspaces", &[("workspace", id)]).await.expect(303);
    let page = browser.get("/kept-form").await.expect(200).text;
    send_kept(&mut browser, &page, "Send it now", "/meters/new").await.expect(303);
    assert!(host.get("/v1/meters").await.expect(200).text.contains("slow_meter"));
    assert!(browser.get("/kept-form").await.expect(200).text.contains("Nothing is kept"));
}

/// Killed under an open page: the page says so and tries again, and what was typed is sent when the database is back.
#[test]
fn a_killed_postgres_loses_nothing_that_was_typed() {
    run(async {
        let database = Database::durable_postgres();
        let server = Server::start(&database);
        let mut browser = furnished(&server).await;
        let token = token_of(&browser.get("/meters/new").await.expect(200).text);
        database.cluster().kill();
        // who somebody is, is known from memory for a moment, and is not known afterwards
        for wait in [0, 3_000] {
            tokio::time::sleep(Duration::from_millis(wait)).await;
            let away = browser.get("/meters").await.expect(503);
            assert!(away.text.contains("http-equiv=\"refresh\"") && !away.header("retry-after").is_empty());
            let kept =
                browser.send(Method::POST, "/meters/new", Some(form_of(&TYPED, &token))).await.expect(503);
            assert!(
                kept.text.contains("What you typed is kept") && kept.text.contains("slow_meter"),
                "{}",
                kept.text
            );
            assert!(!kept.text.contains("http-equiv=\"refresh\""), "it must not be loaded again by itself");
            // nobody else's form is shown to them
            let forged = browser.send(Method::POST, "/meters/new", Some(form_of(&TYPED, "AAAA"))).await;
            assert!(!forged.text.contains("slow_meter"), "{}", forged.text);
        }
        let kept =
            browser.send(Method::POST, "/meters/new", Some(form_of(&TYPED, &token))).await.expect(503).text;
        database.cluster().start();
        let end = Instant::now() + Duration::from_secs(60);
        while browser.get("/meters").await.status != 200 {
            assert!(Instant::now() < end, "the page does not come back");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let sent = send_kept(&mut browser, &kept, "Send again", "/meters/new").await.expect(303);
        let page = browser.get(&sent.header("location")).await.expect(200).text;
        assert!(page.contains("slow_meter") && page.contains("with"), "{page}");
    });
}
