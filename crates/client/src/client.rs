use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use anyproxy_acl::Policy;
use anyproxy_core::Target;
use anyproxy_tunnel::ClientTunnel;
use anyproxy_tunnel::frame::{ClientHello, GatewayHello, GoAwayCode, PortStatus};
use anyproxy_workers::Seats;
use arc_swap::ArcSwap;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::access::Escaped;
use crate::backoff::Backoff;
use crate::config::{Config, InvalidConfig};
use crate::link::{self, Link, LinkError};
use crate::resolve::Resolver;
use crate::serve::{self, Left};

/// Tunnels of one supervisor that the gateway has taken out of service and whose streams still live. Beyond it the
/// oldest is closed: a gateway that sends a go-away on every tunnel does not pile them up.
const RETIRED: usize = 8;

/// How long a gateway that went away in order may be absent before that is worth a warning: it drains, for 30 s as it
/// comes, and another takes its place.
const ABSENCE: Duration = Duration::from_secs(60);

/// A client: keeps tunnels to its gateways, and dials what they ask for and its own rules allow.
///
/// The crate's page shows how it is used.
#[derive(Debug)]
pub struct Client {
    shared: Arc<Shared>,
}

/// What can be asked of a client, and changed, while it runs. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle {
    rules: Arc<ArcSwap<Policy>>,
    live: watch::Receiver<usize>,
}

/// What all tasks of a client share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) id: Arc<str>,
    pub(crate) rules: Arc<ArcSwap<Policy>>,
    /// For targets.
    pub(crate) resolver: Resolver,
    /// For gateways: a client whose targets' name servers stall still finds its gateways.
    gateways: Resolver,
    instance: u128,
    pub(crate) live: Live,
    pub(crate) tasks: TaskTracker,
    /// Ends every tunnel at once, and with them all tasks.
    pub(crate) kill: CancellationToken,
}

// === impl Client ===

impl Client {
    /// A client of this configuration. Nothing happens before it [runs](Self::run).
    ///
    /// # Errors
    ///
    /// What is wrong with the configuration.
    pub fn new(config: Config) -> Result<Self, InvalidConfig> {
        Ok(Self { shared: Arc::new(Shared::new(config, Resolver::system())?) })
    }

    /// A handle to it.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle { rules: self.shared.rules.clone(), live: self.shared.live.subscribe() }
    }

    /// Keeps its tunnels until `stop` is cancelled. Then it drains: tells the gateways to send no more opens, and
    /// lets living streams finish for as long as [`Config::drain_timeout`] says. Every task has ended when it
    /// returns.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future cuts every tunnel, and every stream is reset.
    pub async fn run(self, stop: CancellationToken) {
        let shared = self.shared;
        let _kill = shared.kill.clone().drop_guard();
        let mut supervisors = JoinSet::new();
        for gateway in &shared.config.gateways {
            for _ in 0..shared.config.replicas {
                let supervisor = supervise(shared.clone(), gateway.clone(), stop.clone());
                match shared.config.seats.as_ref().map(Seats::take) {
                    None => supervisors.spawn(supervisor),
                    Some(seat) => {
                        let thread = seat.handle().clone();
                        supervisors.spawn_on(seat.keep(supervisor), &thread)
                    }
                };
            }
        }
        while let Some(ended) = supervisors.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "a supervisor of tunnels failed");
            }
        }
        shared.tasks.close();
        shared.tasks.wait().await;
    }
}

impl Shared {
    pub(crate) fn new(mut config: Config, resolver: Resolver) -> Result<Self, InvalidConfig> {
        config.check()?;
        let rules = std::mem::take(&mut config.rules).guarded();
        Ok(Self {
            id: config.client_id.as_str().into(),
            rules: Arc::new(ArcSwap::from_pointee(rules)),
            resolver,
            gateways: Resolver::system(),
            instance: fastrand::u128(..),
            live: Live(watch::Sender::new(0)),
            tasks: TaskTracker::new(),
            kill: CancellationToken::new(),
            config,
        })
    }
}

impl Handle {
    /// Puts other rules in force, [guarded](Policy::guarded): for every open from now on. Streams that live go on.
    pub fn set_rules(&self, rules: Policy) {
        self.rules.store(Arc::new(rules.guarded()));
    }

    /// The rules in force.
    #[must_use]
    pub fn rules(&self) -> Arc<Policy> {
        self.rules.load_full()
    }

    /// How many tunnels stand and take opens: a client with none is not ready.
    #[must_use]
    pub fn tunnels(&self) -> usize {
        *self.live.borrow()
    }

    /// The same, to be waited on.
    #[must_use]
    pub fn watch_tunnels(&self) -> watch::Receiver<usize> {
        self.live.clone()
    }
}

/// Counts the tunnels that take opens.
#[derive(Debug)]
pub(crate) struct Live(watch::Sender<usize>);

/// One of them; no longer when it is dropped.
pub(crate) struct LiveTunnel(watch::Sender<usize>);

impl Live {
    pub(crate) fn subscribe(&self) -> watch::Receiver<usize> {
        self.0.subscribe()
    }

