use std::fmt;
use std::future::Future;
use std::num::NonZeroU64;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use anyproxy_core::{Dial, Digest};
use arc_swap::ArcSwapOption;
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower_layer::Layer;
use tower_service::Service;

use crate::keyed::{Keyed, nanos};
use crate::throttled::Throttle;
use crate::{Key, Throttled};

/// How far ahead of the rate the streams of a key may be: what timers of a millisecond need to reach the rate, and
/// little enough that it is no burst.
const AHEAD: Duration = Duration::from_millis(50);
/// How long a stream waits at most before it looks whether its turn comes sooner, since a limit was changed.
const NOTICE: Duration = Duration::from_secs(1);
/// The most bytes a stream takes at its turn. Also the most by which the order of turns can be unfair.
const MAX_TURN: u64 = 64 * 1024;
/// The least a turn is worth waking up for.
const MIN_TURN: u64 = 1024;
/// A turn lasts about a 64th of a second, between those two.
const TURNS_PER_SECOND: u64 = 64;

/// How many bytes per second are allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bandwidth {
    /// Whose bytes count together.
    pub key: Key,
    /// From users to targets, bytes per second; `None` = as many as go through.
    pub up: Option<NonZeroU64>,
    /// From targets to users, likewise.
    pub down: Option<NonZeroU64>,
}

impl Bandwidth {
    /// No limit yet, either way.
    #[must_use]
    pub const fn new(key: Key) -> Self {
        Self { key, up: None, down: None }
    }

    /// Limits what goes to targets, in bytes per second; 0 = no limit.
    #[must_use]
    pub const fn up(mut self, bytes: u64) -> Self {
        self.up = NonZeroU64::new(bytes);
        self
    }

    /// Limits what comes from targets, in bytes per second; 0 = no limit.
    #[must_use]
    pub const fn down(mut self, bytes: u64) -> Self {
        self.down = NonZeroU64::new(bytes);
        self
    }
}

/// Slows streams down to so many bytes per second by [`Key`], each way.
///
/// Nothing is buffered for it: what comes from the target is taken later, so the stream's credit goes back later and
/// the target's sender waits; what goes to the target is accepted later, so the user's sender waits. Streams of one
/// key take turns of at most 64 KiB in the order they asked, so each gets its share, and a stream that waits for
/// nothing has no timer.
///
/// The response type is [`Throttled`], limit or not, so that a limit may come and go with the settings. A stream that
/// began without one lives on without: to find one later, it would have to look for it at every read.
#[derive(Clone, Debug)]
pub struct BandwidthLayer {
    limits: Shared,
}

impl BandwidthLayer {
    /// Limits streams to a [`Bandwidth`]; `None` limits nothing.
    pub fn new(bandwidth: impl Into<Option<Bandwidth>>) -> Self {
        let limits = Shared::default();
        limits.replace(bandwidth.into());
        Self { limits }
    }

    /// A layer that limits nothing, at the price of one pointer in each stream.
    #[must_use]
    pub fn unlimited() -> Self {
        Self::new(None)
    }

    /// As [`BandwidthLayer::new`], and a handle that changes the limit while streams live.
    pub fn pair(bandwidth: impl Into<Option<Bandwidth>>) -> (Self, BandwidthHandle) {
        let layer = Self::new(bandwidth);
        let handle = BandwidthHandle { limits: layer.limits.clone() };
        (layer, handle)
    }
}

impl<S> Layer<S> for BandwidthLayer {
    type Service = BandwidthLimit<S>;

    fn layer(&self, inner: S) -> BandwidthLimit<S> {
        BandwidthLimit { inner, limits: self.limits.clone() }
    }
}

/// Changes the limit of a [`BandwidthLayer`] while streams live.
#[derive(Clone, Debug)]
pub struct BandwidthHandle {
    limits: Shared,
}

impl BandwidthHandle {
    /// Limits streams to `bandwidth` from now on. Living streams follow if they began with a limit by the same key,
    /// whatever was in force between, and whenever limits are taken away, all of them; those that wait for their turn do
    /// so within a second. A stream that began without a limit never gets one, and one that began with a limit by another
    /// key keeps what it had last.
    pub fn replace(&self, bandwidth: impl Into<Option<Bandwidth>>) {
        self.limits.replace(bandwidth.into());
    }

