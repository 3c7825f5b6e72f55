//! A hostile client against the real gateway: each abuse ends in a named error, costs bounded memory, and leaves the
//! tunnel of an honest client alone.

mod siege;

use std::time::{Duration, Instant};

use anyproxy_mock_peer::frame::{
    ClientHello, GoAway, GoAwayCode, OpenErr, OpenErrClass, OpenOk, ResetCode, START_WINDOW, StreamFrame,
    StreamId, ToClient, ToGateway, Unknown,
};
use anyproxy_mock_peer::{Account, End, Ws, client};
use anyproxy_tests::{Options, Result, until};
use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::siege::{Cost, MALLORY, Siege, is_answered, opened, reset};

/// A frame of the tunnel, by its bytes.
fn frame(kind: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind];
    bytes.extend(&(payload.len() as u32).to_be_bytes()[1..]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

fn on(id: StreamId, frame: StreamFrame) -> ToGateway {
    ToGateway::Stream(id, frame)
}

fn data(bytes: usize) -> StreamFrame {
    StreamFrame::Data(Bytes::from(vec![b'x'; bytes]))
}

fn id(number: u32) -> StreamId {
    StreamId::new(number).expect("not 0")
}

/// The gateway said why, in both of its ways.
fn assert_told(end: &End, code: GoAwayCode, what: &str) {
    if end.is_overtaken() {
        return;
    }
    assert_eq!(end.code(), Some(code), "{what}: {end:?}");
    assert_eq!(end.close_code(), Some(code.close_code()), "{what}: {end:?}");
}

// === M: the multiplexer ===

#[tokio::test(flavor = "multi_thread")]
async fn m1_m2_a_message_that_does_not_decode_ends_this_tunnel_and_no_other() -> Result {
    let siege = Siege::start().await?;
    let cost = Cost::begin(&siege.stage.gateway)?;
    let cases: [(&str, Vec<u8>); 16] = [
        ("an unknown kind", frame(0x0d, 0, b"")),
        ("another unknown kind", frame(0x7f, 1, b"")),
        ("a message of no frames", vec![]),
        ("half a header", vec![4, 0, 0]),
        ("a payload cut off", frame(4, 1, b"cut")[..9].to_vec()),
        ("a payload behind its message", frame(4, 1, &[0; 9])[..12].to_vec()),
        ("a claim of 16 MiB", vec![4, 0xff, 0xff, 0xff, 0, 0, 0, 1]),
        ("data one byte too long", frame(4, 1, &vec![0; 65_537])),
        ("credit of three bytes", frame(5, 1, &[0; 3])),
        ("a fin with something in it", frame(6, 1, &[0])),
        ("data for the tunnel itself", frame(4, 0, b"x")),
        ("a ping on a stream", frame(9, 5, &[0; 8])),
        ("an answer beyond its limit", frame(3, 1, &vec![0; 1_025])),
        ("a field cut off in an answer", frame(3, 1, &[1, 0, 9, 1])),
        ("rules, which only gateways send", frame(0x0c, 0, &[0; 9])),
        ("a second frame that is none", [frame(10, 0, &[0; 8]), frame(0x20, 0, b"")].concat()),
    ];
    for (what, bytes) in cases {
        let mut peer = siege.join().await?;
        peer.message(&bytes).await?;
        let end = peer.end::<ToClient>().await?;
        assert_told(&end, GoAwayCode::Protocol, what);
        assert_eq!(end.close.map(|(_, reason)| reason).as_deref(), Some("malformed message"), "{what}");
    }
    siege.over(&cost, 8).await
}

#[tokio::test(flavor = "multi_thread")]
async fn m1_hellos_come_first_once_and_in_order() -> Result {
    let siege = Siege::start().await?;
    let cost = Cost::begin(&siege.stage.gateway)?;
    let gateway = siege.gateway()?;

    let mut peer = client::upgrade(gateway, &MALLORY).await?;
    peer.send(&on(id(1), data(1))).await?;
    assert_told(&peer.end::<ToClient>().await?, GoAwayCode::Protocol, "data before the hello");

    let mut peer = siege.join().await?;
    peer.send(&ToGateway::Hello(Box::new(ClientHello::new("evil", 1)))).await?;
    assert_told(&peer.end::<ToClient>().await?, GoAwayCode::Protocol, "a second hello");

    let mut peer = client::upgrade(gateway, &MALLORY).await?;
    peer.message(&frame(0, 0, &vec![0; 8_193])).await?;
    assert_told(&peer.end::<ToClient>().await?, GoAwayCode::Protocol, "a hello beyond its limit");

    let mut peer = client::upgrade(gateway, &MALLORY).await?;
    peer.message(&frame(0, 0, &[3, 0, 4, 0, 4, 0, 0])).await?;
    assert_told(&peer.end::<ToClient>().await?, GoAwayCode::Protocol, "a hello of nobody");
    siege.over(&cost, 8).await
}

#[tokio::test(flavor = "multi_thread")]
async fn m1_frames_of_extensions_are_ignored_in_small_numbers() -> Result {
    let siege = Siege::start().await?;
    let cost = Cost::begin(&siege.stage.gateway)?;
    let mut peer = siege.join().await?;
    let unknown =
        ToGateway::Unknown(Unknown { kind: 0x80, stream: 7, payload: Bytes::from_static(&[0; 100]) });
    peer.send_all(std::iter::repeat_n(&unknown, 90)).await?;
    is_answered(&mut peer).await?;
    let flood = Ws::new(Ws::BINARY, &frame(0xff, 0, b"")).encode(true);
    let end = peer.flood::<ToClient>(&flood, 10_000).await?;
    assert_told(&end, GoAwayCode::Excess, "a flood of them");
    siege.over(&cost, 8).await
}

#[tokio::test(flavor = "multi_thread")]
async fn m3_m7_bytes_beyond_the_credit_are_not_kept() -> Result {
    let siege = Siege::start().await?;
    let cost = Cost::begin(&siege.stage.gateway)?;
    for first in [true, false] {
        let mut peer = siege.join().await?;
        // The user does not read.
        let (_user, stream) = siege.stream(&mut peer).await?;
        let frames: Vec<_> = (0..1024).map(|_| on(stream, data(65_536))).collect();
        let flood = if first { &frames[..] } else { &frames[..START_WINDOW as usize / 65_536] };
        for frame in flood {
            if peer.send(frame).await.is_err() {
                break;
            }
        }
        if !first {
            // Within the credit so far, but for what has reached the user meanwhile.
            is_answered(&mut peer).await?;
            for frame in &frames {
                if peer.send(frame).await.is_err() {
                    break;
                }
            }
        }
        assert_told(&peer.end::<ToClient>().await?, GoAwayCode::FlowControl, "more than it had credit for");
    }
    siege.over(&cost, 24).await
}

#[tokio::test(flavor = "multi_thread")]
async fn m5_frames_on_streams_that_never_were_end_the_tunnel_and_on_those_that_were_they_are_dropped()
-> Result {
    let siege = Siege::start().await?;
    let cost = Cost::begin(&siege.stage.gateway)?;
    let frames =
        || [data(1), StreamFrame::Window(1), StreamFrame::Fin, StreamFrame::Reset(ResetCode::Internal)];
    for frame in frames() {
        let mut peer = siege.join().await?;
        peer.send(&on(id(9), frame)).await?;
        let end = peer.end::<ToClient>().await?;
        assert_told(&end, GoAwayCode::Protocol, "never opened");
        let reason = end.close.map(|(_, reason)| reason).unwrap_or_default();
        assert!(reason.contains("never opened"), "{reason}");
    }
    let mut peer = siege.join().await?;
    peer.send(&ToGateway::OpenOk(id(9), OpenOk::default())).await?;
    assert_told(&peer.end::<ToClient>().await?, GoAwayCode::Protocol, "an answer to no open");

    let mut peer = siege.join().await?;
    let (user, stream) = siege.stream(&mut peer).await?;
    user.set_zero_linger()?;
    drop(user);
    reset(&mut peer, stream).await?;
    for _ in 0..50 {
        for frame in frames() {
            peer.send(&on(stream, frame)).await?;
        }
        peer.send(&on(stream, data(65_536))).await?;
    }
    is_answered(&mut peer).await?;
    siege.over(&cost, 8).await
}

#[tokio::test(flavor = "multi_thread")]
async fn m6_data_behind_an_end_resets_the_stream_and_a_second_end_is_ignored() -> Result {
    let siege = Siege::start().await?;
    let cost = Cost::begin(&siege.stage.gateway)?;
    let mut peer = siege.join().await?;
    let (mut user, stream) = siege.stream(&mut peer).await?;
    peer.send_all(&[on(stream, data(5)), on(stream, StreamFrame::Fin), on(stream, StreamFrame::Fin)]).await?;
    let mut whole = Vec::new();
    user.read_to_end(&mut whole).await?;
    assert_eq!(whole, b"xxxxx", "a clean end behind what came before it");
    peer.send(&on(stream, data(5))).await?;
    assert_eq!(reset(&mut peer, stream).await?, ResetCode::Protocol);
    is_answered(&mut peer).await?;
    siege.over(&cost, 8).await
}

#[tokio::test(flavor = "multi_thread")]
async fn m8_credit_has_a_least_and_a_most() -> Result {
    let siege = Siege::start().await?;
    let cost = Cost::begin(&siege.stage.gateway)?;
    for increment in [0, 1 << 31, u32::MAX, (1 << 31) - 1] {
        let mut peer = siege.join().await?;
        let (_user, stream) = siege.stream(&mut peer).await?;
        peer.send(&on(stream, StreamFrame::Window(increment))).await?;
        assert_told(
            &peer.end::<ToClient>().await?,
            GoAwayCode::FlowControl,
            &format!("credit of {increment}"),
        );
    }
    siege.over(&cost, 8).await
}

#[tokio::test(flavor = "multi_thread")]
async fn m8_a_million_crumbs_of_credit_are_not_answered_with_crumbs() -> Result {
    let siege = Siege::start().await?;
    let cost = Cost::begin(&siege.stage.gateway)?;
    let mut peer = siege.join().await?;
    let (mut user, stream) = siege.stream(&mut peer).await?;
    let user = tokio::spawn(async move { user.write_all(&vec![b'u'; 4 << 20]).await });
    let mut sizes = Vec::new();
    let size = |frame| match frame {
        ToClient::Stream(_, StreamFrame::Data(data)) => Some(data.len()),
        _ => None,
    };
    let crumbs = vec![on(stream, StreamFrame::Window(1)); 4_000];
    for _ in 0..250 {
        peer.send_all(&crumbs).await?;
        while let Ok(Ok(frame)) =
            tokio::time::timeout(Duration::from_millis(5), peer.next::<ToClient>()).await
        {
            sizes.extend(size(frame));
        }
    }
    // Who ignores crumbs sends no storm either: all that they add up to is used, but for a last frame's worth.
    let credit = START_WINDOW as usize + 1_000_000;
    while sizes.iter().sum::<usize>() < credit - 65_536 {
        sizes.extend(size(peer.next().await?));
    }
    let (received, frames) = (sizes.iter().sum::<usize>(), sizes.len());
    user.abort();
    println!("{received} bytes in {frames} frames");
    assert!(received <= credit && frames < 600, "{received} bytes in {frames} frames");
    siege.over(&cost, 16).await
}

#[tokio::test(flavor = "multi_thread")]
async fn m9_a_client_that_never_grants_credit_holds_little_until_its_streams_idle_out() -> Result {
    let siege =
        Siege::with(Options { gateway: "  idle_timeout: 3s".to_owned(), ..Options::default() }).await?;
    let cost = Cost::begin(&siege.stage.gateway)?;
    let mut peer = siege.join().await?;
    let mut users = JoinSet::new();
    for _ in 0..50 {
        let user = siege.ask();
        users.spawn(async move {
            let (_, mut user) = user.await.expect("it does not panic").expect("an answer");
            loop {
                user.write_all(&[b'u'; 16 << 10]).await?;
            }
            #[allow(unreachable_code, reason = "it names the type")]
            Ok::<_, std::io::Error>(())
        });
    }
    let (mut received, mut over) = (0, 0);
    while over < 50 {
        match peer.next::<ToClient>().await? {
            ToClient::Open(id, _) => peer.send(&ToGateway::OpenOk(id, OpenOk::default())).await?,
            ToClient::Stream(_, StreamFrame::Data(data)) => received += data.len(),
            ToClient::Stream(_, StreamFrame::Reset(code)) => {
                assert_eq!(code, ResetCode::Cancelled, "by a front, which knows no other");
                over += 1;
            }
            _ => {}
        }
    }
    println!("{received} bytes came");
    assert!(received <= 50 * START_WINDOW as usize, "{received} bytes with credit for less");
    while let Some(user) = users.join_next().await {
        assert!(user?.is_err(), "the user is told");
    }
    is_answered(&mut peer).await?;
    siege.over(&cost, 64).await
}

#[tokio::test(flavor = "multi_thread")]
async fn m12_faults_that_each_cost_a_reset_are_counted_though_nobody_reads_the_resets() -> Result {
    let siege = Siege::start().await?;
    let mut peer = siege.join().await?;
    let mut users = Vec::new();
    let mut faults = Vec::new();
    for _ in 0..1_030 {
        let (user, stream) = siege.stream(&mut peer).await?;
        users.push(user);
        let bytes = [on(stream, StreamFrame::Fin), on(stream, data(1))];
        faults.extend(bytes.iter().flat_map(|frame| {
            let mut bytes = bytes::BytesMut::new();
            anyproxy_mock_peer::frame::Frame::encode(frame, &mut bytes);
            Ws::new(Ws::BINARY, &bytes).encode(true)
        }));
    }
    let cost = Cost::begin(&siege.stage.gateway)?;
    let end = peer.flood_deaf::<ToClient>(&faults, 1).await?;
    assert_told(&end, GoAwayCode::Excess, "1,025 mistakes");
    siege.over(&cost, 8).await
}

#[tokio::test(flavor = "multi_thread")]
async fn m13_a_reset_behind_an_end_takes_nothing_from_the_user() -> Result {
    let siege = Siege::start().await?;
    let cost = Cost::begin(&siege.stage.gateway)?;
    let mut peer = siege.join().await?;
    let (mut user, stream) = siege.stream(&mut peer).await?;
    let reset = StreamFrame::Reset(ResetCode::Internal);
    peer.send(&on(stream, data(65_536))).await?;
    peer.send(&on(stream, data(65_536))).await?;
    peer.send_all(&[on(stream, data(50_000)), on(stream, StreamFrame::Fin), on(stream, reset)]).await?;
    let mut whole = Vec::new();
    user.read_to_end(&mut whole).await?;
    assert_eq!(whole.len(), 2 * 65_536 + 50_000);

    let (mut user, stream) = siege.stream(&mut peer).await?;
    peer.send_all(&[on(stream, data(50_000)), on(stream, StreamFrame::Reset(ResetCode::Internal))]).await?;
    let mut part = Vec::new();
    assert!(
        user.read_to_end(&mut part).await.is_err(),
        "i5: without an end it is a reset, whatever came before"
    );
    siege.over(&cost, 8).await
}

#[tokio::test(flavor = "multi_thread")]
async fn m14_answers_that_nobody_waits_for_are_ignored() -> Result {
    let siege = Siege::start().await?;
    let cost = Cost::begin(&siege.stage.gateway)?;
    let mut peer = siege.join().await?;
    // The user leaves before the answer.
    let user = siege.ask();
    let (stream, _) = opened(&mut peer).await?;
    user.abort();
    assert_eq!(reset(&mut peer, stream).await?, ResetCode::Cancelled);
    let err = || Box::new(OpenErr::new(OpenErrClass::Refused, "too late"));
    peer.send_all(&[ToGateway::OpenOk(stream, OpenOk::default()), ToGateway::OpenErr(stream, err())]).await?;
    // Two answers, and the other way round.
    let (mut user, stream) = siege.stream(&mut peer).await?;
    peer.send_all(&[ToGateway::OpenOk(stream, OpenOk::default()), ToGateway::OpenErr(stream, err())]).await?;
    peer.send(&on(stream, data(3))).await?;
    user.read_exact(&mut [0; 3]).await?;
    let user = siege.ask();
    let (stream, _) = opened(&mut peer).await?;
    peer.send_all(&[ToGateway::OpenErr(stream, err()), ToGateway::OpenOk(stream, OpenOk::default())]).await?;
    let (head, _) = user.await??;
    assert!(head.starts_with("HTTP/1.1 502 "), "{head}");
    is_answered(&mut peer).await?;
    siege.over(&cost, 8).await
}

#[tokio::test(flavor = "multi_thread")]
async fn m14_bytes_before_the_answer_end_the_tunnel() -> Result {
    let siege = Siege::start().await?;
    let cost = Cost::begin(&siege.stage.gateway)?;
    for frame in [data(1), StreamFrame::Window(1), StreamFrame::Fin] {
        let mut peer = siege.join().await?;
        let _user = siege.ask();
        let (stream, _) = opened(&mut peer).await?;
        peer.send(&on(stream, frame)).await?;
        assert_told(&peer.end::<ToClient>().await?, GoAwayCode::Protocol, "before the answer");
    }
    siege.over(&cost, 8).await
}

#[tokio::test(flavor = "multi_thread")]
async fn m15_streams_reset_with_unread_data_leave_the_tunnel_its_speed() -> Result {
    let siege = Siege::start().await?;
    let mut peer = siege.join().await?;
    let cost = Cost::begin(&siege.stage.gateway)?;
    for _ in 0..500 {
        let (user, stream) = siege.stream(&mut peer).await?;
        peer.send(&on(stream, data(65_536))).await?;
        drop(user);
        // Once the gateway knows that the user is gone, or at the next byte for them.
        peer.send(&on(stream, StreamFrame::Reset(ResetCode::Internal))).await?;
    }
    let (mut user, stream) = siege.stream(&mut peer).await?;
    let begun = Instant::now();
    let reader = tokio::spawn(async move {
        let mut bytes = vec![0; 16 << 20];
        user.read_exact(&mut bytes).await.map(|_| ())
    });
    let mut credit = START_WINDOW as usize;
    let mut left = 16 << 20;
    while left > 0 {
        let now = left.min(credit).min(65_536);
        if now > 0 {
            peer.send(&on(stream, data(now))).await?;
            (credit, left) = (credit - now, left - now);
        } else if let ToClient::Stream(_, StreamFrame::Window(more)) = peer.next().await? {
            credit += more as usize;
        }
    }
    reader.await??;
    println!("16 MiB in {:?} behind 500 resets", begun.elapsed());
    siege.over(&cost, 32).await
}

#[tokio::test(flavor = "multi_thread")]
async fn m16_a_go_away_may_be_repeated_and_not_be_taken_back() -> Result {
    let siege = Siege::start().await?;
    let cost = Cost::begin(&siege.stage.gateway)?;
    let go_away = |last| ToGateway::GoAway(Box::new(GoAway::new(GoAwayCode::Shutdown, last, "leaving")));
    let mut peer = siege.join().await?;
    let (mut user, stream) = siege.stream(&mut peer).await?;
    peer.send_all(&[go_away(5), go_away(5), go_away(4)]).await?;
    // What lives goes on.
    peer.send(&on(stream, data(3))).await?;
    user.read_exact(&mut [0; 3]).await?;
    let (head, _) = siege.ask().await??;
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    peer.send(&go_away(7)).await?;
    assert_told(&peer.end::<ToClient>().await?, GoAwayCode::Protocol, "a go-away taken back");
    siege.over(&cost, 8).await
}

#[tokio::test(flavor = "multi_thread")]
async fn i6_floods_of_pings_and_of_what_means_nothing_end_the_tunnel() -> Result {
    let siege = Siege::start().await?;
    let cost = Cost::begin(&siege.stage.gateway)?;
    let floods = [
        ("pings", frame(9, 0, &[0; 8])),
        ("pongs nobody asked for", frame(10, 0, &[9; 8])),
        ("go-aways", frame(11, 0, &[1, 0, 0, 0, 0])),
    ];
    for (what, bytes) in floods {
        for deaf in [false, true] {
            let peer = siege.join().await?;
            let bytes = Ws::new(Ws::BINARY, &bytes.repeat(1_000)).encode(true);
            let end = if deaf {
                peer.flood_deaf::<ToClient>(&bytes, 100).await?
            } else {
                peer.flood::<ToClient>(&bytes, 100).await?
            };
            assert_told(&end, GoAwayCode::Excess, what);
        }
    }
    siege.over(&cost, 16).await
}

#[tokio::test(flavor = "multi_thread")]
async fn i6_a_hundred_empty_data_frames_are_enough() -> Result {
    let siege = Siege::start().await?;
    let cost = Cost::begin(&siege.stage.gateway)?;
    let mut peer = siege.join().await?;
    let (_user, stream) = siege.stream(&mut peer).await?;
    let bytes = Ws::new(Ws::BINARY, &frame(4, stream.get(), b"").repeat(1_000)).encode(true);
    assert_told(&peer.flood::<ToClient>(&bytes, 100).await?, GoAwayCode::Excess, "empty data");
    siege.over(&cost, 8).await
}

// === W: WebSocket and the login ===

#[tokio::test(flavor = "multi_thread")]
async fn w2_w3_w6_what_breaks_rfc_6455_ends_the_tunnel_with_its_code() -> Result {
    let siege = Siege::start().await?;
    let cost = Cost::begin(&siege.stage.gateway)?;
    let ping = frame(9, 0, &[0; 8]);
    let message = Ws::new(Ws::BINARY, &ping);
    let cases: [(&str, Ws<'_>, u16); 9] = [
        ("w2: not masked", message.masked(false), 1002),
        ("w6: RSV1, which only compression may set", message.with_rsv(4), 1002),
        ("RSV3", message.with_rsv(1), 1002),
        ("an opcode nobody knows", Ws { opcode: 3, ..message }, 1002),
        ("a control opcode nobody knows", Ws { opcode: 11, ..message }, 1002),
        ("a fragmented ping", Ws::new(Ws::PING, b"x").unfinished(), 1002),
        ("a ping too long", Ws::new(Ws::PING, &[0; 126]), 1002),
        ("a continuation of nothing", Ws::new(Ws::CONTINUATION, b"x"), 1002),
        ("w3: a length of 2^63", message.claiming(1 << 63), 1009),
    ];
    for (what, bytes, code) in cases {
        let mut peer = siege.join().await?;
        peer.ws(bytes).await?;
        let end = peer.end::<ToClient>().await?;
        assert_eq!(end.close_code(), Some(code), "{what}: {end:?}");
    }
    siege.over(&cost, 8).await
}

#[tokio::test(flavor = "multi_thread")]
async fn w3_claimed_lengths_are_refused_before_anything_is_allocated() -> Result {
    let siege = Siege::start().await?;
    let gateway = siege.gateway()?;
    // So that what TLS and the first peers need is there already.
    drop(siege.join().await?);
    for claim in [1 << 63, (1 << 63) - 1, 1 << 40, 131_073] {
        for logged_in in [false, true] {
            let mut peer =
                if logged_in { siege.join().await? } else { client::upgrade(gateway, &MALLORY).await? };
            let cost = Cost::begin(&siege.stage.gateway)?;
            peer.ws(Ws::new(Ws::BINARY, b"the beginning").claiming(claim)).await?;
            let end = peer.end::<ToClient>().await?;
            assert!(matches!(end.close_code(), Some(1002 | 1009)), "{claim}: {end:?}");
            let grown = cost.grown_kib(&siege.stage.gateway)?;
            assert!(grown <= 1024, "{claim}: {grown} KiB");
        }
    }
    let cost = Cost::begin(&siege.stage.gateway)?;
    siege.over(&cost, 8).await
}

#[tokio::test(flavor = "multi_thread")]
async fn w4_floods_of_fragments_end_in_bounded_time_and_memory() -> Result {
    let siege = Siege::start().await?;
    let gateway = siege.gateway()?;
    drop(siege.join().await?);
    for payload in [&b""[..], b"x"] {
        for logged_in in [false, true] {
            let mut peer =
                if logged_in { siege.join().await? } else { client::upgrade(gateway, &MALLORY).await? };
            let cost = Cost::begin(&siege.stage.gateway)?;
            peer.ws(Ws::new(Ws::BINARY, payload).unfinished()).await?;
            let chunk = Ws::new(Ws::CONTINUATION, payload).unfinished().encode(true).repeat(1_000);
            let end = peer.flood::<ToClient>(&chunk, 1_000).await?;
            assert!(matches!(end.close_code(), Some(1008 | 1009) | None), "{end:?}");
            let (grown, cpu) = (cost.grown_kib(&siege.stage.gateway)?, cost.cpu(&siege.stage.gateway)?);
            assert!(grown <= 4096, "{grown} KiB");
            // A debug build beside an honest user.
            assert!(cpu < Duration::from_secs(3), "{cpu:?}");
        }
    }
    let cost = Cost::begin(&siege.stage.gateway)?;
    siege.over(&cost, 8).await
}

#[tokio::test(flavor = "multi_thread")]
async fn w5_a_flood_of_websocket_pings_ends_the_tunnel_though_nobody_reads_the_pongs() -> Result {
    let siege = Siege::start().await?;
    drop(siege.join().await?);
    let mut floods = 0;
    for deaf in [true, false] {
        for opcode in [Ws::PING, Ws::PONG] {
            let peer = siege.join().await?;
            let cost = Cost::begin(&siege.stage.gateway)?;
            let chunk = Ws::new(opcode, &[b'p'; 125]).encode(true).repeat(100);
            let end = if deaf {
                peer.flood_deaf::<ToClient>(&chunk, 1_000).await?
            } else {
                peer.flood::<ToClient>(&chunk, 1_000).await?
            };
            // What is still unread of the flood makes the kernel reset the connection, which may overtake the close
            // frame; the gateway's log has the reason in any case.
            assert!(matches!(end.close_code(), None | Some(1008)), "{end:?}");
            floods += 1;
            until("the reason in the gateway's log", async || {
                let told = |line: &&String| line.contains("too many WebSocket pings");
                Ok(siege.stage.gateway.lines().iter().filter(told).count() == floods)
            })
            .await?;
            let grown = cost.grown_kib(&siege.stage.gateway)?;
            assert!(grown <= 1024, "{grown} KiB");
        }
    }
    let cost = Cost::begin(&siege.stage.gateway)?;
    siege.over(&cost, 8).await
}

#[tokio::test(flavor = "multi_thread")]
async fn w6_compression_is_never_agreed_to() -> Result {
    let siege = Siege::start().await?;
    let offer = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n";
    let (head, _io) = client::ask(siege.gateway()?, &(MALLORY.request() + offer)).await?;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert!(!head.to_lowercase().contains("extensions"), "{head}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn text_messages_are_told_1003() -> Result {
    let siege = Siege::start().await?;
    let cost = Cost::begin(&siege.stage.gateway)?;
    for text in [&b"{\"hello\":1}"[..], b"\xff\xfe"] {
        let mut peer = siege.join().await?;
        peer.ws(Ws::new(Ws::TEXT, text)).await?;
        let end = peer.end::<ToClient>().await?;
        assert_eq!(end.close_code(), Some(1003), "{end:?}");
    }
    siege.over(&cost, 8).await
}

#[tokio::test(flavor = "multi_thread")]
async fn w7_each_wrong_request_has_its_answer() -> Result {
    let siege = Siege::start().await?;
    let gateway = siege.gateway()?;
    let cost = Cost::begin(&siege.stage.gateway)?;
    let request = MALLORY.request() + "\r\n";
    let cases = [
        ("a bad key", request.replace("dGhlIHNhbXBsZSBub25jZQ==", "short"), "400"),
        ("no key", request.replace("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", ""), "400"),
        ("version 12", request.replace("Version: 13", "Version: 12"), "426"),
        ("another path", request.replace("/ws", "/"), "404"),
        ("a foreign origin", request.replace("Host:", "Origin: https://evil.example\r\nHost:"), "403"),
        ("another protocol", request.replace("anyproxy.v1", "chat"), "400"),
        ("no upgrade", request.replace("Upgrade: websocket\r\n", ""), "426"),
        ("a body", request.replace("GET", "POST"), "405"),
        ("a head of 1 MiB", request.replace("Host:", &format!("X: {}\r\nHost:", "x".repeat(1 << 20))), "431"),
        ("two hundred headers", request.replace("Host:", &("X: y\r\n".repeat(200) + "Host:")), "431"),
        ("another's group", request.replace("Group: hostile", "Group: default"), "403"),
        ("p8: a user's login", Account { user: "victim", ..MALLORY }.request() + "\r\n", "401"),
    ];
    for (what, request, status) in cases {
        let cost = Cost::begin(&siege.stage.gateway)?;
        let (head, _) = client::ask(gateway, &request).await.map_err(|error| format!("{what}: {error}"))?;
        assert_eq!(head.split(' ').nth(1), Some(status), "{what}: {head}");
        if status == "426" {
            assert!(head.to_lowercase().contains("sec-websocket-version: 13"), "{head}");
        }
        assert!(cost.cpu(&siege.stage.gateway)? < Duration::from_secs(1), "{what}");
    }
    siege.over(&cost, 8).await
}

#[tokio::test(flavor = "multi_thread")]
async fn w8_a_crowd_that_never_logs_in_goes_and_a_known_client_comes_in_all_the_same() -> Result {
    let siege = Siege::start().await?;
    let gateway = siege.gateway()?;
    let cost = Cost::begin(&siege.stage.gateway)?;
    let begun = Instant::now();
    // Who says nothing, who stops within TLS, who sends a byte of it now and then, and who stops within the request.
    let mut crowd = JoinSet::new();
    for number in 0..1_300 {
        crowd.spawn(async move {
            let mut tcp = TcpStream::connect(gateway).await?;
            match number % 4 {
                0 => {}
                // A record that claims more than comes.
                1 => tcp.write_all(&[22, 3, 1, 2, 0, 1, 0, 1]).await?,
                2 => {
                    // One byte of a ClientHello in each record.
                    for byte in [1, 0, 1, 0, 3, 3, 7, 7, 7, 7] {
                        if tcp.write_all(&[22, 3, 1, 0, 1, byte]).await.is_err() {
                            break;
                        }
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
                _ => {
                    if number < 400
                        && let Ok(mut tls) = client::connect(gateway).await
                    {
                        tls.write_all(b"GET /ws HTTP/1.1\r\nHost: ").await?;
                        let _ = tls.read(&mut [0; 512]).await;
                        return Ok(begun.elapsed());
                    }
                }
            }
            let _ = tcp.read(&mut [0; 512]).await;
            Ok::<_, std::io::Error>(begun.elapsed())
        });
    }
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let asked = Instant::now();
    let mut peer = siege.join().await?;
    is_answered(&mut peer).await?;
    println!("a client came in after {:?}", asked.elapsed());
    assert!(asked.elapsed() < Duration::from_secs(2), "a client waited {:?}", asked.elapsed());
    let mut slowest = Duration::ZERO;
    while let Some(gone) = crowd.join_next().await {
        slowest = slowest.max(gone?.unwrap_or_default());
    }
    println!("the last of the crowd was gone after {slowest:?}");
    assert!(slowest < Duration::from_secs(14), "{slowest:?}");
    siege.over(&cost, 64).await
}

// === A, P: who may do what ===

#[tokio::test(flavor = "multi_thread")]
async fn a13_a_client_opens_nothing_and_is_nobody_else() -> Result {
    let siege = Siege::start().await?;
    let cost = Cost::begin(&siege.stage.gateway)?;
    // An open, which only gateways send: it would be a dial from the gateway's network.
    let mut peer = siege.join().await?;
    peer.message(&frame(1, 1, &[1, 0, 1, 0, 3, 0, 4, 127, 0, 0, 1, 4, 0, 2, 0, 80])).await?;
    assert_told(&peer.end::<ToClient>().await?, GoAwayCode::Protocol, "an open");

    // The honest client's name, whichever instance is claimed.
    for instance in [1, u128::MAX] {
        let mut peer = client::upgrade(siege.gateway()?, &MALLORY).await?;
        peer.send(&ToGateway::Hello(Box::new(ClientHello::new("client-1", instance)))).await?;
        assert_told(&peer.end::<ToClient>().await?, GoAwayCode::Refused, "another's name");
    }

    // Ports nobody granted.
    let mut hello = ClientHello::new("evil", 1);
    hello.ports = vec![anyproxy_mock_peer::frame::PortRequest {
        port: siege.stage.http_addr().port(),
        transport: anyproxy_mock_peer::frame::Transport::Tcp,
    }];
    let (_peer, answer) = client::join_with(siege.gateway()?, &MALLORY, hello).await?;
    assert_eq!(answer.ports[0].status, anyproxy_mock_peer::frame::PortStatus::Denied);
    siege.over(&cost, 8).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a13_a_client_s_words_are_cut_and_escaped_wherever_they_are_shown() -> Result {
    let siege = Siege::start().await?;
    let cost = Cost::begin(&siege.stage.gateway)?;
    let mut peer = siege.join().await?;
    let user = siege.ask();
    let (stream, _) = opened(&mut peer).await?;
    let words = "\r\n{\"level\":\"ERROR\"}\x1b[2J".to_owned() + &"w".repeat(230);
    peer.send(&ToGateway::OpenErr(stream, Box::new(OpenErr::new(OpenErrClass::Internal, &*words)))).await?;
    let (head, _) = user.await??;
    assert!(head.starts_with("HTTP/1.1 500 ") && !head.contains('\x1b'), "{head}");

    // 1 MiB of it.
    let _user = siege.ask();
    let (stream, _) = opened(&mut peer).await?;
    let mut long = frame(3, stream.get(), b"");
    long[1..4].copy_from_slice(&[0x10, 0, 0]);
    long.extend(vec![b'w'; 100_000]);
    peer.message(&long).await?;
    assert_told(&peer.end::<ToClient>().await?, GoAwayCode::Protocol, "1 MiB of words");

    let mut peer = siege.join().await?;
    peer.send(&ToGateway::GoAway(Box::new(GoAway::new(GoAwayCode::Internal, 0, &*words)))).await?;
    peer.ws(Ws::new(Ws::CLOSE, &[&1011_u16.to_be_bytes(), &b"\r\n\x1b[2J forged"[..]].concat())).await?;
    let _ = peer.end::<ToClient>().await?;
    for line in siege.stage.gateway.lines() {
        assert!(!line.contains('\x1b') && line.len() < 2_048, "{line}");
        assert!(!line.starts_with("{\"level\":\"ERROR\"}"), "{line}");
    }
    siege.over(&cost, 8).await
}

#[tokio::test(flavor = "multi_thread")]
async fn p9_a_login_played_again_adds_a_tunnel_and_takes_over_as_the_account_may() -> Result {
    // A recorded login is protected by TLS alone; who can play it has the password. What it then does is what its
    // account may: the same instance adds a tunnel, another takes the place of its own client, never another's.
    let siege = Siege::start().await?;
    let cost = Cost::begin(&siege.stage.gateway)?;
    let mut first = siege.join().await?;
    let mut again = siege.join().await?;
    is_answered(&mut first).await?;
    is_answered(&mut again).await?;
    let _taken = siege.join_with(ClientHello::new("evil", 2)).await?;
    for peer in [&mut first, &mut again] {
        let code = peer.wait(|frame| match frame {
            ToClient::GoAway(go_away) => Some(go_away.code),
            _ => None,
        });
        assert_eq!(code.await?, GoAwayCode::Replaced);
    }
    siege.over(&cost, 8).await
}
