//! What is kept of an event that was refused or that used a key again for something else. Pure.

use crate::alerts::webhook::SECRET_PREFIX;
use crate::auth::token::{
    ACCESS_PREFIX, DEVICE_PREFIX, INVITATION_PREFIX, KEY_PREFIX, LINK_PREFIX, REFRESH_PREFIX, RESET_PREFIX,
};
use crate::chance;
use crate::error::Error;
use crate::ingest::origin::Origin;
use crate::ingest::preview;
use crate::metering::event::{Event, Input};
use crate::metering::stored::StoredEvent;
use crate::metering::time::Timestamp;
use crate::usage::refused::RefusedEvent;

/// Texts that clients chose are cut here.
const TEXT_CHARACTERS_MAX: usize = 300;
pub const PAYLOAD_BYTES_MAX: usize = 4_096;

/// What tells events apart, and what was sent. Made of those that are refused only.
#[derive(Clone, Debug, Default)]
pub struct About {
    pub subject: String,
    pub meter: String,
    pub key: Option<String>,
    pub payload: Option<String>,
}

impl About {
    pub fn of(input: &Input) -> About {
        About {
            subject: cut(input.subject.as_deref().unwrap_or_default()),
            meter: cut(input.meter()),
            key: input.idempotency_key.as_deref().filter(|key| !key.is_empty()).map(cut),
            payload: Some(cut_payload(&input.as_sent())),
        }
    }

    /// What could not be read as an event at all.
    pub fn of_text(text: &str) -> About {
        About { payload: Some(cut_payload(text)), ..About::default() }
    }

    /// The same with what was really sent.
    pub fn with_payload(self, text: &str) -> About {
        About { payload: Some(cut_payload(text)), ..self }
    }

    pub(super) fn refused(self, origin: &Origin, error: &Error, now: Timestamp) -> RefusedEvent {
        RefusedEvent {
            code: error.code.as_str().to_owned(),
            message: cut(&error.message),
            subject: self.subject,
            meter: self.meter,
            idempotency_key: self.key,
            field: error.field.as_deref().map(cut),
            payload: self.payload,
            ..blank(origin, "rejected", now)
        }
    }
}

fn blank(origin: &Origin, outcome: &str, now: Timestamp) -> RefusedEvent {
    RefusedEvent {
        workspace_id: origin.workspace_id,
        id: chance::id().into_bytes().to_vec(),
        outcome: outcome.to_owned(),
        code: outcome.to_owned(),
        message: String::new(),
        subject: String::new(),
        meter: String::new(),
        idempotency_key: None,
        run_id: origin.run_id.into_bytes().to_vec(),
        sent: None,
        stored: None,
        created_at: now.0,
        request_id: origin.request_id.clone(),
        api_key_id: origin.api_key_id.clone(),
        field: None,
        door: origin.door.as_str().to_owned(),
        payload: None,
    }
}

/// PostgreSQL keeps no NUL; and whoever put a key in the place of a meter does not mean everybody to read it.
fn cut(text: &str) -> String {
    let kept: String = text.chars().filter(|c| *c != '\0').take(TEXT_CHARACTERS_MAX).collect();
    without_secrets(&kept)
}

/// At most 4 KB, whole characters, without NUL, and without what opens anything here, should somebody have sent a key.
pub fn cut_payload(text: &str) -> String {
    // no more than this can become of what is kept
    let near = &text[..text.floor_char_boundary(2 * PAYLOAD_BYTES_MAX)];
    let mut kept = without_secrets(&near.replace('\0', ""));
    kept.truncate(kept.floor_char_boundary(PAYLOAD_BYTES_MAX));
    kept
}

const SECRETS: [&str; 8] = [
    KEY_PREFIX,
    LINK_PREFIX,
    INVITATION_PREFIX,
    ACCESS_PREFIX,
    REFRESH_PREFIX,
    RESET_PREFIX,
    DEVICE_PREFIX,
    SECRET_PREFIX,
];

fn without_secrets(text: &str) -> String {
    SECRETS.into_iter().fold(text.to_owned(), |text, prefix| {
        let mut parts = text.split(prefix);
        let first = parts.next().unwrap_or_default().to_owned();
        parts.fold(first, |kept, part| {
            let rest = part.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-');
            kept + prefix + "…" + rest
        })
    })
}

/// What was sent under a key that stands for another event; `None` for a plain repetition.
pub(super) fn conflict(origin: &Origin, sent: &Event, stored: &StoredEvent) -> Option<RefusedEvent> {
    let different = stored.clone().in_conflict_with(sent).conflict_fields;
    let sent = StoredEvent::of(sent);
    if different.is_empty() {
        return None;
    }
    let whole = |event: &StoredEvent| {
        let text = serde_json::to_string(event).unwrap_or_default();
        Some(text).filter(|text| text.len() <= PAYLOAD_BYTES_MAX).map(|text| cut_payload(&text))
    };
    let error = preview::key_conflict(&different);
    let (stored, whole_sent) = (whole(stored), whole(&sent));
    // of two that cannot be compared what was sent is kept as far as it goes
    let is_cut = stored.is_none() || whole_sent.is_none();
    let text = || cut_payload(&serde_json::to_string(&sent).unwrap_or_default());
    Some(RefusedEvent {
        code: error.code.as_str().to_owned(),
        message: error.message.trim_start_matches("conflict: ").to_owned(),
        subject: cut(&sent.subject),
        meter: cut(&sent.meter),
        idempotency_key: sent.idempotency_key.as_deref().map(cut),
        field: different.first().map(|field| cut(field)),
        payload: is_cut.then(text),
        sent: whole_sent,
        stored,
        ..blank(origin, "conflict", Timestamp::now())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_are_cut_between_characters_and_hold_no_secret() {
        let long = cut_payload(&"aé\0".repeat(4_000));
        assert!(long.len() <= PAYLOAD_BYTES_MAX && long.len() > PAYLOAD_BYTES_MAX - 4);
        assert!(!long.contains('\0') && long.ends_with(['a', 'é']));
        assert_eq!(cut(&format!("no meter \"{KEY_PREFIX}abc-D_9\"")), format!("no meter \"{KEY_PREFIX}…\""));
        let told = cut_payload(&format!(r#"{{"a":"{KEY_PREFIX}abc-D_9","b":"{LINK_PREFIX}x"}}"#));
        assert_eq!(told, format!(r#"{{"a":"{KEY_PREFIX}…","b":"{LINK_PREFIX}…"}}"#));
        assert_eq!(cut_payload("plain"), "plain");
    }

    #[test]
    fn what_was_sent_is_told_as_it_was_read() {
        let text = r#"{"idempotency_key":"k","subject":"s","meter":"m","quantity":1.50,"metadata":{"b": 1,"a":"<x>"}}"#;
        let input: Input = serde_json::from_str(text).expect("an event");
        let about = About::of(&input);
        let expected = r#"{"idempotency_key":"k","subject":"s","meter":"m","quantity":1.5,"metadata":{"b": 1,"a":"<x>"}}"#;
        assert_eq!(about.payload.as_deref(), Some(expected));
    }
}
