//! What can go wrong, in the words of rest.md 4: one code table that REST and gRPC share.
//! Never holds a cause, a driver text or a secret: causes are logged where they are met.

use std::fmt;

/// The stable word in an answer; each has one HTTP status and one gRPC status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    InvalidJson,
    InvalidInput,
    /// `invalid_<parameter>`: a parameter with a code of its own, such as `invalid_limit`.
    InvalidParameter(&'static str),
    RequestTooLarge,
    /// A content encoding that is not read.
    UnsupportedEncoding,
    /// Something that is not said to be JSON, sent with a cookie.
    UnsupportedContentType,
    RateLimited,
    /// The workspace or the credential has as many queries under way as it may have.
    TooManyQueries,
    RegistrationDisabled,
    Unauthorized,
    Forbidden,
    NotFound,
    Conflict,
    /// As many of a kind exist as may exist.
    LimitReached,
    /// The database is away, full or busy: nothing was stored, and a later try may work. Only a commit that was cut
    /// off may have gone through: whoever sends an idempotency key can try again without knowing.
    Unavailable,
    /// More is waiting to be written than may wait: nothing was stored, and a later try may work.
    QueueFull,
    /// A read took longer than reads may; the same one would again.
    QueryTimeout,
    Internal,
    /// The database or a setting is not one that this program can work with: told to the operator, never to a caller.
    Unusable,
}

impl Code {
    /// Each once; [`Code::InvalidParameter`] by the one that events have.
    pub const ALL: [Code; 19] = [
        Code::InvalidJson,
        Code::InvalidInput,
        Code::InvalidParameter("invalid_timestamp"),
        Code::RequestTooLarge,
        Code::UnsupportedEncoding,
        Code::UnsupportedContentType,
        Code::RateLimited,
        Code::TooManyQueries,
        Code::RegistrationDisabled,
        Code::Unauthorized,
        Code::Forbidden,
        Code::NotFound,
        Code::Conflict,
        Code::LimitReached,
        Code::Unavailable,
        Code::QueueFull,
        Code::QueryTimeout,
        Code::Internal,
        Code::Unusable,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Code::InvalidJson => "invalid_json",
            Code::InvalidInput => "invalid_input",
            Code::InvalidParameter(code) => code,
            Code::RequestTooLarge => "request_too_large",
            Code::UnsupportedEncoding => "unsupported_content_encoding",
            Code::UnsupportedContentType => "unsupported_content_type",
            Code::RateLimited => "rate_limited",
            Code::TooManyQueries => "too_many_queries",
            Code::QueryTimeout => "query_timeout",
            Code::RegistrationDisabled => "registration_disabled",
            Code::Unauthorized => "unauthorized",
            Code::Forbidden => "forbidden",
            Code::NotFound => "not_found",
            Code::Conflict => "conflict",
            Code::LimitReached => "limit_reached",
            Code::Unavailable | Code::QueueFull => "unavailable",
            Code::Internal | Code::Unusable => "internal_error",
        }
    }

    pub fn http_status(self) -> u16 {
        match self {
            Code::InvalidJson | Code::InvalidInput | Code::InvalidParameter(_) => 400,
            Code::Unauthorized => 401,
            Code::Forbidden | Code::RegistrationDisabled => 403,
            Code::NotFound => 404,
            Code::Conflict | Code::LimitReached => 409,
            Code::RequestTooLarge => 413,
            Code::UnsupportedEncoding | Code::UnsupportedContentType => 415,
            Code::RateLimited | Code::TooManyQueries => 429,
            Code::Internal | Code::Unusable => 500,
            Code::Unavailable | Code::QueueFull | Code::QueryTimeout => 503,
        }
    }

    /// What the process ends with: 2 when something has to be set or chosen otherwise, 1 for everything else.
    pub fn exit_code(self) -> u8 {
        match self {
            Code::Unusable | Code::InvalidJson | Code::InvalidInput | Code::InvalidParameter(_) => 2,
            _ => 1,
        }
    }

    pub fn grpc_code(self) -> tonic::Code {
        match self {
            Code::InvalidJson | Code::InvalidInput | Code::InvalidParameter(_) => {
                tonic::Code::InvalidArgument
            }
            Code::Unauthorized => tonic::Code::Unauthenticated,
            Code::Forbidden | Code::RegistrationDisabled => tonic::Code::PermissionDenied,
            Code::NotFound => tonic::Code::NotFound,
            Code::Conflict => tonic::Code::AlreadyExists,
            Code::UnsupportedEncoding | Code::UnsupportedContentType => tonic::Code::Unimplemented,
            Code::RequestTooLarge
            | Code::LimitReached
            | Code::RateLimited
            | Code::TooManyQueries
            | Code::QueueFull => tonic::Code::ResourceExhausted,
            Code::Internal | Code::Unusable => tonic::Code::Internal,
            Code::Unavailable => tonic::Code::Unavailable,
            Code::QueryTimeout => tonic::Code::DeadlineExceeded,
        }
    }
}

