use std::{fmt::Debug, marker::PhantomData};

use bytes::{Bytes, BytesMut};

use crate::{
    ClientHello, DecodeError, GatewayHello, GoAway, MAX_MESSAGE, Open, OpenErr, OpenOk, StreamFrame, StreamId,
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
    pub trait Sealed {}
    impl Sealed for super::ToClient {}
    impl Sealed for super::ToGateway {}
}

/// The frames of one message, in order. Ends at the first error.
#[derive(Debug)]
pub struct Frames<F> {
    rest: Bytes,
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
            _ => Ok(Self { rest: message, frame: PhantomData }),
        }
    }
}

impl<F: Frame> Iterator for Frames<F> {
    type Item = Result<F, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        let frame = F::decode(&mut self.rest).transpose();
        if let Some(Err(_)) = frame {
            self.rest = Bytes::new();
        }
        frame
    }
}

macro_rules! skeleton { ($f:ty) => {
impl Frame for $f {
    fn decode(_message: &mut Bytes) -> Result<Option<Self>, DecodeError> { unimplemented!() }
    fn encode_head(self, _dst: &mut BytesMut) -> Bytes { unimplemented!() }
    fn encoded_len(&self) -> usize { unimplemented!() }
    fn stream(id: StreamId, frame: StreamFrame) -> Self { Self::Stream(id, frame) }
    fn ping(number: u64) -> Self { Self::Ping(number) }
    fn pong(number: u64) -> Self { Self::Pong(number) }
    fn go_away(go_away: GoAway) -> Self { Self::GoAway(Box::new(go_away)) }
}
}}
skeleton!(ToClient);
skeleton!(ToGateway);
