use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use anyproxy_core::{
    Association, BoxError, ByteStream, Dial, DialService, Front, GatewayStack, Login, Outcome, Target,
};
use anyproxy_front::{
    Connection, DEFAULT_HANDSHAKE_TIMEOUT, Listener, Relay, RelayConfig, farewell, gone, relay,
};
use bytes::BytesMut;
use pin_project_lite::pin_project;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::proto::{Event, Handshake, HandshakeError, Method, Methods, Reply, ReplyCode, Request};
use crate::reply_code;
use crate::udp::{self, Seats, UdpConfig, UdpDrops, User};

/// What is made room for when a user is read: every message of a handshake fits, and early data mostly.
const READ: usize = 1024;

/// How long a reply to a request may wait for a user who takes nothing.
const REPLY_TIMEOUT: Duration = Duration::from_secs(10);

/// The SOCKS5 front: speaks with users, asks `stack`, relays.
///
/// **Logins.** The front does not know whether there are accounts; the stack does. A user who offers "no login" is
/// put to it without credentials: a stack without accounts (one in `tower::make::Shared`) serves them, and one that
/// answers [`LoginRequired`](Outcome::LoginRequired), or that has locked the source out, makes the front ask for
/// user name and password. A user who offers only these is asked in any case. What the stack refuses is not served:
/// there is no way to a dial but through its answer.
///
/// **Ends.** A user who closes before the answer gives the dial up. One who has sent data ahead of the answer and
/// then ends their side is taken at their word: the dial goes on, the data is delivered, and the end after it.
#[derive(Clone)]
pub struct Socks5<M> {
    stack: M,
    handshake_timeout: Duration,
    relay: RelayConfig,
    udp: UdpConfig,
    seats: Arc<Seats>,
    drops: Arc<UdpDrops>,
}

impl<M: GatewayStack> Socks5<M> {
    /// A front to `stack`, its settings as documented at each `with_` method.
    pub fn new(stack: M) -> Self {
        Self {
            stack,
            handshake_timeout: DEFAULT_HANDSHAKE_TIMEOUT,
            relay: RelayConfig::default(),
            udp: UdpConfig::default(),
            seats: Arc::default(),
            drops: Arc::default(),
        }
    }

    /// How long a user may take from the first byte to the request, login included (default: 10 s); then the connection
    /// is closed. How long a dial may take is the stack's to say.
    #[must_use]
    pub fn with_handshake_timeout(mut self, timeout: Duration) -> Self {
        self.handshake_timeout = timeout;
        self
    }

    /// How long a connection may stand still once it is up.
    #[must_use]
    pub fn with_relay(mut self, config: RelayConfig) -> Self {
        self.relay = config;
        self
    }

    /// Whether and how UDP ASSOCIATE is served. Its caps hold for this front and its clones together.
    #[must_use]
    pub fn with_udp(mut self, config: UdpConfig) -> Self {
        self.udp = config;
        self
    }

    /// The count of datagrams that were dropped, for whoever publishes it.
    #[must_use]
    pub fn udp_drops(&self) -> Arc<UdpDrops> {
        self.drops.clone()
    }

    /// Serves the users of `listener` until `stop`, then waits for those who have asked for something; see
    /// [`Listener::serve`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends every connection with a reset.
    pub async fn serve(self, listener: Listener, stop: CancellationToken) {
        let stopping = stop.clone();
        listener.serve(stop, move |user, source| self.serve_connection(user, source, &stopping)).await;
    }

    /// Serves one user, who is connected from `source`. After `stop` nobody is waited for who has not said yet what
    /// they want.
    ///
    /// While a stream is idle, the future is a hundred bytes and some: what the handshake needed is gone.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the connection, with a reset if a stream was up.
    pub fn serve_connection<U: Connection>(
        &self,
        user: U,
        source: SocketAddr,
        stop: &CancellationToken,
    ) -> impl Future<Output = ()> + Send + use<M, U> {
        let (front, stop) = (self.clone(), stop.clone());
        Session::Handshake { handshake: Box::pin(async move { front.handshake(user, source, stop).await }) }
    }

