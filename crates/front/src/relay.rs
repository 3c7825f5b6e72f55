use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use anyproxy_core::ByteStream;
use bytes::{Buf as _, Bytes};
use pin_project_lite::pin_project;
use tokio::io::ReadBuf;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::Connection;
use crate::scratch::{SCRATCH, Scratch};

/// Reads and writes each way may do in one poll before other tasks get their turn: about a megabyte of bulk.
const TURNS: usize = 8;

/// The least that is read from a user at once, and what a relay begins with.
const APPETITE: usize = 16 * 1024;

/// How long a relay may stand still. Time is that of tokio's clock, which is monotonic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelayConfig {
    /// The longest time without a byte in either direction [1 h]; `None` = for ever. Too short cuts quiet sessions
    /// (SSH without keep-alive), too long keeps the streams of users who left without a word.
    pub idle_timeout: Option<Duration>,
    /// The longest time without a byte once one way has ended [10 min]; `None` = only `idle_timeout` counts.
    pub half_closed_timeout: Option<Duration>,
}

impl Default for RelayConfig {
    fn default() -> Self {
        Self {
            idle_timeout: Some(Duration::from_secs(60 * 60)),
            half_closed_timeout: Some(Duration::from_secs(10 * 60)),
        }
    }
}

/// How a relay ended.
#[derive(Debug)]
#[non_exhaustive]
pub enum End {
    /// Both ways were finished, every byte delivered.
    Whole,
    /// The user's connection failed; the target was shown a reset.
    UserLost(io::Error),
    /// The stream failed: the target reset it, or its tunnel is gone. The user was shown a reset, unless all that
    /// the target had to say had been delivered.
    TargetLost(io::Error),
    /// Nothing moved for [`RelayConfig::idle_timeout`]; both sides were shown a reset.
    Idle,
    /// One way was finished, and on the other nothing moved for [`RelayConfig::half_closed_timeout`]; both sides
    /// were shown a reset.
    HalfClosed,
}

impl End {
    /// A short name, from a closed set.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Whole => "whole",
            Self::UserLost(_) => "user_lost",
            Self::TargetLost(_) => "target_lost",
            Self::Idle => "idle",
            Self::HalfClosed => "half_closed",
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole => f.write_str("both ways were finished"),
            Self::UserLost(error) => write!(f, "the user was lost: {error}"),
            Self::TargetLost(error) => write!(f, "the target was lost: {error}"),
            Self::Idle => f.write_str("nothing moved for too long"),
            Self::HalfClosed => f.write_str("nothing moved for too long after one way had ended"),
        }
    }
}

/// Carries bytes both ways between a user and a stream until both ways have ended; [`Relay`] says how.
///
/// # Cancel safety
///
/// Dropping the future resets both sides.
pub fn relay<U: Connection, S: ByteStream>(user: U, stream: S, config: RelayConfig) -> Relay<U, S> {
    Relay::new(user, stream, config)
}

pin_project! {
    /// Bytes both ways between a user's connection and a stream, as a future.
    ///
    /// - An end is passed on as an end, and the other way goes on; a failure is passed on as a reset, and ends both.
    /// - Idle, it holds no buffer. It borrows the thread's while it reads from the user and keeps only what the
    ///   stream did not take; to the user it writes straight from the stream's own chunks. So a user who does not
    ///   read costs the stream's window and nothing here, and a target that does not read at most one read's worth.
    /// - One poll does a bounded amount of work each way.
    /// - Dropped before it is ready, it resets both sides.
    #[must_use = "futures do nothing unless polled"]
    pub struct Relay<U, S>
    where
        U: Connection,
    {
        user: U,
        stream: S,
        up: Way,
        down: Way,
        // Why the way up broke, kept while the rest of the way down is delivered.
        broken: Option<io::Error>,
        // What was read from the user and not yet taken by the stream.
        unsent: Bytes,
        // How much to read from the user at once: what the stream took lately.
        appetite: usize,
        config: RelayConfig,
        last_progress: Instant,
        #[pin]
        timer: Option<Sleep>,
        finished: bool,
    }

    impl<U, S> PinnedDrop for Relay<U, S>
    where
        U: Connection,
    {
        fn drop(this: Pin<&mut Self>) {
            let this = this.project();
            if !*this.finished {
                this.user.abort();
            }
        }
    }
}

