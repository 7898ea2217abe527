//! A meter's `value_expression`: what makes an event's quantity of what was sent. A small language over the sent quantity and
//! the metadata: arithmetic, comparison, `coalesce`, `if`. Parsed once, bounded in length, depth and nodes, evaluated
//! in exact decimals. Pure; it can neither loop nor look at anything but the event.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::error::{Error, Result};
use crate::metering::json::{Map, Value};
use crate::metering::meter::value_at;
use crate::metering::quantity::Quantity;

mod evaluate;
mod parse;

pub const LENGTH_MAX: usize = 2_000;
pub const DEPTH_MAX: usize = 32;
pub const NODES_MAX: usize = 300;

/// A parsed expression and the text it was parsed from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expression {
    text: Arc<str>,
    root: Arc<Node>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Add,
    Subtract,
    Multiply,
    Divide,
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    And,
    Or,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Function {
    If,
    Coalesce,
    Min,
    Max,
    Abs,
    Floor,
    Ceil,
    Round,
}

/// A part of an expression, and where it stands: in characters, from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Node {
    at: usize,
    what: What,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum What {
    Null,
    Bool(bool),
    Number(Quantity),
    Text(String),
    Quantity,
    Metadata(String),
    Negate(Box<Node>),
    Not(Box<Node>),
    Binary(Operator, Box<Node>, Box<Node>),
    Call(Function, Vec<Node>),
}

/// Something wrong at a position.
fn wrong(at: usize, detail: impl fmt::Display) -> Error {
    Error::invalid(format!("value_expression, position {at}: {detail}"))
}

impl Expression {
    pub fn parse(text: &str) -> Result<Expression> {
        let text = text.trim();
        if text.len() > LENGTH_MAX {
            return Err(Error::invalid(format!(
                "value_expression must not be longer than {LENGTH_MAX} bytes"
            )));
        }
        Ok(Expression { text: text.into(), root: Arc::new(parse::parse(text)?) })
    }

    pub fn text(&self) -> &str {
        &self.text
    }

    /// The quantity of an event. `sent` is absent where none was sent.
    pub fn quantity(&self, sent: Option<&Quantity>, metadata: &Map) -> Result<Quantity> {
        let value = evaluate::Scope { sent, metadata }.value(&self.root)?;
        match value {
            evaluate::Held::Number(number) => Quantity::parse(&number.to_json())
                .map_err(|reject| Error::invalid(format!("value_expression gives a number that {reject}"))),
            evaluate::Held::Null => Err(Error::invalid("value_expression gives no value for this event")),
            evaluate::Held::Bool(_) | evaluate::Held::Text(_) => {
                Err(Error::invalid("value_expression gives something that is not a number"))
            }
        }
    }
}

impl Serialize for Expression {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Expression {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Expression::parse(&text).map_err(|error| de::Error::custom(error.message))
    }
}

/// What metadata holds at a path, literal keys first.
fn found<'a>(metadata: &'a Map, path: &str) -> Option<&'a Value> {
    metadata.get(path).or_else(|| value_at(metadata, path))
}

#[cfg(test)]
mod tests;
