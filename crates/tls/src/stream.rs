use std::fmt;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use rustls::server::UnbufferedServerConnection;
use rustls::{ClientConfig, Error, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::buffer::Buffer;
use crate::connection::{Connection, Step};
use crate::traffic::{Read, Traffic};

/// A TLS connection for bulk: what is read is opened where the reader wants it, what is written is sealed from where it lies.
///
/// rustls does the handshake, derives the keys and keeps the tickets; records of TLS 1.3 are protected here (RFC 8446
/// section 5), those of TLS 1.2 by rustls. Up to 256 KiB are read from the connection below at once, up to 288 KiB are
/// sealed in one write; the memory for it goes down to 4 KiB for each direction after sixteen small reads, or writes.
///
/// A reader that offers more than 16 KiB saves the copy of a record; so does a writer whose pieces are longer.
///
/// Reads, writes and `shutdown` are those of TLS: the end is the peer's `close_notify`, and a connection that ends without one
/// is an [`UnexpectedEof`](io::ErrorKind::UnexpectedEof); `shutdown` sends ours and then shuts the connection below down, while the
/// peer may go on. What the peer does wrong is [`InvalidData`](io::ErrorKind::InvalidData) around a [`rustls::Error`], for
/// this and every later call.
///
/// A write takes nothing while sealed bytes of an earlier one wait, so that little is promised to a line that is full.
pub struct Stream<Io> {
    io: Io,
    layer: Layer,
    received: Buffer,
    sealed: Buffer,
}

/// Who protects the records.
pub(crate) enum Layer {
    /// This crate, with the keys of TLS 1.3.
    Traffic(Box<Traffic>),
    /// rustls, in TLS 1.2.
    Rustls(Box<Connection>),
}

impl<Io: AsyncRead + AsyncWrite + Unpin> Stream<Io> {
    /// Does the client's side of a handshake on `io`, with the server of this `name`.
    ///
    /// There is no deadline; callers put theirs around it.
    ///
    /// # Errors
    ///
    /// What `io` fails with, or a [`rustls::Error`] in [`InvalidData`](io::ErrorKind::InvalidData).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops `io`.
    pub async fn connect(io: Io, config: &ClientConfig, name: ServerName<'static>) -> io::Result<Self> {
        // Only here can the keys be had, and only here are they.
        let mut config = config.clone();
        config.enable_secret_extraction = true;
        let connection = UnbufferedClientConnection::new(Arc::new(config), name).map_err(invalid)?;
        Self::handshake(io, Connection::client(connection)).await
    }

    /// Does the server's side of a handshake on `io`.
    ///
    /// No data is taken or sent before the handshake is done, whatever `config` says of that (`max_early_data_size`,
    /// `send_half_rtt_data`).
    ///
    /// There is no deadline; callers put theirs around it.
    ///
    /// # Errors
    ///
    /// What `io` fails with, or a [`rustls::Error`] in [`InvalidData`](io::ErrorKind::InvalidData).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops `io`.
    pub async fn accept(io: Io, config: &ServerConfig) -> io::Result<Self> {
        let mut config = config.clone();
        config.enable_secret_extraction = true;
        // The keys are taken over when data may be sent, and rustls has them all only when the handshake is done.
        config.send_half_rtt_data = false;
        config.max_early_data_size = 0;
        let connection = UnbufferedServerConnection::new(Arc::new(config)).map_err(invalid)?;
        Self::handshake(io, Connection::server(connection)).await
    }

    async fn handshake(mut io: Io, mut connection: Connection) -> io::Result<Self> {
        let (mut received, mut sealed) = (Buffer::default(), Buffer::default());
        loop {
            match connection.step(&mut received, &mut sealed) {
                Ok(Step::Again) => {}
                Ok(Step::Done) => break,
                Ok(Step::NeedsMore) => {
                    poll_fn(|cx| poll_flush(cx, &mut sealed, &mut io)).await?;
                    poll_fn(|cx| poll_receive(cx, &mut received, &mut io)).await?;
                }
                Ok(Step::End) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Err(error) => {
                    // Whatever becomes of the alert, what it is about is worth more.
                    let _ = poll_fn(|cx| poll_flush(cx, &mut sealed, &mut io)).await;
                    return Err(invalid(error));
                }
            }
        }
        poll_fn(|cx| poll_flush(cx, &mut sealed, &mut io)).await?;
        let layer = match connection.into_traffic().map_err(invalid)? {
            Ok(traffic) => Layer::Traffic(Box::new(traffic)),
            Err(connection) => Layer::Rustls(Box::new(connection)),
        };
        Ok(Self { io, layer, received, sealed })
    }
}

impl<Io> Stream<Io> {
    /// The connection below.
    pub const fn get_ref(&self) -> &Io {
        &self.io
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin> AsyncRead for Stream<Io> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if out.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            let read = match &mut this.layer {
                Layer::Traffic(traffic) => traffic.read(&mut this.received, out, &mut this.sealed),
                Layer::Rustls(connection) => connection.read(&mut this.received, out, &mut this.sealed),
            };
            match read {
                Ok(Read::Data | Read::End) => return Poll::Ready(Ok(())),
                Ok(Read::NeedsMore) => ready!(poll_receive(cx, &mut this.received, &mut this.io))?,
                Err(error) => {
                    // A peer that does not take the alert at once goes without.
                    let _ = this.sealed.poll_drain(cx, &mut this.io);
                    return Poll::Ready(Err(invalid(error)));
                }
            }
        }
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Stream<Io> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.sealed.poll_drain(cx, &mut this.io))?;
        let written = match &mut this.layer {
            Layer::Traffic(traffic) if !traffic.is_closed() => traffic.seal(pieces, &mut this.sealed),
            Layer::Rustls(connection) if !connection.is_closed() => {
                connection.seal(pieces, &mut this.received, &mut this.sealed)
            }
            _ => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        };
        let written = written.map_err(invalid)?;
        // As much as the line takes; the rest goes with the next write or flush.
        match this.sealed.poll_drain(cx, &mut this.io) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(written)),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        poll_flush(cx, &mut this.sealed, &mut this.io)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match &mut this.layer {
            Layer::Traffic(traffic) => traffic.close(&mut this.sealed),
            Layer::Rustls(connection) => connection.close(&mut this.received, &mut this.sealed),
        }
        .map_err(invalid)?;
        ready!(poll_flush(cx, &mut this.sealed, &mut this.io))?;
        Pin::new(&mut this.io).poll_shutdown(cx)
    }
}

