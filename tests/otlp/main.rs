//! Spans as a collector gets them: the real program, built with the feature `otlp`, sends them to a collector in this process,
//! which decodes them. `cargo test --features otlp --test otlp` runs it; the default build has none of it.

#![expect(clippy::disallowed_methods, reason = "tests ask clocks, dice and databases as they like")]

// made for many more tests than these
#[path = "../it/support/mod.rs"]
#[allow(dead_code, unused_imports, unused_macros)]
mod support;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use open_spanner::grpc::pb::v1::usage_service_client::UsageServiceClient;
use open_spanner::grpc::pb::v1::{CreateUsageRequest, UsageEventInput};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use prost::Message;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use support::{Client, Database, Receiver, Server, Workspace, run};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const OTHER_TRACE: &str = "5bf92f3577b34da6a3ce929d0e0e4737";
const CALLER: &str = "00f067aa0ba902b7";

/// What no span may tell.
const PRIVATE: [&str; 4] = ["subject-4711", "key-4711", "note-4711", "path-4711"];

/// How a collector answers.
#[derive(Clone, Copy)]
enum Manner {
    Takes,
    Refuses,
    Hangs,
}

/// A request that came: its head, lower case, and what it brought.
struct Batch {
    head: String,
    spans: ExportTraceServiceRequest,
}

#[derive(Clone)]
struct Collector {
    port: u16,
    batches: Arc<Mutex<Vec<Batch>>>,
    manner: Arc<Mutex<Manner>>,
}

impl Collector {
    async fn start(manner: Manner) -> Collector {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let collector = Collector { port, batches: Arc::default(), manner: Arc::new(Mutex::new(manner)) };
        let own = collector.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let own = own.clone();
                tokio::spawn(async move { own.answer(stream).await });
            }
        });
        collector
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    async fn answer(&self, mut stream: TcpStream) -> Option<()> {
        let mut bytes = Vec::new();
        let start = loop {
            if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            if stream.read_buf(&mut bytes).await.ok()? == 0 {
                return None;
            }
        };
        let head = String::from_utf8_lossy(&bytes[..start]).to_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:"))?;
        let length: usize = length.trim().parse().ok()?;
        while bytes.len() < start + length {
            if stream.read_buf(&mut bytes).await.ok()? == 0 {
                return None;
            }
        }
        let manner = *self.manner.lock().expect("no holder panics");
        let status = match manner {
            Manner::Takes => "200 OK",
            Manner::Refuses => "400 Bad Request",
            Manner::Hangs => {
                tokio::time::sleep(Duration::from_secs(60)).await;
                return None;
            }
        };
        let spans = ExportTraceServiceRequest::decode(&bytes[start..]).expect("protobuf of OTLP");
        self.batches.lock().expect("no holder panics").push(Batch { head, spans });
        let text = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        stream.write_all(text.as_bytes()).await.ok()
    }

    /// Every span so far.
    fn spans(&self) -> Vec<Span> {
        let batches = self.batches.lock().expect("no holder panics");
        let scopes = batches.iter().flat_map(|batch| &batch.spans.resource_spans);
        let spans = scopes.flat_map(|resource| &resource.scope_spans).flat_map(|scope| &scope.spans);
        spans
            .map(|span| Span {
                name: span.name.clone(),
                trace: hex(&span.trace_id),
                id: hex(&span.span_id),
                parent: hex(&span.parent_span_id),
                kind: span.kind(),
                attributes: texts(&span.attributes),
            })
            .collect()
    }

    /// Waits for the span of this name in the trace.
    async fn wait(&self, trace: &str, name: &str) -> Span {
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            let spans = self.spans();
            if let Some(span) = spans.iter().find(|span| span.trace == trace && span.name == name) {
                return span.clone();
            }
            assert!(Instant::now() < end, "no span {name:?} of {trace} among {spans:#?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn resource(&self) -> BTreeMap<String, String> {
        let batches = self.batches.lock().expect("no holder panics");
        let first = batches.first().and_then(|batch| batch.spans.resource_spans.first());
        texts(&first.and_then(|spans| spans.resource.as_ref()).expect("a resource").attributes)
    }
}

