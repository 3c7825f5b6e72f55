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
