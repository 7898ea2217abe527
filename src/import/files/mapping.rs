//! A mapping: which column or field of a file is what of an event, as somebody wrote it down in TOML. `docs/moving.md` has
//! an example of everything.

use std::collections::BTreeMap;
use std::path::Path;

use jiff::civil::{DateTime, Time};
use jiff::fmt::strtime;
use jiff::fmt::temporal::{Pieces, PiecesOffset};
use jiff::tz::{AmbiguousOffset, TimeZone};
use serde::Deserialize;

use super::formats::seconds;
use crate::error::{Code, Error, Result};
use crate::metering::event::{Input, InputQuantity, Metadata};
use crate::metering::json::{Map, Number, Value};
use crate::metering::meter::value_at;
use crate::metering::quantity::Quantity;
use crate::metering::time::Timestamp;

/// As it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    key: String,
    time_zone: Option<String>,
    time_format: Option<String>,
    delimiter: Option<char>,
    #[serde(default)]
    decimal_comma: bool,
    #[serde(default)]
    columns: Columns,
    #[serde(default)]
    constants: Constants,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Columns {
    meter: Option<String>,
    subject: Option<String>,
    quantity: Option<String>,
    timestamp: Option<String>,
    #[serde(default)]
    metadata: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Constants {
    meter: Option<String>,
    subject: Option<String>,
    quantity: Option<Constant>,
    timestamp: Option<String>,
    #[serde(default)]
    metadata: BTreeMap<String, Constant>,
}

/// Not a float: that would not be the number that is written.
#[derive(Clone, Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "a text, a whole number, true or false; a number with a fraction is written as a text"
)]
enum Constant {
    Flag(bool),
    Whole(i64),
    Text(String),
}

impl Constant {
    fn text(&self) -> String {
        match self {
            Constant::Flag(flag) => flag.to_string(),
            Constant::Whole(number) => number.to_string(),
            Constant::Text(text) => text.clone(),
        }
    }

    fn value(&self) -> Value {
        match self {
            Constant::Flag(flag) => Value::Bool(*flag),
            Constant::Whole(number) => Value::Number(Number::from(&Quantity::from(*number))),
            Constant::Text(text) => Value::from(text.as_str()),
        }
    }
}

/// One piece of the expression for the key.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Column(String),
    /// `{@line}`, `{@file}`: where the event stands, and in what.
    Line,
    File,
}

/// How times without a zone are read, and of which form they are.
struct Times {
    zone: Option<TimeZone>,
    form: Form,
}

enum Form {
    /// RFC 3339; or the same without a zone, with one in brackets, with a blank for the T, without seconds or without a
    /// time of day.
    Iso,
    Seconds,
    Milliseconds,
    /// As `strptime` of C has it.
    Pattern(String),
}

/// Where a line stands.
pub struct At<'a> {
    /// What tells its file from others; empty where no key says so.
    pub file: &'a str,
    pub line: u64,
}

pub struct Mapping {
    key: Vec<Piece>,
    times: Times,
    columns: Columns,
    constants: Constants,
    decimal_comma: bool,
    pub delimiter: u8,
}

