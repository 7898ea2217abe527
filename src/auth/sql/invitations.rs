//! Invitations, known by the hash of their token. Those of a workspace, but for the look-up by token.

use diesel::prelude::*;

use crate::auth::permission::Role;
use crate::auth::token::TokenHash;
use crate::chance;
use crate::db::identity::new_id;
use crate::db::schema::{invitations, memberships, users, workspaces};
use crate::db::{Conn, DbError, limits};
use crate::error::Error;
use crate::metering::time::Timestamp;

#[derive(Clone, Debug, Queryable)]
pub struct Invitation {
    pub id: i64,
    pub public_id: String,
    pub workspace_id: i64,
    pub workspace_public_id: String,
    pub workspace_name: String,
    pub email: String,
    #[diesel(deserialize_as = String)]
    pub role: Role,
    pub invited_by: String,
    pub expires_at: i64,
    pub accepted_at: Option<i64>,
    pub revoked_at: Option<i64>,
    pub created_at: i64,
}

type Columns = (
    invitations::id,
    invitations::public_id,
    invitations::workspace_id,
    workspaces::public_id,
    workspaces::name,
    invitations::email,
    invitations::role,
    users::email,
    invitations::expires_at,
    invitations::accepted_at,
    invitations::revoked_at,
    invitations::created_at,
);
const COLUMNS: Columns = (
    invitations::id,
    invitations::public_id,
    invitations::workspace_id,
    workspaces::public_id,
    workspaces::name,
    invitations::email,
    invitations::role,
    users::email,
    invitations::expires_at,
    invitations::accepted_at,
    invitations::revoked_at,
    invitations::created_at,
);

/// An invitation about to be made.
#[derive(Clone, Debug)]
pub struct NewInvitation {
    pub workspace_id: i64,
    pub invited_by: i64,
    pub email: String,
    pub role: Role,
    pub token_hash: TokenHash,
    pub expires_at: Timestamp,
}

#[derive(Insertable)]
#[diesel(table_name = invitations, treat_none_as_default_value = false)]
struct Row<'a> {
    id: i64,
    public_id: String,
    workspace_id: i64,
    email: &'a str,
    role: &'static str,
    token_hash: &'a [u8],
    invited_by: i64,
    expires_at: i64,
    created_at: i64,
}

/// The newest of a workspace, newest first, whatever became of them.
pub fn list(conn: &mut Conn, workspace_id: i64, limit: i64) -> Result<Vec<Invitation>, DbError> {
    let found = invitations::table
        .inner_join(workspaces::table.on(workspaces::id.eq(invitations::workspace_id)))
        .inner_join(users::table.on(users::id.eq(invitations::invited_by)))
        .filter(invitations::workspace_id.eq(workspace_id))
        .order((invitations::created_at.desc(), invitations::id.desc()))
        .limit(limit)
        .select(COLUMNS)
        .load(conn)?;
    Ok(found)
}

pub fn by_token(conn: &mut Conn, hash: &TokenHash) -> Result<Option<Invitation>, DbError> {
    let found = invitations::table
        .inner_join(workspaces::table.on(workspaces::id.eq(invitations::workspace_id)))
        .inner_join(users::table.on(users::id.eq(invitations::invited_by)))
        .filter(invitations::token_hash.eq(hash.as_slice()))
        .select(COLUMNS)
        .first(conn);
    Ok(found.optional()?)
}

/// Makes one in the place of an expired one for the same address, under the lock of the members; 409 when that person is a member, or was asked
/// already.
pub fn create(conn: &mut Conn, new: &NewInvitation, now: Timestamp) -> Result<Invitation, DbError> {
    refuse_member(conn, new)?;
    limits::check(conn, limits::Kind::Invitation, new.workspace_id)?;
    limits::check(conn, limits::Kind::AnyInvitation, new.workspace_id)?;
    diesel::update(invitations::table)
        .filter(invitations::workspace_id.eq(new.workspace_id))
        .filter(invitations::email.eq(&new.email))
        .filter(invitations::accepted_at.is_null())
        .filter(invitations::revoked_at.is_null())
        .filter(invitations::expires_at.le(now.0))
        .set(invitations::revoked_at.eq(now.0))
        .execute(conn)?;
    refuse_asked(conn, new)?;
    let row = Row {
        id: new_id(),
        public_id: chance::id().to_string(),
        workspace_id: new.workspace_id,
        email: &new.email,
        role: new.role.as_str(),
        token_hash: &new.token_hash,
        invited_by: new.invited_by,
        expires_at: new.expires_at.0,
        created_at: now.0,
    };
    diesel::insert_into(invitations::table).values(row).execute(conn)?;
    by_token(conn, &new.token_hash)?.ok_or_else(|| Error::internal("a new invitation is missing").into())
}

fn refuse_member(conn: &mut Conn, new: &NewInvitation) -> Result<(), DbError> {
    let member: Option<i64> = memberships::table
        .inner_join(users::table.on(users::id.eq(memberships::user_id)))
        .filter(memberships::workspace_id.eq(new.workspace_id))
        .filter(users::email.eq(&new.email))
        .select(users::id)
        .first(conn)
        .optional()?;
    match member {
        Some(_) => Err(Error::conflict("this person is a member already").into()),
        None => Ok(()),
    }
}

