//! Cases S1 to S12: users of CONNECT, and those who get no further than the handshake.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod stage;

use std::sync::Arc;
use std::time::Duration;

use anyproxy_core::{BoxGateway, BoxStream, GatewayStack, Login, Outcome, Target};
use anyproxy_front::{Listener, Relay, UserStream};
use anyproxy_socks5::Socks5;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use stage::*;

/// A user of `stack`, and the task that serves them.
fn user_of(stack: impl GatewayStack) -> (DuplexStream, JoinHandle<()>) {
    let (user, near) = duplex(64 * 1024);
    (user, tokio::spawn(Socks5::new(stack).serve_connection(near, source(), &CancellationToken::new())))
}

#[tokio::test]
async fn s1_one_byte_at_a_time_or_all_at_once_is_the_same_and_early_data_waits_for_success() {
    for piece in [1, 1000] {
        let (dials, mut asked) = by_hand();
        let (stack, _) = accounts(dials, alice_alone);
        let (mut user, _task) = user_of(stack);
        for bytes in [OFFER_BOTH, ALICE, CONNECT, b"early"].concat().chunks(piece) {
            user.write_all(bytes).await.unwrap();
            tokio::task::yield_now().await;
        }
        expect(&mut user, b"\x05\x02\x01\x00").await;
        let asked = asked.recv().await.unwrap();
        assert_eq!(asked.dial.target, Target::parse("printer.lan:631").unwrap());
        assert_eq!(asked.dial.source, source());
        let mut target = asked.connect();
        expect(&mut user, SUCCESS).await;
        user.write_all(b" later").await.unwrap();
        expect(&mut target, b"early later").await;
    }
}

#[tokio::test]
async fn s2_another_protocol_is_closed_at_once_and_dials_nothing() {
    for first in [b"\x04\x01", b"\x00\x00", b"GE"] {
        let (dials, mut asked) = by_hand();
        let (mut user, task) = user_of(open(dials));
        assert_eq!(say(&mut user, first).await, b"");
        drop(user);
        task.await.unwrap();
        assert!(asked.recv().await.is_none());
    }
}

#[tokio::test]
async fn s3_a_user_who_offers_nothing_the_stack_wants_gets_ff() {
    let (dials, mut asked) = by_hand();
    let (stack, seen) = accounts(dials, alice_alone);
    for greeting in [&b"\x05\x00"[..], OPEN, b"\x05\x02\x01\x03"] {
        let (mut user, _task) = user_of(stack.clone());
        assert_eq!(say(&mut user, &[greeting, CONNECT].concat()).await, b"\x05\xff");
    }
    assert_eq!(*seen.lock().unwrap(), [None], "only the one who offers no login is asked about");
    assert!(asked.try_recv().is_err());
}

#[tokio::test]
async fn s4_a_login_cannot_be_skipped() {
    let (dials, mut asked) = by_hand();
    let (stack, _) = accounts(dials, alice_alone);
    let (mut user, _task) = user_of(stack);
    assert_eq!(say(&mut user, &[OFFER_BOTH, CONNECT].concat()).await, b"\x05\x02\x01\x01");
    assert!(asked.try_recv().is_err());
}

#[tokio::test]
async fn s5_a_wrong_login_gets_a_status_and_an_end() {
    let (dials, mut asked) = by_hand();
    let (stack, _) = accounts(dials, alice_alone);
    for login in [
        &b"\x02\x01a\x01b"[..],
        b"\x01\x00\x01b",
        b"\x01\x01a\x00",
        b"\x01\x01\xff\x01b",
        b"\x01\x05alice\x01x",
    ] {
        let (mut user, _task) = user_of(stack.clone());
        assert_eq!(
            say(&mut user, &[OFFER_BOTH, login, CONNECT].concat()).await,
            b"\x05\x02\x01\x01",
            "{login:?}"
        );
    }
    assert!(asked.try_recv().is_err());
}

