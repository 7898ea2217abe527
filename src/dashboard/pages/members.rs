//! `/members`, `/invitations/{token}` and the switch between workspaces. The rules are `auth::members`'.

use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse, web};
use askama::Template;

use crate::app::App;
use crate::auth::Caller;
use crate::auth::members::{Departure, KeyFate, Status};
use crate::auth::permission::Role;
use crate::auth::session::{SignedIn, clearing_cookies};
use crate::auth::sql::invitations::Invitation;
use crate::auth::sql::members::{Colleague, Holdings, Place};
use crate::dashboard::confirm::{Choice, Confirm};
use crate::dashboard::form::{Complaint, Fields, Form};
use crate::dashboard::once::{self, Once};
use crate::dashboard::view;
use crate::dashboard::visit::{Shell, Visit, ok, rejected, secret};
use crate::error::{Error, Result};
use crate::http::extract::Id;
use crate::http::session::{secure, shown_tokens, with_cookies};
use crate::metering::time::Timestamp;

struct MemberRow {
    member: Colleague,
    is_self: bool,
}

struct InvitationRow {
    invitation: Invitation,
    status: &'static str,
}

#[derive(Template)]
#[template(path = "members/list.html")]
struct ListPage {
    shell: Shell,
    rows: Vec<MemberRow>,
    invitations: Vec<InvitationRow>,
    places: Vec<Place>,
    here: String,
    is_admin: bool,
    is_owner: bool,
    fields: Fields,
    complaint: Complaint,
}

async fn list_page(app: &App, caller: &Caller, visit: &Visit) -> Result<ListPage> {
    let (is_admin, is_owner) = (caller.role >= Role::Admin, caller.role == Role::Owner);
    let (members, invitations) = match is_admin {
        true => (app.auth.members(caller).await?, app.auth.invitations(caller).await?),
        false => (Vec::new(), Vec::new()),
    };
    let now = Timestamp::now();
    Ok(ListPage {
        shell: visit.shell("members", "Members"),
        rows: members
            .into_iter()
            .map(|member| MemberRow { is_self: member.user_id == caller.user_id, member })
            .collect(),
        invitations: invitations
            .into_iter()
            .map(|invitation| InvitationRow { status: Status::of(&invitation, now).as_str(), invitation })
            .collect(),
        places: app.auth.workspaces(caller).await?,
        here: caller.user.workspace_id.clone(),
        is_admin,
        is_owner,
        fields: Fields::of([("role", "viewer")]),
        complaint: Complaint::none(),
    })
}

pub async fn list(app: web::Data<App>, caller: Caller, visit: Visit) -> Result<HttpResponse> {
    ok(&list_page(&app, &caller, &visit).await?)
}

async fn refused(
    app: &App,
    caller: &Caller,
    visit: &Visit,
    fields: Fields,
    error: Error,
) -> Result<HttpResponse> {
    let complaint = Complaint::of(error, &["email", "role", "name"])?;
    rejected(&ListPage { fields, complaint, ..list_page(app, caller, visit).await? })
}

/// Back to the page with what was done, or the page with why not.
async fn answered(
    app: &App,
    caller: &Caller,
    visit: &Visit,
    fields: Fields,
    done: Result<()>,
    words: &str,
) -> Result<HttpResponse> {
    match done {
        Ok(()) => Ok(visit.go("/members", words)),
        Err(error) => refused(app, caller, visit, fields, error).await,
    }
}

#[derive(Template)]
#[template(path = "members/invited.html")]
struct InvitedPage {
    shell: Shell,
    invitation: Invitation,
    link: String,
    is_mailed: bool,
}

/// Makes an invitation; its link is shown once.
pub async fn invite(app: web::Data<App>, caller: Caller, visit: Visit, form: Form) -> Result<HttpResponse> {
    let Form(fields) = form;
    match app.auth.invite(&caller, fields.get("email"), fields.get("role")).await {
        Ok((invitation, token)) => {
            let page = format!("/members/invitations/{}", invitation.public_id);
            once::show_at(&visit, &caller, &page, token.expose(), "")
        }
        Err(error) => refused(&app, &caller, &visit, fields, error).await,
    }
}

