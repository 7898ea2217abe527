//! Events as they are answered, by every door, and as answers are kept to be given again: what is stored of an event, and
//! what was found under a used key. Pure.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::error::{Error, Result};
use crate::metering::event::Event;
use crate::metering::quantity::Quantity;
use crate::metering::time::Timestamp;

/// An event as it is answered (rest.md 12.4); fields in wire order.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = UsageEvent)]
pub struct StoredEvent {
    pub id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
    pub subject: String,
    pub meter: String,
    pub quantity: Quantity,
    pub timestamp: Timestamp,
    pub received_at: Timestamp,
    #[schema(value_type = Object)]
    pub metadata: Box<RawValue>,
    /// Only with a used idempotency key whose event was pruned, when another payload comes with it: what is not known
    /// any more is left empty, meter, quantity and metadata.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schema(required = false)]
    pub pruned: bool,
    /// Only in an answer to another payload under the event's key.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schema(required = false)]
    pub conflict: bool,
    /// What differed, as far as it is known: `subject`, `meter`, `quantity`, `metadata`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    pub conflict_fields: Vec<&'static str>,
}

impl StoredEvent {
    pub fn of(event: &Event) -> Self {
        event.clone().into()
    }

    /// As it is answered to another event that came with its key. Of a pruned one little is known.
    pub fn in_conflict_with(mut self, sent: &Event) -> Self {
        let sent = StoredEvent::of(sent);
        let fields = [
            ("subject", sent.subject != self.subject),
            ("meter", !self.pruned && sent.meter != self.meter),
            ("quantity", !self.pruned && sent.quantity != self.quantity),
            ("metadata", !self.pruned && sent.metadata.get() != self.metadata.get()),
        ];
        self.conflict = true;
        self.conflict_fields = fields.iter().filter(|(_, differs)| *differs).map(|(name, _)| *name).collect();
        self
    }
}

/// The event that a used idempotency key stands for.
#[derive(Clone, Debug)]
pub struct Original {
    pub event: StoredEvent,
    /// The payload that comes with the key now is another one.
    pub conflict: bool,
}

impl From<Event> for StoredEvent {
    fn from(event: Event) -> Self {
        StoredEvent {
            id: event.id.to_string(),
            idempotency_key: event.key,
            subject: event.subject,
            meter: event.meter.name.clone(),
            quantity: event.quantity,
            timestamp: event.time,
            received_at: event.received_at,
            metadata: event.metadata.unwrap_or_else(no_metadata),
            pruned: false,
            conflict: false,
            conflict_fields: Vec::new(),
        }
    }
}

/// A stored event with exact times, the way answers are kept to be given again: REST cuts times, gRPC does not.
#[derive(Serialize, Deserialize)]
struct Kept {
    id: String,
    key: Option<String>,
    subject: String,
    meter: String,
    quantity: Quantity,
    at: i64,
    received: i64,
    metadata: Box<RawValue>,
    pruned: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    place: Option<usize>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    conflict: bool,
}

/// An event as a call was answered with it.
#[derive(Clone, Debug)]
pub struct Answered {
    /// Position among the valid events of the call; of a duplicate, where that was kept.
    pub place: Option<usize>,
    pub event: StoredEvent,
}

/// The text that [`decode_replay`] reads.
pub fn encode_replay(events: impl IntoIterator<Item = Answered>) -> Result<String> {
    let kept = |Answered { place, event }: Answered| Kept {
        place,
        conflict: event.conflict,
        id: event.id,
        key: event.idempotency_key,
        subject: event.subject,
        meter: event.meter,
        quantity: event.quantity,
        at: event.timestamp.0,
        received: event.received_at.0,
        metadata: event.metadata,
        pruned: event.pruned,
    };
    let kept: Vec<Kept> = events.into_iter().map(kept).collect();
    serde_json::to_string(&kept).map_err(Error::internal)
}

pub fn decode_replay(text: &str) -> Result<Vec<Answered>> {
    let kept: Vec<Kept> = serde_json::from_str(text).map_err(Error::internal)?;
    let answered = |kept: Kept| Answered {
        place: kept.place,
        event: StoredEvent {
            id: kept.id,
            idempotency_key: kept.key,
            subject: kept.subject,
            meter: kept.meter,
            quantity: kept.quantity,
            timestamp: Timestamp(kept.at),
            received_at: Timestamp(kept.received),
            metadata: kept.metadata,
            pruned: kept.pruned,
            conflict: kept.conflict,
            conflict_fields: Vec::new(),
        },
    };
    Ok(kept.into_iter().map(answered).collect())
}

/// Canonical metadata text as raw JSON; absent is the empty object. `None` for text that is no JSON.
pub fn raw_metadata(text: Option<String>) -> Option<Box<RawValue>> {
    text.map_or_else(|| Some(no_metadata()), |text| RawValue::from_string(text).ok())
}

/// The empty object.
pub fn no_metadata() -> Box<RawValue> {
    RawValue::from_string("{}".to_owned()).unwrap_or_else(|_| RawValue::NULL.to_owned())
}
