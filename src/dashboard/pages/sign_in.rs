//! `/login`, `/register`, `/logout`. The rules of sign-in are `auth`'s.

use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse, web};
use askama::Template;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use crate::app::App;
use crate::auth::device::{DEVICE_COOKIE, DEVICE_LIFETIME};
use crate::auth::providers::Provider;
use crate::auth::session::{SignedIn, clearing_cookies};
use crate::auth::token::Token;
use crate::dashboard::form::{Complaint, Fields, Form, GuestForm};
use crate::dashboard::visit::{Shell, Visit, ok, rejected};
use crate::error::{Code, Error, Result};
use crate::http::extract::Params;
use crate::http::session::{address, own_path, secure, sent_cookie, shown_tokens, with_cookies};
use crate::metering::time::SECOND;

#[derive(Template)]
#[template(path = "login.html")]
struct LoginPage {
    shell: Shell,
    email: String,
    next: String,
    /// Takes the next page along to the other of the two forms.
    onward: String,
    complaint: Complaint,
    may_register: bool,
    has_password: bool,
    sends_resets: bool,
    doors: Vec<Door>,
}

#[derive(Template)]
#[template(path = "register.html")]
struct RegisterPage {
    shell: Shell,
    email: String,
    next: String,
    onward: String,
    complaint: Complaint,
    may_register: bool,
    has_password: bool,
    doors: Vec<Door>,
}

/// A button that leads to a provider.
struct Door {
    name: String,
    href: String,
}

/// The providers, each leading back to this page.
fn doors(app: &App, next: &str) -> Vec<Door> {
    let next = utf8_percent_encode(next, NON_ALPHANUMERIC).to_string();
    let door = |provider: &Provider| Door {
        name: provider.name.clone(),
        href: format!("/v1/auth/oauth/{}?next={next}", provider.id),
    };
    app.auth.providers().iter().map(door).collect()
}

fn see(path: &str) -> HttpResponse {
    HttpResponse::SeeOther().insert_header((header::LOCATION, path)).finish()
}

pub async fn login_form(app: web::Data<App>, visit: Visit, params: Params) -> Result<HttpResponse> {
    let next = own_path(params.get("next"), "/").to_owned();
    if visit.caller().is_some() {
        return Ok(see(&next));
    }
    let email = invited_address(&app, &next).await;
    ok(&login_page(&app, &visit, Fields::of([("next", next), ("email", email)]), Complaint::none()))
}

fn login_page(app: &App, visit: &Visit, fields: Fields, complaint: Complaint) -> LoginPage {
    let next = own_path(fields.get("next"), "/").to_owned();
    LoginPage {
        shell: visit.shell("", "Sign in"),
        email: fields.get("email").to_owned(),
        doors: doors(app, if next == "/" { "/overview" } else { &next }),
        onward: onward(&next),
        next,
        complaint,
        has_password: app.auth.options().password_sign_in,
        sends_resets: app.auth.sends_resets(),
        may_register: app.auth.options().registration_enabled,
    }
}

pub async fn login(
    app: web::Data<App>,
    request: HttpRequest,
    visit: Visit,
    form: GuestForm,
) -> Result<HttpResponse> {
    let GuestForm(fields) = form;
    let password = fields.raw("password").to_owned();
    let device = sent_cookie(&request, DEVICE_COOKIE);
    let (email, address) = (fields.get("email"), address(&app, &request));
    match app.auth.sign_in_with(email, password, address, device.as_deref()).await {
        Ok(session) => {
            let known = app.auth.remember_device(&session.user.email, device.as_deref()).await;
            let response = signed_in(&app, &request, &session, own_path(fields.get("next"), "/"))?;
            remembered(&visit, response, known)
        }
        Err(error) => {
            let error = match error.code {
                Code::Unauthorized => Error::invalid("email or password is incorrect"),
                _ => error,
            };
            rejected(&login_page(&app, &visit, fields, Complaint::of(error, &[])?))
        }
    }
}

