use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use anyproxy_core::{ByteStream, end_turn, lend, poll_read_bytes};
use bytes::{Buf as _, Bytes};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::Connection;

/// Reads and writes each way may do in one poll before other tasks get their turn: about a megabyte of bulk.
const TURNS: usize = 8;

/// The least that is read from a user at once, and what a relay begins with.
const APPETITE: usize = 16 * 1024;

/// The most. Larger reads save system calls no longer and only cool the cache.
const FILL: usize = 128 * 1024;

/// How long a user may take nothing, or one way be over and the other silent, before it is asked whether the side that would
/// not tell still lives.
const LOOK: Duration = Duration::from_secs(10);

/// How long a relay may stand still. Time is that of tokio's clock, which is monotonic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelayConfig {
    /// The longest time without a byte in either direction (default: 1 h); `None` = for ever. Too short cuts quiet
    /// sessions (SSH without keep-alive), too long keeps the streams of users who left without a word.
    pub idle_timeout: Option<Duration>,
    /// The longest time without a byte once one way has ended (default: 10 min); `None` = only `idle_timeout` counts.
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

/// Bytes both ways between a user's connection and a stream, as a future.
///
/// - An end is passed on as an end, and the other way goes on; a failure is passed on as a reset, and ends both.
/// - Idle, it holds no buffer. It borrows the thread's while it reads from the user and keeps only what the
///   stream did not take; what fills it is [lent](lend) to the stream, which may keep it without a copy. To the user it
///   writes straight from the stream's own chunks. So a user who does not
///   read costs the stream's window and nothing here, and a target that does not read at most one read's worth.
/// - One poll does a bounded amount of work each way.
/// - A stream tells its reader that it is lost only behind all that it received. So a user who takes nothing, or says
///   nothing more to a target that has ended, would keep a lost one for as long as may be idle; every 10 s of that, a
///   write of nothing asks it, and an error ends the relay. A user who has ended and then is lost would keep a silent
///   target in the same way, and is asked as often ([`Connection::failure`]).
/// - Dropped before it is ready, it resets both sides. So does the death of the process: nobody takes a part for
///   the whole.
#[must_use = "futures do nothing unless polled"]
pub struct Relay<U, S>
where
    U: Connection,
{
    user: U,
    stream: S,
    up: Way,
    down: Way,
    finished: bool,
    // How much to read from the user at once: what the stream took lately.
    appetite: usize,
    config: RelayConfig,
    last_progress: Instant,
    // Boxed: tokio rounds a task up to a multiple of 128 bytes, and without this it is one of two.
    timer: Option<Pin<Box<Sleep>>>,
    stuck: Option<Box<Stuck>>,
}

/// What a relay has only while something does not go on as usual.
#[derive(Default)]
struct Stuck {
    /// What was read from the user and not yet taken by the stream.
    unsent: Bytes,
    /// Why the way up broke, kept while the rest of the way down is delivered.
    broken: Option<io::Error>,
    /// When a side was last asked whether it still lives.
    last_look: Option<Instant>,
}

impl<U, S> Drop for Relay<U, S>
where
    U: Connection,
{
    fn drop(&mut self) {
        if !self.finished {
            self.user.abort();
        }
    }
}

/// One direction. What was written and not flushed is flushed before the way waits for more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Open {
        flushed: bool,
    },
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
    pub fn new(mut user: U, stream: S, config: RelayConfig) -> Self {
        user.abort_when_lost(true);
        Self {
            user,
            stream,
            up: Way::OPEN,
            down: Way::OPEN,
            finished: false,
            appetite: APPETITE,
            config,
            last_progress: Instant::now(),
            timer: None,
            stuck: None,
        }
    }

    /// Sends `bytes` to the target before anything else: what the front had already read behind the user's request.
    pub fn with_early(mut self, bytes: Bytes) -> Self {
        self.stuck = (!bytes.is_empty()).then(|| Stuck { unsent: bytes, ..Stuck::default() }.into());
        self
    }

    /// The user was told of the end, and what is still on its way to them belongs to it.
    fn let_go(&mut self) {
        self.finished = true;
        self.user.abort_when_lost(false);
    }

    fn take_broken(&mut self) -> Option<io::Error> {
        self.stuck.as_mut()?.broken.take()
    }
}

