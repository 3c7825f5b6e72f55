use std::collections::{BTreeSet, HashMap};
use std::error::Error;
use std::fmt;
use std::future::Future;
use std::num::{NonZeroU32, NonZeroUsize};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use anyproxy_core::{BoxError, FOR_EVER, Login, Outcome, Refusal, SourcePrefix};
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower_layer::Layer;
use tower_service::Service;

use crate::pool::in_line;

/// How many forgotten sources are cleared away with each login, at most: more than come, so they run out, and few
/// enough that nobody waits for it.
const CLEARED_AT_ONCE: usize = 8;

/// When a source is locked out, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockoutPolicy {
    /// Wrong logins that lock a source out (default: 10).
    pub failures: NonZeroU32,
    /// The time they must fall into, from the first of them (default: 2 minutes).
    pub window: Duration,
    /// How long the first lock holds (default: 15 s). Each further one holds twice as long as the one before.
    pub first: Duration,
    /// The longest a lock holds, and how long after a lock its doubling is remembered (default: 10 minutes).
    pub longest: Duration,
    /// The most sources remembered (default: 65,536), about 120 bytes each. Beyond it the one that would be forgotten
    /// soonest is forgotten now.
    pub sources: NonZeroUsize,
}

impl Default for LockoutPolicy {
    fn default() -> Self {
        const FAILURES: NonZeroU32 = NonZeroU32::new(10).expect("not zero");
        const SOURCES: NonZeroUsize = NonZeroUsize::new(65_536).expect("not zero");
        Self {
            failures: FAILURES,
            window: Duration::from_secs(120),
            first: Duration::from_secs(15),
            longest: Duration::from_secs(600),
            sources: SOURCES,
        }
    }
}

/// Refuses logins from sources that presented too many wrong ones, before anything is spent on them.
///
/// - Counted by [`SourcePrefix`] and never by user, or anyone could lock out anyone.
/// - Only credentials that were presented and refused count ([`Outcome::LoginRequired`]), as do those whose verdict
///   nobody waited for, or hanging up early would make guesses free. A login without credentials never counts, and
///   neither does one that was refused for lack of room, or given up while it waited for its turn in the line of a
///   [`HashPool`](crate::HashPool): nobody had looked at it.
/// - A right login takes nothing back: else one account would buy guesses at all others.
/// - While a source is locked, nothing it sends is looked at; guesses already under way then do not lengthen the lock.
///
/// One layer holds one table, whatever it wraps; make one per listener to keep listeners apart. A flood of sources
/// that guess once each pushes out others of its kind, but no lock: what goes first is what would be forgotten first,
/// and a lock is remembered ten minutes longer than it holds.
#[derive(Clone, Debug)]
pub struct LockoutLayer {
    table: SharedTable,
}

impl LockoutLayer {
    /// A layer with an empty table.
    #[must_use]
    pub fn new(policy: LockoutPolicy) -> Self {
        Self { table: SharedTable::new(policy) }
    }

    /// As [`LockoutLayer::new`], and a handle that changes the policy while logins go on.
    #[must_use]
    pub fn pair(policy: LockoutPolicy) -> (Self, LockoutHandle) {
        let layer = Self::new(policy);
        let handle = LockoutHandle { table: layer.table.clone() };
        (layer, handle)
    }
}

impl Default for LockoutLayer {
    fn default() -> Self {
        Self::new(LockoutPolicy::default())
    }
}

impl<S> Layer<S> for LockoutLayer {
    type Service = Lockout<S>;

    fn layer(&self, inner: S) -> Lockout<S> {
        Lockout { inner, table: self.table.clone() }
    }
}

/// Changes the policy of a [`LockoutLayer`] while logins go on.
#[derive(Clone, Debug)]
pub struct LockoutHandle {
    table: SharedTable,
}

impl LockoutHandle {
    /// Goes by `policy` from now on. What is counted stays counted, and locks hold as long as they were said to.
    pub fn replace(&self, policy: LockoutPolicy) {
        self.table.lock().policy = policy;
    }

    /// How many sources are remembered, locked or not.
    #[must_use]
    pub fn sources(&self) -> usize {
        self.table.lock().records.len()
    }
}

/// Refuses logins from locked-out sources. See [`LockoutLayer`].
#[derive(Clone, Debug)]
pub struct Lockout<S> {
    inner: S,
    table: SharedTable,
}

