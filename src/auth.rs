//! Who is asking. A request shows an API key or an access token; [`Auth`] turns it into a [`Caller`], whom
//! [`permission::allow`] then judges. Role and membership are read together with the credential and remembered for
//! a few seconds at most, so removal, demotion and revocation are felt everywhere within that time, and at once on
//! the server where they were ordered. Expiry is checked on every use.

pub mod account;
mod cache;
pub mod device;
pub mod key;
pub mod link_token;
pub mod mail;
pub mod members;
pub mod password;
pub mod permission;
pub mod preferences;
pub mod providers;
pub mod session;
pub mod sql;
mod standing;
pub mod throttle;
pub mod token;

use std::collections::HashSet;
use std::net::IpAddr;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use serde::Serialize;
use tokio::sync::Semaphore;
use utoipa::ToSchema;

use crate::auth::cache::CredentialCache;
use crate::auth::key::LastUsed;
use crate::auth::permission::{Access, Grants, Role};
use crate::auth::preferences::Preferences;
use crate::auth::providers::Providers;
use crate::auth::sql::users::Member;
use crate::auth::sql::{keys, sessions};
use crate::auth::throttle::Throttle;
use crate::config::Config;
use crate::db::audit::Actor;
use crate::db::changes::Change;
use crate::db::pool::{self, Reader};
use crate::db::{Conn, Store};
use crate::error::{Error, Result};
use crate::metering::time::Timestamp;

/// Whoever was authenticated, as every handler sees them. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Caller(Arc<Identity>);

impl Deref for Caller {
    type Target = Identity;

    fn deref(&self) -> &Identity {
        &self.0
    }
}

/// A user in a workspace, and how they proved it.
#[derive(Debug)]
pub struct Identity {
    pub workspace_id: i64,
    pub user_id: i64,
    pub role: Role,
    pub user: User,
    pub credential: Credential,
    /// What the user chose about the pages; of a key nothing.
    pub preferences: Preferences,
}

#[derive(Debug)]
pub enum Credential {
    Session {
        expires_at: Timestamp,
        /// Signs the forms of the dashboard.
        form_key: Vec<u8>,
        login_id: String,
    },
    Key {
        id: i64,
        public_id: String,
        name: String,
        grants: Grants,
        /// Empty: every meter.
        allowed_meters: HashSet<String>,
        /// Where it may be used from; `None`: everywhere.
        allowed_networks: Option<Vec<IpNet>>,
        expires_at: Option<Timestamp>,
        revoked_at: Option<Timestamp>,
    },
}

/// The public fields of a user, in the order of the wire.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct User {
    pub id: String,
    pub email: String,
    pub workspace_id: String,
    pub workspace_name: String,
    #[schema(value_type = String)]
    pub role: Role,
    pub created_at: Timestamp,
}

impl From<Member> for User {
    fn from(member: Member) -> User {
        User {
            id: member.user_public_id,
            email: member.email,
            workspace_id: member.workspace_public_id,
            workspace_name: member.workspace_name,
            role: member.role,
            created_at: Timestamp(member.created_at),
        }
    }
}

impl Caller {
    /// Whose share of the database's connections this caller reads from.
    pub fn reader(&self) -> Reader {
        let credential = match &self.credential {
            Credential::Key { id, .. } => pool::Credential::Key(*id),
            Credential::Session { .. } => pool::Credential::User(self.user_id),
        };
        Reader { workspace_id: self.workspace_id, credential }
    }

    /// Who is put down for what the caller changes.
    pub fn actor(&self) -> Actor {
        match &self.credential {
            Credential::Session { .. } => {
                Actor { kind: "user", id: self.user.id.clone(), name: self.user.email.clone() }
            }
            Credential::Key { public_id, name, .. } => {
                Actor { kind: "api_key", id: public_id.clone(), name: name.clone() }
            }
        }
    }

    fn new(member: Member, credential: Credential) -> Caller {
        Caller::preferring(member, credential, Preferences::default())
    }

    fn preferring(member: Member, credential: Credential, preferences: Preferences) -> Caller {
        let (workspace_id, user_id, role) = (member.workspace_id, member.user_id, member.role);
        let user = member.into();
        Caller(Arc::new(Identity { workspace_id, user_id, role, user, credential, preferences }))
    }

    fn with_key(member: Member, key: keys::ApiKey) -> Caller {
        let credential = Credential::Key {
            id: key.id,
            public_id: key.public_id,
            name: key.name,
            grants: Grants::of(key.scopes.0.iter().map(String::as_str)),
            allowed_meters: key.allowed_meters.0.into_iter().collect(),
            // one that cannot be read allows nothing
            allowed_networks: (!key.allowed_networks.0.is_empty())
                .then(|| key.allowed_networks.0.iter().filter_map(|text| key::parse_network(text)).collect()),
            expires_at: key.expires_at.map(Timestamp),
            revoked_at: key.revoked_at.map(Timestamp),
        };
        Caller::new(member, credential)
    }

