//! Usage events: what REST and gRPC both turn their input into, and the rules an event must keep (rest.md 12.4).
//! Pure: no SQL, no clock.

use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::value::RawValue;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::error::{Error, Result};
use crate::metering::expression::Expression;
use crate::metering::json::{self, Map, Number, Unread, Value};
use crate::metering::meter::{Meter, SENT_QUANTITY, value_at};
use crate::metering::quantity::{Quantity, Reject, number_text};
use crate::metering::time::Timestamp;

pub const SUBJECT_BYTES_MAX: usize = 128;
pub const KEY_BYTES_MAX: usize = 255;
/// Of the canonical text.
pub const METADATA_BYTES_MAX: usize = 65_536;
/// Of the text as it is sent: escapes and blanks take up to four times as much.
const METADATA_TEXT_BYTES_MAX: usize = 4 * METADATA_BYTES_MAX;
/// With the comma, in canonical text.
const VALUE_BYTES_MIN: usize = 2;
const METADATA_VALUES_MAX: usize = METADATA_BYTES_MAX / VALUE_BYTES_MIN;
/// A value with its name in the map that holds it, about.
const VALUE_MEMORY_BYTES: usize = 72;
/// Longer names than this are refused, whatever they name.
const NAME_BYTES_HELD: usize = 1024;
/// Nested lists and objects, the metadata itself included. Lists of events add three levels, and many clients read no
/// more than 64.
pub const METADATA_DEPTH_MAX: usize = 60;

/// One event as a client sends it.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[schema(as = UsageEventInput)]
pub struct Input {
    pub idempotency_key: Option<String>,
    #[schema(value_type = String, max_length = 128, pattern = "^[A-Za-z0-9][A-Za-z0-9_.:-]*$")]
    pub subject: Option<String>,
    #[schema(value_type = String, min_length = 1)]
    pub meter: Option<String>,
    #[schema(value_type = Quantity)]
    pub quantity: Option<InputQuantity>,
    #[schema(value_type = Option<Timestamp>)]
    pub timestamp: Option<String>,
    /// At most 64 KiB and 60 levels; texts of declared dimensions at most 256 bytes.
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<Metadata>,
    /// A time that needs no parsing (gRPC).
    #[serde(skip)]
    pub time: Option<Timestamp>,
}

impl Input {
    /// Of the metadata that is read and written when the event is validated; as text at least.
    pub fn metadata_bytes(&self) -> usize {
        match &self.metadata {
            Some(Metadata::Text(text)) => text.get().len(),
            Some(Metadata::Values(fields)) => {
                fields.values().map(Value::count).sum::<usize>() * VALUE_BYTES_MIN
            }
            Some(Metadata::Wrong(_)) | None => 0,
        }
    }

    /// At least what it takes in memory beside its fixed part.
    pub fn memory(&self) -> usize {
        let names = [&self.subject, &self.meter, &self.idempotency_key];
        let names: usize = names.into_iter().flatten().map(String::len).sum();
        names
            + match &self.metadata {
                Some(Metadata::Text(text)) => text.get().len(),
                Some(Metadata::Values(fields)) => {
                    fields.values().map(Value::count).sum::<usize>() * VALUE_MEMORY_BYTES
                }
                Some(Metadata::Wrong(_)) | None => 0,
            }
    }

    /// Takes no more room than it must while it waits: metadata as text, and nothing that is too long to be stored. What is
    /// refused stays so.
    pub fn pack(&mut self) {
        if let Some(Metadata::Values(fields)) = &self.metadata {
            let text = serde_json::value::to_raw_value(fields).map_err(Error::internal);
            let fits = |text: &RawValue| text.get().len() <= METADATA_TEXT_BYTES_MAX;
            let text = text.and_then(|text| if fits(&text) { Ok(text) } else { Err(too_long()) });
            self.metadata = Some(text.map_or_else(Metadata::Wrong, Metadata::Text));
        }
        for name in [&mut self.subject, &mut self.idempotency_key].into_iter().flatten() {
            if name.len() > NAME_BYTES_HELD {
                *name = name.trim().to_owned();
            }
        }
        for name in [&mut self.subject, &mut self.meter, &mut self.idempotency_key].into_iter().flatten() {
            name.truncate(name.floor_char_boundary(NAME_BYTES_HELD));
            name.shrink_to_fit();
        }
    }

