//! Which plan a subject has, and when (jobs.md 4.2). A subject has at most one effective assignment at any instant.

use crate::metering::calendar::Zone;
use crate::metering::time::{SECOND, Timestamp};
use crate::string_enum::string_enum;

string_enum!(Status { Scheduled = "scheduled", Active = "active", Ended = "ended" });

impl Status {
    /// One that was canceled before it began has ended.
    pub fn of(starts_at: Timestamp, ends_at: Option<Timestamp>, now: Timestamp) -> Self {
        match ends_at {
            Some(end) if end <= now || end <= starts_at => Status::Ended,
            _ if starts_at > now => Status::Scheduled,
            _ => Status::Active,
        }
    }
}

/// One stretch of a subject's history; canceled ones are left out. Histories are in the order of their starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AssignmentPeriod {
    pub plan_id: i64,
    pub starts_at: Timestamp,
    pub ends_at: Option<Timestamp>,
    pub anchor: Timestamp,
    /// Where days begin for limits that name no zone.
    pub zone: Zone,
    /// It was to begin later than it was made.
    pub is_scheduled: bool,
}

impl AssignmentPeriod {
    fn ends_after(&self, at: Timestamp) -> bool {
        self.ends_at.is_none_or(|end| at < end)
    }
}

/// What time it is at least: a clock that is set back takes no plan away that was given already, and with it its limits.
pub fn not_before(history: &[AssignmentPeriod], now: Timestamp) -> Timestamp {
    let given = history.iter().filter(|span| !span.is_scheduled).map(|span| span.starts_at).max();
    given.map_or(now, |given| given.max(now))
}

/// The assignment in force at this instant.
pub fn effective(history: &[AssignmentPeriod], at: Timestamp) -> Option<&AssignmentPeriod> {
    history.iter().rev().find(|span| span.starts_at <= at && span.ends_after(at))
}

/// The assignment an event of this time counts for. Clients often stamp whole seconds, so an assignment counts from
/// the second in which it was made (jobs.md 4.4).
pub fn assignment_for_event(
    history: &[AssignmentPeriod],
    event_time: Timestamp,
) -> Option<&AssignmentPeriod> {
    history
        .iter()
        .rev()
        .find(|span| span.starts_at.floor(SECOND) <= event_time && span.ends_after(event_time))
}

/// When the plan of the subject changes next, by a scheduled start or an end.
pub fn next_change(history: &[AssignmentPeriod], now: Timestamp) -> Option<Timestamp> {
    history
        .iter()
        .flat_map(|span| [Some(span.starts_at), span.ends_at])
        .flatten()
        .filter(|at| *at > now)
        .min()
}

/// Where periods of a new assignment are counted from: those of the plan in force go on; else the second of the
/// start, but never one of `used`, the anchors of all earlier assignments, because counters are kept by anchor.
pub fn anchor_of_new(
    history: &[AssignmentPeriod],
    used: &[Timestamp],
    now: Timestamp,
    starts_at: Timestamp,
) -> Timestamp {
    if let Some(current) = effective(history, now) {
        return current.anchor;
    }
    let mut anchor = starts_at.floor(SECOND);
    while used.contains(&anchor) {
        anchor = anchor.plus(SECOND);
    }
    anchor
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(plan_id: i64, starts_at: i64, ends_at: Option<i64>) -> AssignmentPeriod {
        AssignmentPeriod {
            plan_id,
            starts_at: Timestamp(starts_at),
            ends_at: ends_at.map(Timestamp),
            anchor: Timestamp(0),
            zone: Zone::UTC,
            is_scheduled: false,
        }
    }

    #[test]
    fn a_clock_that_is_set_back_takes_no_plan_away() {
        let scheduled = AssignmentPeriod { is_scheduled: true, ..span(2, 900, None) };
        let history = [span(1, 500, Some(900)), scheduled];
        assert_eq!(not_before(&history, Timestamp(100)), Timestamp(500));
        assert_eq!(not_before(&history, Timestamp(700)), Timestamp(700));
        assert_eq!(not_before(&[], Timestamp(700)), Timestamp(700));
    }

    #[test]
    fn status_moves_with_time() {
        let status =
            |start, end: Option<i64>| Status::of(Timestamp(start), end.map(Timestamp), Timestamp(100));
        assert_eq!(status(100, None), Status::Active);
        assert_eq!(status(101, None), Status::Scheduled);
        assert_eq!(status(50, Some(101)), Status::Active);
        assert_eq!(status(50, Some(100)), Status::Ended);
        assert_eq!(status(200, Some(100)), Status::Ended);
        assert_eq!(status(200, Some(150)), Status::Ended);
    }

    #[test]
    fn whole_seconds_count_for_the_later_plan() {
        let history = [span(1, 0, Some(5_700_000)), span(2, 5_700_000, None)];
        assert_eq!(assignment_for_event(&history, Timestamp(5_000_000)).map(|s| s.plan_id), Some(2));
        assert_eq!(assignment_for_event(&history, Timestamp(4_999_999)).map(|s| s.plan_id), Some(1));
        assert_eq!(effective(&history, Timestamp(5_699_999)).map(|s| s.plan_id), Some(1));
        assert_eq!(effective(&history, Timestamp(5_700_000)).map(|s| s.plan_id), Some(2));
        assert_eq!(next_change(&history, Timestamp(10)), Some(Timestamp(5_700_000)));
        assert_eq!(next_change(&history, Timestamp(5_700_000)), None);
    }

    #[test]
    fn anchors_are_kept_or_new() {
        let running = [AssignmentPeriod { anchor: Timestamp(7), ..span(1, 9, None) }];
        assert_eq!(anchor_of_new(&running, &[], Timestamp(10), Timestamp(SECOND * 9 + 5)), Timestamp(7));
        let over = [AssignmentPeriod { anchor: Timestamp(SECOND), ..span(1, SECOND, Some(SECOND + 10)) }];
        assert_eq!(
            anchor_of_new(&over, &[Timestamp(SECOND)], Timestamp(SECOND + 20), Timestamp(SECOND + 20)),
            Timestamp(2 * SECOND)
        );
        assert_eq!(
            anchor_of_new(&over, &[Timestamp(SECOND)], Timestamp(SECOND * 9), Timestamp(SECOND * 9 + 3)),
            Timestamp(9 * SECOND)
        );
    }
}
