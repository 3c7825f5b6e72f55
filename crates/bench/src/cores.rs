//! The cores, each as one piece of work that can be repeated: no IO, no clock that anybody waits for.

use std::fmt;
use std::hint::black_box;
use std::net::Ipv4Addr;
use std::time::Instant;

use anyproxy_acl::{Action, Pattern, Policy, Question, Rule, Rules};
use anyproxy_core::{Account, DialService, Identity, Network, Target};
use anyproxy_frame::{
    ClientHello, Frame, Frames, GatewayHello, HostRef, Open, OpenOk, StreamFrame, StreamId, ToClient,
};
use anyproxy_mux::{Client, Config, Event, Gateway, Mux};
use anyproxy_socks5::proto::{self, Handshake, Method};
use bytes::{Bytes, BytesMut};

use crate::stack;

/// Rules of the policy that is asked.
const RULES: u32 = 10_000;
/// Targets it is asked about, in turn: more than a cache line or two holds.
const TARGETS: usize = 4_096;

/// One piece of work, ready to be repeated.
pub struct Core {
    name: &'static str,
    work: Box<dyn FnMut(u64)>,
}

impl Core {
    /// What it is called in `budget.toml`.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// Does the work so many times.
    pub fn repeat(&mut self, times: u64) {
        (self.work)(times);
    }
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The name of a core, and how to make it ready.
type Recipe = (&'static str, fn() -> Box<dyn FnMut(u64)>);

const RECIPES: [Recipe; 13] = [
    ("frame_write_data", || Box::new(frame_write(data(64)))),
    ("frame_write_open", || Box::new(frame_write(open()))),
    ("frame_read_data", || Box::new(frame_read(data(64)))),
    ("frame_read_open", || Box::new(frame_read(open()))),
    ("mux_round_trip", || Box::new(mux_round_trip())),
    ("mux_open_and_close", || Box::new(mux_open_and_close())),
    ("mux_bulk_1", || Box::new(mux_bulk(1))),
    ("mux_bulk_16", || Box::new(mux_bulk(16))),
    ("acl_decide", || Box::new(acl_decide())),
    ("socks5_head", || Box::new(socks5_head())),
    ("dial_bare", || Box::new(dials(stack::Terminal))),
    ("dial_stock", || Box::new(dials(stack::stock()))),
    ("dial_limited", || Box::new(dials(stack::limited()))),
];

/// The names of all cores.
pub fn names() -> impl Iterator<Item = &'static str> {
    RECIPES.iter().map(|(name, _)| *name)
}

/// The core of that name, made ready.
#[must_use]
pub fn named(name: &str) -> Option<Core> {
    let (name, ready) = RECIPES.iter().find(|(known, _)| *known == name)?;
    Some(Core { name, work: ready() })
}

/// All of them, made ready one after the other.
pub fn all() -> impl Iterator<Item = Core> {
    RECIPES.iter().map(|(name, ready)| Core { name, work: ready() })
}

// === frame ===

fn data(length: usize) -> ToClient {
    ToClient::stream(StreamId::FIRST, StreamFrame::Data(Bytes::from(vec![7; length])))
}

fn open() -> ToClient {
    let mut open = Open::tcp(HostRef::Name("db.example.lan".into()), 5432);
    open.user = "alice".into();
    open.groups = vec!["blue".into()];
    open.front = "socks5".into();
    ToClient::Open(StreamId::FIRST, Box::new(open))
}

fn frame_write(frame: ToClient) -> impl FnMut(u64) {
    let mut head = BytesMut::with_capacity(1024);
    move |times| {
        for _ in 0..times {
            head.clear();
            black_box(black_box(&frame).clone().encode_head(&mut head));
        }
    }
}

fn frame_read(frame: ToClient) -> impl FnMut(u64) {
    let mut message = BytesMut::new();
    frame.encode(&mut message);
    let message = message.freeze();
    move |times| {
        for _ in 0..times {
            let mut frames =
                Frames::<ToClient>::new(black_box(message.clone())).expect("a message of frames");
            black_box(frames.next());
        }
    }
}

// === mux ===

/// Two multiplexers, joined: frames are handed over as they are, what is received is read at once.
struct Pair {
    now: Instant,
    gateway: Mux<Gateway>,
    client: Mux<Client>,
}

impl Pair {
    fn new() -> Self {
        let now = Instant::now();
        let (gateway, client) = (Mux::new(Config::default(), now), Mux::new(Config::default(), now));
        let mut pair = Self { now, gateway, client };
        pair.client.hello(ClientHello::new("bench", 1)).expect("fits");
        pair.exchange();
        pair.gateway.hello(GatewayHello::new(1)).expect("fits");
        pair.exchange();
        pair
    }

