//! Browsers that somebody signed in with, known by the hash of their cookie.

use diesel::prelude::*;

use crate::auth::token::TokenHash;
use crate::db::schema::{known_devices, users};
use crate::db::{Conn, DbError};
use crate::metering::time::Timestamp;

/// Whether the user with this address has signed in with this browser.
pub fn is_known(conn: &mut Conn, email: &str, hash: &TokenHash) -> Result<bool, DbError> {
    let found: Option<i64> = known_devices::table
        .inner_join(users::table.on(users::id.eq(known_devices::user_id)))
        .filter(known_devices::token_hash.eq(hash.as_slice()).and(users::email.eq(email)))
        .select(known_devices::user_id)
        .first(conn)
        .optional()?;
    Ok(found.is_some())
}

/// Remembers a browser of a user; of those beyond `most`, the ones not seen for longest are forgotten.
pub fn remember(
    conn: &mut Conn,
    email: &str,
    hash: &TokenHash,
    now: Timestamp,
    most: i64,
) -> Result<(), DbError> {
    let user_id: i64 = users::table.filter(users::email.eq(email)).select(users::id).first(conn)?;
    let seen = diesel::update(known_devices::table.find(hash.as_slice()))
        .filter(known_devices::user_id.eq(user_id))
        .set(known_devices::seen_at.eq(now.0))
        .execute(conn)?;
    if seen > 0 {
        return Ok(());
    }
    diesel::insert_into(known_devices::table)
        .values((
            known_devices::token_hash.eq(hash.as_slice()),
            known_devices::user_id.eq(user_id),
            known_devices::seen_at.eq(now.0),
        ))
        .execute(conn)?;
    let old: Vec<Vec<u8>> = known_devices::table
        .filter(known_devices::user_id.eq(user_id))
        .order((known_devices::seen_at.desc(), known_devices::token_hash))
        .offset(most)
        .select(known_devices::token_hash)
        .load(conn)?;
    for hash in old {
        diesel::delete(known_devices::table.find(hash)).execute(conn)?;
    }
    Ok(())
}

/// Knows no browser of a user any more.
pub fn forget_all(conn: &mut Conn, user_id: i64) -> Result<(), DbError> {
    diesel::delete(known_devices::table).filter(known_devices::user_id.eq(user_id)).execute(conn)?;
    Ok(())
}

pub fn sweep(conn: &mut Conn, not_seen_since: Timestamp) -> Result<usize, DbError> {
    Ok(diesel::delete(known_devices::table)
        .filter(known_devices::seen_at.lt(not_seen_since.0))
        .execute(conn)?)
}
