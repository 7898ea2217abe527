//! What somebody was let in with, asked of the database once more. A request is let in by what is remembered for a few
//! seconds, and may be held back for as long as its body takes. Whatever gives away another way in (a key, a link, an
//! invitation, a provider, a password) or decides about members asks again, inside of its own transaction.

use crate::auth::permission::Role;
use crate::auth::sql::keys::Owner;
use crate::auth::sql::users::{self, Account};
use crate::auth::sql::{keys, members, sessions};
use crate::auth::{Caller, Credential};
use crate::db::{Conn, DbError};
use crate::error::{Error, Result};
use crate::metering::time::Timestamp;

#[derive(Clone, Debug)]
pub(super) struct Standing {
    pub(super) owner: Owner,
    by: By,
}

#[derive(Clone, Debug)]
enum By {
    SignIn(String),
    Key(i64),
}

impl Caller {
    pub(super) fn standing(&self) -> Standing {
        let by = match &self.credential {
            Credential::Session { login_id, .. } => By::SignIn(login_id.clone()),
            Credential::Key { id, .. } => By::Key(*id),
        };
        Standing { owner: self.key_owner(), by }
    }

    /// The sign-in of a session; keys have none.
    pub(super) fn login_id(&self) -> Result<&str> {
        match &self.credential {
            Credential::Session { login_id, .. } => Ok(login_id),
            Credential::Key { .. } => Err(Error::unauthorized()),
        }
    }
}

impl Standing {
    /// 401 when the sign-in or the key has ended meanwhile, or the user is disabled. Takes the lock of the user.
    pub(super) fn check(&self, conn: &mut Conn, now: Timestamp) -> Result<Account, DbError> {
        let account = users::lock(conn, self.owner.user_id)?;
        let is_in = match &self.by {
            By::SignIn(login_id) => sessions::is_open(conn, login_id, now)?,
            By::Key(id) => keys::is_living(conn, *id, now)?,
        };
        match is_in && account.disabled_at.is_none() {
            true => Ok(account),
            false => Err(Error::unauthorized().into()),
        }
    }

    /// Like [`Standing::check`]; 403 when the role is less than this by now. Takes the lock of the members, too.
    pub(super) fn check_role(&self, conn: &mut Conn, needed: Role, now: Timestamp) -> Result<(), DbError> {
        self.check(conn, now)?;
        members::lock(conn, self.owner.workspace_id)?;
        match members::role_of(conn, self.owner.workspace_id, self.owner.user_id)? {
            Some(role) if role >= needed => Ok(()),
            Some(_) if needed == Role::Owner => Err(Error::forbidden("only an owner may do this").into()),
            Some(role) => Err(Error::forbidden(format_args!("the role {role} does not allow this")).into()),
            None => Err(Error::unauthorized().into()),
        }
    }
}