#[tokio::test]
async fn s5_the_longest_login_passes() {
    let (dials, mut asked) = by_hand();
    let (stack, _) = accounts(dials, |name, password| {
        assert_eq!((name.len(), password.len()), (255, 255));
        Ok(())
    });
    let (mut user, _task) = user_of(stack);
    let login = [&[1, 255][..], &[b'n'; 255], &[255], &[b'p'; 255]].concat();
    user.write_all(&[OFFER_BOTH, &login, CONNECT].concat()).await.unwrap();
    expect(&mut user, b"\x05\x02\x01\x00").await;
    asked.recv().await.unwrap().connect();
    expect(&mut user, SUCCESS).await;
}

#[tokio::test]
async fn a_source_that_is_locked_out_is_asked_for_a_login_and_refused() {
    let (dials, _asked) = by_hand();
    let (stack, _) = accounts(dials, |_, _| Err(Outcome::LockedOut { retry_after: Duration::from_secs(15) }));
    let (mut user, _task) = user_of(stack);
    assert_eq!(say(&mut user, &[OFFER_BOTH, ALICE].concat()).await, b"\x05\x02\x01\x01");
}

#[tokio::test]
async fn a_stack_without_accounts_serves_those_who_offer_a_login_and_those_who_offer_nothing_else() {
    for (greeting, login, answer) in
        [(OFFER_BOTH, &b""[..], &b"\x05\x00"[..]), (b"\x05\x01\x02", ALICE, b"\x05\x02\x01\x00")]
    {
        let (dials, mut asked) = by_hand();
        let (mut user, _task) = user_of(open(dials));
        user.write_all(&[greeting, login, CONNECT].concat()).await.unwrap();
        expect(&mut user, answer).await;
        asked.recv().await.unwrap().connect();
        expect(&mut user, SUCCESS).await;
    }
}

#[tokio::test]
async fn s6_unknown_commands_and_address_types_are_answered_and_closed() {
    let requests = [
        (&b"\x05\x02\x00\x01\xc0\0\x02\x01\0\x16"[..], 7),
        (b"\x05\x00\x00\x01\xc0\0\x02\x01\0\x16", 7),
        (b"\x05\xff\x00\x01\xc0\0\x02\x01\0\x16", 7),
        (b"\x05\x01\x00\x02\xc0\0\x02\x01\0\x16", 8),
        (b"\x05\x01\x00\x05\xc0\0\x02\x01\0\x16", 8),
    ];
    for (request, code) in requests {
        let (dials, mut asked) = by_hand();
        let (mut user, task) = user_of(open(dials));
        let answer = say(&mut user, &[OPEN, request].concat()).await;
        assert_eq!(answer, [&b"\x05\x00\x05"[..], &[code], b"\0\x01\0\0\0\0\0\0"].concat());
        drop(user);
        task.await.unwrap();
        assert!(asked.try_recv().is_err());
    }
}

#[tokio::test]
async fn s7_a_name_that_is_none_is_refused_without_a_dial() {
    for name in [&b""[..], b"a\0b", b"a b", b"a\rb", b"a/b", b"u@h", b"2130706433", &[b'a'; 255]] {
        let (dials, mut asked) = by_hand();
        let (mut user, _task) = user_of(open(dials));
        let request = [OPEN, b"\x05\x01\x00\x03", &[name.len() as u8], name, b"\0\x50"].concat();
        let answer = say(&mut user, &request).await;
        assert_eq!(answer[2..4], [5, 4], "{name:?}");
        assert!(asked.try_recv().is_err());
    }
}

#[tokio::test]
async fn s7_the_longest_name_that_fits_is_dialled_as_it_is() {
    let name = ["a"; 128].join(".");
    let (dials, mut asked) = by_hand();
    let (mut user, _task) = user_of(open(dials));
    let request = [OPEN, b"\x05\x01\x00\x03\xff", name.as_bytes(), b"\0\x50"].concat();
    user.write_all(&request).await.unwrap();
    let dial = asked.recv().await.unwrap().dial;
    assert_eq!(dial.target.to_string(), format!("{name}:80"));
}

