//! The lines of a file as events: JSON objects, or rows of CSV whose first row names the columns. Numbers keep their
//! digits.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use serde_json::value::RawValue;

use super::cannot;
use crate::config::commands::{EventsFormat, EventsImport};
use crate::error::{Error, Result};
use crate::metering::json::{Map, Value};

/// Longer than this no event is.
const LINE_BYTES_MAX: usize = 1 << 20;

/// One line of the file.
pub struct Line {
    /// Counted from 1; with CSV the row of names is the first.
    pub number: u64,
    /// Where it ends in the file.
    pub end: u64,
    pub text: String,
    /// As it is sent, or what is wrong with it.
    pub event: std::result::Result<String, String>,
}

/// SHA-256 of a file, in hexadecimal.
pub fn digest(file: &Path) -> Result<String> {
    let mut from = File::open(file).map_err(|error| cannot("read", file, &error))?;
    let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
    let mut buffer = vec![0; 1 << 16];
    loop {
        match from.read(&mut buffer).map_err(|error| cannot("read", file, &error))? {
            0 => return Ok(hex(hash.finish().as_ref())),
            read => hash.update(&buffer[..read]),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub struct Lines {
    source: Source,
    maker: Maker,
}

enum Source {
    Json { reader: BufReader<File>, number: u64, end: u64 },
    Csv { records: csv::StringRecordsIntoIter<File>, names: csv::StringRecord },
}

/// What makes an event of a line.
struct Maker {
    /// For lines that name none.
    meter: Option<String>,
    sha256: String,
}

impl Lines {
    pub fn open(file: &Path, asked: &EventsImport, sha256: &str) -> Result<Lines> {
        let opened = File::open(file).map_err(|error| cannot("read", file, &error))?;
        let is_csv = match asked.format {
            Some(format) => format == EventsFormat::Csv,
            None => file.extension().is_some_and(|end| end.eq_ignore_ascii_case("csv")),
        };
        let source = if is_csv {
            let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(opened);
            let names = reader.headers().cloned();
            let names =
                names.map_err(|error| Error::invalid(format_args!("the first row of the file: {error}")))?;
            if !names.iter().any(|name| name == "quantity") {
                return Err(Error::invalid("the first row must name the columns, quantity among them"));
            }
            Source::Csv { records: reader.into_records(), names }
        } else {
            Source::Json { reader: BufReader::new(opened), number: 0, end: 0 }
        };
        Ok(Lines { source, maker: Maker { meter: asked.meter.clone(), sha256: sha256.to_owned() } })
    }
}

impl Iterator for Lines {
    type Item = Result<Line>;

    fn next(&mut self) -> Option<Result<Line>> {
        match &mut self.source {
            Source::Json { reader, number, end } => next_json(reader, number, end, &self.maker),
            Source::Csv { records, names } => next_row(records, names, &self.maker),
        }
    }
}

fn next_json(
    reader: &mut BufReader<File>,
    number: &mut u64,
    end: &mut u64,
    maker: &Maker,
) -> Option<Result<Line>> {
    loop {
        let mut bytes = Vec::new();
        let read = reader.by_ref().take(LINE_BYTES_MAX as u64 + 1).read_until(b'\n', &mut bytes);
        match read {
            Ok(0) => return None,
            Ok(count) => *end += count as u64,
            Err(error) => {
                return Some(Err(Error::unavailable(format_args!("the file cannot be read: {error}"))));
            }
        }
        *number += 1;
        if bytes.len() > LINE_BYTES_MAX {
            return Some(Err(Error::invalid(format_args!("line {number} is longer than 1 MiB"))));
        }
        let text = String::from_utf8_lossy(&bytes);
        let text = text.trim();
        if !text.is_empty() {
            let event = match std::str::from_utf8(&bytes) {
                Ok(_) => of_json(text).and_then(|object| maker.event(object, *number)),
                Err(_) => Err("is not UTF-8".to_owned()),
            };
            return Some(Ok(Line { number: *number, end: *end, text: text.to_owned(), event }));
        }
    }
}

type Object = std::collections::BTreeMap<String, Box<RawValue>>;

fn of_json(text: &str) -> std::result::Result<Object, String> {
    serde_json::from_str(text).map_err(|error| format!("is no JSON object: {error}"))
}

fn next_row(
    records: &mut csv::StringRecordsIntoIter<File>,
    names: &csv::StringRecord,
    maker: &Maker,
) -> Option<Result<Line>> {
    let record = records.next()?;
    let position = records.reader().position();
    let end = position.byte();
    Some(match record {
        Ok(record) => {
            let number = record.position().map_or(0, csv::Position::line);
            let text = record.iter().collect::<Vec<_>>().join(",");
            let event = of_row(names, &record).and_then(|object| maker.event(object, number));
            Ok(Line { number, end, text, event })
        }
        Err(error) => match error.position().map(csv::Position::line) {
            Some(number) => Ok(Line { number, end, text: String::new(), event: Err(error.to_string()) }),
            None => Err(Error::unavailable(format_args!("the file cannot be read: {error}"))),
        },
    })
}

/// Columns of an event are its fields; any other is metadata, a text.
fn of_row(names: &csv::StringRecord, row: &csv::StringRecord) -> std::result::Result<Object, String> {
    const FIELDS: [&str; 4] = ["meter", "subject", "timestamp", "idempotency_key"];
    if row.len() != names.len() {
        return Err(format!("has {} cells, the first row {}", row.len(), names.len()));
    }
    let (mut object, mut metadata) = (Object::new(), Map::new());
    let raw = |text: String| RawValue::from_string(text).map_err(|error| error.to_string());
    for (name, cell) in names.iter().zip(row) {
        match name {
            _ if cell.is_empty() => {}
            "quantity" => {
                let number = raw(cell.trim().to_owned()).ok().filter(|number| is_number(number.get()));
                object.insert(
                    name.to_owned(),
                    number.ok_or_else(|| format!("quantity {cell:?} is no number"))?,
                );
            }
            name if FIELDS.contains(&name) => {
                object.insert(name.to_owned(), raw(Value::from(cell).to_string())?);
            }
            name => {
                let name = name.strip_prefix("metadata.").unwrap_or(name);
                metadata.insert(name.to_owned(), cell.into());
            }
        }
    }
    if !metadata.is_empty() {
        object.insert("metadata".to_owned(), raw(Value::Object(metadata).to_string())?);
    }
    Ok(object)
}

fn is_number(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_digit() || first == '-')
}

impl Maker {
    /// The event as it is sent, with a meter and a key.
    fn event(&self, mut object: Object, number: u64) -> std::result::Result<String, String> {
        let raw = |text: &str| {
            RawValue::from_string(Value::from(text).to_string()).map_err(|error| error.to_string())
        };
        if let (false, Some(meter)) = (object.contains_key("meter"), &self.meter) {
            object.insert("meter".to_owned(), raw(meter)?);
        }
        for field in ["meter", "subject", "quantity"] {
            if !object.contains_key(field) {
                return Err(format!("has no {field}"));
            }
        }
        if !is_number(object["quantity"].get()) {
            return Err("quantity is no number".to_owned());
        }
        let key = object.get("idempotency_key").is_none_or(|key| matches!(key.get(), "null" | "\"\""));
        if key {
            // of the file and the line: the same line of the same file counts once
            let made =
                ring::digest::digest(&ring::digest::SHA256, format!("{}:{number}", self.sha256).as_bytes());
            object
                .insert("idempotency_key".to_owned(), raw(&format!("import-{}", &hex(made.as_ref())[..32]))?);
        }
        serde_json::to_string(&object).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn maker() -> Maker {
        Maker { meter: Some("calls".into()), sha256: "00".into() }
    }

    #[test]
    fn lines_become_events_with_their_digits_and_a_key_of_their_own() {
        let event = |text: &str, number| of_json(text).and_then(|object| maker().event(object, number));
        let made = event(r#"{"subject":"s","quantity":0.10000000000000000001}"#, 7).expect("an event");
        assert!(made.contains("0.10000000000000000001") && made.contains(r#""meter":"calls""#), "{made}");
        assert_eq!(made, event(r#"{"subject":"s","quantity":0.10000000000000000001}"#, 7).expect("the same"));
        assert_ne!(made, event(r#"{"subject":"s","quantity":0.10000000000000000001}"#, 8).expect("another"));
        let own =
            event(r#"{"subject":"s","quantity":1,"meter":"m","idempotency_key":"k"}"#, 1).expect("an event");
        assert!(own.contains(r#""idempotency_key":"k""#) && own.contains(r#""meter":"m""#), "{own}");
        for (text, words) in [
            ("[]", "no JSON object"),
            (r#"{"quantity":1}"#, "no subject"),
            (r#"{"subject":"s"}"#, "no quantity"),
            (r#"{"subject":"s","quantity":"1"}"#, "no number"),
        ] {
            let wrong = event(text, 1).expect_err("refused");
            assert!(wrong.contains(words), "{text}: {wrong}");
        }
    }

    #[test]
    fn rows_become_events_with_metadata() {
        let names =
            csv::StringRecord::from(vec!["subject", "quantity", "model", "metadata.region", "timestamp"]);
        let row = |cells: &[&str]| of_row(&names, &csv::StringRecord::from(cells.to_vec()));
        let made =
            maker().event(row(&["s", "1.50", "small", "eu", ""]).expect("a row"), 2).expect("an event");
        assert!(
            made.contains(r#""metadata":{"model":"small","region":"eu"}"#) && made.contains("1.50"),
            "{made}"
        );
        assert!(!made.contains("timestamp"), "{made}");
        assert!(row(&["s", "much", "", "", ""]).expect_err("refused").contains("much"));
        assert!(row(&["s", "1", ""]).expect_err("refused").contains("3 cells"));
    }
}
