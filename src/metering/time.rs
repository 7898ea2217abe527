//! Instants, windows and sizes of buckets (rest.md 6 and 9.1); where days and months of a zone begin is `calendar`. Pure: no
//! SQL, and no clock: that is `crate::clock`. Never a time as text except at the edges of the server.

use std::borrow::Cow;
use std::fmt;

use jiff::civil::{Date, DateTime};
use jiff::{SignedDuration, ToSpan};
use serde::{Serialize, Serializer};

use crate::error::{Error, Result};

pub const SECOND: i64 = 1_000_000;
pub const HOUR: i64 = 3_600 * SECOND;
pub const DAY: i64 = 24 * HOUR;

const EPOCH: DateTime = DateTime::constant(1970, 1, 1, 0, 0, 0, 0);

/// An instant: microseconds since 1970-01-01T00:00:00Z. Finer fractions are cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// `0001-01-01T00:00:00Z`, which stands for "no time" on the wire (rest.md 6).
    pub const ABSENT: Timestamp = Timestamp(-62_135_596_800 * SECOND);

    /// The last instant that RFC 3339 can write.
    pub const LAST: Timestamp = Timestamp(253_402_300_800 * SECOND - 1);

    /// RFC 3339 as rest.md 6 reads it: capital `T` and `Z`, a fraction after `.` or `,`, no second 60. The instant
    /// itself, in UTC, lies within the years 1 to 9999: what an offset moves out of them could not be written again.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        if bytes.len() < 20 || !text.is_ascii() {
            return None;
        }
        let shape = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')];
        if shape.iter().any(|(at, want)| bytes[*at] != *want) {
            return None;
        }
        let date =
            Date::new(number(text, 0, 4)? as i16, number(text, 5, 2)? as i8, number(text, 8, 2)? as i8)
                .ok()?;
        let (hour, minute, second) = (number(text, 11, 2)?, number(text, 14, 2)?, number(text, 17, 2)?);
        if hour > 23 || minute > 59 || second > 59 {
            return None;
        }
        let (micros, rest) = fraction(&text[19..])?;
        let offset_minutes = offset(rest)?;
        let midnight = Timestamp::from_civil(date.at(0, 0, 0, 0));
        let seconds = hour * 3_600 + minute * 60 + second - offset_minutes * 60;
        Timestamp::of_micros(midnight.0 + seconds * SECOND + micros)
    }

    /// An instant that somebody else kept; none where it cannot be written.
    pub fn of_micros(micros: i64) -> Option<Timestamp> {
        let at = Timestamp(micros);
        (Timestamp::ABSENT..=Timestamp::LAST).contains(&at).then_some(at)
    }

    /// Never another year: what cannot be written is written as the nearest that can.
    fn civil(self) -> DateTime {
        let at = self.clamp(Timestamp::ABSENT, Timestamp::LAST);
        EPOCH.checked_add(SignedDuration::from_micros(at.0)).unwrap_or(EPOCH)
    }

    fn from_civil(at: DateTime) -> Self {
        Timestamp(at.duration_since(EPOCH).as_micros() as i64)
    }

    /// RFC 3339 in UTC, whole seconds, the fraction cut off (rest.md 3).
    pub fn to_seconds_text(self) -> String {
        let c = self.civil();
        format!(
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
            c.year(),
            c.month(),
            c.day(),
            c.hour(),
            c.minute(),
            c.second()
        )
    }

    /// RFC 3339 in UTC with up to six fraction digits, for cursors and operators.
    pub fn to_exact_text(self) -> String {
        let seconds = self.to_seconds_text();
        match self.0.rem_euclid(SECOND) {
            0 => seconds,
            micros => {
                let fraction = format!("{micros:06}");
                format!("{}.{}Z", &seconds[..seconds.len() - 1], fraction.trim_end_matches('0'))
            }
        }
    }

    pub fn floor(self, width: i64) -> Timestamp {
        Timestamp(self.0 - self.0.rem_euclid(width))
    }

    pub fn ceil(self, width: i64) -> Timestamp {
        Timestamp(self.0 + (-self.0).rem_euclid(width))
    }

    pub fn plus(self, micros: i64) -> Timestamp {
        Timestamp(self.0.saturating_add(micros))
    }

    pub fn plus_months(self, months: i32) -> Timestamp {
        match self.civil().checked_add(months.months()) {
            Ok(at) => Timestamp::from_civil(at),
            // behind the last month there is: the end of time
            Err(_) if months > 0 => Timestamp::LAST.plus(1),
            Err(_) => Timestamp::ABSENT,
        }
    }

    /// The first of its month in UTC, midnight.
    pub fn month_start(self) -> Timestamp {
        Timestamp::from_civil(self.civil().date().first_of_month().at(0, 0, 0, 0))
    }

    /// Calendar months from the month of `start` to the month of this instant, whatever the days.
    pub fn months_since(self, start: Timestamp) -> i32 {
        let count = |at: Timestamp| i32::from(at.civil().year()) * 12 + i32::from(at.civil().month());
        count(self) - count(start)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_seconds_text())
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.to_seconds_text())
    }
}