impl Mapping {
    pub fn read(path: &Path) -> Result<Mapping> {
        let unusable =
            |why: String| Error::new(Code::Unusable, format!("cannot use {}: {why}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|error| unusable(error.to_string()))?;
        Mapping::parse(&text).map_err(unusable)
    }

    fn parse(text: &str) -> std::result::Result<Mapping, String> {
        let written: Written = toml::from_str(text).map_err(|error| error.to_string().trim().to_owned())?;
        let Written { key, time_zone, time_format, delimiter, decimal_comma, columns, constants } = written;
        for (name, is_there) in [
            ("meter", columns.meter.is_some() || constants.meter.is_some()),
            ("subject", columns.subject.is_some() || constants.subject.is_some()),
            ("quantity", columns.quantity.is_some() || constants.quantity.is_some()),
            ("timestamp", columns.timestamp.is_some() || constants.timestamp.is_some()),
        ] {
            if !is_there {
                return Err(format!("{name} has neither a column nor a constant"));
            }
        }
        let key = pieces(&key)?;
        if key.iter().all(|piece| matches!(piece, Piece::Text(_))) {
            return Err("key is the same for every event: name a column, such as \"{id}\"".to_owned());
        }
        let delimiter = u8::try_from(delimiter.unwrap_or(',')).ok();
        let delimiter = delimiter.filter(|byte| byte.is_ascii() && !b"\"\r\n".contains(byte));
        let delimiter =
            delimiter.ok_or("delimiter must be one ASCII character, no quote and no line break")?;
        let times = Times::new(time_zone.as_deref(), time_format)?;
        Ok(Mapping { key, times, columns, constants, decimal_comma, delimiter })
    }

    /// The columns that are named here.
    pub fn columns(&self) -> impl Iterator<Item = &str> {
        let Columns { meter, subject, quantity, timestamp, metadata } = &self.columns;
        let fields = [meter, subject, quantity, timestamp].into_iter().flatten();
        let of_key = self.key.iter().filter_map(|piece| match piece {
            Piece::Column(name) => Some(name),
            _ => None,
        });
        fields.chain(metadata.values()).chain(of_key).map(String::as_str)
    }

    pub fn names_file(&self) -> bool {
        self.key.contains(&Piece::File)
    }

    pub fn input(&self, fields: &Map, at: &At) -> Result<Input> {
        let constant = |text: &Option<String>| text.clone();
        let field = |name: &str, column: &Option<String>, constant: Option<String>| {
            let found = column.as_deref().and_then(|column| text_at(fields, column));
            found.or(constant).ok_or_else(|| Error::invalid(format!("{name} is missing")))
        };
        let quantity =
            field("quantity", &self.columns.quantity, self.constants.quantity.as_ref().map(Constant::text))?;
        let time = field("timestamp", &self.columns.timestamp, constant(&self.constants.timestamp))?;
        Ok(Input {
            idempotency_key: Some(self.key(fields, at)?),
            subject: Some(field("subject", &self.columns.subject, constant(&self.constants.subject))?),
            meter: Some(field("meter", &self.columns.meter, constant(&self.constants.meter))?),
            quantity: Some(InputQuantity(Quantity::parse(&self.decimal(&quantity)?))),
            timestamp: None,
            metadata: Some(Metadata::Values(self.metadata(fields))),
            time: Some(self.times.read(&time)?),
        })
    }

    fn decimal(&self, text: &str) -> Result<String> {
        match self.decimal_comma {
            true if text.contains('.') => {
                Err(Error::invalid(format!("quantity has a point beside its comma: {text:.40}")))
            }
            true => Ok(text.replacen(',', ".", 1)),
            false => Ok(text.to_owned()),
        }
    }

    fn metadata(&self, fields: &Map) -> Map {
        let constants = self.constants.metadata.iter();
        let mut metadata: Map = constants.map(|(name, value)| (name.clone(), value.value())).collect();
        for (name, column) in &self.columns.metadata {
            match found(fields, column) {
                None | Some(Value::Null) => {}
                Some(Value::String(text)) if text.is_empty() => {}
                Some(value) => {
                    metadata.insert(name.clone(), value.clone());
                }
            }
        }
        metadata
    }

    fn key(&self, fields: &Map, at: &At) -> Result<String> {
        let mut key = String::new();
        for piece in &self.key {
            match piece {
                Piece::Text(text) => key.push_str(text),
                Piece::Line => key.push_str(&at.line.to_string()),
                Piece::File => key.push_str(at.file),
                Piece::Column(name) => {
                    let value = text_at(fields, name);
                    key.push_str(
                        &value.ok_or_else(|| Error::invalid(format!("its key has no value of {name}")))?,
                    );
                }
            }
        }
        Ok(key)
    }
}

/// A field by its name, or by the way to it through objects: `data.region`.
fn found<'a>(fields: &'a Map, name: &str) -> Option<&'a Value> {
    fields.get(name).or_else(|| value_at(fields, name))
}

/// A text that is there and not blank.
fn text_at(fields: &Map, name: &str) -> Option<String> {
    let text = match found(fields, name)? {
        Value::String(text) => text.trim().to_owned(),
        Value::Number(number) => number.as_str().to_owned(),
        Value::Bool(flag) => flag.to_string(),
        _ => return None,
    };
    (!text.is_empty()).then_some(text)
}

