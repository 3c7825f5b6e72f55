//! A client's UDP port: a dial for each sender, and their datagrams both ways.

use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::Poll;
use std::time::Duration;

use anyproxy_core::{
    Association, BoxError, BoxStream, ByteStream, Datagrams, DialService as _, MAX_DATAGRAM,
};
use anyproxy_tunnel::{Memory, Share};
use bytes::{Bytes, BytesMut};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::Port;

/// The most senders a UDP port knows at once: of more, the one heard longest ago gives way. Each may be a name that a stranger
/// made up.
const MAX_SENDERS: usize = 1024;

/// The most dials of a UDP port under way at once: a tunnel takes 1,024 unanswered opens, and others dial on it too.
/// Datagrams of senders beyond are dropped.
const MAX_DIALS: usize = 256;

/// How long a sender of a UDP port is remembered after its last datagram (RFC 4787 REQ-5).
const UDP_IDLE: Duration = Duration::from_secs(120);

/// Datagrams that may wait for one sender's dial, their bytes, and the bytes of all that wait at one port; more are
/// dropped. A QUIC client sends its first flight of a few datagrams before it hears anything.
const MAX_WAITING: (usize, usize, usize) = (16, 64 * 1024, 4 * 1024 * 1024);

/// Datagrams of one sender on their way to its stream, whose task takes them at once; more are dropped.
const UDP_BACKLOG: usize = 64;

/// How long a refused sender is not dialled for again: one who keeps sending costs one dial a second.
const REFUSED_FOR: Duration = Duration::from_secs(1);

/// Serves a port until `stop`.
pub(super) async fn serve(port: Port, socket: UdpSocket, stop: CancellationToken) {
    let socket = Arc::new(socket);
    let mut senders = Senders::new(port, socket.clone());
    let mut buf = vec![0; MAX_DATAGRAM];
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(dialled) = senders.dials.join_next_with_id(), if !senders.dials.is_empty() => {
                senders.dialled(dialled);
            }
            Some(ended) = senders.flows.join_next(), if !senders.flows.is_empty() => senders.ended(ended),
            received = socket.recv_from(&mut buf) => match received {
                Ok((length, source)) => senders.handle(source, &buf[..length]),
                // An answer of ours that nobody wanted (ICMP), or no memory: the socket lives.
                Err(error) => {
                    debug!(port = senders.port.port, %error, "cannot receive");
                    sleep(Duration::from_millis(1)).await;
                }
            },
        }
    }
    senders.dials.shutdown().await;
    senders.flows.shutdown().await;
}

/// Who sends to a port.
struct Senders {
    port: Port,
    socket: Arc<UdpSocket>,
    known: HashMap<SocketAddr, Sender>,
    /// Those who were refused, until when; the longest ago first.
    refused: VecDeque<(Instant, SocketAddr)>,
    dials: JoinSet<Dialled>,
    flows: JoinSet<SocketAddr>,
    /// Bytes that wait for dials.
    waiting: usize,
}

/// What became of a sender's dial.
type Dialled = (SocketAddr, Result<BoxStream, BoxError>);

enum Sender {
    Dialling { dial: Id, waiting: Vec<Datagram>, bytes: usize },
    Open { queue: mpsc::Sender<Datagram>, heard: Instant },
    Refused,
}

impl Sender {
    /// Whether its stream has ended.
    fn is_over(&self) -> bool {
        matches!(self, Self::Open { queue, .. } if queue.is_closed())
    }
}

/// A datagram that counts as what the process holds for streams.
struct Datagram {
    payload: Bytes,
    _share: Share,
}

impl Datagram {
    /// `None` where memory is short.
    fn new(payload: &[u8], memory: &Memory) -> Option<Self> {
        if memory.is_short() {
            return None;
        }
        let mut share = memory.aside();
        share.set(payload.len() as u64);
        Some(Self { payload: Bytes::copy_from_slice(payload), _share: share })
    }
}

// === impl Senders ===

impl Senders {
    fn new(port: Port, socket: Arc<UdpSocket>) -> Self {
        Self {
            port,
            socket,
            known: HashMap::new(),
            refused: VecDeque::new(),
            dials: JoinSet::new(),
            flows: JoinSet::new(),
            waiting: 0,
        }
    }

