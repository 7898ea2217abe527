//! Whether this process can work with its database right now. A thread with a connection of its own finds out whenever
//! somebody asks, so that neither readers nor a full pool keep the answer waiting, and many who ask at once cost one
//! look. What units of work run into ([`Signs`]) makes it look closer.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, mpsc};
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Bool, Text};
use serde::Serialize;
use tokio::sync::watch;

use super::connection::Gate;
use super::{Conn, DbError, Store, Trouble, cannot_open, inspect, migrations, open};
use crate::blocking;
use crate::clock;
use crate::config::Driver;
use crate::error::{Code, Error, Result};

/// What was found this recently is answered again.
const FRESH: Duration = Duration::from_millis(100);
/// Longer than this nobody waits for an answer: then there is none.
const PATIENCE: Duration = Duration::from_secs(2);
/// A look that nobody asked for, which also renews the mark that the database is in use.
const UNASKED: Duration = Duration::from_secs(5);
/// What a session was told when it began may have changed since.
const CONNECTION_AGE: Duration = Duration::from_secs(10);
/// By then the connection before this one is gone, and not taken for another server's.
const ALONE_AFTER: Duration = Duration::from_secs(2);
/// With less room than this on the disk of SQLite, writing is tried.
const ROOM: u64 = 1 << 20;
static TRIAL: [u8; 1 << 16] = [0; 1 << 16];

/// What keeps a process from working.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Obstacle {
    pub kind: &'static str,
    pub message: String,
}

impl Obstacle {
    pub fn new(kind: &'static str, message: impl Into<String>) -> Obstacle {
        Obstacle { kind, message: message.into() }
    }

    fn of(trouble: Trouble) -> Obstacle {
        let kind = match trouble {
            Trouble::ReadOnly => "read-only",
            Trouble::Full => "full",
            Trouble::Locked => "locked",
            Trouble::Schema => "schema",
            Trouble::Disconnected | Trouble::Away | Trouble::Slow | Trouble::Conflict => "away",
        };
        Obstacle::new(kind, trouble.message())
    }

    fn of_fault(fault: DbError) -> Obstacle {
        match fault.trouble() {
            Some(trouble) => Obstacle::of(trouble),
            None => Obstacle::new("damaged", fault.into_error("readiness::look").message),
        }
    }

    fn moved() -> Obstacle {
        Obstacle::new("replaced", "the database file was moved, deleted or replaced: put it back, or restart")
    }
}

impl From<diesel::result::Error> for Obstacle {
    fn from(error: diesel::result::Error) -> Obstacle {
        Obstacle::of_fault(error.into())
    }
}

/// What units of work have noticed about the database since it last did what it should.
#[derive(Debug, Default)]
pub struct Signs {
    full: AtomicBool,
    locked: AtomicBool,
    read_only: AtomicBool,
    /// Other servers work with the database.
    others: AtomicBool,
}

impl Signs {
    pub fn have_others(&self) -> bool {
        self.others.load(Ordering::Relaxed)
    }

    pub fn note(&self, trouble: Option<Trouble>) {
        let sign = match trouble {
            Some(Trouble::Full) => &self.full,
            Some(Trouble::Locked) => &self.locked,
            Some(Trouble::ReadOnly) => &self.read_only,
            _ => return,
        };
        sign.store(true, Ordering::Relaxed);
    }

    /// A transaction was committed.
    pub fn written(&self) {
        for sign in [&self.full, &self.locked, &self.read_only] {
            if sign.load(Ordering::Relaxed) {
                sign.store(false, Ordering::Relaxed);
            }
        }
    }
}

/// One look and what it found.
#[derive(Clone, Debug)]
struct Seen {
    began: Instant,
    found: Option<Obstacle>,
}

/// A look at something else that this process needs.
pub type Check = Arc<dyn Fn() -> Option<Obstacle> + Send + Sync>;

/// Cheap to clone.
#[derive(Clone)]
pub struct Readiness(Arc<Inner>);

struct Inner {
    /// Why there is nothing to look at yet; none while the process works.
    not_yet: Mutex<Option<Obstacle>>,
    asks: OnceLock<mpsc::SyncSender<()>>,
    seen: watch::Sender<Option<Seen>>,
}

impl Default for Readiness {
    fn default() -> Self {
        let starting = Obstacle::new("starting", "the process has just begun");
        Readiness(Arc::new(Inner {
            not_yet: Mutex::new(Some(starting)),
            asks: OnceLock::new(),
            seen: watch::Sender::new(None),
        }))
    }
}

impl Readiness {
    /// The process waits for its database.
    pub fn waits(&self, message: &str) {
        self.hold(Some(Obstacle::new("starting", message)));
    }

    /// The process is on its way out.
    pub fn drain(&self) {
        self.hold(Some(Obstacle::new("stopping", "the process is stopping")));
    }

