//! A connection of a command that works through a lot, one transaction after the other; or as a trial, in one
//! transaction that is taken back at the end. Servers have [`super::Store`].

use std::time::Duration;

use diesel::connection::SimpleConnection;

use super::error::failed;
use super::identity::Link;
use super::transaction::Limits;
use super::{Conn, DbError, cannot_open, open};
use crate::blocking;
use crate::config::Driver;
use crate::error::{Error, Result};

pub struct Session {
    conn: Conn,
    link: Link,
    /// Nothing is committed.
    is_trial: bool,
}

/// A transaction that others were in the way of is begun anew so often.
const TRIES: usize = 5;

impl Session {
    pub fn open(driver: &Driver, is_trial: bool) -> Result<Session> {
        let mut conn = open(driver).map_err(|error| cannot_open(driver, error))?;
        let link = super::link(&mut conn);
        if is_trial {
            let begin = if conn.is_postgres() { "BEGIN" } else { "BEGIN IMMEDIATE" };
            conn.batch_execute(begin).map_err(|error| refused(&error.into()))?;
        }
        Ok(Session { conn, link, is_trial })
    }

    /// Sees one instant, and changes nothing.
    pub fn look(driver: &Driver) -> Result<Session> {
        let mut conn = open(driver).map_err(|error| cannot_open(driver, error))?;
        let link = super::link(&mut conn);
        let begin =
            if conn.is_postgres() { "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY" } else { "BEGIN" };
        conn.batch_execute(begin).map_err(|error| refused(&error.into()))?;
        Ok(Session { conn, link, is_trial: true })
    }

    /// What was a trial until now is kept, all of it.
    pub fn keep(mut self) -> Result<()> {
        self.conn.batch_execute("COMMIT").map_err(|error| refused(&error.into()))?;
        self.is_trial = false;
        Ok(())
    }

    pub fn link(&self) -> Link {
        self.link
    }

    pub fn is_postgres(&self) -> bool {
        self.conn.is_postgres()
    }

    /// One transaction, unless this is a trial.
    pub fn write<T>(&mut self, mut work: impl FnMut(&mut Conn) -> Result<T, DbError>) -> Result<T> {
        if self.is_trial {
            return work(&mut self.conn).map_err(|fault| refused(&fault));
        }
        for _ in 1..TRIES {
            match self.conn.transaction(Limits::default(), &mut work) {
                Err(fault) if fault.is_retryable() || matches!(fault, DbError::Retry) => {
                    blocking::pause(Duration::from_millis(200))
                }
                done => return done.map_err(|fault| refused(&fault)),
            }
        }
        self.conn.transaction(Limits::default(), work).map_err(|fault| refused(&fault))
    }

    pub fn read<T>(&mut self, work: impl FnOnce(&mut Conn) -> Result<T, DbError>) -> Result<T> {
        work(&mut self.conn).map_err(|fault| refused(&fault))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if self.is_trial {
            // what is not committed is gone with the connection, too
            let _ = self.conn.batch_execute("ROLLBACK");
        }
    }
}

fn refused(fault: &DbError) -> Error {
    match fault {
        DbError::Rejected(error) => error.clone(),
        fault => failed("the database refused", fault),
    }
}
