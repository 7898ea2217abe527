//! The schema: applying and reverting migrations under a lock. diesel takes none of its own, and of four processes
//! starting together on an empty database three would fail.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use diesel::connection::{Instrumentation, InstrumentationEvent, SimpleConnection};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Text};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};

use super::inspect::{self, Found, Step, unusable};
use super::{Conn, DbError, cannot_open, failed, failed_by, open, postgres, sqlite};
use crate::blocking;
use crate::both;
use crate::clock;
use crate::config::Driver;
use crate::error::{Code, Error, Result};

pub(super) const POSTGRES: EmbeddedMigrations = embed_migrations!("migrations/postgres");
pub(super) const SQLITE: EmbeddedMigrations = embed_migrations!("migrations/sqlite");

/// Advisory lock of whoever changes the schema: "ospanner" in ASCII, which no other program on the server uses.
const LOCK: i64 = 0x6F73_7061_6E6E_6572;
/// Advisory lock that every process shares while it uses the database: "ospnuses".
const IN_USE: i64 = 0x6F73_706E_7573_6573;
/// How often the lock is tried, and how often it is said that it is waited for.
const LOCK_PAUSE: Duration = Duration::from_millis(200);
const LOCK_WORD_EVERY: Duration = Duration::from_secs(10);
/// How long a statement of a migration waits for locks of others, how often, and how long others may pass in between.
const TABLE_LOCK_WAIT: &str = "SET lock_timeout = '3s'";
const TABLE_LOCK_TRIES: u32 = 60;
const TABLE_LOCK_PAUSE: Duration = Duration::from_secs(1);

/// How a process wants the schema.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Apply what is pending; otherwise the schema must be there.
    pub migrate: bool,
    /// A schema that a newer version made will do.
    pub accept_newer: bool,
}

/// Brings the database to where a process can work with it. `Unavailable` is what mends itself; everything else ends
/// the process. Nothing is written when nothing is pending.
pub fn prepare(driver: &Driver, wanted: Wanted, stop: &AtomicBool) -> Result<Vec<String>> {
    if let Driver::Postgres { dsn } = driver {
        postgres::check(driver, dsn.expose())?;
    }
    let found = inspect::look(driver)?;
    found.refuse_foreign(wanted.accept_newer)?;
    if !found.is_current()? {
        return if wanted.migrate {
            apply(driver, wanted.accept_newer, stop)
        } else {
            Err(too_old(driver, &found))
        };
    }
    if let Driver::Sqlite { path, .. } = driver {
        sqlite::check_writable(path)?;
    }
    Ok(Vec::new())
}

/// A file that belongs to another program is refused before anything is made beside it.
pub fn refuse_foreign(driver: &Driver, accept_newer: bool) -> Result<()> {
    match driver {
        // a lock that is held a little longer is waited for where the schema is prepared
        Driver::Sqlite { .. } => {
            match inspect::look(driver).and_then(|found| found.refuse_foreign(accept_newer)) {
                Err(error) if error.code != Code::Unavailable => Err(error),
                _ => Ok(()),
            }
        }
        Driver::Postgres { .. } => Ok(()),
    }
}

/// Lets a role of PostgreSQL read and write the tables there are and will be, but not change them.
pub fn grant(driver: &Driver, role: &str) -> Result<()> {
    let mut conn = open(driver).map_err(|error| cannot_open(driver, error))?;
    if !conn.is_postgres() {
        return Err(unusable("--grant is for PostgreSQL: SQLite has no roles"));
    }
    let role = format!("\"{}\"", role.replace('"', "\"\""));
    let schema: Holder = diesel::sql_query("SELECT quote_ident(current_schema()) AS holder")
        .get_result(&mut conn)
        .map_err(migration_failed)?;
    let schema = schema.holder;
    let rights = "SELECT, INSERT, UPDATE, DELETE ON";
    conn.batch_execute(&format!(
        "BEGIN;
         GRANT USAGE ON SCHEMA {schema} TO {role};
         GRANT {rights} ALL TABLES IN SCHEMA {schema} TO {role};
         GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA {schema} TO {role};
         ALTER DEFAULT PRIVILEGES IN SCHEMA {schema} GRANT {rights} TABLES TO {role};
         ALTER DEFAULT PRIVILEGES IN SCHEMA {schema} GRANT USAGE, SELECT ON SEQUENCES TO {role};
         REVOKE INSERT, UPDATE, DELETE ON __diesel_schema_migrations FROM {role};
         REVOKE UPDATE, DELETE ON audit_events FROM {role};
         COMMIT"
    ))
    .map_err(|error| failed("the role was not let in", &DbError::from(error)))
}

/// Applies what is pending; returns the names applied.
pub fn run(driver: &Driver) -> Result<Vec<String>> {
    prepare(driver, Wanted { migrate: true, accept_newer: false }, &AtomicBool::new(false))
}

