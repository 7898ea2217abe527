//! Ids of subjects. The id is computed from the workspace and the name, so that every server, and every copy of the
//! database, comes to the same one without asking: what a failover or a restore loses can be written down again, and
//! no id ever means somebody else. Of two names that come to the same number the later one takes the next.

use std::collections::HashSet;

use diesel::sql_types::{Array, BigInt, Text};
use diesel::{OptionalExtension, PgConnection, RunQueryDsl, SqliteConnection};

use crate::db::prepared::prepared;
use crate::db::{Conn, DbError};
use crate::error::Error;
use crate::metering::event::hash128;

/// Workspace and name.
pub type SubjectName = (i64, String);
/// With its id.
type Found = (SubjectName, i64);

prepared!(
    AddMany for PgConnection,
    (ids: Array<BigInt> = Vec<i64>, workspace_ids: Array<BigInt> = Vec<i64>, names: Array<Text> = Vec<&'a str>)
        -> (BigInt, Text, BigInt),
    "INSERT INTO subjects (id, workspace_id, name) SELECT * FROM unnest(?, ?, ?) ON CONFLICT DO NOTHING
     RETURNING workspace_id, name, id"
);
prepared!(
    FindMany for PgConnection,
    (workspace_ids: Array<BigInt> = Vec<i64>, names: Array<Text> = Vec<&'a str>) -> (BigInt, Text, BigInt),
    "SELECT s.workspace_id, s.name, s.id FROM unnest(?, ?) AS wanted (workspace_id, name)
     JOIN subjects s ON s.workspace_id = wanted.workspace_id AND s.name = wanted.name COLLATE \"C\""
);
prepared!(
    FindOne for SqliteConnection,
    (workspace_id: BigInt = i64, name: Text = String) -> BigInt,
    "SELECT id FROM subjects WHERE workspace_id = ? AND name = ?"
);
prepared!(
    AddOne for SqliteConnection,
    (id: BigInt = i64, workspace_id: BigInt = i64, name: Text = String),
    "INSERT INTO subjects (id, workspace_id, name) VALUES (?, ?, ?) ON CONFLICT DO NOTHING"
);

/// With 64 bits a second number is never needed; a table that needs more than this is damaged.
const NUMBERS_MAX: i64 = 64;

/// Positive, because other numbers stand for no subject.
fn number((workspace_id, name): &SubjectName, hash: Hash) -> i64 {
    positive(hash(*workspace_id, name))
}

fn positive(hash: i64) -> i64 {
    (hash & i64::MAX).max(1)
}

type Hash = fn(i64, &str) -> i64;

fn hash64(workspace_id: i64, name: &str) -> i64 {
    let hash = hash128(&[&workspace_id.to_be_bytes(), name.as_bytes()]);
    i64::from_be_bytes([0, 1, 2, 3, 4, 5, 6, 7].map(|at| hash[at]))
}

/// The number that is tried when this many are taken by other names.
fn nth(first: i64, n: i64) -> i64 {
    // wraps from the greatest to 1
    first.checked_add(n).unwrap_or_else(|| n - (i64::MAX - first))
}

/// The id that a subject has, unless another name came to the same one before.
pub fn usual(workspace_id: i64, name: &str) -> i64 {
    positive(hash64(workspace_id, name))
}

/// The ids of subjects, with new ones for those that have none, in the caller's transaction.
pub fn find_or_add(conn: &mut Conn, wanted: &[SubjectName]) -> Result<Vec<Found>, DbError> {
    find_or_add_by(conn, wanted, hash64)
}

fn find_or_add_by(conn: &mut Conn, wanted: &[SubjectName], hash: Hash) -> Result<Vec<Found>, DbError> {
    match conn {
        Conn::Postgres(c) => find_or_add_many(c, wanted, hash),
        Conn::Sqlite(c) => {
            wanted.iter().map(|one| Ok((one.clone(), find_or_add_one(c, one, hash)?))).collect()
        }
    }
}

/// Others may add the same names meanwhile: a row that is in the way is waited for and then looked up. What is added says so
/// itself, so that a thousand new subjects are two statements.
fn find_or_add_many(
    conn: &mut PgConnection,
    wanted: &[SubjectName],
    hash: Hash,
) -> Result<Vec<Found>, DbError> {
    let mut missing: Vec<&SubjectName> = wanted.iter().collect();
    let mut all = Vec::with_capacity(wanted.len());
    for n in 0..NUMBERS_MAX {
        let found = find_many(conn, &missing)?;
        take(&mut missing, found, &mut all);
        if missing.is_empty() {
            return Ok(all);
        }
        let added = add_many(conn, &missing, |name| nth(number(name, hash), n))?;
        take(&mut missing, added, &mut all);
        if missing.is_empty() {
            return Ok(all);
        }
    }
    Err(Error::internal("a subject finds no number").into())
}

/// What is found is missing no longer.
fn take(missing: &mut Vec<&SubjectName>, found: Vec<Found>, all: &mut Vec<Found>) {
    let known: HashSet<&SubjectName> = found.iter().map(|(name, _)| name).collect();
    missing.retain(|name| !known.contains(*name));
    all.extend(found);
}

fn find_many(conn: &mut PgConnection, names: &[&SubjectName]) -> Result<Vec<Found>, DbError> {
    let workspace_ids = &names.iter().map(|(workspace_id, _)| *workspace_id).collect();
    let names = &names.iter().map(|(_, name)| name.as_str()).collect();
    let rows: Vec<(i64, String, i64)> = FindMany { workspace_ids, names }.load(conn)?;
    Ok(rows.into_iter().map(found_of).collect())
}

fn found_of((workspace_id, name, id): (i64, String, i64)) -> Found {
    ((workspace_id, name), id)
}

/// In the order of the ids, so that two writers never wait for each other in a circle. Returns those that are new.
fn add_many(
    conn: &mut PgConnection,
    names: &[&SubjectName],
    id_of: impl Fn(&SubjectName) -> i64,
) -> Result<Vec<Found>, DbError> {
    let mut rows: Vec<(i64, &SubjectName)> = names.iter().map(|name| (id_of(name), *name)).collect();
    rows.sort_unstable();
    let added: Vec<(i64, String, i64)> = AddMany {
        ids: &rows.iter().map(|(id, _)| *id).collect(),
        workspace_ids: &rows.iter().map(|(_, (workspace_id, _))| *workspace_id).collect(),
        names: &rows.iter().map(|(_, (_, name))| name.as_str()).collect(),
    }
    .load(conn)?;
    Ok(added.into_iter().map(found_of).collect())
}

fn find_or_add_one(conn: &mut SqliteConnection, wanted: &SubjectName, hash: Hash) -> Result<i64, DbError> {
    let (workspace_id, name) = wanted;
    if let Some(id) = (FindOne { workspace_id, name }).get_result(conn).optional()? {
        return Ok(id);
    }
    let first = number(wanted, hash);
    for n in 0..NUMBERS_MAX {
        let id = nth(first, n);
        if (AddOne { id: &id, workspace_id, name }).execute(conn)? == 1 {
            return Ok(id);
        }
    }
    Err(Error::internal("a subject finds no number").into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use diesel::connection::SimpleConnection;

    fn name(name: &str) -> SubjectName {
        (7, name.to_owned())
    }

    #[test]
    fn ids_are_positive_and_the_same_everywhere() {
        assert_eq!(number(&name("a"), hash64), number(&name("a"), hash64));
        assert_ne!(number(&name("a"), hash64), number(&(8, "a".to_owned()), hash64));
        for n in 0..1_000 {
            assert!(number(&name(&n.to_string()), hash64) > 0);
        }
        assert_eq!(number(&name("a"), |_, _| i64::MIN), 1);
        assert_eq!(nth(i64::MAX, 1), 1);
        assert_eq!(nth(i64::MAX - 1, 1), i64::MAX);
    }

    #[test]
    fn names_of_one_number_take_the_next() {
        let mut conn = Conn::Sqlite(diesel::Connection::establish(":memory:").expect("memory"));
        let table = "CREATE TABLE subjects (id INTEGER PRIMARY KEY, workspace_id INTEGER, name TEXT)";
        conn.batch_execute(table).expect("valid");
        let mut ids = |names: &[&str]| {
            let names: Vec<SubjectName> = names.iter().map(|text| name(text)).collect();
            let found = find_or_add_by(&mut conn, &names, |_, _| i64::MAX - 1).expect("added");
            found.into_iter().map(|(_, id)| id).collect::<Vec<_>>()
        };
        assert_eq!(ids(&["a", "b", "a"]), [i64::MAX - 1, i64::MAX, i64::MAX - 1]);
        assert_eq!(ids(&["c", "b"]), [1, i64::MAX]);
    }
}
