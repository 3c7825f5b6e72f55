use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use anyproxy_core::{BoxError, BoxFuture, ByteStream, Datagrams, FOR_EVER, Outcome, Target, end_turn};
use anyproxy_udp::{Burst, Peer, Scratch};
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::{AbortHandle, Abortable};
use futures_util::stream::FuturesUnordered;
use tokio::io::ReadBuf;
use tokio::net::UdpSocket;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep, sleep_until};
use tracing::debug;

use super::{Dropped, End, OWN_DESTINATIONS, Places, Shared, UdpConfig, UdpDrops};
use crate::proto::{Packet, PacketError, encode_header};

/// Datagrams taken from the user, or from one target, before others get their turn.
const BATCH: usize = 64;

/// Dials an association may have under way; a datagram for one destination more is dropped. A resolver asks a
/// handful, a BitTorrent client a few dozen.
const MAX_DIALS: usize = 64;

/// Datagrams that may wait for one dial, for all of them, and the bytes of the latter. A QUIC client sends its first
/// flight of a few datagrams before it hears anything.
const MAX_WAITING: (usize, usize, usize) = (16, 256, 512 * 1024);

/// How long a refused destination is not asked for again: a user who keeps sending costs one dial a second.
const REFUSED_FOR: Duration = Duration::from_secs(1);

/// Errors of the port in a row that are taken for those of single datagrams.
const PATIENCE: u32 = 64;

/// An association's datagrams: from the user's port to a stream per destination, and back. One task does it all, so
/// that a datagram is handed over to nobody on its way.
pub(super) struct UdpRelay<S, F> {
    user: Arc<UserPort>,
    dial: F,
    idle_timeout: Duration,
    max_destinations: usize,
    drops: Arc<UdpDrops>,
    destinations: HashMap<Target, Destination<S>>,
    places: Places,
    /// Places of the user's that this association has taken: one for each destination beyond its own.
    taken: Vec<OwnedSemaphorePermit>,
    /// Counts datagrams: the time by which the oldest destination is told.
    clock: u64,
    waiting: Waiting,
    dials: FuturesUnordered<Abortable<Dialling<S>>>,
    answers: FuturesUnordered<Abortable<Answers<S>>>,
    unflushed: Vec<Arc<Flow<S>>>,
    last_heard: Instant,
    last_sweep: Instant,
    timer: Pin<Box<Sleep>>,
    errors: u32,
}

struct Destination<S> {
    state: State<S>,
    /// When the user sent to it last: by the count of datagrams, and by the clock.
    used: u64,
    heard: Instant,
}

enum State<S> {
    Dialling { waiting: Vec<Bytes>, _dial: Abort, _place: OwnedSemaphorePermit },
    Open { flow: Arc<Flow<S>>, _answers: Abort },
    Refused { until: Instant },
}

/// A destination's stream. Used by one task alone: the lock is there because the half that sends and the half that
/// receives are called from two places in it.
struct Flow<S>(Mutex<Datagrams<S>>);

