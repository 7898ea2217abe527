//! `/settings`: how a person wants to see the pages, and what holds for everybody in the workspace. What a person chose is
//! stored with them; their browser remembers what the pages before the sign-in need.

use actix_web::http::header;
use actix_web::{HttpResponse, web};
use askama::Template;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use crate::app::App;
use crate::auth::Caller;
use crate::auth::permission::Role;
use crate::auth::preferences::{self, Preferences, Theme};
use crate::dashboard::form::{Complaint, Form};
use crate::dashboard::grammar::RANGES;
use crate::dashboard::visit::{KEYS_COOKIE, Shell, THEME_COOKIE, Visit, ZONE_COOKIE, ok, rejected};
use crate::dashboard::zone::OFFERED;
use crate::db::Conn;
use crate::error::{Error, Result};
use crate::http::session::own_path;
use crate::metering::calendar::{WeekStart, Zone};
use crate::usage::key_conflicts::{self, KeyConflicts};

const YEAR_SECONDS: u32 = 365 * 86_400;

/// Also kept in the browser, so that the page of sign-in has it.
pub async fn theme(app: web::Data<App>, caller: Caller, visit: Visit, form: Form) -> Result<HttpResponse> {
    let Form(fields) = form;
    let theme = preferences::theme(fields.get("theme"))?;
    let word = theme.map(Theme::as_str).ok_or_else(|| Error::invalid("theme is required"))?;
    app.auth.change_preferences(&caller, move |chosen| chosen.theme = theme).await?;
    let cookie = visit.small_cookie(THEME_COOKIE, word, YEAR_SECONDS);
    let mut response = HttpResponse::SeeOther();
    response.insert_header((header::LOCATION, own_path(fields.get("next"), "/overview")));
    Ok(response.insert_header((header::SET_COOKIE, cookie)).finish())
}

/// Whether single keys do something: they are in the way of whoever speaks to the browser.
pub async fn keys(app: web::Data<App>, caller: Caller, visit: Visit, form: Form) -> Result<HttpResponse> {
    let Form(fields) = form;
    let (value, words) = match fields.get("keys") {
        "on" => ("on", "Keys on the keyboard are on."),
        "off" => ("off", "Keys on the keyboard are off."),
        _ => return Err(Error::invalid("keys must be on or off")),
    };
    app.auth.change_preferences(&caller, move |chosen| chosen.shortcuts = Some(value == "on")).await?;
    let mut response = visit.go("/settings", words);
    let cookie = visit.small_cookie(KEYS_COOKIE, value, YEAR_SECONDS);
    let cookie = header::HeaderValue::from_str(&cookie).map_err(Error::internal)?;
    response.headers_mut().append(header::SET_COOKIE, cookie);
    Ok(response)
}

/// How close rows of tables stand, and what views of `/usage` are like that do not say so themselves.
pub async fn preferences(
    app: web::Data<App>,
    caller: Caller,
    visit: Visit,
    form: Form,
) -> Result<HttpResponse> {
    let Form(fields) = form;
    let density = preferences::density(fields.get("density"))?;
    let default_range = preferences::default_range(fields.get("default_range"))?;
    let week_start = preferences::week_start(fields.get("week_start"))?;
    let change = move |chosen: &mut Preferences| {
        chosen.density = density;
        chosen.week_start = week_start;
        chosen.default_range = default_range;
    };
    app.auth.change_preferences(&caller, change).await?;
    Ok(visit.go("/settings", "Saved."))
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
    key_conflicts: KeyConflicts,
    is_owner: bool,
    default_range: Option<&'static str>,
    week_start: Option<WeekStart>,
}

impl SettingsPage {
    fn zones(&self) -> &'static [&'static str] {
        &OFFERED
    }

    fn ranges(&self) -> &'static [(&'static str, &'static str)] {
        &RANGES
    }

    fn has_range(&self, word: &str) -> bool {
        self.default_range == Some(word)
    }

    fn begins_on(&self, word: &str) -> bool {
        self.week_start.is_some_and(|day| day.as_str() == word)
    }

    fn refuses(&self) -> bool {
        self.key_conflicts == KeyConflicts::Refuse
    }
}

/// The page as it is when nobody has typed anything.
async fn page(app: &App, caller: &Caller, visit: &Visit) -> Result<SettingsPage> {
    let shell = visit.shell("settings", "Settings");
    let home = app.zones.get(caller.workspace_id).await?;
    let workspace_id = caller.workspace_id;
    let find = move |conn: &mut Conn| key_conflicts::find(conn, workspace_id);
    let key_conflicts = app.store.read("workspaces::key_conflicts", find).await?;
    Ok(SettingsPage {
        zone: shell.zone.to_string(),
        shell,
        complaint: Complaint::none(),
        home_typed: home.to_string(),
        home,
        home_complaint: Complaint::none(),
        key_conflicts,
        is_owner: caller.role == Role::Owner,
        default_range: visit.default_range(),
        week_start: visit.week_start(),
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

/// What becomes of an idempotency key that comes again with another event.
pub async fn key_conflicts(
    app: web::Data<App>,
    caller: Caller,
    visit: Visit,
    form: Form,
) -> Result<HttpResponse> {
    let Form(fields) = form;
    let wanted = KeyConflicts::read(fields.get("key_conflicts"))?;
    key_conflicts::set(&app.store, caller.workspace_id, wanted).await?;
    let words = match wanted {
        KeyConflicts::Answer => "A key that is used again is answered with the event that used it first.",
        KeyConflicts::Refuse => "A key that is used again for another event is refused from now on.",
    };
    Ok(visit.go("/settings", words))
}

/// In which times are shown; kept like the theme.
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
    let change = move |chosen: &mut Preferences| chosen.time_zone = Some(zone.clone());
    app.auth.change_preferences(&caller, change).await?;
    let encoded = utf8_percent_encode(&name, NON_ALPHANUMERIC).to_string();
    let cookie = visit.small_cookie(ZONE_COOKIE, &encoded, YEAR_SECONDS);
    let mut response = visit.go("/settings", &format!("Times are shown in {name}."));
    let cookie = header::HeaderValue::from_str(&cookie).map_err(Error::internal)?;
    response.headers_mut().append(header::SET_COOKIE, cookie);
    Ok(response)
}
