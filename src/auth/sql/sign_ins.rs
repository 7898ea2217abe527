//! One row per sign-in, whatever tokens came of it: where it began, when it was last seen, when it ends for good.

use diesel::prelude::*;

use crate::auth::sql::sessions::{self, Login};
use crate::auth::sql::users;
use crate::db::schema::{sign_ins, workspaces};
use crate::db::{Conn, DbError};
use crate::metering::time::Timestamp;

/// Where a sign-in came from, in the words of whoever signed in.
#[derive(Clone, Debug, Default)]
pub struct Device {
    pub address: String,
    pub user_agent: String,
}

#[derive(Clone, Debug, Queryable)]
pub struct SignIn {
    pub login_id: String,
    pub workspace_name: String,
    pub address: String,
    pub user_agent: String,
    pub created_at: i64,
    pub seen_at: i64,
    pub ends_at: i64,
}

#[derive(Insertable)]
#[diesel(table_name = sign_ins, treat_none_as_default_value = false)]
struct Row<'a> {
    login_id: &'a str,
    user_id: i64,
    workspace_id: i64,
    address: &'a str,
    user_agent: &'a str,
    created_at: i64,
    seen_at: i64,
    ends_at: i64,
}

pub fn begin(
    conn: &mut Conn,
    login: &Login,
    device: &Device,
    now: Timestamp,
    ends_at: Timestamp,
) -> Result<(), DbError> {
    let row = Row {
        login_id: &login.login_id,
        user_id: login.user_id,
        workspace_id: login.workspace_id,
        address: &device.address,
        user_agent: &device.user_agent,
        created_at: now.0,
        seen_at: now.0,
        ends_at: ends_at.0,
    };
    diesel::insert_into(sign_ins::table).values(row).execute(conn)?;
    Ok(())
}

/// It goes on; answers when it ends for good, nothing when that is past.
pub fn go_on(conn: &mut Conn, login_id: &str, now: Timestamp) -> Result<Option<Timestamp>, DbError> {
    let ends_at = diesel::update(sign_ins::table.find(login_id))
        .filter(sign_ins::ends_at.gt(now.0))
        .set(sign_ins::seen_at.eq(now.0))
        .returning(sign_ins::ends_at)
        .get_result(conn)
        .optional()?;
    Ok(ends_at.map(Timestamp))
}

/// Those of a user, the one seen last first.
pub fn list(conn: &mut Conn, user_id: i64, now: Timestamp, limit: i64) -> Result<Vec<SignIn>, DbError> {
    let found = sign_ins::table
        .inner_join(workspaces::table.on(workspaces::id.eq(sign_ins::workspace_id)))
        .filter(sign_ins::user_id.eq(user_id))
        .filter(sign_ins::ends_at.gt(now.0))
        .order((sign_ins::seen_at.desc(), sign_ins::login_id))
        .limit(limit)
        .select((
            sign_ins::login_id,
            workspaces::name,
            sign_ins::address,
            sign_ins::user_agent,
            sign_ins::created_at,
            sign_ins::seen_at,
            sign_ins::ends_at,
        ))
        .load(conn)?;
    Ok(found)
}

/// Which sign-ins of a user are meant.
#[derive(Clone, Debug)]
pub enum Which {
    All,
    But(String),
    One(String),
}

/// Ends sign-ins of a user with all of their tokens; answers how many there were, and the hashes of the tokens. None begins
/// meanwhile: whoever begins one, or moves one to another workspace, takes the same lock.
pub fn end(conn: &mut Conn, user_id: i64, which: &Which) -> Result<(usize, Vec<Vec<u8>>), DbError> {
    users::lock(conn, user_id)?;
    let mut ending =
        sign_ins::table.filter(sign_ins::user_id.eq(user_id)).select(sign_ins::login_id).into_boxed();
    ending = match which {
        Which::All => ending,
        Which::But(id) => ending.filter(sign_ins::login_id.ne(id.clone())),
        Which::One(id) => ending.filter(sign_ins::login_id.eq(id.clone())),
    };
    let ids: Vec<String> = ending.load(conn)?;
    let mut tokens = Vec::new();
    for id in &ids {
        sessions::end_login(conn, id, &mut tokens)?;
    }
    Ok((ids.len(), tokens))
}

/// Forgets those that are over.
pub fn sweep(conn: &mut Conn, now: Timestamp) -> Result<usize, DbError> {
    Ok(diesel::delete(sign_ins::table).filter(sign_ins::ends_at.le(now.0)).execute(conn)?)
}
