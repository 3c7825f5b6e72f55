//! What rustls does itself: the handshake, and all of TLS 1.2.

use std::io::IoSlice;
use std::ops::RangeInclusive;

use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, UnbufferedStatus};
use rustls::{CommonState, Error, InvalidMessage, ProtocolVersion};
use tokio::io::ReadBuf;

use crate::buffer::Buffer;
use crate::record::{HEAD, MAX_CONTENT};
use crate::traffic::{Keys, Read, Traffic};

/// The most bytes that one record of TLS 1.2 is longer than its content.
const MAX_OVERHEAD: usize = 256;

/// What rustls may have been shown and not taken: a handshake message of 64 KiB, its own limit, in records of any length but
/// the very shortest.
const MAX_SHOWN: usize = 128 * 1024;

/// The kinds of records that rustls knows, and the longest there is in TLS 1.2 (RFC 5246 section 6.2.3).
const KINDS: RangeInclusive<u8> = 20..=24;
const MAX_LENGTH: usize = MAX_CONTENT + 2048 - 1;

/// A connection in rustls' hands.
pub(crate) struct Connection {
    side: Side,
    /// How many of the received bytes rustls has been shown and not taken: one record after the other, so that the one behind
    /// the last of a handshake is still as it came.
    shown: usize,
    /// What was received and not read, of TLS 1.2.
    plain: Vec<u8>,
    /// How much of it was read.
    read: usize,
    /// The peer has closed its direction; rustls says so once.
    ended: bool,
    closed: bool,
    /// Why there is no more of it; rustls does not remember all of that.
    failed: Option<Error>,
}

enum Side {
    Client(UnbufferedClientConnection),
    Server(UnbufferedServerConnection),
}

/// What a step has led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// There is more to do.
    Again,
    /// More must be received first.
    NeedsMore,
    /// The handshake is done; more may be received.
    Done,
    /// The peer has closed its direction.
    End,
}

impl Connection {
    pub(crate) const fn client(connection: UnbufferedClientConnection) -> Self {
        Self::new(Side::Client(connection))
    }

    pub(crate) const fn server(connection: UnbufferedServerConnection) -> Self {
        Self::new(Side::Server(connection))
    }

    const fn new(side: Side) -> Self {
        Self { side, shown: 0, plain: Vec::new(), read: 0, ended: false, closed: false, failed: None }
    }

    /// Goes on with what was received; what there is to say is appended to `sealed`.
    ///
    /// # Errors
    ///
    /// Why the connection has failed; `sealed` then ends with the alert for the peer, if there is one.
    pub(crate) fn step(&mut self, received: &mut Buffer, sealed: &mut Buffer) -> Result<Step, Error> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let step = match self.step_shown(received, sealed) {
            Ok(Step::NeedsMore) if self.show_next(received)? => Ok(Step::Again),
            step => step,
        };
        if let Err(error) = &step {
            self.failed = Some(error.clone());
            // The alert waits within rustls, which must not see the record that failed once more.
            while self.state().wants_write() && self.step_shown(received, sealed).is_ok() {}
        }
        step
    }

    /// What both sides have of a state.
    fn state(&self) -> &CommonState {
        match &self.side {
            Side::Client(connection) => connection,
            Side::Server(connection) => connection,
        }
    }

    /// Shows rustls one more record, if all of it is there.
    fn show_next(&mut self, received: &Buffer) -> Result<bool, Error> {
        if self.shown > MAX_SHOWN {
            let error = Error::from(InvalidMessage::HandshakePayloadTooLarge);
            self.failed = Some(error.clone());
            return Err(error);
        }
        let next = next_record(&received.filled()[self.shown..]);
        self.shown += next.unwrap_or(0);
        Ok(next.is_some())
    }

    fn step_shown(&mut self, received: &mut Buffer, sealed: &mut Buffer) -> Result<Step, Error> {
        let shown = &mut received.filled_mut()[..self.shown];
        let (discard, step) = match &mut self.side {
            Side::Client(connection) => take(connection.process_tls_records(shown), sealed, &mut self.plain),
            Side::Server(connection) => take(connection.process_tls_records(shown), sealed, &mut self.plain),
        };
        received.consume(discard);
        self.shown -= discard;
        step
    }

    /// Takes over from rustls once the handshake is done, if it led to TLS 1.3; everything said by it is in the callers'
    /// buffers, and the next record is one of the new keys.
    pub(crate) fn into_traffic(self) -> Result<Result<Traffic, Self>, Error> {
        if self.state().protocol_version() != Some(ProtocolVersion::TLSv1_3) {
            return Ok(Err(self));
        }
        let (secrets, keys) = match self.side {
            Side::Client(connection) => {
                let (secrets, connection) = connection.dangerous_into_kernel_connection()?;
                (secrets, Keys::Client(connection))
            }
            Side::Server(connection) => {
                let (secrets, connection) = connection.dangerous_into_kernel_connection()?;
                (secrets, Keys::Server(connection))
            }
        };
        Traffic::new(secrets, keys).map(Ok)
    }

    /// Reads into `out` from the records in `received`.
    ///
    /// # Errors
    ///
    /// As [`step`](Self::step).
    pub(crate) fn read(
        &mut self,
        received: &mut Buffer,
        out: &mut ReadBuf<'_>,
        sealed: &mut Buffer,
    ) -> Result<Read, Error> {
        loop {
            let plain = &self.plain[self.read..];
            if !plain.is_empty() {
                let length = plain.len().min(out.remaining());
                out.put_slice(&plain[..length]);
                self.read += length;
                return Ok(Read::Data);
            }
            self.plain.clear();
            self.read = 0;
            if self.ended {
                return Ok(Read::End);
            }
            match self.step(received, sealed)? {
                Step::Again => {}
                Step::Done if self.show_next(received)? => {}
                Step::NeedsMore | Step::Done => return Ok(Read::NeedsMore),
                Step::End => self.ended = true,
            }
        }
    }

    /// Seals what `pieces` begin with; returns how much that was: one record.
    pub(crate) fn seal(
        &mut self,
        pieces: &[IoSlice<'_>],
        received: &mut Buffer,
        sealed: &mut Buffer,
    ) -> Result<usize, Error> {
        let piece = pieces.iter().find(|piece| !piece.is_empty()).map_or(&[][..], |piece| piece);
        let piece = &piece[..piece.len().min(MAX_CONTENT)];
        self.write(Some(piece), received, sealed)?;
        Ok(piece.len())
    }

    /// Says goodbye; nothing is sealed after it.
    pub(crate) fn close(&mut self, received: &mut Buffer, sealed: &mut Buffer) -> Result<(), Error> {
        let over = std::mem::replace(&mut self.closed, true) || self.failed.is_some();
        if over { Ok(()) } else { self.write(None, received, sealed) }
    }

    /// Whether this end has said goodbye.
    pub(crate) const fn is_closed(&self) -> bool {
        self.closed
    }

    fn write(
        &mut self,
        content: Option<&[u8]>,
        received: &mut Buffer,
        sealed: &mut Buffer,
    ) -> Result<(), Error> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        // What else there is to say goes first.
        while self.step_shown(received, sealed)? == Step::Again {}
        let shown = &mut received.filled_mut()[..self.shown];
        match &mut self.side {
            Side::Client(connection) => write(connection.process_tls_records(shown), content, sealed),
            Side::Server(connection) => write(connection.process_tls_records(shown), content, sealed),
        }
    }
}

