//! One request and its response on a stream to a target.
//!
//! Hyper's client is not used here. It owns its connection in a task of its own, while our stream belongs to one
//! dial: what the layers hold for it (a seat, a gauge, a meter) must end with this response's last byte, even if the
//! raw stream below goes on to serve the next request. So the exchange is the response's body: polled by the user's
//! connection, without a task, without a channel, and with the stream in its hand when the last byte has come.

use std::io::{self, IoSlice};
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use anyproxy_core::{BoxError, ByteStream};
use bytes::{Buf as _, Bytes, BytesMut};
use http::{HeaderMap, Method, StatusCode};
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep};

use crate::config::Config;
use crate::fields::{RequestBody, clean_trailers};
use crate::refusal::Fault;
use crate::reuse::Lease;
use crate::session::{Busy, Session, Timer};
use crate::wire::{
    CHUNK_END, Chunk, ChunkDecoder, Framing, Malformed, ResponseHead, content_length, encode_chunk_size,
    encode_last_chunk, head_end,
};

/// How long a request's body waits for the target's 100 (Continue) before it is sent without.
const CONTINUE_PATIENCE: Duration = Duration::from_secs(1);

/// A request on its way to a target, then the response on its way back.
pub(crate) struct Exchange<S, B> {
    /// `None` once the exchange is over.
    stream: Option<S>,
    lease: Lease,
    busy: Busy,
    method: Method,
    upload: Upload<B>,
    out: Out,
    reader: HeadReader,
    download: Download,
    /// What the response says of its length; where it has no body, that of the one it stands for.
    length: Option<u64>,
    /// Whether the target said that it goes on behind this response,
    keeps_alive: bool,
    /// and that it took the request, of which it may still read the rest.
    accepts: bool,
    upgrades: bool,
    max_padding: usize,
    silence: Silence,
    /// What ended the response too early; told once what came before has left.
    fault: Option<Fault>,
}

enum Upload<B> {
    /// Waits for 100 (Continue).
    Held {
        body: B,
        left: Left,
        patience: Pin<Box<Sleep>>,
    },
    Sending {
        body: B,
        left: Left,
    },
    Sent,
    /// The target takes no more; it may have said why.
    Broken,
}

/// What is still to come of a request's body: so many bytes, or chunks.
#[derive(Clone, Copy)]
pub(crate) enum Left {
    Bytes(u64),
    Chunks,
}

enum Download {
    /// Not begun.
    Head,
    Length(u64),
    Chunked(Box<ChunkDecoder>),
    UntilEnd,
    /// A response without a body has come, and waits for the end of the request.
    Bodiless(Box<ResponseHead>),
    /// All has come; what ends it waits for the end of the request: the last data, trailers, or nothing more.
    Held(Option<Box<Frame<Bytes>>>),
    Done,
}

/// What an exchange is about.
pub(crate) struct Request<B> {
    pub(crate) method: Method,
    /// The encoded head.
    pub(crate) head: BytesMut,
    /// The body and how it is framed; `None` if there is none.
    pub(crate) body: Option<(B, Left)>,
    /// Whether the body waits for 100 (Continue).
    pub(crate) expects: bool,
    /// Whether 101 may be answered.
    pub(crate) upgrades: bool,
}

