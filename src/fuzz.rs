//! Every parser of what strangers send, on made-up text: none panics, none overflows the stack, and what is taken comes
//! back as it was. `PROPTEST_CASES=100000 cargo test --release --lib fuzz::` for a long run.

use std::sync::Arc;

use proptest::prelude::*;
use prost::Message;
use prost_types::value::Kind as PbKind;
use prost_types::{ListValue, Struct, Value as PbValue};
use uuid::Uuid;

use crate::alerts::rule::{RuleInput, RuleSpec};
use crate::entitlements::plan::{Draft, PlanInput};
use crate::exports::job::{ExportQuery, Input as ExportInput, Kind, owner_of, part};
use crate::grpc::pb::v1;
use crate::grpc::{convert, weight};
use crate::http::extract::{CursorTime, Params, decode_cursor};
use crate::metering::calendar::Zone;
use crate::metering::event::{self, Input};
use crate::metering::expression::Expression;
use crate::metering::filter::{Filter, Node};
use crate::metering::json::Value;
use crate::metering::meter::{
    Aggregation, DimensionInput, Meter, MeterOptions, is_dimension_path, parse_dimensions,
};
use crate::metering::quantity::Quantity;
use crate::metering::time::Timestamp;

const NOW: Timestamp = Timestamp(1_781_524_800_000_000);

/// Text near to what parsers look for.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        r#"[-+0-9eE.,:TZtz]{0,30}"#,
        r#"[\[\]{}:,"\\ a-z0-9.$_-]{0,60}"#,
        r#"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}([.,][0-9]{0,12})?([Zz]|[+-][0-9]{2}:[0-9]{2})?"#,
    ]
}

/// JSON objects made of the names that inputs have, and of any values.
fn object() -> impl Strategy<Value = String> {
    const NAMES: [&str; 22] = [
        "meter",
        "subject",
        "quantity",
        "timestamp",
        "metadata",
        "idempotency_key",
        "type",
        "op",
        "rules",
        "field",
        "value",
        "from",
        "to",
        "filter",
        "limit",
        "group_by",
        "name",
        "limits",
        "threshold",
        "period",
        "$serde_json::private::RawValue",
        "$serde_json::private::Number",
    ];
    const WORDS: [&str; 12] = [
        "group",
        "condition",
        "and",
        "or",
        "eq",
        "in",
        "metadata.a",
        "quantity",
        "m",
        "month",
        "2026-06-15T12:00:00Z",
        "9999-12-31T23:59:59-23:59",
    ];
    let leaf = prop_oneof![
        proptest::sample::select(&WORDS[..]).prop_map(|word| format!("{word:?}")),
        any::<i64>().prop_map(|number| number.to_string()),
        r"-?(0|[1-9][0-9]{0,28})(\.[0-9]{1,30})?([eE][+-]?[0-9]{1,4})?",
        any::<String>().prop_map(|text| Value::String(text).to_string()),
        Just("null".to_owned()),
        Just("true".to_owned()),
    ];
    let value = leaf.prop_recursive(6, 40, 5, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..5).prop_map(|items| format!("[{}]", items.join(","))),
            fields(&NAMES, inner),
        ]
    });
    fields(&NAMES, value)
}

fn fields(
    names: &'static [&'static str],
    value: impl Strategy<Value = String>,
) -> impl Strategy<Value = String> {
    proptest::collection::btree_map(proptest::sample::select(names), value, 0..6).prop_map(|fields| {
        let fields: Vec<String> = fields.iter().map(|(name, value)| format!("{name:?}:{value}")).collect();
        format!("{{{}}}", fields.join(","))
    })
}

/// Values as gRPC has them.
fn pb_value() -> impl Strategy<Value = PbValue> {
    let leaf = prop_oneof![
        Just(None),
        any::<i32>().prop_map(|number| Some(PbKind::NullValue(number))),
        any::<f64>().prop_map(|number| Some(PbKind::NumberValue(number))),
        any::<bool>().prop_map(|flag| Some(PbKind::BoolValue(flag))),
        text().prop_map(|text| Some(PbKind::StringValue(text))),
    ];
    leaf.prop_map(|kind| PbValue { kind }).prop_recursive(8, 60, 6, |inner| {
        let list = proptest::collection::vec(inner.clone(), 0..6)
            .prop_map(|values| PbKind::ListValue(ListValue { values }));
        let fields = proptest::collection::btree_map(text(), inner, 0..6)
            .prop_map(|fields| PbKind::StructValue(Struct { fields }));
        prop_oneof![list, fields].prop_map(|kind| PbValue { kind: Some(kind) })
    })
}

