use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use anyproxy_core::{end_turn, poll_read_bytes};
use anyproxy_tunnel::Stream;
use anyproxy_tunnel::frame::ResetCode;
use socket2::SockRef;
use tokio::io::{AsyncBufRead as _, AsyncWrite as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::access::AccessLine;

/// Reads and writes each way may do in one poll before other streams get their turn: half a megabyte of bulk.
const TURNS: usize = 8;
/// Chunks written to a target at once; where streams take turns they are of 16 KiB.
const CHUNKS: usize = 16;
/// The most that is read from a target at once: a full frame, so that it leaves in the memory it was read into, masked
/// there. Larger reads save fewer system calls than they cost in bytes that have left the nearest caches.
const READ: usize = 64 * 1024;

/// What a target may say to a user who is gone, while what that user had finished is delivered. One that goes on for
/// longer has other things to do than to listen.
const UNHEARD: usize = 1024 * 1024;

/// How often a target that has ended is asked whether it still lives, while its user has not.
const LOOK: Duration = Duration::from_secs(10);

/// How long a relay may stand still; `None` = for ever.
#[derive(Clone, Debug)]
pub(crate) struct Patience {
    /// Without a byte in either direction.
    pub(crate) idle: Option<Duration>,
    /// The same, once one way has ended.
    pub(crate) half_closed: Option<Duration>,
    /// Ends those that only deliver what a user who is gone had finished: the client has stopped.
    pub(crate) cut: CancellationToken,
}

impl Patience {
    /// When a relay that makes no more progress ends.
    fn deadline(&self, last_progress: Instant, half_closed: bool) -> Option<Instant> {
        let limit = match (self.idle, self.half_closed) {
            (Some(idle), Some(half)) if half_closed => idle.min(half),
            (None, Some(half)) if half_closed => half,
            (idle, _) => idle?,
        };
        last_progress.checked_add(limit)
    }
}

/// How a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Both ways were finished, every byte delivered.
    Whole,
    /// The gateway reset the stream, or the tunnel is gone. The target was shown a reset, unless the user had finished
    /// before and all of that was handed on.
    UserLost,
    /// The target's connection failed; the gateway was shown a reset.
    TargetLost,
    /// Nothing moved for too long.
    Idle,
    /// One way was finished, and on the other nothing moved for too long.
    HalfClosed,
}

impl End {
    /// For the access line; the words that the gateway's line has too mean the same.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Whole => "whole",
            Self::UserLost => "abandoned",
            Self::TargetLost => "reset",
            Self::Idle => "idle",
            Self::HalfClosed => "half_closed",
        }
    }
}

/// What passed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Passed {
    /// Bytes the target took.
    pub(crate) up: u64,
    /// Bytes of the target that the tunnel took.
    pub(crate) down: u64,
    /// When the first of those came.
    pub(crate) first: Option<Instant>,
}

/// Bytes both ways between a stream of the tunnel and a target, as a future.
///
/// - An end is passed on as an end, and the other way goes on; a failure is passed on as a reset, and ends both.
/// - What a user had finished before is delivered all the same, whatever the target says meanwhile.
/// - A target that has ended says nothing more to who reads, and a user who says nothing would keep one that is lost for as
///   long as may be idle. It is asked every 10 s for its error, which ends the relay.
/// - It holds no buffer: it borrows the thread's while it reads from the target, which it does only when the
///   tunnel has room, and to the target it writes straight from the chunks the tunnel received.
/// - Dropped before it is ready, it resets both sides. So does the death of the process: no target takes a part for
///   the whole.
#[must_use = "futures do nothing unless polled"]
pub(crate) struct Relay {
    stream: Option<Stream>,
    target: TcpStream,
    up: Way,
    down: Way,
    finished: bool,
    patience: Arc<Patience>,
    last_progress: Instant,
    // Boxed, both: tokio rounds a task up to a multiple of 128 bytes, and without them it is one of two.
    timer: Option<Pin<Box<Sleep>>>,
    book: Box<Book>,
}

struct Book {
    /// Written when it ends.
    line: AccessLine,
    /// Bytes of the target that nobody heard, since the user is gone.
    unheard: usize,
    /// Where the tunnel is gone and the rest of what the user said is still to be delivered.
    cut: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
}

impl Drop for Relay {
    fn drop(&mut self) {
        if !self.finished {
            abort_when_lost(&self.target, true);
        }
    }
}

/// One direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Open,
    /// The source has ended; the sink is to be told.
    Ending,
    Ended,
    /// The target takes no more bytes, and has said its last one before: what it said is whole.
    Deaf,
    /// The connection is broken: what the target said may lack its end.
    Torn,
    /// The target failed; what it said before is on its way, and then the gateway is shown a reset.
    Failing,
    /// The user is gone; what the target says is read and thrown away, so that it goes on reading.
    Discarding,
    /// The user is gone, and the target has nothing more to say.
    Unheard,
}

