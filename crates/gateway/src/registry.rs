use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyproxy_core::{Dial, Endpoints, FOR_EVER, Network, OnlyClient, printable};
use anyproxy_tunnel::frame::GoAwayCode;
use arc_swap::ArcSwapOption;
use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::account::ClientAccount;
use crate::client::{Client, Link};
use crate::pins::Pins;
use crate::routes::Routes;
use crate::rules::Versions;

/// How long a client may take to answer an open, unless it is set. A client's own limit for its dial is shorter, so
/// that the target's silence is told apart from the client's.
pub const DEFAULT_OPEN_TIMEOUT: Duration = Duration::from_secs(15);

/// The most tunnels of one client. What `replicas` may ask for, with room for those that are dead and not yet known
/// to be.
pub(crate) const MAX_TUNNELS: usize = 128;

/// Instances remembered that had to give a client's name up. Two processes that were given the same name need one
/// place, and a few more are found out too.
const MAX_OUSTED: usize = 4;

/// How long an ousted instance must stay away: twice as long with each return, never longer than the second.
const PENALTY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// The clients of a gateway: who is connected, in which groups, with which tunnels.
///
/// A handle; clones share the registry. As [`Endpoints`] it is what a balancer chooses from and what a waiting dial
/// waits for. It is written by the [`Gateway`](crate::Gateway) alone.
///
/// Everything is one watched value: looking at it is one short read lock and no copy, and a wait for a client looks
/// at the present first and misses no change.
#[derive(Clone)]
pub struct Clients(Arc<Registry>);

struct Registry {
    present: watch::Sender<Present>,
    routes: ArcSwapOption<Box<dyn Routes>>,
    sessions: AtomicU64,
    common: Arc<Common>,
}

/// What the registry shares with each of its clients.
pub(crate) struct Common {
    pub(crate) pins: Arc<Pins>,
    /// Has one token for each dial under way and each living stream.
    pub(crate) streams: TaskTracker,
    pub(crate) open_timeout: Duration,
    draining: AtomicBool,
}

impl Common {
    pub(crate) fn new(open_timeout: Duration) -> Self {
        let streams = TaskTracker::new();
        streams.close();
        Self {
            pins: Arc::default(),
            streams,
            open_timeout: open_timeout.min(FOR_EVER),
            draining: AtomicBool::new(false),
        }
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }
}

#[derive(Default)]
struct Present {
    groups: HashMap<Arc<str>, Arc<[Client]>>,
    seats: HashMap<Arc<str>, Seat>,
    /// Tunnels of clients whose place another took, by session, until they end: each as a client that has no other.
    replaced: HashMap<u64, Client>,
    rules: Versions,
    /// Whose tunnels may stand; all, until something was revoked.
    wanted: Option<Wanted>,
}

type Wanted = Arc<dyn Fn(&ClientAccount) -> bool + Send + Sync>;

/// A name in use.
struct Seat {
    client: Client,
    /// Instances that gave the name up, the latest last.
    ousted: VecDeque<u128>,
    /// How often one of them took it back, and when the seat last changed hands.
    returns: u32,
    since: Instant,
}

/// Who a tunnel belongs to: what its login and its hello say.
#[derive(Clone, Debug)]
pub(crate) struct Claim {
    pub(crate) id: Arc<str>,
    pub(crate) instance: u128,
    pub(crate) group: Arc<str>,
    pub(crate) account: Arc<ClientAccount>,
}

impl Claim {
    pub(crate) fn client(&self) -> OnlyClient {
        OnlyClient { id: self.id.clone(), account: self.account.name().clone() }
    }
}

/// Why a tunnel is not registered. Told to the client as the reason of its go-away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// A client of another account goes by this name.
    NameTaken,
    /// The instance serves another group.
    OtherGroup,
    /// The instance has as many tunnels as it may.
    TooManyTunnels,
    /// The instance lost the name to another and comes back too soon.
    Feud { wait: Duration },
    /// The account is another than when it logged in, or is gone.
    Unwanted,
    /// The gateway drains.
    Draining,
}

