use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use anyproxy_core::{
    Account, BoxError, BoxFuture, Dial, Endpoint, Front, Guarded, Host, Journal, Load, Network, TraceParent,
};
use anyproxy_tunnel::frame::{HostRef, MAX_FRONT, MAX_GROUP, MAX_GROUPS, MAX_USER, Open, OpenOk};
use anyproxy_tunnel::{OpenError, Opening, Stream, Tunnel};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tower::Service;

use crate::account::ClientAccount;
use crate::error::NotServed;
use crate::pins::{Hold, Pin};
use crate::registry::Common;

// What accounts may be called is what fits the wire: a user who could log in and never dial would be a riddle.
const _: () = assert!(
    Account::MAX_USER == MAX_USER
        && Account::MAX_GROUP == MAX_GROUP
        && Account::MAX_GROUPS == MAX_GROUPS
        && Front::MAX_NAME == MAX_FRONT
);

/// One client: a dial service that opens streams on its tunnels.
///
/// A snapshot of the registry, and a handle: it goes on while its tunnels live.
#[derive(Clone)]
pub struct Client(Arc<Member>);

struct Member {
    id: Arc<str>,
    group: Arc<str>,
    account: Arc<ClientAccount>,
    instance: u128,
    links: Box<[Link]>,
    common: Arc<Common>,
}

/// One tunnel of a client.
#[derive(Clone)]
pub(crate) struct Link {
    pub(crate) tunnel: Tunnel,
    pub(crate) session: u64,
    /// Dials under way and living streams.
    streams: Arc<AtomicUsize>,
    /// Somebody took the client's place: the owner of the tunnel ends it in an orderly way.
    pub(crate) replaced: CancellationToken,
}

impl Link {
    pub(crate) fn new(tunnel: Tunnel, session: u64) -> Self {
        Self { tunnel, session, streams: Arc::default(), replaced: CancellationToken::new() }
    }
}

/// What is known of one tunnel now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TunnelStatus {
    /// The tunnel's number, the same in the logs of both ends.
    pub session: u64,
    /// Dials under way and living streams.
    pub streams: usize,
    /// Bytes that wait to leave.
    pub unsent: usize,
    /// The last round trip measured.
    pub rtt: Option<Duration>,
    /// Whether it has bytes to send that are not taken, and for three seconds nothing was taken or heard.
    pub stalled: bool,
}

/// A stream that counts as its client's load until its last byte.
pub type ClientStream = Guarded<Stream, Carried>;

/// What a living stream holds at the gateway; gives it back on drop.
#[derive(Debug)]
pub struct Carried {
    streams: Arc<AtomicUsize>,
    /// Boxed, since few streams have one.
    _pin: Option<Box<Hold>>,
    _counted: TaskTrackerToken,
}