    pub fn meter(&self) -> &str {
        self.meter.as_deref().unwrap_or_default()
    }

    /// The event as JSON, as it was read.
    pub fn as_sent(&self) -> String {
        let time = self.time.filter(|time| *time != Timestamp::ABSENT).map(AsSentTime::Read);
        let sent = AsSent {
            idempotency_key: self.idempotency_key.as_deref(),
            subject: self.subject.as_deref(),
            meter: self.meter.as_deref(),
            quantity: self.quantity.as_ref().and_then(|quantity| quantity.0.as_ref().ok()),
            timestamp: self.timestamp.as_deref().map(AsSentTime::Text).or(time),
            metadata: match &self.metadata {
                Some(Metadata::Text(text)) => Some(AsSentMetadata::Text(text)),
                Some(Metadata::Values(fields)) => Some(AsSentMetadata::Values(fields)),
                Some(Metadata::Wrong(_)) | None => None,
            },
        };
        serde_json::to_string(&sent).unwrap_or_default()
    }
}

/// A JSON number. One beyond 64-bit floats is not JSON here (rest.md 2); one with too many digits is refused as
/// the item's own mistake.
#[derive(Clone, Debug)]
pub struct InputQuantity(pub Result<Quantity, Reject>);

impl<'de> Deserialize<'de> for InputQuantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Quantity::parse(number_text(deserializer)?) {
            Err(Reject::OutOfRange) => Err(de::Error::custom("number out of range")),
            parsed => Ok(InputQuantity(parsed)),
        }
    }
}

/// What an event that was refused said, for whoever asks why. What could not be read of it is left out.
#[derive(Serialize)]
struct AsSent<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    idempotency_key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    meter: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    quantity: Option<&'a Quantity>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timestamp: Option<AsSentTime<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<AsSentMetadata<'a>>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum AsSentTime<'a> {
    Text(&'a str),
    Read(Timestamp),
}

#[derive(Serialize)]
#[serde(untagged)]
enum AsSentMetadata<'a> {
    Text(&'a RawValue),
    Values(&'a Map),
}

/// Metadata as a client sends it. Of JSON only the text is kept: what is too long is refused before it becomes values.
#[derive(Clone, Debug)]
pub enum Metadata {
    Text(Box<RawValue>),
    Values(Map),
    /// What the door could not make values of.
    Wrong(Error),
}

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Box::<RawValue>::deserialize(deserializer)?;
        match text.get().starts_with('{') {
            true => Ok(Metadata::Text(text)),
            false => Err(de::Error::custom("metadata is an object")),
        }
    }
}

impl Metadata {
    /// The values. They are taken out where they were values already, and [`Metadata::give_back`] puts them back.
    fn take(&mut self) -> Result<Map> {
        match self {
            Metadata::Values(fields) => Ok(std::mem::take(fields)),
            Metadata::Wrong(error) => Err(error.clone()),
            Metadata::Text(text) => read_values(text.get(), 0).map_err(|unread| match unread {
                Unread::NotAnObject => Error::invalid_json(),
                Unread::TooManyValues => too_long(),
            }),
        }
    }

    fn give_back(&mut self, taken: Map) {
        if let Metadata::Values(fields) = self {
            *fields = taken;
        }
    }
}

/// Reads the text of metadata, or of an object that is metadata but for so many other values: never further than metadata
/// may go.
pub fn read_values(text: &str, others: usize) -> Result<Map, Unread> {
    if text.len() > METADATA_TEXT_BYTES_MAX {
        return Err(Unread::TooManyValues);
    }
    json::parse_small_object(text, METADATA_VALUES_MAX + others)
}

/// Rewrites values in canonical spelling, on one way for every door: depth, NUL, numbers.
fn make_canonical(fields: &mut Map) -> Result<()> {
    check_depth(fields)?;
    fields_canonical(fields)
}