impl Refusal {
    /// That of the go-away.
    pub(crate) const fn code(&self) -> GoAwayCode {
        match self {
            Self::Draining => GoAwayCode::Shutdown,
            _ => GoAwayCode::Refused,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NameTaken => f.write_str("another account's client has this client id"),
            Self::OtherGroup => f.write_str("this instance serves another group already"),
            Self::TooManyTunnels => write!(f, "more than {MAX_TUNNELS} tunnels of one client"),
            Self::Feud { wait } => {
                write!(
                    f,
                    "another process with this client id took over; not before {} s",
                    wait.as_secs() + 1
                )
            }
            Self::Unwanted => f.write_str("the account has changed since the login"),
            Self::Draining => f.write_str("the gateway drains"),
        }
    }
}

/// A tunnel's place in the registry. Dropping it takes this tunnel out, and never one that came later.
#[derive(Debug)]
pub(crate) struct Registration {
    clients: Clients,
    id: Arc<str>,
    session: u64,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.clients.remove(&self.id, self.session);
    }
}

// === impl Clients ===

impl Default for Clients {
    fn default() -> Self {
        Self::new(DEFAULT_OPEN_TIMEOUT)
    }
}

impl Clients {
    /// A registry whose clients may take `open_timeout` to answer an open (default: 15 s).
    #[must_use]
    pub fn new(open_timeout: Duration) -> Self {
        Self(Arc::new(Registry {
            present: watch::Sender::default(),
            routes: ArcSwapOption::empty(),
            sessions: AtomicU64::new(first_session()),
            common: Arc::new(Common::new(open_timeout)),
        }))
    }

    /// Decides from now on which group serves a dial.
    ///
    /// A stack that keeps streams for coming requests must be told to forget them (`ReuseLayer::forget` of the HTTP
    /// front), after this call and whenever `routes` begins to decide otherwise by itself: they lead where the dials
    /// that opened them were sent.
    pub fn set_routes(&self, routes: impl Routes) {
        self.0.routes.store(Some(Arc::new(Box::new(routes))));
    }

    /// Sends the rules that hold at the clients too to each tunnel; tunnels that come later get them first of all. These
    /// are all there are from now on, each a version and the rules as they are encoded: one for each policy that leaves
    /// something to clients, none where none does. A version is never 0, and of more than four a client forgets the first.
    ///
    /// Call it before dials are judged by a new version: one that overtook its rules would be refused.
    pub fn set_rules(&self, rules: impl IntoIterator<Item = (u32, Bytes)>) {
        let rules = rules.into_iter().collect();
        self.0.present.send_modify(|present| {
            for (version, rules) in present.rules.replace(Instant::now(), rules) {
                for link in present.seats.values().flat_map(|seat| seat.client.links()) {
                    link.tunnel.send_rules(version, rules.clone());
                }
            }
        });
    }

    /// The clients that are connected now, for a page or a metric.
    #[must_use]
    pub fn connected(&self) -> Vec<Client> {
        self.0.present.borrow().seats.values().map(|seat| seat.client.clone()).collect()
    }

    /// Whether some client takes dials now. One that drains is still connected, and takes none. Without any, a gateway is
    /// not ready.
    #[must_use]
    pub fn takes_dials(&self) -> bool {
        self.0.present.borrow().seats.values().any(|seat| seat.client.is_usable())
    }

