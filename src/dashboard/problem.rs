//! The page that says why not: the error's code and words, what to do next, the request id.

use actix_web::http::{StatusCode, header};
use actix_web::{HttpRequest, HttpResponse};
use askama::Template;

use crate::dashboard::visit::{Shell, Visit, show};
use crate::error::{Code, Error};
use crate::logging;

#[derive(Template)]
#[template(path = "problem.html")]
struct ProblemPage<'a> {
    shell: Shell,
    heading: &'static str,
    error: &'a Error,
    advice: &'static str,
    request_id: String,
    /// Seconds after which the page tries again by itself.
    retry: Option<u64>,
}

/// The page of an error. Never fails: without its template it is one line of text.
pub fn page(request: &HttpRequest, error: &Error) -> HttpResponse {
    let status = StatusCode::from_u16(error.code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let (heading, advice) = words(error.code);
    let retry = matches!(error.code, Code::Unavailable | Code::QueueFull)
        .then_some(error.retry_after_seconds.unwrap_or(1).max(3));
    let page = ProblemPage {
        shell: Visit::of(request).shell("", heading),
        heading,
        error,
        advice,
        request_id: logging::current_request().map(|request| request.id().to_owned()).unwrap_or_default(),
        retry,
    };
    let mut response = show(status, &page).unwrap_or_else(|_| HttpResponse::build(status).body(heading));
    if let Some(seconds) = error.retry_after_seconds {
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    response
}

fn words(code: Code) -> (&'static str, &'static str) {
    match code {
        Code::NotFound => ("Not found", "It may have been deleted, or it belongs to another workspace."),
        Code::Forbidden => ("Not allowed", "Ask an owner of the workspace if you need this."),
        Code::Conflict => {
            ("Not possible now", "Something else changed or still needs this. Go back and look again.")
        }
        Code::RateLimited => ("Too many attempts", "Wait a moment, then try again."),
        Code::Unavailable | Code::QueueFull => {
            ("Not available now", "The database does not answer. This page tries again by itself.")
        }
        Code::Internal => {
            ("Something went wrong", "The log of the server has the cause, under the request id below.")
        }
        _ => ("That does not work", "Go back, correct it, and send it again."),
    }
}
