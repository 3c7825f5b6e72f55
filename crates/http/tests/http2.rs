//! HTTP/2 from outside: an h2 client as the user, targets played by the test.

#![allow(clippy::unwrap_used, reason = "tests")]

mod play;

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use anyproxy_core::Outcome;
use anyproxy_http::{Config, HttpProxy, ProxyName};
use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::ext::Protocol;
use h2::{Reason, RecvStream, SendStream};
use http::{Method, Request, StatusCode, Uri};
use play::{Stage, Target, source};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinHandle;

#[tokio::test]
async fn a_request_is_sent_on_in_http_1_1() {
    let stage = Stage::open();
    let mut user = connect(&stage).await;
    let (response, _) = user.ask(get("http://t.lan/x?y"), true);
    let mut target = stage.target().await;
    assert_eq!(target.name, "t.lan:80");
    let head = target.head().await;
    assert!(
        head.starts_with("GET /x?y HTTP/1.1\r\nhost: t.lan\r\n") && head.contains("via: 2.0 gate\r\n"),
        "{head}"
    );
    target.say("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nKeep-Alive: x\r\nX-Is: so\r\n\r\nhello").await;
    let response = response.await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["x-is"], "so");
    assert!(!response.headers().contains_key("keep-alive"));
    assert_eq!(read(response.into_body()).await.unwrap(), "hello");
}

#[tokio::test]
async fn the_path_of_no_resource_is_for_options_alone() {
    let stage = Stage::open();
    let mut user = connect(&stage).await;
    let whole = |mut request: Request<()>| {
        let uri = Uri::builder().scheme("http").authority("t.lan").path_and_query("*").build().unwrap();
        *request.uri_mut() = uri;
        request
    };
    for request in [get("http://t.lan/"), extended("websocket", "http://t.lan/")] {
        let refused = tokio::select! {
            refused = user.ask(whole(request), true).0 => refused.unwrap(),
            head = async { stage.target().await.head().await } => panic!("{head}"),
        };
        assert_eq!(refused.status(), StatusCode::BAD_REQUEST);
    }
    let _asked = user.ask(whole(request(Method::OPTIONS, "http://t.lan/")), true);
    let head = stage.target().await.head().await;
    assert!(head.starts_with("OPTIONS * HTTP/1.1\r\nhost: t.lan\r\n"), "{head}");
}

#[tokio::test]
async fn a_split_cookie_is_joined_and_a_date_is_added() {
    let stage = Stage::open();
    let mut user = connect(&stage).await;
    let mut request = get("http://t/");
    // More crumbs than there may be fields; they are one.
    let crumbs: Vec<String> = (0..150).map(|crumb| format!("a{crumb}=1")).collect();
    for crumb in &crumbs {
        request.headers_mut().append("cookie", crumb.parse().unwrap());
    }
    let (response, _) = user.ask(request, true);
    let dialled = tokio::time::timeout(Duration::from_secs(5), stage.target()).await;
    let mut target = dialled.expect("a dial");
    let head = target.head().await;
    assert!(head.contains(&format!("cookie: {}\r\n", crumbs.join("; "))), "{head}");
    target.say("HTTP/1.1 204 No Content\r\n\r\n").await;
    assert!(response.await.unwrap().headers()["date"].to_str().unwrap().ends_with(" GMT"));
}

