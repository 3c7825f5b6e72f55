//! The bytes of every frame as they are written, what is refused, and what holds for any bytes at all.

use std::{fmt::Debug, fs, net::IpAddr};

use anyproxy_frame::{
    COPIED_BELOW, ClientHello, DecodeError, Frame, Frames, GatewayHello, GoAway, GoAwayCode, HEADER_LEN,
    HostRef, MAX_ERROR_TEXT, MAX_GROUPS, MAX_HELLO, MAX_HOST, MAX_MESSAGE, MAX_OPEN, MAX_PAYLOAD, MAX_REASON,
    MAX_USER, Open, OpenErr, OpenErrClass, OpenOk, PortRequest, PortStatus, PortVerdict, ResetCode, Rules,
    StreamFrame, StreamId, ToClient, ToGateway, Transport, Unknown, oracle,
};
use bytes::{Bytes, BytesMut};
use proptest::prelude::*;

#[test]
fn stream_frames_as_written() {
    let id = StreamId::new(0x01020304).unwrap();
    for (frame, hex) in [
        (StreamFrame::Data(Bytes::from_static(b"hi")), "04 000002 01020304 6869"),
        (StreamFrame::Window(65_536), "05 000004 01020304 00010000"),
        (StreamFrame::Fin, "06 000000 01020304"),
        (StreamFrame::Reset(ResetCode::Cancelled), "07 000001 01020304 01"),
        (StreamFrame::Datagram(Bytes::from_static(b"hi")), "08 000002 01020304 6869"),
        (StreamFrame::Datagram(Bytes::new()), "08 000000 01020304"),
    ] {
        assert_written(ToClient::stream(id, frame.clone()), hex);
        assert_written(ToGateway::stream(id, frame), hex);
    }
}

#[test]
fn tunnel_frames_as_written() {
    assert_written(ToClient::ping(0x0102), "09 000008 00000000 0000000000000102");
    assert_written(ToGateway::pong(0x0102), "0a 000008 00000000 0000000000000102");
    let go_away = GoAway::new(GoAwayCode::Shutdown, 7, "bye");
    assert_written(ToClient::go_away(go_away), "0b 000008 00000000 01 00000007 627965");
    let rules = Rules { version: 3, last: true, chunk: Bytes::from_static(b"xy") };
    assert_written(ToClient::Rules(rules), "0c 000007 00000000 00000003 01 7879");
    let unknown = Unknown { kind: 0x91, stream: 5, payload: Bytes::from_static(b"?") };
    assert_written(ToGateway::Unknown(unknown), "91 000001 00000005 3f");
}

#[test]
fn client_hello_as_written() {
    let mut hello = ClientHello::new("c1", 0x0f);
    hello.max_streams = 16;
    hello.ports = vec![PortRequest { port: 2222, transport: Transport::Tcp }];
    hello.software = "x".into();
    assert_written(
        ToGateway::Hello(Box::new(hello)),
        "00 000030 00000000
         01 0002 6331
         02 0010 0000000000000000000000000000000f
         03 0004 00040000
         04 0004 00000010
         05 0003 08ae 00
         06 0001 78",
    );
}

#[test]
fn gateway_hello_as_written() {
    let mut hello = GatewayHello::new(9);
    hello.max_streams = 16;
    let request = PortRequest { port: 2222, transport: Transport::Udp };
    hello.ports = vec![PortVerdict { request, status: PortStatus::Denied }];
    assert_written(
        ToClient::Hello(Box::new(hello)),
        "00 000020 00000000
         07 0008 0000000000000009
         03 0004 00040000
         04 0004 00000010
         05 0004 08ae 01 01",
    );
}

