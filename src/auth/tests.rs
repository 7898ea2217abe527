//! The whole room at work on a database file of its own: sign-up to sign-out, keys from birth to death, and what
//! happens to both when a membership changes.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use diesel::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::auth::key::{Flush, NewKeyRequest};
use crate::auth::link_token::NewLinkRequest;
use crate::auth::session::{Proof, SignedIn, Tokens};
use crate::auth::sql::sign_ins::Which;
use crate::auth::sql::users;
use crate::config::{Db, Driver, Synchronous};
use crate::db::schema::{
    api_keys, memberships, sessions as session_rows, sign_ins as sign_in_rows, workspaces,
};
use crate::db::{DbError, migrations};
use crate::error::Code;
use crate::metering::time::{DAY, HOUR, SECOND};

const HOME: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const PASSWORD: &str = "correct horse";

fn shown(access: &str) -> Tokens {
    Tokens { access: Some(access.to_owned()), refresh: None }
}

impl SignedIn {
    fn refresh_text(&self) -> &str {
        self.refresh.as_ref().map(|(token, _)| token.expose()).expect("a session that is renewed")
    }

    fn tokens(&self) -> Tokens {
        Tokens {
            access: Some(self.access.expose().to_owned()),
            refresh: Some(self.refresh_text().to_owned()),
        }
    }
}

fn member(role: Role) -> Member {
    Member {
        user_id: 1,
        user_public_id: "u".into(),
        email: "ann@example.com".into(),
        created_at: 0,
        workspace_id: 1,
        workspace_public_id: "w".into(),
        workspace_name: "ann's workspace".into(),
        role,
    }
}

pub(super) fn caller_with_session(role: Role) -> Caller {
    Caller::new(
        member(role),
        Credential::Session {
            expires_at: Timestamp(i64::MAX),
            form_key: Vec::new(),
            login_id: String::new(),
        },
    )
}

pub(super) fn caller_with_key(role: Role, scopes: &[&str], allowed_meters: &[&str]) -> Caller {
    let credential = Credential::Key {
        id: 1,
        public_id: "k".into(),
        name: "k".into(),
        grants: Grants::of(scopes.iter().copied()),
        allowed_networks: None,
        allowed_meters: allowed_meters.iter().map(|name| name.to_string()).collect(),
        expires_at: None,
        revoked_at: None,
    };
    Caller::new(member(role), credential)
}

#[test]
fn allow_lists_confine_keys_to_named_meters() {
    let may = |list: &[&str], name: &str| {
        caller_with_key(Role::Owner, &["*"], list).ensure_meter_allowed(name).is_ok()
    };
    assert!(may(&[], "") && may(&[], "calls"));
    assert!(may(&["calls"], "calls") && may(&["*"], "calls"));
    for (list, name) in
        [(&["calls"][..], "Calls"), (&["calls"], " calls"), (&["calls"], ""), (&["*"], ""), (&["*"], " ")]
    {
        assert!(!may(list, name), "{list:?} {name:?}");
    }
    assert!(caller_with_session(Role::Viewer).ensure_meter_allowed("").is_ok());
}

#[test]
fn credentials_are_found_where_clients_put_them() {
    let key = |headers: &[(&str, &str)]| {
        let header =
            |name: &str| headers.iter().find(|(found, _)| *found == name).map(|(_, value)| value.as_bytes());
        credentials_of(header).key
    };
    let own = "x-open-spanner-api-key";
    for (headers, want) in [
        (&[(own, "a"), ("x-api-key", "b"), ("authorization", "Bearer c")][..], Some("a")),
        (&[(own, "  "), ("x-api-key", "b")], Some("b")),
        (&[("x-api-key", " "), ("authorization", "Bearer c")], Some("c")),
        (&[("authorization", "bearer c")], Some("c")),
        (&[("authorization", "Bearer   c  ")], Some("c")),
        (&[("authorization", "BEARER c")], None),
        (&[("authorization", "Bearer ")], None),
        (&[("authorization", "Bearer")], None),
        (&[("authorization", "Basic c")], None),
        (&[("authorization", "c")], None),
        (&[], None),
    ] {
        assert_eq!(key(headers).as_deref(), want, "{headers:?}");
    }
    let both = credentials_of(|name| match name {
        "x-api-key" => Some(b"\xffkey".as_slice()),
        "cookie" => Some(b"open_spanner_access=osp_at_x"),
        _ => None,
    });
    assert!(both.key.is_some(), "an unreadable key is a wrong key, not an absent one");
    assert_eq!(both.access_token.as_deref(), Some("osp_at_x"));
}

