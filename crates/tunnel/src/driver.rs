use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::future::poll_fn;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use anyproxy_core::end_turn;
use anyproxy_mux::frame::{GoAwayCode, StreamFrame, StreamId};
use anyproxy_mux::{Event, Mux, PeerError, Side};
use tokio::time::Sleep;
use tracing::{debug, trace};

use crate::cell::Cell;
use crate::link::{Left, Link, now};
use crate::shared::{Desk, Shared};
use crate::{Carrier, CarrierError, CloseReason, Config, StreamReset, TunnelError};

/// Messages taken in before the driver looks at what is to be sent.
const RECEIVED_PER_TURN: usize = 8;

/// Frames taken in by then: many small ones in a message are as much work as many messages.
const FRAMES_PER_TURN: usize = 4_096;

/// So often that much is taken in once nothing can be sent any more: all that a kernel may still hold, and the last words
/// behind it.
const LAST_TURNS: usize = 16;

/// The work of one tunnel: owns the carrier and the multiplexer, and ends with the tunnel.
///
/// Spawn it in a tracker that outlives it. Dropping it kills the tunnel: its streams read as reset.
#[must_use = "nothing moves unless the driver is spawned"]
pub struct Driver(Pin<Box<dyn Future<Output = CloseReason> + Send>>);

impl Driver {
    pub(crate) fn new<E: End, C: Carrier>(
        link: Link<E, C>,
        desk: Arc<Desk<E::Command>>,
        local: E::Local,
        config: &Config,
    ) -> Self {
        Self(Box::pin(Engine::new(link, desk, local, config).drive()))
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").finish_non_exhaustive()
    }
}

impl Future for Driver {
    type Output = CloseReason;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<CloseReason> {
        self.0.as_mut().poll(cx)
    }
}

// === End ===

/// What one end of a tunnel does that the other does not.
pub(crate) trait End: Side {
    /// What its handles ask of the driver.
    type Command: Send + 'static;
    /// What its driver remembers.
    type Local: Send + 'static;

    /// Does what a handle asks.
    fn serve(core: &mut Core<Self>, mux: &mut Mux<Self>, command: Self::Command);

    /// Acts on an event that only this end has.
    fn act(core: &mut Core<Self>, mux: &mut Mux<Self>, event: Event<Self::PeerHello>);

    /// Knows of a frame that leaves.
    fn leaves(_local: &mut Self::Local, _frame: &Self::Out) {}

    /// What there is to say about a frame in a log, if it is one of a stream.
    fn received(frame: &Self::In) -> Option<(StreamId, &StreamFrame)>;

    /// The same for one that leaves.
    fn sent(frame: &Self::Out) -> Option<(StreamId, &StreamFrame)>;

    /// The stream is over.
    fn over(_local: &mut Self::Local, _id: StreamId) {}

    /// The tunnel is over, and nobody came to do these.
    fn lost(core: &mut Core<Self>, commands: Vec<Self::Command>);
}

/// The streams of a tunnel, as its driver sees them.
pub(crate) struct Core<E: End> {
    pub(crate) shared: Arc<Shared>,
    pub(crate) desk: Arc<Desk<E::Command>>,
    pub(crate) local: E::Local,
    pub(crate) cells: HashMap<StreamId, Arc<Cell>>,
    /// Whom to wake at the end of the turn: each once, however much came.
    pub(crate) wakers: Vec<Waker>,
    /// The cells that rang.
    rung: Vec<Arc<Cell>>,
    /// A writer goes on when no more than this waits.
    low_water: u32,
    dropped_datagrams: u64,
}

impl<E: End> Core<E> {
    /// Does what handles and streams want.
    fn serve(&mut self, cx: &Context<'_>, mux: &mut Mux<E>) -> Result<(), Over> {
        let mut rung = mem::take(&mut self.rung);
        self.shared.bell.answer(cx, &mut rung);
        // Taken after the bell was answered and served before it: what a stream wants comes after its open.
        let orders = self.desk.take();
        // Before the commands, so that no open leaves that would have to be given up.
        let farewell = if orders.close { Some((GoAwayCode::Shutdown, "closed")) } else { orders.drain };
        if let Some((code, reason)) = farewell {
            mux.go_away(code, reason);
        }
        for command in orders.commands {
            E::serve(self, mux, command);
        }
        for cell in rung.drain(..) {
            self.serve_cell(mux, &cell);
        }
        self.rung = rung;
        if orders.close {
            return Err(Over::new(CloseReason::Closed, GoAwayCode::Shutdown, "closed"));
        }
        Ok(())
    }

