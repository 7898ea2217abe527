//! The database, as the rest of the server sees it: reads, snapshots and writes by operation, each on a connection of the
//! right pool, within its limits of time, on a thread that may wait. No statement and no rule of a domain.

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::changes::Changes;
use super::connection::{Gate, attempt};
use super::identity::{Epochs, Link};
use super::pool::{self, Class, Pool};
use super::readiness::Signs;
use super::replica::{self, Position, Replica};
use super::transaction::Limits;
use super::{Conn, DbError, audit, cluster, file_of, interrupt, is_slow};
use crate::blocking;
use crate::clock;
use crate::config::{Db, Driver};
use crate::error::{Code, Error, Result};
use crate::logging;
use crate::logging::spans::Span;

/// The database, as the rest of the server sees it. Cheap to clone.
#[derive(Clone)]
pub struct Store(pub(super) Arc<Inner>);

pub(super) struct Inner {
    changes: Arc<Changes>,
    epochs: Arc<Epochs>,
    readers: Pool,
    /// SQLite has one writer; PostgreSQL writes through the same pool as it reads.
    writer: Option<Pool>,
    /// A standby of PostgreSQL.
    replica: Option<Replica>,
    pub(super) gate: Arc<Gate>,
    postgres: bool,
    acquire_timeout: Duration,
    statement_timeout: Duration,
    runtime: tokio::runtime::Handle,
}

const SQLITE_READERS: u32 = 6;
/// A setting beyond this means "as long as it takes", and must not overflow an instant.
const TIMEOUT_MAX: Duration = Duration::from_secs(86_400);
/// A commit that was begun in time is waited for this much longer, so that few outcomes are unknown.
const COMMIT_GRACE: Duration = Duration::from_secs(1);

impl Store {
    /// Opens no connection yet: the first use does, so that a server can start before its database.
    /// Must be called inside the runtime whose blocking threads it will use.
    pub fn new(db: &Db) -> Self {
        interrupt::watch_connections();
        let epochs = Arc::new(Epochs::default());
        let file = file_of(&db.driver);
        let slow_after = db.slow_after;
        let (signs, is_replica) = (Signs::default(), false);
        let gate = Arc::new(Gate { epochs: epochs.clone(), file, is_replica, signs, slow_after });
        let pool = |name, size| Pool::new(name, db, size, &gate);
        let replica = db.of_replica().map(|db| {
            // what it is connected to says nothing about the primary
            let (signs, is_replica) = (Signs::default(), true);
            let gate = Gate { epochs: Arc::default(), file: None, is_replica, signs, slow_after };
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

    /// Gives back what SQLite keeps in memory for reads that may not come. Blocks for some milliseconds.
    pub fn release_memory(&self) {
        for pool in self.0.writer.iter().chain([&self.0.readers]).filter(|_| !self.0.postgres) {
            pool.connections.release_memory();
        }
    }

    pub fn is_postgres(&self) -> bool {
        self.0.postgres
    }

    /// Whether what is stored lies on several nodes, one of which may be away.
    pub fn is_distributed(&self) -> bool {
        self.0.postgres && cluster::is_distributed()
    }

    /// Whether other servers work with the database too, as of some seconds ago.
    pub fn has_others(&self) -> bool {
        self.0.gate.signs.have_others()
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
            let look = look(limits);
            let look = move |conn: &mut Conn, limits, link| {
                replica::ensure_at(conn, position)?;
                look(conn, limits, link)
            };
            match self.run(&replica.pool, class, operation, true, limits, look).await {
                // what the standby alone cannot do, such as read a page or a table, is no caller's trouble
                Err(error) if matches!(error.code, Code::Unavailable | Code::Internal) => {
                    replica.rest(&error.message);
                }
                answer => {
                    if answer.as_ref().is_err_and(is_slow) {
                        replica.doubt();
                    }
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
            Some(wanted) if !replica.can_have_been_seen(self, wanted).await => return None,
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

    pub(super) async fn run<T: Send + 'static>(
        &self,
        pool: &Pool,
        class: Class,
        operation: &'static str,
        idempotent: bool,
        limits: Limits,
        work: impl Fn(&mut Conn, Limits, Link) -> Result<T, DbError> + Send + 'static,
    ) -> Result<T> {
        let work: Work = Box::new(move |conn, limits, link| Ok(Box::new(work(conn, limits, link)?)));
        let done = self.run_work(pool, class, operation, idempotent, limits, work).await?;
        let done = done.downcast().map_err(|_| Error::internal("work with another result"))?;
        Ok(*done)
    }

    /// Not generic: a copy for each kind of work, with a task of the runtime for each, was a tenth of the program.
    async fn run_work(
        &self,
        pool: &Pool,
        class: Class,
        operation: &'static str,
        idempotent: bool,
        mut limits: Limits,
        work: Work,
    ) -> Result<Outcome> {
        let waited = clock::moment();
        let permit = pool.permit(class, limits.time(self.0.acquire_timeout)).await?;
        metrics::histogram!("open_spanner_db_pool_wait_seconds").record(clock::since(waited).as_secs_f64());
        let mut span = Span::of_database(operation, self.0.postgres);
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
                let fault = DbError::DeadlineExceeded;
                let kind = fault.kind();
                metrics::counter!("open_spanner_db_errors_total", "operation" => operation, "kind" => kind)
                    .increment(1);
                Err(fault.into_error(operation))
            }
        };
        if let Err(error) = &outcome {
            span.note(|notes| notes.failed(error.code.as_str()));
        }
        match outcome {
            // what was asked is the cause, as far as anybody can tell
            Err(error) if error.code == Code::Unavailable && class == Class::Query && limits.are_over() => {
                Err(Error::query_timeout())
            }
            outcome => outcome,
        }
    }
}

/// What a unit of work comes to, whatever that is.
type Outcome = Box<dyn Any + Send>;
type Work = Box<dyn Fn(&mut Conn, Limits, Link) -> Result<Outcome, DbError> + Send>;

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
