//! Who belongs to a workspace, and what ends with a membership. Every statement is confined to one workspace, but for
//! the list of a user's own.

use diesel::prelude::*;
use serde_json::json;

use crate::auth::permission::Role;
use crate::auth::sql::{invitations, keys, links};
use crate::db::schema::{api_keys, memberships, sessions, sign_ins, users, workspaces};
use crate::db::{Conn, DbError, audit, limits};
use crate::error::Error;
use crate::metering::time::Timestamp;

/// A workspace as one of its members sees it.
#[derive(Clone, Debug, Queryable)]
pub struct Place {
    pub public_id: String,
    pub name: String,
    #[diesel(deserialize_as = String)]
    pub role: Role,
    pub created_at: i64,
    pub joined_at: i64,
    pub key_conflicts: String,
    pub time_zone: String,
}

/// A member as the others see them.
#[derive(Clone, Debug, Queryable)]
pub struct Colleague {
    pub user_id: i64,
    pub public_id: String,
    pub email: String,
    #[diesel(deserialize_as = String)]
    pub role: Role,
    pub joined_at: i64,
}

/// Hashes of credentials that ended or act with another role now: whoever remembers them must forget them.
#[derive(Debug, Default)]
pub struct Touched {
    pub keys: Vec<Vec<u8>>,
    pub sessions: Vec<Vec<u8>>,
}

/// The user's workspaces, the oldest membership first.
pub fn places(conn: &mut Conn, user_id: i64) -> Result<Vec<Place>, DbError> {
    let places = memberships::table
        .inner_join(workspaces::table.on(workspaces::id.eq(memberships::workspace_id)))
        .filter(memberships::user_id.eq(user_id))
        .order((memberships::created_at, memberships::workspace_id))
        .select((
            workspaces::public_id,
            workspaces::name,
            memberships::role,
            workspaces::created_at,
            memberships::created_at,
            workspaces::key_conflicts,
            workspaces::time_zone,
        ))
        .load(conn)?;
    Ok(places)
}

/// The workspace with this public id and its name, if the user belongs to it.
pub fn place_of(conn: &mut Conn, user_id: i64, public_id: &str) -> Result<Option<(i64, String)>, DbError> {
    let found = memberships::table
        .inner_join(workspaces::table.on(workspaces::id.eq(memberships::workspace_id)))
        .filter(memberships::user_id.eq(user_id))
        .filter(workspaces::public_id.eq(public_id))
        .select((workspaces::id, workspaces::name))
        .first(conn);
    Ok(found.optional()?)
}

/// The members, the oldest first.
pub fn list(conn: &mut Conn, workspace_id: i64) -> Result<Vec<Colleague>, DbError> {
    let members = memberships::table
        .inner_join(users::table.on(users::id.eq(memberships::user_id)))
        .filter(memberships::workspace_id.eq(workspace_id))
        .order((memberships::created_at, memberships::user_id))
        .select((users::id, users::public_id, users::email, memberships::role, memberships::created_at))
        .load(conn)?;
    Ok(members)
}

/// Keeps others from changing who belongs to the workspace until the transaction ends: two owners must not go at once.
pub fn lock(conn: &mut Conn, workspace_id: i64) -> Result<(), DbError> {
    diesel::update(workspaces::table.find(workspace_id))
        .set(workspaces::name.eq(workspaces::name))
        .execute(conn)?;
    Ok(())
}

/// The member with this public id of a user; 404 for everybody else.
pub fn find(conn: &mut Conn, workspace_id: i64, public_id: &str) -> Result<Colleague, DbError> {
    let found = memberships::table
        .inner_join(users::table.on(users::id.eq(memberships::user_id)))
        .filter(memberships::workspace_id.eq(workspace_id))
        .filter(users::public_id.eq(public_id))
        .select((users::id, users::public_id, users::email, memberships::role, memberships::created_at))
        .first(conn)
        .optional()?;
    found.ok_or_else(|| Error::not_found("member").into())
}

/// The user with this address, member or not.
pub struct Registered {
    pub user_id: i64,
    pub public_id: String,
}

/// 404 when nobody has the address.
pub fn by_email(conn: &mut Conn, email: &str) -> Result<Registered, DbError> {
    let found: Option<(i64, String)> = users::table
        .filter(users::email.eq(email))
        .select((users::id, users::public_id))
        .first(conn)
        .optional()?;
    let (user_id, public_id) = found.ok_or_else(|| Error::not_found(format_args!("user {email:?}")))?;
    Ok(Registered { user_id, public_id })
}

/// The role of a user as it is stored now.
pub fn role_of(conn: &mut Conn, workspace_id: i64, user_id: i64) -> Result<Option<Role>, DbError> {
    let role: Option<String> =
        memberships::table.find((workspace_id, user_id)).select(memberships::role).first(conn).optional()?;
    Ok(role.as_deref().and_then(Role::parse))
}

