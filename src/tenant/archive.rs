//! The file of a tenant: gzip around lines of JSON. First what it is; then tables, each a line with its columns and a line
//! for each row, a list of texts in that order; last how many rows and which sums it holds, and a checksum of all lines
//! before. What has no last line is half a file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use ring::digest;
use serde::{Deserialize, Serialize};

use super::unusable;
use crate::config::VERSION;
use crate::error::{Code, Error, Result};
use crate::metering::time::Timestamp;

/// Grows when a program of today could not read it.
const FORMAT: u32 = 1;
/// Longer than any row: an answer to a call that is kept repeats all its events.
const LINE_BYTES_MAX: u64 = 256 << 20;

/// What a value of a column is; every one of them travels as a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Int,
    Flag,
    Text,
    /// In hexadecimal.
    Bytes,
    Decimal,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    pub open_spanner_tenant: u32,
    /// Of the program that wrote it.
    pub version: String,
    pub made_at: String,
    pub workspace: String,
    pub name: String,
    /// Secrets of webhooks are in it, sealed.
    pub has_secrets: bool,
}

impl Header {
    pub fn new(workspace: &str, name: &str, has_secrets: bool) -> Header {
        Header {
            open_spanner_tenant: FORMAT,
            version: VERSION.to_owned(),
            made_at: Timestamp::now().to_string(),
            workspace: workspace.to_owned(),
            name: name.to_owned(),
            has_secrets,
        }
    }
}

/// What the file holds, to be compared with what it came to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contents {
    /// By table.
    pub rows: BTreeMap<String, u64>,
    pub months: Vec<Month>,
}

/// What queries answer of a meter and month, and what of it is still there as events.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Month {
    pub meter: String,
    pub month: String,
    pub events: i64,
    pub sum: String,
    pub stored_events: u64,
    pub stored_sum: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    #[serde(flatten)]
    pub contents: Contents,
    pub lines: u64,
    pub sha256: String,
}

#[derive(Serialize, Deserialize)]
struct LastLine {
    end: End,
}

#[derive(Serialize, Deserialize)]
struct TableLine {
    table: String,
    columns: Vec<(String, Kind)>,
}

pub type Row = Vec<Option<String>>;

/// What a line is.
pub enum Line {
    Table { name: String, columns: Vec<(String, Kind)> },
    Row(Row),
    End,
}

pub struct Writer {
    out: BufWriter<GzEncoder<File>>,
    sha256: digest::Context,
    lines: u64,
    part: PathBuf,
    file: PathBuf,
    contents: Contents,
    table: String,
    is_done: bool,
}

fn cannot(what: &str, file: &Path, error: &std::io::Error) -> Error {
    Error::new(Code::Unusable, format!("cannot {what} {}: {error}", file.display()))
}

impl Writer {
    /// Nothing is at the place of the file until it is whole.
    pub fn create(file: &Path, header: &Header) -> Result<Writer> {
        if file.exists() {
            return Err(unusable(format!("{} is there already", file.display())));
        }
        let mut part = file.as_os_str().to_owned();
        part.push(".part");
        let part = PathBuf::from(part);
        let opened = File::options().create(true).truncate(true).write(true).mode(0o600).open(&part);
        let opened = opened.map_err(|error| cannot("write", &part, &error))?;
        let mut writer = Writer {
            out: BufWriter::with_capacity(1 << 16, GzEncoder::new(opened, Compression::new(3))),
            sha256: digest::Context::new(&digest::SHA256),
            lines: 0,
            part,
            file: file.to_owned(),
            contents: Contents::default(),
            table: String::new(),
            is_done: false,
        };
        writer.line(&json(header)?)?;
        Ok(writer)
    }

    fn line(&mut self, text: &str) -> Result<()> {
        self.sha256.update(text.as_bytes());
        self.sha256.update(b"\n");
        self.lines += 1;
        let written = self.out.write_all(text.as_bytes()).and_then(|()| self.out.write_all(b"\n"));
        written.map_err(|error| cannot("write", &self.part, &error))
    }

    pub fn table(&mut self, name: &str, columns: &[(String, Kind)]) -> Result<()> {
        name.clone_into(&mut self.table);
        self.contents.rows.insert(name.to_owned(), 0);
        self.line(&json(&TableLine { table: name.to_owned(), columns: columns.to_vec() })?)
    }

    /// A row as a list in JSON, without a line break.
    pub fn row(&mut self, text: &str) -> Result<()> {
        *self.contents.rows.entry(self.table.clone()).or_default() += 1;
        self.line(text)
    }

    pub fn finish(mut self, months: Vec<Month>) -> Result<Contents> {
        self.contents.months = months;
        let sha256 = hex(self.sha256.clone().finish().as_ref());
        let end = End { contents: self.contents.clone(), lines: self.lines, sha256 };
        self.line(&json(&LastLine { end })?)?;
        let written = self.out.flush().and_then(|()| self.out.get_mut().try_finish());
        let written = written.and_then(|()| self.out.get_ref().get_ref().sync_all());
        let written = written.and_then(|()| std::fs::hard_link(&self.part, &self.file));
        written.map_err(|error| cannot("write", &self.file, &error))?;
        self.is_done = true;
        Ok(std::mem::take(&mut self.contents))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let removed = std::fs::remove_file(&self.part);
        if let (true, Err(error)) = (self.is_done, removed) {
            log::warn!(error:%, file:% = self.part.display(); "a file that is not needed any more stays");
        }
    }
}

