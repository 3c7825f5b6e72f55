//! The protection of records (RFC 8446 section 5.2), without a connection: bytes in, bytes out.

use std::io::IoSlice;

use rustls::{Error, InvalidMessage, PeerMisbehaved};

use crate::aead::{Key, TAG};

/// The most content a record has (section 5.1).
pub(crate) const MAX_CONTENT: usize = 1 << 14;

/// What a record is longer than its content: a head, the kind, a tag.
pub(crate) const OVERHEAD: usize = HEAD + 1 + TAG;

/// The longest record there is, padding included (section 5.2).
const MAX_RECORD: usize = HEAD + MAX_CONTENT + 256;

/// The legacy kind and version, and the length of what follows.
pub(crate) const HEAD: usize = 5;

/// What a record's content is (section 5.1).
pub(crate) mod kind {
    pub(crate) const ALERT: u8 = 21;
    pub(crate) const HANDSHAKE: u8 = 22;
    pub(crate) const DATA: u8 = 23;
}

/// Seals the records of one direction.
pub(crate) struct Sealer {
    key: Key,
    number: u64,
}

impl Sealer {
    pub(crate) const fn new(key: Key, number: u64) -> Self {
        Self { key, number }
    }

    /// How many records the key has sealed.
    pub(crate) const fn sealed(&self) -> u64 {
        self.number
    }

    /// Seals the next `length` bytes of `content`, at most [`MAX_CONTENT`], as one record at the start of `out`.
    /// Returns how long it is: `length` and the [`OVERHEAD`].
    pub(crate) fn seal(
        &mut self,
        kind: u8,
        content: &mut Pieces<'_>,
        length: usize,
        out: &mut [u8],
    ) -> Result<usize, Error> {
        let (head, body) = out[..length + OVERHEAD].split_at_mut(HEAD);
        // Every record claims to be application data of TLS 1.2 (section 5.2).
        head[..3].copy_from_slice(&[kind::DATA, 3, 3]);
        head[3..].copy_from_slice(&(body.len() as u16).to_be_bytes());
        match content.split_to(length) {
            Some(piece) => self.key.seal(self.number, head, piece, kind, body)?,
            None => {
                content.copy_to(&mut body[..length]);
                self.key.seal_in_place(self.number, head, kind, body)?;
            }
        }
        // A connection changes its key long before (section 5.5), and a number twice would be the end of it.
        self.number = self.number.checked_add(1).ok_or(Error::EncryptError)?;
        Ok(HEAD + body.len())
    }
}

/// Opens the records of the other direction.
pub(crate) struct Opener {
    key: Key,
    number: u64,
}

/// An opened record.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Opened {
    pub(crate) kind: u8,
    /// The length of its content.
    pub(crate) length: usize,
}

impl Opener {
    pub(crate) const fn new(key: Key, number: u64) -> Self {
        Self { key, number }
    }

    /// Opens a whole `record` into `out`, of which it takes [`room_for`] it.
    pub(crate) fn open(&mut self, record: &mut [u8], out: &mut [u8]) -> Result<Opened, Error> {
        let room = room_for(record);
        let (head, sealed) = record.split_at_mut(HEAD);
        self.key.open(self.number, head, sealed, &mut out[..room])?;
        self.opened(&out[..room])
    }

    /// Opens a whole `record` where it lies; its content then begins behind its head.
    pub(crate) fn open_in_place(&mut self, record: &mut [u8]) -> Result<Opened, Error> {
        let room = room_for(record);
        let (head, sealed) = record.split_at_mut(HEAD);
        self.key.open_in_place(self.number, head, sealed)?;
        self.opened(&sealed[..room])
    }

    /// Takes the padding off: zeros behind the kind (section 5.4).
    fn opened(&mut self, padded: &[u8]) -> Result<Opened, Error> {
        self.number = self.number.checked_add(1).ok_or(Error::DecryptError)?;
        if padded.len() > MAX_CONTENT + 1 {
            return Err(Error::PeerSentOversizedRecord);
        }
        let length = padded.iter().rposition(|&byte| byte != 0);
        let length = length.ok_or(PeerMisbehaved::IllegalTlsInnerPlaintext)?;
        Ok(Opened { kind: padded[length], length })
    }
}

/// The length of the record that `received` begins with; `None` until its head is there.
///
/// # Errors
///
/// If it can be none: only the protected kind is allowed once both sides have their keys (section 5).
pub(crate) fn length(received: &[u8]) -> Result<Option<usize>, Error> {
    let Some(head) = received.first_chunk::<HEAD>() else { return Ok(None) };
    if head[0] != kind::DATA {
        return Err(InvalidMessage::InvalidContentType.into());
    }
    let length = HEAD + usize::from(u16::from_be_bytes([head[3], head[4]]));
    if length > MAX_RECORD {
        return Err(Error::PeerSentOversizedRecord);
    }
    // Not even a tag, let alone a kind.
    if length < OVERHEAD { Err(Error::DecryptError) } else { Ok(Some(length)) }
}

/// What opening a whole `record` needs: its content, kind and padding.
pub(crate) const fn room_for(record: &[u8]) -> usize {
    record.len() - HEAD - TAG
}

/// Bytes in several pieces, taken from the front.
pub(crate) struct Pieces<'a> {
    pieces: &'a [IoSlice<'a>],
    /// What of the first piece is taken.
    taken: usize,
}

impl<'a> Pieces<'a> {
    pub(crate) const fn new(pieces: &'a [IoSlice<'a>]) -> Self {
        Self { pieces, taken: 0 }
    }

    /// What is left of the first piece that has any.
    fn front(&mut self) -> &'a [u8] {
        while let [first, rest @ ..] = self.pieces {
            if self.taken < first.len() {
                return &first[self.taken..];
            }
            (self.pieces, self.taken) = (rest, 0);
        }
        &[]
    }

    /// The next `length` bytes, if they lie in one piece.
    fn split_to(&mut self, length: usize) -> Option<&'a [u8]> {
        let piece = self.front().get(..length)?;
        self.taken += length;
        Some(piece)
    }

    /// Fills `out` with the next bytes.
    fn copy_to(&mut self, mut out: &mut [u8]) {
        while !out.is_empty() {
            let front = self.front();
            let length = front.len().min(out.len());
            assert!(length > 0, "callers ask for what is there");
            let (filled, rest) = out.split_at_mut(length);
            filled.copy_from_slice(&front[..length]);
            self.taken += length;
            out = rest;
        }
    }
}
