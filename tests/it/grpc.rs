//! The gRPC door: streams that are stored while they arrive, their ends, and what clients can rely on afterwards.
//! `OPEN_SPANNER_TEST_STREAM_EVENTS` makes the long streams longer (a million takes minutes, and a release build).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use futures_util::{Stream, StreamExt};
use open_spanner::grpc::pb::v1::usage_service_client::UsageServiceClient;
use open_spanner::grpc::pb::v1::{self, UsageEventInput};
use open_spanner::grpc::pb::v2::outcome::Result as Fate;
use open_spanner::grpc::pb::v2::usage_stream_service_client::UsageStreamServiceClient;
use open_spanner::grpc::pb::v2::{IngestAck, IngestRequest};
use prost_types::value::Kind;
use prost_types::{Timestamp, Value};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, UnboundedReceiverStream};
use tonic::codec::CompressionEncoding::Gzip;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};
use tonic_types::StatusExt;

use crate::support::{Database, Server, Workspace, env, on_both_databases};

on_both_databases!(
    long_stream_is_stored_in_flat_memory,
    stream_is_resumed_after_a_kill,
    dry_stream_tells_and_stores_nothing,
    bad_events_far_into_a_stream_fail_alone,
    slow_reader_holds_only_itself,
    stream_that_never_ends_is_stored_all_the_same,
    disconnected_stream_loses_nothing_stored,
    keyed_streams_are_repeatable,
    refusals_end_a_stream_clearly,
    methods_that_there_are_not_are_told_to_everybody,
    values_that_cannot_be_stored_are_refused,
    messages_that_cannot_be_read_are_the_clients_fault,
    answers_stay_below_what_clients_take,
    push_back_says_when_to_come_again,
    what_is_stored_is_not_pushed_back,
);

/// How much the server may grow during a long stream, once a stream of a fifth of its length has gone before.
const GROWTH_MAX_KIB: u64 = 32 * 1024;
const NOON: i64 = 1_781_524_800;

fn stream_events() -> u64 {
    env("OPEN_SPANNER_TEST_STREAM_EVENTS").map_or(20_000, |text| text.parse().expect("a number"))
}

/// A workspace with the meter `load`, and clients for both services.
struct Door {
    server: Server,
    workspace: Workspace,
    key: MetadataValue<tonic::metadata::Ascii>,
}

impl Door {
    async fn open(database: &Database, settings: &[(&str, &str)]) -> Door {
        Door::on(Server::start_with(database, settings)).await
    }

    async fn on(server: Server) -> Door {
        let workspace = server.workspace().await;
        workspace.meter("load", "sum").await;
        let key = workspace.header("authorization").parse().expect("a header value");
        Door { server, workspace, key }
    }

    async fn channel(&self) -> Channel {
        let endpoint = Channel::from_shared(format!("http://{}", self.server.grpc())).expect("an address");
        endpoint.connect().await.expect("the server listens")
    }

    async fn usage(&self) -> UsageServiceClient<Channel> {
        UsageServiceClient::new(self.channel().await)
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", self.key.clone());
        request
    }

    async fn stream(
        &self,
        events: impl Stream<Item = UsageEventInput> + Send + 'static,
    ) -> Result<v1::StreamUsageResponse, Status> {
        let messages = events.map(|event| v1::StreamUsageRequest { event: Some(event) });
        Ok(self.usage().await.stream_usage(self.request(messages)).await?.into_inner())
    }

    async fn keyed_stream(
        &self,
        key: &str,
        events: Vec<UsageEventInput>,
    ) -> Result<v1::StreamUsageResponse, Status> {
        let messages = events.into_iter().map(|event| v1::StreamUsageRequest { event: Some(event) });
        let mut request = self.request(tokio_stream::iter(messages.collect::<Vec<_>>()));
        request.metadata_mut().insert("idempotency-key", key.parse().expect("a header value"));
        Ok(self.usage().await.stream_usage(request).await?.into_inner())
    }

    async fn create(&self, event: UsageEventInput) -> Result<v1::UsageEvent, Status> {
        let request = self.request(v1::CreateUsageRequest { event: Some(event) });
        Ok(self.usage().await.create_usage(request).await?.into_inner().event.expect("an event"))
    }

    async fn ingest(
        &self,
        requests: impl Stream<Item = IngestRequest> + Send + 'static,
    ) -> Result<Streaming<IngestAck>, Status> {
        let mut client = UsageStreamServiceClient::new(self.channel().await);
        Ok(client.ingest(self.request(requests)).await?.into_inner())
    }

