//! The carrier against peers that speak WebSocket by hand.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod support;

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use anyproxy_tunnel::frame::{
    ClientHello, Frame as _, GatewayHello, MAX_MESSAGE, OpenOk, StreamFrame, StreamId, ToGateway,
};
use anyproxy_tunnel::{
    Carrier as _, CarrierError, Config, Driver, PeerError, Tunnel, TunnelError, UpgradeError, WebSocket,
    accept, connect,
};
use bytes::{Bytes, BytesMut};
use support::{Pair, tcp};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::http::Request;

const FIN: u8 = 0x80;
const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;

/// A frame of a client whose mask is all zero, so that what is sent can be read.
fn masked(head: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = unmasked(head, payload);
    frame[1] |= 0x80;
    let at = frame.len() - payload.len();
    frame.splice(at..at, [0; 4]);
    frame
}

fn unmasked(head: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![head];
    match payload.len() {
        len @ 0..126 => frame.push(len as u8),
        len @ 126..65_536 => {
            frame.push(126);
            frame.extend_from_slice(&(len as u16).to_be_bytes());
        }
        len => {
            frame.push(127);
            frame.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(payload);
    frame
}

/// What a gateway answers to these bytes: why it has no tunnel, and the close code it says.
async fn answer_to(bytes: Vec<u8>) -> (TunnelError, u16) {
    let (near, far) = duplex(1 << 20);
    let (error, said) =
        tokio::join!(accept(WebSocket::server(near), Config::default()), converse(far, bytes));
    let at = said.iter().rposition(|byte| *byte == FIN | CLOSE).expect("a close frame");
    (error.unwrap_err(), u16::from_be_bytes([said[at + 2], said[at + 3]]))
}

async fn converse(mut io: DuplexStream, bytes: Vec<u8>) -> Vec<u8> {
    // The other end may close before it has read everything.
    let _ = io.write_all(&bytes).await;
    let mut said = Vec::new();
    io.read_to_end(&mut said).await.unwrap();
    said
}

/// A gateway's tunnel, its driver not yet spawned, and the other end of its line, on which a client has said hello.
async fn greeted(config: Config) -> (Tunnel, Driver, DuplexStream) {
    let (near, mut far) = duplex(1 << 20);
    let mut hello = BytesMut::new();
    ToGateway::Hello(Box::new(ClientHello::new("by hand", 1))).encode(&mut hello);
    far.write_all(&masked(FIN | BINARY, &hello)).await.unwrap();
    let accepting = accept(WebSocket::server(near), config).await.unwrap();
    let (tunnel, driver) = accepting.finish(GatewayHello::new(1)).unwrap();
    (tunnel, driver, far)
}

fn is_violation(error: &TunnelError, code: u16) -> bool {
    matches!(error, TunnelError::Carrier(CarrierError::Violation { code: seen, .. }) if *seen == code)
}

#[tokio::test]
async fn w2_an_unmasked_frame_to_a_gateway_is_a_violation() {
    let (error, code) = answer_to(unmasked(FIN | BINARY, b"x")).await;
    assert!(is_violation(&error, 1002), "{error:?}");
    assert_eq!(code, 1002);
}

#[tokio::test]
async fn w2_a_masked_frame_to_a_client_is_a_violation() {
    let (near, far) = duplex(1000);
    let peer = tokio::spawn(converse(near, masked(FIN | BINARY, b"x")));
    let error =
        connect(WebSocket::client(far), ClientHello::new("a", 1), Config::default()).await.unwrap_err();
    assert!(is_violation(&error, 1002), "{error:?}");
    peer.await.unwrap();
}

#[tokio::test]
async fn w3_a_claimed_length_beyond_the_limit_is_refused_before_it_is_believed() {
    for claimed in [MAX_MESSAGE as u64 + 1, 1 << 40, (1 << 63) - 1, 1 << 63, u64::MAX] {
        let mut frame = vec![FIN | BINARY, 0x80 | 127];
        frame.extend_from_slice(&claimed.to_be_bytes());
        frame.extend_from_slice(&[0; 4]);
        let (error, code) = answer_to(frame).await;
        assert!(is_violation(&error, 1009), "{error:?}");
        assert_eq!(code, 1009);
    }
}

#[tokio::test]
async fn w3_fragments_that_make_too_long_a_message_are_refused() {
    let mut bytes = masked(BINARY, &vec![0; MAX_MESSAGE]);
    bytes.extend(masked(FIN | CONTINUATION, &[0]));
    let (error, code) = answer_to(bytes).await;
    assert!(is_violation(&error, 1009), "{error:?}");
    assert_eq!(code, 1009);
}

#[tokio::test]
async fn w4_a_flood_of_fragments_ends_after_a_bounded_count() {
    for payload in [&b""[..], b"x"] {
        let mut bytes = masked(BINARY, b"");
        let fragment = masked(CONTINUATION, payload);
        (0..1_000_000).for_each(|_| bytes.extend_from_slice(&fragment));
        let (error, code) = answer_to(bytes).await;
        assert!(is_violation(&error, 1008), "{error:?}");
        assert_eq!(code, 1008);
    }
}

#[tokio::test]
async fn w5_a_flood_of_pings_ends_though_nobody_reads_the_pongs() {
    let mut bytes = Vec::new();
    (0..100_000).for_each(|_| bytes.extend(masked(FIN | PING, &[7; 125])));
    let (error, code) = answer_to(bytes).await;
    assert!(is_violation(&error, 1008), "{error:?}");
    assert_eq!(code, 1008);
}

#[tokio::test]
async fn a_few_pings_are_answered() {
    let (near, mut far) = duplex(1000);
    let accepting = tokio::spawn(accept(WebSocket::server(near), Config::default()));
    for n in 0..50 {
        far.write_all(&masked(FIN | PING, &[n])).await.unwrap();
        let mut pong = [0; 3];
        far.read_exact(&mut pong).await.unwrap();
        assert_eq!(pong, [0x8A, 1, n]);
    }
    accepting.abort();
}

#[tokio::test]
async fn w6_a_reserved_bit_is_a_violation() {
    let (error, code) = answer_to(masked(FIN | 0x40 | BINARY, b"x")).await;
    assert!(is_violation(&error, 1002), "{error:?}");
    assert_eq!(code, 1002);
}

#[tokio::test]
async fn a_text_message_is_refused_as_the_wrong_type() {
    for text in [&b"hello"[..], b"\xFF\xFE"] {
        let (error, code) = answer_to(masked(FIN | TEXT, text)).await;
        assert!(is_violation(&error, 1003), "{error:?}");
        assert_eq!(code, 1003);
    }
}

#[tokio::test]
async fn m1_a_message_without_frames_or_with_broken_ones_ends_the_tunnel() {
    for message in [&b""[..], b"\x01", b"\x7F\0\0\0\0\0\0\0", b"\x01\xFF\xFF\xFF\0\0\0\0"] {
        let (error, code) = answer_to(masked(FIN | BINARY, message)).await;
        assert!(matches!(error, TunnelError::Peer(PeerError::Malformed(_))), "{error:?}");
        assert_eq!(code, 1002);
    }
}

#[tokio::test]
async fn a_frame_before_the_hello_ends_the_tunnel() {
    let mut message = BytesMut::new();
    ToGateway::stream(StreamId::FIRST, StreamFrame::Fin).encode(&mut message);
    let (error, code) = answer_to(masked(FIN | BINARY, &message)).await;
    assert!(matches!(error, TunnelError::Peer(PeerError::HelloMissing)), "{error:?}");
    assert_eq!(code, 1002);
}

#[tokio::test]
async fn a_hello_in_fragments_is_a_hello() {
    let mut message = BytesMut::new();
    ToGateway::Hello(Box::new(ClientHello::new("in pieces", 1))).encode(&mut message);
    let (head, tail) = message.split_at(5);
    let bytes = [masked(BINARY, head), masked(CONTINUATION, b""), masked(FIN | CONTINUATION, tail)].concat();
    let (near, mut far) = duplex(1000);
    far.write_all(&bytes).await.unwrap();
    let accepting = accept(WebSocket::server(near), Config::default()).await.unwrap();
    assert_eq!(accepting.hello().client_id, "in pieces");
}

#[tokio::test]
async fn a_close_is_answered_and_its_words_are_kept() {
    let mut close = 1001_u16.to_be_bytes().to_vec();
    close.extend_from_slice(b"gone fishing");
    let (error, code) = answer_to(masked(FIN | CLOSE, &close)).await;
    match error {
        TunnelError::Carrier(CarrierError::Closed { code, reason }) => {
            assert_eq!((code, reason.as_str()), (1001, "gone fishing"));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(code, 1001);
}

#[tokio::test]
async fn a_close_is_answered_by_an_end_that_has_something_to_say() {
    let (tunnel, driver, mut far) = greeted(Config::default()).await;
    let _opening = tunnel.open(tcp());
    far.write_all(&masked(FIN | CLOSE, &1001_u16.to_be_bytes())).await.unwrap();
    let (_, said) = tokio::join!(driver, converse(far, Vec::new()));
    assert!(said.ends_with(&unmasked(FIN | CLOSE, &1001_u16.to_be_bytes())), "{said:?}");
}

#[tokio::test]
async fn i5_a_connection_that_ends_without_a_close_is_lost() {
    let (near, far) = duplex(1000);
    drop(far);
    let error = accept(WebSocket::server(near), Config::default()).await.unwrap_err();
    assert!(matches!(error, TunnelError::Carrier(CarrierError::Io(_))), "{error:?}");
}

#[tokio::test]
async fn the_longest_message_passes() {
    let (near, far) = duplex(1000);
    let (mut sender, mut receiver) = (WebSocket::client(far), WebSocket::server(near));
    let sent = Bytes::from(support::pattern(MAX_MESSAGE, 1));
    let mut message = vec![sent.slice(..5), sent.slice(5..70_000), sent.slice(70_000..)];
    let sending = tokio::spawn(async move {
        poll_fn(|cx| sender.poll_ready(cx)).await.unwrap();
        sender.start_send(&mut message).unwrap();
        assert!(message.is_empty());
        poll_fn(|cx| sender.poll_flush(cx)).await.unwrap();
        sender
    });
    let received = poll_fn(|cx| receiver.poll_recv(cx)).await.unwrap().unwrap();
    assert!(received == sent);
    sending.await.unwrap();
}

// === The upgrade ===

async fn upgrade(
    answer: impl FnOnce(&str) -> String,
) -> (Result<WebSocket<DuplexStream>, UpgradeError>, String) {
    let (mut near, far) = duplex(4096);
    let request = Request::get("wss://user:secret@gateway.example:8443/ws")
        .header("authorization", "Basic Zm9vOmJhcg==")
        .header("sec-websocket-protocol", "anyproxy.1")
        .body(())
        .unwrap();
    let server = async {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(near.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        let key = head.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Key: ")).unwrap().to_owned();
        near.write_all(answer(&derive_accept_key(key.as_bytes())).as_bytes()).await.unwrap();
        (head, near)
    };
    let (result, (head, _near)) = tokio::join!(WebSocket::connect(far, request), server);
    (result, head)
}

fn switching(accept: &str, more: &str) -> String {
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\n{more}\r\n"
    )
}

#[tokio::test]
async fn an_upgrade_asks_for_what_rfc_6455_wants() {
    let (result, head) = upgrade(|accept| switching(accept, "Sec-WebSocket-Protocol: anyproxy.1\r\n")).await;
    result.unwrap();
    assert!(head.starts_with("GET /ws HTTP/1.1\r\n"), "{head}");
    let lower = head.to_ascii_lowercase();
    for line in [
        "host: gateway.example:8443\r\n",
        "connection: upgrade\r\n",
        "upgrade: websocket\r\n",
        "sec-websocket-version: 13\r\n",
        "sec-websocket-protocol: anyproxy.1\r\n",
        "authorization: basic zm9vomjhcg==\r\n",
    ] {
        assert!(lower.contains(line), "{line} in {head}");
    }
    assert!(!lower.contains("secret") && !lower.contains("sec-websocket-extensions"), "{head}");
}

#[tokio::test]
async fn wrong_credentials_are_told_from_other_refusals() {
    let refuse =
        |status: &'static str| move |_: &str| format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
    assert!(matches!(upgrade(refuse("401 Unauthorized")).await.0, Err(UpgradeError::Unauthorized)));
    assert!(matches!(upgrade(refuse("403 Forbidden")).await.0, Err(UpgradeError::Forbidden)));
    for (answer, expected) in [
        ("503 Service Unavailable", (503, None)),
        ("429 Too Many Requests\r\nretry-after: 15", (429, Some(Duration::from_secs(15)))),
        ("429 Too Many Requests\r\nretry-after: Fri, 27 Nov 2026 21:00:00 GMT", (429, None)),
    ] {
        match upgrade(refuse(answer)).await.0 {
            Err(UpgradeError::Status { status, retry_after }) => {
                assert_eq!((status.as_u16(), retry_after), expected);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn an_answer_that_is_not_what_was_asked_for_is_refused() {
    let with = |more: &'static str| move |accept: &str| switching(accept, more);
    for answer in [
        with(""),
        with("Sec-WebSocket-Protocol: anyproxy.2\r\n"),
        with("Sec-WebSocket-Protocol: anyproxy.1\r\nSec-WebSocket-Extensions: permessage-deflate\r\n"),
    ] {
        assert!(matches!(upgrade(answer).await.0, Err(UpgradeError::Protocol(_))));
    }
    let wrong_key =
        |_: &str| switching("AAAAAAAAAAAAAAAAAAAAAAAAAAA=", "Sec-WebSocket-Protocol: anyproxy.1\r\n");
    assert!(matches!(upgrade(wrong_key).await.0, Err(UpgradeError::Protocol(_))));
}

// === Closing ===

#[tokio::test]
async fn the_reason_of_a_close_is_cut_to_what_a_frame_holds() {
    let (near, far) = duplex(1000);
    let mut server = WebSocket::server(near);
    let reason = "ü".repeat(100);
    let closing = tokio::spawn(async move { poll_fn(|cx| server.poll_close(cx, 1008, &reason)).await });
    let mut client = WebSocket::client(far);
    match poll_fn(|cx| client.poll_recv(cx)).await {
        Some(Err(CarrierError::Closed { code: 1008, reason })) => assert_eq!(reason, "ü".repeat(61)),
        other => panic!("{other:?}"),
    }
    poll_fn(|cx| client.poll_close(cx, 1000, "")).await.unwrap();
    closing.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_peer_error_tells_both_ends_what_it_was() {
    let mut config = Config::default();
    config.mux.ping_interval = Duration::from_secs(3600);
    let (tunnel, driver, far) = greeted(config).await;
    let driver = tokio::spawn(driver);
    let mut message = BytesMut::new();
    ToGateway::stream(StreamId::FIRST, StreamFrame::Fin).encode(&mut message);
    let said = converse(far, masked(FIN | BINARY, &message)).await;
    let reason = driver.await.unwrap();
    assert!(matches!(reason, anyproxy_tunnel::CloseReason::Peer(PeerError::UnknownStream(_))), "{reason:?}");
    assert_eq!(tunnel.closed().await.as_str(), "violation");
    let said = String::from_utf8_lossy(&said);
    assert_eq!(said.matches("never opened").count(), 2, "in the go-away and in the close frame: {said}");
}

#[tokio::test]
async fn a_turn_takes_in_some_thousand_small_frames_and_then_others_have_theirs() {
    let (tunnel, mut driver, mut far) = greeted(Config::default()).await;
    let mut message = BytesMut::new();
    let opening = tokio::spawn(tunnel.open(tcp()));
    tokio::task::yield_now().await;
    let mut turn = async || poll_fn(|cx| Poll::Ready(Pin::new(&mut driver).poll(cx).is_pending())).await;
    assert!(turn().await, "the open leaves");
    ToGateway::OpenOk(StreamId::FIRST, OpenOk::default()).encode(&mut message);
    far.write_all(&masked(FIN | BINARY, &message)).await.unwrap();
    for _ in 0..4 {
        message.clear();
        while message.len() < MAX_MESSAGE - 9 {
            ToGateway::stream(StreamId::FIRST, StreamFrame::Data(Bytes::from_static(b"x")))
                .encode(&mut message);
        }
        far.write_all(&masked(FIN | BINARY, &message)).await.unwrap();
    }
    while !opening.is_finished() {
        assert!(turn().await);
        tokio::task::yield_now().await;
    }
    let (mut stream, _) = opening.await.unwrap().unwrap();
    // With the answer came one message of frames, and no more.
    let mut read = vec![0; 4 * MAX_MESSAGE];
    let length = stream.read(&mut read).await.unwrap();
    assert!((1..=MAX_MESSAGE / 9).contains(&length), "{length} in one turn");
}

#[tokio::test]
async fn one_tunnel_s_violation_leaves_another_alone() {
    let mut pair = Pair::new(1000, Config::default()).await;
    let (error, _) = answer_to(masked(FIN | BINARY, b"\x01")).await;
    assert!(matches!(error, TunnelError::Peer(_)));
    pair.stream(tcp()).await;
}
