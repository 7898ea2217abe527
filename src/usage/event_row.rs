//! A stored event as the lists, exports and replays read it; the columns are named once for both databases.

use crate::db::DbError;
use crate::db::columns::{quantity_of, uuid_of};
use crate::error::Error;
use crate::metering::event;
use crate::metering::stored::{StoredEvent, raw_metadata};
use crate::metering::time::Timestamp;

/// A stored event as both databases return it: quantity as decimal text.
#[derive(diesel::QueryableByName)]
pub struct EventText {
    #[diesel(sql_type = diesel::sql_types::Binary)]
    pub id: Vec<u8>,
    #[diesel(sql_type = diesel::sql_types::Text)]
    pub subject: String,
    #[diesel(sql_type = diesel::sql_types::Text)]
    pub meter: String,
    #[diesel(sql_type = diesel::sql_types::BigInt)]
    pub event_time: i64,
    #[diesel(sql_type = diesel::sql_types::BigInt)]
    pub received_at: i64,
    #[diesel(sql_type = diesel::sql_types::Text)]
    pub quantity: String,
    #[diesel(sql_type = diesel::sql_types::Nullable<diesel::sql_types::Text>)]
    pub idempotency_key: Option<String>,
    #[diesel(sql_type = diesel::sql_types::Nullable<diesel::sql_types::Text>)]
    pub metadata: Option<String>,
}

impl EventText {
    /// `is_canonical`: SQLite keeps metadata as it was written, PostgreSQL reorders it.
    pub fn into_event(self, is_canonical: bool) -> Result<StoredEvent, DbError> {
        let metadata = match self.metadata {
            Some(text) if !is_canonical => Some(event::canonical_metadata(&text).ok_or_else(unreadable)?),
            metadata => metadata,
        };
        Ok(StoredEvent {
            id: uuid_of(&self.id)?.to_string(),
            idempotency_key: self.idempotency_key,
            subject: self.subject,
            meter: self.meter,
            quantity: quantity_of(&self.quantity)?,
            timestamp: Timestamp(self.event_time),
            received_at: Timestamp(self.received_at),
            metadata: raw_metadata(metadata).ok_or_else(unreadable)?,
            pruned: false,
            conflict: false,
            conflict_fields: Vec::new(),
        })
    }
}

fn unreadable() -> Error {
    Error::internal("stored metadata is no JSON")
}

/// The columns of [`EventText`], of `events e` joined with `meters m` and `subjects s`.
pub fn event_columns(is_postgres: bool) -> &'static str {
    if is_postgres {
        "e.id, s.name AS subject, m.name AS meter, e.event_time, e.received_at, e.quantity::text AS quantity, \
         e.idempotency_key, e.metadata::text AS metadata"
    } else {
        "e.id, s.name AS subject, m.name AS meter, e.event_time, e.received_at, quantity_text(e.quantity) AS quantity, \
         e.idempotency_key, e.metadata"
    }
}
