use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncBufRead, AsyncRead, AsyncWrite, ReadBuf};

use crate::Network;
use crate::datagrams::Framing;

/// Bytes to and from a target.
///
/// An alias: whatever fits is one. `AsyncBufRead` lets a relay write straight from the tunnel's own chunks.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a byte stream: it must be `AsyncRead + AsyncBufRead + AsyncWrite`",
    note = "wrap it in `tokio::io::BufReader` if only `AsyncBufRead` is missing"
)]
pub trait ByteStream: AsyncRead + AsyncBufRead + AsyncWrite + Unpin + Send + 'static {}

impl<T: AsyncRead + AsyncBufRead + AsyncWrite + Unpin + Send + 'static> ByteStream for T {}

// === Guarded ===

/// A stream that keeps a guard: a permit, a load count, a gauge. Both drop together, with the last byte.
#[derive(Debug)]
pub struct Guarded<T, G> {
    inner: T,
    _guard: G,
}

impl<T, G> Guarded<T, G> {
    /// Ties `guard` to the life of `inner`.
    pub const fn new(inner: T, guard: G) -> Self {
        Self { inner, _guard: guard }
    }

    /// The stream inside.
    pub const fn get_ref(&self) -> &T {
        &self.inner
    }
}

impl<T: AsyncRead + Unpin, G: Unpin> AsyncRead for Guarded<T, G> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<T: AsyncBufRead + Unpin, G: Unpin> AsyncBufRead for Guarded<T, G> {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        Pin::new(&mut self.get_mut().inner).poll_fill_buf(cx)
    }

    fn consume(mut self: Pin<&mut Self>, amount: usize) {
        Pin::new(&mut self.inner).consume(amount);
    }
}

impl<T: AsyncWrite + Unpin, G: Unpin> AsyncWrite for Guarded<T, G> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

// === Metered ===

/// Sees what passes through a [`Metered`] stream. Called for every read and write, so it must be quick.
pub trait Meter: Send + Unpin + 'static {
    /// `bytes` came from the target.
    fn read(&mut self, bytes: usize);

    /// `bytes` were taken for the target.
    fn written(&mut self, bytes: usize);

    /// The stream is over. Called once, when it is dropped.
    fn ended(&mut self, ending: Ending);
}

/// How a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Ending {
    /// Both ways were finished.
    Whole,
    /// Dropped by this side before both ways were finished: the peer sees a reset.
    Abandoned,
    /// The other side reset it, or its tunnel was lost.
    Reset,
}

impl Ending {
    /// A short name, from a closed set.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Whole => "whole",
            Self::Abandoned => "abandoned",
            Self::Reset => "reset",
        }
    }
}

/// A stream that tells a [`Meter`] what passes, and how it ended.
#[derive(Debug)]
pub struct Metered<T, M: Meter> {
    inner: T,
    meter: M,
    /// Of datagrams: where each way is in its framing.
    framing: Option<Box<Framings>>,
    read_ended: bool,
    write_ended: bool,
    failed: bool,
}

impl<T, M: Meter> Metered<T, M> {
    /// Puts `meter` on `inner`.
    pub const fn new(inner: T, meter: M) -> Self {
        Self { inner, meter, framing: None, read_ended: false, write_ended: false, failed: false }
    }

    /// Says whose stream it is (default: one of bytes). Of [`Datagrams`](crate::Datagrams) the meter sees the payloads
    /// alone, without their lengths.
    #[must_use]
    pub fn of(mut self, network: Network) -> Self {
        self.framing = network.is_udp().then(Box::default);
        self
    }

    /// The stream inside.
    pub const fn get_ref(&self) -> &T {
        &self.inner
    }

    fn failed<R>(&mut self, result: io::Result<R>) -> io::Result<R> {
        self.failed |= result.is_err();
        result
    }

    fn written(&mut self, result: io::Result<usize>, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        if let Ok(bytes) = result {
            self.meter.written(match &mut self.framing {
                Some(framing) => framing.written(bytes, bufs),
                None => bytes,
            });
        }
        self.failed(result)
    }
}