impl<S, B> Exchange<S, B>
where
    S: ByteStream,
    B: Body<Data = Bytes, Error: Into<BoxError>> + Unpin,
{
    pub(crate) fn new(stream: S, request: Request<B>, lease: Lease, busy: Busy, config: &Config) -> Self {
        let upload = match request.body {
            None => Upload::Sent,
            Some((body, left)) if request.expects => {
                Upload::Held { body, left, patience: Box::pin(tokio::time::sleep(CONTINUE_PATIENCE)) }
            }
            Some((body, left)) => Upload::Sending { body, left },
        };
        busy.session().dialled();
        busy.session().set_uploading(!matches!(upload, Upload::Sent));
        let silence = Silence::new(busy.session().clone(), config.idle_timeout);
        Self {
            stream: Some(stream),
            lease,
            busy,
            method: request.method,
            upload,
            out: Out { head: request.head, ..Out::default() },
            reader: HeadReader { partial: BytesMut::new(), room: config.max_head, heard: false },
            download: Download::Head,
            length: None,
            keeps_alive: false,
            accepts: false,
            upgrades: request.upgrades,
            max_padding: config.max_padding,
            silence,
            fault: None,
        }
    }

    /// Sends the request, as far as need be, and waits for the response's head. While the request's body is on its way,
    /// nothing is silent.
    pub(crate) fn poll_response(&mut self, cx: &mut Context<'_>) -> Poll<Result<ResponseHead, Fault>> {
        let head = self.poll_head(cx);
        if head.is_pending() {
            ready!(self.silence.poll(cx));
            return Poll::Ready(Err(Fault::Silent));
        }
        head
    }

    /// Interim responses are taken: 100 sets the request's body free, the others end here, since the user's side cannot be
    /// told them.
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<ResponseHead, Fault>> {
        loop {
            if let Poll::Ready(sent) = self.poll_upload(cx) {
                sent?;
            }
            if matches!(self.download, Download::Bodiless(_)) {
                ready!(self.poll_owed(cx));
                if let Download::Bodiless(head) = mem::replace(&mut self.download, Download::Done) {
                    self.finish(cx);
                    return Poll::Ready(Ok(*head));
                }
            }
            let stream = self.stream.as_mut().ok_or(Fault::Truncated)?;
            let head = ready!(self.reader.poll_read(stream, cx))?;
            match head.status {
                StatusCode::SWITCHING_PROTOCOLS if self.upgrades => return Poll::Ready(Ok(head)),
                StatusCode::SWITCHING_PROTOCOLS => {
                    return Poll::Ready(Err(Fault::Malformed(Malformed::Upgrade)));
                }
                StatusCode::CONTINUE if self.upload.set_free() => {
                    // The user's side says 100 once it is asked for the body, and not behind a final head, which may have
                    // come with this one: it gets its turn before more is read.
                    if let Poll::Ready(sent) = self.poll_upload(cx) {
                        sent?;
                    }
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                status if status.is_informational() => {}
                _ => {
                    self.begin_download(&head).map_err(Fault::Malformed)?;
                    if matches!(self.download, Download::Length(0)) {
                        if self.owes() {
                            self.download = Download::Bodiless(Box::new(head));
                            continue;
                        }
                        self.finish(cx);
                    }
                    return Poll::Ready(Ok(head));
                }
            }
        }
    }

    fn begin_download(&mut self, head: &ResponseHead) -> Result<(), Malformed> {
        self.silence.since = None;
        self.keeps_alive = head.keeps_alive();
        self.accepts = head.status.is_success();
        self.length = content_length(&head.headers)?;
        self.download = match head.framing(&self.method, self.length)? {
            Framing::Length(length) => Download::Length(length),
            Framing::Chunked => Download::Chunked(Box::new(ChunkDecoder::new(self.max_padding))),
            Framing::UntilEnd => {
                self.keeps_alive = false;
                Download::UntilEnd
            }
        };
        // What has not been asked for by now is wanted no more: a final answer has come.
        if matches!(self.upload, Upload::Held { .. }) {
            self.end_upload(Upload::Broken);
        }
        Ok(())
    }

    /// Waits while something is [owed](Self::owes), and no longer than the target is there and anything moves: the response
    /// is whole, and is told whatever becomes of its request.
    fn poll_owed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.owes()
            && let Some(stream) = &mut self.stream
        {
            match Pin::new(stream).poll_fill_buf(cx) {
                // Who answers no further request reads this one to throw it away; and whoever says more than a response
                // answers none, as far as we are concerned.
                Poll::Ready(Ok(_)) => self.keeps_alive = false,
                Poll::Ready(Err(_)) => self.break_off(),
                Poll::Pending => {}
            }
        }
        if self.owes() {
            ready!(self.silence.poll(cx));
            self.break_off();
        }
        Poll::Ready(())
    }

    /// The stream, for what follows a 101.
    pub(crate) const fn take_stream(&mut self) -> Option<S> {
        self.stream.take()
    }

    /// Whether the target has been given the whole request. If it is not, the user's connection ends with the response,
    /// and says so (RFC 9112 section 9.6).
    pub(crate) const fn has_sent(&self) -> bool {
        matches!(self.upload, Upload::Sent)
    }

    /// Whether it has, or will be as far as its response tells: some answer while they read on.
    pub(crate) const fn will_be_sent(&self) -> bool {
        self.has_sent() || (self.accepts && self.keeps_alive && matches!(self.upload, Upload::Sending { .. }))
    }

    /// Whether the end of the response waits for that of the request: nobody polls an exchange behind its end, and what
    /// the target reads on would be cut off. What the user has given is owed to any target that took the request, more
    /// only to one that goes on.
    fn owes(&self) -> bool {
        match self.upload {
            Upload::Sending { .. } => self.accepts && self.keeps_alive,
            Upload::Sent => self.accepts && !self.out.is_empty(),
            Upload::Held { .. } | Upload::Broken => false,
        }
    }

    pub(crate) const fn busy(&self) -> &Busy {
        &self.busy
    }

    /// What the response has said of its length.
    pub(crate) const fn length(&self) -> Option<u64> {
        self.length
    }

    /// Whether the response's end is known.
    pub(crate) const fn has_length(&self) -> bool {
        matches!(self.download, Download::Length(_) | Download::Done)
    }

    /// Sends what is there to send. An error is the user's; where the target takes no more, it may yet answer.
    fn poll_upload(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        loop {
            let Some(stream) = &mut self.stream else { return Poll::Ready(Ok(())) };
            match self.out.poll_write(stream, cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => {
                    self.break_off();
                    return Poll::Ready(Ok(()));
                }
                Poll::Pending => return Poll::Pending,
            }
            let (body, left) = match &mut self.upload {
                Upload::Sent | Upload::Broken => return Poll::Ready(Ok(())),
                Upload::Held { patience, .. } => {
                    ready!(patience.as_mut().poll(cx));
                    self.upload.set_free();
                    continue;
                }
                Upload::Sending { body, left } => (body, left),
            };
            let frame = ready!(Pin::new(body).poll_frame(cx));
            let frame = frame.transpose().map_err(|error| Fault::User(error.into()))?;
            match left.take(frame)? {
                Piece::Data(data) => {
                    self.silence.broken();
                    self.busy.session().earn(data.len());
                    self.out.push(data, matches!(left, Left::Chunks));
                    if matches!(left, Left::Bytes(0)) {
                        self.end_upload(Upload::Sent);
                    }
                }
                Piece::End(trailers) => {
                    if let Some(trailers) = trailers {
                        encode_last_chunk(&mut self.out.head, &trailers);
                    }
                    self.end_upload(Upload::Sent);
                }
            }
        }
    }

    /// The target takes no more of the request.
    fn break_off(&mut self) {
        self.end_upload(Upload::Broken);
        self.out = Out::default();
    }

    /// No more is read of the request's body.
    fn end_upload(&mut self, end: Upload<B>) {
        self.upload = end;
        self.busy.session().set_uploading(false);
    }

    fn poll_download(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        loop {
            if matches!(self.download, Download::Held(_)) {
                return self.poll_held(cx);
            }
            let Some(stream) = &mut self.stream else { return Poll::Ready(None) };
            let chunk = ready!(Pin::new(&mut *stream).poll_fill_buf(cx))
                .map_err(|error| Fault::Stream { error, heard: true })?;
            if chunk.is_empty() {
                if matches!(self.download, Download::UntilEnd) {
                    return self.poll_end(None, cx);
                }
                return Poll::Ready(Some(Err(Fault::Truncated)));
            }
            let (data, used) = match &mut self.download {
                Download::Head | Download::Bodiless(_) | Download::Held(_) | Download::Done => {
                    return Poll::Ready(None);
                }
                Download::UntilEnd => (Bytes::copy_from_slice(chunk), chunk.len()),
                Download::Length(left) => {
                    let here = usize::try_from(*left).map_or(chunk.len(), |left| left.min(chunk.len()));
                    *left -= here as u64;
                    (Bytes::copy_from_slice(&chunk[..here]), here)
                }
                Download::Chunked(decoder) => {
                    let (framing, found) = decoder.decode(chunk).map_err(Fault::Malformed)?;
                    match found {
                        Chunk::More => (Bytes::new(), framing),
                        Chunk::Data(length) => {
                            (Bytes::copy_from_slice(&chunk[framing..framing + length]), framing + length)
                        }
                        Chunk::End(mut trailers) => {
                            Pin::new(stream).consume(framing);
                            clean_trailers(&mut trailers);
                            let trailers = (!trailers.is_empty()).then(|| Frame::trailers(trailers));
                            return self.poll_end(trailers, cx);
                        }
                    }
                }
            };
            Pin::new(stream).consume(used);
            if data.is_empty() {
                continue;
            }
            if matches!(self.download, Download::Length(0)) {
                // With the last byte, not a poll later: nobody polls a body that has said its length.
                return self.poll_end(Some(Frame::data(data)), cx);
            }
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
    }

    /// The response has come whole, but for telling its `last` frame, which may have to wait.
    fn poll_end(
        &mut self,
        last: Option<Frame<Bytes>>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        if self.owes() {
            self.download = Download::Held(last.map(Box::new));
            return self.poll_held(cx);
        }
        self.finish(cx);
        Poll::Ready(last.map(Ok))
    }

    fn poll_held(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        ready!(self.poll_owed(cx));
        let held = mem::replace(&mut self.download, Download::Done);
        self.finish(cx);
        Poll::Ready(match held {
            Download::Held(Some(last)) => Some(Ok(*last)),
            _ => None,
        })
    }

    /// The response is complete. If the request is too, the stream is kept or ends whole; if not, its drop tells the
    /// target that the rest will not come.
    fn finish(&mut self, cx: &mut Context<'_>) {
        self.download = Download::Done;
        let Some(mut stream) = self.stream.take() else { return };
        if !matches!(self.upload, Upload::Sent) || !self.out.is_empty() {
            return;
        }
        if !self.lease.is_served() {
            return self.lease.see_off(stream);
        }
        // To those around it, it ends now.
        self.lease.give_back(self.keeps_alive);
        let _ = Pin::new(&mut stream).poll_shutdown(cx);
        let _ = Pin::new(&mut stream).poll_fill_buf(cx);
    }
}

impl<S, B> Body for Exchange<S, B>
where
    S: ByteStream,
    B: Body<Data = Bytes, Error: Into<BoxError>> + Unpin,
{
    type Data = Bytes;
    type Error = Fault;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        let this = &mut *self;
        if this.fault.is_some() {
            ready!(this.busy.session().poll_taken(cx));
            return Poll::Ready(this.fault.take().map(Err));
        }
        let fault = match this.poll_upload(cx) {
            Poll::Ready(Err(fault)) => fault,
            _ => match this.poll_download(cx) {
                Poll::Ready(Some(Err(fault))) => fault,
                Poll::Ready(frame) => {
                    this.silence.since = None;
                    return Poll::Ready(frame);
                }
                Poll::Pending => {
                    ready!(this.silence.poll(cx));
                    Fault::Silent
                }
            },
        };
        // The target learns it now. The user's side throws away what it holds when it is told: it gets a turn to send
        // that on, and as many more as the user takes for it.
        this.stream = None;
        this.fault = Some(fault);
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.download, Download::Done)
    }

    fn size_hint(&self) -> SizeHint {
        match self.download {
            Download::Length(left) => SizeHint::with_exact(left),
            Download::Done => SizeHint::with_exact(0),
            Download::Head
            | Download::Bodiless(_)
            | Download::Chunked(_)
            | Download::UntilEnd
            | Download::Held(_) => SizeHint::new(),
        }
    }
}

