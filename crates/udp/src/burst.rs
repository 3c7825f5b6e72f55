use std::cell::Cell;
use std::io;
use std::mem;

use bytes::BytesMut;
use tokio::net::UdpSocket;

use crate::Peer;

/// The datagrams of a full burst. One of more than 64 KiB is full as well.
pub const MAX_DATAGRAMS: usize = 64;

/// The bytes of a full burst; the datagram that fills it may be of any length.
const FULL: usize = 64 * 1024;

thread_local! {
    static SPARE: Cell<Datagrams> = Cell::default();
}

/// Datagrams for one destination, gathered to leave together.
///
/// Its memory, 256 KiB at most, is this thread's and given back on drop: who has nothing to send holds none. Taken
/// twice at once, the second is new, and one of the two goes away afterwards.
#[derive(Debug)]
pub struct Burst(Datagrams);

/// Datagrams one behind the other, and perhaps an unfinished one.
#[derive(Debug, Default)]
struct Datagrams {
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

    /// Where the next datagram is to be appended, behind what is there. It counts once it is [committed](Self::commit);
    /// what was begun and was not is forgotten.
    pub fn begin(&mut self) -> &mut BytesMut {
        self.0.bytes.truncate(self.0.whole);
        &mut self.0.bytes
    }

    /// The datagram that was appended is whole.
    ///
    /// # Panics
    ///
    /// If something was taken away instead.
    pub fn commit(&mut self) {
        let Datagrams { bytes, lengths, whole } = &mut self.0;
        lengths.push(bytes.len().checked_sub(*whole).expect("datagrams are appended"));
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
    pub fn try_send(self, socket: &UdpSocket, to: &Peer) -> Sent {
        let mut sent = Sent::default();
        let mut rest = Rest::of(&self.0);
        if let Err(error) = rest.send(socket, to, &mut sent) {
            sent.error = Some(error);
        }
        sent
    }

    /// Sends all of them, and waits where `socket` has no room. One that cannot be sent is dropped alone.
    ///
    /// # Cancel safety
    ///
    /// Those that have not left when the future is dropped are dropped with it.
    pub async fn send(self, socket: &UdpSocket, to: &Peer) -> Sent {
        let mut sent = Sent::default();
        let mut rest = Rest::of(&self.0);
        while rest.send(socket, to, &mut sent).is_err() {
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
        let Datagrams { mut bytes, mut lengths, .. } = mem::take(&mut self.0);
        bytes.clear();
        lengths.clear();
        SPARE.set(Datagrams { bytes, lengths, whole: 0 });
    }
}

// === Sending ===

/// The datagrams that are still to be sent.
#[derive(Debug)]
struct Rest<'a> {
    bytes: &'a [u8],
    lengths: &'a [usize],
    /// So many of them are sent one by one, since they were refused together.
    alone: usize,
}

impl<'a> Rest<'a> {
    fn of(datagrams: &'a Datagrams) -> Self {
        Self { bytes: &datagrams.bytes[..datagrams.whole], lengths: &datagrams.lengths, alone: 0 }
    }

