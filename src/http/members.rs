//! `/v1/auth/workspaces`, `/v1/auth/workspace/…` and `/v1/auth/workspace-invitations/…`: who belongs to a workspace, and
//! in which one a session is. The rules are `auth::members`'.

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::app::App;
use crate::auth::Caller;
use crate::auth::members::{KeyFate, Status};
use crate::auth::permission::Role;
use crate::auth::session::clearing_cookies;
use crate::auth::sql::invitations::Invitation;
use crate::auth::sql::members::{Colleague, Place};
use crate::error::{Error, Result};
use crate::http::body::Json;
use crate::http::extract::{Id, Params};
use crate::http::openapi::Doc;
use crate::http::respond::{self, Page};
use crate::http::session::{SessionView, secure, shown_tokens, signed_in, with_cookies};
use crate::metering::calendar::Zone;
use crate::metering::time::Timestamp;
use crate::usage::key_conflicts::{self, KeyConflicts};

#[derive(Serialize, ToSchema)]
#[schema(as = Workspace)]
pub struct PlaceView<'a> {
    id: &'a str,
    name: &'a str,
    #[schema(value_type = String)]
    role: Role,
    created_at: Timestamp,
    joined_at: Timestamp,
    key_conflicts: &'a str,
    time_zone: &'a str,
}

impl<'a> PlaceView<'a> {
    fn of(place: &'a Place) -> Self {
        PlaceView {
            id: &place.public_id,
            name: &place.name,
            role: place.role,
            created_at: Timestamp(place.created_at),
            joined_at: Timestamp(place.joined_at),
            key_conflicts: &place.key_conflicts,
            time_zone: &place.time_zone,
        }
    }
}

#[derive(Serialize, ToSchema)]
#[schema(as = Member)]
pub struct MemberView<'a> {
    user_id: &'a str,
    email: &'a str,
    #[schema(value_type = String)]
    role: Role,
    created_at: Timestamp,
}

impl<'a> MemberView<'a> {
    fn of(member: &'a Colleague) -> Self {
        MemberView {
            user_id: &member.public_id,
            email: &member.email,
            role: member.role,
            created_at: Timestamp(member.joined_at),
        }
    }
}

#[derive(Serialize, ToSchema)]
#[schema(as = Invitation)]
pub struct InvitationView<'a> {
    id: &'a str,
    workspace_id: &'a str,
    workspace_name: &'a str,
    email: &'a str,
    #[schema(value_type = String)]
    role: Role,
    status: Status,
    expires_at: Timestamp,
    created_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<&'a str>,
}

impl<'a> InvitationView<'a> {
    fn of(invitation: &'a Invitation, token: Option<&'a str>) -> Self {
        InvitationView {
            id: &invitation.public_id,
            workspace_id: &invitation.workspace_public_id,
            workspace_name: &invitation.workspace_name,
            email: &invitation.email,
            role: invitation.role,
            status: Status::of(invitation, Timestamp::now()),
            expires_at: Timestamp(invitation.expires_at),
            created_at: Timestamp(invitation.created_at),
            token,
        }
    }
}

pub fn describe_workspaces() -> Doc {
    Doc::new("members", "Own workspaces").page::<PlaceView>("The oldest membership first.")
}

pub async fn workspaces(app: web::Data<App>, caller: Caller) -> Result<HttpResponse> {
    let places = app.auth.workspaces(&caller).await?;
    respond::ok(&Page { items: places.iter().map(PlaceView::of).collect(), next_cursor: None })
}

#[derive(Default, Deserialize, ToSchema)]
#[schema(as = WorkspaceChoice)]
pub struct SwitchInput {
    workspace_id: Option<String>,
}

pub fn describe_switch() -> Doc {
    Doc::new("members", "Switch to another workspace").body::<SwitchInput>().answer::<SessionView>(
        200,
        "Two new cookies, for a session in that workspace; the session that was shown ends.",
    )
}

pub async fn switch(
    app: web::Data<App>,
    request: HttpRequest,
    caller: Caller,
    body: Json<SwitchInput>,
) -> Result<HttpResponse> {
    let workspace = body.0.workspace_id.unwrap_or_default();
    let session = app.auth.switch_workspace(&caller, &workspace, shown_tokens(&request)).await?;
    signed_in(&app, &request, StatusCode::OK, &session)
}

/// What is absent stays as it is.
#[derive(Default, Deserialize, ToSchema)]
#[schema(as = WorkspaceChange)]
pub struct ChangeInput {
    /// For owners only.
    name: Option<String>,
    /// `answer` or `refuse`: what an idempotency key gets that comes again with another event. For owners only.
    key_conflicts: Option<String>,
    /// Of the IANA database, such as `Europe/Berlin`.
    time_zone: Option<String>,
}

pub fn describe_change() -> Doc {
    Doc::new(
        "members",
        "Rename the workspace, choose its time zone or what becomes of keys that are used for something else",
    )
    .body::<ChangeInput>()
    .empty(204, "Changed.")
}

/// All are looked at before any is changed.
pub async fn change(app: web::Data<App>, caller: Caller, body: Json<ChangeInput>) -> Result<HttpResponse> {
    let ChangeInput { name, key_conflicts, time_zone } = body.0;
    let is_only_zone = name.is_none() && key_conflicts.is_none() && time_zone.is_some();
    if !is_only_zone && caller.role != Role::Owner {
        return Err(Error::forbidden("only an owner may change more than the time zone"));
    }
    let key_conflicts = key_conflicts.as_deref().map(KeyConflicts::read).transpose()?;
    let zone = time_zone.map(|name| Zone::named(&name, "time_zone")).transpose()?;
    if name.is_some() || (key_conflicts.is_none() && zone.is_none()) {
        app.auth.rename_workspace(&caller, &name.unwrap_or_default()).await?;
    }
    if let Some(wanted) = key_conflicts {
        key_conflicts::set(&app.store, caller.workspace_id, wanted).await?;
    }
    if let Some(zone) = zone {
        app.zones.change(caller.workspace_id, zone).await?;
    }
    Ok(respond::no_content())
}

