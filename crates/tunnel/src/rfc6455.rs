//! The frames of a WebSocket (RFC 6455 section 5), without IO.
//!
//! A file of its own, beside a library that could do it, for what it does not do: what comes in is handed on in the
//! memory it was read into, what goes out is written once, masked where it lies, and several messages leave together.

use std::hash::{BuildHasher as _, RandomState};

use anyproxy_mux::frame::{COPIED_BELOW, MAX_MESSAGE};
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use crate::outbox::Outbox;

/// Bytes of fragments that may come before a message is whole. Four times what a message may have leaves room for
/// their headers, and bounds what a flood of empty ones costs.
const MAX_UNFINISHED: usize = 4 * MAX_MESSAGE;

/// The longest payload of a close, a ping or a pong (section 5.5).
const MAX_CONTROL: usize = 125;

/// The longest header: two bytes, a length of eight, the mask.
pub(crate) const MAX_HEAD: usize = 14;

/// Which end of the connection this is: clients mask what they send, servers do not (section 5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Client,
    Server,
}

/// What a frame is (section 5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opcode {
    Continuation = 0,
    Text = 1,
    Binary = 2,
    Close = 8,
    Ping = 9,
    Pong = 10,
}

/// What the peer said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Incoming {
    /// A whole binary message.
    Binary(Bytes),
    /// A whole text message. Whether it is UTF-8 is for whoever wants one to say.
    Text(Bytes),
    Ping(Bytes),
    Pong,
    /// The last words; no code if there were none.
    Close(Option<(u16, String)>),
}

/// What the peer did wrong, and the close code that tells it (section 7.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Violation {
    pub(crate) code: u16,
    pub(crate) what: &'static str,
}

const fn protocol(what: &'static str) -> Violation {
    Violation { code: 1002, what }
}

const TOO_LONG: Violation = Violation { code: 1009, what: "a message beyond the limit" };
const FRAGMENTS: Violation = Violation { code: 1008, what: "too many fragments" };

// === Head ===

/// ```text
///  0               1               2               3
/// +-+-+-+-+-------+-+-------------+-------------------------------+
/// |F|R|R|R| opcode|M| Payload len |    Extended payload length    |
/// |I|S|S|S|  (4)  |A|     (7)     |            (16/64)            |
/// |N|V|V|V|       |S|             |                               |
/// | |1|2|3|       |K|             | then the masking key, if any  |
/// +-+-+-+-+-------+-+-------------+-------------------------------+
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Head {
    fin: bool,
    opcode: Opcode,
    mask: Option<[u8; 4]>,
    /// Its own length.
    len: usize,
    /// What follows it.
    payload: usize,
}

impl Head {
    /// Looks at the front of `src`; `None` until all of the header is there. Whatever is wrong is found as soon as it
    /// can be seen, and a claimed length is judged before anything is waited or reserved for it.
    fn decode(src: &[u8], masked: bool) -> Result<Option<Self>, Violation> {
        let [first, second, rest @ ..] = src else { return Ok(None) };
        if first & 0x70 != 0 {
            return Err(protocol("a reserved bit is set"));
        }
        let opcode = match first & 0x0F {
            0 => Opcode::Continuation,
            1 => Opcode::Text,
            2 => Opcode::Binary,
            8 => Opcode::Close,
            9 => Opcode::Ping,
            10 => Opcode::Pong,
            _ => return Err(protocol("an unknown opcode")),
        };
        if (second & 0x80 != 0) != masked {
            return Err(protocol(if masked { "an unmasked frame" } else { "a masked frame" }));
        }
        let fin = first & 0x80 != 0;
        let short = usize::from(second & 0x7F);
        if opcode as u8 >= 8 && (!fin || short > MAX_CONTROL) {
            return Err(protocol("a control frame that is long or in fragments"));
        }
        let (payload, extended) = match (short, rest) {
            (126, [a, b, ..]) => (u64::from(u16::from_be_bytes([*a, *b])), 2),
            (127, [a, b, c, d, e, f, g, h, ..]) => (u64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h]), 8),
            (126 | 127, _) => return Ok(None),
            (short, _) => (short as u64, 0),
        };
        let payload =
            usize::try_from(payload).ok().filter(|payload| *payload <= MAX_MESSAGE).ok_or(TOO_LONG)?;
        let mut len = 2 + extended;
        let mut mask = None;
        if masked {
            let Some(key) = src.get(len..).and_then(|src| src.first_chunk()) else { return Ok(None) };
            mask = Some(*key);
            len += key.len();
        }
        Ok(Some(Self { fin, opcode, mask, len, payload }))
    }
}

