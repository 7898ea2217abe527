//! Reads what both databases return for a column that diesel has no common type for.

use std::fmt;

use uuid::Uuid;

use crate::db::DbError;
use crate::error::Error;
use crate::metering::quantity::Quantity;

/// Leaves out a row that cannot be read, names it in the log and counts it: one damaged row never fails a list of
/// others.
pub fn readable<T, E: fmt::Debug>(
    table: &'static str,
    id: impl fmt::Display,
    row: Result<T, E>,
) -> Option<T> {
    match row {
        Ok(row) => Some(row),
        Err(error) => {
            log::error!(table, id:% = id, error:? = error; "a row cannot be read and is left out");
            metrics::counter!("open_spanner_unreadable_rows_total", "table" => table).increment(1);
            None
        }
    }
}

/// Reads a UUID stored as its sixteen bytes.
pub fn uuid_of(bytes: &[u8]) -> Result<Uuid, DbError> {
    Uuid::from_slice(bytes).map_err(|error| DbError::Rejected(Error::internal(error)))
}

/// Reads decimal text made by the database.
pub fn quantity_of(text: &str) -> Result<Quantity, DbError> {
    let not_a_number = || Error::internal("the database holds a quantity that is not a number");
    Ok(Quantity::from_plain(text).ok_or_else(not_a_number)?)
}
