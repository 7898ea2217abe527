//! Instants, windows and buckets, all in UTC (rest.md 6 and 9.1). Pure: no SQL, and no clock: that is
//! `crate::clock`. Never a time as text except at the edges of the server.

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
        let at = Timestamp(midnight.0 + seconds * SECOND + micros);
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BucketSize {
    Hour,
    Day,
    Month,
}

impl BucketSize {
    /// Empty means day.
    pub fn parse(text: &str) -> Result<Self> {
        match text {
            "hour" => Ok(BucketSize::Hour),
            "" | "day" => Ok(BucketSize::Day),
            "month" => Ok(BucketSize::Month),
            _ => Err(Error::invalid("bucket_size must be hour, day or month")),
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            BucketSize::Hour => "hour",
            BucketSize::Day => "day",
            BucketSize::Month => "month",
        }
    }

    /// Start of the bucket that holds the instant.
    pub fn start(self, at: Timestamp) -> Timestamp {
        match self {
            BucketSize::Hour => at.floor(HOUR),
            BucketSize::Day => at.floor(DAY),
            BucketSize::Month => Timestamp::from_civil(at.civil().date().first_of_month().at(0, 0, 0, 0)),
        }
    }

    /// Length in seconds of the whole bucket that starts here, the divisor of a rate.
    pub fn seconds(self, start: Timestamp) -> i64 {
        match self {
            BucketSize::Hour => 3_600,
            BucketSize::Day => 86_400,
            BucketSize::Month => i64::from(start.civil().days_in_month()) * 86_400,
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
        let (limit, words) = match size {
            BucketSize::Hour => (self.from.plus(31 * DAY), "31 days for hour buckets"),
            BucketSize::Day => (self.from.plus(366 * DAY), "366 days for day buckets"),
            BucketSize::Month => (self.from.plus_months(60), "5 years for month buckets"),
        };
        if self.to > limit {
            return Err(Error::invalid(format!("the window must not be longer than {words}")));
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
        assert_eq!(BucketSize::Month.seconds(BucketSize::Month.start(Timestamp::LAST)), 31 * 86_400);
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
        assert_eq!(BucketSize::Hour.start(at("1969-12-31T23:59:59.5Z")), at("1969-12-31T23:00:00Z"));
    }

    #[test]
    fn buckets_start_in_utc() {
        let moment = at("2024-02-29T13:14:15.5Z");
        assert_eq!(BucketSize::Hour.start(moment), at("2024-02-29T13:00:00Z"));
        assert_eq!(BucketSize::Day.start(moment), at("2024-02-29T00:00:00Z"));
        assert_eq!(BucketSize::Month.start(moment), at("2024-02-01T00:00:00Z"));
        assert_eq!(BucketSize::Month.seconds(at("2024-02-01T00:00:00Z")), 29 * 86_400);
        assert_eq!(moment.ceil(HOUR), at("2024-02-29T14:00:00Z"));
        assert_eq!(at("2024-02-29T13:00:00Z").ceil(HOUR), at("2024-02-29T13:00:00Z"));
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