    /// Whose keys the caller manages.
    pub fn key_owner(&self) -> keys::Owner {
        keys::Owner { workspace_id: self.workspace_id, user_id: self.user_id }
    }

    /// 403 when the API key is confined to other meters. The name is compared as it was sent; a request that names
    /// no meter (`""`) is out of reach of every confined key, even of one that lists `*`.
    pub fn ensure_meter_allowed(&self, name: &str) -> Result<()> {
        let Credential::Key { allowed_meters, .. } = &self.credential else { return Ok(()) };
        if allowed_meters.is_empty() {
            return Ok(());
        }
        if name.trim().is_empty() {
            return Err(Error::forbidden("the API key is limited to certain meters, and none is named here"));
        }
        if allowed_meters.contains(name) || allowed_meters.contains("*") {
            return Ok(());
        }
        Err(Error::forbidden(format_args!("the API key may not use the meter {name:?}")))
    }

    /// 403 when the API key is confined to other networks.
    pub fn ensure_network_allowed(&self, address: IpAddr) -> Result<()> {
        let Credential::Key { allowed_networks: Some(networks), .. } = &self.credential else {
            return Ok(());
        };
        let address = address.to_canonical();
        match networks.iter().any(|network| network.contains(&address)) {
            true => Ok(()),
            false => Err(Error::forbidden(format_args!("the API key may not be used from {address}"))),
        }
    }

    /// When the credential ends by itself, at the latest.
    fn ends_at(&self) -> Timestamp {
        match &self.credential {
            Credential::Session { expires_at, .. } => *expires_at,
            Credential::Key { expires_at, revoked_at, .. } => {
                expires_at.iter().chain(revoked_at).min().copied().unwrap_or(Timestamp(i64::MAX))
            }
        }
    }

    fn is_alive(&self, now: Timestamp) -> bool {
        self.ends_at() > now
    }
}

/// What a request shows of itself; both may be there.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    pub key: Option<String>,
    pub access_token: Option<String>,
}

/// Reads the credentials of a request. `header` gives the first value of a header (or metadata entry) by its
/// lower-case name. gRPC takes no sessions and simply has no `cookie` header.
pub fn credentials_of<'h>(header: impl Fn(&'static str) -> Option<&'h [u8]>) -> Credentials {
    let named = |name| header(name).and_then(|value| not_blank(&String::from_utf8_lossy(value)));
    let bearer = || {
        let value = String::from_utf8_lossy(header("authorization")?);
        value.strip_prefix("Bearer ").or_else(|| value.strip_prefix("bearer ")).and_then(not_blank)
    };
    let cookies = header("cookie").map(String::from_utf8_lossy).unwrap_or_default();
    Credentials {
        key: named("x-open-spanner-api-key").or_else(|| named("x-api-key")).or_else(bearer),
        access_token: session::cookie(&cookies, session::ACCESS_COOKIE).map(String::from),
    }
}

fn not_blank(text: &str) -> Option<String> {
    Some(text.trim()).filter(|text| !text.is_empty()).map(String::from)
}

/// What the operator decides.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How long a credential may be believed without asking the database again.
    pub cache_ttl: Duration,
    pub registration_enabled: bool,
    /// Where registration is not open: whether an invitation opens it.
    pub invited_may_register: bool,
    /// Off: people come in with a provider only.
    pub password_sign_in: bool,
    /// How long a sign-in lasts at most, however often it is refreshed.
    pub session_max_age: Duration,
}

/// Who is talked to besides callers and the database.
#[derive(Default)]
pub struct Outside {
    pub providers: Providers,
    pub mail: Option<mail::Mail>,
}

/// The office that knows callers. Cheap to clone.
#[derive(Clone)]
pub struct Auth(Arc<Inner>);

struct Inner {
    store: Store,
    options: Options,
    keys: CredentialCache<KnownKey>,
    sessions: CredentialCache<Caller>,
    last_used: LastUsed,
    passwords: password::Hasher,
    throttle: Throttle,
    /// One permit for each thing that is being written down while nobody waits for it.
    notes: Arc<Semaphore>,
    outside: Outside,
}

struct KnownKey {
    caller: Caller,
    last_used: Arc<key::Use>,
}

/// Keys, and as many sessions, remembered at once.
const REMEMBERED: u64 = 20_000;
/// Failed sign-ins that are being written down. As many more as are tried meanwhile are known from the log only.
const NOTES_AT_ONCE: usize = 64;

impl Auth {
    /// Must be called inside the runtime whose blocking threads it will use.
    pub fn new(store: Store, options: Options) -> Auth {
        Auth::with(store, options, Outside::default())
    }

