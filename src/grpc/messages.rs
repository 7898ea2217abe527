//! The messages of a stream, one after the other. What has arrived of a large one is held in room that all streams share,
//! and no longer than a body may take; a message is unpacked within its limit and weighed before it is decoded. The
//! library would keep as much for an open stream as the largest message on it ever took, and count none of it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http_body_util::BodyExt;
use prost::Message;
use tonic::body::Body;
use tonic::codegen::http::Request;
use tonic::{Code, Status};

use crate::error::{Error, Result};
use crate::grpc::admission::{PREFIX_BYTES, too_large, unpack, unpacked_size};
use crate::grpc::{status, weight};
use crate::net::budget::{Budget, Room, Tenant};
use crate::net::upload::Upload;

/// A message up to this takes the room that the open stream has.
const SMALL_BYTES: usize = 16 * 1024;
/// Decoded: the event with the most values there may be weighs half of it.
const WEIGHT_MAX: usize = 4 * 1024 * 1024;
/// Smaller ones cannot weigh much.
const WEIGHED_FROM: usize = 1024;
/// How long a packed message may wait for room to be unpacked in.
const ROOM_TIMEOUT: Duration = Duration::from_secs(5);

/// What arrives on a stream.
pub struct Messages {
    body: Body,
    is_gzip: bool,
    /// Of one message, packed and unpacked.
    limit: usize,
    received: BytesMut,
    streams: Budget,
    tenant: Tenant,
    /// For the message that arrives, when it is a large one.
    room: Room,
    paid_bytes: usize,
    upload: Option<Upload>,
}

impl Messages {
    fn new(body: Body, is_gzip: bool, limit: usize, streams: &Budget, tenant: Tenant) -> Messages {
        let room = streams.room(tenant);
        let (streams, received) = (streams.clone(), BytesMut::new());
        Messages { body, is_gzip, limit, received, streams, tenant, room, paid_bytes: 0, upload: None }
    }

    /// The next one; `None` at the end. Can be dropped and called again.
    pub async fn next<M: Message + Default>(&mut self) -> Result<Option<M>, Status> {
        loop {
            if let Some(length) = self.length()? {
                self.make_room(length).await?;
                if self.received.len() >= length {
                    return self.take(length).await.map(Some);
                }
            }
            let Some(data) = self.data().await? else {
                return match self.received.is_empty() {
                    true => Ok(None),
                    false => Err(Status::internal("the stream ends within a message")),
                };
            };
            self.received.extend_from_slice(&data);
        }
    }

    /// Of the message that arrives, with its prefix, as soon as it is known.
    fn length(&self) -> Result<Option<usize>, Status> {
        let Some(prefix) = self.received.first_chunk::<PREFIX_BYTES>() else { return Ok(None) };
        let [flag, length @ ..] = *prefix;
        if flag > 1 || (flag == 1 && !self.is_gzip) {
            return Err(Status::internal("no message begins like this one"));
        }
        let length = u32::from_be_bytes(length) as usize;
        if length > self.limit { Err(too_large(self.limit)) } else { Ok(Some(PREFIX_BYTES + length)) }
    }

    /// Waits for room for so many bytes in all, unless they are few.
    async fn make_room(&mut self, bytes: usize) -> Result<(), Status> {
        if bytes <= SMALL_BYTES || bytes <= self.paid_bytes {
            return Ok(());
        }
        self.room.grow(bytes - self.paid_bytes).await.map_err(status)?;
        self.paid_bytes = bytes;
        // its time begins now: until there was room nothing of it was waited for
        let received = self.received.len();
        self.upload.get_or_insert_with(Upload::default).note(received);
        Ok(())
    }