/// Bytes masked at a time where they are copied too: they are still in the nearest cache then.
const STRIDE: usize = 4096;

/// XORs with the key, from its first byte on (section 5.3).
fn apply_mask(payload: &mut [u8], key: [u8; 4]) {
    let [a, b, c, d] = key;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let mut words = payload.chunks_exact_mut(8);
    for word in &mut words {
        // Of eight bytes each, so neither can fail.
        if let Some(word) = word.first_chunk_mut::<8>() {
            *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
        }
    }
    for (byte, key) in words.into_remainder().iter_mut().zip(key.iter().cycle()) {
        *byte ^= key;
    }
}

/// Masks a piece where it lies, or gives it back: if it is short, or somebody else has a part of what it lies in.
fn mask_in_place(piece: Bytes, key: [u8; 4]) -> Result<Bytes, Bytes> {
    if piece.len() < COPIED_BELOW {
        return Err(piece);
    }
    let mut own = piece.try_into_mut()?;
    apply_mask(&mut own, key);
    Ok(own.freeze())
}

/// Appends a copy, masked if there is a key.
fn copy_masked(piece: &[u8], key: Option<[u8; 4]>, dst: &mut BytesMut) {
    dst.reserve(piece.len());
    for block in piece.chunks(STRIDE) {
        let at = dst.len();
        dst.extend_from_slice(block);
        if let Some(key) = key {
            // A stride is of whole keys.
            apply_mask(&mut dst[at..], key);
        }
    }
}

/// The key for what lies so many bytes behind the start of the payload.
const fn key_at(key: [u8; 4], offset: usize) -> [u8; 4] {
    u32::from_be_bytes(key).rotate_left(8 * (offset % 4) as u32).to_be_bytes()
}

// === Decoder ===

/// A message that is not whole.
#[derive(Debug)]
struct Partial {
    text: bool,
    data: BytesMut,
}

/// Takes the peer's frames apart.
#[derive(Debug)]
pub(crate) struct Decoder {
    masked: bool,
    /// The fragments of a message that is not whole.
    partial: Option<Partial>,
    /// What they took on the wire, headers included.
    unfinished: usize,
    /// What is missing of a frame whose header is known,
    missing: usize,
    /// and how much of its payload the mask was taken off: what has come is still in the nearest cache, and a whole
    /// message is not.
    plain: usize,
}

impl Decoder {
    /// For what comes in at this end.
    pub(crate) const fn new(role: Role) -> Self {
        Self { masked: matches!(role, Role::Server), partial: None, unfinished: 0, missing: 0, plain: 0 }
    }

    /// How many bytes of the frame under way are still to come, as far as is known.
    pub(crate) const fn missing(&self) -> usize {
        self.missing
    }

    /// Takes the next thing said off the front of `src`; `None` when there is no whole frame in it any more.
    pub(crate) fn decode(&mut self, src: &mut BytesMut) -> Result<Option<Incoming>, Violation> {
        self.missing = 0;
        while let Some(head) = Head::decode(src, self.masked)? {
            self.admit(&head)?;
            let here = head.payload.min(src.len() - head.len);
            if let Some(key) = head.mask {
                apply_mask(&mut src[head.len + self.plain..head.len + here], key_at(key, self.plain));
            }
            if here < head.payload {
                (self.missing, self.plain) = (head.payload - here, here);
                return Ok(None);
            }
            self.plain = 0;
            src.advance(head.len);
            let payload = src.split_to(head.payload);
            if let Some(incoming) = self.take(&head, payload)? {
                return Ok(Some(incoming));
            }
        }
        Ok(None)
    }

    /// Judges a frame by its header and what came before.
    fn admit(&self, head: &Head) -> Result<(), Violation> {
        match (head.opcode, &self.partial) {
            (Opcode::Continuation, None) => Err(protocol("a continuation of nothing")),
            (Opcode::Text | Opcode::Binary, Some(_)) => Err(protocol("a message within a message")),
            (Opcode::Continuation, Some(partial)) if partial.data.len() + head.payload > MAX_MESSAGE => {
                Err(TOO_LONG)
            }
            _ => Ok(()),
        }
    }

