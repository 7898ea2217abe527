//! The walls against forms of other sites, beside `SameSite=Lax`: where a request says it comes from, and a token in
//! each form that only our own pages can know. Pure but for the headers it reads.

use actix_web::{HttpMessage, HttpRequest};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;

use crate::auth::{Caller, Credential};
use crate::error::{Error, Result};
use crate::http::origin::is_foreign;
use crate::http::session::sent_header;

/// A form was refused for where it came from, whoever sent it.
pub struct Refused;

/// 403 unless the browser says that the request comes from our own pages. One that says nothing is refused.
pub fn check_origin(request: &HttpRequest) -> Result<()> {
    let is_told = ["sec-fetch-site", "origin"].iter().any(|name| sent_header(request, name).is_some());
    if is_told && !is_foreign(request) {
        Ok(())
    } else {
        request.extensions_mut().insert(Refused);
        Err(Error::forbidden("the form was sent from another site"))
    }
}

/// The token of the forms of a sign-in; empty for callers without one.
pub fn token(caller: &Caller) -> String {
    let Credential::Session { form_key, .. } = &caller.credential else { return String::new() };
    let key = hmac::Key::new(hmac::HMAC_SHA256, form_key);
    URL_SAFE_NO_PAD.encode(hmac::sign(&key, b"form"))
}

/// 403 unless this is the token of the caller's forms.
pub fn check_token(caller: &Caller, sent: &str) -> Result<()> {
    let Credential::Session { form_key, .. } = &caller.credential else { return Err(Error::unauthorized()) };
    match is_token_of(form_key, sent) {
        true => Ok(()),
        false => Err(Error::forbidden("the form is too old: load its page again and send it once more")),
    }
}

/// Whether this is the token of the forms of the sign-in with this key.
pub fn is_token_of(form_key: &[u8], sent: &str) -> bool {
    let key = hmac::Key::new(hmac::HMAC_SHA256, form_key);
    let sent = URL_SAFE_NO_PAD.decode(sent).unwrap_or_default();
    hmac::verify(&key, b"form", &sent).is_ok()
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;

    fn judge(headers: &[(&'static str, &str)]) -> bool {
        let mut request = TestRequest::post().uri("/meters/new");
        for (name, value) in headers {
            request = request.insert_header((*name, *value));
        }
        check_origin(&request.to_http_request()).is_ok()
    }

    #[test]
    fn forms_of_other_sites_are_refused() {
        let host = ("host", "meter.example.com");
        assert!(judge(&[host, ("sec-fetch-site", "same-origin")]));
        assert!(judge(&[host, ("sec-fetch-site", "none")]));
        assert!(judge(&[host, ("origin", "https://meter.example.com")]));
        assert!(!judge(&[host, ("sec-fetch-site", "same-site")]));
        assert!(!judge(&[host, ("sec-fetch-site", "cross-site"), ("origin", "https://meter.example.com")]));
        assert!(!judge(&[host, ("origin", "https://evil.example.com")]));
        assert!(!judge(&[host, ("origin", "null")]));
        assert!(!judge(&[host]));
    }
}
