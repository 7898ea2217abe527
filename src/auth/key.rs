//! API keys: the rules for new ones, what state one is in, and the note of when each was last used, which is kept
//! in memory and written once a minute. The secret is shown once, by the answer that creates it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ipnet::{IpNet, Ipv4Net};
use serde::Serialize;
use utoipa::ToSchema;

use crate::auth::permission::{Role, normal_scopes};
use crate::auth::sql::keys::{self, ApiKey, KeyEvent, KeySecret, KeyTerms, OfSomebody, Words};
use crate::auth::token::{KEY_PREFIX, Token};
use crate::auth::{Auth, Caller};
use crate::db::changes::Change;
use crate::db::{Conn, DbError};
use crate::error::{Error, Result};
use crate::metering::meter::NAME_BYTES_MAX;
use crate::metering::time::{DAY, SECOND, Timestamp};

const MAX_NAME_CHARACTERS: usize = 255;
const MAX_ALLOWED_METERS: usize = 1000;
const MAX_ALLOWED_NETWORKS: usize = 100;
const MAX_SHOWN_CHARACTERS: usize = 60;
const MAX_GRACE_SECONDS: i64 = 86_400;
/// How much of the text stays readable in lists: `osp_sk_` and eleven characters.
const SHOWN_CHARACTERS: usize = 18;
const LISTED_EVENTS: i64 = 50;
/// As many as a workspace may have that can be used.
const LISTED_KEYS: i64 = 2000;
/// A key that ends before this ends soon.
pub const SOON: i64 = 14 * DAY;
/// A key that was not used for this long is perhaps not needed.
pub const UNUSED: i64 = 90 * DAY;
/// Lines of the log about keys that end, per day.
const WARNED_OF: i64 = 100;

/// What somebody asks of a new key.
#[derive(Debug, Default)]
pub struct NewKeyRequest {
    pub name: String,
    pub scopes: Vec<String>,
    pub allowed_meters: Vec<String>,
    /// Networks or addresses that it may be used from; empty: from everywhere.
    pub allowed_networks: Vec<String>,
    /// RFC 3339; empty for a key without end.
    pub expires_at: String,
}

impl NewKeyRequest {
    fn terms(&self, now: Timestamp) -> Result<KeyTerms> {
        let expires_at = match self.expires_at.as_str() {
            "" => None,
            text => Some(
                Timestamp::parse(text)
                    .ok_or_else(|| Error::parameter("invalid_expires_at", "expires_at must be RFC3339"))?,
            ),
        };
        let name = self.name.trim();
        if name.is_empty() {
            return Err(Error::invalid("name is required"));
        }
        if name.chars().count() > MAX_NAME_CHARACTERS || name.contains('\0') {
            let rule =
                format_args!("name must have at most {MAX_NAME_CHARACTERS} characters, none of them null");
            return Err(Error::invalid(rule));
        }
        if expires_at.is_some_and(|at| at <= now) {
            return Err(Error::invalid("expires_at must be in the future"));
        }
        Ok(KeyTerms {
            name: name.to_string(),
            scopes: Words(normal_scopes(&self.scopes)?),
            allowed_meters: Words(self.normal_meters()?),
            allowed_networks: Words(self.normal_networks()?),
            expires_at: expires_at.map(|at| at.0),
        })
    }

    /// As networks, without the bits of a host, each once.
    fn normal_networks(&self) -> Result<Vec<String>> {
        let mut networks: Vec<String> = Vec::new();
        for text in self.allowed_networks.iter().map(|text| text.trim()).filter(|text| !text.is_empty()) {
            let network = parse_network(text).ok_or_else(|| {
                let shown: String = text.chars().take(MAX_SHOWN_CHARACTERS).collect();
                Error::invalid(format_args!("allowed_networks: {shown:?} is no network such as 192.0.2.0/24"))
            })?;
            let network = network.to_string();
            if !networks.contains(&network) {
                networks.push(network);
            }
            if networks.len() > MAX_ALLOWED_NETWORKS {
                let rule = format_args!("allowed_networks may name at most {MAX_ALLOWED_NETWORKS}");
                return Err(Error::invalid(rule));
            }
        }
        Ok(networks)
    }

