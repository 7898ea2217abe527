//! Registration, sign-in, refresh and sign-out over HTTP. Tokens travel in cookies and nowhere else.

use serde_json::{Value, json};

use crate::support::client::{PASSWORD, sign_up};
use crate::support::{Answer, Client, Database, Server, on_both_databases, unique};

on_both_databases!(
    no_other_site_signs_anybody_in,
    what_a_browser_sends_with_a_cookie_is_json,
    a_sign_in_answers_with_cookies_and_no_token,
    a_refresh_gives_new_tokens,
    a_used_refresh_token_works_once_more_for_a_moment,
    tokens_are_not_taken_for_each_other,
    a_sign_out_ends_one_sign_in,
    bytes_of_others_hide_no_cookie_of_ours,
    expired_tokens_open_nothing,
    refusals_of_a_sign_in_tell_nothing,
    bad_registrations_are_refused,
);

const ACCESS: &str = "open_spanner_access";
const REFRESH: &str = "open_spanner_refresh";
const REFRESHING: &str = "/v1/auth/session/refresh";
const SESSION: &str = "/v1/auth/session";

/// The two tokens of an answer.
fn tokens(answer: &Answer) -> (String, String) {
    (answer.cookie(ACCESS).expect("an access cookie"), answer.cookie(REFRESH).expect("a refresh cookie"))
}

async fn sign_in(client: &Client, email: &str) -> (String, String) {
    let answer = client.post("/v1/auth/sessions", &json!({"email": email, "password": PASSWORD})).await;
    tokens(&answer.expect(201))
}

fn with_access(client: &Client, token: &str) -> Client {
    client.with("cookie", format!("{ACCESS}={token}"))
}

async fn refresh(client: &Client, token: &str) -> Answer {
    client.with("cookie", format!("{REFRESH}={token}")).post_text(REFRESHING, "").await
}

async fn a_sign_in_answers_with_cookies_and_no_token(database: Database) {
    let server = Server::start(&database);
    let client = server.client();
    let email = format!("  {}@Example.COM ", unique("Ann"));
    let user = client.post("/v1/auth/users", &json!({"email": email, "password": PASSWORD})).await;
    assert!(user.headers.get("set-cookie").is_none(), "registering does not sign in");
    let user = user.json(201);
    assert_eq!(user["email"], json!(email.trim().to_lowercase()));
    assert_eq!(user["role"], json!("owner"));
    let answer = client.post("/v1/auth/sessions", &json!({"email": email, "password": PASSWORD})).await;
    let (access, refresh) = tokens(&answer);
    let lines: Vec<&str> =
        answer.headers.get_all("set-cookie").iter().map(|line| line.to_str().expect("a text")).collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    for line in lines {
        assert!(
            line.contains("; HttpOnly") && line.contains("; SameSite=Lax") && line.contains("; Path=/"),
            "{line}"
        );
        assert!(!line.contains("Secure") && !line.contains("Domain"), "plain http: {line}");
    }
    let text = answer.text.clone();
    assert!(!text.contains(&access) && !text.contains(&refresh) && !text.contains("token"), "{text}");
    assert!(!text.contains(PASSWORD));
    let body = answer.json(201);
    assert_eq!(body["user"], user);
    assert!(body["expires_at"].is_string());
    assert_eq!(with_access(&client, &access).get(SESSION).await.json(200)["user"], user);
    // neither is kept as it is
    let stored = match database {
        Database::Sqlite { .. } => "SELECT hex(token_hash) AS line FROM sessions",
        Database::Postgres { .. } => "SELECT encode(token_hash, 'escape') AS line FROM sessions",
    };
    assert!(database.lines(stored).iter().all(|line| !line.contains("osp_")));
}

