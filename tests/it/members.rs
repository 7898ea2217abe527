//! Workspaces with more than one person: invitations, roles, switching, removal; and what each means for keys and
//! sessions that exist already.

use diesel::connection::SimpleConnection;
use serde_json::{Value, json};

use crate::support::client::{PASSWORD, sign_up};
use crate::support::{Answer, Client, Database, Server, on_both_databases};

on_both_databases!(
    somebody_is_invited_and_joins,
    invitations_that_cannot_be_accepted,
    an_invitation_is_accepted_once_and_by_its_address,
    past_invitations_are_forgotten_after_a_while,
    a_role_is_felt_at_once_by_keys_and_sessions,
    a_removed_member_has_nothing_left,
    keys_of_a_removed_member_can_stay,
    what_a_removed_member_handed_out_ends_too,
    the_last_owner_stays,
    an_owner_who_is_disabled_decides_nothing,
    a_session_moves_between_workspaces,
    roles_decide_who_manages_members,
    two_owners_do_not_both_go,
    registration_can_need_an_invitation,
    an_invitation_is_good_while_its_sender_may_invite,
    an_invitation_that_cannot_be_accepted_opens_no_registration,
);

const MEMBERS: &str = "/v1/auth/workspace/members";
const INVITATIONS: &str = "/v1/auth/workspace/invitations";
const SESSION: &str = "/v1/auth/session";

/// A person with an address and a session.
struct Person {
    email: String,
    session: Client,
}

impl Person {
    async fn new(server: &Server) -> Person {
        let email = sign_up(&server.client()).await;
        let body = json!({"email": email, "password": PASSWORD});
        let answer = server.client().post("/v1/auth/sessions", &body).await.expect(201);
        Person { email, session: with_session(server, &answer) }
    }

    async fn user(&self) -> Value {
        self.session.get(SESSION).await.json(200)["user"].clone()
    }

    async fn id(&self) -> String {
        self.user().await["id"].as_str().expect("an id").to_owned()
    }

    async fn invite(&self, email: &str, role: &str) -> Answer {
        self.session.post(INVITATIONS, &json!({"email": email, "role": role})).await
    }

    async fn accept(&self, token: &str) -> Answer {
        self.session.post_text(&format!("/v1/auth/workspace-invitations/{token}/accept"), "").await
    }

    async fn key(&self) -> Client {
        let made = self.session.post("/v1/auth/api-keys", &json!({"name": "k", "scopes": ["*"]})).await;
        let made = made.json(201);
        self.session.without("cookie").with_key(made["key"].as_str().expect("a secret"))
    }
}

/// A client with both cookies of an answer.
fn with_session(server: &Server, answer: &Answer) -> Client {
    let cookie = |name: &str| format!("{name}={}", answer.cookie(name).expect("a cookie"));
    let jar = format!("{}; {}", cookie("open_spanner_access"), cookie("open_spanner_refresh"));
    server.client().with("cookie", jar)
}

/// Somebody who joined the host's workspace, with a session in it.
async fn joined(server: &Server, host: &Person, role: &str) -> Person {
    let guest = Person::new(server).await;
    let invitation = host.invite(&guest.email, role).await.json(201);
    let answer = guest.accept(invitation["token"].as_str().expect("a token")).await.expect(200);
    Person { session: with_session(server, &answer), email: guest.email }
}