#[tokio::test]
async fn s8_a_refused_dial_is_told_why_and_nothing_about_the_inside() {
    for (outcome, code) in [
        (Outcome::Refused, 5),
        (Outcome::Unresolved, 4),
        (Outcome::NetworkUnreachable, 3),
        (Outcome::TimedOut, 6),
        (Outcome::Denied, 2),
        (Outcome::NoClient, 3),
        (Outcome::TunnelLost, 1),
    ] {
        let (dials, mut asked) = by_hand();
        let (mut user, _task) = user_of(open(dials));
        user.write_all(&[OPEN, CONNECT, b"early data, not read by anybody"].concat()).await.unwrap();
        asked.recv().await.unwrap().refuse(outcome);
        let answer = rest(&mut user).await;
        assert_eq!(answer, [&b"\x05\x00\x05"[..], &[code], b"\0\x01\0\0\0\0\0\0"].concat(), "{outcome}");
    }
}

#[tokio::test(start_paused = true)]
async fn s9_silence_is_closed_at_the_deadline_in_every_state() {
    let whole = [OFFER_BOTH, ALICE, CONNECT].concat();
    let within = |state: usize| [0, 1, OFFER_BOTH.len(), OFFER_BOTH.len() + 3, whole.len() - 1][state];
    for state in 0..5 {
        let (dials, _asked) = by_hand();
        let (stack, _) = accounts(dials, alice_alone);
        let (mut user, task) = user_of(stack);
        let since = Instant::now();
        user.write_all(&whole[..within(state)]).await.unwrap();
        task.await.unwrap();
        assert_eq!(since.elapsed().as_secs(), 10, "in state {state}");
        rest(&mut user).await;
    }
}