impl<B> Upload<B> {
    /// Whether it had been held.
    fn set_free(&mut self) -> bool {
        let held = matches!(self, Self::Held { .. });
        *self = match mem::replace(self, Self::Broken) {
            Self::Held { body, left, .. } => Self::Sending { body, left },
            other => other,
        };
        held
    }
}

/// What a frame of a request's body means.
enum Piece {
    Data(Bytes),
    /// The end, and what to write for it.
    End(Option<HeaderMap>),
}

impl Left {
    /// What comes of a body in this framing.
    pub(crate) const fn of(framing: RequestBody) -> Option<Self> {
        match framing {
            RequestBody::None | RequestBody::Length(0) => None,
            RequestBody::Length(length) => Some(Self::Bytes(length)),
            RequestBody::Chunked => Some(Self::Chunks),
        }
    }

    /// Takes the next frame, or the end, and holds the body to its length.
    fn take(&mut self, frame: Option<Frame<Bytes>>) -> Result<Piece, Fault> {
        let frame = frame.map(Frame::into_data);
        Ok(match (self, frame) {
            (Self::Chunks, Some(Ok(data))) => Piece::Data(data),
            (Self::Bytes(left), Some(Ok(data))) => {
                *left = left.checked_sub(data.len() as u64).ok_or_else(|| wrong_length("more"))?;
                Piece::Data(data)
            }
            (Self::Chunks, Some(Err(frame))) => {
                let mut trailers = frame.into_trailers().unwrap_or_default();
                clean_trailers(&mut trailers);
                Piece::End(Some(trailers))
            }
            (Self::Chunks, None) => Piece::End(Some(HeaderMap::new())),
            (Self::Bytes(0), _) => Piece::End(None),
            (Self::Bytes(_), _) => return Err(wrong_length("less")),
        })
    }
}

