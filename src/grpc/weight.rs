//! What a message weighs once it is decoded, told from its bytes without decoding it: two bytes on the wire can be a value
//! of forty in memory. Pure; reads no more of a message than its tags and lengths.

/// A value in the list that holds it, which may have grown to twice its length.
const VALUE_BYTES: usize = 40;
/// A name and its value in the map that holds them.
const ENTRY_BYTES: usize = 72;
/// The decoder goes no deeper.
const DEPTH_MAX: usize = 100;

/// What a part of a message is, as far as parts of it can be many.
#[derive(Clone, Copy)]
enum Shape {
    Call,
    Event,
    Entry,
    Value,
    Struct,
    List,
}

impl Shape {
    /// What a field of this number holds; nothing for texts and numbers.
    fn part(self, number: u64) -> Option<Shape> {
        match (self, number) {
            // one event is the first field of its call, many are the second of theirs
            (Shape::Call, 1 | 2) => Some(Shape::Event),
            (Shape::Event, 6) | (Shape::Struct, 1) => Some(Shape::Entry),
            (Shape::Entry, 2) | (Shape::List, 1) => Some(Shape::Value),
            (Shape::Value, 5) => Some(Shape::Struct),
            (Shape::Value, 6) => Some(Shape::List),
            _ => None,
        }
    }

    fn bytes(self) -> usize {
        match self {
            Shape::Entry => ENTRY_BYTES,
            Shape::Value => VALUE_BYTES,
            _ => 0,
        }
    }
}

/// At least what a message of events takes in memory.
pub fn decoded(message: &[u8]) -> usize {
    message.len() + parts(message, Shape::Call, 0)
}

/// Of the parts of a part. What is damaged counts up to the damage, as it is decoded up to there.
fn parts(mut rest: &[u8], shape: Shape, depth: usize) -> usize {
    let mut bytes = 0;
    while let Some((number, inner, after)) = field(rest) {
        if let (Some(part), Some(inner)) = (shape.part(number), inner) {
            bytes += part.bytes();
            if depth < DEPTH_MAX {
                bytes += parts(inner, part, depth + 1);
            }
        }
        rest = after;
    }
    bytes
}

type Field<'a> = (u64, Option<&'a [u8]>, &'a [u8]);

/// The first field: its number, what is in it when it has a length, and what follows.
fn field(bytes: &[u8]) -> Option<Field<'_>> {
    let (tag, rest) = varint(bytes)?;
    let number = tag >> 3;
    match tag & 7 {
        0 => varint(rest).map(|(_, after)| (number, None, after)),
        1 => rest.get(8..).map(|after| (number, None, after)),
        2 => {
            let (length, rest) = varint(rest)?;
            let (inner, after) = rest.split_at_checked(usize::try_from(length).ok()?)?;
            Some((number, Some(inner), after))
        }
        // the marks of a group, which hold nothing themselves
        3 | 4 => Some((number, None, rest)),
        5 => rest.get(4..).map(|after| (number, None, after)),
        _ => None,
    }
}

fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut number = 0_u64;
    for (at, byte) in bytes.iter().enumerate().take(10) {
        number |= u64::from(byte & 0x7f).checked_shl(7 * at as u32).unwrap_or(0);
        if byte & 0x80 == 0 {
            return Some((number, bytes.get(at + 1..)?));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use prost::Message;
    use prost_types::value::Kind;
    use prost_types::{ListValue, Value};

    use super::*;
    use crate::grpc::pb::v1;

    fn call(metadata: Value) -> Vec<u8> {
        let metadata = BTreeMap::from([("a".to_owned(), metadata)]);
        let event = v1::UsageEventInput { metadata, ..Default::default() };
        v1::CreateUsageRequest { event: Some(event) }.encode_to_vec()
    }

    #[test]
    fn empty_values_weigh_what_they_take_in_memory() {
        let values = vec![Value::default(); 100_000];
        let message = call(Value { kind: Some(Kind::ListValue(ListValue { values })) });
        assert!(message.len() < 201_000, "two bytes each: {}", message.len());
        assert!(decoded(&message) >= 100_000 * size_of::<Value>());
        // cut off: what is decoded before the end is seen counts
        assert!(
            decoded(&message[..message.len() - 1]) < 201_000,
            "its length does not fit: nothing is decoded"
        );
    }

    #[test]
    fn text_weighs_what_it_is() {
        let text = "\n\u{0}".repeat(50_000);
        let message = call(Value { kind: Some(Kind::StringValue(text)) });
        assert!(decoded(&message) < message.len() + 200);
    }
}