    /// Sends what there is room for, and counts it.
    ///
    /// # Errors
    ///
    /// [`WouldBlock`](io::ErrorKind::WouldBlock), if something is left.
    fn send(&mut self, socket: &UdpSocket, to: &Peer, sent: &mut Sent) -> io::Result<()> {
        while !self.lengths.is_empty() {
            let together = self.alone == 0 && to.takes_segments();
            let count = if together { segments(self.lengths) } else { 1 };
            let (size, bytes) = (self.lengths[0], self.lengths[..count].iter().sum());
            match to.send(socket, &self.bytes[..bytes], size) {
                Ok(()) => {
                    sent.datagrams += count;
                    sent.bytes += bytes;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(error),
                // The same again, so that only those go missing that would have alone.
                Err(_) if count > 1 => {
                    self.alone = count;
                    continue;
                }
                Err(error) => sent.error = Some(error),
            }
            self.bytes = &self.bytes[bytes..];
            self.lengths = &self.lengths[count..];
            self.alone = self.alone.saturating_sub(count);
        }
        Ok(())
    }
}

/// What the kernel takes as one: so many datagrams of one length, the last of which may be shorter but not empty.
const MAX_SEGMENTS: usize = 64;
/// Their bytes: they are one packet until it is cut, and so no longer than the longest in IPv4 without its headers.
const MAX_SEGMENTED: usize = 65_507;
/// Longer datagrams go alone: an Ethernet frame does not hold them with the headers of IPv6, and what needs fragments
/// is not cut.
const MAX_SEGMENT: usize = 1_500 - 48;

/// How many of these datagrams, one at least, leave in one call.
fn segments(lengths: &[usize]) -> usize {
    let size = lengths[0];
    if !(1..=MAX_SEGMENT).contains(&size) {
        return 1;
    }
    let most = MAX_SEGMENTS.min(MAX_SEGMENTED / size).min(lengths.len());
    let equal = lengths[..most].iter().take_while(|length| **length == size).count();
    let shorter = equal < most && (1..size).contains(&lengths[equal]);
    equal + usize::from(shorter)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
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

    async fn pair() -> (UdpSocket, UdpSocket, Peer) {
        let receiver = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let to = Peer::new(receiver.local_addr().unwrap());
        (sender, receiver, to)
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
        let (sender, receiver, to) = pair().await;
        let lengths = [3, 3, 3, 2, 3, 0, 0, 1, 1452, 1452, 1453, 1453, 9_000, 1, 1];
        let datagrams: Vec<_> = lengths.iter().enumerate().map(|(n, len)| vec![n as u8; *len]).collect();
        let sent = burst(datagrams.iter().map(|datagram| &datagram[..])).send(&sender, &to).await;
        assert_eq!((sent.datagrams, sent.bytes), (lengths.len(), lengths.iter().sum()));
        assert!(sent.error.is_none());
        assert_eq!(received(&receiver, lengths.len()).await, datagrams);
        assert_eq!(to.takes_segments(), cfg!(target_os = "linux"), "they left together");
    }

    #[tokio::test]
    async fn one_that_cannot_be_sent_is_dropped_alone() {
        let (sender, receiver, to) = pair().await;
        sender.writable().await.unwrap();
        let long = vec![0; 65_535];
        let sent = burst([&b"before"[..], &long, b"behind"]).try_send(&sender, &to);
        assert_eq!((sent.datagrams, sent.bytes), (2, 12));
        assert!(sent.error.is_some());
        assert_eq!(received(&receiver, 2).await, [b"before", b"behind"]);
    }

    #[tokio::test]
    async fn what_fails_for_another_reason_than_segmentation_leaves_it_on() {
        let (sender, _receiver, _) = pair().await;
        // No socket may send there without having asked to.
        let to = Peer::new((Ipv4Addr::BROADCAST, 9).into());
        let sent = burst([&b"one"[..], b"two", b"six"]).send(&sender, &to).await;
        assert_eq!((sent.datagrams, sent.bytes), (0, 0));
        assert_eq!(sent.error.unwrap().kind(), io::ErrorKind::PermissionDenied);
        assert_eq!(to.takes_segments(), cfg!(target_os = "linux"));
    }

    /// A loopback of this test's own, with packets of at most 1,000 bytes.
    #[cfg(target_os = "linux")]
    #[test]
    fn what_does_not_pass_as_segments_passes_one_by_one() {
        use std::env::current_exe;
        use std::process::Command;

        let unshare = || {
            let mut command = Command::new("unshare");
            command.args(["--map-root-user", "--net"]);
            command
        };
        if !unshare().arg("true").status().is_ok_and(|status| status.success()) {
            println!("no network namespace can be made here");
            return;
        }
        let mut command = unshare();
        command.args(["sh", "-c", "ip link set lo mtu 1000 up && exec \"$0\" \"$@\""]);
        command.arg(current_exe().unwrap()).args([
            "--ignored",
            "--exact",
            "burst::tests::behind_a_short_link",
        ]);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"), "{output:?}");
    }

    #[tokio::test]
    #[ignore = "the test above runs it where it is meant to run"]
    async fn behind_a_short_link() {
        let (sender, receiver, to) = pair().await;
        let datagrams: Vec<_> = (0..4).map(|number| vec![number; 1_400]).collect();
        for round in 0..2 {
            let sent = burst(datagrams.iter().map(|datagram| &datagram[..])).send(&sender, &to).await;
            assert_eq!((sent.datagrams, sent.bytes), (4, 5_600), "{round}: {sent:?}");
            assert!(sent.error.is_none(), "{round}: {sent:?}");
            assert_eq!(received(&receiver, 4).await, datagrams);
            assert!(!to.takes_segments(), "refused once, and not tried again");
        }
    }

    #[test]
    #[should_panic = "datagrams are appended"]
    fn taking_away_instead_of_appending_is_a_mistake() {
        let mut burst = burst([&b"whole"[..]]);
        burst.begin().clear();
        burst.commit();
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
    fn segments_are_of_one_length_but_for_the_last_and_within_what_the_kernel_takes() {
        assert_eq!(segments(&[5]), 1);
        assert_eq!(segments(&[5, 5, 5]), 3);
        assert_eq!(segments(&[5, 5, 4, 5]), 3, "a shorter one ends it");
        assert_eq!(segments(&[5, 5, 6]), 2, "a longer one does not join");
        assert_eq!(segments(&[5, 5, 0]), 2, "an empty one goes alone,");
        assert_eq!(segments(&[0, 0]), 1, "wherever it stands");
        assert_eq!(segments(&[5; MAX_SEGMENTS + 1]), MAX_SEGMENTS);
        assert_eq!(segments(&[MAX_SEGMENT; 64]), MAX_SEGMENTED / MAX_SEGMENT);
        assert_eq!(segments(&[MAX_SEGMENT + 1; 2]), 1);
    }

    proptest! {
        #[test]
        fn whatever_comes_is_cut_into_what_the_kernel_takes(lengths in prop::collection::vec(0..2_000_usize, 1..80)) {
            let mut rest = &lengths[..];
            while let [size, ..] = *rest {
                let (these, others) = rest.split_at(segments(rest));
                let last = these.len() - 1;
                prop_assert!(these[..last].iter().all(|length| *length == size));
                prop_assert!(last == 0 || (1..=size).contains(&these[last]));
                prop_assert!(last == 0 || (these.len() <= 64 && these.iter().sum::<usize>() <= 65_507));
                rest = others;
            }
        }
    }
}
