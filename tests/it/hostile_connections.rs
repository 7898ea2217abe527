//! Callers who connect and misbehave: silent, slow, too many, or with messages that cost more than sending them. Others
//! are answered meanwhile, and the server stops when it is told to.

use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;
use futures_util::future::join_all;
use open_spanner::grpc::pb::v1::usage_service_client::UsageServiceClient;
use open_spanner::grpc::pb::v1::{StreamUsageRequest, UsageEventInput};
use open_spanner::grpc::pb::v2::IngestRequest;
use open_spanner::grpc::pb::v2::usage_stream_service_client::UsageStreamServiceClient;
use serde_json::json;
use std::io::Write;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Request};

use crate::support::{Client, Database, Server, Workspace, on_both_databases, run, stable_port};

on_both_databases!(
    silent_grpc_connections_leave_the_other_ports_alone,
    stopping_does_not_wait_for_silent_peers_or_open_streams,
    messages_without_a_key_are_not_read,
    packed_messages_of_streams_stay_small,
    calls_without_a_message_have_their_share,
);

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// A frame of SETTINGS without any.
const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
const OPEN_FILES: u32 = 256;

async fn connect(address: &str) -> TcpStream {
    TcpStream::connect(address).await.expect("the port listens")
}

async fn connect_many(address: &str, count: usize) -> Vec<TcpStream> {
    let mut connections = Vec::with_capacity(count);
    for _ in 0..count {
        connections.push(connect(address).await);
    }
    connections
}

/// Reads until the server closes the connection; how long that took.
async fn closed_after(mut connection: TcpStream, patience: Duration) -> Duration {
    let started = Instant::now();
    let mut bytes = [0; 1024];
    let end = async { while matches!(connection.read(&mut bytes).await, Ok(count) if count > 0) {} };
    tokio::time::timeout(patience, end).await.expect("the server closes a connection that says nothing");
    started.elapsed()
}

async fn is_served(client: &Client, workspace: &Workspace) {
    client.get("/health").await.expect(204);
    client.get("/ready").await.expect(204);
    workspace.post("/v1/usages", &json!({"meter": "m", "subject": "s", "quantity": 1})).await.expect(201);
}

async fn silent_grpc_connections_leave_the_other_ports_alone(database: Database) {
    let metrics = format!("127.0.0.1:{}", stable_port());
    let settings = [("OPEN_SPANNER_METRICS_ADDR", metrics.as_str())];
    let server = Server::start_with_open_files(&database, &settings, OPEN_FILES);
    let workspace = server.workspace().await;
    workspace.meter("m", "sum").await;
    let metrics = Client::new(&format!("http://{metrics}"));
    let grpc = server.grpc();
    let mut silent = connect_many(&grpc, 400).await;
    for _ in 0..5 {
        is_served(&server.client(), &workspace).await;
        metrics.get("/metrics").await.expect(200);
        silent.extend(connect_many(&grpc, 20).await);
    }
    let descriptors = server.open_descriptors();
    assert!(descriptors < OPEN_FILES as usize, "{descriptors} files are open");
    let mut half = connect(&grpc).await;
    half.write_all(&PREFACE[..12]).await.expect("sent");
    let mut greeting = connect(&grpc).await;
    greeting.write_all(PREFACE).await.expect("sent");
    let mut mute = connect(&grpc).await;
    mute.write_all(&[PREFACE, SETTINGS.as_slice()].concat()).await.expect("sent");
    let patience = Duration::from_secs(40);
    tokio::join!(
        closed_after(half, patience),
        closed_after(greeting, patience),
        closed_after(mute, patience),
        async {
            for connection in silent {
                closed_after(connection, patience).await;
            }
        }
    );
    let log = server.log().join("\n");
    assert!(!log.contains("Too many open files"), "{log}");
}