/// What the database has of the migrations of this binary. Changes nothing.
pub fn status(driver: &Driver) -> Result<(Vec<Step>, Vec<String>)> {
    let found = inspect::look(driver)?;
    Ok((found.steps()?, found.unknown()?))
}

fn too_old(driver: &Driver, found: &Found) -> Error {
    if is_migrating(driver) {
        return Error::new(Code::Unavailable, "the schema is being migrated by another process");
    }
    let what = if found.is_empty() { "has no schema yet" } else { "has a schema older than this version" };
    let target = driver.target();
    unusable(format!(
        "the database {target} {what}: run `open-spanner migrate` first, or start without --no-migrate"
    ))
}

/// Whether somebody else holds the migration lock.
fn is_migrating(driver: &Driver) -> bool {
    match driver {
        Driver::Sqlite { path, .. } => {
            lock_path(path, "migrate.lock").filter(|lock| lock.exists()).is_some_and(
                |lock| matches!(take_lock(&lock, false), Err(error) if error.code == Code::Conflict),
            )
        }
        Driver::Postgres { .. } => open(driver)
            .is_ok_and(|mut conn| matches!(try_lock(&mut conn, "pg_try_advisory_lock", LOCK), Ok(false))),
    }
}

fn apply(driver: &Driver, accept_newer: bool, stop: &AtomicBool) -> Result<Vec<String>> {
    locked(driver, stop, |conn| {
        // another process may have been faster
        let found = Found::of(conn)?;
        found.refuse_foreign(accept_newer)?;
        let mut applied = Vec::new();
        for _ in found.steps()?.iter().filter(|step| !step.applied) {
            if stop.load(Ordering::Relaxed) {
                return Err(stopped());
            }
            let started = clock::moment();
            let name = run_next_patiently(conn, stop)?;
            log::info!(migration = name.as_str(), duration_ms = clock::since(started).as_millis() as u64; "migrated");
            applied.push(name);
        }
        Ok(applied)
    })
}

fn stopped() -> Error {
    Error::new(Code::Internal, "stopped before the schema was migrated")
}

/// A statement that waits for a lock keeps everybody waiting who comes after it: so it gives way after a moment, lets
/// them pass, and is tried again.
fn run_next_patiently(conn: &mut Conn, stop: &AtomicBool) -> Result<String> {
    if conn.is_postgres() {
        conn.batch_execute(TABLE_LOCK_WAIT).map_err(migration_failed)?;
    }
    let mut tries = 1;
    loop {
        match run_next(conn) {
            Err(error) if error.code == Code::Unavailable && tries < TABLE_LOCK_TRIES => {
                log::warn!(error = error.message.as_str(), tries; "the migration gives way and is tried again");
                tries += 1;
                blocking::pause(TABLE_LOCK_PAUSE);
                if stop.load(Ordering::Relaxed) {
                    return Err(stopped());
                }
            }
            done => return done,
        }
    }
}

fn run_next(conn: &mut Conn) -> Result<String> {
    let last = LastError::default();
    conn.set_instrumentation(last.clone());
    let version = match conn {
        Conn::Postgres(c) => c.run_next_migration(POSTGRES).map(|version| version.to_string()),
        Conn::Sqlite(c) => c.run_next_migration(SQLITE).map(|version| version.to_string()),
    };
    version.map_err(|error| {
        let seen = last.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        seen.unwrap_or_else(|| Error::new(Code::Internal, format!("migration failed: {error}")))
    })
}

/// Sees the error of a statement before diesel makes a text of it.
#[derive(Clone, Default)]
struct LastError(Arc<Mutex<Option<Error>>>);

impl Instrumentation for LastError {
    fn on_connection_event(&mut self, event: InstrumentationEvent<'_>) {
        if let InstrumentationEvent::FinishQuery { error: Some(error), .. } = event {
            let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            *last = Some(failed_by("migration failed", error));
        }
    }
}

fn migration_failed(error: diesel::result::Error) -> Error {
    failed("migration failed", &DbError::from(error))
}

/// Opens a connection, takes the migration lock, runs `work`, releases the lock by closing the connection.
pub(super) fn locked<T>(
    driver: &Driver,
    stop: &AtomicBool,
    work: impl FnOnce(&mut Conn) -> Result<T>,
) -> Result<T> {
    if let Driver::Sqlite { path, .. } = driver {
        sqlite::create(path)?;
        // SQLite's own lock is given back between migrations; a lock file spans them
        let lock = lock_path(path, "migrate.lock");
        let take = || lock.as_deref().map(|lock| take_lock(lock, false)).transpose();
        let _guard = wait_for_lock(stop, String::new, || match take() {
            Ok(guard) => Ok(Some(guard)),
            Err(error) if error.code == Code::Conflict => Ok(None),
            Err(error) => Err(error),
        })?;
        return work(&mut open(driver).map_err(|error| cannot_open(driver, error))?);
    }
    let mut conn = open(driver).map_err(|error| cannot_open(driver, error))?;
    // a process that is killed in the middle must not leave its statement running
    conn.batch_execute("SET client_connection_check_interval = '1s'").map_err(migration_failed)?;
    let mut other = open(driver).map_err(|error| cannot_open(driver, error))?;
    wait_for_lock(
        stop,
        || holder(&mut other),
        || Ok(try_lock(&mut conn, "pg_try_advisory_lock", LOCK)?.then_some(())),
    )?;
    work(&mut conn)
}

