//! How log lines look, as text for people or as JSON for machines, always on standard error.
//!
//! Both carry the same parts in the same order: time, level, target, message, key-values, and the id of the request that
//! is being answered. A line is one line: control characters are escaped, so nobody can forge a second one. What is worth
//! logging, and which key-values go with it, is decided where it happens, never here.

pub mod spans;
mod trace;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use env_logger::{Builder, Logger, Target, WriteStyle};
use jiff::Timestamp;
use log::kv::{Error, Key, Value, VisitSource};
use log::{Log, Metadata, Record};
use serde_json::value::Value as Json;
use uuid::Uuid;

use crate::config::LogFormat;
use crate::{chance, clock};

pub use trace::Trace;

const REQUEST_ID: &str = "request_id";
const TRACE_ID: &str = "trace_id";

/// How a request is known: in the log, and in the tools of who sent it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Request(Arc<Ids>);

#[derive(Debug)]
struct Ids {
    id: String,
    /// The same, where this server gave it.
    given: Option<Uuid>,
    trace: Option<Trace>,
}

impl Request {
    /// Under the id that its sender gave it, or else one of this server.
    pub fn new(sent: Option<String>, trace: Option<Trace>) -> Self {
        let given = sent.is_none().then(chance::id);
        let id = sent.or_else(|| given.map(|id| id.to_string())).unwrap_or_default();
        Request(Arc::new(Ids { id, given, trace }))
    }

    pub fn id(&self) -> &str {
        &self.0.id
    }

    /// The id, if its sender gave none.
    pub fn given(&self) -> Option<Uuid> {
        self.0.given
    }

    pub fn trace(&self) -> Option<&Trace> {
        self.0.trace.as_ref()
    }
}

tokio::task_local! {
    /// The request that is being answered.
    static REQUEST: Request;
}

/// Every line that `work` logs names this request.
pub async fn within_request<F: Future>(request: Request, work: F) -> F::Output {
    REQUEST.scope(request, work).await
}

/// The request that is being answered, to be taken along to another thread.
pub fn current_request() -> Option<Request> {
    REQUEST.try_with(Request::clone).ok()
}

/// Goes on with a request on this thread.
pub fn resume_request<T>(request: Option<Request>, work: impl FnOnce() -> T) -> T {
    match request {
        Some(request) => REQUEST.sync_scope(request, work),
        None => work(),
    }
}

/// Longest time that repeats of one line are counted instead of written.
const FOLD: Duration = Duration::from_secs(10);

/// A line that may come again and again: written at once, then at most every 10 s, with the number of those between.
#[derive(Debug, Default)]
pub struct Folded(Mutex<(Option<Instant>, u64)>);

impl Folded {
    pub const fn new() -> Self {
        Folded(Mutex::new((None, 0)))
    }

    pub fn say(&self, line: impl FnOnce(u64)) {
        self.say_every(FOLD, line);
    }

    /// The same with another pause.
    pub fn say_every(&self, pause: Duration, line: impl FnOnce(u64)) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, repeats) = &mut *state;
        if last.is_some_and(|last| clock::since(last) < pause) {
            *repeats += 1;
            return;
        }
        let count = std::mem::take(repeats);
        *last = Some(clock::moment());
        drop(state);
        line(count);
    }
}

fn written_at() -> Timestamp {
    Timestamp::from_microsecond(clock::machine().0).unwrap_or_default()
}

/// Lines of a few kinds, each folded by itself. A kind is never made of what a caller sends: there is one counter for each.
#[derive(Debug)]
pub struct FoldedKinds<K>(Mutex<BTreeMap<K, Arc<Folded>>>);

impl<K: Ord> FoldedKinds<K> {
    pub const fn new() -> Self {
        FoldedKinds(Mutex::new(BTreeMap::new()))
    }

    pub fn say(&self, kind: K, line: impl FnOnce(u64)) {
        let mut kinds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let folded = kinds.entry(kind).or_default().clone();
        drop(kinds);
        folded.say(line);
    }
}

