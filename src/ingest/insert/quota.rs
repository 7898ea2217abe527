//! Quotas in the hot insert: what the subjects of a batch are assigned to, their counters, and the evaluations that
//! follow. A workspace without assignments costs nothing here.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use diesel::connection::SimpleConnection;
use diesel::sql_types::{Array, BigInt, Nullable, Text};
use diesel::{PgConnection, RunQueryDsl, SqliteConnection};

use crate::db::prepared::prepared;
use crate::db::{Conn, DbError};
use crate::entitlements::assignment::{AssignmentPeriod, assignment_for_event};
use crate::entitlements::consume::UnreadableLimit;
use crate::entitlements::counting::{Counting, periods};
use crate::entitlements::jobs::Evaluation;
use crate::entitlements::period::Period;
use crate::entitlements::plan::Plan;
use crate::entitlements::sql::assignments::zone_of;
use crate::entitlements::sql::counters::{self, Key};
use crate::entitlements::sql::plans::{self, Damaged};
use crate::ingest::insert::{DecidedAt, InsertBatch, WriteCache};
use crate::jobs::queue::{self, NewJob};
use crate::metering::calendar::Zone;
use crate::metering::rollup::{Part, add_event};
use crate::metering::time::Timestamp;

prepared!(
    FindSpans for PgConnection,
    (subject_ids: Array<BigInt> = Vec<i64>) -> (BigInt, BigInt, BigInt, Nullable<BigInt>, BigInt, Text, BigInt),
    "SELECT subject_id, plan_id, starts_at, ends_at, anchor, time_zone, updated_at FROM plan_assignments
     WHERE subject_id = ANY(?) AND (ends_at IS NULL OR ends_at > starts_at)
     ORDER BY subject_id, starts_at, id"
);
prepared!(
    FindSpansOfOne for SqliteConnection,
    (subject_id: BigInt = i64) -> (BigInt, BigInt, BigInt, Nullable<BigInt>, BigInt, Text, BigInt),
    "SELECT subject_id, plan_id, starts_at, ends_at, anchor, time_zone, updated_at FROM plan_assignments
     WHERE subject_id = ? AND (ends_at IS NULL OR ends_at > starts_at)
     ORDER BY starts_at, id"
);

#[derive(diesel::Queryable)]
struct SpanRow {
    subject_id: i64,
    plan_id: i64,
    starts_at: i64,
    ends_at: Option<i64>,
    anchor: i64,
    time_zone: String,
    updated_at: i64,
}

/// Stands for all meters among the unread limits of a plan that is missing; no meter has this id.
pub(super) const ANY_METER: i64 = 0;

/// Reads something of which the failure concerns only those who asked for it: `None` when it is damaged, and the
/// transaction goes on. What another try of the whole transaction may mend stays an error.
pub(super) fn readable<T>(
    conn: &mut Conn,
    known: &WriteCache,
    read: impl FnOnce(&mut Conn) -> Result<T, DbError>,
) -> Result<Option<T>, DbError> {
    // a failed statement costs PostgreSQL the transaction, a savepoint costs two round trips: so only once it happened
    let careful = conn.is_postgres() && known.is_careful();
    if careful {
        conn.batch_execute("SAVEPOINT quota")?;
    }
    let fault = match read(conn) {
        Ok(value) => {
            if careful {
                conn.batch_execute("RELEASE SAVEPOINT quota")?;
            }
            return Ok(Some(value));
        }
        Err(fault) => fault,
    };
    if fault.will_pass() {
        return Err(fault);
    }
    log::error!(error:? = fault; "a quota cannot be evaluated");
    if careful {
        conn.batch_execute("ROLLBACK TO SAVEPOINT quota; RELEASE SAVEPOINT quota")?;
    } else if conn.is_postgres() && matches!(fault, DbError::Database(_)) {
        known.be_careful();
        return Err(DbError::Retry);
    }
    Ok(None)
}

/// By subject, meter and anchor.
type Countings = HashMap<(i64, i64, Timestamp), Counting>;

