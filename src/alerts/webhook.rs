//! What a receiver gets: the body, the headers that prove where it comes from, and when it is sent again (jobs.md 3.3).
//! Pure, except for `client`, which does the sending; `guard` says which addresses may be called at all.

pub mod client;
pub mod guard;

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;
use serde::Serialize;
use utoipa::ToSchema;

use crate::alerts::rule::RuleSpec;
use crate::alerts::state::{State, Transition};
use crate::entitlements::period::{Period, WindowInput};
use crate::error::{Error, Result};
use crate::metering::json::escape_html;
use crate::metering::quantity::Quantity;
use crate::metering::time::Timestamp;

pub const SECRET_PREFIX: &str = "osp_whsec_";
/// How long a replaced secret still signs beside the new one.
pub const SECRET_OVERLAP: Duration = Duration::from_secs(24 * 3_600);

pub const SIGNATURE_HEADER: &str = "X-Open-Spanner-Signature";
pub const TIMESTAMP_HEADER: &str = "X-Open-Spanner-Timestamp";

/// Pauses after each failed attempt but the last: ten attempts in a little more than three days.
const PAUSES: [Duration; 9] = [
    Duration::from_secs(5),
    Duration::from_secs(300),
    Duration::from_secs(1_800),
    Duration::from_secs(2 * 3_600),
    Duration::from_secs(5 * 3_600),
    Duration::from_secs(10 * 3_600),
    Duration::from_secs(14 * 3_600),
    Duration::from_secs(20 * 3_600),
    Duration::from_secs(24 * 3_600),
];
pub const ATTEMPTS_MAX: i32 = PAUSES.len() as i32 + 1;
/// A receiver may ask for more patience than the schedule has, up to this.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(24 * 3_600);

/// The pause after this many failed attempts, or `None` when that was the last. `jitter` is around 1.
pub fn pause_after(attempts: i32, retry_after: Option<Duration>, jitter: f64) -> Option<Duration> {
    let pause = PAUSES.get(usize::try_from(attempts - 1).ok()?)?.mul_f64(jitter);
    Some(pause.max(retry_after.unwrap_or_default().min(RETRY_AFTER_MAX)))
}

/// Seconds or an HTTP date, as the time still to wait.
pub fn parse_retry_after(text: &str, now: Timestamp) -> Option<Duration> {
    let text = text.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds.min(RETRY_AFTER_MAX.as_secs())));
    }
    let at = jiff::fmt::rfc2822::parse(text).ok()?.timestamp().as_microsecond();
    Some(Duration::from_micros(u64::try_from(at - now.0).unwrap_or(0)).min(RETRY_AFTER_MAX))
}

fn mac(secret: &str, parts: &[&str]) -> hmac::Tag {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let mut context = hmac::Context::with_key(&key);
    for part in parts {
        context.update(part.as_bytes());
    }
    context.sign()
}

/// The value of our own signature header (jobs.md 3.3): `v1=` and hex over timestamp, dot, body.
pub fn signature(secret: &str, timestamp: &str, body: &str) -> String {
    let tag = mac(secret, &[timestamp, ".", body]);
    let hex: String = tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("v1={hex}")
}

/// The value of `webhook-signature` by Standard Webhooks: one `v1,<base64>` per secret, the newest first. The key is
/// the whole text of the secret.
pub fn standard_signature<'s>(
    secrets: impl Iterator<Item = &'s str>,
    id: &str,
    timestamp: &str,
    body: &str,
) -> String {
    let one = |secret| format!("v1,{}", STANDARD.encode(mac(secret, &[id, ".", timestamp, ".", body])));
    secrets.map(one).collect::<Vec<_>>().join(" ")
}

/// The secret as the libraries of Standard Webhooks read it.
pub fn standard_secret(secret: &str) -> String {
    format!("whsec_{}", STANDARD.encode(secret))
}

/// The rule as receivers see it; fields in the order of jobs.md 3.3.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = AlertRuleTerms)]
pub struct RulePart<'a> {
    pub id: &'a str,
    pub name: &'a str,
    pub meter: &'a str,
    pub enabled: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<&'a str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    pub window_seconds: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub period: Option<&'a Period>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<WindowInput>,
    pub comparator: &'static str,
    pub threshold: Quantity,
    pub evaluation_interval_seconds: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group_by: Option<&'a str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub destination_id: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub destination_name: &'a str,
}

