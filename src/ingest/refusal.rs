//! What is kept of an event that was refused or that used a key again for something else. Pure.

use crate::chance;
use crate::error::Error;
use crate::ingest::origin::Origin;
use crate::metering::event::{Event, Input, StoredEvent};
use crate::metering::time::Timestamp;
use crate::usage::refused::RefusedEvent;

/// Texts that clients chose are cut here.
const TEXT_CHARACTERS_MAX: usize = 300;
const PAYLOAD_BYTES_MAX: usize = 4_096;

/// What tells events apart, kept until it is known whether this one is valid.
pub struct About {
    subject: Option<String>,
    meter: Option<String>,
    key: Option<String>,
}

impl About {
    pub fn of(input: &Input) -> About {
        About {
            subject: input.subject.clone(),
            meter: input.meter.clone(),
            key: input.idempotency_key.clone(),
        }
    }

    pub fn refused(self, origin: &Origin, error: &Error, now: Timestamp) -> RefusedEvent {
        RefusedEvent {
            workspace_id: origin.workspace_id,
            id: chance::id().into_bytes().to_vec(),
            outcome: "rejected".to_owned(),
            code: error.code.as_str().to_owned(),
            message: cut(&error.message),
            subject: cut(self.subject.as_deref().unwrap_or_default()),
            meter: cut(self.meter.as_deref().unwrap_or_default()),
            idempotency_key: self.key.as_deref().map(cut),
            run_id: origin.run_id.into_bytes().to_vec(),
            sent: None,
            stored: None,
            created_at: now.0,
            request_id: origin.request_id.clone(),
            api_key_id: origin.api_key_id.clone(),
        }
    }
}

/// PostgreSQL keeps no NUL.
fn cut(text: &str) -> String {
    text.chars().filter(|c| *c != '\0').take(TEXT_CHARACTERS_MAX).collect()
}

/// What was sent under a key that stands for another event; `None` for a plain repetition.
pub fn conflict(origin: &Origin, sent: &Event, stored: &StoredEvent) -> Option<RefusedEvent> {
    let different = stored.clone().in_conflict_with(sent).conflict_fields;
    let sent = StoredEvent::of(sent);
    if different.is_empty() {
        return None;
    }
    let payload = |event: &StoredEvent| {
        serde_json::to_string(event).ok().filter(|text| text.len() <= PAYLOAD_BYTES_MAX)
    };
    Some(RefusedEvent {
        workspace_id: origin.workspace_id,
        id: chance::id().into_bytes().to_vec(),
        outcome: "conflict".to_owned(),
        code: "conflict".to_owned(),
        message: format!("the idempotency key stands for another event: {} differ", different.join(", ")),
        subject: cut(&sent.subject),
        meter: cut(&sent.meter),
        idempotency_key: sent.idempotency_key.as_deref().map(cut),
        run_id: origin.run_id.into_bytes().to_vec(),
        stored: payload(stored),
        sent: payload(&sent),
        created_at: Timestamp::now().0,
        request_id: origin.request_id.clone(),
        api_key_id: origin.api_key_id.clone(),
    })
}
