//! Why a unit of work did not succeed: what PostgreSQL's codes and SQLite's messages mean for whoever asked, and
//! whether another try may do. No word of a language that a PostgreSQL server can be set to is looked at.

use diesel::result::{DatabaseErrorInformation, DatabaseErrorKind, Error as DieselError};

use super::cluster;
use super::sqlstate::{self, SqlState};
use crate::error::{Code, Error};

/// Why a unit of work did not succeed: a refusal in the product's words, or the database's own failure.
#[derive(Debug)]
pub enum DbError {
    Rejected(Error),
    Database(DieselError),
    /// The transaction could not even begin, so repeating it is safe.
    NotStarted(Box<DbError>),
    /// What the transaction was built on is no longer true: run it again from the start.
    Retry,
    /// The caller is about to be told that it failed, so it was not committed.
    DeadlineExceeded,
    /// The database is not the one that the connection was made to (`crate::db::identity`): run it again, with nothing
    /// remembered.
    AnotherDatabase,
    /// The SQLite file that is open is no longer the one at its path: what was written there would be lost.
    Replaced,
}

/// What is the matter with a database that refuses work it would do at another time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// This connection is gone; another one may do.
    Disconnected,
    /// Starting, stopping, or without room for another connection.
    Away,
    /// A standby, a file without permission to write, or set to take no writes.
    ReadOnly,
    /// No space is left on its disk.
    Full,
    /// Others hold what the work needs.
    Locked,
    /// The work took longer than it may, or was cancelled by an operator.
    Slow,
    /// Two pieces of work were in each other's way, and this one gave way: it can be run again.
    Conflict,
    /// Tables or columns are missing.
    Schema,
}

impl Trouble {
    /// What the caller is told.
    pub fn message(self) -> &'static str {
        match self {
            Trouble::Disconnected | Trouble::Away => "the database does not answer",
            Trouble::ReadOnly => "the database is read-only",
            Trouble::Full => "the disk of the database is full",
            Trouble::Locked => "the database is locked",
            Trouble::Slow => "the database does not answer in time",
            Trouble::Conflict => "too many changes at once",
            Trouble::Schema => "the schema of the database is not that of this server",
        }
    }

    /// A word for it, as a label of a metric.
    fn kind(self) -> &'static str {
        match self {
            Trouble::Disconnected => "disconnected",
            Trouble::Away => "away",
            Trouble::ReadOnly => "read-only",
            Trouble::Full => "full",
            Trouble::Locked => "locked",
            Trouble::Slow => "slow",
            Trouble::Conflict => "conflict",
            Trouble::Schema => "schema",
        }
    }

    fn of_state(state: SqlState) -> Option<Trouble> {
        Some(match state.as_str() {
            // ended by an operator, by a crash, or for having been idle
            "57P01" | "57P02" | "57P05" | "25P03" => Trouble::Disconnected,
            // starting or stopping, out of connections, memory, or something else that it has a limit for; disk trouble
            "57P03" | "53300" | "53000" | "53200" | "53400" | "58030" => Trouble::Away,
            "25006" => Trouble::ReadOnly,
            "53100" => Trouble::Full,
            "55P03" | "55006" => Trouble::Locked,
            "57014" => Trouble::Slow,
            // serialization failure; deadlock, also one over several nodes
            "40001" | "40P01" => Trouble::Conflict,
            // no such table, column, schema, function
            "42P01" | "42703" | "3F000" | "42883" => Trouble::Schema,
            _ if state.class() == "08" => Trouble::Disconnected,
            _ => return None,
        })
    }

    /// By the words of SQLite and libpq, which are the same everywhere.
    fn of_words(text: &str) -> Option<Trouble> {
        const WORDS: [(&str, Trouble); 13] = [
            ("is locked", Trouble::Locked),
            ("database or disk is full", Trouble::Full),
            ("disk I/O error", Trouble::Away),
            ("unable to open database file", Trouble::Away),
            ("attempt to write a readonly database", Trouble::ReadOnly),
            ("no such table", Trouble::Schema),
            ("no such column", Trouble::Schema),
            ("has no column named", Trouble::Schema),
            ("interrupted", Trouble::Slow),
            ("server closed the connection", Trouble::Disconnected),
            ("connection to server", Trouble::Disconnected),
            ("no connection", Trouble::Disconnected),
            ("could not receive data from server", Trouble::Disconnected),
        ];
        WORDS.iter().find(|(words, _)| text.contains(words)).map(|(_, trouble)| *trouble)
    }

    /// Whether that may mend itself before there is a schema to work with. A file of SQLite is what it is.
    fn may_pass_at_start(self, error: &DieselError) -> bool {
        match self {
            Trouble::Disconnected | Trouble::Locked | Trouble::Slow | Trouble::Conflict => true,
            Trouble::Away | Trouble::ReadOnly | Trouble::Full => state_of(error).is_some(),
            Trouble::Schema => false,
        }
    }

    fn of(error: &DieselError) -> Option<Trouble> {
        match error {
            DieselError::BrokenTransactionManager => Some(Trouble::Disconnected),
            DieselError::DatabaseError(kind, info) => match kind {
                DatabaseErrorKind::ClosedConnection | DatabaseErrorKind::UnableToSendCommand => {
                    Some(Trouble::Disconnected)
                }
                DatabaseErrorKind::SerializationFailure => Some(Trouble::Conflict),
                DatabaseErrorKind::ReadOnlyTransaction => Some(Trouble::ReadOnly),
                DatabaseErrorKind::Unknown => match sqlstate::of_error(&**info) {
                    Some(state) if state.as_str() == INTERNAL && is_of_a_node(info.message()) => {
                        Some(Trouble::Disconnected)
                    }
                    Some(state) => Trouble::of_state(state),
                    None => Trouble::of_words(info.message()),
                },
                _ => None,
            },
            _ => None,
        }
    }
}

