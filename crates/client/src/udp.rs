//! Datagrams: the flows of one association leave from one socket, but for those whose names lead to one address, and only
//! those it has sent to may answer.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use anyproxy_core::{Datagrams, FOR_EVER};
use anyproxy_tunnel::{DroppedDatagrams, Stream};
use anyproxy_udp::{Burst, Peer, Scratch};
use bytes::BytesMut;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio::sync::Notify;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::access::AccessLine;
use crate::client::Shared as Client;
use crate::race;
use crate::relay::{End, Passed};
use crate::reserve::Reserve;

/// Destinations of one association; beyond it the one that was sent to longest ago goes.
const MAX_DESTINATIONS: usize = 1_024;
/// Flows of one association to one address and port, which many names may lead to. An answer tells no more than where it
/// comes from, and users are to hear which name it is of (RFC 1928 section 7), so each of these flows has a socket of its
/// own. Beyond it the one that was sent to longest ago goes.
pub(crate) const MAX_NAMES: u8 = 8;
/// Datagrams taken from a socket before other tasks get their turn.
const BURST: usize = 64;

/// The associations of one tunnel. A tunnel's numbers mean nothing to another: two gateways count alike.
#[derive(Debug, Default)]
pub(crate) struct Associations(Mutex<HashMap<u64, Weak<Association>>>);

/// The sockets of a user's socket, mostly one; held by each of its flows.
#[derive(Debug)]
pub(crate) struct Association {
    id: u64,
    associations: Arc<Associations>,
    /// By family and number.
    ports: Mutex<BTreeMap<(bool, u8), Bound>>,
    routes: Arc<Routes>,
    tasks: TaskTracker,
    reserve: Reserve,
}

/// A port as long as an association has it.
#[derive(Debug)]
struct Bound {
    port: Arc<Port>,
    /// How many have taken it and not left it.
    flows: usize,
    /// Ends its receiving task.
    _receiving: DropGuard,
}

/// A socket that flows to different addresses share.
#[derive(Debug)]
struct Port {
    socket: UdpSocket,
    /// Flows that hold datagrams it has no room for.
    waiting: AtomicUsize,
}

impl Associations {
    /// Whether there is none at the moment.
    pub(crate) fn is_empty(&self) -> bool {
        lock(&self.0).is_empty()
    }

    /// The association of this number, the same as long as a flow of it lives. Its sockets are served in the `client`'s tasks,
    /// and are none of its reserve.
    pub(crate) fn join(self: &Arc<Self>, id: u64, client: &Client) -> Arc<Association> {
        let mut entries = lock(&self.0);
        if let Some(association) = entries.get(&id).and_then(Weak::upgrade) {
            return association;
        }
        let association = Arc::new(Association {
            id,
            associations: self.clone(),
            ports: Default::default(),
            routes: Arc::default(),
            tasks: client.tasks.clone(),
            reserve: client.reserve,
        });
        entries.insert(id, Arc::downgrade(&association));
        association
    }
}

impl Association {
    /// Takes a socket before there is a destination, of either family: that there is one is what a user is told.
    pub(crate) fn open(&self) -> io::Result<()> {
        let port = self.take_port(false, 0).or_else(|v4| {
            // What says more: that this client has no room, which another may have, or that it has no such family.
            self.take_port(true, 0).map_err(|v6| if race::tells(&v6) > race::tells(&v4) { v6 } else { v4 })
        });
        port.map(drop)
    }

    /// A way to `destination` for one flow, by a port that no other flow to it has. Nobody may answer before something was
    /// sent.
    pub(crate) fn reach(self: Arc<Self>, destination: SocketAddr) -> io::Result<Way> {
        let (key, evicted) = self.routes.enter(destination);
        match self.take_port(destination.is_ipv6(), key.port) {
            Ok(port) => Ok(Way { key, evicted, port, destination, association: self }),
            Err(error) => {
                self.routes.leave(&key, &evicted);
                Err(error)
            }
        }
    }

    fn take_port(&self, v6: bool, number: u8) -> io::Result<Arc<Port>> {
        let mut ports = lock(&self.ports);
        if let Some(bound) = ports.get_mut(&(v6, number)) {
            bound.flows += 1;
            return Ok(bound.port.clone());
        }
        let port = Arc::new(Port { socket: bind(v6, self.reserve)?, waiting: AtomicUsize::new(0) });
        let stop = CancellationToken::new();
        let receiving = receive(port.clone(), number, self.routes.clone());
        self.tasks.spawn(stop.clone().run_until_cancelled_owned(receiving));
        ports.insert((v6, number), Bound { port: port.clone(), flows: 1, _receiving: stop.drop_guard() });
        Ok(port)
    }

    /// Closes the port with its last flow. The first of a family stays: it is where an association's datagrams come from.
    fn leave_port(&self, v6: bool, number: u8) {
        let mut ports = lock(&self.ports);
        if let Entry::Occupied(mut bound) = ports.entry((v6, number)) {
            bound.get_mut().flows -= 1;
            if bound.get().flows == 0 && number > 0 {
                bound.remove();
            }
        }
    }
}

