use std::iter::Sum;
use std::time::{Duration, Instant};

/// What waking a thread that sleeps is taken to cost. On a virtual machine a core without work is given back to the host,
/// and some 40 µs pass until it is there again; so a sleep that was shorter than this and the limit together is one whose
/// end looking would have met.
const WAKING: Duration = Duration::from_micros(50);

/// If less was done between two looks, nothing was.
const NOTHING: Duration = Duration::from_micros(1);

/// If another thread has the core for so long when it is offered, it computes: whoever offers it again waits as long again,
/// where the system would wake a sleeper at once.
const TAKEN: Duration = Duration::from_millis(1);

/// How long there is no looking after that, the first time; and twice as long each time that comes soon after another,
const FIRST_PAUSE: Duration = Duration::from_millis(10);
/// up to this.
const LAST_PAUSE: Duration = Duration::from_secs(10);

/// Soon is before the core was offered so often and not taken for long. On a machine that merely has something else to do now
/// and then, it has been.
const SOON: u32 = 100;

/// So much each wait counts in the share of short ones,
const WEIGHT: f32 = 1.0 / 16.0;
/// and so large that share must be.
const WORTH_IT: f32 = 1.0 / 3.0;

/// Whether a thread that has nothing to do goes on looking for a moment, or sleeps at once.
///
/// A request that passes a tunnel is a row of short waits: each process on the way works for some µs, and then waits for the
/// others. Where all of them sleep, most of the time that the request takes is that of waking them. So a thread that has
/// nothing to do looks at its sockets and timers again and again, up to a limit, and sleeps then; the method is known as busy
/// polling and, of processors, as halt polling. Three rules keep it from taking what others need:
///
/// - it is done while it pays: at least one wait in three, lately, was so short that looking met its end, or would have;
/// - between two looks the core is offered to whoever waits for it;
/// - after another thread took it for long there is no looking for a while, and for longer the more often that happens.
///
/// A limit of about the cost of a waking bounds what is lost where all this was wrong: a wait then costs twice that.
#[derive(Debug)]
pub(crate) struct BusyPoll {
    limit: Duration,
    /// Since when there is nothing to do.
    since: Instant,
    /// When the thread last went, to look or to sleep,
    went: Instant,
    /// and when it came back.
    back: Instant,
    /// Whether it slept in between.
    slept: bool,
    /// The share of short waits, lately, from 0 to 1.
    short: f32,
    /// No looking before this;
    paused_until: Instant,
    /// how long that pause was;
    pause: Duration,
    /// how many looks there were since.
    looks: u32,
    /// How the waits so far ended.
    waits: Waits,
}

/// How a thread's waits for something to do have ended, so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waits {
    /// So many while it looked for work ([`Pulse::set_busy_poll`](crate::Pulse::set_busy_poll)),
    pub looking: u64,
    /// and so many in a sleep.
    pub asleep: u64,
}

impl Sum for Waits {
    fn sum<I: Iterator<Item = Self>>(waits: I) -> Self {
        waits.fold(Self::default(), |sum, waits| Self {
            looking: sum.looking + waits.looking,
            asleep: sum.asleep + waits.asleep,
        })
    }
}

/// What a thread that has nothing to do does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Look whether there is something.
    Look,
    /// The same, once whoever else wants the core had it.
    GiveWayAndLook,
    Sleep,
}

impl BusyPoll {
    /// That of a thread which always sleeps at once, until it has a limit.
    pub(crate) const fn off(now: Instant) -> Self {
        Self {
            limit: Duration::ZERO,
            since: now,
            went: now,
            back: now,
            slept: true,
            short: 0.0,
            paused_until: now,
            pause: Duration::ZERO,
            looks: 0,
            waits: Waits { looking: 0, asleep: 0 },
        }
    }

    /// Sets how much of a wait is spent looking at most.
    pub(crate) const fn set_limit(&mut self, limit: Duration) {
        self.limit = limit;
    }

    /// How its waits have ended.
    pub(crate) const fn waits(&self) -> Waits {
        self.waits
    }

    /// There is nothing to do; or still nothing, after a look.
    pub(crate) fn rest(&mut self, now: Instant) -> Wait {
        let still = !self.slept && now.saturating_duration_since(self.back) < NOTHING;
        if !still {
            if !self.slept {
                self.waits.looking += 1;
                self.count(true);
            }
            self.since = now;
        }
        let looks = now.saturating_duration_since(self.since) < self.limit
            && now >= self.paused_until
            && (still || self.short >= WORTH_IT);
        self.slept = !looks;
        self.went = now;
        match (looks, still) {
            (false, _) => Wait::Sleep,
            (true, false) => Wait::Look,
            (true, true) => Wait::GiveWayAndLook,
        }
    }

    /// The thread has looked, or was woken.
    pub(crate) fn work(&mut self, now: Instant) {
        self.back = now;
        if self.slept {
            self.waits.asleep += 1;
            self.count(now.saturating_duration_since(self.since) <= self.limit + WAKING);
        } else if now.saturating_duration_since(self.went) < TAKEN {
            self.looks = self.looks.saturating_add(1);
        } else {
            self.pause(now);
        }
    }

    fn count(&mut self, short: bool) {
        let goal = if short { 1.0 } else { 0.0 };
        self.short += (goal - self.short) * WEIGHT;
    }

