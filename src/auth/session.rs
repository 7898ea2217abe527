//! Signing up, in, on and out; and the two cookies that carry a session. A session is a short access token and a
//! long refresh token; neither ever appears in a body or a log.

use std::future::Future;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::auth::device::{Attempt, DEVICE_LIFETIME};
use crate::auth::sql::members::Touched;
use crate::auth::sql::sessions::{self, Login, Pair, Shown};
use crate::auth::sql::sign_ins::{self, Device};
use crate::auth::sql::users::{self, Account};
use crate::auth::sql::{devices, identities, resets};
use crate::auth::throttle::is_trusted;
use crate::auth::token::{self, ACCESS_PREFIX, REFRESH_PREFIX, Token, TokenHash};
use crate::auth::{Auth, Caller, User, members, password};
use crate::chance;
use crate::config::SecureCookies;
use crate::db::{Conn, DbError, audit};
use crate::error::{Code, Error, Result};
use crate::metering::time::{DAY, SECOND, Timestamp};

pub const ACCESS_COOKIE: &str = "open_spanner_access";
pub const REFRESH_COOKIE: &str = "open_spanner_refresh";

const ACCESS_LIFETIME: i64 = 15 * 60 * SECOND;
const REFRESH_LIFETIME: i64 = 30 * DAY;
/// For how long a refresh token that was just used up works once more: two browser tabs wake up together.
const REFRESH_GRACE: i64 = 10 * SECOND;

/// For how long a refresh token that was used up is known, so that its second use is noticed.
const REUSE_MEMORY: i64 = DAY;

/// 128 bits that sign the forms of one sign-in.
const FORM_KEY_BYTES: usize = 16;

/// Longer addresses cannot receive mail (RFC 5321).
const MAX_EMAIL_CHARACTERS: usize = 320;
/// Expired tokens deleted per transaction.
const SWEEP_BATCH: usize = 1000;

/// A session that just began, or went on.
pub struct SignedIn {
    pub user: User,
    pub access: Token,
    pub access_expires_at: Timestamp,
    /// None where the session is not renewed.
    pub refresh: Option<(Token, Timestamp)>,
}

impl SignedIn {
    /// The values of two `Set-Cookie` headers.
    pub fn cookies(&self, secure: bool) -> [String; 2] {
        let refresh = match &self.refresh {
            Some((token, expires_at)) => set_cookie(REFRESH_COOKIE, token.expose(), *expires_at, secure),
            // what the browser may have of it belongs to no session any more
            None => clearing_cookie(REFRESH_COOKIE, secure),
        };
        [set_cookie(ACCESS_COOKIE, self.access.expose(), self.access_expires_at, secure), refresh]
    }
}

/// The tokens that a request shows: what they belong to ends when another session begins.
#[derive(Clone, Debug, Default)]
pub struct Tokens {
    pub access: Option<String>,
    pub refresh: Option<String>,
}

impl Tokens {
    fn hashes(&self) -> Vec<TokenHash> {
        self.access.iter().chain(&self.refresh).map(|token| token::hash(token)).collect()
    }
}

/// Tokens on their way out, before it is known to whom.
struct NewTokenPair {
    access: Token,
    refresh: Token,
    pair: Pair,
}

impl NewTokenPair {
    /// Neither outlives the sign-in.
    fn within(self, ends_at: Timestamp) -> NewTokenPair {
        NewTokenPair { pair: self.pair.within(ends_at), ..self }
    }

    fn new(now: Timestamp) -> Result<NewTokenPair> {
        let (access, refresh) = (Token::new(ACCESS_PREFIX)?, Token::new(REFRESH_PREFIX)?);
        let pair = Pair {
            access: (access.hash(), now.plus(ACCESS_LIFETIME)),
            refresh: Some((refresh.hash(), now.plus(REFRESH_LIFETIME))),
        };
        Ok(NewTokenPair { access, refresh, pair })
    }

    fn given_to(self, user: User) -> SignedIn {
        SignedIn {
            user,
            access: self.access,
            access_expires_at: self.pair.access.1,
            refresh: self.pair.refresh.map(|(_, expires_at)| (self.refresh, expires_at)),
        }
    }
}