impl Drop for Association {
    fn drop(&mut self) {
        let mut entries = lock(&self.associations.0);
        // An association that took its place stays.
        if entries.get(&self.id).is_some_and(|entry| std::ptr::eq(entry.as_ptr(), self)) {
            entries.remove(&self.id);
        }
    }
}

fn bind(v6: bool, reserve: Reserve) -> io::Result<UdpSocket> {
    let (domain, address) = if v6 {
        (Domain::IPV6, SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)))
    } else {
        (Domain::IPV4, SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)))
    };
    let socket = Socket::new(domain, Type::DGRAM.nonblocking().cloexec(), Some(Protocol::UDP))?;
    reserve.check(&socket)?;
    if v6 {
        // Each family has its own socket; an IPv4 address in an IPv6 one would be a second name for a destination.
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    UdpSocket::from_std(socket.into())
}

/// Nothing panics while it holds one of these locks, and what they guard is never half right.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// === Answers ===

/// Who may answer, and to which flow it goes: of a port and an address there is one at most.
#[derive(Debug, Default)]
struct Routes(Mutex<HashMap<Key, Route>>);

/// Where a datagram came to, and from: without flow label and scope, which an answer may lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    /// The number of the port, of those of this family.
    port: u8,
    source: (IpAddr, u16),
}

impl Key {
    const fn new(port: u8, source: SocketAddr) -> Self {
        Self { port, source: (source.ip(), source.port()) }
    }
}

#[derive(Debug)]
struct Route {
    /// To whom answers go; nobody before something was sent.
    shared: Option<Arc<Shared>>,
    /// When something was sent, or the way was opened.
    last_sent: Instant,
    evicted: Arc<Notify>,
}

/// What a flow's own task and the receiving task share.
#[derive(Debug)]
struct Shared {
    datagrams: Mutex<Datagrams<Stream>>,
    down: AtomicU64,
    first: OnceLock<Instant>,
    /// Answers for which the way to the gateway had no room, with those that tunnels drop.
    dropped: DroppedDatagrams,
}

impl Shared {
    /// Takes what the user has sent: one at least, and no more than `most`. An end that comes behind it is found again.
    fn poll_recv(&self, cx: &mut Context<'_>, most: usize) -> Poll<Result<Burst, End>> {
        let mut datagrams = lock(&self.datagrams);
        let mut burst = Burst::take();
        while burst.len() < most && !burst.is_full() {
            match datagrams.poll_recv(cx, burst.begin()) {
                Poll::Ready(Ok(true)) => burst.commit(),
                _ if !burst.is_empty() => break,
                Poll::Ready(Ok(false)) => return Poll::Ready(Err(End::Whole)),
                Poll::Ready(Err(_)) => return Poll::Ready(Err(End::UserLost)),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(burst))
    }
}

impl Routes {
    /// Makes room for one more: its key, and what tells it that it has to give way.
    fn enter(&self, destination: SocketAddr) -> (Key, Arc<Notify>) {
        let mut routes = lock(&self.0);
        // A free one comes before all others.
        let key = (0..MAX_NAMES)
            .map(|port| Key::new(port, destination))
            .min_by_key(|key| routes.get(key).map(|route| route.last_sent))
            .expect("an address may have a name");
        let surplus = if routes.contains_key(&key) {
            Some(key)
        } else if routes.len() >= MAX_DESTINATIONS {
            routes.iter().min_by_key(|(_, route)| route.last_sent).map(|(key, _)| *key)
        } else {
            None
        };
        if let Some(route) = surplus.and_then(|key| routes.remove(&key)) {
            route.evicted.notify_one();
        }
        let evicted = Arc::new(Notify::new());
        routes.insert(key, Route { shared: None, last_sent: Instant::now(), evicted: evicted.clone() });
        (key, evicted)
    }

    /// Lets answers come to this flow: whether it still has its place.
    fn claim(&self, way: &Way, shared: &Arc<Shared>) -> bool {
        let mut routes = lock(&self.0);
        match routes.get_mut(&way.key).filter(|route| Arc::ptr_eq(&route.evicted, &way.evicted)) {
            Some(route) => {
                route.last_sent = Instant::now();
                route.shared.get_or_insert_with(|| shared.clone());
                true
            }
            None => false,
        }
    }

    fn leave(&self, key: &Key, evicted: &Arc<Notify>) {
        let mut routes = lock(&self.0);
        if routes.get(key).is_some_and(|route| Arc::ptr_eq(&route.evicted, evicted)) {
            routes.remove(key);
        }
    }

