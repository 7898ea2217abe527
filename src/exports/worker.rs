//! The export worker: takes a queued job, writes its file, publishes it; removes files when their time is over. Rows
//! go from page to file, so that memory does not grow with the export.
//!
//! An export of raw events holds every event that was acknowledged before it was asked for, whatever the clocks of those
//! who stored them: its pages go through all that is committed, newest first, and no time of arrival bounds them. What
//! arrives while it is written is in it where its place was not passed yet. Buckets are read slice by slice, each as
//! exact as a query at that moment.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::blocking;
use crate::chance;
use crate::clock;
use crate::config::Config;
use crate::db::readiness::{Check, Obstacle};
use crate::db::{Conn, Store};
use crate::error::{Code, Error, Result};
use crate::exports::csv::Table;
use crate::exports::job::{Artifact, Export, Kind, file_name};
use crate::exports::sql::{CleanupRun, Outdated};
use crate::exports::storage::{Draft, Storage};
use crate::jobs::process::{self, WorkerTasks};
use crate::jobs::queue::{Job, LeaseToken};
use crate::jobs::worker::{Done, Queue, Turns, Work};
use crate::metering::calendar::Calendar;
use crate::metering::time::{Timestamp, Window};
use crate::usage::aggregate::cells;
use crate::usage::events::{self, Position, Search};
use crate::usage::query::{self, Bucket, Query};
use crate::{exports, meters};

/// Exports that one process writes at the same time: a long one does not hold up all others.
const CONCURRENCY: usize = 2;
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// How soon the work notices that nobody wants it any more, and how often it says how far it is.
const WATCH_PAUSE: Duration = Duration::from_millis(500);

struct Exporter {
    store: Store,
    storage: Storage,
    timeout: Duration,
    max_attempts: i32,
}

/// The queue of export jobs and how they are done.
pub fn queue(store: &Store, config: &Config) -> Result<Queue> {
    let settings = &config.workers.export;
    let exporter_storage = Storage::of(&config.exports.storage)?;
    let exporter = Arc::new(Exporter {
        store: store.clone(),
        storage: exporter_storage.clone(),
        timeout: settings.timeout,
        max_attempts: settings.max_attempts as i32,
    });
    let handler = move |job, token| -> Work { Box::pin(exporter.clone().work(job, token)) };
    Ok(Queue {
        name: exports::sql::QUEUE,
        worker: "export",
        interval: settings.interval,
        lease: settings.lock_ttl,
        // both limits are kept by the handler, which shows them on the job; these are for when it cannot
        timeout: settings.timeout + Duration::from_secs(60),
        max_attempts: settings.max_attempts.saturating_add(1),
        retry_after: RETRY_AFTER,
        batch_size: CONCURRENCY,
        concurrency: CONCURRENCY,
        // turns between workspaces; one that is alone may use every place
        turns: Turns::AtMost(1_000),
        rebase: None,
        check: Some(check(&exporter_storage)),
        handler: Arc::new(handler),
    })
}

/// The role: export jobs and their clean-up in a process of their own.
pub async fn run(config: Config) -> Result<()> {
    let health_addr = config.workers.export.health_addr.clone();
    let storage = Storage::of(&config.exports.storage)?;
    process::run(config, health_addr, Some(check(&storage)), |store, config, _| duties(store, config)).await
}

/// A worker that cannot write takes no jobs from those that can.
fn check(storage: &Storage) -> Check {
    let storage = storage.clone();
    Arc::new(move || storage.check().err().map(|error| Obstacle::new("storage", error)))
}

/// All that has to be done about exports, in a process of its own or inside the server.
pub fn duties(store: &Store, config: &Arc<Config>) -> Result<WorkerTasks> {
    let storage = Storage::of(&config.exports.storage)?;
    log::info!("export storage path: {}", storage.target());
    if let Err(error) = storage.prepare() {
        // jobs wait until it is mended, and everything else works
        log::error!(error:% = error; "export storage cannot be written to");
    }
    let clean_up = keep_clean(store.clone(), config.clone());
    Ok(WorkerTasks {
        queues: vec![queue(store, config)?],
        chores: vec![Box::pin(clean_up)],
        inspection: None,
    })
}

