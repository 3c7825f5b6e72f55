//! Whose bytes are next.

use anyproxy_frame::{Frame, HEADER_LEN, MAX_PAYLOAD, StreamFrame, StreamId};

use super::Mux;
use crate::{Event, Side, schedule::Place};

impl<S: Side> Mux<S> {
    /// Puts a stream in line if it can send and does not stand there already.
    pub(super) fn schedule(&mut self, id: StreamId, place: Place) {
        let Some(stream) = self.streams.get_mut(id) else { return };
        if stream.place == Place::None && stream.is_ready() {
            stream.place = place;
            stream.deficit = self.config.quantum as i32;
            self.schedule.push(id, place);
        }
    }

    pub(super) fn poll_stream(&mut self) -> Option<S::Out> {
        let quantum = self.config.quantum;
        loop {
            let (id, place) = self.schedule.first()?;
            let alone = self.schedule.is_alone();
            let Some(stream) = self.streams.get_mut(id) else {
                self.schedule.pop();
                continue;
            };
            if stream.deficit <= 0 && !alone {
                stream.deficit += quantum as i32;
                self.take_turns(id);
                continue;
            }
            let datagrams = stream.is_datagrams();
            let Some(frame) = stream.pop(if alone { MAX_PAYLOAD } else { quantum as usize }) else {
                self.run_dry(id, place);
                continue;
            };
            match &frame {
                StreamFrame::Data(data) | StreamFrame::Datagram(data) => {
                    let bytes = data.len();
                    // A whole frame sent alone is not held against the stream once there are others.
                    let cost = (bytes + HEADER_LEN) as i32;
                    stream.deficit = (stream.deficit - cost).max(-(quantum as i32));
                    self.unsent -= bytes as u64;
                    if datagrams {
                        self.unsent_datagrams -= bytes as u64;
                    }
                    self.events.push_back(Event::Sent { id, bytes });
                }
                _ => self.close_if_over(id),
            }
            return Some(S::Out::stream(id, frame));
        }
    }

    /// The first in line has had its quantum and goes behind the busy ones.
    fn take_turns(&mut self, id: StreamId) {
        self.schedule.pop();
        self.schedule.push(id, Place::Busy);
        if let Some(stream) = self.streams.get_mut(id) {
            stream.place = Place::Busy;
        }
    }

    /// The first in line has nothing to send now. It leaves, but for a fresh one among busy ones, which waits a turn.
    fn run_dry(&mut self, id: StreamId, place: Place) {
        if place == Place::Fresh && self.schedule.has_busy() {
            return self.take_turns(id);
        }
        self.schedule.pop();
        if let Some(stream) = self.streams.get_mut(id) {
            stream.place = Place::None;
        }
    }
}
