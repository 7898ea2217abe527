//! Background work as rows: enqueue inside the transaction that makes it necessary, claim with a lease, finish only
//! as the holder of the lease. One mechanism for every queue. A job is named by (queue, key); asking for it again
//! while it waits changes nothing but brings it forward, asking while it runs makes it run once more.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::time::Instant;

use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{Array, BigInt, Binary, Bool, Integer, Nullable, Text};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::chance;
use crate::clock;
use crate::db::prepared::prepared;
use crate::db::schema::{dead_letters, jobs};
use crate::db::statement::Statement;
use crate::db::{Conn, DbError};
use crate::error::{Error, Result};
use crate::jobs::dead_letters::DeadLetter;
use crate::jobs::instances::Instance;
use crate::metering::time::Timestamp;

/// Work to be done at `run_after` or soon after.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NewJob {
    pub queue: &'static str,
    /// Unique in the queue; ids, never names that a client chose.
    pub key: String,
    pub workspace_id: i64,
    /// JSON.
    pub payload: String,
    pub run_after: Timestamp,
}

impl NewJob {
    pub fn new<P: Serialize>(
        queue: &'static str,
        key: impl Into<String>,
        workspace_id: i64,
        payload: &P,
        run_after: Timestamp,
    ) -> Result<Self> {
        let payload = serde_json::to_string(payload).map_err(Error::internal)?;
        Ok(NewJob { queue, key: key.into(), workspace_id, payload, run_after })
    }
}

/// A job as its worker holds it.
#[derive(Clone, Debug)]
pub struct Job {
    pub queue: String,
    pub key: String,
    pub workspace_id: i64,
    pub payload: String,
    pub generation: i64,
    /// This one included.
    pub attempts: i32,
    pub created_at: i64,
    /// From a holder that neither finished it nor gave it back in time.
    pub taken_over: bool,
    /// Whatever was committed with an enqueue that this claim stands for can be read from this moment on.
    pub claimed: Instant,
}

#[derive(QueryableByName)]
struct ClaimedRow {
    #[diesel(sql_type = Text)]
    queue: String,
    #[diesel(sql_type = Text)]
    key: String,
    #[diesel(sql_type = BigInt)]
    workspace_id: i64,
    #[diesel(sql_type = Text)]
    payload: String,
    #[diesel(sql_type = BigInt)]
    generation: i64,
    #[diesel(sql_type = Integer)]
    attempts: i32,
    #[diesel(sql_type = BigInt)]
    created_at: i64,
    #[diesel(sql_type = Bool)]
    taken_over: bool,
}

impl From<ClaimedRow> for Job {
    fn from(row: ClaimedRow) -> Self {
        let ClaimedRow { queue, key, workspace_id, payload, generation, attempts, created_at, taken_over } =
            row;
        let claimed = clock::moment();
        Job { queue, key, workspace_id, payload, generation, attempts, created_at, taken_over, claimed }
    }
}

impl Job {
    pub fn payload<P: DeserializeOwned>(&self) -> Result<P> {
        serde_json::from_str(&self.payload).map_err(Error::internal)
    }
}

/// Proves who holds a job; a new one for every claim.
pub type LeaseToken = [u8; 16];

prepared!(
    EnqueueMany for PgConnection,
    (now: BigInt = i64, scheduled_at: BigInt = i64, queues: Array<Text> = Vec<&'a str>, keys: Array<Text> = Vec<&'a str>,
     workspace_ids: Array<BigInt> = Vec<i64>, payloads: Array<Text> = Vec<&'a str>,
     run_afters: Array<BigInt> = Vec<i64>),
    "INSERT INTO jobs AS j (queue, key, workspace_id, payload, run_after, created_at, scheduled_at, generation, attempts)
     SELECT n.*, ?::bigint, ?::bigint, 0, 0 FROM (SELECT * FROM unnest(?, ?, ?, ?, ?)) AS n
     ON CONFLICT (queue, key) DO UPDATE SET
         generation = j.generation + 1,
         run_after = CASE WHEN j.leased_until >= excluded.created_at THEN excluded.run_after
                          ELSE least(j.run_after, excluded.run_after) END,
         scheduled_at = excluded.scheduled_at, workspace_id = excluded.workspace_id, payload = excluded.payload"
);
prepared!(
    EnqueueOne for SqliteConnection,
    (queue: Text = &'a str, key: Text = String, workspace_id: BigInt = i64, payload: Text = String,
     run_after: BigInt = i64, now: BigInt = i64, scheduled_at: BigInt = i64),
    "INSERT INTO jobs AS j (queue, key, workspace_id, payload, run_after, created_at, scheduled_at, generation, attempts)
     VALUES (?, ?, ?, ?, ?, ?, ?, 0, 0)
     ON CONFLICT (queue, key) DO UPDATE SET
         generation = j.generation + 1,
         run_after = CASE WHEN j.leased_until >= excluded.created_at THEN excluded.run_after
                          ELSE min(j.run_after, excluded.run_after) END,
         scheduled_at = excluded.scheduled_at, workspace_id = excluded.workspace_id, payload = excluded.payload"
);