#[derive(Clone, Debug)]
struct Span {
    name: String,
    trace: String,
    id: String,
    parent: String,
    kind: SpanKind,
    attributes: BTreeMap<String, String>,
}

impl Span {
    fn is(&self, attributes: &[(&str, &str)]) {
        for (key, value) in attributes {
            assert_eq!(self.attributes.get(*key).map(String::as_str), Some(*value), "{key} of {self:#?}");
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn texts(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |value: &Option<AnyValue>| match value.as_ref().and_then(|value| value.value.clone()) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    };
    attributes.iter().map(|pair| (pair.key.clone(), text(&pair.value))).collect()
}

fn traceparent(trace: &str, flags: &str) -> String {
    format!("00-{trace}-{CALLER}-{flags}")
}

async fn server(database: &Database, collector: &Collector, more: &[(&str, &str)]) -> (Server, Workspace) {
    let url = collector.url();
    let mut settings = vec![
        ("OTEL_EXPORTER_OTLP_ENDPOINT", url.as_str()),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-collector-key=open"),
        ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test"),
        ("OTEL_BSP_SCHEDULE_DELAY", "50"),
        ("OPEN_SPANNER_HTTP_METRICS", "true"),
        ("OPEN_SPANNER_WEBHOOK_ALLOWED_NETWORKS", "127.0.0.0/8"),
    ];
    settings.extend(more);
    let server = Server::start_with(database, &settings);
    let workspace = server.workspace().await;
    workspace.meter("tokens", "sum").await;
    (server, workspace)
}

fn usage(number: u32) -> serde_json::Value {
    json!({
        "idempotency_key": format!("key-4711-{number}"), "meter": "tokens", "subject": "subject-4711",
        "quantity": 1, "metadata": {"note": "note-4711"},
    })
}

async fn metric(client: &Client, series: &str) -> f64 {
    let text = client.get("/metrics").await.expect(200).text;
    text.lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok()).unwrap_or(-1.0)
}

#[test]
fn a_call_is_told_with_what_it_waited_for() {
    run(async {
        let collector = Collector::start(Manner::Takes).await;
        let database = Database::sqlite();
        let (mut server, workspace) = server(&database, &collector, &[]).await;
        let traced = workspace
            .with("traceparent", traceparent(TRACE, "01"))
            .with("x-request-id", "order-4711.retry-2");
        let answer = traced.post("/v1/usages", &usage(1)).await.expect(201);
        let call = collector.wait(TRACE, "POST /v1/usages").await;
        assert_eq!((call.parent.as_str(), call.kind), (CALLER, SpanKind::Server), "{call:#?}");
        assert_eq!(answer.header("traceparent"), format!("00-{TRACE}-{}-01", call.id));
        call.is(&[
            ("http.request.method", "POST"),
            ("http.route", "/v1/usages"),
            ("http.response.status_code", "201"),
            ("url.scheme", "http"),
            ("server.address", "127.0.0.1"),
            ("client.address", "127.0.0.1"),
            ("open_spanner.request_id", "order-4711.retry-2"),
        ]);
        assert!(!call.attributes["open_spanner.workspace_id"].is_empty(), "{call:#?}");
        for name in ["ingest wait", "ingest commit"] {
            let part = collector.wait(TRACE, name).await;
            assert_eq!(
                (part.parent.as_str(), part.kind),
                (call.id.as_str(), SpanKind::Internal),
                "{part:#?}"
            );
        }

        // a page of the same trace, and its time in the database
        traced.get("/v1/meters").await.expect(200);
        let read = collector.wait(TRACE, "GET /v1/meters").await;
        let below = collector.spans().into_iter().filter(|span| span.parent == read.id);
        let below: Vec<Span> = below.filter(|span| span.kind == SpanKind::Client).collect();
        assert!(!below.is_empty(), "{:#?}", collector.spans());
        below
            .iter()
            .for_each(|span| span.is(&[("db.system.name", "sqlite"), ("db.operation.name", &span.name)]));

        let head = collector.batches.lock().expect("no holder panics")[0].head.clone();
        assert!(head.starts_with("post /v1/traces http/1.1\r\n"), "{head}");
        assert!(head.contains("\r\nx-collector-key: open\r\n"), "{head}");
        assert!(head.contains("\r\ncontent-type: application/x-protobuf\r\n"), "{head}");
        let resource = collector.resource();
        assert_eq!(resource["service.name"], "open-spanner");
        assert_eq!(resource["open_spanner.role"], "serve");
        assert_eq!(resource["deployment.environment.name"], "test");

        // what the caller does not record is not recorded here either, and probes are none of it
        let untraced = workspace.with("traceparent", traceparent(OTHER_TRACE, "00"));
        let answer = untraced.post("/v1/usages", &usage(2)).await.expect(201);
        let own = answer.header("traceparent");
        assert!(own.starts_with(&format!("00-{OTHER_TRACE}-")) && own.ends_with("-00"), "{own}");
        workspace.get("/health").await.expect(204);
        // a call without a trace begins one, which its answer and its log line name
        let answer = workspace.get("/v1/meters").await.expect(200);
        let begun = answer.header("traceparent");
        let trace = begun.split('-').nth(1).expect("a trace").to_owned();
        let root = collector.wait(&trace, "GET /v1/meters").await;
        assert_eq!(root.parent, "");
        assert!(metric(&workspace, "open_spanner_spans_total{outcome=\"sent\"}").await > 0.0);

        assert!(server.terminate().success());
        let spans = collector.spans();
        assert!(spans.iter().all(|span| span.trace != OTHER_TRACE), "{spans:#?}");
        assert!(!spans.iter().any(|span| span.name.contains("/health") || span.name.contains("/metrics")));
        let key = workspace.header("authorization");
        let told = format!("{spans:?}");
        for private in PRIVATE.iter().chain([&key.trim_start_matches("Bearer ")]) {
            assert!(!told.contains(private), "{private} in {told}");
        }
    });
}

#[test]
fn grpc_calls_and_webhooks_are_in_the_trace() {
    run(async {
        let collector = Collector::start(Manner::Takes).await;
        let database = Database::sqlite();
        let (mut server, workspace) = server(&database, &collector, &[]).await;

        let address = format!("http://{}", server.grpc());
        let mut client = UsageServiceClient::connect(address).await.expect("the server listens");
        let request = |event: UsageEventInput| {
            let mut request = tonic::Request::new(CreateUsageRequest { event: Some(event) });
            let key = workspace.header("authorization").parse().expect("a header value");
            request.metadata_mut().insert("authorization", key);
            let parent = traceparent(TRACE, "01").parse().expect("a header value");
            request.metadata_mut().insert("traceparent", parent);
            request
        };
        let event = UsageEventInput {
            idempotency_key: "key-4711-3".to_owned(),
            subject: "subject-4711".to_owned(),
            meter: "tokens".to_owned(),
            quantity: 1.0,
            ..Default::default()
        };
        client.create_usage(request(event.clone())).await.expect("stored");
        let name = "open_spanner.v1.UsageService/CreateUsage";
        let call = collector.wait(TRACE, name).await;
        assert_eq!((call.parent.as_str(), call.kind), (CALLER, SpanKind::Server), "{call:#?}");
        call.is(&[
            ("rpc.system", "grpc"),
            ("rpc.service", "open_spanner.v1.UsageService"),
            ("rpc.method", "CreateUsage"),
            ("rpc.grpc.status_code", "0"),
            ("server.address", "127.0.0.1"),
            ("client.address", "127.0.0.1"),
        ]);
        assert!(!call.attributes["open_spanner.workspace_id"].is_empty(), "{call:#?}");
        let commit = collector.wait(TRACE, "ingest commit").await;
        assert_eq!(commit.parent, call.id);
        let refused = UsageEventInput { meter: "nosuch".to_owned(), ..event };
        client.create_usage(request(refused)).await.expect_err("no such meter");

        let receiver = Receiver::start().await;
        let body = json!({"name": "here", "webhook_url": receiver.url("ok/path-4711")});
        let made = workspace.post("/v1/alerts/destinations", &body).await.json(201);
        let id = made["id"].as_str().expect("an id");
        let traced = workspace.with("traceparent", traceparent(OTHER_TRACE, "01"));
        traced.post(&format!("/v1/alerts/destinations/{id}/test"), &json!({})).await.expect(200);
        let calls = receiver.wait("ok/path-4711", 1).await;
        let attempt = collector.wait(OTHER_TRACE, "POST").await;
        assert_eq!(calls[0].header("traceparent"), format!("00-{OTHER_TRACE}-{}-01", attempt.id));
        assert_eq!(attempt.kind, SpanKind::Client);
        attempt.is(&[
            ("http.request.method", "POST"),
            ("http.response.status_code", "200"),
            ("server.address", "127.0.0.1"),
            ("server.port", &receiver.port.to_string()),
        ]);
        let from = collector.wait(OTHER_TRACE, "POST /v1/alerts/destinations/{id}/test").await;
        assert_eq!(attempt.parent, from.id);

        assert!(server.terminate().success());
        let spans = collector.spans();
        let statuses: Vec<_> = spans.iter().filter(|span| span.name == name).collect();
        // NOT_FOUND, which is no fault of the server
        let refused = statuses.iter().find(|span| span.attributes["rpc.grpc.status_code"] == "5");
        assert!(refused.is_some_and(|span| !span.attributes.contains_key("error.type")), "{statuses:#?}");
        let told = format!("{spans:?}");
        assert!(PRIVATE.iter().all(|private| !told.contains(private)), "{told}");
    });
}

#[test]
fn a_collector_that_fails_hurts_no_call() {
    run(async {
        let collector = Collector::start(Manner::Refuses).await;
        let database = Database::sqlite();
        let (mut server, workspace) =
            server(&database, &collector, &[("OPEN_SPANNER_SHUTDOWN_TIMEOUT", "3s")]).await;
        let end = Instant::now() + Duration::from_secs(30);
        let mut number = 0;
        while metric(&workspace, "open_spanner_spans_total{outcome=\"failed\"}").await <= 0.0 {
            number += 1;
            workspace.post("/v1/usages", &usage(number)).await.expect(201);
            assert!(Instant::now() < end, "no span failed");
        }
        *collector.manner.lock().expect("no holder panics") = Manner::Hangs;
        // more than are held
        let end = Instant::now() + Duration::from_secs(90);
        while metric(&workspace, "open_spanner_spans_total{outcome=\"dropped\"}").await <= 0.0 {
            assert!(Instant::now() < end, "no span was dropped");
            let calls = (0..20).map(|_| workspace.get("/v1/meters"));
            for answer in futures_util::future::join_all(calls).await {
                answer.expect(200);
            }
        }
        let lines = server.log();
        let lost = lines.iter().filter(|line| line.contains("spans are lost")).count();
        assert!((1..=3).contains(&lost), "{lines:#?}");
        let began = Instant::now();
        assert!(server.terminate().success());
        assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    });
}

#[test]
fn the_sampler_is_the_one_that_was_set() {
    run(async {
        let collector = Collector::start(Manner::Takes).await;
        let sampler = [("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "0")];
        let database = Database::sqlite();
        let (mut server, workspace) = server(&database, &collector, &sampler).await;
        let answer = workspace.get("/v1/meters").await.expect(200);
        assert_eq!(answer.header("traceparent"), "");
        let traced = workspace.with("traceparent", traceparent(TRACE, "01"));
        traced.get("/v1/meters").await.expect(200);
        collector.wait(TRACE, "GET /v1/meters").await;
        assert!(server.terminate().success());
        let spans = collector.spans();
        assert!(spans.iter().all(|span| span.trace == TRACE), "{spans:#?}");
    });
}