    fn exchange(&mut self) {
        loop {
            let mut moved = false;
            while let Some(frame) = self.gateway.poll_transmit(self.now) {
                self.client.handle_frame(self.now, frame).expect("an honest peer");
                moved = true;
            }
            while let Some(event) = self.client.poll_event() {
                match event {
                    Event::Opened { id, .. } => self.client.accept(id, OpenOk::default()),
                    Event::Data { id, data } => self.client.consumed(id, length(&data)),
                    _ => {}
                }
            }
            while let Some(frame) = self.client.poll_transmit(self.now) {
                self.gateway.handle_frame(self.now, frame).expect("an honest peer");
                moved = true;
            }
            while let Some(event) = self.gateway.poll_event() {
                if let Event::Data { id, data } = event {
                    self.gateway.consumed(id, length(&data));
                }
            }
            if !moved {
                return;
            }
        }
    }

    fn open(&mut self) -> StreamId {
        let open = Open::tcp(HostRef::Name("db.example.lan".into()), 5432);
        let id = self.gateway.open(open).expect("room");
        self.exchange();
        id
    }
}

fn length(data: &Bytes) -> u32 {
    u32::try_from(black_box(data).len()).expect("a frame's length")
}

fn mux_round_trip() -> impl FnMut(u64) {
    let mut pair = Pair::new();
    let id = pair.open();
    let message = Bytes::from_static(&[7; 64]);
    move |times| {
        for _ in 0..times {
            pair.gateway.send(id, message.clone());
            pair.exchange();
            pair.client.send(id, message.clone());
            pair.exchange();
        }
    }
}

fn mux_open_and_close() -> impl FnMut(u64) {
    let mut pair = Pair::new();
    move |times| {
        for _ in 0..times {
            let id = pair.open();
            pair.gateway.finish(id);
            pair.client.finish(id);
            pair.exchange();
        }
    }
}

/// 1 MiB towards the gateway on each of so many streams.
fn mux_bulk(streams: usize) -> impl FnMut(u64) {
    let mut pair = Pair::new();
    let ids: Vec<_> = (0..streams).map(|_| pair.open()).collect();
    let chunk = Bytes::from(vec![7; 1 << 20]);
    move |times| {
        for _ in 0..times {
            for &id in &ids {
                pair.client.send(id, chunk.clone());
            }
            pair.exchange();
        }
    }
}

// === acl ===

/// One decision of a policy of names, suffixes and ranges; every other target meets a rule or nearly does.
fn acl_decide() -> impl FnMut(u64) {
    let rules = (0..RULES).map(|number| {
        let host = match number % 4 {
            0 => format!("host-{number}.zone-{}.lan", number % 97),
            1 => format!("*.zone-{number}.example"),
            2 => format!("{}/24", Ipv4Addr::from(0x0a00_0000 | number << 8)),
            _ => format!("{}:443", Ipv4Addr::from(0x0b00_0000 | number)),
        };
        Rule::deny([Pattern::parse(&host).expect("a pattern")])
    });
    let policy = Policy::new([Rules::new("gateway.access", Action::Allow, rules)]);
    let mut random = fastrand::Rng::with_seed(1);
    let targets: Vec<Target> = (0..TARGETS)
        .map(|number| {
            let near = random.u32(..RULES);
            let host = match number % 4 {
                0 => format!("host-{near}.zone-{}.lan", near % 97),
                1 => format!("www.zone-{near}.example"),
                2 => Ipv4Addr::from(0x0a00_0000 | near << 8 | 9).to_string(),
                _ => format!("www-{near}.elsewhere.example"),
            };
            Target::parse(&format!("{host}:443")).expect("a target")
        })
        .collect();
    let identity = Identity::from(Account::new("alice", ["blue"]));
    let mut at = 0;
    move |times| {
        for _ in 0..times {
            at = (at + 1) % TARGETS;
            let (target, network) = (&targets[at], Network::Tcp);
            let question = Question { target, network, identity: &identity, front: "socks5" };
            black_box(policy.check(&question));
        }
    }
}

// === socks5 ===

/// A whole head: greeting, login and request, as three messages.
fn socks5_head() -> impl FnMut(u64) {
    let messages: [&[u8]; 3] =
        [b"\x05\x02\x00\x02", b"\x01\x05alice\x06secret", b"\x05\x01\x00\x03\x0edb.example.lan\x15\x38"];
    let mut src = BytesMut::with_capacity(1024);
    move |times| {
        for _ in 0..times {
            let mut handshake = Handshake::new();
            for message in messages {
                // Passwords are wiped where they stood, so every head is a copy.
                src.extend_from_slice(message);
                match handshake.poll(&mut src).expect("well-formed") {
                    Some(proto::Event::Greeting(_)) => {
                        black_box(handshake.choose(Some(Method::Password)));
                    }
                    Some(proto::Event::Login(credentials)) => {
                        black_box(&credentials);
                        black_box(handshake.judge(true));
                    }
                    event => {
                        black_box(event);
                    }
                }
            }
        }
    }
}

// === the stack ===

/// One dial through `dials` and its stream's end, on a runtime of one thread.
fn dials(dials: impl DialService) -> impl FnMut(u64) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let wish = stack::Wish::of_alice();
    move |times| {
        runtime.block_on(async {
            for _ in 0..times {
                let stream = dials.dial(black_box(wish.dial())).await;
                black_box(stream.is_ok());
            }
        });
    }
}
