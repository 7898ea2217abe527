//! The grammar of addresses: ranges, buckets, filters. A view is its address, so everything here reads text and
//! writes text. Pure: the clock comes in as an argument.

use jiff::Span;
use jiff::civil::Date;

use crate::dashboard::view::Link;
use crate::error::{Error, Result};
use crate::http::extract::Params;
use crate::metering::calendar::{Calendar, WeekStart, Zone};
use crate::metering::filter::{Filter, GROUP_DEPTH_MAX, Node};
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

/// Ranges that hang on what is stored: all of a meter's time, and the period of the plan that a subject has.
pub const ALL: &str = "all";
pub const PERIOD: &str = "period";
pub static STORED_RANGES: [(&str, &str); 2] = [(ALL, "All time"), (PERIOD, "Period of the plan")];

/// A range and what it means now.
#[derive(Clone, Debug)]
pub struct Range {
    /// As in the address; empty when two times were given.
    pub word: String,
    pub window: Window,
    /// The last bucket is not over.
    pub is_running: bool,
    /// In which days begin, and dates are read and shown.
    pub zone: Zone,
}

impl Range {
    /// `from` and `to` win over `range`; nothing at all is the default.
    pub fn parse(params: &Params, default: &str, now: Timestamp) -> Result<Range> {
        Range::parse_in(&Zone::UTC, params, default, now)
    }

    /// With the dates and days of a zone.
    pub fn parse_in(zone: &Zone, params: &Params, default: &str, now: Timestamp) -> Result<Range> {
        let instant = |text: &str, name: &str| instant(text, name, now, zone);
        let zone = zone.clone();
        let (from, to) = (params.get("from").trim(), params.get("to").trim());
        if !from.is_empty() || !to.is_empty() {
            let from = if from.is_empty() { Timestamp(0) } else { instant(from, "from")? };
            let to = if to.is_empty() { now } else { instant(to, "to")? };
            let window = Window::new(from, to)?;
            return Ok(Range { word: String::new(), window, is_running: to > now, zone });
        }
        let word = params.get("range").trim().replace(' ', "+");
        let word = if word.is_empty() { default.to_owned() } else { word };
        let week_start = WeekStart::read(params.get("week_start").trim())?;
        let window = relative(&word, now, &zone, week_start)?;
        Ok(Range { is_running: window.to > now, word, window, zone })
    }

