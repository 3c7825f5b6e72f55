use std::time::{Duration, Instant};

/// How often a peer may do something: a burst, and so many more each second.
#[derive(Debug)]
pub(crate) struct Budget {
    left: u32,
    burst: u32,
    per_second: u32,
    refilled: Instant,
}

impl Budget {
    pub(crate) fn new(burst: u32, per_second: u32, now: Instant) -> Self {
        Self { left: burst, burst, per_second, refilled: now }
    }

    /// Takes one; `false` when none is left.
    pub(crate) fn take(&mut self, now: Instant) -> bool {
        self.refill(now);
        match self.left.checked_sub(1) {
            Some(left) => self.left = left,
            None => return false,
        }
        true
    }

    /// Whether so many are left.
    pub(crate) fn has(&mut self, now: Instant, many: u32) -> bool {
        self.refill(now);
        self.left >= many
    }

    fn refill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.refilled).as_secs();
        if elapsed > 0 {
            let gained = u32::try_from(elapsed).unwrap_or(u32::MAX).saturating_mul(self.per_second);
            self.left = self.left.saturating_add(gained).min(self.burst);
            // What is left of a second counts towards the next one.
            self.refilled += Duration::from_secs(elapsed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_as_often_as_it_may_can_go_on_for_ever() {
        let mut now = Instant::now();
        let mut budget = Budget::new(2, 1, now);
        for turn in 0..100 {
            now += Duration::from_millis(if turn % 2 == 0 { 900 } else { 1_100 });
            assert!(budget.take(now), "{turn}");
        }
    }

    #[test]
    fn burst_then_refill() {
        let start = Instant::now();
        let mut budget = Budget::new(3, 1, start);
        assert!((0..3).all(|_| budget.take(start)));
        assert!(!budget.take(start));
        let later = start + Duration::from_secs(2);
        assert!(budget.take(later) && budget.take(later) && !budget.take(later));
        let much_later = start + Duration::from_secs(1_000_000_000);
        assert!((0..3).all(|_| budget.take(much_later)));
        assert!(!budget.take(much_later));
    }
}
