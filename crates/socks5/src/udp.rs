use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt;
use std::future::{pending, poll_fn};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyproxy_core::{BoxFuture, ByteStream, SourcePrefix, Target};
use anyproxy_front::{Connection, Throttle};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _};
use tokio::net::UdpSocket;
use tokio::sync::Semaphore;
use tracing::warn;

use self::relay::UdpRelay;

mod relay;

/// Asked of the kernel for each association's port, so that a burst survives until its task runs. The kernel gives
/// what it allows.
const SOCKET_BUFFER: usize = 1024 * 1024;

/// Destinations that each association has for itself, however many its user's others have: a resolver's worth.
const OWN_DESTINATIONS: usize = 16;

/// Destinations beyond these that all associations of one user have together. With the 16 of each of 64 it makes 4,096, a
/// sixteenth of the streams of a tunnel.
const SHARED_DESTINATIONS: usize = 3_072;

/// Dials that all associations of one user have under way together: a quarter of the opens that a tunnel leaves
/// unanswered.
const MAX_USER_DIALS: usize = 256;

/// Whether and how UDP ASSOCIATE is served.
///
/// A user's association is a UDP port of the gateway, tied to the connection that asked for it. Each destination a
/// user sends to is a dial of its own, through the same stack as every stream: what it denies costs that datagram
/// and never the association. Before the first of them the stack is asked for the
/// [association itself](anyproxy_core::Dial::associate), so that who may reach nothing, or whom no client serves, is told so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdpConfig {
    /// Whether at all (default: yes); if not, the reply is 07.
    pub enabled: bool,
    /// The address users are told to send to, where it is not the one they connected to: that of the box in front of
    /// the gateway that translates addresses (default: none). Users who connected to an address of the other family, at
    /// which nothing is translated, are told that one. Ports are passed on as they are.
    pub advertise_addr: Option<IpAddr>,
    /// How long an association lives without a datagram from its user (default: 120 s; RFC 4787 REQ-5); what targets
    /// send does not count. Shorter loses the answers of slow targets. A destination is forgotten after the same time,
    /// or sooner where the far end does so.
    pub idle_timeout: Duration,
    /// The most destinations of one association at once (default: 1,024); one more takes the place of the one that was
    /// sent to the longest time ago. So it does where one user's associations have 3,072 together beyond the first 16 of
    /// each.
    pub max_destinations: NonZeroUsize,
    /// The most associations of this front (default: 4,096); beyond them the reply is 01. Each is a descriptor.
    pub max_associations: usize,
    /// The most associations of one user, or of one source address where users have no names (default: 64).
    pub max_associations_per_user: usize,
}

impl Default for UdpConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            advertise_addr: None,
            idle_timeout: Duration::from_secs(120),
            max_destinations: NonZeroUsize::new(1024).expect("not 0"),
            max_associations: 4096,
            max_associations_per_user: 64,
        }
    }
}

/// The port of an association, at the address the user has connected to, and what to tell the user about it.
pub(crate) fn bind(local: Option<SocketAddr>, config: &UdpConfig) -> io::Result<(UdpSocket, SocketAddr)> {
    let mut address = local.ok_or(io::ErrorKind::AddrNotAvailable)?;
    address.set_port(0);
    let socket = std::net::UdpSocket::bind(address)?;
    socket.set_nonblocking(true)?;
    // Less is served as well.
    let _ = socket2::SockRef::from(&socket).set_recv_buffer_size(SOCKET_BUFFER);
    let _ = socket2::SockRef::from(&socket).set_send_buffer_size(SOCKET_BUFFER);
    let bound = socket.local_addr()?;
    // Nobody listens for this user at an address of the other family.
    let advertised = config.advertise_addr.filter(|ip| ip.is_ipv4() == bound.is_ipv4());
    let ip = advertised.unwrap_or_else(|| bound.ip());
    Ok((UdpSocket::from_std(socket)?, SocketAddr::new(ip, bound.port())))
}

/// Carries datagrams until the control connection ends, or the user has been silent for too long. `dial` reaches
/// another destination of the association.
pub(crate) async fn serve<U: Connection, S: ByteStream>(
    user: &mut U,
    source: SocketAddr,
    socket: UdpSocket,
    dial: impl Fn(Target) -> BoxFuture<S>,
    from: Option<SocketAddr>,
    config: &UdpConfig,
    shared: Shared,
) -> End {
    // Answers are sent without waiting, which the runtime does not try on a socket it has never seen writable.
    if let Err(error) = socket.writable().await {
        return End::Socket(error);
    }
    // Behind a translator the user does not know the address they send from, and the port means nothing either; who
    // leaves the address out says as little.
    let port = from.filter(|from| from.ip().to_canonical() == source.ip()).map(|from| from.port());
    let mut relay = UdpRelay::new(socket, source.ip(), port, dial, config, shared);
    tokio::select! {
        biased;
        () = ended(user) => End::Control,
        end = poll_fn(|cx| relay.poll(cx)) => end,
    }
}

/// Keeps an association's own stream, by which its client is told of the end, until that client is lost. The flows
/// that are dialled then find another.
pub(crate) async fn keep(mut stream: impl ByteStream) -> Infallible {
    loop {
        match stream.fill_buf().await.map(<[u8]>::len) {
            Ok(0) | Err(_) => break,
            Ok(length) => stream.consume(length),
        }
    }
    drop(stream);
    pending().await
}

