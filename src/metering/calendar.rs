//! Calendars: where a minute, a day or a month of a time zone begins and ends, and the buckets of a window. Zones come from
//! the database in the program, never from the machine. Pure: no SQL, no clock; instants themselves are `metering::time`.
//!
//! Three rules place every beginning:
//! - Minutes and hours (up to one hour) follow the clock on the wall: a beginning is where the clock shows a whole one, and
//!   where somebody sets it. An hour that the clock shows twice is two buckets.
//! - Everything longer is counted in local date and time from a beginning; the n-th is computed from that beginning itself,
//!   so month ends come back: 31 January, 28 February, 31 March. It begins the first time the clock shows that date and
//!   time, or would have: what a clock that was put forward skips begins at that moment, and a day that a zone left out has
//!   no bucket.
//! - Minutes and hours from an anchor are elapsed time.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use jiff::civil::DateTime;
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{SignedDuration, Span, ToSpan};

use crate::error::{Error, Result};
use crate::metering::time::{BucketSize, DAY, HOUR, SECOND, Timestamp, Unit, Window};
use crate::string_enum::string_enum;

const NAME_BYTES_MAX: usize = 64;
/// Buckets of one answer, from end to end, at most.
pub const BUCKETS_MAX: usize = 1_600;
/// Where counting begins that has no anchor.
const EPOCH: DateTime = DateTime::constant(1970, 1, 1, 0, 0, 0, 0);

/// A zone of the IANA database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone(TimeZone);

impl Zone {
    pub const UTC: Zone = Zone(TimeZone::UTC);

    /// A zone by its name, upper and lower case alike.
    pub fn parse(name: &str) -> Option<Zone> {
        if name.is_empty() || name.len() > NAME_BYTES_MAX {
            return None;
        }
        if name.eq_ignore_ascii_case("utc") {
            return Some(Zone::UTC);
        }
        TimeZone::get(name).ok().filter(|zone| zone.iana_name().is_some()).map(Zone)
    }

    /// A name from outside; `field` is what it is called there.
    pub fn named(name: &str, field: &str) -> Result<Zone> {
        let wrong = || {
            Error::invalid(format!(
                "{field} must be a name of the IANA time zone database, such as Europe/Berlin"
            ))
        };
        Zone::parse(name.trim()).ok_or_else(wrong)
    }

    pub fn is_utc(&self) -> bool {
        self.0 == TimeZone::UTC
    }

    pub fn name(&self) -> &str {
        self.0.iana_name().unwrap_or("UTC")
    }

    /// Date and time of day on the clocks of the zone.
    pub fn civil(&self, at: Timestamp) -> DateTime {
        self.0.to_datetime(instant(at))
    }

    /// Seconds east of UTC.
    pub fn offset_seconds(&self, at: Timestamp) -> i64 {
        i64::from(self.0.to_offset(instant(at)).seconds())
    }

    /// The first instant at which the clocks show this, or would have if nobody had put them forward.
    pub fn first(&self, local: DateTime) -> Timestamp {
        let with = |offset: jiff::tz::Offset| at_utc(local).plus(-i64::from(offset.seconds()) * SECOND);
        match self.0.to_ambiguous_timestamp(local).offset() {
            AmbiguousOffset::Unambiguous { offset } => with(offset),
            AmbiguousOffset::Fold { before, .. } => with(before),
            AmbiguousOffset::Gap { before, after } => self.change(with(after), with(before)),
        }
    }

