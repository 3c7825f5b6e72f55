use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use anyproxy_core::{Credentials, Identity, Login, SourcePrefix};
use arc_swap::ArcSwap;
use tower_service::Service;

use crate::accounts::{MAX_PASSWORD, Proof};
use crate::remembered::Remembered;
use crate::{Accounts, HashPool, PasswordHash, Rejected};

/// Verifies logins against [`Accounts`]: the [`Verifier`](anyproxy_core::Verifier) of the stock gateway, and outside a
/// stack [`Verify::verify`].
///
/// - Plain passwords are compared at once, by keyed digests, in a time that tells nothing.
/// - Hashes are reckoned on tokio's blocking threads, a few at once ([`HashPool`]), and remembered without the
///   password: a user who logs in with every request costs one hash in the first five minutes and none while they
///   go on.
/// - A user who does not exist is compared with somebody else's account, and refused whatever comes out.
///
/// Clones share everything. Hashing needs a tokio runtime.
#[derive(Clone)]
pub struct Verify {
    shared: Arc<Shared>,
    pool: HashPool,
}

pub(crate) struct Shared {
    pub(crate) accounts: ArcSwap<Accounts>,
    /// How often they were replaced.
    pub(crate) replaced: AtomicU64,
    remembered: Remembered,
}

impl Verify {
    /// A verifier over `accounts`, with a [`HashPool`] of its own.
    #[must_use]
    pub fn new(accounts: Accounts) -> Self {
        let shared = Arc::new_cyclic(|shared| Shared {
            accounts: ArcSwap::from_pointee(accounts.kept_by(shared)),
            replaced: AtomicU64::new(0),
            remembered: Remembered::new(),
        });
        Self { shared, pool: HashPool::default() }
    }

    /// As [`Verify::new`], and a handle that replaces the accounts while logins go on.
    #[must_use]
    pub fn pair(accounts: Accounts) -> (Self, AccountsHandle) {
        let verify = Self::new(accounts);
        let handle = AccountsHandle { shared: verify.shared.clone() };
        (verify, handle)
    }

    /// Hashes in `pool`, which several verifiers may share.
    #[must_use]
    pub fn with_pool(mut self, pool: HashPool) -> Self {
        self.pool = pool;
        self
    }

    /// Whose credentials these are.
    ///
    /// # Errors
    ///
    /// [`Rejected`]: wrong, or no place in the line of the [`HashPool`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the verdict gives up its place in the line. A hash that has begun runs to its end, and counts until
    /// then.
    pub fn verify(&self, credentials: Credentials) -> Verdict {
        self.verify_of(credentials, None)
    }

    fn verify_of(&self, credentials: Credentials, source: Option<SourcePrefix>) -> Verdict {
        if credentials.password.expose_secret().len() > MAX_PASSWORD {
            return Verdict::known(Err(Rejected::WRONG));
        }
        let accounts = self.shared.accounts.load();
        let Some(found) = accounts.find(&credentials.username) else {
            return Verdict::known(Err(Rejected::WRONG));
        };
        match &found.entry.proof {
            Proof::Digest(tag) => {
                let right = accounts.is_digest_of(tag, &credentials) & found.known;
                Verdict::known(right.then(|| found.entry.identity.clone()).ok_or(Rejected::WRONG))
            }
            // `known` matters here too: a user who is gone may be remembered with the very hash of the decoy.
            Proof::Hash(hash) if self.remembers(&credentials, hash) & found.known => {
                Verdict::known(Ok(found.entry.identity.clone()))
            }
            Proof::Hash(hash) => Verdict(State::Hashing(Box::pin(self.clone().by_hash(
                credentials,
                source,
                hash.clone(),
                found.known,
            )))),
        }
    }

    fn remembers(&self, credentials: &Credentials, hash: &PasswordHash) -> bool {
        let remembered = &self.shared.remembered;
        remembered.contains(&remembered.digest(credentials, hash))
    }

