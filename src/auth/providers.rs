//! Signing in with a provider (auth.md 4): Google, GitHub and any OpenID Connect provider. A sign-in begins here, goes on
//! there and comes back with a code; what it needs then is kept in the database, known by the hash of its state, and works
//! once. Whom the provider names is let in by the rules of [`judge`].

pub mod caller;
mod github;
mod oidc;

use std::sync::{PoisonError, RwLock};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::{digest, hmac};
use serde_json::json;

use crate::auth::permission::Role;
use crate::auth::providers::caller::{Caller as Http, failed};
use crate::auth::providers::github::GitHub;
use crate::auth::providers::oidc::{Addresses, Issuer};
use crate::auth::session::{Proof, SignedIn, normal_email};
use crate::auth::sql::identities::{self, Identity, Subject};
use crate::auth::sql::invitations;
use crate::auth::sql::keys::Owner;
use crate::auth::sql::members::{self, Touched};
use crate::auth::sql::users::{self, Account};
use crate::auth::sql::ways_in;
use crate::auth::standing::Standing;
use crate::auth::token::{self, Token};
use crate::auth::{Auth, Caller, Options};
pub use crate::config::OAuthClient as Registration;
use crate::config::{self, Oidc, Secret};
use crate::db::{Conn, DbError, audit};
use crate::error::{Code, Error, Result};
use crate::metering::time::{SECOND, Timestamp};
use crate::vault::{KeyRing, Place};

pub use crate::auth::sql::identities::Flow;

/// How long somebody may take at the provider.
pub const FLOW_LIFETIME: i64 = 600 * SECOND;
/// Sign-ins that are under way at once. Of more the oldest are forgotten: a flood of them fills no disk, and keeps nobody
/// from beginning one.
const FLOWS_MAX: i64 = 10_000;
/// Addresses to come back to, here and at the end, that are longer are nobody's.
pub const ADDRESS_BYTES_MAX: usize = 2048;

/// Whom a provider says it has before it.
#[derive(Clone, Debug)]
pub struct Profile {
    pub issuer: String,
    pub subject: String,
    pub email: String,
    pub email_verified: bool,
    /// `None`: it was not asked, or did not say.
    pub groups: Option<Vec<String>>,
}

/// One way to sign in.
pub struct Provider {
    pub id: &'static str,
    pub name: String,
    own: Registration,
    /// The one of the registration, or the one that took its place since.
    secret: RwLock<Option<Secret>>,
    kind: Kind,
    roles: Option<RolesOfGroups>,
}

enum Kind {
    Oidc(Box<Issuer>),
    GitHub(GitHub),
}

/// What groups at a provider mean in one workspace.
#[derive(Clone, Debug)]
struct RolesOfGroups {
    workspace: String,
    roles: Vec<(String, Role)>,
}

impl RolesOfGroups {
    fn of(settings: &Oidc) -> Option<RolesOfGroups> {
        let workspace = settings.workspace.clone()?;
        let pairs = settings.roles.iter();
        let roles = pairs.filter_map(|(group, role)| Some((group.clone(), Role::parse(role)?)));
        Some(RolesOfGroups { workspace, roles: roles.collect() }).filter(|map| !map.roles.is_empty())
    }

    /// The highest role that any of the groups gives.
    fn role(&self, groups: &[String]) -> Option<Role> {
        self.roles.iter().filter(|(group, _)| groups.contains(group)).map(|(_, role)| *role).max()
    }
}

/// The ways to sign in besides a password, in the order in which they are shown.
#[derive(Default)]
pub struct Providers {
    all: Vec<Provider>,
    domains: Vec<String>,
}

