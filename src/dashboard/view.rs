//! How numbers, times and addresses are written on pages. Every digit is shown; nothing is rounded but ages.

use std::fmt;

use askama::filters::HtmlSafe;
use url::form_urlencoded;

use crate::metering::calendar::Zone;
use crate::metering::json::Value;
use crate::metering::quantity::Quantity;
use crate::metering::time::{DAY, HOUR, SECOND, Timestamp};

const MINUTE: i64 = 60 * SECOND;
/// A change in percent that says no more than that it is large.
const CHANGE_MAX: f64 = 1e6;

/// `1234567.5` as `1,234,567.5`.
pub fn number(quantity: &Quantity) -> String {
    grouped(&quantity.to_plain())
}

/// A whole number of any kind.
pub fn count(number: impl fmt::Display) -> String {
    grouped(&number.to_string())
}

/// A decimal that is text already.
pub fn digits(text: &str) -> String {
    grouped(text)
}

fn grouped(text: &str) -> String {
    let (whole, fraction) = text.split_once('.').map_or((text, None), |(whole, rest)| (whole, Some(rest)));
    let (sign, digits) = whole.strip_prefix('-').map_or(("", whole), |digits| ("-", digits));
    let mut grouped = String::with_capacity(text.len() + digits.len() / 3 + 1);
    grouped.push_str(sign);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    if let Some(fraction) = fraction {
        grouped.push('.');
        grouped.push_str(fraction);
    }
    grouped
}

/// A percentage with one digit behind the point.
pub fn percent(percent: &Quantity) -> String {
    format!("{:.1}", percent.to_f64())
}

/// `+12.5 %`, or how it is when there was nothing before.
pub fn change(now: &Quantity, before: &Quantity) -> String {
    if before.is_zero() {
        return if now.is_zero() { "no change".to_owned() } else { "nothing before".to_owned() };
    }
    let percent = (&(now - before) * &Quantity::from(100)).divide(before).to_f64();
    if percent.abs() > CHANGE_MAX {
        format!("{:+.0} % or more", CHANGE_MAX.copysign(percent))
    } else {
        format!("{percent:+.1} %")
    }
}

/// The first characters of a long text.
pub fn short(text: &str, characters: usize) -> String {
    match text.char_indices().nth(characters) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// `1 event`, `2,000 events`.
pub fn counted(number: impl fmt::Display, one: &str, many: &str) -> String {
    let number = count(number);
    let noun = if number == "1" { one } else { many };
    format!("{number} {noun}")
}

/// As [`counted`], of what was counted no further than to `most`.
pub fn counted_to(most: i64, number: i64, one: &str, many: &str) -> String {
    match number > most {
        true => format!("more than {} {many}", count(most)),
        false => counted(number, one, many),
    }
}

pub fn bytes(size: i64) -> String {
    let units = [(1 << 30, "GB"), (1 << 20, "MB"), (1 << 10, "KB")];
    match units.into_iter().find(|(unit, _)| size >= *unit) {
        Some((unit, name)) => format!("{:.1} {name}", size as f64 / unit as f64),
        None => format!("{size} B"),
    }
}

/// The largest unit that divides the seconds: `15 min`, `1 h`, `90 s`.
pub fn seconds(seconds: i64) -> String {
    let units = [(86_400, "d"), (3_600, "h"), (60, "min")];
    match units.into_iter().find(|(unit, _)| seconds >= *unit && seconds % unit == 0) {
        Some((unit, name)) => format!("{} {name}", seconds / unit),
        None => format!("{seconds} s"),
    }
}

/// How long, in its two largest units: `3 d 4 h`.
pub fn span(micros: i64) -> String {
    let micros = micros.abs();
    let (days, hours, minutes) = (micros / DAY, micros % DAY / HOUR, micros % HOUR / MINUTE);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{} s", micros / SECOND),
        (0, 0, minutes) => format!("{minutes} min"),
        (0, hours, minutes) => format!("{hours} h {minutes} min"),
        (days, hours, _) => format!("{days} d {hours} h"),
    }
}

/// `3 min ago`, `in 2 d 4 h`.
pub fn relative(at: Timestamp, now: Timestamp) -> String {
    let distance = now.0 - at.0;
    match distance {
        distance if distance.abs() < 2 * SECOND => "just now".to_owned(),
        distance if distance >= 0 => format!("{} ago", span(distance)),
        distance => format!("in {}", span(distance)),
    }
}

/// An instant as `2026-11-28 18:18:21`, in a zone, with its age where a pointer rests on it.
#[derive(Clone, Debug)]
pub struct When {
    pub at: Timestamp,
    pub zone: Zone,
}

impl When {
    /// For a sentence: `2026-11-28 18:18:21 UTC (3 min ago)`.
    pub fn words(&self) -> String {
        let (date, time) = crate::dashboard::zone::local(&self.zone, self.at);
        format!("{date} {time} {} ({})", self.zone, relative(self.at, Timestamp::now()))
    }
}

/// An instant in either of the forms that rows have it in.
pub trait Instant {
    fn instant(&self) -> Timestamp;
}

impl Instant for Timestamp {
    fn instant(&self) -> Timestamp {
        *self
    }
}

impl Instant for i64 {
    fn instant(&self) -> Timestamp {
        Timestamp(*self)
    }
}

impl<T: Instant> Instant for &T {
    fn instant(&self) -> Timestamp {
        (**self).instant()
    }
}

pub fn age(at: impl Instant) -> Age {
    Age(at.instant())
}

impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (text, age) = (self.at.to_seconds_text(), relative(self.at, Timestamp::now()));
        let (date, time) = crate::dashboard::zone::local(&self.zone, self.at);
        write!(
            f,
            "<time datetime=\"{text}\" title=\"{age}, {text}\">{date} <span class=\"clock\">{time}</span></time>"
        )
    }
}

// digits and our own words only
impl HtmlSafe for When {}

/// An age in the text, with the instant where a pointer rests on it.
#[derive(Clone, Copy, Debug)]
pub struct Age(pub Timestamp);

impl fmt::Display for Age {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.to_seconds_text();
        write!(f, "<time datetime=\"{text}\" title=\"{text}\">{}</time>", relative(self.0, Timestamp::now()))
    }
}

// digits and our own words only
impl HtmlSafe for Age {}

/// `2026-11-28 18:18`, in UTC.
pub fn minute(at: impl Instant) -> String {
    at.instant().to_seconds_text()[..16].replace('T', " ")
}

pub fn day(at: impl Instant) -> String {
    at.instant().to_seconds_text()[..10].to_owned()
}

/// The date on the calendars of a zone.
pub fn day_in(zone: &Zone, at: impl Instant) -> String {
    zone.text(at.instant())[..10].to_owned()
}

/// The first dimensions of an event, and how many more there are.
pub struct Dimensions {
    pub shown: Vec<(String, String)>,
    pub more: usize,
}

const DIMENSIONS_SHOWN: usize = 4;

/// What metadata says, cut to what fits a row. An object in an object is shown as its JSON.
pub fn dimensions(json: &str) -> Dimensions {
    let parsed = Value::parse(json).unwrap_or_default();
    let entries = parsed.as_object().map(|map| map.iter().collect::<Vec<_>>()).unwrap_or_default();
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    Dimensions {
        more: entries.len().saturating_sub(DIMENSIONS_SHOWN),
        shown: entries
            .into_iter()
            .take(DIMENSIONS_SHOWN)
            .map(|(name, value)| (short(name, 40), short(&text(value), 60)))
            .collect(),
    }
}

/// An address made of a path and parameters; blank ones are left out.
#[derive(Clone, Debug)]
pub struct Link(String);

impl Link {
    pub fn to(path: impl Into<String>) -> Link {
        Link(path.into())
    }

    pub fn with(mut self, name: &str, value: &str) -> Link {
        if !value.is_empty() {
            self.0.push(if self.0.contains('?') { '&' } else { '?' });
            self.0.extend(form_urlencoded::byte_serialize(name.as_bytes()));
            self.0.push('=');
            self.0.extend(form_urlencoded::byte_serialize(value.as_bytes()));
        }
        self
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The list of what belongs to a meter or a subject.
pub fn link(path: &str, name: &str, value: &str) -> Link {
    Link::to(path).with(name, value)
}

/// What an address has that no choice of a form offers: it is one more choice, or sending the form would lose it.
pub fn odd<'a>(word: &'a str, known: &[(&str, &str)]) -> Option<&'a str> {
    (!word.is_empty() && !known.iter().any(|(value, _)| *value == word)).then_some(word)
}

/// One segment of a path.
pub fn segment(text: &str) -> String {
    use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
    const KEPT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
    // a segment of dots would be taken for a direction
    match text {
        "." => "%2E".to_owned(),
        ".." => "%2E%2E".to_owned(),
        text => utf8_percent_encode(text, KEPT).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_grouped_and_kept() {
        let shown = |text| number(&Quantity::from_plain(text).expect("a number"));
        assert_eq!(shown("1234567.50001"), "1,234,567.50001");
        assert_eq!(shown("-1000"), "-1,000");
        assert_eq!(shown("999"), "999");
        assert_eq!(count(-12_345), "-12,345");
    }

    #[test]
    fn changes_are_relative() {
        let q = |n: i64| Quantity::from(n);
        assert_eq!(change(&q(150), &q(100)), "+50.0 %");
        assert_eq!(change(&q(50), &q(100)), "-50.0 %");
        assert_eq!(change(&q(5), &q(0)), "nothing before");
        assert_eq!(change(&q(5_000_000), &q(1)), "+1000000 % or more");
    }

    #[test]
    fn lengths_are_words() {
        assert_eq!(seconds(900), "15 min");
        assert_eq!(seconds(90), "90 s");
        assert_eq!(span(3 * DAY + 4 * HOUR), "3 d 4 h");
        assert_eq!(relative(Timestamp(0), Timestamp(90 * MINUTE)), "1 h 30 min ago");
        assert_eq!(bytes(1_536), "1.5 KB");
        assert_eq!(counted_to(1_000, 1_000, "event", "events"), "1,000 events");
        assert_eq!(counted_to(1_000, 1_001, "event", "events"), "more than 1,000 events");
    }

    #[test]
    fn dimensions_are_cut_to_a_row() {
        let cut = dimensions(r#"{"a": "x", "b": 1.50, "c": true, "d": {"e": null}, "f": "y"}"#);
        let pairs: Vec<String> = cut.shown.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!((pairs.join(" ").as_str(), cut.more), (r#"a=x b=1.50 c=true d={"e":null}"#, 1));
        assert_eq!(dimensions("{}").shown.len() + dimensions("no").shown.len(), 0);
    }

    #[test]
    fn addresses_are_encoded() {
        let link = Link::to("/usage").with("meter", "a b").with("f", "").with("q", "x&y").to_string();
        assert_eq!(link, "/usage?meter=a+b&q=x%26y");
        assert_eq!(segment("a/b:c é"), "a%2Fb%3Ac%20%C3%A9");
        assert_eq!(segment(".."), "%2E%2E");
    }
}