/// The link of an invitation that was just made, once.
pub async fn invited(app: web::Data<App>, caller: Caller, visit: Visit, Id(id): Id) -> Result<HttpResponse> {
    let Some(Once { secret: token, .. }) = once::take(&visit, &caller) else {
        let words =
            "The link of an invitation is shown once. If it was not sent, take it back and invite again.";
        return Ok(visit.go("/members", words));
    };
    let invitations = app.auth.invitations(&caller).await?;
    let invitation = invitations.into_iter().find(|invitation| invitation.public_id == id);
    let invitation = invitation.ok_or_else(|| Error::not_found("invitation"))?;
    let link = format!("{}/invitations/{token}", visit.origin);
    let (shell, is_mailed) = (visit.shell("members", "Invitation"), app.auth.sends_mail());
    once::page(&visit, &InvitedPage { shell, invitation, link, is_mailed })
}

pub async fn revoke_invitation(
    app: web::Data<App>,
    caller: Caller,
    visit: Visit,
    Id(id): Id,
    _form: Form,
) -> Result<HttpResponse> {
    app.auth.revoke_invitation(&caller, &id).await?;
    Ok(visit.go("/members", "The invitation is taken back. Its link opens nothing any more."))
}

/// What somebody made that ends with their membership, or is handed on.
fn made(holdings: &Holdings) -> String {
    format!(
        "{} in use, {} and {}",
        view::counted(holdings.keys, "API key", "API keys"),
        view::counted(holdings.links, "open customer link", "open customer links"),
        view::counted(holdings.invitations, "open invitation", "open invitations")
    )
}

fn to(address: &str) -> HttpResponse {
    HttpResponse::SeeOther().insert_header((header::LOCATION, address)).finish()
}

/// What goes with a member who is removed.
pub async fn confirm_remove(
    app: web::Data<App>,
    caller: Caller,
    visit: Visit,
    Id(user): Id,
) -> Result<HttpResponse> {
    let Departure { member, holdings, is_last_owner } = app.auth.departure(&caller, &user).await?;
    if member.user_id == caller.user_id {
        return Ok(to("/members/leave"));
    }
    let email = member.email;
    let shell = visit.shell("members", format!("Remove {email}"));
    let mut sentences = vec![
        format!(
            "{email} has the role {} here since {}. Their sessions in this workspace end at once, and queries that they \
             share are seen by nobody else any more.",
            member.role,
            shell.when(member.joined_at).words()
        ),
        format!("They made {}.", made(&holdings)),
        "Keys and links are revoked, or become yours and go on working; invitations are taken back. Everything else \
         that they did stays."
            .to_owned(),
    ];
    if is_last_owner {
        sentences.push(LAST_OWNER.to_owned());
    }
    let choice = Choice {
        name: "keys",
        label: format!("Keys and links that {email} made"),
        options: [("revoke", "are revoked"), ("transfer", "become yours")],
    };
    ok(&Confirm {
        sentences,
        action: format!("/members/{user}"),
        fields: vec![("do", "remove".to_owned())],
        choice: (holdings.keys + holdings.links > 0).then_some(choice),
        button: if is_last_owner { String::new() } else { format!("Remove {email}") },
        ..Confirm::below(shell, [("Members", "/members")])
    })
}

const LAST_OWNER: &str = "A workspace needs an owner: hand it over first.";

/// What the ownership of a workspace is handed over with.
pub async fn confirm_hand_over(
    app: web::Data<App>,
    caller: Caller,
    visit: Visit,
    Id(user): Id,
) -> Result<HttpResponse> {
    let member = app.auth.departure(&caller, &user).await?.member;
    if member.user_id == caller.user_id {
        return Err(Error::invalid("the workspace is handed over to another member"));
    }
    let (email, workspace) = (member.email, &caller.user.workspace_name);
    let becomes = match member.role {
        Role::Owner => format!("{email} is an owner of {workspace} already. You become an admin."),
        role => format!(
            "{email}, with the role {role} now, becomes an owner of {workspace}. You become an admin."
        ),
    };
    let sentences = vec![
        becomes,
        "You cannot take it back: only an owner decides about members, their keys and the workspace."
            .to_owned(),
        "What you made stays yours: your API keys and customer links go on working.".to_owned(),
    ];
    ok(&Confirm {
        sentences,
        action: format!("/members/{user}"),
        fields: vec![("do", "hand-over".to_owned())],
        button: format!("Hand over to {email}"),
        ..Confirm::below(visit.shell("members", format!("Hand over {workspace}")), [("Members", "/members")])
    })
}

/// Changes a member: another role, the ownership, or the end of the membership.
pub async fn change(
    app: web::Data<App>,
    caller: Caller,
    visit: Visit,
    Id(user): Id,
    form: Form,
) -> Result<HttpResponse> {
    let Form(fields) = form;
    let (done, words) = match fields.get("do") {
        "hand-over" => (app.auth.hand_over(&caller, &user).await, "The workspace has a new owner."),
        "remove" => {
            let fate = KeyFate::parse(fields.get("keys"))?;
            (app.auth.remove_member(&caller, &user, fate).await, "The member is removed.")
        }
        _ => (app.auth.change_role(&caller, &user, fields.get("role")).await, "The role is changed."),
    };
    answered(&app, &caller, &visit, fields, done, words).await
}

