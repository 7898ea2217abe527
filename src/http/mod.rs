//! The HTTP door. One table of routes: path, handler, and what the route demands of its caller; the gate in front of
//! the handlers enforces it. Handlers parse, call a rule or the store, and answer; no SQL and no rules here.

pub mod alerts;
pub mod dead_letters;
pub mod destinations;
pub mod entitlements;
pub mod exports;
pub mod extract;
pub mod history;
pub mod keys;
pub mod meters;
pub mod openapi;
pub mod plans;
pub mod respond;
pub mod saved_queries;
pub mod session;
pub mod stats;
pub mod subjects;
pub mod system;
pub mod usage;
pub mod usage_events;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::{Handler, ServiceRequest, ServiceResponse};
use actix_web::http::{Method, StatusCode, header};
use actix_web::middleware::Next;
use actix_web::{FromRequest, HttpMessage, HttpRequest, HttpResponse, Responder, guard, web};

use crate::app::App;
use crate::auth::permission::{Access, Role, Scope, allow};
use crate::error::Error;
use crate::logging;

/// One operation of the interface.
pub struct Endpoint {
    pub method: Method,
    pub path: &'static str,
    pub access: Access,
    route: actix_web::Route,
}

fn endpoint<F, Args>(method: Method, path: &'static str, access: Access, handler: F) -> Endpoint
where
    F: Handler<Args>,
    Args: FromRequest + 'static,
    F::Output: Responder + 'static,
{
    let route = match method {
        Method::GET => web::route().guard(guard::Any(guard::Get()).or(guard::Head())),
        _ => web::method(method.clone()),
    };
    Endpoint { method, path, access, route: route.to(handler) }
}

/// Every route there is, fixed paths before patterns that would swallow them. A route cannot be written down
/// without saying who may call it.
#[rustfmt::skip]
pub fn endpoints() -> Vec<Endpoint> {
    const PUBLIC: Access = Access::Public;
    const MEMBER: Access = Access::Session(Role::Viewer);
    const MANAGER: Access = Access::Session(Role::Admin);
    const fn reads(scopes: &'static [Scope]) -> Access { Access::Key(scopes, Role::Viewer) }
    const fn writes(scopes: &'static [Scope]) -> Access { Access::Key(scopes, Role::Admin) }
    vec![
        endpoint(Method::GET, "/", PUBLIC, system::home),
        endpoint(Method::GET, "/health", PUBLIC, system::health),
        endpoint(Method::GET, "/ready", PUBLIC, system::ready),

        endpoint(Method::POST, "/v1/auth/users", PUBLIC, session::register),
        endpoint(Method::POST, "/v1/auth/sessions", PUBLIC, session::login),
        endpoint(Method::GET, "/v1/auth/session", MEMBER, session::current),
        endpoint(Method::DELETE, "/v1/auth/session", PUBLIC, session::logout),
        endpoint(Method::POST, "/v1/auth/session/refresh", PUBLIC, session::refresh),
        endpoint(Method::GET, "/v1/auth/providers", PUBLIC, session::providers),
        endpoint(Method::GET, "/v1/auth/oauth/{provider}", PUBLIC, session::oauth_start),
        endpoint(Method::GET, "/v1/auth/oauth/{provider}/callback", PUBLIC, session::oauth_callback),
        endpoint(Method::GET, "/v1/auth/api-keys", MEMBER, keys::list),
        endpoint(Method::POST, "/v1/auth/api-keys", MANAGER, keys::create),
        endpoint(Method::DELETE, "/v1/auth/api-keys/{id}", MANAGER, keys::revoke),
        endpoint(Method::POST, "/v1/auth/api-keys/{id}/rotate", MANAGER, keys::rotate),
        endpoint(Method::GET, "/v1/auth/api-key-events", MEMBER, keys::events),

        endpoint(Method::POST, "/v1/meters", writes(&[Scope::MetersWrite]), meters::create),
        endpoint(Method::GET, "/v1/meters", reads(&[Scope::MetersRead]), meters::list),
        endpoint(Method::GET, "/v1/meters/stats", reads(&[Scope::MetersRead]), history::meter_stats),
        endpoint(Method::GET, "/v1/meters/{id}", reads(&[Scope::MetersRead]), meters::get),
        endpoint(Method::PUT, "/v1/meters/{id}", writes(&[Scope::MetersWrite]), meters::update),
        endpoint(Method::DELETE, "/v1/meters/{id}", writes(&[Scope::MetersWrite]), meters::delete),

        endpoint(Method::POST, "/v1/usages", writes(&[Scope::UsageWrite]), usage::create),
        endpoint(Method::GET, "/v1/usages", reads(&[Scope::UsageRead]), usage::list),
        endpoint(Method::POST, "/v1/usages/bulk", writes(&[Scope::UsageWrite]), usage::create_bulk),
        endpoint(Method::POST, "/v1/usages/search", reads(&[Scope::UsageRead]), usage::search),

        endpoint(Method::GET, "/v1/plans", reads(&[Scope::PlansRead]), plans::list),
        endpoint(Method::POST, "/v1/plans", writes(&[Scope::PlansWrite]), plans::create),
        endpoint(Method::GET, "/v1/plans/assignments", reads(&[Scope::PlansRead]), plans::assignments),
        endpoint(Method::PUT, "/v1/plans/subjects/{subject}", writes(&[Scope::PlansWrite]), plans::assign),
        endpoint(Method::DELETE, "/v1/plans/subjects/{subject}", writes(&[Scope::PlansWrite]), plans::unassign),
        endpoint(Method::GET, "/v1/plans/subjects/{subject}/progress", reads(&[Scope::PlansRead]), plans::progress),
        endpoint(Method::GET, "/v1/plans/{id}", reads(&[Scope::PlansRead]), plans::get),
        endpoint(Method::PUT, "/v1/plans/{id}", writes(&[Scope::PlansWrite]), plans::update),
        endpoint(Method::DELETE, "/v1/plans/{id}", writes(&[Scope::PlansWrite]), plans::delete),
        endpoint(Method::POST, "/v1/plans/{id}/preview", reads(&[Scope::PlansRead]), plans::preview),

        endpoint(Method::POST, "/v1/entitlements/check", reads(&[Scope::PlansRead]), entitlements::check),
        endpoint(Method::POST, "/v1/entitlements/consume", writes(&[Scope::UsageWrite, Scope::PlansRead]), entitlements::consume),
        endpoint(Method::GET, "/v1/entitlements/decisions", reads(&[Scope::UsageRead, Scope::PlansRead]), entitlements::decisions),
        endpoint(Method::GET, "/v1/entitlements/decisions/{idempotency_key}", reads(&[Scope::UsageRead, Scope::PlansRead]), entitlements::decision),
        endpoint(Method::GET, "/v1/entitlements/states", reads(&[Scope::PlansRead]), entitlements::states),
        endpoint(Method::GET, "/v1/entitlements/events", reads(&[Scope::PlansRead]), entitlements::events),
        endpoint(Method::GET, "/v1/entitlements/periods", reads(&[Scope::PlansRead]), entitlements::periods),

        endpoint(Method::POST, "/v1/usages/breakdowns/search", reads(&[Scope::UsageRead]), usage::breakdown),
        endpoint(Method::GET, "/v1/usages/dimensions", reads(&[Scope::UsageRead]), usage::dimensions),
        endpoint(Method::GET, "/v1/usages/export", reads(&[Scope::UsageRead, Scope::ExportsRead]), usage::export),
        endpoint(Method::POST, "/v1/usages/export", reads(&[Scope::UsageRead, Scope::ExportsRead]), usage::export_search),

        endpoint(Method::GET, "/v1/usageevents", reads(&[Scope::UsageRead]), usage_events::list),
        endpoint(Method::POST, "/v1/usageevents/search", reads(&[Scope::UsageRead]), usage_events::search),
        endpoint(Method::GET, "/v1/usageevents/export", reads(&[Scope::UsageRead, Scope::ExportsRead]), usage_events::export),
        endpoint(Method::POST, "/v1/usageevents/export", reads(&[Scope::UsageRead, Scope::ExportsRead]), usage_events::export_search),

        endpoint(Method::POST, "/v1/exports", writes(&[Scope::UsageRead, Scope::ExportsWrite]), exports::create),
        endpoint(Method::GET, "/v1/exports", reads(&[Scope::ExportsRead]), exports::list),
        endpoint(Method::GET, "/v1/exports/{id}", reads(&[Scope::ExportsRead]), exports::get),
        endpoint(Method::POST, "/v1/exports/{id}/cancel", writes(&[Scope::ExportsWrite]), exports::cancel),
        endpoint(Method::POST, "/v1/exports/{id}/retry", writes(&[Scope::ExportsWrite]), exports::retry),
        endpoint(Method::GET, "/v1/exports/{id}/download", reads(&[Scope::ExportsRead]), exports::download),

        endpoint(Method::GET, "/v1/alerts", reads(&[Scope::AlertsRead]), alerts::list),
        endpoint(Method::POST, "/v1/alerts", writes(&[Scope::AlertsWrite]), alerts::create),
        endpoint(Method::GET, "/v1/alerts/events", reads(&[Scope::AlertsRead]), alerts::events),
        endpoint(Method::POST, "/v1/alerts/events/{id}/redeliver", writes(&[Scope::AlertsWrite]), alerts::redeliver),
        endpoint(Method::GET, "/v1/alerts/delivery-jobs", reads(&[Scope::AlertsRead]), alerts::delivery_jobs),
        endpoint(Method::POST, "/v1/alerts/delivery-jobs/{id}/retry", writes(&[Scope::AlertsWrite]), alerts::retry_delivery),
        endpoint(Method::GET, "/v1/alerts/destinations", reads(&[Scope::AlertsRead]), destinations::list),
        endpoint(Method::POST, "/v1/alerts/destinations", writes(&[Scope::AlertsWrite]), destinations::create),
        endpoint(Method::PUT, "/v1/alerts/destinations/{id}", writes(&[Scope::AlertsWrite]), destinations::update),
        endpoint(Method::DELETE, "/v1/alerts/destinations/{id}", writes(&[Scope::AlertsWrite]), destinations::delete),
        endpoint(Method::POST, "/v1/alerts/destinations/{id}/webhook-secret/rotate", writes(&[Scope::AlertsWrite]), destinations::rotate),
        endpoint(Method::POST, "/v1/alerts/destinations/{id}/test", writes(&[Scope::AlertsWrite]), destinations::test),
        endpoint(Method::GET, "/v1/alerts/{id}", reads(&[Scope::AlertsRead]), alerts::get),
        endpoint(Method::PUT, "/v1/alerts/{id}", writes(&[Scope::AlertsWrite]), alerts::update),
        endpoint(Method::DELETE, "/v1/alerts/{id}", writes(&[Scope::AlertsWrite]), alerts::delete),
        endpoint(Method::POST, "/v1/alerts/{id}/evaluate", writes(&[Scope::AlertsWrite]), alerts::evaluate_now),

        endpoint(Method::GET, "/v1/system/workers/dead-letters", reads(&[Scope::SystemRead]), dead_letters::list),
        endpoint(Method::POST, "/v1/system/workers/dead-letters/{id}/retry", writes(&[Scope::SystemWrite]), dead_letters::requeue),

        endpoint(Method::POST, "/v1/usageevents/prune", writes(&[Scope::UsageWrite]), history::prune),
        endpoint(Method::GET, "/v1/usageevents/prunes", reads(&[Scope::UsageRead]), history::prunes),
        endpoint(Method::GET, "/v1/usageingestions", reads(&[Scope::UsageRead]), history::ingestions),
        endpoint(Method::GET, "/v1/subjects", reads(&[Scope::UsageRead]), subjects::list),
        endpoint(Method::GET, "/v1/subjects/{subject}/usageevents", reads(&[Scope::UsageRead]), subjects::events),
        endpoint(Method::GET, "/v1/system/stats", reads(&[Scope::SystemRead]), stats::system_stats),

        endpoint(Method::GET, "/v1/usage/saved-queries", Access::Session(Role::Viewer), saved_queries::list),
        endpoint(Method::POST, "/v1/usage/saved-queries", Access::Session(Role::Admin), saved_queries::create),
        endpoint(Method::PUT, "/v1/usage/saved-queries/{id}", Access::Session(Role::Admin), saved_queries::update),
        endpoint(Method::DELETE, "/v1/usage/saved-queries/{id}", Access::Session(Role::Admin), saved_queries::delete),
    ]
}

/// The group roots that also answer with a slash at the end (rest.md section 1).
const SLASH_ALLOWED: [&str; 6] =
    ["/v1/usages", "/v1/usageevents", "/v1/exports", "/v1/alerts", "/v1/alerts/destinations", "/v1/plans"];

/// What each route demands, by pattern and method.
pub struct Demands(HashMap<(String, Method), Access>);

impl Demands {
    fn of(&self, request: &ServiceRequest) -> Option<(String, Access)> {
        let pattern = request.match_pattern()?;
        let method = if request.method() == Method::HEAD { &Method::GET } else { request.method() };
        let access = *self.0.get(&(pattern.clone(), method.clone()))?;
        Some((pattern, access))
    }
}

impl Default for Demands {
    fn default() -> Self {
        let mut demands = HashMap::new();
        for endpoint in endpoints() {
            for path in spellings(endpoint.path) {
                demands.insert((path, endpoint.method.clone()), endpoint.access);
            }
        }
        Demands(demands)
    }
}

fn spellings(path: &str) -> Vec<String> {
    let mut spellings = vec![path.to_owned()];
    if SLASH_ALLOWED.contains(&path) {
        spellings.push(format!("{path}/"));
    }
    spellings
}

/// Registers all routes, one resource per path, with 405 and `Allow` for the methods it does not have.
pub fn routes(config: &mut web::ServiceConfig) {
    let mut paths: Vec<(&'static str, Vec<Endpoint>)> = Vec::new();
    for endpoint in endpoints() {
        match paths.iter_mut().find(|(path, _)| *path == endpoint.path) {
            Some((_, same)) => same.push(endpoint),
            None => paths.push((endpoint.path, vec![endpoint])),
        }
    }
    for (path, endpoints) in paths {
        let allowed: Vec<Method> = endpoints.iter().map(|endpoint| endpoint.method.clone()).collect();
        let mut resource = web::resource(spellings(path));
        for endpoint in endpoints {
            resource = resource.route(endpoint.route);
        }
        config.service(resource.default_service(web::to(move || {
            let allowed = allowed.clone();
            async move { method_not_allowed(&allowed) }
        })));
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

/// Stands before every handler: request id, start-up state, authentication, permission, one log line, metrics.
pub async fn gate(
    app: web::Data<App>,
    demands: web::Data<Demands>,
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, actix_web::Error> {
    let started = Instant::now();
    let request_id: Arc<str> = uuid::Uuid::now_v7().to_string().into();
    let method = request.method().clone();
    let demand = demands.of(&request);
    let route = demand.as_ref().map_or("none".to_owned(), |(pattern, _)| pattern.clone());

    let answer = async {
        let refused = match &demand {
            Some((pattern, access)) => admit(&app, &request, pattern, access).await.err(),
            None => None,
        };
        match refused {
            Some(error) => Ok(request.into_response(respond::error(&error)).map_into_boxed_body()),
            None => next.call(request).await.map(ServiceResponse::map_into_boxed_body),
        }
    };
    let mut response = logging::within_request(request_id.clone(), answer).await?;

    let id = header::HeaderValue::from_str(&request_id).map_err(Error::internal)?;
    response.headers_mut().insert(header::HeaderName::from_static("x-request-id"), id);
    let content_options = header::HeaderValue::from_static("nosniff");
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, content_options);
    // says only that an answer is not to be compressed, and that was decided further in
    if response
        .headers()
        .get(header::CONTENT_ENCODING)
        .is_some_and(|encoding| encoding == respond::UNCOMPRESSED)
    {
        response.headers_mut().remove(header::CONTENT_ENCODING);
    }
    observe(&method, route, response.status(), started, &request_id);
    Ok(response)
}

/// 401, 403 or 503 before any work is done; puts the caller where handlers find it.
async fn admit(app: &App, request: &ServiceRequest, pattern: &str, access: &Access) -> Result<(), Error> {
    if app.phase.is_starting() && pattern != "/health" && pattern != "/ready" {
        return Err(Error::unavailable("the server is starting"));
    }
    if request.query_string().contains("%00") || request.path().contains("%00") {
        return Err(Error::invalid("NUL characters are not allowed"));
    }
    if let Some(caller) = extract::authenticate(app, request.request(), access).await? {
        allow(&caller, access)?;
        request.extensions_mut().insert(caller);
    }
    Ok(())
}

fn observe(method: &Method, route: String, status: StatusCode, started: Instant, request_id: &str) {
    let elapsed = started.elapsed();
    let duration_ms = elapsed.as_secs_f64() * 1000.0;
    let (method, status) = (method.as_str().to_owned(), status.as_u16());
    if status >= 500 {
        log::warn!(method, route, status, duration_ms, request_id; "request failed");
    } else {
        log::debug!(method, route, status, duration_ms, request_id; "request");
    }
    let labels = [("method", method), ("route", route), ("status", status.to_string())];
    metrics::histogram!("open_spanner_http_server_request_duration_seconds", &labels)
        .record(elapsed.as_secs_f64());
}

/// The address of the peer, as far as the connection tells.
pub fn peer(request: &HttpRequest) -> std::net::IpAddr {
    request.peer_addr().map_or(std::net::IpAddr::from([0, 0, 0, 0]), |address| address.ip())
}
