use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use anyproxy_acl::Policy;
use arc_swap::ArcSwap;
use futures_util::future::join_all;
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{Config, InvalidConfig};
use crate::pool::Pool;
use crate::reserve::Reserve;
use crate::resolve::Resolver;

/// What there is beyond the time to drain, for the words with which tunnels end.
const FAREWELL: Duration = Duration::from_secs(1);

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
    pub(crate) gateways: Resolver,
    /// What targets leave alone.
    pub(crate) reserve: Reserve,
    pub(crate) instance: u128,
    pub(crate) live: Live,
    pub(crate) tasks: TaskTracker,
    /// Ends every tunnel at once, and with them all tasks.
    pub(crate) kill: CancellationToken,
    /// Ends what is still delivered to targets though its tunnel is gone.
    pub(crate) cut: CancellationToken,
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
    /// lets living streams finish for as long as [`Config::drain_timeout`] says; for its goodbye there is a second more. Every
    /// task has ended when it returns. It returns early only where the threads of all its tunnels have ended.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future cuts every tunnel, and every stream is reset.
    pub async fn run(self, stop: CancellationToken) {
        let shared = self.shared;
        let _kill = shared.kill.clone().drop_guard();
        let _cut = shared.cut.clone().drop_guard();
        let work = async {
            let pools = shared.config.gateways.iter();
            let pools = pools.map(|gateway| Pool::new(shared.clone(), gateway.clone(), stop.clone()).keep());
            join_all(pools).await;
            shared.tasks.close();
            shared.tasks.wait().await;
        };
        tokio::select! {
            () = work => {}
            never = shared.cut_in_time(&stop) => match never {},
        }
    }
}

impl Shared {
    pub(crate) fn new(mut config: Config, resolver: Resolver) -> Result<Self, InvalidConfig> {
        config.check()?;
        let rules = std::mem::take(&mut config.rules).guarded();
        let reserve = Reserve::beyond(config.max_descriptors);
        Ok(Self {
            id: config.client_id.as_str().into(),
            rules: Arc::new(ArcSwap::from_pointee(rules)),
            resolver: resolver.with_reserve(reserve),
            gateways: Resolver::system(),
            reserve,
            instance: fastrand::u128(..),
            live: Live(watch::Sender::new(0)),
            tasks: TaskTracker::new(),
            kill: CancellationToken::new(),
            cut: CancellationToken::new(),
            config,
        })
    }

    /// From `stop` on: cuts what is still delivered when the time to drain is over, and a moment later the tunnels whose
    /// gateways have frozen and take no goodbye.
    pub(crate) async fn cut_in_time(&self, stop: &CancellationToken) -> Infallible {
        stop.cancelled().await;
        sleep(self.config.drain_timeout).await;
        self.cut.cancel();
        sleep(FAREWELL).await;
        self.kill.cancel();
        pending().await
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