async fn keep_clean(store: Store, config: Arc<Config>) {
    loop {
        if let Err(error) = clean_up(&store, &config).await {
            log::warn!(error:% = error; "the clean-up of exports failed");
        }
        tokio::time::sleep(config.exports.cleanup_interval).await;
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    blocking::begin(work).await.map_err(Error::internal)?
}

impl Exporter {
    async fn work(self: Arc<Self>, job: Job, token: LeaseToken) -> Result<Done> {
        if job.attempts > self.max_attempts {
            let (storage, id) = (self.storage.clone(), job.key.clone());
            // what cannot be removed now is found by the clean-up
            let _ = blocking(move || storage.remove_drafts(&id)).await;
            let reason = format!("the export worker died {} times at this export", self.max_attempts);
            return self.fail(job, token, reason).await;
        }
        let start = {
            let job = job.clone();
            move |conn: &mut Conn| exports::sql::start(conn, &job, &token, Timestamp::now())
        };
        let Some(export) = self.store.write("exports::start", start).await? else {
            return Ok(Done::Finished);
        };
        let run = Run { exporter: &self, job: &job, token, export, written: AtomicI64::new(0) };
        let result = tokio::select! {
            result = tokio::time::timeout(self.timeout, run.write()) => {
                let late = |_| Err(Error::new(Code::Internal, format!("took longer than {:?}", self.timeout)));
                result.unwrap_or_else(late)
            }
            () = run.watch_cancellation() => return Ok(Done::Finished),
        };
        match result {
            Ok(()) => Ok(Done::Finished),
            // the database is away, or the disk is full: another try may find it better
            Err(error) if error.code == Code::Unavailable && job.attempts < self.max_attempts => Err(error),
            Err(error) => self.fail(job, token, error.message).await,
        }
    }

    /// Ends the job with a reason that its owner reads.
    async fn fail(&self, job: Job, token: LeaseToken, reason: String) -> Result<Done> {
        log::warn!(export_id = job.key.as_str(), reason = reason.as_str(); "export failed");
        let fail = move |conn: &mut Conn| exports::sql::fail(conn, &job, &token, &reason, Timestamp::now());
        self.store.write("exports::fail", fail).await?;
        Ok(Done::Finished)
    }
}

/// One attempt at a job. Dropping it drops the draft, and with it the file.
struct Run<'a> {
    exporter: &'a Exporter,
    job: &'a Job,
    token: LeaseToken,
    export: Export,
    /// Rows so far.
    written: AtomicI64,
}

/// A draft that blocking threads write to in turn.
type SharedDraft = Arc<Mutex<Draft>>;

async fn append(draft: &SharedDraft, bytes: Vec<u8>) -> Result<()> {
    let draft = draft.clone();
    blocking(move || draft.lock().unwrap_or_else(PoisonError::into_inner).append(&bytes)).await
}