/// An office on a new database; with `ttl` zero it asks the database every time.
struct Office {
    auth: Auth,
    store: Store,
    _dir: TempDir,
}

async fn office(ttl: Duration) -> Office {
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("auth.db").display().to_string();
    let driver = Driver::Sqlite { path, synchronous: Synchronous::Normal };
    let to_migrate = driver.clone();
    tokio::task::spawn_blocking(move || migrations::run(&to_migrate)).await.expect("task").expect("migrated");
    let store = Store::new(&Db {
        read_dsn: None,
        driver,
        max_open_conns: 4,
        server_open_conns: 4,
        worker_open_conns: 4,
        queries_per_workspace: 0,
        max_idle_conns: None,
        acquire_timeout: Duration::from_secs(5),
        statement_timeout: Duration::from_secs(15),
        slow_after: None,
        conn_max_lifetime: None,
        conn_max_idle_time: None,
    });
    let session_max_age = Duration::from_secs(90 * 86_400);
    let options = Options {
        cache_ttl: ttl,
        registration_enabled: true,
        invited_may_register: false,
        password_sign_in: true,
        session_max_age,
    };
    Office { auth: Auth::new(store.clone(), options), store, _dir: dir }
}

const MINUTE: Duration = Duration::from_secs(60);

impl Office {
    async fn newcomer(&self, email: &str) -> SignedIn {
        self.auth.register(email, PASSWORD.into(), HOME).await.expect("registered");
        self.auth.sign_in(email, PASSWORD.into(), HOME).await.expect("signed in")
    }

    async fn caller(&self, session: &SignedIn) -> Caller {
        self.auth.by_access_token(session.access.expose()).await.expect("caller")
    }

    /// Another server on the same database, which remembers nothing yet.
    fn elsewhere(&self) -> Auth {
        Auth::new(self.store.clone(), *self.auth.options())
    }

    /// Somebody who joined the host's workspace in this role, and their session there.
    async fn joined(&self, host: &Caller, email: &str, role: &str) -> Caller {
        let (_, token) = self.auth.invite(host, email, role).await.expect("invited");
        let session = self.newcomer(email).await;
        let guest = self.caller(&session).await;
        let joined = self.auth.accept_invitation(&guest, token.expose(), session.tokens()).await;
        self.caller(&joined.expect("joined")).await
    }

    async fn count(&self, of: impl Fn(&mut crate::db::Conn) -> Result<i64, DbError> + Send + 'static) -> i64 {
        self.store.read("test", of).await.expect("a count")
    }

    async fn change(&self, work: impl Fn(&mut crate::db::Conn) -> Result<usize, DbError> + Send + 'static) {
        assert!(self.store.write("test", work).await.expect("changed") > 0, "nothing to change");
    }

    async fn age_sessions(&self, micros: i64) {
        self.change(move |conn| {
            Ok(diesel::update(session_rows::table)
                .set((
                    session_rows::expires_at.eq(session_rows::expires_at - micros),
                    session_rows::used_at.eq(session_rows::used_at - micros),
                ))
                .execute(conn)?)
        })
        .await;
    }
}

fn code<T>(result: Result<T>) -> Option<Code> {
    result.err().map(|error| error.code)
}

fn wish(name: &str) -> NewKeyRequest {
    NewKeyRequest { name: name.into(), ..NewKeyRequest::default() }
}

#[tokio::test]
async fn registering_makes_a_user_with_a_workspace() {
    let office = office(MINUTE).await;
    let user = office.auth.register(" Ann@Example.com ", PASSWORD.into(), HOME).await.expect("registered");
    assert_eq!(user.email, "ann@example.com");
    assert_eq!((user.workspace_name.as_str(), user.role), ("ann's workspace", Role::Owner));
    assert_eq!(
        code(office.auth.register("ANN@example.com", PASSWORD.into(), HOME).await),
        Some(Code::Conflict)
    );
    let workspaces: i64 = office
        .store
        .read("test", |conn| Ok(workspaces::table.count().get_result(conn)?))
        .await
        .expect("count");
    assert_eq!(workspaces, 1, "a refused registration leaves nothing behind");
    assert_eq!(
        code(office.auth.register("bob@example.com", "short".into(), HOME).await),
        Some(Code::InvalidInput)
    );
}

