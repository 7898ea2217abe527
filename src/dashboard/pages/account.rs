//! `/settings/sessions` and `/reset/{token}`: where a person is signed in, and another password. The rules are
//! `auth::account`'s.

use actix_web::{HttpRequest, HttpResponse, web};
use askama::Template;

use crate::app::App;
use crate::auth::Caller;
use crate::auth::account::LISTED;
use crate::auth::device;
use crate::auth::session::clearing_cookies;
use crate::auth::sql::identities::Identity;
use crate::auth::sql::sign_ins::{SignIn, Which};
use crate::dashboard::confirm::Confirm;
use crate::dashboard::form::{Complaint, Form, GuestForm};
use crate::dashboard::pages::sign_in::remembered;
use crate::dashboard::view;
use crate::dashboard::visit::{Shell, Visit, ok, rejected, secret};
use crate::error::{Error, Result};
use crate::http::extract::{Id, Params};
use crate::http::session::{address, secure, with_cookies};

/// Of the sign-ins that end, so many are named.
const DEVICES_NAMED: usize = 5;

struct Row {
    sign_in: SignIn,
    device: String,
    is_own: bool,
}

/// An account at a provider.
struct Connected {
    name: String,
    identity: Identity,
}

#[derive(Template)]
#[template(path = "account/sessions.html")]
struct SessionsPage {
    shell: Shell,
    rows: Vec<Row>,
    /// Whether passwords open anything, and whether this person has one.
    by_password: bool,
    has_password: bool,
    connected: Vec<Connected>,
    /// Id and name of what could be connected.
    offered: Vec<(&'static str, String)>,
    complaint: Complaint,
}

async fn sessions_page(
    app: &App,
    caller: &Caller,
    visit: &Visit,
    complaint: Complaint,
) -> Result<SessionsPage> {
    let (found, own) = app.auth.sign_ins(caller).await?;
    let rows = found
        .into_iter()
        .map(|sign_in| Row {
            is_own: sign_in.login_id == own,
            device: device::words(&sign_in.user_agent),
            sign_in,
        })
        .collect();
    let (identities, has_password) = app.auth.identities(caller).await?;
    let providers = app.auth.providers();
    let offered = providers.iter().map(|provider| (provider.id, provider.name.clone())).collect();
    let connected = identities.into_iter();
    let connected =
        connected.map(|identity| Connected { name: providers.name(&identity.provider), identity });
    Ok(SessionsPage {
        shell: visit.shell("settings", "Sign-ins and password"),
        rows,
        by_password: app.auth.options().password_sign_in,
        has_password,
        connected: connected.collect(),
        offered,
        complaint,
    })
}

pub async fn sessions(app: web::Data<App>, caller: Caller, visit: Visit) -> Result<HttpResponse> {
    ok(&sessions_page(&app, &caller, &visit, Complaint::none()).await?)
}

/// Which sign-ins would end: those of other browsers, or all.
pub async fn confirm_end(
    app: web::Data<App>,
    caller: Caller,
    visit: Visit,
    params: Params,
) -> Result<HttpResponse> {
    let (found, own) = app.auth.sign_ins(&caller).await?;
    let others: Vec<String> = found
        .iter()
        .filter(|sign_in| sign_in.login_id != own)
        .map(|sign_in| match device::words(&sign_in.user_agent) {
            device if device.is_empty() => sign_in.address.clone(),
            device => format!("{device} from {}", sign_in.address),
        })
        .collect();
    let count = view::counted_to(LISTED - 2, others.len() as i64, "other sign-in", "other sign-ins");
    let some: Vec<&str> = others.iter().map(String::as_str).take(DEVICES_NAMED).collect();
    let dots = if others.len() > DEVICES_NAMED { " …" } else { "" };
    let named = if some.is_empty() { String::new() } else { format!(": {}{dots}", some.join(", ")) };
    let keeps =
        "Whoever uses one has to sign in again. API keys and customer links go on working.".to_owned();
    let is_all = params.get("which") != "others";
    let (title, which) = if is_all { ("Sign out everywhere", "all") } else { ("End all others", "others") };
    let (sentences, button) = match (is_all, others.is_empty()) {
        (true, true) => (vec!["Your sign-in here ends; there is no other.".to_owned()], title),
        (true, false) => (vec![format!("Your sign-in here ends, and {count}{named}."), keeps], title),
        (false, true) => (vec!["You are signed in here only: there is nothing to end.".to_owned()], ""),
        (false, false) => (vec![format!("This ends {count} at once{named}."), keeps], title),
    };
    let crumbs = [("Settings", "/settings"), ("Sign-ins and password", "/settings/sessions")];
    ok(&Confirm {
        sentences,
        action: "/settings/sessions".to_owned(),
        fields: vec![("end", which.to_owned())],
        button: button.to_owned(),
        ..Confirm::below(visit.shell("settings", title), crumbs)
    })
}

/// Ends one sign-in, the others, or all of them.
pub async fn end(
    app: web::Data<App>,
    request: HttpRequest,
    caller: Caller,
    visit: Visit,
    form: Form,
) -> Result<HttpResponse> {
    let Form(fields) = form;
    match fields.get("end") {
        "others" => app.auth.end_other_sign_ins(&caller).await?,
        "all" => {
            app.auth.end_sign_ins(&caller, Which::All).await?;
            let out = visit.go("/login", "You are signed out everywhere.");
            return with_cookies(out, clearing_cookies(secure(&app, &request)));
        }
        id => app.auth.end_sign_ins(&caller, Which::One(id.to_owned())).await?,
    }
    Ok(visit.go("/settings/sessions", "Ended."))
}

/// Back to the page with what was done, or the page with why not.
async fn answered(
    app: &App,
    caller: &Caller,
    visit: &Visit,
    done: Result<()>,
    words: &str,
    fields: &[&str],
) -> Result<HttpResponse> {
    match done {
        Ok(()) => Ok(visit.go("/settings/sessions", words)),
        Err(error) => {
            let complaint = Complaint::of(error, fields)?;
            rejected(&sessions_page(app, caller, visit, complaint).await?)
        }
    }
}

pub async fn change_password(
    app: web::Data<App>,
    request: HttpRequest,
    caller: Caller,
    visit: Visit,
    form: Form,
) -> Result<HttpResponse> {
    let Form(fields) = form;
    let (current, new) = (fields.raw("current_password").to_owned(), fields.raw("password").to_owned());
    let done = app.auth.change_password(&caller, current, new, address(&app, &request)).await;
    let words = "The password is changed; every other sign-in has ended.";
    answered(&app, &caller, &visit, done, words, &["current_password", "password"]).await
}

/// Disconnects a provider.
pub async fn disconnect(
    app: web::Data<App>,
    caller: Caller,
    visit: Visit,
    form: Form,
) -> Result<HttpResponse> {
    let Form(fields) = form;
    let done = app.auth.disconnect(&caller, fields.get("identity")).await;
    answered(&app, &caller, &visit, done, "Disconnected.", &[]).await
}

#[derive(Template)]
#[template(path = "account/reset.html")]
struct ResetPage {
    shell: Shell,
    complaint: Complaint,
}

fn reset_page(visit: &Visit, complaint: Complaint) -> ResetPage {
    ResetPage { shell: visit.guest_shell("New password"), complaint }
}

/// Where a one-time link leads: a new password, once.
pub async fn reset_form(app: web::Data<App>, visit: Visit, Id(token): Id) -> Result<HttpResponse> {
    if !app.auth.may_reset(&token).await? {
        return Err(Error::not_found("this link, which was used or is over"));
    }
    secret(&reset_page(&visit, Complaint::none()))
}

pub async fn reset(
    app: web::Data<App>,
    visit: Visit,
    Id(token): Id,
    form: GuestForm,
) -> Result<HttpResponse> {
    let GuestForm(fields) = form;
    match app.auth.reset_password(&token, fields.raw("password").to_owned()).await {
        Ok(email) => {
            // whoever had the link is no stranger, however many of those guess at the account meanwhile
            let known = match email {
                Some(email) => app.auth.remember_device(&email, None).await,
                None => Ok(None),
            };
            remembered(&visit, visit.go("/login", "The password is set. Sign in with it."), known)
        }
        Err(error) => rejected(&reset_page(&visit, Complaint::of(error, &["password"])?)),
    }
}

#[derive(Template)]
#[template(path = "account/forgot.html")]
struct ForgotPage {
    shell: Shell,
    email: String,
    complaint: Complaint,
    /// Whether this server sends mail.
    is_possible: bool,
    is_asked: bool,
}

fn forgot_page(app: &App, visit: &Visit, email: &str, complaint: Complaint) -> ForgotPage {
    ForgotPage {
        shell: visit.guest_shell("Forgotten password"),
        email: email.to_owned(),
        complaint,
        is_possible: app.auth.sends_resets(),
        is_asked: false,
    }
}

/// Where a link is asked for that sets a password.
pub async fn forgot_form(app: web::Data<App>, visit: Visit) -> Result<HttpResponse> {
    ok(&forgot_page(&app, &visit, "", Complaint::none()))
}

pub async fn forgot(
    app: web::Data<App>,
    request: HttpRequest,
    visit: Visit,
    form: GuestForm,
) -> Result<HttpResponse> {
    let GuestForm(fields) = form;
    let email = fields.get("email");
    match app.auth.request_reset(email, address(&app, &request)) {
        Ok(()) => ok(&ForgotPage { is_asked: true, ..forgot_page(&app, &visit, email, Complaint::none()) }),
        Err(error) => rejected(&forgot_page(&app, &visit, email, Complaint::of(error, &["email"])?)),
    }
}
