//! Connections that a pool keeps: how one is made, whether it may be used again, whether it still leads to the right
//! database, and how often work on it is tried.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::{Duration, Instant};

use diesel::Connection;
use diesel::connection::SimpleConnection;
use diesel::r2d2::{self, ManageConnection};
use diesel::result::ConnectionError;

use super::identity::{Epochs, Link};
use super::readiness::Signs;
use super::transaction::Limits;
use super::{Conn, DbError, Trouble, interrupt, observe, open, postgres, stamp};
use crate::clock;
use crate::config::Driver;
use crate::error::{Error, Result};
use crate::logging;

/// A restarted PostgreSQL leaves every idle connection dead; each is found out on its first use.
const TRIES: usize = 3;

/// A pooled connection that knows whether it may be used again.
pub struct Pooled {
    conn: Conn,
    link: Link,
    statements: observe::Statements,
    broken: bool,
    opened: Instant,
}

impl Deref for Pooled {
    type Target = Conn;
    fn deref(&self) -> &Conn {
        &self.conn
    }
}

impl DerefMut for Pooled {
    fn deref_mut(&mut self) -> &mut Conn {
        &mut self.conn
    }
}

pub(super) struct Manager {
    pub(super) driver: Driver,
    pub(super) gate: Arc<Gate>,
    /// Longest statement on PostgreSQL, unless its transaction says otherwise.
    pub(super) statement_timeout: Duration,
}

impl ManageConnection for Manager {
    type Connection = Pooled;
    type Error = ConnectionError;

    fn connect(&self) -> Result<Pooled, ConnectionError> {
        if !self.gate.has_its_file() {
            return Err(ConnectionError::BadConnection(FILE_REPLACED.to_owned()));
        }
        let mut conn = match &self.driver {
            Driver::Postgres { dsn } if self.gate.is_replica => {
                Conn::Postgres(postgres::open_replica(dsn.expose())?)
            }
            driver => open(driver)?,
        };
        if let Conn::Postgres(conn) = &mut conn {
            postgres::limit(conn, self.statement_timeout)
                .map_err(ConnectionError::CouldntSetupConfiguration)?;
        }
        // the first connection may have made the file
        self.gate.has_its_file();
        // a standby is not the database that is in use, and nothing is written down where one was promoted
        let stamp = if self.gate.is_replica { 0 } else { stamp(&mut conn) };
        let link = self.gate.epochs.connected(stamp);
        let statements = observe::Statements::default();
        conn.set_instrumentation(statements.clone());
        Ok(Pooled { conn, link, statements, broken: false, opened: clock::moment() })
    }

    fn is_valid(&self, _: &mut Pooled) -> Result<(), ConnectionError> {
        Ok(())
    }

    fn has_broken(&self, pooled: &mut Pooled) -> bool {
        pooled.broken || pooled.link.epoch != self.gate.epochs.current()
    }
}

/// What decides whether a connection still leads to the right database.
pub(super) struct Gate {
    pub(super) epochs: Arc<Epochs>,
    /// Of SQLite; none for PostgreSQL and for databases in memory.
    pub(super) file: Option<std::path::PathBuf>,
    pub(super) is_replica: bool,
    pub(super) signs: Signs,
    /// Work that takes longer is told.
    pub(super) slow_after: Option<Duration>,
}

impl Gate {
    /// Whether the file is still the one that was opened first.
    pub(super) fn has_its_file(&self) -> bool {
        self.file.as_ref().is_none_or(|file| self.epochs.is_same_file(file))
    }
}

const FILE_REPLACED: &str = "the database file was removed or replaced under the server: stop it before a restore, and start it again";

/// Cheap to clone.
#[derive(Clone)]
pub(super) struct Connections {
    pub(super) pool: r2d2::Pool<Manager>,
    pub(super) gate: Arc<Gate>,
}

#[derive(Debug, Default)]
pub(super) struct LogErrors(logging::Folded);

impl r2d2::HandleError<ConnectionError> for LogErrors {
    fn handle_error(&self, error: ConnectionError) {
        self.0.say(|repeats| log::warn!(error:% = error, repeats; "database connection failed"));
    }
}

impl Connections {
    /// A connection to the database of the current epoch.
    fn check_out(&self, operation: &'static str) -> Result<r2d2::PooledConnection<Manager>> {
        if !self.gate.has_its_file() {
            return Err(DbError::Replaced.into_error(operation));
        }
        for _ in 0..=self.pool.max_size() {
            let mut pooled =
                self.pool.get().map_err(|_| Error::unavailable("the database does not answer"))?;
            if pooled.link.epoch == self.gate.epochs.current() {
                return Ok(pooled);
            }
            pooled.broken = true;
        }
        Err(Error::unavailable("the database changes all the time"))
    }