fn check_depth(metadata: &Map) -> Result<()> {
    let depth = 1 + metadata.values().map(Value::depth).max().unwrap_or(0);
    if depth <= METADATA_DEPTH_MAX {
        return Ok(());
    }
    let most = METADATA_DEPTH_MAX;
    Err(Error::invalid(format!("metadata must not be nested deeper than {most} levels")))
}

fn too_long() -> Error {
    Error::invalid(format!("metadata must not be longer than {METADATA_BYTES_MAX} bytes"))
}

/// An event that keeps all rules and only waits to be stored.
#[derive(Clone, Debug)]
pub struct Event {
    pub id: Uuid,
    pub meter: Arc<Meter>,
    pub subject: String,
    pub time: Timestamp,
    pub received_at: Timestamp,
    pub quantity: Quantity,
    pub key: Option<String>,
    /// Canonical JSON object, `None` when empty.
    pub metadata: Option<Box<RawValue>>,
    pub dimension_set: DimensionSet,
    /// Of subject, meter, quantity and metadata, not the time: retries may stamp it anew.
    pub fingerprint: i64,
    /// It was stored elsewhere before, under this very id, and may be brought in again.
    pub is_imported: bool,
    /// What the meter's expression made the quantity of; it is in the metadata, too.
    pub sent: Option<Sent>,
}

/// Quantity and metadata as they came.
#[derive(Clone, Debug)]
pub struct Sent {
    quantity: Quantity,
    metadata: Map,
}

impl Event {
    /// What the ledger is unique by: the key; of an event that was brought in without one, its id.
    pub fn ledger_key(&self) -> Option<Vec<u8>> {
        match &self.key {
            Some(key) => Some(ledger_key(key)),
            None if self.is_imported => Some([&[LEDGER_ID], self.id.as_bytes().as_slice()].concat()),
            None => None,
        }
    }

    /// About what it takes in memory beside its fixed part.
    pub fn bytes(&self) -> usize {
        let metadata = self.metadata.as_ref().map_or(0, |text| text.get().len());
        let copies = if self.sent.is_some() { 2 } else { 1 };
        copies * metadata + self.dimension_set.json.len() + self.subject.len()
    }

    /// What it was made of, to be checked against another version of its meter.
    pub fn into_input(self) -> Input {
        let (quantity, metadata) = match self.sent {
            Some(Sent { quantity, metadata }) => (quantity, Some(Metadata::Values(metadata))),
            None => (self.quantity, self.metadata.map(Metadata::Text)),
        };
        Input {
            idempotency_key: self.key,
            subject: Some(self.subject),
            meter: Some(self.meter.name.clone()),
            quantity: Some(InputQuantity(Ok(quantity))),
            timestamp: None,
            metadata,
            time: Some(self.time),
        }
    }
}

/// The values of the declared dimensions of one event: a canonical JSON object and its hash.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DimensionSet {
    pub hash: [u8; 16],
    /// [`Meter::dimensions_version`] when it was made.
    pub version: i32,
    pub json: String,
}

/// Trims and checks a subject (rest.md 6).
pub fn parse_subject(text: &str) -> Result<&str> {
    let subject = text.trim();
    let starts_well = subject.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    let is_plain = subject.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.:-".contains(&b));
    if !starts_well || !is_plain || subject.len() > SUBJECT_BYTES_MAX {
        return Err(Error::invalid(
            "subject must be 1 to 128 letters, digits, _ . : or -, starting with a letter or digit",
        ));
    }
    Ok(subject)
}

/// Trims an idempotency key; empty means none.
pub fn parse_key(text: Option<&str>) -> Result<Option<String>> {
    let key = text.unwrap_or_default().trim();
    reject_nul(key)?;
    // it stands for any character that was lost on the way: two keys would become one
    if key.contains(char::REPLACEMENT_CHARACTER) {
        return Err(Error::invalid("idempotency_key must be valid Unicode, without U+FFFD"));
    }
    if key.len() > KEY_BYTES_MAX {
        return Err(Error::invalid(format!("idempotency_key must not be longer than {KEY_BYTES_MAX} bytes")));
    }
    Ok((!key.is_empty()).then(|| key.to_owned()))
}

