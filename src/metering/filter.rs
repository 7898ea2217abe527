//! The filter language (rest.md 8): how a filter is written, what it may hold, and [`Filter::matches`], which
//! is the one meaning it has. SQL may leave rows out early, but only rows that this would refuse. Pure.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::BTreeSet;

use serde::{Deserialize, Deserializer, Serialize, de};
use utoipa::ToSchema;

use crate::error::{Error, Result};
use crate::metering::event::canonical;
use crate::metering::json::{Map, Value};
use crate::metering::meter::is_dimension_path;
use crate::metering::quantity::Quantity;
use crate::metering::time::Timestamp;

/// Levels that may be written.
pub const DEPTH_MAX: usize = 32;
/// Levels that count: groups inside groups of the other word.
pub const GROUP_DEPTH_MAX: usize = 8;
pub const CONDITIONS_MAX: usize = 500;
/// Conditions times the levels that count: what a row, and the planner of a database, can be asked to go through.
pub const COST_MAX: usize = 2_000;
/// Values of all conditions together; each is one bind of an SQL statement.
pub const VALUES_MAX: usize = 5_000;

/// A filter as a client writes it: a group or a condition. Read from JSON objects only.
#[derive(Clone, Debug, Default, PartialEq, Serialize, ToSchema)]
#[schema(as = Filter, no_recursion)]
pub struct Node {
    /// `group` or `condition`.
    #[serde(rename = "type")]
    kind: String,
    /// Of a group `and` or `or`; of a condition `eq`, `neq`, `gt`, `gte`, `lt`, `lte`, `in`, `contains` or `exists`.
    op: String,
    /// Of a group: what it joins.
    #[serde(skip_serializing_if = "Option::is_none")]
    rules: Option<Vec<Node>>,
    /// Of a condition: `subject`, `meter`, `quantity`, `timestamp`, `received_at`, `idempotency_key` or
    /// `metadata.<path>`.
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<String>,
    /// Of a condition: what to compare with, in the kind of the field.
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<Value>,
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::Object(keys) => Node::read(keys).map_err(de::Error::custom),
            _ => Err(de::Error::custom("a filter is an object")),
        }
    }
}

impl Node {
    fn read(mut keys: Map) -> Result<Self, &'static str> {
        let mut text = |key: &str| match keys.remove(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err("type, op and field of a filter are strings"),
        };
        let (kind, op, field) = (text("type")?, text("op")?, text("field")?);
        let rules = match keys.remove("rules") {
            None | Some(Value::Null) => None,
            Some(Value::Array(rules)) => {
                Some(rules.into_iter().map(Node::of_rule).collect::<Result<_, _>>()?)
            }
            Some(_) => return Err("rules of a filter are a list"),
        };
        let value = keys.remove("value").filter(|value| !value.is_null());
        Ok(Node { kind: kind.unwrap_or_default(), op: op.unwrap_or_default(), rules, field, value })
    }

    fn of_rule(rule: Value) -> Result<Self, &'static str> {
        match rule {
            Value::Null => Ok(Node::default()),
            Value::Object(keys) => Node::read(keys),
            _ => Err("each rule of a filter is an object"),
        }
    }
}

/// A checked filter.
#[derive(Clone, Debug, PartialEq)]
pub enum Filter {
    All(Vec<Filter>),
    Any(Vec<Filter>),
    Condition(Field, Test),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Field {
    Subject,
    Meter,
    Quantity,
    EventTime,
    ReceivedAt,
    IdempotencyKey,
    /// A dotted path into the metadata.
    Metadata(String),
}

#[derive(Clone, Debug, PartialEq)]
pub enum Test {
    Exists,
    /// Equal to one of these.
    In(Vec<Literal>),
    /// There, and different.
    Not(Literal),
    Compare(Order, Literal),
    /// The text form holds this text.
    Contains(String),
    /// The text form is this text (`metadata.<path>=<text>`).
    Text(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    Greater,
    GreaterOrEqual,
    Less,
    LessOrEqual,
}

impl Order {
    fn holds(self, ordering: Ordering) -> bool {
        match self {
            Order::Greater => ordering.is_gt(),
            Order::GreaterOrEqual => ordering.is_ge(),
            Order::Less => ordering.is_lt(),
            Order::LessOrEqual => ordering.is_le(),
        }
    }

