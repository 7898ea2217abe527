//! What happens to old rows: usage events past their meter's retention, on demand or by a timer; the history of
//! write calls, consumption decisions and keys by a timer; months of `events` attached ahead. Works in short transactions and stops between two of
//! them when asked to. Totals never change: rollups outlive what goes here.

pub mod partitions;
pub mod self_check;
pub mod sql;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::partitions::{Attached, Month};
use self::sql::{Expiring, PruneRun, PrunedMeter};
use crate::app::App;
use crate::chance;
use crate::clock;
use crate::db::{Conn, DbError, Store, audit, leases};
use crate::entitlements::sql::decisions;
use crate::error::{Error, Result};
use crate::ingest::insert::expiry::Mark;
use crate::jobs::heartbeat::Heartbeat;
use crate::jobs::sql as work;
use crate::metering::time::{SECOND, Timestamp};
use crate::usage::ingestion_runs::{self, HistoryTable};
use crate::usage::stored_queries;

const KEEP_INTERVAL: Duration = Duration::from_secs(15);

/// Work that only one process does at a time.
struct LeaseGuard {
    store: Store,
    name: String,
    holder: String,
}

impl LeaseGuard {
    /// `None` when somebody else is at it.
    async fn take(store: &Store, name: String) -> Result<Option<LeaseGuard>> {
        let turn = LeaseGuard { store: store.clone(), name, holder: chance::name().to_string() };
        let (name, holder) = (turn.name.clone(), turn.holder.clone());
        let taken = store.write("leases::take", move |conn| leases::take(conn, &name, &holder)).await?;
        Ok(taken.then_some(turn))
    }

    /// Keeps a turn whose work is not done in its name; cancels `stop` when it is lost. Never returns.
    async fn keep(&self, stop: &CancellationToken) {
        loop {
            tokio::time::sleep(KEEP_INTERVAL).await;
            let (name, holder) = (self.name.clone(), self.holder.clone());
            let renew = move |conn: &mut _| leases::renew(conn, &name, &holder);
            if let Ok(false) = self.store.write("leases::renew", renew).await {
                stop.cancel();
            }
        }
    }

    async fn end(self) {
        let release = move |conn: &mut _| leases::release(conn, &self.name, &self.holder);
        if let Err(error) = self.store.write("leases::release", release).await {
            log::warn!(error:% = error; "a lease was not given back and will expire");
        }
    }
}

/// How long work may go on.
#[derive(Clone)]
struct StopCondition {
    stop: CancellationToken,
    deadline: Option<Instant>,
}

impl StopCondition {
    fn is_over(&self) -> bool {
        self.stop.is_cancelled() || self.deadline.is_some_and(|deadline| clock::moment() >= deadline)
    }
}

/// Deletes what is past retention in one workspace and records it; 409 while somebody else does. Goes on when the
/// caller goes away.
pub async fn prune(app: &App, workspace_id: i64) -> Result<PruneRun> {
    let until = StopCondition { stop: app.phase.draining(), deadline: None };
    let store = app.store.clone();
    let task = tokio::spawn(async move {
        let run = prune_workspace(&store, workspace_id, HashMap::new(), true, &until).await?;
        run.ok_or_else(|| Error::conflict("another prune of this workspace is running"))
    });
    task.await.map_err(Error::internal)?
}

/// Counts what a prune would delete, and records that.
pub async fn dry_run(store: &Store, workspace_id: i64) -> Result<PruneRun> {
    let count = move |conn: &mut _| {
        let now = Timestamp::now();
        let counts: HashMap<i64, i64> = sql::count(conn, workspace_id, now)?.into_iter().collect();
        let run = run_of(&sql::expiring(conn, workspace_id, now)?, &counts, true, now);
        sql::add_run(conn, workspace_id, &run)?;
        Ok(run)
    };
    store.write("retention::dry_run", count).await
}

fn run_of(meters: &[Expiring], counts: &HashMap<i64, i64>, dry_run: bool, now: Timestamp) -> PruneRun {
    let meters: Vec<PrunedMeter> = meters
        .iter()
        .map(|meter| {
            let deleted = counts.get(&meter.id).copied().unwrap_or_default();
            PrunedMeter { meter: meter.name.clone(), before: meter.before, deleted }
        })
        .collect();
    let deleted = meters.iter().map(|meter| meter.deleted).sum();
    PruneRun { id: chance::id(), deleted, dry_run, meters, created_at: now }
}

