//! How much the peer may send: start windows, credit given back, windows that grow and shrink.

use std::{collections::VecDeque, time::Duration};

use anyproxy_frame::{Frame, MAX_WINDOW, MIN_WINDOW, ResetCode, StreamFrame, StreamId};

use super::Mux;
use crate::{Event, Side, schedule::KEPT, stream::Stream};

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
        if let Some(stream) = self.streams.get_mut(id).filter(|stream| stream.shortfall(target).is_some()) {
            stream.credit_due = true;
            self.credit_due.push_back(id);
        }
    }

    pub(super) fn poll_credit(&mut self) -> Option<S::Out> {
        while let Some(id) = self.credit_due.pop_front() {
            if self.credit_due.is_empty() && self.credit_due.capacity() > KEPT {
                self.credit_due = VecDeque::new();
            }
            self.tune_window(id);
            let Some(window) = self.streams.get_mut(id).map(|stream| stream.window) else { continue };
            let (target, now) = (self.shrunk(window), self.now);
            let Some(stream) = self.streams.get_mut(id) else { continue };
            stream.credit_due = false;
            if let Some(increment) = stream.shortfall(target) {
                stream.granted += increment;
                stream.granted_at = now;
                return Some(S::Out::stream(id, StreamFrame::Window(increment)));
            }
        }
        None
    }

    /// Half a window was read. If that took less than two round trips, the window is what holds the stream back, and
    /// it doubles; below the start window, where a crowd put it, it doubles in any case. Where too much is held it
    /// halves.
    fn tune_window(&mut self, id: StreamId) {
        let (now, least) = (self.now, self.liveness.least());
        let relaxed = !self.memory().is_shrinking() && self.held <= self.config.held_bytes;
        let Some(stream) = self.streams.get_mut(id) else { return };
        let (start, window) = (self.config.window, stream.window);
        if !relaxed {
            let smaller = (window / 2).max(start.min(window));
            self.grown -= u64::from(window.saturating_sub(start) - smaller.saturating_sub(start));
            stream.window = smaller;
            return;
        }
        let took = Duration::from_micros(now.wrapping_sub(stream.granted_at).into());
        if window < start || least.is_some_and(|rtt| took < 2 * rtt) {
            let doubled = window.saturating_mul(2).min(self.config.max_window);
            self.grown += grow(stream, doubled, start, self.config.growth - self.grown);
        }
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
        self.events.push_back(Event::Discarded { id });
        self.give_up_held(id);
    }
}

/// Raises a window and returns by how much it then exceeds the start window more than before; never above `budget`.
pub(super) fn grow(stream: &mut Stream, to: u32, start: u32, budget: u64) -> u64 {
    let budget = u32::try_from(budget).unwrap_or(MAX_WINDOW);
    let to = to.min(stream.window.max(start).saturating_add(budget)).max(stream.window);
    let grown = to.saturating_sub(start) - stream.window.saturating_sub(start);
    stream.window = to;
    grown.into()
}
