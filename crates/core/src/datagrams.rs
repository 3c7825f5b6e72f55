use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, BufMut as _, BytesMut};

use crate::ByteStream;

/// The largest datagram a stream carries, in bytes: what its `u16` length can say. (UDP over IPv4 itself ends at
/// 65,507.)
pub const MAX_DATAGRAM: usize = u16::MAX as usize;

/// The datagrams of a udp dial: whole payloads on a byte stream, each behind its length as a big-endian `u16`.
///
/// Sending never waits: a datagram goes now or is dropped whole, as UDP allows. Receiving gives whole datagrams,
/// empty ones too.
#[derive(Debug)]
pub struct Datagrams<S> {
    stream: S,
    /// What is left of one half-written datagram.
    unsent: BytesMut,
    /// What has come of one half-received datagram, its length included.
    partial: BytesMut,
}

impl<S: ByteStream> Datagrams<S> {
    /// Speaks datagrams on the response of a udp dial.
    pub fn new(stream: S) -> Self {
        Self { stream, unsent: BytesMut::new(), partial: BytesMut::new() }
    }

    /// Sends `payload` now, or drops it whole: `false` says that it was dropped, because the way is full or the
    /// payload longer than [`MAX_DATAGRAM`].
    ///
    /// The rest of a datagram that the stream took in part is kept and goes first, by a later call of this or of
    /// [`poll_flush`](Self::poll_flush).
    ///
    /// # Errors
    ///
    /// That of the stream; it is over then.
    pub fn send_now(&mut self, cx: &mut Context<'_>, payload: &[u8]) -> io::Result<bool> {
        let Ok(length) = u16::try_from(payload.len()) else { return Ok(false) };
        if self.poll_unsent(cx)?.is_pending() {
            return Ok(false);
        }
        let length = length.to_be_bytes();
        let bufs = [IoSlice::new(&length), IoSlice::new(payload)];
        let sent = match Pin::new(&mut self.stream).poll_write_vectored(cx, &bufs)? {
            Poll::Pending => return Ok(false),
            Poll::Ready(0) => return Err(io::ErrorKind::WriteZero.into()),
            Poll::Ready(sent) => sent,
        };
        if sent < length.len() + payload.len() {
            self.unsent.put_slice(&length[sent.min(length.len())..]);
            self.unsent.put_slice(&payload[sent.saturating_sub(length.len())..]);
            let _ = self.poll_unsent(cx)?;
        }
        Ok(true)
    }

    /// Sends what is kept of a half-written datagram, then flushes the stream.
    ///
    /// # Errors
    ///
    /// That of the stream; it is over then.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_unsent(cx)?);
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// Appends the next whole datagram's payload to `buf`: `true`, or `false` at the stream's end.
    ///
    /// # Errors
    ///
    /// That of the stream, or [`UnexpectedEof`](io::ErrorKind::UnexpectedEof) if it ends within a datagram.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>, buf: &mut BytesMut) -> Poll<io::Result<bool>> {
        loop {
            let chunk = ready!(Pin::new(&mut self.stream).poll_fill_buf(cx))?;
            if chunk.is_empty() {
                let whole = self.partial.is_empty();
                return Poll::Ready(if whole { Ok(false) } else { Err(io::ErrorKind::UnexpectedEof.into()) });
            }
            // The usual case: the chunk holds the whole datagram, and nothing is kept.
            if self.partial.is_empty()
                && let Some((length, rest)) = chunk.split_first_chunk()
                && let Some(payload) = rest.get(..usize::from(u16::from_be_bytes(*length)))
            {
                buf.put_slice(payload);
                let taken = length.len() + payload.len();
                Pin::new(&mut self.stream).consume(taken);
                return Poll::Ready(Ok(true));
            }
            let wanted = match self.partial.first_chunk() {
                None => 2,
                Some(length) => 2 + usize::from(u16::from_be_bytes(*length)),
            };
            let taken = chunk.len().min(wanted - self.partial.len());
            self.partial.put_slice(&chunk[..taken]);
            Pin::new(&mut self.stream).consume(taken);
            if let Some(length) = self.partial.first_chunk()
                && self.partial.len() == 2 + usize::from(u16::from_be_bytes(*length))
            {
                self.partial.advance(2);
                buf.put_slice(&self.partial);
                self.partial = BytesMut::new();
                return Poll::Ready(Ok(true));
            }
        }
    }

    /// [`poll_recv`](Self::poll_recv) as a future.
    ///
    /// # Errors
    ///
    /// As `poll_recv`.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing: what has come of a datagram stays here.
    pub async fn recv(&mut self, buf: &mut BytesMut) -> io::Result<bool> {
        poll_fn(|cx| self.poll_recv(cx, buf)).await
    }

    fn poll_unsent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.unsent.is_empty() {
            match ready!(Pin::new(&mut self.stream).poll_write(cx, &self.unsent))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                sent => self.unsent.advance(sent),
            }
        }
        self.unsent = BytesMut::new();
        Poll::Ready(Ok(()))
    }
}