    /// Meters need not exist yet.
    fn normal_meters(&self) -> Result<Vec<String>> {
        let mut meters: Vec<String> = Vec::new();
        for name in self.allowed_meters.iter().map(|name| name.trim()).filter(|name| !name.is_empty()) {
            if meters.iter().any(|known| known == name) {
                continue;
            }
            if name.len() > NAME_BYTES_MAX {
                return Err(Error::invalid(format_args!(
                    "names in allowed_meters may have at most {NAME_BYTES_MAX} bytes"
                )));
            }
            if meters.len() == MAX_ALLOWED_METERS {
                return Err(Error::invalid(format_args!(
                    "allowed_meters may name at most {MAX_ALLOWED_METERS}"
                )));
            }
            meters.push(name.to_string());
        }
        Ok(meters)
    }
}

/// A network, or the one of a single address. What is IPv4 in the spelling of IPv6 is IPv4, as callers are.
pub fn parse_network(text: &str) -> Option<IpNet> {
    let network = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).ok()?;
    let mapped = match network {
        IpNet::V6(v6) => v6.addr().to_ipv4_mapped().zip(v6.prefix_len().checked_sub(MAPPED_BITS)),
        IpNet::V4(_) => None,
    };
    let network = match mapped {
        Some((address, length)) => IpNet::V4(Ipv4Net::new(address, length).ok()?),
        None => network,
    };
    Some(network.trunc())
}

/// Of an IPv6 address that stands for one of IPv4, before that.
const MAPPED_BITS: u8 = 96;

/// Where a key is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = ApiKeyStatus)]
pub enum Status {
    Active,
    /// Replaced, and still good for the rest of its grace period.
    Revoking,
    Revoked,
    Expired,
}

impl Status {
    pub fn of(key: &ApiKey, now: Timestamp) -> Status {
        match (key.revoked_at, key.expires_at) {
            (Some(revoked), _) if revoked <= now.0 => Status::Revoked,
            (_, Some(expires)) if expires <= now.0 => Status::Expired,
            (Some(_), _) => Status::Revoking,
            (None, _) => Status::Active,
        }
    }
}

fn new_secret() -> Result<(Token, KeySecret)> {
    let token = Token::new(KEY_PREFIX)?;
    let secret =
        KeySecret { hash: token.hash(), prefix: token.expose().chars().take(SHOWN_CHARACTERS).collect() };
    Ok((token, secret))
}

/// Makes a key in a transaction of the caller's own: for whoever has the database and no server.
pub fn make(
    conn: &mut Conn,
    owner: keys::Owner,
    wish: &NewKeyRequest,
    now: Timestamp,
) -> Result<(ApiKey, Token), DbError> {
    let terms = wish.terms(now)?;
    let (token, secret) = new_secret()?;
    Ok((keys::create(conn, owner, &terms, &secret, now)?, token))
}

impl Auth {
    /// The new key and its secret.
    pub async fn create_key(&self, caller: &Caller, wish: &NewKeyRequest) -> Result<(ApiKey, Token)> {
        let (standing, now) = (caller.standing(), Timestamp::now());
        let terms = wish.terms(now)?;
        let (token, secret) = new_secret()?;
        let work = move |conn: &mut Conn| {
            standing.check_role(conn, Role::Admin, now)?;
            keys::create(conn, standing.owner, &terms, &secret, now)
        };
        Ok((self.0.store.write("keys::create", work).await?, token))
    }

    /// The caller's own keys in the current workspace, newest first, ended ones too.
    pub async fn list_keys(&self, caller: &Caller) -> Result<Vec<ApiKey>> {
        let owner = caller.key_owner();
        self.0.store.read("keys::list", move |conn| keys::list(conn, owner)).await
    }

    /// Every key of the workspace that can still be used, whoever made it; of those that were not used for so many days,
    /// if that is asked. The one that was idle for longest comes first.
    pub async fn workspace_keys(&self, caller: &Caller, unused_days: Option<i64>) -> Result<Vec<OfSomebody>> {
        if unused_days.is_some_and(|days| !(1..=3650).contains(&days)) {
            return Err(Error::parameter("invalid_unused_days", "unused_days must be between 1 and 3650"));
        }
        let (workspace_id, now) = (caller.workspace_id, Timestamp::now());
        let work = move |conn: &mut Conn| keys::living(conn, workspace_id, now, LISTED_KEYS);
        let mut found = self.0.store.read("keys::living", work).await?;
        if let Some(days) = unused_days {
            found.retain(|(key, _)| idle_since(key) < now.0 - days * DAY);
        }
        found.sort_by_key(|(key, _)| idle_since(key));
        Ok(found)
    }

