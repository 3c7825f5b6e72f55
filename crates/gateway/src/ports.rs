//! The fixed ports that clients ask their gateway to listen on: a front that ships.
//!
//! A connection to such a port is a dial like any other, with the identity `port:<account>`, through the same
//! layers; only the client that asked may serve it ([`OnlyClient`]). Its target is `localhost` and the port at the
//! gateway: what that port stands for in its network, the client alone knows.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt;
use std::future::pending;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyproxy_core::{
    Account, Association, BoxDial, Dial, DialService, Front, Host, Identity, OnlyClient, Target, printable,
};
use anyproxy_front::{Connection, Listener, RelayConfig, lost, relay};
use anyproxy_tunnel::Memory;
use anyproxy_tunnel::frame::{PortRequest, PortStatus, PortVerdict, Transport};
use bytes::BytesMut;
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use crate::account::PORT_USER;
use crate::registry::Claim;

use self::udp::Drops;

mod udp;

/// How long a port stays open after its client's last tunnel: a client that reconnects finds it, and so do its users,
/// who meanwhile wait for the client as those of every front do.
const KEEP: Duration = Duration::from_secs(10);

/// How often a tunnel's client is tried to be given what somebody else had when it asked.
const TRY_AGAIN: Duration = Duration::from_secs(10);

/// The front of the ports that clients may have opened, and the book of who has which.
///
/// A handle; clones share the book. The ports live until [`Gateway::serve`](crate::Gateway::serve) ends.
#[derive(Clone)]
pub struct Ports(Arc<Book>);

struct Book {
    address: IpAddr,
    prepare: Box<dyn Fn(Listener) -> Listener + Send + Sync>,
    dials: BoxDial,
    relay: RelayConfig,
    open: Mutex<HashMap<PortRequest, Holder>>,
    /// Ends the accepting of connections; those that live go on.
    deaf: CancellationToken,
    /// Ends datagrams, which have no connections that could live on.
    stop: CancellationToken,
    tasks: TaskTracker,
    drops: Arc<Drops>,
}

/// An open port, and how many tunnels of its client hold it; or one that closes.
struct Holder {
    client: OnlyClient,
    /// As whom its users dial: of the group that the client serves now.
    identity: watch::Sender<Identity>,
    tunnels: watch::Sender<usize>,
    /// Closes it at once.
    stop: CancellationToken,
    /// It is closed, and not in the book any more.
    gone: CancellationToken,
}

/// The ports a tunnel's client holds by it; given back on drop.
#[derive(Default)]
pub(crate) struct Leases {
    held: Vec<Lease>,
    wanting: Option<Wanting>,
}

/// What a client asked for and may have, but somebody else has, or the system did not grant.
struct Wanting {
    ports: Ports,
    claim: Claim,
    memory: Memory,
    requests: Vec<PortRequest>,
}

struct Lease(watch::Sender<usize>);

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.send_modify(|tunnels| *tunnels -= 1);
    }
}

impl Leases {
    /// No port for anybody.
    pub(crate) fn denied(requests: &[PortRequest]) -> (Vec<PortVerdict>, Self) {
        let denied = |request: &PortRequest| PortVerdict { request: *request, status: PortStatus::Denied };
        (requests.iter().map(denied).collect(), Self::default())
    }

    /// Takes what is wanting when it can be had, while the tunnel `takes_opens`: a client that takes another's place asks
    /// before that one is gone, and asks once.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing.
    pub(crate) async fn complete(&mut self, takes_opens: impl Fn() -> bool) -> Infallible {
        let Some(Wanting { ports, claim, memory, requests }) = &mut self.wanting else {
            return pending().await;
        };
        let mut tries = interval_at(Instant::now() + TRY_AGAIN, TRY_AGAIN);
        tries.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tries.tick().await;
            if takes_opens() {
                requests.retain(|request| match ports.lease_one(claim, *request, memory) {
                    Ok(lease) => {
                        self.held.push(lease);
                        false
                    }
                    Err(_) => true,
                });
            }
        }
    }
}

/// Why a port is not leased.
enum Unleased {
    Denied,
    /// Another client has it.
    Taken,
    /// The system does not grant it.
    Failed(io::Error),
    /// Its last holder's socket is still there: until then.
    Closing(CancellationToken),
}

// === impl Ports ===

impl Ports {
    /// Opens ports on `address` for clients that ask and may, and dials with `dials`: the stack that the other
    /// fronts use, without its login.
    pub fn new<S>(address: IpAddr, dials: S, relay: RelayConfig) -> Self
    where
        S: DialService<Future: Send + 'static>,
    {
        Self::with_listener(address, dials, relay, |listener| listener)
    }

