//! Where people find this server, for the addresses that it hands out: every absolute address begins with what
//! [`own_origin`] says. The settings decide. Without them it is what the request says of itself, which a caller can say as
//! they like: so no mail is ever built of it, only answers to whoever said it, and only the word of a trusted proxy counts
//! for where a browser came to.

use actix_web::HttpRequest;

use crate::app::App;
use crate::auth::throttle::is_trusted;
use crate::http::peer;
use crate::http::session::{secure, sent_header};

/// `https://usage.example.com`: of `OPEN_SPANNER_PUBLIC_URL`; else what a trusted proxy says the browser asked for; else
/// the `Host` of the request, where that is a name or an address and nothing more.
pub fn own_origin(app: &App, request: &HttpRequest) -> String {
    if let Some(url) = &app.config.http.public_url {
        return url.clone();
    }
    let is_proxy = is_trusted(peer(request), &app.config.http.trusted_proxies);
    // proxies that add to a list write behind what the client sent: the last one is the proxy's own
    let forwarded = sent_header(request, "x-forwarded-host").filter(|_| is_proxy);
    let forwarded = forwarded.and_then(|list| authority(list.rsplit(',').next()?));
    let host = forwarded.or_else(|| authority(sent_header(request, "host")?));
    let host = host.unwrap_or_else(|| "localhost".to_owned());
    format!("{}://{host}", if secure(app, request) { "https" } else { "http" })
}

/// A name or address and perhaps a port; nothing with which the rest of an address could become something else.
fn authority(text: &str) -> Option<String> {
    let text = text.trim();
    let is_plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte));
    let url = url::Url::parse(&format!("http://{text}")).ok().filter(|_| is_plain)?;
    (url.has_host() && url.path() == "/").then(|| text.to_ascii_lowercase())
}

/// Whether a browser says that another site sent this. Programs say nothing, and are believed.
pub fn is_foreign(request: &HttpRequest) -> bool {
    let host = sent_header(request, "host").unwrap_or_default();
    // what cannot be read is none of ours
    let said = |name: &str| request.headers().get(name).map(|value| value.to_str().unwrap_or("?"));
    match (said("sec-fetch-site"), said("origin")) {
        (Some(site), _) => !matches!(site, "same-origin" | "none"),
        (None, Some(origin)) => {
            // a proxy may have put another host in the place of what the browser asked for
            let is_ours = |app: &actix_web::web::Data<App>| own_origin(app, request) == origin;
            origin.split_once("://").is_none_or(|(_, named)| named != host)
                && !request.app_data().is_some_and(is_ours)
        }
        (None, None) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_a_name_and_a_port_and_nothing_else() {
        for good in
            ["usage.example.com", "usage.example.com:8443", "127.0.0.1:18081", "[::1]:80", "localhost"]
        {
            assert_eq!(authority(good).as_deref(), Some(good));
        }
        assert_eq!(authority(" Usage.Example.COM ").as_deref(), Some("usage.example.com"));
        for bad in [
            "",
            "a b",
            "evil.example/x",
            "evil.example?x",
            "evil.example#",
            "ann@evil.example",
            "a:b@evil.example",
            "evil.example:99999",
            "evil.example:x",
            "evil.example\\x",
            "evil.example\"onload=",
            "evil.example<",
            "[::1",
            "a%2f",
            "a,b",
            "a;b",
        ] {
            assert_eq!(authority(bad), None, "{bad}");
        }
    }
}
