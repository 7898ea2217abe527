//! Queued exports: what may be asked, the states of a job, byte ranges of a download (rest.md 12.8, jobs.md 2).
//! The bytes of the files are in [`crate::exports::csv`]. Pure: no SQL, no files, no clock.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::chance;
use crate::error::{Error, Result};
use crate::metering::calendar::{Buckets, Wish, Zone};
use crate::metering::filter::{Filter, Node};
use crate::metering::time::{Timestamp, Window};
use crate::usage::query::parse_subject_filter;

/// What a job exports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The rows of a bucket query.
    UsageBuckets,
    /// Raw events.
    UsageEvents,
}

impl Kind {
    /// Empty means buckets.
    pub fn parse(text: &str) -> Result<Self> {
        match text {
            "" | "usage_buckets" => Ok(Kind::UsageBuckets),
            "usage_events" => Ok(Kind::UsageEvents),
            _ => Err(Error::invalid("kind must be usage_buckets or usage_events")),
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Kind::UsageBuckets => "usage_buckets",
            Kind::UsageEvents => "usage_events",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Queued,
    Running,
    Completed,
    Failed,
    Canceled,
}

impl Status {
    pub const ALL: [Status; 5] =
        [Status::Queued, Status::Running, Status::Completed, Status::Failed, Status::Canceled];

    pub fn parse(text: &str) -> Option<Self> {
        Status::ALL.into_iter().find(|status| status.as_str() == text)
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Status::Queued => "queued",
            Status::Running => "running",
            Status::Completed => "completed",
            Status::Failed => "failed",
            Status::Canceled => "canceled",
        }
    }

    /// A worker may take it up, also again after a worker died.
    pub fn may_run(self) -> bool {
        matches!(self, Status::Queued | Status::Running)
    }

    pub fn check_cancel(self) -> Result<()> {
        self.check(self.may_run(), "canceled")
    }

    pub fn check_retry(self) -> Result<()> {
        self.check(matches!(self, Status::Failed | Status::Canceled), "retried")
    }

    pub fn check_download(self) -> Result<()> {
        self.check(self == Status::Completed, "downloaded")
    }

    fn check(self, allowed: bool, done: &str) -> Result<()> {
        if allowed {
            return Ok(());
        }
        Err(Error::conflict(format!("a {} export cannot be {done}", self.as_str())))
    }
}

/// What becomes the `error` of a canceled job.
pub const CANCELED: &str = "canceled by user";

/// A job as it is stored.
#[derive(Clone, Debug)]
pub struct Export {
    pub id: String,
    pub workspace_id: i64,
    pub kind: Kind,
    pub status: Status,
    pub asked: ExportQuery,
    pub error: Option<String>,
    /// Rows written so far, without the header.
    pub row_count: i64,
    pub artifact: Option<Artifact>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    pub completed_at: Option<Timestamp>,
    pub expired_at: Option<Timestamp>,
}

/// The finished file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Artifact {
    pub size_bytes: i64,
    /// SHA-256 in hexadecimal.
    pub hash: String,
}

impl Export {
    pub fn queued(workspace_id: i64, kind: Kind, asked: ExportQuery, now: Timestamp) -> Self {
        Export {
            id: chance::id().to_string(),
            workspace_id,
            kind,
            status: Status::Queued,
            asked,
            error: None,
            row_count: 0,
            artifact: None,
            created_at: now,
            updated_at: now,
            completed_at: None,
            expired_at: None,
        }
    }

    /// What there is to download, unless it was removed after its time.
    pub fn downloadable(&self) -> Option<&Artifact> {
        let is_there = self.status == Status::Completed && self.expired_at.is_none();
        self.artifact.as_ref().filter(|_| is_there)
    }
}

/// A query as a client sends it: the body of a search.
#[derive(Default, Deserialize, ToSchema)]
#[schema(as = ExportQueryInput)]
pub struct Input {
    subject: Option<String>,
    /// Required for buckets.
    meter: Option<String>,
    /// Required for buckets.
    #[schema(value_type = Option<Timestamp>)]
    from: Option<String>,
    /// Required for buckets.
    #[schema(value_type = Option<Timestamp>)]
    to: Option<String>,
    /// As in a bucket query; `day` unless told.
    bucket_size: Option<String>,
    /// Of the IANA database; that of the workspace unless told.
    time_zone: Option<String>,
    /// Buckets are counted from here.
    #[schema(value_type = Option<Timestamp>)]
    anchor: Option<String>,
    /// `monday` or `sunday`; `monday` unless told.
    week_start: Option<String>,
    /// `subject` or declared dimensions, up to five.
    group_by: Option<Vec<String>>,
    /// Rows at most; all unless told.
    limit: Option<i64>,
    filter: Option<Node>,
    /// Cells that a spreadsheet would run as a formula get an apostrophe in front, unless told not to.
    formula_guard: Option<bool>,
}

