use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyproxy_mux::Memory;

use crate::shared::LEAST_SEND_BUFFER;

/// What a tunnel may spend, beyond what its multiplexer may. Values outside their range are brought back into it when a
/// tunnel is made, as those of the multiplexer are.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    /// The limits and timers of the multiplexer, the same for both ends unless said otherwise there.
    pub mux: anyproxy_mux::Config,
    /// What the process may hold for streams (default: no limit). Give all its tunnels clones of one memory. What waits
    /// in either direction counts, unread datagrams too.
    pub memory: Memory,
    /// Counts the datagrams that the tunnel drops (default: a count of its own). Clones are the same count, so that tunnels
    /// which have ended are in it.
    pub dropped_datagrams: DroppedDatagrams,
    /// Bytes a stream takes from its writer before they have left (default: 256 KiB; 4 KiB to 2 GiB). Less makes writers
    /// wait for the driver, more is memory that a slow tunnel fills for every stream. Where `memory` runs short it
    /// shrinks, to 4 KiB, and so it does where unsent bytes of the whole tunnel are between the multiplexer's
    /// `held_bytes` and `held_limit`.
    pub send_buffer: usize,
    /// How long the last words (a go-away, the close frame) may take when a tunnel ends (default: 2 s). A peer that
    /// does not read them is left without.
    pub close_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            mux: anyproxy_mux::Config::default(),
            memory: Memory::default(),
            dropped_datagrams: DroppedDatagrams::default(),
            send_buffer: 256 * 1024,
            close_timeout: Duration::from_secs(2),
        }
    }
}

impl Config {
    /// The same, each value within its range.
    pub(crate) fn in_range(mut self) -> Self {
        self.mux = self.mux.in_range();
        // Beyond 2 GiB the counter of unsent bytes could run over.
        self.send_buffer = self.send_buffer.clamp(LEAST_SEND_BUFFER as usize, i32::MAX as usize);
        self
    }
}

/// How many datagrams tunnels have dropped in either direction, because they found no room. Those that a stream did not
/// take are its writer's to count.
#[derive(Clone, Debug, Default)]
pub struct DroppedDatagrams(Arc<AtomicU64>);

impl DroppedDatagrams {
    /// The number, since the process started.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Counts so many more: for whoever drops what a stream did not take, and has no count of their own.
    pub fn add(&self, datagrams: u64) {
        self.0.fetch_add(datagrams, Ordering::Relaxed);
    }
}
