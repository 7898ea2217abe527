//! Which part of a window stored sums answer, and which edges of it take a look at events.

use std::collections::BTreeSet;

use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::BigInt;

use super::Sum;
use crate::db::statement::integers;
use crate::db::{Conn, DbError};
use crate::metering::facet::QUARTER;
use crate::metering::time::{HOUR, Timestamp, Window};

pub(super) struct Whole {
    /// What sums answer, to the hour or to a quarter of one.
    pub sums: Option<Window>,
    /// Whose events are read.
    pub edges: Vec<Window>,
}

#[derive(QueryableByName)]
struct HourSpan {
    #[diesel(sql_type = BigInt)]
    start: i64,
    #[diesel(sql_type = BigInt)]
    first_at: i64,
    #[diesel(sql_type = BigInt)]
    last_at: i64,
}

fn is_on(at: Timestamp, width: i64) -> bool {
    at == at.floor(width)
}

impl Sum<'_> {
    /// Cuts the window into what sums answer and up to two edges of less than an hour. An edge whose hour holds no event
    /// on the far side of the cut counts as a whole hour: the usual "until now" needs no raw events. One that lies on a
    /// quarter of an hour, as midnight does in every zone of today, needs none either.
    pub(super) fn whole(&self, conn: &mut Conn) -> Result<Whole, DbError> {
        let Window { from, to } = self.query.window;
        let cut: Vec<i64> =
            [from, to].into_iter().filter(|at| !is_on(*at, HOUR)).map(|at| at.floor(HOUR).0).collect();
        let inside = self.hours_that_lie_inside(conn, &cut)?;
        let (first, last) = (self.first(from, &inside), self.last(to, &inside));
        if first > last {
            // the window lies inside one hour
            let edges = if self.is_gone(from) { Vec::new() } else { vec![self.query.window] };
            return Ok(Whole { sums: None, edges });
        }
        let mut edges = Vec::new();
        if from < first && !self.is_gone(from) {
            edges.push(Window { from, to: first });
        }
        if last < to {
            edges.push(Window { from: last, to });
        }
        let sums = (first < last).then_some(Window { from: first, to: last });
        Ok(Whole { sums, edges })
    }

    fn first(&self, from: Timestamp, inside: &BTreeSet<i64>) -> Timestamp {
        match from.floor(HOUR) {
            hour if inside.contains(&hour.0) => hour,
            _ if is_on(from, self.grid()) => from,
            _ if self.is_gone(from) => from.ceil(self.grid()),
            _ => from.ceil(HOUR),
        }
    }

    fn last(&self, to: Timestamp, inside: &BTreeSet<i64>) -> Timestamp {
        match to.floor(HOUR) {
            hour if inside.contains(&hour.0) => hour.plus(HOUR),
            _ if is_on(to, self.grid()) => to,
            _ if self.is_gone(to) && self.grid() == QUARTER => to.ceil(QUARTER),
            hour => hour,
        }
    }

    /// Length of the sums that the window is cut by: where buckets begin off the quarters, hours.
    fn grid(&self) -> i64 {
        let cuts = self.query.odd_buckets().map(|buckets| buckets.cuts()).unwrap_or_default();
        if cuts.iter().all(|at| is_on(*at, QUARTER)) { QUARTER } else { HOUR }
    }

    /// Length of the finest sums that answer this query: a bucket that begins in the middle of one needs the events of
    /// it. Totals are rows of hours; quarters are asked for where something begins off the hour.
    pub(super) fn finest(&self, sums: Window) -> i64 {
        let cuts = self.query.odd_buckets().map(|buckets| buckets.cuts()).unwrap_or_default();
        let is_off_hour = [sums.from, sums.to].iter().chain(cuts).any(|at| !is_on(*at, HOUR));
        match self.is_of_all() && (self.grid() == HOUR || !is_off_hour) {
            true => HOUR,
            false => QUARTER,
        }
    }

    pub(super) fn pruned_before(&self) -> Timestamp {
        self.query.meter.pruned_before.map_or(Timestamp(i64::MIN), |at| at.ceil(HOUR))
    }

    /// Whether the hour of this instant was pruned. A sum of it then belongs to the window that it begins in, late events
    /// that are still stored included.
    fn is_gone(&self, at: Timestamp) -> bool {
        self.query.meter.pruned_before.is_some_and(|pruned_before| at.floor(HOUR).plus(HOUR) <= pruned_before)
    }

    /// Those of these hours whose events are all inside the window. The raw events of a pruned hour are gone: where it is
    /// not kept by quarters, such an hour belongs to the window that it starts in.
    fn hours_that_lie_inside(&self, conn: &mut Conn, hours: &[i64]) -> Result<BTreeSet<i64>, DbError> {
        let mut inside: BTreeSet<i64> = hours.iter().copied().collect();
        if hours.is_empty() {
            return Ok(inside);
        }
        // of the meter, also where the query is about a subject: of those only their sums are kept
        let text = format!(
            "SELECT start, MIN(first_at) AS first_at, MAX(last_at) AS last_at FROM rollups
             WHERE meter_id = $1 AND grain = 1 AND start IN ({}) GROUP BY start",
            integers(hours)
        );
        let spans: Vec<HourSpan> = sql_query(text).bind::<BigInt, _>(self.query.meter.id).load(conn)?;
        let Window { from, to } = self.query.window;
        for span in spans {
            let hour = Timestamp(span.start);
            let is_whole = hour < self.pruned_before() && self.grid() == HOUR && from <= hour && hour < to;
            if !is_whole && (span.first_at < from.0 || span.last_at >= to.0) {
                inside.remove(&span.start);
            }
        }
        Ok(inside)
    }

    /// The same cut to the hour, for days that are not kept by quarters.
    pub(super) fn to_the_hour(&self, sums: Window) -> Whole {
        let from = sums.from.ceil(HOUR);
        let to = if self.is_gone(sums.to) { sums.to.ceil(HOUR) } else { sums.to.floor(HOUR) };
        if from > to {
            let edges = if self.is_gone(sums.from) { Vec::new() } else { vec![sums] };
            return Whole { sums: None, edges };
        }
        let mut edges = Vec::new();
        if sums.from < from && !self.is_gone(sums.from) {
            edges.push(Window { from: sums.from, to: from });
        }
        if to < sums.to {
            edges.push(Window { from: to, to: sums.to });
        }
        Whole { sums: (from < to).then_some(Window { from, to }), edges }
    }
}
