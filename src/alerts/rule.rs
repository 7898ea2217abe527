//! What a rule may say: every field checked, defaults filled in, partial changes applied.

use std::collections::BTreeMap;

use serde::Deserialize;
use utoipa::ToSchema;

use crate::entitlements::period::{Period, WindowInput};
use crate::error::{Error, Result};
use crate::metering::calendar::Zone;
use crate::metering::event::InputQuantity;
use crate::metering::filter::Filter;
use crate::metering::quantity::Quantity;
use crate::metering::time::{SECOND, Timestamp, Window};
use crate::usage::query::parse_subject_filter;

const NAME_CHARS_MAX: usize = 120;
pub const METADATA_ENTRIES_MAX: usize = 50;
const METADATA_TEXT_BYTES_MAX: usize = 512;
const WINDOW_SECONDS_DEFAULT: i64 = 3_600;
const WINDOW_SECONDS_MIN: i64 = 60;
const WINDOW_SECONDS_MAX: i64 = 366 * 86_400;
const INTERVAL_SECONDS_DEFAULT: i64 = 60;
const INTERVAL_SECONDS_MAX: i64 = 86_400;
/// A rule that is quiet for longer is forgotten: it can be disabled.
pub const SNOOZE_SECONDS_MAX: i64 = 30 * 86_400;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparator {
    Gt,
    Gte,
    Lt,
    Lte,
    Eq,
    Neq,
}

impl Comparator {
    pub const ALL: [Comparator; 6] =
        [Comparator::Gt, Comparator::Gte, Comparator::Lt, Comparator::Lte, Comparator::Eq, Comparator::Neq];

    pub fn as_str(self) -> &'static str {
        match self {
            Comparator::Gt => "gt",
            Comparator::Gte => "gte",
            Comparator::Lt => "lt",
            Comparator::Lte => "lte",
            Comparator::Eq => "eq",
            Comparator::Neq => "neq",
        }
    }

    /// Between two numbers, in a sentence.
    pub(super) fn phrase(self) -> &'static str {
        match self {
            Comparator::Gt => "above",
            Comparator::Gte => "at or above",
            Comparator::Lt => "below",
            Comparator::Lte => "at or below",
            Comparator::Eq => "equal to",
            Comparator::Neq => "not equal to",
        }
    }

    pub fn parse(text: &str) -> Result<Self> {
        Comparator::ALL
            .into_iter()
            .find(|comparator| comparator.as_str() == text)
            .ok_or_else(|| Error::invalid("comparator must be gt, gte, lt, lte, eq or neq"))
    }

    /// Exact, without rounding.
    pub fn holds(self, value: &Quantity, threshold: &Quantity) -> bool {
        match self {
            Comparator::Gt => value > threshold,
            Comparator::Gte => value >= threshold,
            Comparator::Lt => value < threshold,
            Comparator::Lte => value <= threshold,
            Comparator::Eq => value == threshold,
            Comparator::Neq => value != threshold,
        }
    }
}

/// A rule as a client sends it, whole or in part.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[schema(as = AlertRuleInput)]
pub struct RuleInput {
    pub name: Option<String>,
    pub meter: Option<String>,
    pub enabled: Option<bool>,
    pub subject: Option<String>,
    /// At most 50 entries, of at most 512 bytes each.
    pub metadata: Option<BTreeMap<String, String>>,
    pub window_seconds: Option<i64>,
    /// A size of a bucket: what counts is the one that runs, so far. Instead of `window_seconds`, which it goes before.
    pub period: Option<String>,
    pub window: Option<WindowInput>,
    #[schema(pattern = "^(gt|gte|lt|lte|eq|neq)?$")]
    pub comparator: Option<String>,
    #[schema(value_type = Option<Quantity>)]
    pub threshold: Option<InputQuantity>,
    pub evaluation_interval_seconds: Option<i64>,
    pub group_by: Option<String>,
    pub destination_id: Option<String>,
}

/// What a rule watches and when it fires; meter and destination are named elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleSpec {
    pub name: String,
    pub enabled: bool,
    pub subject: Option<String>,
    /// Path to text, all of which an event must have.
    pub metadata: BTreeMap<String, String>,
    pub window_seconds: i64,
    /// Windows of a calendar, instead of the last so many seconds.
    pub period: Option<Period>,
    pub comparator: Comparator,
    pub threshold: Quantity,
    pub evaluation_interval_seconds: i64,
    /// `subject` or a metadata path.
    pub group_by: Option<String>,
}

impl RuleSpec {
    /// A new rule; what is absent gets its default.
    pub fn new(input: &RuleInput) -> Result<RuleSpec> {
        let blank = RuleSpec {
            name: String::new(),
            enabled: true,
            subject: None,
            metadata: BTreeMap::new(),
            window_seconds: WINDOW_SECONDS_DEFAULT,
            period: None,
            comparator: Comparator::Gte,
            threshold: Quantity::zero(),
            evaluation_interval_seconds: INTERVAL_SECONDS_DEFAULT,
            group_by: None,
        };
        let name = parse_label(input.name.as_deref().unwrap_or_default())?;
        Ok(RuleSpec { name, ..blank.changed(input)? })
    }

