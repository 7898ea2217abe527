//! One connection: bytes in and out, a note of when something was last heard, and an end when it is told to close,
//! when its client stays silent too long, or when its client does not take what is sent.

use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

use crate::clock;
use crate::net::{Patience, Port};

/// A client that takes nothing of what is sent for this long has its connection cut.
const WRITE_STALL: Duration = Duration::from_secs(60);

/// What is known about the other end of a connection. Cheap to clone.
#[derive(Clone)]
pub struct Peer(Arc<State>);

struct State {
    id: u64,
    group: IpAddr,
    address: IpAddr,
    open_calls: AtomicUsize,
    /// A caller was authenticated here once.
    is_known: AtomicBool,
    last_active_ms: AtomicU64,
    is_closed: AtomicBool,
    reader: AtomicWaker,
}

/// Milliseconds of this process, for comparing idle times.
fn now_ms() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(clock::moment);
    clock::since(*START).as_millis() as u64
}

impl Peer {
    pub(super) fn new(id: u64, group: IpAddr, address: IpAddr) -> Self {
        Peer(Arc::new(State {
            id,
            group,
            address: address.to_canonical(),
            open_calls: AtomicUsize::new(0),
            is_known: AtomicBool::new(false),
            last_active_ms: AtomicU64::new(now_ms()),
            is_closed: AtomicBool::new(false),
            reader: AtomicWaker::new(),
        }))
    }

    pub(super) fn id(&self) -> u64 {
        self.0.id
    }

    pub(super) fn group(&self) -> IpAddr {
        self.0.group
    }

    /// Who is at the other end of the connection itself, a proxy perhaps.
    pub fn address(&self) -> IpAddr {
        self.0.address
    }

    pub(super) fn last_active_ms(&self) -> u64 {
        self.0.last_active_ms.load(Ordering::Relaxed)
    }

    /// Counts a call until the guard is dropped; meanwhile the connection is not idle.
    pub fn begin_call(&self) -> OpenCall {
        self.0.open_calls.fetch_add(1, Ordering::AcqRel);
        OpenCall(self.clone())
    }

    /// A caller was authenticated: the connection may be silent between calls.
    pub fn note_known(&self) {
        self.0.is_known.store(true, Ordering::Release);
    }

    pub(super) fn is_idle(&self) -> bool {
        self.0.open_calls.load(Ordering::Acquire) == 0
    }

    pub(super) fn is_idle_for(&self, time: Duration) -> bool {
        self.is_idle() && now_ms().saturating_sub(self.last_active_ms()) >= time.as_millis() as u64
    }

    /// The reader of the connection sees its end.
    pub(super) fn close(&self) {
        self.0.is_closed.store(true, Ordering::Release);
        self.0.reader.wake();
    }

    fn is_closed(&self) -> bool {
        self.0.is_closed.load(Ordering::Acquire)
    }

    fn note_activity(&self) {
        self.0.last_active_ms.store(now_ms(), Ordering::Relaxed);
    }
}

/// A call that is being answered.
pub struct OpenCall(Peer);

impl Drop for OpenCall {
    fn drop(&mut self) {
        self.0.note_activity();
        self.0.0.open_calls.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A socket under the rules of its [`Port`].
pub struct Connection {
    stream: TcpStream,
    peer: Peer,
    port: Port,
    patience: Patience,
    received: usize,
    accepted_at: Instant,
    /// The next time at which silence ends the connection.
    deadline: Option<Pin<Box<Sleep>>>,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Connection {
    pub(super) fn new(stream: TcpStream, peer: Peer, port: Port, patience: Patience) -> Self {
        let first = patience.handshake.map(|(_, time)| time).or(patience.first_call);
        let deadline = first.map(|time| Box::pin(tokio::time::sleep(time)));
        let accepted_at = clock::moment();
        Connection { stream, peer, port, patience, received: 0, accepted_at, deadline, stalled: None }
    }

    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    fn has_shaken_hands(&self) -> bool {
        self.patience.handshake.is_none_or(|(bytes, _)| self.received >= bytes)
    }

    /// After the handshake the time for the first call counts, from the beginning.
    fn note_received(&mut self, bytes: usize) {
        self.peer.note_activity();
        let had_shaken_hands = self.has_shaken_hands();
        self.received = self.received.saturating_add(bytes);
        if !had_shaken_hands && self.has_shaken_hands() {
            let until = self.patience.first_call.map(|time| self.accepted_at + time);
            self.deadline = until.map(|until| Box::pin(tokio::time::sleep_until(until.into())));
        }
    }

    /// Whether the client was silent for too long.
    fn poll_too_late(&mut self, context: &mut Context<'_>) -> bool {
        if self.has_shaken_hands() && self.peer.0.is_known.load(Ordering::Acquire) {
            self.deadline = None;
        }
        let Some(deadline) = &mut self.deadline else { return false };
        // a call that is being answered, of whomever, is waited for: its end comes back here
        deadline.as_mut().poll(context).is_ready() && (!self.has_shaken_hands() || self.peer.is_idle())
    }

    fn note_sent(&mut self, sent: &Poll<io::Result<usize>>, context: &mut Context<'_>) -> io::Result<()> {
        match sent {
            Poll::Ready(_) => {
                self.peer.note_activity();
                self.stalled = None;
                Ok(())
            }
            Poll::Pending => {
                let sleep = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(WRITE_STALL)));
                let is_stalled = sleep.as_mut().poll(context).is_ready();
                if is_stalled { Err(io::ErrorKind::TimedOut.into()) } else { Ok(()) }
            }
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.port.forget(&self.peer);
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.peer.0.reader.register(context.waker());
        if this.peer.is_closed() {
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(context, buffer);
        if read.is_ready() {
            this.note_received(buffer.filled().len() - before);
            return read;
        }
        // nothing read and no error is the end of the stream
        if this.poll_too_late(context) { Poll::Ready(Ok(())) } else { Poll::Pending }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.peer.is_closed() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let sent = Pin::new(&mut this.stream).poll_write(context, bytes);
        this.note_sent(&sent, context)?;
        sent
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.peer.is_closed() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let sent = Pin::new(&mut this.stream).poll_write_vectored(context, slices);
        this.note_sent(&sent, context)?;
        sent
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}
