//! JSON that callers fill as they like: event metadata, filter values, saved queries. The one reader of it, and the
//! value it is read into. Keys and texts have no meaning here beyond their own: the library's value type takes some
//! keys of an object for instructions, so free JSON never becomes one. Pure.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::{self, Write};

use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::value::RawValue;

use crate::metering::quantity::Quantity;

/// Nested lists and objects, the outermost included. Every walk over a value is bounded by it.
pub const DEPTH_MAX: usize = 127;

/// The fields of an object, sorted bytewise.
pub type Map = BTreeMap<String, Value>;

/// Writes `<`, `>`, `&`, U+2028 and U+2029 of JSON text as escapes. They occur inside strings only.
pub fn escape_html(json: &str) -> Cow<'_, str> {
    const SPECIAL: [char; 5] = ['<', '>', '&', '\u{2028}', '\u{2029}'];
    if !json.contains(SPECIAL) {
        return Cow::Borrowed(json);
    }
    let mut escaped = String::with_capacity(json.len() + 64);
    for c in json.chars() {
        if SPECIAL.contains(&c) {
            // writing to a String cannot fail
            let _ = write!(escaped, "\\u{:04x}", u32::from(c));
        } else {
            escaped.push(c);
        }
    }
    Cow::Owned(escaped)
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Value {
    #[default]
    Null,
    Bool(bool),
    Number(Number),
    String(String),
    Array(Vec<Value>),
    Object(Map),
}

/// A JSON number as it is spelled: no digit is lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Number(Box<str>);

impl Number {
    /// `None` for text that is no JSON number.
    pub fn parse(text: &str) -> Option<Self> {
        let mut reader = Reader::of(text);
        let number = reader.number()?;
        (reader.at == text.len()).then_some(number)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&Quantity> for Number {
    fn from(quantity: &Quantity) -> Self {
        Number(quantity.to_json().into())
    }
}

impl Value {
    /// Reads the text of one value; `None` when it is no JSON or nested deeper than [`DEPTH_MAX`].
    pub fn parse(text: &str) -> Option<Self> {
        let mut reader = Reader::of(text);
        let value = reader.value()?;
        reader.space();
        (reader.at == text.len()).then_some(value)
    }

    pub fn is_null(&self) -> bool {
        matches!(self, Value::Null)
    }

    pub fn as_str(&self) -> Option<&str> {
        if let Value::String(text) = self { Some(text) } else { None }
    }

    pub fn as_object(&self) -> Option<&Map> {
        if let Value::Object(fields) = self { Some(fields) } else { None }
    }

    pub fn as_array(&self) -> Option<&[Value]> {
        if let Value::Array(items) = self { Some(items) } else { None }
    }

    pub fn as_bool(&self) -> Option<bool> {
        if let Value::Bool(flag) = self { Some(*flag) } else { None }
    }

    /// An object of these fields.
    pub fn object<'n>(fields: impl IntoIterator<Item = (&'n str, Value)>) -> Value {
        Value::Object(fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }

    /// Levels of lists and objects; a plain value has none.
    pub fn depth(&self) -> usize {
        match self {
            Value::Array(items) => 1 + items.iter().map(Value::depth).max().unwrap_or(0),
            Value::Object(fields) => 1 + fields.values().map(Value::depth).max().unwrap_or(0),
            _ => 0,
        }
    }

    /// How many values it is, those in its lists and objects included.
    pub fn count(&self) -> usize {
        match self {
            Value::Array(items) => 1 + items.iter().map(Value::count).sum::<usize>(),
            Value::Object(fields) => 1 + fields.values().map(Value::count).sum::<usize>(),
            _ => 1,
        }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Value::String(text.to_owned())
    }
}

/// A field of an object; null where there is none.
impl std::ops::Index<&str> for Value {
    type Output = Value;

    fn index(&self, name: &str) -> &Value {
        self.as_object().and_then(|fields| fields.get(name)).unwrap_or(&Value::Null)
    }
}

/// Reads the text of one object.
pub fn parse_object(text: &str) -> Option<Map> {
    match Value::parse(text)? {
        Value::Object(fields) => Some(fields),
        _ => None,
    }
}

/// Why the text of an object was not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unread {
    NotAnObject,
    TooManyValues,
}

