use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::mem;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener as StdListener, TcpStream as StdStream};
use std::pin::Pin;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use anyproxy_tcp::NOT_SENT;
use anyproxy_workers::Seats;
use pin_project_lite::pin_project;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{debug, error, warn};

use crate::{Connection as _, Throttle, Tls, UserStream};

/// How long a user may take for a handshake, all phases together, unless it is set.
pub const DEFAULT_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Connections the kernel completes ahead of us. A burst beyond it is retried by the users' kernels, a second later.
const BACKLOG: i32 = 1024;

/// The first and the longest pause after an accept that failed. The longest is also how late the listener may
/// notice that there are descriptors again.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

/// Failures in a row that are blamed on the connection and cost no pause. Beyond it they are the machine's.
const PATIENCE: u32 = 16;

/// How often it is told at most that users cannot be received, which they can bring about.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// A dead user is found after about two minutes of silence, whatever the idle timeout is.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(60), Duration::from_secs(15), 4);

/// Sockets that users connect to, and how they are received: TLS or not, the handshake's deadline, the most
/// connections at once.
///
/// [`serve`](Self::serve) is the accept loop. It owns the tasks of its connections.
pub struct Listener {
    sockets: Sockets,
    /// Where other sockets come from while it serves.
    rebound: Arc<Rebound>,
    tls: Option<Tls>,
    handshake_timeout: Duration,
    max_connections: usize,
    seats: Option<Seats>,
    /// Behind the sockets, which are to be closed when it is dropped.
    closed: Option<DropGuard>,
}