    fn take(&mut self, head: &Head, payload: BytesMut) -> Result<Option<Incoming>, Violation> {
        match head.opcode {
            Opcode::Ping => return Ok(Some(Incoming::Ping(payload.freeze()))),
            Opcode::Pong => return Ok(Some(Incoming::Pong)),
            Opcode::Close => return close_words(&payload).map(|words| Some(Incoming::Close(words))),
            Opcode::Text | Opcode::Binary | Opcode::Continuation => {}
        }
        let message = match self.partial.take() {
            None => Partial { text: head.opcode == Opcode::Text, data: payload },
            Some(mut partial) => {
                partial.data.extend_from_slice(&payload);
                partial
            }
        };
        if head.fin {
            self.unfinished = 0;
            let data = message.data.freeze();
            return Ok(Some(if message.text { Incoming::Text(data) } else { Incoming::Binary(data) }));
        }
        self.partial = Some(message);
        self.unfinished += head.len + head.payload;
        if self.unfinished > MAX_UNFINISHED { Err(FRAGMENTS) } else { Ok(None) }
    }
}

/// Section 5.5.1: nothing, or a code and a reason in UTF-8.
fn close_words(payload: &[u8]) -> Result<Option<(u16, String)>, Violation> {
    let Some((code, reason)) = payload.split_first_chunk() else {
        return if payload.is_empty() { Ok(None) } else { Err(protocol("half a close code")) };
    };
    let code = u16::from_be_bytes(*code);
    // Section 7.4, and what IANA has registered since.
    if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
        return Err(protocol("a close code that nobody may send"));
    }
    match std::str::from_utf8(reason) {
        Ok(reason) => Ok(Some((code, reason.to_owned()))),
        Err(_) => Err(Violation { code: 1007, what: "a reason that is not UTF-8" }),
    }
}

// === Encoder ===

/// Puts frames together.
#[derive(Debug)]
pub(crate) struct Encoder {
    /// Where masks come from, if this end masks. Nobody outside can foretell them (section 5.3): the hash is a keyed
    /// one, of the number of the frame, and its key is the operating system's randomness.
    masks: Option<RandomState>,
    sent: u64,
}

impl Encoder {
    /// For what this end sends.
    pub(crate) fn new(role: Role) -> Self {
        let masks = matches!(role, Role::Client).then(RandomState::new);
        Self { masks, sent: 0 }
    }

    /// Appends a whole frame with this payload, which for control frames is at most 125 bytes.
    pub(crate) fn encode(&mut self, opcode: Opcode, payload: &[u8], dst: &mut BytesMut) {
        self.encode_pieces(opcode, &[payload], dst);
    }

    /// Appends a binary message, and takes the pieces it is made of. Long ones are not copied: they are masked where they
    /// lie, if nobody else has a part of what they lie in.
    pub(crate) fn encode_message(&mut self, pieces: &mut Vec<Bytes>, dst: &mut Outbox) {
        let length = pieces.iter().map(Bytes::len).sum();
        let key = self.encode_head(Opcode::Binary, length, dst.block());
        let mut offset = 0;
        for piece in pieces.drain(..) {
            let Some(key) = key.map(|key| key_at(key, offset)) else {
                dst.push(piece);
                continue;
            };
            offset += piece.len();
            match mask_in_place(piece, key) {
                Ok(masked) => dst.push(masked),
                Err(piece) => copy_masked(&piece, Some(key), dst.block()),
            }
        }
    }

    /// The same as [`encode`](Self::encode) with a payload in pieces.
    fn encode_pieces(&mut self, opcode: Opcode, pieces: &[impl AsRef<[u8]>], dst: &mut BytesMut) {
        let length = pieces.iter().map(|piece| piece.as_ref().len()).sum();
        dst.reserve(MAX_HEAD + length);
        let key = self.encode_head(opcode, length, dst);
        let start = dst.len();
        for piece in pieces {
            copy_masked(piece.as_ref(), key.map(|key| key_at(key, dst.len() - start)), dst);
        }
    }

    /// Appends the header of a frame with so much payload: also, the key that masks it.
    fn encode_head(&mut self, opcode: Opcode, length: usize, dst: &mut BytesMut) -> Option<[u8; 4]> {
        dst.put_u8(0x80 | opcode as u8);
        let masked = if self.masks.is_some() { 0x80 } else { 0 };
        match length {
            short @ 0..=125 => dst.put_u8(masked | short as u8),
            medium @ 126..=0xFFFF => {
                dst.put_u8(masked | 126);
                dst.put_u16(medium as u16);
            }
            long => {
                dst.put_u8(masked | 127);
                dst.put_u64(long as u64);
            }
        }
        let key = self.masks.as_ref().map(|masks| {
            self.sent += 1;
            let [a, b, c, d, ..] = masks.hash_one(self.sent).to_ne_bytes();
            [a, b, c, d]
        });
        dst.extend_from_slice(key.as_ref().map_or(&[], |key| key));
        key
    }
}

// === Fuzzing ===