impl Input {
    /// Reads a JSON object and nothing else.
    pub fn read(query: &RawValue) -> Result<Self> {
        if !query.get().starts_with('{') {
            return Err(Error::invalid_json());
        }
        serde_json::from_str(query.get()).map_err(|_| Error::invalid_json())
    }

    pub fn meter(&self) -> &str {
        self.meter.as_deref().unwrap_or_default()
    }
}

/// The query of a job: stored, and echoed as it is stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = ExportQuery)]
pub struct ExportQuery {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub subject: String,
    pub meter: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Timestamp>)]
    pub from: Option<Time>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Timestamp>)]
    pub to: Option<Time>,
    pub bucket_size: String,
    /// As sent, or that of the workspace when the job was made, unless that is UTC.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schema(required = false)]
    pub time_zone: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schema(required = false)]
    pub anchor: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schema(required = false)]
    pub week_start: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub group_by: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<Node>,
    #[serde(default = "guarded", skip_serializing_if = "is_guarded")]
    pub formula_guard: bool,
}

/// What was not said means guarded.
fn guarded() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
fn is_guarded(formula_guard: &bool) -> bool {
    *formula_guard
}

/// An instant that keeps its fraction in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Time(pub Timestamp);

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0.to_exact_text())
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Timestamp::parse(&text).map(Time).ok_or_else(|| de::Error::custom("not a time"))
    }
}

/// Of the text of a query.
const QUERY_BYTES_MAX: usize = 256 * 1024;

impl ExportQuery {
    /// Refuses what can never be exported. What depends on the meter is decided when the job runs: the meter may
    /// come to be, and clients expect such a job to fail, not its creation. `home` is the zone of the workspace.
    pub fn parse(kind: Kind, input: Input, home: &Zone) -> Result<Self> {
        let from = time(input.from.as_deref(), "from", "invalid_from", kind)?;
        let to = time(input.to.as_deref(), "to", "invalid_to", kind)?;
        let asked = ExportQuery {
            subject: input.subject.unwrap_or_default(),
            meter: input.meter.unwrap_or_default(),
            from,
            to,
            bucket_size: input.bucket_size.unwrap_or_default(),
            time_zone: zone_of(kind, input.time_zone.unwrap_or_default(), home),
            anchor: input.anchor.unwrap_or_default(),
            week_start: input.week_start.unwrap_or_default(),
            group_by: input.group_by.unwrap_or_default(),
            limit: input.limit.filter(|limit| *limit > 0),
            filter: input.filter,
            formula_guard: input.formula_guard.unwrap_or_else(guarded),
        };
        asked.window()?;
        asked.filter()?;
        parse_subject_filter(&asked.subject)?;
        if kind == Kind::UsageBuckets {
            asked.buckets()?;
            if asked.meter.is_empty() {
                return Err(Error::invalid("meter is required"));
            }
        }
        // it is stored, and lists of jobs show it
        if serde_json::to_string(&asked).map_err(Error::internal)?.len() > QUERY_BYTES_MAX {
            return Err(Error::invalid(format_args!(
                "query must not be longer than {QUERY_BYTES_MAX} bytes"
            )));
        }
        Ok(asked)
    }

    /// Checked against the longest window of its buckets.
    pub fn buckets(&self) -> Result<Buckets> {
        let wish = Wish {
            bucket_size: &self.bucket_size,
            time_zone: &self.time_zone,
            anchor: &self.anchor,
            week_start: &self.week_start,
        };
        Buckets::of(wish.calendar(&Zone::UTC)?, self.window()?)
    }

    /// All time, as far as no end was named.
    pub fn window(&self) -> Result<Window> {
        let from = self.from.map_or(Window::ALWAYS.from, |time| time.0);
        let to = self.to.map_or(Window::ALWAYS.to, |time| time.0);
        Window::new(from, to)
    }

    pub fn filter(&self) -> Result<Option<Filter>> {
        Filter::parse_optional(self.filter.as_ref())
    }

    /// Rows wanted at most.
    pub fn limit(&self) -> u64 {
        self.limit.map_or(u64::MAX, i64::unsigned_abs)
    }
}

