//! The bodies of requests: read within limits and budgets, unpacked, and parsed as one JSON text or line by line
//! (rest.md 2). What the fields mean is the handlers' business.

use std::future::{Future, Ready, ready};
use std::io::Read;
use std::pin::Pin;
use std::time::Duration;

use actix_web::dev::Payload;
use actix_web::http::header;
use actix_web::{FromRequest, HttpMessage, HttpRequest, web};
use flate2::read::{MultiGzDecoder, ZlibDecoder};
use futures_util::StreamExt;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

use crate::app::App;
use crate::auth::Caller;
use crate::blocking;
use crate::error::{Code, Error, Result};
use crate::http::lines::{self, Lines, Piece, Unpacker};
use crate::ingest::refusal::cut_payload;
use crate::ingest::{About, Ingest, Origin};
use crate::net::budget::{Budget, Room, Tenant};
use crate::net::upload::Upload;

/// A body that has not been read yet.
pub struct Body {
    payload: Payload,
    announced: Option<usize>,
    limit: usize,
    encoding: Result<Encoding>,
    request: HttpRequest,
    budget: Option<Budget>,
}

const KIB: usize = 1024;
/// A larger body is read by a thread that may be kept busy.
const PARSED_HERE: usize = 64 * KIB;
/// So much of a body that is too long is taken off the wire at least: a client that is still sending would not read
/// the answer.
const DRAINED: usize = 1024 * KIB;

/// The longest body of a route, decoded. Few routes take more than a form; a filter may name thousands of values, and
/// one event may be as long as its metadata.
fn body_limit(pattern: &str, most: usize) -> usize {
    let limit = match pattern.trim_end_matches('/') {
        "/v1/usages/bulk" | "/v1/cloudevents" | "/api/v1/events" => return most,
        "/v1/usages" | "/v1/entitlements/consume" => 1024 * KIB,
        "/v1/usages/search"
        | "/v1/usages/export"
        | "/v1/usages/breakdowns/search"
        | "/v1/usageevents/search"
        | "/v1/usageevents/export"
        | "/v1/exports" => 2048 * KIB,
        // a hundred dimensions with their descriptions
        "/v1/meters" | "/v1/meters/{id}" => 1024 * KIB,
        // a thousand limits
        "/v1/plans" | "/v1/plans/{id}" | "/v1/plans/{id}/preview" => 512 * KIB,
        // a thousand names of meters
        "/v1/auth/api-keys" => 256 * KIB,
        "/v1/auth/users"
        | "/v1/auth/sessions"
        | "/v1/auth/session/refresh"
        | "/v1/auth/password"
        | "/v1/auth/password-resets/{token}" => 16 * KIB,
        _ => 128 * KIB,
    };
    limit.min(most)
}

/// Of a body whose items are lines, whatever the limit of other bodies.
const LINES_LIMIT: usize = 32 * KIB * KIB;

/// How a body is divided into items.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// One JSON text.
    Whole,
    /// One on each line.
    Lines,
}

pub fn content_of(request: &HttpRequest) -> Content {
    let value = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let name = value.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    let is_lines = ["application/x-ndjson", "application/ndjson", "application/jsonl"]
        .iter()
        .any(|lines| name.eq_ignore_ascii_case(lines));
    if is_lines { Content::Lines } else { Content::Whole }
}

/// Whether what is sent is said to be JSON, or lines of it, or nothing is said: what a form sends always says what it is.
pub fn is_json(request: &HttpRequest) -> bool {
    let named = request.headers().get(header::CONTENT_TYPE);
    let Some(named) = named.map(|value| value.to_str().unwrap_or("?")) else { return true };
    let name = named.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    name == "application/json" || name.ends_with("+json") || content_of(request) == Content::Lines
}

/// How a body is packed.
#[derive(Clone, Copy)]
enum Encoding {
    Plain,
    Gzip,
    Deflate,
    Zstd,
}

impl Encoding {
    fn of(request: &HttpRequest) -> Result<Self> {
        let named: Vec<&[u8]> =
            request.headers().get_all(header::CONTENT_ENCODING).map(|v| v.as_bytes()).collect();
        let word = named.join(&b","[..]).to_ascii_lowercase();
        match word.trim_ascii() {
            b"" | b"identity" => Ok(Encoding::Plain),
            b"gzip" | b"x-gzip" => Ok(Encoding::Gzip),
            b"deflate" => Ok(Encoding::Deflate),
            b"zstd" => Ok(Encoding::Zstd),
            _ => Err(Error::new(
                Code::UnsupportedEncoding,
                "content encoding must be gzip, deflate, zstd or identity",
            )),
        }
    }

