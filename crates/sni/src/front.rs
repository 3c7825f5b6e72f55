use std::fmt;
use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use anyproxy_core::{
    BoxError, ByteStream, Dial, DialService as _, Front, GatewayStack, Host, Login, Outcome, Target,
};
use anyproxy_front::{
    Connection, DEFAULT_HANDSHAKE_TIMEOUT, Listener, Relay, RelayConfig, Throttle, farewell, relay,
};
use bytes::BytesMut;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::Alert;
use crate::hello::{HelloError, HelloReader, MAX_HELLO, random};
use crate::passing::{Passage, Passing};

/// What is made room for when a user is read: most hellos fit.
const READ: usize = 2 * 1024;

/// The most a user may have said before the target is connected: a hello and 0-RTT data, of which servers usually take
/// 16 KiB. Beyond it the user waits, as TCP makes them.
const EARLY: usize = MAX_HELLO + 16 * 1024;

/// Where a hello may lead.
type Serves = dyn Fn(&Target) -> bool + Send + Sync;

/// The front for TLS that is passed through: reads a hello, asks `stack`, relays.
///
/// A user who closes before the target is connected gives the dial up, and so does one who only ends their side:
/// nobody can finish a TLS handshake without another word.
///
/// Cheap to clone; clones are the same front.
#[derive(Clone)]
pub struct Sni<M> {
    stack: M,
    serves: Arc<Serves>,
    passing: Arc<Passing>,
    port: u16,
    handshake_timeout: Duration,
    relay: RelayConfig,
}

impl<M: GatewayStack> Sni<M> {
    /// A front to `stack` for the names that `serves` says yes to, its settings as documented at each `with_` method.
    ///
    /// `serves` is asked about a name, in canonical form, and the port that would be dialled; never about an address.
    /// Let it name what is meant to be reached: without accounts, everybody who reaches the listener reaches that.
    pub fn new(stack: M, serves: impl Fn(&Target) -> bool + Send + Sync + 'static) -> Self {
        Self {
            stack,
            serves: Arc::new(serves),
            passing: Arc::default(),
            port: 443,
            handshake_timeout: DEFAULT_HANDSHAKE_TIMEOUT,
            relay: RelayConfig::default(),
        }
    }

    /// The port dialled at every target (443): a hello carries none. Port 0 cannot be dialled, so that every user
    /// would be refused.
    #[must_use]
    pub const fn with_port(mut self, port: u16) -> Self {
        self.port = port;
        self
    }

    /// How long a user may take for their hello (default: 10 s); then the connection is closed. How long a dial may
    /// take is the stack's to say.
    #[must_use]
    pub const fn with_handshake_timeout(mut self, timeout: Duration) -> Self {
        self.handshake_timeout = timeout;
        self
    }

    /// How long a connection may stand still once it is up.
    #[must_use]
    pub const fn with_relay(mut self, config: RelayConfig) -> Self {
        self.relay = config;
        self
    }

    /// Serves the users of `listener`, a plain one, until `stop`; then waits for those who have said where to; see
    /// [`Listener::serve`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends every connection with a reset.
    pub async fn serve(self, listener: Listener, stop: CancellationToken) {
        // One for all: a clone is paid for by every idle connection.
        let (front, stopping) = (Arc::new(self), stop.clone());
        listener
            .serve(stop, move |user, source| {
                let (front, stop) = (front.clone(), stopping.clone());
                async move { front.serve_connection(user, source, &stop).await }
            })
            .await;
    }

