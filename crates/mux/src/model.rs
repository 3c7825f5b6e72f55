//! Two joined cores against a reference, for fuzz targets and property tests.
//!
//! The bytes of a script choose what the two owners do, how frames are packed into messages, when messages arrive,
//! how time goes, and whether the carrier is cut. The reference knows what was written on each stream and what credit
//! was granted, and nothing of how the cores work. At the end everybody reads and finishes, and then nothing may be
//! left anywhere.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use anyproxy_frame::{
    ClientHello, Frame, Frames, GatewayHello, GoAwayCode, HostRef, Network, Open, OpenErr, OpenErrClass,
    OpenOk, ResetCode, StreamFrame, StreamId, ToClient, ToGateway,
};
use bytes::{Buf, Bytes, BytesMut};

use crate::{Chunks, Client, Config, Event, Gateway, Memory, Mux, PeerError, Share, Side};

/// Plays a script.
///
/// # Panics
/// If the cores and the reference disagree: a byte lost, doubled or out of place, an end that is not true, more sent
/// than there was credit for, a stream that never ends, or anything left over.
pub fn play(script: &[u8]) {
    let mut script = Script(script);
    let mut world = World::new(&mut script);
    while !script.0.is_empty() && !world.cut {
        world.step(&mut script);
    }
    if !world.cut {
        world.settle();
    }
}

/// The choices that are left; when they have run out, every choice is 0.
struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((&first, rest)) => {
                self.0 = rest;
                first
            }
            None => 0,
        }
    }

    fn below(&mut self, limit: usize) -> usize {
        if limit <= 256 { usize::from(self.byte()) % limit.max(1) } else { self.number() % limit }
    }

    fn number(&mut self) -> usize {
        usize::from(self.byte()) << 8 | usize::from(self.byte())
    }

    /// Mostly small, sometimes larger than any window.
    fn size(&mut self) -> usize {
        match self.byte() {
            size @ 0..=99 => usize::from(size),
            size @ 100..=199 => usize::from(size - 99) * 163,
            size => usize::from(size - 199) * 9_001,
        }
    }
}

/// Both ends and what lies between them.
struct World {
    now: Instant,
    gateway: End<Gateway>,
    client: End<Client>,
    /// What else there is in the process of both.
    others: Share,
    cut: bool,
}

/// One end: the core, its owner's side of every stream, and the messages on their way to it.
struct End<S: Direction> {
    mux: Mux<S>,
    streams: BTreeMap<StreamId, Owned>,
    inbox: VecDeque<Bytes>,
    /// What this end may still send on each stream, as the frames say that have come and gone.
    referee: BTreeMap<StreamId, u64>,
    /// Announced by the peer's hello.
    start_credit: u64,
    gone_away: bool,
}

/// What an owner knows of a stream.
#[derive(Debug, Default)]
struct Owned {
    datagrams: bool,
    answered: bool,
    refused: bool,
    /// Bytes given to the core, and those that it says have left.
    written: u64,
    sent: u64,
    finished: bool,
    /// Bytes that came, read or not; the number of the last datagram.
    received: u64,
    unread: Chunks,
    fin: bool,
    /// Either side reset it, so that bytes may be missing.
    broken: bool,
    closed: bool,
}

impl Owned {
    fn may_write(&self) -> bool {
        self.answered && !self.finished && !self.broken && !self.closed
    }
}

impl<S: Direction> End<S> {
    fn new(mux: Mux<S>) -> Self {
        Self {
            mux,
            streams: BTreeMap::new(),
            inbox: VecDeque::new(),
            referee: BTreeMap::new(),
            start_credit: 0,
            gone_away: false,
        }
    }

    fn pick(&self, script: &mut Script<'_>) -> Option<StreamId> {
        let at = script.below(self.streams.len());
        self.streams.keys().nth(at).copied()
    }

    fn write(&mut self, id: StreamId, len: usize) {
        let Some(owned) = self.streams.get_mut(&id).filter(|owned| owned.may_write()) else { return };
        if owned.datagrams {
            let number = owned.written + 1;
            if self.mux.send_datagram(id, datagram(id, number)) {
                owned.written = number;
            }
        } else {
            let data = pattern(id, S::SALT, owned.written, len);
            owned.written += len as u64;
            self.mux.send(id, data);
        }
    }

    fn read(&mut self, id: StreamId, len: usize) {
        let Some(owned) = self.streams.get_mut(&id) else { return };
        let len = len.min(owned.unread.len());
        owned.unread.advance(len);
        self.mux.consumed(id, len as u32);
    }

