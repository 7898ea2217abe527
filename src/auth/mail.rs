//! What the people of a workspace are sent: a link that sets a password, for whoever asks for it, and invitations. Links
//! lead to the address of the settings, never to one that a request names.

use std::net::IpAddr;

use crate::auth::session::normal_email;
use crate::auth::sql::invitations::Invitation;
use crate::auth::sql::{resets, users, ways_in};
use crate::auth::token::Token;
use crate::auth::{Auth, account};
use crate::db::audit::{self, Actor, Scene};
use crate::db::{Conn, DbError};
use crate::error::{Error, Result};
use crate::mail::{Kind, Letter, Mailer};
use crate::metering::time::{HOUR, Timestamp};

/// A link in a mailbox is good for less long than one that an operator hands over.
const RESET_LIFETIME: i64 = HOUR;

/// How mail leaves this server, and what its links begin with.
#[derive(Clone)]
pub struct Mail {
    pub mailer: Mailer,
    pub public_url: String,
}

impl Auth {
    /// Whether invitations are mailed.
    pub fn sends_mail(&self) -> bool {
        self.0.outside.mail.is_some()
    }

    /// Whether people can have themselves sent a link that sets a password.
    pub fn sends_resets(&self) -> bool {
        self.0.outside.mail.is_some() && self.0.options.password_sign_in
    }

    /// Sends a link that sets a password to whoever has this address. Who has none learns it from no answer: it is given
    /// before anybody looks.
    pub fn request_reset(&self, email: &str, address: IpAddr) -> Result<()> {
        self.check_password_sign_in()?;
        let Some(mail) = self.0.outside.mail.clone() else {
            return Err(Error::forbidden("this server sends no mail: ask whoever runs it for a link"));
        };
        let (email, now) = (normal_email(email)?, Timestamp::now());
        if !self.0.throttle.ask_for_reset(&email, address, now)? {
            return Ok(());
        }
        let (auth, (address, user_agent)) = (self.clone(), audit::origin());
        let scene = Scene { address, user_agent, ..Scene::of(Actor::nobody()) };
        let public_url = mail.public_url;
        let letter = async move { auth.write_reset(email, &public_url).await };
        mail.mailer.post(Kind::Reset, audit::within(scene, letter));
        Ok(())
    }

    async fn write_reset(&self, email: String, public_url: &str) -> Result<Option<Letter>> {
        let (token, to, now) = (account::reset_token()?, email.clone(), Timestamp::now());
        let hash = token.hash();
        let work = move |conn: &mut Conn| -> Result<Option<bool>, DbError> {
            let Some(account) = users::account(conn, &email)? else {
                audit::nothing_changed();
                return Ok(None);
            };
            users::tell_of(conn, account.user_id)?;
            audit::by(Actor::nobody());
            resets::create(conn, account.user_id, &hash, now.plus(RESET_LIFETIME), true)?;
            Ok(Some(ways_in::may_be_a_strangers(conn, &account)?))
        };
        let known = self.0.store.write("passwords::request_reset", work).await?;
        Ok(known.map(|ends_all| reset_letter(to, public_url, &token, ends_all)))
    }

    /// 429 when the workspace, or anybody to this address, has had too many invitations mailed. Where none is mailed, none
    /// counts.
    pub(super) fn count_invitation(&self, workspace_id: i64, to: &str, now: Timestamp) -> Result<()> {
        match self.sends_mail() {
            true => self.0.throttle.mail_invitation(workspace_id, to, now),
            false => Ok(()),
        }
    }

    /// Nothing came of one that was counted.
    pub(super) fn uncount_invitation(&self, workspace_id: i64, to: &str) {
        if self.sends_mail() {
            self.0.throttle.invitation_was_not_mailed(workspace_id, to);
        }
    }

    /// Mails an invitation, where mail is set up.
    pub(super) fn mail_invitation(&self, invitation: &Invitation, token: &Token) {
        let Some(mail) = &self.0.outside.mail else { return };
        let letter = invitation_letter(invitation, &mail.public_url, token);
        mail.mailer.post(Kind::Invitation, async move { Ok(Some(letter)) });
    }
}

/// `ends_all`: nobody has proven yet whose address that is.
fn reset_letter(to: String, public_url: &str, token: &Token, ends_all: bool) -> Letter {
    let ending = match ends_all {
        true => {
            "every sign-in of the account ends with it. As nobody has shown yet that they read the mail of this address, so \
             do its API keys, the links and invitations made with it, and its connections with sign-in providers"
        }
        false => "every sign-in you have ends with it",
    };
    let text = format!(
        "Somebody, probably you, asked for a new password for {to} on {public_url}.\n\n\
         Set it here, within an hour:\n\n{public_url}/reset/{}\n\n\
         The link works once, and {ending}. If it was not you, there is nothing to do: your password stays as it is.\n",
        token.expose()
    );
    Letter { to, subject: "Your new password".to_owned(), text }
}

fn invitation_letter(invitation: &Invitation, public_url: &str, token: &Token) -> Letter {
    let Invitation { workspace_name, invited_by, role, email, .. } = invitation;
    let text = format!(
        "{invited_by} invites you to the workspace {workspace_name:?} on {public_url}, as {role}.\n\n\
         Accept within seven days, signed in as {email}:\n\n{public_url}/invitations/{}\n\n\
         If you know nothing of this, there is nothing to do.\n",
        token.expose()
    );
    Letter { to: email.clone(), subject: format!("Invitation to {workspace_name}"), text }
}