/// A form of another site must not have a visitor work in somebody else's workspace.
async fn no_other_site_signs_anybody_in(database: Database) {
    let server = Server::start(&database);
    let email = sign_up(&server.client()).await;
    let body = json!({"email": email, "password": PASSWORD});
    for (name, value) in [("sec-fetch-site", "cross-site"), ("origin", "https://evil.example")] {
        let other = server.client().with(name, value.to_owned());
        let answer = other.post("/v1/auth/sessions", &body).await;
        assert!(answer.cookie("open_spanner_access").is_none(), "{name}");
        answer.error(403, "forbidden");
        other
            .post("/v1/auth/users", &json!({"email": "b@example.com", "password": PASSWORD}))
            .await
            .error(403, "forbidden");
        other.post_text("/v1/auth/session/refresh", "").await.error(403, "forbidden");
        other.delete("/v1/auth/session").await.error(403, "forbidden");
    }
    server
        .client()
        .with("sec-fetch-site", "same-origin".to_owned())
        .post("/v1/auth/sessions", &body)
        .await
        .expect(201);
    server.client().post("/v1/auth/sessions", &body).await.expect(201);
}

/// A form of another site can send these with our cookie, and an old browser would not say that it did.
async fn what_a_browser_sends_with_a_cookie_is_json(database: Database) {
    let server = Server::start(&database);
    let ws = server.workspace().await;
    let meter = |n: u32| json!({"name": format!("m{n}"), "unit": "u"}).to_string();
    let send = async |client: &Client, content_type: &str, body: String| {
        let client = match content_type {
            "" => client.clone(),
            named => client.with("content-type", named),
        };
        client.post_bytes("/v1/meters", body.into_bytes()).await
    };
    let forms = ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"];
    // a program says nothing of where it comes from, and may call its JSON what it likes
    for (n, form) in (10..).zip(forms) {
        send(&ws.session, form, meter(n)).await.expect(201);
    }
    // an old browser says only what it is
    let browser =
        ws.session.with("user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:60.0) Gecko/20100101 Firefox/60.0");
    let linked = ws.session.with("referer", "https://elsewhere.example/");
    let typed = ws.session.with("sec-fetch-site", "none");
    for form in forms {
        for client in [&browser, &linked, &typed] {
            send(client, form, meter(0)).await.error(415, "unsupported_content_type");
        }
    }
    // what says nothing is no form: a form always says what it sends
    send(&browser, "", meter(7)).await.expect(201);
    let cancel = "/v1/exports/01900000-0000-7000-8000-000000000000/cancel";
    browser.post_bytes(cancel, Vec::new()).await.error(404, "not_found");
    let form = browser.with("content-type", "application/x-www-form-urlencoded");
    form.post_bytes(cancel, Vec::new()).await.error(415, "unsupported_content_type");
    form.post_bytes("/v1/auth/workspace/leave", Vec::new()).await.error(415, "unsupported_content_type");
    for (n, json) in
        [(1, "application/json"), (2, "Application/JSON; charset=utf-8"), (3, "application/x+json")]
    {
        send(&browser, json, meter(n)).await.expect(201);
    }
    // a page of this server may send what it likes, and so may whoever has a key
    let host = server.http().to_owned();
    let own = [("sec-fetch-site", "same-origin".to_owned()), ("origin", format!("http://{host}"))];
    for (n, (name, value)) in (4..).zip(own) {
        send(&browser.with(name, value), "text/plain", meter(n)).await.expect(201);
    }
    send(&ws.key.with("user-agent", "Mozilla/5.0"), "text/plain", meter(6)).await.expect(201);
    // the cookie alone renews a session: a form renews none
    let refresh = server.client().with("cookie", format!("{REFRESH}=osp_rt_x"));
    let form = refresh.with("content-type", "text/plain").with("user-agent", "Mozilla/5.0");
    form.post_bytes(REFRESHING, Vec::new()).await.error(415, "unsupported_content_type");
    refresh.post_bytes(REFRESHING, Vec::new()).await.error(401, "unauthorized");
}

