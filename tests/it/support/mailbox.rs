//! A mail server that takes everything: SMTP on loopback. It remembers each letter; it can be told to refuse some first.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

#[derive(Clone, Debug, Default)]
pub struct Letter {
    pub from: String,
    pub to: String,
    /// Head and text, with the folding of quoted-printable undone.
    pub text: String,
}

impl Letter {
    /// The first link to such a page.
    pub fn link(&self, page: &str) -> String {
        let at = self.text.find(page).unwrap_or_else(|| panic!("no {page} in {}", self.text));
        let begin = self.text[..at].rfind(char::is_whitespace).map_or(0, |space| space + 1);
        self.text[begin..].split_whitespace().next().unwrap_or_default().to_owned()
    }
}

#[derive(Default)]
struct State {
    letters: Vec<Letter>,
    refusals: usize,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Mailbox {
    port: u16,
    state: Arc<Mutex<State>>,
}

impl Mailbox {
    pub async fn start() -> Mailbox {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let mailbox = Mailbox { port, state: Arc::default() };
        let state = mailbox.state.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let state = state.clone();
                tokio::spawn(async move {
                    let _ = talk(stream, &state).await;
                });
            }
        });
        mailbox
    }

    pub fn url(&self) -> String {
        format!("smtp://127.0.0.1:{}", self.port)
    }

    /// The next letters are refused for a while.
    pub fn refuse(&self, count: usize) {
        self.state.lock().expect("no holder panics").refusals = count;
    }

    pub fn letters(&self) -> Vec<Letter> {
        self.state.lock().expect("no holder panics").letters.clone()
    }

    /// Waits until so many letters have come; answers the newest.
    pub async fn wait(&self, count: usize) -> Letter {
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            let letters = self.letters();
            if letters.len() >= count {
                return letters[count - 1].clone();
            }
            assert!(Instant::now() < end, "{} of {count} letters", letters.len());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

async fn talk(stream: TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    stream.write_all(b"220 here\r\n").await?;
    let (mut letter, mut line) = (Letter::default(), String::new());
    loop {
        line.clear();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let word = line.trim_end().to_uppercase();
        let reply: &[u8] = if word.starts_with("EHLO") {
            b"250-here\r\n250 8BITMIME\r\n"
        } else if word.starts_with("MAIL FROM:") {
            letter = Letter { from: address(&line), ..Letter::default() };
            b"250 ok\r\n"
        } else if word.starts_with("RCPT TO:") {
            letter.to = address(&line);
            b"250 ok\r\n"
        } else if word == "DATA" {
            stream.write_all(b"354 go on\r\n").await?;
            letter.text = text(&mut stream).await?;
            let mut state = state.lock().expect("no holder panics");
            if state.refusals > 0 {
                state.refusals -= 1;
                b"451 later\r\n"
            } else {
                state.letters.push(letter.clone());
                b"250 ok\r\n"
            }
        } else if word == "QUIT" {
            stream.write_all(b"221 bye\r\n").await?;
            return Ok(());
        } else {
            b"250 ok\r\n"
        };
        stream.write_all(reply).await?;
    }
}

fn address(line: &str) -> String {
    let inner = line.split_once('<').and_then(|(_, rest)| rest.split_once('>'));
    inner.map(|(address, _)| address.to_owned()).unwrap_or_default()
}

async fn text(stream: &mut BufReader<TcpStream>) -> std::io::Result<String> {
    let mut text = String::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 || line == ".\r\n" {
            return Ok(text.replace("=\r\n", "").replace("=3D", "=").replace("=20", " "));
        }
        text.push_str(line.strip_prefix('.').unwrap_or(&line));
    }
}