/// One whole prune: `None` when another one of the workspace is running. `dropped` is what already went with whole
/// months. A run that was cut short is recorded all the same; one that found nothing only if `record_nothing`.
async fn prune_workspace(
    store: &Store,
    workspace_id: i64,
    dropped: HashMap<i64, i64>,
    record_nothing: bool,
    until: &StopCondition,
) -> Result<Option<PruneRun>> {
    let Some(turn) = LeaseGuard::take(store, format!("prune:{workspace_id}")).await? else { return Ok(None) };
    let now = Timestamp::now();
    let list = move |conn: &mut _| sql::expiring(conn, workspace_id, now);
    let meters = match store.read("retention::expiring", list).await {
        Ok(meters) => meters,
        Err(error) => {
            turn.end().await;
            return Err(error);
        }
    };
    let mut counts = dropped;
    let mut outcome = Ok(());
    for meter in meters.iter().filter(|meter| meter.is_due) {
        let (deleted, result) = prune_meter(&turn, meter, until).await;
        *counts.entry(meter.id).or_default() += deleted;
        metrics::counter!("open_spanner_retention_deleted_events_total").increment(deleted.unsigned_abs());
        outcome = result;
        if outcome.is_err() {
            break;
        }
    }
    let run = run_of(&meters, &counts, false, now);
    let mut recorded = Ok(());
    if run.deleted > 0 || (record_nothing && outcome.is_ok()) {
        let row = run.clone();
        let add = move |conn: &mut _| {
            audit::in_workspace(workspace_id);
            audit::about(&row.id.to_string(), "");
            sql::add_run(conn, workspace_id, &row)
        };
        recorded = store.write("retention::add_run", add).await;
    }
    turn.end().await;
    outcome.and(recorded).map(|()| Some(run))
}

/// Deletes step by step; returns how many are gone even when it could not finish.
async fn prune_meter(turn: &LeaseGuard, meter: &Expiring, until: &StopCondition) -> (i64, Result<()>) {
    let (mut deleted, mut from) = (0, Timestamp(i64::MIN));
    loop {
        if until.is_over() {
            return (deleted, Err(Error::unavailable("the prune was cut short and can be continued")));
        }
        let (name, holder) = (turn.name.clone(), turn.holder.clone());
        let (meter_id, before) = (meter.id, Timestamp(meter.before));
        let delete = move |conn: &mut _| sql::delete_step(conn, (&name, &holder), meter_id, from, before);
        match turn.store.write("retention::delete_step", delete).await {
            Err(error) => return (deleted, Err(error)),
            Ok(step) => {
                deleted += step.deleted;
                match step.next {
                    Some(next) => from = next,
                    None => return (deleted, Ok(())),
                }
            }
        }
    }
}

/// Events that went with a whole month, by workspace and meter.
type Dropped = HashMap<i64, HashMap<i64, i64>>;

/// The automatic pruner: every workspace, one replica at a time.
#[derive(Default)]
struct Pruner {
    /// Where a round that ran out of time left off, so that no workspace starves.
    done_up_to: i64,
    /// What is still to be recorded.
    dropped: Dropped,
}

impl Pruner {
    async fn round(&mut self, store: &Store, until: &StopCondition) -> Result<()> {
        let Some(turn) = LeaseGuard::take(store, "prune".to_owned()).await? else { return Ok(()) };
        let until = StopCondition { stop: until.stop.child_token(), deadline: until.deadline };
        let result = tokio::select! {
            result = self.prune_all(store, &until) => result,
            () = turn.keep(&until.stop) => Ok(()),
        };
        turn.end().await;
        result
    }