#[test]
fn open_as_written() {
    let mut open = Open::tcp(HostRef::Name("db".into()), 5432);
    open.user = "al".into();
    open.groups = vec!["a".into(), "b".into()];
    open.front = "http".into();
    open.rules = 2;
    open.traceparent = Some("00-1".into());
    open.deadline_ms = 10_000;
    open.window = Some(16_384);
    open.source = Some("192.0.2.7:4000".parse().unwrap());
    assert_written(
        ToClient::Open(StreamId::FIRST, Box::new(open)),
        "01 000047 00000001
         01 0001 00
         02 0002 6462
         04 0002 1538
         05 0002 616c
         06 0001 61
         06 0001 62
         07 0004 68747470
         08 0004 00000002
         09 0004 30302d31
         0a 0004 00002710
         0b 0004 00004000
         0c 0006 c0000207 0fa0",
    );
    let open = Open::udp(0x2a, HostRef::Ip("192.0.2.1".parse().unwrap()), 53);
    assert_written(
        ToClient::Open(StreamId::FIRST, Box::new(open)),
        "01 000018 00000001
         01 0009 01 000000000000002a
         03 0004 c0000201
         04 0002 0035",
    );
}

#[test]
fn answers_as_written() {
    let ok = OpenOk { address: Some("192.0.2.1:80".parse().unwrap()), ..OpenOk::default() };
    assert_written(ToGateway::OpenOk(StreamId::FIRST, ok), "02 000009 00000001 01 0006 c0000201 0050");
    let address = Some("[2001:db8::1]:80".parse().unwrap());
    let ok = OpenOk { address, took_us: Some(1_000), window: Some(65_536) };
    assert_written(
        ToGateway::OpenOk(StreamId::FIRST, ok),
        "02 000023 00000001
         01 0012 20010db8000000000000000000000001 0050
         03 0004 000003e8
         0b 0004 00010000",
    );
    assert_written(ToGateway::OpenOk(StreamId::FIRST, OpenOk::default()), "02 000000 00000001");
    let mut err = OpenErr::new(OpenErrClass::Refused, "no");
    assert_written(
        ToGateway::OpenErr(StreamId::FIRST, Box::new(err.clone())),
        "03 000009 00000001 01 0001 05 02 0002 6e6f",
    );
    err.took_us = Some(u32::MAX);
    assert_written(
        ToGateway::OpenErr(StreamId::FIRST, Box::new(err)),
        "03 000010 00000001 01 0001 05 02 0002 6e6f 03 0004 ffffffff",
    );
}

#[test]
fn unknown_fields_are_passed_over() {
    let hex = "01 000013 00000001 01 0001 00 ff 0003 aabbcc 02 0001 61 04 0002 0050";
    assert_eq!(read::<ToClient>(hex), Ok(vec![ToClient::Open(StreamId::FIRST, Box::new(open_of("a", 80)))]));
}

#[test]
fn unknown_codes_read_as_internal() {
    let reset = ToClient::stream(StreamId::FIRST, StreamFrame::Reset(ResetCode::Internal));
    assert_eq!(read::<ToClient>("07 000001 00000001 ee"), Ok(vec![reset]));
    let err = ToGateway::OpenErr(StreamId::FIRST, Box::new(OpenErr::new(OpenErrClass::Internal, "")));
    assert_eq!(read::<ToGateway>("03 000004 00000001 01 0001 ee"), Ok(vec![err]));
    for code in 0..=u8::MAX {
        assert!(ResetCode::from_u8(code).to_u8() == code || ResetCode::from_u8(code) == ResetCode::Internal);
        assert!(
            GoAwayCode::from_u8(code).to_u8() == code || GoAwayCode::from_u8(code) == GoAwayCode::Internal
        );
        let class = OpenErrClass::from_u8(code);
        assert!(class.to_u8() == code || class == OpenErrClass::Internal);
        assert_ne!(class, OpenErrClass::Disowned, "a peer cannot make a dial look unsent");
    }
}

