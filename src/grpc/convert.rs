//! Messages into inputs and stored events into messages (grpc.md 8). Pure.

use std::collections::BTreeMap;

use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Timestamp as ProtoTimestamp, Value as PbValue};

use crate::auth::Caller;
use crate::error::{Error, Result};
use crate::grpc::pb::{v1, v2};
use crate::ingest::preview::{QuotaMove, WindowMove};
use crate::ingest::{About, Failure};
use crate::metering::event::{Input, InputQuantity, Metadata};
use crate::metering::json::{self, Map, Number, Value};
use crate::metering::quantity::Quantity;
use crate::metering::stored::StoredEvent;
use crate::metering::time::{SECOND, Timestamp};

const YEAR_1: i64 = -62_135_596_800;
const YEAR_9999_END: i64 = 253_402_300_799;

/// An event as a client sent it. Fails where the message itself is impossible; whether the event keeps the rules is
/// found out when it is stored.
pub fn input(event: Option<v1::UsageEventInput>) -> Result<Input, Box<(About, Error)>> {
    let refused = |about, error: Error| Box::new((about, error));
    let event = event.ok_or_else(|| refused(About::default(), Error::invalid("event is required")))?;
    let read = event.timestamp.map(time).transpose();
    let (time, wrong) = match read {
        Ok(time) => (time, None),
        Err(error) => (None, Some(error.at("timestamp"))),
    };
    let input = Input {
        time,
        idempotency_key: Some(event.idempotency_key),
        subject: Some(event.subject),
        meter: Some(event.meter),
        quantity: Some(InputQuantity(Quantity::from_f64(event.quantity))),
        timestamp: None,
        metadata: Some(object(event.metadata).map_or_else(Metadata::Wrong, Metadata::Values)),
    };
    match wrong {
        None => Ok(input),
        Some(error) => Err(refused(About::of(&input), error)),
    }
}

/// The same, of a caller who may use its meter.
pub fn permitted(event: Option<v1::UsageEventInput>, caller: &Caller) -> Result<Input, Box<(About, Error)>> {
    let input = input(event)?;
    match caller.ensure_meter_allowed(input.meter()) {
        Ok(()) => Ok(input),
        Err(error) => Err(Box::new((About::of(&input), error.at("meter")))),
    }
}

fn time(timestamp: ProtoTimestamp) -> Result<Timestamp> {
    let ProtoTimestamp { seconds, nanos } = timestamp;
    if !(YEAR_1..=YEAR_9999_END).contains(&seconds) || !(0..1_000_000_000).contains(&nanos) {
        return Err(Error::invalid(
            "timestamp must lie within the years 1 to 9999, nanos within 0 to 999999999",
        ));
    }
    Ok(Timestamp(seconds * SECOND + i64::from(nanos) / 1000))
}

fn object(fields: BTreeMap<String, PbValue>) -> Result<Map> {
    fields.into_iter().map(|(name, value)| Ok((name, json(value)?))).collect()
}

/// Nesting is bounded by the decoder.
fn json(value: PbValue) -> Result<Value> {
    Ok(match value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(flag)) => Value::Bool(flag),
        Some(Kind::NumberValue(number)) => Value::Number(number_json(number)?),
        Some(Kind::StringValue(text)) => Value::String(text),
        Some(Kind::StructValue(fields)) => Value::Object(object(fields.fields)?),
        Some(Kind::ListValue(list)) => {
            Value::Array(list.values.into_iter().map(json).collect::<Result<_>>()?)
        }
    })
}

fn number_json(number: f64) -> Result<Number> {
    let wrong = |reject| Error::invalid(format!("a metadata number {reject}"));
    Quantity::from_f64(number).map(|number| Number::from(&number)).map_err(wrong)
}

/// A stored event as it is answered.
pub fn event(stored: StoredEvent) -> v1::UsageEvent {
    let metadata = json::parse_object(stored.metadata.get()).unwrap_or_default();
    v1::UsageEvent {
        id: stored.id,
        idempotency_key: stored.idempotency_key.unwrap_or_default(),
        subject: stored.subject,
        meter: stored.meter,
        quantity: stored.quantity.to_f64(),
        timestamp: Some(timestamp(stored.timestamp)),
        received_at: Some(timestamp(stored.received_at)),
        metadata: metadata.into_iter().map(|(name, value)| (name, message(value))).collect(),
    }
}