/// Tries until it is taken; says who is waited for.
fn wait_for_lock<T>(
    stop: &AtomicBool,
    mut holder: impl FnMut() -> String,
    mut take: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let mut said: Option<Instant> = None;
    loop {
        if let Some(taken) = take()? {
            return Ok(taken);
        }
        if stop.load(Ordering::Relaxed) {
            return Err(stopped());
        }
        if said.is_none_or(|said| clock::since(said) >= LOCK_WORD_EVERY) {
            log::info!(holder = holder(); "waiting for the migration lock, which another process holds");
            said = Some(clock::moment());
        }
        blocking::pause(LOCK_PAUSE);
    }
}

#[derive(QueryableByName)]
struct Answer {
    #[diesel(sql_type = Bool)]
    answer: bool,
}

fn try_lock(conn: &mut Conn, function: &str, lock: i64) -> Result<bool> {
    let taken: Answer = diesel::sql_query(format!("SELECT {function}($1) AS answer"))
        .bind::<BigInt, _>(lock)
        .get_result(conn)
        .map_err(migration_failed)?;
    Ok(taken.answer)
}

#[derive(QueryableByName)]
struct Holder {
    #[diesel(sql_type = Text)]
    holder: String,
}

/// Who holds the migration lock, as PostgreSQL knows it.
fn holder(conn: &mut Conn) -> String {
    holders(conn, LOCK).unwrap_or_default().join(", ")
}

fn holders(conn: &mut Conn, lock: i64) -> QueryResult<Vec<String>> {
    let text = "SELECT format('%s (pid %s)', a.application_name, a.pid) AS holder
                FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
                WHERE l.locktype = 'advisory' AND l.granted AND l.database = a.datid AND a.pid <> pg_backend_pid()
                  AND l.classid = $1::bigint::oid AND l.objid = $2::bigint::oid AND l.objsubid = 1";
    let rows: Vec<Holder> = diesel::sql_query(text)
        .bind::<BigInt, _>(lock >> 32)
        .bind::<BigInt, _>(lock & 0xFFFF_FFFF)
        .load(conn)?;
    Ok(rows.into_iter().map(|row| row.holder).collect())
}

/// Marks the database as used by this process: the lock file for as long as it lives, or the session's lock.
pub fn mark_in_use(driver: &Driver, conn: &mut Conn) -> Result<Option<File>> {
    match driver {
        Driver::Postgres { .. } => match try_lock(conn, "pg_try_advisory_lock_shared", IN_USE)? {
            true => Ok(None),
            false => {
                let by = holders(conn, IN_USE).unwrap_or_default().join(", ");
                Err(Error::unavailable(format_args!(
                    "the database is not to be used until {by} is done with it"
                )))
            }
        },
        Driver::Sqlite { path, .. } => {
            let Some(path) = lock_path(path, "use.lock") else { return Ok(None) };
            let file = lock_file(&path)?;
            // a revert holds it for a moment only
            file.lock_shared().map_err(|error| cannot_lock(&path, &error))?;
            Ok(Some(file))
        }
    }
}

/// `Unavailable` while a process has a database of PostgreSQL alone, to take a migration back or to lay it out over nodes:
/// whoever began in the middle would work with what there was before. On SQLite the mark is waited for.
pub fn ensure_shared(driver: &Driver) -> Result<()> {
    match driver {
        Driver::Postgres { .. } => {
            let mut conn = open(driver).map_err(|error| cannot_open(driver, error))?;
            mark_in_use(driver, &mut conn)?;
            // a connection that is closed may be counted for a moment more
            try_lock(&mut conn, "pg_advisory_unlock_shared", IN_USE).map(drop)
        }
        Driver::Sqlite { .. } => Ok(()),
    }
}

/// How many processes use the database now, this one not counted.
pub fn users(conn: &mut Conn) -> QueryResult<usize> {
    Ok(holders(conn, IN_USE)?.len())
}

/// How many of them are servers, as far as their connections say so; none of SQLite, which has one.
pub(super) fn servers(conn: &mut Conn) -> QueryResult<usize> {
    let holders = if conn.is_postgres() { holders(conn, IN_USE)? } else { Vec::new() };
    Ok(holders.iter().filter(|holder| holder.starts_with(SERVER)).count())
}