#[tokio::test(start_paused = true)]
async fn s9_one_byte_every_few_seconds_does_not_renew_the_deadline() {
    let (dials, _asked) = by_hand();
    let (mut user, task) = user_of(open(dials));
    let since = Instant::now();
    let drip = async {
        for byte in [OPEN, CONNECT].concat() {
            if user.write_all(&[byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_secs(3)).await;
        }
    };
    let (ended, ()) = tokio::join!(task, drip);
    ended.unwrap();
    assert!(since.elapsed() < Duration::from_secs(14));
}

#[tokio::test]
async fn s10_a_user_who_leaves_before_the_answer_gives_the_dial_up() {
    let (dials, mut asked) = by_hand();
    let (mut user, task) = user_of(open(dials));
    user.write_all(&[OPEN, CONNECT].concat()).await.unwrap();
    let mut asked = asked.recv().await.unwrap();
    drop(user);
    asked.answer.closed().await;
    task.await.unwrap();
}

#[tokio::test]
async fn s11_a_server_that_speaks_first_is_heard() {
    let (dials, mut asked) = by_hand();
    let (mut user, _task) = user_of(open(dials));
    user.write_all(&[OPEN, CONNECT].concat()).await.unwrap();
    let mut target = asked.recv().await.unwrap().connect();
    target.write_all(b"SSH-2.0-banner\r\n").await.unwrap();
    expect(&mut user, b"\x05\x00").await;
    expect(&mut user, SUCCESS).await;
    expect(&mut user, b"SSH-2.0-banner\r\n").await;
}

#[tokio::test]
async fn s12_a_half_close_after_the_request_leaves_the_answer_whole() {
    let (dials, mut asked) = by_hand();
    let (mut user, task) = user_of(open(dials));
    // All at once and the end behind it, before there is any answer: what `printf … | nc` does.
    user.write_all(&[OPEN, CONNECT, b"request"].concat()).await.unwrap();
    user.shutdown().await.unwrap();
    let mut target = asked.recv().await.unwrap().connect();
    assert_eq!(rest(&mut target).await, b"request");
    target.write_all(&[7; 50_000]).await.unwrap();
    drop(target);
    let answer = rest(&mut user).await;
    assert_eq!(answer.len(), 2 + SUCCESS.len() + 50_000);
    task.await.unwrap();
}

#[tokio::test]
async fn a_reset_by_the_target_is_a_reset_for_the_user() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let direct = tower::service_fn(move |_: anyproxy_core::Dial| async move {
        TcpStream::connect(address).await.map(tokio::io::BufStream::new)
    });
    let front = Listener::bind(&["127.0.0.1:0".parse().unwrap()]).unwrap();
    let mut user = TcpStream::connect(front.local_addr().unwrap()).await.unwrap();
    let _front = tokio::spawn(Socks5::new(open(direct)).serve(front, CancellationToken::new()));
    user.write_all(&[OPEN, CONNECT].concat()).await.unwrap();
    let (target, _) = listener.accept().await.unwrap();
    expect(&mut user, b"\x05\x00").await;
    expect(&mut user, SUCCESS).await;
    target.set_zero_linger().unwrap();
    drop(target);
    let error = user.read(&mut [0; 8]).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn r6_after_stop_a_user_is_waited_for_who_has_asked_for_something() {
    let (dials, mut asked) = by_hand();
    let front = Socks5::new(open(dials));
    for said in [&b""[..], OPEN, &[OPEN, &CONNECT[..7]].concat()] {
        let (stop, (mut user, near)) = (CancellationToken::new(), duplex(64));
        let task = tokio::spawn(front.serve_connection(near, source(), &stop));
        user.write_all(said).await.unwrap();
        if !said.is_empty() {
            expect(&mut user, b"\x05\x00").await;
        }
        stop.cancel();
        timeout(Duration::from_secs(5), task).await.expect("not held up").unwrap();
    }
    assert!(asked.try_recv().is_err());
    // What has arrived is an answer's worth, and so is the stream behind it.
    let (stop, (mut user, near)) = (CancellationToken::new(), duplex(64));
    user.write_all(&[OPEN, CONNECT].concat()).await.unwrap();
    stop.cancel();
    let _task = tokio::spawn(front.serve_connection(near, source(), &stop));
    let mut target = asked.recv().await.unwrap().connect();
    expect(&mut user, b"\x05\x00").await;
    expect(&mut user, SUCCESS).await;
    user.write_all(b"on").await.unwrap();
    expect(&mut target, b"on").await;
}

#[tokio::test]
async fn r6_after_stop_a_login_under_way_is_answered() {
    let (dials, mut asked) = by_hand();
    let looked_up = Arc::new(Notify::new());
    let (stack, seen) = accounts(dials, alice_alone);
    let slow = {
        let looked_up = looked_up.clone();
        tower::service_fn(move |login: Login| {
            let (stack, looked_up) = (stack.clone(), looked_up.clone());
            async move {
                let verdict = stack.login(login).await;
                looked_up.notified().await;
                verdict
            }
        })
    };
    let (stop, (mut user, near)) = (CancellationToken::new(), duplex(64));
    let login = b"\x05\x01\x02\x01\x05alice\x06secret";
    user.write_all(&[&login[..], CONNECT].concat()).await.unwrap();
    let _task = tokio::spawn(Socks5::new(slow).serve_connection(near, source(), &stop));
    while seen.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    stop.cancel();
    tokio::task::yield_now().await;
    looked_up.notify_one();
    let _target = asked.recv().await.expect("asked for").connect();
    expect(&mut user, b"\x05\x02\x01\x00").await;
    expect(&mut user, SUCCESS).await;
}

#[tokio::test]
async fn an_idle_connection_is_its_relay_and_any_stack_can_be_served_in_a_task() {
    let (dials, _asked) = by_hand();
    let front = Socks5::new(BoxGateway::new(open(dials)));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let user = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let stop = CancellationToken::new();
    let connection = front.serve_connection(UserStream::from(user), source(), &stop);
    assert_eq!(size_of_val(&connection), size_of::<Relay<UserStream, BoxStream>>());

    stop.cancel();
    let listener = Listener::bind(&["127.0.0.1:0".parse().unwrap()]).unwrap();
    tokio::spawn(front.serve(listener, stop)).await.unwrap();
}
