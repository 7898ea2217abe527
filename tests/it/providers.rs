//! Signing in with a provider: who is let in, and the many ways in which nobody is. `signing_in_browser` has people click
//! through two real ones.

mod dumped;
mod strange;

use serde_json::{Value, json};

use crate::support::client::{PASSWORD, sign_in, sign_up};
use crate::support::provider::{CLIENT_ID, CLIENT_SECRET, Provider, Signing};
use crate::support::{
    Answer, Client, Database, Server, env, on_both_databases, program, skip, stable_port, unique,
};

on_both_databases!(
    a_newcomer_signs_in_and_comes_back,
    a_token_that_is_not_right_opens_nothing,
    keys_of_a_provider_are_replaced,
    a_state_is_good_once_and_for_one_provider,
    an_account_with_a_password_is_connected_by_its_owner,
    groups_give_roles_in_one_workspace,
    a_domain_and_a_closed_door_keep_people_out,
    passwords_can_be_switched_off,
    a_provider_that_is_away_stops_nobody_else,
    github_is_asked_for_verified_addresses,
    the_way_back_is_to_us,
    an_address_that_is_not_verified_is_not_connected,
    an_account_that_comes_into_other_hands_leaves_no_way_back,
    where_somebody_goes_then_is_nobody_elses_to_know,
    a_flood_of_starts_locks_nobody_out,
    words_of_strangers_are_not_shown,
);

const SESSION: &str = "/v1/auth/session";

fn settings(provider: &Provider) -> Vec<(&'static str, String)> {
    vec![
        ("OPEN_SPANNER_OIDC_ISSUER", provider.url.clone()),
        ("OPEN_SPANNER_OIDC_CLIENT_ID", CLIENT_ID.to_owned()),
        ("OPEN_SPANNER_OIDC_CLIENT_SECRET", CLIENT_SECRET.to_owned()),
    ]
}

