//! Events from files: those that other meters write (OpenMeter, Lago, Stripe), and any other by a mapping. Each line or row becomes an input as if it had been
//! sent here, so the rules of every door hold; the other side's id is the idempotency key, so a file can be brought in
//! again and again. What is refused is listed with its line.

mod formats;
mod mapping;

use std::cell::Cell;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use uuid::Uuid;

pub use formats::Format;
pub use mapping::Mapping;

use self::mapping::At;
use crate::chance;
use crate::config::import::{Files, How};
use crate::db::session::Session;
use crate::error::{Code, Error, Result};
use crate::import::progress::Progress;
use crate::import::report::Report;
use crate::import::sql::ours::{self, Put};
use crate::ingest::Origin;
use crate::ingest::insert::{self, Batch, Kind, Outcome, WriteCache};
use crate::metering::event::{self, Event, Input, Metadata};
use crate::metering::json::{self, Map, Number, Value};
use crate::metering::meter::{DimensionType, Meter};
use crate::metering::time::Timestamp;
use crate::meters::sql as meters;
use crate::output::{print, print_line};
use crate::usage::{fold, settle};

const EVENTS_AT_ONCE: usize = 4_000;
/// Of events that wait to be stored: those with long metadata are stored in smaller numbers.
const BYTES_AT_ONCE: usize = 32 << 20;
/// Of one line; an event is as long as its metadata.
const LINE_BYTES_MAX: u64 = 1 << 20;
const ROW_BYTES_MAX: u64 = 16 << 20;
const TABLE: &str = "events";

/// What the lines of a file mean.
pub enum Reader {
    /// A table when the name ends in .csv, else JSON.
    Of(Format),
    Csv(Mapping),
    Ndjson(Mapping),
}

impl Reader {
    fn is_table(&self, path: &Path) -> bool {
        match self {
            Reader::Of(_) => path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("csv")),
            Reader::Csv(_) => true,
            Reader::Ndjson(_) => false,
        }
    }

    /// Whether keys are made of what tells a file from others.
    fn names_file(&self) -> bool {
        match self {
            Reader::Of(_) => false,
            Reader::Csv(mapping) | Reader::Ndjson(mapping) => mapping.names_file(),
        }
    }

    fn delimiter(&self) -> u8 {
        if let Reader::Csv(mapping) = self { mapping.delimiter } else { b',' }
    }

    /// A file that is not there, and one whose head does not fit, is told before the first is begun.
    fn check(&self, path: &Path) -> Result<()> {
        let file = File::open(path).map_err(|error| unusable(path, error))?;
        // what comes through a pipe can be read only once
        let is_file = file.metadata().is_ok_and(|about| about.is_file());
        if self.names_file() && !is_file {
            return Err(unusable(
                path,
                "{@file} in the key is made of what a file holds, and this is no file",
            ));
        }
        if !self.is_table(path) || !is_file {
            return Ok(());
        }
        let mut reader = self.table(file, Rc::default());
        let head = reader.headers().map_err(|error| unusable(path, error))?;
        self.check_head(head).map_err(|why| unusable(path, why))
    }

    /// Every column of the mapping is there once: of two with one name nobody knows which is meant.
    fn check_head(&self, head: &csv::StringRecord) -> std::result::Result<(), String> {
        let Reader::Csv(mapping) = self else { return Ok(()) };
        let times = |column: &str| head.iter().filter(|name| *name == column).count();
        let wrong = mapping.columns().find_map(|column| match times(column) {
            1 => None,
            0 => Some(format!("it has no column {column:?}, which the mapping names")),
            _ => Some(format!("it has several columns {column:?}, one of which the mapping names")),
        });
        wrong.map_or(Ok(()), Err)
    }

    fn table(&self, file: File, bytes: Rc<Cell<u64>>) -> csv::Reader<OfRow> {
        let rows = OfRow { file, bytes };
        // a row of another length is refused alone, not the file with it
        csv::ReaderBuilder::new().flexible(true).delimiter(self.delimiter()).from_reader(rows)
    }

    fn input(&self, fields: Map, at: &At) -> Result<Input> {
        match self {
            Reader::Of(format) => format.input(fields),
            Reader::Csv(mapping) | Reader::Ndjson(mapping) => mapping.input(&fields, at),
        }
    }
}

/// Nothing was begun.
fn unusable(path: &Path, why: impl std::fmt::Display) -> Error {
    Error::new(Code::Unusable, format!("cannot read {}: {why}", path.display()))
}

/// In the middle, so that a part may be stored.
fn broke_off(path: &Path, why: impl std::fmt::Display) -> Error {
    Error::new(
        Code::Internal,
        format!("cannot read on in {}: {why} (what came before it may be stored)", path.display()),
    )
}

struct Import {
    ours: Session,
    reader: Reader,
    report: Report,
    workspace_id: i64,
    now: Timestamp,
    run_id: Uuid,
    known: WriteCache,
    meters: HashMap<String, Option<Arc<Meter>>>,
    waiting: Vec<(String, Event)>,
    waiting_bytes: usize,
    progress: Progress,
}

