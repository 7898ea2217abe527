//! The hot insert: one transaction stores the events of many callers, their idempotency keys, rollups and ingestion
//! runs. The only file that writes events. Statements come in a fixed order and every batch of rows is sorted, so
//! that two writers never wait for each other in a circle.

mod activity;
mod cache;
mod consume;
pub mod expiry;
mod keys;
mod postgres;
mod quota;
mod rehearsal;
mod replays;
mod sqlite;
pub mod sums;

pub use cache::{CacheUpdates, WriteCache};
pub use consume::{KeyUse, find_key, replay};
pub use keys::count_new;
pub use rehearsal::{Seen, Windows, rehearse};
pub use replays::{PAYLOAD_UNKNOWN, sweep_replays};

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use diesel::sql_types::{BigInt, Bool, Integer, Text};
use uuid::Uuid;

use crate::alerts::jobs::MeterJob;
use crate::db::identity::{Link, new_id};
use crate::db::{Conn, DbError};
use crate::entitlements::assignment::AssignmentPeriod;
use crate::entitlements::consume::UnreadableLimit;
use crate::entitlements::plan::Plan;
use crate::entitlements::sql::decisions::{Decided, Decision};
use crate::ingest::origin::Origin;
use crate::jobs::queue;
use crate::metering::delta::{self, Delta};
use crate::metering::event::{DimensionSet, Event};
use crate::metering::rollup;
use crate::metering::stored::{Answered, Original, StoredEvent};
use crate::metering::time::Timestamp;
use crate::usage::subject_ids;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Single,
    Bulk,
    Stream,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Single => "single",
            Kind::Bulk => "bulk",
            Kind::Stream => "stream",
        }
    }
}

/// Whose time decides about a consumption: which plan is in force, and which period it counts in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecidedAt {
    /// The database's, so that no timestamp leads around a limit.
    Now,
    /// The event's own.
    EventTime,
}

/// What one caller wants stored, all of it or none of it.
#[derive(Clone, Debug)]
pub struct Batch {
    pub origin: Origin,
    pub kind: Kind,
    pub events: Vec<Event>,
    /// Items refused before they came here; counted in the ingestion run.
    pub failed: i64,
    /// The call's own idempotency key (bulk header, stream metadata).
    pub replay_key: Option<String>,
    pub received_at: Timestamp,
    /// One event with a key, stored only if the quota allows.
    pub consumes: Option<DecidedAt>,
}

/// What became of one batch.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// One entry per event: `None` when it was stored, else the event that already had its key.
    Stored(Vec<Option<Original>>),
    /// The call was answered before, with these lists; `conflict`: to other events.
    Replayed { accepted: Vec<StoredEvent>, duplicates: Vec<Answered>, conflict: bool },
    /// A consumption was granted or refused, now or before.
    Decided(Box<Decided>),
    /// A meter changed since the events were checked: check them again.
    Stale,
    /// Another batch of the same transaction uses the same replay key: try again in the next one.
    Retry,
}

/// Position of an event: batch and place in it.
type Place = (usize, usize);
/// A meter that is held until the commit.
#[derive(diesel::Queryable)]
struct MeterRow {
    id: i64,
    public_id: String,
    version: i32,
    /// Alert rules watch it.
    has_alerts: bool,
    workspace_id: i64,
    /// Of the assignments in its workspace.
    assignment_version: i64,
}

/// The SQL types of [`MeterRow`].
type MeterTypes = (BigInt, Text, Integer, Bool, BigInt, BigInt);

/// Workspace and ledger key.
type LedgerKey = (i64, Vec<u8>);
/// A key that was taken before, with the event it stands for as far as that is still stored.
struct ExistingKey {
    key: LedgerKey,
    event_id: Uuid,
    event_time: i64,
    fingerprint: i64,
    subject: Option<String>,
    /// `None` when the raw event was pruned.
    event: Option<StoredEvent>,
}

/// Stores the batches. `lane` is that of the writer's own rollup rows; `known` is of the link's epoch.
pub fn insert(
    conn: &mut Conn,
    link: Link,
    batches: &[Arc<Batch>],
    lane: i16,
    known: &WriteCache,
) -> Result<(Vec<Outcome>, CacheUpdates), DbError> {
    let mut work = InsertBatch::new(batches, lane);
    work.prepare(conn, link, known)?;
    work.store(conn, known)?;
    Ok(work.finish())
}

