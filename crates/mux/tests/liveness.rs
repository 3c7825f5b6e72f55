//! Peers that answer, peers that do not, and clocks that jump.

mod raw;

use std::time::Duration;

use anyproxy_frame::{GoAwayCode, ToClient, ToGateway};
use anyproxy_mux::{Client, Config, Event, Mux, PeerError};

use crate::raw::{ClientUnderTest, GatewayUnderTest};

const TIMEOUT: Duration = Duration::from_secs(10);

#[test]
fn first_pings_leave_one_behind_the_other_and_later_ones_at_the_interval() {
    let mut client = ClientUnderTest::ready();
    (0..8).for_each(|_| client.measure_rtt(Duration::from_millis(30)));
    assert_eq!(client.mux.rtt(), Some(Duration::from_millis(30)));
    let due = client.mux.poll_timeout().unwrap();
    assert_eq!(due, client.now + Duration::from_secs(20) - Duration::from_millis(30));
    client.now = due - Duration::from_millis(1);
    client.mux.handle_timeout(client.now).unwrap();
    assert_eq!(client.transmit(), []);
    client.now = due;
    client.measure_rtt(Duration::from_millis(110));
    assert_eq!(client.mux.rtt(), Some(Duration::from_millis(40)), "an eighth of what is new");
}

#[test]
fn pings_of_a_beginning_are_taken_however_few_are_allowed() {
    let mut client = ClientUnderTest::with(Config { max_pings: 0, ..Config::default() });
    for number in 1..=16 {
        client.hear(ToClient::Ping(number)).unwrap();
    }
    assert!(client.hear(ToClient::Ping(17)).is_err());
}

#[test]
fn f3_silent_peer_is_dead_after_the_timeout() {
    let mut client = asked();
    assert_eq!(client.mux.poll_timeout(), Some(client.now + TIMEOUT));
    client.wait(TIMEOUT - Duration::from_millis(1));
    assert_eq!(client.mux.handle_timeout(client.now), Ok(()));
    client.wait(Duration::from_millis(1));
    let error = client.mux.handle_timeout(client.now).unwrap_err();
    assert_eq!((error.code(), &error), (GoAwayCode::Timeout, &PeerError::PingTimeout(TIMEOUT)));
    assert!(client.mux.is_going_away() && !client.mux.is_ready());
}

#[test]
fn peer_is_dead_too_when_the_carrier_never_takes_the_ping() {
    let mut client = ClientUnderTest::ready();
    client.mux.handle_timeout(client.now).unwrap();
    client.wait(TIMEOUT);
    assert!(client.mux.handle_timeout(client.now).is_err());
}

#[test]
fn frames_put_death_off_but_not_for_ever() {
    let mut client = asked();
    for _ in 0..3 {
        client.wait(Duration::from_secs(9));
        client.mux.handle_timeout(client.now).unwrap();
        client.hear(ToClient::Ping(1)).unwrap();
    }
    client.wait(Duration::from_secs(3));
    assert!(client.mux.handle_timeout(client.now).is_err(), "thirty seconds without an answer");
}

#[test]
fn line_that_moves_puts_death_off_by_the_timeout() {
    let mut client = asked();
    client.wait(Duration::from_secs(9));
    client.mux.handle_progress(client.now);
    assert_eq!(client.mux.poll_timeout(), Some(client.now + TIMEOUT));
    client.wait(TIMEOUT - Duration::from_millis(1));
    assert_eq!(client.mux.handle_timeout(client.now), Ok(()));
    client.wait(Duration::from_millis(1));
    assert_eq!(client.mux.handle_timeout(client.now), Err(PeerError::PingTimeout(TIMEOUT)));
}

#[test]
fn peer_that_only_swallows_is_dead_after_three_timeouts() {
    let mut client = asked();
    let asked = client.now;
    while client.now < asked + 3 * TIMEOUT {
        assert_eq!(client.mux.handle_timeout(client.now), Ok(()), "after {:?}", client.now - asked);
        client.mux.handle_progress(client.now);
        client.wait(Duration::from_millis(1));
    }
    assert_eq!(client.mux.handle_timeout(client.now), Err(PeerError::PingTimeout(TIMEOUT)));
}

