//! Windows and their counters, against what a calendar on the wall says.

use super::*;
use proptest::prelude::*;

fn at(text: &str) -> Timestamp {
    Timestamp::parse(text).expect(text)
}

fn starts(period: Every, anchor: &str, instants: &[&str]) -> Vec<String> {
    instants.iter().map(|i| period.window(at(anchor), at(i)).from.to_seconds_text()).collect()
}

#[test]
fn months_are_clamped_and_do_not_drift() {
    let got = starts(
        Every::Month,
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
    let year = Every::Year.window(at("2024-02-29T00:00:00Z"), at("2027-06-01T00:00:00Z"));
    assert_eq!(year.from.to_seconds_text(), "2027-02-28T00:00:00Z");
    assert_eq!(year.to.to_seconds_text(), "2028-02-29T00:00:00Z");
    let week = Every::Week.window(at("2026-05-01T12:00:00Z"), at("2026-05-15T11:59:59Z"));
    assert_eq!(week.from.to_seconds_text(), "2026-05-08T12:00:00Z");
    let late = Every::Year.window(at("2026-01-01T00:00:00Z"), at("9999-12-31T23:59:59Z"));
    assert!(late.to > late.from);
}

fn counters(period: &Period, home: &Zone, at: Timestamp) -> Vec<(Series, Timestamp)> {
    period.cuts(home).into_iter().map(|(series, cut)| (series, cut.start(at))).collect()
}

fn read(period: &str, window: [&str; 4]) -> Result<Period> {
    let [kind, time_zone, week_start, anchor] = window.map(str::to_owned);
    Period::read(period, Some(&WindowInput { kind, time_zone, week_start, anchor }))
}

#[test]
fn keys_are_words_and_come_back() {
    let cases = [
        (read("Month", ["calendar", "europe/berlin", "", ""]), "calendar month Europe/Berlin", "month"),
        (read("week", ["calendar", "", "sunday", ""]), "calendar week sunday", "week"),
        (
            read("", ["anchored", "Asia/Kolkata", "", "2026-01-31T00:00:00.5Z"]),
            "month from 2026-01-31T00:00:00.5Z Asia/Kolkata",
            "month",
        ),
        (read("1h", ["sliding", "", "", ""]), "sliding 1h", "1h"),
        (read("minute", ["Sliding", "", "", ""]), "sliding minute", "minute"),
        (Period::read("", None), "month", "month"),
    ];
    for (period, key, word) in cases {
        let period = period.expect(key);
        assert_eq!((period.as_str(), period.word().as_ref()), (key, word));
        let again = Period::parse(key).expect(key);
        assert_eq!((&again, again.described()), (&period, period.described()));
        if let Some(said) = period.described() {
            assert_eq!(Period::read(&period.word(), Some(&said)).expect(key), period);
        }
    }
    for key in [
        "",
        "hour",
        "calendar",
        "calendar fortnight",
        "sliding month",
        "month from then",
        "calendar day Mars",
    ] {
        assert_eq!(Period::parse(key), None, "{key}");
    }
}

#[test]
fn what_windows_may_not_say() {
    let cases = [
        read("hour", ["", "", "", ""]),
        read("month", ["fixed", "", "", ""]),
        read("month", ["calendar", "Mars", "", ""]),
        read("month", ["calendar", "", "friday", ""]),
        read("month", ["calendar", "", "", "2026-01-31T00:00:00Z"]),
        read("month", ["anchored", "", "", ""]),
        read("month", ["anchored", "", "sunday", "2026-01-31T00:00:00Z"]),
        read("month", ["sliding", "", "", ""]),
        read("32d", ["sliding", "", "", ""]),
        read("hour", ["sliding", "UTC", "", ""]),
        read("2y", ["calendar", "", "", ""]),
        read("fortnight", ["calendar", "", "", ""]),
    ];
    for (n, case) in cases.into_iter().enumerate() {
        assert!(case.is_err(), "case {n}: {case:?}");
    }
}

#[test]
fn what_is_free_again_when() {
    let hour = read("1h", ["sliding", "", "", ""]).expect("a period");
    let now = at("2026-03-01T10:30:15.5Z");
    let window = hour.window(Timestamp(0), &Zone::UTC, now);
    assert_eq!(window, Window { from: at("2026-03-01T09:30:16Z"), to: at("2026-03-01T10:30:16Z") });
    let part = Part::of(at("2026-03-01T10:00:00.75Z"), uuid::Uuid::nil(), &1.into());
    let reset = hour.reset_at(window, Some(&part));
    assert_eq!(reset, at("2026-03-01T11:00:00Z"));
    assert!(!hour.window(Timestamp(0), &Zone::UTC, reset).contains(at("2026-03-01T10:00:00.75Z")));
    let just_before = hour.window(Timestamp(0), &Zone::UTC, reset.plus(-1));
    assert!(just_before.contains(at("2026-03-01T10:00:00.75Z")));
}

proptest! {
    /// Whatever the window: its counters lie in it, side by side, and everything in it is in one of them.
    #[test]
    fn counters_make_up_the_window(
        seconds in 1_600_000_000i64..1_900_000_000,
        micros in 0i64..SECOND,
        before in 0i64..40 * 86_400,
        size in prop::sample::select(vec!["minute", "5m", "45min", "1h", "61min", "7h", "day", "3d", "week", "31d"]),
    ) {
        let period = read(size, ["sliding", "", "", ""]).expect("a period");
        let (now, zone) = (Timestamp(seconds * SECOND + micros), Zone::UTC);
        let window = period.window(Timestamp(0), &zone, now);
        prop_assert!(window.contains(now));
        let stretches = period.stretches(&zone, window);
        prop_assert_eq!(stretches.iter().map(|s| s.window.length()).sum::<i64>(), window.length());
        let rows: i64 = stretches.iter().map(|s| {
            let width = SLIDES.iter().find(|(_, series)| *series == s.series).expect("known").0;
            s.window.length() / width
        }).sum();
        prop_assert!(rows <= 59 * 2 + 59 * 2 + 23 * 2 + 31, "{} rows", rows);
        let then = now.plus(-before * SECOND);
        let held = counters(&period, &zone, then).into_iter().filter(|(series, start)| {
            stretches.iter().any(|s| s.series == *series && s.window.contains(*start))
        });
        prop_assert_eq!(held.count(), usize::from(window.contains(then)));
    }

    #[test]
    fn calendar_windows_are_made_of_their_counters(
        seconds in 1_500_000_000i64..2_000_000_000,
        zone in prop::sample::select(vec!["UTC", "Europe/Berlin", "Asia/Kolkata", "Asia/Kathmandu", "Pacific/Apia",
            "Australia/Lord_Howe", "America/Sao_Paulo"]),
        size in prop::sample::select(vec!["15m", "hour", "6h", "day", "week", "month", "3m", "quarter", "year"]),
        anchor in prop::sample::select(vec!["", "2026-01-31T00:00:00Z", "2024-02-29T17:45:30Z"]),
    ) {
        let kind = if anchor.is_empty() { "calendar" } else { "anchored" };
        let period = read(size, [kind, zone, "", anchor]).expect("a period");
        let now = Timestamp(seconds * SECOND);
        let window = period.window(Timestamp(0), &Zone::UTC, now);
        let (series, start) = counters(&period, &Zone::UTC, now).pop().expect("one");
        prop_assert_eq!(period.stretches(&Zone::UTC, window), vec![Stretch { series, window }]);
        prop_assert!(window.contains(start));
        // the first instant of the next window is counted in a counter of its own
        let next = counters(&period, &Zone::UTC, window.to).pop().expect("one").1;
        prop_assert_eq!(next, window.to);
    }

    #[test]
    fn windows_tile_time_in_whole_days(
        anchor in 0i64..4_000_000_000,
        after in 0i64..4_000_000_000,
        period in prop::sample::select(vec![Every::Day, Every::Week, Every::Month, Every::Year]),
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