/// One direction. What was written and not flushed is flushed before the way waits for more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Open { flushed: bool },
    /// The source has ended; the sink is to be told.
    Ending,
    Ended,
    /// The sink failed: nothing goes this way any more, and it was not told of an end.
    Broken,
}

impl Way {
    const OPEN: Self = Self::Open { flushed: true };

    const fn is_over(self) -> bool {
        matches!(self, Self::Ended | Self::Broken)
    }
}

impl<U: Connection, S: ByteStream> Relay<U, S> {
    /// Carries bytes between `user` and `stream`.
    pub fn new(user: U, stream: S, config: RelayConfig) -> Self {
        Self {
            user,
            stream,
            up: Way::OPEN,
            down: Way::OPEN,
            broken: None,
            unsent: Bytes::new(),
            appetite: APPETITE,
            config,
            last_progress: Instant::now(),
            timer: None,
            finished: false,
        }
    }

    /// Sends `bytes` to the target before anything else: what the front had already read behind the user's request.
    pub fn with_early(mut self, bytes: Bytes) -> Self {
        self.unsent = bytes;
        self
    }
}

impl<U: Connection, S: ByteStream> Future for Relay<U, S> {
    type Output = End;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<End> {
        let mut this = self.project();
        let mut ways = Ways {
            user: this.user,
            stream: this.stream,
            up: this.up,
            down: this.down,
            unsent: this.unsent,
            appetite: this.appetite,
            progress: false,
        };
        if let Poll::Ready(Err(failure)) = ways.poll_up(cx) {
            match failure {
                // What the target said before it broke is still worth delivering (an early answer to an upload).
                Failure::Stream(error) => {
                    *ways.up = Way::Broken;
                    *ways.unsent = Bytes::new();
                    *this.broken = Some(error);
                }
                Failure::User(error) => return Poll::Ready(End::UserLost(error)),
            }
        }
        if let Poll::Ready(Err(failure)) = ways.poll_down(cx) {
            return Poll::Ready(match failure {
                Failure::Stream(error) => End::TargetLost(this.broken.take().unwrap_or(error)),
                Failure::User(error) => End::UserLost(error),
            });
        }
        let progress = ways.progress;
        if this.up.is_over() && this.down.is_over() {
            *this.finished = true;
            return Poll::Ready(this.broken.take().map_or(End::Whole, End::TargetLost));
        }

        if progress {
            *this.last_progress = Instant::now();
        }
        let half_closed = this.up.is_over() || this.down.is_over();
        loop {
            let Some(deadline) = deadline(this.config, *this.last_progress, half_closed) else {
                return Poll::Pending;
            };
            // Progress moves the deadline on, but the timer is moved only when it fires, or when it is too late.
            match this.timer.as_mut().as_pin_mut() {
                None => this.timer.set(Some(sleep_until(deadline))),
                Some(timer) if timer.deadline() > deadline => timer.reset(deadline),
                Some(mut timer) => {
                    ready!(timer.as_mut().poll(cx));
                    if deadline <= Instant::now() {
                        return Poll::Ready(if half_closed { End::HalfClosed } else { End::Idle });
                    }
                    timer.reset(deadline);
                }
            }
        }
    }
}

/// When a relay that makes no more progress ends; `None` = never.
fn deadline(config: &RelayConfig, last_progress: Instant, half_closed: bool) -> Option<Instant> {
    let limit = match (config.idle_timeout, config.half_closed_timeout) {
        (Some(idle), Some(half)) if half_closed => idle.min(half),
        (None, Some(half)) if half_closed => half,
        (idle, _) => idle?,
    };
    last_progress.checked_add(limit)
}

/// Whose fault it is.
enum Failure {
    User(io::Error),
    Stream(io::Error),
}

/// A relay's parts for the time of one poll.
struct Ways<'a, U, S> {
    user: &'a mut U,
    stream: &'a mut S,
    up: &'a mut Way,
    down: &'a mut Way,
    unsent: &'a mut Bytes,
    appetite: &'a mut usize,
    progress: bool,
}