/// The calendar of a job must not change while it waits.
fn zone_of(kind: Kind, asked: String, home: &Zone) -> String {
    match kind == Kind::UsageBuckets && asked.is_empty() && !home.is_utc() {
        true => home.name().to_owned(),
        false => asked,
    }
}

/// Buckets need both ends of their window; raw events need none.
fn time(text: Option<&str>, name: &str, code: &'static str, kind: Kind) -> Result<Option<Time>> {
    let bad = || Error::parameter(code, format!("{name} must be RFC3339"));
    let parsed = match text.unwrap_or_default() {
        "" => None,
        text => Some(Timestamp::parse(text).ok_or_else(bad)?).filter(|at| *at != Timestamp::ABSENT),
    };
    if parsed.is_none() && kind == Kind::UsageBuckets {
        return Err(bad());
    }
    Ok(parsed.map(Time))
}

/// The name of a job's file.
pub fn file_name(id: &str) -> String {
    format!("{id}.csv")
}

/// The job that a file belongs to, finished or not; `None` for files that are none of ours.
pub fn owner_of(file_name: &str) -> Option<(&str, bool)> {
    let (id, rest) = file_name.split_once('.')?;
    uuid::Uuid::try_parse(id).ok().filter(|parsed| parsed.to_string() == id)?;
    match rest {
        "csv" => Some((id, true)),
        _ if rest.starts_with("csv.") && rest.ends_with(".tmp") => Some((id, false)),
        _ => None,
    }
}

/// The part of a file that a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Whole,
    /// From inclusive, to exclusive.
    Range(u64, u64),
    Unsatisfiable,
}

