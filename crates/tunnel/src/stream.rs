use std::fmt;
use std::io::{self, IoSlice};
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use anyproxy_core::{MAX_DATAGRAM, StreamRef, share};
use anyproxy_mux::Chunks;
use anyproxy_mux::frame::{ResetCode, StreamId};
use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncBufRead, AsyncRead, AsyncWrite, ReadBuf};

use crate::cell::Cell;
use crate::shared::Shared;

/// Read bytes of a stream that the driver should hear of, though the reader has more chunks in hand.
const REPORT: u32 = 64 * 1024;

/// One stream of a tunnel, at either end.
///
/// `shutdown` is a fin, and ready when everything written has left; an unfinished stream that is dropped is a reset; a
/// peer's reset, or the loss of the tunnel, reads as [`ConnectionReset`](io::ErrorKind::ConnectionReset). What was
/// received before is read first, and a fin that came before is a clean end whatever follows.
///
/// As `AsyncBufRead` it hands out the chunks it received, without a copy. Writes are taken as long as less than the
/// tunnel's `send_buffer` waits, and need no flush. One of nothing fails once the stream is lost and its reader has read
/// all that came, or is not going to see a clean end; where memory is short, as soon as it is lost.
///
/// A stream opened for udp carries datagrams, each behind its length as a big-endian `u16`
/// ([`Datagrams`](anyproxy_core::Datagrams), which drops one for which a write would have to wait). A write takes all or
/// nothing; of several datagrams in one, those that find no room are dropped. One that waits while the process's memory is
/// short may wait until the stream ends: nobody is woken when it is not short any more.
pub struct Stream {
    cell: Arc<Cell>,
    shared: Arc<Shared>,
    /// Taken from the cell, so that reading it needs no lock.
    reading: Chunks,
    /// Read since the cell was told.
    owed: u32,
    /// What was written of a datagram that is not whole yet. Only streams of datagrams have this.
    partial: Option<Box<BytesMut>>,
}

impl Stream {
    /// The handle of a cell; there is one.
    pub(crate) fn new(cell: Arc<Cell>, shared: Arc<Shared>, datagrams: bool) -> Self {
        Self { cell, shared, reading: Chunks::new(), owed: 0, partial: datagrams.then(Box::default) }
    }

    /// The stream's name in the logs of both ends.
    pub fn stream_ref(&self) -> StreamRef {
        StreamRef { session: self.shared.session, number: self.cell.id().map_or(0, StreamId::get) }
    }

    /// Ends both ways at once and tells the peer why; what was not delivered yet is lost. A stream that is over both
    /// ways is left alone.
    pub fn reset(mut self, code: ResetCode) {
        self.abandon(code);
    }

    fn abandon(&mut self, code: ResetCode) {
        let owed = if self.partial.is_some() { 0 } else { mem::take(&mut self.owed) };
        let unread = !self.reading.is_empty();
        self.ring_if(self.cell.abandon(code, owed, unread, &self.shared.memory));
    }

    /// Writes `data` without a copy: takes it whole or in part, leaving the rest in `data`. Ready when some of it was
    /// taken, or `data` is empty.
    ///
    /// # Errors
    ///
    /// As a write.
    pub fn poll_send(&mut self, cx: &mut Context<'_>, data: &mut Bytes) -> Poll<io::Result<()>> {
        if self.partial.is_some() {
            ready!(self.poll_write_datagrams(cx, &[IoSlice::new(data)]))?;
            data.clear();
        } else if !data.is_empty() {
            let room = ready!(self.cell.poll_room(cx, self.shared.send_buffer()))?;
            self.push(data.split_to(data.len().min(room as usize)))?;
        }
        Poll::Ready(Ok(()))
    }

    /// [`poll_send`](Self::poll_send) until all of `data` was taken.
    ///
    /// # Errors
    ///
    /// As a write.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: how much was taken when the future is dropped is not known.
    pub async fn send(&mut self, mut data: Bytes) -> io::Result<()> {
        while !data.is_empty() {
            std::future::poll_fn(|cx| self.poll_send(cx, &mut data)).await?;
        }
        Ok(())
    }

