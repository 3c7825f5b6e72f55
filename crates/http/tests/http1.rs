//! The front from outside: bytes of users and targets, both ends played by the test.

mod play;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyproxy_core::{BoxError, Dial, GatewayStack as _, Login, OnlyClient, Outcome};
use anyproxy_http::{Config, HttpProxy, ProxyName};
use play::{Stage, User};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tower::ServiceExt as _;

const GET: &str = "GET http://t.lan/x HTTP/1.1\r\nHost: t.lan\r\n\r\n";

#[tokio::test]
async fn a_request_reaches_its_target_in_our_framing() {
    let stage = Stage::open();
    let mut user = stage.user();
    user.say("GET http://T.lan/x?y HTTP/1.1\r\nHost: other\r\nAccept: */*\r\nConnection: keep-alive\r\n\r\n")
        .await;
    let mut target = stage.target().await;
    assert_eq!(target.name, "t.lan:80");
    let head = target.head().await;
    assert!(head.starts_with("GET /x?y HTTP/1.1\r\nhost: t.lan\r\n"), "{head}");
    assert!(head.contains("accept: */*\r\n") && head.contains("via: 1.1 gate\r\n"), "{head}");
    target.say("HTTP/1.1 200 Fine\r\nContent-Length: 5\r\nX-Is: so\r\n\r\nhello").await;
    let head = user.head().await;
    assert!(head.starts_with("HTTP/1.1 200 Fine\r\n"), "{head}");
    assert!(head.contains("content-length: 5\r\n") && head.contains("x-is: so\r\n"), "{head}");
    assert_eq!(user.take(5).await, "hello");
}

#[tokio::test]
async fn h1_target_and_host_are_those_of_the_uri() {
    let stage = Stage::open();
    let mut user = stage.user();
    user.say("GET http://a.lan:81/ HTTP/1.1\r\nHost: b.lan\r\n\r\n").await;
    let mut target = stage.target().await;
    assert_eq!(target.name, "a.lan:81");
    let head = target.head().await;
    assert!(head.contains("host: a.lan:81\r\n") && !head.contains("b.lan"), "{head}");
}

#[tokio::test]
async fn h4_connect_in_http_1_0_is_served_with_and_without_host() {
    for host in ["", "Host: t.lan:443\r\n"] {
        let stage = Stage::open();
        let mut user = stage.user();
        user.say(&format!("CONNECT t.lan:443 HTTP/1.0\r\n{host}\r\n")).await;
        let mut target = stage.target().await;
        assert!(user.head().await.starts_with("HTTP/1.0 200 "));
        user.say("ping").await;
        assert_eq!(target.take(4).await, "ping");
    }
}

