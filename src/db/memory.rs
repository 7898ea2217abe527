//! A database in memory, as the setting says it, is one that is gone when its process is. Each connection to one of
//! SQLite's own would see another, so it is a file in a folder that goes with the process.

use tempfile::TempDir;

use super::file_of;
use crate::config::Driver;
use crate::error::{Code, Error, Result};

/// Puts a file in the place of a database that has none. The folder goes when what is returned does.
pub fn place(driver: &mut Driver) -> Result<Option<TempDir>> {
    if file_of(driver).is_some() {
        return Ok(None);
    }
    let Driver::Sqlite { path, .. } = driver else { return Ok(None) };
    let folder = tempfile::Builder::new().prefix("open-spanner-").tempdir().map_err(|error| {
        Error::new(Code::Internal, format!("cannot make a folder for a database in memory: {error}"))
    })?;
    *path = folder.path().join("open-spanner.db").to_string_lossy().into_owned();
    log::warn!("the database is in memory: all of it is gone when this process ends");
    Ok(Some(folder))
}