/// Citus has no code of its own for a node that goes away within a transaction, and speaks English only.
const INTERNAL: &str = "XX000";
const NODE_LOST: &str = "failure on connection marked as essential";

/// Of an internal error. What a node says while rows are copied to it, such as that it is being shut down, is handed on in
/// the node's words without its code.
fn is_of_a_node(message: &str) -> bool {
    message.starts_with(NODE_LOST) || cluster::is_distributed()
}

impl From<DieselError> for DbError {
    fn from(error: DieselError) -> Self {
        DbError::Database(error)
    }
}

impl From<Error> for DbError {
    fn from(error: Error) -> Self {
        DbError::Rejected(error)
    }
}

impl DbError {
    /// True when the statement broke this named constraint (or, on SQLite, a unique rule on this table).
    pub fn violates(&self, constraint: &str) -> bool {
        let DbError::Database(DieselError::DatabaseError(DatabaseErrorKind::UniqueViolation, info)) = self
        else {
            return false;
        };
        match info.constraint_name() {
            Some(name) => without_shard(name) == constraint,
            // SQLite names columns, not constraints: "UNIQUE constraint failed: users.email"
            None => constraint.starts_with(table_name(&**info)),
        }
    }

    /// What is the matter with the database, when it is the database's fault and not for good.
    pub fn trouble(&self) -> Option<Trouble> {
        match self {
            DbError::Database(error) => Trouble::of(error),
            DbError::NotStarted(inner) => inner.trouble(),
            DbError::Retry | DbError::AnotherDatabase => Some(Trouble::Conflict),
            DbError::DeadlineExceeded => Some(Trouble::Slow),
            DbError::Replaced => Some(Trouble::Away),
            DbError::Rejected(_) => None,
        }
    }

