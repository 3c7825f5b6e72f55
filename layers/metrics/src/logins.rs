use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use anyproxy_core::{BoxError, Login, Outcome};
use pin_project_lite::pin_project;
use tower_service::Service;

use crate::Metrics;
use crate::figures::{FrontFigures, Verdict};

impl<S> Service<Login> for Metrics<S>
where
    S: Service<Login>,
    S::Error: Into<BoxError>,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = LoginFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, login: Login) -> Self::Future {
        let pending = Pending {
            figures: self.figures.of(login.front),
            asks: login.credentials.is_none(),
            decided: false,
        };
        LoginFuture { inner: self.inner.call(login), pending }
    }
}

pin_project! {
    /// Response future of a login through [`Metrics`]. Dropped before it is ready, the login counts as cancelled.
    #[derive(Debug)]
    pub struct LoginFuture<F> {
        #[pin]
        inner: F,
        pending: Pending,
    }
}

impl<F, R, E> Future for LoginFuture<F>
where
    F: Future<Output = Result<R, E>>,
    E: Into<BoxError>,
{
    type Output = Result<R, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let answer = ready!(this.inner.poll(cx)).map_err(Into::into);
        match &answer {
            Ok(_) => this.pending.decide(Verdict::Ok),
            Err(error) => match Outcome::of(&**error) {
                Outcome::LoginRequired if this.pending.asks => this.pending.decided = true,
                outcome => {
                    this.pending.decide(Verdict::Refused(outcome));
                    this.pending.figures.refusals.count(&**error);
                }
            },
        }
        Poll::Ready(answer)
    }
}

#[derive(Debug)]
struct Pending {
    figures: Arc<FrontFigures>,
    /// Whether it has no credentials. To be asked for them is how a conversation begins, and nothing that went wrong.
    asks: bool,
    decided: bool,
}

impl Pending {
    fn decide(&mut self, verdict: Verdict) {
        self.decided = true;
        self.figures.logins(verdict).increment(1);
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.decided {
            self.decide(Verdict::Cancelled);
        }
    }
}
