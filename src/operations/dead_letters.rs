//! Jobs that were given up, queued anew: one, those that are picked, or all that match.

use std::collections::BTreeMap;

use serde_json::json;

use crate::alerts::sql::{deliveries, rules};
use crate::app::App;
use crate::db::{Conn, DbError, audit};
use crate::error::{Error, Result};
use crate::jobs::dead_letters::{self, DeadLetter};
use crate::metering::time::Timestamp;
use crate::{alerts, entitlements, exports};

/// Letters looked at in one transaction, and by one call.
const BATCH: i64 = 200;
pub const CALL_MAX: usize = 10_000;

/// What queueing all that match came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Requeued {
    pub queued: usize,
    /// About something that no longer exists: they stay dead.
    pub gone: usize,
    /// There are more than one call looks at: call again.
    pub has_more: bool,
}

/// Queues one job anew; 404 when it is unknown, 409 when it is queued already or about something that is gone.
pub async fn requeue(app: &App, workspace_id: i64, id: String) -> Result<()> {
    let requeue = move |conn: &mut Conn| {
        let letter = dead_letters::get(conn, workspace_id, &id)?;
        if let Some(gone) = what_is_gone(conn, &letter)? {
            return Err(Error::conflict(format!("{gone}: there is nothing left to do")).into());
        }
        dead_letters::requeue(conn, &letter, Timestamp::now())
    };
    app.store.write("jobs::requeue", requeue).await?;
    app.wake.notify();
    Ok(())
}

/// Queues these anew, as far as they are known and nobody did.
pub async fn requeue_picked(app: &App, workspace_id: i64, ids: Vec<String>) -> Result<Requeued> {
    let requeue = move |conn: &mut Conn| {
        let letters = dead_letters::open_of(conn, workspace_id, &ids)?;
        requeue_each(conn, &letters, None)
    };
    let done = app.store.write("jobs::requeue_all", requeue).await?;
    app.wake.notify();
    Ok(done)
}

/// Queues anew what nobody queued yet, of one queue or of all, newest first; each batch is committed on its own.
pub async fn requeue_all(app: &App, workspace_id: i64, queue: Option<String>) -> Result<Requeued> {
    let (mut total, mut after) = (Requeued::default(), None);
    while total.queued + total.gone < CALL_MAX {
        let (queue, from) = (queue.clone(), after.take());
        let batch = move |conn: &mut Conn| requeue_batch(conn, workspace_id, queue.as_deref(), from.as_ref());
        let (done, last) = app.store.write("jobs::requeue_all", batch).await?;
        total.queued += done.queued;
        total.gone += done.gone;
        app.wake.notify();
        if last.is_none() {
            return Ok(total);
        }
        after = last;
    }
    Ok(Requeued { has_more: true, ..total })
}

/// Answers also where the next batch begins, unless this was the last.
fn requeue_batch(
    conn: &mut Conn,
    workspace_id: i64,
    queue: Option<&str>,
    after: Option<&dead_letters::Position>,
) -> Result<(Requeued, Option<dead_letters::Position>), DbError> {
    let filter = dead_letters::Filter { queue, is_open: true, after };
    let letters = dead_letters::list(conn, workspace_id, filter, BATCH)?;
    let done = requeue_each(conn, &letters, queue)?;
    let is_full = letters.len() as i64 == BATCH;
    Ok((done, letters.last().filter(|_| is_full).map(DeadLetter::position)))
}

/// Those that are about something that is gone stay dead. The trail is told how many were not.
fn requeue_each(conn: &mut Conn, letters: &[DeadLetter], queue: Option<&str>) -> Result<Requeued, DbError> {
    let mut done = Requeued::default();
    for letter in letters {
        match what_is_gone(conn, letter)? {
            Some(_) => done.gone += 1,
            None => {
                dead_letters::requeue(conn, letter, Timestamp::now())?;
                done.queued += 1;
            }
        }
    }
    match done.queued {
        0 => audit::nothing_changed(),
        count => audit::states(None, Some(json!({"queue": queue, "requeued": count}))),
    }
    Ok(done)
}

/// Letters that are looked at to tell what queueing all would come to.
const FORESEEN: i64 = 100;

/// What queueing all that match would come to, as far as that can be told without doing it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outlook {
    /// Letters that nobody queued yet, by queue.
    pub open: BTreeMap<String, i64>,
    /// The newest of them, which were looked at.
    pub looked_at: usize,
    /// Of those: what no longer exists, and how many letters are about it.
    pub gone: BTreeMap<&'static str, usize>,
}

/// Looks at what [`requeue_all`] would do.
pub fn outlook(conn: &mut Conn, workspace_id: i64, queue: Option<&str>) -> Result<Outlook, DbError> {
    let is_meant = |name: &String| queue.is_none_or(|queue| queue == name);
    let open = dead_letters::count(conn, workspace_id)?.into_iter().filter(|(name, _)| is_meant(name));
    let mut outlook = Outlook { open: open.collect(), ..Outlook::default() };
    let filter = dead_letters::Filter { queue, is_open: true, after: None };
    let letters = dead_letters::list(conn, workspace_id, filter, FORESEEN)?;
    outlook.looked_at = letters.len();
    for letter in &letters {
        if let Some(gone) = what_is_gone(conn, letter)? {
            *outlook.gone.entry(gone).or_default() += 1;
        }
    }
    Ok(outlook)
}

/// What the job is about and no longer exists, if anything.
pub fn what_is_gone(conn: &mut Conn, letter: &DeadLetter) -> Result<Option<&'static str>, DbError> {
    match letter.queue.as_str() {
        alerts::jobs::QUEUE => rules::what_is_gone(conn, letter),
        deliveries::QUEUE => deliveries::what_is_gone(conn, letter),
        entitlements::jobs::QUEUE => entitlements::evaluate::what_is_gone(conn, letter),
        exports::sql::QUEUE => exports::sql::what_is_gone(conn, letter),
        _ => Ok(None),
    }
}
