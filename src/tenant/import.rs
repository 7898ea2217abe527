//! Brings a workspace in from a file: one transaction, in the order of the file. What is there in the end is counted by
//! the same questions as at the other end; when an answer differs, nothing of it stays.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use serde_json::json;
use uuid::Uuid;

use super::archive::{Contents, End, Header, Kind, Line, Reader, Row};
use super::export::{found_meters, told};
use super::sql::{rows, usage};
use super::tables::{self, How, Table};
use super::{secrets, sums, unusable};
use crate::chance;
use crate::config::Driver;
use crate::config::tenant::Import as Asked;
use crate::db::identity::new_id;
use crate::db::session::Session;
use crate::db::{Conn, DbError, audit};
use crate::error::{Error, Result};
use crate::import::progress::Progress;
use crate::ingest::Origin;
use crate::ingest::insert::sums::{Sum, Used};
use crate::ingest::insert::{self, Batch, Kind as CallKind, Outcome, WriteCache};
use crate::metering::event::{self, Event, Foreign};
use crate::metering::json;
use crate::metering::meter::Meter;
use crate::metering::quantity::Quantity;
use crate::metering::time::Timestamp;
use crate::output::{print, print_line};
use crate::usage::{fold, settle};
use crate::vault::KeyRing;

const AT_ONCE: usize = 4_000;
/// Of events: those with long metadata are stored in smaller numbers.
const BYTES_AT_ONCE: usize = 32 << 20;

struct Import {
    ours: Session,
    header: Header,
    workspace_id: i64,
    key: Option<KeyRing>,
    run_id: Uuid,
    known: WriteCache,
    meters: HashMap<i64, Arc<Meter>>,
    /// Of events that do not tell what was sent.
    fingerprints: HashMap<Uuid, i64>,
    /// By table: numbers of the file that are others here.
    numbers: HashMap<&'static str, HashMap<String, String>>,
    /// Rows that were taken or were there, by table.
    rows: BTreeMap<String, u64>,
    /// Numbers of people who were here, and their addresses.
    kept: HashSet<String>,
    addresses: Vec<String>,
    progress: Progress,
}

/// The rows that are read now.
enum Current {
    None,
    Rows(&'static Table, Vec<(String, Kind)>, Box<rows::Insert>),
    Fingerprints,
    /// And about what they take in memory.
    Events(Vec<Event>, usize),
    Keys(Vec<Used>),
    Sums(Vec<Sum>),
}

pub fn run(driver: &Driver, asked: &Asked, end: &End) -> Result<()> {
    let (header, mut reader) = Reader::open(&asked.file)?;
    let key = secrets::read_key(asked.secrets.secrets_key.as_deref())?;
    if header.has_secrets && key.is_none() {
        return Err(unusable("the file holds sealed secrets: name the file of their key with --secrets-key"));
    }
    let mut ours = Session::open(driver, true)?;
    if ours.read(|conn| rows::workspace(conn, &header.workspace))?.is_some() {
        return Err(Error::conflict(format!("workspace {} is here already", header.workspace)));
    }
    let mut import = Import {
        ours,
        key: key.filter(|_| header.has_secrets),
        header,
        workspace_id: 0,
        run_id: chance::id(),
        known: WriteCache::default(),
        meters: HashMap::new(),
        fingerprints: HashMap::new(),
        numbers: HashMap::new(),
        rows: BTreeMap::new(),
        kept: HashSet::new(),
        addresses: Vec::new(),
        progress: Progress::new("lines", end.lines),
    };
    let mut current = Current::None;
    loop {
        match reader.next()? {
            Line::Table { name, columns } => {
                import.store(&mut current)?;
                current = import.begin(&name, columns)?;
            }
            Line::Row(row) => import.row(&mut current, row)?,
            Line::End => break,
        }
    }
    import.store(&mut current)?;
    import.finish(&asked.file, asked.dry_run, &end.contents)
}

impl Import {
    fn begin(&mut self, name: &str, columns: Vec<(String, Kind)>) -> Result<Current> {
        self.rows.insert(name.to_owned(), 0);
        let expected = |of: &[(&str, Kind)]| match columns == usage::owned(of) {
            true => Ok(()),
            false => Err(unusable(format!(
                "{name} of the file has columns that are not known here: a newer version wrote it"
            ))),
        };
        match name {
            tables::FINGERPRINTS => {
                return expected(usage::FINGERPRINT_COLUMNS).map(|()| Current::Fingerprints);
            }
            tables::EVENTS => {
                expected(usage::EVENT_COLUMNS)?;
                let workspace_id = self.workspace_id;
                let found = self.ours.read(|conn| found_meters(conn, workspace_id))?;
                self.meters = found.into_iter().map(|meter| (meter.id, meter)).collect();
                return Ok(Current::Events(Vec::new(), 0));
            }
            tables::KEYS => return expected(usage::KEY_COLUMNS).map(|()| Current::Keys(Vec::new())),
            tables::SUMS => return expected(sums::COLUMNS).map(|()| Current::Sums(Vec::new())),
            _ => {}
        }
        let Some(table) = tables::named(name) else {
            return Err(unusable(format!(
                "the file has a table that is not known here: {name}; a newer version wrote it"
            )));
        };
        let left_out = matches!(table.how, How::Numbered | How::NumberedUnnamed).then_some("id");
        let may_be_there = matches!(table.how, How::UnlessThere | How::OfNewUsers);
        let on_conflict = if may_be_there { "ON CONFLICT DO NOTHING" } else { "" };
        let insert =
            self.ours.read(|conn| rows::Insert::new(conn, table, &columns, left_out, on_conflict))?;
        Ok(Current::Rows(table, columns, Box::new(insert)))
    }

