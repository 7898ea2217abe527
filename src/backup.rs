//! Backups of a database that is in use, what proves that one is whole, and the way back. A backup is a file that the
//! database's own tools read (a SQLite database, or `pg_dump`'s custom format) and a manifest beside it, which says what
//! must be in it.

mod archive;
pub mod manifest;
mod sql;

use std::path::{Path, PathBuf};

use crate::config::Driver;
use crate::db::migrations::{self, Wanted};
use crate::db::{self, Conn, DbError};
use crate::error::{Code, Error, Result};
use crate::metering::time::{HOUR, Timestamp};
use manifest::{Contents, Manifest};

/// Writes a backup of what the database holds at one instant, while it is in use.
pub fn create(driver: &Driver, file: &Path) -> Result<Manifest> {
    let manifest_file = manifest::beside(file);
    for taken in [file, &manifest_file] {
        if taken.exists() {
            return Err(Error::conflict(format_args!("{} is there already", taken.display())));
        }
    }
    require_schema(driver)?;
    let part = part_of(file);
    let contents = match driver {
        Driver::Sqlite { .. } => {
            let copied = archive::copy_sqlite(driver, &part);
            copied.and_then(|()| contents(&archive::sqlite_at(&part)))
        }
        Driver::Postgres { dsn } => archive::dump_postgres(driver, dsn.expose(), &part),
    };
    let made = contents.and_then(|contents| Manifest::of(driver.name(), contents, &part));
    let made = made.and_then(|manifest| {
        manifest.write(&manifest_file)?;
        std::fs::rename(&part, file).map_err(|error| cannot("write", file, &error))?;
        Ok(manifest)
    });
    if made.is_err() {
        archive::remove(&part);
        let _ = std::fs::remove_file(&manifest_file);
    }
    made
}

/// Of the hours before a backup so many have all their events, which are kept for a day at least.
const KEPT: i64 = 22 * HOUR;

/// Restores a backup into a database that is thrown away, and compares what is there with the manifest, and its totals
/// with its events; the differences. A backup of PostgreSQL needs a server: the one of the settings, and the right to make
/// a database on it.
pub fn verify(driver: &Driver, file: &Path) -> Result<(Manifest, Vec<String>)> {
    let manifest = Manifest::read(&manifest::beside(file))?;
    manifest.check_file(file)?;
    let made_at = Timestamp::parse(&manifest.made_at)
        .ok_or_else(|| Error::invalid("made_at of the manifest is no time"))?;
    let kept_since = made_at.floor(HOUR).plus(-KEPT);
    let (found, apart) = match manifest.driver.as_str() {
        "sqlite" => {
            let folder = tempfile::tempdir().map_err(|error| cannot("make a copy of", file, &error))?;
            let copy = folder.path().join("verify.db");
            std::fs::copy(file, &copy).map_err(|error| cannot("copy", file, &error))?;
            examined(&archive::sqlite_at(&copy), kept_since)?
        }
        _ => archive::in_throw_away_database(driver, file, |copy| examined(copy, kept_since))?,
    };
    let mut differences = manifest.contents.differences(&found);
    differences.extend(apart.iter().map(|(meter, hours)| {
        format!("{meter}: the totals of {hours} hours tell of another number of events than there are")
    }));
    Ok((manifest, differences))
}

/// What a copy holds, and which meters have totals that are not those of their events.
fn examined(driver: &Driver, kept_since: Timestamp) -> Result<(Contents, Vec<(String, i64)>)> {
    let mut conn = open(driver)?;
    let found = contents_of(&mut conn)?;
    let apart = sql::hours_apart(&mut conn, kept_since);
    Ok((found, apart.map_err(|fault| fault.into_error("backup::hours_apart"))?))
}

/// Brings a backup back into a database that does not exist yet or is empty, in a new epoch: what anybody remembers of
/// the database before is not true of this one. Also answers how many webhooks were owed to receivers then; most have been
/// sent since, so they wait for somebody's word unless they are to be sent.
pub fn restore(driver: &Driver, file: &Path, sends_webhooks: bool) -> Result<(Manifest, i64)> {
    let manifest = Manifest::read(&manifest::beside(file))?;
    manifest.check_file(file)?;
    if manifest.driver != driver.name() {
        return Err(Error::invalid(format_args!(
            "the backup is one of {}, and OPEN_SPANNER_DB_DRIVER says {}",
            manifest.driver,
            driver.name()
        )));
    }
    let settle = |placed: &Driver| settled(placed, &manifest.contents, sends_webhooks);
    let owed = match driver {
        Driver::Sqlite { .. } => archive::place_sqlite(driver, file, settle)?,
        Driver::Postgres { dsn } => {
            refuse_full(driver)?;
            archive::load_postgres(dsn.expose(), file)?;
            settle(driver)?
        }
    };
    Ok((manifest, owed))
}

/// Begins the epoch and holds back webhooks, before anything else: counting takes long, and whoever stops it and starts a
/// server instead would send them. Then compares what is there with what was saved. How many webhooks were owed.
fn settled(driver: &Driver, saved: &Contents, sends_webhooks: bool) -> Result<i64> {
    let (owed, removed) = db::once(driver, |conn| {
        let instances = sql::begin_epoch(conn)?;
        let owed = sql::webhooks_owed(conn)?;
        let jobs = match sends_webhooks {
            true => 0,
            false => sql::hold_webhooks(conn, Timestamp::now())?,
        };
        Ok((owed, [("worker_instances", instances), ("jobs", jobs)]))
    })?;
    let mut found = contents(driver)?;
    for (table, rows) in removed {
        if let Some(count) = found.rows.get_mut(table) {
            *count += rows;
        }
    }
    match saved.differences(&found).first() {
        Some(first) => {
            let message = format!("what was restored is not what was saved: {first}");
            Err(Error::new(Code::Unusable, message))
        }
        None => Ok(owed),
    }
}

fn refuse_full(driver: &Driver) -> Result<()> {
    let tables = db::once(driver, sql::tables)?;
    if tables.is_empty() {
        return Ok(());
    }
    let target = driver.target();
    Err(Error::conflict(format_args!("the database {target} is not empty: restore into a new one")))
}

fn require_schema(driver: &Driver) -> Result<()> {
    let wanted = Wanted { migrate: false, accept_newer: true };
    migrations::prepare(driver, wanted, &std::sync::atomic::AtomicBool::new(false)).map(drop)
}

fn open(driver: &Driver) -> Result<Conn> {
    db::open(driver).map_err(|error| Error::new(Code::Internal, format!("cannot open the backup: {error}")))
}

fn contents(driver: &Driver) -> Result<Contents> {
    contents_of(&mut open(driver)?)
}

fn contents_of(conn: &mut Conn) -> Result<Contents> {
    sql::contents(conn).map_err(|fault: DbError| fault.into_error("backup::contents"))
}

/// Where a file is written before it is whole.
fn part_of(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".part");
    name.into()
}

fn cannot(what: &str, file: &Path, error: &std::io::Error) -> Error {
    Error::new(Code::Internal, format!("cannot {what} {}: {error}", file.display()))
}