impl<K: Ord> Default for FoldedKinds<K> {
    fn default() -> Self {
        FoldedKinds::new()
    }
}

/// Longest value of a key, in characters.
const VALUE_CHARS: usize = 1024;
/// Longest message, in characters; more than a value, for a backtrace.
const MESSAGE_CHARS: usize = 8192;

/// Where the HTTP library logs an error for every request that it cannot read, which anybody can send at any rate. Our
/// own lines say what became of requests that could be read. A filter that names these targets wins.
const STRANGERS: &str = "actix_http=off";

/// The logger in use; a later `init` replaces it, which `log` itself does not allow.
static CURRENT: RwLock<Option<Logger>> = RwLock::new(None);

/// Which process this is, as each of its lines of JSON says: several may end in one place.
static PROCESS: OnceLock<(&str, String)> = OnceLock::new();

/// From here on each line of JSON says which process wrote it.
pub fn introduce(role: &'static str, host: &str, process: u32) {
    let _ = PROCESS.set((role, format!("{host}/{process}")));
}

/// Starts logging what the filter (in the syntax of `RUST_LOG`) lets through. Calling it again
/// changes format and filter.
pub fn init(format: LogFormat, filter: &str) {
    let line = match format {
        LogFormat::Text => text,
        LogFormat::Json => json,
        LogFormat::Auto if std::io::stderr().is_terminal() => text,
        LogFormat::Auto => json,
    };
    let logger = Builder::new()
        .parse_filters(&format!("{STRANGERS},{filter}"))
        .target(Target::Stderr)
        .write_style(WriteStyle::Never)
        .format(move |out, record| out.write_all(line(written_at(), record).as_bytes()))
        .build();
    let level = logger.filter();
    *CURRENT.write().unwrap_or_else(PoisonError::into_inner) = Some(logger);
    // fails when a logger is set already: ours, or that of a program we are part of
    let _ = log::set_logger(&Current);
    log::set_max_level(level);
}

struct Current;

impl Current {
    fn with<T>(&self, act: impl FnOnce(&Logger) -> T) -> Option<T> {
        CURRENT.read().unwrap_or_else(PoisonError::into_inner).as_ref().map(act)
    }
}

impl Log for Current {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.with(|logger| logger.enabled(metadata)).unwrap_or(false)
    }

    fn log(&self, record: &Record<'_>) {
        self.with(|logger| logger.log(record));
    }

    fn flush(&self) {
        self.with(|logger| logger.flush());
    }
}

/// `2026-11-21T05:32:10.123Z INFO  open_spanner::serve listening http=127.0.0.1:18081`
fn text(time: Timestamp, record: &Record<'_>) -> String {
    let message = escaped(&cut(&record.args().to_string(), MESSAGE_CHARS));
    let mut line = format!("{time:.3} {:<5} {} {message}", record.level(), record.target());
    each(record, |key, value| {
        let value = match value {
            Json::String(text) => cut(&text, VALUE_CHARS),
            other => cut(&other.to_string(), VALUE_CHARS),
        };
        let needs_quotes = value.is_empty() || value.contains([' ', '"', '=']);
        let value = escaped(&value);
        // a quote inside must not look like the end of the value
        let value = if needs_quotes { format!("\"{}\"", value.replace('"', "\\\"")) } else { value };
        let _ = write!(line, " {key}={value}");
    });
    line.push('\n');
    line
}

