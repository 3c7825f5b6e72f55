//! Named places where types may be erased: a stock gateway whose file decides which layers there are needs one.

use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncBufRead, AsyncRead, AsyncWrite, ReadBuf};
use tower::util::BoxCloneSyncService;
use tower::{Service, ServiceExt as _};

use crate::{BoxError, ByteStream, Dial, DialService, GatewayStack, Login};

/// Any [`ByteStream`], its type forgotten.
pub struct BoxStream(Box<dyn ByteStream>);

impl BoxStream {
    /// Forgets the type of `stream`.
    pub fn new(stream: impl ByteStream) -> Self {
        Self(Box::new(stream))
    }
}

impl fmt::Debug for BoxStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BoxStream")
    }
}

impl AsyncRead for BoxStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0).poll_read(cx, buf)
    }
}

impl AsyncBufRead for BoxStream {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        Pin::new(&mut *self.get_mut().0).poll_fill_buf(cx)
    }

    fn consume(mut self: Pin<&mut Self>, amount: usize) {
        Pin::new(&mut *self.0).consume(amount);
    }
}

impl AsyncWrite for BoxStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0).poll_shutdown(cx)
    }
}

/// Any [`DialService`], its type and that of its streams forgotten.
#[derive(Clone, Debug)]
pub struct BoxDial(BoxCloneSyncService<Dial, BoxStream, BoxError>);

impl BoxDial {
    /// Forgets the type of `dials`.
    pub fn new<S>(dials: S) -> Self
    where
        S: DialService<Future: Send + 'static>,
    {
        Self(BoxCloneSyncService::new(dials.map_response(BoxStream::new).map_err(Into::into)))
    }
}

/// Any [`GatewayStack`], its type forgotten.
#[derive(Clone, Debug)]
pub struct BoxGateway(BoxCloneSyncService<Login, BoxDial, BoxError>);

impl BoxGateway {
    /// Forgets the type of `stack`.
    pub fn new<M>(stack: M) -> Self
    where
        M: GatewayStack<Future: Send + 'static>,
        M::Response: DialService<Future: Send + 'static>,
    {
        Self(BoxCloneSyncService::new(stack.map_response(BoxDial::new).map_err(Into::into)))
    }
}

/// The future of a boxed service. Named, because a bare `dyn` in the type of a front's task is more than today's
/// compiler can prove `Send` for.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = Result<T, BoxError>> + Send>>;

impl Service<Dial> for BoxDial {
    type Response = BoxStream;
    type Error = BoxError;
    type Future = BoxFuture<BoxStream>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, dial: Dial) -> Self::Future {
        self.0.call(dial)
    }
}

impl Service<Login> for BoxGateway {
    type Response = BoxDial;
    type Error = BoxError;
    type Future = BoxFuture<BoxDial>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, login: Login) -> Self::Future {
        self.0.call(login)
    }
}
