mod credit;
mod receive;
mod send;

use std::{
    collections::VecDeque,
    mem,
    time::{Duration, Instant},
};

use anyproxy_frame::{Frame, GoAway, GoAwayCode, MAX_PAYLOAD, ResetCode, StreamFrame, StreamId};
use bytes::Bytes;

use crate::{
    Config, Event, Memory, PeerError, Share, Side,
    bandwidth::Bandwidth,
    budget::Budget,
    chunks::Chunks,
    control::Control,
    liveness::Liveness,
    schedule::{KEPT, Place, Schedule},
    stream::{Half, Streams, Unsent, WORTHWHILE},
};

/// One end of a tunnel, as a state machine: frames, commands and the time go in, frames and events come out.
///
/// Its methods are of three kinds.
///
/// - **Commands** say what the owner wants: [`open`](Mux::open), [`accept`](Mux::accept), [`refuse`](Mux::refuse),
///   [`send`](Self::send), [`send_datagram`](Self::send_datagram), [`consumed`](Self::consumed),
///   [`finish`](Self::finish), [`reset`](Self::reset), [`go_away`](Self::go_away). One that names a stream which is
///   gone does nothing: the peer may have ended it a moment ago.
/// - **Input** is what happened: [`handle_frame`](Self::handle_frame), [`handle_progress`](Self::handle_progress),
///   [`handle_timeout`](Self::handle_timeout). An error ends the tunnel; what is then left to send is a go-away that
///   tells the peer why.
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
    pub(crate) refused_opens: u64,
    held: u64,
    /// What was held still when streams that hold much were last looked for; 0 since it was within the limit.
    unrelieved: u64,
    /// By how much windows exceed the start window, in all.
    grown: u64,
    bandwidth: Bandwidth,
    /// What the process may hold, and what of it this tunnel does.
    share: Share,
}

/// What the peer did too much of already.
#[derive(Debug)]
pub(crate) struct Faults {
    empty_data: u32,
    caused_resets: u32,
    pub(crate) unseen_resets: u32,
    /// At a client, opens that the gateway may cancel; at a gateway, what its client will put up with.
    pub(crate) cancelled: Budget,
    /// What a gateway has cancelled and not yet counted.
    own_cancelled: u32,
    /// A gateway opens nothing: if all that is under way were cancelled too, the client would have had enough.
    pub(crate) resting: bool,
    ignored: Budget,
    pings: Budget,
}

impl Faults {
    /// Counts what this end has cancelled as its peer does, who ends the tunnel when it is too much. Enough is kept for all
    /// that may be under way, and for a second's worth of which the two clocks may differ.
    fn count_cancelled(&mut self, now: Instant, config: &Config) {
        while self.own_cancelled > 0 && self.cancelled.take(now) {
            self.own_cancelled -= 1;
        }
        let per_second = config.cancelled_opens_per_second;
        let most = per_second.saturating_mul(CANCEL_BURST) / 2;
        let reserve = config.max_unanswered.saturating_add(per_second).min(most);
        self.resting = self.own_cancelled > 0 || !self.cancelled.has(now, reserve);
    }
}

/// What a stream costs beside its bytes: its places in the tables, its handle and the task that serves it.
const STREAM_COST: u64 = 2 * 1024;

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
                own_cancelled: 0,
                resting: false,
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
            refused_opens: 0,
            held: 0,
            unrelieved: 0,
            grown: 0,
            bandwidth: Bandwidth::new(now),
            share: Memory::default().share(),
            config,
        }
    }

    /// The same, drawing on `memory` for what its streams hold: bytes each way, and 2 KiB for each stream itself.
    ///
    /// What is in use is counted when [`poll_event`](Self::poll_event) has nothing more to say.
    #[must_use]
    pub fn with_memory(mut self, memory: &Memory) -> Self {
        self.share = memory.share();
        self
    }

    // --- commands ---

    /// Appends bytes to what a stream sends. They wait here until there is credit and it is the stream's turn; the
    /// owner bounds them by what [`Event::Sent`] says has left.
    ///
    /// Does nothing after [`finish`](Self::finish), and on streams of datagrams.
    pub fn send(&mut self, id: StreamId, data: impl Into<Chunks>) {
        let data = data.into();
        let Some(stream) = self.streams.get_mut(id).filter(|stream| stream.sending == Half::Open) else {
            return;
        };
        if let Unsent::Bytes(chunks) = &mut stream.unsent {
            self.unsent += data.len() as u64;
            let settles = chunks.is_empty() && stream.credit < WORTHWHILE;
            chunks.append(data);
            if settles {
                chunks.settle();
            }
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
            self.faults.own_cancelled += u32::from(S::OPENS && stream.unanswered);
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
        self.bandwidth.read(bytes);
        if stream.held == 0 {
            stream.behind = 0;
        }
        if stream.receiving == Half::Open {
            self.check_credit(id);
        } else {
            self.close_if_over(id);
        }
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
        self.liveness.alive(now);
        let result = S::handle(self, now, frame).and_then(|()| self.check_backlog());
        if let Err(error) = &result {
            self.fail(error);
        }
        result
    }

    /// Knows that a carrier which was full has moved: the peer, or something on the way to it, takes what was sent. Our ping
    /// may be behind that, so the time for its answer counts from here as it does from a frame.
    ///
    /// Only what had to wait says so. What a carrier with room takes may go no further than this machine.
    pub fn handle_progress(&mut self, now: Instant) {
        self.liveness.alive(now);
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
        if self.failed || !self.said_hello {
            return self.go_away.take();
        }
        if let Some(hello) = self.hello.take() {
            return Some(hello);
        }
        if S::OPENS && (self.faults.own_cancelled > 0 || self.faults.resting) {
            self.faults.count_cancelled(now, &self.config);
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
        self.poll_credit(now).or_else(|| self.control.pop()).or_else(|| S::poll_open(self)).or_else(|| {
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
                self.settle();
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

    /// Those of one stream.
    pub fn held_for(&self, id: StreamId) -> u32 {
        self.streams.get(id).map_or(0, |stream| stream.held)
    }

    /// By how much windows exceed the start window, in all.
    pub fn grown(&self) -> u64 {
        self.grown
    }

    /// Datagrams that [`send_datagram`](Self::send_datagram) dropped.
    pub fn dropped_datagrams(&self) -> u64 {
        self.dropped_datagrams
    }

    /// Opens of the peer that were refused for want of memory, or for a limit on streams. Nobody else hears of them.
    pub fn refused_opens(&self) -> u64 {
        self.refused_opens
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

    // --- streams ---

    pub(crate) fn say_hello(&mut self, hello: S::Out) {
        self.hello = Some(hello);
        self.said_hello = true;
    }

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
            self.grown -= stream.grown(self.config.window);
            self.streams.remove(id);
            self.events.push_back(Event::Closed { id });
        }
    }

    /// The process's memory.
    pub(crate) fn memory(&self) -> &Memory {
        self.share.memory()
    }

    /// Draws on the process's memory no more: the tunnel is over, and who keeps something of it counts that.
    pub fn leave_memory(&mut self) {
        self.share = Memory::default().share();
    }

    /// Draws on the memory for what is held now.
    fn settle(&mut self) {
        let streams = self.streams.len() as u64 * STREAM_COST;
        self.share.set(self.held + self.unsent + self.control.bytes() + streams);
    }
}
