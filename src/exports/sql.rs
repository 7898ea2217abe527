//! Export jobs. The row here is what clients see; a row in `jobs` makes a worker do it. Both change in one
//! transaction, and whatever a worker writes is fenced by its lease.

use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Text};

use crate::db::columns::readable;
use crate::db::schema::{export_cleanup_runs, export_jobs, jobs as work};
use crate::db::{Conn, DbError, limits};
use crate::error::{Error, Result};
use crate::exports::job::{Artifact, CANCELED, Export, Kind, Status};
use crate::jobs::dead_letters::DeadLetter;
use crate::jobs::queue::{self, Job, LeaseToken, NewJob};
use crate::metering::time::Timestamp;

/// Where the workers find the jobs; a job's key is the id of the export.
pub const QUEUE: &str = "export";

#[derive(Queryable, Selectable, Insertable)]
#[diesel(table_name = export_jobs, treat_none_as_default_value = false)]
struct Row {
    id: String,
    workspace_id: i64,
    kind: String,
    status: String,
    query: String,
    error: Option<String>,
    row_count: i64,
    artifact_size: Option<i64>,
    artifact_hash: Option<String>,
    created_at: i64,
    updated_at: i64,
    completed_at: Option<i64>,
    expired_at: Option<i64>,
}

impl Row {
    fn of(export: &Export) -> Result<Self> {
        Ok(Row {
            id: export.id.clone(),
            workspace_id: export.workspace_id,
            kind: export.kind.as_str().to_owned(),
            status: export.status.as_str().to_owned(),
            query: serde_json::to_string(&export.asked).map_err(Error::internal)?,
            error: export.error.clone(),
            row_count: export.row_count,
            artifact_size: export.artifact.as_ref().map(|artifact| artifact.size_bytes),
            artifact_hash: export.artifact.as_ref().map(|artifact| artifact.hash.clone()),
            created_at: export.created_at.0,
            updated_at: export.updated_at.0,
            completed_at: export.completed_at.map(|at| at.0),
            expired_at: export.expired_at.map(|at| at.0),
        })
    }

    fn into_export(self) -> Result<Export, DbError> {
        let strange = || Error::internal(format!("export job {} has an unknown status", self.id));
        let status = Status::parse(&self.status).ok_or_else(strange)?;
        let artifact = self.artifact_size.zip(self.artifact_hash);
        Ok(Export {
            kind: Kind::parse(&self.kind)?,
            status,
            asked: serde_json::from_str(&self.query).map_err(Error::internal)?,
            id: self.id,
            workspace_id: self.workspace_id,
            error: self.error,
            row_count: self.row_count,
            artifact: artifact.map(|(size_bytes, hash)| Artifact { size_bytes, hash }),
            created_at: Timestamp(self.created_at),
            updated_at: Timestamp(self.updated_at),
            completed_at: self.completed_at.map(Timestamp),
            expired_at: self.expired_at.map(Timestamp),
        })
    }
}

fn enqueue(conn: &mut Conn, id: &str, workspace_id: i64, now: Timestamp) -> Result<(), DbError> {
    let job = NewJob::new(QUEUE, id, workspace_id, &serde_json::json!({}), now)?;
    queue::enqueue(conn, vec![job], now)
}

/// Stores a new job and queues its work.
pub fn add(conn: &mut Conn, export: &Export) -> Result<(), DbError> {
    limits::check(conn, limits::Kind::Export, export.workspace_id)?;
    diesel::insert_into(export_jobs::table).values(Row::of(export)?).execute(conn)?;
    enqueue(conn, &export.id, export.workspace_id, export.created_at)
}

pub fn find_by_public_id(conn: &mut Conn, workspace_id: i64, id: &str) -> Result<Option<Export>, DbError> {
    let row: Option<Row> = export_jobs::table
        .filter(export_jobs::id.eq(id).and(export_jobs::workspace_id.eq(workspace_id)))
        .select(Row::as_select())
        .first(conn)
        .optional()?;
    row.map(Row::into_export).transpose()
}

/// Jobs read at once, and what their queries take when a page ends before it is full.
const CHUNK: i64 = 128;
const PAGE_BYTES_MAX: usize = 8 << 20;