/// What shows that somebody is the user as whom they want to come in. It has to hold at the moment in which they do.
#[derive(Clone, Debug)]
pub(super) enum Proof {
    /// The stored hash that their password fits.
    Password(String),
    /// Who they are at a provider.
    Identity { issuer: String, subject: String },
}

impl Proof {
    fn holds(&self, conn: &mut Conn, account: &Account) -> Result<bool, DbError> {
        match self {
            Proof::Password(hash) => Ok(*hash == account.password_hash),
            Proof::Identity { issuer, subject } => {
                Ok(identities::user_of(conn, issuer, subject)? == Some(account.user_id))
            }
        }
    }
}

/// Trimmed and lower-cased; 400 when it cannot be an address.
pub fn normal_email(text: &str) -> Result<String> {
    let email = text.trim().to_lowercase();
    let has_both_parts =
        email.rsplit_once('@').is_some_and(|(name, host)| !name.is_empty() && !host.is_empty());
    let is_address = has_both_parts && !email.contains(is_no_address) && !text.contains(becomes_another);
    if !is_address || email.chars().count() > MAX_EMAIL_CHARACTERS {
        return Err(Error::invalid("email must be an address"));
    }
    Ok(email)
}

/// Whether lower case makes a letter of ASCII of it: the sign of Kelvin becomes a k, and an address with it somebody else's.
fn becomes_another(c: char) -> bool {
    !c.is_ascii() && c.to_lowercase().any(|lower| lower.is_ascii())
}

/// Characters that end a mail header, start another address, cannot be seen, or look like others on purpose.
fn is_no_address(c: char) -> bool {
    let is_invisible = matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
    let is_full_width = matches!(c, '\u{ff00}'..='\u{ffef}');
    c.is_control()
        || c.is_whitespace()
        || matches!(c, ',' | ';' | '<' | '>' | '"' | '\\')
        || is_invisible
        || is_full_width
}

impl Auth {
    /// 403 while nobody may register. To be asked before the body is read.
    pub fn check_registration(&self) -> Result<()> {
        if self.0.options.registration_enabled || self.0.options.invited_may_register {
            return Ok(());
        }
        Err(Error::new(Code::RegistrationDisabled, "registration is disabled on this server"))
    }

    /// 403 where passwords open nothing.
    pub(super) fn check_password_sign_in(&self) -> Result<()> {
        match self.0.options.password_sign_in {
            true => Ok(()),
            false => {
                Err(Error::forbidden("people sign in with a provider on this server, not with a password"))
            }
        }
    }

    /// Like [`Auth::register`]; where registration is not open, with an invitation that this address could accept.
    pub async fn register_invited(
        &self,
        email: &str,
        password: String,
        address: IpAddr,
        invitation: &str,
    ) -> Result<User> {
        if !self.0.options.registration_enabled && self.0.options.invited_may_register {
            let (wanted, hash, now) = (normal_email(email)?, token::hash(invitation), Timestamp::now());
            let find = move |conn: &mut Conn| members::opens_registration(conn, &hash, &wanted, now);
            if !self.0.store.vital().read("invitations::opens_registration", find).await? {
                let needed = "registration on this server needs an invitation";
                return Err(Error::new(Code::RegistrationDisabled, needed));
            }
        }
        self.register(email, password, address).await
    }

    /// A new user with a workspace of their own. Does not sign in.
    pub async fn register(&self, email: &str, password: String, address: IpAddr) -> Result<User> {
        self.check_registration()?;
        self.check_password_sign_in()?;
        let email = normal_email(email)?;
        password::check(&password)?;
        let now = Timestamp::now();
        self.0.throttle.register(address, now)?;
        let password_hash = self.0.passwords.turn().await?.hash(password).await?;
        let work = move |conn: &mut Conn| users::register(conn, &email, &password_hash, now);
        Ok(self.0.store.write("users::register", work).await?.into())
    }

    /// A session for whoever knows the password. Everything that does not fit is the same 401, after about the same
    /// time; too many failures are 429, for right passwords too.
    pub async fn sign_in(&self, email: &str, password: String, address: IpAddr) -> Result<SignedIn> {
        self.sign_in_with(email, password, address, None).await
    }

