//! HTTP/2 to users (RFC 9113), with extended CONNECT (RFC 8441).
//!
//! On h2 itself instead of hyper's server around it, for one reason: a tunnel's reset must stay a reset. Hyper's
//! upgraded HTTP/2 streams read a cancelled stream as its end and end when they are dropped.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use anyproxy_core::{BoxError, ByteStream};
use anyproxy_front::{Connection, Relay, RelayConfig};
use bytes::{Buf as _, Bytes};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::header::{self, HeaderValue};
use http::{Method, Request, Response, StatusCode, Version};
use http_body::Body as _;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tower::{Service, ServiceExt as _};
use tracing::debug;

use crate::ask::expects_continue;
use crate::body::UserBody;
use crate::config::Config;
use crate::proxy::{AnswerBody, linger};
use crate::requests::Handoff;
use crate::session::{Session, Watched};
use crate::wire::content_length;

/// Streams that a user opened and reset before they were looked at, before the connection ends: rapid reset
/// (CVE-2023-44487) costs a connection this often, and no more.
const MAX_PENDING_RESETS: usize = 20;
/// Streams reset for a user's errors before the connection ends (RUSTSEC-2024-0003).
const MAX_ERROR_RESETS: usize = 256;
/// Bytes of responses that wait for a user who does not read, for each stream.
const SEND_BUFFER: usize = 64 * 1024;
/// The most of a stream that is handed to h2 at once.
const SEND_PIECE: usize = 16 * 1024;

/// How long what was received of tunnels may take to be handed on, once the connection is gone.
const AFTERMATH: Duration = Duration::from_secs(600);

/// Serves one connection until it ends and the last of its requests and tunnels is done.
pub(crate) async fn serve<U, S, St>(
    mut user: Watched<U>,
    service: S,
    new_handoff: fn() -> Handoff<St>,
    config: &Config,
    session: &Session,
    stop: &CancellationToken,
) -> Result<(), h2::Error>
where
    U: Connection,
    S: Service<Request<UserBody>, Response = Response<AnswerBody>, Error = BoxError, Future: Send + 'static>
        + Clone
        + Send
        + 'static,
    St: ByteStream,
{
    let head = u32::try_from(config.max_head).unwrap_or(u32::MAX);
    let greeting = h2::server::Builder::new()
        .initial_window_size(config.stream_window)
        .initial_connection_window_size(config.connection_window)
        .max_concurrent_streams(config.max_concurrent_streams)
        .max_header_list_size(head)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .max_local_error_reset_streams(Some(MAX_ERROR_RESETS))
        .max_send_buffer_size(SEND_BUFFER)
        .enable_connect_protocol()
        .handshake::<_, Bytes>(&mut user);
    // Until then nothing was asked for.
    let Some(greeted) = stop.run_until_cancelled(greeting).await else { return Ok(()) };
    let mut connection = greeted?;
    let mut streams = JoinSet::new();
    let mut stopping = false;
    let ended = loop {
        tokio::select! {
            biased;
            Some(_) = streams.join_next(), if !streams.is_empty() => {}
            accepted = poll_fn(|cx| connection.poll_accept(cx)) => match accepted {
                Some(Ok((request, respond))) => {
                    let service = service.clone();
                    let limits = (config.relay, config.idle_timeout);
                    streams.spawn(exchange(request, respond, service, new_handoff(), limits));
                }
                Some(Err(error)) => break Err(error),
                None => break Ok(()),
            },
            () = stop.cancelled(), if !stopping => {
                stopping = true;
                connection.graceful_shutdown();
            }
            // Found out within `poll_accept`, so looked at behind it and woken by nothing.
            () = poll_fn(|_| if session.is_overdue() { Poll::Ready(()) } else { Poll::Pending }), if !stopping => {
                stopping = true;
                connection.graceful_shutdown();
            }
        }
    };
    // What was received of a tunnel is still handed on to its stream; its end, too, where that was found before the
    // connection's. All else that is left sees at once that the connection is gone.
    drop(connection);
    let leaving = async {
        // One that ends in good order may leave its stream behind.
        session.park.clear();
        while streams.join_next().await.is_some() {
            session.park.clear();
        }
    };
    let _ = tokio::join!(linger(user.into_inner()), timeout(AFTERMATH, leaving));
    // A target that takes nothing does not keep the seats of a user who is gone.
    streams.shutdown().await;
    ended
}