impl<S> Lockout<S> {
    /// The login service inside.
    pub const fn get_ref(&self) -> &S {
        &self.inner
    }
}

impl<S> Service<Login> for Lockout<S>
where
    S: Service<Login>,
    S::Error: Into<BoxError>,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = LockoutFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, login: Login) -> Self::Future {
        let source = SourcePrefix::from(login.source);
        if let Some(rest) = self.table.lock().locked(Instant::now(), source) {
            let refusal = Refusal::new("lockout", Outcome::LockedOut { retry_after: rest });
            return LockoutFuture { state: State::Refused { error: Some(LockedOut { refusal }) } };
        }
        let presented = login.credentials.is_some();
        let attempt = presented.then(|| Attempt { table: self.table.clone(), source, counts: true });
        LockoutFuture { state: State::Asking { verdict: self.inner.call(login), attempt } }
    }
}

pin_project! {
    /// Response future of [`Lockout`].
    #[derive(Debug)]
    pub struct LockoutFuture<F> {
        #[pin]
        state: State<F>,
    }
}

pin_project! {
    #[project = StateProj]
    #[derive(Debug)]
    enum State<F> {
        // The source is not locked; what becomes of its login counts.
        Asking { #[pin] verdict: F, attempt: Option<Attempt> },
        Refused { error: Option<LockedOut> },
    }
}

impl<F, T, E> Future for LockoutFuture<F>
where
    F: Future<Output = Result<T, E>>,
    E: Into<BoxError>,
{
    type Output = Result<T, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProj::Asking { verdict, attempt } => {
                let (verdict, waits) = in_line(|| verdict.poll(cx));
                if let Some(attempt) = attempt {
                    attempt.counts = !waits;
                }
                let verdict = ready!(verdict).map_err(Into::into);
                let wrong = matches!(&verdict, Err(error) if Outcome::of(&**error) == Outcome::LoginRequired);
                if let Some(mut attempt) = attempt.take() {
                    attempt.counts = wrong;
                }
                Poll::Ready(verdict)
            }
            StateProj::Refused { error } => {
                Poll::Ready(Err(error.take().expect("polled after it was ready").into()))
            }
        }
    }
}

/// Presented credentials. When dropped they count as wrong, unless a verdict has said otherwise or nobody had looked at
/// them.
#[derive(Debug)]
struct Attempt {
    table: SharedTable,
    source: SourcePrefix,
    counts: bool,
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if self.counts {
            self.table.lock().failed(Instant::now(), self.source);
        }
    }
}

/// The source presented too many wrong logins.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LockedOut {
    refusal: Refusal,
}

impl fmt::Display for LockedOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("too many wrong logins from this address")
    }
}

impl Error for LockedOut {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.refusal)
    }
}

// === the table ===

#[derive(Clone)]
struct SharedTable(Arc<Mutex<Table>>);

struct Table {
    policy: LockoutPolicy,
    records: HashMap<SourcePrefix, Record>,
    /// The records by the time they are forgotten.
    order: BTreeSet<(Instant, SourcePrefix)>,
}

/// What is remembered of a source.
#[derive(Clone, Copy)]
struct Record {
    /// Wrong logins in the window.
    wrong: u32,
    window_ends: Instant,
    /// Locks so far; each doubles the next.
    locks: u32,
    locked_until: Instant,
    /// When nothing here means anything any more.
    forget_at: Instant,
}

impl SharedTable {
    fn new(policy: LockoutPolicy) -> Self {
        Self(Arc::new(Mutex::new(Table { policy, records: HashMap::new(), order: BTreeSet::new() })))
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // Nothing panics while it holds the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for SharedTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Table")
    }
}

impl Table {
    /// How much longer `source` is locked out, if it is.
    fn locked(&mut self, now: Instant, source: SourcePrefix) -> Option<Duration> {
        self.clear(now);
        let rest = self.records.get(&source)?.locked_until.saturating_duration_since(now);
        (!rest.is_zero()).then_some(rest)
    }

    /// Counts a wrong login.
    fn failed(&mut self, now: Instant, source: SourcePrefix) {
        self.clear(now);
        let mut record = match self.take(source) {
            Some(record) if record.forget_at > now => record,
            _ => Record { wrong: 0, window_ends: now, locks: 0, locked_until: now, forget_at: now },
        };
        if record.locked_until <= now {
            record.fail(now, &self.policy);
        }
        while self.records.len() >= self.policy.sources.get() {
            let Some((_, soonest)) = self.order.pop_first() else { break };
            self.records.remove(&soonest);
        }
        self.order.insert((record.forget_at, source));
        self.records.insert(source, record);
    }

