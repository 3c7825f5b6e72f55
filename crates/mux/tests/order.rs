//! What leaves first: fairness between streams, and how little bulk may delay the rest.

mod raw;

use std::{collections::HashMap, time::Duration};

use anyproxy_frame::{Frame, GoAwayCode, MAX_PAYLOAD, OpenOk, StreamFrame, StreamId, ToClient, ToGateway};
use anyproxy_mux::Config;
use bytes::Bytes;

use crate::raw::{ClientUnderTest, GatewayUnderTest, bytes, id};

const QUANTUM: usize = 16 * 1024;

#[test]
fn stream_alone_sends_whole_frames() {
    let mut client = ClientUnderTest::ready();
    let stream = client.accept_open(1);
    client.mux.send(stream, bytes(200_000));
    let lens: Vec<_> = client.transmit().iter().map(Frame::encoded_len).collect();
    assert_eq!(lens, [MAX_PAYLOAD + 8, MAX_PAYLOAD + 8, MAX_PAYLOAD + 8, 200_000 - 3 * MAX_PAYLOAD + 8]);
}

#[test]
fn busy_streams_take_turns_of_a_quantum() {
    let mut client = with_short_turns();
    let streams: Vec<_> = (1..=16).map(|number| client.accept_open(number)).collect();
    for &stream in &streams {
        client.mux.send(stream, bytes(200_000));
    }
    let mut sent: HashMap<StreamId, usize> = HashMap::new();
    for _ in 0..16 * 8 {
        let (stream, data) = next_data(&mut client);
        assert!(data.len() <= QUANTUM);
        *sent.entry(stream).or_default() += data.len();
    }
    let (least, most) = (sent.values().min().unwrap(), sent.values().max().unwrap());
    assert!(sent.len() == 16 && most - least <= QUANTUM, "between {least} and {most}");
}

#[test]
fn streams_that_send_crumbs_get_the_same_share_of_bytes() {
    let mut client = with_short_turns();
    let (bulk, crumbs) = (client.accept_open(1), client.accept_open(2));
    client.mux.send(bulk, bytes(250_000));
    // Pieces just too large to be joined.
    (0..50).for_each(|_| client.mux.send(crumbs, bytes(5_000)));
    let mut sent: HashMap<StreamId, usize> = HashMap::new();
    while sent.values().sum::<usize>() < 300_000 {
        let (stream, data) = next_data(&mut client);
        *sent.entry(stream).or_default() += data.len();
    }
    assert!(sent[&bulk].abs_diff(sent[&crumbs]) <= 2 * QUANTUM, "{sent:?}");
}

#[test]
fn m17_keystroke_is_the_next_frame_however_much_waits() {
    let mut client = with_short_turns();
    let streams: Vec<_> = (1..=64).map(|number| client.accept_open(number)).collect();
    for &stream in &streams {
        client.mux.send(stream, bytes(200_000));
    }
    (0..500).for_each(|_| drop(next_data(&mut client)));
    let shell = client.accept_open_under_load(100);
    client.mux.send(shell, bytes(1));
    assert_eq!(next_data(&mut client), (shell, bytes(1)));
}

#[test]
fn streams_that_send_little_and_often_do_not_starve_the_busy() {
    let mut client = with_short_turns();
    let (chatty, bulk, empty) = (client.accept_open(1), client.accept_open(2), client.accept_udp(3));
    client.mux.send(bulk, bytes(200_000));
    next_data(&mut client);
    let (mut frames, mut bulk_frames) = (0, 0);
    while bulk_frames < 4 {
        client.mux.send(chatty, bytes(10));
        client.mux.send_datagram(empty, Bytes::new());
        let frame = client.mux.poll_transmit(client.now);
        bulk_frames += u32::from(matches!(frame, Some(ToGateway::Stream(stream, _)) if stream == bulk));
        frames += 1;
        assert!(frames < 20_000, "a quantum each, headers included, and then it is the turn of bulk");
    }
}

#[test]
fn m17_control_goes_before_bytes() {
    let mut client = ClientUnderTest::ready();
    let stream = client.accept_open(1);
    client.stream(stream, StreamFrame::Data(bytes(MAX_PAYLOAD)));
    client.stream(stream, StreamFrame::Data(bytes(MAX_PAYLOAD)));
    client.mux.send(stream, bytes(100_000));
    client.hear_open(2).unwrap();
    client.hear(ToClient::Ping(5)).unwrap();
    client.mux.consumed(stream, 2 * MAX_PAYLOAD as u32);
    client.mux.accept(id(2), OpenOk::default());
    client.mux.go_away(GoAwayCode::Shutdown, "");
    let sent = client.transmit();
    assert!(
        matches!(
            &sent[..],
            [
                ToGateway::GoAway(_),
                ToGateway::Pong(5),
                ToGateway::Stream(_, StreamFrame::Window(_)),
                ToGateway::OpenOk(..),
                ToGateway::Stream(_, StreamFrame::Data(_)),
                ..
            ]
        ),
        "{sent:?}"
    );
}