#[test]
fn i10_pause_of_this_process_is_not_the_death_of_the_peer() {
    let mut client = asked();
    client.wait(Duration::from_secs(3_600));
    assert_eq!(client.mux.handle_timeout(client.now), Ok(()), "the timer comes an hour too late");
    assert_eq!(client.mux.poll_timeout(), Some(client.now + TIMEOUT));
    client.hear(ToClient::Pong(1)).unwrap();
    assert!(matches!(client.events()[..], [Event::Rtt(_)]));

    let mut client = asked();
    client.wait(Duration::from_secs(3_600));
    assert_eq!(client.mux.handle_timeout(client.now), Ok(()));
    client.wait(TIMEOUT);
    assert!(client.mux.handle_timeout(client.now).is_err(), "it had its second chance");
}

#[test]
fn i10_pause_between_pings_makes_one_ping() {
    let mut client = ClientUnderTest::ready();
    client.measure_rtt(Duration::from_millis(1));
    client.wait(Duration::from_secs(86_400));
    client.mux.handle_timeout(client.now).unwrap();
    client.mux.handle_timeout(client.now).unwrap();
    assert_eq!(client.transmit(), [ToGateway::Ping(2)]);
}

#[test]
fn pong_that_nobody_asked_for_is_ignored_up_to_a_limit() {
    let mut client = asked();
    for _ in 0..100 {
        assert_eq!(client.hear(ToClient::Pong(99)), Ok(()));
    }
    assert_eq!(client.mux.rtt(), None);
    assert_eq!(client.hear(ToClient::Pong(99)), Err(PeerError::Ignored));
}

#[test]
fn hello_that_does_not_come_ends_the_tunnel() {
    let mut client = ClientUnderTest::silent(Config::default());
    assert_eq!(client.mux.poll_timeout(), Some(client.now + TIMEOUT));
    client.wait(TIMEOUT);
    assert_eq!(client.mux.handle_timeout(client.now), Err(PeerError::HelloTimeout(TIMEOUT)));
    assert!(matches!(client.transmit()[..], [ToGateway::GoAway(_)]));
}

#[test]
fn gateway_that_owes_its_hello_sends_nothing_and_waits_for_nobody() {
    let mut gateway = GatewayUnderTest::silent(Config::default());
    gateway.hear(raw::client_hello()).unwrap();
    assert_eq!(gateway.mux.poll_timeout(), None);
    gateway.wait(Duration::from_secs(60));
    assert_eq!(gateway.mux.handle_timeout(gateway.now), Ok(()));
    assert_eq!(gateway.transmit(), []);
}

#[test]
fn values_out_of_range_are_brought_back() {
    let config =
        Config { window: 1, ping_interval: Duration::ZERO, quantum: 0, max_streams: 0, ..Config::default() };
    let now = std::time::Instant::now();
    let mut mux = Mux::<Client>::new(config, now);
    mux.hello(anyproxy_frame::ClientHello::new("c", 1)).unwrap();
    let Some(ToGateway::Hello(hello)) = mux.poll_transmit(now) else { panic!("no hello") };
    assert_eq!((hello.window, hello.max_streams), (16 * 1024, 1));

    let longest = Duration::MAX;
    let config =
        Config { hello_timeout: longest, ping_interval: longest, ping_timeout: longest, ..Config::default() };
    let mut client = ClientUnderTest::with(config);
    assert_eq!(client.mux.handle_timeout(client.now), Ok(()), "no instant overflows");
    client.transmit();
    assert!(client.mux.poll_timeout().is_some_and(|deadline| deadline > client.now));
}

/// A client whose ping is under way.
fn asked() -> ClientUnderTest {
    let mut client = ClientUnderTest::ready();
    assert_eq!(client.mux.handle_timeout(client.now), Ok(()));
    assert_eq!(client.transmit(), [ToGateway::Ping(1)]);
    client
}