    fn handle(&mut self, source: SocketAddr, payload: &[u8]) {
        while self.refused.front().is_some_and(|(until, _)| *until <= Instant::now()) {
            if let Some((_, source)) = self.refused.pop_front() {
                self.known.remove(&source);
            }
        }
        if matches!(self.known.get(&source), Some(Sender::Refused)) {
            return self.port.drops.add(Dropped::Refused, 1);
        }
        let Some(datagram) = Datagram::new(payload, &self.port.memory) else {
            return self.port.drops.add(Dropped::Full, 1);
        };
        let datagram = match self.known.get_mut(&source) {
            Some(Sender::Open { queue, heard }) => {
                *heard = Instant::now();
                match queue.try_send(datagram) {
                    Ok(()) => return,
                    Err(TrySendError::Full(_)) => return self.port.drops.add(Dropped::Full, 1),
                    // The stream is over. The next datagram dials anew, as this one does.
                    Err(TrySendError::Closed(datagram)) => datagram,
                }
            }
            Some(Sender::Dialling { waiting, bytes, .. }) => {
                let (of_one, bytes_of_one, bytes_of_all) = MAX_WAITING;
                let length = datagram.payload.len();
                if waiting.len() >= of_one
                    || *bytes + length > bytes_of_one
                    || self.waiting + length > bytes_of_all
                {
                    return self.port.drops.add(Dropped::Full, 1);
                }
                *bytes += length;
                self.waiting += length;
                return waiting.push(datagram);
            }
            Some(Sender::Refused) | None => datagram,
        };
        self.dial(source, datagram);
    }

    /// Dials for a sender; its datagram waits for it.
    fn dial(&mut self, source: SocketAddr, datagram: Datagram) {
        let length = datagram.payload.len();
        if self.dials.len() >= MAX_DIALS || self.waiting + length > MAX_WAITING.2 {
            return self.port.drops.add(Dropped::Full, 1);
        }
        self.make_room();
        let Some(dial) = self.port.dial(source, Some(Association::new())) else { return };
        let dials = self.port.dials.clone();
        let dial = self.dials.spawn(async move { (source, dials.dial(dial).await) }).id();
        self.waiting += length;
        self.known.insert(source, Sender::Dialling { dial, waiting: vec![datagram], bytes: length });
    }

    /// Where as many are known as may be, lets one go: one that was refused, else the one heard longest ago, whose stream
    /// ends with its queue.
    fn make_room(&mut self) {
        if self.known.len() < MAX_SENDERS {
            return;
        }
        let refused = self.refused.pop_front().map(|(_, source)| source);
        let oldest = || {
            let open = self.known.iter().filter_map(|(source, sender)| match sender {
                Sender::Open { heard, .. } => Some((*heard, *source)),
                Sender::Dialling { .. } | Sender::Refused => None,
            });
            open.min().map(|(_, source)| source)
        };
        if let Some(source) = refused.or_else(oldest) {
            self.known.remove(&source);
        }
    }

    fn dialled(&mut self, dialled: Result<(Id, Dialled), JoinError>) {
        let (source, stream) = match dialled {
            Ok((_, (source, Ok(stream)))) => (source, Some(stream)),
            Ok((_, (source, Err(error)))) => {
                debug!(%source, port = self.port.port, %error, "datagrams to a client's port not served");
                (source, None)
            }
            Err(panicked) => {
                let is_its = |sender: &Sender| matches!(sender, Sender::Dialling { dial, .. } if *dial == panicked.id());
                let Some((source, _)) = self.known.iter().find(|(_, sender)| is_its(sender)) else { return };
                (*source, None)
            }
        };
        let Some(Sender::Dialling { waiting, bytes, .. }) = self.known.remove(&source) else { return };
        self.waiting -= bytes;
        let Some(stream) = stream else {
            self.port.drops.add(Dropped::Refused, waiting.len());
            self.refused.push_back((Instant::now() + REFUSED_FOR, source));
            self.known.insert(source, Sender::Refused);
            return;
        };
        let (queue, mut datagrams) = mpsc::channel(UDP_BACKLOG);
        let (socket, drops) = (self.socket.clone(), self.port.drops.clone());
        self.flows.spawn(async move {
            // An error of the stream is its end, and so is that of the sender's silence.
            let _ = exchange(&socket, source, waiting, &mut datagrams, stream, &drops).await;
            datagrams.close();
            while datagrams.try_recv().is_ok() {
                drops.add(Dropped::Full, 1);
            }
            source
        });
        self.known.insert(source, Sender::Open { queue, heard: Instant::now() });
    }

