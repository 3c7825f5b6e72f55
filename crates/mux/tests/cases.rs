//! A raw peer against one core: each abuse ends in a named error or a bounded cost, and honest streams go on. Cases
//! carry their numbers; invented time throughout.

mod raw;

use std::time::Duration;

use anyproxy_frame::{
    GoAway, GoAwayCode, MAX_PAYLOAD, MAX_WINDOW, OpenErr, OpenErrClass, OpenOk, ResetCode, Rules,
    START_WINDOW, StreamFrame, StreamId, ToClient, ToGateway, Unknown,
};
use anyproxy_mux::{Config, Event, Memory, OpenError, PeerError};
use bytes::Bytes;

use crate::raw::{ClientUnderTest, GatewayUnderTest, bytes, id, open};

// === hellos and frames that mean nothing ===

#[test]
fn m1_nothing_comes_before_the_hello_and_no_second_one() {
    let mut gateway = GatewayUnderTest::silent(Config::default());
    let data = ToGateway::Stream(id(1), StreamFrame::Data(bytes(1)));
    assert_eq!(gateway.hear(data), Err(PeerError::HelloMissing));

    let mut client = ClientUnderTest::silent(Config::default());
    assert_eq!(client.hear(ToClient::Open(id(1), Box::new(open()))), Err(PeerError::HelloMissing));

    let mut gateway = GatewayUnderTest::ready();
    assert_eq!(gateway.hear(raw::client_hello()), Err(PeerError::HelloRepeated));
}

#[test]
fn m1_unknown_frames_are_ignored_up_to_their_limit() {
    let mut client = ClientUnderTest::ready();
    let unknown = || ToClient::Unknown(Unknown { kind: 0x80, stream: 77, payload: bytes(10) });
    for _ in 0..100 {
        assert_eq!(client.hear(unknown()), Ok(()));
    }
    assert_eq!(client.hear(unknown()), Err(PeerError::Ignored));
}

#[test]
fn m1_error_ends_this_tunnel_with_a_go_away_that_says_why() {
    let mut client = ClientUnderTest::ready();
    client.accept_open(1);
    client.mux.send(id(1), bytes(1000));
    let error = client.hear(ToClient::Stream(id(9), StreamFrame::Fin)).unwrap_err();
    assert_eq!(error, PeerError::UnknownStream(id(9)));
    let sent = client.transmit();
    let [ToGateway::GoAway(go_away)] = &sent[..] else { panic!("{sent:?}") };
    assert_eq!((go_away.code, go_away.last), (GoAwayCode::Protocol, 1));
    assert_eq!(go_away.reason, "frame on stream 9, which was never opened");
    assert_eq!(client.mux.poll_timeout(), None);
    assert_eq!(client.hear(ToClient::Ping(1)), Ok(()), "what comes after that does not matter");
    assert!(client.transmit().is_empty());
}

// === numbers ===

#[test]
fn m4_open_on_a_live_or_used_number_is_an_error() {
    let mut client = ClientUnderTest::ready();
    client.accept_open(5);
    assert_eq!(client.hear_open(5), Err(PeerError::StreamReused(id(5))));
    let mut client = ClientUnderTest::ready();
    client.accept_open(5);
    assert_eq!(client.hear_open(3), Err(PeerError::StreamReused(id(3))));
}

#[test]
fn m4_gaps_between_numbers_are_streams_that_are_over() {
    let mut client = ClientUnderTest::ready();
    client.accept_open(5);
    assert_eq!(client.hear(ToClient::Stream(id(4), StreamFrame::Fin)), Ok(()));
    assert_eq!(client.accept_open(1_000_000), id(1_000_000));
}

#[test]
fn m5_frames_on_streams_never_opened_are_errors() {
    let frames = || {
        [
            StreamFrame::Data(bytes(1)),
            StreamFrame::Window(1),
            StreamFrame::Fin,
            StreamFrame::Reset(ResetCode::Idle),
        ]
    };
    for frame in frames() {
        let mut client = ClientUnderTest::ready();
        assert_eq!(client.hear(ToClient::Stream(id(1), frame)), Err(PeerError::UnknownStream(id(1))));
    }
    for frame in frames() {
        let mut gateway = GatewayUnderTest::ready();
        // Opened here, but not sent yet: the peer cannot know of it.
        let stream = gateway.open();
        assert_eq!(gateway.hear(ToGateway::Stream(stream, frame)), Err(PeerError::UnknownStream(stream)));
    }
    let mut gateway = GatewayUnderTest::ready();
    let ok = ToGateway::OpenOk(id(1), OpenOk::default());
    assert_eq!(gateway.hear(ok), Err(PeerError::UnknownStream(id(1))));
}

