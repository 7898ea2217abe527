//! The HTTP door. One table of routes (`routes`): path, handler, and what the route demands of its caller; the gate in
//! front of the handlers (`gate`) enforces it. Handlers, in a file for each noun, parse, call a rule or the store, and
//! answer; no SQL and no rules here.

pub mod account;
pub mod alerts;
pub mod audit;
mod body;
pub mod cloudevents;
pub mod dead_letters;
pub mod destinations;
pub mod dry_run;
pub mod entitlements;
pub mod exports;
pub mod extract;
mod gate;
pub mod history;
pub mod keys;
mod lines;
pub mod links;
pub mod members;
pub mod meters;
pub mod ndjson;
mod observe;
pub mod openapi;
pub mod origin;
pub mod plans;
pub mod providers;
pub mod refused;
pub mod respond;
mod routes;
pub mod saved_queries;
pub mod session;
pub mod short_links;
pub mod stats;
pub mod subjects;
pub mod system;
mod unread;
pub mod usage;
pub mod usage_events;

use actix_web::HttpRequest;

pub use gate::gate;
pub use routes::{Door, Endpoint, Reception, RoutePolicies, endpoints, page, routes};
pub use unread::count_unread;

/// The address of the peer, as far as the connection tells.
pub fn peer(request: &HttpRequest) -> std::net::IpAddr {
    request.peer_addr().map_or(std::net::IpAddr::from([0, 0, 0, 0]), |address| address.ip())
}