impl Providers {
    /// Calls nobody: a provider that is away is noticed by whoever signs in with it.
    pub fn new(settings: &config::OAuth) -> Result<Providers> {
        let mut all = Vec::new();
        if settings.is_empty() {
            return Ok(Providers::default());
        }
        let http = Http::new()?;
        if let Some(own) = settings.google.clone() {
            let kind = Kind::Oidc(Box::new(Issuer::fixed(
                Addresses::of_google(),
                "openid email profile",
                http.clone(),
            )));
            all.push(Provider::new("google", "Google", own, kind, None));
        }
        if let Some(own) = settings.github.clone() {
            let kind = Kind::GitHub(GitHub::new(&settings.github_url, http.clone()));
            all.push(Provider::new("github", "GitHub", own, kind, None));
        }
        if let Some(oidc) = &settings.oidc {
            let roles = RolesOfGroups::of(oidc);
            let claim = roles.is_some().then(|| oidc.groups_claim.clone());
            let issuer = Issuer::discovered(&oidc.issuer, &oidc.scopes, claim, http);
            let kind = Kind::Oidc(Box::new(issuer.vouching_for(oidc.verified_domains.clone())));
            all.push(Provider::new("oidc", &oidc.name, oidc.client.clone(), kind, roles));
        }
        Ok(Providers { all, domains: settings.domains.clone() })
    }

    /// Takes over secrets that changed; answers of which providers, by their variables. Another client is another
    /// registration, and needs a restart.
    pub fn renew(&self, settings: &config::OAuth) -> Vec<&'static str> {
        let mut renewed = Vec::new();
        for provider in &self.all {
            let (own, variable) = match provider.id {
                "google" => (settings.google.as_ref(), "OPEN_SPANNER_GOOGLE_OAUTH_CLIENT_SECRET"),
                "github" => (settings.github.as_ref(), "OPEN_SPANNER_GITHUB_OAUTH_CLIENT_SECRET"),
                _ => (settings.oidc.as_ref().map(|oidc| &oidc.client), "OPEN_SPANNER_OIDC_CLIENT_SECRET"),
            };
            if let Some(own) = own.filter(|own| own.client_id == provider.own.client_id) {
                let secret = own.client_secret.clone();
                *provider.secret.write().unwrap_or_else(PoisonError::into_inner) = secret;
                renewed.push(variable);
            }
        }
        renewed
    }

    pub fn iter(&self) -> impl Iterator<Item = &Provider> {
        self.all.iter()
    }

    /// 404 for one that is unknown or off. Letter case does not matter.
    pub fn find(&self, id: &str) -> Result<&Provider> {
        let found = self.all.iter().find(|provider| provider.id.eq_ignore_ascii_case(id));
        // without its name: it may be a stranger's words, and people are told this on the sign-in page
        found.ok_or_else(|| Error::not_found("there is no such sign-in provider"))
    }

    /// What people call it.
    pub fn name(&self, id: &str) -> String {
        self.find(id).map_or_else(|_| "this provider".to_owned(), |provider| provider.name.clone())
    }
}

impl Provider {
    fn new(
        id: &'static str,
        name: &str,
        own: Registration,
        kind: Kind,
        roles: Option<RolesOfGroups>,
    ) -> Self {
        let secret = RwLock::new(own.client_secret.clone());
        Provider { id, name: name.to_owned(), own, secret, kind, roles }
    }

    /// The registration with the secret of now.
    fn registration(&self) -> Registration {
        let client_secret = self.secret.read().unwrap_or_else(PoisonError::into_inner).clone();
        Registration { client_secret, ..self.own.clone() }
    }

    /// The fixed address to come back to, if there is one.
    pub fn redirect_url(&self) -> Option<&str> {
        self.own.redirect_url.as_deref()
    }

    fn issuer(&self) -> &str {
        match &self.kind {
            Kind::Oidc(issuer) => issuer.name(),
            Kind::GitHub(github) => github.name(),
        }
    }

    async fn says_who_it_is(&self) -> Result<bool> {
        match &self.kind {
            Kind::Oidc(issuer) => {
                Ok(issuer.addresses().await?.authorization_response_iss_parameter_supported)
            }
            Kind::GitHub(_) => Ok(false),
        }
    }

