//! What the fields of other meters' events mean.

use crate::error::{Error, Result};
use crate::metering::cloudevent::{CloudEvent, take_quantity};
use crate::metering::event::{Input, InputQuantity, Metadata};
use crate::metering::json::{self, Map, Value};
use crate::metering::time::{SECOND, Timestamp};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// CloudEvents, alone or as OpenMeter lists them.
    Openmeter,
    Lago,
    /// Billing meter events.
    Stripe,
}

/// What a cell of a table holds: JSON objects are read, all else is text.
pub fn cell(text: &str) -> Value {
    match json::parse_object(text) {
        Some(fields) => Value::Object(fields),
        None => Value::String(text.to_owned()),
    }
}

impl Format {
    pub fn input(self, fields: Map) -> Result<Input> {
        match self {
            Format::Openmeter => openmeter(fields),
            Format::Lago => lago(fields),
            Format::Stripe => stripe(fields),
        }
    }
}

fn openmeter(mut fields: Map) -> Result<Input> {
    if let Some(Value::Object(event)) = fields.remove("event") {
        fields = event;
    }
    let data = match fields.remove("data") {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) if text.is_empty() => None,
        Some(data) => Some(serde_json::value::to_raw_value(&data).map_err(Error::internal)?),
    };
    let mut text = |name: &str| text_of(&mut fields, name);
    CloudEvent {
        specversion: text("specversion"),
        id: text("id"),
        source: text("source"),
        kind: text("type"),
        subject: text("subject"),
        time: text("time"),
        data_base64: text("data_base64"),
        data,
        ..CloudEvent::default()
    }
    .into_input()
}

fn lago(mut fields: Map) -> Result<Input> {
    if let Some(Value::Object(event)) = fields.remove("event") {
        fields = event;
    }
    let mut properties = match fields.remove("properties") {
        Some(Value::Object(properties)) => properties,
        _ => Map::new(),
    };
    let timestamp = time_of(fields.remove("timestamp"))?;
    let subject = ["external_subscription_id", "external_customer_id"];
    Ok(Input {
        idempotency_key: text_of(&mut fields, "transaction_id"),
        subject: subject.into_iter().find_map(|name| text_of(&mut fields, name)),
        meter: text_of(&mut fields, "code"),
        quantity: Some(take_quantity(&mut properties)?),
        timestamp: None,
        metadata: Some(Metadata::Values(properties)),
        time: Some(timestamp),
    })
}

fn stripe(mut fields: Map) -> Result<Input> {
    let Some(Value::Object(mut payload)) = fields.remove("payload") else {
        return Err(Error::invalid("payload must be an object"));
    };
    let timestamp = time_of(fields.remove("timestamp"))?;
    let quantity: InputQuantity = take_quantity(&mut payload)?;
    Ok(Input {
        idempotency_key: text_of(&mut fields, "identifier"),
        subject: text_of(&mut payload, "stripe_customer_id"),
        meter: text_of(&mut fields, "event_name"),
        quantity: Some(quantity),
        timestamp: None,
        metadata: Some(Metadata::Values(payload)),
        time: Some(timestamp),
    })
}

/// A text that is there and not empty.
fn text_of(fields: &mut Map, name: &str) -> Option<String> {
    match fields.remove(name) {
        Some(Value::String(text)) if !text.is_empty() => Some(text),
        Some(Value::Number(number)) => Some(number.as_str().to_owned()),
        _ => None,
    }
}

/// RFC 3339, or seconds since 1970 with a fraction or without.
fn time_of(value: Option<Value>) -> Result<Timestamp> {
    let text = match value {
        Some(Value::String(text)) => text,
        Some(Value::Number(number)) => number.as_str().to_owned(),
        _ => return Err(Error::invalid("timestamp is required")),
    };
    let read = Timestamp::parse(&text).or_else(|| seconds(&text));
    read.ok_or_else(|| Error::invalid("timestamp must be RFC 3339 or seconds since 1970"))
}

/// Seconds since 1970, with a fraction or without.
pub fn seconds(text: &str) -> Option<Timestamp> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let micros: i64 = format!("{:0<6.6}", fraction).parse().ok()?;
    let at = Timestamp(whole.parse::<u32>().ok().map(i64::from)?.checked_mul(SECOND)?.checked_add(micros)?);
    Some(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(format: Format, text: &str) -> Result<Input> {
        format.input(json::parse_object(text).expect("an object"))
    }

    #[test]
    fn each_format_is_read() {
        let cases = [
            (
                Format::Openmeter,
                r#"{"event":{"specversion":"1.0","id":"k","source":"s","type":"calls","subject":"acme","time":"2026-01-01T00:00:00Z","data":{"value":"1.5","a":"b"}}}"#,
                "s k",
            ),
            (
                Format::Lago,
                r#"{"transaction_id":"k","external_subscription_id":"acme","code":"calls","timestamp":"1767225600.5","properties":{"value":1.5,"a":"b"}}"#,
                "k",
            ),
            (
                Format::Stripe,
                r#"{"object":"billing.meter_event","event_name":"calls","identifier":"k","payload":{"stripe_customer_id":"acme","value":"1.5","a":"b"},"timestamp":1767225600}"#,
                "k",
            ),
        ];
        for (format, text, key) in cases {
            let input = read(format, text).expect("usable");
            assert_eq!((input.meter(), input.subject.as_deref()), ("calls", Some("acme")), "{text}");
            assert_eq!(input.idempotency_key.as_deref(), Some(key));
            let Some(Metadata::Values(fields)) = &input.metadata else { panic!("no metadata") };
            assert_eq!(json::object_text(fields), r#"{"a":"b"}"#, "{text}");
            let quantity =
                input.quantity.and_then(|quantity| quantity.0.ok()).map(|quantity| quantity.to_json());
            assert_eq!(quantity.as_deref(), Some("1.5"));
        }
    }

    #[test]
    fn seconds_are_exact() {
        assert_eq!(seconds("1767225600"), Some(Timestamp(1_767_225_600 * SECOND)));
        assert_eq!(seconds("1767225600.000001"), Some(Timestamp(1_767_225_600 * SECOND + 1)));
        assert_eq!(seconds("1767225600.0000019"), Some(Timestamp(1_767_225_600 * SECOND + 1)));
        for bad in ["", "x", "1e9", "-1", "1.x", "99999999999"] {
            assert_eq!(seconds(bad), None, "{bad}");
        }
    }
}