    /// A key of anybody in the workspace, with the address of whoever made it; 404 when there is none.
    pub async fn workspace_key(&self, caller: &Caller, id: &str) -> Result<OfSomebody> {
        let (workspace_id, id) = (caller.workspace_id, key_id(id)?);
        let work = move |conn: &mut Conn| keys::of_somebody(conn, workspace_id, &id);
        self.0.store.read("keys::of_somebody", work).await
    }

    /// Ends a key of anybody in the workspace.
    pub async fn revoke_any_key(&self, caller: &Caller, id: &str) -> Result<()> {
        let (standing, id, now) = (caller.standing(), key_id(id)?, Timestamp::now());
        let work = move |conn: &mut Conn| {
            standing.check_role(conn, Role::Owner, now)?;
            let owner = keys::owner(conn, standing.owner.workspace_id, &id)?;
            keys::revoke(conn, owner, &id, now)
        };
        let hash = self.0.store.write("keys::revoke", work).await?;
        self.0.keys.forget([hash.as_slice()]);
        self.0.store.changes().tell(Change::Key(hash));
        Ok(())
    }

    /// Counts keys for the metrics. To be called every few minutes.
    pub async fn count_keys(&self) -> Result<()> {
        let now = Timestamp::now();
        let (soon, long_ago) = (now.plus(SOON), now.plus(-UNUSED));
        let work = move |conn: &mut Conn| keys::census(conn, now, soon, long_ago);
        let census = self.0.store.read("keys::census", work).await?;
        for (state, count) in
            [("usable", census.living), ("expiring", census.expiring), ("unused", census.unused)]
        {
            metrics::gauge!("open_spanner_api_keys", "state" => state).set(count as f64);
        }
        Ok(())
    }

    /// Tells in the log which keys end soon. To be called once a day.
    pub async fn warn_of_expiry(&self) -> Result<()> {
        let now = Timestamp::now();
        let work = move |conn: &mut Conn| keys::expiring(conn, now, now.plus(SOON), WARNED_OF);
        for key in self.0.store.read("keys::expiring", work).await? {
            let keys::Expiring { name, email, workspace, expires_at } = key;
            let expires_at = Timestamp(expires_at).to_string();
            log::warn!(key = name, made_by = email, workspace, expires_at; "an API key ends soon");
        }
        Ok(())
    }

    /// Ends a key at once. Ending one that has ended already is fine; 404 for a key the caller does not have.
    pub async fn revoke_key(&self, caller: &Caller, id: &str) -> Result<()> {
        let (owner, id, now) = (caller.key_owner(), key_id(id)?, Timestamp::now());
        let hash =
            self.0.store.write("keys::revoke", move |conn| keys::revoke(conn, owner, &id, now)).await?;
        self.0.keys.forget([hash.as_slice()]);
        self.0.store.changes().tell(Change::Key(hash));
        Ok(())
    }

    /// Replaces a key by one on the same terms; the old one ends after the grace period.
    pub async fn rotate_key(&self, caller: &Caller, id: &str, grace_seconds: i64) -> Result<(ApiKey, Token)> {
        if !(0..=MAX_GRACE_SECONDS).contains(&grace_seconds) {
            let rule = format_args!("grace_period_seconds must be between 0 and {MAX_GRACE_SECONDS}");
            return Err(Error::invalid(rule));
        }
        let (standing, id, now) = (caller.standing(), key_id(id)?, Timestamp::now());
        let until = now.plus(grace_seconds * SECOND);
        let (token, secret) = new_secret()?;
        let work = move |conn: &mut Conn| {
            standing.check_role(conn, Role::Admin, now)?;
            keys::rotate(conn, standing.owner, &id, &secret, until, now)
        };
        let (key, old_hash) = self.0.store.write("keys::rotate", work).await?;
        self.0.keys.forget([old_hash.as_slice()]);
        self.0.store.changes().tell(Change::Key(old_hash));
        Ok((key, token))
    }

    /// What happened to the caller's keys, newest first.
    pub async fn key_events(&self, caller: &Caller) -> Result<Vec<KeyEvent>> {
        let owner = caller.key_owner();
        self.0.store.read("keys::events", move |conn| keys::events(conn, owner, LISTED_EVENTS)).await
    }

