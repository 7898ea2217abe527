//! The gRPC door (grpc.md): listener, callers, statuses. API keys only; the rules and the way in are the same as
//! REST's. Streams are stored while they arrive; on shutdown they are given a moment to end by themselves.

mod ack;
mod admission;
pub(crate) mod convert;
mod messages;
mod observe;
mod parts;
pub mod pb;
mod turns;
mod usage;
pub(crate) mod weight;

use std::net::IpAddr;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::codegen::http::Request;
use tonic::server::NamedService;
use tonic::{Status, codec::CompressionEncoding::Gzip};
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tonic_types::{ErrorDetails, StatusExt};

use crate::app::App;
use crate::auth::permission::{Access, Role, Scope, allow};
use crate::auth::throttle::{client_address, tell_of_unnamed_proxy};
use crate::auth::{Caller, credentials_of};
use crate::error::{Error, Result};
use crate::net::{self, Peer, Port};
use admission::{Admission, Decoder, ForKeys, event_bytes};
use observe::Observed;
use pb::v1::usage_service_server::UsageServiceServer;
use pb::v2::usage_stream_service_server::UsageStreamServiceServer;

/// What every method demands.
const ACCESS: Access = Access::Key(&[Scope::UsageWrite], Role::Admin);

const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// Then new calls must connect anew and find other replicas; streams that are open go on.
const CONNECTION_AGE_MAX: Duration = Duration::from_secs(3600);
const STREAMS_PER_CONNECTION: u32 = 256;
/// What a client may send of one stream, and of all streams of a connection, while the server is busy.
const STREAM_WINDOW_BYTES: u32 = 128 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 2 * 1024 * 1024;
/// How long calls may go on once the server is asked to stop; streams end by themselves before that.
const STREAM_GRACE_MAX: Duration = Duration::from_secs(1);
/// What comes after that: last writes and answers.
const FINAL_RESPONSE_TIMEOUT: Duration = Duration::from_secs(2);
/// For the last bytes of a call on their way out, once it is answered.
const CLOSING_LINGER: Duration = Duration::from_millis(250);

/// The services' common ground. Cheap to clone.
#[derive(Clone)]
struct UsageServer {
    app: App,
    /// The server was asked to stop.
    stopping: CancellationToken,
    /// Streams must end now.
    cut: CancellationToken,
}

/// A running gRPC server.
pub struct Server {
    health: HealthReporter,
    stopping: CancellationToken,
    cut: CancellationToken,
    port: Port,
    serving: JoinHandle<()>,
}

/// Serves on a bound port, on the current runtime.
pub fn serve(app: &App, port: Port, listener: std::net::TcpListener) -> Result<Server> {
    listener.set_nonblocking(true).map_err(Error::internal)?;
    let listener = tokio::net::TcpListener::from_std(listener).map_err(Error::internal)?;
    let incoming = net::grpc::incoming(listener, port.clone());
    let (stopping, cut) = (CancellationToken::new(), CancellationToken::new());
    let door = UsageServer { app: app.clone(), stopping: stopping.clone(), cut: cut.clone() };
    let decoder = Decoder::start(app.bodies.clone(), app.config.ingest.max_body_bytes)?;
    let (health, health_service) = tonic_health::server::health_reporter();
    let router = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(PING_INTERVAL))
        .http2_keepalive_timeout(Some(PING_TIMEOUT))
        .max_connection_age(CONNECTION_AGE_MAX)
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .add_service(Observed(health_service))
        .add_service(Observed(ForKeys::new(app, reflection().build_v1().map_err(Error::internal)?)))
        .add_service(Observed(ForKeys::new(app, reflection().build_v1alpha().map_err(Error::internal)?)))
        .add_service(Observed(Admission {
            app: app.clone(),
            decoder: decoder.clone(),
            of_events: usage_service(&door, event_bytes(app)),
            of_bulks: usage_service(&door, app.config.ingest.max_body_bytes),
        }))
        .add_service(Observed(Admission {
            app: app.clone(),
            decoder,
            of_events: usage_stream_service(&door),
            of_bulks: usage_stream_service(&door),
        }));
    let (reporter, stop) = (health.clone(), stopping.clone());
    let serving = tokio::spawn(async move {
        report(&reporter, ServingStatus::Serving).await;
        if let Err(error) = router.serve_with_incoming_shutdown(incoming, stop.cancelled_owned()).await {
            log::error!(error:% = error; "grpc server failed");
        }
    });
    Ok(Server { health, stopping, cut, port, serving })
}

fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(pb::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}

fn usage_service(door: &UsageServer, message_bytes: usize) -> UsageServiceServer<UsageServer> {
    UsageServiceServer::new(door.clone())
        .max_decoding_message_size(message_bytes)
        .accept_compressed(Gzip)
        .send_compressed(Gzip)
}

