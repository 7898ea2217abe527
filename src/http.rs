//! The HTTP door. One table of routes: path, handler, and what the route demands of its caller; the gate in front of
//! the handlers enforces it. Handlers parse, call a rule or the store, and answer; no SQL and no rules here.

pub mod account;
pub mod alerts;
pub mod audit;
pub mod cloudevents;
pub mod dead_letters;
pub mod destinations;
pub mod dry_run;
pub mod entitlements;
pub mod exports;
pub mod extract;
pub mod history;
pub mod keys;
mod lines;
pub mod links;
pub mod members;
pub mod meters;
pub mod ndjson;
pub mod openapi;
pub mod plans;
pub mod providers;
pub mod respond;
pub mod saved_queries;
pub mod session;
pub mod stats;
pub mod subjects;
pub mod system;
pub mod usage;
pub mod usage_events;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::dev::{Handler, ServiceRequest, ServiceResponse};
use actix_web::http::{Method, StatusCode, header};
use actix_web::middleware::Next;
use actix_web::{FromRequest, HttpMessage, HttpRequest, HttpResponse, Responder, guard, web};
use futures_util::future::LocalBoxFuture;

use crate::app::App;
use crate::auth::permission::{Access, Role, Scope, allow};
use crate::auth::{Caller, Credential};
use crate::chance;
use crate::clock;
use crate::config::{self, LogRequests};
use crate::db::audit::{self as trail, Actor, Scene};
use crate::db::pool;
use crate::db::replica::{self, Position};
use crate::error::Error;
use crate::http::openapi::Doc;
use crate::logging::{self, FoldedKinds};
use crate::net::Peer;

/// One operation of the interface.
pub struct Endpoint {
    pub method: Method,
    pub path: &'static str,
    pub access: Access,
    pub door: Door,
    /// What the OpenAPI document says of it; stands beside the handler.
    pub describe: fn() -> Doc,
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
        request: &'a ServiceRequest,
    ) -> LocalBoxFuture<'a, Result<Vec<String>, HttpResponse>>;

    /// Finishes an answer: errors become pages, and every page goes out with its headers.
    fn leave(
        &self,
        app: &App,
        cookies: Vec<String>,
        response: ServiceResponse<BoxBody>,
    ) -> ServiceResponse<BoxBody>;
}

fn endpoint<F, Args>(
    method: Method,
    path: &'static str,
    access: Access,
    handler: F,
    describe: fn() -> Doc,
) -> Endpoint
where
    F: Handler<Args>,
    Args: FromRequest + 'static,
    F::Output: Responder + 'static,
{
    row(Door::Api, (method, path, access), handler, describe)
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
    // pages are no part of the interface for programs
    let describe = || Doc::new("dashboard", "A page");
    row(Door::Page(reception), (method, path, access), handler, describe)
}

