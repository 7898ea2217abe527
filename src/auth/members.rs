//! Who belongs to a workspace, and who is asked to: roles, the last owner who cannot go, invitations. What a change
//! means for keys and sessions is felt at once on this server, and told to others.

use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;

use crate::auth::permission::Role;
use crate::auth::session::{SignedIn, Tokens, normal_email};
use crate::auth::sql::invitations::{self, Invitation, NewInvitation};
use crate::auth::sql::keys::Owner;
use crate::auth::sql::members::{self, Colleague, Holdings, Place, Touched};
use crate::auth::token::{self, INVITATION_PREFIX, Token, TokenHash};
use crate::auth::{Auth, Caller};
use crate::db::changes::Change;
use crate::db::{Conn, DbError, audit};
use crate::error::{Error, Result};
use crate::metering::time::{DAY, Timestamp};

const INVITATION_LIFETIME: i64 = 7 * DAY;
const LISTED_INVITATIONS: i64 = 500;
const MAX_WORKSPACE_NAME_CHARACTERS: usize = 255;

/// A member, and what would go with them.
#[derive(Clone, Debug)]
pub struct Departure {
    pub member: Colleague,
    pub holdings: Holdings,
    /// They cannot go: nobody would decide about members.
    pub is_last_owner: bool,
}

/// What becomes of the keys that a removed member made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeyFate {
    /// They end at once.
    #[default]
    Revoke,
    /// They belong to whoever removes the member, and go on working.
    Transfer,
}

impl KeyFate {
    /// The word of a request; empty is the default.
    pub fn parse(word: &str) -> Result<KeyFate> {
        match word {
            "" | "revoke" => Ok(KeyFate::Revoke),
            "transfer" => Ok(KeyFate::Transfer),
            _ => Err(Error::invalid("keys must be revoke or transfer")),
        }
    }
}

/// Where an invitation is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = InvitationStatus)]
pub enum Status {
    Pending,
    Accepted,
    Revoked,
    Expired,
}

impl Status {
    pub fn of(invitation: &Invitation, now: Timestamp) -> Status {
        match (invitation.accepted_at, invitation.revoked_at) {
            (Some(_), _) => Status::Accepted,
            (None, Some(_)) => Status::Revoked,
            (None, None) if invitation.expires_at <= now.0 => Status::Expired,
            (None, None) => Status::Pending,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Status::Pending => "pending",
            Status::Accepted => "accepted",
            Status::Revoked => "revoked",
            Status::Expired => "expired",
        }
    }
}

fn role(word: &str) -> Result<Role> {
    Role::parse(word).ok_or_else(|| Error::invalid("role must be owner, admin or viewer"))
}

/// Nobody is made an owner by a link.
fn invitable_role(word: &str) -> Result<Role> {
    role(word)
        .ok()
        .filter(|role| *role != Role::Owner)
        .ok_or_else(|| Error::invalid("role must be admin or viewer"))
}

/// The name of a workspace as it is stored.
pub fn workspace_name(text: &str) -> Result<String> {
    let name = text.trim();
    if name.is_empty()
        || name.chars().count() > MAX_WORKSPACE_NAME_CHARACTERS
        || name.contains(char::is_control)
    {
        return Err(Error::invalid(format_args!(
            "name must have 1 to {MAX_WORKSPACE_NAME_CHARACTERS} characters"
        )));
    }
    Ok(name.to_owned())
}

/// Gives a user a role in a workspace on behalf of an operator, and takes them in with it when they are no member yet;
/// 409 for the last owner.
pub fn put_role(
    conn: &mut Conn,
    workspace_id: i64,
    email: &str,
    word: &str,
    now: Timestamp,
) -> Result<(), DbError> {
    let role = role(word)?;
    members::lock(conn, workspace_id)?;
    audit::in_workspace(workspace_id);
    let user = members::by_email(conn, email)?;
    let before = members::role_of(conn, workspace_id, user.user_id)?;
    audit::about(&user.public_id, email);
    audit::states(before.map(|role| json!({"role": role})), Some(json!({"role": role})));
    match before {
        Some(before) => {
            if role != Role::Owner {
                keep_an_owner(conn, workspace_id, user.user_id, before)?;
            }
            members::set_role(conn, workspace_id, user.user_id, role, now).map(drop)
        }
        None => members::join(conn, workspace_id, user.user_id, role, now),
    }
}

