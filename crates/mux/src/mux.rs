use std::{
    collections::VecDeque,
    mem,
    time::{Duration, Instant},
};

use anyproxy_frame::{
    Frame, GoAway, GoAwayCode, MAX_PAYLOAD, MAX_WINDOW, MIN_WINDOW, ResetCode, StreamFrame, StreamId,
};
use bytes::Bytes;

use crate::{
    Config, Event, PeerError, Side,
    budget::Budget,
    control::Control,
    liveness::Liveness,
    schedule::{KEPT, Place, Schedule},
    stream::{Half, Stream, Streams, Unsent},
};

/// One end of a tunnel, as a state machine: frames, commands and the time go in, frames and events come out.
///
/// Its methods are of three kinds.
///
/// - **Commands** say what the owner wants: [`open`](Mux::open), [`accept`](Mux::accept), [`refuse`](Mux::refuse),
///   [`send`](Self::send), [`send_datagram`](Self::send_datagram), [`consumed`](Self::consumed),
///   [`finish`](Self::finish), [`reset`](Self::reset), [`go_away`](Self::go_away). One that names a stream which is
///   gone does nothing: the peer may have ended it a moment ago.
/// - **Input** is what happened: [`handle_frame`](Self::handle_frame), [`handle_timeout`](Self::handle_timeout). An
///   error ends the tunnel; what is then left to send is a go-away that tells the peer why.
/// - **Output** is asked for after each of them, in this order, each until `None`:
///   [`poll_event`](Self::poll_event); [`poll_transmit`](Self::poll_transmit), as long as the carrier takes
///   something; then sleep until [`poll_timeout`](Self::poll_timeout) or the next input.
///
/// Frames leave in this order: hello, go-away, pong and ping, credit, resets and answers, opens, and then bytes and
/// rules by turns. Dropping it ends the tunnel without a word.
#[derive(Debug)]
pub struct Mux<S: Side> {
    pub(crate) config: Config,
    pub(crate) side: S,
    pub(crate) streams: Streams,
    /// Streams whose open has no answer.
    pub(crate) unanswered: u32,
    pub(crate) events: VecDeque<Event<S::PeerHello>>,
    pub(crate) control: Control<S::Out>,
    pub(crate) faults: Faults,

    /// Our hello, until it is sent; `None` before it is known and after.
    hello: Option<S::Out>,
    said_hello: bool,
    /// The start windows that the hellos announced: ours and the peer's.
    pub(crate) window: u32,
    pub(crate) peer_window: Option<u32>,
    hello_deadline: Instant,

    schedule: Schedule,
    /// Streams that get credit, each once.
    credit_due: VecDeque<StreamId>,
    rules_turn: bool,
    liveness: Liveness,

    pub(crate) going_away: bool,
    pub(crate) peer_going_away: bool,
    go_away: Option<S::Out>,
    failed: bool,

    unsent: u64,
    unsent_datagrams: u64,
    dropped_datagrams: u64,
    held: u64,
    /// By how much windows exceed the start window, in all.
    grown: u64,
    pressure: bool,
    start: Instant,
    /// Microseconds of the tunnel's life when it last heard the time, wrapped around after 71 minutes: a window that
    /// was not read for exactly that long grows once without need.
    pub(crate) now: u32,
}

/// What the peer did too much of already.
#[derive(Debug)]
pub(crate) struct Faults {
    empty_data: u32,
    caused_resets: u32,
    pub(crate) unseen_resets: u32,
    pub(crate) cancelled: Budget,
    ignored: Budget,
    pings: Budget,
}

/// How many seconds' worth of cancelled opens may come at once.
const CANCEL_BURST: u32 = 8;