    fn ended(&mut self, ended: Result<SocketAddr, JoinError>) {
        match ended {
            // It may have been dialled for anew by now.
            Ok(source) => {
                if self.known.get(&source).is_some_and(Sender::is_over) {
                    self.known.remove(&source);
                }
            }
            // Whose it was that panicked is known by the closed queue alone.
            Err(_) => self.known.retain(|_, sender| !sender.is_over()),
        }
    }
}

/// One sender's datagrams, both ways, those that have waited first, until it is silent for long.
async fn exchange(
    socket: &UdpSocket,
    source: SocketAddr,
    waiting: Vec<Datagram>,
    queue: &mut mpsc::Receiver<Datagram>,
    stream: impl ByteStream,
    drops: &Drops,
) -> io::Result<()> {
    let mut datagrams = Datagrams::new(stream);
    for datagram in waiting {
        send(&mut datagrams, &datagram, drops).await?;
    }
    let mut answer = BytesMut::new();
    let mut idle = pin!(sleep(UDP_IDLE));
    let mut flushed = false;
    loop {
        // The stream may have taken a part of the last datagram: the rest goes as soon as it takes more.
        let moved = poll_fn(|cx| {
            if !flushed {
                flushed = datagrams.poll_flush(cx)?.is_ready();
            }
            datagrams.poll_recv(cx, &mut answer)
        });
        tokio::select! {
            // Only what the sender sends keeps its flow (RFC 4787 REQ-6).
            () = &mut idle => return Ok(()),
            datagram = queue.recv() => {
                let Some(datagram) = datagram else { return Ok(()) };
                idle.as_mut().reset(Instant::now() + UDP_IDLE);
                send(&mut datagrams, &datagram, drops).await?;
                flushed = false;
            }
            received = moved => match received? {
                true => {
                    // Taken whole: what is split off leaves its memory with the rest.
                    let _ = socket.send_to(&std::mem::take(&mut answer), source).await;
                }
                false => return Ok(()),
            },
        }
    }
}

/// Sends now, or drops what there is no room for.
async fn send<S: ByteStream>(
    datagrams: &mut Datagrams<S>,
    datagram: &Datagram,
    drops: &Drops,
) -> io::Result<()> {
    if !poll_fn(|cx| Poll::Ready(datagrams.send_now(cx, &datagram.payload))).await? {
        drops.add(Dropped::Full, 1);
    }
    Ok(())
}

// === What was dropped ===

/// Counts the datagrams that ports have dropped, by reason.
#[derive(Debug, Default)]
pub(super) struct Drops([AtomicU64; Dropped::ALL.len()]);

/// Why a datagram was dropped.
#[derive(Clone, Copy, Debug)]
enum Dropped {
    /// Its sender's dial failed, lately or just now.
    Refused,
    /// The way to the client is full, too many wait for their dials, or memory is short.
    Full,
}

