use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use anyproxy_core::{BoxError, Dial, Digest, DigestMap, Endpoints, FOR_EVER, Fault, Outcome};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};
use tower::retry::Policy;

use crate::queue::Waited;

/// The least time between two tries of a dial, should somebody come and go again and again.
const PAUSE: Duration = Duration::from_millis(20);

/// How long dials wait for a client, and how many may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitSettings {
    /// The longest wait of one dial, all its waits together (default: 3 s); 0 = nobody waits. A client's reconnect
    /// takes half a second and a few round trips.
    pub limit: Duration,
    /// The most dials that wait (default: 1,024); a user has a quarter of the places at most. Beyond it, dials fail at
    /// once.
    pub waiting: usize,
}

impl Default for WaitSettings {
    fn default() -> Self {
        Self::from(Duration::from_secs(3))
    }
}

impl From<Duration> for WaitSettings {
    fn from(limit: Duration) -> Self {
        Self { limit, waiting: 1024 }
    }
}

/// Holds a dial back while no client of its group is connected, and then makes it again.
///
/// A policy for [`tower::retry`]. It acts on [`Outcome::NoClient`], and on a lost tunnel where nobody has acted on
/// the dial and no other client was left. When the wait is over without a client, the answer is what it would have
/// been without.
///
/// tower clones the policy for each dial, so a dial's deadline lives in its clone, and a new clone has none.
pub struct WaitForClient<E> {
    endpoints: E,
    room: Arc<Room>,
    /// This dial's, from its first wait on.
    deadline: Option<Instant>,
}

/// Changes the settings of a [`WaitForClient`] while dials run, and tells how many wait.
#[derive(Clone)]
pub struct WaitHandle(Arc<Room>);

#[derive(Default)]
struct Room {
    places: Mutex<Places>,
    closed: watch::Sender<bool>,
}

#[derive(Default)]
struct Places {
    settings: WaitSettings,
    taken: usize,
    /// Users who wait now, and with how many dials.
    users: DigestMap<usize>,
}

/// One who waits; leaves the room on drop.
struct Place {
    room: Arc<Room>,
    key: Digest,
}

// === impl WaitForClient ===

impl<E: Endpoints> WaitForClient<E> {
    /// Waits for clients of `endpoints`: `settings` is the longest wait, or more ([`WaitSettings`]).
    pub fn new(endpoints: E, settings: impl Into<WaitSettings>) -> Self {
        Self::pair(endpoints, settings).0
    }

    /// The same, with a handle to its settings.
    pub fn pair(endpoints: E, settings: impl Into<WaitSettings>) -> (Self, WaitHandle) {
        let places = Places { settings: settings.into(), ..Places::default() };
        let room = Arc::new(Room { places: Mutex::new(places), closed: watch::Sender::default() });
        (Self { endpoints, room: room.clone(), deadline: None }, WaitHandle(room))
    }
}

impl<E: Clone> Clone for WaitForClient<E> {
    fn clone(&self) -> Self {
        Self { endpoints: self.endpoints.clone(), room: self.room.clone(), deadline: None }
    }
}

impl<E> fmt::Debug for WaitForClient<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WaitForClient").field("settings", &self.room.lock().settings).finish_non_exhaustive()
    }
}

impl<E: Endpoints, R> Policy<Dial, R, BoxError> for WaitForClient<E> {
    type Future = Waiting;

    fn retry(&mut self, dial: &mut Dial, result: &mut Result<R, BoxError>) -> Option<Waiting> {
        let Err(error) = result else { return None };
        if !is_worth_waiting(error) || *self.room.closed.borrow() {
            return None;
        }
        let settings = self.room.lock().settings;
        let again = self.deadline.is_some();
        let now = Instant::now();
        let deadline = *self.deadline.get_or_insert_with(|| now + settings.limit.min(FOR_EVER));
        if now >= deadline {
            return None;
        }
        let place = self.room.enter(dial.who())?;
        let served = self.endpoints.served(dial);
        let mut closed = self.room.closed.subscribe();
        let waited = Waited::new(dial.journal.clone());
        Some(Waiting(Box::pin(async move {
            if again {
                sleep(PAUSE).await;
            }
            // Too late or not, the dial is made once more: its answer is the true one.
            tokio::select! {
                _ = timeout_at(deadline, served) => {}
                _ = closed.wait_for(|closed| *closed) => {}
            }
            drop((place, waited));
        })))
    }

    fn clone_request(&mut self, dial: &Dial) -> Option<Dial> {
        Some(dial.clone())
    }
}

/// Whether a client that comes would make a difference.
fn is_worth_waiting(error: &BoxError) -> bool {
    match Outcome::of(&**error) {
        Outcome::NoClient => true,
        Outcome::TunnelLost => Fault::of(&**error).is_some_and(Fault::may_ask_another),
        _ => false,
    }
}

/// The wait of one dial.
pub struct Waiting(Pin<Box<dyn Future<Output = ()> + Send>>);

