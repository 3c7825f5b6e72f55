//! A stage for a front: users, targets and a stack between them, all in memory.

#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(dead_code, reason = "not every test file uses all of it")]

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use anyproxy_core::{
    Account, BoxError, BoxGateway, Dial, DialService as _, GatewayStack, Identity, Login, Outcome, Pulse,
};
use anyproxy_front::Connection;
use anyproxy_http::{Config, HttpProxy, ProxyName, RequestService, Requests, ReuseLayer};
use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader, DuplexStream, ReadBuf,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tower::{Layer, ServiceBuilder};

/// Room of the pipes between the players.
const ROOM: usize = 64 * 1024;

pub(crate) fn source() -> SocketAddr {
    "192.0.2.1:4000".parse().unwrap()
}

/// Where a test plays users and targets.
pub(crate) struct Stage {
    stack: BoxGateway,
    targets: Mutex<mpsc::UnboundedReceiver<Target>>,
    dials: Arc<AtomicUsize>,
    opened: Arc<AtomicUsize>,
    tunnel: Arc<Tunnel>,
    pub(crate) stop: CancellationToken,
}

impl Stage {
    /// Everybody may dial; one stream for each request.
    pub(crate) fn open() -> Self {
        Self::new(None, None, false)
    }

    /// Everybody may dial, and streams are kept.
    pub(crate) fn keeping() -> Self {
        Self::new(None, None, true)
    }

    /// No dial comes through.
    pub(crate) fn refusing(outcome: Outcome) -> Self {
        Self::new(Some(outcome), None, false)
    }

    /// One user may dial.
    pub(crate) fn with_login(username: &'static str, password: &'static str) -> Self {
        Self::new(None, Some((username, password)), false)
    }

    fn new(refusal: Option<Outcome>, account: Option<(&'static str, &'static str)>, keeps: bool) -> Self {
        let (made, targets) = mpsc::unbounded_channel();
        let (dials, opened) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let count = opened.clone();
        let tunnel = Arc::new(Tunnel { leaves: AtomicBool::new(false) });
        let carries = tunnel.clone();
        let terminal = tower::service_fn(move |dial: Dial| {
            let (made, count) = (made.clone(), count.clone());
            dial.journal.set_pulse(carries.clone());
            async move {
                // As every dial it takes a moment, in which the user's connection is looked at again.
                tokio::task::yield_now().await;
                if let Some(outcome) = refusal {
                    return Err(io::Error::other(outcome));
                }
                let (near, far) = tokio::io::duplex(ROOM);
                count.fetch_add(1, Ordering::Relaxed);
                let _ = made.send(Target { name: dial.target.to_string(), io: far });
                Ok(BufReader::new(near))
            }
        });
        let judged = dials.clone();
        let counted = ServiceBuilder::new()
            .map_request(move |dial: Dial| {
                judged.fetch_add(1, Ordering::Relaxed);
                dial
            })
            .service(ReuseLayer::new().layer(terminal));
        let login = tower::service_fn(move |login: Login| {
            let counted = counted.clone();
            async move {
                let known = login.credentials.as_ref().is_some_and(|login| {
                    account.is_some_and(|(name, password)| {
                        *login.username == *name && login.password.expose_secret() == password
                    })
                });
                if account.is_some() && !known {
                    return Err(BoxError::from(Outcome::LoginRequired));
                }
                // Where nobody is asked, one is who one says.
                let name = login.credentials.map_or_else(|| "user".into(), |login| login.username);
                let identity: Identity = Account::new(&*name, ["blue"]).into();
                Ok(tower::service_fn(move |mut dial: Dial| {
                    dial.identity = identity.clone();
                    if !keeps {
                        // So nobody below hears that a stream may be kept: the stack is one without reuse.
                        dial.note = None;
                    }
                    counted.dial(dial)
                }))
            }
        });
        let stop = CancellationToken::new();
        Self { stack: BoxGateway::new(login), targets: Mutex::new(targets), dials, opened, tunnel, stop }
    }

    pub(crate) fn stack(&self) -> BoxGateway {
        self.stack.clone()
    }

    /// A new connection to a front that is called `gate`.
    pub(crate) fn user(&self) -> User {
        let mut config = Config::default();
        config.name = ProxyName::new("gate").unwrap();
        self.user_of(HttpProxy::new(self.stack()).with_config(config))
    }

    /// A new connection to `proxy`.
    pub(crate) fn user_of<M, L>(&self, proxy: HttpProxy<M, L>) -> User
    where
        M: GatewayStack,
        L: Layer<Requests<M>, Service: RequestService> + Clone + Send + Sync + 'static,
    {
        let (near, far) = tokio::io::duplex(ROOM);
        let stop = self.stop.clone();
        tokio::spawn(async move { proxy.serve_connection(far, source(), &stop).await });
        User { io: near, kept: None }
    }

