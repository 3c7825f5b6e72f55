use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasher, Hasher, RandomState},
};

use anyproxy_frame::{MAX_PAYLOAD, MAX_WINDOW, MIN_WINDOW, StreamFrame, StreamId};
use bytes::Bytes;

use crate::{chunks::Chunks, schedule::Place};

/// Credit below this is waited upon when there is more to send, or a peer that grants single bytes would be sent
/// single bytes (the silly window of RFC 9293 section 3.8.6.2). The receiver's half of the bargain is
/// [`MIN_WINDOW`].
pub(crate) const WORTHWHILE: u32 = MIN_WINDOW / 4;

/// One direction of a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Half {
    #[default]
    Open,
    /// The owner has finished, and what waits goes first.
    Finishing,
    Over,
}

/// What waits to be sent.
#[derive(Debug)]
#[expect(
    clippy::box_collection,
    reason = "three words instead of one would be paid for by every stream of bytes"
)]
pub(crate) enum Unsent {
    Bytes(Chunks),
    /// Datagrams keep their limits.
    Datagrams(Box<VecDeque<Bytes>>),
}

/// A stream of the tunnel. An idle one owns no memory beside this.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) unsent: Unsent,
    /// Bytes that may be sent.
    pub(crate) credit: u32,
    /// Bytes that the peer may still send.
    pub(crate) granted: u32,
    /// Bytes that came and were not read yet.
    pub(crate) held: u32,
    /// What `granted` and `held` are brought up to together.
    pub(crate) window: u32,
    /// The count of [`Bandwidth`](crate::bandwidth::Bandwidth) that it was met in last.
    pub(crate) counted: u32,
    /// How often half a window was read, the start counted as one, since nothing was held.
    pub(crate) behind: u8,
    /// Bytes it may send in this turn.
    pub(crate) deficit: i32,
    pub(crate) place: Place,
    pub(crate) sending: Half,
    pub(crate) receiving: Half,
    /// The open has no answer yet.
    pub(crate) unanswered: bool,
    /// At a gateway, the open was sent; at a client, its owner has seen it.
    pub(crate) known: bool,
    /// It stands in the list of those that get credit.
    pub(crate) credit_due: bool,
}

impl Stream {
    /// A stream whose open has no answer yet.
    pub(crate) fn new(datagrams: bool) -> Self {
        let unsent = if datagrams { Unsent::Datagrams(Box::default()) } else { Unsent::Bytes(Chunks::new()) };
        Self {
            unsent,
            credit: 0,
            granted: 0,
            held: 0,
            window: 0,
            counted: 0,
            behind: 0,
            deficit: 0,
            place: Place::None,
            sending: Half::Open,
            receiving: Half::Open,
            unanswered: true,
            known: false,
            credit_due: false,
        }
    }

    pub(crate) fn is_datagrams(&self) -> bool {
        matches!(self.unsent, Unsent::Datagrams(_))
    }

    /// Whether both directions are over. It may still hold bytes for its reader.
    pub(crate) fn is_over(&self) -> bool {
        self.sending == Half::Over && self.receiving == Half::Over
    }

    /// Gives the peer a start window.
    pub(crate) fn grant(&mut self, window: u32) {
        self.window = window;
        self.granted = window;
        self.behind = 1;
    }

    /// Bytes waiting to be sent.
    pub(crate) fn unsent_len(&self) -> usize {
        match &self.unsent {
            Unsent::Bytes(chunks) => chunks.len(),
            Unsent::Datagrams(queue) => queue.iter().map(Bytes::len).sum(),
        }
    }

    /// Whether there is a frame to send now.
    pub(crate) fn is_ready(&self) -> bool {
        if self.unanswered || self.sending == Half::Over {
            return false;
        }
        match &self.unsent {
            Unsent::Bytes(chunks) if !chunks.is_empty() => {
                self.credit > 0 && (self.credit >= WORTHWHILE || self.credit as usize >= chunks.len())
            }
            Unsent::Datagrams(queue) if !queue.is_empty() => true,
            _ => self.sending == Half::Finishing,
        }
    }

    /// The next frame, of at most `max` bytes if it is cut from a connection's.
    pub(crate) fn pop(&mut self, max: usize) -> Option<StreamFrame> {
        if !self.is_ready() {
            return None;
        }
        match &mut self.unsent {
            Unsent::Bytes(chunks) if !chunks.is_empty() => {
                let data = chunks.pop(max.min(self.credit as usize).min(MAX_PAYLOAD));
                self.credit -= data.len() as u32;
                if self.credit < WORTHWHILE {
                    chunks.settle();
                }
                Some(StreamFrame::Data(data))
            }
            Unsent::Datagrams(queue) if !queue.is_empty() => {
                let datagram = queue.pop_front();
                if queue.is_empty() {
                    **queue = VecDeque::new();
                }
                datagram.map(StreamFrame::Datagram)
            }
            _ => {
                self.sending = Half::Over;
                Some(StreamFrame::Fin)
            }
        }
    }

    /// Adds credit; `false` if that is more than a stream can have.
    pub(crate) fn add_credit(&mut self, increment: u32) -> bool {
        match self.credit.checked_add(increment).filter(|credit| *credit <= MAX_WINDOW) {
            Some(credit) => self.credit = credit,
            None => return false,
        }
        true
    }

    /// How far credit and held bytes lie below `target`, if that is worth a frame.
    pub(crate) fn shortfall(&self, target: u32, worth: u32) -> Option<u32> {
        let shortfall = target.checked_sub(self.committed())?;
        (self.receiving == Half::Open && shortfall > 0 && shortfall >= worth).then_some(shortfall)
    }

