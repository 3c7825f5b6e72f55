use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The most that is read at once; a socket at full speed gives that much.
const MAX: usize = 256 * 1024;

/// What an idle connection keeps. The longest records are longer, and make it grow.
const MIN: usize = 4 * 1024;

/// So many times in a row that would have fitted half of the buffer make it smaller.
const SMALL: u8 = 16;

/// Sealed bytes on their way between a socket and the record layer.
///
/// It is empty until first used, grows while it is filled, and shrinks once sixteen uses in a row needed less than half: to half,
/// or to 4 KiB if that was enough for the latest of them.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    /// Initialised once when it grows, so that no use pays for that again.
    bytes: Vec<u8>,
    /// What of them waits.
    start: usize,
    end: usize,
    /// So many uses in a row needed less than half.
    small: u8,
    /// The latest read filled it.
    full: bool,
    /// How much the latest use needed.
    latest: usize,
}

impl Buffer {
    pub(crate) fn filled(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    pub(crate) fn filled_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.end]
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Takes bytes off the front.
    pub(crate) fn consume(&mut self, length: usize) {
        self.start += length;
        debug_assert!(self.start <= self.end);
    }

    /// Lets `make` put bytes behind those that wait, in a place of `room`; it says how many it has put there.
    pub(crate) fn append<E>(
        &mut self,
        room: usize,
        make: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<(), E> {
        self.make_room(room);
        self.end += make(&mut self.bytes[self.end..][..room])?;
        Ok(())
    }

    /// Makes room for `room` bytes in a buffer that holds nothing, and gives memory back that it has not needed for a while.
    pub(crate) fn prepare(&mut self, room: usize) {
        debug_assert!(self.is_empty());
        self.used(room);
        if self.small >= SMALL {
            self.resize(self.least(room));
        }
        self.make_room(room);
    }

    /// Reads what there is behind the bytes that wait. Nothing read is the end.
    pub(crate) fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut (impl AsyncRead + Unpin),
    ) -> Poll<io::Result<usize>> {
        // A read that is pending leaves both alone: they tell the next call how the latest went.
        if self.full || self.bytes.is_empty() {
            self.resize((self.bytes.len() * 4).clamp(MIN, MAX));
        } else if self.small >= SMALL {
            // What waits is part of the latest, and something must fit behind it.
            self.resize(self.least(self.latest + 1));
        } else {
            self.compact();
        }
        let mut spare = ReadBuf::new(&mut self.bytes[self.end..]);
        ready!(Pin::new(io).poll_read(cx, &mut spare))?;
        let (read, left) = (spare.filled().len(), spare.remaining());
        self.end += read;
        self.full = left == 0;
        self.used(self.end);
        Poll::Ready(Ok(read))
    }

    /// Writes all of it.
    pub(crate) fn poll_drain(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut (impl AsyncWrite + Unpin),
    ) -> Poll<io::Result<()>> {
        while !self.is_empty() {
            match ready!(Pin::new(&mut *io).poll_write(cx, self.filled()))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.consume(written),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// What it shrinks to where `length` was needed: half of what it is, or the least at once.
    fn least(&self, length: usize) -> usize {
        if length <= MIN { MIN } else { (self.bytes.len() / 2).max(MIN).max(length) }
    }

    const fn used(&mut self, length: usize) {
        self.latest = length;
        let small = length <= self.bytes.len() / 2 && self.bytes.len() > MIN;
        self.small = if small { self.small.saturating_add(1) } else { 0 };
    }

    /// Moves what waits to the front.
    fn compact(&mut self) {
        self.bytes.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
    }

    fn make_room(&mut self, room: usize) {
        if self.bytes.len() - self.end < room {
            self.compact();
        }
        if self.bytes.len() - self.end < room {
            self.resize((self.end + room).next_multiple_of(MIN));
        }
    }

    /// Takes memory of `size`, or as much as what waits needs.
    fn resize(&mut self, size: usize) {
        let waiting = self.end - self.start;
        let size = size.max(waiting);
        if size != self.bytes.len() {
            let mut bytes = vec![0; size];
            bytes[..waiting].copy_from_slice(self.filled());
            (self.bytes, self.start, self.end) = (bytes, 0, waiting);
        } else {
            self.compact();
        }
        (self.small, self.full) = (0, false);
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    #[tokio::test]
    async fn it_grows_with_full_reads_and_shrinks_with_small_ones() {
        let (mut near, mut far) = duplex(1024 * 1024);
        let mut buffer = Buffer::default();
        assert_eq!(buffer.bytes.len(), 0);
        near.write_all(&vec![7; 1024 * 1024]).await.unwrap();
        let mut left = 1024 * 1024;
        while left > 0 {
            left -= poll_fn(|cx| buffer.poll_fill(cx, &mut far)).await.unwrap();
            // The beginning of a record stays.
            buffer.consume(buffer.filled().len() - 5);
            assert_eq!(buffer.filled(), [7; 5]);
        }
        assert_eq!(buffer.bytes.len(), MAX);
        for _ in 0..=SMALL {
            near.write_all(b"x").await.unwrap();
            poll_fn(|cx| buffer.poll_fill(cx, &mut far)).await.unwrap();
            assert_eq!(buffer.filled(), b"\x07\x07\x07\x07\x07x");
            buffer.consume(1);
            buffer.filled_mut().fill(7);
        }
        assert_eq!(buffer.bytes.len(), MIN);
    }

    #[tokio::test]
    async fn what_is_written_needs_as_much_as_the_latest_writes() {
        let (mut near, mut far) = duplex(1024 * 1024);
        let mut buffer = Buffer::default();
        let sizes = [100_000].into_iter().chain([100; 1 + SMALL as usize]);
        for size in sizes {
            buffer.prepare(size);
            let room = buffer.bytes.len();
            buffer.append(size, |out| Ok::<_, io::Error>(out.len())).unwrap();
            assert_eq!(buffer.bytes.len(), room, "prepared for it");
            // Said behind what waits, where there is no room left.
            buffer.append(3, |out| Ok::<_, io::Error>(out.len())).unwrap();
            poll_fn(|cx| buffer.poll_drain(cx, &mut near)).await.unwrap();
            far.read_exact(&mut vec![0; size + 3]).await.unwrap();
        }
        assert_eq!(buffer.bytes.len(), MIN);
    }

    #[tokio::test]
    async fn what_waits_never_fills_a_smaller_buffer() {
        let (mut near, mut far) = duplex(MAX);
        let mut buffer = Buffer::default();
        near.write_all(&[7; 4 * MIN]).await.unwrap();
        while buffer.filled().len() < 4 * MIN {
            poll_fn(|cx| buffer.poll_fill(cx, &mut far)).await.unwrap();
        }
        buffer.consume(4 * MIN);
        // The first part of a record, and then byte by byte as much as the least buffer holds.
        near.write_all(&vec![7; MIN - usize::from(SMALL) + 1]).await.unwrap();
        poll_fn(|cx| buffer.poll_fill(cx, &mut far)).await.unwrap();
        for _ in 0..SMALL {
            near.write_all(b"x").await.unwrap();
            assert_eq!(poll_fn(|cx| buffer.poll_fill(cx, &mut far)).await.unwrap(), 1, "no end");
        }
        assert_eq!(buffer.filled().len(), MIN + 1);
    }
}