impl Run<'_> {
    async fn write(&self) -> Result<()> {
        let started = clock::moment();
        let draft: SharedDraft = Arc::new(Mutex::new(self.draft().await?));
        match self.export.kind {
            Kind::UsageBuckets => self.write_buckets(&draft).await?,
            Kind::UsageEvents => self.write_events(&draft).await?,
        }
        let finished = draft.clone();
        let artifact =
            blocking(move || finished.lock().unwrap_or_else(PoisonError::into_inner).sync()).await?;
        let (size, rows) = (artifact.size_bytes, self.written.load(Ordering::Relaxed));
        if self.complete(draft, artifact).await? {
            let duration_ms = clock::since(started).as_millis() as u64;
            log::info!(export_id = self.export.id.as_str(), rows, size_bytes = size, duration_ms; "export completed");
        }
        Ok(())
    }

    /// A new draft. Whoever wrote one before has lost the lease, by dying as a rule.
    async fn draft(&self) -> Result<Draft> {
        let (storage, id, is_retry) =
            (self.exporter.storage.clone(), self.export.id.clone(), self.job.attempts > 1);
        let create = move || {
            if is_retry {
                storage.remove_drafts(&id)?;
            }
            storage.create(&id)
        };
        blocking(create).await
    }

    async fn complete(&self, draft: SharedDraft, artifact: Artifact) -> Result<bool> {
        let (job, token, rows) = (self.job.clone(), self.token, self.written.load(Ordering::Relaxed));
        let complete = move |conn: &mut Conn| {
            let publish = || draft.lock().unwrap_or_else(PoisonError::into_inner).publish();
            exports::sql::complete(conn, &job, &token, (&artifact, rows), publish, Timestamp::now())
        };
        self.exporter.store.write("exports::complete", complete).await
    }

    /// Rows that are still wanted, out of `count`.
    fn room(&self, count: usize) -> usize {
        let written = self.written.load(Ordering::Relaxed).unsigned_abs();
        let left = self.export.asked.limit().saturating_sub(written);
        usize::try_from(left).unwrap_or(usize::MAX).min(count)
    }

    /// Returns when the job was canceled or another worker has it; says meanwhile how far the work is.
    async fn watch_cancellation(&self) {
        let mut shown = 0;
        loop {
            tokio::time::sleep(WATCH_PAUSE).await;
            let (id, token) = (self.export.id.clone(), self.token);
            let store = &self.exporter.store;
            let written = self.written.load(Ordering::Relaxed);
            let wanted = if written == shown {
                store.read("exports::is_wanted", move |conn| exports::sql::is_wanted(conn, &id, &token)).await
            } else {
                let job = self.job.clone();
                let advance = move |conn: &mut Conn| {
                    exports::sql::advance(conn, &job, &token, written, Timestamp::now())
                };
                store.write("exports::advance", advance).await
            };
            match wanted {
                Ok(false) => return,
                Ok(true) => shown = written,
                // the database is away for a moment: the work itself will notice
                Err(_) => {}
            }
        }
    }
}

/// Rows that are held in memory at once, as far as one bucket does not have more.
const SLICE_ROWS: usize = 10_000;

impl Run<'_> {
    async fn write_buckets(&self, draft: &SharedDraft) -> Result<()> {
        let (query, calendar) = self.bucket_query().await?;
        append(draft, Table::of_buckets(&query, self.export.asked.formula_guard)?.into_bytes()?).await?;
        let window = query.window;
        let (mut from, mut buckets) = (window.from, 1);
        while from < window.to && self.room(1) > 0 {
            let to = slice_end(&calendar, from, buckets).min(window.to);
            let slice = Query { window: Window { from, to }, ..query.clone() };
            let rows = self.bucket_rows(slice).await?;
            // grows while slices are small, so that an export with few rows takes few queries
            buckets = match rows.len() {
                0 => buckets * 4,
                count => (SLICE_ROWS * buckets / count).clamp(1, buckets * 4),
            };
            self.append_buckets(draft, &query, rows).await?;
            from = to;
        }
        Ok(())
    }

    async fn bucket_query(&self) -> Result<(Query, Calendar)> {
        let asked = &self.export.asked;
        let buckets = asked.buckets()?;
        let calendar = buckets.calendar.clone();
        let (workspace_id, name) = (self.export.workspace_id, asked.meter.clone());
        let by_name = move |conn: &mut Conn| meters::sql::find_by_name(conn, workspace_id, &name);
        let meter = self.exporter.store.read("meters::by_name", by_name).await?;
        let meter = meter.ok_or_else(|| Error::not_found(format!("meter {:?}", asked.meter)))?;
        let group_by = query::parse_group_by(&meter, asked.group_by.iter().map(String::as_str))?;
        let query = Query {
            meter: Arc::new(meter),
            window: asked.window()?,
            subject: query::parse_subject_filter(&asked.subject)?,
            group_by,
            filter: asked.filter()?,
            buckets: Some(buckets),
            skip_missing: false,
            exact: true,
        };
        Ok((query, calendar))
    }

    async fn bucket_rows(&self, query: Query) -> Result<Vec<Bucket>> {
        let most = self.room(usize::MAX);
        let read = move |conn: &mut Conn| {
            let cells = cells(conn, &query, most)?;
            Ok(query::buckets(&query, cells))
        };
        self.exporter.store.long_running().view("usage::cells", read).await
    }

    async fn append_buckets(&self, draft: &SharedDraft, query: &Query, rows: Vec<Bucket>) -> Result<()> {
        let (draft, query, count) = (draft.clone(), query.clone(), rows.len());
        let guard = self.export.asked.formula_guard;
        let write = move || {
            let mut table = Table::continued(guard);
            rows.iter().try_for_each(|row| table.bucket(&query, row))?;
            draft.lock().unwrap_or_else(PoisonError::into_inner).append(&table.into_bytes()?)
        };
        blocking(write).await?;
        self.written.fetch_add(count as i64, Ordering::Relaxed);
        Ok(())
    }
}

