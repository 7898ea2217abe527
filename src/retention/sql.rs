//! Deleting what is past retention, in steps that each fit one short transaction, and the record of it. A step
//! moves the watermark of its meter together with the rows it deletes: what lies at or after the watermark is
//! complete in `events` at every instant, and totals of what lies before come from rollups.

use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Bool, Nullable, Text};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::both;
use crate::db::columns::{readable, uuid_of};
use crate::db::schema::{events, meters, prune_runs};
use crate::db::{Conn, DbError, leases};
use crate::error::Error;
use crate::ingest::insert::expiry;
use crate::metering::delta::Counts;
use crate::metering::time::{DAY, HOUR, Timestamp};
use crate::usage::fold;
use crate::usage::subjects::whole_from;

/// Rows deleted in one transaction.
pub const BATCH_ROWS: i64 = 1000;

/// A meter and the instant before which its events are past retention.
#[derive(Clone, Debug)]
pub struct Expiring {
    pub id: i64,
    pub name: String,
    pub before: i64,
    /// Whether there is anything to delete.
    pub is_due: bool,
}

#[derive(QueryableByName)]
struct MeterRow {
    #[diesel(sql_type = BigInt)]
    id: i64,
    #[diesel(sql_type = Text)]
    name: String,
    #[diesel(sql_type = BigInt)]
    before: i64,
    #[diesel(sql_type = Bool)]
    is_kept: bool,
}

/// Aggregations that are made of the events themselves: those of their meters stay.
pub const KEPT: &str = "'unique_count', 'percentile', 'weighted_sum', 'latest_sum', 'stddev'";

/// All meters of a workspace by name. Events are asked for meter by meter: they may lie on other nodes.
pub fn expiring(conn: &mut Conn, workspace_id: i64, now: Timestamp) -> Result<Vec<Expiring>, DbError> {
    let text = format!(
        "-- retention::expiring
         SELECT id, name, $1 - event_retention_days * {DAY} AS before, aggregation IN ({KEPT}) AS is_kept
         FROM meters WHERE workspace_id = $2 ORDER BY name"
    );
    let rows: Vec<MeterRow> =
        sql_query(text).bind::<BigInt, _>(now.0).bind::<BigInt, _>(workspace_id).load(conn)?;
    let of_row = |MeterRow { id, name, before, is_kept }| {
        let is_due = !is_kept && has_events_before(conn, id, before)?;
        Ok(Expiring { id, name, before, is_due })
    };
    rows.into_iter().map(of_row).collect()
}

fn has_events_before(conn: &mut Conn, meter_id: i64, before: i64) -> Result<bool, DbError> {
    let found: Option<i64> = events::table
        .filter(events::meter_id.eq(meter_id).and(events::event_time.lt(before)))
        .select(events::event_time)
        .first(conn)
        .optional()?;
    Ok(found.is_some())
}

#[derive(QueryableByName)]
struct PageRow {
    #[diesel(sql_type = BigInt)]
    id: i64,
    #[diesel(sql_type = BigInt)]
    cutoff: i64,
    /// Rollups count the hours from here ...
    #[diesel(sql_type = BigInt)]
    hours_from: i64,
    /// ... to here.
    #[diesel(sql_type = BigInt)]
    hours_to: i64,
    #[diesel(sql_type = BigInt)]
    counted: i64,
}

/// How many stored events of each meter are past retention: whole hours from rollups, the rest one by one.
pub fn count(conn: &mut Conn, workspace_id: i64, now: Timestamp) -> Result<Vec<(i64, i64)>, DbError> {
    let text = format!(
        "-- retention::count
         WITH page AS (
             SELECT id, cutoff, cutoff - ((cutoff % {HOUR}) + {HOUR}) % {HOUR} AS hours_to, hours_from
             FROM (SELECT id, $1 - event_retention_days * {DAY} AS cutoff, {} AS hours_from
                   FROM meters WHERE workspace_id = $2 AND aggregation NOT IN ({KEPT})) AS m
         )
         SELECT p.id, p.cutoff, p.hours_from, p.hours_to, CAST(
             COALESCE((SELECT SUM(r.event_count) FROM rollups r
                       WHERE r.meter_id = p.id AND r.grain = 1
                         AND r.start >= p.hours_from AND r.start < p.hours_to), 0) AS BIGINT) AS counted
         FROM page p",
        whole_from(HOUR),
    );
    let rows: Vec<PageRow> =
        sql_query(text).bind::<BigInt, _>(now.0).bind::<BigInt, _>(workspace_id).load(conn)?;
    let of_row = |row: PageRow| {
        let early = events_between(conn, row.id, i64::MIN, row.hours_from.min(row.cutoff))?;
        let late = events_between(conn, row.id, row.hours_from.max(row.hours_to), row.cutoff)?;
        Ok((row.id, row.counted + early + late))
    };
    rows.into_iter().map(of_row).collect()
}