    fn finish(&mut self, id: StreamId) {
        if let Some(owned) = self.streams.get_mut(&id).filter(|owned| owned.may_write()) {
            owned.finished = true;
            self.mux.finish(id);
        }
    }

    fn reset(&mut self, id: StreamId) {
        if let Some(owned) = self.streams.get_mut(&id) {
            owned.broken = true;
            owned.unread = Chunks::new();
            self.mux.reset(id, ResetCode::Cancelled);
        }
    }

    /// Packs up to `frames` frames into messages for the other end; `true` if there was any.
    fn transmit(&mut self, now: Instant, frames: usize, inbox: &mut VecDeque<Bytes>) -> bool {
        let mut message = BytesMut::new();
        let mut any = false;
        for _ in 0..frames {
            let Some(frame) = self.mux.poll_transmit(now) else { break };
            any = true;
            self.judge(&frame);
            if !message.is_empty() && message.len() + frame.encoded_len() > 64 * 1024 {
                inbox.push_back(message.split().freeze());
            }
            frame.encode(&mut message);
        }
        if !message.is_empty() {
            inbox.push_back(message.freeze());
        }
        any
    }

    /// The referee looks at what is sent.
    fn judge(&mut self, frame: &S::Out) {
        if let Some((id, StreamFrame::Data(data))) = S::as_stream(frame) {
            let credit = self.referee.entry(id).or_insert(self.start_credit);
            assert!(
                *credit >= data.len() as u64,
                "stream {id} sends {} bytes with credit for {credit}",
                data.len()
            );
            assert!(!data.is_empty(), "nobody sends empty data");
            *credit -= data.len() as u64;
        }
    }

    /// Hears a message; `Err` only for reasons of time.
    fn hear(&mut self, now: Instant, message: Bytes) -> Result<Vec<Event<S::PeerHello>>, PeerError> {
        let frames = Frames::<S::In>::new(message).expect("messages are of a legal length");
        for frame in frames {
            let frame = frame.expect("what was encoded decodes");
            if let Some((id, StreamFrame::Window(increment))) = S::in_stream(&frame) {
                *self.referee.entry(id).or_insert(self.start_credit) += u64::from(*increment);
            }
            if let Some((id, window)) = S::in_window(&frame) {
                self.referee.insert(id, window.map_or(self.start_credit, u64::from));
            }
            self.mux.handle_frame(now, frame)?;
        }
        let mut events = Vec::new();
        self.collect(&mut events);
        Ok(events)
    }

    /// What both ends do with events; the rest is returned.
    fn collect(&mut self, rest: &mut Vec<Event<S::PeerHello>>) {
        while let Some(event) = self.mux.poll_event() {
            match event {
                Event::Data { id, data } => {
                    let owned = self.living(id);
                    assert!(!owned.fin, "data on stream {id} behind its end");
                    assert_eq!(
                        data,
                        pattern(id, S::PEER_SALT, owned.received, data.len()),
                        "bytes of stream {id}"
                    );
                    owned.received += data.len() as u64;
                    owned.unread.push_received(data);
                }
                Event::Datagram { id, data } => {
                    let owned = self.living(id);
                    let number = data.get(..8).map_or(0, |mut head| head.get_u64());
                    assert!(number > owned.received, "datagram {number} after {}", owned.received);
                    assert_eq!(data, datagram(id, number), "datagrams come whole");
                    owned.received = number;
                }
                Event::Sent { id, bytes } => {
                    let owned = self.living(id);
                    owned.sent += bytes as u64;
                    assert!(owned.datagrams || owned.sent <= owned.written, "more left than was written");
                }
                Event::Fin { id } => {
                    let owned = self.living(id);
                    assert!(!owned.fin, "stream {id} ends twice");
                    owned.fin = true;
                }
                Event::Reset { id, .. } => self.living(id).broken = true,
                Event::Closed { id } => {
                    let owned = self.living(id);
                    assert!(owned.unread.is_empty(), "stream {id} closed before it was read");
                    owned.closed = true;
                }
                event => rest.push(event),
            }
        }
    }

    fn living(&mut self, id: StreamId) -> &mut Owned {
        let owned = self.streams.get_mut(&id).expect("events are of streams one knows");
        assert!(!owned.closed, "event of stream {id} after it was closed");
        owned
    }
}

