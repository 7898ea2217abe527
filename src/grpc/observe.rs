//! What stands around every call: one log line, metrics, and the status that clients expect (grpc.md 9) when a
//! message is too large.

use std::convert::Infallible;
use std::task::{Context, Poll};
use std::time::Instant;

use futures_util::future::BoxFuture;
use http_body_util::BodyExt;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::codegen::http::{HeaderMap, HeaderValue, Request, Response};
use tonic::server::NamedService;
use tonic::{Code, Status};

use crate::clock;
use crate::logging::FoldedKinds;
use crate::logging::spans::{self, Span};
use crate::net::Peer;

const METHODS: [&str; 4] = ["CreateUsage", "CreateUsageBulk", "StreamUsage", "Ingest"];

/// A service with its calls observed.
#[derive(Clone)]
pub struct Observed<S>(pub S);

impl<S: NamedService> NamedService for Observed<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for Observed<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + NamedService,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let started = clock::moment();
        // clients choose the path; labels must not grow with it
        let name = request.uri().path().rsplit('/').next().unwrap_or_default();
        let method = METHODS.into_iter().find(|method| *method == name).unwrap_or("none");
        let sent = || request.headers().get("traceparent")?.to_str().ok();
        let mut span = Span::of_call(S::NAME, method, sent);
        span.note(|notes| {
            if let Some(authority) = request.uri().authority() {
                notes.server(authority.as_str());
            }
        });
        compress_like_the_client(request.headers_mut());
        // until the last byte of the answer: a connection without a call is closed when its place is needed
        let open_call = (request.extensions().get::<Peer>().map(Peer::begin_call), OpenCall::begin());
        let response = self.0.call(request);
        Box::pin(async move {
            let mut response = spans::within(&span, response).await?;
            let code = settle(response.headers_mut());
            observe(method, code, started);
            note_status(&mut span, response.headers());
            let until_the_end = move |body: Body| {
                Body::new(body.map_frame(move |frame| {
                    let _held = &open_call;
                    if let Some(trailers) = frame.trailers_ref() {
                        note_status(&mut span, trailers);
                    }
                    frame
                }))
            };
            Ok(response.map(until_the_end))
        })
    }
}

/// A call that is counted as open until this is dropped.
struct OpenCall;

impl OpenCall {
    fn begin() -> Self {
        metrics::gauge!("open_spanner_grpc_calls_open").increment(1);
        OpenCall
    }
}

impl Drop for OpenCall {
    fn drop(&mut self) {
        metrics::gauge!("open_spanner_grpc_calls_open").decrement(1);
    }
}

/// Notes what became of a call, where that is said: in the headers of a refusal, else behind the body.
fn note_status(span: &mut Span, headers: &HeaderMap) {
    span.note(|notes| {
        let Some(code) = Status::from_header_map(headers).map(|status| status.code()) else { return };
        notes.number("rpc.grpc.status_code", code as i64);
        if is_fault(code) {
            notes.failed(&format!("{code:?}"));
        }
    });
}

/// Whether a call failed that was no mistake of its caller.
fn is_fault(code: Code) -> bool {
    use Code::{DataLoss, DeadlineExceeded, Internal, Unavailable, Unimplemented, Unknown};
    matches!(code, Unknown | DeadlineExceeded | Unimplemented | Internal | Unavailable | DataLoss)
}

/// Answers are compressed for clients that compress. Nearly all say that they could read gzip, few have a reason to,
/// and for a small answer it costs more than the rest of the call.
fn compress_like_the_client(headers: &mut HeaderMap) {
    if headers.get("grpc-encoding").is_none_or(|encoding| encoding == "identity") {
        headers.remove("grpc-accept-encoding");
    }
}

/// The status of a call, as far as its headers tell: a refusal has no body and carries it there.
fn settle(headers: &mut HeaderMap) -> Code {
    let code = Status::from_header_map(headers).map_or(Code::Ok, |status| status.code());
    match Status::from_header_map(headers).map(of_message).map(|status| status.code()) {
        Some(Code::ResourceExhausted) if code == Code::OutOfRange => {
            headers.insert("grpc-status", HeaderValue::from_static("8"));
            Code::ResourceExhausted
        }
        Some(Code::InvalidArgument) if code == Code::Internal => {
            headers.insert("grpc-status", HeaderValue::from_static("3"));
            Code::InvalidArgument
        }
        _ => code,
    }
}

/// How the library begins when a message is none of ours: cut off, nested too deep, text that is no UTF-8.
const UNDECODABLE: &str = "failed to decode";

/// The library's status for a message over the limit, as grpc.md 9 has it; others as they are.
fn of_message(status: Status) -> Status {
    match status.code() {
        Code::OutOfRange => Status::resource_exhausted(status.message()),
        Code::Internal if status.message().starts_with(UNDECODABLE) => {
            Status::invalid_argument(status.message())
        }
        _ => status,
    }
}

fn observe(method: &'static str, code: Code, started: Instant) {
    let elapsed = clock::since(started);
    let duration_ms = elapsed.as_secs_f64() * 1000.0;
    let status = code as i32;
    if matches!(code, Code::Internal | Code::Unavailable | Code::Unknown) {
        static FAILED: FoldedKinds<(&str, i32)> = FoldedKinds::new();
        FAILED.say((method, status), |repeats| {
            log::warn!(method, status, duration_ms, repeats; "grpc call failed");
        });
    } else {
        log::debug!(method, status, duration_ms; "grpc call");
    }
    let labels = [("method", method.to_owned()), ("status", status.to_string())];
    metrics::histogram!("open_spanner_grpc_server_request_duration_seconds", &labels)
        .record(elapsed.as_secs_f64());
}