#[test]
fn m5_frames_on_closed_streams_are_dropped_and_nothing_is_remembered() {
    let mut client = ClientUnderTest::ready();
    for number in 1..=10_000 {
        let stream = client.accept_open(number);
        client.mux.reset(stream, ResetCode::Cancelled);
        client.events();
        client.transmit();
    }
    assert_eq!(client.mux.streams(), 0);
    for number in 1..=10_000 {
        for frame in [StreamFrame::Data(bytes(900)), StreamFrame::Window(1), StreamFrame::Fin] {
            assert_eq!(client.hear(ToClient::Stream(id(number), frame)), Ok(()));
        }
    }
    assert_eq!(client.mux.held(), 0);
    assert_eq!(client.events(), []);
    assert_eq!(client.transmit(), []);
}

// === ends ===

#[test]
fn m6_data_behind_a_fin_resets_the_stream_and_a_second_fin_is_ignored() {
    let mut client = ClientUnderTest::ready();
    let stream = client.accept_open(1);
    client.stream(stream, StreamFrame::Data(bytes(3)));
    client.stream(stream, StreamFrame::Fin);
    client.stream(stream, StreamFrame::Fin);
    assert_eq!(client.events(), [Event::Data { id: stream, data: bytes(3) }, Event::Fin { id: stream }]);
    client.stream(stream, StreamFrame::Data(bytes(3)));
    assert_eq!(client.events(), [Event::Reset { id: stream, code: ResetCode::Protocol }]);
    let reset = ToGateway::Stream(stream, StreamFrame::Reset(ResetCode::Protocol));
    assert_eq!(client.transmit(), [reset]);
    client.mux.consumed(stream, 3);
    assert_eq!(client.events(), [Event::Closed { id: stream }], "after the reader has had its three bytes");
}

#[test]
fn m13_reset_behind_a_fin_leaves_data_and_clean_end() {
    let mut client = ClientUnderTest::ready();
    let stream = client.accept_open(1);
    client.stream(stream, StreamFrame::Data(bytes(5)));
    client.stream(stream, StreamFrame::Fin);
    client.stream(stream, StreamFrame::Reset(ResetCode::PeerReset));
    let code = ResetCode::PeerReset;
    assert_eq!(
        client.events(),
        [
            Event::Data { id: stream, data: bytes(5) },
            Event::Fin { id: stream },
            Event::Reset { id: stream, code }
        ]
    );
    assert_eq!(client.mux.streams(), 1, "it holds what the reader has not read");
    client.mux.consumed(stream, 5);
    assert_eq!(client.events(), [Event::Closed { id: stream }]);
}

#[test]
fn i5_fin_waits_for_the_data_before_it() {
    let mut client = ClientUnderTest::ready();
    let stream = client.accept_open(1);
    client.mux.send(stream, bytes(START_WINDOW as usize + 5));
    client.mux.finish(stream);
    client.mux.send(stream, bytes(1));
    let sent = client.transmit();
    assert_eq!(raw::data_len(&sent), START_WINDOW as usize);
    assert!(!sent.contains(&ToGateway::Stream(stream, StreamFrame::Fin)));
    client.stream(stream, StreamFrame::Window(5));
    let rest = [StreamFrame::Data(bytes(5)), StreamFrame::Fin].map(|frame| ToGateway::Stream(stream, frame));
    assert_eq!(client.transmit(), rest, "and what was given after the fin is not sent");
}

#[test]
fn m14_answers_that_come_too_late_or_twice_are_ignored() {
    let mut gateway = GatewayUnderTest::ready();
    let stream = gateway.open_sent();
    gateway.mux.reset(stream, ResetCode::Cancelled);
    assert_eq!(gateway.events(), [Event::Closed { id: stream }]);
    assert_eq!(gateway.transmit(), [ToClient::Stream(stream, StreamFrame::Reset(ResetCode::Cancelled))]);
    assert_eq!(gateway.hear(ToGateway::OpenOk(stream, OpenOk::default())), Ok(()));
    assert_eq!(gateway.events(), []);

    let stream = gateway.open_answered();
    let err = || Box::new(OpenErr::new(OpenErrClass::Refused, ""));
    assert_eq!(gateway.hear(ToGateway::OpenErr(stream, err())), Ok(()));
    assert_eq!(gateway.hear(ToGateway::OpenOk(stream, OpenOk::default())), Ok(()));
    assert_eq!(gateway.events(), []);
    assert_eq!(gateway.mux.streams(), 1);
}

#[test]
fn m14_client_learns_that_the_user_left_and_its_answer_does_nothing() {
    let mut client = ClientUnderTest::ready();
    client.hear_open(1).unwrap();
    client.events();
    client.stream(id(1), StreamFrame::Reset(ResetCode::Cancelled));
    let code = ResetCode::Cancelled;
    assert_eq!(client.events(), [Event::Reset { id: id(1), code }, Event::Closed { id: id(1) }]);
    client.mux.accept(id(1), OpenOk::default());
    client.mux.refuse(id(1), OpenErr::new(OpenErrClass::Refused, ""));
    assert_eq!(client.transmit(), []);
    assert_eq!((client.mux.streams(), client.mux.unanswered()), (0, 0));
}

