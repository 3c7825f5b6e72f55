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
use crate::accounts::Voucher;
use crate::verify::Shared;

/// Refuses dials of users whose account is gone since they logged in, has got another password or hash (another hash of
/// the same password, too: nobody can tell), or may reach less: it has lost a group, or has another first one. Who is in
/// more groups than they were stands, and dials as who they were until they log in again.
///
/// Between a login and a dial an account may be revoked: a moment, where each dial has a login of its own; hours, where
/// a connection may dial as long as it lasts, as that of a UDP association. And a dial may wait: each time that it goes on,
/// its user must still stand.
///
/// Belongs below what writes down and counts dials, since its refusals are some, and above what lets them wait. It asks the
/// accounts that the identity itself comes from, those of the [`Verify`](crate::Verify) that let its user in, whatever front
/// that was for. Identities from elsewhere pass: those of everybody, and those of a [`Verifier`](anyproxy_core::Verifier) of
/// one's own, who alone could say whether it would still let their user in; a layer of one's own asks that.
#[derive(Clone, Copy, Debug, Default)]
pub struct StandingLayer(());

impl StandingLayer {
    /// There is nothing to set: dials bring along what to go by.
    #[must_use]
    pub const fn new() -> Self {
        Self(())
    }
}

impl<S> Layer<S> for StandingLayer {
    type Service = Standing<S>;

    fn layer(&self, inner: S) -> Standing<S> {
        Standing { inner }
    }
}

/// Refuses dials of users who are no longer what they were. See [`StandingLayer`].
#[derive(Clone, Debug)]
pub struct Standing<S> {
    inner: S,
}

impl<S> Standing<S> {
    /// The dial service inside.
    pub const fn get_ref(&self) -> &S {
        &self.inner
    }
}

/// An identity, and who keeps the accounts it must stand in.
struct Watch {
    shared: Arc<Shared>,
    identity: Identity,
    /// How often the accounts had been replaced when they were last asked. Until they are for the first time, every identity
    /// comes from those that are.
    judged: u64,
}

impl Watch {
    /// Over the identity of a dial while it is under way, if that comes from accounts.
    fn over(dial: &Dial) -> Option<Self> {
        let shared = Voucher::of(&dial.identity)?.keeper()?;
        Some(Self { shared, identity: dial.identity.clone(), judged: 0 })
    }