/// A refusal or a failure, as the caller will read it.
#[derive(Clone, Debug)]
pub struct Error {
    pub code: Code,
    pub message: String,
    /// Whole seconds after which another try makes sense (`Retry-After`, `google.rpc.RetryInfo`).
    pub retry_after_seconds: Option<u64>,
    /// The field of an event that breaks a rule, such as `metadata.model`; the message names it in words.
    pub field: Option<Box<str>>,
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Error { code, message: shortened(message.into()), retry_after_seconds: None, field: None }
    }

    /// A value that breaks a rule; the detail names the field.
    pub fn invalid(detail: impl fmt::Display) -> Self {
        Error::new(Code::InvalidInput, format!("invalid input: {detail}"))
    }

    /// The same, about this field; whoever is nearer to the mistake has named it already.
    pub fn at(mut self, field: &str) -> Self {
        self.field = self.field.or_else(|| Some(field.into()));
        self
    }

    pub fn invalid_json() -> Self {
        Error::new(Code::InvalidJson, "invalid JSON body")
    }

    pub fn parameter(code: &'static str, message: impl Into<String>) -> Self {
        Error::new(Code::InvalidParameter(code), message)
    }

    pub fn unauthorized() -> Self {
        Error::new(Code::Unauthorized, "unauthorized")
    }

    pub fn forbidden(detail: impl fmt::Display) -> Self {
        Error::new(Code::Forbidden, format!("forbidden: {detail}"))
    }

    pub fn not_found(what: impl fmt::Display) -> Self {
        Error::new(Code::NotFound, format!("not found: {what}"))
    }

    pub fn conflict(detail: impl fmt::Display) -> Self {
        Error::new(Code::Conflict, format!("conflict: {detail}"))
    }

    pub fn limit_reached(detail: impl fmt::Display) -> Self {
        Error::new(Code::LimitReached, format!("limit reached: {detail}"))
    }

    pub fn rate_limited(retry_after_seconds: u64) -> Self {
        let message = format!("rate limit reached, retry after {retry_after_seconds} seconds");
        Error { retry_after_seconds: Some(retry_after_seconds), ..Error::new(Code::RateLimited, message) }
    }

    /// A share of the database's connections is in use.
    pub fn too_many_queries(of_workspace: usize, of_credential: usize) -> Self {
        let message = format!(
            "too many queries at once: a workspace may have {of_workspace} under way, a key or user {of_credential}"
        );
        Error { retry_after_seconds: Some(1), ..Error::new(Code::TooManyQueries, message) }
    }

    /// An answer, or what it is made of, that does not fit in memory.
    pub fn query_too_large() -> Self {
        Error::parameter("query_too_large", "the query meets too many different values: ask for less at once")
    }

    pub fn query_timeout() -> Self {
        let message =
            "the query takes longer than OPEN_SPANNER_DB_STATEMENT_TIMEOUT allows: ask for less at once";
        Error { retry_after_seconds: Some(1), ..Error::new(Code::QueryTimeout, message) }
    }

    pub fn unavailable(detail: impl fmt::Display) -> Self {
        Error {
            retry_after_seconds: Some(1),
            ..Error::new(Code::Unavailable, format!("temporarily unavailable: {detail}"))
        }
    }

    pub fn queue_full() -> Self {
        Error { code: Code::QueueFull, ..Error::unavailable("the write queue is full") }
    }

    /// The cause belongs in the log; the caller learns only that it was not their fault.
    pub fn internal(cause: impl fmt::Display) -> Self {
        log::error!(error:% = cause; "internal error");
        Error::new(Code::Internal, "internal server error")
    }
}

/// Messages quote what was sent, and anything may have been sent.
const MESSAGE_BYTES_MAX: usize = 1_000;

fn shortened(mut message: String) -> String {
    if message.len() > MESSAGE_BYTES_MAX {
        message.truncate(message.floor_char_boundary(MESSAGE_BYTES_MAX));
        message.push('…');
    }
    message
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code.as_str(), self.message)
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    /// Does not build when a code is added that the list lacks a place for.
    #[test]
    fn every_code_is_listed() {
        for (at, code) in Code::ALL.into_iter().enumerate() {
            let place = match code {
                Code::InvalidJson => 0,
                Code::InvalidInput => 1,
                Code::InvalidParameter(_) => 2,
                Code::RequestTooLarge => 3,
                Code::UnsupportedEncoding => 4,
                Code::UnsupportedContentType => 5,
                Code::RateLimited => 6,
                Code::TooManyQueries => 7,
                Code::RegistrationDisabled => 8,
                Code::Unauthorized => 9,
                Code::Forbidden => 10,
                Code::NotFound => 11,
                Code::Conflict => 12,
                Code::LimitReached => 13,
                Code::Unavailable => 14,
                Code::QueueFull => 15,
                Code::QueryTimeout => 16,
                Code::Internal => 17,
                Code::Unusable => 18,
            };
            assert_eq!(place, at, "{}", code.as_str());
        }
    }
}