    /// A client for another key of the same workspace.
    async fn with_new_key(self, body: serde_json::Value) -> Door {
        let made = self.workspace.session.post("/v1/auth/api-keys", &body).await.json(201);
        let key = format!("Bearer {}", made["key"].as_str().expect("the secret"));
        Door { key: key.parse().expect("a header value"), ..self }
    }
}

/// Event `n` counts 1 and has the key `n`.
fn event(number: u64) -> UsageEventInput {
    UsageEventInput { idempotency_key: format!("key-{number:09}"), ..keyless(number) }
}

fn keyless(number: u64) -> UsageEventInput {
    UsageEventInput {
        subject: format!("s{}", number % 50),
        meter: "load".into(),
        quantity: 1.0,
        timestamp: Some(Timestamp { seconds: NOON + (number / 1000) as i64 % 3600, nanos: 0 }),
        ..Default::default()
    }
}

fn runs(database: &Database) -> Vec<String> {
    database.lines(
        "SELECT kind || ' ' || accepted || ' ' || duplicates || ' ' || failed AS line FROM ingestion_runs ORDER BY id",
    )
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < end, "not within a minute: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn counts(answer: &v1::StreamUsageResponse) -> (i32, i32, i32) {
    (answer.accepted_count, answer.duplicate_count, answer.failed_count)
}

async fn long_stream_is_stored_in_flat_memory(database: Database) {
    let door = Door::open(&database, &[]).await;
    let count = stream_events();
    // caches fill once, whatever the length of a stream
    let warm_up = count / 5;
    door.stream(tokio_stream::iter((0..warm_up).map(keyless))).await.expect("stored");
    let early_kib = door.server.process_status("VmRSS:");
    let started = Instant::now();
    let stream = door.stream(tokio_stream::iter((0..count).map(event)));
    tokio::pin!(stream);
    let mut peak_kib = 0;
    let answer = loop {
        tokio::select! {
            answer = &mut stream => break answer.expect("stored"),
            () = tokio::time::sleep(Duration::from_millis(20)) => {
                peak_kib = peak_kib.max(door.server.process_status("VmRSS:"));
            }
        }
    };
    println!("{count} events in {:?}: {early_kib} KiB before, {peak_kib} KiB at most", started.elapsed());
    assert_eq!(counts(&answer), (count as i32, 0, 0));
    assert_eq!(answer.accepted.len(), 1000, "the list is bounded");
    assert_eq!(answer.accepted[999].idempotency_key, "key-000000999");
    assert!(peak_kib < early_kib + GROWTH_MAX_KIB, "memory grew from {early_kib} to {peak_kib} KiB");
    assert_eq!(database.count("events"), warm_up + count);
    assert_eq!(door.workspace.total("load").await, (warm_up + count).to_string());
    assert_eq!(runs(&database), [format!("stream {warm_up} 0 0"), format!("stream {count} 0 0")]);
}

/// Sends `first..count` until the stream breaks or is done; returns the highest acknowledged sequence.
async fn ingest_from(door: &Door, first: u64, count: u64, acked: &AtomicU64) -> Result<(), Status> {
    let requests = (first..count).map(|number| IngestRequest {
        sequence: number + 1,
        event: Some(event(number)),
        ..Default::default()
    });
    let mut acks = door.ingest(tokio_stream::iter(requests)).await?;
    while let Some(ack) = acks.message().await? {
        let mut expected = acked.load(Ordering::Relaxed);
        for outcome in &ack.outcomes {
            expected += 1;
            assert_eq!(outcome.sequence, expected, "every request is answered once, in order");
            assert_ne!(outcome.result(), Fate::Failed, "{outcome:?}");
        }
        assert_eq!(ack.durable_sequence, expected);
        acked.store(expected, Ordering::Relaxed);
    }
    Ok(())
}

async fn stream_is_resumed_after_a_kill(database: Database) {
    let mut door = Door::on(Server::start_to_be_restarted(&database)).await;
    let count = stream_events();
    let acked = AtomicU64::new(0);
    {
        let stream = ingest_from(&door, 0, count, &acked);
        tokio::pin!(stream);
        while acked.load(Ordering::Relaxed) < count / 3 {
            tokio::select! {
                ended = &mut stream => panic!("ended before the kill: {ended:?}"),
                () = tokio::time::sleep(Duration::from_millis(1)) => {}
            }
        }
    }
    let before_kill = acked.load(Ordering::Relaxed);
    door.server.kill();
    door.server.restart();
    let stored = database.count("events");
    assert!(stored >= before_kill, "{before_kill} acknowledged, only {stored} stored");
    ingest_from(&door, before_kill, count, &acked).await.expect("the rest is stored");
    assert_eq!(acked.load(Ordering::Relaxed), count);
    assert_eq!(database.count("events"), count, "all stored once");
    assert_eq!(database.count("idempotency_keys"), count);
    assert_eq!(door.workspace.total("load").await, count.to_string());
}

