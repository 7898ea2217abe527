//! `/settings`: how a person wants to see the pages.

use actix_web::http::header;
use actix_web::{HttpResponse, web};
use askama::Template;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use crate::app::App;
use crate::auth::Caller;
use crate::dashboard::form::{Complaint, Form};
use crate::dashboard::visit::{Shell, THEME_COOKIE, Visit, ZONE_COOKIE, ok, rejected};
use crate::dashboard::zone::OFFERED;
use crate::error::{Error, Result};
use crate::http::session::own_path;
use crate::metering::calendar::Zone;

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
    /// As chosen, or as it was typed.
    zone: String,
    complaint: Complaint,
    /// Of the workspace.
    home: Zone,
    home_typed: String,
    home_complaint: Complaint,
}

impl SettingsPage {
    fn zones(&self) -> &'static [&'static str] {
        &OFFERED
    }
}

/// The page as it is when nobody has typed anything.
async fn page(app: &App, caller: &Caller, visit: &Visit) -> Result<SettingsPage> {
    let shell = visit.shell("settings", "Settings");
    let home = app.zones.get(caller.workspace_id).await?;
    Ok(SettingsPage {
        zone: shell.zone.to_string(),
        shell,
        complaint: Complaint::none(),
        home_typed: home.to_string(),
        home,
        home_complaint: Complaint::none(),
    })
}

pub async fn show(app: web::Data<App>, caller: Caller, visit: Visit) -> Result<HttpResponse> {
    ok(&page(&app, &caller, &visit).await?)
}

/// Where days begin for everybody in the workspace.
pub async fn workspace_zone(
    app: web::Data<App>,
    caller: Caller,
    visit: Visit,
    form: Form,
) -> Result<HttpResponse> {
    let Form(fields) = form;
    let typed = fields.get("workspace_zone");
    match Zone::named(typed, "workspace_zone") {
        Ok(zone) => {
            let words = format!("Days of the workspace begin in {zone}.");
            app.zones.change(caller.workspace_id, zone).await?;
            Ok(visit.go("/settings", &words))
        }
        Err(error) => {
            let home_complaint = Complaint::of(error, &["workspace_zone"])?;
            let home_typed = typed.to_owned();
            rejected(&SettingsPage { home_typed, home_complaint, ..page(&app, &caller, &visit).await? })
        }
    }
}

/// Keeps the zone in the browser, like the theme.
pub async fn zone(app: web::Data<App>, caller: Caller, visit: Visit, form: Form) -> Result<HttpResponse> {
    let Form(fields) = form;
    let typed = fields.get("zone");
    let Some(zone) = Zone::parse(typed) else {
        let error = Error::invalid(format!("zone {typed:?} is not known: name one such as Europe/Berlin"));
        let complaint = Complaint::of(error, &["zone"])?;
        let zone = typed.to_owned();
        return rejected(&SettingsPage { zone, complaint, ..page(&app, &caller, &visit).await? });
    };
    let name = zone.to_string();
    let encoded = utf8_percent_encode(&name, NON_ALPHANUMERIC).to_string();
    let cookie = visit.small_cookie(ZONE_COOKIE, &encoded, YEAR_SECONDS);
    let mut response = visit.go("/settings", &format!("Times are shown in {name}."));
    let cookie = header::HeaderValue::from_str(&cookie).map_err(Error::internal)?;
    response.headers_mut().append(header::SET_COOKIE, cookie);
    Ok(response)
}
