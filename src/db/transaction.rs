//! Transactions of one connection: how they begin and end on each database, and what limits them. Which connection that
//! is, and whether the work is tried again, is not decided here.

use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;

use super::{Conn, DbError, postgres};
use crate::clock;

/// Statements of work that nobody waits for.
const LONG_STATEMENT_MAX: Duration = Duration::from_secs(600);

impl Conn {
    /// Runs `work` in one transaction; on SQLite it takes the write lock at once, so that it cannot fail half-way.
    /// Never nested: plain BEGIN and COMMIT, because diesel's own would start a deferred one on SQLite.
    pub(super) fn transaction<T>(
        &mut self,
        limits: Limits,
        work: impl FnOnce(&mut Conn) -> Result<T, DbError>,
    ) -> Result<T, DbError> {
        self.begin(limits)?;
        match work(self) {
            Ok(_) if limits.are_over() => {
                let _ = self.batch_execute("ROLLBACK");
                Err(DbError::DeadlineExceeded)
            }
            Ok(value) => match self.batch_execute("COMMIT") {
                Ok(()) => Ok(value),
                Err(error) => {
                    // a failed COMMIT may leave SQLite inside the transaction
                    let _ = self.batch_execute("ROLLBACK");
                    Err(error.into())
                }
            },
            Err(fault) => {
                let _ = self.batch_execute("ROLLBACK");
                Err(fault)
            }
        }
    }

    fn begin(&mut self, limits: Limits) -> Result<(), DbError> {
        let begin = match self {
            // named, because a database or a role may have another default
            Conn::Postgres(_) => format!("BEGIN ISOLATION LEVEL READ COMMITTED{}", limits.set_local()),
            Conn::Sqlite(_) => "BEGIN IMMEDIATE".to_owned(),
        };
        self.batch_execute(&begin).map_err(|error| DbError::NotStarted(Box::new(error.into())))
    }

    /// Runs `work` in a transaction that is rolled back whatever becomes of it.
    pub(super) fn rehearsal<T>(
        &mut self,
        limits: Limits,
        work: impl FnOnce(&mut Conn) -> Result<T, DbError>,
    ) -> Result<T, DbError> {
        self.begin(limits)?;
        let seen = work(self);
        self.batch_execute("ROLLBACK")?;
        seen
    }

    /// Runs `work` on the database as it is at one instant. On PostgreSQL the lock comes before the instant is
    /// chosen and keeps months from being dropped in between.
    pub(super) fn snapshot<T>(
        &mut self,
        limits: Limits,
        work: impl FnOnce(&mut Conn) -> Result<T, DbError>,
    ) -> Result<T, DbError> {
        let begin = match self {
            Conn::Postgres(_) => format!(
                "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY{}; LOCK TABLE ONLY events IN ACCESS SHARE MODE",
                limits.set_local()
            ),
            Conn::Sqlite(_) => "BEGIN".to_owned(),
        };
        let result = match self.batch_execute(&begin) {
            Ok(()) => work(self),
            Err(error) => Err(error.into()),
        };
        // nothing was changed; after a failure there may be nothing to end
        let ended = self.batch_execute("ROLLBACK");
        let value = result?;
        ended?;
        Ok(value)
    }
}

/// What a unit of work may take, beyond the limits of the connection itself.
#[derive(Clone, Copy, Default)]
pub(super) struct Limits {
    /// For each of its statements, where it is more than the connection's own limit.
    pub(super) statement: Option<Duration>,
    /// After this nothing is committed, statements of SQLite are stopped, and nobody waits for the answer any more
    /// (but for the end of a commit of SQLite, which others cannot stop).
    pub(super) deadline: Option<Instant>,
}

impl Limits {
    pub(super) const PATIENT: Limits = Limits { statement: Some(LONG_STATEMENT_MAX), deadline: None };

    /// The time until the deadline, at most this.
    pub(super) fn time(&self, most: Duration) -> Duration {
        let left = |deadline: Instant| deadline.saturating_duration_since(clock::moment());
        self.deadline.map_or(most, |deadline| left(deadline).min(most))
    }

    fn set_local(&self) -> String {
        let set = |limit| format!("; SET LOCAL statement_timeout = {}", postgres::milliseconds(limit));
        self.statement.map(set).unwrap_or_default()
    }

    pub(super) fn are_over(&self) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= clock::moment())
    }
}
