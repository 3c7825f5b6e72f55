use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use anyproxy_core::{BoxError, Dial, Endpoint, Endpoints, Fault, printable};
use arc_swap::ArcSwap;
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower::ServiceExt as _;
use tower::util::Oneshot;
use tower_service::Service;

use crate::error::NoClient;
use crate::health::{Ejection, Health};
use crate::strategy::{Strategy, Turns};

/// The most other members a dial is tried on.
const MAX_RETRIES: u8 = 2;

/// How dials are spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How a member is chosen [least loaded].
    pub strategy: Strategy,
    /// How many other members are asked when nobody has acted on a dial yet (default: 2); more than 2 count as 2.
    pub retries: u8,
    /// When a member is left out.
    pub ejection: Ejection,
}

impl Default for Settings {
    fn default() -> Self {
        Strategy::default().into()
    }
}

impl From<Strategy> for Settings {
    fn from(strategy: Strategy) -> Self {
        Self { strategy, retries: MAX_RETRIES, ejection: Ejection::default() }
    }
}

/// Serves each dial on one member of its group.
///
/// The last service of a stack. Always ready: what could be waited for is decided by the dial.
pub struct Balance<E> {
    endpoints: E,
    shared: Arc<Shared>,
}

/// Changes the settings of a [`Balance`] and its clones while dials run.
#[derive(Clone)]
pub struct BalanceHandle(Arc<Shared>);

#[derive(Default)]
struct Shared {
    settings: ArcSwap<Settings>,
    turns: Turns,
    health: Health,
}

// === impl Balance ===

impl<E: Endpoints> Balance<E> {
    /// Spreads dials over `endpoints`: `settings` is a [`Strategy`], or more ([`Settings`]).
    pub fn new(settings: impl Into<Settings>, endpoints: E) -> Self {
        Self::pair(settings, endpoints).0
    }

    /// The same, with a handle to its settings.
    pub fn pair(settings: impl Into<Settings>, endpoints: E) -> (Self, BalanceHandle) {
        let shared =
            Arc::new(Shared { settings: ArcSwap::from_pointee(settings.into()), ..Shared::default() });
        (Self { endpoints, shared: shared.clone() }, BalanceHandle(shared))
    }

    /// The members it chooses from.
    pub const fn get_ref(&self) -> &E {
        &self.endpoints
    }
}

impl<E: Clone> Clone for Balance<E> {
    fn clone(&self) -> Self {
        Self { endpoints: self.endpoints.clone(), shared: self.shared.clone() }
    }
}

impl<E: fmt::Debug> fmt::Debug for Balance<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Balance")
            .field("endpoints", &self.endpoints)
            .field("settings", &self.shared.settings.load())
            .finish_non_exhaustive()
    }
}

impl<E: Endpoints> Service<Dial> for Balance<E> {
    type Response = <E::Endpoint as Service<Dial>>::Response;
    type Error = BoxError;
    type Future = ResponseFuture<E>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, dial: Dial) -> Self::Future {
        let attempts = Attempts {
            endpoints: self.endpoints.clone(),
            shared: self.shared.clone(),
            settings: **self.shared.settings.load(),
            dial,
            tried: Vec::new(),
            failure: None,
        };
        ResponseFuture { attempts, attempt: None }
    }
}

// === impl BalanceHandle ===

impl BalanceHandle {
    /// Puts settings in place; dials under way keep theirs.
    pub fn replace(&self, settings: impl Into<Settings>) {
        self.0.settings.store(Arc::new(settings.into()));
    }

    /// The settings in place.
    #[must_use]
    pub fn settings(&self) -> Settings {
        **self.0.settings.load()
    }

    /// The names of the members that are ejected now.
    #[must_use]
    pub fn ejected(&self) -> Vec<Arc<str>> {
        self.0.health.ejected()
    }
}

impl fmt::Debug for BalanceHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BalanceHandle").field("settings", &self.0.settings.load()).finish_non_exhaustive()
    }
}

