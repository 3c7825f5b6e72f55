use std::time::Duration;

/// The first wait: after a healthy tunnel was lost, and after a first failure.
const FIRST: Duration = Duration::from_millis(500);
/// The longest wait.
const CAP: Duration = Duration::from_secs(30);
/// The least wait after a wrong login, to which up to half of it is added. A gateway locks out a source of ten wrong ones in
/// two minutes: two or three clients behind one address may be wrong, and the others there still come in.
const REFUSED: Duration = Duration::from_secs(30);
/// A tunnel that lived this long was healthy, and what failed before it is forgotten.
const HEALTHY: Duration = Duration::from_secs(10);

/// How long to wait before a gateway is dialled again.
///
/// Exponential with full jitter: each wait is anywhere between nothing and a ceiling that doubles from 500 ms to
/// 30 s, so that a thousand clients of a gateway that restarts do not come back together. The chance is an
/// argument, a number from 0 up to 1.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    /// Failures since the last healthy tunnel.
    failures: u32,
}

impl Backoff {
    /// No tunnel came about.
    pub(crate) fn failed(&mut self, chance: f64) -> Duration {
        let ceiling =
            2_u32.checked_pow(self.failures).map_or(CAP, |factor| FIRST.saturating_mul(factor).min(CAP));
        self.failures = self.failures.saturating_add(1);
        ceiling.mul_f64(chance)
    }

    /// The gateway refuses what this client is: until somebody has changed a setting it will again.
    pub(crate) fn refused(&mut self, chance: f64) -> Duration {
        self.failures = self.failures.saturating_add(1);
        REFUSED + (REFUSED / 2).mul_f64(chance)
    }

    /// A tunnel that lived for `lived` was lost, or its gateway told us to go elsewhere.
    pub(crate) fn lost(&mut self, lived: Duration, chance: f64) -> Duration {
        if lived < HEALTHY {
            return self.failed(chance);
        }
        self.failures = 0;
        FIRST.mul_f64(chance)
    }

    /// Another instance took this client's place. Two instances under one name would take turns as fast as they
    /// reconnect, so this one steps far back, however healthy its tunnel was.
    pub(crate) fn replaced(&mut self, chance: f64) -> Duration {
        self.failures = CAP.as_millis().div_ceil(FIRST.as_millis()).ilog2() + 1;
        self.failed(chance)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With the highest chance, a wait is its ceiling.
    const ALL: f64 = 1.0;

    #[test]
    fn waits_double_from_half_a_second_to_half_a_minute() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..9).map(|_| backoff.failed(ALL).as_millis()).collect();
        assert_eq!(waits, [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000, 30000]);
        backoff.failures = u32::MAX;
        assert_eq!(backoff.failed(ALL), CAP);
    }

    #[test]
    fn a_refused_login_waits_long_at_once() {
        assert_eq!(Backoff::default().refused(0.0), Duration::from_secs(30));
        assert_eq!(Backoff { failures: 9 }.refused(ALL), Duration::from_secs(45));
    }

    #[test]
    fn f2_each_wait_is_spread_from_nothing_to_its_ceiling() {
        assert_eq!(Backoff { failures: 3 }.failed(0.0), Duration::ZERO);
        assert_eq!(Backoff { failures: 3 }.failed(0.25), Duration::from_secs(1));
        assert_eq!(Backoff::default().lost(HEALTHY, 0.5), Duration::from_millis(250));
    }

    #[test]
    fn only_ten_seconds_of_health_are_a_new_start() {
        let mut backoff = Backoff { failures: 4 };
        assert_eq!(backoff.lost(HEALTHY - Duration::from_millis(1), ALL), Duration::from_secs(8));
        assert_eq!(backoff.lost(HEALTHY, ALL), FIRST);
        assert_eq!(backoff.failed(ALL), FIRST);
    }

    #[test]
    fn a_replaced_instance_steps_far_back() {
        assert_eq!(Backoff::default().replaced(ALL), CAP);
    }
}
