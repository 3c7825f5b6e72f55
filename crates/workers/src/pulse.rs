use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Runtime};

/// In this time what a thread did counts for half. Long enough that one long turn does not make a thread busy, short
/// enough that what ended before the newcomer came does not.
const HALF_LIFE: Duration = Duration::from_millis(50);

/// The share of its time that a busy thread works, in percent.
const BUSY: u32 = 90;

/// How much of its time a runtime's thread works, lately: the past counts half as much every 50 ms. Clones are of the
/// same thread.
///
/// It is told whenever the thread has nothing left to do, and whenever there is something again. The runtime's own
/// counters would say how much it worked between two looks at them, but nobody looks while nobody comes: a user who
/// comes after a crowd has left would be judged by the crowd.
#[derive(Clone, Debug)]
pub struct Pulse(Arc<Mutex<Beat>>);

impl Pulse {
    /// A runtime of the `current_thread` flavour, with IO and time, and the pulse of the thread that will run it.
    ///
    /// # Errors
    ///
    /// If the system has no more descriptors for it.
    pub fn runtime() -> io::Result<(Runtime, Self)> {
        let pulse = Self::still();
        let (rests, works) = (pulse.clone(), pulse.clone());
        let runtime = Builder::new_current_thread()
            .enable_all()
            .on_thread_park(move || rests.turn(false))
            .on_thread_unpark(move || works.turn(true))
            .build()?;
        Ok((runtime, pulse))
    }

    /// That of a thread nobody watches, which counts as idle.
    #[must_use]
    pub fn still() -> Self {
        Self(Arc::new(Mutex::new(Beat { works: false, since: Instant::now(), share: 0.0 })))
    }

    /// Whether the thread has hardly a moment left: it works nine tenths of its time.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.percent() >= BUSY
    }

    /// The share of its time, in percent, that the thread has worked lately.
    pub(crate) fn percent(&self) -> u32 {
        (self.with(|beat| beat.share_at(Instant::now())) * 100.0).round() as u32
    }

    fn turn(&self, works: bool) {
        self.with(|beat| beat.turn(Instant::now(), works));
    }

    fn with<T>(&self, look: impl FnOnce(&mut Beat) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What is known of a thread.
#[derive(Debug)]
struct Beat {
    /// Whether it works, or waits for work;
    works: bool,
    /// since when;
    since: Instant,
    /// and how much it had worked until then, from 0 to 1.
    share: f64,
}

impl Beat {
    fn turn(&mut self, now: Instant, works: bool) {
        self.share = self.share_at(now);
        (self.works, self.since) = (works, now);
    }

    fn share_at(&self, now: Instant) -> f64 {
        let half_lives = now.saturating_duration_since(self.since).div_duration_f64(HALF_LIFE);
        let goal = if self.works { 1.0 } else { 0.0 };
        goal + (self.share - goal) * (-half_lives).exp2()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The share after the thread did the first for so many ms, then the second, and so on.
    fn share(turns: &[(bool, u64)]) -> f64 {
        let mut now = Instant::now();
        let mut beat = Beat { works: false, since: now, share: 0.0 };
        for (works, millis) in turns {
            beat.turn(now, *works);
            now += Duration::from_millis(*millis);
        }
        beat.share_at(now)
    }

    #[test]
    fn the_past_counts_half_as_much_every_half_life() {
        assert_eq!(share(&[(true, 50)]), 0.5);
        assert_eq!(share(&[(true, 100)]), 0.75);
        assert_eq!(share(&[(true, 100), (false, 50)]), 0.375);
        assert_eq!(share(&[(true, 100), (false, 0), (false, 50)]), 0.375, "however often it is told");
    }

    #[test]
    fn a_thread_is_what_it_does_most_of_the_time() {
        let mostly = |works: bool| [(works, 9), (!works, 1)].repeat(100);
        assert!((0.85..0.93).contains(&share(&mostly(true))));
        assert!((0.07..0.15).contains(&share(&mostly(false))));
    }

    #[test]
    fn what_a_crowd_did_says_nothing_of_a_thread_it_has_left() {
        assert!(share(&[(true, 60_000)]) > 0.99);
        assert!(share(&[(true, 60_000), (false, 300)]) < 0.02);
        assert!(share(&[(false, 60_000), (true, 300)]) > 0.98);
    }

    #[test]
    fn nobody_watched_is_nobody_busy() {
        assert_eq!(Pulse::still().percent(), 0);
    }
}
