use std::convert::Infallible;
use std::error::Error as _;
use std::fmt;
use std::future::{Future, poll_fn, ready};
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyproxy_core::{BoxError, Login, Outcome, printable};
use anyproxy_front::{DEFAULT_HANDSHAKE_TIMEOUT, Listener, Rewind, Throttle, Tls};
use anyproxy_tunnel::frame::{ClientHello, GatewayHello, GoAwayCode};
use anyproxy_tunnel::{Accepting, CloseReason, Driver, TunnelError, WebSocket, accept, tune};
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;
use tracing::{debug, info, warn};

use crate::account::{Authenticate, ClientAccount, FRONT};
use crate::client::Link;
use crate::ports::{Leases, Ports};
use crate::registry::{Claim, Clients, Refusal, Registration};
use crate::upgrade::{Refused, Wish};
use crate::waiting_room::{Place, WaitingRoom};

/// The longest head of a request, in bytes. A client's has a few hundred; with the room's bound this is 4 MiB for all
/// who have not logged in.
const MAX_HEAD: usize = 16 * 1024;

/// How long a replaced tunnel may finish its streams.
const REPLACED_GRACE: Duration = Duration::from_secs(30);

/// What a peer that was refused may still send before the connection is cut. Without it the kernel answers unread
/// bytes with a reset, which may overtake the refusal.
const LINGER: (u64, Duration) = (64 * 1024, Duration::from_secs(1));

/// What a gateway allows its clients.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    /// How long a client may take to log in: TLS, upgrade, credentials and hello together (default: 10 s). Too short,
    /// and clients on slow lines never get in; too long, and silent peers hold their places.
    pub handshake_timeout: Duration,
    /// How many may be logging in at once (default: 256); when one more comes, the oldest goes.
    pub max_unauthenticated: usize,
    /// How long living streams may go on after `stop` (default: 30 s).
    pub drain_timeout: Duration,
    /// The limits of each tunnel.
    pub tunnel: anyproxy_tunnel::Config,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            handshake_timeout: DEFAULT_HANDSHAKE_TIMEOUT,
            max_unauthenticated: 256,
            drain_timeout: Duration::from_secs(30),
            tunnel: anyproxy_tunnel::Config::default(),
        }
    }
}

/// The gateway's side towards its clients: lets them log in and keeps their tunnels in the registry.
///
/// Cheap to clone; clones are the same gateway.
pub struct Gateway<A> {
    authenticate: A,
    hall: Arc<Hall>,
}

/// What all connections share.
struct Hall {
    clients: Clients,
    ports: Option<Ports>,
    config: Config,
    room: WaitingRoom,
    /// Ends every tunnel.
    ending: CancellationToken,
    refusals: Throttle,
}

impl<A: Clone> Clone for Gateway<A> {
    fn clone(&self) -> Self {
        Self { authenticate: self.authenticate.clone(), hall: self.hall.clone() }
    }
}

impl<A> fmt::Debug for Gateway<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gateway")
            .field("clients", &self.hall.clients)
            .field("config", &self.hall.config)
            .finish_non_exhaustive()
    }
}

impl<A: Authenticate> Gateway<A> {
    /// A gateway that asks `authenticate` who a client is, and writes into `clients` who is connected. Its clients
    /// may have no ports opened.
    pub fn new(authenticate: A, clients: Clients, config: Config) -> Self {
        Self::build(authenticate, clients, config, None)
    }

    /// The same, with ports for the clients whose account allows them.
    pub fn with_ports(authenticate: A, clients: Clients, config: Config, ports: Ports) -> Self {
        Self::build(authenticate, clients, config, Some(ports))
    }

    fn build(authenticate: A, clients: Clients, config: Config, ports: Option<Ports>) -> Self {
        let hall = Hall {
            clients,
            ports,
            room: WaitingRoom::new(config.max_unauthenticated),
            config,
            ending: CancellationToken::new(),
            refusals: Throttle::new(Duration::from_secs(1)),
        };
        Self { authenticate, hall: Arc::new(hall) }
    }