#[tokio::test]
async fn h5_a_length_beside_a_coding_is_dropped_and_nothing_follows() {
    for fields in
        ["Content-Length: 4\r\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked\r\nContent-Length: 4"]
    {
        let stage = Stage::open();
        let mut user = stage.user();
        user.say(&format!(
            "POST http://t/ HTTP/1.1\r\nHost: t\r\n{fields}\r\n\r\n5\r\nhello\r\n0\r\n\r\n{GET}"
        ))
        .await;
        let mut target = stage.target().await;
        let head = target.head().await;
        assert!(
            head.contains("transfer-encoding: chunked\r\n") && !head.contains("content-length"),
            "{head}"
        );
        assert_eq!(target.take(15).await, "5\r\nhello\r\n0\r\n\r\n");
        target.say("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
        assert_eq!(user.rest().await.matches("HTTP/1.1").count(), 1);
        assert_eq!(stage.dials(), 1);
    }
}

#[tokio::test]
async fn h8_h9_bad_chunks_break_the_request_off() {
    for bad in [
        "+5\r\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        " 5\r\nhello\r\n0\r\n\r\n",
        "\r\nhello\r\n0\r\n\r\n",
        "11111111111111111\r\nhello\r\n0\r\n\r\n",
        "5;a\nhello\r\n0\r\n\r\n",
        "5;a\rhello\r\n0\r\n\r\n",
        "5\r\nhelloX0\r\n\r\n",
    ] {
        let stage = Stage::open();
        let mut user = stage.user();
        user.say(&format!(
            "POST http://t/ HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n{bad}{GET}"
        ))
        .await;
        let mut target = stage.target().await;
        target.head().await;
        let sent = target.rest().await;
        assert!(!sent.ends_with("0\r\n\r\n"), "{bad:?} became complete: {sent:?}");
        let answer = user.rest().await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400 "), "{bad:?}: {answer:?}");
        assert_eq!(stage.dials(), 1, "{bad:?}");
    }
}

#[tokio::test]
async fn h8_padding_is_capped_in_every_form() {
    for padding in [";x".repeat(512 * 1024), " ".repeat(1024 * 1024), format!("{}5", "0".repeat(1024 * 1024))]
    {
        let stage = Stage::open();
        let mut user = stage.user();
        let first = if padding.starts_with('0') { "" } else { "5" };
        user.say("POST http://t/ HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n").await;
        user.try_say(&format!("{first}{padding}\r\nhello\r\n0\r\n\r\n")).await;
        let mut target = stage.target().await;
        target.head().await;
        assert_eq!(target.rest().await, "", "nothing of it was sent on");
    }
}

#[tokio::test]
async fn h9_trailers_travel_without_the_forbidden_ones() {
    let stage = Stage::open();
    let mut user = stage.user();
    user.say("POST http://t/ HTTP/1.1\r\nHost: t\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\n\r\n")
        .await;
    user.say("2\r\nok\r\n0\r\nContent-Length: 9\r\nHost: h\r\nAuthorization: a\r\nX-Sum: 1\r\n\r\n").await;
    let mut target = stage.target().await;
    target.head().await;
    assert_eq!(target.take(22).await, "2\r\nok\r\n0\r\nx-sum: 1\r\n\r\n");
}

#[tokio::test]
async fn h13_what_is_for_the_proxy_stays_here_both_ways() {
    let stage = Stage::open();
    let mut user = stage.user();
    user.say(
        "GET http://t/ HTTP/1.1\r\nHost: t\r\nProxy-Authorization: Basic Y2FuYXJ5OmNhbmFyeQ==\r\n\
         Proxy-Connection: canary\r\nKeep-Alive: canary\r\nTE: canary\r\nAuthorization: passes\r\n\r\n",
    )
    .await;
    let mut target = stage.target().await;
    let head = target.head().await;
    assert!(!head.contains("canary") && !head.contains("Y2FuYXJ5") && !head.contains("request-id"), "{head}");
    assert!(head.contains("authorization: passes\r\n"), "{head}");
    target
        .say(
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nProxy-Authenticate: canary\r\nProxy-Connection: canary\r\n\
             Keep-Alive: canary\r\nX-Named: canary\r\nConnection: X-Named\r\n\r\n",
        )
        .await;
    let head = user.head().await;
    assert!(!head.contains("canary") && head.contains("via: 1.1 gate\r\n"), "{head}");
}

#[tokio::test]
async fn h14_bytes_behind_a_refused_connect_are_nobodys() {
    for (outcome, status) in [
        (Outcome::Denied, "403"),
        (Outcome::LoginRequired, "407"),
        (Outcome::Refused, "502"),
        (Outcome::NoClient, "503"),
        (Outcome::TimedOut, "504"),
    ] {
        let stage = Stage::refusing(outcome);
        let mut user = stage.user();
        user.say(&format!("CONNECT t:443 HTTP/1.1\r\nHost: t:443\r\n\r\n{GET}")).await;
        let answer = user.rest().await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
        assert_eq!(stage.dials(), 1);
    }
}

#[tokio::test]
async fn h15_early_bytes_arrive_once_and_behind_a_bare_200() {
    let stage = Stage::open();
    let mut user = stage.user();
    user.say("CONNECT t:443 HTTP/1.1\r\nHost: t:443\r\n\r\nearly").await;
    let mut target = stage.target().await;
    let head = user.head().await.to_ascii_lowercase();
    assert!(
        head.starts_with("http/1.1 200 ") && !head.contains("content-length") && !head.contains("transfer")
    );
    user.say(" late").await;
    assert_eq!(target.take(10).await, "early late");
    target.say("answer").await;
    assert_eq!(user.take(6).await, "answer");
    // Half-close: the other way goes on.
    user.finish().await;
    assert_eq!(target.rest().await, "");
    target.say("more").await;
    assert_eq!(user.take(4).await, "more");
    drop(target);
    assert_eq!(user.rest().await, "");
}

#[tokio::test]
async fn h16_an_upgrade_hands_the_bytes_over_and_a_refused_one_does_not() {
    let ask = "GET http://t/ws HTTP/1.1\r\nHost: t\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let stage = Stage::open();
    let mut user = stage.user();
    user.say(&format!("{ask}early")).await;
    let mut target = stage.target().await;
    let head = target.head().await;
    assert!(head.contains("upgrade: websocket\r\nconnection: upgrade\r\n"), "{head}");
    target
        .say("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nfirst")
        .await;
    let head = user.head().await;
    assert!(head.starts_with("HTTP/1.1 101 ") && head.contains("upgrade: websocket\r\n"), "{head}");
    assert_eq!(user.take(5).await, "first");
    assert_eq!(target.take(5).await, "early");

    let mut user = stage.user();
    user.say(&format!("{ask}{GET}")).await;
    let mut target = stage.target().await;
    target.head().await;
    target.say("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
    assert!(user.head().await.starts_with("HTTP/1.1 200 "));
    // What followed was the next request, never raw bytes.
    assert!(stage.target().await.head().await.starts_with("GET /x "));
    assert_eq!(target.rest().await, "");
}

#[tokio::test]
async fn h17_a_final_status_before_100_leaves_the_body_unsent() {
    let stage = Stage::open();
    let mut user = stage.user();
    user.say("POST http://t/ HTTP/1.1\r\nHost: t\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n").await;
    let mut target = stage.target().await;
    assert!(target.head().await.contains("expect: 100-continue\r\n"));
    target.say("HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n").await;
    let answer = user.head().await;
    assert!(answer.starts_with("HTTP/1.1 417 "), "{answer}");
    assert_eq!(target.rest().await, "", "no body was sent");
}

#[tokio::test]
async fn h17_the_user_is_told_to_go_on_when_the_target_says_so() {
    let stage = Stage::open();
    let mut user = stage.user();
    user.say("POST http://t/ HTTP/1.1\r\nHost: t\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n").await;
    let mut target = stage.target().await;
    target.head().await;
    target.say("HTTP/1.1 100 Continue\r\n\r\n").await;
    assert!(user.head().await.starts_with("HTTP/1.1 100 Continue"));
    user.say("hello").await;
    assert_eq!(target.take(5).await, "hello");
    target.say("HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n").await;
    assert!(user.head().await.starts_with("HTTP/1.1 201 Created"));
}

#[tokio::test]
async fn h17_the_user_is_told_to_go_on_though_the_response_has_begun() {
    let stage = Stage::open();
    let mut user = stage.user();
    user.say("POST http://t/ HTTP/1.1\r\nHost: t\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n").await;
    let mut target = stage.target().await;
    target.head().await;
    target.say("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n").await;
    assert!(user.head().await.starts_with("HTTP/1.1 100 Continue"));
    assert!(user.head().await.starts_with("HTTP/1.1 200 OK"));
    user.say("hello").await;
    assert_eq!(target.take(5).await, "hello");
    target.say("olleh").await;
    assert_eq!(user.take(5).await, "olleh");
}

#[tokio::test(start_paused = true)]
async fn h17_a_target_that_knows_no_100_gets_the_body_after_a_moment() {
    let stage = Stage::open();
    let mut user = stage.user();
    user.say("POST http://t/ HTTP/1.1\r\nHost: t\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\nhello")
        .await;
    let mut target = stage.target().await;
    target.head().await;
    assert_eq!(target.take(5).await, "hello");
}

#[tokio::test]
async fn h12_h17_an_expectation_for_this_hop_alone_is_met_here() {
    let stage = Stage::open();
    let mut user = stage.user();
    user.say(
        "POST http://t/ HTTP/1.1\r\nHost: t\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\
         Connection: expect\r\n\r\n",
    )
    .await;
    let mut target = stage.target().await;
    let head = target.head().await;
    assert!(!head.contains("expect"), "{head}");
    assert!(user.head().await.starts_with("HTTP/1.1 100 Continue"));
    user.say("hello").await;
    assert_eq!(target.take(5).await, "hello");
}

#[tokio::test]
async fn h18_hostile_targets_become_502() {
    for (bad, error) in [
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned(),
            "http_protocol_error",
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello".into(),
            "http_protocol_error",
        ),
        ("HTTP/1.1 102 Processing\r\n\r\n".repeat(10_000), "http_response_header_section_size"),
        ("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n".into(), "http_upgrade_failed"),
        (
            format!("HTTP/1.1 200 OK\r\nA: {}\r\n\r\n", "a".repeat(1 << 20)),
            "http_response_header_section_size",
        ),
        (
            format!("HTTP/1.1 200 OK\r\nConnection: {}\r\n\r\n", "a,".repeat(100)),
            "http_response_header_section_size",
        ),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n".into(), "http_response_transfer_coding"),
        ("SSH-2.0-OpenSSH\r\n".into(), "http_protocol_error"),
    ] {
        let stage = Stage::open();
        let mut user = stage.user();
        user.say(GET).await;
        let mut target = stage.target().await;
        target.head().await;
        let (head, ()) = tokio::join!(user.head(), target.try_say(&bad));
        assert!(head.starts_with("HTTP/1.1 502 "), "{error}: {head}");
        assert!(
            head.contains(&format!("proxy-status: gate; error={error}; next-hop=t.lan:80")),
            "{error}: {head}"
        );
    }
}

#[tokio::test]
async fn h18_surplus_bytes_appear_in_no_later_response() {
    let stage = Stage::keeping();
    let mut user = stage.user();
    user.say(GET).await;
    let mut target = stage.target().await;
    target.head().await;
    target.say("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\ncanary").await;
    user.head().await;
    assert_eq!(user.take(2).await, "ok");
    user.say(GET).await;
    let mut second = stage.target().await;
    second.head().await;
    second.say("HTTP/1.1 204 No Content\r\n\r\n").await;
    assert!(user.head().await.starts_with("HTTP/1.1 204 "));
}

#[tokio::test]
async fn h18_interim_responses_other_than_100_end_here() {
    let stage = Stage::open();
    let mut user = stage.user();
    user.say(GET).await;
    let mut target = stage.target().await;
    target.head().await;
    target.say("HTTP/1.1 103 Early Hints\r\nLink: canary\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n").await;
    let head = user.head().await;
    assert!(head.starts_with("HTTP/1.1 204 ") && !head.contains("canary"), "{head}");
}

#[tokio::test]
async fn h20_bodiless_and_close_delimited_responses_keep_the_user_connection() {
    let stage = Stage::open();
    let mut user = stage.user();
    for (method, response, expected) in [
        ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n", "content-length: 7\r\n"),
        ("GET", "HTTP/1.1 204 No Content\r\nContent-Length: 7\r\n\r\n", "204"),
        ("GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n", "304"),
        ("GET", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "content-length: 0\r\n"),
    ] {
        user.say(&format!("{method} http://t/ HTTP/1.1\r\nHost: t\r\n\r\n")).await;
        let mut target = stage.target().await;
        target.head().await;
        target.say(response).await;
        let head = user.head().await;
        assert!(head.contains(expected), "{head}");
    }
    user.say(GET).await;
    let mut target = stage.target().await;
    target.head().await;
    target.say("HTTP/1.1 200 OK\r\n\r\nuntil the end").await;
    drop(target);
    assert!(user.head().await.contains("transfer-encoding: chunked\r\n"));
    assert_eq!(user.chunked().await, "until the end");
    user.say(GET).await;
    stage.target().await.head().await;
}

#[tokio::test]
async fn h21_a_user_who_stops_within_a_body_breaks_the_request_off() {
    let stage = Stage::open();
    let mut user = stage.user();
    user.say("POST http://t/ HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n").await;
    let mut target = stage.target().await;
    target.head().await;
    assert_eq!(target.take(10).await, "5\r\nhello\r\n");
    drop(user);
    assert_eq!(target.rest().await, "", "no last chunk");
}

#[tokio::test]
async fn h21_a_target_that_stops_within_a_body_breaks_the_response_off() {
    for response in ["Content-Length: 10\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"] {
        let stage = Stage::open();
        let mut user = stage.user();
        user.say(GET).await;
        let mut target = stage.target().await;
        target.head().await;
        target.say(&format!("HTTP/1.1 200 OK\r\n{response}")).await;
        drop(target);
        user.head().await;
        let body = user.rest().await;
        assert!(body.contains("hello") && !body.ends_with("0\r\n\r\n"), "{body:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn h22_long_heads_uris_and_many_fields_have_their_status() {
    for (request, status) in [
        (format!("GET http://t/ HTTP/1.1\r\nHost: t\r\n{}\r\n", "a: b\r\n".repeat(100)), "431"),
        (format!("GET http://t/ HTTP/1.1\r\nHost: t\r\na: {}\r\n\r\n", "b".repeat(64 * 1024)), "431"),
        (format!("GET http://t/ HTTP/1.1\r\nHost: t\r\nConnection: {}\r\n\r\n", "a,".repeat(100)), "431"),
        (format!("GET http://t/{} HTTP/1.1\r\nHost: t\r\n\r\n", "a".repeat(8 * 1024)), "414"),
    ] {
        let stage = Stage::open();
        let mut user = stage.user();
        user.try_say(&request).await;
        let answer = user.rest().await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        assert_eq!(stage.dials(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn h23_a_head_that_drips_is_cut_ten_seconds_after_its_first_byte() {
    let stage = Stage::open();
    let mut user = stage.user();
    // Idle time does not count.
    tokio::time::sleep(Duration::from_secs(60)).await;
    let began = tokio::time::Instant::now();
    user.say("G").await;
    let answer = loop {
        tokio::select! {
            biased;
            answer = user.head() => break answer,
            () = tokio::time::sleep(Duration::from_secs(3)) => user.try_say("E").await,
        }
    };
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!((10..=11).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    assert_eq!(user.rest().await, "");
}

#[tokio::test(start_paused = true)]
async fn h23_a_head_that_began_with_the_request_before_it_is_cut_ten_seconds_after_the_response() {
    for began_with in ["G", "GET http://t/ HTTP/1.1\r\n"] {
        for stage in [Stage::open(), Stage::with_login("user", "pass")] {
            let mut user = stage.user();
            user.say(&format!("{GET}{began_with}")).await;
            let answered = async {
                let mut target = stage.target().await;
                target.head().await;
                tokio::time::sleep(Duration::from_secs(60)).await;
                target.say("HTTP/1.1 204 No Content\r\n\r\n").await;
            };
            let answer = tokio::select! {
                answer = user.head() => answer,
                () = async { answered.await; std::future::pending().await } => unreachable!(),
            };
            let began = tokio::time::Instant::now();
            assert!(answer.starts_with("HTTP/1.1 204 ") || answer.starts_with("HTTP/1.1 407 "), "{answer}");
            let rest = user.rest().await;
            assert!(rest.contains("HTTP/1.1 408 "), "{began_with:?}: {rest}");
            assert!((10..=11).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn h23_empty_lines_before_a_head_begin_none() {
    let post = "POST http://t/ HTTP/1.1\r\nHost: t\r\nContent-Length: 2\r\n\r\nok";
    for (request, with, behind, seconds) in [
        (GET, "", "\r\n", 75),
        (GET, "\r\n", "", 75),
        (GET, "\r\n", "\r\n", 75),
        (post, "\r\n", "", 75),
        (post, "", "\r\n", 75),
        (GET, "", "\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n", 75),
        (GET, "", "\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\n", 10),
    ] {
        for goes_on in [false, true] {
            let stage = Stage::open();
            let mut user = stage.user();
            user.say(&format!("{request}{with}")).await;
            let mut target = stage.target().await;
            target.head().await;
            target.say("HTTP/1.1 204 No Content\r\n\r\n").await;
            user.head().await;
            let began = tokio::time::Instant::now();
            user.say(behind).await;
            if goes_on {
                tokio::time::sleep(Duration::from_secs(seconds - 1)).await;
                user.say(GET).await;
                stage.target().await.head().await;
                continue;
            }
            let said = user.rest().await;
            assert_eq!(said.contains("408"), seconds == 10, "{with:?} {behind:?}: {said}");
            assert!((seconds..=seconds + 1).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn h23_an_idle_connection_is_closed_in_silence_after_75_seconds() {
    let stage = Stage::open();
    let mut user = stage.user();
    let began = tokio::time::Instant::now();
    user.say(GET).await;
    let mut target = stage.target().await;
    target.head().await;
    tokio::time::sleep(Duration::from_secs(100)).await;
    target.say("HTTP/1.1 204 No Content\r\n\r\n").await;
    user.head().await;
    assert_eq!(user.rest().await, "");
    assert!((175..=176).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn i10_who_takes_nothing_of_what_the_proxy_has_to_say_is_left_after_75_seconds() {
    let stage = Stage::with_login("user", "pass");
    let (near, far) = tokio::io::duplex(8 * 1024);
    let mut user = User { io: near, kept: None };
    let (proxy, stop) = (HttpProxy::new(stage.stack()), stage.stop.clone());
    let served = tokio::spawn(async move { proxy.serve_connection(far, play::source(), &stop).await });
    let began = tokio::time::Instant::now();
    // Each is answered with 407, until no more is taken.
    let asking = async {
        loop {
            user.try_say(GET).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(1), asking).await.is_err());
    tokio::time::timeout(Duration::from_secs(300), served).await.expect("left").unwrap();
    // What comes late is read for a while, as behind every end.
    assert!((75..=110).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_reader_may_pause_at_the_end_of_a_response_as_long_as_within_it() {
    let stage = Stage::open();
    let mut user = stage.user();
    user.say(GET).await;
    let mut target = stage.target().await;
    target.head().await;
    // More than the pipe to the user holds; what the proxy holds of it is not the target's any more.
    target.say("HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n").await;
    target.say(&"x".repeat(100_000)).await;
    tokio::time::sleep(Duration::from_secs(50 * 60)).await;
    user.head().await;
    assert_eq!(user.take(100_000).await.len(), 100_000);
    // And then it is idle as after any other.
    let began = tokio::time::Instant::now();
    assert_eq!(user.rest().await, "");
    assert!((74..=76).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn f4_a_mute_target_is_504_after_the_idle_time() {
    let stage = Stage::open();
    let mut user = stage.user();
    user.say(GET).await;
    let mut target = stage.target().await;
    target.head().await;
    let head = user.head().await;
    assert!(head.starts_with("HTTP/1.1 504 ") && head.contains("http_response_timeout"), "{head}");
    assert_eq!(target.rest().await, "");
}

#[tokio::test(start_paused = true)]
async fn f4_the_time_of_a_dial_is_not_its_target_s() {
    let dials = tower::service_fn(|_: Dial| async {
        tokio::time::sleep(Duration::from_secs(60)).await;
        let (near, mut mute) = tokio::io::duplex(1024);
        tokio::spawn(async move { mute.read_to_end(&mut Vec::new()).await });
        std::io::Result::Ok(tokio::io::BufReader::new(near))
    });
    let mut user = Stage::open().user_of(HttpProxy::new(tower::make::Shared::new(dials)));
    user.say(GET).await;
    assert!(user.head().await.starts_with("HTTP/1.1 504 "));
}

#[tokio::test(start_paused = true)]
async fn an_upload_may_take_as_long_as_it_moves() {
    let stage = Stage::open();
    let mut user = stage.user();
    user.say("POST http://t/ HTTP/1.1\r\nHost: t\r\nContent-Length: 5\r\n\r\n").await;
    let mut target = stage.target().await;
    target.head().await;
    for byte in ["h", "e", "l", "l", "o"] {
        tokio::time::sleep(Duration::from_secs(59 * 60)).await;
        user.say(byte).await;
        assert_eq!(target.take(1).await, byte);
    }
    tokio::time::sleep(Duration::from_secs(59 * 60)).await;
    target.say("HTTP/1.1 204 No Content\r\n\r\n").await;
    assert!(user.head().await.starts_with("HTTP/1.1 204 "));
    // And no longer.
    user.say("POST http://t/ HTTP/1.1\r\nHost: t\r\nContent-Length: 5\r\n\r\nh").await;
    let mut target = stage.target().await;
    target.head().await;
    assert_eq!(target.take(1).await, "h");
    let began = tokio::time::Instant::now();
    assert_eq!(target.rest().await, "");
    assert!((3_600..=3_601).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    assert!(user.head().await.starts_with("HTTP/1.1 504 "));
}

#[tokio::test(start_paused = true)]
async fn f4_a_response_that_stands_still_ends_though_more_was_asked_behind_it() {
    let stage = Stage::open();
    let mut user = stage.user();
    user.say(&format!("{GET}GET")).await;
    let mut target = stage.target().await;
    target.head().await;
    target.say("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n").await;
    for byte in ["a", "b", "c"] {
        tokio::time::sleep(Duration::from_secs(59 * 60)).await;
        target.say(byte).await;
    }
    let began = tokio::time::Instant::now();
    let rest = tokio::time::timeout(Duration::from_secs(2 * 3_600), target.rest()).await;
    assert_eq!(rest.unwrap(), "");
    assert!((3_600..=3_601).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
}

#[tokio::test]
async fn h24_a_request_with_our_own_via_is_a_loop() {
    let stage = Stage::open();
    let mut user = stage.user();
    user.say("GET http://t/ HTTP/1.1\r\nHost: t\r\nVia: 1.1 other, 1.1 gate\r\n\r\n").await;
    let head = user.head().await;
    assert!(head.starts_with("HTTP/1.1 502 ") && head.contains("error=proxy_loop_detected"), "{head}");
    assert_eq!(stage.dials(), 0);
}

#[tokio::test]
async fn h25_trace_and_options_end_here_without_credentials() {
    let stage = Stage::open();
    let mut user = stage.user();
    user.say(
        "TRACE http://t/ HTTP/1.1\r\nHost: t\r\nMax-Forwards: 0\r\nAuthorization: canary\r\nCookie: canary\r\n\
         Proxy-Authorization: Basic Y2FuYXJ5OmNhbmFyeQ==\r\nX-Seen: yes\r\n\r\n",
    )
    .await;
    let head = user.head().await;
    assert!(head.contains("content-type: message/http"), "{head}");
    let length = head.split_once("content-length: ").unwrap().1.split('\r').next().unwrap().parse().unwrap();
    let echo = user.take(length).await;
    assert!(echo.starts_with("TRACE http://t/ HTTP/1.1\r\n") && echo.contains("x-seen: yes"), "{echo}");
    assert!(!echo.contains("canary") && !echo.contains("Y2FuYXJ5"), "{echo}");
    user.say("OPTIONS http://t/ HTTP/1.1\r\nHost: t\r\nMax-Forwards: 0\r\n\r\n").await;
    assert!(user.head().await.contains("allow: CONNECT"));
    assert_eq!(stage.dials(), 0);
    user.say("OPTIONS http://t/ HTTP/1.1\r\nHost: t\r\nMax-Forwards: 2\r\n\r\n").await;
    assert!(stage.target().await.head().await.contains("max-forwards: 1\r\n"));
}

#[tokio::test]
async fn p1_p3_only_the_proxy_field_logs_in_and_every_request_does() {
    // user:pass
    let right = "Basic dXNlcjpwYXNz";
    let stage = Stage::with_login("user", "pass");
    for (ask, fields) in [
        ("GET http://t/ HTTP/1.1\r\nHost: t\r\n", String::new()),
        ("CONNECT t:443 HTTP/1.1\r\nHost: t\r\n", String::new()),
        ("GET http://t/ HTTP/1.1\r\nHost: t\r\n", format!("Authorization: {right}\r\n")),
        (
            "GET http://t/ HTTP/1.1\r\nHost: t\r\n",
            format!("Authorization: {right}\r\nProxy-Authorization: Basic eDp5\r\n"),
        ),
    ] {
        let mut user = stage.user();
        user.say(&format!("{ask}{fields}\r\n")).await;
        let head = user.head().await;
        assert!(head.starts_with("HTTP/1.1 407 "), "{head}");
        assert_eq!(
            head.matches("proxy-authenticate: Basic realm=\"AnyProxy\", charset=\"UTF-8\"\r\n").count(),
            1
        );
    }
    assert_eq!(stage.dials(), 0);
    let mut user = stage.user();
    user.say(&format!("GET http://t/ HTTP/1.1\r\nHost: t\r\nProxy-Authorization: {right}\r\n\r\n")).await;
    let mut target = stage.target().await;
    target.head().await;
    target.say("HTTP/1.1 204 No Content\r\n\r\n").await;
    assert!(user.head().await.starts_with("HTTP/1.1 204 "));
    // The login was that request's, not the connection's.
    user.say(GET).await;
    assert!(user.head().await.starts_with("HTTP/1.1 407 "));
}

#[tokio::test]
async fn a_kept_stream_serves_the_next_request_and_no_dial_is_skipped() {
    let stage = Stage::keeping();
    let mut user = stage.user();
    user.say(GET).await;
    let mut target = stage.target().await;
    for turn in 1..=3 {
        let head = target.head().await;
        assert!(!head.contains("connection: close"), "{head}");
        target.say(&format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{turn}")).await;
        user.head().await;
        assert_eq!(user.take(1).await, turn.to_string());
        assert_eq!((stage.dials(), stage.opened()), (turn, 1), "judged each time, opened once");
        user.say(GET).await;
    }
}

#[tokio::test(start_paused = true)]
async fn without_reuse_a_target_is_told_that_it_serves_one_request_and_is_seen_off() {
    let stage = Stage::open();
    let mut user = stage.user();
    for turn in 1..=2 {
        user.say(GET).await;
        let mut target = stage.target().await;
        let head = target.head().await;
        assert!(head.contains("connection: close\r\n"), "{head}");
        target.say("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        user.head().await;
        assert_eq!(user.take(2).await, "ok");
        assert_eq!(stage.opened(), turn);
        // The end, and a moment to answer it: no reset.
        let began = tokio::time::Instant::now();
        assert_eq!(target.rest().await, "");
        target.say("nobody reads this").await;
        assert_eq!(began.elapsed().as_secs(), 0, "{:?}", began.elapsed());
    }
}

#[tokio::test]
async fn i1_a_kept_stream_is_for_its_connection_and_target_alone() {
    let stage = Stage::keeping();
    let mut user = stage.user();
    user.say(GET).await;
    let mut target = stage.target().await;
    target.head().await;
    target.say("HTTP/1.1 204 No Content\r\n\r\n").await;
    user.head().await;
    let mut other = stage.user();
    other.say(GET).await;
    stage.target().await.head().await;
    user.say("GET http://other.lan/ HTTP/1.1\r\nHost: t\r\n\r\n").await;
    assert_eq!(stage.target().await.name, "other.lan:80");
    assert_eq!(stage.opened(), 3);
    // With the connection go the streams it keeps.
    drop(user);
    assert_eq!(target.rest().await, "");
}

#[tokio::test]
async fn i1_a_kept_stream_is_for_its_identity_alone() {
    let stage = Stage::keeping();
    let mut user = stage.user();
    let mut targets = Vec::new();
    // a:x, b:x, and a:x again, all on one connection.
    for login in ["YTp4", "Yjp4"] {
        user.say(&format!("GET http://t/ HTTP/1.1\r\nHost: t\r\nProxy-Authorization: Basic {login}\r\n\r\n"))
            .await;
        let mut target = stage.target().await;
        target.head().await;
        target.say("HTTP/1.1 204 No Content\r\n\r\n").await;
        user.head().await;
        targets.push(target);
    }
    user.say("GET http://t/again HTTP/1.1\r\nHost: t\r\nProxy-Authorization: Basic YTp4\r\n\r\n").await;
    assert!(targets[0].head().await.starts_with("GET /again "));
    assert_eq!(stage.opened(), 2);
}

#[tokio::test(start_paused = true)]
async fn i1_a_kept_stream_is_for_its_client_alone() {
    let stage = Stage::keeping();
    // Requests are for room-1, room-2 and whoever there is, in turn.
    let turns = Arc::new(AtomicUsize::new(0));
    let stack = stage.stack();
    let choosing = tower::service_fn(move |login: Login| {
        let (stack, turns) = (stack.clone(), turns.clone());
        async move {
            let dials = stack.login(login).await?;
            Ok::<_, BoxError>(dials.map_request(move |mut dial: Dial| {
                let rooms = [Some("room-1"), Some("room-2"), None];
                if let Some(id) = rooms[turns.fetch_add(1, Ordering::Relaxed) % 3] {
                    dial.extensions.insert(OnlyClient { id: id.into(), account: "east".into() });
                }
                dial
            }))
        }
    });
    let mut user = stage.user_of(HttpProxy::new(choosing));
    let mut targets = Vec::new();
    for _ in 0..3 {
        user.say(GET).await;
        let mut target =
            tokio::time::timeout(Duration::from_secs(1), stage.target()).await.expect("one of its own");
        target.head().await;
        target.say("HTTP/1.1 204 No Content\r\n\r\n").await;
        user.head().await;
        targets.push(target);
    }
    for target in &mut targets {
        user.say(GET).await;
        target.head().await;
        target.say("HTTP/1.1 204 No Content\r\n\r\n").await;
        user.head().await;
    }
    assert_eq!((stage.dials(), stage.opened()), (6, 3));
}

#[tokio::test(start_paused = true)]
async fn a_kept_stream_is_closed_when_the_user_pauses() {
    let stage = Stage::keeping();
    let mut user = stage.user();
    user.say(GET).await;
    let mut target = stage.target().await;
    target.head().await;
    target.say("HTTP/1.1 204 No Content\r\n\r\n").await;
    user.head().await;
    let began = tokio::time::Instant::now();
    assert_eq!(target.rest().await, "");
    assert!((10..=11).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_kept_stream_that_its_target_closed_is_not_used() {
    let stage = Stage::keeping();
    let mut user = stage.user();
    user.say(GET).await;
    let mut target = stage.target().await;
    target.head().await;
    target.say("HTTP/1.1 204 No Content\r\n\r\n").await;
    user.head().await;
    drop(target);
    user.say("POST http://t.lan/ HTTP/1.1\r\nHost: t\r\nContent-Length: 0\r\n\r\n").await;
    assert!(stage.target().await.head().await.starts_with("POST / "));
}

#[tokio::test(start_paused = true)]
async fn a_kept_stream_is_not_used_once_its_tunnel_leaves() {
    let stage = Stage::keeping();
    let mut user = stage.user();
    user.say(GET).await;
    let mut target = stage.target().await;
    target.head().await;
    target.say("HTTP/1.1 204 No Content\r\n\r\n").await;
    user.head().await;
    stage.leave();
    user.say("POST http://t.lan/ HTTP/1.1\r\nHost: t\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(target.rest().await, "", "it is seen off");
    let mut target = stage.target().await;
    assert!(target.head().await.starts_with("POST / "));
    // Nor is one kept.
    let began = tokio::time::Instant::now();
    target.say("HTTP/1.1 204 No Content\r\n\r\n").await;
    user.head().await;
    assert_eq!(target.rest().await, "");
    assert_eq!(began.elapsed().as_secs(), 0, "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_request_that_met_a_closing_target_is_asked_again_if_that_is_safe() {
    for (method, again) in [("GET", true), ("POST", false)] {
        let stage = Stage::keeping();
        let mut user = stage.user();
        user.say(GET).await;
        let mut target = stage.target().await;
        target.head().await;
        target.say("HTTP/1.1 204 No Content\r\n\r\n").await;
        user.head().await;
        user.say(&format!("{method} http://t.lan/ HTTP/1.1\r\nHost: t\r\nContent-Length: 0\r\n\r\n")).await;
        // Received, and then the end comes without a word.
        target.head().await;
        drop(target);
        if again {
            let mut target = stage.target().await;
            target.head().await;
            target.say("HTTP/1.1 204 No Content\r\n\r\n").await;
            assert!(user.head().await.starts_with("HTTP/1.1 204 "));
        } else {
            assert!(user.head().await.starts_with("HTTP/1.1 502 "));
        }
    }
}

#[tokio::test]
async fn a_request_whose_answer_had_begun_is_not_asked_again() {
    for begun in ["HTTP/1.1 103 Early Hints\r\n\r\n", "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 20"] {
        let stage = Stage::keeping();
        let mut user = stage.user();
        user.say(GET).await;
        let mut target = stage.target().await;
        target.head().await;
        target.say("HTTP/1.1 204 No Content\r\n\r\n").await;
        user.head().await;
        user.say("DELETE http://t.lan/ HTTP/1.1\r\nHost: t\r\n\r\n").await;
        target.head().await;
        target.say(begun).await;
        drop(target);
        let answer = tokio::select! {
            answer = user.head() => answer,
            _ = stage.target() => panic!("asked again"),
        };
        assert!(
            answer.starts_with("HTTP/1.1 502 ") && answer.contains("http_response_incomplete"),
            "{answer}"
        );
    }
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let stage = Stage::keeping();
    let mut user = stage.user();
    user.say(&format!("{GET}{GET}{GET}")).await;
    let mut target = stage.target().await;
    for turn in 1..=3 {
        target.head().await;
        target.say(&format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{turn}")).await;
        user.head().await;
        assert_eq!(user.take(1).await, turn.to_string());
    }
}

#[tokio::test]
async fn however_much_is_pipelined_is_answered_in_order() {
    const ASKED: usize = 1_000;
    let stage = Stage::keeping();
    let mut user = stage.user();
    let (mut reader, mut writer) = tokio::io::split(&mut user.io);
    let asking = async {
        for turn in 0..ASKED {
            let ask = format!("GET http://t/{turn} HTTP/1.1\r\nHost: t\r\n\r\n");
            writer.write_all(ask.as_bytes()).await.unwrap();
        }
    };
    let answering = async {
        let mut target = stage.target().await;
        for turn in 0..ASKED {
            assert!(target.head().await.starts_with(&format!("GET /{turn} ")), "{turn}");
            target.say(&format!("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<{turn:4}>")).await;
        }
        target
    };
    let reading = async {
        let mut answers = Vec::new();
        while !answers.ends_with(format!("<{:4}>", ASKED - 1).as_bytes()) {
            reader.read_buf(&mut answers).await.unwrap();
        }
        answers
    };
    let ((), _target, answers) = tokio::join!(asking, answering, reading);
    assert_eq!(String::from_utf8(answers).unwrap().matches("HTTP/1.1 200 ").count(), ASKED);
}

#[tokio::test]
async fn events_reach_the_user_as_they_come() {
    let stage = Stage::open();
    let mut user = stage.user();
    user.say(GET).await;
    let mut target = stage.target().await;
    target.head().await;
    target
        .say("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        .await;
    user.head().await;
    for event in ["data: 1\n\n", "data: 2\n\n"] {
        target.say(&format!("9\r\n{event}\r\n")).await;
        assert_eq!(user.take(14).await, format!("9\r\n{event}\r\n"));
    }
}

#[tokio::test]
async fn i5_what_came_of_a_cut_response_reaches_a_slow_reader() {
    const CAME: usize = 50_000;
    let stage = Stage::open();
    let mut user = stage.user_at(1024);
    user.say(GET).await;
    let mut target = stage.target().await;
    target.head().await;
    target.say("HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n").await;
    target.say(&"x".repeat(CAME)).await;
    drop(target);
    assert!(user.head().await.starts_with("HTTP/1.1 200 OK"));
    assert_eq!(user.rest().await.len(), CAME);
}

#[tokio::test]
async fn a_response_says_that_nobody_will_read_the_rest_of_the_body() {
    for (body, response, status, closes) in [
        ("hel", "", 502, true),
        ("hello", "", 502, false),
        ("hel", "HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n", 413, true),
        ("hello", "HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n", 413, false),
        ("hel", "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", 200, true),
        ("hel", "HTTP/1.1 307 Temporary Redirect\r\nContent-Length: 0\r\n\r\n", 307, true),
        ("hel", "HTTP/1.1 200 OK\r\n\r\n", 200, true),
        // This target may echo.
        ("hel", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", 200, false),
        // Of this one nothing is believed.
        ("hel", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", 502, true),
    ] {
        let stage = Stage::open();
        let mut user = stage.user();
        user.say(&format!("POST http://t/ HTTP/1.1\r\nHost: t\r\nContent-Length: 5\r\n\r\n{body}")).await;
        let mut target = stage.target().await;
        target.head().await;
        target.take(body.len()).await;
        target.say(response).await;
        if response.is_empty() {
            drop(target);
        }
        let answer = user.head().await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        assert_eq!(answer.contains("connection: close\r\n"), closes, "{body} {response}: {answer}");
    }
    let stage = Stage::refusing(Outcome::Denied);
    for (length, closes) in [(5, true), (0, false)] {
        let mut user = stage.user();
        user.say(&format!("POST http://t/ HTTP/1.1\r\nHost: t\r\nContent-Length: {length}\r\n\r\n")).await;
        let answer = user.head().await;
        assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
        assert_eq!(answer.contains("connection: close\r\n"), closes, "{answer}");
    }
}

#[tokio::test]
async fn a_target_that_answers_while_it_reads_on_gets_the_rest() {
    for (response, head_first, told) in [
        ("Content-Length: 2\r\n\r\nok", true, "ok"),
        ("Content-Length: 0\r\n\r\n", false, ""),
        ("Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", true, "2\r\nok\r\n0\r\n\r\n"),
        (
            "Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 1\r\n\r\n",
            true,
            "2\r\nok\r\n0\r\nx-sum: 1\r\n\r\n",
        ),
    ] {
        let stage = Stage::keeping();
        let mut user = stage.user();
        user.say("POST http://t/ HTTP/1.1\r\nHost: t\r\nTE: trailers\r\nContent-Length: 1000000\r\n\r\n")
            .await;
        let mut target = stage.target().await;
        target.head().await;
        target.say(&format!("HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\n{response}")).await;
        if head_first {
            assert!(!user.head().await.contains("connection: close"), "{response}");
        }
        let upload = "x".repeat(1_000_000);
        let (arrived, ()) = tokio::join!(target.take(upload.len()), user.say(&upload));
        assert!(arrived == upload, "{response}");
        if !head_first {
            assert!(!user.head().await.contains("connection: close"), "{response}");
        }
        assert_eq!(user.take(told.len()).await, told);
        // Both connections are as whole as behind any other request.
        user.say("GET http://t/x HTTP/1.1\r\nHost: t\r\n\r\n").await;
        assert!(target.head().await.starts_with("GET /x "));
    }
}

#[tokio::test]
async fn what_a_target_has_still_to_read_of_a_request_outlasts_its_response() {
    let stage = Stage::open();
    let mut user = stage.user();
    // More than the pipe to the target holds, and no more than the proxy takes from the user at once.
    let upload = "x".repeat(120_000);
    user.say(&format!("POST http://t/ HTTP/1.1\r\nHost: t\r\nContent-Length: {}\r\n\r\n", upload.len()))
        .await;
    let mut target = stage.target().await;
    target.head().await;
    user.say(&upload).await;
    target.say("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok").await;
    assert!(user.head().await.starts_with("HTTP/1.1 200 "));
    assert!(target.take(upload.len()).await == upload);
    assert_eq!(user.take(2).await, "ok");
}

#[tokio::test(start_paused = true)]
async fn i10_a_response_does_not_wait_for_ever_for_the_rest_of_its_request() {
    let stage = Stage::open();
    let mut user = stage.user();
    user.say("POST http://t/ HTTP/1.1\r\nHost: t\r\nContent-Length: 5\r\n\r\nhel").await;
    let mut target = stage.target().await;
    target.head().await;
    let began = tokio::time::Instant::now();
    target.say("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    assert_eq!(target.rest().await, "hel");
    assert!((3_600..=3_601).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    // It had come whole.
    assert!(user.head().await.starts_with("HTTP/1.1 200 "));
    assert_eq!(user.rest().await, "ok");
}

#[tokio::test(start_paused = true)]
async fn a_response_without_a_body_is_told_though_its_request_never_ends() {
    let stage = Stage::open();
    let mut user = stage.user();
    user.say("POST http://t/ HTTP/1.1\r\nHost: t\r\nContent-Length: 5\r\n\r\nhel").await;
    let mut target = stage.target().await;
    target.head().await;
    target.say("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    let answer = user.head().await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(answer.contains("connection: close\r\n"), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn a_response_is_told_at_once_where_the_target_has_gone() {
    for (response, told) in [
        ("Content-Length: 2\r\n\r\nok", "ok"),
        ("Content-Length: 0\r\n\r\n", ""),
        ("Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", "2\r\nok\r\n0\r\n\r\n"),
        // With something behind it that is no response.
        ("Content-Length: 2\r\n\r\nok\r\n", "ok"),
        ("Content-Length: 0\r\n\r\nsurplus", ""),
    ] {
        for leaves in [Leaves::WithItsLastWord, Leaves::Later] {
            let stage = Stage::open();
            let mut user = stage.user();
            user.say("POST http://t/ HTTP/1.1\r\nHost: t\r\nContent-Length: 5\r\n\r\nhel").await;
            let mut target = stage.target().await;
            target.head().await;
            assert_eq!(target.take(3).await, "hel");
            let began = tokio::time::Instant::now();
            target.say(&format!("HTTP/1.1 200 OK\r\n{response}")).await;
            if let Leaves::Later = leaves {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            drop(target);
            assert!(user.head().await.starts_with("HTTP/1.1 200 "), "{response} {leaves:?}");
            assert_eq!(user.take(told.len()).await, told, "{leaves:?}");
            assert!(began.elapsed() < Duration::from_secs(2), "{response} {leaves:?}: {:?}", began.elapsed());
        }
    }
}

/// When a target hangs up.
#[derive(Debug)]
enum Leaves {
    WithItsLastWord,
    Later,
}

#[tokio::test(start_paused = true)]
async fn a_refused_upload_is_read_for_a_while_so_that_the_refusal_arrives() {
    let stage = Stage::refusing(Outcome::Denied);
    let mut user = stage.user();
    user.say("POST http://t/ HTTP/1.1\r\nHost: t\r\nContent-Length: 100000000\r\n\r\n").await;
    assert!(user.head().await.starts_with("HTTP/1.1 403 "));
    user.say(&"x".repeat(1 << 20)).await;
}

#[tokio::test]
async fn a_slow_reader_stops_the_target() {
    let stage = Stage::open();
    let mut user = stage.user();
    user.say(GET).await;
    let mut target = stage.target().await;
    target.head().await;
    target.say("HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n").await;
    let piece = vec![b'x'; 64 * 1024];
    let mut sent = 0;
    while let Ok(written) = tokio::time::timeout(Duration::from_millis(200), target.io.write(&piece)).await {
        sent += written.unwrap();
        assert!(sent < 2 * 1024 * 1024, "nobody holds the target back");
    }
    user.head().await;
    let mut some = vec![0; 100_000];
    user.io.read_exact(&mut some).await.unwrap();
}

#[tokio::test]
async fn a_user_who_leaves_while_the_dial_is_under_way_gives_it_up() {
    let (gone, mut given_up) = tokio::sync::mpsc::channel::<()>(1);
    let dials = tower::service_fn(move |_: Dial| {
        let gone = gone.clone();
        async move {
            let _gone = gone;
            std::future::pending::<std::io::Result<tokio::io::BufReader<tokio::io::DuplexStream>>>().await
        }
    });
    let (user, far) = tokio::io::duplex(1024);
    let mut user = User { io: user, kept: None };
    user.say(GET).await;
    let proxy = HttpProxy::new(tower::make::Shared::new(dials));
    let served = tokio::spawn(async move {
        proxy.serve_connection(far, play::source(), &tokio_util::sync::CancellationToken::new()).await;
    });
    tokio::task::yield_now().await;
    drop(user);
    served.await.unwrap();
    assert!(given_up.recv().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn i8_a_user_who_leaves_is_missed_though_something_stands_behind_their_request() {
    for behind in ["\r\n", "G", GET] {
        for begun in [false, true] {
            // With the request, behind it, and in two pieces.
            for pieces in [vec![[GET, behind].concat()], vec![GET.into(), behind.into(), behind.into()]] {
                let stage = Stage::open();
                let mut user = stage.user();
                let began = tokio::time::Instant::now();
                let (first, rest) = pieces.split_first().unwrap();
                user.say(first).await;
                let mut target = stage.target().await;
                target.head().await;
                if begun {
                    target.say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n").await;
                    user.head().await;
                    user.take(7).await;
                }
                for piece in rest {
                    user.say(piece).await;
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                drop(user);
                assert_eq!(target.rest().await, "");
                assert_eq!(began.elapsed().as_secs(), 0, "{behind:?} {begun}: {:?}", began.elapsed());
            }
        }
    }
}

/// A user of a front whose dials take a second.
fn user_of_slow_dials() -> (User, tokio::sync::mpsc::Receiver<tokio::io::DuplexStream>) {
    let (opened, targets) = tokio::sync::mpsc::channel(1);
    let dials = tower::service_fn(move |_: Dial| {
        let opened = opened.clone();
        async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let (near, far) = tokio::io::duplex(64 * 1024);
            opened.send(far).await.map_err(std::io::Error::other)?;
            std::io::Result::Ok(tokio::io::BufReader::new(near))
        }
    });
    (Stage::open().user_of(HttpProxy::new(tower::make::Shared::new(dials))), targets)
}

#[tokio::test(start_paused = true)]
async fn i8_a_user_who_leaves_their_body_behind_gives_the_dial_up() {
    let (mut user, mut targets) = user_of_slow_dials();
    user.say("POST http://t/ HTTP/1.1\r\nHost: t\r\nContent-Length: 20000\r\n\r\n").await;
    user.say(&"x".repeat(20_000)).await;
    tokio::time::sleep(Duration::from_millis(1)).await;
    drop(user);
    assert!(targets.recv().await.is_none(), "nothing is dialled for nobody");
}

#[tokio::test(start_paused = true)]
async fn h15_what_a_tunnel_s_user_says_during_the_dial_arrives_whole_and_so_does_its_end() {
    let (mut user, mut targets) = user_of_slow_dials();
    let said = ["CONNECT t:443 HTTP/1.1\r\nHost: t:443\r\n\r\n", "ear", "ly", &" and late".repeat(10_000)];
    let saying = async {
        for piece in said {
            user.say(piece).await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        user.finish().await;
        assert!(user.head().await.starts_with("HTTP/1.1 200 "));
    };
    let hearing = async {
        let mut heard = String::new();
        targets.recv().await.unwrap().read_to_string(&mut heard).await.unwrap();
        heard
    };
    let ((), heard) = tokio::join!(saying, hearing);
    assert!(heard == said[1..].concat());
}

#[tokio::test]
async fn after_stop_the_response_under_way_is_the_last() {
    let stage = Stage::open();
    let mut user = stage.user();
    user.say(GET).await;
    let mut target = stage.target().await;
    target.head().await;
    stage.stop.cancel();
    target.say("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let answer = user.rest().await;
    assert!(answer.contains("connection: close\r\n") && answer.ends_with("ok"), "{answer}");
    let mut idle = stage.user();
    assert_eq!(idle.rest().await, "");
}

#[tokio::test]
async fn http_1_0_users_get_the_body_until_the_end() {
    let stage = Stage::open();
    let mut user = stage.user();
    user.say("GET http://t/ HTTP/1.0\r\n\r\n").await;
    let mut target = stage.target().await;
    assert!(target.head().await.contains("via: 1.0 gate"));
    target.say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n").await;
    let answer = user.rest().await;
    assert!(answer.starts_with("HTTP/1.0 200 ") && answer.ends_with("\r\n\r\nhello"), "{answer}");
}

#[tokio::test]
async fn http_1_0_users_are_told_which_response_ends_with_their_connection() {
    for (framing, kept) in [
        ("Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", false),
        ("Content-Length: 2\r\n\r\nok", true),
    ] {
        let stage = Stage::open();
        let mut user = stage.user();
        user.say("GET http://t/ HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").await;
        let mut target = stage.target().await;
        target.head().await;
        target.say(&format!("HTTP/1.1 200 OK\r\n{framing}")).await;
        let head = user.head().await.to_ascii_lowercase();
        assert_eq!(head.contains("connection: keep-alive\r\n"), kept, "{head}");
        assert_eq!(head.contains("connection: close\r\n"), !kept, "{head}");
        assert_eq!(user.take(2).await, "ok");
        if !kept {
            assert_eq!(user.rest().await, "");
        }
    }
    let stage = Stage::refusing(Outcome::Denied);
    for (length, kept) in [(0, true), (5, false)] {
        let mut user = stage.user();
        user.say(&format!(
            "POST http://t/ HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: {length}\r\n\r\n"
        ))
        .await;
        let head = user.head().await.to_ascii_lowercase();
        assert_eq!(head.contains("connection: keep-alive\r\n"), kept, "{head}");
        assert_eq!(head.contains("connection: close\r\n"), !kept, "{head}");
    }
}

#[tokio::test]
async fn tower_http_s_layers_fit_as_they_are() {
    use tower_http::limit::RequestBodyLimitLayer;
    use tower_http::trace::TraceLayer;
    let stage = Stage::open();
    let proxy =
        HttpProxy::new(stage.stack()).layer(TraceLayer::new_for_http()).layer(RequestBodyLimitLayer::new(4));
    let mut user = stage.user_of(proxy);
    user.say("POST http://t/ HTTP/1.1\r\nHost: t\r\nContent-Length: 5\r\n\r\nhello").await;
    assert!(user.head().await.starts_with("HTTP/1.1 413 "));
    let proxy = HttpProxy::new(stage.stack()).layer(RequestBodyLimitLayer::new(4));
    let mut user = stage.user_of(proxy);
    user.say(
        "POST http://t/ HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    )
    .await;
    let mut target = stage.target().await;
    target.head().await;
    assert!(user.head().await.starts_with("HTTP/1.1 413 "));
    assert_eq!(target.rest().await, "");
}

#[tokio::test]
async fn r7_a_panic_costs_its_request_alone() {
    let dials = tower::service_fn(|_: Dial| async {
        if true {
            panic!("injected");
        }
        Ok::<_, std::io::Error>(tokio::io::BufReader::new(tokio::io::duplex(1).0))
    });
    let stage = Stage::open();
    let mut user = stage.user_of(HttpProxy::new(tower::make::Shared::new(dials)));
    user.say(GET).await;
    let head = user.head().await;
    assert!(head.starts_with("HTTP/1.1 500 ") && !head.contains("injected"), "{head}");
}

#[tokio::test]
async fn config_names_the_proxy_and_its_realm() {
    let mut config = Config::default();
    config.name = ProxyName::new("other").unwrap();
    let stage = Stage::refusing(Outcome::Unresolved);
    let mut user = stage.user_of(HttpProxy::new(stage.stack()).with_config(config));
    user.say(GET).await;
    assert!(user.head().await.contains("proxy-status: other; error=dns_error"));
}

#[tokio::test(start_paused = true)]
async fn a_config_may_say_the_largest_values_there_are() {
    type Say = fn(&mut Config);
    let says: [Say; 7] = [
        |config| config.head_timeout = Duration::MAX,
        |config| config.keep_alive_timeout = Duration::MAX,
        |config| config.parked_timeout = Duration::MAX,
        |config| config.idle_timeout = Some(Duration::MAX),
        |config| config.max_head = usize::MAX,
        |config| config.max_headers = usize::MAX,
        |config| config.max_padding = usize::MAX,
    ];
    // All at once, for what only comes of two of them; then each alone.
    let all: Vec<Say> = says.to_vec();
    for says in std::iter::once(all).chain(says.map(|say| vec![say])) {
        let mut config = Config::default();
        says.iter().for_each(|say| say(&mut config));
        let stage = Stage::keeping();
        let mut user = stage.user_of(HttpProxy::new(stage.stack()).with_config(config));
        let mut target = None;
        for _ in 0..2 {
            // Each wait that a time-out is for begins.
            tokio::time::sleep(Duration::from_secs(1)).await;
            user.say("POST http://t/ HTTP/1.1\r\nHost: t\r\n").await;
            tokio::time::sleep(Duration::from_secs(1)).await;
            user.say("Transfer-Encoding: chunked\r\n\r\n").await;
            let target = match &mut target {
                Some(target) => target,
                none => none.insert(stage.target().await),
            };
            target.head().await;
            let upload = async {
                for _ in 0..32 {
                    user.say(&format!("8000\r\n{}\r\n", "x".repeat(0x8000))).await;
                }
                user.say("0\r\n\r\n").await;
            };
            let received = async {
                let mut body = Vec::new();
                while !body.ends_with(b"\r\n0\r\n\r\n") {
                    assert!(target.io.read_buf(&mut body).await.unwrap() > 0);
                }
                body.iter().filter(|byte| **byte == b'x').count()
            };
            assert_eq!(tokio::join!(upload, received).1, 32 * 0x8000);
            tokio::time::sleep(Duration::from_secs(1)).await;
            let body = "y".repeat(1024 * 1024);
            let taken = async {
                // More than the pipes hold: the proxy waits for a user who takes nothing.
                tokio::time::sleep(Duration::from_secs(1)).await;
                assert!(user.head().await.starts_with("HTTP/1.1 200 "));
                user.take(body.len()).await
            };
            let response = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            let (taken, ()) = tokio::join!(taken, target.say(&response));
            assert!(taken == body);
        }
        assert_eq!(stage.opened(), 1);
    }
}

#[tokio::test]
async fn no_config_allows_more_than_16384_fields() {
    for (fields, expected) in [(16_384, None), (16_385, Some("HTTP/1.1 431 "))] {
        let mut config = Config::default();
        (config.max_head, config.max_headers) = (usize::MAX, usize::MAX);
        let stage = Stage::open();
        let mut user = stage.user_of(HttpProxy::new(stage.stack()).with_config(config));
        let names: String = (1..fields).map(|nth| format!("x-{nth}: \r\n")).collect();
        user.say(&format!("GET http://t/ HTTP/1.1\r\nHost: t\r\n{names}\r\n")).await;
        match expected {
            None => assert!(stage.target().await.head().await.contains("\r\nx-16383: \r\n")),
            Some(status) => assert!(user.head().await.starts_with(status)),
        }
    }
}

#[tokio::test]
async fn i5_a_cut_response_whose_end_is_the_connection_s_is_a_reset() {
    for (response, whole) in [("5\r\nhello\r\n", false), ("5\r\nhello\r\n0\r\n\r\n", true)] {
        let stage = Stage::open();
        let (mut user, aborted) = stage.user_seen();
        user.say("GET http://t/ HTTP/1.0\r\n\r\n").await;
        let mut target = stage.target().await;
        target.head().await;
        target.say(&format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{response}")).await;
        drop(target);
        assert!(user.rest().await.ends_with("\r\n\r\nhello"));
        assert_eq!(aborted.load(Ordering::SeqCst), !whole);
    }
}

#[tokio::test]
async fn serve_takes_users_until_it_is_told_to_stop() {
    let stage = Stage::open();
    let listener = anyproxy_front::Listener::bind(&["127.0.0.1:0".parse().unwrap()]).unwrap();
    let address = listener.local_addr().unwrap();
    let served = tokio::spawn(HttpProxy::new(stage.stack()).serve(listener, stage.stop.clone()));
    let mut user = tokio::net::TcpStream::connect(address).await.unwrap();
    user.write_all(b"CONNECT t:443 HTTP/1.1\r\nHost: t:443\r\n\r\nearly").await.unwrap();
    let mut target = stage.target().await;
    assert_eq!(target.take(5).await, "early");
    let mut head = [0; 15];
    user.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 200 OK");
    stage.stop.cancel();
    target.say("still here").await;
    target.io.shutdown().await.unwrap();
    user.shutdown().await.unwrap();
    let mut rest = String::new();
    user.read_to_string(&mut rest).await.unwrap();
    assert!(rest.ends_with("\r\n\r\nstill here"), "{rest}");
    drop(target);
    served.await.unwrap();
}