struct InsertBatch<'a> {
    batches: &'a [Arc<Batch>],
    lane: i16,
    /// Set once the fate of a whole batch is known.
    decided: Vec<Option<Outcome>>,
    subjects: HashMap<(i64, &'a str), i64>,
    /// By workspace; 0 while nothing was ever assigned.
    assignment_versions: HashMap<i64, i64>,
    /// By subject, where the workspace has assignments.
    histories: HashMap<i64, Arc<[AssignmentPeriod]>>,
    /// All plans of those histories.
    plans: HashMap<i64, Arc<Plan>>,
    /// Limits of those plans that cannot be read, by plan; each with its meter.
    unread: HashMap<i64, Vec<(i64, UnreadableLimit)>>,
    /// Of consumptions that go on to be stored, by batch.
    decisions: HashMap<usize, Decision>,
    /// Events whose key was taken, with what to answer.
    duplicates: HashMap<Place, Original>,
    learned: CacheUpdates,
    /// PostgreSQL: what time it is there. Its servers' clocks may differ, and what they decide must not.
    now: Option<Timestamp>,
    /// Something in the database tells whether what was learned still holds.
    is_vouched_for: bool,
    /// Meters that alert rules watch, as of this transaction: whoever adds or enables a rule waits for the meter's
    /// lock, which is held here.
    watched: BTreeSet<i64>,
}

impl<'a> InsertBatch<'a> {
    fn new(batches: &'a [Arc<Batch>], lane: i16) -> Self {
        InsertBatch {
            batches,
            lane,
            decided: batches.iter().map(|_| None).collect(),
            subjects: HashMap::new(),
            assignment_versions: HashMap::new(),
            histories: HashMap::new(),
            plans: HashMap::new(),
            unread: HashMap::new(),
            decisions: HashMap::new(),
            duplicates: HashMap::new(),
            learned: CacheUpdates::default(),
            now: None,
            is_vouched_for: true,
            watched: BTreeSet::new(),
        }
    }

    /// What has to be known before anything is decided.
    fn prepare(&mut self, conn: &mut Conn, link: Link, known: &WriteCache) -> Result<(), DbError> {
        self.drop_stale(conn, link, known)?;
        self.drop_replayed(conn)?;
        self.find_subjects(conn, known)?;
        self.find_histories(conn, known)
    }

    fn store(&mut self, conn: &mut Conn, known: &WriteCache) -> Result<(), DbError> {
        // refused consumptions must leave no key behind, so they are sorted out before keys are claimed; whether a granted
        // one is new shows only then
        self.decide(conn, known)?;
        self.claim_keys(conn, known)?;
        self.check_decisions()?;
        self.write_dimension_sets(conn, known)?;
        self.write_rows(conn, known)?;
        self.write_replays(conn)?;
        self.write_counters(conn)?;
        // last, because others share these rows
        self.ask_for_alerts(conn)
    }

    /// Batches that are still to be stored.
    fn open(&self) -> impl Iterator<Item = (usize, &'a Batch)> {
        let decided = &self.decided;
        self.batches
            .iter()
            .enumerate()
            .filter(|(at, _)| decided[*at].is_none())
            .map(|(at, batch)| (at, &**batch))
    }

    /// All events still to be stored, duplicates included.
    fn pending_events(&self) -> impl Iterator<Item = (Place, i64, &'a Event)> {
        self.open().flat_map(|(at, batch)| {
            batch
                .events
                .iter()
                .enumerate()
                .map(move |(item, event)| ((at, item), batch.origin.workspace_id, event))
        })
    }

    /// New events only.
    fn accepted(&self) -> impl Iterator<Item = (i64, &'a Event)> {
        let duplicates = &self.duplicates;
        self.pending_events()
            .filter(|(place, ..)| !duplicates.contains_key(place))
            .map(|(_, workspace_id, event)| (workspace_id, event))
    }

    fn subject_id(&self, workspace_id: i64, name: &str) -> i64 {
        // every subject of an open batch was looked up by find_subjects
        self.subjects.get(&(workspace_id, name)).copied().unwrap_or_default()
    }