/// Calls with events, whole or with some bytes changed, left out or cut off.
fn call() -> impl Strategy<Value = Vec<u8>> {
    let metadata = proptest::collection::btree_map(text(), pb_value(), 0..5);
    let timestamp = proptest::option::of((any::<i64>(), any::<i32>()));
    let event =
        (text(), any::<f64>(), timestamp, metadata).prop_map(|(text, quantity, timestamp, metadata)| {
            v1::UsageEventInput {
                idempotency_key: text,
                subject: "s".to_owned(),
                meter: "m".to_owned(),
                quantity,
                timestamp: timestamp.map(|(seconds, nanos)| prost_types::Timestamp { seconds, nanos }),
                metadata,
            }
        });
    let whole = proptest::collection::vec(event, 0..4).prop_map(|events| {
        v1::CreateUsageBulkRequest { idempotency_key: String::new(), events }.encode_to_vec()
    });
    let change = (any::<proptest::sample::Index>(), proptest::option::of(any::<u8>()));
    (whole, proptest::collection::vec(change, 0..4), any::<bool>()).prop_map(
        |(mut bytes, changes, is_cut)| {
            for (at, change) in changes.into_iter().filter(|_| !bytes.is_empty()).collect::<Vec<_>>() {
                let at = at.index(bytes.len().max(1));
                match change {
                    Some(byte) if at < bytes.len() => bytes[at] = byte,
                    _ if is_cut => bytes.truncate(at),
                    _ if at < bytes.len() => drop(bytes.remove(at)),
                    _ => {}
                }
            }
            bytes
        },
    )
}

fn count(value: &PbValue) -> usize {
    1 + match &value.kind {
        Some(PbKind::ListValue(list)) => list.values.iter().map(count).sum(),
        Some(PbKind::StructValue(fields)) => fields.fields.values().map(count).sum(),
        _ => 0,
    }
}

fn meter() -> Arc<Meter> {
    let dimension = DimensionInput {
        name: Some("a".to_owned()),
        kind: Some("string".to_owned()),
        required: Some(false),
        ..Default::default()
    };
    Arc::new(Meter {
        id: 1,
        public_id: String::new(),
        workspace_id: 1,
        name: "m".into(),
        description: String::new(),
        unit: "u".into(),
        aggregation: Aggregation::Sum,
        dimensions: parse_dimensions(vec![dimension], 1).expect("valid"),
        options: MeterOptions::default(),
        version: 1,
        event_retention_days: 90,
        pruned_before: None,
        created_at: NOW,
    })
}

/// Expressions, nearly.
fn expression() -> impl Strategy<Value = String> {
    const PARTS: [&str; 26] = [
        "quantity",
        "metadata.a",
        "metadata.b.c",
        "if(",
        "coalesce(",
        "round(",
        "min(",
        "(",
        ")",
        ",",
        "+",
        "-",
        "*",
        "/",
        "<",
        ">=",
        "=",
        "!=",
        " and ",
        " or ",
        "not ",
        "1",
        "0.5",
        "12345678901234567890",
        "'x'",
        "null",
    ];
    let parts = proptest::collection::vec(proptest::sample::select(&PARTS[..]), 0..40);
    prop_oneof![text(), parts.prop_map(|parts| parts.concat())]
}

