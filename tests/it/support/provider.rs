//! A sign-in provider that says whatever a test wants: OpenID Connect with keys of its own, and what GitHub answers, on
//! one port of loopback. It holds callers to PKCE, like real ones.

use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use ring::{digest, hmac};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

pub const CLIENT_ID: &str = "the-client";
pub const CLIENT_SECRET: &str = "the secret of the client";

/// How the next token is signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signing {
    Own,
    /// By a key that the provider does not publish, under the name of one that it does.
    Foreign,
    /// Not at all.
    None,
    /// With the client's secret.
    Secret,
}

struct Key {
    id: String,
    pair: EcdsaKeyPair,
}

impl Key {
    fn new(id: &str) -> Key {
        let random = SystemRandom::new();
        let document =
            EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).expect("a key");
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, document.as_ref(), &random);
        Key { id: id.to_owned(), pair: pair.expect("a key") }
    }

    fn public(&self) -> Value {
        let point = self.pair.public_key().as_ref();
        let (x, y) = (URL_SAFE_NO_PAD.encode(&point[1..33]), URL_SAFE_NO_PAD.encode(&point[33..]));
        json!({"kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": self.id, "x": x, "y": y})
    }
}

struct State {
    key: Key,
    foreign: Key,
    signing: Signing,
    claims: Value,
    userinfo: Value,
    challenge: String,
    /// What GitHub says of its user and their addresses.
    github: (Value, Value),
    /// It promises to say in each answer whose it is.
    says_who: bool,
    calls: Vec<String>,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Provider {
    pub url: String,
    state: Arc<Mutex<State>>,
}

impl Provider {
    pub async fn start() -> Provider {
        Provider::start_on(0).await
    }

    pub async fn start_on(port: u16) -> Provider {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.expect("a port");
        let url = format!("http://127.0.0.1:{}", listener.local_addr().expect("an address").port());
        let state = State {
            key: Key::new("one"),
            foreign: Key::new("foreign"),
            signing: Signing::Own,
            claims: json!({}),
            userinfo: json!({}),
            challenge: String::new(),
            github: (json!({}), json!([])),
            says_who: false,
            calls: Vec::new(),
        };
        let provider = Provider { url, state: Arc::new(Mutex::new(state)) };
        let own = provider.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let own = own.clone();
                tokio::spawn(async move {
                    let _ = own.answer(stream).await;
                });
            }
        });
        provider
    }

    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.state.lock().expect("no holder panics"))
    }

    /// The next code is worth a token with these claims, for whoever proves this challenge.
    pub fn next(&self, signing: Signing, claims: Value, challenge: &str) {
        self.with(|state| {
            (state.signing, state.claims, state.challenge) = (signing, claims, challenge.to_owned());
        });
    }

    pub fn userinfo(&self, claims: Value) {
        self.with(|state| state.userinfo = claims);
    }

    pub fn github(&self, user: Value, emails: Value) {
        self.with(|state| state.github = (user, emails));
    }

    /// From now on another key signs, and the old one is not published any more.
    pub fn rotate(&self, id: &str) {
        self.with(|state| state.key = Key::new(id));
    }

    /// From now on it promises to say in each answer whose it is (RFC 9207).
    pub fn says_who(&self) {
        self.with(|state| state.says_who = true);
    }

    /// How often this path was asked for.
    pub fn calls(&self, path: &str) -> usize {
        self.with(|state| state.calls.iter().filter(|call| *call == path).count())
    }

    async fn answer(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut bytes = Vec::new();
        let head_end = loop {
            if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            if stream.read_buf(&mut bytes).await? == 0 {
                return Ok(());
            }
        };
        let head = String::from_utf8_lossy(&bytes[..head_end]).to_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.trim().parse().ok());
        while bytes.len() < head_end + length.unwrap_or(0) {
            if stream.read_buf(&mut bytes).await? == 0 {
                return Ok(());
            }
        }
        let path = String::from_utf8_lossy(&bytes).split(' ').nth(1).unwrap_or_default().to_owned();
        let form: Vec<(String, String)> =
            url::form_urlencoded::parse(&bytes[head_end..]).into_owned().collect();
        let (status, body) = self.respond(&path, &form);
        let (body, length) = (body.to_string(), body.to_string().len());
        let text = format!(
            "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
        );
        stream.write_all(text.as_bytes()).await
    }

    fn respond(&self, path: &str, form: &[(String, String)]) -> (&'static str, Value) {
        let sent = |name: &str| form.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value);
        let url = &self.url;
        self.with(|state| {
            state.calls.push(path.to_owned());
            let challenge = digest::digest(&digest::SHA256, sent("code_verifier").as_bytes());
            let is_proven = URL_SAFE_NO_PAD.encode(challenge) == state.challenge;
            match path {
                "/.well-known/openid-configuration" => {
                    let body = json!({
                        "issuer": url, "authorization_endpoint": format!("{url}/authorize"),
                        "token_endpoint": format!("{url}/token"), "jwks_uri": format!("{url}/jwks"),
                        "userinfo_endpoint": format!("{url}/userinfo"),
                        "response_types_supported": ["code"], "subject_types_supported": ["public"],
                        "id_token_signing_alg_values_supported": ["ES256"],
                        "authorization_response_iss_parameter_supported": state.says_who,
                    });
                    ("200 OK", body)
                }
                "/jwks" => ("200 OK", json!({"keys": [state.key.public()]})),
                "/token" if is_proven => {
                    let token = token(state);
                    ("200 OK", json!({"access_token": "at", "token_type": "Bearer", "id_token": token}))
                }
                "/userinfo" => ("200 OK", state.userinfo.clone()),
                "/login/oauth/access_token" if is_proven => {
                    ("200 OK", json!({"access_token": "gho", "token_type": "bearer"}))
                }
                "/api/v3/user" => ("200 OK", state.github.0.clone()),
                "/api/v3/user/emails" => ("200 OK", state.github.1.clone()),
                _ => ("400 Bad Request", json!({"error": "invalid_grant"})),
            }
        })
    }
}

fn token(state: &State) -> String {
    let alg = match state.signing {
        Signing::Own | Signing::Foreign => "ES256",
        Signing::None => "none",
        Signing::Secret => "HS256",
    };
    let header = json!({"alg": alg, "typ": "JWT", "kid": state.key.id}).to_string();
    let text =
        format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(state.claims.to_string()));
    let by = |key: &Key| {
        let signed = key.pair.sign(&SystemRandom::new(), text.as_bytes()).expect("a signature");
        signed.as_ref().to_vec()
    };
    let signature = match state.signing {
        Signing::Own => by(&state.key),
        Signing::Foreign => by(&state.foreign),
        Signing::None => Vec::new(),
        Signing::Secret => {
            let key = hmac::Key::new(hmac::HMAC_SHA256, CLIENT_SECRET.as_bytes());
            hmac::sign(&key, text.as_bytes()).as_ref().to_vec()
        }
    };
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
}
