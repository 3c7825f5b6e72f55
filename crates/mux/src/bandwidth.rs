use std::time::{Duration, Instant};

/// What is counted for so long at least makes a sample: bytes come in bursts of a full socket buffer, which say more of
/// the kernel than of the line.
const SAMPLE: Duration = Duration::from_millis(10);

/// What a tunnel carries, and among how many streams: bytes that their readers have taken, by time.
///
/// A sample that is larger than the estimate replaces it at once; the estimate gives way to smaller ones by an eighth
/// each. So a pause counts as one small sample, and a line that got worse is known after some twenty.
#[derive(Debug)]
pub(crate) struct Bandwidth {
    per_second: u64,
    /// Streams that had credit given back within the latest sample.
    streams: u32,
    next: Sample,
}

/// What is being counted.
#[derive(Debug)]
struct Sample {
    number: u32,
    since: Instant,
    read: u64,
    streams: u32,
}

impl Bandwidth {
    pub(crate) fn new(now: Instant) -> Self {
        let next = Sample { number: 1, since: now, read: 0, streams: 0 };
        Self { per_second: 0, streams: 0, next }
    }

    /// So many bytes were read.
    pub(crate) fn read(&mut self, bytes: u32) {
        self.next.read += u64::from(bytes);
    }

    /// A stream gets credit back; `counted` is the number of the sample in which it was counted last.
    pub(crate) fn count(&mut self, counted: &mut u32) {
        if *counted != self.next.number {
            *counted = self.next.number;
            self.next.streams += 1;
        }
    }

    /// Takes a sample if it is time for one; less than `rtt`, the round trip of the empty line, tells nothing either.
    pub(crate) fn sample(&mut self, now: Instant, rtt: Duration) {
        let took = now.saturating_duration_since(self.next.since);
        if took < SAMPLE.max(rtt) {
            return;
        }
        let sample = u128::from(self.next.read) * 1_000_000_000 / took.as_nanos();
        let sample = u64::try_from(sample).unwrap_or(u64::MAX);
        self.per_second = sample.max(self.per_second - self.per_second / 8);
        self.streams = self.next.streams;
        self.next = Sample { number: self.next.number.wrapping_add(1), since: now, read: 0, streams: 0 };
    }

    /// Bytes that pass in this time, for each stream.
    pub(crate) fn share_within(&self, time: Duration) -> u64 {
        let bytes = u128::from(self.per_second) * time.as_nanos() / 1_000_000_000;
        let bytes = bytes / u128::from(self.streams.max(1));
        u64::try_from(bytes).unwrap_or(u64::MAX)
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
        assert_eq!(line.share_within(RTT), 0, "less than a round trip is no sample");
        line.sample(start + RTT, RTT);
        assert_eq!(line.share_within(RTT), 1_000_000);
        for turn in 2..40 {
            line.read(500_000);
            line.sample(start + RTT * turn, RTT);
            if turn == 2 {
                assert_eq!(line.share_within(RTT), 875_000);
            }
        }
        assert_eq!(line.share_within(RTT), 500_000);
        line.read(500_000);
        line.sample(start + RTT * 39 + SAMPLE / 2, SAMPLE / 10);
        assert_eq!(line.share_within(RTT), 500_000, "a burst is no sample either");
    }

    #[test]
    fn streams_share_it_while_they_are_there() {
        let start = Instant::now();
        let mut line = Bandwidth::new(start);
        let mut counted = [0; 4];
        for turn in 1..=3 {
            let busy = if turn < 3 { 4 } else { 1 };
            for _ in 0..2 {
                counted[..busy].iter_mut().for_each(|counted| line.count(counted));
            }
            line.read(400_000);
            line.sample(start + RTT * turn, RTT);
            assert_eq!(line.share_within(RTT), 400_000 / busy as u64);
        }
    }
}
