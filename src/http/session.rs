//! `/v1/auth/users` and `/v1/auth/session…` (auth.md 2 and 3). Providers are in `providers`. Tokens travel in
//! cookies only.

use std::net::IpAddr;

use actix_web::http::{StatusCode, header};
use actix_web::{HttpRequest, HttpResponse, web};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::app::App;
use crate::auth::device::DEVICE_COOKIE;
use crate::auth::session::{
    ACCESS_COOKIE, REFRESH_COOKIE, SignedIn, Tokens, clearing_cookies, cookie, is_secure,
};
use crate::auth::throttle::{client_address, tell_of_unnamed_proxy};
use crate::auth::{Caller, User};
use crate::error::{Error, Result};
use crate::http::body::{Body, Json};
use crate::http::openapi::Doc;
use crate::http::origin::is_foreign;
use crate::http::{peer, respond};
use crate::metering::time::Timestamp;

#[derive(Default, Deserialize, ToSchema)]
#[schema(as = Credentials)]
pub struct CredentialsInput {
    email: Option<String>,
    password: Option<String>,
}

#[derive(Default, Deserialize, ToSchema)]
#[schema(as = Registration)]
pub struct RegistrationInput {
    email: Option<String>,
    password: Option<String>,
    /// Of an invitation for this address, where registration needs one.
    invitation_token: Option<String>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Session)]
pub struct SessionView<'a> {
    expires_at: Timestamp,
    user: &'a User,
}

#[derive(Serialize, ToSchema)]
#[schema(as = CurrentSession)]
pub struct CurrentView<'a> {
    user: &'a User,
}

pub fn describe_register() -> Doc {
    Doc::new("auth", "Register")
        .body::<RegistrationInput>()
        .answer::<User>(201, "The user, with a workspace of their own.")
        .errors(&[403, 409, 429])
}

/// Creates a user with a workspace; does not sign in.
pub async fn register(app: web::Data<App>, request: HttpRequest, body: Body) -> Result<HttpResponse> {
    // a closed door does not read what is brought to it
    app.auth.check_registration()?;
    let input: RegistrationInput = body.object().await?;
    let (email, password) = (input.email.unwrap_or_default(), input.password.unwrap_or_default());
    let (invitation, address) = (input.invitation_token.unwrap_or_default(), address(&app, &request));
    let user = app.auth.register_invited(&email, password, address, &invitation).await?;
    respond::created(&user)
}

pub fn describe_login() -> Doc {
    Doc::new("auth", "Sign in")
        .body::<CredentialsInput>()
        .answer::<SessionView>(201, "Signed in; the tokens are in two cookies.")
        .errors(&[401, 429])
}

pub async fn login(
    app: web::Data<App>,
    request: HttpRequest,
    body: Json<CredentialsInput>,
) -> Result<HttpResponse> {
    let Json(input) = body;
    let (email, password) = (input.email.unwrap_or_default(), input.password.unwrap_or_default());
    let device = sent_cookie(&request, DEVICE_COOKIE);
    let session = app.auth.sign_in_with(&email, password, address(&app, &request), device.as_deref()).await?;
    signed_in(&app, &request, StatusCode::CREATED, &session)
}

pub fn describe_current() -> Doc {
    Doc::new("auth", "Who is signed in").answer::<CurrentView>(200, "The user.")
}

pub async fn current(caller: Caller) -> Result<HttpResponse> {
    respond::ok(&CurrentView { user: &caller.user })
}

pub fn describe_refresh() -> Doc {
    Doc::new("auth", "Renew the session").answer::<SessionView>(200, "Two new cookies.").errors(&[401])
}

pub async fn refresh(app: web::Data<App>, request: HttpRequest) -> Result<HttpResponse> {
    let token = sent_cookie(&request, REFRESH_COOKIE).ok_or_else(Error::unauthorized)?;
    let session = app.auth.refresh(&token).await?;
    signed_in(&app, &request, StatusCode::OK, &session)
}

pub fn describe_logout() -> Doc {
    Doc::new("auth", "Sign out").empty(204, "Signed out, cookies cleared.")
}

/// Ends the session whose cookies were sent, if any, and clears them in any case.
pub async fn logout(app: web::Data<App>, request: HttpRequest) -> Result<HttpResponse> {
    app.auth.sign_out(shown_tokens(&request)).await?;
    with_cookies(respond::no_content(), clearing_cookies(secure(&app, &request)))
}

pub(crate) fn signed_in(
    app: &App,
    request: &HttpRequest,
    status: StatusCode,
    session: &SignedIn,
) -> Result<HttpResponse> {
    let view = SessionView { expires_at: session.access_expires_at, user: &session.user };
    with_cookies(respond::json(status, &view)?, session.cookies(secure(app, request)))
}