    fn row(&mut self, current: &mut Current, row: Row) -> Result<()> {
        self.progress.add(1);
        match current {
            Current::None => Err(unusable("the file has a row of no table")),
            Current::Rows(table, columns, insert) => {
                let (table, mut row) = (*table, row);
                self.refer(table, columns, &mut row)?;
                self.put(table, columns, insert, row)
                    .map_err(|error| Error { message: format!("{}: {}", table.name, error.message), ..error })
            }
            Current::Fingerprints => {
                let (event_id, fingerprint) = fingerprint(&row)?;
                self.fingerprints.insert(event_id, fingerprint);
                self.count(tables::FINGERPRINTS);
                Ok(())
            }
            Current::Events(waiting, bytes) => {
                let event = self.event(&row)?;
                *bytes += event.bytes();
                waiting.push(event);
                if waiting.len() < AT_ONCE && *bytes < BYTES_AT_ONCE { Ok(()) } else { self.store(current) }
            }
            Current::Keys(waiting) => {
                waiting.push(used(&row)?);
                if waiting.len() < AT_ONCE { Ok(()) } else { self.store(current) }
            }
            Current::Sums(waiting) => {
                waiting.push(sums::read(&row, |id| self.meters.get(&id).cloned())?);
                if waiting.len() < AT_ONCE { Ok(()) } else { self.store(current) }
            }
        }
    }

    /// Writes the numbers of here for those of the file.
    fn refer(&self, table: &Table, columns: &[(String, Kind)], row: &mut Row) -> Result<()> {
        if row.len() != columns.len() {
            return Err(unusable(format!(
                "{}: a row has not as many values as there are columns",
                table.name
            )));
        }
        for (column, other) in table.refers {
            let at = columns.iter().position(|(name, _)| name == column);
            let Some(value) = at.and_then(|at| row[at].as_mut()) else { continue };
            match self.numbers.get(other).and_then(|numbers| numbers.get(value.as_str())) {
                Some(number) => number.clone_into(value),
                // deliveries outlive their rule
                None => "0".clone_into(value),
            }
        }
        Ok(())
    }