    /// The instant after `low`, at most `high`, from which the clocks go by the offset that they have at `high`.
    fn change(&self, low: Timestamp, high: Timestamp) -> Timestamp {
        let (mut low, mut high, offset) = (low.0, high.0, self.offset_seconds(high));
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            match self.offset_seconds(Timestamp(middle)) == offset {
                true => high = middle,
                false => low = middle,
            }
        }
        Timestamp(high)
    }

    /// RFC 3339, to the second, with the offset of the zone. Offsets of more than minutes, of 1900 and before, are cut to
    /// minutes: the instant stays what it is.
    pub fn text(&self, at: Timestamp) -> String {
        if self.is_utc() {
            return at.to_seconds_text();
        }
        let minutes = self.offset_seconds(at).div_euclid(60);
        let local = at.plus(minutes * 60 * SECOND).to_seconds_text();
        let sign = if minutes < 0 { '-' } else { '+' };
        let (hours, minutes) = (minutes.abs() / 60, minutes.abs() % 60);
        format!("{}{sign}{hours:02}:{minutes:02}", local.trim_end_matches('Z'))
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The nearest instant that has a local time in every zone.
fn instant(at: Timestamp) -> jiff::Timestamp {
    let nearest = if at.0 < 0 { jiff::Timestamp::MIN } else { jiff::Timestamp::MAX };
    jiff::Timestamp::from_microsecond(at.0).unwrap_or(nearest)
}

fn at_utc(local: DateTime) -> Timestamp {
    Timestamp(local.duration_since(EPOCH).as_micros() as i64)
}

string_enum!(
    /// The day that weeks begin with.
    WeekStart { Monday = "monday", Sunday = "sunday" }
);

impl WeekStart {
    /// Empty means Monday, as in ISO 8601.
    pub fn read(word: &str) -> Result<WeekStart> {
        match word {
            "" => Ok(WeekStart::Monday),
            word => {
                WeekStart::parse(word).ok_or_else(|| Error::invalid("week_start must be monday or sunday"))
            }
        }
    }
}

/// Where buckets begin and end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Calendar {
    pub size: BucketSize,
    pub zone: Zone,
    /// Counted from here instead of from midnight, Monday or the first of the month.
    pub anchor: Option<Timestamp>,
    pub week_start: WeekStart,
    /// Somebody chose the zone: answers name it.
    pub is_zoned: bool,
}

/// How beginnings follow one another.
#[derive(Clone, Copy)]
enum Rule {
    /// Whole ones on the clock, microseconds each.
    Clock(i64),
    /// So many microseconds after one another, since an instant.
    Elapsed(Timestamp, i64),
    /// So many of this in local date and time, since then.
    Civil(DateTime, Step),
}

#[derive(Clone, Copy)]
enum Step {
    Hours(i64),
    Days(i64),
    Months(i64),
}

impl Step {
    /// The n-th beginning; at the ends of the calendar the last there is.
    fn nth(self, from: DateTime, n: i64) -> DateTime {
        let moved = match self {
            Step::Hours(hours) => from.checked_add(SignedDuration::from_hours(
                n.saturating_mul(hours).clamp(-90_000_000, 90_000_000),
            )),
            Step::Days(days) => {
                Span::new().try_days(n.saturating_mul(days)).and_then(|span| from.checked_add(span))
            }
            Step::Months(months) => {
                Span::new().try_months(n.saturating_mul(months)).and_then(|span| from.checked_add(span))
            }
        };
        moved.unwrap_or(if n < 0 { DateTime::MIN } else { DateTime::MAX })
    }

    /// About how many lie between.
    fn between(self, from: DateTime, to: DateTime) -> i64 {
        let apart = (to.duration_since(from).as_micros()) as i64;
        match self {
            Step::Hours(hours) => apart.div_euclid(hours * HOUR),
            Step::Days(days) => apart.div_euclid(days * DAY),
            Step::Months(months) => {
                let count = |at: DateTime| i64::from(at.year()) * 12 + i64::from(at.month());
                (count(to) - count(from)).div_euclid(months)
            }
        }
    }
}

impl Calendar {
    /// In UTC, from midnight, Monday or the first: what nobody has to ask for.
    pub fn utc(size: BucketSize) -> Calendar {
        Calendar { size, zone: Zone::UTC, anchor: None, week_start: WeekStart::Monday, is_zoned: false }
    }

    /// Whether beginnings are hours, days or months of UTC, which stored sums begin with too.
    pub fn is_plain(&self) -> bool {
        self.zone.is_utc()
            && self.anchor.is_none()
            && matches!(self.size, BucketSize::Hour | BucketSize::Day | BucketSize::Month)
    }