/// RFC 3339; absent, empty and the year-1 instant mean now.
fn parse_time(input: &Input, now: Timestamp) -> Result<Timestamp> {
    let time = match (&input.time, input.timestamp.as_deref()) {
        (Some(time), _) => *time,
        (None, None | Some("")) => return Ok(now),
        (None, Some(text)) => Timestamp::parse(text).ok_or_else(|| {
            Error::parameter("invalid_timestamp", "timestamp must be RFC3339").at("timestamp")
        })?,
    };
    Ok(if time == Timestamp::ABSENT { now } else { time })
}

/// Whether the time can be read, which needs no meter to be known.
pub fn check_time(input: &Input) -> Result<()> {
    parse_time(input, Timestamp::ABSENT).map(drop)
}

/// Makes an event of an input, under an id that nobody has: dimensions, then subject, then quantity, in the order of rest.md 12.4.
pub fn validate(meter: &Arc<Meter>, mut input: Input, now: Timestamp, id: Uuid) -> Result<Event> {
    validate_kept(meter, &mut input, now, id)
}

/// The same; what is refused is left whole, so that it can be told what it was.
pub fn validate_kept(meter: &Arc<Meter>, input: &mut Input, now: Timestamp, id: Uuid) -> Result<Event> {
    let time = parse_time(input, now)?;
    let taken = input.metadata.as_mut().map(Metadata::take).transpose();
    let mut metadata = taken.map_err(|error| error.at("metadata"))?.unwrap_or_default();
    let made = make(meter, input, &mut metadata, (time, now), id);
    if made.is_err() {
        input.metadata.iter_mut().for_each(|sent| sent.give_back(std::mem::take(&mut metadata)));
    }
    made
}

/// Takes the metadata only when nothing can be wrong any more.
fn make(
    meter: &Arc<Meter>,
    input: &Input,
    metadata: &mut Map,
    (time, now): (Timestamp, Timestamp),
    id: Uuid,
) -> Result<Event> {
    make_canonical(metadata)
        .and_then(|()| meter.fit_metadata(metadata))
        // names of dimensions with dots have become levels
        .and_then(|()| check_depth(metadata))
        .map_err(|error| error.at("metadata"))?;
    let subject = parse_subject(input.subject.as_deref().unwrap_or_default());
    let subject = subject.map_err(|error| error.at("subject"))?.to_owned();
    let is_missing = input.quantity.is_none();
    let quantity = match &input.quantity {
        None => Quantity::zero(),
        Some(InputQuantity(Ok(quantity))) => quantity.clone(),
        Some(InputQuantity(Err(reject))) => {
            return Err(Error::invalid(format!("quantity {reject}")).at("quantity"));
        }
    };
    // an expression need not look at it
    if meter.options.value_expression.is_none() && (is_missing || !meter.takes(&quantity)) {
        return Err(Error::invalid(match meter.options.quantity_is {
            None => "quantity must be greater than 0",
            Some(_) => "quantity is required, and a level must not be less than 0",
        })
        .at("quantity"));
    }
    let key = parse_key(input.idempotency_key.as_deref()).map_err(|error| error.at("idempotency_key"))?;
    let dimension_set = dimension_set(meter, metadata);
    let mut text = metadata_text(metadata).map_err(|error| error.at("metadata"))?;
    // of what was sent: a retry is the same event whatever the expression is by then
    let fingerprint = fingerprint(meter, &subject, &quantity, text.as_deref().map(RawValue::get));
    let (quantity, sent) = match &meter.options.value_expression {
        None => (quantity, None),
        Some(expression) => {
            let computed = computed(meter, expression, &quantity, metadata);
            let (value, kept) = computed.map_err(|error| error.at("quantity"))?;
            text = metadata_text(&kept).map_err(|error| error.at("metadata"))?;
            (value, Some(Sent { quantity, metadata: std::mem::take(metadata) }))
        }
    };
    let metadata = text;
    Ok(Event {
        id,
        meter: meter.clone(),
        subject,
        time,
        received_at: now,
        quantity,
        key,
        metadata,
        dimension_set,
        fingerprint,
        is_imported: false,
        sent,
    })
}