    /// The next bytes; `None` at the end.
    async fn data(&mut self) -> Result<Option<Bytes>, Status> {
        loop {
            let frame = match &self.upload {
                Some(upload) => {
                    let late = || Status::deadline_exceeded("the message took too long");
                    upload.wait_for(self.body.frame()).await.ok_or_else(late)?
                }
                None => self.body.frame().await,
            };
            match frame {
                None => return Ok(None),
                // the client has gone: what came before counts
                Some(Err(status)) if status.code() == Code::Cancelled => {
                    self.received.clear();
                    return Ok(None);
                }
                Some(Err(status)) => return Err(status),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.upload.iter_mut().for_each(|upload| upload.note(data.len()));
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    /// Decodes the message that has arrived, and gives its room back.
    async fn take<M: Message + Default>(&mut self, length: usize) -> Result<M, Status> {
        let mut size = None;
        if self.received.first() == Some(&1) {
            let unpacked = unpacked_size(self.received.get(..length).unwrap_or_default(), self.limit)?;
            // it holds room already: whoever waits for more of it must not wait for ever
            let full = |_| status(Error::unavailable("too much is being sent at once"));
            let room = self.make_room(length + unpacked);
            tokio::time::timeout(ROOM_TIMEOUT, room).await.map_err(full)??;
            size = Some(unpacked);
        }
        let message = self.received.get(..length).unwrap_or_default();
        let decoded = match size {
            Some(size) => unpack(message, size).and_then(|message| decode(&message)),
            None => decode(message),
        };
        self.received.advance(length);
        if self.paid_bytes > 0 {
            // the memory of what comes next is its own
            self.received = BytesMut::from(&self.received[..]);
            (self.room, self.paid_bytes, self.upload) = (self.streams.room(self.tenant), 0, None);
        }
        decoded
    }
}

/// Of a message with its prefix.
fn decode<M: Message + Default>(message: &[u8]) -> Result<M, Status> {
    let message = message.get(PREFIX_BYTES..).unwrap_or_default();
    if message.len() > WEIGHED_FROM && weight::decoded(message) > WEIGHT_MAX {
        return Err(Status::resource_exhausted("the message holds too many values"));
    }
    M::decode(message).map_err(|error| Status::invalid_argument(error.to_string()))
}

/// The messages of a stream on their way from the door to the method, which takes them once.
#[derive(Clone)]
struct Upstream(Arc<Mutex<Option<Messages>>>);

/// Takes the messages out of a request of no more than `limit` bytes each; [`of`] finds them.
pub fn take_out(request: Request<Body>, limit: usize, streams: &Budget, tenant: Tenant) -> Request<Body> {
    let (mut parts, body) = request.into_parts();
    let is_gzip = parts.headers.get("grpc-encoding").is_some_and(|encoding| encoding == "gzip");
    let messages = Messages::new(body, is_gzip, limit, streams, tenant);
    parts.extensions.insert(Upstream(Arc::new(Mutex::new(Some(messages)))));
    Request::from_parts(parts, Body::empty())
}

/// The messages that were taken out of a request.
pub fn of<T>(request: &tonic::Request<T>) -> Result<Messages> {
    let upstream = request.extensions().get::<Upstream>();
    let taken =
        upstream.and_then(|upstream| upstream.0.lock().unwrap_or_else(PoisonError::into_inner).take());
    taken.ok_or_else(|| Error::internal("a stream without messages"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Write;

    use futures_util::{StreamExt, stream};
    use http_body_util::{Full, StreamBody};
    use prost_types::value::Kind;
    use prost_types::{ListValue, Value};

    use super::*;
    use crate::grpc::pb::v1::{StreamUsageRequest, UsageEventInput};

    const KIB: usize = 1024;
    const SHORT: Duration = Duration::from_millis(20);

    fn event(kind: Kind) -> StreamUsageRequest {
        let metadata = BTreeMap::from([("a".to_owned(), Value { kind: Some(kind) })]);
        StreamUsageRequest { event: Some(UsageEventInput { metadata, ..Default::default() }) }
    }

    fn text(bytes: usize) -> StreamUsageRequest {
        event(Kind::StringValue("x".repeat(bytes)))
    }

    fn frame(message: &StreamUsageRequest) -> Vec<u8> {
        let message = message.encode_to_vec();
        [&[0], (message.len() as u32).to_be_bytes().as_slice(), &message].concat()
    }

    fn packed(message: &StreamUsageRequest) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&message.encode_to_vec()).expect("written");
        let message = encoder.finish().expect("finished");
        [&[1], (message.len() as u32).to_be_bytes().as_slice(), &message].concat()
    }

    /// The bytes in pieces, and then the end of the stream, or nothing more.
    async fn messages(bytes: &[u8], ends: bool, budget: &Budget) -> Messages {
        let mut pieces = Vec::new();
        for piece in bytes.chunks(1_000) {
            let frame = Full::new(Bytes::copy_from_slice(piece)).frame().await.expect("one frame");
            pieces.push(Ok::<_, Status>(frame.expect("it cannot fail")));
        }
        let pieces = stream::iter(pieces);
        let body = match ends {
            true => Body::new(StreamBody::new(pieces)),
            false => Body::new(StreamBody::new(pieces.chain(stream::pending()))),
        };
        Messages::new(body, true, KIB * KIB, budget, Tenant::Workspace(1))
    }

    #[tokio::test]
    async fn messages_come_out_as_they_went_in() {
        let budget = Budget::new(KIB * KIB);
        let sent = [text(3), text(100_000), text(0), text(20_000), text(5)];
        let bytes: Vec<u8> =
            sent.iter().flat_map(|message| [frame(message), packed(message)].concat()).collect();
        let mut messages = messages(&bytes, true, &budget).await;
        for message in &sent {
            for _ in 0..2 {
                let next = messages.next::<StreamUsageRequest>().await.expect("undamaged");
                assert_eq!(next.as_ref(), Some(message));
            }
        }
        assert_eq!(messages.next::<StreamUsageRequest>().await.expect("the end"), None);
        assert_eq!(messages.paid_bytes, 0, "all is given back");
    }

    #[tokio::test]
    async fn what_no_event_needs_is_not_decoded() {
        let budget = Budget::new(8 * KIB * KIB);
        let empty = event(Kind::ListValue(ListValue { values: vec![Value::default(); 400_000] }));
        for bytes in [frame(&empty), packed(&empty), packed(&text(2 * KIB * KIB)), vec![0, 255, 0, 0, 0]] {
            let refused = messages(&bytes, true, &budget).await.next::<StreamUsageRequest>().await;
            assert_eq!(refused.expect_err("refused").code(), Code::ResourceExhausted);
        }
        let cut_off = &frame(&text(100))[..50];
        let refused = messages(cut_off, true, &budget).await.next::<StreamUsageRequest>().await;
        assert_eq!(refused.expect_err("refused").code(), Code::Internal);
    }

    /// Whoever begins large messages and does not end them has their share, and others have room.
    #[tokio::test]
    async fn large_messages_share_a_bounded_room() {
        let budget = Budget::new(256 * KIB);
        let whole = frame(&text(100 * KIB));
        let begun = &whole[..30 * KIB];
        let mut first = messages(begun, false, &budget).await;
        let next = tokio::time::timeout(SHORT, first.next::<StreamUsageRequest>()).await;
        assert!(next.is_err() && first.paid_bytes == whole.len(), "it waits for the rest");
        let mut second = messages(&whole, true, &budget).await;
        let next = tokio::time::timeout(SHORT, second.next::<StreamUsageRequest>()).await;
        assert!(next.is_err() && second.paid_bytes == 0, "no room");
        assert!(second.received.len() <= SMALL_BYTES, "little is read meanwhile");
        let mut small = messages(&frame(&text(10 * KIB)), true, &budget).await;
        assert!(small.next::<StreamUsageRequest>().await.expect("it needs none").is_some());
        let mut other = messages(&whole, true, &budget).await;
        other.tenant = Tenant::Workspace(2);
        other.room = budget.room(other.tenant);
        assert!(other.next::<StreamUsageRequest>().await.expect("room of others").is_some());
        drop(first);
        assert!(second.next::<StreamUsageRequest>().await.expect("room again").is_some());
    }
}
