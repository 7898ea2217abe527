//! The grammar of addresses: ranges, buckets, filters. A view is its address, so everything here reads text and
//! writes text. Pure: the clock comes in as an argument.

use crate::dashboard::view::{Link, minute};
use crate::error::{Error, Result};
use crate::http::extract::Params;
use crate::metering::filter::{Filter, Node};
use crate::metering::json::{Number, Value};
use crate::metering::meter::Meter;
use crate::metering::quantity::Quantity;
use crate::metering::time::{BucketSize, DAY, HOUR, SECOND, Timestamp, Window};

/// Ranges to choose from, with their words.
pub const RANGES: [(&str, &str); 12] = [
    ("1h", "Last hour"),
    ("24h", "Last 24 hours"),
    ("today", "Today"),
    ("yesterday", "Yesterday"),
    ("7d+today", "Last 7 days and today"),
    ("7d", "Last 7 whole days"),
    ("28d+today", "Last 28 days and today"),
    ("28d", "Last 28 whole days"),
    ("90d+today", "Last 90 days and today"),
    ("this-month", "This month"),
    ("last-month", "Last month"),
    ("12M", "Last 12 months"),
];

/// A range and what it means now.
#[derive(Clone, Debug)]
pub struct Range {
    /// As in the address; empty when two times were given.
    pub word: String,
    pub window: Window,
    /// The last bucket is not over.
    pub is_running: bool,
}

impl Range {
    /// `from` and `to` win over `range`; nothing at all is the default.
    pub fn parse(params: &Params, default: &str, now: Timestamp) -> Result<Range> {
        let (from, to) = (params.get("from").trim(), params.get("to").trim());
        if !from.is_empty() || !to.is_empty() {
            let from = if from.is_empty() { Timestamp(0) } else { instant(from, "from", now)? };
            let to = if to.is_empty() { now } else { instant(to, "to", now)? };
            let window = Window::new(from, to)?;
            return Ok(Range { word: String::new(), window, is_running: to > now });
        }
        let word = params.get("range").trim().replace(' ', "+");
        let word = if word.is_empty() { default.to_owned() } else { word };
        let window = relative(&word, now)?;
        Ok(Range { is_running: window.to > now, word, window })
    }

    /// What it resolved to.
    pub fn words(&self) -> String {
        format!("{} – {} UTC", minute(self.window.from), minute(self.window.to))
    }

    /// The range as it is in an address.
    pub fn on(&self, link: Link) -> Link {
        match self.word.as_str() {
            "" => link
                .with("from", &self.window.from.to_exact_text())
                .with("to", &self.window.to.to_exact_text()),
            word => link.with("range", word),
        }
    }

    /// The same length, one length earlier or later.
    pub fn shifted(&self, lengths: i64) -> Range {
        let by = self.window.length().saturating_mul(lengths);
        let window = Window { from: self.window.from.plus(by), to: self.window.to.plus(by) };
        Range { word: String::new(), window, is_running: false }
    }
}

/// An instant in RFC 3339, a date, the value of a date-time field, `now`, or `-3d`.
fn instant(text: &str, name: &str, now: Timestamp) -> Result<Timestamp> {
    let ago = |text: &str| Some(now.plus(-length(text.strip_prefix('-')?)?));
    let date = |text: &str| match text.len() {
        10 => Timestamp::parse(&format!("{text}T00:00:00Z")),
        16 => Timestamp::parse(&format!("{text}:00Z")),
        19 => Timestamp::parse(&format!("{text}Z")),
        _ => None,
    };
    let found = match text {
        "now" => Some(now),
        text => Timestamp::parse(text).or_else(|| ago(text)).or_else(|| date(text)),
    };
    found.ok_or_else(|| {
        Error::invalid(format!(
            "{name} must be a date such as 2026-11-01, a time such as 2026-11-01T12:00:00Z, or -3d"
        ))
    })
}

/// `15m`, `6h`, `3d` as microseconds.
fn length(text: &str) -> Option<i64> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let unit = match unit {
        "m" => 60 * SECOND,
        "h" => HOUR,
        "d" => DAY,
        _ => return None,
    };
    let number: i64 = digits.parse().ok().filter(|number| (1..=10_000).contains(number))?;
    number.checked_mul(unit)
}

fn relative(word: &str, now: Timestamp) -> Result<Window> {
    let wrong = || Error::invalid(format!("range {word:?} is not known"));
    let today = now.floor(DAY);
    let month = BucketSize::Month.start(now);
    let (from, to) = match word {
        "today" => (today, today.plus(DAY)),
        "yesterday" => (today.plus(-DAY), today),
        "this-week" => (today.plus(-week_day(now) * DAY), today.plus(DAY)),
        "this-month" => (month, month.plus_months(1)),
        "last-month" => (month.plus_months(-1), month),
        "this-year" => (month.plus_months(1 - month_number(now)), month.plus_months(1)),
        word => match (word.strip_suffix("+today"), word.strip_suffix('M')) {
            (Some(days), _) if days.ends_with('d') => {
                (today.plus(-length(days).ok_or_else(wrong)?), today.plus(DAY))
            }
            (None, Some(months)) => {
                let months: i32 =
                    months.parse().ok().filter(|months| (1..=60).contains(months)).ok_or_else(wrong)?;
                (month.plus_months(1 - months), month.plus_months(1))
            }
            (None, None) if word.ends_with('d') => (today.plus(-length(word).ok_or_else(wrong)?), today),
            (None, None) => (now.plus(-length(word).ok_or_else(wrong)?), now),
            _ => return Err(wrong()),
        },
    };
    Window::new(from, to)
}