    pub fn sql(self) -> &'static str {
        match self {
            Order::Greater => ">",
            Order::GreaterOrEqual => ">=",
            Order::Less => "<",
            Order::LessOrEqual => "<=",
        }
    }
}

/// A value to compare with, in the kind of its field.
#[derive(Clone, Debug, PartialEq)]
pub enum Literal {
    Text(String),
    Number(Quantity),
    Bool(bool),
    Time(Timestamp),
    /// Metadata only: a list that holds all of these.
    List(Vec<Literal>),
}

impl Literal {
    fn text(&self) -> Option<&str> {
        match self {
            Literal::Text(text) => Some(text),
            _ => None,
        }
    }
}

/// What a row has in a field.
#[derive(Clone, Copy, Debug)]
pub enum Held<'a> {
    Text(&'a str),
    Number(&'a Quantity),
    Time(Timestamp),
    Json(&'a Value),
}

/// Something a filter can look at.
pub trait Row {
    /// `None` when the row lacks the field.
    fn held(&self, field: &Field) -> Option<Held<'_>>;
}

impl Filter {
    /// Checks a filter; `None` stays none.
    pub fn parse_optional(node: Option<&Node>) -> Result<Option<Filter>> {
        node.map(Filter::parse).transpose()
    }

    pub fn parse(node: &Node) -> Result<Filter> {
        let mut parser = Parser::default();
        let filter = parser.node(node, 1)?;
        let depth = filter.depth();
        if depth > GROUP_DEPTH_MAX {
            return Err(Error::invalid(format!(
                "filter must not have more than {GROUP_DEPTH_MAX} levels of and and or inside each other"
            )));
        }
        if parser.conditions * depth > COST_MAX {
            return Err(Error::invalid(format!(
                "filter is too large: conditions times levels must not be above {COST_MAX}"
            )));
        }
        Ok(filter)
    }

    /// Joins filters flatly: a group inside one of its own kind is its members, and a group of one is that one.
    fn joined(is_all: bool, rules: Vec<Filter>) -> Filter {
        let mut flat = Vec::with_capacity(rules.len());
        for rule in rules {
            match rule {
                Filter::All(inner) if is_all => flat.extend(inner),
                Filter::Any(inner) if !is_all => flat.extend(inner),
                other => flat.push(other),
            }
        }
        match (flat.len(), is_all) {
            (1, _) => flat.swap_remove(0),
            (_, true) => Filter::All(flat),
            (_, false) => Filter::Any(flat),
        }
    }

    /// Groups inside each other, at least 1.
    fn depth(&self) -> usize {
        match self {
            Filter::All(rules) | Filter::Any(rules) => {
                1 + rules.iter().map(Filter::group_depth).max().unwrap_or(0)
            }
            Filter::Condition(..) => 1,
        }
    }

    fn group_depth(&self) -> usize {
        if matches!(self, Filter::Condition(..)) { 0 } else { self.depth() }
    }

    /// What all of these filters let through.
    pub fn all(rules: Vec<Filter>) -> Option<Filter> {
        (!rules.is_empty()).then(|| Filter::joined(true, rules))
    }

    /// `metadata.<path>=<text>`: the value at the path has this text form.
    pub fn metadata_text(path: &str, text: &str) -> Result<Filter> {
        let (path, text) = (path.trim(), text.trim());
        if path.is_empty() || text.is_empty() {
            return Err(Error::invalid("a metadata parameter needs a name and a value"));
        }
        if !is_dimension_path(path) {
            return Err(Error::invalid(format!("metadata.{path} is not a metadata path")));
        }
        Ok(Filter::Condition(Field::Metadata(path.to_owned()), Test::Text(text.to_owned())))
    }

    /// What both filters let through.
    pub fn both(a: Option<Filter>, b: Option<Filter>) -> Option<Filter> {
        match (a, b) {
            (Some(a), Some(b)) => Some(Filter::joined(true, vec![a, b])),
            (a, b) => a.or(b),
        }
    }

    /// The meaning of a filter.
    pub fn matches(&self, row: &impl Row) -> bool {
        match self {
            Filter::All(rules) => rules.iter().all(|rule| rule.matches(row)),
            Filter::Any(rules) => rules.iter().any(|rule| rule.matches(row)),
            Filter::Condition(field, test) => row.held(field).is_some_and(|held| test.holds(held)),
        }
    }

    /// All fields the filter looks at.
    pub fn fields(&self) -> Vec<&Field> {
        match self {
            Filter::All(rules) | Filter::Any(rules) => rules.iter().flat_map(Filter::fields).collect(),
            Filter::Condition(field, _) => vec![field],
        }
    }

    /// The only texts that `field` can have in a row that matches; `None` when it can have any.
    pub fn only(&self, field: &Field) -> Option<BTreeSet<&str>> {
        match self {
            Filter::All(rules) => {
                let sets = rules.iter().filter_map(|rule| rule.only(field));
                sets.reduce(|a, b| a.intersection(&b).copied().collect())
            }
            Filter::Any(rules) => {
                rules.iter().map(|rule| rule.only(field)).try_fold(BTreeSet::new(), |mut all, set| {
                    all.extend(set?);
                    Some(all)
                })
            }
            Filter::Condition(own, Test::In(literals)) if own == field => {
                literals.iter().map(Literal::text).collect()
            }
            Filter::Condition(..) => None,
        }
    }
}

impl Test {
    fn holds(&self, held: Held<'_>) -> bool {
        if matches!(self, Test::Exists) {
            return true;
        }
        // an explicit null exists, but is no value
        if matches!(held, Held::Json(Value::Null)) {
            return false;
        }
        match self {
            Test::Exists => true,
            Test::In(literals) => literals.iter().any(|literal| equals(held, literal)),
            Test::Not(literal) => !equals(held, literal),
            Test::Compare(order, literal) => compare(held, literal).is_some_and(|found| order.holds(found)),
            Test::Contains(part) => text_form(held).contains(part.as_str()),
            Test::Text(text) => text_form(held) == text.as_str(),
        }
    }
}

fn equals(held: Held<'_>, literal: &Literal) -> bool {
    match (held, literal) {
        (Held::Json(Value::Bool(a)), Literal::Bool(b)) => a == b,
        (Held::Json(Value::Array(items)), Literal::List(wanted)) => {
            wanted.iter().all(|literal| items.iter().any(|item| equals(Held::Json(item), literal)))
        }
        _ => compare(held, literal).is_some_and(Ordering::is_eq),
    }
}

/// Numbers with numbers, texts with texts bytewise, times with times; nothing else has an order.
fn compare(held: Held<'_>, literal: &Literal) -> Option<Ordering> {
    match (held, literal) {
        (Held::Text(a), Literal::Text(b)) => Some(a.cmp(b.as_str())),
        (Held::Number(a), Literal::Number(b)) => Some(a.cmp(b)),
        (Held::Time(a), Literal::Time(b)) => Some(a.cmp(b)),
        (Held::Json(Value::String(a)), Literal::Text(b)) => Some(a.cmp(b)),
        (Held::Json(Value::Number(a)), Literal::Number(b)) => {
            Quantity::parse(a.as_str()).ok().map(|a| a.cmp(b))
        }
        _ => None,
    }
}

/// A value as it is answered, without quotes.
fn text_form(held: Held<'_>) -> Cow<'_, str> {
    match held {
        Held::Text(text) => Cow::Borrowed(text),
        Held::Number(number) => Cow::Owned(number.to_json()),
        Held::Time(time) => Cow::Owned(time.to_seconds_text()),
        Held::Json(value) => text_of(value),
    }
}

/// Strings as they are, everything else as canonical JSON.
pub fn text_of(value: &Value) -> Cow<'_, str> {
    if let Value::String(text) = value {
        return Cow::Borrowed(text);
    }
    let mut spelled = value.clone();
    // stored numbers are within the limits, so they have a canonical spelling
    let _ = canonical(&mut spelled);
    Cow::Owned(spelled.to_string())
}

/// Counts what it reads, so that a filter stays small.
#[derive(Default)]
struct Parser {
    conditions: usize,
    values: usize,
}

impl Parser {
    fn node(&mut self, node: &Node, depth: usize) -> Result<Filter> {
        if depth > DEPTH_MAX {
            return Err(Error::invalid(format!("filter must not be deeper than {DEPTH_MAX} levels")));
        }
        match node.kind.as_str() {
            "group" => self.group(node, depth),
            "condition" => self.condition(node),
            kind => Err(Error::invalid(format!("filter type {kind:?} must be group or condition"))),
        }
    }

    fn group(&mut self, node: &Node, depth: usize) -> Result<Filter> {
        let rules = node.rules.as_deref().unwrap_or_default();
        if rules.is_empty() {
            return Err(Error::invalid("a filter group needs at least one rule"));
        }
        let rules = rules.iter().map(|rule| self.node(rule, depth + 1)).collect::<Result<Vec<_>>>();
        match node.op.as_str() {
            "and" => rules.map(|rules| Filter::joined(true, rules)),
            "or" => rules.map(|rules| Filter::joined(false, rules)),
            op => Err(Error::invalid(format!("op {op:?} of a filter group must be and or or"))),
        }
    }

    fn condition(&mut self, node: &Node) -> Result<Filter> {
        self.conditions += 1;
        if self.conditions > CONDITIONS_MAX {
            return Err(Error::invalid(format!(
                "filter must not have more than {CONDITIONS_MAX} conditions"
            )));
        }
        let name = node.field.as_deref().unwrap_or_default();
        let field = Field::parse(name)?;
        if node.op == "exists" {
            return Ok(Filter::Condition(field, Test::Exists));
        }
        let order = match node.op.as_str() {
            "gt" => Some(Order::Greater),
            "gte" => Some(Order::GreaterOrEqual),
            "lt" => Some(Order::Less),
            "lte" => Some(Order::LessOrEqual),
            "eq" | "neq" | "in" | "contains" => None,
            op => {
                let all = "eq, neq, gt, gte, lt, lte, in, contains or exists";
                return Err(Error::invalid(format!("op {op:?} of the filter on {name} must be {all}")));
            }
        };
        let missing = || Error::invalid(format!("the filter on {name} needs a value"));
        let value = node.value.as_ref().ok_or_else(missing)?;
        let test = match (order, node.op.as_str()) {
            (Some(order), _) => Test::Compare(order, self.ordered(name, &field, value)?),
            (None, "in") => Test::In(self.list(name, &field, value)?),
            (None, "neq") => Test::Not(self.literal(name, &field, value)?),
            (None, "contains") => Test::Contains(self.text(name, value)?),
            (None, _) => Test::In(vec![self.literal(name, &field, value)?]),
        };
        Ok(Filter::Condition(field, test))
    }

    fn count(&mut self) -> Result<()> {
        self.values += 1;
        if self.values > VALUES_MAX {
            return Err(Error::invalid(format!("filter must not have more than {VALUES_MAX} values")));
        }
        Ok(())
    }

    fn list(&mut self, name: &str, field: &Field, value: &Value) -> Result<Vec<Literal>> {
        match value {
            Value::Array(items) if !items.is_empty() => {
                items.iter().map(|item| self.literal(name, field, item)).collect()
            }
            _ => Err(Error::invalid(format!("the value of in for {name} must be a list that is not empty"))),
        }
    }

    fn ordered(&mut self, name: &str, field: &Field, value: &Value) -> Result<Literal> {
        match self.literal(name, field, value)? {
            Literal::Bool(_) | Literal::List(_) => {
                Err(Error::invalid(format!("the value for {name} must be a number or a string")))
            }
            literal => Ok(literal),
        }
    }

    fn text(&mut self, name: &str, value: &Value) -> Result<String> {
        self.count()?;
        match value {
            Value::String(_) | Value::Number(_) | Value::Bool(_) => Ok(text_of(value).into_owned()),
            _ => Err(Error::invalid(format!("the value of contains for {name} must be a string"))),
        }
    }

    fn literal(&mut self, name: &str, field: &Field, value: &Value) -> Result<Literal> {
        self.count()?;
        let wrong = |words: &str| Error::invalid(format!("the value for {name} must be {words}"));
        match field {
            Field::Subject | Field::Meter | Field::IdempotencyKey => match value {
                Value::String(_) | Value::Number(_) | Value::Bool(_) => {
                    Ok(Literal::Text(text_of(value).into_owned()))
                }
                _ => Err(wrong("a string")),
            },
            Field::Quantity => {
                let text = match value {
                    Value::Number(number) => number.as_str(),
                    Value::String(text) if is_numeric(text.trim()) => text.trim(),
                    _ => return Err(wrong("a number")),
                };
                Quantity::parse(text)
                    .map(Literal::Number)
                    .map_err(|reject| Error::invalid(format!("the value for {name} {reject}")))
            }
            Field::EventTime | Field::ReceivedAt => {
                let time = value.as_str().and_then(Timestamp::parse);
                time.map(Literal::Time).ok_or_else(|| wrong("an RFC3339 time"))
            }
            Field::Metadata(_) => match value {
                Value::String(text) => Ok(Literal::Text(text.clone())),
                Value::Bool(flag) => Ok(Literal::Bool(*flag)),
                Value::Number(number) => Quantity::parse(number.as_str())
                    .map(Literal::Number)
                    .map_err(|reject| Error::invalid(format!("the value for {name} {reject}"))),
                Value::Array(items) if items.iter().all(|item| !matches!(item, Value::Array(_))) => {
                    let literals = items.iter().map(|item| self.literal(name, field, item));
                    literals.collect::<Result<_>>().map(Literal::List)
                }
                _ => Err(wrong("a string, a number, a boolean or a list of those")),
            },
        }
    }
}

fn is_numeric(text: &str) -> bool {
    text.bytes().any(|b| b.is_ascii_digit())
        && text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'+' | b'-' | b'.' | b'e' | b'E'))
}

impl Field {
    fn parse(name: &str) -> Result<Self> {
        Ok(match name {
            "subject" => Field::Subject,
            "meter" => Field::Meter,
            "quantity" => Field::Quantity,
            "timestamp" | "event_time" => Field::EventTime,
            "received_at" => Field::ReceivedAt,
            "idempotency_key" => Field::IdempotencyKey,
            _ => match name.strip_prefix("metadata.").filter(|path| is_dimension_path(path)) {
                Some(path) => Field::Metadata(path.to_owned()),
                None => return Err(Error::invalid(format!("filter field {name:?} is not known"))),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metering::meter::value_at;
    use serde_json::{Value, json};

    struct Sample(crate::metering::json::Value);

    impl Row for Sample {
        fn held(&self, field: &Field) -> Option<Held<'_>> {
            match field {
                Field::Subject => Some(Held::Text("ann")),
                Field::Metadata(path) => value_at(self.0.as_object()?, path).map(Held::Json),
                _ => None,
            }
        }
    }

    fn parse(filter: Value) -> Result<Filter> {
        Filter::parse(&serde_json::from_str(&filter.to_string()).expect("an object"))
    }

    fn condition(field: &str, op: &str, value: Value) -> Value {
        json!({"type": "condition", "field": field, "op": op, "value": value})
    }

    fn group(op: &str, rules: Vec<Value>) -> Value {
        json!({"type": "group", "op": op, "rules": rules})
    }

    #[test]
    fn conditions_on_metadata() {
        let row = json!({"n": 100, "s": "a_b%C", "b": true, "z": null, "l": ["x", 2], "o": {"p-q": "5"}});
        let row = Sample(row.into());
        let cases = [
            ("n", "eq", json!(100.0), true),
            ("n", "eq", json!("100"), false),
            ("n", "gt", json!(50), true),
            ("n", "gt", json!("50"), false),
            ("n", "lt", json!(1e3), true),
            ("n", "contains", json!(0), true),
            ("s", "contains", json!("_b%"), true),
            ("s", "contains", json!("c"), false),
            ("s", "contains", json!("%C%"), false),
            ("s", "gte", json!("a"), true),
            ("s", "in", json!(["x", "a_b%C"]), true),
            ("b", "eq", json!(true), true),
            ("b", "neq", json!(false), true),
            ("b", "eq", json!("true"), false),
            ("z", "exists", json!(null), true),
            ("z", "neq", json!("x"), false),
            ("none", "neq", json!("x"), false),
            ("none", "exists", json!(null), false),
            ("l", "eq", json!([2]), true),
            ("l", "eq", json!(["y"]), false),
            ("l", "eq", json!("x"), false),
            ("o.p-q", "eq", json!("5"), true),
            ("o.p-q", "eq", json!(5), false),
            ("o", "exists", json!(1), true),
        ];
        for (path, op, value, expected) in cases {
            let filter = parse(condition(&format!("metadata.{path}"), op, value.clone())).expect("valid");
            assert_eq!(filter.matches(&row), expected, "{path} {op} {value}");
        }
    }

    #[test]
    fn refuses_what_has_no_meaning() {
        let bad = [
            json!({}),
            json!({"type": "not"}),
            group("xor", vec![condition("subject", "eq", json!("a"))]),
            group("and", vec![]),
            group("and", vec![Value::Null]),
            condition("subject", "like", json!("a")),
            condition("colour", "eq", json!("a")),
            condition("metadata", "exists", json!(1)),
            condition("metadata.", "exists", json!(1)),
            condition("metadata.a b", "eq", json!(1)),
            condition("subject", "eq", json!(null)),
            condition("subject", "eq", json!(["a"])),
            condition("subject", "in", json!("ann")),
            condition("subject", "in", json!([])),
            condition("subject", "in", json!([null])),
            condition("quantity", "gt", json!("many")),
            condition("quantity", "gt", json!(true)),
            condition("timestamp", "gt", json!("2026-06-01")),
            condition("timestamp", "gt", json!(5)),
            condition("metadata.a", "eq", json!({"a": 1})),
            condition("metadata.a", "eq", json!([{"a": 1}])),
            condition("metadata.a", "gt", json!(true)),
            condition("metadata.a", "contains", json!([1])),
        ];
        for filter in bad {
            let error = parse(filter.clone()).expect_err("refused");
            assert_eq!(error.code.as_str(), "invalid_input", "{filter}");
        }
        for wrong in
            ["\"x\"", "[]", r#"["group","and"]"#, r#"{"rules":"x"}"#, r#"{"rules":["x"]}"#, r#"{"op":1}"#]
        {
            assert!(serde_json::from_str::<Node>(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn has_limits() {
        let leaf = condition("subject", "eq", json!("ann"));
        let nest = |levels: usize| (1..levels).fold(leaf.clone(), |inner, _| group("and", vec![inner]));
        assert!(parse(nest(DEPTH_MAX)).is_ok());
        assert!(parse(nest(DEPTH_MAX + 1)).is_err());
        assert!(parse(group("or", vec![leaf.clone(); CONDITIONS_MAX])).is_ok());
        let mixed = |levels: usize, width: usize| {
            (0..levels).fold(leaf.clone(), |inner, level| {
                let rules = std::iter::once(inner).chain(std::iter::repeat_n(leaf.clone(), width));
                group(if level % 2 == 0 { "and" } else { "or" }, rules.collect())
            })
        };
        assert_eq!(parse(mixed(8, 1)).map(|filter| filter.depth()).ok(), Some(8));
        assert!(parse(mixed(8, 31)).is_ok());
        assert!(parse(mixed(8, 33)).is_err(), "conditions times levels");
        assert!(parse(mixed(9, 1)).is_err());
        assert!(parse(mixed(31, 1)).is_err());
        assert_eq!(parse(nest(DEPTH_MAX)).ok(), parse(leaf.clone()).ok());
        assert!(parse(group("or", vec![leaf.clone(); CONDITIONS_MAX + 1])).is_err());
        assert!(parse(condition("subject", "in", json!(vec!["a"; VALUES_MAX + 1]))).is_err());
    }

    #[test]
    fn knows_which_texts_can_match() {
        let subject = |names: &[&str]| condition("subject", "in", json!(names));
        let only = |filter| {
            let filter = parse(filter).expect("valid");
            filter.only(&Field::Subject).map(|set| set.into_iter().map(str::to_owned).collect::<Vec<_>>())
        };
        let other = condition("metadata.a", "eq", json!(1));
        assert_eq!(only(subject(&["a", "b"])), Some(vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!(
            only(group("and", vec![subject(&["a", "b"]), other.clone(), subject(&["b"])])),
            Some(vec!["b".to_owned()])
        );
        assert_eq!(only(group("or", vec![subject(&["a"]), other])), None);
        let both = group("or", vec![subject(&["a"]), subject(&["b"])]);
        assert_eq!(only(both).map(|set| set.len()), Some(2));
    }

    #[test]
    fn is_written_back_in_order() {
        let text = r#"{"type":"group","op":"or","rules":[{"type":"condition","op":"gt","field":"quantity","value":1}]}"#;
        let node: Node = serde_json::from_str(text).expect("a filter");
        assert_eq!(serde_json::to_string(&node).ok().as_deref(), Some(text));
    }
}