    /// A partial change: what is absent stays; empty texts and times that are not positive mean unchanged, except
    /// where empty can only mean none.
    pub fn changed(&self, input: &RuleInput) -> Result<RuleSpec> {
        let mut terms = self.clone();
        if let Some(name) = input.name.as_deref().filter(|name| !name.is_empty()) {
            terms.name = parse_label(name)?;
        }
        if let Some(enabled) = input.enabled {
            terms.enabled = enabled;
        }
        if let Some(subject) = &input.subject {
            terms.subject = parse_subject_filter(subject)?;
        }
        if let Some(metadata) = &input.metadata {
            terms.metadata = parse_metadata(metadata)?;
        }
        if let Some(seconds) = input.window_seconds.filter(|seconds| *seconds > 0) {
            if !(WINDOW_SECONDS_MIN..=WINDOW_SECONDS_MAX).contains(&seconds) {
                return Err(Error::invalid("window_seconds must be between 60 and 31622400"));
            }
            terms.window_seconds = seconds;
        }
        if input.period.is_some() || input.window.is_some() {
            let word = input.period.as_deref().map(str::trim).unwrap_or_default();
            terms.period = match (word, &input.window) {
                ("", None) => None,
                ("", Some(window)) if *window == WindowInput::default() => None,
                ("", Some(_)) => return Err(Error::invalid("window needs a period")),
                (word, window) => Some(Period::read_calendar(word, window.as_ref())?),
            };
        }
        if let Some(comparator) = input.comparator.as_deref().filter(|text| !text.is_empty()) {
            terms.comparator = Comparator::parse(comparator)?;
        }
        if let Some(InputQuantity(threshold)) = &input.threshold {
            terms.threshold =
                threshold.clone().map_err(|reject| Error::invalid(format!("threshold {reject}")))?;
        }
        if let Some(seconds) = input.evaluation_interval_seconds.filter(|seconds| *seconds > 0) {
            if seconds > INTERVAL_SECONDS_MAX {
                return Err(Error::invalid("evaluation_interval_seconds must not be above 86400"));
            }
            terms.evaluation_interval_seconds = seconds;
        }
        if let Some(group_by) = &input.group_by {
            terms.group_by = parse_group(group_by)?;
        }
        Ok(terms)
    }

    /// What events must have; an error where a stored rule holds what no rule may.
    pub fn filter(&self) -> Result<Option<Filter>> {
        let entries = parse_metadata(&self.metadata)?;
        let rules = entries.iter().map(|(path, text)| Filter::metadata_text(path, text));
        Ok(Filter::all(rules.collect::<Result<_>>()?))
    }

    /// What is looked at now. `home` is the zone of the workspace.
    pub fn window(&self, home: &Zone, now: Timestamp) -> Window {
        let from = match &self.period {
            Some(period) => period.window(Timestamp(0), home, now).from,
            None => now.plus(-self.window_seconds * SECOND),
        };
        // never empty, also when a window has just begun
        Window { from, to: now.max(from.plus(1)) }
    }

    /// The same terms watch the same numbers: one look at them serves all such rules of a meter.
    pub fn scope(&self) -> (i64, &str, Option<&str>, &BTreeMap<String, String>, Option<&str>) {
        let period = self.period.as_ref().map(Period::as_str).unwrap_or_default();
        (self.window_seconds, period, self.subject.as_deref(), &self.metadata, self.group_by.as_deref())
    }
}

/// The name of a rule or a destination.
pub fn parse_label(text: &str) -> Result<String> {
    let name = text.trim();
    if name.is_empty() || name.chars().count() > NAME_CHARS_MAX {
        return Err(Error::invalid(format!("name must have 1 to {NAME_CHARS_MAX} characters")));
    }
    Ok(name.to_owned())
}

fn without_prefix(path: &str) -> &str {
    let path = path.trim();
    path.strip_prefix("metadata.").unwrap_or(path)
}

fn parse_metadata(given: &BTreeMap<String, String>) -> Result<BTreeMap<String, String>> {
    if given.len() > METADATA_ENTRIES_MAX {
        return Err(Error::invalid(format!(
            "metadata must not have more than {METADATA_ENTRIES_MAX} entries"
        )));
    }
    if let Some(path) =
        given.iter().find(|(_, text)| text.len() > METADATA_TEXT_BYTES_MAX).map(|(path, _)| path)
    {
        return Err(Error::invalid(format!(
            "the value of metadata.{path} must not be longer than {METADATA_TEXT_BYTES_MAX} bytes"
        )));
    }
    let entries = given.iter().map(|(path, text)| {
        let (path, text) = (without_prefix(path).trim(), text.trim());
        Filter::metadata_text(path, text)?;
        Ok((path.to_owned(), text.to_owned()))
    });
    entries.collect()
}

fn parse_group(text: &str) -> Result<Option<String>> {
    let field = without_prefix(text);
    if field.is_empty() {
        return Ok(None);
    }
    if !crate::metering::meter::is_dimension_path(field) {
        return Err(Error::invalid(format!("group_by {field:?} is not subject or a metadata path")));
    }
    Ok(Some(field.to_owned()))
}