/// Whether somebody besides this user decides about members: an owner whom nobody has disabled.
pub fn has_another_owner(conn: &mut Conn, workspace_id: i64, user_id: i64) -> Result<bool, DbError> {
    let other: Option<i64> = memberships::table
        .inner_join(users::table.on(users::id.eq(memberships::user_id)))
        .filter(memberships::workspace_id.eq(workspace_id))
        .filter(memberships::user_id.ne(user_id))
        .filter(memberships::role.eq(Role::Owner.as_str()))
        .filter(users::disabled_at.is_null())
        .select(users::id)
        .first(conn)
        .optional()?;
    Ok(other.is_some())
}

/// 409 when the user is a member already, or when there are as many as may be.
pub fn join(
    conn: &mut Conn,
    workspace_id: i64,
    user_id: i64,
    role: Role,
    now: Timestamp,
) -> Result<(), DbError> {
    if role_of(conn, workspace_id, user_id)?.is_some() {
        return Err(Error::conflict("you are a member of this workspace already").into());
    }
    limits::check(conn, limits::Kind::Member, workspace_id)?;
    diesel::insert_into(memberships::table)
        .values((
            memberships::workspace_id.eq(workspace_id),
            memberships::user_id.eq(user_id),
            memberships::role.eq(role.as_str()),
            memberships::created_at.eq(now.0),
        ))
        .execute(conn)?;
    Ok(())
}

/// Who may invite nobody any more has invited nobody.
pub fn set_role(
    conn: &mut Conn,
    workspace_id: i64,
    user_id: i64,
    role: Role,
    now: Timestamp,
) -> Result<Touched, DbError> {
    diesel::update(memberships::table.find((workspace_id, user_id)))
        .set(memberships::role.eq(role.as_str()))
        .execute(conn)?;
    if role == Role::Viewer {
        invitations::revoke_all_of(conn, workspace_id, user_id, now)?;
    }
    let keys = api_keys::table
        .filter(api_keys::workspace_id.eq(workspace_id))
        .filter(api_keys::user_id.eq(user_id))
        .select(api_keys::token_hash)
        .load(conn)?;
    let sessions = sessions::table
        .filter(sessions::workspace_id.eq(workspace_id))
        .filter(sessions::user_id.eq(user_id))
        .select(sessions::token_hash)
        .load(conn)?;
    Ok(Touched { keys, sessions })
}

/// What a member made that ends with the membership, or is handed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holdings {
    /// Keys that can be used.
    pub keys: i64,
    /// Links for customers that still open something.
    pub links: i64,
    /// Invitations that nobody has accepted yet.
    pub invitations: i64,
}

pub fn holdings(conn: &mut Conn, member: keys::Owner, now: Timestamp) -> Result<Holdings, DbError> {
    Ok(Holdings {
        keys: keys::count_living(conn, member, now)?,
        links: links::count_open(conn, member, now)?,
        invitations: invitations::count_open(conn, member.workspace_id, member.user_id, now)?,
    })
}

/// Ends a membership, the sessions in it and the invitations that nobody has accepted yet. Keys and links go to the heir, or
/// are revoked.
pub fn remove(
    conn: &mut Conn,
    member: keys::Owner,
    heir: Option<i64>,
    now: Timestamp,
) -> Result<Touched, DbError> {
    let keys = match heir {
        Some(heir) => keys::give(conn, member, heir)?,
        None => keys::revoke_all(conn, member, now)?,
    };
    invitations::revoke_all_of(conn, member.workspace_id, member.user_id, now)?;
    links::pass_on(conn, member, heir, now)?;
    diesel::delete(memberships::table.find((member.workspace_id, member.user_id))).execute(conn)?;
    let sessions = diesel::delete(sessions::table)
        .filter(sessions::workspace_id.eq(member.workspace_id))
        .filter(sessions::user_id.eq(member.user_id))
        .returning(sessions::token_hash)
        .get_results(conn)?;
    diesel::delete(sign_ins::table)
        .filter(sign_ins::workspace_id.eq(member.workspace_id))
        .filter(sign_ins::user_id.eq(member.user_id))
        .execute(conn)?;
    Ok(Touched { keys, sessions })
}

/// The new name of a workspace. Under the lock of the members.
pub fn rename(conn: &mut Conn, workspace_id: i64, name: &str) -> Result<(), DbError> {
    let before: String = workspaces::table.find(workspace_id).select(workspaces::name).first(conn)?;
    audit::states(Some(json!({"name": before})), Some(json!({"name": name})));
    diesel::update(workspaces::table.find(workspace_id)).set(workspaces::name.eq(name)).execute(conn)?;
    Ok(())
}

/// Hashes of every session in a workspace, which show its name.
pub fn sessions_of(conn: &mut Conn, workspace_id: i64) -> Result<Vec<Vec<u8>>, DbError> {
    let hashes = sessions::table
        .filter(sessions::workspace_id.eq(workspace_id))
        .select(sessions::token_hash)
        .load(conn)?;
    Ok(hashes)
}
