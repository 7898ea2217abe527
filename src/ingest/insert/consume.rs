//! Atomic consumption in the hot insert: many decisions in one transaction. The subjects are locked in one order, so
//! any number of servers decide about a subject one after the other; within the batch the decisions follow in
//! memory, each seeing what the ones before it took. What is accepted then goes the way of every event.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use diesel::sql_types::{Array, BigInt};
use diesel::{PgConnection, RunQueryDsl};
use serde_json::value::RawValue;

use crate::db::columns::{quantity_of, uuid_of};
use crate::db::prepared::prepared;
use crate::db::{Conn, DbError};
use crate::entitlements::assignment::{AssignmentPeriod, assignment_for_event, not_before};
use crate::entitlements::consume::{Counted, UnreadableLimit, Verdict, judge};
use crate::entitlements::period::Period;
use crate::entitlements::plan::{Limit, Plan};
use crate::entitlements::sql::counters::{self, Range};
use crate::entitlements::sql::decisions::{self, Decided, Decision};
use crate::error::Error;
use crate::ingest::insert::quota::{ANY_METER, readable};
use crate::ingest::insert::{
    DecidedAt, ExistingKey, InsertBatch, LedgerKey, Outcome, WriteCache, keys::original_of, postgres, sqlite,
};
use crate::metering::calendar::Zone;
use crate::metering::event::{Event, ledger_key};
use crate::metering::quantity::Quantity;
use crate::metering::rollup::Part;
use crate::metering::stored::{StoredEvent, no_metadata, raw_metadata};
use crate::metering::time::{Timestamp, Window};

prepared!(
    LockSubjects for PgConnection,
    (ids: Array<BigInt> = Vec<i64>) -> BigInt,
    "SELECT id FROM subjects WHERE id = ANY(?) ORDER BY id FOR NO KEY UPDATE"
);

/// One consumption to decide.
struct Asked<'a> {
    /// Place of its batch.
    at: usize,
    key: LedgerKey,
    event: &'a Event,
    subject_id: i64,
    now: Timestamp,
    /// Decides about plan and period.
    at_time: Timestamp,
}

/// A window of a limit. Its period names its zone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct WindowKey {
    subject_id: i64,
    meter_id: i64,
    anchor: Timestamp,
    period: Period,
    from: Timestamp,
    to: Timestamp,
}

impl WindowKey {
    fn window(&self) -> Window {
        Window { from: self.from, to: self.to }
    }

    /// The window, and where it slides, all of its kind: those of others in the batch overlap it.
    fn alike(self) -> std::ops::RangeInclusive<WindowKey> {
        match self.period.horizon() {
            None => self.clone()..=self,
            Some(_) => {
                let (first, last) = (Timestamp(i64::MIN), Timestamp(i64::MAX));
                WindowKey { from: first, ..self.clone() }..=WindowKey { from: last, ..self }
            }
        }
    }

    fn range(&self) -> Range {
        Range::of((self.subject_id, self.meter_id), &self.period, self.anchor, &Zone::UTC, self.window())
    }
}

/// What the windows of a batch hold, as it grows with each decision; `None` where that cannot be read.
type Windows = BTreeMap<WindowKey, Option<Held>>;
/// Absent while nothing is counted.
type Held = Option<Part>;

