//! The database engine: one enum over both databases, connections, transactions, migrations. No statement of a
//! domain: those are in the domain's `sql`. They use three rungs, the lowest that will do: plain diesel on [`Conn`];
//! the same statement compiled for each database with [`both!`]; a `match` with different SQL where it must differ
//! (the hot insert, claims, aggregates).
//!
//! Blocking diesel never runs on an async thread: a permit of the pool is awaited, then the work runs on a blocking
//! thread that finds its connection free.

pub mod audit;
pub mod changes;
pub mod cluster;
pub mod columns;
mod error;
pub mod identity;
mod inspect;
mod interrupt;
pub mod leases;
pub mod limits;
pub mod migrations;
mod observe;
pub mod partial;
pub mod pool;
mod postgres;
pub mod prepared;
pub mod readiness;
pub mod replica;
pub mod row_cache;
pub mod schema;
pub mod session;
mod sqlite;
mod sqlstate;
pub mod statement;
pub mod wal;

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::r2d2::{self, ManageConnection};
use diesel::result::ConnectionError;
use diesel::{Connection, PgConnection, SqliteConnection};

use crate::blocking;
use crate::clock;
use crate::config::{Db, Driver};
use crate::db::changes::Changes;
use crate::db::identity::{Epochs, Link};
use crate::error::{Code, Error, Result};
use crate::logging;
pub use error::{DbError, Trouble};
use error::{failed, failed_by};
pub use migrations::Wanted;
use readiness::Signs;
use replica::{Position, Replica};

use pool::{Class, Pool};
pub use postgres::call_process;

#[derive(diesel::MultiConnection)]
pub enum Conn {
    Postgres(PgConnection),
    Sqlite(SqliteConnection),
}

/// The same statement, type-checked against each database.
#[macro_export]
macro_rules! both {
    ($conn:expr, $c:ident => $body:expr) => {
        match $conn {
            $crate::db::Conn::Postgres($c) => $body,
            $crate::db::Conn::Sqlite($c) => $body,
        }
    };
}

impl Conn {
    pub fn is_postgres(&self) -> bool {
        matches!(self, Conn::Postgres(_))
    }

    /// Whether events lie on the nodes of a cluster, where some statements are not understood.
    pub fn is_distributed(&self) -> bool {
        self.is_postgres() && cluster::is_distributed()
    }

    /// Behind a subquery that PostgreSQL must plan by itself, row by row of what it is joined with: it does not look
    /// through an OFFSET. A cluster refuses one.
    pub fn fence(&self) -> &'static str {
        if self.is_distributed() { "" } else { "OFFSET 0" }
    }

    /// Runs `work` in one transaction; on SQLite it takes the write lock at once, so that it cannot fail half-way.
    /// Never nested: plain BEGIN and COMMIT, because diesel's own would start a deferred one on SQLite.
    fn transaction<T>(
        &mut self,
        limits: Limits,
        work: impl FnOnce(&mut Conn) -> Result<T, DbError>,
    ) -> Result<T, DbError> {
        self.begin(limits)?;
        match work(self) {
            Ok(_) if limits.are_over() => {
                let _ = self.batch_execute("ROLLBACK");
                Err(DbError::DeadlineExceeded)
            }
            Ok(value) => match self.batch_execute("COMMIT") {
                Ok(()) => Ok(value),
                Err(error) => {
                    // a failed COMMIT may leave SQLite inside the transaction
                    let _ = self.batch_execute("ROLLBACK");
                    Err(error.into())
                }
            },
            Err(fault) => {
                let _ = self.batch_execute("ROLLBACK");
                Err(fault)
            }
        }
    }

    fn begin(&mut self, limits: Limits) -> Result<(), DbError> {
        let begin = match self {
            // named, because a database or a role may have another default
            Conn::Postgres(_) => format!("BEGIN ISOLATION LEVEL READ COMMITTED{}", limits.set_local()),
            Conn::Sqlite(_) => "BEGIN IMMEDIATE".to_owned(),
        };
        self.batch_execute(&begin).map_err(|error| DbError::NotStarted(Box::new(error.into())))
    }

    /// Runs `work` in a transaction that is rolled back whatever becomes of it.
    fn rehearsal<T>(
        &mut self,
        limits: Limits,
        work: impl FnOnce(&mut Conn) -> Result<T, DbError>,
    ) -> Result<T, DbError> {
        self.begin(limits)?;
        let seen = work(self);
        self.batch_execute("ROLLBACK")?;
        seen
    }

    /// Runs `work` on the database as it is at one instant. On PostgreSQL the lock comes before the instant is
    /// chosen and keeps months from being dropped in between.
    fn snapshot<T>(
        &mut self,
        limits: Limits,
        work: impl FnOnce(&mut Conn) -> Result<T, DbError>,
    ) -> Result<T, DbError> {
        let begin = match self {
            Conn::Postgres(_) => format!(
                "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY{}; LOCK TABLE ONLY events IN ACCESS SHARE MODE",
                limits.set_local()
            ),
            Conn::Sqlite(_) => "BEGIN".to_owned(),
        };
        let result = match self.batch_execute(&begin) {
            Ok(()) => work(self),
            Err(error) => Err(error.into()),
        };
        // nothing was changed; after a failure there may be nothing to end
        let ended = self.batch_execute("ROLLBACK");
        let value = result?;
        ended?;
        Ok(value)
    }
}