    /// By how much the window exceeds the start window.
    pub(crate) fn grown(&self, start: u32) -> u64 {
        self.window.saturating_sub(start).into()
    }

    /// What the peer may still send, and what it has sent and nobody has read.
    pub(crate) fn committed(&self) -> u32 {
        self.granted.saturating_add(self.held)
    }

    /// Ends both directions. Returns how many unsent bytes were lost by it.
    pub(crate) fn end(&mut self) -> usize {
        let lost = self.unsent_len();
        self.unsent = match self.unsent {
            Unsent::Bytes(_) => Unsent::Bytes(Chunks::new()),
            Unsent::Datagrams(_) => Unsent::Datagrams(Box::default()),
        };
        self.sending = Half::Over;
        self.receiving = Half::Over;
        lost
    }
}

// === impl Streams ===

/// The streams of a tunnel by number.
///
/// A table of hashes is between half and seven eighths full, so there stands only where a stream lies; the streams
/// themselves lie side by side, in no order.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    places: HashMap<StreamId, u32, Spread>,
    streams: Vec<(StreamId, Stream)>,
}

impl Streams {
    pub(crate) fn len(&self) -> usize {
        self.streams.len()
    }

    pub(crate) fn get_mut(&mut self, id: StreamId) -> Option<&mut Stream> {
        let place = *self.places.get(&id)?;
        Some(&mut self.streams[place as usize].1)
    }

    pub(crate) fn get(&self, id: StreamId) -> Option<&Stream> {
        let place = *self.places.get(&id)?;
        Some(&self.streams[place as usize].1)
    }

    pub(crate) fn insert(&mut self, id: StreamId, stream: Stream) {
        let place = self.streams.len() as u32;
        let known = self.places.insert(id, place);
        debug_assert!(known.is_none(), "a number is used once");
        self.streams.push((id, stream));
    }

    pub(crate) fn remove(&mut self, id: StreamId) -> Option<Stream> {
        let place = self.places.remove(&id)?;
        let (_, stream) = self.streams.swap_remove(place as usize);
        // The last one lies there now.
        if let Some((moved, _)) = self.streams.get(place as usize) {
            self.places.insert(*moved, place);
        }
        // A crowd long gone costs nothing. The factor keeps a table that breathes from being built anew all the time.
        let len = self.len();
        let is_sparse = |room| room > 1024 && len * 8 < room;
        if is_sparse(self.places.capacity()) {
            self.places.shrink_to(len * 2);
        }
        if is_sparse(self.streams.capacity()) {
            self.streams.shrink_to(len * 2);
        }
        Some(stream)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (StreamId, &Stream)> {
        self.streams.iter().map(|(id, stream)| (*id, stream))
    }
}

/// Spreads numbers by one multiplication with a secret: a hostile gateway may leave gaps between its numbers, and must
/// not be able to choose them so that they meet in one place of the table.
#[derive(Clone, Debug)]
struct Spread(u64);

impl Default for Spread {
    fn default() -> Self {
        Self(RandomState::new().hash_one(0))
    }
}

impl BuildHasher for Spread {
    type Hasher = NumberHasher;

    fn build_hasher(&self) -> NumberHasher {
        NumberHasher(self.0)
    }
}

struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(number.into());
    }

    fn write_u64(&mut self, number: u64) {
        let wide = u128::from(self.0 ^ number) * 0x9e37_79b9_7f4a_7c15;
        self.0 = wide as u64 ^ (wide >> 64) as u64;
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u64(byte.into()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i6_idle_stream_is_small() {
        let entry = size_of::<(StreamId, Stream)>();
        assert!(entry <= 64, "{entry} bytes");
    }

    #[test]
    fn a_stream_is_found_by_its_number_whoever_left() {
        let mut streams = Streams::default();
        let number = |id| StreamId::new(id).unwrap();
        for id in 1..=100 {
            let mut stream = Stream::new(false);
            stream.credit = id;
            streams.insert(number(id), stream);
        }
        for id in (1..=100).filter(|id| id % 3 == 0) {
            assert_eq!(streams.remove(number(id)).unwrap().credit, id);
            assert!(streams.remove(number(id)).is_none());
        }
        for id in 1..=100 {
            let credit = streams.get_mut(number(id)).map(|stream| stream.credit);
            assert_eq!(credit, (id % 3 != 0).then_some(id));
        }
        assert_eq!(streams.len(), 67);
        assert!(streams.iter().all(|(id, stream)| id.get() == stream.credit));
    }

    #[test]
    fn i9_table_of_a_crowd_long_gone_is_small() {
        let mut streams = Streams::default();
        let numbers = || (1..=200_000).filter_map(StreamId::new);
        numbers().for_each(|id| streams.insert(id, Stream::new(false)));
        numbers().for_each(|id| assert!(streams.remove(id).is_some()));
        let room = streams.places.capacity().max(streams.streams.capacity());
        assert!(room <= 1024, "room for {room}");
    }

    #[test]
    fn numbers_chosen_apart_do_not_meet_in_the_table() {
        let spread = Spread::default();
        let mut places: Vec<_> = (1..=1024).map(|number: u32| spread.hash_one(number << 20) & 1023).collect();
        places.sort_unstable();
        places.dedup();
        assert!(places.len() > 400, "1,024 numbers in {} places", places.len());
    }
}
