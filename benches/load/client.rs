//! A client that costs next to nothing: bytes made before the clock starts, over HTTP/1.1 connections that stay
//! open. It reads status, length and the first bytes of an answer and nothing else.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Barrier;

use crate::Outcome;

/// A request ready to be sent, and what it asks to be stored.
#[derive(Clone)]
pub struct Request {
    pub bytes: Vec<u8>,
    pub events: u64,
    pub cents: u64,
}

impl Request {
    pub fn new(method: &str, target: &str, headers: &str, body: &str) -> Request {
        Request::of("application/json", method, target, headers, body)
    }

    pub fn of(content_type: &str, method: &str, target: &str, headers: &str, body: &str) -> Request {
        let length = body.len();
        let head = format!(
            "{method} {target} HTTP/1.1\r\nhost: bench\r\n{headers}content-type: {content_type}\r\n\
             content-length: {length}\r\n\r\n"
        );
        Request { bytes: [head.as_bytes(), body.as_bytes()].concat(), events: 0, cents: 0 }
    }

    pub fn storing(self, events: u64, cents: u64) -> Request {
        Request { events, cents, ..self }
    }
}

pub struct Answer {
    pub status: u16,
    pub headers: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Outcome<serde_json::Value> {
        Ok(serde_json::from_slice(&self.body)?)
    }
}

pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    pub async fn open(address: SocketAddr) -> Outcome<Connection> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Connection { stream, buffer: Vec::with_capacity(64 * 1024) })
    }

    /// Sends a request and reads its answer into the buffer: status, where the body starts, where it ends.
    async fn exchange(&mut self, request: &[u8]) -> Outcome<(u16, usize, usize)> {
        self.stream.write_all(request).await?;
        self.buffer.clear();
        let head = loop {
            let searched = self.buffer.len().saturating_sub(3);
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err("the server closed the connection".into());
            }
            let end = self.buffer[searched..].windows(4).position(|bytes| bytes == b"\r\n\r\n");
            if let Some(end) = end {
                break searched + end + 4;
            }
        };
        let text = std::str::from_utf8(&self.buffer[..head])?;
        let status: u16 = text.get(9..12).unwrap_or_default().parse()?;
        let length = text.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
        });
        let in_chunks = text.to_ascii_lowercase().contains("transfer-encoding: chunked");
        while in_chunks && !self.buffer.ends_with(b"\r\n0\r\n\r\n") {
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err("the server closed the connection".into());
            }
        }
        let end = if in_chunks { self.buffer.len() } else { head + length.unwrap_or(0) };
        while self.buffer.len() < end {
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err("the server closed the connection".into());
            }
        }
        Ok((status, head, end))
    }

    pub async fn call(&mut self, request: &Request) -> Outcome<Answer> {
        let (status, start, end) = self.exchange(&request.bytes).await?;
        Ok(Answer {
            status,
            headers: String::from_utf8_lossy(&self.buffer[..start]).into_owned(),
            body: self.buffer[start..end].to_vec(),
        })
    }
}

/// What a load came to.
#[derive(Clone, Debug, Default)]
pub struct Load {
    pub requests: u64,
    /// Acknowledged events and the sum of their amounts.
    pub events: u64,
    pub cents: u64,
    /// Requests answered with 503: the server was too busy and said so.
    pub refused: u64,
    pub elapsed: Duration,
    pub micros: Vec<u32>,
}

impl Load {
    pub fn add(&mut self, other: Load) {
        self.requests += other.requests;
        self.events += other.events;
        self.cents += other.cents;
        self.refused += other.refused;
        self.elapsed += other.elapsed;
        self.micros.extend(other.micros);
    }

    pub fn events_per_second(&self) -> f64 {
        self.events as f64 / self.elapsed.as_secs_f64()
    }

    pub fn requests_per_second(&self) -> f64 {
        self.requests as f64 / self.elapsed.as_secs_f64()
    }
}

/// Pause after a 503, far below what its Retry-After asks for: this client is there to be too much.
const REFUSED_PAUSE: Duration = Duration::from_millis(5);

/// Sends each list of requests over a connection of its own, all at once, until the lists or the time are over.
pub async fn run(address: SocketAddr, lists: Vec<Vec<Request>>, time: Duration) -> Outcome<Load> {
    run_at(&[address], lists, time).await
}

/// The same, the connections dealt out to these servers.
pub async fn run_at(addresses: &[SocketAddr], lists: Vec<Vec<Request>>, time: Duration) -> Outcome<Load> {
    let start = Arc::new(Barrier::new(lists.len() + 1));
    let mut tasks = Vec::new();
    for (list, address) in lists.into_iter().zip(addresses.iter().cycle()) {
        let mut connection = Connection::open(*address).await?;
        let start = start.clone();
        tasks.push(tokio::spawn(async move {
            start.wait().await;
            let started = Instant::now();
            let mut load = Load::default();
            for request in list {
                if started.elapsed() >= time {
                    break;
                }
                let sent = Instant::now();
                let (status, from, to) = connection.exchange(&request.bytes).await?;
                load.micros.push(sent.elapsed().as_micros() as u32);
                load.requests += 1;
                match status {
                    503 => {
                        load.refused += 1;
                        tokio::time::sleep(REFUSED_PAUSE).await;
                    }
                    200..300 => {
                        let body = &connection.buffer[from..to];
                        if request.events > 1 && status != 204 && accepted(body) != Some(request.events) {
                            return Err(format!("not all accepted: {}", shown(body)).into());
                        }
                        load.events += request.events;
                        load.cents += request.cents;
                    }
                    _ => {
                        let body = shown(&connection.buffer[from..to]);
                        return Err(format!("status {status}: {body}").into());
                    }
                }
            }
            Outcome::Ok(load)
        }));
    }
    start.wait().await;
    let started = Instant::now();
    let mut sum = Load::default();
    for task in tasks {
        sum.add(task.await??);
    }
    sum.elapsed = started.elapsed();
    Ok(sum)
}

/// The count a bulk answer begins with, or the last of an answer in lines.
fn accepted(body: &[u8]) -> Option<u64> {
    const NAME: &[u8] = b"{\"accepted\":";
    let last = || {
        let begin = body.len().saturating_sub(200);
        body[begin..].windows(NAME.len()).rposition(|bytes| bytes == NAME).map(|at| begin + at)
    };
    let at = if body.starts_with(NAME) { 0 } else { last()? };
    let rest = &body[at + NAME.len()..];
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    std::str::from_utf8(&rest[..digits]).ok()?.parse().ok()
}

/// Of a long answer its beginning and its end, where lines are counted.
fn shown(body: &[u8]) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match body.len() > 600 {
        true => format!("{} … {}", text(&body[..300]), text(&body[body.len() - 300..])),
        false => text(body),
    }
}
