//! The connections of the gRPC listener, as its server takes them.

use std::io;
use std::time::Duration;

use futures_util::{Stream, stream};
use tokio::net::TcpListener;
use tonic::transport::server::Connected;

use crate::net::{Connection, Patience, Peer, Port, concerns_one_connection};

/// The preface of HTTP/2 and the frame that has to follow it.
const HANDSHAKE_BYTES: usize = 24 + 9;

/// A client that connects says so within seconds, and makes a call within a minute.
pub const PATIENCE: Patience = Patience {
    handshake: Some((HANDSHAKE_BYTES, Duration::from_secs(8))),
    first_call: Some(Duration::from_secs(60)),
};

/// Out of files or memory: accepting again at once would only burn the processor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer().clone()
    }
}

/// What the port admits of what the listener accepts.
pub fn incoming(listener: TcpListener, port: Port) -> impl Stream<Item = io::Result<Connection>> {
    stream::unfold((listener, port), async |(listener, port)| {
        loop {
            port.others_left().await;
            match listener.accept().await {
                Ok((stream, address)) => {
                    if let Some(connection) = port.admit(stream, address) {
                        return Some((Ok(connection), (listener, port)));
                    }
                }
                Err(error) if concerns_one_connection(&error) => {}
                Err(error) => {
                    log::warn!(error:% = error; "gRPC connections cannot be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    })
}