impl<U: Connection, S: ByteStream> Future for Relay<U, S> {
    type Output = End;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<End> {
        let this = self.get_mut();
        let mut ways = Ways {
            user: &mut this.user,
            stream: &mut this.stream,
            up: &mut this.up,
            down: &mut this.down,
            stuck: &mut this.stuck,
            appetite: &mut this.appetite,
            progress: false,
            blocked: false,
        };
        if let Poll::Ready(Err(failure)) = ways.poll_up(cx) {
            match failure {
                // What the target said before it broke is still worth delivering (an early answer to an upload).
                Failure::Stream(error) => {
                    *ways.up = Way::Broken;
                    let stuck = ways.stuck.get_or_insert_default();
                    stuck.unsent = Bytes::new();
                    stuck.broken = Some(error);
                }
                Failure::User(error) => return Poll::Ready(End::UserLost(error)),
            }
        }
        if let Poll::Ready(Err(failure)) = ways.poll_down(cx) {
            return Poll::Ready(match failure {
                Failure::Stream(error) => End::TargetLost(this.take_broken().unwrap_or(error)),
                Failure::User(error) => End::UserLost(error),
            });
        }
        let (progress, blocked) = (ways.progress, ways.blocked);
        if this.up.is_over() && this.down.is_over() {
            this.let_go();
            return Poll::Ready(this.take_broken().map_or(End::Whole, End::TargetLost));
        }

        if this.up.is_over()
            && let Poll::Ready(error) = this.user.poll_lost(cx)
        {
            return Poll::Ready(End::UserLost(error));
        }

        if progress {
            this.last_progress = Instant::now();
        }
        let half_closed = this.up.is_over() || this.down.is_over();
        loop {
            let idle = deadline(&this.config, this.last_progress, half_closed);
            let last_look = this.stuck.as_ref().and_then(|stuck| stuck.last_look);
            let last_news = last_look.map_or(this.last_progress, |last| last.max(this.last_progress));
            let look = (blocked || half_closed).then(|| last_news + LOOK);
            let Some(deadline) = idle.into_iter().chain(look).min() else {
                return Poll::Pending;
            };
            // Progress moves the deadline on, but the timer is moved only when it fires, or when it is too late.
            let timer = this.timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
            if timer.deadline() > deadline {
                timer.as_mut().reset(deadline);
            }
            ready!(timer.as_mut().poll(cx));
            let now = Instant::now();
            if idle.is_some_and(|idle| idle <= now) {
                return Poll::Ready(if half_closed { End::HalfClosed } else { End::Idle });
            }
            if look.is_none_or(|look| now < look) {
                timer.as_mut().reset(deadline);
                continue;
            }
            this.stuck.get_or_insert_default().last_look = Some(now);
            if this.up.is_over()
                && let Some(error) = this.user.failure()
            {
                return Poll::Ready(End::UserLost(error));
            }
            if (blocked || this.down.is_over())
                && let Poll::Ready(Err(error)) = Pin::new(&mut this.stream).poll_write(cx, &[])
            {
                if this.down.is_over() {
                    this.let_go();
                }
                return Poll::Ready(End::TargetLost(error));
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
    stuck: &'a mut Option<Box<Stuck>>,
    appetite: &'a mut usize,
    progress: bool,
    /// The stream has something for the user, who does not take it.
    blocked: bool,
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
        end_turn(cx)
    }

    /// Writes what the stream did not take earlier.
    fn poll_unsent(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        while let Some(stuck) = self.stuck.as_mut().filter(|stuck| !stuck.unsent.is_empty()) {
            let taken = ready!(lend(&stuck.unsent, |rest| poll_write(self.stream, cx, rest)))
                .map_err(Failure::Stream)?;
            stuck.unsent.advance(taken);
            if stuck.unsent.is_empty() {
                // Nothing is broken while the way up is open, and a look is made after the last progress in any case.
                *self.stuck = None;
            }
            self.wrote_up();
        }
        Poll::Ready(Ok(()))
    }

    /// One read from the user, and what the stream takes of it. Pending if the user has nothing.
    fn poll_forward(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        let mut rest =
            ready!(poll_read_bytes(Pin::new(&mut *self.user), cx, *self.appetite)).map_err(Failure::User)?;
        let full = rest.len() == *self.appetite;
        if rest.is_empty() {
            self.progress = true;
            *self.up = Way::Ending;
            return Poll::Ready(Ok(()));
        }
        while !rest.is_empty() {
            let Poll::Ready(taken) = lend(&rest, |rest| poll_write(self.stream, cx, rest)) else {
                // Only this much next time, or each round would copy what is left over.
                *self.appetite = (*self.appetite - rest.len()).max(APPETITE);
                self.stuck.get_or_insert_default().unsent = rest;
                return Poll::Ready(Ok(()));
            };
            rest.advance(taken.map_err(Failure::Stream)?);
            self.wrote_up();
        }
        if full {
            *self.appetite = (*self.appetite * 2).min(FILL);
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
                    let Poll::Ready(taken) = poll_write(self.user, cx, chunk) else {
                        self.blocked = true;
                        return Poll::Pending;
                    };
                    let taken = taken.map_err(Failure::User)?;
                    self.progress = true;
                    Pin::new(&mut *self.stream).consume(taken);
                    *self.down = Way::Open { flushed: false };
                }
            }
        }
        end_turn(cx)
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

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex};