#[test]
fn m14_open_that_was_given_up_before_it_left_is_never_sent() {
    let mut gateway = GatewayUnderTest::ready();
    let given_up = gateway.open();
    let wanted = gateway.open();
    gateway.mux.reset(given_up, ResetCode::Cancelled);
    let sent = gateway.transmit();
    assert!(matches!(&sent[..], [ToClient::Open(opened, _)] if *opened == wanted), "{sent:?}");
}

#[test]
fn stream_frames_before_the_answer_are_errors() {
    for frame in [StreamFrame::Data(bytes(1)), StreamFrame::Window(1), StreamFrame::Fin] {
        let mut client = ClientUnderTest::ready();
        client.hear_open(1).unwrap();
        let result = client.hear(ToClient::Stream(id(1), frame.clone()));
        assert_eq!(result, Err(PeerError::Unanswered(id(1))));
        let mut gateway = GatewayUnderTest::ready();
        let stream = gateway.open_sent();
        assert_eq!(gateway.hear(ToGateway::Stream(stream, frame)), Err(PeerError::Unanswered(stream)));
    }
}

// === credit ===

#[test]
fn m3_first_frame_beyond_the_window_is_an_error() {
    let config = Config { window: 16 * 1024, ..Config::default() };
    let mut client = ClientUnderTest::with(config);
    let (first, second) = (client.accept_open(1), client.accept_open(2));
    client.stream(second, StreamFrame::Data(bytes(7)));
    let error = client.hear(ToClient::Stream(first, StreamFrame::Data(bytes(16 * 1024 + 1)))).unwrap_err();
    let (credit, len) = (16 * 1024, 16 * 1024 + 1);
    assert_eq!(error, PeerError::WindowExceeded { stream: first, credit, len });
    assert_eq!(error.code(), GoAwayCode::FlowControl);
    assert_eq!((client.mux.streams(), client.mux.held()), (2, 7), "the table is whole");
}

#[test]
fn m7_surplus_beyond_the_window_is_not_stored() {
    let mut client = ClientUnderTest::ready();
    let stream = client.accept_open(1);
    for _ in 0..START_WINDOW as usize / MAX_PAYLOAD {
        client.stream(stream, StreamFrame::Data(bytes(MAX_PAYLOAD)));
    }
    let error = client.hear(ToClient::Stream(stream, StreamFrame::Data(bytes(1)))).unwrap_err();
    assert_eq!(error, PeerError::WindowExceeded { stream, credit: 0, len: 1 });
    assert_eq!(client.mux.held(), START_WINDOW.into());
}

#[test]
fn m8_credit_of_zero_and_credit_beyond_the_maximum_are_errors() {
    let mut client = ClientUnderTest::ready();
    let stream = client.accept_open(1);
    assert_eq!(
        client.hear(ToClient::Stream(stream, StreamFrame::Window(0))),
        Err(PeerError::WindowZero(stream))
    );
    let mut client = ClientUnderTest::ready();
    let stream = client.accept_open(1);
    client.stream(stream, StreamFrame::Window(MAX_WINDOW - START_WINDOW));
    assert_eq!(
        client.hear(ToClient::Stream(stream, StreamFrame::Window(1))),
        Err(PeerError::WindowOverflow(stream))
    );
    let mut client = ClientUnderTest::ready();
    let stream = client.accept_open(1);
    assert_eq!(
        client.hear(ToClient::Stream(stream, StreamFrame::Window(u32::MAX))),
        Err(PeerError::WindowOverflow(stream))
    );
}

#[test]
fn m8_a_million_crumbs_of_credit_make_no_storm_of_crumbs() {
    let mut client = ClientUnderTest::ready();
    let stream = client.accept_open(1);
    client.mux.send(stream, bytes(4 << 20));
    client.transmit();
    client.events();
    let mut frames = 0;
    for _ in 0..1_000_000 {
        client.stream(stream, StreamFrame::Window(1));
        frames += client.transmit().len();
        client.events();
    }
    assert!((1..=1_000_000 / 4_096).contains(&frames), "{frames} frames");
}

#[test]
fn credit_is_given_back_in_halves_of_the_window() {
    let mut client = ClientUnderTest::ready();
    let stream = client.accept_open(1);
    for _ in 0..4 {
        client.stream(stream, StreamFrame::Data(bytes(MAX_PAYLOAD)));
    }
    client.mux.consumed(stream, START_WINDOW / 2 - 1);
    assert_eq!(client.transmit(), []);
    client.mux.consumed(stream, 1);
    let credit = ToGateway::Stream(stream, StreamFrame::Window(START_WINDOW / 2));
    assert_eq!(client.transmit(), [credit]);
}

#[test]
fn m9_peer_that_grants_nothing_holds_up_only_its_own_stream() {
    let mut client = ClientUnderTest::ready();
    let (stuck, free) = (client.accept_open(1), client.accept_open(2));
    client.mux.send(stuck, bytes(START_WINDOW as usize + 100_000));
    assert_eq!(raw::data_len(&client.transmit()), START_WINDOW as usize);
    client.mux.send(free, bytes(1000));
    assert_eq!(raw::data_len(&client.transmit()), 1000);
    assert_eq!(client.mux.unsent(), 100_000, "what the owner gave, and not a byte more");
    client.mux.reset(stuck, ResetCode::Idle);
    assert_eq!((client.mux.unsent(), client.mux.streams()), (0, 1));
}

