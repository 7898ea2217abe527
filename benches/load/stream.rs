//! The gRPC stream: a client that sends messages made before the clock starts. The messages are written down here by
//! their field numbers, so that the benchmark measures the wire and not the server's own generated code.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use prost::Message;
use tokio::sync::Barrier;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

use crate::Outcome;
use crate::client::Load;
use crate::workload::Workload;

#[derive(Clone, PartialEq, Message)]
struct Input {
    #[prost(string, tag = "1")]
    idempotency_key: String,
    #[prost(string, tag = "2")]
    subject: String,
    #[prost(string, tag = "3")]
    meter: String,
    #[prost(double, tag = "4")]
    quantity: f64,
    #[prost(message, optional, tag = "5")]
    timestamp: Option<prost_types::Timestamp>,
    #[prost(map = "string, message", tag = "6")]
    metadata: HashMap<String, prost_types::Value>,
}

#[derive(Clone, PartialEq, Message)]
struct StreamRequest {
    #[prost(message, optional, tag = "1")]
    event: Option<Input>,
}

/// Only the counts; the lists are skipped.
#[derive(Clone, PartialEq, Message)]
struct StreamResponse {
    #[prost(int32, tag = "1")]
    accepted_count: i32,
    #[prost(int32, tag = "2")]
    duplicate_count: i32,
    #[prost(int32, tag = "3")]
    failed_count: i32,
}

const PATH: &str = "/open_spanner.v1.UsageService/StreamUsage";
/// A long stream's answer lists every event.
const ANSWER_BYTES_MAX: usize = 1 << 30;

/// The JSON form of an event, as the message of the stream.
fn message(event: &serde_json::Value) -> Outcome<StreamRequest> {
    let text = |name: &str| event[name].as_str().unwrap_or_default().to_owned();
    let at =
        open_spanner::metering::time::Timestamp::parse(&text("timestamp")).ok_or("a timestamp of our own")?.0;
    let value = |value: &serde_json::Value| prost_types::Value {
        kind: Some(prost_types::value::Kind::StringValue(value.as_str().unwrap_or_default().to_owned())),
    };
    let metadata = event["metadata"].as_object().into_iter().flatten();
    Ok(StreamRequest {
        event: Some(Input {
            idempotency_key: text("idempotency_key"),
            subject: text("subject"),
            meter: text("meter"),
            quantity: event["quantity"].to_string().parse()?,
            timestamp: Some(prost_types::Timestamp {
                seconds: at.div_euclid(1_000_000),
                nanos: (at.rem_euclid(1_000_000) * 1_000) as i32,
            }),
            metadata: metadata.map(|(name, field)| (name.clone(), value(field))).collect(),
        }),
    })
}

/// Sends events over so many streams at once, each a call of its own. Those that are there already do not count.
pub async fn run(
    address: SocketAddr,
    token: &str,
    workload: &Workload,
    streams: u64,
    numbers: Range<u64>,
) -> Outcome<Load> {
    let each = (numbers.end - numbers.start).div_ceil(streams);
    let start = Arc::new(Barrier::new(streams as usize + 1));
    let mut tasks = Vec::new();
    for number in 0..streams {
        let from = (numbers.start + number * each).min(numbers.end);
        let count = each.min(numbers.end - from);
        let (text, cents) = workload.bulk(from..from + count);
        let events: Vec<serde_json::Value> = serde_json::from_str(&text)?;
        let messages: Vec<StreamRequest> = events.iter().map(message).collect::<Outcome<_>>()?;
        let channel = Endpoint::from_shared(format!("http://{address}"))?.connect().await?;
        let authorization = MetadataValue::try_from(format!("Bearer {token}"))?;
        let start = start.clone();
        tasks.push(tokio::spawn(async move {
            start.wait().await;
            let started = Instant::now();
            let mut request = tonic::Request::new(tokio_stream::iter(messages));
            request.metadata_mut().insert("authorization", authorization);
            let answer = call(channel, request).await?;
            let events = answer.accepted_count as u64;
            if events + answer.duplicate_count as u64 != count {
                return Err(format!("not all accepted: {answer:?}").into());
            }
            let micros = vec![started.elapsed().as_micros() as u32];
            Outcome::Ok(Load { requests: 1, events, cents, micros, ..Load::default() })
        }));
    }
    start.wait().await;
    let started = Instant::now();
    let mut sum = Load::default();
    for task in tasks {
        sum.add(task.await??);
    }
    sum.elapsed = started.elapsed().max(Duration::from_micros(1));
    Ok(sum)
}

async fn call(
    channel: Channel,
    request: tonic::Request<impl tokio_stream::Stream<Item = StreamRequest> + Send + 'static>,
) -> Outcome<StreamResponse> {
    let mut client = Grpc::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
    client.ready().await?;
    let codec = ProstCodec::<StreamRequest, StreamResponse>::default();
    let answer = client.client_streaming(request, PathAndQuery::from_static(PATH), codec).await?;
    Ok(answer.into_inner())
}
