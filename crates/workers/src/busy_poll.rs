use std::iter::Sum;
use std::time::{Duration, Instant};

/// What waking a thread that sleeps is taken to cost. On a virtual machine a core without work is given back to the host,
/// and some 40 µs pass until it is there again; so a sleep that was not longer than this and the looking allowed is one whose end
/// looking would have met. And to look for so long costs about what sleeping does.
const WAKING: Duration = Duration::from_micros(50);

/// If what was done between two looks took less, nothing was done;
const NOTHING: Duration = Duration::from_micros(1);
/// or if it took less than so many times the least that it ever took: there are machines on which reading the clock is slow.
const SLOWER: u32 = 4;

/// If another thread has the core for so long when it is offered, it computes: whoever offers it again waits as long again,
/// where the system would wake a sleeper at once.
const TAKEN: Duration = Duration::from_millis(1);
/// For so many times as long there is no looking, and twice as long as before if that is soon after the last time: a tenth
/// of the time is the most that can be lost so, to those who take it for no longer than a scheduler's slice.
const PAUSE: u32 = 10;
/// But no longer than this, since whoever computed may have finished.
const LAST_PAUSE: Duration = Duration::from_millis(500);

/// So much each wait counts in the share of short ones, those looked through in vain twice as much: they cost something;
const WEIGHT: f32 = 1.0 / 16.0;
/// and so large that share must be. With half, a thread would look between one user's rare requests: every other wait is
/// short there, the one for the answer.
const WORTH_IT: f32 = 0.6;

