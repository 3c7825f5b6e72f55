use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::SockRef;
#[cfg(target_os = "linux")]
use tokio::io::Interest;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use crate::listener::canonical;

/// What a front needs of a user's connection: bytes both ways, and an end that cannot be taken for a clean one.
///
/// As with every stream here, `shutdown` ends the way to the user and leaves the other one open.
pub trait Connection: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// Makes the coming drop a reset: the user sees an error, not an end, and what was not yet sent is lost.
    fn abort(&mut self);

    /// Makes every loss of the connection a reset, that by the death of the process too, until `false` takes it back:
    /// for as long as an end would be a lie. Where it is not known how to, nothing happens.
    fn abort_when_lost(&mut self, abort: bool) {
        let _ = abort;
    }

    /// Ready when the connection is lost, for one that has ended its way here and so says nothing more by that. Where it is
    /// not known how to tell, never.
    fn poll_lost(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let _ = cx;
        Poll::Pending
    }

    /// What the connection has failed with, for one that has ended its way here and so says nothing more by that: the system
    /// wakes nobody who neither reads nor has something to write. Where it is not known how to tell, nothing.
    fn failure(&self) -> Option<io::Error> {
        None
    }

    /// Waits until the connection is lost, for one that is not read meanwhile or has ended its way here. Where it is not known
    /// how to tell, for ever.
    fn lost(&self) -> impl Future<Output = ()> + Send {
        std::future::pending()
    }

    /// The address the user connected to, where there is one; never an IPv4-mapped one.
    fn local_addr(&self) -> Option<SocketAddr> {
        None
    }
}

impl Connection for TcpStream {
    fn abort(&mut self) {
        self.abort_when_lost(true);
    }

    fn abort_when_lost(&mut self, abort: bool) {
        // It is the kernel that closes a dead process's sockets; lingering for no time it resets them, unsent bytes
        // or not. Fails only on a socket that is gone already.
        let _ = SockRef::from(&*self).set_linger(abort.then_some(Duration::ZERO));
    }

    fn failure(&self) -> Option<io::Error> {
        self.take_error().unwrap_or_else(Some)
    }

    /// On Linux alone: elsewhere the readiness of an error cannot be waited for.
    #[cfg(target_os = "linux")]
    async fn lost(&self) {
        // Fails only where the runtime ends.
        let _ = self.ready(Interest::ERROR).await;
    }

    fn local_addr(&self) -> Option<SocketAddr> {
        Self::local_addr(self).ok().map(canonical)
    }
}

/// For tests. A pipe in memory has no reset, so [`abort`](Connection::abort) does nothing and the drop reads as an
/// end.
impl Connection for DuplexStream {
    fn abort(&mut self) {}
}

/// A user's connection as a [`Listener`](crate::Listener) accepts it: TCP, or TLS on it.
#[derive(Debug)]
pub struct UserStream(Carrier);

#[derive(Debug)]
enum Carrier {
    Plain(TcpStream),
    // Boxed: a TLS state of more than a kilobyte would be paid for by every plain connection.
    Tls(Box<TlsStream<TcpStream>>),
}

impl UserStream {
    /// The socket below, for its options and addresses.
    #[must_use]
    pub fn tcp(&self) -> &TcpStream {
        match &self.0 {
            Carrier::Plain(tcp) => tcp,
            Carrier::Tls(tls) => tls.get_ref().0,
        }
    }

    /// The TLS session, if there is one: ALPN protocol, server name, the peer's certificates.
    #[must_use]
    pub fn tls(&self) -> Option<&rustls::ServerConnection> {
        match &self.0 {
            Carrier::Plain(_) => None,
            Carrier::Tls(tls) => Some(tls.get_ref().1),
        }
    }

    /// The plain socket back.
    ///
    /// # Errors
    ///
    /// The stream itself, if it speaks TLS.
    pub fn into_tcp(self) -> Result<TcpStream, Self> {
        match self.0 {
            Carrier::Plain(tcp) => Ok(tcp),
            Carrier::Tls(_) => Err(self),
        }
    }
}

impl From<TcpStream> for UserStream {
    fn from(tcp: TcpStream) -> Self {
        Self(Carrier::Plain(tcp))
    }
}

impl From<TlsStream<TcpStream>> for UserStream {
    fn from(tls: TlsStream<TcpStream>) -> Self {
        Self(Carrier::Tls(Box::new(tls)))
    }
}

impl Connection for UserStream {
    fn abort(&mut self) {
        self.abort_when_lost(true);
    }

    fn abort_when_lost(&mut self, abort: bool) {
        match &mut self.0 {
            Carrier::Plain(tcp) => tcp.abort_when_lost(abort),
            Carrier::Tls(tls) => tls.get_mut().0.abort_when_lost(abort),
        }
    }

    fn failure(&self) -> Option<io::Error> {
        self.tcp().failure()
    }

    async fn lost(&self) {
        self.tcp().lost().await;
    }

    fn local_addr(&self) -> Option<SocketAddr> {
        self.tcp().local_addr().ok().map(canonical)
    }
}

impl AsyncRead for UserStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Carrier::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Carrier::Tls(tls) => Pin::new(&mut **tls).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for UserStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.0 {
            Carrier::Plain(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Carrier::Tls(tls) => Pin::new(&mut **tls).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.0 {
            Carrier::Plain(tcp) => Pin::new(tcp).poll_write_vectored(cx, bufs),
            Carrier::Tls(tls) => Pin::new(&mut **tls).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.0 {
            Carrier::Plain(tcp) => tcp.is_write_vectored(),
            Carrier::Tls(tls) => tls.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Carrier::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Carrier::Tls(tls) => Pin::new(&mut **tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Carrier::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Carrier::Tls(tls) => Pin::new(&mut **tls).poll_shutdown(cx),
        }
    }
}
