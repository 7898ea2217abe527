//! CloudEvents 1.0 read as usage, the same at every door and in every file: the type names the meter, `source` and `id`
//! together are the idempotency key, `data` holds the quantity and the dimensions. Pure.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::error::{Error, Result};
use crate::metering::event::{
    Input, InputQuantity, KEY_BYTES_MAX, METADATA_BYTES_MAX, Metadata, hash128, read_values,
};
use crate::metering::json::{Map, Unread, Value};
use crate::metering::quantity::Quantity;

/// One event as it is sent. Attributes that are not named here are read over.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
pub struct CloudEvent {
    #[schema(value_type = String, pattern = "^1\\.0$")]
    pub specversion: Option<String>,
    #[schema(value_type = String, min_length = 1)]
    pub id: Option<String>,
    #[schema(value_type = String, min_length = 1)]
    pub source: Option<String>,
    /// Name of the meter.
    #[serde(rename = "type")]
    #[schema(value_type = String, min_length = 1)]
    pub kind: Option<String>,
    /// Whose use it is; without it, `subject` in the data.
    pub subject: Option<String>,
    pub time: Option<String>,
    pub datacontenttype: Option<String>,
    /// An object: `quantity` or `value` is the quantity, a number or a text of one, 1 without it; the rest is metadata.
    #[schema(value_type = Option<Object>)]
    pub data: Option<Box<RawValue>>,
    /// The same in Base64.
    pub data_base64: Option<String>,
}

/// An event as it was sent, for whoever asks why it was refused.
#[derive(Serialize)]
struct AsSent<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    specversion: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<&'a str>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data_base64: Option<&'a str>,
}

/// Fields of the data that hold the quantity, the first that is there.
const QUANTITY_FIELDS: [&str; 2] = ["quantity", "value"];
/// Values of the data that are no metadata: the quantity and the subject.
const DATA_FIELDS_MAX: usize = 2;

impl CloudEvent {
    pub fn into_input(mut self) -> Result<Input> {
        self.take_input()
    }

    /// Of what is read to make an event of it.
    pub fn data_bytes(&self) -> usize {
        let plain = self.data.as_ref().map_or(0, |text| text.get().len());
        plain + self.data_base64.as_ref().map_or(0, String::len)
    }

    /// Takes what makes an event out of it; what is refused is left whole.
    pub fn take_input(&mut self) -> Result<Input> {
        let version = self.specversion.as_deref().unwrap_or("1.0");
        if version != "1.0" {
            return Err(Error::invalid("specversion must be 1.0").at("specversion"));
        }
        let (id, source) = (required(&self.id, "id")?, required(&self.source, "source")?);
        let meter = required(&self.kind, "type")?.to_owned();
        let data = match (&self.data, &self.data_base64) {
            (Some(_), Some(_)) => {
                return Err(Error::invalid("an event has data or data_base64, not both").at("data"));
            }
            (None, Some(packed)) => Some(unpacked(packed).map_err(|error| error.at("data_base64"))?),
            (Some(text), None) => Some(text.get().to_owned()),
            (None, None) => None,
        };
        let mut data = match data.as_deref() {
            None | Some("" | "null") => Map::new(),
            Some(text) => read_values(text, DATA_FIELDS_MAX).map_err(|unread| unfit(unread).at("data"))?,
        };
        let quantity = take_quantity(&mut data).map_err(|error| error.at("data"))?;
        let subject = match (self.subject.take(), data.remove("subject")) {
            (Some(subject), inner) => {
                data.extend(inner.map(|inner| ("subject".to_owned(), inner)));
                Some(subject)
            }
            (None, Some(Value::String(subject))) => Some(subject),
            _ => None,
        };
        Ok(Input {
            idempotency_key: Some(key(source, id)),
            subject,
            meter: Some(meter),
            quantity: Some(quantity),
            timestamp: self.time.take(),
            metadata: Some(Metadata::Values(data)),
            time: None,
        })
    }

    /// The event as JSON, as it was read.
    pub fn as_sent(&self) -> String {
        let sent = AsSent {
            specversion: self.specversion.as_deref(),
            id: self.id.as_deref(),
            source: self.source.as_deref(),
            kind: self.kind.as_deref(),
            subject: self.subject.as_deref(),
            time: self.time.as_deref(),
            data: self.data.as_deref(),
            data_base64: self.data_base64.as_deref(),
        };
        serde_json::to_string(&sent).unwrap_or_default()
    }
}

/// What a client that takes its data for bytes sends: they have to be JSON all the same.
fn unpacked(packed: &str) -> Result<String> {
    let bytes = STANDARD.decode(packed).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    bytes.ok_or_else(|| Error::invalid("data_base64 must be JSON in Base64"))
}

