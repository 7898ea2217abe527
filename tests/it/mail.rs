//! What the server mails: links that set a password, and invitations. A real mail server takes them, on loopback.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::client::{PASSWORD, sign_in, sign_up};
use crate::support::mailbox::Mailbox;
use crate::support::{Client, Database, Server, on_both_databases, unique};

on_both_databases!(
    a_password_is_set_with_a_link_out_of_a_mail,
    nobody_learns_who_has_an_account,
    a_mail_is_tried_again,
    a_mailed_link_leaves_a_stranger_no_way_in,
    a_mail_that_anybody_asks_for_ends_no_link_of_an_operator,
    invitations_are_mailed,
    nobody_sends_mails_to_the_world,
    without_a_mail_server_nothing_is_promised,
    secrets_in_files_are_read_again_at_a_hangup,
);

const RESETS: &str = "/v1/auth/password-resets";
const PUBLIC: &str = "https://usage.example.com";

fn start(database: &Database, mailbox: &Mailbox) -> Server {
    let settings = [
        ("OPEN_SPANNER_SMTP_URL", mailbox.url()),
        ("OPEN_SPANNER_MAIL_FROM", "Usage <usage@example.com>".to_owned()),
        ("OPEN_SPANNER_PUBLIC_URL", format!("{PUBLIC}/")),
    ];
    let settings: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    Server::start_with(database, &settings)
}

async fn a_password_is_set_with_a_link_out_of_a_mail(database: Database) {
    let mailbox = Mailbox::start().await;
    let server = start(&database, &mailbox);
    let email = sign_up(&server.client()).await;
    let ann = sign_in(&server.client(), &email).await;
    // where the request says it came to is not where the link leads
    let lied = server.client().with("x-forwarded-host", "evil.example");
    lied.post(RESETS, &json!({"email": email.to_uppercase()})).await.expect(202);
    let letter = mailbox.wait(1).await;
    assert_eq!((letter.from.as_str(), &letter.to), ("usage@example.com", &email));
    let link = letter.link("/reset/");
    let token = link.strip_prefix(&format!("{PUBLIC}/reset/")).expect("our own address").to_owned();
    // an older link ends with a newer one
    server.client().post(RESETS, &json!({"email": email})).await.expect(202);
    let newer = mailbox.wait(2).await.link("/reset/");
    let newer = newer.rsplit('/').next().expect("a token").to_owned();
    let set = async |token: &str| {
        server.client().post(&format!("{RESETS}/{token}"), &json!({"password": "another password"})).await
    };
    set(&token).await.error(404, "not_found");
    server.client().get(&format!("/reset/{newer}")).await.expect(200);
    set(&newer).await.expect(204);
    set(&newer).await.error(404, "not_found");
    ann.get("/v1/auth/session").await.error(401, "unauthorized");
    let old = json!({"email": email, "password": PASSWORD});
    server.client().post("/v1/auth/sessions", &old).await.error(401, "unauthorized");
    let new = json!({"email": email, "password": "another password"});
    server.client().post("/v1/auth/sessions", &new).await.expect(201);
    let asked = "SELECT target_name AS line FROM audit_events WHERE action = 'user.password_reset_requested'";
    assert_eq!(database.lines(asked), [email.as_str(), email.as_str()]);
    // whoever reads the mail owns the address
    assert_eq!(
        database
            .lines("SELECT CAST(count(*) AS TEXT) AS line FROM users WHERE email_verified_at IS NOT NULL"),
        ["1"]
    );
}