    async fn authorize_url(&self, state: &str, flow: &Flow) -> Result<String> {
        let (base, scopes) = match &self.kind {
            Kind::Oidc(issuer) => (issuer.addresses().await?.authorization_endpoint, issuer.scopes()),
            Kind::GitHub(github) => (github.authorize_url(), github::SCOPES),
        };
        let mut url = url::Url::parse(&base).map_err(failed)?;
        let challenge = digest::digest(&digest::SHA256, flow.verifier.as_bytes());
        url.query_pairs_mut()
            .append_pair("client_id", &self.own.client_id)
            .append_pair("redirect_uri", &flow.redirect_url)
            .append_pair("response_type", "code")
            .append_pair("scope", scopes)
            .append_pair("state", state)
            .append_pair("code_challenge", &URL_SAFE_NO_PAD.encode(challenge))
            .append_pair("code_challenge_method", "S256");
        if matches!(self.kind, Kind::Oidc(_)) {
            url.query_pairs_mut().append_pair("nonce", &flow.nonce);
        }
        Ok(url.into())
    }

    async fn profile(&self, code: &str, flow: &Flow) -> Result<Profile> {
        let own = self.registration();
        match &self.kind {
            Kind::Oidc(issuer) => issuer.profile(&own, code, flow).await,
            Kind::GitHub(github) => github.profile(&own, code, flow).await,
        }
    }
}

/// What somebody wants who starts a sign-in.
pub struct Wish {
    pub redirect_url: String,
    /// A path of this server.
    pub next: String,
    /// Who connects an account of the provider with their own.
    pub caller: Option<Caller>,
}

/// A sign-in on its way to the provider.
pub struct Started {
    pub url: String,
    pub state: String,
}

/// What a browser brought back.
#[derive(Debug, Default)]
pub struct Brought {
    /// The cookie.
    pub cookie: Option<String>,
    pub state: String,
    pub code: String,
    /// Who says so, if they do (RFC 9207).
    pub issuer: Option<String>,
    pub error: Option<String>,
    /// Whoever is signed in there.
    pub caller: Option<Caller>,
}

/// Where a sign-in ended.
pub enum Returned {
    SignedIn(Box<SignedIn>, String),
    Connected(String),
}

/// How somebody is let in.
#[derive(Debug, PartialEq, Eq)]
enum Entry {
    /// As a user that the provider's account is connected with from now on.
    Connect(i64),
    /// As a new user.
    Register,
}

/// Whether whom the provider names, who is not connected with anybody, is let in, and as whom. An account that anybody may
/// have made with that address is nobody's proof: its password is, or that the address was proven before.
fn judge(
    profile: &Profile,
    account: Option<&Account>,
    is_invited: bool,
    has_role: bool,
    options: &Options,
) -> Result<Entry> {
    if !profile.email_verified || profile.email.is_empty() {
        return Err(unverified());
    }
    match account {
        Some(account) => {
            if account.is_proven() || !options.password_sign_in {
                return Ok(Entry::Connect(account.user_id));
            }
            Err(Error::forbidden(
                "an account with this address exists: sign in with its password, then connect the provider in the settings",
            ))
        }
        None if options.registration_enabled || has_role => Ok(Entry::Register),
        None if options.invited_may_register && is_invited => Ok(Entry::Register),
        None => Err(Error::new(Code::RegistrationDisabled, "new accounts are closed on this server")),
    }
}

/// Whether an address that a provider has verified belongs to one of the domains.
fn is_within(profile: &Profile, domains: &[String]) -> bool {
    let domain = profile.email.rsplit_once('@').map(|(_, domain)| domain.to_lowercase());
    domains.is_empty() || profile.email_verified && domain.is_some_and(|domain| domains.contains(&domain))
}

impl Auth {
    pub fn providers(&self) -> &Providers {
        &self.0.outside.providers
    }

    /// Begins a sign-in: 404 for a provider that is not there, 503 for one that does not answer.
    pub async fn start_with_provider(
        &self,
        id: &str,
        wish: Wish,
        address: std::net::IpAddr,
    ) -> Result<Started> {
        let provider = self.0.outside.providers.find(id)?;
        let now = Timestamp::now();
        self.0.throttle.start_with_provider(address, now)?;
        if wish.redirect_url.len() > ADDRESS_BYTES_MAX {
            return Err(Error::invalid("the name of this server is too long"));
        }
        let (state, nonce, verifier) = (Token::new("")?, Token::new("")?, Token::new("")?);
        let flow = Flow {
            nonce: nonce.expose().to_owned(),
            verifier: verifier.expose().to_owned(),
            redirect_url: wish.redirect_url,
            next: wish.next,
            user_id: wish.caller.map(|caller| caller.user_id),
        };
        let url = provider.authorize_url(state.expose(), &flow).await?;
        let (hash, id, sealed) = (state.hash(), provider.id, sealed(state.expose(), &flow)?);
        let work = move |conn: &mut Conn| {
            identities::begin(conn, &hash, id, &sealed, now.plus(FLOW_LIFETIME))?;
            identities::forget_flows(conn, FLOWS_MAX)
        };
        self.0.store.write("provider_flows::begin", work).await?;
        Ok(Started { url, state: state.expose().to_owned() })
    }