/// What a unit of work may take, beyond the limits of the connection itself.
#[derive(Clone, Copy, Default)]
struct Limits {
    /// For each of its statements, where it is more than the connection's own limit.
    statement: Option<Duration>,
    /// After this nothing is committed, statements of SQLite are stopped, and nobody waits for the answer any more
    /// (but for the end of a commit of SQLite, which others cannot stop).
    deadline: Option<Instant>,
}

impl Limits {
    const PATIENT: Limits = Limits { statement: Some(LONG_STATEMENT_MAX), deadline: None };

    /// The time until the deadline, at most this.
    fn time(&self, most: Duration) -> Duration {
        let left = |deadline: Instant| deadline.saturating_duration_since(clock::moment());
        self.deadline.map_or(most, |deadline| left(deadline).min(most))
    }

    fn set_local(&self) -> String {
        let set = |limit| format!("; SET LOCAL statement_timeout = {}", postgres::milliseconds(limit));
        self.statement.map(set).unwrap_or_default()
    }

    fn are_over(&self) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= clock::moment())
    }
}

/// A pooled connection that knows whether it may be used again.
pub struct Pooled {
    conn: Conn,
    link: Link,
    statements: observe::Statements,
    broken: bool,
    opened: Instant,
}

impl Deref for Pooled {
    type Target = Conn;
    fn deref(&self) -> &Conn {
        &self.conn
    }
}

impl DerefMut for Pooled {
    fn deref_mut(&mut self) -> &mut Conn {
        &mut self.conn
    }
}

struct Manager {
    driver: Driver,
    gate: Arc<Gate>,
    /// Longest statement on PostgreSQL, unless its transaction says otherwise.
    statement_timeout: Duration,
}

impl ManageConnection for Manager {
    type Connection = Pooled;
    type Error = ConnectionError;

    fn connect(&self) -> Result<Pooled, ConnectionError> {
        if !self.gate.has_its_file() {
            return Err(ConnectionError::BadConnection(FILE_REPLACED.to_owned()));
        }
        let mut conn = match &self.driver {
            Driver::Postgres { dsn } if self.gate.is_replica => {
                Conn::Postgres(postgres::open_replica(dsn.expose())?)
            }
            driver => open(driver)?,
        };
        if let Conn::Postgres(conn) = &mut conn {
            postgres::limit(conn, self.statement_timeout)
                .map_err(ConnectionError::CouldntSetupConfiguration)?;
        }
        // the first connection may have made the file
        self.gate.has_its_file();
        let link = self.gate.epochs.connected(stamp(&mut conn));
        let statements = observe::Statements::default();
        conn.set_instrumentation(statements.clone());
        Ok(Pooled { conn, link, statements, broken: false, opened: clock::moment() })
    }

    fn is_valid(&self, _: &mut Pooled) -> Result<(), ConnectionError> {
        Ok(())
    }

    fn has_broken(&self, pooled: &mut Pooled) -> bool {
        pooled.broken || pooled.link.epoch != self.gate.epochs.current()
    }
}

/// What decides whether a connection still leads to the right database.
struct Gate {
    epochs: Arc<Epochs>,
    /// Of SQLite; none for PostgreSQL and for databases in memory.
    file: Option<std::path::PathBuf>,
    is_replica: bool,
    signs: Signs,
}

