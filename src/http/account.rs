//! `/v1/auth/sessions`, `/v1/auth/password`, `/v1/auth/preferences` and `/v1/auth/password-resets/…`: a person and their
//! own account. Signing in
//! and out is `session`'s.

use actix_web::{HttpRequest, HttpResponse, web};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::app::App;
use crate::auth::Caller;
use crate::auth::device;
use crate::auth::preferences::{self, Density, Preferences, Theme};
use crate::auth::session::clearing_cookies;
use crate::auth::sql::sign_ins::{SignIn, Which};
use crate::error::Result;
use crate::http::body::{Body, Json};
use crate::http::extract::Id;
use crate::http::openapi::Doc;
use crate::http::respond::{self, Page};
use crate::http::session::{address, secure, with_cookies};
use crate::metering::calendar::{WeekStart, Zone};
use crate::metering::time::Timestamp;

#[derive(Serialize, ToSchema)]
#[schema(as = SignIn)]
pub struct SignInView<'a> {
    id: &'a str,
    /// Whether it is the one that asks.
    current: bool,
    workspace_name: &'a str,
    address: &'a str,
    user_agent: &'a str,
    /// The same in words, such as `Firefox on Linux`.
    device: String,
    created_at: Timestamp,
    last_seen_at: Timestamp,
    expires_at: Timestamp,
}

impl<'a> SignInView<'a> {
    fn of(sign_in: &'a SignIn, own: &str) -> Self {
        SignInView {
            id: &sign_in.login_id,
            current: sign_in.login_id == own,
            workspace_name: &sign_in.workspace_name,
            address: &sign_in.address,
            user_agent: &sign_in.user_agent,
            device: device::words(&sign_in.user_agent),
            created_at: Timestamp(sign_in.created_at),
            last_seen_at: Timestamp(sign_in.seen_at),
            expires_at: Timestamp(sign_in.ends_at),
        }
    }
}

pub fn describe_sign_ins() -> Doc {
    Doc::new("auth", "Own sign-ins").page::<SignInView>("At most 100, the one seen last first.")
}

pub async fn sign_ins(app: web::Data<App>, caller: Caller) -> Result<HttpResponse> {
    let (found, own) = app.auth.sign_ins(&caller).await?;
    let items = found.iter().map(|sign_in| SignInView::of(sign_in, &own)).collect();
    respond::ok(&Page { items, next_cursor: None })
}

pub fn describe_end_all() -> Doc {
    Doc::new("auth", "Sign out everywhere").empty(204, "Every own sign-in has ended, cookies cleared.")
}

pub async fn end_all(app: web::Data<App>, request: HttpRequest, caller: Caller) -> Result<HttpResponse> {
    app.auth.end_sign_ins(&caller, Which::All).await?;
    with_cookies(respond::no_content(), clearing_cookies(secure(&app, &request)))
}

pub fn describe_end_one() -> Doc {
    Doc::new("auth", "End one sign-in").empty(204, "It has ended.")
}

pub async fn end_one(app: web::Data<App>, caller: Caller, Id(id): Id) -> Result<HttpResponse> {
    app.auth.end_sign_ins(&caller, Which::One(id)).await?;
    Ok(respond::no_content())
}

#[derive(Default, Deserialize, ToSchema)]
#[schema(as = PasswordChange)]
pub struct PasswordInput {
    current_password: Option<String>,
    password: Option<String>,
}

pub fn describe_change_password() -> Doc {
    Doc::new("auth", "Change the password")
        .body::<PasswordInput>()
        .empty(204, "Changed; every other sign-in has ended.")
        .errors(&[429])
}

pub async fn change_password(
    app: web::Data<App>,
    request: HttpRequest,
    caller: Caller,
    body: Json<PasswordInput>,
) -> Result<HttpResponse> {
    let Json(input) = body;
    let (current, new) = (input.current_password.unwrap_or_default(), input.password.unwrap_or_default());
    app.auth.change_password(&caller, current, new, address(&app, &request)).await?;
    Ok(respond::no_content())
}