pub fn run(mut session: Session, asked: &Files, reader: Reader) -> Result<()> {
    let How { dry_run, rejected } = &asked.how;
    let workspace_id = workspace(&mut session, asked.workspace.as_deref())?;
    asked.files.iter().try_for_each(|file| reader.check(file))?;
    let total = asked.files.iter().filter_map(|file| Some(file.metadata().ok()?.len())).sum();
    let mut import = Import {
        ours: session,
        reader,
        report: Report::new(rejected, &asked.files)?,
        workspace_id,
        now: Timestamp::now(),
        run_id: chance::id(),
        known: WriteCache::default(),
        meters: HashMap::new(),
        waiting: Vec::with_capacity(EVENTS_AT_ONCE),
        waiting_bytes: 0,
        progress: Progress::new("bytes", total),
    };
    for file in &asked.files {
        import.file(file)?;
    }
    import.store()?;
    import.fold()?;
    print(&import.report.finish()?);
    print_line!("what is left out is listed in {}", rejected.display());
    if *dry_run {
        print_line!("this was a dry run: nothing was stored");
    }
    Ok(())
}

/// A row that does not end would fill the memory: a quote is missing, or this is no table.
struct OfRow {
    file: File,
    /// Read since the last row was asked for.
    bytes: Rc<Cell<u64>>,
}

impl Read for OfRow {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.bytes.get() > ROW_BYTES_MAX {
            return Err(io::Error::other(
                "a row is longer than 16 MiB: is the end of a quoted cell missing?",
            ));
        }
        let read = self.file.read(buffer)?;
        self.bytes.set(self.bytes.get() + read as u64);
        Ok(read)
    }
}

/// What a file holds, as a text: wherever it lies and however it is called, its lines are the same events.
fn digest(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            read => hash.update(&buffer[..read]),
        }
    }
    Ok(hash.finish().as_ref().iter().take(16).map(|byte| format!("{byte:02x}")).collect())
}

/// The workspace with this id, or the only one.
fn workspace(session: &mut Session, public_id: Option<&str>) -> Result<i64> {
    let unusable = |message: &str| Error::new(Code::Unusable, message);
    match public_id {
        Some(id) => {
            let found = session.read(|conn| ours::find(conn, "workspaces", id))?;
            found.ok_or_else(|| unusable(&format!("there is no workspace {id}")))
        }
        None => session
            .read(ours::only_workspace)?
            .ok_or_else(|| unusable("there is not exactly one workspace: choose one with --workspace")),
    }
}