    /// How many clients are connected now.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.present.borrow().seats.len()
    }

    /// Whether no client is connected now.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Dials under way and living streams, those of replaced tunnels too.
    #[must_use]
    pub fn streams(&self) -> usize {
        self.0.common.streams.len()
    }

    /// Ends the tunnels of every account that `wanted` does not want, and lets no more of them in: what was revoked stays
    /// revoked, for those too who have logged in and not yet said hello, and for those whose place another took and who
    /// have streams to finish. It holds until the next call.
    pub fn retain(&self, wanted: impl Fn(&ClientAccount) -> bool + Send + Sync + 'static) {
        let wanted: Wanted = Arc::new(wanted);
        // From here on nobody comes in between.
        self.0.present.send_modify(|present| present.wanted = Some(wanted.clone()));
        let all: Vec<Client> = self.0.present.borrow().with_tunnels().cloned().collect();
        for client in all {
            if !wanted(client.account()) {
                info!(client = &*printable(client.id()), "client is no longer wanted");
                client.links().iter().for_each(|link| link.tunnel.close());
            }
        }
    }

    /// Tells every client to open its tunnels elsewhere, refuses new dials as
    /// [`Overloaded`](anyproxy_core::Outcome::Overloaded), and waits until the last stream has ended, at most
    /// `limit`. Says how many streams and dials are left: they go on until whoever serves their connections ends those.
    /// There is no way back.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future stops the waiting only.
    pub async fn drain(&self, limit: Duration) -> usize {
        self.0.common.draining.store(true, Ordering::Relaxed);
        for client in self.connected() {
            client.links().iter().for_each(|link| link.tunnel.drain());
        }
        let drained = tokio::time::timeout(limit, self.0.common.streams.wait()).await;
        drained.map_or_else(|_| self.streams(), |()| 0)
    }

    /// Whether [`drain`](Self::drain) was called.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.0.common.is_draining()
    }

    /// A number for one more tunnel.
    pub(crate) fn next_session(&self) -> u64 {
        self.0.sessions.fetch_add(1, Ordering::Relaxed)
    }

    /// Whether a tunnel of this claim would be taken now.
    pub(crate) fn check(&self, claim: &Claim) -> Result<(), Refusal> {
        if self.is_draining() {
            return Err(Refusal::Draining);
        }
        let present = self.0.present.borrow();
        present.judge(claim)?;
        match present.seats.get(&claim.id) {
            None => Ok(()),
            Some(seat) => seat.judge(claim).map(|_| ()),
        }
    }

    /// Puts a tunnel in its place. From here on dials may come in on it.
    pub(crate) fn register(&self, claim: &Claim, link: Link) -> Result<Registration, Refusal> {
        let session = link.session;
        let mut result = Err(Refusal::Draining);
        self.0.present.send_if_modified(|present| {
            // Within the lock: one that came between a drain and its look at who is there would be told nothing.
            if !self.is_draining() {
                result = present.seat(claim, link, &self.0.common);
            }
            result.is_ok()
        });
        result.map(|()| Registration { clients: self.clone(), id: claim.id.clone(), session })
    }

    fn remove(&self, id: &Arc<str>, session: u64) {
        self.0.present.send_if_modified(|present| present.unseat(id, session));
    }

    /// The group whose clients serve this dial.
    fn group_of(&self, dial: &Dial) -> Option<Arc<str>> {
        let group = self.0.routes.load().as_ref().and_then(|routes| routes.group(dial))?;
        dial.identity.has_group(&group).then_some(group)
    }
}

impl fmt::Debug for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clients").field("connected", &self.len()).finish_non_exhaustive()
    }
}

impl Endpoints for Clients {
    type Endpoint = Client;

    fn snapshot(&self, dial: &Dial) -> Arc<[Client]> {
        if let Some(only) = dial.extensions.get() {
            return self.0.present.borrow().only(only).cloned().into_iter().collect();
        }
        let routed = self.group_of(dial);
        let group = routed.as_deref().unwrap_or_else(|| dial.identity.group());
        let Some(all) = self.0.present.borrow().serving(group, dial).cloned() else { return Arc::default() };
        if let Network::Udp(association) = dial.network
            && let Some(group) = all.first().map(Client::group)
            && let Some(id) = self.0.common.pins.client(association, group)
            && let Some(client) = all.iter().find(|client| *client.id() == id && client.is_usable())
        {
            return Arc::new([client.clone()]);
        }
        // While draining nobody takes opens, and asking one is what says so.
        if self.is_draining() || all.iter().all(Client::is_healthy) {
            return all;
        }
        let healthy: Arc<[_]> = all.iter().filter(|client| client.is_healthy()).cloned().collect();
        if !healthy.is_empty() {
            return healthy;
        }
        // Better a client that stalls than none: it may be over its stall before anybody else is there.
        all.iter().filter(|client| client.is_usable()).cloned().collect()
    }

