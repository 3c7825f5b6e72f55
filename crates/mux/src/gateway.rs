use std::{collections::VecDeque, time::Instant};

use anyproxy_frame::{
    FieldTooLong, GatewayHello, GoAway, GoAwayCode, MAX_RULES_CHUNK, Network, Open, OpenErr, OpenErrClass,
    OpenOk, Rules, StreamId, ToClient, ToGateway,
};
use bytes::Bytes;

use crate::{
    Event, Mux, OpenError, PeerError, control::cost, schedule::KEPT, side::sealed::Protocol, stream::Stream,
};

/// Bytes of rules between the frames of streams: a keystroke waits for no more.
const RULES_SLICE: usize = 16 * 1024;

/// The end that opens streams.
#[derive(Debug)]
pub struct Gateway {
    /// The number of the next stream; `None` when they have run out.
    next: Option<StreamId>,
    /// Opens on their way out, each with how many versions of rules must leave before it.
    opens: VecDeque<(StreamId, Box<Open>, u64)>,
    opens_bytes: u64,
    /// The last open that left.
    sent: u32,
    /// How many streams the client serves.
    peer_max_streams: u32,
    /// The last open that the client honours, once it goes away.
    peer_last: Option<u32>,
    /// Rules on their way out.
    rules: VecDeque<(u32, Bytes)>,
    rules_queued: u64,
    rules_sent: u64,
}

impl Default for Gateway {
    fn default() -> Self {
        Self {
            next: Some(StreamId::FIRST),
            opens: VecDeque::new(),
            opens_bytes: 0,
            sent: 0,
            peer_max_streams: u32::MAX,
            peer_last: None,
            rules: VecDeque::new(),
            rules_queued: 0,
            rules_sent: 0,
        }
    }
}

impl Mux<Gateway> {
    /// Answers the client's hello, once. Window and number of streams are filled in from the configuration.
    ///
    /// # Errors
    /// If a field does not fit the wire.
    pub fn hello(&mut self, mut hello: GatewayHello) -> Result<(), FieldTooLong> {
        hello.check()?;
        hello.window = self.window;
        hello.max_streams = hello.max_streams.min(self.config.max_streams);
        self.say_hello(ToClient::Hello(Box::new(hello)));
        Ok(())
    }

    /// Opens a stream. Its fate comes as [`Event::Answered`]; how long to wait for that is the owner's to say, by
    /// [`reset`](Self::reset).
    ///
    /// # Errors
    /// If this tunnel cannot take another stream. Nothing was sent then.
    pub fn open(&mut self, mut open: Open) -> Result<StreamId, OpenError> {
        self.check_open(&open)?;
        let Some(id) = self.side.next else {
            self.go_away(GoAwayCode::Exhausted, "stream numbers have run out");
            return Err(OpenError::Exhausted);
        };
        self.side.next = id.next();
        let datagrams = matches!(open.network, Network::Udp { .. });
        self.streams.insert(id, Stream::new(datagrams));
        let window = self.start_window();
        if let Some(stream) = self.streams.get_mut(id) {
            stream.grant(window);
        }
        open.window = (window != self.window && !datagrams).then_some(window);
        self.unanswered += 1;
        self.side.push_open(id, Box::new(open));
        Ok(id)
    }

    fn check_open(&self, open: &Open) -> Result<(), OpenError> {
        if self.is_going_away() {
            return Err(OpenError::GoingAway);
        }
        if !self.is_ready() {
            return Err(OpenError::NotReady);
        }
        open.check().map_err(OpenError::Invalid)?;
        let max_streams = self.config.max_streams.min(self.side.peer_max_streams);
        if self.streams.len() >= max_streams as usize {
            return Err(OpenError::TooManyStreams(max_streams));
        }
        if self.unanswered >= self.config.max_unanswered {
            return Err(OpenError::TooManyUnanswered(self.config.max_unanswered));
        }
        if self.faults.resting {
            return Err(OpenError::Congested);
        }
        if self.control.bytes() + self.side.opens_bytes > self.config.control_bytes / 2 {
            return Err(OpenError::Congested);
        }
        if self.memory().is_short() {
            return Err(OpenError::MemoryShort);
        }
        Ok(())
    }

    /// Sends a version of the rules. Opens made from now on leave behind it; bytes of streams go in between.
    pub fn send_rules(&mut self, version: u32, rules: Bytes) {
        self.side.rules_queued += 1;
        self.side.rules.push_back((version, rules));
    }

    fn handle_answer(
        &mut self,
        now: Instant,
        id: StreamId,
        answer: Result<OpenOk, Box<OpenErr>>,
    ) -> Result<(), PeerError> {
        let peer_window = self.peer_window()?;
        if !self.side.was_opened(id) {
            return Err(PeerError::UnknownStream(id));
        }
        match self.streams.get_mut(id) {
            Some(stream) if stream.unanswered => {}
            Some(_) => return self.ignore(now),
            // The user left, and the reset passed the answer on its way.
            None => return Ok(()),
        }
        match answer {
            Ok(ok) => {
                self.events.push_back(Event::Answered { id, answer: Ok(ok) });
                self.answered(id, ok.window.unwrap_or(peer_window));
            }
            Err(err) => self.fail_open(id, err),
        }
        Ok(())
    }

    /// An open failed: the owner learns why, and the stream is over.
    fn fail_open(&mut self, id: StreamId, err: Box<OpenErr>) {
        self.events.push_back(Event::Answered { id, answer: Err(err) });
        self.end(id);
        self.close_if_over(id);
    }

