//! A secret that a form made, on its way to the page that shows it: the form's answer sends the browser on, so that
//! loading the page again makes nothing again. It travels for a minute in a cookie, sealed under the sign-in that made
//! it, so that it works with any number of servers, and for nobody else; the page that shows it takes it back.

use actix_web::HttpResponse;
use actix_web::http::header;
use askama::Template;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hmac;
use serde::{Deserialize, Serialize};

use crate::auth::{Caller, Credential};
use crate::chance;
use crate::dashboard::visit::{Visit, secret};
use crate::error::{Error, Result};
use crate::metering::time::{SECOND, Timestamp};

pub const SHOWN_COOKIE: &str = "open_spanner_shown";
const LIFETIME_SECONDS: u32 = 60;

/// What a page shows once.
#[derive(Deserialize, Serialize)]
pub struct Once {
    pub secret: String,
    /// What the page says beside it.
    pub words: String,
    /// Microseconds.
    until: i64,
}

/// Of the sign-in; `None` for callers without one.
fn key_of(caller: &Caller) -> Option<LessSafeKey> {
    let Credential::Session { form_key, .. } = &caller.credential else { return None };
    let key = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, form_key), b"shown once");
    UnboundKey::new(&AES_256_GCM, key.as_ref()).ok().map(LessSafeKey::new)
}

/// Sends the browser on to the page that shows a secret.
pub fn show_at(
    visit: &Visit,
    caller: &Caller,
    path: &str,
    secret: &str,
    words: &str,
) -> Result<HttpResponse> {
    let until = Timestamp::now().plus(i64::from(LIFETIME_SECONDS) * SECOND);
    let once = Once { secret: secret.to_owned(), words: words.to_owned(), until: until.0 };
    let key = key_of(caller).ok_or_else(Error::unauthorized)?;
    let nonce = chance::secret::<NONCE_LEN>()?;
    let mut bytes = serde_json::to_vec(&once).map_err(Error::internal)?;
    key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(path.as_bytes()), &mut bytes)
        .map_err(|_| Error::internal("a secret was not sealed"))?;
    let sealed = URL_SAFE_NO_PAD.encode([nonce.as_slice(), &bytes].concat());
    let mut cookie =
        header::HeaderValue::from_str(&visit.small_cookie(SHOWN_COOKIE, &sealed, LIFETIME_SECONDS))
            .map_err(Error::internal)?;
    cookie.set_sensitive(true);
    Ok(HttpResponse::SeeOther()
        .insert_header((header::LOCATION, path))
        .insert_header((header::SET_COOKIE, cookie))
        .finish())
}

/// What this page was sent to show: nothing at its second look, and nothing to anybody else.
pub fn take(visit: &Visit, caller: &Caller) -> Option<Once> {
    let bytes = URL_SAFE_NO_PAD.decode(&visit.shown).ok()?;
    let (nonce, sealed) = bytes.split_at_checked(NONCE_LEN)?;
    let (key, mut sealed) = (key_of(caller)?, sealed.to_vec());
    let path = visit.here.split('?').next().unwrap_or_default();
    let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
    let opened = key.open_in_place(nonce, Aad::from(path.as_bytes()), &mut sealed).ok()?;
    let once: Once = serde_json::from_slice(opened).ok()?;
    (once.until > Timestamp::now().0).then_some(once)
}

/// The page that shows it. Nobody may keep it, and the browser forgets what it was made of.
pub fn page(visit: &Visit, page: &impl Template) -> Result<HttpResponse> {
    let mut response = secret(page)?;
    let gone =
        header::HeaderValue::from_str(&visit.small_cookie(SHOWN_COOKIE, "", 0)).map_err(Error::internal)?;
    response.headers_mut().append(header::SET_COOKIE, gone);
    Ok(response)
}