/// `{name}` is a column, `{{` and `}}` are braces.
fn pieces(text: &str) -> std::result::Result<Vec<Piece>, String> {
    let (mut pieces, mut plain, mut rest) = (Vec::new(), String::new(), text);
    while let Some(at) = rest.find(['{', '}']) {
        plain.push_str(&rest[..at]);
        let brace = &rest[at..];
        if brace.starts_with("{{") || brace.starts_with("}}") {
            plain.push_str(&brace[..1]);
            rest = &brace[2..];
            continue;
        }
        let (name, after) = brace
            .strip_prefix('{')
            .and_then(|inner| inner.split_once('}'))
            .filter(|(name, _)| !name.is_empty() && !name.contains('{'))
            .ok_or_else(|| format!("key has a brace that names no column: {text:?}"))?;
        if !plain.is_empty() {
            pieces.push(Piece::Text(std::mem::take(&mut plain)));
        }
        pieces.push(match name {
            "@line" => Piece::Line,
            "@file" => Piece::File,
            name if name.starts_with('@') => return Err(format!("key knows @line and @file, not {name}")),
            name => Piece::Column(name.to_owned()),
        });
        rest = after;
    }
    plain.push_str(rest);
    if !plain.is_empty() {
        pieces.push(Piece::Text(plain));
    }
    Ok(pieces)
}

impl Times {
    fn new(zone: Option<&str>, form: Option<String>) -> std::result::Result<Times, String> {
        let zone = zone.map(|name| {
            TimeZone::get(name)
                .map_err(|_| format!("there is no time zone {name:?}; write it like Europe/Berlin"))
        });
        let form = match form.as_deref() {
            None => Form::Iso,
            Some("seconds") => Form::Seconds,
            Some("milliseconds") => Form::Milliseconds,
            Some(pattern) if pattern.contains('%') => Form::Pattern(pattern.to_owned()),
            Some(other) => {
                return Err(format!(
                    "time_format is seconds, milliseconds or like %d.%m.%Y %H:%M, not {other:?}"
                ));
            }
        };
        Ok(Times { zone: zone.transpose()?, form })
    }

    fn read(&self, text: &str) -> Result<Timestamp> {
        let read = match &self.form {
            Form::Seconds => seconds(text),
            Form::Milliseconds => milliseconds(text),
            Form::Iso => match Timestamp::parse(text) {
                Some(at) => Some(at),
                None => self.iso(text)?,
            },
            Form::Pattern(pattern) => self.by_pattern(pattern, text)?,
        };
        read.ok_or_else(|| Error::invalid(format!("timestamp cannot be read: {text:.60}")))
    }

    fn by_pattern(&self, pattern: &str, text: &str) -> Result<Option<Timestamp>> {
        let Ok(parts) = strtime::parse(pattern, text) else { return Ok(None) };
        if parts.offset().is_some() {
            return Ok(parts.to_timestamp().ok().and_then(timestamp));
        }
        let civil = parts.to_datetime().or_else(|_| parts.to_date().map(|date| date.at(0, 0, 0, 0)));
        let Ok(civil) = civil else { return Ok(None) };
        let named = parts.iana_time_zone().map(|name| TimeZone::get(name).map_err(|_| unknown_zone(text)));
        self.in_zone(named.transpose()?.as_ref(), civil).map(Some)
    }

    /// An offset counts, else the zone that the text names, else the mapping's. Offset and zone must agree.
    fn iso(&self, text: &str) -> Result<Option<Timestamp>> {
        let is_year = text.len() >= 10 && text.as_bytes()[..4].iter().all(u8::is_ascii_digit);
        // a second 60 would be read as 59
        if !is_year || text.contains(":60") {
            return Ok(None);
        }
        let Ok(pieces) = Pieces::parse(text) else { return Ok(None) };
        let named = pieces.to_time_zone().map_err(|_| unknown_zone(text))?;
        let civil = pieces.date().to_datetime(pieces.time().unwrap_or_else(Time::midnight));
        let Some(offset) = pieces.offset() else { return self.in_zone(named.as_ref(), civil).map(Some) };
        let numeric = offset.to_numeric_offset();
        let Ok(at) = numeric.to_timestamp(civil) else { return Ok(None) };
        if named.is_some_and(|zone| offset != PiecesOffset::Zulu && zone.to_offset(at) != numeric) {
            return Err(Error::invalid(format!("timestamp has an offset that its zone has not: {text:.60}")));
        }
        Ok(timestamp(at))
    }

