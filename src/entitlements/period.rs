//! Windows of a limit. Without more said, they are counted from the anchor of the assignment, in UTC: the n-th one is
//! computed from the anchor itself, so month ends never drift: after 31 January come 28 (or 29) February and 31 March. Others
//! follow a calendar in a zone, are counted from an instant of the plan, or slide. Here too: from which counters each is
//! added up. Pure.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;

use serde::{Deserialize, Serialize, Serializer};
use utoipa::ToSchema;

use crate::error::{Error, Result};
use crate::metering::calendar::{Calendar, WeekStart, Zone};
use crate::metering::rollup::Part;
use crate::metering::time::{BucketSize, DAY, HOUR, SECOND, Timestamp, Unit, Window};
use crate::string_enum::string_enum;

const MINUTE: i64 = 60 * SECOND;
/// The longest sliding window. It moves by the minute, and so are its counters.
const SLIDING_MAX: i64 = 31 * DAY;
/// Up to here a sliding window moves by the second.
const BY_SECOND_MAX: i64 = HOUR;

string_enum!(
    /// Of an assignment: counted from its anchor, in UTC.
    Every { Day = "day", Month = "month", Week = "week", Year = "year" }
);
string_enum!(
    /// How windows follow one another that are not counted from the assignment.
    Kind { Anchored = "anchored", Calendar = "calendar", Sliding = "sliding" }
);

/// How the windows of a limit follow one another. Two with the same key are the same.
#[derive(Clone, Debug)]
pub struct Period {
    rule: Rule,
    /// In words, as it is stored: `month`, `calendar month Europe/Berlin`, `month from 2026-01-31T00:00:00Z`, `sliding 1h`.
    key: Cow<'static, str>,
}

#[derive(Clone, Debug)]
enum Rule {
    Every(Every),
    /// In the zone of the assignment where none is named.
    Calendar {
        size: BucketSize,
        zone: Option<Zone>,
        anchor: Option<Timestamp>,
        week_start: WeekStart,
    },
    Sliding {
        size: BucketSize,
        width: i64,
    },
}

/// What counters are kept of: a stretch of time in a way of cutting it up. Counters of two series are never added up.
pub type Series = Cow<'static, str>;

/// Days since the anchor of the assignment. Every event of a subject with a plan is counted in them.
pub const ASSIGNED_DAYS: Series = Cow::Borrowed("");

/// How a series cuts time up.
#[derive(Clone, Debug)]
pub enum Cut {
    Calendar(Calendar),
    Width(i64),
}

impl Cut {
    /// Where the counter of this instant begins.
    pub fn start(&self, at: Timestamp) -> Timestamp {
        match self {
            Cut::Calendar(cells) => cells.around(at).from,
            Cut::Width(width) => at.floor(*width),
        }
    }
}

/// The counters of a series that begin in here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stretch {
    pub series: Series,
    pub window: Window,
}

/// Widths that sliding windows are added up from, each a part of the next.
static SLIDES: [(i64, Series); 4] = [
    (SECOND, Cow::Borrowed("slide 1s")),
    (MINUTE, Cow::Borrowed("slide 1min")),
    (HOUR, Cow::Borrowed("slide 1h")),
    (DAY, Cow::Borrowed("slide 1d")),
];
/// What the series of sliding windows begin with.
pub const SLIDE: &str = "slide ";

/// What a plan says of the windows of a limit beside its period; on the wire and in forms.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = LimitWindow)]
pub struct WindowInput {
    /// `calendar`, `anchored` or `sliding`.
    #[serde(default)]
    pub kind: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schema(required = false)]
    pub time_zone: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schema(required = false)]
    pub week_start: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schema(required = false)]
    pub anchor: String,
}

impl Period {
    pub const DAY: Period = Period::every(Every::Day, "day");
    pub const WEEK: Period = Period::every(Every::Week, "week");
    pub const MONTH: Period = Period::every(Every::Month, "month");
    pub const YEAR: Period = Period::every(Every::Year, "year");