    /// The same in a word, as a label of a metric.
    pub(super) fn kind(&self) -> &'static str {
        self.trouble().map_or("other", Trouble::kind)
    }

    /// Not the fault of the work: another try may do.
    pub fn will_pass(&self) -> bool {
        self.trouble().is_some()
    }

    /// A connection that must not be used again, although it answers: what it is connected to takes no writes, and
    /// another connection may lead elsewhere.
    pub(super) fn spoils_connection(&self) -> bool {
        matches!(self, DbError::Replaced | DbError::AnotherDatabase)
            || matches!(self.trouble(), Some(Trouble::Disconnected | Trouble::ReadOnly))
    }

    pub(super) fn is_retryable(&self) -> bool {
        self.trouble() == Some(Trouble::Conflict)
    }

    /// What the caller is told; the cause goes to the log here and nowhere else.
    pub fn into_error(self, operation: &'static str) -> Error {
        let trouble = self.trouble();
        match (self, trouble) {
            (DbError::Rejected(error), _) => error,
            (DbError::Replaced, _) => {
                log::error!(operation; "the SQLite file was moved, deleted or replaced under the server");
                Error::unavailable("the database file was moved or replaced")
            }
            (DbError::Retry | DbError::AnotherDatabase, _) => Error::unavailable(Trouble::Conflict.message()),
            (DbError::DeadlineExceeded, _) => {
                log::warn!(operation; "database too slow");
                Error::unavailable(Trouble::Slow.message())
            }
            (DbError::NotStarted(inner), _) => inner.into_error(operation),
            (DbError::Database(error), Some(trouble)) => {
                log::warn!(operation, trouble:?, error:% = error; "database unavailable");
                Error::unavailable(trouble.message())
            }
            (DbError::Database(error), None) => {
                log::error!(operation, error:% = error; "database error");
                Error::new(Code::Internal, "internal server error")
            }
        }
    }
}

/// Whether that is what a caller of [`crate::db::Store`] is told of a database, or a node of it, that is not there.
pub fn is_away(error: &Error) -> bool {
    error.code == Code::Unavailable && error.message == Error::unavailable(Trouble::Away.message()).message
}

/// Whether that is what a caller of [`crate::db::Store`] is told of work that took longer than it may.
pub fn is_slow(error: &Error) -> bool {
    let says_so = || error.message == Error::unavailable(Trouble::Slow.message()).message;
    error.code == Code::QueryTimeout || (error.code == Code::Unavailable && says_so())
}

fn state_of(error: &DieselError) -> Option<SqlState> {
    match error {
        DieselError::DatabaseError(_, info) => sqlstate::of_error(&**info),
        _ => None,
    }
}

const PERMISSION_DENIED: &str = "42501";
const GRANT: &str = "; the role that owns the schema runs `open-spanner migrate`, and `open-spanner migrate --grant ROLE` \
                     lets this one use it with --no-migrate";

/// What an operator is told when the start fails: `Unavailable` when it may mend itself.
pub(super) fn failed(what: &str, fault: &DbError) -> Error {
    match fault {
        DbError::Database(error) => failed_by(what, error),
        DbError::NotStarted(inner) => failed(what, inner),
        fault => Error::new(Code::Internal, format!("{what}: {fault:?}")),
    }
}

/// The same for an error that somebody else holds.
pub(super) fn failed_by(what: &str, error: &DieselError) -> Error {
    let state = state_of(error);
    let hint = if state.is_some_and(|state| state.as_str() == PERMISSION_DENIED) { GRANT } else { "" };
    let message = format!("{what}: {error}{hint}");
    match Trouble::of(error) {
        Some(trouble) if trouble.may_pass_at_start(error) => Error::new(Code::Unavailable, message),
        Some(Trouble::ReadOnly) => Error::new(Code::Unusable, message),
        _ if state.is_none() && message.contains("file is not a database") => {
            Error::new(Code::Unusable, message)
        }
        _ => Error::new(Code::Internal, message),
    }
}

/// Citus puts the number of the shard behind the name of a constraint: `users_email_key_102010`.
fn without_shard(constraint: &str) -> &str {
    match constraint.rsplit_once('_') {
        Some((name, shard)) if !shard.is_empty() && shard.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => constraint,
    }
}