/// The answer, with what the browser is to be known by. Without that the person is in all the same.
pub(super) fn remembered(
    visit: &Visit,
    mut response: HttpResponse,
    known: Result<Option<Token>>,
) -> Result<HttpResponse> {
    if let Ok(Some(token)) = known {
        let cookie = visit.lasting_cookie(DEVICE_COOKIE, token.expose(), DEVICE_LIFETIME / SECOND);
        let mut value = header::HeaderValue::from_str(&cookie).map_err(Error::internal)?;
        value.set_sensitive(true);
        response.headers_mut().append(header::SET_COOKIE, value);
    }
    Ok(response)
}

fn signed_in(app: &App, request: &HttpRequest, session: &SignedIn, next: &str) -> Result<HttpResponse> {
    with_cookies(see(next), session.cookies(secure(app, request)))
}

pub async fn register_form(app: web::Data<App>, visit: Visit, params: Params) -> Result<HttpResponse> {
    let next = own_path(params.get("next"), "/welcome").to_owned();
    if visit.caller().is_some() {
        return Ok(see("/"));
    }
    let email = invited_address(&app, &next).await;
    let fields = Fields::of([("next", next), ("email", email)]);
    ok(&register_page(&app, &visit, &fields, Complaint::none()))
}

fn register_page(app: &App, visit: &Visit, fields: &Fields, complaint: Complaint) -> RegisterPage {
    let options = app.auth.options();
    let is_invited = options.invited_may_register && !invitation_of(fields.get("next")).is_empty();
    let may_register = options.registration_enabled || is_invited;
    let next = own_path(fields.get("next"), "/welcome").to_owned();
    RegisterPage {
        shell: visit.shell("", "Create account"),
        email: fields.get("email").to_owned(),
        doors: doors(app, &next),
        onward: onward(&next),
        next,
        complaint,
        has_password: options.password_sign_in,
        may_register,
    }
}

/// The next page as a query, where it is none of those that follow by themselves.
fn onward(next: &str) -> String {
    match next {
        "/" | "/welcome" => String::new(),
        next => format!("?next={}", utf8_percent_encode(next, NON_ALPHANUMERIC)),
    }
}

/// Whom the invitation that somebody comes from is for; empty for none. Its link says so as well.
async fn invited_address(app: &App, next: &str) -> String {
    let token = invitation_of(next);
    let invitation = if token.is_empty() { None } else { app.auth.invitation(token).await.ok() };
    invitation.map(|invitation| invitation.email).unwrap_or_default()
}

/// The token of the invitation that somebody comes from.
fn invitation_of(next: &str) -> &str {
    next.strip_prefix("/invitations/").unwrap_or_default()
}

/// Creates the account and signs in.
pub async fn register(
    app: web::Data<App>,
    request: HttpRequest,
    visit: Visit,
    form: GuestForm,
) -> Result<HttpResponse> {
    app.auth.check_registration()?;
    let GuestForm(fields) = form;
    let (email, password) = (fields.get("email"), fields.raw("password").to_owned());
    let (address, again) = (address(&app, &request), password.clone());
    let invitation = invitation_of(fields.get("next"));
    match app.auth.register_invited(email, password, address, invitation).await {
        Ok(_) => {
            let session = app.auth.sign_in(email, again, address).await?;
            signed_in(&app, &request, &session, own_path(fields.get("next"), "/welcome"))
        }
        Err(error) => {
            let complaint = Complaint::of(error, &["email", "password"])?;
            rejected(&register_page(&app, &visit, &fields, complaint))
        }
    }
}

/// Ends the session; what the browser kept of the pages goes with it.
pub async fn logout(app: web::Data<App>, request: HttpRequest, _form: Form) -> Result<HttpResponse> {
    app.auth.sign_out(shown_tokens(&request)).await?;
    let mut response = with_cookies(see("/login"), clearing_cookies(secure(&app, &request)))?;
    let cache = header::HeaderValue::from_static("\"cache\"");
    response.headers_mut().insert(header::HeaderName::from_static("clear-site-data"), cache);
    Ok(response)
}