async fn somebody_is_invited_and_joins(database: Database) {
    let server = Server::start(&database);
    let (host, guest) = (Person::new(&server).await, Person::new(&server).await);
    let made = host.invite(&format!("  {} ", guest.email.to_uppercase()), " Viewer ").await.json(201);
    let token = made["token"].as_str().expect("a token").to_owned();
    assert!(token.starts_with("osp_wsi_") && token.len() == 51, "{token}");
    assert_eq!(
        (&made["email"], &made["role"], &made["status"]),
        (&json!(guest.email), &json!("viewer"), &json!("pending"))
    );
    let listed = host.session.get(INVITATIONS).await.expect(200).text;
    assert!(listed.contains(made["id"].as_str().expect("an id")) && !listed.contains(&token));

    let preview = server.client().get(&format!("/v1/auth/workspace-invitations/{token}")).await.json(200);
    assert_eq!(preview["workspace_name"], host.user().await["workspace_name"]);
    assert!(preview.get("token").is_none());

    let answer = guest.accept(&token).await.expect(200);
    let moved = with_session(&server, &answer);
    let user = moved.get(SESSION).await.json(200)["user"].clone();
    assert_eq!(user["workspace_id"], host.user().await["workspace_id"]);
    assert_eq!(user["role"], json!("viewer"));
    assert_eq!(answer.json(200)["user"], user);
    // the session that accepted has ended
    guest.session.get(SESSION).await.error(401, "unauthorized");

    let members = host.session.get(MEMBERS).await.json(200);
    let emails: Vec<&Value> =
        members["items"].as_array().expect("a list").iter().map(|m| &m["email"]).collect();
    assert_eq!(emails, [&json!(host.email), &json!(guest.email)]);
    let places = moved.get("/v1/auth/workspaces").await.json(200);
    assert_eq!(places["items"].as_array().expect("a list").len(), 2);
    let preview = server.client().get(&format!("/v1/auth/workspace-invitations/{token}")).await.json(200);
    assert_eq!(preview["status"], json!("accepted"));
}

/// Whatever became of them.
async fn past_invitations_are_forgotten_after_a_while(database: Database) {
    let settings = [
        ("OPEN_SPANNER_OPERATIONAL_HISTORY_RETENTION", "1h"),
        ("OPEN_SPANNER_OPERATIONAL_HISTORY_INTERVAL", "100ms"),
        ("OPEN_SPANNER_OPERATIONAL_HISTORY_BATCH_SIZE", "2"),
    ];
    let server = Server::start_with(&database, &settings);
    let host = Person::new(&server).await;
    for name in ["open", "lately", "past", "revoked", "accepted"] {
        host.invite(&format!("{name}@example.com"), "viewer").await.expect(201);
    }
    let lately = open_spanner::metering::time::Timestamp::now().0 - 60_000_000;
    for (name, change) in [
        ("lately", format!("expires_at = {lately}")),
        ("past", "expires_at = 1".to_owned()),
        ("revoked", "expires_at = 1, revoked_at = 1".to_owned()),
        ("accepted", "expires_at = 1, accepted_at = 1".to_owned()),
    ] {
        database.execute(&format!("UPDATE invitations SET {change} WHERE email = '{name}@example.com'"));
    }
    let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while database.count("invitations") > 2 {
        assert!(std::time::Instant::now() < end, "{} left", database.count("invitations"));
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    let left = database.lines("SELECT email AS line FROM invitations ORDER BY email");
    assert_eq!(left, ["lately@example.com", "open@example.com"]);
}

async fn invitations_that_cannot_be_accepted(database: Database) {
    let server = Server::start(&database);
    let (host, guest, other) =
        (Person::new(&server).await, Person::new(&server).await, Person::new(&server).await);
    for (email, role) in
        [("", "admin"), ("nobody", "admin"), (guest.email.as_str(), "owner"), (guest.email.as_str(), "")]
    {
        host.invite(email, role).await.error(400, "invalid_input");
    }
    host.invite(&host.email, "admin").await.error(409, "conflict");
    let made = host.invite(&guest.email, "admin").await.json(201);
    let token = made["token"].as_str().expect("a token");
    host.invite(&guest.email, "viewer").await.error(409, "conflict");
    other.accept(token).await.error(403, "forbidden");
    server
        .client()
        .post_text(&format!("/v1/auth/workspace-invitations/{token}/accept"), "")
        .await
        .error(401, "unauthorized");
    for unknown in ["osp_wsi_x", "x", "osp_at_x"] {
        guest.accept(unknown).await.error(404, "not_found");
        server
            .client()
            .get(&format!("/v1/auth/workspace-invitations/{unknown}"))
            .await
            .error(404, "not_found");
    }
    let path = format!("{INVITATIONS}/{}", made["id"].as_str().expect("an id"));
    other.session.delete(&path).await.error(404, "not_found");
    host.session.delete(&path).await.expect(204);
    host.session.delete(&path).await.error(404, "not_found");
    guest.accept(token).await.error(409, "conflict");

    // one that expired makes room for another
    let made = host.invite(&guest.email, "admin").await.json(201);
    database.execute("UPDATE invitations SET expires_at = 1");
    guest.accept(made["token"].as_str().expect("a token")).await.error(409, "conflict");
    let listed = host.session.get(INVITATIONS).await.json(200);
    assert_eq!(listed["items"][0]["status"], json!("expired"));
    let made = host.invite(&guest.email, "admin").await.json(201);
    let token = made["token"].as_str().expect("a token");
    guest.accept(token).await.expect(200);
    host.invite(&guest.email, "admin").await.error(409, "conflict");
}

async fn an_invitation_is_accepted_once_and_by_its_address(database: Database) {
    let server = Server::start(&database);
    let (host, guest) = (Person::new(&server).await, Person::new(&server).await);
    // what looks like the address is not it
    let (name, domain) = guest.email.split_once('@').expect("an address");
    for other in
        [format!("{name}+x@{domain}"), format!("{name}@mail.{domain}"), format!("{name}\u{301}@{domain}")]
    {
        let made = host.invite(&other, "admin").await.json(201);
        guest.accept(made["token"].as_str().expect("a token")).await.error(403, "forbidden");
    }
    // nor may it hold a letter that lower case makes one of ASCII of
    host.invite("\u{212a}ate@example.com", "admin").await.error(400, "invalid_input");
    // twice at once, in two browsers of the same person
    let body = json!({"email": guest.email, "password": PASSWORD});
    let answer = server.client().post("/v1/auth/sessions", &body).await.expect(201);
    let again = Person { session: with_session(&server, &answer), email: guest.email.clone() };
    let made = host.invite(&guest.email, "viewer").await.json(201);
    let token = made["token"].as_str().expect("a token");
    let (one, two) = tokio::join!(guest.accept(token), again.accept(token));
    let mut statuses = [one.status, two.status];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 409]);
    let members = host.session.get(MEMBERS).await.json(200);
    assert_eq!(members["items"].as_array().expect("a list").len(), 2);
    // whoever was refused is still signed in where they were
    let refused = if one.status == 409 { &guest } else { &again };
    refused.session.get(SESSION).await.expect(200);
}

