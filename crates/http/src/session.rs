use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use anyproxy_front::Connection;
use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::config::Config;
use crate::proxy::LINGER;
use crate::reuse::Park;

/// The most that is taken of what stands behind a request under way. Beyond it the user waits, as TCP makes them, and is
/// not seen to leave.
const BEHIND: usize = 16 * 1024;
/// What is read of it at once.
const BEHIND_PIECE: usize = 2 * 1024;
/// How many bytes of empty lines may come before a head and not be its first: some clients send one behind a body, and
/// it is to be ignored (RFC 9112 section 2.2).
const EMPTY_LINES: u8 = 16;

/// What the parts of one user connection know of each other: its reader, its requests and their bodies.
#[derive(Debug)]
pub(crate) struct Session {
    /// Requests under way.
    active: AtomicUsize,
    /// Changes with every beginning and end of a request, and once it is dialled.
    turn: AtomicU64,
    started: Instant,
    /// When the last request ended, in milliseconds since `started`.
    idle_since: AtomicU64,
    /// Whether a response since the connection was last idle is a target's.
    delivering: AtomicBool,
    /// Whether nothing was asked for too long.
    overdue: AtomicBool,
    /// Whether a response has begun that can only end by the connection's end,
    unframed: AtomicBool,
    /// and whether it broke off, which must be seen.
    broken: AtomicBool,
    /// Bytes read from the user for the present chunked body, framing included; see [`Session::fits`].
    wire: AtomicU64,
    /// What these bytes may be for: data that was delivered, and framing it needs.
    earned: AtomicU64,
    chunked: AtomicBool,
    /// Whether the last request had a body.
    bodied: AtomicBool,
    /// Whether the present request's body is on its way to a target, at the target's pace.
    uploading: AtomicBool,
    /// Whether what stands behind the present request may be a tunnel's.
    tunnelling: AtomicBool,
    /// Whether the user has not taken all there is for them,
    untaken: AtomicBool,
    /// and who waits until they have.
    takers: Mutex<Vec<Waker>>,
    /// Of an exchange that waited, for the next.
    timer: Mutex<Timer>,
    /// The streams kept for coming requests.
    pub(crate) park: Arc<Park>,
}

impl Session {
    pub(crate) fn new(config: &Config) -> Arc<Self> {
        Arc::new(Self {
            active: AtomicUsize::new(0),
            turn: AtomicU64::new(0),
            started: Instant::now(),
            idle_since: AtomicU64::new(0),
            delivering: AtomicBool::new(false),
            overdue: AtomicBool::new(false),
            unframed: AtomicBool::new(false),
            broken: AtomicBool::new(false),
            wire: AtomicU64::new(0),
            earned: AtomicU64::new(0),
            chunked: AtomicBool::new(false),
            bodied: AtomicBool::new(false),
            uploading: AtomicBool::new(false),
            tunnelling: AtomicBool::new(false),
            untaken: AtomicBool::new(false),
            takers: Mutex::default(),
            timer: Mutex::default(),
            park: Arc::new(Park::new(config.parked, config.parked_timeout)),
        })
    }

