//! A TLS 1.3 connection once its handshake is done (RFC 8446 sections 4.6, 5 and 6), without a socket.

use std::io::IoSlice;

use rustls::client::ClientConnectionData;
use rustls::kernel::KernelConnection;
use rustls::server::ServerConnectionData;
use rustls::{
    AlertDescription, Error, ExtractedSecrets, InvalidMessage, PeerMisbehaved, SupportedCipherSuite,
};
use tokio::io::ReadBuf;

use crate::aead::Key;
use crate::buffer::Buffer;
use crate::record::{self, HEAD, MAX_CONTENT, OVERHEAD, Opener, Pieces, Sealer, kind};

/// What is sealed in one go: more than the four full messages that a tunnel writes at once, headers included. With less,
/// the end of the last would be a record and a system call of its own.
const MAX_SEALED: usize = 288 * 1024;

/// So many records in a row may hold no data: more than tickets after a handshake and a key update, less than a flood.
pub(crate) const MAX_QUIET: u8 = 32;

/// Records opened in one read: 1 MiB of full ones. A peer whose records are of one byte has a read of 256 KiB cost no more
/// work than that.
pub(crate) const RECORDS_PER_READ: u8 = 2 * MAX_QUIET;

/// The longest handshake message taken; rustls' own limit.
const MAX_MESSAGE: usize = 0xffff;

/// A key is changed while it can still seal so many records: that of the change, and an alert.
const RESERVE: u64 = 16;

/// Kinds of handshake messages (section 4), and what comes before each: the kind and a length of three bytes.
const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;
const MESSAGE_HEAD: usize = 4;

/// The two states of both directions, and what rustls still does: deriving keys, keeping tickets.
pub(crate) struct Traffic {
    opener: Opener,
    sealer: Sealer,
    keys: Keys,
    /// How many records a key may seal (section 5.5).
    limit: u64,
    /// The received record that was opened where it lies, while it is being read.
    open: Option<Open>,
    /// The part of a handshake message that has arrived.
    message: Vec<u8>,
    /// Records since the last with data.
    quiet: u8,
    /// The peer asked for a new key (section 4.6.3).
    owes_update: bool,
    peer_closed: bool,
    closed: bool,
    failed: Option<Error>,
}

/// Where the next key comes from.
pub(crate) enum Keys {
    Client(KernelConnection<ClientConnectionData>),
    Server(KernelConnection<ServerConnectionData>),
}

impl Keys {
    fn suite(&self) -> SupportedCipherSuite {
        match self {
            Self::Client(connection) => connection.negotiated_cipher_suite(),
            Self::Server(connection) => connection.negotiated_cipher_suite(),
        }
    }

    fn next_opener(&mut self) -> Result<Opener, Error> {
        let (number, secrets) = match self {
            Self::Client(connection) => connection.update_rx_secret(),
            Self::Server(connection) => connection.update_rx_secret(),
        }?;
        Ok(Opener::new(Key::new(secrets)?, number))
    }

    fn next_sealer(&mut self) -> Result<Sealer, Error> {
        let (number, secrets) = match self {
            Self::Client(connection) => connection.update_tx_secret(),
            Self::Server(connection) => connection.update_tx_secret(),
        }?;
        Ok(Sealer::new(Key::new(secrets)?, number))
    }
}

/// A record opened in place: what of it is content not yet read, and how long all of it is.
struct Open {
    at: usize,
    end: usize,
    record: usize,
}

/// What came of reading.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Read {
    /// There is data: as much as the caller's buffer takes, as was received, or as so many records hold.
    Data,
    /// No whole record is there.
    NeedsMore,
    /// The peer has closed its direction.
    End,
}

impl Traffic {
    pub(crate) fn new(secrets: ExtractedSecrets, keys: Keys) -> Result<Self, Error> {
        let (opening, sealing) = (secrets.rx, secrets.tx);
        let limit = keys.suite().tls13().ok_or(Error::HandshakeNotComplete)?.common.confidentiality_limit;
        Ok(Self {
            opener: Opener::new(Key::new(opening.1)?, opening.0),
            sealer: Sealer::new(Key::new(sealing.1)?, sealing.0),
            keys,
            limit: limit.saturating_sub(RESERVE),
            open: None,
            message: Vec::new(),
            quiet: 0,
            owes_update: false,
            peer_closed: false,
            closed: false,
            failed: None,
        })
    }

