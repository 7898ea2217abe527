//! Calendars against a slow and obvious model: a clock that is looked at every few minutes, in every zone of the database.

use std::collections::BTreeSet;

use jiff::civil::{Time, date};
use proptest::prelude::*;

use super::*;

const MINUTE: i64 = 60 * SECOND;

fn at(text: &str) -> Timestamp {
    Timestamp::parse(text).expect(text)
}

fn calendar(zone: &str, size: &str) -> Calendar {
    let wish = Wish { bucket_size: size, time_zone: zone, week_start: "monday", ..Wish::default() };
    wish.calendar(&Zone::UTC).expect(size)
}

/// Starts of the buckets that a window touches, as answers write them.
fn starts(calendar: &Calendar, from: &str, to: &str) -> Vec<String> {
    let window = Window::new(at(from), at(to)).expect("a window");
    let mut starts = vec![calendar.around(window.from)];
    while let Some(last) = starts.last().filter(|last| last.to < window.to) {
        starts.push(calendar.around(last.to));
    }
    starts.into_iter().map(|bucket| calendar.text(bucket.from)).collect()
}

#[test]
fn days_follow_the_clocks_of_the_zone() {
    let berlin = calendar("europe/berlin", "day");
    assert_eq!(berlin.zone.name(), "Europe/Berlin");
    let spring = ["2026-03-28T00:00:00+01:00", "2026-03-29T00:00:00+01:00", "2026-03-30T00:00:00+02:00"];
    assert_eq!(starts(&berlin, "2026-03-28T00:00:00Z", "2026-03-30T12:00:00Z"), spring);
    assert_eq!(berlin.length(at("2026-03-28T23:00:00Z")), 23 * HOUR);
    assert_eq!(berlin.length(at("2026-10-24T22:00:00Z")), 25 * HOUR);
    let kolkata = calendar("Asia/Kolkata", "month");
    assert_eq!(
        starts(&kolkata, "2026-01-31T18:30:00Z", "2026-02-01T00:00:00Z"),
        ["2026-02-01T00:00:00+05:30"]
    );
    // a day that begins at one o'clock, and a clock that is set back to the day before
    let paulo = calendar("America/Sao_Paulo", "day");
    let short = ["2018-11-03T00:00:00-03:00", "2018-11-04T01:00:00-02:00", "2018-11-05T00:00:00-02:00"];
    assert_eq!(starts(&paulo, "2018-11-03T03:00:00Z", "2018-11-05T03:00:00Z"), short);
    assert_eq!(paulo.length(at("2018-02-17T02:00:00Z")), 25 * HOUR);
    // Samoa had no 30 December in 2011
    let apia = calendar("Pacific/Apia", "day");
    let skipped = ["2011-12-29T00:00:00-10:00", "2011-12-31T00:00:00+14:00"];
    assert_eq!(starts(&apia, "2011-12-29T10:00:00Z", "2011-12-31T09:59:00Z"), skipped);
}

#[test]
fn hours_that_the_clock_shows_twice_are_two() {
    let berlin = calendar("Europe/Berlin", "hour");
    let autumn = ["2026-10-25T02:00:00+02:00", "2026-10-25T02:00:00+01:00", "2026-10-25T03:00:00+01:00"];
    assert_eq!(starts(&berlin, "2026-10-25T00:00:00Z", "2026-10-25T02:30:00Z"), autumn);
    // half an hour is set on Lord Howe
    let howe = calendar("Australia/Lord_Howe", "hour");
    let back = ["2026-04-05T01:00:00+11:00", "2026-04-05T01:30:00+10:30", "2026-04-05T02:00:00+10:30"];
    assert_eq!(starts(&howe, "2026-04-04T14:00:00Z", "2026-04-04T16:00:00Z"), back);
    assert_eq!(howe.length(at("2026-04-04T15:00:00Z")), 30 * MINUTE);
    let kathmandu = calendar("Asia/Kathmandu", "hour");
    assert_eq!(
        starts(&kathmandu, "2026-01-01T00:15:00Z", "2026-01-01T01:00:00Z"),
        ["2026-01-01T06:00:00+05:45"]
    );
    // several hours are counted from midnight
    let six = calendar("Europe/Berlin", "6h");
    assert_eq!(six.length(at("2026-10-24T22:00:00Z")), 7 * HOUR);
}