    fn take(&mut self, source: SourcePrefix) -> Option<Record> {
        let record = self.records.remove(&source)?;
        self.order.remove(&(record.forget_at, source));
        Some(record)
    }

    /// Forgets a few of those whose time has come.
    fn clear(&mut self, now: Instant) {
        for _ in 0..CLEARED_AT_ONCE {
            match self.order.first() {
                Some(&(forget_at, source)) if forget_at <= now => self.take(source),
                _ => break,
            };
        }
    }
}

impl Record {
    fn fail(&mut self, now: Instant, policy: &LockoutPolicy) {
        if self.window_ends <= now {
            self.wrong = 0;
            self.window_ends = now + policy.window.min(FOR_EVER);
        }
        self.wrong += 1;
        if self.wrong >= policy.failures.get() {
            let doubled = policy.first.saturating_mul(1 << self.locks.min(20));
            self.locked_until = now + doubled.min(policy.longest).min(FOR_EVER);
            self.locks += 1;
            self.wrong = 0;
            self.window_ends = self.locked_until;
        }
        let remembered = match self.locks {
            0 => self.window_ends,
            _ => self.locked_until + policy.longest.min(FOR_EVER),
        };
        self.forget_at = self.window_ends.max(remembered);
    }
}

#[cfg(test)]
mod tests {
    use std::future::{self, Ready};
    use std::sync::mpsc;

    use anyproxy_core::{Credentials, Front, Secret};
    use tokio::task::spawn_blocking;
    use tokio::time::advance;
    use tokio_test::{assert_pending, assert_ready_ok, task};
    use tower::service_fn;
    use tower_test::mock;

    use super::*;
    use crate::{Accounts, AuthLayer, HashPool, PasswordHash, User, Verify};

    #[derive(Debug)]
    struct Says(Outcome);

