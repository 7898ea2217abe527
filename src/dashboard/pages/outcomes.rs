//! `/events?outcome=…`: what became of events, in one list: those that were stored by their own time, those that were refused by
//! the time that they came at.

use uuid::Uuid;

use crate::app::App;
use crate::dashboard::foot::Cell;
use crate::dashboard::pages::events;
use crate::db::Conn;
use crate::error::{Error, Result};
use crate::http::extract::{decode_cursor, encode_cursor};
use crate::metering::quantity::Quantity;
use crate::metering::stored::StoredEvent;
use crate::metering::time::Timestamp;
use crate::usage::events::{self as event_list, Listed, Position};
use crate::usage::refused::{self, Filter, RefusedEvent};

/// What can be asked for, with its words; stored events alone need no word.
pub const OUTCOMES: [(&str, &str); 4] = [
    ("", "stored"),
    ("rejected", "rejected"),
    ("conflict", "key in conflict"),
    (ALL, "all, refused ones too"),
];
pub const ALL: &str = "all";

/// The word of an address for an outcome.
pub fn parse(word: &str) -> Result<String> {
    match word {
        "accepted" => Ok(String::new()),
        "duplicate" => {
            Err(Error::invalid("outcome duplicate is counted per write call, where each call is listed"))
        }
        word if OUTCOMES.iter().any(|(known, _)| *known == word) => Ok(word.to_owned()),
        _ => Err(Error::invalid("outcome must be accepted, rejected, conflict or all")),
    }
}

/// An event, whatever became of it.
pub struct Row {
    pub at: Timestamp,
    pub outcome: String,
    pub subject: String,
    pub meter: String,
    /// Of one that was stored.
    pub quantity: Option<Quantity>,
    pub key: Option<String>,
    /// Of one that was refused.
    pub code: String,
    pub message: String,
    pub id: String,
    pub link: String,
}

impl Row {
    fn stored(event: StoredEvent) -> Row {
        Row {
            at: event.timestamp,
            outcome: "accepted".to_owned(),
            link: events::link(&event),
            subject: event.subject,
            meter: event.meter,
            quantity: Some(event.quantity),
            key: event.idempotency_key,
            code: String::new(),
            message: String::new(),
            id: event.id,
        }
    }

    fn refused(event: RefusedEvent) -> Row {
        let id = event.public_id();
        Row {
            at: Timestamp(event.created_at),
            outcome: event.outcome,
            subject: event.subject,
            meter: event.meter,
            quantity: None,
            key: event.idempotency_key,
            code: event.code,
            message: event.message,
            link: format!("/events/refused/{id}"),
            id,
        }
    }

    pub fn cells(&self) -> Vec<Cell> {
        let some = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
        vec![
            self.at.into(),
            (&self.outcome).into(),
            (&self.subject).into(),
            (&self.meter).into(),
            self.quantity.as_ref().into(),
            self.key.as_ref().into(),
            some(&self.code).into(),
            some(&self.message).into(),
            (&self.id).into(),
        ]
    }
}

pub const COLUMNS: [&str; 9] =
    ["time", "outcome", "subject", "meter", "quantity", "idempotency_key", "code", "message", "id"];

/// Behind which stored and which refused event a page begins.
type Place = (Option<(i64, String)>, Option<String>);

/// The next rows of a list and where the one after them begins. Stored events are those of `search`, if there is one.
pub async fn find(
    app: &App,
    workspace_id: i64,
    (search, filter): (Option<event_list::Search>, Filter),
    cursor: &str,
    most: usize,
) -> Result<(Vec<Row>, Option<String>)> {
    let wrong = |_| Error::invalid("cursor is not one of ours");
    let mut place: Place = decode_cursor(cursor)?.unwrap_or_default();
    let after = match &place.0 {
        Some((at, id)) => Some(Position { time: Timestamp(*at), id: Uuid::parse_str(id).map_err(wrong)? }),
        None => None,
    };
    let before = place.1.as_deref().map(Uuid::parse_str).transpose().map_err(wrong)?;
    let filter = Filter { before, ..filter };
    let read = move |conn: &mut Conn| {
        let stored = match &search {
            Some(search) => event_list::page(conn, search, after, most + 1)?,
            None => Vec::new(),
        };
        Ok((stored, refused::list(conn, workspace_id, &filter, most as i64 + 1)?))
    };
    let (stored, refused) = app.store.view("event_list::page", false, read).await?;
    let (rows, has_more) = merged(stored, refused, most, &mut place);
    Ok((rows, if has_more { Some(encode_cursor(&place)?) } else { None }))
}

/// The newest of both, where they end, and whether there are more.
fn merged(
    stored: Vec<Listed>,
    refused: Vec<RefusedEvent>,
    most: usize,
    place: &mut Place,
) -> (Vec<Row>, bool) {
    let (mut stored, mut refused) = (stored.into_iter().peekable(), refused.into_iter().peekable());
    let mut rows = Vec::new();
    while rows.len() < most {
        let is_stored = match (stored.peek(), refused.peek()) {
            (Some(one), Some(other)) => one.position.time.0 >= other.created_at,
            (one, _) => one.is_some(),
        };
        if is_stored && let Some(one) = stored.next() {
            place.0 = Some((one.position.time.0, one.position.id.to_string()));
            rows.push(Row::stored(one.event));
        } else if let Some(other) = refused.next() {
            place.1 = Some(other.public_id());
            rows.push(Row::refused(other));
        } else {
            break;
        }
    }
    let has_more = stored.peek().is_some() || refused.peek().is_some();
    (rows, has_more)
}
