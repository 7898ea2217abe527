//! Connections of callers: how many each port takes, which one goes when there is no room, and when a silent one is
//! closed. Every listener hands its sockets to a [`Port`]. Nothing here knows what is said over a connection.

pub mod budget;
mod connection;
pub mod grpc;
pub mod http;
pub mod limits;
pub mod upload;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ipnet::IpNet;
use tokio::net::TcpStream;

pub use connection::{Connection, OpenCall, Peer};
pub use limits::Limits;

/// How long a silent connection is kept.
#[derive(Clone, Copy, Debug, Default)]
pub struct Patience {
    /// Bytes that a client sends before anything else, and how long it may take to; `None`: the protocol's own code
    /// looks after it.
    pub handshake: Option<(usize, Duration)>,
    /// How long a connection may live without a call whose caller is known; `None`: for ever.
    pub first_call: Option<Duration>,
}

/// The connections of one listener. Cheap to clone.
#[derive(Clone)]
pub struct Port(Arc<Inner>);

struct Inner {
    name: &'static str,
    capacity: usize,
    per_address: usize,
    /// Proxies: many callers share their addresses.
    exempt: Vec<IpNet>,
    patience: Patience,
    next_id: AtomicU64,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    peers: HashMap<u64, Peer>,
    by_address: HashMap<IpAddr, usize>,
    /// Connections that made room for others and still hold their file.
    closing: usize,
}

/// More connections than this are not taken in while those that made room for them are still being closed: each of
/// them is an open file above the capacity.
const CLOSING_MAX: usize = 8;
const CLOSING_PAUSE: Duration = Duration::from_millis(1);
/// Who does not end in this time is not waited for.
const CLOSING_PAUSES_MAX: usize = 50;

impl Port {
    pub fn new(
        name: &'static str,
        capacity: usize,
        per_address: usize,
        exempt: &[IpNet],
        patience: Patience,
    ) -> Self {
        Port(Arc::new(Inner {
            name,
            capacity,
            per_address,
            exempt: exempt.to_vec(),
            patience,
            next_id: AtomicU64::new(0),
            open: Mutex::default(),
        }))
    }

    /// Takes a connection in. Where there is no room, the connection that has had no call for longest makes room for
    /// it: one of the same address if that address has its share already. `None`: all of them are busy.
    pub fn admit(&self, stream: TcpStream, address: SocketAddr) -> Option<Connection> {
        // small answers wait for nothing
        let _ = stream.set_nodelay(true);
        let group = group(address.ip());
        let is_exempt = self.0.exempt.iter().any(|network| network.contains(&address.ip().to_canonical()));
        let peer = Peer::new(self.0.next_id.fetch_add(1, Ordering::Relaxed), group, address.ip());
        {
            let mut open = self.0.open.lock().unwrap_or_else(PoisonError::into_inner);
            let of_group = open.by_address.get(&group).copied().unwrap_or(0);
            let made_room = if of_group >= self.0.per_address && !is_exempt {
                self.close_longest_idle(&mut open, Some(group), "address")
            } else if open.peers.len() >= self.0.capacity {
                self.close_longest_idle(&mut open, None, "port")
            } else {
                true
            };
            if !made_room {
                return None;
            }
            *open.by_address.entry(group).or_default() += 1;
            open.peers.insert(peer.id(), peer.clone());
        }
        metrics::gauge!("open_spanner_connections", "port" => self.0.name).increment(1);
        Some(Connection::new(stream, peer, self.clone(), self.0.patience))
    }

