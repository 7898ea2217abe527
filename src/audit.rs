//! Reading the trail of changes, checking its chains, and pruning what is past its retention. Rows are written by
//! `db::audit`, in the transaction of each change.

pub mod sql;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::audit::sql::{AuditEvent, Head, Pruned, Query};
use crate::config::Driver;
use crate::db::{self, Conn, Store};
use crate::error::Result;
use crate::metering::time::{DAY, Timestamp};

/// A page of a workspace's trail, newest first; one row more than the limit tells that there are more.
pub async fn list(store: &Store, query: Query) -> Result<Vec<AuditEvent>> {
    store.read("audit::list", move |conn: &mut Conn| sql::list(conn, &query)).await
}

/// Rows deleted in one transaction.
const BATCH: i64 = 1_000;

fn ago(lifetime: Duration) -> Timestamp {
    Timestamp::now().plus(-(lifetime.as_micros().min(i64::MAX as u128) as i64))
}

/// What the row says that pruning leaves in the chain: the rows behind `from`, through `through`, are gone. The check compares
/// it with the head, so that nobody takes rows away by setting the head alone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    pub from: i64,
    pub through: i64,
    pub rows: i64,
    /// Of the last row that is gone, in hexadecimal digits.
    pub hash: String,
}

impl Note {
    fn of(head: &Head, through: i64, hash: &[u8]) -> Note {
        let from = head.pruned_sequence;
        Note { from, through, rows: through - from, hash: hex(hash) }
    }

    /// From a row of a chain, where it is about pruning.
    fn read(row: &AuditEvent) -> Option<Result<Note, &'static str>> {
        let is_one = row.action == "audit.pruned";
        is_one.then(|| {
            serde_json::from_str(&row.state_after).map_err(|_| "the row does not say what was pruned")
        })
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Rows go by whole days, so that a server that looks every hour leaves one row a day about it.
fn by_days(before: Timestamp, lifetime: Duration) -> Timestamp {
    let is_long = lifetime.as_micros() > DAY as u128;
    if is_long { Timestamp(before.0 - before.0.rem_euclid(DAY)) } else { before }
}

/// Whether a chain has more to prune; counts what went.
fn goes_on(outcome: Pruned, workspace_id: i64, pruned: &mut usize) -> bool {
    match outcome {
        Pruned::Rows(rows) => {
            *pruned += rows;
            rows >= BATCH as usize
        }
        Pruned::Gap => {
            log::error!(workspace = workspace_id; "rows are missing from the audit trail, which is not pruned until `open-spanner audit verify` finds it whole");
            false
        }
    }
}

/// Deletes what is older than the lifetime, in small transactions; answers how many rows. On PostgreSQL the role of a server
/// need not be able to: then whoever owns the schema does, by a command.
pub async fn prune(store: &Store, lifetime: Duration) -> Result<usize> {
    static TOLD: AtomicBool = AtomicBool::new(false);
    let (before, mut pruned) = (by_days(ago(lifetime), lifetime), 0);
    if !store.read("audit::may_prune", sql::may_prune).await? {
        if !TOLD.swap(true, Ordering::Relaxed) {
            log::info!(
                "the role of this server may not prune the audit trail: `open-spanner audit prune` does, as the owner of the schema"
            );
        }
        return Ok(0);
    }
    for head in store.read("audit::heads", sql::heads).await? {
        let id = head.workspace_id;
        let work = move |conn: &mut Conn| sql::prune(conn, id, before, BATCH);
        while goes_on(store.write("audit::prune", work).await?, id, &mut pruned) {}
    }
    Ok(pruned)
}

/// The same for a command.
pub fn prune_as_operator(driver: &Driver, lifetime: Duration) -> Result<usize> {
    let (before, mut pruned) = (ago(lifetime), 0);
    for head in db::once(driver, sql::heads)? {
        let id = head.workspace_id;
        let work = |conn: &mut Conn| sql::prune(conn, id, before, BATCH);
        while goes_on(db::once_as_operator(driver, "audit::prune", work)?, id, &mut pruned) {}
    }
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
        verify_as_it_moves(driver, head, &mut verdict)?;
    }
    for (workspace_id, sequence) in db::once(driver, sql::without_head)? {
        verdict.broken.push(Broken { workspace_id, sequence, why: "the chain has no head" });
    }
    let told: Vec<i64> = verdict.broken.iter().map(|broken| broken.workspace_id).collect();
    for workspace_id in db::once(driver, sql::without_chain)? {
        if !told.contains(&workspace_id) {
            verdict.broken.push(Broken { workspace_id, sequence: 1, why: "the workspace has no chain" });
        }
    }
    Ok(verdict)
}

