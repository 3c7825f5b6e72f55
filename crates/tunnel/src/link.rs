//! A carrier and a multiplexer joined: messages into frames, frames into messages.

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use anyproxy_mux::frame::{COPIED_BELOW, Frame, Frames, HEADER_LEN, MAX_MESSAGE, MAX_PAYLOAD};
use anyproxy_mux::{Event, Mux, PeerError, Side};
use bytes::{Bytes, BytesMut};
use tokio::time::{sleep_until, timeout};

use crate::progress::Progress;
use crate::{Carrier, CarrierError, Config, TunnelError};

/// A message takes frames as long as one more of any size fits.
const FULL: usize = MAX_MESSAGE - (HEADER_LEN + MAX_PAYLOAD);

/// Bytes sent before the driver looks at what was received.
const SENT_PER_TURN: usize = 256 * 1024;

/// Now, by the clock that the timers of the runtime use.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

pub(crate) struct Link<S: Side, C> {
    pub(crate) carrier: C,
    pub(crate) mux: Mux<S>,
    message: Message,
    /// Something was given to the carrier since it was flushed.
    flushing: bool,
    progress: Progress,
}

/// Whether there is more to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    Nothing,
    More,
}

impl<S: Side, C: Carrier> Link<S, C> {
    pub(crate) fn new(carrier: C, config: &Config) -> Self {
        let mux = Mux::new(config.mux.clone(), now()).with_memory(&config.memory);
        Self { carrier, mux, message: Message::default(), flushing: false, progress: Progress::new() }
    }

