//! Views of the dashboard under a short address: parameters that are too long to be handed on, kept under their hash.
//! The same parameters are kept once. What nobody looks at is forgotten.

use diesel::prelude::*;
use ring::digest;

use crate::both;
use crate::db::schema::stored_queries;
use crate::db::{Conn, DbError, Store, limits};
use crate::error::{Error, Result};
use crate::metering::time::{DAY, Timestamp};

/// How long a view is kept after somebody looked at it.
pub const UNUSED_MAX: i64 = 180 * DAY;

const HASH_BYTES: usize = 16;
/// What is kept at most: far more than a view of any use.
const QUERY_BYTES_MAX: usize = 64 * 1_024;

/// What parameters are called.
pub fn hash(query: &str) -> String {
    let digest = digest::digest(&digest::SHA256, query.as_bytes());
    digest.as_ref().iter().take(HASH_BYTES).map(|byte| format!("{byte:02x}")).collect()
}

/// Keeps parameters; answers their hash.
pub async fn keep(store: &Store, workspace_id: i64, query: &str) -> Result<String> {
    if query.is_empty() {
        return Err(Error::invalid("query is required"));
    }
    if query.len() > QUERY_BYTES_MAX {
        return Err(Error::invalid("query has too many filters to be kept"));
    }
    // an address that holds one is refused before anybody reads it; this is read without one
    if query.contains("%00") || query.contains('\0') {
        return Err(Error::invalid("NUL characters are not allowed"));
    }
    let (query, hash) = (query.to_owned(), hash(query));
    let work = move |conn: &mut Conn| put(conn, workspace_id, &query, Timestamp::now());
    store.write("stored_queries::put", work).await?;
    Ok(hash)
}

/// Keeps parameters under their hash.
fn put(conn: &mut Conn, workspace_id: i64, query: &str, now: Timestamp) -> Result<(), DbError> {
    let hash = hash(query);
    let known = stored_queries::table.find((workspace_id, &hash)).select(stored_queries::hash);
    let known: Option<String> = known.first(conn).optional()?;
    if known.is_some() {
        return Ok(());
    }
    limits::check(conn, limits::Kind::StoredQuery, workspace_id)?;
    let row = (
        stored_queries::workspace_id.eq(workspace_id),
        stored_queries::hash.eq(hash),
        stored_queries::query.eq(query),
        stored_queries::created_at.eq(now.0),
        stored_queries::used_at.eq(now.0),
    );
    // somebody else may keep the same at the same time
    let added: Result<usize, DbError> = both!(conn, c => {
        let insert = diesel::insert_into(stored_queries::table).values(row);
        insert.on_conflict_do_nothing().execute(c).map_err(DbError::from)
    });
    added.map(drop)
}

/// The parameters, and when somebody looked at them last, to the day.
pub fn find(conn: &mut Conn, workspace_id: i64, hash: &str) -> Result<Option<(String, Timestamp)>, DbError> {
    let row: Option<(String, i64)> = stored_queries::table
        .find((workspace_id, hash))
        .select((stored_queries::query, stored_queries::used_at))
        .first(conn)
        .optional()?;
    Ok(row.map(|(query, used_at)| (query, Timestamp(used_at))))
}

/// Remembers that somebody looked.
pub fn touch(conn: &mut Conn, workspace_id: i64, hash: &str, now: Timestamp) -> Result<(), DbError> {
    let row = stored_queries::table.find((workspace_id, hash));
    diesel::update(row).set(stored_queries::used_at.eq(now.0)).execute(conn)?;
    Ok(())
}

/// Forgets what nobody looked at since then.
pub fn expire(conn: &mut Conn, before: Timestamp) -> Result<usize, DbError> {
    Ok(diesel::delete(stored_queries::table.filter(stored_queries::used_at.lt(before.0))).execute(conn)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_tells_queries_apart() {
        assert_eq!(hash("meter=a").len(), 2 * HASH_BYTES);
        assert_eq!(hash("meter=a"), hash("meter=a"));
        assert_ne!(hash("meter=a"), hash("meter=b"));
    }
}