impl<S> Flow<S> {
    fn lock(&self) -> MutexGuard<'_, Datagrams<S>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a future out of its set on drop.
struct Abort(AbortHandle);

impl Drop for Abort {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Datagrams that wait for a dial.
#[derive(Default)]
struct Waiting {
    datagrams: usize,
    bytes: usize,
}

impl<S, F> UdpRelay<S, F>
where
    S: ByteStream,
    F: Fn(Target) -> BoxFuture<S>,
{
    /// Relays for the user at `ip`, who has said to send from `port` or not said where from.
    pub(super) fn new(
        socket: UdpSocket,
        ip: IpAddr,
        port: Option<u16>,
        dial: F,
        config: &UdpConfig,
        shared: Shared,
    ) -> Self {
        let Shared { drops, places } = shared;
        let now = Instant::now();
        Self {
            user: Arc::new(UserPort { socket, ip, port, pinned: OnceLock::new(), drops: drops.clone() }),
            dial,
            idle_timeout: config.idle_timeout,
            max_destinations: config.max_destinations.get(),
            drops,
            destinations: HashMap::new(),
            places,
            taken: Vec::new(),
            clock: 0,
            waiting: Waiting::default(),
            dials: FuturesUnordered::new(),
            answers: FuturesUnordered::new(),
            unflushed: Vec::new(),
            last_heard: now,
            last_sweep: now,
            timer: Box::pin(sleep_until(now + config.idle_timeout.min(FOR_EVER))),
            errors: 0,
        }
    }

    /// Carries what there is. Ready when the association is to end.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        if let Poll::Ready(error) = self.poll_user(cx) {
            return Poll::Ready(End::Socket(error));
        }
        while let Poll::Ready(Some(dialled)) = self.dials.poll_next_unpin(cx) {
            if let Ok((target, dialled)) = dialled {
                self.dialled(cx, target, dialled);
            }
        }
        while let Poll::Ready(Some(ended)) = self.answers.poll_next_unpin(cx) {
            if let Ok(target) = ended {
                self.destinations.remove(&target);
                self.give_back();
            }
        }
        self.flush(cx);
        loop {
            ready!(self.timer.as_mut().poll(cx));
            let deadline = self.last_heard + self.idle_timeout;
            if deadline <= Instant::now() {
                return Poll::Ready(End::Idle);
            }
            self.timer.as_mut().reset(deadline);
        }
    }

    /// Takes datagrams from the user's port. Ready if that fails for good.
    fn poll_user(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let mut scratch = Scratch::take();
        let now = Instant::now();
        for _ in 0..BATCH {
            let mut buf = ReadBuf::new(&mut scratch);
            match ready!(self.user.socket.poll_recv_from(cx, &mut buf)) {
                Ok(source) => {
                    self.errors = 0;
                    self.handle(cx, now, source, buf.filled());
                }
                // Such as what ICMP said about an earlier answer.
                Err(error) => {
                    self.errors += 1;
                    if self.errors > PATIENCE {
                        return Poll::Ready(error);
                    }
                }
            }
        }
        end_turn(cx)
    }

    fn handle(&mut self, cx: &mut Context<'_>, now: Instant, source: SocketAddr, datagram: &[u8]) {
        if !self.user.is(source) {
            return self.drops.add(Dropped::Stranger, 1);
        }
        let packet = match Packet::decode(datagram) {
            Ok(packet) => packet,
            Err(error) => {
                let fragment = matches!(error, PacketError::Fragment(_));
                return self.drops.add(if fragment { Dropped::Fragment } else { Dropped::Malformed }, 1);
            }
        };
        self.user.pin(source);
        self.last_heard = now;
        self.sweep(now);
        self.clock += 1;
        if let Some(destination) = self.destinations.get_mut(&packet.target) {
            destination.used = self.clock;
            destination.heard = now;
            match &mut destination.state {
                State::Open { flow, .. } => match flow.lock().send_now(cx, packet.payload) {
                    Ok(sent) => {
                        if !sent {
                            self.drops.add(Dropped::Full, 1);
                        }
                        if !self.unflushed.iter().any(|other| Arc::ptr_eq(other, flow)) {
                            self.unflushed.push(flow.clone());
                        }
                        return;
                    }
                    // The stream is over. The next datagram dials anew, as this one does.
                    Err(error) => debug!(target = %packet.target, %error, "a destination was lost"),
                },
                State::Dialling { waiting, .. } => {
                    if self.waiting.admit(waiting, packet.payload) {
                        return;
                    }
                    return self.drops.add(Dropped::Full, 1);
                }
                State::Refused { until } if now < *until => return self.drops.add(Dropped::Refused, 1),
                State::Refused { .. } => {}
            }
        }
        self.dial(now, packet);
    }