    async fn prune_all(&mut self, store: &Store, until: &StopCondition) -> Result<()> {
        if let Err(error) = drop_months(store, &mut self.dropped).await {
            log::warn!(error:% = error; "old months were not dropped");
        }
        let mut workspaces = store.read("retention::workspaces", sql::workspaces).await?;
        let done = workspaces.partition_point(|workspace_id| *workspace_id <= self.done_up_to);
        workspaces.rotate_left(done);
        let mut failed = 0usize;
        for workspace_id in workspaces {
            if until.is_over() {
                log::info!("pruning was cut short and goes on the next time");
                return Ok(());
            }
            let gone = self.dropped.get(&workspace_id).cloned().unwrap_or_default();
            match prune_workspace(store, workspace_id, gone, false, until).await {
                // somebody prunes it by hand
                Ok(None) => {}
                Ok(Some(_)) => drop(self.dropped.remove(&workspace_id)),
                Err(error) => {
                    // what was deleted until then is recorded
                    self.dropped.remove(&workspace_id);
                    failed += 1;
                    log::warn!(workspace_id, error:% = error; "workspace not pruned");
                }
            }
            self.done_up_to = workspace_id;
        }
        self.done_up_to = 0;
        log::info!(failed; "pruned");
        Ok(())
    }
}

/// Drops whole months that are past every retention, and notes what went.
async fn drop_months(store: &Store, dropped: &mut Dropped) -> Result<()> {
    if !store.is_postgres() {
        return Ok(());
    }
    let now = Timestamp::now();
    if !store.read("partitions::is_owner", partitions::is_owner).await? {
        return Ok(());
    }
    for month in store.read("partitions::droppable", move |conn| partitions::droppable(conn, now)).await? {
        if !store.read("partitions::is_past", move |conn| partitions::is_past(conn, month, now)).await? {
            continue;
        }
        let detach = move |conn: &mut _| partitions::detach(conn, month, now);
        if let Err(error) = store.write("partitions::detach", detach).await {
            log::warn!(month = month.table(), error:% = error; "month not dropped, its rows are deleted instead");
        }
    }
    for month in store.read("partitions::detached", partitions::detached).await? {
        let rows = store
            .long_running()
            .write("partitions::drop", move |conn| partitions::drop_detached(conn, month))
            .await?;
        let events: i64 = rows.iter().map(|row| row.event_count).sum();
        metrics::counter!("open_spanner_retention_deleted_events_total").increment(events.unsigned_abs());
        log::info!(month = month.table(), events; "month dropped");
        for row in rows {
            *dropped.entry(row.workspace_id).or_default().entry(row.meter_id).or_default() += row.event_count;
        }
    }
    Ok(())
}

/// Attaches the months around now where they are missing. Nothing is lost when that fails.
pub async fn attach_months(store: &Store) -> Result<()> {
    if !store.is_postgres() {
        return Ok(());
    }
    let now = Timestamp::now();
    if !store.read("partitions::is_owner", partitions::is_owner).await? {
        return Ok(());
    }
    for month in store.read("partitions::missing", move |conn| partitions::missing(conn, now)).await? {
        attach_month(store, month).await?;
    }
    Ok(())
}

/// For the command that owns the tables: a year ahead, because servers that do not own them cannot attach any.
pub fn attach_year(conn: &mut Conn) -> Result<(), DbError> {
    if conn.is_postgres() {
        for month in partitions::year(Timestamp::now()) {
            partitions::attach(conn, month)?;
        }
    }
    Ok(())
}

async fn attach_month(store: &Store, month: Month) -> Result<()> {
    match store.write("partitions::attach", move |conn| partitions::attach(conn, month)).await? {
        Attached::Already => {}
        Attached::Now { moved } => log::info!(month = month.table(), moved; "month attached"),
        Attached::Skipped => {
            log::warn!(month = month.table(); "too many events are stored outside of this month: it stays unattached");
        }
    }
    Ok(())
}

/// Deletes history that is older than the lifetime, one replica at a time.
async fn clean_history(app: &App, ledger: &mut Ledger, until: &StopCondition) -> Result<()> {
    let Some(turn) = LeaseGuard::take(&app.store, "history".to_owned()).await? else { return Ok(()) };
    let mut result = Ok(());
    for past in HistoryTable::ALL {
        result = delete_past(app, &turn, past, until).await;
        if result.is_err() {
            break;
        }
    }
    if result.is_ok() {
        result = prune_decisions(app, &turn, until).await;
    }
    if result.is_ok() {
        let before = Timestamp::now().plus(-stored_queries::UNUSED_MAX);
        let expire = move |conn: &mut _| stored_queries::expire(conn, before);
        result = app.store.write("stored_queries::expire", expire).await.map(drop);
    }
    if result.is_ok() {
        result = ledger.expire(app, &turn, until).await;
    }
    turn.end().await;
    result
}