    /// Goes on with what a browser brought back from the provider. An error says why not, in words for the person.
    pub async fn return_from_provider(&self, id: &str, brought: Brought) -> Result<Returned> {
        let provider = self.0.outside.providers.find(id)?;
        let flow = self.finish_flow(provider, &brought).await?;
        if brought.error.is_some() {
            return Err(Error::forbidden("the provider did not let you in"));
        }
        let is_theirs = match brought.issuer.as_deref() {
            Some(issuer) => issuer == provider.issuer(),
            None => !provider.says_who_it_is().await?,
        };
        if !is_theirs {
            return Err(Error::forbidden("the answer is that of another provider"));
        }
        if brought.code.is_empty() {
            return Err(Error::invalid("the provider sent no code"));
        }
        let mut profile = provider.profile(&brought.code, &flow).await?;
        profile.email = normal_email(&profile.email).unwrap_or_default();
        if !is_within(&profile, &self.0.outside.providers.domains) {
            return Err(Error::forbidden("addresses of this domain may not sign in here"));
        }
        let who = Subject {
            provider: provider.id,
            issuer: profile.issuer.clone(),
            subject: profile.subject.clone(),
            email: profile.email.clone(),
        };
        match flow.user_id {
            Some(user_id) => {
                let owner = brought.caller.filter(|caller| caller.user_id == user_id);
                let owner = owner.ok_or_else(sign_in_again)?;
                self.connect(user_id, &profile, who, Some(owner.standing())).await?;
                Ok(Returned::Connected(flow.next))
            }
            None => {
                let proof = Proof::Identity { issuer: who.issuer.clone(), subject: who.subject.clone() };
                let user_id = self.admit(provider, &profile, who).await?;
                let workspace_id = self.give_role(provider, user_id, &profile).await?;
                let session = self.open_session(user_id, workspace_id, proof).await?;
                let session = session.ok_or_else(|| Error::forbidden("it was disconnected a moment ago"))?;
                Ok(Returned::SignedIn(Box::new(session), flow.next))
            }
        }
    }

    /// The sign-in that this state belongs to; it is over with that.
    async fn finish_flow(&self, provider: &Provider, brought: &Brought) -> Result<Flow> {
        let expired =
            || Error::forbidden("it took too long, was finished before, or began in another browser");
        let hash = token::hash(&brought.state);
        let is_same_browser = brought.cookie.as_ref().is_some_and(|cookie| token::hash(cookie) == hash);
        if !is_same_browser {
            return Err(expired());
        }
        let (id, now) = (provider.id, Timestamp::now());
        let work = move |conn: &mut Conn| identities::finish(conn, &hash, id, now);
        let stored = self.0.store.write("provider_flows::finish", work).await?.ok_or_else(expired)?;
        opened(&brought.state, &stored)
    }