#[test]
fn anchors_clamp_and_come_back() {
    let from = |anchor: &str, size: &str, zone: &str| {
        let wish = Wish { bucket_size: size, time_zone: zone, anchor, week_start: "monday" };
        wish.calendar(&Zone::UTC).expect(size)
    };
    let ends = from("2026-01-31T00:00:00Z", "month", "");
    let months = [
        "2025-12-31T00:00:00Z",
        "2026-01-31T00:00:00Z",
        "2026-02-28T00:00:00Z",
        "2026-03-31T00:00:00Z",
        "2026-04-30T00:00:00Z",
    ];
    assert_eq!(starts(&ends, "2026-01-30T23:00:00Z", "2026-05-01T00:00:00Z"), months);
    let local = from("2026-01-31T00:00:00+01:00", "2m", "Europe/Berlin");
    let two = ["2026-01-31T00:00:00+01:00", "2026-03-31T00:00:00+02:00", "2026-05-31T00:00:00+02:00"];
    assert_eq!(starts(&local, "2026-02-01T00:00:00Z", "2026-06-01T00:00:00Z"), two);
    let ten = from("2026-06-05T06:00:00Z", "10d", "");
    assert_eq!(
        starts(&ten, "2026-05-30T00:00:00Z", "2026-06-06T00:00:00Z"),
        ["2026-05-26T06:00:00Z", "2026-06-05T06:00:00Z"]
    );
    let elapsed = from("2026-10-25T00:20:00Z", "2h", "Europe/Berlin");
    assert_eq!(elapsed.start(at("2026-10-25T04:19:59Z")), at("2026-10-25T02:20:00Z"));
    assert_eq!(from("0001-01-01T00:00:00Z", "day", "").anchor, None);
}

#[test]
fn weeks_quarters_and_years_begin_where_they_should() {
    let first = |size: &str, week_start: &str, moment: &str| {
        let wish = Wish { bucket_size: size, week_start, ..Wish::default() };
        wish.calendar(&Zone::UTC).expect(size).start(at(moment)).to_seconds_text()
    };
    assert_eq!(first("week", "monday", "2026-11-29T12:00:00Z"), "2026-11-23T00:00:00Z");
    assert_eq!(first("week", "sunday", "2026-11-29T12:00:00Z"), "2026-11-29T00:00:00Z");
    assert_eq!(first("week", "monday", "1969-12-29T00:00:00Z"), "1969-12-29T00:00:00Z");
    assert_eq!(first("quarter", "", "2026-12-31T23:59:59Z"), "2026-10-01T00:00:00Z");
    assert_eq!(first("year", "", "2026-12-31T23:59:59Z"), "2026-01-01T00:00:00Z");
    assert_eq!(first("5m", "", "2026-12-31T23:59:59Z"), "2026-12-31T23:55:00Z");
    assert_eq!(first("15m", "", "1969-12-31T23:59:59.5Z"), "1969-12-31T23:45:00Z");
    assert_eq!(first("3m", "", "2026-12-31T23:59:59Z"), "2026-10-01T00:00:00Z");
}

#[test]
fn what_is_refused() {
    let wish = |wish: Wish| wish.calendar(&Zone::UTC).expect_err("refused").message;
    for (asked, word) in [
        (Wish { time_zone: "Mars/Base", ..Wish::default() }, "time_zone"),
        (Wish { time_zone: "../etc/passwd", ..Wish::default() }, "time_zone"),
        (Wish { time_zone: "CET-1CEST", ..Wish::default() }, "time_zone"),
        (Wish { anchor: "2026-01-31", ..Wish::default() }, "anchor"),
        (Wish { week_start: "friday", ..Wish::default() }, "week_start"),
        (Wish { bucket_size: "fortnight", ..Wish::default() }, "bucket_size"),
    ] {
        let message = wish(asked);
        assert!(message.contains(word), "{message}");
    }
    let home = Zone::parse("Europe/Berlin").expect("a zone");
    assert!(Wish::default().calendar(&home).expect("fine").is_zoned);
    assert!(!Wish::default().calendar(&Zone::UTC).expect("fine").is_zoned);
    let asked = Wish { time_zone: "utc", ..Wish::default() };
    let utc = asked.calendar(&home).expect("fine");
    assert!(utc.is_zoned && utc.is_plain());
    let ever = Window { from: Timestamp::ABSENT, to: Timestamp::LAST };
    assert!(Buckets::of(calendar("Asia/Kolkata", "year"), ever).is_err());
}

