//! Windows of a plan: counted from an anchor, in UTC. The n-th one is computed from the anchor itself, so month ends
//! never drift: after 31 January come 28 (or 29) February and 31 March.

use crate::error::{Error, Result};
use crate::metering::time::{DAY, Timestamp, Window};
use crate::string_enum::string_enum;

string_enum!(
    /// In alphabetical order, in which limits are listed.
    Period { Day = "day", Month = "month", Week = "week", Year = "year" }
);

impl Period {
    /// Any letter case, blanks around it allowed; empty means month.
    pub fn read(text: &str) -> Result<Self> {
        match text.trim().to_lowercase().as_str() {
            "" => Ok(Period::Month),
            word => {
                Period::parse(word).ok_or_else(|| Error::invalid("period must be day, week, month or year"))
            }
        }
    }

    /// The window that holds the instant; before the anchor, the first one.
    pub fn window(self, anchor: Timestamp, at: Timestamp) -> Window {
        let since = at.0.saturating_sub(anchor.0).max(0);
        match self {
            Period::Day => fixed(anchor, since, DAY),
            Period::Week => fixed(anchor, since, 7 * DAY),
            Period::Month => calendar(anchor, at, 1),
            Period::Year => calendar(anchor, at, 12),
        }
    }
}

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

/// Start of the day, counted from the anchor, that holds the instant. Every window is a whole number of such days:
/// all boundaries fall on the anchor's time of day.
pub fn day_start(anchor: Timestamp, at: Timestamp) -> Timestamp {
    Period::Day.window(anchor, at).from
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(text: &str) -> Timestamp {
        Timestamp::parse(text).expect(text)
    }

    fn starts(period: Period, anchor: &str, instants: &[&str]) -> Vec<String> {
        instants.iter().map(|i| period.window(at(anchor), at(i)).from.to_seconds_text()).collect()
    }

    #[test]
    fn months_are_clamped_and_do_not_drift() {
        let got = starts(
            Period::Month,
            "2026-01-31T10:00:00Z",
            &[
                "2026-01-31T10:00:00Z",
                "2026-02-28T09:59:59Z",
                "2026-02-28T10:00:00Z",
                "2026-03-31T09:59:59Z",
                "2026-03-31T10:00:00Z",
                "2026-04-30T12:00:00Z",
                "2028-02-29T10:00:00Z",
                "2020-01-01T00:00:00Z",
            ],
        );
        let want = [
            "2026-01-31T10:00:00Z",
            "2026-01-31T10:00:00Z",
            "2026-02-28T10:00:00Z",
            "2026-02-28T10:00:00Z",
            "2026-03-31T10:00:00Z",
            "2026-04-30T10:00:00Z",
            "2028-02-29T10:00:00Z",
            "2026-01-31T10:00:00Z",
        ];
        assert_eq!(got, want);
    }

    #[test]
    fn leap_days_and_weeks() {
        let year = Period::Year.window(at("2024-02-29T00:00:00Z"), at("2027-06-01T00:00:00Z"));
        assert_eq!(year.from.to_seconds_text(), "2027-02-28T00:00:00Z");
        assert_eq!(year.to.to_seconds_text(), "2028-02-29T00:00:00Z");
        let week = Period::Week.window(at("2026-05-01T12:00:00Z"), at("2026-05-15T11:59:59Z"));
        assert_eq!(week.from.to_seconds_text(), "2026-05-08T12:00:00Z");
        let late = Period::Year.window(at("2026-01-01T00:00:00Z"), at("9999-12-31T23:59:59Z"));
        assert!(late.to > late.from);
    }

    proptest! {
        #[test]
        fn windows_tile_time_in_whole_days(
            anchor in 0i64..4_000_000_000,
            after in 0i64..4_000_000_000,
            period in prop::sample::select(vec![Period::Day, Period::Week, Period::Month, Period::Year]),
        ) {
            let (anchor, at) = (Timestamp(anchor * 1_000_000), Timestamp((anchor + after) * 1_000_000 + 7));
            let window = period.window(anchor, at);
            prop_assert!(window.contains(at));
            prop_assert_eq!(period.window(anchor, window.to).from, window.to);
            if window.from > anchor {
                prop_assert_eq!(period.window(anchor, Timestamp(window.from.0 - 1)).to, window.from);
            }
            prop_assert_eq!((window.from.0 - anchor.0) % DAY, 0);
            prop_assert_eq!(window.length() % DAY, 0);
            let day = day_start(anchor, at);
            prop_assert!(window.from <= day && day.0 + DAY <= window.to.0);
        }
    }
}
