use std::borrow::Cow;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use anyproxy_mux::frame::MAX_MESSAGE;
use bytes::{Bytes, BytesMut};
use futures_util::{FutureExt as _, Sink as _, SinkExt as _, Stream as _};
use http::{HeaderName, HeaderValue, Request, StatusCode, header};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Duration, Instant, timeout};
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use crate::{Carrier, CarrierError, UpgradeError};

/// What is read from below at once: one TLS record. (tungstenite clears that much before each read.)
const READ_BUFFER: usize = 16 * 1024;

/// What waits for the flush at the end of the driver's turn. A full message passes without waiting.
const WRITE_BUFFER: usize = 64 * 1024;

/// Bytes from below without a whole message among them. Four times what a message may have leaves room for fragments,
/// and bounds what a flood of empty ones costs: tungstenite takes fragments in without coming up for air.
const MAX_UNFINISHED: usize = 4 * MAX_MESSAGE;

/// WebSocket pings and pongs in a burst; one more is allowed each second. Neither end of a tunnel sends any (the
/// multiplexer has pings of its own), but something between them may.
const MAX_CONTROL: u32 = 100;

/// What is read and thrown away after the last words, so that the kernel does not answer late bytes with a reset, which
/// would take those words from the peer. It costs no memory, and no longer than the driver's `close_timeout`; a peer in
/// the middle of a message far too long should learn why all the same.
const MAX_LINGER: usize = 32 * 1024 * 1024;

/// How long an [echo](WebSocket::echo) waits for its peer to hang up.
const ECHO_LINGER: Duration = Duration::from_secs(2);

/// The longest reason a close frame can hold (RFC 6455 section 5.5).
const MAX_REASON: usize = 123;

/// A carrier of binary WebSocket messages (RFC 6455) over any connection.
///
/// Messages of at most 128 KiB, no compression; text is refused with 1003, what is too long with 1009, what breaks the
/// protocol with 1002, and a flood of fragments, pings or pongs with 1008.
#[derive(Debug)]
pub struct WebSocket<Io> {
    inner: WebSocketStream<Metered<Io>>,
    control: Allowance,
    closing: Closing,
    lingered: usize,
}

/// How far the end has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Closing {
    Open,
    Flushing,
    ShuttingDown,
    Lingering,
    Done,
}

