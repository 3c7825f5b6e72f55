use std::error::Error;
use std::fmt;
use std::future::Future;
use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use anyproxy_core::{BoxError, Dial, Digest, Outcome, Refusal};
use arc_swap::ArcSwapOption;
use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::StateStore;
use governor::state::keyed::ShrinkableKeyedStateStore;
use governor::{Quota as Gcra, RateLimiter};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::Key;
use crate::keyed::Keyed;

/// The most keys of a shard that have a state of their own: 1,048,576 in all, 40 MiB.
const KEYS_PER_SHARD: usize = 16_384;
/// The states that those beyond share, in each shard; 1,024 in all. A flood of new keys limits itself with them.
const SHARED_PER_SHARD: u64 = 16;

/// How many dials are allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Whose dials count together.
    pub key: Key,
    /// Dials per second in the long run.
    pub per_second: NonZeroU32,
    /// Dials at once, after a pause of `burst / per_second` seconds.
    pub burst: NonZeroU32,
}

impl Quota {
    /// So many dials per second, so many of them at once.
    ///
    /// # Errors
    ///
    /// If either is zero, which would let nobody in.
    pub fn new(key: Key, per_second: u32, burst: u32) -> Result<Self, ZeroQuota> {
        // Not an `Option`: the layer would take its `None` for no limit at all.
        let at_least_one = |number| NonZeroU32::new(number).ok_or(ZeroQuota(()));
        Ok(Self { key, per_second: at_least_one(per_second)?, burst: at_least_one(burst)? })
    }
}

/// A [`Quota`] of no dials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ZeroQuota(());

impl fmt::Display for ZeroQuota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("per_second and burst are 1 at least")
    }
}

impl Error for ZeroQuota {}

/// Refuses dials that come too fast: GCRA by [`Key`], answered at once with the time to wait.
///
/// A refused dial costs nothing, so the limit is reached and held however fast they come. Not waiting for a turn is
/// deliberate: whoever dials too fast would fill whatever they wait in.
#[derive(Clone, Debug)]
pub struct RateLimitLayer {
    limiter: Shared,
}

impl RateLimitLayer {
    /// Limits dials to a [`Quota`]; `None` limits nothing.
    pub fn new(quota: impl Into<Option<Quota>>) -> Self {
        let limiter = quota.into().map(|quota| Arc::new(Limiter::new(quota)));
        Self { limiter: Shared(Arc::new(ArcSwapOption::new(limiter))) }
    }

    /// A layer that limits nothing.
    #[must_use]
    pub fn unlimited() -> Self {
        Self::new(None)
    }

    /// As [`RateLimitLayer::new`], and a handle that changes the quota while dials run.
    pub fn pair(quota: impl Into<Option<Quota>>) -> (Self, RateLimitHandle) {
        let layer = Self::new(quota);
        let handle = RateLimitHandle { limiter: layer.limiter.clone() };
        (layer, handle)
    }
}

impl<S> Layer<S> for RateLimitLayer {
    type Service = RateLimit<S>;

    fn layer(&self, inner: S) -> RateLimit<S> {
        RateLimit { inner, limiter: self.limiter.clone() }
    }
}

/// Changes the quota of a [`RateLimitLayer`] while dials run.
#[derive(Clone, Debug)]
pub struct RateLimitHandle {
    limiter: Shared,
}

impl RateLimitHandle {
    /// Limits dials to `quota` from now on. With the quota there was, nothing changes; with another, everybody starts
    /// with a full burst.
    pub fn replace(&self, quota: impl Into<Option<Quota>>) {
        let quota = quota.into();
        if self.quota() != quota {
            self.limiter.0.store(quota.map(|quota| Arc::new(Limiter::new(quota))));
        }
    }

    /// The quota that holds.
    #[must_use]
    pub fn quota(&self) -> Option<Quota> {
        self.limiter.0.load().as_ref().map(|limiter| limiter.quota)
    }

    /// How many keys have state now: those who dialled a moment ago.
    #[must_use]
    pub fn keys(&self) -> usize {
        self.limiter.0.load().as_ref().map_or(0, |limiter| limiter.gcra.len())
    }
}

/// Refuses dials that come too fast. See [`RateLimitLayer`].
#[derive(Clone, Debug)]
pub struct RateLimit<S> {
    inner: S,
    limiter: Shared,
}

impl<S> RateLimit<S> {
    /// The dial service inside.
    pub const fn get_ref(&self) -> &S {
        &self.inner
    }
}