/// What the fuzz target calls, with any bytes: what is heard must not depend on the pieces it comes in, no message may
/// be beyond the limit, and what was heard, said again, must be heard the same.
pub fn fuzz(input: &[u8]) {
    let [role, step, bytes @ ..] = input else { return };
    let (here, there) =
        if role & 1 == 0 { (Role::Client, Role::Server) } else { (Role::Server, Role::Client) };
    let (said, violation) = hear(here, bytes, usize::MAX);
    assert_eq!(hear(here, bytes, 1 + usize::from(*step)), (said.clone(), violation), "in pieces");
    let mut again = BytesMut::new();
    let mut encoder = Encoder::new(there);
    for incoming in &said {
        match incoming {
            Incoming::Binary(data) | Incoming::Text(data) => assert!(data.len() <= MAX_MESSAGE),
            Incoming::Ping(data) => assert!(data.len() <= MAX_CONTROL),
            Incoming::Pong | Incoming::Close(_) => {}
        }
        match incoming {
            Incoming::Binary(data) => encoder.encode(Opcode::Binary, data, &mut again),
            Incoming::Text(data) => encoder.encode(Opcode::Text, data, &mut again),
            Incoming::Ping(data) => encoder.encode(Opcode::Ping, data, &mut again),
            Incoming::Pong => encoder.encode(Opcode::Pong, b"", &mut again),
            Incoming::Close(None) => encoder.encode(Opcode::Close, b"", &mut again),
            Incoming::Close(Some((code, reason))) => {
                let words = [&code.to_be_bytes()[..], reason.as_bytes()];
                encoder.encode_pieces(Opcode::Close, &words, &mut again);
            }
        }
    }
    assert_eq!(hear(here, &again, usize::MAX), (said, None), "said again");
}