impl<U: Connection, S: ByteStream> Ways<'_, U, S> {
    /// From the user to the target.
    fn poll_up(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        for _ in 0..TURNS {
            match *self.up {
                Way::Ended | Way::Broken => return Poll::Ready(Ok(())),
                Way::Ending => {
                    ready!(self.poll_unsent(cx)?);
                    ready!(Pin::new(&mut *self.stream).poll_shutdown(cx)).map_err(Failure::Stream)?;
                    self.progress = true;
                    *self.up = Way::Ended;
                }
                Way::Open { .. } => {
                    ready!(self.poll_unsent(cx)?);
                    if self.poll_forward(cx)?.is_pending() {
                        if *self.up == (Way::Open { flushed: false }) {
                            ready!(Pin::new(&mut *self.stream).poll_flush(cx)).map_err(Failure::Stream)?;
                            *self.up = Way::OPEN;
                        }
                        return Poll::Pending;
                    }
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Writes what the stream did not take earlier.
    fn poll_unsent(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        if self.unsent.is_empty() {
            return Poll::Ready(Ok(()));
        }
        while !self.unsent.is_empty() {
            let taken = ready!(poll_write(self.stream, cx, self.unsent)).map_err(Failure::Stream)?;
            self.unsent.advance(taken);
            self.wrote_up();
        }
        // An empty slice would keep the whole allocation.
        *self.unsent = Bytes::new();
        Poll::Ready(Ok(()))
    }

    /// One read from the user, and what the stream takes of it. Pending if the user has nothing.
    fn poll_forward(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        let mut scratch = Scratch::take();
        let mut buf = ReadBuf::new(&mut scratch[..*self.appetite]);
        ready!(Pin::new(&mut *self.user).poll_read(cx, &mut buf)).map_err(Failure::User)?;
        let (mut rest, full) = (buf.filled(), buf.remaining() == 0);
        if rest.is_empty() {
            self.progress = true;
            *self.up = Way::Ending;
            return Poll::Ready(Ok(()));
        }
        while !rest.is_empty() {
            let Poll::Ready(taken) = poll_write(self.stream, cx, rest) else {
                // Only this much next time, or each round would copy what is left over.
                *self.appetite = (*self.appetite - rest.len()).max(APPETITE);
                *self.unsent = Bytes::copy_from_slice(rest);
                return Poll::Ready(Ok(()));
            };
            rest = &rest[taken.map_err(Failure::Stream)?..];
            self.wrote_up();
        }
        if full {
            *self.appetite = (*self.appetite * 2).min(SCRATCH);
        }
        Poll::Ready(Ok(()))
    }

    fn wrote_up(&mut self) {
        self.progress = true;
        if *self.up == Way::OPEN {
            *self.up = Way::Open { flushed: false };
        }
    }

    /// From the target to the user.
    fn poll_down(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        for _ in 0..TURNS {
            match *self.down {
                Way::Ended | Way::Broken => return Poll::Ready(Ok(())),
                Way::Ending => {
                    ready!(Pin::new(&mut *self.user).poll_shutdown(cx)).map_err(Failure::User)?;
                    self.progress = true;
                    *self.down = Way::Ended;
                }
                Way::Open { flushed } => {
                    let Poll::Ready(chunk) = Pin::new(&mut *self.stream).poll_fill_buf(cx) else {
                        if !flushed {
                            ready!(Pin::new(&mut *self.user).poll_flush(cx)).map_err(Failure::User)?;
                            *self.down = Way::OPEN;
                        }
                        return Poll::Pending;
                    };
                    let chunk = chunk.map_err(Failure::Stream)?;
                    if chunk.is_empty() {
                        self.progress = true;
                        *self.down = Way::Ending;
                        continue;
                    }
                    let taken = ready!(poll_write(self.user, cx, chunk)).map_err(Failure::User)?;
                    self.progress = true;
                    Pin::new(&mut *self.stream).consume(taken);
                    *self.down = Way::Open { flushed: false };
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// Writes some of `bytes`, which are not empty; a sink that takes none has failed.
fn poll_write<W>(sink: &mut W, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>>
where
    W: tokio::io::AsyncWrite + Unpin,
{
    match ready!(Pin::new(sink).poll_write(cx, bytes)) {
        Ok(0) => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
        taken => Poll::Ready(taken),
    }
}
