//! The W3C trace context of a call: which trace of the caller's it belongs to, so that log lines and the caller's own
//! tools can be read together.

use std::fmt::Write as _;

use crate::chance;

/// What a valid `traceparent` says: version 00, a trace, a span in it, flags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    pub trace_id: String,
    flags: String,
}

impl Trace {
    /// Anything that is not valid is as good as nothing: a caller's mistake in a header of tools breaks no call.
    pub fn parse(text: &str) -> Option<Trace> {
        let mut parts = text.trim().split('-');
        let [version, trace, span, flags] = [parts.next()?, parts.next()?, parts.next()?, parts.next()?];
        let is_hex = |text: &str, digits: usize| {
            text.len() == digits && text.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'))
        };
        let is_zero = |text: &str| text.bytes().all(|c| c == b'0');
        // later versions may say more behind these four
        let is_version = is_hex(version, 2) && version != "ff" && (version != "00" || parts.next().is_none());
        let is_valid =
            is_hex(trace, 32) && !is_zero(trace) && is_hex(span, 16) && !is_zero(span) && is_hex(flags, 2);
        (is_version && is_valid).then(|| Trace { trace_id: trace.to_owned(), flags: flags.to_owned() })
    }

    /// Of a span of ours.
    #[cfg(feature = "otlp")]
    pub(super) fn of(trace_id: String, flags: u8) -> Trace {
        Trace { trace_id, flags: format!("{flags:02x}") }
    }

    /// The header of the answer: the same trace, and a span of our own.
    pub fn answer(&self) -> String {
        let mut span = String::new();
        // zero is no span
        let _ = write!(span, "{:016x}", chance::within(1..u64::MAX));
        format!("00-{}-{span}-{}", self.trace_id, self.flags)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    #[test]
    fn valid_headers_are_taken_over_and_others_are_nothing() {
        let good = format!("00-{TRACE}-00f067aa0ba902b7-01");
        let found = Trace::parse(&good).expect("valid");
        assert_eq!(found.trace_id, TRACE);
        let answer = found.answer();
        assert!(
            answer.starts_with(&format!("00-{TRACE}-")) && answer.ends_with("-01") && answer != good,
            "{answer}"
        );
        assert_eq!(Trace::parse(&answer), Some(found));
        assert!(Trace::parse(&format!("01-{TRACE}-00f067aa0ba902b7-01-more")).is_some(), "a later version");
        for bad in [
            String::new(),
            "00".to_owned(),
            format!("00-{TRACE}-00f067aa0ba902b7"),
            format!("00-{TRACE}-00f067aa0ba902b7-01-more"),
            format!("ff-{TRACE}-00f067aa0ba902b7-01"),
            format!("00-{}-00f067aa0ba902b7-01", TRACE.to_uppercase()),
            format!("00-{TRACE}-0000000000000000-01"),
            format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32)),
            format!("00-{TRACE}\n-00f067aa0ba902b7-01"),
        ] {
            assert_eq!(Trace::parse(&bad), None, "{bad:?}");
        }
    }
}