/// What `NULL` would be: a name that no constraint begins with.
const NO_TABLE: &str = "\0";

fn table_name(info: &(dyn DatabaseErrorInformation + Send + Sync)) -> &str {
    let named = info.table_name().or_else(|| {
        let columns = info.message().rsplit("failed: ").next()?;
        columns.split('.').next()
    });
    named.filter(|table| !table.is_empty()).unwrap_or(NO_TABLE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(kind: DatabaseErrorKind, message: &str) -> DbError {
        DbError::Database(DieselError::DatabaseError(kind, Box::new(message.to_owned())))
    }

    #[test]
    fn codes_of_postgres() {
        let trouble = |code: &str| SqlState::parse(code).and_then(Trouble::of_state);
        for (code, want) in [
            ("57P01", Some(Trouble::Disconnected)),
            ("08003", Some(Trouble::Disconnected)),
            ("57P03", Some(Trouble::Away)),
            ("53300", Some(Trouble::Away)),
            ("25006", Some(Trouble::ReadOnly)),
            ("53100", Some(Trouble::Full)),
            ("55P03", Some(Trouble::Locked)),
            ("57014", Some(Trouble::Slow)),
            ("40P01", Some(Trouble::Conflict)),
            ("42P01", Some(Trouble::Schema)),
            // a number that does not fit, text that is not UTF-8, a duplicate: the same every time
            ("22003", None),
            ("22021", None),
            ("23505", None),
            ("XX000", None),
        ] {
            assert_eq!(trouble(code), want, "{code}");
        }
    }

    #[test]
    fn kinds_for_metrics() {
        assert_eq!(fault(DatabaseErrorKind::Unknown, "database is locked").kind(), "locked");
        assert_eq!(DbError::NotStarted(Box::new(DbError::DeadlineExceeded)).kind(), "slow");
        assert_eq!(fault(DatabaseErrorKind::UniqueViolation, "twice").kind(), "other");
    }

    #[test]
    fn words_of_sqlite_and_libpq() {
        for (words, want) in [
            ("database is locked", Some(Trouble::Locked)),
            ("database table is locked: events", Some(Trouble::Locked)),
            ("database or disk is full", Some(Trouble::Full)),
            ("attempt to write a readonly database", Some(Trouble::ReadOnly)),
            ("no such table: events", Some(Trouble::Schema)),
            ("server closed the connection unexpectedly", Some(Trouble::Disconnected)),
            ("database disk image is malformed", None),
            ("too many SQL variables", None),
        ] {
            assert_eq!(fault(DatabaseErrorKind::Unknown, words).trouble(), want, "{words}");
        }
        // words of a message that is about data are not looked at
        let duplicate = fault(DatabaseErrorKind::UniqueViolation, "the database is locked");
        assert_eq!(duplicate.trouble(), None);
    }

    #[test]
    fn shards_have_constraints_of_the_same_name() {
        assert_eq!(without_shard("users_email_key_102010"), "users_email_key");
        assert_eq!(without_shard("users_email_key"), "users_email_key");
        assert_eq!(without_shard("users_email_key_"), "users_email_key_");
    }

    #[test]
    fn unique_rules_of_sqlite_are_known_by_their_table() {
        let broken = fault(DatabaseErrorKind::UniqueViolation, "UNIQUE constraint failed: users.email");
        assert!(broken.violates("users_email_key"));
        assert!(!broken.violates("meters_name_key"));
        assert!(!fault(DatabaseErrorKind::UniqueViolation, "").violates("users_email_key"));
    }

    #[test]
    fn exhausted_repeats_are_a_reason_to_come_back() {
        let conflict = fault(DatabaseErrorKind::SerializationFailure, "could not serialize access");
        assert!(conflict.is_retryable());
        assert_eq!(conflict.into_error("x").code, Code::Unavailable);
        assert_eq!(DbError::Retry.into_error("x").code, Code::Unavailable);
    }
}