#[test]
fn m1_what_no_message_may_hold_has_a_name_each() {
    use DecodeError as E;

    for (hex, error) in [
        ("", E::EmptyMessage),
        ("0d 000000 00000000", E::UnknownKind { kind: 0x0d }),
        ("7f 000000 00000000", E::UnknownKind { kind: 0x7f }),
        ("04 000000 000000", E::TruncatedHeader { have: 7 }),
        ("04 000003 00000001 6162", E::TruncatedPayload { kind: 4, claimed: 3, have: 2 }),
        ("05 000003 00000001 616263", E::PayloadSize { kind: 5, len: 3 }),
        ("07 000000 00000001", E::PayloadSize { kind: 7, len: 0 }),
        ("09 000004 00000000 01020304", E::PayloadSize { kind: 9, len: 4 }),
        ("0b 000004 00000000 01020304", E::PayloadSize { kind: 11, len: 4 }),
        ("0c 000004 00000000 01020304", E::PayloadSize { kind: 12, len: 4 }),
        ("04 000000 00000000", E::WrongStream { kind: 4, stream: 0 }),
        ("06 000000 00000000", E::WrongStream { kind: 6, stream: 0 }),
        ("08 000000 00000000", E::WrongStream { kind: 8, stream: 0 }),
        ("00 000000 00000003", E::WrongStream { kind: 0, stream: 3 }),
        ("09 000008 00000003 0000000000000000", E::WrongStream { kind: 9, stream: 3 }),
        ("0b 000005 00000003 0000000000", E::WrongStream { kind: 11, stream: 3 }),
        ("0c 000005 00000003 0000000000", E::WrongStream { kind: 12, stream: 3 }),
    ] {
        assert_eq!(read::<ToClient>(hex), Err(error), "{hex}");
    }
}

#[test]
fn a13_frames_of_the_wrong_side_are_refused() {
    for (hex, kind) in [("01 000000 00000001", 1), ("0c 000005 00000000 0000000101", 12)] {
        assert_eq!(read::<ToGateway>(hex), Err(DecodeError::WrongDirection { kind }));
    }
    for (hex, kind) in [("02 000000 00000001", 2), ("03 000000 00000001", 3)] {
        assert_eq!(read::<ToClient>(hex), Err(DecodeError::WrongDirection { kind }));
    }
}

#[test]
fn m2_claimed_length_meets_its_limit_before_anything_else() {
    // Nothing follows these headers: a length that was trusted would be missed, not refused.
    for (kind, limit) in [
        (0x00, MAX_HELLO),
        (0x01, MAX_OPEN),
        (0x04, MAX_PAYLOAD),
        (0x05, 4),
        (0x06, 0),
        (0x07, 1),
        (0x08, MAX_PAYLOAD),
        (0x09, 8),
        (0x0b, 5 + MAX_REASON),
        (0x0c, MAX_PAYLOAD),
        (0x80, MAX_PAYLOAD),
        (0xff, MAX_PAYLOAD),
    ] {
        for claimed in [limit + 1, 0xff_ffff] {
            let mut header = vec![kind];
            header.extend_from_slice(&(claimed as u32).to_be_bytes()[1..]);
            header.extend_from_slice(&[0, 0, 0, 1]);
            let result = ToClient::decode(&mut header.into());
            assert_eq!(result, Err(DecodeError::PayloadTooLong { kind, claimed, limit }));
        }
    }
    let too_long = Bytes::from(vec![0x80; MAX_MESSAGE + 1]);
    let result = Frames::<ToClient>::new(too_long).map(|_| ());
    assert_eq!(result, Err(DecodeError::MessageTooLong { len: MAX_MESSAGE + 1 }));
}

#[test]
fn m2_each_field_is_taken_at_its_limit_and_refused_above() {
    let base = [field(0x01, &[0]), field(0x04, &[0, 80])].concat();
    let of = |fields: &[u8]| ToClient::decode(&mut framed(0x01, 1, &[&base[..], fields].concat()));

    let host = |len: usize| field(0x02, &vec![b'h'; len]);
    assert!(of(&host(MAX_HOST)).is_ok());
    let (tag, claimed, limit) = (0x02, MAX_HOST + 1, MAX_HOST);
    assert_eq!(of(&host(MAX_HOST + 1)), Err(DecodeError::FieldTooLong { kind: 1, tag, claimed, limit }));

    let user = |len: usize| [host(1), field(0x05, &vec![b'u'; len])].concat();
    assert!(of(&user(MAX_USER)).is_ok());
    assert!(matches!(of(&user(MAX_USER + 1)), Err(DecodeError::FieldTooLong { tag: 5, .. })));

    let groups = |count: usize| [host(1), field(0x06, b"g").repeat(count)].concat();
    assert!(of(&groups(MAX_GROUPS)).is_ok());
    assert_eq!(of(&groups(MAX_GROUPS + 1)), Err(DecodeError::FieldRepeated { kind: 1, tag: 6 }));

    let text = |len: usize| [field(0x01, &[1]), field(0x02, &vec![b't'; len])].concat();
    assert!(ToGateway::decode(&mut framed(0x03, 1, &text(MAX_ERROR_TEXT))).is_ok());
    let result = ToGateway::decode(&mut framed(0x03, 1, &text(MAX_ERROR_TEXT + 1)));
    assert!(matches!(result, Err(DecodeError::FieldTooLong { kind: 3, tag: 2, .. })));
}

