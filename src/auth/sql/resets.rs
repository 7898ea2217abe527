//! One-time tokens that set a password, known by their hash.

use diesel::prelude::*;

use crate::auth::token::TokenHash;
use crate::db::schema::{password_resets, users};
use crate::db::{Conn, DbError};
use crate::metering::time::Timestamp;

/// Makes a token for a user; those made before end.
pub fn create(
    conn: &mut Conn,
    user_id: i64,
    hash: &TokenHash,
    expires_at: Timestamp,
    by_mail: bool,
) -> Result<(), DbError> {
    diesel::delete(password_resets::table).filter(password_resets::user_id.eq(user_id)).execute(conn)?;
    diesel::insert_into(password_resets::table)
        .values((
            password_resets::token_hash.eq(hash.as_slice()),
            password_resets::user_id.eq(user_id),
            password_resets::expires_at.eq(expires_at.0),
            password_resets::by_mail.eq(by_mail),
        ))
        .execute(conn)?;
    Ok(())
}

/// Whether a token is good, without using it up.
pub fn is_open(conn: &mut Conn, hash: &TokenHash, now: Timestamp) -> Result<bool, DbError> {
    let found: Option<i64> = password_resets::table
        .find(hash.as_slice())
        .filter(password_resets::expires_at.gt(now.0))
        .select(password_resets::user_id)
        .first(conn)
        .optional()?;
    Ok(found.is_some())
}

/// Uses a token up, in one statement; answers whose it was, and whether it came by mail.
pub fn use_up(conn: &mut Conn, hash: &TokenHash, now: Timestamp) -> Result<Option<(i64, bool)>, DbError> {
    let user = diesel::delete(password_resets::table.find(hash.as_slice()))
        .filter(password_resets::expires_at.gt(now.0))
        .returning((password_resets::user_id, password_resets::by_mail))
        .get_result(conn)
        .optional()?;
    Ok(user)
}

pub fn set_password(conn: &mut Conn, user_id: i64, password_hash: &str) -> Result<(), DbError> {
    diesel::update(users::table.find(user_id)).set(users::password_hash.eq(password_hash)).execute(conn)?;
    Ok(())
}

pub fn sweep(conn: &mut Conn, now: Timestamp) -> Result<usize, DbError> {
    Ok(diesel::delete(password_resets::table).filter(password_resets::expires_at.le(now.0)).execute(conn)?)
}