/// What a prune would find now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Past {
    /// Every meter with events that are past retention, by name.
    pub meters: Vec<String>,
    /// Counted no further than to one more than was asked for.
    pub events: i64,
}

/// Looks at what is past retention, and counts the events up to a bound, so that it costs the same whatever is stored.
pub fn past(conn: &mut Conn, workspace_id: i64, now: Timestamp, most: i64) -> Result<Past, DbError> {
    let mut past = Past { meters: Vec::new(), events: 0 };
    for meter in expiring(conn, workspace_id, now)?.into_iter().filter(|meter| meter.is_due) {
        past.events += some_before(conn, meter.id, meter.before, most + 1 - past.events)?;
        past.meters.push(meter.name);
    }
    Ok(past)
}

#[derive(QueryableByName)]
struct Counted {
    #[diesel(sql_type = BigInt)]
    count: i64,
}

/// How many events of a meter came before an instant, at most this many.
fn some_before(conn: &mut Conn, meter_id: i64, before: i64, most: i64) -> Result<i64, DbError> {
    if most <= 0 {
        return Ok(0);
    }
    let text = "-- retention::some_before
        SELECT COUNT(*) AS count
          FROM (SELECT 1 FROM events WHERE meter_id = $1 AND event_time < $2 LIMIT $3) AS past";
    let query = sql_query(text).bind::<BigInt, _>(meter_id).bind::<BigInt, _>(before);
    let counted: Counted = query.bind::<BigInt, _>(most).get_result(conn)?;
    Ok(counted.count)
}

fn events_between(conn: &mut Conn, meter_id: i64, from: i64, to: i64) -> Result<i64, DbError> {
    if from >= to {
        return Ok(0);
    }
    let time = events::event_time.ge(from).and(events::event_time.lt(to));
    Ok(events::table.filter(events::meter_id.eq(meter_id).and(time)).count().get_result(conn)?)
}

#[derive(QueryableByName)]
struct Gone {
    #[diesel(sql_type = BigInt)]
    subject_id: i64,
    #[diesel(sql_type = BigInt)]
    event_time: i64,
}

/// Deletes the keys of a piece of the ledger whose events came before an instant. 409 when the lease was lost.
pub fn expire_keys(
    conn: &mut Conn,
    (lease, holder): (&str, &str),
    mark: &expiry::Mark,
    before: Timestamp,
) -> Result<expiry::Step, DbError> {
    if !leases::renew(conn, lease, holder)? {
        return Err(Error::conflict("another clean-up took over").into());
    }
    expiry::step(conn, mark, before)
}

/// What one step came to.
pub struct Step {
    pub deleted: i64,
    /// Where the next step starts; `None` after the last one.
    pub next: Option<Timestamp>,
}

/// Deletes the oldest events of a meter in `[from, before)`, at most [`BATCH_ROWS`]. 409 when the lease was lost.
pub fn delete_step(
    conn: &mut Conn,
    (lease, holder): (&str, &str),
    meter_id: i64,
    from: Timestamp,
    before: Timestamp,
) -> Result<Step, DbError> {
    if !leases::renew(conn, lease, holder)? {
        return Err(Error::conflict("another prune took over").into());
    }
    let text = if conn.is_postgres() {
        "-- retention::delete_step
         WITH old AS (
             SELECT subject_id, event_time, id FROM events
             WHERE meter_id = $1 AND event_time >= $2 AND event_time < $3 ORDER BY event_time, id LIMIT $4
         )
         DELETE FROM events e USING old
         WHERE e.subject_id = old.subject_id AND e.event_time = old.event_time AND e.id = old.id
           AND e.event_time >= $2 AND e.event_time < $3
         RETURNING e.subject_id, e.event_time"
    } else {
        "DELETE FROM events WHERE rowid IN (
             SELECT rowid FROM events
             WHERE meter_id = $1 AND event_time >= $2 AND event_time < $3 ORDER BY event_time, id LIMIT $4)
         RETURNING subject_id, event_time"
    };
    let gone: Vec<Gone> = sql_query(text)
        .bind::<BigInt, _>(meter_id)
        .bind::<BigInt, _>(from.0)
        .bind::<BigInt, _>(before.0)
        .bind::<BigInt, _>(BATCH_ROWS)
        .load(conn)?;
    let Some(last) = gone.iter().map(|row| row.event_time).max() else {
        return Ok(Step { deleted: 0, next: None });
    };
    set_pruned_before(conn, &[meter_id], Timestamp(last.saturating_add(1)))?;
    let mut pruned = Counts::new();
    for row in &gone {
        pruned.entry(row.subject_id).or_default().events -= 1;
    }
    fold::uncount(conn, meter_id, &pruned)?;
    let deleted = gone.len() as i64;
    Ok(Step { deleted, next: (deleted == BATCH_ROWS).then_some(Timestamp(last)) })
}

