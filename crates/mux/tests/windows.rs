//! Windows that grow, shrink and are shared: a core behind a line of invented length and width.

mod raw;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyproxy_frame::{MAX_PAYLOAD, ResetCode, START_WINDOW, StreamFrame, StreamId, ToGateway};
use anyproxy_mux::Config;

use crate::raw::{ClientUnderTest, bytes};

#[test]
fn window_grows_while_it_holds_the_stream_back_and_keeps_to_its_budget() {
    let config = Config { max_window: 1 << 20, growth: 1 << 20, ..Config::default() };
    let mut client = ClientUnderTest::with(config);
    client.measure_rtt(Duration::from_millis(100));
    let streams = [client.accept_open(1), client.accept_open(2)];
    for _ in 0..40 {
        for stream in streams {
            client.stream(stream, StreamFrame::Data(bytes(MAX_PAYLOAD)));
            client.mux.consumed(stream, MAX_PAYLOAD as u32);
            client.transmit();
        }
        client.wait(Duration::from_millis(20));
    }
    let grown = client.mux.grown();
    assert!(
        ((1 << 20) / 3..(1 << 20) / 2).contains(&grown),
        "{grown}: each a quarter of what the other leaves"
    );
    for stream in streams {
        client.mux.reset(stream, ResetCode::Cancelled);
    }
    assert_eq!(client.mux.grown(), 0, "and back");

    let mut client = ClientUnderTest::ready();
    client.measure_rtt(Duration::from_millis(100));
    let stream = client.accept_open(1);
    for _ in 0..40 {
        client.stream(stream, StreamFrame::Data(bytes(MAX_PAYLOAD)));
        client.mux.consumed(stream, MAX_PAYLOAD as u32);
        client.transmit();
        client.wait(Duration::from_millis(200));
    }
    assert_eq!(client.mux.grown(), 0, "a slow reader needs no larger window");
}

/// A line that one frame passes at a time, and a sender who says all that it has credit for.
struct Line {
    client: ClientUnderTest,
    streams: Vec<StreamId>,
    credit: Vec<u32>,
    passed: Vec<u64>,
    queue: VecDeque<(usize, usize)>,
    /// Credit on its way back, and when it comes.
    returns: VecDeque<(Instant, usize, u32)>,
    rtt: Duration,
    per_frame: Duration,
    /// So many of the streams, the first ones, say nothing more.
    quiet: usize,
    /// Bytes that came and wait for each reader.
    held: Vec<u32>,
    /// A reader takes a frame whenever so many more have passed the line,
    pace: u32,
    frames: u32,
    /// and so often there was none.
    idle: u32,
    /// So often there was nothing for the line.
    unused: u32,
}

impl Line {
    fn new(rtt: Duration, per_frame: Duration) -> Self {
        let mut client = ClientUnderTest::ready();
        client.measure_rtt(rtt);
        let (streams, credit, passed) = (Vec::new(), Vec::new(), Vec::new());
        Self {
            client,
            streams,
            credit,
            passed,
            queue: VecDeque::new(),
            returns: VecDeque::new(),
            rtt,
            per_frame,
            quiet: 0,
            held: Vec::new(),
            pace: 1,
            frames: 0,
            idle: 0,
            unused: 0,
        }
    }

    fn join(&mut self) {
        let number = self.streams.len() as u32 + 1;
        self.streams.push(self.client.accept_open(number));
        self.credit.push(START_WINDOW);
        self.passed.push(0);
        self.held.push(0);
    }

    /// What each stream passed in this time.
    fn run(&mut self, time: Duration) -> Vec<u64> {
        let (before, until) = (self.passed.clone(), self.client.now + time);
        while self.client.now < until {
            while self.returns.front().is_some_and(|(when, ..)| *when <= self.client.now) {
                let Some((_, which, credit)) = self.returns.pop_front() else { break };
                self.credit[which] += credit;
            }
            for (which, credit) in self.credit.iter_mut().enumerate().skip(self.quiet) {
                while *credit > 0 {
                    let length = (*credit).min(MAX_PAYLOAD as u32);
                    *credit -= length;
                    self.queue.push_back((which, length as usize));
                }
            }
            self.client.wait(self.per_frame);
            if let Some((which, length)) = self.queue.pop_front() {
                self.client.stream(self.streams[which], StreamFrame::Data(bytes(length)));
                self.client.events();
                self.passed[which] += length as u64;
                self.held[which] += length as u32;
            } else {
                self.unused += 1;
            }
            self.frames += 1;
            if self.frames.is_multiple_of(self.pace) {
                self.read();
            }
            for frame in self.client.transmit() {
                let ToGateway::Stream(id, StreamFrame::Window(credit)) = frame else { panic!("{frame:?}") };
                let Some(which) = self.streams.iter().position(|stream| *stream == id) else { continue };
                self.returns.push_back((self.client.now + self.rtt, which, credit));
            }
        }
        self.passed.iter().zip(before).map(|(passed, before)| passed - before).collect()
    }

