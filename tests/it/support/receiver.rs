//! A webhook receiver: real HTTP on loopback. The first part of the path says how it behaves; it remembers every call.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

#[derive(Clone, Debug)]
pub struct Call {
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub body: String,
    pub at: Instant,
}

impl Call {
    pub fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value)
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).expect("webhooks are JSON")
    }

    pub fn event_id(&self) -> String {
        self.json()["event"]["id"].as_str().expect("an id").to_string()
    }
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Receiver {
    pub port: u16,
    calls: Arc<Mutex<Vec<Call>>>,
}

impl Receiver {
    pub async fn start() -> Receiver {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let receiver = Receiver { port, calls: Arc::default() };
        let (calls, own) = (receiver.calls.clone(), port);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let calls = calls.clone();
                tokio::spawn(async move {
                    let _ = answer(stream, &calls, own).await;
                });
            }
        });
        receiver
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}/{path}", self.port)
    }

    /// Calls to this path, in the order they came.
    pub fn calls(&self, path: &str) -> Vec<Call> {
        let calls = self.calls.lock().expect("no holder panics");
        calls.iter().filter(|call| call.path == format!("/{path}")).cloned().collect()
    }

    /// Waits until this path was called often enough.
    pub async fn wait(&self, path: &str, count: usize) -> Vec<Call> {
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            let calls = self.calls(path);
            if calls.len() >= count {
                return calls;
            }
            assert!(Instant::now() < end, "{} of {count} calls to {path}", calls.len());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

async fn answer(mut stream: TcpStream, calls: &Mutex<Vec<Call>>, port: u16) -> std::io::Result<()> {
    let mut bytes = Vec::new();
    let head_end = loop {
        if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Ok(());
        }
    };
    let head = String::from_utf8_lossy(&bytes[..head_end]).into_owned();
    let mut lines = head.lines();
    let path = lines.next().and_then(|line| line.split(' ').nth(1)).unwrap_or_default().to_string();
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_lowercase(), value.trim().to_string()))
        .collect();
    let length = headers.iter().find(|(name, _)| name == "content-length");
    let length: usize = length.and_then(|(_, value)| value.parse().ok()).unwrap_or(0);
    while bytes.len() < head_end + length {
        if stream.read_buf(&mut bytes).await? == 0 {
            return Ok(());
        }
    }
    let body = String::from_utf8_lossy(&bytes[head_end..]).into_owned();
    let kind = match path.trim_start_matches('/').split('/').next().unwrap_or_default() {
        // the group that it tells of says how it is answered
        "group" => {
            let payload: Value = serde_json::from_str(&body).unwrap_or_default();
            payload["event"]["group_value"].as_str().unwrap_or_default().to_string()
        }
        kind => kind.to_string(),
    };
    calls.lock().expect("no holder panics").push(Call { path, headers, body, at: Instant::now() });
    let (status, more) = match kind.as_str() {
        "fail" => ("500 Internal Server Error", String::new()),
        "gone" => ("410 Gone", String::new()),
        "busy" => ("429 Too Many Requests", "retry-after: 7200\r\n".to_string()),
        "redirect" => ("302 Found", format!("location: http://127.0.0.1:{port}/ok/redirected\r\n")),
        "slow" => {
            tokio::time::sleep(Duration::from_millis(150)).await;
            ("200 OK", String::new())
        }
        "hang" => {
            tokio::time::sleep(Duration::from_secs(60)).await;
            return Ok(());
        }
        _ => ("200 OK", String::new()),
    };
    let body = "x".repeat(5_000);
    let text = format!(
        "HTTP/1.1 {status}\r\n{more}content-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(text.as_bytes()).await
}