    /// Everything up to the moment bytes are only carried. Associations are served in here, to their end.
    async fn handshake<U: Connection>(
        self,
        mut user: U,
        source: SocketAddr,
        stop: CancellationToken,
    ) -> Option<Relay<U, impl ByteStream + use<M, U>>> {
        let mut src = BytesMut::new();
        let negotiating = self.negotiate(&mut user, source, &mut src, &stop);
        let asked = match timeout(self.handshake_timeout, negotiating).await {
            Ok(Ok(asked)) => asked,
            Ok(Err(parting)) => {
                debug!(%source, %parting, "handshake failed");
                if !matches!(parting, Parting::Lost(_) | Parting::Stopped) {
                    let _ = farewell(user).await;
                }
                return None;
            }
            Err(_) => {
                debug!(%source, "handshake took too long");
                return None;
            }
        };
        match asked.request {
            Request::Connect(target) => self.connect(user, source, src, asked.dials, target).await,
            Request::Associate { from } => {
                self.associate(user, source, src, asked.dials, asked.user, from).await;
                None
            }
        }
    }

    /// From the greeting to the request.
    async fn negotiate<U: Connection>(
        &self,
        user: &mut U,
        source: SocketAddr,
        src: &mut BytesMut,
        stop: &CancellationToken,
    ) -> Result<Asked<M::Response>, Parting> {
        let mut handshake = Handshake::new();
        let mut session = None;
        loop {
            let Some(event) = (match handshake.poll(src) {
                Ok(event) => event,
                Err(error) => {
                    if let Some(answer) = error.answer() {
                        say(user, &answer).await?;
                    }
                    return Err(Parting::Wrong(error));
                }
            }) else {
                src.reserve(READ);
                let read = tokio::select! {
                    // What has arrived is still answered.
                    biased;
                    read = user.read_buf(src) => read?,
                    () = stop.cancelled() => return Err(Parting::Stopped),
                };
                if read == 0 {
                    return Err(Parting::Lost(io::ErrorKind::UnexpectedEof.into()));
                }
                continue;
            };
            match event {
                Event::Greeting(methods) => {
                    let (method, dials) = self.method(methods, source).await;
                    session = dials.map(|dials| (dials, User::Source(source.into())));
                    say(user, &handshake.choose(method)).await?;
                    if method.is_none() {
                        return Err(Parting::NoMethod);
                    }
                }
                Event::Login(credentials) => {
                    let name = User::Name(credentials.username.clone());
                    let login = Login::new(Some(credentials), source, Front::SOCKS5);
                    let verdict = self.stack.login(login).await;
                    say(user, &handshake.judge(verdict.is_ok())).await?;
                    session = Some((verdict.map_err(Parting::Refused)?, name));
                }
                Event::Request(request) => {
                    let (dials, user) = session.ok_or(Parting::NoMethod)?;
                    return Ok(Asked { dials, user, request });
                }
            }
        }
    }

    /// The way of logging in that the stack wants from a user who offers `methods`; if none is wanted, what they may
    /// dial with.
    async fn method(&self, methods: Methods, source: SocketAddr) -> (Option<Method>, Option<M::Response>) {
        if methods.contains(Method::None) {
            let login = Login::new(None, source, Front::SOCKS5);
            match self.stack.login(login).await {
                Ok(dials) => return (Some(Method::None), Some(dials)),
                Err(error) => debug!(%source, %error, "not without a login"),
            }
        }
        (methods.contains(Method::Password).then_some(Method::Password), None)
    }

    async fn connect<U: Connection, D: DialService>(
        &self,
        mut user: U,
        source: SocketAddr,
        mut early: BytesMut,
        dials: D,
        target: Target,
    ) -> Option<Relay<U, D::Response>> {
        let dialled = tokio::select! {
            dialled = dials.dial(Dial::tcp(target.clone(), source, Front::SOCKS5)) => dialled,
            () = gone(&mut user, &mut early) => {
                debug!(%source, %target, "the user left before the answer");
                return None;
            }
        };
        let stream = match dialled {
            Ok(stream) => stream,
            Err(error) => {
                let code = reply_code(Outcome::of(&*error));
                debug!(%source, %target, error = &*error, ?code, "not connected");
                self.refuse(user, code).await;
                return None;
            }
        };
        let reply = Reply::new(ReplyCode::Succeeded).encode();
        match timeout(REPLY_TIMEOUT, say(&mut user, &reply)).await {
            Ok(Ok(())) => Some(relay(user, stream, self.relay).with_early(early.freeze())),
            _ => None,
        }
    }