// === ResponseFuture ===

pin_project! {
    /// Response future of [`Balance`].
    pub struct ResponseFuture<E: Endpoints> {
        attempts: Attempts<E>,
        #[pin]
        attempt: Option<Attempt<E::Endpoint>>,
    }
}

/// What the attempts of one dial have in common.
struct Attempts<E: Endpoints> {
    endpoints: E,
    shared: Arc<Shared>,
    settings: Settings,
    dial: Dial,
    /// Members that did not act on the dial; does not allocate while it is empty.
    tried: Vec<E::Endpoint>,
    failure: Option<BoxError>,
}

pin_project! {
    /// One member asked.
    struct Attempt<M: Service<Dial>> {
        member: M,
        // All that could have been asked.
        members: Arc<[M]>,
        // Where the strategy asks how long members take.
        asked: Option<Instant>,
        #[pin]
        answer: Oneshot<M, Dial>,
    }
}

impl<E: Endpoints> Future for ResponseFuture<E> {
    type Output = Result<<E::Endpoint as Service<Dial>>::Response, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            // Chosen and asked within one poll: the dial counts as the member's load before the next one looks.
            if this.attempt.is_none() {
                match this.attempts.next() {
                    Ok(attempt) => this.attempt.set(Some(attempt)),
                    Err(error) => return Poll::Ready(Err(error)),
                }
            }
            let Some(attempt) = this.attempt.as_mut().as_pin_mut() else { continue };
            let attempt = attempt.project();
            match ready!(attempt.answer.poll(cx)) {
                Ok(stream) => {
                    this.attempts.answered(attempt.member, *attempt.asked);
                    return Poll::Ready(Ok(stream));
                }
                Err(error) => {
                    let error = error.into();
                    match Fault::of(&*error) {
                        // How long a target takes to refuse, or its name to be unknown, says little about the member.
                        None => this.attempts.answered(attempt.member, None),
                        Some(fault) => this.attempts.failed(attempt.member, attempt.members, fault),
                    }
                    if !this.attempts.may_go_on(&error) {
                        return Poll::Ready(Err(error));
                    }
                    this.attempts.tried.push(attempt.member.clone());
                    this.attempts.failure = Some(error);
                    this.attempt.set(None);
                }
            }
        }
    }
}

impl<E: Endpoints> Attempts<E> {
    /// Asks the next member; when there is none left, the last failure is the answer.
    fn next(&mut self) -> Result<Attempt<E::Endpoint>, BoxError> {
        let Shared { turns, health, .. } = &*self.shared;
        let mut members = self.endpoints.snapshot(&self.dial);
        if !self.tried.is_empty() {
            let is_new = |member: &&E::Endpoint| self.tried.iter().all(|tried| tried.name() != member.name());
            members = members.iter().filter(is_new).cloned().collect();
        }
        let members = health.present(members);
        let chosen = self.settings.strategy.choose(&members, &self.dial, turns, || health.latencies());
        let Some(member) = chosen.cloned() else {
            return Err(self.failure.take().unwrap_or_else(|| NoClient.into()));
        };
        let answer = member.clone().oneshot(self.dial.clone());
        let asked = (self.settings.strategy == Strategy::P2cEwma).then(Instant::now);
        Ok(Attempt { member, members, asked, answer })
    }

    fn answered(&self, member: &E::Endpoint, asked: Option<Instant>) {
        self.shared.health.answered(member.name(), asked.map(|asked| asked.elapsed()));
    }

    fn failed(&self, member: &E::Endpoint, members: &[E::Endpoint], fault: Fault) {
        if fault.is_failure()
            && let Some(time) = self.shared.health.failed(member.name(), self.settings.ejection, members)
        {
            tracing::warn!(
                client = &*printable(member.name()),
                seconds = time.as_secs(),
                "client fails and gets no dials for a while"
            );
        }
    }

