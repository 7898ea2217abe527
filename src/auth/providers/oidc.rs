//! An OpenID Connect provider: its discovery document and its keys, fetched when they are first needed and remembered, and
//! what its tokens say. Signatures and claims are checked by `openidconnect`; which of them are asked for is said here.

use std::str::FromStr;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use openidconnect::core::{CoreIdToken, CoreIdTokenVerifier, CoreJsonWebKeySet, CoreJwsSigningAlgorithm};
use openidconnect::{ClaimsVerificationError, ClientId, IssuerUrl, Nonce, SignatureVerificationError};
use serde::Deserialize;
use tokio::sync::Mutex;

use crate::auth::providers::caller::{Caller, failed};
use crate::auth::providers::{Flow, Profile, Registration};
use crate::clock;
use crate::error::{Error, Result};
use crate::metering::json::{Map, Value};

/// A provider may move its addresses and keys; they are asked for again after this.
const MEMORY: Duration = Duration::from_secs(3600);
/// A token signed with a key that nobody knows has the keys fetched again, no more often than this.
const KEYS_PAUSE: Duration = Duration::from_secs(1);
/// One that did not answer is left alone for this long.
const FAILURE_PAUSE: Duration = Duration::from_secs(2);

/// Where a provider is to be found.
#[derive(Clone, Debug, Deserialize)]
pub struct Addresses {
    pub issuer: String,
    pub authorization_endpoint: String,
    pub token_endpoint: String,
    pub jwks_uri: String,
    pub userinfo_endpoint: Option<String>,
    #[serde(default)]
    pub token_endpoint_auth_methods_supported: Vec<String>,
    /// Each of its answers says whose it is (RFC 9207), so one that does not is somebody else's.
    #[serde(default)]
    pub authorization_response_iss_parameter_supported: bool,
}

impl Addresses {
    /// Google's, which have not changed in years; its sign-in starts without asking it.
    pub fn of_google() -> Addresses {
        Addresses {
            issuer: "https://accounts.google.com".to_owned(),
            authorization_endpoint: "https://accounts.google.com/o/oauth2/auth".to_owned(),
            token_endpoint: "https://oauth2.googleapis.com/token".to_owned(),
            jwks_uri: "https://www.googleapis.com/oauth2/v3/certs".to_owned(),
            userinfo_endpoint: None,
            token_endpoint_auth_methods_supported: vec!["client_secret_post".to_owned()],
            authorization_response_iss_parameter_supported: false,
        }
    }
}

/// A provider of this kind.
pub struct Issuer {
    issuer: String,
    scopes: String,
    groups_claim: Option<String>,
    /// Whose addresses it gives out itself: they are verified, though it does not say so.
    verified_domains: Vec<String>,
    fixed: Option<Addresses>,
    caller: Caller,
    addresses: Mutex<Known<Addresses>>,
    keys: Mutex<Known<CoreJsonWebKeySet>>,
}

/// What was fetched, and when somebody last tried to.
struct Known<T> {
    value: Option<(T, Instant)>,
    failed: Option<Instant>,
}

impl<T> Default for Known<T> {
    fn default() -> Self {
        Known { value: None, failed: None }
    }
}

impl<T: Clone> Known<T> {
    /// What is young enough, or a refusal while the provider is left alone.
    fn remembered(&self, memory: Duration) -> Option<Result<T>> {
        let old = self.value.as_ref();
        let is_resting = self.failed.is_some_and(|at| clock::since(at) < FAILURE_PAUSE);
        match old {
            Some((value, at)) if is_resting || clock::since(*at) < memory => Some(Ok(value.clone())),
            None if is_resting => Some(Err(failed("it did not answer a moment ago"))),
            _ => None,
        }
    }

    /// Takes in what came of asking; one that is away does not make what it said before untrue.
    fn learn(&mut self, fetched: Result<T>) -> Result<T> {
        match (fetched, &self.value) {
            (Ok(value), _) => {
                *self = Known { value: Some((value.clone(), clock::moment())), failed: None };
                Ok(value)
            }
            (Err(error), old) => {
                self.failed = Some(clock::moment());
                old.as_ref().map(|(value, _)| value.clone()).ok_or(error)
            }
        }
    }
}

impl Issuer {
    pub fn discovered(issuer: &str, scopes: &str, groups_claim: Option<String>, caller: Caller) -> Issuer {
        Issuer {
            issuer: issuer.to_owned(),
            scopes: scopes.to_owned(),
            groups_claim,
            verified_domains: Vec::new(),
            fixed: None,
            caller,
            addresses: Mutex::default(),
            keys: Mutex::default(),
        }
    }

    pub fn fixed(addresses: Addresses, scopes: &str, caller: Caller) -> Issuer {
        let issuer = addresses.issuer.clone();
        Issuer { fixed: Some(addresses), ..Issuer::discovered(&issuer, scopes, None, caller) }
    }