/// Adds jobs within the caller's transaction; at most one per (queue, key) in one call. Rows are taken in key order,
/// so that two writers cannot wait for each other in a circle. A job that runs is run again at the time asked for,
/// which is how a `run_after` in the near future keeps a busy key from running without pause.
pub fn enqueue(conn: &mut Conn, mut new: Vec<NewJob>, now: Timestamp) -> Result<(), DbError> {
    if new.is_empty() {
        return Ok(());
    }
    new.sort();
    new.dedup_by(|a, b| (a.queue, &a.key) == (b.queue, &b.key));
    match conn {
        Conn::Postgres(c) => {
            EnqueueMany {
                now: &now.0,
                scheduled_at: &now.0,
                queues: &new.iter().map(|job| job.queue).collect(),
                keys: &new.iter().map(|job| job.key.as_str()).collect(),
                workspace_ids: &new.iter().map(|job| job.workspace_id).collect(),
                payloads: &new.iter().map(|job| job.payload.as_str()).collect(),
                run_afters: &new.iter().map(|job| job.run_after.0).collect(),
            }
            .execute(c)?;
        }
        Conn::Sqlite(c) => {
            for NewJob { queue, key, workspace_id, payload, run_after } in &new {
                let (run_after, now, scheduled_at) = (&run_after.0, &now.0, &now.0);
                EnqueueOne { queue, key, workspace_id, payload, run_after, now, scheduled_at }.execute(c)?;
            }
        }
    }
    Ok(())
}

/// How jobs are taken.
#[derive(Clone, Copy, Debug)]
pub struct Claim<'a> {
    pub queue: &'a str,
    pub token: &'a LeaseToken,
    pub now: Timestamp,
    pub until: Timestamp,
    pub limit: i64,
    /// Workspaces take turns, and at most this many jobs of each are held at once, by all workers together.
    pub per_workspace: Option<i64>,
    /// Leases that have ended are left alone.
    pub only_unleased: bool,
}

fn is_free(only_unleased: bool) -> &'static str {
    if only_unleased { "leased_until IS NULL" } else { "(leased_until IS NULL OR leased_until < $2)" }
}

/// The longest due first. `$1` is the queue, `$2` the time.
const BY_AGE: &str = "SELECT jobs.queue, jobs.key FROM jobs
    WHERE queue = $1 AND run_after <= $2 AND FREE ORDER BY run_after, created_at";
/// First one of each workspace, then a second of each; what a workspace has running counts.
const BY_TURN: &str = "SELECT jobs.queue, jobs.key FROM jobs JOIN (
        SELECT f.key, f.run_after, f.created_at, COALESCE(h.held, 0)
               + ROW_NUMBER() OVER (PARTITION BY f.workspace_id ORDER BY f.run_after, f.created_at) AS turn
        FROM jobs f LEFT JOIN (
            SELECT workspace_id, COUNT(*) AS held FROM jobs WHERE queue = $1 AND leased_until >= $2 GROUP BY workspace_id
        ) h ON h.workspace_id = f.workspace_id
        WHERE f.queue = $1 AND f.run_after <= $2 AND FREE
    ) t ON t.key = jobs.key
    WHERE jobs.queue = $1 AND jobs.run_after <= $2 AND FREE AND t.turn <= MOST
    ORDER BY t.turn, t.run_after, t.created_at";

/// Workspaces that one claim looks at for something due: each costs two looks at an index.
const TURNS: i64 = 32;
/// The workspaces that have jobs, in the order of their ids: those behind BEHIND first, then from the smallest on, round
/// to where it began.
const ROUND: &str = "RECURSIVE round (place, workspace_id, begun) AS (
        SELECT 1, n.id, n.id FROM (SELECT COALESCE(
            (SELECT MIN(workspace_id) FROM jobs WHERE queue = $1 AND workspace_id > BEHIND),
            (SELECT MIN(workspace_id) FROM jobs WHERE queue = $1)) AS id) n
        UNION ALL
        SELECT place + 1, COALESCE(
            (SELECT MIN(j.workspace_id) FROM jobs j WHERE j.queue = $1 AND j.workspace_id > round.workspace_id),
            (SELECT MIN(j.workspace_id) FROM jobs j WHERE j.queue = $1)), begun
        FROM round WHERE place < TURNS AND NOT (place > 1 AND workspace_id = begun)
    )";
