//! What handlers take out of a request beside its body: the caller, query parameters, path parameters, cursors
//! (rest.md 6 and 7).

use std::future::{Ready, ready};

use actix_web::dev::Payload;
use actix_web::{FromRequest, HttpMessage, HttpRequest};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::app::App;
use crate::auth::permission::Access;
use crate::auth::{self, Caller};
use crate::error::{Error, Result};
use crate::http::session;
use crate::metering::time::{Timestamp, Window};

/// Finds out who calls, by the credentials the route accepts; nobody on public routes.
pub async fn authenticate(app: &App, request: &HttpRequest, access: &Access) -> Result<Option<Caller>> {
    let header = |name: &'static str| request.headers().get(name).map(|value| value.as_bytes());
    let caller = app.auth.authenticate(&auth::credentials_of(header), access).await?;
    if let Some(caller) = &caller {
        caller.ensure_network_allowed(session::address(app, request))?;
    }
    Ok(caller)
}

impl FromRequest for Caller {
    type Error = Error;
    type Future = Ready<Result<Self>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(request.extensions().get::<Caller>().cloned().ok_or_else(Error::unauthorized))
    }
}

/// The last parameter of the path, unless it is a secret that opens something.
pub(crate) fn last_segment(request: &HttpRequest) -> String {
    let last = request.match_info().iter().filter(|(name, _)| *name != "token").last();
    let raw = last.map_or("", |(_, value)| value);
    percent_encoding::percent_decode_str(raw).decode_utf8_lossy().into_owned()
}

/// The one path parameter of a route, percent-decoded.
pub struct Id(pub String);

impl FromRequest for Id {
    type Error = Error;
    type Future = Ready<Result<Self>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let raw = request.match_info().iter().next().map_or("", |(_, value)| value);
        let decoded = percent_encoding::percent_decode_str(raw).decode_utf8();
        ready(match decoded {
            Ok(text) => Ok(Id(text.into_owned())),
            Err(_) => Err(Error::not_found("no such resource")),
        })
    }
}

/// The two path parameters of a route, percent-decoded.
pub struct Ids(pub String, pub String);

impl FromRequest for Ids {
    type Error = Error;
    type Future = Ready<Result<Self>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let decode = |raw: &str| {
            let decoded = percent_encoding::percent_decode_str(raw).decode_utf8();
            decoded.map(|text| text.into_owned()).map_err(|_| Error::not_found("no such resource"))
        };
        let raw: Vec<&str> = request.match_info().iter().map(|(_, value)| value).collect();
        ready(match raw[..] {
            [first, second] => decode(first).and_then(|first| Ok(Ids(first, decode(second)?))),
            _ => Err(Error::not_found("no such resource")),
        })
    }
}

/// Query parameters, in order; pairs with a broken escape or a `;` are dropped (rest.md 6).
#[derive(Clone, Debug, Default)]
pub struct Params(Vec<(String, String)>);

impl FromRequest for Params {
    type Error = Error;
    type Future = Ready<Result<Self>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let query = request.query_string();
        let is_text =
            query.split('&').all(|pair| percent_encoding::percent_decode_str(pair).decode_utf8().is_ok());
        ready(match is_text {
            true => Ok(Params::parse(query)),
            false => Err(Error::invalid("query parameters must be UTF-8")),
        })
    }
}

impl Params {
    pub fn parse(query: &str) -> Self {
        let pairs = query
            .split('&')
            .filter(|pair| !pair.is_empty() && !pair.contains(';') && has_whole_escapes(pair));
        Params(pairs.flat_map(|pair| url::form_urlencoded::parse(pair.as_bytes()).into_owned()).collect())
    }

    /// The first value, or the empty text.
    pub fn get(&self, name: &str) -> &str {
        self.0.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value)
    }

    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// All but these.
    pub fn without(&self, names: &[&str]) -> Params {
        Params(self.0.iter().filter(|(key, _)| !names.contains(&key.as_str())).cloned().collect())
    }

    /// With another value of a parameter in the place of those it has.
    pub fn with(&self, name: &str, value: &str) -> Params {
        let mut changed = self.without(&[name]);
        changed.0.push((name.to_owned(), value.to_owned()));
        changed
    }

    pub fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// `limit`, lowered to the maximum.
    pub fn limit(&self, default: i64, max: i64) -> Result<i64> {
        let text = self.get("limit");
        if text.is_empty() {
            return Ok(default);
        }
        match text.parse::<i64>() {
            Ok(limit) if limit >= 1 => Ok(limit.min(max)),
            _ => Err(Error::parameter("invalid_limit", "limit must be a positive integer")),
        }
    }

    /// A time that must be there; `code` is `invalid_<name>`.
    pub fn time(&self, name: &str, code: &'static str) -> Result<Timestamp> {
        parse_time(self.get(name), name, code)?.ok_or_else(|| bad_time(name, code))
    }

    pub fn optional_time(&self, name: &str, code: &'static str) -> Result<Option<Timestamp>> {
        parse_time(self.get(name), name, code)
    }

    /// A boolean word; `None` when empty.
    pub fn boolean(&self, name: &str, code: &'static str) -> Result<Option<bool>> {
        match self.get(name) {
            "" => Ok(None),
            "1" | "t" | "T" | "true" | "True" | "TRUE" => Ok(Some(true)),
            "0" | "f" | "F" | "false" | "False" | "FALSE" => Ok(Some(false)),
            _ => Err(Error::parameter(code, format!("{name} must be true or false"))),
        }
    }

    /// The position after which a page starts.
    pub fn cursor<T: DeserializeOwned>(&self) -> Result<Option<T>> {
        decode_cursor(self.get("cursor"))
    }
}

