//! All that lets somebody in as a user, and all that a user has handed out, over every workspace: for the moments in which an
//! account comes into other hands, and in which nobody may use it. Under the lock of the user.

use serde_json::json;

use crate::auth::sql::members::Touched;
use crate::auth::sql::sign_ins::{self, Which};
use crate::auth::sql::users::Account;
use crate::auth::sql::{devices, identities, invitations, keys, links, resets};
use crate::db::{Conn, DbError, audit};
use crate::metering::time::Timestamp;

/// What ended: credentials that are to be forgotten, and what the audit trail keeps.
pub struct Ended {
    pub touched: Touched,
    pub shown: audit::Shown,
}

/// Whether somebody may have come in who never proved to have the address. Into an account that an operator made, and that
/// has neither password nor provider yet, nobody came: its keys are the operator's.
pub fn may_be_a_strangers(conn: &mut Conn, account: &Account) -> Result<bool, DbError> {
    if account.email_verified_at.is_some() {
        return Ok(false);
    }
    Ok(!account.password_hash.is_empty() || !identities::list(conn, account.user_id)?.is_empty())
}

/// Ends everything with which whoever had the account so far could come back: password, sign-ins, accounts at providers,
/// browsers, links that set a password, keys, and what was handed out.
pub fn end_all(conn: &mut Conn, user_id: i64, now: Timestamp) -> Result<Ended, DbError> {
    resets::set_password(conn, user_id, "")?;
    resets::forget_all(conn, user_id)?;
    devices::forget_all(conn, user_id)?;
    let identities = identities::remove_all(conn, user_id)?;
    let (sign_ins, sessions) = sign_ins::end(conn, user_id, &Which::All)?;
    let keys = keys::revoke_everywhere(conn, user_id, now)?;
    let (invitations, links) = take_back(conn, user_id, now)?;
    let shown = json!({"sign_ins": sign_ins, "identities": identities, "api_keys": keys.len(),
                       "invitations": invitations, "subject_links": links});
    Ok(Ended { touched: Touched { keys, sessions }, shown })
}

/// Takes back what a user handed out: invitations that nobody has accepted, and links. Answers how many of each.
pub fn take_back(conn: &mut Conn, user_id: i64, now: Timestamp) -> Result<(usize, usize), DbError> {
    let invitations = invitations::revoke_everywhere(conn, user_id, now)?;
    Ok((invitations, links::revoke_everywhere(conn, user_id, now)?))
}