/// Whether this is the token of an invitation that whoever has the address could accept.
pub(super) fn opens_registration(
    conn: &mut Conn,
    hash: &TokenHash,
    email: &str,
    now: Timestamp,
) -> Result<bool, DbError> {
    let found = invitations::by_token(conn, hash)?;
    match found.filter(|found| found.email == email && Status::of(found, now) == Status::Pending) {
        Some(found) => invitations::is_backed(conn, found.id),
        None => Ok(false),
    }
}

/// 409 when nobody would be left who decides about members, after this one with the role of now.
fn keep_an_owner(conn: &mut Conn, workspace_id: i64, user_id: i64, role: Role) -> Result<(), DbError> {
    if role == Role::Owner && !members::has_another_owner(conn, workspace_id, user_id)? {
        return Err(Error::conflict("a workspace needs an owner: hand it over first").into());
    }
    Ok(())
}

impl Auth {
    /// The caller's workspaces, the oldest membership first.
    pub async fn workspaces(&self, caller: &Caller) -> Result<Vec<Place>> {
        let user_id = caller.user_id;
        self.0.store.read("members::places", move |conn| members::places(conn, user_id)).await
    }

    /// A session in another of the caller's workspaces; the one that is shown ends. 403 where the caller is no member.
    pub async fn switch_workspace(
        &self,
        caller: &Caller,
        workspace: &str,
        shown: Tokens,
    ) -> Result<SignedIn> {
        let workspace = workspace.trim().to_owned();
        if workspace.is_empty() {
            return Err(Error::invalid("workspace_id is required"));
        }
        let user_id = caller.user_id;
        let find = move |conn: &mut Conn| {
            let found = members::place_of(conn, user_id, &workspace)?;
            let (workspace_id, name) =
                found.ok_or_else(|| Error::forbidden("you are no member of this workspace"))?;
            audit::about(&workspace, &name);
            Ok(workspace_id)
        };
        self.move_session("sessions::switch", caller, shown, find).await
    }

    pub async fn members(&self, caller: &Caller) -> Result<Vec<Colleague>> {
        let workspace_id = caller.workspace_id;
        self.0.store.read("members::list", move |conn| members::list(conn, workspace_id)).await
    }

    /// What would go with a member of the caller's workspace; 404 for everybody else.
    pub async fn departure(&self, caller: &Caller, user: &str) -> Result<Departure> {
        let (workspace_id, user, now) = (caller.workspace_id, user.to_owned(), Timestamp::now());
        let work = move |conn: &mut Conn| {
            let member = members::find(conn, workspace_id, &user)?;
            let is_last_owner = member.role == Role::Owner
                && !members::has_another_owner(conn, workspace_id, member.user_id)?;
            let holdings = members::holdings(conn, Owner { workspace_id, user_id: member.user_id }, now)?;
            Ok(Departure { member, holdings, is_last_owner })
        };
        self.0.store.read("members::departure", work).await
    }

    /// Gives a member another role; 409 for the last owner.
    pub async fn change_role(&self, caller: &Caller, user: &str, word: &str) -> Result<()> {
        let (standing, user, role) = (caller.standing(), user.to_owned(), role(word)?);
        let now = Timestamp::now();
        let work = move |conn: &mut Conn| {
            standing.check_role(conn, Role::Owner, now)?;
            let own = standing.owner;
            let member = members::find(conn, own.workspace_id, &user)?;
            if role != Role::Owner {
                keep_an_owner(conn, own.workspace_id, member.user_id, member.role)?;
            }
            audit::about(&member.public_id, &member.email);
            audit::states(Some(json!({"role": member.role})), Some(json!({"role": role})));
            members::set_role(conn, own.workspace_id, member.user_id, role, now)
        };
        self.tell(self.0.store.write("members::set_role", work).await?);
        Ok(())
    }

    /// Makes another member the owner, and the caller an admin, in one step.
    pub async fn hand_over(&self, caller: &Caller, user: &str) -> Result<()> {
        let (standing, user, now) = (caller.standing(), user.trim().to_owned(), Timestamp::now());
        let work = move |conn: &mut Conn| {
            standing.check_role(conn, Role::Owner, now)?;
            let own = standing.owner;
            let heir = members::find(conn, own.workspace_id, &user)?;
            if heir.user_id == own.user_id {
                return Err(Error::invalid("user_id must be another member").into());
            }
            audit::about(&heir.public_id, &heir.email);
            audit::states(Some(json!({"role": heir.role})), Some(json!({"role": Role::Owner})));
            let mut touched = members::set_role(conn, own.workspace_id, heir.user_id, Role::Owner, now)?;
            // the heir may be somebody whom an operator has disabled
            keep_an_owner(conn, own.workspace_id, own.user_id, Role::Owner)?;
            let own = members::set_role(conn, own.workspace_id, own.user_id, Role::Admin, now)?;
            touched.keys.extend(own.keys);
            touched.sessions.extend(own.sessions);
            Ok(touched)
        };
        self.tell(self.0.store.write("members::hand_over", work).await?);
        Ok(())
    }