    /// The bytes that were packed: never more than the limit is kept.
    fn decode(self, bytes: Vec<u8>, limit: usize) -> Result<Vec<u8>> {
        let mut decoded = Vec::new();
        let most = limit as u64 + 1;
        let read = match self {
            Encoding::Plain => return Ok(bytes),
            Encoding::Gzip => MultiGzDecoder::new(&*bytes).take(most).read_to_end(&mut decoded),
            Encoding::Deflate => ZlibDecoder::new(&*bytes).take(most).read_to_end(&mut decoded),
            Encoding::Zstd => return lines::unpack_zstd(&bytes, limit),
        };
        read.map_err(|_| Error::invalid_json())?;
        if decoded.len() > limit { Err(too_large(limit)) } else { Ok(decoded) }
    }

    fn unpacker(self) -> Unpacker {
        match self {
            Encoding::Plain => Unpacker::Plain,
            Encoding::Gzip => Unpacker::gzip(),
            Encoding::Deflate => Unpacker::deflate(),
            Encoding::Zstd => Unpacker::zstd(),
        }
    }
}

pub fn too_large(limit: usize) -> Error {
    Error::new(Code::RequestTooLarge, format!("request body exceeds {limit} bytes"))
}

/// How long a body may wait for room in memory.
const ROOM_TIMEOUT: Duration = Duration::from_secs(2);
/// A body in lines waits for what is being stored, of others too.
const LINES_ROOM_TIMEOUT: Duration = Duration::from_secs(30);
/// What is set aside for a body before any of it is there.
const FIRST_BYTES: usize = 16 * 1024;

impl FromRequest for Body {
    type Error = Error;
    type Future = Ready<Result<Self>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let announced =
            request.headers().get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
        let app = request.app_data::<web::Data<App>>();
        let most = app.map_or(0, |app| app.config.ingest.max_body_bytes);
        let pattern = request.match_pattern().unwrap_or_default();
        let is_lines = pattern == "/v1/usages/bulk" && content_of(request) == Content::Lines;
        let limit = if is_lines { LINES_LIMIT } else { body_limit(&pattern, most) };
        let (request, encoding) = (request.clone(), Encoding::of(request));
        let budget = app.map(|app| app.bodies.clone());
        ready(Ok(Body { payload: payload.take(), announced, limit, encoding, request, budget }))
    }
}

impl Body {
    /// The whole body, unpacked, or 413 when it is longer than the server's limit. The room that it takes is given back
    /// when the request is answered.
    async fn bytes(mut self) -> Result<Vec<u8>> {
        let mut room = self.room();
        let mut bytes = Vec::with_capacity(self.announced.unwrap_or(0).min(self.limit).min(FIRST_BYTES));
        let (mut size, mut upload) = (0usize, Upload::default());
        let late = || Error::invalid("the request body took too long");
        while let Some(chunk) = upload.wait_for(self.payload.next()).await.ok_or_else(late)? {
            let chunk = chunk.map_err(|_| Error::invalid_json())?;
            size += chunk.len();
            upload.note(chunk.len());
            if size <= self.limit {
                if let Some(room) = &mut room {
                    room.grow_within(ROOM_TIMEOUT, chunk.len()).await?;
                }
                bytes.extend_from_slice(&chunk);
            } else if size > DRAINED.max(self.limit * 2) {
                break;
            }
        }
        if size > self.limit {
            return Err(too_large(self.limit));
        }
        let encoding = self.encoding.clone()?;
        if !matches!(encoding, Encoding::Plain) {
            // a thousandth of it on the wire: how much it is, is known when it is unpacked
            if let Some(room) = &mut room {
                room.grow_within(ROOM_TIMEOUT, self.limit).await?;
            }
            let limit = self.limit;
            let unpack = move || encoding.decode(bytes, limit);
            bytes = blocking::begin(unpack).await.map_err(Error::internal)??;
            room.iter_mut().for_each(|room| room.shrink_to(bytes.len()));
        }
        if let Some(room) = room {
            self.request.extensions_mut().insert(room);
        }
        Ok(bytes)
    }

