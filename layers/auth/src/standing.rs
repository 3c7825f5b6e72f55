use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use anyproxy_core::{BoxError, Dial, Identity};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::Rejected;
use crate::verify::Shared;

/// Refuses dials of users whose account is gone, or is in other groups, since they logged in.
///
/// Between a login and a dial an account may be revoked: a moment, where each dial has a login of its own; hours, where
/// a connection may dial as long as it lasts, as that of a UDP association. And a dial may wait: each time that it goes on,
/// its user must still stand. [`Verify::standing`](crate::Verify::standing)
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

    /// Watches over the identity of a dial while it is under way, if there is anything to go by.
    fn watch(&self, dial: &Dial) -> Option<Watch> {
        let shared = self.shared.clone()?;
        Some(Watch { shared, identity: dial.identity.clone(), judged: None })
    }
}

/// An identity, and the accounts it must stand in.
struct Watch {
    shared: Arc<Shared>,
    identity: Identity,
    /// How often the accounts had been replaced when they were last asked.
    judged: Option<u64>,
}

impl Watch {
    fn stands(&mut self) -> bool {
        // Before the accounts are read: those that come in between are asked next time.
        let replaced = self.shared.replaced.load(Ordering::Acquire);
        if self.judged == Some(replaced) {
            return true;
        }
        self.judged = Some(replaced);
        let accounts = self.shared.accounts.load();
        let now = self.identity.user().and_then(|user| accounts.identity(user));
        now == Some(&self.identity)
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("identity", &self.identity).finish_non_exhaustive()
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
        let mut watch = self.watch(&dial);
        let stands = watch.as_mut().is_none_or(Watch::stands);
        StandingFuture { inner: stands.then(|| self.inner.call(dial)), watch }
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
        watch: Option<Watch>,
    }
}

impl<F, T, E> Future for StandingFuture<F>
where
    F: Future<Output = Result<T, E>>,
    E: Into<BoxError>,
{
    type Output = Result<T, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        // Each time that it goes on: it may have waited for a client or a place meanwhile.
        if this.watch.as_mut().is_some_and(|watch| !watch.stands()) {
            this.inner.set(None);
        }
        match this.inner.as_pin_mut() {
            Some(inner) => Poll::Ready(ready!(inner.poll(cx)).map_err(Into::into)),
            None => Poll::Ready(Err(Rejected::WRONG.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use anyproxy_core::{Credentials, DialService as _, Front, GatewayStack as _, Login, Outcome, Target};
    use tokio_test::{assert_pending, assert_ready_err, assert_ready_ok};
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

    #[tokio::test]
    async fn i11_a_dial_that_waits_goes_on_for_those_who_still_stand_alone() {
        let accounts =
            |names: &[&str]| Accounts::new(names.iter().map(|name| User::plain(*name, "x"))).unwrap();
        let (verify, handle) = Verify::pair(accounts(&["alice", "bob"]));
        let (service, mut inner) = tower_test::mock::pair::<Dial, &str>();
        let mut standing = verify.standing().layer(service);
        let mut dial = |user: &str| {
            let source = "192.0.2.1:4000".parse().unwrap();
            let mut dial = Dial::tcp(Target::parse("printer.lan:631").unwrap(), source, Front::SOCKS5);
            dial.identity = anyproxy_core::Account::new(user, [""; 0]).into();
            assert_ready_ok!(
                tokio_test::task::spawn(std::future::poll_fn(|cx| standing.poll_ready(cx))).poll()
            );
            tokio_test::task::spawn(standing.call(dial))
        };
        let (mut alice, mut bob) = (dial("alice"), dial("bob"));
        assert_pending!(alice.poll());
        assert_pending!(bob.poll());
        let waiting = [inner.next_request().await.unwrap().1, inner.next_request().await.unwrap().1];
        handle.replace(accounts(&["bob"]));
        let error = assert_ready_err!(alice.poll());
        assert_eq!(Outcome::of(&*error), Outcome::LoginRequired);
        assert_pending!(bob.poll());
        for served in waiting {
            served.send_response("stream");
        }
        assert_eq!(assert_ready_ok!(bob.poll()), "stream");
    }
}
