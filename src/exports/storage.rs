//! Where export files are kept: drafts that nobody sees, published under their name when they are whole, read in
//! ranges, removed. Everything here blocks; callers use blocking threads. Only file systems so far: an object store
//! would be a second [`Storage`] with the same five verbs.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use ring::digest;

use crate::chance;
use crate::config::ExportStorage;
use crate::error::{Code, Error, Result};
use crate::exports::job::{Artifact, file_name, owner_of};

/// Cheap to clone.
#[derive(Clone, Debug)]
pub struct Storage {
    directory: PathBuf,
}

/// Says what failed; the path goes to the log, where operators look, not to the owner of the export. A disk that is full or
/// away may be back: another try is worth it.
fn failed(what: &str, path: &std::path::Path, error: &io::Error) -> Error {
    log::error!(path:% = path.display(), error:% = error; "export storage failed");
    Error::new(Code::Unavailable, format!("cannot {what} the export: {error}"))
}

/// A file as the storage lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    pub name: String,
    pub job_id: String,
    /// Under its final name.
    pub is_published: bool,
}

impl Storage {
    pub fn of(config: &ExportStorage) -> Result<Self> {
        match config {
            ExportStorage::Filesystem { path } => Ok(Storage { directory: path.clone() }),
            ExportStorage::S3(_) => Err(Error::new(
                Code::Unusable,
                "OPEN_SPANNER_EXPORT_STORAGE_DRIVER: s3 is not part of this version, use filesystem",
            )),
        }
    }

    /// Where that is, for the log.
    pub fn target(&self) -> String {
        self.directory.display().to_string()
    }

    /// Makes the directory; `Err` when nothing can be written there.
    pub fn prepare(&self) -> Result<()> {
        self.try_to_write().map_err(|error| failed("write to the directory of", &self.directory, &error))
    }

    /// Whether files can be written now, without a word in the log; the text is for operators.
    pub fn check(&self) -> Result<(), String> {
        let described = |error| format!("the export storage {} cannot be written: {error}", self.target());
        self.try_to_write().map_err(described)
    }

    fn try_to_write(&self) -> io::Result<()> {
        let probe = self.directory.join(format!(".probe-{}", chance::name().simple()));
        self.make_directory()?;
        let written = private_file(&probe).and_then(|mut file| file.write_all(b"trial"));
        // a full disk makes the file and refuses its content
        let removed = fs::remove_file(&probe);
        written.and(removed)
    }

    fn make_directory(&self) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o750).create(&self.directory)
    }

    /// A new, empty draft of this job's file.
    pub fn create(&self, job_id: &str) -> Result<Draft> {
        let name = file_name(job_id);
        if owner_of(&name).is_none() {
            return Err(Error::internal("an export job with a strange id"));
        }
        let published = self.directory.join(&name);
        let path = self.directory.join(format!("{name}.{}.tmp", chance::name().simple()));
        let file = self.make_directory().and_then(|()| private_file(&path));
        let file = file.map_err(|error| failed("write", &path, &error))?;
        let is_published = AtomicBool::new(false);
        Ok(Draft {
            path,
            published,
            file,
            size: 0,
            hash: digest::Context::new(&digest::SHA256),
            is_published,
        })
    }

    /// A published file; `None` when it is gone.
    pub fn open(&self, job_id: &str) -> Result<Option<Reader>> {
        let name = file_name(job_id);
        if owner_of(&name).is_none() {
            return Ok(None);
        }
        let path = self.directory.join(name);
        let opened = File::open(&path).and_then(|file| Ok(Reader { size: file.metadata()?.len(), file }));
        match opened {
            Ok(reader) => Ok(Some(reader)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("read", &path, &error)),
        }
    }

    /// Removes a file by the name under which it is listed; one that is gone is removed.
    pub fn remove(&self, name: &str) -> Result<()> {
        if owner_of(name).is_none() {
            return Err(Error::internal("an export file with a strange name"));
        }
        let path = self.directory.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", &path, &error)),
            _ => Ok(()),
        }
    }

    /// Removes what was begun of a job's file and will never be finished.
    pub fn remove_drafts(&self, job_id: &str) -> Result<()> {
        let drafts = self.list()?.into_iter().filter(|file| file.job_id == job_id && !file.is_published);
        drafts.into_iter().try_for_each(|draft| self.remove(&draft.name))
    }

    /// All files of export jobs, finished and not.
    pub fn list(&self) -> Result<Vec<Stored>> {
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed("list the directory of", &self.directory, &error)),
        };
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let stored = names.filter_map(|name| {
            let (job_id, is_published) = owner_of(&name)?;
            Some(Stored { job_id: job_id.to_owned(), is_published, name })
        });
        Ok(stored.collect())
    }
}

fn private_file(path: &std::path::Path) -> io::Result<File> {
    File::options().write(true).create_new(true).mode(0o600).open(path)
}

/// A file that is being written. Removed when dropped, unless it was published.
pub struct Draft {
    path: PathBuf,
    published: PathBuf,
    file: File,
    size: u64,
    hash: digest::Context,
    is_published: AtomicBool,
}