#[tokio::test]
async fn registration_can_be_switched_off() {
    let office = office(MINUTE).await;
    let options = Options { registration_enabled: false, ..*office.auth.options() };
    let closed = Auth::new(office.store.clone(), options);
    assert_eq!(code(closed.check_registration()), Some(Code::RegistrationDisabled));
    assert_eq!(code(closed.register("a@b", PASSWORD.into(), HOME).await), Some(Code::RegistrationDisabled));
}

#[tokio::test]
async fn signing_in_wants_the_right_password() {
    let office = office(MINUTE).await;
    let session = office.newcomer("ann@example.com").await;
    assert_eq!((session.access.expose().len(), session.refresh_text().len()), (50, 50));
    let caller = office.caller(&session).await;
    assert_eq!((caller.role, caller.user.email.as_str()), (Role::Owner, "ann@example.com"));
    for (email, password) in
        [("ann@example.com", "wrong horse"), ("bob@example.com", PASSWORD), ("nonsense", PASSWORD), ("", "")]
    {
        let refused = office.auth.sign_in(email, password.into(), HOME).await;
        assert_eq!(code(refused), Some(Code::Unauthorized), "{email}");
    }
    assert!(office.auth.sign_in(" ANN@example.com ", PASSWORD.into(), HOME).await.is_ok());
}

#[tokio::test]
async fn too_many_failures_close_the_door_for_a_while() {
    let office = office(MINUTE).await;
    office.newcomer("ann@example.com").await;
    for _ in 0..10 {
        let refused = office.auth.sign_in("ann@example.com", "wrong horse".into(), HOME).await;
        assert_eq!(code(refused), Some(Code::Unauthorized));
    }
    let right = office.auth.sign_in("ann@example.com", PASSWORD.into(), HOME).await.err().expect("refused");
    assert_eq!(right.code, Code::RateLimited);
    assert!(right.retry_after_seconds.is_some_and(|seconds| (1..=300).contains(&seconds)));
}

#[tokio::test]
async fn tokens_of_one_kind_do_not_pass_for_another() {
    let office = office(MINUTE).await;
    let session = office.newcomer("ann@example.com").await;
    let (access, refresh) = (session.access.expose(), session.refresh_text());
    assert_eq!(code(office.auth.by_access_token(refresh).await), Some(Code::Unauthorized));
    assert_eq!(code(office.auth.by_key(access).await), Some(Code::Unauthorized));
    assert_eq!(code(office.auth.refresh(access).await), Some(Code::Unauthorized));
    // the same secret under another prefix is another token
    let disguised = refresh.replace("osp_rt_", "osp_at_");
    assert_eq!(code(office.auth.by_access_token(&disguised).await), Some(Code::Unauthorized));
}

#[tokio::test]
async fn a_refresh_token_works_once_and_a_moment_longer() {
    let office = office(MINUTE).await;
    let first = office.newcomer("ann@example.com").await;
    let second = office.auth.refresh(first.refresh_text()).await.expect("refreshed");
    assert_ne!(first.refresh_text(), second.refresh_text());
    let twin = office.auth.refresh(first.refresh_text()).await.expect("a second tab");
    office.caller(&first).await;
    office.age_sessions(11 * SECOND).await;
    assert_eq!(code(office.auth.refresh(first.refresh_text()).await), Some(Code::Unauthorized));
    // somebody has it who should not: the sign-in is over for all
    for session in [&second, &twin] {
        assert_eq!(code(office.auth.refresh(session.refresh_text()).await), Some(Code::Unauthorized));
    }
}

#[tokio::test]
async fn using_a_refresh_token_again_does_not_prolong_its_grace() {
    let office = office(MINUTE).await;
    let session = office.newcomer("ann@example.com").await;
    let hash = token::hash(session.refresh_text());
    let expires_at = async || {
        let row = session_rows::table.find(hash.to_vec()).select(session_rows::expires_at);
        office.store.read("test", move |conn| Ok(row.clone().first::<i64>(conn)?)).await.expect("row")
    };
    office.auth.refresh(session.refresh_text()).await.expect("refreshed");
    let ends = expires_at().await;
    tokio::time::sleep(Duration::from_millis(5)).await;
    office.auth.refresh(session.refresh_text()).await.expect("a second tab");
    assert_eq!(expires_at().await, ends);
}

