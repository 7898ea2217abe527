//! What a person does with their own account: another password, and the list of where they are signed in. A password
//! can also be set with a one-time token, which an operator's command makes.

use std::net::IpAddr;

use crate::auth::device::Attempt;
use crate::auth::session::normal_email;
use crate::auth::sql::members::Touched;
use crate::auth::sql::sign_ins::{self, SignIn, Which};
use crate::auth::sql::{identities, resets, users};
use crate::auth::token::{self, RESET_PREFIX, Token, TokenHash};
use crate::auth::{Auth, Caller, Credential, password};
use crate::db::{Conn, DbError, audit};
use crate::error::{Error, Result};
use crate::metering::time::{HOUR, Timestamp};

const RESET_LIFETIME: i64 = 24 * HOUR;
const LISTED: i64 = 100;

impl Caller {
    /// The sign-in of a session; keys have none.
    fn login_id(&self) -> Result<&str> {
        match &self.credential {
            Credential::Session { login_id, .. } => Ok(login_id),
            Credential::Key { .. } => Err(Error::unauthorized()),
        }
    }
}

impl Auth {
    /// Sets another password for who knows the present one; every other sign-in of theirs ends.
    pub async fn change_password(
        &self,
        caller: &Caller,
        current: String,
        new: String,
        address: IpAddr,
    ) -> Result<()> {
        self.check_password_sign_in()?;
        password::check(&new)?;
        let (email, user_id) = (caller.user.email.clone(), caller.user_id);
        // strangers who guess do not keep the owner from this
        let attempt = Attempt::within(address, caller.login_id()?);
        self.check_attempt(&email, attempt).await?;
        let wanted = email.clone();
        let find = move |conn: &mut Conn| users::credentials(conn, &wanted);
        let known = self.0.store.vital().read("users::credentials", find).await?;
        let stored = known.map(|(_, hash)| hash).filter(|hash| !hash.is_empty());
        if current.len() > password::MAX_BYTES
            || !self.0.passwords.turn().await?.verify(current, stored).await?
        {
            self.attempt_failed(Some(&email), attempt);
            return Err(Error::invalid("current_password is not the present one"));
        }
        self.attempt_succeeded(&email, attempt);
        let hash = self.0.passwords.turn().await?.hash(new).await?;
        let keep = caller.login_id()?.to_owned();
        let (id, name) = (caller.user.id.clone(), email);
        let work = move |conn: &mut Conn| {
            audit::about(&id, &name);
            resets::set_password(conn, user_id, &hash)?;
            Ok(sign_ins::end(conn, user_id, &Which::But(keep.clone()))?.1)
        };
        let sessions = self.0.store.write("passwords::change", work).await?;
        self.tell(Touched { sessions, keys: Vec::new() });
        Ok(())
    }

    /// Where the caller is signed in, the one seen last first; with the id of the one that asks.
    pub async fn sign_ins(&self, caller: &Caller) -> Result<(Vec<SignIn>, String)> {
        let (user_id, now, own) = (caller.user_id, Timestamp::now(), caller.login_id()?.to_owned());
        let work = move |conn: &mut Conn| sign_ins::list(conn, user_id, now, LISTED);
        Ok((self.0.store.read("sign_ins::list", work).await?, own))
    }

    /// Ends sign-ins of the caller; 404 when one is named that they do not have.
    pub async fn end_sign_ins(&self, caller: &Caller, which: Which) -> Result<()> {
        let user_id = caller.user_id;
        let (id, name) = (caller.user.id.clone(), caller.user.email.clone());
        let work = move |conn: &mut Conn| {
            audit::about(&id, &name);
            let (count, tokens) = sign_ins::end(conn, user_id, &which)?;
            match (count, &which) {
                (0, Which::One(_)) => return Err(Error::not_found("sign-in").into()),
                (0, _) => audit::nothing_changed(),
                _ => {}
            }
            Ok(tokens)
        };
        let sessions = self.0.store.write("sign_ins::end", work).await?;
        self.tell(Touched { sessions, keys: Vec::new() });
        Ok(())
    }

    /// Ends every sign-in of the caller but this one.
    pub async fn end_other_sign_ins(&self, caller: &Caller) -> Result<()> {
        let own = caller.login_id()?.to_owned();
        self.end_sign_ins(caller, Which::But(own)).await
    }

