//! How much the peer may send: start windows, credit given back, windows that grow and shrink.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use anyproxy_frame::{Frame, MAX_PAYLOAD, MAX_WINDOW, MIN_WINDOW, ResetCode, StreamFrame, StreamId};

use super::Mux;
use crate::{Event, Side, schedule::KEPT, stream::Stream};

/// A reader that took half a window so often without having read all there was, two windows long, is slow.
const SLOW: u8 = 4;

/// What a round trip takes at least where both ends are at work: both must be given their turns. It is what decides on a
/// line within one machine or room. With less a single stream waits for credit; with more its bytes have left the
/// cache when they are encrypted, which costs more than waiting does, and keystrokes wait behind them.
const LEAST_RTT: Duration = Duration::from_micros(250);

/// A stream may have this part of what is left for growing. One that has gone quiet keeps what it has, since credit
/// cannot be taken back: so those who come later always find something.
const PART_OF_LEFT: u64 = 4;

/// What a busy stream has at least, where streams do not start with less: two full frames, so that one is under way while
/// the other is read.
const LEAST_SHARE: u32 = 2 * MAX_PAYLOAD as u32;

impl<S: Side> Mux<S> {
    /// The credit a new stream, which is in the table already, starts with: less when there is a crowd, or much is
    /// held.
    pub(crate) fn start_window(&self) -> u32 {
        let share = self.held_limit() / (self.streams.len() as u64).max(1);
        let share = u32::try_from(share).unwrap_or(u32::MAX);
        self.shrunk(self.config.window.min(share).max(MIN_WINDOW))
    }

    /// Bytes held for readers beyond which the streams that hold most are reset. Where the process holds more than it
    /// may, a tunnel has an equal part of that and no more.
    pub(super) fn held_limit(&self) -> u64 {
        let limit = self.config.held_limit;
        let memory = self.memory();
        if memory.is_exceeded() { limit.min(memory.equal_part()) } else { limit }
    }

    /// What is left of a window where much is held: all of it until `held_bytes` are, [`MIN_WINDOW`] at `held_limit`,
    /// and in proportion between them; and no more than the process's memory allows.
    fn shrunk(&self, window: u32) -> u32 {
        let window = self.memory().shrunk(window, MIN_WINDOW);
        let (soft, hard) = (self.config.held_bytes, self.config.held_limit);
        if self.held >= hard {
            return window.min(MIN_WINDOW);
        }
        if self.held <= soft {
            return window;
        }
        let left = u64::from(window).saturating_mul(hard - self.held) / (hard - soft);
        window.min(MIN_WINDOW.max(left as u32))
    }

    /// Puts a stream in line for credit if it is worth a frame.
    pub(super) fn check_credit(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(id) else { return };
        let (window, waits) =
            (stream.window, stream.credit_due || stream.unanswered || stream.is_datagrams());
        if waits {
            return;
        }
        let target = self.shrunk(window);
        let due = |stream: &&mut Stream| stream.shortfall(target, target / 2).is_some();
        if let Some(stream) = self.streams.get_mut(id).filter(due) {
            stream.credit_due = true;
            self.credit_due.push_back(id);
        }
    }

    pub(super) fn poll_credit(&mut self, now: Instant) -> Option<S::Out> {
        while let Some(id) = self.credit_due.pop_front() {
            if self.credit_due.is_empty() && self.credit_due.capacity() > KEPT {
                self.credit_due = VecDeque::new();
            }
            self.tune_window(now, id);
            let Some(window) = self.streams.get_mut(id).map(|stream| stream.window) else { continue };
            let target = self.shrunk(window);
            let Some(stream) = self.streams.get_mut(id) else { continue };
            stream.credit_due = false;
            // Half of the window it had was read; of the one it has now it may be less.
            if let Some(increment) = stream.shortfall(target, target / 4) {
                stream.granted += increment;
                return Some(S::Out::stream(id, StreamFrame::Window(increment)));
            }
        }
        None
    }