#[test]
fn m10_unread_stream_holds_its_window_and_others_keep_theirs() {
    // The least credit that any of ten streams is left with while they are read as fast as bytes come, and what is held
    // in the end.
    let ten_beside = |unread: usize| {
        let mut client = ClientUnderTest::ready();
        let streams: Vec<StreamId> =
            (1..).take(10 + unread).map(|number| client.accept_open(number)).collect();
        let (read, unread) = streams.split_at(10);
        for &stream in unread {
            for _ in 0..START_WINDOW as usize / MAX_PAYLOAD {
                client.stream(stream, StreamFrame::Data(bytes(MAX_PAYLOAD)));
            }
        }
        client.transmit();
        let (mut credit, mut least) = ([START_WINDOW; 10], START_WINDOW);
        for _ in 0..200 {
            for (&stream, credit) in read.iter().zip(&mut credit) {
                client.stream(stream, StreamFrame::Data(bytes(MAX_PAYLOAD)));
                client.mux.consumed(stream, MAX_PAYLOAD as u32);
                *credit -= MAX_PAYLOAD as u32;
                for frame in client.transmit() {
                    let ToGateway::Stream(id, StreamFrame::Window(more)) = frame else { panic!("{frame:?}") };
                    assert_eq!(id, stream);
                    *credit += more;
                }
                least = least.min(*credit);
            }
            client.events();
        }
        (least, client.mux.held())
    };
    let (alone, none) = ten_beside(0);
    assert_eq!(none, 0);
    // A stream is as fast as its credit lets it be: all of what it has alone, where case M10 asks for 90 %.
    assert_eq!(ten_beside(1), (alone, START_WINDOW.into()));
}

#[test]
fn i6_messages_packed_to_be_kept_alive_cost_no_more_than_the_held_bytes() {
    const MESSAGE: usize = 128 * 1024;
    // The least of a message that the decoder leaves a slice.
    const SLICE: usize = MESSAGE / 8;
    let config = Config::default();
    let most = config.held_bytes;
    let mut client = ClientUnderTest::with(config);
    let mut messages = Vec::new();
    let streams: Vec<StreamId> = (1..=64).map(|number| client.accept_open(number)).collect();
    for stream in streams {
        for _ in 0..START_WINDOW as usize / SLICE {
            let message = Bytes::from(vec![0; MESSAGE]);
            client.stream(stream, StreamFrame::Data(message.slice(..SLICE)));
            messages.push(message);
        }
    }
    assert_eq!(client.mux.held(), 16 * 1024 * 1024);
    let kept = messages.iter().filter(|message| !message.is_unique()).count() * MESSAGE;
    assert!((1..=most).contains(&(kept as u64)), "{kept}");
}

#[test]
fn i6_no_mixture_of_packed_messages_keeps_three_times_the_held_bytes() {
    const MESSAGE: usize = 128 * 1024;
    let config = Config::default();
    let most = 3 * config.held_bytes;
    let mut client = ClientUnderTest::with(config);
    let mut messages = Vec::new();
    let mut streams =
        (1..).map(|number| client.accept_open(number)).take(128).collect::<Vec<_>>().into_iter();
    // Each length as long as it stays a slice, the most wasteful first.
    for len in (16..=64).map(|kib| kib * 1024) {
        'slices: for stream in streams.by_ref() {
            for _ in 0..START_WINDOW as usize / len {
                let message = Bytes::from(vec![0; MESSAGE]);
                client.stream(stream, StreamFrame::Data(message.slice(..len)));
                let copied = message.is_unique();
                messages.push(message);
                if copied {
                    break 'slices;
                }
            }
        }
    }
    let kept = messages.iter().filter(|message| !message.is_unique()).count() * MESSAGE;
    assert!(kept as u64 <= most, "{kept}");
    assert!(kept as u64 > most / 2, "{kept}: the test no longer tries what is worst");
}

#[test]
fn m15_streams_reset_with_unread_data_give_everything_back() {
    let mut gateway = GatewayUnderTest::with(Config { held_bytes: 8 << 20, ..Config::default() });
    for _ in 0..1_000 {
        let stream = gateway.open_answered();
        gateway.stream(stream, StreamFrame::Data(bytes(MAX_PAYLOAD)));
        gateway.events();
        gateway.mux.reset(stream, ResetCode::Cancelled);
        gateway.events();
        gateway.transmit();
    }
    assert_eq!((gateway.mux.held(), gateway.mux.streams(), gateway.mux.unsent()), (0, 0, 0));
    let stream = gateway.open();
    let sent = gateway.transmit();
    let [ToClient::Open(opened, open)] = &sent[..] else { panic!("{sent:?}") };
    assert_eq!((*opened, open.window), (stream, None), "a new stream starts with the whole window");
}

