//! One core and a peer that says whatever a test wants it to.

#![allow(dead_code, clippy::unwrap_used, reason = "each test file uses its part, and all of it is test code")]

use std::time::{Duration, Instant};

use anyproxy_frame::{
    ClientHello, GatewayHello, HostRef, Open, OpenOk, StreamFrame, StreamId, ToClient, ToGateway,
};
use anyproxy_mux::{Client, Config, Event, Gateway, Memory, Mux, PeerError, Side};
use bytes::Bytes;

pub(crate) type ClientUnderTest = UnderTest<Client>;
pub(crate) type GatewayUnderTest = UnderTest<Gateway>;

pub(crate) struct UnderTest<S: Side> {
    pub(crate) mux: Mux<S>,
    pub(crate) now: Instant,
}

impl<S: Side> UnderTest<S> {
    /// Before any hello.
    pub(crate) fn silent(config: Config) -> Self {
        let now = Instant::now();
        Self { mux: Mux::new(config, now), now }
    }

    pub(crate) fn hear(&mut self, frame: S::In) -> Result<(), PeerError> {
        self.mux.handle_frame(self.now, frame)
    }

    /// All it has to send.
    pub(crate) fn transmit(&mut self) -> Vec<S::Out> {
        std::iter::from_fn(|| self.mux.poll_transmit(self.now)).collect()
    }

    /// All it has to say, but for what has been sent.
    pub(crate) fn events(&mut self) -> Vec<Event<S::PeerHello>> {
        let events = std::iter::from_fn(|| self.mux.poll_event());
        events.filter(|event| !matches!(event, Event::Sent { .. })).collect()
    }

    pub(crate) fn wait(&mut self, time: Duration) {
        self.now += time;
    }
}

impl ClientUnderTest {
    pub(crate) fn ready() -> Self {
        Self::with(Config::default())
    }

    /// One whose streams draw on `memory`.
    pub(crate) fn of_memory(memory: &Memory) -> Self {
        let now = Instant::now();
        Self::greeted(Mux::new(Config::default(), now).with_memory(memory), now)
    }

    pub(crate) fn with(config: Config) -> Self {
        let now = Instant::now();
        Self::greeted(Mux::new(config, now), now)
    }

    fn greeted(mux: Mux<Client>, now: Instant) -> Self {
        let mut client = Self { mux, now };
        client.mux.hello(ClientHello::new("c", 1)).unwrap();
        client.hear(ToClient::Hello(Box::new(GatewayHello::new(1)))).unwrap();
        client.transmit();
        client.events();
        client
    }

    pub(crate) fn hear_open(&mut self, number: u32) -> Result<(), PeerError> {
        self.hear(ToClient::Open(id(number), Box::new(open())))
    }

    pub(crate) fn stream(&mut self, id: StreamId, frame: StreamFrame) {
        self.hear(ToClient::Stream(id, frame)).unwrap();
    }

    pub(crate) fn accept_open(&mut self, number: u32) -> StreamId {
        self.accept(number, open())
    }

    pub(crate) fn accept_udp(&mut self, number: u32) -> StreamId {
        self.accept(number, Open::udp(1, HostRef::Name("t".into()), 53))
    }

    fn accept(&mut self, number: u32, open: Open) -> StreamId {
        let id = id(number);
        self.hear(ToClient::Open(id, Box::new(open))).unwrap();
        assert!(matches!(self.events()[..], [Event::Opened { .. }]));
        self.mux.accept(id, OpenOk::default());
        assert!(self.transmit().iter().any(|frame| matches!(frame, ToGateway::OpenOk(..))));
        id
    }

    /// Answers the first ping after this time.
    pub(crate) fn measure_rtt(&mut self, rtt: Duration) {
        self.mux.handle_timeout(self.now).unwrap();
        let sent = self.transmit();
        let [ToGateway::Ping(number)] = sent[..] else { panic!("{sent:?}") };
        self.wait(rtt);
        self.hear(ToClient::Pong(number)).unwrap();
        assert_eq!(self.events(), [Event::Rtt(rtt)]);
    }
}

impl GatewayUnderTest {
    pub(crate) fn ready() -> Self {
        Self::with(Config::default())
    }

    /// One whose streams draw on `memory`.
    pub(crate) fn of_memory(memory: &Memory) -> Self {
        let now = Instant::now();
        Self::greeted(Mux::new(Config::default(), now).with_memory(memory), now)
    }

    pub(crate) fn with(config: Config) -> Self {
        let now = Instant::now();
        Self::greeted(Mux::new(config, now), now)
    }

    fn greeted(mux: Mux<Gateway>, now: Instant) -> Self {
        let mut gateway = Self { mux, now };
        gateway.hear(client_hello()).unwrap();
        gateway.mux.hello(GatewayHello::new(1)).unwrap();
        gateway.transmit();
        gateway.events();
        gateway
    }

    pub(crate) fn stream(&mut self, id: StreamId, frame: StreamFrame) {
        self.hear(ToGateway::Stream(id, frame)).unwrap();
    }

    pub(crate) fn open(&mut self) -> StreamId {
        self.mux.open(open()).unwrap()
    }

    pub(crate) fn open_sent(&mut self) -> StreamId {
        let id = self.open();
        assert!(matches!(self.transmit()[..], [ToClient::Open(..)]));
        id
    }

    pub(crate) fn open_answered(&mut self) -> StreamId {
        let id = self.open_sent();
        self.hear(ToGateway::OpenOk(id, OpenOk::default())).unwrap();
        assert!(matches!(self.events()[..], [Event::Answered { answer: Ok(_), .. }]));
        id
    }
}

pub(crate) fn client_hello() -> ToGateway {
    ToGateway::Hello(Box::new(ClientHello::new("c", 1)))
}

pub(crate) fn open() -> Open {
    Open::tcp(HostRef::Name("t".into()), 80)
}

pub(crate) fn id(number: u32) -> StreamId {
    StreamId::new(number).unwrap()
}

pub(crate) fn bytes(len: usize) -> Bytes {
    vec![7; len].into()
}

/// Bytes of data in what was sent.
pub(crate) fn data_len(frames: &[ToGateway]) -> usize {
    let len = |frame: &ToGateway| match frame {
        ToGateway::Stream(_, StreamFrame::Data(data)) => data.len(),
        _ => 0,
    };
    frames.iter().map(len).sum()
}