    /// Some providers, such as Microsoft Entra, never say whether an address is verified.
    pub fn vouching_for(self, verified_domains: Vec<String>) -> Issuer {
        Issuer { verified_domains, ..self }
    }

    pub fn name(&self) -> &str {
        &self.issuer
    }

    pub fn scopes(&self) -> &str {
        &self.scopes
    }

    pub async fn addresses(&self) -> Result<Addresses> {
        if let Some(fixed) = &self.fixed {
            return Ok(fixed.clone());
        }
        let mut known = self.addresses.lock().await;
        if let Some(remembered) = known.remembered(MEMORY) {
            return remembered;
        }
        let fetched = self.discover().await;
        known.learn(fetched)
    }

    async fn discover(&self) -> Result<Addresses> {
        let url = format!("{}/.well-known/openid-configuration", self.issuer.trim_end_matches('/'));
        let text = self.caller.text(self.caller.get(&url)?).await?;
        let found: Addresses = serde_json::from_str(&text).map_err(failed)?;
        // the word of another issuer is worth nothing here
        if found.issuer != self.issuer {
            return Err(failed(format_args!(
                "its discovery document is that of {:?}: OPEN_SPANNER_OIDC_ISSUER must be the same, to the letter",
                found.issuer
            )));
        }
        Ok(found)
    }

    /// Its keys; young ones when those that are remembered did not do.
    async fn keys(&self, memory: Duration) -> Result<CoreJsonWebKeySet> {
        let url = self.addresses().await?.jwks_uri;
        let mut known = self.keys.lock().await;
        if let Some(remembered) = known.remembered(memory) {
            return remembered;
        }
        let fetched = async {
            let text = self.caller.text(self.caller.get(&url)?).await?;
            serde_json::from_str(&text).map_err(failed)
        };
        let fetched = fetched.await;
        known.learn(fetched)
    }

    /// Who signed in, for the code that they brought back.
    pub async fn profile(&self, own: &Registration, code: &str, flow: &Flow) -> Result<Profile> {
        let addresses = self.addresses().await?;
        let answer = self.exchange(&addresses, own, code, flow).await?;
        let text =
            |name: &str| answer.as_object().and_then(|fields| fields.get(name)).and_then(Value::as_str);
        let id_token = text("id_token").ok_or_else(|| failed("its answer has no id_token"))?;
        let token = CoreIdToken::from_str(id_token).map_err(|_| failed("its id_token is none"))?;
        self.check(&token, own, flow).await?;
        // checked: what else it says is read from the same text
        let mut claims = claims_of(id_token).ok_or_else(|| failed("its id_token is none"))?;
        if claims.get("azp").is_some_and(|azp| azp.as_str() != Some(&own.client_id)) {
            return Err(failed("its id_token is for another client"));
        }
        let lacks_groups = self.groups_claim.as_ref().is_some_and(|claim| !claims.contains_key(claim));
        if (lacks_groups || !claims.contains_key("email"))
            && let (Some(url), Some(access)) = (&addresses.userinfo_endpoint, text("access_token"))
        {
            self.add_userinfo(&mut claims, url, access).await?;
        }
        self.read(&claims)
    }

    async fn exchange(&self, at: &Addresses, own: &Registration, code: &str, flow: &Flow) -> Result<Value> {
        let mut form = vec![
            ("grant_type", "authorization_code"),
            ("code", code),
            ("redirect_uri", &flow.redirect_url),
            ("code_verifier", &flow.verifier),
        ];
        let methods = &at.token_endpoint_auth_methods_supported;
        let by_post = !methods.is_empty() && !methods.iter().any(|method| method == "client_secret_basic");
        let secret = own.client_secret.as_ref().map(|secret| secret.expose());
        if secret.is_none() || by_post {
            form.push(("client_id", &own.client_id));
        }
        if let Some(secret) = secret.filter(|_| by_post) {
            form.push(("client_secret", secret));
        }
        let mut request = self.caller.post(&at.token_endpoint, &form)?;
        if let Some(secret) = secret.filter(|_| !by_post) {
            let encoded =
                |text: &str| url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
            request = request.basic_auth(encoded(&own.client_id), Some(encoded(secret)));
        }
        self.caller.json(request).await
    }

    /// Signature, issuer, audience, expiry, nonce. Keys that do not fit are fetched anew once.
    async fn check(&self, token: &CoreIdToken, own: &Registration, flow: &Flow) -> Result<()> {
        let nonce = Nonce::new(flow.nonce.clone());
        let verdict = |keys: CoreJsonWebKeySet| {
            let issuer = IssuerUrl::new(self.issuer.clone()).map_err(failed)?;
            // keys of the provider only: a shared secret signs nothing here, and `none` is no signature
            let verifier =
                CoreIdTokenVerifier::new_public_client(ClientId::new(own.client_id.clone()), issuer, keys)
                    .set_allowed_algs(ALGORITHMS);
            Ok::<_, Error>(token.claims(&verifier, &nonce).map(drop))
        };
        let mut verdict_of_known = verdict(self.keys(MEMORY).await?)?;
        if is_about_keys(&verdict_of_known) {
            verdict_of_known = verdict(self.keys(KEYS_PAUSE).await?)?;
        }
        verdict_of_known.map_err(|error| {
            log::warn!(issuer = self.issuer, error:%; "an id_token was refused");
            Error::forbidden("the provider's word could not be checked")
        })
    }