/// The ends of time do not panic, and do not last for ever.
#[test]
fn the_first_and_the_last_day_have_buckets() {
    for zone in ["Asia/Kolkata", "America/New_York", "UTC"] {
        for size in ["minute", "hour", "6h", "day", "week", "2m", "year"] {
            let calendar = Calendar { anchor: Some(Timestamp::LAST), ..calendar(zone, size) };
            for calendar in [Calendar { anchor: None, ..calendar.clone() }, calendar] {
                for moment in [Timestamp::ABSENT, Timestamp::LAST, Timestamp(0)] {
                    let bucket = calendar.around(moment);
                    assert!(bucket.from < bucket.to, "{zone} {size}");
                    let to = moment.plus(HOUR).min(Timestamp::LAST);
                    let window = Window { from: moment.plus(-1), to };
                    Buckets::of(calendar.clone(), window).expect("few");
                }
            }
        }
    }
}

/// A clock on the wall: what the database says that it shows.
struct Clock(TimeZone);

impl Clock {
    fn shows(&self, at: Timestamp) -> DateTime {
        self.0.to_datetime(jiff::Timestamp::from_microsecond(at.0).expect("in range"))
    }
}

/// The key of the bucket in which the model is when the clock shows this, having shown `latest` before.
fn key(size: &str, clock: DateTime, latest: DateTime, offset: i64) -> (DateTime, i64) {
    let midnight = |date: jiff::civil::Date| (date.to_datetime(Time::midnight()), 0);
    let minutes = |width: i8| {
        let floor = clock.time().with().minute(clock.minute() / width * width).second(0).subsec_nanosecond(0);
        (clock.date().to_datetime(floor.build().expect("a time")), offset)
    };
    let hours = |width: i64| (EPOCH, at_utc(latest).0.div_euclid(width * HOUR));
    let days = |first: i64, width: i64| {
        (EPOCH, (at_utc(latest.date().to_datetime(Time::midnight())).0 / DAY - first).div_euclid(width))
    };
    let months = |width: i64| {
        (EPOCH, ((i64::from(latest.year()) - 1970) * 12 + i64::from(latest.month()) - 1).div_euclid(width))
    };
    match size {
        "minute" => minutes(1),
        "20min" => minutes(20),
        "5h" => hours(5),
        "6h" => hours(6),
        "3d" => days(0, 3),
        // Monday, 29 December 1969, and the Sunday before
        "2w" => days(-3, 14),
        "sunday" => days(-4, 7),
        "2m" => months(2),
        "5mo" => months(5),
        "2q" => months(6),
        "2y" => months(24),
        "5m" => minutes(5),
        "15m" => minutes(15),
        "hour" => minutes(60),
        "day" => midnight(latest.date()),
        "week" => {
            let since_monday = i64::from(latest.date().weekday().to_monday_zero_offset());
            midnight(latest.date().checked_sub(since_monday.days()).expect("a date"))
        }
        "month" => midnight(latest.date().first_of_month()),
        "quarter" => midnight(date(latest.year(), (latest.month() - 1) / 3 * 3 + 1, 1)),
        "year" => midnight(latest.date().first_of_year()),
        other => panic!("{other}"),
    }
}

#[rustfmt::skip]
const SIZES: [&str; 19] = [
    "minute", "5m", "15m", "20min", "hour", "5h", "6h", "day", "3d", "week", "sunday", "2w", "month", "2m", "5mo", "quarter",
    "2q", "year", "2y",
];

/// A size of the model; weeks of it may begin on Sunday.
fn sized(zone: &str, size: &str) -> Calendar {
    match size {
        "sunday" => Calendar { week_start: WeekStart::Sunday, ..calendar(zone, "week") },
        size => calendar(zone, size),
    }
}