/// `{"time":"…","level":"INFO","target":"…","message":"…","http":"127.0.0.1:18081"}`
fn json(time: Timestamp, record: &Record<'_>) -> String {
    let message = cut(&record.args().to_string(), MESSAGE_CHARS);
    let mut line = format!(
        r#"{{"time":"{time:.3}","level":"{}","target":{},"message":{}"#,
        record.level(),
        quoted(record.target()),
        quoted(&message),
    );
    each(record, |key, value| {
        // a key of ours must not stand twice in one object
        let key = match key {
            "time" | "level" | "target" | "message" => format!("{key}_"),
            key => key.to_owned(),
        };
        let value = match value {
            Json::String(text) => quoted(&cut(&text, VALUE_CHARS)),
            other => match other.to_string() {
                whole if whole.chars().count() > VALUE_CHARS => quoted(&cut(&whole, VALUE_CHARS)),
                whole => whole,
            },
        };
        let _ = write!(line, ",{}:{value}", quoted(&key));
    });
    if let Some((role, instance)) = PROCESS.get() {
        let version = env!("CARGO_PKG_VERSION");
        for (key, value) in [("role", *role), ("instance", instance.as_str()), ("version", version)] {
            if record.key_values().get(Key::from(key)).is_none() {
                let _ = write!(line, ",{}:{}", quoted(key), quoted(value));
            }
        }
    }
    line.push_str("}\n");
    line
}

/// Calls `act` with each key and value of a record, in order.
fn each(record: &Record<'_>, act: impl FnMut(&str, Json)) {
    struct Visitor<F>(F);
    impl<'kvs, F: FnMut(&str, Json)> VisitSource<'kvs> for Visitor<F> {
        fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), Error> {
            let json = serde_json::to_value(&value).unwrap_or_else(|_| value.to_string().into());
            (self.0)(key.as_str(), json);
            Ok(())
        }
    }
    let mut visitor = Visitor(act);
    // the visitor itself never fails
    let _ = record.key_values().visit(&mut visitor);
    let names_one = record.key_values().get(Key::from(REQUEST_ID)).is_some();
    if let Some(request) = current_request().filter(|_| !names_one) {
        (visitor.0)(REQUEST_ID, Json::from(request.id()));
        if let Some(trace) = request.trace() {
            (visitor.0)(TRACE_ID, Json::from(trace.trace_id.as_str()));
        }
    }
}

/// The text, or its first characters and a sign that there was more.
fn cut(text: &str, chars: usize) -> String {
    match text.char_indices().nth(chars) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// Whether a terminal or a line reader may take the character for more than text.
fn is_control(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}')
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            c if is_control(c) => out.extend(c.escape_default()),
            c => out.push(c),
        }
    }
    out
}

