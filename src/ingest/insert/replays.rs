//! A call with a key of its own is answered again as it was answered first.

use std::collections::BTreeMap;

use diesel::prelude::*;

use super::{Batch, InsertBatch, LedgerKey, Outcome, postgres, sqlite};
use crate::db::{Conn, DbError};
use crate::metering::event;
use crate::metering::stored::{self, Answered, Original, StoredEvent};
use crate::metering::time::Timestamp;

/// Of a remembered answer that came from another program: what was sent is not known, and nothing is compared with it.
pub const PAYLOAD_UNKNOWN: i64 = 0;

impl Batch {
    /// Tells calls with the same events from others; times only where they were given.
    fn payload(&self) -> i64 {
        let mut parts = Vec::with_capacity(self.events.len() * 32);
        for event in &self.events {
            parts.extend(event.fingerprint.to_be_bytes());
            parts.extend(if event.time == event.received_at { 0 } else { event.time.0 }.to_be_bytes());
            parts.extend(event.key.as_deref().unwrap_or_default().as_bytes());
            // in no key
            parts.push(0);
        }
        let hash = event::hash128(&[&parts]);
        i64::from_be_bytes([0, 1, 2, 3, 4, 5, 6, 7].map(|at| hash[at]))
    }

    /// Duplicates that a call of this key was answered with: of those in conflict, what differs. Of another call nothing
    /// is compared item by item.
    fn told_again(&self, duplicates: &[Answered], is_another: bool) -> Vec<Answered> {
        let again = |answered: &Answered| {
            let Answered { place, event } = answered.clone();
            if is_another {
                return Answered { place: None, event: StoredEvent { conflict: false, ..event } };
            }
            let sent = place.and_then(|place| self.events.get(place)).filter(|_| event.conflict);
            let event = match sent {
                Some(sent) => event.in_conflict_with(sent),
                None => event,
            };
            Answered { place, event }
        };
        duplicates.iter().map(again).collect()
    }
}

impl InsertBatch<'_> {
    /// Answers batches whose replay key was used before; of several with one new key the first goes on.
    pub(super) fn drop_replayed(&mut self, conn: &mut Conn) -> Result<(), DbError> {
        let mut keys: BTreeMap<LedgerKey, Vec<usize>> = BTreeMap::new();
        for (at, batch) in self.batches.iter().enumerate() {
            // without a valid item there is nothing to replay (rest.md 12.4)
            let counts = self.decided[at].is_none() && !batch.events.is_empty();
            let Some(key) = batch.replay_key.as_deref().filter(|_| counts) else { continue };
            keys.entry((batch.origin.workspace_id, event::ledger_key(key))).or_default().push(at);
        }
        for (key, same) in keys {
            let found = match conn {
                Conn::Postgres(c) => postgres::find_replay(c, &key)?,
                Conn::Sqlite(c) => sqlite::find_replay(c, &key)?,
            };
            match found {
                Some((accepted, duplicates, payload)) => {
                    let (accepted, duplicates) =
                        (stored::decode_replay(&accepted)?, stored::decode_replay(&duplicates)?);
                    for at in same {
                        let conflict = payload != PAYLOAD_UNKNOWN && self.batches[at].payload() != payload;
                        let accepted = accepted.iter().map(|answered| answered.event.clone()).collect();
                        let duplicates = self.batches[at].told_again(&duplicates, conflict);
                        self.decided[at] = Some(Outcome::Replayed { accepted, duplicates, conflict });
                    }
                }
                None => same.into_iter().skip(1).for_each(|at| self.decided[at] = Some(Outcome::Retry)),
            }
        }
        Ok(())
    }

    /// Remembers the answer of calls with a replay key, unless no item was valid.
    pub(super) fn write_replays(&self, conn: &mut Conn) -> Result<(), DbError> {
        for (at, batch) in self.open() {
            let Some(key) = batch.replay_key.as_deref().filter(|_| !batch.events.is_empty()) else {
                continue;
            };
            let (mut accepted, mut duplicates) = (Vec::new(), Vec::new());
            for (item, event) in batch.events.iter().enumerate() {
                match self.duplicates.get(&(at, item)) {
                    Some(Original { event, conflict }) => {
                        let event = StoredEvent { conflict: *conflict, ..event.clone() };
                        duplicates.push(Answered { place: Some(item), event });
                    }
                    None => accepted.push(Answered { place: None, event: StoredEvent::of(event) }),
                }
            }
            let row = ReplayRow {
                workspace_id: batch.origin.workspace_id,
                key: event::ledger_key(key),
                accepted: stored::encode_replay(accepted)?,
                duplicates: stored::encode_replay(duplicates)?,
                payload: batch.payload(),
                created_at: batch.received_at.0,
            };
            crate::both!(conn, c => {
                use diesel::RunQueryDsl;
                diesel::insert_into(crate::db::schema::bulk_replays::table).values(&row).execute(c)?
            });
        }
        Ok(())
    }
}

#[derive(diesel::Insertable)]
#[diesel(table_name = crate::db::schema::bulk_replays, treat_none_as_default_value = false)]
struct ReplayRow {
    workspace_id: i64,
    key: Vec<u8>,
    accepted: String,
    duplicates: String,
    payload: i64,
    created_at: i64,
}

pub(super) fn is_replay(conn: &mut Conn, batch: &Batch) -> Result<bool, DbError> {
    use crate::db::schema::bulk_replays as replays;
    let Some(key) = batch.replay_key.as_deref() else { return Ok(false) };
    let answered: Option<i64> = replays::table
        .find((batch.origin.workspace_id, event::ledger_key(key)))
        .select(replays::created_at)
        .first(conn)
        .optional()?;
    Ok(answered.is_some())
}

/// Deletes up to a thousand remembered bulk answers older than `before`; returns how many.
pub fn sweep_replays(conn: &mut Conn, before: Timestamp) -> Result<usize, DbError> {
    let text = "DELETE FROM bulk_replays WHERE (workspace_id, key) IN (
                    SELECT workspace_id, key FROM bulk_replays WHERE created_at < $1 LIMIT 1000)";
    Ok(diesel::sql_query(text).bind::<diesel::sql_types::BigInt, _>(before.0).execute(conn)?)
}