/// What has been due for longest in each of them.
const HEADS: &str = "heads AS MATERIALIZED (
        SELECT place, (SELECT j.key FROM jobs j WHERE j.queue = $1 AND j.workspace_id = round.workspace_id
                       AND j.run_after <= $2 AND FREE ORDER BY j.run_after LIMIT 1) AS key
        FROM round WHERE NOT (place > 1 AND workspace_id = begun)
    )";
const BY_HEAD: &str =
    "SELECT jobs.queue, jobs.key FROM heads JOIN jobs ON jobs.queue = $1 AND jobs.key = heads.key
    WHERE FREE ORDER BY heads.place";

fn round(behind: i64) -> String {
    ROUND.replace("BEHIND", &behind.to_string()).replace("TURNS", &TURNS.to_string())
}

/// Takes due jobs of a queue; other workers' jobs are skipped.
pub fn claim(conn: &mut Conn, claim: &Claim) -> Result<Vec<Job>, DbError> {
    match claim.per_workspace {
        None => take(conn, claim, "", BY_AGE, claim.limit),
        Some(most) => take(conn, claim, "", &BY_TURN.replace("MOST", &most.to_string()), claim.limit),
    }
}

/// As [`claim`], one job of each workspace behind this one, and what is left over of the limit by age: however much one
/// workspace asks for, others wait for as many jobs as there are workspaces, and one that is alone has every place. Costs
/// the same however much is due. Returns whose turn it was last.
pub fn claim_in_turn(conn: &mut Conn, claim: &Claim, behind: i64) -> Result<(Vec<Job>, i64), DbError> {
    let with = format!("{}, {HEADS},", round(behind));
    let mut jobs = take(conn, claim, &with, BY_HEAD, claim.limit)?;
    let last = jobs.iter().map(|job| job.workspace_id).max_by_key(|id| (*id <= behind, *id));
    let last = match last {
        Some(last) => last,
        // nothing is due in any of them, but maybe in those behind
        None => last_looked_at(conn, claim.queue, behind)?,
    };
    let rest = claim.limit - jobs.len() as i64;
    if rest > 0 {
        jobs.extend(take(conn, claim, "", BY_AGE, rest)?);
    }
    Ok((jobs, last))
}

#[derive(QueryableByName)]
struct Turn {
    #[diesel(sql_type = Nullable<BigInt>)]
    workspace_id: Option<i64>,
}

fn last_looked_at(conn: &mut Conn, queue: &str, behind: i64) -> Result<i64, DbError> {
    let with = round(behind);
    let text = format!("WITH {with} SELECT workspace_id FROM round ORDER BY place DESC LIMIT 1");
    let turns: Vec<Turn> = sql_query(text).bind::<Text, _>(queue).load(conn)?;
    Ok(turns.first().and_then(|turn| turn.workspace_id).unwrap_or(behind))
}

/// Takes the first of what is due.
fn take(conn: &mut Conn, claim: &Claim, with: &str, due: &str, limit: i64) -> Result<Vec<Job>, DbError> {
    let skip = if conn.is_postgres() { "FOR UPDATE OF jobs SKIP LOCKED" } else { "" };
    let text = format!(
        "WITH {with} due AS MATERIALIZED ({due} LIMIT {limit} {skip})
         UPDATE jobs SET attempts = attempts + 1, leased_at = $2, lease_token = $3, leased_until = $4,
             taken_over = (leased_until IS NOT NULL)
         FROM due WHERE jobs.queue = due.queue AND jobs.key = due.key
         RETURNING jobs.queue, jobs.key, workspace_id, payload, generation, attempts, created_at, taken_over",
    );
    let text = text.replace("FREE", is_free(claim.only_unleased));
    let rows: Vec<ClaimedRow> = sql_query(text)
        .bind::<Text, _>(claim.queue)
        .bind::<BigInt, _>(claim.now.0)
        .bind::<Binary, _>(claim.token.as_slice())
        .bind::<BigInt, _>(claim.until.0)
        .load(conn)?;
    Ok(rows.into_iter().map(Job::from).collect())
}

