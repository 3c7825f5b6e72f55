//! What both ends do with a frame of the peer.

use std::time::Instant;

use anyproxy_frame::{MAX_MESSAGE, ResetCode, StreamFrame, StreamId};
use bytes::Bytes;

use super::Mux;
use crate::{Event, PeerError, Side, schedule::Place, stream::Half};

impl<S: Side> Mux<S> {
    pub(crate) fn handle_hello(&mut self, window: u32, hello: Box<S::PeerHello>) -> Result<(), PeerError> {
        if self.peer_window.replace(window).is_some() {
            return Err(PeerError::HelloRepeated);
        }
        self.events.push_back(Event::PeerHello(hello));
        Ok(())
    }

    /// The start window that the peer's hello announced.
    pub(crate) fn peer_window(&self) -> Result<u32, PeerError> {
        self.peer_window.ok_or(PeerError::HelloMissing)
    }

    pub(crate) fn handle_ping(&mut self, now: Instant, number: u64) -> Result<(), PeerError> {
        if !self.faults.pings.take(now) {
            return Err(PeerError::Pings);
        }
        self.liveness.handle_ping(number);
        Ok(())
    }

    pub(crate) fn handle_pong(&mut self, now: Instant, number: u64) -> Result<(), PeerError> {
        match self.liveness.handle_pong(now, number) {
            Some(rtt) => self.events.push_back(Event::Rtt(rtt)),
            None => self.ignore(now)?,
        }
        Ok(())
    }

    /// Counts a frame that means nothing.
    pub(crate) fn ignore(&mut self, now: Instant) -> Result<(), PeerError> {
        if self.faults.ignored.take(now) { Ok(()) } else { Err(PeerError::Ignored) }
    }

    pub(crate) fn handle_stream(
        &mut self,
        now: Instant,
        id: StreamId,
        frame: StreamFrame,
    ) -> Result<(), PeerError> {
        self.peer_window()?;
        if !self.side.was_opened(id) {
            return Err(PeerError::UnknownStream(id));
        }
        // A stream that is over may still be on the peer's mind. Its credit went with it, so there is nothing to give
        // back, and nothing to remember it by.
        let Some(stream) = self.streams.get_mut(id).filter(|stream| !stream.is_over()) else {
            return Ok(());
        };
        match frame {
            StreamFrame::Reset(_) if stream.unanswered => S::reset_unanswered(self, now, id),
            _ if stream.unanswered => Err(PeerError::Unanswered(id)),
            StreamFrame::Data(data) => self.handle_data(id, data),
            StreamFrame::Datagram(data) => self.handle_datagram(id, data),
            StreamFrame::Window(increment) => self.handle_window(id, increment),
            StreamFrame::Fin if stream.receiving == Half::Over => self.ignore(now),
            StreamFrame::Fin => {
                stream.receiving = Half::Over;
                self.events.push_back(Event::Fin { id });
                self.close_if_over(id);
                Ok(())
            }
            StreamFrame::Reset(code) => {
                self.events.push_back(Event::Reset { id, code });
                self.end(id);
                self.close_if_over(id);
                Ok(())
            }
        }
    }

    fn handle_data(&mut self, id: StreamId, data: Bytes) -> Result<(), PeerError> {
        let Some(stream) = self.streams.get_mut(id) else { return Ok(()) };
        if stream.is_datagrams() {
            return Err(PeerError::WrongNetwork(id));
        }
        if stream.receiving == Half::Over {
            return self.fault(id);
        }
        if data.is_empty() {
            self.faults.empty_data += 1;
            let limit = self.config.max_empty_data;
            return if self.faults.empty_data > limit { Err(PeerError::EmptyData(limit)) } else { Ok(()) };
        }
        let Some(granted) = u32::try_from(data.len()).ok().and_then(|len| stream.granted.checked_sub(len))
        else {
            return Err(PeerError::WindowExceeded { stream: id, credit: stream.granted, len: data.len() });
        };
        stream.granted = granted;
        stream.held += data.len() as u32;
        self.held += data.len() as u64;
        let data = if self.may_stay_a_slice(data.len()) { data } else { Bytes::copy_from_slice(&data) };
        self.events.push_back(Event::Data { id, data });
        let limit = self.held_limit();
        if self.held <= limit {
            self.unrelieved = 0;
        } else if self.held > self.unrelieved + limit / 8 {
            self.relieve();
        }
        Ok(())
    }

    fn handle_datagram(&mut self, id: StreamId, data: Bytes) -> Result<(), PeerError> {
        let Some(stream) = self.streams.get_mut(id) else { return Ok(()) };
        if !stream.is_datagrams() {
            return Err(PeerError::WrongNetwork(id));
        }
        if stream.receiving == Half::Over {
            return self.fault(id);
        }
        self.events.push_back(Event::Datagram { id, data });
        Ok(())
    }

    fn handle_window(&mut self, id: StreamId, increment: u32) -> Result<(), PeerError> {
        let Some(stream) = self.streams.get_mut(id) else { return Ok(()) };
        if stream.is_datagrams() {
            return Err(PeerError::WrongNetwork(id));
        }
        if increment == 0 {
            return Err(PeerError::WindowZero(id));
        }
        if !stream.add_credit(increment) {
            return Err(PeerError::WindowOverflow(id));
        }
        // A stream that waited for credit is a busy one, and does not come before the others.
        self.schedule(id, Place::Busy);
        Ok(())
    }

    /// Whether data that was just counted may stay a slice of its message, which it keeps alive whole: as long as all
    /// that is held, if it were such slices, would keep no more than `held_bytes`. A peer that packs its messages to cost
    /// as much as they can is copied after 2 MiB, full frames after 8, and no mixture keeps four times `held_bytes`.
    fn may_stay_a_slice(&self, len: usize) -> bool {
        self.held.saturating_mul(MAX_MESSAGE as u64) <= self.config.held_bytes.saturating_mul(len as u64)
    }

    /// The peer broke a rule of streams: this one ends, and the tunnel when it happens too often.
    fn fault(&mut self, id: StreamId) -> Result<(), PeerError> {
        self.faults.caused_resets += 1;
        let limit = self.config.max_caused_resets;
        if self.faults.caused_resets > limit {
            return Err(PeerError::CausedResets(limit));
        }
        self.abort(id, ResetCode::Protocol);
        Ok(())
    }

    pub(super) fn check_backlog(&self) -> Result<(), PeerError> {
        let limit = self.config.control_bytes;
        if self.control.bytes() > limit { Err(PeerError::ControlBacklog(limit)) } else { Ok(()) }
    }
}