    impl fmt::Display for Says {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.0.fmt(f)
        }
    }

    impl Error for Says {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(&self.0)
        }
    }

    fn login(source: &str, password: Option<&str>) -> Login {
        let credentials = password.map(|password| Credentials::new("alice", password));
        Login::new(credentials, source.parse().unwrap(), Front::HTTP)
    }

    /// Lets `"right"` in.
    struct Doorman;

    impl Service<Login> for Doorman {
        type Response = ();
        type Error = Says;
        type Future = Ready<Result<(), Says>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Says>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, login: Login) -> Self::Future {
            let password = login.credentials.map(|credentials| credentials.password);
            future::ready(match password.as_ref().map(Secret::expose_secret) {
                Some("right") => Ok(()),
                Some("busy") => Err(Says(Outcome::Overloaded { retry_after: Duration::from_secs(1) })),
                _ => Err(Says(Outcome::LoginRequired)),
            })
        }
    }

    fn doorkeeper(layer: &LockoutLayer) -> Lockout<Doorman> {
        layer.layer(Doorman)
    }

    async fn outcome(door: &mut Lockout<Doorman>, login: Login) -> Option<Outcome> {
        door.call(login).await.err().map(|error| Outcome::of(&*error))
    }

    const A: &str = "192.0.2.1:4000";
    const B: &str = "192.0.2.2:4000";

    fn locked(seconds: u64) -> Option<Outcome> {
        Some(Outcome::LockedOut { retry_after: Duration::from_secs(seconds) })
    }

    async fn ten_wrong(door: &mut Lockout<Doorman>, source: &str) {
        for _ in 0..10 {
            assert_eq!(outcome(door, login(source, Some("wrong"))).await, Some(Outcome::LoginRequired));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn p5_ten_wrong_logins_lock_the_source_out_for_15_s_doubling_to_10_min() {
        let layer = LockoutLayer::default();
        let mut door = doorkeeper(&layer);
        for seconds in [15, 30, 60, 120, 240, 480, 600, 600] {
            ten_wrong(&mut door, A).await;
            assert_eq!(outcome(&mut door, login(A, Some("right"))).await, locked(seconds));
            assert_eq!(outcome(&mut door, login(B, Some("right"))).await, None);
            advance(Duration::from_secs(seconds) - Duration::from_millis(1)).await;
            assert!(matches!(outcome(&mut door, login(A, None)).await, Some(Outcome::LockedOut { .. })));
            advance(Duration::from_millis(1)).await;
            assert_eq!(outcome(&mut door, login(A, Some("right"))).await, None);
        }
        advance(Duration::from_secs(600)).await;
        ten_wrong(&mut door, A).await;
        assert_eq!(outcome(&mut door, login(A, Some("right"))).await, locked(15));
    }

    #[tokio::test(start_paused = true)]
    async fn a_policy_of_the_longest_times_there_are_locks_out_as_any_other() {
        let (window, first, longest) = (Duration::MAX, Duration::MAX, Duration::MAX);
        let policy = LockoutPolicy { window, first, longest, ..LockoutPolicy::default() };
        let mut door = doorkeeper(&LockoutLayer::new(policy));
        ten_wrong(&mut door, A).await;
        assert_eq!(outcome(&mut door, login(A, Some("right"))).await, locked(FOR_EVER.as_secs()));
        assert_eq!(outcome(&mut door, login(B, Some("right"))).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn p5_failures_of_one_user_from_everywhere_lock_nobody_out() {
        let mut door = doorkeeper(&LockoutLayer::default());
        for n in 0..200 {
            let source = format!("192.0.2.{n}:4000");
            assert_eq!(outcome(&mut door, login(&source, Some("wrong"))).await, Some(Outcome::LoginRequired));
        }
        assert_eq!(outcome(&mut door, login(A, Some("right"))).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn p5_listeners_count_apart_and_a_layer_counts_for_all_it_wraps() {
        let layer = LockoutLayer::default();
        ten_wrong(&mut doorkeeper(&layer), A).await;
        assert_eq!(outcome(&mut doorkeeper(&layer), login(A, None)).await, locked(15));
        assert_eq!(outcome(&mut doorkeeper(&LockoutLayer::default()), login(A, Some("right"))).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn p5_a_whole_ipv6_network_is_one_source() {
        let mut door = doorkeeper(&LockoutLayer::default());
        for n in 0..10 {
            outcome(&mut door, login(&format!("[2001:db8::{n}]:4000"), Some("wrong"))).await;
        }
        assert_eq!(outcome(&mut door, login("[2001:db8::ffff:1]:4000", None)).await, locked(15));
        assert_eq!(outcome(&mut door, login("[2001:db8:0:1::1]:4000", Some("right"))).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn p5_missing_credentials_and_a_full_house_do_not_count() {
        let mut door = doorkeeper(&LockoutLayer::default());
        for _ in 0..50 {
            assert_eq!(outcome(&mut door, login(A, None)).await, Some(Outcome::LoginRequired));
            outcome(&mut door, login(A, Some("busy"))).await;
        }
        assert_eq!(outcome(&mut door, login(A, Some("right"))).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_right_login_between_wrong_ones_buys_no_guesses() {
        let mut door = doorkeeper(&LockoutLayer::default());
        for _ in 0..10 {
            outcome(&mut door, login(A, Some("wrong"))).await;
            outcome(&mut door, login(A, Some("right"))).await;
        }
        assert_eq!(outcome(&mut door, login(A, Some("right"))).await, locked(15));
    }

    #[tokio::test(start_paused = true)]
    async fn wrong_logins_further_apart_than_the_window_lock_nobody_out() {
        let (layer, handle) = LockoutLayer::pair(LockoutPolicy::default());
        let mut door = doorkeeper(&layer);
        for _ in 0..5 {
            for _ in 0..9 {
                assert_eq!(outcome(&mut door, login(A, Some("wrong"))).await, Some(Outcome::LoginRequired));
            }
            advance(Duration::from_secs(120)).await;
        }
        outcome(&mut door, login(B, None)).await;
        assert_eq!(handle.sources(), 0, "what means nothing any more is forgotten");
    }

    #[tokio::test(start_paused = true)]
    async fn a_locked_source_never_reaches_the_inner_service() {
        let (mut lockout, mut inner) = mock::spawn_layer::<Login, (), _>(LockoutLayer::new(LockoutPolicy {
            failures: NonZeroU32::MIN,
            ..LockoutPolicy::default()
        }));
        assert_ready_ok!(lockout.poll_ready());
        let first = lockout.call(login(A, Some("wrong")));
        inner.next_request().await.unwrap().1.send_error(Says(Outcome::LoginRequired));
        assert!(first.await.is_err());
        assert_ready_ok!(lockout.poll_ready());
        let error = lockout.call(login(A, Some("right"))).await.unwrap_err();
        assert!(error.is::<LockedOut>());
        assert_pending!(inner.poll_request());
    }

    #[tokio::test(start_paused = true)]
    async fn a_login_given_up_before_its_verdict_counts_as_wrong() {
        let (layer, handle) = LockoutLayer::pair(LockoutPolicy::default());
        let mut door = layer.layer(service_fn(|_: Login| future::pending::<Result<(), Says>>()));
        for _ in 0..10 {
            drop(door.call(login(A, None)));
        }
        assert_eq!(handle.sources(), 0);
        for _ in 0..10 {
            drop(door.call(login(A, Some("right"))));
        }
        assert!(matches!(door.call(login(A, Some("right"))).state, State::Refused { .. }));
    }

    #[test]
    fn a_login_given_up_counts_once_its_hash_has_begun_and_not_while_it_waits_for_that() {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.max_blocking_threads(1).enable_time().build().unwrap();
        runtime.block_on(given_up_before_and_after_its_turn());
    }

    /// On a runtime with one thread for hashes.
    async fn given_up_before_and_after_its_turn() {
        let policy = LockoutPolicy { failures: NonZeroU32::MIN, ..LockoutPolicy::default() };
        let (layer, handle) = LockoutLayer::pair(policy);
        let hash = PasswordHash::parse(&bcrypt::hash("right", 5).unwrap()).unwrap();
        let pool = HashPool::new(1, 8);
        let verify = Verify::new(Accounts::new([User::hashed("alice", hash)]).unwrap());
        let mut door = layer.layer(AuthLayer::new(verify.with_pool(pool.clone())).layer(()));
        let seat = pool.seat(None).await.unwrap();
        for _ in 0..20 {
            let mut waiting = task::spawn(door.call(login(A, Some("right"))));
            assert_pending!(waiting.poll());
            assert_pending!(waiting.poll());
        }
        assert_eq!(handle.sources(), 0);

        // No hash ends before this does.
        let (end, ended) = mpsc::channel::<()>();
        let busy = spawn_blocking(move || ended.recv().is_err());
        let mut hashed = task::spawn(door.call(login(A, Some("right"))));
        assert_pending!(hashed.poll());
        drop(seat);
        assert_pending!(hashed.poll());
        drop(hashed);
        drop(end);
        assert!(busy.await.unwrap());
        assert!(matches!(door.call(login(A, Some("right"))).state, State::Refused { .. }));
    }

    #[tokio::test(start_paused = true)]
    async fn guesses_under_way_when_the_lock_falls_do_not_lengthen_it() {
        let mut door = doorkeeper(&LockoutLayer::default());
        let under_way: Vec<_> = (0..30).map(|_| door.call(login(A, Some("wrong")))).collect();
        for answer in under_way {
            assert!(answer.await.is_err());
        }
        assert_eq!(outcome(&mut door, login(A, Some("right"))).await, locked(15));
        advance(Duration::from_secs(15)).await;
        ten_wrong(&mut door, A).await;
        assert_eq!(outcome(&mut door, login(A, Some("right"))).await, locked(30));
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_sources_is_capped_and_pushes_out_no_lock() {
        let sources = NonZeroUsize::new(1000).unwrap();
        let (layer, handle) = LockoutLayer::pair(LockoutPolicy { sources, ..LockoutPolicy::default() });
        let mut door = doorkeeper(&layer);
        ten_wrong(&mut door, "[2001:db8::1]:4000").await;
        for n in 0..20_000 {
            outcome(
                &mut door,
                login(&format!("[2001:db8:{:x}:{:x}::1]:4000", 1 + n / 1000, n % 1000), Some("wrong")),
            )
            .await;
            assert!(handle.sources() <= 1000);
        }
        assert_eq!(outcome(&mut door, login("[2001:db8::1]:4000", None)).await, locked(15));
    }

    #[tokio::test(start_paused = true)]
    async fn a_clone_shares_the_table_and_starts_unready() {
        let (mut lockout, mut inner) = mock::spawn_layer::<Login, (), _>(LockoutLayer::default());
        inner.allow(1);
        assert_ready_ok!(lockout.poll_ready());
        inner.allow(0);
        assert_pending!(lockout.clone().poll_ready());
        let answer = lockout.call(login(A, Some("right")));
        inner.next_request().await.unwrap().1.send_response(());
        answer.await.unwrap();
    }
}