#[test]
fn i6_windows_shrink_as_more_is_held_and_the_largest_holders_go_at_the_limit() {
    let (window, held_bytes, held_limit) = (256 * 1024, 1 << 20, 4 << 20);
    let mut client = ClientUnderTest::with(Config { window, held_bytes, held_limit, ..Config::default() });
    // A crowd of silent streams has its credit already. Then all of them are sent to, and nobody reads.
    let streams: Vec<StreamId> = (1..=64).map(|number| client.accept_open(number)).collect();
    let (mut discarded, mut resets) = (0, 0);
    for stream in streams {
        // Each was given its share of the limit when it came.
        let granted = (held_limit as usize / stream.get() as usize).min(window as usize);
        for _ in 0..granted / MAX_PAYLOAD {
            client.stream(stream, StreamFrame::Data(bytes(MAX_PAYLOAD)));
        }
        let limit = held_limit + 64 * 16 * 1024;
        assert!(client.mux.held() <= limit, "{} held", client.mux.held());
        discarded += client.events().iter().filter(|event| matches!(event, Event::Discarded { .. })).count();
        let is_reset =
            |frame: &&_| matches!(frame, ToGateway::Stream(_, StreamFrame::Reset(ResetCode::Limit)));
        resets += client.transmit().iter().filter(is_reset).count();
    }
    assert!(discarded > 0 && discarded == resets, "{discarded} discarded, {resets} reset");
    assert_eq!(client.mux.streams(), 64 - discarded);
    client.hear_open(1_000).unwrap();
    client.mux.accept(id(1_000), OpenOk::default());
    let sent = client.transmit();
    let [ToGateway::OpenOk(_, ok)] = &sent[..] else { panic!("{sent:?}") };
    assert!(ok.window.is_some_and(|window| window <= 64 * 1024), "{ok:?}: new streams start small");
}

#[test]
fn i6_readers_who_stopped_behind_an_end_are_held_to_the_limit_too() {
    let held_limit = 1 << 20;
    let mut client =
        ClientUnderTest::with(Config { held_bytes: held_limit, held_limit, ..Config::default() });
    let streams: Vec<StreamId> = (1..=32).map(|number| client.accept_open(number)).collect();
    let mut discarded = 0;
    for stream in streams {
        client.mux.finish(stream);
        let granted = (held_limit as usize / stream.get() as usize).min(START_WINDOW as usize);
        for _ in 0..granted / (16 * 1024) {
            client.stream(stream, StreamFrame::Data(bytes(16 * 1024)));
        }
        // Not all of them live to see it.
        client.hear(ToClient::Stream(stream, StreamFrame::Fin)).unwrap();
        client.transmit();
        discarded += client.events().iter().filter(|event| matches!(event, Event::Discarded { .. })).count();
        assert!(client.mux.held() <= held_limit + 32 * 16 * 1024);
    }
    assert!(discarded > 0);
    assert_eq!(client.mux.streams(), 32 - discarded);
}

#[test]
fn pressure_from_outside_shrinks_windows_until_it_is_over() {
    let memory = Memory::new(1 << 30);
    let (mut client, mut others) = (ClientUnderTest::of_memory(&memory), memory.share());
    let stream = client.accept_open(1);
    others.set(memory.limit() / 8 * 7);
    for _ in 0..4 {
        client.stream(stream, StreamFrame::Data(bytes(MAX_PAYLOAD)));
    }
    client.mux.consumed(stream, START_WINDOW - 9_000);
    assert_eq!(client.transmit(), [], "what it holds is more than half of the smallest window");
    client.mux.consumed(stream, 9_000);
    assert_eq!(client.transmit(), [ToGateway::Stream(stream, StreamFrame::Window(16 * 1024))]);
    others.set(0);
    client.stream(stream, StreamFrame::Data(bytes(16 * 1024)));
    client.mux.consumed(stream, 16 * 1024);
    assert_eq!(client.transmit(), [ToGateway::Stream(stream, StreamFrame::Window(START_WINDOW))]);
}

#[test]
fn f9_no_stream_is_opened_at_either_end_while_the_process_is_short_of_memory() {
    let memory = Memory::new(1 << 30);
    let (mut client, mut gateway) =
        (ClientUnderTest::of_memory(&memory), GatewayUnderTest::of_memory(&memory));
    let mut others = memory.share();
    others.set(memory.limit() / 8 * 7);
    client.hear_open(1).unwrap();
    assert!(matches!(&client.transmit()[..], [answer] if is_overloaded(answer)));
    assert_eq!(client.events(), []);
    assert_eq!(client.mux.refused_opens(), 1);
    assert_eq!(gateway.mux.open(open()), Err(OpenError::MemoryShort));
    others.set(0);
    client.accept_open(2);
    assert_eq!(gateway.mux.open(open()).map(|_| ()), Ok(()));
}

