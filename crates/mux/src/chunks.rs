use std::{collections::VecDeque, io::IoSlice, mem};

use anyproxy_frame::COPIED_BELOW;
use bytes::{Buf, Bytes, BytesMut};

/// What is left of a piece and shorter than this is worth a copy if it has to wait: pieces are up to 128 KiB long.
const SETTLED_BELOW: usize = 16 * 1024;

/// The smallest block that short pieces are joined in, and the largest.
const BLOCK: (usize, usize) = (512, 2 * COPIED_BELOW);

/// A queue of bytes that costs about what it holds, and one pointer when it is empty: a stream has four of them at each
/// end, and most streams are idle.
///
/// Pieces of [`COPIED_BELOW`] bytes or more stay the slices they are. Shorter ones that have to wait behind others are
/// joined in blocks, so that a peer who sends single bytes to somebody who does not read costs single bytes.
#[derive(Debug, Default)]
pub struct Chunks(Option<Box<Queue>>);

/// What waits: a piece, others, then the block that grows.
#[derive(Debug, Default)]
struct Queue {
    /// Never empty.
    head: Bytes,
    pieces: VecDeque<Bytes>,
    block: BytesMut,
    len: usize,
}

impl Chunks {
    /// An empty queue.
    pub const fn new() -> Self {
        Self(None)
    }

    /// How many bytes wait.
    pub fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |queue| queue.len)
    }

    /// Whether none do.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Appends a piece whose memory is its own.
    pub fn push(&mut self, data: Bytes) {
        match &mut self.0 {
            _ if data.is_empty() => {}
            Some(queue) => queue.push(data),
            None => self.0 = Some(Box::new(Queue { len: data.len(), head: data, ..Queue::default() })),
        }
    }

    /// Appends a slice of a received message. A short one is copied even where it need not wait behind others, for
    /// it would keep the whole message alive.
    pub fn push_received(&mut self, data: Bytes) {
        if data.len() < COPIED_BELOW && self.is_empty() {
            self.push(Bytes::copy_from_slice(&data));
        } else {
            self.push(data);
        }
    }

    /// Appends all that waits in `other`.
    pub fn append(&mut self, mut other: Self) {
        if self.is_empty() {
            *self = other;
        } else {
            while !other.is_empty() {
                self.push(other.pop(usize::MAX));
            }
        }
    }

    /// Takes the first piece, or as much of it as `max` allows; empty only if the queue is.
    pub fn pop(&mut self, max: usize) -> Bytes {
        let Some(queue) = &mut self.0 else { return Bytes::new() };
        if queue.head.len() > max {
            queue.len -= max;
            return queue.head.split_to(max);
        }
        let next = queue.next();
        let head = mem::replace(&mut queue.head, next);
        queue.len -= head.len();
        if queue.len == 0 {
            self.0 = None;
        }
        head
    }
}

impl Chunks {
    /// What is here will wait: the rest of a piece must not keep the whole piece's memory meanwhile, which is counted by
    /// what waits.
    pub(crate) fn settle(&mut self) {
        if let Some(queue) = &mut self.0
            && queue.head.len() < SETTLED_BELOW
        {
            queue.head = Bytes::copy_from_slice(&queue.head);
        }
    }
}

impl From<Bytes> for Chunks {
    fn from(data: Bytes) -> Self {
        let mut chunks = Self::new();
        chunks.push(data);
        chunks
    }
}

impl Queue {
    fn push(&mut self, data: Bytes) {
        self.len += data.len();
        if data.len() >= COPIED_BELOW {
            self.close_block();
            self.pieces.push_back(data);
            return;
        }
        if self.block.capacity() - self.block.len() < data.len() {
            self.close_block();
            // Four times what came: the block is of the size of the traffic, so a half-empty one is no great loss.
            self.block = BytesMut::with_capacity((4 * data.len()).clamp(BLOCK.0, BLOCK.1));
        }
        self.block.extend_from_slice(&data);
    }

    /// Takes the piece behind the head; empty if there is none.
    fn next(&mut self) -> Bytes {
        self.pieces.pop_front().unwrap_or_else(|| self.block.split().freeze())
    }

    fn close_block(&mut self) {
        if !self.block.is_empty() {
            self.pieces.push_back(self.block.split().freeze());
        }
    }
}

/// Reading without taking pieces out; `chunks_vectored` shows several for one write.
impl Buf for Chunks {
    fn remaining(&self) -> usize {
        self.len()
    }

    fn chunk(&self) -> &[u8] {
        self.0.as_ref().map_or(&[], |queue| &queue.head)
    }