impl Dropped {
    const ALL: [(Self, &'static str); 2] = [(Self::Refused, "refused"), (Self::Full, "full")];
}

impl Drops {
    pub(super) fn counts(&self) -> [(&'static str, u64); Dropped::ALL.len()] {
        Dropped::ALL.map(|(reason, name)| (name, self.0[reason as usize].load(Relaxed)))
    }

    fn add(&self, reason: Dropped, datagrams: usize) {
        self.0[reason as usize].fetch_add(datagrams as u64, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use anyproxy_core::{Account, BoxDial, Dial};
    use anyproxy_front::RelayConfig;
    use tokio::io::{BufReader, DuplexStream};
    use tokio::sync::{Semaphore, watch};

    use super::*;
    use crate::OnlyClient;

    /// A port whose dials are done when a permit is added.
    async fn senders(memory: &Memory) -> (Senders, Arc<Semaphore>) {
        let gate = Arc::new(Semaphore::new(0));
        let dials = {
            let gate = gate.clone();
            tower::service_fn(move |_: Dial| {
                let gate = gate.clone();
                async move {
                    gate.acquire().await?.forget();
                    Ok::<BufReader<DuplexStream>, BoxError>(BufReader::new(tokio::io::duplex(64).0))
                }
            })
        };
        let port = Port {
            dials: BoxDial::new(dials),
            relay: RelayConfig::default(),
            identity: watch::Sender::new(Account::new("port:east", ["blue"]).into()).subscribe(),
            only: OnlyClient { id: "dns".into(), account: "east".into() },
            port: 53,
            memory: memory.clone(),
            drops: Arc::default(),
        };
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        (Senders::new(port, socket.into()), gate)
    }

    fn sender(number: u16) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, number).into()
    }

    fn full(senders: &Senders) -> u64 {
        senders.port.drops.counts()[Dropped::Full as usize].1
    }

    fn refused(senders: &Senders) -> u64 {
        senders.port.drops.counts()[Dropped::Refused as usize].1
    }

    #[tokio::test]
    async fn what_waits_for_a_sender_s_dial_is_bounded_in_datagrams_and_in_bytes() {
        let memory = Memory::default();
        let (mut senders, _gate) = senders(&memory).await;
        for _ in 0..MAX_WAITING.0 {
            senders.handle(sender(1), b"small");
        }
        assert_eq!(full(&senders), 0);
        senders.handle(sender(1), b"small");
        assert_eq!(full(&senders), 1, "a datagram too many");
        let half = vec![0; MAX_WAITING.1 / 2];
        for payload in [&half, &half[1..], b"x"] {
            senders.handle(sender(2), payload);
        }
        assert_eq!(full(&senders), 1);
        senders.handle(sender(2), b"x");
        assert_eq!(full(&senders), 2, "a byte too many");
        assert_eq!((senders.waiting, senders.dials.len()), (16 * 5 + MAX_WAITING.1, 2));
        assert_eq!(memory.used(), senders.waiting as u64);
    }

    #[tokio::test]
    async fn what_waits_at_a_port_is_bounded_in_bytes_and_free_again_after_the_dials() {
        let memory = Memory::default();
        let (mut senders, gate) = senders(&memory).await;
        let (_, of_one, of_all) = MAX_WAITING;
        let half = vec![0; of_one / 2];
        let most = u16::try_from(of_all / half.len()).unwrap();
        for number in 0..most {
            senders.handle(sender(number), &half);
        }
        assert_eq!((full(&senders), senders.waiting), (0, of_all));
        senders.handle(sender(0), b"x");
        senders.handle(sender(most), b"x");
        assert_eq!(full(&senders), 2);
        assert!(!senders.known.contains_key(&sender(most)), "no dial for what cannot wait for it");
        gate.add_permits(most.into());
        while let Some(dialled) = senders.dials.join_next_with_id().await {
            senders.dialled(dialled);
        }
        assert_eq!(senders.waiting, 0);
        senders.flows.shutdown().await;
        assert_eq!(memory.used(), 0);
        senders.handle(sender(most), b"x");
        assert_eq!((full(&senders), senders.waiting), (2, 1));
    }

    #[tokio::test]
    async fn no_more_dials_are_under_way_than_leave_room_for_others() {
        let (mut senders, gate) = senders(&Memory::default()).await;
        let most = u16::try_from(MAX_DIALS).unwrap();
        (0..=most).for_each(|number| senders.handle(sender(number), b"x"));
        assert_eq!((full(&senders), senders.dials.len()), (1, MAX_DIALS));
        gate.add_permits(1);
        let dialled = senders.dials.join_next_with_id().await.unwrap();
        senders.dialled(dialled);
        senders.handle(sender(most), b"x");
        assert_eq!((full(&senders), senders.dials.len()), (1, MAX_DIALS));
    }

    #[tokio::test(start_paused = true)]
    async fn of_too_many_senders_the_one_heard_longest_ago_gives_way() {
        let (mut senders, _gate) = senders(&Memory::default()).await;
        let most = u16::try_from(MAX_SENDERS).unwrap();
        let (keep, _targets) = mpsc::unbounded_channel();
        senders.port.dials = BoxDial::new(tower::service_fn(move |_: Dial| {
            let (near, far) = tokio::io::duplex(64);
            let kept = keep.send(far);
            async move { kept.map(|()| BufReader::new(near)) }
        }));
        for number in 0..most {
            senders.handle(sender(number), b"x");
            let dialled = senders.dials.join_next_with_id().await.unwrap();
            senders.dialled(dialled);
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        senders.handle(sender(0), b"x");
        senders.handle(sender(most), b"x");
        assert_eq!((full(&senders), senders.known.len()), (0, MAX_SENDERS));
        assert!(senders.known.contains_key(&sender(0)) && !senders.known.contains_key(&sender(1)));
        let ended = senders.flows.join_next().await.unwrap();
        assert_eq!(*ended.as_ref().unwrap(), sender(1), "its stream ends");
        senders.ended(ended);
        // One that was refused goes first.
        senders.known.insert(sender(2), Sender::Refused);
        senders.refused.push_back((Instant::now() + REFUSED_FOR, sender(2)));
        senders.handle(sender(most + 1), b"x");
        assert!(senders.known.contains_key(&sender(3)) && !senders.known.contains_key(&sender(2)));
    }

    #[tokio::test]
    async fn nothing_waits_where_memory_is_short() {
        let memory = Memory::new(800);
        let (mut senders, _gate) = senders(&memory).await;
        senders.handle(sender(1), &[0; 699]);
        let mut others = memory.aside();
        others.set(1);
        senders.handle(sender(1), b"x");
        senders.handle(sender(2), b"x");
        assert_eq!((full(&senders), senders.waiting, senders.dials.len()), (2, 699, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_sender_costs_one_dial_a_second() {
        let (mut senders, gate) = senders(&Memory::default()).await;
        gate.close();
        for round in 1..=2 {
            senders.handle(sender(1), b"first");
            senders.handle(sender(1), b"waits");
            assert_eq!(senders.dials.len(), 1, "a dial");
            let dialled = senders.dials.join_next_with_id().await.unwrap();
            senders.dialled(dialled);
            tokio::time::advance(REFUSED_FOR - Duration::from_millis(1)).await;
            senders.handle(sender(1), b"too soon");
            assert_eq!((senders.dials.len(), senders.waiting, refused(&senders)), (0, 0, 3 * round));
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        senders.handle(sender(2), b"another");
        assert_eq!((senders.known.len(), senders.refused.len()), (1, 0), "it is forgotten then");
    }

    #[tokio::test]
    async fn the_end_of_a_flow_is_not_that_of_the_sender_s_next_one() {
        let (mut senders, gate) = senders(&Memory::default()).await;
        senders.handle(sender(1), b"first");
        gate.add_permits(1);
        let dialled = senders.dials.join_next_with_id().await.unwrap();
        // Its far end is gone, and so the flow ends at once.
        senders.dialled(dialled);
        let ended = senders.flows.join_next().await.unwrap();
        senders.handle(sender(1), b"second");
        assert_eq!(senders.dials.len(), 1, "the next datagram dials anew");
        senders.ended(ended);
        assert!(matches!(senders.known[&sender(1)], Sender::Dialling { .. }));
        gate.add_permits(1);
        let dialled = senders.dials.join_next_with_id().await.unwrap();
        senders.dialled(dialled);
        let ended = senders.flows.join_next().await.unwrap();
        senders.ended(ended);
        assert!(senders.known.is_empty());
    }

    #[tokio::test]
    async fn a_dial_that_panics_is_its_sender_s_alone() {
        let (mut senders, _gate) = senders(&Memory::default()).await;
        senders.port.dials = BoxDial::new(tower::service_fn(|_: Dial| async {
            tokio::task::yield_now().await;
            panic!("injected");
            #[expect(unreachable_code, reason = "its type")]
            Ok::<BufReader<DuplexStream>, BoxError>(BufReader::new(tokio::io::duplex(64).0))
        }));
        senders.handle(sender(1), b"first");
        let dialled = senders.dials.join_next_with_id().await.unwrap();
        senders.handle(sender(2), b"other");
        senders.dialled(dialled);
        assert!(matches!(senders.known[&sender(1)], Sender::Refused));
        assert!(matches!(senders.known[&sender(2)], Sender::Dialling { .. }));
        assert_eq!(senders.waiting, 5);
    }
}
