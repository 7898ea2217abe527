//! How the buckets of a calendar are put together: which stored sums lie wholly inside one, and where a bucket begins in the
//! middle of the finest of them, so that events must be read. Pure but for the list that statements join with.

use std::collections::BTreeSet;

use crate::metering::calendar::Buckets;
use crate::metering::rollup::Grain;
use crate::metering::time::{DAY, HOUR, Timestamp, Window};

/// A part of a window that lies in one bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    pub grain: Grain,
    pub window: Window,
    pub bucket: Timestamp,
}

/// Every instant of some whole hours, once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cover {
    /// What stored sums answer, in order.
    pub stored: Vec<Piece>,
    /// Starts of what a bucket begins in the middle of: its events are read.
    cut: BTreeSet<i64>,
    /// Length of the finest sums that are read.
    finest: i64,
}

/// Sums whose events are gone, before `pruned_before`, belong to the bucket that they begin in. `finest` is the length of the
/// finest that are read; days are read where they are kept.
pub fn cover(hours: Window, buckets: &Buckets, pruned_before: Timestamp, finest: i64) -> Cover {
    let is_cut = |at: Timestamp| at != at.floor(finest) && at.ceil(finest) > pruned_before;
    let cuts = || buckets.cuts().iter().copied().filter(|cut| hours.from < *cut && *cut < hours.to);
    let mut stored = Vec::new();
    let mut from = hours.from;
    for to in cuts().chain([hours.to]) {
        let end = if is_cut(to) { to.floor(finest) } else { to.ceil(finest) };
        add(&mut stored, from.ceil(finest), end, buckets.start(from));
        from = to;
    }
    let cut = cuts().filter(|cut| is_cut(*cut)).map(|cut| cut.floor(finest).0).collect();
    Cover { stored, cut, finest }
}

fn add(stored: &mut Vec<Piece>, from: Timestamp, to: Timestamp, bucket: Timestamp) {
    let grain = Grain::MeterHour;
    let days = Window { from: from.ceil(DAY), to: to.floor(DAY) };
    let parts = match days.from < days.to {
        true => vec![
            (grain, Window { from, to: days.from }),
            (Grain::MeterDay, days),
            (grain, Window { from: days.to, to }),
        ],
        false => vec![(grain, Window { from, to })],
    };
    let parts = parts.into_iter().filter(|(_, window)| window.from < window.to);
    stored.extend(parts.map(|(grain, window)| Piece { grain, window, bucket }));
}

impl Cover {
    /// Whether sums that begin here are not read, but their events.
    pub fn is_cut(&self, start: Timestamp) -> bool {
        self.cut.contains(&start.floor(self.finest).0)
    }

    /// The windows of which events are read.
    pub fn cut_windows(&self) -> impl Iterator<Item = Window> {
        self.cut.iter().map(|start| Window { from: Timestamp(*start), to: Timestamp(*start + self.finest) })
    }

    /// Days in which a bucket begins off the hour, with sums of quarters before and after.
    pub fn quarter_days(&self) -> BTreeSet<i64> {
        let ends = self.stored.iter().flat_map(|piece| [piece.window.from, piece.window.to]);
        ends.filter(|at| *at != at.floor(HOUR)).map(|at| at.floor(DAY).0).collect()
    }

    /// Days that lie in two buckets.
    pub fn cut_days(&self) -> BTreeSet<i64> {
        let starts = self.stored.windows(2).filter(|pair| pair[0].bucket != pair[1].bucket);
        let starts = starts.map(|pair| pair[1].window.from).filter(|at| *at != at.floor(DAY));
        let of_hours = self.cut.iter().map(|start| Timestamp(*start).floor(DAY).0);
        starts.map(|at| at.floor(DAY).0).chain(of_hours).collect()
    }
}

/// What is left of a window without some others.
pub fn without(window: Window, others: &[Window]) -> Vec<Window> {
    let mut others: Vec<Window> = others.to_vec();
    others.sort_by_key(|other| other.from);
    let (mut left, mut from) = (Vec::new(), window.from);
    for other in others.iter().chain([&Window { from: window.to, to: window.to }]) {
        let to = other.from.min(window.to);
        if from < to {
            left.push(Window { from, to });
        }
        from = from.max(other.to);
    }
    left
}

/// These windows, cut where a bucket begins.
pub fn split(windows: impl IntoIterator<Item = Window>, buckets: &Buckets) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for window in windows {
        let mut from = window.from;
        let cuts = buckets.cuts();
        let first = cuts.partition_point(|cut| *cut <= window.from);
        let inside = cuts[first..].iter().copied().take_while(|cut| *cut < window.to);
        for to in inside.chain([window.to]) {
            let window = Window { from, to };
            pieces.push(Piece { grain: Grain::MeterHour, window, bucket: buckets.start(from) });
            from = to;
        }
    }
    pieces
}