    /// Whether a token still sets a password.
    pub async fn may_reset(&self, token: &str) -> Result<bool> {
        let (hash, now) = (token::hash(token), Timestamp::now());
        let work = move |conn: &mut Conn| resets::is_open(conn, &hash, now);
        self.0.store.vital().read("resets::is_open", work).await
    }

    /// Sets the password of whoever the token was made for, and ends all of their sign-ins; 404 for a token that is
    /// unknown, used or over.
    pub async fn reset_password(&self, token: &str, new: String) -> Result<()> {
        self.check_password_sign_in()?;
        password::check(&new)?;
        let missing = || Error::not_found("password reset");
        // before the dear part
        if !token.starts_with(RESET_PREFIX) || !self.may_reset(token).await? {
            return Err(missing());
        }
        let (token_hash, now) = (token::hash(token), Timestamp::now());
        let hash = self.0.passwords.turn().await?.hash(new).await?;
        let work = move |conn: &mut Conn| {
            let (user_id, by_mail) = resets::use_up(conn, &token_hash, now)?.ok_or_else(missing)?;
            match users::anywhere(conn, user_id)? {
                Some(member) => users::tell(&member),
                None => audit::nothing_changed(),
            }
            if by_mail {
                identities::verify_email(conn, user_id, now)?;
            }
            resets::set_password(conn, user_id, &hash)?;
            Ok(sign_ins::end(conn, user_id, &Which::All)?.1)
        };
        let sessions = self.0.store.write("passwords::reset", work).await?;
        self.tell(Touched { sessions, keys: Vec::new() });
        Ok(())
    }
}

// For operators -----------------------------------------------------------------------------------

/// A token that sets the password of the user with this address; with `create`, of one who does not exist yet. For a
/// command, in its own transaction.
pub fn begin_reset(
    conn: &mut Conn,
    email: &str,
    create: bool,
    hash: &TokenHash,
    now: Timestamp,
) -> Result<Timestamp, DbError> {
    let email = normal_email(email)?;
    let user_id = match users::credentials(conn, &email)? {
        Some(_) if create => {
            return Err(Error::conflict("this email address is registered already").into());
        }
        Some((user_id, _)) => user_id,
        None if create => users::register(conn, &email, "", now)?.user_id,
        None => return Err(Error::not_found(format_args!("user {email:?}")).into()),
    };
    if let Some(member) = users::anywhere(conn, user_id)? {
        users::tell(&member);
        audit::by(audit::Actor::operator());
    }
    let expires_at = now.plus(RESET_LIFETIME);
    resets::create(conn, user_id, hash, expires_at, false)?;
    Ok(expires_at)
}

/// A token for [`begin_reset`].
pub fn reset_token() -> Result<Token> {
    Token::new(RESET_PREFIX)
}

/// The user with this address, told to the trail as whom an operator changes; 404 when there is none.
fn known_user(conn: &mut Conn, email: &str) -> Result<i64, DbError> {
    let email = normal_email(email)?;
    let Some((user_id, _)) = users::credentials(conn, &email)? else {
        return Err(Error::not_found(format_args!("user {email:?}")).into());
    };
    if let Some(member) = users::anywhere(conn, user_id)? {
        users::tell(&member);
        audit::by(audit::Actor::operator());
    }
    Ok(user_id)
}

/// Ends every sign-in of the user with this address; answers how many. For a command.
pub fn end_all(conn: &mut Conn, email: &str) -> Result<usize, DbError> {
    let user_id = known_user(conn, email)?;
    Ok(sign_ins::end(conn, user_id, &Which::All)?.0)
}

/// Nobody comes in as this user any more; answers how many sign-ins ended. For a command.
pub fn disable(conn: &mut Conn, email: &str) -> Result<usize, DbError> {
    let user_id = known_user(conn, email)?;
    if !users::set_disabled(conn, user_id, Some(Timestamp::now()))? {
        audit::nothing_changed();
    }
    Ok(sign_ins::end(conn, user_id, &Which::All)?.0)
}

/// Takes [`disable`] back. For a command.
pub fn enable(conn: &mut Conn, email: &str) -> Result<(), DbError> {
    let user_id = known_user(conn, email)?;
    if !users::set_disabled(conn, user_id, None)? {
        audit::nothing_changed();
    }
    Ok(())
}

/// Failed sign-ins of this user so far do not count any more. For a command.
pub fn unlock(conn: &mut Conn, email: &str) -> Result<(), DbError> {
    let user_id = known_user(conn, email)?;
    users::unlock(conn, user_id, Timestamp::now())
}