    /// Waits until [`poll_send`](Self::poll_send) takes something: how much. Who asks first need not keep what the
    /// stream has no room for.
    ///
    /// # Errors
    ///
    /// As a write.
    pub fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(ready!(self.cell.poll_room(cx, self.shared.send_buffer()))? as usize))
    }

    /// What [`poll_fill_buf`](AsyncBufRead::poll_fill_buf) shows, and what was received behind it: for one vectored
    /// write of all of it. How many of `slices` were filled.
    pub fn chunks<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        self.reading.chunks_vectored(slices)
    }

    /// Waits until everything written has left for the peer: for one who must reset the stream, and would not have
    /// what came before lost. A flush does not wait, since nothing else speeds it up.
    ///
    /// # Errors
    ///
    /// As a write.
    pub fn poll_sent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.cell.poll_sent(cx)
    }

    /// Waits until the peer resets the stream, or the tunnel is lost; a reader learns of it only behind what it has
    /// not read yet. Also, whether the peer had finished its way before, so that all it said is there to be read.
    ///
    /// The task that waits is the one that reads.
    pub fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        let mut state = self.cell.lock();
        state.poll_reset(cx).map(|()| state.is_finished())
    }

    fn push(&self, data: Bytes) -> io::Result<()> {
        self.ring_if(self.cell.push(data, &self.shared.memory)?);
        Ok(())
    }

    fn ring_if(&self, ring: bool) {
        if ring {
            self.shared.bell.ring(&self.cell);
        }
    }

    /// Makes `reading` show what there is; empty at a clean end.
    fn poll_refill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.reading.is_empty() {
            return Poll::Ready(Ok(()));
        }
        // Datagrams use up no credit, so reading them is no news.
        let owed = if self.partial.is_some() { 0 } else { mem::take(&mut self.owed) };
        let (poll, ring) = self.cell.lock().poll_inbox(cx, owed, &mut self.reading);
        self.ring_if(ring);
        poll
    }

    fn took(&mut self, bytes: usize) {
        self.reading.advance(bytes);
        if self.partial.is_some() {
            return;
        }
        // Never more than a window, which fits.
        self.owed += bytes as u32;
        if self.owed >= REPORT {
            let owed = mem::take(&mut self.owed);
            let ring = self.cell.lock().report(owed);
            self.ring_if(ring);
        }
    }

    /// Passes on every datagram that is whole with these bytes, and keeps the rest. Takes everything, or nothing while
    /// there is no room for one.
    fn poll_write_datagrams(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let total: usize = bufs.iter().map(|buf| buf.len()).sum();
        let Some(partial) = &mut self.partial else { return Poll::Ready(Ok(0)) };
        ready!(self.cell.poll_datagram_room(cx, (partial.len() + total).min(MAX_DATAGRAM)))?;
        // The usual case: a whole one, as `Datagrams` writes it.
        if partial.is_empty()
            && let [length, payload] = bufs
            && u16::try_from(payload.len()).is_ok_and(|expected| length[..] == expected.to_be_bytes())
        {
            self.push_datagram(Bytes::copy_from_slice(payload))?;
            return Poll::Ready(Ok(total));
        }
        let mut bytes = mem::take(&mut **partial);
        bytes.reserve(total);
        bufs.iter().for_each(|buf| bytes.extend_from_slice(buf));
        while let Some(datagram) = split_datagram(&mut bytes) {
            self.push_datagram(datagram)?;
        }
        // A copy, so that the datagrams passed on do not share their memory with what waits here.
        self.partial = Some(Box::new(BytesMut::from(&bytes[..])));
        Poll::Ready(Ok(total))
    }

    fn push_datagram(&self, datagram: Bytes) -> io::Result<()> {
        let (kept, ring) = self.cell.push_datagram(datagram)?;
        if !kept {
            self.shared.dropped(1);
        }
        self.ring_if(ring);
        Ok(())
    }
}

/// Takes a whole datagram off the front of `bytes`, without its length.
fn split_datagram(bytes: &mut BytesMut) -> Option<Bytes> {
    let length = usize::from(u16::from_be_bytes(*bytes.first_chunk()?));
    if bytes.len() < 2 + length {
        return None;
    }
    bytes.advance(2);
    Some(bytes.split_to(length).freeze())
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        ready!(self.poll_refill(cx))?;
        while buf.remaining() > 0 && !self.reading.is_empty() {
            let taken = self.reading.chunk().len().min(buf.remaining());
            buf.put_slice(&self.reading.chunk()[..taken]);
            self.took(taken);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncBufRead for Stream {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        let this = self.get_mut();
        ready!(this.poll_refill(cx))?;
        Poll::Ready(Ok(this.reading.chunk()))
    }

    fn consume(mut self: Pin<&mut Self>, amount: usize) {
        if amount > 0 {
            self.took(amount);
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.partial.is_some() {
            return self.poll_write_datagrams(cx, bufs);
        }
        let total: usize = bufs.iter().map(|buf| buf.len()).sum();
        if total == 0 {
            return Poll::Ready(self.cell.lock().check_alive(self.reading.is_empty()).map(|()| 0));
        }
        let room = ready!(self.cell.poll_room(cx, self.shared.send_buffer()))?;
        let taken = total.min(room as usize);
        self.push(gather(bufs, taken))?;
        Poll::Ready(Ok(taken))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// What was written is the driver's already.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let (poll, ring) = self.cell.poll_finish(cx);
        self.ring_if(ring);
        poll
    }
}

/// One chunk of the first `len` bytes.
fn gather(bufs: &[IoSlice<'_>], len: usize) -> Bytes {
    if let [buf] = bufs {
        return share(&buf[..len]);
    }
    let mut chunk = Vec::with_capacity(len);
    for buf in bufs {
        let left = len - chunk.len();
        chunk.extend_from_slice(&buf[..buf.len().min(left)]);
    }
    chunk.into()
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.abandon(ResetCode::Cancelled);
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Stream").field(&format_args!("{}", self.stream_ref())).finish()
    }
}