/// When the next job that nobody holds is due.
pub fn next_due(
    conn: &mut Conn,
    queue: &str,
    now: Timestamp,
    only_unleased: bool,
) -> Result<Option<Timestamp>, DbError> {
    // no lease ends before the beginning of time
    let ended_before = if only_unleased { i64::MIN } else { now.0 };
    let due: Option<i64> = jobs::table
        .filter(jobs::queue.eq(queue))
        .filter(jobs::leased_until.is_null().or(jobs::leased_until.lt(ended_before)))
        .order(jobs::run_after)
        .select(jobs::run_after)
        .first(conn)
        .optional()?;
    Ok(due.map(Timestamp))
}

/// Times ahead of the clock by more than this were chosen before it was set back.
const SKEW: i64 = crate::metering::time::SECOND;

/// The clock was set back: due times and leases that were chosen in what is the future now keep their distance from the
/// moment they were chosen at, and count from now on. Nobody waits for a time that was never meant. Returns how many.
pub fn rebase(conn: &mut Conn, queue: &str, now: Timestamp) -> Result<usize, DbError> {
    let ahead = now.plus(SKEW).0;
    let due = sql_query(
        "UPDATE jobs SET run_after = $1 + run_after - scheduled_at, scheduled_at = $1
         WHERE queue = $2 AND scheduled_at > $3 AND run_after >= scheduled_at",
    );
    let leased = sql_query(
        "UPDATE jobs SET leased_until = $1 + leased_until - leased_at, leased_at = $1
         WHERE queue = $2 AND leased_at > $3",
    );
    let mut count = 0;
    for statement in [due, leased] {
        let bound = statement.bind::<BigInt, _>(now.0).bind::<Text, _>(queue).bind::<BigInt, _>(ahead);
        count += bound.execute(conn)?;
    }
    Ok(count)
}

/// Holds a job longer; false when somebody else has it by now.
pub fn renew(
    conn: &mut Conn,
    job: &Job,
    token: &LeaseToken,
    now: Timestamp,
    until: Timestamp,
) -> Result<bool, DbError> {
    let renewed = diesel::update(jobs::table.find((&job.queue, &job.key)))
        .filter(jobs::lease_token.eq(token.as_slice()))
        .set((jobs::leased_at.eq(now.0), jobs::leased_until.eq(until.0)))
        .execute(conn)?;
    Ok(renewed == 1)
}

/// Whether this claim still holds the job. Ask inside the transaction that writes a result which must not be written
/// twice; on PostgreSQL the row stays locked until its end.
pub fn holds(conn: &mut Conn, job: &Job, token: &LeaseToken) -> Result<bool, DbError> {
    let lock = if conn.is_postgres() { "FOR UPDATE" } else { "" };
    let text =
        format!("SELECT generation FROM jobs WHERE queue = $1 AND key = $2 AND lease_token = $3 {lock}");
    let held: Vec<Generation> = sql_query(text)
        .bind::<Text, _>(&job.queue)
        .bind::<Text, _>(&job.key)
        .bind::<Binary, _>(token.as_slice())
        .load(conn)?;
    Ok(!held.is_empty())
}

#[derive(QueryableByName)]
struct Generation {
    #[diesel(sql_type = BigInt)]
    #[expect(dead_code, reason = "only its presence counts")]
    generation: i64,
}

/// The job is done: removed, or, when it was asked for again meanwhile, free to be run again. `again_at` keeps it
/// for a later time in any case (evaluations that recur).
pub fn finish(
    conn: &mut Conn,
    job: &Job,
    token: &LeaseToken,
    again_at: Option<Timestamp>,
) -> Result<(), DbError> {
    let mine = jobs::table
        .find((&job.queue, &job.key))
        .filter(jobs::lease_token.eq(token.as_slice()).and(jobs::generation.eq(job.generation)));
    let done = match again_at {
        None => diesel::delete(mine).execute(conn)?,
        Some(at) => diesel::update(mine)
            .set((
                jobs::run_after.eq(at.0),
                jobs::scheduled_at.eq(Timestamp::now().0),
                jobs::attempts.eq(0),
                jobs::lease_token.eq(None::<Vec<u8>>),
                jobs::leased_until.eq(None::<i64>),
                jobs::last_error.eq(None::<String>),
            ))
            .execute(conn)?,
    };
    if done == 0 {
        // asked for again while it ran; run_after is the earlier time still
        free(conn, job, token, None)?;
    }
    Ok(())
}