impl Way {
    const fn is_over(self) -> bool {
        matches!(self, Self::Ended | Self::Deaf | Self::Torn | Self::Unheard)
    }
}

/// Makes the drop of a socket a reset, whoever drops it, the kernel for a dead process too, so that the target cannot
/// take it for an end.
fn abort_when_lost(target: &TcpStream, abort: bool) {
    // Fails only on a socket that is gone already.
    let _ = SockRef::from(target).set_linger(abort.then_some(Duration::ZERO));
}

impl Relay {
    /// Carries bytes between `stream` and `target`, and says in `line` how it went.
    pub(crate) fn new(stream: Stream, target: TcpStream, patience: Arc<Patience>, line: AccessLine) -> Self {
        abort_when_lost(&target, true);
        Self {
            stream: Some(stream),
            target,
            up: Way::Open,
            down: Way::Open,
            finished: false,
            patience,
            last_progress: Instant::now(),
            timer: None,
            book: Box::new(Book { line, unheard: 0, cut: None }),
        }
    }
}

impl Future for Relay {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        let mut ways = Ways {
            stream: this.stream.as_mut().expect("polled again after it was ready"),
            target: &mut this.target,
            up: &mut this.up,
            down: &mut this.down,
            passed: &mut this.book.line.passed,
            unheard: &mut this.book.unheard,
            progress: false,
            left_over: false,
        };
        let end = match ways.poll_both(cx) {
            Poll::Ready(end) => end,
            Poll::Pending => {
                if ways.progress {
                    this.last_progress = Instant::now();
                }
                let left_over = ways.left_over;
                let half_closed = left_over || this.up.is_over() || this.down.is_over();
                if left_over && this.poll_cut(cx).is_ready() {
                    End::UserLost
                } else {
                    ready!(this.poll_silence(half_closed, cx))
                }
            }
        };
        this.finished = end == End::Whole || (end == End::UserLost && this.up == Way::Ended);
        if this.finished {
            // The target was told of the user's end, and what is still on its way to it belongs to it. Should it have
            // something to say to a user who is gone, the kernel shows it a reset.
            abort_when_lost(&this.target, false);
        }
        if let Some(stream) = this.stream.take() {
            match end {
                // Finished both ways: there is nothing to reset.
                End::Whole => drop(stream),
                End::TargetLost => stream.reset(ResetCode::PeerReset),
                End::UserLost => stream.reset(ResetCode::Cancelled),
                End::Idle | End::HalfClosed => stream.reset(ResetCode::Idle),
            }
        }
        this.book.line.end = end;
        Poll::Ready(())
    }
}

impl Relay {
    /// Ready when the client waits for nobody any more. No tunnel is left then that could tell.
    fn poll_cut(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let cut = &self.patience.cut;
        self.book.cut.get_or_insert_with(|| Box::pin(cut.clone().cancelled_owned())).as_mut().poll(cx)
    }

    /// Ready when nothing has moved for too long, or a target that has ended is found lost. Progress moves the deadline on,
    /// but the timer is moved only when it fires, or when it is too late.
    fn poll_silence(&mut self, half_closed: bool, cx: &mut Context<'_>) -> Poll<End> {
        let deadline = self.patience.deadline(self.last_progress, half_closed);
        let target_ended = self.down.is_over();
        loop {
            let look = target_ended.then(|| Instant::now() + LOOK);
            let Some(next) = deadline.into_iter().chain(look).min() else { return Poll::Pending };
            let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(next)));
            if timer.deadline() > next {
                timer.as_mut().reset(next);
            }
            ready!(timer.as_mut().poll(cx));
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                return Poll::Ready(if half_closed { End::HalfClosed } else { End::Idle });
            }
            if target_ended && !matches!(self.target.take_error(), Ok(None)) {
                return Poll::Ready(End::TargetLost);
            }
            timer.as_mut().reset(next);
        }
    }
}

/// A relay's parts for the time of one poll.
struct Ways<'a> {
    stream: &'a mut Stream,
    target: &'a mut TcpStream,
    up: &'a mut Way,
    down: &'a mut Way,
    passed: &'a mut Passed,
    unheard: &'a mut usize,
    progress: bool,
    /// The stream is gone, and what the user had finished is still to be delivered.
    left_over: bool,
}