impl<S> Service<Dial> for RateLimit<S>
where
    S: Service<Dial>,
    S::Error: Into<BoxError>,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = RateLimitFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, dial: Dial) -> Self::Future {
        let verdict = self.limiter.0.load().as_ref().map_or(Ok(()), |limiter| limiter.check(&dial));
        // Each written where it stays: a dial's future is more than a kilobyte, and a copy of it costs as much as all this.
        match verdict {
            Ok(()) => RateLimitFuture { state: State::Dialing { dial: self.inner.call(dial) } },
            Err(limited) => RateLimitFuture { state: State::Limited { error: Some(limited) } },
        }
    }
}

pin_project! {
    /// Response future of [`RateLimit`].
    #[derive(Debug)]
    pub struct RateLimitFuture<F> {
        #[pin]
        state: State<F>,
    }
}

pin_project! {
    #[project = StateProj]
    #[derive(Debug)]
    enum State<F> {
        Dialing { #[pin] dial: F },
        Limited { error: Option<Limited> },
    }
}

impl<F, T, E> Future for RateLimitFuture<F>
where
    F: Future<Output = Result<T, E>>,
    E: Into<BoxError>,
{
    type Output = Result<T, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProj::Dialing { dial } => dial.poll(cx).map_err(Into::into),
            StateProj::Limited { error } => {
                Poll::Ready(Err(error.take().expect("polled after it was ready").into()))
            }
        }
    }
}

/// Dials came too fast.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Limited {
    refusal: Refusal,
}

impl fmt::Display for Limited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("too many dials per second")
    }
}

impl Error for Limited {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.refusal)
    }
}

// === the limiter ===

#[derive(Clone)]
struct Shared(Arc<ArcSwapOption<Limiter>>);

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.load().as_ref().map(|limiter| limiter.quota).fmt(f)
    }
}

struct Limiter {
    quota: Quota,
    states: States,
    gcra: RateLimiter<Digest, States, States, NoOpMiddleware<Nanos>>,
}

impl Limiter {
    fn new(quota: Quota) -> Self {
        let states = States(Arc::new(Keyed::new()));
        let gcra = Gcra::per_second(quota.per_second).allow_burst(quota.burst);
        let gcra = RateLimiter::new(gcra, states.clone(), states.clone());
        Self { quota, states, gcra }
    }

    fn check(&self, dial: &Dial) -> Result<(), Limited> {
        if self.states.0.is_sweep_due(self.states.0.now()) {
            self.gcra.retain_recent();
        }
        let key = self.quota.key.of(dial);
        self.gcra.check_key(&key).map_err(|not_until| {
            let retry_after: Duration = not_until.wait_time_from(self.states.now());
            Limited { refusal: Refusal::new("rate_limit", Outcome::Limited { retry_after }) }
        })
    }
}

/// governor's states, and its clock: tokio's, so that paused time holds here too.
#[derive(Clone)]
struct States(Arc<Keyed<Nanos>>);

impl Clock for States {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        self.0.now().into()
    }
}

impl StateStore for States {
    type Key = Digest;

    fn measure_and_replace<T, F, E>(&self, key: &Digest, f: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let mut shard = self.0.shard(*key);
        let key = if shard.len() < KEYS_PER_SHARD || shard.contains_key(key) {
            *key
        } else {
            Digest::of(&(key.get() % SHARED_PER_SHARD))
        };
        let (answer, state) = f(shard.get(&key).copied())?;
        shard.insert(key, state);
        Ok(answer)
    }
}

impl ShrinkableKeyedStateStore<Digest> for States {
    /// One shard of them; the next call sees to the next.
    fn retain_recent(&self, drop_below: Nanos) {
        self.0.sweep(|state| *state > drop_below);
    }

