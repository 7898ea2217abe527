//! How the hours of a window are read when every subject counts: as few pieces as keep each of them small. Pure.

use crate::metering::time::{DAY, HOUR, Timestamp, Window};

/// Rows of every subject are at most as many as events. So many at once are grouped in some ten megabytes.
const EVENTS_AT_ONCE: i64 = 100_000;

/// Whole hours that together hold every event of the window, in order, each at most once. `days` are the days with
/// events, in order, and how many each has.
pub fn of(hours: Window, days: &[(Timestamp, i64)]) -> Vec<Window> {
    let mut pieces: Vec<(Window, i64)> = Vec::new();
    for (day, events) in days {
        let from = hours.from.max(*day);
        let to = hours.to.min(day.plus(DAY));
        if from >= to {
            continue;
        }
        match pieces.last_mut() {
            Some((piece, held)) if *held + events <= EVENTS_AT_ONCE => {
                piece.to = to;
                *held += events;
            }
            _ => pieces.extend(split(Window { from, to }, *events)),
        }
    }
    pieces.into_iter().map(|(piece, _)| piece).collect()
}

/// A day in equal parts; which hours its events lie in is not known.
fn split(day: Window, events: i64) -> impl Iterator<Item = (Window, i64)> {
    let parts = (events / EVENTS_AT_ONCE + 1).min(DAY / HOUR);
    let width = (DAY / HOUR / parts).max(1) * HOUR;
    let starts = (0..).map(move |part| day.from.plus(part * width)).take_while(move |from| *from < day.to);
    starts.map(move |from| (Window { from, to: from.plus(width).min(day.to) }, events / parts))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn few_events_are_one_piece() {
        let hours = Window { from: Timestamp(5 * HOUR), to: Timestamp(29 * DAY + HOUR) };
        let days: Vec<(Timestamp, i64)> = (0..30).map(|day| (Timestamp(day * DAY), 3_000)).collect();
        assert_eq!(of(hours, &days), [hours]);
        assert_eq!(of(hours, &[]), []);
    }

    proptest! {
        #[test]
        fn every_hour_of_a_day_with_events_is_read_once(
            counts in proptest::collection::vec(0i64..1_000_000, 1..40),
            from in 0i64..100, length in 1i64..1_000,
        ) {
            let hours = Window { from: Timestamp(from * HOUR), to: Timestamp((from + length) * HOUR) };
            let days: Vec<(Timestamp, i64)> = (0..).map(|day| Timestamp(day * DAY)).zip(counts).filter(|day| day.1 > 0).collect();
            let pieces = of(hours, &days);
            prop_assert!(pieces.is_sorted_by(|a, b| a.to <= b.from), "{pieces:?}");
            for hour in (0..from + length + 50).map(|hour| Timestamp(hour * HOUR)) {
                let has_events = days.iter().any(|(day, _)| *day == hour.floor(DAY));
                let is_inside = hours.from <= hour && hour < hours.to;
                let reads = pieces.iter().filter(|piece| piece.from <= hour && hour < piece.to).count();
                prop_assert!(reads <= usize::from(is_inside));
                prop_assert!(!(has_events && is_inside) || reads == 1, "{hour:?} {pieces:?}");
            }
            let of_a_day = |day: Timestamp| pieces.iter().filter(|p| p.from.floor(DAY) == day).count();
            prop_assert!(days.iter().all(|(day, events)| of_a_day(*day) as i64 <= events / EVENTS_AT_ONCE * 2 + 2));
        }
    }
}