    pub(crate) fn enter(&self) -> LiveTunnel {
        self.0.send_modify(|live| *live += 1);
        LiveTunnel(self.0.clone())
    }
}

impl Drop for LiveTunnel {
    fn drop(&mut self) {
        self.0.send_modify(|live| *live -= 1);
    }
}

// === Supervisor ===

/// Keeps one tunnel to `gateway`, for ever: connects, serves, connects again.
async fn supervise(shared: Arc<Shared>, gateway: Target, stop: CancellationToken) {
    let mut backoff = Backoff::default();
    let mut retired = VecDeque::new();
    let mut expected: Option<Instant> = None;
    while !stop.is_cancelled() {
        let hello = hello(&shared);
        let established = link::establish(&shared.config, &shared.gateways, &gateway, hello);
        let wait = match stop.run_until_cancelled(established).await {
            None => return,
            Some(Err(error)) => {
                let wait = backoff.failed(fastrand::f64());
                report(&gateway, &error, wait, expected.is_some_and(|until| Instant::now() < until));
                wait
            }
            Some(Ok(link)) => {
                expected = None;
                greet(&shared, &gateway, &link.hello);
                let tunnel = link.tunnel.clone();
                let (begun, left) = (Instant::now(), serve_apart(&shared, link, &stop));
                match left.await {
                    Ok(Left::Stopped) => return,
                    Ok(Left::GoAway(GoAwayCode::Replaced)) => {
                        tracing::warn!(
                            %gateway,
                            client = %Escaped(&shared.id),
                            "another instance took this client's place; is its client_id used twice?"
                        );
                        retire(&mut retired, tunnel);
                        backoff.replaced(fastrand::f64())
                    }
                    Ok(Left::GoAway(_)) => {
                        retire(&mut retired, tunnel);
                        expected = Some(Instant::now() + ABSENCE);
                        backoff.lost(begun.elapsed(), fastrand::f64())
                    }
                    Ok(Left::Ended(reason)) => {
                        tracing::warn!(%gateway, %reason, "a tunnel was lost");
                        backoff.lost(begun.elapsed(), fastrand::f64())
                    }
                    // Its task panicked, which has been said where panics are.
                    Err(_) => backoff.lost(begun.elapsed(), fastrand::f64()),
                }
            }
        };
        if stop.run_until_cancelled(sleep(wait)).await.is_none() {
            return;
        }
    }
}

/// Serves `link` in a task of its own, which outlives the service of a tunnel that drains.
fn serve_apart(shared: &Arc<Shared>, link: Link, stop: &CancellationToken) -> oneshot::Receiver<Left> {
    let (left, receiver) = oneshot::channel();
    shared.tasks.spawn(serve::serve(shared.clone(), link, stop.clone(), left));
    receiver
}

fn retire(retired: &mut VecDeque<ClientTunnel>, tunnel: ClientTunnel) {
    retired.push_back(tunnel);
    if retired.len() > RETIRED
        && let Some(oldest) = retired.pop_front()
    {
        oldest.close();
    }
}

fn hello(shared: &Shared) -> ClientHello {
    let mut hello = ClientHello::new(&*shared.id, shared.instance);
    hello.ports = shared.config.open_ports.iter().map(|port| port.request()).collect();
    hello.software = concat!("anyproxy/", env!("CARGO_PKG_VERSION")).to_owned();
    hello
}

/// Says what the gateway said.
fn greet(shared: &Shared, gateway: &Target, hello: &GatewayHello) {
    tracing::info!(
        %gateway,
        session = format_args!("{:016x}", hello.session),
        software = %Escaped(&hello.software),
        "a tunnel to the gateway stands"
    );
    for (port, verdict) in shared.config.open_ports.iter().zip(&hello.ports) {
        let (number, target, transport) = (port.remote_port, &port.target, port.transport);
        match verdict.status {
            PortStatus::Open => {
                tracing::info!(%gateway, port = number, ?transport, %target, "the gateway opened a port")
            }
            status => {
                tracing::warn!(%gateway, port = number, ?transport, %target, ?status, "the gateway did not open a port");
            }
        }
    }
}

/// `expected`: the gateway has said that it goes.
fn report(gateway: &Target, error: &LinkError, wait: Duration, expected: bool) {
    let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
    let cause = cause(error);
    if error.is_refusal() {
        tracing::error!(%gateway, error = %error, %cause, advice = error.advice(), wait_ms, "no tunnel");
    } else if expected {
        tracing::debug!(%gateway, error = %error, %cause, wait_ms, "no tunnel, as the gateway had said");
    } else {
        tracing::warn!(%gateway, error = %error, %cause, wait_ms, "no tunnel");
    }
}

/// The rest of an error's chain, in one line.
fn cause(error: &dyn std::error::Error) -> String {
    let links = std::iter::successors(error.source(), |error| error.source());
    let text = links.map(ToString::to_string).collect::<Vec<_>>().join(": ");
    Escaped(&text).to_string()
}
