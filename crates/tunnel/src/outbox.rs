use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use anyproxy_mux::Chunks;
use anyproxy_mux::frame::COPIED_BELOW;
use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::AsyncWrite;

/// Pieces that are written at once.
const SLICES: usize = 64;

/// Frames that were not written yet: what is short in one block, what is long as the pieces it came in, so that it is copied
/// where it is encrypted and nowhere else.
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
    pub(crate) fn push(&mut self, piece: Bytes) {
        if piece.len() < COPIED_BELOW {
            self.block.extend_from_slice(&piece);
        } else {
            self.close_block();
            self.pieces.push(piece);
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
    use std::future::poll_fn;
    use std::io::Cursor;

    use tokio::io::{AsyncReadExt as _, duplex};

    use super::*;

    #[tokio::test]
    async fn all_leaves_in_order_however_little_is_taken_at_once() {
        for narrow in [1, 7, 5_000, 100_000] {
            let (mut near, mut far) = duplex(narrow);
            let received = tokio::spawn(async move {
                let mut received = Vec::new();
                far.read_to_end(&mut received).await.map(|_| received)
            });
            let (mut outbox, mut expected, mut written) = (Outbox::default(), Vec::new(), 0);
            let lengths = [3, COPIED_BELOW, 10, 2 * COPIED_BELOW, 1, 0, COPIED_BELOW];
            for (number, length) in lengths.into_iter().enumerate() {
                let piece = Bytes::from(vec![number as u8; length]);
                outbox.block().extend_from_slice(b"head");
                outbox.push(piece.clone());
                expected.extend_from_slice(b"head");
                expected.extend_from_slice(&piece);
                // Between the pieces too, so that blocks are appended to what was cut.
                written += poll_fn(|cx| outbox.poll_write(cx, &mut near)).await.unwrap();
                assert_eq!(written + outbox.len(), expected.len());
            }
            while outbox.len() > 0 {
                poll_fn(|cx| outbox.poll_write(cx, &mut near)).await.unwrap();
            }
            drop(near);
            assert!(received.await.unwrap().unwrap() == expected, "{narrow} at once");
        }
    }

    #[test]
    fn long_piece_is_not_copied() {
        let piece = Bytes::from(vec![7; COPIED_BELOW]);
        let mut outbox = Outbox::default();
        outbox.push(piece.clone());
        assert_eq!(outbox.pieces.chunk().as_ptr(), piece.as_ptr());
    }

    #[tokio::test]
    async fn connection_that_takes_nothing_has_failed() {
        let mut outbox = Outbox::default();
        outbox.block().extend_from_slice(b"head");
        let mut full = Cursor::new(&mut [][..]);
        let error = poll_fn(|cx| outbox.poll_write(cx, &mut full)).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WriteZero);
    }
}
