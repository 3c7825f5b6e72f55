//! How opens and tunnels begin and end.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod support;

use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use anyproxy_core::{Datagrams, Outcome};
use anyproxy_tunnel::frame::{ClientHello, GatewayHello, GoAwayCode, OpenErr, OpenErrClass, OpenOk};
use anyproxy_tunnel::{
    CloseReason, Config, KEPT_RULES, Memory, OpenError, PeerError, Request, TunnelError, WebSocket, accept,
    connect,
};
use bytes::{Bytes, BytesMut};
use support::{Pair, idle_pair, next_open, pattern, spawn_echo, tcp, udp, until};
use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufWriter, DuplexStream, ReadBuf, duplex,
};
use tokio::task::JoinSet;
use tokio::time::Instant;

// === Opens ===

#[tokio::test]
async fn the_client_s_refusal_reaches_the_one_who_asked() {
    let mut pair = Pair::new(100, Config::default()).await;
    for (class, outcome) in [
        (OpenErrClass::Denied, Outcome::Denied),
        (OpenErrClass::Unresolved, Outcome::Unresolved),
        (OpenErrClass::NetworkUnreachable, Outcome::NetworkUnreachable),
        (OpenErrClass::HostUnreachable, Outcome::HostUnreachable),
        (OpenErrClass::Refused, Outcome::Refused),
        (OpenErrClass::TimedOut, Outcome::TimedOut),
        (OpenErrClass::Overloaded, Outcome::Overloaded { retry_after: Duration::from_secs(1) }),
        (OpenErrClass::Internal, Outcome::Internal),
    ] {
        let opening = tokio::spawn(pair.gateway.open(tcp()));
        pair.request().await.refuse(OpenErr::new(class, "why\nnot"));
        let error = opening.await.unwrap().unwrap_err();
        assert_eq!(Outcome::of(&error), outcome);
        assert!(!error.to_string().contains('\n'), "a peer's words stay on their line");
        assert_eq!(error.is_retryable(), class == OpenErrClass::Overloaded);
    }
    until(|| pair.gateway.streams() == 0 && pair.client.streams() == 0).await;
}

#[tokio::test]
async fn the_address_really_dialled_comes_with_the_stream() {
    let mut pair = Pair::new(100, Config::default()).await;
    let opening = tokio::spawn(pair.gateway.open(tcp()));
    let address = "192.0.2.7:80".parse().ok();
    let _far = pair.request().await.accept(OpenOk { address, ..OpenOk::default() });
    let (_near, ok) = opening.await.unwrap().unwrap();
    assert_eq!(ok.address, address);
}

#[tokio::test]
async fn a_request_dropped_without_an_answer_is_refused() {
    let mut pair = Pair::new(100, Config::default()).await;
    let opening = tokio::spawn(pair.gateway.open(tcp()));
    drop(pair.request().await);
    let error = opening.await.unwrap().unwrap_err();
    assert!(
        matches!(&error, OpenError::Refused(answer, _) if answer.class == OpenErrClass::Internal),
        "{error}"
    );
}

#[tokio::test]
async fn an_open_dropped_at_once_is_never_sent() {
    let mut pair = Pair::new(100, Config::default()).await;
    drop(pair.gateway.open(tcp()));
    let opening = tokio::spawn(pair.gateway.open(tcp()));
    let request = pair.request().await;
    assert_eq!(request.stream_ref().number, 1);
    drop(request.accept(OpenOk::default()));
    opening.await.unwrap().unwrap();
}

