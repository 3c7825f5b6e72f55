use std::{fmt::Debug, marker::PhantomData};

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::{
    COPIED_BELOW, ClientHello, DecodeError, GatewayHello, GoAway, GoAwayCode, HEADER_LEN, MAX_MESSAGE,
    MAX_RULES_CHUNK, Open, OpenErr, OpenOk, ResetCode, StreamFrame, StreamId,
    header::Header,
    kind,
    tlv::{Count, Sink},
};

/// What a gateway may send to a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToClient {
    /// The first frame, sent when the client's hello was judged.
    Hello(Box<GatewayHello>),
    /// A wish for a new stream. Only gateways open.
    Open(StreamId, Box<Open>),
    /// Something on an open stream.
    Stream(StreamId, StreamFrame),
    /// A part of the gateway's rules.
    Rules(Rules),
    /// Are you there? The answer repeats the number.
    Ping(u64),
    /// The answer to a ping.
    Pong(u64),
    /// No more opens; the living may finish.
    GoAway(Box<GoAway>),
    /// A frame of some extension, to be ignored.
    Unknown(Unknown),
}

/// What a client may send to a gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToGateway {
    /// The first frame.
    Hello(Box<ClientHello>),
    /// The target of this stream was reached.
    OpenOk(StreamId, OpenOk),
    /// The target of this stream was not reached; the stream is over.
    OpenErr(StreamId, Box<OpenErr>),
    /// Something on an open stream.
    Stream(StreamId, StreamFrame),
    /// Are you there? The answer repeats the number.
    Ping(u64),
    /// The answer to a ping.
    Pong(u64),
    /// No more opens; the living may finish.
    GoAway(Box<GoAway>),
    /// A frame of some extension, to be ignored.
    Unknown(Unknown),
}

/// A part of a gateway's rules, which hold at the client too. Parts of one version follow one another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// The version that opens refer to; never 0.
    pub version: u32,
    /// Whether the version is whole with this part.
    pub last: bool,
    /// The part; at most [`MAX_RULES_CHUNK`](crate::MAX_RULES_CHUNK) bytes. Its meaning is not the wire's.
    pub chunk: Bytes,
}

/// A frame of a kind from 0x80 on, which this version does not know and ignores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unknown {
    /// The kind.
    pub kind: u8,
    /// The number in its header.
    pub stream: u32,
    /// What it carries.
    pub payload: Bytes,
}

/// What both directions have in common; implemented by [`ToClient`] and [`ToGateway`] alone.
pub trait Frame: Clone + Debug + PartialEq + Sized + sealed::Sealed {
    /// Takes the next frame off the front of what is left of a message; `None` when nothing is left.
    ///
    /// # Errors
    /// What is wrong with the bytes; the tunnel must end.
    fn decode(message: &mut Bytes) -> Result<Option<Self>, DecodeError>;

    /// Appends the frame to a message.
    fn encode(&self, dst: &mut BytesMut) {
        let tail = self.clone().encode_head(dst);
        dst.extend_from_slice(&tail);
    }

    /// Appends all but the bytes it carries, and gives those back: they belong right behind, and a vectored write
    /// spares their copy. Empty for frames that carry none.
    fn encode_head(self, dst: &mut BytesMut) -> Bytes;

    /// The length of the encoded frame, header included.
    fn encoded_len(&self) -> usize;

    /// A frame on a stream.
    fn stream(id: StreamId, frame: StreamFrame) -> Self;

    /// A ping.
    fn ping(number: u64) -> Self;

    /// The answer to a ping.
    fn pong(number: u64) -> Self;

    /// A go-away.
    fn go_away(go_away: GoAway) -> Self;
}

mod sealed {
    /// Keeps the trait to the two directions, and what only this crate may call.
    pub trait Sealed {
        /// The bytes carried, if somebody may hold on to them.
        fn carried(&mut self) -> Option<&mut bytes::Bytes>;
    }
}

/// The frames of one message, in order. Ends at the first error.
///
/// What frames carry are slices of the message, with one exception: a slice of less than an eighth of its message
/// is copied when it is a datagram, or has [`COPIED_BELOW`](crate::COPIED_BELOW) bytes or more. So a slice that is
/// kept never keeps more of its message than eight times its length. Shorter data is left to the queue it is put into,
/// which joins small pieces anyway.
#[derive(Debug)]
pub struct Frames<F> {
    rest: Bytes,
    message_len: usize,
    frame: PhantomData<F>,
}

impl<F: Frame> Frames<F> {
    /// The frames of a message.
    ///
    /// # Errors
    /// If the message is empty or longer than [`MAX_MESSAGE`].
    pub fn new(message: Bytes) -> Result<Self, DecodeError> {
        match message.len() {
            0 => Err(DecodeError::EmptyMessage),
            len if len > MAX_MESSAGE => Err(DecodeError::MessageTooLong { len }),
            message_len => Ok(Self { rest: message, message_len, frame: PhantomData }),
        }
    }
}

