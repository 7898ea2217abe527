//! `/settings`: how a person wants to see the pages.

use actix_web::HttpResponse;
use actix_web::http::header;
use askama::Template;

use crate::dashboard::form::Form;
use crate::dashboard::pages::sign_in::own_path;
use crate::dashboard::visit::{Shell, THEME_COOKIE, Visit, ok};
use crate::error::{Error, Result};

const YEAR_SECONDS: u32 = 365 * 86_400;

/// Keeps the theme in the browser, so that the first page after sign-in has it too.
pub async fn theme(visit: Visit, form: Form) -> Result<HttpResponse> {
    let Form(fields) = form;
    let theme = fields.get("theme");
    if !matches!(theme, "system" | "light" | "dark") {
        return Err(Error::invalid("theme must be system, light or dark"));
    }
    let cookie = visit.small_cookie(THEME_COOKIE, theme, YEAR_SECONDS);
    let mut response = HttpResponse::SeeOther();
    response.insert_header((header::LOCATION, own_path(fields.get("next"), "/overview")));
    Ok(response.insert_header((header::SET_COOKIE, cookie)).finish())
}

#[derive(Template)]
#[template(path = "settings.html")]
struct SettingsPage {
    shell: Shell,
}

pub async fn show(visit: Visit) -> Result<HttpResponse> {
    ok(&SettingsPage { shell: visit.shell("settings", "Settings") })
}