    fn served(&self, dial: &Dial) -> impl Future<Output = ()> + Send + 'static {
        let only = dial.extensions.get::<OnlyClient>().cloned();
        let group = self.group_of(dial).unwrap_or_else(|| dial.identity.group().into());
        let groups: Vec<Arc<str>> = others(dial).map(Into::into).collect();
        let mut present = self.0.present.subscribe();
        async move {
            // The only error is that the registry is gone, and nobody waits for one that is.
            let _ = present
                .wait_for(|present| match &only {
                    Some(only) => present.only(only).is_some_and(Client::is_usable),
                    None => [&group].into_iter().chain(&groups).any(|group| present.serves(group)),
                })
                .await;
        }
    }
}

/// The groups that may serve a dial besides the one it is for. A user's association has no target that a route could
/// look at: there may be one wherever one of its flows could go.
fn others(dial: &Dial) -> impl Iterator<Item = &str> {
    dial.target.is_unspecified().then(|| dial.identity.groups()).into_iter().flatten()
}

// === impl Present ===

impl Present {
    /// The clients of the group; for an association without any there that could serve it, those of the user's next group.
    fn serving(&self, group: &str, dial: &Dial) -> Option<&Arc<[Client]>> {
        let mut groups = [group].into_iter().chain(others(dial));
        let usable = groups.find(|group| self.serves(group));
        self.groups.get(usable.unwrap_or(group))
    }

    fn serves(&self, group: &str) -> bool {
        self.groups.get(group).is_some_and(|all| all.iter().any(Client::is_usable))
    }

    /// Whether the account is still as it was when it logged in.
    fn judge(&self, claim: &Claim) -> Result<(), Refusal> {
        let is_wanted = self.wanted.as_ref().is_none_or(|wanted| wanted(&claim.account));
        is_wanted.then_some(()).ok_or(Refusal::Unwanted)
    }

    fn seat(&mut self, claim: &Claim, link: Link, common: &Arc<Common>) -> Result<(), Refusal> {
        self.judge(claim)?;
        let newcomer = |link| {
            let Claim { id, instance, group, account } = claim.clone();
            Client::new(id, group, account, instance, link, common.clone())
        };
        for (version, rules) in self.rules.for_newcomer(Instant::now()) {
            link.tunnel.send_rules(version, rules);
        }
        let Some(seat) = self.seats.get_mut(&claim.id) else {
            let client = newcomer(link);
            self.seats.insert(claim.id.clone(), Seat::new(client.clone()));
            self.put(client);
            return Ok(());
        };
        let old = match seat.judge(claim)? {
            Entry::Tunnel => {
                // Its rights may be others than when the first tunnel came.
                let links = seat.client.links().iter().cloned().chain([link]);
                seat.client = seat.client.with_links(links).with_account(claim.account.clone());
                None
            }
            Entry::Takeover { returns } => {
                let old = std::mem::replace(&mut seat.client, newcomer(link));
                seat.oust(&old, returns);
                Some(old)
            }
        };
        let client = seat.client.clone();
        if let Some(old) = old {
            for link in old.links() {
                link.replaced.cancel();
                self.replaced.insert(link.session, old.with_links([link.clone()]));
            }
            if old.group() != client.group() {
                self.take(old.group(), old.id());
            }
        }
        self.put(client);
        Ok(())
    }

