//! Named places where types may be erased: a stock gateway whose file decides which layers there are needs one.

use std::any::{Any, TypeId};
use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncBufRead, AsyncRead, AsyncWrite, ReadBuf};
use tower::{Service, ServiceExt as _};

use crate::service::Calling;
use crate::{BoxError, ByteStream, Dial, DialService, GatewayStack, Login};

/// Any [`ByteStream`], its type forgotten.
pub struct BoxStream(Box<dyn ByteStream>);

impl BoxStream {
    /// Forgets the type of `stream`. One that is forgotten already stays as it is: seams may lie above each other, and
    /// its bytes pass through one box.
    pub fn new<S: ByteStream>(stream: S) -> Self {
        if TypeId::of::<S>() != TypeId::of::<Self>() {
            return Self(Box::new(stream));
        }
        let mut stream = Some(stream);
        let boxed = (&mut stream as &mut dyn Any).downcast_mut::<Option<Self>>();
        boxed.and_then(Option::take).expect("it is of this type")
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
///
/// Always ready: a dial runs on a clone of its own, which is made ready first. A clone of the seam itself is one more
/// count, whatever lies behind it: fronts make several for each dial.
#[derive(Clone)]
pub struct BoxDial(Arc<dyn Fn(Dial) -> BoxFuture<BoxStream> + Send + Sync>);

impl BoxDial {
    /// Forgets the type of `dials`.
    pub fn new<S>(dials: S) -> Self
    where
        S: DialService<Future: Send + 'static>,
    {
        Self(Arc::new(move |dial| Box::pin(Calling::new(dials.clone().oneshot(dial), BoxStream::new))))
    }
}

impl fmt::Debug for BoxDial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BoxDial")
    }
}

/// Any [`GatewayStack`] whose dial services are `D`, its type forgotten. Ready and cloned as [`BoxDial`] is.
pub struct BoxGateway<D = BoxDial>(Arc<dyn Fn(Login) -> BoxFuture<D> + Send + Sync>);

impl BoxGateway {
    /// Forgets the type of `stack`, and that of its dial services.
    pub fn new<M>(stack: M) -> Self
    where
        M: GatewayStack<Future: Send + 'static>,
        M::Response: DialService<Future: Send + 'static>,
    {
        Self(Arc::new(move |login| Box::pin(Calling::new(stack.clone().oneshot(login), BoxDial::new))))
    }
}

impl<D: DialService> BoxGateway<D> {
    /// Forgets the type of `stack` alone: where all stacks answer with the same dial services, a dial passes one seam
    /// less.
    pub fn of<M>(stack: M) -> Self
    where
        M: GatewayStack<Response = D, Future: Send + 'static>,
    {
        Self(Arc::new(move |login| {
            Box::pin(Calling::new(stack.clone().oneshot(login), std::convert::identity))
        }))
    }
}

impl<D> Clone for BoxGateway<D> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<D> fmt::Debug for BoxGateway<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BoxGateway")
    }
}

/// The future of a boxed service. Named, because a bare `dyn` in the type of a front's task is more than today's
/// compiler can prove `Send` for.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = Result<T, BoxError>> + Send>>;

impl Service<Dial> for BoxDial {
    type Response = BoxStream;
    type Error = BoxError;
    type Future = BoxFuture<BoxStream>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, dial: Dial) -> Self::Future {
        (self.0)(dial)
    }
}

impl<D> Service<Login> for BoxGateway<D> {
    type Response = D;
    type Error = BoxError;
    type Future = BoxFuture<D>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, login: Login) -> Self::Future {
        (self.0)(login)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{BufReader, DuplexStream, duplex};

    use super::*;
    use crate::{Front, Target};

    #[test]
    fn a_stream_forgotten_twice_lies_in_one_box() {
        let once = BoxStream::new(BufReader::new(duplex(1).0));
        let place = std::ptr::from_ref(&*once.0).cast::<()>();
        let twice = BoxStream::new(once);
        assert!(std::ptr::eq(std::ptr::from_ref(&*twice.0).cast::<()>(), place));
    }

    /// Panics when called unready. A clone starts so.
    #[derive(Default)]
    struct Strict(bool);

    impl Clone for Strict {
        fn clone(&self) -> Self {
            Self::default()
        }
    }

    impl Service<Dial> for Strict {
        type Response = BufReader<DuplexStream>;
        type Error = io::Error;
        type Future = std::future::Ready<io::Result<Self::Response>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.0 = true;
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Dial) -> Self::Future {
            assert!(std::mem::take(&mut self.0), "called unready");
            std::future::ready(Ok(BufReader::new(duplex(1).0)))
        }
    }

    #[tokio::test]
    async fn a_stack_is_forgotten_and_its_dial_services_stay_what_they_are() {
        let stack: BoxGateway<Strict> = BoxGateway::of(tower::make::Shared::new(Strict::default()));
        let login = Login::new(None, ([192, 0, 2, 1], 9).into(), Front::HTTP);
        let dials: Strict = stack.login(login).await.unwrap();
        let target = Target::parse("t.lan:1").unwrap();
        assert!(dials.dial(Dial::tcp(target, ([192, 0, 2, 1], 9).into(), Front::HTTP)).await.is_ok());
    }

    #[tokio::test]
    async fn what_lies_behind_a_seam_is_made_ready_for_each_dial() {
        let seam = BoxDial::new(Strict::default());
        for _ in 0..2 {
            let target = Target::parse("t.lan:1").unwrap();
            let dial = Dial::tcp(target, ([192, 0, 2, 1], 9).into(), Front::HTTP);
            assert!(seam.dial(dial).await.is_ok());
        }
    }
}