/// Days since Monday.
fn week_day(at: Timestamp) -> i64 {
    (at.floor(DAY).0 / DAY + 3).rem_euclid(7)
}

/// 1 for January.
fn month_number(at: Timestamp) -> i32 {
    at.to_seconds_text().get(5..7).and_then(|month| month.parse().ok()).unwrap_or(1)
}

/// The bucket that was asked for, or the finest with at most a hundred of them.
pub fn bucket(word: &str, window: Window) -> Result<BucketSize> {
    match word {
        "" | "auto" => Ok(match window.length() {
            length if length <= 100 * HOUR => BucketSize::Hour,
            length if length <= 100 * DAY => BucketSize::Day,
            _ => BucketSize::Month,
        }),
        word => BucketSize::parse(word),
    }
}

/// The operators of a filter, with their words.
pub const OPERATORS: [(&str, &str); 9] = [
    ("eq", "is"),
    ("neq", "is not"),
    ("gt", ">"),
    ("gte", "≥"),
    ("lt", "<"),
    ("lte", "≤"),
    ("in", "is one of"),
    ("contains", "contains"),
    ("exists", "exists"),
];

/// One condition, as in the address: `field:op:value`, with `\:` and `\,` for the signs themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    pub field: String,
    pub op: String,
    pub value: String,
}

impl Condition {
    pub fn parse(text: &str) -> Result<Condition> {
        let mut parts = split(text, ':', 3).into_iter();
        let (field, op) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let value = parts.next().unwrap_or_default();
        if field.is_empty() || !OPERATORS.iter().any(|(known, _)| *known == op) {
            return Err(Error::invalid(format!("filter {text:?} must be field:op:value")));
        }
        Ok(Condition { field: unescape(&field), op, value })
    }

    pub fn text(&self) -> String {
        format!("{}:{}:{}", escape(&self.field), self.op, self.value)
    }

    /// In the words of the page.
    pub fn words(&self) -> String {
        let op = OPERATORS.iter().find(|(known, _)| *known == self.op).map_or("", |(_, words)| words);
        let field = self.field.strip_prefix("metadata.").unwrap_or(&self.field);
        let value = match self.op.as_str() {
            "exists" => String::new(),
            "in" => split(&self.value, ',', usize::MAX)
                .iter()
                .map(|part| unescape(part))
                .collect::<Vec<_>>()
                .join(", "),
            _ => unescape(&self.value),
        };
        format!("{field} {op} {value}").trim().to_owned()
    }

    /// As the interface for programs writes it.
    fn json(&self, meter: Option<&Meter>) -> Result<Value> {
        let typed = |text: &str| self.typed(&unescape(text), meter);
        let value = match self.op.as_str() {
            "exists" => Value::Bool(true),
            "in" => Value::Array(
                split(&self.value, ',', usize::MAX).iter().map(|part| typed(part)).collect::<Result<_>>()?,
            ),
            "contains" => Value::String(unescape(&self.value)),
            _ => typed(&self.value)?,
        };
        let (field, op) = (self.field.as_str().into(), self.op.as_str().into());
        Ok(Value::object([("type", "condition".into()), ("field", field), ("op", op), ("value", value)]))
    }

    /// A value in the kind of its field.
    fn typed(&self, text: &str, meter: Option<&Meter>) -> Result<Value> {
        let dimension = self.field.strip_prefix("metadata.").and_then(|name| meter?.dimension(name));
        let kind = match self.field.as_str() {
            "quantity" => "number",
            _ => dimension.map_or("string", |dimension| dimension.kind.as_str()),
        };
        match kind {
            "number" => {
                let number = Quantity::parse(text)
                    .map_err(|reject| Error::invalid(format!("{} {reject}", self.field)))?;
                Ok(Value::Number(Number::from(&number)))
            }
            "boolean" => match text {
                "true" => Ok(Value::Bool(true)),
                "false" => Ok(Value::Bool(false)),
                _ => Err(Error::invalid(format!("{} must be true or false", self.field))),
            },
            _ => Ok(Value::String(text.to_owned())),
        }
    }
}

/// The field and value as a condition of equality.
pub fn equals(field: &str, value: &str) -> String {
    Condition { field: field.to_owned(), op: "eq".to_owned(), value: escape(value) }.text()
}

pub fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace(':', "\\:").replace(',', "\\,")
}

fn unescape(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        plain.push(if c == '\\' { characters.next().unwrap_or('\\') } else { c });
    }
    plain
}