fn has_whole_escapes(pair: &str) -> bool {
    let bytes = pair.as_bytes();
    bytes.iter().enumerate().filter(|(_, byte)| **byte == b'%').all(|(at, _)| {
        bytes.get(at + 1..at + 3).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    })
}

fn bad_time(name: &str, code: &'static str) -> Error {
    Error::parameter(code, format!("{name} must be RFC3339"))
}

/// RFC 3339; empty and the year-1 instant are absent.
pub fn parse_time(text: &str, name: &str, code: &'static str) -> Result<Option<Timestamp>> {
    if text.is_empty() {
        return Ok(None);
    }
    let time = Timestamp::parse(text).ok_or_else(|| bad_time(name, code))?;
    Ok((time != Timestamp::ABSENT).then_some(time))
}

/// A time of a JSON body that must be there.
pub fn required_time(text: Option<&str>, name: &str, code: &'static str) -> Result<Timestamp> {
    parse_time(text.unwrap_or_default(), name, code)?.ok_or_else(|| bad_time(name, code))
}

pub fn encode_cursor<T: Serialize>(position: &T) -> Result<String> {
    Ok(URL_SAFE_NO_PAD.encode(serde_json::to_vec(position).map_err(Error::internal)?))
}

pub fn decode_cursor<T: DeserializeOwned>(text: &str) -> Result<Option<T>> {
    if text.is_empty() {
        return Ok(None);
    }
    let bytes = URL_SAFE_NO_PAD.decode(text).ok();
    // PostgreSQL cannot be asked for a text with a NUL
    let bytes = bytes.filter(|bytes| !std::str::from_utf8(bytes).is_ok_and(super::body::has_nul));
    let decoded = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    decoded.map(Some).ok_or_else(|| Error::invalid("cursor is not one of ours"))
}

/// An instant in a cursor: a text of microseconds, so that whatever is stored is found again; or RFC 3339.
#[derive(Clone, Copy, Debug)]
pub struct CursorTime(pub Timestamp);

impl Serialize for CursorTime {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0.0)
    }
}

impl<'de> Deserialize<'de> for CursorTime {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let micros = text.parse().ok().map(Timestamp).filter(|at| Window::ALWAYS.contains(*at));
        let time = micros.or_else(|| Timestamp::parse(&text));
        time.map(CursorTime).ok_or_else(|| de::Error::custom("not an instant"))
    }
}

/// Cuts the row that was fetched beyond the page and makes the cursor from the last one that stays.
pub fn paginate<T, C: Serialize>(
    mut rows: Vec<T>,
    limit: i64,
    position: impl Fn(&T) -> C,
) -> Result<(Vec<T>, Option<String>)> {
    let limit = limit as usize;
    if rows.len() <= limit {
        return Ok((rows, None));
    }
    rows.truncate(limit);
    let cursor = rows.last().map(|row| encode_cursor(&position(row))).transpose()?;
    Ok((rows, cursor))
}

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn broken_pairs_are_dropped() {
        let params = Params::parse("a=1%2B2&b=%zz&c=x;y&d=1+2&a=second");
        assert_eq!(params.get("a"), "1+2");
        assert_eq!(params.get("b"), "");
        assert_eq!(params.get("c"), "");
        assert_eq!(params.get("d"), "1 2");
        assert_eq!(params.all("a").count(), 2);
    }

    #[test]
    fn limits() {
        let limit = |query: &str| Params::parse(query).limit(100, 1000);
        assert_eq!(limit("").ok(), Some(100));
        assert_eq!(limit("limit=%2B5").ok(), Some(5));
        assert_eq!(limit("limit=100000").ok(), Some(1000));
        for bad in [
            "limit=0",
            "limit=-1",
            "limit=x",
            "limit=1.5",
            "limit=1e2",
            "limit=+5",
            "limit=99999999999999999999",
        ] {
            assert!(limit(bad).is_err(), "{bad}");
        }
    }
}