    fn may_go_on(&self, error: &BoxError) -> bool {
        self.tried.len() < usize::from(self.settings.retries.min(MAX_RETRIES))
            && Fault::of(&**error).is_some_and(Fault::may_ask_another)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use anyproxy_core::{Account, DialService as _, Front, Guarded, Load, Outcome, Target};
    use tokio::io::{BufReader, DuplexStream, duplex};
    use tokio_test::{assert_pending, assert_ready_ok};
    use tower_test::mock;

    use super::*;
    use crate::StickyBy;

    type Pipe = BufReader<DuplexStream>;

    /// What a member does with its dials.
    #[derive(Clone, Copy)]
    enum Way {
        Serve,
        Wait(Duration),
        Fail(Fault),
        Refuse(Outcome),
    }

    #[derive(Clone)]
    struct Member {
        name: &'static str,
        way: Arc<Mutex<Way>>,
        streams: Arc<AtomicUsize>,
        asked: Arc<AtomicUsize>,
    }

    struct Count(Arc<AtomicUsize>);

    impl Drop for Count {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::Relaxed);
        }
    }

    impl Member {
        fn set(&self, way: Way) {
            *self.way.lock().unwrap() = way;
        }
        fn asked(&self) -> usize {
            self.asked.swap(0, Ordering::Relaxed)
        }
    }

    impl Service<Dial> for Member {
        type Response = Guarded<Pipe, Count>;
        type Error = BoxError;
        type Future = anyproxy_core::BoxFuture<Self::Response>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Dial) -> Self::Future {
            self.asked.fetch_add(1, Ordering::Relaxed);
            self.streams.fetch_add(1, Ordering::Relaxed);
            let count = Count(self.streams.clone());
            let way = *self.way.lock().unwrap();
            Box::pin(async move {
                match way {
                    Way::Serve => {}
                    Way::Wait(time) => tokio::time::sleep(time).await,
                    Way::Fail(fault) => return Err(fault.into()),
                    Way::Refuse(outcome) => return Err(outcome.into()),
                }
                Ok(Guarded::new(BufReader::new(duplex(1).0), count))
            })
        }
    }

    impl Endpoint for Member {
        fn name(&self) -> &str {
            self.name
        }
        fn load(&self) -> Load {
            Load { streams: self.streams.load(Ordering::Relaxed), unsent: 0 }
        }
    }

    #[derive(Clone)]
    struct Group(Arc<Mutex<Arc<[Member]>>>);

    impl Endpoints for Group {
        type Endpoint = Member;
        fn snapshot(&self, _: &Dial) -> Arc<[Member]> {
            self.0.lock().unwrap().clone()
        }
        fn served(&self, _: &Dial) -> impl Future<Output = ()> + Send + 'static {
            std::future::ready(())
        }
    }

    /// Two of them, told apart by the user.
    #[derive(Clone)]
    struct Groups([Group; 2]);

    impl Endpoints for Groups {
        type Endpoint = Member;
        fn snapshot(&self, dial: &Dial) -> Arc<[Member]> {
            self.0[usize::from(dial.identity.user() == Some("1"))].snapshot(dial)
        }
        fn served(&self, _: &Dial) -> impl Future<Output = ()> + Send + 'static {
            std::future::ready(())
        }
    }

    fn group(names: &[&'static str]) -> (Group, Vec<Member>) {
        let member = |name: &&'static str| Member {
            name,
            way: Arc::new(Mutex::new(Way::Serve)),
            streams: Arc::default(),
            asked: Arc::default(),
        };
        let members: Vec<_> = names.iter().map(member).collect();
        (Group(Arc::new(Mutex::new(members.clone().into()))), members)
    }

    fn dial(user: &str) -> Dial {
        let mut dial = Dial::tcp(Target::parse("t:1").unwrap(), "192.0.2.1:9".parse().unwrap(), Front::HTTP);
        dial.identity = Account::new(user, ["g"]).into();
        dial
    }

    fn outcome<T>(result: Result<T, BoxError>) -> Outcome {
        Outcome::of(&*result.err().expect("a failure"))
    }

    const UNREACHED: Way = Way::Fail(Fault::Unreached(Outcome::TunnelLost));
    const UNANSWERED: Way = Way::Fail(Fault::Unanswered(Outcome::TunnelLost));

    #[tokio::test]
    async fn an_empty_group_is_no_client_at_once() {
        let (clients, _) = group(&[]);
        let error = Balance::new(Strategy::Random, clients).dial(dial("u")).await.err().unwrap();
        assert!(error.is::<NoClient>());
        assert_eq!(Outcome::of(&*error), Outcome::NoClient);
    }

    #[tokio::test]
    async fn l6_round_robin_shares_evenly_and_a_member_that_left_gets_none() {
        let (clients, members) = group(&["a", "b", "c", "d"]);
        let balance = Balance::new(Strategy::RoundRobin, clients.clone());
        for _ in 0..5_000 {
            balance.dial(dial("u")).await.unwrap();
        }
        assert!(members.iter().all(|member| member.asked() == 1_250));
        *clients.0.lock().unwrap() = members[..3].to_vec().into();
        for _ in 0..6_000 {
            balance.dial(dial("u")).await.unwrap();
        }
        let shares: Vec<_> = members.iter().map(Member::asked).collect();
        assert_eq!(shares, [2_000, 2_000, 2_000, 0]);
    }

    #[tokio::test]
    async fn round_robin_is_in_turn_in_each_of_two_groups_that_are_dialled_in_turns() {
        let (first, mut members) = group(&["site2", "spare-b"]);
        let (second, others) = group(&["site37", "spare-r"]);
        members.extend(others);
        let balance = Balance::new(Strategy::RoundRobin, Groups([first, second]));
        for _ in 0..20 {
            balance.dial(dial("0")).await.unwrap();
            balance.dial(dial("1")).await.unwrap();
        }
        let shares: Vec<_> = members.iter().map(Member::asked).collect();
        assert_eq!(shares, [10; 4]);
    }

    // The clock stands still: a busy machine makes no member slower than the others.
    #[tokio::test(start_paused = true)]
    async fn l6_every_strategy_but_sticky_shares_among_equals() {
        for strategy in [Strategy::LeastLoaded, Strategy::P2cEwma, Strategy::Random] {
            let (clients, members) = group(&["a", "b", "c", "d"]);
            let balance = Balance::new(strategy, clients);
            for _ in 0..4_000 {
                balance.dial(dial("u")).await.unwrap();
            }
            for member in &members {
                let share = member.asked();
                assert!((800..1_200).contains(&share), "{strategy:?}: {share}");
            }
        }
    }

    #[tokio::test]
    async fn least_loaded_fills_up_the_emptiest_while_streams_live() {
        let (clients, members) = group(&["a", "b", "c"]);
        members[0].streams.store(2, Ordering::Relaxed);
        let balance = Balance::new(Strategy::LeastLoaded, clients);
        let mut streams = Vec::new();
        for _ in 0..4 {
            streams.push(balance.dial(dial("u")).await.unwrap());
        }
        assert!(members.iter().all(|member| member.load().streams == 2));
        drop(streams);
        assert_eq!(members[1].load().streams, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_spread_because_dials_count_before_they_are_answered() {
        let (clients, members) = group(&["a", "b", "c", "d"]);
        members.iter().for_each(|member| member.set(Way::Wait(Duration::from_secs(1))));
        let balance = Balance::new(Strategy::LeastLoaded, clients);
        let mut burst = tokio::task::JoinSet::new();
        for _ in 0..8 {
            burst.spawn(balance.dial(dial("u")));
        }
        tokio::task::yield_now().await;
        assert!(members.iter().all(|member| member.load().streams == 2));
        burst.join_all().await;
    }

    #[tokio::test(start_paused = true)]
    async fn p2c_ewma_prefers_the_fast() {
        let (clients, members) = group(&["slow", "fast"]);
        members[0].set(Way::Wait(Duration::from_millis(200)));
        members[1].set(Way::Wait(Duration::from_millis(10)));
        let balance = Balance::new(Strategy::P2cEwma, clients);
        for _ in 0..200 {
            balance.dial(dial("u")).await.unwrap();
        }
        assert!(members[0].asked() <= 5);
    }

    #[tokio::test]
    async fn sticky_keeps_a_user_and_moves_only_the_share_of_who_left() {
        let (clients, members) = group(&["a", "b", "c"]);
        let balance = Balance::new(Strategy::Sticky(StickyBy::User), clients.clone());
        let mut homes = HashMap::new();
        for user in 0..60 {
            for _ in 0..3 {
                balance.dial(dial(&user.to_string())).await.unwrap();
            }
            let home =
                members.iter().position(|member| member.asked() == 3).expect("one member for all three");
            homes.insert(user, home);
        }
        assert!((0..3).all(|home| homes.values().filter(|other| **other == home).count() > 8));
        *clients.0.lock().unwrap() = members[..2].to_vec().into();
        for (user, home) in homes {
            balance.dial(dial(&user.to_string())).await.unwrap();
            let now = members.iter().position(|member| member.asked() == 1);
            assert!(home == 2 || now == Some(home));
        }
    }

    #[tokio::test]
    async fn a_dial_nobody_acted_on_goes_to_another_member() {
        let (clients, members) = group(&["a", "b", "c"]);
        let balance = Balance::new(Strategy::RoundRobin, clients);
        members[0].set(UNREACHED);
        members[1].set(Way::Fail(Fault::Declined(Outcome::TunnelLost)));
        for _ in 0..3 {
            balance.dial(dial("u")).await.unwrap();
        }
        assert_eq!(members[2].asked(), 3);
    }

    #[tokio::test]
    async fn a_dial_is_tried_on_three_members_at_most_and_never_twice_on_one() {
        let (clients, members) = group(&["a", "b", "c", "d", "e"]);
        members.iter().for_each(|member| member.set(UNREACHED));
        let balance = Balance::new(Settings { retries: 200, ..Strategy::Random.into() }, clients);
        assert_eq!(outcome(balance.dial(dial("u")).await), Outcome::TunnelLost);
        let asked: Vec<_> = members.iter().map(Member::asked).collect();
        assert_eq!(asked.iter().sum::<usize>(), 3);
        assert!(asked.iter().all(|asked| *asked <= 1));
    }

    #[tokio::test]
    async fn m16_a_dial_that_may_have_been_acted_on_is_never_repeated() {
        for way in [UNANSWERED, Way::Refuse(Outcome::Refused), Way::Refuse(Outcome::Denied)] {
            let (clients, members) = group(&["a", "b"]);
            members.iter().for_each(|member| member.set(way));
            let balance = Balance::new(Strategy::Random, clients);
            balance.dial(dial("u")).await.err().unwrap();
            assert_eq!(members.iter().map(Member::asked).sum::<usize>(), 1);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_failing_member_is_ejected_for_a_growing_time_and_tried_again() {
        let (clients, members) = group(&["bad", "good"]);
        let (balance, handle) = Balance::pair(Strategy::RoundRobin, clients);
        members[0].set(UNANSWERED);
        for _ in 0..10 {
            let _ = balance.dial(dial("u")).await;
        }
        assert_eq!(members[0].asked(), 5);
        assert_eq!(handle.ejected(), ["bad".into()]);
        for seconds in [10, 20, 30] {
            tokio::time::advance(Duration::from_secs(seconds) - Duration::from_millis(1)).await;
            for _ in 0..4 {
                balance.dial(dial("u")).await.unwrap();
            }
            assert_eq!(members[0].asked(), 0);
            tokio::time::advance(Duration::from_millis(1)).await;
            for _ in 0..4 {
                let _ = balance.dial(dial("u")).await;
            }
            assert_eq!(members[0].asked(), 1, "tried again once, failed, and ejected anew");
        }
        members[0].set(Way::Serve);
        tokio::time::advance(Duration::from_secs(40)).await;
        for _ in 0..4 {
            balance.dial(dial("u")).await.unwrap();
        }
        assert_eq!(members[0].asked(), 2);
        assert!(handle.ejected().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_member_is_never_ejected() {
        let (clients, members) = group(&["a", "b"]);
        members.iter().for_each(|member| member.set(UNANSWERED));
        let (balance, handle) = Balance::pair(Strategy::RoundRobin, clients);
        for _ in 0..100 {
            assert_eq!(outcome(balance.dial(dial("u")).await), Outcome::TunnelLost);
        }
        assert_eq!(handle.ejected().len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_target_s_refusal_never_ejects() {
        let (clients, members) = group(&["a", "b"]);
        members.iter().for_each(|member| member.set(Way::Refuse(Outcome::Refused)));
        let (balance, handle) = Balance::pair(Strategy::RoundRobin, clients);
        for _ in 0..100 {
            assert_eq!(outcome(balance.dial(dial("u")).await), Outcome::Refused);
        }
        assert!(handle.ejected().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_dropped_dial_gives_its_load_back() {
        let (clients, members) = group(&["a"]);
        members[0].set(Way::Wait(Duration::from_secs(60)));
        let balance = Balance::new(Strategy::LeastLoaded, clients);
        let dial = tokio::time::timeout(Duration::from_secs(1), balance.dial(dial("u"))).await;
        assert!(dial.is_err());
        assert_eq!(members[0].load().streams, 0);
    }

    #[tokio::test]
    async fn settings_are_swapped_for_the_dials_that_follow() {
        let (clients, members) = group(&["a", "b"]);
        let (balance, handle) = Balance::pair(Strategy::RoundRobin, clients);
        members[0].set(UNREACHED);
        handle.replace(Settings { retries: 0, ..Strategy::RoundRobin.into() });
        assert_eq!(handle.settings().retries, 0);
        let served = [balance.dial(dial("u")).await.is_ok(), balance.dial(dial("u")).await.is_ok()];
        assert_eq!(served.iter().filter(|served| **served).count(), 1);
    }

    /// A member made of a mock, which is ready only when told so.
    #[derive(Clone)]
    struct Mocked(mock::Mock<Dial, Pipe>);

    impl Service<Dial> for Mocked {
        type Response = Pipe;
        type Error = BoxError;
        type Future = mock::future::ResponseFuture<Pipe>;
        fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
            self.0.poll_ready(cx)
        }
        fn call(&mut self, dial: Dial) -> Self::Future {
            self.0.call(dial)
        }
    }

    impl Endpoint for Mocked {
        fn name(&self) -> &'static str {
            "mock"
        }
        fn load(&self) -> Load {
            Load::default()
        }
    }

    #[derive(Clone)]
    struct One(Arc<[Mocked]>);

    impl Endpoints for One {
        type Endpoint = Mocked;
        fn snapshot(&self, _: &Dial) -> Arc<[Mocked]> {
            self.0.clone()
        }
        fn served(&self, _: &Dial) -> impl Future<Output = ()> + Send + 'static {
            std::future::ready(())
        }
    }

    #[tokio::test]
    async fn a_member_is_asked_only_when_it_is_ready() {
        let (service, mut handle) = mock::pair::<Dial, Pipe>();
        handle.allow(0);
        let balance = Balance::new(Strategy::LeastLoaded, One(Arc::new([Mocked(service)])));
        let mut dial = tokio_test::task::spawn(balance.dial(dial("u")));
        assert_pending!(dial.poll());
        handle.allow(1);
        assert_pending!(dial.poll());
        let (_, send) = handle.next_request().await.unwrap();
        send.send_response(BufReader::new(duplex(1).0));
        assert_ready_ok!(dial.poll());
    }
}