pub async fn rename(app: web::Data<App>, caller: Caller, visit: Visit, form: Form) -> Result<HttpResponse> {
    let Form(fields) = form;
    let done = app.auth.rename_workspace(&caller, fields.get("name")).await;
    answered(&app, &caller, &visit, fields, done, "The workspace has a new name.").await
}

/// What goes with the own membership.
pub async fn confirm_leave(app: web::Data<App>, caller: Caller, visit: Visit) -> Result<HttpResponse> {
    let Departure { holdings, is_last_owner, .. } = app.auth.departure(&caller, &caller.user.id).await?;
    let workspace = &caller.user.workspace_name;
    let mut sentences = vec![
        format!("You leave {workspace} at once, in every browser. Only an invitation brings you back."),
        format!("You made {}.", made(&holdings)),
        "They end with your membership: calls with your keys are refused, your links open nothing, and queries that \
         you share are seen by nobody else any more. Everything else that you did stays."
            .to_owned(),
    ];
    if is_last_owner {
        sentences.push(LAST_OWNER.to_owned());
    }
    ok(&Confirm {
        sentences,
        action: "/members/leave".to_owned(),
        button: if is_last_owner { String::new() } else { format!("Leave {workspace}") },
        ..Confirm::below(visit.shell("members", format!("Leave {workspace}")), [("Members", "/members")])
    })
}

/// Ends the own membership, and the session with it.
pub async fn leave(
    app: web::Data<App>,
    request: HttpRequest,
    caller: Caller,
    visit: Visit,
    form: Form,
) -> Result<HttpResponse> {
    let Form(fields) = form;
    match app.auth.leave_workspace(&caller).await {
        Ok(()) => {
            let left = visit.go("/login", "You left the workspace. Sign in to another of yours.");
            with_cookies(left, clearing_cookies(secure(&app, &request)))
        }
        Err(error) => refused(&app, &caller, &visit, fields, error).await,
    }
}

fn moved(app: &App, request: &HttpRequest, session: &SignedIn) -> Result<HttpResponse> {
    let next = HttpResponse::SeeOther().insert_header((header::LOCATION, "/overview")).finish();
    with_cookies(next, session.cookies(secure(app, request)))
}

pub async fn switch(
    app: web::Data<App>,
    request: HttpRequest,
    caller: Caller,
    form: Form,
) -> Result<HttpResponse> {
    let Form(fields) = form;
    let shown = shown_tokens(&request);
    moved(&app, &request, &app.auth.switch_workspace(&caller, fields.get("workspace"), shown).await?)
}

#[derive(Template)]
#[template(path = "members/invitation.html")]
struct InvitationPage {
    shell: Shell,
    invitation: Invitation,
    status: &'static str,
    is_theirs: bool,
    /// This page, as a value of an address.
    link_here: String,
    complaint: Complaint,
}

async fn invitation_page(app: &App, visit: &Visit, token: &str) -> Result<InvitationPage> {
    let invitation = app.auth.invitation(token).await?;
    let email = visit.caller().map(|caller| caller.user.email.as_str());
    Ok(InvitationPage {
        shell: visit.shell("members", "Invitation"),
        status: Status::of(&invitation, Timestamp::now()).as_str(),
        is_theirs: email == Some(invitation.email.as_str()),
        link_here: view::segment(&visit.here),
        complaint: Complaint::none(),
        invitation,
    })
}

/// What the holder of the link is asked; whoever is signed in with that address can accept.
pub async fn invitation(app: web::Data<App>, visit: Visit, Id(token): Id) -> Result<HttpResponse> {
    secret(&invitation_page(&app, &visit, &token).await?)
}

pub async fn accept(
    app: web::Data<App>,
    request: HttpRequest,
    caller: Caller,
    visit: Visit,
    Id(token): Id,
    _form: Form,
) -> Result<HttpResponse> {
    match app.auth.accept_invitation(&caller, &token, shown_tokens(&request)).await {
        Ok(session) => moved(&app, &request, &session),
        Err(error) => {
            let complaint = Complaint::of(error, &[])?;
            rejected(&InvitationPage { complaint, ..invitation_page(&app, &visit, &token).await? })
        }
    }
}
