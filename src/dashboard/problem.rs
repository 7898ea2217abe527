//! The page that says why not: the error's code and words, what to do next, the request id.

use actix_web::http::{Method, StatusCode, header};
use actix_web::{HttpMessage, HttpRequest, HttpResponse};
use askama::Template;
use percent_encoding::percent_decode_str;

use crate::auth::Caller;
use crate::dashboard::csrf;
use crate::dashboard::form::{Complaint, Fields, Sent};
use crate::dashboard::visit::{Shell, Visit, show};
use crate::error::{Code, Error};
use crate::http::extract::Params;
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
    /// A form that failed by no fault of its own, to be sent again.
    sent: Option<Fields>,
    /// What was looked for, and the list it would be in.
    wanted: String,
    list: &'static str,
    /// What a view was asked for that cannot be shown.
    asked: Option<Asked>,
}

/// The address of a view with a mistake in it, to be corrected.
struct Asked {
    path: String,
    fields: Vec<(String, String)>,
    complaint: Complaint,
}

/// Places in a list and kinds of files: whoever corrects a view begins it anew, as a page.
const PLACES: [&str; 5] = ["cursor", "after", "before", "format", "auto"];

impl Asked {
    /// None where it was no view that somebody signed in asked for by parameters.
    fn of(request: &HttpRequest, error: &Error) -> Option<Asked> {
        let is_signed_in = request.extensions().get::<Caller>().is_some();
        if !is_signed_in || error.code.http_status() != 400 || request.query_string().is_empty() {
            return None;
        }
        let params = Params::parse(request.query_string()).without(&PLACES);
        let fields: Vec<(String, String)> =
            params.pairs().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let names: Vec<&str> = params.pairs().map(|(name, _)| name).collect();
        let complaint = Complaint::of(error.clone(), &names).ok()?;
        Some(Asked { path: request.path().to_owned(), fields, complaint })
    }

    /// What a parameter is called.
    fn label(&self, name: &str) -> String {
        match name {
            "f" | "q" => "filter".to_owned(),
            name => name.replace('_', " "),
        }
    }
}

/// The page of an error. Never fails: without its template it is one line of text.
pub fn page(request: &HttpRequest, error: &Error) -> HttpResponse {
    let is_refused = request.extensions().get::<csrf::Refused>().is_some();
    let (heading, mut advice) = match error.code {
        Code::Forbidden if is_refused => NOT_SENT,
        code => words(code),
    };
    let is_away = matches!(error.code, Code::Unavailable | Code::QueueFull);
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    let asked = Asked::of(request, error).filter(|_| is_read);
    let status = match asked {
        Some(_) => StatusCode::UNPROCESSABLE_ENTITY,
        None => StatusCode::from_u16(error.code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
    };
    if asked.is_some() {
        advice = "Nothing was looked for. What was asked for is kept here: correct it and show it again.";
    }
    let retry = (is_away && is_read).then_some(error.retry_after_seconds.unwrap_or(1).max(3));
    let is_busy = matches!(error.code, Code::TooManyQueries | Code::QueryTimeout);
    let is_passing = is_away || is_busy;
    let sent = request.extensions().get::<Sent>().filter(|_| is_passing).map(|Sent(fields)| fields.clone());
    if is_passing && !is_read {
        advice = match (is_away, sent.is_some()) {
            (true, true) => {
                "The database does not answer. What you typed is kept here: send it again in a moment."
            }
            (true, false) => "The database does not answer. Go back: what you typed is still in the form.",
            (false, true) => "What you typed is kept here: send it again in a moment.",
            (false, false) => "Go back: what you typed is still in the form.",
        };
    }
    let page = ProblemPage {
        shell: Visit::of(request).shell("", heading),
        heading,
        error,
        advice,
        request_id: logging::current_request().map(|request| request.id().to_owned()).unwrap_or_default(),
        retry,
        sent,
        wanted: wanted(request.path()),
        list: list_of(request.path()),
        asked,
    };
    let mut response = show(status, &page).unwrap_or_else(|_| HttpResponse::build(status).body(heading));
    if let Some(seconds) = error.retry_after_seconds {
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    response
}

/// What stands behind a thing in a path, and is none.
const ACTS: [&str; 8] = ["delete", "edit", "hand-over", "links", "plan", "remove", "revoke", "rotate"];

/// The name or id that a path ends with.
fn wanted(path: &str) -> String {
    let parts = path.split('/').skip(2).filter(|part| !part.is_empty() && !ACTS.contains(part));
    let last = parts.last().unwrap_or_default();
    percent_decode_str(last).decode_utf8_lossy().into_owned()
}

/// The list that holds what a path names.
fn list_of(path: &str) -> &'static str {
    const LISTS: [&str; 13] = [
        "/subjects",
        "/meters",
        "/plans",
        "/alerts",
        "/destinations",
        "/members",
        "/events",
        "/decisions",
        "/exports",
        "/jobs",
        "/ingestion",
        "/api-keys",
        "/usage",
    ];
    LISTS.into_iter().find(|list| path.starts_with(&format!("{list}/"))).unwrap_or_default()
}

/// Of a form that no role would help: nobody needs to be asked.
const NOT_SENT: (&str, &str) = (
    "Not sent",
    "Nothing was done. You may have signed in anew since the form was shown: go back, load its page again, and send it from there.",
);

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
        Code::TooManyQueries => (
            "Too much at once",
            "As much is looked up for this workspace as it may have. Wait a moment, then load the page again.",
        ),
        Code::QueryTimeout => {
            ("This takes too long", "Ask for a shorter time, fewer groups or a smaller filter.")
        }
        Code::Internal => {
            ("Something went wrong", "The log of the server has the cause, under the request id below.")
        }
        _ => ("That does not work", "Go back, correct it, and send it again."),
    }
}
