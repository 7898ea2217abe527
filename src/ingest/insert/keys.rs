//! The ledger of idempotency keys: who comes first takes the key, and whoever comes later is answered the event that
//! was first, or what is still known of it.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::replays::is_replay;
use super::{Batch, ExistingKey, InsertBatch, KeyRow, LedgerKey, Place, WriteCache, postgres, sqlite};
use crate::db::{Conn, DbError};
use crate::entitlements::sql::decisions;
use crate::metering::event::{self, Event};
use crate::metering::quantity::Quantity;
use crate::metering::stored::{Original, StoredEvent, no_metadata};
use crate::metering::time::Timestamp;

impl InsertBatch<'_> {
    /// Claims the idempotency keys of the batch; whoever comes second gets the event that was first.
    pub(super) fn claim_keys(&mut self, conn: &mut Conn, known: &WriteCache) -> Result<(), DbError> {
        // in the order of keys: two writers that claim the same ones then never wait for each other in a circle
        let mut first: BTreeMap<LedgerKey, (Place, &Event)> = BTreeMap::new();
        let mut later: Vec<(LedgerKey, Place, &Event)> = Vec::new();
        for (place, workspace_id, event) in self.pending_events() {
            let Some(key) = event.ledger_key() else { continue };
            let key = (workspace_id, key);
            match first.entry(key) {
                Entry::Occupied(taken) => later.push((taken.key().clone(), place, event)),
                Entry::Vacant(free) => drop(free.insert((place, event))),
            }
        }
        if first.is_empty() {
            return Ok(());
        }
        let rows: Vec<KeyRow> = first
            .iter()
            .map(|((workspace_id, key), (_, event))| KeyRow {
                workspace_id: *workspace_id,
                key: key.clone(),
                event_id: event.id,
                subject_id: self.subject_id(*workspace_id, &event.subject),
                event_time: event.time.0,
                fingerprint: event.fingerprint,
            })
            .collect();
        let taken = match conn {
            Conn::Postgres(c) => postgres::claim_keys(c, &rows)?,
            Conn::Sqlite(c) => {
                let (taken, progress) = sqlite::claim_keys(c, &known.recent_keys, &rows)?;
                self.learned.settled_keys = Some(progress);
                taken
            }
        };
        let taken: HashMap<&LedgerKey, &ExistingKey> =
            taken.iter().map(|taken| (&taken.key, taken)).collect();
        for (key, (place, event)) in &first {
            if let Some(taken) = taken.get(key) {
                self.duplicates.insert(*place, original_of(taken, event));
            }
        }
        for (key, place, event) in later {
            let Some((_, first)) = first.get(&key) else { continue };
            // the key was taken before, and both are late; or this transaction brings both, and the one that came first is it
            let original = match taken.get(&key) {
                Some(taken) => original_of(taken, event),
                None => Original {
                    event: StoredEvent::of(first),
                    conflict: first.fingerprint != event.fingerprint,
                },
            };
            self.duplicates.insert(place, original);
        }
        Ok(())
    }
}

/// The event that a used key stands for. When retention took it, only the ledger is left: the retry's own fields are
/// the event's where the payload is the same, else what is not known stays empty.
pub(super) fn original_of(taken: &ExistingKey, retry: &Event) -> Original {
    let conflict = taken.fingerprint != retry.fingerprint;
    if let Some(event) = &taken.event {
        return Original { event: event.clone(), conflict };
    }
    let known = StoredEvent {
        id: taken.event_id.to_string(),
        timestamp: Timestamp(taken.event_time),
        received_at: taken.received_at().unwrap_or(retry.received_at),
        ..StoredEvent::of(retry)
    };
    if !conflict {
        return Original { event: known, conflict };
    }
    let event = StoredEvent {
        subject: taken.subject.clone().unwrap_or_default(),
        meter: String::new(),
        quantity: Quantity::zero(),
        metadata: no_metadata(),
        pruned: true,
        ..known
    };
    Original { event, conflict }
}

impl ExistingKey {
    /// To the millisecond, as the id tells.
    pub(super) fn received_at(&self) -> Option<Timestamp> {
        let (seconds, nanos) = self.event_id.get_timestamp()?.to_unix();
        Some(Timestamp(seconds as i64 * 1_000_000 + i64::from(nanos) / 1_000))
    }
}

/// How many events of a batch would be stored: not those of a call that was answered before, nor those whose key is
/// taken, or comes twice.
pub fn count_new(conn: &mut Conn, known: &WriteCache, batch: &Batch) -> Result<u64, DbError> {
    if is_replay(conn, batch)? {
        return Ok(0);
    }
    let keyless = batch.events.iter().filter(|event| event.key.is_none()).count() as u64;
    let keys: BTreeSet<Vec<u8>> =
        batch.events.iter().filter_map(|event| event.key.as_deref()).map(event::ledger_key).collect();
    let keys: Vec<Vec<u8>> = keys.into_iter().collect();
    if batch.consumes.is_some() && !decisions::find_many(conn, batch.origin.workspace_id, &keys)?.is_empty() {
        return Ok(0);
    }
    let taken = count_taken(conn, known, batch.origin.workspace_id, &keys)?;
    Ok(keyless + (keys.len() as u64).saturating_sub(taken))
}

/// How many of these ledger keys are taken.
fn count_taken(
    conn: &mut Conn,
    known: &WriteCache,
    workspace_id: i64,
    keys: &[Vec<u8>],
) -> Result<u64, DbError> {
    use crate::db::schema::idempotency_keys as ledger;
    use diesel::prelude::*;
    let count = match conn {
        Conn::Postgres(c) => {
            let ours = ledger::workspace_id.eq(workspace_id);
            ledger::table
                .filter(ours.and(ledger::key.eq_any(keys)))
                .count()
                .get_result::<i64>(c)?
                .unsigned_abs()
        }
        Conn::Sqlite(c) => {
            let mut count = 0;
            for key in keys {
                let found = known.recent_keys.find(c, &(workspace_id, key.clone()))?;
                count += u64::from(found.is_some());
            }
            count
        }
    };
    Ok(count)
}
