use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::num::NonZero;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::available_parallelism;

use anyproxy_core::SourcePrefix;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;

use crate::Rejected;

/// How many hashes may be reckoned at once, and how many logins may wait for that; the others are refused.
///
/// Hashing is what a stranger can make a gateway spend most on. With this it takes a known share of the machine, and
/// users who are already remembered notice nothing. One source ([`SourcePrefix`]) has a quarter of the places at most, so
/// it takes several to keep everybody else out. Clones share the room: give one pool to all fronts.
#[derive(Clone)]
pub struct HashPool(Arc<Pool>);

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
    /// Room for `at_once` hashes, at least one, and a line of `waiting` logins.
    ///
    /// Each hash takes one core, and with argon2id the memory its parameters say: 19 MiB for those made by
    /// [`hash_password`](crate::hash_password), 256 MiB at most. The last in line waits `waiting / at_once` hashes.
    #[must_use]
    pub fn new(at_once: usize, waiting: usize) -> Self {
        let at_once = at_once.clamp(1, Semaphore::MAX_PERMITS / 2);
        let places = at_once + waiting.min(Semaphore::MAX_PERMITS / 2);
        Self(Arc::new(Pool {
            seats: Arc::new(Semaphore::new(at_once)),
            places: Arc::new(Semaphore::new(places)),
            share: places.div_ceil(4),
            sources: Mutex::default(),
            hashed: AtomicU64::new(0),
        }))
    }

    /// How many hashes have been reckoned so far.
    #[must_use]
    pub fn hashed(&self) -> u64 {
        self.0.hashed.load(Ordering::Relaxed)
    }

    /// Waits in line for one's turn to hash; with others of the same source, where that is known.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the line.
    pub(crate) async fn seat(&self, source: Option<SourcePrefix>) -> Result<Seat, Rejected> {
        let place = self.0.clone().place(source).ok_or(Rejected::BUSY)?;
        let seat = self.0.seats.clone().acquire_owned().await.expect("the pool is never closed");
        Ok(Seat { _seat: seat, place })
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
    /// Half the cores, at least one, so that a storm of logins leaves the other half to those who are in; and a line
    /// of 64, which with argon2id of 20 ms is a second or so.
    fn default() -> Self {
        Self::new(available_parallelism().map_or(1, NonZero::get) / 2, 64)
    }
}

impl fmt::Debug for HashPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HashPool")
            .field("free_seats", &self.0.seats.available_permits())
            .field("free_places", &self.0.places.available_permits())
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
    /// not make it stop costing.
    pub(crate) async fn run(self, hash: impl FnOnce() -> bool + Send + 'static) -> Result<bool, Rejected> {
        let work = spawn_blocking(move || {
            self.place.pool.hashed.fetch_add(1, Ordering::Relaxed);
            let verdict = hash();
            drop(self);
            verdict
        });
        // It fails when the runtime ends.
        work.await.map_err(|_| Rejected::INTERRUPTED)
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
        assert!(pool.0.sources().is_empty());
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
        std::future::poll_fn(|cx| match Pin::new(&mut future).poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending => Poll::Ready(None),
        })
        .await
    }
}
