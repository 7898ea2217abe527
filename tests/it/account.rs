//! A person and their own account: another password, where they are signed in, and what a stolen refresh token comes to.

use serde_json::{Value, json};

use crate::support::client::{PASSWORD, sign_up};
use crate::support::{Answer, Client, Database, Server, on_both_databases};

on_both_databases!(
    a_changed_password_ends_other_sign_ins,
    sign_ins_are_listed_and_ended,
    a_stolen_refresh_token_ends_the_sign_in,
    a_sign_in_ends_for_good,
    a_password_is_set_with_a_one_time_token,
    strangers_slow_themselves_and_not_the_owner,
    an_operator_unlocks_disables_and_enables,
);

const SESSION: &str = "/v1/auth/session";
const SESSIONS: &str = "/v1/auth/sessions";
const REFRESH: &str = "/v1/auth/session/refresh";

fn jar(server: &Server, answer: &Answer) -> Client {
    let cookie = |name: &str| format!("{name}={}", answer.cookie(name).expect("a cookie"));
    let both = format!("{}; {}", cookie("open_spanner_access"), cookie("open_spanner_refresh"));
    server.client().with("cookie", both)
}

async fn sign_in(server: &Server, email: &str, password: &str, device: &str) -> Client {
    let client = server.client().with("user-agent", device);
    let answer = client.post(SESSIONS, &json!({"email": email, "password": password})).await.expect(201);
    jar(server, &answer)
}

async fn a_changed_password_ends_other_sign_ins(database: Database) {
    let server = Server::start(&database);
    let email = sign_up(&server.client()).await;
    let one = sign_in(&server, &email, PASSWORD, "one").await;
    let two = sign_in(&server, &email, PASSWORD, "two").await;
    let change = async |current: &str, new: &str| {
        one.put("/v1/auth/password", &json!({"current_password": current, "password": new})).await
    };
    let message = change("a wrong one", "another password").await.error(400, "invalid_input");
    assert!(message.contains("current_password"), "{message}");
    let message = change(PASSWORD, "short").await.error(400, "invalid_input");
    assert!(message.contains("password"), "{message}");
    change(PASSWORD, "another password").await.expect(204);
    one.get(SESSION).await.expect(200);
    two.get(SESSION).await.error(401, "unauthorized");
    two.post_text(REFRESH, "").await.error(401, "unauthorized");
    let old = json!({"email": email, "password": PASSWORD});
    server.client().post(SESSIONS, &old).await.error(401, "unauthorized");
    sign_in(&server, &email, "another password", "three").await.get(SESSION).await.expect(200);
}

async fn sign_ins_are_listed_and_ended(database: Database) {
    let server = Server::start(&database);
    let email = sign_up(&server.client()).await;
    let one = sign_in(&server, &email, PASSWORD, "Laptop").await;
    let two = sign_in(&server, &email, PASSWORD, "Phone").await;
    let stranger = sign_up(&server.client()).await;
    let stranger = sign_in(&server, &stranger, PASSWORD, "x").await;
    let list = async |client: &Client| {
        client.get(SESSIONS).await.json(200)["items"].as_array().expect("a list").clone()
    };
    let found = list(&one).await;
    assert_eq!(found.len(), 2);
    let own = found.iter().find(|item| item["current"] == json!(true)).expect("its own").clone();
    let other = found.iter().find(|item| item["current"] == json!(false)).expect("the other").clone();
    assert_eq!((&own["user_agent"], &other["user_agent"]), (&json!("Laptop"), &json!("Phone")));
    assert_eq!(own["address"], json!("127.0.0.1"));
    let path = |item: &Value| format!("{SESSIONS}/{}", item["id"].as_str().expect("an id"));
    stranger.delete(&path(&own)).await.error(404, "not_found");
    one.delete(&path(&other)).await.expect(204);
    one.delete(&path(&other)).await.error(404, "not_found");
    two.get(SESSION).await.error(401, "unauthorized");
    assert_eq!(list(&one).await.len(), 1);
    // a sign-out takes it off the list, everywhere ends all
    let three = sign_in(&server, &email, PASSWORD, "x").await;
    three.delete(SESSION).await.expect(204);
    assert_eq!(list(&one).await.len(), 1);
    let four = sign_in(&server, &email, PASSWORD, "x").await;
    let cleared = four.delete(SESSIONS).await.expect(204);
    assert!(cleared.headers.get_all("set-cookie").iter().count() >= 2);
    for client in [&one, &four] {
        client.get(SESSION).await.error(401, "unauthorized");
        client.post_text(REFRESH, "").await.error(401, "unauthorized");
    }
    assert_eq!(list(&stranger).await.len(), 1);
}