pub fn describe_leave() -> Doc {
    Doc::new("members", "Leave the workspace")
        .empty(204, "Left; own keys and sessions in it end, cookies are cleared.")
        .errors(&[409])
}

pub async fn leave(app: web::Data<App>, request: HttpRequest, caller: Caller) -> Result<HttpResponse> {
    app.auth.leave_workspace(&caller).await?;
    with_cookies(respond::no_content(), clearing_cookies(secure(&app, &request)))
}

#[derive(Default, Deserialize, ToSchema)]
#[schema(as = WorkspaceOwner)]
pub struct HandOverInput {
    user_id: Option<String>,
}

pub fn describe_hand_over() -> Doc {
    Doc::new("members", "Hand the workspace over")
        .body::<HandOverInput>()
        .empty(204, "That member is an owner, and the caller an admin.")
        .errors(&[404])
}

pub async fn hand_over(
    app: web::Data<App>,
    caller: Caller,
    body: Json<HandOverInput>,
) -> Result<HttpResponse> {
    app.auth.hand_over(&caller, &body.0.user_id.unwrap_or_default()).await?;
    Ok(respond::no_content())
}

pub fn describe_list() -> Doc {
    Doc::new("members", "Members of the workspace").page::<MemberView>("The oldest membership first.")
}

pub async fn list(app: web::Data<App>, caller: Caller) -> Result<HttpResponse> {
    let members = app.auth.members(&caller).await?;
    respond::ok(&Page { items: members.iter().map(MemberView::of).collect(), next_cursor: None })
}

#[derive(Default, Deserialize, ToSchema)]
#[schema(as = MemberRole)]
pub struct RoleInput {
    role: Option<String>,
}

pub fn describe_change_role() -> Doc {
    Doc::new("members", "Change a member's role")
        .body::<RoleInput>()
        .empty(204, "Changed, for keys and sessions of the member too.")
        .errors(&[409])
}

pub async fn change_role(
    app: web::Data<App>,
    caller: Caller,
    Id(user): Id,
    body: Json<RoleInput>,
) -> Result<HttpResponse> {
    app.auth.change_role(&caller, &user, &body.0.role.unwrap_or_default()).await?;
    Ok(respond::no_content())
}

pub fn describe_remove() -> Doc {
    Doc::new("members", "Remove a member")
        .text(
            "keys",
            "What becomes of the keys and links that the member made: `revoke`, the default, or `transfer`.",
        )
        .empty(204, "Removed. Their sessions here have ended, and their open invitations are taken back.")
        .errors(&[409])
}

pub async fn remove(
    app: web::Data<App>,
    caller: Caller,
    Id(user): Id,
    params: Params,
) -> Result<HttpResponse> {
    app.auth.remove_member(&caller, &user, KeyFate::parse(params.get("keys"))?).await?;
    Ok(respond::no_content())
}

pub fn describe_invitations() -> Doc {
    Doc::new("members", "Invitations").page::<InvitationView>("The newest 500, whatever became of them.")
}

pub async fn invitations(app: web::Data<App>, caller: Caller) -> Result<HttpResponse> {
    let found = app.auth.invitations(&caller).await?;
    let items = found.iter().map(|invitation| InvitationView::of(invitation, None)).collect();
    respond::ok(&Page { items, next_cursor: None })
}

#[derive(Default, Deserialize, ToSchema)]
#[schema(as = InvitationInput)]
pub struct InviteInput {
    email: Option<String>,
    role: Option<String>,
}

pub fn describe_invite() -> Doc {
    Doc::new("members", "Invite somebody")
        .body::<InviteInput>()
        .answer::<InvitationView>(201, "The invitation, good for 7 days; its token is shown only here.")
        .errors(&[409])
}

pub async fn invite(app: web::Data<App>, caller: Caller, body: Json<InviteInput>) -> Result<HttpResponse> {
    let Json(input) = body;
    let (email, role) = (input.email.unwrap_or_default(), input.role.unwrap_or_default());
    let (invitation, token) = app.auth.invite(&caller, &email, &role).await?;
    respond::created(&InvitationView::of(&invitation, Some(token.expose())))
}

pub fn describe_revoke_invitation() -> Doc {
    Doc::new("members", "Take an invitation back").empty(204, "Its token opens nothing any more.")
}

pub async fn revoke_invitation(app: web::Data<App>, caller: Caller, Id(id): Id) -> Result<HttpResponse> {
    app.auth.revoke_invitation(&caller, &id).await?;
    Ok(respond::no_content())
}

pub fn describe_preview() -> Doc {
    Doc::new("members", "Look at an invitation")
        .answer::<InvitationView>(200, "What the holder of the token is asked.")
        .errors(&[404])
}

pub async fn preview(app: web::Data<App>, Id(token): Id) -> Result<HttpResponse> {
    respond::ok(&InvitationView::of(&app.auth.invitation(&token).await?, None))
}

pub fn describe_accept() -> Doc {
    Doc::new("members", "Accept an invitation")
        .answer::<SessionView>(200, "Two new cookies, for a session in that workspace.")
        .errors(&[409])
}

pub async fn accept(
    app: web::Data<App>,
    request: HttpRequest,
    caller: Caller,
    Id(token): Id,
) -> Result<HttpResponse> {
    let session = app.auth.accept_invitation(&caller, &token, shown_tokens(&request)).await?;
    signed_in(&app, &request, StatusCode::OK, &session)
}