/// The HTTP port is full of connections without a request; one with a request takes the place of the oldest.
#[test]
fn silent_http_connections_make_room() {
    run(async {
        let database = Database::sqlite();
        let server = Server::start_with_open_files(&database, &[], OPEN_FILES);
        let workspace = server.workspace().await;
        workspace.meter("m", "sum").await;
        let mut silent = connect_many(server.http(), 300).await;
        for _ in 0..5 {
            is_served(&server.client(), &workspace).await;
            silent.extend(connect_many(server.http(), 30).await);
        }
        assert!(server.open_descriptors() < OPEN_FILES as usize);
    });
}

fn bomb() -> Vec<u8> {
    // metadata of an event: fields with an empty name and no value, four bytes each
    let fields = [0x0a, 2, 0x0a, 0].repeat(2_000_000);
    let mut metadata = vec![0x32];
    prost::encode_length_delimiter(fields.len(), &mut metadata).expect("encoded");
    metadata.extend(fields);
    let mut message = vec![0x0a];
    prost::encode_length_delimiter(metadata.len(), &mut message).expect("encoded");
    message.extend(metadata);
    let mut packed = GzEncoder::new(Vec::new(), Compression::best());
    packed.write_all(&message).expect("written");
    packed.finish().expect("finished")
}

/// Sends bytes as the message of a unary call; the status that comes back.
async fn send_packed(channel: Channel, method: &'static str, packed: &[u8], key: Option<&str>) -> Code {
    use http_body_util::Full;
    use tonic::codegen::Service;
    let mut frame = vec![1];
    frame.extend((packed.len() as u32).to_be_bytes());
    frame.extend(packed);
    let mut request = tonic::codegen::http::Request::builder()
        .method("POST")
        .uri(format!("http://localhost/open_spanner.v1.UsageService/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("grpc-encoding", "gzip");
    if let Some(key) = key {
        request = request.header("authorization", key);
    }
    let body = tonic::body::Body::new(Full::new(bytes::Bytes::from(frame)));
    let mut channel = channel;
    std::future::poll_fn(|context| channel.poll_ready(context)).await.expect("ready");
    let response = channel.call(request.body(body).expect("a request")).await.expect("an answer");
    let mut code = tonic::Status::from_header_map(response.headers()).map(|status| status.code());
    if code.is_none() {
        use http_body_util::BodyExt;
        let collected = response.into_body().collect().await.expect("a whole answer");
        code = collected.trailers().and_then(tonic::Status::from_header_map).map(|status| status.code());
    }
    code.expect("a status")
}

async fn messages_without_a_key_are_not_read(database: Database) {
    let server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("m", "sum").await;
    let bomb = bomb();
    assert!(bomb.len() < 64 * 1024, "{} bytes", bomb.len());
    let address = format!("http://{}", server.grpc());
    let channel = Channel::from_shared(address).expect("an address").connect().await.expect("it listens");
    let before = server.process_status("VmRSS:");
    for method in ["CreateUsage", "CreateUsageBulk"] {
        for _ in 0..50 {
            assert_eq!(send_packed(channel.clone(), method, &bomb, None).await, Code::Unauthenticated);
            let wrong = Some("Bearer osk_wrong");
            assert_eq!(send_packed(channel.clone(), method, &bomb, wrong).await, Code::Unauthenticated);
        }
    }
    let grown = server.process_status("VmHWM:").saturating_sub(before);
    assert!(grown < 40 * 1024, "grew by {grown} KiB for callers without a key");
    // with a key it is larger than one event may be
    let key = workspace.header("authorization");
    let refused = send_packed(channel.clone(), "CreateUsage", &bomb, Some(&key)).await;
    assert_eq!(refused, Code::ResourceExhausted);
    let read_only = json!({"name": "reader", "scopes": ["usage:read"]});
    let made = workspace.session.post("/v1/auth/api-keys", &read_only).await.json(201);
    let reader = format!("Bearer {}", made["key"].as_str().expect("the secret"));
    let refused = send_packed(channel, "CreateUsageBulk", &bomb, Some(&reader)).await;
    assert_eq!(refused, Code::PermissionDenied);
}

/// Calls that begin a message and do not end it are held, with their headers; those of another workspace go on.
async fn calls_without_a_message_have_their_share(database: Database) {
    use http_body_util::{BodyExt, Full};
    use tonic::codegen::Service;
    let server = Server::start_with(&database, &[("OPEN_SPANNER_BODIES_MAX_BYTES", "1048576")]);
    let (own, other) = (server.workspace().await, server.workspace().await);
    for workspace in [&own, &other] {
        workspace.meter("m", "sum").await;
    }
    let address = format!("http://{}", server.grpc());
    let connect = async || {
        let channel = Channel::from_shared(address.clone()).expect("an address");
        channel.connect().await.expect("it listens")
    };
    let create = async |workspace: &Workspace| {
        let event =
            UsageEventInput { subject: "s".into(), meter: "m".into(), quantity: 1.0, ..Default::default() };
        let request = open_spanner::grpc::pb::v1::CreateUsageRequest { event: Some(event) };
        let mut request = Request::new(request);
        let key = workspace.header("authorization");
        request.metadata_mut().insert("authorization", key.parse().expect("a header value"));
        UsageServiceClient::new(connect().await).create_usage(request).await
    };
    create(&own).await.expect("stored");
    let mut endless = connect().await;
    let mut calls = Vec::new();
    // 4 KiB and its headers each, of a share of 512 KiB
    for _ in 0..150 {
        let body = Full::new(bytes::Bytes::from_static(&[0, 0, 0, 0, 9]));
        let body = tonic::body::Body::new(body.with_trailers(std::future::pending()));
        let request = tonic::codegen::http::Request::builder()
            .method("POST")
            .uri("http://localhost/open_spanner.v1.UsageService/CreateUsage")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("authorization", own.header("authorization"));
        std::future::poll_fn(|context| endless.poll_ready(context)).await.expect("ready");
        calls.push(tokio::spawn(endless.call(request.body(body).expect("a request"))));
    }
    tokio::time::sleep(Duration::from_millis(1_000)).await;
    let late = tokio::time::timeout(Duration::from_secs(2), create(&own)).await;
    assert!(late.is_err(), "no room is left in the share: {late:?}");
    create(&other).await.expect("stored");
    calls.iter().for_each(|call| call.abort());
}

/// A KiB on the wire, a MiB unpacked, dozens decoded: on many streams that stay open at once. Another workspace writes.
async fn packed_messages_of_streams_stay_small(database: Database) {
    use prost_types::value::Kind;
    const STREAMS: usize = 60;
    let server = Server::start(&database);
    let (workspace, other) = (server.workspace().await, server.workspace().await);
    other.meter("m", "sum").await;
    let address = format!("http://{}", server.grpc());
    let channel =
        Channel::from_shared(address.clone()).expect("an address").connect().await.expect("it listens");
    let key = workspace.header("authorization");
    let event = |kind| UsageEventInput {
        subject: "s".into(),
        meter: "m".into(),
        quantity: 1.0,
        metadata: [("a".to_string(), prost_types::Value { kind: Some(kind) })].into(),
        ..Default::default()
    };
    // more values than any event may have
    let values = vec![prost_types::Value::default(); 400_000];
    let request =
        StreamUsageRequest { event: Some(event(Kind::ListValue(prost_types::ListValue { values }))) };
    let mut packed = GzEncoder::new(Vec::new(), Compression::best());
    packed.write_all(&prost::Message::encode_to_vec(&request)).expect("written");
    let packed = packed.finish().expect("finished");
    assert!(packed.len() < 4 * 1024, "{} bytes", packed.len());
    let refused = send_packed(channel.clone(), "StreamUsage", &packed, Some(&key)).await;
    assert_eq!(refused, Code::ResourceExhausted);

    // as large as a message may be, refused for its length, on streams that then say nothing more
    let long = event(Kind::StringValue("x".repeat(1_000_000)));
    let before = server.process_status("VmRSS:");
    let mut open = Vec::new();
    for _ in 0..STREAMS {
        let mut client = UsageStreamServiceClient::new(channel.clone())
            .send_compressed(tonic::codec::CompressionEncoding::Gzip);
        let (requests, stream) = mpsc::channel(1);
        let mut request = Request::new(ReceiverStream::new(stream));
        request.metadata_mut().insert("authorization", key.parse().expect("a header value"));
        let mut acks = client.ingest(request).await.expect("it opens").into_inner();
        let request = IngestRequest { sequence: 1, event: Some(long.clone()), ..Default::default() };
        requests.send(request).await.expect("the stream is open");
        let ack = acks.message().await.expect("an answer").expect("an acknowledgement");
        assert!(ack.outcomes.first().is_some_and(|outcome| !outcome.code.is_empty()), "refused: {ack:?}");
        open.push((requests, acks));
    }
    let grown = server.process_status("VmRSS:").saturating_sub(before);
    println!("{STREAMS} open streams: grew by {grown} KiB");
    assert!(grown < 40 * 1024, "grew by {grown} KiB");
    is_served(&server.client(), &other).await;
}

async fn stopping_does_not_wait_for_silent_peers_or_open_streams(database: Database) {
    let mut server = Server::start(&database);
    let workspace = server.workspace().await;
    workspace.meter("m", "sum").await;
    let silent = connect_many(&server.grpc(), 3).await;
    let mut mute = connect(&server.grpc()).await;
    mute.write_all(&[PREFACE, SETTINGS.as_slice()].concat()).await.expect("sent");
    let silent_http = connect_many(server.http(), 3).await;
    let address = format!("http://{}", server.grpc());
    let channel = Channel::from_shared(address).expect("an address").connect().await.expect("it listens");
    let key = workspace.header("authorization");
    let event =
        || UsageEventInput { subject: "s".into(), meter: "m".into(), quantity: 1.0, ..Default::default() };

    let (old, old_events) = mpsc::channel(8);
    let mut request = Request::new(ReceiverStream::new(old_events));
    request.metadata_mut().insert("authorization", key.parse().expect("a header value"));
    let mut client = UsageServiceClient::new(channel.clone());
    let old_stream = tokio::spawn(async move { client.stream_usage(request).await });
    old.send(StreamUsageRequest { event: Some(event()) }).await.expect("open");

    let (new, new_events) = mpsc::channel(8);
    let mut request = Request::new(ReceiverStream::new(new_events));
    request.metadata_mut().insert("authorization", key.parse().expect("a header value"));
    let mut acks = UsageStreamServiceClient::new(channel).ingest(request).await.expect("open").into_inner();
    new.send(IngestRequest { sequence: 1, event: Some(event()), ..Default::default() }).await.expect("open");
    let ack = acks.message().await.expect("an answer").expect("one");
    assert_eq!(ack.durable_sequence, 1);

    let asked = Instant::now();
    server.ask_to_stop();
    let status = server.stopped();
    let took = asked.elapsed();
    assert_eq!(status.code(), Some(0), "{:#?}", server.log());
    assert!(took < Duration::from_secs(8), "stopping took {took:?}");
    let log = server.log().join("\n");
    assert!(!log.contains("before everything was drained"), "{log}");
    let ended = acks.message().await.expect_err("the server says that it stops");
    assert_eq!(ended.code(), Code::Unavailable, "{ended:?}");
    let ended = old_stream.await.expect("no panic").expect_err("the server says that it stops");
    assert_eq!(ended.code(), Code::Unavailable, "{ended:?}");
    assert!(ended.message().contains("1 are stored"), "{ended:?}");
    assert_eq!(database.count("events"), 2);
    drop((silent, mute, silent_http, old, new));
}

#[test]
fn nonsense_is_not_an_error_of_the_server() {
    run(async {
        let database = Database::sqlite();
        let server = Server::start(&database);
        for nonsense in
            ["\0\0\0\0\r\n\r\n", "GET / HTTP/9.9\r\n\r\n", "GET /\u{1}\r\n\r\n", "\u{16}\u{3}\u{1}"]
        {
            let mut connection = connect(server.http()).await;
            connection.write_all(nonsense.as_bytes()).await.expect("sent");
            closed_after(connection, Duration::from_secs(10)).await;
        }
        server.client().get("/health").await.expect(204);
        let errors: Vec<String> = server
            .log()
            .into_iter()
            .filter(|line| line.contains("\"ERROR\"") || line.contains("\"WARN\""))
            .collect();
        assert!(errors.iter().all(|line| line.contains("open_files")), "{errors:#?}");
    });
}

#[test]
fn a_hangup_is_survived() {
    run(async {
        let database = Database::sqlite();
        let server = Server::start(&database);
        server.signal("HUP");
        let end = Instant::now() + Duration::from_secs(30);
        while !server.log().iter().any(|line| line.contains("SIGHUP")) {
            assert!(Instant::now() < end, "no line about it: {:#?}", server.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        server.client().get("/ready").await.expect(204);
    });
}

/// A body that never ends holds the room of its own workspace, not that of others.
#[test]
fn bodies_in_flight_are_bounded_per_workspace_and_in_all() {
    run(async {
        let database = Database::sqlite();
        let server = Server::start_with(&database, &[("OPEN_SPANNER_BODIES_MAX_BYTES", "1048576")]);
        let (own, other) = (server.workspace().await, server.workspace().await);
        own.meter("m", "sum").await;
        other.meter("m", "sum").await;
        let event = json!({"meter": "m", "subject": "s", "quantity": 1});
        let events = json!([event]);
        let head = format!(
            "POST /v1/usages/bulk HTTP/1.1\r\nhost: x\r\nauthorization: {}\r\ncontent-length: 700000\r\n\r\n",
            own.header("authorization")
        );
        let mut endless = connect(server.http()).await;
        endless.write_all(head.as_bytes()).await.expect("sent");
        endless.write_all(&vec![b' '; 600_000]).await.expect("sent");
        let end = Instant::now() + Duration::from_secs(10);
        let refused = loop {
            let answer = own.post("/v1/usages/bulk", &events).await;
            if answer.status == 503 {
                break answer;
            }
            assert!(Instant::now() < end, "{answer:?}");
        };
        refused.try_again();
        other.post("/v1/usages/bulk", &events).await.expect(201);
        server.client().get("/health").await.expect(204);
        drop(endless);
        let end = Instant::now() + Duration::from_secs(10);
        while own.post("/v1/usages/bulk", &events).await.status != 201 {
            assert!(Instant::now() < end, "the room is given back");
        }
    });
}

/// So do forms of pages that never end, but for the first 4 KiB of each: small ones do not wait.
#[test]
fn forms_in_flight_take_the_room_of_their_workspace() {
    run(async {
        let database = Database::sqlite();
        // of which half is what is counted of two of the longest
        let room = (4 * (512 - 4) * 1024).to_string();
        let server = Server::start_with(&database, &[("OPEN_SPANNER_BODIES_MAX_BYTES", &room)]);
        let (own, other) = (server.workspace().await, server.workspace().await);
        own.meter("m", "sum").await;
        other.meter("m", "sum").await;
        let events = json!([{"meter": "m", "subject": "s", "quantity": 1}]);
        let head = format!(
            "POST /meters/new HTTP/1.1\r\nhost: x\r\ncookie: {}\r\nsec-fetch-site: same-origin\r\n\
             content-type: application/x-www-form-urlencoded\r\ncontent-length: 600000\r\n\r\n",
            own.session.header("cookie")
        );
        let mut endless = Vec::new();
        for _ in 0..2 {
            let mut one = connect(server.http()).await;
            one.write_all(head.as_bytes()).await.expect("sent");
            one.write_all(&vec![b'a'; 512 * 1024]).await.expect("sent");
            endless.push(one);
        }
        let end = Instant::now() + Duration::from_secs(10);
        let refused = loop {
            let answer = own.post("/v1/usages/bulk", &events).await;
            if answer.status == 503 {
                break answer;
            }
            assert!(Instant::now() < end, "{answer:?}");
        };
        refused.try_again();
        // it is told that its token is wrong, and not that there is no room
        let small = own.session.with("sec-fetch-site", "same-origin");
        let small = small.with("content-type", "application/x-www-form-urlencoded");
        small.post_bytes("/meters/new", b"name=small".to_vec()).await.expect(403);
        other.post("/v1/usages/bulk", &events).await.expect(201);
        drop(endless);
        let end = Instant::now() + Duration::from_secs(10);
        while own.post("/v1/usages/bulk", &events).await.status != 201 {
            assert!(Instant::now() < end, "the room is given back");
        }
    });
}

/// A thousandth of it on the wire: what it becomes has room before it is unpacked.
#[test]
fn packed_bodies_are_unpacked_within_the_room_of_a_workspace() {
    run(async {
        let database = Database::sqlite();
        let server = Server::start_with(&database, &[("OPEN_SPANNER_BODIES_MAX_BYTES", "16777216")]);
        let workspace = server.workspace().await;
        let mut packed = GzEncoder::new(Vec::new(), Compression::best());
        packed.write_all(&vec![b' '; 8_000_000]).expect("written");
        let packed = packed.finish().expect("finished");
        assert!(packed.len() < 16 * 1024, "{} bytes", packed.len());
        let client = workspace.with("content-encoding", "gzip").with("content-type", "application/json");
        let before = server.process_status("VmRSS:");
        let calls = (0..60).map(|_| client.post_bytes("/v1/usages/bulk", packed.clone()));
        for answer in join_all(calls).await {
            // there is no JSON in it; some may have waited for too long
            assert!([400, 503].contains(&answer.status), "{answer:?}");
        }
        let grown = server.process_status("VmHWM:").saturating_sub(before);
        println!("60 packed bodies of 8 MB: grew by {grown} KiB");
        assert!(grown < 80 * 1024, "grew by {grown} KiB");
    });
}

/// Whoever asks for large answers and reads none of them gets no more after a while; others do.
#[test]
fn answers_that_nobody_reads_have_their_share() {
    run(async {
        let database = Database::sqlite();
        let server = Server::start(&database);
        let (own, other) = (server.workspace().await, server.workspace().await);
        let note = "x".repeat(60_000);
        for workspace in [&own, &other] {
            workspace.meter("m", "sum").await;
            for _ in 0..5 {
                let event = json!({"meter": "m", "subject": "s", "quantity": 1, "metadata": {"note": note}});
                workspace.post("/v1/usages/bulk", &json!(vec![event; 100])).await.expect(201);
            }
        }
        // 30 MB each
        let path = "/v1/usageevents?limit=500";
        let head = format!(
            "GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: {}\r\n\r\n",
            own.header("authorization")
        );
        let mut unread = Vec::new();
        for _ in 0..8 {
            let mut connection = connect(server.http()).await;
            connection.write_all(head.as_bytes()).await.expect("sent");
            unread.push(connection);
        }
        let end = Instant::now() + Duration::from_secs(30);
        let refused = loop {
            let answer = own.get(path).await;
            if answer.status == 503 {
                break answer;
            }
            assert!(Instant::now() < end, "all is answered");
        };
        refused.try_again();
        own.get("/v1/usageevents?limit=1").await.expect(200);
        own.post("/v1/usages", &json!({"meter": "m", "subject": "s", "quantity": 1})).await.expect(201);
        other.get(path).await.expect(200);
        drop(unread);
        let end = Instant::now() + Duration::from_secs(30);
        while own.get(path).await.status != 200 {
            assert!(Instant::now() < end, "the room is given back");
        }
    });
}

/// Who has no key is told so before any of the body is read.
#[test]
fn a_body_without_a_caller_is_not_read() {
    run(async {
        let database = Database::sqlite();
        let server = Server::start(&database);
        for path in ["/v1/usages", "/v1/usages/bulk", "/v1/meters"] {
            let mut connection = connect(server.http()).await;
            let head = format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 8000000\r\n\r\n");
            connection.write_all(head.as_bytes()).await.expect("sent");
            let mut answer = [0; 12];
            let read = connection.read_exact(&mut answer);
            tokio::time::timeout(Duration::from_secs(4), read).await.expect("at once").expect("an answer");
            assert_eq!(&answer, b"HTTP/1.1 401", "{path}");
        }
    });
}

/// Streams that send more than there is room for are slowed down; all of it is stored in bounded memory.
#[test]
fn streams_share_a_bounded_room() {
    const STREAMS: usize = 40;
    const EVENTS: u64 = 15;
    run(async {
        let database = Database::sqlite();
        let server = Server::start_with(&database, &[("OPEN_SPANNER_STREAMS_MAX_BYTES", "4194304")]);
        let workspace = server.workspace().await;
        workspace.meter("m", "sum").await;
        let key = workspace.header("authorization");
        let address = format!("http://{}", server.grpc());
        let before = server.process_status("VmRSS:");
        let mut streams = Vec::new();
        for _ in 0..STREAMS {
            let channel = Channel::from_shared(address.clone())
                .expect("an address")
                .connect()
                .await
                .expect("it listens");
            let text = prost_types::value::Kind::StringValue("x".repeat(50_000));
            let metadata = [("x".to_string(), prost_types::Value { kind: Some(text) })];
            let event = UsageEventInput {
                subject: "s".into(),
                meter: "m".into(),
                quantity: 1.0,
                metadata: metadata.into_iter().collect(),
                ..Default::default()
            };
            let requests = (1..=EVENTS).map(move |sequence| IngestRequest {
                sequence,
                event: Some(event.clone()),
                ..Default::default()
            });
            let mut request = Request::new(tokio_stream::iter(requests));
            request.metadata_mut().insert("authorization", key.parse().expect("a header value"));
            streams.push(tokio::spawn(async move {
                let mut acks =
                    UsageStreamServiceClient::new(channel).ingest(request).await.expect("open").into_inner();
                let mut durable = 0;
                while let Some(ack) = acks.message().await.expect("an answer") {
                    durable = ack.durable_sequence;
                }
                durable
            }));
        }
        for stream in streams {
            assert_eq!(stream.await.expect("no panic"), EVENTS);
        }
        let grown = server.process_status("VmHWM:").saturating_sub(before);
        println!("{STREAMS} streams: grew by {grown} KiB");
        // 600 events of 50 kB are 30 MB on the wire, and several times that when they are all held at once
        assert!(grown < 100 * 1024, "grew by {grown} KiB");
        assert_eq!(database.count("events"), STREAMS as u64 * EVENTS);
    });
}

/// Sign-ins cost a password hash each: a crowd waits its turn, and others do not notice.
#[test]
fn a_crowd_signs_in() {
    run(async {
        let database = Database::sqlite();
        let server = Server::start(&database);
        let client = server.client();
        let email = crate::support::client::sign_up(&client).await;
        let crowd: Vec<_> = (0..140)
            .map(|_| {
                let (client, email) = (client.clone(), email.clone());
                let body = json!({"email": email, "password": crate::support::client::PASSWORD});
                tokio::spawn(async move { client.post("/v1/auth/sessions", &body).await.status })
            })
            .collect();
        client.get("/ready").await.expect(204);
        for one in crowd {
            assert_eq!(one.await.expect("no panic"), 201);
        }
    });
}