    fn handle_go_away(&mut self, now: Instant, go_away: Box<GoAway>) -> Result<(), PeerError> {
        let last = go_away.last;
        match self.side.peer_last {
            Some(was) if last > was => return Err(PeerError::GoAwayRaised { was, now: last }),
            Some(_) => self.ignore(now)?,
            None => {}
        }
        self.side.peer_last = Some(last);
        self.peer_going_away = true;
        let mut disowned: Vec<_> = self
            .streams
            .iter()
            .filter(|(id, stream)| stream.unanswered && (!stream.known || id.get() > last))
            .map(|(id, _)| id)
            .collect();
        disowned.sort_unstable();
        for id in disowned {
            self.fail_open(id, Box::new(OpenErr::new(OpenErrClass::Disowned, "the client goes away")));
        }
        self.events.push_back(Event::GoAway(go_away));
        Ok(())
    }
}

impl Protocol for Gateway {
    const OPENS: bool = true;

    fn handle(mux: &mut Mux<Self>, now: Instant, frame: ToGateway) -> Result<(), PeerError> {
        match frame {
            ToGateway::Hello(hello) => {
                mux.side.peer_max_streams = hello.max_streams;
                mux.handle_hello(hello.window, hello)
            }
            ToGateway::OpenOk(id, ok) => mux.handle_answer(now, id, Ok(ok)),
            ToGateway::OpenErr(id, err) => mux.handle_answer(now, id, Err(err)),
            ToGateway::Stream(id, frame) => mux.handle_stream(now, id, frame),
            ToGateway::Ping(number) => mux.handle_ping(now, number),
            ToGateway::Pong(number) => mux.handle_pong(now, number),
            ToGateway::GoAway(go_away) => mux.handle_go_away(now, go_away),
            ToGateway::Unknown(_) => mux.ignore(now),
        }
    }

    /// Only what has left can be on the peer's mind.
    fn was_opened(&self, id: StreamId) -> bool {
        id.get() <= self.sent
    }

    fn last_open(&mut self) -> u32 {
        self.next.map_or(u32::MAX, |next| next.get() - 1)
    }

    fn reset_unanswered(mux: &mut Mux<Self>, _now: Instant, id: StreamId) -> Result<(), PeerError> {
        mux.fail_open(id, Box::new(OpenErr::new(OpenErrClass::Internal, "the client reset the open")));
        Ok(())
    }

    fn poll_open(mux: &mut Mux<Self>) -> Option<ToClient> {
        while let Some((_, _, behind)) = mux.side.opens.front() {
            if *behind > mux.side.rules_sent {
                return None;
            }
            let frame = mux.side.pop_open()?;
            let ToClient::Open(id, _) = &frame else { return None };
            // Nobody hears of an open that was given up before it left.
            if let Some(stream) = mux.streams.get_mut(*id) {
                stream.known = true;
                mux.side.sent = id.get();
                return Some(frame);
            }
        }
        None
    }

    fn poll_rules(&mut self) -> Option<ToClient> {
        let (version, rest) = self.rules.front_mut()?;
        let chunk = rest.split_to(rest.len().min(RULES_SLICE));
        let rules = Rules { version: *version, last: rest.is_empty(), chunk };
        if rules.last {
            self.rules.pop_front();
            self.rules_sent += 1;
        }
        Some(ToClient::Rules(rules))
    }

    fn clear(&mut self) {
        self.opens = VecDeque::new();
        self.rules = VecDeque::new();
    }

    fn is_idle(&self) -> bool {
        self.opens.is_empty() && self.rules.is_empty()
    }
}

impl Gateway {
    fn push_open(&mut self, id: StreamId, open: Box<Open>) {
        let frame = ToClient::Open(id, open);
        self.opens_bytes += cost(&frame);
        if let ToClient::Open(id, open) = frame {
            self.opens.push_back((id, open, self.rules_queued));
        }
    }

    fn pop_open(&mut self) -> Option<ToClient> {
        let (id, open, _) = self.opens.pop_front()?;
        let frame = ToClient::Open(id, open);
        self.opens_bytes -= cost(&frame);
        if self.opens.is_empty() && self.opens.capacity() > KEPT {
            self.opens = VecDeque::new();
        }
        Some(frame)
    }
}

const _: () = assert!(RULES_SLICE <= MAX_RULES_CHUNK);

#[cfg(test)]
mod tests {
    use anyproxy_frame::{ClientHello, HostRef};

    use super::*;
    use crate::Config;

    #[test]
    fn m4_numbers_that_run_out_ask_for_another_tunnel_and_nothing_hangs() {
        let now = Instant::now();
        let mut gateway = Mux::<Gateway>::new(Config::default(), now);
        gateway.handle_frame(now, ToGateway::Hello(Box::new(ClientHello::new("c", 1)))).unwrap();
        gateway.hello(GatewayHello::new(1)).unwrap();
        gateway.side.next = StreamId::new(u32::MAX);
        let open = || Open::tcp(HostRef::Name("t".into()), 80);
        let last = gateway.open(open()).unwrap();
        assert_eq!(last.get(), u32::MAX);
        assert_eq!(gateway.open(open()), Err(OpenError::Exhausted));
        let sent: Vec<_> = std::iter::from_fn(|| gateway.poll_transmit(now)).collect();
        assert!(sent.iter().any(|frame| {
            matches!(frame, ToClient::GoAway(go_away) if go_away.code == GoAwayCode::Exhausted)
        }));
        gateway.handle_frame(now, ToGateway::OpenOk(last, OpenOk::default())).unwrap();
        assert_eq!(gateway.streams(), 1, "the last stream lives on");
        assert_eq!(gateway.open(open()), Err(OpenError::GoingAway));
    }
}
