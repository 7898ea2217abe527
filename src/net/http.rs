//! HTTP/1 over the connections of a [`Port`]: what `actix_web::HttpServer` does, with every socket passing the port
//! first.

use std::fmt::Debug;
use std::io;
use std::net::TcpListener;
use std::time::Duration;

use actix_http::body::MessageBody;
use actix_http::error::DispatchError;
use actix_http::{HttpService, Protocol, Request, Response};
use actix_server::ServerHandle;
use actix_service::{IntoServiceFactory, Service, ServiceFactory, ServiceFactoryExt, fn_service, map_config};
use actix_web::dev::AppConfig;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::net::{Connection, Port};

/// A client that is silent between two requests is kept this long.
const KEEP_ALIVE: Duration = Duration::from_secs(120);
/// The head of a request must be there within this time.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// A running server.
#[derive(Clone)]
pub struct Server {
    handle: ServerHandle,
    stopping: CancellationToken,
}

impl Server {
    /// Ends at once, or (`graceful`) when the requests that have begun are answered or the time given at the start is
    /// over. Connections without a request are closed at once.
    pub async fn stop(&self, graceful: bool) {
        self.stopping.cancel();
        self.handle.stop(graceful).await;
    }
}

/// Serves the application on a bound port, on threads of its own.
pub fn serve<F, I, S, B>(
    application: F,
    listener: TcpListener,
    port: Port,
    threads: usize,
    shutdown_timeout: Duration,
) -> io::Result<Server>
where
    F: Fn() -> I + Send + Clone + 'static,
    I: IntoServiceFactory<S, Request>,
    S: ServiceFactory<Request, Config = AppConfig> + 'static,
    S::Error: Into<actix_web::Error> + 'static,
    S::InitError: Debug,
    S::Response: Into<Response<B>> + 'static,
    <S::Service as Service<Request>>::Future: 'static,
    S::Service: 'static,
    B: MessageBody + 'static,
{
    let stopping = CancellationToken::new();
    let signal = stopping.clone();
    let server = actix_server::Server::build()
        .workers(threads)
        .shutdown_timeout(shutdown_timeout.as_secs().max(1))
        .disable_signals()
        .listen("http", listener, move || {
            let (port, signal) = (port.clone(), signal.clone());
            let application = application().into_factory().map_err(|error| error.into().error_response());
            let http = HttpService::build()
                .keep_alive(KEEP_ALIVE)
                .client_request_timeout(HEAD_TIMEOUT)
                .client_disconnect_timeout(HEAD_TIMEOUT)
                .graceful_shutdown_signal(move || signal.clone().cancelled_owned())
                .on_connect_ext(|connection: &Connection, data| {
                    data.insert(connection.peer().clone());
                })
                .finish(map_config(application, |()| AppConfig::default()));
            fn_service(move |stream: TcpStream| std::future::ready(take_in(&port, stream))).and_then(http)
        })?
        .run();
    let handle = server.handle();
    tokio::spawn(server);
    Ok(Server { handle, stopping })
}

type Admitted = (Connection, Protocol, Option<std::net::SocketAddr>);

fn take_in(port: &Port, stream: TcpStream) -> Result<Admitted, DispatchError> {
    let address = stream.peer_addr().map_err(DispatchError::Io)?;
    let connection = port.admit(stream, address);
    let connection = connection.ok_or_else(|| DispatchError::Io(io::ErrorKind::ConnectionRefused.into()))?;
    Ok((connection, Protocol::Http1, Some(address)))
}