    /// Among all connections, or those of one address: of the address with most of them, the one that is idle for
    /// longest.
    fn close_longest_idle(&self, open: &mut Open, only: Option<IpAddr>, reason: &'static str) -> bool {
        let idle = open.peers.values().filter(|peer| peer.is_idle());
        let candidates = idle.filter(|peer| only.is_none_or(|group| peer.group() == group));
        let crowd = |peer: &Peer| open.by_address.get(&peer.group()).copied().unwrap_or(0);
        let victim = candidates.max_by_key(|peer| (crowd(peer), std::cmp::Reverse(peer.last_active_ms())));
        let outcome = if victim.is_some() { "replaced" } else { "refused" };
        metrics::counter!("open_spanner_connections_turned_away_total", "port" => self.0.name,
            "limit" => reason, "outcome" => outcome)
        .increment(1);
        let Some(victim) = victim.cloned() else { return false };
        self.remove(open, &victim);
        open.closing += 1;
        victim.close();
        true
    }

    /// Whether it was still counted.
    fn remove(&self, open: &mut Open, peer: &Peer) -> bool {
        if open.peers.remove(&peer.id()).is_none() {
            return false;
        }
        metrics::gauge!("open_spanner_connections", "port" => self.0.name).decrement(1);
        if let Some(count) = open.by_address.get_mut(&peer.group()) {
            *count -= 1;
            if *count == 0 {
                open.by_address.remove(&peer.group());
            }
        }
        true
    }

    fn forget(&self, peer: &Peer) {
        let mut open = self.0.open.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.remove(&mut open, peer) {
            open.closing = open.closing.saturating_sub(1);
        }
    }

    /// Waits, a moment, until most of those that made room are gone.
    async fn others_left(&self) {
        for _ in 0..CLOSING_PAUSES_MAX {
            if self.0.open.lock().unwrap_or_else(PoisonError::into_inner).closing < CLOSING_MAX {
                return;
            }
            tokio::time::sleep(CLOSING_PAUSE).await;
        }
    }

    /// Closes the connections that have had no open call for this long.
    pub fn close_idle(&self, idle: Duration) {
        let open = self.0.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.peers.values().filter(|peer| peer.is_idle_for(idle)).for_each(Peer::close);
    }

    /// Cuts every connection, whatever it is doing.
    pub fn close_all(&self) {
        let open = self.0.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.peers.values().for_each(Peer::close);
    }
}

/// Whose connections are counted together: an IPv4 address, or the network that one IPv6 customer is given.
fn group(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
        v4 => v4,
    }
}

