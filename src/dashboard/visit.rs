//! One visit of a page: who looks, from where, with which theme; and the frame that every page is shown in. Never
//! knows what a page is about. What somebody chose for themselves wins over what their browser remembers, which is all
//! that there is before they sign in.

use std::future::{Ready, ready};

use actix_web::dev::Payload;
use actix_web::http::{StatusCode, header};
use actix_web::{FromRequest, HttpMessage, HttpRequest, HttpResponse, web};
use askama::Template;
use percent_encoding::percent_decode_str;

use crate::app::App;
use crate::auth::Caller;
use crate::auth::permission::Role;
use crate::auth::preferences::{Density, Theme};
use crate::dashboard::once::SHOWN_COOKIE;
use crate::dashboard::view::{Instant, Link, When};
use crate::dashboard::{assets, csrf};
use crate::error::{Error, Result};
use crate::http::extract::Params;
use crate::http::origin::own_origin;
use crate::http::session::{FLASH_COOKIE, flash_cookie, secure, sent_cookie};
use crate::metering::calendar::{WeekStart, Zone};
use crate::metering::time::Timestamp;

pub const THEME_COOKIE: &str = "open_spanner_theme";
pub const ZONE_COOKIE: &str = "open_spanner_zone";
pub const KEYS_COOKIE: &str = "open_spanner_keys";

const AUTO_SECONDS: std::ops::RangeInclusive<u32> = 5..=3_600;

/// What a page needs to know about the request beside its parameters.
#[derive(Clone)]
pub struct Visit {
    caller: Option<Caller>,
    theme: &'static str,
    zone: Zone,
    has_keys: bool,
    density: &'static str,
    default_range: Option<&'static str>,
    week_start: Option<WeekStart>,
    auto: Option<u32>,
    flash: String,
    /// A secret on its way to this page, sealed.
    pub shown: String,
    /// Path and query.
    pub here: String,
    /// `https://host`, as people find us.
    pub origin: String,
    pub is_secure: bool,
}

impl FromRequest for Visit {
    type Error = Error;
    type Future = Ready<Result<Self>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(Ok(Visit::of(request)))
    }
}

impl Visit {
    pub fn of(request: &HttpRequest) -> Visit {
        let app = request.app_data::<web::Data<App>>();
        let is_secure = app.is_some_and(|app| secure(app, request));
        let flash = sent_cookie(request, FLASH_COOKIE).unwrap_or_default();
        let theme = sent_cookie(request, THEME_COOKIE).unwrap_or_default();
        let zone = sent_cookie(request, ZONE_COOKIE).unwrap_or_default();
        let zone = percent_decode_str(&zone).decode_utf8_lossy();
        let caller = request.extensions().get::<Caller>().cloned();
        let chosen = caller.as_ref().map(|caller| caller.preferences.clone()).unwrap_or_default();
        let has_keys = || sent_cookie(request, KEYS_COOKIE).as_deref() != Some("off");
        Visit {
            caller,
            theme: chosen.theme.map_or_else(|| theme_of(&theme), Theme::as_str),
            zone: chosen.time_zone.or_else(|| Zone::parse(&zone)).unwrap_or(Zone::UTC),
            has_keys: chosen.shortcuts.unwrap_or_else(has_keys),
            density: chosen.density.unwrap_or(Density::Comfortable).as_str(),
            default_range: chosen.default_range,
            week_start: chosen.week_start,
            auto: auto(request),
            flash: percent_decode_str(&flash).decode_utf8_lossy().into_owned(),
            shown: sent_cookie(request, SHOWN_COOKIE).unwrap_or_default(),
            here: request.uri().path_and_query().map_or("/", |path| path.as_str()).to_owned(),
            origin: app.map(|app| own_origin(app, request)).unwrap_or_default(),
            is_secure,
        }
    }

    pub fn caller(&self) -> Option<&Caller> {
        self.caller.as_ref()
    }

