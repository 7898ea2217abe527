//! A form that was being sent when its sign-in had ended: kept for ten minutes, and offered again to the same person
//! after the next sign-in. In memory of one server only, bounded in number and length; never one with a password.

use std::sync::LazyLock;
use std::time::Duration;

use moka::sync::Cache;

use crate::auth::token::{self, TokenHash};
use crate::auth::{Caller, Credential};
use crate::dashboard::csrf;
use crate::dashboard::form::Fields;

/// The page that offers it.
pub const PAGE: &str = "/kept-form";
/// The longest form that is kept.
pub const BYTES_MAX: usize = 64 * 1024;
const LIFETIME: Duration = Duration::from_secs(600);
/// People who have one; each has the last of theirs.
const FORMS_MAX: u64 = 200;
/// Sign-ins whose forms are known when they have ended: those that were seen last.
const SIGN_INS_MAX: u64 = 10_000;
const SIGN_IN_LIFETIME: Duration = Duration::from_secs(24 * 3_600);

/// What was typed, and where it was being sent.
#[derive(Clone)]
pub struct Kept {
    pub path: String,
    pub fields: Fields,
}

#[derive(Clone)]
struct SignIn {
    user: String,
    form_key: Vec<u8>,
}

static SIGN_INS: LazyLock<Cache<TokenHash, SignIn>> =
    LazyLock::new(|| Cache::builder().max_capacity(SIGN_INS_MAX).time_to_idle(SIGN_IN_LIFETIME).build());
static FORMS: LazyLock<Cache<String, Kept>> =
    LazyLock::new(|| Cache::builder().max_capacity(FORMS_MAX).time_to_live(LIFETIME).build());

/// Remembers whose the tokens of a request are, for when they have ended.
pub fn remember(caller: &Caller, tokens: &[String]) {
    let Credential::Session { form_key, .. } = &caller.credential else { return };
    for token in tokens {
        let hash = token::hash(token);
        if !SIGN_INS.contains_key(&hash) {
            SIGN_INS.insert(hash, SignIn { user: caller.user.id.clone(), form_key: form_key.clone() });
        }
    }
}

/// Whether a form of somebody with these tokens may be read at all.
pub fn knows(tokens: &[String]) -> bool {
    tokens.iter().any(|token| SIGN_INS.contains_key(&token::hash(token)))
}

/// Whether this is a form of the sign-in that the tokens belonged to, and whose that was.
pub fn sender(tokens: &[String], form_token: &str) -> Option<String> {
    let mut known = tokens.iter().filter_map(|token| SIGN_INS.get(&token::hash(token)));
    known.find(|known| csrf::is_token_of(&known.form_key, form_token)).map(|known| known.user)
}

/// Keeps it for its sender, instead of what was kept before.
pub fn keep(user: String, path: &str, fields: Fields) {
    FORMS.insert(user, Kept { path: path.to_owned(), fields });
}

/// What is kept for somebody.
pub fn of(caller: &Caller) -> Option<Kept> {
    FORMS.get(&caller.user.id)
}

/// It has been sent.
pub fn forget(caller: &Caller, path: &str) {
    if FORMS.get(&caller.user.id).is_some_and(|kept| kept.path == path) {
        FORMS.invalidate(&caller.user.id);
    }
}
