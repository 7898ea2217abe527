//! What stands before every page: start-up, cross-site refusal, the session and its renewal, the role; and what goes
//! out with every page: the security headers. Never knows what a page shows.

use actix_web::body::BoxBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::Method;
use actix_web::http::header::{self, HeaderName, HeaderValue};
use actix_web::{HttpMessage, HttpRequest, HttpResponse};
use futures_util::future::LocalBoxFuture;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use crate::app::App;
use crate::auth::Caller;
use crate::auth::permission::{Access, allow};
use crate::auth::session::{ACCESS_COOKIE, REFRESH_COOKIE};
use crate::dashboard::form::Sent;
use crate::dashboard::visit::{self, Visit};
use crate::dashboard::{csrf, form, kept, problem};
use crate::error::{Code, Error, Result};
use crate::http::Reception;
use crate::http::session::{FLASH_COOKIE, secure, sent_cookie, sent_header};

/// Two `Set-Cookie` values, when the session was renewed on the way.
type Renewed = Option<[String; 2]>;

/// Receives people at the pages.
pub struct Guard;

impl Reception for Guard {
    fn enter<'a>(
        &'a self,
        app: &'a App,
        access: &'a Access,
        request: &'a mut ServiceRequest,
    ) -> LocalBoxFuture<'a, Result<Vec<String>, HttpResponse>> {
        Box::pin(async move {
            let mut renewed = None;
            let entered = enter(app, access, request, &mut renewed).await;
            let cookies: Vec<String> = renewed.into_iter().flatten().collect();
            let Err(error) = entered else { return Ok(cookies) };
            keep_typed(request, &error).await;
            let mut refusal = refusal(request.request(), &error);
            // the refresh token is used up, whatever became of the page
            cookies.iter().for_each(|cookie| append_cookie(refusal.headers_mut(), cookie));
            seal(refusal.headers_mut());
            Err(refusal)
        })
    }

    fn leave(
        &self,
        app: &App,
        cookies: Vec<String>,
        mut response: ServiceResponse<BoxBody>,
    ) -> ServiceResponse<BoxBody> {
        let failed = response.response().error().and_then(|error| error.as_error::<Error>()).cloned();
        if let Some(error) = failed {
            let page = problem::page(response.request(), &error);
            response = ServiceResponse::new(response.request().clone(), page);
        }
        let is_secure = secure(app, response.request());
        let had_flash =
            sent_cookie(response.request(), FLASH_COOKIE).is_some() && !is_shared(response.request().path());
        let shows_page = !response.status().is_redirection();
        let again_after = visit::auto(response.request());
        let headers = response.headers_mut();
        for cookie in cookies {
            // a page that began or ended a session has the last word about it
            if !sets_cookie(headers, &cookie) {
                append_cookie(headers, &cookie);
            }
        }
        if had_flash && shows_page {
            append_cookie(headers, &Visit::no_flash(is_secure));
        }
        if let Some(seconds) = again_after.filter(|_| shows_page) {
            headers.insert(header::REFRESH, HeaderValue::from(seconds));
        }
        seal(headers);
        response
    }
}

/// Everything that is checked before a page does any work. `renewed` is told also when the page is refused.
async fn enter(app: &App, access: &Access, request: &ServiceRequest, renewed: &mut Renewed) -> Result<()> {
    if app.phase.is_starting() {
        return Err(Error::unavailable("the server is starting"));
    }
    if request.query_string().contains("%00") || request.path().contains("%00") {
        return Err(Error::invalid("NUL characters are not allowed"));
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        csrf::check_origin(request.request())?;
    }
    if is_shared(request.path()) {
        return Ok(());
    }
    let found = recognise(app, request.request(), renewed).await?;
    if let Some(caller) = &found {
        request.extensions_mut().insert(caller.clone());
    }
    match (access, found) {
        (Access::Public, _) => Ok(()),
        (access, Some(caller)) => allow(&caller, access),
        (_, None) => Err(Error::unauthorized()),
    }
}

/// Whoever holds a link for a customer is shown the same, signed in or not, and gets no cookie.
fn is_shared(path: &str) -> bool {
    path.starts_with("/share/")
}

/// The tokens of the two cookies of a session.
fn tokens(request: &HttpRequest) -> Vec<String> {
    [ACCESS_COOKIE, REFRESH_COOKIE].iter().filter_map(|name| sent_cookie(request, name)).collect()
}

