use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};

use crate::Connection;

/// A connection whose first bytes were read already: they are read again before what follows.
#[derive(Debug)]
pub struct Rewind<U> {
    head: Bytes,
    inner: U,
}

impl<U> Rewind<U> {
    /// Puts `head` back in front of `inner`.
    pub const fn new(head: Bytes, inner: U) -> Self {
        Self { head, inner }
    }

    /// The bytes put back and not yet read again, and the connection.
    pub fn into_parts(self) -> (Bytes, U) {
        (self.head, self.inner)
    }
}

impl<U: Connection> Rewind<U> {
    /// Looks at the first byte, which says which protocol follows (`05` is SOCKS5, a letter is HTTP, `16` is TLS).
    ///
    /// # Errors
    ///
    /// That of the connection; [`UnexpectedEof`](io::ErrorKind::UnexpectedEof) if it ends before its first byte.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes the connection.
    pub async fn peek(mut inner: U) -> io::Result<(u8, Self)> {
        let first = inner.read_u8().await?;
        Ok((first, Self { head: Bytes::copy_from_slice(&[first]), inner }))
    }
}

impl<U: Connection> Connection for Rewind<U> {
    fn abort(&mut self) {
        self.inner.abort();
    }

    fn abort_when_lost(&mut self, abort: bool) {
        self.inner.abort_when_lost(abort);
    }

    fn poll_lost(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        self.inner.poll_lost(cx)
    }

    fn failure(&self) -> Option<io::Error> {
        self.inner.failure()
    }

    fn lost(&self) -> impl Future<Output = ()> + Send {
        self.inner.lost()
    }

    fn local_addr(&self) -> Option<SocketAddr> {
        self.inner.local_addr()
    }
}

impl<U: AsyncRead + Unpin> AsyncRead for Rewind<U> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.head.is_empty() {
            return Pin::new(&mut self.inner).poll_read(cx, buf);
        }
        let taken = self.head.len().min(buf.remaining());
        buf.put_slice(&self.head[..taken]);
        self.head.advance(taken);
        if self.head.is_empty() {
            // Gives the memory back, which an empty slice would still hold.
            self.head = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<U: AsyncWrite + Unpin> AsyncWrite for Rewind<U> {
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

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncWriteExt as _, Empty, Join, Sink, duplex, empty, join, sink};

    use super::*;

    /// One that is lost.
    impl Connection for Join<Empty, Sink> {
        fn abort(&mut self) {}

        fn poll_lost(&mut self, _: &mut Context<'_>) -> Poll<io::Error> {
            Poll::Ready(io::ErrorKind::BrokenPipe.into())
        }
    }

    #[tokio::test]
    async fn the_loss_of_the_connection_is_told() {
        let mut user = Rewind::new(Bytes::from_static(b"abc"), join(empty(), sink()));
        let told = poll_fn(|cx| Poll::Ready(user.poll_lost(cx))).await;
        assert!(matches!(told, Poll::Ready(error) if error.kind() == io::ErrorKind::BrokenPipe));
    }

    #[tokio::test]
    async fn a_peeked_byte_is_read_again() {
        let (mut near, far) = duplex(64);
        near.write_all(b"\x05\x01\x00").await.unwrap();
        drop(near);
        let (first, mut user) = Rewind::peek(far).await.unwrap();
        assert_eq!(first, 5);
        let mut all = Vec::new();
        user.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, b"\x05\x01\x00");
    }

    #[tokio::test]
    async fn a_small_reader_gets_the_head_in_parts() {
        let (near, far) = duplex(64);
        drop(near);
        let mut user = Rewind::new(Bytes::from_static(b"abc"), far);
        let mut all = Vec::new();
        while let Ok(byte) = user.read_u8().await {
            all.push(byte);
        }
        assert_eq!(all, b"abc");
    }
}
