//! The door for people: pages drawn on the server. One file per group of pages; each parses the address or the form,
//! calls the same domain functions as the interface for programs, and shows a template. No SQL and no rules here.

pub mod advice;
pub mod ask;
pub mod assets;
pub mod chart;
pub mod confirm;
pub mod csrf;
pub mod foot;
pub mod form;
pub mod grammar;
pub mod guard;
pub mod kept;
pub mod once;
pub mod pace;
pub mod pages;
pub mod problem;
pub mod snippets;
pub mod sorting;
pub mod view;
pub mod visit;
pub mod zone;

use actix_web::dev::Handler;
use actix_web::http::Method;
use actix_web::{FromRequest, Responder};

use crate::auth::permission::{Access, Role};
use crate::dashboard::guard::Guard;
use crate::http::{self, Endpoint};
use pages::{
    account, alert_event, alerts, audit, deliveries, destinations, events, explain, explore, exports, home,
    ingestion, kept_form, keys, links, live, members, meters, overview, plans, quota, refused, saved,
    settings, share, short, sign_in, subjects, system, welcome, worker,
};

fn get<F, Args>(path: &'static str, access: Access, handler: F) -> Endpoint
where
    F: Handler<Args>,
    Args: FromRequest + 'static,
    F::Output: Responder + 'static,
{
    http::page(&Guard, Method::GET, path, access, handler)
}

fn post<F, Args>(path: &'static str, access: Access, handler: F) -> Endpoint
where
    F: Handler<Args>,
    Args: FromRequest + 'static,
    F::Output: Responder + 'static,
{
    http::page(&Guard, Method::POST, path, access, handler)
}

/// The rows of the dashboard in the table of routes.
#[rustfmt::skip]
pub fn endpoints() -> Vec<Endpoint> {
    const PUBLIC: Access = Access::Public;
    const VIEWER: Access = Access::Session(Role::Viewer);
    const ADMIN: Access = Access::Session(Role::Admin);
    const OWNER: Access = Access::Session(Role::Owner);
    vec![
        get("/", PUBLIC, home::home),
        get("/static/{hash}/{name}", PUBLIC, assets::get),
        get("/favicon.svg", PUBLIC, assets::favicon),
        get("/favicon.ico", PUBLIC, assets::favicon),
        get("/robots.txt", PUBLIC, assets::robots),

        get("/login", PUBLIC, sign_in::login_form),
        post("/login", PUBLIC, sign_in::login),
        get("/register", PUBLIC, sign_in::register_form),
        post("/register", PUBLIC, sign_in::register),
        post("/logout", VIEWER, sign_in::logout),
        post("/settings/theme", VIEWER, settings::theme),
        post("/settings/zone", VIEWER, settings::zone),
        post("/settings/keys", VIEWER, settings::keys),
        post("/settings/preferences", VIEWER, settings::preferences),
        post("/settings/workspace-zone", ADMIN, settings::workspace_zone),
        post("/settings/key-conflicts", OWNER, settings::key_conflicts),

        get("/kept-form", VIEWER, kept_form::show),

        get("/live", VIEWER, live::stream),

        get("/welcome", VIEWER, welcome::show),
        post("/welcome", ADMIN, welcome::prepare),
        post("/welcome/event", ADMIN, welcome::send_event),

        get("/overview", VIEWER, overview::show),
        get("/usage", VIEWER, explore::show),
        get("/usage/saved", VIEWER, saved::list),
        post("/usage/saved", ADMIN, saved::change),
        post("/usage/saved/new", ADMIN, saved::create),
        get("/usage/saved/{id}/delete", ADMIN, saved::confirm_delete),
        post("/usage/q", VIEWER, short::create),
        get("/usage/q/{hash}", VIEWER, short::show),
        get("/events", VIEWER, events::list),
        get("/events/refused", VIEWER, refused::list),
        get("/events/refused/{id}", VIEWER, refused::show),
        get("/events/{id}", VIEWER, events::show),
        get("/ingestion", VIEWER, ingestion::list),
        get("/ingestion/{id}", VIEWER, ingestion::show),
        get("/subjects", VIEWER, subjects::list),
        get("/subjects/{subject}", VIEWER, subjects::show),
        get("/subjects/{subject}/plan", ADMIN, subjects::plan),
        post("/subjects/{subject}/plan", ADMIN, subjects::change_plan),
        get("/subjects/{subject}/plan/remove", ADMIN, subjects::confirm_unassign),
        get("/subjects/{subject}/links", VIEWER, links::show),
        post("/subjects/{subject}/links", ADMIN, links::change),
        get("/subjects/{subject}/links/{id}/revoke", ADMIN, links::confirm_revoke),
        get("/share/{token}", PUBLIC, share::page),
        get("/share/{token}/usage.csv", PUBLIC, share::csv),
        get("/quota", VIEWER, quota::show),
        get("/decisions", VIEWER, quota::decisions),
        get("/decisions/{key}", VIEWER, quota::decision),
        get("/plans", VIEWER, plans::list),
        get("/plans/new", ADMIN, plans::new),
        post("/plans/new", ADMIN, plans::create),
        get("/plans/{id}", VIEWER, plans::show),
        get("/plans/{id}/edit", ADMIN, plans::edit),
        post("/plans/{id}/edit", ADMIN, plans::update),
        post("/plans/{id}/assign", ADMIN, plans::assign_subject),
        get("/plans/{id}/delete", ADMIN, plans::confirm_delete),
        post("/plans/{id}/delete", ADMIN, plans::delete),

        get("/explain", VIEWER, explain::show),
        get("/search", VIEWER, explain::search),

        get("/alerts", VIEWER, alerts::list),
        get("/alerts/events/{id}", VIEWER, alert_event::show),
        get("/alerts/new", ADMIN, alerts::new),
        post("/alerts/new", ADMIN, alerts::create),
        get("/alerts/{id}", VIEWER, alerts::show),
        get("/alerts/{id}/edit", ADMIN, alerts::edit),
        post("/alerts/{id}/edit", ADMIN, alerts::update),
        post("/alerts/{id}/evaluate", ADMIN, alerts::evaluate_now),
        post("/alerts/{id}/snooze", ADMIN, alerts::snooze),
        get("/alerts/{id}/delete", ADMIN, alerts::confirm_delete),
        post("/alerts/{id}/delete", ADMIN, alerts::delete),
        get("/destinations", VIEWER, destinations::list),
        get("/destinations/new", ADMIN, destinations::new),
        post("/destinations/new", ADMIN, destinations::create),
        get("/destinations/{id}", VIEWER, destinations::show),
        get("/destinations/{id}/secret", ADMIN, destinations::shown),
        get("/destinations/{id}/edit", ADMIN, destinations::edit),
        post("/destinations/{id}/edit", ADMIN, destinations::update),
        post("/destinations/{id}/test", ADMIN, destinations::test),
        get("/destinations/{id}/rotate", ADMIN, destinations::confirm_rotate),
        post("/destinations/{id}/rotate", ADMIN, destinations::rotate),
        get("/destinations/{id}/delete", ADMIN, destinations::confirm_delete),
        post("/destinations/{id}/delete", ADMIN, destinations::delete),
        get("/deliveries", VIEWER, deliveries::list),
        get("/deliveries/replay", ADMIN, deliveries::confirm_replay),
        post("/deliveries", ADMIN, deliveries::replay),
        get("/exports", VIEWER, exports::list),
        get("/exports/new", ADMIN, exports::new),
        post("/exports/new", ADMIN, exports::create),
        get("/exports/{id}", VIEWER, exports::show),
        post("/exports/{id}", ADMIN, exports::change),
        get("/jobs", VIEWER, system::jobs),
        post("/jobs", ADMIN, system::requeue),
        get("/jobs/requeue", ADMIN, system::confirm_requeue),
        get("/jobs/dead/{id}", VIEWER, system::letter),
        get("/jobs/workers/{name}", VIEWER, worker::show),
        get("/system", VIEWER, system::show),
        get("/system/prune", ADMIN, system::confirm_prune),
        post("/system/prune", ADMIN, system::prune),
        get("/settings", VIEWER, settings::show),

        get("/meters", VIEWER, meters::list),
        get("/meters/new", ADMIN, meters::new),
        post("/meters/new", ADMIN, meters::create),
        get("/meters/{meter}", VIEWER, meters::show),
        get("/meters/{meter}/edit", ADMIN, meters::edit),
        post("/meters/{meter}/edit", ADMIN, meters::update),
        get("/meters/{meter}/delete", ADMIN, meters::confirm_delete),
        post("/meters/{meter}/delete", ADMIN, meters::delete),

        get("/api-keys", VIEWER, keys::list),
        get("/api-keys/new", ADMIN, keys::new),
        post("/api-keys/new", ADMIN, keys::create),
        get("/api-keys/workspace", ADMIN, keys::of_workspace),
        post("/api-keys/workspace", OWNER, keys::revoke_any),
        get("/api-keys/workspace/{id}/revoke", OWNER, keys::confirm_revoke_any),
        get("/api-keys/{id}", VIEWER, keys::show),
        get("/api-keys/{id}/secret", ADMIN, keys::shown),
        get("/api-keys/{id}/rotate", ADMIN, keys::confirm_rotate),
        post("/api-keys/{id}/rotate", ADMIN, keys::rotate),
        get("/api-keys/{id}/revoke", ADMIN, keys::confirm_revoke),
        post("/api-keys/{id}/revoke", ADMIN, keys::revoke),

        get("/settings/sessions", VIEWER, account::sessions),
        post("/settings/sessions", VIEWER, account::end),
        get("/settings/sessions/end", VIEWER, account::confirm_end),
        post("/settings/identities", VIEWER, account::disconnect),
        post("/settings/password", VIEWER, account::change_password),
        get("/forgot", PUBLIC, account::forgot_form),
        post("/forgot", PUBLIC, account::forgot),
        get("/reset/{token}", PUBLIC, account::reset_form),
        post("/reset/{token}", PUBLIC, account::reset),
        get("/audit", ADMIN, audit::show),
        get("/members", VIEWER, members::list),
        post("/members/invite", ADMIN, members::invite),
        get("/members/invitations/{id}", ADMIN, members::invited),
        post("/members/invitations/{id}", ADMIN, members::revoke_invitation),
        post("/members/workspace", OWNER, members::rename),
        get("/members/leave", VIEWER, members::confirm_leave),
        post("/members/leave", VIEWER, members::leave),
        post("/members/{user_id}", OWNER, members::change),
        get("/members/{user_id}/remove", OWNER, members::confirm_remove),
        get("/members/{user_id}/hand-over", OWNER, members::confirm_hand_over),
        post("/workspaces", VIEWER, members::switch),
        get("/invitations/{token}", PUBLIC, members::invitation),
        post("/invitations/{token}", VIEWER, members::accept),
    ]
}
