//! The HTTP client of webhooks. Calls permitted addresses only: names are resolved here, what is not permitted is
//! dropped, and the connection goes to what is left, so that a second look-up cannot change its mind. No proxies, no
//! redirects, ten seconds in all.

use std::error::Error as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use crate::alerts::webhook::guard::permits;
use crate::alerts::webhook::{
    SIGNATURE_HEADER, TIMESTAMP_HEADER, parse_retry_after, signature, standard_signature,
};
use crate::clock;
use crate::error::{Error, Result};
use crate::logging::spans::Span;
use crate::metering::time::{SECOND, Timestamp};

const TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const EXCERPT_BYTES: usize = 1_024;

/// Cheap to clone.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    allowed: Arc<[IpNet]>,
    https_only: bool,
}

const HTTPS_ONLY: &str = "webhooks go over https only on this server";

/// One call to be made.
#[derive(Clone, Debug)]
pub struct WebhookRequest {
    pub url: String,
    /// The event: the same for every attempt.
    pub id: String,
    pub secret: String,
    /// Replaced but not yet forgotten.
    pub previous_secret: Option<String>,
    pub body: String,
}

/// What came of a call.
#[derive(Clone, Debug, Default)]
pub struct WebhookResponse {
    pub status_code: Option<u16>,
    /// `None` when it was delivered.
    pub error: Option<String>,
    /// The beginning of the answer's body.
    pub response: Option<String>,
    pub retry_after: Option<Duration>,
    pub duration_ms: i64,
}

impl WebhookResponse {
    /// A call that was not made.
    pub fn unsent(reason: impl Into<String>) -> Self {
        WebhookResponse { error: Some(reason.into()), ..WebhookResponse::default() }
    }

    pub fn is_delivered(&self) -> bool {
        self.error.is_none()
    }
}

struct Guard(Arc<[IpNet]>);

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let allowed = self.0.clone();
        Box::pin(async move {
            let end = tokio::time::Instant::from_std(clock::moment() + LOOKUP_TIME);
            let found = tokio::time::timeout_at(end, tokio::net::lookup_host((name.as_str(), 0))).await;
            let found =
                found.into_iter().flatten().flatten().filter(|address| permits(&allowed, address.ip()));
            let permitted: Vec<SocketAddr> = found.collect();
            // nobody learns from here, nor from how long it takes, which names exist inside and where they lead
            if permitted.is_empty() {
                tokio::time::sleep_until(end).await;
                return Err(NO_ADDRESS.into());
            }
            Ok(Box::new(permitted.into_iter()) as Addrs)
        })
    }
}

/// A look-up that finds nothing to call takes this long, whatever the reason.
const LOOKUP_TIME: Duration = Duration::from_secs(2);
/// Said of names that do not exist and of names that may not be called alike.
const NO_ADDRESS: &str =
    "the name is unknown, or its address is not public and not in OPEN_SPANNER_WEBHOOK_ALLOWED_NETWORKS";

fn refusal(address: IpAddr) -> String {
    format!("the address {address} is not public and not in OPEN_SPANNER_WEBHOOK_ALLOWED_NETWORKS")
}

impl Client {
    pub fn new(allowed: &[IpNet], https_only: bool) -> Result<Self> {
        // fails when somebody was first, which is as good
        let _ = rustls::crypto::ring::default_provider().install_default();
        let allowed: Arc<[IpNet]> = allowed.into();
        let builder = || {
            reqwest::Client::builder()
                .user_agent("open-spanner-alert-worker")
                .timeout(TIMEOUT)
                .connect_timeout(CONNECT_TIMEOUT)
                .redirect(reqwest::redirect::Policy::none())
                // a proxy would resolve names for itself
                .no_proxy()
                .dns_resolver(Guard(allowed.clone()))
        };
        let http = match builder().build() {
            Ok(http) => http,
            Err(error) => {
                log::warn!(error:? = error; "no root certificates on this machine: https webhooks will fail");
                builder().tls_certs_only([]).build().map_err(Error::internal)?
            }
        };
        Ok(Client { http, allowed, https_only })
    }