/// Whether a thread that has nothing to do goes on looking for a moment, or sleeps at once.
///
/// A request that passes a tunnel is a row of short waits: each process on the way works for some µs, and then waits for the
/// others. Where all of them sleep, most of the time that the request takes is that of waking them. So a thread that has
/// nothing to do looks at its sockets and timers again and again, up to a limit, and sleeps then; the method is known as busy
/// polling and, of processors, as halt polling. Four rules keep it from taking what others need:
///
/// - it is done while it pays: three waits in five, lately, were so short that looking met their ends, or would have;
/// - what of a wait goes beyond the cost of waking is looked through for no longer than the thread has worked: one that
///   hardly works hardly looks, however large the limit is, and one that works half of its time may be there all the time;
/// - between two looks the core is offered to whoever waits for it;
/// - after another thread took it for long there is no looking for a while, and for longer the more often that happens.
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
    /// The least that passed between two looks.
    least: Duration,
    /// The share of short waits, lately, from 0 to 1.
    short: f32,
    /// What the thread has worked and not yet spent on looking beyond [`WAKING`], up to the limit.
    earned: Duration,
    /// No looking before this;
    paused_until: Instant,
    /// how long that pause was.
    pause: Duration,
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
            least: Duration::MAX,
            short: 0.0,
            earned: Duration::ZERO,
            paused_until: now,
            pause: Duration::ZERO,
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

    /// Whether there was nothing to do all the while since the thread went to look.
    pub(crate) fn found_nothing(&mut self, now: Instant) -> bool {
        if self.slept {
            return false;
        }
        let done = now.saturating_duration_since(self.back);
        self.least = self.least.min(done);
        done <= NOTHING.max(self.least.saturating_mul(SLOWER))
    }

    /// There is nothing to do; or `still` nothing, after a look.
    pub(crate) fn rest(&mut self, now: Instant, still: bool) -> Wait {
        if !still {
            if !self.slept {
                self.waits.looking += 1;
                self.count(true, WEIGHT);
                self.spend(self.back);
            }
            self.earn(now);
            self.since = now;
        }
        let looks = now.saturating_duration_since(self.since) < self.allowance()
            && now >= self.paused_until
            && (still || self.short >= WORTH_IT);
        if still && !looks {
            self.spend(now);
        }
        self.went = now;
        self.slept = !looks;
        match (looks, still) {
            (false, _) => Wait::Sleep,
            (true, false) => Wait::Look,
            (true, true) => Wait::GiveWayAndLook,
        }
    }

    /// The thread has looked, or was woken.
    pub(crate) fn work(&mut self, now: Instant) {
        self.back = now;
        let away = now.saturating_duration_since(self.went);
        if self.slept {
            self.waits.asleep += 1;
            let in_vain = self.went > self.since;
            if in_vain {
                self.count(false, 2.0 * WEIGHT);
            } else {
                self.count(away <= self.allowance().saturating_add(WAKING), WEIGHT);
            }
        } else if away >= TAKEN {
            self.pause(now, away);
        }
    }

    /// How much of a wait may be spent looking.
    fn allowance(&self) -> Duration {
        self.limit.min(self.earned.saturating_add(WAKING))
    }

    /// The thread worked since it came back.
    fn earn(&mut self, now: Instant) {
        let worked = now.saturating_duration_since(self.back);
        self.earned = self.earned.saturating_add(worked).min(self.limit);
    }

    /// It looked until then.
    fn spend(&mut self, until: Instant) {
        let looked = until.saturating_duration_since(self.since);
        self.earned = self.earned.saturating_sub(looked.saturating_sub(WAKING));
    }

    fn count(&mut self, short: bool, weight: f32) {
        let goal = if short { 1.0 } else { 0.0 };
        self.short += (goal - self.short) * weight;
    }

    fn pause(&mut self, now: Instant, taken: Duration) {
        let soon = now.saturating_duration_since(self.paused_until) < self.pause;
        let again = if soon { self.pause * 2 } else { Duration::ZERO };
        self.pause = again.max(taken.saturating_mul(PAUSE)).min(LAST_PAUSE);
        self.paused_until = now + self.pause;
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
        /// What waking it costs,
        waking: Duration,
        /// and coming from one look to the next.
        turn: Duration,
        /// How long others keep the core when it is offered.
        others: Duration,
        /// What it does after each wait.
        work: Duration,
        /// How long it has looked in all.
        looked: Duration,
    }

    impl Thread {
        fn new() -> Self {
            let now = Instant::now();
            let mut poll = BusyPoll::off(now);
            poll.set_limit(LIMIT);
            let (waking, turn) = (Duration::from_micros(40), Duration::from_nanos(150));
            Self { poll, now, waking, turn, others: Duration::ZERO, work: WORK, looked: Duration::ZERO }
        }

        /// Waits for something that comes after `gap`, and handles it. How long it looked, if it had to sleep in the end,
        /// and otherwise `None`.
        fn wait(&mut self, gap: Duration) -> Option<Duration> {
            let (begun, comes) = (self.now, self.now + gap);
            let slept = loop {
                let still = self.poll.found_nothing(self.now);
                match self.poll.rest(self.now, still) {
                    Wait::Sleep => break Some(self.now - begun),
                    Wait::Look => self.now += LOOK,
                    Wait::GiveWayAndLook => self.now += LOOK + self.others,
                }
                self.poll.work(self.now);
                if self.now >= comes {
                    break None;
                }
                self.now += self.turn;
            };
            self.looked += self.now - begun;
            if slept.is_some() {
                self.now = self.now.max(comes) + self.waking;
                self.poll.work(self.now);
            }
            self.now += self.work;
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
            15,
            "until three in five of the last sixteen or so were short"
        );
        // The last one ends with the next one's beginning.
        thread.poll.rest(thread.now, false);
        assert_eq!(thread.poll.waits(), Waits { looking: 985, asleep: 15 });
    }

    #[test]
    fn long_waits_are_slept_through_at_once() {
        let mut thread = Thread::new();
        thread.sleeps(Duration::from_micros(20), 1000);
        let looked: Vec<_> = (0..100).map_while(|_| thread.wait(Duration::from_millis(1))).collect();
        let in_vain = looked.iter().take_while(|looked| !looked.is_zero()).count();
        assert_eq!(in_vain, 4, "until less than three in five were short");
        assert!(
            looked[..in_vain].iter().all(|looked| (LIMIT..LIMIT + 2 * LOOK).contains(looked)),
            "{looked:?}"
        );
        assert!(looked[in_vain..].iter().all(Duration::is_zero));
        assert_eq!(thread.sleeps(Duration::from_secs(20), 10), 10);
    }

    #[test]
    fn four_short_waits_in_five_are_worth_it_and_every_other_one_is_not() {
        // How many of 1,000 waits are looked at.
        let looks = |short: usize, long: usize| {
            let mut thread = Thread::new();
            let (short, long) =
                ([Duration::from_micros(20)].repeat(short), [Duration::from_millis(1)].repeat(long));
            let waits = [short, long].concat().into_iter().cycle().take(1000);
            waits.filter(|gap| thread.wait(*gap) != Some(Duration::ZERO)).count()
        };
        assert!(looks(4, 1) > 900);
        assert_eq!(looks(1, 1), 0, "one user's rare requests");
    }

    #[test]
    fn beyond_what_waking_costs_a_thread_looks_no_longer_than_it_works() {
        let micros = Duration::from_micros;
        for (limit, gap) in
            [(micros(200), 180), (micros(200), 150), (micros(1_000), 300), (Duration::MAX, 5_000)]
        {
            let mut thread = Thread::new();
            thread.poll.set_limit(limit);
            let waits = 10_000;
            thread.sleeps(micros(gap), waits);
            let free = WAKING * waits as u32;
            assert!(thread.looked <= free + WORK * waits as u32, "{gap} of {limit:?}: {:?}", thread.looked);
        }
    }

    #[test]
    fn a_thread_that_works_half_of_its_time_may_look_all_the_rest() {
        const GAP: Duration = Duration::from_micros(150);
        let mut thread = Thread::new();
        thread.poll.set_limit(Duration::from_micros(200));
        assert!(thread.sleeps(GAP, 1000) > 900, "it works 8 µs for each wait, and may look for 58");
        thread.work = Duration::from_micros(110);
        thread.sleeps(GAP, 100);
        assert_eq!(thread.sleeps(GAP, 1000), 0);
        thread.poll.set_limit(LIMIT);
        assert_eq!(thread.sleeps(GAP, 1000), 1000, "no more than the limit");
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
        assert_eq!(lost, 123, "at once, after 30 ms, 60, 120, 240, 480, and then every 500 ms");
        // Nobody computes any more.
        thread.others = Duration::ZERO;
        thread.wait(LAST_PAUSE);
        assert!(thread.sleeps(Duration::from_micros(20), 100) < 5);
    }

    #[test]
    fn whoever_takes_the_core_now_and_then_costs_ten_times_what_they_took() {
        let mut thread = Thread::new();
        thread.sleeps(Duration::from_micros(20), 1000);
        for _ in 0..10 {
            thread.others = Duration::from_millis(3);
            assert_eq!(thread.wait(Duration::from_micros(20)), None);
            thread.others = Duration::ZERO;
            let paused = thread.now;
            while thread.wait(Duration::from_micros(20)).is_some() {}
            let pause = thread.now - paused;
            assert!((29..32).contains(&pause.as_millis()), "{pause:?}");
            thread.sleeps(Duration::from_micros(20), 50_000);
        }
    }

    #[test]
    fn a_slow_clock_is_no_reason_to_look_for_ever() {
        for turn in [500, 1_000, 1_900] {
            let mut thread = Thread::new();
            thread.turn = Duration::from_nanos(turn);
            thread.sleeps(Duration::from_micros(10), 100);
            let looked = thread.wait(Duration::from_secs(1)).unwrap();
            assert!(
                (LIMIT..LIMIT + Duration::from_nanos(2 * turn + 2_000)).contains(&looked),
                "{turn}: {looked:?}"
            );
            assert_eq!(thread.wait(Duration::from_micros(30)), None, "{turn}: it is found as ever");
        }
    }

    #[test]
    fn waits_a_little_too_long_are_not_looked_through_in_vain_every_time() {
        let mut thread = Thread::new();
        thread.waking = Duration::from_micros(5);
        let (mut vain, mut times) = (0, 0);
        for _ in 0..10_000 {
            times += 1;
            vain += usize::from(thread.wait(Duration::from_micros(75)) != Some(Duration::ZERO));
        }
        assert!(vain * 2 <= times + 10, "{vain} of {times}");
    }
}
