//! What the driver of a tunnel and all its handles share.

use std::mem;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use anyproxy_core::Pulse;
use anyproxy_mux::Memory;
use anyproxy_mux::frame::GoAwayCode;
use tokio::sync::watch;

use crate::cell::Bell;
use crate::link::now;
use crate::sync::{Mutex, MutexGuard};
use crate::{CloseReason, Config, DroppedDatagrams};

/// How long something may wait to be sent, and neither leave nor anything be heard, before a tunnel counts as stalled. A
/// line that takes the longest message in that time, 44 kB/s, does not, whatever it carries.
const STALLED_AFTER: Duration = Duration::from_secs(3);

/// What a stream takes from its writer where memory is short, and the least it may be told to: little, and never nothing, or
/// it would not end.
pub(crate) const LEAST_SEND_BUFFER: u32 = 4 * 1024;

/// What every handle of a tunnel knows.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) bell: Bell,
    /// The number the gateway gave the tunnel.
    pub(crate) session: u64,
    /// What the process may hold for streams.
    pub(crate) memory: Memory,
    send_buffer: u32,
    /// Unsent bytes, on all streams, from which on less is taken, and at which next to nothing is.
    unsent_limits: (u64, u64),
    pub(crate) gauges: Gauges,
    dropped_datagrams: DroppedDatagrams,
    closed: watch::Sender<Option<CloseReason>>,
}

/// What the driver last saw; for those who choose between tunnels, and for metrics.
#[derive(Debug)]
pub(crate) struct Gauges {
    pub(crate) streams: AtomicUsize,
    pub(crate) unsent: AtomicUsize,
    pub(crate) held: AtomicUsize,
    /// In microseconds; 0 while there was none.
    pub(crate) rtt: AtomicU64,
    pub(crate) going_away: AtomicBool,
    pub(crate) dropped_datagrams: AtomicU64,
    pub(crate) refused_opens: AtomicU64,
    started: Instant,
    /// Since when a carrier that has no room took nothing and brought nothing, in milliseconds after `started`, plus one; 0
    /// while it has room.
    blocked: AtomicU64,
}

impl Shared {
    pub(crate) fn new(session: u64, config: &Config, now: Instant) -> Arc<Self> {
        Arc::new(Self {
            bell: Bell::default(),
            session,
            memory: config.memory.clone(),
            send_buffer: u32::try_from(config.send_buffer).unwrap_or(u32::MAX),
            unsent_limits: (config.mux.held_bytes, config.mux.held_limit),
            gauges: Gauges::new(now),
            dropped_datagrams: config.dropped_datagrams.clone(),
            closed: watch::Sender::new(None),
        })
    }

    /// Bytes a stream takes from its writer before they have left: less where the process runs short of memory, or
    /// where much waits on this tunnel already, as what is received does with windows.
    pub(crate) fn send_buffer(&self) -> u32 {
        let size = self.memory.shrunk(self.send_buffer, LEAST_SEND_BUFFER);
        let (soft, hard) = self.unsent_limits;
        let unsent = self.gauges.unsent.load(Ordering::Relaxed) as u64;
        if unsent <= soft {
            return size;
        }
        let left = u64::from(size).saturating_mul(hard.saturating_sub(unsent)) / (hard - soft).max(1);
        // No more than `size`, so it fits.
        size.min(LEAST_SEND_BUFFER.max(left as u32))
    }

    /// A writer that waits is woken when no more than this has not left: half of the buffer as it is while it has not shrunk.
    /// Where it has, a writer that is woken too early only waits again.
    pub(crate) const fn low_water(&self) -> u32 {
        self.send_buffer / 2
    }

    /// So many datagrams found no room, here and among all that count with this tunnel.
    pub(crate) fn dropped(&self, datagrams: u64) {
        self.gauges.dropped_datagrams.fetch_add(datagrams, Ordering::Relaxed);
        self.dropped_datagrams.add(datagrams);
    }

    pub(crate) fn accepts_opens(&self) -> bool {
        !self.gauges.going_away.load(Ordering::Relaxed) && !self.is_closed()
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.borrow().is_some()
    }

    /// Tells everybody that waits why the tunnel ended. Only the first reason counts.
    pub(crate) fn set_closed(&self, reason: CloseReason) {
        self.closed.send_if_modified(|closed| {
            let first = closed.is_none();
            closed.get_or_insert(reason);
            first
        });
    }

    pub(crate) fn closed(&self) -> impl Future<Output = CloseReason> + Send + 'static + use<> {
        let mut closed = self.closed.subscribe();
        async move {
            // The sender may be dropped before the last reason was seen, never before there is one.
            match closed.wait_for(Option::is_some).await {
                Ok(reason) => reason.clone().unwrap_or(CloseReason::Abandoned),
                Err(_) => CloseReason::Abandoned,
            }
        }
    }
}

