use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

/// How long a thread is watched before it is judged.
const WINDOW: Duration = Duration::from_millis(100);

/// The share of its time that a busy thread works, in percent.
const BUSY: u32 = 90;

/// How much of its time a runtime's thread works. It is looked at when somebody asks, and no more often than once in
/// 100 ms.
#[derive(Debug)]
pub(crate) struct Busy(Mutex<Watch>);

#[derive(Debug)]
struct Watch {
    since: Instant,
    /// How long it had worked by then.
    worked: Duration,
    percent: u32,
}

impl Busy {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(Watch { since: Instant::now(), worked: Duration::ZERO, percent: 0 }))
    }

    /// The share of its time, in percent, that the thread of `runtime` has worked lately.
    pub(crate) fn percent(&self, runtime: &Handle) -> u32 {
        let mut watch = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (now, passed) = (Instant::now(), watch.since.elapsed());
        if passed >= WINDOW {
            let worked = worked(runtime);
            watch.percent = share(worked.saturating_sub(watch.worked), passed);
            (watch.since, watch.worked) = (now, worked);
        }
        watch.percent
    }

    pub(crate) const fn is_much(percent: u32) -> bool {
        percent >= BUSY
    }
}

/// How long the runtime's thread has worked. The counter is 64 bits wide, and where there are no such atomics every
/// thread counts as idle.
#[cfg(target_has_atomic = "64")]
fn worked(runtime: &Handle) -> Duration {
    runtime.metrics().worker_total_busy_duration(0)
}

#[cfg(not(target_has_atomic = "64"))]
fn worked(_: &Handle) -> Duration {
    Duration::ZERO
}

fn share(part: Duration, whole: Duration) -> u32 {
    let percent = part.as_nanos() * 100 / whole.as_nanos().max(1);
    u32::try_from(percent.min(100)).unwrap_or(100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_never_more_than_the_whole() {
        let second = Duration::from_secs(1);
        assert_eq!(share(Duration::ZERO, second), 0);
        assert_eq!(share(second / 2, second), 50);
        assert_eq!(share(2 * second, second), 100);
        assert_eq!(share(second, Duration::ZERO), 100);
    }
}