impl<'a> InsertBatch<'a> {
    pub(super) fn decide(&mut self, conn: &mut Conn, known: &WriteCache) -> Result<(), DbError> {
        let asked = self.asked();
        if asked.is_empty() {
            return Ok(());
        }
        // before anything is read: of two consumptions of one subject the second sees what the first took
        self.lock_subjects(conn, &asked)?;
        let earlier = earlier_decisions(conn, &asked)?;
        let taken = taken_keys(conn, known, &asked)?;
        let mut new = Vec::with_capacity(asked.len());
        let mut keys: BTreeSet<LedgerKey> = BTreeSet::new();
        for asked in asked {
            if let Some(decision) = earlier.get(&asked.key) {
                // answered as it was decided then, whatever plan and usage say today
                let decided = replayed(decision.clone(), taken.get(&asked.key), Some(asked.event))?;
                self.decided[asked.at] = Some(Outcome::Decided(Box::new(decided)));
            } else if keys.insert(asked.key.clone()) {
                new.push(asked);
            } else {
                // the first of a key is decided now; the others come again and all find its decision
                self.decided[asked.at] = Some(Outcome::Retry);
            }
        }
        let asked = new;
        let mut windows = self.load_windows(conn, known, &asked)?;
        let mut made: Vec<(usize, Decision)> = Vec::with_capacity(asked.len());
        for asked in &asked {
            made.push((asked.at, self.decide_one(asked, taken.get(&asked.key), &mut windows)?));
        }
        let mut rows: Vec<&Decision> = made.iter().map(|(_, decision)| decision).collect();
        rows.sort_by_key(|decision| (decision.workspace_id, &decision.key));
        if !decisions::add(conn, &rows)? {
            // a subject without limits is not locked: another server used one of the keys meanwhile
            return Err(DbError::Retry);
        }
        for (at, decision) in made {
            if decision.accepted {
                self.decisions.insert(at, decision);
            } else {
                let decided = Decided { decision, event: None, replayed: false, conflict: false };
                self.decided[at] = Some(Outcome::Decided(Box::new(decided)));
            }
        }
        Ok(())
    }