/// Looks at the clock from some time before a transition until some time after; buckets change when the model's do.
fn compare(name: &str, zone: &TimeZone, transition: Timestamp, turn: usize, seen: &mut usize) {
    let clock = Clock(zone.clone());
    let moments: BTreeSet<i64> = (-104..=104)
        .map(|step| transition.0 + step * 15 * MINUTE)
        .chain((-6..=6).map(|minute| transition.0 + minute * MINUTE))
        .chain([transition.0 - 1])
        .collect();
    let moments: Vec<Timestamp> = moments.into_iter().map(Timestamp).collect();
    // what the clock showed last of all, in the days before too
    let mut latest = (1..=60).map(|hours| clock.shows(moments[0].plus(-hours * HOUR))).max().expect("some");
    // every other size, in turns: looking at the clock takes long
    let sizes = SIZES.iter().skip(turn % 2).step_by(2);
    let calendars: Vec<(&str, Calendar)> = sizes.map(|size| (*size, sized(name, size))).collect();
    let mut before: Vec<Option<((DateTime, i64), Timestamp)>> = vec![None; SIZES.len()];
    for moment in moments {
        let shown = clock.shows(moment);
        latest = latest.max(shown);
        let offset = (at_utc(shown).0 - moment.0) / SECOND;
        for ((size, calendar), before) in calendars.iter().zip(&mut before) {
            let (key, start) = (key(size, shown, latest, offset), calendar.start(moment));
            if let Some((key_before, start_before)) = *before {
                let words = || format!("{name} {size} {moment} {shown}: {start} after {start_before}");
                assert_eq!(key == key_before, start == start_before, "{}", words());
                assert!(start_before <= start && start <= moment, "{}", words());
            }
            *seen += 1;
            *before = Some((key, start));
        }
    }
}

#[test]
fn every_zone_agrees_with_its_clock() {
    let (mut zones, mut seen, mut done) = (0, 0, BTreeSet::new());
    for name in jiff::tz::db().available() {
        let zone = TimeZone::get(name.as_str()).expect("an available zone");
        assert_eq!(Zone::parse(name.as_str()).expect("known").name(), zone.iana_name().expect("a name"));
        zones += 1;
        let since = jiff::Timestamp::from_second(-2_600_000_000).expect("in range");
        let until = jiff::Timestamp::from_second(1_900_000_000).expect("in range");
        let all: Vec<_> =
            zone.following(since).take_while(|transition| transition.timestamp() < until).collect();
        // of the regular ones some, of the odd ones all: those that set the clock by more or less than an hour
        let odd = |offset: i64, before: i64| (offset - before).abs() != 3_600;
        let mut offset = i64::from(zone.to_offset(since).seconds());
        for (place, transition) in all.iter().enumerate() {
            let moment = Timestamp(transition.timestamp().as_microsecond());
            let (now, then) = (i64::from(transition.offset().seconds()), offset);
            offset = now;
            let sampled = place % 61 == zones % 61 || place + 2 >= all.len();
            // zones share transitions
            if (sampled || odd(now, then)) && now != then && done.insert((moment, then, now)) {
                compare(name.as_str(), &zone, moment, done.len(), &mut seen);
            }
        }
    }
    assert!(zones > 500 && seen > 500_000, "{zones} zones, {seen} looks");
}

/// The buckets of a window that begins and ends in the middle of some.
fn tiles(calendar: &Calendar, near: Timestamp) -> Result<()> {
    let middle = |bucket: Window| bucket.from.plus(bucket.length() / 2);
    let (before, around) = (calendar.around(calendar.around(near).from.plus(-1)), calendar.around(near));
    let window = Window { from: middle(before), to: middle(calendar.around(around.to)) };
    let words = || format!("{} {} at {near}", calendar.zone, calendar.size.name());
    assert!(before.to == around.from && around.contains(near), "{}", words());
    let buckets = Buckets::of(calendar.clone(), window)?;
    let mut bucket = calendar.around(window.from);
    let mut cuts = Vec::new();
    while bucket.to < window.to {
        assert!(bucket.from < bucket.to, "{}", words());
        assert_eq!(calendar.around(bucket.to).from, bucket.to, "{}", words());
        assert_eq!(calendar.start(bucket.to.plus(-1)), bucket.from, "{}", words());
        bucket = calendar.around(bucket.to);
        cuts.push(bucket.from);
    }
    assert!(buckets.is_plain() || buckets.cuts() == cuts, "{}", words());
    assert!(buckets.start(window.from) <= window.from && window.to <= bucket.to, "{}", words());
    Ok(())
}