    /// Room in memory, of the caller's share.
    fn room(&self) -> Option<Room> {
        self.budget.as_ref().map(|budget| budget.room(self.tenant()))
    }

    fn tenant(&self) -> Tenant {
        let workspace = self.request.extensions().get::<Caller>().map(|caller| caller.workspace_id);
        workspace.map_or(Tenant::Nobody, Tenant::Workspace)
    }

    /// Reads the body as a value, away from the other requests of this thread when that may take long.
    async fn read<T: Send + 'static>(self, parse: fn(&str) -> Result<T>) -> Result<T> {
        // what cannot be unpacked is not waited for
        self.encoding.clone()?;
        let bytes = self.bytes().await?;
        let is_short = bytes.len() <= PARSED_HERE;
        let read = move || {
            // bytes that are no text would become the same text as other such bytes
            parse(std::str::from_utf8(&bytes).map_err(|_| Error::invalid_json())?)
        };
        if is_short { read() } else { blocking::begin(read).await.map_err(Error::internal)? }
    }

    /// A JSON object; absent fields and `null` become defaults.
    pub async fn object<T: DeserializeOwned + Default + Send + 'static>(self) -> Result<T> {
        self.read(parse_object).await
    }

    /// The same; what is none is told with what was sent.
    pub async fn object_sent<T: DeserializeOwned + Default + Send + 'static>(self) -> Result<T, Unread> {
        let read = self.read(|text| Ok(parse_object(text).map_err(|error| Unread::of(text, error))));
        read.await.map_err(Unread::from)?
    }

    /// A JSON array; `null` is the empty one. NUL characters are left to the handler: an item that holds one fails
    /// alone. What is no array is told with what was sent.
    pub async fn array_sent<T: DeserializeOwned + Send + 'static>(self) -> Result<Vec<T>, Unread> {
        let read = self.read(|text| Ok(parse_json(text, b'[').map_err(|error| Unread::of(text, error))));
        read.await.map_err(Unread::from)?
    }

    /// The lines of the body, while it arrives. What is sent is taken off the wire whether or not anybody asks for lines
    /// meanwhile: most clients read no answer before they have sent everything.
    pub fn lines(self) -> Result<Lines> {
        let (encoding, limit) = (self.encoding.clone()?, self.limit);
        let is_too_large = self.announced.is_some_and(|size| size > limit);
        let (sender, pieces) = mpsc::unbounded_channel();
        actix_web::rt::spawn(self.take_off(sender));
        // what is sent of it is taken off the wire all the same, so that the client sees the answer
        if is_too_large { Err(too_large(limit)) } else { Ok(Lines::new(pieces, encoding.unpacker(), limit)) }
    }

    /// Room for what the lines of a packed body may take at once, whatever their pieces are: a kilobyte can be a thousand of
    /// them. For as long as they are read; nothing of the body is taken before. None for one that is not packed.
    pub async fn room_to_unpack(&self) -> Result<Option<Room>> {
        let bytes = match self.encoding.clone()? {
            Encoding::Plain => return Ok(None),
            Encoding::Gzip | Encoding::Deflate => lines::UNPACKED_BYTES_MAX,
            Encoding::Zstd => lines::UNPACKED_BYTES_MAX + lines::WINDOW_BYTES,
        };
        let Some(app) = self.request.app_data::<web::Data<App>>() else { return Ok(None) };
        let mut room = app.streams.room(self.tenant());
        room.grow_within(LINES_ROOM_TIMEOUT, bytes).await?;
        Ok(Some(room))
    }

    /// Hands on each piece as it comes, with its room, which is given back when its lines are stored: large bodies side by
    /// side wait for each other instead of being refused.
    async fn take_off(mut self, to: mpsc::UnboundedSender<Result<Piece>>) {
        let (mut size, mut upload) = (0usize, Upload::default());
        loop {
            let chunk = match upload.wait_for(self.payload.next()).await {
                Some(Some(Ok(chunk))) => chunk,
                Some(None) => return,
                Some(Some(Err(_))) => return drop(to.send(Err(Error::invalid_json()))),
                None => return drop(to.send(Err(Error::invalid("the request body took too long")))),
            };
            let is_first_too_many = size <= self.limit && size + chunk.len() > self.limit;
            size += chunk.len();
            upload.note(chunk.len());
            if is_first_too_many {
                let _ = to.send(Err(too_large(self.limit)));
            }
            if size > DRAINED.max(self.limit * 2) {
                return;
            }
            // what nobody wants is read over, so that the client sees its answer
            if size > self.limit || to.is_closed() {
                continue;
            }
            let mut room = self.room();
            // as of other packed bodies; more than this is unpacked piece by piece
            let times = if matches!(self.encoding, Ok(Encoding::Plain)) { 1 } else { 10 };
            if let Some(room) = &mut room
                && let Err(error) = room.grow_within(LINES_ROOM_TIMEOUT, times * chunk.len()).await
            {
                return drop(to.send(Err(error)));
            }
            let _ = to.send(Ok(Piece { bytes: chunk, room }));
        }
    }

    /// The body as it is.
    pub async fn text(self) -> Result<String> {
        self.read(|text| Ok(text.to_owned())).await
    }

    /// One object or an array of them; what is neither is told with what was sent.
    pub async fn events<T: DeserializeOwned + Default + Send + 'static>(self) -> Result<Events<T>, Unread> {
        let read = self.read(|text| Ok(parse_events(text).map_err(|error| Unread::of(text, error))));
        read.await.map_err(Unread::from)?
    }
}