impl Future for Waiting {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.0.as_mut().poll(cx)
    }
}

impl fmt::Debug for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waiting").finish_non_exhaustive()
    }
}

// === impl WaitHandle ===

impl WaitHandle {
    /// Puts settings in place for the waits that begin from now on.
    pub fn replace(&self, settings: impl Into<WaitSettings>) {
        self.0.lock().settings = settings.into();
    }

    /// The settings in place.
    #[must_use]
    pub fn settings(&self) -> WaitSettings {
        self.0.lock().settings
    }

    /// Ends every wait, and lets nobody wait any more, since no client will come: the gateway drains. There is no way
    /// back.
    pub fn close(&self) {
        self.0.closed.send_replace(true);
    }

    /// How many dials wait for a client now.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.0.lock().taken
    }
}

impl fmt::Debug for WaitHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WaitHandle").field("settings", &self.settings()).finish_non_exhaustive()
    }
}

// === impl Room ===

impl Room {
    /// `None` if there is no place, in all or for this user.
    fn enter(self: &Arc<Self>, key: Digest) -> Option<Place> {
        let mut places = self.lock();
        let of_user = places.users.get(&key).copied().unwrap_or_default();
        if places.taken >= places.settings.waiting || of_user >= places.settings.waiting.div_ceil(4) {
            return None;
        }
        places.taken += 1;
        places.users.insert(key, of_user + 1);
        Some(Place { room: self.clone(), key })
    }

    fn lock(&self) -> MutexGuard<'_, Places> {
        // Nothing panics while it holds the lock.
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut places = self.room.lock();
        places.taken -= 1;
        if let Some(of_user) = places.users.get_mut(&self.key) {
            *of_user -= 1;
            if *of_user == 0 {
                places.users.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use anyproxy_core::{Account, DialService as _, Endpoint, Front, Load, Target};
    use tokio::io::{BufReader, DuplexStream, duplex};
    use tokio::sync::watch;
    use tokio::time::advance;
    use tokio_test::task::spawn;
    use tokio_test::{assert_pending, assert_ready_err, assert_ready_ok};
    use tower::ServiceBuilder;
    use tower::retry::Retry;
    use tower_service::Service;

    use super::*;
    use crate::{QueueLayer, Settings};

    type Pipe = BufReader<DuplexStream>;

    /// A group with a client or without, and a stack's last service in one.
    #[derive(Clone)]
    struct Group {
        present: watch::Sender<bool>,
        failure: Fault,
    }

    impl Service<Dial> for Group {
        type Response = Pipe;
        type Error = BoxError;
        type Future = std::future::Ready<Result<Pipe, BoxError>>;
        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
            Poll::Ready(Ok(()))
        }
        fn call(&mut self, _: Dial) -> Self::Future {
            let present = *self.present.borrow();
            std::future::ready(if present {
                Ok(BufReader::new(duplex(1).0))
            } else {
                Err(self.failure.into())
            })
        }
    }

    impl Endpoint for Group {
        fn name(&self) -> &'static str {
            "only"
        }
        fn load(&self) -> Load {
            Load::default()
        }
    }

