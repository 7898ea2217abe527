//! Spans that are sent by OTLP: protobuf over HTTP, in batches, from a thread of their own. No call ever waits for them: what
//! the collector does not take in time is dropped and counted.
//!
//! The SDK reads `OTEL_…` for itself: where to, headers, sampler, name and attributes of the service, pace of the batches.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use opentelemetry::trace::{
    Span as _, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags, TraceId, TraceState,
    Tracer as _, TracerProvider as _,
};
use opentelemetry::{Context, Key, KeyValue};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{ExporterBuildError, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, SdkTracer, SdkTracerProvider, Span as SdkSpan, SpanData,
    SpanExporter, SpanProcessor,
};
use tokio::runtime::Handle;
use url::Url;

use crate::blocking;
use crate::chance;
use crate::logging::{Folded, Trace};

/// Spans that wait or are being sent; more are dropped.
const HELD_MAX: usize = 2048;
/// For one request to the collector.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How often it is said that spans are lost.
const WORD_EVERY: Duration = Duration::from_secs(60);
/// What a collector answers is not worth more memory than this.
const ANSWER_BYTES: usize = 64 * 1024;

struct Tracing {
    tracer: SdkTracer,
    provider: SdkTracerProvider,
}

/// Set once spans are sent.
static TRACING: OnceLock<Tracing> = OnceLock::new();

/// Where this task is in a trace.
#[derive(Clone)]
struct Here {
    span: SpanContext,
    caller: Arc<OnceLock<Caller>>,
}

/// Who makes a call, as far as that is found out further in.
struct Caller {
    workspace_id: String,
    address: IpAddr,
}

tokio::task_local! {
    static HERE: Here;
}

fn here() -> Option<Here> {
    HERE.try_with(Here::clone).ok().filter(|here| here.span.is_valid())
}

/// Something that takes time, until this is dropped.
pub struct Span(Option<Box<Live>>);

struct Live {
    span: SdkSpan,
    parent: Option<SpanContext>,
    caller: Arc<OnceLock<Caller>>,
}

impl Drop for Live {
    fn drop(&mut self) {
        if let Some(caller) = self.caller.get() {
            let mut notes = Notes(&mut self.span);
            notes.text("open_spanner.workspace_id", &caller.workspace_id);
            notes.text("client.address", &caller.address.to_string());
        }
    }
}

