use std::borrow::Cow;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use anyproxy_core::end_turn;
use bytes::{Buf as _, Bytes, BytesMut};
use http::{HeaderName, HeaderValue, Request, StatusCode, header};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Duration, Instant, timeout};
use tokio_tungstenite::client_async_with_config;
use tokio_tungstenite::tungstenite::Error as WsError;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_util::io::poll_read_buf;

use crate::outbox::Outbox;
use crate::rfc6455::{Decoder, Encoder, Incoming, MAX_HEAD, Opcode, Role, Violation};
use crate::{Carrier, CarrierError, UpgradeError};

/// The least that is read at once, and what an idle connection keeps: a few keystrokes of many streams.
const LEAST_READ: usize = 8 * 1024;

/// Reads after which a message that is not whole yet waits for the next turn: a line that brings it in crumbs is not
/// followed for as long as they come.
const READS_PER_TURN: u32 = 16;

/// What is written at once where there is more: a message of a full frame at first, and up to four on a line that has
/// taken all so far. Less costs system calls and wakes the peer more often; more makes keystrokes wait behind it.
const BATCH: (usize, usize) = (64 * 1024, 4 * 64 * 1024);

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
    io: Io,
    decoder: Decoder,
    encoder: Encoder,
    /// What was read and not yet taken apart.
    inbox: BytesMut,
    outbox: Outbox,
    /// How much waits before it is written, if no flush comes first.
    batch: usize,
    /// What was written since the last flush.
    written: usize,
    /// About how long the peer's messages are, so that the next one finds room where it is read.
    usual: usize,
    /// The answer to the latest ping (RFC 6455 section 5.5.3), until there is room for it.
    pong: Option<Bytes>,
    control: Allowance,
    /// The peer closed; it has its answer.
    closed: bool,
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
        Self {
            io,
            decoder: Decoder::new(role),
            encoder: Encoder::new(role),
            inbox: BytesMut::new(),
            outbox: Outbox::default(),
            batch: BATCH.0,
            written: 0,
            usual: 0,
            pong: None,
            control: Allowance::new(),
            closed: false,
            closing: Closing::Open,
            lingered: 0,
        }
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
        let (upgraded, response) = client_async_with_config(request, Upgrading::new(io), None).await?;
        if response.headers().contains_key(header::SEC_WEBSOCKET_EXTENSIONS) {
            return Err(UpgradeError::Protocol("an extension that nobody asked for".into()));
        }
        let Upgrading { io, ahead, .. } = upgraded.into_inner();
        Ok(Self { inbox: ahead, ..Self::upgraded(io, Role::Client) })
    }

    /// Sends every message back, text too, until the peer has had enough: the endpoint as suites of conformance tests
    /// want it, with all its limits.
    #[doc(hidden)]
    pub async fn echo(mut self) -> CarrierError {
        let end = loop {
            let (opcode, message) = match poll_fn(|cx| self.poll_message(cx)).await {
                None => return io::Error::from(io::ErrorKind::UnexpectedEof).into(),
                Some(Err(error)) => break error,
                Some(Ok(Incoming::Text(text))) if str::from_utf8(&text).is_err() => {
                    break violation(1007, "text that is not UTF-8");
                }
                Some(Ok(Incoming::Text(text))) => (Opcode::Text, text),
                Some(Ok(Incoming::Binary(message))) => (Opcode::Binary, message),
                Some(Ok(_)) => continue,
            };
            self.encoder.encode(opcode, &message, self.outbox.block());
            if let Err(error) = poll_fn(|cx| Carrier::poll_flush(&mut self, cx)).await {
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

    /// The next message, text or binary; what else there is is answered here.
    fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Incoming, CarrierError>>> {
        let mut reads = 0;
        while !self.closed {
            match self.decoder.decode(&mut self.inbox) {
                Err(violation) => return Poll::Ready(Some(Err(violation.into()))),
                Ok(Some(incoming)) => {
                    if let Some(received) = self.received(cx, incoming) {
                        return Poll::Ready(Some(received));
                    }
                }
                Ok(None) => {
                    if reads == READS_PER_TURN {
                        return end_turn(cx);
                    }
                    reads += 1;
                    self.make_room();
                    if ready!(poll_read_buf(Pin::new(&mut self.io), cx, &mut self.inbox))? == 0 {
                        let end = io::Error::from(io::ErrorKind::UnexpectedEof);
                        return Poll::Ready(Some(Err(end.into())));
                    }
                }
            }
        }
        Poll::Ready(None)
    }

    /// What of it is a message; the rest is answered here.
    fn received(
        &mut self,
        cx: &mut Context<'_>,
        incoming: Incoming,
    ) -> Option<Result<Incoming, CarrierError>> {
        match incoming {
            Incoming::Binary(ref message) | Incoming::Text(ref message) => {
                self.usual = message.len().max(self.usual / 2);
                Some(Ok(incoming))
            }
            Incoming::Close(words) => {
                self.closed = true;
                // The same code back (RFC 6455 section 5.5.1), unless this end has closed already.
                if self.closing == Closing::Open {
                    let code = words.as_ref().map(|(code, _)| code.to_be_bytes());
                    let payload = code.as_ref().map_or(&[][..], |code| code);
                    self.encoder.encode(Opcode::Close, payload, self.outbox.block());
                }
                let (code, reason) = words.unwrap_or((1005, String::new()));
                Some(Err(CarrierError::Closed { code, reason }))
            }
            Incoming::Ping(_) | Incoming::Pong if !self.control.spend() => {
                Some(Err(violation(1008, "too many WebSocket pings")))
            }
            Incoming::Ping(payload) => {
                self.pong = Some(payload);
                // A failure shows again with the next read or write.
                let _ = Carrier::poll_flush(self, cx);
                None
            }
            Incoming::Pong => None,
        }
    }

    /// Makes room for a read: for the rest of the message under way, or for one as long as the latest.
    fn make_room(&mut self) {
        let wanted = match self.decoder.missing() {
            0 => (self.usual + MAX_HEAD).max(LEAST_READ),
            // No more: there is room for all of it once there was for its beginning, and nothing is moved for the rest.
            missing => missing,
        };
        // What a large message needed is not kept for small ones.
        if self.inbox.is_empty() && self.inbox.capacity() / 8 > wanted {
            self.inbox = BytesMut::new();
        }
        if !self.inbox.try_reclaim(wanted) {
            // By itself it would double, and slices of it that wait for readers would keep all of that.
            let mut inbox = BytesMut::with_capacity(self.inbox.len() + wanted);
            inbox.extend_from_slice(&self.inbox);
            self.inbox = inbox;
        }
    }

    /// Writes until less than `enough` waits. A line that makes us wait is given smaller batches from here on.
    fn poll_write(&mut self, cx: &mut Context<'_>, enough: usize) -> Poll<io::Result<()>> {
        while self.outbox.len() >= enough {
            let Poll::Ready(written) = self.outbox.poll_write(cx, &mut self.io) else {
                (self.batch, self.written) = (BATCH.0, 0);
                return Poll::Pending;
            };
            self.written += written?;
        }
        Poll::Ready(Ok(()))
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin + Send + 'static> Carrier for WebSocket<Io> {
    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, CarrierError>>> {
        let message = ready!(self.poll_message(cx));
        Poll::Ready(message.map(|message| match message? {
            Incoming::Binary(message) => Ok(message),
            _ => Err(violation(1003, "a text message")),
        }))
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_write(cx, self.batch)
    }

    fn start_send(&mut self, message: &mut Vec<Bytes>) -> io::Result<()> {
        if self.closed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.encoder.encode_message(message, &mut self.outbox);
        Ok(())
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write(cx, self.batch))?;
        if let Some(pong) = self.pong.take().filter(|_| !self.closed && self.closing == Closing::Open) {
            self.encoder.encode(Opcode::Pong, &pong, self.outbox.block());
        }
        ready!(self.poll_write(cx, 1))?;
        self.outbox.shrink(self.written.max(LEAST_READ));
        let flush = Pin::new(&mut self.io).poll_flush(cx);
        if flush.is_pending() {
            (self.batch, self.written) = (BATCH.0, 0);
        } else if std::mem::take(&mut self.written) >= self.batch {
            self.batch = (2 * self.batch).min(BATCH.1);
        }
        flush
    }

    fn poll_close(&mut self, cx: &mut Context<'_>, code: u16, reason: &str) -> Poll<io::Result<()>> {
        loop {
            self.closing = match self.closing {
                Closing::Open => {
                    // A peer that closed first has its answer.
                    if !self.closed {
                        let mut words = code.to_be_bytes().to_vec();
                        words.extend_from_slice(&reason.as_bytes()[..reason.floor_char_boundary(MAX_REASON)]);
                        self.encoder.encode(Opcode::Close, &words, self.outbox.block());
                    }
                    Closing::Flushing
                }
                Closing::Flushing => {
                    ready!(self.poll_flush(cx))?;
                    Closing::ShuttingDown
                }
                Closing::ShuttingDown => {
                    ready!(Pin::new(&mut self.io).poll_shutdown(cx))?;
                    Closing::Lingering
                }
                Closing::Lingering => {
                    let mut late = [0; 4096];
                    let mut late = ReadBuf::new(&mut late);
                    ready!(Pin::new(&mut self.io).poll_read(cx, &mut late))?;
                    self.lingered += late.filled().len();
                    let over = late.filled().is_empty() || self.lingered > MAX_LINGER;
                    if over { Closing::Done } else { Closing::Lingering }
                }
                Closing::Done => return Poll::Ready(Ok(())),
            }
        }
    }
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

impl From<Violation> for CarrierError {
    fn from(Violation { code, what }: Violation) -> Self {
        violation(code, what)
    }
}

impl From<WsError> for UpgradeError {
    fn from(error: WsError) -> Self {
        match error {
            WsError::Http(response) => match response.status() {
                StatusCode::UNAUTHORIZED => Self::Unauthorized,
                StatusCode::FORBIDDEN => Self::Forbidden,
                status => {
                    let retry_after = response.headers().get(header::RETRY_AFTER);
                    let seconds = retry_after.and_then(|value| value.to_str().ok()?.trim().parse().ok());
                    Self::Status { status, retry_after: seconds.map(Duration::from_secs) }
                }
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

// === Upgrading ===

/// Reads no further than the end of the server's answer, so that what comes behind it is not lost with what read it.
#[derive(Debug)]
struct Upgrading<Io> {
    io: Io,
    /// What was read and not handed out.
    ahead: BytesMut,
    /// How much of the empty line that ends the answer was handed out.
    matched: usize,
}

/// The end of the answer's head.
const END: &[u8] = b"\r\n\r\n";

impl<Io> Upgrading<Io> {
    fn new(io: Io) -> Self {
        Self { io, ahead: BytesMut::new(), matched: 0 }
    }
}

impl<Io: AsyncRead + Unpin> AsyncRead for Upgrading<Io> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.ahead.is_empty() {
            this.ahead.reserve(LEAST_READ);
            ready!(poll_read_buf(Pin::new(&mut this.io), cx, &mut this.ahead))?;
        }
        while this.matched < END.len() && buf.remaining() > 0 && !this.ahead.is_empty() {
            let byte = this.ahead.get_u8();
            buf.put_slice(&[byte]);
            this.matched = match this.matched {
                at if byte == END[at] => at + 1,
                _ => usize::from(byte == END[0]),
            };
        }
        Poll::Ready(Ok(()))
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for Upgrading<Io> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Waker;

    use anyproxy_mux::frame::MAX_MESSAGE;
    use tokio::io::{AsyncWriteExt as _, duplex, join, sink};

    use super::*;

    /// Has another byte of an endless ping whenever it is asked.
    struct Crumbs(Arc<AtomicUsize>);

    impl AsyncRead for Crumbs {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            let message = [0x82, 0xff, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
            let at = self.0.fetch_add(1, Ordering::Relaxed);
            buf.put_slice(&[message.get(at).copied().unwrap_or(0)]);
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn a_message_in_crumbs_leaves_others_their_turn() {
        let reads = Arc::new(AtomicUsize::new(0));
        let mut socket = WebSocket::server(join(Crumbs(reads.clone()), sink()));
        for turn in 1..=3 {
            let mut cx = Context::from_waker(Waker::noop());
            assert!(socket.poll_recv(&mut cx).is_pending());
            assert_eq!(reads.load(Ordering::Relaxed), turn * READS_PER_TURN as usize);
        }
    }

    #[tokio::test]
    async fn what_a_message_is_received_in_is_no_longer_than_the_longest_and_its_head() {
        let (near, mut far) = duplex(1024 * 1024);
        let mut socket = WebSocket::server(near);
        let message = |length: u32| {
            let mut frame = vec![0x82, 0xff, 0, 0, 0, 0];
            frame.extend_from_slice(&length.to_be_bytes());
            frame.resize(frame.len() + 4 + length as usize, 0);
            frame
        };
        // Most of a long one comes with a short one before it, and the rest has no room behind them.
        let both = [message(MAX_MESSAGE as u32), message(1_000)].concat();
        far.write_all(&both.repeat(3)).await.unwrap();
        let mut cx = Context::from_waker(Waker::noop());
        for _ in 0..6 {
            let Poll::Ready(Some(Ok(message))) = socket.poll_recv(&mut cx) else { panic!("no message") };
            // What is left lies behind it.
            let memory = message.len() + socket.inbox.capacity();
            assert!(memory <= MAX_MESSAGE + 2 * MAX_HEAD + LEAST_READ, "{memory}");
        }
    }

    #[tokio::test]
    async fn batches_grow_on_a_line_that_takes_all_and_start_anew_on_one_that_does_not() {
        let (near, _far) = duplex(1024 * 1024);
        let mut socket = WebSocket::server(near);
        let mut cx = Context::from_waker(Waker::noop());
        let message = || vec![Bytes::from(vec![0; BATCH.0])];
        for batch in [BATCH.0, 2 * BATCH.0, BATCH.1] {
            assert_eq!(socket.batch, batch);
            while socket.written + socket.outbox.len() < batch {
                assert!(socket.poll_ready(&mut cx).is_ready());
                socket.start_send(&mut message()).unwrap();
            }
            assert!(Carrier::poll_flush(&mut socket, &mut cx).is_ready());
        }
        assert_eq!(socket.batch, BATCH.1, "and no further");
        while socket.poll_ready(&mut cx).is_ready() {
            socket.start_send(&mut message()).unwrap();
        }
        assert_eq!(socket.batch, BATCH.0);
    }
}
