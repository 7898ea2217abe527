//! A write that is taken back: the very steps of the hot insert, in a transaction that the caller rolls back, and what
//! the windows and limits of its events would come to. What is read here is read before the first row is written; what
//! follows is added up in memory, as the counters add it up. No rule of admission or of consumption is here.

use std::collections::HashMap;
use std::sync::Arc;

use crate::db::identity::Link;
use crate::db::{Conn, DbError};
use crate::entitlements::assignment::assignment_for_event;
use crate::entitlements::period::Period;
use crate::entitlements::sql::counters::{self, Range};
use crate::ingest::insert::{Batch, DecidedAt, InsertBatch, Outcome, Place, WriteCache};
use crate::ingest::preview::{QuotaMove, WindowMove};
use crate::metering::calendar::Calendar;
use crate::metering::event::Event;
use crate::metering::meter::Meter;
use crate::metering::rollup::Part;
use crate::metering::time::{BucketSize, Timestamp, Window};
use crate::usage::aggregate::cells;
use crate::usage::query::Query;

/// What a batch would have come to.
#[derive(Debug)]
pub struct Seen {
    pub outcome: Outcome,
    /// By event.
    pub windows: Vec<Vec<WindowMove>>,
    /// By event.
    pub quotas: Vec<Vec<QuotaMove>>,
}

/// Windows that are read for one call. Of more, those of the first events are told.
const WINDOWS_MAX: usize = 300;

/// A subject's use of a meter in a window.
type Use = (i64, String, Window);

/// To be run in a transaction that is rolled back ([`crate::db::Store::rehearse`]).
pub fn rehearse(
    conn: &mut Conn,
    link: Link,
    batch: &Arc<Batch>,
    known: &WriteCache,
) -> Result<Seen, DbError> {
    let batches = std::slice::from_ref(batch);
    let mut work = InsertBatch::new(batches, 0);
    work.prepare(conn, link, known)?;
    let mut windows = Windows::read(conn, &work)?;
    let mut quotas = Quotas::read(conn, &work)?;
    work.store(conn, known)?;
    let mut seen = Seen { windows: Vec::new(), quotas: Vec::new(), outcome: Outcome::Retry };
    for (item, event) in batch.events.iter().enumerate() {
        let is_stored = work.decided[0].is_none() && !work.duplicates.contains_key(&(0, item));
        seen.windows.push(windows.add(event, is_stored));
        seen.quotas.push(quotas.add((0, item), event, is_stored));
    }
    let (mut outcomes, _) = work.finish();
    seen.outcome = outcomes.pop().unwrap_or(Outcome::Retry);
    Ok(seen)
}

/// Usage windows as queries know them, each with what it holds.
struct Windows(HashMap<Use, Option<Part>>);

const SIZES: [BucketSize; 3] = [BucketSize::Hour, BucketSize::Day, BucketSize::Month];

fn window_of(size: BucketSize, event: &Event) -> Window {
    Calendar::utc(size).around(event.time)
}

impl Windows {
    fn read(conn: &mut Conn, work: &InsertBatch) -> Result<Windows, DbError> {
        let mut held: HashMap<Use, Option<Part>> = HashMap::new();
        for (.., event) in work.pending_events().filter(|(.., e)| !e.meter.aggregation.needs_events()) {
            for window in SIZES.map(|size| window_of(size, event)) {
                let key = (event.meter.id, event.subject.clone(), window);
                if held.len() >= WINDOWS_MAX || held.contains_key(&key) {
                    continue;
                }
                let part = used(conn, &event.meter, &event.subject, window)?;
                held.insert(key, part);
            }
        }
        Ok(Windows(held))
    }

    fn add(&mut self, event: &Event, is_stored: bool) -> Vec<WindowMove> {
        let mut moves = Vec::new();
        for size in SIZES.into_iter().filter(|_| is_stored) {
            let window = window_of(size, event);
            let Some(part) = self.0.get_mut(&(event.meter.id, event.subject.clone(), window)) else {
                continue;
            };
            let value = |part: &Option<Part>| {
                part.as_ref().map(|part| part.value(event.meter.aggregation, window.length()))
            };
            let before = value(part);
            grow(part, event);
            let (bucket_size, after) = (size.own_name().unwrap_or_default(), value(part));
            moves.push(WindowMove { bucket_size, from: window.from, to: window.to, before, after });
        }
        moves
    }
}