impl Pulse for Shared {
    fn is_healthy(&self) -> bool {
        self.accepts_opens() && !self.gauges.is_stalled(now())
    }
}

impl Gauges {
    fn new(started: Instant) -> Self {
        Self {
            streams: AtomicUsize::new(0),
            unsent: AtomicUsize::new(0),
            held: AtomicUsize::new(0),
            rtt: AtomicU64::new(0),
            going_away: AtomicBool::new(false),
            dropped_datagrams: AtomicU64::new(0),
            refused_opens: AtomicU64::new(0),
            started,
            blocked: AtomicU64::new(0),
        }
    }

    pub(crate) fn rtt(&self) -> Option<Duration> {
        match self.rtt.load(Ordering::Relaxed) {
            0 => None,
            micros => Some(Duration::from_micros(micros)),
        }
    }

    pub(crate) fn set_rtt(&self, rtt: Duration) {
        let micros = u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX);
        self.rtt.store(micros.max(1), Ordering::Relaxed);
    }

    /// Notes whether the carrier has room for more, and whether it took something before it had none.
    pub(crate) fn set_blocked(&self, blocked: bool, took: bool, now: Instant) {
        if !blocked {
            self.blocked.store(0, Ordering::Relaxed);
        } else if took || !self.is_blocked() {
            self.blocked.store(self.millis(now) + 1, Ordering::Relaxed);
        }
    }

    /// Notes that the peer said something, as it does when it gives credit for what arrives: a line that is slow to take
    /// more may still move.
    pub(crate) fn heard(&self, now: Instant) {
        if self.is_blocked() {
            self.blocked.store(self.millis(now) + 1, Ordering::Relaxed);
        }
    }

    pub(crate) fn is_blocked(&self) -> bool {
        self.blocked.load(Ordering::Relaxed) != 0
    }

    pub(crate) fn is_stalled(&self, now: Instant) -> bool {
        match self.blocked.load(Ordering::Relaxed) {
            0 => false,
            since => Duration::from_millis((self.millis(now) + 1).saturating_sub(since)) >= STALLED_AFTER,
        }
    }

    fn millis(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.started).as_millis()).unwrap_or(u64::MAX - 1)
    }
}

// === Desk ===

/// What the handles of one end ask of the driver, beside what streams do. `C` is what that end can ask.
#[derive(Debug)]
pub(crate) struct Desk<C> {
    pub(crate) shared: Arc<Shared>,
    orders: Mutex<Orders<C>>,
}

/// What the driver finds on its desk.
#[derive(Debug)]
pub(crate) struct Orders<C> {
    pub(crate) commands: Vec<C>,
    /// What the go-away says.
    pub(crate) drain: Option<(GoAwayCode, &'static str)>,
    pub(crate) close: bool,
    /// The driver is gone.
    off: bool,
}

impl<C> Default for Orders<C> {
    fn default() -> Self {
        Self { commands: Vec::new(), drain: None, close: false, off: false }
    }
}

impl<C> Desk<C> {
    pub(crate) fn new(shared: Arc<Shared>) -> Arc<Self> {
        Arc::new(Self { shared, orders: Mutex::new(Orders::default()) })
    }

    fn lock(&self) -> MutexGuard<'_, Orders<C>> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves a command for the driver, unless `limit` of them wait already: then, or if the driver is gone, it is
    /// given back.
    pub(crate) fn push(&self, command: C, limit: usize) -> Result<(), C> {
        let first = {
            let mut orders = self.lock();
            if orders.off || orders.commands.len() >= limit {
                return Err(command);
            }
            orders.commands.push(command);
            orders.commands.len() == 1
        };
        if first {
            self.shared.bell.wake();
        }
        Ok(())
    }

    pub(crate) fn drain(&self, code: GoAwayCode, reason: &'static str) {
        self.shared.gauges.going_away.store(true, Ordering::Relaxed);
        self.lock().drain.get_or_insert((code, reason));
        self.shared.bell.wake();
    }

    pub(crate) fn close(&self) {
        self.lock().close = true;
        self.shared.bell.wake();
    }

    /// Takes what there is.
    pub(crate) fn take(&self) -> Orders<C> {
        let mut orders = self.lock();
        Orders {
            commands: mem::take(&mut orders.commands),
            drain: orders.drain.take(),
            close: orders.close,
            off: orders.off,
        }
    }

    /// Nobody serves any more. What was left.
    pub(crate) fn turn_off(&self) -> Vec<C> {
        let mut orders = self.lock();
        orders.off = true;
        mem::take(&mut orders.commands)
    }
}