    /// What it resolved to.
    pub fn words(&self) -> String {
        let text = |at: Timestamp| self.zone.text(at).replace('T', " ").chars().take(16).collect::<String>();
        format!("{} – {} {}", text(self.window.from), text(self.window.to), self.zone)
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

    /// The whole days of its zone around an instant.
    pub fn around(&self, at: Timestamp) -> Range {
        let day = Calendar { zone: self.zone.clone(), ..Calendar::utc(BucketSize::Day) }.around(at);
        Range { word: String::new(), window: day, is_running: false, zone: self.zone.clone() }
    }

    /// With times instead of words, for places where the words mean nothing.
    pub fn fixed(&self) -> Range {
        Range { word: String::new(), ..self.clone() }
    }

    /// Twice the length, around the same middle, but never beyond what is now the last day.
    pub fn wider(&self, now: Timestamp) -> Range {
        let half = self.window.length() / 2;
        let last = self
            .window
            .to
            .max(relative("today", now, &self.zone, WeekStart::Monday).map_or(now, |today| today.to));
        let to = self.window.to.plus(half).min(last);
        let from = Timestamp(to.0.saturating_sub(self.window.length().saturating_mul(2)).max(0));
        Range {
            word: String::new(),
            window: Window { from, to },
            is_running: to > now,
            zone: self.zone.clone(),
        }
    }

    /// The same length, one length earlier or later.
    pub fn shifted(&self, lengths: i64) -> Range {
        let by = self.window.length().saturating_mul(lengths);
        let window = Window { from: self.window.from.plus(by), to: self.window.to.plus(by) };
        Range { word: String::new(), window, is_running: false, zone: self.zone.clone() }
    }
}

/// An instant in RFC 3339, a date, the value of a date-time field, `now`, or `-3d`.
pub fn instant(text: &str, name: &str, now: Timestamp, zone: &Zone) -> Result<Timestamp> {
    let ago = |text: &str| Some(now.plus(-length(text.strip_prefix('-')?)?));
    // as a clock of the zone shows it for the first time
    let date = |text: &str| {
        let utc = match text.len() {
            10 => Timestamp::parse(&format!("{text}T00:00:00Z")),
            16 => Timestamp::parse(&format!("{text}:00Z")),
            19 => Timestamp::parse(&format!("{text}Z")),
            _ => None,
        };
        utc.map(|at| zone.first(Zone::UTC.civil(at)))
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

fn relative(word: &str, now: Timestamp, zone: &Zone, week_start: WeekStart) -> Result<Window> {
    let wrong = || Error::invalid(format!("range {word:?} is not known"));
    let of = |size: BucketSize| {
        Calendar { size, zone: zone.clone(), week_start, ..Calendar::utc(size) }.around(now)
    };
    let date = zone.civil(now).date();
    // midnight so many days, or the first so many months, from today
    let day = |n: i64| zone.first(moved(date, Span::new().try_days(n)).at(0, 0, 0, 0));
    let month = |n: i64| zone.first(moved(date.first_of_month(), Span::new().try_months(n)).at(0, 0, 0, 0));
    let (from, to) = match word {
        "today" => (day(0), day(1)),
        "yesterday" => (day(-1), day(0)),
        "this-week" => (of(BucketSize::Week).from, day(1)),
        "this-month" => (month(0), month(1)),
        "last-month" => (month(-1), month(0)),
        "this-year" => (of(BucketSize::Year).from, month(1)),
        ALL => (Timestamp(0), day(1)),
        PERIOD => {
            return Err(Error::invalid("range period is the plan period of one subject: name a subject"));
        }
        word => match (word.strip_suffix("+today"), word.strip_suffix('M')) {
            (Some(days), _) if days.ends_with('d') => (day(-whole_days(days).ok_or_else(wrong)?), day(1)),
            (None, Some(months)) => {
                let months: i64 =
                    months.parse().ok().filter(|months| (1..=60).contains(months)).ok_or_else(wrong)?;
                (month(1 - months), month(1))
            }
            (None, None) if word.ends_with('d') => (day(-whole_days(word).ok_or_else(wrong)?), day(0)),
            (None, None) => (now.plus(-length(word).ok_or_else(wrong)?), now),
            _ => return Err(wrong()),
        },
    };
    Window::new(from, to)
}

fn whole_days(text: &str) -> Option<i64> {
    length(text).map(|length| length / DAY)
}

/// At the ends of the calendar, the date itself.
fn moved(date: Date, by: std::result::Result<Span, jiff::Error>) -> Date {
    by.and_then(|span| date.checked_add(span)).unwrap_or(date)
}

/// The bucket that was asked for, or the finest with at most a hundred of them.
pub fn bucket(word: &str, window: Window) -> Result<BucketSize> {
    match word {
        "" | "auto" => Ok(match window.length() {
            length if length <= 100 * HOUR => BucketSize::Hour,
            length if length <= 100 * DAY => BucketSize::Day,
            length if length <= 3_660 * DAY => BucketSize::Month,
            _ => BucketSize::Year,
        }),
        word => BucketSize::parse(word),
    }
}

/// Parameters that are left out together when one of them is wrong.
const FAULTS: [&[&str]; 14] = [
    &["ff", "fo", "fv"],
    &["f", "q"],
    &["from", "to", "range"],
    &["bucket"],
    &["time_zone"],
    &["group"],
    &["subject"],
    &["cmp", "cmp_from", "cmp_to"],
    &["sort"],
    &["week_start"],
    &["show"],
    &["metric"],
    &["top"],
    &["outcome"],
];

/// What an address with a mistake asks for besides: all of it where the mistake shows later only, else all but the first
/// kind of parameter without which it can be read. For the form that is shown again.
pub fn nearest<T>(params: &Params, parse: impl Fn(&Params) -> Result<T>) -> Option<T> {
    let without = |names: &&[&str]| parse(&params.without(names)).ok();
    parse(params).ok().or_else(|| FAULTS.iter().find_map(without)).or_else(|| parse(&Params::parse("")).ok())
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

/// Groups inside groups at most; as many as the interface for programs takes.
const DEPTH_MAX: usize = GROUP_DEPTH_MAX - 1;

/// One condition, as in the address: `field:op:value`, with `\:` and `\,` for the signs themselves. Or a group of them,
/// `and(…,…)` or `or(…,…)`: then there is no field, `op` is the word and `value` what stands between the brackets, where
/// a backslash before `,`, `(`, `)` or `\` keeps the sign for the condition inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    pub field: String,
    pub op: String,
    pub value: String,
}

impl Condition {
    pub fn parse(text: &str) -> Result<Condition> {
        Condition::parse_within(text, 0)
    }

    fn parse_within(text: &str, depth: usize) -> Result<Condition> {
        let Some((op, inner)) = group_of(text) else { return Condition::parse_one(text) };
        if depth >= DEPTH_MAX {
            return Err(Error::invalid("q has too many groups inside each other"));
        }
        let group = Condition { field: String::new(), op: op.to_owned(), value: inner.to_owned() };
        let members = members(inner);
        members.iter().try_for_each(|member| Condition::parse_within(member, depth + 1).map(drop))?;
        if members.is_empty() { Err(Error::invalid("q has an empty group")) } else { Ok(group) }
    }

    fn parse_one(text: &str) -> Result<Condition> {
        let mut parts = split(text, ':', 3).into_iter();
        let (field, op) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let value = parts.next().unwrap_or_default();
        if field.is_empty() || !OPERATORS.iter().any(|(known, _)| *known == op) {
            return Err(Error::invalid(format!("filter {text:?} must be field:op:value")));
        }
        Ok(Condition { field: unescape(&field), op, value })
    }

    pub fn text(&self) -> String {
        match self.is_group() {
            true => format!("{}({})", self.op, self.value),
            false => format!("{}:{}:{}", escape(&self.field), self.op, self.value),
        }
    }

    /// As it stands inside of a group.
    fn as_member(&self) -> String {
        if self.is_group() {
            return self.text();
        }
        let mut text = String::new();
        for c in self.text().chars() {
            if matches!(c, '\\' | ',' | '(' | ')') {
                text.push('\\');
            }
            text.push(c);
        }
        text
    }

    /// The parameter of an address that it stands in.
    pub fn parameter(&self) -> &'static str {
        if self.is_group() { "q" } else { "f" }
    }

    fn is_group(&self) -> bool {
        self.field.is_empty()
    }

    /// What a group holds.
    fn members(&self) -> impl Iterator<Item = Condition> {
        members(&self.value).into_iter().filter_map(|text| Condition::parse(&text).ok())
    }

    /// In the words of the page.
    pub fn words(&self) -> String {
        if self.is_group() {
            let words: Vec<String> = self.members().map(|member| member.words()).collect();
            return format!("({})", words.join(&format!(" {} ", self.op)));
        }
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
        if self.is_group() {
            let rules = self.members().map(|member| member.json(meter)).collect::<Result<Vec<_>>>()?;
            return Ok(group(&self.op, rules));
        }
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

/// The three fields of a new filter as a condition; `None` where they are empty.
pub fn added(params: &Params) -> Result<Option<Condition>> {
    let (field, op, value) = (params.get("ff"), params.get("fo"), params.get("fv").trim());
    if field.is_empty() || (value.is_empty() && op != "exists") {
        return Ok(None);
    }
    let value = match op {
        "in" => value.split(',').map(|part| escape(part.trim())).collect::<Vec<_>>().join(","),
        _ => escape(value),
    };
    Condition::parse(&format!("{}:{op}:{value}", escape(field))).map(Some)
}

/// Operators as the builder of filters of the old dashboard spelled them, beside our own.
const SPELLINGS: [(&str, &str); 12] = [
    ("=", "eq"),
    ("==", "eq"),
    ("equals", "eq"),
    ("!=", "neq"),
    ("not equals", "neq"),
    (">", "gt"),
    (">=", "gte"),
    ("<", "lt"),
    ("<=", "lte"),
    ("in list", "in"),
    ("notNull", "exists"),
    ("not null", "exists"),
];

/// A filter as the interface for programs has it (`op`), or the old dashboard (`operator`, `combinator`). `None` for what
/// no address can say.
pub fn of_filter(node: &Value) -> Option<Condition> {
    let word = |names: [&str; 2]| names.iter().find_map(|name| node[name].as_str());
    if let Some(rules) = node["rules"].as_array() {
        let op = word(["op", "combinator"]).unwrap_or("and");
        let members: Vec<String> =
            rules.iter().map(|rule| of_filter(rule).map(|one| one.as_member())).collect::<Option<_>>()?;
        return Condition::parse(&format!("{op}({})", members.join(","))).ok();
    }
    let op = word(["op", "operator"])?;
    let op = SPELLINGS.iter().find(|(known, _)| *known == op).map_or(op, |(_, ours)| ours);
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let value = match &node["value"] {
        Value::Array(values) => values.iter().map(|one| escape(&text(one))).collect::<Vec<_>>().join(","),
        _ if op == "exists" => String::new(),
        Value::String(list) if op == "in" => {
            list.split(',').map(|part| escape(part.trim())).collect::<Vec<_>>().join(",")
        }
        value => escape(&text(value)),
    };
    Condition::parse(&format!("{}:{op}:{value}", escape(node["field"].as_str()?))).ok()
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
    params.all("f").chain(params.all("q")).filter(|text| !text.is_empty()).map(Condition::parse).collect()
}

/// The conditions as one node of a filter; none without any.
pub fn node(conditions: &[Condition], meter: Option<&Meter>) -> Result<Option<Value>> {
    if conditions.is_empty() {
        return Ok(None);
    }
    let rules = conditions.iter().map(|condition| condition.json(meter)).collect::<Result<Vec<_>>>()?;
    Ok(Some(group("and", rules)))
}

fn group(op: &str, rules: Vec<Value>) -> Value {
    Value::object([("type", "group".into()), ("op", op.into()), ("rules", Value::Array(rules))])
}

/// The word of a group and what stands between its brackets.
fn group_of(text: &str) -> Option<(&'static str, &str)> {
    let inner = |word: &str| text.strip_prefix(word)?.strip_prefix('(')?.strip_suffix(')');
    inner("and").map(|inner| ("and", inner)).or_else(|| inner("or").map(|inner| ("or", inner)))
}

/// The parts of a group: groups as they stand, conditions without the backslashes that the brackets asked for.
fn members(inner: &str) -> Vec<String> {
    let (mut parts, mut depth, mut is_escaped) = (vec![String::new()], 0_usize, false);
    for c in inner.chars() {
        match c {
            ',' if depth == 0 && !is_escaped => {
                parts.push(String::new());
                continue;
            }
            '(' if !is_escaped => depth += 1,
            ')' if !is_escaped => depth = depth.saturating_sub(1),
            _ => {}
        }
        is_escaped = c == '\\' && !is_escaped;
        if let Some(last) = parts.last_mut() {
            last.push(c);
        }
    }
    let plain = |part: String| if group_of(&part).is_some() { part } else { unescape(&part) };
    parts.into_iter().filter(|part| !part.is_empty()).map(plain).collect()
}

/// A group of conditions and groups.
pub fn group_text(op: &str, members: &[Condition]) -> String {
    let text = |member: &Condition| match member.is_group() {
        true => member.text(),
        false => {
            member.text().replace('\\', "\\\\").replace(',', "\\,").replace('(', "\\(").replace(')', "\\)")
        }
    };
    format!("{op}({})", members.iter().map(text).collect::<Vec<_>>().join(","))
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
        assert_eq!(
            range("range=this-week&week_start=sunday", now),
            "2026-11-22 00:00 – 2026-11-29 00:00 UTC"
        );
        assert_eq!(range("range=this-year", now), "2026-01-01 00:00 – 2026-12-01 00:00 UTC");
        assert_eq!(
            range("from=2026-11-01&to=2026-11-02T12:00", now),
            "2026-11-01 00:00 – 2026-11-02 12:00 UTC"
        );
        assert_eq!(range("from=-3d&to=now", now), "2026-11-25 18:18 – 2026-11-28 18:18 UTC");
        assert_eq!(range("range=all", now), "1970-01-01 00:00 – 2026-11-29 00:00 UTC");
        assert!(range("range=period", now).contains("name a subject"));
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
        // what somebody may choose to see first
        assert_eq!(RANGES.map(|(word, _)| word), crate::auth::preferences::RANGES);
    }

    #[test]
    fn a_wider_range_is_twice_as_long_and_ends_today() {
        let now = Timestamp::parse("2026-11-28T18:18:21Z").expect("time");
        let wider = |query: &str| {
            let range = Range::parse(&Params::parse(query), "24h", now).expect("a range").wider(now);
            assert!(range.word.is_empty());
            range.words()
        };
        assert_eq!(wider("range=7d"), "2026-11-15 00:00 – 2026-11-29 00:00 UTC");
        assert_eq!(wider("from=2026-05-02&to=2026-05-04"), "2026-05-01 00:00 – 2026-05-05 00:00 UTC");
        assert_eq!(wider("range=all"), "1970-01-01 00:00 – 2026-11-29 00:00 UTC");
    }

    #[test]
    fn the_day_around_an_instant_is_that_of_the_zone() {
        let (now, zone) = (Timestamp::parse("2026-11-28T23:30:00Z"), Zone::parse("Europe/Berlin"));
        let (now, zone) = (now.expect("a time"), zone.expect("a zone"));
        let range = Range::parse_in(&zone, &Params::parse("range=7d"), "", now).expect("a range");
        assert_eq!(range.around(now).words(), "2026-11-29 00:00 – 2026-11-30 00:00 Europe/Berlin");
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

    #[test]
    fn groups_hold_groups() {
        let text = "or(subject:eq:a,and(quantity:gt:5,metadata.region:in:eu\\,us))";
        let group = Condition::parse(text).expect("valid");
        assert_eq!((group.text().as_str(), group.parameter()), (text, "q"));
        assert_eq!(group.words(), "(subject is a or (quantity > 5 and region is one of eu, us))");
        let node = node(&[group], None).expect("valid").expect("one").to_string();
        assert!(node.contains(r#""op":"or""#) && node.contains(r#"["eu","us"]"#), "{node}");
        assert!(filter(&[Condition::parse(text).expect("valid")], None).expect("valid").is_some());
        let deep = format!("{}subject:eq:a{}", "and(".repeat(40), ")".repeat(40));
        for bad in ["or()", "or(x)", "and(subject:eq:a,b)", "or(", &deep] {
            assert!(Condition::parse(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn groups_survive_the_address(fields in proptest::collection::vec(("[a-z.:]{1,8}", "[a-z:,()\\\\ é]{0,8}"), 1..5)) {
            let leaves: Vec<Condition> = fields
                .iter()
                .map(|(field, value)| Condition { field: field.clone(), op: "eq".to_owned(), value: escape(value) })
                .collect();
            let inner = Condition::parse(&group_text("or", &leaves)).expect("valid");
            prop_assert_eq!(inner.members().collect::<Vec<_>>(), leaves.clone());
            let mixed = [vec![inner], leaves].concat();
            let outer = Condition::parse(&group_text("and", &mixed)).expect("valid");
            prop_assert_eq!(outer.members().collect::<Vec<_>>(), mixed);
        }
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
            let _ = relative(&text, Timestamp(1_800_000_000_000_000), &Zone::UTC, WeekStart::Monday);
            let _ = instant(&text, "from", Timestamp(1_800_000_000_000_000), &Zone::UTC);
        }
    }
}
