//! Leases: work that one process at a time does, over several transactions. A lease is a row with an end; its holder
//! moves the end on inside the transactions it does the work in, so that one who was too slow finds out before it
//! changes anything more.

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Text};

use crate::db::schema::leases;
use crate::db::{Conn, DbError};
use crate::metering::time::{SECOND, Timestamp};

/// How long a holder may be silent before somebody else may go on.
const LIFETIME: i64 = 60 * SECOND;
/// Nobody can have taken a lease that ends later than this after its lifetime, unless the clock was ahead.
const SKEW: i64 = 5 * SECOND;

/// Takes a lease that is free, has expired, was taken in the future or is the holder's already; false when somebody else
/// has it.
pub fn take(conn: &mut Conn, name: &str, holder: &str) -> Result<bool, DbError> {
    let now = Timestamp::now();
    let text = "INSERT INTO leases (name, holder, expires_at) VALUES ($1, $2, $3)
                ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, expires_at = excluded.expires_at
                WHERE leases.expires_at <= $4 OR leases.expires_at > $5 OR leases.holder = excluded.holder";
    let taken = diesel::sql_query(text)
        .bind::<Text, _>(name)
        .bind::<Text, _>(holder)
        .bind::<BigInt, _>(now.plus(LIFETIME).0)
        .bind::<BigInt, _>(now.0)
        .bind::<BigInt, _>(now.plus(LIFETIME + SKEW).0)
        .execute(conn)?;
    Ok(taken == 1)
}

/// Moves the end on; false when the lease was lost.
pub fn renew(conn: &mut Conn, name: &str, holder: &str) -> Result<bool, DbError> {
    let expires_at = Timestamp::now().plus(LIFETIME).0;
    let renewed = diesel::update(leases::table.find(name).filter(leases::holder.eq(holder)))
        .set(leases::expires_at.eq(expires_at))
        .execute(conn)?;
    Ok(renewed == 1)
}

/// Gives a lease back before its end.
pub fn release(conn: &mut Conn, name: &str, holder: &str) -> Result<(), DbError> {
    diesel::delete(leases::table.find(name).filter(leases::holder.eq(holder))).execute(conn)?;
    Ok(())
}