impl<Io: fmt::Debug> fmt::Debug for Stream<Io> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").field("io", &self.io).finish_non_exhaustive()
    }
}

fn invalid(error: Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

fn poll_receive(
    cx: &mut Context<'_>,
    received: &mut Buffer,
    io: &mut (impl AsyncRead + Unpin),
) -> Poll<io::Result<()>> {
    let read = ready!(received.poll_fill(cx, io))?;
    Poll::Ready(if read == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) })
}

fn poll_flush(
    cx: &mut Context<'_>,
    sealed: &mut Buffer,
    io: &mut (impl AsyncWrite + Unpin),
) -> Poll<io::Result<()>> {
    ready!(sealed.poll_drain(cx, io))?;
    Pin::new(io).poll_flush(cx)
}

#[cfg(test)]
impl<Io> Stream<Io> {
    /// The connection below, for what rustls would not say.
    pub(crate) const fn io_mut(&mut self) -> &mut Io {
        &mut self.io
    }

    /// The state of a connection of TLS 1.3.
    pub(crate) fn traffic(&mut self) -> &mut Traffic {
        match &mut self.layer {
            Layer::Traffic(traffic) => traffic,
            Layer::Rustls(_) => panic!("TLS 1.2"),
        }
    }
}

#[cfg(test)]
impl Stream<tokio::io::Empty> {
    pub(crate) fn of(layer: Layer) -> Self {
        Self { io: tokio::io::empty(), layer, received: Buffer::default(), sealed: Buffer::default() }
    }
}