/// A JSON string.
fn quoted(text: &str) -> String {
    let json = Json::from(text).to_string();
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            c if is_control(c) => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use log::kv::ToValue;
    use log::{Level, LevelFilter};

    type Line = fn(Timestamp, &Record<'_>) -> String;

    fn line(format: Line, message: &str, pairs: &[(&str, Value<'_>)]) -> String {
        let time = Timestamp::from_microsecond(1_795_239_130_123_999).unwrap();
        let mut record = Record::builder();
        record.level(Level::Info).target("open_spanner::serve").key_values(&pairs);
        format(time, &record.args(format_args!("{message}")).build())
    }

    fn object(message: &str, pairs: &[(&str, Value<'_>)]) -> Json {
        let line = line(json, message, pairs);
        assert_eq!(line.matches('\n').count(), 1, "{line}");
        serde_json::from_str(&line).unwrap()
    }

    /// Whoever makes a call fail a thousand times a second fills no disk.
    #[test]
    fn a_line_that_comes_again_is_counted() {
        let (kinds, mut lines) = (FoldedKinds::new(), Vec::new());
        for at in 0..1_000 {
            kinds.say(if at % 100 == 99 { "seldom" } else { "often" }, |repeats| lines.push((at, repeats)));
        }
        assert_eq!(lines, [(0, 0), (99, 0)]);
        // after a while it is written again, with the number of those between
        let often = kinds.0.lock().expect("no holder panics").get("often").cloned().expect("a kind");
        let before = clock::moment().checked_sub(FOLD).expect("a moment");
        often.0.lock().expect("no holder panics").0 = Some(before);
        kinds.say("often", |repeats| lines.push((1_000, repeats)));
        assert_eq!(lines.last(), Some(&(1_000, 989)));
    }

    #[test]
    fn a_line_of_text() {
        let pairs = [("http", "127.0.0.1:18081".to_value()), ("threads", 2.to_value())];
        assert_eq!(
            line(text, "listening", &pairs),
            "2026-11-21T05:32:10.123Z INFO  open_spanner::serve listening \
             http=127.0.0.1:18081 threads=2\n"
        );
    }

    #[test]
    fn a_line_of_json() {
        let pairs = [
            ("http", "127.0.0.1:18081".to_value()),
            ("threads", 2.to_value()),
            ("ratio", 0.5.to_value()),
            ("big", u128::MAX.to_value()),
            ("ready", true.to_value()),
            ("nothing", ().to_value()),
        ];
        assert_eq!(
            line(json, "listening", &pairs),
            "{\"time\":\"2026-11-21T05:32:10.123Z\",\"level\":\"INFO\",\
             \"target\":\"open_spanner::serve\",\"message\":\"listening\",\
             \"http\":\"127.0.0.1:18081\",\"threads\":2,\"ratio\":0.5,\
             \"big\":340282366920938463463374607431768211455,\"ready\":true,\"nothing\":null}\n"
        );
    }

    #[test]
    fn captured_values_keep_their_shape() {
        let list = vec![1, 2];
        let pairs = [("list", Value::from_serde(&list)), ("debug", Value::from_debug(&list))];
        assert_eq!(object("m", &pairs)["list"], serde_json::json!([1, 2]));
        assert_eq!(object("m", &pairs)["debug"], "[1, 2]");
        assert!(line(text, "m", &pairs).ends_with(" m list=[1,2] debug=\"[1, 2]\"\n"));
    }

    #[test]
    fn nothing_breaks_out_of_its_line() {
        let evil = "a\nb\r\u{1b}[2J\u{9b}\u{7f}\u{2028}\"}\\ = ü";
        let pairs = [("evil", evil.to_value())];
        assert_eq!(object(evil, &pairs)["message"], evil);
        assert_eq!(object(evil, &pairs)["evil"], evil);
        for format in [text as Line, json] {
            let line = line(format, evil, &pairs);
            assert!(!line.trim_end_matches('\n').contains(is_control), "{line}");
        }
        let text = line(text, "m", &[("x", "a \"b".to_value()), ("y", "".to_value())]);
        assert!(text.ends_with(" m x=\"a \\\"b\" y=\"\"\n"), "{text}");
    }

    #[test]
    fn long_values_are_cut() {
        let long = "ü".repeat(VALUE_CHARS + 1);
        let list = vec![1000; VALUE_CHARS];
        let pairs = [("long", long.to_value()), ("list", Value::from_serde(&list))];
        let found = object(&"m".repeat(MESSAGE_CHARS + 1), &pairs);
        for (key, chars) in [("long", VALUE_CHARS), ("list", VALUE_CHARS), ("message", MESSAGE_CHARS)] {
            let value = found[key].as_str().unwrap();
            assert_eq!(value.chars().count(), chars + 1);
            assert!(value.ends_with('…'));
        }
        let whole = "ü".repeat(VALUE_CHARS);
        assert_eq!(object("m", &[("whole", whole.to_value())])["whole"], *whole);
    }

    #[test]
    fn our_own_keys_are_not_overwritten() {
        let found = object("m", &[("message", "other".to_value()), ("time", 1.to_value())]);
        assert_eq!(found["message"], "m");
        assert_eq!(found["message_"], "other");
        assert_eq!(found["time_"], 1);
    }

    #[test]
    fn a_second_init_changes_the_filter() {
        init(LogFormat::Text, "warn");
        init(LogFormat::Json, "info,open_spanner::ingest=debug");
        let enabled = |level, target: &str| {
            log::logger().enabled(&Metadata::builder().level(level).target(target).build())
        };
        assert_eq!(log::max_level(), LevelFilter::Debug);
        assert!(enabled(Level::Debug, "open_spanner::ingest::insert"));
        assert!(enabled(Level::Info, "open_spanner::http"));
        assert!(!enabled(Level::Debug, "open_spanner::http"));
        // the other tests of this process stay quiet
        init(LogFormat::Text, "off");
    }
}