/// Where counted events went: one row of counters.
struct Touched {
    workspace_id: i64,
    received_at: Timestamp,
}

impl InsertBatch<'_> {
    /// Learns what the subjects are assigned to. What is remembered is right as long as the version of the workspace,
    /// read in this transaction, is the one it was read under (see `entitlements::sql::assignments`).
    pub(super) fn find_histories(&mut self, conn: &mut Conn, known: &WriteCache) -> Result<(), DbError> {
        let mut missing: BTreeMap<i64, i64> = BTreeMap::new();
        for ((workspace_id, _), subject_id) in &self.subjects {
            let version = self.assignment_versions.get(workspace_id).copied().unwrap_or_default();
            if version == 0 {
                continue;
            }
            match known.histories.get(subject_id) {
                Some((at, history)) if at == version => drop(self.histories.insert(*subject_id, history)),
                _ => drop(missing.insert(*subject_id, version)),
            }
        }
        if !missing.is_empty() {
            self.load_histories(conn, &missing)?;
        }
        self.find_plans(conn, known)
    }

    fn load_histories(&mut self, conn: &mut Conn, missing: &BTreeMap<i64, i64>) -> Result<(), DbError> {
        let rows: Vec<SpanRow> = match conn {
            Conn::Postgres(c) => FindSpans { subject_ids: &missing.keys().copied().collect() }.load(c)?,
            Conn::Sqlite(c) => {
                let mut rows = Vec::new();
                for subject_id in missing.keys() {
                    let some: Vec<SpanRow> = FindSpansOfOne { subject_id }.load(c)?;
                    rows.extend(some);
                }
                rows
            }
        };
        let mut found: BTreeMap<i64, Vec<AssignmentPeriod>> = BTreeMap::new();
        for row in rows {
            found.entry(row.subject_id).or_default().push(AssignmentPeriod {
                plan_id: row.plan_id,
                starts_at: Timestamp(row.starts_at),
                ends_at: row.ends_at.map(Timestamp),
                anchor: Timestamp(row.anchor),
                zone: zone_of(&row.time_zone),
                is_scheduled: row.starts_at > row.updated_at,
            });
        }
        for (subject_id, version) in missing {
            let history: Arc<[AssignmentPeriod]> = found.remove(subject_id).unwrap_or_default().into();
            self.learned.histories.push((*subject_id, (*version, history.clone())));
            self.histories.insert(*subject_id, history);
        }
        Ok(())
    }

    /// Plans never change once stored, so what is remembered of them is right.
    fn find_plans(&mut self, conn: &mut Conn, known: &WriteCache) -> Result<(), DbError> {
        let ids: BTreeSet<i64> =
            self.histories.values().flat_map(|h| h.iter().map(|span| span.plan_id)).collect();
        let mut missing = Vec::new();
        for id in ids {
            match known.plans.get(&id) {
                Some(plan) => drop(self.plans.insert(id, plan)),
                None => missing.push(id),
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let found = match readable(conn, known, |conn| plans::find_by_ids(conn, &missing))? {
            Some(found) => found,
            None => find_one_by_one(conn, known, &missing)?,
        };
        self.learned.plans.extend(found.values().cloned());
        self.plans.extend(found);
        for id in missing {
            if !self.plans.contains_key(&id) {
                self.find_damaged_plan(conn, id)?;
            }
        }
        Ok(())
    }

    /// Not remembered, so that a repair is noticed at once.
    fn find_damaged_plan(&mut self, conn: &mut Conn, id: i64) -> Result<(), DbError> {
        let Damaged { plan, mut unread } = plans::damaged(conn, id)?;
        log::error!(plan_id = id; "a plan cannot be read: its limits fail open or closed");
        match plan {
            Some(plan) => drop(self.plans.insert(id, plan.into())),
            // deleted meanwhile, and its assignments with it: look again at what the subject has
            None if !plans::is_assigned(conn, id)? => return Err(DbError::Retry),
            None => unread.push((ANY_METER, UnreadableLimit::UNKNOWN)),
        }
        self.unread.insert(id, unread);
        Ok(())
    }

    /// Counts the new events of assigned subjects, and asks for the evaluation of those whose plans limit the meter.
    pub(super) fn write_counters(&mut self, conn: &mut Conn) -> Result<(), DbError> {
        if self.histories.is_empty() {
            return Ok(());
        }
        let mut parts: BTreeMap<Key, Part> = BTreeMap::new();
        let mut touched: BTreeMap<Key, Touched> = BTreeMap::new();
        let mut counting: Countings = HashMap::new();
        for ((at, item), workspace_id, event) in self.pending_events() {
            if self.duplicates.contains_key(&(at, item)) {
                continue;
            }
            let subject_id = self.subject_id(workspace_id, &event.subject);
            let Some(history) = self.histories.get(&subject_id) else { continue };
            // a consumption counts where it was decided, or a timestamp would leave the period its limit is for
            let time = match self.batches[at].consumes {
                Some(DecidedAt::Now) => self.now.unwrap_or(event.received_at),
                _ => event.time,
            };
            let Some(span) = assignment_for_event(history, time) else { continue };
            let (meter_id, anchor) = (event.meter.id, span.anchor);
            let counting = counting
                .entry((subject_id, meter_id, anchor))
                .or_insert_with(|| Counting::of(periods(history, &self.plans, meter_id, anchor), anchor));
            for (series, day_start) in counting.cells(time) {
                let key = Key { subject_id, meter_id, anchor, series, day_start };
                touched.insert(key.clone(), Touched { workspace_id, received_at: event.received_at });
                add_event(&mut parts, key, event.time, event.id, &event.quantity);
            }
        }
        if parts.is_empty() {
            return Ok(());
        }
        counters::add(conn, &parts)?;
        self.enqueue_evaluations(conn, &touched, &counting)
    }

    fn enqueue_evaluations(
        &mut self,
        conn: &mut Conn,
        touched: &BTreeMap<Key, Touched>,
        counting: &Countings,
    ) -> Result<(), DbError> {
        let mut new: Vec<NewJob> = Vec::new();
        let mut now = Timestamp(0);
        for (key, Touched { workspace_id, received_at }) in touched {
            now = now.max(*received_at);
            let Some(counting) = counting.get(&(key.subject_id, key.meter_id, key.anchor)) else { continue };
            for evaluation in evaluations(counting.counted_in(&key.series), key, *received_at) {
                new.push(evaluation.job(*workspace_id, *received_at)?);
            }
        }
        self.learned.has_jobs |= !new.is_empty();
        queue::enqueue(conn, new, now)
    }
}

/// Plans, of which one that cannot be read must not keep the others from being read.
fn find_one_by_one(
    conn: &mut Conn,
    known: &WriteCache,
    ids: &[i64],
) -> Result<HashMap<i64, Arc<Plan>>, DbError> {
    let mut found = HashMap::new();
    for id in ids {
        found.extend(readable(conn, known, |conn| plans::find_by_ids(conn, &[*id]))?.unwrap_or_default());
    }
    Ok(found)
}

/// What has to be looked at again after events of this counter, which leads to windows of these periods: those that are
/// over, or the state now, which also finds out when windows to come begin.
fn evaluations(periods: &[Period], key: &Key, now: Timestamp) -> impl Iterator<Item = Evaluation> {
    let Key { subject_id, meter_id, anchor, day_start, .. } = *key;
    let is_over = |period: &Period| period.window(anchor, &Zone::UTC, day_start).to <= now;
    let over = periods.iter().any(|period| is_over(period) && period.has_snapshots());
    let open = periods.iter().any(|period| !is_over(period) || period.horizon().is_some());
    // a day of a calendar may begin before the subject has a plan
    let late_at = Some(day_start.max(anchor).0);
    let late = Evaluation { late_at, ..Evaluation::now(subject_id, meter_id) };
    let wanted = [open.then_some(Evaluation::now(subject_id, meter_id)), over.then_some(late)];
    wanted.into_iter().flatten()
}