fn start(database: &Database, provider: &Provider, more: &[(&'static str, &str)]) -> Server {
    let mut all = settings(provider);
    all.extend(more.iter().map(|(name, value)| (*name, (*value).to_owned())));
    let all: Vec<(&str, &str)> = all.iter().map(|(name, value)| (*name, value.as_str())).collect();
    Server::start_with(database, &all)
}

/// A sign-in that has gone to the provider and not come back yet.
struct Gone {
    state: String,
    nonce: String,
    challenge: String,
    redirect_uri: String,
    cookie: String,
}

async fn go(client: &Client, path: &str) -> Gone {
    let answer = client.get(path).await.expect(302);
    let location = url::Url::parse(&answer.header("location")).expect("an address");
    let param = |name: &str| {
        let found = location.query_pairs().find(|(key, _)| key == name);
        found.map(|(_, value)| value.into_owned()).unwrap_or_default()
    };
    assert_eq!(param("response_type"), "code");
    assert_eq!(param("code_challenge_method"), "S256");
    let cookie = answer.cookie("open_spanner_oauth_state").expect("a state");
    assert_eq!(cookie, param("state"));
    Gone {
        state: param("state"),
        nonce: param("nonce"),
        challenge: param("code_challenge"),
        redirect_uri: param("redirect_uri"),
        cookie: format!("open_spanner_oauth_state={cookie}"),
    }
}

/// The claims of somebody, as a good provider would put them.
fn claims(provider: &Provider, gone: &Gone, email: &str) -> Value {
    let now = jiff::Timestamp::now().as_second();
    json!({"iss": provider.url, "aud": CLIENT_ID, "sub": email, "email": email, "email_verified": true,
           "nonce": gone.nonce, "iat": now, "exp": now + 300})
}

fn changed(mut claims: Value, change: &Value) -> Value {
    for (name, value) in change.as_object().expect("claims") {
        match value {
            Value::Null => {
                claims.as_object_mut().expect("claims").remove(name);
            }
            value => claims[name] = value.clone(),
        }
    }
    claims
}

async fn come_back(client: &Client, gone: &Gone) -> Answer {
    let client = client.with("cookie", gone.cookie.clone());
    client.get(&format!("/v1/auth/oauth/oidc/callback?code=c&state={}", gone.state)).await.expect(302)
}

/// All of it, with these claims changed.
async fn through(server: &Server, provider: &Provider, email: &str, change: &Value) -> Answer {
    let client = server.client();
    let gone = go(&client, "/v1/auth/oauth/oidc").await;
    provider.next(Signing::Own, changed(claims(provider, &gone, email), change), &gone.challenge);
    come_back(&client, &gone).await
}

fn jar(client: &Client, answer: &Answer) -> Client {
    let cookie = |name: &str| format!("{name}={}", answer.cookie(name).unwrap_or_default());
    client.with("cookie", format!("{}; {}", cookie("open_spanner_access"), cookie("open_spanner_refresh")))
}

#[track_caller]
fn is_in(server: &Server, answer: &Answer) -> Client {
    let said = answer.cookie("open_spanner_flash").unwrap_or_default();
    assert_eq!(answer.header("location"), "/overview", "{said}\n{}", server.log().join("\n"));
    jar(&server.client(), answer)
}

#[track_caller]
fn is_out(answer: &Answer) -> String {
    assert_eq!(answer.header("location"), "/login");
    assert!(
        answer.cookie("open_spanner_access").is_none() && answer.cookie("open_spanner_refresh").is_none()
    );
    let said = answer.cookie("open_spanner_flash").unwrap_or_default();
    percent_encoding::percent_decode_str(&said).decode_utf8_lossy().into_owned()
}

async fn a_newcomer_signs_in_and_comes_back(database: Database) {
    let provider = Provider::start().await;
    let server = start(&database, &provider, &[]);
    let email = format!("{}@example.com", unique("ann"));
    let first = through(&server, &provider, &email.to_uppercase(), &json!({"sub": "1"})).await;
    let ann = is_in(&server, &first);
    let cleared = first.headers.get_all("set-cookie").iter().filter_map(|line| line.to_str().ok());
    let cleared = cleared.filter(|line| line.contains("oauth") && line.contains("Max-Age=0")).count();
    assert_eq!(cleared, 2, "the cookies of the way are gone");
    let user = ann.get(SESSION).await.json(200)["user"].clone();
    assert_eq!((&user["email"], &user["role"]), (&json!(email), &json!("owner")));
    // the same person under another address is the same person
    let again = through(&server, &provider, "other@example.com", &json!({"sub": "1"})).await;
    assert_eq!(is_in(&server, &again).get(SESSION).await.json(200)["user"]["id"], user["id"]);
    // and another person is another one
    let bob = is_in(&server, &through(&server, &provider, "other@example.com", &json!({"sub": "2"})).await);
    assert_ne!(bob.get(SESSION).await.json(200)["user"]["id"], user["id"]);
    let own = ann.get("/v1/auth/identities").await.json(200)["items"].clone();
    assert_eq!((&own[0]["provider"], &own[0]["email"]), (&json!("oidc"), &json!(email)));
    let rows = ann.get("/v1/audit-events?action=user.registered").await.json(200)["items"].clone();
    assert_eq!(rows[0]["after"]["provider"], json!("oidc"));
    // no password was ever set, so none opens it
    let body = json!({"email": email, "password": PASSWORD});
    server.client().post("/v1/auth/sessions", &body).await.error(401, "unauthorized");
    let list = server.client().get("/v1/auth/providers").await.json(200);
    let ids: Vec<_> =
        list["items"].as_array().expect("a list").iter().map(|item| item["id"].clone()).collect();
    assert_eq!(ids, ["google", "github", "oidc"]);
}

async fn a_token_that_is_not_right_opens_nothing(database: Database) {
    let provider = Provider::start().await;
    let server = start(&database, &provider, &[]);
    let now = jiff::Timestamp::now().as_second();
    let bad: [(&str, Signing, Value); 16] = [
        ("another nonce", Signing::Own, json!({"nonce": "x"})),
        ("no nonce", Signing::Own, json!({"nonce": null})),
        ("expired", Signing::Own, json!({"exp": now - 1})),
        ("no expiry", Signing::Own, json!({"exp": null})),
        ("another audience", Signing::Own, json!({"aud": "another"})),
        ("audiences with a stranger", Signing::Own, json!({"aud": [CLIENT_ID, "another"]})),
        ("for another party", Signing::Own, json!({"azp": "another"})),
        ("another issuer", Signing::Own, json!({"iss": "https://evil.example"})),
        ("nobody", Signing::Own, json!({"sub": null})),
        ("an address that is not verified", Signing::Own, json!({"email_verified": false})),
        ("an address of which nothing is said", Signing::Own, json!({"email_verified": null})),
        ("no address", Signing::Own, json!({"email": ""})),
        ("two addresses", Signing::Own, json!({"email": "a@example.com,b@example.com"})),
        ("not signed", Signing::None, json!({})),
        ("signed with the secret", Signing::Secret, json!({})),
        ("signed by another key", Signing::Foreign, json!({})),
    ];
    for (what, signing, change) in bad {
        let client = server.client();
        let gone = go(&client, "/v1/auth/oauth/oidc").await;
        let claims = changed(claims(&provider, &gone, "ann@example.com"), &change);
        provider.next(signing, claims, &gone.challenge);
        let said = is_out(&come_back(&client, &gone).await);
        assert!(said.starts_with("Could not sign in with"), "{what}: {said}");
        assert_eq!(database.count("users") + database.count("identities"), 0, "{what}");
    }
    // userinfo that is about somebody else
    let gone = go(&server.client(), "/v1/auth/oauth/oidc").await;
    let silent = changed(claims(&provider, &gone, "ann@example.com"), &json!({"email": null}));
    provider.next(Signing::Own, silent.clone(), &gone.challenge);
    provider.userinfo(json!({"sub": "somebody else", "email": "ann@example.com", "email_verified": true}));
    is_out(&come_back(&server.client(), &gone).await);
    // a code that somebody else began with
    let gone = go(&server.client(), "/v1/auth/oauth/oidc").await;
    provider.next(Signing::Own, claims(&provider, &gone, "ann@example.com"), "another challenge");
    is_out(&come_back(&server.client(), &gone).await);
    // and it works when everything is right, with an address out of userinfo
    let gone = go(&server.client(), "/v1/auth/oauth/oidc").await;
    let silent = changed(silent, &json!({"nonce": gone.nonce, "email_verified": null}));
    provider.next(Signing::Own, silent, &gone.challenge);
    provider.userinfo(json!({"sub": "ann@example.com", "email": "ann@example.com", "email_verified": true}));
    is_in(&server, &come_back(&server.client(), &gone).await).get(SESSION).await.expect(200);
}

async fn keys_of_a_provider_are_replaced(database: Database) {
    let provider = Provider::start().await;
    let server = start(&database, &provider, &[]);
    is_in(&server, &through(&server, &provider, "ann@example.com", &json!({})).await);
    is_in(&server, &through(&server, &provider, "ann@example.com", &json!({})).await);
    assert_eq!((provider.calls("/.well-known/openid-configuration"), provider.calls("/jwks")), (1, 1));
    for kid in ["two", "two"] {
        // another key, the second time under the same name
        provider.rotate(kid);
        // keys are fetched anew no more than once a second
        let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while through(&server, &provider, "ann@example.com", &json!({})).await.header("location")
            != "/overview"
        {
            assert!(std::time::Instant::now() < end, "the new key is not taken");
            // nor does anybody sign in more often than he may
            tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        }
    }
    assert_eq!(provider.calls("/jwks"), 3);
    assert_eq!(database.count("users"), 1);
}

async fn a_state_is_good_once_and_for_one_provider(database: Database) {
    let provider = Provider::start().await;
    let other =
        [("OPEN_SPANNER_GITHUB_OAUTH_CLIENT_ID", "id"), ("OPEN_SPANNER_GITHUB_OAUTH_CLIENT_SECRET", "s")];
    let server = start(&database, &provider, &other);
    let client = server.client();
    let gone = go(&client, "/v1/auth/oauth/oidc").await;
    provider.next(Signing::Own, claims(&provider, &gone, "ann@example.com"), &gone.challenge);
    let at = |path: &str| format!("/v1/auth/oauth/{path}?code=c&state={}", gone.state);
    let ours = client.with("cookie", gone.cookie.clone());
    // without the cookie, with that of another browser, at another provider
    is_out(&client.get(&at("oidc/callback")).await.expect(302));
    let another = go(&client, "/v1/auth/oauth/oidc").await;
    let theirs = client.with("cookie", another.cookie.clone());
    is_out(&theirs.get(&at("oidc/callback")).await.expect(302));
    is_out(&ours.get(&at("github/callback")).await.expect(302));
    is_out(&ours.get("/v1/auth/oauth/google/callback?code=c&state=x").await.expect(302));
    assert_eq!(database.count("users"), 0);
    // it is still good in its own browser, once
    is_in(&server, &come_back(&client, &gone).await);
    is_out(&come_back(&client, &gone).await);
    // an answer that names another issuer, a refusal, an answer without a code
    for more in ["code=c&iss=https://evil.example", "error=access_denied", ""] {
        let gone = go(&client, "/v1/auth/oauth/oidc").await;
        provider.next(Signing::Own, claims(&provider, &gone, "ann@example.com"), &gone.challenge);
        let path = format!("/v1/auth/oauth/oidc/callback?{more}&state={}", gone.state);
        is_out(&client.with("cookie", gone.cookie.clone()).get(&path).await.expect(302));
        is_out(&come_back(&client, &gone).await);
    }
    // one that took too long
    let gone = go(&client, "/v1/auth/oauth/oidc").await;
    provider.next(Signing::Own, claims(&provider, &gone, "ann@example.com"), &gone.challenge);
    database.execute("UPDATE provider_flows SET expires_at = 1");
    is_out(&come_back(&client, &gone).await);
    // what is kept of the way says nothing that a thief could use
    go(&client, "/v1/auth/oauth/oidc").await;
    let kept = "SELECT provider || nonce || verifier || redirect_url || next AS line FROM provider_flows";
    assert!(!database.lines(kept).is_empty() && !database.lines(kept).concat().contains(&gone.state));
}

async fn an_account_with_a_password_is_connected_by_its_owner(database: Database) {
    let provider = Provider::start().await;
    let server = start(&database, &provider, &[]);
    let email = sign_up(&server.client()).await;
    let said = is_out(&through(&server, &provider, &email, &json!({})).await);
    assert!(said.contains("password"), "{said}");
    assert_eq!(database.count("identities"), 0);
    // whose account it is can see that somebody tried
    let tried = "SELECT target_name AS line FROM audit_events WHERE action = 'session.failed'";
    let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while database.lines(tried) != [email.as_str()] {
        assert!(std::time::Instant::now() < end, "{:?}", database.lines(tried));
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    // another site cannot start it for somebody who is signed in
    let ann = sign_in(&server.client(), &email).await;
    let path = "/v1/auth/oauth/oidc?link=1&next=/settings/sessions";
    ann.with("sec-fetch-site", "cross-site").get(path).await.error(403, "forbidden");
    server.client().get(path).await.error(401, "unauthorized");
    // it ends in the session in which it began, or not at all
    let gone = go(&ann, path).await;
    provider.next(Signing::Own, claims(&provider, &gone, &email), &gone.challenge);
    is_out(&come_back(&server.client(), &gone).await);
    let gone = go(&ann, path).await;
    provider.next(Signing::Own, claims(&provider, &gone, &email), &gone.challenge);
    let both = format!("{}; {}", ann.header("cookie"), gone.cookie);
    let callback = format!("/v1/auth/oauth/oidc/callback?code=c&state={}", gone.state);
    let back = server.client().with("cookie", both).get(&callback).await.expect(302);
    assert_eq!(back.header("location"), "/settings/sessions");
    is_in(&server, &through(&server, &provider, &email, &json!({})).await);
    // somebody else cannot connect the same account
    let bob = sign_up(&server.client()).await;
    let bob = sign_in(&server.client(), &bob).await;
    let gone = go(&bob, path).await;
    provider.next(Signing::Own, claims(&provider, &gone, &email), &gone.challenge);
    let both = format!("{}; {}", bob.header("cookie"), gone.cookie);
    let callback = format!("/v1/auth/oauth/oidc/callback?code=c&state={}", gone.state);
    let said = is_out(&server.client().with("cookie", both).get(&callback).await.expect(302));
    assert!(said.contains("connected already"), "{said}");
    // disconnected, it opens nothing by itself: the address is known to be theirs now, so it is connected again
    let own = ann.get("/v1/auth/identities").await.json(200)["items"][0]["id"].clone();
    let own = format!("/v1/auth/identities/{}", own.as_str().expect("an id"));
    bob.delete(&own).await.error(404, "not_found");
    ann.delete(&own).await.expect(204);
    assert_eq!(database.count("identities"), 0);
    // whoever has no password keeps the last way in
    let carl = is_in(&server, &through(&server, &provider, "carl@example.com", &json!({})).await);
    let own = carl.get("/v1/auth/identities").await.json(200)["items"][0]["id"].clone();
    carl.delete(&format!("/v1/auth/identities/{}", own.as_str().expect("an id")))
        .await
        .error(409, "conflict");
    assert_eq!(database.count("identities"), 1);
}

async fn groups_give_roles_in_one_workspace(database: Database) {
    let provider = Provider::start().await;
    let mut server = start(&database, &provider, &[]);
    let owner = sign_up(&server.client()).await;
    let owner = sign_in(&server.client(), &owner).await;
    let workspace =
        owner.get(SESSION).await.json(200)["user"]["workspace_id"].as_str().expect("an id").to_owned();
    server.terminate();
    let more = [
        ("OPEN_SPANNER_OIDC_WORKSPACE", workspace.as_str()),
        ("OPEN_SPANNER_OIDC_ROLES", "admins=admin,staff=viewer"),
        ("OPEN_SPANNER_REGISTRATION", "closed"),
    ];
    let server = start(&database, &provider, &more);
    let owner = owner.at(&server.url());
    let groups = async |groups: Value| {
        through(&server, &provider, "ann@example.com", &json!({"groups": groups})).await
    };
    provider.userinfo(json!({"sub": "ann@example.com"}));
    is_out(&groups(json!(["guests"])).await);
    assert_eq!(database.count("users"), 1, "no group, no account while registration is closed");
    let ann = is_in(&server, &groups(json!(["staff"])).await);
    let user = ann.get(SESSION).await.json(200)["user"].clone();
    assert_eq!((&user["workspace_id"], &user["role"]), (&json!(workspace), &json!("viewer")));
    let ann = is_in(&server, &groups(json!(["staff", "admins"])).await);
    assert_eq!(ann.get(SESSION).await.json(200)["user"]["role"], json!("admin"));
    let key = ann.post("/v1/auth/api-keys", &json!({"name": "k"})).await.json(201)["key"].clone();
    // out of all groups, out of the workspace, at once
    let alone = is_in(&server, &groups(json!([])).await);
    assert_ne!(alone.get(SESSION).await.json(200)["user"]["workspace_id"], json!(workspace));
    ann.get(SESSION).await.error(401, "unauthorized");
    let key = key.as_str().expect("a key");
    server.client().with_key(key).get("/v1/meters").await.error(401, "unauthorized");
    let members = owner.get("/v1/auth/workspace/members").await.json(200);
    assert_eq!(members["items"].as_array().expect("a list").len(), 1);
    let rows = owner.get("/v1/audit-events?action=member.role_changed").await.json(200);
    let rows = rows["items"].as_array().expect("a list");
    assert_eq!(rows.len(), 3);
    for row in rows {
        assert_eq!(
            (&row["actor"]["kind"], &row["actor"]["name"]),
            (&json!("user"), &json!("ann@example.com"))
        );
        assert_eq!(
            (&row["target"]["name"], &row["after"]["by"]),
            (&json!("ann@example.com"), &json!("groups"))
        );
    }
}

async fn a_domain_and_a_closed_door_keep_people_out(database: Database) {
    let provider = Provider::start().await;
    let more = [
        ("OPEN_SPANNER_SIGN_IN_DOMAINS", "Example.com, example.org"),
        ("OPEN_SPANNER_REGISTRATION", "invite"),
    ];
    let mut server = start(&database, &provider, &more);
    is_out(&through(&server, &provider, "ann@example.net", &json!({})).await);
    let said = is_out(&through(&server, &provider, "ann@example.com", &json!({})).await);
    assert!(said.contains("closed"), "{said}");
    assert_eq!(database.count("users"), 0);
    server.terminate();
    // an invitation for the address opens the door
    let open = start(&database, &provider, &more[..1]);
    let owner = is_in(&open, &through(&open, &provider, "owner@example.org", &json!({})).await);
    let asked = json!({"email": "ann@example.com", "role": "viewer"});
    owner.post("/v1/auth/workspace/invitations", &asked).await.expect(201);
    drop(open);
    let server = start(&database, &provider, &more);
    // while whoever sent it may invite
    for (closed, open) in [
        ("UPDATE users SET disabled_at = 1", "UPDATE users SET disabled_at = NULL"),
        ("UPDATE memberships SET role = 'viewer'", "UPDATE memberships SET role = 'owner'"),
    ] {
        database.execute(closed);
        is_out(&through(&server, &provider, "ann@example.com", &json!({})).await);
        database.execute(open);
    }
    is_in(&server, &through(&server, &provider, "ann@example.com", &json!({})).await);
    is_out(&through(&server, &provider, "bob@example.com", &json!({})).await);
}

async fn passwords_can_be_switched_off(database: Database) {
    let provider = Provider::start().await;
    let mut server = start(&database, &provider, &[]);
    let email = sign_up(&server.client()).await;
    server.terminate();
    let server = start(&database, &provider, &[("OPEN_SPANNER_PASSWORD_SIGN_IN", "false")]);
    let body = json!({"email": email, "password": PASSWORD});
    server.client().post("/v1/auth/sessions", &body).await.error(403, "forbidden");
    let body = json!({"email": "new@example.com", "password": PASSWORD});
    server.client().post("/v1/auth/users", &body).await.error(403, "forbidden");
    assert_eq!(server.client().get("/v1/auth/providers").await.json(200)["password_enabled"], json!(false));
    let page = server.client().get("/login").await.expect(200).text;
    assert!(page.contains("/v1/auth/oauth/oidc") && !page.contains("type=\"password\""), "{page}");
    // whoever had a password comes in with the provider
    let ann = is_in(&server, &through(&server, &provider, &email, &json!({})).await);
    assert_eq!(ann.get(SESSION).await.json(200)["user"]["email"], json!(email));
}

async fn a_provider_that_is_away_stops_nobody_else(database: Database) {
    let port = stable_port();
    let url = format!("http://127.0.0.1:{port}");
    let away = Provider::start().await;
    let server = start(&database, &away, &[("OPEN_SPANNER_OIDC_ISSUER", &url)]);
    let said = is_out(&server.client().get("/v1/auth/oauth/oidc").await.expect(302));
    assert!(said.contains("does not answer"), "{said}");
    let email = sign_up(&server.client()).await;
    sign_in(&server.client(), &email).await.get(SESSION).await.expect(200);
    let provider = Provider::start_on(port).await;
    let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while server.client().get("/v1/auth/oauth/oidc").await.header("location") == "/login" {
        assert!(std::time::Instant::now() < end, "it is back and not asked");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    is_in(&server, &through(&server, &provider, "ann@example.com", &json!({})).await);
    // one that says it is another is not believed
    let another = Database::sqlite();
    let liar = Server::start_with(
        &another,
        &[("OPEN_SPANNER_OIDC_ISSUER", &format!("{url}/")), ("OPEN_SPANNER_OIDC_CLIENT_ID", CLIENT_ID)],
    );
    is_out(&liar.client().get("/v1/auth/oauth/oidc").await.expect(302));
}

async fn github_is_asked_for_verified_addresses(database: Database) {
    let provider = Provider::start().await;
    let settings = [
        ("OPEN_SPANNER_GITHUB_URL", provider.url.as_str()),
        ("OPEN_SPANNER_GITHUB_OAUTH_CLIENT_ID", CLIENT_ID),
        ("OPEN_SPANNER_GITHUB_OAUTH_CLIENT_SECRET", CLIENT_SECRET),
    ];
    let server = Server::start_with(&database, &settings);
    let come = async |user: Value, emails: Value| {
        let gone = go(&server.client(), "/v1/auth/oauth/GitHub").await;
        assert!(gone.redirect_uri.ends_with("/v1/auth/oauth/github/callback"), "{}", gone.redirect_uri);
        provider.next(Signing::None, json!({}), &gone.challenge);
        provider.github(user, emails);
        let path = format!("/v1/auth/oauth/github/callback?code=c&state={}", gone.state);
        server.client().with("cookie", gone.cookie).get(&path).await.expect(302)
    };
    let address =
        |email: &str, verified: bool| json!([{"email": email, "primary": true, "verified": verified}]);
    is_out(&come(json!({"id": 7, "email": "ann@example.com"}), address("ann@example.com", false)).await);
    is_out(&come(json!({"id": 0}), address("ann@example.com", true)).await);
    is_out(&come(json!({}), address("ann@example.com", true)).await);
    assert_eq!(database.count("users"), 0);
    let ann = is_in(&server, &come(json!({"id": 7}), address("ann@example.com", true)).await);
    assert_eq!(ann.get(SESSION).await.json(200)["user"]["email"], json!("ann@example.com"));
    // known by the number, whatever becomes of the address
    let again = is_in(&server, &come(json!({"id": 7}), json!([])).await);
    assert_eq!(again.get(SESSION).await.json(200)["user"]["email"], json!("ann@example.com"));
}

async fn the_way_back_is_to_us(database: Database) {
    let provider = Provider::start().await;
    let more = [("OPEN_SPANNER_OAUTH_REDIRECT_ORIGINS", "http://localhost:5173")];
    let server = start(&database, &provider, &more);
    let own = format!("{}/v1/auth/oauth/oidc/callback", server.url());
    let back = async |client: &Client, query: &str| {
        go(client, &format!("/v1/auth/oauth/oidc{query}")).await.redirect_uri
    };
    let client = server.client();
    assert_eq!(back(&client, "").await, own);
    assert_eq!(back(&client, &format!("?redirect_origin={}", server.url())).await, own);
    let listed = back(&client, "?redirect_origin=http://localhost:5173/x?y").await;
    assert_eq!(listed, "http://localhost:5173/v1/auth/oauth/oidc/callback");
    for evil in ["https://evil.example", "http://user@localhost:5173", "nothing"] {
        assert_eq!(back(&client, &format!("?redirect_origin={evil}")).await, own, "{evil}");
    }
    // the word of a stranger about where we are is not believed
    let lied = client.with("x-forwarded-host", "evil.example").with("x-forwarded-proto", "https");
    assert_eq!(back(&lied, "").await, own);
    // and the page afterwards is one of ours
    let gone = go(&client, "/v1/auth/oauth/oidc?next=https://evil.example").await;
    provider.next(Signing::Own, claims(&provider, &gone, "ann@example.com"), &gone.challenge);
    is_in(&server, &come_back(&client, &gone).await);
    // Google's start asks nobody, and goes where it always went
    let google =
        [("OPEN_SPANNER_GOOGLE_OAUTH_CLIENT_ID", "gid"), ("OPEN_SPANNER_GOOGLE_OAUTH_CLIENT_SECRET", "s")];
    let another = Database::sqlite();
    let server = Server::start_with(&another, &google);
    let answer = server.client().get("/v1/auth/oauth/google").await.expect(302);
    let location = answer.header("location");
    assert!(location.starts_with("https://accounts.google.com/o/oauth2/auth?client_id=gid&"), "{location}");
    assert!(location.contains("scope=openid+email+profile") && location.contains("nonce="), "{location}");
    let redirect = answer.cookie("open_spanner_oauth_redirect").expect("a cookie");
    assert!(redirect.ends_with("/v1/auth/oauth/google/callback"), "{redirect}");
    server.client().get("/v1/auth/oauth/github").await.error(404, "not_found");
}

/// Comes back in the browser of somebody who is signed in.
async fn come_back_as(who: &Client, gone: &Gone) -> Answer {
    let both = format!("{}; {}", who.header("cookie"), gone.cookie);
    let client = who.without("cookie").with("cookie", both);
    client.get(&format!("/v1/auth/oauth/oidc/callback?code=c&state={}", gone.state)).await.expect(302)
}

/// Somebody registers with the address of somebody else, and says at a provider that it is theirs.
async fn an_address_that_is_not_verified_is_not_connected(database: Database) {
    let provider = Provider::start().await;
    let server = start(&database, &provider, &[("OPEN_SPANNER_CACHE_TTL", "5s")]);
    let email = sign_up(&server.client()).await;
    let stranger = sign_in(&server.client(), &email).await;
    let proven = "SELECT CAST(count(*) AS TEXT) AS line FROM users WHERE email_verified_at IS NOT NULL";
    for unverified in [json!({"email_verified": false}), json!({"email_verified": null})] {
        provider.userinfo(json!({"sub": email}));
        let gone = go(&stranger, "/v1/auth/oauth/oidc?link=1&next=/settings/sessions").await;
        provider.next(Signing::Own, changed(claims(&provider, &gone, &email), &unverified), &gone.challenge);
        let said = is_out(&come_back_as(&stranger, &gone).await);
        assert!(said.contains("not verified"), "{said}");
        assert_eq!(database.count("identities"), 0);
        assert_eq!(database.lines(proven), ["0"]);
    }
    // a sign-in that has ended meanwhile connects nothing either
    let gone = go(&stranger, "/v1/auth/oauth/oidc?link=1&next=/settings/sessions").await;
    provider.next(Signing::Own, claims(&provider, &gone, &email), &gone.challenge);
    database.execute("DELETE FROM sign_ins; DELETE FROM sessions");
    is_out(&come_back_as(&stranger, &gone).await);
    assert_eq!(database.count("identities"), 0);
}

/// Where passwords open nothing, whoever has the address has the account: all of it, and alone.
async fn an_account_that_comes_into_other_hands_leaves_no_way_back(database: Database) {
    let provider = Provider::start().await;
    let mut server = start(&database, &provider, &[]);
    let email = sign_up(&server.client()).await;
    let stranger = sign_in(&server.client(), &email).await;
    let made = stranger.post("/v1/auth/api-keys", &json!({"name": "k"})).await.json(201);
    let key = server.client().with_key(made["key"].as_str().expect("a key"));
    let link = stranger.post("/v1/subjects/s/links", &json!({})).await.json(201);
    let share = format!("/share/{}", link["token"].as_str().expect("a token"));
    // theirs at the provider, under an address of their own
    let path = "/v1/auth/oauth/oidc?link=1&next=/settings/sessions";
    let gone = go(&stranger, path).await;
    provider.next(Signing::Own, claims(&provider, &gone, "evil@example.com"), &gone.challenge);
    assert_eq!(come_back_as(&stranger, &gone).await.header("location"), "/settings/sessions");
    server.terminate();
    let server = start(&database, &provider, &[("OPEN_SPANNER_PASSWORD_SIGN_IN", "false")]);
    let (stranger, key) = (stranger.at(&server.url()), key.at(&server.url()));
    stranger.get(SESSION).await.expect(200);
    key.get("/v1/meters").await.expect(200);
    let owner = is_in(&server, &through(&server, &provider, &email, &json!({})).await);
    let user = owner.get(SESSION).await.json(200)["user"].clone();
    assert_eq!(user["email"], json!(email));
    stranger.get(SESSION).await.error(401, "unauthorized");
    key.get("/v1/meters").await.error(401, "unauthorized");
    server.client().get(&share).await.expect(404);
    let hashes = "SELECT password_hash AS line FROM users";
    assert_eq!(database.lines(hashes), [""]);
    // who comes back by the other account of the provider is somebody else
    let evil = is_in(&server, &through(&server, &provider, "evil@example.com", &json!({})).await);
    assert_ne!(evil.get(SESSION).await.json(200)["user"]["id"], user["id"]);
    let told = owner.get("/v1/audit-events?action=identity.connected").await.json(200)["items"][0].clone();
    assert_eq!(told["after"]["ended"]["api_keys"], json!(1), "{told}");
    // the second time nothing ends
    let made = owner.post("/v1/auth/api-keys", &json!({"name": "k"})).await.json(201);
    let key = server.client().with_key(made["key"].as_str().expect("a key"));
    is_in(&server, &through(&server, &provider, &email, &json!({})).await);
    key.get("/v1/meters").await.expect(200);
    owner.get(SESSION).await.expect(200);
}

/// The page of an invitation is opened by its address alone.
async fn where_somebody_goes_then_is_nobody_elses_to_know(database: Database) {
    let provider = Provider::start().await;
    let server = start(&database, &provider, &[]);
    let client = server.client();
    let next = "/invitations/osp_wsi_a-secret?x=1";
    let gone = go(&client, "/v1/auth/oauth/oidc?next=%2Finvitations%2Fosp_wsi_a-secret%3Fx%3D1").await;
    let kept = database.lines("SELECT next AS line FROM provider_flows").concat();
    assert!(!kept.is_empty() && !kept.contains("invitations") && !kept.contains("secret"), "{kept}");
    // nor is anything else of it: not what makes a code worth a token, nor what the request said of itself
    let rest = "SELECT nonce || ' ' || verifier || ' ' || redirect_url AS line FROM provider_flows";
    let rest = database.lines(rest).concat();
    assert_eq!(rest.matches("sealed:1:").count(), 3, "{rest}");
    assert!(!rest.contains(&gone.nonce) && !rest.contains("callback"), "{rest}");
    provider.next(Signing::Own, claims(&provider, &gone, "ann@example.com"), &gone.challenge);
    assert_eq!(come_back(&client, &gone).await.header("location"), next);
    // nobody fills the database with it
    let long = format!("/v1/auth/oauth/oidc?next=/{}", "x".repeat(2_048));
    let gone = go(&client, &long).await;
    let kept = database.lines("SELECT next AS line FROM provider_flows").concat();
    assert!(kept.len() < 200, "{} bytes", kept.len());
    provider.next(Signing::Own, claims(&provider, &gone, "ann@example.com"), &gone.challenge);
    is_in(&server, &come_back(&client, &gone).await);
    let named = client.with("host", format!("{}.example", "x".repeat(2_048)));
    let said = is_out(&named.get("/v1/auth/oauth/oidc").await.expect(302));
    assert!(said.contains("too long"), "{said}");
}

async fn a_flood_of_starts_locks_nobody_out(database: Database) {
    let provider = Provider::start().await;
    let server = start(&database, &provider, &[]);
    let hash = match database {
        Database::Sqlite { .. } => "CAST(CAST(n AS TEXT) AS BLOB)",
        Database::Postgres { .. } => "convert_to(CAST(n AS TEXT), 'UTF8')",
    };
    // none of them is over, nor as young as the one that comes
    let base = jiff::Timestamp::now().as_microsecond() + 300_000_000;
    database.execute(&format!(
        "INSERT INTO provider_flows (state_hash, provider, nonce, verifier, redirect_url, next, expires_at)
         WITH RECURSIVE all_of (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM all_of WHERE n < 12000)
         SELECT {hash}, 'oidc', '', '', '', '', {base} + n FROM all_of"
    ));
    let gone = go(&server.client(), "/v1/auth/oauth/oidc").await;
    assert_eq!(database.count("provider_flows"), 10_000);
    let oldest = database.lines("SELECT CAST(min(expires_at) AS TEXT) AS line FROM provider_flows");
    assert_eq!(oldest, [(base + 2_002).to_string()], "the oldest are forgotten");
    provider.next(Signing::Own, claims(&provider, &gone, "ann@example.com"), &gone.challenge);
    is_in(&server, &come_back(&server.client(), &gone).await);
}

/// A link to the sign-in page says nothing in our name.
async fn words_of_strangers_are_not_shown(database: Database) {
    let provider = Provider::start().await;
    let server = start(&database, &provider, &[]);
    let words = "call%20%2B1%20555%20and%20tell%20your%20password";
    let answer = server.client().get(&format!("/v1/auth/oauth/{words}/callback?error=x")).await.expect(302);
    let said = is_out(&answer);
    assert!(!said.contains("555") && said.contains("this provider"), "{said}");
    let message = server.client().get(&format!("/v1/auth/oauth/{words}")).await.error(404, "not_found");
    assert!(!message.contains("555"), "{message}");
}

// In a browser ------------------------------------------------------------------------------------

on_both_databases!(people_click_through_two_real_providers);

/// A provider that is a program of its own; ends with the test.
struct Running(std::process::Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn people_click_through_two_real_providers(database: Database) {
    let Some(modules) = env("OPEN_SPANNER_TEST_BROWSER").filter(|modules| modules != "0") else {
        return skip("people_click_through_two_real_providers", "the browser is left out");
    };
    let name = if matches!(database, Database::Sqlite { .. }) { "sqlite" } else { "postgres" };
    let root = env!("CARGO_MANIFEST_DIR");
    for kind in ["mock", "certified"] {
        let port = stable_port().to_string();
        let host = if kind == "mock" { "127.0.0.1" } else { "localhost" };
        let issuer = format!("http://{host}:{port}");
        let settings = [
            ("OPEN_SPANNER_OIDC_ISSUER", issuer.as_str()),
            ("OPEN_SPANNER_OIDC_NAME", "Acme ID"),
            ("OPEN_SPANNER_OIDC_CLIENT_ID", CLIENT_ID),
            ("OPEN_SPANNER_OIDC_CLIENT_SECRET", CLIENT_SECRET),
        ];
        // the provider need not be there when the server starts
        let server = Server::start_with(&database, &settings);
        let redirect = format!("{}/v1/auth/oauth/oidc/callback", server.url());
        let mut command = if kind == "mock" {
            let mut command =
                std::process::Command::new(format!("{modules}/../python/bin/oidc-provider-mock"));
            command.args(["--port", &port, "--require-nonce", "true"]);
            for who in ["ann", "bob"] {
                let address = format!("{who}@example.com");
                let claims = json!({"sub": address, "email": address, "email_verified": true});
                command.args(["--user-claims", &claims.to_string()]);
            }
            command
        } else {
            let mut command = std::process::Command::new("node");
            command.arg(format!("{root}/tests/browser/provider.mjs"));
            command.args([&port, CLIENT_ID, CLIENT_SECRET, &redirect, &modules]);
            command
        };
        let quiet = std::process::Stdio::null;
        let child = command.stdin(quiet()).stdout(quiet()).stderr(quiet()).spawn().expect("a provider");
        let _provider = Running(child);
        let there = Client::new(&issuer);
        let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while there.send(reqwest::Method::GET, "/.well-known/openid-configuration", None).await.is_err() {
            assert!(std::time::Instant::now() < end, "the provider {kind} does not start");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        let mut browser = std::process::Command::new("node");
        browser.arg(format!("{root}/tests/browser/signing_in.mjs"));
        browser.args([&server.url(), kind, &format!("{modules}/pictures-{name}"), &modules]);
        let run = tokio::task::spawn_blocking(move || {
            program::finish(browser, std::time::Duration::from_secs(300))
        });
        run.await.expect("it ends").succeeded();
        drop(server);
        database.execute("DELETE FROM users");
    }
}