    /// Like [`Auth::sign_in`], in a browser that shows what it is known by.
    pub async fn sign_in_with(
        &self,
        email: &str,
        password: String,
        address: IpAddr,
        device: Option<&str>,
    ) -> Result<SignedIn> {
        self.check_password_sign_in()?;
        let email = normal_email(email).unwrap_or_default();
        let attempt = self.attempt(&email, address, device).await?;
        self.check_attempt(&email, attempt).await?;
        if email.is_empty() || password.is_empty() || password.len() > password::MAX_BYTES {
            self.attempt_failed(None, attempt);
            return Err(Error::unauthorized());
        }
        // a hash that changed while it was checked is checked once more: it may be a newer one of the same password
        for _ in 0..2 {
            let (user_id, hash) = self.prove_password(&email, &password, attempt).await?;
            let proof = Proof::Password(hash.clone());
            let Some(session) = self.open_session(user_id, None, proof).await? else { continue };
            self.attempt_succeeded(&email, attempt);
            if password::is_outdated(&hash) {
                self.renew_hash(user_id, password, hash).await;
            }
            return Ok(session);
        }
        Err(Error::unauthorized())
    }

    /// Whose password that is, and the hash that it fits.
    async fn prove_password(&self, email: &str, password: &str, attempt: Attempt) -> Result<(i64, String)> {
        let wanted = email.to_owned();
        let find = move |conn: &mut Conn| users::credentials(conn, &wanted);
        let known = self.0.store.vital().read("users::credentials", find).await?;
        let known = known.filter(|(_, hash)| !hash.is_empty());
        let turn = self.0.passwords.turn().await?;
        // once more: while this one waited, others for the same account may have failed
        self.check_attempt(email, attempt).await?;
        let stored = known.as_ref().map(|(_, hash)| hash.clone());
        let fits = turn.verify(password.to_owned(), stored).await?;
        match known {
            Some(known) if fits => Ok(known),
            known => {
                self.attempt_failed(Some(email), attempt);
                self.record_failure(known.map(|(user_id, _)| user_id));
                Err(Error::unauthorized())
            }
        }
    }

    /// Leaves a row in the trail of a known user who was not let in; strangers who guess names leave none. Nobody waits for it:
    /// an answer that takes longer would tell who has an account.
    pub(super) fn record_failure(&self, user_id: Option<i64>) {
        let Some(user_id) = user_id else { return };
        let work = move |conn: &mut Conn| {
            users::tell_of(conn, user_id)?;
            audit::by(audit::Actor::nobody());
            Ok(())
        };
        let store = self.0.store.clone();
        self.note(async move { store.write("sessions::fail", work).await });
    }

    /// Has a failure written down, in the scene of the call; where too many wait for that, it is left out.
    pub(super) fn note(&self, write: impl Future<Output = Result<()>> + Send + 'static) {
        let Ok(place) = self.0.notes.clone().try_acquire_owned() else {
            return log::warn!("too many wrong passwords at once: one was not recorded");
        };
        tokio::spawn(audit::carried_on(async move {
            let _place = place;
            if let Err(error) = write.await {
                log::warn!(error:%; "a wrong password was not recorded");
            }
        }));
    }

    /// The password is known for this moment only. Whoever cannot be helped now is at the next sign-in.
    async fn renew_hash(&self, user_id: i64, password: String, outdated: String) {
        let renewed = async {
            let hash = self.0.passwords.turn().await?.hash(password).await?;
            let work = move |conn: &mut Conn| users::replace_hash(conn, user_id, &outdated, &hash);
            self.0.store.write("users::replace_hash", work).await
        };
        if let Err(error) = renewed.await {
            log::warn!(error:% = error.message; "an old password hash stays for now");
        }
    }