    use anyproxy_core::{BoxStream, Ending, Meter, Metered};
    use tokio::io::{
        AsyncBufRead, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader, BufStream,
        DuplexStream, ReadBuf, duplex,
    };
    use tokio::net::{TcpListener, TcpStream};
    use tokio::task::JoinHandle;
    use tokio::time::timeout;

    use super::*;
    use crate::{Rewind, UserStream};

    const HOUR: Duration = Duration::from_secs(60 * 60);
    const MINUTE: Duration = Duration::from_secs(60);

    // === S12: each way ends by itself ===

    #[tokio::test]
    async fn s12_a_user_who_half_closes_gets_the_whole_answer() {
        let mut play = Play::new(64);
        play.user.write_all(b"request").await.unwrap();
        play.user.shutdown().await.unwrap();
        let mut request = String::new();
        play.target.read_to_string(&mut request).await.unwrap();
        assert_eq!(request, "request");
        let answer = pattern(300_000);
        let send = async {
            play.target.write_all(&answer).await.unwrap();
            play.target.shutdown().await.unwrap();
        };
        let mut got = Vec::new();
        let ((), read) = tokio::join!(send, play.user.read_to_end(&mut got));
        read.unwrap();
        assert!(got == answer);
        assert!(matches!(play.relay.await.unwrap(), End::Whole));
        assert_eq!(play.seen.verdict(), (false, Some(Ending::Whole)));
    }

    #[tokio::test]
    async fn s12_a_target_that_half_closes_first_gets_the_whole_upload() {
        let mut play = Play::new(64);
        play.target.write_all(b"banner").await.unwrap();
        play.target.shutdown().await.unwrap();
        let mut banner = String::new();
        play.user.read_to_string(&mut banner).await.unwrap();
        assert_eq!(banner, "banner");
        let upload = pattern(300_000);
        let send = async {
            play.user.write_all(&upload).await.unwrap();
            play.user.shutdown().await.unwrap();
        };
        let mut got = Vec::new();
        let ((), read) = tokio::join!(send, play.target.read_to_end(&mut got));
        read.unwrap();
        assert!(got == upload);
        assert!(matches!(play.relay.await.unwrap(), End::Whole));
        assert_eq!(play.seen.verdict(), (false, Some(Ending::Whole)));
    }

    #[tokio::test]
    async fn bytes_pass_both_ways_at_once_whole_and_in_order() {
        let play = Play::new(1000);
        let (up, down) = (pattern(1_000_000), pattern(700_001));
        let ((user_read, mut user), (target_read, mut target)) =
            (tokio::io::split(play.user), tokio::io::split(play.target));
        let (got_down, got_up, (), ()) = tokio::join!(
            read_all(user_read),
            read_all(target_read),
            async {
                user.write_all(&up).await.unwrap();
                user.shutdown().await.unwrap();
            },
            async {
                target.write_all(&down).await.unwrap();
                target.shutdown().await.unwrap();
            },
        );
        assert!(got_up == up && got_down == down);
        assert!(matches!(play.relay.await.unwrap(), End::Whole));
    }

    #[tokio::test]
    async fn s1_early_bytes_go_before_what_the_user_sends_next() {
        let (mut user, near) = duplex(64);
        let (far, mut target) = duplex(64);
        user.write_all(b" later").await.unwrap();
        user.shutdown().await.unwrap();
        let relay =
            relay(near, BufReader::new(far), RelayConfig::default()).with_early(Bytes::from_static(b"early"));
        let _relay = tokio::spawn(relay);
        let mut got = String::new();
        target.read_to_string(&mut got).await.unwrap();
        assert_eq!(got, "early later");
    }