impl<Io: AsyncRead + AsyncWrite + Unpin + Send + 'static> WebSocket<Io> {
    /// The server's end of a connection that was upgraded already.
    pub fn server(io: Io) -> Self {
        Self::upgraded(io, Role::Server)
    }

    /// The client's end of a connection that was upgraded already.
    pub fn client(io: Io) -> Self {
        Self::upgraded(io, Role::Client)
    }

    fn upgraded(io: Io, role: Role) -> Self {
        // Async in form only: there is nothing to wait for without a handshake.
        let inner = WebSocketStream::from_raw_socket(Metered::new(io), role, Some(limits())).now_or_never();
        Self::new(inner.expect("no handshake, no waiting"))
    }

    fn new(inner: WebSocketStream<Metered<Io>>) -> Self {
        Self { inner, control: Allowance::new(), closing: Closing::Open, lingered: 0 }
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
    pub async fn connect(io: Io, request: Request<()>) -> Result<Self, UpgradeError> {
        let request = with_upgrade_headers(request)?;
        let (mut inner, response) =
            client_async_with_config(request, Metered::new(io), Some(limits())).await?;
        if response.headers().contains_key(header::SEC_WEBSOCKET_EXTENSIONS) {
            return Err(UpgradeError::Protocol("an extension that nobody asked for".into()));
        }
        inner.get_mut().unfinished = 0;
        Ok(Self::new(inner))
    }

    /// Sends every message back, text too, until the peer has had enough: the endpoint as suites of conformance tests
    /// want it, with all its limits.
    #[doc(hidden)]
    pub async fn echo(mut self) -> CarrierError {
        let end = loop {
            let message = match poll_fn(|cx| Pin::new(&mut self.inner).poll_next(cx)).await {
                None => return io::Error::from(io::ErrorKind::UnexpectedEof).into(),
                Some(Err(WsError::Utf8(error))) => break violation(1007, error),
                Some(Err(error)) => break error.into(),
                Some(Ok(message @ Message::Text(_))) => {
                    self.inner.get_mut().unfinished = 0;
                    message
                }
                Some(Ok(message)) => match self.received(message) {
                    None => continue,
                    Some(Ok(message)) => Message::Binary(message),
                    Some(Err(end)) => break end,
                },
            };
            if let Err(error) = self.inner.send(message).await {
                break error.into();
            }
        };
        let (code, reason) = match &end {
            CarrierError::Violation { code, what } => (*code, what.as_ref()),
            _ => (1000, ""),
        };
        let _ = timeout(ECHO_LINGER, poll_fn(|cx| self.poll_close(cx, code, reason))).await;
        end
    }

    fn received(&mut self, message: Message) -> Option<Result<Bytes, CarrierError>> {
        match message {
            Message::Binary(message) => {
                self.inner.get_mut().unfinished = 0;
                Some(Ok(message))
            }
            Message::Text(_) => Some(Err(violation(1003, "a text message"))),
            Message::Close(frame) => Some(Err(match frame {
                Some(frame) => {
                    CarrierError::Closed { code: frame.code.into(), reason: frame.reason.as_str().to_owned() }
                }
                None => CarrierError::Closed { code: 1005, reason: String::new() },
            })),
            Message::Ping(_) | Message::Pong(_) if self.control.spend() => None,
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {
                Some(Err(violation(1008, "too many WebSocket pings")))
            }
        }
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin + Send + 'static> Carrier for WebSocket<Io> {
    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, CarrierError>>> {
        loop {
            match ready!(Pin::new(&mut self.inner).poll_next(cx)) {
                None => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                Some(Ok(message)) => {
                    if let Some(received) = self.received(message) {
                        return Poll::Ready(Some(received));
                    }
                }
            }
        }
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_ready(cx).map_err(into_io)
    }

    fn start_send(&mut self, message: &mut BytesMut) -> io::Result<()> {
        let message = Message::Binary(message.split().freeze());
        Pin::new(&mut self.inner).start_send(message).map_err(into_io)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx).map_err(into_io)
    }

    fn poll_close(&mut self, cx: &mut Context<'_>, code: u16, reason: &str) -> Poll<io::Result<()>> {
        loop {
            self.closing = match self.closing {
                Closing::Open => {
                    let reason = &reason[..reason.floor_char_boundary(MAX_REASON)];
                    let frame = CloseFrame { code: code.into(), reason: reason.into() };
                    match Pin::new(&mut self.inner).start_send(Message::Close(Some(frame))) {
                        // The peer closed first, and has its answer.
                        Ok(()) | Err(WsError::ConnectionClosed | WsError::AlreadyClosed) => {}
                        Err(WsError::Protocol(ProtocolError::SendAfterClosing)) => {}
                        Err(error) => return Poll::Ready(Err(into_io(error))),
                    }
                    Closing::Flushing
                }
                Closing::Flushing => {
                    match ready!(Pin::new(&mut self.inner).poll_flush(cx)) {
                        Ok(()) | Err(WsError::ConnectionClosed | WsError::AlreadyClosed) => {}
                        Err(error) => return Poll::Ready(Err(into_io(error))),
                    }
                    Closing::ShuttingDown
                }
                Closing::ShuttingDown => {
                    ready!(Pin::new(&mut self.inner.get_mut().io).poll_shutdown(cx))?;
                    Closing::Lingering
                }
                Closing::Lingering => {
                    let mut late = [0; 4096];
                    let mut late = ReadBuf::new(&mut late);
                    ready!(Pin::new(&mut self.inner.get_mut().io).poll_read(cx, &mut late))?;
                    self.lingered += late.filled().len();
                    let over = late.filled().is_empty() || self.lingered > MAX_LINGER;
                    if over { Closing::Done } else { Closing::Lingering }
                }
                Closing::Done => return Poll::Ready(Ok(())),
            }
        }
    }
}

fn limits() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(WRITE_BUFFER)
        // A message is given only when the one before has left, so there is always room: for it, and for pongs.
        .max_write_buffer_size(WRITE_BUFFER + 2 * MAX_MESSAGE)
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE))
}

