//! The server under test, as an operator would start it, and the things a first user does: register, log in, make a
//! key, make meters.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use open_spanner::config::Driver;
use open_spanner::metering::time::Timestamp;
use serde_json::{Value, json};

use crate::Outcome;
use crate::client::{Answer, Connection, Request};

pub struct Server {
    child: Child,
    pub http: SocketAddr,
    /// `None` when the server has no gRPC door.
    pub grpc: Option<SocketAddr>,
    pub start_to_ready: Duration,
}

const STARTING: Duration = Duration::from_secs(60);

impl Server {
    pub fn start(program: &Path, driver: &Driver, dir: &Path) -> Outcome<Server> {
        let started = Instant::now();
        let mut command = Command::new(program);
        // nothing of the caller's own configuration
        command.arg("serve").env_clear().current_dir(dir).stdin(Stdio::null()).stdout(Stdio::null());
        command.env("OPEN_SPANNER_HTTP_ADDR", "127.0.0.1:0").env("OPEN_SPANNER_GRPC_ADDR", "127.0.0.1:0");
        command.env("OPEN_SPANNER_LOG_FORMAT", "json").env("OPEN_SPANNER_DB_DRIVER", driver.name());
        match driver {
            Driver::Sqlite { path, .. } => command.env("OPEN_SPANNER_SQLITE_PATH", path),
            Driver::Postgres { dsn } => command.env("OPEN_SPANNER_POSTGRES_DSN", dsn.expose()),
        };
        let mut child = command.stderr(Stdio::piped()).spawn()?;
        let lines = child.stderr.take().map(follow).ok_or("no standard error")?;
        let mut server = Server {
            child,
            http: SocketAddr::from(([127, 0, 0, 1], 0)),
            grpc: None,
            start_to_ready: Duration::ZERO,
        };
        loop {
            let left = STARTING.saturating_sub(started.elapsed());
            let line = lines.recv_timeout(left).map_err(|_| "the server does not become ready")?;
            if let Some(address) = line["http"].as_str() {
                server.http = address.parse()?;
            }
            if let Some(address) = line["grpc"].as_str() {
                server.grpc = Some(address.parse()?);
            }
            if line["message"] == "ready" {
                break;
            }
        }
        server.start_to_ready = started.elapsed();
        Ok(server)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks the server to end, and waits until it has.
    pub fn stop(mut self) -> Outcome<()> {
        Command::new("kill").args(["-TERM", &self.pid().to_string()]).status()?;
        let status = self.child.wait()?;
        if status.success() { Ok(()) } else { Err(format!("the server ended with {status}").into()) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // no effect after stop()
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Log lines as JSON; warnings and errors are shown as they come.
fn follow(stderr: ChildStderr) -> mpsc::Receiver<Value> {
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            let parsed: Value = serde_json::from_str(&line).unwrap_or_default();
            if !matches!(parsed["level"].as_str(), Some("info" | "INFO" | "debug" | "DEBUG")) {
                eprintln!("  server: {line}");
            }
            // nobody listens once the server is ready
            let _ = sender.send(parsed);
        }
    });
    lines
}

/// A workspace to write to, and who may.
pub struct Account {
    address: SocketAddr,
    /// Header lines of the API key and of the session.
    pub key: String,
    pub cookie: String,
    pub token: String,
}

impl Account {
    pub async fn create(server: &Server) -> Outcome<Account> {
        Account::of(server, "bench@example.com").await
    }

