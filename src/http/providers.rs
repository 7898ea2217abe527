//! `/v1/auth/providers`, `/v1/auth/oauth/…` and `/v1/auth/identities`: signing in with a provider (auth.md 4), and which
//! ones a person has connected. What a provider's word opens is decided by `auth::providers`.

use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse, web};
use serde::Serialize;
use utoipa::ToSchema;

use crate::app::App;
use crate::auth::providers::{ADDRESS_BYTES_MAX, Brought, FLOW_LIFETIME, Provider, Returned, Wish};
use crate::auth::session::ACCESS_COOKIE;
use crate::auth::sql::identities::Identity;
use crate::auth::{Caller, token};
use crate::error::{Code, Error, Result};
use crate::http::extract::{Id, Params};
use crate::http::openapi::Doc;
use crate::http::origin::{is_foreign, own_origin};
use crate::http::respond::{self, Page};
use crate::http::session::{
    address, flash_cookie, is_from_browser, own_path, secure, sent_cookie, sent_header,
};
use crate::metering::time::{SECOND, Timestamp};

pub const STATE_COOKIE: &str = "open_spanner_oauth_state";
/// What the first server kept in the browser; here it is told and not believed.
pub const REDIRECT_COOKIE: &str = "open_spanner_oauth_redirect";
const COOKIE_PATH: &str = "/v1/auth/oauth";

#[derive(Serialize, ToSchema)]
#[schema(as = AuthProvider)]
pub struct ProviderView {
    enabled: bool,
    id: String,
    name: String,
}

#[derive(Serialize, ToSchema)]
#[schema(as = AuthProviders)]
pub struct ProvidersView {
    items: Vec<ProviderView>,
    registration_enabled: bool,
    /// Whether email and password sign in.
    password_enabled: bool,
}

pub fn describe_list() -> Doc {
    Doc::new("auth", "Sign-in providers").answer::<ProvidersView>(200, "All known providers.")
}

/// The ways to sign in besides a password, and whether newcomers may register.
pub async fn list(app: web::Data<App>) -> Result<HttpResponse> {
    let (there, options) = (app.auth.providers(), app.auth.options());
    let is_on = |id: &str| there.iter().any(|provider| provider.id == id);
    let known = [("google", "Google"), ("github", "GitHub")];
    let known = known.map(|(id, name)| ProviderView { enabled: is_on(id), id: id.into(), name: name.into() });
    let others = there.iter().filter(|provider| !known.iter().any(|known| known.id == provider.id));
    let others =
        others.map(|other| ProviderView { id: other.id.into(), name: other.name.clone(), enabled: true });
    let others: Vec<_> = others.collect();
    respond::ok(&ProvidersView {
        items: known.into_iter().chain(others).collect(),
        registration_enabled: options.registration_enabled,
        password_enabled: options.password_sign_in,
    })
}

pub fn describe_start() -> Doc {
    Doc::new("auth", "Start a sign-in with a provider").empty(302, "To the provider.").errors(&[404, 429])
}

/// Sends a browser to a provider. `next` is the page it comes back to; with `link=1` an account there is connected with
/// the user who is signed in.
pub async fn start(
    app: web::Data<App>,
    request: HttpRequest,
    Id(id): Id,
    params: Params,
) -> Result<HttpResponse> {
    let provider = app.auth.providers().find(&id)?;
    let is_secure = secure(&app, &request);
    let caller = match params.get("link") {
        "" => None,
        // no other site connects anything for somebody who is signed in
        _ if is_foreign(&request) || !is_asked_by_us(&app, &request) => {
            return Err(Error::forbidden(
                "another site may have asked for this: begin it on the page of your sign-ins",
            ));
        }
        _ => Some(signed_in(&app, &request).await.ok_or_else(Error::unauthorized)?),
    };
    let redirect_url = redirect_url(&app, &request, provider, params.get("redirect_origin"));
    let next = Some(params.get("next")).filter(|next| next.len() <= ADDRESS_BYTES_MAX).unwrap_or_default();
    let next = own_path(next, "/overview").to_owned();
    let cookie = |name: &str, value: &str| state_cookie(name, value, FLOW_LIFETIME / SECOND, is_secure);
    let told = cookie(REDIRECT_COOKIE, &redirect_url);
    let wish = Wish { redirect_url, next, caller };
    match app.auth.start_with_provider(provider.id, wish, address(&app, &request)).await {
        Ok(started) => found(&started.url, [cookie(STATE_COOKIE, &started.state), told]),
        Err(error) if error.code == Code::RateLimited => Err(error),
        Err(error) => back_to_login(&app, provider.id, &error, is_secure),
    }
}

pub fn describe_callback() -> Doc {
    Doc::new("auth", "Return from a provider")
        .empty(302, "To the overview, or to the login page on any failure.")
}

/// Where a provider sends people back to; whatever does not succeed leads to the login page, which says why (auth.md 4.2).
pub async fn callback(
    app: web::Data<App>,
    request: HttpRequest,
    Id(id): Id,
    params: Params,
) -> Result<HttpResponse> {
    let is_secure = secure(&app, &request);
    let some = |name: &str| Some(params.get(name).to_owned()).filter(|value| !value.is_empty());
    let brought = Brought {
        cookie: sent_cookie(&request, STATE_COOKIE),
        state: params.get("state").to_owned(),
        code: params.get("code").to_owned(),
        issuer: some("iss"),
        error: some("error"),
        caller: signed_in(&app, &request).await,
    };
    let cleared = || [STATE_COOKIE, REDIRECT_COOKIE].map(|name| state_cookie(name, "", 0, is_secure));
    match app.auth.return_from_provider(&id, brought).await {
        Ok(Returned::SignedIn(session, next)) => {
            found(&next, cleared().into_iter().chain(session.cookies(is_secure)))
        }
        Ok(Returned::Connected(next)) => {
            let done = format!("{} is connected.", app.auth.providers().name(&id));
            found(&next, cleared().into_iter().chain([flash_cookie(&done, is_secure)]))
        }
        Err(error) => back_to_login(&app, &id, &error, is_secure),
    }
}

