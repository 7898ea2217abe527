//! What operators see and change from the command line, over all workspaces.

use diesel::prelude::*;

use crate::auth::permission::Role;
use crate::auth::sql::keys::Owner;
use crate::auth::sql::members;
use crate::auth::sql::users::{self, MEMBER, Member};
use crate::db::schema::{api_keys, memberships, users as user_rows, workspaces};
use crate::db::{Conn, DbError, audit};
use crate::error::Error;
use crate::metering::time::Timestamp;

/// Every workspace with each of its owners, the oldest first.
pub fn owners(conn: &mut Conn) -> Result<Vec<Member>, DbError> {
    let members = memberships::table
        .inner_join(user_rows::table.on(user_rows::id.eq(memberships::user_id)))
        .inner_join(workspaces::table.on(workspaces::id.eq(memberships::workspace_id)))
        .filter(memberships::role.eq(Role::Owner.as_str()))
        .order((workspaces::created_at, workspaces::id, memberships::created_at, user_rows::id))
        .select(MEMBER)
        .load(conn)?;
    Ok(members)
}

/// The member that an operator means by a workspace, an address, both or neither: an owner, unless an address says
/// otherwise.
pub fn member(conn: &mut Conn, workspace: Option<&str>, email: Option<&str>) -> Result<Member, DbError> {
    let mut members = memberships::table
        .inner_join(user_rows::table.on(user_rows::id.eq(memberships::user_id)))
        .inner_join(workspaces::table.on(workspaces::id.eq(memberships::workspace_id)))
        .order((workspaces::created_at, workspaces::id, memberships::created_at, user_rows::id))
        .select(MEMBER)
        // two tell already that it is not clear
        .limit(2)
        .into_boxed();
    if let Some(id) = workspace {
        members = members.filter(workspaces::public_id.eq(id));
    }
    members = match email {
        Some(email) => members.filter(user_rows::email.eq(email)),
        None => members.filter(memberships::role.eq(Role::Owner.as_str())),
    };
    let found: Vec<Member> = members.load(conn)?;
    let is_clear = found.windows(2).all(|pair| pair[0].workspace_id == pair[1].workspace_id);
    match found.into_iter().next() {
        Some(member) if is_clear => Ok(member),
        Some(_) => Err(Error::conflict("there are several workspaces: say which with --workspace").into()),
        None => Err(Error::not_found("a workspace and member like that").into()),
    }
}

pub fn has_users(conn: &mut Conn) -> Result<bool, DbError> {
    Ok(diesel::select(diesel::dsl::exists(user_rows::table.select(user_rows::id))).get_result(conn)?)
}

/// The first user, who cannot sign in before somebody sets a password.
pub fn first_user(conn: &mut Conn, email: &str, now: Timestamp) -> Result<Member, DbError> {
    users::register(conn, email, "", now)
}

/// Whose key that is; 404 when there is none.
pub fn key_owner(conn: &mut Conn, key: &str) -> Result<Owner, DbError> {
    let found: Option<(i64, i64)> = api_keys::table
        .filter(api_keys::public_id.eq(key))
        .select((api_keys::workspace_id, api_keys::user_id))
        .first(conn)
        .optional()?;
    let (workspace_id, user_id) = found.ok_or_else(|| Error::not_found("API key"))?;
    Ok(Owner { workspace_id, user_id })
}

/// The number of a workspace; 404 when there is none with this id.
pub fn workspace(conn: &mut Conn, id: &str) -> Result<i64, DbError> {
    let found: Option<i64> = workspaces::table
        .filter(workspaces::public_id.eq(id))
        .select(workspaces::id)
        .first(conn)
        .optional()?;
    found.ok_or_else(|| Error::not_found("workspace").into())
}

/// Makes a workspace of a user who is there; 404 when nobody has the address.
pub fn create_workspace(conn: &mut Conn, name: &str, email: &str, now: Timestamp) -> Result<Member, DbError> {
    let owner = members::by_email(conn, email)?;
    let workspace_id = users::add_workspace(conn, owner.user_id, name, now)?;
    let made = users::member(conn, owner.user_id, workspace_id)?;
    let made = made.ok_or_else(|| Error::internal("a new member is missing"))?;
    audit::in_workspace(workspace_id);
    audit::about(&made.workspace_public_id, name);
    Ok(made)
}

/// Gives a workspace another name; 404 when there is none with this id.
pub fn rename_workspace(conn: &mut Conn, id: &str, name: &str) -> Result<(), DbError> {
    let workspace_id = workspace(conn, id)?;
    members::lock(conn, workspace_id)?;
    audit::in_workspace(workspace_id);
    audit::about(id, name);
    members::rename(conn, workspace_id, name)
}

/// A user as an operator sees them.
pub struct KnownUser {
    pub public_id: String,
    pub email: String,
    pub created_at: i64,
    pub has_password: bool,
    pub is_disabled: bool,
    pub workspaces: usize,
}

#[derive(Queryable)]
struct UserRow {
    id: i64,
    public_id: String,
    email: String,
    created_at: i64,
    password_hash: String,
    disabled_at: Option<i64>,
}

/// Every user, the oldest first.
pub fn users(conn: &mut Conn) -> Result<Vec<KnownUser>, DbError> {
    let rows: Vec<UserRow> = user_rows::table
        .order((user_rows::created_at, user_rows::id))
        .select((
            user_rows::id,
            user_rows::public_id,
            user_rows::email,
            user_rows::created_at,
            user_rows::password_hash,
            user_rows::disabled_at,
        ))
        .load(conn)?;
    let members: Vec<i64> = memberships::table.select(memberships::user_id).load(conn)?;
    let mut counts = std::collections::HashMap::new();
    members.into_iter().for_each(|id| *counts.entry(id).or_default() += 1);
    let known = rows.into_iter().map(|row| KnownUser {
        public_id: row.public_id,
        email: row.email,
        created_at: row.created_at,
        has_password: !row.password_hash.is_empty(),
        is_disabled: row.disabled_at.is_some(),
        workspaces: counts.get(&row.id).copied().unwrap_or_default(),
    });
    Ok(known.collect())
}