    /// A new connection to a front, which takes no more than `room` bytes that are not read.
    pub(crate) fn user_at(&self, room: usize) -> User {
        let (near, far) = tokio::io::duplex(room);
        let (proxy, stop) = (HttpProxy::new(self.stack()), self.stop.clone());
        tokio::spawn(async move { proxy.serve_connection(far, source(), &stop).await });
        User { io: near, kept: None }
    }

    /// A new connection, and whether the front made its end a reset.
    pub(crate) fn user_seen(&self) -> (User, Arc<AtomicBool>) {
        let (near, far) = tokio::io::duplex(ROOM);
        let aborted = Arc::new(AtomicBool::new(false));
        let far = Seen { io: far, aborted: aborted.clone() };
        let (proxy, stop) = (HttpProxy::new(self.stack()), self.stop.clone());
        tokio::spawn(async move { proxy.serve_connection(far, source(), &stop).await });
        (User { io: near, kept: None }, aborted)
    }

    /// The next stream a dial has opened.
    pub(crate) async fn target(&self) -> Target {
        std::future::poll_fn(|cx| self.targets.lock().unwrap().poll_recv(cx)).await.expect("the stage stands")
    }

    /// From now on what carries the streams is leaving.
    pub(crate) fn leave(&self) {
        self.tunnel.leaves.store(true, Ordering::Relaxed);
    }

    /// How many dials were judged.
    pub(crate) fn dials(&self) -> usize {
        self.dials.load(Ordering::Relaxed)
    }

    /// How many streams were opened.
    pub(crate) fn opened(&self) -> usize {
        self.opened.load(Ordering::Relaxed)
    }
}

/// What carries all streams, as far as it is seen.
#[derive(Debug)]
struct Tunnel {
    leaves: AtomicBool,
}

impl Pulse for Tunnel {
    fn is_healthy(&self) -> bool {
        !self.leaves.load(Ordering::Relaxed)
    }
}

/// A user's end of a connection.
pub(crate) struct User {
    pub(crate) io: DuplexStream,
    /// The target that its connection keeps a stream to, as far as the test knows.
    pub(crate) kept: Option<Target>,
}

/// A target's end of a stream.
pub(crate) struct Target {
    pub(crate) name: String,
    pub(crate) io: DuplexStream,
}

macro_rules! plays {
    ($player:ty) => {
        impl $player {
            pub(crate) async fn say(&mut self, text: &str) {
                self.io.write_all(text.as_bytes()).await.unwrap();
            }

            /// Says as much as is listened to.
            pub(crate) async fn try_say(&mut self, text: &str) {
                let _ = self.io.write_all(text.as_bytes()).await;
            }

            /// Reads a head, its empty line included.
            pub(crate) async fn head(&mut self) -> String {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let Ok(byte) = self.io.read_u8().await else { break };
                    head.push(byte);
                }
                String::from_utf8(head).unwrap()
            }

            pub(crate) async fn take(&mut self, length: usize) -> String {
                let mut bytes = vec![0; length];
                self.io.read_exact(&mut bytes).await.unwrap();
                String::from_utf8(bytes).unwrap()
            }

            /// Reads until the end.
            pub(crate) async fn rest(&mut self) -> String {
                let mut bytes = Vec::new();
                self.io.read_to_end(&mut bytes).await.unwrap();
                String::from_utf8(bytes).unwrap()
            }
        }
    };
}

plays!(User);
plays!(Target);

impl User {
    /// Says no more.
    pub(crate) async fn finish(&mut self) {
        self.io.shutdown().await.unwrap();
    }

    /// Reads a chunked body.
    pub(crate) async fn chunked(&mut self) -> String {
        let mut body = String::new();
        loop {
            let mut line = String::new();
            while !line.ends_with("\r\n") {
                line.push(char::from(self.io.read_u8().await.unwrap()));
            }
            let size = usize::from_str_radix(line.trim_end(), 16).unwrap();
            body += self.take(size).await.as_str();
            self.take(2).await;
            if size == 0 {
                return body;
            }
        }
    }
}

/// A connection that remembers its reset.
struct Seen {
    io: DuplexStream,
    aborted: Arc<AtomicBool>,
}

impl Connection for Seen {
    fn abort(&mut self) {
        self.aborted.store(true, Ordering::SeqCst);
    }
}

impl AsyncRead for Seen {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Seen {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