    const fn every(every: Every, key: &'static str) -> Period {
        Period { rule: Rule::Every(every), key: Cow::Borrowed(key) }
    }

    fn of(rule: Rule) -> Period {
        let key = match &rule {
            Rule::Every(every) => Cow::Borrowed(every.as_str()),
            Rule::Sliding { size, .. } => Cow::Owned(format!("sliding {}", size.name())),
            Rule::Calendar { size, zone, anchor, week_start } => {
                let mut key = match anchor {
                    Some(anchor) => format!("{} from {}", size.name(), anchor.to_exact_text()),
                    None => format!("calendar {}", size.name()),
                };
                if let Some(zone) = zone {
                    key = format!("{key} {}", zone.name());
                }
                if *week_start == WeekStart::Sunday {
                    key.push_str(" sunday");
                }
                Cow::Owned(key)
            }
        };
        Period { rule, key }
    }

    /// What is stored.
    pub fn parse(key: &str) -> Option<Period> {
        let mut words = key.split(' ');
        let first = words.next()?;
        let rule = match (first, words.next()) {
            (every, None) => Rule::Every(Every::parse(every)?),
            ("sliding", Some(size)) => sliding(BucketSize::parse(size).ok()?).ok()?,
            ("calendar", Some(size)) => parse_calendar(size, None, words)?,
            (size, Some("from")) => {
                let anchor = Timestamp::parse(words.next()?)?;
                parse_calendar(size, Some(anchor), words)?
            }
            _ => return None,
        };
        Some(Period::of(rule)).filter(|period| period.key == key)
    }

    /// What a client says: any letter case, blanks around it allowed; empty means month.
    pub fn read(text: &str, window: Option<&WindowInput>) -> Result<Self> {
        let word = text.trim().to_lowercase();
        let Some(window) = window.filter(|window| **window != WindowInput::default()) else {
            let every = match word.as_str() {
                "" => Some(Every::Month),
                word => Every::parse(word),
            };
            let wrong = || Error::invalid("period must be day, week, month or year");
            return every.map(|every| Period::of(Rule::Every(every))).ok_or_else(wrong);
        };
        let size = match word.as_str() {
            "" => BucketSize::Month,
            word => BucketSize::parse(word).map_err(|_| wrong_size())?,
        };
        window.rule(size).map(Period::of)
    }

    /// As [`Period::read`], of something that has no assignment to count from: a calendar where no kind is said.
    pub fn read_calendar(word: &str, window: Option<&WindowInput>) -> Result<Self> {
        let mut window = window.cloned().unwrap_or_default();
        if window.kind.trim().is_empty() {
            window.kind = Kind::Calendar.as_str().to_owned();
        }
        let period = Period::read(word, Some(&window))?;
        match period.rule {
            Rule::Sliding { .. } => Err(Error::invalid("window.kind must be calendar or anchored")),
            _ => Ok(period),
        }
    }

    /// As it is stored and shown, in words.
    pub fn as_str(&self) -> &str {
        &self.key
    }