    fn deliver(&self, key: &Key, payload: &[u8]) {
        // Nobody has sent there: dropped (RFC 4787 section 5).
        let Some(shared) = lock(&self.0).get(key).and_then(|route| route.shared.clone()) else { return };
        // Sent now or dropped: nobody waits, so nobody needs to be woken.
        let sent = lock(&shared.datagrams).send_now(&mut Context::from_waker(Waker::noop()), payload);
        match sent {
            Ok(true) => {
                shared.down.fetch_add(payload.len() as u64, Ordering::Relaxed);
                shared.first.get_or_init(Instant::now);
            }
            Ok(false) => shared.dropped.add(1),
            // The stream is over.
            Err(_) => {}
        }
    }
}

async fn receive(port: Arc<Port>, number: u8, routes: Arc<Routes>) {
    loop {
        if let Err(error) = port.socket.readable().await {
            tracing::warn!(%error, "a socket for datagrams failed");
            return;
        }
        if !receive_some(&port.socket, number, &routes) {
            // Readiness costs no budget: without this, whoever sends fast enough would have the thread for themselves.
            yield_now().await;
        }
    }
}

/// Takes what is there, as far as one turn goes: whether that was all.
fn receive_some(socket: &UdpSocket, number: u8, routes: &Routes) -> bool {
    let mut scratch = Scratch::take();
    for _ in 0..BURST {
        match socket.try_recv_from(&mut scratch) {
            Ok((length, source)) => routes.deliver(&Key::new(number, source), &scratch[..length]),
            // Any other error is taken from the socket with this, and may be followed by another.
            Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
        }
    }
    false
}

/// Keeps an association while its own stream lives, on which nothing is said.
pub(crate) async fn keep(association: Arc<Association>, stream: Stream, mut line: AccessLine) {
    let mut stream = Datagrams::new(stream);
    let mut ignored = BytesMut::new();
    line.end = loop {
        ignored.clear();
        match stream.recv(&mut ignored).await {
            Ok(true) => {}
            Ok(false) => break End::Whole,
            Err(_) => break End::UserLost,
        }
    };
    drop(association);
}

// === Flow ===

/// The way of one flow, for as long as this lives.
#[derive(Debug)]
pub(crate) struct Way {
    pub(crate) destination: SocketAddr,
    key: Key,
    /// There are too many destinations, or names of this one, and this was the oldest.
    evicted: Arc<Notify>,
    port: Arc<Port>,
    association: Arc<Association>,
}

impl Drop for Way {
    fn drop(&mut self) {
        self.association.routes.leave(&self.key, &self.evicted);
        self.association.leave_port(self.destination.is_ipv6(), self.key.port);
    }
}

/// One destination of an association, with its stream.
#[derive(Debug)]
pub(crate) struct Flow {
    way: Way,
    peer: Peer,
    shared: Arc<Shared>,
    up: u64,
    line: AccessLine,
}

impl Flow {
    /// Carries datagrams between `stream` and the destination of `way`.
    pub(crate) fn new(way: Way, stream: Stream, line: AccessLine, dropped: DroppedDatagrams) -> Self {
        let shared = Shared {
            datagrams: Mutex::new(Datagrams::new(stream)),
            down: AtomicU64::new(0),
            first: OnceLock::new(),
            dropped,
        };
        Self { peer: Peer::new(way.destination), way, shared: Arc::new(shared), up: 0, line }
    }

    /// Runs until the user is done with it, or has sent nothing for `idle`. Answers do not prolong it (RFC 4787
    /// section 4.3).
    pub(crate) async fn run(mut self, idle: Duration) {
        self.line.end = self.carry(idle).await;
    }

    async fn carry(&mut self, idle: Duration) -> End {
        let idle = idle.min(FOR_EVER);
        let mut timer = pin!(sleep_until(Instant::now() + idle));
        loop {
            tokio::select! {
                received = self.receive() => {
                    match received {
                        Ok(burst) if self.way.association.routes.claim(&self.way, &self.shared) => {
                            self.send(burst).await;
                        }
                        Ok(_) => return End::Idle,
                        Err(end) => return end,
                    }
                    timer.as_mut().reset(Instant::now() + idle);
                }
                () = self.way.evicted.notified() => return End::Idle,
                () = &mut timer => return End::Idle,
            }
        }
    }

    /// What the user has sent. While others wait for room it is one datagram: what waits in the stream is counted, what
    /// waits here is not.
    async fn receive(&self) -> Result<Burst, End> {
        poll_fn(|cx| {
            let is_full = self.way.port.waiting.load(Ordering::Relaxed) > 0;
            self.shared.poll_recv(cx, if is_full { 1 } else { usize::MAX })
        })
        .await
    }

    /// A datagram that cannot be sent costs itself, never the flow.
    async fn send(&mut self, burst: Burst) {
        let mut sending = pin!(burst.send(&self.way.port.socket, &self.peer));
        let sent = match poll_fn(|cx| Poll::Ready(sending.as_mut().poll(cx))).await {
            Poll::Ready(sent) => sent,
            Poll::Pending => {
                let _waits = Waits::at(&self.way.port.waiting);
                sending.await
            }
        };
        self.up += sent.bytes as u64;
        if let Some(error) = sent.error {
            tracing::debug!(%error, destination = %self.way.destination, "a datagram was not sent");
        }
    }
}

/// Counts one more for as long as it lives.
struct Waits<'a>(&'a AtomicUsize);

impl<'a> Waits<'a> {
    fn at(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.line.passed = Passed {
            up: self.up,
            down: self.shared.down.load(Ordering::Relaxed),
            first: self.shared.first.get().copied(),
        };
    }
}