#[test]
fn fields_that_mean_nothing_have_a_name_each() {
    let of = |fields: &[&[u8]]| ToClient::decode(&mut framed(0x01, 1, &fields.concat())).unwrap_err();
    let (network, name, port) = (&field(1, &[0])[..], &field(2, b"h")[..], &field(4, &[0, 80])[..]);
    assert_eq!(of(&[name, port]), DecodeError::FieldMissing { kind: 1, tag: 1 });
    assert_eq!(of(&[network, port]), DecodeError::FieldMissing { kind: 1, tag: 2 });
    assert_eq!(of(&[network, name]), DecodeError::FieldMissing { kind: 1, tag: 4 });
    assert_eq!(of(&[network, name, name, port]), DecodeError::FieldRepeated { kind: 1, tag: 2 });
    let address = &field(3, &[127, 0, 0, 1])[..];
    assert_eq!(of(&[network, name, address, port]), DecodeError::FieldRepeated { kind: 1, tag: 3 });
    for (tag, value) in [
        (0x01, &[2][..]),
        (0x01, &[]),
        (0x01, &[0, 0]),
        (0x01, &[1, 0]),
        (0x02, &[0xff]),
        (0x03, &[127, 0, 1]),
        (0x04, &[80]),
        (0x05, &[0xc0, 0x80]),
        (0x0b, &[0, 0, 0x3f, 0xff]),
        (0x0b, &[0x80, 0, 0, 0]),
        (0x0c, &[127, 0, 0, 1]),
        (0x0c, &[0]),
    ] {
        assert_eq!(of(&[&field(tag, value)]), DecodeError::FieldInvalid { kind: 1, tag }, "{value:?}");
    }
    assert_eq!(of(&[network, &[2]]), DecodeError::TruncatedField { kind: 1, tag: None });
    assert_eq!(of(&[network, &[2, 0, 2, b'h']]), DecodeError::TruncatedField { kind: 1, tag: Some(2) });
}

#[test]
fn what_does_not_fit_is_found_before_it_is_sent_and_cut_if_it_is_sent() {
    let mut open = open_of(&"h".repeat(300), 80);
    assert!(open.check().is_err());
    open.user = "ü".repeat(200);
    open.groups = vec!["g".repeat(200); 40];
    let mut message = BytesMut::new();
    ToClient::Open(StreamId::FIRST, Box::new(open)).encode(&mut message);
    let Ok(Some(ToClient::Open(_, cut))) = ToClient::decode(&mut message.freeze()) else { panic!("refused") };
    assert_eq!(cut.check(), Ok(()));
    assert_eq!((cut.user, cut.groups.len()), ("ü".repeat(127), MAX_GROUPS));

    assert_eq!(OpenErr::new(OpenErrClass::Denied, "ü".repeat(300)).text.len(), MAX_ERROR_TEXT);
    assert_eq!(GoAway::new(GoAwayCode::Shutdown, 0, "x".repeat(300)).reason.len(), MAX_REASON);
}

#[test]
fn payload_is_a_slice_of_the_message() {
    let data = Bytes::from(vec![7; 20_000]);
    let message = encoded(&[ToClient::stream(StreamId::FIRST, StreamFrame::Data(data))]);
    let frame = Frames::<ToClient>::new(message.clone()).unwrap().next();
    let Some(Ok(ToClient::Stream(_, StreamFrame::Data(data)))) = frame else { panic!("{frame:?}") };
    assert_eq!(data.as_ptr(), message[HEADER_LEN..].as_ptr());
}

