use std::time::Instant;

use anyproxy_frame::{
    ClientHello, FieldTooLong, GoAway, Network, Open, OpenErr, OpenErrClass, OpenOk, ResetCode, Rules,
    StreamId, ToClient, ToGateway,
};
use bytes::{Bytes, BytesMut};

use crate::{Event, Mux, PeerError, side::sealed::Protocol, stream::Stream};

/// The end that is asked to dial.
#[derive(Debug, Default)]
pub struct Client {
    /// The highest number of an open that came, honoured or not.
    last: u32,
    /// The last open that is honoured, once this side goes away.
    honoured: Option<u32>,
    /// The last open that the peer makes, once it goes away; those that wait for their rules come behind that word.
    peer_last: u32,
    /// A version of rules of which parts have come.
    rules: Option<(u32, BytesMut)>,
}

impl Mux<Client> {
    /// Says who this client is, once and first. Window and number of streams are filled in from the configuration.
    ///
    /// # Errors
    /// If a field does not fit the wire.
    pub fn hello(&mut self, mut hello: ClientHello) -> Result<(), FieldTooLong> {
        hello.check()?;
        hello.window = self.window;
        hello.max_streams = hello.max_streams.min(self.config.max_streams);
        self.say_hello(ToGateway::Hello(Box::new(hello)));
        Ok(())
    }

    /// Answers an open: the target was reached, and bytes may flow. The window is filled in.
    pub fn accept(&mut self, id: StreamId, mut ok: OpenOk) {
        let window = self.start_window();
        let Some(stream) = self.streams.get_mut(id).filter(|stream| stream.unanswered) else {
            return;
        };
        stream.grant(window);
        let credit = stream.credit;
        ok.window = (window != self.window && !stream.is_datagrams()).then_some(window);
        self.control.push(ToGateway::OpenOk(id, ok));
        self.answered(id, credit);
    }

    /// Answers an open: the target was not reached.
    pub fn refuse(&mut self, id: StreamId, err: OpenErr) {
        if self.streams.get_mut(id).is_some_and(|stream| stream.unanswered) {
            self.control.push(ToGateway::OpenErr(id, Box::new(err)));
            self.end(id);
            self.close_if_over(id);
        }
    }

    fn handle_open(&mut self, id: StreamId, open: Box<Open>) -> Result<(), PeerError> {
        let peer_window = self.peer_window()?;
        if id.get() <= self.side.last {
            return Err(PeerError::StreamReused(id));
        }
        self.side.last = id.get();
        if self.side.honoured.is_some() {
            // The go-away has told, or will tell, that nobody looked at this one.
            return Ok(());
        }
        if self.memory().is_short() {
            self.turn_down(id, "the client has no memory for more streams");
            return Ok(());
        }
        let (streams, unanswered) = (self.config.max_streams as usize, self.config.max_unanswered);
        if self.streams.len() >= streams || self.unanswered >= unanswered {
            self.turn_down(id, "the client has as many streams as it may");
            return Ok(());
        }
        let mut stream = Stream::new(matches!(open.network, Network::Udp { .. }));
        stream.credit = open.window.unwrap_or(peer_window);
        self.streams.insert(id, stream);
        self.unanswered += 1;
        self.events.push_back(Event::Opened { id, open });
        Ok(())
    }

    /// Refuses an open before anything is kept of it.
    fn turn_down(&mut self, id: StreamId, text: &str) {
        self.refused_opens += 1;
        let err = OpenErr::new(OpenErrClass::Overloaded, text);
        self.control.push(ToGateway::OpenErr(id, Box::new(err)));
    }

    fn handle_rules(&mut self, now: Instant, rules: Rules) -> Result<(), PeerError> {
        self.peer_window()?;
        let Rules { version, last, chunk } = rules;
        let begun = self.side.rules.take();
        if version == 0 || begun.as_ref().is_some_and(|(begun, _)| *begun != version) {
            return Err(PeerError::RulesOutOfOrder(version));
        }
        if chunk.is_empty() && !last {
            self.ignore(now)?;
        }
        let limit = self.config.rules_bytes;
        let len = begun.as_ref().map_or(0, |(_, parts)| parts.len()) + chunk.len();
        if len as u64 > limit {
            return Err(PeerError::RulesTooLong(limit));
        }
        let rules = match begun {
            None if last => Bytes::copy_from_slice(&chunk),
            begun => {
                let mut parts = begun.map_or_else(BytesMut::new, |(_, parts)| parts);
                parts.extend_from_slice(&chunk);
                if !last {
                    self.side.rules = Some((version, parts));
                    return Ok(());
                }
                parts.freeze()
            }
        };
        self.events.push_back(Event::Rules { version, rules });
        Ok(())
    }

    fn handle_go_away(&mut self, now: Instant, go_away: Box<GoAway>) -> Result<(), PeerError> {
        if self.peer_going_away {
            return self.ignore(now);
        }
        self.peer_going_away = true;
        self.side.peer_last = go_away.last;
        self.events.push_back(Event::GoAway(go_away));
        Ok(())
    }
}

impl Protocol for Client {
    const OPENS: bool = false;

    fn handle(mux: &mut Mux<Self>, now: Instant, frame: ToClient) -> Result<(), PeerError> {
        match frame {
            ToClient::Hello(hello) => mux.handle_hello(hello.window, hello),
            ToClient::Open(id, open) => mux.handle_open(id, open),
            ToClient::Stream(id, frame) => mux.handle_stream(now, id, frame),
            ToClient::Rules(rules) => mux.handle_rules(now, rules),
            ToClient::Ping(number) => mux.handle_ping(now, number),
            ToClient::Pong(number) => mux.handle_pong(now, number),
            ToClient::GoAway(go_away) => mux.handle_go_away(now, go_away),
            ToClient::Unknown(_) => mux.ignore(now),
        }
    }

    fn was_opened(&self, id: StreamId) -> bool {
        id.get() <= self.last
    }

    fn last_open(&mut self) -> u32 {
        *self.honoured.get_or_insert(self.last)
    }

    /// The user left during the dial. One by one that is normal; in floods it is an attack, since each costs a dial
    /// begun (CVE-2023-44487).
    fn reset_unanswered(mux: &mut Mux<Self>, now: Instant, id: StreamId) -> Result<(), PeerError> {
        let seen = mux.streams.get_mut(id).is_some_and(|stream| stream.known);
        let limit = mux.config.max_unseen_resets;
        mux.faults.unseen_resets += u32::from(!seen);
        if mux.faults.unseen_resets > limit {
            return Err(PeerError::UnseenResets(limit));
        }
        if !mux.faults.cancelled.take(now) {
            return Err(PeerError::CancelledOpens);
        }
        mux.events.push_back(Event::Reset { id, code: ResetCode::Cancelled });
        mux.end(id);
        mux.close_if_over(id);
        Ok(())
    }

    fn poll_open(_mux: &mut Mux<Self>) -> Option<ToGateway> {
        None
    }

    fn poll_rules(&mut self) -> Option<ToGateway> {
        None
    }

    fn clear(&mut self) {}

    /// Where the peer gave the last open up before it left, it is the peer that hangs up.
    fn is_idle(&self) -> bool {
        self.honoured.is_some() || self.last >= self.peer_last
    }
}