    /// 400 for an address that this server would not call.
    pub fn accept(&self, url: &str) -> Result<()> {
        if self.is_forbidden(url) {
            Err(Error::invalid(format_args!("webhook_url: {HTTPS_ONLY}")))
        } else {
            Ok(())
        }
    }

    fn is_forbidden(&self, url: &str) -> bool {
        let is_https = url.trim().get(..8).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https://"));
        self.https_only && !is_https
    }

    /// Makes one call. Any 2xx is success.
    pub async fn send(&self, letter: &WebhookRequest) -> WebhookResponse {
        let started = clock::moment();
        let mut answer = match self.call(letter).await {
            Ok(answer) => answer,
            Err(reason) => WebhookResponse::unsent(reason),
        };
        answer.duration_ms = clock::since(started).as_millis() as i64;
        answer
    }

    async fn call(&self, letter: &WebhookRequest) -> Result<WebhookResponse, String> {
        // one that was made before the setting was
        if self.is_forbidden(&letter.url) {
            return Err(HTTPS_ONLY.to_owned());
        }
        let url = url::Url::parse(&letter.url).map_err(|error| error.to_string())?;
        // names go through the resolver, literal addresses do not
        let literal = match url.host() {
            Some(url::Host::Ipv4(address)) => Some(IpAddr::V4(address)),
            Some(url::Host::Ipv6(address)) => Some(IpAddr::V6(address)),
            _ => None,
        };
        if let Some(address) = literal.filter(|address| !permits(&self.allowed, *address)) {
            return Err(refusal(address));
        }
        let now = Timestamp::now();
        let timestamp = (now.0 / SECOND).to_string();
        let WebhookRequest { id, secret, body, .. } = letter;
        let secrets = std::iter::once(secret.as_str()).chain(letter.previous_secret.as_deref());
        let mut span = Span::of_webhook(&url);
        let mut request = self.http.post(url);
        if let Some(traceparent) = span.traceparent() {
            request = request.header("traceparent", traceparent);
        }
        let sent = request
            .header("Content-Type", "application/json")
            .header(TIMESTAMP_HEADER, &timestamp)
            .header(SIGNATURE_HEADER, signature(secret, &timestamp, body))
            .header("webhook-id", id)
            .header("webhook-timestamp", &timestamp)
            .header("webhook-signature", standard_signature(secrets, id, &timestamp, body))
            .body(body.clone())
            .send()
            .await;
        let mut response = sent.map_err(|error| {
            span.note(|notes| notes.failed(if error.is_timeout() { "timeout" } else { "no_answer" }));
            describe(error)
        })?;
        let status = response.status();
        span.note(|notes| {
            notes.number("http.response.status_code", i64::from(status.as_u16()));
            if !status.is_success() {
                notes.failed(status.as_str());
            }
        });
        let retry_after = response.headers().get("retry-after").and_then(|value| value.to_str().ok());
        Ok(WebhookResponse {
            status_code: Some(status.as_u16()),
            error: (!status.is_success()).then(|| format!("the receiver answered {status}")),
            retry_after: retry_after.and_then(|text| parse_retry_after(text, now)),
            response: excerpt(&mut response).await,
            duration_ms: 0,
        })
    }
}

/// The beginning of the body; what cannot be read is not worth failing for.
async fn excerpt(response: &mut reqwest::Response) -> Option<String> {
    let mut bytes: Vec<u8> = Vec::new();
    while bytes.len() < EXCERPT_BYTES {
        let Ok(Some(chunk)) = response.chunk().await else { break };
        bytes.extend_from_slice(&chunk);
    }
    bytes.truncate(EXCERPT_BYTES);
    // PostgreSQL holds no NUL in text
    let text = String::from_utf8_lossy(&bytes).replace('\0', "\u{fffd}");
    (!text.is_empty()).then_some(text)
}

/// The innermost cause, without the address that was called.
fn describe(error: reqwest::Error) -> String {
    if error.is_timeout() {
        return format!("no answer within {} seconds", TIMEOUT.as_secs());
    }
    let error = error.without_url();
    let mut cause = error.source();
    while let Some(inner) = cause.and_then(|cause| cause.source()) {
        cause = Some(inner);
    }
    cause.map_or_else(|| error.to_string(), ToString::to_string)
}