    /// What is to be decided or answered again.
    fn asked(&self) -> Vec<Asked<'a>> {
        let mut asked: Vec<Asked<'a>> = Vec::new();
        for (at, batch) in self.open() {
            let (workspace_id, received_at) = (batch.origin.workspace_id, batch.received_at);
            let (Some(event), Some(decided_at)) = (batch.events.first(), batch.consumes) else { continue };
            let Some(key) = &event.key else { continue };
            let key = (workspace_id, ledger_key(key));
            let subject_id = self.subject_id(workspace_id, &event.subject);
            let now = self.now.unwrap_or(received_at);
            let at_time = match decided_at {
                DecidedAt::Now => self.histories.get(&subject_id).map_or(now, |spans| not_before(spans, now)),
                DecidedAt::EventTime => event.time,
            };
            asked.push(Asked { at, key, event, subject_id, now, at_time });
        }
        asked
    }

    /// The assignment a consumption counts for.
    fn span(&self, asked: &Asked) -> Option<&AssignmentPeriod> {
        assignment_for_event(self.histories.get(&asked.subject_id)?, asked.at_time)
    }

    fn plan(&self, asked: &Asked) -> Option<&Plan> {
        self.plans.get(&self.span(asked)?.plan_id).map(AsRef::as_ref)
    }

    /// Limits on the event's meter, each with the key of its window.
    fn limits<'w>(&'w self, asked: &'w Asked) -> impl Iterator<Item = (&'w Limit, WindowKey)> {
        let limits =
            self.span(asked).zip(self.plan(asked)).into_iter().flat_map(|(span, plan)| {
                plan.limits_of(asked.event.meter.id).map(move |limit| (span, limit))
            });
        limits.map(|(span, limit)| {
            let (subject_id, meter_id, anchor) = (asked.subject_id, asked.event.meter.id, span.anchor);
            let Window { from, to } = limit.period.window(anchor, &span.zone, asked.at_time);
            let period = limit.period.in_zone(&span.zone);
            (limit, WindowKey { subject_id, meter_id, anchor, period, from, to })
        })
    }

    /// Limits on the event's meter that cannot be read.
    fn unread(&self, asked: &Asked) -> impl Iterator<Item = UnreadableLimit> {
        let meter_id = asked.event.meter.id;
        let of_plan = self.span(asked).and_then(|span| self.unread.get(&span.plan_id));
        let of_meter =
            of_plan.into_iter().flatten().filter(move |(id, _)| [meter_id, ANY_METER].contains(id));
        of_meter.map(|(_, unread)| *unread)
    }

    /// Only where there is something to count; SQLite has one writer anyway.
    fn lock_subjects(&self, conn: &mut Conn, asked: &[Asked]) -> Result<(), DbError> {
        let Conn::Postgres(c) = conn else { return Ok(()) };
        let limited = asked.iter().filter(|asked| self.limits(asked).next().is_some());
        let ids: BTreeSet<i64> = limited.map(|asked| asked.subject_id).collect();
        if !ids.is_empty() {
            let _: Vec<i64> = LockSubjects { ids: &ids.into_iter().collect() }.load(c)?;
        }
        Ok(())
    }

    /// Reads the counters after the lock: a statement of its own sees what was committed while it waited.
    fn load_windows(&self, conn: &mut Conn, known: &WriteCache, asked: &[Asked]) -> Result<Windows, DbError> {
        let keys = asked.iter().flat_map(|asked| self.limits(asked).map(|(_, key)| key));
        let keys: Vec<WindowKey> = keys.collect::<BTreeSet<_>>().into_iter().collect();
        if keys.is_empty() {
            return Ok(BTreeMap::new());
        }
        let ranges: Vec<Range> = keys.iter().map(WindowKey::range).collect();
        let held: Vec<Option<Held>> = match readable(conn, known, |conn| counters::load(conn, &ranges))? {
            Some(held) => held.into_iter().map(Some).collect(),
            None => held_one_by_one(conn, known, &ranges)?,
        };
        Ok(keys.into_iter().zip(held).collect())
    }

    fn decide_one(
        &self,
        asked: &Asked,
        taken: Option<&ExistingKey>,
        windows: &mut Windows,
    ) -> Result<Decision, DbError> {
        let event = asked.event;
        let limits: Vec<_> = self.limits(asked).collect();
        let mut unread: Vec<UnreadableLimit> = self.unread(asked).collect();
        let mut counted: Vec<Counted> = Vec::with_capacity(limits.len());
        for (limit, key) in &limits {
            match windows.get(key).and_then(Option::as_ref) {
                Some(held) => {
                    let (period, window) = (key.period.clone(), key.window());
                    counted.push(Counted { limit, period, window, part: held.as_ref() });
                }
                None => {
                    let Limit { enforcement, failure_policy, .. } = **limit;
                    unread.push(UnreadableLimit { enforcement, failure_policy });
                }
            }
        }
        let verdict = judge(event, self.plan(asked), &counted, &unread, asked.now);
        // what is stored already takes no more room: its key is granted again
        let accepted = taken.is_some() || !verdict.refuses();
        if accepted && taken.is_none() {
            // the next one of this batch comes on top
            let part = Part::of(event.time, event.id, &event.quantity);
            let own: BTreeSet<WindowKey> = limits.into_iter().map(|(_, key)| key).collect();
            for key in own {
                count(windows, key, asked.at_time, &part);
            }
        }
        let event_id = taken.map_or(event.id, |taken| taken.event_id);
        let is_own = taken.is_none_or(|taken| taken.fingerprint == event.fingerprint);
        decision_of(asked, &verdict, accepted.then_some(event_id), is_own)
    }

    /// An ordinary write may have taken a key between our look at the ledger and our own claim; then what was decided
    /// here is not what is true.
    pub(super) fn check_decisions(&self) -> Result<(), DbError> {
        for (at, decision) in &self.decisions {
            let is_new = self.batches[*at]
                .events
                .first()
                .is_some_and(|event| decision.event_id.as_deref() == Some(event.id.as_bytes().as_slice()));
            if is_new == self.duplicates.contains_key(&(*at, 0)) {
                return Err(DbError::Retry);
            }
        }
        Ok(())
    }
}