/// How far both ways of a stream of datagrams are.
#[derive(Debug, Default)]
struct Framings {
    read: Framing,
    written: Framing,
    /// What the reader sees first: it may be told of by number alone.
    shown: [u8; 2],
}

impl Framings {
    /// As much of `chunk` as the next datagram has.
    fn show<'a>(&mut self, chunk: &'a [u8]) -> &'a [u8] {
        let chunk = &chunk[..chunk.len().min(self.read.ahead(chunk))];
        for (shown, byte) in self.shown.iter_mut().zip(chunk) {
            *shown = *byte;
        }
        chunk
    }

    /// Of so many bytes that were shown, those of the payload.
    fn consumed(&mut self, amount: usize) -> usize {
        let length = self.read.length_left().min(amount);
        self.read.pass(&self.shown[..length]);
        self.shown.rotate_left(length.min(1));
        self.read.skip(amount - length)
    }

    /// Of the first `bytes` of `bufs`, those of payloads.
    fn written(&mut self, mut bytes: usize, bufs: &[IoSlice<'_>]) -> usize {
        let mut payload = 0;
        for buf in bufs {
            let taken = buf.len().min(bytes);
            payload += self.written.pass(&buf[..taken]);
            bytes -= taken;
        }
        payload
    }
}

impl<T, M: Meter> Drop for Metered<T, M> {
    fn drop(&mut self) {
        self.meter.ended(match (self.failed, self.read_ended && self.write_ended) {
            (true, _) => Ending::Reset,
            (false, true) => Ending::Whole,
            (false, false) => Ending::Abandoned,
        });
    }
}

impl<T: AsyncRead + Unpin, M: Meter> AsyncRead for Metered<T, M> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (before, room) = (buf.filled().len(), buf.remaining());
        let result = ready!(Pin::new(&mut self.inner).poll_read(cx, buf));
        let this = &mut *self;
        let bytes = buf.filled().len() - before;
        this.meter.read(match &mut this.framing {
            Some(framing) => framing.read.pass(&buf.filled()[before..]),
            None => bytes,
        });
        self.read_ended |= result.is_ok() && bytes == 0 && room > 0;
        Poll::Ready(self.failed(result))
    }
}

impl<T: AsyncBufRead + Unpin, M: Meter> AsyncBufRead for Metered<T, M> {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        let this = self.get_mut();
        let result = ready!(Pin::new(&mut this.inner).poll_fill_buf(cx));
        this.read_ended |= matches!(result, Ok([]));
        this.failed |= result.is_err();
        Poll::Ready(match &mut this.framing {
            Some(framing) => result.map(|chunk| framing.show(chunk)),
            None => result,
        })
    }

    fn consume(self: Pin<&mut Self>, amount: usize) {
        let this = self.get_mut();
        this.meter.read(match &mut this.framing {
            Some(framing) => framing.consumed(amount),
            None => amount,
        });
        Pin::new(&mut this.inner).consume(amount);
    }
}