    async fn by_hash(
        self,
        credentials: Credentials,
        source: Option<SourcePrefix>,
        hash: PasswordHash,
        known: bool,
    ) -> Result<Identity, Rejected> {
        let right = {
            let seat = self.pool.seat(source).await?;
            // Those who waited behind the same login, say a browser's other connections, need no hash of their own.
            if self.remembers(&credentials, &hash) & known {
                true
            } else {
                let (shared, credentials, hash) = (self.shared.clone(), credentials.clone(), hash.clone());
                // Remembered before the seat is free, so that the next in line finds it.
                let reckon = move || {
                    let right = hash.verify(&credentials.password) & known;
                    if right {
                        shared.remembered.insert(shared.remembered.digest(&credentials, &hash));
                    }
                    right
                };
                seat.run(reckon).await?
            }
            // The seat is free again: who is verified anew below waits in line for another.
        };
        if !right {
            return Err(Rejected::WRONG);
        }
        // The accounts may have been replaced meanwhile: only what they say now counts.
        let now = self.shared.accounts.load_full();
        match now.find(&credentials.username) {
            Some(found) if found.known && matches!(&found.entry.proof, Proof::Hash(now) if *now == hash) => {
                Ok(found.entry.identity.clone())
            }
            _ => self.verify_of(credentials, source).await,
        }
    }
}

impl fmt::Debug for Verify {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verify").field("accounts", &self.shared.accounts).field("pool", &self.pool).finish()
    }
}

impl Service<Login> for Verify {
    type Response = Identity;
    type Error = Rejected;
    type Future = Verdict;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Rejected>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, login: Login) -> Verdict {
        match login.credentials {
            Some(credentials) => self.verify_of(credentials, Some(login.source.into())),
            None => Verdict::known(Err(Rejected::MISSING)),
        }
    }
}

/// Replaces the accounts of a [`Verify`] while logins go on.
#[derive(Clone)]
pub struct AccountsHandle {
    shared: Arc<Shared>,
}

impl AccountsHandle {
    /// Logins from now on, and those whose verdict is still awaited, go by `accounts`. Those who are logged in stay
    /// so until they log in again: with HTTP that is the next request. What they may still dial until then is for a
    /// [`StandingLayer`](crate::StandingLayer) to judge.
    pub fn replace(&self, accounts: Accounts) {
        self.shared.accounts.store(Arc::new(accounts.kept_by(&Arc::downgrade(&self.shared))));
        // Behind it: whoever sees the number sees the accounts.
        self.shared.replaced.fetch_add(1, Ordering::Release);
    }

    /// The accounts logins go by.
    #[must_use]
    pub fn current(&self) -> Arc<Accounts> {
        self.shared.accounts.load_full()
    }
}

impl fmt::Debug for AccountsHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccountsHandle").field("accounts", &self.shared.accounts).finish()
    }
}

/// The verdict of [`Verify`] on a login; known at once unless a hash must be reckoned.
pub struct Verdict(State);

enum State {
    Known(Option<Result<Identity, Rejected>>),
    /// Boxed: a hash takes a million times longer than the allocation, and the usual login does not pay for it.
    Hashing(Pin<Box<dyn Future<Output = Result<Identity, Rejected>> + Send>>),
}

impl Verdict {
    const fn known(verdict: Result<Identity, Rejected>) -> Self {
        Self(State::Known(Some(verdict)))
    }
}

impl Future for Verdict {
    type Output = Result<Identity, Rejected>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.get_mut().0 {
            State::Known(verdict) => Poll::Ready(verdict.take().expect("polled after it was ready")),
            State::Hashing(verdict) => verdict.as_mut().poll(cx),
        }
    }
}

impl fmt::Debug for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.0 {
            State::Known(_) => "Verdict(Known)",
            State::Hashing(_) => "Verdict(Hashing)",
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    /// The cheapest hash that is accepted.
    static HASH: LazyLock<PasswordHash> =
        LazyLock::new(|| PasswordHash::parse(&bcrypt::hash("secret", 5).unwrap()).unwrap());

