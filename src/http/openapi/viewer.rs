//! The OpenAPI document and Swagger UI, which shows it without anything from elsewhere. Both are packed when the program is
//! built and sent as they are to whoever takes that.

use std::io::Read;

use actix_web::dev::{HttpServiceFactory, Service};
use actix_web::http::Method;
use actix_web::http::header::{self, AcceptEncoding, ContentEncoding, Encoding};
use actix_web::middleware::DefaultHeaders;
use actix_web::{HttpMessage, HttpRequest, HttpResponse, guard, web};
use flate2::read::GzDecoder;

use super::JSON;
use crate::error::{Error, Result};

/// What [`viewer`] answers on.
pub const PATTERNS: [&str; 2] = ["/openapi.json", SWAGGER];
const SWAGGER: &str = "/swagger/{file:.*}";

/// Made by build.rs.
macro_rules! packed {
    ($name:literal) => {
        include_bytes!(concat!(env!("OUT_DIR"), "/", $name, ".gz"))
    };
}

/// The one in docs/, which a test compares with [`super::document`]: a server that made it would carry and touch all that it
/// is made from.
const DOCUMENT: &[u8] = packed!("openapi.json");

const HTML: &str = "text/html; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// Of Swagger UI what its page loads.
static FILES: [(&str, &str, &[u8]); 8] = [
    ("", HTML, packed!("index.html")),
    ("index.html", HTML, packed!("index.html")),
    ("index.css", STYLE, packed!("index.css")),
    ("swagger-ui.css", STYLE, packed!("swagger-ui.css")),
    ("swagger-ui-bundle.js", SCRIPT, packed!("swagger-ui-bundle.js")),
    ("swagger-ui-standalone-preset.js", SCRIPT, packed!("swagger-ui-standalone-preset.js")),
    ("favicon-16x16.png", "image/png", packed!("favicon-16x16.png")),
    ("favicon-32x32.png", "image/png", packed!("favicon-32x32.png")),
];

/// What its page shows, in the place of its own that shows a pet store.
const INITIALIZER: &str = r##"window.onload = function () {
  window.ui = SwaggerUIBundle({
    url: "/openapi.json",
    dom_id: "#swagger-ui",
    deepLinking: true,
    presets: [SwaggerUIBundle.presets.apis, SwaggerUIStandalonePreset],
    plugins: [SwaggerUIBundle.plugins.DownloadUrl],
    layout: "StandaloneLayout",
  });
};
"##;

/// `GET /openapi.json`, and Swagger UI at `/swagger/`; the page may load nothing else.
pub fn viewer() -> impl HttpServiceFactory {
    let policy = (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
         connect-src 'self'; font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    );
    let scope = web::scope("").guard(guard::fn_guard(is_viewed)).wrap(DefaultHeaders::new().add(policy));
    // the files answer GET only; the body of an answer to HEAD is left out further out
    let as_get = scope.wrap_fn(|mut request, service| {
        if request.method() == Method::HEAD {
            request.head_mut().method = Method::GET;
        }
        service.call(request)
    });
    let document = |request: HttpRequest| async move { unpacked(&request, JSON, DOCUMENT) };
    as_get
        .route("/openapi.json", web::get().to(document))
        .service(web::resource(SWAGGER).guard(guard::Get()).to(file))
}

fn is_viewed(context: &guard::GuardContext<'_>) -> bool {
    let path = context.head().uri.path();
    path == "/openapi.json" || path.starts_with("/swagger/")
}

async fn file(request: HttpRequest) -> Result<HttpResponse> {
    let name = request.match_info().query("file");
    if name == "swagger-initializer.js" {
        return Ok(HttpResponse::Ok().content_type(SCRIPT).body(INITIALIZER));
    }
    match FILES.iter().find(|(known, ..)| *known == name) {
        Some(&(_, kind, packed)) => unpacked(&request, kind, packed),
        None => Ok(HttpResponse::NotFound().finish()),
    }
}

/// As it is to whoever takes gzip.
fn unpacked(request: &HttpRequest, kind: &str, packed: &'static [u8]) -> Result<HttpResponse> {
    let mut answer = HttpResponse::Ok();
    answer.content_type(kind).insert_header((header::VARY, "accept-encoding"));
    if takes_gzip(request) {
        return Ok(answer.insert_header(ContentEncoding::Gzip).body(packed));
    }
    let mut plain = Vec::new();
    GzDecoder::new(packed).read_to_end(&mut plain).map_err(Error::internal)?;
    Ok(answer.body(plain))
}

fn takes_gzip(request: &HttpRequest) -> bool {
    let gzip = Encoding::gzip();
    let accepted = request.get_header::<AcceptEncoding>();
    accepted.and_then(|accepted| accepted.negotiate([gzip.clone(), Encoding::identity()].iter()))
        == Some(gzip)
}