    /// The time of a view whose address names none, if somebody chose one.
    pub fn default_range(&self) -> Option<&'static str> {
        self.default_range
    }

    /// The day that weeks of a view begin with whose address names none, if somebody chose one.
    pub fn week_start(&self) -> Option<WeekStart> {
        self.week_start
    }

    /// The frame of a page; `section` is the entry of the navigation it belongs to.
    pub fn shell(&self, section: &'static str, title: impl Into<String>) -> Shell {
        Shell {
            title: title.into(),
            section,
            user: self.caller.as_ref().map(|caller| Signed {
                email: caller.user.email.clone(),
                workspace: caller.user.workspace_name.clone(),
                role: caller.role.as_str(),
                may_write: caller.role >= Role::Admin,
                token: csrf::token(caller),
            }),
            theme: self.theme,
            zone: self.zone.clone(),
            has_keys: self.has_keys,
            density: self.density,
            auto: self.auto,
            flash: self.flash.clone(),
            here: self.here.clone(),
            now: Timestamp::now(),
            css: assets::url("app.css"),
            js: assets::url("app.js"),
            icon: assets::url("favicon.svg"),
        }
    }

    /// The frame of a page that is the same for whoever looks.
    pub fn guest_shell(&self, title: impl Into<String>) -> Shell {
        Shell { user: None, ..self.shell("", title) }
    }

    /// The address of the next page, with a sentence about what was done.
    pub fn go(&self, path: &str, done: &str) -> HttpResponse {
        let cookie = flash_cookie(done, self.is_secure);
        HttpResponse::SeeOther()
            .insert_header((header::LOCATION, path))
            .insert_header((header::SET_COOKIE, cookie))
            .finish()
    }

    /// A cookie that holds no secret and no state that matters.
    pub fn small_cookie(&self, name: &str, value: &str, seconds: u32) -> String {
        let secure = if self.is_secure { "; Secure" } else { "" };
        format!("{name}={value}; Path=/; Max-Age={seconds}; HttpOnly{secure}; SameSite=Lax")
    }

    /// A cookie that is kept for long, and sent to the sign-in page only.
    pub fn lasting_cookie(&self, name: &str, value: &str, seconds: i64) -> String {
        let secure = if self.is_secure { "; Secure" } else { "" };
        format!("{name}={value}; Path=/login; Max-Age={seconds}; HttpOnly{secure}; SameSite=Lax")
    }

    /// Forgets the sentence that a page has shown.
    pub fn no_flash(is_secure: bool) -> String {
        let secure = if is_secure { "; Secure" } else { "" };
        format!("{FLASH_COOKIE}=; Path=/; Max-Age=0; HttpOnly{secure}; SameSite=Lax")
    }
}

/// Seconds that an address names in `auto`, within reason: for those who have no script and want to see what is new.
pub fn auto(request: &HttpRequest) -> Option<u32> {
    let seconds = Params::parse(request.query_string()).get("auto").parse().ok()?;
    Some(seconds).filter(|seconds| AUTO_SECONDS.contains(seconds))
}

fn theme_of(word: &str) -> &'static str {
    match word {
        "light" => "light",
        "dark" => "dark",
        _ => "system",
    }
}

/// What every page has around it.
pub struct Shell {
    pub title: String,
    pub section: &'static str,
    pub user: Option<Signed>,
    pub theme: &'static str,
    pub zone: Zone,
    /// Single keys on the keyboard do something.
    pub has_keys: bool,
    /// How close rows of tables stand.
    pub density: &'static str,
    /// After how many seconds the page loads itself anew, where its viewer wants that.
    pub auto: Option<u32>,
    pub flash: String,
    pub here: String,
    /// When the page was made: it shows nothing later.
    pub now: Timestamp,
    pub css: &'static str,
    pub js: &'static str,
    pub icon: &'static str,
}

/// Who is signed in, as the frame shows them.
pub struct Signed {
    pub email: String,
    pub workspace: String,
    pub role: &'static str,
    pub may_write: bool,
    pub token: String,
}

impl Shell {
    /// The hidden field of every form.
    pub fn token(&self) -> &str {
        self.user.as_ref().map_or("", |user| user.token.as_str())
    }

    pub fn may_write(&self) -> bool {
        self.user.as_ref().is_some_and(|user| user.may_write)
    }

    pub fn has_theme(&self, theme: &str) -> bool {
        self.theme == theme
    }

    /// An instant in the zone of the viewer.
    pub fn when(&self, at: impl Instant) -> When {
        When { at: at.instant(), zone: self.zone.clone() }
    }

    /// This page, loading itself anew or not any more.
    pub fn here_with(&self, auto: &str) -> Link {
        let (path, query) = self.here.split_once('?').unwrap_or((&self.here, ""));
        let params = Params::parse(query).without(&["auto"]);
        let link = params.pairs().fold(Link::to(path), |link, (name, value)| link.with(name, value));
        link.with("auto", auto)
    }

    /// Whether this page belongs to an entry of the navigation.
    pub fn is(&self, section: &str) -> bool {
        self.section == section
    }
}

/// A page with its status.
pub fn show(status: StatusCode, page: &impl Template) -> Result<HttpResponse> {
    let text = page.render().map_err(Error::internal)?;
    Ok(HttpResponse::build(status).content_type("text/html; charset=utf-8").body(text))
}

pub fn ok(page: &impl Template) -> Result<HttpResponse> {
    show(StatusCode::OK, page)
}

/// A form that was not accepted: shown again with what was typed.
pub fn rejected(page: &impl Template) -> Result<HttpResponse> {
    show(StatusCode::UNPROCESSABLE_ENTITY, page)
}

/// A page that nobody may keep, because a secret is on it.
pub fn secret(page: &impl Template) -> Result<HttpResponse> {
    let mut response = show(StatusCode::OK, page)?;
    response.headers_mut().insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-store"));
    Ok(response)
}