/// A body that could not be read, and as much of its text as is kept of what is refused.
pub struct Unread {
    pub error: Error,
    pub text: Option<String>,
}

impl Unread {
    fn of(text: &str, error: Error) -> Unread {
        Unread { error, text: Some(cut_payload(text)) }
    }

    /// Told in the list of refused events; what is left is what is answered.
    pub fn told(self, ingest: &Ingest, origin: &Origin) -> Error {
        let about = About { payload: self.text, ..About::default() };
        ingest.refuse(origin, about, self.error)
    }
}

impl From<Error> for Unread {
    fn from(error: Error) -> Unread {
        Unread { error, text: None }
    }
}

fn parse_object<T: DeserializeOwned + Default>(text: &str) -> Result<T> {
    if has_nul(text) {
        return Err(Error::invalid("NUL characters are not allowed"));
    }
    parse_json(text, b'{')
}

fn parse_events<T: DeserializeOwned + Default>(text: &str) -> Result<Events<T>> {
    let events = match text.trim_start().starts_with('[') {
        true => parse_json(text, b'[')?,
        false => vec![parse_json(text, b'{')?],
    };
    Ok(Events { events })
}

/// What a body of one or several holds.
pub struct Events<T> {
    pub events: Vec<T>,
}

/// One line of a body.
pub fn parse_line<T: DeserializeOwned + Default>(line: &str) -> Result<T> {
    parse_json(line, b'{')
}

fn parse_json<T: DeserializeOwned + Default>(text: &str, opening: u8) -> Result<T> {
    // derived structs would also read themselves from arrays
    let first = text.trim_start_matches([' ', '\t', '\r', '\n']).bytes().next();
    if first != Some(opening) && first != Some(b'n') || is_too_deep(text.as_bytes()) {
        return Err(Error::invalid_json());
    }
    let parsed: serde_json::Result<Option<T>> = serde_json::from_str(text);
    match parsed {
        Ok(value) => Ok(value.unwrap_or_default()),
        Err(_) if text.contains("\\u") => {
            let mended: serde_json::Result<Option<T>> = serde_json::from_str(&mend_surrogates(text));
            mended.map(Option::unwrap_or_default).map_err(|_| Error::invalid_json())
        }
        Err(_) => Err(Error::invalid_json()),
    }
}

/// What the parser takes in fields that somebody reads.
const NESTING_MAX: usize = 127;

/// Whether JSON text is nested deeper than the parser takes, also inside fields that nobody reads.
fn is_too_deep(json: &[u8]) -> bool {
    let (mut depth, mut at) = (0usize, 0);
    while let Some(byte) = json.get(at) {
        at += 1;
        match byte {
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            b'"' => at = string_end(json, at),
            _ => {}
        }
        if depth > NESTING_MAX {
            return true;
        }
    }
    false
}

/// The position behind the closing quote of a string that starts here.
fn string_end(json: &[u8], mut at: usize) -> usize {
    while let Some(found) =
        json.get(at..).and_then(|rest| rest.iter().position(|b| matches!(b, b'"' | b'\\')))
    {
        at += found;
        if json[at] == b'"' {
            return at + 1;
        }
        at += 2;
    }
    json.len()
}