/// Parts at a sign that no backslash stands before, at most this many.
fn split(text: &str, sign: char, most: usize) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut is_escaped = false;
    for c in text.chars() {
        if c == sign && !is_escaped && parts.len() < most {
            parts.push(String::new());
            continue;
        }
        is_escaped = c == '\\' && !is_escaped;
        if let Some(last) = parts.last_mut() {
            last.push(c);
        }
    }
    parts
}

/// All conditions of an address, each of which must hold.
pub fn conditions(params: &Params) -> Result<Vec<Condition>> {
    params.all("f").filter(|text| !text.is_empty()).map(Condition::parse).collect()
}

/// The conditions as one node of a filter; none without any.
pub fn node(conditions: &[Condition], meter: Option<&Meter>) -> Result<Option<Value>> {
    if conditions.is_empty() {
        return Ok(None);
    }
    let rules = conditions.iter().map(|condition| condition.json(meter)).collect::<Result<Vec<_>>>()?;
    let group = [("type", "group".into()), ("op", "and".into()), ("rules", Value::Array(rules))];
    Ok(Some(Value::object(group)))
}

pub fn filter(conditions: &[Condition], meter: Option<&Meter>) -> Result<Option<Filter>> {
    let Some(node) = node(conditions, meter)? else { return Ok(None) };
    let node: Node = serde_json::from_str(&node.to_string()).map_err(Error::internal)?;
    Filter::parse(&node).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range(query: &str, now: &str) -> String {
        let now = Timestamp::parse(now).expect("time");
        match Range::parse(&Params::parse(query), "24h", now) {
            Ok(range) => range.words(),
            Err(error) => error.message,
        }
    }

    #[test]
    fn ranges_resolve_in_whole_days() {
        let now = "2026-11-28T18:18:21Z";
        assert_eq!(range("", now), "2026-11-27 18:18 – 2026-11-28 18:18 UTC");
        assert_eq!(range("range=7d", now), "2026-11-21 00:00 – 2026-11-28 00:00 UTC");
        assert_eq!(range("range=7d%2Btoday", now), "2026-11-21 00:00 – 2026-11-29 00:00 UTC");
        assert_eq!(range("range=7d+today", now), "2026-11-21 00:00 – 2026-11-29 00:00 UTC");
        assert_eq!(range("range=last-month", now), "2026-10-01 00:00 – 2026-11-01 00:00 UTC");
        assert_eq!(range("range=12M", now), "2025-12-01 00:00 – 2026-12-01 00:00 UTC");
        assert_eq!(range("range=this-week", now), "2026-11-23 00:00 – 2026-11-29 00:00 UTC");
        assert_eq!(range("range=this-year", now), "2026-01-01 00:00 – 2026-12-01 00:00 UTC");
        assert_eq!(
            range("from=2026-11-01&to=2026-11-02T12:00", now),
            "2026-11-01 00:00 – 2026-11-02 12:00 UTC"
        );
        assert_eq!(range("from=-3d&to=now", now), "2026-11-25 18:18 – 2026-11-28 18:18 UTC");
        for bad in [
            "range=7",
            "range=d",
            "range=x%2Btoday",
            "range=999999d",
            "range=0d",
            "from=x",
            "from=2026-11-02&to=2026-11-01",
        ] {
            assert!(range(bad, now).starts_with("invalid input"), "{bad}");
        }
        for (word, _) in RANGES {
            assert!(range(&format!("range={}", word.replace('+', "%2B")), now).ends_with("UTC"), "{word}");
        }
    }

    #[test]
    fn conditions_are_typed_by_their_field() {
        let json = |text: &str| {
            node(&[Condition::parse(text).expect(text)], None).map(|node| node.expect("one").to_string())
        };
        assert!(json("quantity:gt:10").expect("valid").contains("\"value\":10"));
        assert!(json("metadata.region:in:eu,us").expect("valid").contains("[\"eu\",\"us\"]"));
        assert!(json("subject:eq:a\\:b").expect("valid").contains("\"a:b\""));
        assert!(json("quantity:gt:x").is_err());
        assert!(Condition::parse("subject").is_err() && Condition::parse("a:b:c").is_err());
    }

    proptest! {
        #[test]
        fn conditions_survive_the_address(field in "[a-z.:\\\\]{1,12}", value in "[a-z:,\\\\ é]{0,12}") {
            let text = equals(&field, &value);
            let link = Link::to("/usage").with("f", &text).to_string();
            let params = Params::parse(link.split_once('?').expect("a query").1);
            let read = conditions(&params).expect("valid");
            prop_assert_eq!(&read[0].field, &field);
            prop_assert_eq!(unescape(&read[0].value), value);
            prop_assert_eq!(read[0].text(), text);
        }

        #[test]
        fn no_text_breaks_the_grammar(text in "\\PC{0,40}") {
            let _ = Condition::parse(&text).map(|condition| condition.words());
            let _ = relative(&text, Timestamp(1_800_000_000_000_000));
            let _ = instant(&text, "from", Timestamp(1_800_000_000_000_000));
        }
    }
}