    fn put(
        &mut self,
        table: &'static Table,
        columns: &[(String, Kind)],
        insert: &rows::Insert,
        mut row: Row,
    ) -> Result<()> {
        let at = |name: &str| columns.iter().position(|(column, _)| column == name);
        let value = |row: &Row, name: &str| at(name).and_then(|at| row[at].clone()).unwrap_or_default();
        self.check_owner(table, columns, &row)?;
        if table.name == secrets::TABLE {
            secrets::unpack(columns, &mut row, self.workspace_id, self.key.as_ref())?;
        }
        let (id, public_id) = (value(&row, "id"), value(&row, "public_id"));
        if table.how == How::OfNewUsers && self.kept.contains(&value(&row, "user_id")) {
            self.count(table.name);
            return Ok(());
        }
        if table.how == How::Users {
            let email = value(&row, "email");
            let found = self.ours.read(|conn| match rows::find(conn, "users", "email", &email)? {
                Some(id) => Ok(Some(id)),
                None => rows::find(conn, "users", "public_id", &public_id),
            })?;
            let number = found.unwrap_or_else(new_id).to_string();
            self.numbers.entry(table.name).or_default().insert(id, number.clone());
            if found.is_some() {
                let is_verified = self.ours.read(|conn| rows::is_verified(conn, &number))?;
                let word = if is_verified { "verified" } else { "not verified" };
                self.addresses.push(format!("{email:?} (address {word})"));
                self.kept.insert(number);
                self.count(table.name);
                return Ok(());
            }
            if let Some(at) = at("id") {
                row[at] = Some(number);
            }
            self.ours.write(|conn| insert.put(conn, row.clone()))?;
            self.count(table.name);
            return Ok(());
        }
        self.ours.write(|conn| insert.put(conn, row.clone()))?;
        if table.how == How::Numbered {
            let number = self.ours.read(|conn| rows::find(conn, table.name, "public_id", &public_id))?;
            let number = number.unwrap_or_default().to_string();
            self.numbers.entry(table.name).or_default().insert(id, number);
        }
        self.count(table.name);
        Ok(())
    }

    /// The file comes from elsewhere: it is about one workspace, and no row of it touches another.
    fn check_owner(&mut self, table: &Table, columns: &[(String, Kind)], row: &Row) -> Result<()> {
        let value = |name: &str| {
            let at = columns.iter().position(|(column, _)| column == name);
            at.and_then(|at| row[at].as_deref())
        };
        if table.name == "workspaces" {
            let number = value("id").and_then(|id| id.parse().ok()).filter(|id| *id > 0);
            if self.workspace_id != 0 || value("public_id") != Some(self.header.workspace.as_str()) {
                return Err(unusable("the file holds another workspace than its head says"));
            }
            self.workspace_id = number.ok_or_else(|| unusable("the workspace has no number"))?;
        }
        let is_ours = |id: &str| id.parse() == Ok(self.workspace_id);
        let has_owner = columns.iter().any(|(name, _)| name == "workspace_id");
        let is_of_another = has_owner && !value("workspace_id").is_some_and(is_ours);
        if is_of_another || value("shared_in").is_some_and(|id| !is_ours(id)) {
            return Err(unusable("a row belongs to another workspace"));
        }
        // names of files are made of them
        let is_text = |name: &str| columns.iter().any(|of| *of == (name.to_owned(), Kind::Text));
        for name in ["id", "public_id"].into_iter().filter(|name| is_text(name)) {
            let id = value(name).unwrap_or_default();
            if Uuid::try_parse(id).map(|uuid| uuid.hyphenated().to_string()) != Ok(id.to_owned()) {
                return Err(unusable(format!("{name} is no UUID")));
            }
        }
        Ok(())
    }

    fn count(&mut self, table: &str) {
        self.add(table, 1);
    }

    fn add(&mut self, table: &str, more: u64) {
        *self.rows.entry(table.to_owned()).or_default() += more;
    }

