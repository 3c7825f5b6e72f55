use std::collections::VecDeque;

use anyproxy_frame::Frame;

use crate::schedule::KEPT;

/// Control frames on their way out, and what they cost.
#[derive(Debug)]
pub(crate) struct Control<F> {
    queue: VecDeque<F>,
    bytes: u64,
}

impl<F: Frame> Control<F> {
    pub(crate) fn new() -> Self {
        Self { queue: VecDeque::new(), bytes: 0 }
    }

    pub(crate) fn push(&mut self, frame: F) {
        self.bytes += cost(&frame);
        self.queue.push_back(frame);
    }

    pub(crate) fn pop(&mut self) -> Option<F> {
        let frame = self.queue.pop_front()?;
        self.bytes -= cost(&frame);
        if self.queue.is_empty() && self.queue.capacity() > KEPT {
            self.queue = VecDeque::new();
        }
        Some(frame)
    }

    /// Bytes waiting, with the memory around them.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::new();
    }
}

/// What a waiting frame costs: its bytes, and its place in the queue.
pub(crate) fn cost<F: Frame>(frame: &F) -> u64 {
    (frame.encoded_len() + size_of::<F>()) as u64
}