    async fn add_userinfo(&self, claims: &mut Map, url: &str, access_token: &str) -> Result<()> {
        let answer = self.caller.json(self.caller.get(url)?.bearer_auth(access_token)).await?;
        let Value::Object(more) = answer else { return Err(failed("its userinfo is no object")) };
        if more.get("sub") != claims.get("sub") {
            return Err(failed("its userinfo is about somebody else"));
        }
        take_in(claims, more);
        Ok(())
    }

    fn read(&self, claims: &Map) -> Result<Profile> {
        let text = |name: &str| claims.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let subject = text("sub");
        if subject.is_empty() {
            return Err(failed("its id_token names nobody"));
        }
        let email = text("email");
        let email_verified = match claims.get("email_verified") {
            Some(Value::Bool(flag)) => *flag,
            Some(Value::String(word)) => word == "true",
            Some(_) => false,
            None => email
                .rsplit_once('@')
                .is_some_and(|(_, domain)| self.verified_domains.contains(&domain.to_lowercase())),
        };
        let groups = self.groups_claim.as_ref().and_then(|claim| claims.get(claim)).map(words);
        Ok(Profile { issuer: self.issuer.clone(), subject, email, email_verified, groups })
    }
}

const ALGORITHMS: [CoreJwsSigningAlgorithm; 9] = [
    CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha256,
    CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha384,
    CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha512,
    CoreJwsSigningAlgorithm::RsaSsaPssSha256,
    CoreJwsSigningAlgorithm::RsaSsaPssSha384,
    CoreJwsSigningAlgorithm::RsaSsaPssSha512,
    CoreJwsSigningAlgorithm::EcdsaP256Sha256,
    CoreJwsSigningAlgorithm::EcdsaP384Sha384,
    CoreJwsSigningAlgorithm::EdDsa,
];

/// Whether younger keys could lead to another verdict: an unknown one, or one that has its name from another.
fn is_about_keys(verdict: &Result<(), ClaimsVerificationError>) -> bool {
    use SignatureVerificationError::{AmbiguousKeyId, CryptoError, NoMatchingKey};
    matches!(
        verdict,
        Err(ClaimsVerificationError::SignatureVerification(
            NoMatchingKey | AmbiguousKeyId(_) | CryptoError(_)
        ))
    )
}

fn claims_of(id_token: &str) -> Option<Map> {
    let payload = URL_SAFE_NO_PAD.decode(id_token.split('.').nth(1)?).ok()?;
    match Value::parse(&String::from_utf8(payload).ok()?)? {
        Value::Object(claims) => Some(claims),
        _ => None,
    }
}

/// Adds what an id_token leaves out. Whether an address is verified is said of the one beside it, and of no other.
fn take_in(claims: &mut Map, mut more: Map) {
    let (own, other) = (claims.get("email").cloned(), more.get("email").cloned());
    if own.is_none() {
        claims.remove("email_verified");
    } else if own != other {
        more.remove("email_verified");
    }
    for (name, value) in more {
        claims.entry(name).or_insert(value);
    }
}

/// A list of texts, or one text.
fn words(value: &Value) -> Vec<String> {
    match value {
        Value::String(word) => vec![word.clone()],
        Value::Array(items) => items.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_one_address_is_not_said_of_another() {
        let verified = |id_token: &str, userinfo: &str| {
            let map = |text: &str| match Value::parse(text) {
                Some(Value::Object(fields)) => fields,
                _ => panic!("{text} is no object"),
            };
            let mut claims = map(id_token);
            take_in(&mut claims, map(userinfo));
            claims.get("email_verified").and_then(Value::as_bool)
        };
        let both = r#"{"email":"a@x","email_verified":true,"groups":[]}"#;
        assert_eq!(verified(r#"{"email":"a@x"}"#, both), Some(true));
        assert_eq!(verified("{}", both), Some(true));
        assert_eq!(verified(r#"{"email":"b@x"}"#, both), None);
        assert_eq!(verified(r#"{"email":"b@x"}"#, r#"{"email_verified":true}"#), None);
        assert_eq!(verified(r#"{"email":"b@x","email_verified":false}"#, both), Some(false));
        assert_eq!(verified(r#"{"email_verified":true}"#, r#"{"email":"a@x"}"#), None);
        let no = r#"{"email":"a@x","email_verified":false}"#;
        assert_eq!(verified(r#"{"email_verified":true}"#, no), Some(false));
    }
}
