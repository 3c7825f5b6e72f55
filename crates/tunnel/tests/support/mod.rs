//! Two ends of a tunnel in one process, joined by pipes of any nastiness.
#![allow(dead_code, reason = "each test file uses some of it")]

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use anyproxy_tunnel::frame::{ClientHello, GatewayHello, HostRef, Open, OpenOk};
use anyproxy_tunnel::{
    ClientTunnel, CloseReason, Config, Driver, OpenRequest, Request, Requests, Stream, Tunnel, WebSocket,
    accept, connect,
};
use tokio::io::{AsyncBufRead as _, AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf, copy_buf, duplex};
use tokio::task::{JoinHandle, JoinSet};

pub(crate) const SESSION: u64 = 7;

/// Both ends, with their drivers spawned.
pub(crate) struct Pair {
    pub(crate) gateway: Tunnel,
    pub(crate) client: ClientTunnel,
    pub(crate) requests: Requests,
    pub(crate) gateway_driver: JoinHandle<CloseReason>,
    pub(crate) client_driver: JoinHandle<CloseReason>,
}

impl Pair {
    /// Over a pipe that holds `pipe` bytes each way.
    pub(crate) async fn new(pipe: usize, config: Config) -> Self {
        let (near, far) = duplex(pipe);
        Self::over(near, far, config).await
    }

    pub(crate) async fn over<A, B>(near: A, far: B, config: Config) -> Self
    where
        A: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        B: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let ((gateway, gateway_driver), (client, requests, client_driver)) =
            idle_pair(near, far, config).await;
        Self {
            gateway,
            client,
            requests,
            gateway_driver: tokio::spawn(gateway_driver),
            client_driver: tokio::spawn(client_driver),
        }
    }

    /// Opens a stream that the client accepts: the gateway's end, then the client's.
    pub(crate) async fn stream(&mut self, open: Open) -> (Stream, Stream) {
        let opening = tokio::spawn(self.gateway.open(open));
        let far = self.request().await.accept(OpenOk::default());
        let (near, _) = opening.await.unwrap().unwrap();
        (near, far)
    }

    /// The next open the client sees.
    pub(crate) async fn request(&mut self) -> OpenRequest {
        next_open(&mut self.requests).await.expect("a living tunnel")
    }
}

pub(crate) async fn next_open(requests: &mut Requests) -> Option<OpenRequest> {
    loop {
        match requests.next().await? {
            Request::Open(request) => return Some(request),
            _ => continue,
        }
    }
}

/// Both ends with the hellos behind them, and nobody driving.
pub(crate) async fn idle_pair<A, B>(
    near: A,
    far: B,
    config: Config,
) -> ((Tunnel, Driver), (ClientTunnel, Requests, Driver))
where
    A: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    B: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let far_config = config.clone();
    let client = tokio::spawn(async move {
        connect(WebSocket::client(far), ClientHello::new("client", 1), far_config).await.unwrap()
    });
    let accepting = accept(WebSocket::server(near), config).await.unwrap();
    let (gateway, mut gateway_driver) = accepting.finish(GatewayHello::new(SESSION)).unwrap();
    // The gateway's hello leaves by its driver.
    let (client, requests, _, client_driver) = tokio::select! {
        client = client => client.unwrap(),
        reason = &mut gateway_driver => panic!("{reason:?}"),
    };
    ((gateway, gateway_driver), (client, requests, client_driver))
}

/// Sends everything back, on every stream, until the tunnel is gone.
pub(crate) fn spawn_echo(mut requests: Requests) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut streams = JoinSet::new();
        while let Some(request) = next_open(&mut requests).await {
            streams.spawn(echo(request.accept(OpenOk::default())));
        }
        while streams.join_next().await.is_some() {}
    })
}

pub(crate) async fn echo(stream: Stream) {
    let (reader, mut writer) = tokio::io::split(stream);
    if copy_buf(&mut tokio::io::BufReader::new(reader), &mut writer).await.is_ok() {
        let _ = writer.shutdown().await;
    }
}

pub(crate) fn tcp() -> Open {
    Open::tcp(HostRef::Name("target.example".into()), 80)
}

pub(crate) fn udp() -> Open {
    Open::udp(1, HostRef::Name("target.example".into()), 53)
}

/// Bytes that differ from place to place.
pub(crate) fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend_from_slice(&random.next().to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Waits until `condition` holds, giving the others their turns; a test that waits in vain fails after a minute of the
/// tunnel's time.
pub(crate) async fn until(mut condition: impl FnMut() -> bool) {
    tokio::time::timeout(Duration::from_secs(60), async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the condition to come true");
}

/// Whether the reader has nothing to say now.
pub(crate) async fn is_silent(stream: &mut Stream) -> bool {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    poll_fn(|cx| Poll::Ready(Pin::new(&mut *stream).poll_fill_buf(cx).is_pending())).await
}

/// The xorshift of Marsaglia: good enough to be nasty, and the same in every run.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// A connection that takes and gives random numbers of bytes, and is pending at random (and wakes itself, for it is
/// not lost).
pub(crate) struct Moody<Io> {
    io: Io,
    random: Random,
}

impl<Io> Moody<Io> {
    pub(crate) fn new(io: Io, seed: u64) -> Self {
        Self { io, random: Random::new(seed) }
    }

    fn mood(&mut self, cx: &Context<'_>) -> Option<usize> {
        match self.random.below(10) {
            0..3 => {
                cx.waker().wake_by_ref();
                None
            }
            3..6 => Some(1),
            6..8 => Some(1 + self.random.below(100) as usize),
            _ => Some(1 + self.random.below(20_000) as usize),
        }
    }
}

impl<Io: AsyncRead + Unpin> AsyncRead for Moody<Io> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Some(len) = self.mood(cx) else { return Poll::Pending };
        let len = len.min(buf.remaining());
        let mut part = ReadBuf::new(buf.initialize_unfilled_to(len));
        let poll = Pin::new(&mut self.io).poll_read(cx, &mut part);
        let filled = part.filled().len();
        buf.advance(filled);
        poll
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for Moody<Io> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let Some(len) = self.mood(cx) else { return Poll::Pending };
        Pin::new(&mut self.io).poll_write(cx, &buf[..len.min(buf.len())])
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.mood(cx).is_none() {
            return Poll::Pending;
        }
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