    fn len(&self) -> usize {
        self.0.len()
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use anyproxy_core::{Account, Front, Target};
    use tokio::time::advance;
    use tokio_test::{assert_pending, assert_ready_ok};
    use tower::{ServiceExt as _, service_fn};
    use tower_test::mock;

    use super::*;
    use crate::keyed::SHARDS;

    fn quota(key: Key, per_second: u32, burst: u32) -> Quota {
        Quota::new(key, per_second, burst).unwrap()
    }

    fn dial(user: &str) -> Dial {
        let mut dial =
            Dial::tcp(Target::parse("a:1").unwrap(), "192.0.2.1:4000".parse().unwrap(), Front::HTTP);
        dial.identity = Account::new(user, ["blue"]).into();
        dial
    }

    /// How long the dial must wait, if it is refused.
    async fn refused(layer: &RateLimitLayer, dial: Dial) -> Option<Duration> {
        let service = layer.layer(service_fn(async |_: Dial| Ok::<_, BoxError>(())));
        let error = service.oneshot(dial).await.err()?;
        assert!(error.is::<Limited>());
        match Outcome::of(&*error) {
            Outcome::Limited { retry_after } => Some(retry_after),
            other => panic!("{other:?}"),
        }
    }

    async fn served(layer: &RateLimitLayer, dials: usize, user: &str) -> usize {
        let mut served = 0;
        for _ in 0..dials {
            served += usize::from(refused(layer, dial(user)).await.is_none());
        }
        served
    }

    #[tokio::test(start_paused = true)]
    async fn l1_a_burst_passes_and_then_the_rate_holds_however_fast_dials_come() {
        let layer = RateLimitLayer::new(quota(Key::User, 100, 20));
        assert_eq!(served(&layer, 200, "alice").await, 20);
        let mut in_ten_seconds = 0;
        for _ in 0..1000 {
            advance(Duration::from_millis(10)).await;
            in_ten_seconds += served(&layer, 3, "alice").await;
        }
        assert_eq!(in_ten_seconds, 1000);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_says_exactly_when_the_next_dial_may_come() {
        let layer = RateLimitLayer::new(quota(Key::User, 2, 1));
        assert_eq!(refused(&layer, dial("alice")).await, None);
        advance(Duration::from_millis(100)).await;
        assert_eq!(refused(&layer, dial("alice")).await, Some(Duration::from_millis(400)));
        assert_eq!(refused(&layer, dial("bob")).await, None);
        advance(Duration::from_millis(400)).await;
        assert_eq!(refused(&layer, dial("alice")).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_dial_never_reaches_the_inner_service() {
        let layer = RateLimitLayer::new(quota(Key::User, 1, 1));
        let (mut limit, mut inner) = mock::spawn_layer::<Dial, (), _>(layer);
        assert_ready_ok!(limit.poll_ready());
        let first = limit.call(dial("alice"));
        inner.next_request().await.unwrap().1.send_response(());
        first.await.unwrap();
        assert_ready_ok!(limit.poll_ready());
        assert!(limit.call(dial("alice")).await.unwrap_err().is::<Limited>());
        assert_pending!(inner.poll_request());
    }

    #[tokio::test(start_paused = true)]
    async fn a_clone_shares_the_limit_and_starts_unready() {
        let layer = RateLimitLayer::new(quota(Key::User, 1, 1));
        let (mut limit, mut inner) = mock::spawn_layer::<Dial, (), _>(layer);
        inner.allow(1);
        assert_ready_ok!(limit.poll_ready());
        inner.allow(0);
        let mut clone = limit.clone();
        assert_pending!(clone.poll_ready());
        let _first = limit.call(dial("alice"));
        inner.allow(1);
        assert_ready_ok!(clone.poll_ready());
        assert!(clone.call(dial("alice")).await.unwrap_err().is::<Limited>());
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_quota_again_forgets_nothing_and_another_one_starts_anew() {
        let (layer, handle) = RateLimitLayer::pair(quota(Key::User, 1, 5));
        assert_eq!(served(&layer, 10, "alice").await, 5);
        handle.replace(quota(Key::User, 1, 5));
        assert_eq!(served(&layer, 10, "alice").await, 0);
        handle.replace(quota(Key::User, 1, 3));
        assert_eq!(served(&layer, 10, "alice").await, 3);
        handle.replace(None);
        assert_eq!((handle.quota(), served(&layer, 10, "alice").await), (None, 10));
        assert_eq!(served(&RateLimitLayer::unlimited(), 10, "alice").await, 10);
    }

    #[tokio::test(start_paused = true)]
    async fn l2_state_that_means_nothing_any_more_is_swept_by_the_calls_of_others() {
        let (layer, handle) = RateLimitLayer::pair(quota(Key::User, 10, 10));
        for n in 0..5_000 {
            refused(&layer, dial(&format!("user{n}"))).await;
        }
        assert!(handle.keys() >= 4_900, "{}", handle.keys());
        advance(Duration::from_secs(2)).await;
        for _ in 0..SHARDS {
            advance(Duration::from_millis(10)).await;
            refused(&layer, dial("alice")).await;
        }
        assert!(handle.keys() <= 1, "{}", handle.keys());
    }

    #[test]
    fn l2_a_flood_of_keys_is_capped_and_those_beyond_share_their_limit() {
        let limiter = Limiter::new(quota(Key::User, 1, 1));
        let admitted = (0..2 * SHARDS * KEYS_PER_SHARD)
            .filter(|n| limiter.gcra.check_key(&Digest::of(n)).is_ok())
            .count();
        let most = SHARDS * (KEYS_PER_SHARD + SHARED_PER_SHARD as usize);
        assert!(limiter.gcra.len() <= most, "{}", limiter.gcra.len());
        // A shared state admits one dial a second, like any other.
        assert!(admitted <= most + 10 * SHARDS * SHARED_PER_SHARD as usize, "{admitted}");
    }
}