/// Reads the text of one object with so many values at most, those of its lists and objects included.
pub fn parse_small_object(text: &str, values: usize) -> Result<Map, Unread> {
    let mut reader = Reader { left: values.saturating_add(1), ..Reader::of(text) };
    let read = reader.value();
    reader.space();
    match read {
        Some(Value::Object(fields)) if reader.at == text.len() => Ok(fields),
        None if reader.left == 0 => Err(Unread::TooManyValues),
        _ => Err(Unread::NotAnObject),
    }
}

/// The text of an object.
pub fn object_text(fields: &Map) -> String {
    text_of(fields)
}

fn text_of<T: Serialize>(value: &T) -> String {
    // these values have no part that could fail to be written
    serde_json::to_string(value).unwrap_or_default()
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&text_of(self))
    }
}

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serde_json::from_str::<&RawValue>(&self.0).map_err(S::Error::custom)?.serialize(serializer)
    }
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Value::Null => serializer.serialize_unit(),
            Value::Bool(flag) => serializer.serialize_bool(*flag),
            Value::Number(number) => number.serialize(serializer),
            Value::String(text) => serializer.serialize_str(text),
            Value::Array(items) => items.serialize(serializer),
            Value::Object(fields) => fields.serialize(serializer),
        }
    }
}

/// From JSON text only: the library hands over the text of the value, and it is read here.
impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <&RawValue>::deserialize(deserializer)?;
        Value::parse(text.get()).ok_or_else(|| de::Error::custom("not JSON, or nested too deep"))
    }
}

/// Walks over the text from front to back.
struct Reader<'t> {
    text: &'t str,
    at: usize,
    depth: usize,
    /// Values that may still be read.
    left: usize,
}

impl<'t> Reader<'t> {
    fn of(text: &'t str) -> Self {
        Reader { text, at: 0, depth: 0, left: usize::MAX }
    }
}

impl Reader<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn take(&mut self, byte: u8) -> Option<()> {
        (self.peek()? == byte).then(|| self.at += 1)
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn value(&mut self) -> Option<Value> {
        self.left = self.left.checked_sub(1)?;
        self.space();
        match self.peek()? {
            b'n' => self.word("null", Value::Null),
            b't' => self.word("true", Value::Bool(true)),
            b'f' => self.word("false", Value::Bool(false)),
            b'"' => self.string().map(Value::String),
            b'[' => self.nested(Self::array),
            b'{' => self.nested(Self::object),
            _ => self.number().map(Value::Number),
        }
    }

    fn word(&mut self, word: &str, value: Value) -> Option<Value> {
        self.text.get(self.at..)?.starts_with(word).then(|| {
            self.at += word.len();
            value
        })
    }