    /// Of the two instants when clocks are set back the first is meant.
    fn in_zone(&self, named: Option<&TimeZone>, civil: DateTime) -> Result<Timestamp> {
        let zone = named.or(self.zone.as_ref()).ok_or_else(|| {
            Error::invalid(format!("timestamp names no zone and the mapping no time_zone: {civil}"))
        })?;
        let one = zone.to_ambiguous_timestamp(civil);
        if matches!(one.offset(), AmbiguousOffset::Gap { .. }) {
            return Err(Error::invalid(format!(
                "timestamp is in no day of its zone, clocks are set forward then: {civil}"
            )));
        }
        let at = one.earlier().ok().and_then(timestamp);
        at.ok_or_else(|| Error::invalid(format!("timestamp is outside the years 1 to 9999: {civil}")))
    }
}

fn timestamp(at: jiff::Timestamp) -> Option<Timestamp> {
    let at = Timestamp(at.as_microsecond());
    (Timestamp::ABSENT..=Timestamp::LAST).contains(&at).then_some(at)
}

/// Whole milliseconds since 1970.
fn milliseconds(text: &str) -> Option<Timestamp> {
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let micros = text.parse::<i64>().ok().filter(|_| plain)?.checked_mul(1_000)?;
    (Timestamp(micros) <= Timestamp::LAST).then_some(Timestamp(micros))
}