/// A chain that was pruned while it was read is read again.
fn verify_as_it_moves(driver: &Driver, mut head: Head, verdict: &mut Verdict) -> Result<()> {
    const LOOKS_MAX: usize = 5;
    for look in 1..=LOOKS_MAX {
        let (rows, broken) = verify_chain(driver, &head)?;
        let id = head.workspace_id;
        let now = db::once(driver, move |conn| sql::head(conn, id))?;
        let moved = now.filter(|now| now.pruned_sequence != head.pruned_sequence);
        match (&broken, moved) {
            (Some(_), Some(moved)) if look < LOOKS_MAX => head = moved,
            _ => {
                verdict.rows += rows;
                verdict.broken.extend(broken);
                return Ok(());
            }
        }
    }
    Ok(())
}

/// How many rows fit, and the first place where one does not.
fn verify_chain(driver: &Driver, head: &Head) -> Result<(usize, Option<Broken>)> {
    let mut link = Link::first(head);
    while link.sequence < head.sequence {
        let (id, after) = (head.workspace_id, link.sequence);
        let page = db::once(driver, move |conn| sql::chain(conn, id, after, BATCH))?;
        if page.is_empty() {
            break;
        }
        for row in page.iter().filter(|row| row.sequence <= head.sequence) {
            if let Err(broken) = link.add(row) {
                return Ok((link.rows, Some(broken)));
            }
        }
    }
    let last = link.check_head(head).err();
    Ok((link.rows, last))
}

/// How far a chain was followed.
struct Link {
    workspace_id: i64,
    sequence: i64,
    hash: Vec<u8>,
    rows: usize,
    /// What the last row about pruning said.
    pruned: Option<Note>,
}

impl Link {
    fn first(head: &Head) -> Link {
        let (sequence, hash) = (head.pruned_sequence, head.pruned_hash.clone());
        Link { workspace_id: head.workspace_id, sequence, hash, rows: 0, pruned: None }
    }

    fn broken(&self, sequence: i64, why: &'static str) -> Broken {
        Broken { workspace_id: self.workspace_id, sequence, why }
    }

    fn add(&mut self, row: &AuditEvent) -> Result<(), Broken> {
        let expected = self.sequence + 1;
        if row.sequence != expected {
            return Err(self.broken(expected, "the row is missing"));
        }
        if row.entry().hash(row.sequence, &self.hash) != row.hash {
            return Err(self.broken(row.sequence, "the row is not the one that was written"));
        }
        if let Some(note) = Note::read(row) {
            let note = note.map_err(|why| self.broken(row.sequence, why))?;
            let goes_on = self.pruned.as_ref().is_none_or(|before| before.through == note.from);
            if !goes_on
                || note.rows != note.through - note.from
                || note.rows < 1
                || note.through >= row.sequence
            {
                let why = "the row says that others were pruned than can have been";
                return Err(self.broken(row.sequence, why));
            }
            self.pruned = Some(note);
        }
        (self.sequence, self.hash) = (row.sequence, row.hash.clone());
        self.rows += 1;
        Ok(())
    }

    /// Whether the chain ends, and begins, where its head says.
    fn check_head(&self, head: &Head) -> Result<(), Broken> {
        if self.sequence != head.sequence {
            return Err(self.broken(self.sequence + 1, "the newest rows are missing"));
        }
        if self.hash != head.hash {
            return Err(self.broken(self.sequence, "the head does not match the newest row"));
        }
        if head.sequence == 0 {
            return Err(self.broken(1, "the chain is empty"));
        }
        let told = self.pruned.as_ref().map_or((0, String::new()), |note| (note.through, note.hash.clone()));
        if told != (head.pruned_sequence, hex(&head.pruned_hash)) {
            let why = "rows are gone, and no row says that they were pruned";
            return Err(self.broken(head.pruned_sequence.max(1), why));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_whole_where_rows_live_longer_than_one() {
        let at = Timestamp(10 * DAY + 5);
        assert_eq!(by_days(at, Duration::from_secs(86_400 * 30)), Timestamp(10 * DAY));
        assert_eq!(by_days(at, Duration::from_nanos(1)), at);
        assert_eq!(by_days(Timestamp(-5), Duration::MAX), Timestamp(-DAY));
    }
}