    /// Serves one user, who is connected from `source`. After `stop` nobody is waited for whose hello is not there.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the connection, with a reset if a stream was up.
    #[expect(
        clippy::manual_async_fn,
        reason = "`Send` is proved here, for any stack: rustc fails at it where one with boxed errors is spawned"
    )]
    pub fn serve_connection<U: Connection>(
        &self,
        user: U,
        source: SocketAddr,
        stop: &CancellationToken,
    ) -> impl Future<Output = ()> + Send {
        async move {
            // Boxed, so that a relay that lasts for hours does not keep the room of a hello.
            let connected = Box::pin(self.connect(user, source, stop)).await;
            let Some((relay, _passage)) = connected else { return };
            let end = relay.await;
            debug!(%source, %end, "relay ended");
        }
    }

    /// From the first byte to the moment bytes are only carried.
    async fn connect<U: Connection>(
        &self,
        mut user: U,
        source: SocketAddr,
        stop: &CancellationToken,
    ) -> Option<(Relay<U, impl ByteStream + use<M, U>>, Passage<'_>)> {
        let mut early = BytesMut::new();
        let heard = tokio::select! {
            // What has arrived is still answered.
            biased;
            heard = timeout(self.handshake_timeout, self.hear(&mut user, &mut early)) => heard,
            () = stop.cancelled() => return None,
        };
        let (target, passage) = match heard {
            Ok(Ok(heard)) => heard,
            Ok(Err(parting)) => {
                parting.warn(source);
                debug!(%source, %parting, "not passed on");
                self.refuse(user, &parting.record()).await;
                return None;
            }
            Err(_) => {
                debug!(%source, "the hello took too long");
                return None;
            }
        };
        let dialled = tokio::select! {
            dialled = self.dial(target.clone(), source) => dialled,
            () = gone(&mut user, &mut early) => {
                debug!(%source, %target, "the user left before the target was connected");
                return None;
            }
        };
        match dialled {
            Ok(stream) => Some((relay(user, stream, self.relay).with_early(early.freeze()), passage)),
            Err(error) => {
                let alert = Alert::of(Outcome::of(&*error));
                debug!(%source, %target, error = &*error, %alert, "not connected");
                self.refuse(user, &alert.record()).await;
                None
            }
        }
    }

    /// Reads a hello: where it leads, if there is a way and it is not on it already. All that was read is in `early`.
    async fn hear<U: Connection>(
        &self,
        user: &mut U,
        early: &mut BytesMut,
    ) -> Result<(Target, Passage<'_>), Parting> {
        let mut hello = HelloReader::default();
        let name = loop {
            early.reserve(READ);
            let before = early.len();
            if user.read_buf(early).await? == 0 {
                return Err(Parting::Lost(io::ErrorKind::UnexpectedEof.into()));
            }
            if let Some(name) = hello.take(&early[before..])? {
                break name;
            }
        };
        // An address is no server name (RFC 6066 section 3), however it is spelt.
        let host = Host::parse(&name).ok().filter(|host| matches!(host, Host::Name(_)));
        let target = host.and_then(|host| Target::new(host, self.port).ok());
        let target = target.filter(|target| (self.serves)(target)).ok_or(Parting::NotServed(name))?;
        match self.passing.begin(&random(early), &target) {
            Some(passage) => Ok((target, passage)),
            None => Err(Parting::Loop(target)),
        }
    }

    async fn dial(&self, target: Target, source: SocketAddr) -> Result<impl ByteStream + use<M>, BoxError> {
        let login = Login::new(None, source, Front::SNI);
        let dials = self.stack.login(login).await?;
        dials.dial(Dial::tcp(target, source, Front::SNI)).await
    }

    /// Says no, and ends the connection so that it is heard.
    async fn refuse<U: Connection>(&self, mut user: U, record: &[u8]) {
        if record.is_empty() {
            return;
        }
        let say = async {
            user.write_all(record).await?;
            user.flush().await
        };
        if let Ok(Ok(())) = timeout(self.handshake_timeout, say).await {
            let _ = farewell(user).await;
        }
    }
}

impl<M> fmt::Debug for Sni<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sni")
            .field("port", &self.port)
            .field("handshake_timeout", &self.handshake_timeout)
            .field("relay", &self.relay)
            .finish_non_exhaustive()
    }
}

/// Why a hello led nowhere.
enum Parting {
    /// They left.
    Lost(io::Error),
    Hello(HelloError),
    /// This name is none of ours.
    NotServed(String),
    /// A hello that is being passed on, and has come back.
    Loop(Target),
}

impl Parting {
    /// Tells whoever runs the gateway what only they can change.
    fn warn(&self, source: SocketAddr) {
        static LOOPS: LazyLock<Throttle> = LazyLock::new(|| Throttle::new(Duration::from_secs(60)));

        if let Self::Loop(target) = self
            && let Some(others) = LOOPS.pass()
        {
            warn!(%source, %target, others, "a loop: the client's way to the target leads back to this front");
        }
    }

    /// What the user is told.
    fn record(self) -> Vec<u8> {
        let alert = match self {
            Self::Lost(_) => return Vec::new(),
            Self::Hello(HelloError::Wrong { record, .. }) => return record,
            Self::Hello(HelloError::NoName) => Alert::MissingExtension,
            Self::Hello(HelloError::TooLong) => Alert::DecodeError,
            Self::NotServed(_) => Alert::UnrecognizedName,
            Self::Loop(_) => Alert::InternalError,
        };
        alert.record().to_vec()
    }
}

impl From<io::Error> for Parting {
    fn from(error: io::Error) -> Self {
        Self::Lost(error)
    }
}

impl From<HelloError> for Parting {
    fn from(error: HelloError) -> Self {
        Self::Hello(error)
    }
}

impl fmt::Display for Parting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost(error) => write!(f, "user lost: {error}"),
            Self::Hello(error) => error.fmt(f),
            Self::NotServed(name) => write!(f, "the name {name:?} is not served"),
            Self::Loop(target) => write!(f, "a loop: this hello is being passed on to {target} already"),
        }
    }
}

/// Ready when the user has gone. What they say meanwhile is kept.
async fn gone<U: Connection>(user: &mut U, early: &mut BytesMut) {
    while early.len() < EARLY {
        early.reserve(READ);
        if !matches!(user.read_buf(early).await, Ok(1..)) {
            return;
        }
    }
    pending().await
}