fn wrong_length(what: &str) -> Fault {
    Fault::User(format!("the body is {what} than its length").into())
}

// === Silence ===

/// How long nothing has moved in an exchange, whatever else its connection carries.
struct Silence {
    limit: Option<Duration>,
    /// Taken late, at the first wait.
    since: Option<Instant>,
    /// The session's, which has it back for the next exchange; of several at once, the last one's.
    timer: Timer,
    session: Arc<Session>,
}

impl Silence {
    fn new(session: Arc<Session>, limit: Option<Duration>) -> Self {
        Self { limit, since: None, timer: session.take_timer(), session }
    }

    fn broken(&mut self) {
        self.since = Some(Instant::now());
    }

    /// Ready when it has lasted for too long.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let since = *self.since.get_or_insert_with(Instant::now);
        let Some(deadline) = self.limit.and_then(|limit| since.checked_add(limit)) else {
            return Poll::Pending;
        };
        self.timer.poll(cx, deadline)
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        self.session.keep_timer(mem::take(&mut self.timer));
    }
}

// === Out ===

/// Bytes on their way to the target: framing, a piece of the body, its line end.
#[derive(Default)]
struct Out {
    head: BytesMut,
    piece: Bytes,
    tail: &'static [u8],
    /// Whether something was written and not flushed.
    unflushed: bool,
}

