use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Lets one through per interval and counts the others: for warnings that a user can cause and must not be able to
/// flood the log with.
///
/// ```
/// use std::time::Duration;
///
/// use anyproxy_front::Throttle;
///
/// let full = Throttle::new(Duration::from_secs(60));
/// assert_eq!(full.pass(), Some(0));
/// assert_eq!(full.pass(), None);
/// ```
#[derive(Debug)]
pub struct Throttle {
    started: Instant,
    every: Duration,
    /// When the next may pass, in milliseconds since `started`.
    next: AtomicU64,
    held: AtomicU64,
}

impl Throttle {
    /// One per `every`; the first passes at once.
    #[must_use]
    pub fn new(every: Duration) -> Self {
        Self { started: Instant::now(), every, next: AtomicU64::new(0), held: AtomicU64::new(0) }
    }

    /// Whether this one passes, and how many were held back since the last that did.
    pub fn pass(&self) -> Option<u64> {
        let now = millis(self.started.elapsed());
        let next = self.next.load(Ordering::Relaxed);
        let then = now.saturating_add(millis(self.every));
        let passes = next <= now
            && self.next.compare_exchange(next, then, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if passes {
            Some(self.held.swap(0, Ordering::Relaxed))
        } else {
            self.held.fetch_add(1, Ordering::Relaxed);
            None
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_held_back_is_told_with_the_next() {
        let throttle = Throttle::new(Duration::ZERO);
        throttle.held.store(3, Ordering::Relaxed);
        assert_eq!(throttle.pass(), Some(3));
        assert_eq!(throttle.pass(), Some(0));
    }
}
