//! Nodes into values. Sums and products are exact; quotients keep 34 digits. A missing value makes what is computed of
//! it missing too, until `coalesce` or `if` decides otherwise.

use std::cmp::Ordering;

use super::{Function, Node, Operator, What, found, wrong};
use crate::error::Result;
use crate::metering::json::{Map, Value};
use crate::metering::quantity::Quantity;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Held {
    Null,
    Bool(bool),
    Number(Quantity),
    Text(String),
}

pub(super) struct Scope<'a> {
    pub sent: Option<&'a Quantity>,
    pub metadata: &'a Map,
}

impl Scope<'_> {
    pub fn value(&self, node: &Node) -> Result<Held> {
        Ok(match &node.what {
            What::Null => Held::Null,
            What::Bool(flag) => Held::Bool(*flag),
            What::Number(number) => Held::Number(number.clone()),
            What::Text(text) => Held::Text(text.clone()),
            What::Quantity => self.sent.cloned().map_or(Held::Null, Held::Number),
            What::Metadata(path) => match found(self.metadata, path) {
                None | Some(Value::Null) => Held::Null,
                Some(Value::Bool(flag)) => Held::Bool(*flag),
                Some(Value::String(text)) => Held::Text(text.clone()),
                Some(Value::Number(number)) => {
                    Held::Number(Quantity::from_plain(number.as_str()).unwrap_or_else(Quantity::zero))
                }
                Some(Value::Array(_) | Value::Object(_)) => {
                    return Err(wrong(node.at, format_args!("metadata.{path} is a list or an object")));
                }
            },
            What::Negate(inner) => match self.number(inner)? {
                Some(number) => Held::Number(&Quantity::zero() - &number),
                None => Held::Null,
            },
            What::Not(inner) => Held::Bool(!self.truth(inner)?),
            What::Binary(operator, left, right) => self.binary(node.at, *operator, left, right)?,
            What::Call(function, arguments) => self.call(node.at, *function, arguments)?,
        })
    }

    /// `None` for a missing value.
    fn number(&self, node: &Node) -> Result<Option<Quantity>> {
        match self.value(node)? {
            Held::Number(number) => Ok(Some(number)),
            Held::Null => Ok(None),
            Held::Bool(_) | Held::Text(_) => Err(wrong(node.at, "is not a number")),
        }
    }

    /// A missing value is not true.
    fn truth(&self, node: &Node) -> Result<bool> {
        match self.value(node)? {
            Held::Bool(flag) => Ok(flag),
            Held::Null => Ok(false),
            Held::Number(_) | Held::Text(_) => Err(wrong(node.at, "is neither true nor false")),
        }
    }

    fn binary(&self, at: usize, operator: Operator, left: &Node, right: &Node) -> Result<Held> {
        match operator {
            Operator::And => return Ok(Held::Bool(self.truth(left)? && self.truth(right)?)),
            Operator::Or => return Ok(Held::Bool(self.truth(left)? || self.truth(right)?)),
            Operator::Equal => return Ok(Held::Bool(self.value(left)? == self.value(right)?)),
            Operator::NotEqual => return Ok(Held::Bool(self.value(left)? != self.value(right)?)),
            _ => {}
        }
        if let Some(accepts) = ordering(operator) {
            let order = self.order(at, left, right)?;
            return Ok(Held::Bool(order.is_some_and(accepts)));
        }
        let (Some(left), Some(right)) = (self.number(left)?, self.number(right)?) else {
            return Ok(Held::Null);
        };
        let result = match operator {
            Operator::Add => &left + &right,
            Operator::Subtract => &left - &right,
            Operator::Multiply => &left * &right,
            _ if right.is_zero() => return Err(wrong(at, "division by zero")),
            _ => left.divide(&right),
        };
        bounded(at, result).map(Held::Number)
    }

    /// Numbers by size, texts by their bytes; `None` where one is missing.
    fn order(&self, at: usize, left: &Node, right: &Node) -> Result<Option<Ordering>> {
        match (self.value(left)?, self.value(right)?) {
            (Held::Number(left), Held::Number(right)) => Ok(Some(left.cmp(&right))),
            (Held::Text(left), Held::Text(right)) => Ok(Some(left.cmp(&right))),
            (Held::Null, _) | (_, Held::Null) => Ok(None),
            _ => Err(wrong(at, "only two numbers or two texts have an order")),
        }
    }

    fn call(&self, at: usize, function: Function, arguments: &[Node]) -> Result<Held> {
        let [first, rest @ ..] = arguments else { return Ok(Held::Null) };
        match (function, rest) {
            (Function::If, [yes, no]) => return self.value(if self.truth(first)? { yes } else { no }),
            (Function::Coalesce, _) => {
                for argument in arguments {
                    match self.value(argument)? {
                        Held::Null => {}
                        value => return Ok(value),
                    }
                }
                return Ok(Held::Null);
            }
            _ => {}
        }
        let mut numbers = Vec::with_capacity(arguments.len());
        for argument in arguments {
            match self.number(argument)? {
                Some(number) => numbers.push(number),
                None => return Ok(Held::Null),
            }
        }
        let digits = match numbers.get(1).filter(|_| function == Function::Round) {
            Some(digits) => digits.to_json().parse::<i64>().ok().filter(|digits| (0..=30).contains(digits)),
            None => Some(0),
        };
        let Some(digits) = digits else { return Err(wrong(at, "round takes 0 to 30 digits")) };
        let result = match function {
            Function::Min => numbers.into_iter().min(),
            Function::Max => numbers.into_iter().max(),
            Function::Abs => numbers.pop().map(|number| number.rounded(None)),
            Function::Floor => numbers.pop().map(|number| number.rounded(Some((0, Ordering::Less)))),
            Function::Ceil => numbers.pop().map(|number| number.rounded(Some((0, Ordering::Greater)))),
            _ => numbers.into_iter().next().map(|number| number.rounded(Some((digits, Ordering::Equal)))),
        };
        Ok(result.map_or(Held::Null, Held::Number))
    }
}

fn ordering(operator: Operator) -> Option<fn(Ordering) -> bool> {
    Some(match operator {
        Operator::Less => Ordering::is_lt,
        Operator::LessOrEqual => Ordering::is_le,
        Operator::Greater => Ordering::is_gt,
        Operator::GreaterOrEqual => Ordering::is_ge,
        _ => return None,
    })
}

/// What is computed on the way may have more digits than a quantity, but not without end.
fn bounded(at: usize, number: Quantity) -> Result<Quantity> {
    match number.extent() {
        (digits, magnitude) if digits <= 1_000 && magnitude.abs() <= 1_000 => Ok(number),
        _ => Err(wrong(at, "the number has too many digits")),
    }
}
