//! Cases U1 to U10: associations, on real sockets.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod stage;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyproxy_core::{BoxStream, Datagrams, Dial, DialService, Guarded, Network, Outcome, Target};
use anyproxy_front::Listener;
use anyproxy_socks5::{Socks5, UdpConfig, UdpDrops};
use bytes::BytesMut;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader, duplex};
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use stage::*;

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test]
async fn u1_an_association_ends_with_its_connection_and_leaves_nothing() {
    let stage = Stage::new(UdpConfig::default()).await;
    let (mut user, control) = stage.user().await;
    assert_eq!(user.echo("192.0.2.1:53", b"ping").await, b"ping");
    assert_eq!(stage.net.living(), 1);
    drop(control);
    stage.net.none_living().await;
    // The port is closed: the kernel says so to whoever sends there.
    user.send("192.0.2.1:53", b"ping").await;
    let error = user.socket.recv(&mut [0; 8]).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
}

#[tokio::test]
async fn a11_who_may_have_no_association_is_told_so() {
    for (outcome, code) in [(Outcome::Denied, 2), (Outcome::NoClient, 3), (Outcome::TimedOut, 6)] {
        let stage = Stage::new(UdpConfig::default()).await;
        *stage.net.refused.lock().unwrap() = Some(outcome);
        let (mut control, reply) = stage.reply("0.0.0.0:0".parse().unwrap()).await;
        assert_eq!(reply, [5, code, 0, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(control.read(&mut [0; 8]).await.unwrap(), 0);
    }
}

#[tokio::test]
async fn an_association_is_a_dial_before_it_is_granted_and_ends_with_it() {
    let stage = Stage::new(UdpConfig::default()).await;
    let (mut user, control) = stage.user().await;
    assert_eq!(stage.net.standing(), 1);
    assert_eq!(user.echo("192.0.2.1:53", b"ping").await, b"ping");
    let asked = stage.net.associations.lock().unwrap().clone();
    assert_eq!(
        asked.iter().map(|dial| dial.network).collect::<Vec<_>>(),
        [stage.net.dials.lock().unwrap()[0].network]
    );
    drop(control);
    while stage.net.standing() > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn an_association_outlives_the_client_that_it_began_at() {
    let stage = Stage::new(UdpConfig::default()).await;
    let (mut user, _control) = stage.user().await;
    stage.net.kept.lock().unwrap().clear();
    while stage.net.standing() > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(user.echo("192.0.2.1:53", b"ping").await, b"ping");
}

#[tokio::test]
async fn u2_only_the_user_s_address_may_send_and_the_first_datagram_pins_the_port() {
    let stage = Stage::new(UdpConfig::default()).await;
    let (mut user, _control) = stage.user().await;
    let foreign = UdpSocket::bind("127.0.0.2:0").await.unwrap();
    foreign.send_to(&packet("192.0.2.9:53", b"stranger"), user.relay).await.unwrap();
    assert_eq!(user.echo("192.0.2.1:53", b"ping").await, b"ping");
    let neighbour = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    neighbour.send_to(&packet("192.0.2.9:53", b"neighbour"), user.relay).await.unwrap();
    assert_eq!(user.echo("192.0.2.1:53", b"pong").await, b"pong");
    assert_eq!(stage.count("stranger"), 2);
    assert_eq!(stage.net.targets(), ["192.0.2.1:53"]);
    assert!(foreign.try_recv(&mut [0; 8]).is_err() && neighbour.try_recv(&mut [0; 8]).is_err());
}

#[tokio::test]
async fn u2_a_request_that_names_a_port_pins_it_at_once() {
    let stage = Stage::new(UdpConfig::default()).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let from = socket.local_addr().unwrap();
    let (mut control, relay) = stage.associate(from).await;
    let neighbour = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    neighbour.send_to(&packet("192.0.2.9:53", b"first"), relay).await.unwrap();
    socket.connect(relay).await.unwrap();
    let mut user = User { socket, relay };
    assert_eq!(user.echo("192.0.2.1:53", b"ping").await, b"ping");
    assert_eq!(stage.count("stranger"), 1);
    control.write_all(b"what is said here is not heard").await.unwrap();
    assert_eq!(user.echo("192.0.2.1:53", b"pong").await, b"pong");
}

#[tokio::test]
async fn a_port_named_with_an_address_behind_a_translator_means_nothing() {
    let stage = Stage::new(UdpConfig::default()).await;
    // Some leave the address out for that reason, and name the port nevertheless.
    for named in ["10.9.8.7:9", "0.0.0.0:9"] {
        let (_control, relay) = stage.associate(named.parse().unwrap()).await;
        let mut user = User::of(relay).await;
        assert_eq!(user.echo("192.0.2.1:53", b"ping").await, b"ping", "{named}");
    }
}

#[tokio::test]
async fn u4_u5_malformed_datagrams_and_fragments_cost_only_themselves() {
    let stage = Stage::new(UdpConfig::default()).await;
    let (mut user, _control) = stage.user().await;
    for fragment in [0x01, 0x80, 0xff] {
        user.raw(&[0, 0, fragment, 1, 192, 0, 2, 1, 0, 53, b'x']).await;
    }
    for bad in [
        &b""[..],
        b"\0",
        b"\0\0\0",
        b"\x01\0\0\x01\xc0\0\x02\x01\0\x35x",
        b"\0\0\0\x07\xc0\0\x02\x01\0\x35x",
        b"\0\0\0\x03\x50name",
    ] {
        user.raw(bad).await;
    }
    assert_eq!(user.echo("192.0.2.1:53", b"").await, b"", "an empty payload is delivered");
    assert_eq!((stage.count("fragment"), stage.count("malformed")), (3, 6));
    assert_eq!(stage.net.targets(), ["192.0.2.1:53"]);
}

#[tokio::test]
async fn u6_payloads_arrive_whole() {
    let stage = Stage::new(UdpConfig::default()).await;
    let (mut user, _control) = stage.user().await;
    for size in [1, 1472, 9000, 65_497] {
        let payload: Vec<u8> = (0..size).map(|at| at as u8).collect();
        assert!(user.echo("192.0.2.1:53", &payload).await == payload, "{size}");
    }
    // With a longer header this does not fit on the way back any more, and is dropped whole.
    user.send("printer.lan:53", &[7; 65_489]).await;
    assert_eq!(user.echo("192.0.2.1:53", b"next").await, b"next");
}

#[tokio::test]
async fn answers_say_which_destination_they_come_from() {
    let stage = Stage::new(UdpConfig::default()).await;
    let (user, _control) = stage.user().await;
    for target in ["printer.lan:53", "192.0.2.1:53", "[2001:db8::1]:53"] {
        user.send(target, b"hi").await;
        assert_eq!(user.next().await, packet(target, b"hi"));
    }
    let dials = stage.net.dials.lock().unwrap().clone();
    let association = dials[0].network;
    assert!(association.is_udp() && dials.iter().all(|dial| dial.network == association), "one association");
}

#[tokio::test]
async fn an_association_works_over_ipv6() {
    let stage = Stage::on("[::1]:0", UdpConfig::default()).await;
    let (mut user, _control) = stage.user().await;
    assert!(user.relay.is_ipv6());
    assert_eq!(user.echo("[2001:db8::1]:53", b"ping").await, b"ping");
}

#[tokio::test]
async fn u7_forged_sources_are_counted_and_leave_nothing() {
    const FORGED: usize = 10_000;
    let stage = Stage::new(UdpConfig::default()).await;
    let (mut user, _control) = stage.user().await;
    assert_eq!(user.echo("192.0.2.1:53", b"ping").await, b"ping");
    for number in 0..FORGED as u32 {
        let forged = std::net::Ipv4Addr::from_bits(0x7f01_0000 + number);
        let socket = UdpSocket::bind((forged, 0)).await.unwrap();
        socket.send_to(&packet(&format!("192.0.2.9:{}", 1 + number), b"forged"), user.relay).await.unwrap();
        if number % 100 == 99 {
            while stage.count("stranger") < u64::from(number + 1) {
                tokio::task::yield_now().await;
            }
        }
    }
    assert_eq!(user.echo("192.0.2.1:53", b"pong").await, b"pong");
    assert_eq!(stage.net.targets(), ["192.0.2.1:53"]);
}

#[tokio::test]
async fn u8_a_hundred_answers_to_one_datagram_go_to_whom_they_belong_and_to_nobody_else() {
    let stage = Stage::new(UdpConfig::default()).await;
    let (mut user, _control) = stage.user().await;
    let neighbour = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let foreign = UdpSocket::bind("127.0.0.2:0").await.unwrap();
    assert_eq!(user.echo("192.0.2.1:53", b"ask").await, b"ask");
    for stranger in [&neighbour, &foreign] {
        stranger.send_to(&packet("192.0.2.1:53", b"me too"), user.relay).await.unwrap();
    }
    for _ in 0..100 {
        stage.net.talk(&[7; 1_000]).await;
        assert_eq!(user.next().await, packet("192.0.2.1:53", &[7; 1_000]));
    }
    assert_eq!(stage.count("stranger"), 2);
    assert!(neighbour.try_recv(&mut [0; 8]).is_err() && foreign.try_recv(&mut [0; 8]).is_err());
}

#[tokio::test]
async fn u7_destinations_are_capped_and_the_oldest_goes() {
    let cap = UdpConfig::default().max_destinations.get();
    assert_eq!(cap, 1_024);
    let stage = Stage::new(UdpConfig::default()).await;
    let (mut user, _control) = stage.user().await;
    for port in 10_000..20_000 {
        assert_eq!(user.echo(&format!("192.0.2.1:{port}"), b"ping").await, b"ping");
        assert_eq!(user.echo("192.0.2.1:53", b"often used").await, b"often used");
        assert!(stage.net.living() <= cap);
    }
    assert_eq!(stage.net.living(), cap);
    assert_eq!(stage.net.targets().iter().filter(|target| *target == "192.0.2.1:53").count(), 1);
}

#[tokio::test]
async fn u9_the_user_s_silence_ends_an_association_and_a_target_s_talk_does_not_renew_it() {
    let _frozen = Frozen::clock();
    let stage = Stage::new(UdpConfig::default()).await;
    let (mut user, mut control) = stage.user().await;
    for _ in 0..3 {
        assert_eq!(user.echo("192.0.2.1:53", b"ping").await, b"ping");
        tokio::time::advance(119 * SECOND).await;
    }
    assert_eq!(user.echo("192.0.2.1:53", b"ping").await, b"ping");
    tokio::time::advance(119 * SECOND).await;
    stage.net.talk(b"from the target").await;
    assert_eq!(user.next().await, packet("192.0.2.1:53", b"from the target"));
    tokio::time::advance(2 * SECOND).await;
    assert_eq!(rest(&mut control).await, b"");
    stage.net.none_living().await;
}

#[tokio::test]
async fn a_destination_that_is_not_used_is_forgotten_while_the_association_lives() {
    let _frozen = Frozen::clock();
    let stage = Stage::new(UdpConfig::default()).await;
    let (mut user, _control) = stage.user().await;
    assert_eq!(user.echo("192.0.2.1:53", b"ping").await, b"ping");
    for _ in 0..2 {
        tokio::time::advance(60 * SECOND).await;
        assert_eq!(user.echo("192.0.2.2:53", b"ping").await, b"ping");
    }
    assert_eq!(stage.net.living(), 1);
}

#[tokio::test]
async fn u10_a_stalled_way_costs_a_bounded_number_of_datagrams_and_nobody_else() {
    let stage = Stage::new(UdpConfig::default()).await;
    let (mut user, _control) = stage.user().await;
    for round in 0..100 {
        for _ in 0..100 {
            user.send("stalled.lan:53", &[7; 500]).await;
        }
        assert_eq!(user.echo("192.0.2.1:53", &[round]).await, [round]);
    }
    // A pipe of 64 KiB took some, the rest of one is kept, and everything else was dropped.
    assert!(stage.count("full") > 5_000, "{}", stage.count("full"));
}

#[tokio::test]
async fn datagrams_wait_for_their_dial_a_few_of_them_and_in_order() {
    let (dials, mut asked) = by_hand();
    let stage = Stage::with("127.0.0.1:0", UdpConfig::default(), dials).await;
    let granted = async { asked.recv().await.unwrap().connect() };
    let ((user, _control), _association) = tokio::join!(stage.user(), granted);
    for number in 0..20 {
        user.send("192.0.2.1:53", &[number]).await;
    }
    let asked = asked.recv().await.unwrap();
    while stage.count("full") < 4 {
        tokio::task::yield_now().await;
    }
    let mut target = Datagrams::new(BufReader::new(asked.connect()));
    for number in 0..16 {
        let mut buf = BytesMut::new();
        assert!(target.recv(&mut buf).await.unwrap());
        assert_eq!(buf[..], [number]);
    }
}

#[tokio::test]
async fn a_refused_destination_costs_its_datagram_and_is_not_asked_for_again_at_once() {
    let _frozen = Frozen::clock();
    let stage = Stage::new(UdpConfig::default()).await;
    let (mut user, _control) = stage.user().await;
    for _ in 0..5 {
        user.send("denied.lan:53", b"ping").await;
        assert_eq!(user.echo("192.0.2.1:53", b"ping").await, b"ping");
    }
    assert_eq!(stage.count("refused"), 5);
    assert_eq!(stage.net.targets(), ["denied.lan:53", "192.0.2.1:53"]);
    tokio::time::advance(2 * SECOND).await;
    user.send("denied.lan:53", b"ping").await;
    assert_eq!(user.echo("192.0.2.1:53", b"ping").await, b"ping");
    assert_eq!(stage.net.targets().len(), 3);
}

#[tokio::test]
async fn a_destination_whose_stream_ended_is_dialled_anew() {
    let stage = Stage::new(UdpConfig::default()).await;
    let (mut user, _control) = stage.user().await;
    for _ in 0..3 {
        assert_eq!(user.echo("once.lan:53", b"ping").await, b"ping");
        stage.net.none_living().await;
    }
    assert_eq!(stage.net.targets().len(), 3);
}

#[tokio::test]
async fn a_front_without_udp_says_so_and_too_many_associations_are_refused() {
    let stage = Stage::new(UdpConfig { enabled: false, ..UdpConfig::default() }).await;
    assert_eq!(stage.reply("0.0.0.0:0".parse().unwrap()).await.1[..4], [5, 7, 0, 1]);

    let stage = Stage::new(UdpConfig { max_associations_per_user: 1, ..UdpConfig::default() }).await;
    let (mut user, control) = stage.user().await;
    assert_eq!(stage.reply("0.0.0.0:0".parse().unwrap()).await.1[..4], [5, 1, 0, 1]);
    assert_eq!(user.echo("192.0.2.1:53", b"ping").await, b"ping");
    drop(control);
    stage.net.none_living().await;
    while stage.reply("0.0.0.0:0".parse().unwrap()).await.1[1] != 0 {}
}

#[tokio::test]
async fn the_advertised_address_stands_in_the_reply() {
    let advertise_addr = "203.0.113.5".parse().ok();
    let stage = Stage::new(UdpConfig { advertise_addr, ..UdpConfig::default() }).await;
    let (_control, relay) = stage.associate("0.0.0.0:0".parse().unwrap()).await;
    assert_eq!(Some(relay.ip()), advertise_addr);
    assert_ne!(relay.port(), 0);
}

#[tokio::test]
async fn a_user_of_the_other_family_is_told_the_address_they_connected_to() {
    let advertise_addr = "203.0.113.5".parse().ok();
    let stage = Stage::on("[::1]:0", UdpConfig { advertise_addr, ..UdpConfig::default() }).await;
    let (mut user, _control) = stage.user().await;
    assert!(user.relay.ip().is_loopback());
    assert_eq!(user.echo("192.0.2.1:53", b"ping").await, b"ping");
}

#[tokio::test]
async fn u7_the_destinations_of_one_user_are_capped_over_all_associations_and_each_has_some() {
    let stage = Stage::new(UdpConfig::default()).await;
    let mut users = Vec::new();
    for _ in 0..4 {
        users.push(stage.user().await);
    }
    // Of 3,072 that are shared three associations take 1,008 each, beside 16 of their own; the fourth gets the rest.
    for (user, _) in &mut users[..3] {
        for port in 1..=1_024 {
            assert_eq!(user.echo(&format!("192.0.2.1:{port}"), b"ping").await, b"ping");
        }
    }
    assert_eq!(stage.net.living(), 3 * 1_024);
    let (user, _) = &mut users[3];
    for port in 1..=200 {
        assert_eq!(user.echo(&format!("192.0.2.1:{port}"), b"ping").await, b"ping");
    }
    assert_eq!(stage.net.living(), 3_072 + 4 * 16);
    // The oldest of its own went, and the latest is still there.
    let dialled = stage.net.targets().len();
    assert_eq!(user.echo("192.0.2.1:200", b"pong").await, b"pong");
    assert_eq!(stage.net.targets().len(), dialled);
    // What one association leaves is there for the others.
    drop(users.remove(0));
    while stage.net.living() > 3_072 + 4 * 16 - 1_024 {
        tokio::task::yield_now().await;
    }
    let (user, _) = &mut users[2];
    for port in 1_001..=1_200 {
        assert_eq!(user.echo(&format!("192.0.2.1:{port}"), b"ping").await, b"ping");
    }
    assert_eq!(stage.net.living(), 2 * 1_024 + 64 + 200);
}

#[tokio::test]
async fn u7_the_dials_under_way_of_one_user_are_capped_over_all_associations() {
    let (dials, mut asked) = by_hand();
    let stage = Stage::with("127.0.0.1:0", UdpConfig::default(), dials).await;
    let (mut users, mut standing) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        let granted = async { asked.recv().await.unwrap().connect() };
        let (user, association) = tokio::join!(stage.user(), granted);
        users.push(user);
        standing.push(association);
    }
    let mut under_way = Vec::new();
    for (user, _) in &users[..4] {
        for port in 1..=64 {
            user.send(&format!("192.0.2.1:{port}"), b"ping").await;
            under_way.push(asked.recv().await.unwrap());
        }
    }
    users[4].0.send("192.0.2.1:53", b"ping").await;
    while stage.count("full") == 0 {
        assert!(asked.try_recv().is_err(), "one more is asked for");
        tokio::task::yield_now().await;
    }
    // One that is answered is under way no more.
    let _target = under_way.pop().unwrap().connect();
    while asked.try_recv().is_err() {
        users[4].0.send("192.0.2.1:53", b"ping").await;
        tokio::task::yield_now().await;
    }
}

// === The stage ===

/// A front, and the net behind it.
struct Stage {
    front: SocketAddr,
    net: Net,
    drops: Arc<UdpDrops>,
    _server: Abort,
}

impl Stage {
    async fn new(config: UdpConfig) -> Self {
        Self::on("127.0.0.1:0", config).await
    }

    async fn on(address: &str, config: UdpConfig) -> Self {
        let net = Net::default();
        let dials = net.dials();
        Self { net, ..Self::with(address, config, dials).await }
    }

    #[expect(clippy::unused_async, reason = "must be called in a runtime")]
    async fn with(address: &str, config: UdpConfig, dials: impl DialService) -> Self {
        let listener = Listener::bind(&[address.parse().unwrap()]).unwrap();
        let front = listener.local_addr().unwrap();
        let socks5 = Socks5::new(open(dials)).with_udp(config);
        let drops = socks5.udp_drops();
        let server = Abort(tokio::spawn(socks5.serve(listener, CancellationToken::new())));
        Self { front, net: Net::default(), drops, _server: server }
    }

    fn count(&self, reason: &str) -> u64 {
        self.drops.counts().find(|(name, _)| *name == reason).unwrap().1
    }

    /// The control connection and the reply to an association from `from`.
    async fn reply(&self, from: SocketAddr) -> (TcpStream, Vec<u8>) {
        let mut control = TcpStream::connect(self.front).await.unwrap();
        let SocketAddr::V4(from) = from else { unreachable!("users name IPv4 addresses here") };
        let request = [OPEN, b"\x05\x03\x00\x01", &from.ip().octets(), &from.port().to_be_bytes()].concat();
        control.write_all(&request).await.unwrap();
        expect(&mut control, b"\x05\x00").await;
        let mut reply = vec![0; 4];
        control.read_exact(&mut reply).await.unwrap();
        reply.resize(if reply[3] == 1 { 10 } else { 22 }, 0);
        control.read_exact(&mut reply[4..]).await.unwrap();
        (control, reply)
    }

    async fn associate(&self, from: SocketAddr) -> (TcpStream, SocketAddr) {
        let (control, reply) = self.reply(from).await;
        assert_eq!(reply[1], 0);
        let (ip, port) = reply[4..].split_at(reply.len() - 6);
        let ip: std::net::IpAddr = match <[u8; 4]>::try_from(ip) {
            Ok(ip) => ip.into(),
            Err(_) => <[u8; 16]>::try_from(ip).unwrap().into(),
        };
        (control, SocketAddr::new(ip, u16::from_be_bytes([port[0], port[1]])))
    }

    async fn user(&self) -> (User, TcpStream) {
        let (control, relay) = self.associate("0.0.0.0:0".parse().unwrap()).await;
        (User::of(relay).await, control)
    }
}

/// A user with an association.
struct User {
    socket: UdpSocket,
    relay: SocketAddr,
}

impl User {
    async fn of(relay: SocketAddr) -> Self {
        let socket = UdpSocket::bind(SocketAddr::new(relay.ip(), 0)).await.unwrap();
        socket.connect(relay).await.unwrap();
        Self { socket, relay }
    }

    async fn raw(&self, datagram: &[u8]) {
        self.socket.send(datagram).await.unwrap();
    }

    async fn send(&self, target: &str, payload: &[u8]) {
        self.raw(&packet(target, payload)).await;
    }

    async fn next(&self) -> Vec<u8> {
        let mut buf = vec![0; 65_536];
        let length = self.socket.recv(&mut buf).await.unwrap();
        buf.truncate(length);
        buf
    }

    /// Sends, and waits for the same from the same target.
    async fn echo(&mut self, target: &str, payload: &[u8]) -> Vec<u8> {
        self.send(target, payload).await;
        let header = packet(target, b"");
        let answer = self.next().await;
        answer.strip_prefix(&header[..]).expect("from that target").to_vec()
    }
}

fn packet(target: &str, payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    anyproxy_socks5::proto::encode_header(&Target::parse(target).unwrap(), &mut packet);
    packet.extend_from_slice(payload);
    packet
}

/// Targets that echo; `denied.lan` is denied, `stalled.lan` never reads, `once.lan` ends after one datagram.
#[derive(Clone, Default)]
struct Net {
    dials: Arc<Mutex<Vec<Dial>>>,
    living: Arc<AtomicUsize>,
    associations: Arc<Mutex<Vec<Dial>>>,
    standing: Arc<AtomicUsize>,
    /// The client's ends of associations.
    kept: Arc<Mutex<Vec<tokio::io::DuplexStream>>>,
    /// What is said to who asks for an association.
    refused: Arc<Mutex<Option<Outcome>>>,
    talk: Arc<Mutex<Option<tokio::sync::mpsc::Sender<&'static [u8]>>>>,
}

impl Net {
    fn dials(&self) -> impl DialService + use<> {
        let net = self.clone();
        tower::service_fn(move |dial: Dial| {
            assert!(matches!(dial.network, Network::Udp(_)));
            let answer = if dial.target.is_unspecified() { net.associate() } else { net.answer(&dial) };
            let dials = if dial.target.is_unspecified() { &net.associations } else { &net.dials };
            dials.lock().unwrap().push(dial);
            async move { answer.map_err(std::io::Error::other) }
        })
    }

    /// An association stands until its stream is dropped, or `lose` is called.
    fn associate(&self) -> Result<BoxStream, Outcome> {
        if let Some(outcome) = *self.refused.lock().unwrap() {
            return Err(outcome);
        }
        let (near, far) = duplex(1);
        self.kept.lock().unwrap().push(far);
        self.standing.fetch_add(1, Ordering::Relaxed);
        Ok(BoxStream::new(Guarded::new(BufReader::new(near), Living(self.standing.clone()))))
    }

    fn standing(&self) -> usize {
        self.standing.load(Ordering::Relaxed)
    }

    fn answer(&self, dial: &Dial) -> Result<BoxStream, Outcome> {
        let host = dial.target.host().to_string();
        if host == "denied.lan" {
            return Err(Outcome::Denied);
        }
        let (near, far) = duplex(if host == "stalled.lan" { 64 * 1024 } else { 1 << 20 });
        let (talk, mut talks) = tokio::sync::mpsc::channel(1);
        *self.talk.lock().unwrap() = Some(talk);
        // Ends when the relay drops its end of the pipe.
        tokio::spawn(async move {
            if host == "stalled.lan" {
                return talks.recv().await.map_or((), |_| drop(far));
            }
            let mut far = Datagrams::new(BufReader::new(far));
            let mut buf = BytesMut::new();
            loop {
                buf.clear();
                tokio::select! {
                    received = far.recv(&mut buf) => match received {
                        Ok(true) => {}
                        _ => return,
                    },
                    Some(said) = talks.recv() => buf.extend_from_slice(said),
                }
                let sent = std::future::poll_fn(|cx| std::task::Poll::Ready(far.send_now(cx, &buf))).await;
                if host == "once.lan" || sent.is_err() {
                    return;
                }
            }
        });
        self.living.fetch_add(1, Ordering::Relaxed);
        Ok(BoxStream::new(Guarded::new(BufReader::new(near), Living(self.living.clone()))))
    }

    fn targets(&self) -> Vec<String> {
        self.dials.lock().unwrap().iter().map(|dial| dial.target.to_string()).collect()
    }

    /// The latest destination says something by itself.
    async fn talk(&self, payload: &'static [u8]) {
        let talk = self.talk.lock().unwrap().clone().unwrap();
        talk.send(payload).await.unwrap();
    }

    fn living(&self) -> usize {
        self.living.load(Ordering::Relaxed)
    }

    async fn none_living(&self) {
        while self.living() > 0 {
            tokio::task::yield_now().await;
        }
    }
}

struct Living(Arc<AtomicUsize>);

impl Drop for Living {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

struct Abort(JoinHandle<()>);

impl Drop for Abort {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A clock that only tests move: paused, and kept from moving by itself while sockets are waited for, which a
/// blocking task does.
struct Frozen {
    _release: std::sync::mpsc::Sender<()>,
}

impl Frozen {
    fn clock() -> Self {
        let (release, held) = std::sync::mpsc::channel::<()>();
        tokio::task::spawn_blocking(move || {
            let _ = held.recv();
        });
        tokio::time::pause();
        Self { _release: release }
    }
}