    fn chunks_vectored<'a>(&'a self, dst: &mut [IoSlice<'a>]) -> usize {
        let Some(queue) = &self.0 else { return 0 };
        let pieces = [&queue.head].into_iter().chain(&queue.pieces).map(|piece| &piece[..]);
        let all = pieces.chain([&queue.block[..]]).filter(|piece| !piece.is_empty());
        let mut filled = 0;
        for (slice, piece) in dst.iter_mut().zip(all) {
            *slice = IoSlice::new(piece);
            filled += 1;
        }
        filled
    }

    fn advance(&mut self, mut count: usize) {
        assert!(count <= self.len(), "advance by {count} with {} left", self.len());
        while count > 0 {
            count -= self.pop(count).len();
        }
    }

    fn copy_to_bytes(&mut self, len: usize) -> Bytes {
        if len <= self.chunk().len() {
            return self.pop(len);
        }
        let mut bytes = BytesMut::with_capacity(len);
        while bytes.len() < len {
            bytes.extend_from_slice(&self.pop(len - bytes.len()));
        }
        bytes.freeze()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn emptied_queue_keeps_no_memory() {
        assert_eq!(size_of::<Chunks>(), size_of::<usize>());
        let mut chunks = Chunks::new();
        (0..100).for_each(|_| chunks.push(Bytes::from_static(b"hello")));
        chunks.advance(500);
        assert!(chunks.0.is_none());
        chunks.push(Bytes::from_static(b"hello"));
        assert_eq!(chunks.pop(usize::MAX), "hello");
        assert!(chunks.0.is_none());
    }

    #[test]
    fn empty_pieces_are_no_pieces() {
        let mut chunks = Chunks::from(Bytes::new());
        assert!(chunks.is_empty());
        chunks.append(Chunks::from(Bytes::from_static(b"hello")));
        chunks.push(Bytes::new());
        chunks.append(Chunks::new());
        assert_eq!(chunks.copy_to_bytes(5), "hello");
        assert!(chunks.is_empty());
    }

    #[test]
    fn waiting_single_bytes_cost_single_bytes() {
        let mut chunks = Chunks::new();
        (0..256 * 1024).for_each(|_| chunks.push_received(Bytes::from_static(b"x")));
        let blocks = chunks.0.unwrap().pieces.len() + 1;
        assert!(blocks <= 256 * 1024 / BLOCK.0 + 1, "{blocks} blocks");
    }

    #[test]
    fn received_slice_that_is_short_does_not_keep_its_message() {
        let message = Bytes::from(vec![0; 100_000]);
        let mut chunks = Chunks::new();
        chunks.push_received(message.slice(..10));
        assert!(message.is_unique());
    }

    #[test]
    fn rest_that_waits_does_not_keep_its_piece() {
        let piece = Bytes::from(vec![7; 100_000]);
        let mut chunks = Chunks::from(piece.clone());
        drop(chunks.pop(100_000 - SETTLED_BELOW));
        chunks.settle();
        assert!(!piece.is_unique(), "worth more than a copy");
        drop(chunks.pop(SETTLED_BELOW - 1));
        chunks.settle();
        assert!(piece.is_unique());
        assert_eq!(chunks.pop(usize::MAX), [7][..]);
    }

    #[test]
    fn long_slice_stays_the_slice_it_is() {
        let message = Bytes::from(vec![7; 100_000]);
        let mut chunks = Chunks::new();
        chunks.push_received(message.clone());
        assert_eq!(chunks.chunk().as_ptr(), message.as_ptr());
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(operations in prop::collection::vec((0u8..5, 0usize..6000), 1..60)) {
            let mut chunks = Chunks::new();
            let mut model = VecDeque::new();
            let mut next = 0u8;
            for (operation, size) in operations {
                match operation {
                    0..=2 => {
                        let data: Vec<u8> = (0..size).map(|_| { next = next.wrapping_add(1); next }).collect();
                        model.extend(&data);
                        match operation {
                            0 => chunks.push(data.into()),
                            1 => chunks.push_received(data.into()),
                            _ => chunks.append(Bytes::from(data).into()),
                        }
                    }
                    3 => {
                        let taken = chunks.pop(size.max(1));
                        let expected: Vec<u8> = model.drain(..taken.len()).collect();
                        prop_assert_eq!(taken, expected);
                    }
                    _ => {
                        let size = size.min(chunks.len());
                        let mut slices = [IoSlice::new(&[]); 64];
                        let filled = chunks.chunks_vectored(&mut slices);
                        let seen: Vec<u8> = slices[..filled].iter().flat_map(|s| s.to_vec()).collect();
                        prop_assert!(model.iter().take(seen.len()).eq(&seen));
                        chunks.advance(size);
                        model.drain(..size);
                    }
                }
                prop_assert_eq!(chunks.len(), model.len());
                prop_assert_eq!(chunks.is_empty(), chunks.chunk().is_empty());
            }
        }
    }
}
