use std::time::{Duration, Instant};

/// What is counted for so long at least makes a sample: bytes come in bursts of a full socket buffer, which say more of
/// the kernel than of the line.
const SAMPLE: Duration = Duration::from_millis(10);

/// Samples through which busy streams are counted. One round trip is too short: credit for a stream comes every one and a
/// half where windows are as they should be, and later where they are larger. Those that are not met would make the windows
/// of the others larger still.
const COUNTED: u32 = 4;

/// A first sample that took more than so many times what one must take is mostly silence, and says nothing of the line.
const SILENCE: u32 = 8;

/// What a tunnel carries, and among how many streams: bytes that their readers have taken, by time.
///
/// A sample that is larger than the estimate replaces it at once; the estimate gives way to smaller ones by an eighth
/// each. So a pause counts as one small sample, and a line that got worse is known after some twenty.
#[derive(Debug)]
pub(crate) struct Bandwidth {
    per_second: u64,
    /// Streams of which half a window was read within the latest count.
    streams: u32,
    next: Sample,
}

/// What is being counted.
#[derive(Debug)]
struct Sample {
    since: Instant,
    read: u64,
    /// Streams met by the count so far.
    streams: u32,
    /// The number of the count, from 1, and of the sample within it.
    count: u32,
    sample: u32,
}

impl Bandwidth {
    pub(crate) fn new(now: Instant) -> Self {
        let next = Sample { since: now, read: 0, streams: 0, count: 1, sample: 0 };
        Self { per_second: 0, streams: 0, next }
    }

    /// So many bytes were read.
    pub(crate) fn read(&mut self, bytes: u32) {
        self.next.read += u64::from(bytes);
    }

    /// Half a window of a stream was read; `counted` is the number of the count in which it was met last.
    pub(crate) fn count(&mut self, counted: &mut u32) {
        if *counted != self.next.count {
            *counted = self.next.count;
            self.next.streams += 1;
        }
    }

    /// Takes a sample if it is time for one; less than a round trip tells nothing either.
    pub(crate) fn sample(&mut self, now: Instant, rtt: Duration) {
        let took = now.saturating_duration_since(self.next.since);
        let least = SAMPLE.max(rtt);
        if took < least {
            return;
        }
        if self.per_second == 0 && took > SILENCE * least {
            (self.next.read, self.next.since) = (0, now);
            return;
        }
        let sample = u128::from(self.next.read) * 1_000_000_000 / took.as_nanos();
        let sample = u64::try_from(sample).unwrap_or(u64::MAX);
        self.per_second = sample.max(self.per_second - self.per_second / 8);
        (self.next.read, self.next.since) = (0, now);
        self.next.sample += 1;
        if self.next.sample == COUNTED {
            self.streams = std::mem::take(&mut self.next.streams);
            (self.next.count, self.next.sample) = (self.next.count.wrapping_add(1), 0);
        }
    }

    /// Bytes that pass in this time, for each stream; `None` as long as nothing is known.
    pub(crate) fn share_within(&self, time: Duration) -> Option<u64> {
        if self.per_second == 0 {
            return None;
        }
        let bytes = u128::from(self.per_second) * time.as_nanos() / 1_000_000_000;
        Some(u64::try_from(bytes / u128::from(self.streams())).unwrap_or(u64::MAX))
    }

    /// How many are busy; at least one.
    pub(crate) fn streams(&self) -> u32 {
        self.streams.max(self.next.streams).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RTT: Duration = Duration::from_millis(20);

    #[test]
    fn estimate_rises_at_once_and_falls_by_and_by() {
        let start = Instant::now();
        let mut line = Bandwidth::new(start);
        line.read(1_000_000);
        line.sample(start + RTT - Duration::from_nanos(1), RTT);
        assert_eq!(line.share_within(RTT), None, "less than a round trip is no sample");
        line.sample(start + RTT, RTT);
        assert_eq!(line.share_within(RTT), Some(1_000_000));
        for turn in 2..40 {
            line.read(500_000);
            line.sample(start + RTT * turn, RTT);
            if turn == 2 {
                assert_eq!(line.share_within(RTT), Some(875_000));
            }
        }
        assert_eq!(line.share_within(RTT), Some(500_000));
        line.read(500_000);
        line.sample(start + RTT * 39 + SAMPLE / 2, SAMPLE / 10);
        assert_eq!(line.share_within(RTT), Some(500_000), "a burst is no sample either");
    }

    #[test]
    fn silence_before_the_first_bytes_is_no_sample() {
        let start = Instant::now();
        let mut line = Bandwidth::new(start);
        line.read(1_000);
        line.sample(start + RTT * SILENCE + Duration::from_nanos(1), RTT);
        assert_eq!(line.share_within(RTT), None);
        line.read(1_000_000);
        line.sample(start + RTT * (SILENCE + 2), RTT);
        assert!(line.share_within(RTT).is_some_and(|share| (500_000..510_000).contains(&share)));
    }

    #[test]
    fn streams_share_it_while_they_are_there() {
        let start = Instant::now();
        let mut line = Bandwidth::new(start);
        let mut counted = [0; 4];
        // Each sample meets half of those that are there.
        for turn in 1..=4 * COUNTED {
            let busy = if turn <= 2 * COUNTED { 4 } else { 2 };
            let met = if turn % 2 == 1 { 0..busy / 2 } else { busy / 2..busy };
            counted[met].iter_mut().for_each(|counted| line.count(counted));
            line.read(400_000);
            line.sample(start + RTT * turn, RTT);
            if turn % (2 * COUNTED) == 0 {
                assert_eq!(line.share_within(RTT), Some(400_000 / busy as u64));
            }
        }
    }
}