async fn a_refresh_gives_new_tokens(database: Database) {
    let server = Server::start(&database);
    let client = server.client();
    let email = sign_up(&client).await;
    let (old_access, mut token) = sign_in(&client, &email).await;
    for _ in 0..3 {
        let answer = refresh(&client, &token).await.expect(200);
        let (access, next) = tokens(&answer);
        assert!(access != old_access && next != token);
        assert_eq!(with_access(&client, &access).get(SESSION).await.json(200)["user"]["email"], json!(email));
        token = next;
        let body = answer.json(200);
        assert_eq!(body["user"]["email"], json!(email));
    }
    // an access token lives until it expires
    with_access(&client, &old_access).get(SESSION).await.expect(200);
}

/// Two browser tabs wake up together and send the same token.
async fn a_used_refresh_token_works_once_more_for_a_moment(database: Database) {
    let server = Server::start(&database);
    let client = server.client();
    let email = sign_up(&client).await;
    let (_, token) = sign_in(&client, &email).await;
    let (first, second) = tokio::join!(refresh(&client, &token), refresh(&client, &token));
    for answer in [first, second] {
        let (access, _) = tokens(&answer.expect(200));
        with_access(&client, &access).get(SESSION).await.expect(200);
    }
    // the moment is over: the used token is the one that ends first
    let oldest = "(SELECT MIN(expires_at) FROM sessions WHERE kind = 'refresh')";
    database.execute(&format!(
        "UPDATE sessions SET expires_at = 1 WHERE kind = 'refresh' AND expires_at = {oldest}"
    ));
    refresh(&client, &token).await.error(401, "unauthorized");
}

async fn tokens_are_not_taken_for_each_other(database: Database) {
    let server = Server::start(&database);
    let ws = server.workspace().await;
    let client = server.client();
    let email = sign_up(&client).await;
    let (access, token) = sign_in(&client, &email).await;
    with_access(&client, &token).get(SESSION).await.error(401, "unauthorized");
    refresh(&client, &access).await.error(401, "unauthorized");
    client.with_key(&access).get("/v1/meters").await.error(401, "unauthorized");
    let key = ws.key.header("authorization").replace("Bearer ", "");
    with_access(&client, &key).get(SESSION).await.error(401, "unauthorized");
    refresh(&client, &key).await.error(401, "unauthorized");
    ws.key.get(SESSION).await.error(401, "unauthorized");
    for nothing in ["", "osp_rt_", "x", "%00", &"x".repeat(5_000)] {
        refresh(&client, nothing).await.error(401, "unauthorized");
        with_access(&client, nothing).get(SESSION).await.error(401, "unauthorized");
    }
    client.post_text(REFRESHING, "").await.error(401, "unauthorized");
    client.get(SESSION).await.error(401, "unauthorized");
}

/// Another program of the same host may set a cookie of any bytes; it comes in the same header.
async fn bytes_of_others_hide_no_cookie_of_ours(database: Database) {
    let server = Server::start(&database);
    let client = server.client();
    let email = sign_up(&client).await;
    let (access, refresh) = sign_in(&client, &email).await;
    let beside = |cookies: String| client.with("cookie", format!("other=\u{e9}; {cookies}; more=\u{fc}"));
    beside(format!("{ACCESS}={access}")).get(SESSION).await.expect(200);
    beside(format!("{ACCESS}={access}")).get("/meters").await.expect(200);
    let renewed = beside(format!("{REFRESH}={refresh}")).post_text(REFRESHING, "").await.expect(200);
    let (access, refresh) = tokens(&renewed);
    with_access(&client, &access).get(SESSION).await.expect(200);
    beside(format!("{ACCESS}={access}; {REFRESH}={refresh}")).delete(SESSION).await.expect(204);
    with_access(&client, &access).get(SESSION).await.error(401, "unauthorized");
    // nor is a foreign page taken for none
    let foreign = client.with("origin", "https://\u{e9}vil.example");
    let login = json!({"email": email, "password": PASSWORD});
    foreign.post("/v1/auth/sessions", &login).await.error(403, "forbidden");
}

