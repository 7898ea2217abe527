//! `events import`: a file of events into a server, in calls of many. Every event has a key, its own or one made of the
//! file and its line, so that a line counts once however often it is sent; where an import was cut off it goes on.

mod lines;

use std::fs::File;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::cli::client::Server;
use crate::cli::{Outcome, print_json};
use crate::config::Config;
use crate::config::commands::EventsImport;
use crate::error::{Code, Error, Result};
use crate::output::print;
use lines::{Line, Lines};

/// Bytes of one call; a server takes more.
const BATCH_BYTES: usize = 1 << 20;

/// How far an import has come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Progress {
    /// Of the whole file: another one begins anew.
    sha256: String,
    url: String,
    /// Lines that are done with.
    lines: u64,
    accepted: u64,
    duplicates: u64,
    failed: u64,
}

#[derive(Deserialize)]
struct BulkResult {
    accepted: u64,
    duplicates: u64,
    #[serde(default)]
    failed_items: Vec<FailedItem>,
}

#[derive(Deserialize)]
struct FailedItem {
    index: usize,
    code: String,
    message: String,
}

struct Import<'a> {
    server: Option<Server>,
    asked: &'a EventsImport,
    progress: Progress,
    progress_file: PathBuf,
    errors_file: PathBuf,
    errors: Option<File>,
    bar: indicatif::ProgressBar,
}

pub async fn run(config: &Config, asked: &EventsImport) -> Result<Outcome> {
    let file = &asked.file;
    let sha256 = lines::digest(file)?;
    let progress_file = beside(file, ".progress.json");
    let new = Progress { sha256: sha256.clone(), url: config.client.url.clone(), ..Progress::default() };
    let progress = match read_progress(&progress_file).filter(|_| !asked.dry_run && !asked.restart) {
        Some(known) if (&known.sha256, &known.url) == (&new.sha256, &new.url) => known,
        _ => new,
    };
    let server = if asked.dry_run { None } else { Some(Server::of(config)?) };
    let errors_file = asked.errors.clone().unwrap_or_else(|| beside(file, ".errors.ndjson"));
    let mut import =
        Import { server, asked, progress, progress_file, errors_file, errors: None, bar: bar(file) };
    let lines = Lines::open(file, asked, &sha256)?;
    let done = import.all(lines).await;
    import.bar.finish_and_clear();
    done?;
    import.report()
}

fn beside(file: &Path, end: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(end);
    name.into()
}

fn read_progress(file: &Path) -> Option<Progress> {
    serde_json::from_str(&std::fs::read_to_string(file).ok()?).ok()
}

/// Shown to people only.
fn bar(file: &Path) -> indicatif::ProgressBar {
    if !std::io::stderr().is_terminal() {
        return indicatif::ProgressBar::hidden();
    }
    let style = indicatif::ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {eta} {msg}");
    let bar = indicatif::ProgressBar::new(file.metadata().map_or(0, |file| file.len()));
    bar.with_style(style.unwrap_or_else(|_| indicatif::ProgressStyle::default_bar()))
}