impl World {
    fn new(script: &mut Script<'_>) -> Self {
        let now = Instant::now();
        let choice = script.byte();
        let mut config = Config { max_unanswered: 8, max_streams: 24, ..Config::default() };
        if choice & 1 == 1 {
            // So tight that windows shrink all the time, and never so tight that a stream must be reset.
            config = Config { window: 32 * 1024, max_window: 128 * 1024, held_bytes: 20_000, ..config };
        }
        if choice & 2 == 2 {
            config = Config { max_datagrams: 3, quantum: 1_024, ..config };
        }
        // So much that no stream must be reset.
        let memory = Memory::new(1 << 40);
        let mut world = Self {
            now,
            gateway: End::new(Mux::new(config.clone(), now).with_memory(&memory)),
            client: End::new(Mux::new(config, now).with_memory(&memory)),
            others: memory.share(),
            cut: false,
        };
        world.client.mux.hello(ClientHello::new("model", 1)).expect("a short name");
        world.exchange();
        world.gateway.mux.hello(GatewayHello::new(1)).expect("no name");
        world.exchange();
        assert!(world.gateway.mux.is_ready() && world.client.mux.is_ready());
        world
    }

    fn step(&mut self, script: &mut Script<'_>) {
        let operation = script.byte();
        match operation % 20 {
            0 => self.open(script),
            1 | 2 => self.answer(script),
            3 => on_one(&mut self.gateway, script, |end, id, script| end.write(id, script.size())),
            4 => on_one(&mut self.client, script, |end, id, script| end.write(id, script.size())),
            5 => on_one(&mut self.gateway, script, |end, id, script| end.read(id, script.size())),
            6 => on_one(&mut self.client, script, |end, id, script| end.read(id, script.size())),
            7 => on_one(&mut self.gateway, script, |end, id, _| end.finish(id)),
            8 => on_one(&mut self.client, script, |end, id, _| end.finish(id)),
            9 => on_one(&mut self.gateway, script, |end, id, _| end.reset(id)),
            10 => on_one(&mut self.client, script, |end, id, _| end.reset(id)),
            11 | 12 => {
                self.gateway.transmit(self.now, script.below(32), &mut self.client.inbox);
            }
            13 | 14 => {
                self.client.transmit(self.now, script.below(32), &mut self.gateway.inbox);
            }
            15 => self.deliver_to_client(),
            16 => self.deliver_to_gateway(),
            17 => self.pass(Duration::from_millis(script.below(8_000) as u64)),
            18 => {
                let on = script.byte() & 1 == 1;
                self.others.set(if on { self.others.memory().limit() / 8 * 7 } else { 0 });
            }
            _ => match script.byte() {
                0 => self.cut(),
                1 => self.client_goes_away(),
                2 => self.gateway.mux.send_rules(1, Bytes::from_static(&[7; 40_000])),
                _ => self.exchange(),
            },
        }
        self.collect();
    }

    fn open(&mut self, script: &mut Script<'_>) {
        let host = HostRef::Name("target".into());
        let datagrams = script.byte().is_multiple_of(4);
        let open = if datagrams { Open::udp(1, host, 53) } else { Open::tcp(host, 80) };
        if let Ok(id) = self.gateway.mux.open(open) {
            let before = self.gateway.streams.insert(id, Owned { datagrams, ..Owned::default() });
            assert!(before.is_none(), "stream {id} opened twice");
        }
    }

    fn answer(&mut self, script: &mut Script<'_>) {
        let Some(id) = self.client.pick(script) else { return };
        let refuse = script.byte().is_multiple_of(5);
        self.answer_with(id, refuse);
    }

    fn answer_with(&mut self, id: StreamId, refuse: bool) {
        let waiting =
            |owned: &&mut Owned| !owned.answered && !owned.refused && !owned.closed && !owned.broken;
        let Some(owned) = self.client.streams.get_mut(&id).filter(waiting) else { return };
        if refuse {
            owned.refused = true;
            self.client.mux.refuse(id, OpenErr::new(OpenErrClass::Refused, "refused"));
        } else {
            owned.answered = true;
            self.client.mux.accept(id, OpenOk::default());
        }
    }

    fn client_goes_away(&mut self) {
        if !self.client.gone_away {
            self.client.gone_away = true;
            self.client.mux.go_away(GoAwayCode::Shutdown, "the script says so");
        }
    }