async fn a_role_is_felt_at_once_by_keys_and_sessions(database: Database) {
    let server = Server::start_with(&database, &[("OPEN_SPANNER_CACHE_TTL", "5s")]);
    let host = Person::new(&server).await;
    let guest = joined(&server, &host, "admin").await;
    let key = guest.key().await;
    let meter = |name: &str| json!({"name": name, "unit": "u"});
    key.post("/v1/meters", &meter("a")).await.expect(201);
    guest.session.post("/v1/meters", &meter("b")).await.expect(201);
    let path = format!("{MEMBERS}/{}", guest.id().await);
    host.session.patch(&path, &json!({"role": "viewer"})).await.expect(204);
    key.post("/v1/meters", &meter("c")).await.error(403, "forbidden");
    guest.session.post("/v1/meters", &meter("c")).await.error(403, "forbidden");
    key.get("/v1/meters").await.expect(200);
    host.session.patch(&path, &json!({"role": " ADMIN "})).await.expect(204);
    key.post("/v1/meters", &meter("c")).await.expect(201);
    for bad in [json!({"role": "god"}), json!({})] {
        host.session.patch(&path, &bad).await.error(400, "invalid_input");
    }
    let stranger = Person::new(&server).await;
    for nobody in [stranger.id().await, "nosuch".to_owned()] {
        host.session
            .patch(&format!("{MEMBERS}/{nobody}"), &json!({"role": "viewer"}))
            .await
            .error(404, "not_found");
    }
}

