//! Many events in one body, one a line (`application/x-ndjson`), answered line by line while they are stored.

use std::io;

use actix_web::{HttpRequest, HttpResponse, web};
use bytes::Bytes;
use futures_util::stream;
use serde::Serialize;
use uuid::Uuid;

use crate::app::App;
use crate::auth::Caller;
use crate::chance;
use crate::error::{Error, Result};
use crate::http::extract::{Body, Content, content_of, parse_line};
use crate::ingest::{Failure, Recorded};
use crate::metering::event::{Input, StoredEvent};

pub const LINES_MAX: usize = 100_000;
/// Lines in one transaction.
const PART: usize = 1_000;

pub fn is_asked(request: &HttpRequest) -> bool {
    content_of(request) == Content::Lines
}

/// What became of a line; the last one of an answer is the sum.
#[derive(Serialize)]
#[serde(untagged)]
enum Told {
    Line {
        line: usize,
        status: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        code: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        message: Option<String>,
        /// The key was first used with another payload.
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        conflict: bool,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        conflict_fields: Vec<&'static str>,
    },
    Sum {
        accepted: usize,
        duplicates: usize,
        failed: usize,
    },
    /// From this line on nothing was stored.
    Broken {
        line: usize,
        status: &'static str,
        code: String,
        message: String,
    },
}

impl Told {
    fn stored(line: usize, status: &'static str, event: StoredEvent) -> Told {
        let StoredEvent { id, conflict, conflict_fields, .. } = event;
        Told::Line { line, status, id: Some(id), code: None, message: None, conflict, conflict_fields }
    }
}

struct Upload {
    app: web::Data<App>,
    caller: Caller,
    text: String,
    /// Where the next line begins, and its number, from 1.
    at: usize,
    line: usize,
    run_id: Uuid,
    sum: (usize, usize, usize),
    is_done: bool,
}

/// Reads all, then stores and answers part by part. The status is 200 whatever becomes of the lines.
pub async fn record(app: web::Data<App>, caller: Caller, body: Body) -> Result<HttpResponse> {
    let text = body.text().await?;
    if text.lines().filter(|line| !line.trim().is_empty()).take(LINES_MAX + 1).count() > LINES_MAX {
        return Err(Error::invalid(format!("at most {LINES_MAX} lines may be sent in one call")));
    }
    if text.trim().is_empty() {
        return Err(Error::invalid("at least one event is required"));
    }
    let run_id = chance::id();
    let upload = Upload { app, caller, text, at: 0, line: 0, run_id, sum: (0, 0, 0), is_done: false };
    let parts = stream::unfold(upload, |mut upload| async move {
        if upload.is_done {
            return None;
        }
        let told = upload.next_part().await;
        Some((lines(&told), upload))
    });
    Ok(HttpResponse::Ok().content_type("application/x-ndjson").streaming(parts))
}

fn lines(told: &[Told]) -> io::Result<Bytes> {
    let mut text = Vec::new();
    for one in told {
        serde_json::to_writer(&mut text, one)?;
        text.push(b'\n');
    }
    Ok(text.into())
}

impl Upload {
    async fn next_part(&mut self) -> Vec<Told> {
        let first = self.line + 1;
        let (inputs, numbers, failed) = self.take_part();
        if inputs.is_empty() && failed.is_empty() {
            self.is_done = true;
            let (accepted, duplicates, failed) = self.sum;
            return vec![Told::Sum { accepted, duplicates, failed }];
        }
        let refused = failed.len();
        let recorded = match inputs.is_empty() {
            true => Ok(Recorded::nothing()),
            false => {
                self.app.ingest.record_part(self.caller.workspace_id, self.run_id, inputs, refused).await
            }
        };
        let caller = &self.caller;
        let recorded = recorded.and_then(|recorded| {
            recorded.moved(&numbers, failed).confined(|meter| caller.ensure_meter_allowed(meter))
        });
        match recorded {
            Ok(recorded) => self.tell(recorded, first),
            Err(error) => {
                self.is_done = true;
                let (code, message) = (error.code.as_str().to_owned(), error.message);
                vec![Told::Broken { line: first, status: "error", code, message }]
            }
        }
    }

    /// The next lines: those that can be read, their numbers, and why the others cannot.
    fn take_part(&mut self) -> (Vec<Input>, Vec<usize>, Vec<Failure>) {
        let (mut inputs, mut numbers, mut failed) = (Vec::new(), Vec::new(), Vec::new());
        while inputs.len() + failed.len() < PART && self.at < self.text.len() {
            let rest = &self.text[self.at..];
            let length = rest.find('\n').unwrap_or(rest.len());
            let line = rest[..length].trim();
            self.at += length + 1;
            self.line += 1;
            if line.is_empty() {
                continue;
            }
            let caller = &self.caller;
            let input = parse_line::<Input>(line)
                .and_then(|input| caller.ensure_meter_allowed(input.meter()).map(|()| input));
            match input {
                Ok(input) => {
                    inputs.push(input);
                    numbers.push(self.line);
                }
                Err(error) => failed.push(Failure { index: self.line, error }),
            }
        }
        (inputs, numbers, failed)
    }

    /// One answer per line, in the order of the lines.
    fn tell(&mut self, recorded: Recorded, first: usize) -> Vec<Told> {
        let Recorded { accepted, duplicates, failed, accepted_places, duplicate_places, .. } = recorded;
        self.sum.0 += accepted.len();
        self.sum.1 += duplicates.len();
        self.sum.2 += failed.len();
        let mut told: Vec<(usize, Told)> =
            Vec::with_capacity(accepted.len() + duplicates.len() + failed.len());
        let stored = [("accepted", accepted, accepted_places), ("duplicate", duplicates, duplicate_places)];
        for (status, events, places) in stored {
            for (event, line) in events.into_iter().zip(places) {
                told.push((line, Told::stored(line, status, event)));
            }
        }
        for Failure { index: line, error } in failed {
            let (code, message) = (Some(error.code.as_str().to_owned()), Some(error.message));
            let (conflict, conflict_fields) = (false, Vec::new());
            let failed =
                Told::Line { line, status: "failed", id: None, code, message, conflict, conflict_fields };
            told.push((line, failed));
        }
        debug_assert!(told.iter().all(|(line, _)| *line >= first), "lines of this part");
        told.sort_by_key(|(line, _)| *line);
        told.into_iter().map(|(_, told)| told).collect()
    }
}
