//! An HTTP client that says what it expected and what it got. Numbers keep the digits they came with.

use std::sync::Once;
use std::time::Duration;

use reqwest::Method;
use reqwest::header::HeaderMap;
use serde_json::{Value, json};

use super::unique;

pub const PASSWORD: &str = "correct horse battery";
/// A window around every event of the tests that does not choose its own time.
pub const JUNE: (&str, &str) = ("2026-06-01T00:00:00Z", "2026-07-01T00:00:00Z");
/// The time of an event whose time does not matter.
pub const NOON: &str = "2026-06-15T12:00:00Z";

#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    headers: Vec<(&'static str, String)>,
}

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    pub request: String,
    pub status: u16,
    pub headers: HeaderMap,
    pub text: String,
}

impl Client {
    pub fn new(base: &str) -> Client {
        static PROVIDER: Once = Once::new();
        PROVIDER.call_once(|| {
            let _ = rustls::crypto::ring::default_provider().install_default();
        });
        let builder = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(60));
        let http = builder.redirect(reqwest::redirect::Policy::none()).build().expect("a client");
        Client { http, base: base.to_string(), headers: Vec::new() }
    }

    /// The same client with one more header on every request.
    pub fn with(&self, name: &'static str, value: impl Into<String>) -> Client {
        let mut client = self.clone();
        client.headers.push((name, value.into()));
        client
    }

    /// The same client at another server of the same database.
    pub fn at(&self, base: &str) -> Client {
        Client { base: base.to_string(), ..self.clone() }
    }

    /// The same client without a header.
    pub fn without(&self, name: &str) -> Client {
        let mut client = self.clone();
        client.headers.retain(|(header, _)| *header != name);
        client
    }

    pub fn with_key(&self, key: &str) -> Client {
        self.with("authorization", format!("Bearer {key}"))
    }

    /// The value of a header that this client sends.
    pub fn header(&self, name: &str) -> String {
        let mut found = self.headers.iter().filter(|(header, _)| *header == name);
        found.next_back().map(|(_, value)| value.clone()).unwrap_or_default()
    }

    /// One request; an error means that no whole answer came.
    pub async fn send(&self, method: Method, path: &str, body: Option<String>) -> reqwest::Result<Answer> {
        self.send_as("application/json", method, path, body).await
    }

    /// A form as browsers send it.
    pub async fn send_form(&self, method: Method, path: &str, form: Option<String>) -> Answer {
        Client::answered(path, self.send_as("application/x-www-form-urlencoded", method, path, form).await)
    }

    async fn send_as(
        &self,
        content_type: &str,
        method: Method,
        path: &str,
        body: Option<String>,
    ) -> reqwest::Result<Answer> {
        let mut request = self.http.request(method.clone(), format!("{}{path}", self.base));
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        if let Some(body) = body {
            request = request.header("content-type", content_type).body(body);
        }
        let response = request.send().await?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Ok(Answer { request: format!("{method} {path}"), status, headers, text: response.text().await? })
    }

    #[track_caller]
    fn answered(path: &str, answer: reqwest::Result<Answer>) -> Answer {
        answer.unwrap_or_else(|error| panic!("no answer from {path}: {error:?}"))
    }

    pub async fn get(&self, path: &str) -> Answer {
        Client::answered(path, self.send(Method::GET, path, None).await)
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.post_text(path, body.to_string()).await
    }

    /// A body as it is, valid JSON or not.
    pub async fn post_text(&self, path: &str, body: impl Into<String>) -> Answer {
        Client::answered(path, self.send(Method::POST, path, Some(body.into())).await)
    }

    /// A body of any bytes.
    pub async fn post_bytes(&self, path: &str, body: Vec<u8>) -> Answer {
        let mut request = self.http.post(format!("{}{path}", self.base)).body(body);
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        let response =
            request.send().await.unwrap_or_else(|error| panic!("no answer from {path}: {error:?}"));
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = response.text().await.expect("a whole answer");
        Answer { request: format!("POST {path}"), status, headers, text }
    }

    pub async fn try_post(&self, path: &str, body: &Value) -> reqwest::Result<Answer> {
        self.send(Method::POST, path, Some(body.to_string())).await
    }

    pub async fn put(&self, path: &str, body: &Value) -> Answer {
        Client::answered(path, self.send(Method::PUT, path, Some(body.to_string())).await)
    }

    pub async fn patch(&self, path: &str, body: &Value) -> Answer {
        Client::answered(path, self.send(Method::PATCH, path, Some(body.to_string())).await)
    }

    pub async fn delete(&self, path: &str) -> Answer {
        Client::answered(path, self.send(Method::DELETE, path, None).await)
    }

    /// Creates a meter without dimensions; returns its id.
    pub async fn meter(&self, name: &str, aggregation: &str) -> String {
        let body = json!({"name": name, "unit": "unit", "aggregation": aggregation});
        self.post("/v1/meters", &body).await.json(201)["id"].as_str().expect("an id").to_string()
    }

    /// The one value of a meter over a month, as the digits of the answer; "0" when nothing was recorded.
    pub async fn total(&self, meter: &str) -> String {
        let (from, to) = JUNE;
        let path = format!("/v1/usages?meter={meter}&bucket_size=month&from={from}&to={to}");
        let rows = self.get(&path).await.json(200);
        let rows = rows.as_array().expect("a list of buckets");
        assert!(rows.len() <= 1, "one month, one bucket: {rows:?}");
        rows.first().map_or("0".to_string(), |row| row["quantity"].to_string())
    }
}