    #[tokio::test]
    async fn what_a_stream_or_a_user_buffers_is_flushed_before_the_relay_waits() {
        let (mut user, near) = duplex(64);
        let (far, mut target) = duplex(64);
        let _relay = tokio::spawn(relay(near, BufStream::new(far), RelayConfig::default()));
        user.write_all(b"ping").await.unwrap();
        assert_eq!(&read_four(&mut target).await, b"ping");
        target.write_all(b"pong").await.unwrap();
        assert_eq!(&read_four(&mut user).await, b"pong");
    }

    // === Resets ===

    #[tokio::test]
    async fn a_user_s_reset_reaches_the_target_as_a_reset() {
        let (user, near) = tcp_pair().await;
        let (far, _target) = duplex(64);
        let seen = Seen::default();
        let stream = Metered::new(BufReader::new(far), seen.clone());
        let relay = tokio::spawn(relay(UserStream::from(near), stream, RelayConfig::default()));
        user.set_zero_linger().unwrap();
        drop(user);
        let end = relay.await.unwrap();
        assert!(
            matches!(&end, End::UserLost(error) if error.kind() == io::ErrorKind::ConnectionReset),
            "{end}"
        );
        assert_eq!(seen.verdict().1, Some(Ending::Abandoned));
    }

    #[tokio::test]
    async fn a_target_s_reset_reaches_the_user_as_a_reset() {
        let (mut user, near) = tcp_pair().await;
        let stream = Script {
            answer: &[],
            end: Err(io::ErrorKind::ConnectionReset),
            sink: Err(io::ErrorKind::ConnectionReset),
        };
        let end = relay(UserStream::from(near), stream, RelayConfig::default()).await;
        assert!(matches!(end, End::TargetLost(_)), "{end}");
        let error = user.read(&mut [0; 8]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn a_relay_dropped_in_the_middle_resets_the_user() {
        let (mut user, near) = tcp_pair().await;
        let (far, _target) = duplex(64);
        let relay = relay(UserStream::from(near), BufReader::new(far), RelayConfig::default());
        assert!(timeout(Duration::from_millis(1), relay).await.is_err());
        let error = user.read(&mut [0; 8]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn an_early_answer_is_delivered_though_the_upload_broke() {
        let (mut user, near) = duplex(64);
        user.write_all(b"upload").await.unwrap();
        let stream = Script { answer: b"too large", end: Ok(()), sink: Err(io::ErrorKind::ConnectionReset) };
        let relay = tokio::spawn(relay(near, stream, RelayConfig::default()));
        let mut answer = String::new();
        user.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "too large");
        assert!(matches!(relay.await.unwrap(), End::TargetLost(_)));
    }

    // === Time ===

    #[tokio::test(start_paused = true)]
    async fn f4_a_silent_relay_ends_after_its_idle_timeout_and_any_byte_renews_it() {
        let mut play = Play::new(64);
        tokio::time::sleep(HOUR - MINUTE).await;
        play.target.write_all(b"tick").await.unwrap();
        assert_eq!(&read_four(&mut play.user).await, b"tick");
        let since = Instant::now();
        assert!(matches!(play.relay.await.unwrap(), End::Idle));
        let passed = since.elapsed();
        assert!((HOUR..HOUR + Duration::from_secs(1)).contains(&passed), "{passed:?}");
        assert_eq!(play.seen.verdict(), (true, Some(Ending::Abandoned)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_user_who_does_not_read_is_idle_though_bytes_wait_for_them() {
        let mut play = Play::new(4);
        play.target.write_all(b"12345678").await.unwrap();
        assert!(matches!(play.relay.await.unwrap(), End::Idle));
    }

    #[tokio::test(start_paused = true)]
    async fn a_user_who_does_not_read_does_not_keep_a_stream_that_is_lost() {
        let lost = Script { answer: b"12345678", end: Ok(()), sink: Err(io::ErrorKind::ConnectionReset) };
        let (mut user, near) = duplex(4);
        let since = Instant::now();
        let relay = tokio::spawn(relay(near, lost, RelayConfig::default()));
        // While they read, they get what there is.
        for _ in 0..3 {
            tokio::time::sleep(LOOK - Duration::from_secs(1)).await;
            user.read_u8().await.unwrap();
        }
        assert!(matches!(relay.await.unwrap(), End::TargetLost(_)));
        let passed = since.elapsed();
        assert!((3 * LOOK..5 * LOOK).contains(&passed), "{passed:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_user_with_nothing_more_to_say_does_not_keep_a_stream_that_is_lost() {
        let lost = Script { answer: b"bye", end: Ok(()), sink: Err(io::ErrorKind::ConnectionReset) };
        let (mut user, near) = duplex(64);
        let since = Instant::now();
        let relay = tokio::spawn(relay(near, lost, RelayConfig::default()));
        let mut heard = Vec::new();
        user.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"bye");
        assert!(matches!(relay.await.unwrap(), End::TargetLost(_)));
        let passed = since.elapsed();
        assert!((LOOK..2 * LOOK).contains(&passed), "{passed:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_user_with_nothing_more_to_say_who_resets_does_not_keep_a_silent_target() {
        let (mut user, near) = tcp_pair().await;
        let (far, mut target) = duplex(64);
        let near = Rewind::new(Bytes::new(), UserStream::from(near));
        let config = RelayConfig { idle_timeout: None, half_closed_timeout: None };
        let relay = tokio::spawn(relay(near, BufReader::new(far), config));
        user.shutdown().await.unwrap();
        assert_eq!(target.read(&mut [0; 1]).await.unwrap(), 0);
        // A while later, so that there have been looks that found nothing.
        tokio::time::sleep(MINUTE).await;
        assert!(!relay.is_finished());
        user.set_zero_linger().unwrap();
        drop(user);
        let end = timeout(2 * LOOK, relay).await.expect("somebody looks").unwrap();
        assert!(matches!(end, End::UserLost(_)), "{end}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_half_closed_relay_ends_only_without_progress() {
        let mut play = Play::new(64);
        play.user.shutdown().await.unwrap();
        for _ in 0..5 {
            tokio::time::sleep(9 * MINUTE).await;
            play.target.write_all(b"tick").await.unwrap();
            assert_eq!(&read_four(&mut play.user).await, b"tick");
        }
        let since = Instant::now();
        assert!(matches!(play.relay.await.unwrap(), End::HalfClosed));
        let passed = since.elapsed();
        assert!((10 * MINUTE..11 * MINUTE).contains(&passed), "{passed:?}");
        assert_eq!(play.seen.verdict(), (true, Some(Ending::Abandoned)));
    }

    #[tokio::test(start_paused = true)]
    async fn without_timeouts_a_relay_waits_for_ever() {
        let (_user, near) = duplex(64);
        let (far, _target) = duplex(64);
        let config = RelayConfig { idle_timeout: None, half_closed_timeout: None };
        assert!(timeout(1000 * HOUR, relay(near, BufReader::new(far), config)).await.is_err());
        let config = RelayConfig { idle_timeout: Some(Duration::MAX), half_closed_timeout: None };
        let ((_user, near), (far, _target)) = (duplex(64), duplex(64));
        assert!(timeout(1000 * HOUR, relay(near, BufReader::new(far), config)).await.is_err());
    }

    // === Memory and work ===

    /// With its seat it must not be more than 152 bytes: tokio puts some 100 around it and rounds up to a multiple of 128,
    /// so with a word more each idle user costs 128 bytes more.
    #[test]
    fn an_idle_relay_is_small() {
        // Without optimisation, mio's sockets know their selector.
        let debug = if cfg!(debug_assertions) { size_of::<usize>() } else { 0 };
        let size = size_of::<Relay<UserStream, BoxStream>>();
        assert!(size <= 128 + debug, "{size} bytes");
    }

    #[tokio::test]
    async fn a_target_that_does_not_read_costs_one_read_and_memory_goes_back_when_it_does() {
        let (mut user, near) = duplex(1 << 20);
        let (far, mut target) = duplex(16);
        let mut relay = Box::pin(relay(near, BufReader::new(far), RelayConfig::default()));
        user.write_all(&vec![7; 1 << 20]).await.unwrap();
        assert!(poll_once(&mut relay).await.is_pending());
        assert_eq!(relay.stuck.as_ref().unwrap().unsent.len(), APPETITE - 16);
        let mut got = vec![0; 1 << 20];
        tokio::select! {
            _ = &mut relay => unreachable!("both are alive"),
            read = target.read_exact(&mut got) => read.unwrap(),
        };
        assert!(poll_once(&mut relay).await.is_pending());
        assert!(relay.stuck.is_none());
    }

    #[tokio::test]
    async fn i7_one_poll_does_a_bounded_amount_of_work() {
        let taken = Arc::new(AtomicUsize::new(0));
        let mut relay = Box::pin(relay(Flood(taken.clone()), Flood(taken.clone()), RelayConfig::default()));
        for _ in 0..8 {
            let before = taken.load(Ordering::Relaxed);
            assert!(poll_once(&mut relay).await.is_pending());
            let moved = taken.load(Ordering::Relaxed) - before;
            assert!((1..=2 * TURNS * FILL).contains(&moved), "{moved}");
        }
        assert_eq!(relay.appetite, FILL, "bulk is read in large pieces");
    }

    // === The stage ===

    /// A relay between two pipes, and what became of both.
    struct Play {
        user: DuplexStream,
        target: DuplexStream,
        relay: JoinHandle<End>,
        seen: Seen,
    }

    impl Play {
        fn new(room: usize) -> Self {
            let (user, near) = duplex(room);
            let (far, target) = duplex(room);
            let seen = Seen::default();
            let near = Watched { pipe: near, seen: seen.clone() };
            let far = Metered::new(BufReader::new(far), seen.clone());
            let relay = tokio::spawn(relay(near, far, RelayConfig::default()));
            Self { user, target, relay, seen }
        }
    }

    #[derive(Clone, Default)]
    struct Seen {
        aborted: Arc<AtomicBool>,
        ending: Arc<Mutex<Option<Ending>>>,
    }

    impl Seen {
        /// Whether the user was reset, and how the stream ended.
        fn verdict(&self) -> (bool, Option<Ending>) {
            (self.aborted.load(Ordering::Relaxed), *self.ending.lock().unwrap())
        }
    }

    impl Meter for Seen {
        fn read(&mut self, _: usize) {}
        fn written(&mut self, _: usize) {}
        fn ended(&mut self, ending: Ending) {
            *self.ending.lock().unwrap() = Some(ending);
        }
    }

    /// A user whose reset is seen.
    struct Watched {
        pipe: DuplexStream,
        seen: Seen,
    }

    impl Connection for Watched {
        fn abort(&mut self) {
            self.seen.aborted.store(true, Ordering::Relaxed);
        }
    }

    impl AsyncRead for Watched {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.pipe).poll_read(cx, buf)
        }
    }

    impl AsyncWrite for Watched {
        fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.pipe).poll_write(cx, buf)
        }
        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.pipe).poll_flush(cx)
        }
        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.pipe).poll_shutdown(cx)
        }
    }