    /// How long a window is, in a word.
    pub fn word(&self) -> Cow<'static, str> {
        match &self.rule {
            Rule::Every(every) => Cow::Borrowed(every.as_str()),
            Rule::Calendar { size, .. } | Rule::Sliding { size, .. } => size.name(),
        }
    }

    /// What there is to say beside the word; nothing of windows that are counted from the assignment.
    pub fn described(&self) -> Option<WindowInput> {
        let said = |kind: Kind| WindowInput { kind: kind.as_str().to_owned(), ..WindowInput::default() };
        match &self.rule {
            Rule::Every(_) => None,
            Rule::Sliding { .. } => Some(said(Kind::Sliding)),
            Rule::Calendar { zone, anchor, week_start, .. } => Some(WindowInput {
                time_zone: zone.as_ref().map(|zone| zone.name().to_owned()).unwrap_or_default(),
                week_start: match week_start {
                    WeekStart::Sunday => week_start.as_str().to_owned(),
                    WeekStart::Monday => String::new(),
                },
                anchor: anchor.map(Timestamp::to_exact_text).unwrap_or_default(),
                ..said(if anchor.is_some() { Kind::Anchored } else { Kind::Calendar })
            }),
        }
    }

    /// With the zone of an assignment where it names none.
    pub fn in_zone(&self, home: &Zone) -> Period {
        match &self.rule {
            Rule::Calendar { size, zone: None, anchor, week_start } => Period::of(Rule::Calendar {
                size: *size,
                zone: Some(home.clone()),
                anchor: *anchor,
                week_start: *week_start,
            }),
            _ => self.clone(),
        }
    }

    /// The window that holds the instant; before the anchor of the assignment, the first one.
    pub fn window(&self, anchor: Timestamp, home: &Zone, at: Timestamp) -> Window {
        match &self.rule {
            Rule::Every(every) => every.window(anchor, at),
            Rule::Calendar { .. } => self.calendar(home).around(at),
            Rule::Sliding { width, .. } => {
                let to = at.floor(step(*width)).plus(step(*width));
                Window { from: to.plus(-width), to }
            }
        }
    }

    /// Where its days begin.
    pub fn zone<'z>(&'z self, home: &'z Zone) -> &'z Zone {
        match &self.rule {
            Rule::Calendar { zone: Some(zone), .. } => zone,
            _ => home,
        }
    }

    /// Where its windows begin; of those that have a calendar.
    fn calendar(&self, home: &Zone) -> Calendar {
        match &self.rule {
            Rule::Calendar { size, zone, anchor, week_start } => Calendar {
                zone: zone.as_ref().unwrap_or(home).clone(),
                anchor: *anchor,
                week_start: *week_start,
                ..Calendar::utc(*size)
            },
            _ => Calendar::utc(BucketSize::Day),
        }
    }

    /// Whether windows follow one another and are long enough to write down what each came to.
    pub fn has_snapshots(&self) -> bool {
        match &self.rule {
            Rule::Every(_) => true,
            Rule::Calendar { size, .. } => !is_below_day(*size),
            Rule::Sliding { .. } => false,
        }
    }

    /// How long its counters are of use, where that has an end.
    pub fn horizon(&self) -> Option<i64> {
        match &self.rule {
            Rule::Sliding { width, .. } => Some(*width),
            _ => None,
        }
    }

    /// The counters that a window is added up from.
    pub fn stretches(&self, home: &Zone, window: Window) -> Vec<Stretch> {
        match &self.rule {
            Rule::Every(_) => vec![Stretch { series: ASSIGNED_DAYS, window }],
            Rule::Calendar { .. } => vec![Stretch { series: self.cells(home).0, window }],
            Rule::Sliding { width, .. } => slide(slides(*width), window),
        }
    }

    /// The series that are kept for its windows beside the days since the anchor, the finest first.
    pub fn cuts(&self, home: &Zone) -> Vec<(Series, Cut)> {
        match &self.rule {
            Rule::Every(_) => Vec::new(),
            Rule::Calendar { .. } => {
                let (series, cells) = self.cells(home);
                vec![(series, Cut::Calendar(cells))]
            }
            Rule::Sliding { width, .. } => {
                slides(*width).iter().map(|(width, series)| (series.clone(), Cut::Width(*width))).collect()
            }
        }
    }

    /// The series in which everything is that its windows hold, each in its own counter as far as that goes.
    pub fn finest(&self, home: &Zone) -> Series {
        match &self.rule {
            Rule::Every(_) => ASSIGNED_DAYS,
            Rule::Calendar { .. } => self.cells(home).0,
            Rule::Sliding { width, .. } => {
                slides(*width).first().map_or(ASSIGNED_DAYS, |(_, series)| series.clone())
            }
        }
    }

    /// The series of a calendar, and where its counters begin. Windows of days and more are added up from days, which are
    /// the same for all that begin at one time of day; shorter ones are counters themselves.
    fn cells(&self, home: &Zone) -> (Series, Calendar) {
        let mut calendar = self.calendar(home);
        let zone = calendar.zone.name();
        if is_below_day(calendar.size) {
            let since = calendar.anchor.map(|at| format!(" {}", at.0)).unwrap_or_default();
            return (Cow::Owned(format!("{} {zone}{since}", calendar.size.name())), calendar);
        }
        let time = calendar.anchor.map(|at| calendar.zone.civil(at).time());
        let series = match time.filter(|time| *time != jiff::civil::Time::midnight()) {
            Some(time) => format!("day {zone} {time}"),
            None => format!("day {zone}"),
        };
        calendar.size = BucketSize::Day;
        (Cow::Owned(series), calendar)
    }

    /// When more becomes free: at the end of the window, or when the first of what is counted leaves one that slides.
    pub fn reset_at(&self, window: Window, counted: Option<&Part>) -> Timestamp {
        let Rule::Sliding { width, .. } = &self.rule else { return window.to };
        let first = counted.and_then(|part| part.edges.as_ref()).map(|(first, _)| first.at);
        match first {
            Some(at) => at.clamp(window.from, window.to.plus(-1)).floor(step(*width)).plus(*width),
            None => window.to,
        }
    }
}

