//! The rows of running worker processes. When a process writes its own is decided in `heartbeat`.

use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Nullable, Text};

use crate::db::schema::worker_instances;
use crate::db::{Conn, DbError};
use crate::metering::time::{DAY, Timestamp};

/// One running worker process.
#[derive(Clone, Debug, Queryable, Selectable)]
#[diesel(table_name = worker_instances)]
pub struct Instance {
    pub instance_id: String,
    pub worker: String,
    pub started_at: i64,
    pub last_heartbeat_at: i64,
    pub last_success_at: Option<i64>,
    pub last_failure_at: Option<i64>,
}

/// Says that a worker lives; forgets instances that have been silent for a day.
pub fn heartbeat(conn: &mut Conn, instance: &Instance, now: Timestamp) -> Result<(), DbError> {
    let text = "INSERT INTO worker_instances AS w
                    (instance_id, worker, started_at, last_heartbeat_at, last_success_at, last_failure_at)
                VALUES ($1, $2, $3, $4, $5, $6)
                ON CONFLICT (worker, instance_id) DO UPDATE SET last_heartbeat_at = excluded.last_heartbeat_at,
                    last_success_at = excluded.last_success_at, last_failure_at = excluded.last_failure_at";
    sql_query(text)
        .bind::<Text, _>(&instance.instance_id)
        .bind::<Text, _>(&instance.worker)
        .bind::<BigInt, _>(instance.started_at)
        .bind::<BigInt, _>(now.0)
        .bind::<Nullable<BigInt>, _>(instance.last_success_at)
        .bind::<Nullable<BigInt>, _>(instance.last_failure_at)
        .execute(conn)?;
    diesel::delete(worker_instances::table.filter(worker_instances::last_heartbeat_at.lt(now.0 - DAY)))
        .execute(conn)?;
    Ok(())
}

/// Says that a worker is gone.
pub fn leave(conn: &mut Conn, worker: &str, instance_id: &str) -> Result<(), DbError> {
    diesel::delete(worker_instances::table.find((worker, instance_id))).execute(conn)?;
    Ok(())
}

/// The worker processes that are known, by worker.
pub fn list(conn: &mut Conn) -> Result<Vec<Instance>, DbError> {
    Ok(worker_instances::table
        .order((worker_instances::worker, worker_instances::started_at))
        .select(Instance::as_select())
        .load(conn)?)
}