    fn event(&self, row: &Row) -> Result<Event> {
        let broken = || unusable("an event of the file cannot be read");
        let text = |at: usize| row.get(at).and_then(Option::as_deref);
        let required = |at: usize| text(at).ok_or_else(broken);
        let int = |at: usize| required(at)?.parse::<i64>().map_err(|_| broken());
        let time = |at: usize| Timestamp::of_micros(int(at)?).ok_or_else(broken);
        let meter = self.meters.get(&int(1)?).ok_or_else(broken)?;
        let foreign = Foreign {
            id: Uuid::try_parse(required(0)?).map_err(|_| broken())?,
            subject: required(2)?.to_owned(),
            time: time(3)?,
            received_at: time(4)?,
            quantity: Quantity::from_plain(required(5)?).ok_or_else(broken)?,
            key: text(6).map(str::to_owned),
            metadata: text(7)
                .map_or_else(|| Some(json::Map::new()), json::parse_object)
                .ok_or_else(broken)?,
        };
        let event = event::take_over(meter, foreign)?;
        let fingerprint = self.fingerprints.get(&event.id).copied().unwrap_or(event.fingerprint);
        // keys travel on their own
        Ok(Event { is_imported: false, fingerprint, ..event })
    }

    /// Writes what was gathered.
    fn store(&mut self, current: &mut Current) -> Result<()> {
        let (link, workspace_id) = (self.ours.link(), self.workspace_id);
        let known = &self.known;
        match current {
            Current::None | Current::Rows(..) | Current::Fingerprints => Ok(()),
            Current::Events(waiting, _) if waiting.is_empty() => Ok(()),
            Current::Events(waiting, bytes) => {
                *bytes = 0;
                let events = std::mem::take(waiting);
                let count = events.len() as u64;
                let batches = [Arc::new(self.batch(events))];
                let (outcomes, learned) =
                    self.ours.write(|conn| insert::insert(conn, link, &batches, 0, known))?;
                self.known.remember(learned);
                match outcomes.into_iter().next() {
                    Some(Outcome::Stored(originals)) if originals.iter().all(Option::is_none) => {
                        self.add(tables::EVENTS, count);
                        Ok(())
                    }
                    _ => Err(Error::internal("an event of the file was not stored")),
                }
            }
            Current::Keys(waiting) => {
                let keys = std::mem::take(waiting);
                let (new, learned) =
                    self.ours.write(|conn| insert::sums::add_keys(conn, known, workspace_id, &keys))?;
                self.known.remember(learned);
                self.add(tables::KEYS, new as u64);
                Ok(())
            }
            Current::Sums(waiting) => {
                let sums = std::mem::take(waiting);
                self.ours.write(|conn| insert::sums::add(conn, workspace_id, &sums))?;
                self.add(tables::SUMS, sums.len() as u64);
                Ok(())
            }
        }
    }

    fn batch(&self, events: Vec<Event>) -> Batch {
        Batch {
            origin: Origin::without_call(self.workspace_id, self.run_id),
            kind: CallKind::Bulk,
            events,
            failed: 0,
            replay_key: None,
            received_at: Timestamp::now(),
            consumes: None,
        }
    }

    fn finish(mut self, file: &Path, dry_run: bool, expected: &Contents) -> Result<()> {
        let (workspace_id, run_id) = (self.workspace_id, self.run_id);
        self.ours.write(|conn| usage::forget_run(conn, workspace_id, run_id))?;
        for meter in self.meters.values() {
            while self.ours.write(|conn| fold::fold(conn, meter.id))? {}
            while self.ours.write(|conn| settle::settle(conn, meter.id))? {}
        }
        let strays = self.ours.read(|conn| rows::strays(conn, workspace_id))?;
        if !strays.is_empty() {
            return Err(unusable(format!(
                "rows of the file refer to another workspace, nothing of it is taken: {}",
                strays.join(", ")
            )));
        }
        let taken = self.rows.clone();
        let found = self.ours.read(|conn| contents(conn, workspace_id, taken))?;
        let differences = differences(expected, &found);
        if !differences.is_empty() {
            return Err(Error::internal(format!(
                "what came in is not what {} says, and was taken back: {}",
                file.display(),
                differences.join("; ")
            )));
        }
        self.tell(expected)?;
        let Header { workspace, name, version, made_at, .. } = &self.header;
        let shown = json!({"written_by": version, "written_at": made_at});
        self.ours.write(|conn| {
            rows::bury_work(conn, workspace_id)?;
            audit::put_down(conn, "tenant::import", workspace_id, [workspace, name], Some(shown.clone()))
        })?;
        if dry_run {
            print_line!("this was a dry run: nothing was stored");
            return Ok(());
        }
        self.ours.keep()
    }