fn unknown_zone(text: &str) -> Error {
    Error::invalid(format!("timestamp names a time zone that is not known: {text:.60}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metering::json;

    const WRITTEN: &str = r#"
        key = "{order}/{@line}"
        time_zone = "Europe/Berlin"
        [columns]
        subject = "customer"
        quantity = "amount"
        timestamp = "when"
        metadata.region = "data.area"
        [constants]
        meter = "calls"
        quantity = 1
        metadata = { origin = "billing", late = true }
    "#;

    fn input(fields: &str) -> Result<Input> {
        let mapping = Mapping::parse(WRITTEN).expect("a mapping");
        mapping.input(&json::parse_object(fields).expect("an object"), &At { file: "a.csv", line: 7 })
    }

    #[test]
    fn fields_come_from_columns_and_constants() {
        let read = input(r#"{"order":"o-1","customer":" acme ","amount":"0.10","when":"2026-07-01 12:00","data":{"area":"eu"}}"#)
            .expect("usable");
        assert_eq!(read.idempotency_key.as_deref(), Some("o-1/7"));
        assert_eq!((read.meter(), read.subject.as_deref()), ("calls", Some("acme")));
        assert_eq!(read.time, Timestamp::parse("2026-07-01T10:00:00Z"));
        let Some(Metadata::Values(fields)) = &read.metadata else { panic!("no metadata") };
        assert_eq!(json::object_text(fields), r#"{"late":true,"origin":"billing","region":"eu"}"#);
        let quantity = |input: Input| input.quantity.and_then(|of| of.0.ok()).map(|of| of.to_json());
        assert_eq!(quantity(read).as_deref(), Some("0.1"));
        let empty =
            input(r#"{"order":1,"customer":"a","amount":"","when":"2026-07-01T12:00:00Z"}"#).expect("usable");
        assert_eq!(quantity(empty).as_deref(), Some("1"));
    }

    #[test]
    fn what_a_line_lacks_is_said() {
        for (fields, word) in [
            (r#"{"customer":"a","when":"2026-07-01"}"#, "order"),
            (r#"{"order":"1","when":"2026-07-01"}"#, "subject"),
            (r#"{"order":"1","customer":"a","when":"tomorrow"}"#, "tomorrow"),
            (r#"{"order":"1","customer":"a","when":"2026-03-29 02:30"}"#, "forward"),
        ] {
            let error = input(fields).expect_err("refused");
            assert!(error.message.contains(word), "{fields}: {}", error.message);
        }
    }

    #[test]
    fn times_are_read_in_their_form() {
        let noon = Timestamp::parse("2026-01-15T11:00:00Z");
        for (zone, form, text, expected) in [
            (Some("Europe/Berlin"), None, "2026-01-15T12:00:00", noon),
            (Some("Europe/Berlin"), None, "2026-01-15T11:00:00Z", noon),
            (Some("Europe/Berlin"), None, "2026-01-15", Timestamp::parse("2026-01-14T23:00:00Z")),
            (Some("Europe/Berlin"), Some("%d.%m.%Y %H:%M"), "15.01.2026 12:00", noon),
            (None, Some("%d.%m.%Y %H:%M %z"), "15.01.2026 13:00 +0200", noon),
            // the zone that a text names comes before the mapping's
            (
                Some("Europe/Berlin"),
                Some("%Y-%m-%d %H:%M:%S %Q"),
                "2026-01-15 06:00:00 America/New_York",
                noon,
            ),
            (None, Some("%Y-%m-%d %H:%M:%S %Q"), "2026-01-15 12:00:00 Europe/Berlin", noon),
            (Some("Europe/Berlin"), Some("%Y-%m-%d %H:%M:%S %Q"), "2026-01-15 06:00:00 -0500", noon),
            (Some("Europe/Berlin"), Some("%Y-%m-%d %H:%M:%S %Q"), "2026-01-15 12:00:00 Europe/Nowhere", None),
            (None, Some("seconds"), "1768474800", noon),
            (None, Some("milliseconds"), "1768474800000", noon),
            // the first of two
            (
                Some("Europe/Berlin"),
                None,
                "2026-10-25 02:30:00.5",
                Timestamp::parse("2026-10-25T00:30:00.5Z"),
            ),
            // an offset counts, whichever sign it has, before the zone of the mapping
            (Some("Europe/Berlin"), None, "2026-01-15 06:00:00-05", noon),
            (Some("Europe/Berlin"), None, "2026-01-15 06:00:00-05:00", noon),
            (Some("Europe/Berlin"), None, "2026-01-15 06:00:00.000-0500", noon),
            (Some("Europe/Berlin"), None, "2026-01-15T06:00-05", noon),
            (Some("Europe/Berlin"), None, "2026-01-15 16:00:00+05", noon),
            (Some("Europe/Berlin"), None, "2026-01-15 16:30:00+0530", noon),
            (Some("Europe/Berlin"), None, "2026-01-15 11:00Z", noon),
            (None, None, "2026-01-15 06:00:00-05", noon),
            (None, None, "2026-01-15T12:00[Europe/Berlin]", noon),
            (None, None, "2026-01-15T06:00:00-05:00[America/New_York]", noon),
            (None, None, "2026-01-15T11:00:00Z[America/New_York]", noon),
            (None, None, "2026-01-15T06:00:00-05:00[Europe/Berlin]", None),
            (None, None, "2026-01-15T12:00[Europe/Nowhere]", None),
            (Some("Europe/Berlin"), None, "2026-01-15 06:00:00-5", None),
            (Some("Europe/Berlin"), None, "2026-01-15 12:00:60", None),
            (Some("Europe/Berlin"), None, "2026-01-15 11:00:60Z", None),
            (None, None, "2026-01-15 12:00", None),
            (None, Some("milliseconds"), "-1", None),
        ] {
            let times = Times::new(zone, form.map(str::to_owned)).expect("usable");
            assert_eq!(times.read(text).ok(), expected, "{text}");
        }
    }

    #[test]
    fn a_mapping_that_cannot_work_is_refused() {
        let without = |line: &str| WRITTEN.replace(line, "");
        for (text, word) in [
            (without("key = \"{order}/{@line}\""), "key"),
            (without("meter = \"calls\""), "meter"),
            (WRITTEN.replace("{order}/{@line}", "same"), "same for every"),
            (WRITTEN.replace("{order}", "{order"), "brace"),
            (WRITTEN.replace("Europe/Berlin", "Europe/Nowhere"), "Nowhere"),
            (WRITTEN.replace("quantity = 1", "quantity = 1.5"), "written as a text"),
            (WRITTEN.replace("meter =", "metre ="), "metre"),
        ] {
            let Err(error) = Mapping::parse(&text) else { panic!("taken: {text}") };
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn keys_are_made_of_pieces() {
        assert_eq!(
            pieces("a{{{b}-{@file}}}"),
            Ok(vec![
                Piece::Text("a{".into()),
                Piece::Column("b".into()),
                Piece::Text("-".into()),
                Piece::File,
                Piece::Text("}".into()),
            ])
        );
    }
}