/// Newest first, from after a position; with a status, only those; and whether there are more. Jobs that cannot be read are
/// left out; the page is filled up with others.
pub fn list(
    conn: &mut Conn,
    workspace_id: i64,
    status: Option<Status>,
    after: Option<&(Timestamp, String)>,
    limit: i64,
) -> Result<(Vec<Export>, bool), DbError> {
    let (mut found, mut after, mut bytes) = (Vec::new(), after.cloned(), 0);
    loop {
        let wanted = (limit + 1 - found.len() as i64).min(CHUNK);
        let rows = page(conn, workspace_id, status, after.as_ref(), wanted)?;
        let is_last = (rows.len() as i64) < wanted;
        after = rows.last().map(|row| (Timestamp(row.created_at), row.id.clone()));
        bytes += rows.iter().map(|row| row.query.len()).sum::<usize>();
        found.extend(
            rows.into_iter().filter_map(|row| readable("export_jobs", row.id.clone(), row.into_export())),
        );
        if found.len() as i64 > limit {
            found.truncate(limit as usize);
            return Ok((found, true));
        }
        if is_last || (bytes > PAGE_BYTES_MAX && !found.is_empty()) {
            return Ok((found, !is_last));
        }
    }
}

fn page(
    conn: &mut Conn,
    workspace_id: i64,
    status: Option<Status>,
    after: Option<&(Timestamp, String)>,
    limit: i64,
) -> Result<Vec<Row>, DbError> {
    let mut query = export_jobs::table
        .filter(export_jobs::workspace_id.eq(workspace_id))
        .order((export_jobs::created_at.desc(), export_jobs::id.desc()))
        .select(Row::as_select())
        .limit(limit)
        .into_boxed();
    if let Some(status) = status {
        query = query.filter(export_jobs::status.eq(status.as_str()));
    }
    if let Some((time, id)) = after {
        let later = export_jobs::created_at.eq(time.0).and(export_jobs::id.lt(id.clone()));
        query = query.filter(export_jobs::created_at.lt(time.0).or(later));
    }
    Ok(query.load(conn)?)
}

/// The job as it is now, held against change until the commit.
fn locked(conn: &mut Conn, id: &str) -> Result<Option<Export>, DbError> {
    let row: Option<Row> = match conn {
        Conn::Postgres(c) => {
            export_jobs::table.find(id).select(Row::as_select()).for_update().first(c).optional()?
        }
        Conn::Sqlite(c) => export_jobs::table.find(id).select(Row::as_select()).first(c).optional()?,
    };
    row.map(Row::into_export).transpose()
}

fn store(conn: &mut Conn, export: &Export) -> Result<(), DbError> {
    diesel::update(export_jobs::table.find(&export.id))
        .set((
            export_jobs::status.eq(export.status.as_str()),
            export_jobs::error.eq(export.error.as_deref()),
            export_jobs::row_count.eq(export.row_count),
            export_jobs::artifact_size.eq(export.artifact.as_ref().map(|artifact| artifact.size_bytes)),
            export_jobs::artifact_hash.eq(export.artifact.as_ref().map(|artifact| artifact.hash.as_str())),
            export_jobs::updated_at.eq(export.updated_at.0),
            export_jobs::completed_at.eq(export.completed_at.map(|at| at.0)),
            export_jobs::expired_at.eq(export.expired_at.map(|at| at.0)),
        ))
        .execute(conn)?;
    Ok(())
}

/// The job of a workspace for a change by its owner. The order of locks is that of the workers: the work, then the
/// job.
fn owned(conn: &mut Conn, workspace_id: i64, id: &str) -> Result<Export, DbError> {
    if conn.is_postgres() {
        sql_query("SELECT 1 FROM jobs WHERE queue = $1 AND key = $2 FOR UPDATE")
            .bind::<Text, _>(QUEUE)
            .bind::<Text, _>(id)
            .execute(conn)?;
    }
    let export = locked(conn, id)?.filter(|export| export.workspace_id == workspace_id);
    export.ok_or_else(|| Error::not_found("export").into())
}

/// Ends a job that is waiting or running. Its work is withdrawn: the worker loses the lease and stops.
pub fn cancel(conn: &mut Conn, workspace_id: i64, id: &str, now: Timestamp) -> Result<Export, DbError> {
    let mut export = owned(conn, workspace_id, id)?;
    export.status.check_cancel()?;
    export.status = Status::Canceled;
    export.error = Some(CANCELED.to_owned());
    export.updated_at = now;
    export.completed_at = Some(now);
    store(conn, &export)?;
    diesel::delete(work::table.find((QUEUE, id))).execute(conn)?;
    Ok(export)
}

