//! Statements that are put together at run time: text and binds for either database, rows handed over one by one so
//! that an answer of any size needs little memory.

use diesel::connection::DefaultLoadingMode;
use diesel::deserialize::QueryableByName;
use diesel::pg::{Pg, PgRowByRowLoadingMode};
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Binary, Text};
use diesel::sqlite::Sqlite;

use crate::db::{Conn, DbError, interrupt};

/// Rows between two looks at the clock.
const CHECKED_EVERY: usize = 1_024;

enum Bind {
    Int(i64),
    Text(String),
    Bytes(Vec<u8>),
}

/// The binds of one statement; each method answers with the placeholder to write into the text.
pub struct Statement {
    pub is_postgres: bool,
    /// [`Conn::is_distributed`].
    pub is_distributed: bool,
    /// [`Conn::fence`].
    pub fence: &'static str,
    binds: Vec<Bind>,
}

impl Statement {
    pub fn new(conn: &Conn) -> Self {
        Statement {
            is_postgres: conn.is_postgres(),
            is_distributed: conn.is_distributed(),
            fence: conn.fence(),
            binds: Vec::new(),
        }
    }

    fn bind(&mut self, bind: Bind) -> String {
        self.binds.push(bind);
        // SQLite numbers $1 by first appearance, ?1 by what it says
        format!("{}{}", if self.is_postgres { '$' } else { '?' }, self.binds.len())
    }

    pub fn int(&mut self, value: i64) -> String {
        let placeholder = self.bind(Bind::Int(value));
        if self.is_postgres { format!("{placeholder}::bigint") } else { placeholder }
    }

    pub fn text(&mut self, value: impl Into<String>) -> String {
        self.bind(Bind::Text(value.into()))
    }

    pub fn bytes(&mut self, value: Vec<u8>) -> String {
        self.bind(Bind::Bytes(value))
    }

    /// Runs the statement and hands over each row as it arrives. `row` must not use the connection.
    pub fn each<T>(
        self,
        conn: &mut Conn,
        sql: &str,
        mut row: impl FnMut(T) -> Result<(), DbError>,
    ) -> Result<(), DbError>
    where
        T: QueryableByName<Pg> + QueryableByName<Sqlite> + 'static,
    {
        let mut rows = 0_usize;
        // what is done with rows takes time that no database counts
        let mut row = |found: T| {
            rows += 1;
            if rows.is_multiple_of(CHECKED_EVERY) {
                interrupt::check()?;
            }
            row(found)
        };
        match conn {
            Conn::Postgres(c) => {
                let mut query = sql_query(sql).into_boxed::<Pg>();
                for bind in self.binds {
                    query = match bind {
                        Bind::Int(value) => query.bind::<BigInt, _>(value),
                        Bind::Text(value) => query.bind::<Text, _>(value),
                        Bind::Bytes(value) => query.bind::<Binary, _>(value),
                    };
                }
                for found in query.load_iter::<T, PgRowByRowLoadingMode>(c)? {
                    row(found?)?;
                }
            }
            Conn::Sqlite(c) => {
                let mut query = sql_query(sql).into_boxed::<Sqlite>();
                for bind in self.binds {
                    query = match bind {
                        Bind::Int(value) => query.bind::<BigInt, _>(value),
                        Bind::Text(value) => query.bind::<Text, _>(value),
                        Bind::Bytes(value) => query.bind::<Binary, _>(value),
                    };
                }
                for found in query.load_iter::<T, DefaultLoadingMode>(c)? {
                    row(found?)?;
                }
            }
        }
        Ok(())
    }

    pub fn load<T>(self, conn: &mut Conn, sql: &str) -> Result<Vec<T>, DbError>
    where
        T: QueryableByName<Pg> + QueryableByName<Sqlite> + 'static,
    {
        let mut rows = Vec::new();
        self.each(conn, sql, |row| {
            rows.push(row);
            Ok(())
        })?;
        Ok(rows)
    }
}

/// `1, 2, 3`, for IN.
pub fn integers(ids: &[i64]) -> String {
    ids.iter().map(i64::to_string).collect::<Vec<_>>().join(", ")
}

/// How SQLite plans statements; PostgreSQL's plans depend on its statistics and are tested from outside.
#[cfg(test)]
pub mod plan {
    use super::*;
    use crate::config::{Driver, Synchronous};

    #[derive(QueryableByName)]
    struct Step {
        #[diesel(sql_type = Text)]
        detail: String,
    }

    /// A database with the schema and nothing in it. The directory goes when it is dropped.
    pub fn empty_database() -> (tempfile::TempDir, Conn) {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("plan.db").display().to_string();
        let driver = Driver::Sqlite { path, synchronous: Synchronous::Normal };
        crate::db::migrations::run(&driver).expect("migrated");
        (directory, crate::db::open(&driver).expect("opened"))
    }

    /// The steps of the plan, one per line.
    pub fn of(statement: Statement, conn: &mut Conn, sql: &str) -> String {
        let steps: Vec<Step> = statement.load(conn, &format!("EXPLAIN QUERY PLAN {sql}")).expect(sql);
        steps.into_iter().map(|step| step.detail + "\n").collect()
    }
}