impl Listener {
    /// Binds each of `addresses`; port 0 takes a free one.
    ///
    /// Must be called within a tokio runtime with IO.
    ///
    /// # Errors
    ///
    /// What the system says to any of them, and [`InvalidInput`](io::ErrorKind::InvalidInput) for none.
    pub fn bind(addresses: &[SocketAddr]) -> io::Result<Self> {
        if addresses.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "no address to listen on"));
        }
        Self::new(addresses.iter().map(|address| bind(*address, true)).collect::<io::Result<_>>()?)
    }

    /// Binds `port` on all addresses of the machine, IPv4 and IPv6, with one socket: what `":8080"` means. Where
    /// IPv6 is switched off, all IPv4 addresses.
    ///
    /// Must be called within a tokio runtime with IO.
    ///
    /// # Errors
    ///
    /// What the system says, such as [`AddrInUse`](io::ErrorKind::AddrInUse).
    pub fn bind_any(port: u16) -> io::Result<Self> {
        let socket = match bind((Ipv6Addr::UNSPECIFIED, port).into(), false) {
            Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
                debug!(%error, "no IPv6, listening on IPv4 alone");
                bind((Ipv4Addr::UNSPECIFIED, port).into(), false)
            }
            bound => bound,
        };
        Self::new(vec![socket?])
    }

    /// Binds `port` on both loopback addresses: what `"localhost:8080"` means. Where IPv6 is switched off, on that of
    /// IPv4.
    ///
    /// Must be called within a tokio runtime with IO.
    ///
    /// # Errors
    ///
    /// As [`bind_any`](Self::bind_any).
    pub fn bind_localhost(port: u16) -> io::Result<Self> {
        let mut sockets = vec![bind((Ipv4Addr::LOCALHOST, port).into(), true)?];
        match bind((Ipv6Addr::LOCALHOST, port).into(), true) {
            Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
                debug!(%error, "no IPv6, listening on IPv4 alone");
            }
            bound => sockets.push(bound?),
        }
        Self::new(sockets)
    }

    fn new(sockets: Vec<StdListener>) -> io::Result<Self> {
        let sockets = sockets.into_iter().map(TcpListener::from_std).collect::<io::Result<_>>()?;
        Ok(Self {
            sockets: Sockets { open: sockets, arrived: VecDeque::new() },
            rebound: Arc::default(),
            tls: None,
            handshake_timeout: DEFAULT_HANDSHAKE_TIMEOUT,
            max_connections: usize::MAX,
            seats: None,
            closed: None,
        })
    }

    /// Speaks TLS with every user. Keep a clone of `tls` to put new certificates in place.
    #[must_use]
    pub fn with_tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// The TLS it speaks, to put new certificates in place.
    #[must_use]
    pub const fn tls(&self) -> Option<&Tls> {
        self.tls.as_ref()
    }

    /// How long a user may take for the TLS handshake (default: 10 s); then the connection is closed. What comes behind
    /// it is the front's to limit.
    #[must_use]
    pub const fn with_handshake_timeout(mut self, timeout: Duration) -> Self {
        self.handshake_timeout = timeout;
        self
    }

    /// The most connections at once (unlimited), together with those of other listeners that have the same
    /// [seats](Self::with_seats). One more is accepted and reset at once: its user learns it now, and may try elsewhere,
    /// instead of waiting in the backlog for somebody to leave.
    #[must_use]
    pub const fn with_max_connections(mut self, connections: usize) -> Self {
        self.max_connections = connections;
        self
    }

    /// Serves each connection on a thread of its own choice (all on that of [`serve`](Self::serve)'s caller).
    #[must_use]
    pub fn with_seats(mut self, seats: Seats) -> Self {
        self.seats = Some(seats);
        self
    }

    /// Cancels `closed` as soon as the sockets are closed and their addresses free again; the living go on.
    #[must_use]
    pub fn with_closed(mut self, closed: CancellationToken) -> Self {
        self.closed = Some(closed.drop_guard());
        self
    }

    /// The way to move it to other addresses while it serves.
    #[must_use]
    pub fn rebind(&self) -> Rebind {
        Rebind(Arc::downgrade(&self.rebound))
    }

    /// The addresses really bound.
    ///
    /// # Errors
    ///
    /// What the system says; never seen on a bound socket.
    pub fn local_addrs(&self) -> io::Result<Vec<SocketAddr>> {
        self.sockets.open.iter().map(TcpListener::local_addr).collect()
    }

    /// The first of the addresses really bound.
    ///
    /// # Errors
    ///
    /// What the system says; never seen on a bound socket.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.sockets.open[0].local_addr()
    }

    /// Accepts users until `stop`, running `front` for each in a task of its own, then closes the sockets at once,
    /// gives up TLS handshakes under way, and waits for the living. Returns when the last one is gone.
    ///
    /// A connection that panics ends alone. Without descriptors or memory the loop pauses, 100 ms at first and
    /// never more than a second, and goes on. TLS handshakes run in the connection's task, so that nobody waits for
    /// somebody else's. An IPv4 user of a socket for both families is told to `front` by the IPv4 address.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes the sockets and aborts every connection: that is how a caller bounds the wait
    /// after `stop`, with a time-out around it.
    pub async fn serve<F, Fut>(mut self, stop: CancellationToken, front: F)
    where
        F: Fn(UserStream, SocketAddr) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        static FULL: LazyLock<Throttle> = LazyLock::new(|| Throttle::new(TELL_EVERY));

        let mut connections = JoinSet::new();
        let mut failures = Failures::default();
        loop {
            let accepted = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(ended) = connections.join_next(), if !connections.is_empty() => {
                    report(ended);
                    continue;
                }
                () = self.rebound.wake.notified() => {
                    if let Some(sockets) = self.rebound.take() {
                        self.sockets.replace(sockets);
                    }
                    continue;
                }
                accepted = self.sockets.accept(&failures) => accepted,
            };
            let (mut tcp, source) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    if let Some(others) = failures.add(&error) {
                        warn!(%error, others, "cannot accept connections, trying on");
                    }
                    continue;
                }
            };
            failures.end();
            if self.seats.as_ref().map_or(connections.len(), Seats::taken) >= self.max_connections {
                if let Some(others) = FULL.pass() {
                    warn!(limit = self.max_connections, %source, others, "too many connections, one more is reset");
                }
                tcp.abort();
                continue;
            }
            if let Err(error) = self.receive(&mut connections, tcp, source, &stop, &front) {
                debug!(%source, %error, "a connection was lost on its way to its thread");
            }
        }
        drop((self.sockets, self.rebound, self.closed));
        while let Some(ended) = connections.join_next().await {
            report(ended);
        }
    }

    /// Spawns the task of a connection where its seat is.
    fn receive<F, Fut>(
        &self,
        connections: &mut JoinSet<()>,
        tcp: TcpStream,
        source: SocketAddr,
        stop: &CancellationToken,
        front: &F,
    ) -> io::Result<()>
    where
        F: Fn(UserStream, SocketAddr) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let seat = self.seats.as_ref().map(Seats::take);
        match (seat, &self.tls) {
            // Without anything around it, for there are many and most are idle.
            (None, None) => connections.spawn(front(tcp.into(), source)),
            (Some(seat), None) if seat.is_here() => connections.spawn(seat.keep(front(tcp.into(), source))),
            (seat, tls) => {
                let (tls, front, limit) = (tls.clone(), front.clone(), self.handshake_timeout);
                let stop = stop.clone();
                let moves = seat.as_ref().is_some_and(|seat| !seat.is_here());
                let arrival = if moves { Arrival::Moved(tcp.into_std()?) } else { Arrival::Here(tcp) };
                let served = Served::Received {
                    received: Box::pin(async move {
                        let tcp = arrival
                            .unpack()
                            .inspect_err(|error| debug!(%source, %error, "a connection was lost on its way"))
                            .ok()?;
                        let user = match tls {
                            None => tcp.into(),
                            Some(tls) => {
                                stop.run_until_cancelled(handshake(tls, tcp, source, limit)).await??
                            }
                        };
                        Some(front(user, source))
                    }),
                };
                match seat {
                    None => connections.spawn(served),
                    Some(seat) => {
                        let thread = seat.handle().clone();
                        connections.spawn_on(seat.keep(served), &thread)
                    }
                }
            }
        };
        Ok(())
    }
}