/// The walk through the key ledger, from one clean-up to the next.
#[derive(Default)]
struct Ledger {
    mark: Option<Mark>,
    /// When the last walk began that is over.
    walked: Option<Instant>,
    began: Option<Instant>,
}

/// A walk reads all of the ledger: so many are made in the lifetime of a key.
const WALKS: u32 = 30;

impl Ledger {
    /// Deletes keys that are older than their lifetime, if they have one.
    async fn expire(&mut self, app: &App, turn: &LeaseGuard, until: &StopCondition) -> Result<()> {
        let Some(lifetime) = app.config.retention.keys else { return Ok(()) };
        if self.mark.is_none() && self.walked.is_some_and(|walked| clock::since(walked) < lifetime / WALKS) {
            return Ok(());
        }
        let before = Timestamp::now().plus(-(lifetime.as_micros() as i64));
        let mut mark = self.mark.take().unwrap_or_else(|| {
            self.began = Some(clock::moment());
            Mark::default()
        });
        while !until.is_over() {
            let (name, holder, from) = (turn.name.clone(), turn.holder.clone(), mark.clone());
            let expire = move |conn: &mut _| sql::expire_keys(conn, (&name, &holder), &from, before);
            let step = app.store.write("keys::expire", expire).await?;
            metrics::counter!("open_spanner_ledger_expired_keys_total").increment(step.deleted as u64);
            match step.next {
                Some(next) => mark = next,
                None => {
                    self.walked = self.began;
                    return Ok(());
                }
            }
        }
        self.mark = Some(mark);
        Ok(())
    }
}

/// Deletes consumption decisions that are older than their own lifetime, and records it for each workspace.
async fn prune_decisions(app: &App, turn: &LeaseGuard, until: &StopCondition) -> Result<()> {
    let now = Timestamp::now();
    let before = now.plus(-(app.config.retention.decisions.as_micros() as i64));
    let limit = app.config.history.batch_size as i64;
    let list = move |conn: &mut _| decisions::outdated(conn, before);
    for workspace_id in app.store.read("decisions::outdated", list).await? {
        let (mut deleted, mut outcome) = (0, Ok(limit));
        while matches!(outcome, Ok(count) if count >= limit) && !until.is_over() {
            let (name, holder) = (turn.name.clone(), turn.holder.clone());
            let prune =
                move |conn: &mut _| decisions::prune(conn, (&name, &holder), workspace_id, before, limit);
            outcome = app.store.write("decisions::prune", prune).await;
            deleted += outcome.as_ref().copied().unwrap_or_default();
        }
        if deleted > 0 {
            let run = decisions::PruneRun {
                id: chance::id().to_string(),
                workspace_id,
                decided_before: before.0,
                deleted,
                created_at: now.0,
            };
            let add = move |conn: &mut _| decisions::add_prune_run(conn, &run);
            app.store.write("decisions::add_prune_run", add).await?;
        }
        outcome?;
    }
    Ok(())
}

async fn delete_past(app: &App, turn: &LeaseGuard, past: HistoryTable, until: &StopCondition) -> Result<()> {
    let settings = &app.config.history;
    let before = Timestamp::now().plus(-(settings.retention.as_micros() as i64));
    let limit = settings.batch_size as i64;
    while !until.is_over() {
        let (name, holder) = (turn.name.clone(), turn.holder.clone());
        let delete =
            move |conn: &mut _| ingestion_runs::delete_past(conn, (&name, &holder), past, before, limit);
        let deleted = app.store.write("history::delete_past", delete).await?;
        metrics::counter!("open_spanner_operational_history_cleanup_deleted_total", "kind" => past.name())
            .increment(deleted as u64);
        if (deleted as i64) < limit {
            break;
        }
    }
    Ok(())
}

const PARTITIONS_INTERVAL: Duration = Duration::from_secs(24 * 3600);

/// Starts the timers. They end, between two transactions, once the server drains.
pub fn start(app: &App) -> Vec<JoinHandle<()>> {
    let stop = app.phase.draining();
    let mut timers = vec![
        tokio::spawn(clean_history_forever(app.clone(), stop.clone())),
        tokio::spawn(attach_months_forever(app.store.clone(), stop.clone())),
        tokio::spawn(check_forever(app.store.clone(), stop.clone())),
    ];
    let settings = &app.config.retention;
    if settings.prune_enabled {
        let (interval, timeout) = (settings.prune_interval, settings.prune_timeout);
        log::info!(interval:? = interval, timeout:? = timeout; "retention prune worker started");
        timers.push(tokio::spawn(prune_forever(app.clone(), stop)));
    }
    timers
}