async fn bad_events_far_into_a_stream_fail_alone(database: Database) {
    let door = Door::open(&database, &[]).await;
    let count = stream_events();
    let middle = count / 2;
    let messages = (0..count).map(move |number| match number {
        _ if number == middle => v1::StreamUsageRequest { event: None },
        _ if number == middle + 1 => {
            v1::StreamUsageRequest { event: Some(UsageEventInput { quantity: -1.0, ..event(number) }) }
        }
        _ => v1::StreamUsageRequest { event: Some(event(number)) },
    });
    let request = door.request(tokio_stream::iter(messages));
    let answer = door.usage().await.stream_usage(request).await.expect("stored").into_inner();
    assert_eq!(counts(&answer), (count as i32 - 2, 0, 2));
    let failed: Vec<(i32, &str)> = answer.failed.iter().map(|f| (f.index, f.code.as_str())).collect();
    assert_eq!(failed, [(middle as i32, "invalid_input"), (middle as i32 + 1, "invalid_input")]);
    assert_eq!(database.count("events"), count - 2);
    assert_eq!(runs(&database), [format!("stream {} 0 2", count - 2)]);
}

async fn slow_reader_holds_only_itself(database: Database) {
    let door = Door::open(&database, &[]).await;
    let sent = Arc::new(AtomicU64::new(0));
    let counter = sent.clone();
    let count = 40_000;
    // windows of the client's own are small, so that few acknowledgements fit into them
    let endpoint = Channel::from_shared(format!("http://{}", door.server.grpc())).expect("an address");
    let channel = endpoint.initial_stream_window_size(65_535).connect().await.expect("the server listens");
    let requests = (0..count).map(move |number| {
        counter.store(number + 1, Ordering::Relaxed);
        // failures have the longest acknowledgements and need no database
        IngestRequest {
            sequence: number + 1,
            event: Some(UsageEventInput { meter: "x".repeat(200), ..keyless(number) }),
            ..Default::default()
        }
    });
    let mut client = UsageStreamServiceClient::new(channel);
    let request = door.request(tokio_stream::iter(requests));
    let mut acks = client.ingest(request).await.expect("it opens").into_inner();
    let mut last = 0;
    let stalled = loop {
        tokio::time::sleep(Duration::from_millis(700)).await;
        let now = sent.load(Ordering::Relaxed);
        if now == last && now > 0 {
            break now;
        }
        last = now;
    };
    assert!(stalled < count / 2, "the server read {stalled} requests although nobody read its answers");
    // others are served meanwhile
    door.create(keyless(1)).await.expect("stored");
    let mut answered = 0;
    while let Some(ack) = acks.message().await.expect("the stream goes on") {
        answered += ack.outcomes.len() as u64;
        assert_eq!(ack.durable_sequence, answered);
    }
    assert_eq!(answered, count);
}

async fn stream_that_never_ends_is_stored_all_the_same(database: Database) {
    let mut door = Door::open(&database, &[("OPEN_SPANNER_SHUTDOWN_TIMEOUT", "20s")]).await;
    let (sender, receiver) = mpsc::channel(100);
    let (ingest_sender, ingest_receiver) = mpsc::channel(100);
    let messages = ReceiverStream::new(receiver).map(|event| v1::StreamUsageRequest { event: Some(event) });
    let mut client = door.usage().await;
    let call = client.stream_usage(door.request(messages));
    let mut acks = door.ingest(ReceiverStream::new(ingest_receiver)).await.expect("it opens");
    let feed = async {
        for number in 0..30 {
            sender.send(event(number)).await.expect("the stream is open");
        }
        until("what was sent is stored", || database.count("events") == 30).await;
        let request = IngestRequest { sequence: 7, event: Some(event(100)), ..Default::default() };
        ingest_sender.send(request).await.expect("the stream is open");
        let ack = acks.message().await.expect("acknowledged").expect("one");
        assert_eq!((ack.durable_sequence, ack.outcomes[0].result()), (7, Fate::Accepted));
        door.server.ask_to_stop();
        let end = acks.message().await.expect_err("the server stops");
        assert_eq!(end.code(), Code::Unavailable);
        sender.send(event(30)).await.expect("the stream has a moment yet");
        // never half-closed
        std::future::pending::<()>().await
    };
    let end = tokio::select! {
        end = call => end.expect_err("cut off"),
        () = feed => unreachable!("the feed has no end"),
    };
    assert_eq!(end.code(), Code::Unavailable, "{end:?}");
    assert!(end.message().contains("31 events 31 are stored"), "{}", end.message());
    let retry = end.get_details_retry_info().expect("another try makes sense");
    assert!(retry.retry_delay.is_some());
    assert!(door.server.stopped().success());
    assert_eq!(database.count("events"), 32, "the last event before the end, too");
    assert!(runs(&database).contains(&"stream 31 0 0".to_string()), "{:?}", runs(&database));
}