    fn nested(&mut self, read: fn(&mut Self) -> Option<Value>) -> Option<Value> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return None;
        }
        self.at += 1;
        let value = read(self)?;
        self.depth -= 1;
        Some(value)
    }

    fn array(&mut self) -> Option<Value> {
        let mut items = Vec::new();
        self.space();
        if self.take(b']').is_some() {
            return Some(Value::Array(items));
        }
        loop {
            items.push(self.value()?);
            self.space();
            if self.take(b']').is_some() {
                return Some(Value::Array(items));
            }
            self.take(b',')?;
        }
    }

    fn object(&mut self) -> Option<Value> {
        let mut fields = Map::new();
        self.space();
        if self.take(b'}').is_some() {
            return Some(Value::Object(fields));
        }
        loop {
            self.space();
            let name = self.string()?;
            self.space();
            self.take(b':')?;
            // of a repeated name the last value counts
            let value = self.value()?;
            fields.insert(name, value);
            self.space();
            if self.take(b'}').is_some() {
                return Some(Value::Object(fields));
            }
            self.take(b',')?;
        }
    }

    fn digits(&mut self) -> Option<()> {
        let start = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        (self.at > start).then_some(())
    }

    fn number(&mut self) -> Option<Number> {
        let start = self.at;
        let _ = self.take(b'-');
        if self.take(b'0').is_none() {
            self.digits()?;
        }
        if self.take(b'.').is_some() {
            self.digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        self.text.get(start..self.at).map(|text| Number(text.into()))
    }

    fn string(&mut self) -> Option<String> {
        self.take(b'"')?;
        let mut string = String::new();
        loop {
            let rest = self.text.get(self.at..)?;
            let end = rest.bytes().position(|byte| matches!(byte, b'"' | b'\\' | 0..0x20))?;
            string.push_str(rest.get(..end)?);
            self.at += end + 1;
            match rest.as_bytes().get(end)? {
                b'"' => return Some(string),
                b'\\' => string.push(self.escape()?),
                _ => return None,
            }
        }
    }

    fn escape(&mut self) -> Option<char> {
        let byte = self.peek()?;
        self.at += 1;
        Some(match byte {
            b'"' | b'\\' | b'/' => char::from(byte),
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => return self.unicode(),
            _ => return None,
        })
    }

    fn hex(&mut self) -> Option<u32> {
        let digits = self.text.get(self.at..self.at + 4)?;
        let unit = digits.bytes().all(|b| b.is_ascii_hexdigit()).then(|| u32::from_str_radix(digits, 16))?;
        self.at += 4;
        unit.ok()
    }

    /// A pair of surrogates is one character; a lone one becomes U+FFFD (rest.md 2).
    fn unicode(&mut self) -> Option<char> {
        let unit = self.hex()?;
        if !(0xD800..0xDC00).contains(&unit) {
            return Some(char::from_u32(unit).unwrap_or(char::REPLACEMENT_CHARACTER));
        }
        let before = self.at;
        if self.text.get(self.at..).is_some_and(|rest| rest.starts_with("\\u")) {
            self.at += 2;
            let low = self.hex()?;
            if (0xDC00..0xE000).contains(&low) {
                return char::from_u32(0x10000 + ((unit - 0xD800) << 10) + (low - 0xDC00));
            }
            self.at = before;
        }
        Some(char::REPLACEMENT_CHARACTER)
    }
}

