//! The code that PostgreSQL gives each error. Its words are those of the server's language; diesel passes on the words
//! and keeps the code to itself. Both functions here ask libpq for it, and are the only unsafe code of the program.
#![expect(unsafe_code, reason = "libpq is asked directly for what diesel does not pass on")]

use std::ffi::{CStr, CString};
use std::fmt;
use std::ptr::NonNull;

use diesel::result::DatabaseErrorInformation;
use pq_sys::{PGVerbosity, PGresult};

/// Five characters; the first two are its class. <https://www.postgresql.org/docs/current/errcodes-appendix.html>
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SqlState([u8; 5]);

impl SqlState {
    pub fn parse(text: &str) -> Option<SqlState> {
        let code: [u8; 5] = text.as_bytes().try_into().ok()?;
        let is_code = code.iter().all(|byte| byte.is_ascii_digit() || byte.is_ascii_uppercase());
        is_code.then_some(SqlState(code))
    }

    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    pub fn class(&self) -> &str {
        &self.as_str()[..2]
    }
}

impl fmt::Debug for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The code of an error that the server reported; none for one of libpq itself, nor for one of SQLite.
pub fn of_error(info: &(dyn DatabaseErrorInformation + Send + Sync)) -> Option<SqlState> {
    // diesel has two implementations: a String, which is three words long, and libpq's result
    if size_of_val(info) != size_of::<NonNull<PGresult>>() {
        return None;
    }
    // SAFETY: in the version of diesel that Cargo.toml demands, what is behind `info` and as long as one pointer is
    // `PgErrorInformation`: nothing but a non-null pointer to a result that lives as long as `info` does
    let result = unsafe { std::ptr::from_ref(info).cast::<NonNull<PGresult>>().read() };
    // SAFETY: a result may be read by any thread; the text belongs to it
    let text = unsafe {
        let field = pq_sys::PQresultErrorField(result.as_ptr(), i32::from(pq_sys::PG_DIAG_SQLSTATE));
        (!field.is_null()).then(|| CStr::from_ptr(field))
    };
    SqlState::parse(text?.to_str().ok()?)
}

/// Connects anew to learn the code that the server refuses a connection with; none when no server answers.
pub fn of_connecting(dsn: &str) -> Option<SqlState> {
    let dsn = CString::new(dsn).ok()?;
    // SAFETY: the handle is used by this thread only, and not after PQfinish
    let message = unsafe {
        let conn = pq_sys::PQconnectdb(dsn.as_ptr());
        if conn.is_null() {
            return None;
        }
        // can be asked for only when there is a handle, hence the second try
        pq_sys::PQsetErrorVerbosity(conn, PGVerbosity::PQERRORS_SQLSTATE);
        pq_sys::PQreset(conn);
        let message = CStr::from_ptr(pq_sys::PQerrorMessage(conn)).to_string_lossy().into_owned();
        pq_sys::PQfinish(conn);
        message
    };
    in_message(&message)
}

/// `connection to server at "::1", port 5432 failed: FATAL:  28P01`
fn in_message(message: &str) -> Option<SqlState> {
    let (_, code) = message.trim_end().rsplit_once(":  ")?;
    SqlState::parse(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_others_have_no_code() {
        assert_eq!(of_error(&"UNIQUE constraint failed: users.email".to_owned()), None);
    }

    #[test]
    fn code_ends_the_message_of_a_refused_connection() {
        let refused = "connection to server at \"localhost\" (::1), port 5432 failed: ВАЖНО:  28P01\n";
        assert_eq!(in_message(refused).map(|state| state.class() == "28"), Some(true));
        for own in
            ["", "connection to server at \"h\" failed: Connection refused\n\tIs the server running?\n"]
        {
            assert_eq!(in_message(own), None);
        }
    }

    #[test]
    fn nobody_listens() {
        assert_eq!(of_connecting("host=127.0.0.1 port=1 dbname=x user=x"), None);
    }
}