    fn hashed(name: &str) -> User {
        User::hashed(name, HASH.clone())
    }

    use crate::User;

    fn credentials(name: &str, password: &str) -> Credentials {
        Credentials::new(name, password)
    }

    fn is_known(verdict: &Verdict) -> bool {
        matches!(verdict.0, State::Known(_))
    }

    #[tokio::test]
    async fn right_logins_get_their_identity_and_wrong_ones_are_wrong() {
        let users = [User::plain("alice", "secret").in_groups(["blue"]), hashed("bob")];
        let verify = Verify::new(Accounts::new(users).unwrap());
        let alice = verify.verify(credentials("alice", "secret")).await.unwrap();
        assert_eq!((alice.user(), alice.group()), (Some("alice"), "blue"));
        assert_eq!(verify.verify(credentials("bob", "secret")).await.unwrap().user(), Some("bob"));
        for (name, password) in [
            ("alice", "secreT"),
            ("alice", "Secret"),
            ("alice", ""),
            ("alice", "secrets"),
            ("bob", "wrong"),
            ("carol", "secret"),
            ("", ""),
        ] {
            let rejected = verify.verify(credentials(name, password)).await.unwrap_err();
            assert!(rejected.is_wrong(), "{name} {password}");
        }
        // Every name anyone could try meets the same wall, whichever account it is compared with.
        for n in 0..20 {
            assert!(
                verify.verify(credentials(&format!("nobody{n}"), "secret")).await.unwrap_err().is_wrong()
            );
        }
    }

    #[tokio::test]
    async fn a_login_without_credentials_is_missing_not_wrong() {
        let mut verify = Verify::new(Accounts::new([]).unwrap());
        let login = Login::new(None, "192.0.2.1:4000".parse().unwrap(), anyproxy_core::Front::HTTP);
        assert!(verify.call(login).await.unwrap_err().is_missing());
        assert!(verify.verify(credentials("alice", "secret")).await.unwrap_err().is_wrong());
    }

    #[tokio::test]
    async fn a_verified_hash_is_not_reckoned_again() {
        let verify = Verify::new(Accounts::new([hashed("bob")]).unwrap());
        let first = verify.verify(credentials("bob", "secret"));
        assert!(!is_known(&first));
        first.await.unwrap();
        assert!(is_known(&verify.verify(credentials("bob", "secret"))));
        assert!(!is_known(&verify.verify(credentials("bob", "secret "))));
        assert!(!is_known(&verify.verify(credentials("carol", "secret"))));
    }

    #[tokio::test]
    async fn p4_unknown_users_wait_for_a_hash_as_known_ones_do() {
        let pool = HashPool::new(1, 0);
        let verify = Verify::new(Accounts::new([hashed("bob")]).unwrap()).with_pool(pool.clone());
        let seat = pool.seat(None).await.unwrap();
        for name in ["bob", "nobody"] {
            assert!(verify.verify(credentials(name, "wrong")).await.unwrap_err().is_busy(), "{name}");
        }
        drop(seat);
        for name in ["bob", "nobody"] {
            assert!(verify.verify(credentials(name, "wrong")).await.unwrap_err().is_wrong(), "{name}");
        }
    }

    #[tokio::test]
    async fn what_a_reload_revokes_stays_revoked() {
        let (verify, handle) = Verify::pair(Accounts::new([hashed("bob"), hashed("eve")]).unwrap());
        let login = |name: &str| verify.verify(credentials(name, "secret"));
        login("bob").await.unwrap();
        login("eve").await.unwrap();

        handle.replace(Accounts::new([hashed("bob").in_groups(["blue"])]).unwrap());
        assert!(login("eve").await.unwrap_err().is_wrong());
        let bob = login("bob");
        assert!(is_known(&bob), "an account that stays is still remembered");
        assert_eq!(bob.await.unwrap().group(), "blue", "with what it may reach now");

        let other = PasswordHash::parse(&bcrypt::hash("changed", 5).unwrap()).unwrap();
        handle.replace(Accounts::new([User::hashed("bob", other)]).unwrap());
        assert!(login("bob").await.unwrap_err().is_wrong());
    }

