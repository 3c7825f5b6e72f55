use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::{DecodeError, HEADER_LEN, MAX_ANSWER, MAX_HELLO, MAX_OPEN, MAX_PAYLOAD, MAX_REASON, kind};

/// What stands before every payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: u8,
    pub(crate) len: usize,
    /// 0 for the tunnel itself.
    pub(crate) stream: u32,
}

impl Header {
    /// Takes a header and its payload off the front of a message; `None` when nothing is left.
    ///
    /// The claimed length meets its limit before anything else is done with it.
    pub(crate) fn decode(message: &mut Bytes) -> Result<Option<(Self, Bytes)>, DecodeError> {
        if message.is_empty() {
            return Ok(None);
        }
        let Some(head) = message.first_chunk::<HEADER_LEN>() else {
            return Err(DecodeError::TruncatedHeader { have: message.len() });
        };
        let [kind, len @ .., s3, s2, s1, s0] = *head;
        let [l2, l1, l0] = len;
        let header = Self {
            kind,
            len: u32::from_be_bytes([0, l2, l1, l0]) as usize,
            stream: u32::from_be_bytes([s3, s2, s1, s0]),
        };
        let limit = longest(kind)?;
        if header.len > limit {
            return Err(DecodeError::PayloadTooLong { kind, claimed: header.len, limit });
        }
        let have = message.len() - HEADER_LEN;
        if header.len > have {
            return Err(DecodeError::TruncatedPayload { kind, claimed: header.len, have });
        }
        message.advance(HEADER_LEN);
        Ok(Some((header, message.split_to(header.len))))
    }

    pub(crate) fn encode(self, dst: &mut BytesMut) {
        debug_assert!(self.len <= MAX_PAYLOAD, "payloads are cut before they are framed");
        dst.put_u32(u32::from(self.kind) << 24 | self.len as u32);
        dst.put_u32(self.stream);
    }

    pub(crate) fn wrong_stream(self) -> DecodeError {
        DecodeError::WrongStream { kind: self.kind, stream: self.stream }
    }
}

/// The longest payload of a kind.
fn longest(kind: u8) -> Result<usize, DecodeError> {
    Ok(match kind {
        kind::HELLO => MAX_HELLO,
        kind::OPEN => MAX_OPEN,
        kind::OPEN_OK | kind::OPEN_ERR => MAX_ANSWER,
        kind::DATA | kind::DATAGRAM | kind::RULES | kind::FIRST_EXTENSION.. => MAX_PAYLOAD,
        kind::WINDOW => 4,
        kind::FIN => 0,
        kind::RESET => 1,
        kind::PING | kind::PONG => 8,
        kind::GO_AWAY => 5 + MAX_REASON,
        _ => return Err(DecodeError::UnknownKind { kind }),
    })
}