pub(crate) fn with_cookies(mut response: HttpResponse, cookies: [String; 2]) -> Result<HttpResponse> {
    for cookie in cookies {
        let mut value = header::HeaderValue::from_str(&cookie).map_err(Error::internal)?;
        value.set_sensitive(true);
        response.headers_mut().append(header::SET_COOKIE, value);
    }
    Ok(response)
}

/// The tokens of the session that a request shows.
pub(crate) fn shown_tokens(request: &HttpRequest) -> Tokens {
    Tokens { access: sent_cookie(request, ACCESS_COOKIE), refresh: sent_cookie(request, REFRESH_COOKIE) }
}

pub(crate) fn sent_cookie(request: &HttpRequest, name: &str) -> Option<String> {
    // another program of the same host may have set any bytes beside ours
    let cookies = String::from_utf8_lossy(request.headers().get(header::COOKIE)?.as_bytes());
    cookie(&cookies, name).map(String::from)
}

pub(crate) fn sent_header<'a>(request: &'a HttpRequest, name: &str) -> Option<&'a str> {
    request.headers().get(name).and_then(|value| value.to_str().ok())
}

/// Whether a browser says that one of our own pages sent this. Where it does not say how, its origin tells.
pub fn is_own(request: &HttpRequest) -> bool {
    match sent_header(request, "sec-fetch-site") {
        Some(site) => site == "same-origin",
        None => sent_header(request, "origin").is_some() && !is_foreign(request),
    }
}

/// Whether a browser sent this: they say where it comes from, or at least that they are one, which programs do not.
pub fn is_from_browser(request: &HttpRequest) -> bool {
    let says_origin = ["sec-fetch-site", "sec-fetch-mode", "origin", "referer"];
    says_origin.iter().any(|name| request.headers().contains_key(*name))
        || sent_header(request, "user-agent").is_some_and(|agent| agent.starts_with("Mozilla/"))
}

/// Whether a cookie of a session came along.
pub fn shows_session(request: &HttpRequest) -> bool {
    [ACCESS_COOKIE, REFRESH_COOKIE].iter().any(|name| sent_cookie(request, name).is_some())
}

/// Whether the browser came over https, as far as the settings trust the word of a proxy.
pub(crate) fn secure(app: &App, request: &HttpRequest) -> bool {
    let (http, proto) = (&app.config.http, sent_header(request, "x-forwarded-proto"));
    is_secure(http.secure_cookies, peer(request), &http.trusted_proxies, proto)
}

/// Whom attempts are counted against.
pub(crate) fn address(app: &App, request: &HttpRequest) -> IpAddr {
    // a client may send any bytes; what a proxy appended to them still counts
    let lines =
        request.headers().get_all("x-forwarded-for").map(|value| String::from_utf8_lossy(value.as_bytes()));
    let forwarded_for = lines.collect::<Vec<_>>().join(",");
    let forwarded_for = (!forwarded_for.is_empty()).then_some(forwarded_for.as_str());
    let (peer, trusted) = (peer(request), &app.config.http.trusted_proxies);
    tell_of_unnamed_proxy(peer, trusted, forwarded_for);
    client_address(peer, trusted, forwarded_for)
}

/// What the last call did, told by the next page.
pub const FLASH_COOKIE: &str = "open_spanner_flash";
const FLASH_CHARACTERS_MAX: usize = 300;

/// Has the next page of the dashboard say this.
pub fn flash_cookie(said: &str, is_secure: bool) -> String {
    let said: String = said.chars().take(FLASH_CHARACTERS_MAX).collect();
    let (said, secure) =
        (utf8_percent_encode(&said, NON_ALPHANUMERIC), if is_secure { "; Secure" } else { "" });
    format!("{FLASH_COOKIE}={said}; Path=/; Max-Age=60; HttpOnly{secure}; SameSite=Lax")
}

/// A path of this server, or the other one: nobody is sent elsewhere by a link.
pub fn own_path<'a>(path: &'a str, otherwise: &'a str) -> &'a str {
    let is_own = path.starts_with('/')
        && !path.starts_with("//")
        && !path.contains(|c: char| c == '\\' || c.is_ascii_control())
        && path.is_ascii();
    if is_own { path } else { otherwise }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_sent_elsewhere() {
        assert_eq!(own_path("/usage?meter=a", "/"), "/usage?meter=a");
        for foreign in [
            "",
            "//evil.example",
            "https://evil.example",
            "/\\evil.example",
            "javascript:alert(1)",
            "/a\r\nb",
            "/\t/evil.example",
            "/a\u{1}b",
            "/a\u{7f}b",
            "/a\u{e9}",
        ] {
            assert_eq!(own_path(foreign, "/"), "/", "{foreign:?}");
        }
    }
}
