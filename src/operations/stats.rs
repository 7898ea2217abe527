//! Totals of a workspace, and how the background work is (rest.md 12.14). Asks a fixed number of questions, all but
//! that for decisions small; of events it sees those of a partly pruned hour.

use std::collections::HashMap;

use serde::Serialize;
use utoipa::ToSchema;

use crate::alerts::sql::deliveries::{self, Owed};
use crate::db::{Conn, DbError};
use crate::entitlements::sql::decisions;
use crate::exports::sql::CleanupRun;
use crate::jobs::health::{WorkerHealth, WorkerStatus};
use crate::jobs::queue::{self, Background};
use crate::metering::time::Timestamp;
use crate::retention::sql::PruneRun;
use crate::usage::subjects;
use crate::{alerts, entitlements, exports, meters, retention};

/// Totals of the workspace on the wire; fields in contract order.
#[derive(Serialize, ToSchema)]
pub struct SystemStats {
    pub meters: i64,
    pub usage_events: i64,
    pub prune_runs: i64,
    pub last_prune_run: Option<LastPruneRun>,
    /// Decisions that are kept.
    pub consumption_decisions: i64,
    pub decision_prune_runs: i64,
    pub last_decision_prune_run: Option<LastDecisionPruneRun>,
    pub export_cleanup_runs: i64,
    pub last_export_cleanup_run: Option<LastExportCleanupRun>,
    /// Always null: this version has no reconciliation.
    #[schema(value_type = Option<Object>)]
    pub last_reconciliation_run: (),
    pub reconciliation_health: ReconciliationHealth,
    pub ingestion_safety: IngestionSafety,
    pub rollup_health: RollupHealth,
    pub worker_health: Vec<WorkerHealth>,
    pub webhooks: OwedWebhooks,
}

/// Rollups are written in the transaction of their events: they are whole at any time and have nothing to catch up with.
#[derive(Serialize, ToSchema)]
pub struct RollupHealth {
    status: WorkerStatus,
    finalized_through: Timestamp,
    meters: i64,
    healthy_meters: i64,
    issues: i64,
    /// The first by name.
    items: Vec<MeterRollups>,
}

#[derive(Serialize, ToSchema)]
pub struct MeterRollups {
    meter: String,
    status: WorkerStatus,
    expected_through: Timestamp,
    finalized_through: Timestamp,
}

impl RollupHealth {
    fn of(names: Vec<String>, meters: i64, now: Timestamp) -> Self {
        let item = |meter| MeterRollups {
            meter,
            status: WorkerStatus::Healthy,
            expected_through: now,
            finalized_through: now,
        };
        RollupHealth {
            status: WorkerStatus::Healthy,
            finalized_through: now,
            meters,
            healthy_meters: meters,
            issues: 0,
            items: names.into_iter().map(item).collect(),
        }
    }
}

