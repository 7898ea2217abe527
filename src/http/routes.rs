//! Every route there is, with who may call it, and how they are registered and looked up. What is demanded is enforced
//! by the gate, what is done stands in the file of its noun.

use std::collections::HashMap;

use actix_web::body::BoxBody;
use actix_web::dev::{Handler, ServiceRequest, ServiceResponse};
use actix_web::http::{Method, header};
use actix_web::{FromRequest, HttpResponse, Responder, guard, web};
use futures_util::future::LocalBoxFuture;

use super::openapi::{self, Doc};
use super::{
    account, alerts, audit, cloudevents, dead_letters, destinations, entitlements, exports, history, keys,
    links, members, meters, plans, providers, refused, respond, saved_queries, session, short_links, stats,
    subjects, system, usage, usage_events,
};
use crate::app::App;
use crate::auth::permission::{Access, Role, Scope};

/// One operation of the interface.
pub struct Endpoint {
    pub method: Method,
    pub path: &'static str,
    pub access: Access,
    pub door: Door,
    route: actix_web::Route,
}

/// Who stands at the other end, which decides how callers are known and how refusals look.
#[derive(Clone, Copy)]
pub enum Door {
    /// A program: errors are JSON.
    Api,
    /// A person with a browser, received by whoever shows the pages.
    Page(&'static dyn Reception),
}

/// What stands before and behind the pages for people.
pub trait Reception: Sync {
    /// Finds out who calls and judges them before any work is done; answers the cookies to be set, or the refusal.
    fn enter<'a>(
        &'a self,
        app: &'a App,
        access: &'a Access,
        request: &'a mut ServiceRequest,
    ) -> LocalBoxFuture<'a, Result<Vec<String>, HttpResponse>>;

    /// Finishes an answer: errors become pages, and every page goes out with its headers.
    fn leave(
        &self,
        app: &App,
        cookies: Vec<String>,
        response: ServiceResponse<BoxBody>,
    ) -> ServiceResponse<BoxBody>;
}

/// Goes over the table of the interface. Who serves asks for handlers and who describes for descriptions: a program that
/// only serves does not carry the others, which are more than the handlers.
trait Rows {
    fn add<F, Args>(
        &mut self,
        method: Method,
        path: &'static str,
        access: Access,
        handler: F,
        describe: impl Fn() -> Doc,
    ) where
        F: Handler<Args>,
        Args: FromRequest + 'static,
        F::Output: Responder + 'static;
}

impl Rows for Vec<Endpoint> {
    fn add<F, Args>(
        &mut self,
        method: Method,
        path: &'static str,
        access: Access,
        handler: F,
        _describe: impl Fn() -> Doc,
    ) where
        F: Handler<Args>,
        Args: FromRequest + 'static,
        F::Output: Responder + 'static,
    {
        self.push(row(Door::Api, (method, path, access), handler));
    }
}

/// What the OpenAPI document says of one operation; stands beside the handler.
pub(super) struct Described {
    pub method: Method,
    pub path: &'static str,
    pub access: Access,
    pub doc: Doc,
}

impl Rows for Vec<Described> {
    fn add<F, Args>(
        &mut self,
        method: Method,
        path: &'static str,
        access: Access,
        _handler: F,
        describe: impl Fn() -> Doc,
    ) {
        self.push(Described { method, path, access, doc: describe() });
    }
}

/// A page for people.
pub fn page<F, Args>(
    reception: &'static dyn Reception,
    method: Method,
    path: &'static str,
    access: Access,
    handler: F,
) -> Endpoint
where
    F: Handler<Args>,
    Args: FromRequest + 'static,
    F::Output: Responder + 'static,
{
    row(Door::Page(reception), (method, path, access), handler)
}