    fn pause(&mut self, now: Instant) {
        let soon = self.looks < SOON;
        self.pause = if soon { (self.pause * 2).clamp(FIRST_PAUSE, LAST_PAUSE) } else { FIRST_PAUSE };
        self.paused_until = now + self.pause;
        self.looks = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_micros(50);
    /// What one look takes, and what handling a readable socket does.
    const LOOK: Duration = Duration::from_nanos(800);
    const WORK: Duration = Duration::from_micros(8);

    /// A thread in invented time.
    struct Thread {
        poll: BusyPoll,
        now: Instant,
        /// How long others keep the core when it is offered.
        others: Duration,
    }

    impl Thread {
        fn new() -> Self {
            let now = Instant::now();
            let mut poll = BusyPoll::off(now);
            poll.set_limit(LIMIT);
            Self { poll, now, others: Duration::ZERO }
        }

        /// Waits for something that comes after `gap`, and handles it. How long it looked, if it had to sleep in the end,
        /// and otherwise `None`.
        fn wait(&mut self, gap: Duration) -> Option<Duration> {
            let (begun, comes) = (self.now, self.now + gap);
            let slept = loop {
                match self.poll.rest(self.now) {
                    Wait::Sleep => break Some(self.now - begun),
                    Wait::Look => self.now += LOOK,
                    Wait::GiveWayAndLook => self.now += LOOK + self.others,
                }
                self.poll.work(self.now);
                if self.now >= comes {
                    break None;
                }
            };
            if slept.is_some() {
                self.now = self.now.max(comes) + Duration::from_micros(40);
                self.poll.work(self.now);
            }
            self.now += WORK;
            slept
        }

        /// The same so many times: how often it slept.
        fn sleeps(&mut self, gap: Duration, times: usize) -> usize {
            (0..times).filter(|_| self.wait(gap).is_some()).count()
        }
    }

    #[test]
    fn short_waits_are_looked_through_once_they_are_seen_to_be_short() {
        let mut thread = Thread::new();
        assert_eq!(
            thread.sleeps(Duration::from_micros(20), 1000),
            7,
            "until one in three of the last sixteen or so was short"
        );
        // The last one ends with the next one's beginning.
        thread.poll.rest(thread.now);
        assert_eq!(thread.poll.waits(), Waits { looking: 993, asleep: 7 });
    }

    #[test]
    fn long_waits_are_slept_through_at_once() {
        let mut thread = Thread::new();
        thread.sleeps(Duration::from_micros(20), 1000);
        let looked: Vec<_> = (0..100).map_while(|_| thread.wait(Duration::from_millis(1))).collect();
        let in_vain = looked.iter().take_while(|looked| !looked.is_zero()).count();
        assert_eq!(in_vain, 18, "until less than one in three was short");
        assert!(
            looked[..in_vain].iter().all(|looked| (LIMIT..LIMIT + 2 * LOOK).contains(looked)),
            "{looked:?}"
        );
        assert!(looked[in_vain..].iter().all(Duration::is_zero));
        assert_eq!(thread.sleeps(Duration::from_secs(20), 10), 10);
    }

    #[test]
    fn one_short_wait_in_two_is_worth_it_and_one_in_eight_is_not() {
        let looks = |long: usize| {
            let mut thread = Thread::new();
            let mut looked = 0;
            for _ in 0..200 {
                let waits = [vec![Duration::from_micros(20)], vec![Duration::from_millis(1); long]].concat();
                looked += waits.into_iter().filter(|gap| thread.wait(*gap) != Some(Duration::ZERO)).count();
            }
            looked
        };
        assert!(looks(1) > 380, "of 400");
        assert!(looks(7) < 3, "of 1,600");
    }

    #[test]
    fn without_a_limit_there_is_no_looking() {
        let mut thread = Thread::new();
        thread.poll.set_limit(Duration::ZERO);
        assert_eq!(thread.sleeps(Duration::from_micros(20), 1000), 1000);
    }

    #[test]
    fn those_who_need_the_core_for_a_moment_get_it() {
        let mut thread = Thread::new();
        thread.sleeps(Duration::from_micros(20), 100);
        thread.others = Duration::from_micros(30);
        assert_eq!(thread.sleeps(Duration::from_micros(20), 1000), 0);
    }

    #[test]
    fn while_others_compute_there_is_hardly_any_looking() {
        let mut thread = Thread::new();
        thread.sleeps(Duration::from_micros(20), 100);
        thread.others = Duration::from_millis(3);
        let begun = thread.now;
        let mut lost = 0;
        while thread.now - begun < Duration::from_secs(60) {
            if thread.wait(Duration::from_micros(20)) != Some(Duration::ZERO) {
                lost += 1;
            }
        }
        assert_eq!(lost, 15, "at once, after 10 ms, 20, 40 and so on to 5.12 s, and then every 10 s");
        // Nobody computes any more.
        thread.others = Duration::ZERO;
        thread.wait(LAST_PAUSE);
        assert!(thread.sleeps(Duration::from_micros(20), 100) < 5);
    }

    #[test]
    fn whoever_takes_the_core_now_and_then_is_no_reason_to_sleep_for_long() {
        let mut thread = Thread::new();
        thread.sleeps(Duration::from_micros(20), 1000);
        let begun = thread.now;
        let mut slept = 0;
        for _ in 0..10 {
            thread.others = Duration::from_millis(3);
            assert_eq!(thread.wait(Duration::from_micros(20)), None);
            thread.others = Duration::ZERO;
            slept += thread.sleeps(Duration::from_micros(20), 5_000);
        }
        assert!(slept < 10 * 160, "10 ms each time, which is some 150 waits");
        assert!(thread.now - begun > Duration::from_secs(1));
    }
}
