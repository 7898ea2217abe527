//! What is said of a request when it has been answered: a line of the log and a measurement.

use std::time::{Duration, Instant};

use actix_web::http::{Method, StatusCode};

use crate::auth::{Caller, Credential};
use crate::clock;
use crate::config::LogRequests;
use crate::logging::FoldedKinds;

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
pub(super) struct Said {
    pub(super) method: Method,
    pub(super) route: String,
    pub(super) status: StatusCode,
    pub(super) bytes_in: u64,
    pub(super) bytes_out: u64,
}

pub(super) fn observe(policy: LogRequests, said: Said, started: Instant, caller: Option<&Caller>) {
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