fn unfit(unread: Unread) -> Error {
    match unread {
        Unread::NotAnObject => Error::invalid("data must be a JSON object"),
        Unread::TooManyValues => {
            Error::invalid(format!("data must not be longer than {METADATA_BYTES_MAX} bytes"))
        }
    }
}

fn required<'a>(text: &'a Option<String>, name: &str) -> Result<&'a str> {
    let given = text.as_deref().filter(|text| !text.is_empty());
    given.ok_or_else(|| Error::invalid(format!("{name} is required")).at(name))
}

/// Takes the quantity out of the fields of an event; 1 where there is none.
pub fn take_quantity(data: &mut Map) -> Result<InputQuantity> {
    let name = QUANTITY_FIELDS.into_iter().find(|name| data.contains_key(*name));
    match name.and_then(|name| data.remove(name)) {
        None => Ok(InputQuantity(Ok(1.into()))),
        Some(Value::Number(number)) => Ok(InputQuantity(Quantity::parse(number.as_str()))),
        Some(Value::String(text)) => Ok(InputQuantity(Quantity::parse(text.trim()))),
        Some(_) => Err(Error::invalid("the quantity in data must be a number")),
    }
}

/// No source holds a blank, so that two pairs never become one key. What would be too long is hashed.
fn key(source: &str, id: &str) -> String {
    let plain = format!("{source} {id}");
    if plain.len() <= KEY_BYTES_MAX && !source.contains(' ') && plain.trim() == plain {
        return plain;
    }
    let hash = hash128(&[source.as_bytes(), id.as_bytes()]);
    format!("cloudevent {}", hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metering::json;

    fn read(text: &str) -> Result<Input> {
        serde_json::from_str::<CloudEvent>(text).expect("an event").into_input()
    }

    #[test]
    fn an_event_is_usage() {
        let text = r#"{"specversion":"1.0","id":"a-1","source":"/app","type":"calls","subject":"acme","extra":1,
            "time":"2026-01-01T00:00:00Z","data":{"value":"0.10","region":"eu","subject":"inner"}}"#;
        let input = read(text).expect("usable");
        assert_eq!(input.idempotency_key.as_deref(), Some("/app a-1"));
        assert_eq!((input.meter(), input.subject.as_deref()), ("calls", Some("acme")));
        let quantity = input.quantity.and_then(|quantity| quantity.0.ok()).map(|quantity| quantity.to_json());
        assert_eq!(quantity.as_deref(), Some("0.1"));
        let Some(Metadata::Values(fields)) = input.metadata else { panic!("no metadata") };
        assert_eq!(json::object_text(&fields), r#"{"region":"eu","subject":"inner"}"#);
    }

    #[test]
    fn data_may_be_packed() {
        // {"value":0.10,"region":"eu"}
        let text = r#"{"id":"1","source":"s","type":"m","subject":"a","data_base64":"eyJ2YWx1ZSI6MC4xMCwicmVnaW9uIjoiZXUifQ=="}"#;
        let input = read(text).expect("usable");
        let quantity = input.quantity.and_then(|quantity| quantity.0.ok()).map(|quantity| quantity.to_json());
        assert_eq!(quantity.as_deref(), Some("0.1"));
        let Some(Metadata::Values(fields)) = input.metadata else { panic!("no metadata") };
        assert_eq!(json::object_text(&fields), r#"{"region":"eu"}"#);
    }

    #[test]
    fn what_is_missing_is_said() {
        for (text, word) in [
            (r#"{"id":"1","source":"s","type":"m","specversion":"0.3"}"#, "specversion"),
            (r#"{"source":"s","type":"m"}"#, "id"),
            (r#"{"id":"1","type":"m"}"#, "source"),
            (r#"{"id":"1","source":"s"}"#, "type"),
            (r#"{"id":"1","source":"s","type":"m","data":[1]}"#, "data"),
            (r#"{"id":"1","source":"s","type":"m","data_base64":"AA=="}"#, "data must be"),
            (r#"{"id":"1","source":"s","type":"m","data_base64":"/w=="}"#, "data_base64"),
            (r#"{"id":"1","source":"s","type":"m","data_base64":"e30"}"#, "data_base64"),
            (r#"{"id":"1","source":"s","type":"m","data_base64":"W10="}"#, "data must be"),
            (r#"{"id":"1","source":"s","type":"m","data":{},"data_base64":"e30="}"#, "not both"),
            (r#"{"id":"1","source":"s","type":"m","data":{"value":true}}"#, "quantity"),
        ] {
            let error = read(text).expect_err("refused");
            assert!(error.message.contains(word), "{text}: {}", error.message);
        }
    }

    #[test]
    fn keys_never_meet() {
        assert_ne!(key("a b", "c"), key("a", "b c"));
        assert_ne!(key("a", " b"), key("a", "b"));
        assert!(key(&"s".repeat(300), "1").len() < KEY_BYTES_MAX);
    }
}
