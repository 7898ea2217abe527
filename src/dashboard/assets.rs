//! Style, script and icon: in the binary, at addresses that change with their content, so that browsers may keep them
//! for a year.

use std::sync::LazyLock;

use actix_web::http::header;
use actix_web::{HttpResponse, web};
use ring::digest;

use crate::error::{Error, Result};

/// Name, content type, content.
const FILES: [(&str, &str, &str); 3] = [
    ("app.css", "text/css; charset=utf-8", include_str!("../../static/app.css")),
    ("app.js", "text/javascript; charset=utf-8", include_str!("../../static/app.js")),
    ("favicon.svg", "image/svg+xml", include_str!("../../static/favicon.svg")),
];

static URLS: LazyLock<[(&str, String); 3]> = LazyLock::new(|| {
    let mut all = digest::Context::new(&digest::SHA256);
    FILES.iter().for_each(|(.., text)| all.update(text.as_bytes()));
    let hash: String = all.finish().as_ref().iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    FILES.map(|(name, ..)| (name, format!("/static/{hash}/{name}")))
});

/// Where a file is found by this build.
pub fn url(name: &str) -> &'static str {
    URLS.iter().find(|(known, _)| *known == name).map_or("", |(_, url)| url.as_str())
}

fn file(name: &str) -> Result<(&'static str, &'static str)> {
    let found = FILES.iter().find(|(known, ..)| *known == name);
    found.map(|(_, kind, text)| (*kind, *text)).ok_or_else(|| Error::not_found(format!("file {name:?}")))
}

/// A file of this build or, by its name, of another one: a page that is still open shall not lose its looks.
pub async fn get(path: web::Path<(String, String)>) -> Result<HttpResponse> {
    let (hash, name) = path.into_inner();
    let (kind, text) = file(&name)?;
    let is_ours = url(&name).split('/').nth(2) == Some(hash.as_str());
    let cache = if is_ours { "public, max-age=31536000, immutable" } else { "no-cache" };
    Ok(HttpResponse::Ok().content_type(kind).insert_header((header::CACHE_CONTROL, cache)).body(text))
}

pub async fn favicon() -> Result<HttpResponse> {
    let (kind, text) = file("favicon.svg")?;
    Ok(HttpResponse::Ok()
        .content_type(kind)
        .insert_header((header::CACHE_CONTROL, "public, max-age=86400"))
        .body(text))
}

/// Nothing here is for search engines.
pub async fn robots() -> HttpResponse {
    let cache = (header::CACHE_CONTROL, "public, max-age=86400");
    HttpResponse::Ok()
        .content_type("text/plain; charset=utf-8")
        .insert_header(cache)
        .body("User-agent: *\nDisallow: /\n")
}