/// Moves a [`Listener`] that [serves](Listener::serve) to other addresses. Clones move the same one.
#[derive(Clone, Debug)]
pub struct Rebind(Weak<Rebound>);

impl Rebind {
    /// Puts the sockets of `other` in the place of those it has, which are closed; all else stays as it was set, and the
    /// living go on. Users whom the kernel had connected to the old ones are received first, as far as there are
    /// descriptors. Nothing happens where it serves no more; of several moves in a row the last one counts.
    pub fn to(&self, other: Listener) {
        if let Some(rebound) = self.0.upgrade() {
            *rebound.lock() = Some(other.sockets.open);
            rebound.wake.notify_one();
        }
    }
}

#[derive(Debug, Default)]
struct Rebound {
    sockets: Mutex<Option<Vec<TcpListener>>>,
    wake: Notify,
}

impl Rebound {
    fn lock(&self) -> MutexGuard<'_, Option<Vec<TcpListener>>> {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Option<Vec<TcpListener>> {
        self.lock().take()
    }
}

/// What a listener accepts from.
#[derive(Debug)]
struct Sockets {
    open: Vec<TcpListener>,
    /// Who was connected to sockets that were closed since, and not accepted yet.
    arrived: VecDeque<(TcpStream, SocketAddr)>,
}

impl Sockets {
    /// The next connection, after the pause that earlier failures ask for.
    async fn accept(&mut self, failures: &Failures) -> io::Result<(TcpStream, SocketAddr)> {
        if let Some(until) = failures.until {
            sleep_until(until).await;
        }
        let (tcp, source) = match self.arrived.pop_front() {
            Some(arrived) => arrived,
            None => poll_fn(|cx| self.poll_accept(cx)).await?,
        };
        // What listens on all addresses learns only now who comes.
        anyproxy_tcp::do_not_pace(&tcp, source.ip());
        Ok((tcp, canonical(source)))
    }

    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(TcpStream, SocketAddr)>> {
        self.open.iter().map(|socket| socket.poll_accept(cx)).find(Poll::is_ready).unwrap_or(Poll::Pending)
    }

    /// Closes the sockets that are open, and goes on with `sockets`.
    fn replace(&mut self, sockets: Vec<TcpListener>) {
        for socket in mem::replace(&mut self.open, sockets) {
            if let Err(error) = take_all(socket, &mut self.arrived) {
                warn!(%error, "connections to an address that was given up are lost");
            }
        }
    }
}