/// Every zone with every size, at one of these: the last time that its clock was set, one that is another from zone to zone,
/// and 1970; and counted from an anchor in the hour that the clock leaves out or shows twice.
#[test]
fn every_zone_has_buckets_of_every_size() {
    let since = jiff::Timestamp::from_second(-2_600_000_000).expect("in range");
    let until = jiff::Timestamp::from_second(1_900_000_000).expect("in range");
    let mut count = 0;
    for (place, name) in jiff::tz::db().available().enumerate() {
        let zone = TimeZone::get(name.as_str()).expect("an available zone");
        let all: Vec<i64> = zone
            .following(since)
            .map(|set| set.timestamp())
            .take_while(|set| *set < until)
            .map(|set| set.as_microsecond())
            .collect();
        let mut moments = vec![0];
        moments.extend(all.last().copied());
        moments.extend(all.get(place % all.len().max(1)).copied());
        for (turn, size) in SIZES.iter().enumerate() {
            let plain = sized(name.as_str(), size);
            let near = |turn: usize| Timestamp(moments[turn % moments.len()]);
            tiles(&plain, near(place + turn)).expect("few");
            let anchor = Some(near(turn + 1).plus(-HOUR / 3));
            tiles(&Calendar { anchor, ..plain.clone() }, near(turn + 1)).expect("few");
            count += 2;
        }
    }
    assert!(count > 20_000, "{count}");
}

/// Sums are kept by quarters of an hour for this.
#[test]
fn days_of_every_zone_of_today_begin_on_a_quarter_of_an_hour() {
    for name in jiff::tz::db().available() {
        let days = calendar(name.as_str(), "day");
        for moment in
            ["2020-02-29T12:00:00Z", "2026-03-29T12:00:00Z", "2026-10-25T12:00:00Z", "2035-07-01T00:00:00Z"]
        {
            let start = days.start(at(moment));
            assert_eq!(start, start.floor(15 * MINUTE), "{name}");
        }
    }
}

/// Every kind of calendar tiles time, and the list of its buckets says the same as each of them.
fn any_calendar() -> impl Strategy<Value = Calendar> {
    let names: Vec<String> = jiff::tz::db().available().map(|name| name.to_string()).collect();
    const SIZES: [&str; 19] = [
        "minute", "5m", "15m", "hour", "day", "week", "month", "quarter", "year", "7min", "90min", "5h",
        "6h", "3d", "2w", "2m", "5mo", "2q", "2y",
    ];
    let anchor = prop_oneof![Just(None), (-2_000_000_000i64..4_000_000_000).prop_map(Some)];
    (prop::sample::select(names), prop::sample::select(&SIZES[..]), anchor, any::<bool>()).prop_map(
        |(zone, size, anchor, is_sunday)| Calendar {
            anchor: anchor.map(|second| Timestamp(second * SECOND)),
            week_start: if is_sunday { WeekStart::Sunday } else { WeekStart::Monday },
            ..calendar(&zone, size)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]
    #[test]
    fn buckets_tile_time(calendar in any_calendar(), second in -3_000_000_000i64..5_000_000_000, micros in 0..SECOND) {
        let moment = Timestamp(second * SECOND + micros);
        let bucket = calendar.around(moment);
        prop_assert!(bucket.contains(moment), "{bucket:?} {moment:?}");
        prop_assert_eq!(calendar.start(moment), bucket.from);
        prop_assert_eq!(calendar.around(bucket.from), bucket);
        prop_assert_eq!(calendar.around(bucket.to).from, bucket.to);
        prop_assert_eq!(calendar.around(bucket.from.plus(-1)).to, bucket.from);
        prop_assert_eq!(calendar.length(bucket.from), bucket.length());
        let window = Window { from: moment, to: bucket.to.plus(bucket.length()) };
        let Ok(buckets) = Buckets::of(calendar.clone(), window) else { return Ok(()) };
        for share in 0..8 {
            let inside = moment.plus((window.length() - 1) / 7 * share);
            prop_assert_eq!(buckets.start(inside), calendar.start(inside));
        }
        if !buckets.is_plain() {
            prop_assert!(buckets.cuts().iter().all(|cut| window.contains(*cut)));
            prop_assert!(buckets.cuts().is_sorted_by(|a, b| a < b));
        }
    }
}
