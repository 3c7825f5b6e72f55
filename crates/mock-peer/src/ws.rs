/// A WebSocket frame as it is written (RFC 6455 section 5.2), true or not.
#[derive(Clone, Copy, Debug)]
pub struct Ws<'a> {
    /// The last of its message.
    pub fin: bool,
    /// RSV1 to RSV3, which only extensions may set: 4, 2 and 1.
    pub rsv: u8,
    /// What it is.
    pub opcode: u8,
    /// Whether it says that it is masked, and is; `None`: as its sender's role asks for.
    pub masked: Option<bool>,
    /// The length it claims; `None`: the true one.
    pub claim: Option<u64>,
    /// What it carries.
    pub payload: &'a [u8],
}

/// Any key will do: masks keep proxies from being fooled, and there are none here.
const KEY: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

impl<'a> Ws<'a> {
    /// The rest of a message.
    pub const CONTINUATION: u8 = 0;
    /// A text message.
    pub const TEXT: u8 = 1;
    /// A binary message.
    pub const BINARY: u8 = 2;
    /// The end.
    pub const CLOSE: u8 = 8;
    /// A ping of WebSocket's own.
    pub const PING: u8 = 9;
    /// Its answer.
    pub const PONG: u8 = 10;

    /// A whole message, or a control frame.
    #[must_use]
    pub const fn new(opcode: u8, payload: &'a [u8]) -> Self {
        Self { fin: true, rsv: 0, opcode, masked: None, claim: None, payload }
    }

    /// The same, to be continued.
    #[must_use]
    pub const fn unfinished(self) -> Self {
        Self { fin: false, ..self }
    }

    /// The same with a length that is not true.
    #[must_use]
    pub const fn claiming(self, len: u64) -> Self {
        Self { claim: Some(len), ..self }
    }

    /// The same, masked or not, whatever its sender's role is.
    #[must_use]
    pub const fn masked(self, masked: bool) -> Self {
        Self { masked: Some(masked), ..self }
    }

    /// The same with these reserved bits.
    #[must_use]
    pub const fn with_rsv(self, rsv: u8) -> Self {
        Self { rsv, ..self }
    }

    /// The bytes of it, from a sender that masks or does not.
    #[must_use]
    pub fn encode(&self, masks: bool) -> Vec<u8> {
        let masks = self.masked.unwrap_or(masks);
        let len = self.claim.unwrap_or(self.payload.len() as u64);
        let mut bytes = vec![u8::from(self.fin) << 7 | (self.rsv & 7) << 4 | self.opcode & 15];
        let mask = u8::from(masks) << 7;
        match len {
            0..=125 => bytes.push(mask | len as u8),
            126..=0xffff => {
                bytes.push(mask | 126);
                bytes.extend((len as u16).to_be_bytes());
            }
            _ => {
                bytes.push(mask | 127);
                bytes.extend(len.to_be_bytes());
            }
        }
        if masks {
            bytes.extend(KEY);
            bytes.extend(self.payload.iter().zip(KEY.iter().cycle()).map(|(byte, key)| byte ^ key));
        } else {
            bytes.extend(self.payload);
        }
        bytes
    }
}

/// How a frame begins that was received.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head {
    pub(crate) fin: bool,
    pub(crate) opcode: u8,
    pub(crate) mask: Option<[u8; 4]>,
    pub(crate) len: usize,
    /// Its own length.
    pub(crate) head: usize,
}

impl Head {
    /// Reads one; `None` until all of it has come.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let [first, second] = *bytes.first_chunk()?;
        let (len, mut head) = match second & 127 {
            126 => (u16::from_be_bytes(*bytes[2..].first_chunk()?) as usize, 4),
            127 => (u64::from_be_bytes(*bytes[2..].first_chunk()?) as usize, 10),
            len => (usize::from(len), 2),
        };
        let mut mask = None;
        if second & 128 != 0 {
            mask = Some(*bytes.get(head..)?.first_chunk()?);
            head += 4;
        }
        Some(Self { fin: first & 128 != 0, opcode: first & 15, mask, len, head })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_written_as_rfc_6455_section_5_7_shows_them() {
        assert_eq!(Ws::new(Ws::TEXT, b"Hello").encode(false), b"\x81\x05Hello");
        assert_eq!(
            Ws::new(Ws::TEXT, b"Hello").encode(true),
            [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58]
        );
        assert_eq!(Ws::new(Ws::TEXT, b"Hel").unfinished().encode(false), b"\x01\x03Hel");
        let large = vec![0; 65_536];
        let bytes = Ws::new(Ws::BINARY, &large).encode(false);
        assert_eq!(bytes[..10], [0x82, 0x7f, 0, 0, 0, 0, 0, 1, 0, 0]);
        let head = Head::decode(&bytes).unwrap();
        assert_eq!(
            (head.fin, head.opcode, head.mask, head.len, head.head),
            (true, Ws::BINARY, None, 65_536, 10)
        );
    }
}