    fn hold(&self, obstacle: Option<Obstacle>) {
        *self.0.not_yet.lock().unwrap_or_else(PoisonError::into_inner) = obstacle;
    }

    /// From here on the database, which has been prepared, is looked at.
    pub fn watch(&self, store: &Store, driver: &Driver, check: Option<Check>) -> Result<()> {
        let (asks, asked) = mpsc::sync_channel(1);
        let versions = inspect::versions(store.is_postgres())?;
        let gate = store.0.gate.clone();
        let mut looker = Looker {
            driver: driver.clone(),
            gate,
            check,
            versions,
            conn: None,
            mark: None,
            has_counted: false,
        };
        // before anybody may take the database for unused
        looker.look_at_database().map_err(|obstacle| Error::new(Code::Unavailable, obstacle.message))?;
        let seen = self.0.seen.clone();
        let watch = move || loop {
            if asked.recv_timeout(UNASKED) == Err(mpsc::RecvTimeoutError::Disconnected) {
                return;
            }
            let began = clock::moment();
            let found = looker.look().err();
            let before = seen.send_replace(Some(Seen { began, found: found.clone() }));
            tell(before.and_then(|before| before.found), found);
        };
        blocking::thread("readiness", watch)?;
        let _ = self.0.asks.set(asks);
        self.hold(None);
        Ok(())
    }

    /// What is in the way, as it is now.
    pub async fn obstacle(&self) -> Option<Obstacle> {
        let not_yet = self.0.not_yet.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(asks) = self.0.asks.get().filter(|_| not_yet.is_none()) else { return not_yet };
        let since = clock::moment().checked_sub(FRESH).unwrap_or_else(clock::moment);
        let mut seen = self.0.seen.subscribe();
        let is_fresh = |seen: &Option<Seen>| seen.as_ref().is_some_and(|seen| seen.began >= since);
        let answer = async {
            loop {
                if is_fresh(&seen.borrow_and_update()) {
                    break seen.borrow().as_ref().and_then(|seen| seen.found.clone());
                }
                let _ = asks.try_send(());
                // a look that was under way when it was asked for does not count
                if seen.changed().await.is_err() {
                    break None;
                }
            }
        };
        let late = || Obstacle::new("away", "the database does not answer within 2 seconds");
        tokio::time::timeout(PATIENCE, answer).await.unwrap_or_else(|_| Some(late()))
    }
}

fn tell(before: Option<Obstacle>, now: Option<Obstacle>) {
    match (before, now) {
        (before, Some(now)) if before.as_ref() != Some(&now) => {
            log::warn!(kind = now.kind, reason = now.message.as_str(); "not ready");
        }
        (Some(_), None) => log::info!("ready again"),
        _ => {}
    }
}

struct Looker {
    driver: Driver,
    gate: Arc<Gate>,
    check: Option<Check>,
    /// The migrations that this binary needs.
    versions: Vec<String>,
    conn: Option<(Conn, Instant)>,
    /// On SQLite, the file that says that the database is in use.
    mark: Option<File>,
    /// Whether this connection has seen who else is there.
    has_counted: bool,
}

#[derive(QueryableByName)]
struct State {
    #[diesel(sql_type = Bool)]
    is_read_only: bool,
    #[diesel(sql_type = Bool)]
    has_tables: bool,
    #[diesel(sql_type = BigInt)]
    applied: i64,
}

impl Looker {
    fn look(&mut self) -> Result<(), Obstacle> {
        if let Some(obstacle) = self.check.as_ref().and_then(|check| check()) {
            return Err(obstacle);
        }
        let was_open = self.conn.is_some();
        let mut looked = self.look_at_database();
        if looked.is_err() {
            // an old connection may have ended, or been told something at its beginning that is no longer so
            self.conn = None;
            if was_open {
                looked = self.look_at_database();
            }
        }
        if looked.is_err() {
            self.conn = None;
        }
        looked
    }

    fn look_at_database(&mut self) -> Result<(), Obstacle> {
        if !self.gate.has_its_file() {
            return Err(Obstacle::moved());
        }
        let is_old = |opened: &Instant| clock::since(*opened) > CONNECTION_AGE;
        let is_suspect = self.gate.signs.read_only.swap(false, Ordering::Relaxed);
        if is_suspect || self.conn.as_ref().is_none_or(|(conn, opened)| conn.is_postgres() && is_old(opened))
        {
            // the old one is closed after the new one has marked the database as in use
            self.conn = Some((self.connect()?, clock::moment()));
            self.has_counted = false;
        }
        let Some((conn, opened)) = &mut self.conn else { return Ok(()) };
        if !self.has_counted && clock::since(*opened) >= ALONE_AFTER {
            self.has_counted = true;
            let others = migrations::servers(conn)? > 0;
            if self.gate.signs.others.swap(others, Ordering::Relaxed) != others {
                let words = if others {
                    "other servers use this database too"
                } else {
                    "no other server uses it now"
                };
                log::info!("{words}");
            }
        }
        let state = match conn {
            Conn::Postgres(conn) => postgres_state(conn, &self.versions)?,
            Conn::Sqlite(conn) => sqlite_state(conn, &self.versions)?,
        };
        if state.is_read_only {
            return Err(Obstacle::of(Trouble::ReadOnly));
        }
        if !state.has_tables || state.applied < self.versions.len() as i64 {
            return Err(Obstacle::of(Trouble::Schema));
        }
        match conn {
            Conn::Postgres(conn) => try_to_fill(conn, &self.gate.signs),
            Conn::Sqlite(conn) => try_to_write(conn, &self.gate),
        }
    }