async fn disconnected_stream_loses_nothing_stored(database: Database) {
    let door = Door::open(&database, &[]).await;
    let (sender, receiver) = mpsc::channel(100);
    let call = tokio::spawn({
        let messages =
            ReceiverStream::new(receiver).map(|event| v1::StreamUsageRequest { event: Some(event) });
        let (mut client, request) = (door.usage().await, door.request(messages));
        async move { client.stream_usage(request).await.map(drop) }
    });
    for number in 0..1500 {
        sender.send(event(number)).await.expect("the stream is open");
    }
    until("what was sent is stored", || database.count("events") == 1500).await;
    call.abort();
    let again = door.stream(tokio_stream::iter((0..2000).map(event))).await.expect("stored");
    assert_eq!(counts(&again), (500, 1500, 0), "duplicates, never doubles");
    assert_eq!(database.count("events"), 2000);
}

async fn keyed_streams_are_repeatable(database: Database) {
    let door = Door::open(&database, &[]).await;
    let timed = |number: u64| UsageEventInput {
        timestamp: Some(Timestamp { seconds: NOON, nanos: 123_456_000 }),
        ..keyless(number)
    };
    let thousand: Vec<UsageEventInput> = (0..1000).map(timed).collect();
    let first = door.keyed_stream("thousand", thousand.clone()).await.expect("stored");
    assert_eq!((counts(&first), first.accepted.len()), ((1000, 0, 0), 1000));
    let again = door.keyed_stream("thousand", thousand).await.expect("answered");
    assert_eq!(again, first, "the first answer, to the microsecond");
    assert_eq!(database.count("events"), 1000);

    let refused = door.keyed_stream("longer", (0..1500).map(keyless).collect()).await.expect_err("refused");
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(database.count("events"), 1000, "nothing of it is stored");

    let keyed: Vec<UsageEventInput> = (0..1500).map(event).collect();
    let first = door.keyed_stream("longer", keyed.clone()).await.expect("stored");
    assert_eq!(counts(&first), (1500, 0, 0));
    let again = door.keyed_stream("longer", keyed).await.expect("answered");
    assert_eq!(counts(&again), (0, 1500, 0), "each event by its own key");

    let mut twice = door.request(tokio_stream::iter([v1::StreamUsageRequest { event: Some(keyless(0)) }]));
    twice.metadata_mut().insert("idempotency-key", "one".parse().expect("a header value"));
    twice.metadata_mut().append("idempotency-key", "two".parse().expect("a header value"));
    let refused = door.usage().await.stream_usage(twice).await.expect_err("neither of them is taken");
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert_eq!(database.count("events"), 2500);
}