    /// The same, each TCP port's listener being made ready by `prepare`: how many connections, on which threads.
    pub fn with_listener<S>(
        address: IpAddr,
        dials: S,
        relay: RelayConfig,
        prepare: impl Fn(Listener) -> Listener + Send + Sync + 'static,
    ) -> Self
    where
        S: DialService<Future: Send + 'static>,
    {
        Self(Arc::new(Book {
            address,
            prepare: Box::new(prepare),
            dials: BoxDial::new(dials),
            relay,
            open: Mutex::default(),
            deaf: CancellationToken::new(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            drops: Arc::default(),
        }))
    }

    /// The ports that are open now, and the client of each.
    #[must_use]
    pub fn open(&self) -> Vec<(u16, &'static str, Arc<str>)> {
        let name = |transport| match transport {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
        };
        let open = self.0.lock();
        open.iter().map(|(key, holder)| (key.port, name(key.transport), holder.client.id.clone())).collect()
    }

    /// Why UDP ports have dropped datagrams, from a closed set, and how many since the start.
    pub fn udp_drops(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
        self.0.drops.counts().into_iter()
    }

    /// Accepts no more connections.
    pub(crate) fn stop_listening(&self) {
        self.0.deaf.cancel();
    }

    /// Closes all ports and waits for their connections.
    pub(crate) async fn close(&self) {
        self.stop_listening();
        self.0.stop.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    /// Judges what a client asks for, in the order it asks. What waits at its ports counts in `memory`.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives back what was leased so far.
    pub(crate) async fn lease(
        &self,
        claim: &Claim,
        requests: &[PortRequest],
        memory: &Memory,
    ) -> (Vec<PortVerdict>, Leases) {
        let (mut verdicts, mut held, mut wanting) = (Vec::new(), Vec::new(), Vec::new());
        for request in requests {
            let status = loop {
                match self.lease_one(claim, *request, memory) {
                    Ok(lease) => {
                        held.push(lease);
                        break PortStatus::Open;
                    }
                    Err(Unleased::Denied) => break PortStatus::Denied,
                    Err(Unleased::Taken) => break PortStatus::Taken,
                    Err(Unleased::Failed(error)) => {
                        warn!(client = &*printable(&claim.id), port = request.port, %error, "cannot open a client's port");
                        let taken = error.kind() == io::ErrorKind::AddrInUse;
                        break if taken { PortStatus::Taken } else { PortStatus::Failed };
                    }
                    // Until its socket is closed, nobody can have the port, whoever had it.
                    Err(Unleased::Closing(gone)) => gone.cancelled().await,
                }
            };
            if matches!(status, PortStatus::Taken | PortStatus::Failed) {
                wanting.push(*request);
            }
            verdicts.push(PortVerdict { request: *request, status });
        }
        let wanting = (!wanting.is_empty()).then(|| Wanting {
            ports: self.clone(),
            claim: claim.clone(),
            memory: memory.clone(),
            requests: wanting,
        });
        (verdicts, Leases { held, wanting })
    }

    fn lease_one(&self, claim: &Claim, request: PortRequest, memory: &Memory) -> Result<Lease, Unleased> {
        if !claim.account.may_open(request.port) {
            warn!(
                client = &*printable(&claim.id),
                account = &**claim.account.name(),
                port = request.port,
                "port refused: not one of its account"
            );
            // It may have been one of them a moment ago.
            if let Some(holder) = self.0.lock().get(&request)
                && holder.client == claim.client()
            {
                holder.stop.cancel();
            }
            return Err(Unleased::Denied);
        }
        let mut open = self.0.lock();
        if let Some(holder) = open.get(&request) {
            if holder.stop.is_cancelled() {
                return Err(Unleased::Closing(holder.gone.clone()));
            }
            if holder.client != claim.client() {
                return Err(Unleased::Taken);
            }
            holder.identity.send_if_modified(|identity| {
                let moves = identity.group() != &*claim.group;
                if moves {
                    *identity = identity_of(claim);
                }
                moves
            });
            holder.tunnels.send_modify(|tunnels| *tunnels += 1);
            return Ok(Lease(holder.tunnels.clone()));
        }
        let ends = match request.transport {
            Transport::Tcp => &self.0.deaf,
            Transport::Udp => &self.0.stop,
        };
        let holder = Holder {
            client: claim.client(),
            identity: watch::Sender::new(identity_of(claim)),
            tunnels: watch::Sender::new(1),
            stop: ends.child_token(),
            gone: CancellationToken::new(),
        };
        self.spawn(request, &holder, memory).map_err(Unleased::Failed)?;
        info!(client = &*printable(&claim.id), port = request.port, transport = ?request.transport, "opened a client's port");
        let lease = Lease(holder.tunnels.clone());
        open.insert(request, holder);
        Ok(lease)
    }

    /// Binds the port and serves it in a task of its own.
    fn spawn(&self, request: PortRequest, holder: &Holder, memory: &Memory) -> io::Result<()> {
        let address = SocketAddr::new(self.0.address, request.port);
        let port = Port {
            dials: self.0.dials.clone(),
            relay: self.0.relay,
            identity: holder.identity.subscribe(),
            only: holder.client.clone(),
            port: request.port,
            memory: memory.clone(),
            drops: self.0.drops.clone(),
        };
        let (stop, closed) = (holder.stop.clone(), CancellationToken::new());
        let unused = unused(self.clone(), holder.tunnels.subscribe(), stop.clone());
        let (book, gone, is_closed) = (self.clone(), holder.gone.clone(), closed.clone());
        let closing = async move {
            unused.await;
            is_closed.cancelled().await;
            book.0.lock().remove(&request);
            info!(port = request.port, transport = ?request.transport, "closed a client's port");
            gone.cancel();
        };
        match request.transport {
            Transport::Tcp => {
                let listener = (self.0.prepare)(Listener::bind(&[address])?).with_closed(closed);
                let served = listener.serve(stop, move |user, source| port.clone().serve_tcp(user, source));
                self.0.tasks.spawn(async move { tokio::join!(served, closing) });
            }
            Transport::Udp => {
                let socket = std::net::UdpSocket::bind(address)?;
                socket.set_nonblocking(true)?;
                let served = udp::serve(port, UdpSocket::from_std(socket)?, stop);
                let served = async move {
                    let _closed = closed.drop_guard();
                    served.await;
                };
                self.0.tasks.spawn(async move { tokio::join!(served, closing) });
            }
        }
        Ok(())
    }
}

impl Book {
    fn lock(&self) -> MutexGuard<'_, HashMap<PortRequest, Holder>> {
        // Nothing panics while it holds the lock.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ports")
            .field("address", &self.0.address)
            .field("open", &self.open())
            .finish_non_exhaustive()
    }
}

/// Who the users of a client's port are.
fn identity_of(claim: &Claim) -> Identity {
    Account::new(format!("{PORT_USER}{}", claim.account.name()), [claim.group.clone()]).into()
}

/// Stops a port when no tunnel has held it for [`KEEP`]; ready when it is stopped.
async fn unused(ports: Ports, mut tunnels: watch::Receiver<usize>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            released = tunnels.wait_for(|tunnels| *tunnels == 0) => if released.is_err() { return stop.cancel() },
        }
        tokio::select! {
            () = stop.cancelled() => return,
            held = timeout(KEEP, tunnels.wait_for(|tunnels| *tunnels > 0)) => if held.is_ok() { continue },
        }
        // Under the lock it is leased, or found to be closing.
        let _open = ports.0.lock();
        if *tunnels.borrow() == 0 {
            return stop.cancel();
        }
    }
}