impl<T: AsyncWrite + Unpin, M: Meter> AsyncWrite for Metered<T, M> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = ready!(Pin::new(&mut self.inner).poll_write(cx, buf));
        Poll::Ready(self.written(result, &[IoSlice::new(buf)]))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = ready!(Pin::new(&mut self.inner).poll_write_vectored(cx, bufs));
        Poll::Ready(self.written(result, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = ready!(Pin::new(&mut self.inner).poll_flush(cx));
        Poll::Ready(self.failed(result))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = ready!(Pin::new(&mut self.inner).poll_shutdown(cx));
        self.write_ended |= result.is_ok();
        Poll::Ready(self.failed(result))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::{Arc, Mutex};

    use bytes::BytesMut;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader, duplex};

    use super::*;
    use crate::{Association, Datagrams};

    #[derive(Clone, Debug, Default, PartialEq)]
    struct Seen {
        read: usize,
        written: usize,
        ending: Option<Ending>,
    }

    #[derive(Clone, Default)]
    struct Book(Arc<Mutex<Seen>>);

    impl Meter for Book {
        fn read(&mut self, bytes: usize) {
            self.0.lock().unwrap().read += bytes;
        }
        fn written(&mut self, bytes: usize) {
            self.0.lock().unwrap().written += bytes;
        }
        fn ended(&mut self, ending: Ending) {
            self.0.lock().unwrap().ending = Some(ending);
        }
    }

    #[tokio::test]
    async fn a_meter_sees_both_ways_and_a_whole_end() {
        let (near, mut far) = duplex(64);
        let book = Book::default();
        let mut stream = Metered::new(BufReader::new(near), book.clone());
        stream.write_all(b"ping").await.unwrap();
        stream.shutdown().await.unwrap();
        far.write_all(b"pong!").await.unwrap();
        drop(far);
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        drop(stream);
        assert_eq!(*book.0.lock().unwrap(), Seen { read: 5, written: 4, ending: Some(Ending::Whole) });
    }

    #[tokio::test]
    async fn of_datagrams_a_meter_sees_the_payloads_alone_however_they_are_split() {
        let udp = Network::Udp(Association::new());
        for room in [1, 2, 3, 7, 64] {
            let (near, far) = duplex(room);
            let book = Book::default();
            // Echoes bytes, and knows of no datagrams.
            let (mut from, mut to) = tokio::io::split(far);
            let _echo = tokio::spawn(async move { tokio::io::copy(&mut from, &mut to).await });
            let near = Metered::new(BufReader::with_capacity(room, near), book.clone()).of(udp);
            let mut near = Datagrams::new(near);
            for payload in [&b"first"[..], b"", b"the last one"] {
                assert!(poll_fn(|cx| Poll::Ready(near.send_now(cx, payload))).await.unwrap());
                let mut answer = BytesMut::new();
                poll_fn(|cx| {
                    let _ = near.poll_flush(cx)?;
                    near.poll_recv(cx, &mut answer)
                })
                .await
                .unwrap();
                assert_eq!(&answer[..], payload);
            }
            assert_eq!(*book.0.lock().unwrap(), Seen { read: 17, written: 17, ending: None }, "{room}");

            let (near, mut far) = duplex(room);
            let book = Book::default();
            let mut near = Metered::new(BufReader::with_capacity(room, near), book.clone()).of(udp);
            let writing = async move { far.write_all(b"\0\x05first\0\0\0\x01x").await };
            let mut read = Vec::new();
            let (written, ended) = tokio::join!(writing, near.read_to_end(&mut read));
            written.and(ended).unwrap();
            assert_eq!((read.len(), book.0.lock().unwrap().read), (12, 6), "{room}");
        }
    }

    #[tokio::test]
    async fn an_unfinished_stream_ends_abandoned() {
        let (near, _far) = duplex(64);
        let book = Book::default();
        drop(Metered::new(BufReader::new(near), book.clone()));
        assert_eq!(book.0.lock().unwrap().ending, Some(Ending::Abandoned));
    }

    /// Counts vectored writes; everything else is a sink.
    #[derive(Default)]
    struct Sink {
        vectored: usize,
    }

    impl AsyncWrite for Sink {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(buf.len()))
        }
        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bufs: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            self.vectored += 1;
            Poll::Ready(Ok(bufs.iter().map(|buf| buf.len()).sum()))
        }
        fn is_write_vectored(&self) -> bool {
            true
        }
        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn wrappers_pass_vectored_writes_on_as_they_are() {
        let mut stream = Guarded::new(Metered::new(Sink::default(), Book::default()), ());
        assert!(stream.is_write_vectored());
        let bufs = [IoSlice::new(b"ab"), IoSlice::new(b"cde")];
        assert_eq!(stream.write_vectored(&bufs).await.unwrap(), 5);
        assert_eq!(stream.get_ref().get_ref().vectored, 1);
    }
}