async fn a_stolen_refresh_token_ends_the_sign_in(database: Database) {
    let server = Server::start(&database);
    let email = sign_up(&server.client()).await;
    let old = sign_in(&server, &email, PASSWORD, "x").await;
    let elsewhere = sign_in(&server, &email, PASSWORD, "y").await;
    let new = jar(&server, &old.post_text(REFRESH, "").await.expect(200));
    new.get(SESSION).await.expect(200);
    // the grace of a second browser tab is over
    database.execute("UPDATE sessions SET used_at = 1 WHERE used_at IS NOT NULL");
    old.post_text(REFRESH, "").await.error(401, "unauthorized");
    new.get(SESSION).await.error(401, "unauthorized");
    new.post_text(REFRESH, "").await.error(401, "unauthorized");
    elsewhere.get(SESSION).await.expect(200);
    let rows = elsewhere.get("/v1/audit-events?action=session.reused").await.json(200);
    assert_eq!(rows["items"].as_array().expect("a list").len(), 1);
}

async fn a_sign_in_ends_for_good(database: Database) {
    let server = Server::start(&database);
    let email = sign_up(&server.client()).await;
    let client = sign_in(&server, &email, PASSWORD, "x").await;
    let client = jar(&server, &client.post_text(REFRESH, "").await.expect(200));
    database.execute("UPDATE sign_ins SET ends_at = 1");
    client.post_text(REFRESH, "").await.error(401, "unauthorized");
    // no token outlives it
    let another = Database::sqlite();
    let short = Server::start_with(&another, &[("OPEN_SPANNER_SESSION_MAX_AGE", "60s")]);
    let email = sign_up(&short.client()).await;
    let body = json!({"email": email, "password": PASSWORD});
    let answer = short.client().post(SESSIONS, &body).await.json(201);
    let ends: jiff::Timestamp = answer["expires_at"].as_str().expect("a time").parse().expect("a time");
    assert!(ends <= jiff::Timestamp::now() + jiff::SignedDuration::from_secs(61), "{ends}");
}

async fn a_password_is_set_with_a_one_time_token(database: Database) {
    let server = Server::start(&database);
    let email = sign_up(&server.client()).await;
    let session = sign_in(&server, &email, PASSWORD, "x").await;
    let token = token_for(&database, &email);
    let path = format!("/v1/auth/password-resets/{token}");
    let set =
        async |path: &str, password: &str| server.client().post(path, &json!({"password": password})).await;
    set(&path, "short").await.error(400, "invalid_input");
    for unknown in ["osp_rst_x", "x"] {
        set(&format!("/v1/auth/password-resets/{unknown}"), "a new password").await.error(404, "not_found");
    }
    set(&path, "a new password").await.expect(204);
    set(&path, "once more, please").await.error(404, "not_found");
    session.get(SESSION).await.error(401, "unauthorized");
    sign_in(&server, &email, "a new password", "x").await;
    let late = token_for(&database, &email);
    database.execute("UPDATE password_resets SET expires_at = 1");
    set(&format!("/v1/auth/password-resets/{late}"), "a new password").await.error(404, "not_found");
}

/// A token as the operator's command makes it.
pub fn token_for(database: &Database, email: &str) -> String {
    use open_spanner::auth::account::{begin_reset, reset_token};
    let settings: Vec<(String, String)> =
        database.settings().into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let settings: Vec<(&str, &str)> = settings.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    let config = open_spanner::config::load_from(&["open-spanner"], &settings).expect("settings").config;
    let (token, now) = (reset_token().expect("a token"), open_spanner::metering::time::Timestamp::now());
    let hash = token.hash();
    let make = |conn: &mut open_spanner::db::Conn| begin_reset(conn, email, false, &hash, now).map(drop);
    open_spanner::db::once(&config.db.driver, make).expect("it is made");
    token.expose().to_owned()
}

/// A client that sends forms as our own pages do.
fn by_hand(server: &Server) -> Client {
    server.client().with("sec-fetch-site", "same-origin")
}

/// Ten wrong guesses at an account, which is locked by them.
async fn guess(client: &Client, email: &str) {
    for _ in 0..10 {
        let wrong = json!({"email": email, "password": "a wrong password"});
        client.post(SESSIONS, &wrong).await.error(401, "unauthorized");
    }
}