async fn a_sign_out_ends_one_sign_in(database: Database) {
    let server = Server::start(&database);
    let client = server.client();
    let email = sign_up(&client).await;
    let (access, token) = sign_in(&client, &email).await;
    let (newer, next) = tokens(&refresh(&client, &token).await.expect(200));
    let elsewhere = sign_in(&client, &email).await;
    with_access(&client, &access).get(SESSION).await.expect(200);
    let answer = with_access(&client, &newer).delete(SESSION).await.expect(204);
    let cleared: Vec<&str> =
        answer.headers.get_all("set-cookie").iter().map(|line| line.to_str().expect("a text")).collect();
    assert_eq!(cleared.len(), 2, "{cleared:?}");
    assert!(cleared.iter().all(|line| line.contains("=;") && line.contains("Max-Age=0")), "{cleared:?}");
    // everything that came from the same sign-in has ended, remembered or not
    for token in [&access, &newer] {
        with_access(&client, token).get(SESSION).await.error(401, "unauthorized");
    }
    for token in [&token, &next] {
        refresh(&client, token).await.error(401, "unauthorized");
    }
    with_access(&client, &elsewhere.0).get(SESSION).await.expect(200);
    refresh(&client, &elsewhere.1).await.expect(200);
    // nothing to end is fine
    client.delete(SESSION).await.expect(204);
    with_access(&client, "nosuch").delete(SESSION).await.expect(204);
}

async fn expired_tokens_open_nothing(database: Database) {
    let server = Server::start(&database);
    let client = server.client();
    let email = sign_up(&client).await;
    let (access, token) = sign_in(&client, &email).await;
    // before anybody has seen them, so that no memory of them is in the way
    database.execute("UPDATE sessions SET expires_at = 1");
    with_access(&client, &access).get(SESSION).await.error(401, "unauthorized");
    refresh(&client, &token).await.error(401, "unauthorized");
}

async fn refusals_of_a_sign_in_tell_nothing(database: Database) {
    let server = Server::start(&database);
    let client = server.client();
    let email = sign_up(&client).await;
    let mut answers: Vec<Value> = Vec::new();
    for (email, password) in [
        (email.as_str(), "a wrong password"),
        ("stranger@example.com", PASSWORD),
        (email.as_str(), ""),
        ("", PASSWORD),
        ("not an address", PASSWORD),
        (email.as_str(), &"x".repeat(10_000)),
    ] {
        let body = json!({"email": email, "password": password});
        let answer = client.post("/v1/auth/sessions", &body).await;
        assert!(answer.headers.get("set-cookie").is_none());
        answers.push(answer.json(401));
    }
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    assert_eq!(database.count("sessions"), 0);
}

async fn bad_registrations_are_refused(database: Database) {
    let mut server = Server::start(&database);
    let client = server.client();
    let email = sign_up(&client).await;
    let register = async |email: &str, password: &str| {
        client.post("/v1/auth/users", &json!({"email": email, "password": password})).await
    };
    let message = register("nobody.example.com", PASSWORD).await.error(400, "invalid_input");
    assert!(message.contains("email"), "{message}");
    let message = register("b@example.com", "short").await.error(400, "invalid_input");
    assert!(message.contains("password"), "{message}");
    let message = register(&email.to_uppercase(), PASSWORD).await.error(409, "conflict");
    assert!(!message.contains("constraint"), "{message}");
    assert_eq!(database.count("users"), 1);
    assert_eq!(database.count("workspaces"), 1, "a refused user leaves no workspace behind");
    client.post_text("/v1/auth/users", "{").await.error(400, "invalid_json");

    server.terminate();
    let closed = Server::start_with(&database, &[("OPEN_SPANNER_REGISTRATION_ENABLED", "false")]);
    let body = json!({"email": "c@example.com", "password": PASSWORD});
    closed.client().post("/v1/auth/users", &body).await.error(403, "registration_disabled");
    closed.client().post_text("/v1/auth/users", "{").await.error(403, "registration_disabled");
    let providers = closed.client().get("/v1/auth/providers").await.json(200);
    assert_eq!(providers["registration_enabled"], json!(false));
    // who is registered may still come in
    sign_in(&closed.client(), &email).await;
}