    fn rule(&self) -> Rule {
        let (unit, count) = self.size.parts();
        let width = match unit {
            Unit::Minute => count * 60 * SECOND,
            _ => count * HOUR,
        };
        let local = self.anchor.map(|anchor| self.zone.civil(anchor));
        let since = |weekday: i8| local.unwrap_or(EPOCH.checked_sub(weekday.days()).unwrap_or(EPOCH));
        match unit {
            Unit::Minute | Unit::Hour => match self.anchor {
                Some(anchor) => Rule::Elapsed(anchor, width),
                None if width <= HOUR => Rule::Clock(width),
                None if width % HOUR == 0 => Rule::Civil(EPOCH, Step::Hours(width / HOUR)),
                None => Rule::Elapsed(self.zone.first(EPOCH), width),
            },
            Unit::Day => Rule::Civil(since(0), Step::Days(count)),
            // 1 January 1970 was a Thursday
            Unit::Week if self.week_start == WeekStart::Monday => {
                Rule::Civil(since(3), Step::Days(7 * count))
            }
            Unit::Week => Rule::Civil(since(4), Step::Days(7 * count)),
            Unit::Month => Rule::Civil(since(0), Step::Months(count)),
            Unit::Quarter => Rule::Civil(since(0), Step::Months(3 * count)),
            Unit::Year => Rule::Civil(since(0), Step::Months(12 * count)),
        }
    }

    /// Start of the bucket that holds the instant.
    pub fn start(&self, at: Timestamp) -> Timestamp {
        if self.is_plain() {
            return match self.size {
                BucketSize::Hour => at.floor(HOUR),
                BucketSize::Day => at.floor(DAY),
                _ => at.month_start(),
            };
        }
        self.around(at).from
    }

    /// The bucket that holds the instant.
    pub fn around(&self, at: Timestamp) -> Window {
        match self.rule() {
            Rule::Elapsed(anchor, width) => {
                let from = at.plus(-(at.0.saturating_sub(anchor.0)).rem_euclid(width));
                Window { from, to: from.plus(width) }
            }
            Rule::Clock(width) => self.on_the_clock(at, width),
            Rule::Civil(since, step) => self.in_civil_time(at, since, step),
        }
    }

    fn on_the_clock(&self, at: Timestamp, width: i64) -> Window {
        let offset = self.zone.offset_seconds(at);
        let from = at.plus(offset * SECOND).floor(width).plus(-offset * SECOND);
        let to = from.plus(width);
        let is_set = |at: Timestamp| self.zone.offset_seconds(at) != offset;
        Window {
            from: if is_set(from) { self.zone.change(from, at) } else { from },
            to: if is_set(to.plus(-1)) { self.zone.change(at, to.plus(-1)) } else { to },
        }
    }

    fn in_civil_time(&self, at: Timestamp, since: DateTime, step: Step) -> Window {
        let nth = |n: i64| self.zone.first(step.nth(since, n));
        let mut n = step.between(since, self.zone.civil(at));
        // clocks that were set, and month ends, move a beginning by a little
        while nth(n) > at && step.nth(since, n) > DateTime::MIN {
            n -= 1;
        }
        while nth(n + 1) <= at && step.nth(since, n + 1) < DateTime::MAX {
            n += 1;
        }
        let (from, to) = (nth(n), nth(n + 1));
        // beyond the last year there is no calendar
        Window { from, to: if to > at { to } else { Timestamp::LAST.max(at).plus(DAY) } }
    }

    /// Length in microseconds of the whole bucket that starts here, the divisor of a rate.
    pub fn length(&self, start: Timestamp) -> i64 {
        match self.size {
            BucketSize::Hour if self.is_plain() => HOUR,
            BucketSize::Day if self.is_plain() => DAY,
            _ => self.around(start).length(),
        }
    }