async fn nobody_learns_who_has_an_account(database: Database) {
    let mailbox = Mailbox::start().await;
    let server = start(&database, &mailbox);
    let email = sign_up(&server.client()).await;
    let ask = async |email: &str| {
        let began = Instant::now();
        let answer = server.client().post(RESETS, &json!({"email": email})).await.expect(202);
        (answer.text, began.elapsed())
    };
    let known = ask(&email).await;
    let unknown = ask(&format!("{}@example.com", unique("nobody"))).await;
    assert_eq!(known.0, unknown.0);
    mailbox.wait(1).await;
    server.client().post(RESETS, &json!({"email": "no address"})).await.error(400, "invalid_input");
    // an account is mailed three times an hour, whatever is asked, and told nothing else
    for _ in 0..6 {
        assert_eq!(ask(&email).await.0, known.0);
    }
    mailbox.wait(3).await;
    // and an address that asks for everybody is slowed
    let mut slowed = None;
    for at in 0..60 {
        let answer = server.client().post(RESETS, &json!({"email": format!("{at}@example.com")})).await;
        if answer.status == 429 {
            slowed = Some(answer.header("retry-after"));
            break;
        }
    }
    let seconds: u64 = slowed.expect("somebody asks for ever").parse().expect("seconds");
    assert!((1..=3600).contains(&seconds), "{seconds}");
    assert_eq!(mailbox.letters().len(), 3);
    assert_eq!(mailbox.letters().iter().filter(|letter| letter.to == email).count(), 3);
}

async fn a_mail_is_tried_again(database: Database) {
    let mailbox = Mailbox::start().await;
    mailbox.refuse(1);
    let server = start(&database, &mailbox);
    let email = sign_up(&server.client()).await;
    server.client().post(RESETS, &json!({"email": email})).await.expect(202);
    mailbox.wait(1).await;
    assert!(server.log().iter().any(|line| line.contains("it is tried again")), "{:#?}", server.log());
}

/// Somebody registered with the address of somebody else, and provided for later.
async fn a_mailed_link_leaves_a_stranger_no_way_in(database: Database) {
    let mailbox = Mailbox::start().await;
    let server = start(&database, &mailbox);
    let email = sign_up(&server.client()).await;
    let stranger = sign_in(&server.client(), &email).await;
    let made = stranger.post("/v1/auth/api-keys", &json!({"name": "k"})).await.json(201);
    let key = server.client().with_key(made["key"].as_str().expect("a key"));
    key.get("/v1/meters").await.expect(200);
    let link = stranger.post("/v1/subjects/s/links", &json!({})).await.json(201);
    let share = format!("/share/{}", link["token"].as_str().expect("a token"));
    let body = json!({"email": "friend@example.com", "role": "admin"});
    let made = stranger.post("/v1/auth/workspace/invitations", &body).await.json(201);
    let invitation = format!("/v1/auth/workspace-invitations/{}", made["token"].as_str().expect("a token"));
    mailbox.wait(1).await;
    let identity =
        "INSERT INTO identities (id, public_id, user_id, provider, issuer, subject, email, created_at)
                    SELECT 1, 'connected', id, 'oidc', 'i', 's', 'evil@example.com', 1 FROM users";
    let hash = if matches!(database, Database::Sqlite { .. }) { "x'00'" } else { "'\\x00'" };
    let device = format!(
        "INSERT INTO known_devices (token_hash, user_id, seen_at) SELECT {hash}, id, 9000000000000000 FROM users"
    );
    database.execute(&format!("{identity}; {device}"));

    let reset = async |letters: usize, password: &str| {
        server.client().post(RESETS, &json!({"email": email})).await.expect(202);
        let letter = mailbox.wait(letters).await;
        let link = letter.link("/reset/");
        let token = link.rsplit('/').next().expect("a token");
        server.client().post(&format!("{RESETS}/{token}"), &json!({"password": password})).await.expect(204);
        letter.text
    };
    let text = reset(2, "the owner's password").await;
    assert!(text.contains("API keys"), "the letter says what ends: {text}");
    stranger.get("/v1/auth/session").await.error(401, "unauthorized");
    key.get("/v1/meters").await.error(401, "unauthorized");
    server.client().get(&share).await.expect(404);
    assert_eq!(server.client().get(&invitation).await.json(200)["status"], json!("revoked"));
    assert_eq!(database.count("identities") + database.count("known_devices"), 0);
    let told = "SELECT state_after AS line FROM audit_events WHERE action = 'user.password_reset'";
    assert!(database.lines(told).concat().contains("\"api_keys\":1"), "{:?}", database.lines(told));

    // whose address it is, is known from then on: what the owner made stays
    let body = json!({"email": email, "password": "the owner's password"});
    let owner = server.client().post("/v1/auth/sessions", &body).await.expect(201);
    let access = owner.cookie("open_spanner_access").expect("a cookie");
    let owner = server.client().with("cookie", format!("open_spanner_access={access}"));
    let made = owner.post("/v1/auth/api-keys", &json!({"name": "k"})).await.json(201);
    let key = server.client().with_key(made["key"].as_str().expect("a key"));
    let text = reset(3, "another password").await;
    assert!(!text.contains("API keys"), "{text}");
    key.get("/v1/meters").await.expect(200);
    owner.get("/v1/auth/session").await.error(401, "unauthorized");
}

