//! What a dump of the whole database gives away: nothing with which anybody comes in, signs or finishes what another began,
//! however it came to be stored; and nothing that a request said of where this server is.

use super::*;
use crate::dashboard::Browser;
use crate::support::mailbox::Mailbox;

on_both_databases!(nothing_that_opens_anything_is_in_a_dump, where_a_request_came_to_is_not_stored);

const KEYS: &str = "OPEN_SPANNER_ENCRYPTION_KEYS";
const KEY: &str = "c2VjcmV0LWtleS1vZi0zMi1ieXRlcy1mb3ItdGVzdHM=";
const GUESS: &str = "a guess at a password of somebody";
const NEW: &str = "a password that nobody has taken yet";

/// A dump: the files, or each row of each table, in which PostgreSQL writes bytes in hexadecimal.
fn dump(database: &Database) -> String {
    match database {
        Database::Sqlite { path, .. } => {
            let read = |end: &str| std::fs::read(format!("{}{end}", path.display())).unwrap_or_default();
            let bytes = [read(""), read("-wal")].concat();
            String::from_utf8_lossy(&bytes).into_owned()
        }
        Database::Postgres { .. } => {
            let tables = database.lines(
                "SELECT table_name::text AS line FROM information_schema.tables
                 WHERE table_schema = current_schema() AND table_type = 'BASE TABLE'",
            );
            let rows = |table: &String| database.lines(&format!("SELECT t::text AS line FROM \"{table}\" t"));
            tables.iter().flat_map(rows).collect::<Vec<_>>().join("\n")
        }
    }
}

/// Whether a text is there, as it is or in hexadecimal.
fn holds(dump: &str, text: &str) -> bool {
    let hexadecimal: String = text.bytes().map(|byte| format!("{byte:02x}")).collect();
    dump.contains(text) || dump.contains(&hexadecimal)
}

fn text_of(value: &Value, name: &str) -> String {
    value[name].as_str().unwrap_or_else(|| panic!("no {name} in {value}")).to_owned()
}

/// The longest word of a page that begins so: lists show the first letters of keys.
fn word(page: &str, begin: &str) -> String {
    let is_part = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    let words = page.match_indices(begin).map(|(at, _)| page[at..].chars().take_while(is_part));
    words.map(|word| word.collect::<String>()).max_by_key(String::len).unwrap_or_default()
}