// === Port ===

/// What every connection to one port has in common.
#[derive(Clone)]
struct Port {
    dials: BoxDial,
    relay: RelayConfig,
    identity: watch::Receiver<Identity>,
    only: OnlyClient,
    port: u16,
    memory: Memory,
    drops: Arc<Drops>,
}

impl Port {
    fn dial(&self, source: SocketAddr, association: Option<Association>) -> Option<Dial> {
        let target = Target::new(Host::parse("localhost").ok()?, self.port).ok()?;
        let mut dial = match association {
            None => Dial::tcp(target, source, Front::PORT),
            Some(association) => Dial::udp(association, target, source, Front::PORT),
        };
        dial.identity = self.identity.borrow().clone();
        dial.extensions.insert(self.only.clone());
        Some(dial)
    }

    async fn serve_tcp<U: Connection>(self, mut user: U, source: SocketAddr) {
        // Until there is a stream every end is a reset: the port has no way to say why.
        user.abort_when_lost(true);
        let Some(dial) = self.dial(source, None) else { return };
        let mut early = BytesMut::new();
        let dialled = tokio::select! {
            dialled = self.dials.dial(dial) => dialled,
            () = lost(&mut user, &mut early) => {
                debug!(%source, port = self.port, "the user left before their client answered");
                return;
            }
        };
        match dialled {
            Ok(stream) => {
                relay(user, stream, self.relay).with_early(early.freeze()).await;
            }
            Err(error) => {
                debug!(%source, port = self.port, %error, "connection to a client's port not served");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::net::{Ipv4Addr, TcpListener as StdListener};
    use std::task::Poll;

    use anyproxy_core::{BoxError, BoxStream};
    use tokio::task::yield_now;
    use tokio::time::advance;

    use super::*;
    use crate::ClientAccount;

    fn ports() -> Ports {
        let dials = tower::service_fn(|_: Dial| pending::<Result<BoxStream, BoxError>>());
        Ports::new(Ipv4Addr::LOCALHOST.into(), dials, RelayConfig::default())
    }

    fn claim(port: Option<u16>) -> Claim {
        let account = ClientAccount::new("east", ["blue"]).with_open_ports(port.map(|port| port..=port));
        Claim { id: "ssh".into(), instance: 1, group: "blue".into(), account: account.into() }
    }

    /// A free port, for both transports.
    fn requests() -> [PortRequest; 2] {
        let listener = StdListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        [Transport::Tcp, Transport::Udp].map(|transport| PortRequest { port, transport })
    }

    async fn lease(ports: &Ports, claim: &Claim, requests: &[PortRequest]) -> (Vec<PortStatus>, Leases) {
        let (verdicts, leases) = ports.lease(claim, requests, &Memory::default()).await;
        (verdicts.iter().map(|verdict| verdict.status).collect(), leases)
    }

    #[tokio::test]
    async fn a_port_that_was_just_taken_away_is_opened_when_it_is_closed() {
        let (ports, requests) = (ports(), requests());
        let (may, may_not) = (claim(Some(requests[0].port)), claim(None));
        let (status, _leases) = lease(&ports, &may, &requests).await;
        assert_eq!(status, [PortStatus::Open; 2]);
        assert_eq!(lease(&ports, &may_not, &requests).await.0, [PortStatus::Denied; 2]);
        let (status, _leases) = lease(&ports, &may, &requests).await;
        assert_eq!(status, [PortStatus::Open; 2]);
        assert_eq!(ports.open().len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn what_another_client_had_is_for_a_tunnel_that_takes_opens() {
        let (ports, requests) = (ports(), requests());
        let first = claim(Some(requests[0].port));
        let second = Claim { id: "other".into(), ..first.clone() };
        let (_, holder) = lease(&ports, &first, &requests).await;
        let (status, mut leases) = lease(&ports, &second, &requests).await;
        assert_eq!(status, [PortStatus::Taken; 2]);
        drop(holder);
        assert!(timeout(KEEP + 2 * TRY_AGAIN, leases.complete(|| false)).await.is_err());
        assert!(ports.open().is_empty());
        assert!(timeout(2 * TRY_AGAIN, leases.complete(|| true)).await.is_err());
        assert!(ports.open().iter().all(|(.., client)| &**client == "other") && ports.open().len() == 2);
        drop(leases);
        tokio::time::sleep(2 * KEEP).await;
        assert!(ports.open().is_empty(), "they are leases like others");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_comes_back_while_its_port_closes_has_it_again() {
        // In a task of its own, which has its turn between those of the ports' tasks.
        let coming_back = tokio::spawn(async {
            let (ports, requests) = (ports(), requests());
            let may = claim(Some(requests[0].port));
            // The turn of a port's task begins now with its socket and now with its clock.
            for (polls, turns) in (0..8).map(|round| (round % 2, round / 2)) {
                let (status, leases) = lease(&ports, &may, &requests).await;
                assert_eq!(status, [PortStatus::Open; 2]);
                drop(leases);
                yield_now().await;
                for _ in 0..polls {
                    drop(lease(&ports, &may, &requests).await);
                    yield_now().await;
                }
                // Timers are rounded up to milliseconds.
                advance(KEEP + Duration::from_millis(1)).await;
                for _ in 0..turns {
                    turn().await;
                }
                let (status, leases) = lease(&ports, &may, &requests).await;
                assert_eq!(status, [PortStatus::Open; 2], "{polls} polls, {turns} turns");
                drop(leases);
                tokio::time::sleep(2 * KEEP).await;
                assert!(ports.open().is_empty());
            }
        });
        coming_back.await.unwrap();
    }

    /// Lets those have their turn who are ready now; `yield_now` waits for what they set off, too.
    async fn turn() {
        let mut waited = false;
        poll_fn(|cx| {
            if std::mem::replace(&mut waited, true) {
                return Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }
}
