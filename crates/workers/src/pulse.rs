use std::io;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Waker};
use std::thread;
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Runtime};

use crate::busy_poll::{BusyPoll, Wait, Waits};

/// In this time what a thread did counts for half. Long enough that one long turn does not make a thread busy, short
/// enough that what ended before the newcomer came does not.
const HALF_LIFE: Duration = Duration::from_millis(50);

/// The share of its time that a busy thread works, in percent.
const BUSY: u32 = 90;

/// How much of its time a runtime's thread works, lately: the past counts half as much every 50 ms. Clones are of the
/// same thread.
///
/// It is told whenever the thread has nothing left to do, and whenever there may be something again. The runtime's own
/// counters would say how much it worked between two looks at them, but nobody looks while nobody comes: a user who
/// comes after a crowd has left would be judged by the crowd.
#[derive(Clone, Debug)]
pub struct Pulse(Arc<Mutex<Watched>>);

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
            .on_thread_park(move || rests.rest())
            .on_thread_unpark(move || works.work())
            .build()?;
        Ok((runtime, pulse))
    }

    /// That of a thread nobody watches, which counts as idle.
    #[must_use]
    pub fn still() -> Self {
        Self(Arc::new(Mutex::new(Watched::new(Instant::now()))))
    }

    /// How long the thread, once it has nothing to do, goes on looking for work before it sleeps, where that lately paid;
    /// zero, as at first, for no time. It is in force from the next wait on.
    ///
    /// Waking a thread costs some 40 µs on a virtual machine, and some 5 where the core is the system's own. What looking
    /// costs is CPU time: for each wait at most the limit, and beyond 50 µs no more in all than the thread works; nothing
    /// while fewer than three waits in five are short enough, as with a few hundred requests a second.
    pub fn set_busy_poll(&self, limit: Duration) {
        self.with(|thread| thread.busy_poll.set_limit(limit));
    }

    /// How the thread's waits for something to do have ended.
    #[must_use]
    pub fn waits(&self) -> Waits {
        self.with(|thread| thread.busy_poll.waits())
    }

    /// Whether the thread has hardly a moment left: it works nine tenths of its time.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.percent() >= BUSY
    }

    /// The share of its time, in percent, that the thread has worked lately.
    pub(crate) fn percent(&self) -> u32 {
        (self.with(|thread| thread.beat.share_at(Instant::now())) * 100.0).round() as u32
    }

    /// The thread has nothing to do, and sleeps unless this says otherwise to its runtime.
    fn rest(&self) {
        match self.with(|thread| thread.rest(Instant::now())) {
            Wait::Sleep => {}
            Wait::Look => stay_awake(),
            Wait::GiveWayAndLook => {
                thread::yield_now();
                stay_awake();
            }
        }
    }

    fn work(&self) {
        self.with(|thread| thread.work(Instant::now()));
    }

    fn with<T>(&self, look: impl FnOnce(&mut Watched) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Called when a thread is about to sleep, has its runtime look at sockets and timers instead, and ask again.
fn stay_awake() {
    // A runtime does not sleep while a waker is deferred, whoever it wakes.
    let _ = pin!(tokio::task::yield_now()).poll(&mut Context::from_waker(Waker::noop()));
}

/// A thread that tells when it has nothing to do, and when there may be something again.
#[derive(Debug)]
struct Watched {
    beat: Beat,
    busy_poll: BusyPoll,
}

impl Watched {
    const fn new(now: Instant) -> Self {
        Self { beat: Beat { works: false, since: now, share: 0.0 }, busy_poll: BusyPoll::off(now) }
    }

    fn rest(&mut self, now: Instant) -> Wait {
        let still = self.busy_poll.found_nothing(now);
        if still {
            self.beat.forget_work();
        } else {
            self.beat.turn(now, false);
        }
        self.busy_poll.rest(now, still)
    }

    fn work(&mut self, now: Instant) {
        self.beat.turn(now, true);
        self.busy_poll.work(now);
    }
}

/// How much of its time it works.
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

    /// It has rested since it was told to work.
    const fn forget_work(&mut self) {
        self.works = false;
    }

    fn share_at(&self, now: Instant) -> f64 {
        let half_lives = now.saturating_duration_since(self.since).div_duration_f64(HALF_LIFE);
        let goal = if self.works { 1.0 } else { 0.0 };
        goal + (self.share - goal) * (-half_lives).exp2()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

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
    fn looking_is_no_work() {
        let look = Duration::from_nanos(500);
        let mut now = Instant::now();
        let mut thread = Watched::new(now);
        thread.busy_poll.set_limit(Duration::from_secs(1));
        let looks = |thread: &mut Watched, now: &mut Instant| {
            let wait = thread.rest(*now);
            *now += look;
            thread.work(*now);
            *now += look;
            wait != Wait::Sleep
        };
        // Short waits, and work for long: it may look for as long.
        for _ in 0..100 {
            looks(&mut thread, &mut now);
            looks(&mut thread, &mut now);
            now += Duration::from_millis(10);
        }
        assert!(thread.beat.share_at(now) > 0.99);
        let until = now + Duration::from_millis(300);
        while now < until {
            assert!(looks(&mut thread, &mut now));
        }
        assert!(thread.beat.share_at(now) < 0.02, "six half-lives later");
    }

    /// Whether the thread parked while a task of it slept for so long, which had worked twice as long before: so it may look.
    async fn parks(slept: Duration) -> bool {
        let begun = Instant::now();
        while begun.elapsed() < slept * 2 {}
        let metrics = tokio::runtime::Handle::current().metrics();
        let before = metrics.worker_park_count(0);
        tokio::time::sleep(slept).await;
        metrics.worker_park_count(0) > before
    }

    #[test]
    fn a_short_wait_is_spent_awake() {
        const WAIT: Duration = Duration::from_millis(2);
        let (runtime, pulse) = Pulse::runtime().unwrap();
        runtime.block_on(async {
            for _ in 0..20 {
                assert!(parks(WAIT).await, "there is no limit");
            }
            pulse.set_busy_poll(Duration::from_secs(1));
            // Whoever else computes on this machine may have the core, so there may be a pause or two.
            let begun = Instant::now();
            while parks(WAIT).await {
                assert!(begun.elapsed() < Duration::from_secs(60), "it never stayed awake");
            }
            pulse.set_busy_poll(Duration::ZERO);
            assert!(parks(WAIT).await);
        });
    }

    /// Has a byte go to another thread and back, again and again, until looking met it so often.
    async fn look(pulse: &Pulse, times: u64) {
        let (there, mut here) = tokio::net::UnixStream::pair().unwrap();
        let mut there = there.into_std().unwrap();
        there.set_nonblocking(false).unwrap();
        let echo = thread::spawn(move || io::copy(&mut there.try_clone().unwrap(), &mut there).unwrap());
        let (begun, mut sent) = (Instant::now(), 0);
        while pulse.waits().looking < times {
            here.write_all(b"a").await.unwrap();
            here.read_exact(&mut [0]).await.unwrap();
            sent += 1;
            assert!(begun.elapsed() < Duration::from_secs(60), "it never looked");
        }
        drop(here);
        assert_eq!(echo.join().unwrap(), sent);
    }

    #[test]
    fn a_thread_that_looks_works_for_others() {
        let (runtime, pulse) = Pulse::runtime().unwrap();
        pulse.set_busy_poll(Duration::from_secs(1));
        runtime.block_on(look(&pulse, 100));
    }

    #[test]
    fn looking_is_no_work_and_has_an_end() {
        const LONG: Duration = Duration::from_millis(300);
        let (runtime, pulse) = Pulse::runtime().unwrap();
        // As much as the program takes. With far more, others on this machine would begin the wait anew before its end.
        pulse.set_busy_poll(Duration::from_millis(1));
        runtime.block_on(async {
            look(&pulse, 100).await;
            let before = pulse.waits().looking;
            assert!(parks(LONG).await);
            let found = pulse.waits().looking - before;
            // Each time another took the core unasked the wait began anew, for a ms at the most.
            assert!(found < 100, "it found something {found} times, and there was nothing");
            assert!(pulse.percent() < 50);
        });
    }

    #[test]
    fn nobody_watched_is_nobody_busy() {
        assert_eq!(Pulse::still().percent(), 0);
    }
}
