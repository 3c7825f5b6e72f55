use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use anyproxy_core::{BoxError, Dial, Identity, Login, Verifier};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

/// Puts a login in front of a dial service: the service of services a front asks.
#[derive(Clone, Copy, Debug)]
pub struct AuthLayer<V> {
    verifier: V,
}

impl<V> AuthLayer<V> {
    /// A layer that asks `verifier` who a login is: [`Verify`](crate::Verify), or any service of one's own that
    /// answers [`Login`] with an [`Identity`].
    pub const fn new(verifier: V) -> Self {
        Self { verifier }
    }
}

impl<V: Clone, S> Layer<S> for AuthLayer<V> {
    type Service = Auth<V, S>;

    fn layer(&self, inner: S) -> Self::Service {
        Auth { verifier: self.verifier.clone(), inner }
    }
}

/// Answers a login with a dial service that signs its dials. See [`AuthLayer`].
#[derive(Clone, Debug)]
pub struct Auth<V, S> {
    verifier: V,
    /// Handed out in clones and never made ready here, so no clone can carry a reservation.
    inner: S,
}

impl<V, S> Auth<V, S> {
    /// The dial service behind the login.
    pub const fn get_ref(&self) -> &S {
        &self.inner
    }
}

impl<V, S> Service<Login> for Auth<V, S>
where
    V: Verifier,
    S: Clone,
{
    type Response = Identified<S>;
    type Error = BoxError;
    type Future = AuthFuture<V::Future, S>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.verifier.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, login: Login) -> Self::Future {
        AuthFuture { verdict: self.verifier.call(login), inner: Some(self.inner.clone()) }
    }
}

pin_project! {
    /// Response future of [`Auth`].
    #[derive(Debug)]
    pub struct AuthFuture<F, S> {
        #[pin]
        verdict: F,
        inner: Option<S>,
    }
}

impl<F, S, E> Future for AuthFuture<F, S>
where
    F: Future<Output = Result<Identity, E>>,
    E: Into<BoxError>,
{
    type Output = Result<Identified<S>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let identity = ready!(this.verdict.poll(cx)).map_err(Into::into)?;
        let inner = this.inner.take().expect("polled after it was ready");
        Poll::Ready(Ok(Identified { identity, inner }))
    }
}

/// A dial service bound to an [`Identity`]: whatever a dial said before, it is signed anew.
#[derive(Clone, Debug)]
pub struct Identified<S> {
    identity: Identity,
    inner: S,
}

impl<S> Identified<S> {
    /// Binds `inner` to `identity`: for those who know the user without a login, as a fixed port does.
    pub const fn new(identity: Identity, inner: S) -> Self {
        Self { identity, inner }
    }

    /// For whom it dials.
    pub const fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The dial service inside.
    pub const fn get_ref(&self) -> &S {
        &self.inner
    }
}

impl<S: Service<Dial>> Service<Dial> for Identified<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut dial: Dial) -> S::Future {
        dial.identity = self.identity.clone();
        self.inner.call(dial)
    }
}

#[cfg(test)]
mod tests {
    use anyproxy_core::{Account, Credentials, Front, Outcome, Target};
    use tokio_test::{assert_pending, assert_ready_err, assert_ready_ok, task};
    use tower_test::mock;

    use super::*;
    use crate::{Accounts, User, Verify};

    fn login(password: &str) -> Login {
        let credentials = Credentials::new("alice", password);
        Login::new(Some(credentials), "192.0.2.1:4000".parse().unwrap(), Front::HTTP)
    }

    fn dial() -> Dial {
        let target = Target::parse("printer.lan:631").unwrap();
        Dial::tcp(target, "192.0.2.1:4000".parse().unwrap(), Front::HTTP)
    }

    fn auth<S>(inner: S) -> mock::Spawn<Auth<Verify, S>> {
        let accounts = Accounts::new([User::plain("alice", "secret")]).unwrap();
        mock::Spawn::new(AuthLayer::new(Verify::new(accounts)).layer(inner))
    }

    #[tokio::test]
    async fn a_refused_login_gets_no_dial_service() {
        let (inner, mut handle) = mock::pair::<Dial, ()>();
        let mut auth = auth(inner);
        assert_ready_ok!(auth.poll_ready());
        let error = auth.call(login("wrong")).await.unwrap_err();
        assert_eq!(Outcome::of(&*error), Outcome::LoginRequired);
        assert_pending!(handle.poll_request());
    }

    #[tokio::test]
    async fn every_dial_is_signed_anew() {
        let (inner, mut handle) = mock::pair::<Dial, ()>();
        let mut auth = auth(inner);
        assert_ready_ok!(auth.poll_ready());
        let mut dials = mock::Spawn::new(auth.call(login("secret")).await.unwrap());
        assert_ready_ok!(dials.poll_ready());
        let forged = Dial { identity: Account::new("mallory", ["blue"]).into(), ..dial() };
        let _answer = dials.call(forged);
        let (dial, _) = handle.next_request().await.unwrap();
        assert_eq!(dial.identity.user(), Some("alice"));
    }

    #[tokio::test]
    async fn a_login_waits_for_no_dial_service_and_each_session_starts_unready() {
        let (inner, mut handle) = mock::pair::<Dial, ()>();
        handle.allow(0);
        let mut auth = auth(inner);
        assert_ready_ok!(auth.poll_ready());
        let mut dials = mock::Spawn::new(auth.call(login("secret")).await.unwrap());
        assert_pending!(dials.poll_ready());
        assert_pending!(dials.clone().poll_ready());
    }

    #[tokio::test]
    async fn a_verifier_of_ones_own_decides_and_its_error_is_told() {
        let (verifier, mut handle) = mock::pair::<Login, Identity>();
        let mut auth = mock::Spawn::new(AuthLayer::new(verifier).layer(()));
        assert_ready_ok!(auth.poll_ready());
        let mut answer = task::spawn(auth.call(login("secret")));
        assert_pending!(answer.poll());
        let (_, asked) = handle.next_request().await.unwrap();
        asked.send_response(Account::new("carol", ["blue"]).into());
        assert_eq!(assert_ready_ok!(answer.poll()).identity().user(), Some("carol"));

        assert_ready_ok!(auth.poll_ready());
        let mut answer = task::spawn(auth.call(login("secret")));
        handle.next_request().await.unwrap().1.send_error(Outcome::TimedOut);
        assert_eq!(Outcome::of(&*assert_ready_err!(answer.poll())), Outcome::TimedOut);
    }
}
