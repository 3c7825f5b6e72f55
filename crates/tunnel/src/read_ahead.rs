use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The most that is read ahead; a socket at full speed gives that much at once.
const MAX: usize = 256 * 1024;

/// What an idle connection keeps; more than the largest TLS record, so that one record is one read.
const MIN: usize = 18 * 1024;

/// So many reads in a row that would have fitted half of the buffer give half of it back.
const SMALL_READS: u8 = 16;

/// Reads ahead between a socket and TLS.
///
/// rustls asks the kernel for one record at a time, at most 16 KiB; with this below it, one system call brings up to
/// 256 KiB. The buffer grows while reads fill it and shrinks when they no longer do, to 18 KiB; a connection that
/// has never received anything has none. Writes pass through.
#[derive(Debug)]
pub struct ReadAhead<Io> {
    io: Io,
    /// Initialised once when it is made, so that no read pays for that again.
    buffer: Box<[u8]>,
    /// What of the buffer is unread.
    start: usize,
    end: usize,
    small_reads: u8,
}

impl<Io> ReadAhead<Io> {
    /// Reads ahead on `io`.
    pub fn new(io: Io) -> Self {
        Self { io, buffer: Box::default(), start: 0, end: 0, small_reads: 0 }
    }

    /// The connection below.
    pub const fn get_ref(&self) -> &Io {
        &self.io
    }

    /// Makes the (empty) buffer larger if the latest read filled it, and smaller if many have not.
    fn adapt(&mut self) {
        let size = self.buffer.len();
        let wanted = if self.end == size {
            (size * 4).clamp(MIN, MAX)
        } else if self.small_reads >= SMALL_READS {
            (size / 2).max(MIN)
        } else {
            size
        };
        if wanted != size {
            self.buffer = vec![0; wanted].into_boxed_slice();
            self.small_reads = 0;
        }
        (self.start, self.end) = (0, 0);
    }
}

impl<Io: AsyncRead + Unpin> AsyncRead for ReadAhead<Io> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.start == this.end {
            // A pending read must leave `end` alone: it tells the next call how the latest read went.
            if this.end == this.buffer.len() || this.small_reads >= SMALL_READS {
                this.adapt();
            }
            let mut ahead = ReadBuf::new(&mut this.buffer);
            ready!(Pin::new(&mut this.io).poll_read(cx, &mut ahead))?;
            (this.start, this.end) = (0, ahead.filled().len());
            let small = this.end <= this.buffer.len() / 2 && this.buffer.len() > MIN;
            this.small_reads = if small { this.small_reads + 1 } else { 0 };
        }
        let taken = buf.remaining().min(this.end - this.start);
        buf.put_slice(&this.buffer[this.start..this.start + taken]);
        this.start += taken;
        Poll::Ready(Ok(()))
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for ReadAhead<Io> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    #[tokio::test]
    async fn bytes_come_through_in_order_and_end() {
        let (mut near, far) = duplex(1000);
        let sent: Vec<u8> = (0..1_000_000_u32).map(|i| (i % 251) as u8).collect();
        let expected = sent.clone();
        let writer = tokio::spawn(async move { near.write_all(&sent).await });
        let mut received = Vec::new();
        ReadAhead::new(far).read_to_end(&mut received).await.unwrap();
        writer.await.unwrap().unwrap();
        assert!(received == expected);
    }

    #[tokio::test]
    async fn the_buffer_grows_with_full_reads_and_shrinks_with_small_ones() {
        let (mut near, far) = duplex(1024 * 1024);
        let mut ahead = ReadAhead::new(far);
        assert_eq!(ahead.buffer.len(), 0);
        near.write_all(&vec![7; 1024 * 1024]).await.unwrap();
        ahead.read_exact(&mut vec![0; 1024 * 1024]).await.unwrap();
        assert_eq!(ahead.buffer.len(), MAX);
        for _ in 0..100 {
            near.write_all(b"x").await.unwrap();
            ahead.read_exact(&mut [0; 1]).await.unwrap();
        }
        assert_eq!(ahead.buffer.len(), MIN);
    }
}