#[test]
fn i7_beyond_the_memory_only_a_tunnel_with_more_than_its_part_loses_streams() {
    let memory = Memory::new(8 << 20);
    let [mut greedy, mut modest] = [(); 2].map(|()| ClientUnderTest::of_memory(&memory));
    let victim = modest.accept_open(1);
    let streams: Vec<_> = (1..=64).map(|number| greedy.accept_open(number)).collect();
    let mut discarded = 0;
    for stream in streams {
        for _ in 0..4 {
            greedy.stream(stream, StreamFrame::Data(bytes(MAX_PAYLOAD)));
        }
        let events = greedy.events();
        discarded += events.iter().filter(|event| matches!(event, Event::Discarded { .. })).count();
        greedy.transmit();
        assert!(memory.used() <= memory.limit() + u64::from(START_WINDOW), "{} in use", memory.used());
        modest.stream(victim, StreamFrame::Data(bytes(8_192)));
        assert!(matches!(&modest.events()[..], [Event::Data { .. }]), "the other tunnel's stream lives");
        modest.mux.consumed(victim, 8_192);
        modest.transmit();
    }
    assert!(discarded > 30, "{discarded} given up");
    drop((greedy, modest));
    assert_eq!(memory.used(), 0);
}

// === floods ===

#[test]
fn m11_opens_beyond_the_limits_are_answered_and_cost_nothing() {
    let mut client = ClientUnderTest::ready();
    let mut refused = 0;
    for number in 1..=100_000 {
        client.hear_open(number).unwrap();
        client.events();
        refused += client.transmit().iter().filter(|frame| is_overloaded(frame)).count();
    }
    assert_eq!((client.mux.streams(), refused), (1_024, 100_000 - 1_024));

    let mut client = ClientUnderTest::with(Config { max_streams: 3, ..Config::default() });
    for number in 1..=3 {
        client.accept_open(number);
    }
    client.hear_open(4).unwrap();
    assert!(client.transmit().iter().any(is_overloaded));
}

#[test]
fn m11_answers_that_nobody_reads_end_the_tunnel() {
    let mut client = ClientUnderTest::ready();
    let mut number = 0;
    let error = loop {
        number += 1;
        if let Err(error) = client.hear_open(number) {
            break error;
        }
        client.events();
        assert!(number < 100_000);
    };
    assert_eq!(error, PeerError::ControlBacklog(4 << 20));
}

#[test]
fn m12_mistakes_that_cost_resets_are_counted() {
    let mut client = ClientUnderTest::ready();
    for number in 1..=1_025 {
        let stream = client.accept_open(number);
        client.stream(stream, StreamFrame::Fin);
        let result = client.hear(ToClient::Stream(stream, StreamFrame::Data(bytes(1))));
        let expected = if number <= 1_024 { Ok(()) } else { Err(PeerError::CausedResets(1_024)) };
        assert_eq!(result, expected);
        client.events();
    }
    assert_eq!(client.transmit().len(), 1, "only the go-away is left to send");
}

#[test]
fn empty_data_is_counted() {
    let mut client = ClientUnderTest::ready();
    let stream = client.accept_open(1);
    let empty = || ToClient::Stream(stream, StreamFrame::Data(Bytes::new()));
    for _ in 0..100 {
        assert_eq!(client.hear(empty()), Ok(()));
    }
    assert_eq!(client.events(), []);
    assert_eq!(client.hear(empty()), Err(PeerError::EmptyData(100)));
}

#[test]
fn opens_reset_before_anybody_saw_them_are_counted() {
    let mut client = ClientUnderTest::ready();
    let open_and_reset = |client: &mut ClientUnderTest, number| {
        client.hear_open(number)?;
        client.hear(ToClient::Stream(id(number), StreamFrame::Reset(ResetCode::Cancelled)))
    };
    for number in 1..=20 {
        assert_eq!(open_and_reset(&mut client, number), Ok(()));
    }
    client.events();
    for number in 21..=40 {
        assert_eq!(open_and_reset(&mut client, number), Ok(()));
    }
    assert_eq!(open_and_reset(&mut client, 41), Err(PeerError::UnseenResets(20)));
}

#[test]
fn opens_reset_before_their_answer_are_limited_by_time() {
    let config = Config { cancelled_opens_per_second: 10, ..Config::default() };
    let mut client = ClientUnderTest::with(config);
    let cancel = |client: &mut ClientUnderTest, number| {
        client.hear_open(number)?;
        client.events();
        client.hear(ToClient::Stream(id(number), StreamFrame::Reset(ResetCode::Cancelled)))
    };
    (1..=80).for_each(|number| assert_eq!(cancel(&mut client, number), Ok(())));
    client.wait(Duration::from_secs(1));
    (81..=90).for_each(|number| assert_eq!(cancel(&mut client, number), Ok(())));
    assert_eq!(cancel(&mut client, 91), Err(PeerError::CancelledOpens));
}

