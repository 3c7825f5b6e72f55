use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// The name of a stream, the same in the logs of both ends: the tunnel's session and the stream's number in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StreamRef {
    /// The session the gateway gave the tunnel.
    pub session: u64,
    /// The stream's number in that session.
    pub number: u32,
}

impl fmt::Display for StreamRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{}", self.session, self.number)
    }
}

/// What becomes known about a dial on its way: written by the layer that learns it, read when the stream ends.
///
/// A handle; clones share what was written. The response of a dial is a stream and has no room for such facts, and
/// tower's services have no way back but the response.
#[derive(Clone, Debug)]
pub struct Journal(Arc<Entries>);

#[derive(Debug)]
struct Entries {
    started: Instant,
    /// Microseconds; 0 = not known.
    queued: AtomicU64,
    opened: AtomicU64,
    connected: AtomicU64,
    /// What the attempt knows that became the stream.
    served: OnceLock<Served>,
    /// What the last one knows that did not.
    asked: Mutex<Option<(StreamRef, Arc<str>)>>,
    pulse: OnceLock<Arc<dyn Pulse>>,
}

#[derive(Debug)]
struct Served {
    stream: StreamRef,
    client: Arc<str>,
    address: Option<SocketAddr>,
}

impl Journal {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Entries {
            started: Instant::now(),
            queued: AtomicU64::new(0),
            opened: AtomicU64::new(0),
            connected: AtomicU64::new(0),
            served: OnceLock::new(),
            asked: Mutex::new(None),
            pulse: OnceLock::new(),
        }))
    }

    /// When the front asked.
    #[must_use]
    pub fn started(&self) -> Instant {
        self.0.started
    }

    /// Adds time spent waiting for a seat or for a client.
    pub fn add_queued(&self, waited: Duration) {
        self.0.queued.fetch_add(micros(waited), Ordering::Relaxed);
    }

    /// How long the dial waited in queues.
    #[must_use]
    pub fn queued(&self) -> Duration {
        Duration::from_micros(self.0.queued.load(Ordering::Relaxed))
    }

    /// Adds the time between asking a client and its answer.
    pub fn add_opening(&self, took: Duration) {
        self.0.opened.fetch_add(micros(took), Ordering::Relaxed);
    }

    /// How long clients took to answer.
    #[must_use]
    pub fn opening(&self) -> Duration {
        Duration::from_micros(self.0.opened.load(Ordering::Relaxed))
    }

    /// Adds the part of [`opening`](Self::opening) that a client says it resolved and connected.
    pub fn add_connecting(&self, took: Duration) {
        self.0.connected.fetch_add(micros(took), Ordering::Relaxed);
    }

    /// How long clients resolved and connected, in their own words; the rest of [`opening`](Self::opening) is the
    /// tunnel's. Zero if none of them said.
    #[must_use]
    pub fn connecting(&self) -> Duration {
        Duration::from_micros(self.0.connected.load(Ordering::Relaxed))
    }

    /// Writes down who serves the dial, on which stream, and the address really dialled if the client told it.
    /// Only the first call counts: a dial is served once.
    pub fn set_served(&self, stream: StreamRef, client: Arc<str>, address: Option<SocketAddr>) {
        let _ = self.0.served.set(Served { stream, client, address });
    }

    /// Writes down who was asked, and for which stream, where nothing came of it. The last call counts, until the dial
    /// is served.
    pub fn set_asked(&self, stream: StreamRef, client: Arc<str>) {
        *self.asked() = Some((stream, client));
    }

    /// Leaves a view of what carries the stream, for whoever would use the stream again. Only the first call counts.
    pub fn set_pulse(&self, pulse: Arc<dyn Pulse>) {
        let _ = self.0.pulse.set(pulse);
    }

    /// Whether what carries the stream would carry another now; taken for granted where nobody has left a view of it.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        self.0.pulse.get().is_none_or(|pulse| pulse.is_healthy())
    }

    /// The stream, once there is one; until then, and where there is none, the last one asked for.
    #[must_use]
    pub fn stream(&self) -> Option<StreamRef> {
        match self.0.served.get() {
            Some(served) => Some(served.stream),
            None => self.asked().as_ref().map(|(stream, _)| *stream),
        }
    }

    /// The client that serves the dial, once there is one; until then, and where there is none, the last one asked.
    #[must_use]
    pub fn client(&self) -> Option<Arc<str>> {
        match self.0.served.get() {
            Some(served) => Some(served.client.clone()),
            None => self.asked().as_ref().map(|(_, client)| client.clone()),
        }
    }

    /// The address really dialled.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.0.served.get().and_then(|served| served.address)
    }

    fn asked(&self) -> MutexGuard<'_, Option<(StreamRef, Arc<str>)>> {
        self.0.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What can be seen, without holding it, of that which carries a stream.
pub trait Pulse: fmt::Debug + Send + Sync {
    /// Whether it takes new streams, and moves those it has.
    fn is_healthy(&self) -> bool;
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
