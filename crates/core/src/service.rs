use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use pin_project_lite::pin_project;
use tower::util::Oneshot;
use tower::{Service, ServiceExt as _};

use crate::{BoxError, ByteStream, Dial, Identity, Login};

/// A service that turns dials into streams: what every policy layer wraps and every front calls in the end.
///
/// An alias: whatever fits is one. A clone must be cheap and must share its limits.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a dial service: it must answer `Dial` with a byte stream",
    note = "a dial service is `Service<Dial>` and `Clone + Send + Sync`, its response `AsyncRead + AsyncBufRead + AsyncWrite`",
    note = "wrap a response that is no `AsyncBufRead` in `tokio::io::BufReader`"
)]
pub trait DialService:
    Service<Dial, Response: ByteStream, Error: Into<BoxError>, Future: Send> + Clone + Send + Sync + 'static
{
    /// Dials once, on a clone of its own, so that no reservation sits idle.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives the dial up; whatever it held is free again.
    fn dial(&self, dial: Dial) -> impl Future<Output = Result<Self::Response, BoxError>> + Send + use<Self> {
        Calling::new(self.clone().oneshot(dial), std::convert::identity)
    }
}

impl<S> DialService for S where
    S: Service<Dial, Response: ByteStream, Error: Into<BoxError>, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static
{
}

/// A whole gateway as a front sees it: logins in, dial services out.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a gateway stack: it must answer `Login` with a dial service",
    note = "put `AuthLayer` outermost, or wrap an open stack in `tower::make::Shared`"
)]
pub trait GatewayStack:
    Service<Login, Response: DialService, Error: Into<BoxError>, Future: Send> + Clone + Send + Sync + 'static
{
    /// Logs in once, on a clone of its own.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives the login up.
    fn login(
        &self,
        login: Login,
    ) -> impl Future<Output = Result<Self::Response, BoxError>> + Send + use<Self> {
        Calling::new(self.clone().oneshot(login), std::convert::identity)
    }
}

impl<S> GatewayStack for S where
    S: Service<Login, Response: DialService, Error: Into<BoxError>, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static
{
}

/// A service that knows whose credentials these are: what an auth layer asks.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not verify logins: it must answer `Login` with an `Identity`"
)]
pub trait Verifier:
    Service<Login, Response = Identity, Error: Into<BoxError>, Future: Send> + Clone + Send + Sync + 'static
{
}

impl<S> Verifier for S where
    S: Service<Login, Response = Identity, Error: Into<BoxError>, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static
{
}

pin_project! {
    /// One call, its response changed and its error boxed.
    ///
    /// By hand, because an `async` block keeps room for what it captured beside what it awaits: a stack's future is
    /// more than a kilobyte, and would be moved and stored twice.
    pub(crate) struct Calling<S: Service<R>, R, F> {
        #[pin]
        call: Oneshot<S, R>,
        change: F,
    }
}

impl<S: Service<R>, R, F> Calling<S, R, F> {
    pub(crate) const fn new(call: Oneshot<S, R>, change: F) -> Self {
        Self { call, change }
    }
}

impl<S, R, F, T> Future for Calling<S, R, F>
where
    S: Service<R, Error: Into<BoxError>>,
    F: Fn(S::Response) -> T,
{
    type Output = Result<T, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        Poll::Ready(match ready!(this.call.poll(cx)) {
            Ok(response) => Ok((this.change)(response)),
            Err(error) => Err(error.into()),
        })
    }
}
