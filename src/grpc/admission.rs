//! What stands between a call and its method. Who calls is found out from the headers, before anything of the message
//! is read. The message of a call that is not a stream is then taken in within bounds: bytes in flight, time, size
//! once unpacked; those of a stream have bounds of their own ([`messages`]). Large ones are unpacked and decoded on
//! threads of their own, a few at once, because both cost many times what sending them does.

use std::convert::Infallible;
use std::io::Read;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body_util::{BodyExt, Full};
use tokio::runtime::{Builder, Runtime};
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::codegen::http::{Request, Response};
use tonic::server::NamedService;

use crate::app::App;
use crate::auth::Caller;
use crate::error::{Error, Result};
use crate::grpc::turns::Turns;
use crate::grpc::{ApiKeyAuth, messages, status, weight};
use crate::logging::spans;
use crate::net::Peer;
use crate::net::budget::{Budget, Room, Tenant};
use crate::net::upload::Upload;

/// Largest message of one event, unpacked: an event with the most metadata there may be is half of it.
const EVENT_BYTES_MAX: usize = 1024 * 1024;
/// Larger messages are not decoded on the threads that serve connections.
const INLINE_BYTES: usize = 32 * 1024;
/// What is decoded at once weighs as much as so many messages of the largest size; those of one caller half of it. Events
/// with the most values there may be weigh thirteen times their size; empty values, which nobody needs, more than any
/// caller may have.
const DECODED_MESSAGES: usize = 32;
/// What a call takes beside its headers while its message is waited for.
const CALL_BYTES: usize = 4 * 1024;
/// How long a message may wait for room.
const ROOM_TIMEOUT: Duration = Duration::from_secs(5);
/// Of a message: a flag and its length.
pub const PREFIX_BYTES: usize = 5;

/// Largest message of one event, under the operator's own limit.
pub fn event_bytes(app: &App) -> usize {
    EVENT_BYTES_MAX.min(app.config.ingest.max_body_bytes)
}

/// Who calls, as methods find it in the extensions of a request.
#[derive(Clone)]
pub struct Admitted {
    pub pass: ApiKeyAuth,
    pub caller: Caller,
}

impl Admitted {
    pub fn of<T>(request: &tonic::Request<T>) -> Result<Admitted> {
        request.extensions().get::<Admitted>().cloned().ok_or_else(Error::unauthorized)
    }
}

/// A service whose calls are admitted. There are two of the same, which differ in what size of a message they take.
#[derive(Clone)]
pub struct Admission<S> {
    pub app: App,
    pub decoder: Decoder,
    pub of_events: S,
    pub of_bulks: S,
}

/// How a method takes its message.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Message {
    Event,
    Bulk,
    Stream,
}

impl Message {
    /// That of the method with this path; none where there is no such method.
    fn of(path: &str) -> Option<Message> {
        match path {
            "/open_spanner.v1.UsageService/CreateUsage" => Some(Message::Event),
            "/open_spanner.v1.UsageService/CreateUsageBulk" => Some(Message::Bulk),
            "/open_spanner.v1.UsageService/StreamUsage" | "/open_spanner.v2.UsageStreamService/Ingest" => {
                Some(Message::Stream)
            }
            _ => None,
        }
    }
}

impl<S: NamedService> NamedService for Admission<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for Admission<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let Some(message) = Message::of(request.uri().path()) else {
            // like a service that there is not: nobody is asked who they are (grpc.md 9)
            let refusal: Response<Body> = Status::unimplemented("there is no such method").into_http();
            return Box::pin(async move { Ok(refusal) });
        };
        let (app, decoder) = (self.app.clone(), self.decoder.clone());
        let service = if message == Message::Bulk { self.of_bulks.clone() } else { self.of_events.clone() };
        Box::pin(async move {
            let answer = async {
                let tenant = admit(&app, &mut request).await.map_err(status)?;
                match message {
                    Message::Stream => {
                        let most = event_bytes(&app);
                        let request = messages::take_out(request, most, &app.streams, tenant);
                        Ok(forward(service, request).await)
                    }
                    Message::Event => decoder.call(service, request, event_bytes(&app), tenant).await,
                    Message::Bulk => {
                        let most = app.config.ingest.max_body_bytes;
                        decoder.call(service, request, most, tenant).await
                    }
                }
            };
            Ok(answer.await.unwrap_or_else(|status: Status| status.into_http()))
        })
    }
}