// === Framing ===

/// Tells payloads from their lengths in bytes that pass.
#[derive(Debug, Default)]
pub(crate) struct Framing {
    /// What has come of a length.
    length: Option<u8>,
    /// What is to come of the payload.
    left: usize,
}

impl Framing {
    /// How many of `bytes`, which come next, are payload.
    pub(crate) fn pass(&mut self, mut bytes: &[u8]) -> usize {
        let mut payload = 0;
        while let [byte, rest @ ..] = bytes {
            if self.left > 0 {
                let taken = self.skip(bytes.len());
                payload += taken;
                bytes = &bytes[taken..];
                continue;
            }
            match self.length.take() {
                None => self.length = Some(*byte),
                Some(first) => self.left = u16::from_be_bytes([first, *byte]).into(),
            }
            bytes = rest;
        }
        payload
    }

    /// So many bytes of the payload come next, or as many as are left.
    pub(crate) fn skip(&mut self, bytes: usize) -> usize {
        let taken = bytes.min(self.left);
        self.left -= taken;
        taken
    }

    /// The bytes of a length that come next.
    pub(crate) const fn length_left(&self) -> usize {
        match (self.left, self.length) {
            (0, None) => 2,
            (0, Some(_)) => 1,
            _ => 0,
        }
    }

    /// How many bytes the datagram has, if `bytes` come next; of one whose length is not there, its length.
    pub(crate) fn ahead(&self, bytes: &[u8]) -> usize {
        let length = match (self.left, self.length, bytes) {
            (0, None, [first, second, ..]) => [*first, *second],
            (0, Some(first), [second, ..]) => [first, *second],
            _ => [0; 2],
        };
        self.length_left() + self.left.max(u16::from_be_bytes(length).into())
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncWriteExt as _, BufReader, duplex};

    use super::*;

    async fn send<S: ByteStream>(datagrams: &mut Datagrams<S>, payload: &[u8]) -> bool {
        poll_fn(|cx| Poll::Ready(datagrams.send_now(cx, payload))).await.unwrap()
    }

    #[tokio::test]
    async fn datagrams_arrive_whole_and_apart_through_any_split() {
        for room in [1, 2, 3, 7, 64] {
            let (near, far) = duplex(room);
            let mut far = Datagrams::new(BufReader::new(far));
            let task = tokio::spawn(async move {
                let mut near = near;
                near.write_all(b"\0\x03abc\0\0\0\x05defgh").await.unwrap();
            });
            let mut got = Vec::new();
            let mut buf = BytesMut::new();
            while far.recv(&mut buf).await.unwrap() {
                got.push(buf.split().freeze());
            }
            task.await.unwrap();
            assert_eq!(got, [&b"abc"[..], b"", b"defgh"]);
        }
    }

    #[tokio::test]
    async fn a_full_way_drops_whole_datagrams_and_keeps_the_rest_of_one() {
        let (near, far) = duplex(4);
        let (mut near, mut far) = (Datagrams::new(BufReader::new(near)), Datagrams::new(BufReader::new(far)));
        assert!(send(&mut near, b"first").await);
        assert!(!send(&mut near, b"second").await, "the way is full");
        let mut buf = BytesMut::new();
        let (flushed, received) = tokio::join!(poll_fn(|cx| near.poll_flush(cx)), far.recv(&mut buf));
        flushed.unwrap();
        assert!(received.unwrap());
        assert_eq!(&buf[..], b"first");
        assert!(send(&mut near, b"").await);
    }

    #[tokio::test]
    async fn an_end_within_a_datagram_is_an_error() {
        let (mut near, far) = duplex(64);
        near.write_all(b"\0\x03ab").await.unwrap();
        drop(near);
        let error = Datagrams::new(BufReader::new(far)).recv(&mut BytesMut::new()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