    impl Endpoints for Group {
        type Endpoint = Self;
        fn snapshot(&self, _: &Dial) -> Arc<[Self]> {
            Arc::new([self.clone()])
        }
        fn served(&self, _: &Dial) -> impl Future<Output = ()> + Send + 'static {
            let mut present = self.present.subscribe();
            async move {
                let _ = present.wait_for(|present| *present).await;
            }
        }
    }

    fn absent() -> Group {
        Group { present: watch::Sender::new(false), failure: Fault::Unreached(Outcome::NoClient) }
    }

    fn waits_3_s(group: &Group) -> Retry<WaitForClient<Group>, Group> {
        ServiceBuilder::new()
            .retry(WaitForClient::new(group.clone(), Duration::from_secs(3)))
            .service(group.clone())
    }

    fn dial(user: &str) -> Dial {
        let mut dial = Dial::tcp(Target::parse("t:1").unwrap(), "192.0.2.1:9".parse().unwrap(), Front::HTTP);
        dial.identity = Account::new(user, ["g"]).into();
        dial
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_comes_back_goes_unnoticed() {
        let group = absent();
        let stack = waits_3_s(&group);
        let dial = dial("a");
        let journal = dial.journal.clone();
        let mut dialing = spawn(stack.dial(dial));
        assert_pending!(dialing.poll());
        advance(Duration::from_millis(2_900)).await;
        assert_pending!(dialing.poll());
        group.present.send_replace(true);
        assert!(dialing.is_woken());
        assert_ready_ok!(dialing.poll());
        assert_eq!(journal.queued(), Duration::from_millis(2_900));
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_that_its_user_left_is_in_the_journal() {
        let group = absent();
        let stack = waits_3_s(&group);
        let dial = dial("a");
        let journal = dial.journal.clone();
        let mut dialing = spawn(stack.dial(dial));
        assert_pending!(dialing.poll());
        advance(Duration::from_secs(2)).await;
        drop(dialing);
        assert_eq!(journal.queued(), Duration::from_secs(2));
    }

    #[tokio::test(start_paused = true)]
    async fn f1_without_a_client_the_answer_is_still_no_client_and_in_time() {
        let group = absent();
        let stack = waits_3_s(&group);
        let started = Instant::now();
        let error = stack.dial(dial("a")).await.err().unwrap();
        assert_eq!(Outcome::of(&*error), Outcome::NoClient);
        let took = started.elapsed();
        assert!((Duration::from_secs(3)..Duration::from_millis(3_100)).contains(&took), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_tunnel_lost_before_anybody_acted_is_worth_a_wait_and_any_other_failure_is_not() {
        for (failure, waits) in [
            (Fault::Unreached(Outcome::TunnelLost), true),
            (Fault::Declined(Outcome::TunnelLost), true),
            (Fault::Unanswered(Outcome::TunnelLost), false),
            (Fault::Declined(Outcome::Overloaded { retry_after: PAUSE }), false),
            (Fault::Unanswered(Outcome::TimedOut), false),
        ] {
            let group = Group { failure, ..absent() };
            let stack = waits_3_s(&group);
            assert_eq!(spawn(stack.dial(dial("a"))).poll().is_pending(), waits, "{failure:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_a_client_holds_no_seat() {
        let group = absent();
        let (layer, queue) = QueueLayer::pair(Settings { max_connections: 1, ..Settings::default() });
        let (wait, handle) = WaitForClient::pair(group.clone(), Duration::from_secs(3));
        let stack = ServiceBuilder::new().retry(wait).layer(layer).service(group.clone());
        let mut dialing = [spawn(stack.dial(dial("a"))), spawn(stack.dial(dial("b")))];
        dialing.iter_mut().for_each(|dialing| assert_pending!(dialing.poll()));
        assert_eq!(queue.status().running, 0);
        assert_eq!(handle.waiting(), 2);
        drop(dialing);
        assert_eq!(handle.waiting(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_room_is_bounded_in_all_and_for_one_user() {
        let group = absent();
        let settings = WaitSettings { limit: Duration::from_secs(3), waiting: 8 };
        let (wait, handle) = WaitForClient::pair(group.clone(), settings);
        let stack = ServiceBuilder::new().retry(wait).service(group.clone());
        let mut crowd: Vec<_> = (0..10).map(|_| spawn(stack.dial(dial("a")))).collect();
        let waiting =
            crowd.iter_mut().filter_map(|dialing| dialing.poll().is_pending().then_some(())).count();
        assert_eq!(waiting, 2);
        let mut others: Vec<_> = (0..10).map(|user| spawn(stack.dial(dial(&user.to_string())))).collect();
        let waiting =
            others.iter_mut().filter_map(|dialing| dialing.poll().is_pending().then_some(())).count();
        assert_eq!(waiting, 6);
        assert_eq!(handle.waiting(), 8);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_where_the_limit_is_zero() {
        let group = absent();
        let (wait, handle) = WaitForClient::pair(group.clone(), Duration::from_secs(3));
        let stack = ServiceBuilder::new().retry(wait).service(group.clone());
        handle.replace(Duration::ZERO);
        assert_ready_err!(spawn(stack.dial(dial("a"))).poll());
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_any_more_where_no_client_will_come() {
        let group = absent();
        let (wait, handle) = WaitForClient::pair(group.clone(), Duration::from_secs(3));
        let stack = ServiceBuilder::new().retry(wait).service(group.clone());
        let mut dialing = spawn(stack.clone().dial(dial("a")));
        assert_pending!(dialing.poll());
        handle.close();
        assert!(dialing.is_woken());
        let error = assert_ready_err!(dialing.poll());
        assert_eq!(Outcome::of(&*error), Outcome::NoClient);
        assert_ready_err!(spawn(stack.dial(dial("b"))).poll());
        assert_eq!(handle.waiting(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_comes_and_goes_costs_a_pause_between_tries() {
        // It is served, says the registry, and nobody is there when asked.
        #[derive(Clone)]
        struct Flapping;
        impl Endpoints for Flapping {
            type Endpoint = Group;
            fn snapshot(&self, _: &Dial) -> Arc<[Group]> {
                Arc::default()
            }
            fn served(&self, _: &Dial) -> impl Future<Output = ()> + Send + 'static {
                std::future::ready(())
            }
        }
        let tries = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counted = tries.clone();
        let group = absent();
        let stack = ServiceBuilder::new()
            .retry(WaitForClient::new(Flapping, Duration::from_secs(1)))
            .map_request(move |dial: Dial| {
                counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                dial
            })
            .service(group);
        let error = stack.dial(dial("a")).await.err().unwrap();
        assert_eq!(Outcome::of(&*error), Outcome::NoClient);
        assert!(tries.load(std::sync::atomic::Ordering::Relaxed) <= 53);
    }
}