    /// Writes down when keys were last used. To be called every few seconds, and with [`Flush::All`] at shutdown.
    /// What could not be written is tried again next time.
    pub async fn flush_last_used(&self, flush: Flush) -> Result<()> {
        let now = Timestamp::now();
        let due = self.0.last_used.due(flush, now);
        for batch in due.chunks(FLUSH_BATCH) {
            let uses: Vec<(i64, Timestamp)> = batch.iter().map(|(one, at)| (one.key_id, *at)).collect();
            self.0.store.write("keys::note_use", move |conn| keys::note_use(conn, &uses)).await?;
            for (one, at) in batch {
                one.written.store(at.0, Ordering::Relaxed);
            }
        }
        Ok(())
    }
}

/// When a key was last used, or made.
pub fn idle_since(key: &ApiKey) -> i64 {
    key.last_used_at.unwrap_or(key.created_at)
}

/// Ids are UUIDs as this server prints them; nothing else is worth a query.
fn key_id(id: &str) -> Result<String> {
    match uuid::Uuid::try_parse(id) {
        Ok(_) => Ok(id.to_string()),
        Err(_) => Err(Error::not_found("API key")),
    }
}

/// Which notes of use are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flush {
    /// Those of keys whose stored time is older than a minute.
    Due,
    All,
}

/// Keys per transaction.
const FLUSH_BATCH: usize = 500;
/// How often the time of one key is written.
const FLUSH_EVERY: i64 = 60 * SECOND;
/// Finer than this nobody asks; so a busy key is not written to memory by every request.
const RESOLUTION: i64 = SECOND;

/// When each remembered key was last used.
#[derive(Default)]
pub(super) struct LastUsed(Mutex<HashMap<i64, Arc<Use>>>);

/// The last use of one key: known here, and in the database. Zero is never.
pub(super) struct Use {
    key_id: i64,
    at: AtomicI64,
    written: AtomicI64,
}

impl Use {
    pub(super) fn note(&self, now: Timestamp) {
        if now.0 - self.at.load(Ordering::Relaxed) >= RESOLUTION {
            self.at.store(now.0, Ordering::Relaxed);
        }
    }

    fn is_written(&self) -> bool {
        self.at.load(Ordering::Relaxed) <= self.written.load(Ordering::Relaxed)
    }
}

impl LastUsed {
    /// The note of a key just read from the database, which knows `written`.
    pub(super) fn of(&self, key_id: i64, written: Option<Timestamp>) -> Arc<Use> {
        let mut uses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = || {
            let written = written.map_or(0, |at| at.0);
            Arc::new(Use { key_id, at: AtomicI64::new(written), written: AtomicI64::new(written) })
        };
        uses.entry(key_id).or_insert_with(fresh).clone()
    }