impl Every {
    fn window(self, anchor: Timestamp, at: Timestamp) -> Window {
        let since = at.0.saturating_sub(anchor.0).max(0);
        match self {
            Every::Day => fixed(anchor, since, DAY),
            Every::Week => fixed(anchor, since, 7 * DAY),
            Every::Month => calendar(anchor, at, 1),
            Every::Year => calendar(anchor, at, 12),
        }
    }
}

impl WindowInput {
    fn rule(&self, size: BucketSize) -> Result<Rule> {
        let kind = self.kind.trim().to_lowercase();
        let kind = Kind::parse(&kind)
            .ok_or_else(|| Error::invalid("window.kind must be calendar, anchored or sliding"))?;
        let said = |name: &str, text: &str| match text.trim() {
            "" => Ok(()),
            _ => Err(Error::invalid(format!("window.{name} does not go with a {} window", kind.as_str()))),
        };
        if kind != Kind::Calendar {
            said("week_start", &self.week_start)?;
        }
        if kind != Kind::Anchored {
            said("anchor", &self.anchor)?;
        }
        if kind == Kind::Sliding {
            said("time_zone", &self.time_zone)?;
            return sliding(size);
        }
        if !is_at_most_a_year(size) {
            return Err(Error::invalid("the period of a limit must not be longer than a year"));
        }
        let zone = match self.time_zone.trim() {
            "" => None,
            name => Some(Zone::named(name, "window.time_zone")?),
        };
        let anchor = match kind {
            Kind::Anchored => Some(
                Timestamp::parse(self.anchor.trim())
                    .filter(|at| *at != Timestamp::ABSENT)
                    .ok_or_else(|| Error::parameter("invalid_anchor", "window.anchor must be RFC3339"))?,
            ),
            _ => None,
        };
        let week_start = WeekStart::read(self.week_start.trim())?;
        Ok(Rule::Calendar { size, zone, anchor, week_start })
    }
}

fn parse_calendar<'a>(
    size: &str,
    anchor: Option<Timestamp>,
    words: impl Iterator<Item = &'a str>,
) -> Option<Rule> {
    let size = BucketSize::parse(size).ok()?;
    let (mut zone, mut week_start) = (None, WeekStart::Monday);
    for word in words {
        match WeekStart::parse(word) {
            Some(day) => week_start = day,
            None => zone = Some(Zone::parse(word)?),
        }
    }
    Some(Rule::Calendar { size, zone, anchor, week_start })
}

fn wrong_size() -> Error {
    Error::invalid(
        "period must be minute, 5m, 15m, hour, day, week, month, quarter, year, or so many: 30min, 6h, 10d, 2w, 3m",
    )
}