/// Whether JSON text holds an escaped NUL, which PostgreSQL cannot store.
pub(super) fn has_nul(json: &str) -> bool {
    json.match_indices("\\u0000").any(|(at, _)| {
        let backslashes = json.as_bytes()[..at].iter().rev().take_while(|byte| **byte == b'\\').count();
        backslashes % 2 == 0
    })
}

/// Escapes of lone surrogates become U+FFFD; valid pairs stay (rest.md 2).
fn mend_surrogates(json: &str) -> String {
    let unit = |at: usize| -> Option<u32> {
        let digits = json.get(at..at + 6)?.strip_prefix("\\u")?;
        u32::from_str_radix(digits, 16).ok()
    };
    let mut mended = String::with_capacity(json.len());
    let mut at = 0;
    while let Some(rest) = json.get(at..).filter(|rest| !rest.is_empty()) {
        let Some(next) = rest.find('\\') else {
            mended.push_str(rest);
            break;
        };
        mended.push_str(&rest[..next]);
        at += next;
        let (text, length) = match (unit(at), unit(at + 6)) {
            (Some(0xD800..=0xDBFF), Some(0xDC00..=0xDFFF)) => (&json[at..at + 12], 12),
            (Some(0xD800..=0xDFFF), _) => ("\\ufffd", 6),
            _ => {
                let end =
                    json[at + 1..].char_indices().nth(1).map_or(json.len(), |(offset, _)| at + 1 + offset);
                (&json[at..end], end - at)
            }
        };
        mended.push_str(text);
        at += length;
    }
    mended
}

/// A JSON object as a handler's argument.
pub struct Json<T>(pub T);

impl<T: DeserializeOwned + Default + Send + 'static> FromRequest for Json<T> {
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self>>>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let body = Body::from_request(request, payload).into_inner();
        Box::pin(async move { body?.object().await.map(Json) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_form_sends_is_no_json() {
        let judge = |headers: &[(&'static str, &str)]| {
            let mut request = actix_web::test::TestRequest::post();
            for (name, value) in headers {
                request = request.insert_header((*name, *value));
            }
            is_json(&request.to_http_request())
        };
        for good in [
            "application/json",
            "Application/JSON; charset=utf-8",
            "application/cloudevents+json",
            "application/x-ndjson",
        ] {
            assert!(judge(&[("content-type", good)]), "{good}");
        }
        for form in
            ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "", "json"]
        {
            assert!(!judge(&[("content-type", form)]), "{form}");
        }
        assert!(judge(&[]) && judge(&[("content-length", "2")]));
    }

    #[test]
    fn surrogates_are_mended_and_pairs_kept() {
        let mended = mend_surrogates(r#"{"a":"\ud800x\uD83D\uDE00\\ud800\n\udfff"}"#);
        assert_eq!(mended, r#"{"a":"\ufffdx\uD83D\uDE00\\ud800\n\ufffd"}"#);
        let parsed: serde_json::Value = serde_json::from_str(&mended).expect("json");
        assert_eq!(parsed["a"], "\u{fffd}x\u{1F600}\\ud800\n\u{fffd}");
    }

    #[test]
    fn nul_is_seen_through_backslashes() {
        assert!(has_nul(r#""a\u0000""#));
        assert!(!has_nul(r#""a\\u0000""#));
        assert!(has_nul(r#""a\\\u0000""#));
    }

    #[test]
    fn nesting_is_counted_outside_of_strings() {
        let nested = |depth: usize| format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
        assert!(!is_too_deep(nested(NESTING_MAX).as_bytes()));
        assert!(is_too_deep(nested(NESTING_MAX + 1).as_bytes()));
        // the parser has the same limit
        assert!(serde_json::from_str::<serde_json::Value>(&nested(NESTING_MAX)).is_ok());
        assert!(serde_json::from_str::<serde_json::Value>(&nested(NESTING_MAX + 1)).is_err());
        let text = format!(r#"{{"a\"\\":"{0}","b\\":["{0}\"{0}"]}}"#, "{".repeat(100));
        assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok());
        assert!(!is_too_deep(text.as_bytes()));
        assert!(!is_too_deep("[],".repeat(1_000).as_bytes()));
        for broken in ["\"", "\"\\", "{\"a", "]]]", "\"\\\""] {
            assert!(!is_too_deep(broken.as_bytes()), "{broken}");
        }
    }
}
