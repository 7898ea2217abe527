//! Which program answers, on which database in which state, and which processes work beside it (rest.md 12.14).

use std::collections::BTreeMap;

use serde::Serialize;
use utoipa::ToSchema;

use crate::db::identity::{self, Installation};
use crate::db::{Conn, DbError};
use crate::jobs::instances::{self, Instance};
use crate::jobs::sql as work;
use crate::metering::time::{SECOND, Timestamp};

/// Who says nothing for longer is gone.
const SILENT_AFTER: i64 = 30 * SECOND;
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// On the wire; fields in contract order.
#[derive(Serialize, ToSchema)]
pub struct SystemInfo {
    pub version: &'static str,
    /// Hash and day of the commit that the program was built from.
    pub commit: &'static str,
    pub role: &'static str,
    pub started_at: Timestamp,
    pub uptime_seconds: i64,
    /// `sqlite` or `postgres`.
    pub database: &'static str,
    /// The newest migration.
    pub schema: String,
    pub installation_id: String,
    /// Grows with each restore and each failover that was noticed.
    pub epoch: i64,
    /// When `open-spanner backup` ended well last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backup_at: Option<Timestamp>,
    /// Processes of several versions work at the same time.
    pub mixed_versions: bool,
    pub processes: Vec<SystemProcess>,
}

/// A process that was alive within the last half minute.
#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct SystemProcess {
    pub host: String,
    pub version: String,
    /// What it works on.
    pub workers: Vec<String>,
    pub started_at: Timestamp,
    pub seen_at: Timestamp,
}

/// The process that answers.
#[derive(Clone, Copy, Debug)]
pub struct Own {
    pub role: &'static str,
    pub database: &'static str,
    pub started_at: Timestamp,
}

pub fn load(conn: &mut Conn, own: Own, now: Timestamp) -> Result<SystemInfo, DbError> {
    let Installation { id, epoch, schema } = identity::installation(conn)?;
    let processes = processes(&instances::list(conn)?, now);
    let chores = work::chores(conn)?;
    let backup = chores.iter().find(|chore| chore.name == work::BACKUP);
    Ok(SystemInfo {
        version: VERSION,
        commit: env!("BUILD_COMMIT"),
        role: own.role,
        started_at: own.started_at,
        uptime_seconds: (now.0 - own.started_at.0).max(0) / SECOND,
        database: own.database,
        schema,
        installation_id: id,
        epoch,
        backup_at: backup.map(|chore| Timestamp(chore.done_at)),
        mixed_versions: processes.iter().any(|process| process.version != VERSION),
        processes,
    })
}

/// Heartbeats by the process that they are of: `host/version/process-unique`.
fn processes(instances: &[Instance], now: Timestamp) -> Vec<SystemProcess> {
    let mut found: BTreeMap<(&str, &str, &str), SystemProcess> = BTreeMap::new();
    for instance in instances.iter().filter(|one| now.0 - one.last_heartbeat_at <= SILENT_AFTER) {
        let mut parts = instance.instance_id.rsplitn(3, '/');
        let (Some(name), Some(version), Some(host)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        let number = name.split('-').next().unwrap_or(name);
        let (started_at, seen_at) = (Timestamp(instance.started_at), Timestamp(instance.last_heartbeat_at));
        let process = found.entry((host, version, number)).or_insert_with(|| SystemProcess {
            host: host.to_owned(),
            version: version.to_owned(),
            workers: Vec::new(),
            started_at,
            seen_at,
        });
        // in a container each process has the same number: one that was killed looks like the one after it for a while
        if !process.workers.contains(&instance.worker) {
            process.workers.push(instance.worker.clone());
        }
        process.started_at = process.started_at.min(started_at);
        process.seen_at = process.seen_at.max(seen_at);
    }
    found.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heartbeats_of_one_process_are_one_process() {
        let beat = |worker: &str, instance_id: &str, started_at: i64, last_heartbeat_at: i64| Instance {
            instance_id: instance_id.to_owned(),
            worker: worker.to_owned(),
            started_at,
            last_heartbeat_at,
            last_success_at: None,
            last_failure_at: None,
        };
        let now = 100 * SECOND;
        let found = processes(
            &[
                beat("alert", "a/0.2.0/7-x", 5, now - 3),
                beat("webhook", "a/0.2.0/7-y", 4, now - 9),
                beat("alert", "a/0.1.9/8-z", 6, now),
                beat("alert", "a/0.1.9/8-killed", 6, now - 5),
                beat("export", "b/0.2.0/7-x", 1, now - 31 * SECOND),
                beat("export", "odd", 1, now),
            ],
            Timestamp(now),
        );
        let told: Vec<_> = found.iter().map(|one| (one.version.as_str(), one.workers.join(","))).collect();
        assert_eq!(told, [("0.1.9", "alert".to_owned()), ("0.2.0", "alert,webhook".to_owned())]);
        assert_eq!((found[1].started_at, found[1].seen_at), (Timestamp(4), Timestamp(now - 3)));
    }
}