impl Gate {
    /// Whether the file is still the one that was opened first.
    fn has_its_file(&self) -> bool {
        self.file.as_ref().is_none_or(|file| self.epochs.is_same_file(file))
    }
}

const FILE_REPLACED: &str = "the database file was removed or replaced under the server: stop it before a restore, and start it again";

/// A connection of its own, outside the pools (migrations, notifications): nothing limits its statements.
pub fn open(driver: &Driver) -> Result<Conn, ConnectionError> {
    match driver {
        Driver::Sqlite { path, synchronous } => sqlite::open(path, *synchronous).map(Conn::Sqlite),
        Driver::Postgres { dsn } => postgres::open(dsn.expose()).map(Conn::Postgres),
    }
}

/// What an operator is told about a database that [`open`] does not open; `Unavailable` when that may mend itself.
fn cannot_open(driver: &Driver, error: ConnectionError) -> Error {
    match driver {
        Driver::Sqlite { path, .. } => sqlite::cannot_open(path, error),
        Driver::Postgres { dsn } => postgres::cannot_open(dsn.expose(), error),
    }
}

/// The file of a SQLite database; none for PostgreSQL and for one in memory.
pub fn file_of(driver: &Driver) -> Option<std::path::PathBuf> {
    match driver {
        Driver::Sqlite { path, .. } => sqlite::file(path),
        Driver::Postgres { .. } => None,
    }
}

/// Another program's database, which is only read. Nothing limits its statements.
pub fn open_foreign(driver: &Driver) -> Result<Conn> {
    match driver {
        Driver::Sqlite { path, .. } => match sqlite::open_to_read(path)? {
            Some(conn) => Ok(Conn::Sqlite(conn)),
            None => Err(inspect::unusable(format!("there is no database {path}"))),
        },
        Driver::Postgres { .. } => open(driver).map_err(|error| cannot_open(driver, error)),
    }
}

/// Tells the operator which database that is, without anything secret, and whether it has connections enough.
pub fn describe(db: &Db) {
    match &db.driver {
        Driver::Sqlite { path, .. } => log::info!(driver = "sqlite", database = path.as_str(); "database"),
        Driver::Postgres { dsn } => {
            if let Err(error) = postgres::describe(dsn.expose(), &db.driver.target(), db.max_open_conns) {
                log::warn!(error:%; "the database was not asked for its limits");
            }
        }
    }
}

/// One transaction on a connection of its own, for a command that ends after it.
pub fn once<T>(driver: &Driver, work: impl FnOnce(&mut Conn) -> Result<T, DbError>) -> Result<T> {
    let mut conn = open(driver).map_err(|error| cannot_open(driver, error))?;
    conn.transaction(Limits::default(), work).map_err(|fault| match fault {
        DbError::Rejected(error) => error,
        fault => failed("the database refused", &fault),
    })
}

/// Like [`once`], for what an operator changes: put down to them in the audit trail.
pub fn once_as_operator<T>(
    driver: &Driver,
    operation: &'static str,
    work: impl FnOnce(&mut Conn) -> Result<T, DbError>,
) -> Result<T> {
    let scene = audit::Scene::of(audit::Actor::operator());
    once(driver, |conn| audit::witnessed(conn, operation, Some(&scene), work))
}

fn stamp(conn: &mut Conn) -> i64 {
    match conn {
        Conn::Postgres(conn) => postgres::stamp(conn),
        Conn::Sqlite(_) => 0,
    }
}

/// For work on a connection from [`open`].
pub fn link(conn: &mut Conn) -> Link {
    Link { epoch: 0, stamp: stamp(conn), connection: 0 }
}

/// Cheap to clone.
#[derive(Clone)]
struct Connections {
    pool: r2d2::Pool<Manager>,
    gate: Arc<Gate>,
}

#[derive(Debug, Default)]
struct LogErrors(logging::Folded);

impl r2d2::HandleError<ConnectionError> for LogErrors {
    fn handle_error(&self, error: ConnectionError) {
        self.0.say(|repeats| log::warn!(error:% = error, repeats; "database connection failed"));
    }
}

