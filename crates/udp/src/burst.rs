use std::cell::Cell;
use std::io;
use std::mem;

use bytes::BytesMut;
use tokio::net::UdpSocket;

use crate::Way;

/// The datagrams of a full burst. One of more than 64 KiB is full as well.
pub const MAX_DATAGRAMS: usize = 64;

/// The bytes of a full burst; the datagram that fills it may be of any length.
const FULL: usize = 64 * 1024;

thread_local! {
    static SPARE: Cell<Row> = Cell::default();
}

/// Datagrams for one destination, gathered to leave together.
///
/// Its memory, 256 KiB at most, is this thread's and given back on drop: who has nothing to send holds none. Taken
/// twice at once, the second is new, and one of the two goes away afterwards.
#[derive(Debug)]
pub struct Burst(Row);

/// Datagrams one behind the other, and perhaps an unfinished one.
#[derive(Debug, Default)]
struct Row {
    bytes: BytesMut,
    lengths: Vec<usize>,
    /// The bytes of all of them but the unfinished one.
    whole: usize,
}

/// What became of a burst.
#[derive(Debug, Default)]
pub struct Sent {
    /// The datagrams that left,
    pub datagrams: usize,
    /// and their bytes.
    pub bytes: usize,
    /// Why the last one of those that did not leave was dropped. No other is dropped for it, unless the socket takes nothing
    /// more: then all that were left are.
    pub error: Option<io::Error>,
}

impl Burst {
    /// An empty one, in this thread's memory.
    #[must_use]
    pub fn take() -> Self {
        Self(SPARE.take())
    }

    /// Where the next datagram is to be appended. It counts once it is [committed](Self::commit); what was begun and was
    /// not is forgotten.
    pub fn begin(&mut self) -> &mut BytesMut {
        self.0.bytes.truncate(self.0.whole);
        &mut self.0.bytes
    }

    /// The datagram that was appended is whole.
    pub fn commit(&mut self) {
        let Row { bytes, lengths, whole } = &mut self.0;
        lengths.push(bytes.len() - *whole);
        *whole = bytes.len();
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.lengths.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.lengths.is_empty()
    }

    /// Whether it should be sent before it grows more.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.len() >= MAX_DATAGRAMS || self.0.whole >= FULL
    }

    /// Sends as many as `socket` takes without waiting, from the first on. The others are dropped; all of them on a socket
    /// that was never [writable](UdpSocket::writable) yet, for the runtime does not try.
    pub fn try_send(self, socket: &UdpSocket, way: &Way) -> Sent {
        let mut sent = Sent::default();
        let mut rest = Rest { bytes: &self.0.bytes[..self.0.whole], lengths: &self.0.lengths };
        if let Err(error) = rest.send(socket, way, &mut sent) {
            sent.error = Some(error);
        }
        sent
    }

    /// Sends all of them, and waits where `socket` has no room. One that cannot be sent is dropped alone.
    ///
    /// # Cancel safety
    ///
    /// Those that have not left when the future is dropped are dropped with it.
    pub async fn send(self, socket: &UdpSocket, way: &Way) -> Sent {
        let mut sent = Sent::default();
        let mut rest = Rest { bytes: &self.0.bytes[..self.0.whole], lengths: &self.0.lengths };
        while rest.send(socket, way, &mut sent).is_err() {
            if let Err(error) = socket.writable().await {
                sent.error = Some(error);
                break;
            }
        }
        sent
    }
}

impl Drop for Burst {
    fn drop(&mut self) {
        let Row { mut bytes, mut lengths, .. } = mem::take(&mut self.0);
        bytes.clear();
        lengths.clear();
        SPARE.set(Row { bytes, lengths, whole: 0 });
    }
}

// === Sending ===

/// The datagrams that are still to be sent.
#[derive(Debug)]
struct Rest<'a> {
    bytes: &'a [u8],
    lengths: &'a [usize],
}

impl Rest<'_> {
    /// Sends what there is room for, and counts it.
    ///
    /// # Errors
    ///
    /// [`WouldBlock`](io::ErrorKind::WouldBlock), if something is left.
    fn send(&mut self, socket: &UdpSocket, way: &Way, sent: &mut Sent) -> io::Result<()> {
        while !self.lengths.is_empty() {
            let count = if way.takes_rows() { row(self.lengths) } else { 1 };
            let (size, bytes) = (self.lengths[0], self.lengths[..count].iter().sum());
            match way.send(socket, &self.bytes[..bytes], size) {
                Ok(()) => {
                    sent.datagrams += count;
                    sent.bytes += bytes;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(error),
                // Refused as a row: the same again, one by one.
                Err(_) if count > 1 => continue,
                Err(error) => sent.error = Some(error),
            }
            self.bytes = &self.bytes[bytes..];
            self.lengths = &self.lengths[count..];
        }
        Ok(())
    }
}

/// What the kernel takes as one: so many datagrams of one length, the last of which may be shorter but not empty.
const MAX_ROW: usize = 64;
/// The bytes of a row: it is one packet until it is cut, and so no longer than the longest in IPv4 without its headers.
const MAX_ROW_BYTES: usize = 65_507;
/// Longer datagrams go alone: an Ethernet frame does not hold them with the headers of IPv6, and what needs fragments
/// is not cut.
const MAX_IN_ROW: usize = 1_500 - 48;

