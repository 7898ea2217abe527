//! Reads what both databases return for a column that diesel has no common type for.

use uuid::Uuid;

use crate::db::Fault;
use crate::error::Error;
use crate::metering::quantity::Quantity;

/// Reads a UUID stored as its sixteen bytes.
pub fn uuid_of(bytes: &[u8]) -> Result<Uuid, Fault> {
    Uuid::from_slice(bytes).map_err(|error| Fault::Refused(Error::internal(error)))
}

/// Reads decimal text made by the database.
pub fn quantity_of(text: &str) -> Result<Quantity, Fault> {
    let not_a_number = || Error::internal("the database holds a quantity that is not a number");
    Ok(Quantity::from_plain(text).ok_or_else(not_a_number)?)
}