    /// Who somebody at a provider is here; new ones are connected or registered.
    async fn admit(&self, provider: &Provider, profile: &Profile, who: Subject) -> Result<i64> {
        let (now, wanted) = (Timestamp::now(), who.clone());
        let find = move |conn: &mut Conn| {
            if let Some(user_id) = identities::user_of(conn, &wanted.issuer, &wanted.subject)? {
                return Ok(Err(user_id));
            }
            let account = users::account(conn, &wanted.email)?;
            Ok(Ok((account, invitations::is_anybody_asking(conn, &wanted.email, now)?)))
        };
        let (account, is_invited) = match self.0.store.read("identities::find", find).await? {
            Err(user_id) => return Ok(user_id),
            Ok(found) => found,
        };
        let groups = profile.groups.as_deref().unwrap_or_default();
        let has_role = provider.roles.as_ref().is_some_and(|map| map.role(groups).is_some());
        let entry = judge(profile, account.as_ref(), is_invited, has_role, &self.0.options);
        // somebody comes with the address of an account, and is not taken for its owner
        let entry = entry.inspect_err(|_| self.record_failure(account.as_ref().map(|known| known.user_id)));
        match entry? {
            Entry::Connect(user_id) => {
                self.connect(user_id, profile, who, None).await?;
                Ok(user_id)
            }
            Entry::Register => {
                let work = move |conn: &mut Conn| {
                    let member = users::register(conn, &who.email, "", now)?;
                    identities::verify_email(conn, member.user_id, now)?;
                    identities::add(conn, member.user_id, &who, now)?;
                    audit::states(None, Some(json!({"provider": who.provider})));
                    Ok(member.user_id)
                };
                self.0.store.write("users::register", work).await
            }
        }
    }

    /// From now on whoever this is at the provider is this user: because the user wants it so, who is signed in, or because
    /// the provider has verified their address. An address that it has not verified proves nothing and connects nobody.
    async fn connect(
        &self,
        user_id: i64,
        profile: &Profile,
        who: Subject,
        owner: Option<Standing>,
    ) -> Result<()> {
        if !profile.email_verified || profile.email.is_empty() {
            return Err(unverified());
        }
        let now = Timestamp::now();
        let work = move |conn: &mut Conn| {
            let (touched, ended) = match &owner {
                Some(owner) => {
                    owner.check(conn, now)?;
                    (Touched::default(), None)
                }
                None => take_over(conn, user_id, now)?,
            };
            let member = users::anywhere(conn, user_id)?;
            if let Some(member) = &member {
                users::tell(member);
            }
            identities::add(conn, user_id, &who, now)?;
            if member.is_some_and(|member| member.email == who.email) {
                identities::verify_email(conn, user_id, now)?;
            }
            let mut shown = json!({"provider": who.provider, "email": who.email});
            if let Some(ended) = ended {
                shown["ended"] = ended;
            }
            audit::states(None, Some(shown));
            Ok(touched)
        };
        self.tell(self.0.store.write("identities::add", work).await?);
        Ok(())
    }

    /// Gives the role of their groups, in the workspace of the settings; answers that workspace. Whoever has none of the
    /// groups any more is no member any more, unless they are its last owner.
    async fn give_role(&self, provider: &Provider, user_id: i64, profile: &Profile) -> Result<Option<i64>> {
        let Some(map) = provider.roles.clone() else { return Ok(None) };
        let groups = profile.groups.clone().unwrap_or_default();
        let (wanted, now) = (map.role(&groups), Timestamp::now());
        let work = move |conn: &mut Conn| {
            let Some(workspace_id) = identities::workspace_id(conn, &map.workspace)? else {
                audit::nothing_changed();
                log::error!(workspace = map.workspace; "OPEN_SPANNER_OIDC_WORKSPACE names no workspace");
                return Ok((None, Touched::default()));
            };
            let touched = set_role(conn, workspace_id, user_id, wanted, now)?;
            Ok((wanted.map(|_| workspace_id), touched))
        };
        let (workspace_id, touched) = self.0.store.write("members::by_group", work).await?;
        self.tell(touched);
        Ok(workspace_id)
    }

    // For the page of one's own -----------------------------------------------------------------------

    /// The caller's accounts at providers, and whether they have a password besides.
    pub async fn identities(&self, caller: &Caller) -> Result<(Vec<Identity>, bool)> {
        let user_id = caller.user_id;
        let work = move |conn: &mut Conn| {
            Ok((identities::list(conn, user_id)?, identities::has_password(conn, user_id)?))
        };
        self.0.store.read("identities::list", work).await
    }