    fn connect(&mut self) -> Result<Conn, Obstacle> {
        let away = |error: Error| Obstacle::new("away", error.message);
        let mut conn = open(&self.driver).map_err(|error| away(cannot_open(&self.driver, error)))?;
        if let Conn::Postgres(conn) = &mut conn {
            super::postgres::limit(conn, PATIENCE)?;
        }
        if self.mark.is_none() {
            self.mark = migrations::mark_in_use(&self.driver, &mut conn).map_err(away)?;
        }
        Ok(conn)
    }
}

fn postgres_state(conn: &mut PgConnection, versions: &[String]) -> QueryResult<State> {
    diesel::sql_query(
        "SELECT pg_is_in_recovery() OR current_setting('transaction_read_only') = 'on' AS is_read_only,
                to_regclass('events') IS NOT NULL AS has_tables,
                (SELECT count(*) FROM __diesel_schema_migrations WHERE version = ANY ($1)) AS applied",
    )
    .bind::<Array<Text>, _>(versions)
    .get_result(conn)
}

fn sqlite_state(conn: &mut SqliteConnection, versions: &[String]) -> QueryResult<State> {
    let versions = versions.iter().map(|version| format!("'{version}'")).collect::<Vec<_>>().join(", ");
    diesel::sql_query(format!(
        "SELECT false AS is_read_only,
                EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'events') AS has_tables,
                (SELECT count(*) FROM __diesel_schema_migrations WHERE version IN ({versions})) AS applied"
    ))
    .get_result(conn)
}

/// After a write found the disk of PostgreSQL full: whether a table can grow again.
fn try_to_fill(conn: &mut PgConnection, signs: &Signs) -> Result<(), Obstacle> {
    if !signs.full.load(Ordering::Relaxed) {
        return Ok(());
    }
    let grown = conn.batch_execute(
        "BEGIN; CREATE TEMP TABLE open_spanner_trial AS
                SELECT repeat(md5(n::text), 40) AS filler FROM generate_series(1, 500) AS n",
    );
    let _ = conn.batch_execute("ROLLBACK");
    let trouble = grown.err().and_then(|error| DbError::from(error).trouble());
    if trouble == Some(Trouble::Full) {
        return Err(Obstacle::of(Trouble::Full));
    }
    signs.full.store(false, Ordering::Relaxed);
    Ok(())
}

fn try_to_write(conn: &mut SqliteConnection, gate: &Gate) -> Result<(), Obstacle> {
    let signs = &gate.signs;
    if let Some(path) = &gate.file {
        if rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_err() {
            return Err(Obstacle::of(Trouble::ReadOnly));
        }
        if (signs.full.load(Ordering::Relaxed) || room_beside(path) < ROOM) && !has_room(path) {
            return Err(Obstacle::of(Trouble::Full));
        }
        signs.full.store(false, Ordering::Relaxed);
    }
    if signs.locked.load(Ordering::Relaxed) {
        conn.batch_execute("PRAGMA busy_timeout = 500")?;
        let taken = conn.batch_execute("BEGIN IMMEDIATE; ROLLBACK");
        conn.batch_execute("PRAGMA busy_timeout = 10000")?;
        taken?;
        signs.locked.store(false, Ordering::Relaxed);
    }
    Ok(())
}

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Bytes that are free on the disk of a file.
fn room_beside(path: &Path) -> u64 {
    free_bytes(directory_of(path)).unwrap_or(u64::MAX)
}

/// Bytes that this process may still write on the disk of a folder or file; none when it cannot be asked.
pub fn free_bytes(path: &Path) -> Option<u64> {
    let disk = rustix::fs::statvfs(path).ok()?;
    Some(disk.f_bavail.saturating_mul(disk.f_frsize))
}

fn has_room(path: &Path) -> bool {
    let mut name = path.as_os_str().to_owned();
    name.push(".trial");
    let trial = Path::new(&name);
    let written = File::options().write(true).create(true).truncate(true).mode(0o600).open(trial);
    let written = written.and_then(|mut file| file.write_all(&TRIAL).and_then(|()| file.sync_data()));
    let _ = std::fs::remove_file(trial);
    written.is_ok()
}