/// Reads a `Range` header. Several ranges, other units and nonsense are answered with the whole file, as RFC 9110
/// allows.
pub fn part(header: Option<&str>, size: u64) -> Part {
    let Some(spec) = header.and_then(|header| header.trim().strip_prefix("bytes=")) else {
        return Part::Whole;
    };
    let Some((first, last)) = spec.trim().split_once('-') else { return Part::Whole };
    let number = |text: &str| match text.trim() {
        "" => Some(None),
        digits if digits.bytes().all(|b| b.is_ascii_digit()) => {
            // more than fits is beyond any file
            Some(Some(digits.parse().unwrap_or(u64::MAX)))
        }
        _ => None,
    };
    match (number(first), number(last)) {
        (Some(None), Some(Some(0))) => Part::Unsatisfiable,
        (Some(None), Some(Some(_))) if size == 0 => Part::Unsatisfiable,
        (Some(None), Some(Some(length))) => Part::Range(size.saturating_sub(length), size),
        (Some(Some(from)), Some(None)) if from < size => Part::Range(from, size),
        (Some(Some(from)), Some(Some(to))) if to < from => Part::Whole,
        (Some(Some(from)), Some(Some(to))) if from < size => {
            Part::Range(from, to.saturating_add(1).min(size))
        }
        (Some(Some(_)), Some(_)) => Part::Unsatisfiable,
        _ => Part::Whole,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;
    use serde_json::{Value, json};

    fn asked(kind: Kind, query: Value) -> Result<ExportQuery> {
        let query = serde_json::value::to_raw_value(&query).expect("JSON");
        ExportQuery::parse(kind, Input::read(&query)?, &Zone::UTC)
    }

    const FROM: &str = "2026-06-01T00:00:00Z";
    const TO: &str = "2026-06-08T00:00:00.25Z";

    #[test]
    fn a_query_is_echoed_as_it_was_asked() {
        let filter = json!({"type": "condition", "op": "gt", "field": "quantity", "value": 1});
        let full = json!({"subject": " ann", "meter": "m", "from": FROM, "to": TO, "bucket_size": "day",
                          "group_by": ["region", "region"], "limit": 50, "filter": filter});
        let stored = serde_json::to_string(&asked(Kind::UsageBuckets, full.clone()).expect("valid"));
        let stored = stored.expect("json");
        assert_eq!(serde_json::from_str::<Value>(&stored).expect("json"), full);
        let again: ExportQuery = serde_json::from_str(&stored).expect("read back");
        assert_eq!(again.window().expect("a window").to.0 % 1_000_000, 250_000);

        let small = json!({"meter": "m", "from": "2026-06-01T02:00:00+02:00", "to": TO, "limit": -1});
        let stored = serde_json::to_value(asked(Kind::UsageBuckets, small).expect("valid")).expect("json");
        assert_eq!(stored, json!({"meter": "m", "from": FROM, "to": TO, "bucket_size": ""}));
    }

    #[test]
    fn what_can_never_be_exported_is_refused() {
        let cases = [
            (json!({"meter": "m", "to": TO}), "invalid_from"),
            (json!({"meter": "m", "from": FROM, "to": "x"}), "invalid_to"),
            (json!({"meter": "m", "from": "0001-01-01T00:00:00Z", "to": TO}), "invalid_from"),
            (json!({"from": FROM, "to": TO}), "invalid_input"),
            (json!({"meter": "m", "from": TO, "to": FROM}), "invalid_input"),
            (json!({"meter": "m", "from": FROM, "to": TO, "bucket_size": "fortnight"}), "invalid_input"),
            (json!({"meter": "m", "from": FROM, "to": TO, "time_zone": "Mars/Base"}), "invalid_input"),
            (json!({"meter": "m", "from": FROM, "to": TO, "anchor": "noon"}), "invalid_anchor"),
            (
                json!({"meter": "m", "from": "2020-06-01T00:00:00Z", "to": TO, "bucket_size": "hour"}),
                "invalid_input",
            ),
            (json!({"meter": "m", "from": FROM, "to": TO, "subject": "a b"}), "invalid_input"),
            (json!({"meter": "m", "from": FROM, "to": TO, "filter": {}}), "invalid_input"),
            (json!({"meter": 1, "from": FROM, "to": TO}), "invalid_json"),
        ];
        for (query, code) in cases {
            let error = asked(Kind::UsageBuckets, query.clone()).expect_err("refused");
            assert_eq!(error.code.as_str(), code, "{query}");
        }
        assert!(asked(Kind::UsageBuckets, json!({"meter": "unknown", "from": FROM, "to": TO})).is_ok());
        assert!(asked(Kind::UsageEvents, json!({})).is_ok());
        assert!(asked(Kind::UsageEvents, json!({"from": TO, "to": FROM})).is_err());
    }

    #[test]
    fn states_allow_what_the_contract_says() {
        let allowed = |check: fn(Status) -> Result<()>| {
            Status::ALL.map(|status| check(status).is_ok().then_some(status.as_str()))
        };
        assert_eq!(allowed(Status::check_cancel), [Some("queued"), Some("running"), None, None, None]);
        assert_eq!(allowed(Status::check_retry), [None, None, None, Some("failed"), Some("canceled")]);
        assert_eq!(allowed(Status::check_download), [None, None, Some("completed"), None, None]);
        assert_eq!(Status::Queued.check_retry().expect_err("refused").code, Code::Conflict);
        assert!(Status::ALL.into_iter().all(|status| Status::parse(status.as_str()) == Some(status)));
    }

    #[test]
    fn ranges() {
        let cases = [
            (None, Part::Whole),
            (Some("bytes=0-9"), Part::Range(0, 10)),
            (Some("bytes=90-"), Part::Range(90, 100)),
            (Some("bytes=90-1000"), Part::Range(90, 100)),
            (Some("bytes=-10"), Part::Range(90, 100)),
            (Some("bytes=-1000"), Part::Range(0, 100)),
            (Some("bytes=99-99"), Part::Range(99, 100)),
            (Some("bytes=100-"), Part::Unsatisfiable),
            (Some("bytes=100-200"), Part::Unsatisfiable),
            (Some("bytes=99999999999999999999-"), Part::Unsatisfiable),
            (Some("bytes=-0"), Part::Unsatisfiable),
            (Some("bytes=9-0"), Part::Whole),
            (Some("bytes=0-1,5-6"), Part::Whole),
            (Some("bytes=-"), Part::Whole),
            (Some("bytes=a-b"), Part::Whole),
            (Some("lines=0-9"), Part::Whole),
        ];
        for (header, expected) in cases {
            assert_eq!(part(header, 100), expected, "{header:?}");
        }
        assert_eq!(part(Some("bytes=0-"), 0), Part::Unsatisfiable);
        assert_eq!(part(Some("bytes=-5"), 0), Part::Unsatisfiable);
    }

    #[test]
    fn only_our_own_files_are_ours() {
        const ID: &str = "0193a5b0-0000-7000-8000-000000000000";
        assert_eq!(owner_of(&file_name(ID)), Some((ID, true)));
        assert_eq!(owner_of(&format!("{ID}.csv.x1.tmp")), Some((ID, false)));
        for other in ["notes.txt", "a.csv", ".csv", &format!("{ID}.csv.bak"), ID, "..csv"] {
            assert_eq!(owner_of(other), None, "{other}");
        }
        assert_eq!(owner_of(&format!("{}.csv", ID.to_uppercase())), None);
    }
}