async fn a_removed_member_has_nothing_left(database: Database) {
    let server = Server::start_with(&database, &[("OPEN_SPANNER_CACHE_TTL", "5s")]);
    let host = Person::new(&server).await;
    let guest = joined(&server, &host, "admin").await;
    let key = guest.key().await;
    key.get("/v1/meters").await.expect(200);
    let path = format!("{MEMBERS}/{}", guest.id().await);
    host.session.delete(&format!("{path}?keys=keep")).await.error(400, "invalid_input");
    host.session.delete(&path).await.expect(204);
    key.get("/v1/meters").await.error(401, "unauthorized");
    guest.session.get(SESSION).await.error(401, "unauthorized");
    guest.session.post_text("/v1/auth/session/refresh", "").await.error(401, "unauthorized");
    host.session.delete(&path).await.error(404, "not_found");
    // who is invited back does not find old keys alive
    let invitation = host.invite(&guest.email, "admin").await.json(201);
    let body = json!({"email": guest.email, "password": PASSWORD});
    let answer = server.client().post("/v1/auth/sessions", &body).await.expect(201);
    let back = Person { session: with_session(&server, &answer), email: guest.email };
    assert_eq!(back.user().await["role"], json!("owner"), "home is the own workspace");
    back.accept(invitation["token"].as_str().expect("a token")).await.expect(200);
    key.get("/v1/meters").await.error(401, "unauthorized");
}

async fn keys_of_a_removed_member_can_stay(database: Database) {
    let server = Server::start_with(&database, &[("OPEN_SPANNER_CACHE_TTL", "5s")]);
    let host = Person::new(&server).await;
    let guest = joined(&server, &host, "admin").await;
    let key = guest.key().await;
    key.get("/v1/meters").await.expect(200);
    host.session.delete(&format!("{MEMBERS}/{}?keys=transfer", guest.id().await)).await.expect(204);
    key.get("/v1/meters").await.expect(200);
    guest.session.get(SESSION).await.error(401, "unauthorized");
    let keys = host.session.get("/v1/auth/api-keys").await.json(200);
    assert_eq!(keys["items"].as_array().expect("a list").len(), 1, "it is the owner's now");
}

async fn what_a_removed_member_handed_out_ends_too(database: Database) {
    let server = Server::start_with(&database, &[("OPEN_SPANNER_CACHE_TTL", "5s")]);
    let host = Person::new(&server).await;
    for (keys, status) in [("", 404), ("?keys=transfer", 200)] {
        let guest = joined(&server, &host, "admin").await;
        let friend = Person::new(&server).await;
        let invitation = guest.invite(&friend.email, "admin").await.json(201);
        let link = guest.session.post("/v1/subjects/org_1/links", &json!({})).await.json(201);
        let share = format!("/share/{}", link["token"].as_str().expect("a token"));
        server.client().get(&share).await.expect(200);
        host.session.delete(&format!("{MEMBERS}/{}{keys}", guest.id().await)).await.expect(204);
        let answer = friend.accept(invitation["token"].as_str().expect("a token")).await;
        assert!(answer.status >= 400, "an invitation of somebody who is gone: {}", answer.text);
        assert_eq!(server.client().get(&share).await.status, status, "{keys}");
    }
    // who may invite nobody any more has invited nobody
    let guest = joined(&server, &host, "admin").await;
    let friend = Person::new(&server).await;
    let invitation = guest.invite(&friend.email, "admin").await.json(201);
    let path = format!("{MEMBERS}/{}", guest.id().await);
    host.session.patch(&path, &json!({"role": "viewer"})).await.expect(204);
    let answer = friend.accept(invitation["token"].as_str().expect("a token")).await;
    assert!(answer.status >= 400, "{}", answer.text);
}

