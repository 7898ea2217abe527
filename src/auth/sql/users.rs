//! Users, their workspaces and the memberships between them. Knows no passwords, only their hashes.

use std::cmp::Reverse;

use diesel::prelude::*;

use crate::auth::permission::Role;
use crate::chance;
use crate::db::audit::{self, Actor};
use crate::db::identity::new_id;
use crate::db::schema::{memberships, users, workspaces};
use crate::db::{Conn, DbError};
use crate::error::Error;
use crate::metering::time::Timestamp;

/// A user as a member of one workspace: who every authenticated request acts as.
#[derive(Clone, Debug, Queryable)]
pub struct Member {
    pub user_id: i64,
    pub user_public_id: String,
    pub email: String,
    pub created_at: i64,
    pub workspace_id: i64,
    pub workspace_public_id: String,
    pub workspace_name: String,
    #[diesel(deserialize_as = String)]
    pub role: Role,
}

pub type MemberColumns = (
    users::id,
    users::public_id,
    users::email,
    users::created_at,
    workspaces::id,
    workspaces::public_id,
    workspaces::name,
    memberships::role,
);
pub const MEMBER: MemberColumns = (
    users::id,
    users::public_id,
    users::email,
    users::created_at,
    workspaces::id,
    workspaces::public_id,
    workspaces::name,
    memberships::role,
);

#[derive(Insertable)]
#[diesel(table_name = users, treat_none_as_default_value = false)]
struct NewUser<'a> {
    id: i64,
    public_id: String,
    email: &'a str,
    password_hash: &'a str,
    created_at: i64,
}

#[derive(Insertable)]
#[diesel(table_name = workspaces, treat_none_as_default_value = false)]
struct NewWorkspace<'a> {
    id: i64,
    public_id: String,
    name: &'a str,
    created_at: i64,
}

#[derive(Insertable)]
#[diesel(table_name = memberships, treat_none_as_default_value = false)]
struct NewMembership {
    workspace_id: i64,
    user_id: i64,
    role: &'static str,
    created_at: i64,
}

/// Creates a user with a workspace of their own; 409 when the address is taken.
pub fn register(
    conn: &mut Conn,
    email: &str,
    password_hash: &str,
    now: Timestamp,
) -> Result<Member, DbError> {
    let public_id = chance::id().to_string();
    let user_id = diesel::insert_into(users::table)
        .values(NewUser { id: new_id(), public_id, email, password_hash, created_at: now.0 })
        .returning(users::id)
        .get_result(conn)
        .map_err(|error| match DbError::from(error) {
            fault if fault.violates("users_email_key") => {
                Error::conflict("this email address is registered already").into()
            }
            fault => fault,
        })?;
    let workspace_id = create_workspace(conn, user_id, email, now)?;
    let member =
        member(conn, user_id, workspace_id)?.ok_or_else(|| Error::internal("a new member is missing"))?;
    tell(&member);
    Ok(member)
}

/// Puts what is being changed down to this member, where the call does not tell who it is.
pub fn tell(member: &Member) {
    audit::in_workspace(member.workspace_id);
    let (id, name) = (member.user_public_id.clone(), member.email.clone());
    audit::about(&id, &name);
    audit::by(Actor { kind: "user", id, name });
}

/// The same about a user, in the oldest of their workspaces; of one who has none the trail of the server tells. Answers them there.
pub fn tell_of(conn: &mut Conn, user_id: i64) -> Result<Option<Member>, DbError> {
    let member = anywhere(conn, user_id)?;
    match &member {
        Some(member) => tell(member),
        None => {
            let (id, name): (String, String) =
                users::table.find(user_id).select((users::public_id, users::email)).first(conn)?;
            audit::in_workspace(audit::SERVER);
            audit::about(&id, &name);
            audit::by(Actor { kind: "user", id, name });
        }
    }
    Ok(member)
}

/// A user's own workspace, named after the address.
fn create_workspace(conn: &mut Conn, user_id: i64, email: &str, now: Timestamp) -> Result<i64, DbError> {
    let owner = email.split('@').next().unwrap_or_default();
    add_workspace(conn, user_id, &format!("{owner}'s workspace"), now)
}

/// A workspace with this owner; its number.
pub fn add_workspace(conn: &mut Conn, user_id: i64, name: &str, now: Timestamp) -> Result<i64, DbError> {
    let public_id = chance::id().to_string();
    let workspace_id = diesel::insert_into(workspaces::table)
        .values(NewWorkspace { id: new_id(), public_id, name, created_at: now.0 })
        .returning(workspaces::id)
        .get_result(conn)?;
    diesel::insert_into(memberships::table)
        .values(NewMembership { workspace_id, user_id, role: Role::Owner.as_str(), created_at: now.0 })
        .execute(conn)?;
    Ok(workspace_id)
}