/// Whether a page of ours led here. Where a browser does not say so, the page that it was on before tells: an old one follows
/// the links of others with our cookie. Programs say nothing, and are believed.
fn is_asked_by_us(app: &App, request: &HttpRequest) -> bool {
    let host = |origin: String| origin.split_once("://").map(|(_, host)| host.to_owned());
    match sent_header(request, "sec-fetch-site") {
        Some(site) => site == "same-origin",
        None if is_from_browser(request) => {
            let before = sent_header(request, "referer").and_then(origin_of).and_then(host);
            before.is_some() && before == origin_of(&own_origin(app, request)).and_then(host)
        }
        None => true,
    }
}

/// Whoever is signed in in this browser, if anybody is.
async fn signed_in(app: &App, request: &HttpRequest) -> Option<Caller> {
    let token = sent_cookie(request, ACCESS_COOKIE).filter(|text| text.starts_with(token::ACCESS_PREFIX))?;
    app.auth.by_access_token(&token).await.ok()
}

fn back_to_login(app: &App, id: &str, error: &Error, is_secure: bool) -> Result<HttpResponse> {
    let why = match error.code {
        Code::Unauthorized => "sign in again",
        _ => error.message.split_once(": ").map_or(error.message.as_str(), |(_, why)| why),
    };
    let name = app.auth.providers().name(id);
    let said = flash_cookie(&format!("Could not sign in with {name}: {why}."), is_secure);
    let cleared = [STATE_COOKIE, REDIRECT_COOKIE].map(|name| state_cookie(name, "", 0, is_secure));
    found("/login", cleared.into_iter().chain([said]))
}

fn found(location: &str, cookies: impl IntoIterator<Item = String>) -> Result<HttpResponse> {
    let mut response = HttpResponse::Found();
    response.insert_header((header::LOCATION, location));
    for cookie in cookies {
        let mut value = header::HeaderValue::from_str(&cookie).map_err(Error::internal)?;
        value.set_sensitive(true);
        response.append_header((header::SET_COOKIE, value));
    }
    Ok(response.finish())
}

fn state_cookie(name: &str, value: &str, seconds: i64, is_secure: bool) -> String {
    let secure = if is_secure { "; Secure" } else { "" };
    format!("{name}={value}; Path={COOKIE_PATH}; Max-Age={seconds}; HttpOnly{secure}; SameSite=Lax")
}

/// Where the provider sends the browser: to the origin that was asked for, if it is one of ours; else to the address of the
/// settings; else to where this request came to.
fn redirect_url(app: &App, request: &HttpRequest, provider: &Provider, asked: &str) -> String {
    let own = own_origin(app, request);
    let path = format!("{COOKIE_PATH}/{}/callback", provider.id);
    let asked = origin_of(asked).filter(|origin| {
        let mut permitted = app.config.auth.oauth.redirect_origins.iter().chain([&own]);
        permitted.any(|permitted| origin_of(permitted).as_ref() == Some(origin))
    });
    match (asked, provider.redirect_url()) {
        (Some(origin), _) => format!("{origin}{path}"),
        (None, Some(fixed)) => fixed.to_owned(),
        (None, None) => format!("{own}{path}"),
    }
}

/// Scheme, host and port of a web address without a user; nothing of its path.
fn origin_of(text: &str) -> Option<String> {
    let url = url::Url::parse(text).ok()?;
    let is_plain = matches!(url.scheme(), "http" | "https") && url.has_host();
    let is_anonymous = url.username().is_empty() && url.password().is_none();
    (is_plain && is_anonymous).then(|| url.origin().ascii_serialization())
}

// What a person has connected ---------------------------------------------------------------------

#[derive(Serialize, ToSchema)]
#[schema(as = ConnectedIdentity)]
pub struct IdentityView<'a> {
    id: &'a str,
    provider: &'a str,
    email: &'a str,
    created_at: Timestamp,
}

impl<'a> IdentityView<'a> {
    fn of(identity: &'a Identity) -> Self {
        IdentityView {
            id: &identity.public_id,
            provider: &identity.provider,
            email: &identity.email,
            created_at: Timestamp(identity.created_at),
        }
    }
}

pub fn describe_identities() -> Doc {
    Doc::new("auth", "Own accounts at providers").page::<IdentityView>("The oldest first.")
}

pub async fn identities(app: web::Data<App>, caller: Caller) -> Result<HttpResponse> {
    let (found, _) = app.auth.identities(&caller).await?;
    respond::ok(&Page { items: found.iter().map(IdentityView::of).collect(), next_cursor: None })
}

pub fn describe_disconnect() -> Doc {
    Doc::new("auth", "Disconnect a provider")
        .empty(204, "It opens this account no longer.")
        .errors(&[404, 409])
}

pub async fn disconnect(app: web::Data<App>, caller: Caller, Id(id): Id) -> Result<HttpResponse> {
    app.auth.disconnect(&caller, &id).await?;
    Ok(respond::no_content())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        assert_eq!(origin_of("https://a.example/x?y").as_deref(), Some("https://a.example"));
        assert_eq!(origin_of("http://localhost:5173").as_deref(), Some("http://localhost:5173"));
        for bad in ["", "a.example", "ftp://a.example", "https://user@a.example", "javascript:alert(1)"] {
            assert_eq!(origin_of(bad), None, "{bad}");
        }
    }
}