/// One bulk stream and a hundred that echo, on a line of 20 Mbit/s whose kernel takes 32 KiB ahead.
#[test]
fn m17_echoes_beside_bulk_on_a_slow_line_stay_fast() {
    const BYTES_PER_MS: usize = 2_500;
    const AHEAD: usize = 32 * 1024;
    let mut client = ClientUnderTest::ready();
    let bulk = client.accept_open(1);
    let echoes: Vec<_> = (2..=101).map(|number| client.accept_open(number)).collect();
    let mut waiting: HashMap<StreamId, u32> = HashMap::new();
    let (mut in_kernel, mut delays, mut bulk_bytes) = (0usize, Vec::new(), 0);
    for millisecond in 0..4_000u32 {
        if client.mux.unsent() < 128 * 1024 {
            client.mux.send(bulk, bytes(64 * 1024));
        }
        // Each echoes twice a second.
        for (number, &echo) in echoes.iter().enumerate() {
            if (millisecond + number as u32 * 5).is_multiple_of(500) {
                client.mux.send(echo, bytes(64));
                waiting.insert(echo, millisecond);
            }
        }
        in_kernel = in_kernel.saturating_sub(BYTES_PER_MS);
        while in_kernel < AHEAD {
            let Some(frame) = client.mux.poll_transmit(client.now) else { break };
            in_kernel += frame.encoded_len();
            let ToGateway::Stream(stream, StreamFrame::Data(data)) = frame else { continue };
            if stream == bulk {
                bulk_bytes += data.len();
                client.stream(bulk, StreamFrame::Window(data.len() as u32));
            } else {
                let arrives = millisecond + (in_kernel / BYTES_PER_MS) as u32;
                delays.push(arrives - waiting[&stream]);
            }
        }
        client.wait(Duration::from_millis(1));
        client.events();
    }
    delays.sort_unstable();
    let p99 = delays[delays.len() * 99 / 100];
    assert!(delays.len() >= 790 && p99 <= 50, "p99 of {} echoes: {p99} ms", delays.len());
    assert!(bulk_bytes >= 9_000_000, "the line stays full: {bulk_bytes}");
}

#[test]
fn rules_leave_before_the_opens_that_follow_them_and_let_bytes_through() {
    let mut gateway = GatewayUnderTest::ready();
    let living = gateway.open_answered();
    let before = gateway.open();
    gateway.mux.send_rules(7, bytes(100_000));
    let after = gateway.open();
    gateway.mux.send(living, bytes(100_000));
    let sent = gateway.transmit();
    let at = |wanted: &dyn Fn(&ToClient) -> bool| sent.iter().position(wanted).unwrap();
    let opened = |stream| at(&|frame| matches!(frame, ToClient::Open(opened, _) if *opened == stream));
    let whole = at(&|frame| matches!(frame, ToClient::Rules(rules) if rules.last && rules.version == 7));
    let first_byte = at(&|frame| matches!(frame, ToClient::Stream(..)));
    assert!(opened(before) < whole && whole < opened(after));
    assert!(first_byte < whole, "a keystroke does not wait for all rules");
    let rules = sent.iter().filter_map(|frame| match frame {
        ToClient::Rules(rules) => Some(rules.chunk.len()),
        _ => None,
    });
    assert_eq!(rules.sum::<usize>(), 100_000);
}

#[test]
fn quantum_is_the_configured_one() {
    let config = Config { quantum: 4_096, ..Config::default() };
    let mut client = ClientUnderTest::with(config);
    let streams = [client.accept_open(1), client.accept_open(2)];
    streams.into_iter().for_each(|stream| client.mux.send(stream, bytes(100_000)));
    next_data(&mut client);
    assert_eq!(next_data(&mut client).1.len(), 4_096);
}

/// Turns of [`QUANTUM`], so that there are many in a window.
fn with_short_turns() -> ClientUnderTest {
    ClientUnderTest::with(Config { quantum: QUANTUM as u32, ..Config::default() })
}

fn next_data(client: &mut ClientUnderTest) -> (StreamId, Bytes) {
    match client.mux.poll_transmit(client.now) {
        Some(ToGateway::Stream(stream, StreamFrame::Data(data))) => (stream, data),
        frame => panic!("{frame:?} where data was expected"),
    }
}

impl ClientUnderTest {
    /// Accepts without draining what waits to be sent.
    fn accept_open_under_load(&mut self, number: u32) -> StreamId {
        self.hear_open(number).expect("a new number");
        self.events();
        self.mux.accept(id(number), OpenOk::default());
        assert!(matches!(self.mux.poll_transmit(self.now), Some(ToGateway::OpenOk(..))));
        id(number)
    }
}
