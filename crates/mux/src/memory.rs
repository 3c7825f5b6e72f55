use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Bytes that everything in a process may hold for streams, together.
///
/// A multiplexer draws on it for what its streams hold ([`Mux::with_memory`](crate::Mux::with_memory)), and whoever
/// holds bytes before or behind a multiplexer does the same. Nothing waits for memory; with what is in use, all of
/// them hold less:
///
/// - Up to half of the limit nothing happens.
/// - From there on windows and buffers [shrink](Self::shrunk) in proportion, and do not grow.
/// - From seven eighths on memory is [short](Self::is_short): they are at their smallest, and there are no new streams.
/// - Beyond the limit, the streams that hold most are reset, in multiplexers that hold more than an
///   [equal part](Self::equal_part). Only what was granted before can lead here.
///
/// So one tunnel whose readers have stopped costs the others speed, and never a stream. What lives may exceed the
/// limit by the smallest window of each stream, so the limit should leave that much of the machine's memory: half of
/// it is a good choice.
///
/// Cheap to clone; clones are the same memory. The default has no limit.
#[derive(Clone, Debug)]
pub struct Memory(Arc<Counters>);

#[derive(Debug)]
struct Counters {
    limit: u64,
    used: AtomicU64,
    shares: AtomicU64,
}

impl Memory {
    /// Memory of so many bytes.
    pub fn new(limit: u64) -> Self {
        Self(Arc::new(Counters { limit, used: AtomicU64::new(0), shares: AtomicU64::new(0) }))
    }

    /// The most that may be in use.
    pub fn limit(&self) -> u64 {
        self.0.limit
    }

    /// What is in use.
    pub fn used(&self) -> u64 {
        self.0.used.load(Relaxed)
    }

    /// Whether there is none for new streams.
    pub fn is_short(&self) -> bool {
        self.used() >= self.short()
    }

    /// Whether more is in use than may be.
    pub fn is_exceeded(&self) -> bool {
        self.used() > self.0.limit
    }

    /// What is left of a window, or of a buffer, of `size` bytes: all of it while less than half of the limit is in
    /// use, `least` when memory is short, and in proportion between them.
    pub fn shrunk(&self, size: u32, least: u32) -> u32 {
        let (begin, short, used) = (self.begin(), self.short(), self.used());
        if used <= begin {
            return size;
        }
        let (left, whole) = (short.saturating_sub(used), short - begin);
        let left = u128::from(size) * u128::from(left) / u128::from(whole.max(1));
        // Not above `size`, so it fits.
        size.min(least.max(left as u32))
    }

    /// Whether windows shrink.
    pub fn is_shrinking(&self) -> bool {
        self.used() > self.begin()
    }

    /// The limit divided by those who hold a [share](Self::share).
    pub fn equal_part(&self) -> u64 {
        self.0.limit / self.0.shares.load(Relaxed).max(1)
    }

    /// A share, of nothing yet.
    pub fn share(&self) -> Share {
        self.0.shares.fetch_add(1, Relaxed);
        Share { memory: self.clone(), held: 0, counts: true }
    }

    /// A share of one who gets no [equal part](Self::equal_part) for it: for what waits beside a multiplexer.
    pub fn aside(&self) -> Share {
        Share { memory: self.clone(), held: 0, counts: false }
    }

    /// Counts `bytes` as in use. They are to be given back: what has an owner that may be dropped is better held by
    /// a [`Share`].
    pub fn take(&self, bytes: u64) {
        self.0.used.fetch_add(bytes, Relaxed);
    }

    /// Counts `bytes` as in use no more.
    pub fn give_back(&self, bytes: u64) {
        let before = self.0.used.fetch_sub(bytes, Relaxed);
        debug_assert!(before >= bytes, "nobody gives back more than was taken");
    }

    fn begin(&self) -> u64 {
        self.0.limit / 2
    }

    fn short(&self) -> u64 {
        self.0.limit - self.0.limit / 8
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::new(u64::MAX)
    }
}

/// What one holder has of a [`Memory`]. Given back when it is dropped.
#[derive(Debug)]
pub struct Share {
    memory: Memory,
    held: u64,
    counts: bool,
}

impl Share {
    /// The memory it is of.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// How much it is.
    pub fn held(&self) -> u64 {
        self.held
    }

    /// Makes it `bytes`, more or less than before.
    pub fn set(&mut self, bytes: u64) {
        if bytes > self.held {
            self.memory.take(bytes - self.held);
        } else if bytes < self.held {
            self.memory.give_back(self.held - bytes);
        }
        self.held = bytes;
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.set(0);
        self.memory.0.shares.fetch_sub(self.counts.into(), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_shrink_from_half_of_the_limit_to_seven_eighths() {
        let memory = Memory::new(800);
        let mut share = memory.share();
        let mut at = |used| {
            share.set(used);
            memory.shrunk(1_000, 10)
        };
        assert_eq!([0, 400, 550, 697, 699, 700, 5_000].map(&mut at), [1_000, 1_000, 500, 10, 10, 10, 10]);
        assert_eq!(memory.shrunk(5, 10), 5, "nothing grows by it");
    }

    #[test]
    fn i9_shares_that_are_dropped_give_everything_back() {
        let memory = Memory::new(100);
        let (mut first, mut second) = (memory.share(), memory.share());
        first.set(80);
        second.set(30);
        assert!(memory.is_short() && memory.is_exceeded());
        let mut third = memory.aside();
        third.set(5);
        assert_eq!((memory.used(), memory.equal_part()), (115, 50));
        drop(third);
        second.set(10);
        assert!(memory.is_short() && !memory.is_exceeded());
        drop(first);
        assert_eq!((memory.used(), memory.equal_part()), (10, 100));
    }

    #[test]
    fn memory_without_a_limit_is_never_short() {
        let memory = Memory::default();
        let mut share = memory.share();
        share.set(1 << 50);
        assert!(!memory.is_short() && memory.shrunk(u32::MAX, 0) == u32::MAX);
    }
}