    /// Like [`Auth::new`], with others to talk to.
    pub fn with(store: Store, options: Options, outside: Outside) -> Auth {
        Auth(Arc::new(Inner {
            keys: CredentialCache::new(store.epochs(), options.cache_ttl, REMEMBERED),
            sessions: CredentialCache::new(store.epochs(), options.cache_ttl, REMEMBERED),
            store,
            last_used: LastUsed::default(),
            passwords: password::Hasher::new(),
            throttle: Throttle::default(),
            notes: Arc::new(Semaphore::new(NOTES_AT_ONCE)),
            outside,
            options,
        }))
    }

    /// Forgets what another server changed.
    pub fn forget(&self, change: &Change) {
        match change {
            Change::Key(hash) => self.0.keys.forget([hash.as_slice()]),
            Change::Session(hash) => self.0.sessions.forget([hash.as_slice()]),
            Change::Anything => {
                self.0.keys.forget_all();
                self.0.sessions.forget_all();
            }
            Change::Meters(_) | Change::Plans(_) | Change::Workspace(_) => {}
        }
    }

    /// Takes over secrets that changed in the settings; answers which, by their variables.
    pub fn renew(&self, config: &Config) -> Vec<&'static str> {
        let mut renewed = self.0.outside.providers.renew(&config.auth.oauth);
        // without a mail server at the start nobody is promised a mail
        if let (Some(mail), Some(settings)) = (&self.0.outside.mail, &config.mail) {
            match mail.mailer.renew(settings) {
                Ok(()) => renewed.push("OPEN_SPANNER_SMTP_URL"),
                Err(error) => log::error!("{}", error.message),
            }
        }
        renewed
    }

    pub fn options(&self) -> &Options {
        &self.0.options
    }

    /// Who shows these credentials on a route of this kind. A key decides alone where keys are taken, right or
    /// wrong; elsewhere it is not looked at. Nobody on public routes.
    pub async fn authenticate(&self, credentials: &Credentials, access: &Access) -> Result<Option<Caller>> {
        let caller = match (access, &credentials.key, &credentials.access_token) {
            (Access::Public, _, _) => return Ok(None),
            (Access::Key(..), Some(key), _) => self.by_key(key).await?,
            (_, _, Some(token)) => self.by_access_token(token).await?,
            (_, _, None) => return Err(Error::unauthorized()),
        };
        Ok(Some(caller))
    }

    /// The caller with this API key, and a note that the key was used.
    pub async fn by_key(&self, text: &str) -> Result<Caller> {
        if !text.starts_with(token::KEY_PREFIX) {
            return Err(Error::unauthorized());
        }
        let hash = token::hash(text);
        let load = async || {
            let found = self.0.store.vital().read("keys::find", move |conn| keys::find(conn, &hash)).await?;
            Ok(found.map(|(member, key)| {
                let last_used = self.0.last_used.of(key.id, key.last_used_at.map(Timestamp));
                KnownKey { caller: Caller::with_key(member, key), last_used }
            }))
        };
        let known = self.0.keys.get_or_load(hash, load).await?.ok_or_else(Error::unauthorized)?;
        let now = Timestamp::now();
        if !known.caller.is_alive(now) {
            return Err(Error::unauthorized());
        }
        known.last_used.note(now);
        Ok(known.caller.clone())
    }

    /// Whether the session of the caller is still there, as the database has it now.
    pub async fn is_signed_in(&self, caller: &Caller) -> Result<bool> {
        let (login_id, now) = (caller.login_id()?.to_owned(), Timestamp::now());
        let work = move |conn: &mut Conn| sessions::is_open(conn, &login_id, now);
        self.0.store.read("sessions::is_open", work).await
    }

    /// The caller with this access token.
    pub async fn by_access_token(&self, text: &str) -> Result<Caller> {
        if !text.starts_with(token::ACCESS_PREFIX) {
            return Err(Error::unauthorized());
        }
        let hash = token::hash(text);
        let load = async || {
            let find = move |conn: &mut Conn| sessions::find(conn, &hash);
            let Some(found) = self.0.store.vital().read("sessions::find", find).await? else {
                return Ok(None);
            };
            let sessions::Found { member, expires_at, form_key, login_id, preferences } = found;
            let expires_at = Timestamp(expires_at);
            let credential = Credential::Session { expires_at, form_key, login_id };
            Ok(Some(Caller::preferring(member, credential, preferences.read()?)))
        };
        let caller = self.0.sessions.get_or_load(hash, load).await?.ok_or_else(Error::unauthorized)?;
        if !caller.is_alive(Timestamp::now()) {
            return Err(Error::unauthorized());
        }
        Ok((*caller).clone())
    }
}

#[cfg(test)]
mod tests;