/// One request, its response, and the tunnel if it opened one.
async fn exchange<S, St>(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    service: S,
    handoff: Handoff<St>,
    (relay, idle): (RelayConfig, Option<Duration>),
) where
    S: Service<Request<UserBody>, Response = Response<AnswerBody>, Error = BoxError>,
    St: ByteStream,
{
    let (is_connect, is_head) = (request.method() == Method::CONNECT, request.method() == Method::HEAD);
    let (mut parts, body) = request.into_parts();
    parts.version = Version::HTTP_2;
    parts.extensions.insert(handoff.clone());
    // What else is expected is refused with the rest of the head.
    if matches!(expects_continue(&parts), Ok(true)) {
        // This hop has no reason to make the user wait: flow control does.
        parts.headers.remove(header::EXPECT);
        let mut go_on = Response::new(());
        *go_on.status_mut() = StatusCode::CONTINUE;
        if respond.send_informational(go_on).is_err() {
            return;
        }
    }
    let length = content_length(&parts.headers).ok().flatten();
    // A tunnel's bytes are no body.
    let (body, tunnelled) = if is_connect { (None, Some(body)) } else { (Some(body), None) };
    let request =
        Request::from_parts(parts, body.map_or_else(UserBody::empty, |body| UserBody::http2(body, length)));
    let response = tokio::select! {
        response = service.oneshot(request) => match response {
            Ok(response) => response,
            // Only a layer that is not ready fails like this.
            Err(error) => {
                debug!(error = ?error.to_string(), "not answered");
                return respond.send_reset(Reason::REFUSED_STREAM);
            }
        },
        // The user has lost interest: dropping the request gives up its dial.
        _ = poll_fn(|cx| respond.poll_reset(cx)) => return,
    };
    let (mut head, body) = response.into_parts();
    head.headers.remove(header::CONNECTION);
    // What is sent on without a date gets one (RFC 9110 section 6.6.1).
    if !head.headers.contains_key(header::DATE)
        && let Ok(now) = HeaderValue::try_from(httpdate::fmt_http_date(SystemTime::now()))
    {
        head.headers.insert(header::DATE, now);
    }
    let stream = handoff.take().filter(|_| head.status.is_success());
    // What the proxy itself answers to a HEAD has words, which hyper leaves out in HTTP/1.
    let ends = stream.is_none() && (is_head || body.is_end_stream());
    let Ok(send) = respond.send_response(Response::from_parts(head, ()), ends) else { return };
    match (stream, tunnelled) {
        (Some(stream), Some(receive)) => {
            let end = Relay::new(Tunnel::new(send, receive), stream, relay).await;
            debug!(%end, "tunnel closed");
        }
        _ if ends => {}
        _ => send_body(send, body, idle).await,
    }
}

/// Sends a response's body at the user's pace, as long as they take something within `idle`. One that breaks off is reset,
/// never ended.
async fn send_body(mut send: SendStream<Bytes>, mut body: AnswerBody, idle: Option<Duration>) {
    loop {
        let frame = tokio::select! {
            frame = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)) => frame,
            _ = poll_fn(|cx| send.poll_reset(cx)) => return,
        };
        let sent = match frame {
            None => send.send_data(Bytes::new(), true).map_err(BoxError::from),
            Some(Err(error)) => Err(error),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => match send_data(&mut send, data, body.is_end_stream(), idle).await {
                    Ok(()) if body.is_end_stream() => return,
                    sent => {
                        if sent.is_ok() {
                            continue;
                        }
                        sent
                    }
                },
                Err(frame) => {
                    send.send_trailers(frame.into_trailers().unwrap_or_default()).map_err(BoxError::from)
                }
            },
        };
        if sent.is_err() {
            send.send_reset(Reason::INTERNAL_ERROR);
        }
        return;
    }
}

async fn send_data(
    send: &mut SendStream<Bytes>,
    mut data: Bytes,
    last: bool,
    idle: Option<Duration>,
) -> Result<(), BoxError> {
    while !data.is_empty() {
        let room = poll_fn(|cx| poll_room(send, data.len(), cx));
        let room = match idle {
            Some(idle) => timeout(idle, room).await??,
            None => room.await?,
        };
        let piece = data.split_to(room.min(data.len()));
        send.send_data(piece, last && data.is_empty())?;
    }
    Ok(())
}

/// Room to send, at least a byte; never asked for without something to send, since what is reserved is taken from
/// the whole connection's window.
fn poll_room(
    send: &mut SendStream<Bytes>,
    wanted: usize,
    cx: &mut Context<'_>,
) -> Poll<Result<usize, h2::Error>> {
    send.reserve_capacity(wanted.min(SEND_PIECE));
    loop {
        match send.capacity() {
            0 => match ready!(send.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(error)),
                None => return Poll::Ready(Err(Reason::CANCEL.into())),
            },
            room => return Poll::Ready(Ok(room)),
        }
    }
}

// === Tunnel ===

/// A stream of an HTTP/2 connection as a user's connection: an end is END_STREAM, a reset is RST_STREAM, both ways.
struct Tunnel {
    send: SendStream<Bytes>,
    receive: RecvStream,
    /// Received and not read.
    unread: Bytes,
    ended: bool,
}

impl Tunnel {
    const fn new(send: SendStream<Bytes>, receive: RecvStream) -> Self {
        Self { send, receive, unread: Bytes::new(), ended: false }
    }
}

impl Connection for Tunnel {
    fn abort(&mut self) {
        self.send.send_reset(Reason::CONNECT_ERROR);
    }

    fn poll_lost(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        self.send.poll_reset(cx).map(|reset| reset.map_or_else(broken, |reason| broken(reason.into())))
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        if !self.ended {
            self.send.send_reset(Reason::CANCEL);
        }
    }
}

fn broken(error: h2::Error) -> io::Error {
    if error.is_io() {
        return error.into_io().unwrap_or_else(|| io::ErrorKind::ConnectionReset.into());
    }
    io::Error::new(io::ErrorKind::ConnectionReset, error)
}

impl AsyncRead for Tunnel {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.unread.is_empty() {
            match ready!(self.receive.poll_data(cx)) {
                Some(data) => self.unread = data.map_err(broken)?,
                None => return Poll::Ready(Ok(())),
            }
        }
        let taken = self.unread.len().min(buf.remaining());
        buf.put_slice(&self.unread[..taken]);
        self.unread.advance(taken);
        self.receive.flow_control().release_capacity(taken).map_err(broken)?;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let room = ready!(poll_room(&mut self.send, buf.len(), cx)).map_err(broken)?;
        let taken = room.min(buf.len());
        self.send.send_data(Bytes::copy_from_slice(&buf[..taken]), false).map_err(broken)?;
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.ended {
            self.ended = true;
            self.send.send_data(Bytes::new(), true).map_err(broken)?;
        }
        Poll::Ready(Ok(()))
    }
}