/// Adds what was just accepted to the windows that hold this time.
fn count(windows: &mut Windows, key: WindowKey, at: Timestamp, part: &Part) {
    let slides = key.period.horizon().is_some();
    for (key, held) in windows.range_mut(key.alike()) {
        if slides && !key.window().contains(at) {
            continue;
        }
        match held {
            Some(Some(whole)) => whole.add(part),
            Some(empty) => *empty = Some(part.clone()),
            None => {}
        }
    }
}

/// What each range holds; a damaged one must not decide about the others.
fn held_one_by_one(
    conn: &mut Conn,
    known: &WriteCache,
    ranges: &[Range],
) -> Result<Vec<Option<Held>>, DbError> {
    let mut all = Vec::with_capacity(ranges.len());
    for range in ranges {
        let held = readable(conn, known, |conn| counters::load(conn, std::slice::from_ref(range)))?;
        all.push(held.map(|mut held| held.pop().flatten()));
    }
    Ok(all)
}

/// `is_own`: the event is the one that was asked for.
fn decision_of(
    asked: &Asked,
    verdict: &Verdict,
    event_id: Option<uuid::Uuid>,
    is_own: bool,
) -> Result<Decision, DbError> {
    let metadata = || asked.event.metadata.as_deref().map_or("{}", RawValue::get).to_owned();
    let quota = &verdict.quota;
    let (workspace_id, key) = asked.key.clone();
    Ok(Decision {
        workspace_id,
        key,
        idempotency_key: asked.event.key.clone().unwrap_or_default(),
        subject: quota.subject.clone(),
        meter: quota.meter.clone(),
        accepted: event_id.is_some(),
        evaluation_failed: verdict.evaluation_failed,
        enforcement: quota.enforcement.as_str().to_owned(),
        state: quota.state.to_owned(),
        event_id: event_id.map(|id| id.as_bytes().to_vec()),
        quota: serde_json::to_string(quota).map_err(Error::internal)?,
        created_at: asked.now.0,
        metadata: (event_id.is_some() && is_own).then(metadata),
    })
}

/// The decision that was made for a key, without a new body to go by.
pub fn replay(conn: &mut Conn, workspace_id: i64, key: &str) -> Result<Option<Decided>, DbError> {
    let Some(decision) = decisions::find(conn, workspace_id, key)? else { return Ok(None) };
    let taken = find_taken(conn, None, &[(workspace_id, decision.key.clone())])?.pop();
    replayed(decision, taken.as_ref(), None).map(Some)
}

/// What an idempotency key stands for.
pub struct KeyUse {
    pub event_id: String,
    pub event_time: Timestamp,
    /// `None` once retention took the event.
    pub event: Option<StoredEvent>,
}

/// What a key was used for, however long ago; one look into the ledger.
pub fn find_key(conn: &mut Conn, workspace_id: i64, key: &str) -> Result<Option<KeyUse>, DbError> {
    let taken = find_taken(conn, None, &[(workspace_id, ledger_key(key))])?.pop();
    Ok(taken.map(|taken| KeyUse {
        event_id: taken.event_id.to_string(),
        event_time: Timestamp(taken.event_time),
        event: taken.event,
    }))
}

fn replayed(
    decision: Decision,
    taken: Option<&ExistingKey>,
    retry: Option<&Event>,
) -> Result<Decided, DbError> {
    let event = match decision.accepted {
        true => Some(event_of(&decision, taken, retry)?),
        false => None,
    };
    let conflict = match retry {
        Some(retry) => !is_same(&decision, taken, retry)?,
        // its body is not even an event
        None => true,
    };
    Ok(Decided { decision, event, replayed: true, conflict })
}

