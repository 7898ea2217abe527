//! What became of every row that was read: counts, and a file that names each row that was left out and why.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::error::{Code, Error, Result};
use crate::import::sql::ours::Put;

#[derive(Default)]
struct Counts {
    new: u64,
    known: u64,
    left_out: u64,
}

pub struct Report {
    rejected: BufWriter<File>,
    /// By table.
    counts: BTreeMap<&'static str, Counts>,
    /// By table and reason.
    reasons: BTreeMap<(&'static str, String), u64>,
    notes: Vec<String>,
}

#[derive(Serialize)]
struct LeftOut<'a> {
    table: &'a str,
    id: &'a str,
    reason: &'a str,
}

impl Report {
    /// The file is made anew: a run that begins anew lists everything again. It is none of those that are read.
    pub fn new(rejected: &Path, read: &[PathBuf]) -> Result<Report> {
        let same = |file: &PathBuf| is_same(file, rejected);
        if let Some(file) = read.iter().find(|file| same(file)) {
            return Err(Error::new(
                Code::Unusable,
                format!("{} is what is read: name another file with --rejected", file.display()),
            ));
        }
        let file = File::options().create(true).write(true).truncate(true).mode(0o600).open(rejected);
        let file = file.map_err(|error| {
            Error::new(Code::Unusable, format!("cannot write {}: {error}", rejected.display()))
        })?;
        let rejected = BufWriter::new(file);
        Ok(Report { rejected, counts: BTreeMap::new(), reasons: BTreeMap::new(), notes: Vec::new() })
    }

    pub fn taken(&mut self, table: &'static str, put: Put, count: u64) {
        let counts = self.counts.entry(table).or_default();
        match put {
            Put::New => counts.new += count,
            Put::Known | Put::Taken => counts.known += count,
        }
    }

    /// A reason may go on behind a colon with what is special about this row.
    pub fn left_out(&mut self, table: &'static str, id: &str, reason: &str) -> Result<()> {
        self.counts.entry(table).or_default().left_out += 1;
        let kind = reason.split(": ").next().unwrap_or(reason).to_owned();
        *self.reasons.entry((table, kind)).or_default() += 1;
        let line = serde_json::to_string(&LeftOut { table, id, reason }).map_err(Error::internal)?;
        writeln!(self.rejected, "{line}").map_err(cannot_write)
    }

    /// Something to know that is about no single row. Names that others chose must not move the cursor.
    pub fn note(&mut self, note: impl AsRef<str>) {
        self.notes.push(plain(note.as_ref()));
    }

    pub fn new_rows(&self) -> u64 {
        self.counts.values().map(|counts| counts.new).sum()
    }

    /// Everything for people to read.
    pub fn finish(&mut self) -> Result<String> {
        self.rejected.flush().map_err(cannot_write)?;
        let mut text = format!("{:<32}{:>12}{:>12}{:>12}\n", "table", "new", "known", "left out");
        for (table, Counts { new, known, left_out }) in &self.counts {
            text.push_str(&format!("{table:<32}{new:>12}{known:>12}{left_out:>12}\n"));
        }
        for ((table, reason), count) in &self.reasons {
            text.push_str(&format!("left out: {count} of {table}: {}\n", plain(reason)));
        }
        for note in &self.notes {
            text.push_str(&format!("note: {note}\n"));
        }
        Ok(text)
    }
}

fn is_same(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (a.metadata(), b.metadata()) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

/// For a terminal.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

fn cannot_write(error: std::io::Error) -> Error {
    Error::new(Code::Internal, format!("cannot write the list of what is left out: {error}"))
}
