//! The job of evaluating the rules of a meter: what it carries, and the keys under which requests for it coalesce.

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::jobs::queue::NewJob;
use crate::metering::time::Timestamp;

pub const QUEUE: &str = "alerts";
/// Usage is gathered for a moment before rules look at it, so that a busy meter is not evaluated for every write.
pub const GATHER: i64 = 250_000;

/// A request to evaluate rules of a meter.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MeterJob {
    pub meter_id: i64,
    /// For operators.
    pub meter: String,
    /// Only rules whose time has come; else all of them, because usage was stored.
    pub due_only: bool,
}

impl MeterJob {
    /// The one job of a meter that follows the clock.
    pub fn timed(workspace_id: i64, meter_id: i64, meter: &str, at: Timestamp) -> Result<NewJob> {
        let job = MeterJob { meter_id, meter: meter.to_owned(), due_only: true };
        NewJob::new(QUEUE, meter_id.to_string(), workspace_id, &job, at)
    }

    /// What a write asks for; one key per writer, so that writers do not wait for each other's row.
    pub fn usage(workspace_id: i64, meter_id: i64, meter: &str, lane: i16, now: Timestamp) -> Result<NewJob> {
        let job = MeterJob { meter_id, meter: meter.to_owned(), due_only: false };
        NewJob::new(QUEUE, format!("{meter_id}/{lane}"), workspace_id, &job, now.plus(GATHER))
    }
}