    /// Reads into `out` from the records in `received`, straight where a whole one fits.
    ///
    /// # Errors
    ///
    /// What the peer did wrong, once and for good; `sealed` then ends with the alert that tells it (section 6.2).
    pub(crate) fn read(
        &mut self,
        received: &mut Buffer,
        out: &mut ReadBuf<'_>,
        sealed: &mut Buffer,
    ) -> Result<Read, Error> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let before = out.filled().len();
        match self.read_records(received, out) {
            Ok(read) if out.filled().len() == before => Ok(read),
            Ok(_) => Ok(Read::Data),
            Err(error) => {
                self.fail(&error, sealed);
                // What came before it is good.
                if out.filled().len() == before { Err(error) } else { Ok(Read::Data) }
            }
        }
    }

    fn read_records(&mut self, received: &mut Buffer, out: &mut ReadBuf<'_>) -> Result<Read, Error> {
        let before = out.filled().len();
        let mut records = 0;
        loop {
            // There is data among so many, or the connection would have failed.
            if records == RECORDS_PER_READ {
                return Ok(Read::Data);
            }
            records += 1;
            if let Some(open) = &mut self.open {
                let length = out.remaining().min(open.end - open.at);
                out.put_slice(&received.filled()[open.at..][..length]);
                open.at += length;
                if open.at < open.end {
                    return Ok(Read::Data);
                }
                received.consume(open.record);
                self.open = None;
            }
            if self.peer_closed {
                return Ok(Read::End);
            }
            let length = match record::length(received.filled())? {
                Some(length) if length <= received.filled().len() => length,
                _ => return Ok(Read::NeedsMore),
            };
            let record = &mut received.filled_mut()[..length];
            let room = record::room_for(record);
            if room <= out.remaining() {
                let opened = self.opener.open(record, out.initialize_unfilled_to(room))?;
                received.consume(length);
                if opened.kind == kind::DATA {
                    self.data(opened.length)?;
                    out.advance(opened.length);
                } else {
                    let content = out.initialize_unfilled_to(opened.length);
                    self.control(opened.kind, content)?;
                }
            } else if out.filled().len() > before {
                // The rest of a record would be a copy; the next call may have room for all of it.
                return Ok(Read::Data);
            } else {
                let opened = self.opener.open_in_place(record)?;
                if opened.kind == kind::DATA {
                    self.data(opened.length)?;
                    self.open = Some(Open { at: HEAD, end: HEAD + opened.length, record: length });
                } else {
                    let content = &record[HEAD..][..opened.length];
                    self.control(opened.kind, content)?;
                    received.consume(length);
                }
            }
        }
    }

    fn data(&mut self, length: usize) -> Result<(), Error> {
        if !self.message.is_empty() {
            return Err(PeerMisbehaved::MessageInterleavedWithHandshakeMessage.into());
        }
        if length > 0 {
            self.quiet = 0;
            return Ok(());
        }
        self.quiet(PeerMisbehaved::TooManyEmptyFragments)
    }

    /// Counts a record without data.
    fn quiet(&mut self, too_many: PeerMisbehaved) -> Result<(), Error> {
        self.quiet += 1;
        if self.quiet > MAX_QUIET { Err(too_many.into()) } else { Ok(()) }
    }

    /// Takes in a record that is no data.
    fn control(&mut self, kind: u8, content: &[u8]) -> Result<(), Error> {
        match kind {
            // Section 5.4: of these two there are no empty records.
            kind::HANDSHAKE | kind::ALERT if content.is_empty() => {
                Err(InvalidMessage::UnexpectedMessage("an empty record").into())
            }
            kind::HANDSHAKE => self.handshake(content),
            _ if !self.message.is_empty() => {
                Err(PeerMisbehaved::MessageInterleavedWithHandshakeMessage.into())
            }
            kind::ALERT => self.alert(content),
            _ => Err(InvalidMessage::InvalidContentType.into()),
        }
    }

    /// Section 6: the level says nothing, and all but two are the end.
    fn alert(&mut self, content: &[u8]) -> Result<(), Error> {
        let &[_, description] = content else { return Err(InvalidMessage::MissingData("alert").into()) };
        match AlertDescription::from(description) {
            AlertDescription::CloseNotify => {
                self.peer_closed = true;
                Ok(())
            }
            AlertDescription::UserCanceled => self.quiet(PeerMisbehaved::TooManyWarningAlertsReceived),
            description => Err(Error::AlertReceived(description)),
        }
    }

    /// Takes in handshake messages, which may begin and end anywhere but with a key (section 5.1).
    fn handshake(&mut self, content: &[u8]) -> Result<(), Error> {
        self.quiet(PeerMisbehaved::TooManyKeyUpdateRequests)?;
        let mut messages = std::mem::take(&mut self.message);
        messages.extend_from_slice(content);
        let mut left = &messages[..];
        while let Some((head, rest)) = left.split_first_chunk::<MESSAGE_HEAD>() {
            let length = u32::from_be_bytes([0, head[1], head[2], head[3]]) as usize;
            if length > MAX_MESSAGE {
                return Err(InvalidMessage::HandshakePayloadTooLarge.into());
            }
            let Some((message, rest)) = rest.split_at_checked(length) else { break };
            self.message(head[0], message, rest.is_empty())?;
            left = rest;
        }
        self.message = left.to_vec();
        Ok(())
    }

    /// Takes in one handshake message; `last` of its record, or not.
    fn message(&mut self, kind: u8, message: &[u8], last: bool) -> Result<(), Error> {
        match (kind, &mut self.keys) {
            (NEW_SESSION_TICKET, Keys::Client(connection)) => connection.handle_new_session_ticket(message),
            (KEY_UPDATE, _) if !last => Err(PeerMisbehaved::KeyEpochWithPendingFragment.into()),
            (KEY_UPDATE, keys) => {
                self.owes_update |= match message {
                    [0] => false,
                    [1] => true,
                    _ => return Err(InvalidMessage::InvalidKeyUpdate.into()),
                };
                self.opener = keys.next_opener()?;
                Ok(())
            }
            _ => {
                Err(InvalidMessage::UnexpectedMessage("a handshake message once the handshake is done")
                    .into())
            }
        }
    }

    /// Seals what `pieces` begin with into `sealed`, which is empty; returns how much that was, up to 288 KiB.
    ///
    /// # Errors
    ///
    /// That of a connection that has failed.
    pub(crate) fn seal(&mut self, pieces: &[IoSlice<'_>], sealed: &mut Buffer) -> Result<usize, Error> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let result = self.seal_records(pieces, sealed);
        // Half a write is no write: nothing may follow it.
        self.failed = result.as_ref().err().cloned();
        result
    }

    fn seal_records(&mut self, pieces: &[IoSlice<'_>], sealed: &mut Buffer) -> Result<usize, Error> {
        let length = pieces.iter().map(|piece| piece.len()).sum::<usize>().min(MAX_SEALED);
        sealed.prepare(length + (length.div_ceil(MAX_CONTENT) + 1) * OVERHEAD + MESSAGE_HEAD + 1);
        let mut pieces = Pieces::new(pieces);
        let mut left = length;
        while left > 0 {
            if self.owes_update || self.sealer.sealed() >= self.limit {
                self.update_key(sealed)?;
            }
            let length = left.min(MAX_CONTENT);
            self.record(kind::DATA, &mut pieces, length, sealed)?;
            left -= length;
        }
        Ok(length)
    }

    /// Says goodbye (section 6.1); nothing is sealed after it.
    pub(crate) fn close(&mut self, sealed: &mut Buffer) -> Result<(), Error> {
        if !self.closed && self.failed.is_none() {
            self.closed = true;
            self.say(kind::ALERT, &[1, AlertDescription::CloseNotify.into()], sealed)?;
        }
        Ok(())
    }

    /// Whether this end has said goodbye.
    pub(crate) const fn is_closed(&self) -> bool {
        self.closed
    }

    /// Changes the key that seals, and tells the peer (section 4.6.3); its own may stay as it is.
    pub(crate) fn update_key(&mut self, sealed: &mut Buffer) -> Result<(), Error> {
        self.say(kind::HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, 0], sealed)?;
        self.sealer = self.keys.next_sealer()?;
        self.owes_update = false;
        Ok(())
    }

    /// Nothing more is read or sealed; the peer is told why, unless it was the peer who told.
    fn fail(&mut self, error: &Error, sealed: &mut Buffer) {
        self.failed = Some(error.clone());
        let description = match error {
            Error::AlertReceived(_) => return,
            Error::DecryptError => AlertDescription::BadRecordMac,
            Error::PeerSentOversizedRecord => AlertDescription::RecordOverflow,
            Error::InvalidMessage(InvalidMessage::InvalidKeyUpdate) => AlertDescription::IllegalParameter,
            Error::InvalidMessage(
                InvalidMessage::InvalidContentType | InvalidMessage::UnexpectedMessage(_),
            )
            | Error::PeerMisbehaved(_) => AlertDescription::UnexpectedMessage,
            Error::InvalidMessage(_) => AlertDescription::DecodeError,
            _ => AlertDescription::InternalError,
        };
        if !self.closed {
            // If even that cannot be sealed, the peer sees the connection end.
            let _ = self.say(kind::ALERT, &[2, description.into()], sealed);
        }
    }

    pub(crate) fn say(&mut self, kind: u8, content: &[u8], sealed: &mut Buffer) -> Result<(), Error> {
        let slices = [IoSlice::new(content)];
        self.record(kind, &mut Pieces::new(&slices), content.len(), sealed)
    }

    fn record(
        &mut self,
        kind: u8,
        content: &mut Pieces<'_>,
        length: usize,
        sealed: &mut Buffer,
    ) -> Result<(), Error> {
        let sealer = &mut self.sealer;
        sealed.append(length + OVERHEAD, |out| sealer.seal(kind, content, length, out))
    }
}

#[cfg(test)]
impl Traffic {
    pub(crate) const fn owes_update(&self) -> bool {
        self.owes_update
    }

    pub(crate) const fn set_limit(&mut self, limit: u64) {
        self.limit = limit;
    }

    /// How many records the present key has sealed.
    pub(crate) const fn sealed(&self) -> u64 {
        self.sealer.sealed()
    }
}