    /// A stream that answers, ends as told, and does to what is written to it as told.
    struct Script {
        answer: &'static [u8],
        end: Result<(), io::ErrorKind>,
        sink: Result<(), io::ErrorKind>,
    }

    impl AsyncRead for Script {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            unreachable!("relays read chunks")
        }
    }

    impl AsyncBufRead for Script {
        fn poll_fill_buf(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
            match self.end {
                Err(kind) if self.answer.is_empty() => Poll::Ready(Err(kind.into())),
                _ => Poll::Ready(Ok(self.answer)),
            }
        }
        fn consume(mut self: Pin<&mut Self>, amount: usize) {
            self.answer = &self.answer[amount..];
        }
    }

    impl AsyncWrite for Script {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(self.sink.map(|()| buf.len()).map_err(Into::into))
        }
        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(self.sink.map_err(Into::into))
        }
        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(self.sink.map_err(Into::into))
        }
    }

    /// Always has bytes and always takes them; counts what it takes.
    struct Flood(Arc<AtomicUsize>);

    impl Connection for Flood {
        fn abort(&mut self) {}
    }

    impl AsyncRead for Flood {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            let everything = buf.initialize_unfilled().len();
            buf.advance(everything);
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncBufRead for Flood {
        fn poll_fill_buf(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
            Poll::Ready(Ok(&[0; 64 * 1024]))
        }
        fn consume(self: Pin<&mut Self>, _: usize) {}
    }

    impl AsyncWrite for Flood {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            self.0.fetch_add(buf.len(), Ordering::Relaxed);
            Poll::Ready(Ok(buf.len()))
        }
        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    async fn poll_once<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
        std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut *future).poll(cx))).await
    }

    async fn read_all(mut from: impl AsyncRead + Unpin) -> Vec<u8> {
        let mut all = Vec::new();
        from.read_to_end(&mut all).await.unwrap();
        all
    }

    async fn read_four(from: &mut DuplexStream) -> [u8; 4] {
        let mut four = [0; 4];
        from.read_exact(&mut four).await.unwrap();
        four
    }

    /// Bytes that show when any of them is lost, doubled or out of order.
    fn pattern(length: usize) -> Vec<u8> {
        (0..length).map(|at| (at ^ (at >> 8) ^ (at >> 16)) as u8).collect()
    }

    async fn tcp_pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (user, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        (user.unwrap(), accepted.unwrap().0)
    }
}