    /// Ends a membership, with its sessions; 409 for the last owner.
    pub async fn remove_member(&self, caller: &Caller, user: &str, fate: KeyFate) -> Result<()> {
        let (standing, user, now) = (caller.standing(), user.to_owned(), Timestamp::now());
        let work = move |conn: &mut Conn| {
            standing.check_role(conn, Role::Owner, now)?;
            let own = standing.owner;
            let member = members::find(conn, own.workspace_id, &user)?;
            keep_an_owner(conn, own.workspace_id, member.user_id, member.role)?;
            let heir = (fate == KeyFate::Transfer && member.user_id != own.user_id).then_some(own.user_id);
            let gone = Owner { user_id: member.user_id, ..own };
            audit::about(&member.public_id, &member.email);
            audit::states(Some(json!({"role": member.role})), Some(json!({"keys_kept": heir.is_some()})));
            members::remove(conn, gone, heir, now)
        };
        self.tell(self.0.store.write("members::remove", work).await?);
        Ok(())
    }

    /// Ends the caller's own membership; their keys end with it. 409 for the last owner.
    pub async fn leave_workspace(&self, caller: &Caller) -> Result<()> {
        let (standing, now) = (caller.standing(), Timestamp::now());
        let (id, name) = (caller.user.id.clone(), caller.user.email.clone());
        let work = move |conn: &mut Conn| {
            standing.check_role(conn, Role::Viewer, now)?;
            let own = standing.owner;
            let role = members::role_of(conn, own.workspace_id, own.user_id)?;
            let role = role.ok_or_else(Error::unauthorized)?;
            keep_an_owner(conn, own.workspace_id, own.user_id, role)?;
            audit::about(&id, &name);
            audit::states(Some(json!({"role": role})), None);
            members::remove(conn, own, None, now)
        };
        self.tell(self.0.store.write("members::leave", work).await?);
        Ok(())
    }

    /// Another name for the caller's workspace.
    pub async fn rename_workspace(&self, caller: &Caller, name: &str) -> Result<()> {
        let (standing, name, now) = (caller.standing(), workspace_name(name)?, Timestamp::now());
        let id = caller.user.workspace_id.clone();
        let work = move |conn: &mut Conn| {
            standing.check_role(conn, Role::Owner, now)?;
            let own = standing.owner;
            audit::about(&id, &name);
            members::rename(conn, own.workspace_id, &name)?;
            Ok(Touched { sessions: members::sessions_of(conn, own.workspace_id)?, keys: Vec::new() })
        };
        self.tell(self.0.store.write("workspaces::rename", work).await?);
        Ok(())
    }

    /// Lets caches forget credentials here, and then elsewhere.
    pub(super) fn tell(&self, touched: Touched) {
        self.0.keys.forget(touched.keys.iter().map(Vec::as_slice));
        self.0.sessions.forget(touched.sessions.iter().map(Vec::as_slice));
        let changes = self.0.store.changes();
        touched.keys.into_iter().for_each(|hash| changes.tell(Change::Key(hash)));
        touched.sessions.into_iter().for_each(|hash| changes.tell(Change::Session(hash)));
    }

    // Invitations -------------------------------------------------------------------------------------

    /// The invitation, and the token that accepts it; shown once. 429 when a mail would be one too many.
    pub async fn invite(&self, caller: &Caller, email: &str, word: &str) -> Result<(Invitation, Token)> {
        let (standing, now) = (caller.standing(), Timestamp::now());
        let own = standing.owner;
        let (email, role, token) =
            (normal_email(email)?, invitable_role(word)?, Token::new(INVITATION_PREFIX)?);
        let new = NewInvitation {
            workspace_id: own.workspace_id,
            invited_by: own.user_id,
            email,
            role,
            token_hash: token.hash(),
            expires_at: now.plus(INVITATION_LIFETIME),
        };
        let to = new.email.clone();
        self.count_invitation(own.workspace_id, &to, now)?;
        let work = move |conn: &mut Conn| {
            standing.check_role(conn, Role::Admin, now)?;
            let made = invitations::create(conn, &new, now)?;
            audit::about(&made.public_id, &made.email);
            audit::states(None, Some(json!({"role": made.role})));
            Ok(made)
        };
        let made = self.0.store.write("invitations::create", work).await;
        let made = made.inspect_err(|_| self.uncount_invitation(own.workspace_id, &to))?;
        self.mail_invitation(&made, &token);
        Ok((made, token))
    }

