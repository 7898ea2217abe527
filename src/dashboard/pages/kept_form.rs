//! `/kept-form`: what somebody was sending when their sign-in had ended, to be sent again.

use actix_web::HttpResponse;
use askama::Template;

use crate::auth::Caller;
use crate::dashboard::kept::{self, Kept};
use crate::dashboard::view;
use crate::dashboard::visit::{Shell, Visit, secret};
use crate::error::Result;

#[derive(Template)]
#[template(path = "account/kept.html")]
struct KeptPage {
    shell: Shell,
    kept: Option<Kept>,
    /// The name of the workspace to which it belongs, where that is another one.
    elsewhere: String,
}

impl KeptPage {
    /// What was typed; the rest is the form's own.
    fn typed<'a>(&self, kept: &'a Kept) -> Vec<&'a (String, String)> {
        kept.fields.pairs().iter().filter(|(_, value)| !value.trim().is_empty()).take(100).collect()
    }
}

pub async fn show(caller: Caller, visit: Visit) -> Result<HttpResponse> {
    secret(&KeptPage {
        shell: visit.shell("", "What you were sending"),
        kept: kept::of(&caller),
        elsewhere: kept::elsewhere(&caller),
    })
}