    /// Dials a destination; the datagram waits for it.
    fn dial(&mut self, now: Instant, packet: Packet<'_>) {
        if self.dials.len() >= MAX_DIALS {
            return self.drops.add(Dropped::Full, 1);
        }
        let Ok(place) = self.places.dials.clone().try_acquire_owned() else {
            return self.drops.add(Dropped::Full, 1);
        };
        let mut waiting = Vec::new();
        if !self.waiting.admit(&mut waiting, packet.payload) {
            return self.drops.add(Dropped::Full, 1);
        }
        if !self.destinations.contains_key(&packet.target) {
            self.make_room();
        }
        let (handle, registration) = AbortHandle::new_pair();
        let dial = Dialling { dial: (self.dial)(packet.target.clone()), target: packet.target.clone() };
        self.dials.push(Abortable::new(dial, registration));
        let state = State::Dialling { waiting, _dial: Abort(handle), _place: place };
        let destination = Destination { state, used: self.clock, heard: now };
        self.destinations.insert(packet.target, destination);
    }

    fn dialled(&mut self, cx: &mut Context<'_>, target: Target, dialled: Result<S, BoxError>) {
        let Some(destination) = self.destinations.get_mut(&target) else { return };
        let State::Dialling { waiting, .. } = &mut destination.state else { return };
        let waiting = self.waiting.release(waiting);
        let stream = match dialled {
            Ok(stream) => stream,
            Err(error) => {
                debug!(%target, error = &*error, outcome = %Outcome::of(&*error), "a destination was refused");
                self.drops.add(Dropped::Refused, waiting.len());
                destination.state = State::Refused { until: Instant::now() + REFUSED_FOR };
                return;
            }
        };
        let mut datagrams = Datagrams::new(stream);
        for payload in waiting {
            // If the stream is over already, the answers' future says so at once.
            if !matches!(datagrams.send_now(cx, &payload), Ok(true)) {
                self.drops.add(Dropped::Full, 1);
            }
        }
        let flow = Arc::new(Flow(Mutex::new(datagrams)));
        self.unflushed.push(flow.clone());
        let (handle, registration) = AbortHandle::new_pair();
        let answers = Answers { target, flow: flow.clone(), user: self.user.clone() };
        self.answers.push(Abortable::new(answers, registration));
        destination.state = State::Open { flow, _answers: Abort(handle) };
    }

    /// Sends what streams keep back. One that cannot wakes this task when it can.
    fn flush(&mut self, cx: &mut Context<'_>) {
        // An error is found again by the answers' future, which ends the flow.
        self.unflushed.retain(|flow| flow.lock().poll_flush(cx).is_pending());
    }

    /// Makes room for one destination more, if need be by that of another.
    fn make_room(&mut self) {
        let is_full = self.destinations.len() >= self.max_destinations;
        if is_full || !self.take_place() {
            self.evict();
        }
    }

    /// Whether there is a place for one destination more.
    fn take_place(&mut self) -> bool {
        if self.destinations.len() < OWN_DESTINATIONS + self.taken.len() {
            return true;
        }
        let place = self.places.destinations.clone().try_acquire_owned();
        place.map(|place| self.taken.push(place)).is_ok()
    }

    /// Gives back the places of destinations that are forgotten.
    fn give_back(&mut self) {
        self.taken.truncate(self.destinations.len().saturating_sub(OWN_DESTINATIONS));
    }

    /// Forgets the destination that was sent to the longest time ago.
    fn evict(&mut self) {
        let oldest = self.destinations.iter().min_by_key(|(_, destination)| destination.used);
        if let Some(target) = oldest.map(|(target, _)| target.clone()) {
            self.forget(&target);
        }
    }

    /// Forgets destinations that were not sent to for the idle timeout; looks four times as often.
    fn sweep(&mut self, now: Instant) {
        if now - self.last_sweep < self.idle_timeout / 4 {
            return;
        }
        self.last_sweep = now;
        let idle = self.destinations.iter().filter(|(_, other)| now - other.heard >= self.idle_timeout);
        for target in idle.map(|(target, _)| target.clone()).collect::<Vec<_>>() {
            self.forget(&target);
        }
        self.give_back();
    }