    /// Serves clients until `stop`, then drains: accepts nobody any more, tells all clients to go elsewhere, lets
    /// streams finish for [`Config::drain_timeout`], and closes the tunnels. Returns when the last is gone.
    ///
    /// `listener` is a plain one: the TLS handshake belongs to the login and shares its deadline. `tls` asks for
    /// the clients' certificates if it is configured to.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops every tunnel; their streams are reset.
    pub async fn serve(self, listener: Listener, tls: Tls, stop: CancellationToken) {
        let hall = self.hall.clone();
        let accepting = listener.serve(stop.clone(), move |user, source| {
            let (gateway, tls) = (self.clone(), tls.clone());
            async move {
                let Ok(tcp) = user.into_tcp() else {
                    warn!("the clients' listener must be a plain one; a connection is dropped");
                    return;
                };
                if let Err(error) = tune(&tcp) {
                    debug!(%source, %error, "cannot tune a client's socket");
                }
                let io = async move { anyproxy_tls::Stream::accept(tcp, &tls.config()).await };
                gateway.receive(io, source).await;
            }
        });
        let draining = async {
            stop.cancelled().await;
            if let Some(ports) = &hall.ports {
                ports.stop_listening();
            }
            let streams = hall.clients.drain(hall.config.drain_timeout).await;
            if streams > 0 {
                warn!(streams, "streams outlived the drain and are reset");
            }
            hall.ending.cancel();
            if let Some(ports) = &hall.ports {
                ports.close().await;
            }
        };
        tokio::join!(accepting, draining);
    }

    /// Serves one client on a connection that somebody else has accepted and secured; returns when its tunnel has
    /// ended. A [drain](Clients::drain) ends it with its last stream, and never before: where nobody [serves](Self::serve)
    /// on this gateway, the caller drops what is left then.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops the tunnel; its streams are reset.
    // Not `async fn`: `Send` is proved here, for whoever knows the accounts. Rustc fails at it where one with boxed errors is
    // spawned.
    pub fn serve_connection<Io>(&self, io: Io, source: SocketAddr) -> impl Future<Output = ()> + Send
    where
        Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        self.receive(ready(Ok(io)), source)
    }

    /// Lets a client log in, within the deadline and while it has a place, then serves its tunnel.
    async fn receive<Io>(&self, io: impl Future<Output = io::Result<Io>> + Send, source: SocketAddr)
    where
        Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let place = self.hall.room.enter();
        // Boxed, so that its kilobytes are gone while the tunnel lives.
        let tunnel = match Box::pin(self.within_limits(place, self.log_in(io, source))).await {
            Ok(tunnel) => tunnel,
            Err(failure) => {
                self.hall.report(&failure, source);
                return;
            }
        };
        tunnel.run(&self.hall.ending).await;
    }

    async fn within_limits<T>(
        &self,
        place: Place,
        login: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        tokio::select! {
            biased;
            () = place.evicted() => Err(Failure::Evicted),
            () = self.hall.ending.cancelled() => Err(Failure::Registry(Refusal::Draining)),
            result = timeout(self.hall.config.handshake_timeout, login) => result.map_err(|_| Failure::TooSlow)?,
        }
    }

    async fn log_in<Io>(
        &self,
        io: impl Future<Output = io::Result<Io>>,
        source: SocketAddr,
    ) -> Result<Registered, Failure>
    where
        Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let io = io.await.map_err(Failure::Tls)?;
        let (io, entry) = self.upgrade(io, source).await?;
        let accepting =
            accept(WebSocket::server(io), self.hall.config.tunnel.clone()).await.map_err(Failure::Tunnel)?;
        self.hall.admit(accepting, entry, source).await
    }

    /// Answers one HTTP request: with an upgrade, and then the connection is a WebSocket, or with a refusal.
    async fn upgrade<Io>(&self, io: Io, source: SocketAddr) -> Result<(Rewind<Io>, Entry), Failure>
    where
        Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let verdict = Mutex::new(None);
        let service = service_fn(|request: Request<Incoming>| {
            let verdict = &verdict;
            Box::pin(async move {
                let (answer, judged) = match self.judge(&request, source).await {
                    Ok((wish, entry)) => (wish.granted(), Ok(entry)),
                    Err(refused) => (refused.answer(), Err(refused)),
                };
                *verdict.lock().unwrap_or_else(PoisonError::into_inner) = Some(judged);
                Ok::<_, Infallible>(answer)
            })
        });
        // The connection is taken back from hyper by hand: it keeps its type, and so do the bytes' way in and out.
        // It serves one request: a refusal says `Connection: close`.
        let mut connection = http1::Builder::new()
            .header_read_timeout(None)
            .max_buf_size(MAX_HEAD)
            .serve_connection(TokioIo::new(io), service);
        let served = poll_fn(|cx| connection.poll_without_shutdown(cx)).await;
        let parts = connection.into_parts();
        let io = parts.io.into_inner();
        let judged = verdict.lock().unwrap_or_else(PoisonError::into_inner).take();
        match (served, judged) {
            (Ok(()), Some(Ok(entry))) => Ok((Rewind::new(parts.read_buf, io), entry)),
            (_, Some(Err(refused))) => {
                linger(io).await;
                Err(Failure::Refused(refused))
            }
            (Err(error), _) => {
                linger(io).await;
                Err(Failure::Http(error))
            }
            (Ok(()), None) => Err(Failure::Silent),
        }
    }

    async fn judge(&self, request: &Request<Incoming>, source: SocketAddr) -> Result<(Wish, Entry), Refused> {
        let mut wish = Wish::read(request)?;
        let login = Login::new(wish.credentials.take(), source, FRONT);
        let account = self.authenticate.clone().oneshot(login).await.map_err(|error| {
            let error: BoxError = error.into();
            let outcome = Outcome::of(&*error);
            if outcome == Outcome::Internal {
                warn!(%error, "a client's login could not be verified");
            }
            Refused::Login(outcome)
        })?;
        if !account.may_serve(&wish.group) {
            warn!(account = &**account.name(), group = &*wish.group, %source, "client refused: not a group of its account");
            return Err(Refused::Group);
        }
        let group = wish.group.as_str().into();
        Ok((wish, Entry { account, group }))
    }
}