/// The database, as the rest of the server sees it. Cheap to clone.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    changes: Arc<Changes>,
    epochs: Arc<Epochs>,
    readers: Pool,
    /// SQLite has one writer; PostgreSQL writes through the same pool as it reads.
    writer: Option<Pool>,
    /// A standby of PostgreSQL.
    replica: Option<Replica>,
    gate: Arc<Gate>,
    postgres: bool,
    acquire_timeout: Duration,
    statement_timeout: Duration,
    runtime: tokio::runtime::Handle,
}

const SQLITE_READERS: u32 = 6;
/// Statements of work that nobody waits for.
const LONG_STATEMENT_MAX: Duration = Duration::from_secs(600);
/// A setting beyond this means "as long as it takes", and must not overflow an instant.
const TIMEOUT_MAX: Duration = Duration::from_secs(86_400);
/// A commit that was begun in time is waited for this much longer, so that few outcomes are unknown.
const COMMIT_GRACE: Duration = Duration::from_secs(1);
/// A restarted PostgreSQL leaves every idle connection dead; each is found out on its first use.
const TRIES: usize = 3;

impl Store {
    /// Opens no connection yet: the first use does, so that a server can start before its database.
    /// Must be called inside the runtime whose blocking threads it will use.
    pub fn new(db: &Db) -> Self {
        interrupt::watch_connections();
        let epochs = Arc::new(Epochs::default());
        let file = match &db.driver {
            Driver::Sqlite { path, .. } => sqlite::file(path),
            Driver::Postgres { .. } => None,
        };
        let gate =
            Arc::new(Gate { epochs: epochs.clone(), file, is_replica: false, signs: Signs::default() });
        let pool = |name, size| Pool::new(name, db, size, &gate);
        let replica = db.of_replica().map(|db| {
            // what it is connected to says nothing about the primary
            let gate = Gate { epochs: Arc::default(), file: None, is_replica: true, signs: Signs::default() };
            Replica::new(Pool::new("replica", &db, db.max_open_conns, &Arc::new(gate)))
        });
        let (readers, writer, postgres) = match &db.driver {
            Driver::Postgres { .. } => (pool("all", db.max_open_conns), None, true),
            // each connection to :memory: is a database of its own
            Driver::Sqlite { path, .. } if path == ":memory:" => (pool("all", 1), None, false),
            Driver::Sqlite { .. } => (pool("readers", SQLITE_READERS), Some(pool("writer", 1)), false),
        };
        Store(Arc::new(Inner {
            changes: Arc::default(),
            epochs,
            readers,
            writer,
            replica,
            gate,
            postgres,
            acquire_timeout: db.acquire_timeout.min(TIMEOUT_MAX),
            statement_timeout: db.statement_timeout.min(TIMEOUT_MAX),
            runtime: tokio::runtime::Handle::current(),
        }))
    }

    pub fn is_postgres(&self) -> bool {
        self.0.postgres
    }

    /// Whether what is stored lies on several nodes, one of which may be away.
    pub fn is_distributed(&self) -> bool {
        self.0.postgres && cluster::is_distributed()
    }

    /// What other servers are told.
    pub fn changes(&self) -> &Arc<Changes> {
        &self.0.changes
    }

    /// What tells memory that the database behind it is another one.
    pub fn epochs(&self) -> &Arc<Epochs> {
        &self.0.epochs
    }