impl<S: Side> Mux<S> {
    /// A tunnel that has just been connected. It says nothing before it is given its hello.
    pub fn new(config: Config, now: Instant) -> Self {
        let config = config.in_range();
        let per_second = config.cancelled_opens_per_second;
        Self {
            side: S::default(),
            streams: Streams::default(),
            unanswered: 0,
            events: VecDeque::new(),
            control: Control::new(),
            faults: Faults {
                empty_data: 0,
                caused_resets: 0,
                unseen_resets: 0,
                cancelled: Budget::new(per_second.saturating_mul(CANCEL_BURST), per_second, now),
                ignored: Budget::new(config.max_ignored, 1, now),
                pings: Budget::new(config.max_pings, 1, now),
            },
            hello: None,
            said_hello: false,
            window: config.window,
            peer_window: None,
            hello_deadline: now + config.hello_timeout,
            schedule: Schedule::default(),
            credit_due: VecDeque::new(),
            rules_turn: false,
            liveness: Liveness::new(&config, now),
            going_away: false,
            peer_going_away: false,
            go_away: None,
            failed: false,
            unsent: 0,
            unsent_datagrams: 0,
            dropped_datagrams: 0,
            held: 0,
            grown: 0,
            pressure: false,
            start: now,
            now: 0,
            config,
        }
    }

    // --- commands ---

    /// Appends bytes to what a stream sends. They wait here until there is credit and it is the stream's turn; the
    /// owner bounds them by what [`Event::Sent`] says has left.
    ///
    /// Does nothing after [`finish`](Self::finish), and on streams of datagrams.
    pub fn send(&mut self, id: StreamId, data: Bytes) {
        let Some(stream) = self.streams.get_mut(id).filter(|stream| stream.sending == Half::Open) else {
            return;
        };
        if let Unsent::Bytes(chunks) = &mut stream.unsent {
            self.unsent += data.len() as u64;
            chunks.push(data);
            self.schedule(id, Place::Fresh);
        }
    }

    /// Sends one datagram of at most [`MAX_PAYLOAD`] bytes, soon or never: it is dropped, and `false` comes back, if
    /// as many wait as may, if it is too long, or if the stream is gone.
    pub fn send_datagram(&mut self, id: StreamId, data: Bytes) -> bool {
        let full = self.unsent_datagrams + data.len() as u64 > self.config.datagram_bytes;
        let Some(stream) = self.streams.get_mut(id).filter(|stream| stream.sending == Half::Open) else {
            return false;
        };
        let Unsent::Datagrams(queue) = &mut stream.unsent else {
            return false;
        };
        if full || queue.len() >= self.config.max_datagrams as usize || data.len() > MAX_PAYLOAD {
            self.dropped_datagrams += 1;
            return false;
        }
        self.unsent += data.len() as u64;
        self.unsent_datagrams += data.len() as u64;
        queue.push_back(data);
        self.schedule(id, Place::Fresh);
        true
    }

    /// Ends the sending direction, behind what waits to be sent.
    pub fn finish(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(id).filter(|stream| stream.sending == Half::Open) {
            stream.sending = Half::Finishing;
            self.schedule(id, Place::Fresh);
        }
    }

    /// Ends both directions at once. What waits to be sent is lost, and what is held for the reader is given up.
    pub fn reset(&mut self, id: StreamId, code: ResetCode) {
        let Some(stream) = self.streams.get_mut(id) else {
            return;
        };
        // The peer knows nothing of a stream whose open never left, and needs no news of one that is over.
        let tell = !stream.is_over() && (stream.known || !stream.unanswered || !S::OPENS);
        if tell {
            self.control.push(S::Out::stream(id, StreamFrame::Reset(code)));
        }
        self.end(id);
        self.give_up_held(id);
    }

    /// The reader took bytes of a stream. Credit for them is given back in batches of half a window.
    pub fn consumed(&mut self, id: StreamId, bytes: u32) {
        let Some(stream) = self.streams.get_mut(id) else {
            return;
        };
        debug_assert!(bytes <= stream.held, "nobody reads more than there is");
        let bytes = bytes.min(stream.held);
        stream.held -= bytes;
        self.held -= u64::from(bytes);
        if stream.receiving == Half::Open {
            self.check_credit(id);
        } else {
            self.close_if_over(id);
        }
    }

