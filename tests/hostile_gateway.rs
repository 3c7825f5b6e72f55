//! A hostile gateway against the real client: each abuse ends in a named error, costs bounded memory, makes the client
//! dial nothing that its own rules do not allow, and leaves its tunnel to an honest gateway alone.

mod siege;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyproxy_mock_peer::frame::{
    GatewayHello, GoAway, GoAwayCode, HostRef, Open, OpenErrClass, ResetCode, Rules, START_WINDOW,
    StreamFrame, StreamId, ToClient, ToGateway, Unknown,
};
use anyproxy_mock_peer::{End, MockGateway, Peer, Ws};
use anyproxy_tests::{Options, Result, SilentTarget, Target};
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UdpSocket;

use crate::siege::{Besieged, Cost};

/// A frame of the tunnel, by its bytes.
fn frame(kind: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind];
    bytes.extend(&(payload.len() as u32).to_be_bytes()[1..]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

fn on(number: u32, frame: StreamFrame) -> ToClient {
    ToClient::Stream(id(number), frame)
}

fn data(bytes: usize) -> StreamFrame {
    StreamFrame::Data(Bytes::from(vec![b'x'; bytes]))
}

fn id(number: u32) -> StreamId {
    StreamId::new(number).expect("not 0")
}

fn open(number: u32, target: SocketAddr) -> ToClient {
    ToClient::Open(id(number), Box::new(Open::tcp(HostRef::Ip(target.ip()), target.port())))
}

/// Frames as they are sent, `per_message` of them in each message.
fn messages(frames: impl IntoIterator<Item = ToClient>, per_message: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut message = BytesMut::new();
    for (number, frame) in frames.into_iter().enumerate() {
        anyproxy_mock_peer::frame::Frame::encode(&frame, &mut message);
        if (number + 1) % per_message == 0 {
            bytes.extend(Ws::new(Ws::BINARY, &message.split()).encode(false));
        }
    }
    if !message.is_empty() {
        bytes.extend(Ws::new(Ws::BINARY, &message).encode(false));
    }
    bytes
}

/// The client said why, in both of its ways.
fn assert_told(end: &End, code: GoAwayCode, what: &str) {
    if end.is_overtaken() {
        return;
    }
    assert_eq!(end.code(), Some(code), "{what}: {end:?}");
    assert_eq!(end.close_code(), Some(code.close_code()), "{what}: {end:?}");
}

/// The answer to an open.
async fn answer(peer: &mut Peer, number: u32) -> Result<std::result::Result<(), OpenErrClass>> {
    peer.wait(|frame| match frame {
        ToGateway::OpenOk(on, _) if on.get() == number => Some(Ok(())),
        ToGateway::OpenErr(on, why) if on.get() == number => Some(Err(why.class)),
        _ => None,
    })
    .await
}

/// The tunnel still stands: a ping is answered.
async fn is_answered(peer: &mut Peer) -> Result {
    peer.send(&ToClient::Ping(4_711)).await?;
    peer.wait(|frame| matches!(frame, ToGateway::Pong(4_711)).then_some(())).await
}

// === M: the multiplexer ===

#[tokio::test(flavor = "multi_thread")]
async fn m1_m2_a_message_that_does_not_decode_ends_this_tunnel_and_no_other() -> Result {
    let cases: [(&str, Vec<u8>); 14] = [
        ("an unknown kind", frame(0x0d, 0, b"")),
        ("a message of no frames", vec![]),
        ("half a header", vec![4, 0, 0]),
        ("a payload cut off", frame(4, 1, b"cut")[..9].to_vec()),
        ("a claim of 16 MiB", vec![4, 0xff, 0xff, 0xff, 0, 0, 0, 1]),
        ("data one byte too long", frame(4, 1, &vec![0; 65_537])),
        ("an open beyond its limit", frame(1, 1, &vec![0; 8_193])),
        ("an open of nothing", frame(1, 1, b"")),
        ("an open of a host of 300 bytes", frame(1, 1, &[&[2, 1, 44][..], &[b'h'; 300]].concat())),
        ("an open for the tunnel itself", frame(1, 0, &[1, 0, 1, 0])),
        ("an answer, which only clients give", frame(2, 1, b"")),
        ("a refusal, which only clients give", frame(3, 1, &[1, 0, 1, 0])),
        ("a reset of two bytes", frame(7, 1, &[0; 2])),
        ("rules on a stream", frame(0x0c, 1, &[0; 9])),
    ];
    let mut besieged = Besieged::start(cases.len()).await?;
    let cost = Cost::begin(&besieged.client)?;
    for (what, bytes) in cases {
        let mut peer = besieged.join().await?;
        peer.message(&bytes).await?;
        let end = peer.end::<ToGateway>().await?;
        assert_told(&end, GoAwayCode::Protocol, what);
        assert_eq!(end.close.map(|(_, reason)| reason).as_deref(), Some("malformed message"), "{what}");
    }
    besieged.over(&cost, 8).await
}

#[tokio::test(flavor = "multi_thread")]
async fn m1_hellos_come_first_and_once() -> Result {
    let mut besieged = Besieged::start(4).await?;
    let cost = Cost::begin(&besieged.client)?;
    let target = Target::echo().await?;

    let mut peer = besieged.gateway()?.upgrade().await?;
    peer.send(&open(1, target.addr())).await?;
    assert_told(&peer.end::<ToGateway>().await?, GoAwayCode::Protocol, "an open before the hello");

    let mut peer = besieged.join().await?;
    peer.send(&ToClient::Hello(Box::new(GatewayHello::new(2)))).await?;
    assert_told(&peer.end::<ToGateway>().await?, GoAwayCode::Protocol, "a second hello");

    let mut peer = besieged.gateway()?.upgrade().await?;
    peer.message(&frame(0, 0, &vec![0; 8_193])).await?;
    assert_told(&peer.end::<ToGateway>().await?, GoAwayCode::Protocol, "a hello beyond its limit");

    let mut peer = besieged.gateway()?.upgrade().await?;
    peer.message(&frame(0, 0, b"")).await?;
    assert_told(&peer.end::<ToGateway>().await?, GoAwayCode::Protocol, "a hello of nobody");
    besieged.over(&cost, 8).await
}

#[tokio::test(flavor = "multi_thread")]
async fn m4_numbers_only_rise() -> Result {
    let mut besieged = Besieged::start(3).await?;
    let cost = Cost::begin(&besieged.client)?;
    let target = Target::echo().await?;
    for (what, first, second) in [("a live number", 7, 7), ("a number below", 7, 6)] {
        let mut peer = besieged.join().await?;
        peer.send(&open(first, target.addr())).await?;
        assert_eq!(answer(&mut peer, first).await?, Ok(()));
        peer.send(&open(second, target.addr())).await?;
        assert_told(&peer.end::<ToGateway>().await?, GoAwayCode::Protocol, what);
    }
    let mut peer = besieged.join().await?;
    peer.send(&open(7, target.addr())).await?;
    assert_eq!(answer(&mut peer, 7).await?, Ok(()));
    peer.send(&on(7, StreamFrame::Reset(ResetCode::Cancelled))).await?;
    is_answered(&mut peer).await?;
    peer.send(&open(7, target.addr())).await?;
    assert_told(&peer.end::<ToGateway>().await?, GoAwayCode::Protocol, "a used number");
    besieged.over(&cost, 8).await
}

#[tokio::test(flavor = "multi_thread")]
async fn m5_m6_frames_on_streams_that_never_were_and_on_those_that_were() -> Result {
    let frames =
        || [data(1), StreamFrame::Window(1), StreamFrame::Fin, StreamFrame::Reset(ResetCode::Internal)];
    let mut besieged = Besieged::start(frames().len() + 1).await?;
    let cost = Cost::begin(&besieged.client)?;
    for frame in frames() {
        let mut peer = besieged.join().await?;
        peer.send(&on(9, frame)).await?;
        assert_told(&peer.end::<ToGateway>().await?, GoAwayCode::Protocol, "never opened");
    }
    let target = Target::echo().await?;
    let mut peer = besieged.join().await?;
    for number in 1..=2 {
        peer.send(&open(number, target.addr())).await?;
        assert_eq!(answer(&mut peer, number).await?, Ok(()));
    }
    // Over: dropped without a word.
    peer.send(&on(1, StreamFrame::Reset(ResetCode::Cancelled))).await?;
    for _ in 0..50 {
        for frame in frames() {
            peer.send(&on(1, frame)).await?;
        }
        peer.send(&on(1, data(65_536))).await?;
    }
    // Data behind an end: the stream goes, the tunnel stays.
    peer.send_all(&[on(2, StreamFrame::Fin), on(2, StreamFrame::Fin), on(2, data(1))]).await?;
    let code = peer.wait(|frame| match frame {
        ToGateway::Stream(on, StreamFrame::Reset(code)) if on.get() == 2 => Some(*code),
        _ => None,
    });
    assert_eq!(code.await?, ResetCode::Protocol);
    is_answered(&mut peer).await?;
    besieged.over(&cost, 8).await
}

#[tokio::test(flavor = "multi_thread")]
async fn m7_m8_credit_is_kept_to_and_has_a_least_and_a_most() -> Result {
    let mut besieged = Besieged::start(4).await?;
    let cost = Cost::begin(&besieged.client)?;
    // Never reads.
    let deaf = Target::start(|connection| async move {
        let _connection = connection;
        std::future::pending().await
    });
    let deaf = deaf.await?;
    for increment in [0, 1 << 31, (1 << 31) - 1] {
        let mut peer = besieged.join().await?;
        peer.send(&open(1, deaf.addr())).await?;
        assert_eq!(answer(&mut peer, 1).await?, Ok(()));
        peer.send(&on(1, StreamFrame::Window(increment))).await?;
        assert_told(
            &peer.end::<ToGateway>().await?,
            GoAwayCode::FlowControl,
            &format!("credit of {increment}"),
        );
    }
    let mut peer = besieged.join().await?;
    peer.send(&open(1, deaf.addr())).await?;
    assert_eq!(answer(&mut peer, 1).await?, Ok(()));
    let end = peer.flood::<ToGateway>(&messages([on(1, data(65_536))], 1), 2_000).await?;
    assert_told(&end, GoAwayCode::FlowControl, "more than it had credit for");
    besieged.over(&cost, 32).await
}

#[tokio::test(flavor = "multi_thread")]
async fn m9_a_gateway_that_never_grants_credit_holds_little_and_the_target_waits() -> Result {
    let options = Options { client: "  idle_timeout: 3s".to_owned(), ..Options::default() };
    let mut besieged = Besieged::with(1, options).await?;
    let cost = Cost::begin(&besieged.client)?;
    let firehose = Target::start(|mut connection| async move {
        let bytes = vec![b't'; 1 << 16];
        loop {
            connection.write_all(&bytes).await?;
        }
    });
    let firehose = firehose.await?;
    let mut peer = besieged.join().await?;
    for number in 1..=50 {
        peer.send(&open(number, firehose.addr())).await?;
    }
    let (mut received, mut over) = (0, 0);
    while over < 50 {
        match peer.next::<ToGateway>().await? {
            ToGateway::Stream(_, StreamFrame::Data(data)) => received += data.len(),
            ToGateway::Stream(_, StreamFrame::Reset(code)) => {
                assert_eq!(code, ResetCode::Idle);
                over += 1;
            }
            _ => {}
        }
    }
    assert!(received <= 50 * START_WINDOW as usize, "{received} bytes with credit for less");
    is_answered(&mut peer).await?;
    besieged.over(&cost, 48).await
}

#[tokio::test(flavor = "multi_thread")]
async fn m11_a_hundred_thousand_opens_are_a_thousand_dials_at_once_and_refusals() -> Result {
    let mut besieged = Besieged::start(1).await?;
    let silent = SilentTarget::start().await?;
    let mut peer = besieged.join().await?;
    let cost = Cost::begin(&besieged.client)?;
    let before = besieged.client.descriptors()?;
    let flood = messages((1..=100_000).map(|number| open(number, silent.addr())), 1_000);
    // Nobody reads the refusals before the tunnel is over, so their backlog ends it: 100,000 of them are 8 MiB.
    peer.pour(&flood, 1).await;
    let most = besieged.client.descriptors()?;
    besieged.client.line("its end", |line| line["message"] == "a tunnel ended")?;
    let end = peer.end::<ToGateway>().await?;
    println!("{most} descriptors after {before}");
    assert!(most <= before + 1_040, "{most} descriptors after {before}");
    assert!(matches!(end.code(), Some(GoAwayCode::Excess) | None), "{end:?}");
    besieged.over(&cost, 32).await
}

#[tokio::test(flavor = "multi_thread")]
async fn m11_opens_beyond_the_limit_are_told_so_and_the_tunnel_lives() -> Result {
    let mut besieged = Besieged::start(1).await?;
    let silent = SilentTarget::start().await?;
    let mut peer = besieged.join().await?;
    let cost = Cost::begin(&besieged.client)?;
    peer.raw(&messages((1..=1_200).map(|number| open(number, silent.addr())), 400)).await?;
    for _ in 0..1_200 - 1_024 {
        let class = peer.wait(|frame| match frame {
            ToGateway::OpenErr(_, why) => Some(why.class),
            _ => None,
        });
        assert_eq!(class.await?, OpenErrClass::Overloaded);
    }
    is_answered(&mut peer).await?;
    besieged.over(&cost, 32).await
}

#[tokio::test(flavor = "multi_thread")]
async fn m12_opens_reset_at_once_end_the_tunnel_before_they_are_dialled() -> Result {
    let mut besieged = Besieged::start(2).await?;
    let dialled = Arc::new(AtomicUsize::new(0));
    let count = dialled.clone();
    let target = Target::start(move |mut connection| {
        count.fetch_add(1, Ordering::Relaxed);
        async move { connection.read_u8().await.map(drop) }
    });
    let target = target.await?;
    let cost = Cost::begin(&besieged.client)?;
    // CVE-2023-44487, in one message and in one each.
    for per_message in [1_000, 2] {
        let peer = besieged.join().await?;
        let pairs = (1..=50_000).flat_map(|number| {
            [open(number, target.addr()), on(number, StreamFrame::Reset(ResetCode::Cancelled))]
        });
        let end = peer.flood::<ToGateway>(&messages(pairs, per_message), 1).await?;
        assert_told(&end, GoAwayCode::Excess, "rapid resets");
    }
    let dialled = dialled.load(Ordering::Relaxed);
    println!("{dialled} dials for 100,000 opens");
    assert!(dialled < 5_000, "{dialled} dials");
    besieged.over(&cost, 32).await
}

#[tokio::test(flavor = "multi_thread")]
async fn m12_mistakes_that_each_cost_a_reset_are_counted() -> Result {
    let mut besieged = Besieged::start(1).await?;
    let target = Target::echo().await?;
    let mut peer = besieged.join().await?;
    for number in 1..=1_030 {
        peer.send(&open(number, target.addr())).await?;
        assert_eq!(answer(&mut peer, number).await?, Ok(()));
    }
    let cost = Cost::begin(&besieged.client)?;
    let faults = (1..=1_030).flat_map(|number| [on(number, StreamFrame::Fin), on(number, data(1))]);
    let end = peer.flood_deaf::<ToGateway>(&messages(faults, 100), 1).await?;
    assert_told(&end, GoAwayCode::Excess, "1,025 mistakes");
    besieged.over(&cost, 16).await
}

#[tokio::test(flavor = "multi_thread")]
async fn m16_go_away_twice_is_heard_and_a_flood_of_them_is_not() -> Result {
    let mut besieged = Besieged::start(1).await?;
    let target = Target::echo().await?;
    let cost = Cost::begin(&besieged.client)?;
    let mut peer = besieged.join().await?;
    peer.send(&open(1, target.addr())).await?;
    assert_eq!(answer(&mut peer, 1).await?, Ok(()));
    let go_away = || ToClient::GoAway(Box::new(GoAway::new(GoAwayCode::Shutdown, 1, "leaving\r\n\x1b[2J")));
    peer.send_all(&[go_away(), go_away()]).await?;
    // What lives goes on.
    peer.send(&on(1, data(3))).await?;
    peer.wait(|frame| {
        matches!(frame, ToGateway::Stream(_, StreamFrame::Data(data)) if data.len() == 3).then_some(())
    })
    .await?;
    let end =
        peer.flood::<ToGateway>(&messages(std::iter::repeat_with(go_away).take(1_000), 100), 10).await?;
    assert_told(&end, GoAwayCode::Excess, "go-aways");
    for line in besieged.client.lines() {
        assert!(!line.contains('\x1b') && line.len() < 2_048, "{line}");
    }
    besieged.over(&cost, 8).await
}

#[tokio::test(flavor = "multi_thread")]
async fn i6_floods_of_what_means_nothing_end_the_tunnel() -> Result {
    let unknown =
        || ToClient::Unknown(Unknown { kind: 0x90, stream: 0, payload: Bytes::from_static(&[0; 64]) });
    let floods = [
        ("pings", messages(std::iter::repeat_n(ToClient::Ping(1), 1_000), 500)),
        ("pongs nobody asked for", messages(std::iter::repeat_n(ToClient::Pong(77), 1_000), 500)),
        ("extensions", messages(std::iter::repeat_with(unknown).take(1_000), 500)),
    ];
    let mut besieged = Besieged::start(2 * floods.len() + 1).await?;
    let cost = Cost::begin(&besieged.client)?;
    for (what, bytes) in &floods {
        let end = besieged.join().await?.flood::<ToGateway>(bytes, 100).await?;
        assert_told(&end, GoAwayCode::Excess, what);
        let end = besieged.join().await?.flood_deaf::<ToGateway>(bytes, 100).await?;
        assert_told(&end, GoAwayCode::Excess, what);
    }
    let target = Target::echo().await?;
    let mut peer = besieged.join().await?;
    peer.send(&open(1, target.addr())).await?;
    assert_eq!(answer(&mut peer, 1).await?, Ok(()));
    let empty = messages(std::iter::repeat_with(|| on(1, data(0))).take(1_000), 100);
    assert_told(&peer.flood::<ToGateway>(&empty, 10).await?, GoAwayCode::Excess, "empty data");
    besieged.over(&cost, 16).await
}

// === W: WebSocket and the login ===

#[tokio::test(flavor = "multi_thread")]
async fn w2_w3_w6_what_breaks_rfc_6455_ends_the_tunnel_with_its_code() -> Result {
    let ping = frame(9, 0, &[0; 8]);
    let message = Ws::new(Ws::BINARY, &ping);
    let cases: [(&str, Ws<'_>, &[u16]); 10] = [
        ("w2: masked", message.masked(true), &[1002]),
        ("w6: RSV1, which only compression may set", message.with_rsv(4), &[1002]),
        ("an opcode nobody knows", Ws { opcode: 3, ..message }, &[1002]),
        ("a fragmented ping", Ws::new(Ws::PING, b"x").unfinished(), &[1002]),
        ("a continuation of nothing", Ws::new(Ws::CONTINUATION, b"x"), &[1002]),
        ("text", Ws::new(Ws::TEXT, b"hello"), &[1003]),
        ("w3: a length of 2^63", message.claiming(1 << 63), &[1002, 1009]),
        ("w3: a length of 2^63 - 1", message.claiming((1 << 63) - 1), &[1002, 1009]),
        ("w3: a length of 2^40", message.claiming(1 << 40), &[1009]),
        ("w3: one byte too many", message.claiming(131_073), &[1009]),
    ];
    let mut besieged = Besieged::start(cases.len()).await?;
    let cost = Cost::begin(&besieged.client)?;
    for (what, bytes, codes) in cases {
        let mut peer = besieged.join().await?;
        peer.ws(bytes).await?;
        let end = peer.end::<ToGateway>().await?;
        assert!(end.close_code().is_some_and(|code| codes.contains(&code)), "{what}: {end:?}");
    }
    besieged.over(&cost, 4).await
}

#[tokio::test(flavor = "multi_thread")]
async fn w4_w5_floods_of_fragments_and_of_websocket_pings_are_bounded() -> Result {
    let mut besieged = Besieged::start(6).await?;
    let cost = Cost::begin(&besieged.client)?;
    for payload in [&b""[..], b"x"] {
        let mut peer = besieged.join().await?;
        peer.ws(Ws::new(Ws::BINARY, payload).unfinished()).await?;
        let chunk = Ws::new(Ws::CONTINUATION, payload).unfinished().encode(false).repeat(1_000);
        let end = peer.flood::<ToGateway>(&chunk, 1_000).await?;
        assert!(end.is_overtaken() || matches!(end.close_code(), Some(1008 | 1009)), "{end:?}");
    }
    for opcode in [Ws::PING, Ws::PONG] {
        let chunk = Ws::new(opcode, &[b'p'; 125]).encode(false).repeat(100);
        let end = besieged.join().await?.flood::<ToGateway>(&chunk, 1_000).await?;
        assert!(end.is_overtaken() || end.close_code() == Some(1008), "{end:?}");
        let end = besieged.join().await?.flood_deaf::<ToGateway>(&chunk, 1_000).await?;
        assert!(end.is_overtaken() || end.close_code() == Some(1008), "{end:?}");
    }
    let cpu = cost.cpu(&besieged.client)?;
    assert!(cpu < Duration::from_secs(6), "{cpu:?}");
    besieged.over(&cost, 6).await
}

#[tokio::test(flavor = "multi_thread")]
async fn w6_an_extension_in_the_answer_is_refused() -> Result {
    let mut besieged = Besieged::start(1).await?;
    let cost = Cost::begin(&besieged.client)?;
    let gateway = besieged.gateway()?;
    let (request, io) = gateway.asked().await?;
    assert!(!request.to_lowercase().contains("extensions"), "{request}");
    let peer = MockGateway::grant(io, &request, "Sec-WebSocket-Extensions: permessage-deflate\r\n").await?;
    assert_eq!(peer.end::<ToGateway>().await?, End::default(), "without a word");
    besieged
        .client
        .text("the refusal", |line| line.contains("an extension that nobody asked for").then_some(()))?;
    besieged.over(&cost, 4).await
}

#[tokio::test(flavor = "multi_thread")]
async fn w7_w8_answers_that_drip_never_end_or_never_come_cost_little_and_have_a_deadline() -> Result {
    let mut besieged = Besieged::start(3).await?;
    let cost = Cost::begin(&besieged.client)?;
    let begun = Instant::now();
    // A head without end.
    let (_, mut endless) = besieged.gateway()?.asked().await?;
    endless.write_all(b"HTTP/1.1 101 Switching Protocols\r\n").await?;
    let line = b"X-More: and more and more and more and more and more and more and more\r\n".repeat(100);
    let endless = tokio::spawn(async move {
        for _ in 0..10_000 {
            if endless.write_all(&line).await.is_err() {
                return;
            }
        }
    });
    // One that drips, and one that is silent.
    let (_, mut drip) = besieged.gateway()?.asked().await?;
    let drip = tokio::spawn(async move {
        for byte in b"HTTP/1.1 101 Switching Protocols\r\n".repeat(100) {
            if drip.write_all(&[byte]).await.is_err() || drip.flush().await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    });
    let (_, mut silent) = besieged.gateway()?.asked().await?;
    let _ = silent.read(&mut [0; 1]).await;
    let waited = begun.elapsed();
    println!("the silent one was given up after {waited:?}");
    assert!((9..13).contains(&waited.as_secs()), "{waited:?}");
    drip.await?;
    endless.await?;
    besieged.over(&cost, 8).await
}

// === A: nothing is dialled that the client's own rules do not allow ===

#[tokio::test(flavor = "multi_thread")]
async fn a12_no_gateway_widens_what_a_client_dials() -> Result {
    let reached = Arc::new(AtomicUsize::new(0));
    let count = reached.clone();
    let secret = Target::start(move |_connection| {
        count.fetch_add(1, Ordering::Relaxed);
        std::future::ready(Ok(()))
    });
    let secret = secret.await?.addr();
    let datagrams = UdpSocket::bind((Ipv4Addr::LOCALHOST, secret.port())).await?;
    let options = Options {
        client: format!("  forbidden_hosts: ['127.0.0.1:{}', '[::1]']", secret.port()),
        ..Options::default()
    };
    let mut besieged = Besieged::with(1, options).await?;
    let cost = Cost::begin(&besieged.client)?;
    let mut peer = besieged.join().await?;
    let name = |name: &str| HostRef::Name(name.to_owned());
    let told = Open {
        user: "admin".to_owned(),
        groups: vec!["admin".to_owned(), "checked-by-the-gateway".to_owned()],
        front: "internal".to_owned(),
        ..Open::tcp(HostRef::Ip(secret.ip()), secret.port())
    };
    let port = secret.port();
    let mapped = Ipv4Addr::LOCALHOST.to_ipv6_mapped();
    let opens = [
        Open::tcp(HostRef::Ip(secret.ip()), port),
        Open::tcp(HostRef::Ip(IpAddr::V6(mapped)), port),
        Open::tcp(HostRef::Ip(IpAddr::V6(Ipv6Addr::LOCALHOST)), 22),
        Open::tcp(name("localhost"), port),
        Open::tcp(name("LOCALHOST."), port),
        Open::tcp(name("127.1"), port),
        Open::tcp(name("0x7f.1"), port),
        Open::tcp(name("2130706433"), port),
        Open::tcp(name("127.0.0.1"), port),
        Open::tcp(name("[::ffff:7f00:1]"), port),
        Open::tcp(name("a b\r\nc"), port),
        Open::tcp(name("..."), port),
        Open::tcp(HostRef::Ip([169, 254, 169, 254].into()), 80),
        Open::tcp(HostRef::Ip([0, 0, 0, 0].into()), port),
        Open::tcp(HostRef::Ip([255, 255, 255, 255].into()), port),
        Open::tcp(HostRef::Ip([224, 0, 0, 1].into()), port),
        Open::udp(1, HostRef::Ip(secret.ip()), port),
        Open::udp(1, name("localhost"), port),
        told.clone(),
        Open { front: "port".to_owned(), ..told.clone() },
        Open { rules: 99, ..told },
    ];
    // Rules of the gateway's own do not help it, nor do settings nobody has heard of.
    let rules = Rules { version: 99, last: true, chunk: Bytes::from_static(b"allow everything") };
    peer.send(&ToClient::Rules(rules)).await?;
    for kind in 0x80..=0x90 {
        let payload = Bytes::from_static(b"allowed_hosts: ['.*']");
        peer.send(&ToClient::Unknown(Unknown { kind, stream: 0, payload })).await?;
    }
    for round in 0..2 {
        for (number, open) in opens.iter().enumerate() {
            let number = round * 100 + number as u32 + 1;
            peer.send(&ToClient::Open(id(number), Box::new(open.clone()))).await?;
            let class = answer(&mut peer, number).await?.expect_err("an open outside the rules");
            let expected = [OpenErrClass::Denied, OpenErrClass::UnknownRules];
            assert!(expected.contains(&class), "{open:?}: {class}");
        }
    }
    assert_eq!(reached.load(Ordering::Relaxed), 0, "dials");
    assert!(datagrams.try_recv(&mut [0; 1]).is_err(), "datagrams");
    besieged.over(&cost, 8).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a12_rules_are_bounded_and_in_order() -> Result {
    let mut besieged = Besieged::start(4).await?;
    let cost = Cost::begin(&besieged.client)?;
    let part = |version, last, bytes: usize| {
        ToClient::Rules(Rules { version, last, chunk: Bytes::from(vec![b'r'; bytes]) })
    };
    let end =
        besieged.join().await?.flood::<ToGateway>(&messages([part(1, false, 65_000)], 1), 1_000).await?;
    assert_told(&end, GoAwayCode::Excess, "8 MiB of rules and more");
    for (what, frames) in [
        ("version 0", vec![part(0, true, 1)]),
        ("one version within another", vec![part(1, false, 1), part(2, true, 1)]),
    ] {
        let mut peer = besieged.join().await?;
        peer.send_all(&frames).await?;
        assert_told(&peer.end::<ToGateway>().await?, GoAwayCode::Protocol, what);
    }
    // Version upon version, none of which can be read.
    let mut peer = besieged.join().await?;
    for version in 1..=200 {
        peer.send(&part(version, true, 65_000)).await?;
    }
    is_answered(&mut peer).await?;
    besieged.over(&cost, 40).await
}