#[tokio::test]
async fn many_requests_travel_at_once_and_each_is_a_dial() {
    let stage = Stage::keeping();
    let mut user = connect(&stage).await;
    let responses: Vec<_> = (0..8).map(|_| user.ask(get("http://t.lan/"), true).0).collect();
    let mut targets = Vec::new();
    for _ in 0..8 {
        let mut target = stage.target().await;
        target.head().await;
        targets.push(target);
    }
    for (turn, target) in targets.iter_mut().enumerate().rev() {
        target.say(&format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{turn}")).await;
    }
    let mut seen = Vec::new();
    for response in responses {
        seen.push(read(response.await.unwrap().into_body()).await.unwrap());
    }
    seen.sort();
    assert_eq!(seen.concat(), "01234567");
    assert_eq!(stage.dials(), 8);
}

#[tokio::test(start_paused = true)]
async fn a_kept_stream_is_closed_in_time_though_its_user_has_a_tunnel() {
    let stage = Stage::keeping();
    let mut user = connect(&stage).await;
    let _tunnel = tunnel(&stage, &mut user).await;
    // With requests behind it, which do not use it, and without.
    for others in [0, 2] {
        let (response, _) = user.ask(get("http://t/"), true);
        let mut target = stage.target().await;
        target.head().await;
        let began = tokio::time::Instant::now();
        target.say("HTTP/1.1 204 No Content\r\n\r\n").await;
        response.await.unwrap();
        for _ in 0..others {
            tokio::time::sleep(Duration::from_secs(8)).await;
            let refused = user.ask(get("https://t/"), true).0.await.unwrap();
            assert_eq!(refused.status(), StatusCode::NOT_IMPLEMENTED);
        }
        assert_eq!(target.rest().await, "");
        assert!((10..=20).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    }
}

#[tokio::test]
async fn a_body_of_unknown_length_goes_out_in_chunks_with_its_trailers() {
    let stage = Stage::open();
    let mut user = connect(&stage).await;
    let (response, mut body) = user.ask(request(Method::POST, "http://t/"), false);
    body.send_data("hello".into(), false).unwrap();
    let trailers = [("x-sum", "1"), ("content-length", "9")];
    let trailers = trailers.map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
    body.send_trailers(trailers.into_iter().collect()).unwrap();
    let mut target = stage.target().await;
    assert!(target.head().await.contains("transfer-encoding: chunked\r\n"));
    let expected = "5\r\nhello\r\n0\r\nx-sum: 1\r\n\r\n";
    assert_eq!(target.take(expected.len()).await, expected);
    target.say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-End: yes\r\nHost: h\r\n\r\n").await;
    let mut body = response.await.unwrap().into_body();
    assert_eq!(body.data().await.unwrap().unwrap(), "ok");
    assert!(body.data().await.is_none());
    let trailers = body.trailers().await.unwrap().unwrap();
    assert_eq!(trailers["x-end"], "yes");
    assert!(!trailers.contains_key("host"));
}

#[tokio::test]
async fn a_target_that_answers_while_it_reads_on_gets_the_rest() {
    for told in ["ok", ""] {
        let stage = Stage::open();
        let mut user = connect(&stage).await;
        let (response, mut body) = user.ask(request(Method::POST, "http://t/"), false);
        body.send_data("hel".into(), false).unwrap();
        let mut target = stage.target().await;
        target.head().await;
        assert_eq!(target.take(8).await, "3\r\nhel\r\n");
        target.say(&format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{told}", told.len())).await;
        let (response, sent) = tokio::join!(response, async {
            // Until the answer has had its chance to end the exchange.
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            body.send_data("lo".into(), true)
        });
        sent.unwrap();
        assert_eq!(target.take(12).await, "2\r\nlo\r\n0\r\n\r\n");
        assert_eq!(read(response.unwrap().into_body()).await.unwrap(), told);
    }
}

#[tokio::test]
async fn connect_carries_bytes_and_keeps_half_closes() {
    let stage = Stage::open();
    let mut user = connect(&stage).await;
    let (mut send, mut receive, mut target) = tunnel(&stage, &mut user).await;
    send.send_data("ping".into(), false).unwrap();
    assert_eq!(target.take(4).await, "ping");
    target.say("pong").await;
    assert_eq!(receive.data().await.unwrap().unwrap(), "pong");
    send.send_data(Bytes::new(), true).unwrap();
    assert_eq!(target.rest().await, "");
    target.say("more").await;
    assert_eq!(receive.data().await.unwrap().unwrap(), "more");
    drop(target);
    assert_eq!(read(receive).await, Ok(String::new()), "an end is an end");
}

/// A tunnel's target, whose user said this, and the end of it or not, and was gone: more than goes to the target at once,
/// so that the proxy finds it and the connection's end together.
async fn left_behind(stage: &Stage, said: &str, finished: bool) -> Target {
    let (near, far) = tokio::io::duplex(1024 * 1024);
    serve(stage, far);
    let (mut requests, connection) = h2::client::handshake(near).await.unwrap();
    let mut connection = Box::pin(connection);
    let (response, mut send) = requests.send_request(request(Method::CONNECT, "t:443"), false).unwrap();
    let target = driven(&mut connection, stage.target()).await;
    driven(&mut connection, response).await.unwrap();
    send.send_data(said.to_owned().into(), finished).unwrap();
    assert!(poll_once(&mut connection).await.is_pending());
    target
}

#[tokio::test(start_paused = true)]
async fn i5_what_a_tunnel_s_user_had_finished_arrives_though_their_connection_ends() {
    let said = "x".repeat(200_000);
    for seconds in [0, 60] {
        let mut target = left_behind(&Stage::open(), &said, true).await;
        // However long the target takes, its stream is given all; and within a moment, an end that is no reset.
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        assert!(target.rest().await == said);
        assert_eq!(target.io.write(&[0]).await.is_ok(), seconds == 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_target_that_takes_nothing_does_not_keep_what_a_user_left_for_ever() {
    let mut target = left_behind(&Stage::open(), &"x".repeat(200_000), false).await;
    tokio::time::sleep(Duration::from_secs(660)).await;
    let taken = target.rest().await.len();
    assert!(taken < 200_000, "{taken}: no more than was on its way");
}

#[tokio::test]
async fn i5_a_cancelled_tunnel_is_no_clean_end() {
    let stage = Stage::open();
    let mut user = connect(&stage).await;
    let (mut send, _receive, mut target) = tunnel(&stage, &mut user).await;
    send.send_reset(Reason::CANCEL);
    // In memory a reset is a drop: both ways are gone at once, which a half-close never does.
    assert_eq!(target.rest().await, "");
    assert!(target.io.write_all(b"x").await.is_err() || target.io.flush().await.is_err());
}

#[tokio::test]
async fn i8_a_tunnel_cancelled_behind_its_own_end_is_given_up() {
    let stage = Stage::open();
    let mut user = connect(&stage).await;
    let (mut send, _receive, mut target) = tunnel(&stage, &mut user).await;
    send.send_data(Bytes::new(), true).unwrap();
    assert_eq!(target.rest().await, "");
    send.send_reset(Reason::CANCEL);
    // The target says nothing; in memory its end is seen by writing alone.
    let given_up = async {
        while target.io.write(&[]).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), given_up).await.expect("nobody listens");
}

#[tokio::test(start_paused = true)]
async fn i10_a_response_nobody_takes_is_given_up_though_its_connection_speaks() {
    let stage = Stage::open();
    let mut user = connect(&stage).await;
    let mut pings = user.pings.take().unwrap();
    let (response, _) = user.ask(get("http://t/"), true);
    let mut target = stage.target().await;
    target.head().await;
    target.say("HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n").await;
    let mut body = response.await.unwrap().into_body();
    let full = async { while target.io.write(&[0; 10_000]).await.is_ok() {} };
    assert!(tokio::time::timeout(Duration::from_secs(1), full).await.is_err(), "nobody reads");
    // Nothing moves on the stream for an hour, and on its connection for half of that.
    for minutes in [30, 29, 2] {
        assert!(target.io.write(&[]).await.is_ok());
        tokio::time::sleep(Duration::from_secs(minutes * 60)).await;
        pings.ping(h2::Ping::opaque()).await.unwrap();
    }
    while let Some(Ok(_)) = body.data().await {}
    assert!(target.io.write(&[0; 10_000]).await.is_err(), "the target is left");
    let again = user.ask(get("http://t/"), true);
    stage.target().await;
    drop(again);
}

#[tokio::test(start_paused = true)]
async fn i10_a_tunnel_s_user_may_pause_as_long_as_any_whatever_else_they_ask() {
    let stage = Stage::open();
    let (near, far) = tokio::io::duplex(4 * 1024);
    serve(&stage, far);
    let (mut requests, connection) = h2::client::handshake(near).await.unwrap();
    // The user takes something while this is polled, and nothing else.
    let mut connection = pin!(connection);
    let mut ask = |uri, method| requests.send_request(request(method, uri), false).unwrap();
    let (response, _send) = ask("t:443", Method::CONNECT);
    let mut target = driven(&mut connection, stage.target()).await;
    let mut receive = driven(&mut connection, response).await.unwrap().into_body();
    let (refused, _) = ask("https://t/", Method::GET);
    assert_eq!(driven(&mut connection, refused).await.unwrap().status(), StatusCode::NOT_IMPLEMENTED);
    target.say(&"x".repeat(60_000)).await;
    tokio::time::sleep(Duration::from_secs(50 * 60)).await;
    let mut taken = 0;
    while taken < 60_000 {
        taken += driven(&mut connection, receive.data()).await.unwrap().unwrap().len();
    }
}

#[tokio::test]
async fn h17_an_expectation_nobody_knows_is_417() {
    let stage = Stage::open();
    let mut user = connect(&stage).await;
    let mut request = request(Method::POST, "http://t/");
    request.headers_mut().insert("expect", "a-miracle".parse().unwrap());
    let response = user.ask(request, true).0.await.unwrap();
    assert_eq!(response.status(), StatusCode::EXPECTATION_FAILED);
}

#[tokio::test]
async fn i5_a_response_that_breaks_off_is_reset() {
    let stage = Stage::open();
    let mut user = connect(&stage).await;
    let (response, _) = user.ask(get("http://t/"), true);
    let mut target = stage.target().await;
    target.head().await;
    target.say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n").await;
    let body = response.await.unwrap().into_body();
    drop(target);
    assert_eq!(read(body).await.unwrap_err(), Some(Reason::INTERNAL_ERROR));
}

#[tokio::test]
async fn a_refused_dial_costs_its_stream_alone() {
    let stage = Stage::refusing(Outcome::Denied);
    let mut user = connect(&stage).await;
    for request in [get("http://t/"), request(Method::CONNECT, "t:443")] {
        let response = user.ask(request, true).0.await.unwrap();
        assert_eq!(response.status(), StatusCode::FORBIDDEN);
        let status = response.headers()["proxy-status"].to_str().unwrap();
        assert!(status.starts_with("gate; error=http_request_denied; next-hop=t:"), "{status}");
    }
}

#[tokio::test]
async fn an_answer_to_head_has_no_body_whoever_gives_it() {
    let stage = Stage::open();
    let mut user = connect(&stage).await;
    let refused = user.ask(request(Method::HEAD, "https://t/"), true).0.await.unwrap();
    assert_eq!(refused.status(), StatusCode::NOT_IMPLEMENTED);
    assert!(refused.into_body().is_end_stream());
    let (response, _) = user.ask(request(Method::HEAD, "http://t/"), true);
    let mut target = stage.target().await;
    target.head().await;
    target.say("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n").await;
    let response = response.await.unwrap();
    assert_eq!(response.headers()["content-length"], "5");
    assert!(response.into_body().is_end_stream());
}

#[tokio::test]
async fn p1_a_missing_login_is_407() {
    let stage = Stage::with_login("user", "pass");
    let mut user = connect(&stage).await;
    let response = user.ask(get("http://t/"), true).0.await.unwrap();
    assert_eq!(response.status(), StatusCode::PROXY_AUTHENTICATION_REQUIRED);
    assert_eq!(response.headers()["proxy-authenticate"], "Basic realm=\"AnyProxy\", charset=\"UTF-8\"");
}

#[tokio::test]
async fn https_is_not_fetched_in_clear_text() {
    let stage = Stage::open();
    let mut user = connect(&stage).await;
    let response = user.ask(get("https://t/"), true).0.await.unwrap();
    assert_eq!(response.status(), StatusCode::NOT_IMPLEMENTED);
    assert_eq!(stage.dials(), 0);
}

#[tokio::test]
async fn an_extended_connect_is_a_websocket_at_the_target() {
    let stage = Stage::open();
    let mut user = connect(&stage).await;
    let (response, mut send) = user.ask(extended("websocket", "http://t/chat"), false);
    let mut target = stage.target().await;
    let head = target.head().await;
    assert!(head.starts_with("GET /chat HTTP/1.1\r\nhost: t\r\n"), "{head}");
    for field in [
        "upgrade: websocket\r\nconnection: upgrade\r\n",
        "sec-websocket-key: ",
        "sec-websocket-version: 13\r\n",
    ] {
        assert!(head.contains(field), "{head}");
    }
    target.say(&format!("{}Sec-WebSocket-Protocol: chat\r\n\r\nfirst", switching(&proof(&head)))).await;
    let response = response.await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["sec-websocket-protocol"], "chat");
    assert!(!response.headers().contains_key("sec-websocket-accept"));
    let mut receive = response.into_body();
    assert_eq!(receive.data().await.unwrap().unwrap(), "first");
    send.send_data("frame".into(), false).unwrap();
    assert_eq!(target.take(5).await, "frame");
}

#[tokio::test]
async fn a_target_that_has_not_read_the_key_gets_no_websocket() {
    for accept in ["", "x", "two"] {
        let stage = Stage::open();
        let mut user = connect(&stage).await;
        let (response, _send) = user.ask(extended("websocket", "http://t/chat"), false);
        let mut target = stage.target().await;
        let head = target.head().await;
        let answer = match accept {
            "" => "HTTP/1.1 101 Go\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n".to_owned(),
            "two" => format!("{}Sec-WebSocket-Accept: x\r\n", switching(&proof(&head))),
            wrong => switching(wrong),
        };
        target.say(&format!("{answer}\r\nsecret")).await;
        let response = response.await.unwrap();
        assert_eq!(response.status(), StatusCode::BAD_GATEWAY, "{accept}");
        assert!(!read(response.into_body()).await.unwrap().contains("secret"));
    }
}

fn switching(accept: &str) -> String {
    format!(
        "HTTP/1.1 101 Go\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n"
    )
}

/// What proves that the request was read (RFC 6455 section 4.2.2).
fn proof(head: &str) -> String {
    use base64::Engine as _;
    use sha1::Digest as _;
    let key = head.split("sec-websocket-key: ").nth(1).and_then(|rest| rest.split("\r\n").next()).unwrap();
    let digest = sha1::Sha1::digest(format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11"));
    base64::engine::general_purpose::STANDARD.encode(digest)
}

#[tokio::test]
async fn an_extended_connect_that_its_target_declines_is_told_so() {
    let stage = Stage::open();
    let mut user = connect(&stage).await;
    let (response, _send) = user.ask(extended("websocket", "http://t/chat"), false);
    let mut target = stage.target().await;
    target.head().await;
    target.say("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno").await;
    let response = response.await.unwrap();
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
    assert_eq!(read(response.into_body()).await.unwrap(), "no");
}

#[tokio::test]
async fn h16_a_target_that_answers_an_extended_connect_with_a_page_has_opened_no_websocket() {
    let stage = Stage::open();
    let mut user = connect(&stage).await;
    let (response, _send) = user.ask(extended("websocket", "http://t/chat"), false);
    let mut target = stage.target().await;
    target.head().await;
    target.say("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecret").await;
    let response = response.await.unwrap();
    assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
    assert!(!read(response.into_body()).await.unwrap().contains("secret"));
}

#[tokio::test]
async fn h22_more_than_a_hundred_fields_are_431() {
    let stage = Stage::open();
    let mut user = connect(&stage).await;
    for (fields, status) in
        [(101, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE), (100, StatusCode::NO_CONTENT)]
    {
        let mut request = get("http://t/");
        for _ in 0..fields {
            request.headers_mut().append("a", http::HeaderValue::from_static("b"));
        }
        let (response, _) = user.ask(request, true);
        if status.is_success() {
            let mut target = stage.target().await;
            target.head().await;
            target.say("HTTP/1.1 204 No Content\r\n\r\n").await;
        }
        let response = tokio::time::timeout(Duration::from_secs(5), response).await;
        assert_eq!(response.unwrap().unwrap().status(), status);
    }
}

#[tokio::test]
async fn other_extended_protocols_are_501() {
    let stage = Stage::open();
    let mut user = connect(&stage).await;
    let (response, _send) = user.ask(extended("connect-udp", "http://t/x"), false);
    assert_eq!(response.await.unwrap().status(), StatusCode::NOT_IMPLEMENTED);
    assert_eq!(stage.dials(), 0);
}

#[tokio::test]
async fn rapid_reset_ends_the_connection() {
    let stage = Stage::open();
    let mut user = connect(&stage).await;
    // One poll of the proxy sees them all: opened and reset before anybody looked.
    for _ in 0..100 {
        let Ok((_, mut send)) = user.requests.send_request(get("http://t/"), false) else { break };
        send.send_reset(Reason::CANCEL);
    }
    assert!(user.connection.await.unwrap().is_err());
}

#[tokio::test]
async fn a_flood_of_header_fields_never_becomes_a_request() {
    let stage = Stage::open();
    let (mut user, far) = tokio::io::duplex(64 * 1024);
    serve(&stage, far);
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    // SETTINGS; HEADERS without END_HEADERS; then CONTINUATION without end, of literal fields.
    bytes.extend_from_slice(&[0, 0, 0, 4, 0, 0, 0, 0, 0]);
    bytes.extend_from_slice(&[0, 0, 1, 1, 0, 0, 0, 0, 1, 0x82]);
    let field = [&[0x40, 3][..], b"abc", &[100], &[b'x'; 100]].concat();
    let piece: Vec<u8> = field.iter().copied().cycle().take(field.len() * 100).collect();
    let mut frame = u32::try_from(piece.len()).unwrap().to_be_bytes()[1..].to_vec();
    frame.extend_from_slice(&[9, 0, 0, 0, 0, 1]);
    frame.extend_from_slice(&piece);
    let mut sent = 0;
    let flood = async {
        user.write_all(&bytes).await?;
        loop {
            user.write_all(&frame).await?;
            sent += frame.len();
            assert!(sent < 4 * 1024 * 1024, "nobody stops it");
        }
        #[expect(unreachable_code, reason = "names the error")]
        std::io::Result::Ok(())
    };
    assert!(flood.await.is_err());
    let mut rest = Vec::new();
    let _ = user.read_to_end(&mut rest).await;
    assert_eq!(stage.dials(), 0);
}

#[tokio::test]
async fn a_reader_who_stops_holds_its_stream_alone_back() {
    let stage = Stage::open();
    let mut user = connect(&stage).await;
    let (slow, _) = user.ask(get("http://slow/"), true);
    let mut source = stage.target().await;
    source.head().await;
    source.say("HTTP/1.1 200 OK\r\n\r\n").await;
    let _unread = slow.await.unwrap();
    let piece = vec![b'x'; 16 * 1024];
    let mut sent = 0;
    while let Ok(written) = tokio::time::timeout(Duration::from_millis(200), source.io.write(&piece)).await {
        sent += written.unwrap();
        assert!(sent < 1024 * 1024, "nobody holds the target back");
    }
    let (quick, _) = user.ask(get("http://quick/"), true);
    let mut target = stage.target().await;
    target.head().await;
    target.say("HTTP/1.1 204 No Content\r\n\r\n").await;
    assert_eq!(quick.await.unwrap().status(), StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn after_stop_what_is_under_way_is_finished() {
    let stage = Stage::open();
    let mut user = connect(&stage).await;
    let (response, _) = user.ask(get("http://t/"), true);
    let mut target = stage.target().await;
    target.head().await;
    stage.stop.cancel();
    tokio::task::yield_now().await;
    target.say("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    assert_eq!(read(response.await.unwrap().into_body()).await.unwrap(), "ok");
    drop(user.requests);
    user.connection.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn after_stop_nobody_is_waited_for_who_has_not_begun() {
    let stage = Stage::open();
    let (mut near, far) = tokio::io::duplex(64 * 1024);
    serve(&stage, far);
    let began = tokio::time::Instant::now();
    assert!(near.read_u8().await.is_ok(), "the proxy's settings");
    stage.stop.cancel();
    near.read_to_end(&mut Vec::new()).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_closed() {
    let stage = Stage::open();
    let user = connect(&stage).await;
    let began = tokio::time::Instant::now();
    let _ = user.connection.await.unwrap();
    assert!((75..=76).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_idle_user_is_told_to_go_before_the_end_and_may_still_speak_behind_it() {
    let stage = Stage::open();
    let (mut user, far) = tokio::io::duplex(64 * 1024);
    serve(&stage, far);
    let began = tokio::time::Instant::now();
    // Empty SETTINGS, and then no word, not even to a PING.
    user.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut heard = Vec::new();
    user.read_to_end(&mut heard).await.unwrap();
    assert!((77..=78).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    // GOAWAY on connection 0, for the sake of no stream yet, with NO_ERROR.
    let go_away = b"\0\0\x08\x07\0\0\0\0\0\x7f\xff\xff\xff\0\0\0\0";
    assert!(heard.windows(go_away.len()).any(|frame| frame == go_away), "{heard:?}");
    // What is on its way then must not become a reset, which would take the last response away.
    user.write_all(b"\0\0\0\x04\x01\0\0\0\0").await.unwrap();
}

#[tokio::test]
async fn tls_agrees_on_http_2_or_on_http_1_1() {
    let certified = rcgen::generate_simple_self_signed(["gate.lan".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
    let mut server = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key)
        .unwrap();
    server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certified.cert.der().clone()).unwrap();
    let client = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();

    let stage = Stage::open();
    let listener = anyproxy_front::Listener::bind(&["127.0.0.1:0".parse().unwrap()]).unwrap();
    let address = listener.local_addr().unwrap();
    let listener = listener.with_tls(anyproxy_front::Tls::new(Arc::new(server)));
    tokio::spawn(HttpProxy::new(stage.stack()).serve(listener, stage.stop.clone()));
    for protocol in [&b"h2"[..], b"http/1.1"] {
        let mut client = client.clone();
        client.alpn_protocols = vec![protocol.to_vec()];
        let tcp = tokio::net::TcpStream::connect(address).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(client));
        let mut tls = connector.connect("gate.lan".try_into().unwrap(), tcp).await.unwrap();
        assert_eq!(tls.get_ref().1.alpn_protocol(), Some(protocol));
        if protocol == b"h2" {
            let (mut requests, connection) = h2::client::handshake(tls).await.unwrap();
            tokio::spawn(connection);
            let (response, _) = requests.send_request(get("http://t/"), true).unwrap();
            stage.target().await.say("HTTP/1.1 204 No Content\r\n\r\n").await;
            assert_eq!(response.await.unwrap().status(), StatusCode::NO_CONTENT);
        } else {
            tls.write_all(b"GET http://t/ HTTP/1.1\r\nHost: t\r\n\r\n").await.unwrap();
            stage.target().await.say("HTTP/1.1 204 No Content\r\n\r\n").await;
            let mut status = [0; 12];
            tls.read_exact(&mut status).await.unwrap();
            assert_eq!(&status, b"HTTP/1.1 204");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_config_may_say_the_largest_values_there_are() {
    let says: [fn(&mut Config); 6] = [
        |config| config.stream_window = u32::MAX,
        |config| config.connection_window = u32::MAX,
        |config| config.max_concurrent_streams = u32::MAX,
        |config| config.keep_alive_timeout = Duration::MAX,
        |config| config.idle_timeout = Some(Duration::MAX),
        |config| config.max_head = usize::MAX,
    ];
    for say in says {
        let mut config = Config::default();
        say(&mut config);
        let stage = Stage::open();
        let (near, far) = tokio::io::duplex(64 * 1024);
        serve_with(config, &stage, far);
        let mut user = greet(near).await;
        // Each wait that a time-out is for begins.
        tokio::time::sleep(Duration::from_secs(5)).await;
        let (response, mut send) = user.ask(request(Method::POST, "http://t/"), false);
        send.send_data(Bytes::from(vec![b'x'; 100_000]), true).unwrap();
        let mut target = stage.target().await;
        target.head().await;
        target.take(100_000).await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        target.say("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        assert_eq!(read(response.await.unwrap().into_body()).await.unwrap(), "ok");
    }
}

struct User {
    requests: SendRequest<Bytes>,
    pings: Option<h2::PingPong>,
    connection: JoinHandle<Result<(), h2::Error>>,
}

impl User {
    fn ask(&mut self, request: Request<()>, ends: bool) -> (ResponseFuture, SendStream<Bytes>) {
        self.requests.send_request(request, ends).unwrap()
    }
}

fn serve(stage: &Stage, far: tokio::io::DuplexStream) {
    let mut config = Config::default();
    config.name = ProxyName::new("gate").unwrap();
    serve_with(config, stage, far);
}

fn serve_with(config: Config, stage: &Stage, far: tokio::io::DuplexStream) {
    let proxy = HttpProxy::new(stage.stack()).with_config(config);
    let stop = stage.stop.clone();
    tokio::spawn(async move { proxy.serve_http2(far, source(), &stop).await });
}

async fn connect(stage: &Stage) -> User {
    let (near, far) = tokio::io::duplex(64 * 1024);
    serve(stage, far);
    greet(near).await
}

async fn greet(near: tokio::io::DuplexStream) -> User {
    let (requests, mut connection) = h2::client::handshake(near).await.unwrap();
    // The proxy's settings arrive before the first request: extended CONNECT needs them.
    std::future::poll_fn(|cx| {
        let ended = Pin::new(&mut connection).poll(cx);
        assert!(ended.is_pending(), "{ended:?}");
        if requests.is_extended_connect_protocol_enabled() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    let pings = connection.ping_pong();
    let connection = tokio::spawn(connection);
    User { requests, pings, connection }
}

/// One poll.
async fn poll_once<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut *future).poll(cx))).await
}

/// What comes of `step` while the user's connection is driven.
async fn driven<T>(
    connection: &mut (impl Future<Output = Result<(), h2::Error>> + Unpin),
    step: impl Future<Output = T>,
) -> T {
    tokio::select! {
        biased;
        done = step => done,
        ended = connection => panic!("the connection ended: {ended:?}"),
    }
}

fn request(method: Method, uri: &str) -> Request<()> {
    Request::builder().method(method).uri(uri).body(()).unwrap()
}

fn get(uri: &str) -> Request<()> {
    request(Method::GET, uri)
}

fn extended(protocol: &'static str, uri: &str) -> Request<()> {
    let mut request = request(Method::CONNECT, uri);
    request.extensions_mut().insert(Protocol::from_static(protocol));
    request
}

async fn tunnel(stage: &Stage, user: &mut User) -> (SendStream<Bytes>, RecvStream, Target) {
    let (response, send) = user.ask(request(Method::CONNECT, "t:443"), false);
    let target = stage.target().await;
    let response = response.await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    (send, response.into_body(), target)
}

async fn read(mut body: RecvStream) -> Result<String, Option<Reason>> {
    let mut text = String::new();
    while let Some(data) = body.data().await {
        let data = data.map_err(|error| error.reason())?;
        text += std::str::from_utf8(&data).unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
    }
    Ok(text)
}