    /// Raises a stream's window, within what the configuration allows. The multiplexer does this by itself, from
    /// the round trip and how fast the stream is read.
    pub fn grow_window(&mut self, id: StreamId, to: u32) {
        let limit = self.config.max_window;
        if let Some(stream) = self.streams.get_mut(id).filter(|stream| !stream.unanswered) {
            self.grown += grow(stream, to.min(limit), self.config.window, self.config.growth - self.grown);
            self.check_credit(id);
        }
    }

    /// Says that memory is short elsewhere in the process. Until it is not, windows do not grow, new streams start
    /// with [`MIN_WINDOW`], and those that live get credit up to that.
    pub fn set_pressure(&mut self, on: bool) {
        self.pressure = on;
    }

    /// Takes no more opens. Streams that live go on; a gateway tells the client to connect elsewhere by it, a client
    /// disowns opens that it has not seen yet.
    ///
    /// Said again, it only repeats itself with another code.
    pub fn go_away(&mut self, code: GoAwayCode, reason: &str) {
        if self.failed {
            return;
        }
        self.going_away = true;
        self.go_away = Some(S::Out::go_away(GoAway::new(code, self.side.last_open(), reason)));
    }

    /// Ends the tunnel for something that was found outside: a message that does not decode, of a carrier that is
    /// not what it should be. [`poll_transmit`](Self::poll_transmit) then gives a last go-away and nothing else.
    pub fn fail(&mut self, error: &PeerError) {
        if self.failed {
            return;
        }
        self.go_away(error.code(), &error.to_string());
        self.failed = true;
        self.hello = None;
        self.control.clear();
        self.side.clear();
        self.schedule.clear();
        self.credit_due = VecDeque::new();
    }

    // --- input ---

    /// Acts on a frame of the peer.
    ///
    /// # Errors
    /// What the peer did that ends the tunnel. Events that came before it still count.
    pub fn handle_frame(&mut self, now: Instant, frame: S::In) -> Result<(), PeerError> {
        if self.failed {
            return Ok(());
        }
        self.tick(now);
        self.liveness.heard(now);
        let result = S::handle(self, now, frame).and_then(|()| self.check_backlog());
        if let Err(error) = &result {
            self.fail(error);
        }
        result
    }

    /// Acts on the time that has come; call it at [`poll_timeout`](Self::poll_timeout), or whenever.
    ///
    /// # Errors
    /// If the peer is dead.
    pub fn handle_timeout(&mut self, now: Instant) -> Result<(), PeerError> {
        if self.failed {
            return Ok(());
        }
        let result = if self.is_ready() {
            self.liveness.handle_timeout(now)
        } else if self.peer_window.is_none() && now >= self.hello_deadline {
            Err(PeerError::HelloTimeout(self.config.hello_timeout))
        } else {
            Ok(())
        };
        if let Err(error) = &result {
            self.fail(error);
        }
        result
    }

    // --- output ---