fn number(text: &str, at: usize, length: usize) -> Option<i64> {
    let part = text.get(at..at + length)?;
    part.bytes().all(|b| b.is_ascii_digit()).then(|| part.parse().ok())?
}

/// Microseconds of an optional fraction, and what follows it.
fn fraction(text: &str) -> Option<(i64, &str)> {
    let Some(digits) = text.strip_prefix(['.', ',']) else {
        return Some((0, text));
    };
    let length = digits.bytes().take_while(u8::is_ascii_digit).count();
    if length == 0 {
        return None;
    }
    let micros: String = digits[..length].chars().chain("000000".chars()).take(6).collect();
    Some((micros.parse().ok()?, &digits[length..]))
}

/// Minutes east of UTC.
fn offset(text: &str) -> Option<i64> {
    if text == "Z" {
        return Some(0);
    }
    let sign = match text.as_bytes().first()? {
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    if text.len() != 6 || text.as_bytes()[3] != b':' {
        return None;
    }
    let (hours, minutes) = (number(text, 1, 2)?, number(text, 4, 2)?);
    (hours <= 23 && minutes <= 59).then_some(sign * (hours * 60 + minutes))
}

/// What buckets are counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    Minute,
    Hour,
    Day,
    Week,
    Month,
    Quarter,
    Year,
}

/// How long a bucket is; where it begins, a [`Calendar`](super::calendar::Calendar) says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BucketSize {
    Minute,
    FiveMinutes,
    QuarterHour,
    Hour,
    Day,
    Week,
    Month,
    Quarter,
    Year,
    /// Several units, counted from an anchor.
    Of(u16, Unit),
}

/// Of a unit in one bucket.
const COUNT_MAX: u16 = 1_000;

impl BucketSize {
    /// Those that have a name of their own, the shortest first.
    pub const NAMED: [BucketSize; 9] = [
        BucketSize::Minute,
        BucketSize::FiveMinutes,
        BucketSize::QuarterHour,
        BucketSize::Hour,
        BucketSize::Day,
        BucketSize::Week,
        BucketSize::Month,
        BucketSize::Quarter,
        BucketSize::Year,
    ];

