use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use anyproxy_core::{BoxError, Dial};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::Rejected;
use crate::verify::Shared;

/// Refuses dials of users whose account is gone, or is in other groups, since they logged in.
///
/// Between a login and a dial an account may be revoked: a moment, where each dial has a login of its own; hours, where
/// a connection may dial as long as it lasts, as that of a UDP association. [`Verify::standing`](crate::Verify::standing)
/// makes it, for right below an [`AuthLayer`](crate::AuthLayer); by default it refuses nobody.
#[derive(Clone, Default)]
pub struct StandingLayer {
    pub(crate) shared: Option<Arc<Shared>>,
}

impl<S> Layer<S> for StandingLayer {
    type Service = Standing<S>;

    fn layer(&self, inner: S) -> Standing<S> {
        Standing { inner, shared: self.shared.clone() }
    }
}

impl fmt::Debug for StandingLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StandingLayer").finish_non_exhaustive()
    }
}

/// Refuses dials of users who are no longer what they were. See [`StandingLayer`].
#[derive(Clone)]
pub struct Standing<S> {
    inner: S,
    shared: Option<Arc<Shared>>,
}

impl<S> Standing<S> {
    /// The dial service inside.
    pub const fn get_ref(&self) -> &S {
        &self.inner
    }

    fn stands(&self, dial: &Dial) -> bool {
        let Some(shared) = &self.shared else { return true };
        let accounts = shared.accounts.load();
        let now = dial.identity.user().and_then(|user| accounts.identity(user));
        now == Some(&dial.identity)
    }
}

impl<S> Service<Dial> for Standing<S>
where
    S: Service<Dial>,
    S::Error: Into<BoxError>,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = StandingFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, dial: Dial) -> Self::Future {
        StandingFuture { inner: self.stands(&dial).then(|| self.inner.call(dial)) }
    }
}

impl<S: fmt::Debug> fmt::Debug for Standing<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Standing").field("inner", &self.inner).finish_non_exhaustive()
    }
}

pin_project! {
    /// Response future of [`Standing`].
    #[derive(Debug)]
    pub struct StandingFuture<F> {
        // None where the user no longer stands.
        #[pin]
        inner: Option<F>,
    }
}

impl<F, T, E> Future for StandingFuture<F>
where
    F: Future<Output = Result<T, E>>,
    E: Into<BoxError>,
{
    type Output = Result<T, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().inner.as_pin_mut() {
            Some(inner) => Poll::Ready(ready!(inner.poll(cx)).map_err(Into::into)),
            None => Poll::Ready(Err(Rejected::WRONG.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use anyproxy_core::{Credentials, DialService as _, Front, GatewayStack as _, Login, Outcome, Target};
    use tower::ServiceBuilder;

    use super::*;
    use crate::{Accounts, AuthLayer, User, Verify};

    #[tokio::test]
    async fn who_was_revoked_since_the_login_dials_no_more() {
        let alice = || User::plain("alice", "secret").in_groups(["blue", "green"]);
        let (verify, handle) = Verify::pair(Accounts::new([alice()]).unwrap());
        let stack =
            ServiceBuilder::new().layer(AuthLayer::new(verify.clone())).layer(verify.standing()).service_fn(
                |_: Dial| async { Ok::<_, BoxError>(tokio::io::BufReader::new(tokio::io::duplex(64).0)) },
            );
        let source = "192.0.2.1:4000".parse().unwrap();
        let login = Login::new(Some(Credentials::new("alice", "secret")), source, Front::SOCKS5);
        let dials = stack.login(login).await.unwrap();
        let dial = || Dial::tcp(Target::parse("printer.lan:631").unwrap(), source, Front::SOCKS5);
        dials.dial(dial()).await.unwrap();

        // The same account with another password is the same user.
        let renewed = User::plain("alice", "changed").in_groups(["blue", "green"]);
        handle.replace(Accounts::new([renewed]).unwrap());
        dials.dial(dial()).await.unwrap();
        for accounts in [vec![User::plain("alice", "secret").in_groups(["blue"])], vec![]] {
            handle.replace(Accounts::new(accounts).unwrap());
            let error = dials.dial(dial()).await.map(drop).unwrap_err();
            assert_eq!(Outcome::of(&*error), Outcome::LoginRequired);
        }
        handle.replace(Accounts::new([alice()]).unwrap());
        dials.dial(dial()).await.unwrap();
    }
}
