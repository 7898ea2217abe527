//! One entry per operation: what it takes, what it answers. Nothing about access: that is in the route table.

use actix_web::http::Method;

use utoipa::openapi::Required;

use super::Doc;
use crate::auth::User;
use crate::http::{keys, meters, session, usage as usages};
use crate::{event, usage as rows};

/// The description of a route, or `None` when nobody wrote one.
pub fn describe(method: &Method, path: &str) -> Option<Doc> {
    let doc = match (method.as_str(), path) {
        ("GET", "/") => Doc::new("health", "Front page").html("A page with links."),
        ("GET", "/health") => Doc::new("health", "The process lives").empty(204, "Always."),
        ("GET", "/ready") => Doc::new("health", "The server can do its work")
            .empty(204, "Ready.")
            .empty(503, "Not now; the log says why."),
        (_, path) if path.starts_with("/v1/auth") => return auth(method, path),
        (_, path) if path.starts_with("/v1/meters") => return meter(method, path),
        (_, path) if path.starts_with("/v1/usages") => return usage(method, path),
        _ => return None,
    };
    Some(doc)
}

fn auth(method: &Method, path: &str) -> Option<Doc> {
    let doc =
        match (method.as_str(), path) {
            ("POST", "/v1/auth/users") => Doc::new("auth", "Register")
                .body::<session::CredentialsInput>()
                .answer::<User>(201, "The user, with a workspace of their own.")
                .errors(&[403, 409, 429]),
            ("POST", "/v1/auth/sessions") => Doc::new("auth", "Sign in")
                .body::<session::CredentialsInput>()
                .answer::<session::SessionView>(201, "Signed in; the tokens are in two cookies.")
                .errors(&[401, 429]),
            ("GET", "/v1/auth/session") => {
                Doc::new("auth", "Who is signed in").answer::<session::CurrentView>(200, "The user.")
            }
            ("DELETE", "/v1/auth/session") => {
                Doc::new("auth", "Sign out").empty(204, "Signed out, cookies cleared.")
            }
            ("POST", "/v1/auth/session/refresh") => Doc::new("auth", "Renew the session")
                .answer::<session::SessionView>(200, "Two new cookies.")
                .errors(&[401]),
            ("GET", "/v1/auth/providers") => Doc::new("auth", "Sign-in providers")
                .answer::<session::ProvidersView>(200, "All known providers."),
            ("GET", "/v1/auth/oauth/{provider}") => {
                Doc::new("auth", "Start a sign-in with a provider").empty(302, "To the provider.")
            }
            ("GET", "/v1/auth/oauth/{provider}/callback") => Doc::new("auth", "Return from a provider")
                .empty(302, "To the overview, or to the login page on any failure."),
            ("GET", "/v1/auth/api-keys") => {
                Doc::new("api keys", "Own API keys").page::<keys::KeyView>("Newest first.")
            }
            ("POST", "/v1/auth/api-keys") => Doc::new("api keys", "Create an API key")
                .body::<keys::KeyInput>()
                .answer::<keys::KeyView>(201, "The key; its secret is shown only here."),
            ("DELETE", "/v1/auth/api-keys/{id}") => {
                Doc::new("api keys", "Revoke an API key").empty(204, "Revoked.")
            }
            ("POST", "/v1/auth/api-keys/{id}/rotate") => Doc::new("api keys", "Replace an API key")
                .body::<keys::RotateInput>()
                .answer::<keys::KeyView>(201, "The new key; the old one ends after the grace period.")
                .errors(&[409]),
            ("GET", "/v1/auth/api-key-events") => {
                Doc::new("api keys", "History of own API keys").page::<keys::EventView>("The newest 50.")
            }
            _ => return None,
        };
    Some(doc)
}

fn meter(method: &Method, path: &str) -> Option<Doc> {
    let doc = match (method.as_str(), path) {
        ("POST", "/v1/meters") => Doc::new("meters", "Define a meter")
            .body::<meters::MeterInput>()
            .answer::<meters::MeterView>(201, "The meter.")
            .errors(&[409]),
        ("GET", "/v1/meters") => Doc::new("meters", "List meters")
            .text("name", "Exact name.")
            .limit(50, 500)
            .cursor()
            .page::<meters::MeterView>("By name."),
        ("GET", "/v1/meters/{id}") => {
            Doc::new("meters", "Read a meter").answer::<meters::MeterView>(200, "The meter.")
        }
        ("PUT", "/v1/meters/{id}") => Doc::new("meters", "Change a meter")
            .body::<meters::MeterInput>()
            .answer::<meters::MeterView>(200, "The meter as it is now.")
            .errors(&[409]),
        ("DELETE", "/v1/meters/{id}") => {
            Doc::new("meters", "Delete a meter without events").empty(204, "Deleted.").errors(&[409])
        }
        _ => return None,
    };
    Some(doc)
}

fn usage(method: &Method, path: &str) -> Option<Doc> {
    let doc = match (method.as_str(), path) {
        ("POST", "/v1/usages") => Doc::new("usage", "Record an event")
            .body::<event::Input>()
            .answer::<event::StoredEvent>(
                201,
                "The stored event, or the one that first had the idempotency key.",
            )
            .errors(&[404, 429]),
        ("POST", "/v1/usages/bulk") => Doc::new("usage", "Record up to 1000 events")
            .body_list::<event::Input>()
            .answer::<usages::BulkResult>(201, "At least one item is stored.")
            .answer::<super::BulkOrError>(
                400,
                "Every item failed (a bulk result), or the call itself (an error).",
            )
            .errors(&[429]),
        ("GET", "/v1/usages") => Doc::new("usage", "Aggregates over time")
            .required_text("meter", "Name of the meter.")
            .time("from", "Start, inclusive.", Required::True)
            .time("to", "End, exclusive.", Required::True)
            .text("subject", "One subject only.")
            .text("bucket_size", "`hour`, `day` or `month`; `day` unless told.")
            .repeated("group_by", "`subject` or declared dimensions, up to five.")
            .limit(100, 1000)
            .list::<rows::Bucket>("By bucket, then group. `metadata.<path>=<value>` parameters filter.")
            .errors(&[404]),
        ("POST", "/v1/usages/search") => Doc::new("usage", "Aggregates over time, with a filter")
            .body::<usages::Search>()
            .list::<rows::Bucket>("By bucket, then group.")
            .errors(&[404]),
        _ => return None,
    };
    Some(doc)
}