impl<'a> RulePart<'a> {
    pub fn new(id: &'a str, meter: &'a str, terms: &'a RuleSpec, destination: (&'a str, &'a str)) -> Self {
        RulePart {
            id,
            name: &terms.name,
            meter,
            enabled: terms.enabled,
            subject: terms.subject.as_deref(),
            metadata: terms.metadata.clone(),
            window_seconds: terms.window_seconds,
            period: terms.period.as_ref(),
            window: terms.period.as_ref().and_then(Period::described),
            comparator: terms.comparator.as_str(),
            threshold: terms.threshold.clone(),
            evaluation_interval_seconds: terms.evaluation_interval_seconds,
            group_by: terms.group_by.as_deref(),
            destination_id: destination.0,
            destination_name: destination.1,
        }
    }
}

#[derive(Serialize)]
struct EventPart<'a> {
    id: &'a str,
    rule_id: &'a str,
    #[serde(flatten)]
    group: GroupPart<'a>,
    #[serde(rename = "type")]
    kind: &'a str,
    value: &'a Quantity,
    message: &'a str,
    created_at: Timestamp,
}

#[derive(Serialize)]
struct StatePart<'a> {
    status: &'a str,
    #[serde(flatten)]
    group: GroupPart<'a>,
    value: &'a Quantity,
    message: &'a str,
    evaluated_at: Timestamp,
    updated_at: Timestamp,
}

#[derive(Serialize)]
struct GroupPart<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    group_key: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    group_value: &'a str,
}

impl<'a> GroupPart<'a> {
    fn of(state: &'a State) -> Self {
        let group = state.group.as_ref();
        GroupPart {
            group_key: group.map_or("", |group| &group.key),
            group_value: group.map_or("", |group| &group.value),
        }
    }
}

#[derive(Serialize)]
struct Payload<'a> {
    event: EventPart<'a>,
    rule: &'a RulePart<'a>,
    state: StatePart<'a>,
}

fn text(payload: &Payload) -> Result<String> {
    Ok(escape_html(&serde_json::to_string(payload).map_err(Error::internal)?).into_owned())
}

/// The body for a crossing, finished: what is sent later, and again, is this text.
pub fn payload(event_id: &str, rule: &RulePart, crossing: &Transition, now: Timestamp) -> Result<String> {
    let state = &crossing.state;
    text(&Payload {
        event: EventPart {
            id: event_id,
            rule_id: rule.id,
            group: GroupPart::of(state),
            kind: crossing.kind.as_str(),
            value: &state.value,
            message: &state.message,
            created_at: now,
        },
        rule,
        state: StatePart {
            status: state.status.as_str(),
            group: GroupPart::of(state),
            value: &state.value,
            message: &state.message,
            evaluated_at: now,
            updated_at: state.updated_at,
        },
    })
}

/// A body of the usual shape that says it is only a test.
pub fn test_payload(event_id: &str, destination: (&str, &str), now: Timestamp) -> Result<String> {
    let terms = RuleSpec::new(&crate::alerts::rule::RuleInput {
        name: Some("Test".to_owned()),
        ..Default::default()
    })?;
    let (value, message) = (Quantity::zero(), "this is a test delivery");
    let group = || GroupPart { group_key: "", group_value: "" };
    text(&Payload {
        event: EventPart {
            id: event_id,
            rule_id: "",
            group: group(),
            kind: "test",
            value: &value,
            message,
            created_at: now,
        },
        rule: &RulePart::new("", "", &terms, destination),
        state: StatePart {
            status: "ok",
            group: group(),
            value: &value,
            message,
            evaluated_at: now,
            updated_at: now,
        },
    })
}

/// An absolute http or https address with a host; kept as it was written, without surrounding blanks.
pub fn parse_url(text: &str) -> Result<String> {
    let text = text.trim();
    let refused = || Error::invalid("webhook_url must be an absolute http or https address with a host");
    // the parser forgives too much: http:///x would have the host x
    let (scheme, rest) = text.split_once("://").ok_or_else(refused)?;
    let is_http = scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https");
    let has_host = !rest.is_empty() && !rest.starts_with(['/', '\\', '?', '#', ':', '@']);
    let is_plain = !text.contains(|c: char| c.is_whitespace() || c.is_control() || c == '\\');
    let url = url::Url::parse(text).map_err(|_| refused())?;
    if !is_http || !has_host || !is_plain || url.host_str().is_none_or(str::is_empty) || text.len() > 2_048 {
        return Err(refused());
    }
    if authority(rest).contains('@') {
        return Err(Error::invalid("webhook_url must not hold a user name or a password"));
    }
    Ok(text.to_owned())
}