    /// Runs statements that change nothing. `operation` names them in metrics and logs. May run more than once.
    pub async fn read<T: Send + 'static>(
        &self,
        operation: &'static str,
        work: impl Fn(&mut Conn) -> Result<T, DbError> + Send + 'static,
    ) -> Result<T> {
        self.read_as(pool::class_of_read(), operation, work).await
    }

    async fn read_as<T: Send + 'static>(
        &self,
        class: Class,
        operation: &'static str,
        work: impl Fn(&mut Conn) -> Result<T, DbError> + Send + 'static,
    ) -> Result<T> {
        let work = move |conn: &mut Conn, _, _| work(conn);
        self.run(&self.0.readers, class, operation, true, Limits::default(), work).await
    }

    /// For credentials and readiness: a connection is kept back for them.
    pub fn vital(&self) -> Kept<'_> {
        Kept(self, Class::Vital)
    }

    /// For what usage needs on its way in: connections are kept back for it.
    pub fn ingestion(&self) -> Kept<'_> {
        Kept(self, Class::Ingestion)
    }

    /// Like [`Store::read`], for a thread that may wait, without a limit of time. Not for a thread of the runtime.
    pub fn read_blocking<T>(
        &self,
        operation: &'static str,
        work: impl Fn(&mut Conn) -> Result<T, DbError>,
    ) -> Result<T> {
        let pool = &self.0.readers;
        let _permit = self.0.runtime.block_on(pool.permit(Class::Ingestion, self.0.acquire_timeout))?;
        attempt(&pool.connections, operation, true, Limits::default(), |conn, _| work(conn))
    }

    /// Like [`Store::read`], but all statements see the database at one instant.
    pub async fn read_snapshot<T: Send + 'static>(
        &self,
        operation: &'static str,
        work: impl Fn(&mut Conn) -> Result<T, DbError> + Send + 'static,
    ) -> Result<T> {
        let work = move |conn: &mut Conn, limits, _| conn.snapshot(limits, &work);
        self.run(&self.0.readers, pool::class_of_read(), operation, true, Limits::default(), work).await
    }

    /// What a caller reads of usage: a standby answers where there is one that has what the caller must see.
    /// `is_snapshot`: as in [`Store::read_snapshot`], else as in [`Store::read`].
    pub async fn view<T: Send + 'static>(
        &self,
        operation: &'static str,
        is_snapshot: bool,
        work: impl Fn(&mut Conn) -> Result<T, DbError> + Send + Sync + 'static,
    ) -> Result<T> {
        self.view_within(Limits::default(), is_snapshot, operation, work).await
    }

    async fn view_within<T: Send + 'static>(
        &self,
        limits: Limits,
        is_snapshot: bool,
        operation: &'static str,
        work: impl Fn(&mut Conn) -> Result<T, DbError> + Send + Sync + 'static,
    ) -> Result<T> {
        let (work, class) = (Arc::new(work), pool::class_of_read());
        let look = |limits| {
            let work = work.clone();
            move |conn: &mut Conn, _, _| match is_snapshot {
                true => conn.snapshot(limits, |conn| work(conn)),
                false => work(conn),
            }
        };
        if let Some((replica, position)) = self.replica_for_caller().await {
            match self.run(&replica.pool, class, operation, true, limits, look(limits)).await {
                Err(error) if error.code == Code::Unavailable => drop(replica.rest(&error.message)),
                answer => {
                    metrics::counter!("open_spanner_db_views_total", "from" => "replica").increment(1);
                    replica::shown(position);
                    return answer;
                }
            }
        }
        metrics::counter!("open_spanner_db_views_total", "from" => "primary").increment(1);
        self.run(&self.0.readers, class, operation, true, limits, look(limits)).await
    }

    /// The standby, and where it is, when it has what the caller must see.
    async fn replica_for_caller(&self) -> Option<(&Replica, Position)> {
        let replica = self.0.replica.as_ref()?;
        let wanted = match replica::wanted() {
            Some(wanted) => wanted,
            None => replica.of_primary(self).await.ok()?,
        };
        Some((replica, replica.reach(self, wanted).await?))
    }

    /// What whoever has just written must see from now on; none where there is no standby, or the primary is away.
    pub async fn written_at(&self) -> Option<Position> {
        self.0.replica.as_ref()?.of_primary(self).await.ok()
    }

    /// Runs one transaction: all of it is committed when this returns `Ok`, nothing of it otherwise (except that a
    /// connection lost or stuck during COMMIT leaves the outcome unknown). May run more than once before it commits.
    pub async fn write<T: Send + 'static>(
        &self,
        operation: &'static str,
        work: impl Fn(&mut Conn) -> Result<T, DbError> + Send + 'static,
    ) -> Result<T> {
        self.write_within(Class::Ordinary, Limits::default(), operation, move |conn, _| work(conn)).await
    }

    /// Runs what would be a write and takes all of it back: `work` sees what it would have done. A caller's read, as far
    /// as shares go; on SQLite the one writer's connection.
    pub async fn rehearse<T: Send + 'static>(
        &self,
        operation: &'static str,
        work: impl Fn(&mut Conn, Link) -> Result<T, DbError> + Send + 'static,
    ) -> Result<T> {
        let pool = self.0.writer.as_ref().unwrap_or(&self.0.readers);
        let work = move |conn: &mut Conn, limits, link| conn.rehearsal(limits, |conn| work(conn, link));
        self.run(pool, pool::class_of_read(), operation, true, Limits::default(), work).await
    }

    /// Like [`Store::write`] for usage on its way in, but answered by then, also when SQLite is the one that takes long;
    /// `work` is told where it runs.
    pub async fn write_before<T: Send + 'static>(
        &self,
        deadline: Instant,
        operation: &'static str,
        work: impl Fn(&mut Conn, Link) -> Result<T, DbError> + Send + 'static,
    ) -> Result<T> {
        let deadline = deadline.checked_sub(COMMIT_GRACE);
        self.write_within(Class::Ingestion, Limits { statement: None, deadline }, operation, work).await
    }

    /// For work that may take longer than callers wait, such as the pages of an export.
    pub fn long_running(&self) -> LongRunning<'_> {
        LongRunning(self)
    }

    /// How long a read or write takes to be answered at most, unless it is SQLite that works this long.
    pub fn answer_timeout(&self) -> Duration {
        self.0.acquire_timeout + self.0.statement_timeout + COMMIT_GRACE
    }

    async fn write_within<T: Send + 'static>(
        &self,
        class: Class,
        limits: Limits,
        operation: &'static str,
        work: impl Fn(&mut Conn, Link) -> Result<T, DbError> + Send + 'static,
    ) -> Result<T> {
        let pool = self.0.writer.as_ref().unwrap_or(&self.0.readers);
        let scene = audit::scene();
        let work = move |conn: &mut Conn, limits, link| {
            conn.transaction(limits, |conn: &mut Conn| {
                audit::witnessed(conn, operation, scene.as_deref(), |conn| work(conn, link))
            })
        };
        self.run(pool, class, operation, false, limits, work).await
    }

    async fn run<T: Send + 'static>(
        &self,
        pool: &Pool,
        class: Class,
        operation: &'static str,
        idempotent: bool,
        mut limits: Limits,
        work: impl Fn(&mut Conn, Limits, Link) -> Result<T, DbError> + Send + 'static,
    ) -> Result<T> {
        let waited = clock::moment();
        let permit = pool.permit(class, limits.time(self.0.acquire_timeout)).await?;
        metrics::histogram!("open_spanner_db_pool_wait_seconds").record(clock::since(waited).as_secs_f64());
        let connections = pool.connections.clone();
        let commits_here = !self.0.postgres && !idempotent && limits.deadline.is_none();
        let time = limits.time(limits.statement.unwrap_or(self.0.statement_timeout));
        limits.deadline = Some(clock::moment() + time);
        let request = logging::current_request();
        let task = blocking::begin_on(&self.0.runtime, move || {
            // kept by a thread that nobody waits for any more: there are never more of them than connections
            let _permit = permit;
            logging::resume_request(request, || {
                attempt(&connections, operation, idempotent, limits, |conn, link| work(conn, limits, link))
            })
        });
        let done = match limits.deadline.filter(|_| !commits_here) {
            Some(deadline) => tokio::time::timeout_at((deadline + COMMIT_GRACE).into(), task).await,
            None => Ok(task.await),
        };
        let outcome = match done {
            Ok(done) => done.unwrap_or_else(|panic| Err(Error::internal(panic))),
            Err(_) => {
                metrics::counter!("open_spanner_db_errors_total", "operation" => operation).increment(1);
                Err(DbError::DeadlineExceeded.into_error(operation))
            }
        };
        match outcome {
            // what was asked is the cause, as far as anybody can tell
            Err(error) if error.code == Code::Unavailable && class == Class::Query && limits.are_over() => {
                Err(Error::query_timeout())
            }
            outcome => outcome,
        }
    }
}

