use std::fmt;
use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::available_parallelism;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;

use crate::Rejected;

/// How many hashes may be reckoned at once, and how many logins may wait for that; the others are refused.
///
/// Hashing is what a stranger can make a gateway spend most on. With this it takes a known share of the machine, and
/// users who are already remembered notice nothing. Clones share the room: give one pool to all fronts.
#[derive(Clone)]
pub struct HashPool(Arc<Pool>);

struct Pool {
    /// Hashes under way.
    seats: Arc<Semaphore>,
    /// Hashes under way, and those who wait.
    places: Arc<Semaphore>,
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
            hashed: AtomicU64::new(0),
        }))
    }

    /// How many hashes have been reckoned so far.
    #[must_use]
    pub fn hashed(&self) -> u64 {
        self.0.hashed.load(Ordering::Relaxed)
    }

    /// Waits in line for one's turn to hash.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the line.
    pub(crate) async fn seat(&self) -> Result<Seat, Rejected> {
        let place = self.0.places.clone().try_acquire_owned().map_err(|_| Rejected::BUSY)?;
        let seat = self.0.seats.clone().acquire_owned().await.expect("the pool is never closed");
        Ok(Seat { pool: self.0.clone(), _seat: seat, _place: place })
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
    pool: Arc<Pool>,
    _seat: OwnedSemaphorePermit,
    _place: OwnedSemaphorePermit,
}

impl Seat {
    /// Runs `hash` on a thread that may block, and keeps the seat until it has ended: giving up waiting for it does
    /// not make it stop costing.
    pub(crate) async fn run(self, hash: impl FnOnce() -> bool + Send + 'static) -> Result<bool, Rejected> {
        let work = spawn_blocking(move || {
            self.pool.hashed.fetch_add(1, Ordering::Relaxed);
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
        let seat = pool.seat().await.unwrap();
        let waiting: Vec<_> = (0..2)
            .map(|_| {
                tokio::spawn({
                    let pool = pool.clone();
                    async move { pool.seat().await.map(drop) }
                })
            })
            .collect();
        tokio::task::yield_now().await;
        assert!(pool.seat().await.err().unwrap().is_busy());
        drop(seat);
        for waiting in waiting {
            waiting.await.unwrap().unwrap();
        }
        assert!(pool.seat().await.is_ok());
    }

    #[tokio::test]
    async fn i8_a_hash_nobody_waits_for_counts_until_it_ends() {
        let pool = HashPool::new(1, 0);
        let (end, ended) = mpsc::channel::<()>();
        let seat = pool.seat().await.unwrap();
        let mut work = Box::pin(seat.run(move || ended.recv().is_err()));
        assert!(poll_once(work.as_mut()).await.is_none());
        drop(work);
        assert!(pool.seat().await.err().unwrap().is_busy(), "the hash still runs");
        drop(end);
        while pool.seat().await.is_err() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn leaving_the_line_frees_the_place() {
        let pool = HashPool::new(1, 1);
        let seat = pool.seat().await.unwrap();
        for _ in 0..3 {
            let mut waiting = Box::pin(pool.seat());
            assert!(poll_once(waiting.as_mut()).await.is_none());
        }
        drop(seat);
        assert!(pool.seat().await.is_ok());
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
