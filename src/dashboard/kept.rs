//! A form that was being sent when its sign-in had ended: kept for ten minutes, and offered again to the same person
//! after the next sign-in, in the workspace in which it was being sent and in no other. In memory of one server only,
//! bounded in number and length; never one with a password.

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
    sender: Sender,
}

/// Who was sending it, and in which workspace.
#[derive(Clone)]
pub struct Sender {
    user: String,
    workspace: String,
    workspace_name: String,
}

#[derive(Clone)]
struct SignIn {
    sender: Sender,
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
            let sender = Sender {
                user: caller.user.id.clone(),
                workspace: caller.user.workspace_id.clone(),
                workspace_name: caller.user.workspace_name.clone(),
            };
            SIGN_INS.insert(hash, SignIn { sender, form_key: form_key.clone() });
        }
    }
}

/// Whether a form of somebody with these tokens may be read at all.
pub fn knows(tokens: &[String]) -> bool {
    tokens.iter().any(|token| SIGN_INS.contains_key(&token::hash(token)))
}

/// Whether this is a form of the sign-in that the tokens belonged to, and whose that was.
pub fn sender(tokens: &[String], form_token: &str) -> Option<Sender> {
    let mut known = tokens.iter().filter_map(|token| SIGN_INS.get(&token::hash(token)));
    known.find(|known| csrf::is_token_of(&known.form_key, form_token)).map(|known| known.sender)
}

/// Keeps it for its sender, instead of what was kept before.
pub fn keep(sender: Sender, path: &str, fields: Fields) {
    FORMS.insert(sender.user.clone(), Kept { path: path.to_owned(), fields, sender });
}

/// What is kept for somebody, in the workspace in which they are: a form that was filled in for one is not sent to another.
pub fn of(caller: &Caller) -> Option<Kept> {
    FORMS.get(&caller.user.id).filter(|kept| kept.sender.workspace == caller.user.workspace_id)
}

/// The name of the other workspace in which what is kept for somebody was being sent; empty when there is none.
pub fn elsewhere(caller: &Caller) -> String {
    let other = FORMS.get(&caller.user.id).filter(|kept| kept.sender.workspace != caller.user.workspace_id);
    other.map(|kept| kept.sender.workspace_name).unwrap_or_default()
}

/// It has been sent.
pub fn forget(caller: &Caller, path: &str) {
    if of(caller).is_some_and(|kept| kept.path == path) {
        FORMS.invalidate(&caller.user.id);
    }
}