    fn unseat(&mut self, id: &Arc<str>, session: u64) -> bool {
        // The seat has changed hands since: what is left is not this tunnel's to clean up.
        if self.replaced.remove(&session).is_some() {
            return false;
        }
        let Some(seat) = self.seats.get_mut(id) else { return false };
        let links = seat.client.links();
        if links.len() > 1 {
            seat.client =
                seat.client.with_links(links.iter().filter(|link| link.session != session).cloned());
            let client = seat.client.clone();
            self.put(client);
        } else {
            let group = seat.client.group().clone();
            self.seats.remove(id);
            self.take(&group, id);
        }
        true
    }

    /// All who have a tunnel, those whose place another took too.
    fn with_tunnels(&self) -> impl Iterator<Item = &Client> {
        self.seats.values().map(|seat| &seat.client).chain(self.replaced.values())
    }

    fn only(&self, only: &OnlyClient) -> Option<&Client> {
        let client = &self.seats.get(&only.id)?.client;
        (client.account().name() == &only.account).then_some(client)
    }

    /// Puts a client into its group, in place of its former self.
    fn put(&mut self, client: Client) {
        let group = self.groups.entry(client.group().clone()).or_default();
        *group = if group.iter().any(|other| other.id() == client.id()) {
            let same =
                |other: &Client| if other.id() == client.id() { client.clone() } else { other.clone() };
            group.iter().map(same).collect()
        } else {
            group.iter().cloned().chain([client]).collect()
        };
    }

    fn take(&mut self, group: &Arc<str>, id: &Arc<str>) {
        if let Some(all) = self.groups.get_mut(group) {
            *all = all.iter().filter(|client| client.id() != id).cloned().collect();
            if all.is_empty() {
                self.groups.remove(group);
            }
        }
    }
}

// === impl Seat ===

/// How a tunnel comes in where its client's name is in use.
enum Entry {
    /// One more of the same instance.
    Tunnel,
    /// The first of a new instance.
    Takeover { returns: u32 },
}

impl Seat {
    fn new(client: Client) -> Self {
        Self { client, ousted: VecDeque::new(), returns: 0, since: Instant::now() }
    }

    fn judge(&self, claim: &Claim) -> Result<Entry, Refusal> {
        if self.client.account().name() != claim.account.name() {
            return Err(Refusal::NameTaken);
        }
        if self.client.instance() == claim.instance {
            return if self.client.group() != &claim.group {
                Err(Refusal::OtherGroup)
            } else if self.client.links().len() >= MAX_TUNNELS {
                Err(Refusal::TooManyTunnels)
            } else {
                Ok(Entry::Tunnel)
            };
        }
        if !self.ousted.contains(&claim.instance) {
            return Ok(Entry::Takeover { returns: 0 });
        }
        let (first, longest) = PENALTY;
        let penalty = first.saturating_mul(1 << self.returns.min(16)).min(longest);
        let wait = penalty.saturating_sub(self.since.elapsed());
        if wait.is_zero() {
            Ok(Entry::Takeover { returns: self.returns + 1 })
        } else {
            Err(Refusal::Feud { wait })
        }
    }

    fn oust(&mut self, old: &Client, returns: u32) {
        if returns > 0 {
            warn!(
                client = &*printable(old.id()),
                account = &**old.account().name(),
                returns,
                "two processes use the same client id"
            );
        }
        self.ousted.retain(|instance| *instance != self.client.instance());
        if self.ousted.len() == MAX_OUSTED {
            self.ousted.pop_front();
        }
        self.ousted.push_back(old.instance());
        self.returns = returns;
        self.since = Instant::now();
    }
}

/// A start for the tunnels' numbers: random in its upper half, so that two lives of a gateway do not write the same
/// stream into their logs.
fn first_session() -> u64 {
    use std::hash::BuildHasher as _;
    std::hash::RandomState::new().hash_one(()) << 32 | 1
}