/// The quantity that an expression makes, and the metadata with the one that was sent.
fn computed(
    meter: &Meter,
    expression: &Expression,
    sent: &Quantity,
    metadata: &Map,
) -> Result<(Quantity, Map)> {
    let known = Some(sent).filter(|sent| !sent.is_zero());
    let value = expression.quantity(known, metadata)?;
    if !meter.takes(&value) {
        return Err(Error::invalid(format!(
            "value_expression gives {}: quantity must be greater than 0",
            value.to_json()
        )));
    }
    if metadata.contains_key(SENT_QUANTITY) {
        return Err(Error::invalid(format!(
            "metadata.{SENT_QUANTITY} is where a meter with a value_expression keeps the quantity that was sent"
        ))
        .at(&format!("metadata.{SENT_QUANTITY}")));
    }
    let mut kept = metadata.clone();
    kept.insert(SENT_QUANTITY.to_owned(), Value::Number(Number::from(sent)));
    Ok((value, kept))
}

/// An event as another database has it.
#[derive(Clone, Debug)]
pub struct Foreign {
    pub id: Uuid,
    pub subject: String,
    pub time: Timestamp,
    pub received_at: Timestamp,
    pub quantity: Quantity,
    /// As it was stored there: of any length.
    pub key: Option<String>,
    pub metadata: Map,
}

/// Takes over an event that was valid where it comes from, under dimensions that may have changed since: they are not
/// demanded again. What could not be read or stored here is refused.
pub fn take_over(meter: &Arc<Meter>, foreign: Foreign) -> Result<Event> {
    let Foreign { id, subject, time, received_at, quantity, key, mut metadata } = foreign;
    if parse_subject(&subject)? != subject {
        return Err(Error::invalid("subject has blanks around it"));
    }
    reject_nul(key.as_deref().unwrap_or_default())?;
    make_canonical(&mut metadata)?;
    let dimension_set = dimension_set(meter, &metadata);
    // a retry is compared with what was sent
    let sent = sent_of(meter, &metadata);
    let (sent_quantity, sent_metadata) =
        sent.as_ref().map_or((&quantity, &metadata), |sent| (&sent.quantity, &sent.metadata));
    let sent_text = metadata_text(sent_metadata)?;
    let fingerprint = fingerprint(meter, &subject, sent_quantity, sent_text.as_deref().map(RawValue::get));
    let metadata = metadata_text(&metadata)?;
    let (meter, key) = (meter.clone(), key.filter(|key| !key.is_empty()));
    Ok(Event {
        id,
        meter,
        subject,
        time,
        received_at,
        quantity,
        key,
        metadata,
        dimension_set,
        fingerprint,
        is_imported: true,
        sent: None,
    })
}

/// What was sent of an event as it is stored, where an expression made its quantity.
fn sent_of(meter: &Meter, metadata: &Map) -> Option<Sent> {
    meter.options.value_expression.as_ref()?;
    let Value::Number(number) = metadata.get(SENT_QUANTITY)? else { return None };
    let quantity = Quantity::parse(number.as_str()).ok()?;
    let mut metadata = metadata.clone();
    metadata.remove(SENT_QUANTITY);
    Some(Sent { quantity, metadata })
}

/// PostgreSQL cannot store NUL in a text.
pub fn reject_nul(text: &str) -> Result<()> {
    if text.contains('\0') { Err(Error::invalid("NUL characters are not allowed")) } else { Ok(()) }
}

/// Rewrites numbers to one spelling (5.0 and 5e0 become 5), so that equal values are equal text everywhere. Refuses
/// what cannot be stored.
pub fn canonical(value: &mut Value) -> Result<()> {
    match value {
        Value::Number(number) => {
            *number = canonical_number(number)?;
        }
        Value::String(text) => reject_nul(text)?,
        Value::Array(items) => items.iter_mut().try_for_each(canonical)?,
        Value::Object(fields) => fields_canonical(fields)?,
        _ => {}
    }
    Ok(())
}