/// Whether a retry asks for what was decided, as far as that is still known.
fn is_same(decision: &Decision, taken: Option<&ExistingKey>, retry: &Event) -> Result<bool, DbError> {
    if let Some(taken) = taken.filter(|_| decision.accepted) {
        return Ok(taken.fingerprint == retry.fingerprint);
    }
    let Consumed { subject, meter, quantity } =
        serde_json::from_str(&decision.quota).map_err(Error::internal)?;
    Ok(subject == retry.subject
        && meter == retry.meter.name
        && quantity_of(quantity.get())? == retry.quantity)
}

/// What an old decision still tells about its event.
#[derive(serde::Deserialize)]
struct Consumed {
    subject: String,
    meter: String,
    quantity: Box<RawValue>,
}

/// The event of an accepted decision, as it is stored. When retention took it, its fields come from the decision, if
/// that stored it; an event that had the key before is not known any more.
fn event_of(
    decision: &Decision,
    taken: Option<&ExistingKey>,
    retry: Option<&Event>,
) -> Result<StoredEvent, DbError> {
    if let Some(event) = taken.and_then(|taken| taken.event.clone()) {
        return Ok(event);
    }
    let earlier = taken.zip(retry).filter(|_| decision.metadata.is_none());
    let created_at = Timestamp(decision.created_at);
    // the id is a little younger than the decision that made it, or older than one that found it
    let received_at = taken.and_then(ExistingKey::received_at).map_or(created_at, |at| at.min(created_at));
    if let Some((taken, retry)) = earlier {
        return Ok(StoredEvent { received_at, ..original_of(taken, retry).event });
    }
    let Consumed { subject, meter, quantity } =
        serde_json::from_str(&decision.quota).map_err(Error::internal)?;
    let event = StoredEvent {
        id: uuid_of(decision.event_id.as_deref().unwrap_or_default())?.to_string(),
        idempotency_key: Some(decision.idempotency_key.clone()),
        subject,
        meter,
        quantity: quantity_of(quantity.get())?,
        timestamp: taken.map_or(received_at, |taken| Timestamp(taken.event_time)),
        received_at,
        metadata: raw_metadata(decision.metadata.clone()).unwrap_or_else(no_metadata),
        pruned: false,
        conflict: false,
        conflict_fields: Vec::new(),
    };
    Ok(match decision.metadata {
        Some(_) => event,
        None => StoredEvent {
            subject: taken.and_then(|taken| taken.subject.clone()).unwrap_or_default(),
            meter: String::new(),
            quantity: Quantity::zero(),
            pruned: true,
            ..event
        },
    })
}

fn earlier_decisions(conn: &mut Conn, asked: &[Asked]) -> Result<HashMap<LedgerKey, Decision>, DbError> {
    let mut keys: BTreeMap<i64, Vec<Vec<u8>>> = BTreeMap::new();
    for Asked { key: (workspace_id, key), .. } in asked {
        keys.entry(*workspace_id).or_default().push(key.clone());
    }
    let mut found = HashMap::new();
    for (workspace_id, keys) in keys {
        for decision in decisions::find_many(conn, workspace_id, &keys)? {
            found.insert((workspace_id, decision.key.clone()), decision);
        }
    }
    Ok(found)
}

fn taken_keys(
    conn: &mut Conn,
    known: &WriteCache,
    asked: &[Asked],
) -> Result<HashMap<LedgerKey, ExistingKey>, DbError> {
    let keys: Vec<LedgerKey> = asked.iter().map(|asked| asked.key.clone()).collect();
    Ok(find_taken(conn, Some(known), &keys)?.into_iter().map(|taken| (taken.key.clone(), taken)).collect())
}

fn find_taken(
    conn: &mut Conn,
    known: Option<&WriteCache>,
    keys: &[LedgerKey],
) -> Result<Vec<ExistingKey>, DbError> {
    match conn {
        Conn::Postgres(c) => postgres::find_taken(c, keys),
        Conn::Sqlite(c) => sqlite::find_taken(c, known.map(|known| &known.recent_keys), keys),
    }
}