impl<F: Frame> Iterator for Frames<F> {
    type Item = Result<F, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut frame = F::decode(&mut self.rest).transpose();
        match &mut frame {
            Some(Ok(frame)) => {
                if let Some(carried) = frame.carried().filter(|carried| carried.len() * 8 < self.message_len)
                {
                    *carried = Bytes::copy_from_slice(carried);
                }
            }
            Some(Err(_)) => self.rest = Bytes::new(),
            None => {}
        }
        frame
    }
}

// === impl ToClient ===

impl Frame for ToClient {
    fn decode(message: &mut Bytes) -> Result<Option<Self>, DecodeError> {
        let Some((header, payload)) = Header::decode(message)? else {
            return Ok(None);
        };
        Ok(Some(match header.kind {
            kind::HELLO => Self::Hello(Box::new(GatewayHello::decode(of_tunnel(header, &payload)?)?)),
            kind::OPEN => Self::Open(stream_id(header)?, Box::new(Open::decode(&payload)?)),
            kind::RULES => Self::Rules(decode_rules(header, payload)?),
            kind::OPEN_OK | kind::OPEN_ERR => return Err(DecodeError::WrongDirection { kind: header.kind }),
            _ => match Common::decode(header, payload)? {
                Common::Stream(id, frame) => Self::Stream(id, frame),
                Common::Ping(number) => Self::Ping(number),
                Common::Pong(number) => Self::Pong(number),
                Common::GoAway(go_away) => Self::GoAway(go_away),
                Common::Unknown(unknown) => Self::Unknown(unknown),
            },
        }))
    }

    fn encode_head(self, dst: &mut BytesMut) -> Bytes {
        match self {
            Self::Hello(hello) => encode_fields(dst, kind::HELLO, 0, |out| hello.fields(out)),
            Self::Open(id, open) => encode_fields(dst, kind::OPEN, id.get(), |out| open.fields(out)),
            Self::Rules(rules) => return encode_rules(rules, dst),
            Self::Stream(id, frame) => return Common::Stream(id, frame).encode_head(dst),
            Self::Ping(number) => return Common::Ping(number).encode_head(dst),
            Self::Pong(number) => return Common::Pong(number).encode_head(dst),
            Self::GoAway(go_away) => return Common::GoAway(go_away).encode_head(dst),
            Self::Unknown(unknown) => return Common::Unknown(unknown).encode_head(dst),
        }
        Bytes::new()
    }

    fn encoded_len(&self) -> usize {
        HEADER_LEN
            + match self {
                Self::Hello(hello) => count(|out| hello.fields(out)),
                Self::Open(_, open) => count(|out| open.fields(out)),
                Self::Rules(rules) => RULES_HEAD + rules.chunk.len(),
                Self::Stream(_, frame) => stream_payload_len(frame),
                Self::Ping(_) | Self::Pong(_) => 8,
                Self::GoAway(go_away) => GO_AWAY_HEAD + go_away.short_reason().len(),
                Self::Unknown(unknown) => unknown.payload.len(),
            }
    }

    fn stream(id: StreamId, frame: StreamFrame) -> Self {
        Self::Stream(id, frame)
    }

    fn ping(number: u64) -> Self {
        Self::Ping(number)
    }

    fn pong(number: u64) -> Self {
        Self::Pong(number)
    }

    fn go_away(go_away: GoAway) -> Self {
        Self::GoAway(Box::new(go_away))
    }
}

impl sealed::Sealed for ToClient {
    fn carried(&mut self) -> Option<&mut Bytes> {
        match self {
            Self::Stream(_, frame) => carried_on_stream(frame),
            Self::Rules(rules) => Some(&mut rules.chunk),
            _ => None,
        }
    }
}

// === impl ToGateway ===

impl Frame for ToGateway {
    fn decode(message: &mut Bytes) -> Result<Option<Self>, DecodeError> {
        let Some((header, payload)) = Header::decode(message)? else {
            return Ok(None);
        };
        Ok(Some(match header.kind {
            kind::HELLO => Self::Hello(Box::new(ClientHello::decode(of_tunnel(header, &payload)?)?)),
            kind::OPEN_OK => Self::OpenOk(stream_id(header)?, OpenOk::decode(&payload)?),
            kind::OPEN_ERR => Self::OpenErr(stream_id(header)?, Box::new(OpenErr::decode(&payload)?)),
            kind::OPEN | kind::RULES => return Err(DecodeError::WrongDirection { kind: header.kind }),
            _ => match Common::decode(header, payload)? {
                Common::Stream(id, frame) => Self::Stream(id, frame),
                Common::Ping(number) => Self::Ping(number),
                Common::Pong(number) => Self::Pong(number),
                Common::GoAway(go_away) => Self::GoAway(go_away),
                Common::Unknown(unknown) => Self::Unknown(unknown),
            },
        }))
    }

