use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use anyproxy_core::StreamRef;
use anyproxy_mux::frame::ResetCode;
use bytes::Bytes;
use tokio::io::{AsyncBufRead, AsyncRead, AsyncWrite, ReadBuf};

/// One stream of a tunnel, at either end. (skeleton)
///
/// `shutdown` is a fin; an unfinished stream that is dropped is a reset; a peer's reset, or the loss of the tunnel,
/// reads as [`ConnectionReset`](io::ErrorKind::ConnectionReset). What was received before is read first.
///
/// As `AsyncBufRead` it hands out the chunks it received, without a copy. A stream opened for udp carries datagrams,
/// each behind its length as a big-endian `u16` ([`Datagrams`](anyproxy_core::Datagrams)); its writes never wait, and
/// drop what there is no room for.
#[derive(Debug)]
pub struct Stream {}

impl Stream {
    /// The stream's name in the logs of both ends.
    pub fn stream_ref(&self) -> StreamRef {
        unimplemented!()
    }

    /// Ends both ways at once and tells the peer why.
    pub fn reset(self, _code: ResetCode) {
        unimplemented!()
    }

    /// Writes `data` without a copy: takes it whole or in part, leaving the rest in `data`. Ready when some of it was
    /// taken, or `data` is empty.
    ///
    /// # Errors
    ///
    /// As a write.
    pub fn poll_send(&mut self, _cx: &mut Context<'_>, _data: &mut Bytes) -> Poll<io::Result<()>> {
        unimplemented!()
    }

    /// [`poll_send`](Self::poll_send) until all of `data` was taken.
    ///
    /// # Errors
    ///
    /// As a write.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: what was taken when the future is dropped is not known.
    pub async fn send(&mut self, _data: Bytes) -> io::Result<()> {
        unimplemented!()
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        _buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        unimplemented!()
    }
}

impl AsyncBufRead for Stream {
    fn poll_fill_buf(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        unimplemented!()
    }

    fn consume(self: Pin<&mut Self>, _amount: usize) {
        unimplemented!()
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, _cx: &mut Context<'_>, _buf: &[u8]) -> Poll<io::Result<usize>> {
        unimplemented!()
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        unimplemented!()
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        unimplemented!()
    }
}