/// Queues a failed or canceled job anew, with all its attempts.
pub fn retry(conn: &mut Conn, workspace_id: i64, id: &str, now: Timestamp) -> Result<Export, DbError> {
    let mut export = owned(conn, workspace_id, id)?;
    export.status.check_retry()?;
    export.status = Status::Queued;
    export.error = None;
    export.row_count = 0;
    export.artifact = None;
    export.updated_at = now;
    export.completed_at = None;
    store(conn, &export)?;
    enqueue(conn, id, workspace_id, now)?;
    Ok(export)
}

/// The job of a claim, while this claim holds it and somebody wants it.
fn held(conn: &mut Conn, job: &Job, token: &LeaseToken) -> Result<Option<Export>, DbError> {
    if !queue::holds(conn, job, token)? {
        return Ok(None);
    }
    Ok(locked(conn, &job.key)?.filter(|export| export.status.may_run()))
}

/// Marks the job of a claim as running; `None` when there is nothing to do any more.
pub fn start(
    conn: &mut Conn,
    job: &Job,
    token: &LeaseToken,
    now: Timestamp,
) -> Result<Option<Export>, DbError> {
    let Some(mut export) = held(conn, job, token)? else { return Ok(None) };
    export.status = Status::Running;
    export.error = None;
    export.row_count = 0;
    export.updated_at = now;
    store(conn, &export)?;
    Ok(Some(export))
}

/// Whether this claim still holds the job and nobody canceled it.
pub fn is_wanted(conn: &mut Conn, id: &str, token: &LeaseToken) -> Result<bool, DbError> {
    let wanted: i64 = export_jobs::table
        .filter(export_jobs::id.eq(id).and(export_jobs::status.eq(Status::Running.as_str())))
        .filter(diesel::dsl::exists(
            work::table.find((QUEUE, id)).filter(work::lease_token.eq(token.as_slice())),
        ))
        .count()
        .get_result(conn)?;
    Ok(wanted > 0)
}

/// Notes how many rows are written.
pub fn advance(
    conn: &mut Conn,
    job: &Job,
    token: &LeaseToken,
    row_count: i64,
    now: Timestamp,
) -> Result<bool, DbError> {
    let Some(mut export) = held(conn, job, token)? else { return Ok(false) };
    export.row_count = row_count;
    export.updated_at = now;
    store(conn, &export)?;
    Ok(true)
}

/// Marks the job as completed and publishes its file, as the holder of the lease only: a worker that was thought
/// dead can neither overwrite a newer file nor bring a canceled job back. False when there was nothing to complete.
pub fn complete(
    conn: &mut Conn,
    job: &Job,
    token: &LeaseToken,
    outcome: (&Artifact, i64),
    publish: impl FnOnce() -> Result<()>,
    now: Timestamp,
) -> Result<bool, DbError> {
    let Some(mut export) = held(conn, job, token)? else { return Ok(false) };
    export.status = Status::Completed;
    export.artifact = Some(outcome.0.clone());
    export.row_count = outcome.1;
    export.updated_at = now;
    export.completed_at = Some(now);
    store(conn, &export)?;
    publish()?;
    Ok(true)
}

/// Marks the job as failed for good, with a reason for its owner.
pub fn fail(
    conn: &mut Conn,
    job: &Job,
    token: &LeaseToken,
    reason: &str,
    now: Timestamp,
) -> Result<(), DbError> {
    let Some(mut export) = held(conn, job, token)? else { return Ok(()) };
    export.status = Status::Failed;
    export.error = Some(reason.to_owned());
    export.updated_at = now;
    export.completed_at = Some(now);
    store(conn, &export)
}

/// A finished export whose file is past its time.
#[derive(Clone, Debug, Queryable)]
pub struct Outdated {
    pub id: String,
    pub workspace_id: i64,
    pub size_bytes: Option<i64>,
}

/// Finished exports from before an instant whose files are still there, the oldest first. What they were of is not asked: one
/// that cannot be read must not keep the files of all others.
pub fn outdated(conn: &mut Conn, before: Timestamp, limit: i64) -> Result<Vec<Outdated>, DbError> {
    Ok(export_jobs::table
        .filter(export_jobs::status.eq(Status::Completed.as_str()))
        .filter(export_jobs::expired_at.is_null().and(export_jobs::completed_at.lt(before.0)))
        .order(export_jobs::completed_at)
        .limit(limit)
        .select((export_jobs::id, export_jobs::workspace_id, export_jobs::artifact_size))
        .load(conn)?)
}

