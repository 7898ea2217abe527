//! Spans: how long a call took and what it waited for, as OpenTelemetry has it. With the feature `otlp` they are sent by
//! OTLP when an endpoint is set; without it every name here stands for nothing, and nothing of it is in the program.
//!
//! A span never holds SQL, a body, a query string, a subject, a key or a secret: names are those of the program, and values
//! are what a log line about the same call says.

#[cfg(not(feature = "otlp"))]
mod none;
#[cfg(feature = "otlp")]
mod otlp;

#[cfg(not(feature = "otlp"))]
pub use none::{Notes, Span, called_by, carried, flush, start, within};
#[cfg(feature = "otlp")]
pub use otlp::{Notes, Span, called_by, carried, flush, start, within};

/// Host and port of an authority, if it has the form of one.
#[cfg(any(feature = "otlp", test))]
fn split(authority: &str) -> Option<(&str, Option<u16>)> {
    let is_of_host = |c: u8| c.is_ascii_alphanumeric() || b".-_:[]".contains(&c);
    if authority.is_empty() || authority.len() > 255 || !authority.bytes().all(is_of_host) {
        return None;
    }
    match authority.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && !port.ends_with(']') => {
            Some((host, Some(port.parse().ok()?)))
        }
        _ => Some((authority, None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_servers_are_hosts() {
        assert_eq!(split("a.example"), Some(("a.example", None)));
        assert_eq!(split("a.example:443"), Some(("a.example", Some(443))));
        assert_eq!(split("[::1]:80"), Some(("[::1]", Some(80))));
        assert_eq!(split("[::1]"), Some(("[::1]", None)));
        for bad in ["", "user:secret@a.example", "a b", "a/b", "a.example:99999", &"a".repeat(300)] {
            assert_eq!(split(bad), None, "{bad}");
        }
    }
}