#[tokio::test]
async fn signing_out_ends_all_that_came_from_one_sign_in() {
    let office = office(MINUTE).await;
    let first = office.newcomer("ann@example.com").await;
    let other = office.auth.sign_in("ann@example.com", PASSWORD.into(), HOME).await.expect("another browser");
    let second = office.auth.refresh(first.refresh_text()).await.expect("refreshed");
    office.caller(&first).await;
    office.auth.sign_out(shown(second.access.expose())).await.expect("signed out");
    for dead in [&first, &second] {
        assert_eq!(code(office.auth.by_access_token(dead.access.expose()).await), Some(Code::Unauthorized));
        assert_eq!(code(office.auth.refresh(dead.refresh_text()).await), Some(Code::Unauthorized));
    }
    office.caller(&other).await;
    office.auth.sign_out(shown("osp_at_unknown")).await.expect("nothing to do");
    office.auth.sign_out(Tokens::default()).await.expect("nothing to do");
}

#[tokio::test]
async fn expired_sessions_are_refused_and_swept() {
    let office = office(Duration::ZERO).await;
    let session = office.newcomer("ann@example.com").await;
    assert_eq!(office.auth.sweep().await.expect("swept"), 0);
    office.age_sessions(16 * 60 * SECOND).await;
    assert_eq!(code(office.auth.by_access_token(session.access.expose()).await), Some(Code::Unauthorized));
    assert_eq!(office.auth.sweep().await.expect("swept"), 1);
    office.auth.refresh(session.refresh_text()).await.expect("the refresh token lives longer");
    office.age_sessions(31 * DAY).await;
    assert_eq!(code(office.auth.refresh(session.refresh_text()).await), Some(Code::Unauthorized));
    assert_eq!(office.auth.sweep().await.expect("swept"), 3);
}

#[tokio::test]
async fn keys_work_until_they_are_revoked() {
    let office = office(MINUTE).await;
    let caller = office.caller(&office.newcomer("ann@example.com").await).await;
    let (key, secret) = office.auth.create_key(&caller, &wish("backend")).await.expect("created");
    assert!(secret.expose().starts_with(&key.prefix) && key.prefix.len() == 18);
    let used = office.auth.by_key(secret.expose()).await.expect("caller");
    assert_eq!((used.workspace_id, used.user_id), (caller.workspace_id, caller.user_id));
    assert!(matches!(&used.credential, Credential::Key { public_id, .. } if *public_id == key.public_id));
    office.auth.revoke_key(&caller, &key.public_id).await.expect("revoked");
    assert_eq!(code(office.auth.by_key(secret.expose()).await), Some(Code::Unauthorized));
    office.auth.revoke_key(&caller, &key.public_id).await.expect("again is fine");
    let listed = office.auth.list_keys(&caller).await.expect("keys");
    assert!(listed.len() == 1 && listed[0].revoked_at.is_some(), "it stays in the list");
    let events = office.auth.key_events(&caller).await.expect("events");
    assert_eq!(
        events.iter().map(|event| event.event_type.as_str()).collect::<Vec<_>>(),
        ["revoked", "created"]
    );
    assert_eq!(events[0].effective_at, listed[0].revoked_at);
}

#[tokio::test]
async fn expiry_is_checked_on_every_use() {
    let office = office(MINUTE).await;
    let caller = office.caller(&office.newcomer("ann@example.com").await).await;
    let soon = Timestamp::now().plus(2 * SECOND);
    let wish = NewKeyRequest { expires_at: soon.to_string(), ..wish("short-lived") };
    let (_, secret) = office.auth.create_key(&caller, &wish).await.expect("created");
    office.auth.by_key(secret.expose()).await.expect("alive, and remembered for a minute");
    tokio::time::sleep(Duration::from_millis(2100)).await;
    assert_eq!(code(office.auth.by_key(secret.expose()).await), Some(Code::Unauthorized));
}