/// What one clean-up did for a workspace.
#[derive(Clone, Debug, PartialEq, Eq, Queryable, Selectable, Insertable)]
#[diesel(table_name = export_cleanup_runs)]
pub struct CleanupRun {
    pub id: String,
    pub workspace_id: i64,
    pub expired_before: i64,
    pub files_deleted: i64,
    pub bytes_reclaimed: i64,
    pub failures: i64,
    pub created_at: i64,
}

/// How often exports of a workspace were cleaned up.
pub fn count_cleanup_runs(conn: &mut Conn, workspace_id: i64) -> Result<i64, DbError> {
    let own = export_cleanup_runs::table.filter(export_cleanup_runs::workspace_id.eq(workspace_id));
    Ok(own.count().get_result(conn)?)
}

/// When exports of a workspace were cleaned up last.
pub fn last_cleanup_run(conn: &mut Conn, workspace_id: i64) -> Result<Option<CleanupRun>, DbError> {
    Ok(export_cleanup_runs::table
        .filter(export_cleanup_runs::workspace_id.eq(workspace_id))
        .order((export_cleanup_runs::created_at.desc(), export_cleanup_runs::id.desc()))
        .select(CleanupRun::as_select())
        .first(conn)
        .optional()?)
}

/// What a dead job was about and no longer exists.
pub fn what_is_gone(conn: &mut Conn, letter: &DeadLetter) -> Result<Option<&'static str>, DbError> {
    let export = find_by_public_id(conn, letter.workspace_id, &letter.key)?;
    let may_run = export.is_some_and(|export| export.status.may_run());
    Ok((!may_run).then_some("the export is over"))
}

/// Marks exports whose files were removed, and remembers the runs that did it.
pub fn expire(conn: &mut Conn, ids: &[String], runs: &[CleanupRun], now: Timestamp) -> Result<(), DbError> {
    diesel::update(export_jobs::table.filter(export_jobs::id.eq_any(ids)))
        .filter(export_jobs::expired_at.is_null())
        .set((export_jobs::expired_at.eq(now.0), export_jobs::updated_at.eq(now.0)))
        .execute(conn)?;
    for run in runs {
        diesel::insert_into(export_cleanup_runs::table).values(run).execute(conn)?;
    }
    Ok(())
}

/// Which of these jobs may have a file under its final name, and which a draft. Unknown ids are in neither: their
/// files may belong to another database.
pub fn file_owners(conn: &mut Conn, ids: &[String], now: Timestamp) -> Result<Vec<Owner>, DbError> {
    let leased: Vec<String> = work::table
        .filter(work::queue.eq(QUEUE).and(work::key.eq_any(ids)).and(work::leased_until.ge(now.0)))
        .select(work::key)
        .load(conn)?;
    let rows: Vec<OwnerRow> = export_jobs::table
        .filter(export_jobs::id.eq_any(ids))
        .select((export_jobs::id, export_jobs::status, export_jobs::expired_at))
        .load(conn)?;
    let owner = |OwnerRow { id, status, expired_at }| {
        let has_draft = leased.contains(&id);
        // a word of a later version may mean anything
        let has_file = Status::parse(&status)
            .is_none_or(|status| status.may_run() || (status == Status::Completed && expired_at.is_none()));
        Owner { id, has_file, has_draft }
    };
    Ok(rows.into_iter().map(owner).collect())
}

#[derive(Queryable)]
struct OwnerRow {
    id: String,
    status: String,
    expired_at: Option<i64>,
}

/// What files of a known job are still good for something.
#[derive(Clone, Debug)]
pub struct Owner {
    pub id: String,
    pub has_file: bool,
    pub has_draft: bool,
}

/// Jobs that wait for work that is not queued any more would wait for ever: they have failed. Returns how many.
pub fn fail_abandoned(conn: &mut Conn, now: Timestamp) -> Result<usize, DbError> {
    let text = "UPDATE export_jobs SET status = 'failed', error = $1, updated_at = $2, completed_at = $2
                WHERE status IN ('queued', 'running')
                AND NOT EXISTS (SELECT 1 FROM jobs WHERE queue = 'export' AND key = export_jobs.id)";
    let reason = "the work was given up";
    Ok(sql_query(text).bind::<Text, _>(reason).bind::<BigInt, _>(now.0).execute(conn)?)
}
