use std::io;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::tungstenite::http::Request;

use crate::{Carrier, CarrierError, UpgradeError};

/// A carrier of binary WebSocket messages (RFC 6455) over any connection. (skeleton)
#[derive(Debug)]
pub struct WebSocket<Io> {
    _io: Io,
}

impl<Io: AsyncRead + AsyncWrite + Unpin + Send + 'static> WebSocket<Io> {
    /// The server's end of a connection that was upgraded already.
    pub fn server(io: Io) -> Self {
        Self { _io: io }
    }

    /// The client's end of a connection that was upgraded already.
    pub fn client(io: Io) -> Self {
        Self { _io: io }
    }

    /// Asks the server at the other end of `io` for an upgrade.
    ///
    /// `request` names the resource (`wss://host/ws`) and carries what the server should know beside: credentials, a
    /// subprotocol, which the answer must then name. The headers of the upgrade itself are added where they are missing.
    ///
    /// # Errors
    ///
    /// If the answer is not the upgrade that was asked for.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops the connection.
    pub async fn connect(_io: Io, _request: Request<()>) -> Result<Self, UpgradeError> {
        unimplemented!()
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin + Send + 'static> Carrier for WebSocket<Io> {
    fn poll_recv(&mut self, _cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, CarrierError>>> {
        unimplemented!()
    }

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        unimplemented!()
    }

    fn start_send(&mut self, _message: &mut BytesMut) -> io::Result<()> {
        unimplemented!()
    }

    fn poll_flush(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        unimplemented!()
    }

    fn poll_close(&mut self, _cx: &mut Context<'_>, _code: u16, _reason: &str) -> Poll<io::Result<()>> {
        unimplemented!()
    }
}