    /// A session for a user who has proven who they are, in this workspace of theirs or in their home; none when what proved
    /// it has changed since.
    pub(super) async fn open_session(
        &self,
        user_id: i64,
        wanted: Option<i64>,
        proof: Proof,
    ) -> Result<Option<SignedIn>> {
        let now = Timestamp::now();
        let ends_at = self.sign_in_ends_at(now);
        let (fresh, form_key) =
            (NewTokenPair::new(now)?.within(ends_at), chance::secret::<FORM_KEY_BYTES>()?);
        let (pair, device) = (fresh.pair, device());
        let work = move |conn: &mut Conn| {
            let account = users::lock(conn, user_id)?;
            if !proof.holds(conn, &account)? {
                audit::nothing_changed();
                return Ok(None);
            }
            if account.disabled_at.is_some() {
                return Err(Error::forbidden("this account is disabled: ask whoever runs this server").into());
            }
            let workspace_id = wanted.map_or_else(|| users::home(conn, user_id, now), Ok)?;
            let login_id = chance::id().to_string();
            let login = Login { login_id, form_key: form_key.to_vec(), user_id, workspace_id };
            sign_ins::begin(conn, &login, &device, now, ends_at)?;
            sessions::open(conn, &login, &pair, now)?;
            let member = member(conn, &login)?;
            users::tell(&member);
            Ok(Some(member))
        };
        let opened = self.0.store.vital().write("sessions::open", work).await;
        let member = opened.inspect_err(|error| {
            if error.code == Code::Forbidden {
                self.record_failure(Some(user_id));
            }
        })?;
        Ok(member.map(|member| fresh.given_to(member.into())))
    }

    /// The session of the caller in the workspace that `find` names, in the same transaction: the sign-in goes on under
    /// another name and with other tokens, no longer than before. Its forms end, so that none is sent to another workspace
    /// than the one it was shown in. 401 when it has ended while the call was under way.
    pub(super) async fn move_session(
        &self,
        operation: &'static str,
        caller: &Caller,
        shown: Tokens,
        find: impl Fn(&mut Conn) -> Result<i64, DbError> + Send + 'static,
    ) -> Result<SignedIn> {
        let (now, user_id, own) = (Timestamp::now(), caller.user_id, caller.login_id()?.to_owned());
        let (fresh, form_key) = (NewTokenPair::new(now)?, chance::secret::<FORM_KEY_BYTES>()?);
        let (pair, device) = (fresh.pair, device());
        let (refresh, access_ends_at) = (shown.refresh.as_deref().map(token::hash), caller.ends_at());
        let work = move |conn: &mut Conn| {
            let account = users::lock(conn, user_id)?;
            let is_renewable = match &refresh {
                Some(hash) => sessions::is_refresh_of(conn, &own, hash, now, REFRESH_GRACE)?,
                None => false,
            };
            let mut ended = Vec::new();
            let ends_at = sessions::end_login(conn, &own, &mut ended)?.filter(|at| *at > now);
            let ends_at = ends_at.filter(|_| account.disabled_at.is_none()).ok_or_else(unauthorized)?;
            let workspace_id = find(conn)?;
            audit::in_workspace(workspace_id);
            // an access token by itself is worth no more afterwards than it was
            let pair = match is_renewable {
                true => pair.within(ends_at),
                false => Pair { refresh: None, ..pair }.within(ends_at.min(access_ends_at)),
            };
            let login_id = chance::id().to_string();
            let login = Login { login_id, form_key: form_key.to_vec(), user_id, workspace_id };
            sign_ins::begin(conn, &login, &device, now, ends_at)?;
            sessions::open(conn, &login, &pair, now)?;
            Ok((member(conn, &login)?, ended, pair))
        };
        let (member, ended, pair) = self.0.store.write(operation, work).await?;
        self.tell(Touched { sessions: ended, keys: Vec::new() });
        Ok(NewTokenPair { pair, ..fresh }.given_to(member.into()))
    }

    /// New tokens for a refresh token, which is used up by it.
    pub async fn refresh(&self, refresh_token: &str) -> Result<SignedIn> {
        if !refresh_token.starts_with(REFRESH_PREFIX) {
            return Err(Error::unauthorized());
        }
        let (now, hash) = (Timestamp::now(), token::hash(refresh_token));
        let fresh = NewTokenPair::new(now)?;
        let pair = fresh.pair;
        let work = move |conn: &mut Conn| {
            let login = match sessions::use_up(conn, &hash, now, REFRESH_GRACE, REUSE_MEMORY)? {
                Shown::Good(login) => login,
                Shown::Again(_) => return Ok(None),
                Shown::Unknown => return Err(unauthorized()),
            };
            let Some(ends_at) = sign_ins::go_on(conn, &login.login_id, now)? else {
                return Err(unauthorized());
            };
            sessions::open(conn, &login, &pair.within(ends_at), now)?;
            Ok(Some((member(conn, &login)?, ends_at)))
        };
        match self.0.store.vital().write("sessions::refresh", work).await? {
            Some((member, ends_at)) => Ok(fresh.within(ends_at).given_to(member.into())),
            None => Err(self.end_stolen(hash).await?),
        }
    }