    fn encode_head(self, dst: &mut BytesMut) -> Bytes {
        match self {
            Self::Hello(hello) => encode_fields(dst, kind::HELLO, 0, |out| hello.fields(out)),
            Self::OpenOk(id, ok) => encode_fields(dst, kind::OPEN_OK, id.get(), |out| ok.fields(out)),
            Self::OpenErr(id, err) => encode_fields(dst, kind::OPEN_ERR, id.get(), |out| err.fields(out)),
            Self::Stream(id, frame) => return Common::Stream(id, frame).encode_head(dst),
            Self::Ping(number) => return Common::Ping(number).encode_head(dst),
            Self::Pong(number) => return Common::Pong(number).encode_head(dst),
            Self::GoAway(go_away) => return Common::GoAway(go_away).encode_head(dst),
            Self::Unknown(unknown) => return Common::Unknown(unknown).encode_head(dst),
        }
        Bytes::new()
    }

    fn encoded_len(&self) -> usize {
        HEADER_LEN
            + match self {
                Self::Hello(hello) => count(|out| hello.fields(out)),
                Self::OpenOk(_, ok) => count(|out| ok.fields(out)),
                Self::OpenErr(_, err) => count(|out| err.fields(out)),
                Self::Stream(_, frame) => stream_payload_len(frame),
                Self::Ping(_) | Self::Pong(_) => 8,
                Self::GoAway(go_away) => GO_AWAY_HEAD + go_away.short_reason().len(),
                Self::Unknown(unknown) => unknown.payload.len(),
            }
    }

    fn stream(id: StreamId, frame: StreamFrame) -> Self {
        Self::Stream(id, frame)
    }

    fn ping(number: u64) -> Self {
        Self::Ping(number)
    }

    fn pong(number: u64) -> Self {
        Self::Pong(number)
    }

    fn go_away(go_away: GoAway) -> Self {
        Self::GoAway(Box::new(go_away))
    }
}

impl sealed::Sealed for ToGateway {
    fn carried(&mut self) -> Option<&mut Bytes> {
        match self {
            Self::Stream(_, frame) => carried_on_stream(frame),
            _ => None,
        }
    }
}

// === impl Common ===

/// Bytes of a go-away before its reason.
const GO_AWAY_HEAD: usize = 5;

/// Bytes of rules before the part itself.
const RULES_HEAD: usize = 5;

/// The kinds that both directions have, so that each is read and written in one place.
enum Common {
    Stream(StreamId, StreamFrame),
    Ping(u64),
    Pong(u64),
    GoAway(Box<GoAway>),
    Unknown(Unknown),
}

impl Common {
    fn decode(header: Header, payload: Bytes) -> Result<Self, DecodeError> {
        Ok(match header.kind {
            kind::DATA => Self::Stream(stream_id(header)?, StreamFrame::Data(payload)),
            kind::WINDOW => {
                let increment = u32::from_be_bytes(exactly(header, &payload)?);
                Self::Stream(stream_id(header)?, StreamFrame::Window(increment))
            }
            kind::FIN => Self::Stream(stream_id(header)?, StreamFrame::Fin),
            kind::RESET => {
                let [code] = exactly(header, &payload)?;
                Self::Stream(stream_id(header)?, StreamFrame::Reset(ResetCode::from_u8(code)))
            }
            kind::DATAGRAM => Self::Stream(stream_id(header)?, StreamFrame::Datagram(payload)),
            kind::PING => Self::Ping(u64::from_be_bytes(exactly(header, of_tunnel(header, &payload)?)?)),
            kind::PONG => Self::Pong(u64::from_be_bytes(exactly(header, of_tunnel(header, &payload)?)?)),
            kind::GO_AWAY => Self::GoAway(Box::new(decode_go_away(header, &payload)?)),
            kind::FIRST_EXTENSION.. => {
                Self::Unknown(Unknown { kind: header.kind, stream: header.stream, payload })
            }
            kind => return Err(DecodeError::UnknownKind { kind }),
        })
    }

    fn encode_head(self, dst: &mut BytesMut) -> Bytes {
        match self {
            Self::Stream(id, frame) => encode_on_stream(id, frame, dst),
            Self::Ping(number) => encode_number(kind::PING, number, dst),
            Self::Pong(number) => encode_number(kind::PONG, number, dst),
            Self::GoAway(go_away) => {
                let reason = go_away.short_reason();
                Header { kind: kind::GO_AWAY, len: GO_AWAY_HEAD + reason.len(), stream: 0 }.encode(dst);
                dst.put_u8(go_away.code.to_u8());
                dst.put_u32(go_away.last);
                dst.put_slice(reason.as_bytes());
                Bytes::new()
            }
            Self::Unknown(Unknown { kind, stream, payload }) => {
                Header { kind, len: payload.len(), stream }.encode(dst);
                payload
            }
        }
    }
}