#[tokio::test]
async fn rotation_replaces_a_key_on_the_same_terms() {
    let office = office(MINUTE).await;
    let caller = office.caller(&office.newcomer("ann@example.com").await).await;
    let wish = NewKeyRequest {
        scopes: vec!["usage:*".into()],
        allowed_meters: vec!["calls".into()],
        expires_at: "2099-01-01T00:00:00Z".into(),
        ..wish("backend")
    };
    let (old, old_secret) = office.auth.create_key(&caller, &wish).await.expect("created");
    office.auth.by_key(old_secret.expose()).await.expect("caller");
    let (new, new_secret) = office.auth.rotate_key(&caller, &old.public_id, 60).await.expect("rotated");
    assert_eq!((&new.name, &new.scopes, new.expires_at), (&old.name, &old.scopes, old.expires_at));
    assert_eq!(new.allowed_meters, old.allowed_meters);
    assert_ne!((new.public_id.as_str(), new.prefix.as_str()), (old.public_id.as_str(), old.prefix.as_str()));
    for secret in [&old_secret, &new_secret] {
        office.auth.by_key(secret.expose()).await.expect("both work during the grace");
    }
    let again = office.auth.rotate_key(&caller, &old.public_id, 0).await;
    assert_eq!(code(again), Some(Code::Conflict), "already on its way out");
    office.auth.rotate_key(&caller, &new.public_id, 0).await.expect("at once");
    assert_eq!(code(office.auth.by_key(new_secret.expose()).await), Some(Code::Unauthorized));
    let events = office.auth.key_events(&caller).await.expect("events");
    let types: Vec<_> = events.iter().map(|event| event.event_type.as_str()).collect();
    assert_eq!(types, ["rotated", "created", "rotated", "created", "created"]);
    assert_eq!(events[2].related_api_key_id.as_deref(), Some(new.public_id.as_str()));
    assert_eq!(events[3].related_api_key_id.as_deref(), Some(old.public_id.as_str()));
    assert!(events[2].effective_at.is_some() && events[3].effective_at.is_none());
}

#[tokio::test]
async fn rotation_refuses_what_makes_no_sense() {
    let office = office(MINUTE).await;
    let caller = office.caller(&office.newcomer("ann@example.com").await).await;
    let (key, _) = office.auth.create_key(&caller, &wish("backend")).await.expect("created");
    for grace in [-1, 86_401] {
        assert_eq!(
            code(office.auth.rotate_key(&caller, &key.public_id, grace).await),
            Some(Code::InvalidInput)
        );
    }
    for unknown in ["00000000-0000-4000-8000-000000000000", "nonsense", "a\0b"] {
        assert_eq!(code(office.auth.rotate_key(&caller, unknown, 0).await), Some(Code::NotFound));
        assert_eq!(code(office.auth.revoke_key(&caller, unknown).await), Some(Code::NotFound));
    }
    office.auth.revoke_key(&caller, &key.public_id).await.expect("revoked");
    assert_eq!(code(office.auth.rotate_key(&caller, &key.public_id, 0).await), Some(Code::Conflict));
}

#[tokio::test]
async fn keys_of_others_are_out_of_reach() {
    let office = office(MINUTE).await;
    let ann = office.caller(&office.newcomer("ann@example.com").await).await;
    let bob = office.caller(&office.newcomer("bob@example.com").await).await;
    let (key, secret) = office.auth.create_key(&ann, &wish("backend")).await.expect("created");
    assert_eq!(code(office.auth.revoke_key(&bob, &key.public_id).await), Some(Code::NotFound));
    assert_eq!(code(office.auth.rotate_key(&bob, &key.public_id, 0).await), Some(Code::NotFound));
    assert!(office.auth.list_keys(&bob).await.expect("keys").is_empty());
    assert!(office.auth.key_events(&bob).await.expect("events").is_empty());
    office.auth.by_key(secret.expose()).await.expect("untouched");
}

#[tokio::test]
async fn keys_are_listed_newest_first() {
    let office = office(MINUTE).await;
    let caller = office.caller(&office.newcomer("ann@example.com").await).await;
    for name in ["one", "two", "three"] {
        office.auth.create_key(&caller, &wish(name)).await.expect("created");
    }
    let names: Vec<_> =
        office.auth.list_keys(&caller).await.expect("keys").into_iter().map(|key| key.name).collect();
    assert_eq!(names, ["three", "two", "one"]);
}

#[tokio::test]
async fn demotion_and_removal_reach_sessions_and_keys() {
    let office = office(Duration::ZERO).await;
    let session = office.newcomer("ann@example.com").await;
    let caller = office.caller(&session).await;
    let (_, secret) = office.auth.create_key(&caller, &wish("backend")).await.expect("created");
    office
        .change(|conn| {
            Ok(diesel::update(memberships::table).set(memberships::role.eq("viewer")).execute(conn)?)
        })
        .await;
    assert_eq!(office.caller(&session).await.role, Role::Viewer);
    assert_eq!(office.auth.by_key(secret.expose()).await.expect("caller").role, Role::Viewer);
    office.change(|conn| Ok(diesel::delete(memberships::table).execute(conn)?)).await;
    assert_eq!(code(office.auth.by_access_token(session.access.expose()).await), Some(Code::Unauthorized));
    assert_eq!(code(office.auth.by_key(secret.expose()).await), Some(Code::Unauthorized));
    assert_eq!(code(office.auth.refresh(session.refresh_text()).await), Some(Code::Unauthorized));
    let back = office.auth.sign_in("ann@example.com", PASSWORD.into(), HOME).await.expect("a new home");
    assert_ne!(back.user.workspace_id, session.user.workspace_id);
}