impl Out {
    fn is_empty(&self) -> bool {
        self.head.is_empty() && self.piece.is_empty() && self.tail.is_empty() && !self.unflushed
    }

    /// Adds a piece of the body; everything before has left.
    fn push(&mut self, data: Bytes, chunked: bool) {
        if data.is_empty() {
            return;
        }
        if chunked {
            encode_chunk_size(&mut self.head, data.len());
            self.tail = CHUNK_END;
        }
        self.piece = data;
    }

    fn poll_write<S: ByteStream>(&mut self, stream: &mut S, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !(self.head.is_empty() && self.piece.is_empty() && self.tail.is_empty()) {
            let bufs = [IoSlice::new(&self.head), IoSlice::new(&self.piece), IoSlice::new(self.tail)];
            let first = bufs.iter().position(|buf| !buf.is_empty()).unwrap_or_default();
            let mut written = if stream.is_write_vectored() {
                ready!(Pin::new(&mut *stream).poll_write_vectored(cx, &bufs[first..]))?
            } else {
                ready!(Pin::new(&mut *stream).poll_write(cx, &bufs[first]))?
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unflushed = true;
            for part in [&mut self.head as &mut dyn bytes::Buf, &mut self.piece, &mut self.tail] {
                let here = written.min(part.remaining());
                part.advance(here);
                written -= here;
            }
        }
        if self.unflushed {
            ready!(Pin::new(stream).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }
}

// === HeadReader ===

/// Reads heads from a stream, never a byte more.
struct HeadReader {
    /// What has come of a head that did not come in one piece.
    partial: BytesMut,
    /// How many bytes of heads may still come.
    room: usize,
    /// Whether anything has come, a whole interim head included.
    heard: bool,
}

impl HeadReader {
    fn poll_read<S: ByteStream>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<Result<ResponseHead, Fault>> {
        loop {
            let heard = self.heard;
            let chunk = ready!(Pin::new(&mut *stream).poll_fill_buf(cx))
                .map_err(|error| Fault::Stream { error, heard })?;
            if chunk.is_empty() {
                return Poll::Ready(Err(Fault::Ended { heard }));
            }
            self.heard = true;
            let (head, used) = self.take(chunk).map_err(Fault::Malformed)?;
            Pin::new(&mut *stream).consume(used);
            if let Some(head) = head {
                return Poll::Ready(Ok(head));
            }
        }
    }

    /// A head, if `chunk` completes one, and how much of it is taken.
    fn take(&mut self, chunk: &[u8]) -> Result<(Option<ResponseHead>, usize), Malformed> {
        let chunk = &chunk[..chunk.len().min(self.room + 1)];
        let (decoded, before) = if self.partial.is_empty() {
            // The usual case: nothing is kept.
            (ResponseHead::decode(chunk)?, 0)
        } else {
            let before = self.partial.len();
            self.partial.extend_from_slice(chunk);
            let ended = head_end(&self.partial, before).is_some();
            (if ended { ResponseHead::decode(&self.partial)? } else { None }, before)
        };
        let used = match &decoded {
            Some((_, length)) => {
                self.partial = BytesMut::new();
                length - before
            }
            None => {
                if before == 0 {
                    self.partial.extend_from_slice(chunk);
                }
                chunk.len()
            }
        };
        self.room = self.room.checked_sub(used).ok_or(Malformed::HeadTooLarge)?;
        Ok((decoded.map(|(head, _)| head), used))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncRead, AsyncReadExt, BufReader, ReadBuf, join, sink};

    use super::*;

    /// A target's connection that was reset.
    struct Reset;

    impl AsyncRead for Reset {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
        }
    }

    #[tokio::test]
    async fn a_target_that_said_anything_of_a_response_has_been_heard() {
        for (said, unheard) in
            [("", true), ("HTTP/1.1 2", false), ("HTTP/1.1 103 Early Hints\r\n\r\n", false)]
        {
            let mut ended = BufReader::new(join(said.as_bytes(), sink()));
            assert_eq!(fault(&mut ended).await.is_unheard(), unheard, "{said:?}");
            let mut reset = BufReader::new(join(AsyncReadExt::chain(said.as_bytes(), Reset), sink()));
            assert_eq!(fault(&mut reset).await.is_unheard(), unheard, "{said:?}");
        }
    }

    /// What ends a stream's heads.
    async fn fault(stream: &mut impl ByteStream) -> Fault {
        let mut reader = HeadReader { partial: BytesMut::new(), room: 1024, heard: false };
        loop {
            if let Err(fault) = poll_fn(|cx| reader.poll_read(stream, cx)).await {
                return fault;
            }
        }
    }
}
