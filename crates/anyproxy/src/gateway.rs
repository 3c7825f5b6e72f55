//! `anyproxy gateway`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyproxy_acl::AclLayer;
use anyproxy_auth::{HashPool, Verify};
use anyproxy_balance::Balance;
use anyproxy_core::Front;
use anyproxy_front::{Listener, Tls};
use anyproxy_gateway::{Clients, Gateway, Ports};
use anyproxy_http::ReuseLayer;
use anyproxy_metrics::MetricsLayer;
use anyproxy_queue::{QueueHandle, QueueLayer, WaitForClient, WaitHandle};
use anyproxy_rate_limit::{BandwidthLayer, RateLimitLayer};
use anyproxy_socks5::UdpDrops;
use anyproxy_tunnel::{DroppedDatagrams, Memory};
use anyproxy_workers::{Seats, Workers};
use arc_swap::ArcSwap;
use futures_util::future::{self, OptionFuture};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::admin::{self, Probe};
use crate::failure::Failure;
use crate::listen::Place;
use crate::reload::{Fixed, Reloads};
use crate::runtime::Runtime;
use crate::settings::{self, Protocol, Source};
use crate::{front, listen, logging, process, reload, stack};

/// What a dial may take beyond the one client that takes longest.
const DIAL_GRACE: Duration = Duration::from_secs(5);

/// What there is beyond the time to drain, for the words with which tunnels end.
const FAREWELL: Duration = Duration::from_secs(1);

/// Runs the gateway until a signal ends it.
pub(crate) fn run(file: Option<&Path>) -> Result<ExitCode, Failure> {
    let runtime = Runtime::start()?;
    let source = Source::load(file)?;
    let section = source.required("gateway", source.file.gateway.as_ref())?;
    let logging = logging::start(source.file.log.as_ref());
    let settings = settings::Gateway::new(&source, section)?;
    let dropped_lines = logging.dropped_lines();
    runtime.run(|stop, hangups, workers| async move {
        let admin = admin::Bound::new(source.file.admin.as_ref(), dropped_lines)?;
        let fixed = Fixed::of_gateway(&settings, &source.file);
        let reloads = (Reloads::new(source.into(), hangups), fixed);
        Bound::new(settings, admin, &workers)?.serve(Some(reloads), stop).await
    })
}

/// All users together, those of clients' ports too: how many there may be, and the threads they are served on.
struct Users {
    most: usize,
    seats: Seats,
}

impl Users {
    fn listener(&self, listener: Listener) -> Listener {
        listener.with_max_connections(self.most).with_seats(self.seats.clone())
    }
}

/// A gateway whose ports are all bound.
pub(crate) struct Bound {
    settings: settings::Gateway,
    clients_listener: Listener,
    fronts: Vec<(settings::Front, Listener)>,
    admin: Option<admin::Bound>,
    users: Users,
    workers: Workers,
    open_files: usize,
}

impl Bound {
    /// Binds everything or nothing.
    pub(crate) fn new(
        mut settings: settings::Gateway,
        admin: Option<admin::Bound>,
        workers: &Workers,
    ) -> Result<Self, Failure> {
        let open_files = process::raise_open_files();
        let users = Users { most: settings::users(open_files), seats: workers.users() };
        let clients_listener = listen::bind("gateway", &settings.listen_addr)?.with_seats(workers.tunnels());
        let mut fronts = Vec::new();
        for front in std::mem::take(&mut settings.fronts) {
            let listener = listen::bind(front.protocol.as_str(), &front.listen_addr)?;
            let mut listener = users.listener(listener).with_handshake_timeout(front.handshake_timeout);
            if let Some(tls) = &front.tls {
                listener = listener.with_tls(Tls::new(tls.clone()));
            }
            fronts.push((front, listener));
        }
        for (front, listener) in &fronts {
            listen::announce(front.protocol.as_str(), listener);
        }
        listen::announce("gateway", &clients_listener);
        let workers = workers.clone();
        Ok(Self { settings, clients_listener, fronts, admin, users, workers, open_files })
    }

    /// Where clients connect to.
    pub(crate) fn clients_addr(&self) -> Result<SocketAddr, Failure> {
        self.clients_listener.local_addr().map_err(|error| Failure::of("gateway", error))
    }