fn timestamp(time: Timestamp) -> ProtoTimestamp {
    let nanos = time.0.rem_euclid(SECOND) * 1000;
    ProtoTimestamp { seconds: time.0.div_euclid(SECOND), nanos: nanos as i32 }
}

fn message(value: Value) -> PbValue {
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(flag) => Kind::BoolValue(flag),
        Value::Number(number) => Kind::NumberValue(number.as_str().parse().unwrap_or(f64::MAX)),
        Value::String(text) => Kind::StringValue(text),
        Value::Array(items) => {
            Kind::ListValue(ListValue { values: items.into_iter().map(message).collect() })
        }
        Value::Object(fields) => Kind::StructValue(Struct {
            fields: fields.into_iter().map(|(name, value)| (name, message(value))).collect(),
        }),
    };
    PbValue { kind: Some(kind) }
}

pub fn failure(failure: Failure) -> v1::BulkFailure {
    v1::BulkFailure {
        index: count(failure.index as u64),
        code: failure.error.code.as_str().to_owned(),
        message: failure.error.message,
    }
}

pub fn window_move(moved: WindowMove) -> v2::Change {
    let text = |value: Option<Quantity>| value.map(|value| value.to_string()).unwrap_or_default();
    v2::Change {
        window: moved.bucket_size.to_owned(),
        from: Some(timestamp(moved.from)),
        to: Some(timestamp(moved.to)),
        before: text(moved.before),
        after: text(moved.after),
        ..Default::default()
    }
}

pub fn quota_move(moved: QuotaMove) -> v2::Change {
    v2::Change {
        window: moved.period.to_string(),
        from: Some(timestamp(moved.from)),
        to: Some(timestamp(moved.to)),
        before: moved.before.to_string(),
        after: moved.after.to_string(),
        plan_id: moved.plan_id,
        limit: moved.limit.to_string(),
        enforcement: moved.enforcement.as_str().to_owned(),
    }
}

/// Counts are 32-bit on the wire; a stream can outgrow them.
pub fn count(count: u64) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent() -> v1::UsageEventInput {
        v1::UsageEventInput { subject: "s".into(), meter: "m".into(), quantity: 1.5, ..Default::default() }
    }

    #[test]
    fn impossible_messages_are_refused() {
        let refused = |change: &dyn Fn(&mut v1::UsageEventInput)| {
            let mut event = sent();
            change(&mut event);
            input(Some(event)).expect_err("refused").1.message
        };
        assert!(input(None).is_err());
        for (seconds, nanos) in [(YEAR_1 - 1, 0), (YEAR_9999_END + 1, 0), (0, -1), (0, 1_000_000_000)] {
            let message = refused(&|event| event.timestamp = Some(ProtoTimestamp { seconds, nanos }));
            assert!(message.contains("timestamp"), "{message}");
        }
    }

    #[test]
    fn times_keep_microseconds() {
        for (seconds, nanos, micros) in
            [(0, 0, 0), (-1, 500_000_000, -500_000), (YEAR_1, 0, Timestamp::ABSENT.0)]
        {
            let at = time(ProtoTimestamp { seconds, nanos }).expect("possible");
            assert_eq!(at.0, micros);
            assert_eq!(timestamp(at), ProtoTimestamp { seconds, nanos });
        }
        assert_eq!(time(ProtoTimestamp { seconds: 1, nanos: 1_999 }).expect("possible").0, 1_000_001);
    }

    #[test]
    fn values_survive_both_ways() {
        let text = r#"{"a":null,"b":[1.5,"x",true,{}],"c":{"d":{"e":-3}}}"#;
        let value = Value::parse(text).expect("JSON");
        assert_eq!(json(message(value.clone())).expect("finite").to_string(), value.to_string());
        assert_eq!(json(PbValue::default()).expect("null"), Value::Null);
        for number in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert_eq!(number_json(number).expect_err("not finite").code.as_str(), "invalid_input");
        }
    }
}