async fn refusals_end_a_stream_clearly(database: Database) {
    let settings = [
        ("OPEN_SPANNER_INGESTION_MAX_BODY_BYTES", "8192"),
        ("OPEN_SPANNER_INGESTION_MAX_STREAM_EVENTS", "3000"),
    ];
    let door = Door::open(&database, &settings).await;
    let large = || UsageEventInput { meter: "x".repeat(9000), ..keyless(0) };
    let refused = door.create(large()).await.expect_err("too large");
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    assert!(refused.get_details_retry_info().is_none(), "trying again is useless");
    let events = (0..600).map(event).chain([large()]);
    let refused = door.stream(tokio_stream::iter(events)).await.expect_err("too large");
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");

    let refused = door.stream(tokio_stream::iter((0..3001).map(event))).await.expect_err("too many");
    assert_eq!(refused.code(), Code::InvalidArgument);
    let stored = database.count("events");
    assert!(refused.message().contains(&format!("{stored} are stored")), "{stored}: {}", refused.message());

    door.workspace.meter("other", "sum").await;
    let body = json!({"name": "narrow", "scopes": ["usage:write"], "allowed_meters": ["load"]});
    let door = door.with_new_key(body).await;
    let foreign =
        |number| UsageEventInput { meter: "other".into(), idempotency_key: String::new(), ..event(number) };
    let refused = door.stream(tokio_stream::iter([event(0), foreign(1)])).await.expect_err("forbidden");
    assert_eq!(refused.code(), Code::PermissionDenied);
    let requests = [event(0), foreign(1), event(2)].into_iter().zip(1..);
    let requests = requests.map(|(event, sequence)| IngestRequest {
        sequence,
        event: Some(event),
        ..Default::default()
    });
    let mut acks = door.ingest(tokio_stream::iter(requests)).await.expect("it opens");
    let mut codes = Vec::new();
    while let Some(ack) = acks.message().await.expect("it goes on") {
        codes.extend(ack.outcomes.into_iter().map(|outcome| outcome.code));
    }
    assert_eq!(codes, ["", "forbidden", ""]);
    let backwards =
        [5, 5].map(|sequence| IngestRequest { sequence, event: Some(event(0)), ..Default::default() });
    let mut acks = door.ingest(tokio_stream::iter(backwards)).await.expect("it opens");
    let refused = loop {
        if let Err(status) = acks.message().await {
            break status;
        }
    };
    assert_eq!(refused.code(), Code::InvalidArgument);

    // without the scope nothing is read: the stream is refused while it is still open
    let door = door.with_new_key(json!({"name": "reader", "scopes": ["usage:read"]})).await;
    let refused = door.stream(tokio_stream::pending()).await.expect_err("forbidden");
    assert_eq!(refused.code(), Code::PermissionDenied);
    let refused = door.ingest(tokio_stream::pending()).await.expect_err("forbidden");
    assert_eq!(refused.code(), Code::PermissionDenied);
}

async fn dry_stream_tells_and_stores_nothing(database: Database) {
    let door = Door::open(&database, &[]).await;
    door.create(event(1)).await.expect("it is stored");
    let refused = UsageEventInput { quantity: -1.0, ..keyless(9) };
    let other = UsageEventInput { quantity: 2.0, ..event(1) };
    let requests = [event(0), event(1), other, refused].into_iter().zip(1..);
    let requests =
        requests.map(|(event, sequence)| IngestRequest { sequence, event: Some(event), dry_run: true });
    let mut acks = door.ingest(tokio_stream::iter(requests)).await.expect("it opens");
    let mut outcomes = Vec::new();
    while let Some(ack) = acks.message().await.expect("it goes on") {
        outcomes.extend(ack.outcomes);
    }
    let fates: Vec<(Fate, bool)> = outcomes.iter().map(|o| (o.result(), o.conflict)).collect();
    let expected =
        [(Fate::Accepted, false), (Fate::Duplicate, false), (Fate::Duplicate, true), (Fate::Failed, false)];
    assert_eq!(fates, expected);
    assert_eq!(outcomes[2].conflict_fields, ["quantity"]);
    let preview = outcomes[0].preview.as_ref().expect("a preview");
    assert_eq!((preview.dimension_set.as_str(), preview.changes[0].window.as_str()), ("{}", "hour"));
    assert_eq!(database.count("events"), 1);

    let mixed = [true, false].into_iter().zip(1..);
    let mixed =
        mixed.map(|(dry_run, sequence)| IngestRequest { sequence, event: Some(event(sequence)), dry_run });
    let mut acks = door.ingest(tokio_stream::iter(mixed)).await.expect("it opens");
    let refused = loop {
        if let Err(status) = acks.message().await {
            break status;
        }
    };
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(database.count("events"), 1);
}

