//! The fixed ports that clients ask their gateway to listen on: a front that ships.
//!
//! A connection to such a port is a dial like any other, with the identity `port:<account>`, through the same
//! layers; only the client that asked may serve it ([`OnlyClient`]). Its target is `localhost` and the port at the
//! gateway: what that port stands for in its network, the client alone knows.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyproxy_core::{Account, Association, BoxDial, Dial, DialService, Front, Host, Identity, Target};
use anyproxy_front::{Connection, Listener, RelayConfig, lost, relay};
use anyproxy_tunnel::Memory;
use anyproxy_tunnel::frame::{PortRequest, PortStatus, PortVerdict, Transport};
use bytes::BytesMut;
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use crate::registry::{Claim, OnlyClient};

use self::udp::Drops;

mod udp;

/// How long a port stays open after its client's last tunnel: a client that reconnects finds it, and so do its users,
/// who meanwhile wait for the client as those of every front do.
const KEEP: Duration = Duration::from_secs(10);

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

/// An open port, and how many tunnels of its client hold it.
struct Holder {
    client: OnlyClient,
    /// As whom its users dial: of the group that the client serves now.
    identity: watch::Sender<Identity>,
    tunnels: watch::Sender<usize>,
    /// Closes it at once.
    stop: CancellationToken,
}

/// The ports a tunnel's client holds by it; given back on drop.
pub(crate) struct Leases {
    _held: Vec<Lease>,
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
        (requests.iter().map(denied).collect(), Self { _held: Vec::new() })
    }
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
    pub(crate) fn lease(
        &self,
        claim: &Claim,
        requests: &[PortRequest],
        memory: &Memory,
    ) -> (Vec<PortVerdict>, Leases) {
        let mut leases = Vec::new();
        let verdicts = requests
            .iter()
            .map(|request| {
                let status = match self.lease_one(claim, *request, memory) {
                    Ok(lease) => {
                        leases.push(lease);
                        PortStatus::Open
                    }
                    Err(status) => status,
                };
                PortVerdict { request: *request, status }
            })
            .collect();
        (verdicts, Leases { _held: leases })
    }

    fn lease_one(&self, claim: &Claim, request: PortRequest, memory: &Memory) -> Result<Lease, PortStatus> {
        if !claim.account.may_open(request.port) {
            warn!(
                client = ?claim.id,
                account = &**claim.account.name(),
                port = request.port,
                "port refused: not one of its account"
            );
            // It may have been one of them a moment ago.
            let mut open = self.0.lock();
            if open.get(&request).is_some_and(|holder| holder.client == claim.client())
                && let Some(holder) = open.remove(&request)
            {
                holder.stop.cancel();
            }
            return Err(PortStatus::Denied);
        }
        let mut open = self.0.lock();
        if let Some(holder) = open.get(&request) {
            if holder.client != claim.client() {
                return Err(PortStatus::Taken);
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
        };
        self.spawn(request, &holder, memory).map_err(|error| {
            warn!(client = ?claim.id, port = request.port, %error, "cannot open a client's port");
            if error.kind() == io::ErrorKind::AddrInUse { PortStatus::Taken } else { PortStatus::Failed }
        })?;
        info!(client = ?claim.id, port = request.port, transport = ?request.transport, "opened a client's port");
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
        let stop = holder.stop.clone();
        let unused = unused(self.clone(), request, holder.tunnels.subscribe(), stop.clone());
        match request.transport {
            Transport::Tcp => {
                let listener = (self.0.prepare)(Listener::bind(&[address])?);
                let served = listener.serve(stop, move |user, source| port.clone().serve_tcp(user, source));
                self.0.tasks.spawn(async move { tokio::join!(served, unused) });
            }
            Transport::Udp => {
                let socket = std::net::UdpSocket::bind(address)?;
                socket.set_nonblocking(true)?;
                let served = udp::serve(port, UdpSocket::from_std(socket)?, stop);
                self.0.tasks.spawn(async move { tokio::join!(served, unused) });
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
    Account::new(format!("port:{}", claim.account.name()), [claim.group.clone()]).into()
}

/// Closes a port when no tunnel has held it for [`KEEP`].
async fn unused(
    ports: Ports,
    request: PortRequest,
    mut tunnels: watch::Receiver<usize>,
    stop: CancellationToken,
) {
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            released = tunnels.wait_for(|tunnels| *tunnels == 0) => if released.is_err() { break },
        }
        tokio::select! {
            () = stop.cancelled() => break,
            held = timeout(KEEP, tunnels.wait_for(|tunnels| *tunnels > 0)) => if held.is_ok() { continue },
        }
        let mut open = ports.0.lock();
        // Somebody else may hold it by now, if it was closed at once.
        if *tunnels.borrow() == 0 && !stop.is_cancelled() {
            open.remove(&request);
            info!(port = request.port, transport = ?request.transport, "closed a client's port");
            break;
        }
    }
    stop.cancel();
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