    /// How many keys have state now: those with living streams, or who moved bytes a moment ago.
    #[must_use]
    pub fn keys(&self) -> usize {
        self.limits.0.in_force.load().as_ref().map_or(0, |limits| limits.buckets.len())
    }
}

/// Slows streams down. See [`BandwidthLayer`].
#[derive(Clone, Debug)]
pub struct BandwidthLimit<S> {
    inner: S,
    limits: Shared,
}

impl<S> BandwidthLimit<S> {
    /// The dial service inside.
    pub const fn get_ref(&self) -> &S {
        &self.inner
    }
}

impl<S: Service<Dial>> Service<Dial> for BandwidthLimit<S> {
    type Response = Throttled<S::Response>;
    type Error = S::Error;
    type Future = BandwidthFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, dial: Dial) -> Self::Future {
        let limits = self.limits.0.in_force.load_full();
        let limits = limits.map(|limits| (limits.key.of(&dial), limits));
        BandwidthFuture { dial: self.inner.call(dial), limits }
    }
}

pin_project! {
    /// Response future of [`BandwidthLimit`].
    pub struct BandwidthFuture<F> {
        #[pin]
        dial: F,
        limits: Option<(Digest, Arc<Limits>)>,
    }
}

impl<F, T, E> Future for BandwidthFuture<F>
where
    F: Future<Output = Result<T, E>>,
{
    type Output = Result<Throttled<T>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let stream = ready!(this.dial.poll(cx))?;
        let throttle = this.limits.take().map(|(key, limits)| Throttle::new(limits.bucket(key), limits));
        Poll::Ready(Ok(Throttled::new(stream, throttle)))
    }
}

impl<F: fmt::Debug> fmt::Debug for BandwidthFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BandwidthFuture").field("dial", &self.dial).finish_non_exhaustive()
    }
}

// === the limits ===

/// What all that is made of one layer shares.
#[derive(Clone, Default)]
struct Shared(Arc<ByKey>);

#[derive(Default)]
struct ByKey {
    /// For streams to come.
    in_force: ArcSwapOption<Limits>,
    /// What streams may live under, in force or not: one for each key at most. Who puts limits in force holds it.
    living: Mutex<Vec<Weak<Limits>>>,
}

impl Shared {
    fn replace(&self, bandwidth: Option<Bandwidth>) {
        let mut living = self.0.living.lock().expect("nothing panics under this lock");
        living.retain(|limits| limits.strong_count() > 0);
        let mut known = living.iter().filter_map(Weak::upgrade);
        let limits = match bandwidth {
            Some(bandwidth) => {
                let same = known.find(|limits| limits.key == bandwidth.key);
                Some(same.inspect(|limits| limits.set(bandwidth)).unwrap_or_else(|| {
                    let limits = Arc::new(Limits::new(bandwidth));
                    living.push(Arc::downgrade(&limits));
                    limits
                }))
            }
            None => {
                known.for_each(|limits| limits.set(Bandwidth::new(limits.key)));
                None
            }
        };
        self.0.in_force.store(limits);
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.in_force.load().as_ref().map(|limits| limits.key).fmt(f)
    }
}

/// A direction of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Up,
    Down,
}

/// What all streams of a layer share.
pub(crate) struct Limits {
    key: Key,
    /// Bytes per second, up and down; 0 = no limit.
    rates: [AtomicU64; 2],
    buckets: Keyed<Arc<Bucket>>,
}

/// What all streams of a key share, each way.
#[derive(Default)]
pub(crate) struct Bucket([Mutex<Debt>; 2]);

/// What was promised and has not passed yet.
#[derive(Default)]
struct Debt {
    /// When all of it will have passed at the rate. Nanoseconds of the clock of [`Keyed`].
    free: u64,
    /// The rate that is reckoned with.
    rate: u64,
}

/// So many bytes, not before that time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Turn {
    pub(crate) bytes: usize,
    /// Nanoseconds of the clock of [`Keyed`].
    at: u64,
    /// The highest rate at which it was reckoned; 0 = nothing was.
    rate: u64,
}

impl Limits {
    fn new(bandwidth: Bandwidth) -> Self {
        let limits = Self { key: bandwidth.key, rates: Default::default(), buckets: Keyed::new() };
        limits.set(bandwidth);
        limits
    }