impl Span {
    /// An HTTP request, by method and pattern of its route (`none`: it matches none). `sent` is its `traceparent`.
    pub fn of_request<'a>(method: &str, route: &str, sent: impl FnOnce() -> Option<&'a str>) -> Span {
        let parent = sent().and_then(parent_of);
        // whoever probes does so every few seconds, for ever
        if parent.is_none() && ["/health", "/ready", "/metrics"].contains(&route) {
            return Span(None);
        }
        let is_known = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"].contains(&method);
        let shown = if is_known { method } else { "HTTP" };
        let mut attributes =
            vec![KeyValue::new("http.request.method", if is_known { method } else { "_OTHER" }.to_owned())];
        let name = match route {
            "none" => shown.to_owned(),
            route => {
                attributes.push(KeyValue::new("http.route", route.to_owned()));
                format!("{shown} {route}")
            }
        };
        begin(SpanKind::Server, name, parent, attributes)
    }

    /// A gRPC call; the method is `none` where it is not one of ours.
    pub fn of_call<'a>(
        service: &'static str,
        method: &'static str,
        sent: impl FnOnce() -> Option<&'a str>,
    ) -> Span {
        let parent = sent().and_then(parent_of);
        let is_probe = service.starts_with("grpc.");
        if parent.is_none() && is_probe {
            return Span(None);
        }
        let mut attributes = vec![KeyValue::new("rpc.system", "grpc"), KeyValue::new("rpc.service", service)];
        let name = match method {
            "none" => Cow::Borrowed(service),
            method => {
                attributes.push(KeyValue::new("rpc.method", method));
                Cow::Owned(format!("{service}/{method}"))
            }
        };
        begin(SpanKind::Server, name, parent, attributes)
    }

    /// One try of a background job.
    pub fn of_job(queue: &'static str) -> Span {
        let attributes = vec![KeyValue::new("open_spanner.queue", queue)];
        begin(SpanKind::Internal, format!("job {queue}"), None, attributes)
    }

    /// A call to a receiver. Of its address no more than the host is told: paths hold secrets.
    pub fn of_webhook(url: &Url) -> Span {
        let mut attributes = vec![
            KeyValue::new("http.request.method", "POST"),
            KeyValue::new("url.scheme", url.scheme().to_owned()),
        ];
        attributes.extend(url.host_str().map(|host| KeyValue::new("server.address", host.to_owned())));
        let port = url.port_or_known_default();
        attributes.extend(port.map(|port| KeyValue::new("server.port", i64::from(port))));
        // also of a trace that is not recorded: the receiver is told so
        begin(SpanKind::Client, "POST", here().map(|here| here.span), attributes)
    }

    /// A unit of work in the database, as part of what this task does.
    pub fn of_database(operation: &'static str, is_postgres: bool) -> Span {
        let Some(parent) = recorded_here() else { return Span(None) };
        let system = if is_postgres { "postgresql" } else { "sqlite" };
        let attributes =
            vec![KeyValue::new("db.system.name", system), KeyValue::new("db.operation.name", operation)];
        begin(SpanKind::Client, operation, Some(parent), attributes)
    }

    /// Part of what this task does.
    pub fn part(name: &'static str) -> Span {
        let Some(parent) = recorded_here() else { return Span(None) };
        begin(SpanKind::Internal, name, Some(parent), Vec::new())
    }

    /// Ends this part; what follows is another of the same whole.
    pub fn next_part(&mut self, name: &'static str) {
        if let Some(live) = self.0.take() {
            let parent = live.parent.clone();
            drop(live);
            *self = begin(SpanKind::Internal, name, parent, Vec::new());
        }
    }

    /// Notes something, if the span is sent.
    pub fn note(&mut self, notes: impl FnOnce(&mut Notes<'_>)) {
        if let Some(live) = self.0.as_mut().filter(|live| live.span.is_recording()) {
            notes(&mut Notes(&mut live.span));
        }
    }

    /// The trace, if this span is sent.
    pub fn trace(&self) -> Option<Trace> {
        let context = self.0.as_ref()?.span.span_context();
        let is_sent = context.is_valid() && context.is_sampled();
        is_sent.then(|| Trace::of(context.trace_id().to_string(), context.trace_flags().to_u8()))
    }

    /// For a header: this span as the parent of what comes of it.
    pub fn traceparent(&self) -> Option<String> {
        let context = self.0.as_ref()?.span.span_context();
        let text = || {
            let flags = context.trace_flags().to_u8();
            format!("00-{}-{}-{flags:02x}", context.trace_id(), context.span_id())
        };
        context.is_valid().then(text)
    }
}

/// What is known of a span.
pub struct Notes<'a>(&'a mut SdkSpan);

impl Notes<'_> {
    pub fn text(&mut self, key: &'static str, value: &str) {
        self.0.set_attribute(KeyValue::new(key, value.to_owned()));
    }

    pub fn number(&mut self, key: &'static str, value: i64) {
        self.0.set_attribute(KeyValue::new(key, value));
    }

    /// What a caller calls this server, if that looks like a host.
    pub fn server(&mut self, authority: &str) {
        let Some((host, port)) = super::split(authority) else { return };
        self.text("server.address", host);
        if let Some(port) = port {
            self.number("server.port", i64::from(port));
        }
    }

    pub fn failed(&mut self, kind: &str) {
        self.text("error.type", kind);
        self.0.set_status(Status::error(""));
    }
}