    fn stands(&mut self) -> bool {
        // Before the accounts are read: those that come in between are asked next time.
        let replaced = self.shared.replaced.load(Ordering::Acquire);
        if self.judged == replaced {
            return true;
        }
        self.judged = replaced;
        let accounts = self.shared.accounts.load();
        let now = self.identity.user().and_then(|user| accounts.identity(user));
        now.is_some_and(|now| {
            let vouchers = Voucher::of(now).zip(Voucher::of(&self.identity));
            now.covers(&self.identity) && vouchers.is_some_and(|(now, before)| now.has_proof_of(before))
        })
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
        let mut watch = Watch::over(&dial);
        if watch.as_mut().is_some_and(|watch| !watch.stands()) {
            return StandingFuture { inner: None, watch };
        }
        // Written where it stays: it is more than a kilobyte.
        StandingFuture { inner: Some(self.inner.call(dial)), watch }
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
            None => Poll::Ready(Err(Rejected::REVOKED.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use anyproxy_core::{
        Account, Credentials, DialService as _, Front, GatewayStack as _, Login, Outcome, Target,
    };
    use tokio_test::{assert_pending, assert_ready_err, assert_ready_ok};
    use tower::ServiceBuilder;

    use super::*;
    use crate::{Accounts, AuthLayer, PasswordHash, User, Verify};

    #[tokio::test]
    async fn who_was_revoked_since_the_login_dials_no_more() {
        let alice = || User::plain("alice", "secret").in_groups(["blue", "green"]);
        let (verify, handle) = Verify::pair(Accounts::new([alice()]).unwrap());
        let auth = AuthLayer::new(verify);
        let stack =
            ServiceBuilder::new().layer(auth).layer(StandingLayer::new()).service_fn(|_: Dial| async {
                Ok::<_, BoxError>(tokio::io::BufReader::new(tokio::io::duplex(64).0))
            });
        let source = "192.0.2.1:4000".parse().unwrap();
        let login = Login::new(Some(Credentials::new("alice", "secret")), source, Front::SOCKS5);
        let dials = stack.login(login).await.unwrap();
        let dial = || Dial::tcp(Target::parse("printer.lan:631").unwrap(), source, Front::SOCKS5);
        dials.dial(dial()).await.unwrap();

        // Who has the old password has to find out the new one.
        let renewed = User::plain("alice", "changed").in_groups(["blue", "green"]);
        let groups = |groups: &[&str]| User::plain("alice", "secret").in_groups(groups.iter().copied());
        handle.replace(Accounts::new([groups(&["blue", "red", "green"])]).unwrap());
        dials.dial(dial()).await.unwrap();
        for accounts in [vec![renewed], vec![groups(&["blue"])], vec![groups(&["green", "blue"])], vec![]] {
            handle.replace(Accounts::new(accounts).unwrap());
            let error = dials.dial(dial()).await.map(drop).unwrap_err();
            assert_eq!(Outcome::of(&*error), Outcome::LoginRequired);
            assert!(error.downcast_ref::<Rejected>().is_some_and(Rejected::is_revoked));
        }
        handle.replace(Accounts::new([alice()]).unwrap());
        dials.dial(dial()).await.unwrap();
    }

    #[tokio::test]
    async fn a_user_whose_hash_is_another_is_no_longer_who_they_were() {
        let [old, new] = [(), ()].map(|()| PasswordHash::parse(&bcrypt::hash("secret", 5).unwrap()).unwrap());
        let accounts = |user: User| Accounts::new([user]).unwrap();
        let (_, handle) = Verify::pair(accounts(User::hashed("alice", old.clone())));
        let mut dial = Dial::tcp(Target::parse("t.lan:1").unwrap(), ([192, 0, 2, 1], 9).into(), Front::HTTP);
        dial.identity = handle.current().identity("alice").unwrap().clone();
        for (now, stands) in [
            (User::hashed("alice", new), false),
            (User::plain("alice", "secret"), false),
            (User::hashed("alice", old), true),
        ] {
            handle.replace(accounts(now));
            assert_eq!(Watch::over(&dial).unwrap().stands(), stands);
        }
    }

    #[tokio::test]
    async fn who_comes_from_no_accounts_is_not_asked() {
        let (mut standing, mut inner) = tower_test::mock::spawn_layer::<Dial, (), _>(StandingLayer::new());
        let source = "192.0.2.1:4000".parse().unwrap();
        for identity in [Identity::ANONYMOUS, Account::new("alice", [""; 0]).into()] {
            let mut dial = Dial::tcp(Target::parse("printer.lan:631").unwrap(), source, Front::PORT);
            dial.identity = identity;
            assert_ready_ok!(standing.poll_ready());
            let _answer = standing.call(dial);
            inner.next_request().await.unwrap();
        }
    }

    #[tokio::test]
    async fn i11_a_dial_that_waits_goes_on_for_those_who_still_stand_alone() {
        let accounts =
            |names: &[&str]| Accounts::new(names.iter().map(|name| User::plain(*name, "x"))).unwrap();
        let (_, handle) = Verify::pair(accounts(&["alice", "bob"]));
        let (service, mut inner) = tower_test::mock::pair::<Dial, &str>();
        let mut standing = StandingLayer::new().layer(service);
        let mut dial = |user: &str| {
            let source = "192.0.2.1:4000".parse().unwrap();
            let mut dial = Dial::tcp(Target::parse("printer.lan:631").unwrap(), source, Front::SOCKS5);
            dial.identity = handle.current().identity(user).unwrap().clone();
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
