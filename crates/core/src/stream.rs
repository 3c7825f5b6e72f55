use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncBufRead, AsyncRead, AsyncWrite, ReadBuf};

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
    read_ended: bool,
    write_ended: bool,
    failed: bool,
}

impl<T, M: Meter> Metered<T, M> {
    /// Puts `meter` on `inner`.
    pub const fn new(inner: T, meter: M) -> Self {
        Self { inner, meter, read_ended: false, write_ended: false, failed: false }
    }

    /// The stream inside.
    pub const fn get_ref(&self) -> &T {
        &self.inner
    }

    fn failed<R>(&mut self, result: io::Result<R>) -> io::Result<R> {
        self.failed |= result.is_err();
        result
    }

    fn written(&mut self, result: io::Result<usize>) -> io::Result<usize> {
        if let Ok(bytes) = result {
            self.meter.written(bytes);
        }
        self.failed(result)
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
        let bytes = buf.filled().len() - before;
        self.meter.read(bytes);
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
        Poll::Ready(result)
    }

    fn consume(mut self: Pin<&mut Self>, amount: usize) {
        self.meter.read(amount);
        Pin::new(&mut self.inner).consume(amount);
    }
}

impl<T: AsyncWrite + Unpin, M: Meter> AsyncWrite for Metered<T, M> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = ready!(Pin::new(&mut self.inner).poll_write(cx, buf));
        Poll::Ready(self.written(result))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = ready!(Pin::new(&mut self.inner).poll_write_vectored(cx, bufs));
        Poll::Ready(self.written(result))
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
    use std::sync::{Arc, Mutex};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader, duplex};

    use super::*;

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