    fn set(&self, bandwidth: Bandwidth) {
        for (rate, new) in self.rates.iter().zip([bandwidth.up, bandwidth.down]) {
            rate.store(new.map_or(0, NonZeroU64::get), Ordering::Relaxed);
        }
    }

    /// The bucket of a key. It stays while a stream holds it or something is owed, so that streams one after another
    /// are no faster than one long one.
    fn bucket(&self, key: Digest) -> Arc<Bucket> {
        let now = self.buckets.now();
        if self.buckets.is_sweep_due(now) {
            self.buckets.sweep(|bucket| Arc::strong_count(bucket) > 1 || bucket.owes(now));
        }
        self.buckets.shard(key).entry(key).or_default().clone()
    }

    /// Promises a turn of up to `wanted` bytes: behind all promised before, so that streams of one key take turns.
    pub(crate) fn reserve(&self, bucket: &Bucket, way: Way, wanted: usize) -> Turn {
        let now = self.buckets.now();
        let mut debt = self.debt(bucket, way, now);
        let rate = debt.rate;
        if rate == 0 {
            return Turn { bytes: wanted, at: now, rate };
        }
        let bytes = wanted.min((rate / TURNS_PER_SECOND).clamp(MIN_TURN, MAX_TURN) as usize);
        let at = debt.free.saturating_sub(nanos(AHEAD));
        debt.free = debt.free.max(now).saturating_add(cost(bytes, rate));
        Turn { bytes, at, rate }
    }

    /// When to ask again whether the turn has come; `None`: it has. Its time comes nearer where less is owed than
    /// there was, since a limit was raised, or streams before it left.
    pub(crate) fn wait(&self, bucket: &Bucket, way: Way, turn: &mut Turn) -> Option<Instant> {
        let now = self.buckets.now();
        if turn.at > now {
            let debt = self.debt(bucket, way, now);
            // By then everything promised will have passed, this turn too.
            turn.at = turn.at.min(debt.free.saturating_sub(nanos(AHEAD)));
            turn.rate = turn.rate.max(debt.rate);
        }
        (turn.at > now).then(|| self.buckets.instant(turn.at.min(now.saturating_add(nanos(NOTICE)))))
    }

    /// Takes back what is left of a promise, of which nobody will make use.
    pub(crate) fn give_back(&self, bucket: &Bucket, way: Way, turn: Turn) {
        if turn.bytes > 0 && turn.rate > 0 {
            let mut debt = self.debt(bucket, way, self.buckets.now());
            // Of a lower limit than it was promised at, no more than was owed for it.
            let cost = cost(turn.bytes, turn.rate.max(debt.rate));
            debt.free = debt.free.saturating_sub(cost);
        }
    }

    fn debt<'a>(&self, bucket: &'a Bucket, way: Way, now: u64) -> MutexGuard<'a, Debt> {
        let mut debt = bucket.lock(way);
        debt.reckon(self.rates[way as usize].load(Ordering::Relaxed), now);
        debt
    }
}

impl Bucket {
    fn lock(&self, way: Way) -> MutexGuard<'_, Debt> {
        self.0[way as usize].lock().expect("nothing panics under this lock")
    }

    fn owes(&self, now: u64) -> bool {
        [Way::Up, Way::Down].iter().any(|way| self.lock(*way).free > now)
    }
}

impl Debt {
    /// Takes `rate` over. What is owed passes sooner at a higher one. At a lower one it keeps its time: turns are as
    /// long as the rate they were promised at, and at a much lower one nobody would get a byte for minutes.
    fn reckon(&mut self, rate: u64, now: u64) {
        if rate == 0 {
            self.free = 0;
        } else if rate > self.rate && self.free > now {
            let owed = u128::from(self.free - now) * u128::from(self.rate) / u128::from(rate);
            self.free = now + u64::try_from(owed).expect("less than before");
        }
        self.rate = rate;
    }
}

/// How many nanoseconds `bytes` take.
fn cost(bytes: usize, rate: u64) -> u64 {
    const SECOND: u128 = 1_000_000_000;
    u64::try_from(bytes as u128 * SECOND / u128::from(rate)).unwrap_or(u64::MAX)
}