    /// Takes one message in.
    pub(crate) fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        mut frame_seen: impl FnMut(&S::In),
    ) -> Poll<Result<(), TunnelError>> {
        let message = match ready!(self.carrier.poll_recv(cx)) {
            Some(message) => message?,
            None => return Poll::Ready(Err(CarrierError::Io(io::ErrorKind::UnexpectedEof.into()).into())),
        };
        Poll::Ready(self.take_in(now, message, &mut frame_seen).map_err(TunnelError::Peer))
    }

    fn take_in(
        &mut self,
        now: Instant,
        message: Bytes,
        frame_seen: &mut impl FnMut(&S::In),
    ) -> Result<(), PeerError> {
        let frames =
            Frames::<S::In>::new(message).inspect_err(|error| self.mux.fail(&error.clone().into()))?;
        for frame in frames {
            let frame = frame.inspect_err(|error| self.mux.fail(&error.clone().into()))?;
            frame_seen(&frame);
            self.mux.handle_frame(now, frame)?;
        }
        Ok(())
    }

    /// Sends what there is, in as few messages as possible; pending while the carrier takes no more. What it has not
    /// taken stays in the multiplexer, where urgent frames still overtake.
    pub(crate) fn poll_transmit(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        mut frame_seen: impl FnMut(&S::Out),
    ) -> Poll<io::Result<Left>> {
        let mut sent = 0;
        let mut left = Left::Nothing;
        ready!(self.poll_flush(cx))?;
        while left == Left::Nothing {
            ready!(self.carrier.poll_ready(&mut self.progress.watch(cx)))?;
            while self.message.length <= FULL
                && let Some(frame) = self.mux.poll_transmit(now)
            {
                frame_seen(&frame);
                self.message.push(frame);
            }
            if self.message.length == 0 {
                break;
            }
            sent += self.message.length;
            self.flushing = true;
            self.carrier.start_send(self.message.finish())?;
            if sent >= SENT_PER_TURN {
                left = Left::More;
            }
        }
        ready!(self.poll_flush(cx))?;
        Poll::Ready(Ok(left))
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.flushing {
            ready!(self.carrier.poll_flush(&mut self.progress.watch(cx)))?;
            self.flushing = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Whether the carrier still holds something of what it was given.
    pub(crate) const fn is_flushing(&self) -> bool {
        self.flushing
    }

    /// Whether a carrier that was full has moved since this was last asked.
    pub(crate) fn has_moved(&self) -> bool {
        self.progress.take()
    }

    /// Gives the memory back that only a busy tunnel needs.
    pub(crate) fn shrink(&mut self) {
        self.message = Message::default();
    }

    /// Says the hello that the multiplexer was given, if it was, and waits for the peer's.
    pub(crate) async fn greet(&mut self) -> Result<Box<S::PeerHello>, TunnelError> {
        let deadline = self.mux.poll_timeout().unwrap_or_else(now);
        let mut timer = pin!(sleep_until(deadline.into()));
        poll_fn(|cx| {
            loop {
                match self.mux.poll_event() {
                    Some(Event::PeerHello(hello)) => return Poll::Ready(Ok(hello)),
                    Some(Event::GoAway(go_away)) => return Poll::Ready(Err(TunnelError::Refused(go_away))),
                    Some(_) => continue,
                    None => {}
                }
                let now = now();
                if let Poll::Ready(Err(error)) = self.poll_transmit(cx, now, |_| {}) {
                    return Poll::Ready(Err(CarrierError::Io(error).into()));
                }
                if let Poll::Ready(result) = self.poll_receive(cx, now, |_| {}) {
                    result?;
                    continue;
                }
                ready!(timer.as_mut().poll(cx));
                self.mux.handle_timeout(now)?;
                timer.as_mut().reset(tokio::time::Instant::now() + Duration::from_millis(1));
            }
        })
        .await
    }

    /// Tells the peer what was wrong with its greeting, if it can be told, and hands the error on.
    pub(crate) async fn give_up(mut self, error: TunnelError, limit: Duration) -> TunnelError {
        match &error {
            TunnelError::Peer(error) => {
                self.say_goodbye(limit, error.code().close_code(), &error.to_string()).await;
            }
            TunnelError::Carrier(CarrierError::Violation { code, what }) => {
                self.say_goodbye(limit, *code, what).await
            }
            TunnelError::Carrier(CarrierError::Closed { .. }) => self.say_goodbye(limit, 1000, "").await,
            TunnelError::Refused(go_away) => self.say_goodbye(limit, go_away.code.close_code(), "").await,
            TunnelError::Carrier(CarrierError::Io(_)) | TunnelError::Invalid(_) => {}
        }
        error
    }

    /// The last words: a go-away if the multiplexer has one, then the carrier's close.
    pub(crate) async fn say_goodbye(&mut self, limit: Duration, code: u16, reason: &str) {
        let words = async {
            poll_fn(|cx| self.poll_flush(cx)).await?;
            poll_fn(|cx| self.carrier.poll_ready(cx)).await?;
            if let Some(frame) = self.mux.poll_transmit(now()) {
                self.message.push(frame);
                // A carrier that the peer has closed takes its own close and no more.
                let _ = self.carrier.start_send(self.message.finish());
            }
            poll_fn(|cx| self.carrier.poll_flush(cx)).await?;
            poll_fn(|cx| self.carrier.poll_close(cx, code, reason)).await
        };
        // A peer that does not listen is left without.
        let _: Result<io::Result<()>, _> = timeout(limit, words).await;
    }
}

// === Message ===

/// A message being put together: empty between the calls, and kept for its memory.
#[derive(Default)]
struct Message {
    /// Payloads that are worth a piece of their own, and what lies between them.
    pieces: Vec<Bytes>,
    /// Heads and short payloads since the last piece.
    block: BytesMut,
    length: usize,
}

impl Message {
    fn push(&mut self, frame: impl Frame) {
        let before = self.block.len();
        let payload = frame.encode_head(&mut self.block);
        self.length += self.block.len() - before + payload.len();
        if payload.len() < COPIED_BELOW {
            self.block.extend_from_slice(&payload);
        } else {
            self.pieces.push(self.block.split().freeze());
            self.pieces.push(payload);
        }
    }

    /// All of it, to be taken out before more is pushed.
    fn finish(&mut self) -> &mut Vec<Bytes> {
        if !self.block.is_empty() {
            self.pieces.push(self.block.split().freeze());
        }
        self.length = 0;
        &mut self.pieces
    }
}