/// What was typed is not lost because the sign-in has ended, or the database is away: it must be a form of the sign-in
/// whose cookies come with it.
async fn keep_typed(request: &mut ServiceRequest, error: &Error) {
    let has_ended = error.code == Code::Unauthorized;
    let is_away = matches!(error.code, Code::Unavailable | Code::QueueFull);
    let tokens = tokens(request.request());
    if *request.method() != Method::POST || !(has_ended || is_away) || !kept::knows(&tokens) {
        return;
    }
    let Some(fields) = form::read_kept(request, kept::BYTES_MAX).await else { return };
    let Some(sender) = kept::sender(&tokens, fields.get(form::TOKEN)) else { return };
    if is_away {
        request.extensions_mut().insert(Sent(fields));
        return;
    }
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str()).to_owned();
    kept::keep(sender, &path, fields.without_token());
    request.extensions_mut().insert(IsKept);
}

/// The form of this request waits for its sender.
struct IsKept;

/// Whose session this is. One whose access token is over goes on with its refresh token, in the same answer.
async fn recognise(app: &App, request: &HttpRequest, renewed: &mut Renewed) -> Result<Option<Caller>> {
    if let Some(token) = sent_cookie(request, ACCESS_COOKIE) {
        match app.auth.by_access_token(&token).await {
            Ok(caller) => {
                kept::remember(&caller, &tokens(request));
                return Ok(Some(caller));
            }
            Err(error) if error.code == Code::Unauthorized => {}
            Err(error) => return Err(error),
        }
    }
    let Some(token) = sent_cookie(request, REFRESH_COOKIE) else { return Ok(None) };
    let session = match app.auth.refresh(&token).await {
        Ok(session) => session,
        Err(error) if error.code == Code::Unauthorized => return Ok(None),
        Err(error) => return Err(error),
    };
    *renewed = Some(session.cookies(secure(app, request)));
    app.auth.by_access_token(session.access.expose()).await.map(Some)
}

/// The sign-in page for those without a session, else the page that says why not.
fn refusal(request: &HttpRequest, error: &Error) -> HttpResponse {
    if error.code != Code::Unauthorized {
        return problem::page(request, error);
    }
    // a script that refreshes a part of a page must not be shown the sign-in page in its place
    if sent_header(request, "x-fragment").is_some() {
        return HttpResponse::Unauthorized().finish();
    }
    let here = match *request.method() {
        Method::GET => request.uri().path_and_query().map_or("/", |path| path.as_str()),
        _ if request.extensions().get::<IsKept>().is_some() => kept::PAGE,
        _ => "/",
    };
    let target = match here {
        "/" => "/login".to_owned(),
        here => format!("/login?next={}", utf8_percent_encode(here, NON_ALPHANUMERIC)),
    };
    HttpResponse::SeeOther().insert_header((header::LOCATION, target)).finish()
}

/// Whether a cookie of this name is among the headers already.
fn sets_cookie(headers: &header::HeaderMap, cookie: &str) -> bool {
    let name = cookie.split('=').next().unwrap_or_default();
    let mut set = headers.get_all(header::SET_COOKIE).filter_map(|value| value.to_str().ok());
    set.any(|line| line.split('=').next() == Some(name))
}

fn append_cookie(headers: &mut header::HeaderMap, cookie: &str) {
    if let Ok(mut value) = HeaderValue::from_str(cookie) {
        value.set_sensitive(true);
        headers.append(header::SET_COOKIE, value);
    }
}

pub const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
    connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'; object-src 'none'; \
    require-trusted-types-for 'script'; trusted-types app";

/// The headers of every page. A page that is not told otherwise may be kept by the browser for Back, and by nobody else.
fn seal(headers: &mut header::HeaderMap) {
    let fixed = [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "same-origin"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (
            HeaderName::from_static("permissions-policy"),
            "camera=(), geolocation=(), microphone=(), payment=()",
        ),
    ];
    for (name, value) in fixed {
        // what a link for customers opens has its own
        if !headers.contains_key(&name) {
            headers.insert(name, HeaderValue::from_static(value));
        }
    }
    if !headers.contains_key(header::CACHE_CONTROL) {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
        headers.append(header::VARY, HeaderValue::from_static("cookie"));
    }
}