    /// SQLite's idle connections let go of the pages that they read: up to 32 MB each, which their next reads take from
    /// the system's cache. Those in use, and what they hold, are left alone. Blocks.
    pub(super) fn release_memory(&self) {
        // held until all were visited: the pool hands out the one that came back last
        let mut idle = Vec::new();
        while let Some(mut pooled) = self.pool.try_get() {
            let Pooled { conn, statements, broken, .. } = &mut *pooled;
            if let Conn::Sqlite(conn) = conn {
                *broken = statements.unseen(|| conn.batch_execute("PRAGMA shrink_memory")).is_err();
            }
            idle.push(pooled);
        }
    }
}

/// Asks PostgreSQL what time it is, once in a while.
fn keep_time(pooled: &mut Pooled) {
    if let Conn::Postgres(conn) = &mut pooled.conn
        && clock::must_ask()
    {
        // a connection that is lost is noticed by the work that follows
        let _ = pooled.statements.unseen(|| postgres::ask_time(conn));
    }
}

/// Each kind of work once in a while: what is slow is so for many callers.
fn tell_slow(operation: &'static str, took: Duration, statements: u64, is_done: bool) {
    static SLOW: logging::FoldedKinds<&'static str> = logging::FoldedKinds::new();
    let duration_ms = took.as_millis() as u64;
    SLOW.say(operation, |repeats| {
        log::info!(operation, duration_ms, statements, is_done, repeats; "slow work in the database");
    });
}

/// Runs `work` on a connection of the pool, and once more on another where that may help.
pub(super) fn attempt<T>(
    connections: &Connections,
    operation: &'static str,
    idempotent: bool,
    limits: Limits,
    work: impl Fn(&mut Conn, Link) -> Result<T, DbError>,
) -> Result<T> {
    let mut done = None;
    let mut work = |conn: &mut Conn, link: Link| {
        done = Some(work(conn, link)?);
        Ok(())
    };
    attempt_each(connections, operation, idempotent, limits, &mut work)?;
    done.ok_or_else(|| Error::internal("work that was done without a result"))
}

/// Not generic: with one copy for each of three hundred kinds of work it was a thirtieth of the program.
fn attempt_each(
    connections: &Connections,
    operation: &'static str,
    idempotent: bool,
    limits: Limits,
    work: &mut dyn FnMut(&mut Conn, Link) -> Result<(), DbError>,
) -> Result<()> {
    let (began, mut tries) = (clock::moment(), 0);
    loop {
        tries += 1;
        let mut pooled = connections.check_out(operation)?;
        if !connections.gate.is_replica {
            keep_time(&mut pooled);
        }
        let started = clock::moment();
        // stays true when the work panics, so that a half-done transaction is never handed on
        pooled.broken = true;
        let link = pooled.link;
        let result = interrupt::until(limits.deadline, || work(&mut pooled.conn, link));
        let (took, statements) = (clock::since(started), pooled.statements.take());
        metrics::histogram!("open_spanner_db_query_duration_seconds", "operation" => operation)
            .record(took.as_secs_f64());
        metrics::counter!("open_spanner_db_statements_total", "operation" => operation).increment(statements);
        if connections.gate.slow_after.is_some_and(|slow| took > slow) {
            tell_slow(operation, took, statements, result.is_ok());
        }
        let fault = match result {
            Ok(()) if !connections.gate.has_its_file() => DbError::Replaced,
            Ok(()) => {
                pooled.broken = false;
                if !idempotent {
                    connections.gate.signs.written();
                }
                return Ok(());
            }
            Err(fault) => fault,
        };
        connections.gate.signs.note(fault.trouble());
        pooled.broken = fault.spoils_connection();
        if matches!(fault, DbError::AnotherDatabase) {
            connections.gate.epochs.end(link);
        }
        // nothing was done by a transaction that did not begin, nor by one that may not write
        let elsewhere = match fault.trouble() {
            Some(Trouble::Disconnected) => idempotent || matches!(fault, DbError::NotStarted(_)),
            // an older connection may have been made when it was so, a fresh one tells how it is
            Some(Trouble::ReadOnly) => pooled.opened < began,
            _ => false,
        };
        let again = elsewhere || fault.is_retryable();
        if again
            && !limits.are_over()
            && (tries < TRIES || (elsewhere && tries <= connections.pool.max_size() as usize))
        {
            continue;
        }
        if !matches!(fault, DbError::Rejected(_)) {
            let kind = fault.kind();
            metrics::counter!("open_spanner_db_errors_total", "operation" => operation, "kind" => kind)
                .increment(1);
        }
        return Err(fault.into_error(operation));
    }
}
