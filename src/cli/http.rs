//! The HTTP client of commands.

use std::time::Duration;

use crate::error::{Error, Result};

/// Asks no proxy and follows no redirect: the address is the server's own, and a key goes nowhere else.
pub fn client(timeout: Duration) -> Result<reqwest::Client> {
    // an error means that there is one already
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none());
    client.timeout(timeout).build().map_err(Error::internal)
}

/// The innermost reason: the outer ones only say that there was a request.
pub fn cause(error: &reqwest::Error) -> String {
    let mut found: &dyn std::error::Error = error;
    while let Some(inner) = found.source() {
        found = inner;
    }
    found.to_string()
}