/// What the upgrade has found out about a client.
struct Entry {
    account: Arc<ClientAccount>,
    group: Arc<str>,
}

// === impl Hall ===

impl Hall {
    /// Gives a client that has said hello its place, or a go-away that says why not.
    async fn admit<Io>(
        &self,
        accepting: Accepting<WebSocket<Io>>,
        entry: Entry,
        source: SocketAddr,
    ) -> Result<Registered, Failure>
    where
        Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let hello = accepting.hello();
        if !is_client_id(&hello.client_id) {
            accepting
                .refuse(GoAwayCode::Refused, "a client id is 1 to 128 bytes without control characters")
                .await;
            return Err(Failure::ClientId);
        }
        let claim = claim(hello, entry);
        if let Err(refusal) = self.clients.check(&claim) {
            accepting.refuse(refusal.code(), &refusal.to_string()).await;
            return Err(Failure::Registry(refusal));
        }
        let (verdicts, leases) = match &self.ports {
            Some(ports) => ports.lease(&claim, &hello.ports, &self.config.tunnel.memory).await,
            None => Leases::denied(&hello.ports),
        };
        let software = hello.software.clone();
        let session = self.clients.next_session();
        let mut answer = GatewayHello::new(session);
        answer.ports = verdicts;
        answer.software = concat!("anyproxy/", env!("CARGO_PKG_VERSION")).to_owned();
        let (tunnel, driver) = accepting.finish(answer).map_err(|error| Failure::Tunnel(error.into()))?;
        let link = Link::new(tunnel, session);
        let registration = match self.clients.register(&claim, link.clone()) {
            Ok(registration) => registration,
            Err(refusal) => {
                // Since the check somebody was quicker, or a drain began. The answer has the hello by now, and the
                // go-away behind it; the client's next try will hear the reason.
                drop(leases);
                if refusal.code() == GoAwayCode::Shutdown {
                    link.tunnel.drain()
                } else {
                    link.tunnel.refuse()
                }
                driver.await;
                return Err(Failure::Registry(refusal));
            }
        };
        info!(
            client = &*printable(&claim.id), group = &*claim.group, account = &**claim.account.name(), %source,
            session = format_args!("{session:016x}"), software = &*printable(&software), "client connected"
        );
        Ok(Registered { claim, link, driver, registration, leases })
    }

    /// Refusals are the peers' doing: one a second is told, the others are counted.
    fn report(&self, failure: &Failure, source: SocketAddr) {
        match failure {
            Failure::Refused(_) | Failure::Registry(_) | Failure::ClientId => {
                if let Some(others) = self.refusals.pass() {
                    warn!(%source, reason = %failure, others, "client refused");
                }
            }
            _ => debug!(%source, reason = %failure, "no client came of a connection"),
        }
    }
}