/// Accepts whom the kernel has connected to `socket`, and closes it. The system is asked, not the runtime, which may not
/// have heard of the last ones.
fn take_all(socket: TcpListener, arrived: &mut VecDeque<(TcpStream, SocketAddr)>) -> io::Result<()> {
    let socket = socket.into_std()?;
    for _ in 0..=BACKLOG {
        match socket.accept() {
            Ok((tcp, source)) => {
                tcp.set_nonblocking(true)?;
                arrived.push_back((TcpStream::from_std(tcp)?, source));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// A connection on its way to its thread. A socket is watched by the runtime it was made in, so one that goes elsewhere is
/// unmade here and made again there.
enum Arrival {
    Here(TcpStream),
    Moved(StdStream),
}

impl Arrival {
    fn unpack(self) -> io::Result<TcpStream> {
        match self {
            Self::Here(tcp) => Ok(tcp),
            Self::Moved(tcp) => TcpStream::from_std(tcp),
        }
    }
}

pin_project! {
    /// A connection that is received first: in a box, so that its kilobytes are gone while the connection lives.
    #[project = ServedProj]
    enum Served<Fut> {
        Received { received: Pin<Box<dyn Future<Output = Option<Fut>> + Send>> },
        Served { #[pin] served: Fut },
    }
}

impl<Fut: Future<Output = ()>> Future for Served<Fut> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            match self.as_mut().project() {
                ServedProj::Received { received } => match ready!(received.as_mut().poll(cx)) {
                    Some(served) => self.set(Self::Served { served }),
                    None => return Poll::Ready(()),
                },
                ServedProj::Served { served } => return served.poll(cx),
            }
        }
    }
}

/// A socket bound and made by somebody else (socket activation, a test). Its users get `TCP_NODELAY` and keep-alive
/// as those of the others do.
impl TryFrom<StdListener> for Listener {
    type Error = io::Error;

    fn try_from(socket: StdListener) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        tune(&SockRef::from(&socket))?;
        Self::new(vec![socket])
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener")
            .field("sockets", &self.sockets)
            .field("tls", &self.tls.is_some())
            .field("handshake_timeout", &self.handshake_timeout)
            .field("max_connections", &self.max_connections)
            .finish()
    }
}

async fn handshake(tls: Tls, tcp: TcpStream, source: SocketAddr, limit: Duration) -> Option<UserStream> {
    match timeout(limit, tls.accept(tcp)).await {
        Ok(Ok(tls)) => Some(tls.into()),
        Ok(Err(error)) => {
            debug!(%source, %error, "TLS handshake failed");
            None
        }
        Err(_) => {
            debug!(%source, "TLS handshake took too long");
            None
        }
    }
}

/// A socket for both families shows IPv4 users as IPv4-mapped ones; limits, logs and answers want the address itself.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    match address {
        // Everything else stays as it is: an IPv6 address may have a scope.
        SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
            Some(v4) => SocketAddr::new(v4.into(), address.port()),
            None => address,
        },
        SocketAddr::V4(_) => address,
    }
}

fn report(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        error!("a connection's task panicked; the others go on");
    }
}

fn bind(address: SocketAddr, v6_only: bool) -> io::Result<StdListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(v6_only)?;
    }
    // On Windows the option would let a second process take the port over.
    #[cfg(not(windows))]
    socket.set_reuse_address(true)?;
    tune(&socket)?;
    anyproxy_tcp::do_not_pace(&socket, address.ip());
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Accepted sockets inherit these from the listening one, which saves their system calls for each connection.
fn tune(socket: &Socket) -> io::Result<()> {
    let (idle, interval, retries) = KEEPALIVE;
    anyproxy_tcp::tune(socket, NOT_SENT)?;
    socket
        .set_tcp_keepalive(&TcpKeepalive::new().with_time(idle).with_interval(interval).with_retries(retries))
}

/// Accepts that failed in a row.
#[derive(Debug)]
struct Failures {
    in_a_row: u32,
    pauses: u32,
    /// No accept before. A point in time, because the loop forgets what it waited for whenever a connection ends.
    until: Option<Instant>,
    /// For all rows: near the limit of descriptors each one that is given back ends one, and the next accept begins another.
    told: Throttle,
}

impl Default for Failures {
    fn default() -> Self {
        Self { in_a_row: 0, pauses: 0, until: None, told: Throttle::new(TELL_EVERY) }
    }
}

impl Failures {
    /// One more. If it is to be told, how many others were not since the last that was.
    fn add(&mut self, error: &io::Error) -> Option<u64> {
        self.in_a_row = self.in_a_row.saturating_add(1);
        if is_of_one_connection(error) && self.in_a_row <= PATIENCE {
            return None;
        }
        self.pauses = self.pauses.saturating_add(1);
        self.until = self.pause().map(|pause| Instant::now() + pause);
        self.told.pass()
    }

    /// An accept succeeded.
    fn end(&mut self) {
        (self.in_a_row, self.pauses, self.until) = (0, 0, None);
    }