/// Finds out who calls and whether they may.
async fn admit(app: &App, request: &mut Request<Body>) -> Result<Tenant> {
    let pass = ApiKeyAuth::of(app, request)?;
    let caller = pass.caller().await?;
    if let Some(peer) = request.extensions().get::<Peer>() {
        peer.note_known();
    }
    let tenant = Tenant::Workspace(caller.workspace_id);
    spans::called_by(&caller.user.workspace_id, pass.address);
    request.extensions_mut().insert(Admitted { pass, caller });
    Ok(tenant)
}

async fn forward<S>(mut service: S, request: Request<Body>) -> Response<Body>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    match service.call(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

/// A service for everybody who has an API key, whatever it may do: who cannot call cannot look around either.
#[derive(Clone)]
pub struct ForKeys<S> {
    app: App,
    service: S,
}

impl<S> ForKeys<S> {
    pub fn new(app: &App, service: S) -> Self {
        ForKeys { app: app.clone(), service }
    }
}

impl<S: NamedService> NamedService for ForKeys<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for ForKeys<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (app, service) = (self.app.clone(), self.service.clone());
        Box::pin(async move {
            let pass = ApiKeyAuth::of(&app, &request);
            let known = match pass {
                Ok(pass) => pass.known().await,
                Err(error) => Err(error),
            };
            match known {
                Ok(_) => Ok(forward(service, request).await),
                Err(error) => Ok(status(error).into_http()),
            }
        })
    }
}

/// Takes in whole messages. Cheap to clone.
#[derive(Clone)]
pub struct Decoder {
    threads: Arc<Threads>,
    turns: Turns,
    in_flight: Budget,
    decoding: Budget,
    /// What one message may weigh.
    heaviest: usize,
}

/// A runtime that may be dropped anywhere.
struct Threads(Option<Runtime>);

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl Decoder {
    /// `in_flight`: the room for bytes that arrive, shared with other ports; `largest`: the size of a message at most.
    pub fn start(in_flight: Budget, largest: usize) -> Result<Decoder> {
        // half of the processors, so that a flood of large messages leaves the other half to everybody else
        let count = std::thread::available_parallelism().map_or(1, |count| (count.get() / 2).max(1));
        let runtime = Builder::new_multi_thread()
            .worker_threads(count)
            .thread_name("grpc-decoder")
            .enable_all()
            .build()
            .map_err(Error::internal)?;
        let bytes = largest.saturating_mul(DECODED_MESSAGES);
        let (decoding, heaviest) = (Budget::new(bytes), bytes / 2);
        let (threads, turns) = (Arc::new(Threads(Some(runtime))), Turns::new(count));
        Ok(Decoder { threads, turns, in_flight, decoding, heaviest })
    }

    async fn call<S>(
        &self,
        service: S,
        request: Request<Body>,
        limit: usize,
        tenant: Tenant,
    ) -> Result<Response<Body>, Status>
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Send + 'static,
        S::Future: Send,
    {
        let (parts, body) = request.into_parts();
        let is_gzip = parts.headers.get("grpc-encoding").is_some_and(|encoding| encoding == "gzip");
        let head = parts.headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        let (message, in_flight) = self.receive(body, head, limit, tenant).await?;
        let is_packed = is_gzip && message.first() == Some(&1);
        if !is_packed && message.len() <= INLINE_BYTES {
            let request = Request::from_parts(parts, Body::new(Full::new(message)));
            return Ok(forward(service, request).await);
        }
        let size = if is_packed { unpacked_size(&message, limit)? } else { message.len() };
        let mut room = self.decoding.room(tenant);
        room.grow_within(ROOM_TIMEOUT, size).await.map_err(status)?;
        let (heaviest, turns) = (self.heaviest, self.turns.clone());
        let work = async move {
            let turn = turns.take(tenant).await;
            let message = if is_packed { unpack(&message, size)? } else { message };
            drop(in_flight);
            let weight = weight::decoded(message.get(PREFIX_BYTES..).unwrap_or_default());
            // nobody waits for room in a turn: those who have it may wait for theirs
            drop(turn);
            if weight > heaviest {
                return Err(Status::resource_exhausted(
                    "the message holds too many values: send fewer events in one",
                ));
            }
            room.grow_within(ROOM_TIMEOUT, weight.saturating_sub(size)).await.map_err(status)?;
            let turn = turns.take(tenant).await;
            // the library lets go of a body when its message is decoded
            let body = Full::new(message).map_frame(move |frame| {
                let _until_decoded = &turn;
                frame
            });
            let response = forward(service, Request::from_parts(parts, Body::new(body))).await;
            drop(room);
            Ok(response)
        };
        let Some(threads) = &self.threads.0 else { return Err(status(crate::grpc::stopping())) };
        let task = AbortOnDropHandle::new(threads.spawn(spans::carried(work)));
        task.await.unwrap_or_else(|panic| Err(status(Error::internal(panic))))
    }

    /// All bytes of the call, which are those of one message. `head`: bytes of its headers.
    async fn receive(
        &self,
        mut body: Body,
        head: usize,
        limit: usize,
        tenant: Tenant,
    ) -> Result<(Bytes, Room), Status> {
        let mut room = self.in_flight.room(tenant);
        room.grow_within(ROOM_TIMEOUT, CALL_BYTES + head).await.map_err(status)?;
        let (mut received, mut upload) = (Vec::new(), Upload::default());
        loop {
            let late = || Status::deadline_exceeded("the message took too long");
            let Some(frame) = upload.wait_for(body.frame()).await.ok_or_else(late)? else { break };
            let Ok(data) = frame?.into_data() else { continue };
            if received.len() + data.len() > limit + PREFIX_BYTES {
                return Err(too_large(limit));
            }
            room.grow_within(ROOM_TIMEOUT, data.len()).await.map_err(status)?;
            upload.note(data.len());
            received.extend_from_slice(&data);
        }
        Ok((received.into(), room))
    }
}