/// Where a slice of this many buckets ends.
fn slice_end(calendar: &Calendar, from: Timestamp, buckets: usize) -> Timestamp {
    (0..buckets.min(1_000)).fold(from, |at, _| calendar.around(at).to)
}

/// A page of raw events: rows at most, and what the CSV of a page should come to. Metadata may have 64 KiB.
const PAGE_ROWS: usize = 4_000;
const PAGE_BYTES: usize = 2 << 20;

impl Run<'_> {
    async fn write_events(&self, draft: &SharedDraft) -> Result<()> {
        let guard = self.export.asked.formula_guard;
        append(draft, Table::of_events(guard)?.into_bytes()?).await?;
        let search = self.search()?;
        let (mut after, mut rows) = (None, 500);
        loop {
            let page = self.page(&search, after, rows).await?;
            let (count, bytes) = (page.count, page.csv.len());
            append(draft, page.csv).await?;
            self.written.fetch_add(count as i64, Ordering::Relaxed);
            if page.after.is_none() || self.room(1) == 0 {
                return Ok(());
            }
            after = page.after;
            rows = (rows * 2).min(PAGE_BYTES / (bytes / count.max(1)).max(1)).clamp(16, PAGE_ROWS);
        }
    }

    fn search(&self) -> Result<Search> {
        let asked = &self.export.asked;
        Ok(Search {
            workspace_id: self.export.workspace_id,
            meter: Some(asked.meter.clone()).filter(|meter| !meter.is_empty()),
            subject: query::parse_subject_filter(&asked.subject)?,
            from: asked.from.map(|time| time.0),
            to: asked.to.map(|time| time.0),
            filter: asked.filter()?,
        })
    }

    async fn page(&self, search: &Search, after: Option<Position>, rows: usize) -> Result<Page> {
        let (search, guard) = (search.clone(), self.export.asked.formula_guard);
        let room = self.room(usize::MAX);
        let read = move |conn: &mut Conn| {
            let (mut listed, after) = events::step(conn, &search, after, rows)?;
            listed.truncate(room);
            let mut table = Table::continued(guard);
            listed.iter().try_for_each(|listed| table.event(&listed.event))?;
            Ok(Page { count: listed.len(), csv: table.into_bytes()?, after })
        };
        self.exporter.store.long_running().view("event_list::step", read).await
    }
}

/// Some events as CSV, and where the next ones begin; nowhere when these were the last.
struct Page {
    count: usize,
    csv: Vec<u8>,
    after: Option<Position>,
}

/// Removes what nobody can need: files of exports past their time, drafts that no worker writes to, files of jobs
/// that came to nothing. Several processes may do this at once.
pub async fn clean_up(store: &Store, config: &Config) -> Result<()> {
    let storage = Storage::of(&config.exports.storage)?;
    let now = Timestamp::now();
    let abandoned =
        store.write("exports::fail_abandoned", move |conn| exports::sql::fail_abandoned(conn, now)).await?;
    if abandoned > 0 {
        log::warn!(count = abandoned; "exports whose work was given up have failed");
    }
    let before = now.plus(-(config.exports.retention.as_micros() as i64));
    while expire_some(store, &storage, before, config.exports.cleanup_batch_size).await? {}
    remove_leftovers(store, &storage).await
}