/// Ready when the control connection has ended. Nothing more is to be said on it; what is said is not heard.
async fn ended<U: Connection>(user: &mut U) {
    let mut buf = [0; 256];
    while let Ok(1..) = user.read(&mut buf).await {}
}

/// Why an association ended.
#[derive(Debug)]
pub(crate) enum End {
    Control,
    Idle,
    Socket(io::Error),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Control => f.write_str("its connection ended"),
            Self::Idle => f.write_str("the user was silent for too long"),
            Self::Socket(error) => write!(f, "its port failed: {error}"),
        }
    }
}

// === What was dropped ===

/// Counts the datagrams that were dropped, by reason. UDP allows it; an operator wants to know.
#[derive(Debug, Default)]
pub struct UdpDrops([AtomicU64; Dropped::ALL.len()]);

/// Why a datagram was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dropped {
    /// It came from somebody else than the user.
    Stranger,
    /// Not a SOCKS5 datagram.
    Malformed,
    /// A fragment.
    Fragment,
    /// Its destination was refused, lately or just now.
    Refused,
    /// The way up is full, or too many wait for their destination.
    Full,
    /// An answer that the way to the user did not take.
    Unsent,
}

impl Dropped {
    const ALL: [(Self, &'static str); 6] = [
        (Self::Stranger, "stranger"),
        (Self::Malformed, "malformed"),
        (Self::Fragment, "fragment"),
        (Self::Refused, "refused"),
        (Self::Full, "full"),
        (Self::Unsent, "unsent"),
    ];
}

impl UdpDrops {
    /// The reasons, from a closed set, and how many datagrams each has cost since the start.
    pub fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Dropped::ALL.iter().zip(&self.0).map(|((_, name), count)| (*name, count.load(Ordering::Relaxed)))
    }

    pub(crate) fn add(&self, reason: Dropped, datagrams: usize) {
        self.0[reason as usize].fetch_add(datagrams as u64, Ordering::Relaxed);
    }
}

// === Who has how many ===

/// Whose association it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum User {
    Name(Box<str>),
    Source(SourcePrefix),
}

/// The associations there are.
#[derive(Debug, Default)]
pub(crate) struct Seats(Mutex<Taken>);

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    /// Of users who have any.
    by_user: HashMap<User, Own>,
}

#[derive(Debug, Default)]
struct Own {
    associations: usize,
    places: Places,
}

/// What the associations of one user may take of a client's tunnel together, which others need too.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    /// Beyond [`OWN_DESTINATIONS`] of each.
    destinations: Arc<Semaphore>,
    dials: Arc<Semaphore>,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            destinations: Arc::new(Semaphore::new(SHARED_DESTINATIONS)),
            dials: Arc::new(Semaphore::new(MAX_USER_DIALS)),
        }
    }
}

/// What an association shares: the counts with all of its front, the places with those of its user.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) drops: Arc<UdpDrops>,
    pub(crate) places: Places,
}

impl Seats {
    /// One more, unless there are too many.
    pub(crate) fn take(self: &Arc<Self>, user: User, config: &UdpConfig) -> Option<Seat> {
        static FULL: LazyLock<Throttle> = LazyLock::new(|| Throttle::new(Duration::from_secs(60)));

        let mut taken = self.lock();
        if taken.all >= config.max_associations {
            if let Some(others) = FULL.pass() {
                warn!(
                    limit = config.max_associations,
                    others, "too many UDP associations, one more is refused"
                );
            }
            return None;
        }
        if taken.by_user.get(&user).map_or(0, |own| own.associations) >= config.max_associations_per_user {
            return None;
        }
        let own = taken.by_user.entry(user.clone()).or_default();
        own.associations += 1;
        let places = own.places.clone();
        taken.all += 1;
        drop(taken);
        Some(Seat { seats: self.clone(), user, places })
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One association's place, given back on drop.
#[derive(Debug)]
pub(crate) struct Seat {
    seats: Arc<Seats>,
    user: User,
    places: Places,
}

impl Seat {
    /// Those of its user.
    pub(crate) fn places(&self) -> Places {
        self.places.clone()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.lock();
        taken.all -= 1;
        if let Some(own) = taken.by_user.get_mut(&self.user) {
            own.associations -= 1;
            if own.associations == 0 {
                taken.by_user.remove(&self.user);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i9_seats_are_capped_in_all_and_per_user_and_come_back() {
        let config = UdpConfig { max_associations: 3, max_associations_per_user: 2, ..UdpConfig::default() };
        let seats = Arc::new(Seats::default());
        let take = |name: &str| seats.take(User::Name(name.into()), &config);
        let alice = [take("alice"), take("alice")];
        assert!(alice.iter().all(Option::is_some));
        assert!(take("alice").is_none());
        let bob = take("bob");
        assert!(bob.is_some());
        assert!(take("carol").is_none());
        drop(alice);
        assert!(take("carol").is_some());
        drop(bob);
        assert!(seats.lock().by_user.is_empty() && seats.lock().all == 0);
    }

    #[test]
    fn every_reason_has_its_own_count() {
        let drops = UdpDrops::default();
        for (number, (reason, _)) in Dropped::ALL.into_iter().enumerate() {
            drops.add(reason, number + 1);
        }
        let counts: Vec<_> = drops.counts().collect();
        for (number, (_, name)) in Dropped::ALL.into_iter().enumerate() {
            assert_eq!(counts[number], (name, number as u64 + 1));
        }
    }
}