    /// How a beginning is written in answers.
    pub fn text(&self, start: Timestamp) -> String {
        if self.is_zoned { self.zone.text(start) } else { start.to_seconds_text() }
    }

    /// The name of the zone, where answers have one.
    pub fn zone_name(&self) -> Option<Arc<str>> {
        self.is_zoned.then(|| self.zone.name().into())
    }
}

impl From<BucketSize> for Calendar {
    fn from(size: BucketSize) -> Calendar {
        Calendar::utc(size)
    }
}

impl From<&Calendar> for Calendar {
    fn from(calendar: &Calendar) -> Calendar {
        calendar.clone()
    }
}

/// What a caller says of a calendar; empty where it says nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wish<'a> {
    pub bucket_size: &'a str,
    pub time_zone: &'a str,
    pub anchor: &'a str,
    pub week_start: &'a str,
}

impl Wish<'_> {
    /// `home` is the zone of the workspace.
    pub fn calendar(&self, home: &Zone) -> Result<Calendar> {
        let zone = match self.time_zone.trim() {
            "" => home.clone(),
            name => Zone::named(name, "time_zone")?,
        };
        let anchor = match self.anchor {
            "" => None,
            text => Timestamp::parse(text)
                .map(Some)
                .ok_or_else(|| Error::parameter("invalid_anchor", "anchor must be RFC3339"))?,
        };
        let size = BucketSize::parse(self.bucket_size)?;
        // clients of the Go server know it as an error (rest.md 9.1)
        let is_vague = size.name() == "week"
            && self.week_start.trim().is_empty()
            && self.time_zone.trim().is_empty()
            && anchor.is_none()
            && home.is_utc();
        if is_vague {
            return Err(Error::invalid(
                "bucket_size week needs week_start, monday or sunday, or a time_zone",
            ));
        }
        Ok(Calendar {
            size,
            is_zoned: !(self.time_zone.trim().is_empty() && zone.is_utc()),
            zone,
            anchor: anchor.filter(|at| *at != Timestamp::ABSENT),
            week_start: WeekStart::read(self.week_start.trim())?,
        })
    }
}

/// The buckets of a window.
#[derive(Clone, Debug)]
pub struct Buckets {
    pub calendar: Calendar,
    /// Beginnings in order, from that of the bucket which holds the window's; none where arithmetic tells them.
    starts: Arc<[Timestamp]>,
}

impl Buckets {
    /// 400 for a window with too many.
    pub fn of(calendar: Calendar, window: Window) -> Result<Buckets> {
        window.check_length(calendar.size)?;
        let mut starts = Vec::new();
        if !calendar.is_plain() {
            let mut bucket = calendar.around(window.from);
            starts.push(bucket.from);
            while bucket.to < window.to {
                if starts.len() == BUCKETS_MAX {
                    return Err(Error::invalid(format!(
                        "the window must not hold more than {BUCKETS_MAX} buckets"
                    )));
                }
                bucket = calendar.around(bucket.to);
                starts.push(bucket.from);
            }
        }
        Ok(Buckets { calendar, starts: starts.into() })
    }

    /// Without a longest window, for what the program asks itself.
    pub fn plain(size: BucketSize) -> Buckets {
        Buckets { calendar: Calendar::utc(size), starts: Arc::from([]) }
    }

    /// Start of the bucket that an instant of the window belongs to.
    pub fn start(&self, at: Timestamp) -> Timestamp {
        match self.starts.split_first() {
            None => self.calendar.start(at),
            Some((first, more)) => match more.partition_point(|start| *start <= at) {
                0 => *first,
                place => more[place - 1],
            },
        }
    }

    /// Beginnings inside the window, in order; empty where stored sums begin with every bucket anyway.
    pub fn cuts(&self) -> &[Timestamp] {
        self.starts.get(1..).unwrap_or_default()
    }

    pub fn is_plain(&self) -> bool {
        self.starts.is_empty()
    }

    pub fn name(&self) -> Cow<'static, str> {
        self.calendar.size.name()
    }
}

#[cfg(test)]
mod tests;