    /// The timer of an earlier exchange, or a new one.
    pub(crate) fn take_timer(&self) -> Timer {
        std::mem::take(&mut *self.timer.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Keeps an exchange's timer for the next one.
    pub(crate) fn keep_timer(&self, timer: Timer) {
        *self.timer.lock().unwrap_or_else(PoisonError::into_inner) = timer;
    }

    /// A request begins; it ends when the returned value is dropped, with its response's last byte.
    pub(crate) fn begin(self: &Arc<Self>) -> Busy {
        self.park.sweep();
        if self.active.fetch_add(1, Ordering::Relaxed) == 0 {
            self.delivering.store(false, Ordering::Relaxed);
        }
        self.turn.fetch_add(1, Ordering::Relaxed);
        Busy(self.clone())
    }

    /// From here on what is read of a request's body is held against what is delivered of it.
    pub(crate) fn begin_body(&self, bodied: bool, chunked: bool) {
        self.wire.store(0, Ordering::Relaxed);
        self.earned.store(0, Ordering::Relaxed);
        self.chunked.store(chunked, Ordering::Relaxed);
        self.bodied.store(bodied, Ordering::Relaxed);
        self.uploading.store(false, Ordering::Relaxed);
    }

    /// A request's body begins its way to a target, or has come to the end of it.
    pub(crate) fn set_uploading(&self, uploading: bool) {
        self.uploading.store(uploading, Ordering::Relaxed);
    }

    /// Whether a tunnel may come of the request that begins.
    pub(crate) fn set_tunnelling(&self, tunnelling: bool) {
        self.tunnelling.store(tunnelling, Ordering::Relaxed);
    }

    /// A request's wait for its dial is over, and that for its target begins.
    pub(crate) fn dialled(&self) {
        self.turn.fetch_add(1, Ordering::Relaxed);
    }

    fn is_busy(&self) -> bool {
        self.active.load(Ordering::Acquire) > 0
    }

    fn idle_since(&self) -> Instant {
        self.started + Duration::from_millis(self.idle_since.load(Ordering::Relaxed))
    }

    /// What the user is given from here on is a target's.
    pub(crate) fn set_delivering(&self) {
        self.delivering.store(true, Ordering::Relaxed);
    }

    /// Whether an HTTP/2 connection has been idle for so long that its user is to be told to go.
    pub(crate) fn is_overdue(&self) -> bool {
        self.overdue.load(Ordering::Relaxed)
    }

    /// The connection's end will be that of its last response.
    pub(crate) fn set_unframed(&self) {
        self.unframed.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_unframed(&self) -> bool {
        self.unframed.load(Ordering::Relaxed)
    }

    /// The connection must not end as if all were well.
    pub(crate) fn set_broken(&self) {
        self.broken.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }

    /// Ready when nothing waits for a user who does not take it.
    pub(crate) fn poll_taken(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut takers = self.takers();
        if !self.untaken.load(Ordering::Relaxed) {
            return Poll::Ready(());
        }
        // In HTTP/2 each response that broke off may wait.
        if !takers.iter().any(|taker| taker.will_wake(cx.waker())) {
            takers.push(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Something waits for the user.
    fn set_untaken(&self) {
        self.untaken.store(true, Ordering::Relaxed);
    }

    /// The user has taken all there was.
    fn set_taken(&self) {
        if !self.untaken.load(Ordering::Relaxed) {
            return;
        }
        let takers = {
            let mut takers = self.takers();
            self.untaken.store(false, Ordering::Relaxed);
            std::mem::take(&mut *takers)
        };
        takers.into_iter().for_each(Waker::wake);
    }

    fn takers(&self) -> MutexGuard<'_, Vec<Waker>> {
        self.takers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A piece of a request's body was delivered.
    pub(crate) fn earn(&self, data: usize) {
        /// The most framing that one chunk needs: 16 digits and two line ends.
        const FRAMING: u64 = 20;
        self.earned.fetch_add(data as u64 + FRAMING, Ordering::Relaxed);
    }

    /// Counts bytes read from the user: whether they still fit what a body of such data may take, `slack` more
    /// included.
    fn fits(&self, bytes: usize, slack: usize) -> bool {
        if !self.chunked.load(Ordering::Relaxed) {
            return true;
        }
        let wire = self.wire.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64;
        wire <= self.earned.load(Ordering::Relaxed).saturating_add(slack as u64)
    }
}

/// A request under way.
#[derive(Debug)]
pub(crate) struct Busy(Arc<Session>);

impl Busy {
    pub(crate) const fn session(&self) -> &Arc<Session> {
        &self.0
    }
}

impl Clone for Busy {
    fn clone(&self) -> Self {
        self.0.active.fetch_add(1, Ordering::Relaxed);
        Self(self.0.clone())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        // First: whoever finds nobody busy any more reads since when.
        let since = u64::try_from(self.0.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.idle_since.fetch_max(since, Ordering::Relaxed);
        if self.0.active.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.chunked.store(false, Ordering::Relaxed);
        }
        self.0.turn.fetch_add(1, Ordering::Relaxed);
    }
}

// === Timer ===

/// A timer that is set again and again and fires hardly ever: moving its deadline away costs nothing, the clock's
/// wheel is touched only where it comes nearer.
#[derive(Debug, Default)]
pub(crate) struct Timer(Option<Pin<Box<Sleep>>>);

impl Timer {
    /// Ready once `deadline` has passed.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        let sleep = match &mut self.0 {
            Some(sleep) => sleep,
            None => self.0.insert(Box::pin(tokio::time::sleep_until(deadline))),
        };
        if sleep.deadline() > deadline {
            sleep.as_mut().reset(deadline);
        }
        loop {
            ready!(sleep.as_mut().poll(cx));
            if sleep.deadline() >= deadline {
                return Poll::Ready(());
            }
            // Set for an earlier wait, which has since moved on.
            sleep.as_mut().reset(deadline);
        }
    }
}

// === Watched ===

/// A user's connection with the deadlines that a protocol machine above it cannot tell apart: idle, within a head,
/// within an exchange, while the user takes nothing. Takes itself apart once the machine is done.
#[derive(Debug)]
pub(crate) struct Watched<U> {
    inner: U,
    session: Arc<Session>,
    limits: Limits,
    /// The turn that `since` and `heard` are about.
    turn: u64,
    /// When the present wait began, or last made progress; taken late, at the first wait.
    since: Option<Instant>,
    /// When a busy connection was last looked at.
    checked: Option<Instant>,
    /// Whether a head has begun in this turn,
    heard: bool,
    /// and how many bytes of empty lines came before it.
    blank: u8,
    /// What the machine above may hold behind the request under way: if anything, it reads no more meanwhile.
    held: Held,
    /// What was read behind that in its place, up to [`BEHIND`] bytes.
    behind: BytesMut,
    /// Since when the user has taken nothing of what waits for them,
    stuck: Option<Instant>,
    /// and when they last took something after that.
    taken: Option<Instant>,
    /// Since when the user's end is kept from the machine above.
    ended: Option<Instant>,
    /// For a user who takes nothing: the machine above does not read meanwhile, and no other limit runs.
    slow: Timer,
    /// Whether the connection is reset by whoever drops it.
    guarded: bool,
    timer: Timer,
}

/// What may be left of the bytes that the machine above was given last, by how they end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    Nothing,
    /// An empty line: the end of a head, and perhaps more empty lines.
    Empty,
    /// Another line's end: within a head, or an empty line behind a body.
    Line,
    /// Something that is no line end.
    Words,
}

impl Held {
    fn of(bytes: &[u8]) -> Self {
        let line = |bytes: &[u8]| match bytes {
            [before @ .., b'\r', b'\n'] | [before @ .., b'\n' | b'\r'] => Some(before.len()),
            _ => None,
        };
        match line(bytes) {
            None => Self::Words,
            Some(0) => Self::Empty,
            Some(before) if line(&bytes[..before]).is_some() => Self::Empty,
            Some(_) => Self::Line,
        }
    }

    /// Whether a head has begun with it, as far as can be told.
    fn begins_head(self, bodied: bool) -> bool {
        match self {
            Self::Nothing | Self::Empty => false,
            Self::Line => !bodied,
            Self::Words => true,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Limits {
    head: Option<Duration>,
    keep_alive: Duration,
    parked: Duration,
    idle: Option<Duration>,
    slack: usize,
}

impl<U> Watched<U> {
    /// Watches over `inner`. An HTTP/2 connection has no heads outside of its frames: their deadline is then that of
    /// an idle connection, counted from its last request.
    pub(crate) fn new(inner: U, session: Arc<Session>, config: &Config, http2: bool) -> Self {
        let limits = Limits {
            head: (!http2).then_some(config.head_timeout),
            keep_alive: config.keep_alive_timeout,
            parked: config.parked_timeout,
            idle: config.idle_timeout,
            // What the machine may have read and not delivered yet: a full buffer, and a piece on its way.
            slack: config.max_padding.saturating_add(2 * config.max_head),
        };
        Self {
            inner,
            session,
            limits,
            turn: 0,
            since: None,
            checked: None,
            heard: false,
            blank: 0,
            held: Held::Nothing,
            behind: BytesMut::new(),
            stuck: None,
            taken: None,
            ended: None,
            slow: Timer::default(),
            guarded: false,
            timer: Timer::default(),
        }
    }

    /// The connection itself.
    pub(crate) fn into_inner(self) -> U {
        self.inner
    }

    /// The connection, and what was read of it and not given to the machine above.
    pub(crate) fn into_parts(self) -> (U, BytesMut) {
        (self.inner, self.behind)
    }

    /// Forgets what was seen of another turn.
    fn catch_up(&mut self) {
        let turn = self.session.turn.load(Ordering::Relaxed);
        if self.turn != turn {
            self.turn = turn;
            self.since = None;
            self.checked = None;
            self.blank = 0;
            // A head may have come together with the request before it.
            self.heard =
                !self.session.is_busy() && self.held.begins_head(self.session.bodied.load(Ordering::Relaxed));
        }
    }

    /// The machine above is given these bytes.
    fn heard(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.catch_up();
        self.held = Held::of(bytes);
        if self.session.is_busy() {
            self.since = None;
        } else if !self.heard && self.limits.head.is_some() {
            self.heard = !self.are_empty_lines(bytes);
            self.since = None;
        }
        if self.session.fits(bytes.len(), self.limits.slack) {
            Ok(())
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidData, "more chunk padding than the limit"))
        }
    }

    /// Whether bytes before a head are to be ignored.
    fn are_empty_lines(&mut self, bytes: &[u8]) -> bool {
        if !bytes.iter().all(|byte| matches!(byte, b'\r' | b'\n')) {
            return false;
        }
        self.blank = u8::try_from(bytes.len()).map_or(u8::MAX, |length| self.blank.saturating_add(length));
        self.blank <= EMPTY_LINES
    }
}

impl<U: AsyncRead + AsyncWrite + Unpin> Watched<U> {
    /// Nothing to read: ready when there has been nothing for too long.
    ///
    /// A request's end does not wake the reader, so the timer is never set further than the nearest limit that may
    /// hold by then, and the time of the end is read from the session.
    fn poll_patience(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let nearest = self.limits.parked.min(self.limits.keep_alive);
        loop {
            self.catch_up();
            if self.session.is_busy() {
                let since = *self.since.get_or_insert_with(Instant::now);
                let checked = *self.checked.get_or_insert(since);
                // An exchange ends by itself after that long, with an answer where there can be one. It goes first.
                let limit =
                    self.limits.idle.and_then(|limit| since.checked_add(limit.saturating_add(nearest)));
                let soon = checked + nearest;
                ready!(self.timer.poll(cx, limit.map_or(soon, |limit| limit.min(soon))));
                let now = Instant::now();
                if self.session.is_busy() && limit.is_some_and(|limit| limit <= now) {
                    let error = io::Error::new(io::ErrorKind::TimedOut, "nothing moved for too long");
                    return Poll::Ready(Err(error));
                }
                self.checked = Some(now);
                self.session.park.sweep();
                continue;
            }
            if let Some(limit) = self.limits.head.filter(|_| self.heard) {
                let since = *self.since.get_or_insert_with(Instant::now);
                ready!(self.timer.poll(cx, since + limit));
                self.say_timeout(cx);
                return Poll::Ready(Ok(()));
            }
            if let Some(stuck) = self.stuck {
                // It is not idle while the end of a response waits for it, and nobody tells when that has left.
                let checked = *self.checked.get_or_insert(stuck);
                ready!(self.timer.poll(cx, checked + nearest));
                self.checked = Some(Instant::now());
                continue;
            }
            let ended = self.session.idle_since();
            let since = self.taken.map_or(ended, |taken| taken.max(ended));
            if !self.session.park.is_empty() {
                ready!(self.timer.poll(cx, since + nearest));
                self.session.park.clear();
            }
            let mut limit = since + self.limits.keep_alive;
            if self.limits.head.is_none() {
                // In HTTP/2 the user is told first to ask no more here (RFC 9113 section 6.8), and has a moment to agree.
                if !self.session.is_overdue() {
                    ready!(self.timer.poll(cx, limit));
                    self.session.overdue.store(true, Ordering::Relaxed);
                }
                limit += LINGER;
            }
            // The end of the connection, as far as the machine above is told: it closes in peace.
            return self.timer.poll(cx, limit).map(Ok);
        }
    }

    /// The user has said all: ready when the machine above may be told.
    ///
    /// That of HTTP/2 takes an end for the loss of every stream, also of those that had come to their own end and were
    /// not read so far. They get a moment for that.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.limits.head.is_some() || !self.session.is_busy() {
            return Poll::Ready(());
        }
        let since = *self.ended.get_or_insert_with(Instant::now);
        self.timer.poll(cx, since + LINGER)
    }

    /// Nothing to write: an error when the user has taken nothing for too long. A target's response may wait as long as
    /// any exchange, what the proxy itself has to say no longer than an idle connection.
    fn poll_taken<T>(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_ready() {
            if self.stuck.take().is_some() {
                self.taken = Some(Instant::now());
            }
            return result;
        }
        self.session.set_untaken();
        let since = *self.stuck.get_or_insert_with(Instant::now);
        let delivering = self.session.delivering.load(Ordering::Relaxed);
        let limit = if delivering { self.limits.idle } else { Some(self.limits.keep_alive) };
        let Some(limit) = limit else { return Poll::Pending };
        ready!(self.slow.poll(cx, since + limit));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the user takes nothing")))
    }

    /// What the user says next.
    fn poll_next(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.behind.is_empty() {
            return Pin::new(&mut self.inner).poll_read(cx, buf);
        }
        let taken = self.behind.len().min(buf.remaining());
        buf.put_slice(&self.behind[..taken]);
        self.behind.advance(taken);
        if self.behind.is_empty() {
            self.behind = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }

    /// Ready when the user has left in the middle of an exchange whose machine does not listen: that of HTTP/1 does not
    /// read while it holds anything of the next request, and would not see it.
    fn poll_left(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        // A body is read at its target's pace, which is not to be broken into small pieces.
        if self.held == Held::Nothing
            || self.limits.head.is_none()
            || !self.session.is_busy()
            || self.session.uploading.load(Ordering::Relaxed)
        {
            return Poll::Pending;
        }
        while self.behind.len() < BEHIND {
            let mut room = [MaybeUninit::uninit(); BEHIND_PIECE];
            let room = &mut room[..BEHIND_PIECE.min(BEHIND - self.behind.len())];
            let mut buf = ReadBuf::uninit(room);
            match ready!(Pin::new(&mut self.inner).poll_read(cx, &mut buf)) {
                Err(error) => return Poll::Ready(error),
                // An end behind what was said to a tunnel's target is for that one to hear.
                Ok(()) if buf.filled().is_empty() && self.session.tunnelling.load(Ordering::Relaxed) => break,
                Ok(()) if buf.filled().is_empty() => {
                    return Poll::Ready(io::Error::new(io::ErrorKind::UnexpectedEof, "the user has left"));
                }
                Ok(()) => self.behind.extend_from_slice(buf.filled()),
            }
        }
        Poll::Pending
    }

    /// Tells the user why, as far as the connection takes it at once. The machine above sees an end.
    fn say_timeout(&mut self, cx: &mut Context<'_>) {
        let answer = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        let _ = Pin::new(&mut self.inner).poll_write(cx, answer);
        let _ = Pin::new(&mut self.inner).poll_flush(cx);
    }
}

impl<U: AsyncRead + AsyncWrite + Unpin> AsyncRead for Watched<U> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        match self.poll_next(cx, buf) {
            Poll::Ready(Ok(())) if buf.filled().len() == before => self.poll_end(cx).map(Ok),
            Poll::Ready(Ok(())) => Poll::Ready(self.heard(&buf.filled()[before..])),
            // TLS that ends without a goodbye. What HTTP/2 brings whole has an end of its own, so nothing can be cut short.
            Poll::Ready(Err(error))
                if error.kind() == io::ErrorKind::UnexpectedEof && self.limits.head.is_none() =>
            {
                self.poll_end(cx).map(|()| Err(error))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => {
                if self.session.is_busy() {
                    // It asks for more only if it has used up all it was given.
                    self.held = Held::Nothing;
                }
                self.poll_patience(cx)
            }
        }
    }
}

impl<U: Connection> Watched<U> {
    /// From here on the connection's end tells something: it must not be told by accident.
    fn guard(&mut self) {
        if self.session.is_unframed() && !self.guarded {
            self.guarded = true;
            self.inner.abort_when_lost(true);
        }
    }

    /// Bytes left for the user: progress, whoever made it.
    fn wrote(&mut self, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if matches!(result, Poll::Ready(Ok(1..))) && self.session.is_busy() {
            self.since = None;
        }
        result
    }
}

impl<U: Connection> AsyncWrite for Watched<U> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.guard();
        let result = Pin::new(&mut self.inner).poll_write(cx, buf);
        let result = self.poll_taken(cx, result);
        self.wrote(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.guard();
        let result = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        let result = self.poll_taken(cx, result);
        self.wrote(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.inner).poll_flush(cx);
        if result.is_ready() {
            // The machine above flushes once it has written all it holds.
            self.session.set_taken();
        }
        // On every turn, whether or not there is anything to flush.
        if let Poll::Ready(error) = self.poll_left(cx) {
            return Poll::Ready(Err(error));
        }
        self.poll_taken(cx, result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.inner).poll_shutdown(cx);
        self.poll_taken(cx, result)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, join, sink};

    use super::*;

    /// TLS that has ended without a goodbye.
    struct Cut;

    impl AsyncRead for Cut {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()))
        }
    }

    #[tokio::test]
    async fn i8_what_stands_behind_a_request_is_read_up_to_16_kib_and_given_on() {
        for (length, seen) in [(1, true), (BEHIND - 5, true), (BEHIND - 4, false), (BEHIND, false)] {
            let config = Config::default();
            let session = Session::new(&config);
            let (mut user, here) = tokio::io::duplex(2 * BEHIND);
            let mut here = Watched::new(here, session.clone(), &config, false);
            user.write_all(b"?").await.unwrap();
            assert_eq!(here.read_u8().await.unwrap(), b'?');
            let busy = session.begin();
            let said: Vec<u8> = (0..=255).cycle().take(length).collect();
            user.write_all(&said).await.unwrap();
            assert!(here.flush().await.is_ok());
            assert_eq!(here.behind.len(), length);
            user.write_all(b"more").await.unwrap();
            assert!(here.flush().await.is_ok());
            assert_eq!(here.behind.len(), BEHIND.min(length + 4));
            drop(user);
            assert_eq!(here.flush().await.is_err(), seen, "{length}");
            drop(busy);
            let mut given = Vec::new();
            here.read_to_end(&mut given).await.unwrap();
            assert!(given == [&said[..], b"more"].concat());
            assert_eq!(here.behind.capacity(), 0);
        }
    }

    #[test]
    fn h23_what_is_held_behind_a_request_begins_a_head_unless_it_may_be_empty_lines() {
        for (bytes, bodied, expected) in [
            ("GET / HTTP/1.1\r\n\r\n", false, false),
            ("GET / HTTP/1.1\r\n\r\n\r\n", false, false),
            ("GET / HTTP/1.1\r\n\r\n\r", false, false),
            ("GET / HTTP/1.1\n\n", false, false),
            ("\r\n", false, false),
            ("GET / HTTP/1.1\r\n\r\nG", false, true),
            ("GET / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n", false, true),
            ("body\r\n", true, false),
            ("bodyG", true, true),
        ] {
            assert_eq!(Held::of(bytes.as_bytes()).begins_head(bodied), expected, "{bytes:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn i5_a_cut_connection_leaves_http_2_a_moment_for_what_came_before() {
        for (http2, expected) in [(true, LINGER), (false, Duration::ZERO)] {
            let config = Config::default();
            let session = Session::new(&config);
            let _busy = session.begin();
            let mut user = Watched::new(join(Cut, sink()), session, &config, http2);
            let begun = Instant::now();
            let mut room = [0];
            let mut buf = ReadBuf::new(&mut room);
            let error = poll_fn(|cx| Pin::new(&mut user).poll_read(cx, &mut buf)).await.unwrap_err();
            assert_eq!((error.kind(), begun.elapsed()), (io::ErrorKind::UnexpectedEof, expected));
        }
    }
}
