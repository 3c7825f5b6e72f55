//! The wire format of AnyProxy's tunnel, without IO.
//!
//! A tunnel is a WebSocket connection; each of its binary messages is a row of whole frames. This crate turns
//! messages into frames and frames into bytes, and knows nothing of streams, time or sockets: `PROTOCOL.md` is the
//! page it implements, and the multiplexer that gives frames their meaning is `anyproxy-mux`.
//!
//! ```text
//!  0               1               2               3
//!  +---------------+-----------------------------------------------+
//!  |   kind (8)    |              payload length (24)              |
//!  +---------------+-----------------------------------------------+
//!  |                        stream number (32)                     |
//!  +---------------------------------------------------------------+
//!  |                        payload …                              |
//! ```
//!
//! Frames are typed by direction, [`ToClient`] and [`ToGateway`], so that a frame of the wrong side cannot be
//! written down. Decoding copies no payload: what a frame carries is a slice of the received message, but for the
//! small slice of a large message, which is copied so as not to keep the rest alive.
//!
//! ```
//! use anyproxy_frame::{Frame, Frames, StreamFrame, StreamId, ToClient};
//! use bytes::{Bytes, BytesMut};
//!
//! let mut message = BytesMut::new();
//! ToClient::stream(StreamId::FIRST, StreamFrame::Data(Bytes::from_static(b"hello"))).encode(&mut message);
//! ToClient::stream(StreamId::FIRST, StreamFrame::Fin).encode(&mut message);
//!
//! let frames: Result<Vec<ToClient>, _> = Frames::new(message.freeze())?.collect();
//! assert_eq!(frames?.len(), 2);
//! # Ok::<_, anyproxy_frame::DecodeError>(())
//! ```

mod error;
mod frame;
mod go_away;
mod header;
mod hello;
mod id;
mod kind;
mod limits;
mod open;
#[doc(hidden)]
pub mod oracle;
mod stream;
mod tlv;

pub use error::{DecodeError, FieldTooLong};
pub use frame::{Frame, Frames, Rules, ToClient, ToGateway, Unknown};
pub use go_away::{GoAway, GoAwayCode};
pub use hello::{ClientHello, GatewayHello, PortRequest, PortStatus, PortVerdict, Transport};
pub use id::StreamId;
pub use limits::*;
pub use open::{HostRef, Network, Open, OpenErr, OpenErrClass, OpenOk};
pub use stream::{ResetCode, StreamFrame};