/// [`Store`] for work that has connections of its own.
pub struct Kept<'a>(&'a Store, Class);

impl Kept<'_> {
    /// [`Store::read`].
    pub async fn read<T: Send + 'static>(
        &self,
        operation: &'static str,
        work: impl Fn(&mut Conn) -> Result<T, DbError> + Send + 'static,
    ) -> Result<T> {
        self.0.read_as(self.1, operation, work).await
    }

    /// [`Store::write`].
    pub async fn write<T: Send + 'static>(
        &self,
        operation: &'static str,
        work: impl Fn(&mut Conn) -> Result<T, DbError> + Send + 'static,
    ) -> Result<T> {
        self.0.write_within(self.1, Limits::default(), operation, move |conn, _| work(conn)).await
    }
}

/// [`Store`] for background work with statements that take long.
pub struct LongRunning<'a>(&'a Store);

impl LongRunning<'_> {
    /// [`Store::view`], all of it at one instant.
    pub async fn view<T: Send + 'static>(
        &self,
        operation: &'static str,
        work: impl Fn(&mut Conn) -> Result<T, DbError> + Send + Sync + 'static,
    ) -> Result<T> {
        self.0.view_within(Limits::PATIENT, true, operation, work).await
    }

    /// [`Store::write`].
    pub async fn write<T: Send + 'static>(
        &self,
        operation: &'static str,
        work: impl Fn(&mut Conn) -> Result<T, DbError> + Send + 'static,
    ) -> Result<T> {
        self.0.write_within(Class::Ordinary, Limits::PATIENT, operation, move |conn, _| work(conn)).await
    }
}