async fn the_last_owner_stays(database: Database) {
    let server = Server::start(&database);
    let host = Person::new(&server).await;
    let guest = joined(&server, &host, "viewer").await;
    let (host_id, guest_id) = (host.id().await, guest.id().await);
    let own = format!("{MEMBERS}/{host_id}");
    host.session.delete(&own).await.error(409, "conflict");
    host.session.patch(&own, &json!({"role": "admin"})).await.error(409, "conflict");
    host.session.patch(&own, &json!({"role": "owner"})).await.expect(204);
    host.session.post_text("/v1/auth/workspace/leave", "").await.error(409, "conflict");
    let hand_over =
        async |to: &str| host.session.post("/v1/auth/workspace/owner", &json!({"user_id": to})).await;
    hand_over(&host_id).await.error(400, "invalid_input");
    hand_over("nosuch").await.error(404, "not_found");
    hand_over(&guest_id).await.expect(204);
    assert_eq!(host.user().await["role"], json!("admin"));
    assert_eq!(guest.user().await["role"], json!("owner"));
    guest.session.post_text("/v1/auth/workspace/leave", "").await.error(409, "conflict");
    let left = host.session.post_text("/v1/auth/workspace/leave", "").await.expect(204);
    assert!(left.headers.get_all("set-cookie").iter().count() >= 2);
    host.session.get(SESSION).await.error(401, "unauthorized");
    let members = guest.session.get(MEMBERS).await.json(200);
    assert_eq!(members["items"].as_array().expect("a list").len(), 1);
}

/// Whom an operator has disabled cannot be the one who is left, and can be removed.
async fn an_owner_who_is_disabled_decides_nothing(database: Database) {
    let server = Server::start(&database);
    let host = Person::new(&server).await;
    let second = joined(&server, &host, "admin").await;
    let (own, other) = (format!("{MEMBERS}/{}", host.id().await), format!("{MEMBERS}/{}", second.id().await));
    host.session.patch(&other, &json!({"role": "owner"})).await.expect(204);
    let id = second.id().await;
    database.execute(&format!("UPDATE users SET disabled_at = 1 WHERE email = '{}'", second.email));
    host.session.post_text("/v1/auth/workspace/leave", "").await.error(409, "conflict");
    host.session.delete(&own).await.error(409, "conflict");
    host.session.patch(&own, &json!({"role": "viewer"})).await.error(409, "conflict");
    host.session.post("/v1/auth/workspace/owner", &json!({"user_id": id})).await.error(409, "conflict");
    assert_eq!(host.user().await["role"], json!("owner"));
    host.session.delete(&other).await.expect(204);
}

async fn a_session_moves_between_workspaces(database: Database) {
    let server = Server::start(&database);
    let host = Person::new(&server).await;
    let guest = joined(&server, &host, "viewer").await;
    host.session.post("/v1/meters", &json!({"name": "hosts", "unit": "u"})).await.expect(201);
    let places = guest.session.get("/v1/auth/workspaces").await.json(200);
    let own = places["items"].as_array().expect("a list").iter().find(|place| place["role"] == "owner");
    let own = own.expect("an own workspace")["id"].clone();
    let switch = async |client: &Client, body: Value| client.post("/v1/auth/session/workspace", &body).await;
    for bad in [json!({}), json!({"workspace_id": "  "})] {
        switch(&guest.session, bad).await.error(400, "invalid_input");
    }
    let stranger = Person::new(&server).await.user().await["workspace_id"].clone();
    for foreign in [stranger, json!("nosuch")] {
        switch(&guest.session, json!({"workspace_id": foreign})).await.error(403, "forbidden");
    }
    let answer = switch(&guest.session, json!({"workspace_id": own})).await.expect(200);
    let moved = with_session(&server, &answer);
    assert_eq!(moved.get(SESSION).await.json(200)["user"]["workspace_id"], own);
    assert_eq!(moved.get("/v1/meters").await.json(200)["items"], json!([]));
    guest.session.get(SESSION).await.error(401, "unauthorized");
    guest.session.post_text("/v1/auth/session/refresh", "").await.error(401, "unauthorized");
}