    /// The newest invitations of the workspace, whatever became of them.
    pub async fn invitations(&self, caller: &Caller) -> Result<Vec<Invitation>> {
        let id = caller.workspace_id;
        let work = move |conn: &mut Conn| invitations::list(conn, id, LISTED_INVITATIONS);
        self.0.store.read("invitations::list", work).await
    }

    /// Takes an open invitation back; 404 for any other.
    pub async fn revoke_invitation(&self, caller: &Caller, id: &str) -> Result<()> {
        let (standing, id, now) = (caller.standing(), id.to_owned(), Timestamp::now());
        let work = move |conn: &mut Conn| {
            standing.check_role(conn, Role::Admin, now)?;
            match invitations::revoke(conn, standing.owner.workspace_id, &id, now)? {
                true => Ok(()),
                false => Err(Error::not_found("open invitation").into()),
            }
        };
        self.0.store.write("invitations::revoke", work).await
    }

    /// What whoever holds the token may see, in every state.
    pub async fn invitation(&self, token: &str) -> Result<Invitation> {
        let missing = || Error::not_found("invitation");
        if !token.starts_with(INVITATION_PREFIX) {
            return Err(missing());
        }
        let hash = token::hash(token);
        let work = move |conn: &mut Conn| invitations::by_token(conn, &hash);
        self.0.store.vital().read("invitations::by_token", work).await?.ok_or_else(missing)
    }

    /// Makes the caller a member; the new session is in that workspace, and the one that is shown ends.
    pub async fn accept_invitation(&self, caller: &Caller, token: &str, shown: Tokens) -> Result<SignedIn> {
        let (user_id, email) = (caller.user_id, caller.user.email.clone());
        let (invitation, now) = (self.invitation(token).await?, Timestamp::now());
        if invitation.email != email {
            return Err(Error::forbidden("the invitation is for another address"));
        }
        let join = move |conn: &mut Conn| {
            members::lock(conn, invitation.workspace_id)?;
            // who may invite nobody any more has invited nobody
            if !invitations::is_backed(conn, invitation.id)?
                || !invitations::accept(conn, invitation.id, now)?
            {
                return Err(Error::conflict("the invitation is not open any more").into());
            }
            members::join(conn, invitation.workspace_id, user_id, invitation.role, now)?;
            audit::about(&invitation.public_id, &invitation.email);
            Ok(invitation.workspace_id)
        };
        self.move_session("invitations::accept", caller, shown, join).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_800_000_000_000_000);

    #[test]
    fn roles_of_invitations_are_admin_and_viewer() {
        assert_eq!(invitable_role(" Admin ").ok(), Some(Role::Admin));
        assert_eq!(invitable_role("viewer").ok(), Some(Role::Viewer));
        for bad in ["owner", "", "god"] {
            assert!(invitable_role(bad).is_err(), "{bad}");
        }
        assert_eq!(role("OWNER").ok(), Some(Role::Owner));
    }

    #[test]
    fn a_status_is_the_most_final_thing() {
        let status = |accepted: Option<i64>, revoked: Option<i64>, left: i64| {
            let invitation = Invitation {
                id: 1,
                public_id: String::new(),
                workspace_id: 1,
                workspace_public_id: String::new(),
                workspace_name: String::new(),
                email: String::new(),
                role: Role::Viewer,
                invited_by: String::new(),
                expires_at: NOW.0 + left,
                accepted_at: accepted,
                revoked_at: revoked,
                created_at: 0,
            };
            Status::of(&invitation, NOW)
        };
        assert_eq!(status(None, None, 1), Status::Pending);
        assert_eq!(status(None, None, 0), Status::Expired);
        assert_eq!(status(None, Some(1), 0), Status::Revoked);
        assert_eq!(status(Some(1), Some(1), 0), Status::Accepted);
    }
}
