//! What heartbeats and queues say about a worker (rest.md 12.14). Pure: no clock, no SQL.

use serde::Serialize;
use utoipa::ToSchema;

use crate::jobs::instances::Instance;
use crate::jobs::queue::Depth;
use crate::metering::time::{SECOND, Timestamp};
use crate::string_enum::string_enum;

string_enum!(
    /// How a worker, or one process of it, is.
    WorkerStatus {
        Disabled = "disabled",
        NotStarted = "not_started",
        Stale = "stale",
        Degraded = "degraded",
        Healthy = "healthy",
    }
);

/// A heartbeat older than this is the last one.
const STALE_AFTER: i64 = 30 * SECOND;
/// Work that waits longer than this waits too long.
const LATE_AFTER: i64 = 300 * SECOND;

/// A worker on the wire; fields in the order of rest.md 12.14. Processes are those of the whole installation, jobs those of the
/// workspace.
#[derive(Debug, Serialize, ToSchema)]
pub struct WorkerHealth {
    pub name: &'static str,
    pub status: WorkerStatus,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_heartbeat_at: Option<Timestamp>,
    /// Due, and not begun.
    pub pending_jobs: i64,
    pub running_jobs: i64,
    /// Due again after a failure, or given up and waiting among the dead letters.
    pub failed_jobs: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oldest_pending_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_success_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_failure_at: Option<Timestamp>,
    pub replica_count: usize,
    pub healthy_replicas: usize,
    pub stale_replicas: usize,
    pub instances: Vec<InstanceHealth>,
}

/// One process of a worker.
#[derive(Debug, Serialize, ToSchema)]
pub struct InstanceHealth {
    pub instance_id: String,
    pub status: WorkerStatus,
    pub started_at: Timestamp,
    pub last_heartbeat_at: Timestamp,
}

impl InstanceHealth {
    fn of(instance: &Instance, now: Timestamp) -> Self {
        // one from the future was written before the clock was set back, by who knows whom
        let is_alive = (instance.last_heartbeat_at - now.0).abs() <= STALE_AFTER;
        InstanceHealth {
            instance_id: instance.instance_id.clone(),
            status: if is_alive { WorkerStatus::Healthy } else { WorkerStatus::Stale },
            started_at: Timestamp(instance.started_at),
            last_heartbeat_at: Timestamp(instance.last_heartbeat_at),
        }
    }
}

impl WorkerHealth {
    /// `is_off`: the settings say that it does not run. `instances` are those of all workers.
    pub fn of(
        name: &'static str,
        is_off: bool,
        instances: &[Instance],
        depth: &Depth,
        now: Timestamp,
    ) -> Self {
        let own: Vec<&Instance> = instances.iter().filter(|instance| instance.worker == name).collect();
        let newest = own.iter().max_by_key(|instance| instance.last_heartbeat_at);
        let replicas: Vec<InstanceHealth> =
            own.iter().map(|instance| InstanceHealth::of(instance, now)).collect();
        let healthy = replicas.iter().filter(|replica| replica.status == WorkerStatus::Healthy).count();
        let failed_jobs = depth.failed + depth.dead;
        let is_late = depth.oldest_pending_at.is_some_and(|at| at < now.0 - LATE_AFTER);
        let status = match (healthy, replicas.len()) {
            // another server may have it on
            (0, _) if is_off => WorkerStatus::Disabled,
            (0, 0) => WorkerStatus::NotStarted,
            (0, _) => WorkerStatus::Stale,
            _ if failed_jobs > 0 || is_late => WorkerStatus::Degraded,
            _ => WorkerStatus::Healthy,
        };
        WorkerHealth {
            name,
            status,
            started_at: newest.map(|instance| Timestamp(instance.started_at)),
            last_heartbeat_at: newest.map(|instance| Timestamp(instance.last_heartbeat_at)),
            pending_jobs: depth.pending,
            running_jobs: depth.running,
            failed_jobs,
            oldest_pending_at: depth.oldest_pending_at.map(Timestamp),
            last_success_at: own.iter().filter_map(|instance| instance.last_success_at).max().map(Timestamp),
            last_failure_at: own.iter().filter_map(|instance| instance.last_failure_at).max().map(Timestamp),
            replica_count: replicas.len(),
            healthy_replicas: healthy,
            stale_replicas: replicas.len() - healthy,
            instances: replicas,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_000 * SECOND);

    fn beat(seconds_ago: i64) -> Instance {
        Instance {
            instance_id: format!("i-{seconds_ago}"),
            worker: "alert".into(),
            started_at: 1,
            last_heartbeat_at: NOW.0 - seconds_ago * SECOND,
            last_success_at: Some(seconds_ago),
            last_failure_at: None,
        }
    }

    #[test]
    fn status_by_heartbeats_and_queue() {
        let waiting = |seconds: i64| Depth {
            pending: 1,
            oldest_pending_at: Some(NOW.0 - seconds * SECOND),
            ..Depth::default()
        };
        let failed = Depth { failed: 1, ..Depth::default() };
        let dead = Depth { dead: 1, ..Depth::default() };
        let cases: [(bool, Vec<Instance>, Depth, WorkerStatus); 11] = [
            (false, vec![], Depth::default(), WorkerStatus::NotStarted),
            (true, vec![], Depth::default(), WorkerStatus::Disabled),
            (true, vec![beat(31)], Depth::default(), WorkerStatus::Disabled),
            (true, vec![beat(1)], Depth::default(), WorkerStatus::Healthy),
            (false, vec![beat(31)], Depth::default(), WorkerStatus::Stale),
            (false, vec![beat(31), beat(30)], Depth::default(), WorkerStatus::Healthy),
            (false, vec![beat(-7_200)], Depth::default(), WorkerStatus::Stale),
            (false, vec![beat(1)], waiting(300), WorkerStatus::Healthy),
            (false, vec![beat(1)], waiting(301), WorkerStatus::Degraded),
            (false, vec![beat(1)], failed, WorkerStatus::Degraded),
            (false, vec![beat(1)], dead, WorkerStatus::Degraded),
        ];
        for (at, (is_off, instances, depth, want)) in cases.into_iter().enumerate() {
            let found = WorkerHealth::of("alert", is_off, &instances, &depth, NOW);
            assert_eq!(found.status, want, "case {at}: {found:?}");
            assert_eq!(found.replica_count, found.healthy_replicas + found.stale_replicas);
        }
    }

    #[test]
    fn instances_of_others_do_not_count() {
        let found = WorkerHealth::of("export", false, &[beat(1)], &Depth::default(), NOW);
        assert_eq!((found.status, found.replica_count), (WorkerStatus::NotStarted, 0));
        let found = WorkerHealth::of("alert", false, &[beat(40), beat(2)], &Depth::default(), NOW);
        assert_eq!((found.healthy_replicas, found.stale_replicas), (1, 1));
        assert_eq!(found.last_heartbeat_at, Some(Timestamp(NOW.0 - 2 * SECOND)));
        assert_eq!(found.last_success_at, Some(Timestamp(40)));
    }
}
