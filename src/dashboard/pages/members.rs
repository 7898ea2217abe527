//! `/members`, `/invitations/{token}` and the switch between workspaces. The rules are `auth::members`'.

use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse, web};
use askama::Template;

use crate::app::App;
use crate::auth::Caller;
use crate::auth::members::{KeyFate, Status};
use crate::auth::permission::Role;
use crate::auth::session::{SignedIn, clearing_cookies};
use crate::auth::sql::invitations::Invitation;
use crate::auth::sql::members::{Colleague, Place};
use crate::dashboard::form::{Complaint, Fields, Form};
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
            let link = format!("{}/invitations/{}", visit.origin, token.expose());
            let (shell, is_mailed) = (visit.shell("members", "Invitation"), app.auth.sends_mail());
            secret(&InvitedPage { shell, invitation, link, is_mailed })
        }
        Err(error) => refused(&app, &caller, &visit, fields, error).await,
    }
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