    /// Empty means day. `m` means months, but for the names `5m` and `15m`.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = || {
            Error::invalid(
                "bucket_size must be minute, 5m, 15m, hour, day, week, month, quarter, year, or 1 to 1000 of a \
                 unit: 30min, 6h, 10d, 2w, 3m, 2q, 2y",
            )
        };
        if text.is_empty() {
            return Ok(BucketSize::Day);
        }
        match BucketSize::NAMED.into_iter().find(|size| size.name() == text) {
            Some(size) => Ok(size),
            None => BucketSize::counted(text).ok_or_else(wrong),
        }
    }

    fn counted(text: &str) -> Option<Self> {
        let (count, word) = text.split_at(text.bytes().take_while(u8::is_ascii_digit).count());
        let unit = match word {
            "min" => Unit::Minute,
            "h" => Unit::Hour,
            "d" => Unit::Day,
            "w" => Unit::Week,
            "m" | "mo" => Unit::Month,
            "q" => Unit::Quarter,
            "y" => Unit::Year,
            _ => return None,
        };
        let count = count.parse().ok().filter(|count| (1..=COUNT_MAX).contains(count))?;
        Some(BucketSize::Of(count, unit))
    }

    /// The word of one that has its own.
    pub fn own_name(self) -> Option<&'static str> {
        match self {
            BucketSize::Minute => Some("minute"),
            BucketSize::FiveMinutes => Some("5m"),
            BucketSize::QuarterHour => Some("15m"),
            BucketSize::Hour => Some("hour"),
            BucketSize::Day => Some("day"),
            BucketSize::Week => Some("week"),
            BucketSize::Month => Some("month"),
            BucketSize::Quarter => Some("quarter"),
            BucketSize::Year => Some("year"),
            BucketSize::Of(..) => None,
        }
    }

    pub fn name(self) -> Cow<'static, str> {
        if let Some(name) = self.own_name() {
            return Cow::Borrowed(name);
        }
        let (unit, count) = self.parts();
        let word = match unit {
            Unit::Minute => "min",
            Unit::Hour => "h",
            Unit::Day => "d",
            Unit::Week => "w",
            // as `5m` and `15m` they are minutes
            Unit::Month if matches!(count, 5 | 15) => "mo",
            Unit::Month => "m",
            Unit::Quarter => "q",
            Unit::Year => "y",
        };
        Cow::Owned(format!("{count}{word}"))
    }

    pub fn parts(self) -> (Unit, i64) {
        match self {
            BucketSize::Minute => (Unit::Minute, 1),
            BucketSize::FiveMinutes => (Unit::Minute, 5),
            BucketSize::QuarterHour => (Unit::Minute, 15),
            BucketSize::Hour => (Unit::Hour, 1),
            BucketSize::Day => (Unit::Day, 1),
            BucketSize::Week => (Unit::Week, 1),
            BucketSize::Month => (Unit::Month, 1),
            BucketSize::Quarter => (Unit::Quarter, 1),
            BucketSize::Year => (Unit::Year, 1),
            BucketSize::Of(count, unit) => (unit, i64::from(count)),
        }
    }

    /// Whether one hour may hold several.
    pub fn is_below_hour(self) -> bool {
        matches!(self.parts(), (Unit::Minute, _))
    }

    /// The end of the longest window that begins here, and its length in words (rest.md 9.1).
    fn longest(self, from: Timestamp) -> (Timestamp, String) {
        let (unit, count) = self.parts();
        let days = |days: i64| (from.plus(days * DAY), format!("{days} days"));
        let years = |months: i64| {
            let months = months.min(600) / 12 * 12;
            (from.plus_months(months as i32), format!("{} years", months / 12))
        };
        match unit {
            Unit::Minute if count == 1 => (from.plus(DAY), "1 day".to_owned()),
            Unit::Minute => days(count.min(31)),
            Unit::Hour => days((31 * count).min(366)),
            Unit::Day => days((366 * count).min(3_660)),
            Unit::Week | Unit::Month => years(60 * count),
            Unit::Quarter => years(180 * count),
            Unit::Year => years(600),
        }
    }
}

/// From inclusive, to exclusive, never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Window {
    pub from: Timestamp,
    pub to: Timestamp,
}

impl Window {
    /// Every instant that can be written (rest.md 6), in whole days.
    pub const ALWAYS: Window = Window { from: Timestamp(-719_893 * DAY), to: Timestamp(2_933_263 * DAY) };

    pub fn new(from: Timestamp, to: Timestamp) -> Result<Self> {
        if from >= to {
            return Err(Error::invalid("from must be before to"));
        }
        Ok(Window { from, to })
    }

    /// Length in microseconds.
    pub fn length(self) -> i64 {
        self.to.0 - self.from.0
    }

    /// The longest window of a bucket query (rest.md 9.1).
    pub fn check_length(self, size: BucketSize) -> Result<()> {
        let (limit, words) = size.longest(self.from);
        if self.to > limit {
            let name = size.name();
            return Err(Error::invalid(format!(
                "the window must not be longer than {words} for {name} buckets"
            )));
        }
        Ok(())
    }

    pub fn contains(self, at: Timestamp) -> bool {
        self.from <= at && at < self.to
    }