/// How the name of a server's connections begins (`postgres::call_process`).
const SERVER: &str = "open-spanner/serve/";

/// How an operator calls a database: the name of its file, or its name on the server.
fn called(driver: &Driver) -> Result<String> {
    match driver {
        Driver::Sqlite { path, .. } => {
            let file = sqlite::file(path).unwrap_or_else(|| path.into());
            Ok(file.file_name().unwrap_or(file.as_os_str()).to_string_lossy().into_owned())
        }
        Driver::Postgres { .. } => {
            let mut conn = open(driver).map_err(|error| cannot_open(driver, error))?;
            let name: Holder = diesel::sql_query("SELECT current_database()::text AS holder")
                .get_result(&mut conn)
                .map_err(migration_failed)?;
            Ok(name.holder)
        }
    }
}

/// Takes back the newest `count` migrations, unless somebody uses the database; returns their versions. Whoever wants
/// that has to know whose data goes: `named` is what they call the database.
pub fn revert(driver: &Driver, count: u32, named: &str) -> Result<Vec<String>> {
    let found = inspect::look(driver)?;
    found.refuse_foreign(false)?;
    if found.is_empty() {
        return Ok(Vec::new());
    }
    let called = called(driver)?;
    if called != named {
        return Err(unusable(format!(
            "--yes-delete-data names the database whose data is to be deleted: this one is called {called}"
        )));
    }
    locked(driver, &AtomicBool::new(false), |conn| {
        let _alone = refuse_while_used(driver, conn)?;
        let mut reverted = Vec::new();
        for _ in 0..count {
            let applied = both!(conn, c => c.applied_migrations().map_err(Error::internal)?.len());
            if applied == 0 {
                break;
            }
            let version = match conn {
                Conn::Postgres(c) => c.revert_last_migration(POSTGRES).map(|version| version.to_string()),
                Conn::Sqlite(c) => c.revert_last_migration(SQLITE).map(|version| version.to_string()),
            };
            let failed =
                |error| Error::new(Code::Internal, format!("the migration was not taken back: {error}"));
            reverted.push(version.map_err(failed)?);
        }
        Ok(reverted)
    })
}

/// SQLite: keeps servers and workers from starting while it lives, because each believes that nobody else writes events;
/// refuses while one runs. PostgreSQL's share it.
pub fn use_alone(driver: &Driver) -> Result<Option<File>> {
    match driver {
        Driver::Postgres { .. } => Ok(None),
        Driver::Sqlite { .. } => {
            let mut conn = open(driver).map_err(|error| cannot_open(driver, error))?;
            refuse_while_used(driver, &mut conn)
        }
    }
}

/// Keeps processes from starting while it lives.
pub(super) fn refuse_while_used(driver: &Driver, conn: &mut Conn) -> Result<Option<File>> {
    let used = |by: String| {
        Error::conflict(format!("the database is in use{by}: stop every server and worker first"))
    };
    match driver {
        Driver::Sqlite { path, .. } => {
            let alone = |name| match lock_path(path, name) {
                Some(lock) => take_lock(&lock, false).map(Some),
                None => Ok(None),
            };
            let in_use =
                |error: Error| if error.code == Code::Conflict { used(String::new()) } else { error };
            alone("serve.lock").map_err(in_use)?;
            alone("use.lock").map_err(in_use)
        }
        Driver::Postgres { .. } => {
            if try_lock(conn, "pg_try_advisory_lock", IN_USE)? {
                return Ok(None);
            }
            let by = holders(conn, IN_USE).unwrap_or_default().join(", ");
            Err(used(format!(" by {by}")))
        }
    }
}

/// The file beside a SQLite database that carries a lock of this name; none for in-memory databases.
pub fn lock_path(database: &str, name: &str) -> Option<PathBuf> {
    let mut path = sqlite::file(database)?.into_os_string();
    path.push(format!(".{name}"));
    Some(path.into())
}

fn cannot_lock(path: &Path, error: &std::io::Error) -> Error {
    Error::new(Code::Internal, format!("cannot lock {}: {error}", path.display()))
}

fn lock_file(path: &Path) -> Result<File> {
    let opened = File::options().create(true).truncate(false).write(true).mode(0o600).open(path);
    opened.map_err(|error| cannot_lock(path, &error))
}

/// Holds an exclusive lock as long as the file lives; the operating system releases it when the process dies.
pub fn take_lock(path: &Path, wait: bool) -> Result<File> {
    let file = lock_file(path)?;
    if wait {
        file.lock().map_err(|error| cannot_lock(path, &error))?;
        return Ok(file);
    }
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(Error::conflict("another process holds the lock")),
        Err(std::fs::TryLockError::Error(error)) => Err(cannot_lock(path, &error)),
    }
}