fn usage_stream_service(door: &UsageServer) -> UsageStreamServiceServer<UsageServer> {
    UsageStreamServiceServer::new(door.clone())
        .max_decoding_message_size(event_bytes(&door.app))
        .accept_compressed(Gzip)
        .send_compressed(Gzip)
}

/// Tells health checks about the server as a whole and about each service.
async fn report(health: &HealthReporter, status: ServingStatus) {
    for name in ["", UsageServiceServer::<UsageServer>::NAME, UsageStreamServiceServer::<UsageServer>::NAME] {
        health.set_service_status(name, status).await;
    }
}

impl Server {
    /// Takes no more calls, lets those that are there finish, and ends streams that do not end by themselves.
    /// Connections without a call are closed whether or not their clients say good-bye.
    pub async fn stop(mut self, shutdown_timeout: Duration) {
        report(&self.health, ServingStatus::NotServing).await;
        self.stopping.cancel();
        let grace = STREAM_GRACE_MAX.min(shutdown_timeout / 2);
        if self.ends_within(grace).await {
            return;
        }
        self.cut.cancel();
        if !self.ends_within(FINAL_RESPONSE_TIMEOUT).await {
            log::warn!("some gRPC clients did not take their last answer");
            self.port.close_all();
            self.serving.abort();
        }
    }

    async fn ends_within(&mut self, time: Duration) -> bool {
        let close_idle = async {
            loop {
                self.port.close_idle(CLOSING_LINGER);
                tokio::time::sleep(CLOSING_LINGER / 5).await;
            }
        };
        tokio::select! {
            _ = &mut self.serving => true,
            () = close_idle => false,
            () = tokio::time::sleep(time) => false,
        }
    }
}

/// The API key of a call; asked again for every part of a stream, because keys expire and are revoked.
#[derive(Clone)]
struct ApiKeyAuth {
    app: App,
    key: String,
    address: IpAddr,
}

impl ApiKeyAuth {
    fn of<B>(app: &App, request: &Request<B>) -> Result<ApiKeyAuth> {
        let headers = request.headers();
        let peer = request.extensions().get::<Peer>().map_or(IpAddr::from([0, 0, 0, 0]), Peer::address);
        let lines = headers.get_all("x-forwarded-for").iter();
        let forwarded: Vec<_> = lines.map(|line| String::from_utf8_lossy(line.as_bytes())).collect();
        let forwarded = (!forwarded.is_empty()).then(|| forwarded.join(","));
        let trusted = &app.config.http.trusted_proxies;
        tell_of_unnamed_proxy(peer, trusted, forwarded.as_deref());
        let address = client_address(peer, trusted, forwarded.as_deref());
        let credentials = credentials_of(|name| headers.get(name).map(|value| value.as_bytes()));
        let key = credentials.key.ok_or_else(Error::unauthorized)?;
        Ok(ApiKeyAuth { app: app.clone(), key, address })
    }

    /// Whoever it is, whatever they may do.
    async fn known(&self) -> Result<Caller> {
        let caller = self.app.auth.by_key(&self.key).await?;
        caller.ensure_network_allowed(self.address)?;
        Ok(caller)
    }

    async fn caller(&self) -> Result<Caller> {
        let caller = self.known().await?;
        allow(&caller, &ACCESS)?;
        Ok(caller)
    }
}

/// An error as gRPC clients read it, with `google.rpc.RetryInfo` where another try makes sense.
fn status(error: Error) -> Status {
    let code = error.code.grpc_code();
    let Some(seconds) = error.retry_after_seconds else { return Status::new(code, error.message) };
    let details = ErrorDetails::with_retry_info(Some(Duration::from_secs(seconds)));
    Status::with_error_details(code, error.message, details)
}

fn stopping() -> Error {
    Error::unavailable("the server is stopping")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pushed_back_calls_say_when_to_come_again() {
        let pushed_back = status(Error::rate_limited(7));
        assert_eq!(pushed_back.code(), tonic::Code::ResourceExhausted);
        let delay = pushed_back.get_details_retry_info().and_then(|info| info.retry_delay);
        assert_eq!(delay, Some(Duration::from_secs(7)));
        assert_eq!(status(Error::queue_full()).code(), tonic::Code::ResourceExhausted);
        assert!(status(Error::queue_full()).get_details_retry_info().is_some());
        assert_eq!(status(Error::unavailable("x")).code(), tonic::Code::Unavailable);
    }

    #[test]
    fn causes_stay_inside() {
        let internal = status(Error::internal("relation \"events\" does not exist"));
        assert_eq!((internal.code(), internal.message()), (tonic::Code::Internal, "internal server error"));
        assert!(internal.details().is_empty());
    }
}