/// What `work` does belongs to this span.
pub fn within<F: Future>(span: &Span, work: F) -> impl Future<Output = F::Output> + use<F> {
    let here = match &span.0 {
        Some(live) => Here { span: live.span.span_context().clone(), caller: live.caller.clone() },
        None => Here { span: SpanContext::NONE, caller: Arc::default() },
    };
    HERE.scope(here, work)
}

/// Work that another task is going to do, with what it belongs to.
pub fn carried<F: Future>(work: F) -> impl Future<Output = F::Output> + use<F> {
    let nowhere = || Here { span: SpanContext::NONE, caller: Arc::default() };
    HERE.scope(here().unwrap_or_else(nowhere), work)
}

/// Notes who makes the call that is being answered.
pub fn called_by(workspace_id: &str, address: IpAddr) {
    if let Some(here) = here().filter(|here| here.span.is_sampled()) {
        // one call has one caller
        let _ = here.caller.set(Caller { workspace_id: workspace_id.to_owned(), address });
    }
}

fn recorded_here() -> Option<SpanContext> {
    here().map(|here| here.span).filter(SpanContext::is_sampled)
}

fn begin(
    kind: SpanKind,
    name: impl Into<Cow<'static, str>>,
    parent: Option<SpanContext>,
    attributes: Vec<KeyValue>,
) -> Span {
    let Some(Tracing { tracer, .. }) = TRACING.get() else { return Span(None) };
    let context = match parent.clone() {
        Some(parent) => Context::new().with_remote_span_context(parent),
        None => Context::new(),
    };
    let builder = tracer.span_builder(name).with_kind(kind).with_attributes(attributes);
    let span = tracer.build_with_context(builder, &context);
    Span(Some(Box::new(Live { span, parent, caller: Arc::default() })))
}

/// The span of a caller, by its `traceparent`.
fn parent_of(sent: &str) -> Option<SpanContext> {
    let trace = Trace::parse(sent)?;
    let mut parts = sent.trim().split('-').skip(2);
    let span = SpanId::from_hex(parts.next()?).ok()?;
    let flags = u8::from_str_radix(parts.next()?, 16).ok()?;
    let trace = TraceId::from_hex(&trace.trace_id).ok()?;
    Some(SpanContext::new(trace, span, TraceFlags::new(flags), true, TraceState::default()))
}

/// Begins to send spans, if that is wanted. Must be called inside the runtime that sends them. What cannot be started is
/// said and left out: no call needs it.
pub fn start(is_wanted: bool, role: &'static str) {
    if !is_wanted || TRACING.get().is_some() {
        return;
    }
    match provider(role) {
        Ok(provider) => {
            let tracer = provider.tracer("open-spanner");
            log::info!("spans are sent by OTLP");
            let _ = TRACING.set(Tracing { tracer, provider });
        }
        Err(error) => log::error!(error:% = error; "no spans are sent: the exporter cannot be made"),
    }
}

/// Sends what waits, for so long, and makes no more spans.
pub async fn flush(time: Duration) {
    let Some(Tracing { provider, .. }) = TRACING.get() else { return };
    let end = move || provider.shutdown_with_timeout(time);
    if !matches!(blocking::begin(end).await, Ok(Ok(()))) {
        log::warn!("the last spans were not sent");
    }
}

fn provider(role: &'static str) -> Result<SdkTracerProvider, ExporterBuildError> {
    let exporter = opentelemetry_otlp::SpanExporter::builder().with_http().with_http_client(Courier::new());
    let held = Arc::new(AtomicUsize::new(0));
    let exporter = Counted { exporter: exporter.build()?, held: held.clone() };
    // never full, because fewer are held
    let batches = BatchConfigBuilder::default().with_max_queue_size(HELD_MAX).build();
    let queue = BatchSpanProcessor::builder(exporter).with_batch_config(batches).build();
    let processor = Bounded { queue, held };
    Ok(SdkTracerProvider::builder().with_span_processor(processor).with_resource(resource(role)).build())
}

