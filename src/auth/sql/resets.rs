//! One-time tokens that set a password, known by their hash.

use diesel::prelude::*;

use crate::auth::token::TokenHash;
use crate::db::schema::{password_resets, users};
use crate::db::{Conn, DbError};
use crate::metering::time::Timestamp;

/// Makes a token for a user; those made before in the same way end. What anybody can have mailed ends nothing that an
/// operator handed over.
pub fn create(
    conn: &mut Conn,
    user_id: i64,
    hash: &TokenHash,
    expires_at: Timestamp,
    by_mail: bool,
) -> Result<(), DbError> {
    diesel::delete(password_resets::table)
        .filter(password_resets::user_id.eq(user_id).and(password_resets::by_mail.eq(by_mail)))
        .execute(conn)?;
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

/// Whose password a token sets, without using it up; nobody's when it is unknown, used or over.
pub fn user_of(conn: &mut Conn, hash: &TokenHash, now: Timestamp) -> Result<Option<i64>, DbError> {
    let found = password_resets::table
        .find(hash.as_slice())
        .filter(password_resets::expires_at.gt(now.0))
        .select(password_resets::user_id)
        .first(conn);
    Ok(found.optional()?)
}

/// Uses a token up, in one statement; answers whether it came by mail, nothing when it was used meanwhile.
pub fn use_up(conn: &mut Conn, hash: &TokenHash, now: Timestamp) -> Result<Option<bool>, DbError> {
    let by_mail = diesel::delete(password_resets::table.find(hash.as_slice()))
        .filter(password_resets::expires_at.gt(now.0))
        .returning(password_resets::by_mail)
        .get_result(conn);
    Ok(by_mail.optional()?)
}

/// No token sets the password of this user any more.
pub fn forget_all(conn: &mut Conn, user_id: i64) -> Result<(), DbError> {
    diesel::delete(password_resets::table).filter(password_resets::user_id.eq(user_id)).execute(conn)?;
    Ok(())
}

pub fn set_password(conn: &mut Conn, user_id: i64, password_hash: &str) -> Result<(), DbError> {
    diesel::update(users::table.find(user_id)).set(users::password_hash.eq(password_hash)).execute(conn)?;
    Ok(())
}

pub fn sweep(conn: &mut Conn, now: Timestamp) -> Result<usize, DbError> {
    Ok(diesel::delete(password_resets::table).filter(password_resets::expires_at.le(now.0)).execute(conn)?)
}