async fn strangers_slow_themselves_and_not_the_owner(database: Database) {
    let server = Server::start_with(&database, &[("OPEN_SPANNER_TRUSTED_PROXIES", "127.0.0.0/8")]);
    let email = sign_up(&server.client()).await;
    let right = json!({"email": email, "password": PASSWORD});
    // a browser that the owner signs in with is known from then on
    let form = format!("email={}&password={}", email.replace('@', "%40"), PASSWORD.replace(' ', "+"));
    let page = by_hand(&server).send_form(reqwest::Method::POST, "/login", Some(form)).await.expect(303);
    let known = page.cookie("open_spanner_device").expect("a cookie");
    let browser = server.client().with("cookie", format!("open_spanner_device={known}"));
    let inside = sign_in(&server, &email, PASSWORD, "x").await;
    guess(&server.client(), &email).await;
    let refused = server.client().post(SESSIONS, &right).await;
    let seconds: u64 = refused.header("retry-after").parse().expect("whole seconds");
    assert!((1..=300).contains(&seconds), "{seconds}");
    refused.error(429, "rate_limited");
    // a browser that another account knows helps nobody
    let other = sign_up(&server.client()).await;
    let form = format!("email={}&password={}", other.replace('@', "%40"), PASSWORD.replace(' ', "+"));
    let page = by_hand(&server).send_form(reqwest::Method::POST, "/login", Some(form)).await.expect(303);
    let theirs = format!("open_spanner_device={}", page.cookie("open_spanner_device").expect("a cookie"));
    server.client().with("cookie", theirs).post(SESSIONS, &right).await.error(429, "rate_limited");
    // whoever is signed in changes their password all the same
    let change = json!({"current_password": "a wrong one", "password": "another password"});
    inside.put("/v1/auth/password", &change).await.error(400, "invalid_input");
    // and the owner comes in with their own browser, which gives the strangers no further guess
    browser.post(SESSIONS, &right).await.expect(201);
    server.client().post(SESSIONS, &right).await.error(429, "rate_limited");
    // nor are they kept out elsewhere: the guesses count for where they came from
    let elsewhere = server.client().with("x-forwarded-for", "203.0.113.5:4711");
    elsewhere.post(SESSIONS, &right).await.expect(201);
    server.client().post(SESSIONS, &right).await.error(429, "rate_limited");
    // a known browser is slowed by its own guesses, and by nobody else's
    guess(&browser, &email).await;
    browser.post(SESSIONS, &right).await.error(429, "rate_limited");
    elsewhere.post(SESSIONS, &right).await.expect(201);
    let kept = database.lines("SELECT CAST(count(*) AS TEXT) AS line FROM known_devices");
    assert_eq!(kept, ["2"]);
}

fn operator(database: &Database, arguments: &[&str]) -> crate::support::program::Run {
    let settings = database.settings();
    let settings: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    crate::support::program::run(arguments, &settings, &std::env::temp_dir())
}

async fn an_operator_unlocks_disables_and_enables(database: Database) {
    let server = Server::start(&database);
    let email = sign_up(&server.client()).await;
    let right = json!({"email": email, "password": PASSWORD});
    let ann = sign_in(&server, &email, PASSWORD, "x").await;
    let key = ann.post("/v1/auth/api-keys", &json!({"name": "k"})).await.json(201)["key"].clone();
    let key = server.client().with_key(key.as_str().expect("a key"));
    key.get("/v1/meters").await.expect(200);
    guess(&server.client(), &email).await;
    server.client().post(SESSIONS, &right).await.error(429, "rate_limited");
    let user = |word: &str| operator(&database, &["admin", "user", word, "--email", &email]);
    user("unlock").succeeded();
    server.client().post(SESSIONS, &right).await.expect(201);
    // from then on it counts anew
    guess(&server.client(), &email).await;
    server.client().post(SESSIONS, &right).await.error(429, "rate_limited");
    user("unlock").succeeded();
    user("disable").succeeded();
    server.client().post(SESSIONS, &right).await.error(403, "forbidden");
    let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while ann.get(SESSION).await.status != 401 || key.get("/v1/meters").await.status != 401 {
        assert!(std::time::Instant::now() < end, "a disabled user is still in");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    ann.post_text(REFRESH, "").await.error(401, "unauthorized");
    let listed = operator(&database, &["admin", "user", "list", "--json"]).succeeded();
    assert!(listed.stdout.contains("\"disabled\": true"), "{}", listed.stdout);
    user("enable").succeeded();
    server.client().post(SESSIONS, &right).await.expect(201);
    let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while key.get("/v1/meters").await.status != 200 {
        assert!(std::time::Instant::now() < end, "their keys stay dead");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let rows = database.lines("SELECT action AS line FROM audit_events WHERE actor_kind = 'operator'");
    for action in ["user.unlocked", "user.disabled", "user.enabled"] {
        assert!(rows.iter().any(|row| row == action), "{rows:?}");
    }
    let missing = operator(&database, &["admin", "user", "disable", "--email", "nobody@example.com"]);
    assert_ne!(missing.code, Some(0));
}