/// Errors of `accept` that concern one connection, not the listener.
fn concerns_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, Interrupted, TimedOut, WouldBlock};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionReset | BrokenPipe | Interrupted | WouldBlock | TimedOut
    )
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    struct Pair {
        client: TcpStream,
        server: Option<Connection>,
    }

    async fn connect(port: &Port, listener: &TcpListener, from: &str) -> Pair {
        let address = listener.local_addr().expect("an address");
        let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        let from = SocketAddr::new(from.parse().expect("an address"), 1);
        let server = port.admit(accepted.expect("accepted").0, from);
        Pair { client: client.expect("connected"), server }
    }

    async fn is_closed(pair: &mut Pair) -> bool {
        let mut byte = [0; 1];
        let read = pair.server.as_mut().expect("admitted").read(&mut byte);
        matches!(tokio::time::timeout(Duration::from_millis(20), read).await, Ok(Ok(0)))
    }

    fn open(port: &Port) -> usize {
        port.0.open.lock().expect("no holder panics").peers.len()
    }

    #[tokio::test]
    async fn the_crowd_of_one_address_makes_room_for_others() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = Port::new("test", 3, 3, &[], Patience::default());
        let mut lone = connect(&port, &listener, "10.0.0.1").await;
        let mut first = connect(&port, &listener, "10.0.0.2").await;
        let mut second = connect(&port, &listener, "10.0.0.2").await;
        // activity makes the first one the younger one
        tokio::time::sleep(Duration::from_millis(5)).await;
        first.client.write_all(b"x").await.expect("sent");
        assert_eq!(first.server.as_mut().expect("admitted").read_u8().await.expect("a byte"), b'x');
        let mut third = connect(&port, &listener, "10.0.0.3").await;
        assert!(is_closed(&mut second).await, "the longest idle one of the crowd is closed");
        assert!(!is_closed(&mut first).await && !is_closed(&mut lone).await && !is_closed(&mut third).await);
        drop((lone, first, second, third));
        assert_eq!(open(&port), 0);
    }

    #[tokio::test]
    async fn who_made_room_is_waited_for_and_not_for_ever() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = Port::new("test", 1, 1, &[], Patience::default());
        let mut held = Vec::new();
        for _ in 0..=CLOSING_MAX {
            held.push(connect(&port, &listener, "10.0.0.1").await);
        }
        let closing = |port: &Port| port.0.open.lock().expect("no holder panics").closing;
        assert_eq!((open(&port), closing(&port)), (1, CLOSING_MAX));
        let began = std::time::Instant::now();
        port.others_left().await;
        assert!(began.elapsed() >= CLOSING_PAUSE * CLOSING_PAUSES_MAX as u32, "they are there");
        held.remove(0);
        assert_eq!(closing(&port), CLOSING_MAX - 1);
        port.others_left().await;
        drop(held);
        assert_eq!((open(&port), closing(&port)), (0, 0));
    }

    #[tokio::test]
    async fn a_busy_connection_is_never_replaced() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = Port::new("test", 9, 1, &[], Patience::default());
        let mut busy = connect(&port, &listener, "10.0.0.1").await;
        let call = busy.server.as_ref().expect("admitted").peer().begin_call();
        assert!(connect(&port, &listener, "10.0.0.1").await.server.is_none());
        assert!(connect(&port, &listener, "10.0.0.2").await.server.is_some());
        drop(call);
        assert!(connect(&port, &listener, "10.0.0.1").await.server.is_some());
        assert!(is_closed(&mut busy).await);
    }

    #[tokio::test]
    async fn proxies_may_open_more_than_their_share() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let proxies = ["10.0.0.0/8".parse().expect("a network")];
        let port = Port::new("test", 9, 1, &proxies, Patience::default());
        let mut first = connect(&port, &listener, "10.0.0.1").await;
        let _second = connect(&port, &listener, "10.0.0.1").await;
        assert!(!is_closed(&mut first).await);
        assert_eq!(open(&port), 2);
    }

    #[tokio::test]
    async fn silence_before_the_handshake_and_before_the_first_call_is_short() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let short = Duration::from_millis(50);
        let patience = Patience { handshake: Some((2, short)), first_call: Some(3 * short) };
        let port = Port::new("test", 9, 9, &[], patience);
        let mut silent = connect(&port, &listener, "10.0.0.1").await;
        let mut greeting = connect(&port, &listener, "10.0.0.1").await;
        let mut calling = connect(&port, &listener, "10.0.0.1").await;
        for pair in [&mut greeting, &mut calling] {
            pair.client.write_all(b"hi").await.expect("sent");
            let mut hello = [0; 2];
            pair.server.as_mut().expect("admitted").read_exact(&mut hello).await.expect("two bytes");
        }
        calling.server.as_ref().expect("admitted").peer().note_known();
        let mut byte = [0; 1];
        let (mut silent, mut greeting) =
            (silent.server.take().expect("in"), greeting.server.take().expect("in"));
        assert_eq!(silent.read(&mut byte).await.expect("an end"), 0);
        assert!(tokio::time::timeout(short / 5, greeting.read(&mut byte)).await.is_err(), "still open");
        assert_eq!(greeting.read(&mut byte).await.expect("an end"), 0);
        assert!(!is_closed(&mut calling).await, "who has called may be silent");
    }

    #[test]
    fn customers_are_counted_as_one() {
        let same = |a: &str, b: &str| group(a.parse().expect("one")) == group(b.parse().expect("one"));
        assert!(same("2001:db8::1", "2001:db8::ffff"));
        assert!(!same("2001:db8::1", "2001:db8:0:1::1"));
        assert!(same("::ffff:10.0.0.1", "10.0.0.1"));
        assert!(!same("10.0.0.1", "10.0.0.2"));
    }
}
