//! What must be in a backup. Pure, except for reading and writing it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::backup::cannot;
use crate::config::VERSION;
use crate::error::{Code, Error, Result};
use crate::metering::time::Timestamp;

/// Grows when a reader of today could not read it.
const FORMAT: u32 = 1;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub format: u32,
    pub made_at: String,
    /// Of the program that made it.
    pub version: String,
    /// `sqlite` or `postgres`.
    pub driver: String,
    pub bytes: u64,
    pub sha256: String,
    #[serde(flatten)]
    pub contents: Contents,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contents {
    pub installation: String,
    pub epoch: i64,
    pub migrations: Vec<String>,
    /// Rows of each table.
    pub rows: BTreeMap<String, i64>,
    /// Per meter and month: events, and the exact sum of their quantities.
    pub totals: Vec<Total>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Total {
    pub meter: String,
    pub month: String,
    pub events: i64,
    pub quantity: String,
}

/// `FILE.manifest.json`.
pub fn beside(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".manifest.json");
    name.into()
}

impl Contents {
    pub fn events(&self) -> i64 {
        self.totals.iter().map(|total| total.events).sum()
    }

    /// What is not the same in what was found, in words; empty when all is.
    pub fn differences(&self, found: &Contents) -> Vec<String> {
        let mut differences = Vec::new();
        let mut compare = |what: &str, saved: String, found: String| {
            if saved != found {
                differences.push(format!("{what}: {saved} saved, {found} found"));
            }
        };
        compare("installation", self.installation.clone(), found.installation.clone());
        compare("migrations", self.migrations.join(" "), found.migrations.join(" "));
        let tables = self.rows.keys().chain(found.rows.keys().filter(|name| !self.rows.contains_key(*name)));
        let count = |rows: &BTreeMap<String, i64>, name: &str| {
            rows.get(name).map_or("no table".to_owned(), |count| format!("{count} rows"))
        };
        for name in tables {
            compare(name, count(&self.rows, name), count(&found.rows, name));
        }
        let of = |contents: &Contents| -> BTreeMap<String, String> {
            let totals = contents.totals.iter();
            totals
                .map(|total| {
                    (
                        format!("{} in {}", total.meter, total.month),
                        format!("{} events, {}", total.events, total.quantity),
                    )
                })
                .collect()
        };
        let (saved, there) = (of(self), of(found));
        let keys = saved.keys().chain(there.keys().filter(|key| !saved.contains_key(*key)));
        let nothing = || "nothing".to_owned();
        for key in keys {
            compare(
                key,
                saved.get(key).cloned().unwrap_or_else(nothing),
                there.get(key).cloned().unwrap_or_else(nothing),
            );
        }
        differences
    }
}

impl Manifest {
    pub fn of(driver: &str, contents: Contents, file: &Path) -> Result<Manifest> {
        let (bytes, sha256) = digest(file)?;
        Ok(Manifest {
            format: FORMAT,
            made_at: Timestamp::now().to_string(),
            version: VERSION.to_owned(),
            driver: driver.to_owned(),
            bytes,
            sha256,
            contents,
        })
    }

    /// For its owner only, like the backup.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).map_err(Error::internal)?;
        let written = File::options().write(true).create(true).truncate(true).mode(0o600).open(path);
        let written = written.and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        });
        written.map_err(|error| cannot("write", path, &error))
    }

    pub fn read(path: &Path) -> Result<Manifest> {
        let text = std::fs::read_to_string(path).map_err(|error| cannot("read", path, &error))?;
        let manifest: Manifest = serde_json::from_str(&text).map_err(|error| {
            Error::new(Code::Unusable, format!("{} is no manifest: {error}", path.display()))
        })?;
        if manifest.format > FORMAT {
            let message = format!("{} was written by a newer version ({})", path.display(), manifest.version);
            return Err(Error::new(Code::Unusable, message));
        }
        Ok(manifest)
    }

    /// Refuses a file that is not, byte for byte, the one that was written.
    pub fn check_file(&self, file: &Path) -> Result<()> {
        let (bytes, sha256) = digest(file)?;
        if (bytes, &sha256) == (self.bytes, &self.sha256) {
            return Ok(());
        }
        let message = format!("{} is damaged: its SHA-256 is not that of the manifest", file.display());
        Err(Error::new(Code::Unusable, message))
    }
}

/// Size and SHA-256.
fn digest(path: &Path) -> Result<(u64, String)> {
    let mut file = File::open(path).map_err(|error| cannot("read", path, &error))?;
    let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
    let mut buffer = vec![0; 1 << 16];
    let mut bytes = 0;
    loop {
        let read = file.read(&mut buffer).map_err(|error| cannot("read", path, &error))?;
        if read == 0 {
            break;
        }
        hash.update(&buffer[..read]);
        bytes += read as u64;
    }
    let hex = hash.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok((bytes, hex))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_told() {
        let total = |events, quantity: &str| Total {
            meter: "m".into(),
            month: "2026-06".into(),
            events,
            quantity: quantity.into(),
        };
        let saved = Contents {
            rows: BTreeMap::from([("events".to_owned(), 2), ("gone".to_owned(), 0)]),
            totals: vec![total(2, "0.3")],
            ..Contents::default()
        };
        assert_eq!(saved.differences(&saved), Vec::<String>::new());
        let found = Contents {
            epoch: 7,
            rows: BTreeMap::from([("events".to_owned(), 1), ("new".to_owned(), 1)]),
            totals: vec![total(1, "0.2"), Total { meter: "other".into(), ..total(1, "1") }],
            ..saved.clone()
        };
        assert_eq!(
            saved.differences(&found),
            [
                "events: 2 rows saved, 1 rows found",
                "gone: 0 rows saved, no table found",
                "new: no table saved, 1 rows found",
                "m in 2026-06: 2 events, 0.3 saved, 1 events, 0.2 found",
                "other in 2026-06: nothing saved, 1 events, 1 found",
            ]
        );
    }
}