    /// A refresh token came a second time: its sign-in ends, for the thief and for the other.
    async fn end_stolen(&self, hash: TokenHash) -> Result<Error> {
        let work = move |conn: &mut Conn| sessions::close(conn, &[hash]);
        let sessions = self.0.store.write("sessions::reuse", work).await?;
        self.tell(Touched { sessions, keys: Vec::new() });
        Ok(Error::unauthorized())
    }

    fn sign_in_ends_at(&self, now: Timestamp) -> Timestamp {
        now.plus(self.0.options.session_max_age.as_micros().min(i64::MAX as u128 / 2) as i64)
    }

    /// Ends the sign-ins whose tokens are shown, and everything refreshed from them. Unknown tokens are fine.
    pub async fn sign_out(&self, shown: Tokens) -> Result<()> {
        let hashes = shown.hashes();
        if hashes.is_empty() {
            return Ok(());
        }
        let ended =
            self.0.store.vital().write("sessions::close", move |conn| sessions::close(conn, &hashes)).await?;
        self.tell(Touched { sessions: ended, keys: Vec::new() });
        Ok(())
    }

    /// Deletes expired tokens, in small transactions; answers how many. To be called every few minutes.
    pub async fn sweep(&self) -> Result<usize> {
        let mut swept = 0;
        loop {
            let now = Timestamp::now();
            let work = move |conn: &mut Conn| sessions::sweep(conn, now, SWEEP_BATCH as i64);
            let count = self.0.store.write("sessions::sweep", work).await?;
            swept += count;
            if count < SWEEP_BATCH {
                break;
            }
        }
        let now = Timestamp::now();
        let work = move |conn: &mut Conn| {
            resets::sweep(conn, now)?;
            identities::sweep(conn, now)?;
            devices::sweep(conn, now.plus(-DEVICE_LIFETIME))?;
            sign_ins::sweep(conn, now)
        };
        self.0.store.write("sign_ins::sweep", work).await?;
        Ok(swept)
    }
}

/// Where the call that signs in comes from.
fn device() -> Device {
    let (address, user_agent) = audit::origin();
    Device { address, user_agent }
}

/// 401 when the user left the workspace of the session.
fn member(conn: &mut Conn, login: &Login) -> Result<users::Member, DbError> {
    users::member(conn, login.user_id, login.workspace_id)?.ok_or_else(unauthorized)
}

fn unauthorized() -> DbError {
    Error::unauthorized().into()
}

// Cookies -----------------------------------------------------------------------------------------

/// Whether the cookies of this answer are `Secure`.
pub fn is_secure(setting: SecureCookies, peer: IpAddr, trusted: &[IpNet], proto: Option<&str>) -> bool {
    match setting {
        SecureCookies::Always => true,
        SecureCookies::Never => false,
        SecureCookies::Auto => {
            // the first element is the browser's own; proxies append theirs
            let scheme = proto.and_then(|list| list.split(',').next()).unwrap_or_default();
            scheme.trim().eq_ignore_ascii_case("https") && is_trusted(peer, trusted)
        }
    }
}

/// The value of a cookie in a `Cookie` header; the first of several.
pub fn cookie<'a>(header: &'a str, name: &str) -> Option<&'a str> {
    let mut pairs = header.split(';').filter_map(|pair| pair.trim().split_once('='));
    let (_, value) = pairs.find(|(found, _)| *found == name)?;
    Some(value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value))
        .filter(|value| !value.is_empty())
}

fn set_cookie(name: &str, value: &str, expires_at: Timestamp, secure: bool) -> String {
    let secure = if secure { "; Secure" } else { "" };
    format!("{name}={value}; Path=/; Expires={}; HttpOnly{secure}; SameSite=Lax", http_date(expires_at))
}

