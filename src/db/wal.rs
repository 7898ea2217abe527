//! SQLite's write-ahead log, the `-wal` file beside the database. Pages are copied from it to the database at commits;
//! it is written from the start again once no read needs what it holds. Reads that overlap without a gap keep it
//! growing: then writers are stopped for a moment.

use std::path::{Path, PathBuf};

use diesel::connection::SimpleConnection;

use super::open;
use crate::config::Driver;

/// What is left of the log when it is begun again.
pub const KEPT_BYTES: u64 = 128 << 20;
/// A log of this size is ended by force.
const BYTES_MAX: u64 = 2 * KEPT_BYTES;
/// Writers wait this long for the reads under way; a log that is still needed is tried again later.
const PATIENCE_MS: u32 = 2_000;

/// The log of a database in a file.
pub fn path(driver: &Driver) -> Option<PathBuf> {
    let Driver::Sqlite { path, .. } = driver else { return None };
    let mut log = super::sqlite::file(path)?.into_os_string();
    log.push("-wal");
    Some(log.into())
}

fn bytes(log: &Path) -> u64 {
    std::fs::metadata(log).map_or(0, |file| file.len())
}

/// Measures the log, and ends it when it is too large. Blocks.
pub fn watch(driver: &Driver, log: &Path) {
    metrics::gauge!("open_spanner_sqlite_wal_bytes").set(bytes(log) as f64);
    if bytes(log) <= BYTES_MAX {
        return;
    }
    if let Err(error) = end(driver) {
        log::warn!(error:% = error; "the write-ahead log could not be ended");
    }
    let left = bytes(log);
    metrics::gauge!("open_spanner_sqlite_wal_bytes").set(left as f64);
    if left > BYTES_MAX {
        log::warn!(bytes = left; "reads keep the write-ahead log from being ended");
    }
}

fn end(driver: &Driver) -> diesel::result::QueryResult<()> {
    let mut conn = open(driver).map_err(|error| diesel::result::Error::QueryBuilderError(error.into()))?;
    conn.batch_execute(&format!("PRAGMA busy_timeout = {PATIENCE_MS}; PRAGMA wal_checkpoint(TRUNCATE)"))
}
