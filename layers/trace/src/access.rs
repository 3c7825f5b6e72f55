use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyproxy_core::{Dial, Ending, Front, Identity, Journal, Meter, Network, Outcome, Target, printable};

/// What the access line of one dial will say: rides in the stream and is written when that is dropped.
#[derive(Debug)]
pub struct AccessLine {
    front: Front,
    network: Network,
    target: Target,
    source: SocketAddr,
    identity: Identity,
    journal: Journal,
    bytes_up: u64,
    bytes_down: u64,
    first_byte: Option<Duration>,
}

impl AccessLine {
    pub(crate) fn new(dial: &Dial) -> Self {
        Self {
            front: dial.front,
            network: dial.network,
            target: dial.target.clone(),
            source: dial.source,
            identity: dial.identity.clone(),
            journal: dial.journal.clone(),
            bytes_up: 0,
            bytes_down: 0,
            first_byte: None,
        }
    }

    pub(crate) const fn network(&self) -> Network {
        self.network
    }

    /// There is no stream, and this is why.
    pub(crate) fn refused(&self, outcome: Outcome) {
        self.write(outcome.as_str(), None);
    }

    /// Nobody waited for an answer.
    pub(crate) fn cancelled(&self) {
        self.write("cancelled", None);
    }

    fn write(&self, outcome: &'static str, end: Option<&'static str>) {
        tracing::info!(
            target: "access",
            stream = self.journal.stream().map(display),
            front = self.front.as_str(),
            user = self.identity.user(),
            group = self.identity.group(),
            source = %self.source,
            network = self.network.as_str(),
            target = %self.target,
            client = self.journal.client().as_deref().map(printable).as_deref(),
            bytes_up = self.bytes_up,
            bytes_down = self.bytes_down,
            queue_ms = millis(self.journal.queued()),
            open_ms = millis(self.journal.opening()),
            connect_ms = millis(self.journal.connecting()),
            first_byte_ms = self.first_byte.map(millis),
            total_ms = millis(self.journal.started().elapsed()),
            outcome,
            end,
        );
    }
}

impl Meter for AccessLine {
    fn read(&mut self, bytes: usize) {
        if self.first_byte.is_none() && bytes > 0 {
            self.first_byte = Some(Instant::now().duration_since(self.journal.started()));
        }
        self.bytes_down += bytes as u64;
    }

    fn written(&mut self, bytes: usize) {
        self.bytes_up += bytes as u64;
    }

    fn ended(&mut self, ending: Ending) {
        self.write("ok", Some(ending.as_str()));
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