    async fn associate<U: Connection, D: DialService>(
        &self,
        mut user: U,
        source: SocketAddr,
        mut early: BytesMut,
        dials: D,
        name: User,
        from: Option<SocketAddr>,
    ) {
        let config = self.udp;
        if !config.enabled {
            return self.refuse(user, ReplyCode::CommandNotSupported).await;
        }
        let Some(seat) = self.seats.take(name, &config) else {
            debug!(%source, "too many associations");
            return self.refuse(user, ReplyCode::GeneralFailure).await;
        };
        let association = Association::new();
        let dialled = tokio::select! {
            dialled = dials.dial(Dial::associate(association, source, Front::SOCKS5)) => dialled,
            () = gone(&mut user, &mut early) => {
                debug!(%source, "the user left before their association stood");
                return;
            }
        };
        let stream = match dialled {
            Ok(stream) => stream,
            Err(error) => {
                let code = reply_code(Outcome::of(&*error));
                debug!(%source, error = &*error, ?code, "no association");
                return self.refuse(user, code).await;
            }
        };
        let (socket, bound) = match udp::bind(user.local_addr(), &config) {
            Ok(bound) => bound,
            Err(error) => {
                debug!(%source, %error, "no port for an association");
                return self.refuse(user, ReplyCode::GeneralFailure).await;
            }
        };
        let reply = Reply::associated(bound).encode();
        if let Ok(Ok(())) = timeout(REPLY_TIMEOUT, say(&mut user, &reply)).await {
            drop(early);
            let dial =
                |target| Box::pin(dials.dial(Dial::udp(association, target, source, Front::SOCKS5))) as _;
            let shared = udp::Shared { drops: self.drops.clone(), places: seat.places() };
            let served = udp::serve(&mut user, source, socket, dial, from, &config, shared);
            let end = tokio::select! {
                end = served => end,
                never = udp::keep(stream) => match never {},
            };
            debug!(%source, %end, "association ended");
        }
    }

    /// Says no, and ends the connection so that it is heard.
    async fn refuse<U: Connection>(&self, mut user: U, code: ReplyCode) {
        let reply = Reply::new(code).encode();
        if let Ok(Ok(())) = timeout(REPLY_TIMEOUT, say(&mut user, &reply)).await {
            let _ = farewell(user).await;
        }
    }
}

impl<M> fmt::Debug for Socks5<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socks5")
            .field("handshake_timeout", &self.handshake_timeout)
            .field("relay", &self.relay)
            .field("udp", &self.udp)
            .finish_non_exhaustive()
    }
}

/// What a handshake leads to.
struct Asked<D> {
    dials: D,
    user: User,
    request: Request,
}

/// Why a handshake led to nothing.
#[derive(Debug)]
enum Parting {
    /// They left, or cannot be spoken to.
    Lost(io::Error),
    /// The front stops before they have said what they want.
    Stopped,
    /// They do not offer what the stack wants.
    NoMethod,
    /// The stack does not let them in.
    Refused(BoxError),
    /// They said something wrong.
    Wrong(HandshakeError),
}

impl From<io::Error> for Parting {
    fn from(error: io::Error) -> Self {
        Self::Lost(error)
    }
}

impl fmt::Display for Parting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost(error) => write!(f, "user lost: {error}"),
            Self::Stopped => f.write_str("the front stops"),
            Self::NoMethod => f.write_str("no way to log in that both know"),
            Self::Refused(error) => write!(f, "login refused: {error}"),
            Self::Wrong(error) => error.fmt(f),
        }
    }
}

async fn say<U: Connection>(user: &mut U, bytes: &[u8]) -> io::Result<()> {
    user.write_all(bytes).await?;
    user.flush().await
}

pin_project! {
    /// A user's connection: first a handshake, in a box, then a relay, in place.
    #[project = SessionProj]
    enum Session<U, S>
    where
        U: Connection,
    {
        Handshake { handshake: Pin<Box<dyn Future<Output = Option<Relay<U, S>>> + Send>> },
        Relay { #[pin] relay: Relay<U, S> },
    }
}

impl<U: Connection, S: ByteStream> Future for Session<U, S> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            match self.as_mut().project() {
                SessionProj::Handshake { handshake } => match ready!(handshake.as_mut().poll(cx)) {
                    Some(relay) => self.set(Self::Relay { relay }),
                    None => return Poll::Ready(()),
                },
                SessionProj::Relay { relay } => {
                    let end = ready!(relay.poll(cx));
                    debug!(%end, "relay ended");
                    return Poll::Ready(());
                }
            }
        }
    }
}