fn with_upgrade_headers(mut request: Request<()>) -> Result<Request<()>, UpgradeError> {
    let host = request.uri().authority().map(|authority| {
        let authority = authority.as_str();
        authority.rsplit_once('@').map_or(authority, |(_, host)| host).to_owned()
    });
    let host = host.ok_or_else(|| UpgradeError::Protocol("no host to ask".into()))?;
    let host = HeaderValue::from_str(&host).map_err(|error| UpgradeError::Protocol(error.into()))?;
    let key = HeaderValue::from_str(&generate_key()).map_err(|error| UpgradeError::Protocol(error.into()))?;
    let wanted: [(HeaderName, HeaderValue); 5] = [
        (header::HOST, host),
        (header::CONNECTION, HeaderValue::from_static("Upgrade")),
        (header::UPGRADE, HeaderValue::from_static("websocket")),
        (header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13")),
        (header::SEC_WEBSOCKET_KEY, key),
    ];
    for (name, value) in wanted {
        request.headers_mut().entry(name).or_insert(value);
    }
    Ok(request)
}

fn violation(code: u16, what: impl Into<Cow<'static, str>>) -> CarrierError {
    CarrierError::Violation { code, what: what.into() }
}

fn into_io(error: WsError) -> io::Error {
    match error {
        WsError::Io(error) => error,
        WsError::ConnectionClosed | WsError::AlreadyClosed => io::ErrorKind::BrokenPipe.into(),
        error => io::Error::other(error),
    }
}

impl From<WsError> for CarrierError {
    fn from(error: WsError) -> Self {
        match error {
            WsError::Io(error) if error.get_ref().is_some_and(|inner| inner.is::<Unfinished>()) => {
                violation(1008, "too many fragments")
            }
            WsError::Protocol(ProtocolError::ResetWithoutClosingHandshake) => {
                Self::Io(io::ErrorKind::UnexpectedEof.into())
            }
            WsError::Protocol(error) => violation(1002, error.to_string()),
            WsError::Capacity(error) => violation(1009, error.to_string()),
            // Only text must be UTF-8, and text is refused in any case.
            WsError::Utf8(_) => violation(1003, "a text message"),
            WsError::AttackAttempt => violation(1008, "a flood"),
            error => Self::Io(into_io(error)),
        }
    }
}

impl From<WsError> for UpgradeError {
    fn from(error: WsError) -> Self {
        match error {
            WsError::Http(response) => match response.status() {
                StatusCode::UNAUTHORIZED => Self::Unauthorized,
                StatusCode::FORBIDDEN => Self::Forbidden,
                status => Self::Status(status),
            },
            WsError::Io(error) => Self::Io(error),
            error => Self::Protocol(error.into()),
        }
    }
}

// === Allowance ===

/// A number of things that may happen in a burst, and one more each second.
#[derive(Debug)]
struct Allowance {
    left: u32,
    refilled: Instant,
}

impl Allowance {
    fn new() -> Self {
        Self { left: MAX_CONTROL, refilled: Instant::now() }
    }

    /// Whether one more may happen.
    fn spend(&mut self) -> bool {
        let earned = self.refilled.elapsed().as_secs();
        self.refilled += Duration::from_secs(earned);
        self.left = self.left.saturating_add(u32::try_from(earned).unwrap_or(u32::MAX)).min(MAX_CONTROL);
        self.left = match self.left.checked_sub(1) {
            Some(left) => left,
            None => return false,
        };
        true
    }
}

// === Metered ===

/// Counts what is read until somebody says that it made a whole message, and fails beyond [`MAX_UNFINISHED`].
#[derive(Debug)]
struct Metered<Io> {
    io: Io,
    unfinished: usize,
}

#[derive(Debug)]
struct Unfinished;

impl fmt::Display for Unfinished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no whole message in very many bytes")
    }
}

impl std::error::Error for Unfinished {}

impl<Io> Metered<Io> {
    const fn new(io: Io) -> Self {
        Self { io, unfinished: 0 }
    }
}

impl<Io: AsyncRead + Unpin> AsyncRead for Metered<Io> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.unfinished > MAX_UNFINISHED {
            return Poll::Ready(Err(io::Error::other(Unfinished)));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        self.unfinished += buf.filled().len() - before;
        Poll::Ready(Ok(()))
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for Metered<Io> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