    /// Lets time go by, in steps that a driver would make.
    fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        loop {
            let timers = [self.gateway.mux.poll_timeout(), self.client.mux.poll_timeout()];
            let next = timers.into_iter().flatten().min().unwrap_or(until).clamp(self.now, until);
            self.now = next;
            let results = [self.gateway.mux.handle_timeout(next), self.client.mux.handle_timeout(next)];
            for result in results {
                if let Err(error) = result {
                    assert!(matches!(error, PeerError::PingTimeout(_)), "{error}");
                    return self.cut();
                }
            }
            if next == until {
                return;
            }
        }
    }

    /// The carrier is gone. Whoever has seen an end has seen all bytes; nobody sees one afterwards.
    fn cut(&mut self) {
        self.cut = true;
        self.check_ends();
    }

    fn deliver_to_client(&mut self) {
        let Some(message) = self.client.inbox.pop_front() else { return };
        let events = self.client.hear(self.now, message).expect("the gateway is honest");
        for event in events {
            match event {
                Event::PeerHello(hello) => self.client.start_credit = hello.window.into(),
                Event::Opened { id, open } => {
                    let datagrams = matches!(open.network, Network::Udp { .. });
                    let before = self.client.streams.insert(id, Owned { datagrams, ..Owned::default() });
                    assert!(before.is_none(), "stream {id} came twice");
                }
                Event::Rules { version: 1, rules } => assert_eq!(rules.len(), 40_000),
                Event::Rtt(_) | Event::GoAway(_) => {}
                event => panic!("no event of a client: {event:?}"),
            }
            // What came behind an open in the same message concerns a stream that is known only now.
            self.client.collect(&mut Vec::new());
        }
    }

    fn deliver_to_gateway(&mut self) {
        let Some(message) = self.gateway.inbox.pop_front() else { return };
        let events = self.gateway.hear(self.now, message).expect("the client is honest");
        for event in events {
            match event {
                Event::PeerHello(hello) => self.gateway.start_credit = hello.window.into(),
                Event::Answered { id, answer } => {
                    let owned = self.gateway.streams.get_mut(&id).expect("answers are of opens");
                    assert!(!owned.answered && !owned.refused, "open of stream {id} answered twice");
                    owned.answered = answer.is_ok();
                    owned.refused = answer.is_err();
                }
                Event::Rtt(_) | Event::GoAway(_) => {}
                event => panic!("no event of a gateway: {event:?}"),
            }
        }
    }

    fn collect(&mut self) {
        let mut rest = Vec::new();
        self.gateway.collect(&mut rest);
        assert!(rest.is_empty(), "commands cause no answers");
        let mut rest = Vec::new();
        self.client.collect(&mut rest);
        assert!(rest.is_empty(), "commands cause no opens");
        self.check_ends();
    }

    /// An end that was shown is true: all that was written before it has come.
    fn check_ends(&self) {
        for (id, down) in &self.gateway.streams {
            let Some(up) = self.client.streams.get(id) else { continue };
            for (writer, reader) in [(down, up), (up, down)] {
                assert!(reader.received <= writer.written, "stream {id} reads what nobody wrote");
                if reader.fin {
                    assert!(writer.finished, "stream {id} shows an end that nobody meant");
                    assert!(reader.datagrams || reader.received == writer.written, "stream {id} ends early");
                }
            }
        }
    }

    /// Sends and delivers until nothing moves.
    fn exchange(&mut self) {
        loop {
            let mut moved = self.gateway.transmit(self.now, usize::MAX, &mut self.client.inbox);
            moved |= self.client.transmit(self.now, usize::MAX, &mut self.gateway.inbox);
            moved |= !self.client.inbox.is_empty() || !self.gateway.inbox.is_empty();
            if !moved {
                return;
            }
            while !self.client.inbox.is_empty() {
                self.deliver_to_client();
            }
            while !self.gateway.inbox.is_empty() {
                self.deliver_to_gateway();
            }
            self.collect();
        }
    }

    fn read_all(&mut self) {
        let ids: Vec<_> = self.gateway.streams.keys().copied().collect();
        for id in ids {
            self.gateway.read(id, usize::MAX);
            self.client.read(id, usize::MAX);
        }
    }

    /// Everybody reads until nothing moves: what does not arrive now has been forgotten by somebody.
    fn flow(&mut self) {
        loop {
            self.exchange();
            let held = self.gateway.mux.held() + self.client.mux.held();
            self.read_all();
            self.collect();
            if held == 0 {
                return self.exchange();
            }
        }
    }

    fn settle(&mut self) {
        self.flow();
        let ids: Vec<_> = self.gateway.streams.keys().copied().collect();
        ids.iter().for_each(|&id| self.answer_with(id, false));
        self.flow();
        for (id, down) in &self.gateway.streams {
            let Some(up) = self.client.streams.get(id) else { continue };
            if down.broken || up.broken || down.datagrams {
                continue;
            }
            assert_eq!(down.written, up.received, "all of stream {id} comes to the client");
            assert_eq!(up.written, down.received, "all of stream {id} comes to the gateway");
            assert_eq!((down.written, up.written), (down.sent, up.sent), "and is said to have left");
        }
        for &id in &ids {
            self.gateway.finish(id);
            self.client.finish(id);
        }
        self.flow();
        self.check_over();
    }

    fn check_over(&self) {
        for (id, owned) in self.gateway.streams.iter().chain(&self.client.streams) {
            assert!(owned.closed, "stream {id} never ends: {owned:?}");
        }
        for (id, down) in &self.gateway.streams {
            let unheard = self.client.streams.get(id).is_none_or(|up| up.broken);
            assert!(down.refused || down.broken || unheard || down.fin, "stream {id} ends without an end");
        }
        let (gateway, client) = (&self.gateway.mux, &self.client.mux);
        assert_eq!((gateway.streams(), client.streams()), (0, 0));
        assert_eq!((gateway.unanswered(), client.unanswered()), (0, 0));
        assert_eq!((gateway.unsent(), client.unsent()), (0, 0));
        assert_eq!((gateway.held(), client.held()), (0, 0));
        assert_eq!((gateway.grown(), client.grown()), (0, 0));
        assert_eq!(self.client.gone_away, gateway.is_drained() && client.is_drained());
    }
}