    #[tokio::test]
    async fn a_login_under_way_goes_by_the_accounts_of_its_end() {
        let pool = HashPool::new(1, 8);
        let (verify, handle) = Verify::pair(Accounts::new([hashed("bob"), hashed("eve")]).unwrap());
        let verify = verify.with_pool(pool.clone());
        let seat = pool.seat(None).await.unwrap();
        let bob = tokio::spawn(verify.verify(credentials("bob", "secret")));
        let eve = tokio::spawn(verify.verify(credentials("eve", "secret")));
        tokio::task::yield_now().await;
        handle.replace(Accounts::new([User::plain("bob", "secret").in_groups(["green"])]).unwrap());
        drop(seat);
        assert_eq!(bob.await.unwrap().unwrap().group(), "green");
        assert!(eve.await.unwrap().unwrap_err().is_wrong());
    }

    #[tokio::test]
    async fn a_user_removed_during_the_hash_does_not_pass_for_the_decoy() {
        let pool = HashPool::new(1, 8);
        let (verify, handle) = Verify::pair(Accounts::new([hashed("bob"), hashed("eve")]).unwrap());
        let verify = verify.with_pool(pool.clone());
        let seat = pool.seat(None).await.unwrap();
        let eve = tokio::spawn(verify.verify(credentials("eve", "secret")));
        tokio::task::yield_now().await;
        // Who compares eve with somebody meets bob, whose hash is the same.
        handle.replace(Accounts::new([hashed("bob")]).unwrap());
        drop(seat);
        assert!(eve.await.unwrap().unwrap_err().is_wrong());
    }

    #[tokio::test]
    async fn r3_a_hash_replaced_while_its_user_s_logins_wait_holds_nobody_up() {
        let pool = HashPool::new(1, 8);
        let (verify, handle) = Verify::pair(Accounts::new([hashed("bob")]).unwrap());
        let verify = verify.with_pool(pool.clone());
        let seat = pool.seat(None).await.unwrap();
        let logins = [0; 3].map(|_| tokio::spawn(verify.verify(credentials("bob", "secret"))));
        tokio::task::yield_now().await;
        let anew = PasswordHash::parse(&bcrypt::hash("secret", 5).unwrap()).unwrap();
        handle.replace(Accounts::new([User::hashed("bob", anew)]).unwrap());
        drop(seat);
        // The second finds the first remembered, and has to be verified again under the new hash.
        for login in logins {
            timeout(Duration::from_secs(60), login)
                .await
                .expect("nobody waits for themselves")
                .unwrap()
                .unwrap();
        }
        assert_eq!(pool.hashed(), 2, "one under the old hash, one under the new");
    }

    #[tokio::test]
    async fn a_browser_that_opens_thirty_connections_costs_one_hash() {
        let verify = Verify::new(Accounts::new([hashed("bob")]).unwrap()).with_pool(HashPool::new(1, 64));
        let logins: Vec<_> =
            (0..30).map(|_| tokio::spawn(verify.verify(credentials("bob", "secret")))).collect();
        for login in logins {
            login.await.unwrap().unwrap();
        }
        assert_eq!(verify.pool.hashed(), 1);
    }

    #[tokio::test]
    async fn an_endless_password_is_wrong_without_a_look_at_it() {
        let verify = Verify::new(Accounts::new([hashed("bob")]).unwrap());
        for name in ["bob", "nobody"] {
            let verdict = verify.verify(credentials(name, &"x".repeat(64 * 1024)));
            assert!(is_known(&verdict));
            assert!(verdict.await.unwrap_err().is_wrong());
        }
    }
}