/// Gives the lease back; with `retry`, a time and the reason.
fn free(
    conn: &mut Conn,
    job: &Job,
    token: &LeaseToken,
    retry: Option<(Timestamp, &str)>,
) -> Result<(), DbError> {
    let Some((at, error)) = retry else {
        let mine = jobs::table.find((&job.queue, &job.key)).filter(jobs::lease_token.eq(token.as_slice()));
        let unleased = (jobs::lease_token.eq(None::<Vec<u8>>), jobs::leased_until.eq(None::<i64>));
        diesel::update(mine).set((unleased, jobs::attempts.eq(0))).execute(conn)?;
        return Ok(());
    };
    // asked for again while it ran, it runs when that asked for it, unless it is tried again sooner
    sql_query(
        "UPDATE jobs SET lease_token = NULL, leased_until = NULL, last_error = $1,
             run_after = CASE WHEN generation = $2 OR run_after > $3 THEN $3 ELSE run_after END,
             scheduled_at = CASE WHEN generation = $2 OR run_after > $3 THEN $4 ELSE scheduled_at END
         WHERE queue = $5 AND key = $6 AND lease_token = $7",
    )
    .bind::<Text, _>(error)
    .bind::<BigInt, _>(job.generation)
    .bind::<BigInt, _>(at.0)
    .bind::<BigInt, _>(Timestamp::now().0)
    .bind::<Text, _>(&job.queue)
    .bind::<Text, _>(&job.key)
    .bind::<Binary, _>(token.as_slice())
    .execute(conn)?;
    Ok(())
}

/// The job failed and will be tried again at `at`.
pub fn retry(
    conn: &mut Conn,
    job: &Job,
    token: &LeaseToken,
    at: Timestamp,
    error: &str,
) -> Result<(), DbError> {
    free(conn, job, token, Some((at, error)))
}

/// The worker stops: the job is free at once and the attempt does not count.
pub fn release(conn: &mut Conn, job: &Job, token: &LeaseToken) -> Result<(), DbError> {
    diesel::update(jobs::table.find((&job.queue, &job.key)).filter(jobs::lease_token.eq(token.as_slice())))
        .set((
            jobs::lease_token.eq(None::<Vec<u8>>),
            jobs::leased_until.eq(None::<i64>),
            jobs::attempts.eq(jobs::attempts - 1),
        ))
        .execute(conn)?;
    Ok(())
}

/// The job used up its attempts: it moves to the dead letters, where an operator sees it and can requeue it. When it
/// was asked for again meanwhile it lives on with fresh attempts.
pub fn bury(
    conn: &mut Conn,
    job: &Job,
    token: &LeaseToken,
    error: &str,
    now: Timestamp,
) -> Result<(), DbError> {
    let mine = jobs::table
        .find((&job.queue, &job.key))
        .filter(jobs::lease_token.eq(token.as_slice()).and(jobs::generation.eq(job.generation)));
    if diesel::delete(mine).execute(conn)? == 0 {
        return free(conn, job, token, None);
    }
    let letter = DeadLetter {
        id: chance::id().to_string(),
        workspace_id: job.workspace_id,
        queue: job.queue.clone(),
        key: job.key.clone(),
        payload: job.payload.clone(),
        attempts: job.attempts,
        last_error: error.to_owned(),
        created_at: now.0,
        requeued_at: None,
    };
    diesel::insert_into(dead_letters::table).values(&letter).execute(conn)?;
    Ok(())
}

/// How a queue stands: what operators see.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Depth {
    pub pending: i64,
    pub running: i64,
    /// Waiting with an error behind them.
    pub failed: i64,
    pub oldest_pending_at: Option<i64>,
    /// Given up, and queued anew by nobody.
    pub dead: i64,
}

/// A job as a person sees it.
#[derive(Clone, Debug, Queryable, Selectable)]
#[diesel(table_name = jobs)]
pub struct Waiting {
    pub key: String,
    pub run_after: i64,
    pub attempts: i32,
    pub leased_until: Option<i64>,
    pub last_error: Option<String>,
    pub created_at: i64,
}

/// The jobs of a workspace in a queue, the one that is due first comes first.
pub fn waiting(conn: &mut Conn, queue: &str, workspace_id: i64, limit: i64) -> Result<Vec<Waiting>, DbError> {
    Ok(jobs::table
        .filter(jobs::queue.eq(queue).and(jobs::workspace_id.eq(workspace_id)))
        .order((jobs::run_after, jobs::key))
        .limit(limit)
        .select(Waiting::as_select())
        .load(conn)?)
}

