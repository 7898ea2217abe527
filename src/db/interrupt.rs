//! Stops statements of SQLite that take too long, as PostgreSQL stops its own. SQLite asks a function every few
//! thousand steps whether to go on, on the thread that runs the statement; the function looks at the deadline of that
//! thread. No connection, no pointer and no data is touched here.
//!
//! diesel has no call for this and hands out no handle of a connection, so the function is registered with every
//! connection as SQLite opens it: the only two foreign calls of the crate, and its only unsafe code.
#![expect(unsafe_code, reason = "SQLite's progress handler can only be set by foreign calls")]

use std::cell::Cell;
use std::ffi::{c_char, c_int, c_void};
use std::sync::Once;
use std::time::Instant;

use libsqlite3_sys as sqlite;

use crate::clock;
use crate::db::DbError;

thread_local! {
    static DEADLINE: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Steps between two looks at the clock: some tens of microseconds.
const STEPS: c_int = 2_000;

/// Watches every connection that this process opens from now on.
pub fn watch_connections() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: `watch` has the signature that SQLite calls entry points with, and is there for as long as the program
        let registered = unsafe { sqlite::sqlite3_auto_extension(Some(watch)) };
        if registered != sqlite::SQLITE_OK {
            log::error!(code = registered; "statements of SQLite have no limit of time");
        }
    });
}

/// Statements of SQLite that `work` runs on this thread fail with "interrupted" after the deadline.
pub fn until<T>(deadline: Option<Instant>, work: impl FnOnce() -> T) -> T {
    let _reset = Reset(DEADLINE.replace(deadline));
    work()
}

/// Fails after the deadline of this thread's work: for what goes on between statements, or without any.
pub fn check() -> Result<(), DbError> {
    match DEADLINE.get().is_some_and(|deadline| deadline <= clock::moment()) {
        true => Err(DbError::DeadlineExceeded),
        false => Ok(()),
    }
}

/// Puts back the deadline that was there, also when the work panics: threads are used again.
struct Reset(Option<Instant>);

impl Drop for Reset {
    fn drop(&mut self) {
        DEADLINE.set(self.0);
    }
}

unsafe extern "C" fn watch(
    connection: *mut sqlite::sqlite3,
    _error: *mut *mut c_char,
    _api: *const sqlite::sqlite3_api_routines,
) -> c_int {
    // SAFETY: SQLite calls this with the connection that it opens, and `is_over` reads no argument
    unsafe { sqlite::sqlite3_progress_handler(connection, STEPS, Some(is_over), std::ptr::null_mut()) };
    sqlite::SQLITE_OK
}

/// Anything but 0 makes the running statement fail with SQLITE_INTERRUPT.
unsafe extern "C" fn is_over(_: *mut c_void) -> c_int {
    let deadline = DEADLINE.try_with(Cell::get).unwrap_or_default();
    c_int::from(deadline.is_some_and(|deadline| deadline <= clock::moment()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use diesel::connection::SimpleConnection;
    use diesel::{Connection, SqliteConnection};

    use super::*;

    #[test]
    fn a_statement_without_an_end_is_ended_and_the_connection_goes_on() {
        watch_connections();
        let mut conn = SqliteConnection::establish(":memory:").expect("opened");
        let endless = "WITH RECURSIVE n (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT MAX(x) FROM n";
        let deadline = Instant::now() + Duration::from_millis(20);
        let ended = until(Some(deadline), || conn.batch_execute(endless));
        assert_eq!(ended.expect_err("it has no end").to_string(), "interrupted");
        conn.batch_execute("SELECT 1").expect("without a deadline");
        until(Some(deadline), || conn.batch_execute("SELECT 1")).expect("too short to be asked");
    }
}