    /// Disconnects a provider; 409 when the caller could not sign in any more.
    pub async fn disconnect(&self, caller: &Caller, id: &str) -> Result<()> {
        let (user_id, id) = (caller.user_id, id.to_owned());
        let by_password = self.0.options.password_sign_in;
        let work = move |conn: &mut Conn| {
            // of two who go at once one is the last
            users::lock(conn, user_id)?;
            let gone = identities::remove(conn, user_id, &id)?;
            let gone = gone.ok_or_else(|| Error::not_found("connected account"))?;
            let has_password = by_password && identities::has_password(conn, user_id)?;
            if !has_password && identities::list(conn, user_id)?.is_empty() {
                return Err(Error::conflict("it is your only way to sign in: set a password first").into());
            }
            audit::about(&gone.public_id, &gone.email);
            audit::states(Some(json!({"provider": gone.provider})), None);
            Ok(())
        };
        self.0.store.write("identities::remove", work).await
    }
}

fn unverified() -> Error {
    Error::forbidden("the provider has not verified your address")
}

fn sign_in_again() -> Error {
    Error::forbidden("sign in again, then connect the provider")
}

/// The account is whose the address is. Where nobody has proven it so far (and passwords open nothing, or [`judge`] would
/// have asked for this one), whoever made it may be a stranger: nothing is left with which they could come back.
fn take_over(
    conn: &mut Conn,
    user_id: i64,
    now: Timestamp,
) -> Result<(Touched, Option<audit::Shown>), DbError> {
    if users::lock(conn, user_id)?.is_proven() {
        return Ok((Touched::default(), None));
    }
    let ended = ways_in::end_all(conn, user_id, now)?;
    Ok((ended.touched, Some(ended.shown)))
}

/// What lies in the database of a sign-in that is under way: all that it says is under a key that only the browser can tell, by
/// the state. Where somebody goes in the end may be a page of an invitation, whose address is its secret; the verifier makes a
/// code worth a token; and the way back is what a request said of itself.
fn sealed(state: &str, flow: &Flow) -> Result<Flow> {
    let ring = ring_of(state)?;
    each_text(flow, |place, text| ring.seal(place, text))
}

/// What [`sealed`] made, for whoever brings the state.
fn opened(state: &str, stored: &Flow) -> Result<Flow> {
    let ring = ring_of(state)?;
    each_text(stored, |place, text| ring.open(place, text))
}

fn each_text(flow: &Flow, work: impl Fn(Place<'static>, &str) -> Result<String>) -> Result<Flow> {
    let at = |column: &'static str| Place {
        table: "provider_flows",
        column,
        row: "",
        workspace_id: audit::SERVER,
    };
    Ok(Flow {
        nonce: work(at("nonce"), &flow.nonce)?,
        verifier: work(at("verifier"), &flow.verifier)?,
        redirect_url: work(at("redirect_url"), &flow.redirect_url)?,
        next: work(at("next"), &flow.next)?,
        user_id: flow.user_id,
    })
}

fn ring_of(state: &str) -> Result<KeyRing> {
    let key = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, state.as_bytes()), b"next");
    KeyRing::parse(&format!("state:{}", STANDARD.encode(key)))
}

/// Brings one membership to where it should be.
fn set_role(
    conn: &mut Conn,
    workspace_id: i64,
    user_id: i64,
    wanted: Option<Role>,
    now: Timestamp,
) -> Result<Touched, DbError> {
    members::lock(conn, workspace_id)?;
    let present = members::role_of(conn, workspace_id, user_id)?;
    let is_last_owner =
        present == Some(Role::Owner) && !members::has_another_owner(conn, workspace_id, user_id)?;
    if present == wanted || is_last_owner {
        audit::nothing_changed();
        return Ok(Touched::default());
    }
    if let Some(member) = users::anywhere(conn, user_id)? {
        // nobody is signed in yet: it is the one who is about to be
        users::tell(&member);
    }
    audit::in_workspace(workspace_id);
    audit::states(Some(json!({"role": present})), Some(json!({"role": wanted, "by": "groups"})));
    match (present, wanted) {
        (None, Some(role)) => {
            members::join(conn, workspace_id, user_id, role, now).map(|()| Touched::default())
        }
        (_, Some(role)) => members::set_role(conn, workspace_id, user_id, role, now),
        (_, None) => members::remove(conn, Owner { workspace_id, user_id }, None, now),
    }
}

#[cfg(test)]
mod tests;