impl Connections {
    /// A connection to the database of the current epoch.
    fn check_out(&self, operation: &'static str) -> Result<r2d2::PooledConnection<Manager>> {
        if !self.gate.has_its_file() {
            return Err(DbError::Replaced.into_error(operation));
        }
        for _ in 0..=self.pool.max_size() {
            let mut pooled =
                self.pool.get().map_err(|_| Error::unavailable("the database does not answer"))?;
            if pooled.link.epoch == self.gate.epochs.current() {
                return Ok(pooled);
            }
            pooled.broken = true;
        }
        Err(Error::unavailable("the database changes all the time"))
    }
}

/// Asks PostgreSQL what time it is, once in a while.
fn keep_time(pooled: &mut Pooled) {
    if let Conn::Postgres(conn) = &mut pooled.conn
        && clock::must_ask()
    {
        // a connection that is lost is noticed by the work that follows
        let _ = pooled.statements.unseen(|| postgres::ask_time(conn));
    }
}

fn attempt<T>(
    connections: &Connections,
    operation: &'static str,
    idempotent: bool,
    limits: Limits,
    work: impl Fn(&mut Conn, Link) -> Result<T, DbError>,
) -> Result<T> {
    let (began, mut tries) = (clock::moment(), 0);
    loop {
        tries += 1;
        let mut pooled = connections.check_out(operation)?;
        if !connections.gate.is_replica {
            keep_time(&mut pooled);
        }
        let started = clock::moment();
        // stays true when the work panics, so that a half-done transaction is never handed on
        pooled.broken = true;
        let link = pooled.link;
        let result = interrupt::until(limits.deadline, || work(&mut pooled.conn, link));
        metrics::histogram!("open_spanner_db_query_duration_seconds", "operation" => operation)
            .record(clock::since(started).as_secs_f64());
        metrics::counter!("open_spanner_db_statements_total", "operation" => operation)
            .increment(pooled.statements.take());
        let fault = match result {
            Ok(_) if !connections.gate.has_its_file() => DbError::Replaced,
            Ok(value) => {
                pooled.broken = false;
                if !idempotent {
                    connections.gate.signs.written();
                }
                return Ok(value);
            }
            Err(fault) => fault,
        };
        connections.gate.signs.note(fault.trouble());
        pooled.broken = fault.spoils_connection();
        if matches!(fault, DbError::AnotherDatabase) {
            connections.gate.epochs.end(link);
        }
        // nothing was done by a transaction that did not begin, nor by one that may not write
        let elsewhere = match fault.trouble() {
            Some(Trouble::Disconnected) => idempotent || matches!(fault, DbError::NotStarted(_)),
            // an older connection may have been made when it was so, a fresh one tells how it is
            Some(Trouble::ReadOnly) => pooled.opened < began,
            _ => false,
        };
        let again = elsewhere || fault.is_retryable();
        if again
            && !limits.are_over()
            && (tries < TRIES || (elsewhere && tries <= connections.pool.max_size() as usize))
        {
            continue;
        }
        if !matches!(fault, DbError::Rejected(_)) {
            metrics::counter!("open_spanner_db_errors_total", "operation" => operation).increment(1);
        }
        return Err(fault.into_error(operation));
    }
}