fn encode_on_stream(id: StreamId, frame: StreamFrame, dst: &mut BytesMut) -> Bytes {
    let stream = id.get();
    match frame {
        StreamFrame::Data(data) => {
            Header { kind: kind::DATA, len: data.len(), stream }.encode(dst);
            data
        }
        StreamFrame::Datagram(data) => {
            Header { kind: kind::DATAGRAM, len: data.len(), stream }.encode(dst);
            data
        }
        StreamFrame::Window(increment) => {
            Header { kind: kind::WINDOW, len: 4, stream }.encode(dst);
            dst.put_u32(increment);
            Bytes::new()
        }
        StreamFrame::Fin => {
            Header { kind: kind::FIN, len: 0, stream }.encode(dst);
            Bytes::new()
        }
        StreamFrame::Reset(code) => {
            Header { kind: kind::RESET, len: 1, stream }.encode(dst);
            dst.put_u8(code.to_u8());
            Bytes::new()
        }
    }
}

fn stream_payload_len(frame: &StreamFrame) -> usize {
    match frame {
        StreamFrame::Data(data) | StreamFrame::Datagram(data) => data.len(),
        StreamFrame::Window(_) => 4,
        StreamFrame::Fin => 0,
        StreamFrame::Reset(_) => 1,
    }
}

fn carried_on_stream(frame: &mut StreamFrame) -> Option<&mut Bytes> {
    match frame {
        StreamFrame::Data(data) if data.len() >= COPIED_BELOW => Some(data),
        StreamFrame::Datagram(data) => Some(data),
        _ => None,
    }
}

fn encode_number(kind: u8, number: u64, dst: &mut BytesMut) -> Bytes {
    Header { kind, len: 8, stream: 0 }.encode(dst);
    dst.put_u64(number);
    Bytes::new()
}

fn decode_go_away(header: Header, payload: &[u8]) -> Result<GoAway, DecodeError> {
    let Some((&[code, ref last @ ..], reason)) =
        of_tunnel(header, payload)?.split_first_chunk::<GO_AWAY_HEAD>()
    else {
        return Err(DecodeError::PayloadSize { kind: header.kind, len: payload.len() });
    };
    let last = u32::from_be_bytes(*last);
    Ok(GoAway::new(GoAwayCode::from_u8(code), last, String::from_utf8_lossy(reason)))
}

fn decode_rules(header: Header, mut payload: Bytes) -> Result<Rules, DecodeError> {
    let Some(&[v3, v2, v1, v0, flags]) = of_tunnel(header, &payload)?.first_chunk::<RULES_HEAD>() else {
        return Err(DecodeError::PayloadSize { kind: header.kind, len: payload.len() });
    };
    payload.advance(RULES_HEAD);
    Ok(Rules { version: u32::from_be_bytes([v3, v2, v1, v0]), last: flags & 1 == 1, chunk: payload })
}

fn encode_rules(rules: Rules, dst: &mut BytesMut) -> Bytes {
    debug_assert!(rules.chunk.len() <= MAX_RULES_CHUNK, "rules are cut into parts before they are framed");
    Header { kind: kind::RULES, len: RULES_HEAD + rules.chunk.len(), stream: 0 }.encode(dst);
    dst.put_u32(rules.version);
    dst.put_u8(rules.last.into());
    rules.chunk
}

fn encode_fields(dst: &mut BytesMut, kind: u8, stream: u32, fields: impl Fn(&mut dyn Sink)) {
    Header { kind, len: count(&fields), stream }.encode(dst);
    fields(dst);
}

fn count(fields: impl Fn(&mut dyn Sink)) -> usize {
    let mut len = Count::default();
    fields(&mut len);
    len.0
}

/// The number of a stream's frame.
fn stream_id(header: Header) -> Result<StreamId, DecodeError> {
    StreamId::new(header.stream).ok_or_else(|| header.wrong_stream())
}

/// The payload of a frame that belongs to the tunnel and no stream.
fn of_tunnel(header: Header, payload: &[u8]) -> Result<&[u8], DecodeError> {
    if header.stream == 0 { Ok(payload) } else { Err(header.wrong_stream()) }
}

fn exactly<const N: usize>(header: Header, payload: &[u8]) -> Result<[u8; N], DecodeError> {
    payload.try_into().map_err(|_| DecodeError::PayloadSize { kind: header.kind, len: payload.len() })
}