async fn a_mail_that_anybody_asks_for_ends_no_link_of_an_operator(database: Database) {
    let mailbox = Mailbox::start().await;
    let server = start(&database, &mailbox);
    let email = sign_up(&server.client()).await;
    let token = crate::account::token_for(&database, &email);
    server.client().post(RESETS, &json!({"email": email})).await.expect(202);
    mailbox.wait(1).await;
    assert_eq!(database.count("password_resets"), 2);
    let body = json!({"password": "another password"});
    server.client().post(&format!("{RESETS}/{token}"), &body).await.expect(204);
}

async fn nobody_sends_mails_to_the_world(database: Database) {
    let mailbox = Mailbox::start().await;
    let server = start(&database, &mailbox);
    let ask = async |host: &Client, email: &str| {
        host.post("/v1/auth/workspace/invitations", &json!({"email": email, "role": "viewer"})).await
    };
    // one address is mailed three times a day by one workspace, also when each is taken back
    let mut hosts = Vec::new();
    for _ in 0..2 {
        let host = sign_up(&server.client()).await;
        hosts.push(sign_in(&server.client(), &host).await);
    }
    for (at, host) in [&hosts[0], &hosts[0], &hosts[0]].into_iter().enumerate() {
        let made = ask(host, "ann@example.com").await.json(201);
        if at < 2 {
            // what was refused counts for nothing
            ask(host, "ann@example.com").await.error(409, "conflict");
        }
        let path = format!("/v1/auth/workspace/invitations/{}", made["id"].as_str().expect("an id"));
        host.delete(&path).await.expect(204);
    }
    let refused = ask(&hosts[0], "ann@example.com").await;
    let seconds: u64 = refused.header("retry-after").parse().expect("seconds");
    assert!((1..=86_400).contains(&seconds), "{seconds}");
    refused.error(429, "rate_limited");
    // which takes nothing from another one
    ask(&hosts[1], "ann@example.com").await.expect(201);
    // one workspace mails fifty an hour
    for at in 0..47 {
        ask(&hosts[0], &format!("{at}@example.com")).await.expect(201);
    }
    let refused = ask(&hosts[0], "bob@example.com").await;
    let seconds: u64 = refused.header("retry-after").parse().expect("seconds");
    assert!((1..=3_600).contains(&seconds), "{seconds}");
    refused.error(429, "rate_limited");
    ask(&hosts[1], "bob@example.com").await.expect(201);
    assert_eq!(database.count("invitations"), 52);
    mailbox.wait(52).await;
}

