//! A shell as a client: calls to a server, with a key.

use std::time::Duration;

use reqwest::Method;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::cli::http::{cause, client};
use crate::config::Config;
use crate::error::{Code, Error, Result};

/// Longest wait for one answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// A server that is busy or away is asked again this often, at most.
const TRIES: u32 = 8;
const PAUSE_MAX: Duration = Duration::from_secs(30);

pub struct Server {
    http: reqwest::Client,
    base: String,
    key: String,
}

/// A whole answer.
pub struct Answer {
    pub status: u16,
    pub text: String,
}

#[derive(Deserialize)]
struct Envelope {
    error: Refusal,
}

#[derive(Deserialize)]
struct Refusal {
    code: String,
    message: String,
}

impl Server {
    pub fn of(config: &Config) -> Result<Server> {
        let key = config.client.api_key.as_ref().ok_or_else(|| {
            let message = "no API key: set OPEN_SPANNER_API_KEY, or --api-key-file; \
                           `open-spanner admin key create` makes one";
            Error::new(Code::Unusable, message)
        })?;
        let base = config.client.url.trim_end_matches('/').to_owned();
        Ok(Server { http: client(PATIENCE)?, base, key: key.expose().to_owned() })
    }

    /// One call, again while the server is busy or away: what is sent must be safe to send twice.
    pub async fn call(&self, method: Method, path: &str, body: Option<&str>) -> Result<Answer> {
        let mut pause = Duration::from_millis(500);
        for attempt in 1.. {
            let (answer, asked) = match self.once(method.clone(), path, body).await {
                Ok((answer, _)) if !matches!(answer.status, 429 | 502..=504) => return Ok(answer),
                Ok((answer, retry_after)) => (Ok(answer), retry_after),
                Err(error) => (Err(error), None),
            };
            if attempt == TRIES {
                return answer;
            }
            let wait = asked.map_or(pause, |seconds| Duration::from_secs(seconds).max(pause)).min(PAUSE_MAX);
            let why = answer.map_or_else(|error| error.message, |answer| format!("status {}", answer.status));
            log::warn!(path, why, attempt; "the server is asked again");
            tokio::time::sleep(wait).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
        Err(Error::unavailable("the server does not answer"))
    }

    async fn once(&self, method: Method, path: &str, body: Option<&str>) -> Result<(Answer, Option<u64>)> {
        let url = format!("{}{path}", self.base);
        let mut request = self.http.request(method, &url).bearer_auth(&self.key);
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_owned());
        }
        let failed = |error: reqwest::Error| Error::unavailable(format_args!("{url}: {}", cause(&error)));
        let response = request.send().await.map_err(failed)?;
        let retry_after =
            response.headers().get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
        let status = response.status().as_u16();
        Ok((Answer { status, text: response.text().await.map_err(failed)? }, retry_after))
    }

    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let answer = self.call(Method::GET, path, None).await?;
        if answer.status != 200 {
            return Err(answer.refusal());
        }
        serde_json::from_str(&answer.text)
            .map_err(|error| Error::new(Code::Unusable, format!("{path} answered something else: {error}")))
    }
}

impl Answer {
    /// What the server said, in its own words.
    pub fn refusal(&self) -> Error {
        let said: Option<Envelope> = serde_json::from_str(&self.text).ok();
        let message = match said {
            Some(Envelope { error: Refusal { code, message } }) => format!("{code}: {message}"),
            None => format!("the server answered {}", self.status),
        };
        let code = match self.status {
            400 | 404 | 413 => Code::InvalidInput,
            401 => Code::Unauthorized,
            403 => Code::Forbidden,
            _ => Code::Unavailable,
        };
        Error::new(code, message)
    }
}