fn fields_canonical(fields: &mut Map) -> Result<()> {
    fields.iter_mut().try_for_each(|(name, value)| reject_nul(name).and_then(|()| canonical(value)))
}

fn canonical_number(number: &Number) -> Result<Number> {
    match Quantity::parse(number.as_str()) {
        Ok(quantity) => Ok(Number::from(&quantity)),
        Err(Reject::OutOfRange) => Err(Error::invalid_json()),
        Err(reject) => Err(Error::invalid(format!("a metadata number {reject}"))),
    }
}

fn metadata_text(metadata: &Map) -> Result<Option<Box<RawValue>>> {
    if metadata.is_empty() {
        return Ok(None);
    }
    let text = serde_json::value::to_raw_value(metadata).map_err(Error::internal)?;
    if text.get().len().saturating_add(zeros(metadata.values())) > METADATA_BYTES_MAX {
        return Err(too_long());
    }
    Ok(Some(text))
}

/// The zeros of numbers that are written with an exponent. PostgreSQL writes them out whenever it reads them: of 1e308 that
/// is forty times as much.
fn zeros<'a>(values: impl Iterator<Item = &'a Value>) -> usize {
    let of = |value: &Value| match value {
        Value::Number(number) => {
            let exponent =
                number.as_str().split_once(['e', 'E']).and_then(|(_, power)| power.parse::<i64>().ok());
            exponent.map_or(0, |power| power.unsigned_abs() as usize)
        }
        Value::Array(items) => zeros(items.iter()),
        Value::Object(fields) => zeros(fields.values()),
        _ => 0,
    };
    values.map(of).fold(0, usize::saturating_add)
}

/// The declared dimension values found in metadata, under the meter version that declares them.
pub fn dimension_set(meter: &Meter, metadata: &Map) -> DimensionSet {
    let mut values = Map::new();
    for dimension in &meter.dimensions {
        if let Some(value) = value_at(metadata, &dimension.name) {
            values.insert(dimension.name.clone(), value.clone());
        }
    }
    set_of_values(meter, &values)
}

/// Of dimension values by their full names.
pub fn set_of_values(meter: &Meter, values: &Map) -> DimensionSet {
    let json = json::object_text(values);
    // not the version of the meter: most changes of a meter leave the meaning of its sets as it is
    let version = meter.dimensions_version();
    DimensionSet { hash: hash128(&[&version.to_be_bytes(), json.as_bytes()]), version, json }
}

/// The first half of SHA-256 over the parts, each with its length.
pub fn hash128(parts: &[&[u8]]) -> [u8; 16] {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    for part in parts {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part);
    }
    let mut half = [0; 16];
    half.copy_from_slice(&context.finish().as_ref()[..16]);
    half
}

fn fingerprint(meter: &Meter, subject: &str, quantity: &Quantity, metadata: Option<&str>) -> i64 {
    let parts: [&[u8]; 4] = [
        &meter.id.to_be_bytes(),
        subject.as_bytes(),
        &quantity.to_sortable(),
        metadata.unwrap_or_default().as_bytes(),
    ];
    let mut half = [0; 8];
    half.copy_from_slice(&hash128(&parts)[..8]);
    i64::from_be_bytes(half)
}

/// Longest key that the ledger holds as it is.
const LEDGER_PLAIN_MAX: usize = 39;

/// No text begins with it.
const LEDGER_UUID: u8 = 0xFF;
/// Nor with this: the id of an event without a key.
const LEDGER_ID: u8 = 0xFE;

/// What the ledger is unique by. Short keys stand for themselves, because keys that grow with time then land
/// beside each other in the index; of a UUID in its usual spelling only the number is kept, half as long; a long key
/// keeps its beginning and gets a hash, 40 bytes in all. So the three kinds never meet.
pub fn ledger_key(key: &str) -> Vec<u8> {
    let bytes = key.as_bytes();
    if let Some(uuid) = usual_uuid(key) {
        return [&[LEDGER_UUID], uuid.as_bytes().as_slice()].concat();
    }
    if bytes.len() <= LEDGER_PLAIN_MAX {
        return bytes.to_vec();
    }
    [&bytes[..24], &hash128(&[bytes])].concat()
}