async fn messages_that_cannot_be_read_are_the_clients_fault(database: Database) {
    let door = Door::open(&database, &[]).await;
    let metadata =
        |value: Value| UsageEventInput { metadata: [("k".to_string(), value)].into(), ..keyless(1) };
    for number in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let inner = prost_types::ListValue { values: vec![Value { kind: Some(Kind::NumberValue(number)) }] };
        for value in [Kind::NumberValue(number), Kind::ListValue(inner)] {
            let refused = door.create(metadata(Value { kind: Some(value) })).await.expect_err("refused");
            assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        }
    }
    let deep = |levels: usize| {
        (0..levels).fold(Value { kind: Some(Kind::BoolValue(true)) }, |inner, _| Value {
            kind: Some(Kind::ListValue(prost_types::ListValue { values: vec![inner] })),
        })
    };
    door.create(metadata(deep(30))).await.expect("stored");
    for levels in [100, 200] {
        let refused = door.create(metadata(deep(levels))).await.expect_err("refused");
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        let refused = door.stream(tokio_stream::iter([metadata(deep(levels))])).await.expect_err("refused");
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    }
    // keys that a library reserves are only keys
    let reserved = "$serde_json::private::RawValue".to_string();
    let fields = [(reserved.clone(), Value { kind: Some(Kind::StringValue("[[1]]".into())) })].into();
    let stored =
        door.create(metadata(Value { kind: Some(Kind::StructValue(prost_types::Struct { fields })) })).await;
    let kept = stored.expect("stored").metadata.remove("k").expect("kept");
    assert!(matches!(kept.kind, Some(Kind::StructValue(fields)) if fields.fields.contains_key(&reserved)));
    assert_eq!(database.count("events"), 2);
}

async fn answers_stay_below_what_clients_take(database: Database) {
    let door = Door::open(&database, &[]).await;
    let note = Value { kind: Some(Kind::StringValue("x".repeat(60_000))) };
    let events: Vec<UsageEventInput> = (0..100)
        .map(|number| UsageEventInput {
            metadata: [("note".to_string(), note.clone())].into(),
            ..event(number)
        })
        .collect();
    for duplicates in [0, 100] {
        let request = v1::CreateUsageBulkRequest { idempotency_key: String::new(), events: events.clone() };
        let mut client = door.usage().await.max_encoding_message_size(16 << 20);
        let answer =
            client.create_usage_bulk(door.request(request)).await.expect("at most 4 MiB").into_inner();
        assert_eq!((answer.duplicate_count, answer.accepted_count), (duplicates, 100 - duplicates));
        assert_eq!(answer.accepted.len() + answer.duplicates.len(), 100);
    }
    let answer = door.stream(tokio_stream::iter(events)).await.expect("at most 4 MiB");
    assert_eq!((answer.duplicate_count, answer.duplicates.len()), (100, 100));
}

/// Before anybody is asked for a key, as for a service that there is not.
async fn methods_that_there_are_not_are_told_to_everybody(database: Database) {
    let door = Door::open(&database, &[]).await;
    for (name, code) in [
        ("/open_spanner.v9.Nothing/Do", Code::Unimplemented),
        ("/open_spanner.v1.UsageService/NoSuchMethod", Code::Unimplemented),
        ("/open_spanner.v1.UsageService/Ingest", Code::Unimplemented),
        ("/open_spanner.v2.UsageStreamService/CreateUsage", Code::Unimplemented),
        ("/open_spanner.v1.UsageService/CreateUsage", Code::Unauthenticated),
    ] {
        let mut client = tonic::client::Grpc::new(door.channel().await);
        client.ready().await.expect("a connection");
        let codec = tonic_prost::ProstCodec::<v1::CreateUsageRequest, v1::CreateUsageResponse>::default();
        let path = tonic::codegen::http::uri::PathAndQuery::from_static(name);
        let answer = client.unary(Request::new(v1::CreateUsageRequest::default()), path, codec).await;
        assert_eq!(answer.expect_err("there is no key").code(), code, "{name}");
    }
}

async fn values_that_cannot_be_stored_are_refused(database: Database) {
    let door = Door::open(&database, &[]).await;
    for quantity in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let refused = door.create(UsageEventInput { quantity, ..keyless(1) }).await.expect_err("refused");
        assert_eq!(refused.code(), Code::InvalidArgument, "{quantity}");
    }
    let nul = Value { kind: Some(Kind::StringValue("a\0b".into())) };
    let with_nul = [
        UsageEventInput { subject: "a\0b".into(), ..keyless(1) },
        UsageEventInput { meter: "a\0b".into(), ..keyless(1) },
        UsageEventInput { idempotency_key: "a\0b".into(), ..keyless(1) },
        UsageEventInput { metadata: [("k".to_string(), nul)].into(), ..keyless(1) },
    ];
    for event in with_nul.clone() {
        let refused = door.create(event).await.expect_err("refused");
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    }
    assert_eq!(database.count("events"), 0);
    // among others they fail alone
    let events: Vec<UsageEventInput> = with_nul.into_iter().chain([keyless(1)]).collect();
    let bulk = v1::CreateUsageBulkRequest { idempotency_key: String::new(), events: events.clone() };
    let bulk =
        door.usage().await.create_usage_bulk(door.request(bulk)).await.expect("one is fine").into_inner();
    assert_eq!((bulk.accepted_count, bulk.failed_count), (1, 4));
    let stream = door.stream(tokio_stream::iter(events)).await.expect("one is fine");
    assert_eq!(counts(&stream), (1, 0, 4));
    let smallest = UsageEventInput { quantity: 5e-324, ..keyless(1) };
    assert_eq!(door.create(smallest).await.expect("stored").quantity, 5e-324);
}

