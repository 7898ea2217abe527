//! The job of evaluating a subject and a meter: what it carries, and the key under which requests for it coalesce.

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::jobs::queue::NewJob;
use crate::metering::time::Timestamp;

pub const QUEUE: &str = "entitlements";

/// A job: look at a subject and a meter now, or at the past windows that hold `late_at`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evaluation {
    pub subject_id: i64,
    pub meter_id: i64,
    pub late_at: Option<i64>,
}

impl Evaluation {
    pub fn now(subject_id: i64, meter_id: i64) -> Self {
        Evaluation { subject_id, meter_id, late_at: None }
    }

    pub fn job(&self, workspace_id: i64, now: Timestamp) -> Result<NewJob> {
        let Evaluation { subject_id, meter_id, late_at } = self;
        let key = match late_at {
            None => format!("{subject_id}/{meter_id}"),
            Some(at) => format!("{subject_id}/{meter_id}/{at}"),
        };
        NewJob::new(QUEUE, key, workspace_id, self, now)
    }
}