    /// Half a window was read, and its size is looked at: a stream whose reader keeps up gets its
    /// [share](Self::share_of_line) of what fills the line, whichever window it had. So those that are read alike have
    /// alike, and nobody who came first stays ahead, as long as the budget for growing lasts.
    ///
    /// It grows only if all that had come was read meanwhile. Where that has not happened for long, the reader is what
    /// holds the stream back, and it goes back towards the least share: by eighths, and as long as an eighth is here to
    /// be read, so that credit goes on and the reader is never left without. Where too much is held in all it halves.
    /// Below that, where a crowd put it, it doubles.
    fn tune_window(&mut self, now: Instant, id: StreamId) {
        let full = self.share_of_line(now);
        let relaxed = !self.memory().is_shrinking() && self.held <= self.config.held_bytes;
        let least = self.least_share();
        let Some(stream) = self.streams.get_mut(id) else { return };
        self.bandwidth.count(&mut stream.counted);
        stream.behind = stream.behind.saturating_add(1);
        let (start, window) = (self.config.window, stream.window);
        let floor = least.min(window);
        let wanted = if !relaxed {
            floor.max(window / 2)
        } else if stream.behind > SLOW && stream.held > window / 8 {
            floor.max(window - window / 8)
        } else if window < least {
            least.min(window.saturating_mul(2))
        } else if stream.behind > 1 {
            window.min(full)
        } else {
            full
        };
        // What is out already counts as grown until it has come in.
        let out = stream.committed().min(window);
        self.grown -= stream.grown(start);
        let left = u32::try_from((self.config.growth - self.grown) / PART_OF_LEFT).unwrap_or(MAX_WINDOW);
        stream.window = wanted.min(start.saturating_add(left)).max(out);
        self.grown += stream.grown(start);
    }

    /// The window with which the streams that are busy fill the line together: three times what it carries in a round
    /// trip, divided among them, and at least [`LEAST_SHARE`]. Credit comes back by half windows, so twice is what it
    /// takes when nothing is ever late, and with three times a line of any speed is found in a few samples. What is
    /// beyond that only stands in queues, where keystrokes wait behind it.
    ///
    /// Where turns decide, it is late by a turn. That is a third of it all for one stream; of several the half windows come
    /// back at different times, so while one waits the others send, and a turn of one of them is enough.
    // Once for each half window: what every frame passes stays small without it.
    #[inline(never)]
    fn share_of_line(&mut self, now: Instant) -> u32 {
        let (Some(usual), Some(least)) = (self.liveness.smoothed(), self.liveness.least()) else {
            return self.config.window;
        };
        // The least alone would starve a line whose round trips vary; the usual one alone would grow with the queues
        // that windows make.
        let rtt = usual.min(4 * least);
        self.bandwidth.sample(now, rtt.max(LEAST_RTT));
        let turns = 2 * LEAST_RTT + LEAST_RTT / self.bandwidth.streams();
        let Some(share) = self.bandwidth.share_within(turns.max(3 * rtt)) else { return self.config.window };
        u32::try_from(share).unwrap_or(u32::MAX).clamp(self.least_share(), self.config.max_window)
    }

    fn least_share(&self) -> u32 {
        LEAST_SHARE.min(self.config.window)
    }

    /// Too much is held for readers, although windows have shrunk: what the largest hold is given up, until an eighth
    /// of the limit is free again. Only what was granted before can lead here.
    ///
    /// A crowd of small holders is left alone, and is looked at again only when it has grown by an eighth of the
    /// limit: the peer must not be able to make every frame cost a look at all streams.
    pub(super) fn relieve(&mut self) {
        let limit = self.held_limit();
        let eighth = limit / 8;
        let holders = self.streams.iter().filter(|(_, stream)| stream.held > MIN_WINDOW);
        let mut holders: Vec<_> = holders.map(|(id, stream)| (stream.held, id)).collect();
        holders.sort_unstable_by(|a, b| b.cmp(a));
        for (_, id) in holders {
            if self.held <= limit - eighth {
                break;
            }
            self.discard(id);
        }
        self.unrelieved = self.held;
    }

    /// Gives up what is held for a stream's reader, and the stream.
    fn discard(&mut self, id: StreamId) {
        if self.streams.get_mut(id).is_some_and(|stream| !stream.is_over()) {
            self.abort(id, ResetCode::Limit);
        }
        self.events.push_back(Event::Discarded { id, held: self.held_for(id) });
        self.give_up_held(id);
    }
}