    fn serve_cell(&mut self, mux: &mut Mux<E>, cell: &Cell) {
        let Some(id) = cell.id() else { return };
        let Some(rung) = cell.answer(&self.shared.memory) else { return };
        if let Some(code) = rung.dropped {
            mux.reset(id, code);
            return;
        }
        if !rung.outbox.is_empty() {
            mux.send(id, rung.outbox);
        }
        for datagram in rung.datagrams {
            let bytes = datagram.len() as u32;
            if !mux.send_datagram(id, datagram) {
                self.wakers.extend(cell.sent(bytes, self.low_water));
            }
        }
        if rung.fin {
            mux.finish(id);
            self.wakers.extend(cell.fin_taken());
        }
        if rung.consumed > 0 {
            mux.consumed(id, rung.consumed);
        }
    }

    /// Tells the streams what has happened.
    fn deliver(&mut self, mux: &mut Mux<E>) {
        while let Some(event) = mux.poll_event() {
            match event {
                Event::Data { id, data } => {
                    let waker = self.cells.get(&id).and_then(|cell| cell.receive(data));
                    self.wakers.extend(waker);
                }
                Event::Datagram { id, data } => {
                    let Some(cell) = self.cells.get(&id) else { continue };
                    let (kept, waker) = cell.receive_datagram(&data);
                    self.wakers.extend(waker);
                    if !kept {
                        self.shared.dropped(1);
                    }
                }
                Event::Sent { id, bytes } => {
                    let Some(cell) = self.cells.get(&id) else { continue };
                    self.wakers.extend(cell.sent(bytes as u32, self.low_water));
                }
                Event::Fin { id } => {
                    self.wakers.extend(self.cells.get(&id).and_then(|cell| cell.fin_received()));
                }
                Event::Reset { id, code } => {
                    let wakers = self
                        .cells
                        .get(&id)
                        .map(|cell| cell.reset(StreamReset::Peer(code), &self.shared.memory));
                    self.wakers.extend(wakers.into_iter().flatten().flatten());
                }
                Event::Discarded { id, held } => {
                    let wakers = self.cells.get(&id).map(|cell| cell.discard(held, &self.shared.memory));
                    self.wakers.extend(wakers.into_iter().flatten().flatten());
                }
                Event::Closed { id } => {
                    E::over(&mut self.local, id);
                    if let Entry::Occupied(cell) = self.cells.entry(id) {
                        cell.remove().close();
                    }
                }
                Event::Rtt(rtt) => self.shared.gauges.set_rtt(rtt),
                event => E::act(self, mux, event),
            }
        }
        if self.cells.is_empty() && self.cells.capacity() > 64 {
            self.cells = HashMap::new();
        }
    }

    fn wake(&mut self) {
        self.wakers.drain(..).for_each(Waker::wake);
    }

    fn measure(&mut self, mux: &Mux<E>) {
        let gauges = &self.shared.gauges;
        gauges.streams.store(mux.streams(), Ordering::Relaxed);
        gauges.unsent.store(usize::try_from(mux.unsent()).unwrap_or(usize::MAX), Ordering::Relaxed);
        gauges.held.store(usize::try_from(mux.held()).unwrap_or(usize::MAX), Ordering::Relaxed);
        gauges.going_away.fetch_or(mux.is_going_away(), Ordering::Relaxed);
        gauges.refused_opens.store(mux.refused_opens(), Ordering::Relaxed);
        let dropped = mux.dropped_datagrams();
        self.shared.dropped(dropped - self.dropped_datagrams);
        self.dropped_datagrams = dropped;
    }