    /// Where users connect to.
    pub(crate) fn front_addr(&self, protocol: Protocol) -> Option<SocketAddr> {
        let (_, listener) = self.fronts.iter().find(|(front, _)| front.protocol == protocol)?;
        listener.local_addr().ok()
    }

    /// Serves until `stop`, and takes its file over anew where that may change; then drains: accepts nobody any more,
    /// tells the clients to go elsewhere, and lets streams finish until they have or their time is over.
    pub(crate) async fn serve(
        self,
        reloads: Option<(Reloads, Fixed)>,
        stop: CancellationToken,
    ) -> Result<(), Failure> {
        let Self { settings, clients_listener, fronts, admin, users, workers, open_files } = self;
        workers.set_busy_poll(settings.busy_poll);
        let metrics =
            MetricsLayer::new().with_user_labels(admin.as_ref().map_or(0, admin::Bound::user_labels));
        for front in [Front::HTTP, Front::SOCKS5, Front::SNI] {
            if fronts.iter().any(|(running, _)| running.protocol.serves(front.as_str())) {
                metrics.seen(front);
            }
        }
        // Apart, so that no user's wrong logins keep clients out.
        let (hashing, hashing_for_clients) = (HashPool::default(), HashPool::one_core_in(4));
        let clients = Clients::new(settings.open_timeout);
        clients.set_rules(settings.rules);
        clients.set_routes(stack::routes(settings.routes));
        let limits = settings.limits;
        let (queue, line) = QueueLayer::pair(limits.queue(open_files));
        let (wait, waiting) = WaitForClient::pair(clients.clone(), limits.wait_for_client);
        let (acl, acl_handle) = AclLayer::pair(settings.policy);
        let (rate, rate_handle) = RateLimitLayer::pair(limits.rate);
        let (bandwidth, bandwidth_handle) = BandwidthLayer::pair(limits.bandwidth);
        let (balance, balance_handle) = Balance::pair(limits.balance, clients.clone());
        let reuse = ReuseLayer::new();
        let dials = stack::dials(stack::Parts {
            metrics: metrics.clone(),
            acl,
            rate,
            bandwidth,
            wait,
            queue,
            // Longer than one client may take: the balancer learns of a silent one before the dial is given up.
            dial_timeout: settings.open_timeout + DIAL_GRACE,
            reuse: reuse.clone(),
            balance,
        });
        let stock = stack::Stock { metrics: metrics.clone(), dials: dials.clone() };

        let mut serving = JoinSet::new();
        let (mut drops, mut running) = (Vec::new(), Vec::new());
        for (mut front, listener) in fronts {
            let (accounts, handle) = front.accounts.take().map(Verify::pair).unzip();
            running.push(reload::Front {
                protocol: front.protocol,
                place: Place::new(front.protocol.as_str(), &front.listen_addr, &listener),
                accounts: handle,
                tls: listener.tls().cloned(),
            });
            let accounts =
                accounts.map(|accounts| accounts.with_pool(within(&hashing, front.handshake_timeout)));
            let stack = stack::login(accounts, front.group.as_deref(), &stock);
            let associations = settings::associations(open_files);
            let front = front::Served::new(&front, settings.relay, associations, stack);
            drops.extend(front.udp_drops());
            serving.spawn(front.serve(listener, stop.clone()));
        }
        let mut config = anyproxy_gateway::Config::default();
        config.handshake_timeout = settings.handshake_timeout;
        config.drain_timeout = settings.drain_timeout;
        let memory = settings.tunnel.memory.clone();
        let dropped = settings.tunnel.dropped_datagrams.clone();
        config.tunnel = settings.tunnel;
        let prepare = move |listener| users.listener(listener);
        let ports = Ports::with_listener(settings.open_ports_addr, dials, settings.relay, prepare);
        let (accounts, client_accounts) = Verify::pair(settings.clients);
        let accounts = accounts.with_pool(within(&hashing_for_clients, config.handshake_timeout));
        let rights = Arc::new(ArcSwap::from_pointee(settings.client_accounts));
        let login = stack::client_login(accounts, rights.clone(), metrics);
        let gateway = Gateway::with_ports(login, clients.clone(), config, ports.clone());
        let tls = Tls::new(settings.tls);
        let place = Place::new("gateway", &settings.listen_addr, &clients_listener);
        serving.spawn(gateway.serve(clients_listener, tls.clone(), stop.clone()));
        let reloading = reloads.map(|(reloads, fixed)| {
            reloads.serve(reload::Gateway {
                acl: acl_handle,
                rate: rate_handle,
                bandwidth: bandwidth_handle,
                wait: waiting.clone(),
                queue: line.clone(),
                reuse,
                balance: balance_handle,
                fronts: running,
                place,
                clients: clients.clone(),
                client_accounts,
                rights,
                tls,
                workers: workers.clone(),
                open_files,
                fixed,
            })
        });

        // The admin listener lives until the last stream is gone: somebody watches the drain.
        let done = CancellationToken::new();
        let (waits, queue, living) = (waiting.clone(), line.clone(), clients.clone());
        let probe = Arc::new(Connected {
            clients,
            line,
            waiting,
            drops,
            ports,
            memory,
            dropped,
            workers,
            stop: stop.clone(),
        });
        let admin = admin.map(|admin| admin.serve(probe, done.clone()));
        let draining = async {
            stop.cancelled().await;
            waits.close();
            queue.close();
            let drained = async { while serving.join_next().await.is_some() {} };
            // What drains by itself is over by then, and says so to its peers.
            if timeout(settings.drain_timeout + FAREWELL, drained).await.is_err() {
                match living.streams() {
                    0 => tracing::warn!("connections were still open when the time to drain was over"),
                    streams => {
                        tracing::warn!(streams, "streams were still running when the time to drain was over");
                    }
                }
            }
            done.cancel();
        };
        let served = future::join(draining, OptionFuture::from(admin));
        tokio::select! {
            _ = served => Ok(()),
            Some(never) = OptionFuture::from(reloading) => match never {},
        }
    }
}