/// Moves the watermark of meters forward, never back.
pub fn set_pruned_before(conn: &mut Conn, meter_ids: &[i64], at: Timestamp) -> Result<(), DbError> {
    let is_earlier = meters::pruned_before.is_null().or(meters::pruned_before.lt(at.0));
    diesel::update(meters::table.filter(meters::id.eq_any(meter_ids)).filter(is_earlier))
        .set(meters::pruned_before.eq(at.0))
        .execute(conn)?;
    Ok(())
}

/// Workspaces that have meters, by id.
pub fn workspaces(conn: &mut Conn) -> Result<Vec<i64>, DbError> {
    let ids = meters::table.select(meters::workspace_id).distinct().order(meters::workspace_id);
    Ok(ids.load(conn)?)
}

/// What one run did to one meter.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PrunedMeter {
    pub meter: String,
    /// The cut-off, in microseconds.
    pub before: i64,
    pub deleted: i64,
}

/// A recorded run.
#[derive(Clone, Debug)]
pub struct PruneRun {
    pub id: Uuid,
    pub deleted: i64,
    pub dry_run: bool,
    pub meters: Vec<PrunedMeter>,
    pub created_at: Timestamp,
}

#[derive(Insertable, Queryable, Selectable)]
#[diesel(table_name = prune_runs, treat_none_as_default_value = false)]
struct RunRow {
    workspace_id: i64,
    id: Vec<u8>,
    deleted: i64,
    dry_run: bool,
    meters: String,
    created_at: i64,
}

impl RunRow {
    fn into_run(self) -> Result<PruneRun, DbError> {
        Ok(PruneRun {
            id: uuid_of(&self.id)?,
            deleted: self.deleted,
            dry_run: self.dry_run,
            // what was deleted is known all the same
            meters: readable("prune_runs", self.created_at, serde_json::from_str(&self.meters))
                .unwrap_or_default(),
            created_at: Timestamp(self.created_at),
        })
    }
}

/// Records a run.
pub fn add_run(conn: &mut Conn, workspace_id: i64, run: &PruneRun) -> Result<(), DbError> {
    let row = RunRow {
        workspace_id,
        id: run.id.as_bytes().to_vec(),
        deleted: run.deleted,
        dry_run: run.dry_run,
        meters: serde_json::to_string(&run.meters).map_err(Error::internal)?,
        created_at: run.created_at.0,
    };
    both!(conn, c => diesel::insert_into(prune_runs::table).values(&row).execute(c)?);
    Ok(())
}

/// Runs of a workspace, newest first, older than `before`. The ids grow with time.
pub fn runs(
    conn: &mut Conn,
    workspace_id: i64,
    before: Option<Uuid>,
    limit: i64,
) -> Result<Vec<PruneRun>, DbError> {
    let before = before.unwrap_or(Uuid::max()).as_bytes().to_vec();
    let rows: Vec<RunRow> = prune_runs::table
        .filter(prune_runs::workspace_id.eq(workspace_id).and(prune_runs::id.lt(before)))
        .order(prune_runs::id.desc())
        .limit(limit)
        .select(RunRow::as_select())
        .load(conn)?;
    rows.into_iter().map(RunRow::into_run).collect()
}

#[derive(QueryableByName)]
struct Oldest {
    #[diesel(sql_type = Nullable<BigInt>)]
    oldest_at: Option<i64>,
}

/// When the oldest event happened that is stored: one look at an index for each meter.
pub fn oldest_event(conn: &mut Conn) -> Result<Option<Timestamp>, DbError> {
    let text = "-- retention::sql::oldest_event
        SELECT MIN(found_at) AS oldest_at FROM (
            SELECT (SELECT MIN(e.event_time) FROM events e WHERE e.meter_id = m.id) AS found_at FROM meters m
        ) AS found";
    let oldest: Oldest = sql_query(text).get_result(conn)?;
    Ok(oldest.oldest_at.map(Timestamp))
}
