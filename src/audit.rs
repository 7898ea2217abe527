//! Reading the trail of changes, checking its chains, and pruning what is past its retention. Rows are written by
//! `db::audit`, in the transaction of each change.

pub mod sql;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::audit::sql::{AuditEvent, Head, Query};
use crate::config::Driver;
use crate::db::{self, Conn, Store, audit as trail};
use crate::error::Result;
use crate::metering::time::Timestamp;

/// A page of a workspace's trail, newest first; one row more than the limit tells that there are more.
pub async fn list(store: &Store, query: Query) -> Result<Vec<AuditEvent>> {
    store.read("audit::list", move |conn: &mut Conn| sql::list(conn, &query)).await
}

/// Rows deleted in one transaction.
const BATCH: i64 = 1_000;

fn ago(lifetime: Duration) -> Timestamp {
    Timestamp::now().plus(-(lifetime.as_micros().min(i64::MAX as u128) as i64))
}

/// Deletes what is older than the lifetime, in small transactions; answers how many rows. On PostgreSQL the role of a server
/// need not be able to: then whoever owns the schema does, by a command.
pub async fn prune(store: &Store, lifetime: Duration) -> Result<usize> {
    static TOLD: AtomicBool = AtomicBool::new(false);
    let (before, mut pruned) = (ago(lifetime), 0);
    if !store.read("audit::may_prune", sql::may_prune).await? {
        if !TOLD.swap(true, Ordering::Relaxed) {
            log::info!(
                "the role of this server may not prune the audit trail: `open-spanner audit prune` does, as the owner of the schema"
            );
        }
        return Ok(0);
    }
    for head in store.read("audit::heads", sql::heads).await? {
        loop {
            let work = move |conn: &mut Conn| sql::prune(conn, head.workspace_id, before, BATCH);
            let count = store.write("audit::prune", work).await?;
            pruned += count;
            if count < BATCH as usize {
                break;
            }
        }
    }
    Ok(pruned)
}

/// The same for a command; it leaves a row in the server's own chain when there was something to delete.
pub fn prune_as_operator(driver: &Driver, lifetime: Duration) -> Result<usize> {
    let (before, mut pruned) = (ago(lifetime), 0);
    for head in db::once(driver, sql::heads)? {
        loop {
            let count = db::once(driver, |conn| sql::prune(conn, head.workspace_id, before, BATCH))?;
            pruned += count;
            if count < BATCH as usize {
                break;
            }
        }
    }
    db::once_as_operator(driver, "audit::prune_by_operator", |_| {
        trail::states(None, Some(serde_json::json!({"before": before, "rows": pruned})));
        if pruned == 0 {
            trail::nothing_changed();
        }
        Ok(())
    })?;
    Ok(pruned)
}

/// Where a chain is not what was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    pub workspace_id: i64,
    pub sequence: i64,
    pub why: &'static str,
}

/// What the check of all chains came to.
#[derive(Debug, Default)]
pub struct Verdict {
    pub workspaces: usize,
    pub rows: usize,
    pub broken: Vec<Broken>,
}

/// Computes every hash anew, chain by chain. The database may be in use: a row written meanwhile is checked or not.
pub fn verify(driver: &Driver) -> Result<Verdict> {
    let heads = db::once(driver, sql::heads)?;
    let mut verdict = Verdict { workspaces: heads.len(), ..Verdict::default() };
    for head in heads {
        verify_chain(driver, &head, &mut verdict)?;
    }
    for (workspace_id, sequence) in db::once(driver, sql::without_head)? {
        verdict.broken.push(Broken { workspace_id, sequence, why: "the chain has no head" });
    }
    Ok(verdict)
}

fn verify_chain(driver: &Driver, head: &Head, verdict: &mut Verdict) -> Result<()> {
    let (mut sequence, mut hash) = (head.pruned_sequence, head.pruned_hash.clone());
    let broken = |sequence, why| Broken { workspace_id: head.workspace_id, sequence, why };
    while sequence < head.sequence {
        let (id, after) = (head.workspace_id, sequence);
        let page = db::once(driver, move |conn| sql::chain(conn, id, after, BATCH))?;
        if page.is_empty() {
            break;
        }
        for row in page.into_iter().filter(|row| row.sequence <= head.sequence) {
            let expected = sequence + 1;
            if row.sequence != expected {
                verdict.broken.push(broken(expected, "the row is missing"));
                return Ok(());
            }
            if row.entry().hash(row.sequence, &hash) != row.hash {
                verdict.broken.push(broken(row.sequence, "the row is not the one that was written"));
                return Ok(());
            }
            (sequence, hash) = (row.sequence, row.hash);
            verdict.rows += 1;
        }
    }
    if sequence != head.sequence {
        verdict.broken.push(broken(sequence + 1, "the newest rows are missing"));
    } else if hash != head.hash {
        verdict.broken.push(broken(sequence, "the head does not match the newest row"));
    }
    Ok(())
}