/// Everything said in `bytes`, handed over in pieces of at most `step`, until something is wrong.
fn hear(role: Role, bytes: &[u8], step: usize) -> (Vec<Incoming>, Option<Violation>) {
    let (mut decoder, mut src, mut said) = (Decoder::new(role), BytesMut::new(), Vec::new());
    for piece in bytes.chunks(step) {
        src.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut src) {
                Ok(Some(incoming)) => said.push(incoming),
                Ok(None) => break,
                Err(violation) => return (said, Some(violation)),
            }
        }
    }
    (said, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(role: Role, bytes: &[u8], step: usize) -> Result<Vec<Incoming>, Violation> {
        match hear(role, bytes, step) {
            (said, None) => Ok(said),
            (_, Some(violation)) => Err(violation),
        }
    }

    #[test]
    fn the_examples_of_section_5_7() {
        let ping = [0x89, 5, b'H', b'e', b'l', b'l', b'o'];
        assert_eq!(decode(Role::Client, &ping, 100), Ok(vec![Incoming::Ping("Hello".into())]));
        let masked_ping = [0x89, 0x85, 0x37, 0xFA, 0x21, 0x3D, 0x7F, 0x9F, 0x4D, 0x51, 0x58];
        assert_eq!(decode(Role::Server, &masked_ping, 100), Ok(vec![Incoming::Ping("Hello".into())]));
        let mut binary = BytesMut::new();
        Encoder::new(Role::Server).encode(Opcode::Binary, &[0; 256], &mut binary);
        assert_eq!(binary[..4], [0x82, 0x7E, 0x01, 0x00]);
        binary.clear();
        Encoder::new(Role::Server).encode(Opcode::Binary, &[0; 65_536], &mut binary);
        assert_eq!(binary[..10], [0x82, 0x7F, 0, 0, 0, 0, 0, 1, 0, 0]);
    }

    #[test]
    fn what_is_said_is_heard_whatever_the_pieces() {
        for (here, there) in [(Role::Client, Role::Server), (Role::Server, Role::Client)] {
            let (mut encoder, mut bytes, mut said) = (Encoder::new(here), BytesMut::new(), Vec::new());
            for length in [0, 1, 7, 8, 9, 125, 126, 127, 1000, 65_535, 65_536, MAX_MESSAGE] {
                let payload: Bytes = (0..length).map(|at| (at % 251) as u8).collect();
                encoder.encode(Opcode::Binary, &payload, &mut bytes);
                said.push(Incoming::Binary(payload));
            }
            encoder.encode(Opcode::Pong, b"", &mut bytes);
            encoder.encode(Opcode::Close, b"\x03\xE8bye", &mut bytes);
            said.extend([Incoming::Pong, Incoming::Close(Some((1000, "bye".to_owned())))]);
            for step in [1, 2, 3, 13, 4096, usize::MAX] {
                assert!(decode(there, &bytes, step).as_ref() == Ok(&said), "{step}");
            }
        }
    }

    /// Pieces that somebody else has a part of beside those that nobody has, short ones, and lengths that are no multiple
    /// of a mask's.
    #[tokio::test]
    async fn a_message_in_pieces_is_heard_whole_and_changes_nothing_that_others_hold() {
        for (here, there) in [(Role::Client, Role::Server), (Role::Server, Role::Client)] {
            let shared = Bytes::from(vec![7; 2 * COPIED_BELOW + 3]);
            let own = |byte, length| Bytes::from(vec![byte; length]);
            let mut pieces = vec![
                own(1, 3),
                own(2, COPIED_BELOW + 1),
                shared.slice(..COPIED_BELOW + 2),
                own(3, COPIED_BELOW - 1),
                own(4, 9 * COPIED_BELOW),
                own(5, 1),
            ];
            let said: Bytes = pieces.iter().flatten().copied().collect();
            let (mut encoder, mut outbox) = (Encoder::new(here), Outbox::default());
            encoder.encode_message(&mut pieces, &mut outbox);
            assert!(pieces.is_empty());
            let mut wire = Vec::new();
            while outbox.len() > 0 {
                std::future::poll_fn(|cx| outbox.poll_write(cx, &mut wire)).await.unwrap();
            }
            assert!(decode(there, &wire, 4096) == Ok(vec![Incoming::Binary(said)]), "{here:?}");
            assert!(shared.iter().all(|byte| *byte == 7), "somebody else holds it");
        }
    }

    #[test]
    fn a_long_piece_that_nobody_else_has_is_masked_where_it_lies() {
        let mut outbox = Outbox::default();
        Encoder::new(Role::Client).encode_message(&mut vec![vec![1; COPIED_BELOW].into()], &mut outbox);
        assert!(outbox.block().is_empty(), "the copy of it");
        let shared = Bytes::from(vec![1; COPIED_BELOW]);
        Encoder::new(Role::Client).encode_message(&mut vec![shared.clone()], &mut outbox);
        assert_eq!(outbox.block().len(), 8 + shared.len());
    }

    #[test]
    fn masks_differ_from_frame_to_frame() {
        let mut encoder = Encoder::new(Role::Client);
        let mut mask = || {
            let mut frame = BytesMut::new();
            encoder.encode(Opcode::Ping, b"", &mut frame);
            frame[2..6].to_vec()
        };
        assert!(mask() != mask() || mask() != mask());
    }

    #[test]
    fn control_frames_pass_between_fragments() {
        let bytes = [0x02, 1, b'a', 0x89, 1, b'p', 0x00, 1, b'b', 0x8A, 0, 0x80, 1, b'c'];
        let said =
            vec![Incoming::Ping("p".into()), Incoming::Pong, Incoming::Binary(Bytes::from_static(b"abc"))];
        for step in 1..=bytes.len() {
            assert_eq!(decode(Role::Client, &bytes, step).as_ref(), Ok(&said));
        }
    }

    #[test]
    fn w6_what_breaks_the_protocol_has_its_code() {
        let cases: [(&[u8], u16); 15] = [
            (&[0x90 | 2, 0], 1002),
            (&[0x83, 0], 1002),
            (&[0x8B, 0], 1002),
            (&[0x82, 0x80], 1002),
            (&[0x02, 0, 0x81, 0], 1002),
            (&[0x80, 0], 1002),
            (&[0x02, 0, 0x82, 0], 1002),
            (&[0x09, 0], 1002),
            (&[0x89, 126], 1002),
            (&[0x88, 1, 3], 1002),
            (&[0x88, 2, 0x03, 0xE7], 1002),
            (&[0x88, 2, 0x03, 0xED], 1002),
            (&[0x88, 2, 0x0B, 0xB7], 1002),
            (&[0x88, 3, 0x03, 0xE8, 0xFF], 1007),
            (&[0x82, 127, 0x80, 0, 0, 0, 0, 0, 0, 0], 1009),
        ];
        for (bytes, code) in cases {
            for step in [1, 100] {
                assert_eq!(
                    decode(Role::Client, bytes, step).map_err(|error| error.code),
                    Err(code),
                    "{bytes:?}"
                );
            }
        }
    }

    #[test]
    fn w4_fragments_without_an_end_are_counted() {
        let mut bytes = vec![0x02, 0];
        bytes.extend([0x00, 0].repeat(MAX_UNFINISHED / 2));
        assert_eq!(decode(Role::Client, &bytes, 4096), Err(FRAGMENTS));
    }
}
