//! A client's end of a tunnel, with the gateway's end in the test's hand.

use std::cell::RefCell;
use std::collections::{HashSet, VecDeque};
use std::future::{pending, poll_fn};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use anyproxy_acl::{Lists, Pattern, Policy};
use anyproxy_core::{Credentials, Datagrams, Target};
use anyproxy_tunnel::frame::{
    ClientHello, GatewayHello, GoAwayCode, HostRef, Open, OpenErrClass, OpenOk, START_WINDOW, Transport,
};
use anyproxy_tunnel::{DroppedDatagrams, Memory, OpenError, Stream, Tunnel, WebSocket, accept, connect};
use bytes::BytesMut;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::client::Shared;
use crate::config::OpenPort;
use crate::link::Link;
use crate::open;
use crate::resolve::Resolver;
use crate::serve::{self, Left};
use crate::udp::MAX_NAMES;
use crate::{ClientTls, Config};

// === Streams ===

#[tokio::test]
async fn a_stream_reaches_its_target_and_each_way_ends_by_itself() {
    let (target, listener) = target().await;
    let world = World::new(|_| {}).await;
    let (mut stream, ok) = world.open(tcp(target)).await.unwrap();
    assert_eq!(ok.address, Some(target));
    let (mut socket, _) = listener.accept().await.unwrap();

    stream.write_all(b"question").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut heard = String::new();
    socket.read_to_string(&mut heard).await.unwrap();
    assert_eq!(heard, "question");

    socket.write_all(b"answer").await.unwrap();
    drop(socket);
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "answer");
    world.is_left_clean().await;
}

#[tokio::test]
async fn s11_a_target_may_speak_first() {
    let (target, listener) = target().await;
    let world = World::new(|_| {}).await;
    let (mut stream, _) = world.open(tcp(target)).await.unwrap();
    let (mut socket, _) = listener.accept().await.unwrap();
    socket.write_all(b"SSH-2.0").await.unwrap();
    let mut banner = [0; 7];
    stream.read_exact(&mut banner).await.unwrap();
    assert_eq!(&banner, b"SSH-2.0");
}

#[tokio::test]
async fn megabytes_arrive_whole_both_ways_at_once() {
    const LENGTH: usize = 20_000_000;
    let (target, listener) = target().await;
    let world = World::new(|_| {}).await;
    let (stream, _) = world.open(tcp(target)).await.unwrap();
    let (socket, _) = listener.accept().await.unwrap();
    let sent: Arc<[u8]> = (0..LENGTH).map(|place| ((place * 31) >> 3) as u8).collect();
    let both = |(mut read, mut write): (
        Box<dyn tokio::io::AsyncRead + Send + Unpin>,
        Box<dyn tokio::io::AsyncWrite + Send + Unpin>,
    )| {
        let sent = sent.clone();
        async move {
            let mut received = Vec::new();
            let writing = async {
                write.write_all(&sent).await.unwrap();
                write.shutdown().await.unwrap();
            };
            let (read, ()) = tokio::join!(read.read_to_end(&mut received), writing);
            read.unwrap();
            assert!(received[..] == sent[..]);
        }
    };
    let (read, write) = tokio::io::split(stream);
    let near = both((Box::new(read), Box::new(write)));
    let (read, write) = socket.into_split();
    let far = both((Box::new(read), Box::new(write)));
    tokio::join!(near, far);
}

#[tokio::test]
async fn f4_a_reset_of_the_target_is_no_end_and_what_it_said_before_arrives() {
    let (target, listener) = target().await;
    let world = World::new(|_| {}).await;
    let (mut stream, _) = world.open(tcp(target)).await.unwrap();
    let (mut socket, _) = listener.accept().await.unwrap();
    socket.write_all(b"413").await.unwrap();
    let mut said = [0; 3];
    stream.read_exact(&mut said).await.unwrap();
    socket.set_zero_linger().unwrap();
    drop(socket);
    let error = stream.read_to_end(&mut Vec::new()).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    drop(stream);
    world.is_left_clean().await;
}

#[tokio::test]
async fn i5_an_early_answer_to_an_upload_is_delivered_before_the_reset() {
    let (target, listener) = target().await;
    let world = World::new(|_| {}).await;
    let (stream, _) = world.open(tcp(target)).await.unwrap();
    let (mut socket, _) = listener.accept().await.unwrap();
    let (mut read, mut write) = tokio::io::split(stream);
    let uploading = tokio::spawn(async move { while write.write_all(&[0; 4096]).await.is_ok() {} });
    socket.read_exact(&mut [0; 4096]).await.unwrap();
    socket.write_all(b"413 too large").await.unwrap();
    // Unread bytes make the kernel end this with a reset.
    drop(socket);
    let mut answer = Vec::new();
    let error = read.read_to_end(&mut answer).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(answer, b"413 too large");
    uploading.await.unwrap();
}

