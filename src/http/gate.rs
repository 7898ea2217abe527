//! What stands before every handler: the id of the request, authentication, permission, and what every answer carries.
//! Which route demands what stands in the table (`routes`).

use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::{Method, header};
use actix_web::middleware::Next;
use actix_web::{HttpMessage, web};

use super::observe::{Said, observe};
use super::origin::is_foreign;
use super::routes::{Demand, Door, RoutePolicies, method_not_allowed};
use super::{body, extract, respond, session};
use crate::app::App;
use crate::auth::permission::{Access, allow};
use crate::auth::{Caller, Credential};
use crate::clock;
use crate::config;
use crate::db::audit::{self as trail, Actor, Scene};
use crate::db::pool;
use crate::db::replica::{self, Position};
use crate::error::{Code, Error};
use crate::ingest::{Door as Entrance, Origin};
use crate::logging;
use crate::logging::spans::{self, Span};
use crate::net::Peer;

/// Stands before every handler: request id, start-up state, authentication, permission, one log line, metrics. What
/// the table does not declare does not get past it.
pub async fn gate(
    app: web::Data<App>,
    demands: web::Data<RoutePolicies>,
    mut request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, actix_web::Error> {
    let started = clock::moment();
    let seen = text_of(request.headers(), POSITION).and_then(Position::parse);
    let bytes_in = length(&request);
    let _counted = InFlight::begin();
    let method = request.method().clone();
    let demand = demands.of(&request);
    let route = match &demand {
        Demand::Of(pattern, ..) => pattern.clone(),
        _ => "none".to_owned(),
    };
    let sent = || text_of(request.headers(), TRACEPARENT);
    let mut span = Span::of_request(method.as_str(), &route, sent);
    let ids = identify(request.headers(), &span);

    // while it is being answered, its connection is not closed to make room for another
    let _call = request.request().conn_data::<Peer>().map(Peer::begin_call);
    let answer = async {
        let refused = match &demand {
            Demand::Of(_, access, Door::Page(reception)) => {
                // a session that is renewed, or ends because its token was stolen, is put down to this request, too
                let arriving = scene(&app, &request, ids.id());
                match trail::within(arriving, reception.enter(&app, access, &mut request)).await {
                    Err(refusal) => Some(refusal),
                    Ok(cookies) => {
                        let reader = request.extensions().get::<Caller>().map(Caller::reader);
                        let scene = scene(&app, &request, ids.id());
                        let answer = trail::within(scene, pool::read_by(reader, next.call(request)));
                        let response = answer.await?.map_into_boxed_body();
                        return Ok(reception.leave(&app, cookies, response));
                    }
                }
            }
            Demand::Of(pattern, access, Door::Api) => {
                admit(&app, &request, pattern, access).await.err().map(|error| respond::error(&error))
            }
            Demand::Unrestricted => None,
            Demand::NoPage(reception) => match reception.enter(&app, &Access::Public, &mut request).await {
                Err(refusal) => Some(refusal),
                Ok(cookies) => {
                    let nothing = request.error_response(Error::not_found("this page"));
                    return Ok(reception.leave(&app, cookies, nothing));
                }
            },
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
    let answer = replica::for_caller(seen, spans::within(&span, answer));
    let (response, shown) = logging::within_request(ids.clone(), answer).await;
    let mut response = response?;

    tell(response.headers_mut(), &ids, &span)?;
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
    note(&mut span, &app, &response, caller.as_ref(), &ids);
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

/// What is known of a request when it has been answered.
fn note(
    span: &mut Span,
    app: &App,
    response: &ServiceResponse<BoxBody>,
    caller: Option<&Caller>,
    ids: &logging::Request,
) {
    span.note(|notes| {
        let (request, status) = (response.request(), response.status());
        notes.number("http.response.status_code", i64::from(status.as_u16()));
        notes.text("url.scheme", if session::secure(app, request) { "https" } else { "http" });
        if let Some(host) = text_of(request.headers(), "host") {
            notes.server(host);
        }
        notes.text("client.address", &session::address(app, request).to_string());
        notes.text("open_spanner.request_id", ids.id());
        if let Some(caller) = caller {
            notes.text("open_spanner.workspace_id", &caller.user.workspace_id);
        }
        if status.is_server_error() {
            notes.failed(status.as_str());
        }
    });
}

/// The id by which a request is known, its sender's where that is harmless, and the trace: that of our span, if there is one,
/// or else the sender's.
fn identify(headers: &header::HeaderMap, span: &Span) -> logging::Request {
    let text = |name: &str| text_of(headers, name);
    let is_harmless = |id: &&str| {
        (8..=128).contains(&id.len()) && id.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_.:".contains(&c))
    };
    let sent = text(REQUEST_ID).filter(is_harmless).map(str::to_owned);
    let trace = span.trace().or_else(|| text(TRACEPARENT).and_then(logging::Trace::parse));
    logging::Request::new(sent, trace)
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

fn tell(headers: &mut header::HeaderMap, ids: &logging::Request, span: &Span) -> Result<(), Error> {
    headers.insert(header::HeaderName::from_static(REQUEST_ID), value(ids.id())?);
    if let Some(trace) = ids.trace() {
        let own = span.traceparent().unwrap_or_else(|| trace.answer());
        headers.insert(header::HeaderName::from_static(TRACEPARENT), value(&own)?);
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
    let is_answer = route.starts_with("/v1/") || route.starts_with("/api/") || route == "none";
    if is_answer && !headers.contains_key(header::CACHE_CONTROL) {
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
    let is_foreign = || changes && is_foreign(request.request());
    if pattern.starts_with("/v1/auth/") && is_foreign() {
        // whoever is signed in by another site works in somebody else's workspace and does not know
        return Err(Error::forbidden("another site asks for this"));
    }
    let caller = extract::authenticate(app, request.request(), access).await?;
    let mut by_cookie = pattern.starts_with("/v1/auth/") && session::shows_session(request.request());
    if let Some(caller) = caller {
        allow(&caller, access).inspect_err(|error| tell_refused(app, pattern, request, (&caller, error)))?;
        by_cookie = matches!(caller.credential, Credential::Session { .. });
        if by_cookie && is_foreign() {
            return Err(Error::forbidden("the session belongs to another site"));
        }
        request.extensions_mut().insert(caller);
    }
    let is_forms = || !session::is_own(request.request()) && !body::is_json(request.request());
    if by_cookie && changes && session::is_from_browser(request.request()) && is_forms() {
        // a form of another site can send this with our cookie, and an old browser does not say that it did
        let rule = "with a cookie, what a browser sends must have the content type application/json";
        return Err(Error::new(Code::UnsupportedContentType, rule));
    }
    Ok(())
}

/// A key that may not write is what people ask about first when their events do not arrive.
fn tell_refused(app: &App, pattern: &str, request: &ServiceRequest, (caller, error): (&Caller, &Error)) {
    let entrance = match pattern.trim_end_matches('/') {
        "/v1/usages" => Entrance::Rest,
        "/v1/usages/bulk" => Entrance::Bulk,
        "/v1/cloudevents" => Entrance::CloudEvents,
        "/api/v1/events" => Entrance::OpenMeter,
        "/v1/entitlements/consume" => Entrance::Consume,
        _ => return,
    };
    if request.method() == Method::POST {
        app.ingest.refuse_call(&Origin::of(caller, entrance), error);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use actix_web::HttpResponse;
    use actix_web::middleware::from_fn;
    use actix_web::test::{TestRequest, call_service, init_service, read_body};

    use super::super::{openapi, routes};
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
            answers: bodies.clone(),
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
                .service(openapi::viewer()),
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