/// Takes a new hash of the same password, unless the password was changed meanwhile.
pub fn replace_hash(conn: &mut Conn, user_id: i64, old: &str, new: &str) -> Result<(), DbError> {
    let is_same = users::id.eq(user_id).and(users::password_hash.eq(old));
    diesel::update(users::table.filter(is_same)).set(users::password_hash.eq(new)).execute(conn)?;
    Ok(())
}

/// A registered user and the password hash, which is empty when the user has none.
pub fn credentials(conn: &mut Conn, email: &str) -> Result<Option<(i64, String)>, DbError> {
    let found =
        users::table.filter(users::email.eq(email)).select((users::id, users::password_hash)).first(conn);
    Ok(found.optional()?)
}

/// The workspace a sign-in leads to: the one with the highest role, then the oldest membership. A user who was
/// removed from every workspace gets a new one.
pub fn home(conn: &mut Conn, user_id: i64, now: Timestamp) -> Result<i64, DbError> {
    let memberships: Vec<(i64, String, i64)> = memberships::table
        .filter(memberships::user_id.eq(user_id))
        .select((memberships::workspace_id, memberships::role, memberships::created_at))
        .load(conn)?;
    let first = memberships.iter().min_by_key(|(id, role, since)| (Reverse(Role::parse(role)), *since, *id));
    if let Some((workspace_id, _, _)) = first {
        return Ok(*workspace_id);
    }
    let email: String = users::table.find(user_id).select(users::email).first(conn)?;
    create_workspace(conn, user_id, &email, now)
}

/// The user in the oldest of their workspaces.
pub fn anywhere(conn: &mut Conn, user_id: i64) -> Result<Option<Member>, DbError> {
    let found = memberships::table
        .inner_join(users::table.on(users::id.eq(memberships::user_id)))
        .inner_join(workspaces::table.on(workspaces::id.eq(memberships::workspace_id)))
        .filter(memberships::user_id.eq(user_id))
        .order((memberships::created_at, memberships::workspace_id))
        .select(MEMBER)
        .first(conn);
    Ok(found.optional()?)
}

pub fn member(conn: &mut Conn, user_id: i64, workspace_id: i64) -> Result<Option<Member>, DbError> {
    let found = memberships::table
        .inner_join(users::table.on(users::id.eq(memberships::user_id)))
        .inner_join(workspaces::table.on(workspaces::id.eq(memberships::workspace_id)))
        .filter(memberships::user_id.eq(user_id))
        .filter(memberships::workspace_id.eq(workspace_id))
        .select(MEMBER)
        .first(conn);
    Ok(found.optional()?)
}

/// What a user is let in by, and how far the address is known to be theirs.
#[derive(Clone, Debug, Queryable)]
pub struct Account {
    pub user_id: i64,
    /// Empty where they have none.
    pub password_hash: String,
    pub email_verified_at: Option<i64>,
    pub disabled_at: Option<i64>,
}

impl Account {
    /// Anybody may have registered with the address and chosen the password: that is nobody's proof.
    pub fn is_proven(&self) -> bool {
        self.email_verified_at.is_some() || self.password_hash.is_empty()
    }
}

type AccountColumns = (users::id, users::password_hash, users::email_verified_at, users::disabled_at);
const ACCOUNT: AccountColumns =
    (users::id, users::password_hash, users::email_verified_at, users::disabled_at);

pub fn account(conn: &mut Conn, email: &str) -> Result<Option<Account>, DbError> {
    let found = users::table.filter(users::email.eq(email)).select(ACCOUNT).first(conn);
    Ok(found.optional()?)
}

/// Keeps others from changing what lets this user in, and from letting somebody in by it, until the transaction ends. To be
/// taken before the lock of a workspace.
pub fn lock(conn: &mut Conn, user_id: i64) -> Result<Account, DbError> {
    let account = diesel::update(users::table.find(user_id))
        .set(users::created_at.eq(users::created_at))
        .returning(ACCOUNT)
        .get_result(conn)?;
    Ok(account)
}

/// Disables a user from a time on, or not; false when it was so already.
pub fn set_disabled(conn: &mut Conn, user_id: i64, at: Option<Timestamp>) -> Result<bool, DbError> {
    if lock(conn, user_id)?.disabled_at.is_some() == at.is_some() {
        return Ok(false);
    }
    let at = at.map(|at| at.0);
    diesel::update(users::table.find(user_id)).set(users::disabled_at.eq(at)).execute(conn)?;
    Ok(true)
}

pub fn unlock(conn: &mut Conn, user_id: i64, now: Timestamp) -> Result<(), DbError> {
    diesel::update(users::table.find(user_id)).set(users::unlocked_at.eq(now.0)).execute(conn)?;
    Ok(())
}

/// When failed sign-ins of the account with this address stopped counting.
pub fn unlocked_at(conn: &mut Conn, email: &str) -> Result<Option<i64>, DbError> {
    let at = users::table.filter(users::email.eq(email)).select(users::unlocked_at).first(conn);
    Ok(at.optional()?.flatten())
}