    /// Locks the meters against change and deletion until the commit, and sets aside batches that were checked
    /// against an older definition.
    fn drop_stale(&mut self, conn: &mut Conn, link: Link, known: &WriteCache) -> Result<(), DbError> {
        let meter_ids: BTreeSet<i64> = self.pending_events().map(|(.., event)| event.meter.id).collect();
        let meter_ids: Vec<i64> = meter_ids.into_iter().collect();
        if meter_ids.is_empty() {
            return Ok(());
        }
        let found = match conn {
            Conn::Postgres(c) => {
                let (found, now) = postgres::hold_meters(c, link, &meter_ids)?;
                self.now = now;
                found
            }
            Conn::Sqlite(c) => sqlite::meter_versions(c, link, &known.watch, &meter_ids)?,
        };
        self.watched = found.iter().filter(|row| row.has_alerts).map(|row| row.id).collect();
        self.assignment_versions =
            found.iter().map(|row| (row.workspace_id, row.assignment_version)).collect();
        let held: HashMap<i64, MeterRow> = found.into_iter().map(|row| (row.id, row)).collect();
        for (at, batch) in self.batches.iter().enumerate() {
            // what is remembered of a meter may be of another database: all that makes it this meter is compared
            let is_held = |event: &Event| {
                held.get(&event.meter.id).is_some_and(|row| {
                    (row.version, row.workspace_id) == (event.meter.version, batch.origin.workspace_id)
                        && row.public_id == event.meter.public_id
                })
            };
            if !batch.events.iter().all(is_held) {
                self.decided[at] = Some(Outcome::Stale);
            }
        }
        Ok(())
    }