    /// Tells everybody that the tunnel is over. Once.
    fn release(&mut self, reason: CloseReason, mux: &mut Mux<E>) {
        if self.shared.is_closed() {
            return;
        }
        debug!(
            session = self.shared.session,
            reason = reason.as_str(),
            streams = self.cells.len(),
            "tunnel over"
        );
        self.shared.set_closed(reason);
        self.shared.gauges.streams.store(0, Ordering::Relaxed);
        self.shared.gauges.unsent.store(0, Ordering::Relaxed);
        self.shared.gauges.held.store(0, Ordering::Relaxed);
        let commands = self.desk.turn_off();
        // Readers may keep what they have not read, and the multiplexer's account of it ends here.
        mux.leave_memory();
        for (id, cell) in mem::take(&mut self.cells) {
            cell.keep_account(mux.held_for(id), &self.shared.memory);
            self.wakers
                .extend(cell.reset(StreamReset::TunnelLost, &self.shared.memory).into_iter().flatten());
            cell.close();
        }
        E::lost(self, commands);
        self.shared.bell.turn_off();
        self.wake();
    }
}

// === Engine ===

/// Why and how a tunnel ends.
struct Over {
    reason: CloseReason,
    /// The close code and the words for the peer; none if it would not hear them.
    words: Option<(u16, String)>,
}

impl Over {
    fn new(reason: CloseReason, code: GoAwayCode, words: &str) -> Self {
        Self { reason, words: Some((code.close_code(), words.to_owned())) }
    }
}

impl From<PeerError> for Over {
    fn from(error: PeerError) -> Self {
        let words = Some((error.code().close_code(), error.to_string()));
        Self { reason: CloseReason::Peer(error), words }
    }
}

impl From<CarrierError> for Over {
    fn from(error: CarrierError) -> Self {
        let words = match &error {
            CarrierError::Io(_) => None,
            CarrierError::Closed { .. } => Some((1000, String::new())),
            CarrierError::Violation { code, what } => Some((*code, what.to_string())),
        };
        Self { reason: CloseReason::Carrier(Arc::new(error)), words }
    }
}

struct Engine<E: End, C> {
    core: Core<E>,
    link: Link<E, C>,
    timer: Pin<Box<Sleep>>,
    /// What the timer is set to. It may be early: deadlines move away with each message.
    armed: Option<Instant>,
    close_timeout: Duration,
}

impl<E: End, C> Drop for Engine<E, C> {
    fn drop(&mut self) {
        self.core.release(CloseReason::Abandoned, &mut self.link.mux);
    }
}

impl<E: End, C: Carrier> Engine<E, C> {
    fn new(link: Link<E, C>, desk: Arc<Desk<E::Command>>, local: E::Local, config: &Config) -> Self {
        let shared = desk.shared.clone();
        let core = Core {
            low_water: shared.low_water(),
            shared,
            desk,
            local,
            cells: HashMap::new(),
            wakers: Vec::new(),
            rung: Vec::new(),
            dropped_datagrams: 0,
        };
        let timer = Box::pin(tokio::time::sleep(Duration::ZERO));
        Self { core, link, timer, armed: None, close_timeout: config.close_timeout }
    }

    async fn drive(mut self) -> CloseReason {
        debug!(session = self.core.shared.session, "tunnel up");
        let over = poll_fn(|cx| self.poll_over(cx)).await;
        self.core.deliver(&mut self.link.mux);
        self.core.release(over.reason.clone(), &mut self.link.mux);
        if let Some((code, words)) = over.words {
            self.link.say_goodbye(self.close_timeout, code, &words).await;
        }
        over.reason
    }

    /// Does one turn of what there is to do, until the tunnel is over.
    fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<Over> {
        match self.turn(cx) {
            Ok(Left::More) => end_turn(cx),
            Ok(Left::Nothing) => Poll::Pending,
            Err(over) => Poll::Ready(over),
        }
    }

    /// Feeds input, drains output, arms the timer. If nothing is left, whatever comes next wakes `cx`.
    fn turn(&mut self, cx: &mut Context<'_>) -> Result<Left, Over> {
        let now = now();
        self.core.serve(cx, &mut self.link.mux)?;
        let received = self.receive(cx, now)?;
        self.tick(now)?;
        let sent = self.transmit(cx, now)?;
        self.core.deliver(&mut self.link.mux);
        self.core.measure(&self.link.mux);
        self.core.wake();
        if self.link.mux.is_drained() && sent == Left::Nothing && !self.link.is_flushing() {
            return Err(Over::new(CloseReason::Drained, GoAwayCode::Shutdown, "drained"));
        }
        let armed = self.arm(cx, now);
        let more = [received, sent, armed].contains(&Left::More);
        Ok(if more { Left::More } else { Left::Nothing })
    }

