//! A look at a database before anything is done with it: whose tables it holds, which migrations it has. It changes
//! nothing, makes no table and no file, so that what belongs to somebody else stays as it is.

use std::collections::BTreeSet;

use diesel::migration::{Migration, MigrationSource};
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::Text;

use super::migrations::{POSTGRES, SQLITE};
use super::{Conn, DbError, open, sqlite};
use crate::config::Driver;
use crate::error::{Code, Error, Result};

/// diesel's own table.
const MIGRATIONS: &str = "__diesel_schema_migrations";
/// Only the server that this one replaces has all of these; before its version 0.1.10 it had no workspaces.
const REFERENCE_TABLES: [&str; 3] = ["meters", "usage_events", "schema_migrations"];

/// One migration of this binary.
struct OwnMigration {
    version: String,
    name: String,
}

/// What an operator asks of a migration before it runs, and before it is taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Note {
    version: &'static str,
    /// What is gone when it is taken back; none where it can be applied again and nothing is missing.
    pub deletes: Option<&'static str>,
    /// Whom it keeps waiting.
    pub locks: &'static str,
    /// For how long, roughly.
    pub takes: &'static str,
}

const NOTES: &[Note] = &[Note {
    version: "0001",
    deletes: Some("every table with all that is in it"),
    locks: "nobody: it makes new tables only",
    takes: "under a second",
}];

/// Of a migration that nobody described.
const UNDESCRIBED: Note =
    Note { version: "", deletes: Some("what it made"), locks: "unknown", takes: "unknown" };

/// What a database holds.
#[derive(Debug, Default)]
pub struct Found {
    tables: BTreeSet<String>,
    /// Versions of the migrations it has, ours or not.
    applied: Vec<String>,
    is_postgres: bool,
}

#[derive(QueryableByName)]
struct Name {
    #[diesel(sql_type = Text)]
    name: String,
}

/// Looks without a lock, on a connection that may not write.
pub fn look(driver: &Driver) -> Result<Found> {
    let mut conn = match driver {
        Driver::Sqlite { path, .. } => match sqlite::open_to_look(path)? {
            Some(conn) => Conn::Sqlite(conn),
            None => return Ok(Found::default()),
        },
        Driver::Postgres { .. } => open(driver).map_err(|error| super::cannot_open(driver, error))?,
    };
    Found::of(&mut conn)
}

impl Found {
    pub fn of(conn: &mut Conn) -> Result<Found> {
        let is_postgres = conn.is_postgres();
        let text = match conn {
            Conn::Postgres(_) => {
                "SELECT c.relname::text AS name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                 WHERE n.nspname = current_schema() AND c.relkind IN ('r', 'p', 'v', 'm', 'f')"
            }
            Conn::Sqlite(_) => "SELECT name FROM sqlite_master WHERE type IN ('table', 'view')",
        };
        let tables: BTreeSet<String> = names(conn, text)?.into_iter().collect();
        let applied = if tables.contains(MIGRATIONS) {
            names(conn, "SELECT version AS name FROM __diesel_schema_migrations ORDER BY version")?
        } else {
            Vec::new()
        };
        Ok(Found { tables, applied, is_postgres })
    }

    /// Refuses what was made by another program or by a newer version of this one.
    pub fn refuse_foreign(&self, accept_newer: bool) -> Result<()> {
        let known = self.known()?;
        let is_ours = known.iter().any(|ours| self.applied.contains(&ours.version));
        if !is_ours && REFERENCE_TABLES.iter().all(|table| self.tables.contains(*table)) {
            return Err(unusable(
                "this database was made by the Go server that open-spanner replaces: bring its data into a new database \
                 with `open-spanner import reference` (nothing was changed here)",
            ));
        }
        if !is_ours && let Some(table) = created(self.is_postgres).find(|table| self.tables.contains(*table))
        {
            return Err(unusable(format!(
                "the database holds a table {table:?} of another program: give open-spanner a database or schema of \
                 its own"
            )));
        }
        let newest = known.last().map(|newest| newest.version.as_str()).unwrap_or_default();
        match self.applied.iter().find(|version| !known.iter().any(|ours| ours.version == **version)) {
            Some(version) if !is_ours => Err(unusable(format!(
                "the database holds migrations of another program ({version}): give open-spanner a database or schema \
                 of its own"
            ))),
            Some(version) if !accept_newer => Err(unusable(format!(
                "the schema of the database ({version}) is newer than this version of open-spanner ({newest}): run the \
                 version that made it, or set OPEN_SPANNER_NEWER_SCHEMA=accept if its notes allow that"
            ))),
            _ => Ok(()),
        }
    }

    /// Every migration of this binary, oldest first, and whether the database has it.
    pub fn steps(&self) -> Result<Vec<Step>> {
        let step = |known: OwnMigration| Step {
            applied: self.applied.contains(&known.version),
            note: NOTES.iter().copied().find(|note| note.version == known.version).unwrap_or(UNDESCRIBED),
            name: known.name,
        };
        Ok(self.known()?.into_iter().map(step).collect())
    }

