//! A person and their own account: another password, where they are signed in, and what a stolen refresh token comes to.

use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

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
    a_call_that_is_held_back_moves_no_session_that_ended,
    guesses_at_the_present_password_count_for_the_user,
    links_that_set_a_password_end_with_what_ends_sign_ins,
    a_disabled_user_has_handed_out_nothing,
    a_wrong_password_is_answered_before_it_is_written_down,
    what_befalls_somebody_without_a_workspace_is_told,
    a_disabled_user_who_tries_is_told_of,
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
    // five addresses at once keep nobody out, who comes with a browser that nobody knows
    for at in 1..=5 {
        let stranger = server.client().with("x-forwarded-for", format!("11.0.{at}.1"));
        let wrong = json!({"email": email, "password": "a wrong password"});
        let mut guesses = 0;
        while stranger.post(SESSIONS, &wrong).await.status == 401 {
            guesses += 1;
            assert!(guesses <= 10);
        }
    }
    let newcomer = server.client().with("x-forwarded-for", "198.51.100.77");
    let typo = json!({"email": email, "password": "a typing error"});
    newcomer.post(SESSIONS, &typo).await.error(401, "unauthorized");
    newcomer.post(SESSIONS, &right).await.expect(201);
    // who guessed from there today waits, unless they have what only the owner is sent
    let from_there = |client: Client| client.with("x-forwarded-for", "11.0.1.2");
    from_there(server.client()).post(SESSIONS, &right).await.error(429, "rate_limited");
    let link = operator(&database, &["admin", "user", "reset-password", "--email", &email]).succeeded();
    let path = link.stdout.trim_end().to_owned();
    let form = Some("password=another+battery+staple+9".to_owned());
    let set = from_there(by_hand(&server)).send_form(reqwest::Method::POST, &path, form).await.expect(303);
    let known = format!("open_spanner_device={}", set.cookie("open_spanner_device").expect("a cookie"));
    let anew = json!({"email": email, "password": "another battery staple 9"});
    from_there(server.client()).post(SESSIONS, &anew).await.error(429, "rate_limited");
    from_there(server.client()).with("cookie", known).post(SESSIONS, &anew).await.expect(201);
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

/// A call whose head has arrived and whose body has not.
struct Held {
    stream: TcpStream,
    body: String,
}

impl Held {
    async fn begin(client: &Client, server: &Server, path: &str, body: &Value) -> Held {
        let (body, cookie) = (body.to_string(), client.header("cookie"));
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\ncookie: {cookie}\r\ncontent-type: application/json\r\n\
             content-length: {}\r\nconnection: close\r\n\r\n",
            body.len()
        );
        let mut stream = TcpStream::connect(server.http()).await.expect("the server listens");
        stream.write_all(head.as_bytes()).await.expect("sent");
        // until the caller is let in
        tokio::time::sleep(Duration::from_millis(300)).await;
        Held { stream, body }
    }

    async fn finish(mut self) -> String {
        self.stream.write_all(self.body.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        self.stream.read_to_string(&mut answer).await.expect("an answer");
        answer
    }
}

async fn a_call_that_is_held_back_moves_no_session_that_ended(database: Database) {
    let server = Server::start(&database);
    for way in ["all", "password", "end-sessions", "disable"] {
        let email = sign_up(&server.client()).await;
        let owner = sign_in(&server, &email, PASSWORD, "owner").await;
        let thief = sign_in(&server, &email, PASSWORD, "thief").await;
        let here = thief.get(SESSION).await.json(200)["user"]["workspace_id"].clone();
        let body = json!({"workspace_id": here});
        let held = Held::begin(&thief, &server, "/v1/auth/session/workspace", &body).await;
        match way {
            "all" => drop(owner.delete(SESSIONS).await.expect(204)),
            "password" => {
                let change = json!({"current_password": PASSWORD, "password": "another password"});
                owner.put("/v1/auth/password", &change).await.expect(204);
            }
            word => drop(operator(&database, &["admin", "user", word, "--email", &email]).succeeded()),
        }
        let answer = held.finish().await;
        assert!(answer.starts_with("HTTP/1.1 401"), "{way}: {answer}");
        assert!(!answer.contains("osp_at_") && !answer.contains("osp_rt_"), "{way}: {answer}");
        let left = if way == "password" { 1 } else { 0 };
        assert_eq!(database.count("sign_ins"), left, "{way}");
        database.execute("DELETE FROM sign_ins; DELETE FROM sessions");
    }
}

