//! The key that an installation makes for itself: a file beside its SQLite database, for no eyes but the owner's. It is
//! never in the database, hence in no backup of it. Whole or not there: several processes may make it at once.

use std::io::{ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::{KEY_BYTES, KeyRing};
use crate::chance;
use crate::error::{Code, Error, Result};

/// What its name ends with.
const SUFFIX: &str = "-keys";
/// What the id of a key begins with that nobody chose; the rest tells one installation's from another's.
const ID_PREFIX: &str = "own-";

/// Where it is for a database in this file.
pub fn beside(database: &Path) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push(SUFFIX);
    name.into()
}

fn cannot(what: &str, file: &Path, error: impl std::fmt::Display) -> Error {
    Error::new(Code::Unusable, format!("cannot {what} the keys in {}: {error}", file.display()))
}

/// The keys in it; none when it is not there.
pub fn read(file: &Path) -> Result<Option<KeyRing>> {
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(cannot("read", file, error)),
    };
    let is_open = file.metadata().is_ok_and(|found| found.permissions().mode() & 0o007 != 0);
    if is_open {
        log::warn!("every user of this machine may read the keys in {}", file.display());
    }
    KeyRing::parse_from(&file.display().to_string(), &text).map(Some)
}

/// Makes it with one key, unless somebody else does first.
pub fn make(file: &Path) -> Result<()> {
    let id = u32::from_be_bytes(chance::secret::<4>()?);
    let text = format!("{ID_PREFIX}{id:08x}:{}\n", STANDARD.encode(chance::secret::<KEY_BYTES>()?));
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // a draft is 0600 from its first byte, and takes the name only when it is whole and on the disk
    let made = || {
        let mut draft = tempfile::Builder::new().prefix(".open-spanner-keys-").tempfile_in(folder)?;
        draft.write_all(text.as_bytes())?;
        draft.as_file().sync_all()?;
        match draft.persist_noclobber(file) {
            Ok(_) => std::fs::File::open(folder)?.sync_all(),
            Err(refused) if refused.error.kind() == ErrorKind::AlreadyExists => Ok(()),
            Err(refused) => Err(refused.error),
        }
    };
    made().map_err(|error| cannot("make", file, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_make_one_key_for_no_eyes_but_the_owners() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = beside(&folder.path().join("open-spanner.db"));
        assert!(file.ends_with("open-spanner.db-keys"));
        assert!(read(&file).expect("looked").is_none());
        let ids = std::thread::scope(|threads| {
            let makers: Vec<_> = (0..8)
                .map(|_| {
                    threads.spawn(|| {
                        make(&file).expect("made");
                        read(&file).expect("read").expect("there").current().map(str::to_owned)
                    })
                })
                .collect();
            makers.into_iter().map(|maker| maker.join().expect("no panic")).collect::<Vec<_>>()
        });
        assert!(ids[0].as_deref().is_some_and(|id| id.starts_with("own-")), "{ids:?}");
        assert!(ids.windows(2).all(|pair| pair[0] == pair[1]), "{ids:?}");
        assert_eq!(file.metadata().expect("there").permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 1, "no draft is left");
    }

    #[test]
    fn a_file_that_is_no_ring_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("x-keys");
        std::fs::write(&file, "k1:short").expect("written");
        let refused = read(&file).expect_err("refused").message;
        assert!(refused.contains("x-keys") && !refused.contains("short"), "{refused}");
    }
}
