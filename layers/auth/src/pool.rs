use std::cell::Cell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::num::NonZero;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::available_parallelism;
use std::time::Duration;

use anyproxy_core::{FOR_EVER, SourcePrefix, run_blocking};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::Rejected;

thread_local! {
    /// Whether the login that was polled last on this thread waits in line.
    static IN_LINE: Cell<bool> = const { Cell::new(false) };
}

/// Polls a login, and tells whether it waits in the line of a [`HashPool`] now: nothing was spent on it then.
///
/// The services in between need not know of it. Where one of them polls in a task of its own, nothing is told.
pub(crate) fn in_line<T>(poll: impl FnOnce() -> T) -> (T, bool) {
    IN_LINE.set(false);
    let polled = poll();
    (polled, IN_LINE.get())
}

/// How many hashes may be reckoned at once, and how many logins may wait for that; the others are refused.
///
/// Hashing is what a stranger can make a gateway spend most on. With this it takes a known share of the machine, and
/// users who are already remembered notice nothing. One source ([`SourcePrefix`]) has a quarter of the places at most, so
/// it takes several to keep everybody else out. Who has waited for [`PATIENCE`](Self::PATIENCE) is refused as those are
/// who find no place. Clones share the room: give one pool to all fronts, and to clients another, so that no user's wrong
/// logins keep those out.
#[derive(Clone)]
pub struct HashPool {
    pool: Arc<Pool>,
    patience: Duration,
}

struct Pool {
    /// Hashes under way.
    seats: Arc<Semaphore>,
    /// Hashes under way, and those who wait.
    places: Arc<Semaphore>,
    /// The places a source may have, and those who have some.
    share: usize,
    sources: Mutex<HashMap<SourcePrefix, usize>>,
    hashed: AtomicU64,
}

impl HashPool {
    /// How long a login waits in line: half of what listeners give a handshake by default. It is told to come again while
    /// there is somebody to tell, and time is left for the hash itself.
    pub const PATIENCE: Duration = Duration::from_secs(5);

    /// Room for `at_once` hashes, at least one, and a line of `waiting` logins.
    ///
    /// Each hash takes one core, and with argon2id the memory its parameters say: 19 MiB for those made by
    /// [`hash_password`](crate::hash_password), 256 MiB at most. The last in line waits `waiting / at_once` hashes, and
    /// not beyond [`PATIENCE`](Self::PATIENCE).
    #[must_use]
    pub fn new(at_once: usize, waiting: usize) -> Self {
        let at_once = at_once.clamp(1, Semaphore::MAX_PERMITS / 2);
        let places = at_once + waiting.min(Semaphore::MAX_PERMITS / 2);
        let pool = Pool {
            seats: Arc::new(Semaphore::new(at_once)),
            places: Arc::new(Semaphore::new(places)),
            share: places.div_ceil(4),
            sources: Mutex::default(),
            hashed: AtomicU64::new(0),
        };
        Self { pool: Arc::new(pool), patience: Self::PATIENCE }
    }

    /// One core in so many at once, at least one, and a line of 64 logins: with argon2id of 20 ms a second or so for one
    /// core.
    #[must_use]
    pub fn one_core_in(cores: usize) -> Self {
        Self::new(available_parallelism().map_or(1, NonZero::get) / cores.max(1), 64)
    }

    /// The same room for logins that wait for `patience` at most (default: [`PATIENCE`](Self::PATIENCE)): well below
    /// what the front gives them, or they are dropped without an answer. Other clones stay as patient as they are.
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience.min(FOR_EVER);
        self
    }

    /// How many hashes have been reckoned so far.
    #[must_use]
    pub fn hashed(&self) -> u64 {
        self.pool.hashed.load(Ordering::Relaxed)
    }

    /// Waits in line for one's turn to hash; with others of the same source, where that is known. Tells so to
    /// [`in_line`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the line.
    pub(crate) async fn seat(&self, source: Option<SourcePrefix>) -> Result<Seat, Rejected> {
        let place = self.pool.clone().place(source).ok_or(Rejected::BUSY)?;
        let mut turn = pin!(self.pool.seats.clone().acquire_owned());
        let turn = poll_fn(|cx| {
            let turn = turn.as_mut().poll(cx);
            IN_LINE.set(turn.is_pending());
            turn
        });
        let seat = timeout(self.patience, turn).await.map_err(|_| Rejected::BUSY)?;
        Ok(Seat { _seat: seat.expect("the pool is never closed"), place })
    }
}

impl Pool {
    fn place(self: Arc<Self>, source: Option<SourcePrefix>) -> Option<Place> {
        let permit = self.places.clone().try_acquire_owned().ok()?;
        if let Some(source) = source {
            let mut sources = self.sources();
            let taken = sources.get(&source).copied().unwrap_or_default();
            if taken >= self.share {
                return None;
            }
            sources.insert(source, taken + 1);
        }
        Some(Place { pool: self, source, _permit: permit })
    }

    /// No more than there are places.
    fn sources(&self) -> MutexGuard<'_, HashMap<SourcePrefix, usize>> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place among those who hash or wait.
struct Place {
    pool: Arc<Pool>,
    source: Option<SourcePrefix>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(source) = self.source else { return };
        if let Entry::Occupied(mut taken) = self.pool.sources().entry(source) {
            *taken.get_mut() -= 1;
            if *taken.get() == 0 {
                taken.remove();
            }
        }
    }
}

impl Default for HashPool {
    /// [Half the cores](Self::one_core_in), so that a storm of logins leaves the other half to those who are in.
    fn default() -> Self {
        Self::one_core_in(2)
    }
}