#[tokio::test]
async fn revocation_elsewhere_is_felt_within_the_lifetime_of_the_memory() {
    let office = office(Duration::from_millis(200)).await;
    let caller = office.caller(&office.newcomer("ann@example.com").await).await;
    let (key, secret) = office.auth.create_key(&caller, &wish("backend")).await.expect("created");
    let elsewhere = office.elsewhere();
    elsewhere.by_key(secret.expose()).await.expect("alive");
    office.auth.revoke_key(&caller, &key.public_id).await.expect("revoked");
    tokio::time::sleep(Duration::from_millis(250)).await;
    assert_eq!(code(elsewhere.by_key(secret.expose()).await), Some(Code::Unauthorized));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_at_once_one_wins() {
    let office = office(MINUTE).await;
    let caller = office.caller(&office.newcomer("ann@example.com").await).await;
    let (key, _) = office.auth.create_key(&caller, &wish("backend")).await.expect("created");
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let (auth, caller, id) = (office.auth.clone(), caller.clone(), key.public_id.clone());
            tokio::spawn(async move {
                let registered = auth.register("bob@example.com", PASSWORD.into(), HOME).await;
                (code(registered), code(auth.rotate_key(&caller, &id, 60).await))
            })
        })
        .collect();
    let mut won = (0, 0);
    for task in tasks {
        let (registered, rotated) = task.await.expect("task");
        for outcome in [registered, rotated] {
            assert!(matches!(outcome, None | Some(Code::Conflict)), "{outcome:?}");
        }
        won = (won.0 + u32::from(registered.is_none()), won.1 + u32::from(rotated.is_none()));
    }
    assert_eq!(won, (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_under_way_does_not_outlive_the_sign_out() {
    let office = office(MINUTE).await;
    for at in 0..10 {
        let session = office.newcomer(&format!("user{at}@example.com")).await;
        let (auth, token) = (office.auth.clone(), session.refresh_text().to_string());
        let refreshing = tokio::spawn(async move { auth.refresh(&token).await });
        office.auth.sign_out(shown(session.access.expose())).await.expect("signed out");
        let Ok(late) = refreshing.await.expect("task") else { continue };
        assert_eq!(code(office.auth.by_access_token(late.access.expose()).await), Some(Code::Unauthorized));
        assert_eq!(code(office.auth.refresh(late.refresh_text()).await), Some(Code::Unauthorized));
    }
}

#[tokio::test]
async fn a_session_that_ended_while_a_call_was_under_way_is_not_moved() {
    let office = office(MINUTE).await;
    let session = office.newcomer("ann@example.com").await;
    // as the gate let it in
    let caller = office.caller(&session).await;
    let here = caller.user.workspace_id.clone();
    let (_, invitation) =
        office.auth.invite(&caller, "bob@example.com", "viewer").await.expect("an invitation");
    let guest_session = office.newcomer("bob@example.com").await;
    let guest = office.caller(&guest_session).await;
    for (caller, session) in [(&caller, &session), (&guest, &guest_session)] {
        office.auth.end_sign_ins(caller, Which::All).await.expect("ended");
        let moved = office.auth.switch_workspace(caller, &here, session.tokens()).await;
        assert_eq!(code(moved), Some(Code::Unauthorized));
    }
    let accepted = office.auth.accept_invitation(&guest, invitation.expose(), guest_session.tokens()).await;
    assert_eq!(code(accepted), Some(Code::Unauthorized));
    let left = office.count(|conn| Ok(session_rows::table.count().get_result(conn)?)).await;
    let left = left + office.count(|conn| Ok(sign_in_rows::table.count().get_result(conn)?)).await;
    assert_eq!(left, 0, "a session came out of one that had ended");
}

#[tokio::test]
async fn a_moved_session_keeps_what_it_had_and_no_more() {
    let office = office(MINUTE).await;
    let session = office.newcomer("ann@example.com").await;
    let caller = office.caller(&session).await;
    let here = caller.user.workspace_id.clone();
    let ends_at = Timestamp::now().plus(HOUR);
    let end = move |conn: &mut crate::db::Conn| {
        Ok(diesel::update(sign_in_rows::table).set(sign_in_rows::ends_at.eq(ends_at.0)).execute(conn)?)
    };
    office.change(end).await;
    let moved = office.auth.switch_workspace(&caller, &here, session.tokens()).await.expect("moved");
    let (_, refresh_ends_at) = moved.refresh.as_ref().expect("it is renewed as before");
    assert_eq!(*refresh_ends_at, ends_at, "it ends when it would have ended");
    let stored =
        office.count(|conn| Ok(sign_in_rows::table.select(sign_in_rows::ends_at).first(conn)?)).await;
    assert_eq!(stored, ends_at.0);
    // somebody who has the access token only gets no refresh token for it, nor a longer life
    let thief = office.caller(&moved).await;
    let got = office.auth.switch_workspace(&thief, &here, shown(moved.access.expose())).await.expect("moved");
    assert!(got.refresh.is_none() && got.access_expires_at <= moved.access_expires_at);
    let cookies = got.cookies(false);
    assert!(
        cookies[1].starts_with("open_spanner_refresh=;") && cookies[1].contains("Max-Age=0"),
        "{cookies:?}"
    );
    assert_eq!(code(office.auth.refresh(moved.refresh_text()).await), Some(Code::Unauthorized));
    // nor does a refresh token of another sign-in help
    let other = office.auth.sign_in("ann@example.com", PASSWORD.into(), HOME).await.expect("signed in");
    let mixed = Tokens { refresh: other.tokens().refresh, ..shown(got.access.expose()) };
    let caller = office.caller(&got).await;
    let got = office.auth.switch_workspace(&caller, &here, mixed).await.expect("moved");
    assert!(got.refresh.is_none());
    office.auth.refresh(other.refresh_text()).await.expect("untouched");
}

#[tokio::test]
async fn a_password_that_was_replaced_meanwhile_opens_nothing() {
    let office = office(MINUTE).await;
    let session = office.newcomer("ann@example.com").await;
    let caller = office.caller(&session).await;
    let find = |conn: &mut crate::db::Conn| users::credentials(conn, "ann@example.com");
    let (user_id, old) = office.store.read("test", find).await.expect("read").expect("known");
    // the password was found right, and then another call changed it
    let change = office.auth.change_password(&caller, PASSWORD.into(), "another horse".into(), HOME);
    change.await.expect("changed");
    let opened = office.auth.open_session(user_id, None, Proof::Password(old)).await.expect("no failure");
    assert!(opened.is_none());
    let nobody = Proof::Identity { issuer: "i".into(), subject: "s".into() };
    assert!(office.auth.open_session(user_id, None, nobody).await.expect("no failure").is_none());
    let (_, new) = office.store.read("test", find).await.expect("read").expect("known");
    assert!(office.auth.open_session(user_id, None, Proof::Password(new)).await.expect("open").is_some());
}

#[tokio::test]
async fn who_was_removed_or_demoted_meanwhile_gives_nothing_away() {
    let office = office(MINUTE).await;
    let host = office.caller(&office.newcomer("host@example.com").await).await;
    let removed = office.joined(&host, "removed@example.com", "admin").await;
    let demoted = office.joined(&host, "demoted@example.com", "admin").await;
    let signed_out = office.joined(&host, "out@example.com", "admin").await;
    let (key, secret) = office.auth.create_key(&host, &wish("a key")).await.expect("a key");
    let by_key = office.auth.by_key(secret.expose()).await.expect("a caller");
    office.auth.remove_member(&host, &removed.user.id, Default::default()).await.expect("removed");
    office.auth.change_role(&host, &demoted.user.id, "viewer").await.expect("demoted");
    office.auth.end_sign_ins(&signed_out, Which::All).await.expect("signed out");
    office.auth.revoke_key(&host, &key.public_id).await.expect("revoked");
    // each as the gate let them in a moment before
    for (caller, wanted) in [
        (&removed, Code::Unauthorized),
        (&demoted, Code::Forbidden),
        (&signed_out, Code::Unauthorized),
        (&by_key, Code::Unauthorized),
    ] {
        let who = &caller.user.email;
        let invited = office.auth.invite(caller, "friend@example.com", "admin").await;
        assert_eq!(code(invited), Some(wanted), "{who} invites");
        let made = office.auth.create_key(caller, &wish("k")).await;
        assert_eq!(code(made), Some(wanted), "{who} makes a key");
        let made = office.auth.create_link(caller, "s", &NewLinkRequest::default()).await;
        assert_eq!(code(made), Some(wanted), "{who} makes a link");
    }
    // and an owner who is none any more decides about nobody
    office.auth.hand_over(&host, &demoted.user.id).await.expect("handed over");
    let refused = office.auth.remove_member(&host, &demoted.user.id, Default::default()).await;
    assert_eq!(code(refused), Some(Code::Forbidden));
    assert_eq!(code(office.auth.revoke_any_key(&host, &key.public_id).await), Some(Code::Forbidden));
}

#[tokio::test]
async fn routes_take_the_credentials_they_ask_for() {
    let office = office(MINUTE).await;
    let session = office.newcomer("ann@example.com").await;
    let caller = office.caller(&session).await;
    let (_, secret) = office.auth.create_key(&caller, &wish("backend")).await.expect("created");
    let good_cookie = Some(session.access.expose().to_string());
    let show =
        |key: Option<&str>| Credentials { key: key.map(String::from), access_token: good_cookie.clone() };
    let either = Access::Key(&[], Role::Viewer);
    let session_only = Access::Session(Role::Viewer);
    let by_key =
        office.auth.authenticate(&show(Some(secret.expose())), &either).await.expect("key").expect("caller");
    assert!(matches!(by_key.credential, Credential::Key { .. }));
    let wrong_key = office.auth.authenticate(&show(Some("osp_sk_wrong")), &either).await;
    assert_eq!(code(wrong_key), Some(Code::Unauthorized), "the cookie does not rescue a wrong key");
    let by_cookie =
        office.auth.authenticate(&show(Some("osp_sk_wrong")), &session_only).await.expect("cookie");
    assert!(by_cookie.is_some_and(|caller| matches!(caller.credential, Credential::Session { .. })));
    let key_only = Credentials { key: Some(secret.expose().into()), access_token: None };
    assert_eq!(code(office.auth.authenticate(&key_only, &session_only).await), Some(Code::Unauthorized));
    assert_eq!(
        code(office.auth.authenticate(&Credentials::default(), &either).await),
        Some(Code::Unauthorized)
    );
    assert!(
        office.auth.authenticate(&Credentials::default(), &Access::Public).await.expect("public").is_none()
    );
}

#[tokio::test]
async fn last_use_reaches_the_database() {
    let office = office(MINUTE).await;
    let caller = office.caller(&office.newcomer("ann@example.com").await).await;
    let (_, secret) = office.auth.create_key(&caller, &wish("backend")).await.expect("created");
    office.auth.flush_last_used(Flush::All).await.expect("flushed");
    assert_eq!(office.auth.list_keys(&caller).await.expect("keys")[0].last_used_at, None);
    office.auth.by_key(secret.expose()).await.expect("used");
    office.auth.flush_last_used(Flush::Due).await.expect("flushed");
    let at = office.auth.list_keys(&caller).await.expect("keys")[0].last_used_at.expect("noted");
    assert!((Timestamp::now().0 - at).abs() < 10 * SECOND);
}

#[tokio::test]
async fn only_hashes_are_stored() {
    let office = office(MINUTE).await;
    let session = office.newcomer("ann@example.com").await;
    let caller = office.caller(&session).await;
    let (_, secret) = office.auth.create_key(&caller, &wish("backend")).await.expect("created");
    let hashes: Vec<Vec<u8>> = office
        .store
        .read("test", |conn| {
            let mut all = session_rows::table.select(session_rows::token_hash).load(conn)?;
            all.extend(api_keys::table.select(api_keys::token_hash).load::<Vec<u8>>(conn)?);
            Ok(all)
        })
        .await
        .expect("rows");
    assert_eq!(hashes.len(), 3);
    for token in [session.access.expose(), session.refresh_text(), secret.expose()] {
        assert!(hashes.contains(&token::hash(token).to_vec()));
    }
}

#[test]
fn callers_can_be_asked_for_from_any_thread() {
    fn is_send<T: Send>(_: T) {}
    fn check(auth: &Auth, credentials: &Credentials) {
        is_send(auth.authenticate(credentials, &Access::Public));
        is_send(auth.sign_in("", String::new(), HOME));
        is_send(auth.flush_last_used(Flush::All));
        is_send(auth.sweep());
    }
    let _ = check;
}