    /// What senders may have under way: their credit, what waits at the line, and what is on its way back.
    fn windows(&self) -> u64 {
        let returns = self.returns.iter().map(|(_, _, credit)| u64::from(*credit));
        let queue = self.queue.iter().map(|(_, length)| *length as u64);
        self.credit.iter().map(|credit| u64::from(*credit)).chain(returns).chain(queue).sum()
    }

    fn read(&mut self) {
        for (stream, held) in self.streams.iter().zip(&mut self.held) {
            let read = (*held).min(MAX_PAYLOAD as u32);
            *held -= read;
            self.idle += u32::from(read == 0);
            self.client.mux.consumed(*stream, read);
        }
    }
}

#[test]
fn who_came_first_does_not_stay_ahead_of_those_who_read_as_fast() {
    for rtt in [1, 20, 100].map(Duration::from_millis) {
        let (per_frame, time) = (rtt / 20, (30 * rtt).max(Duration::from_millis(200)));
        let mut line = Line::new(rtt, per_frame);
        line.join();
        line.run(time);
        let alone: u128 = line.run(time).iter().map(|passed| u128::from(*passed)).sum();
        let most = time.as_nanos() / per_frame.as_nanos() * MAX_PAYLOAD as u128;
        assert!(
            alone > most * 9 / 10,
            "{alone} of {most} at {rtt:?}: 20 frames are in flight on a full line"
        );
        for _ in 0..3 {
            line.join();
        }
        line.run(time);
        let passed = line.run(time);
        let fair = passed.iter().sum::<u64>() / 4;
        assert!(passed.iter().all(|passed| *passed > fair * 9 / 10), "{passed:?} at {rtt:?}");
    }
}

#[test]
fn streams_that_have_gone_quiet_leave_something_for_those_who_come() {
    let (rtt, per_frame, second) =
        (Duration::from_millis(50), Duration::from_micros(500), Duration::from_secs(1));
    let mut line = Line::new(rtt, per_frame);
    for quiet in 0..6 {
        line.quiet = quiet;
        line.join();
        line.run(second);
    }
    line.quiet = 6;
    line.join();
    line.run(second);
    let passed = line.run(second)[6];
    let most = (second.as_nanos() / per_frame.as_nanos()) as u64 * MAX_PAYLOAD as u64;
    assert!(passed > most / 4, "{passed} of {most} behind six who say nothing more");
}

#[test]
fn line_that_varies_is_filled_although_a_quick_answer_was_seen_once() {
    let mut line = Line::new(Duration::from_millis(80), Duration::from_millis(4));
    line.client.wait(Config::default().ping_interval);
    line.client.measure_rtt(Duration::from_millis(20));
    line.join();
    line.run(Duration::from_secs(3));
    let passed: u64 = line.run(Duration::from_secs(3)).iter().sum();
    let most = 3_000 / 4 * MAX_PAYLOAD as u64;
    assert!(passed > most * 9 / 10, "{passed} of {most}");
}

#[test]
fn many_streams_on_a_long_line_have_its_windows_among_them() {
    let (rtt, per_frame) = (Duration::from_millis(100), Duration::from_millis(1));
    let mut line = Line::new(rtt, per_frame);
    for _ in 0..16 {
        line.join();
        line.run(Duration::from_millis(37));
    }
    line.run(Duration::from_secs(6));
    let delay_times_bandwidth = 100 * MAX_PAYLOAD as u64;
    let grown = line.client.mux.grown();
    assert!(grown < 3 * delay_times_bandwidth, "{grown} of {delay_times_bandwidth} that are under way");
    line.join();
    line.run(Duration::from_secs(3));
    let passed = line.run(Duration::from_secs(3));
    let fair = passed.iter().sum::<u64>() / 17;
    assert!(passed.iter().all(|passed| *passed > fair * 8 / 10), "{passed:?}");
}