/// The values of two `Set-Cookie` headers that make a browser forget its session.
pub fn clearing_cookies(secure: bool) -> [String; 2] {
    [ACCESS_COOKIE, REFRESH_COOKIE].map(|name| clearing_cookie(name, secure))
}

fn clearing_cookie(name: &str, secure: bool) -> String {
    let secure = if secure { "; Secure" } else { "" };
    format!("{name}=; Path=/; Expires={}; Max-Age=0; HttpOnly{secure}; SameSite=Lax", http_date(Timestamp(0)))
}

/// `Thu, 01 Jan 1970 00:00:00 GMT`.
fn http_date(at: Timestamp) -> String {
    let at = jiff::Timestamp::from_microsecond(at.0).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    at.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_normalised() {
        assert_eq!(normal_email("  Ann@Example.COM ").expect("valid"), "ann@example.com");
        assert_eq!(normal_email("Ü@EXÄMPLE.com").expect("valid"), "ü@exämple.com");
        let long = format!("{}@b", "x".repeat(320));
        let odd = [
            "@",
            "a@",
            "@b",
            "a@b\r\nBcc: x@y",
            "a b@c",
            "a@b,c@d",
            "a\u{200b}@b",
            "\u{ff41}@b.example",
            "a\u{202e}@b",
            "\u{212a}ate@b.example",
            "a@\u{212a}.example",
            "\u{130}da@b.example",
        ];
        for bad in ["", "   ", "nobody.example.com", "a\0@b", &long].into_iter().chain(odd) {
            let error = normal_email(bad).expect_err("refused");
            assert!(error.code == Code::InvalidInput && error.message.contains("email"), "{bad:?}");
        }
    }

    #[test]
    fn cookies_are_read_from_the_header() {
        let header = "theme=dark; open_spanner_access=osp_at_x;open_spanner_refresh=\"osp_rt_y\"; open_spanner_access=z";
        assert_eq!(cookie(header, ACCESS_COOKIE), Some("osp_at_x"));
        assert_eq!(cookie(header, REFRESH_COOKIE), Some("osp_rt_y"));
        assert_eq!(cookie(header, "open_spanner"), None);
        assert_eq!(cookie("open_spanner_access=", ACCESS_COOKIE), None);
        assert_eq!(cookie("", ACCESS_COOKIE), None);
    }

    #[test]
    fn cookies_are_written_as_browsers_expect() {
        let at = Timestamp::parse("2026-06-01T12:00:00.9Z").expect("time");
        assert_eq!(
            set_cookie(ACCESS_COOKIE, "osp_at_x", at, false),
            "open_spanner_access=osp_at_x; Path=/; Expires=Mon, 01 Jun 2026 12:00:00 GMT; HttpOnly; SameSite=Lax"
        );
        assert!(
            set_cookie(ACCESS_COOKIE, "osp_at_x", at, true).ends_with("; HttpOnly; Secure; SameSite=Lax")
        );
        assert_eq!(
            clearing_cookies(false)[1],
            "open_spanner_refresh=; Path=/; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Max-Age=0; HttpOnly; SameSite=Lax"
        );
        assert!(clearing_cookies(true)[0].contains("; Secure"));
    }

    #[test]
    fn cookies_are_secure_when_the_browser_came_over_https() {
        let trusted: Vec<IpNet> = vec!["10.0.0.0/8".parse().expect("net")];
        let proxy: IpAddr = "10.1.2.3".parse().expect("address");
        let stranger: IpAddr = "192.0.2.1".parse().expect("address");
        let auto = |peer, proto| is_secure(SecureCookies::Auto, peer, &trusted, proto);
        assert!(auto(proxy, Some("https")));
        assert!(auto(proxy, Some(" HTTPS , http")));
        assert!(!auto(proxy, Some("http, https")));
        assert!(!auto(proxy, None));
        assert!(!auto(stranger, Some("https")));
        assert!(is_secure(SecureCookies::Always, stranger, &trusted, None));
        assert!(!is_secure(SecureCookies::Never, proxy, &trusted, Some("https")));
    }
}