/// What stands between the scheme and the path.
fn authority(rest: &str) -> &str {
    rest.split(['/', '?', '#']).next().unwrap_or_default()
}

/// Scheme and host of an address, as much as those may see who only read.
pub fn origin(url: &str) -> &str {
    let Some((scheme, rest)) = url.split_once("://") else { return "" };
    // no address with a user name is taken, but one may have been stored by an earlier version
    let authority = authority(rest);
    if authority.contains('@') { "" } else { &url[..scheme.len() + 3 + authority.len()] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_attempts_in_about_three_days() {
        let pauses: Vec<Duration> = (1..=20).map_while(|attempts| pause_after(attempts, None, 1.0)).collect();
        assert_eq!(pauses.len() as i32 + 1, ATTEMPTS_MAX);
        assert_eq!(ATTEMPTS_MAX, 10);
        assert!(pauses.windows(2).all(|pair| pair[0] < pair[1]), "growing");
        let days = pauses.iter().sum::<Duration>().as_secs_f64() / 86_400.0;
        assert!((2.5..3.5).contains(&days), "{days}");
    }

    #[test]
    fn receivers_may_ask_for_patience_within_bounds() {
        let after = |seconds| pause_after(1, Some(Duration::from_secs(seconds)), 1.0).map(|d| d.as_secs());
        assert_eq!(after(1), Some(5), "never sooner than the schedule");
        assert_eq!(after(120), Some(120));
        assert_eq!(after(10_000_000), Some(86_400));
        let now = Timestamp::parse("1994-11-06T08:49:07Z").expect("a time");
        let parse = |text| parse_retry_after(text, now).map(|d| d.as_secs());
        assert_eq!(parse(" 30 "), Some(30));
        assert_eq!(parse("Sun, 06 Nov 1994 08:49:37 GMT"), Some(30));
        assert_eq!(parse("Sun, 06 Nov 1994 08:00:00 GMT"), Some(0));
        assert_eq!(parse("soon"), None);
        assert_eq!(parse("-5"), None);
    }

    #[test]
    fn addresses() {
        for good in ["https://hooks.example.com/x", " HTTP://a/ ", "http://192.0.2.1:8080/x?a=b&c=%20"] {
            assert_eq!(parse_url(good).ok().as_deref(), Some(good.trim()));
        }
        let bad = [
            "",
            " ",
            "/hook",
            "nonsense",
            "ftp://a/x",
            "http:///x",
            "https://",
            "http://:80/",
            "http://\\\\evil/x",
            "https://a/b c",
            "javascript:alert(1)",
            "file:///etc/passwd",
            "http://?x",
            "http://@/",
            "https://user:password@hooks.example.com/x",
            "https://user@hooks.example.com",
            "https://:password@hooks.example.com?x",
            "https://user%40a:b%3ac@hooks.example.com#x",
        ];
        for bad in bad {
            assert!(parse_url(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn readers_see_scheme_and_host_only() {
        for (url, want) in [
            ("https://hooks.example.com/services/T0/secret?token=x", "https://hooks.example.com"),
            ("HTTP://192.0.2.1:8080?token=x", "HTTP://192.0.2.1:8080"),
            ("https://[2001:db8::1]:8443#x", "https://[2001:db8::1]:8443"),
            ("https://a@b/c", ""),
        ] {
            assert_eq!(origin(url), want);
        }
        // an at sign after the host is no user name
        assert!(parse_url("https://hooks.example.com/@ops?to=a@b").is_ok());
    }

    #[test]
    fn signatures_are_those_of_the_contract_and_of_the_standard() {
        // computed with Python's hmac module
        assert_eq!(
            signature("osp_whsec_a", "1700000000", "{}"),
            "v1=5927d8a0515481f9b6333ab208a8b42422000a658a51c4718fc44c3c96233a85"
        );
        let both = standard_signature(["a", "b"].into_iter(), "id", "1", "{}");
        assert_eq!(both.split(' ').count(), 2);
        assert!(both.split(' ').all(|one| one.starts_with("v1,")));
    }
}