impl Import<'_> {
    async fn all(&mut self, lines: Lines) -> Result<()> {
        let (mut batch, mut bytes, done) = (Vec::new(), 0, self.progress.lines);
        for line in lines {
            let line = line?;
            if line.number <= done {
                continue;
            }
            bytes += line.event.as_ref().map_or(0, String::len);
            batch.push(line);
            if batch.len() >= self.asked.batch || bytes >= BATCH_BYTES {
                self.send(std::mem::take(&mut batch)).await?;
                bytes = 0;
            }
        }
        if !batch.is_empty() {
            self.send(batch).await?;
        }
        Ok(())
    }

    /// One batch, and the note that it is done with.
    async fn send(&mut self, batch: Vec<Line>) -> Result<()> {
        let last = batch.last().map_or(0, |line| line.number);
        let end = batch.last().map_or(0, |line| line.end);
        let (good, bad): (Vec<Line>, Vec<Line>) = batch.into_iter().partition(|line| line.event.is_ok());
        for line in &bad {
            let message = line.event.as_ref().err().cloned().unwrap_or_default();
            self.fail(line, "unreadable", &message)?;
        }
        // what a call as a whole is refused for is found by sending its halves
        let mut ahead = if good.is_empty() { Vec::new() } else { vec![good] };
        while let Some(mut part) = ahead.pop() {
            match self.store(&part).await? {
                None => {}
                Some(refusal) if part.len() == 1 => self.fail(&part[0], "refused", &refusal.message)?,
                Some(_) => {
                    let second = part.split_off(part.len() / 2);
                    ahead.extend([second, part]);
                }
            }
        }
        self.progress.lines = last;
        self.bar.set_position(end);
        self.bar.set_message(format!("{} lines, {} failed", last, self.progress.failed));
        if self.server.is_some() { self.note() } else { Ok(()) }
    }

    /// Stores some events; the refusal of the call as a whole, when it is about one of them.
    async fn store(&mut self, part: &[Line]) -> Result<Option<Error>> {
        let Some(server) = &self.server else {
            self.progress.accepted += part.len() as u64;
            return Ok(None);
        };
        let events: Vec<&str> = part.iter().filter_map(|line| line.event.as_deref().ok()).collect();
        let body = format!("[{}]", events.join(","));
        let answer = server.call(Method::POST, "/v1/usages/bulk", Some(&body)).await?;
        match (answer.status, serde_json::from_str::<BulkResult>(&answer.text)) {
            (200..=299 | 400, Ok(result)) => {
                self.progress.accepted += result.accepted;
                self.progress.duplicates += result.duplicates;
                for item in &result.failed_items {
                    if let Some(line) = part.get(item.index) {
                        self.fail(line, &item.code, &item.message)?;
                    }
                }
                Ok(None)
            }
            (400 | 403 | 413, _) => Ok(Some(answer.refusal())),
            _ => Err(answer.refusal()),
        }
    }

    /// Writes down a line that was not stored, and why.
    fn fail(&mut self, line: &Line, code: &str, message: &str) -> Result<()> {
        self.progress.failed += 1;
        let errors = match &mut self.errors {
            Some(errors) => errors,
            none => {
                let continues = self.progress.lines > 0;
                let opened = File::options()
                    .create(true)
                    .write(true)
                    .append(continues)
                    .truncate(!continues)
                    .open(&self.errors_file);
                none.insert(opened.map_err(|error| cannot("write", &self.errors_file, &error))?)
            }
        };
        let text = json!({"line": line.number, "code": code, "message": message, "text": line.text});
        writeln!(errors, "{text}").map_err(|error| cannot("write", &self.errors_file, &error))
    }

    fn note(&self) -> Result<()> {
        let text = serde_json::to_string(&self.progress).map_err(Error::internal)?;
        let part = beside(&self.progress_file, ".part");
        let written = std::fs::write(&part, text).and_then(|()| std::fs::rename(&part, &self.progress_file));
        written.map_err(|error| cannot("write", &self.progress_file, &error))
    }

    fn report(&self) -> Result<Outcome> {
        // done: whoever runs it again means to do it again
        let _ = std::fs::remove_file(&self.progress_file);
        let Progress { lines, accepted, duplicates, failed, .. } = &self.progress;
        if self.asked.json.json {
            print_json(&json!({
                "lines": lines, "accepted": accepted, "duplicates": duplicates, "failed": failed,
                "dry_run": self.asked.dry_run,
            }))?;
        } else {
            let what = if self.asked.dry_run { "could be sent, nothing was" } else { "stored" };
            print(&format!(
                "{lines} lines: {accepted} {what}, {duplicates} were there already, {failed} failed\n"
            ));
            if *failed > 0 {
                print(&format!("what failed, and why: {}\n", self.errors_file.display()));
            }
        }
        Ok(if *failed > 0 { Outcome::Findings } else { Outcome::Done })
    }
}

fn cannot(what: &str, file: &Path, error: &std::io::Error) -> Error {
    Error::new(Code::Internal, format!("cannot {what} {}: {error}", file.display()))
}