impl Import {
    fn file(&mut self, path: &Path) -> Result<()> {
        let unreadable = |error: io::Error| broke_off(path, error);
        let file = File::open(path).map_err(unreadable)?;
        let id = if self.reader.names_file() { digest(path).map_err(unreadable)? } else { String::new() };
        if self.reader.is_table(path) {
            return self.rows(path, file, &id);
        }
        let name = path.display().to_string();
        let mut reader = BufReader::with_capacity(1 << 16, file);
        let (mut number, mut line) = (0, Vec::new());
        loop {
            line.clear();
            let read =
                reader.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line).map_err(unreadable)?;
            if read == 0 {
                return Ok(());
            }
            number += 1;
            let is_whole = line.ends_with(b"\n") || (read as u64) < LINE_BYTES_MAX;
            if !is_whole {
                reader.skip_until(b'\n').map_err(unreadable)?;
            }
            self.progress.add(read);
            // editors of one make begin a file with a mark of its encoding
            let text = std::str::from_utf8(&line).map(|text| text.trim_start_matches('\u{feff}').trim());
            let place = format!("{name}:{number}");
            match text {
                Ok("") => {}
                Ok(text) if is_whole => {
                    let fields =
                        json::parse_object(text).ok_or_else(|| Error::invalid("the line is no JSON object"));
                    let at = At { file: &id, line: number };
                    let input = fields.and_then(|fields| self.reader.input(fields, &at));
                    self.take(place, input)?;
                }
                Ok(_) => self.take(place, Err(Error::invalid("the line is too long")))?,
                Err(_) => self.take(place, Err(Error::invalid("the line is not UTF-8")))?,
            }
        }
    }

    /// A table with a head: each row is the object of its cells, those that are JSON objects read as such.
    fn rows(&mut self, path: &Path, file: File, id: &str) -> Result<()> {
        let bytes = Rc::new(Cell::new(0));
        let mut reader = self.reader.table(file, bytes.clone());
        let head = reader.headers().map_err(|error| broke_off(path, error))?.clone();
        self.reader.check_head(&head).map_err(|why| broke_off(path, why))?;
        let name = path.display().to_string();
        let mut before = 0;
        let mut row = csv::StringRecord::new();
        loop {
            bytes.set(0);
            let read = reader.read_record(&mut row);
            let at = reader.position().clone();
            self.progress.add((at.byte() - before) as usize);
            before = at.byte();
            let line = row.position().map_or_else(|| at.line(), csv::Position::line);
            let place = format!("{name}:{line}");
            match read {
                Ok(false) => return Ok(()),
                // cells that slid under another name would be counted as what they are not
                Ok(true) if row.len() != head.len() => {
                    let why = format!("the row has {} cells, the head has {}", row.len(), head.len());
                    self.take(place, Err(Error::invalid(why)))?;
                }
                Ok(true) => {
                    let fields: Map = head
                        .iter()
                        .zip(&row)
                        .map(|(name, cell)| (name.to_owned(), formats::cell(cell)))
                        .collect();
                    let input = self.reader.input(fields, &At { file: id, line });
                    self.take(place, input)?;
                }
                Err(error) if error.is_io_error() => return Err(broke_off(path, error)),
                Err(error) => {
                    self.take(place, Err(Error::invalid(format!("the row cannot be read: {error}"))))?
                }
            }
        }
    }

    /// Checks an event as every door does.
    fn take(&mut self, place: String, input: Result<Input>) -> Result<()> {
        let checked = match input {
            Ok(input) => self.check(input)?,
            Err(error) => Err(error),
        };
        match checked {
            Ok(event) => {
                self.waiting_bytes += event.bytes();
                self.waiting.push((place, event));
                match self.waiting.len() >= EVENTS_AT_ONCE || self.waiting_bytes >= BYTES_AT_ONCE {
                    true => self.store(),
                    false => Ok(()),
                }
            }
            Err(error) => {
                let reason = error.message.strip_prefix("invalid input: ").unwrap_or(&error.message);
                self.report.left_out(TABLE, &place, reason)
            }
        }
    }

    fn check(&mut self, input: Input) -> Result<Result<Event>> {
        let name = input.meter().to_owned();
        if !self.meters.contains_key(&name) {
            let workspace_id = self.workspace_id;
            let is_possible = !name.contains('\0');
            let found = match is_possible {
                true => self.ours.read(|conn| meters::find_by_name(conn, workspace_id, &name))?,
                false => None,
            };
            self.meters.insert(name.clone(), found.map(Arc::new));
        }
        Ok(match self.meters.get(&name) {
            Some(Some(meter)) if input.idempotency_key.is_some() => {
                let input = if matches!(self.reader, Reader::Csv(_)) { typed(meter, input) } else { input };
                event::validate(meter, input, self.now, chance::id())
            }
            Some(Some(_)) => Err(Error::invalid("it has no id, so it could be counted twice")),
            _ => Err(Error::not_found(format!("meter {name:?}"))),
        })
    }

    fn store(&mut self) -> Result<()> {
        self.waiting_bytes = 0;
        let (places, events): (Vec<String>, Vec<Event>) =
            std::mem::take(&mut self.waiting).into_iter().unzip();
        if events.is_empty() {
            return Ok(());
        }
        let batches = [Arc::new(Batch {
            origin: Origin::without_call(self.workspace_id, self.run_id),
            kind: Kind::Bulk,
            events,
            failed: 0,
            replay_key: None,
            received_at: self.now,
            consumes: None,
        })];
        let (link, known) = (self.ours.link(), &self.known);
        let (outcomes, learned) = self.ours.write(|conn| insert::insert(conn, link, &batches, 0, known))?;
        self.known.remember(learned);
        let Some(Outcome::Stored(originals)) = outcomes.into_iter().next() else {
            return Err(Error::conflict("a meter was changed meanwhile: run the import again"));
        };
        for (place, original) in places.iter().zip(originals) {
            match original {
                Some(original) if original.conflict => {
                    self.report.left_out(TABLE, place, "its id was used for another event")?;
                }
                original => {
                    self.report.taken(TABLE, if original.is_some() { Put::Known } else { Put::New }, 1)
                }
            }
        }
        Ok(())
    }

    fn fold(&mut self) -> Result<()> {
        for meter in self.meters.values().flatten() {
            while self.ours.write(|conn| fold::fold(conn, meter.id))? {}
            while self.ours.write(|conn| settle::settle(conn, meter.id))? {}
        }
        Ok(())
    }
}

/// Cells are texts: those of dimensions that are numbers or flags are read as such.
fn typed(meter: &Meter, mut input: Input) -> Input {
    let Some(Metadata::Values(fields)) = &mut input.metadata else { return input };
    for dimension in &meter.dimensions {
        let Some(Value::String(text)) = fields.get(&dimension.name) else { continue };
        let value = match dimension.kind {
            DimensionType::String => None,
            DimensionType::Number => Number::parse(text.trim()).map(Value::Number),
            DimensionType::Boolean => text.trim().to_ascii_lowercase().parse().ok().map(Value::Bool),
        };
        if let Some(value) = value {
            fields.insert(dimension.name.clone(), value);
        }
    }
    input
}