/// Waits for the next turn of a timer; false when the server drains.
async fn tick(interval: Duration, stop: &CancellationToken) -> bool {
    tokio::select! {
        () = stop.cancelled() => false,
        () = tokio::time::sleep(interval) => true,
    }
}

async fn prune_forever(app: App, stop: CancellationToken) {
    let settings = app.config.retention.clone();
    let mut pruner = Pruner::default();
    let heart = Heartbeat::new(app.store.clone(), "retention");
    let beats = heart.start();
    while tick(settings.prune_interval, &stop).await {
        let deadline = clock::moment().checked_add(settings.prune_timeout);
        let until = StopCondition { stop: stop.clone(), deadline };
        let round = pruner.round(&app.store, &until).await;
        heart.note(round.is_ok());
        if let Err(error) = round {
            log::warn!(error:% = error; "pruning failed");
        }
    }
    heart.stop(beats).await;
}

async fn clean_history_forever(app: App, stop: CancellationToken) {
    let settings = app.config.history.clone();
    let heart = Heartbeat::new(app.store.clone(), "history");
    let beats = heart.start();
    let mut ledger = Ledger::default();
    while tick(settings.interval, &stop).await {
        let deadline = clock::moment().checked_add(settings.timeout);
        let until = StopCondition { stop: stop.clone(), deadline };
        let cleaned = clean_history(&app, &mut ledger, &until).await;
        heart.note(cleaned.is_ok());
        if let Err(error) = cleaned {
            log::warn!(error:% = error; "history clean-up failed");
        }
    }
    heart.stop(beats).await;
}

async fn attach_months_forever(store: Store, stop: CancellationToken) {
    while tick(PARTITIONS_INTERVAL, &stop).await {
        if let Err(error) = attach_months(&store).await {
            log::warn!(error:% = error; "months were not attached");
        }
    }
}

const CHECK_INTERVAL: Duration = Duration::from_secs(3600);
/// A check that ended less long ago is that of this hour, whichever server made it; timers and clocks are not exact.
const CHECKED_LATELY: i64 = 59 * 60 * SECOND;

async fn check_forever(store: Store, stop: CancellationToken) {
    while tick(CHECK_INTERVAL, &stop).await {
        if let Err(error) = check_totals(&store, &stop).await {
            log::warn!(error:% = error; "totals were not compared with their events");
        }
    }
}

/// Compares one hour and puts down what came out; false when somebody has done so lately or is at it, and when told to stop.
pub async fn check_totals(store: &Store, stop: &CancellationToken) -> Result<bool> {
    // where events lie on nodes, each look would ask all of them
    if store.is_distributed() {
        return Ok(false);
    }
    let Some(turn) = LeaseGuard::take(store, "self-check".to_owned()).await? else { return Ok(false) };
    let stop = stop.child_token();
    let checked = tokio::select! {
        checked = check_an_hour(store, &stop) => checked,
        () = turn.keep(&stop) => Ok(false),
    };
    turn.end().await;
    checked
}

async fn check_an_hour(store: &Store, stop: &CancellationToken) -> Result<bool> {
    let now = Timestamp::now();
    let done = store.read("jobs::chores", work::chores).await?;
    let last = done.iter().find(|chore| chore.name == work::SELF_CHECK);
    // one that lies ahead was put down before the clock was set back
    if last.is_some_and(|last| (0..CHECKED_LATELY).contains(&(now.0 - last.done_at))) {
        return Ok(false);
    }
    let hour = self_check::some_hour(now);
    let found = tokio::select! {
        found = self_check::differences(store, hour) => found?,
        () = stop.cancelled() => return Ok(false),
    };
    for self_check::Difference { meter_id, in_totals, stored } in &found {
        log::error!(meter_id, hour:% = hour, in_totals, stored; "totals differ from the events that they are made of");
    }
    let count = found.len() as i64;
    let note = move |conn: &mut Conn| work::note_chore(conn, work::SELF_CHECK, count, Timestamp::now());
    store.write("chores::note", note).await?;
    Ok(true)
}