/// The UUID that is spelled exactly so: other spellings of it are other keys.
fn usual_uuid(key: &str) -> Option<Uuid> {
    let uuid = Uuid::try_parse(key).ok()?;
    let mut spelled = Uuid::encode_buffer();
    (uuid.hyphenated().encode_lower(&mut spelled) == key).then_some(uuid)
}

/// PostgreSQL keeps JSON in an order and a number spelling of its own; this restores the canonical text.
pub fn canonical_metadata(text: &str) -> Option<String> {
    let mut metadata = json::parse_object(text)?;
    metadata.values_mut().try_for_each(canonical).ok()?;
    Some(json::object_text(&metadata))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects() {
        for good in ["a", " org_7 ", "ten:west", "A.b-c_d", &"x".repeat(128)] {
            assert!(parse_subject(good).is_ok(), "{good}");
        }
        for bad in ["", " ", "_a", ".a", "a b", "a/b", "ä", &"x".repeat(129)] {
            assert!(parse_subject(bad).is_err(), "{bad}");
        }
    }

    /// What waits for long is small, and is refused or taken as it would have been.
    #[test]
    fn packed_inputs_are_small_and_mean_the_same() {
        let values = |count: usize| Map::from([("a".to_owned(), Value::Array(vec![Value::Null; count]))]);
        let mut input = Input {
            subject: Some(format!("{}s", " ".repeat(5_000))),
            meter: Some("ä".repeat(600)),
            metadata: Some(Metadata::Values(values(5_000))),
            ..Input::default()
        };
        assert!(input.memory() > 5_000 * VALUE_MEMORY_BYTES && input.metadata_bytes() >= 10_000);
        input.pack();
        assert_eq!(input.subject.as_deref(), Some("s"));
        assert_eq!(input.meter.as_deref().map(str::len), Some(NAME_BYTES_HELD));
        assert!(input.memory() < 30_000, "{}", input.memory());
        let kept = input.metadata.as_mut().map(Metadata::take).transpose().expect("readable");
        assert_eq!(kept, Some(values(5_000)));
        input.metadata = Some(Metadata::Values(values(100_000)));
        input.pack();
        assert!(input.memory() < 2_000 && matches!(input.metadata, Some(Metadata::Wrong(_))));
    }

    #[test]
    fn ledger_keys_keep_order_and_never_collide() {
        assert!(ledger_key("evt-0001") < ledger_key("evt-0002"));
        let (a, b) = ("k".repeat(40), "k".repeat(41));
        assert_eq!(ledger_key(&a).len(), 40);
        assert_ne!(ledger_key(&a), ledger_key(&b));
        assert_eq!(ledger_key(&"k".repeat(39)).len(), 39);
        let early = "01930000-0000-7000-8000-000000000000";
        assert!(ledger_key(early) < ledger_key("01930000-0001-7000-8000-000000000000"));
        assert_eq!(ledger_key(early).len(), 17);
        let upper = "01930000-0000-7000-8000-00000000000A";
        let path_variants = [
            upper.to_owned(),
            upper.to_lowercase(),
            upper.replace('-', ""),
            upper.to_lowercase().replace('-', ""),
            format!("{{{upper}}}"),
            format!("urn:uuid:{}", upper.to_lowercase()),
        ];
        let keys: std::collections::BTreeSet<Vec<u8>> =
            path_variants.iter().map(|key| ledger_key(key)).collect();
        assert_eq!(keys.len(), path_variants.len(), "spelled otherwise it is another key");
    }

    #[test]
    fn numbers_have_one_spelling() {
        let text = r#"{"b":5.0,"a":[1e2,{"z":0.10}],"c":12345678901234567890}"#;
        let expected = r#"{"a":[100,{"z":0.1}],"b":5,"c":12345678901234567890}"#;
        assert_eq!(canonical_metadata(text).as_deref(), Some(expected));
    }
}