/// The length of the record that `received` begins with, if all of it is there. Of what is no record to rustls, the head: it
/// is refused then, and nothing awaited.
fn next_record(received: &[u8]) -> Option<usize> {
    let head = received.first_chunk::<HEAD>()?;
    let length = usize::from(u16::from_be_bytes([head[3], head[4]]));
    if !KINDS.contains(&head[0]) || head[1] != 3 || length > MAX_LENGTH {
        return Some(HEAD);
    }
    (HEAD + length <= received.len()).then_some(HEAD + length)
}

/// Does what rustls asks for. Returns what it discards of the received bytes, too.
fn take<Data>(
    UnbufferedStatus { discard, state, .. }: UnbufferedStatus<'_, '_, Data>,
    sealed: &mut Buffer,
    plain: &mut Vec<u8>,
) -> (usize, Result<Step, Error>) {
    let step = || match state? {
        ConnectionState::ReadTraffic(mut traffic) => {
            while let Some(record) = traffic.next_record() {
                plain.extend_from_slice(record?.payload);
            }
            Ok(Step::Again)
        }
        ConnectionState::EncodeTlsData(mut data) => {
            let room = match data.encode(&mut []) {
                Err(EncodeError::InsufficientSize(error)) => error.required_size,
                _ => 0,
            };
            sealed.append(room, |out| data.encode(out)).map_err(|error| Error::General(error.to_string()))?;
            Ok(Step::Again)
        }
        // Whoever owns the buffer sends it, in order, before anything else.
        ConnectionState::TransmitTlsData(data) => {
            data.done();
            Ok(Step::Again)
        }
        ConnectionState::BlockedHandshake => Ok(Step::NeedsMore),
        ConnectionState::WriteTraffic(_) => Ok(Step::Done),
        ConnectionState::PeerClosed | ConnectionState::Closed => Ok(Step::End),
        _ => Err(Error::General("data before the handshake, which nobody allowed".into())),
    };
    (discard, step())
}

/// Seals `content` as one record, or the goodbye if there is none.
fn write<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    content: Option<&[u8]>,
    sealed: &mut Buffer,
) -> Result<(), Error> {
    let ConnectionState::WriteTraffic(mut traffic) = status.state? else {
        return Err(Error::HandshakeNotComplete);
    };
    let room = content.map_or(0, <[u8]>::len) + MAX_OVERHEAD;
    sealed
        .append(room, |out| match content {
            Some(content) => traffic.encrypt(content, out),
            None => traffic.queue_close_notify(out),
        })
        .map_err(|error| Error::General(error.to_string()))
}