    /// What is to be written, by key so that two servers lock rows in one order; forgets keys that nobody holds.
    fn due(&self, flush: Flush, now: Timestamp) -> Vec<(Arc<Use>, Timestamp)> {
        let mut uses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        uses.retain(|_, one| !one.is_written() || Arc::strong_count(one) > 1);
        let is_due =
            |one: &Use| flush == Flush::All || now.0 - one.written.load(Ordering::Relaxed) >= FLUSH_EVERY;
        let mut due: Vec<_> = uses
            .values()
            .filter(|one| !one.is_written() && is_due(one))
            .map(|one| (one.clone(), Timestamp(one.at.load(Ordering::Relaxed))))
            .collect();
        due.sort_by_key(|(one, _)| one.key_id);
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    const NOW: Timestamp = Timestamp(1_800_000_000 * SECOND);

    fn key(expires: Option<i64>, revoked: Option<i64>) -> ApiKey {
        ApiKey {
            id: 1,
            public_id: "k".into(),
            name: "k".into(),
            prefix: "osp_sk_".into(),
            scopes: Words::default(),
            allowed_meters: Words::default(),
            allowed_networks: Words::default(),
            expires_at: expires.map(|after| NOW.0 + after),
            revoked_at: revoked.map(|after| NOW.0 + after),
            created_at: 0,
            last_used_at: None,
        }
    }

    #[test]
    fn status_says_the_most_final_thing() {
        for (expires, revoked, want) in [
            (None, None, Status::Active),
            (Some(1), None, Status::Active),
            (Some(0), None, Status::Expired),
            (None, Some(1), Status::Revoking),
            (None, Some(0), Status::Revoked),
            (Some(-5), Some(-1), Status::Revoked),
            (Some(-5), Some(1), Status::Expired),
        ] {
            assert_eq!(Status::of(&key(expires, revoked), NOW), want, "{expires:?} {revoked:?}");
        }
    }

    fn wish(change: impl FnOnce(&mut NewKeyRequest)) -> Result<KeyTerms> {
        let mut wish = NewKeyRequest { name: " backend ".into(), ..NewKeyRequest::default() };
        change(&mut wish);
        wish.terms(NOW)
    }

    #[test]
    fn wishes_are_tidied() {
        let terms = wish(|wish| {
            wish.allowed_meters = [" a ", "a", "", "ghost", "*"].map(String::from).to_vec();
            wish.expires_at = "2099-01-01T00:00:00+02:00".into();
        })
        .expect("valid");
        assert_eq!(terms.name, "backend");
        assert_eq!(terms.scopes.0.len(), 5);
        assert_eq!(terms.allowed_meters.0, ["a", "ghost", "*"]);
        assert_eq!(
            terms.expires_at.map(|at| Timestamp(at).to_string()).as_deref(),
            Some("2098-12-31T22:00:00Z")
        );
    }

    #[test]
    fn networks_are_those_that_callers_come_from() {
        let network = |text: &str| parse_network(text).map(|network| network.to_string());
        for (text, normal) in [
            ("192.0.2.77/24", "192.0.2.0/24"),
            ("192.0.2.7", "192.0.2.7/32"),
            ("::ffff:192.0.2.7", "192.0.2.7/32"),
            ("::ffff:192.0.2.77/120", "192.0.2.0/24"),
            ("::ffff:0.0.0.0/96", "0.0.0.0/0"),
            ("2001:db8::1/32", "2001:db8::/32"),
            ("::/0", "::/0"),
        ] {
            assert_eq!(network(text).as_deref(), Some(normal), "{text}");
        }
        assert_eq!(network("192.0.2.0/33"), None);
    }

    #[test]
    fn bad_wishes_are_refused() {
        let code = |change: &dyn Fn(&mut NewKeyRequest)| wish(|wish| change(wish)).expect_err("refused").code;
        assert_eq!(code(&|wish| wish.name = " ".into()), Code::InvalidInput);
        assert_eq!(code(&|wish| wish.name = "x".repeat(256)), Code::InvalidInput);
        assert_eq!(code(&|wish| wish.name = "a\0b".into()), Code::InvalidInput);
        assert_eq!(code(&|wish| wish.scopes = vec!["nope".into()]), Code::InvalidInput);
        assert_eq!(code(&|wish| wish.expires_at = NOW.to_string()), Code::InvalidInput);
        assert_eq!(code(&|wish| wish.expires_at = "tomorrow".into()).as_str(), "invalid_expires_at");
        let crowd = (0..=MAX_ALLOWED_METERS).map(|at| at.to_string()).collect::<Vec<_>>();
        assert_eq!(code(&|wish| wish.allowed_meters = crowd.clone()), Code::InvalidInput);
    }

    #[test]
    fn use_is_written_at_once_and_then_once_a_minute() {
        let uses = LastUsed::default();
        let written = |flush, now: Timestamp| {
            let due = uses.due(flush, now);
            for (one, at) in &due {
                one.written.store(at.0, Ordering::Relaxed);
            }
            due.iter().map(|(one, at)| (one.key_id, *at)).collect::<Vec<_>>()
        };
        let one = uses.of(1, None);
        assert_eq!(written(Flush::All, NOW), [], "an unused key has nothing to write");
        one.note(NOW);
        assert_eq!(written(Flush::Due, NOW), [(1, NOW)]);
        let later = NOW.plus(5 * SECOND);
        one.note(later);
        assert_eq!(written(Flush::Due, later), []);
        assert_eq!(written(Flush::Due, NOW.plus(60 * SECOND)), [(1, later)]);
        one.note(later.plus(SECOND));
        assert_eq!(written(Flush::All, later.plus(SECOND)), [(1, later.plus(SECOND))]);
    }

    #[test]
    fn keys_that_nobody_holds_are_forgotten_once_written() {
        let uses = LastUsed::default();
        let one = uses.of(1, Some(NOW));
        let two = uses.of(2, Some(NOW));
        two.note(NOW.plus(2 * SECOND));
        drop((one, two));
        assert_eq!(uses.due(Flush::Due, NOW.plus(3 * SECOND)).len(), 0);
        assert_eq!(
            uses.0.lock().expect("lock").keys().collect::<Vec<_>>(),
            [&2],
            "its use is not written yet"
        );
    }
}