impl Answer {
    #[track_caller]
    pub fn expect(self, status: u16) -> Answer {
        assert_eq!(self.status, status, "{} answered {}", self.request, self.text);
        self
    }

    /// The body of an answer with this status.
    #[track_caller]
    pub fn json(self, status: u16) -> Value {
        let answer = self.expect(status);
        let content_type = answer.header("content-type");
        assert_eq!(content_type, "application/json", "{} answered {}", answer.request, answer.text);
        serde_json::from_str(&answer.text)
            .unwrap_or_else(|error| panic!("{} answered no JSON ({error}): {}", answer.request, answer.text))
    }

    /// Insists on the error envelope with this status and code; returns the message.
    #[track_caller]
    pub fn error(self, status: u16, code: &str) -> String {
        let request = self.request.clone();
        let body = self.json(status);
        assert_eq!(body["error"]["code"], code, "{request} answered {body}");
        let message = body["error"]["message"].as_str().unwrap_or_default();
        assert!(!message.is_empty(), "{request} answered no message: {body}");
        message.to_string()
    }

    /// Insists on "not now, try again": 503 with a whole number of seconds.
    #[track_caller]
    pub fn try_again(self) {
        let retry_after = self.header("retry-after").parse::<u32>();
        assert_eq!(self.status, 503, "{} answered {}", self.request, self.text);
        assert!(
            retry_after.is_ok_and(|seconds| seconds >= 1),
            "Retry-After of {}: {:?}",
            self.request,
            self.headers
        );
    }

    pub fn header(&self, name: &str) -> String {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_string()
    }

    /// The value of a cookie that this answer sets.
    pub fn cookie(&self, name: &str) -> Option<String> {
        let lines = self.headers.get_all("set-cookie").iter().filter_map(|line| line.to_str().ok());
        let mut pairs = lines.filter_map(|line| line.split(';').next()?.split_once('='));
        pairs.find(|(found, _)| *found == name).map(|(_, value)| value.to_string())
    }
}

/// A user with a workspace. Calls go out with an API key that may do everything.
pub struct Workspace {
    pub key: Client,
    pub session: Client,
}

impl std::ops::Deref for Workspace {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.key
    }
}

impl Workspace {
    pub async fn create(client: &Client) -> Workspace {
        let email = sign_up(client).await;
        let session = sign_in(client, &email).await;
        let body = json!({"name": "everything", "scopes": ["*"]});
        let made = session.post("/v1/auth/api-keys", &body).await.json(201);
        Workspace { key: client.with_key(made["key"].as_str().expect("the secret")), session }
    }
}

/// Registers a new address.
pub async fn sign_up(client: &Client) -> String {
    let email = format!("{}@example.com", unique("user"));
    client.post("/v1/auth/users", &json!({"email": email, "password": PASSWORD})).await.expect(201);
    email
}

/// Logs in; the client that is returned carries the session.
pub async fn sign_in(client: &Client, email: &str) -> Client {
    let answer =
        client.post("/v1/auth/sessions", &json!({"email": email, "password": PASSWORD})).await.expect(201);
    let access = answer.cookie("open_spanner_access").expect("an access cookie");
    client.with("cookie", format!("open_spanner_access={access}"))
}