async fn invitations_are_mailed(database: Database) {
    let mailbox = Mailbox::start().await;
    let server = start(&database, &mailbox);
    let owner = sign_up(&server.client()).await;
    let owner = sign_in(&server.client(), &owner).await;
    let name = "Ü\"<b>, Bcc: x";
    owner.patch("/v1/auth/workspace", &json!({"name": name})).await.expect(204);
    let guest = sign_up(&server.client()).await;
    let asked = json!({"email": guest, "role": "viewer"});
    let made = owner.post("/v1/auth/workspace/invitations", &asked).await.json(201);
    let letter = mailbox.wait(1).await;
    assert_eq!(letter.to, guest);
    assert!(!letter.text.lines().any(|line| line.starts_with("Bcc")), "{}", letter.text);
    let token = made["token"].as_str().expect("a token");
    assert_eq!(letter.link("/invitations/"), format!("{PUBLIC}/invitations/{token}"));
    let guest = sign_in(&server.client(), &guest).await;
    guest.post_text(&format!("/v1/auth/workspace-invitations/{token}/accept"), "").await.expect(200);
}

async fn without_a_mail_server_nothing_is_promised(database: Database) {
    let server = Server::start(&database);
    server.client().post(RESETS, &json!({"email": "ann@example.com"})).await.error(403, "forbidden");
    let page = server.client().get("/login").await.expect(200).text;
    assert!(!page.contains("/forgot"), "{page}");
}

/// Another mail server or password, and keys that seal, without a restart; what cannot change is named. No secret is told.
async fn secrets_in_files_are_read_again_at_a_hangup(database: Database) {
    const KEY: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    const NEW: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
    let (first, second) = (Mailbox::start().await, Mailbox::start().await);
    let folder = tempfile::tempdir().expect("a directory");
    let write = |name: &str, text: &str| {
        let file = folder.path().join(name);
        std::fs::write(&file, text).expect("written");
        file.display().to_string()
    };
    let settings = [
        ("OPEN_SPANNER_SMTP_URL_FILE", write("smtp", &first.url())),
        ("OPEN_SPANNER_ENCRYPTION_KEYS_FILE", write("keys", &format!("k1:{KEY}"))),
        ("OPEN_SPANNER_RECONCILIATION_WEBHOOK_SECRET_FILE", write("other", "hidden-1")),
        ("OPEN_SPANNER_RECONCILIATION_WEBHOOK_URL", "https://usage.example.com/".to_owned()),
        ("OPEN_SPANNER_MAIL_FROM", "Usage <usage@example.com>".to_owned()),
        ("OPEN_SPANNER_PUBLIC_URL", PUBLIC.to_owned()),
    ];
    let settings: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let server = Server::start_with(&database, &settings);
    let email = sign_up(&server.client()).await;
    write("smtp", &second.url());
    write("keys", &format!("k2:{NEW},k1:{KEY}"));
    write("other", "hidden-2");
    server.signal("HUP");
    let end = Instant::now() + Duration::from_secs(30);
    while !server.log().iter().any(|line| line.contains("SIGHUP: what else changed needs a restart")) {
        assert!(Instant::now() < end, "no line about it: {:#?}", server.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let log = server.log();
    let line = |words: &str| log.iter().find(|line| line.contains(words)).expect("a line");
    let taken = line("were read again");
    assert!(
        taken.contains("OPEN_SPANNER_SMTP_URL") && taken.contains("OPEN_SPANNER_ENCRYPTION_KEYS"),
        "{taken}"
    );
    assert!(line("needs a restart").contains("\"OPEN_SPANNER_RECONCILIATION_WEBHOOK_SECRET\""), "{log:#?}");
    assert!(!log.iter().any(|line| line.contains("hidden-") || line.contains(KEY)), "{log:#?}");
    server.client().post(RESETS, &json!({"email": email})).await.expect(202);
    second.wait(1).await;
    assert!(first.letters().is_empty(), "the old one is asked no more");
    // what is sealed from now on is sealed with the new key
    let owner = sign_in(&server.client(), &email).await;
    let body = json!({"name": "d", "webhook_url": "https://example.com/hook"});
    owner.post("/v1/alerts/destinations", &body).await.expect(201);
    let sealed = database.lines("SELECT secret AS line FROM alert_destinations");
    assert!(sealed[0].starts_with("sealed:1:k2:"), "{sealed:?}");
}