/// Who sends: what the variables say, over what we know ourselves.
fn resource(role: &'static str) -> Resource {
    let said = Resource::builder().build();
    let own = [
        KeyValue::new("service.name", "open-spanner"),
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("service.instance.id", chance::name().to_string()),
        KeyValue::new("open_spanner.role", role),
    ];
    // the SDK makes a name up where none is said
    let is_made_up = |key: &Key, value: &str| key.as_str() == "service.name" && value.starts_with("unknown_");
    let said = said.iter().filter(|(key, value)| !is_made_up(key, &value.as_str()));
    let said: Vec<KeyValue> = said.map(|(key, value)| KeyValue::new(key.clone(), value.clone())).collect();
    Resource::builder_empty().with_attributes(own).with_attributes(said).build()
}

/// Takes no more spans than it may hold.
#[derive(Debug)]
struct Bounded {
    queue: BatchSpanProcessor,
    held: Arc<AtomicUsize>,
}

impl SpanProcessor for Bounded {
    fn on_start(&self, span: &mut SdkSpan, context: &Context) {
        self.queue.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        let one_more = |held| (held < HELD_MAX).then_some(held + 1);
        match self.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more) {
            Ok(_) => self.queue.on_end(span),
            Err(_) => lost("dropped", 1, &"more spans than are sent in time"),
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.queue.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.queue.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.queue.set_resource(resource);
    }
}

/// An exporter whose spans are counted.
#[derive(Debug)]
struct Counted {
    exporter: opentelemetry_otlp::SpanExporter,
    held: Arc<AtomicUsize>,
}

impl SpanExporter for Counted {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let count = batch.len();
        let result = self.exporter.export(batch).await;
        self.held.fetch_sub(count, Ordering::Relaxed);
        match &result {
            Ok(()) => {
                metrics::counter!("open_spanner_spans_total", "outcome" => "sent").increment(count as u64)
            }
            Err(error) => lost("failed", count, error),
        }
        result
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

fn lost(outcome: &'static str, count: usize, reason: &dyn std::fmt::Display) {
    static LOST: Folded = Folded::new();
    metrics::counter!("open_spanner_spans_total", "outcome" => outcome).increment(count as u64);
    LOST.say_every(WORD_EVERY, |repeats| log::warn!(outcome, reason:% = reason, repeats; "spans are lost"));
}

/// Brings batches to the collector on the runtime; the thread of the batches waits.
#[derive(Debug)]
struct Courier {
    http: Result<reqwest::Client, String>,
    runtime: Handle,
}

impl Courier {
    fn new() -> Self {
        // fails when somebody was first, which is as good
        let _ = rustls::crypto::ring::default_provider().install_default();
        let builder = || {
            let none = reqwest::redirect::Policy::none();
            reqwest::Client::builder().user_agent("open-spanner").timeout(TIMEOUT).redirect(none)
        };
        // without root certificates plain http is left
        let http = builder().build().or_else(|_| builder().tls_certs_only([]).build());
        Courier { http: http.map_err(|error| error.to_string()), runtime: Handle::current() }
    }
}

#[tonic::async_trait]
impl HttpClient for Courier {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let http = self.http.clone()?;
        self.runtime.spawn(carry(http, request)).await?
    }
}

async fn carry(http: reqwest::Client, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
    let mut response = http.execute(request.try_into()?).await.map_err(reqwest::Error::without_url)?;
    let mut answer = Response::builder().status(response.status());
    if let Some(pause) = response.headers().get("retry-after") {
        answer = answer.header("retry-after", pause);
    }
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if bytes.len() + chunk.len() > ANSWER_BYTES {
            return Err("the collector answers too much".into());
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(answer.body(bytes.into())?)
}