impl Ways<'_> {
    fn poll_both(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        if let Poll::Ready(Err(end)) = self.poll_up(cx) {
            return Poll::Ready(end);
        }
        if let Poll::Ready(Err(end)) = self.poll_down(cx) {
            return Poll::Ready(end);
        }
        match (*self.up, *self.down) {
            (Way::Ended, Way::Ended) => return Poll::Ready(End::Whole),
            (up, Way::Discarding | Way::Unheard) if up.is_over() => return Poll::Ready(End::UserLost),
            (up, down) if up.is_over() && down.is_over() => return Poll::Ready(End::TargetLost),
            _ => {}
        }
        // A target that takes nothing more, or has nothing to say, must not hide that the user has left. What the user
        // finished before is still delivered.
        let finished = ready!(self.stream.poll_reset(cx));
        if finished && *self.down == Way::Open {
            *self.down = Way::Discarding;
            // What it has said already, too: a socket that is closed with something unread is reset.
            if let Poll::Ready(Err(end)) = self.poll_down(cx) {
                return Poll::Ready(end);
            }
        }
        self.left_over = finished && !self.up.is_over();
        if self.left_over { Poll::Pending } else { Poll::Ready(End::UserLost) }
    }

    /// From the user to the target.
    fn poll_up(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        for _ in 0..TURNS {
            match *self.up {
                Way::Ended | Way::Deaf | Way::Torn | Way::Failing | Way::Discarding | Way::Unheard => {
                    return Poll::Ready(Ok(()));
                }
                Way::Ending => {
                    *self.up = match ready!(Pin::new(&mut *self.target).poll_shutdown(cx)) {
                        Ok(()) => Way::Ended,
                        Err(_) => Way::Torn,
                    };
                    self.progress = true;
                }
                Way::Open => {
                    let chunk =
                        ready!(Pin::new(&mut *self.stream).poll_fill_buf(cx)).map_err(|_| End::UserLost)?;
                    if chunk.is_empty() {
                        *self.up = Way::Ending;
                        continue;
                    }
                    let mut chunks = [IoSlice::new(&[]); CHUNKS];
                    let filled = self.stream.chunks(&mut chunks);
                    let written = Pin::new(&mut *self.target).poll_write_vectored(cx, &chunks[..filled]);
                    match ready!(written) {
                        Ok(taken) => {
                            Pin::new(&mut *self.stream).consume(taken);
                            self.passed.up += taken as u64;
                            self.progress = true;
                        }
                        // What the target said before it broke is still worth delivering: the early answer to an
                        // upload. The kernel says EPIPE if the target had ended its own way before it reset ours.
                        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => *self.up = Way::Deaf,
                        Err(_) => *self.up = Way::Torn,
                    }
                }
            }
        }
        end_turn(cx)
    }

    /// From the target to the user.
    fn poll_down(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        for _ in 0..TURNS {
            match *self.down {
                Way::Ended | Way::Deaf | Way::Torn | Way::Unheard => return Poll::Ready(Ok(())),
                Way::Discarding => match ready!(poll_read_bytes(Pin::new(&mut *self.target), cx, READ)) {
                    Ok(data) if !data.is_empty() => {
                        *self.unheard += data.len();
                        if *self.unheard > UNHEARD {
                            return Poll::Ready(Err(End::UserLost));
                        }
                    }
                    _ => *self.down = Way::Unheard,
                },
                Way::Failing => {
                    ready!(self.stream.poll_sent(cx)).map_err(|_| End::UserLost)?;
                    return Poll::Ready(Err(End::TargetLost));
                }
                Way::Ending => {
                    if ready!(Pin::new(&mut *self.stream).poll_shutdown(cx)).is_err() {
                        *self.down = Way::Unheard;
                        continue;
                    }
                    self.progress = true;
                    *self.down = Way::Ended;
                }
                Way::Open => {
                    // The stream fails where the user is gone, and then only: whether something is left to deliver is
                    // looked at behind both ways.
                    let Ok(room) = ready!(self.stream.poll_room(cx)) else {
                        *self.down = Way::Discarding;
                        continue;
                    };
                    let Ok(mut data) =
                        ready!(poll_read_bytes(Pin::new(&mut *self.target), cx, room.min(READ)))
                    else {
                        *self.down = Way::Failing;
                        continue;
                    };
                    if data.is_empty() {
                        // After a reset that the way up has met, the kernel says "end" here.
                        *self.down = if *self.up == Way::Torn { Way::Failing } else { Way::Ending };
                        continue;
                    }
                    self.passed.first.get_or_insert_with(Instant::now);
                    self.passed.down += data.len() as u64;
                    self.progress = true;
                    // All of it, since there was room.
                    let Poll::Ready(Ok(())) = self.stream.poll_send(cx, &mut data) else {
                        *self.down = Way::Discarding;
                        continue;
                    };
                }
            }
        }
        end_turn(cx)
    }
}