fn used(conn: &mut Conn, meter: &Arc<Meter>, subject: &str, window: Window) -> Result<Option<Part>, DbError> {
    let query = Query {
        meter: meter.clone(),
        window,
        subject: Some(subject.to_owned()),
        group_by: Vec::new(),
        filter: None,
        buckets: None,
        skip_missing: false,
        exact: true,
    };
    Ok(cells(conn, &query, 1)?.into_groups().next().map(|(_, part)| part))
}

fn grow(part: &mut Option<Part>, event: &Event) {
    match part {
        Some(whole) => whole.add_event(event.time, event.id, &event.quantity),
        None => *part = Some(Part::of(event.time, event.id, &event.quantity)),
    }
}

/// The limits that each event counts against, and what the window of each holds.
struct Quotas {
    moves: HashMap<Place, Vec<(usize, QuotaMove)>>,
    held: Vec<(Slot, Option<Part>)>,
    /// When each event counts.
    times: HashMap<Place, Timestamp>,
}

/// The window of a limit, for one subject.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Slot {
    subject_id: i64,
    meter_id: i64,
    /// Of the assignment.
    anchor: Timestamp,
    period: Period,
    window: Window,
}

/// Whether what counts in one window at this time counts in the other as well.
fn overlap(one: &Slot, other: &Slot, at: Timestamp) -> bool {
    let slides = || other.period.horizon().is_some() && other.window.contains(at);
    one == other || (slides() && *one == Slot { window: one.window, ..other.clone() })
}

impl Quotas {
    fn read(conn: &mut Conn, work: &InsertBatch) -> Result<Quotas, DbError> {
        let mut moves: HashMap<Place, Vec<(usize, QuotaMove)>> = HashMap::new();
        let (mut ranges, mut slots): (Vec<Range>, Vec<Slot>) = (Vec::new(), Vec::new());
        let mut places: HashMap<Slot, usize> = HashMap::new();
        let mut times: HashMap<Place, Timestamp> = HashMap::new();
        for (place, workspace_id, event) in work.pending_events() {
            let subject_id = work.subject_id(workspace_id, &event.subject);
            let time = match work.batches[place.0].consumes {
                Some(DecidedAt::Now) => work.now.unwrap_or(event.received_at),
                _ => event.time,
            };
            let span = work.histories.get(&subject_id).and_then(|h| assignment_for_event(h, time));
            let Some((span, plan)) = span.and_then(|span| Some((span, work.plans.get(&span.plan_id)?)))
            else {
                continue;
            };
            for limit in plan.limits_of(event.meter.id) {
                let (meter_id, anchor) = (event.meter.id, span.anchor);
                let window = limit.period.window(anchor, &span.zone, time);
                let period = limit.period.in_zone(&span.zone);
                let quota = QuotaMove::of(plan, limit, period.clone(), window);
                let range = Range::of((subject_id, meter_id), &period, anchor, &span.zone, window);
                let slot = Slot { subject_id, meter_id, anchor, period, window };
                let at = *places.entry(slot.clone()).or_insert_with(|| {
                    ranges.push(range);
                    slots.push(slot);
                    slots.len() - 1
                });
                times.insert(place, time);
                moves.entry(place).or_default().push((at, quota));
            }
        }
        let held = if ranges.is_empty() { Vec::new() } else { counters::load(conn, &ranges)? };
        Ok(Quotas { moves, held: slots.into_iter().zip(held).collect(), times })
    }

    fn add(&mut self, place: Place, event: &Event, is_stored: bool) -> Vec<QuotaMove> {
        let moves = self.moves.remove(&place).unwrap_or_default();
        let Some(time) = self.times.get(&place).copied() else { return Vec::new() };
        let before: Vec<Option<Part>> = moves.iter().map(|(at, _)| self.held[*at].1.clone()).collect();
        let own: Vec<Slot> = moves.iter().map(|(at, _)| self.held[*at].0.clone()).collect();
        for (slot, part) in self.held.iter_mut().filter(|_| is_stored) {
            if own.iter().any(|own| overlap(own, slot, time)) {
                grow(part, event);
            }
        }
        let told = moves.into_iter().zip(before).map(|((at, quota), before)| {
            quota.between(event.meter.aggregation, before.as_ref(), self.held[at].1.as_ref())
        });
        told.collect()
    }
}