async fn push_back_says_when_to_come_again(database: Database) {
    let settings = [
        ("OPEN_SPANNER_INGESTION_RATE_LIMIT_EVENTS", "1000"),
        ("OPEN_SPANNER_INGESTION_RATE_LIMIT_WINDOW", "2s"),
    ];
    let door = Door::open(&database, &settings).await;
    let mut from = 0;
    let mut pushed_back = 0;
    // the client of the documentation: after a push-back, wait and send what is not durable yet
    while from < 3000 {
        let requests = (from..3000).map(|number| IngestRequest {
            sequence: number + 1,
            event: Some(event(number)),
            ..Default::default()
        });
        let mut acks = door.ingest(tokio_stream::iter(requests)).await.expect("it opens");
        let end = loop {
            match acks.message().await {
                Ok(Some(ack)) => from = ack.durable_sequence,
                Ok(None) => break None,
                Err(status) => break Some(status),
            }
        };
        let Some(status) = end else { break };
        assert_eq!(status.code(), Code::ResourceExhausted);
        let delay = status.get_details_retry_info().and_then(|info| info.retry_delay).expect("a delay");
        pushed_back += 1;
        tokio::time::sleep(delay).await;
    }
    assert!(pushed_back > 0);
    assert_eq!(database.count("events"), 3000);
}

async fn what_is_stored_is_not_pushed_back(database: Database) {
    let settings = [
        ("OPEN_SPANNER_INGESTION_RATE_LIMIT_EVENTS", "10"),
        ("OPEN_SPANNER_INGESTION_RATE_LIMIT_WINDOW", "1h"),
    ];
    let door = Door::open(&database, &settings).await;
    let stored: Vec<_> = (0..30).map(event).collect();
    let bulk = || v1::CreateUsageBulkRequest { idempotency_key: "bulk".into(), events: stored.clone() };
    door.usage()
        .await
        .create_usage_bulk(door.request(bulk()))
        .await
        .expect("on credit: the allowance was whole");
    let refused = door.create(event(30)).await.expect_err("overdrawn");
    assert_eq!(refused.code(), Code::ResourceExhausted);
    for _ in 0..3 {
        door.create(event(7)).await.expect("the event that is stored");
        door.usage().await.create_usage_bulk(door.request(bulk())).await.expect("a replay");
        let keyless = v1::CreateUsageBulkRequest { idempotency_key: "other".into(), events: stored.clone() };
        let again = door.usage().await.create_usage_bulk(door.request(keyless)).await.expect("duplicates");
        assert_eq!(again.into_inner().duplicate_count, 30);
        let stream = door.stream(tokio_stream::iter(stored.clone())).await.expect("duplicates");
        assert_eq!(counts(&stream), (0, 30, 0));
        let requests = stored.clone().into_iter().zip(1..);
        let requests = requests.map(|(event, sequence)| IngestRequest {
            sequence,
            event: Some(event),
            ..Default::default()
        });
        let mut acks = door.ingest(tokio_stream::iter(requests.collect::<Vec<_>>())).await.expect("it opens");
        let mut durable = 0;
        while let Some(ack) = acks.message().await.expect("never pushed back") {
            durable = ack.durable_sequence;
        }
        assert_eq!(durable, 30);
    }
    assert_eq!(database.count("events"), 30);
}

