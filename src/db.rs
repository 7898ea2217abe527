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
mod connection;
mod error;
pub mod identity;
pub mod inspect;
pub mod interrupt;
pub mod leases;
pub mod limits;
pub mod memory;
pub mod migrations;
mod observe;
pub mod partial;
pub mod placement;
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
mod store;
mod transaction;
pub mod volume;
pub mod wal;

use diesel::result::ConnectionError;
use diesel::{PgConnection, SqliteConnection};

use crate::config::{Db, Driver};
use crate::error::{Error, Result};
pub use error::{DbError, Trouble, is_away, is_slow};
use error::{failed, failed_by};
use identity::{Installation, Link};
pub use migrations::Wanted;
pub use postgres::call_process;
pub use store::Store;
use transaction::Limits;

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
}

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

/// Tells the operator which database that is, without anything secret, whether it has connections enough, and what it
/// holds.
pub fn describe(db: &Db) {
    match &db.driver {
        Driver::Sqlite { path, .. } => log::info!(driver = "sqlite", database = path.as_str(); "database"),
        Driver::Postgres { dsn } => {
            if let Err(error) = postgres::describe(dsn.expose(), db) {
                log::warn!(error:%; "the database was not asked for its limits");
            }
        }
    }
    let asked = open(&db.driver).map_err(|error| cannot_open(&db.driver, error)).and_then(|mut conn| {
        identity::installation(&mut conn).map_err(|fault| failed("cannot read the installation", &fault))
    });
    match asked {
        Ok(Installation { id, epoch, schema }) => {
            log::info!(id = id.as_str(), epoch, schema = schema.as_str(); "installation");
        }
        Err(error) => {
            log::warn!(error = error.message.as_str(); "the database was not asked which one it is");
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