    /// The smallest window around both.
    pub fn hull(self, other: Window) -> Window {
        Window { from: self.from.min(other.from), to: self.to.max(other.to) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        Timestamp::parse(text).expect(text)
    }

    #[test]
    fn reads_the_times_of_the_contract() {
        assert_eq!(at("1970-01-01T00:00:00Z"), Timestamp(0));
        assert_eq!(at("2026-06-01T10:00:00+02:00"), at("2026-06-01T08:00:00Z"));
        assert_eq!(at("2026-06-01T10:00:00.5Z").0 - at("2026-06-01T10:00:00Z").0, 500_000);
        assert_eq!(at("2026-06-01T10:00:00,123456789Z").0 % SECOND, 123_456);
        assert_eq!(at("0001-01-01T00:00:00Z"), Timestamp::ABSENT);
        assert_eq!(at("0001-01-01T00:00:00.5Z").to_exact_text(), "0001-01-01T00:00:00.5Z");
        assert_eq!(at("9999-12-31T23:59:59.999999Z"), Timestamp::LAST);
        assert_eq!(Timestamp::LAST.month_start(), at("9999-12-01T00:00:00Z"));
        assert_eq!(Timestamp(i64::MAX).to_exact_text().get(..10), Some("9999-12-31"));
        assert_eq!(Timestamp(i64::MIN).to_exact_text().get(..10), Some("0001-01-01"));
        assert_eq!(at("9999-12-31T23:59:59.999999Z").to_exact_text(), "9999-12-31T23:59:59.999999Z");
    }

    #[test]
    fn refuses_other_times() {
        let bad = [
            "",
            "2026-06-01",
            "2026-06-01t00:00:00Z",
            "2026-06-01T00:00:00z",
            "2026-06-01T00:00:60Z",
            "2026-06-01T24:00:00Z",
            "2026-06-31T00:00:00Z",
            "2026-06-01T00:00:00",
            "2026-06-01T00:00:00.Z",
            "2026-06-01T00:00:00+0200",
            "2026-06-01T00:00:00 02:00",
            "2026-06-01 00:00:00Z",
            "+026-06-01T00:00:00Z",
            "2026-06-01T00:00:00Zx",
            "2026-06-0\u{661}T00:00:00Z",
            "0000-01-01T00:00:00Z",
            "0000-12-31T23:59:59.999999Z",
            "0001-01-01T00:00:00+00:01",
            "0000-01-01T00:00:00+23:59",
            "9999-12-31T23:59:59-00:01",
            "9999-12-31T23:59:59-23:59",
        ];
        for text in bad {
            assert_eq!(Timestamp::parse(text), None, "{text}");
        }
    }

    #[test]
    fn cuts_fractions_also_before_1970() {
        assert_eq!(at("1969-12-31T23:59:59.5Z").to_seconds_text(), "1969-12-31T23:59:59Z");
        assert_eq!(at("1969-12-31T23:59:59.5Z").floor(HOUR), at("1969-12-31T23:00:00Z"));
    }

    #[test]
    fn instants_are_rounded() {
        let moment = at("2024-02-29T13:14:15.5Z");
        assert_eq!(moment.floor(HOUR), at("2024-02-29T13:00:00Z"));
        assert_eq!(moment.month_start(), at("2024-02-01T00:00:00Z"));
        assert_eq!(moment.ceil(HOUR), at("2024-02-29T14:00:00Z"));
        assert_eq!(at("2024-02-29T13:00:00Z").ceil(HOUR), at("2024-02-29T13:00:00Z"));
    }

    #[test]
    fn sizes_are_read_and_named() {
        for size in BucketSize::NAMED {
            assert_eq!(BucketSize::parse(&size.name()).expect("its own name"), size);
        }
        let minutes_and_months = [
            ("5m", "5m", (Unit::Minute, 5)),
            ("15m", "15m", (Unit::Minute, 15)),
            ("1m", "1m", (Unit::Month, 1)),
            ("30m", "30m", (Unit::Month, 30)),
            ("5mo", "5mo", (Unit::Month, 5)),
            ("3mo", "3m", (Unit::Month, 3)),
            ("30min", "30min", (Unit::Minute, 30)),
            ("007d", "7d", (Unit::Day, 7)),
            ("2y", "2y", (Unit::Year, 2)),
        ];
        for (text, name, parts) in minutes_and_months {
            let size = BucketSize::parse(text).expect(text);
            assert_eq!((size.name().as_ref(), size.parts()), (name, parts), "{text}");
            assert_eq!(BucketSize::parse(&size.name()).expect("its own name"), size);
        }
        let bad = ["0d", "1001d", "70000d", "-1d", "d", "3", "1.5d", "Day", "5M", " day", "1s", "\u{661}d"];
        for text in bad {
            assert!(BucketSize::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn windows_have_a_longest_length() {
        let window = |from, to| Window::new(at(from), at(to)).expect("window");
        assert!(
            window("2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z").check_length(BucketSize::Hour).is_ok()
        );
        assert!(
            window("2026-01-01T00:00:00Z", "2026-02-01T00:00:01Z").check_length(BucketSize::Hour).is_err()
        );
        assert!(window("2026-01-01T00:00:00Z", "2027-01-02T00:00:00Z").check_length(BucketSize::Day).is_ok());
        assert!(
            window("2024-02-29T00:00:00Z", "2029-02-28T00:00:00Z").check_length(BucketSize::Month).is_ok()
        );
        assert!(
            window("2024-01-01T00:00:00Z", "2029-01-01T00:00:00.000001Z")
                .check_length(BucketSize::Month)
                .is_err()
        );
        assert!(Window::new(Timestamp(1), Timestamp(1)).is_err());
    }
}