async fn guesses_at_the_present_password_count_for_the_user(database: Database) {
    let server = Server::start(&database);
    let email = sign_up(&server.client()).await;
    let mut client = sign_in(&server, &email, PASSWORD, "x").await;
    let here = client.get(SESSION).await.json(200)["user"]["workspace_id"].clone();
    let wrong = json!({"current_password": "a wrong one", "password": "another password"});
    for _ in 0..9 {
        client.put("/v1/auth/password", &wrong).await.error(400, "invalid_input");
    }
    // another sign-in of the same user is no other guesser, however it came about
    let moved = client.post("/v1/auth/session/workspace", &json!({"workspace_id": here})).await.expect(200);
    client = jar(&server, &moved);
    client.put("/v1/auth/password", &wrong).await.error(400, "invalid_input");
    let refused = client.put("/v1/auth/password", &wrong).await;
    let seconds: u64 = refused.header("retry-after").parse().expect("whole seconds");
    assert!((1..=300).contains(&seconds), "{seconds}");
    refused.error(429, "rate_limited");
    let another = sign_in(&server, &email, PASSWORD, "y").await;
    another.put("/v1/auth/password", &wrong).await.error(429, "rate_limited");
    // each is in the trail, put down to whoever was signed in
    let told = "SELECT actor_kind || ' ' || target_name AS line FROM audit_events WHERE action = 'user.password_refused'";
    until("the guesses are in the trail", || database.lines(told).len() == 10).await;
    assert!(database.lines(told).iter().all(|line| *line == format!("user {email}")));

    // many at once are no more than one after the other
    let email = sign_up(&server.client()).await;
    let client = sign_in(&server, &email, PASSWORD, "x").await;
    let guesses: Vec<_> = (0..40)
        .map(|_| {
            let (client, wrong) = (client.clone(), wrong.clone());
            tokio::spawn(async move { client.put("/v1/auth/password", &wrong).await.status })
        })
        .collect();
    let mut tried = 0;
    for guess in guesses {
        let status = guess.await.expect("an answer");
        assert!([400, 429].contains(&status), "{status}");
        tried += usize::from(status == 400);
    }
    let at_once = std::thread::available_parallelism().map_or(1, |count| count.get());
    assert!(tried <= 10 + at_once, "{tried} guesses of 40 at once");
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < end, "{what}: not within 20 s");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn links_that_set_a_password_end_with_what_ends_sign_ins(database: Database) {
    let server = Server::start(&database);
    let set = async |token: &str| {
        let path = format!("/v1/auth/password-resets/{token}");
        server.client().post(&path, &json!({"password": "a stranger's"})).await
    };
    for way in ["all", "others", "password", "end-sessions", "disable", "another link"] {
        let email = sign_up(&server.client()).await;
        let owner = sign_in(&server, &email, PASSWORD, "owner").await;
        let token = token_for(&database, &email);
        match way {
            "all" => drop(owner.delete(SESSIONS).await.expect(204)),
            "others" => {
                let page = owner.get("/settings/sessions").await.expect(200).text;
                let form = format!("form_token={}&end=others", crate::dashboard::token_of(&page));
                let owner = owner.with("sec-fetch-site", "same-origin");
                owner.send_form(reqwest::Method::POST, "/settings/sessions", Some(form)).await.expect(303);
            }
            "password" => {
                let change = json!({"current_password": PASSWORD, "password": "another password"});
                owner.put("/v1/auth/password", &change).await.expect(204);
            }
            "another link" => {
                // one that was mailed lies beside it, until one of them is used
                let mailed = "INSERT INTO password_resets (token_hash, user_id, expires_at, by_mail)
                              SELECT HASH, id, 9000000000000000, TRUTH FROM users WHERE email = 'EMAIL'";
                let (hash, truth) = match database {
                    Database::Sqlite { .. } => ("x'00'", "1"),
                    Database::Postgres { .. } => ("'\\x00'", "true"),
                };
                let mailed = mailed.replace("HASH", hash).replace("TRUTH", truth).replace("EMAIL", &email);
                database.execute(&mailed);
                set(&token).await.expect(204);
                assert_eq!(database.count("password_resets"), 0);
            }
            word => drop(operator(&database, &["admin", "user", word, "--email", &email]).succeeded()),
        }
        set(&token).await.error(404, "not_found");
        assert_eq!(database.count("password_resets"), 0, "{way}");
    }
}

