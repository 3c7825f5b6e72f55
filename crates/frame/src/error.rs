use std::{error::Error, fmt};

use crate::{MAX_MESSAGE, MAX_PAYLOAD};

/// What is wrong with the bytes of a message.
///
/// Each of them ends the tunnel: a peer that writes one broken frame cannot be trusted to mean the next one.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DecodeError {
    /// A message without a single frame.
    EmptyMessage,
    /// A message longer than [`MAX_MESSAGE`].
    MessageTooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// The message ends within a frame's header.
    TruncatedHeader {
        /// How many bytes of the header there are.
        have: usize,
    },
    /// A header claims more payload than its message still holds.
    TruncatedPayload {
        /// The kind of the frame.
        kind: u8,
        /// The claimed length.
        claimed: usize,
        /// What follows the header.
        have: usize,
    },
    /// A header claims more than a frame of its kind may carry.
    PayloadTooLong {
        /// The kind of the frame.
        kind: u8,
        /// The claimed length.
        claimed: usize,
        /// The most a frame of this kind carries.
        limit: usize,
    },
    /// The payload is shorter, or of another size, than frames of this kind have.
    PayloadSize {
        /// The kind of the frame.
        kind: u8,
        /// The length found.
        len: usize,
    },
    /// A kind below 0x80 that this version does not know. Kinds from 0x80 on are for extensions, and ignored.
    UnknownKind {
        /// The kind.
        kind: u8,
    },
    /// A kind that only the other side may send, such as an open sent by a client.
    WrongDirection {
        /// The kind.
        kind: u8,
    },
    /// A frame of the tunnel with a stream's number, or a stream's frame with the number 0.
    WrongStream {
        /// The kind.
        kind: u8,
        /// The number in the header.
        stream: u32,
    },
    /// The fields of a payload end within a field.
    TruncatedField {
        /// The kind of the frame.
        kind: u8,
        /// The tag of the field, if that much is there.
        tag: Option<u8>,
    },
    /// A field longer than its limit.
    FieldTooLong {
        /// The kind of the frame.
        kind: u8,
        /// The tag of the field.
        tag: u8,
        /// Its claimed length.
        claimed: usize,
        /// The most it may have.
        limit: usize,
    },
    /// A field that may stand once stands twice, or one that may repeat stands too often.
    FieldRepeated {
        /// The kind of the frame.
        kind: u8,
        /// The tag of the field.
        tag: u8,
    },
    /// A field that must be there is not.
    FieldMissing {
        /// The kind of the frame.
        kind: u8,
        /// The tag of the field.
        tag: u8,
    },
    /// A field whose value means nothing: text that is not UTF-8, an address of three bytes, a window below the
    /// smallest allowed.
    FieldInvalid {
        /// The kind of the frame.
        kind: u8,
        /// The tag of the field.
        tag: u8,
    },
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::EmptyMessage => f.write_str("message without a frame"),
            Self::MessageTooLong { len } => write!(f, "message of {len} bytes, more than {MAX_MESSAGE}"),
            Self::TruncatedHeader { have } => write!(f, "message ends after {have} bytes of a frame header"),
            Self::TruncatedPayload { kind, claimed, have } => {
                write!(f, "frame of kind {kind:#04x} claims {claimed} bytes where {have} follow")
            }
            Self::PayloadTooLong { kind, claimed, limit } => {
                write!(f, "frame of kind {kind:#04x} claims {claimed} bytes, more than {limit}")
            }
            Self::PayloadSize { kind, len } => write!(f, "frame of kind {kind:#04x} with {len} bytes"),
            Self::UnknownKind { kind } => write!(f, "unknown frame kind {kind:#04x}"),
            Self::WrongDirection { kind } => write!(f, "frame of kind {kind:#04x} from the wrong side"),
            Self::WrongStream { kind, stream } => {
                write!(f, "frame of kind {kind:#04x} with stream number {stream}")
            }
            Self::TruncatedField { kind, tag: Some(tag) } => {
                write!(f, "frame of kind {kind:#04x} ends within field {tag:#04x}")
            }
            Self::TruncatedField { kind, tag: None } => {
                write!(f, "frame of kind {kind:#04x} ends within the head of a field")
            }
            Self::FieldTooLong { kind, tag, claimed, limit } => {
                write!(
                    f,
                    "field {tag:#04x} in frame of kind {kind:#04x} claims {claimed} bytes, more than {limit}"
                )
            }
            Self::FieldRepeated { kind, tag } => {
                write!(f, "field {tag:#04x} repeated in frame of kind {kind:#04x}")
            }
            Self::FieldMissing { kind, tag } => {
                write!(f, "field {tag:#04x} missing in frame of kind {kind:#04x}")
            }
            Self::FieldInvalid { kind, tag } => {
                write!(f, "field {tag:#04x} in frame of kind {kind:#04x} has no valid value")
            }
        }
    }
}

impl Error for DecodeError {}

/// A value that would not fit the wire: some field is longer than its limit.
///
/// Found before anything is sent, so that an over-long user name fails its own dial and not the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FieldTooLong {
    /// The name of the field.
    pub field: &'static str,
    /// Its length in bytes, or its number of entries.
    pub len: usize,
    /// The most it may have.
    pub limit: usize,
}

impl FieldTooLong {
    pub(crate) fn check(field: &'static str, len: usize, limit: usize) -> Result<(), Self> {
        if len > limit { Err(Self { field, len, limit }) } else { Ok(()) }
    }
}

impl fmt::Display for FieldTooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of length {}, more than {}", self.field, self.len, self.limit)
    }
}

impl Error for FieldTooLong {}

const _: () = assert!(MAX_PAYLOAD < MAX_MESSAGE, "a whole frame fits a message");