#[test]
fn i7_a_gateway_cancels_no_more_opens_than_its_client_puts_up_with() {
    let (mut gateway, mut client) = (GatewayUnderTest::ready(), ClientUnderTest::ready());
    let (mut cancelled, mut under_way) = (0, Vec::new());
    for second in 0..30 {
        for turn in 1..=5_000 {
            let full = match gateway.mux.open(open()) {
                Ok(id) => {
                    under_way.push(id);
                    turn == 5_000
                }
                Err(OpenError::TooManyUnanswered(_) | OpenError::Congested) => true,
                Err(other) => panic!("{other}"),
            };
            // All that is under way is cancelled at once, which is the worst there is.
            if full {
                cancelled += under_way.len();
                under_way.drain(..).for_each(|id| gateway.mux.reset(id, ResetCode::Cancelled));
            }
            for frame in gateway.transmit() {
                assert_eq!(client.hear(frame), Ok(()), "second {second}, {cancelled} cancelled");
            }
            client.events();
            gateway.events();
        }
        for frame in client.transmit() {
            gateway.hear(frame).unwrap();
        }
        gateway.wait(Duration::from_secs(1));
        // The client's second began later.
        client.wait(Duration::from_secs(1) - Duration::from_millis(u64::from(second == 0)));
    }
    assert!(cancelled > 30 * 400, "{cancelled}: no less than may be");
}

#[test]
fn w5_pings_are_answered_once_and_limited() {
    let mut client = ClientUnderTest::ready();
    for number in 1..=20 {
        assert_eq!(client.hear(ToClient::Ping(number)), Ok(()));
    }
    assert_eq!(client.transmit(), [ToGateway::Pong(20)], "only the last needs an answer");
    client.wait(Duration::from_secs(3));
    (0..3).for_each(|number| assert_eq!(client.hear(ToClient::Ping(number)), Ok(())));
    assert_eq!(client.hear(ToClient::Ping(9)), Err(PeerError::Pings));
}

#[test]
fn a12_rules_are_limited_and_in_order() {
    let part = |version, last, len| ToClient::Rules(Rules { version, last, chunk: bytes(len) });
    let mut client = ClientUnderTest::with(Config { rules_bytes: 100_000, ..Config::default() });
    client.hear(part(1, false, 60_000)).unwrap();
    client.hear(part(1, true, 40_000)).unwrap();
    let events = client.events();
    assert!(matches!(&events[..], [Event::Rules { version: 1, rules }] if rules.len() == 100_000));
    client.hear(part(2, false, 60_000)).unwrap();
    assert_eq!(client.hear(part(2, true, 40_001)), Err(PeerError::RulesTooLong(100_000)));

    let mut client = ClientUnderTest::ready();
    assert_eq!(client.hear(part(0, true, 1)), Err(PeerError::RulesOutOfOrder(0)));
    let mut client = ClientUnderTest::ready();
    client.hear(part(1, false, 1)).unwrap();
    assert_eq!(client.hear(part(2, true, 1)), Err(PeerError::RulesOutOfOrder(2)));
}

#[test]
fn frames_of_the_other_network_are_errors() {
    let mut client = ClientUnderTest::ready();
    let stream = client.accept_open(1);
    let error = PeerError::WrongNetwork(stream);
    assert_eq!(client.hear(ToClient::Stream(stream, StreamFrame::Datagram(bytes(1)))), Err(error.clone()));
    for frame in [StreamFrame::Data(bytes(1)), StreamFrame::Window(1)] {
        let mut client = ClientUnderTest::ready();
        let stream = client.accept_udp(1);
        assert_eq!(client.hear(ToClient::Stream(stream, frame)), Err(error.clone()));
    }
}

// === going away ===

#[test]
fn m16_go_away_names_the_last_open_honoured_and_disowns_the_rest() {
    let mut gateway = GatewayUnderTest::ready();
    let [first, second, third] = [(); 3].map(|()| gateway.open_sent());
    let unsent = gateway.open();
    let go_away = GoAway::new(GoAwayCode::Shutdown, second.get(), "drain");
    gateway.hear(ToGateway::GoAway(Box::new(go_away.clone()))).unwrap();
    let disowned = |event: &Event<_>, stream| {
        matches!(event, Event::Answered { id, answer: Err(err) }
            if *id == stream && err.class == OpenErrClass::Disowned)
    };
    let events = gateway.events();
    let [answer_3, closed_3, answer_4, closed_4, last] = &events[..] else { panic!("{events:?}") };
    assert!(disowned(answer_3, third) && disowned(answer_4, unsent), "{events:?}");
    assert_eq!((closed_3, closed_4), (&Event::Closed { id: third }, &Event::Closed { id: unsent }));
    assert_eq!(last, &Event::GoAway(Box::new(go_away)));
    assert_eq!(gateway.transmit(), [], "the open that had not left stays here");

    // Those it honours are served to their end.
    for stream in [first, second] {
        gateway.hear(ToGateway::OpenOk(stream, OpenOk::default())).unwrap();
        gateway.mux.finish(stream);
        gateway.stream(stream, StreamFrame::Fin);
        assert!(!gateway.mux.is_drained());
        gateway.transmit();
    }
    assert!(gateway.mux.is_drained());
    assert_eq!(gateway.mux.open(open()), Err(OpenError::GoingAway));
}