#[test]
fn i6_small_slice_of_a_large_message_does_not_keep_it_alive() {
    let datagram = StreamFrame::Datagram(Bytes::from_static(b"tiny"));
    let data = StreamFrame::Data(Bytes::from(vec![7; COPIED_BELOW]));
    for small in [datagram, data] {
        let rest = Unknown { kind: 0x80, stream: 0, payload: Bytes::from(vec![0; MAX_PAYLOAD]) };
        let message = encoded(&[ToClient::stream(StreamId::FIRST, small), ToClient::Unknown(rest)]);
        let kept = Frames::<ToClient>::new(message.clone()).unwrap().next();
        assert!(message.is_unique(), "{kept:?} is held");
    }
}

#[test]
fn head_and_payload_are_the_frame() {
    let frame = ToGateway::stream(StreamId::FIRST, StreamFrame::Data(Bytes::from_static(b"payload")));
    let whole = encoded(std::slice::from_ref(&frame));
    let mut head = BytesMut::new();
    let payload = frame.encode_head(&mut head);
    assert_eq!((head.len(), &payload[..]), (HEADER_LEN, &b"payload"[..]));
    assert_eq!(whole, [&head[..], &payload].concat());
}

#[test]
fn every_cut_leaves_whole_frames_and_one_error() {
    let frames = samples();
    let mut message = BytesMut::new();
    let mut ends = vec![0];
    for frame in &frames {
        frame.encode(&mut message);
        ends.push(message.len());
    }
    let message = message.freeze();
    for cut in 1..=message.len() {
        let read: Vec<_> = Frames::<ToClient>::new(message.slice(..cut)).unwrap().collect();
        let whole = ends.iter().filter(|end| **end <= cut).count() - 1;
        let (good, bad) = read.split_at(whole);
        assert!(good.iter().zip(&frames).all(|(read, frame)| read.as_ref() == Ok(frame)), "cut at {cut}");
        match bad {
            [] => assert!(ends.contains(&cut), "cut at {cut} goes unnoticed"),
            [Err(DecodeError::TruncatedHeader { .. } | DecodeError::TruncatedPayload { .. })] => {}
            bad => panic!("cut at {cut}: {bad:?}"),
        }
    }
}

#[test]
fn perturbed_bytes_read_or_fail_but_never_panic() {
    let message = encoded(&samples());
    for at in 0..message.len() {
        for change in [1, 0x80, 0xff] {
            let mut perturbed = message.to_vec();
            perturbed[at] ^= change;
            oracle::check_message(&perturbed);
        }
    }
}

#[test]
fn example_of_the_protocol_page_is_true() {
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../PROTOCOL.md")).unwrap();
    let (_, example) = page.split_once("## 9.").expect("the section of the example");
    let mut read_lines = 0;
    for line in example.lines().filter(|line| !line.contains('…')) {
        let mut words = line.split_whitespace();
        let side = words.next();
        let is_hex = |word: &&str| word.bytes().all(|byte| byte.is_ascii_hexdigit());
        let hex: String = words.take_while(is_hex).collect();
        match side {
            Some("client") => assert_eq!(read::<ToGateway>(&hex).map(|frames| frames.len()), Ok(1), "{line}"),
            Some("gateway") => assert_eq!(read::<ToClient>(&hex).map(|frames| frames.len()), Ok(1), "{line}"),
            _ => continue,
        }
        read_lines += 1;
    }
    assert_eq!(read_lines, 7);
}

#[test]
fn committed_corpus_keeps_the_oracle() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus/frame_parser");
    let entries: Vec<_> = fs::read_dir(corpus).unwrap().collect();
    assert!(!entries.is_empty());
    for entry in entries {
        oracle::check_message(&fs::read(entry.unwrap().path()).unwrap());
    }
}

