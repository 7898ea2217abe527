//! What each code of the API means and what to do about it, in the words of docs/errors.md; and of an event that was
//! refused, what to do about that one. Pure.

use crate::error::Code;
use crate::usage::refused::RefusedEvent;

/// A code in words.
pub struct Advice {
    pub meaning: &'static str,
    pub remedy: &'static str,
}

const fn advice(meaning: &'static str, remedy: &'static str) -> Advice {
    Advice { meaning, remedy }
}

/// No code is left without words.
pub fn of(code: Code) -> Advice {
    match code {
        Code::InvalidJson => advice(
            "the body was no JSON, or a value had the wrong type",
            "Send JSON with the names and types that the interface describes; numbers are not strings.",
        ),
        Code::InvalidInput => {
            advice("a value breaks a rule, and the message names it", "Change the value and send it again.")
        }
        Code::InvalidParameter("invalid_timestamp") => advice(
            "the time of an event is not RFC 3339",
            "Write times as 2026-06-01T10:00:00Z, or with an offset; leave the time out to mean now.",
        ),
        Code::InvalidParameter(_) => {
            advice("a parameter has a value that it cannot have", "The message says which values it takes.")
        }
        Code::RequestTooLarge => advice(
            "the body is longer than this route takes, unpacked",
            "Send fewer events at once, or send them as lines (application/x-ndjson).",
        ),
        Code::UnsupportedEncoding => advice(
            "the body is packed in a way that is not read",
            "Pack with gzip, deflate or zstd, or not at all.",
        ),
        Code::UnsupportedContentType => advice(
            "a browser sent something other than JSON with the cookie of a session",
            "Say Content-Type: application/json, or use an API key.",
        ),
        Code::RateLimited => advice(
            "more was sent than the workspace may send in a minute, and what is named here stands for all of it",
            "Wait as long as Retry-After says and send the same again, with the same keys; or ask the operator for more.",
        ),
        Code::TooManyQueries => advice(
            "as many queries were under way as the workspace may have",
            "Ask for less at once, and again after Retry-After.",
        ),
        Code::RegistrationDisabled => advice("nobody may register here", "Ask the operator."),
        Code::Unauthorized => advice(
            "no key, or one that is unknown, expired or revoked; or a sign-in that has ended",
            "Look at the header Authorization: Bearer osp_sk_…, and at the key's page; make a new key.",
        ),
        Code::Forbidden => advice(
            "the key or the role may not do this, or not with this meter",
            "Use a key whose scopes and meters cover it: a key's page lists them.",
        ),
        Code::NotFound => advice(
            "what was named does not exist in this workspace",
            "Make a meter of that name, or correct the name that the service sends. Then send the event again.",
        ),
        Code::Conflict => advice(
            "a name is taken, something still refers to it, or an idempotency key stands for another event",
            "If both events are real, send the second under a key of its own.",
        ),
        Code::LimitReached => advice("as many of a kind exist as may exist", "Delete what is not needed."),
        Code::Unavailable | Code::QueueFull => advice(
            "the database was away or busy, or too much waited to be written; what is named here stands for all of it",
            "Send the same again after Retry-After. With an idempotency key that is harmless whatever became of the first.",
        ),
        Code::QueryTimeout => {
            advice("a read took longer than reads may", "Ask for a shorter time or fewer groups.")
        }
        Code::Internal | Code::Unusable => advice(
            "a fault of the server",
            "Give the id of the request to the operator. An event with a key can be sent again.",
        ),
    }
}

/// The code that a word stands for.
pub fn code_of(word: &str) -> Option<Code> {
    let is_plain = !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    let parameter = || match word {
        "invalid_timestamp" => Some(Code::InvalidParameter("invalid_timestamp")),
        "query_too_large" => Some(Code::InvalidParameter("query_too_large")),
        word if is_plain && word.starts_with("invalid_") => Some(Code::InvalidParameter("invalid_limit")),
        _ => None,
    };
    Code::ALL.into_iter().find(|code| code.as_str() == word).or_else(parameter)
}

/// What to do about an event that was refused.
pub fn of_refused(event: &RefusedEvent) -> String {
    if event.outcome == "conflict" {
        return "The first event stands, and the sender was answered with it. If both are real, send the second under a \
                key of its own."
            .to_owned();
    }
    let field = event.field.as_deref().unwrap_or_default();
    let dimension = field.strip_prefix("metadata.");
    match (event.code.as_str(), dimension) {
        ("invalid_input", Some(name)) if event.message.ends_with("is required") => format!(
            "Send the dimension {name}, or make it optional at the meter. Then send the event again with the same key."
        ),
        ("invalid_input", _) => {
            "Correct the event and send it again; the same idempotency key is still free.".to_owned()
        }
        (code, _) => code_of(code).map_or_else(
            || "Correct the event and send it again; the same idempotency key is still free.".to_owned(),
            |code| of(code).remedy.to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_words() {
        for code in Code::ALL {
            let advice = of(code);
            assert!(advice.meaning.len() > 15 && advice.remedy.ends_with('.'), "{}", code.as_str());
            assert_eq!(code_of(code.as_str()).map(Code::as_str), Some(code.as_str()));
        }
        assert!(code_of("invalid_limit").is_some());
        assert!(code_of("tokens").is_none() && code_of("invalid_<x>").is_none() && code_of("").is_none());
    }
}
