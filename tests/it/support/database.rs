//! A fresh database for one test: a SQLite file or a database of a PostgreSQL cluster. Also the tests' own way in,
//! for what cannot be seen from outside: counts of rows, schemas, locks.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use diesel::connection::SimpleConnection;
use diesel::{
    Connection, PgConnection, QueryableByName, RunQueryDsl, SqliteConnection, sql_query, sql_types::Text,
};
use tempfile::TempDir;

use super::nodes::Nodes;
use super::postgres::Cluster;

#[derive(Clone)]
pub enum Database {
    Sqlite { path: PathBuf, _directory: Option<Arc<TempDir>> },
    Postgres { dsn: String, cluster: Arc<Home>, name: String },
}

/// The cluster of a database; a private one lives as long as somebody uses it.
pub enum Home {
    Shared(&'static Cluster),
    Private(Cluster),
    /// The coordinator of the shared Citus cluster.
    Coordinator(&'static Nodes),
    /// That of a test's own.
    Nodes(Box<Nodes>),
}

impl std::ops::Deref for Home {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        match self {
            Home::Shared(cluster) => cluster,
            Home::Private(cluster) => cluster,
            Home::Coordinator(nodes) => &nodes.coordinator,
            Home::Nodes(nodes) => &nodes.coordinator,
        }
    }
}

#[derive(QueryableByName)]
pub struct Line {
    #[diesel(sql_type = Text)]
    pub line: String,
}

impl Database {
    /// A file that does not exist yet, in a directory of its own.
    pub fn sqlite() -> Database {
        let directory = tempfile::Builder::new().prefix("open-spanner-").tempdir().expect("a directory");
        let path = directory.path().join("test.db");
        Database::Sqlite { path, _directory: Some(Arc::new(directory)) }
    }

    /// A SQLite file in a directory that the test keeps.
    pub fn sqlite_in(directory: &Path) -> Database {
        Database::Sqlite { path: directory.join("test.db"), _directory: None }
    }

    /// An empty database in the shared cluster.
    pub fn postgres() -> Database {
        Database::in_cluster(Home::Shared(Cluster::shared()))
    }

    /// Of a test that runs on both databases: with a Citus, over its nodes.
    pub fn of_both() -> Database {
        match Nodes::shared() {
            Some(nodes) => {
                let database = Database::of_nodes(Home::Coordinator(nodes), nodes.create_database());
                database.distribute().succeeded();
                database
            }
            None => Database::postgres(),
        }
    }

    /// An empty database over the nodes of a Citus cluster, where there is one; else says that a test was not run.
    pub fn over_nodes(test: &str) -> Option<Database> {
        let Some(nodes) = Nodes::shared() else {
            super::skip(test, &format!("{} names no PostgreSQL with Citus", super::nodes::VARIABLE));
            return None;
        };
        Some(Database::of_nodes(Home::Coordinator(nodes), nodes.create_database()))
    }

    /// The same in a cluster of its own, whose nodes may be stopped.
    pub fn over_own_nodes(test: &str) -> Option<Database> {
        let Some(nodes) = Nodes::private() else {
            super::skip(test, &format!("{} names no PostgreSQL with Citus", super::nodes::VARIABLE));
            return None;
        };
        let name = nodes.create_database();
        Some(Database::of_nodes(Home::Nodes(Box::new(nodes)), name))
    }

    fn of_nodes(home: Home, name: String) -> Database {
        Database::Postgres { dsn: home.dsn(&name), cluster: Arc::new(home), name }
    }

    /// Lays the tables out over the nodes; returns what was said about it.
    pub fn distribute(&self) -> super::program::Run {
        let directory = tempfile::tempdir().expect("a directory");
        let settings = self.settings();
        let settings: Vec<(&str, &str)> =
            settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
        super::program::run(&["migrate", "--distribute"], &settings, directory.path())
    }

    /// An empty database in a durable cluster of its own, which may be killed.
    pub fn durable_postgres() -> Database {
        Database::in_cluster(Home::Private(Cluster::private()))
    }

    /// An empty database in a cluster of its own, whose messages are in another language.
    pub fn postgres_speaking(language: &str) -> Database {
        Database::in_cluster(Home::Private(Cluster::speaking(language)))
    }

    /// A database of a cluster of its own, with its tables in a directory that the test keeps.
    pub fn postgres_in(directory: &Path) -> Database {
        let cluster = Cluster::private();
        let name = cluster.create_database_in(directory);
        Database::Postgres { dsn: cluster.dsn(&name), cluster: Arc::new(Home::Private(cluster)), name }
    }

    fn in_cluster(cluster: Home) -> Database {
        let name = cluster.create_database();
        Database::Postgres { dsn: cluster.dsn(&name), cluster: Arc::new(cluster), name }
    }