    fn pause(&self) -> Option<Duration> {
        let (first, longest) = BACKOFF;
        let doublings = self.pauses.checked_sub(1)?;
        Some(first.saturating_mul(1 << doublings.min(8)).min(longest))
    }
}

/// Whether the failure means the connection that was to be accepted, and not the machine (descriptors, memory).
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use rustls::pki_types::{PrivateKeyDer, ServerName};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::sync::mpsc;
    use tokio_rustls::TlsConnector;

    use super::*;

    fn loopback() -> (Listener, SocketAddr) {
        let listener = Listener::bind(&[(Ipv4Addr::LOCALHOST, 0).into()]).unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    /// Sends back what it gets.
    async fn echo(mut user: UserStream, _: SocketAddr) {
        let mut buf = [0; 64];
        while let Ok(read @ 1..) = user.read(&mut buf).await {
            if user.write_all(&buf[..read]).await.is_err() {
                return;
            }
        }
    }

    async fn answers(address: SocketAddr) -> bool {
        let mut user = TcpStream::connect(address).await.unwrap();
        user.write_all(b"ping").await.is_ok() && user.read_u32().await.is_ok()
    }

    #[tokio::test]
    async fn localhost_is_both_loopback_addresses_and_that_of_ipv4_must_be_free() {
        let listener = Listener::bind_localhost(0).unwrap();
        let addresses = listener.local_addrs().unwrap();
        let _served = tokio::spawn(listener.serve(CancellationToken::new(), echo));
        for address in &addresses {
            assert!(address.ip().is_loopback() && answers(*address).await, "{address}");
        }
        let taken = Listener::bind_localhost(addresses[0].port()).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
    }

    #[tokio::test]
    async fn one_socket_serves_both_families_and_several_sockets_each_their_own() {
        let any = Listener::bind_any(0).unwrap();
        let port = any.local_addr().unwrap().port();
        let both =
            Listener::bind(&[(Ipv4Addr::LOCALHOST, 0).into(), (Ipv4Addr::LOCALHOST, 0).into()]).unwrap();
        let addresses = both.local_addrs().unwrap();
        let stop = CancellationToken::new();
        let _any = tokio::spawn(any.serve(stop.clone(), |user, source| {
            assert_eq!(user.local_addr().unwrap().ip(), source.ip(), "loopback, and never IPv4-mapped");
            assert_eq!(source.ip().to_canonical(), source.ip());
            echo(user, source)
        }));
        let _both = tokio::spawn(both.serve(stop.clone(), echo));
        assert!(answers((Ipv4Addr::LOCALHOST, port).into()).await);
        if StdListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok() {
            assert!(answers((Ipv6Addr::LOCALHOST, port).into()).await);
        }
        for address in addresses {
            assert!(answers(address).await);
        }
    }

    #[tokio::test]
    async fn accepted_sockets_inherit_their_options() {
        let (listener, address) = loopback();
        let (seen, mut users) = mpsc::channel(1);
        let server = listener.serve(CancellationToken::new(), move |user, _| {
            let seen = seen.clone();
            async move { seen.send(user).await.unwrap() }
        });
        let _server = tokio::spawn(server);
        let _user = TcpStream::connect(address).await.unwrap();
        let user = users.recv().await.unwrap();
        assert!(user.tcp().nodelay().unwrap());
        assert!(SockRef::from(user.tcp()).keepalive().unwrap());
        #[cfg(any(target_os = "linux", target_os = "android"))]
        assert_eq!(SockRef::from(user.tcp()).tcp_notsent_lowat().unwrap(), NOT_SENT);
    }

    #[tokio::test]
    async fn r6_stop_closes_the_socket_at_once_and_waits_for_the_living() {
        let (listener, address) = loopback();
        let (stop, closed) = (CancellationToken::new(), CancellationToken::new());
        let mut server = tokio::spawn(listener.with_closed(closed.clone()).serve(stop.clone(), echo));
        let mut user = TcpStream::connect(address).await.unwrap();
        user.write_all(b"ping").await.unwrap();
        user.read_u32().await.unwrap();
        assert!(!closed.is_cancelled());
        stop.cancel();
        closed.cancelled().await;
        assert!(TcpStream::connect(address).await.is_err());
        user.write_all(b"pong").await.unwrap();
        user.read_u32().await.unwrap();
        assert!(!server.is_finished());
        drop(user);
        (&mut server).await.unwrap();
    }

    #[tokio::test]
    async fn r5_a_listener_moves_with_its_settings_and_the_living_go_on() {
        let (old, old_address) = loopback();
        let (new, new_address) = loopback();
        let rebind = old.rebind();
        let stop = CancellationToken::new();
        let server = tokio::spawn(old.with_max_connections(2).serve(stop.clone(), echo));
        let mut living = TcpStream::connect(old_address).await.unwrap();
        living.write_all(b"ping").await.unwrap();
        living.read_u32().await.unwrap();

        rebind.to(new);
        // Bound already: whoever comes before the move waits.
        let mut second = TcpStream::connect(new_address).await.unwrap();
        second.write_all(b"ping").await.unwrap();
        second.read_u32().await.unwrap();
        assert!(TcpStream::connect(old_address).await.is_err());
        living.write_all(b"pong").await.unwrap();
        living.read_u32().await.unwrap();
        assert!(!answers(new_address).await, "one more than the limit");

        drop((living, second));
        stop.cancel();
        server.await.unwrap();
        assert!(TcpStream::connect(new_address).await.is_err());
        let (late, late_address) = loopback();
        rebind.to(late);
        assert!(TcpStream::connect(late_address).await.is_err(), "nobody serves any more");
    }

    #[tokio::test]
    async fn r5_who_was_connected_to_the_old_address_before_the_move_is_served() {
        let (old, old_address) = loopback();
        let (new, new_address) = loopback();
        let mut users = Vec::new();
        for _ in 0..3 {
            users.push(TcpStream::connect(old_address).await.unwrap());
        }
        old.rebind().to(new);
        let _server = tokio::spawn(old.serve(CancellationToken::new(), echo));
        for user in &mut users {
            user.write_all(b"ping").await.unwrap();
            user.read_u32().await.unwrap();
        }
        assert!(answers(new_address).await);
    }

    #[tokio::test]
    async fn dropping_the_accept_loop_ends_its_connections() {
        let (listener, address) = loopback();
        let server = tokio::spawn(listener.serve(CancellationToken::new(), echo));
        let mut user = TcpStream::connect(address).await.unwrap();
        user.write_all(b"ping").await.unwrap();
        user.read_u32().await.unwrap();
        server.abort();
        assert_eq!(user.read(&mut [0; 8]).await.unwrap_or(0), 0);
    }

    #[tokio::test]
    async fn r7_a_panic_ends_one_connection() {
        let (listener, address) = loopback();
        let count = Arc::new(AtomicUsize::new(0));
        let server = listener.serve(CancellationToken::new(), move |user, source| {
            let first = count.fetch_add(1, Ordering::Relaxed) == 0;
            async move {
                assert!(!first, "injected");
                echo(user, source).await;
            }
        });
        let _server = tokio::spawn(server);
        assert!(!answers(address).await);
        assert!(answers(address).await);
    }

    #[tokio::test]
    async fn one_connection_more_than_the_limit_is_reset() {
        let (listener, address) = loopback();
        let _server = tokio::spawn(listener.with_max_connections(1).serve(CancellationToken::new(), echo));
        let mut first = TcpStream::connect(address).await.unwrap();
        first.write_all(b"ping").await.unwrap();
        first.read_u32().await.unwrap();
        let mut second = TcpStream::connect(address).await.unwrap();
        let error = second.read(&mut [0; 8]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        drop(first);
        while !answers(address).await {}
    }

    #[test]
    fn f6_failures_of_the_machine_pause_the_loop_and_those_of_connections_only_in_numbers() {
        let mut failures = Failures::default();
        let mut pauses = Vec::new();
        for _ in 0..6 {
            // EMFILE, ENFILE and ENOBUFS have no kind of their own.
            failures.add(&io::Error::from_raw_os_error(24));
            pauses.push(failures.pause().unwrap().as_millis());
        }
        assert_eq!(pauses, [100, 200, 400, 800, 1000, 1000]);

        let mut failures = Failures::default();
        for _ in 0..PATIENCE {
            failures.add(&io::ErrorKind::ConnectionAborted.into());
            assert_eq!(failures.pause(), None);
        }
        failures.add(&io::ErrorKind::ConnectionAborted.into());
        assert_eq!(failures.pause(), Some(BACKOFF.0));
    }

    #[test]
    fn f6_failures_between_accepts_that_succeed_are_told_once() {
        let mut failures = Failures::default();
        let out_of_descriptors = io::Error::from_raw_os_error(24);
        assert_eq!(failures.add(&out_of_descriptors), Some(0));
        for _ in 0..100 {
            failures.end();
            assert_eq!(failures.add(&out_of_descriptors), None);
            assert_eq!(failures.pause(), Some(BACKOFF.0), "each row begins anew");
        }
    }

    // === TLS ===

    fn certificate() -> (Arc<rustls::ServerConfig>, rustls::pki_types::CertificateDer<'static>) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
        let config = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        (Arc::new(config), made.cert.der().clone())
    }

    async fn trusts(address: SocketAddr, certificate: rustls::pki_types::CertificateDer<'static>) -> bool {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(certificate).unwrap();
        let config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let tcp = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let Ok(mut tls) = TlsConnector::from(Arc::new(config)).connect(name, tcp).await else { return false };
        tls.write_all(b"ping").await.unwrap();
        tls.read_u32().await.is_ok()
    }

    #[tokio::test]
    async fn r4_a_replaced_certificate_is_shown_to_the_next_handshake() {
        let ((old, old_root), (new, new_root)) = (certificate(), certificate());
        let (listener, address) = loopback();
        let tls = Tls::new(old);
        let _server = tokio::spawn(listener.with_tls(tls.clone()).serve(CancellationToken::new(), echo));
        assert!(trusts(address, old_root).await);
        tls.replace(new);
        assert!(trusts(address, new_root).await);
    }

    #[tokio::test]
    async fn users_are_served_on_the_thread_of_their_seat_with_tls_and_without() {
        let (config, root) = certificate();
        let (plain, address) = loopback();
        let (secure, secure_address) = loopback();
        let (workers, _crew) = anyproxy_workers::Workers::start(2, anyproxy_workers::Pulse::still()).unwrap();
        let (seen, mut threads) = mpsc::unbounded_channel();
        let front = move |user, source| {
            seen.send(std::thread::current().id()).unwrap();
            echo(user, source)
        };
        let (plain, secure) = (plain.with_seats(workers.users()), secure.with_seats(workers.users()));
        let _plain = tokio::spawn(plain.serve(CancellationToken::new(), front.clone()));
        let secure = secure.with_tls(Tls::new(config));
        let _secure = tokio::spawn(secure.serve(CancellationToken::new(), front));
        // A user who sits here already, so that the others have fewer beside them on the other thread.
        let held = workers.users().take();
        assert!(held.is_here());
        assert!(answers(address).await);
        let elsewhere = threads.recv().await.unwrap();
        assert_ne!(elsewhere, std::thread::current().id());
        while format!("{workers:?}") != "[(0, 1), (0, 0)]" {
            tokio::task::yield_now().await;
        }
        assert!(trusts(secure_address, root).await);
        assert_eq!(threads.recv().await.unwrap(), elsewhere);
    }

    #[tokio::test]
    async fn r6_stop_waits_for_no_handshake() {
        let (listener, address) = loopback();
        let stop = CancellationToken::new();
        let server = tokio::spawn(listener.with_tls(Tls::new(certificate().0)).serve(stop.clone(), echo));
        let mut silent = TcpStream::connect(address).await.unwrap();
        // Accepted in their order: once a second one was heard, the first is in its handshake.
        let mut second = TcpStream::connect(address).await.unwrap();
        second.write_all(b"no hello").await.unwrap();
        let _ = second.read_to_end(&mut Vec::new()).await;
        stop.cancel();
        timeout(Duration::from_secs(5), server).await.expect("not held up").unwrap();
        assert_eq!(silent.read(&mut [0; 8]).await.unwrap_or(0), 0);
    }

    #[tokio::test]
    async fn a_silent_handshake_is_closed_at_its_deadline_and_delays_nobody() {
        let (config, root) = certificate();
        let (listener, address) = loopback();
        let listener = listener.with_tls(Tls::new(config)).with_handshake_timeout(Duration::from_millis(200));
        let _server = tokio::spawn(listener.serve(CancellationToken::new(), echo));
        let mut silent = TcpStream::connect(address).await.unwrap();
        assert!(trusts(address, root).await);
        assert_eq!(silent.read(&mut [0; 8]).await.unwrap_or(0), 0);
    }
}
