//! A write that is taken back: the very steps of the hot insert, in a transaction that the caller rolls back, and what
//! the windows and limits of its events would come to. What is read here is read before the first row is written; what
//! follows is added up in memory, as the counters add it up. Windows are hundreds of questions, so they are read
//! before the transaction: on SQLite it holds up whoever writes. No rule of admission or of consumption is here.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use crate::db::identity::Link;
use crate::db::{Conn, DbError};
use crate::entitlements::assignment::{AssignmentPeriod, assignment_for_event, not_before};
use crate::entitlements::period::Period;
use crate::entitlements::plan::Plan;
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
    mut windows: Windows,
) -> Result<Seen, DbError> {
    let batches = std::slice::from_ref(batch);
    let mut work = InsertBatch::new(batches, 0);
    work.prepare(conn, link, known)?;
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
#[derive(Clone, Default)]
pub struct Windows(HashMap<Use, Option<Part>>);

const SIZES: [BucketSize; 3] = [BucketSize::Hour, BucketSize::Day, BucketSize::Month];

fn window_of(size: BucketSize, event: &Event) -> Window {
    Calendar::utc(size).around(event.time)
}

impl Windows {
    /// Those of the events, duplicates included: which these are is seen later.
    pub fn read(conn: &mut Conn, batch: &Batch) -> Result<Windows, DbError> {
        let mut held: HashMap<Use, Option<Part>> = HashMap::new();
        for event in batch.events.iter().filter(|event| !event.meter.aggregation.needs_events()) {
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

/// Windows of limits that are read for one call, and how often they are told. Of more, those of the first events are.
const SLOTS_MAX: usize = 1_000;
const MOVES_MAX: usize = 4_000;

/// The limits that each event counts against, and what the window of each holds.
#[derive(Default)]
struct Quotas {
    moves: HashMap<Place, Vec<(usize, QuotaMove)>>,
    /// Where each window stands in `held`.
    places: HashMap<Slot, usize>,
    held: Vec<(Slot, Option<Part>)>,
    /// Those of `held` that slide, by what tells them apart beside the window.
    slides: HashMap<Way, Vec<usize>>,
    /// When each event counts.
    times: HashMap<Place, Timestamp>,
}

/// The windows of a limit, for one subject.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Way {
    subject_id: i64,
    meter_id: i64,
    /// Of the assignment.
    anchor: Timestamp,
    period: Period,
}

/// One of them.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Slot {
    way: Way,
    window: Window,
}

impl Quotas {
    fn read(conn: &mut Conn, work: &InsertBatch) -> Result<Quotas, DbError> {
        let mut quotas = Quotas::default();
        let mut ranges: Vec<Range> = Vec::new();
        let mut told = 0;
        for (place, workspace_id, event) in work.pending_events() {
            let subject_id = work.subject_id(workspace_id, &event.subject);
            let history = work.histories.get(&subject_id).map_or(&[][..], AsRef::as_ref);
            let time = match work.batches[place.0].consumes {
                Some(DecidedAt::Now) => not_before(history, work.now.unwrap_or(event.received_at)),
                _ => event.time,
            };
            let span = assignment_for_event(history, time);
            let Some((span, plan)) = span.and_then(|span| Some((span, work.plans.get(&span.plan_id)?)))
            else {
                continue;
            };
            let who = (subject_id, event.meter.id);
            let moves = quotas.moves_of(who, (span, plan), time, &mut ranges);
            told += moves.len();
            quotas.times.insert(place, time);
            quotas.moves.insert(place, moves);
            if ranges.len() >= SLOTS_MAX || told >= MOVES_MAX {
                break;
            }
        }
        let counted = counters::load(conn, &ranges)?;
        quotas.held.iter_mut().zip(counted).for_each(|((_, held), part)| *held = part);
        Ok(quotas)
    }

    /// The limits on a meter in the windows that hold this time.
    fn moves_of(
        &mut self,
        (subject_id, meter_id): (i64, i64),
        (span, plan): (&AssignmentPeriod, &Plan),
        time: Timestamp,
        ranges: &mut Vec<Range>,
    ) -> Vec<(usize, QuotaMove)> {
        let mut moves = Vec::new();
        for limit in plan.limits_of(meter_id) {
            let anchor = span.anchor;
            let window = limit.period.window(anchor, &span.zone, time);
            let period = limit.period.in_zone(&span.zone);
            let range = Range::of((subject_id, meter_id), &period, anchor, &span.zone, window);
            let quota = QuotaMove::of(plan, limit, period.clone(), window);
            let slot = Slot { way: Way { subject_id, meter_id, anchor, period }, window };
            moves.push((self.place(slot, range, ranges), quota));
        }
        moves
    }

    /// Where the window stands among those that are read.
    fn place(&mut self, slot: Slot, range: Range, ranges: &mut Vec<Range>) -> usize {
        if let Some(at) = self.places.get(&slot) {
            return *at;
        }
        let at = ranges.len();
        ranges.push(range);
        if slot.way.period.horizon().is_some() {
            self.slides.entry(slot.way.clone()).or_default().push(at);
        }
        self.held.push((slot.clone(), None));
        self.places.insert(slot, at);
        at
    }

    fn add(&mut self, place: Place, event: &Event, is_stored: bool) -> Vec<QuotaMove> {
        let moves = self.moves.remove(&place).unwrap_or_default();
        let Some(time) = self.times.get(&place).copied() else { return Vec::new() };
        let before: Vec<Option<Part>> = moves.iter().map(|(at, _)| self.held[*at].1.clone()).collect();
        let grown = if is_stored { self.holding(&moves, time) } else { BTreeSet::new() };
        for at in grown {
            grow(&mut self.held[at].1, event);
        }
        let told = moves.into_iter().zip(before).map(|((at, quota), before)| {
            quota.between(event.meter.aggregation, before.as_ref(), self.held[at].1.as_ref())
        });
        told.collect()
    }

    /// The windows that hold what counts in these at this time: themselves, and of those that slide others of their kind.
    fn holding(&self, moves: &[(usize, QuotaMove)], time: Timestamp) -> BTreeSet<usize> {
        let mut holding: BTreeSet<usize> = moves.iter().map(|(at, _)| *at).collect();
        for (at, _) in moves {
            let alike = self.slides.get(&self.held[*at].0.way).into_iter().flatten().copied();
            holding.extend(alike.filter(|other| self.held[*other].0.window.contains(time)));
        }
        holding
    }
}