#[test]
fn m16_client_that_goes_away_does_not_look_at_later_opens() {
    let mut client = ClientUnderTest::ready();
    let living = client.accept_open(1);
    client.mux.go_away(GoAwayCode::Shutdown, "drain");
    client.hear_open(2).unwrap();
    client.stream(id(2), StreamFrame::Reset(ResetCode::Cancelled));
    assert_eq!(client.events(), []);
    let sent = client.transmit();
    assert!(matches!(&sent[..], [ToGateway::GoAway(go_away)] if go_away.last == 1), "{sent:?}");
    client.mux.send(living, bytes(10));
    assert_eq!(raw::data_len(&client.transmit()), 10, "the living go on");
}

#[test]
fn m16_client_waits_for_the_last_open_that_a_gateway_s_go_away_names() {
    let mut client = ClientUnderTest::ready();
    let go_away = GoAway::new(GoAwayCode::Shutdown, 1, "drain");
    client.hear(ToClient::GoAway(Box::new(go_away))).unwrap();
    assert!(matches!(client.events()[..], [Event::GoAway(_)]));
    assert!(!client.mux.is_drained(), "it is behind rules");
    let opened = client.accept_open(1);
    client.transmit();
    client.mux.reset(opened, ResetCode::Cancelled);
    client.transmit();
    assert!(client.mux.is_drained());
}

#[test]
fn go_away_twice_may_not_take_anything_back() {
    let mut gateway = GatewayUnderTest::ready();
    let go_away = |last| ToGateway::GoAway(Box::new(GoAway::new(GoAwayCode::Shutdown, last, "")));
    gateway.hear(go_away(7)).unwrap();
    gateway.hear(go_away(5)).unwrap();
    assert_eq!(gateway.hear(go_away(6)), Err(PeerError::GoAwayRaised { was: 5, now: 6 }));
}

// === the owner's limits ===

#[test]
fn opens_beyond_the_limits_fail_here_and_nothing_is_sent() {
    let mut gateway = GatewayUnderTest::with(Config { max_streams: 3, ..Config::default() });
    for _ in 0..3 {
        gateway.open_answered();
    }
    assert_eq!(gateway.mux.open(open()), Err(OpenError::TooManyStreams(3)));

    let mut gateway = GatewayUnderTest::ready();
    for _ in 0..1_024 {
        gateway.open_sent();
    }
    assert_eq!(gateway.mux.open(open()), Err(OpenError::TooManyUnanswered(1_024)));

    let mut gateway = GatewayUnderTest::silent(Config::default());
    assert_eq!(gateway.mux.open(open()), Err(OpenError::NotReady));

    let mut gateway = GatewayUnderTest::ready();
    let mut too_long = open();
    too_long.user = "u".repeat(256);
    assert!(matches!(gateway.mux.open(too_long), Err(OpenError::Invalid(_))));
}

#[test]
fn opens_fail_when_the_peer_does_not_read() {
    let mut gateway = GatewayUnderTest::with(Config { control_bytes: 0, ..Config::default() });
    let result = loop {
        match gateway.mux.open(open()) {
            // Given up at once, so that only what waits to be sent can stop this.
            Ok(stream) => gateway.mux.reset(stream, ResetCode::Cancelled),
            Err(error) => break error,
        }
        gateway.events();
    };
    assert_eq!(result, OpenError::Congested);
}

#[test]
fn a_hundred_answers_may_wait_however_little_is_asked_for() {
    let mut client = ClientUnderTest::with(Config { control_bytes: 0, ..Config::default() });
    for number in 1..=100 {
        client.hear_open(number).unwrap();
        client.events();
        client.mux.accept(id(number), OpenOk::default());
    }
}

#[test]
fn datagrams_are_bounded_and_the_newest_is_dropped() {
    let mut client = ClientUnderTest::ready();
    let stream = client.accept_udp(1);
    for number in 0..300 {
        assert_eq!(client.mux.send_datagram(stream, bytes(number)), number < 256);
    }
    assert_eq!(client.mux.dropped_datagrams(), 44);
    let sent = client.transmit();
    assert_eq!(sent.len(), 256);
    for (number, frame) in sent.into_iter().enumerate() {
        assert_eq!(frame, ToGateway::Stream(stream, StreamFrame::Datagram(bytes(number))));
    }
    assert!(!client.mux.send_datagram(stream, bytes(MAX_PAYLOAD + 1)));
    assert!(client.mux.send_datagram(stream, Bytes::new()), "an empty one is a datagram too");
    assert_eq!(client.mux.unsent(), 0);
}

fn is_overloaded(frame: &ToGateway) -> bool {
    matches!(frame, ToGateway::OpenErr(_, err) if err.class == OpenErrClass::Overloaded)
}