/// For FROM: grain, low, high and bucket of each piece, as `w`. Never empty.
pub fn listed(pieces: &[Piece]) -> String {
    let row = |piece: &Piece| {
        let Piece { grain, window, bucket } = piece;
        format!(
            "(CAST({} AS BIGINT), CAST({} AS BIGINT), CAST({} AS BIGINT), CAST({} AS BIGINT))",
            *grain as i16, window.from.0, window.to.0, bucket.0
        )
    };
    let rows: Vec<String> = pieces.iter().map(row).collect();
    format!(
        "(SELECT column1 AS grain, column2 AS low, column3 AS high, column4 AS bucket FROM (VALUES {}) AS listed) AS w",
        rows.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::metering::calendar::{Wish, Zone};
    use crate::metering::time::SECOND;

    #[test]
    fn windows_are_taken_out_of_one() {
        let window = |from: i64, to: i64| Window { from: Timestamp(from), to: Timestamp(to) };
        let others = [window(8, 10), window(2, 3), window(0, 1), window(3, 4), window(40, 50)];
        assert_eq!(without(window(1, 20), &others), [window(1, 2), window(4, 8), window(10, 20)]);
        assert_eq!(without(window(8, 10), &others), []);
        assert_eq!(without(window(1, 2), &[]), [window(1, 2)]);
    }

    proptest! {
        /// Each of the finest sums is read once, by its sums or by its events, and sums lie in one bucket unless their events are gone.
        #[test]
        fn every_hour_is_read_once(
            zone in prop::sample::select(vec!["UTC", "Asia/Kolkata", "Asia/Kathmandu", "Europe/Berlin", "Australia/Lord_Howe"]),
            size in prop::sample::select(vec!["5m", "15m", "hour", "6h", "day", "week", "month", "10d"]),
            anchor in prop::option::of(0i64..1_000_000),
            from in 494_000i64..494_100, length in 1i64..800, pruned in 0i64..1_000, finest in prop::sample::select(vec![HOUR, HOUR / 4]),
        ) {
            let hours = Window { from: Timestamp(from * HOUR), to: Timestamp((from + length) * HOUR) };
            let wish = Wish { bucket_size: size, time_zone: zone, ..Wish::default() };
            let mut calendar = wish.calendar(&Zone::UTC).expect("a calendar");
            calendar.anchor = anchor.map(|second| Timestamp(second * SECOND));
            let Ok(buckets) = Buckets::of(calendar, hours) else { return Ok(()) };
            if buckets.is_plain() { return Ok(()) }
            let pruned_before = Timestamp((from - 100 + pruned) * HOUR);
            let cover = cover(hours, &buckets, pruned_before, finest);
            let days = cover.cut_days();
            for hour in (0..length * HOUR / finest).map(|n| hours.from.plus(n * finest)) {
                let holds = |piece: &&Piece| piece.window.contains(hour);
                let sums: Vec<&Piece> = cover.stored.iter().filter(holds).collect();
                prop_assert_eq!(sums.len() + usize::from(cover.is_cut(hour)), 1);
                let (first, last) = (buckets.start(hour), buckets.start(hour.plus(finest - 1)));
                for piece in sums {
                    prop_assert_eq!(piece.bucket, first);
                    prop_assert!(first == last || hour < pruned_before);
                    prop_assert!(piece.grain != Grain::MeterDay
                        || (piece.window.from == piece.window.from.floor(DAY) && piece.window.to == piece.window.to.floor(DAY)));
                }
                let is_off_hour = cover.stored.iter().any(|piece| [piece.window.from, piece.window.to].contains(&hour)) && hour != hour.floor(HOUR);
                prop_assert!(!is_off_hour || cover.quarter_days().contains(&hour.floor(DAY).0));
                let day = hour.floor(DAY);
                let ends = Window { from: day.max(hours.from), to: day.plus(DAY).min(hours.to) };
                let is_whole = buckets.start(ends.from) == buckets.start(ends.to.plus(-1));
                prop_assert!(is_whole || ends.to <= pruned_before.plus(DAY) || days.contains(&day.0));
            }
            for piece in split(cover.cut_windows(), &buckets) {
                prop_assert_eq!(buckets.start(piece.window.from), piece.bucket);
                prop_assert_eq!(buckets.start(piece.window.to.plus(-1)), piece.bucket);
            }
        }
    }
}