/// Removes the files of one batch of expired exports; true when there are more.
async fn expire_some(store: &Store, storage: &Storage, before: Timestamp, batch_size: usize) -> Result<bool> {
    let outdated = move |conn: &mut Conn| exports::sql::outdated(conn, before, batch_size as i64);
    let outdated = store.read("exports::outdated", outdated).await?;
    if outdated.is_empty() {
        return Ok(false);
    }
    let storage = storage.clone();
    let (total, removed) = blocking(move || {
        let total = outdated.len();
        let removed = outdated.into_iter().map(|export| {
            let is_gone = storage.remove(&file_name(&export.id)).is_ok();
            (export, is_gone)
        });
        Ok((total, removed.collect::<Vec<_>>()))
    })
    .await?;
    let now = Timestamp::now();
    let runs = cleanup_runs(&removed, before, now);
    let ids: Vec<String> =
        removed.into_iter().filter(|(_, is_gone)| *is_gone).map(|(export, _)| export.id).collect();
    let is_stuck = ids.len() < total;
    log::info!(count = ids.len(); "expired exports removed");
    store.write("exports::expire", move |conn| exports::sql::expire(conn, &ids, &runs, now)).await?;
    // files that cannot be removed now would come up again at once
    Ok(total == batch_size && !is_stuck)
}

/// One record for each workspace.
fn cleanup_runs(removed: &[(Outdated, bool)], before: Timestamp, now: Timestamp) -> Vec<CleanupRun> {
    let mut runs: Vec<CleanupRun> = Vec::new();
    for (export, is_gone) in removed {
        let at = runs.iter().position(|run| run.workspace_id == export.workspace_id).unwrap_or_else(|| {
            runs.push(CleanupRun {
                id: chance::id().to_string(),
                workspace_id: export.workspace_id,
                expired_before: before.0,
                files_deleted: 0,
                bytes_reclaimed: 0,
                failures: 0,
                created_at: now.0,
            });
            runs.len() - 1
        });
        let run = &mut runs[at];
        if *is_gone {
            run.files_deleted += 1;
            run.bytes_reclaimed += export.size_bytes.unwrap_or_default();
        } else {
            run.failures += 1;
        }
    }
    runs
}

async fn remove_leftovers(store: &Store, storage: &Storage) -> Result<()> {
    let lister = storage.clone();
    let files = blocking(move || lister.list()).await?;
    for files in files.chunks(1_000) {
        let ids: Vec<String> = files.iter().map(|file| file.job_id.clone()).collect();
        // a file that appeared after the list was made is not looked at, so a draft here has an owner by now
        let owners = move |conn: &mut Conn| exports::sql::file_owners(conn, &ids, Timestamp::now());
        let owners = store.read("exports::file_owners", owners).await?;
        let is_leftover = |file: &&crate::exports::storage::Stored| {
            let owner = owners.iter().find(|owner| owner.id == file.job_id);
            owner.is_some_and(|owner| if file.is_published { !owner.has_file } else { !owner.has_draft })
        };
        let leftovers: Vec<String> = files.iter().filter(is_leftover).map(|file| file.name.clone()).collect();
        let storage = storage.clone();
        blocking(move || leftovers.iter().try_for_each(|name| storage.remove(name))).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metering::time::BucketSize;

    #[test]
    fn slices_end_where_buckets_end() {
        let at = |text: &str| Timestamp::parse(text).expect(text);
        let cases = [
            (BucketSize::Hour, "2026-06-01T10:30:00Z", 1, "2026-06-01T11:00:00Z"),
            (BucketSize::Hour, "2026-06-01T10:00:00Z", 24, "2026-06-02T10:00:00Z"),
            (BucketSize::Day, "2026-06-01T10:30:00Z", 2, "2026-06-03T00:00:00Z"),
            (BucketSize::Month, "2024-01-31T10:30:00Z", 1, "2024-02-01T00:00:00Z"),
            (BucketSize::Month, "2024-02-01T00:00:00Z", 13, "2025-03-01T00:00:00Z"),
        ];
        for (size, from, buckets, end) in cases {
            assert_eq!(slice_end(&Calendar::utc(size), at(from), buckets), at(end), "{size:?} {from}");
        }
    }
}