fn sliding(size: BucketSize) -> Result<Rule> {
    let (unit, count) = size.parts();
    let unit = match unit {
        Unit::Minute => Some(MINUTE),
        Unit::Hour => Some(HOUR),
        Unit::Day => Some(DAY),
        Unit::Week => Some(7 * DAY),
        _ => None,
    };
    let width = unit.map(|unit| unit * count).filter(|width| *width <= SLIDING_MAX);
    let wrong = "the period of a sliding window must be minutes, hours, days or weeks, at most 31 days";
    width.map(|width| Rule::Sliding { size, width }).ok_or_else(|| Error::invalid(wrong))
}

fn is_below_day(size: BucketSize) -> bool {
    matches!(size.parts(), (Unit::Minute | Unit::Hour, _))
}

fn is_at_most_a_year(size: BucketSize) -> bool {
    let (unit, count) = size.parts();
    count
        <= match unit {
            Unit::Minute | Unit::Hour => 1_000,
            Unit::Day => 366,
            Unit::Week => 52,
            Unit::Month => 12,
            Unit::Quarter => 4,
            Unit::Year => 1,
        }
}

fn step(width: i64) -> i64 {
    if width <= BY_SECOND_MAX { SECOND } else { MINUTE }
}

/// The widths of counters for sliding windows of this length.
fn slides(width: i64) -> &'static [(i64, Series)] {
    let first = usize::from(width > BY_SECOND_MAX);
    let last = SLIDES.iter().rposition(|(part, _)| *part < width).unwrap_or(first);
    &SLIDES[first..=last]
}

/// Cuts a window into few stretches: fine ones at its edges, coarse ones between.
fn slide(widths: &[(i64, Series)], window: Window) -> Vec<Stretch> {
    let mut stretches = Vec::new();
    let Window { mut from, mut to } = window;
    for (at, (_, series)) in widths.iter().enumerate() {
        let mut put = |from: Timestamp, to: Timestamp| {
            if from < to {
                stretches.push(Stretch { series: series.clone(), window: Window { from, to } });
            }
        };
        let inner = widths.get(at + 1).map(|(next, _)| (from.ceil(*next), to.floor(*next)));
        match inner.filter(|(inner_from, inner_to)| inner_from < inner_to) {
            Some((inner_from, inner_to)) => {
                put(from, inner_from);
                put(inner_to, to);
                (from, to) = (inner_from, inner_to);
            }
            None => {
                put(from, to);
                break;
            }
        }
    }
    stretches
}

impl PartialEq for Period {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

impl Eq for Period {}

impl PartialOrd for Period {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Period {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key.cmp(&other.key)
    }
}

impl std::hash::Hash for Period {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.key.hash(state);
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.key)
    }
}

/// On the wire it is one word; the rest of it is `window`.
impl Serialize for Period {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.word())
    }
}

impl utoipa::PartialSchema for Period {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
        utoipa::openapi::ObjectBuilder::new().schema_type(utoipa::openapi::schema::Type::String).into()
    }
}

impl utoipa::ToSchema for Period {}

fn fixed(anchor: Timestamp, since: i64, width: i64) -> Window {
    let from = anchor.plus(since / width * width);
    Window { from, to: from.plus(width) }
}

fn calendar(anchor: Timestamp, at: Timestamp, months: i32) -> Window {
    let start = |n: i32| anchor.plus_months(n * months);
    // clamping moves a boundary within its month, so the count of calendar months is off by one at most
    let mut n = (at.months_since(anchor) / months).max(0);
    if n > 0 && start(n) > at {
        n -= 1;
    }
    let (from, to) = (start(n), start(n + 1));
    // beyond the year 9999 there is no calendar
    Window { from, to: if to > from { to } else { from.plus(DAY) } }
}

/// Start of the day, counted from the anchor, that holds the instant. Every window that is counted from the anchor is a whole
/// number of such days: all boundaries fall on the anchor's time of day.
pub fn day_start(anchor: Timestamp, at: Timestamp) -> Timestamp {
    Every::Day.window(anchor, at).from
}

#[cfg(test)]
mod tests;