impl Drop for Carried {
    fn drop(&mut self) {
        self.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

// === impl Client ===

impl Client {
    pub(crate) fn new(
        id: Arc<str>,
        group: Arc<str>,
        account: Arc<ClientAccount>,
        instance: u128,
        link: Link,
        common: Arc<Common>,
    ) -> Self {
        Self(Arc::new(Member { id, group, account, instance, links: Box::new([link]), common }))
    }

    /// The same client with other tunnels.
    pub(crate) fn with_links(&self, links: impl IntoIterator<Item = Link>) -> Self {
        Self(Arc::new(Member {
            id: self.0.id.clone(),
            group: self.0.group.clone(),
            account: self.0.account.clone(),
            instance: self.0.instance,
            links: links.into_iter().collect(),
            common: self.0.common.clone(),
        }))
    }

    /// The same client with other rights.
    pub(crate) fn with_account(&self, account: Arc<ClientAccount>) -> Self {
        Self(Arc::new(Member {
            id: self.0.id.clone(),
            group: self.0.group.clone(),
            account,
            instance: self.0.instance,
            links: self.0.links.clone(),
            common: self.0.common.clone(),
        }))
    }

    /// The name it goes by; only one client of a gateway has it at a time.
    #[must_use]
    pub fn id(&self) -> &Arc<str> {
        &self.0.id
    }

    /// The group whose users it serves.
    #[must_use]
    pub fn group(&self) -> &Arc<str> {
        &self.0.group
    }

    /// The account it logged in with.
    #[must_use]
    pub fn account(&self) -> &Arc<ClientAccount> {
        &self.0.account
    }

    /// What is known of each of its tunnels now.
    pub fn tunnels(&self) -> impl Iterator<Item = TunnelStatus> + '_ {
        self.0.links.iter().map(|link| TunnelStatus {
            session: link.session,
            streams: link.streams.load(Ordering::Relaxed),
            unsent: link.tunnel.unsent(),
            rtt: link.tunnel.rtt(),
            stalled: link.tunnel.is_stalled(),
        })
    }

    pub(crate) fn instance(&self) -> u128 {
        self.0.instance
    }

    pub(crate) fn links(&self) -> &[Link] {
        &self.0.links
    }

    /// Whether a tunnel takes opens. Once that is no longer so, it never is again for this snapshot.
    pub(crate) fn is_usable(&self) -> bool {
        self.0.links.iter().any(|link| link.tunnel.accepts_opens())
    }

    /// Whether a tunnel takes opens and moves what it has.
    pub(crate) fn is_healthy(&self) -> bool {
        self.0.links.iter().any(|link| link.tunnel.is_healthy())
    }

    /// Chooses the tunnel and counts the dial as its load.
    fn begin(&self, dial: &Dial) -> Result<(Link, Carried), NotServed> {
        let common = &self.0.common;
        if common.is_draining() {
            return Err(NotServed::draining(self.id()));
        }
        let pin = match dial.network {
            Network::Tcp => None,
            Network::Udp(association) => {
                let held = common.pins.hold(association, self, !dial.target.is_unspecified());
                Some(held.map_err(|_| NotServed::pinned_elsewhere(self.id()))?)
            }
        };
        let link =
            self.link(pin.as_ref().map(Hold::pin)).ok_or_else(|| NotServed::no_tunnel(self.id()))?.clone();
        link.streams.fetch_add(1, Ordering::Relaxed);
        let streams = link.streams.clone();
        Ok((link, Carried { streams, _pin: pin.map(Box::new), _counted: common.streams.token() }))
    }

    /// The tunnel for one more stream: that of its association if it has one, else the least loaded, a stalled one
    /// only where there is no other.
    fn link(&self, pin: Option<&Pin>) -> Option<&Link> {
        let open = self.0.links.iter().filter(|link| link.tunnel.accepts_opens());
        if let Some(pin) = pin
            && let Some(link) = open.clone().find(|link| link.session == pin.session())
        {
            return Some(link);
        }
        let link = open.min_by_key(|link| {
            (link.tunnel.is_stalled(), link.streams.load(Ordering::Relaxed), link.tunnel.unsent())
        })?;
        if let Some(pin) = pin {
            pin.set_session(link.session);
        }
        Some(link)
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("id", &self.0.id)
            .field("group", &self.0.group)
            .field("tunnels", &self.0.links.len())
            .finish_non_exhaustive()
    }
}

impl Service<Dial> for Client {
    type Response = ClientStream;
    type Error = BoxError;
    type Future = BoxFuture<ClientStream>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, dial: Dial) -> Self::Future {
        let limit = self.0.common.open_timeout;
        let begun = self.begin(&dial).and_then(|begun| {
            let open = open(&dial, limit);
            open.check().map_err(|field| NotServed::unwritable(self.id(), field))?;
            Ok((begun, open))
        });
        let client = self.id().clone();
        Box::pin(async move {
            let ((link, carried), open) = begun?;
            let asked = Instant::now();
            let mut asking =
                Asking { opening: link.tunnel.open(open), journal: &dial.journal, client: &client };
            let answer = timeout(limit, &mut asking.opening).await;
            let took = asked.elapsed();
            dial.journal.add_opening(took);
            // The client's own word: it cannot have taken longer than the whole.
            if let Ok(answer) = &answer
                && let Some(connecting) = connecting(answer)
            {
                dial.journal.add_connecting(connecting.min(took));
            }
            let (stream, ok) = match answer {
                Ok(answer) => answer.map_err(|error| NotServed::new(&client, error))?,
                Err(_) => return Err(NotServed::unanswered(&client).into()),
            };
            drop(asking);
            dial.journal.set_served(stream.stream_ref(), client, ok.address);
            dial.journal.set_pulse(link.tunnel.pulse());
            Ok(Guarded::new(stream, carried))
        })
    }
}

impl Endpoint for Client {
    fn name(&self) -> &str {
        &self.0.id
    }

    fn load(&self) -> Load {
        self.0.links.iter().fold(Load::default(), |load, link| Load {
            streams: load.streams + link.streams.load(Ordering::Relaxed),
            unsent: load.unsent + link.tunnel.unsent(),
        })
    }
}

/// An open on its way. However it ends but with a stream, a user who leaves included, the journal knows who was asked.
struct Asking<'a> {
    opening: Opening,
    journal: &'a Journal,
    client: &'a Arc<str>,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        if let Some(stream) = self.opening.stream_ref() {
            self.journal.set_asked(stream, self.client.clone());
        }
    }
}

/// How long the client says it resolved and connected.
fn connecting(answer: &Result<(Stream, OpenOk), OpenError>) -> Option<Duration> {
    let took_us = match answer {
        Ok((_, ok)) => ok.took_us,
        Err(OpenError::Refused(err, _)) => err.took_us,
        Err(_) => None,
    };
    took_us.map(|took_us| Duration::from_micros(took_us.into()))
}

/// The dial in the words of the wire.
fn open(dial: &Dial, limit: Duration) -> Open {
    let host = match dial.target.host() {
        Host::Name(name) => HostRef::Name(name.as_str().to_owned()),
        Host::Ip(address) => HostRef::Ip(*address),
    };
    let port = dial.target.port();
    let open = match dial.network {
        Network::Tcp => Open::tcp(host, port),
        Network::Udp(association) => Open::udp(association.id(), host, port),
    };
    Open {
        user: dial.identity.user().unwrap_or_default().to_owned(),
        groups: dial.identity.groups().map(str::to_owned).collect(),
        front: dial.front.as_str().to_owned(),
        source: Some(dial.source),
        rules: dial.rules.map_or(0, |mark| mark.version().get()),
        traceparent: dial.extensions.get::<TraceParent>().map(TraceParent::to_string),
        // The client gives up first, so that a silent target and a silent client are told apart.
        deadline_ms: u32::try_from((limit * 2 / 3).as_millis()).unwrap_or(u32::MAX),
        ..open
    }
}
