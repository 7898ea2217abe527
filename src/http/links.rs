//! `/v1/subjects/{subject}/links`: links with which a customer sees the usage of one subject, and nothing else. The page
//! that such a link opens is the dashboard's; what a token opens is decided by `auth::link_token::check`.

use actix_web::{HttpRequest, HttpResponse, web};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::app::App;
use crate::auth::Caller;
use crate::auth::link_token::{NewLinkRequest, status};
use crate::auth::sql::links::SubjectLink;
use crate::error::Result;
use crate::http::body::Json;
use crate::http::extract::{Id, Ids};
use crate::http::openapi::Doc;
use crate::http::origin::own_origin;
use crate::http::respond::{self, Page};
use crate::metering::event::parse_subject;
use crate::metering::time::Timestamp;

#[derive(Serialize, ToSchema)]
#[schema(as = SubjectLink)]
pub struct View<'a> {
    id: &'a str,
    subject: &'a str,
    /// Empty: every meter.
    meters: &'a [String],
    /// Whose pages may show it in a frame.
    origins: &'a [String],
    /// `active`, `expired` or `revoked`.
    status: &'static str,
    expires_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    revoked_at: Option<Timestamp>,
    created_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_used_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<String>,
}

impl<'a> View<'a> {
    fn of(link: &'a SubjectLink, token: Option<&'a str>, url: Option<String>) -> Self {
        View {
            id: &link.public_id,
            subject: &link.subject,
            meters: &link.meters.0,
            origins: &link.origins.0,
            status: status(link, Timestamp::now()),
            expires_at: Timestamp(link.expires_at),
            revoked_at: link.revoked_at.map(Timestamp),
            created_at: Timestamp(link.created_at),
            last_used_at: link.last_used_at.map(Timestamp),
            token,
            url,
        }
    }
}

#[derive(Default, Deserialize, ToSchema)]
#[schema(as = SubjectLinkInput)]
pub struct Input {
    meters: Option<Vec<String>>,
    origins: Option<Vec<String>>,
    /// A day unless told; at most 366 days.
    expires_in_seconds: Option<i64>,
}

pub fn describe_create() -> Doc {
    Doc::new("links", "Make a link for a customer")
        .body::<Input>()
        .answer::<View>(201, "The link; its token and address are shown only here.")
        .errors(&[409])
}

pub async fn create(
    app: web::Data<App>,
    request: HttpRequest,
    caller: Caller,
    Id(subject): Id,
    body: Json<Input>,
) -> Result<HttpResponse> {
    let (Json(input), subject) = (body, parse_subject(&subject)?);
    let wish = NewLinkRequest {
        meters: input.meters.unwrap_or_default(),
        origins: input.origins.unwrap_or_default(),
        expires_in_seconds: input.expires_in_seconds,
    };
    let (link, token) = app.auth.create_link(&caller, subject, &wish).await?;
    let url = format!("{}/share/{}", own_origin(&app, &request), token.expose());
    respond::created(&View::of(&link, Some(token.expose()), Some(url)))
}

pub fn describe_list() -> Doc {
    Doc::new("links", "Links of a subject").page::<View>("The newest 200, ended ones too.")
}

pub async fn list(app: web::Data<App>, caller: Caller, Id(subject): Id) -> Result<HttpResponse> {
    caller.ensure_meter_allowed("")?;
    let links = app.auth.list_links(&caller, parse_subject(&subject)?).await?;
    respond::ok(&Page {
        items: links.iter().map(|link| View::of(link, None, None)).collect(),
        next_cursor: None,
    })
}

pub fn describe_revoke() -> Doc {
    Doc::new("links", "Revoke a link").empty(204, "It opens nothing any more.").errors(&[404])
}

pub async fn revoke(app: web::Data<App>, caller: Caller, Ids(subject, id): Ids) -> Result<HttpResponse> {
    caller.ensure_meter_allowed("")?;
    app.auth.revoke_link(&caller, parse_subject(&subject)?, &id).await?;
    Ok(respond::no_content())
}
