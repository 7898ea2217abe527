//! How providers are called: their hosts are named in the settings, by whoever runs the server, so addresses inside are
//! called as well. https only, but for this very machine; no redirects, no proxies; whatever they answer is bounded in
//! time and bytes.

use std::time::Duration;

use reqwest::{RequestBuilder, StatusCode, Url};

use crate::error::{Error, Result};
use crate::metering::json::Value;

const TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const ANSWER_BYTES_MAX: usize = 512 * 1024;

/// Cheap to clone.
#[derive(Clone)]
pub struct Caller(reqwest::Client);

impl Caller {
    pub fn new() -> Result<Caller> {
        // fails when somebody was first, which is as good
        let _ = rustls::crypto::ring::default_provider().install_default();
        let builder = || {
            reqwest::Client::builder()
                .user_agent("open-spanner")
                .timeout(TIMEOUT)
                .connect_timeout(CONNECT_TIMEOUT)
                .redirect(reqwest::redirect::Policy::none())
                .no_proxy()
        };
        let client = builder().build().or_else(|error| {
            log::warn!(error:? = error; "no root certificates on this machine: providers cannot be called by https");
            builder().tls_certs_only([]).build()
        });
        Ok(Caller(client.map_err(Error::internal)?))
    }

    pub fn get(&self, url: &str) -> Result<RequestBuilder> {
        Ok(self.0.get(permitted(url)?).header("accept", "application/json"))
    }

    pub fn post(&self, url: &str, form: &[(&str, &str)]) -> Result<RequestBuilder> {
        let mut body = url::form_urlencoded::Serializer::new(String::new());
        body.extend_pairs(form);
        let request = self.0.post(permitted(url)?).header("accept", "application/json");
        Ok(request.header("content-type", "application/x-www-form-urlencoded").body(body.finish()))
    }

    /// The text of a good answer.
    pub async fn text(&self, request: RequestBuilder) -> Result<String> {
        let mut response = request.send().await.map_err(unreachable)?;
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > ANSWER_BYTES_MAX {
                return Err(failed("its answer is too long"));
            }
        }
        let text = String::from_utf8(bytes).map_err(|_| failed("its answer is no text"))?;
        match response.status() {
            StatusCode::OK => Ok(text),
            status => Err(failed(format_args!("it answered {status}"))),
        }
    }

    pub async fn json(&self, request: RequestBuilder) -> Result<Value> {
        let text = self.text(request).await?;
        Value::parse(&text).ok_or_else(|| failed("its answer is no JSON"))
    }
}

/// What went wrong is for the log of the operator; people learn that the provider is at fault.
pub fn failed(cause: impl std::fmt::Display) -> Error {
    log::warn!(cause:%; "a sign-in provider could not be used");
    Error::unavailable("the provider does not answer as it should")
}

fn unreachable(error: reqwest::Error) -> Error {
    use std::error::Error as _;
    let error = error.without_url();
    let cause = error.source().map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"));
    failed(cause)
}

/// Tokens and codes go through no wire that others can read.
fn permitted(text: &str) -> Result<Url> {
    let url = Url::parse(text).map_err(|_| failed("one of its addresses is none"))?;
    let is_here = match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    };
    match url.scheme() {
        "https" => Ok(url),
        "http" if is_here => Ok(url),
        _ => Err(failed("one of its addresses is not https")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_go_over_https_or_stay_on_the_machine() {
        for good in
            ["https://id.example/token", "http://127.0.0.1:8080/token", "http://localhost/x", "http://[::1]/"]
        {
            assert!(permitted(good).is_ok(), "{good}");
        }
        for bad in ["http://id.example/token", "http://10.0.0.1/", "file:///etc/passwd", "nothing"] {
            assert!(permitted(bad).is_err(), "{bad}");
        }
    }
}
