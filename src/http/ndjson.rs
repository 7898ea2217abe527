//! Many events in one body, one a line (`application/x-ndjson`), answered line by line while the body arrives.

use std::io;
use std::time::Duration;

use actix_web::{HttpRequest, HttpResponse, web};
use bytes::Bytes;
use futures_util::stream;
use serde::Serialize;

use crate::app::App;
use crate::auth::Caller;
use crate::error::{Error, Result};
use crate::http::body::{Body, Content, content_of, parse_line};
use crate::http::lines::Lines;
use crate::ingest::{About, Door, Failure, Origin, Recorded};
use crate::metering::event::Input;
use crate::metering::stored::StoredEvent;
use crate::net::budget::Room;

pub const LINES_MAX: usize = 100_000;
/// Lines in one transaction.
const PART: usize = 1_000;
/// A part is not made longer than about this, or a small packed body would fill the memory.
const PART_BYTES: usize = 1 << 20;
/// A client that has nothing more to send for so long gets its answers.
const PAUSE: Duration = Duration::from_millis(50);

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
    lines: Lines,
    /// Number of the last line that was read, from 1, and how many of them were not empty.
    line: usize,
    events: usize,
    origin: Origin,
    sum: (usize, usize, usize),
    /// The body cannot be read further.
    broken: Option<Error>,
    is_done: bool,
    _unpacked: Option<Room>,
}

/// Stores and answers part by part, while the body arrives. The status is 200 whatever becomes of the lines, unless there
/// is not one.
pub async fn record(app: web::Data<App>, caller: Caller, body: Body) -> Result<HttpResponse> {
    let (unpacked, origin) = (body.room_to_unpack().await?, Origin::of(&caller, Door::Ndjson));
    let mut upload = Upload {
        app,
        caller,
        lines: body.lines()?,
        line: 0,
        events: 0,
        origin,
        sum: (0, 0, 0),
        broken: None,
        is_done: false,
        _unpacked: unpacked,
    };
    let first = upload.take_part().await;
    if first.is_empty() {
        return Err(upload.broken.take().unwrap_or_else(|| Error::invalid("at least one event is required")));
    }
    let parts = stream::unfold((upload, Some(first)), |(mut upload, first)| async move {
        if upload.is_done {
            return None;
        }
        let part = match first {
            Some(first) => first,
            None => upload.take_part().await,
        };
        let told = upload.store(part).await;
        upload.lines.give_back();
        Some((lines(&told), (upload, None)))
    });
    Ok(HttpResponse::Ok().content_type("application/x-ndjson").streaming(parts))
}

/// Lines that can be read, their numbers, and why the others cannot.
#[derive(Default)]
struct Part {
    inputs: Vec<Input>,
    numbers: Vec<usize>,
    failed: Vec<Failure>,
    /// Of the lines, as they were sent.
    bytes: usize,
}

impl Part {
    fn len(&self) -> usize {
        self.inputs.len() + self.failed.len()
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn is_full(&self) -> bool {
        self.len() >= PART || self.bytes >= PART_BYTES
    }
}

fn broken(line: usize, error: Error) -> Told {
    Told::Broken { line, status: "error", code: error.code.as_str().to_owned(), message: error.message }
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
    async fn store(&mut self, part: Part) -> Vec<Told> {
        if part.is_empty() {
            self.is_done = true;
            let (accepted, duplicates, failed) = self.sum;
            return vec![match self.broken.take() {
                Some(error) => broken(self.line + 1, error),
                None => Told::Sum { accepted, duplicates, failed },
            }];
        }
        let Part { inputs, numbers, failed, .. } = part;
        let in_failed = failed.iter().map(|failure| failure.index);
        let first = numbers.iter().copied().chain(in_failed).min().unwrap_or(self.line);
        let refused = failed.len();
        let recorded = match inputs.is_empty() {
            true => Ok(Recorded::nothing()),
            false => self.app.ingest.record_part(self.origin.clone(), inputs, refused).await,
        };
        let caller = &self.caller;
        let recorded = recorded.and_then(|recorded| {
            recorded.moved(&numbers, failed).confined(|meter| caller.ensure_meter_allowed(meter))
        });
        match recorded {
            Ok(recorded) => self.tell(recorded, first),
            Err(error) => {
                self.is_done = true;
                vec![broken(first, error)]
            }
        }
    }

    /// As many lines as make a transaction, or those that are there when nothing more comes for a while.
    async fn take_part(&mut self) -> Part {
        let mut part = Part::default();
        while !part.is_full() && self.broken.is_none() {
            let Some(line) = self.lines.ready() else {
                let more = match part.is_empty() {
                    true => self.lines.more().await,
                    false => match tokio::time::timeout(PAUSE, self.lines.more()).await {
                        Ok(more) => more,
                        Err(_) => break,
                    },
                };
                match more {
                    // a body can be unpacked for long without a wait
                    Ok(true) => tokio::task::yield_now().await,
                    Ok(false) => break,
                    Err(error) => self.broken = Some(error),
                }
                continue;
            };
            self.read(line, &mut part);
        }
        part
    }

    fn read(&mut self, line: Result<String>, part: &mut Part) {
        if line.as_ref().is_ok_and(|line| line.trim().is_empty()) {
            self.line += 1;
            return;
        }
        if self.events == LINES_MAX {
            self.broken = Some(Error::invalid(format!("at most {LINES_MAX} lines may be sent in one call")));
            return;
        }
        (self.line, self.events) = (self.line + 1, self.events + 1);
        part.bytes += line.as_ref().map_or(0, String::len);
        match self.permitted(line) {
            Ok(input) => {
                part.inputs.push(input);
                part.numbers.push(self.line);
            }
            Err(refused) => {
                let (about, error) = *refused;
                let error = self.app.ingest.refuse(&self.origin, about, error);
                part.failed.push(Failure { index: self.line, error });
            }
        }
    }

    /// The event of a line, if it is one that the caller may send.
    fn permitted(&self, line: Result<String>) -> Result<Input, Box<(About, Error)>> {
        let line = line.map_err(|error| Box::new((About::default(), error)))?;
        let input: Input =
            parse_line(line.trim()).map_err(|error| Box::new((About::of_text(line.trim()), error)))?;
        match self.caller.ensure_meter_allowed(input.meter()) {
            Ok(()) => Ok(input),
            Err(error) => Err(Box::new((About::of(&input), error.at("meter")))),
        }
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
