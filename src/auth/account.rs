//! What a person does with their own account: another password, and the list of where they are signed in. A password
//! can also be set with a one-time token, which an operator's command makes.

use std::net::IpAddr;

use serde_json::json;

use crate::auth::device::Attempt;
use crate::auth::session::normal_email;
use crate::auth::sql::members::Touched;
use crate::auth::sql::sign_ins::{self, SignIn, Which};
use crate::auth::sql::users::{self, Account};
use crate::auth::sql::{identities, resets, ways_in};
use crate::auth::token::{self, RESET_PREFIX, Token, TokenHash};
use crate::auth::{Auth, Caller, password};
use crate::db::{Conn, DbError, audit};
use crate::error::{Error, Result};
use crate::metering::time::{HOUR, Timestamp};

const RESET_LIFETIME: i64 = 24 * HOUR;
/// Sign-ins that are shown at most.
pub const LISTED: i64 = 100;

fn wrong_password() -> Error {
    Error::invalid("current_password is not the present one")
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
        let keep = caller.login_id()?.to_owned();
        let present = self.check_present_password(caller, current, address).await?;
        let hash = self.0.passwords.turn().await?.hash(new).await?;
        let (standing, user_id, now) = (caller.standing(), caller.user_id, Timestamp::now());
        let (id, name) = (caller.user.id.clone(), caller.user.email.clone());
        let work = move |conn: &mut Conn| {
            audit::about(&id, &name);
            // who knew the one before is not the one who sets the next
            if standing.check(conn, now)?.password_hash != present {
                return Err(wrong_password().into());
            }
            resets::set_password(conn, user_id, &hash)?;
            resets::forget_all(conn, user_id)?;
            Ok(sign_ins::end(conn, user_id, &Which::But(keep.clone()))?.1)
        };
        let sessions = self.0.store.write("passwords::change", work).await?;
        self.tell(Touched { sessions, keys: Vec::new() });
        Ok(())
    }

    /// The hash that the present password of the caller fits; 400 when it is another one, 429 after too many of those,
    /// whichever of their sign-ins they came from.
    async fn check_present_password(
        &self,
        caller: &Caller,
        given: String,
        address: IpAddr,
    ) -> Result<String> {
        let email = caller.user.email.clone();
        // strangers who guess do not keep the owner from this
        let attempt = Attempt::within(address, caller.user_id);
        self.check_attempt(&email, attempt).await?;
        let wanted = email.clone();
        let find = move |conn: &mut Conn| users::credentials(conn, &wanted);
        let known = self.0.store.vital().read("users::credentials", find).await?;
        let stored = known.map(|(_, hash)| hash).filter(|hash| !hash.is_empty());
        let turn = self.0.passwords.turn().await?;
        // once more: while this one waited, others may have failed
        self.check_attempt(&email, attempt).await?;
        let fits = given.len() <= password::MAX_BYTES && turn.verify(given, stored.clone()).await?;
        match stored {
            Some(hash) if fits => {
                self.attempt_succeeded(&email, attempt);
                Ok(hash)
            }
            _ => {
                self.attempt_failed(Some(&email), attempt);
                let (store, id) = (self.0.store.clone(), caller.user.id.clone());
                let tell = move |_: &mut Conn| {
                    audit::about(&id, &email);
                    Ok(())
                };
                self.note(async move { store.write("passwords::refuse", tell).await });
                Err(wrong_password())
            }
        }
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
            // whoever ends more than one wants nobody to come back with a link from before
            if !matches!(which, Which::One(_)) {
                resets::forget_all(conn, user_id)?;
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
        let work = move |conn: &mut Conn| resets::user_of(conn, &hash, now);
        Ok(self.0.store.vital().read("resets::user_of", work).await?.is_some())
    }

    /// Sets the password of whoever the token was made for, and ends all of their sign-ins; 404 for a token that is
    /// unknown, used or over. One out of a mail proves the address: where that was not known before, whoever registered with
    /// it may be somebody else, and keeps no way in. Answers the address of the user, where they are a member anywhere.
    pub async fn reset_password(&self, token: &str, new: String) -> Result<Option<String>> {
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
            let user_id = resets::user_of(conn, &token_hash, now)?.ok_or_else(missing)?;
            let account = users::lock(conn, user_id)?;
            let by_mail = resets::use_up(conn, &token_hash, now)?.ok_or_else(missing)?;
            let member = users::tell_of(conn, user_id)?;
            let mut touched = if by_mail { prove_address(conn, &account, now)? } else { Touched::default() };
            resets::set_password(conn, user_id, &hash)?;
            resets::forget_all(conn, user_id)?;
            touched.sessions.extend(sign_ins::end(conn, user_id, &Which::All)?.1);
            Ok((touched, member.map(|member| member.email)))
        };
        let (touched, email) = self.0.store.write("passwords::reset", work).await?;
        self.tell(touched);
        Ok(email)
    }
}

/// Whoever is here reads the mail of the user. Those who came in before nobody knew that go, with all they could come back
/// with.
fn prove_address(conn: &mut Conn, account: &Account, now: Timestamp) -> Result<Touched, DbError> {
    let mut touched = Touched::default();
    if ways_in::may_be_a_strangers(conn, account)? {
        let ended = ways_in::end_all(conn, account.user_id, now)?;
        audit::states(None, Some(json!({"ended": ended.shown})));
        touched = ended.touched;
    }
    identities::verify_email(conn, account.user_id, now)?;
    Ok(touched)
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
    users::tell_of(conn, user_id)?;
    audit::by(audit::Actor::operator());
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
    users::tell_of(conn, user_id)?;
    audit::by(audit::Actor::operator());
    Ok(user_id)
}

/// Ends every sign-in of the user with this address, and every link that sets their password; answers how many sign-ins.
/// For a command.
pub fn end_all(conn: &mut Conn, email: &str) -> Result<usize, DbError> {
    let user_id = known_user(conn, email)?;
    let ended = sign_ins::end(conn, user_id, &Which::All)?.0;
    resets::forget_all(conn, user_id)?;
    Ok(ended)
}

/// Nobody comes in as this user any more, nor with what they handed out; answers how many sign-ins ended. For a command.
pub fn disable(conn: &mut Conn, email: &str) -> Result<usize, DbError> {
    let (user_id, now) = (known_user(conn, email)?, Timestamp::now());
    let is_new = users::set_disabled(conn, user_id, Some(now))?;
    let (invitations, links) = ways_in::take_back(conn, user_id, now)?;
    audit::states(None, Some(json!({"invitations": invitations, "subject_links": links})));
    if !is_new && invitations + links == 0 {
        audit::nothing_changed();
    }
    resets::forget_all(conn, user_id)?;
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