#[test]
fn reader_slower_than_the_line_is_never_left_without() {
    let mut line = Line::new(Duration::from_millis(100), Duration::from_micros(500));
    line.pace = 2;
    line.join();
    line.run(Duration::from_secs(5));
    line.idle = 0;
    line.run(Duration::from_secs(5));
    assert!(line.idle < 100, "{} of 5,000 ticks without a byte to read", line.idle);
}

#[test]
fn window_that_the_line_does_not_need_is_given_back() {
    let mut line = Line::new(Duration::from_millis(2), Duration::from_micros(100));
    line.join();
    line.run(Duration::from_millis(200));
    let alone = line.client.mux.grown();
    assert!(alone > 0, "20 frames of 64 KiB are in flight");
    for _ in 0..15 {
        line.join();
    }
    line.run(Duration::from_secs(1));
    assert_eq!(line.client.mux.grown(), 0, "a 16th of what fills the line is less than a start window");
}

#[test]
fn crowd_on_a_short_line_has_less_than_start_windows_and_the_line_is_full() {
    let per_frame = Duration::from_micros(50);
    let mut line = Line::new(Duration::from_micros(100), per_frame);
    (0..16).for_each(|_| line.join());
    line.run(Duration::from_millis(500));
    let time = Duration::from_millis(200);
    let passed: u64 = line.run(time).iter().sum();
    assert_eq!(passed, (time.as_nanos() / per_frame.as_nanos()) as u64 * MAX_PAYLOAD as u64);
    assert!(line.windows() <= 16 * 2 * MAX_PAYLOAD as u64, "{}: two frames each", line.windows());
}

#[test]
fn tunnel_that_was_silent_starts_as_fast_as_a_new_one() {
    let start = |silence| {
        let mut line = Line::new(Duration::from_millis(100), Duration::from_millis(1));
        line.client.wait(silence);
        line.join();
        line.run(Duration::from_millis(600)).iter().sum::<u64>()
    };
    let (new, old) = (start(Duration::ZERO), start(Duration::from_secs(15)));
    assert!(old >= new, "{old} bytes in six round trips, and {new}");
}

#[test]
fn one_stream_on_a_short_line_has_what_both_ends_need_to_be_at_work() {
    let mut line = Line::new(Duration::from_micros(100), Duration::from_micros(50));
    line.join();
    line.run(Duration::from_millis(500));
    // What was read and is not half a window yet is on neither side.
    let window = 3 * 250 / 50 * MAX_PAYLOAD as u64;
    assert!((window / 2..=window).contains(&line.windows()), "{} of {window}", line.windows());
}

#[test]
fn a_few_streams_on_a_short_line_need_less_than_one_of_them_for_each_turn() {
    let per_frame = Duration::from_micros(50);
    for streams in 2..=4 {
        let mut line = Line::new(Duration::from_micros(100), per_frame);
        (0..streams).for_each(|_| line.join());
        line.run(Duration::from_millis(500));
        line.unused = 0;
        let windows = (0..2000).map(|_| {
            line.run(per_frame);
            line.windows()
        });
        let (most, limit) = (windows.max().unwrap(), (2 * 250 + 250 / streams) * MAX_PAYLOAD as u64 / 50);
        assert!((limit / 2..=limit).contains(&most), "{most} of {limit}");
        assert_eq!(line.unused, 0);
    }
}

#[test]
fn reader_who_is_always_behind_gets_no_larger_window() {
    let mut client = ClientUnderTest::ready();
    client.measure_rtt(Duration::from_millis(100));
    let (fast, slow) = (client.accept_open(1), client.accept_open(2));
    let mut credit = START_WINDOW;
    for round in 0..200 {
        client.wait(Duration::from_millis(10));
        for _ in 0..4 {
            client.stream(fast, StreamFrame::Data(bytes(MAX_PAYLOAD)));
            client.mux.consumed(fast, MAX_PAYLOAD as u32);
        }
        if credit > 0 {
            client.stream(slow, StreamFrame::Data(bytes(credit as usize)));
        }
        credit = 0;
        client.mux.consumed(slow, 32 * 1024);
        for frame in client.transmit() {
            match frame {
                ToGateway::Stream(id, StreamFrame::Window(more)) if id == slow => {
                    assert!(round < 20 || more <= START_WINDOW / 2, "{more} at {round}");
                    credit += more;
                }
                _ => {}
            }
        }
        client.events();
    }
    assert!(client.mux.grown() > 0, "the other one got its part");
    client.mux.reset(fast, ResetCode::Cancelled);
    assert_eq!(client.mux.grown(), 0);
}