fn json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(Error::internal)
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub struct Reader {
    from: BufReader<MultiGzDecoder<File>>,
    file: PathBuf,
    sha256: digest::Context,
    lines: u64,
    line: Vec<u8>,
    end: Option<End>,
}

impl Reader {
    pub fn open(file: &Path) -> Result<(Header, Reader)> {
        let opened = File::open(file).map_err(|error| cannot("read", file, &error))?;
        let mut reader = Reader {
            from: BufReader::with_capacity(1 << 16, MultiGzDecoder::new(opened)),
            file: file.to_owned(),
            sha256: digest::Context::new(&digest::SHA256),
            lines: 0,
            line: Vec::new(),
            end: None,
        };
        let first = reader.read().map_err(|_| reader.foreign())?;
        let header: Header = match first {
            Some(()) => serde_json::from_slice(&reader.line).map_err(|_| reader.foreign())?,
            None => return Err(reader.foreign()),
        };
        if header.open_spanner_tenant > FORMAT {
            return Err(unusable(format!(
                "{} was written by open-spanner {}, which is newer: this program reads up to format {FORMAT}",
                file.display(),
                header.version
            )));
        }
        Ok((header, reader))
    }

    fn foreign(&self) -> Error {
        unusable(format!("{} is no file that tenant export wrote", self.file.display()))
    }

    fn broken(&self) -> Error {
        unusable(format!("{} is cut off or was changed: nothing of it is taken", self.file.display()))
    }

    /// The next line; a line that is not whole is none.
    fn read(&mut self) -> Result<Option<()>> {
        self.line.clear();
        let read = self.from.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut self.line);
        match read {
            Ok(0) => Ok(None),
            Ok(_) if self.line.ends_with(b"\n") => Ok(Some(())),
            Ok(_) | Err(_) => Err(self.broken()),
        }
    }

    pub fn next(&mut self) -> Result<Line> {
        // the head is part of the sum, the last line is not
        self.sha256.update(&self.line);
        self.lines += 1;
        if self.read()?.is_none() {
            return Err(self.broken());
        }
        if self.line.starts_with(b"[") {
            return serde_json::from_slice(&self.line).map(Line::Row).map_err(|_| self.broken());
        }
        if let Ok(LastLine { end }) = serde_json::from_slice(&self.line) {
            let sha256 = hex(self.sha256.clone().finish().as_ref());
            if (end.lines, &end.sha256) != (self.lines, &sha256) || self.read()?.is_some() {
                return Err(self.broken());
            }
            self.end = Some(end);
            return Ok(Line::End);
        }
        let line: TableLine = serde_json::from_slice(&self.line).map_err(|_| self.broken())?;
        Ok(Line::Table { name: line.table, columns: line.columns })
    }
}

/// Reads a file to its end: what its last line says of it is what is in it.
pub fn check(file: &Path) -> Result<End> {
    let (_, mut reader) = Reader::open(file)?;
    let (mut rows, mut table) = (BTreeMap::new(), String::new());
    loop {
        match reader.next()? {
            Line::Table { name, .. } => {
                if rows.insert(name.clone(), 0).is_some() {
                    return Err(reader.broken());
                }
                table = name;
            }
            Line::Row(_) => *rows.get_mut(&table).ok_or_else(|| reader.broken())? += 1,
            Line::End => {
                let end = reader.end.take().filter(|end| end.contents.rows == rows);
                return end.ok_or_else(|| reader.broken());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(directory: &Path) -> PathBuf {
        let file = directory.join("t");
        let header = Header::new("0198", "acme", false);
        let mut writer = Writer::create(&file, &header).expect("a file");
        writer.table("meters", &[("id".to_owned(), Kind::Int)]).expect("written");
        writer.row(r#"["1"]"#).expect("written");
        writer.row("[null]").expect("written");
        let contents = writer.finish(Vec::new()).expect("whole");
        assert_eq!(contents.rows["meters"], 2);
        file
    }

    #[test]
    fn what_was_written_is_read() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = written(directory.path());
        let end = check(&file).expect("whole");
        assert_eq!((end.lines, end.contents.rows["meters"]), (4, 2));
        assert!(Writer::create(&file, &Header::new("", "", false)).is_err(), "overwritten");
        assert_eq!(std::fs::read_dir(directory.path()).expect("readable").count(), 1);
    }

    #[test]
    fn what_is_not_whole_is_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        let whole = std::fs::read(written(directory.path())).expect("readable");
        let mut text = String::new();
        MultiGzDecoder::new(whole.as_slice()).read_to_string(&mut text).expect("gzip");
        let packed = |text: &str| {
            let mut out = GzEncoder::new(Vec::new(), Compression::fast());
            out.write_all(text.as_bytes()).expect("packed");
            out.finish().expect("packed")
        };
        let lines: Vec<&str> = text.lines().collect();
        let without_end = format!("{}\n", lines[..lines.len() - 1].join("\n"));
        for (bytes, word) in [
            (whole[..whole.len() - 9].to_vec(), "cut off"),
            (packed(&without_end), "cut off"),
            (packed(&text.replace("[\"1\"]", "[\"2\"]")), "changed"),
            (packed(&text.replace("[\"1\"]\n", "")), "changed"),
            (packed(&format!("{text}[null]\n")), "changed"),
            (packed(&text.replace("_tenant\":1", "_tenant\":2")), "newer"),
            (packed("{}\n"), "tenant export"),
            (b"text".to_vec(), "tenant export"),
        ] {
            let file = directory.path().join("other");
            std::fs::write(&file, bytes).expect("a file");
            let error = check(&file).expect_err("refused");
            assert!(error.message.contains(word), "{word}: {}", error.message);
        }
    }
}