/// How many of these datagrams, one at least, leave in one call.
fn row(lengths: &[usize]) -> usize {
    let size = lengths[0];
    if !(1..=MAX_IN_ROW).contains(&size) {
        return 1;
    }
    let most = MAX_ROW.min(MAX_ROW_BYTES / size).min(lengths.len());
    let equal = lengths[..most].iter().take_while(|length| **length == size).count();
    let shorter = equal < most && (1..size).contains(&lengths[equal]);
    equal + usize::from(shorter)
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::Duration;

    use proptest::prelude::*;
    use tokio::time::timeout;

    use super::*;

    fn burst<'a>(datagrams: impl IntoIterator<Item = &'a [u8]>) -> Burst {
        let mut burst = Burst::take();
        for datagram in datagrams {
            burst.begin().extend_from_slice(datagram);
            burst.commit();
        }
        burst
    }

    async fn pair() -> (UdpSocket, UdpSocket, Way) {
        let receiver = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let way = Way::to(receiver.local_addr().unwrap());
        (sender, receiver, way)
    }

    async fn received(socket: &UdpSocket, count: usize) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        let mut buf = vec![0; 65_536];
        while all.len() < count {
            let received = timeout(Duration::from_secs(10), socket.recv(&mut buf)).await;
            all.push(buf[..received.expect("another datagram").unwrap()].to_vec());
        }
        all
    }

    #[tokio::test]
    async fn datagrams_arrive_whole_and_apart_and_in_order_whatever_their_lengths() {
        let (sender, receiver, way) = pair().await;
        let lengths = [3, 3, 3, 2, 3, 0, 0, 1, 1452, 1452, 1453, 1453, 9_000, 1, 1];
        let datagrams: Vec<_> = lengths.iter().enumerate().map(|(n, len)| vec![n as u8; *len]).collect();
        let sent = burst(datagrams.iter().map(|datagram| &datagram[..])).send(&sender, &way).await;
        assert_eq!((sent.datagrams, sent.bytes), (lengths.len(), lengths.iter().sum()));
        assert!(sent.error.is_none());
        assert_eq!(received(&receiver, lengths.len()).await, datagrams);
        assert_eq!(way.takes_rows(), cfg!(target_os = "linux"), "they left as rows");
    }

    #[tokio::test]
    async fn one_that_cannot_be_sent_is_dropped_alone() {
        let (sender, receiver, way) = pair().await;
        sender.writable().await.unwrap();
        let long = vec![0; 65_535];
        let sent = burst([&b"before"[..], &long, b"behind"]).try_send(&sender, &way);
        assert_eq!((sent.datagrams, sent.bytes), (2, 12));
        assert!(sent.error.is_some());
        assert_eq!(received(&receiver, 2).await, [b"before", b"behind"]);
    }

    /// Refused for a reason that has nothing to do with rows: what is left of the rule is that it comes to an end.
    #[tokio::test]
    async fn a_row_that_is_refused_is_tried_one_by_one_and_no_row_after_it() {
        let (sender, _receiver, _) = pair().await;
        let elsewhere: SocketAddr = "[::1]:9".parse().unwrap();
        let way = Way::to(elsewhere);
        let sent = burst([&b"one"[..], b"two", b"six"]).send(&sender, &way).await;
        assert_eq!((sent.datagrams, sent.bytes), (0, 0));
        assert!(sent.error.is_some());
        assert!(!way.takes_rows());
    }

    #[test]
    fn what_was_begun_and_not_committed_is_forgotten() {
        let mut burst = burst([&b"whole"[..]]);
        burst.begin().extend_from_slice(b"half");
        burst.begin().extend_from_slice(b"other");
        burst.commit();
        assert_eq!((burst.len(), &burst.0.bytes[..]), (2, &b"wholeother"[..]));
        drop(burst);
        assert!(Burst::take().begin().is_empty(), "nothing is left for the next to take it");
    }

    #[test]
    fn a_burst_is_full_at_64_datagrams_or_64_kib() {
        assert!(!burst(vec![&b"x"[..]; MAX_DATAGRAMS - 1]).is_full());
        assert!(burst(vec![&b"x"[..]; MAX_DATAGRAMS]).is_full());
        assert!(!burst([&[0; FULL - 1][..]]).is_full());
        assert!(burst([&[0; FULL - 1][..], b"x"]).is_full());
    }

    #[test]
    fn a_row_is_of_one_length_but_for_the_last_and_within_what_the_kernel_takes() {
        assert_eq!(row(&[5]), 1);
        assert_eq!(row(&[5, 5, 5]), 3);
        assert_eq!(row(&[5, 5, 4, 5]), 3, "a shorter one ends it");
        assert_eq!(row(&[5, 5, 6]), 2, "a longer one does not join");
        assert_eq!(row(&[5, 5, 0]), 2, "an empty one goes alone,");
        assert_eq!(row(&[0, 0]), 1, "wherever it stands");
        assert_eq!(row(&[5; MAX_ROW + 1]), MAX_ROW);
        assert_eq!(row(&[MAX_IN_ROW; 64]), MAX_ROW_BYTES / MAX_IN_ROW);
        assert_eq!(row(&[MAX_IN_ROW + 1; 2]), 1);
    }

    proptest! {
        #[test]
        fn every_row_is_one_the_kernel_takes(lengths in prop::collection::vec(0..2_000_usize, 1..80)) {
            let mut rest = &lengths[..];
            while let [size, ..] = *rest {
                let (these, others) = rest.split_at(row(rest));
                let last = these.len() - 1;
                prop_assert!(these[..last].iter().all(|length| *length == size));
                prop_assert!(last == 0 || (1..=size).contains(&these[last]));
                prop_assert!(last == 0 || (these.len() <= 64 && these.iter().sum::<usize>() <= 65_507));
                rest = others;
            }
        }
    }
}