proptest! {
    #[test]
    fn any_bytes_keep_the_oracle(message in prop::collection::vec(any::<u8>(), 0..600)) {
        oracle::check_message(&message);
    }

    /// Random bytes rarely get past a header, so here headers are true and fields plausible.
    #[test]
    fn plausible_frames_keep_the_oracle(
        frames in prop::collection::vec(
            (0u8..0x10, 0u32..3, prop::collection::vec((0u8..0x0d, prop::collection::vec(any::<u8>(), 0..20)), 0..8)),
            0..6,
        ),
    ) {
        let mut message = Vec::new();
        for (kind, stream, fields) in frames {
            let fields: Vec<u8> = fields.iter().flat_map(|(tag, value)| field(*tag, value)).collect();
            message.extend_from_slice(&framed(kind, stream, &fields));
        }
        oracle::check_message(&message);
    }

    #[test]
    fn opens_survive_the_trip(
        association in prop::option::of(any::<u64>()),
        host in prop_oneof![
            "[a-z.]{0,60}".prop_map(HostRef::Name),
            any::<IpAddr>().prop_map(HostRef::Ip),
        ],
        port in any::<u16>(),
        user in "\\PC{0,60}",
        groups in prop::collection::vec("[a-z]{1,20}", 0..5),
        rules in any::<u32>(),
        deadline_ms in any::<u32>(),
        window in prop::option::of(16_384u32..1 << 31),
    ) {
        let open = match association {
            Some(association) => Open::udp(association, host, port),
            None => Open::tcp(host, port),
        };
        let open = Open { user, groups, rules, deadline_ms, window, ..open };
        oracle::check_round_trip(&ToClient::Open(StreamId::FIRST, Box::new(open)));
    }

    #[test]
    fn hellos_survive_the_trip(
        client_id in "[a-z]{0,40}",
        instance in any::<u128>(),
        ports in prop::collection::vec((any::<u16>(), any::<bool>()), 0..20),
    ) {
        let transport = |udp| if udp { Transport::Udp } else { Transport::Tcp };
        let mut hello = ClientHello::new(client_id, instance);
        hello.ports = ports.into_iter().map(|(port, udp)| PortRequest { port, transport: transport(udp) }).collect();
        oracle::check_round_trip(&ToGateway::Hello(Box::new(hello)));
    }
}

fn samples() -> Vec<ToClient> {
    let id = StreamId::FIRST;
    vec![
        ToClient::Hello(Box::new(GatewayHello::new(1))),
        ToClient::Open(id, Box::new(open_of("host.example", 443))),
        ToClient::stream(id, StreamFrame::Data(Bytes::from_static(b"some bytes"))),
        ToClient::stream(id, StreamFrame::Window(70_000)),
        ToClient::stream(id, StreamFrame::Datagram(Bytes::from_static(b"datagram"))),
        ToClient::stream(id, StreamFrame::Fin),
        ToClient::stream(id, StreamFrame::Reset(ResetCode::Idle)),
        ToClient::Rules(Rules { version: 1, last: false, chunk: Bytes::from_static(b"rules") }),
        ToClient::ping(1),
        ToClient::pong(2),
        ToClient::go_away(GoAway::new(GoAwayCode::Shutdown, 1, "drain")),
    ]
}

fn open_of(host: &str, port: u16) -> Open {
    Open::tcp(HostRef::Name(host.into()), port)
}

fn encoded<F: Frame>(frames: &[F]) -> Bytes {
    let mut message = BytesMut::new();
    frames.iter().for_each(|frame| frame.encode(&mut message));
    message.freeze()
}

#[track_caller]
fn assert_written<F: Frame + Debug>(frame: F, hex: &str) {
    assert_eq!(encoded(std::slice::from_ref(&frame)), bytes_of(hex), "{frame:?}");
    oracle::check_round_trip(&frame);
}

fn read<F: Frame>(hex: &str) -> Result<Vec<F>, DecodeError> {
    Frames::new(bytes_of(hex))?.collect()
}

fn bytes_of(hex: &str) -> Bytes {
    let digit = |byte| char::from(byte).to_digit(16).expect("hex") as u8;
    let digits: Vec<u8> = hex.bytes().filter(|byte| !byte.is_ascii_whitespace()).map(digit).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

fn framed(kind: u8, stream: u32, payload: &[u8]) -> Bytes {
    let mut frame = vec![kind];
    frame.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame.into()
}

fn field(tag: u8, value: &[u8]) -> Vec<u8> {
    let mut field = vec![tag];
    field.extend_from_slice(&(value.len() as u16).to_be_bytes());
    field.extend_from_slice(value);
    field
}