pub fn too_large(limit: usize) -> Status {
    Status::resource_exhausted(format!("the message is larger than {limit} bytes"))
}

/// What a packed message says of its own size, at its end.
pub fn unpacked_size(message: &[u8], limit: usize) -> Result<usize, Status> {
    let last = message.last_chunk::<4>().filter(|_| message.len() > PREFIX_BYTES + 18);
    let size = u32::from_le_bytes(*last.ok_or_else(damaged)?) as usize;
    if size > limit { Err(too_large(limit)) } else { Ok(size) }
}

/// The same message as if it had been sent unpacked. Stops at the size that it claimed to have.
pub fn unpack(message: &[u8], size: usize) -> Result<Bytes, Status> {
    let packed = message.get(PREFIX_BYTES..).unwrap_or_default();
    let mut unpacked = Vec::with_capacity(PREFIX_BYTES + size);
    unpacked.push(0);
    unpacked.extend_from_slice(&(size as u32).to_be_bytes());
    let mut reader = flate2::read::GzDecoder::new(packed).take(size as u64 + 1);
    reader.read_to_end(&mut unpacked).map_err(|_| damaged())?;
    if unpacked.len() == PREFIX_BYTES + size { Ok(unpacked.into()) } else { Err(damaged()) }
}

fn damaged() -> Status {
    Status::invalid_argument("the compressed message is damaged")
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn packed(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(vec![1, 0, 0, 0, 0], flate2::Compression::fast());
        encoder.write_all(bytes).expect("written");
        encoder.finish().expect("finished")
    }

    #[test]
    fn packed_messages_come_out_as_they_went_in() {
        let bytes = b"some bytes ".repeat(100);
        let message = packed(&bytes);
        let size = unpacked_size(&message, bytes.len()).expect("within the limit");
        let unpacked = unpack(&message, size).expect("undamaged");
        assert_eq!(&unpacked[..5], [0, 0, 0, (size >> 8) as u8, size as u8]);
        assert_eq!(&unpacked[5..], bytes);
    }

    #[test]
    fn a_message_that_lies_about_its_size_is_refused() {
        let bytes = vec![0; 1_000_000];
        let mut message = packed(&bytes);
        assert_eq!(unpacked_size(&message, 999_999).unwrap_err().code(), tonic::Code::ResourceExhausted);
        let end = message.len();
        message[end - 4..].copy_from_slice(&100_u32.to_le_bytes());
        let size = unpacked_size(&message, 1000).expect("so it says");
        assert_eq!(unpack(&message, size).unwrap_err().code(), tonic::Code::InvalidArgument);
        assert!(unpack(&message[..end - 30], 1_000_000).is_err());
        assert!(unpacked_size(&[1, 0, 0, 0, 0, 9, 0, 0, 0], 1000).is_err());
    }
}