/// `hashing` for logins that have `handshake_timeout`: none waits for its turn beyond half of it, or it would be dropped
/// where it is to be told that there is no room.
fn within(hashing: &HashPool, handshake_timeout: Duration) -> HashPool {
    hashing.clone().with_patience(HashPool::PATIENCE.min(handshake_timeout / 2))
}

/// A gateway is ready while it has a client that takes dials and has not been told to stop.
struct Connected {
    clients: Clients,
    line: QueueHandle,
    waiting: WaitHandle,
    /// Of each front that carries datagrams.
    drops: Vec<Arc<UdpDrops>>,
    ports: Ports,
    memory: Memory,
    dropped: DroppedDatagrams,
    workers: Workers,
    stop: CancellationToken,
}

impl Probe for Connected {
    fn measure(&self) {
        let clients = self.clients.connected();
        let tunnels: Vec<_> = clients.iter().flat_map(anyproxy_gateway::Client::tunnels).collect();
        metrics::gauge!("anyproxy_clients").set(count(clients.len()));
        metrics::gauge!("anyproxy_tunnels").set(count(tunnels.len()));
        metrics::gauge!("anyproxy_unsent_bytes").set(count(tunnels.iter().map(|tunnel| tunnel.unsent).sum()));
        metrics::gauge!("anyproxy_queue_length").set(count(self.line.status().waiting));
        metrics::gauge!("anyproxy_waiting_for_client").set(count(self.waiting.waiting()));
        admin::measure_memory(&self.memory);
        admin::measure_dropped(&self.dropped);
        admin::measure_waits(&self.workers);
        let mut dropped = BTreeMap::<_, u64>::new();
        let fronts = self.drops.iter().flat_map(|drops| drops.counts());
        for (reason, count) in fronts.chain(self.ports.udp_drops()) {
            *dropped.entry(reason).or_default() += count;
        }
        for (reason, count) in dropped {
            metrics::counter!("anyproxy_udp_dropped_total", "reason" => reason).absolute(count);
        }
        let round_trips = metrics::histogram!("anyproxy_tunnel_rtt_seconds");
        for rtt in tunnels.iter().filter_map(|tunnel| tunnel.rtt) {
            round_trips.record(rtt);
        }
    }

    fn is_ready(&self) -> bool {
        self.clients.takes_dials() && !self.stop.is_cancelled()
    }
}

#[expect(clippy::cast_precision_loss, reason = "none of these reaches 2^52")]
const fn count(number: usize) -> f64 {
    number as f64
}