fn row<F, Args>(door: Door, (method, path, access): (Method, &'static str, Access), handler: F) -> Endpoint
where
    F: Handler<Args>,
    Args: FromRequest + 'static,
    F::Output: Responder + 'static,
{
    let route = match method {
        Method::GET => web::route().guard(guard::Any(guard::Get()).or(guard::Head())),
        _ => web::method(method.clone()),
    };
    Endpoint { method, path, access, door, route: route.to(handler) }
}

/// Every route there is.
pub fn endpoints() -> Vec<Endpoint> {
    let mut rows = Vec::new();
    table(&mut rows);
    rows
}

/// Every route of the interface as it is described.
pub(super) fn described() -> Vec<Described> {
    let mut rows = Vec::new();
    table(&mut rows);
    rows
}

/// Fixed paths before patterns that would swallow them. A route cannot be written down
/// without saying who may call it.
#[rustfmt::skip]
fn table(rows: &mut impl Rows) {
    const PUBLIC: Access = Access::Public;
    const MEMBER: Access = Access::Session(Role::Viewer);
    const MANAGER: Access = Access::Session(Role::Admin);
    const OWNER: Access = Access::Session(Role::Owner);
    const fn reads(scopes: &'static [Scope]) -> Access { Access::Key(scopes, Role::Viewer) }
    const fn writes(scopes: &'static [Scope]) -> Access { Access::Key(scopes, Role::Admin) }
    rows.add(Method::GET, "/health", PUBLIC, system::health, system::describe_health);
    rows.add(Method::GET, "/ready", PUBLIC, system::ready, system::describe_ready);
    rows.add(Method::GET, "/metrics", PUBLIC, system::metrics, system::describe_metrics);

    rows.add(Method::POST, "/v1/auth/users", PUBLIC, session::register, session::describe_register);
    rows.add(Method::POST, "/v1/auth/sessions", PUBLIC, session::login, session::describe_login);
    rows.add(Method::GET, "/v1/auth/session", MEMBER, session::current, session::describe_current);
    rows.add(Method::DELETE, "/v1/auth/session", PUBLIC, session::logout, session::describe_logout);
    rows.add(Method::POST, "/v1/auth/session/refresh", PUBLIC, session::refresh, session::describe_refresh);
    rows.add(Method::GET, "/v1/auth/sessions", MEMBER, account::sign_ins, account::describe_sign_ins);
    rows.add(Method::DELETE, "/v1/auth/sessions", MEMBER, account::end_all, account::describe_end_all);
    rows.add(Method::DELETE, "/v1/auth/sessions/{id}", MEMBER, account::end_one, account::describe_end_one);
    rows.add(Method::PUT, "/v1/auth/password", MEMBER, account::change_password, account::describe_change_password);
    rows.add(Method::GET, "/v1/auth/preferences", MEMBER, account::preferences, account::describe_preferences);
    rows.add(Method::PUT, "/v1/auth/preferences", MEMBER, account::set_preferences, account::describe_set_preferences);
    rows.add(Method::POST, "/v1/auth/password-resets", PUBLIC, account::request_reset, account::describe_request_reset);
    rows.add(Method::POST, "/v1/auth/password-resets/{token}", PUBLIC, account::reset_password, account::describe_reset_password);
    rows.add(Method::GET, "/v1/auth/providers", PUBLIC, providers::list, providers::describe_list);
    rows.add(Method::GET, "/v1/auth/oauth/{provider}", PUBLIC, providers::start, providers::describe_start);
    rows.add(Method::GET, "/v1/auth/oauth/{provider}/callback", PUBLIC, providers::callback, providers::describe_callback);
    rows.add(Method::GET, "/v1/auth/identities", MEMBER, providers::identities, providers::describe_identities);
    rows.add(Method::DELETE, "/v1/auth/identities/{id}", MEMBER, providers::disconnect, providers::describe_disconnect);
    rows.add(Method::GET, "/v1/auth/api-keys", MEMBER, keys::list, keys::describe_list);
    rows.add(Method::POST, "/v1/auth/api-keys", MANAGER, keys::create, keys::describe_create);
    rows.add(Method::DELETE, "/v1/auth/api-keys/{id}", MANAGER, keys::revoke, keys::describe_revoke);
    rows.add(Method::POST, "/v1/auth/api-keys/{id}/rotate", MANAGER, keys::rotate, keys::describe_rotate);
    rows.add(Method::GET, "/v1/auth/api-key-events", MEMBER, keys::events, keys::describe_events);

    rows.add(Method::GET, "/v1/auth/workspace/api-keys", MANAGER, keys::of_workspace, keys::describe_of_workspace);
    rows.add(Method::DELETE, "/v1/auth/workspace/api-keys/{id}", OWNER, keys::revoke_any, keys::describe_revoke_any);

    rows.add(Method::GET, "/v1/auth/workspaces", MEMBER, members::workspaces, members::describe_workspaces);
    rows.add(Method::POST, "/v1/auth/session/workspace", MEMBER, members::switch, members::describe_switch);
    rows.add(Method::PATCH, "/v1/auth/workspace", MANAGER, members::change, members::describe_change);
    rows.add(Method::POST, "/v1/auth/workspace/leave", MEMBER, members::leave, members::describe_leave);
    rows.add(Method::POST, "/v1/auth/workspace/owner", OWNER, members::hand_over, members::describe_hand_over);
    rows.add(Method::GET, "/v1/auth/workspace/members", MANAGER, members::list, members::describe_list);
    rows.add(Method::PATCH, "/v1/auth/workspace/members/{user_id}", OWNER, members::change_role, members::describe_change_role);
    rows.add(Method::DELETE, "/v1/auth/workspace/members/{user_id}", OWNER, members::remove, members::describe_remove);
    rows.add(Method::GET, "/v1/auth/workspace/invitations", MANAGER, members::invitations, members::describe_invitations);
    rows.add(Method::POST, "/v1/auth/workspace/invitations", MANAGER, members::invite, members::describe_invite);
    rows.add(Method::DELETE, "/v1/auth/workspace/invitations/{id}", MANAGER, members::revoke_invitation, members::describe_revoke_invitation);
    rows.add(Method::GET, "/v1/auth/workspace-invitations/{token}", PUBLIC, members::preview, members::describe_preview);
    rows.add(Method::POST, "/v1/auth/workspace-invitations/{token}/accept", MEMBER, members::accept, members::describe_accept);

    rows.add(Method::POST, "/v1/meters", writes(&[Scope::MetersWrite]), meters::create, meters::describe_create);
    rows.add(Method::GET, "/v1/meters", reads(&[Scope::MetersRead]), meters::list, meters::describe_list);
    rows.add(Method::GET, "/v1/meters/stats", reads(&[Scope::MetersRead]), history::meter_stats, history::describe_meter_stats);
    rows.add(Method::GET, "/v1/meters/{id}", reads(&[Scope::MetersRead]), meters::get, meters::describe_get);
    rows.add(Method::PUT, "/v1/meters/{id}", writes(&[Scope::MetersWrite]), meters::update, meters::describe_update);
    rows.add(Method::DELETE, "/v1/meters/{id}", writes(&[Scope::MetersWrite]), meters::delete, meters::describe_delete);

    rows.add(Method::POST, "/v1/usages", writes(&[Scope::UsageWrite]), usage::create, usage::describe_create);
    rows.add(Method::GET, "/v1/usages", reads(&[Scope::UsageRead]), usage::list, usage::describe_list);
    rows.add(Method::POST, "/v1/usages/bulk", writes(&[Scope::UsageWrite]), usage::create_bulk, usage::describe_create_bulk);
    rows.add(Method::POST, "/v1/cloudevents", writes(&[Scope::UsageWrite]), cloudevents::create, cloudevents::describe_create);
    rows.add(Method::POST, "/api/v1/events", writes(&[Scope::UsageWrite]), cloudevents::openmeter, cloudevents::describe_openmeter);
    rows.add(Method::POST, "/v1/usages/search", reads(&[Scope::UsageRead]), usage::search, usage::describe_search);

    rows.add(Method::GET, "/v1/plans", reads(&[Scope::PlansRead]), plans::list, plans::describe_list);
    rows.add(Method::POST, "/v1/plans", writes(&[Scope::PlansWrite]), plans::create, plans::describe_create);
    rows.add(Method::GET, "/v1/plans/assignments", reads(&[Scope::PlansRead]), plans::assignments, plans::describe_assignments);
    rows.add(Method::PUT, "/v1/plans/subjects/{subject}", writes(&[Scope::PlansWrite]), plans::assign, plans::describe_assign);
    rows.add(Method::DELETE, "/v1/plans/subjects/{subject}", writes(&[Scope::PlansWrite]), plans::unassign, plans::describe_unassign);
    rows.add(Method::GET, "/v1/plans/subjects/{subject}/progress", reads(&[Scope::PlansRead]), plans::progress, plans::describe_progress);
    rows.add(Method::GET, "/v1/plans/{id}", reads(&[Scope::PlansRead]), plans::get, plans::describe_get);
    rows.add(Method::PUT, "/v1/plans/{id}", writes(&[Scope::PlansWrite]), plans::update, plans::describe_update);
    rows.add(Method::DELETE, "/v1/plans/{id}", writes(&[Scope::PlansWrite]), plans::delete, plans::describe_delete);
    rows.add(Method::POST, "/v1/plans/{id}/preview", reads(&[Scope::PlansRead]), plans::preview, plans::describe_preview);

    rows.add(Method::POST, "/v1/entitlements/check", reads(&[Scope::PlansRead]), entitlements::check, entitlements::describe_check);
    rows.add(Method::POST, "/v1/entitlements/consume", writes(&[Scope::UsageWrite, Scope::PlansRead]), entitlements::consume, entitlements::describe_consume);
    rows.add(Method::GET, "/v1/entitlements/decisions", reads(&[Scope::UsageRead, Scope::PlansRead]), entitlements::decisions, entitlements::describe_decisions);
    rows.add(Method::GET, "/v1/entitlements/decisions/{idempotency_key}", reads(&[Scope::UsageRead, Scope::PlansRead]), entitlements::decision, entitlements::describe_decision);
    rows.add(Method::GET, "/v1/entitlements/states", reads(&[Scope::PlansRead]), entitlements::states, entitlements::describe_states);
    rows.add(Method::GET, "/v1/entitlements/events", reads(&[Scope::PlansRead]), entitlements::events, entitlements::describe_events);
    rows.add(Method::GET, "/v1/entitlements/periods", reads(&[Scope::PlansRead]), entitlements::periods, entitlements::describe_periods);

    rows.add(Method::POST, "/v1/usages/breakdowns/search", reads(&[Scope::UsageRead]), usage::breakdown, usage::describe_breakdown);
    rows.add(Method::GET, "/v1/usages/dimensions", reads(&[Scope::UsageRead]), usage::dimensions, usage::describe_dimensions);
    rows.add(Method::GET, "/v1/usages/export", reads(&[Scope::UsageRead, Scope::ExportsRead]), usage::export, usage::describe_export);
    rows.add(Method::POST, "/v1/usages/export", reads(&[Scope::UsageRead, Scope::ExportsRead]), usage::export_search, usage::describe_export_search);

    rows.add(Method::GET, "/v1/usageevents", reads(&[Scope::UsageRead]), usage_events::list, usage_events::describe_list);
    rows.add(Method::POST, "/v1/usageevents/search", reads(&[Scope::UsageRead]), usage_events::search, usage_events::describe_search);
    rows.add(Method::GET, "/v1/usageevents/export", reads(&[Scope::UsageRead, Scope::ExportsRead]), usage_events::export, usage_events::describe_export);
    rows.add(Method::POST, "/v1/usageevents/export", reads(&[Scope::UsageRead, Scope::ExportsRead]), usage_events::export_search, usage_events::describe_export_search);

    rows.add(Method::POST, "/v1/exports", writes(&[Scope::UsageRead, Scope::ExportsWrite]), exports::create, exports::describe_create);
    rows.add(Method::GET, "/v1/exports", reads(&[Scope::ExportsRead]), exports::list, exports::describe_list);
    rows.add(Method::GET, "/v1/exports/{id}", reads(&[Scope::ExportsRead]), exports::get, exports::describe_get);
    rows.add(Method::POST, "/v1/exports/{id}/cancel", writes(&[Scope::ExportsWrite]), exports::cancel, exports::describe_cancel);
    rows.add(Method::POST, "/v1/exports/{id}/retry", writes(&[Scope::ExportsWrite]), exports::retry, exports::describe_retry);
    rows.add(Method::GET, "/v1/exports/{id}/download", reads(&[Scope::ExportsRead]), exports::download, exports::describe_download);

    rows.add(Method::GET, "/v1/alerts", reads(&[Scope::AlertsRead]), alerts::list, alerts::describe_list);
    rows.add(Method::POST, "/v1/alerts", writes(&[Scope::AlertsWrite]), alerts::create, alerts::describe_create);
    rows.add(Method::POST, "/v1/alerts/backtest", reads(&[Scope::AlertsRead, Scope::UsageRead]), alerts::backtest, alerts::describe_backtest);
    rows.add(Method::GET, "/v1/alerts/events", reads(&[Scope::AlertsRead]), alerts::events, alerts::describe_events);
    rows.add(Method::POST, "/v1/alerts/events/{id}/redeliver", writes(&[Scope::AlertsWrite]), alerts::redeliver, alerts::describe_redeliver);
    rows.add(Method::GET, "/v1/alerts/delivery-jobs", reads(&[Scope::AlertsRead]), alerts::delivery_jobs, alerts::describe_delivery_jobs);
    rows.add(Method::POST, "/v1/alerts/delivery-jobs/{id}/retry", writes(&[Scope::AlertsWrite]), alerts::retry_delivery, alerts::describe_retry_delivery);
    rows.add(Method::GET, "/v1/alerts/destinations", reads(&[Scope::AlertsRead]), destinations::list, destinations::describe_list);
    rows.add(Method::POST, "/v1/alerts/destinations", writes(&[Scope::AlertsWrite]), destinations::create, destinations::describe_create);
    rows.add(Method::PUT, "/v1/alerts/destinations/{id}", writes(&[Scope::AlertsWrite]), destinations::update, destinations::describe_update);
    rows.add(Method::DELETE, "/v1/alerts/destinations/{id}", writes(&[Scope::AlertsWrite]), destinations::delete, destinations::describe_delete);
    rows.add(Method::POST, "/v1/alerts/destinations/{id}/webhook-secret/rotate", writes(&[Scope::AlertsWrite]), destinations::rotate, destinations::describe_rotate);
    rows.add(Method::POST, "/v1/alerts/destinations/{id}/test", writes(&[Scope::AlertsWrite]), destinations::test, destinations::describe_test);
    rows.add(Method::GET, "/v1/alerts/{id}", reads(&[Scope::AlertsRead]), alerts::get, alerts::describe_get);
    rows.add(Method::PUT, "/v1/alerts/{id}", writes(&[Scope::AlertsWrite]), alerts::update, alerts::describe_update);
    rows.add(Method::DELETE, "/v1/alerts/{id}", writes(&[Scope::AlertsWrite]), alerts::delete, alerts::describe_delete);
    rows.add(Method::POST, "/v1/alerts/{id}/evaluate", writes(&[Scope::AlertsWrite]), alerts::evaluate_now, alerts::describe_evaluate_now);
    rows.add(Method::POST, "/v1/alerts/{id}/snooze", writes(&[Scope::AlertsWrite]), alerts::snooze, alerts::describe_snooze);

    rows.add(Method::GET, "/v1/audit-events", Access::Key(&[Scope::AuditRead], Role::Admin), audit::list, audit::describe_list);
    rows.add(Method::GET, "/v1/audit-events/export", Access::Key(&[Scope::AuditRead], Role::Admin), audit::export, audit::describe_export);

    rows.add(Method::GET, "/v1/system", reads(&[Scope::SystemRead]), system::info, system::describe_info);
    rows.add(Method::GET, "/v1/system/workers/dead-letters", reads(&[Scope::SystemRead]), dead_letters::list, dead_letters::describe_list);
    rows.add(Method::POST, "/v1/system/workers/dead-letters/retry", writes(&[Scope::SystemWrite]), dead_letters::requeue_all, dead_letters::describe_requeue_all);
    rows.add(Method::POST, "/v1/system/workers/dead-letters/{id}/retry", writes(&[Scope::SystemWrite]), dead_letters::requeue, dead_letters::describe_requeue);

    rows.add(Method::POST, "/v1/usageevents/prune", writes(&[Scope::UsageWrite]), history::prune, history::describe_prune);
    rows.add(Method::GET, "/v1/usageevents/prunes", reads(&[Scope::UsageRead]), history::prunes, history::describe_prunes);
    rows.add(Method::GET, "/v1/usageingestions", reads(&[Scope::UsageRead]), history::ingestions, history::describe_ingestions);
    rows.add(Method::GET, "/v1/events/refused", reads(&[Scope::UsageRead]), refused::list, refused::describe_list);
    rows.add(Method::GET, "/v1/events/refused/{id}", reads(&[Scope::UsageRead]), refused::get, refused::describe_get);
    rows.add(Method::GET, "/v1/subjects", reads(&[Scope::UsageRead]), subjects::list, subjects::describe_list);
    rows.add(Method::GET, "/v1/subjects/{subject}/usageevents", reads(&[Scope::UsageRead]), subjects::events, subjects::describe_events);
    rows.add(Method::POST, "/v1/subjects/{subject}/links", writes(&[Scope::UsageRead, Scope::LinksWrite]), links::create, links::describe_create);
    rows.add(Method::GET, "/v1/subjects/{subject}/links", reads(&[Scope::UsageRead]), links::list, links::describe_list);
    rows.add(Method::DELETE, "/v1/subjects/{subject}/links/{id}", writes(&[Scope::LinksWrite]), links::revoke, links::describe_revoke);
    rows.add(Method::GET, "/v1/system/stats", reads(&[Scope::SystemRead]), stats::system_stats, stats::describe_system_stats);

    rows.add(Method::POST, "/v1/usage/short-links", reads(&[Scope::UsageRead]), short_links::create, short_links::describe_create);
    rows.add(Method::GET, "/v1/usage/short-links/{hash}", reads(&[Scope::UsageRead]), short_links::get, short_links::describe_get);
    rows.add(Method::GET, "/v1/usage/saved-queries", Access::Session(Role::Viewer), saved_queries::list, saved_queries::describe_list);
    rows.add(Method::POST, "/v1/usage/saved-queries", Access::Session(Role::Admin), saved_queries::create, saved_queries::describe_create);
    rows.add(Method::PUT, "/v1/usage/saved-queries/{id}", Access::Session(Role::Admin), saved_queries::update, saved_queries::describe_update);
    rows.add(Method::DELETE, "/v1/usage/saved-queries/{id}", Access::Session(Role::Admin), saved_queries::delete, saved_queries::describe_delete);
}

/// The group roots that also answer with a slash at the end (rest.md 1).
const SLASH_ALLOWED: [&str; 6] =
    ["/v1/usages", "/v1/usageevents", "/v1/exports", "/v1/alerts", "/v1/alerts/destinations", "/v1/plans"];

/// What each route demands, by pattern and method.
pub struct RoutePolicies {
    demands: HashMap<String, Vec<(Method, Access, Door)>>,
    /// Whoever receives people, where there are pages.
    reception: Option<&'static dyn Reception>,
}

/// What the table says about a request.
pub(super) enum Demand {
    Of(String, Access, Door),
    /// 404, or the description of the interface, which is nobody's secret.
    Unrestricted,
    /// 404 for a person with a browser, who is shown a page.
    NoPage(&'static dyn Reception),
    /// 405 with the methods there are.
    OtherMethod(Vec<Method>),
    /// A handler that nobody wrote into the table: it must not be reached.
    Undeclared,
}

impl RoutePolicies {
    pub(super) fn of(&self, request: &ServiceRequest) -> Demand {
        let Some(pattern) = request.match_pattern() else {
            return match self.reception.filter(|_| is_for_people(request)) {
                Some(reception) => Demand::NoPage(reception),
                None => Demand::Unrestricted,
            };
        };
        let Some(methods) = self.demands.get(&pattern) else {
            let is_open = openapi::PATTERNS.contains(&pattern.as_str());
            return if is_open { Demand::Unrestricted } else { Demand::Undeclared };
        };
        let method = if request.method() == Method::HEAD { &Method::GET } else { request.method() };
        match methods.iter().find(|(declared, ..)| declared == method) {
            Some((_, access, door)) => Demand::Of(pattern, *access, *door),
            None => Demand::OtherMethod(methods.iter().map(|(declared, ..)| declared.clone()).collect()),
        }
    }
}

impl RoutePolicies {
    /// Those of the interface and of these further rows.
    pub fn with(pages: Vec<Endpoint>) -> Self {
        let mut demands: HashMap<String, Vec<(Method, Access, Door)>> = HashMap::new();
        let reception = pages.iter().find_map(|page| match page.door {
            Door::Page(reception) => Some(reception),
            Door::Api => None,
        });
        for endpoint in endpoints().into_iter().chain(pages) {
            for path in path_variants(endpoint.path) {
                let demand = (endpoint.method.clone(), endpoint.access, endpoint.door);
                demands.entry(path).or_default().push(demand);
            }
        }
        RoutePolicies { demands, reception }
    }
}

/// Whether a browser asks for a page: not for anything below the interface for programs, whose clients may name HTML
/// among what they take (`java.net` does).
fn is_for_people(request: &ServiceRequest) -> bool {
    let is_interface = matches!(request.path().split('/').nth(1), Some("v1" | "api"));
    let accepted = request.headers().get_all(header::ACCEPT).filter_map(|value| value.to_str().ok());
    let mut types = accepted.flat_map(|value| value.split([',', ';']));
    let takes_html = types.any(|word| word.trim().eq_ignore_ascii_case("text/html"));
    matches!(*request.method(), Method::GET | Method::HEAD) && !is_interface && takes_html
}

fn path_variants(path: &str) -> Vec<String> {
    let mut path_variants = vec![path.to_owned()];
    if SLASH_ALLOWED.contains(&path) {
        path_variants.push(format!("{path}/"));
    }
    path_variants
}

/// Registers all routes and these further rows, one resource per path; the gate answers for the methods it does not have.
pub fn routes(config: &mut web::ServiceConfig, pages: Vec<Endpoint>) {
    let mut paths: Vec<(&'static str, Vec<Endpoint>)> = Vec::new();
    for endpoint in endpoints().into_iter().chain(pages) {
        match paths.iter_mut().find(|(path, _)| *path == endpoint.path) {
            Some((_, same)) => same.push(endpoint),
            None => paths.push((endpoint.path, vec![endpoint])),
        }
    }
    // a pattern costs a regular expression for every request that goes past it
    paths.sort_by_key(|(path, _)| path.contains('{'));
    for (path, endpoints) in paths {
        let mut resource = web::resource(path_variants(path));
        for endpoint in endpoints {
            resource = resource.route(endpoint.route);
        }
        config.service(resource);
    }
    config.default_service(web::to(not_found));
}

pub(super) fn method_not_allowed(allowed: &[Method]) -> HttpResponse {
    let mut response = HttpResponse::MethodNotAllowed();
    for method in allowed {
        response.append_header((header::ALLOW, method.as_str()));
    }
    response.finish()
}

pub(super) async fn not_found() -> HttpResponse {
    let mut response = HttpResponse::NotFound();
    response.insert_header((header::CONTENT_ENCODING, respond::UNCOMPRESSED));
    response.content_type("text/plain; charset=utf-8").body("404 page not found\n")
}
