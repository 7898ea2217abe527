//! Answers: JSON as rest.md 3 writes it, and the one error envelope (rest.md 4).

use actix_web::http::{StatusCode, header};
use actix_web::{HttpResponse, ResponseError};
use serde::Serialize;
use utoipa::ToSchema;

use crate::error::{Error, Result};
use crate::metering::json::escape_html;

/// A JSON answer: compact, HTML-escaped, one newline at the end.
pub fn json<T: Serialize + ?Sized>(status: StatusCode, value: &T) -> Result<HttpResponse> {
    let text = serde_json::to_string(value).map_err(Error::internal)?;
    Ok(json_text(status, &text))
}

pub fn ok<T: Serialize + ?Sized>(value: &T) -> Result<HttpResponse> {
    json(StatusCode::OK, value)
}

pub fn created<T: Serialize + ?Sized>(value: &T) -> Result<HttpResponse> {
    json(StatusCode::CREATED, value)
}

pub fn no_content() -> HttpResponse {
    HttpResponse::NoContent().finish()
}

/// The content encoding that keeps an answer from being compressed; it does not go out.
pub const UNCOMPRESSED: &str = "identity";
/// Compressing less than this costs more time than it saves.
const COMPRESSED_BYTES: usize = 1024;

/// JSON that is text already.
pub fn json_text(status: StatusCode, text: &str) -> HttpResponse {
    let mut body = escape_html(text).into_owned();
    body.push('\n');
    let mut response = HttpResponse::build(status);
    if body.len() < COMPRESSED_BYTES {
        response.insert_header((header::CONTENT_ENCODING, UNCOMPRESSED));
    }
    response.insert_header((header::CONTENT_TYPE, "application/json")).body(body)
}

/// Tells of a used idempotency key: that the answer was given before, and that it was given to another payload.
pub fn about_key(response: &mut HttpResponse, replayed: bool, conflict: bool) {
    for (name, is_so) in [("idempotency-replayed", replayed), ("idempotency-conflict", conflict)] {
        if is_so {
            let name = header::HeaderName::from_static(name);
            response.headers_mut().insert(name, header::HeaderValue::from_static("true"));
        }
    }
}

/// A page of a list: `items`, and a cursor while more rows exist.
#[derive(Serialize)]
pub struct Page<T> {
    pub items: Vec<T>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Error)]
pub struct Envelope<'a> {
    error: Body<'a>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = ErrorBody)]
pub struct Body<'a> {
    code: &'a str,
    message: &'a str,
}

/// The error envelope.
pub fn error(error: &Error) -> HttpResponse {
    let status = StatusCode::from_u16(error.code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let envelope = Envelope { error: Body { code: error.code.as_str(), message: &error.message } };
    // two strings always serialise
    let text = serde_json::to_string(&envelope).unwrap_or_default();
    let mut response = json_text(status, &text);
    if let Some(seconds) = error.retry_after_seconds {
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    response
}

impl ResponseError for Error {
    fn status_code(&self) -> StatusCode {
        StatusCode::from_u16(self.code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    fn error_response(&self) -> HttpResponse {
        error(self)
    }
}