    /// The next frame for the carrier. Ask only when the carrier takes it: what stays in here is still put in the
    /// best order.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<S::Out> {
        self.tick(now);
        if self.failed || !self.said_hello {
            return self.go_away.take();
        }
        if let Some(hello) = self.hello.take() {
            return Some(hello);
        }
        if let Some(frame) = self.go_away.take() {
            return Some(frame);
        }
        if let Some(number) = self.liveness.poll_pong() {
            return Some(S::Out::pong(number));
        }
        if let Some(number) = self.liveness.poll_ping(now) {
            return Some(S::Out::ping(number));
        }
        self.poll_credit().or_else(|| self.control.pop()).or_else(|| S::poll_open(self)).or_else(|| {
            self.rules_turn = !self.rules_turn;
            if self.rules_turn {
                self.side.poll_rules().or_else(|| self.poll_stream())
            } else {
                self.poll_stream().or_else(|| self.side.poll_rules())
            }
        })
    }

    /// The next event for the owner.
    pub fn poll_event(&mut self) -> Option<Event<S::PeerHello>> {
        let event = self.events.pop_front();
        match &event {
            Some(Event::Opened { id, .. }) => {
                if let Some(stream) = self.streams.get_mut(*id) {
                    stream.known = true;
                }
            }
            Some(_) => {}
            None => {
                self.faults.unseen_resets = 0;
                if self.events.capacity() > KEPT {
                    self.events = VecDeque::new();
                }
            }
        }
        event
    }

    /// When to call [`handle_timeout`](Self::handle_timeout); `None` once the tunnel has failed, and while this side
    /// owes its hello.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.is_ready() {
            return Some(self.liveness.poll_timeout());
        }
        (self.peer_window.is_none() && !self.failed).then_some(self.hello_deadline)
    }

    // --- questions ---

    /// Streams that live, those whose reader has not read everything included.
    pub fn streams(&self) -> usize {
        self.streams.len()
    }

    /// Streams whose open has no answer yet.
    pub fn unanswered(&self) -> usize {
        self.unanswered as usize
    }

    /// The round trip to the peer, smoothed; `None` before the first answer to a ping.
    pub fn rtt(&self) -> Option<Duration> {
        self.liveness.smoothed()
    }

    /// Bytes that wait to be sent, on all streams.
    pub fn unsent(&self) -> u64 {
        self.unsent
    }

    /// Bytes that came and were not read yet, on all streams.
    pub fn held(&self) -> u64 {
        self.held
    }

    /// By how much windows exceed the start window, in all.
    pub fn grown(&self) -> u64 {
        self.grown
    }

    /// Datagrams that [`send_datagram`](Self::send_datagram) dropped.
    pub fn dropped_datagrams(&self) -> u64 {
        self.dropped_datagrams
    }

    /// Whether both hellos are known, so that streams can be opened.
    pub fn is_ready(&self) -> bool {
        self.said_hello && self.peer_window.is_some() && !self.failed
    }

    /// Whether one of the sides takes no more opens, or the tunnel has failed.
    pub fn is_going_away(&self) -> bool {
        self.going_away || self.peer_going_away || self.failed
    }

    /// Whether one of the sides goes away, no stream is left, and nothing waits to be sent: time to hang up.
    pub fn is_drained(&self) -> bool {
        let idle = self.control.is_empty() && self.go_away.is_none() && !self.liveness.has_output();
        self.is_going_away() && idle && (self.failed || self.streams.len() == 0 && self.side.is_idle())
    }

    // --- what both sides do with a frame ---

    pub(crate) fn say_hello(&mut self, hello: S::Out) {
        self.hello = Some(hello);
        self.said_hello = true;
    }

    pub(crate) fn handle_hello(&mut self, window: u32, hello: Box<S::PeerHello>) -> Result<(), PeerError> {
        if self.peer_window.replace(window).is_some() {
            return Err(PeerError::HelloRepeated);
        }
        self.events.push_back(Event::PeerHello(hello));
        Ok(())
    }

    /// The start window that the peer's hello announced.
    pub(crate) fn peer_window(&self) -> Result<u32, PeerError> {
        self.peer_window.ok_or(PeerError::HelloMissing)
    }

    pub(crate) fn handle_ping(&mut self, now: Instant, number: u64) -> Result<(), PeerError> {
        if !self.faults.pings.take(now) {
            return Err(PeerError::Pings);
        }
        self.liveness.handle_ping(number);
        Ok(())
    }

    pub(crate) fn handle_pong(&mut self, now: Instant, number: u64) -> Result<(), PeerError> {
        match self.liveness.handle_pong(now, number) {
            Some(rtt) => self.events.push_back(Event::Rtt(rtt)),
            None => self.ignore(now)?,
        }
        Ok(())
    }

    /// Counts a frame that means nothing.
    pub(crate) fn ignore(&mut self, now: Instant) -> Result<(), PeerError> {
        if self.faults.ignored.take(now) { Ok(()) } else { Err(PeerError::Ignored) }
    }

    pub(crate) fn handle_stream(
        &mut self,
        now: Instant,
        id: StreamId,
        frame: StreamFrame,
    ) -> Result<(), PeerError> {
        self.peer_window()?;
        if !self.side.was_opened(id) {
            return Err(PeerError::UnknownStream(id));
        }
        // A stream that is over may still be on the peer's mind. Its credit went with it, so there is nothing to give
        // back, and nothing to remember it by.
        let Some(stream) = self.streams.get_mut(id).filter(|stream| !stream.is_over()) else {
            return Ok(());
        };
        match frame {
            StreamFrame::Reset(_) if stream.unanswered => S::reset_unanswered(self, now, id),
            _ if stream.unanswered => Err(PeerError::Unanswered(id)),
            StreamFrame::Data(data) => self.handle_data(id, data),
            StreamFrame::Datagram(data) => self.handle_datagram(id, data),
            StreamFrame::Window(increment) => self.handle_window(id, increment),
            StreamFrame::Fin if stream.receiving == Half::Over => self.ignore(now),
            StreamFrame::Fin => {
                stream.receiving = Half::Over;
                self.events.push_back(Event::Fin { id });
                self.close_if_over(id);
                Ok(())
            }
            StreamFrame::Reset(code) => {
                self.events.push_back(Event::Reset { id, code });
                self.end(id);
                self.close_if_over(id);
                Ok(())
            }
        }
    }

    fn handle_data(&mut self, id: StreamId, data: Bytes) -> Result<(), PeerError> {
        let Some(stream) = self.streams.get_mut(id) else { return Ok(()) };
        if stream.is_datagrams() {
            return Err(PeerError::WrongNetwork(id));
        }
        if stream.receiving == Half::Over {
            return self.fault(id);
        }
        if data.is_empty() {
            self.faults.empty_data += 1;
            let limit = self.config.max_empty_data;
            return if self.faults.empty_data > limit { Err(PeerError::EmptyData(limit)) } else { Ok(()) };
        }
        let Some(granted) = u32::try_from(data.len()).ok().and_then(|len| stream.granted.checked_sub(len))
        else {
            return Err(PeerError::WindowExceeded { stream: id, credit: stream.granted, len: data.len() });
        };
        stream.granted = granted;
        stream.held += data.len() as u32;
        self.held += data.len() as u64;
        self.events.push_back(Event::Data { id, data });
        if self.held > self.config.held_limit {
            self.relieve();
        }
        Ok(())
    }

    fn handle_datagram(&mut self, id: StreamId, data: Bytes) -> Result<(), PeerError> {
        let Some(stream) = self.streams.get_mut(id) else { return Ok(()) };
        if !stream.is_datagrams() {
            return Err(PeerError::WrongNetwork(id));
        }
        if stream.receiving == Half::Over {
            return self.fault(id);
        }
        self.events.push_back(Event::Datagram { id, data });
        Ok(())
    }

    fn handle_window(&mut self, id: StreamId, increment: u32) -> Result<(), PeerError> {
        let Some(stream) = self.streams.get_mut(id) else { return Ok(()) };
        if stream.is_datagrams() {
            return Err(PeerError::WrongNetwork(id));
        }
        if increment == 0 {
            return Err(PeerError::WindowZero(id));
        }
        if !stream.add_credit(increment) {
            return Err(PeerError::WindowOverflow(id));
        }
        // A stream that waited for credit is a busy one, and does not come before the others.
        self.schedule(id, Place::Busy);
        Ok(())
    }

    /// The peer broke a rule of streams: this one ends, and the tunnel when it happens too often.
    fn fault(&mut self, id: StreamId) -> Result<(), PeerError> {
        self.faults.caused_resets += 1;
        let limit = self.config.max_caused_resets;
        if self.faults.caused_resets > limit {
            return Err(PeerError::CausedResets(limit));
        }
        self.abort(id, ResetCode::Protocol);
        Ok(())
    }

    fn check_backlog(&self) -> Result<(), PeerError> {
        let limit = self.config.control_bytes;
        if self.control.bytes() > limit { Err(PeerError::ControlBacklog(limit)) } else { Ok(()) }
    }

    // --- streams ---

    /// The peer answered an open, or we did: bytes may flow.
    pub(crate) fn answered(&mut self, id: StreamId, credit: u32) {
        if let Some(stream) = self.streams.get_mut(id) {
            stream.unanswered = false;
            stream.credit = credit;
            self.unanswered -= 1;
            self.schedule(id, Place::Fresh);
        }
    }

    /// Ends both directions of a stream here, without a word to anyone.
    pub(crate) fn end(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(id) {
            let datagrams = stream.is_datagrams();
            let lost = stream.end() as u64;
            if mem::take(&mut stream.unanswered) {
                self.unanswered -= 1;
            }
            self.unsent -= lost;
            if datagrams {
                self.unsent_datagrams -= lost;
            }
        }
    }

    /// Ends a stream for the peer and for the owner. What was held is the reader's still.
    fn abort(&mut self, id: StreamId, code: ResetCode) {
        self.control.push(S::Out::stream(id, StreamFrame::Reset(code)));
        self.events.push_back(Event::Reset { id, code });
        self.end(id);
        self.close_if_over(id);
    }

    /// Forgets what is held for a reader who is gone, and with it the stream.
    pub(crate) fn give_up_held(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(id) {
            self.held -= u64::from(mem::take(&mut stream.held));
            self.close_if_over(id);
        }
    }

    pub(crate) fn close_if_over(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(id) else { return };
        if stream.is_over() && stream.held == 0 {
            self.grown -= u64::from(stream.window.saturating_sub(self.config.window));
            self.streams.remove(id);
            self.events.push_back(Event::Closed { id });
        }
    }

    /// Too much is held for readers, although windows have shrunk: the streams that hold most end, until an eighth
    /// of the limit is free again. Only what was granted before can lead here.
    fn relieve(&mut self) {
        let mut holders: Vec<_> = self
            .streams
            .iter()
            .filter(|(_, stream)| stream.held > MIN_WINDOW && !stream.is_over())
            .map(|(id, stream)| (stream.held, id))
            .collect();
        holders.sort_unstable_by(|a, b| b.cmp(a));
        let mut surplus = self.held.saturating_sub(self.config.held_limit / 8 * 7);
        for (held, id) in holders {
            if surplus == 0 {
                break;
            }
            surplus = surplus.saturating_sub(held.into());
            self.abort(id, ResetCode::Limit);
        }
    }

    // --- credit ---

    /// The credit a new stream, which is in the table already, starts with: less when there is a crowd, or much is
    /// held.
    pub(crate) fn start_window(&self) -> u32 {
        let share = self.config.held_limit / (self.streams.len() as u64).max(1);
        let share = u32::try_from(share).unwrap_or(u32::MAX);
        self.shrunk(self.config.window.min(share).max(MIN_WINDOW))
    }

    /// What is left of a window under pressure: all of it until `held_bytes` are held, [`MIN_WINDOW`] at
    /// `held_limit`, and in proportion between them.
    fn shrunk(&self, window: u32) -> u32 {
        let (soft, hard) = (self.config.held_bytes, self.config.held_limit);
        if self.pressure || self.held >= hard {
            return window.min(MIN_WINDOW);
        }
        if self.held <= soft {
            return window;
        }
        let left = u64::from(window).saturating_mul(hard - self.held) / (hard - soft);
        window.min(MIN_WINDOW.max(left as u32))
    }

    /// Puts a stream in line for credit if it is worth a frame.
    fn check_credit(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(id) else { return };
        let (window, waits) =
            (stream.window, stream.credit_due || stream.unanswered || stream.is_datagrams());
        if waits {
            return;
        }
        let target = self.shrunk(window);
        if let Some(stream) = self.streams.get_mut(id).filter(|stream| stream.shortfall(target).is_some()) {
            stream.credit_due = true;
            self.credit_due.push_back(id);
        }
    }

    fn poll_credit(&mut self) -> Option<S::Out> {
        while let Some(id) = self.credit_due.pop_front() {
            if self.credit_due.is_empty() && self.credit_due.capacity() > KEPT {
                self.credit_due = VecDeque::new();
            }
            self.tune_window(id);
            let Some(window) = self.streams.get_mut(id).map(|stream| stream.window) else { continue };
            let (target, now) = (self.shrunk(window), self.now);
            let Some(stream) = self.streams.get_mut(id) else { continue };
            stream.credit_due = false;
            if let Some(increment) = stream.shortfall(target) {
                stream.granted += increment;
                stream.granted_at = now;
                return Some(S::Out::stream(id, StreamFrame::Window(increment)));
            }
        }
        None
    }

    /// Half a window was read. If that took less than two round trips, the window is what holds the stream back, and
    /// it doubles; below the start window, where a crowd put it, it doubles in any case. Under pressure it halves.
    fn tune_window(&mut self, id: StreamId) {
        let (now, least) = (self.now, self.liveness.least());
        let relaxed = !self.pressure && self.held <= self.config.held_bytes;
        let Some(stream) = self.streams.get_mut(id) else { return };
        let (start, window) = (self.config.window, stream.window);
        if !relaxed {
            let smaller = (window / 2).max(start.min(window));
            self.grown -= u64::from(window.saturating_sub(start) - smaller.saturating_sub(start));
            stream.window = smaller;
            return;
        }
        let took = Duration::from_micros(now.wrapping_sub(stream.granted_at).into());
        if window < start || least.is_some_and(|rtt| took < 2 * rtt) {
            let doubled = window.saturating_mul(2).min(self.config.max_window);
            self.grown += grow(stream, doubled, start, self.config.growth - self.grown);
        }
    }

    pub(crate) fn tick(&mut self, now: Instant) {
        self.now = now.saturating_duration_since(self.start).as_micros() as u32;
    }

    // --- bytes ---

    /// Puts a stream in line if it can send and does not stand there already.
    fn schedule(&mut self, id: StreamId, place: Place) {
        let Some(stream) = self.streams.get_mut(id) else { return };
        if stream.place == Place::None && stream.is_ready() {
            stream.place = place;
            stream.deficit = self.config.quantum as i32;
            self.schedule.push(id, place);
        }
    }

    fn poll_stream(&mut self) -> Option<S::Out> {
        let quantum = self.config.quantum;
        loop {
            let (id, place) = self.schedule.first()?;
            let alone = self.schedule.is_alone();
            let Some(stream) = self.streams.get_mut(id) else {
                self.schedule.pop();
                continue;
            };
            if stream.deficit <= 0 && !alone {
                stream.deficit += quantum as i32;
                self.take_turns(id);
                continue;
            }
            let datagrams = stream.is_datagrams();
            let Some(frame) = stream.pop(if alone { MAX_PAYLOAD } else { quantum as usize }) else {
                self.run_dry(id, place);
                continue;
            };
            match &frame {
                StreamFrame::Data(data) | StreamFrame::Datagram(data) => {
                    let bytes = data.len();
                    // A whole frame sent alone is not held against the stream once there are others.
                    stream.deficit = (stream.deficit - bytes as i32).max(-(quantum as i32));
                    self.unsent -= bytes as u64;
                    if datagrams {
                        self.unsent_datagrams -= bytes as u64;
                    }
                    self.events.push_back(Event::Sent { id, bytes });
                }
                _ => self.close_if_over(id),
            }
            return Some(S::Out::stream(id, frame));
        }
    }

    /// The first in line has had its quantum and goes behind the busy ones.
    fn take_turns(&mut self, id: StreamId) {
        self.schedule.pop();
        self.schedule.push(id, Place::Busy);
        if let Some(stream) = self.streams.get_mut(id) {
            stream.place = Place::Busy;
        }
    }

    /// The first in line has nothing to send now. It leaves, but for a fresh one among busy ones, which waits a turn.
    fn run_dry(&mut self, id: StreamId, place: Place) {
        if place == Place::Fresh && self.schedule.has_busy() {
            return self.take_turns(id);
        }
        self.schedule.pop();
        if let Some(stream) = self.streams.get_mut(id) {
            stream.place = Place::None;
        }
    }
}

/// Raises a window and returns by how much it then exceeds the start window more than before; never above `budget`.
fn grow(stream: &mut Stream, to: u32, start: u32, budget: u64) -> u64 {
    let budget = u32::try_from(budget).unwrap_or(MAX_WINDOW);
    let to = to.min(stream.window.max(start).saturating_add(budget)).max(stream.window);
    let grown = to.saturating_sub(start) - stream.window.saturating_sub(start);
    stream.window = to;
    grown.into()
}