    fn forget(&mut self, target: &Target) {
        let Some(mut destination) = self.destinations.remove(target) else { return };
        match &mut destination.state {
            State::Dialling { waiting, .. } => {
                let waiting = self.waiting.release(waiting);
                self.drops.add(Dropped::Full, waiting.len());
            }
            State::Open { flow, .. } => self.unflushed.retain(|other| !Arc::ptr_eq(other, flow)),
            State::Refused { .. } => {}
        }
    }
}

impl Waiting {
    /// Lets `payload` wait with the others in `line`, if there is room.
    fn admit(&mut self, line: &mut Vec<Bytes>, payload: &[u8]) -> bool {
        let (of_one, of_all, bytes) = MAX_WAITING;
        if line.len() >= of_one || self.datagrams >= of_all || self.bytes + payload.len() > bytes {
            return false;
        }
        self.datagrams += 1;
        self.bytes += payload.len();
        line.push(Bytes::copy_from_slice(payload));
        true
    }

    fn release(&mut self, line: &mut Vec<Bytes>) -> Vec<Bytes> {
        let line = std::mem::take(line);
        self.datagrams -= line.len();
        self.bytes -= line.iter().map(Bytes::len).sum::<usize>();
        line
    }
}

/// A dial under way.
struct Dialling<S> {
    target: Target,
    dial: BoxFuture<S>,
}

impl<S> Future for Dialling<S> {
    type Output = (Target, Result<S, BoxError>);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let dialled = ready!(self.dial.as_mut().poll(cx));
        Poll::Ready((self.target.clone(), dialled))
    }
}

/// Sends the user what a destination answers. Ready with the destination when its stream has ended.
struct Answers<S> {
    target: Target,
    flow: Arc<Flow<S>>,
    user: Arc<UserPort>,
}

impl<S: ByteStream> Future for Answers<S> {
    type Output = Target;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Target> {
        let mut flow = self.flow.lock();
        let mut answers = Burst::take();
        let ended = loop {
            if answers.is_full() {
                break end_turn(cx);
            }
            let answer = answers.begin();
            encode_header(&self.target, answer);
            match flow.poll_recv(cx, answer) {
                Poll::Ready(Ok(true)) => answers.commit(),
                Poll::Ready(Ok(false)) => break Poll::Ready(self.target.clone()),
                Poll::Ready(Err(error)) => {
                    debug!(target = %self.target, %error, "a destination was lost");
                    break Poll::Ready(self.target.clone());
                }
                Poll::Pending => break Poll::Pending,
            }
        };
        self.user.send(answers);
        ended
    }
}

/// The association's port, as the user sees it.
struct UserPort {
    socket: UdpSocket,
    /// Only datagrams from here are looked at, ...
    ip: IpAddr,
    /// ... and from this port, if the user named one.
    port: Option<u16>,
    /// To where the first one came from: the only address others may come from, and answers go to.
    pinned: OnceLock<Peer>,
    drops: Arc<UdpDrops>,
}

impl UserPort {
    fn is(&self, source: SocketAddr) -> bool {
        match self.pinned.get() {
            Some(user) => user.address() == source,
            None => source.ip() == self.ip && self.port.is_none_or(|port| port == source.port()),
        }
    }

    fn pin(&self, source: SocketAddr) {
        self.pinned.get_or_init(|| Peer::new(source));
    }

    /// Sends now, or drops those that there is no room for.
    fn send(&self, answers: Burst) {
        let asked = answers.len();
        let sent = self.pinned.get().map_or(0, |user| answers.try_send(&self.socket, user).datagrams);
        self.drops.add(Dropped::Unsent, asked - sent);
    }
}