/// What is owed to receivers of the workspace, since when, and why.
#[derive(Serialize, ToSchema)]
pub struct OwedWebhooks {
    /// Neither delivered nor given up.
    pub pending: i64,
    /// Pending, and tried in vain.
    pub failing: i64,
    /// Given up; a retry sends them.
    pub dead_letters: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oldest_pending_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_attempt_at: Option<Timestamp>,
    /// Of the oldest that has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

impl From<Owed> for OwedWebhooks {
    fn from(owed: Owed) -> Self {
        OwedWebhooks {
            pending: owed.pending,
            failing: owed.failing,
            dead_letters: owed.dead_letters,
            oldest_pending_at: owed.oldest_at.map(Timestamp),
            next_attempt_at: owed.next_attempt_at.map(Timestamp),
            last_error: owed.last_error,
        }
    }
}

#[derive(Serialize, ToSchema)]
pub struct LastPruneRun {
    pub id: String,
    pub deleted: i64,
    pub dry_run: bool,
    pub created_at: Timestamp,
}

impl From<PruneRun> for LastPruneRun {
    fn from(run: PruneRun) -> Self {
        LastPruneRun {
            id: run.id.to_string(),
            deleted: run.deleted,
            dry_run: run.dry_run,
            created_at: run.created_at,
        }
    }
}

#[derive(Serialize, ToSchema)]
pub struct LastDecisionPruneRun {
    pub id: String,
    pub before: Timestamp,
    pub deleted: i64,
    pub dry_run: bool,
    pub created_at: Timestamp,
}

impl From<decisions::PruneRun> for LastDecisionPruneRun {
    fn from(run: decisions::PruneRun) -> Self {
        LastDecisionPruneRun {
            id: run.id,
            before: Timestamp(run.decided_before),
            deleted: run.deleted,
            // there is no way to ask for one
            dry_run: false,
            created_at: Timestamp(run.created_at),
        }
    }
}

#[derive(Serialize, ToSchema)]
pub struct LastExportCleanupRun {
    pub id: String,
    pub expired_before: Timestamp,
    pub files_deleted: i64,
    pub bytes_reclaimed: i64,
    pub failures: i64,
    pub created_at: Timestamp,
}

impl From<CleanupRun> for LastExportCleanupRun {
    fn from(run: CleanupRun) -> Self {
        LastExportCleanupRun {
            id: run.id,
            expired_before: Timestamp(run.expired_before),
            files_deleted: run.files_deleted,
            bytes_reclaimed: run.bytes_reclaimed,
            failures: run.failures,
            created_at: Timestamp(run.created_at),
        }
    }
}

/// This version has no reconciliation: it is never more than `not_started`.
#[derive(Serialize, ToSchema)]
pub struct ReconciliationHealth {
    pub status: WorkerStatus,
    pub pending_notifications: i64,
    pub dead_letter_notifications: i64,
}

/// What became of the events that were sent, since the workspace exists.
#[derive(Serialize, ToSchema)]
pub struct IngestionSafety {
    /// Stored, pruned ones included.
    pub accepted_events: i64,
    /// Invalid. Written down every few seconds, like those over the rate limit.
    pub rejected_events: i64,
    pub throttled_events: i64,
}

/// Meters that are listed one by one.
const ROLLUP_ITEMS: i64 = 1_000;

/// In contract order, with the queue that each works on; then our own.
pub const WORKERS: [(&str, Option<&str>); 7] = [
    ("export", Some(exports::sql::QUEUE)),
    ("alert", Some(alerts::jobs::QUEUE)),
    ("entitlement", Some(entitlements::jobs::QUEUE)),
    ("retention", None),
    ("reconciliation", None),
    ("webhook", Some(deliveries::QUEUE)),
    ("history", None),
];

/// All of it, as of now.
pub fn load(
    conn: &mut Conn,
    workspace_id: i64,
    prunes: bool,
    now: Timestamp,
) -> Result<SystemStats, DbError> {
    let totals = subjects::totals(conn, workspace_id)?;
    let kept = decisions::kept(conn, workspace_id)?;
    let owed = deliveries::owed(conn, Some(workspace_id))?;
    let names = meters::sql::names(conn, workspace_id, ROLLUP_ITEMS)?;
    Ok(SystemStats {
        meters: totals.meters,
        usage_events: totals.usage_events,
        prune_runs: subjects::count_prune_runs(conn, workspace_id)?,
        last_prune_run: retention::sql::runs(conn, workspace_id, None, 1)?.pop().map(LastPruneRun::from),
        consumption_decisions: kept.decisions,
        decision_prune_runs: kept.prune_runs,
        last_decision_prune_run: decisions::last_prune_run(conn, workspace_id)?
            .map(LastDecisionPruneRun::from),
        export_cleanup_runs: exports::sql::count_cleanup_runs(conn, workspace_id)?,
        last_export_cleanup_run: exports::sql::last_cleanup_run(conn, workspace_id)?
            .map(LastExportCleanupRun::from),
        last_reconciliation_run: (),
        reconciliation_health: ReconciliationHealth {
            status: WorkerStatus::NotStarted,
            pending_notifications: 0,
            dead_letter_notifications: 0,
        },
        ingestion_safety: IngestionSafety {
            accepted_events: totals.accepted_events,
            rejected_events: totals.rejected_events,
            throttled_events: totals.throttled_events,
        },
        rollup_health: RollupHealth::of(names, totals.meters, now),
        worker_health: work(conn, workspace_id, prunes, (&owed, now))?.workers,
        webhooks: owed.into(),
    })
}

/// How background work is.
pub struct Work {
    /// How each worker is, and what waits for it.
    pub workers: Vec<WorkerHealth>,
    /// Jobs of the workspace that were given up and queued anew by nobody, by queue.
    pub dead_letters: HashMap<String, i64>,
}

/// In one statement, beside what is owed.
pub fn work(
    conn: &mut Conn,
    workspace_id: i64,
    prunes: bool,
    (owed, now): (&Owed, Timestamp),
) -> Result<Work, DbError> {
    let queues: Vec<&str> = WORKERS.iter().filter_map(|(_, queue)| *queue).collect();
    let Background { mut depths, instances } = queue::background(conn, &queues, workspace_id, now)?;
    let dead = depths.iter().filter(|(_, depth)| depth.dead > 0);
    let dead_letters = dead.map(|(queue, depth)| (queue.clone(), depth.dead)).collect();
    let mut workers = Vec::with_capacity(WORKERS.len());
    for (name, queue) in WORKERS {
        let mut depth = queue.and_then(|queue| depths.remove(queue)).unwrap_or_default();
        if queue == Some(deliveries::QUEUE) {
            // what counts is what receivers wait for: its job sleeps while all of it is to be tried again later
            depth.pending = (owed.pending - depth.running).max(0);
            depth.failed = owed.failing + owed.dead_letters;
            depth.oldest_pending_at = owed.oldest_at;
        }
        let is_off = match name {
            "retention" => !prunes,
            "reconciliation" => true,
            _ => false,
        };
        workers.push(WorkerHealth::of(name, is_off, &instances, &depth, now));
    }
    Ok(Work { workers, dead_letters })
}
