use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use anyproxy_core::{Digest, DigestMap};
use tokio::time::Instant;

/// Into how many parts the state is divided: so many can be used at once, and swept one at a time.
pub(crate) const SHARDS: usize = 64;
/// The least time between two sweeps. All shards are swept in 640 ms, while calls come; and a sweep of the largest
/// shard takes about 0.1 ms.
const SWEEP_EVERY: Duration = Duration::from_millis(10);

/// State by key, cleared by those who use it: no task, and no call that pays for all.
pub(crate) struct Keyed<V> {
    shards: Box<[Mutex<DigestMap<V>>]>,
    epoch: Instant,
    /// Nanoseconds after `epoch`.
    sweep_at: AtomicU64,
    sweep_next: AtomicUsize,
}

impl<V> Keyed<V> {
    pub(crate) fn new() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            epoch: Instant::now(),
            sweep_at: AtomicU64::new(0),
            sweep_next: AtomicUsize::new(0),
        }
    }

    /// The part that holds `key`.
    pub(crate) fn shard(&self, key: Digest) -> MutexGuard<'_, DigestMap<V>> {
        // The map looks at the lowest and the highest bits.
        self.lock((key.get() >> 32) as usize % SHARDS)
    }

    fn lock(&self, at: usize) -> MutexGuard<'_, DigestMap<V>> {
        self.shards[at].lock().expect("nothing panics under this lock")
    }

    /// Nanoseconds since this was made: the clock of everything kept here.
    pub(crate) fn now(&self) -> u64 {
        nanos(self.epoch.elapsed())
    }

    /// A time of that clock as an instant.
    pub(crate) fn instant(&self, nanos: u64) -> Instant {
        self.epoch + Duration::from_nanos(nanos)
    }

    /// Whether it is time to [`sweep`](Self::sweep); says so to one caller only.
    pub(crate) fn is_sweep_due(&self, now: u64) -> bool {
        let due = self.sweep_at.load(Ordering::Relaxed);
        let next = now + nanos(SWEEP_EVERY);
        now >= due && self.sweep_at.compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Clears one shard, the next in turn, of what is not worth keeping.
    pub(crate) fn sweep(&self, mut keep: impl FnMut(&V) -> bool) {
        let at = self.sweep_next.fetch_add(1, Ordering::Relaxed) % SHARDS;
        let mut shard = self.lock(at);
        shard.retain(|_, value| keep(value));
        // Memory is given back too, but not so eagerly that a steady number of keys is moved about.
        if shard.capacity() > 64 + 4 * shard.len() {
            let room = 2 * shard.len();
            shard.shrink_to(room);
        }
    }

    pub(crate) fn len(&self) -> usize {
        (0..SHARDS).map(|at| self.lock(at).len()).sum()
    }
}

pub(crate) fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn calls_sweep_every_shard_in_turn_and_memory_is_given_back() {
        let keyed = Keyed::new();
        for n in 0..100_000_u64 {
            let key = Digest::of(&n);
            keyed.shard(key).insert(key, n);
        }
        assert_eq!(keyed.len(), 100_000);
        let mut sweeps = 0;
        while keyed.len() > 0 {
            if keyed.is_sweep_due(keyed.now()) {
                keyed.sweep(|_| false);
                sweeps += 1;
            }
            assert!(!keyed.is_sweep_due(keyed.now()), "not twice at once");
            tokio::time::advance(SWEEP_EVERY).await;
        }
        assert_eq!(sweeps, SHARDS);
        assert!(keyed.shards.iter().all(|shard| shard.lock().unwrap().capacity() <= 64));
    }
}