fn claim(hello: &ClientHello, entry: Entry) -> Claim {
    Claim {
        id: hello.client_id.as_str().into(),
        instance: hello.instance,
        group: entry.group,
        account: entry.account,
    }
}

fn is_client_id(id: &str) -> bool {
    !id.is_empty() && !id.chars().any(char::is_control)
}

/// Lets a refusal arrive: ends the way out, and reads a little of what is still coming in.
async fn linger<Io: AsyncRead + AsyncWrite + Unpin>(mut io: Io) {
    let (bytes, time) = LINGER;
    let _ = timeout(time, async {
        io.shutdown().await?;
        tokio::io::copy(&mut io.take(bytes), &mut tokio::io::sink()).await
    })
    .await;
}

// === Registered ===

/// A client's tunnel that is in the registry.
struct Registered {
    claim: Claim,
    link: Link,
    driver: Driver,
    registration: Registration,
    leases: Leases,
}

impl Registered {
    /// Drives the tunnel to its end: its own, that of a client whose place was taken, or that of the gateway.
    async fn run(self, ending: &CancellationToken) {
        let Self { claim, link, driver, registration, mut leases } = self;
        let mut driver = pin!(driver);
        let orderly = async {
            link.replaced.cancelled().await;
            link.tunnel.replace();
            tokio::time::sleep(REPLACED_GRACE).await;
        };
        let reason = tokio::select! {
            reason = &mut driver => reason,
            () = ending.cancelled() => close(&link, driver).await,
            () = orderly => close(&link, driver).await,
            never = leases.complete(|| link.tunnel.accepts_opens()) => match never {},
        };
        drop(registration);
        drop(leases);
        info!(
            client = &*printable(&claim.id),
            group = &*claim.group,
            session = format_args!("{:016x}", link.session),
            reason = reason.as_str(),
            cause = reason.source().map(tracing::field::display),
            "client's tunnel ended"
        );
    }
}

async fn close(link: &Link, driver: std::pin::Pin<&mut Driver>) -> CloseReason {
    link.tunnel.close();
    driver.await
}

// === Failure ===

/// Why a connection did not become a tunnel.
#[derive(Debug)]
enum Failure {
    Evicted,
    TooSlow,
    Tls(io::Error),
    Silent,
    Http(hyper::Error),
    Refused(Refused),
    Tunnel(TunnelError),
    ClientId,
    Registry(Refusal),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Evicted => f.write_str("too many are logging in, and this one was the oldest"),
            Self::TooSlow => f.write_str("the login took too long"),
            Self::Tls(error) => write!(f, "TLS: {error}"),
            Self::Silent => f.write_str("it sent no request"),
            Self::Http(error) => write!(f, "HTTP: {error}"),
            Self::Refused(refused) => write!(f, "the upgrade was answered {}", refused.answer().status()),
            Self::Tunnel(error) => write!(f, "{error}"),
            Self::ClientId => f.write_str("no valid client id"),
            Self::Registry(refusal) => refusal.fmt(f),
        }
    }
}