#[tokio::test]
async fn m14_an_open_taken_back_cancels_the_client_s_dial() {
    let mut pair = Pair::new(100, Config::default()).await;
    let opening = tokio::spawn(pair.gateway.open(tcp()));
    let mut request = pair.request().await;
    opening.abort();
    request.cancelled().await;
    until(|| pair.gateway.streams() == 0).await;
    // The answer that comes too late changes nothing.
    let mut late = request.accept(OpenOk::default());
    assert_eq!(late.read(&mut [0; 1]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    drop(late);
    until(|| pair.client.streams() == 0).await;
    pair.stream(tcp()).await;
}

#[tokio::test]
async fn m14_an_answer_that_finds_nobody_resets_the_stream() {
    let mut pair = Pair::new(100, Config::default()).await;
    // Asked, and never polled again.
    let opening = pair.gateway.open(tcp());
    let mut far = pair.request().await.accept(OpenOk::default());
    until(|| pair.client.streams() == 1).await;
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    drop(opening);
    assert_eq!(far.read(&mut [0; 1]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    drop(far);
    until(|| pair.gateway.streams() == 0 && pair.client.streams() == 0).await;
}

#[tokio::test]
async fn opens_beyond_the_limit_are_not_sent() {
    let mut config = Config::default();
    config.mux.max_unanswered = 2;
    let mut pair = Pair::new(1000, config).await;
    let first = tokio::spawn(pair.gateway.open(tcp()));
    let second = tokio::spawn(pair.gateway.open(tcp()));
    let requests = (pair.request().await, pair.request().await);
    let error = pair.gateway.open(tcp()).await.unwrap_err();
    assert!(matches!(error, OpenError::NotSent(Some(_))), "{error}");
    assert!(error.is_retryable());
    assert!(matches!(Outcome::of(&error), Outcome::Overloaded { .. }));
    drop(requests);
    assert!(first.await.unwrap().is_err() && second.await.unwrap().is_err());
    pair.stream(tcp()).await;
}

#[tokio::test]
async fn more_opens_at_once_than_the_driver_may_find_are_not_sent() {
    let mut config = Config::default();
    config.mux.max_unanswered = 10;
    let pair = Pair::new(1000, config).await;
    // No turn for the driver in between.
    let opens: Vec<_> = (0..100).map(|_| pair.gateway.open(tcp())).collect();
    let echo = spawn_echo(pair.requests);
    let mut refused = 0;
    for open in opens {
        match open.await {
            Ok(_) => {}
            Err(OpenError::NotSent(Some(_))) => refused += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(refused, 90);
    pair.gateway.close();
    echo.await.unwrap();
}

#[tokio::test]
async fn rules_come_before_the_opens_that_refer_to_them() {
    let mut pair = Pair::new(100, Config::default()).await;
    let rules = Bytes::from(pattern(100_000, 1));
    pair.gateway.send_rules(3, rules.clone());
    let opening = tokio::spawn(pair.gateway.open(tcp()));
    match pair.requests.next().await {
        Some(Request::Rules { version: 3, rules: received }) => assert!(received == rules),
        other => panic!("{other:?}"),
    }
    let _far = pair.request().await.accept(OpenOk::default());
    opening.await.unwrap().unwrap();
}

#[tokio::test]
async fn as_many_versions_of_the_rules_as_a_client_keeps_may_come_at_once() {
    let (near, far) = duplex(1 << 20);
    let ((gateway, driver), (_client, mut requests, far_driver)) =
        idle_pair(near, far, Config::default()).await;
    for version in 1..=KEPT_RULES as u32 {
        gateway.send_rules(version, Bytes::from_static(b"rules"));
    }
    let _driver = tokio::spawn(driver);
    let _far_driver = tokio::spawn(far_driver);
    for expected in 1..=KEPT_RULES as u32 {
        match requests.next().await {
            Some(Request::Rules { version, .. }) => assert_eq!(version, expected),
            other => panic!("{other:?}"),
        }
    }
}

// === The tunnel is lost ===

#[tokio::test]
async fn w11_a_cut_tunnel_resets_its_streams_and_ends_none_cleanly() {
    let (near, far) = duplex(1000);
    let (cut, near) = Cut::new(near);
    let mut pair = Pair::over(near, far, Config::default()).await;
    let (mut near_end, mut far_end) = pair.stream(tcp()).await;
    let opening = tokio::spawn(pair.gateway.open(tcp()));
    let mut request = pair.request().await;
    cut.send(()).unwrap();
    for end in [&mut near_end, &mut far_end] {
        assert_eq!(end.read(&mut [0; 1]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert_eq!(end.write(&[0; 1]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
    request.cancelled().await;
    let error = opening.await.unwrap().unwrap_err();
    assert!(matches!(error, OpenError::Lost) && !error.is_retryable(), "{error}");
    assert_eq!(Outcome::of(&error), Outcome::TunnelLost);
    assert_eq!(pair.gateway_driver.await.unwrap().as_str(), "lost");
    assert_eq!(pair.client_driver.await.unwrap().as_str(), "lost");
    assert_eq!(pair.gateway.closed().await.as_str(), "lost");
    assert!(pair.requests.next().await.is_none());
    // And nobody waits for it from now on.
    let error = pair.gateway.open(tcp()).await.unwrap_err();
    assert!(matches!(error, OpenError::NotSent(None)) && error.is_retryable(), "{error}");
    assert!(!pair.gateway.accepts_opens());
}

#[tokio::test]
async fn m13_a_fin_received_stays_a_clean_end_when_the_tunnel_is_lost() {
    let mut pair = Pair::new(1000, Config::default()).await;
    let (mut near, mut far) = pair.stream(tcp()).await;
    far.write_all(b"all of it").await.unwrap();
    far.shutdown().await.unwrap();
    near.read_exact(&mut [0; 3]).await.unwrap();
    pair.client_driver.abort();
    pair.gateway.closed().await;
    let mut rest = String::new();
    near.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, " of it");
}

#[tokio::test]
async fn i9_what_a_reader_has_not_read_of_a_lost_tunnel_still_counts() {
    let memory = Memory::new(64 * 1024);
    let mut config = Config::default();
    config.memory = memory.clone();
    // The client's end is in another process.
    let (near, far) = duplex(1 << 20);
    let far = tokio::spawn(connect(WebSocket::client(far), ClientHello::new("room", 1), Config::default()));
    let accepting = accept(WebSocket::server(near), config).await.unwrap();
    let (gateway, driver) = accepting.finish(GatewayHello::new(1)).unwrap();
    let driver = tokio::spawn(driver);
    let (_client, mut requests, _, mut far_driver) = far.await.unwrap().unwrap();
    let talk = async {
        let opening = tokio::spawn(gateway.open(tcp()));
        let mut far = next_open(&mut requests).await.unwrap().accept(OpenOk::default());
        let (mut near, _) = opening.await.unwrap().unwrap();
        far.write_all(&[7; 60 * 1024]).await.unwrap();
        far.shutdown().await.unwrap();
        // The first bytes are in the reader's hands already.
        near.read_exact(&mut [0; 3]).await.unwrap();
        near
    };
    let mut near = tokio::select! {
        near = talk => near,
        _ = &mut far_driver => panic!("the tunnel ended"),
    };
    // From here on the other end is silent: last words are said to nobody for a while, and nothing counts twice meanwhile.
    gateway.close();
    gateway.closed().await;
    assert!(!driver.is_finished());
    assert!((60 * 1024 - 3..61 * 1024).contains(&memory.used()), "{}", memory.used());
    // And are not worth that while memory is short, to a reader who comes to nothing.
    assert_eq!(near.write(&[]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    drop(near);
    assert_eq!(memory.used(), 0);
}

#[tokio::test]
async fn a_writer_learns_that_a_tunnel_is_lost_whose_end_was_read() {
    let mut pair = Pair::new(1000, Config::default()).await;
    let (mut near, mut far) = pair.stream(tcp()).await;
    far.write_all(b"all of it").await.unwrap();
    far.shutdown().await.unwrap();
    pair.client_driver.abort();
    pair.gateway.closed().await;
    assert_eq!(near.write(&[]).await.unwrap(), 0, "there is a clean end to come to");
    near.read_to_end(&mut Vec::new()).await.unwrap();
    assert_eq!(near.write(&[]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn an_open_that_never_left_a_lost_tunnel_may_be_tried_elsewhere() {
    let (near, far) = duplex(1000);
    let ((gateway, gateway_driver), client) = idle_pair(near, far, Config::default()).await;
    let opening = gateway.open(tcp());
    drop((gateway_driver, client));
    let error = opening.await.unwrap_err();
    assert!(matches!(error, OpenError::NotSent(None)) && error.is_retryable(), "{error}");
}

#[tokio::test]
async fn a_dropped_driver_resets_its_streams() {
    let mut pair = Pair::new(1000, Config::default()).await;
    let (mut near, mut far) = pair.stream(tcp()).await;
    pair.gateway_driver.abort();
    assert_eq!(near.read(&mut [0; 1]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert!(matches!(pair.gateway.closed().await, CloseReason::Abandoned));
    assert_eq!(far.read(&mut [0; 1]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(pair.client.closed().await.as_str(), "lost");
}

#[tokio::test(start_paused = true)]
async fn f3_a_path_that_drops_everything_is_found_within_interval_and_timeout() {
    let (near, far) = duplex(1000);
    let (mute, near) = Mute::new(near);
    let mut pair = Pair::over(near, far, Config::default()).await;
    let (mut near_end, mut far_end) = pair.stream(tcp()).await;
    mute.send(()).unwrap();
    let start = Instant::now();
    for end in [&mut near_end, &mut far_end] {
        assert_eq!(end.read(&mut [0; 1]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
    assert!(start.elapsed() <= Duration::from_secs(35), "{:?}", start.elapsed());
    assert_eq!(pair.gateway_driver.await.unwrap().as_str(), "dead");
    assert_eq!(pair.client_driver.await.unwrap().as_str(), "dead");
}

#[tokio::test(start_paused = true)]
async fn f3_a_full_path_that_drops_everything_is_found_within_interval_and_timeout() {
    let (near, far) = duplex(1000);
    let (mute, near) = Mute::new(near);
    let mut pair = Pair::over(near, far, Config::default()).await;
    let (mut near_end, mut far_end) = pair.stream(tcp()).await;
    near_end.write_all(&[0; 200_000]).await.unwrap();
    far_end.read_exact(&mut [0; 50_000]).await.unwrap();
    mute.send(()).unwrap();
    let start = Instant::now();
    assert_eq!(pair.gateway_driver.await.unwrap().as_str(), "dead");
    assert!(start.elapsed() <= Duration::from_secs(35), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn f3_a_slow_line_on_which_a_ping_waits_for_longer_than_the_timeout_is_not_dead() {
    // 144 kbit/s, and as with TLS one message waits where the driver does not see it leave.
    let (near, far, _line) = slow_line(18_000);
    let near = BufWriter::with_capacity(128 * 1024, near);
    let mut pair = Pair::over(near, far, Config::default()).await;
    let (mut near_ends, mut far_ends) = (Vec::new(), Vec::new());
    for _ in 0..16 {
        let (near_end, far_end) = pair.stream(tcp()).await;
        near_ends.push(near_end);
        far_ends.push(far_end);
    }
    for near_end in &mut near_ends {
        near_end.write_all(&[0; 128 * 1024]).await.unwrap();
    }
    // Nobody reads, so no credit comes back: for 116 seconds only answers to pings do.
    tokio::time::sleep(Duration::from_secs(110)).await;
    for mut far_end in far_ends {
        far_end.read_exact(&mut [0; 128 * 1024]).await.unwrap();
    }
    assert!(!pair.gateway_driver.is_finished() && !pair.client_driver.is_finished());
}

#[tokio::test(start_paused = true)]
async fn an_idle_tunnel_lives_on_its_pings() {
    let mut pair = Pair::new(1000, Config::default()).await;
    let (near, far) = pair.stream(tcp()).await;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(pair.gateway.rtt().is_some() && pair.client.rtt().is_some());
    assert!(!pair.gateway.is_stalled());
    drop((near, far));
    pair.stream(tcp()).await;
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_that_takes_nothing_for_seconds_is_stalled() {
    let (near, far) = duplex(1000);
    let (mute, near) = Mute::new(near);
    let mut pair = Pair::over(near, far, Config::default()).await;
    let (mut near_end, _far_end) = pair.stream(tcp()).await;
    mute.send(()).unwrap();
    near_end.write_all(&[0; 10_000]).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!pair.gateway.is_stalled());
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(pair.gateway.is_stalled());
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_that_is_full_for_minutes_and_moves_is_not_stalled() {
    let (near, far, _line) = slow_line(200_000);
    let mut pair = Pair::over(near, far, Config::default()).await;
    let (mut near_end, mut far_end) = pair.stream(tcp()).await;
    let writer = tokio::spawn(async move { while near_end.write_all(&[0; 10_000]).await.is_ok() {} });
    for second in 0..60 {
        far_end.read_exact(&mut [0; 150_000]).await.unwrap();
        assert!(!pair.gateway.is_stalled(), "after {second} s");
    }
    writer.abort();
}

#[tokio::test(start_paused = true)]
async fn a_slow_tunnel_full_of_datagrams_nobody_answers_is_not_stalled() {
    let (near, far, _line) = slow_line(50_000);
    let mut pair = Pair::over(near, far, Config::default()).await;
    let (near_end, far_end) = pair.stream(udp()).await;
    let (mut near_end, mut far_end) = (Datagrams::new(near_end), Datagrams::new(far_end));
    let mut reader = JoinSet::new();
    reader.spawn(async move {
        let mut buf = BytesMut::new();
        while far_end.recv(&mut buf).await.unwrap() {
            buf.clear();
        }
    });
    let mut dropped = 0;
    for round in 0..600 {
        for _ in 0..100 {
            let sent = poll_fn(|cx| Poll::Ready(near_end.send_now(cx, &[0; 1_000]))).await.unwrap();
            dropped += u32::from(!sent);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(!pair.gateway.is_stalled(), "after {round} tenths of a second");
    }
    assert!(dropped > 50_000, "of 60,000: it was full at all times");
}

/// A line of so many bytes a second from the first end to the second, that stands as long as the set.
fn slow_line(rate: usize) -> (DuplexStream, DuplexStream, JoinSet<()>) {
    let (near, line) = duplex(64 * 1024);
    let (exit, far) = duplex(64 * 1024);
    let (mut from_near, mut to_near) = tokio::io::split(line);
    let (mut from_far, mut to_far) = tokio::io::split(exit);
    let mut ways = JoinSet::new();
    ways.spawn(async move { drop(tokio::io::copy(&mut from_far, &mut to_near).await) });
    ways.spawn(async move {
        let mut packet = vec![0; rate / 10];
        while let Ok(length @ 1..) = from_near.read(&mut packet).await {
            to_far.write_all(&packet[..length]).await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    (near, far, ways)
}

// === The tunnel ends in order ===

#[tokio::test]
async fn a_draining_gateway_lets_the_living_finish_and_opens_no_more() {
    let mut pair = Pair::new(1000, Config::default()).await;
    let (mut near, mut far) = pair.stream(tcp()).await;
    pair.gateway.drain();
    assert!(!pair.gateway.accepts_opens());
    let error = pair.gateway.open(tcp()).await.unwrap_err();
    assert!(matches!(error, OpenError::NotSent(_)) && error.is_retryable(), "{error}");
    match pair.requests.next().await {
        Some(Request::GoAway(go_away)) => assert_eq!(go_away.code, GoAwayCode::Shutdown),
        other => panic!("{other:?}"),
    }
    near.write_all(b"still here").await.unwrap();
    near.shutdown().await.unwrap();
    let mut read = String::new();
    far.read_to_string(&mut read).await.unwrap();
    assert_eq!(read, "still here");
    assert!(!pair.gateway_driver.is_finished());
    far.shutdown().await.unwrap();
    assert_eq!(near.read(&mut [0; 1]).await.unwrap(), 0);
    assert!(matches!(pair.gateway_driver.await.unwrap(), CloseReason::Drained));
    assert!(matches!(pair.client_driver.await.unwrap(), CloseReason::Drained));
}

#[tokio::test]
async fn a_go_away_is_heard_though_the_tunnel_ends_with_it() {
    let mut pair = Pair::new(1000, Config::default()).await;
    pair.gateway.drain();
    assert!(matches!(pair.client_driver.await.unwrap(), CloseReason::Drained));
    match pair.requests.next().await {
        Some(Request::GoAway(go_away)) => assert_eq!(go_away.code, GoAwayCode::Shutdown),
        other => panic!("{other:?}"),
    }
    assert!(pair.requests.next().await.is_none());
}

#[tokio::test]
async fn m16_a_client_that_goes_away_disowns_what_it_has_not_seen() {
    let mut pair = Pair::new(1000, Config::default()).await;
    let (near, far) = pair.stream(tcp()).await;
    pair.client.drain();
    // Not yet known here, so it leaves; the client has gone away by the time it comes.
    let error = pair.gateway.open(tcp()).await.unwrap_err();
    assert!(matches!(error, OpenError::Disowned) && error.is_retryable(), "{error}");
    drop((near, far));
    assert!(matches!(pair.gateway_driver.await.unwrap(), CloseReason::Drained));
    assert!(matches!(pair.client_driver.await.unwrap(), CloseReason::Drained));
}

#[tokio::test(start_paused = true)]
async fn a_drained_tunnel_waits_until_a_slow_line_has_taken_its_last_bytes() {
    let (near, far) = duplex(1_000);
    let ((gateway, gateway_driver), (_client, mut requests, mut client_driver)) =
        idle_pair(near, far, Config::default()).await;
    let gateway_driver = tokio::spawn(gateway_driver);
    let opening = tokio::spawn(gateway.open(tcp()));
    let open = async {
        let mut far = next_open(&mut requests).await.unwrap().accept(OpenOk::default());
        let (mut near, _) = opening.await.unwrap().unwrap();
        far.shutdown().await.unwrap();
        assert_eq!(near.read(&mut [0]).await.unwrap(), 0);
        (near, far)
    };
    let (mut near, mut far) = tokio::select! {
        ends = open => ends,
        reason = &mut client_driver => panic!("{reason:?}"),
    };
    gateway.drain();
    // From here on nobody takes anything off the line, for longer than last words may take.
    near.write_all(&[7; 20_000]).await.unwrap();
    near.shutdown().await.unwrap();
    drop(near);
    tokio::time::sleep(Duration::from_secs(5)).await;
    let client_driver = tokio::spawn(client_driver);
    let mut all = Vec::new();
    far.read_to_end(&mut all).await.unwrap();
    assert_eq!(all.len(), 20_000);
    drop(far);
    assert!(matches!(gateway_driver.await.unwrap(), CloseReason::Drained));
    client_driver.await.unwrap();
}

#[tokio::test]
async fn closing_ends_the_streams_of_both_ends_now() {
    let mut pair = Pair::new(1000, Config::default()).await;
    let (mut near, mut far) = pair.stream(tcp()).await;
    pair.gateway.close();
    for end in [&mut near, &mut far] {
        assert_eq!(end.read(&mut [0; 1]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
    assert!(matches!(pair.gateway_driver.await.unwrap(), CloseReason::Closed));
    assert_eq!(pair.client_driver.await.unwrap().as_str(), "closed_by_peer");
}

#[tokio::test]
async fn the_last_handle_dropped_drains_the_tunnel() {
    let pair = Pair::new(1000, Config::default()).await;
    let second = pair.gateway.clone();
    drop(pair.gateway);
    assert!(second.accepts_opens());
    drop(second);
    assert!(matches!(pair.gateway_driver.await.unwrap(), CloseReason::Drained));
    assert!(matches!(pair.client_driver.await.unwrap(), CloseReason::Drained));
}

#[tokio::test]
async fn a_client_that_hears_no_requests_drains() {
    let mut pair = Pair::new(1000, Config::default()).await;
    let (near, far) = pair.stream(tcp()).await;
    let opening = tokio::spawn(pair.gateway.open(tcp()));
    until(|| pair.client.streams() == 2).await;
    drop(pair.requests);
    let error = opening.await.unwrap().unwrap_err();
    assert!(
        matches!(&error, OpenError::Refused(answer, _) if answer.class == OpenErrClass::Internal),
        "{error}"
    );
    until(|| !pair.gateway.accepts_opens()).await;
    drop((near, far));
    assert!(matches!(pair.client_driver.await.unwrap(), CloseReason::Drained));
}

#[tokio::test(start_paused = true)]
async fn last_words_are_given_up_when_the_peer_does_not_listen() {
    let (near, far) = duplex(1000);
    let (mute, near) = Mute::new(near);
    let pair = Pair::over(near, far, Config::default()).await;
    mute.send(()).unwrap();
    let start = Instant::now();
    pair.gateway.close();
    assert!(matches!(pair.gateway_driver.await.unwrap(), CloseReason::Closed));
    assert!(start.elapsed() <= Config::default().close_timeout);
}

// === Before the hellos ===

#[tokio::test]
async fn a_refused_client_learns_why() {
    let (near, far) = duplex(100);
    let client = tokio::spawn(connect(WebSocket::client(far), ClientHello::new("a", 1), Config::default()));
    let accepting = accept(WebSocket::server(near), Config::default()).await.unwrap();
    accepting.refuse(GoAwayCode::Refused, "no room for you").await;
    match client.await.unwrap().unwrap_err() {
        TunnelError::Refused(go_away) => {
            assert_eq!((go_away.code, go_away.reason.as_str()), (GoAwayCode::Refused, "no room for you"));
        }
        other => panic!("{other}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_without_a_hello_is_left() {
    let (near, far) = duplex(100);
    let silent = WebSocket::client(far);
    let error = accept(WebSocket::server(near), Config::default()).await.unwrap_err();
    assert!(matches!(error, TunnelError::Peer(PeerError::HelloTimeout(_))), "{error}");
    drop(silent);
    let (near, far) = duplex(100);
    let hello = ClientHello::new("a", 1);
    let error = connect(WebSocket::client(far), hello, Config::default()).await.unwrap_err();
    assert!(matches!(error, TunnelError::Peer(PeerError::HelloTimeout(_))), "{error}");
    drop(near);
}

#[tokio::test]
async fn a_hello_that_does_not_fit_is_found_before_anything_is_sent() {
    let (_near, far) = duplex(100);
    let hello = ClientHello::new("x".repeat(1000), 1);
    let error = connect(WebSocket::client(far), hello, Config::default()).await.unwrap_err();
    assert!(matches!(error, TunnelError::Invalid(_)), "{error}");
}

#[tokio::test]
async fn each_end_learns_the_other_s_hello() {
    let (near, far) = duplex(100);
    let mut hello = ClientHello::new("printer-room", 42);
    hello.software = "test/1".into();
    let client = tokio::spawn(connect(WebSocket::client(far), hello, Config::default()));
    let accepting = accept(WebSocket::server(near), Config::default()).await.unwrap();
    let said = accepting.hello();
    assert_eq!(
        (said.client_id.as_str(), said.instance, said.software.as_str()),
        ("printer-room", 42, "test/1")
    );
    let (gateway, driver) = accepting.finish(GatewayHello::new(11)).unwrap();
    let driver = tokio::spawn(driver);
    let (client, _requests, hello, _client_driver) = client.await.unwrap().unwrap();
    assert_eq!((hello.session, gateway.session(), client.session()), (11, 11, 11));
    driver.abort();
}

// === Pipes that fail ===

type Switch = tokio::sync::oneshot::Receiver<()>;

/// A pipe that is cut, both ways at once and without a word, when its switch says so.
struct Cut {
    io: Option<DuplexStream>,
    switch: Switch,
}

impl Cut {
    fn new(io: DuplexStream) -> (tokio::sync::oneshot::Sender<()>, Self) {
        let (sender, switch) = tokio::sync::oneshot::channel();
        (sender, Self { io: Some(io), switch })
    }

    fn io(&mut self, cx: &mut Context<'_>) -> io::Result<Pin<&mut DuplexStream>> {
        if self.io.is_some() && Pin::new(&mut self.switch).poll(cx) == Poll::Ready(Ok(())) {
            self.io = None;
        }
        self.io.as_mut().map(Pin::new).ok_or_else(|| ErrorKind::ConnectionReset.into())
    }
}

impl AsyncRead for Cut {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.io(cx)?.poll_read(cx, buf)
    }
}

impl AsyncWrite for Cut {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.io(cx)?.poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io(cx)?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io(cx)?.poll_shutdown(cx)
    }
}

/// A pipe that takes and gives nothing more, and says nothing about it, when its switch says so.
struct Mute {
    io: DuplexStream,
    switch: Switch,
    mute: bool,
}

impl Mute {
    fn new(io: DuplexStream) -> (tokio::sync::oneshot::Sender<()>, Self) {
        let (sender, switch) = tokio::sync::oneshot::channel();
        (sender, Self { io, switch, mute: false })
    }

    fn is_mute(&mut self) -> bool {
        self.mute |= self.switch.try_recv().is_ok();
        self.mute
    }
}

impl AsyncRead for Mute {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_mute() { Poll::Pending } else { Pin::new(&mut self.io).poll_read(cx, buf) }
    }
}

impl AsyncWrite for Mute {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.is_mute() { Poll::Pending } else { Pin::new(&mut self.io).poll_write(cx, buf) }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_mute() { Poll::Pending } else { Pin::new(&mut self.io).poll_flush(cx) }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_mute() { Poll::Pending } else { Pin::new(&mut self.io).poll_shutdown(cx) }
    }
}
