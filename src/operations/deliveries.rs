//! Webhooks that are sent once more: those that a person picked, or all that match.

use serde_json::json;

use crate::alerts::sql::deliveries::{self, Filter};
use crate::app::App;
use crate::db::{Conn, audit};
use crate::error::Result;
use crate::metering::time::Timestamp;

/// Deliveries of one transaction, and of one call.
const BATCH: i64 = 200;
pub const CALL_MAX: usize = 10_000;

/// What sending again all that match came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    pub count: usize,
    /// There are more than one call takes: call again.
    pub has_more: bool,
}

fn tell(count: usize) {
    match count {
        0 => audit::nothing_changed(),
        count => audit::states(None, Some(json!({"repeated": count}))),
    }
}

/// Sends these again; answers how many did not wait already.
pub async fn replay_picked(app: &App, workspace_id: i64, public_ids: Vec<String>) -> Result<usize> {
    let replay = move |conn: &mut Conn| {
        let count = deliveries::replay_picked(conn, workspace_id, &public_ids, Timestamp::now())?;
        tell(count);
        Ok(count)
    };
    let count = app.store.write("deliveries::replay", replay).await?;
    app.wake.notify();
    Ok(count)
}

/// Sends all that match again, newest first; each batch is committed on its own.
pub async fn replay_all(app: &App, workspace_id: i64, filter: Filter) -> Result<Replayed> {
    let (mut total, mut filter) = (Replayed::default(), filter);
    while total.count < CALL_MAX {
        let wanted = filter.clone();
        let batch = move |conn: &mut Conn| {
            let done = deliveries::replay(conn, workspace_id, &wanted, BATCH, Timestamp::now())?;
            tell(done.0);
            Ok(done)
        };
        let (count, last) = app.store.write("deliveries::replay", batch).await?;
        total.count += count;
        app.wake.notify();
        if last.is_none() {
            return Ok(total);
        }
        filter.before = last;
    }
    Ok(Replayed { has_more: true, ..total })
}
