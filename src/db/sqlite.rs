//! What SQLite needs beyond SQL: how a file is opened, and exact decimal functions on the bytes of
//! `crate::metering::quantity` (its own numbers are floats).

use std::fs::File;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use diesel::connection::SimpleConnection;
use diesel::result::ConnectionError;
use diesel::sqlite::SqliteAggregateFunction;
use diesel::{Connection, SqliteConnection};

use percent_encoding::AsciiSet;

use super::DbError;
use super::inspect::unusable;
use crate::config::Synchronous;
use crate::error::{Code, Error, Result as Checked};
use crate::metering::quantity::Quantity;

#[diesel::declare_sql_function]
extern "SQL" {
    /// Exact sum of sortable quantities.
    #[aggregate]
    fn quantity_total(x: diesel::sql_types::Binary) -> diesel::sql_types::Binary;
    /// Exact sum of two sortable quantities.
    fn quantity_add(a: diesel::sql_types::Binary, b: diesel::sql_types::Binary) -> diesel::sql_types::Binary;
    /// The decimal text of a sortable quantity.
    fn quantity_text(x: diesel::sql_types::Binary) -> diesel::sql_types::Text;
}

/// Opens a database that is there; one that is not is made by [`create`] alone, so that a file that was moved away
/// under a running server does not come back empty.
pub fn open(path: &str, synchronous: Synchronous) -> Result<SqliteConnection, ConnectionError> {
    let mut conn = SqliteConnection::establish(&existing(path))?;
    let synchronous = match synchronous {
        Synchronous::Full => "FULL",
        Synchronous::Normal => "NORMAL",
    };
    // Of the pages in the log most are the same few thousand, written by every commit: copied to the file every 64 MB
    // instead of every 4 MB they are written a sixteenth as often.
    // busy_timeout first: switching to WAL needs a lock that another process may hold for a moment
    let pragmas = format!(
        "PRAGMA busy_timeout = 10000; PRAGMA journal_mode = WAL; PRAGMA synchronous = {synchronous};
         PRAGMA foreign_keys = ON; PRAGMA temp_store = MEMORY; PRAGMA cache_size = -32768;
         PRAGMA wal_autocheckpoint = 16000; PRAGMA journal_size_limit = {};",
        super::wal::KEPT_BYTES
    );
    conn.batch_execute(&pragmas).map_err(ConnectionError::CouldntSetupConfiguration)?;
    register(&mut conn).map_err(ConnectionError::CouldntSetupConfiguration)?;
    Ok(conn)
}

/// The file of a database, given as a path or as a `file:` URI; none for one in memory.
pub fn file(path: &str) -> Option<PathBuf> {
    let Some(uri) = path.strip_prefix("file:") else {
        return (!path.is_empty() && path != ":memory:").then(|| path.into());
    };
    let (name, parameters) = uri.split_once('?').unwrap_or((uri, ""));
    let name = name.split('#').next().unwrap_or_default();
    // file://localhost/path and file:///path
    let name = name.strip_prefix("//").map_or(name, |rest| rest.find('/').map_or(rest, |at| &rest[at..]));
    if name.is_empty() || name == ":memory:" || parameters.contains("mode=memory") {
        return None;
    }
    let name: Vec<u8> = percent_encoding::percent_decode_str(name).collect();
    Some(std::ffi::OsString::from_vec(name).into())
}

/// What a URI may hold as it is.
const IN_URI: &AsciiSet =
    &percent_encoding::NON_ALPHANUMERIC.remove(b'/').remove(b'.').remove(b'-').remove(b'_');

fn uri(file: &Path, parameters: &str) -> String {
    let name = percent_encoding::percent_encode(file.as_os_str().as_bytes(), IN_URI);
    format!("file:{name}?{parameters}")
}

fn existing(path: &str) -> String {
    match file(path) {
        // whoever gives a URI chooses its mode
        Some(file) if !path.starts_with("file:") => uri(&file, "mode=rw"),
        _ => path.to_owned(),
    }
}

/// Makes the file if it is not there, for no eyes but the owner's: SQLite gives its log and its shared memory the
/// same mode. Others lose their access to one that was made otherwise.
pub fn create(path: &str) -> Checked<()> {
    let Some(file) = file(path) else { return Ok(()) };
    let cannot = |what: &str, error: std::io::Error| {
        Error::new(Code::Internal, format!("cannot {what} the database {}: {error}", file.display()))
    };
    match File::options().write(true).create_new(true).mode(0o600).open(&file) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        done => return done.map(drop).map_err(|error| cannot("create", error)),
    }
    let mut permissions = file.metadata().map_err(|error| cannot("look at", error))?.permissions();
    if permissions.mode() & 0o007 != 0 {
        permissions.set_mode(permissions.mode() & 0o770);
        if let Err(error) = std::fs::set_permissions(&file, permissions) {
            log::warn!(error:%; "the database file can be read by every user of this machine");
        }
    }
    Ok(())
}