    fn tell(&mut self, contents: &Contents) -> Result<()> {
        let workspace_id = self.workspace_id;
        print(&told(contents));
        if !self.kept.is_empty() {
            print_line!(
                "{} people had an account here already and keep it as it is; see that it is theirs: {}",
                self.kept.len(),
                self.addresses.join(", ")
            );
        }
        let names = self.ours.read(|conn| usage::destinations(conn, workspace_id))?;
        if !self.header.has_secrets && !names.is_empty() {
            print_line!(
                "webhooks with a new secret, to be rotated and shown to their receivers: {}",
                names.join(", ")
            );
        }
        print_line!(
            "workspace {} ({}): all rows and totals are those of the file",
            self.header.workspace,
            self.header.name
        );
        Ok(())
    }
}

fn used(row: &Row) -> Result<Used> {
    let broken = || unusable("a key of the file cannot be read");
    let text = |at: usize| row.get(at).and_then(Option::as_deref).ok_or_else(broken);
    let int = |at: usize| text(at)?.parse::<i64>().map_err(|_| broken());
    Ok(Used {
        key: bytes(text(0)?).ok_or_else(broken)?,
        event_id: Uuid::try_parse(text(1)?).map_err(|_| broken())?,
        subject: text(2)?.to_owned(),
        event_time: Timestamp::of_micros(int(3)?).ok_or_else(broken)?,
        fingerprint: int(4)?,
    })
}

fn fingerprint(row: &Row) -> Result<(Uuid, i64)> {
    let broken = || unusable("a fingerprint of the file cannot be read");
    let text = |at: usize| row.get(at).and_then(Option::as_deref).ok_or_else(broken);
    let event_id = Uuid::try_parse(text(0)?).map_err(|_| broken())?;
    Ok((event_id, text(1)?.parse().map_err(|_| broken())?))
}

fn bytes(hex: &str) -> Option<Vec<u8>> {
    let pair = |at: usize| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok();
    (0..hex.len()).step_by(2).map(pair).collect()
}

/// What is there now: counted, where the workspace is the only one with such rows.
fn contents(conn: &mut Conn, workspace_id: i64, taken: BTreeMap<String, u64>) -> Result<Contents, DbError> {
    let mut found = Contents { rows: taken, months: Vec::new() };
    for table in
        tables::all().filter(|table| matches!(table.how, How::Copy | How::Numbered | How::NumberedUnnamed))
    {
        let count = rows::count(conn, table, workspace_id)?;
        if let Some(rows) = found.rows.get_mut(table.name) {
            *rows = count;
        }
    }
    for meter in found_meters(conn, workspace_id)? {
        found.months.extend(sums::months(conn, &meter)?);
    }
    found.months.sort();
    Ok(found)
}

fn differences(expected: &Contents, found: &Contents) -> Vec<String> {
    let mut differences = Vec::new();
    for (table, rows) in &expected.rows {
        let here = found.rows.get(table).copied().unwrap_or_default();
        if here != *rows {
            differences.push(format!("{table}: {rows} rows in the file, {here} here"));
        }
    }
    let is_other = |month: &&super::archive::Month| !found.months.contains(month);
    for month in expected.months.iter().filter(is_other) {
        let here =
            found.months.iter().find(|here| (&here.meter, &here.month) == (&month.meter, &month.month));
        differences.push(format!("file: {month:?}, here: {here:?}"));
    }
    if expected.months.len() != found.months.len() {
        differences.push(format!(
            "{} months in the file, {} here",
            expected.months.len(),
            found.months.len()
        ));
    }
    differences
}