    /// The variables that point a server here.
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        match self {
            Database::Sqlite { path, .. } => vec![("OPEN_SPANNER_SQLITE_PATH", path.display().to_string())],
            Database::Postgres { dsn, .. } => vec![
                ("OPEN_SPANNER_DB_DRIVER", "postgres".to_string()),
                ("OPEN_SPANNER_POSTGRES_DSN", dsn.clone()),
            ],
        }
    }

    /// The rows of a query with one text column called `line`.
    pub fn lines(&self, sql: &str) -> Vec<String> {
        let rows: Result<Vec<Line>, _> = match self {
            Database::Sqlite { .. } => sql_query(sql).load(&mut self.sqlite_connection()),
            Database::Postgres { dsn, .. } => sql_query(sql).load(&mut connect(dsn)),
        };
        rows.unwrap_or_else(|error| panic!("{sql}: {error}")).into_iter().map(|row| row.line).collect()
    }

    /// Runs statements that return nothing, such as those that damage what is stored. Nothing checks references.
    pub fn execute(&self, sql: &str) {
        let done = match self {
            Database::Sqlite { .. } => {
                self.sqlite_connection().batch_execute(&format!("PRAGMA foreign_keys = OFF; {sql}"))
            }
            Database::Postgres { .. } => {
                let mut conn = self.postgres_connection();
                conn.batch_execute("SET session_replication_role = replica")
                    .and_then(|()| conn.batch_execute(sql))
            }
        };
        done.unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    /// Runs statements on a database that may not exist yet, as another program would.
    pub fn make(&self, sql: &str) {
        let done = match self {
            Database::Sqlite { .. } => self.sqlite_connection().batch_execute(sql),
            Database::Postgres { .. } => self.postgres_connection().batch_execute(sql),
        };
        done.unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    /// How many rows a table holds.
    pub fn count(&self, table: &str) -> u64 {
        let lines = self.lines(&format!("SELECT CAST(count(*) AS TEXT) AS line FROM {table}"));
        lines[0].parse().expect("count is a number")
    }

    /// Everything about the schema, in a text that can be compared.
    pub fn schema(&self) -> String {
        match self {
            Database::Sqlite { .. } => self
                .lines("SELECT coalesce(sql, name) AS line FROM sqlite_master ORDER BY type, name")
                .join("\n"),
            Database::Postgres { cluster, name, .. } => cluster.dump_schema(name),
        }
    }

    /// A connection of the test's own to the SQLite file, to hold locks with.
    pub fn sqlite_connection(&self) -> SqliteConnection {
        let Database::Sqlite { path, .. } = self else { panic!("not a SQLite database") };
        let mut connection =
            SqliteConnection::establish(&path.display().to_string()).expect("the file opens");
        connection.batch_execute("PRAGMA busy_timeout = 10000").expect("a valid pragma");
        connection
    }

    /// A connection of the test's own to the PostgreSQL database, to hold locks with.
    pub fn postgres_connection(&self) -> PgConnection {
        let Database::Postgres { dsn, .. } = self else { panic!("not a PostgreSQL database") };
        connect(dsn)
    }

    /// Makes each deletion of an event take a tenth of a millisecond or more, so that a prune can be met at work.
    pub fn slow_deletes(&self) {
        match self {
            Database::Sqlite { .. } => self.sqlite_connection().batch_execute(
                "CREATE TRIGGER slow BEFORE DELETE ON events BEGIN
                     SELECT count(*) FROM (WITH RECURSIVE n (i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 1000)
                                           SELECT i FROM n);
                 END",
            ),
            Database::Postgres { .. } => self.postgres_connection().batch_execute(
                "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
                     'BEGIN PERFORM pg_sleep(0.0001); RETURN OLD; END';
                 CREATE TRIGGER slow BEFORE DELETE ON events FOR EACH ROW EXECUTE FUNCTION slow()",
            ),
        }
        .expect("a trigger is made");
    }

    /// The name of the database in its cluster.
    pub fn name(&self) -> &str {
        let Database::Postgres { name, .. } = self else { panic!("not a PostgreSQL database") };
        name
    }

    /// What an operator has to call it to delete what it holds.
    pub fn called(&self) -> String {
        match self {
            Database::Sqlite { path, .. } => path.file_name().expect("a file").to_string_lossy().into_owned(),
            Database::Postgres { name, .. } => name.clone(),
        }
    }

    pub fn cluster(&self) -> &Cluster {
        let Database::Postgres { cluster, .. } = self else { panic!("not a PostgreSQL database") };
        cluster
    }
}

fn connect(dsn: &str) -> PgConnection {
    PgConnection::establish(dsn).expect("the cluster runs")
}