impl Draft {
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|error| failed("write", &self.path, &error))?;
        self.hash.update(bytes);
        self.size += bytes.len() as u64;
        Ok(())
    }

    /// Waits until everything is on disk.
    pub fn sync(&mut self) -> Result<Artifact> {
        self.file.sync_all().map_err(|error| failed("write", &self.path, &error))?;
        let hash = self.hash.clone().finish();
        let hash = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Artifact { size_bytes: self.size as i64, hash })
    }

    /// Gives the file its final name, for good: the directory is on disk, too. Twice is as good as once.
    pub fn publish(&self) -> Result<()> {
        if self.is_published.load(Ordering::Acquire) {
            return Ok(());
        }
        let renamed = fs::rename(&self.path, &self.published).and_then(|()| match self.published.parent() {
            Some(directory) => File::open(directory)?.sync_all(),
            None => Ok(()),
        });
        renamed.map_err(|error| failed("publish", &self.published, &error))?;
        self.is_published.store(true, Ordering::Release);
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.is_published.load(Ordering::Acquire) {
            // what cannot be removed now is found by the clean-up
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A published file.
#[derive(Debug)]
pub struct Reader {
    pub size: u64,
    file: File,
}

impl Reader {
    /// Up to `length` bytes from `at`; fewer only at the end.
    pub fn read(&mut self, at: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(length);
        self.file.seek(SeekFrom::Start(at))?;
        (&mut self.file).take(length as u64).read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const ID: &str = "0193a5b0-0000-7000-8000-000000000000";

    fn storage() -> (tempfile::TempDir, Storage) {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("a/b");
        let storage = Storage::of(&ExportStorage::Filesystem { path }).expect("storage");
        (folder, storage)
    }

    #[test]
    fn a_draft_is_seen_by_nobody_until_it_is_published() {
        let (folder, storage) = storage();
        let mut draft = storage.create(ID).expect("draft");
        draft.append(b"abc").expect("written");
        draft.append(b"def").expect("written");
        let artifact = draft.sync().expect("synced");
        assert_eq!(artifact.size_bytes, 6);
        assert_eq!(artifact.hash, "bef57ec7f53a6d40beb640a780a639c83bc29ac8a9816f1fc6c5c6dcd93c4721");
        assert!(storage.open(ID).expect("looked").is_none());
        draft.publish().expect("published");
        draft.publish().expect("published");
        drop(draft);
        let mut reader = storage.open(ID).expect("looked").expect("there");
        assert_eq!((reader.size, reader.read(2, 3).expect("read")), (6, b"cde".to_vec()));
        let mode =
            |path: &str| fs::metadata(folder.path().join(path)).expect("there").permissions().mode() & 0o777;
        assert_eq!((mode("a/b"), mode(&format!("a/b/{ID}.csv"))), (0o750, 0o600));
        assert_eq!(storage.list().expect("listed").len(), 1);
        storage.remove(&file_name(ID)).expect("removed");
        storage.remove(&file_name(ID)).expect("removed");
        assert!(storage.open(ID).expect("looked").is_none());
    }

    #[test]
    fn a_dropped_draft_leaves_nothing() {
        let (_folder, storage) = storage();
        storage.prepare().expect("writable");
        let mut draft = storage.create(ID).expect("draft");
        draft.append(b"abc").expect("written");
        assert!(!storage.list().expect("listed")[0].is_published);
        drop(draft);
        assert!(storage.list().expect("listed").is_empty());
        // nor does one whose writer died, once its job is begun again
        std::mem::forget(storage.create(ID).expect("draft"));
        let published = storage.create(ID).expect("draft");
        published.publish().expect("published");
        storage.remove_drafts(ID).expect("removed");
        let left: Vec<String> = storage.list().expect("listed").into_iter().map(|file| file.name).collect();
        assert_eq!(left, [file_name(ID)]);
    }

    #[test]
    fn nothing_outside_is_ever_touched() {
        let (folder, storage) = storage();
        storage.prepare().expect("writable");
        fs::write(folder.path().join("a/secret.csv"), "x").expect("written");
        for id in ["../secret", "..", "", "a/b", "../../etc/passwd"] {
            assert!(storage.create(id).is_err(), "{id}");
            assert!(storage.open(id).expect("looked").is_none(), "{id}");
            assert!(storage.remove(&file_name(id)).is_err(), "{id}");
        }
    }

    #[test]
    fn a_directory_that_cannot_be_is_said_clearly() {
        let folder = tempfile::tempdir().expect("folder");
        fs::write(folder.path().join("file"), "x").expect("written");
        let path = folder.path().join("file/exports");
        let storage = Storage::of(&ExportStorage::Filesystem { path }).expect("storage");
        let error = storage.prepare().expect_err("refused");
        assert!(error.message.starts_with("cannot write to the directory of the export"), "{error}");
        assert_eq!(storage.create(ID).err().map(|error| error.code), Some(Code::Unavailable), "for now");
    }
}
