//! The schema: applying, listing and reverting migrations under a lock. diesel takes none of its own, and of four
//! processes starting together on an empty database three would fail.

use diesel::connection::SimpleConnection;
use diesel::migration::{Migration, MigrationSource, MigrationVersion};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};

use crate::both;
use crate::config::Driver;
use crate::db::{Conn, open};
use crate::error::{Error, Result};

const POSTGRES: EmbeddedMigrations = embed_migrations!("migrations/postgres");
const SQLITE: EmbeddedMigrations = embed_migrations!("migrations/sqlite");

/// Any number does, as long as no other program on the server uses it: "ospanner" in ASCII.
const LOCK: i64 = 0x6F73_7061_6E6E_6572;

/// One migration and whether the database has it.
#[derive(Debug, PartialEq, Eq)]
pub struct Step {
    pub name: String,
    pub applied: bool,
}

fn failed(cause: impl std::fmt::Display) -> Error {
    Error::new(crate::error::Code::Unavailable, format!("migration failed: {cause}"))
}

/// Opens a connection, takes the migration lock, runs `work`, releases the lock by closing the connection.
fn locked<T>(driver: &Driver, work: impl FnOnce(&mut Conn) -> Result<T>) -> Result<T> {
    let mut conn = open(driver).map_err(|error| failed(format!("cannot open the database: {error}")))?;
    if conn.is_postgres() {
        conn.batch_execute(&format!("SELECT pg_advisory_lock({LOCK})")).map_err(failed)?;
        return work(&mut conn);
    }
    let Driver::Sqlite { path, .. } = driver else { return work(&mut conn) };
    // SQLite's own lock is given back between migrations; a lock file spans them
    let _guard = match lock_path(path, "migrate.lock") {
        Some(lock) => Some(take_lock(&lock, true)?),
        None => None,
    };
    work(&mut conn)
}

/// The file of a SQLite database; none for in-memory databases.
pub fn file(database: &str) -> Option<std::path::PathBuf> {
    let path = database.strip_prefix("file:").unwrap_or(database);
    let path = path.split('?').next().unwrap_or(path);
    let is_memory = path.is_empty() || path.contains(":memory:") || database.contains("mode=memory");
    (!is_memory).then(|| path.into())
}

/// The file beside a SQLite database that carries a lock of this name; none for in-memory databases.
pub fn lock_path(database: &str, name: &str) -> Option<std::path::PathBuf> {
    file(database).map(|file| format!("{}.{name}", file.display()).into())
}

/// Holds an exclusive lock as long as the file lives; the operating system releases it when the process dies.
pub fn take_lock(path: &std::path::Path, wait: bool) -> Result<std::fs::File> {
    let describe = |error: std::io::Error| failed(format!("cannot lock {}: {error}", path.display()));
    let file = std::fs::File::create(path).map_err(describe)?;
    if wait {
        file.lock().map_err(describe)?;
        return Ok(file);
    }
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(Error::conflict("another process holds the lock")),
        Err(std::fs::TryLockError::Error(error)) => Err(describe(error)),
    }
}

/// Applies what is pending; returns the names applied.
pub fn run(driver: &Driver) -> Result<Vec<String>> {
    locked(driver, |conn| {
        let mut applied = Vec::new();
        for _ in pending(conn)? {
            let started = std::time::Instant::now();
            let name = both_run_next(conn)?;
            log::info!(migration = name.as_str(), duration_ms = started.elapsed().as_millis() as u64; "migrated");
            applied.push(name);
        }
        Ok(applied)
    })
}

fn both_run_next(conn: &mut Conn) -> Result<String> {
    let version: MigrationVersion<'static> = match conn {
        Conn::Postgres(c) => c.run_next_migration(POSTGRES).map_err(failed)?.as_owned(),
        Conn::Sqlite(c) => c.run_next_migration(SQLITE).map_err(failed)?.as_owned(),
    };
    Ok(version.to_string())
}

fn pending(conn: &mut Conn) -> Result<Vec<String>> {
    match conn {
        Conn::Postgres(c) => Ok(names(&c.pending_migrations(POSTGRES).map_err(failed)?)),
        Conn::Sqlite(c) => Ok(names(&c.pending_migrations(SQLITE).map_err(failed)?)),
    }
}

fn names<DB: diesel::backend::Backend>(migrations: &[Box<dyn Migration<DB>>]) -> Vec<String> {
    migrations.iter().map(|migration| migration.name().to_string()).collect()
}

/// Every migration of this binary, oldest first.
pub fn status(driver: &Driver) -> Result<Vec<Step>> {
    locked(driver, |conn| {
        let pending = pending(conn)?;
        let mut all = match conn {
            Conn::Postgres(_) => {
                names(&MigrationSource::<diesel::pg::Pg>::migrations(&POSTGRES).map_err(failed)?)
            }
            Conn::Sqlite(_) => {
                names(&MigrationSource::<diesel::sqlite::Sqlite>::migrations(&SQLITE).map_err(failed)?)
            }
        };
        all.sort();
        Ok(all.into_iter().map(|name| Step { applied: !pending.contains(&name), name }).collect())
    })
}

/// Takes back the newest `count` migrations; returns their versions.
pub fn revert(driver: &Driver, count: u32) -> Result<Vec<String>> {
    locked(driver, |conn| {
        let mut reverted = Vec::new();
        for _ in 0..count {
            let applied = both!(conn, c => c.applied_migrations().map_err(failed)?.len());
            if applied == 0 {
                break;
            }
            let version: MigrationVersion<'static> = match conn {
                Conn::Postgres(c) => c.revert_last_migration(POSTGRES).map_err(failed)?.as_owned(),
                Conn::Sqlite(c) => c.revert_last_migration(SQLITE).map_err(failed)?.as_owned(),
            };
            reverted.push(version.to_string());
        }
        Ok(reverted)
    })
}

/// Whether the database has every migration this binary knows; newer ones are tolerated.
pub fn is_current(conn: &mut Conn) -> Result<bool> {
    Ok(pending(conn)?.is_empty())
}