fn row<F, Args>(
    door: Door,
    (method, path, access): (Method, &'static str, Access),
    handler: F,
    describe: fn() -> Doc,
) -> Endpoint
where
    F: Handler<Args>,
    Args: FromRequest + 'static,
    F::Output: Responder + 'static,
{
    let route = match method {
        Method::GET => web::route().guard(guard::Any(guard::Get()).or(guard::Head())),
        _ => web::method(method.clone()),
    };
    Endpoint { method, path, access, door, describe, route: route.to(handler) }
}

/// Every route there is, fixed paths before patterns that would swallow them. A route cannot be written down
/// without saying who may call it.
#[rustfmt::skip]
pub fn endpoints() -> Vec<Endpoint> {
    const PUBLIC: Access = Access::Public;
    const MEMBER: Access = Access::Session(Role::Viewer);
    const MANAGER: Access = Access::Session(Role::Admin);
    const OWNER: Access = Access::Session(Role::Owner);
    const fn reads(scopes: &'static [Scope]) -> Access { Access::Key(scopes, Role::Viewer) }
    const fn writes(scopes: &'static [Scope]) -> Access { Access::Key(scopes, Role::Admin) }
    vec![
        endpoint(Method::GET, "/health", PUBLIC, system::health, system::describe_health),
        endpoint(Method::GET, "/ready", PUBLIC, system::ready, system::describe_ready),
        endpoint(Method::GET, "/metrics", PUBLIC, system::metrics, system::describe_metrics),

        endpoint(Method::POST, "/v1/auth/users", PUBLIC, session::register, session::describe_register),
        endpoint(Method::POST, "/v1/auth/sessions", PUBLIC, session::login, session::describe_login),
        endpoint(Method::GET, "/v1/auth/session", MEMBER, session::current, session::describe_current),
        endpoint(Method::DELETE, "/v1/auth/session", PUBLIC, session::logout, session::describe_logout),
        endpoint(Method::POST, "/v1/auth/session/refresh", PUBLIC, session::refresh, session::describe_refresh),
        endpoint(Method::GET, "/v1/auth/sessions", MEMBER, account::sign_ins, account::describe_sign_ins),
        endpoint(Method::DELETE, "/v1/auth/sessions", MEMBER, account::end_all, account::describe_end_all),
        endpoint(Method::DELETE, "/v1/auth/sessions/{id}", MEMBER, account::end_one, account::describe_end_one),
        endpoint(Method::PUT, "/v1/auth/password", MEMBER, account::change_password, account::describe_change_password),
        endpoint(Method::POST, "/v1/auth/password-resets", PUBLIC, account::request_reset, account::describe_request_reset),
        endpoint(Method::POST, "/v1/auth/password-resets/{token}", PUBLIC, account::reset_password, account::describe_reset_password),
        endpoint(Method::GET, "/v1/auth/providers", PUBLIC, providers::list, providers::describe_list),
        endpoint(Method::GET, "/v1/auth/oauth/{provider}", PUBLIC, providers::start, providers::describe_start),
        endpoint(Method::GET, "/v1/auth/oauth/{provider}/callback", PUBLIC, providers::callback, providers::describe_callback),
        endpoint(Method::GET, "/v1/auth/identities", MEMBER, providers::identities, providers::describe_identities),
        endpoint(Method::DELETE, "/v1/auth/identities/{id}", MEMBER, providers::disconnect, providers::describe_disconnect),
        endpoint(Method::GET, "/v1/auth/api-keys", MEMBER, keys::list, keys::describe_list),
        endpoint(Method::POST, "/v1/auth/api-keys", MANAGER, keys::create, keys::describe_create),
        endpoint(Method::DELETE, "/v1/auth/api-keys/{id}", MANAGER, keys::revoke, keys::describe_revoke),
        endpoint(Method::POST, "/v1/auth/api-keys/{id}/rotate", MANAGER, keys::rotate, keys::describe_rotate),
        endpoint(Method::GET, "/v1/auth/api-key-events", MEMBER, keys::events, keys::describe_events),

        endpoint(Method::GET, "/v1/auth/workspace/api-keys", MANAGER, keys::of_workspace, keys::describe_of_workspace),
        endpoint(Method::DELETE, "/v1/auth/workspace/api-keys/{id}", OWNER, keys::revoke_any, keys::describe_revoke_any),

        endpoint(Method::GET, "/v1/auth/workspaces", MEMBER, members::workspaces, members::describe_workspaces),
        endpoint(Method::POST, "/v1/auth/session/workspace", MEMBER, members::switch, members::describe_switch),
        endpoint(Method::PATCH, "/v1/auth/workspace", MANAGER, members::change, members::describe_change),
        endpoint(Method::POST, "/v1/auth/workspace/leave", MEMBER, members::leave, members::describe_leave),
        endpoint(Method::POST, "/v1/auth/workspace/owner", OWNER, members::hand_over, members::describe_hand_over),
        endpoint(Method::GET, "/v1/auth/workspace/members", MANAGER, members::list, members::describe_list),
        endpoint(Method::PATCH, "/v1/auth/workspace/members/{user_id}", OWNER, members::change_role, members::describe_change_role),
        endpoint(Method::DELETE, "/v1/auth/workspace/members/{user_id}", OWNER, members::remove, members::describe_remove),
        endpoint(Method::GET, "/v1/auth/workspace/invitations", MANAGER, members::invitations, members::describe_invitations),
        endpoint(Method::POST, "/v1/auth/workspace/invitations", MANAGER, members::invite, members::describe_invite),
        endpoint(Method::DELETE, "/v1/auth/workspace/invitations/{id}", MANAGER, members::revoke_invitation, members::describe_revoke_invitation),
        endpoint(Method::GET, "/v1/auth/workspace-invitations/{token}", PUBLIC, members::preview, members::describe_preview),
        endpoint(Method::POST, "/v1/auth/workspace-invitations/{token}/accept", MEMBER, members::accept, members::describe_accept),

        endpoint(Method::POST, "/v1/meters", writes(&[Scope::MetersWrite]), meters::create, meters::describe_create),
        endpoint(Method::GET, "/v1/meters", reads(&[Scope::MetersRead]), meters::list, meters::describe_list),
        endpoint(Method::GET, "/v1/meters/stats", reads(&[Scope::MetersRead]), history::meter_stats, history::describe_meter_stats),
        endpoint(Method::GET, "/v1/meters/{id}", reads(&[Scope::MetersRead]), meters::get, meters::describe_get),
        endpoint(Method::PUT, "/v1/meters/{id}", writes(&[Scope::MetersWrite]), meters::update, meters::describe_update),
        endpoint(Method::DELETE, "/v1/meters/{id}", writes(&[Scope::MetersWrite]), meters::delete, meters::describe_delete),

        endpoint(Method::POST, "/v1/usages", writes(&[Scope::UsageWrite]), usage::create, usage::describe_create),
        endpoint(Method::GET, "/v1/usages", reads(&[Scope::UsageRead]), usage::list, usage::describe_list),
        endpoint(Method::POST, "/v1/usages/bulk", writes(&[Scope::UsageWrite]), usage::create_bulk, usage::describe_create_bulk),
        endpoint(Method::POST, "/v1/cloudevents", writes(&[Scope::UsageWrite]), cloudevents::create, cloudevents::describe_create),
        endpoint(Method::POST, "/api/v1/events", writes(&[Scope::UsageWrite]), cloudevents::openmeter, cloudevents::describe_openmeter),
        endpoint(Method::POST, "/v1/usages/search", reads(&[Scope::UsageRead]), usage::search, usage::describe_search),

        endpoint(Method::GET, "/v1/plans", reads(&[Scope::PlansRead]), plans::list, plans::describe_list),
        endpoint(Method::POST, "/v1/plans", writes(&[Scope::PlansWrite]), plans::create, plans::describe_create),
        endpoint(Method::GET, "/v1/plans/assignments", reads(&[Scope::PlansRead]), plans::assignments, plans::describe_assignments),
        endpoint(Method::PUT, "/v1/plans/subjects/{subject}", writes(&[Scope::PlansWrite]), plans::assign, plans::describe_assign),
        endpoint(Method::DELETE, "/v1/plans/subjects/{subject}", writes(&[Scope::PlansWrite]), plans::unassign, plans::describe_unassign),
        endpoint(Method::GET, "/v1/plans/subjects/{subject}/progress", reads(&[Scope::PlansRead]), plans::progress, plans::describe_progress),
        endpoint(Method::GET, "/v1/plans/{id}", reads(&[Scope::PlansRead]), plans::get, plans::describe_get),
        endpoint(Method::PUT, "/v1/plans/{id}", writes(&[Scope::PlansWrite]), plans::update, plans::describe_update),
        endpoint(Method::DELETE, "/v1/plans/{id}", writes(&[Scope::PlansWrite]), plans::delete, plans::describe_delete),
        endpoint(Method::POST, "/v1/plans/{id}/preview", reads(&[Scope::PlansRead]), plans::preview, plans::describe_preview),

        endpoint(Method::POST, "/v1/entitlements/check", reads(&[Scope::PlansRead]), entitlements::check, entitlements::describe_check),
        endpoint(Method::POST, "/v1/entitlements/consume", writes(&[Scope::UsageWrite, Scope::PlansRead]), entitlements::consume, entitlements::describe_consume),
        endpoint(Method::GET, "/v1/entitlements/decisions", reads(&[Scope::UsageRead, Scope::PlansRead]), entitlements::decisions, entitlements::describe_decisions),
        endpoint(Method::GET, "/v1/entitlements/decisions/{idempotency_key}", reads(&[Scope::UsageRead, Scope::PlansRead]), entitlements::decision, entitlements::describe_decision),
        endpoint(Method::GET, "/v1/entitlements/states", reads(&[Scope::PlansRead]), entitlements::states, entitlements::describe_states),
        endpoint(Method::GET, "/v1/entitlements/events", reads(&[Scope::PlansRead]), entitlements::events, entitlements::describe_events),
        endpoint(Method::GET, "/v1/entitlements/periods", reads(&[Scope::PlansRead]), entitlements::periods, entitlements::describe_periods),

        endpoint(Method::POST, "/v1/usages/breakdowns/search", reads(&[Scope::UsageRead]), usage::breakdown, usage::describe_breakdown),
        endpoint(Method::GET, "/v1/usages/dimensions", reads(&[Scope::UsageRead]), usage::dimensions, usage::describe_dimensions),
        endpoint(Method::GET, "/v1/usages/export", reads(&[Scope::UsageRead, Scope::ExportsRead]), usage::export, usage::describe_export),
        endpoint(Method::POST, "/v1/usages/export", reads(&[Scope::UsageRead, Scope::ExportsRead]), usage::export_search, usage::describe_export_search),

        endpoint(Method::GET, "/v1/usageevents", reads(&[Scope::UsageRead]), usage_events::list, usage_events::describe_list),
        endpoint(Method::POST, "/v1/usageevents/search", reads(&[Scope::UsageRead]), usage_events::search, usage_events::describe_search),
        endpoint(Method::GET, "/v1/usageevents/export", reads(&[Scope::UsageRead, Scope::ExportsRead]), usage_events::export, usage_events::describe_export),
        endpoint(Method::POST, "/v1/usageevents/export", reads(&[Scope::UsageRead, Scope::ExportsRead]), usage_events::export_search, usage_events::describe_export_search),

        endpoint(Method::POST, "/v1/exports", writes(&[Scope::UsageRead, Scope::ExportsWrite]), exports::create, exports::describe_create),
        endpoint(Method::GET, "/v1/exports", reads(&[Scope::ExportsRead]), exports::list, exports::describe_list),
        endpoint(Method::GET, "/v1/exports/{id}", reads(&[Scope::ExportsRead]), exports::get, exports::describe_get),
        endpoint(Method::POST, "/v1/exports/{id}/cancel", writes(&[Scope::ExportsWrite]), exports::cancel, exports::describe_cancel),
        endpoint(Method::POST, "/v1/exports/{id}/retry", writes(&[Scope::ExportsWrite]), exports::retry, exports::describe_retry),
        endpoint(Method::GET, "/v1/exports/{id}/download", reads(&[Scope::ExportsRead]), exports::download, exports::describe_download),

        endpoint(Method::GET, "/v1/alerts", reads(&[Scope::AlertsRead]), alerts::list, alerts::describe_list),
        endpoint(Method::POST, "/v1/alerts", writes(&[Scope::AlertsWrite]), alerts::create, alerts::describe_create),
        endpoint(Method::POST, "/v1/alerts/backtest", reads(&[Scope::AlertsRead, Scope::UsageRead]), alerts::backtest, alerts::describe_backtest),
        endpoint(Method::GET, "/v1/alerts/events", reads(&[Scope::AlertsRead]), alerts::events, alerts::describe_events),
        endpoint(Method::POST, "/v1/alerts/events/{id}/redeliver", writes(&[Scope::AlertsWrite]), alerts::redeliver, alerts::describe_redeliver),
        endpoint(Method::GET, "/v1/alerts/delivery-jobs", reads(&[Scope::AlertsRead]), alerts::delivery_jobs, alerts::describe_delivery_jobs),
        endpoint(Method::POST, "/v1/alerts/delivery-jobs/{id}/retry", writes(&[Scope::AlertsWrite]), alerts::retry_delivery, alerts::describe_retry_delivery),
        endpoint(Method::GET, "/v1/alerts/destinations", reads(&[Scope::AlertsRead]), destinations::list, destinations::describe_list),
        endpoint(Method::POST, "/v1/alerts/destinations", writes(&[Scope::AlertsWrite]), destinations::create, destinations::describe_create),
        endpoint(Method::PUT, "/v1/alerts/destinations/{id}", writes(&[Scope::AlertsWrite]), destinations::update, destinations::describe_update),
        endpoint(Method::DELETE, "/v1/alerts/destinations/{id}", writes(&[Scope::AlertsWrite]), destinations::delete, destinations::describe_delete),
        endpoint(Method::POST, "/v1/alerts/destinations/{id}/webhook-secret/rotate", writes(&[Scope::AlertsWrite]), destinations::rotate, destinations::describe_rotate),
        endpoint(Method::POST, "/v1/alerts/destinations/{id}/test", writes(&[Scope::AlertsWrite]), destinations::test, destinations::describe_test),
        endpoint(Method::GET, "/v1/alerts/{id}", reads(&[Scope::AlertsRead]), alerts::get, alerts::describe_get),
        endpoint(Method::PUT, "/v1/alerts/{id}", writes(&[Scope::AlertsWrite]), alerts::update, alerts::describe_update),
        endpoint(Method::DELETE, "/v1/alerts/{id}", writes(&[Scope::AlertsWrite]), alerts::delete, alerts::describe_delete),
        endpoint(Method::POST, "/v1/alerts/{id}/evaluate", writes(&[Scope::AlertsWrite]), alerts::evaluate_now, alerts::describe_evaluate_now),
        endpoint(Method::POST, "/v1/alerts/{id}/snooze", writes(&[Scope::AlertsWrite]), alerts::snooze, alerts::describe_snooze),

        endpoint(Method::GET, "/v1/audit-events", Access::Key(&[Scope::AuditRead], Role::Admin), audit::list, audit::describe_list),
        endpoint(Method::GET, "/v1/audit-events/export", Access::Key(&[Scope::AuditRead], Role::Admin), audit::export, audit::describe_export),

        endpoint(Method::GET, "/v1/system/workers/dead-letters", reads(&[Scope::SystemRead]), dead_letters::list, dead_letters::describe_list),
        endpoint(Method::POST, "/v1/system/workers/dead-letters/retry", writes(&[Scope::SystemWrite]), dead_letters::requeue_all, dead_letters::describe_requeue_all),
        endpoint(Method::POST, "/v1/system/workers/dead-letters/{id}/retry", writes(&[Scope::SystemWrite]), dead_letters::requeue, dead_letters::describe_requeue),

        endpoint(Method::POST, "/v1/usageevents/prune", writes(&[Scope::UsageWrite]), history::prune, history::describe_prune),
        endpoint(Method::GET, "/v1/usageevents/prunes", reads(&[Scope::UsageRead]), history::prunes, history::describe_prunes),
        endpoint(Method::GET, "/v1/usageingestions", reads(&[Scope::UsageRead]), history::ingestions, history::describe_ingestions),
        endpoint(Method::GET, "/v1/subjects", reads(&[Scope::UsageRead]), subjects::list, subjects::describe_list),
        endpoint(Method::GET, "/v1/subjects/{subject}/usageevents", reads(&[Scope::UsageRead]), subjects::events, subjects::describe_events),
        endpoint(Method::POST, "/v1/subjects/{subject}/links", writes(&[Scope::UsageRead]), links::create, links::describe_create),
        endpoint(Method::GET, "/v1/subjects/{subject}/links", reads(&[Scope::UsageRead]), links::list, links::describe_list),
        endpoint(Method::DELETE, "/v1/subjects/{subject}/links/{id}", writes(&[Scope::UsageRead]), links::revoke, links::describe_revoke),
        endpoint(Method::GET, "/v1/system/stats", reads(&[Scope::SystemRead]), stats::system_stats, stats::describe_system_stats),

        endpoint(Method::GET, "/v1/usage/saved-queries", Access::Session(Role::Viewer), saved_queries::list, saved_queries::describe_list),
        endpoint(Method::POST, "/v1/usage/saved-queries", Access::Session(Role::Admin), saved_queries::create, saved_queries::describe_create),
        endpoint(Method::PUT, "/v1/usage/saved-queries/{id}", Access::Session(Role::Admin), saved_queries::update, saved_queries::describe_update),
        endpoint(Method::DELETE, "/v1/usage/saved-queries/{id}", Access::Session(Role::Admin), saved_queries::delete, saved_queries::describe_delete),
    ]
}

/// The group roots that also answer with a slash at the end (rest.md 1).
const SLASH_ALLOWED: [&str; 6] =
    ["/v1/usages", "/v1/usageevents", "/v1/exports", "/v1/alerts", "/v1/alerts/destinations", "/v1/plans"];

/// What each route demands, by pattern and method.
pub struct RoutePolicies(HashMap<String, Vec<(Method, Access, Door)>>);

/// What the table says about a request.
enum Demand {
    Of(String, Access, Door),
    /// 404, or the description of the interface, which is nobody's secret.
    Unrestricted,
    /// 405 with the methods there are.
    OtherMethod(Vec<Method>),
    /// A handler that nobody wrote into the table: it must not be reached.
    Undeclared,
}

impl RoutePolicies {
    fn of(&self, request: &ServiceRequest) -> Demand {
        let Some(pattern) = request.match_pattern() else { return Demand::Unrestricted };
        let Some(methods) = self.0.get(&pattern) else {
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
        for endpoint in endpoints().into_iter().chain(pages) {
            for path in path_variants(endpoint.path) {
                let demand = (endpoint.method.clone(), endpoint.access, endpoint.door);
                demands.entry(path).or_default().push(demand);
            }
        }
        RoutePolicies(demands)
    }
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

fn method_not_allowed(allowed: &[Method]) -> HttpResponse {
    let mut response = HttpResponse::MethodNotAllowed();
    for method in allowed {
        response.append_header((header::ALLOW, method.as_str()));
    }
    response.finish()
}

async fn not_found() -> HttpResponse {
    let mut response = HttpResponse::NotFound();
    response.insert_header((header::CONTENT_ENCODING, respond::UNCOMPRESSED));
    response.content_type("text/plain; charset=utf-8").body("404 page not found\n")
}

/// Stands before every handler: request id, start-up state, authentication, permission, one log line, metrics. What
/// the table does not declare does not get past it.
pub async fn gate(
    app: web::Data<App>,
    demands: web::Data<RoutePolicies>,
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, actix_web::Error> {
    let started = clock::moment();
    let ids = identify(request.headers());
    let seen = text_of(request.headers(), POSITION).and_then(Position::parse);
    let bytes_in = length(&request);
    let _counted = InFlight::begin();
    let method = request.method().clone();
    let demand = demands.of(&request);
    let route = match &demand {
        Demand::Of(pattern, ..) => pattern.clone(),
        _ => "none".to_owned(),
    };

    // while it is being answered, its connection is not closed to make room for another
    let _call = request.request().conn_data::<Peer>().map(Peer::begin_call);
    let answer = async {
        let refused = match &demand {
            Demand::Of(_, access, Door::Page(reception)) => {
                match reception.enter(&app, access, &request).await {
                    Err(refusal) => Some(refusal),
                    Ok(cookies) => {
                        let scene = scene(&app, &request, ids.id());
                        let response = trail::within(scene, next.call(request)).await?.map_into_boxed_body();
                        return Ok(reception.leave(&app, cookies, response));
                    }
                }
            }
            Demand::Of(pattern, access, Door::Api) => {
                admit(&app, &request, pattern, access).await.err().map(|error| respond::error(&error))
            }
            Demand::Unrestricted => None,
            Demand::OtherMethod(allowed) => Some(method_not_allowed(allowed)),
            Demand::Undeclared => {
                Some(respond::error(&Error::internal("a handler that is not in the table of routes")))
            }
        };
        match refused {
            Some(refusal) => Ok(request.into_response(refusal).map_into_boxed_body()),
            None => {
                let reader = request.extensions().get::<Caller>().map(Caller::reader);
                let scene = scene(&app, &request, ids.id());
                let answer = trail::within(scene, pool::read_by(reader, next.call(request))).await;
                answer.map(ServiceResponse::map_into_boxed_body)
            }
        }
    };
    let (response, shown) = logging::within_request(ids.clone(), replica::for_caller(seen, answer)).await;
    let mut response = response?;

    tell(response.headers_mut(), &ids)?;
    let position = match shown {
        None if !method.is_safe() && response.status().is_success() => app.store.written_at().await,
        shown => shown,
    };
    if let Some(position) = position {
        let name = header::HeaderName::from_static(POSITION);
        response.headers_mut().insert(name, value(&position.to_string())?);
    }
    protect(response.headers_mut(), &route, &app.config.http);
    // says only that an answer is not to be compressed, and that was decided further in
    if response
        .headers()
        .get(header::CONTENT_ENCODING)
        .is_some_and(|encoding| encoding == respond::UNCOMPRESSED)
    {
        response.headers_mut().remove(header::CONTENT_ENCODING);
    }
    let caller = response.request().extensions().get::<Caller>().cloned();
    let bytes_out = match response.response().body().size() {
        BodySize::Sized(bytes) => bytes,
        // sent while it is made
        BodySize::None | BodySize::Stream => 0,
    };
    let said = Said { method, route, status: response.status(), bytes_in, bytes_out };
    let within = async { observe(app.config.http.log_requests, said, started, caller.as_ref()) };
    logging::within_request(ids, within).await;
    Ok(response)
}

/// Who is put down for what the request changes.
fn scene(app: &App, request: &ServiceRequest, request_id: &str) -> Scene {
    let caller = request.extensions().get::<Caller>().cloned();
    let agent = session::sent_header(request.request(), "user-agent").unwrap_or_default();
    Scene {
        workspace_id: caller.as_ref().map_or(trail::SERVER, |caller| caller.workspace_id),
        actor: caller.as_ref().map_or_else(Actor::nobody, Caller::actor),
        address: session::address(app, request.request()).to_string(),
        user_agent: agent.to_owned(),
        request_id: request_id.to_owned(),
        target: extract::last_segment(request.request()),
    }
}

/// The id by which a request is known, its sender's where that is harmless, and the sender's trace.
fn identify(headers: &header::HeaderMap) -> logging::Request {
    let text = |name: &str| text_of(headers, name);
    let is_harmless = |id: &&str| {
        (8..=128).contains(&id.len()) && id.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_.:".contains(&c))
    };
    let own = || chance::id().to_string();
    let id = text(REQUEST_ID).filter(is_harmless).map_or_else(own, str::to_owned);
    logging::Request::new(id, text(TRACEPARENT).and_then(logging::Trace::parse))
}

const REQUEST_ID: &str = "x-request-id";
const TRACEPARENT: &str = "traceparent";
/// Where the database was, as far as an answer saw it, and must be for the next one; where there is a standby.
const POSITION: &str = "open-spanner-position";

fn text_of<'a>(headers: &'a header::HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn value(text: &str) -> Result<header::HeaderValue, Error> {
    header::HeaderValue::from_str(text).map_err(Error::internal)
}

fn tell(headers: &mut header::HeaderMap, ids: &logging::Request) -> Result<(), Error> {
    headers.insert(header::HeaderName::from_static(REQUEST_ID), value(ids.id())?);
    if let Some(trace) = ids.trace() {
        headers.insert(header::HeaderName::from_static(TRACEPARENT), value(&trace.answer())?);
    }
    Ok(())
}

/// What a caller says that the body has; 0 where nothing is said.
fn length(request: &ServiceRequest) -> u64 {
    let said = request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    said.and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// A request that is counted as being answered until this is dropped.
struct InFlight;

impl InFlight {
    fn begin() -> Self {
        metrics::gauge!("open_spanner_http_requests_in_flight").increment(1);
        InFlight
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        metrics::gauge!("open_spanner_http_requests_in_flight").decrement(1);
    }
}

/// What browsers and caches between are told about every answer.
fn protect(headers: &mut header::HeaderMap, route: &str, settings: &config::Http) {
    let fixed = header::HeaderValue::from_static;
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, fixed("nosniff"));
    // a page that others may show is stricter
    if !headers.contains_key(header::REFERRER_POLICY) {
        headers.insert(header::REFERRER_POLICY, fixed("same-origin"));
    }
    // answers hold secrets and other people's numbers; `none` stands for those that were refused or not found
    if (route.starts_with("/v1") || route == "none") && !headers.contains_key(header::CACHE_CONTROL) {
        headers.insert(header::CACHE_CONTROL, fixed("no-store"));
    }
    if let Some(age) = settings.hsts_max_age
        && let Ok(value) = header::HeaderValue::from_str(&format!("max-age={}", age.as_secs()))
    {
        headers.insert(header::STRICT_TRANSPORT_SECURITY, value);
    }
}

/// 401, 403 or 503 before any work is done; puts the caller where handlers find it.
async fn admit(app: &App, request: &ServiceRequest, pattern: &str, access: &Access) -> Result<(), Error> {
    if app.phase.is_starting() && pattern != "/health" && pattern != "/ready" {
        return Err(Error::unavailable("the server is starting"));
    }
    if request.query_string().contains("%00") || request.path().contains("%00") {
        return Err(Error::invalid("NUL characters are not allowed"));
    }
    let changes = !matches!(*request.method(), Method::GET | Method::HEAD);
    let is_foreign = || changes && session::is_foreign(request.request());
    if pattern.starts_with("/v1/auth/") && is_foreign() {
        // whoever is signed in by another site works in somebody else's workspace and does not know
        return Err(Error::forbidden("another site asks for this"));
    }
    if let Some(caller) = extract::authenticate(app, request.request(), access).await? {
        allow(&caller, access)?;
        if matches!(caller.credential, Credential::Session { .. }) && is_foreign() {
            return Err(Error::forbidden("the session belongs to another site"));
        }
        request.extensions_mut().insert(caller);
    }
    Ok(())
}

/// Longer than this is worth a line whatever it was.
const SLOW: Duration = Duration::from_secs(1);

/// Whether a request that went well has a line at the level of information. What applications send all day has none:
/// writes of usage, questions about quota, reads, probes.
fn is_told(policy: LogRequests, method: &Method, route: &str, status: StatusCode, elapsed: Duration) -> bool {
    const ALL_DAY: [&str; 5] = ["/v1/usages", "/v1/usages/", "/v1/usages/bulk", CONSUME, CHECK];
    const CONSUME: &str = "/v1/entitlements/consume";
    const CHECK: &str = "/v1/entitlements/check";
    let is_change = *method != Method::GET && *method != Method::HEAD && !route.ends_with("/search");
    match policy {
        LogRequests::Off => false,
        LogRequests::All => true,
        LogRequests::Changes => {
            elapsed >= SLOW || status.is_success() && is_change && !ALL_DAY.contains(&route)
        }
    }
}

/// What a line about a request says.
struct Said {
    method: Method,
    route: String,
    status: StatusCode,
    bytes_in: u64,
    bytes_out: u64,
}

fn observe(policy: LogRequests, said: Said, started: Instant, caller: Option<&Caller>) {
    let Said { method, route, status, bytes_in, bytes_out } = said;
    let elapsed = clock::since(started);
    let duration_ms = elapsed.as_secs_f64() * 1000.0;
    let workspace = caller.map_or("", |caller| caller.user.workspace_id.as_str());
    let principal = caller.map(principal).unwrap_or_default();
    let level = match status.as_u16() {
        // probes come every few seconds, and whatever makes them fail is in the log already
        500.. if route != "/ready" => log::Level::Warn,
        _ if is_told(policy, &method, &route, status, elapsed) => log::Level::Info,
        _ => log::Level::Debug,
    };
    let (method, status) = (known(&method), status.as_u16());
    if level == log::Level::Warn {
        // whoever makes a call fail can do so a thousand times a second
        static FAILED: FoldedKinds<(String, u16)> = FoldedKinds::new();
        FAILED.say((route.clone(), status), |repeats| {
            log::warn!(
                method, route, status, duration_ms, bytes_in, bytes_out, workspace, principal, repeats;
                "request failed"
            );
        });
    } else {
        log::log!(
            level, method, route, status, duration_ms, bytes_in, bytes_out, workspace, principal;
            "request"
        );
    }
    let labels = [("method", method.to_owned()), ("route", route), ("status", status.to_string())];
    metrics::histogram!("open_spanner_http_server_request_duration_seconds", &labels)
        .record(elapsed.as_secs_f64());
}

/// Who called, as lists of keys and members name them.
fn principal(caller: &Caller) -> String {
    match &caller.credential {
        Credential::Key { public_id, .. } => format!("key:{public_id}"),
        Credential::Session { .. } => format!("user:{}", caller.user.id),
    }
}

/// What a method is counted under: of those that callers make up there is no end.
fn known(method: &Method) -> &'static str {
    const KNOWN: [Method; 7] = [
        Method::GET,
        Method::HEAD,
        Method::POST,
        Method::PUT,
        Method::PATCH,
        Method::DELETE,
        Method::OPTIONS,
    ];
    match KNOWN.iter().position(|known| known == method) {
        Some(at) => ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"][at],
        None => "other",
    }
}

/// The address of the peer, as far as the connection tells.
pub fn peer(request: &HttpRequest) -> std::net::IpAddr {
    request.peer_addr().map_or(std::net::IpAddr::from([0, 0, 0, 0]), |address| address.ip())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use actix_web::middleware::from_fn;
    use actix_web::test::{TestRequest, call_service, init_service, read_body};

    use super::*;
    use crate::alerts::webhook::client::Client;
    use crate::app::Phase;
    use crate::auth::{Auth, Options};
    use crate::db::Store;
    use crate::entitlements::counter_reader;
    use crate::entitlements::sql::plans::PlanCache;
    use crate::ingest::Ingest;
    use crate::jobs::worker::JobNotifier;
    use crate::meters::sql::MeterCache;
    use crate::net::budget::Budget;

    /// A server that never gets as far as its database.
    fn app() -> App {
        let config = config::load_from(&["open-spanner"], &[]).expect("defaults are good").config;
        let store = Store::new(&config.db);
        let meters = MeterCache::new(store.clone(), config.cache_ttl);
        let plans = PlanCache::new(store.clone(), config.cache_ttl);
        let zones = crate::usage::home_zone::HomeZones::new(store.clone(), config.cache_ttl);
        let counters = counter_reader::Reader::start(&store).expect("threads");
        let wake = JobNotifier::default();
        let (ingest, _) = Ingest::start(store.clone(), meters.clone(), &config.ingest, &wake);
        let options = Options {
            cache_ttl: config.cache_ttl,
            registration_enabled: true,
            invited_may_register: false,
            password_sign_in: true,
            session_max_age: config.auth.session_max_age,
        };
        let auth = Auth::new(store.clone(), options);
        let webhooks = Client::new(&[], false).expect("a client");
        let phase = Arc::new(Phase::default());
        phase.serve();
        let readiness = crate::db::readiness::Readiness::default();
        let (config, bodies) = (Arc::new(config), Budget::new(1024 * 1024));
        let streams = bodies.clone();
        App {
            changes: crate::app::changes::Changes::new(store.clone()),
            config,
            store,
            auth,
            meters,
            plans,
            zones,
            counters,
            ingest,
            phase,
            readiness,
            wake,
            webhooks,
            bodies,
            streams,
        }
    }

    #[actix_web::test]
    async fn a_handler_that_is_not_in_the_table_is_not_reached() {
        let reached = Arc::new(AtomicBool::new(false));
        let seen = reached.clone();
        let forgotten = move || {
            seen.store(true, Ordering::SeqCst);
            async { HttpResponse::Ok().body("secret") }
        };
        let service = init_service(
            actix_web::App::new()
                .app_data(web::Data::new(app()))
                .app_data(web::Data::new(RoutePolicies::with(Vec::new())))
                .wrap(from_fn(gate))
                .route("/v1/forgotten", web::get().to(forgotten.clone()))
                .route("/v1/forgotten/{id}", web::to(forgotten))
                .configure(|config| routes(config, Vec::new()))
                .service(openapi::viewer(openapi::document_text().expect("complete"))),
        )
        .await;
        for (method, path, status) in [
            (Method::GET, "/v1/forgotten", 500),
            (Method::HEAD, "/v1/forgotten", 500),
            (Method::DELETE, "/v1/forgotten/7", 500),
            (Method::GET, "/v1/meters", 401),
            (Method::PATCH, "/v1/meters", 405),
            (Method::GET, "/v1/nosuch", 404),
            (Method::GET, "/nosuch/page.txt", 404),
            (Method::GET, "/openapi.json/x", 404),
            (Method::GET, "/openapi.json", 200),
            (Method::GET, "/%6fpenapi.json", 404),
            (Method::GET, "/swagger", 404),
            (Method::GET, "/swagger/%2e%2e/v1/meters", 404),
            (Method::GET, "/swagger/", 200),
            (Method::GET, "/swagger/swagger-ui.css", 200),
            (Method::GET, "/health", 204),
        ] {
            let request = TestRequest::with_uri(path).method(method.clone()).to_request();
            let response = call_service(&service, request).await;
            assert_eq!(response.status().as_u16(), status, "{method} {path}");
            if method == Method::PATCH {
                let allowed: Vec<_> = response.headers().get_all(header::ALLOW).collect();
                assert_eq!(allowed, ["POST", "GET"]);
            }
            let body = read_body(response).await;
            assert!(status != 500 || method == Method::HEAD || body.starts_with(b"{\"error\""), "{body:?}");
        }
        assert!(!reached.load(Ordering::SeqCst));
    }
}