proptest! {
    /// What is taken is evaluated in bounded time, to a quantity or to a refusal.
    #[test]
    fn expressions(text in expression(), metadata in object(), quantity in any::<i64>()) {
        if let Ok(parsed) = Expression::parse(&text) {
            let again = Expression::parse(parsed.text()).expect("it was read before");
            prop_assert_eq!(&again, &parsed);
            let metadata = crate::metering::json::parse_object(&metadata).unwrap_or_default();
            let sent = Quantity::from(quantity);
            if let Ok(value) = parsed.quantity(Some(&sent), &metadata) {
                prop_assert_eq!(Quantity::parse(&value.to_json()), Ok(value));
            }
        }
    }

    #[test]
    fn plain_texts(text in text()) {
        if let Some(at) = Timestamp::parse(&text) {
            prop_assert_eq!(Timestamp::parse(&at.to_exact_text()), Some(at));
        }
        if let Ok(quantity) = Quantity::parse(&text) {
            prop_assert_eq!(Quantity::parse(&quantity.to_json()), Ok(quantity.clone()));
            prop_assert_eq!(Quantity::from_sortable(&quantity.to_sortable()), Some(quantity));
        }
        if let Ok(Some(key)) = event::parse_key(Some(&text)) {
            let is_clean = !key.contains(['\0', char::REPLACEMENT_CHARACTER]);
            prop_assert!(is_clean && event::ledger_key(&key).len() <= 40);
        }
        if let Ok(subject) = event::parse_subject(&text) {
            prop_assert!(subject.is_ascii());
        }
        let _ = (is_dimension_path(&text), owner_of(&text), part(Some(&text), 10), part(Some(&text), 0));
        let params = Params::parse(&text);
        let _ = (params.limit(1, 10), params.pairs().count(), params.time("from", "invalid_from"));
        let _ = decode_cursor::<Vec<CursorTime>>(&text);
    }

    #[test]
    fn json_texts(text in text()) {
        if let Some(value) = Value::parse(&text) {
            prop_assert_eq!(Value::parse(&value.to_string()), Some(value));
        }
        let _ = serde_json::from_str::<Input>(&text);
        let _ = serde_json::from_str::<Vec<Input>>(&text);
        let _ = serde_json::from_str::<Node>(&text);
    }

    /// A message weighs at least what its values take; what is admitted of it reads back as it was stored.
    #[test]
    fn grpc_messages(bytes in prop_oneof![call(), proptest::collection::vec(any::<u8>(), 0..200)]) {
        let weight = weight::decoded(&bytes);
        let _ = v1::CreateUsageRequest::decode(&bytes[..]);
        let call = v1::CreateUsageBulkRequest::decode(&bytes[..]).unwrap_or_default();
        let values: usize = call.events.iter().flat_map(|event| event.metadata.values().map(count)).sum();
        prop_assert!(weight >= values * size_of::<PbValue>(), "{} values in {}", values, weight);
        for event in call.events {
            if let Ok(input) = convert::input(Some(event))
                && let Ok(event) = event::validate(&meter(), input, NOW, Uuid::nil())
            {
                let kept = event.metadata.as_ref().map(|text| text.get().to_owned());
                let again = kept.as_deref().map(|text| event::canonical_metadata(text).expect("readable"));
                prop_assert_eq!(&again, &kept);
                prop_assert!((Timestamp::ABSENT..=Timestamp::LAST).contains(&event.time));
            }
        }
    }

    /// What is admitted reads back as it was stored.
    #[test]
    fn objects(text in object()) {
        if let Ok(input) = serde_json::from_str::<Input>(&text)
            && let Ok(event) = event::validate(&meter(), input, NOW, Uuid::nil())
        {
            let kept = event.metadata.as_ref().map(|text| text.get().to_owned());
            let again = kept.as_deref().map(|text| event::canonical_metadata(text).expect("readable"));
            prop_assert_eq!(&again, &kept);
            prop_assert!((Timestamp::ABSENT..=Timestamp::LAST).contains(&event.time));
            let fingerprint = event.fingerprint;
            let again = event::validate(&meter(), event.into_input(), NOW, Uuid::nil()).expect("admitted again");
            prop_assert_eq!(again.fingerprint, fingerprint);
        }
        if let Ok(node) = serde_json::from_str::<Node>(&text) {
            let again: Node = serde_json::from_str(&serde_json::to_string(&node).expect("JSON")).expect("a filter");
            prop_assert_eq!(Filter::parse(&again).ok(), Filter::parse(&node).ok());
        }
        let raw = serde_json::value::RawValue::from_string(text.clone()).expect("JSON");
        for kind in [Kind::UsageEvents, Kind::UsageBuckets] {
            if let Ok(asked) = ExportInput::read(&raw).and_then(|query| ExportQuery::parse(kind, query, &Zone::UTC)) {
                let stored = serde_json::to_string(&asked).expect("JSON");
                prop_assert_eq!(serde_json::from_str::<ExportQuery>(&stored).ok(), Some(asked));
            }
        }
        if let Ok(rule) = serde_json::from_str::<RuleInput>(&text)
            && let Ok(terms) = RuleSpec::new(&rule)
        {
            prop_assert!(terms.filter().is_ok());
        }
        if let Ok(plan) = serde_json::from_str::<PlanInput>(&text) {
            let _ = Draft::parse(plan);
        }
    }
}