fn on_one<S: Direction>(
    end: &mut End<S>,
    script: &mut Script<'_>,
    act: impl FnOnce(&mut End<S>, StreamId, &mut Script<'_>),
) {
    if let Some(id) = end.pick(script) {
        act(end, id, script);
    }
}

/// Bytes that say where in which stream they belong.
fn pattern(id: StreamId, salt: u8, at: u64, len: usize) -> Bytes {
    let byte =
        |at: u64| (at as u8) ^ (at >> 8) as u8 ^ (at >> 16) as u8 ^ (id.get() as u8).wrapping_mul(31) ^ salt;
    (at..at + len as u64).map(byte).collect()
}

/// A datagram that says its number, of a length that follows from it; the first of each ten has no more than that.
fn datagram(id: StreamId, number: u64) -> Bytes {
    let mut datagram = BytesMut::from(&number.to_be_bytes()[..]);
    datagram.extend_from_slice(&pattern(id, 9, number, (number % 10) as usize * 97));
    datagram.freeze()
}

/// What the model needs to know of a direction.
trait Direction: Side {
    const SALT: u8;
    const PEER_SALT: u8;
    fn as_stream(frame: &Self::Out) -> Option<(StreamId, &StreamFrame)>;
    fn in_stream(frame: &Self::In) -> Option<(StreamId, &StreamFrame)>;
    /// The credit that an open, or its answer, starts a stream with.
    fn in_window(frame: &Self::In) -> Option<(StreamId, Option<u32>)>;
}

impl Direction for Gateway {
    const SALT: u8 = 1;
    const PEER_SALT: u8 = 2;

    fn as_stream(frame: &ToClient) -> Option<(StreamId, &StreamFrame)> {
        if let ToClient::Stream(id, frame) = frame { Some((*id, frame)) } else { None }
    }

    fn in_stream(frame: &ToGateway) -> Option<(StreamId, &StreamFrame)> {
        if let ToGateway::Stream(id, frame) = frame { Some((*id, frame)) } else { None }
    }

    fn in_window(frame: &ToGateway) -> Option<(StreamId, Option<u32>)> {
        if let ToGateway::OpenOk(id, ok) = frame { Some((*id, ok.window)) } else { None }
    }
}

impl Direction for Client {
    const SALT: u8 = 2;
    const PEER_SALT: u8 = 1;

    fn as_stream(frame: &ToGateway) -> Option<(StreamId, &StreamFrame)> {
        if let ToGateway::Stream(id, frame) = frame { Some((*id, frame)) } else { None }
    }

    fn in_stream(frame: &ToClient) -> Option<(StreamId, &StreamFrame)> {
        if let ToClient::Stream(id, frame) = frame { Some((*id, frame)) } else { None }
    }

    fn in_window(frame: &ToClient) -> Option<(StreamId, Option<u32>)> {
        if let ToClient::Open(id, open) = frame { Some((*id, open.window)) } else { None }
    }
}