/// A connection that changes neither the database nor what lies beside it; none when there is no database yet.
pub fn open_to_look(path: &str) -> Checked<Option<SqliteConnection>> {
    let Some(file) = file(path) else { return Ok(None) };
    match file.metadata() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Ok(found) if found.is_dir() => {
            return Err(unusable(format!("the database {} is a directory", file.display())));
        }
        _ => {}
    }
    let mut log = file.clone().into_os_string();
    log.push("-wal");
    // a log means that it is in use, or was when its process died; without one all is in the file itself
    let parameters = if Path::new(&log).exists() { "mode=ro" } else { "mode=ro&immutable=1" };
    open_with(path, &file, parameters).map(Some)
}

/// A connection that reads for long what another program may write meanwhile: it makes the files that the two of them agree
/// by, if it may. Where it may not, nobody else writes there.
pub fn open_to_read(path: &str) -> Checked<Option<SqliteConnection>> {
    let Some(file) = file(path).filter(|file| file.is_file()) else { return open_to_look(path) };
    let mut conn = open_with(path, &file, "mode=ro")?;
    match conn.batch_execute("SELECT count(*) FROM sqlite_master") {
        Ok(()) => Ok(Some(conn)),
        Err(_) => open_to_look(path),
    }
}

fn open_with(path: &str, file: &Path, parameters: &str) -> Checked<SqliteConnection> {
    let opened = SqliteConnection::establish(&uri(file, parameters));
    let mut conn = opened.map_err(|error| cannot_open(path, error))?;
    let patience = conn.batch_execute("PRAGMA busy_timeout = 10000");
    patience.map_err(|error| cannot_open(path, ConnectionError::CouldntSetupConfiguration(error)))?;
    Ok(conn)
}

/// Refuses a file, or a URI, that can only be read.
pub fn check_writable(path: &str) -> Checked<()> {
    create(path)?;
    let failed =
        |error| super::failed(&format!("cannot write to the database {path}"), &DbError::from(error));
    let mut conn = open(path, Synchronous::Full).map_err(|error| cannot_open(path, error))?;
    // on a file that is read-only BEGIN IMMEDIATE alone is no error
    let nothing = "BEGIN IMMEDIATE; DELETE FROM __diesel_schema_migrations WHERE false; ROLLBACK";
    conn.batch_execute(nothing).map_err(failed)
}

pub fn cannot_open(path: &str, error: ConnectionError) -> Error {
    let what = format!("cannot open the database {path}");
    match error {
        ConnectionError::CouldntSetupConfiguration(error) => super::failed(&what, &DbError::from(error)),
        error => Error::new(Code::Internal, format!("{what}: {error}")),
    }
}

fn register(conn: &mut SqliteConnection) -> diesel::QueryResult<()> {
    quantity_total_utils::register_impl::<Total, _>(conn)?;
    quantity_add_utils::register_impl(conn, |a: Vec<u8>, b: Vec<u8>| write(add(&a, &b)))?;
    quantity_text_utils::register_impl(conn, |x: Vec<u8>| {
        read(&x).map_or(NOT_A_NUMBER.into(), |x| x.to_plain())
    })
}

/// What bytes that no [`Quantity`] made are read as, here and by PostgreSQL: a sum with one of them in it is none
/// either, and whoever reads it gets an error. Damage must not pass for 0.
const NOT_A_NUMBER: &str = "NaN";

fn read(bytes: &[u8]) -> Option<Quantity> {
    Quantity::from_sortable(bytes)
}

fn write(sum: Option<Quantity>) -> Vec<u8> {
    sum.map(|sum| sum.to_sortable()).unwrap_or_default()
}

fn add(a: &[u8], b: &[u8]) -> Option<Quantity> {
    Some(&read(a)? + &read(b)?)
}

struct Total(Option<Quantity>);

impl Default for Total {
    fn default() -> Self {
        Total(Some(Quantity::zero()))
    }
}

impl SqliteAggregateFunction<Vec<u8>> for Total {
    type Output = Vec<u8>;

    fn step(&mut self, x: Vec<u8>) {
        match (&mut self.0, read(&x)) {
            (Some(sum), Some(x)) => *sum += &x,
            (sum, _) => *sum = None,
        }
    }

    fn finalize(aggregator: Option<Self>) -> Vec<u8> {
        write(aggregator.unwrap_or_default().0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_paths_and_uris() {
        for (path, want) in [
            ("data/x.db", Some("data/x.db")),
            ("file:x.db?mode=ro", Some("x.db")),
            ("file:///var/a%20b.db#f", Some("/var/a b.db")),
            ("file://localhost/x.db", Some("/x.db")),
            (":memory:", None),
            ("file::memory:?cache=shared", None),
            ("file:x?mode=memory", None),
            ("", None),
        ] {
            assert_eq!(file(path), want.map(PathBuf::from), "{path}");
        }
        assert_eq!(existing("a?b%c.db"), "file:a%3Fb%25c.db?mode=rw");
        assert_eq!(existing("file:x.db"), "file:x.db");
        assert_eq!(existing(":memory:"), ":memory:");
    }
}