async fn roles_decide_who_manages_members(database: Database) {
    let server = Server::start(&database);
    let host = Person::new(&server).await;
    let admin = joined(&server, &host, "admin").await;
    let viewer = joined(&server, &host, "viewer").await;
    let path = format!("{MEMBERS}/{}", viewer.id().await);
    for reads in [MEMBERS, INVITATIONS] {
        viewer.session.get(reads).await.error(403, "forbidden");
        admin.session.get(reads).await.expect(200);
    }
    viewer.invite("x@example.com", "viewer").await.error(403, "forbidden");
    admin.invite("x@example.com", "viewer").await.expect(201);
    for person in [&viewer, &admin] {
        person.session.patch(&path, &json!({"role": "admin"})).await.error(403, "forbidden");
        person.session.delete(&path).await.error(403, "forbidden");
        person.session.patch("/v1/auth/workspace", &json!({"name": "x"})).await.error(403, "forbidden");
    }
    host.session.patch("/v1/auth/workspace", &json!({"name": " "})).await.error(400, "invalid_input");
    host.session.patch("/v1/auth/workspace", &json!({"name": " Acme "})).await.expect(204);
    assert_eq!(viewer.user().await["workspace_name"], json!("Acme"));
    let key = admin.key().await;
    for path in [MEMBERS, INVITATIONS, "/v1/auth/workspaces"] {
        key.get(path).await.error(401, "unauthorized");
    }
}

/// Each removes the other: one must stay.
async fn two_owners_do_not_both_go(database: Database) {
    let server = Server::start(&database);
    let host = Person::new(&server).await;
    let second = joined(&server, &host, "admin").await;
    let (host_id, second_id) = (host.id().await, second.id().await);
    let second_path = format!("{MEMBERS}/{second_id}");
    host.session.patch(&second_path, &json!({"role": "owner"})).await.expect(204);
    let host_path = format!("{MEMBERS}/{host_id}");
    let demote = json!({"role": "viewer"});
    // both are on their way before either is done, where rows can be held
    let held = match &database {
        Database::Sqlite { .. } => None,
        Database::Postgres { .. } => {
            let mut rows = database.postgres_connection();
            rows.batch_execute("BEGIN; UPDATE memberships SET role = role").expect("the rows are free");
            Some(rows)
        }
    };
    let release = async {
        tokio::time::sleep(std::time::Duration::from_millis(700)).await;
        drop(held);
    };
    let (one, two, ()) = tokio::join!(
        host.session.patch(&second_path, &demote),
        second.session.patch(&host_path, &demote),
        release
    );
    let statuses = [one.status, two.status];
    assert!(statuses.contains(&204) && statuses.contains(&403), "{statuses:?}");
    let owners = database.lines("SELECT CAST(count(*) AS TEXT) AS line FROM memberships m JOIN workspaces w ON w.id = m.workspace_id WHERE m.role = 'owner' AND w.id IN (SELECT workspace_id FROM memberships GROUP BY workspace_id HAVING count(*) = 2)");
    assert_eq!(owners, ["1"]);
}