impl fmt::Debug for HashPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HashPool")
            .field("free_seats", &self.pool.seats.available_permits())
            .field("free_places", &self.pool.places.available_permits())
            .field("patience", &self.patience)
            .finish_non_exhaustive()
    }
}

/// The right to reckon one hash.
pub(crate) struct Seat {
    _seat: OwnedSemaphorePermit,
    place: Place,
}

impl Seat {
    /// Runs `hash` on a thread that may block, and keeps the seat until it has ended: giving up waiting for it does
    /// not make it stop costing. Where the system gives no thread, and for a second after, there is no room.
    pub(crate) async fn run(self, hash: impl FnOnce() -> bool + Send + 'static) -> Result<bool, Rejected> {
        let work = run_blocking(move || {
            self.place.pool.hashed.fetch_add(1, Ordering::Relaxed);
            let verdict = hash();
            drop(self);
            verdict
        });
        work.await.map_err(|error| match error.kind() {
            io::ErrorKind::ResourceBusy => Rejected::BUSY,
            // The runtime has ended.
            _ => Rejected::INTERRUPTED,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn p6_the_line_is_bounded_and_those_beyond_it_are_refused_at_once() {
        let pool = HashPool::new(1, 2);
        let seat = pool.seat(None).await.unwrap();
        let waiting: Vec<_> = (0..2)
            .map(|_| {
                tokio::spawn({
                    let pool = pool.clone();
                    async move { pool.seat(None).await.map(drop) }
                })
            })
            .collect();
        tokio::task::yield_now().await;
        assert!(pool.seat(None).await.err().unwrap().is_busy());
        drop(seat);
        for waiting in waiting {
            waiting.await.unwrap().unwrap();
        }
        assert!(pool.seat(None).await.is_ok());
    }

    #[test]
    fn f6_without_a_thread_there_is_no_room_and_no_seat_is_lost() {
        let pool = HashPool::new(1, 0);
        let runtime = |stack: usize| {
            tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .thread_stack_size(stack)
                .build()
                .unwrap()
        };
        let hash = async || pool.seat(None).await?.run(|| true).await;
        // Each thread is refused: no machine has such a stack.
        let without = runtime(1 << 50);
        let with = runtime(1 << 20);
        // For a second nothing is tried: on the thread that had found none.
        for _ in 0..3 {
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    assert!(without.block_on(hash()).unwrap_err().is_busy());
                    assert_eq!(pool.pool.seats.available_permits(), 1);
                    assert!(with.block_on(hash()).unwrap_err().is_busy(), "not tried for a second");
                    assert_eq!(pool.pool.seats.available_permits(), 1);
                });
            });
        }
        assert_eq!(with.block_on(hash()), Ok(true));
    }

    #[tokio::test]
    async fn p6_one_source_leaves_room_for_others() {
        let pool = HashPool::new(1, 7);
        let source = |last: u8| Some(SourcePrefix::from(std::net::IpAddr::from([192, 0, 2, last])));
        let seat = pool.seat(source(1)).await.unwrap();
        let mut waiting = Box::pin(pool.seat(source(1)));
        assert!(poll_once(waiting.as_mut()).await.is_none());
        assert!(pool.seat(source(1)).await.err().unwrap().is_busy(), "two of eight");
        let mut other = Box::pin(pool.seat(source(2)));
        assert!(poll_once(other.as_mut()).await.is_none(), "waits");
        drop((seat, waiting));
        other.await.unwrap();
        assert!(pool.seat(source(1)).await.is_ok());
        assert!(pool.pool.sources().is_empty());
    }

    #[tokio::test]
    async fn i8_a_hash_nobody_waits_for_counts_until_it_ends() {
        let pool = HashPool::new(1, 0);
        let (end, ended) = mpsc::channel::<()>();
        let seat = pool.seat(None).await.unwrap();
        let mut work = Box::pin(seat.run(move || ended.recv().is_err()));
        assert!(poll_once(work.as_mut()).await.is_none());
        drop(work);
        assert!(pool.seat(None).await.err().unwrap().is_busy(), "the hash still runs");
        drop(end);
        while pool.seat(None).await.is_err() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn p6_who_waits_for_longer_than_the_patience_is_told_to_come_again_and_leaves_the_line() {
        let pool = HashPool::new(1, 1);
        let seat = pool.seat(None).await.unwrap();
        for patience in [HashPool::PATIENCE, Duration::from_secs(1)] {
            let begun = tokio::time::Instant::now();
            let pool = pool.clone().with_patience(patience);
            assert!(pool.seat(None).await.err().unwrap().is_busy());
            assert_eq!(begun.elapsed(), patience);
        }
        drop(seat);
        assert!(pool.seat(None).await.is_ok());
    }

    #[tokio::test]
    async fn leaving_the_line_frees_the_place() {
        let pool = HashPool::new(1, 1);
        let seat = pool.seat(None).await.unwrap();
        for _ in 0..3 {
            let mut waiting = Box::pin(pool.seat(None));
            assert!(poll_once(waiting.as_mut()).await.is_none());
        }
        drop(seat);
        assert!(pool.seat(None).await.is_ok());
    }

    async fn poll_once<F: Future + Unpin>(mut future: F) -> Option<F::Output> {
        use std::pin::Pin;
        use std::task::Poll;
        poll_fn(|cx| match Pin::new(&mut future).poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending => Poll::Ready(None),
        })
        .await
    }
}
