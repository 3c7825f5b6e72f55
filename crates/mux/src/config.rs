use std::time::Duration;

use anyproxy_frame::{MAX_PAYLOAD, MAX_WINDOW, MIN_WINDOW, START_WINDOW};

use crate::liveness::FIRST_PINGS;

/// More than any tunnel lives, and little enough to be added to an instant: ten years.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 86_400);

/// What a multiplexer may spend and how patient it is.
///
/// Every limit that a peer can run into is here. Values outside their range are brought back into it when a
/// multiplexer is built ([`in_range`](Self::in_range)), so that later code cannot meet a bad one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Credit of a new stream in bytes, announced in the hello (default: 256 KiB). Smaller starts slowly on long lines,
    /// larger lets many stopped readers hold much. Where the line needs less, busy streams go down to 128 KiB.
    /// From [`MIN_WINDOW`] to [`MAX_WINDOW`].
    pub window: u32,
    /// How far a stream's window may grow by measured bandwidth × delay (default: 16 MiB). At least `window`.
    pub max_window: u32,
    /// How many bytes all windows of the tunnel may grow beyond `window`, together (default: 64 MiB). One may have a
    /// quarter of what the others leave. 0 turns growing off.
    pub growth: u64,
    /// Bytes held for readers, in all, from which on windows shrink, the more so the more is held (default: 16 MiB).
    /// Nothing is lost by it; streams that are read go on with less in flight. Whatever messages it came in, what is
    /// held takes no more memory than its own length and four times this much.
    pub held_bytes: u64,
    /// Bytes held for readers, in all, at which windows are down to [`MIN_WINDOW`], and beyond which the streams that
    /// hold most are reset (default: 64 MiB). Only what was granted before windows shrank can lead there. Streams that
    /// hold no more than [`MIN_WINDOW`] are never reset, so the bound is this and [`MIN_WINDOW`] for each stream.
    pub held_limit: u64,
    /// Streams at once (default: 65,536; at least one). Beyond it an open fails, and a peer's open is answered with
    /// "overloaded".
    pub max_streams: u32,
    /// Opens without an answer at once (default: 1,024; at least one). Beyond it as above.
    pub max_unanswered: u32,
    /// Bytes a stream may send before it is another's turn (default: 64 KiB, a whole frame). Less makes frames small,
    /// and each is a write to somebody; what speaks up while others are busy comes first in any case.
    pub quantum: u32,
    /// Datagrams waiting on one stream (default: 256). The newest is dropped when they are more.
    pub max_datagrams: u32,
    /// Bytes of datagrams waiting on the tunnel (default: 16 MiB). The newest is dropped when they are more.
    pub datagram_bytes: u64,
    /// Bytes of control frames waiting, bookkeeping included (default: 4 MiB; at least 64 KiB). A peer that asks and never
    /// reads the answers ends the tunnel; from half of it on, own opens fail. An answer counts as some hundred bytes: too
    /// little ends tunnels of peers who do read, and ask much at once.
    pub control_bytes: u64,
    /// Empty data frames a peer may send in a tunnel's life (default: 100).
    pub max_empty_data: u32,
    /// Resets a peer may cause by its mistakes in a tunnel's life (default: 1,024).
    pub max_caused_resets: u32,
    /// Opens a peer may reset before anybody here has even seen them, at once (default: 20). Honest gateways never send
    /// what they have cancelled.
    pub max_unseen_resets: u32,
    /// Opens a peer may reset before they are answered, per second (default: 500), and eight seconds' worth at once. A
    /// gateway counts what it resets itself and opens nothing for a while, rather than have its client end the tunnel.
    pub cancelled_opens_per_second: u32,
    /// Frames a peer may send that mean nothing here (extensions, repeated fins and go-aways, pongs nobody asked
    /// for), in a burst (default: 100); one more is allowed each second.
    pub max_ignored: u32,
    /// Pings a peer may send in a burst (default: 20); one more is allowed each second. At least 16, since a tunnel
    /// begins with eight.
    pub max_pings: u32,
    /// Bytes of one version of a gateway's rules that a client takes (default: 8 MiB).
    pub rules_bytes: u64,
    /// How long the peer's hello may take (default: 10 s).
    pub hello_timeout: Duration,
    /// Time between pings, after eight at the start that measure how far away the peer is (default: 20 s). Shorter
    /// finds dead peers sooner and costs wake-ups; below a second it is more than a peer allows
    /// ([`max_pings`](Self::max_pings)).
    pub ping_interval: Duration,
    /// How long a ping may stay without an answer before the peer is dead (default: 10 s). It counts from the latest frame of
    /// the peer, or [progress](crate::Mux::handle_progress) of a full line, if that is later; three times as long is the
    /// most, whatever comes or moves. So a line must carry what its carrier holds, and a ping behind it, in that time.
    pub ping_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            window: START_WINDOW,
            max_window: 16 * 1024 * 1024,
            growth: 64 * 1024 * 1024,
            held_bytes: 16 * 1024 * 1024,
            held_limit: 64 * 1024 * 1024,
            max_streams: 65_536,
            max_unanswered: 1_024,
            quantum: MAX_PAYLOAD as u32,
            max_datagrams: 256,
            datagram_bytes: 16 * 1024 * 1024,
            control_bytes: 4 * 1024 * 1024,
            max_empty_data: 100,
            max_caused_resets: 1_024,
            max_unseen_resets: 20,
            cancelled_opens_per_second: 500,
            max_ignored: 100,
            max_pings: 20,
            rules_bytes: 8 * 1024 * 1024,
            hello_timeout: Duration::from_secs(10),
            ping_interval: Duration::from_secs(20),
            ping_timeout: Duration::from_secs(10),
        }
    }
}

/// Less would not hold the answers to what one message of an honest peer asks.
const LEAST_CONTROL: u64 = 64 * 1024;

impl Config {
    /// The same, each value within its range: what a multiplexer goes by. For those who go by it beside one.
    #[must_use]
    pub fn in_range(mut self) -> Self {
        self.window = self.window.clamp(MIN_WINDOW, MAX_WINDOW);
        self.max_window = self.max_window.clamp(self.window, MAX_WINDOW);
        self.held_limit = self.held_limit.max(self.held_bytes);
        self.max_streams = self.max_streams.max(1);
        self.max_unanswered = self.max_unanswered.max(1);
        self.quantum = self.quantum.clamp(1024, MAX_PAYLOAD as u32);
        self.max_datagrams = self.max_datagrams.max(1);
        self.control_bytes = self.control_bytes.max(LEAST_CONTROL);
        self.max_pings = self.max_pings.max(2 * FIRST_PINGS);
        let times = [&mut self.hello_timeout, &mut self.ping_interval, &mut self.ping_timeout];
        times.into_iter().for_each(|time| *time = (*time).clamp(Duration::from_millis(1), LONGEST));
        self
    }
}