    fn find_subjects(&mut self, conn: &mut Conn, known: &WriteCache) -> Result<(), DbError> {
        let names: BTreeSet<(i64, &'a str)> = self
            .pending_events()
            .map(|(_, workspace_id, event)| (workspace_id, event.subject.as_str()))
            .collect();
        let mut missing = Vec::new();
        for &(workspace_id, name) in &names {
            let owned = (workspace_id, name.to_owned());
            match known.subjects.get(&owned) {
                Some(id) => drop(self.subjects.insert((workspace_id, name), id)),
                None => missing.push(owned),
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let found = subject_ids::find_or_add(conn, &missing)?;
        let ids: HashMap<(i64, &str), i64> =
            found.iter().map(|((workspace_id, name), id)| ((*workspace_id, name.as_str()), *id)).collect();
        self.subjects.extend(names.iter().filter_map(|name| Some((*name, *ids.get(name)?))));
        self.learned.subjects.extend(found);
        Ok(())
    }

    fn write_dimension_sets(&mut self, conn: &mut Conn, known: &WriteCache) -> Result<(), DbError> {
        let mut new: BTreeMap<(i64, [u8; 16]), &DimensionSet> = BTreeMap::new();
        for (_, event) in self.accepted() {
            let set = (event.meter.id, event.dimension_set.hash);
            if !known.dimension_sets.contains_key(&set) {
                new.insert(set, &event.dimension_set);
            }
        }
        if new.is_empty() {
            return Ok(());
        }
        match conn {
            Conn::Postgres(c) => postgres::add_dimension_sets(c, &new)?,
            Conn::Sqlite(c) => sqlite::add_dimension_sets(c, &new)?,
        }
        self.learned.dimension_sets.extend(new.into_keys());
        Ok(())
    }

    /// Events, rollups and ingestion runs, and when subjects were last seen.
    fn write_rows(&mut self, conn: &mut Conn, known: &WriteCache) -> Result<(), DbError> {
        let rows: Vec<EventRow> = self
            .accepted()
            .map(|(workspace_id, event)| EventRow {
                event,
                workspace_id,
                subject_id: self.subject_id(workspace_id, &event.subject),
            })
            .collect();
        let parts = rollup::of_events(rows.iter().map(|row| row.event));
        let deltas = DeltaRow::of_events(&rows);
        self.learned.unfolded = deltas.iter().map(|row| (row.meter_id, row.delta.size)).collect();
        let runs = self.runs();
        if !conn.is_postgres() {
            self.learned.run = runs.last().map(|run| (run.workspace_id, run.id));
            // a subject of a refused consumption, which leaves no run: nothing would tell that it is gone
            self.is_vouched_for = self.learned.run.is_some();
        }
        if rows.is_empty() && runs.is_empty() {
            return Ok(());
        }
        match conn {
            Conn::Postgres(c) => postgres::add_rows(c, &rows, &runs, &parts, &deltas, self.lane)?,
            Conn::Sqlite(c) => {
                sqlite::add_events(c, &rows)?;
                sqlite::add_runs(c, &runs)?;
                sqlite::add_rollups(c, &parts, self.lane)?;
                sqlite::add_deltas(c, &deltas)?;
                self.write_activity(c, known, &rows)?;
            }
        }
        Ok(())
    }

    fn runs(&self) -> Vec<RunRow> {
        let mut runs: BTreeMap<(i64, Uuid), RunRow> = BTreeMap::new();
        for (at, batch) in self.batches.iter().enumerate() {
            let total = batch.events.len() as i64;
            let duplicates = match &self.decided[at] {
                Some(Outcome::Replayed { .. }) => total,
                Some(Outcome::Decided(decided)) if decided.replayed && decided.decision.accepted => total,
                Some(_) => continue,
                None => {
                    let is_duplicate = |item: &usize| self.duplicates.contains_key(&(at, *item));
                    (0..batch.events.len()).filter(is_duplicate).count() as i64
                }
            };
            let run = runs
                .entry((batch.origin.workspace_id, batch.origin.run_id))
                .or_insert_with(|| RunRow::of(batch));
            run.accepted += total - duplicates;
            run.duplicates += duplicates;
            run.failed += batch.failed;
        }
        runs.into_values().collect()
    }

    /// At most one request per watched meter, however many events and rules there are.
    fn ask_for_alerts(&mut self, conn: &mut Conn) -> Result<(), DbError> {
        if self.watched.is_empty() {
            return Ok(());
        }
        let now = Timestamp::now();
        let mut wanted = BTreeMap::new();
        for (workspace_id, event) in self.accepted().filter(|(_, e)| self.watched.contains(&e.meter.id)) {
            let meter = &event.meter;
            if let std::collections::btree_map::Entry::Vacant(free) = wanted.entry(meter.id) {
                free.insert(MeterJob::usage(workspace_id, meter.id, &meter.name, self.lane, now)?);
            }
        }
        self.learned.has_jobs = !wanted.is_empty();
        queue::enqueue(conn, wanted.into_values().collect(), now)
    }

    fn finish(mut self) -> (Vec<Outcome>, CacheUpdates) {
        let outcomes = self
            .batches
            .iter()
            .enumerate()
            .map(|(at, batch)| match self.decided[at].take() {
                Some(outcome) => outcome,
                None if batch.consumes.is_some() => {
                    let event = batch.events.first().map(StoredEvent::of);
                    let original = self.duplicates.remove(&(at, 0));
                    // the key outlives its decision: what was stored before is told from the ledger
                    let replayed = original.is_some();
                    let conflict = original.as_ref().is_some_and(|original| original.conflict);
                    let event = original.map(|original| original.event).or(event);
                    match self.decisions.remove(&at) {
                        Some(decision) => {
                            Outcome::Decided(Box::new(Decided { decision, event, replayed, conflict }))
                        }
                        None => Outcome::Retry,
                    }
                }
                None => {
                    let items = 0..batch.events.len();
                    Outcome::Stored(items.map(|item| self.duplicates.remove(&(at, item))).collect())
                }
            })
            .collect();
        if !self.is_vouched_for {
            let CacheUpdates { has_jobs, unfolded, .. } = self.learned;
            self.learned = CacheUpdates { has_jobs, unfolded, ..CacheUpdates::default() };
        }
        (outcomes, self.learned)
    }
}

struct KeyRow {
    workspace_id: i64,
    key: Vec<u8>,
    event_id: Uuid,
    subject_id: i64,
    event_time: i64,
    fingerprint: i64,
}

struct EventRow<'a> {
    event: &'a Event,
    workspace_id: i64,
    subject_id: i64,
}

/// What a commit adds to a meter.
struct DeltaRow {
    meter_id: i64,
    id: i64,
    delta: Delta,
}

impl DeltaRow {
    fn of_events(rows: &[EventRow]) -> Vec<DeltaRow> {
        let deltas = delta::of_events(rows.iter().map(|row| (row.event, row.subject_id)));
        deltas.into_iter().map(|(meter_id, delta)| DeltaRow { meter_id, id: new_id(), delta }).collect()
    }
}

struct RunRow {
    workspace_id: i64,
    id: Uuid,
    kind: Kind,
    accepted: i64,
    duplicates: i64,
    failed: i64,
    created_at: i64,
    request_id: Option<String>,
    api_key_id: Option<String>,
    duration: i64,
}

impl RunRow {
    fn of(batch: &Batch) -> Self {
        RunRow {
            workspace_id: batch.origin.workspace_id,
            id: batch.origin.run_id,
            kind: batch.kind,
            accepted: 0,
            duplicates: 0,
            failed: 0,
            created_at: batch.received_at.0,
            request_id: batch.origin.request_id.clone(),
            api_key_id: batch.origin.api_key_id.clone(),
            duration: batch.origin.duration(),
        }
    }
}
