use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use anyproxy_mux::Chunks;
use anyproxy_mux::frame::COPIED_BELOW;
use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::AsyncWrite;

/// Pieces that are written at once.
const SLICES: usize = 64;

/// Frames that were not written yet: what is short or masked in one block, what is long as the pieces it came in, so that
/// it is copied where it is encrypted and nowhere else.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    pieces: Chunks,
    /// Comes behind the pieces.
    block: BytesMut,
}

impl Outbox {
    /// How many bytes wait.
    pub(crate) fn len(&self) -> usize {
        self.pieces.len() + self.block.len()
    }

    /// The end of what waits, to append to.
    pub(crate) const fn block(&mut self) -> &mut BytesMut {
        &mut self.block
    }

    /// Appends a piece, without a copy if it is long.
    pub(crate) fn push(&mut self, piece: &Bytes) {
        if piece.len() < COPIED_BELOW {
            self.block.extend_from_slice(piece);
        } else {
            self.close_block();
            self.pieces.push(piece.clone());
        }
    }

    /// Writes some of what waits, at least a byte of which there is.
    pub(crate) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        mut io: impl AsyncWrite + Unpin,
    ) -> Poll<io::Result<usize>> {
        let io = Pin::new(&mut io);
        let written = if self.pieces.is_empty() {
            let written = ready!(io.poll_write(cx, &self.block))?;
            self.block.advance(written);
            written
        } else {
            self.close_block();
            let mut slices = [IoSlice::new(&[]); SLICES];
            let filled = self.pieces.chunks_vectored(&mut slices);
            let written = ready!(io.poll_write_vectored(cx, &slices[..filled]))?;
            self.pieces.advance(written);
            written
        };
        Poll::Ready(if written == 0 { Err(io::ErrorKind::WriteZero.into()) } else { Ok(written) })
    }

    /// Gives back the memory that large messages needed, once it is empty, if the usual ones are of `usual` bytes.
    pub(crate) fn shrink(&mut self, usual: usize) {
        if self.block.capacity() / 8 > usual {
            self.block = BytesMut::new();
        }
    }

    fn close_block(&mut self) {
        if !self.block.is_empty() {
            self.pieces.push(self.block.split().freeze());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    /// Takes so many bytes a call and no more.
    struct Narrow(usize, Vec<u8>);

    impl AsyncWrite for Narrow {
        fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            self.poll_write_vectored(cx, &[IoSlice::new(buf)])
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            _cx: &mut Context<'_>,
            bufs: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let before = self.1.len();
            let taken: Vec<u8> = bufs.iter().flat_map(|buf| buf.iter().copied()).take(self.0).collect();
            self.1.extend(taken);
            Poll::Ready(Ok(self.1.len() - before))
        }

        fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[test]
    fn all_leaves_in_order_however_little_is_taken_at_once() {
        let mut cx = Context::from_waker(Waker::noop());
        for narrow in [1, 7, 5_000, 100_000] {
            let (mut outbox, mut expected) = (Outbox::default(), Vec::new());
            let mut io = Narrow(narrow, Vec::new());
            for (number, length) in
                [3, COPIED_BELOW, 10, 2 * COPIED_BELOW, 1, 0, COPIED_BELOW].into_iter().enumerate()
            {
                let piece = Bytes::from(vec![number as u8; length]);
                outbox.block().extend_from_slice(b"head");
                outbox.push(&piece);
                expected.extend_from_slice(b"head");
                expected.extend_from_slice(&piece);
                // Between the pieces too, so that blocks are appended to what was cut.
                assert!(outbox.poll_write(&mut cx, &mut io).is_ready());
                assert_eq!(io.1.len() + outbox.len(), expected.len());
            }
            while outbox.len() > 0 {
                assert!(outbox.poll_write(&mut cx, &mut io).is_ready());
            }
            assert!(io.1 == expected, "{narrow} at once");
        }
    }

    #[test]
    fn long_piece_is_not_copied() {
        let piece = Bytes::from(vec![7; COPIED_BELOW]);
        let mut outbox = Outbox::default();
        outbox.push(&piece);
        assert_eq!(outbox.pieces.chunk().as_ptr(), piece.as_ptr());
    }

    #[test]
    fn connection_that_takes_nothing_has_failed() {
        let mut outbox = Outbox::default();
        outbox.block().extend_from_slice(b"head");
        let written = outbox.poll_write(&mut Context::from_waker(Waker::noop()), Narrow(0, Vec::new()));
        assert!(matches!(written, Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::WriteZero));
    }
}