fn refuse_asked(conn: &mut Conn, new: &NewInvitation) -> Result<(), DbError> {
    let open: Option<i64> = invitations::table
        .filter(invitations::workspace_id.eq(new.workspace_id))
        .filter(invitations::email.eq(&new.email))
        .filter(invitations::accepted_at.is_null())
        .filter(invitations::revoked_at.is_null())
        .select(invitations::id)
        .first(conn)
        .optional()?;
    match open {
        Some(_) => Err(Error::conflict("there is an open invitation for this address").into()),
        None => Ok(()),
    }
}

/// Takes back an invitation that nobody answered; answers whether there was one.
pub fn revoke(conn: &mut Conn, workspace_id: i64, public_id: &str, now: Timestamp) -> Result<bool, DbError> {
    let revoked = diesel::update(invitations::table)
        .filter(invitations::workspace_id.eq(workspace_id))
        .filter(invitations::public_id.eq(public_id))
        .filter(invitations::accepted_at.is_null())
        .filter(invitations::revoked_at.is_null())
        .filter(invitations::expires_at.gt(now.0))
        .set(invitations::revoked_at.eq(now.0))
        .execute(conn)?;
    Ok(revoked > 0)
}

/// How many invitations of a member can still be accepted.
pub fn count_open(conn: &mut Conn, workspace_id: i64, user_id: i64, now: Timestamp) -> Result<i64, DbError> {
    let open = invitations::table
        .filter(invitations::workspace_id.eq(workspace_id))
        .filter(invitations::invited_by.eq(user_id))
        .filter(invitations::accepted_at.is_null().and(invitations::revoked_at.is_null()))
        .filter(invitations::expires_at.gt(now.0))
        .count()
        .get_result(conn)?;
    Ok(open)
}

/// Takes back every invitation of a member that nobody answered.
pub fn revoke_all_of(
    conn: &mut Conn,
    workspace_id: i64,
    user_id: i64,
    now: Timestamp,
) -> Result<(), DbError> {
    diesel::update(invitations::table)
        .filter(invitations::workspace_id.eq(workspace_id))
        .filter(invitations::invited_by.eq(user_id))
        .filter(invitations::accepted_at.is_null())
        .filter(invitations::revoked_at.is_null())
        .set(invitations::revoked_at.eq(now.0))
        .execute(conn)?;
    Ok(())
}

/// Takes back every invitation of a user that nobody answered, in every workspace; answers how many there were.
pub fn revoke_everywhere(conn: &mut Conn, user_id: i64, now: Timestamp) -> Result<usize, DbError> {
    let open = invitations::table
        .filter(invitations::invited_by.eq(user_id))
        .filter(invitations::accepted_at.is_null())
        .filter(invitations::revoked_at.is_null());
    Ok(diesel::update(open).set(invitations::revoked_at.eq(now.0)).execute(conn)?)
}

/// Whether whoever sent it may still invite people to its workspace. Under the lock of the members, where it is accepted.
pub fn is_backed(conn: &mut Conn, id: i64) -> Result<bool, DbError> {
    let role: Option<String> = invitations::table
        .inner_join(users::table.on(users::id.eq(invitations::invited_by)))
        .inner_join(
            memberships::table.on(memberships::workspace_id
                .eq(invitations::workspace_id)
                .and(memberships::user_id.eq(invitations::invited_by))),
        )
        .filter(invitations::id.eq(id))
        .filter(users::disabled_at.is_null())
        .select(memberships::role)
        .first(conn)
        .optional()?;
    Ok(role.as_deref().and_then(Role::parse) >= Some(Role::Admin))
}

/// Whether somebody was asked to join any workspace, and may still: by whoever may invite people to it now.
pub fn is_anybody_asking(conn: &mut Conn, email: &str, now: Timestamp) -> Result<bool, DbError> {
    let may_invite =
        memberships::role.eq(Role::Owner.as_str()).or(memberships::role.eq(Role::Admin.as_str()));
    let open: Option<i64> = invitations::table
        .inner_join(users::table.on(users::id.eq(invitations::invited_by)))
        .inner_join(
            memberships::table.on(memberships::workspace_id
                .eq(invitations::workspace_id)
                .and(memberships::user_id.eq(invitations::invited_by))),
        )
        .filter(invitations::email.eq(email))
        .filter(invitations::accepted_at.is_null())
        .filter(invitations::revoked_at.is_null())
        .filter(invitations::expires_at.gt(now.0))
        .filter(users::disabled_at.is_null())
        .filter(may_invite)
        .select(invitations::id)
        .first(conn)
        .optional()?;
    Ok(open.is_some())
}

/// Uses an invitation up, in one statement; answers whether it was still open.
pub fn accept(conn: &mut Conn, id: i64, now: Timestamp) -> Result<bool, DbError> {
    let accepted = diesel::update(invitations::table.find(id))
        .filter(invitations::accepted_at.is_null())
        .filter(invitations::revoked_at.is_null())
        .filter(invitations::expires_at.gt(now.0))
        .set(invitations::accepted_at.eq(now.0))
        .execute(conn)?;
    Ok(accepted > 0)
}