async fn registration_can_need_an_invitation(database: Database) {
    let mut server = Server::start(&database);
    let host = Person::new(&server).await;
    let made = host.invite("new@example.com", "viewer").await.json(201);
    let token = made["token"].as_str().expect("a token").to_owned();
    server.terminate();
    let server = Server::start_with(&database, &[("OPEN_SPANNER_REGISTRATION", "invite")]);
    let register = async |email: &str, token: &str| {
        let body = json!({"email": email, "password": PASSWORD, "invitation_token": token});
        server.client().post("/v1/auth/users", &body).await
    };
    register("new@example.com", "").await.error(403, "registration_disabled");
    register("new@example.com", "osp_wsi_x").await.error(403, "registration_disabled");
    register("other@example.com", &token).await.error(403, "registration_disabled");
    let page = server.client().get("/register").await.expect(200).text;
    assert!(page.contains("New accounts are closed"), "{page}");
    let page =
        server.client().get(&format!("/register?next=%2Finvitations%2F{token}")).await.expect(200).text;
    assert!(page.contains("Create account") && !page.contains("New accounts are closed"), "{page}");
    // the form knows whom the invitation is for, and so does the other one
    assert!(page.contains("value=\"new@example.com\""), "{page}");
    assert!(
        page.contains(&format!(
            "/login?next=%2Finvitations%2F{}",
            token.replace('_', "%5F").replace('-', "%2D")
        )),
        "{page}"
    );
    let page = server.client().get(&format!("/login?next=%2Finvitations%2F{token}")).await.expect(200).text;
    assert!(page.contains("value=\"new@example.com\""), "{page}");
    register(" New@example.com", &token).await.expect(201);
    let body = json!({"email": "new@example.com", "password": PASSWORD});
    let answer = server.client().post("/v1/auth/sessions", &body).await.expect(201);
    let person = Person { session: with_session(&server, &answer), email: "new@example.com".into() };
    person.accept(&token).await.expect(200);
    // once it is used, it opens nothing more
    register("new@example.com", &token).await.error(403, "registration_disabled");
    let providers = server.client().get("/v1/auth/providers").await.json(200);
    assert_eq!(providers["registration_enabled"], json!(false));
}

/// However it came about that they may not.
async fn an_invitation_is_good_while_its_sender_may_invite(database: Database) {
    let server = Server::start(&database);
    let host = Person::new(&server).await;
    let (guest, friend) = (joined(&server, &host, "admin").await, Person::new(&server).await);
    let invitation = guest.invite(&friend.email, "admin").await.json(201);
    let token = invitation["token"].as_str().expect("a token");
    let user = |email: &str| format!("(SELECT id FROM users WHERE email = '{email}')");
    let role = |word: &str| {
        let of = user(&guest.email);
        database.execute(&format!(
            "UPDATE memberships SET role = '{word}' WHERE user_id = {of} AND workspace_id <>
                 (SELECT workspace_id FROM memberships WHERE user_id = {of} ORDER BY created_at LIMIT 1)"
        ));
    };
    role("viewer");
    friend.accept(token).await.error(409, "conflict");
    role("admin");
    database.execute(&format!("UPDATE users SET disabled_at = 1 WHERE email = '{}'", guest.email));
    friend.accept(token).await.error(409, "conflict");
    database.execute("UPDATE users SET disabled_at = NULL");
    friend.session.get(SESSION).await.expect(200);
    friend.accept(token).await.expect(200);
}

/// Nobody registers with what they could not accept afterwards.
async fn an_invitation_that_cannot_be_accepted_opens_no_registration(database: Database) {
    let mut server = Server::start(&database);
    let host = Person::new(&server).await;
    let guest = joined(&server, &host, "admin").await;
    let made = guest.invite("new@example.com", "viewer").await.json(201);
    let token = made["token"].as_str().expect("a token").to_owned();
    server.terminate();
    let server = Server::start_with(&database, &[("OPEN_SPANNER_REGISTRATION", "invite")]);
    let register = async || {
        let body = json!({"email": "new@example.com", "password": PASSWORD, "invitation_token": token});
        server.client().post("/v1/auth/users", &body).await
    };
    let inviter = format!("(SELECT id FROM users WHERE email = '{}')", guest.email);
    let own = format!("workspace_id = (SELECT workspace_id FROM invitations WHERE invited_by = {inviter})");
    let set = |what: &str, who: &str| {
        database.execute(&format!("UPDATE memberships SET {what} WHERE user_id = {who}{inviter} AND {own}"));
    };
    set("role = 'viewer'", "");
    register().await.error(403, "registration_disabled");
    set("role = 'admin'", "");
    database.execute(&format!("UPDATE users SET disabled_at = 1 WHERE email = '{}'", guest.email));
    register().await.error(403, "registration_disabled");
    database.execute("UPDATE users SET disabled_at = NULL");
    // gone, however it came about that the invitation was left
    set("user_id = -user_id", "");
    register().await.error(403, "registration_disabled");
    assert_eq!(database.count("users"), 2);
    set("user_id = -user_id", "-");
    register().await.expect(201);
}