/// What is null was not chosen.
#[derive(Serialize, ToSchema)]
#[schema(as = Preferences)]
pub struct PreferencesView<'a> {
    time_zone: Option<&'a str>,
    week_start: Option<WeekStart>,
    theme: Option<Theme>,
    density: Option<Density>,
    default_range: Option<&'static str>,
    shortcuts: Option<bool>,
}

impl<'a> PreferencesView<'a> {
    fn of(preferences: &'a Preferences) -> Self {
        PreferencesView {
            time_zone: preferences.time_zone.as_ref().map(Zone::name),
            week_start: preferences.week_start,
            theme: preferences.theme,
            density: preferences.density,
            default_range: preferences.default_range,
            shortcuts: preferences.shortcuts,
        }
    }
}

pub fn describe_preferences() -> Doc {
    Doc::new("auth", "Own preferences of the dashboard")
        .answer::<PreferencesView>(200, "What the user chose, the same in every workspace.")
}

pub async fn preferences(app: web::Data<App>, caller: Caller) -> Result<HttpResponse> {
    respond::ok(&PreferencesView::of(&app.auth.preferences(&caller).await?))
}

/// What is absent, null or blank is not chosen any more.
#[derive(Default, Deserialize, ToSchema)]
#[schema(as = PreferencesChange)]
pub struct PreferencesInput {
    /// In which instants are shown, such as `Europe/Berlin`.
    time_zone: Option<String>,
    /// Of views of `/usage` whose address names no such day: `monday` or `sunday`.
    week_start: Option<String>,
    /// `system`, `light` or `dark`.
    theme: Option<String>,
    /// `comfortable` or `compact`: how close rows of tables stand.
    density: Option<String>,
    /// Of `/usage` where the address names no time, such as `7d`.
    default_range: Option<String>,
    /// Whether single keys on the keyboard do something.
    shortcuts: Option<bool>,
}

pub fn describe_set_preferences() -> Doc {
    Doc::new("auth", "Choose own preferences of the dashboard")
        .body::<PreferencesInput>()
        .answer::<PreferencesView>(200, "What is chosen now.")
}

pub async fn set_preferences(
    app: web::Data<App>,
    caller: Caller,
    body: Json<PreferencesInput>,
) -> Result<HttpResponse> {
    let Json(input) = body;
    let wanted = Preferences {
        time_zone: preferences::time_zone(&input.time_zone.unwrap_or_default())?,
        week_start: preferences::week_start(&input.week_start.unwrap_or_default())?,
        theme: preferences::theme(&input.theme.unwrap_or_default())?,
        density: preferences::density(&input.density.unwrap_or_default())?,
        default_range: preferences::default_range(&input.default_range.unwrap_or_default())?,
        shortcuts: input.shortcuts,
    };
    let change = move |held: &mut Preferences| held.clone_from(&wanted);
    respond::ok(&PreferencesView::of(&app.auth.change_preferences(&caller, change).await?))
}

#[derive(Default, Deserialize, ToSchema)]
#[schema(as = PasswordResetRequest)]
pub struct ResetRequestInput {
    email: Option<String>,
}

pub fn describe_request_reset() -> Doc {
    Doc::new("auth", "Have a link mailed that sets a password")
        .body::<ResetRequestInput>()
        .empty(202, "If there is such a user, a mail is on its way.")
        .errors(&[403, 429])
}

/// The same answer whether there is such a user or not.
pub async fn request_reset(app: web::Data<App>, request: HttpRequest, body: Body) -> Result<HttpResponse> {
    let input: ResetRequestInput = body.object().await?;
    app.auth.request_reset(&input.email.unwrap_or_default(), address(&app, &request))?;
    Ok(HttpResponse::Accepted().finish())
}

#[derive(Default, Deserialize, ToSchema)]
#[schema(as = PasswordReset)]
pub struct ResetInput {
    password: Option<String>,
}

pub fn describe_reset_password() -> Doc {
    Doc::new("auth", "Set a password with a one-time token")
        .body::<ResetInput>()
        .empty(204, "Set; every sign-in of the user has ended.")
        .errors(&[404])
}

pub async fn reset_password(app: web::Data<App>, Id(token): Id, body: Body) -> Result<HttpResponse> {
    let input: ResetInput = body.object().await?;
    app.auth.reset_password(&token, input.password.unwrap_or_default()).await?;
    Ok(respond::no_content())
}