#[test]
fn locked_postgres_table_is_unavailable() {
    crate::support::run(async {
        let database = Database::postgres();
        let door = Door::open(&database, &[]).await;
        let mut holder = database.postgres_connection();
        holder.batch_execute("BEGIN; LOCK TABLE events IN ACCESS EXCLUSIVE MODE").expect("the lock is free");
        let (single, stream) =
            tokio::join!(door.create(event(1)), door.stream(tokio_stream::iter((2..5).map(event))));
        for refused in [single.err(), stream.err()] {
            let status = refused.expect("nothing can be stored");
            assert_eq!(status.code(), Code::Unavailable, "{status}");
            assert!(status.get_details_retry_info().is_some_and(|info| info.retry_delay.is_some()));
        }
        holder.batch_execute("COMMIT").expect("the lock is ours");
        let stored = door.stream(tokio_stream::iter((1..5).map(event))).await.expect("it is stored");
        assert_eq!((stored.accepted_count, stored.duplicate_count), (4, 0), "the refusals left nothing");
    });
}

#[test]
fn health_reflection_and_gzip() {
    crate::support::run(async {
        use tonic_health::pb::health_client::HealthClient;
        use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};
        use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
        use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
        use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

        let database = Database::sqlite();
        let door = Door::open(&database, &[]).await;
        let channel = door.channel().await;
        for service in ["", "open_spanner.v1.UsageService", "open_spanner.v2.UsageStreamService"] {
            let request = HealthCheckRequest { service: service.into() };
            let health = HealthClient::new(channel.clone()).check(request).await.expect("it answers");
            assert_eq!(health.into_inner().status(), ServingStatus::Serving, "{service}");
        }
        let list = tonic_reflection::pb::v1::ServerReflectionRequest {
            message_request: Some(MessageRequest::ListServices(String::new())),
            ..Default::default()
        };
        let mut client = ServerReflectionClient::new(channel.clone());
        let refused = client.server_reflection_info(tokio_stream::iter([list.clone()])).await;
        assert_eq!(refused.expect_err("no key").code(), Code::Unauthenticated);
        let request = door.request(tokio_stream::iter([list]));
        let mut answers = client.server_reflection_info(request).await.expect("it answers").into_inner();
        let answer = answers.message().await.expect("an answer").expect("one").message_response;
        let Some(MessageResponse::ListServicesResponse(list)) = answer else { panic!("{answer:?}") };
        let names: BTreeSet<String> = list.service.into_iter().map(|service| service.name).collect();
        assert!(names.contains("open_spanner.v1.UsageService"), "{names:?}");

        let mut plain = UsageServiceClient::new(channel.clone()).accept_compressed(Gzip);
        let mut gzip = UsageServiceClient::new(channel).accept_compressed(Gzip).send_compressed(Gzip);
        let bulk = || v1::CreateUsageBulkRequest {
            idempotency_key: String::new(),
            events: (0..1000).map(keyless).collect(),
        };
        let compressed = gzip.create_usage_bulk(door.request(bulk())).await.expect("accepted");
        assert_eq!(
            compressed.metadata().get("grpc-encoding").map(|value| value.as_bytes()),
            Some(&b"gzip"[..])
        );
        assert_eq!(compressed.into_inner().accepted_count, 1000);
        let answer = plain.create_usage_bulk(door.request(bulk())).await.expect("accepted");
        assert!(answer.metadata().get("grpc-encoding").is_none(), "as the client, so the server");
    });
}

/// Streams of many clients at once, with calls between them: all are served, none is refused.
#[test]
fn many_streams_at_once() {
    crate::support::run(async {
        let database = Database::sqlite();
        let door = Arc::new(Door::open(&database, &[("OPEN_SPANNER_INGEST_QUEUE_EVENTS", "1000")]).await);
        let done = Arc::new(AtomicBool::new(false));
        let single = tokio::spawn({
            let (door, done) = (door.clone(), done.clone());
            async move {
                let mut count = 0;
                while !done.load(Ordering::Relaxed) {
                    door.create(keyless(count)).await.expect("streams leave room for others");
                    count += 1;
                }
                count
            }
        });
        let streams: Vec<_> = (0..20)
            .map(|client: u64| {
                let door = door.clone();
                let (sender, receiver) = mpsc::unbounded_channel();
                (0..1000).for_each(|number| sender.send(event(client * 1000 + number)).expect("open"));
                tokio::spawn(async move { door.stream(UnboundedReceiverStream::new(receiver)).await })
            })
            .collect();
        for stream in streams {
            let answer = stream.await.expect("no panic").expect("stored");
            assert_eq!((counts(&answer), answer.accepted.len()), ((1000, 0, 0), 1000));
        }
        done.store(true, Ordering::Relaxed);
        let singles = single.await.expect("no panic");
        assert_eq!(database.count("events"), 20_000 + singles);
    });
}