#[cfg(test)]
impl From<serde_json::Value> for Value {
    fn from(value: serde_json::Value) -> Self {
        Value::parse(&value.to_string()).expect("JSON")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(json: &str) -> Option<String> {
        Value::parse(json).map(|value| value.to_string())
    }

    #[test]
    fn keys_mean_nothing_but_themselves() {
        for json in [
            r#"{"$serde_json::private::Number":"7"}"#,
            r#"{"$serde_json::private::RawValue":"[1]"}"#,
            r#"{"$serde_json::private::RawValue":[{"$serde_json::private::Number":1}]}"#,
            r#"{"__proto__":{"$type":"x"},"a":{"$ref":"b"}}"#,
        ] {
            assert_eq!(text(json).as_deref(), Some(json));
            let read: Value = serde_json::from_str(json).expect("JSON");
            assert_eq!(read.to_string(), json);
        }
    }

    #[test]
    fn numbers_keep_their_digits() {
        for number in ["0", "-0", "1.50", "1e400", "12345678901234567890.123", "-1E+5"] {
            assert_eq!(text(number).as_deref(), Some(number));
            assert!(Number::parse(number).is_some());
        }
        for wrong in ["", "-", "01", "1.", ".5", "1e", "+1", "0x1", "NaN", "Infinity", "1 ", "1,2"] {
            assert_eq!(Number::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn values_are_counted_while_they_are_read() {
        let list = |items: usize| format!("{{\"a\":[{}]}}", vec!["0"; items].join(","));
        assert!(parse_small_object(&list(9), 10).is_ok_and(|fields| fields.len() == 1));
        assert_eq!(parse_small_object(&list(10), 10), Err(Unread::TooManyValues));
        // what comes behind is not looked at
        assert_eq!(parse_small_object(&format!("{} nonsense", list(10)), 10), Err(Unread::TooManyValues));
        assert_eq!(parse_small_object("{\"a\":[1,]}", 10), Err(Unread::NotAnObject));
        assert_eq!(parse_small_object("[1]", 10), Err(Unread::NotAnObject));
    }

    #[test]
    fn nesting_has_an_end() {
        let nested = |depth: usize| format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
        assert_eq!(Value::parse(&nested(DEPTH_MAX)).map(|value| value.depth()), Some(DEPTH_MAX));
        for depth in [DEPTH_MAX + 1, 1_000_000] {
            assert_eq!(Value::parse(&nested(depth)), None);
            assert_eq!(Value::parse(&"{\"a\":".repeat(depth)), None);
        }
    }

    #[test]
    fn surrogates_are_mended_and_pairs_kept() {
        let read = Value::parse(r#""\ud800x\uD83D\uDE00\\ud800\n\udfff\ud800\u0041""#);
        assert_eq!(read, Some(Value::String("\u{fffd}x\u{1F600}\\ud800\n\u{fffd}\u{fffd}A".to_owned())));
    }

    /// The library's value takes some keys for instructions, so nothing outside of tests reads into it; the log and the
    /// trail of changes only write with it.
    #[test]
    fn nothing_is_read_into_the_librarys_value() {
        let mut folders = vec![std::path::PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/src"))];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).expect("readable") {
                let path = entry.expect("readable").path();
                let name = path.to_string_lossy().into_owned();
                if path.is_dir() {
                    folders.push(path);
                } else if name.ends_with(".rs")
                    && !name.ends_with("logging.rs")
                    && !name.ends_with("db/audit.rs")
                    // a client, of answers that this program made
                    && !name.ends_with("roles/demo.rs")
                    && !name.ends_with("tests.rs")
                {
                    let text = std::fs::read_to_string(&path).expect("text");
                    let code = text.split("#[cfg(test)]\nimpl").next().unwrap_or_default();
                    let code = code.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
                    for word in [
                        "serde_json::Value",
                        "serde_json::{Value",
                        "serde_json::Map",
                        "serde_json::{Map",
                        "Value as Json",
                        "from_value(",
                    ] {
                        assert!(!code.contains(word), "{name}: {word}");
                    }
                }
            }
        }
    }

    #[test]
    fn other_text_is_no_json() {
        for wrong in [
            "",
            " ",
            "nul",
            "{",
            "[1",
            "[1,]",
            "{\"a\"}",
            "{\"a\":1,}",
            "{a:1}",
            "\"",
            "\"\\x\"",
            "\"\t\"",
            "1 2",
        ] {
            assert_eq!(Value::parse(wrong), None, "{wrong}");
        }
    }

    proptest! {
        /// What the library takes is taken, with the same meaning; what it refuses is refused.
        #[test]
        fn reads_what_the_library_reads(text in r#"[ \[\]{}:,"\\a-f0-9eEntrulsx.+-]{0,24}"#) {
            let theirs: Option<serde_json::Value> = serde_json::from_str(&text).ok();
            let ours = Value::parse(&text);
            if let Some(theirs) = theirs {
                let ours = ours.map(|ours| serde_json::from_str::<serde_json::Value>(&ours.to_string()).expect("JSON"));
                prop_assert_eq!(ours, Some(theirs));
            } else if let Some(ours) = ours {
                // a lone surrogate is the only thing that is taken here and not there
                prop_assert!(ours.to_string().contains('\u{fffd}'), "{} {}", text, ours);
            }
        }

        #[test]
        fn is_written_as_it_was_read(value in values()) {
            prop_assert_eq!(Value::parse(&value.to_string()), Some(value));
        }
    }

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::Bool),
            any::<i64>().prop_map(|n| Value::Number(Number(n.to_string().into()))),
            any::<String>().prop_map(Value::String),
        ];
        leaf.prop_recursive(5, 30, 6, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::Array),
                proptest::collection::btree_map(any::<String>(), inner, 0..6).prop_map(Value::Object),
            ]
        })
    }
}