    fn receive(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<Left, Over> {
        let mut frames = 0;
        for _ in 0..RECEIVED_PER_TURN {
            if frames >= FRAMES_PER_TURN {
                break;
            }
            let session = self.core.shared.session;
            let received = self.link.poll_receive(cx, now, |frame| {
                frames += 1;
                match E::received(frame) {
                    Some((id, frame)) => log("received", session, id, frame),
                    None => trace!(session, bytes = frame_len(frame), "received"),
                }
            });
            match received {
                Poll::Pending => return Ok(Left::Nothing),
                Poll::Ready(Ok(())) => {
                    self.core.shared.gauges.heard(now);
                    self.core.deliver(&mut self.link.mux);
                }
                Poll::Ready(Err(error)) => return Err(self.broken(error)),
            }
        }
        Ok(Left::More)
    }

    fn transmit(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<Left, Over> {
        let session = self.core.shared.session;
        let local = &mut self.core.local;
        let mut took = false;
        let sent = self.link.poll_transmit(cx, now, |frame| {
            took = true;
            E::leaves(local, frame);
            match E::sent(frame) {
                Some((id, frame)) => log("sent", session, id, frame),
                None => trace!(session, bytes = frame_len(frame), "sent"),
            }
        });
        self.core.shared.gauges.set_blocked(sent.is_pending(), took, now);
        match sent {
            Poll::Pending => Ok(Left::Nothing),
            Poll::Ready(Ok(left)) => Ok(left),
            // What the peer said last tells more than that it no longer listens.
            Poll::Ready(Err(error)) => {
                for _ in 0..LAST_TURNS {
                    if self.receive(cx, now)? == Left::Nothing {
                        break;
                    }
                }
                Err(self.broken(CarrierError::Io(error).into()))
            }
        }
    }

    /// How the tunnel ends when receiving fails. A peer that hangs up when all is done has drained.
    fn broken(&self, error: TunnelError) -> Over {
        let mux = &self.link.mux;
        let done = mux.is_going_away() && mux.streams() == 0;
        match error {
            TunnelError::Carrier(CarrierError::Closed { .. }) if done => {
                Over { reason: CloseReason::Drained, words: Some((1000, String::new())) }
            }
            TunnelError::Carrier(error) => error.into(),
            TunnelError::Peer(error) => error.into(),
            TunnelError::Refused(_) | TunnelError::Invalid(_) => {
                Over { reason: CloseReason::Abandoned, words: None }
            }
        }
    }

    fn tick(&mut self, now: Instant) -> Result<(), PeerError> {
        if self.link.has_moved() {
            self.link.mux.handle_progress(now);
        }
        if self.link.mux.poll_timeout().is_some_and(|deadline| deadline <= now) {
            self.link.mux.handle_timeout(now)?;
            self.link.shrink();
        }
        Ok(())
    }

    /// Sets the timer. A deadline that has moved away is left to the timer's early call, or it would be set anew with
    /// every message.
    fn arm(&mut self, cx: &mut Context<'_>, now: Instant) -> Left {
        let Some(deadline) = self.link.mux.poll_timeout() else { return Left::Nothing };
        if self.armed.is_none_or(|armed| armed <= now || deadline < armed) {
            self.timer.as_mut().reset(deadline.into());
            self.armed = Some(deadline);
        }
        match self.timer.as_mut().poll(cx) {
            Poll::Pending => Left::Nothing,
            Poll::Ready(()) => Left::More,
        }
    }
}

/// One line per frame of a stream, without what it carries.
fn log(way: &'static str, session: u64, id: StreamId, frame: &StreamFrame) {
    match frame {
        StreamFrame::Data(data) => trace!(session, %id, bytes = data.len(), "{way} data"),
        StreamFrame::Datagram(data) => trace!(session, %id, bytes = data.len(), "{way} datagram"),
        StreamFrame::Window(credit) => trace!(session, %id, credit, "{way} window"),
        StreamFrame::Fin => trace!(session, %id, "{way} fin"),
        StreamFrame::Reset(code) => trace!(session, %id, %code, "{way} reset"),
    }
}

fn frame_len(frame: &impl anyproxy_mux::frame::Frame) -> usize {
    frame.encoded_len()
}