async fn a_disabled_user_has_handed_out_nothing(database: Database) {
    let server = Server::start(&database);
    let (email, friend) = (sign_up(&server.client()).await, sign_up(&server.client()).await);
    let ann = sign_in(&server, &email, PASSWORD, "x").await;
    let body = json!({"email": friend, "role": "admin"});
    let made = ann.post("/v1/auth/workspace/invitations", &body).await.json(201);
    let invitation = format!("/v1/auth/workspace-invitations/{}", made["token"].as_str().expect("a token"));
    let link = ann.post("/v1/subjects/org_1/links", &json!({})).await.json(201);
    let share = format!("/share/{}", link["token"].as_str().expect("a token"));
    server.client().get(&share).await.expect(200);
    let user = |word: &str| operator(&database, &["admin", "user", word, "--email", &email]).succeeded();
    user("disable");
    server.client().get(&share).await.expect(404);
    assert_eq!(server.client().get(&invitation).await.json(200)["status"], json!("revoked"));
    let friend = sign_in(&server, &friend, PASSWORD, "x").await;
    friend.post_text(&format!("{invitation}/accept"), "").await.error(409, "conflict");
    // what was handed out stays taken back
    user("enable");
    server.client().get(&share).await.expect(404);
    friend.post_text(&format!("{invitation}/accept"), "").await.error(409, "conflict");
    let told = "SELECT state_after AS line FROM audit_events WHERE action = 'user.disabled'";
    let told = database.lines(told).concat();
    assert!(told.contains("\"invitations\":1") && told.contains("\"subject_links\":1"), "{told}");
}

/// The time of an answer tells nobody who has an account: a known one is not written to before it.
async fn a_wrong_password_is_answered_before_it_is_written_down(database: Database) {
    let server = Server::start(&database);
    let email = sign_up(&server.client()).await;
    let wrong = json!({"email": email, "password": "a wrong password"});
    // everything that would be written down waits
    let held: Box<dyn std::any::Any> = match &database {
        Database::Sqlite { .. } => {
            let mut file = database.sqlite_connection();
            file.batch_execute("BEGIN IMMEDIATE").expect("the lock is free");
            Box::new(file)
        }
        Database::Postgres { .. } => {
            let mut table = database.postgres_connection();
            table.batch_execute("BEGIN; LOCK TABLE audit_heads IN EXCLUSIVE MODE").expect("the lock is free");
            Box::new(table)
        }
    };
    let began = Instant::now();
    server.client().post(SESSIONS, &wrong).await.error(401, "unauthorized");
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    drop(held);
    let told = "SELECT address AS line FROM audit_events WHERE action = 'session.failed'";
    until("the failure is in the trail", || database.lines(told) == ["127.0.0.1"]).await;
}

/// Whoever was removed from every workspace still has an account; the trail of the server tells of it.
async fn what_befalls_somebody_without_a_workspace_is_told(database: Database) {
    let server = Server::start(&database);
    let email = sign_up(&server.client()).await;
    database.execute("DELETE FROM memberships");
    let wrong = json!({"email": email, "password": "a wrong password"});
    server.client().post(SESSIONS, &wrong).await.error(401, "unauthorized");
    let path = format!("/v1/auth/password-resets/{}", token_for(&database, &email));
    server.client().post(&path, &json!({"password": "another password"})).await.expect(204);
    let told = || {
        let mut rows = database.lines(
            "SELECT action || ' ' || target_name AS line FROM audit_events
             WHERE workspace_id = 0 AND action IN ('session.failed', 'user.password_reset')",
        );
        rows.sort();
        rows
    };
    let wanted = ["session.failed", "user.password_reset"].map(|action| format!("{action} {email}"));
    until("both are in the trail of the server", || told() == wanted).await;
}

/// With the right password: somebody has it, and is not let in.
async fn a_disabled_user_who_tries_is_told_of(database: Database) {
    let server = Server::start(&database);
    let email = sign_up(&server.client()).await;
    operator(&database, &["admin", "user", "disable", "--email", &email]).succeeded();
    let right = json!({"email": email, "password": PASSWORD});
    server.client().post(SESSIONS, &right).await.error(403, "forbidden");
    let told = "SELECT target_name AS line FROM audit_events WHERE action = 'session.failed'";
    until("the failure is in the trail", || database.lines(told) == [email.as_str()]).await;
}
