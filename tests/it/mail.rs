//! What the server mails: links that set a password, and invitations. A real mail server takes them, on loopback.

use std::time::Instant;

use serde_json::json;

use crate::support::client::{PASSWORD, sign_in, sign_up};
use crate::support::mailbox::Mailbox;
use crate::support::{Database, Server, on_both_databases, unique};

on_both_databases!(
    a_password_is_set_with_a_link_out_of_a_mail,
    nobody_learns_who_has_an_account,
    a_mail_is_tried_again,
    invitations_are_mailed,
    without_a_mail_server_nothing_is_promised,
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