#[tokio::test]
async fn a_reset_of_the_user_is_a_reset_for_the_target() {
    let (target, listener) = target().await;
    let world = World::new(|_| {}).await;
    let (stream, _) = world.open(tcp(target)).await.unwrap();
    let (mut socket, _) = listener.accept().await.unwrap();
    drop(stream);
    let error = socket.read(&mut [0; 1]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    world.is_left_clean().await;
}

#[tokio::test]
async fn a_reset_is_seen_though_the_target_reads_nothing() {
    let (target, listener) = target().await;
    let world = World::new(|_| {}).await;
    let (mut stream, _) = world.open(tcp(target)).await.unwrap();
    let (mut socket, _) = listener.accept().await.unwrap();
    let full = async { while stream.write_all(&[0; 64 * 1024]).await.is_ok() {} };
    assert!(timeout(Duration::from_millis(300), full).await.is_err(), "the way to the target never fills");
    drop(stream);
    world.is_left_clean().await;
    let error = socket.read_to_end(&mut Vec::new()).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn w11_a_lost_tunnel_resets_its_targets() {
    let (target, listener) = target().await;
    let world = World::new(|_| {}).await;
    let (_stream, _) = world.open(tcp(target)).await.unwrap();
    let (mut socket, _) = listener.accept().await.unwrap();
    world.cut.cancel();
    let error = socket.read(&mut [0; 1]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    assert!(matches!(world.left.await.unwrap(), Left::Ended(_)));
    world.shared.tasks.close();
    world.shared.tasks.wait().await;
}

#[tokio::test]
async fn f4_a_stream_on_which_nothing_moves_is_reset() {
    let (target, listener) = target().await;
    let world = World::new(|config| config.idle_timeout = Some(Duration::from_millis(50))).await;
    let (mut stream, _) = world.open(tcp(target)).await.unwrap();
    let (mut socket, _) = listener.accept().await.unwrap();
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(socket.read(&mut [0; 1]).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn s12_a_half_closed_stream_waits_only_so_long() {
    let (target, listener) = target().await;
    let world = World::new(|config| config.half_closed_timeout = Some(Duration::from_millis(50))).await;
    let (mut stream, _) = world.open(tcp(target)).await.unwrap();
    let (mut socket, _) = listener.accept().await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(socket.read(&mut [0; 1]).await.unwrap(), 0);
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_target_that_has_ended_and_resets_does_not_keep_a_silent_user() {
    let (target, listener) = target().await;
    let world = World::new(|config| (config.idle_timeout, config.half_closed_timeout) = (None, None)).await;
    let (mut stream, _) = world.open(tcp(target)).await.unwrap();
    let (mut socket, _) = listener.accept().await.unwrap();
    socket.shutdown().await.unwrap();
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
    // From here on nothing is waited for but the clock. There have been looks that found nothing.
    tokio::time::pause();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(timeout(Duration::ZERO, poll_fn(|cx| stream.poll_reset(cx))).await.is_err());
    socket.set_zero_linger().unwrap();
    drop(socket);
    timeout(Duration::from_secs(20), poll_fn(|cx| stream.poll_reset(cx))).await.expect("somebody looks");
    drop(stream);
    world.is_left_clean().await;
}

// === Opens ===

#[tokio::test]
async fn s8_a_closed_port_is_refused() {
    let (target, listener) = target().await;
    drop(listener);
    let world = World::new(|_| {}).await;
    assert_eq!(world.refused(tcp(target)).await, OpenErrClass::Refused);
    world.is_left_clean().await;
}

#[tokio::test]
async fn s8_a_name_without_addresses_does_not_resolve() {
    let world = World::new(|_| {}).await;
    assert_eq!(world.refused(name("nowhere.test", 80)).await, OpenErrClass::Unresolved);
    assert_eq!(world.refused(name("broken.test", 80)).await, OpenErrClass::Unresolved);
    assert_eq!(world.refused(name("full.test", 80)).await, OpenErrClass::Overloaded, "another may have room");
}

#[tokio::test]
async fn f6_descriptors_of_the_reserve_are_for_nobody_s_targets() {
    let (target, listener) = target().await;
    // This process has some open.
    let world = World::new(|config| config.max_descriptors = 3).await;
    let udp = Open::udp(9, HostRef::Ip(target.ip()), target.port());
    let association = Open::udp(9, HostRef::Ip(Ipv4Addr::UNSPECIFIED.into()), 0);
    for open in
        [tcp(target), name("localhost.test", target.port()), name("stalled.test", 80), udp, association]
    {
        let shown = format!("{open:?}");
        assert_eq!(world.refused(open).await, OpenErrClass::Overloaded, "{shown}");
    }
    is_not_dialled(&listener).await;
    world.is_left_clean().await;
}

#[tokio::test]
async fn f7_a_lookup_that_stalls_times_out() {
    let world = World::new(|config| config.connect_timeout = Duration::from_millis(50)).await;
    assert_eq!(world.refused(name("stalled.test", 80)).await, OpenErrClass::TimedOut);
    world.is_left_clean().await;
}

#[tokio::test]
async fn f7_the_stalled_lookups_of_a_user_are_in_nobody_else_s_way() {
    let (target, _listener) = target().await;
    let world = World::new(|_| {}).await;
    let open = |user: &str, name: &str| Open { user: user.into(), ..self::name(name, target.port()) };
    let mut stalled = JoinSet::new();
    for number in 0..200 {
        stalled.spawn(world.tunnel.open(open("mallory", &format!("a.{number}.stalled.test"))));
    }
    while world.shared.tasks.len() < World::IDLE_TASKS + stalled.len() {
        tokio::task::yield_now().await;
    }
    world.open(open("alice", "localhost.test")).await.unwrap();
    drop(stalled);
    world.is_left_clean().await;
}

#[tokio::test]
async fn the_gateway_s_deadline_holds_if_it_is_shorter() {
    let world = World::new(|_| {}).await;
    let open = Open { deadline_ms: 50, ..name("stalled.test", 80) };
    assert_eq!(world.refused(open).await, OpenErrClass::TimedOut);
}

#[tokio::test]
async fn s10_an_open_taken_back_ends_its_dial() {
    let world = World::new(|_| {}).await;
    let opening = tokio::spawn(world.tunnel.open(name("stalled.test", 80)));
    while world.shared.tasks.len() <= World::IDLE_TASKS {
        tokio::task::yield_now().await;
    }
    opening.abort();
    world.is_left_clean().await;
}

#[tokio::test]
async fn opens_refused_for_want_of_room_are_told_together() {
    keep_log();
    let mut tunnel = anyproxy_tunnel::Config::default();
    tunnel.mux.max_unanswered = 1;
    let world = World::on(tunnel, |_| {}).await;
    let _waiting = tokio::spawn(world.tunnel.open(name("stalled.test", 80)));
    while world.shared.tasks.len() <= World::IDLE_TASKS {
        tokio::task::yield_now().await;
    }
    for _ in 0..3 {
        assert_eq!(world.refused(name("stalled.test", 80)).await, OpenErrClass::Overloaded);
    }
    assert!(!logged().contains("opens are refused"), "{}", logged());
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(11)).await;
    while !logged().contains("opens are refused") {
        tokio::task::yield_now().await;
    }
    assert!(logged().contains("opens=3"), "{}", logged());
}

// === Rules ===

#[tokio::test]
async fn a9_an_allowed_name_with_only_denied_addresses_is_denied_and_not_dialled() {
    let (target, listener) = target().await;
    let world = World::new(|config| config.rules = forbidden(&["127.0.0.0/8"])).await;
    assert_eq!(world.refused(name("localhost.test", target.port())).await, OpenErrClass::Denied);
    assert_eq!(world.refused(tcp(target)).await, OpenErrClass::Denied);
    is_not_dialled(&listener).await;
}

#[tokio::test]
async fn only_the_allowed_addresses_of_a_name_are_dialled() {
    let listener = TcpListener::bind("127.0.0.2:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let world = World::new(|config| config.rules = forbidden(&["127.0.0.1"])).await;
    let (_stream, ok) = world.open(name("two.test", port)).await.unwrap();
    assert_eq!(ok.address, Some(([127, 0, 0, 2], port).into()));
}

#[tokio::test]
async fn a7_addresses_nobody_means_by_everything_are_denied() {
    let world = World::new(|_| {}).await;
    for address in
        ["0.0.0.0", "169.254.169.254", "255.255.255.255", "224.0.0.1", "::", "fe80::1", "fd00:ec2::254"]
    {
        let open = Open::tcp(HostRef::Ip(address.parse().unwrap()), 80);
        assert_eq!(world.refused(open).await, OpenErrClass::Denied, "{address}");
    }
    assert_eq!(world.refused(name("metadata.test", 80)).await, OpenErrClass::Denied);
}

#[tokio::test]
async fn a12_nothing_a_hostile_gateway_sends_widens_the_rules() {
    let (target, listener) = target().await;
    let world = World::new(|config| {
        let lists =
            Lists { allowed: vec![Pattern::parse("*.printers.test").unwrap().into()], ..Lists::default() };
        config.rules = Policy::new(lists.into_rules("client"));
    })
    .await;
    world.tunnel.send_rules(7, Policy::default().encode());
    let disguised = |text: &str| name(text, target.port());
    for open in [
        tcp(target),
        Open { rules: 7, user: "root".into(), groups: vec!["admins".into()], ..tcp(target) },
        Open { front: "port".into(), ..tcp(target) },
        Open { host: HostRef::Ip("::ffff:127.0.0.1".parse().unwrap()), ..tcp(target) },
        Open { network: Open::udp(1, HostRef::Name(String::new()), 1).network, ..tcp(target) },
        disguised("127.0.0.1"),
        disguised("2130706433"),
        disguised("0x7f.1"),
        disguised("localhost.test"),
        disguised("127.0.0.1\0.printers.test"),
        disguised("a.printers.test@127.0.0.1"),
        disguised(""),
        Open { port: 0, ..disguised("a.printers.test") },
    ] {
        let shown = format!("{open:?}");
        assert_eq!(world.refused(open).await, OpenErrClass::Denied, "{shown}");
    }
    is_not_dialled(&listener).await;
    world.is_left_clean().await;
}

#[tokio::test]
async fn rules_of_the_gateway_on_addresses_hold_for_names_here() {
    let (target, listener) = target().await;
    let world = World::new(|_| {}).await;
    let open = |rules| Open { rules, ..name("localhost.test", target.port()) };
    assert_eq!(world.refused(open(1)).await, OpenErrClass::UnknownRules);
    world.tunnel.send_rules(1, forbidden(&["127.0.0.0/8"]).encode());
    assert_eq!(world.refused(open(1)).await, OpenErrClass::Denied);
    assert_eq!(world.refused(open(2)).await, OpenErrClass::UnknownRules);
    is_not_dialled(&listener).await;
    world.tunnel.send_rules(2, forbidden(&["127.0.0.9"]).encode());
    world.open(open(2)).await.unwrap();
    assert_eq!(
        world.refused(open(1)).await,
        OpenErrClass::Denied,
        "an open on its way may name the version before"
    );
}

#[tokio::test]
async fn rules_that_cannot_be_read_are_as_good_as_none() {
    let (target, _listener) = target().await;
    let world = World::new(|_| {}).await;
    world.tunnel.send_rules(3, b"nonsense"[..].into());
    assert_eq!(world.refused(Open { rules: 3, ..tcp(target) }).await, OpenErrClass::UnknownRules);
}

#[test]
fn rules_of_the_gateway_are_read_though_there_is_no_thread_for_it() {
    // Each thread is refused: no machine has such a stack.
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().thread_stack_size(1 << 50).build().unwrap().block_on(async {
        let (target, _listener) = target().await;
        let world = World::new(|_| {}).await;
        world.tunnel.send_rules(1, forbidden(&["127.0.0.9"]).encode());
        world.open(Open { rules: 1, ..tcp(target) }).await.unwrap();
    });
}

#[tokio::test]
async fn i11_rules_swapped_in_hold_from_the_next_open_on() {
    let (target, _listener) = target().await;
    let world = World::new(|_| {}).await;
    let (_running, _) = world.open(tcp(target)).await.unwrap();
    world.shared.rules.store(Arc::new(forbidden(&["127.0.0.1"])));
    assert_eq!(world.refused(tcp(target)).await, OpenErrClass::Denied);
}

#[tokio::test]
async fn i11_rules_swapped_in_while_a_name_is_looked_up_hold_for_it() {
    let (target, listener) = target().await;
    for forbids in ["127.0.0.1", "slow.test"] {
        let world = World::new(|_| {}).await;
        let opening = tokio::spawn(world.tunnel.open(name("slow.test", target.port())));
        while world.lookups.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        world.shared.rules.store(Arc::new(forbidden(&[forbids])));
        drop(world.release);
        let opened = timeout(Duration::from_secs(5), opening).await.expect("an answer in time").unwrap();
        let Err(OpenError::Refused(why, _)) = opened else { panic!("{opened:?}") };
        assert_eq!(why.class, OpenErrClass::Denied, "{forbids}");
    }
    is_not_dialled(&listener).await;
}

// === Ports ===

#[tokio::test]
async fn an_open_of_an_asked_for_port_leads_to_its_target_under_the_own_rules() {
    let (target, listener) = target().await;
    let world = World::new(|config| {
        let port = |remote_port, target| OpenPort::new(remote_port, target, Transport::Tcp);
        config.open_ports =
            vec![port(2222, target.try_into().unwrap()), port(2223, Target::parse("127.0.0.3:22").unwrap())];
        config.rules = forbidden(&["127.0.0.3"]);
    })
    .await;
    let port = |port| Open { front: "port".into(), ..name("localhost", port) };
    let (_stream, ok) = world.open(port(2222)).await.unwrap();
    assert_eq!(ok.address, Some(target));
    listener.accept().await.unwrap();
    assert_eq!(world.refused(port(2223)).await, OpenErrClass::Denied);
    assert_eq!(world.refused(port(2224)).await, OpenErrClass::Denied);
}

// === Datagrams ===

#[tokio::test]
async fn u3_only_those_an_association_has_sent_to_may_answer() {
    let (first, second, stranger) = (udp_target().await, udp_target().await, udp_target().await);
    let world = World::new(|_| {}).await;
    let mut flows = Vec::new();
    for target in [&first, &second] {
        let address = target.local_addr().unwrap();
        let (stream, ok) = world.open(Open::udp(9, HostRef::Ip(address.ip()), address.port())).await.unwrap();
        assert_eq!(ok.address, Some(address));
        flows.push(Datagrams::new(stream));
    }
    let source = ask(&mut flows[0], &first, b"one").await;
    // The second has not been sent to yet, so it is a stranger too.
    stranger.send_to(b"forged", source).await.unwrap();
    second.send_to(b"early", source).await.unwrap();
    first.send_to(b"", source).await.unwrap();
    first.send_to(&[7; 60_000], source).await.unwrap();
    assert_eq!(answer(&mut flows[0]).await, b"");
    assert_eq!(answer(&mut flows[0]).await, [7; 60_000]);

    assert_eq!(ask(&mut flows[1], &second, b"two").await, source, "an association has one source port");
    second.send_to(b"late", source).await.unwrap();
    assert_eq!(answer(&mut flows[1]).await, b"late");
    drop(flows);
    world.is_left_clean().await;
}

#[tokio::test]
async fn answers_are_told_apart_though_two_names_lead_to_one_address() {
    let target = udp_target().await;
    let world = World::new(|_| {}).await;
    let mut by_address = world.flow(&target).await;
    let name = HostRef::Name("localhost.test".into());
    let open = Open::udp(9, name, target.local_addr().unwrap().port());
    let mut by_name = Datagrams::new(world.open(open).await.unwrap().0);
    let to_address = ask(&mut by_address, &target, b"one").await;
    let to_name = ask(&mut by_name, &target, b"two").await;
    target.send_to(b"first", to_address).await.unwrap();
    target.send_to(b"second", to_name).await.unwrap();
    assert_eq!(answer(&mut by_address).await, b"first");
    assert_eq!(answer(&mut by_name).await, b"second");

    drop(by_name);
    let closed = async {
        while world.shared.tasks.len() > World::IDLE_TASKS + 2 {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(5), closed).await.expect("the port of its own is closed");
    target.send_to(b"still here", to_address).await.unwrap();
    assert_eq!(answer(&mut by_address).await, b"still here");
    drop(by_address);
    world.is_left_clean().await;
}

#[tokio::test]
async fn u7_of_the_names_of_one_address_the_one_sent_to_longest_ago_gives_way() {
    let target = udp_target().await;
    let world = World::new(|_| {}).await;
    let (mut flows, mut ports) = (VecDeque::new(), HashSet::new());
    for _ in 0..MAX_NAMES {
        let mut flow = world.flow(&target).await;
        ports.insert(ask(&mut flow, &target, b"hello").await);
        flows.push_back(flow);
    }
    assert_eq!(ports.len(), usize::from(MAX_NAMES));
    let mut oldest = flows.pop_front().unwrap();
    let mut flow = world.flow(&target).await;
    let ended = timeout(Duration::from_secs(5), oldest.recv(&mut BytesMut::new())).await;
    assert!(ended.expect("the oldest gives way").is_err());
    let port = ask(&mut flow, &target, b"hello").await;
    assert!(ports.contains(&port), "there are no more ports than names");
    flows.push_back(flow);
    for flow in &mut flows {
        let port = ask(flow, &target, b"still here").await;
        target.send_to(b"so am I", port).await.unwrap();
        assert_eq!(answer(flow).await, b"so am I");
    }
}

#[tokio::test]
async fn u10_an_answer_that_finds_no_room_is_counted() {
    let target = udp_target().await;
    let dropped = DroppedDatagrams::default();
    let counts = dropped.clone();
    let memory = Memory::new(16 << 20);
    let mut tunnel = anyproxy_tunnel::Config::default();
    tunnel.memory = memory.clone();
    let world = World::on(tunnel, |config| config.tunnel.dropped_datagrams = counts).await;
    let address = target.local_addr().unwrap();
    let (stream, _) = world.open(Open::udp(9, HostRef::Ip(address.ip()), address.port())).await.unwrap();
    let mut flow = Datagrams::new(stream);
    let source = ask(&mut flow, &target, b"ask").await;
    memory.take(memory.limit());
    while dropped.get() == 0 {
        target.send_to(b"answer", source).await.unwrap();
        tokio::task::yield_now().await;
    }
    memory.give_back(memory.limit());
    drop(flow);
    world.is_left_clean().await;
}

#[tokio::test]
async fn u7_the_destination_sent_to_longest_ago_gives_way() {
    let (first, second) = (udp_target().await, udp_target().await);
    let world = World::new(|_| {}).await;
    let (mut oldest, mut next) = (world.flow(&first).await, world.flow(&second).await);
    let source = ask(&mut oldest, &first, b"old").await;
    ask(&mut next, &second, b"newer").await;
    let mut flows = Vec::new();
    for number in 0..1_023_u16 {
        let open = Open::udp(9, HostRef::Ip([127, 9, (number >> 8) as u8, number as u8].into()), 9);
        let mut flow = Datagrams::new(world.open(open).await.unwrap().0);
        assert!(send(&mut flow, b"x").await);
        flows.push(flow);
    }
    let ended = timeout(Duration::from_secs(5), oldest.recv(&mut BytesMut::new())).await;
    assert!(ended.expect("the oldest gives way").is_err());
    second.send_to(b"still here", source).await.unwrap();
    assert_eq!(answer(&mut next).await, b"still here");
}

#[tokio::test]
async fn a_fin_ends_both_ways_of_a_flow() {
    let target = udp_target().await;
    let world = World::new(|_| {}).await;
    let address = target.local_addr().unwrap();
    let open = Open::udp(9, HostRef::Ip(address.ip()), address.port());
    let (mut flow, _) = world.open(open).await.unwrap();
    flow.write_all(b"\0\x05hello").await.unwrap();
    flow.shutdown().await.unwrap();
    let mut buf = [0; 5];
    assert_eq!(target.recv(&mut buf).await.unwrap(), 5);
    let ended = timeout(Duration::from_secs(5), flow.read(&mut buf)).await;
    assert_eq!(ended.expect("the flow is over").unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    world.is_left_clean().await;
}

#[tokio::test]
async fn u9_datagrams_of_the_target_alone_do_not_keep_a_flow() {
    let (target, other) = (udp_target().await, udp_target().await);
    let world = World::new(|config| config.udp_idle_timeout = Duration::from_millis(200)).await;
    let (mut flow, mut kept) = (world.flow(&target).await, world.flow(&other).await);
    let source = ask(&mut flow, &target, b"hello").await;
    let chatter = async {
        loop {
            target.send_to(b"still here", source).await.unwrap();
            ask(&mut kept, &other, b"still here").await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let ended = async { while flow.recv(&mut BytesMut::new()).await.is_ok_and(|more| more) {} };
    tokio::select! {
        () = chatter => {}
        ended = timeout(Duration::from_secs(5), ended) => ended.expect("the target keeps the flow alive"),
    }
    drop(kept);
    world.is_left_clean().await;
}

// === Access line ===

#[tokio::test]
async fn every_open_is_one_line_with_the_name_that_the_gateway_knows_it_by() {
    keep_log();
    let (target, listener) = target().await;
    let world = World::new(|config| config.rules = forbidden(&["*.printers.test"])).await;
    let open = Open {
        user: "alice".into(),
        groups: vec!["blue".into()],
        front: "socks5".into(),
        source: Some("192.0.2.7:4000".parse().unwrap()),
        ..tcp(target)
    };
    let (mut stream, ok) = world.open(open).await.unwrap();
    assert!(ok.took_us.is_some(), "the gateway is told how long it took");
    let name_there = stream.stream_ref().to_string();
    let (mut socket, _) = listener.accept().await.unwrap();
    stream.write_all(b"up").await.unwrap();
    stream.shutdown().await.unwrap();
    socket.read_to_end(&mut Vec::new()).await.unwrap();
    socket.write_all(b"down").await.unwrap();
    drop(socket);
    stream.read_to_end(&mut Vec::new()).await.unwrap();
    world.is_left_clean().await;
    world.refused(name("a.printers.test", 80)).await;
    world.refused(Open { rules: 9, ..tcp(target) }).await;

    let text = logged();
    let lines: Vec<_> = text.lines().filter(|line| line.contains(" access: ")).collect();
    let [ok, denied, unknown] = lines[..] else { panic!("{text}") };
    for field in [
        &format!("stream={name_there}"),
        "front=\"socks5\"",
        "user=\"alice\"",
        "group=\"blue\"",
        "source=\"192.0.2.7:4000\"",
        "network=\"tcp\"",
        &format!("target=\"{target}\""),
        "client=\"printer-room\"",
        "bytes_up=2",
        "bytes_down=4",
        "open_ms=",
        "first_byte_ms=",
        "total_ms=",
        "outcome=\"ok\"",
        "end=\"whole\"",
    ] {
        assert!(ok.contains(field), "{field} is not in {ok}");
    }
    assert!(denied.contains("outcome=\"denied\"") && denied.contains("forbidden_hosts"), "{denied}");
    assert!(unknown.contains("outcome=\"unknown_rules\""), "{unknown}");
}

// === Life of a tunnel ===

#[tokio::test]
async fn a_go_away_of_the_gateway_asks_for_another_tunnel_while_streams_live_on() {
    let (target, listener) = target().await;
    let world = World::new(|_| {}).await;
    let (mut stream, _) = world.open(tcp(target)).await.unwrap();
    let (mut socket, _) = listener.accept().await.unwrap();
    assert_eq!(*world.shared.live.subscribe().borrow(), 1);
    world.tunnel.drain();
    assert!(matches!(world.left.await.unwrap(), Left::GoAway(GoAwayCode::Shutdown)));
    assert_eq!(*world.shared.live.subscribe().borrow(), 0);
    stream.write_all(b"still here").await.unwrap();
    socket.read_exact(&mut [0; 10]).await.unwrap();
}

#[tokio::test]
async fn r6_a_client_that_stops_lets_streams_finish() {
    let (target, listener) = target().await;
    let world = World::new(|_| {}).await;
    let (mut stream, _) = world.open(tcp(target)).await.unwrap();
    let (mut socket, _) = listener.accept().await.unwrap();
    world.stop.cancel();
    assert!(matches!(world.left.await.unwrap(), Left::Unneeded));
    while world.tunnel.accepts_opens() {
        tokio::task::yield_now().await;
    }
    socket.write_all(b"the end").await.unwrap();
    drop(socket);
    let mut said = String::new();
    stream.read_to_string(&mut said).await.unwrap();
    assert_eq!(said, "the end");
    stream.shutdown().await.unwrap();
    drop(stream);
    world.shared.tasks.close();
    world.shared.tasks.wait().await;
}

#[tokio::test]
async fn r6_streams_that_do_not_finish_are_cut() {
    let (target, listener) = target().await;
    let world = World::new(|config| config.drain_timeout = Duration::from_millis(50)).await;
    let (mut stream, _) = world.open(tcp(target)).await.unwrap();
    let (mut socket, _) = listener.accept().await.unwrap();
    world.stop.cancel();
    assert!(stream.read(&mut [0; 1]).await.is_err());
    assert!(socket.read(&mut [0; 1]).await.is_err());
    world.shared.tasks.close();
    world.shared.tasks.wait().await;
}

#[tokio::test]
async fn r6_a_gateway_that_has_frozen_draws_the_drain_out_by_a_second_at_most() {
    const DRAIN: Duration = Duration::from_secs(6);
    let (target, listener) = target().await;
    let world = World::new(|config| config.drain_timeout = DRAIN).await;
    let (_stream, _) = world.open(tcp(target)).await.unwrap();
    let _socket = listener.accept().await.unwrap();
    world.freeze.cancel();
    tokio::time::pause();
    let begun = Instant::now();
    world.stop.cancel();
    world.shared.tasks.close();
    tokio::select! {
        () = world.shared.tasks.wait() => {}
        never = world.shared.cut_in_time(&world.stop) => match never {},
    }
    // Nothing has a finer clock than the runtime's.
    let end = DRAIN + Duration::from_secs(1) + Duration::from_millis(10);
    assert!((DRAIN..=end).contains(&begun.elapsed()), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn r6_what_is_left_to_deliver_of_a_lost_tunnel_is_cut_with_the_client() {
    let (world, mut socket) = left_behind(&[7; START_WINDOW as usize]).await;
    while world.shared.tasks.len() > 1 {
        tokio::task::yield_now().await;
    }
    world.shared.cut.cancel();
    world.shared.tasks.close();
    timeout(Duration::from_secs(5), world.shared.tasks.wait()).await.expect("nobody waits for the target");
    assert!(socket.read_to_end(&mut Vec::new()).await.is_err(), "no end");
}

#[tokio::test]
async fn what_a_user_had_finished_is_delivered_whatever_the_target_says_meanwhile() {
    let said = vec![7; START_WINDOW as usize];
    let (_world, mut socket) = left_behind(&said).await;
    socket.write_all(b"half of it is there\n").await.unwrap();
    let mut heard = Vec::new();
    let end = timeout(Duration::from_secs(5), socket.read_to_end(&mut heard)).await.expect("an end");
    assert!(end.is_ok() && heard == said, "{end:?} after {} bytes", heard.len());
}

#[tokio::test]
async fn a_target_that_only_talks_is_not_listened_to_for_a_user_who_is_gone() {
    let (_world, mut socket) = left_behind(&[7; START_WINDOW as usize]).await;
    let talk = async { while socket.write_all(&[0; 64 * 1024]).await.is_ok() {} };
    timeout(Duration::from_secs(5), talk).await.expect("it is told that nobody hears it");
}

#[tokio::test]
async fn what_a_user_had_finished_outlives_the_stream_in_the_kernel() {
    let said = vec![7; 32 * 1024];
    let (world, mut socket) = left_behind(&said).await;
    world.shared.tasks.close();
    timeout(Duration::from_secs(5), world.shared.tasks.wait()).await.expect("the kernel takes this much");
    let mut heard = Vec::new();
    let end = timeout(Duration::from_secs(5), socket.read_to_end(&mut heard)).await.expect("an end");
    assert!(end.is_ok() && heard == said, "{end:?} after {} bytes", heard.len());
}

#[test]
fn an_idle_stream_s_task_is_small() {
    fn size<A, B, C, F>(_: impl Fn(A, B, C) -> F) -> usize {
        size_of::<F>()
    }
    let size = size(open::serve);
    assert!(size <= 700, "{size} bytes");
}

// === Helpers ===

/// What a user said before the tunnel was lost, on its way to a target whose kernel takes less than a window: the target's
/// end of it.
async fn left_behind(said: &[u8]) -> (World, TcpStream) {
    let target = TcpSocket::new_v4().unwrap();
    target.set_recv_buffer_size(4 * 1024).unwrap();
    target.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let target = target.listen(8).unwrap();
    let world = World::new(|_| {}).await;
    let (mut stream, _) = world.open(tcp(target.local_addr().unwrap())).await.unwrap();
    let (socket, _) = target.accept().await.unwrap();
    stream.write_all(said).await.unwrap();
    stream.shutdown().await.unwrap();
    // Behind all of that: so it has arrived.
    let behind = world.open(tcp(target.local_addr().unwrap())).await.unwrap();
    world.cut.cancel();
    drop(behind);
    (world, socket)
}

/// A client's tunnel and the gateway's end of it.
struct World {
    tunnel: Tunnel,
    shared: Arc<Shared>,
    stop: CancellationToken,
    /// Drops the gateway's end without a word.
    cut: CancellationToken,
    /// Lets the gateway's end stand, and do nothing any more.
    freeze: CancellationToken,
    left: oneshot::Receiver<Left>,
    release: mpsc::Sender<()>,
    /// Those that have begun.
    lookups: Arc<AtomicUsize>,
}

impl World {
    /// The tunnel's own and its driver's.
    const IDLE_TASKS: usize = 2;

    async fn new(change: impl FnOnce(&mut Config)) -> Self {
        Self::on(anyproxy_tunnel::Config::default(), change).await
    }

    async fn on(tunnel: anyproxy_tunnel::Config, change: impl FnOnce(&mut Config)) -> Self {
        let key = rcgen::generate_simple_self_signed(vec!["gateway.test".to_owned()]).unwrap();
        let mut config = Config::new(
            vec![Target::parse("gateway.test:8443").unwrap()],
            ClientTls::new(vec![key.cert.into()], None).unwrap(),
            "printer-room",
            Credentials::new("user", "password"),
        );
        change(&mut config);
        let (resolver, release, lookups) = resolver();
        let shared = Arc::new(Shared::new(config, resolver).unwrap());

        let (near, far) = duplex(64 * 1024);
        let (cut, freeze) = (CancellationToken::new(), CancellationToken::new());
        let client = connect(WebSocket::client(far), ClientHello::new("printer-room", 1), tunnel);
        let gateway = async {
            let accepting = accept(WebSocket::server(near), Default::default()).await.unwrap();
            let (tunnel, driver) = accepting.finish(GatewayHello::new(1)).unwrap();
            let freeze = freeze.clone();
            let driver = async move {
                let mut driver = pin!(driver);
                if freeze.run_until_cancelled(&mut driver).await.is_none() {
                    pending().await
                }
            };
            tokio::spawn(cut.clone().run_until_cancelled_owned(driver));
            tunnel
        };
        let (client, tunnel) = tokio::join!(client, gateway);
        let (client, requests, hello, driver) = client.unwrap();
        let link = Link { tunnel: client, requests, hello, driver };
        let (stop, (left, receiver)) = (CancellationToken::new(), oneshot::channel());
        shared.tasks.spawn(serve::serve(
            shared.clone(),
            link,
            Arc::default(),
            stop.child_token(),
            stop.clone(),
            left,
        ));
        while *shared.live.subscribe().borrow() == 0 {
            tokio::task::yield_now().await;
        }
        Self { tunnel, shared, stop, cut, freeze, left: receiver, release, lookups }
    }

    async fn open(&self, open: Open) -> Result<(Stream, OpenOk), OpenError> {
        timeout(Duration::from_secs(5), self.tunnel.open(open)).await.expect("an answer in time")
    }

    /// A flow to `target` of the one association there is.
    async fn flow(&self, target: &UdpSocket) -> Datagrams<Stream> {
        let address = target.local_addr().unwrap();
        let open = Open::udp(9, HostRef::Ip(address.ip()), address.port());
        let (stream, ok) = self.open(open).await.unwrap();
        assert_eq!(ok.address, Some(address));
        Datagrams::new(stream)
    }

    async fn refused(&self, open: Open) -> OpenErrClass {
        match self.open(open).await {
            Err(OpenError::Refused(why, _)) => why.class,
            other => panic!("{other:?}"),
        }
    }

    /// No task of a stream is left.
    async fn is_left_clean(&self) {
        let left = async {
            while self.shared.tasks.len() > Self::IDLE_TASKS {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(Duration::from_secs(5), left).await.expect("every task of a stream ends with it");
    }
}

/// Names for every occasion, the stalled and the slow one until the sender is dropped; and the number of lookups.
fn resolver() -> (Resolver, mpsc::Sender<()>, Arc<AtomicUsize>) {
    let (release, stalled) = mpsc::channel::<()>();
    let (stalled, lookups) = (Mutex::new(stalled), Arc::<AtomicUsize>::default());
    let begun = lookups.clone();
    let lookup = move |name: &str| match name {
        "localhost.test" => Ok(vec![Ipv4Addr::LOCALHOST.into()]),
        "two.test" => Ok(vec![IpAddr::from([127, 0, 0, 1]), IpAddr::from([127, 0, 0, 2])]),
        "metadata.test" => Ok(vec![IpAddr::from([169, 254, 169, 254])]),
        "nowhere.test" => Ok(Vec::new()),
        name if name.ends_with("stalled.test") => {
            let _ = stalled.lock().unwrap().recv();
            Ok(Vec::new())
        }
        "slow.test" => {
            let _ = stalled.lock().unwrap().recv();
            Ok(vec![Ipv4Addr::LOCALHOST.into()])
        }
        "full.test" => Err(io::Error::from_raw_os_error(libc::EMFILE)),
        _ => Err(io::Error::other("no such name")),
    };
    let resolver = Resolver::new(move |name| {
        begun.fetch_add(1, Ordering::Relaxed);
        lookup(name)
    });
    (resolver, release, lookups)
}

/// What this test has logged: one subscriber for the process, and a page for each test's thread.
fn logged() -> String {
    PAGE.with_borrow(|page| String::from_utf8_lossy(page).into_owned())
}

/// Keeps a log from here on.
fn keep_log() {
    let subscriber =
        tracing_subscriber::fmt().with_ansi(false).with_max_level(tracing::Level::INFO).with_writer(|| Page);
    // The first test of the process does it for all.
    let _ = subscriber.try_init();
    PAGE.take();
}

thread_local! {
    static PAGE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

struct Page;

impl io::Write for Page {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = PAGE.try_with(|page| page.borrow_mut().extend_from_slice(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

async fn target() -> (SocketAddr, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    (listener.local_addr().unwrap(), listener)
}

async fn udp_target() -> UdpSocket {
    UdpSocket::bind("127.0.0.1:0").await.unwrap()
}

fn tcp(target: SocketAddr) -> Open {
    Open::tcp(HostRef::Ip(target.ip()), target.port())
}

fn name(name: &str, port: u16) -> Open {
    Open::tcp(HostRef::Name(name.into()), port)
}

fn forbidden(patterns: &[&str]) -> Policy {
    let forbidden = patterns.iter().map(|pattern| Pattern::parse(pattern).unwrap().into()).collect();
    Policy::new(Lists { forbidden, ..Lists::default() }.into_rules("test"))
}

/// Whoever was connected by now would be accepted at once.
async fn is_not_dialled(listener: &TcpListener) {
    assert!(timeout(Duration::from_millis(20), listener.accept()).await.is_err(), "something was dialled");
}

/// Sends a datagram and returns the address it came to the target from.
async fn ask(flow: &mut Datagrams<Stream>, target: &UdpSocket, payload: &[u8]) -> SocketAddr {
    assert!(send(flow, payload).await);
    let mut buf = vec![0; 65_535];
    let (length, source) = target.recv_from(&mut buf).await.unwrap();
    assert_eq!(&buf[..length], payload);
    source
}

async fn send(flow: &mut Datagrams<Stream>, payload: &[u8]) -> bool {
    poll_fn(|cx| std::task::Poll::Ready(flow.send_now(cx, payload))).await.unwrap()
}

async fn answer(flow: &mut Datagrams<Stream>) -> Vec<u8> {
    let mut buf = BytesMut::new();
    let received = timeout(Duration::from_secs(5), flow.recv(&mut buf)).await.expect("an answer in time");
    assert!(received.unwrap());
    buf.to_vec()
}