    /// Migrations that this binary does not know.
    pub fn unknown(&self) -> Result<Vec<String>> {
        let known = self.known()?;
        let is_unknown = |version: &&String| !known.iter().any(|ours| ours.version == **version);
        Ok(self.applied.iter().filter(is_unknown).cloned().collect())
    }

    pub fn is_current(&self) -> Result<bool> {
        Ok(self.steps()?.iter().all(|step| step.applied))
    }

    pub fn is_empty(&self) -> bool {
        self.applied.is_empty()
    }

    fn known(&self) -> Result<Vec<OwnMigration>> {
        let mut all = match self.is_postgres {
            true => known(MigrationSource::<diesel::pg::Pg>::migrations(&POSTGRES)),
            false => known(MigrationSource::<diesel::sqlite::Sqlite>::migrations(&SQLITE)),
        }?;
        all.sort_by(|a, b| a.version.cmp(&b.version));
        Ok(all)
    }
}

/// One migration and whether the database has it.
#[derive(Debug, PartialEq, Eq)]
pub struct Step {
    pub name: String,
    pub applied: bool,
    pub note: Note,
}

/// The versions of all migrations of this binary.
pub fn versions(is_postgres: bool) -> Result<Vec<String>> {
    let found = Found { is_postgres, ..Found::default() };
    Ok(found.known()?.into_iter().map(|known| known.version).collect())
}

fn known<DB: diesel::backend::Backend>(
    migrations: diesel::migration::Result<Vec<Box<dyn Migration<DB>>>>,
) -> Result<Vec<OwnMigration>> {
    let named = |migration: Box<dyn Migration<DB>>| {
        let name = migration.name();
        OwnMigration { version: name.version().to_string(), name: name.to_string() }
    };
    Ok(migrations.map_err(Error::internal)?.into_iter().map(named).collect())
}

fn names(conn: &mut Conn, text: &str) -> Result<Vec<String>> {
    let rows: Result<Vec<Name>, _> = sql_query(text).load(conn);
    let cannot_read = |error| super::failed("cannot read the schema of the database", &DbError::from(error));
    Ok(rows.map_err(cannot_read)?.into_iter().map(|row| row.name).collect())
}

/// The tables that the first migration makes.
fn created(is_postgres: bool) -> impl Iterator<Item = &'static str> {
    let initial = match is_postgres {
        true => include_str!("../../migrations/postgres/0001_initial/up.sql"),
        false => include_str!("../../migrations/sqlite/0001_initial/up.sql"),
    };
    let tables = initial.lines().filter_map(|line| line.strip_prefix("CREATE TABLE "));
    tables.filter_map(|rest| rest.split([' ', '(']).next())
}

pub(super) fn unusable(message: impl Into<String>) -> Error {
    Error::new(Code::Unusable, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(tables: &[&str], applied: &[&str]) -> Found {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        Found { tables: owned(tables).into_iter().collect(), applied: owned(applied), is_postgres: true }
    }

    #[test]
    fn databases_of_others_are_told_from_ours() {
        let refusal = |found: Found| found.refuse_foreign(false).err().map(|error| error.message);
        let reference = ["auth_workspaces", "usage_events", "schema_migrations", "meters"];
        let marked = ["usage_events", "schema_migrations", "meters", MIGRATIONS];
        for (found, words) in [
            (found(&[], &[]), None),
            (found(&["spatial_ref_sys"], &[]), None),
            (found(&["events", MIGRATIONS], &["0001"]), None),
            (found(&reference, &[]), Some("import reference")),
            (found(&marked, &[]), Some("import reference")),
            (found(&["usage_events", "schema_migrations", "meters"], &[]), Some("import reference")),
            (found(&["users"], &[]), Some("\"users\"")),
            (found(&[MIGRATIONS], &["20240101000000"]), Some("another program")),
            (found(&["events", MIGRATIONS], &["0001", "9999"]), Some("newer")),
        ] {
            let shown = format!("{found:?}");
            match (refusal(found), words) {
                (None, None) => {}
                (Some(message), Some(words)) if message.contains(words) => {}
                (refusal, _) => panic!("{shown}: {refusal:?}"),
            }
        }
        assert!(found(&["events", MIGRATIONS], &["0001", "9999"]).refuse_foreign(true).is_ok());
    }

    #[test]
    fn every_migration_is_described() {
        let described: Vec<&str> = NOTES.iter().map(|note| note.version).collect();
        assert_eq!(
            versions(true).expect("valid"),
            described,
            "what it locks, how long it takes, what is lost with it"
        );
    }

    #[test]
    fn both_databases_have_the_same_migrations() {
        assert_eq!(versions(true).expect("valid"), versions(false).expect("valid"));
        let tables = |is_postgres| created(is_postgres).filter(|name| !name.ends_with("_keys")).count();
        assert!(tables(true) > 10 && tables(false) > 10);
    }
}