    /// Of the user with this address, who has a workspace.
    pub async fn of(server: &Server, email: &str) -> Outcome<Account> {
        let login = json!({"email": email, "password": "correct horse battery"}).to_string();
        let post = async |target: &str, headers: &str, body: &str| -> Outcome<Answer> {
            let answer = call(server.http, &Request::new("POST", target, headers, body)).await?;
            if answer.status == 201 { Ok(answer) } else { Err(format!("{target}: {}", answer.text()).into()) }
        };
        post("/v1/auth/users", "", &login).await?;
        let session = post("/v1/auth/sessions", "", &login).await?;
        let cookie = session.headers.lines().find_map(|line| {
            let at = line.find("open_spanner_access=")?;
            Some(format!("cookie: {}\r\n", line[at..].split(';').next()?))
        });
        let cookie = cookie.ok_or("no session cookie")?;
        let scopes =
            ["usage:write", "usage:read", "meters:read", "meters:write", "plans:read", "plans:write"];
        let wanted = json!({"name": "bench", "scopes": scopes}).to_string();
        let key = post("/v1/auth/api-keys", &cookie, &wanted).await?;
        let token = key.json()?["key"].as_str().ok_or("no key")?.to_owned();
        Ok(Account { address: server.http, key: format!("authorization: Bearer {token}\r\n"), cookie, token })
    }

    pub async fn call(&self, method: &str, target: &str, body: &str) -> Outcome<Answer> {
        call(self.address, &Request::new(method, target, &self.key, body)).await
    }

    /// The same at a server that was started anew.
    pub fn at(&self, server: &Server) -> Account {
        let (key, cookie, token) = (self.key.clone(), self.cookie.clone(), self.token.clone());
        Account { address: server.http, key, cookie, token }
    }

    /// The id of its workspace.
    pub async fn workspace(&self) -> Outcome<String> {
        let request = Request::new("GET", "/v1/auth/session", &self.cookie, "");
        let session = call(self.address, &request).await?.json()?;
        Ok(session["user"]["workspace_id"].as_str().ok_or("no workspace")?.to_owned())
    }

    /// As a user in the dashboard would.
    pub async fn call_with_session(&self, method: &str, target: &str, body: &Value) -> Outcome<Answer> {
        call(self.address, &Request::new(method, target, &self.cookie, &body.to_string())).await
    }

    /// A meter with the two dimensions that workloads fill.
    pub async fn create_meter(&self, name: &str) -> Outcome<()> {
        self.create_meter_with(name, &["region", "model"], json!({"aggregation": "sum"})).await
    }

    /// `kind`: the aggregation and what goes with it.
    pub async fn create_meter_with(&self, name: &str, dimensions: &[&str], kind: Value) -> Outcome<()> {
        let dimension = |name: &&str| json!({"name": name, "type": "string"});
        let dimensions: Vec<_> = dimensions.iter().map(dimension).collect();
        let mut meter = kind;
        meter["name"] = json!(name);
        meter["unit"] = json!("unit");
        meter["event_retention_days"] = json!(3650);
        meter["dimensions"] = json!(dimensions);
        let answer = self.call("POST", "/v1/meters", &meter.to_string()).await?;
        if answer.status == 201 { Ok(()) } else { Err(answer.text().into()) }
    }

    /// What the server says a meter has counted in all, in hundredths.
    pub async fn total(&self, meter: &str, around: Timestamp) -> Outcome<u64> {
        let (from, to) = (around.plus_months(-24), around.plus_months(24));
        let target = format!("/v1/usages?meter={meter}&from={from}&to={to}&bucket_size=month&limit=1000");
        let answer = self.call("GET", &target, "").await?;
        if answer.status != 200 {
            return Err(answer.text().into());
        }
        let rows = answer.json()?;
        let rows = rows.as_array().ok_or("not a list")?;
        rows.iter().map(|row| cents_of(&row["quantity"].to_string())).sum()
    }
}

/// One request on a connection of its own: a server may close one after an answer that left the body unread.
async fn call(address: SocketAddr, request: &Request) -> Outcome<Answer> {
    Connection::open(address).await?.call(request).await
}

/// Hundredths of a decimal text, exactly.
fn cents_of(text: &str) -> Outcome<u64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if fraction.len() > 2 {
        return Err(format!("{text} has more than two decimals").into());
    }
    Ok(format!("{whole}{fraction:0<2}").parse()?)
}