/// How background work stands.
#[derive(Debug, Default)]
pub struct Background {
    /// Of a workspace, by queue: due and running jobs of the queues that were asked for, and what was given up in any. Jobs
    /// kept for a later time do not count.
    pub depths: HashMap<String, Depth>,
    /// The worker processes of the installation, in the order in which they started.
    pub instances: Vec<Instance>,
}

/// A queue or, when it has the id of one, a worker process.
#[derive(QueryableByName)]
struct BackgroundRow {
    #[diesel(sql_type = Text)]
    name: String,
    #[diesel(sql_type = Nullable<Text>)]
    instance_id: Option<String>,
    #[diesel(sql_type = BigInt)]
    pending: i64,
    #[diesel(sql_type = BigInt)]
    running: i64,
    #[diesel(sql_type = BigInt)]
    failed: i64,
    #[diesel(sql_type = BigInt)]
    dead: i64,
    #[diesel(sql_type = Nullable<BigInt>)]
    oldest_pending_at: Option<i64>,
    #[diesel(sql_type = BigInt)]
    started_at: i64,
    #[diesel(sql_type = BigInt)]
    last_heartbeat_at: i64,
    #[diesel(sql_type = Nullable<BigInt>)]
    last_success_at: Option<i64>,
    #[diesel(sql_type = Nullable<BigInt>)]
    last_failure_at: Option<i64>,
}

impl Background {
    fn add(&mut self, row: BackgroundRow) {
        let BackgroundRow { name, pending, running, failed, dead, oldest_pending_at, .. } = row;
        match row.instance_id {
            None => {
                let depth = Depth { pending, running, failed, oldest_pending_at, dead };
                self.depths.insert(name, depth);
            }
            Some(instance_id) => self.instances.push(Instance {
                instance_id,
                worker: name,
                started_at: row.started_at,
                last_heartbeat_at: row.last_heartbeat_at,
                last_success_at: row.last_success_at,
                last_failure_at: row.last_failure_at,
            }),
        }
    }
}

/// How background work stands for a workspace, in one statement: pages ask for all of it.
pub fn background(
    conn: &mut Conn,
    queues: &[&str],
    workspace_id: i64,
    now: Timestamp,
) -> Result<Background, DbError> {
    let mut statement = Statement::new(conn);
    let (now, workspace_id) = (statement.int(now.0), statement.int(workspace_id));
    let queues: Vec<String> = queues.iter().map(|queue| statement.text(*queue)).collect();
    let text = background_sql(&now, &workspace_id, &queues.join(", "));
    let mut found = Background::default();
    statement.each(conn, &text, |row: BackgroundRow| {
        found.add(row);
        Ok(())
    })?;
    found.instances.sort_by_key(|instance| instance.started_at);
    Ok(found)
}

fn background_sql(now: &str, workspace_id: &str, queues: &str) -> String {
    let total = |column: &str| format!("CAST(SUM({column}) AS BIGINT) AS {column}");
    let is_free = format!("(leased_until IS NULL OR leased_until < {now})");
    format!(
        "-- jobs::queue::background
         SELECT queue AS name, CAST(NULL AS TEXT) AS instance_id, {}, {}, {}, {}, MIN(due_at) AS oldest_pending_at,
                CAST(0 AS BIGINT) AS started_at, CAST(0 AS BIGINT) AS last_heartbeat_at,
                CAST(NULL AS BIGINT) AS last_success_at, CAST(NULL AS BIGINT) AS last_failure_at
         FROM (
             SELECT queue, CASE WHEN {is_free} THEN 1 ELSE 0 END AS pending,
                    CASE WHEN leased_until >= {now} THEN 1 ELSE 0 END AS running,
                    CASE WHEN last_error IS NOT NULL THEN 1 ELSE 0 END AS failed, 0 AS dead,
                    CASE WHEN {is_free} THEN run_after END AS due_at
             FROM jobs WHERE queue IN ({queues}) AND run_after <= {now} AND workspace_id = {workspace_id}
             UNION ALL
             SELECT queue, 0, 0, 0, 1, NULL FROM dead_letters WHERE workspace_id = {workspace_id} AND requeued_at IS NULL
         ) AS work GROUP BY queue
         UNION ALL
         SELECT worker, instance_id, 0, 0, 0, 0, NULL, started_at, last_heartbeat_at, last_success_at, last_failure_at
         FROM worker_instances",
        total("pending"),
        total("running"),
        total("failed"),
        total("dead"),
    )
}