type Secrets = Vec<(&'static str, String)>;

/// Somebody signs in on the page, goes on with the refresh token, and guesses wrong.
async fn signed_in(server: &Server, email: &str, secrets: &mut Secrets) -> Browser {
    let mut browser = Browser::new(server);
    let form = format!("email={}&password={}", email.replace('@', "%40"), PASSWORD.replace(' ', "+"));
    browser.send(reqwest::Method::POST, "/login", Some(form)).await.expect(303);
    for name in ["open_spanner_access", "open_spanner_refresh", "open_spanner_device"] {
        let found = browser.cookies.iter().find(|(known, _)| known == name);
        secrets.push((name, found.unwrap_or_else(|| panic!("no {name}")).1.clone()));
    }
    let guess = json!({"email": email, "password": GUESS});
    server.client().post("/v1/auth/sessions", &guess).await.error(401, "unauthorized");
    let other = json!({"email": email, "password": PASSWORD});
    let other = server.client().post("/v1/auth/sessions", &other).await.expect(201);
    let refresh = format!("open_spanner_refresh={}", other.cookie("open_spanner_refresh").expect("a token"));
    let again = server.client().with("cookie", refresh.clone());
    let again = again.post_text("/v1/auth/session/refresh", "").await.expect(200);
    secrets.push(("a used refresh token", refresh.split('=').nth(1).expect("a token").to_owned()));
    secrets.push(("a new refresh token", again.cookie("open_spanner_refresh").expect("a token")));
    secrets.push(("a new access token", again.cookie("open_spanner_access").expect("a token")));
    browser
}

/// Keys, links, secrets of webhooks: over the wire, and on a page that shows one once. Answers a key.
async fn made(server: &Server, browser: &mut Browser, secrets: &mut Secrets) -> Client {
    let session = crate::pages::session_of(server, browser);
    let fields = [("name", "once"), ("preset", "ingest"), ("days", "7")];
    let shown = browser.post("/api-keys/new", &fields).await.expect(303);
    secrets.push(("what is shown once", shown.cookie("open_spanner_shown").expect("a cookie")));
    let page = browser.get(&shown.header("location")).await.expect(200).text;
    secrets.push(("a key of the page", word(&page, "osp_sk_")));
    let body = json!({"name": "k", "scopes": ["*"]});
    let key = session.post("/v1/auth/api-keys", &body).await.json(201);
    let rotate = format!("/v1/auth/api-keys/{}/rotate", text_of(&key, "id"));
    let rotated = session.post(&rotate, &json!({"grace_period_seconds": 600})).await.json(201);
    let client = server.client().with_key(&text_of(&rotated, "key"));
    let to = json!({"name": "d", "webhook_url": "https://example.com/hook"});
    let to = client.post("/v1/alerts/destinations", &to).await.json(201);
    let path = format!("/v1/alerts/destinations/{}/webhook-secret/rotate", text_of(&to, "id"));
    let newer = client.post(&path, &json!({})).await.json(200);
    let link = client.post("/v1/subjects/s/links", &json!({})).await.json(201);
    server.client().get(&format!("/share/{}", text_of(&link, "token"))).await.expect(200);
    // an event that is refused is kept as it was sent, but for this
    let event = json!({"meter": "nosuch", "subject": "s", "quantity": 1,
                       "metadata": {"authorization": text_of(&key, "key")}});
    client.post("/v1/usages", &event).await.expect(404);
    let (key_text, other) = (text_of(&key, "key"), text_of(&rotated, "key"));
    let mistaken = json!({"meter": key_text, "subject": other, "quantity": 1, "idempotency_key": other});
    client.post("/v1/usages", &mistaken).await.expect(404);
    secrets.push(("a key", text_of(&key, "key")));
    secrets.push(("a rotated key", text_of(&rotated, "key")));
    secrets.push(("the secret of a webhook", text_of(&to["webhook_signing"], "secret")));
    secrets.push(("its next secret", text_of(&newer["webhook_signing"], "secret")));
    secrets.push(("a link for a customer", text_of(&link, "token")));
    client
}

async fn nothing_that_opens_anything_is_in_a_dump(database: Database) {
    let (provider, mailbox) = (Provider::start().await, Mailbox::start().await);
    let (ring, smtp) = (format!("k1:{KEY}"), mailbox.url());
    let more = [
        (KEYS, ring.as_str()),
        ("OPEN_SPANNER_PUBLIC_URL", "https://usage.example.com"),
        ("OPEN_SPANNER_SMTP_URL", smtp.as_str()),
        ("OPEN_SPANNER_MAIL_FROM", "Usage <usage@example.com>"),
    ];
    let server = start(&database, &provider, &more);
    let mut secrets: Secrets = [
        ("a password", PASSWORD),
        ("a wrong password", GUESS),
        ("a password that was refused", NEW),
        ("the secret at the provider", CLIENT_SECRET),
        ("a key of the ring", KEY),
    ]
    .map(|(what, secret)| (what, secret.to_owned()))
    .to_vec();
    let email = sign_up(&server.client()).await;
    let mut browser = signed_in(&server, &email, &mut secrets).await;
    let session = crate::pages::session_of(&server, &browser);
    let key = made(&server, &mut browser, &mut secrets).await;
    let change = json!({"current_password": GUESS, "password": NEW});
    session.put("/v1/auth/password", &change).await.error(400, "invalid_input");
    // links that set a password, mailed and made by an operator
    let asked = json!({"email": email});
    server.client().post("/v1/auth/password-resets", &asked).await.expect(202);
    let mailed = mailbox.wait(1).await.link("/reset/");
    let mailed = mailed.rsplit('/').next().expect("a token").to_owned();
    let (path, short) = (format!("/v1/auth/password-resets/{mailed}"), json!({"password": "short"}));
    server.client().post(&path, &short).await.error(400, "invalid_input");
    secrets.push(("a mailed link", mailed));
    secrets.push(("a link of an operator", crate::account::token_for(&database, &email)));
    // invitations, of which one is accepted
    for address in [sign_up(&server.client()).await, "nobody@example.com".to_owned()] {
        let body = json!({"email": address, "role": "viewer"});
        let invitation = session.post("/v1/auth/workspace/invitations", &body).await.json(201);
        secrets.push(("an invitation", text_of(&invitation, "token")));
        if address.starts_with("user") {
            let path = format!("/v1/auth/workspace-invitations/{}/accept", text_of(&invitation, "token"));
            sign_in(&server.client(), &address).await.post_text(&path, "").await.expect(200);
        }
    }
    // with a provider: one who came in, and one who is on the way to an invitation
    let ann = is_in(&server, &through(&server, &provider, "ann@example.com", &json!({})).await);
    for cookie in ann.header("cookie").split("; ") {
        secrets.push(("a session by a provider", cookie.split('=').nth(1).unwrap_or_default().to_owned()));
    }
    let invited = secrets.iter().rfind(|(what, _)| *what == "an invitation").expect("one").1.clone();
    let next = format!("/v1/auth/oauth/oidc?next=%2Finvitations%2F{invited}");
    let gone = go(&server.client(), &next).await;
    secrets.push(("the state of a sign-in", gone.state));
    secrets.push(("its nonce", gone.nonce));
    let verifiers = database.lines("SELECT verifier AS line FROM provider_flows");
    assert!(!verifiers.is_empty() && verifiers.iter().all(|text| text.starts_with("sealed:1:")));
    // refused events are written a moment later
    let end = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while key.get("/v1/events/refused").await.json(200)["items"].as_array().is_none_or(|all| all.len() < 2) {
        assert!(std::time::Instant::now() < end, "the refused event is not written");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let dump = dump(&database);
    assert!(holds(&dump, &email) && holds(&dump, "nosuch"), "the dump is one");
    let readable: Vec<_> =
        secrets.iter().filter(|(_, secret)| holds(&dump, secret)).map(|(what, _)| what).collect();
    assert!(readable.is_empty(), "in clear text: {readable:?}");
    assert!(secrets.len() > 20 && secrets.iter().all(|(_, secret)| secret.len() > 12), "{}", secrets.len());
}

/// Columns whose names say that they hold a secret, and how each is kept. Who adds one adds it to the dump above.
#[test]
fn each_column_of_a_secret_is_known() {
    const KNOWN: [(&str, &str); 14] = [
        ("alert_destinations.previous_secret", "sealed with the ring"),
        ("alert_destinations.secret", "sealed with the ring"),
        ("api_keys.token_hash", "SHA-256"),
        ("invitations.token_hash", "SHA-256"),
        ("jobs.lease_token", "worth something to whoever writes to the database already"),
        ("known_devices.token_hash", "SHA-256"),
        ("password_resets.token_hash", "SHA-256"),
        ("provider_flows.nonce", "sealed by the state"),
        ("provider_flows.state_hash", "SHA-256"),
        ("provider_flows.verifier", "sealed by the state"),
        ("sessions.form_key", "worth something beside the cookie of the session only"),
        ("sessions.token_hash", "SHA-256"),
        ("subject_links.token_hash", "SHA-256"),
        ("users.password_hash", "Argon2id"),
    ];
    let words = ["secret", "token", "verifier", "nonce", "password", "form_key", "state_hash", "credential"];
    let (mut table, mut found) = ("", Vec::new());
    for line in include_str!("../../../src/db/schema.rs").lines() {
        match (line.split_once(" -> "), line.split_once(" (")) {
            (Some((column, _)), _) if words.iter().any(|word| column.contains(word)) => {
                found.push(format!("{table}.{}", column.trim()));
            }
            (None, Some((name, rest))) if rest.ends_with(") {") => table = name.trim(),
            _ => {}
        }
    }
    found.sort();
    assert_eq!(found, KNOWN.map(|(column, _)| column));
}

/// Whoever sends a request may name any host: it is in the answer to them, and nobody else ever meets it.
async fn where_a_request_came_to_is_not_stored(database: Database) {
    let provider = Provider::start().await;
    let ring = format!("k1:{KEY}");
    let server = start(&database, &provider, &[(KEYS, ring.as_str())]);
    let email = sign_up(&server.client().with("host", "evil.example")).await;
    let session = sign_in(&server.client().with("host", "evil.example"), &email).await;
    let made = session.post("/v1/auth/api-keys", &json!({"name": "k", "scopes": ["*"]})).await.json(201);
    let key = server.client().with("host", "evil.example").with_key(&text_of(&made, "key"));
    key.meter("m", "sum").await;
    let event = json!({"meter": "m", "subject": "s", "quantity": 1});
    key.post("/v1/usages", &event).await.expect(201);
    let link = key.post("/v1/subjects/s/links", &json!({})).await.json(201);
    assert!(text_of(&link, "url").starts_with("http://evil.example/share/"), "{link}");
    let body = json!({"email": "x@example.com", "role": "viewer"});
    session.post("/v1/auth/workspace/invitations", &body).await.expect(201);
    let gone = go(&server.client().with("host", "evil.example"), "/v1/auth/oauth/oidc").await;
    assert!(gone.redirect_uri.starts_with("http://evil.example/"), "{}", gone.redirect_uri);
    let dump = dump(&database);
    assert!(holds(&dump, &email) && !holds(&dump, "evil.example"));
    // the page that the link opens names nobody's host
    let page = server.client().get(&format!("/share/{}", text_of(&link, "token"))).await.expect(200).text;
    assert!(!page.contains("evil.example"), "{page}");
}
